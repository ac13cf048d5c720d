//! The hub as a process: flags, the parts wired together, start and end.

pub mod config;
pub mod hub;
pub mod run;
