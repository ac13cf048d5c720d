//! The decision of what a rollout orders next. Pure: a function of the rollout, of what is known of its members, and
//! of the time that has passed.
//!
//! It is level-triggered: what is ordered already is not ordered again, and a tick may come at any time.

use std::collections::{BTreeMap, BTreeSet};

use attest_common::basics::ids::{Digest, Timestamp};
use attest_common::basics::reason::{Reason, ReportedReason};
use attest_common::documents::plan::Operation;

use crate::core::store::records::{
    MemberReason, MemberTarget, ResolvedStage, RolloutKind, RolloutPhase, RolloutSnapshot,
    RolloutState,
};

/// Facts about one member.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct MemberFacts {
    /// Its cluster is registered and not revoked. Others leave the counts.
    pub is_registered: bool,
    pub is_connected: bool,
    /// Its connected spoke carries out rollouts.
    pub is_supported: bool,
    /// Its spoke holds more than this hub has ordered.
    pub is_overtaken: bool,
    pub head: Option<HeadFacts>,
    pub report: Option<ReportFacts>,
}

/// The newest directive of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HeadFacts {
    pub sequence: u64,
    pub generation: u64,
    pub attempt: u32,
    pub operation: Operation,
    pub plan: Option<Digest>,
    pub is_paused: bool,
    /// The plan becomes good only by an order of the hub.
    pub is_hub_finalized: bool,
}

/// The newest report of a member.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ReportFacts {
    /// It arrived in the session that lasts.
    pub is_fresh: bool,
    /// Sequence of the directive that it is about.
    pub sequence: Option<u64>,
    /// Refusal of the directive with this sequence.
    pub refused: Option<(u64, MemberReason)>,
    pub rollout: Option<ReportedRollout>,
    /// Newest good plan.
    pub good: Option<Digest>,
}

/// The rollout part of a report.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ReportedRollout {
    pub generation: u64,
    pub attempt: u32,
    /// The plan that runs or is moved to.
    pub plan: Digest,
    pub is_at_target: bool,
    pub is_soaked: bool,
    /// Plan and attempt that failed.
    pub aborted: Option<(Digest, u32, MemberReason)>,
}

/// An order to one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub member: usize,
    pub kind: OrderKind,
}

/// Kind of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OrderKind {
    /// Move to the target, as a member of this stage.
    Grant { stage: usize },
    /// Make the target a good plan.
    Finalize,
    /// Make the plan in hand, which is of an earlier rollout, a good plan.
    FinalizeEarlier { generation: u64, attempt: u32 },
    /// Give up the plan in hand, which is of an earlier rollout, unless it is at target.
    Supersede { generation: u64, attempt: u32 },
    /// Return to this good plan.
    Rollback(Digest),
}

/// Time, as far as a tick depends on it.
#[derive(Clone, Debug)]
pub(crate) struct TickTime {
    pub now: Timestamp,
    /// Time since the previous tick, by the hub's monotonic clock; zero after a start of the hub.
    pub elapsed_ms: u64,
    /// Members whose deadline ran at the end of the previous tick.
    pub running: BTreeSet<usize>,
}

/// Result of a tick.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ticked {
    pub state: RolloutState,
    pub orders: Vec<Order>,
    /// Members whose deadline runs.
    pub running: BTreeSet<usize>,
    /// Time to the next deadline.
    pub next_ms: Option<u64>,
}

/// Situation of a member.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum MemberStatus {
    /// Its cluster is not registered any longer.
    Gone,
    Skipped,
    Failed(MemberReason),
    /// It is not ordered yet, and waits for the given reason.
    Waiting(MemberReason),
    /// It is not ordered yet, and could be.
    Ready,
    /// The target is ordered.
    Progressing,
    /// The target runs and is healthy, and the time of the stage is not over.
    Soaking,
    /// The target was healthy for the time of the stage.
    Passed,
    Finalized,
}

impl MemberStatus {
    /// Returns the word that is shown.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Gone => "Gone",
            Self::Skipped => "Skipped",
            Self::Failed(_) => "Failed",
            Self::Waiting(_) => "Waiting",
            Self::Ready => "Pending",
            Self::Progressing => "Progressing",
            Self::Soaking => "Soaking",
            Self::Passed => "Passed",
            Self::Finalized => "Finalized",
        }
    }

    fn is_settled(&self) -> bool {
        matches!(
            self,
            Self::Gone | Self::Skipped | Self::Failed(_) | Self::Passed | Self::Finalized
        )
    }
}

