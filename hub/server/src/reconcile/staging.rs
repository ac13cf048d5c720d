//! The third step of a pass: which of the decided directives are issued now. Blocks where it reads the store.
//!
//! Without stages, every one. With them, new plans become targets of a rollout, and the tick of the rollout
//! (`rollouts::tick`) decides which of its members are ordered now. `start` begins a rollout, `facts` gathers what a
//! tick depends on, `orders` turns its orders into directives.

mod facts;
mod orders;
mod start;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use attest_common::basics::ids::{ClusterId, DestinationKey, Name};
use attest_common::basics::reason::{Reason, ReportedReason};
use attest_runtime::clock::now;

pub(crate) use facts::gather;
pub(crate) use orders::ordered_before;

use super::commit::SignedPlans;
pub(crate) use super::commit::{last_attempt, next_generation};
use super::observe::Observation;
use super::plan::{Content, Decision, NewPlan, PlannedDirective};
use crate::applications::view::Waiting;
use crate::core::Core;
use crate::core::store::StoreError;
use crate::core::store::records::{
    self, Change, MemberReason, MemberTarget, RolloutKind, RolloutPhase, RolloutSnapshot,
    RolloutState, Stored,
};
use crate::rollouts::commands::superseded;
use crate::rollouts::tick::{TickTime, Ticked, awaits_approval, is_changed, tick};

/// Directives that a pass issues, and the change of the rollout of its application.
#[derive(Debug, Default)]
pub(super) struct Staged {
    /// Those of the planner; new plans that are not ordered now are on hold.
    pub(super) decisions: Vec<Decision>,
    /// Directives that the rollout orders.
    pub(super) orders: Vec<PlannedDirective>,
    /// Plans that were signed, with their blobs.
    pub(super) plans: SignedPlans,
    /// Changes to commit with the directives.
    pub(super) changes: Vec<Change>,
    /// The rollout after the tick.
    pub(super) rollout: Option<RolloutProgress>,
}

impl Staged {
    /// Returns every directive to issue.
    pub(super) fn directives(&self) -> Vec<&PlannedDirective> {
        let decided = self.decisions.iter().filter_map(|decision| match decision {
            Decision::Issue(planned) => Some(planned),
            Decision::Blocked { .. }
            | Decision::Hold { .. }
            | Decision::Keep(_)
            | Decision::Resend(_) => None,
        });
        decided.chain(&self.orders).collect()
    }
}

/// A rollout before and after a tick.
#[derive(Clone, Debug)]
pub(super) struct RolloutProgress {
    /// Absent for a rollout that starts.
    pub(super) previous: Option<RolloutState>,
    pub(super) state: RolloutState,
    pub(super) stage_names: Vec<String>,
    /// Clusters of the members.
    pub(super) clusters: BTreeSet<ClusterId>,
    /// Time to the next deadline.
    pub(super) next_ms: Option<u64>,
    /// The current stage waits for an operator.
    pub(super) awaits_approval: bool,
    /// True when the decisions of a whole pass may differ now.
    pub(super) concerns_decisions: bool,
}

/// State of the rollouts of one application, cached between passes.
#[derive(Debug, Default)]
pub(super) struct RolloutCache {
    /// The application has none, and none can begin outside of a pass.
    is_absent: bool,
    snapshot: Option<Arc<RolloutSnapshot>>,
    clock: Option<TickClock>,
    /// State with the time that was counted since it was stored.
    counted: Option<RolloutState>,
}

#[derive(Debug)]
struct TickClock {
    generation: u64,
    at: Instant,
    running: BTreeSet<usize>,
}

impl RolloutCache {
    /// Returns whether the application may have a rollout that reports concern.
    pub(super) fn may_have_one(&self) -> bool {
        !self.is_absent
    }
}

/// The newest rollout of an application.
struct Current {
    snapshot: Arc<RolloutSnapshot>,
    /// Absent for one that starts in this pass.
    stored: Option<Stored<RolloutState>>,
    state: RolloutState,
}

