//! The process around the rules: log, probes, metrics, frames on QUIC streams, clock and failpoints.
//!
//! Used by both the hub and the spoke, so that a flag, a log line and a probe are the same in both. Performs
//! I/O and reads the clock, which `attest_common` does not; knows no document and decides nothing.

pub mod clock;
pub mod failpoint;
pub mod frames;
pub mod log;
pub mod metrics;
pub mod probes;
pub mod variables;
