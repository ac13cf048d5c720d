//! The spoke as a process: its flags, what is started, and the connection to the hub that is kept.

pub mod connect;
pub mod options;
pub mod run;
