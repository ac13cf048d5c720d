//! One application in one namespace: a worker that brings the cluster to what was admitted and keeps it there.
//!
//! Nothing is decided about trust here; a worker gets `Verified` values only. What to do next is
//! `objects`, what it looks like to others is `report`; `worker` makes the requests and takes in what
//! comes back. Workers share nothing but the API server, so one never holds up another.

mod applying;
mod deleting;
pub mod mailbox;
pub mod objects;
mod recording;
pub mod report;
mod requests;
pub mod shared;
pub mod speculative;
mod track;
mod watch_status;
pub mod worker;
