//! The spoke as a process: its flags, its start, and its connection to the hub.

pub mod connect;
pub mod options;
pub mod run;