fn because(reason: Reason, message: impl Into<String>) -> MemberReason {
    MemberReason { reason: ReportedReason::from(reason), message: message.into() }
}

/// Returns the situation of a member in a stage.
pub(crate) fn status(
    snapshot: &RolloutSnapshot,
    state: &RolloutState,
    (stage, member): (&ResolvedStage, usize),
    facts: &MemberFacts,
) -> MemberStatus {
    if !facts.is_registered {
        return MemberStatus::Gone;
    }
    if state.skipped.contains(&member) {
        return MemberStatus::Skipped;
    }
    if let Some(failure) = state.failed.get(&member) {
        return MemberStatus::Failed(failure.clone());
    }
    let target = match snapshot.members.get(member).map(|member| &member.target) {
        Some(MemberTarget::Plan(target)) => *target,
        Some(MemberTarget::Awaiting(reason)) => return MemberStatus::Waiting(reason.clone()),
        Some(MemberTarget::Refused(reason)) => return MemberStatus::Failed(reason.clone()),
        None => return MemberStatus::Gone,
    };
    let is_immediate = snapshot.members.get(member).is_some_and(|member| member.is_immediate);
    let is_ordered = facts.head.as_ref().is_some_and(|head| head.plan == Some(target));
    if is_finalized(facts, target) || (is_immediate && is_ordered) {
        return MemberStatus::Finalized;
    }
    let Some(head) = granted(state, facts, target) else { return ungranted(facts) };
    if head.operation == Operation::Finalize {
        return MemberStatus::Passed;
    }
    granted_status(state, stage, facts, (head, target))
}

/// Returns the situation of a member to which the target is ordered.
fn granted_status(
    state: &RolloutState,
    stage: &ResolvedStage,
    facts: &MemberFacts,
    (head, target): (&HeadFacts, Digest),
) -> MemberStatus {
    let Some(report) = facts.report.as_ref().filter(|report| report.is_fresh) else {
        return MemberStatus::Progressing;
    };
    // A refusal by its age is answered by issuing the directive again.
    if let Some((sequence, refusal)) = &report.refused
        && *sequence == head.sequence
        && refusal.reason != Reason::Expired
    {
        return MemberStatus::Failed(refusal.clone());
    }
    let current = report.rollout.as_ref().filter(|rollout| {
        rollout.generation == state.generation && rollout.attempt == state.attempt
    });
    let Some(rollout) = current.filter(|_| report.sequence == Some(head.sequence)) else {
        return MemberStatus::Progressing;
    };
    if let Some((plan, attempt, failure)) = &rollout.aborted
        && *plan == target
        && *attempt == state.attempt
    {
        return MemberStatus::Failed(failure.clone());
    }
    match rollout.plan == target && rollout.is_at_target {
        true if rollout.is_soaked || stage.soak_ms == 0 => MemberStatus::Passed,
        true => MemberStatus::Soaking,
        false => MemberStatus::Progressing,
    }
}

fn ungranted(facts: &MemberFacts) -> MemberStatus {
    if !facts.is_connected {
        let message = "the cluster is not connected; the stage waits for it";
        return MemberStatus::Waiting(because(Reason::SpokeDisconnected, message));
    }
    if !facts.is_supported {
        let message = "the spoke does not carry out rollouts by stages; upgrade the spoke";
        return MemberStatus::Waiting(because(Reason::SpokeTooOld, message));
    }
    MemberStatus::Ready
}

/// Returns the directive that orders the target in this attempt.
fn granted<'a>(
    state: &RolloutState,
    facts: &'a MemberFacts,
    target: Digest,
) -> Option<&'a HeadFacts> {
    facts.head.as_ref().filter(|head| {
        head.generation == state.generation
            && head.attempt == state.attempt
            && head.plan == Some(target)
            && matches!(head.operation, Operation::Progress | Operation::Finalize)
            && head.is_hub_finalized
    })
}

/// Returns whether the target is the newest good plan, and the member is to run it.
fn is_finalized(facts: &MemberFacts, target: Digest) -> bool {
    let is_ordered = facts
        .head
        .as_ref()
        .is_some_and(|head| head.plan == Some(target) && head.operation != Operation::Remove);
    is_ordered && facts.report.as_ref().is_some_and(|report| report.good == Some(target))
}

