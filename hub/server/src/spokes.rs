//! Spokes: the QUIC listener, the session with each of them, and how they are registered.

mod error;
mod listener;
mod push;
pub(crate) mod registration;
mod reports;
pub mod reset;
mod session;

pub use error::LinkError;
pub use listener::*;
pub use push::PROGRESS_TIMEOUT;