/// Decides which directives are issued, and advances the rollout of the application.
///
/// # Errors
/// When the store cannot be read.
pub(super) fn stage(
    core: &Core,
    observation: &Observation<'_>,
    decisions: Vec<Decision>,
    cache: &mut RolloutCache,
) -> Result<Staged, StoreError> {
    let application = observation.application();
    let is_staged = application.delivery.is_some() && !observation.record.deleting;
    let current = match is_staged || cache.may_have_one() {
        true => newest(core, &application.name, cache)?,
        false => None,
    };
    cache.is_absent = current.is_none() && !is_staged;
    if observation.record.deleting || (!is_staged && current.is_none()) {
        return Ok(Staged { decisions, ..Staged::default() });
    }
    let mut staging = Staging { core, observation, staged: Staged::default() };
    let started = match is_staged {
        true => staging.start_if_new(&decisions, current.as_ref())?,
        false => None,
    };
    let new_rollout = match started {
        Some(Ok(started)) => Some(started),
        Some(Err(waiting)) => {
            staging.staged.decisions = hold_new(decisions, &waiting);
            return Ok(staging.staged);
        }
        None => None,
    };
    if new_rollout.is_some() {
        staging.supersede(current.as_ref());
    }
    let Some(current) = new_rollout.or(current) else {
        staging.staged.decisions = decisions;
        return Ok(staging.staged);
    };
    let current = if is_staged { staging.with_late_targets(current, &decisions) } else { current };
    let immediate = immediate(core, &current, &decisions, is_staged);
    let label = commit_of_targets(observation, &decisions);
    let ticked = staging.tick(&current, label, &replacing(&decisions, &immediate), cache)?;
    staging.staged.decisions =
        settle(decisions, &current, &ticked.state, &staging.staged.orders, &immediate);
    Ok(staging.staged)
}

/// Advances the rollout of an application after a report or at a deadline, without its repository.
///
/// # Errors
/// When the store cannot be read.
pub(super) fn advance(
    core: &Core,
    application: &Name,
    cache: &mut RolloutCache,
) -> Result<Option<Staged>, StoreError> {
    let Some(current) = newest(core, application, cache)? else {
        cache.is_absent = true;
        return Ok(None);
    };
    let mut staged = Staged::default();
    advance_current(core, &current, &BTreeSet::new(), cache, &mut staged)?;
    Ok(Some(staged))
}

/// Reads the newest rollout of an application.
fn newest(
    core: &Core,
    application: &Name,
    cache: &mut RolloutCache,
) -> Result<Option<Current>, StoreError> {
    let Some(stored) = records::newest_rollout(&core.records, application)? else {
        return Ok(None);
    };
    let known = cache.snapshot.clone().filter(|one| one.generation == stored.value.generation);
    let snapshot = match known {
        Some(snapshot) => snapshot,
        None => match core.records.get::<RolloutSnapshot>(&stored.value.snapshot_key())? {
            Some(snapshot) => Arc::new(snapshot),
            None => return Ok(None),
        },
    };
    cache.snapshot = Some(Arc::clone(&snapshot));
    let counted = cache.counted.take().filter(|counted| {
        counted.generation == stored.value.generation && !is_changed(&stored.value, counted)
    });
    let state = counted.unwrap_or_else(|| stored.value.clone());
    Ok(Some(Current { snapshot, stored: Some(stored), state }))
}

struct Staging<'a> {
    core: &'a Core,
    observation: &'a Observation<'a>,
    staged: Staged,
}