/// Returns what a rollout orders next, and its new state.
pub(crate) fn tick(
    snapshot: &RolloutSnapshot,
    state: &RolloutState,
    facts: &[MemberFacts],
    time: &TickTime,
) -> Ticked {
    let mut pass = Pass {
        snapshot,
        facts,
        now: time.now,
        state: state.clone(),
        orders: Vec::new(),
        running: BTreeSet::new(),
        next_ms: None,
    };
    match (state.phase, snapshot.kind) {
        (RolloutPhase::Running, _) if facts.iter().any(|member| member.is_overtaken) => {
            let message = "a spoke holds more than this hub has ordered, as after a restore from a backup; \
                           check what runs, then `attest gitops rollout adopt`";
            pass.state.phase = RolloutPhase::Held;
            pass.state.cause = Some(because(Reason::StateRegression, message));
        }
        (RolloutPhase::Running, RolloutKind::Stages) => {
            pass.count_connected(time);
            pass.advance();
            pass.supersede_earlier();
        }
        (RolloutPhase::Running, RolloutKind::Rollback) => pass.roll_back(),
        (
            RolloutPhase::Failed | RolloutPhase::Aborted | RolloutPhase::Succeeded,
            RolloutKind::Stages,
        ) => pass.sweep(),
        (_, RolloutKind::Rollback) | (RolloutPhase::Held | RolloutPhase::Superseded, _) => {}
    }
    let Pass { state, orders, running, next_ms, .. } = pass;
    Ticked { state, orders, running, next_ms }
}

struct Pass<'a> {
    snapshot: &'a RolloutSnapshot,
    facts: &'a [MemberFacts],
    now: Timestamp,
    state: RolloutState,
    orders: Vec<Order>,
    running: BTreeSet<usize>,
    next_ms: Option<u64>,
}

