//! State that every part of the hub shares: the store and its copies in memory, the signing key, metrics and the log.
//!
//! No part of it knows of HTTP, of a connection to a spoke, or of how an application is reconciled.

pub mod clock;
pub mod directory;
mod failpoint;
pub mod fleet;
pub mod limiter;
pub mod log;
pub mod metrics;
pub mod signer;
pub mod store;
