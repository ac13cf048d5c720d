//! The spoke: the agent in each cluster of a fleet. Verifies, applies, heals, reports.
//!
//! It believes the trust policy of its own cluster and nobody else; what a hub sends is checked by
//! `attest_common::verify` before anything is written. Everything it must remember lies in Secrets
//! of its cluster; its disk holds nothing.
//!
//! A folder uses only those that stand before it, in this order:
//!
//! 1. `http`, `metrics`, `rate_limits`: what every part uses.
//! 2. `cluster`: the API server, and reading, writing and watching objects.
//! 3. `trust`: the trust policy of the cluster and the identity of this spoke.
//! 4. `ledger`: what is durable.
//! 5. `session`: the hub.
//! 6. `destination`: one application in one namespace.
//! 7. `admission`: what is judged, and which destination it goes to.
//! 8. `process`: what runs.

pub mod admission;
pub mod cluster;
pub mod destination;
pub mod http;
pub mod ledger;
pub mod metrics;
pub mod process;
pub mod rate_limits;
pub mod session;
pub mod trust;

pub use attest_common::record::custody::{SPOKE_NAME, SYSTEM_NAMESPACE};