impl Pass<'_> {
    fn order(&mut self, member: usize, kind: OrderKind) {
        self.orders.push(Order { member, kind });
    }

    fn statuses(&self, stage: &ResolvedStage) -> Vec<(usize, MemberStatus)> {
        let members = stage.members.iter().filter_map(|member| {
            let facts = self.facts.get(*member)?;
            Some((*member, status(self.snapshot, &self.state, (stage, *member), facts)))
        });
        members.collect()
    }

    /// Adds the time since the previous tick to the deadlines that ran.
    fn count_connected(&mut self, time: &TickTime) {
        for member in &time.running {
            let counted = self.state.connected_ms.entry(*member).or_default();
            *counted = counted.saturating_add(time.elapsed_ms);
        }
    }

    /// Passes every stage that is complete, and grants members of the first that is not.
    fn advance(&mut self) {
        let snapshot = self.snapshot;
        while let Some(stage) = snapshot.stages.get(self.state.stage) {
            if awaits_approval(snapshot, &self.state) {
                return;
            }
            self.note_failures(stage);
            let statuses = self.statuses(stage);
            let failed =
                statuses.iter().filter(|(_, status)| matches!(status, MemberStatus::Failed(_)));
            let failed = failed.count();
            if failed > stage.failures_max {
                return self.fail(stage, failed);
            }
            if self.state.paused || !statuses.iter().all(|(_, status)| status.is_settled()) {
                return self.work(stage, &statuses);
            }
            self.pass_stage(&statuses);
        }
        self.end(RolloutPhase::Succeeded, None);
        if !self.state.failed.is_empty() {
            let message = format!("{} members failed", self.state.failed.len());
            self.state.cause = Some(because(Reason::PartiallyFailed, message));
        }
        self.sweep();
    }

    /// Records the failures of a stage, among them members that are not healthy in time.
    fn note_failures(&mut self, stage: &ResolvedStage) {
        for (member, status) in self.statuses(stage) {
            match status {
                MemberStatus::Failed(failure) => {
                    self.state.failed.entry(member).or_insert(failure);
                }
                MemberStatus::Progressing => self.watch_deadline(stage, member),
                MemberStatus::Gone
                | MemberStatus::Skipped
                | MemberStatus::Waiting(_)
                | MemberStatus::Ready
                | MemberStatus::Soaking
                | MemberStatus::Passed
                | MemberStatus::Finalized => {}
            }
        }
    }

    fn watch_deadline(&mut self, stage: &ResolvedStage, member: usize) {
        let is_connected = self.facts.get(member).is_some_and(|facts| facts.is_connected);
        let Some(deadline_ms) = stage.progress_deadline_ms else { return };
        let counted_ms = self.state.connected_ms.get(&member).copied().unwrap_or_default();
        if counted_ms >= deadline_ms {
            let message = format!("not healthy within {} s of connected time", deadline_ms / 1000);
            let failure = because(Reason::ProgressDeadlineExceeded, message);
            self.state.failed.insert(member, failure);
            return self.return_member(member);
        }
        if is_connected && !self.state.paused {
            self.running.insert(member);
            let left_ms = deadline_ms - counted_ms;
            self.next_ms = Some(self.next_ms.map_or(left_ms, |next_ms| next_ms.min(left_ms)));
        }
    }

    /// Grants members up to the limit of the stage.
    fn work(&mut self, stage: &ResolvedStage, statuses: &[(usize, MemberStatus)]) {
        let in_progress = statuses.iter().filter(|(_, one)| *one == MemberStatus::Progressing);
        let in_progress = in_progress.count();
        let mut free = stage.concurrent_max.saturating_sub(in_progress);
        for (member, status) in statuses {
            let is_paused = self.state.paused;
            match status {
                MemberStatus::Ready if free > 0 && !is_paused => {
                    free -= 1;
                    self.order(*member, OrderKind::Grant { stage: self.state.stage });
                }
                MemberStatus::Progressing | MemberStatus::Soaking => {
                    let head = self.facts.get(*member).and_then(|facts| facts.head.as_ref());
                    if head.is_some_and(|head| head.is_paused != is_paused) {
                        self.order(*member, OrderKind::Grant { stage: self.state.stage });
                    }
                }
                MemberStatus::Gone
                | MemberStatus::Skipped
                | MemberStatus::Failed(_)
                | MemberStatus::Waiting(_)
                | MemberStatus::Ready
                | MemberStatus::Passed
                | MemberStatus::Finalized => {}
            }
        }
    }

    fn pass_stage(&mut self, statuses: &[(usize, MemberStatus)]) {
        let later = self.snapshot.stages.iter().skip(self.state.stage + 1);
        let later: BTreeSet<usize> =
            later.flat_map(|stage| stage.members.iter().copied()).collect();
        for (member, status) in statuses {
            let is_finalizing = self.facts.get(*member).is_some_and(|facts| {
                facts.head.as_ref().is_some_and(|head| head.operation == Operation::Finalize)
            });
            if *status == MemberStatus::Passed && !is_finalizing && !later.contains(member) {
                self.order(*member, OrderKind::Finalize);
            }
        }
        self.state.stage += 1;
        self.state.stage_started_at = self.now;
    }

    fn fail(&mut self, stage: &ResolvedStage, failed: usize) {
        let first = stage.members.iter().find_map(|member| {
            let failure = self.state.failed.get(member)?;
            let place = self.snapshot.members.get(*member)?;
            let message = format!("{}: {}", place.shown(), failure.message);
            Some((failure.reason.clone(), message))
        });
        let (reason, first) =
            first.unwrap_or_else(|| (Reason::Failed.into(), "no message".to_owned()));
        let message = format!("{failed} members of stage {} failed: {first}", stage.name);
        self.end(RolloutPhase::Failed, Some(MemberReason { reason, message }));
        self.sweep();
    }

    fn end(&mut self, phase: RolloutPhase, cause: Option<MemberReason>) {
        self.state.phase = phase;
        self.state.cause = cause;
        self.state.ended_at = Some(self.now);
        (self.running, self.next_ms) = (BTreeSet::new(), None);
    }

    /// Orders a member back to its newest good plan, unless it is there.
    fn return_member(&mut self, member: usize) {
        let Some(facts) = self.facts.get(member) else { return };
        let Some(report) = &facts.report else { return };
        let (Some(good), Some(head)) = (report.good, &facts.head) else { return };
        let is_ordered = head.operation == Operation::Rollback && head.plan == Some(good);
        let is_pending = self.orders.iter().any(|order| order.member == member);
        if head.plan != Some(good) && !is_ordered && !is_pending && !has_returned(facts, head) {
            self.order(member, OrderKind::Rollback(good));
        }
    }

    /// Gives up the plans of earlier rollouts that are not good, and not yet replaced.
    fn supersede_earlier(&mut self) {
        for (member, facts) in self.facts.iter().enumerate() {
            let is_open = self.state.phase == RolloutPhase::Running;
            let is_pending = self.orders.iter().any(|order| order.member == member);
            let Some(head) = unfinished(facts).filter(|_| is_open && !is_pending) else { continue };
            let is_earlier = head.generation < self.state.generation;
            let target = self.snapshot.members.get(member).and_then(|place| place.target.plan());
            let is_other = head.plan != target;
            let is_granted = head.operation == Operation::Progress;
            if is_earlier && is_other && is_granted && facts.is_registered {
                let HeadFacts { generation, attempt, .. } = *head;
                self.order(member, OrderKind::Supersede { generation, attempt });
            }
        }
    }

    /// After the end: no member keeps a plan that is not good.
    fn sweep(&mut self) {
        for (member, facts) in self.facts.iter().enumerate() {
            let is_pending = self.orders.iter().any(|order| order.member == member);
            let Some(head) = unfinished(facts).filter(|_| facts.is_registered && !is_pending)
            else {
                continue;
            };
            let is_earlier = head.generation < self.state.generation;
            let is_fresh = facts.report.as_ref().is_some_and(|report| report.is_fresh);
            let is_lost = self.state.failed.contains_key(&member)
                || self.state.skipped.contains(&member)
                || self.state.phase != RolloutPhase::Succeeded;
            match soaked(facts, head) {
                // It may have proved the plan of the earlier rollout, and has not reported yet.
                false if is_earlier && !is_fresh => {}
                true if is_earlier => {
                    let HeadFacts { generation, attempt, .. } = *head;
                    self.order(member, OrderKind::FinalizeEarlier { generation, attempt });
                }
                true if !is_lost => self.order(member, OrderKind::Finalize),
                _ => self.return_member(member),
            }
        }
    }

    /// Orders every member back, and ends.
    fn roll_back(&mut self) {
        for (member, (place, facts)) in self.snapshot.members.iter().zip(self.facts).enumerate() {
            if let (Some(target), true) = (place.target.plan(), facts.is_registered) {
                self.order(member, OrderKind::Rollback(target));
            }
        }
        self.state.stage = self.snapshot.stages.len();
        self.end(RolloutPhase::Succeeded, None);
    }
}

