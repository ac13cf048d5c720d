//! Rollouts by stages: pure rules. `stages` assigns destinations to stages, `tick` decides what is ordered next.
//!
//! `reconcile` gathers the facts, makes the decisions durable and sends them.

pub(crate) mod commands;
pub(crate) mod stages;
pub(crate) mod tick;

#[cfg(test)]
mod simulation;
