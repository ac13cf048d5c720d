//! Benchmarks: each is a command of its own, runs on real parts and prints a table with its target.
//!
//! Not tests: nothing fails on a busy machine. `attest-bench NAME` runs one, `attest-bench all` runs
//! all. Build with `--release`; the output of a debug build names it as such.

pub mod change;
pub mod drift;
pub mod figures;
pub mod fuzz;
pub mod growth;
pub mod idle;
pub mod large;
pub mod memory;
pub mod plain;
pub mod signed;
pub mod soak;
pub mod verify;
