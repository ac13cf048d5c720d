//! Spokes: the QUIC listener, sessions, and registration.

mod close;
mod error;
mod greeting;
mod heartbeat;
mod limits;
pub(crate) mod listener;
mod push;
pub(crate) mod registration;
mod reports;
pub mod reset;
mod session;
mod shared;

pub use error::LinkError;
pub use listener::HANDSHAKES_MAX;
pub use push::PROGRESS_TIMEOUT;