impl Staging<'_> {
    /// Starts a rollout when a plan was found that is no target of the newest one.
    fn start_if_new(
        &mut self,
        decisions: &[Decision],
        current: Option<&Current>,
    ) -> Result<Option<Result<Current, Waiting>>, StoreError> {
        let mut new = decisions.iter().filter_map(new_plan);
        if !new.any(|(planned, plan)| is_new_target(self.core, current, planned, plan)) {
            return Ok(None);
        }
        start::start(self.core, self.observation, decisions, &mut self.staged).map(Some)
    }

    /// Ends the rollout that a new one replaces.
    fn supersede(&mut self, replaced: Option<&Current>) {
        let Some(Current { stored: Some(stored), state, .. }) = replaced else { return };
        if !state.phase.is_open() {
            return;
        }
        let superseded = superseded(state, "another target was found", now());
        self.staged.changes.push(records::replace(stored, &superseded));
    }

    /// Gives members without a target the one that was found since the start.
    fn with_late_targets(&mut self, current: Current, decisions: &[Decision]) -> Current {
        let mut snapshot = None;
        for (planned, plan) in decisions.iter().filter_map(new_plan) {
            let Some(member) = current.snapshot.member(&planned.destination) else { continue };
            let has_target =
                current.snapshot.members.get(member).is_none_or(|one| one.target.plan().is_some());
            if has_target || !current.state.phase.is_open() {
                continue;
            }
            let Ok(signed) = self.staged.plans.sign(&self.core.signer, plan) else { continue };
            let changed: &mut RolloutSnapshot =
                snapshot.get_or_insert_with(|| (*current.snapshot).clone());
            if let Some(one) = changed.members.get_mut(member) {
                one.target = MemberTarget::Plan(signed.plan);
            }
            if changed.planned(&signed.plan).is_none() {
                changed.plans.push(signed);
            }
        }
        match snapshot {
            Some(changed) => {
                self.staged.changes.push(records::put(&changed));
                Current { snapshot: Arc::new(changed), ..current }
            }
            None => current,
        }
    }

    fn tick(
        &mut self,
        current: &Current,
        commit: Option<String>,
        immediate: &BTreeSet<DestinationKey>,
        cache: &mut RolloutCache,
    ) -> Result<Ticked, StoreError> {
        let is_relabelled = current.state.phase.is_open()
            && commit.is_some()
            && current.snapshot.kind == RolloutKind::Stages;
        let mut labelled = Current {
            state: current.state.clone(),
            stored: current.stored.clone(),
            snapshot: Arc::clone(&current.snapshot),
        };
        if is_relabelled {
            labelled.state.commit = commit;
        }
        cache.snapshot = Some(Arc::clone(&current.snapshot));
        advance_current(self.core, &labelled, immediate, cache, &mut self.staged)
    }
}

/// Returns the commit of a pass, if it has the targets of the rollout everywhere.
fn commit_of_targets(observation: &Observation<'_>, decisions: &[Decision]) -> Option<String> {
    observation.commit.clone().filter(|_| decisions.iter().all(is_target))
}

fn is_target(decision: &Decision) -> bool {
    matches!(decision, Decision::Issue(_) | Decision::Keep(_) | Decision::Resend(_))
}

/// Makes a tick of a rollout, and adds its orders and the change of its state. Nothing is ordered at destinations that
/// are ordered otherwise.
fn advance_current(
    core: &Core,
    current: &Current,
    elsewhere: &BTreeSet<DestinationKey>,
    cache: &mut RolloutCache,
    staged: &mut Staged,
) -> Result<Ticked, StoreError> {
    let Current { snapshot, stored, state } = current;
    let facts = gather(core, snapshot);
    let at = Instant::now();
    let clock = cache.clock.take().filter(|clock| clock.generation == snapshot.generation);
    let time = TickTime {
        now: now(),
        elapsed_ms: clock.as_ref().map_or(0, |clock| elapsed_ms(clock.at, at)),
        running: clock.map(|clock| clock.running).unwrap_or_default(),
    };
    let mut ticked = tick(snapshot, state, &facts, &time);
    ticked.orders.retain(|order| {
        let place = snapshot.members.get(order.member);
        place.is_some_and(|place| !elsewhere.contains(&place.destination))
    });
    staged.orders = orders::directives(core, snapshot, &ticked)?;
    let previous = stored.as_ref().map(|stored| &stored.value);
    match stored {
        Some(stored) if is_changed(&stored.value, &ticked.state) => {
            staged.changes.push(records::replace(stored, &ticked.state));
        }
        Some(_) => {}
        None => staged.changes.push(records::put_new(&ticked.state)),
    }
    let is_other = previous.is_none_or(|previous| {
        (previous.phase, previous.stage, previous.failed.len())
            != (ticked.state.phase, ticked.state.stage, ticked.state.failed.len())
    });
    staged.rollout = Some(RolloutProgress {
        previous: previous.cloned(),
        state: ticked.state.clone(),
        stage_names: snapshot.stages.iter().map(|stage| stage.name.clone()).collect(),
        clusters: snapshot.members.iter().map(|one| one.destination.cluster.clone()).collect(),
        next_ms: ticked.next_ms,
        awaits_approval: awaits_approval(snapshot, &ticked.state),
        concerns_decisions: is_other || !staged.orders.is_empty(),
    });
    cache.clock =
        Some(TickClock { generation: snapshot.generation, at, running: ticked.running.clone() });
    cache.counted = Some(ticked.state.clone());
    Ok(ticked)
}

