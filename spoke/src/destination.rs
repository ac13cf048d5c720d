//! One application in one namespace: a worker that brings the cluster to what was admitted and keeps it there.
//!
//! Nothing is decided about trust here; a worker gets `Verified` values only. `work` is the state machine
//! (pure): an `event` comes in, `command`s come out, which `worker` performs. In it `applying` and
//! `removing` carry out an order, and `objects` decides about each object. Workers share nothing but the
//! API server, so one never holds up another.

mod applying;
mod command;
mod deleting;
mod event;
#[cfg(test)]
mod fixture;
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
