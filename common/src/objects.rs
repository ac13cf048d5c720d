//! Kubernetes objects: known kinds, placement in a destination, owned fields, health, differences.

pub mod absent;
pub mod autoscaling;
pub mod difference;
pub mod health;
pub mod kinds;
pub mod placement;
pub mod pods;
pub mod projection;
pub mod rewritten;
pub mod takeover;