fn elapsed_ms(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_millis()).unwrap_or(u64::MAX)
}

/// Returns the new plan that a decision would issue.
fn new_plan(decision: &Decision) -> Option<(&PlannedDirective, &Arc<NewPlan>)> {
    let Decision::Issue(planned) = decision else { return None };
    match &planned.content {
        Content::Verified(plan) | Content::Alike(plan) => Some((planned, plan)),
        Content::Current | Content::Signed(_) | Content::Removal => None,
    }
}

/// Returns whether a plan at a destination begins a rollout.
fn is_new_target(
    core: &Core,
    current: Option<&Current>,
    planned: &PlannedDirective,
    plan: &NewPlan,
) -> bool {
    let Some(Current { snapshot, state, .. }) = current else { return true };
    if facts::runs_content(core, planned, plan) {
        return false;
    }
    let Some(member) = snapshot.member(&planned.destination) else {
        // A destination that joins gets what the newest rollout brought, and waits for one that runs.
        let is_known = snapshot.planned(&plan.payload).is_some()
            || state.commit.as_ref() == Some(&plan.commit);
        return !state.phase.is_open() && !is_known;
    };
    let Some(one) = snapshot.members.get(member) else { return true };
    match &one.target {
        MemberTarget::Plan(target) => {
            let is_held = state.sync_held && one.from == Some(plan.payload);
            *target != plan.payload && !is_held
        }
        // The rollout takes it as the target.
        MemberTarget::Awaiting(_) | MemberTarget::Refused(_) => !state.phase.is_open(),
    }
}

/// Returns the destinations whose new plan is issued outside the stages.
fn immediate(
    core: &Core,
    current: &Current,
    decisions: &[Decision],
    is_staged: bool,
) -> BTreeSet<DestinationKey> {
    let Current { snapshot, state, .. } = current;
    let all = decisions.iter().filter_map(|decision| {
        let Decision::Issue(planned) = decision else { return None };
        Some((planned, new_plan(decision)))
    });
    let issued = all.filter(|(planned, new)| {
        let Some((_, plan)) = new else {
            // Removals, and directives issued again; in a rollout that is held, its members get nothing.
            let is_member = snapshot.member(&planned.destination).is_some();
            return state.phase != RolloutPhase::Held || !is_member;
        };
        if !is_staged || facts::runs_content(core, planned, plan) {
            return state.phase != RolloutPhase::Held;
        }
        match snapshot.member(&planned.destination) {
            None => !state.phase.is_open(),
            // It was passed over, or its cluster was away, and the rollout is over.
            Some(member) => {
                state.phase == RolloutPhase::Succeeded
                    && !state.sync_held
                    && !state.failed.contains_key(&member)
                    && snapshot.members.get(member).and_then(|one| one.target.plan())
                        == Some(plan.payload)
            }
        }
    });
    issued.map(|(planned, _)| planned.destination.clone()).collect()
}

/// Returns the destinations where a directive is issued that the rollout does not replace: an order of the rollout takes
/// precedence over the current directive that would be issued again.
fn replacing(
    decisions: &[Decision],
    immediate: &BTreeSet<DestinationKey>,
) -> BTreeSet<DestinationKey> {
    let issued = decisions.iter().filter_map(|decision| {
        let Decision::Issue(planned) = decision else { return None };
        (!matches!(planned.content, Content::Current)).then_some(&planned.destination)
    });
    issued.filter(|destination| immediate.contains(*destination)).cloned().collect()
}

/// Replaces the new plans that are not issued now by holds that say what they wait for.
fn settle(
    decisions: Vec<Decision>,
    current: &Current,
    state: &RolloutState,
    orders: &[PlannedDirective],
    immediate: &BTreeSet<DestinationKey>,
) -> Vec<Decision> {
    let snapshot = &current.snapshot;
    let ordered: BTreeSet<&DestinationKey> =
        orders.iter().map(|order| &order.destination).collect();
    let settled = decisions.into_iter().map(|decision| match decision {
        Decision::Issue(planned) => {
            let is_ordered = ordered.contains(&planned.destination);
            if !is_ordered && is_issued(snapshot, state, &planned, immediate) {
                return Decision::Issue(planned);
            }
            let PlannedDirective { destination, place, content, .. } = planned;
            if is_ordered || matches!(content, Content::Current) {
                return Decision::Keep(destination);
            }
            let waiting = waiting(snapshot, state, &destination);
            Decision::Hold { place, destination, waiting }
        }
        Decision::Hold { place, destination, waiting: hold } => {
            // The operator asked for it when the rollout started.
            let is_known = hold.reason == Reason::AwaitingSync
                && state.phase.is_open()
                && has_target(snapshot, &destination);
            let waiting = if is_known { waiting(snapshot, state, &destination) } else { hold };
            Decision::Hold { place, destination, waiting }
        }
        Decision::Blocked { .. } | Decision::Keep(_) | Decision::Resend(_) => decision,
    });
    settled.collect()
}

