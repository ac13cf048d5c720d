//! The spoke: the agent in each cluster of a fleet. Verifies, applies, heals, reports.
//!
//! It believes the trust policy of its own cluster and nobody else; what a hub sends is checked by
//! `attest_common::verify` before anything is written. Everything it must remember lies in Secrets
//! of its cluster; its disk holds nothing.
//!
//! Reading order: `options`, `agent` (what runs), `policy`, `identity`, `join`, `link` (the hub),
//! `gate`, `ledger`, `secrets` (decide and remember), `destination` (one application in one namespace),
//! `account`, `apply`, `drift`, `watch` (the cluster), `outbox`, `http`, `metrics`, `log`.

pub mod account;
pub mod agent;
pub mod apply;
pub mod blobs;
pub mod cluster;
pub mod destination;
pub mod drift;
pub mod failpoint;
pub mod gate;
pub mod http;
pub mod identity;
pub mod join;
pub mod ledger;
pub mod link;
pub mod log;
pub mod metrics;
pub mod options;
pub mod outbox;
pub mod pace;
pub mod policy;
mod secrets;
pub mod watch;

/// Namespace of the spoke itself: its Secrets and its service account.
pub const NAMESPACE: &str = "attest-system";
/// The spoke's own service account.
pub const ACCOUNT: &str = "attest-spoke";
