//! From a commit to signed directives: the queue of applications, and one pass over one application.
//!
//! `pass` shows the whole flow; each of its steps is a file of its own.

mod answers;
mod commit;
mod configured;
mod deletion;
mod evidence;
mod observe;
mod pass;
mod plan;
mod planner;
mod publish;
mod publish_rollout;
mod publish_status;
mod queue;
pub(crate) mod reconciler;
pub(crate) mod repositories;
pub(crate) mod staging;
mod task;
pub(crate) mod waker;
