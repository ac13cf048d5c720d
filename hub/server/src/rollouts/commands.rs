//! Commands of operators about a rollout. Pure: each command is a function of the rollout.

use attest_common::basics::ids::{Digest, Timestamp};
use attest_common::basics::reason::Reason;

use super::tick::awaits_approval;
use crate::core::store::records::{
    MemberReason, MemberTarget, OperatorAction, Planned, ResolvedStage, RolloutKind, RolloutMember,
    RolloutPhase, RolloutSnapshot, RolloutState,
};

/// Most actions of operators that are stored with a rollout; older ones are dropped.
pub(crate) const ACTIONS_MAX: usize = 100;

/// Command about a rollout that changes its state only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Approves the stage that waits.
    Promote,
    Pause,
    Resume,
    Abort,
    /// Begins another attempt.
    Retry,
    /// Passes over a member.
    Skip(usize),
}

/// Reason that a command is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rollout {generation} is {phase}: {message}")]
pub(crate) struct CommandError {
    generation: u64,
    phase: &'static str,
    message: &'static str,
}

impl CommandError {
    fn new(state: &RolloutState, message: &'static str) -> Self {
        Self { generation: state.generation, phase: state.phase.as_str(), message }
    }

    /// Returns the reason to show.
    pub(crate) fn reason(&self) -> Reason {
        Reason::RolloutState
    }
}

/// Returns the state of a rollout after a command.
///
/// # Errors
/// When the state does not allow it.
pub(crate) fn apply(
    snapshot: &RolloutSnapshot,
    state: &RolloutState,
    command: &Command,
    action: OperatorAction,
) -> Result<RolloutState, CommandError> {
    let is_running = state.phase == RolloutPhase::Running;
    let at = action.at;
    let because = action.reason.clone();
    let mut next = noted(state, action);
    match command {
        Command::Promote if awaits_approval(snapshot, state) => {
            next.approved.insert(state.stage);
            next.stage_started_at = at;
        }
        Command::Promote => return Err(CommandError::new(state, "no stage waits for approval")),
        Command::Pause if is_running && !state.paused => next.paused = true,
        Command::Pause => {
            return Err(CommandError::new(state, "only a running rollout can be paused"));
        }
        Command::Resume if is_running && state.paused => next.paused = false,
        Command::Resume if state.sync_held => next.sync_held = false,
        Command::Resume => {
            return Err(CommandError::new(state, "it is neither paused nor held after a rollback"));
        }
        Command::Abort if state.phase.is_open() => {
            next.phase = RolloutPhase::Aborted;
            next.cause =
                Some(MemberReason { reason: Reason::RolloutAborted.into(), message: because });
            next.ended_at = Some(at);
        }
        Command::Abort => {
            return Err(CommandError::new(state, "only an open rollout can be aborted"));
        }
        Command::Retry if may_be_retried(snapshot, state) => retry(&mut next, at),
        Command::Retry => {
            return Err(CommandError::new(
                state,
                "only a rollout that failed or was aborted can be tried again",
            ));
        }
        Command::Skip(member) if is_running && !state.skipped.contains(member) => {
            next.skipped.insert(*member);
        }
        Command::Skip(_) => {
            return Err(CommandError::new(
                state,
                "only a destination of a running rollout can be skipped, once",
            ));
        }
    }
    Ok(next)
}

fn may_be_retried(snapshot: &RolloutSnapshot, state: &RolloutState) -> bool {
    snapshot.kind == RolloutKind::Stages
        && match state.phase {
            RolloutPhase::Failed | RolloutPhase::Aborted => true,
            RolloutPhase::Succeeded => !state.failed.is_empty(),
            RolloutPhase::Running | RolloutPhase::Held | RolloutPhase::Superseded => false,
        }
}

/// Begins another attempt: stages whose members are finalized pass immediately.
fn retry(state: &mut RolloutState, at: Timestamp) {
    state.attempt = state.attempt.saturating_add(1);
    state.phase = RolloutPhase::Running;
    (state.cause, state.ended_at, state.paused) = (None, None, false);
    state.failed.clear();
    state.connected_ms.clear();
    (state.stage, state.stage_started_at) = (0, at);
}

fn noted(state: &RolloutState, action: OperatorAction) -> RolloutState {
    let mut next = state.clone();
    next.actions.push(action);
    let excess = next.actions.len().saturating_sub(ACTIONS_MAX);
    next.actions.drain(..excess);
    next
}

