//! State that every part of the hub shares: the store and its copies in memory, the signing key, metrics and the log.
//!
//! No part of it knows of HTTP, of a connection to a spoke, or of how an application is reconciled.

pub mod directory;
pub mod fleet;
pub mod limiter;
pub mod metrics;
pub mod signer;
pub mod store;

/// Target of the log lines about applications.
pub(crate) const CONTROLLER: &str = "attest_gitops::controller";
