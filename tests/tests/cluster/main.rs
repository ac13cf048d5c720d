//! Everything that is tested against real API servers, in one program, so that its tests can share
//! clusters.

mod crashes;
mod end_to_end;
mod evil_hub;
mod harness;
mod install;
mod operator;
mod registration;
mod spoke;
mod workflow;
