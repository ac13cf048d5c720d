//! The cluster: its API server, and reading, writing and watching the objects of applications in it.
//!
//! `destination` decides which objects are written.

pub mod account;
pub mod answer;
pub mod apply;
pub mod client;
mod credentials;
pub mod discovery;
pub mod drift;
pub mod error;
#[cfg(test)]
pub(crate) mod fake;
mod replacement;
mod replicas;
pub mod watch;
