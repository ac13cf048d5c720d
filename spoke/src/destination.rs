//! One application in one namespace: a worker that applies the admitted objects and keeps them applied.
//!
//! Trust is not decided here; a worker receives `Verified` values only. `work` is the pure state machine: it
//! takes an `event` and returns `command`s, which `worker` performs. Within it, `applying` and `removing` carry
//! out an order, and `objects` decides about each object. Workers share only the API server, so that none
//! delays another.

mod applying;
mod command;
mod deleting;
mod event;
#[cfg(test)]
mod fixture;
pub mod handover;
pub mod mailbox;
pub mod objects;
mod perform;
mod recording;
mod removing;
pub mod report;
pub mod shared;
pub mod speculative;
mod track;
mod watch_status;
mod work;
pub mod worker;
