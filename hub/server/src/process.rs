//! The hub process: flags, wiring of the parts, startup and shutdown.

pub mod config;
pub(crate) mod parts;
pub mod ready;
pub mod run;

pub use parts::StartError;
