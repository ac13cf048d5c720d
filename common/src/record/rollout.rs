//! The rollout of a destination, as its record holds it.

use serde::{Deserialize, Serialize};

use crate::basics::ids::Digest;
use crate::basics::reason::ReportedReason;

/// Most aborts that a destination remembers. A plan whose abort is forgotten may be tried again.
pub const ABORTS_MAX: usize = 20;

/// Most good plans of a destination: the newest, and as many before it as `rollback.lastGood` may ask for.
pub const GOOD_PLANS_MAX: usize = 11;

/// Rollout of the held plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Rollout {
    /// Rollout number of the newest admitted directive. Never falls for one hub key.
    pub generation: u64,
    /// Attempt of the newest admitted directive. Never falls for one hub key.
    pub attempt: u32,
    pub state: RolloutState,
    /// Plans that failed here, the newest first, at most [`ABORTS_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aborts: Vec<Abort>,
}

/// State of the held plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RolloutState {
    /// It becomes good by itself as soon as it is settled.
    Local,
    /// It has not been at target yet, and becomes good only by `Finalize`.
    Candidate,
    /// It has been at target, and becomes good only by `Finalize`.
    Soaking,
    /// `Finalize` was ordered: it becomes good as soon as it is at target.
    Finalizing,
    /// It failed and stays: there is no good plan, or the directive keeps what failed.
    Failed,
    /// It is good.
    Good,
    /// It is good and runs again, because the plan of the newest directive failed.
    Returned,
}

/// A plan that failed at a destination. It is tried again only at a higher attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Abort {
    /// SHA-256 of the plan's signed payload.
    pub plan: Digest,
    pub attempt: u32,
    pub reason: ReportedReason,
    pub message: String,
}
