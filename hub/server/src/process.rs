//! The hub as a process: flags, the parts wired together, probes, start and end.

pub mod config;
pub mod http;
pub mod hub;
pub mod run;
