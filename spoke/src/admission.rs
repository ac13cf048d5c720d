//! Judges pushes of the hub and recorded plans: each is recorded and passed to the worker of its destination, or refused.

pub mod agent;
pub mod blobs;
pub mod gate;
mod judge;
mod reevaluation;
mod refused;
mod rejected;
mod resume;
pub mod run;
