//! From a commit to signed directives: the queue of applications and one pass over one application.

mod answers;
mod commit;
mod observe;
mod pass;
pub mod planner;
pub mod queue;
