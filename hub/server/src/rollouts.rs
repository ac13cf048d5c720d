//! Rollouts by stages: pure rules. `stages` assigns destinations to stages, `tick` decides what is ordered next.
//!
//! `reconcile` gathers the facts, makes the decisions durable and sends them.

pub(crate) mod stages;