/// Returns the state of a rollout at its start. Attempts continue: a spoke accepts none below the one it holds.
pub(crate) fn first_state(
    snapshot: &RolloutSnapshot,
    attempt: u32,
    commit: Option<String>,
    started_at: Timestamp,
) -> RolloutState {
    RolloutState {
        application: snapshot.application.clone(),
        generation: snapshot.generation,
        attempt,
        commit,
        version: snapshot.plans.iter().max_by_key(|plan| plan.counter).map(|p| p.version.clone()),
        phase: RolloutPhase::Running,
        cause: None,
        stage: 0,
        paused: false,
        approved: Default::default(),
        failed: Default::default(),
        skipped: Default::default(),
        connected_ms: Default::default(),
        sync_held: false,
        started_at,
        stage_started_at: started_at,
        ended_at: None,
        actions: Vec::new(),
    }
}

/// Ends a rollout that another one replaces.
pub(crate) fn superseded(state: &RolloutState, message: &str, at: Timestamp) -> RolloutState {
    let cause = MemberReason { reason: Reason::Superseded.into(), message: message.to_owned() };
    RolloutState {
        phase: RolloutPhase::Superseded,
        cause: Some(cause),
        ended_at: Some(at),
        ..state.clone()
    }
}

/// Begins a held rollout again, from its first stage, at a generation above all that spokes hold, and at an attempt not
/// below theirs.
///
/// # Errors
/// When it is not held.
pub(crate) fn adopt(
    snapshot: &RolloutSnapshot,
    state: &RolloutState,
    (generation, attempt): (u64, u32),
    action: OperatorAction,
) -> Result<(RolloutSnapshot, RolloutState), CommandError> {
    if state.phase != RolloutPhase::Held {
        return Err(CommandError::new(state, "only a held rollout can be adopted"));
    }
    let at = action.at;
    let snapshot = RolloutSnapshot { generation, ..snapshot.clone() };
    let attempt = attempt.max(state.attempt);
    let first = first_state(&snapshot, attempt, state.commit.clone(), at);
    Ok((snapshot, noted(&first, action)))
}

/// Good plans of a member, the newest first, as reported.
pub(crate) type GoodPlans = Vec<Digest>;

/// Returns the plan to which each member returns from the targets of a rollout: the good plan before the target, where
/// the target is good, else the newest good plan.
///
/// # Errors
/// When no member has a plan to return to.
pub(crate) fn returns(
    snapshot: &RolloutSnapshot,
    state: &RolloutState,
    good: &[GoodPlans],
) -> Result<Vec<Option<Digest>>, CommandError> {
    if snapshot.kind == RolloutKind::Rollback {
        let message = "the fleet has returned already; earlier releases need CI (`attest release --from COUNTER`)";
        return Err(CommandError::new(state, message));
    }
    let returns: Vec<Option<Digest>> = snapshot
        .members
        .iter()
        .zip(good)
        .map(|(member, good)| {
            let target = member.target.plan();
            good.iter().find(|plan| Some(**plan) != target).copied()
        })
        .collect();
    if returns.iter().all(Option::is_none) {
        let message = "no destination reports a good plan before it";
        return Err(CommandError::new(state, message));
    }
    Ok(returns)
}

/// Returns the rollout that returns members to earlier plans, everywhere at the same time. Automatic sync is held after
/// it.
pub(crate) fn roll_back(
    snapshot: &RolloutSnapshot,
    state: &RolloutState,
    plans: Vec<Option<Planned>>,
    generation: u64,
    action: OperatorAction,
) -> (RolloutSnapshot, RolloutState) {
    let returning = snapshot.members.iter().zip(&plans);
    let members: Vec<RolloutMember> = returning
        .filter_map(|(member, plan)| {
            let plan = plan.as_ref()?.plan;
            let from = member.target.plan();
            Some(RolloutMember { target: MemberTarget::Plan(plan), from, ..member.clone() })
        })
        .collect();
    let stage = ResolvedStage {
        name: "rollback".to_owned(),
        weight: 100,
        soak_ms: 0,
        concurrent_max: members.len(),
        failures_max: members.len(),
        approval: false,
        progress_deadline_ms: None,
        inherited: false,
        members: (0..members.len()).collect(),
    };
    let mut signed: Vec<Planned> = Vec::new();
    for plan in plans.into_iter().flatten() {
        if !signed.iter().any(|known| known.plan == plan.plan) {
            signed.push(plan);
        }
    }
    let at = action.at;
    let rollback = RolloutSnapshot {
        application: snapshot.application.clone(),
        generation,
        kind: RolloutKind::Rollback,
        stages: vec![stage],
        members,
        plans: signed,
    };
    let commit = rollback.plans.first().map(|plan| plan.commit.clone());
    let first = first_state(&rollback, state.attempt, commit, at);
    (rollback, RolloutState { sync_held: true, ..noted(&first, action) })
}