/// Returns the directive of a member whose plan is ordered, needs the hub to become good, and is not.
fn unfinished(facts: &MemberFacts) -> Option<&HeadFacts> {
    let head = facts.head.as_ref().filter(|head| head.is_hub_finalized)?;
    let is_open = matches!(head.operation, Operation::Progress | Operation::Supersede);
    let is_good = facts.report.as_ref().is_some_and(|report| report.good == head.plan);
    (is_open && !is_good).then_some(head)
}

/// Returns whether the spoke has carried `head` out and runs its newest good plan: the ordered one failed, or was given
/// up.
fn has_returned(facts: &MemberFacts, head: &HeadFacts) -> bool {
    let Some(report) = &facts.report else { return false };
    let runs = report.rollout.as_ref().map(|rollout| rollout.plan);
    report.sequence == Some(head.sequence) && runs.is_some() && runs == report.good
}

/// Returns whether the plan of `head` was healthy for the time of its stage.
fn soaked(facts: &MemberFacts, head: &HeadFacts) -> bool {
    let report = facts.report.as_ref().filter(|report| report.is_fresh);
    let rollout = report.and_then(|report| report.rollout.as_ref());
    rollout.is_some_and(|rollout| {
        Some(rollout.plan) == head.plan && rollout.is_at_target && rollout.is_soaked
    })
}

/// Returns whether the current stage waits for an operator.
pub(crate) fn awaits_approval(snapshot: &RolloutSnapshot, state: &RolloutState) -> bool {
    let stage = snapshot.stages.get(state.stage);
    state.phase == RolloutPhase::Running
        && stage.is_some_and(|stage| stage.approval && !state.approved.contains(&state.stage))
}

/// Returns whether anything of a state changed that is to be stored: counted time alone is stored once a minute.
pub(crate) fn is_changed(previous: &RolloutState, next: &RolloutState) -> bool {
    without_time(previous) != without_time(next)
        || next.connected_ms.iter().any(|(member, ms)| {
            let stored_ms = previous.connected_ms.get(member).copied().unwrap_or_default();
            ms.saturating_sub(stored_ms) >= STORED_INTERVAL_MS
        })
}

fn without_time(state: &RolloutState) -> RolloutState {
    RolloutState { connected_ms: BTreeMap::new(), ..state.clone() }
}

/// Counted time of a member that may be lost with the hub's process, in milliseconds.
const STORED_INTERVAL_MS: u64 = 60_000;
