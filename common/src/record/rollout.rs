//! The rollout of a destination, as its record holds it, and the rules on it: which plan an operation orders, which plan
//! becomes good, and what follows a failure. Pure.

use serde::{Deserialize, Serialize};

use super::{Held, Record, RecordError};
use crate::basics::ids::Digest;
use crate::basics::keys::KeyId;
use crate::basics::reason::ReportedReason;
use crate::documents::plan::{Directive, FinalizedBy, Operation};

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

/// The plan that a directive orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderedPlan<'a> {
    /// The plan that the hub delivers with the directive. It is admitted like any plan.
    Delivered,
    /// A plan that the record names. The hub cannot change it.
    Recorded(&'a Held),
}

/// Returns the plan that a directive orders at a destination. A removal belongs to no rollout.
///
/// # Errors
/// [`RecordError`] if the directive contradicts the rollout of the record.
pub fn ordered_plan<'a>(
    directive: &Directive,
    hub_key: KeyId,
    record: Option<&'a Record>,
) -> Result<OrderedPlan<'a>, RecordError> {
    let rollout = record.and_then(|record| record.rollout.as_ref());
    if let (Some(record), Some(rollout)) = (record, rollout)
        && directive.operation != Operation::Remove
        && record.hub_key == hub_key
        && (directive.generation < rollout.generation || directive.attempt < rollout.attempt)
    {
        return Err(RecordError::GenerationRegressed {
            got: (directive.generation, directive.attempt),
            seen: (rollout.generation, rollout.attempt),
            application: directive.application.clone(),
        });
    }
    match directive.operation {
        Operation::Progress => match rollout.and_then(|rollout| rollout.abort_of(directive)) {
            Some(Abort { attempt, message, .. }) => Err(RecordError::PlanAborted {
                attempt: *attempt,
                message: message.clone(),
                application: directive.application.clone(),
            }),
            None => Ok(OrderedPlan::Delivered),
        },
        Operation::Rollback => {
            let mut good = record.into_iter().flat_map(Record::good_plans);
            let good = good.find(|good| Some(good.plan_digest) == directive.plan);
            good.map(OrderedPlan::Recorded).ok_or(RecordError::RollbackNotAllowed)
        }
        Operation::Finalize => plan_in_hand(directive, record).map(OrderedPlan::Recorded),
        Operation::Supersede => {
            let held = plan_in_hand(directive, record)?;
            let is_unproven = rollout.is_some_and(|rollout| rollout.state.is_unproven());
            let good = record.and_then(|record| record.last_good.as_ref());
            Ok(OrderedPlan::Recorded(good.filter(|_| is_unproven).unwrap_or(held)))
        }
        Operation::Remove => Ok(OrderedPlan::Delivered),
    }
}

fn plan_in_hand<'a>(
    directive: &Directive,
    record: Option<&'a Record>,
) -> Result<&'a Held, RecordError> {
    let held = record.and_then(|record| record.held.as_ref());
    let held = held.filter(|held| Some(held.plan_digest) == directive.plan);
    held.ok_or(RecordError::NotInHand)
}

/// Returns the rollout after a directive is admitted that makes `held` the plan of the destination; none before the
/// first directive that needs one.
pub fn rollout_after(
    directive: &Directive,
    before: Option<&Record>,
    held: &Held,
) -> Option<Rollout> {
    let rollout = before.and_then(|record| record.rollout.as_ref());
    if rollout.is_none() && !directive.needs_rollout() {
        return None;
    }
    let good = before.and_then(|record| record.last_good.as_ref());
    let is_good = good.is_some_and(|good| good.plan_digest == held.plan_digest);
    let same = before.and_then(|record| record.held.as_ref());
    let same = same.filter(|same| same.plan_digest == held.plan_digest);
    let state = same.and(rollout).map(|rollout| rollout.state);
    Some(Rollout {
        generation: directive.generation,
        attempt: directive.attempt,
        state: if is_good { RolloutState::Good } else { state_after(directive, state) },
        aborts: rollout.map(|rollout| rollout.aborts.clone()).unwrap_or_default(),
    })
}

/// Returns the state of a plan that is not the newest good one, after a directive about it.
fn state_after(directive: &Directive, before: Option<RolloutState>) -> RolloutState {
    let was_at_target = matches!(before, Some(RolloutState::Soaking | RolloutState::Finalizing));
    match (directive.operation, directive.finalize) {
        (Operation::Finalize, _) => RolloutState::Finalizing,
        (Operation::Supersede, _) if was_at_target => RolloutState::Soaking,
        (Operation::Supersede, _) => before.unwrap_or(RolloutState::Local),
        (Operation::Progress | Operation::Rollback | Operation::Remove, FinalizedBy::Spoke) => {
            RolloutState::Local
        }
        (Operation::Progress | Operation::Rollback | Operation::Remove, FinalizedBy::Hub) => {
            if was_at_target {
                RolloutState::Soaking
            } else {
                RolloutState::Candidate
            }
        }
    }
}

