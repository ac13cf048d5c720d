//! Start of a rollout: its stages, members and signed plans. Blocks where it reads the store.

use std::collections::BTreeMap;
use std::sync::Arc;

use attest_common::basics::ids::DestinationKey;
use attest_common::basics::reason::Reason;
use attest_runtime::clock::now;

use super::super::commit::{last_attempt, next_generation};
use super::super::observe::Observation;
use super::super::plan::{Content, Decision, PlannedDirective};
use super::{Current, Staged, facts, member_reason, new_plan};
use crate::applications::view::Waiting;
use crate::core::Core;
use crate::core::store::StoreError;
use crate::core::store::records::{
    self, Destination, MemberTarget, Planned, RolloutKind, RolloutMember, RolloutSnapshot,
};
use crate::rollouts::commands::first_state;
use crate::rollouts::stages::{self, StagedPlace};

/// Begins a rollout to the plans of `decisions`. Fails with a reason to wait when the stages do not fit.
///
/// # Errors
/// When the store cannot be read.
pub(super) fn start(
    core: &Core,
    observation: &Observation<'_>,
    decisions: &[Decision],
    staged: &mut Staged,
) -> Result<Result<Current, Waiting>, StoreError> {
    let application = observation.application();
    let Some(delivery) = &application.delivery else {
        return Ok(Err(Waiting::for_stage(Reason::AwaitingStage, "the application has no stages")));
    };
    let mut members = Vec::new();
    let mut places = Vec::new();
    let mut plans: BTreeMap<_, Planned> = BTreeMap::new();
    let named = decisions.iter().skip(observation.leaving.len());
    for (destination, decision) in application.destinations.iter().zip(named) {
        let Some((key, place)) = registered(core, observation, destination) else { continue };
        let (target, signed) = target(core, decision, staged)?;
        plans.extend(signed.map(|signed| (signed.plan, signed)));
        members.push(RolloutMember {
            destination: key,
            cluster: destination.cluster.clone(),
            is_immediate: is_immediate(core, decision),
            target,
            from: None,
        });
        places.push(place);
    }
    let stages = match stages::resolve(&delivery.stages, &places) {
        Ok(stages) => stages,
        Err(error) => {
            let message = format!("spec.progressiveDelivery.{}: {error}", error.field());
            return Ok(Err(Waiting::refused(error.reason(), message)));
        }
    };
    let snapshot = RolloutSnapshot {
        application: application.name.clone(),
        generation: next_generation(core, &application.name)?,
        kind: RolloutKind::Stages,
        stages,
        members,
        plans: plans.into_values().collect(),
    };
    let attempt = last_attempt(core, &application.name)?;
    let state = first_state(&snapshot, attempt, observation.commit.clone(), now());
    staged.changes.extend(records::drop_old_rollouts(&core.records, &application.name)?);
    staged.changes.push(records::put_new(&snapshot));
    Ok(Ok(Current { snapshot: Arc::new(snapshot), stored: None, state }))
}

/// Returns key and place of a destination whose cluster is registered.
fn registered(
    core: &Core,
    observation: &Observation<'_>,
    destination: &Destination,
) -> Option<(DestinationKey, StagedPlace)> {
    let record = core.directory.named(&destination.cluster)?;
    let reported = core.fleet.reported_policy(&record.id);
    let place = StagedPlace {
        cluster: destination.cluster.clone(),
        namespace: destination.namespace.clone(),
        stage: destination.stage.clone(),
        labels: record.labels.clone(),
        environment: reported.map(|reported| reported.policy.environment.to_string()),
    };
    Some((observation.application().key_at(&record.id, &destination.namespace), place))
}

/// Returns the target of a member, and its signed plan.
fn target(
    core: &Core,
    decision: &Decision,
    staged: &mut Staged,
) -> Result<(MemberTarget, Option<Planned>), StoreError> {
    let signed = match decision {
        Decision::Blocked { waiting, .. } | Decision::Hold { waiting, .. } => {
            let reason = member_reason(waiting);
            let target = if waiting.is_refusal() {
                MemberTarget::Refused(reason)
            } else {
                MemberTarget::Awaiting(reason)
            };
            return Ok((target, None));
        }
        Decision::Keep(destination) | Decision::Resend(destination) => {
            core.fleet.head(destination).and_then(|head| head.planned.clone())
        }
        Decision::Issue(planned) => signed_plan(core, planned, staged)?,
    };
    let waiting = Waiting::for_receipts("nothing is ordered here yet");
    Ok(match signed {
        Some(signed) => (MemberTarget::Plan(signed.plan), Some(signed)),
        None => (MemberTarget::Awaiting(member_reason(&waiting)), None),
    })
}

fn signed_plan(
    core: &Core,
    planned: &PlannedDirective,
    staged: &mut Staged,
) -> Result<Option<Planned>, StoreError> {
    match &planned.content {
        Content::Verified(plan) | Content::Alike(plan) => {
            staged.plans.sign(&core.signer, plan).map(Some)
        }
        Content::Signed(signed) => Ok(Some((**signed).clone())),
        Content::Current => Ok(planned.head.as_ref().and_then(|head| head.planned.clone())),
        Content::Removal => Ok(None),
    }
}

/// Returns whether a decision is carried out outside the stages.
fn is_immediate(core: &Core, decision: &Decision) -> bool {
    new_plan(decision).is_some_and(|(planned, plan)| facts::runs_content(core, planned, plan))
}
