//! Conversion of rollouts to the documents of the API. Contains no rules.

use attest_documents::{Rollout, RolloutAction, RolloutMember, RolloutStage};

use super::shown::age_ms;
use crate::core::Core;
use crate::core::store::records::{
    MemberReason, ResolvedStage, RolloutKind, RolloutPhase, RolloutSnapshot, RolloutState,
};
use crate::reconcile::staging::gather;
use crate::rollouts::tick::{MemberFacts, MemberStatus, awaits_approval, status};

/// Returns a rollout without its stages.
pub(super) fn summary(snapshot: Option<&RolloutSnapshot>, state: &RolloutState) -> Rollout {
    let stages = snapshot.map(|snapshot| snapshot.stages.as_slice()).unwrap_or_default();
    let awaits_approval = snapshot.is_some_and(|snapshot| awaits_approval(snapshot, state));
    let cause = state.cause.as_ref();
    Rollout {
        application: state.application.to_string(),
        generation: state.generation,
        attempt: state.attempt,
        kind: match snapshot.map(|snapshot| snapshot.kind) {
            Some(RolloutKind::Rollback) => "Rollback",
            Some(RolloutKind::Stages) | None => "Stages",
        }
        .to_owned(),
        phase: state.phase.as_str().to_owned(),
        reason: cause.map(|cause| cause.reason.clone()),
        message: cause.map(|cause| cause.message.clone()).unwrap_or_default(),
        paused: state.paused,
        awaits_approval,
        sync_held: state.sync_held,
        commit: state.commit.clone(),
        version: state.version.clone(),
        stage: stages.get(state.stage).map(|stage| stage.name.clone()),
        stages_passed: state.stage.min(stages.len()) as u64,
        stages_total: stages.len() as u64,
        started_at: state.started_at,
        ended_at: state.ended_at,
        next: next_step(stages, state, awaits_approval),
        stages: Vec::new(),
        actions: state
            .actions
            .iter()
            .map(|action| RolloutAction {
                at: action.at,
                operator: action.operator.clone(),
                action: action.action.clone(),
                reason: action.reason.clone(),
            })
            .collect(),
    }
}

/// Returns what happens next, or what an operator can do.
fn next_step(stages: &[ResolvedStage], state: &RolloutState, awaits_approval: bool) -> String {
    let name = &state.application;
    let stage = stages.get(state.stage).map_or("", |stage| stage.name.as_str());
    match state.phase {
        RolloutPhase::Held => format!("attest gitops rollout adopt {name}"),
        RolloutPhase::Failed | RolloutPhase::Aborted => {
            format!("another commit, or attest gitops rollout retry {name}")
        }
        RolloutPhase::Running if state.paused => format!("attest gitops rollout resume {name}"),
        RolloutPhase::Running if awaits_approval => {
            format!("stage {stage} waits for attest gitops rollout promote {name}")
        }
        RolloutPhase::Running => match stages.get(state.stage + 1) {
            Some(next) if next.approval => format!("stage {}, after approval", next.name),
            Some(next) => format!("stage {}", next.name),
            None => "the end".to_owned(),
        },
        RolloutPhase::Succeeded if state.sync_held => {
            format!("attest gitops rollout resume {name}")
        }
        RolloutPhase::Succeeded | RolloutPhase::Superseded => String::new(),
    }
}

/// Returns a rollout with its stages and their members.
pub(super) fn rollout(core: &Core, snapshot: &RolloutSnapshot, state: &RolloutState) -> Rollout {
    let facts = gather(core, snapshot);
    let stages = snapshot.stages.iter().enumerate();
    let stages =
        stages.map(|(index, stage)| shown_stage(core, (snapshot, state), (index, stage), &facts));
    Rollout { stages: stages.collect(), ..summary(Some(snapshot), state) }
}

fn shown_stage(
    core: &Core,
    (snapshot, state): (&RolloutSnapshot, &RolloutState),
    (index, stage): (usize, &ResolvedStage),
    facts: &[MemberFacts],
) -> RolloutStage {
    let members: Vec<(usize, MemberStatus)> = stage
        .members
        .iter()
        .filter_map(|member| {
            Some((*member, status(snapshot, state, (stage, *member), facts.get(*member)?)))
        })
        .collect();
    RolloutStage {
        name: stage.name.clone(),
        weight: stage.weight.into(),
        phase: stage_phase(snapshot, state, index, &members).to_owned(),
        soak_ms: stage.soak_ms,
        approval: stage.approval,
        concurrent_max: stage.concurrent_max as u64,
        failures_max: stage.failures_max as u64,
        inherited: stage.inherited,
        members: members
            .iter()
            .filter_map(|(member, status)| shown_member(core, snapshot, *member, status))
            .collect(),
    }
}

fn stage_phase(
    snapshot: &RolloutSnapshot,
    state: &RolloutState,
    index: usize,
    members: &[(usize, MemberStatus)],
) -> &'static str {
    let is_current = index == state.stage;
    let has_failed = matches!(state.phase, RolloutPhase::Failed | RolloutPhase::Aborted);
    if index < state.stage {
        "Passed"
    } else if !is_current {
        "Pending"
    } else if has_failed {
        state.phase.as_str()
    } else if awaits_approval(snapshot, state) {
        "AwaitingApproval"
    } else if members.iter().any(|(_, status)| *status == MemberStatus::Soaking) {
        "Soaking"
    } else {
        "Rolling"
    }
}

fn shown_member(
    core: &Core,
    snapshot: &RolloutSnapshot,
    member: usize,
    status: &MemberStatus,
) -> Option<RolloutMember> {
    let place = snapshot.members.get(member)?;
    let report = core.fleet.report(&place.destination);
    let cause = match status {
        MemberStatus::Failed(cause) | MemberStatus::Waiting(cause) => Some(cause.clone()),
        MemberStatus::Progressing => report.as_ref().map(|record| {
            let report = &record.report;
            MemberReason { reason: report.reason.clone(), message: report.message.clone() }
        }),
        MemberStatus::Gone
        | MemberStatus::Skipped
        | MemberStatus::Ready
        | MemberStatus::Soaking
        | MemberStatus::Passed
        | MemberStatus::Finalized => None,
    };
    let rollout = report.as_ref().and_then(|record| record.report.rollout.as_ref());
    let (connected, _) = core.fleet.presence(&place.destination.cluster);
    Some(RolloutMember {
        cluster: place.cluster.to_string(),
        namespace: place.destination.namespace.to_string(),
        phase: status.as_str().to_owned(),
        reason: cause.as_ref().map(|cause| cause.reason.clone()),
        message: cause.map(|cause| cause.message).unwrap_or_default(),
        healthy_for_ms: rollout
            .filter(|rollout| rollout.at_target)
            .map(|rollout| rollout.healthy_for_ms),
        connected,
        report_age_ms: report.as_deref().map(age_ms),
    })
}