impl Rollout {
    /// Returns the abort for which the plan of a directive is not tried again at its attempt.
    fn abort_of(&self, directive: &Directive) -> Option<&Abort> {
        let mut aborts = self.aborts.iter().filter(|abort| Some(abort.plan) == directive.plan);
        aborts.find(|abort| abort.attempt >= directive.attempt)
    }
}

impl RolloutState {
    /// Returns whether the held plan has not been at target, so that a newer rollout gives it up.
    fn is_unproven(self) -> bool {
        match self {
            Self::Candidate | Self::Failed => true,
            Self::Local | Self::Soaking | Self::Finalizing | Self::Good | Self::Returned => false,
        }
    }

    /// Returns whether the hub has yet to finalize the held plan. Its failure ends the rollout here.
    pub fn is_open(self) -> bool {
        match self {
            Self::Candidate | Self::Soaking | Self::Finalizing => true,
            Self::Local | Self::Failed | Self::Good | Self::Returned => false,
        }
    }

    /// Returns whether objects that the held plan lacks may be deleted once it is settled.
    pub fn may_prune(self) -> bool {
        match self {
            Self::Local | Self::Good | Self::Returned => true,
            Self::Candidate | Self::Soaking | Self::Finalizing | Self::Failed => false,
        }
    }
}

/// The rollout of a destination without what only the record needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolloutView {
    /// Digest of the held plan.
    pub plan: Digest,
    pub generation: u64,
    pub attempt: u32,
    pub state: RolloutState,
    /// The failure that the newest directive ended with.
    pub abort: Option<Abort>,
    /// Digests of the good plans, the newest first.
    pub good: Vec<Digest>,
}

impl RolloutView {
    /// Returns what follows the failure of the held plan.
    pub fn after_failure(&self, keep_failed: bool) -> AfterFailure {
        let has_other = self.good.first().is_some_and(|good| *good != self.plan);
        if has_other && !keep_failed { AfterFailure::Return } else { AfterFailure::Stay }
    }
}

/// Consequence of the failure of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterFailure {
    /// The newest good plan runs again.
    Return,
    /// The failed plan stays in place.
    Stay,
}

impl Record {
    /// Returns the rollout of the held plan, once a directive needed one.
    pub fn rollout_view(&self) -> Option<RolloutView> {
        let rollout = self.rollout.as_ref()?;
        Some(RolloutView {
            plan: self.held.as_ref()?.plan_digest,
            generation: rollout.generation,
            attempt: rollout.attempt,
            state: rollout.state,
            abort: self.abort().cloned(),
            good: self.good_plans().map(|good| good.plan_digest).collect(),
        })
    }

    /// Notes that the held plan is at target for the first time.
    pub fn reach_target(&mut self) {
        if let Some(rollout) = &mut self.rollout
            && rollout.state == RolloutState::Candidate
        {
            rollout.state = RolloutState::Soaking;
        }
    }

    /// Makes the held plan the newest good one, if it becomes so by itself or `Finalize` was ordered. Keeps at most
    /// `older_max` good plans before it. A good plan of the same content is replaced.
    pub fn finalize(&mut self, older_max: u32) {
        let state = self.rollout.as_ref().map(|rollout| rollout.state);
        if !matches!(state, None | Some(RolloutState::Local | RolloutState::Finalizing)) {
            return;
        }
        let Some(held) = self.held.clone() else { return };
        let newest = self.last_good.take();
        let newest = newest.filter(|newest| {
            newest.plan_digest != held.plan_digest && newest.content != held.content
        });
        self.good.retain(|plan| plan.plan_digest != held.plan_digest);
        self.good.splice(0..0, newest);
        self.good.truncate((older_max as usize).min(GOOD_PLANS_MAX - 1));
        self.last_good = Some(held);
        if let Some(rollout) = &mut self.rollout {
            rollout.state = RolloutState::Good;
        }
    }

    /// Notes that the held plan failed. With [`AfterFailure::Return`], the newest good plan is held again, and its
    /// objects are applied. Does nothing unless the hub has yet to finalize the held plan.
    pub fn fail(&mut self, abort: Abort, after: AfterFailure) {
        let Some(rollout) = self.rollout.as_mut().filter(|rollout| rollout.state.is_open()) else {
            return;
        };
        rollout.aborts.retain(|known| known.plan != abort.plan);
        rollout.aborts.insert(0, abort);
        rollout.aborts.truncate(ABORTS_MAX);
        match (after, &self.last_good) {
            (AfterFailure::Return, Some(good)) => {
                rollout.state = RolloutState::Returned;
                self.held = Some(good.clone());
                self.rollback_point = None;
            }
            (AfterFailure::Return | AfterFailure::Stay, _) => rollout.state = RolloutState::Failed,
        }
    }

    /// Returns the failure that the newest directive ended with, if it did.
    pub fn abort(&self) -> Option<&Abort> {
        let rollout = self.rollout.as_ref()?;
        match rollout.state {
            RolloutState::Failed | RolloutState::Returned => rollout.aborts.first(),
            RolloutState::Local
            | RolloutState::Candidate
            | RolloutState::Soaking
            | RolloutState::Finalizing
            | RolloutState::Good => None,
        }
    }
}

#[cfg(test)]
mod tests;
