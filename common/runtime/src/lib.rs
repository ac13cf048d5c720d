//! Process infrastructure: log, probes, metrics, frames on QUIC streams, clock and failpoints.
//!
//! Shared by hub and spoke, so that flags, log lines and probes are the same in both. Performs I/O and reads the clock,
//! which `attest_common` does not. Contains no rules.

pub mod clock;
pub mod failpoint;
pub mod frames;
pub mod log;
pub mod metrics;
pub mod probes;
pub mod service_account;
pub mod variables;
