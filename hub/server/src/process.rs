//! The hub as a process: flags, the parts wired together, start and end.

pub mod config;
pub(crate) mod parts;
pub mod run;

pub use parts::StartError;