/// Returns whether a directive is issued outside of the stages. A held rollout orders nothing at its members.
fn is_issued(
    snapshot: &RolloutSnapshot,
    state: &RolloutState,
    planned: &PlannedDirective,
    immediate: &BTreeSet<DestinationKey>,
) -> bool {
    let is_held =
        state.phase == RolloutPhase::Held && snapshot.member(&planned.destination).is_some();
    immediate.contains(&planned.destination) && !is_held
}

fn has_target(snapshot: &RolloutSnapshot, destination: &DestinationKey) -> bool {
    let member = snapshot.member(destination).and_then(|member| snapshot.members.get(member));
    member.is_some_and(|member| member.target.plan().is_some())
}

/// Holds every new plan for the same reason.
fn hold_new(decisions: Vec<Decision>, waiting: &Waiting) -> Vec<Decision> {
    let held = decisions.into_iter().map(|decision| {
        if new_plan(&decision).is_none() {
            return decision;
        }
        let Decision::Issue(planned) = decision else { return decision };
        let PlannedDirective { destination, place, .. } = planned;
        Decision::Hold { place, destination, waiting: waiting.clone() }
    });
    held.collect()
}

/// Returns the reason that a target is not ordered at a destination.
fn waiting(
    snapshot: &RolloutSnapshot,
    state: &RolloutState,
    destination: &DestinationKey,
) -> Waiting {
    let RolloutState { generation, application, .. } = state;
    let cause =
        state.cause.as_ref().map(|cause| format!(": {}", cause.message)).unwrap_or_default();
    let member = snapshot.member(destination);
    let stage =
        snapshot.stages.iter().find(|stage| member.is_some_and(|m| stage.members.contains(&m)));
    let stage = stage.map_or("", |stage| stage.name.as_str());
    if state.sync_held {
        let message = format!(
            "held after `rollout rollback`; a commit with other content or \
             `attest gitops rollout resume {application}` continues"
        );
        return Waiting::for_operator(Reason::SyncHeld, message);
    }
    match state.phase {
        RolloutPhase::Running if state.paused => Waiting::for_stage(
            Reason::RolloutPaused,
            format!("rollout {generation} is paused; `attest gitops rollout resume {application}`"),
        ),
        RolloutPhase::Running if awaits_approval(snapshot, state) => Waiting::for_stage(
            Reason::AwaitingApproval,
            format!(
                "rollout {generation} orders it in stage {stage}; a stage waits for \
                 `attest gitops rollout promote {application}`"
            ),
        ),
        RolloutPhase::Running => Waiting::for_stage(
            Reason::AwaitingStage,
            format!("rollout {generation} orders it in stage {stage}"),
        ),
        RolloutPhase::Held => Waiting::for_operator(
            Reason::StateRegression,
            format!("rollout {generation} is held{cause}"),
        ),
        RolloutPhase::Aborted => Waiting::for_operator(
            Reason::RolloutAborted,
            format!(
                "rollout {generation} was aborted{cause}; `attest gitops rollout retry {application}` tries it again"
            ),
        ),
        RolloutPhase::Failed | RolloutPhase::Succeeded | RolloutPhase::Superseded => {
            Waiting::for_operator(
                Reason::RolloutFailed,
                format!(
                    "rollout {generation} failed{cause}; `attest gitops rollout retry {application}` tries it again"
                ),
            )
        }
    }
}

/// Returns reason and message of a hold.
fn member_reason(waiting: &Waiting) -> MemberReason {
    MemberReason { reason: ReportedReason::from(waiting.reason), message: waiting.message.clone() }
}
