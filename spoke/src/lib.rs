//! The spoke: the agent in each cluster of a fleet. Verifies, applies, heals, reports.
//!
//! It trusts the trust policy of its own cluster only. Documents from the hub are verified by
//! `attest_common::verify` before anything is written. Durable state is stored in Secrets of the cluster;
//! the disk holds none.
//!
//! A folder depends only on those before it, in this order:
//!
//! 1. `metrics`, `http`, `rate_limits`: used by every part.
//! 2. `cluster`: the API server, and reading, writing and watching objects.
//! 3. `trust`: the trust policy of the cluster and the identity of this spoke.
//! 4. `ledger`: durable state.
//! 5. `session`: the connection to the hub.
//! 6. `rollout`: the decisions of a rollout, without clock and I/O.
//! 7. `destination`: one application in one namespace.
//! 8. `admission`: judging pushes, and passing orders to workers.
//! 9. `process`: flags, start and tasks.

pub mod admission;
pub mod cluster;
pub mod destination;
pub mod http;
pub mod ledger;
pub mod metrics;
pub mod process;
pub mod rate_limits;
pub mod rollout;
pub mod session;
pub mod trust;

pub use attest_common::record::custody::{SPOKE_NAME, SPOKE_NAMESPACE};
