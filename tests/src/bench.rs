//! Figures: each is taken by its own command, on real parts, and printed as a table with its target.
//!
//! Not tests: nothing fails because a machine is busy. `attest-bench NAME` runs one, `attest-bench
//! all` runs all. Build with `--release`; a debug build says so in its output.

pub mod change;
pub mod drift;
pub mod figures;
pub mod idle;
pub mod memory;
pub mod plain;
pub mod signed;
pub mod verify;
