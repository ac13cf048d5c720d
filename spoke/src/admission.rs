//! What the hub pushes and what this cluster holds: judged, made durable, handed to the worker of its destination, or refused.

pub mod agent;
pub mod blobs;
pub mod gate;
mod judge;
mod rejected;
mod resume;
pub mod run;
