//! Turns the orders of a tick into directives. Blocks where it reads the store.

use std::sync::Arc;

use attest_common::basics::ids::{DestinationKey, Digest};
use attest_common::documents::plan::{FinalizedBy, Operation, StageReference};

use super::super::plan::{Content, PlannedDirective, RolloutOrder};
use crate::core::Core;
use crate::core::store::StoreError;
use crate::core::store::records::{LedgerEntry, Planned, RolloutSnapshot, RolloutState};
use crate::rollouts::tick::{Order, OrderKind, Ticked};

/// Most directives of a destination searched for a good plan.
const DIRECTIVES_SEARCHED_MAX: usize = 200;

/// Returns the directives of a tick. An order whose plan the hub no longer has is left out.
pub(in super::super) fn directives(
    core: &Core,
    snapshot: &RolloutSnapshot,
    ticked: &Ticked,
) -> Result<Vec<PlannedDirective>, StoreError> {
    let mut directives = Vec::new();
    for order in &ticked.orders {
        let Some(member) = snapshot.members.get(order.member) else { continue };
        let head = core.fleet.head(&member.destination);
        let content = content(core, snapshot, order, &member.destination, head.as_deref())?;
        let Some(content) = content else { continue };
        let rollout = rollout_order(snapshot, ticked, order, head.as_deref());
        directives.push(PlannedDirective {
            destination: member.destination.clone(),
            place: (member.cluster.clone(), member.destination.namespace.clone()),
            head,
            content,
            repair: false,
            rollout: Some(rollout),
        });
    }
    Ok(directives)
}

fn content(
    core: &Core,
    snapshot: &RolloutSnapshot,
    order: &Order,
    destination: &DestinationKey,
    head: Option<&LedgerEntry>,
) -> Result<Option<Content>, StoreError> {
    let target = snapshot.members.get(order.member).and_then(|member| member.target.plan());
    let plan = match &order.kind {
        OrderKind::Grant { .. } => target,
        OrderKind::Rollback(good) => Some(*good),
        OrderKind::Finalize | OrderKind::FinalizeEarlier { .. } | OrderKind::Supersede { .. } => {
            return Ok(head.and_then(|head| head.planned.as_ref()).map(|_| Content::Current));
        }
    };
    let Some(plan) = plan else { return Ok(None) };
    let signed = match snapshot.planned(&plan) {
        Some(signed) => Some(signed.clone()),
        None => ordered_before(core, destination, &plan)?,
    };
    Ok(signed.map(|signed| Content::Signed(Arc::new(signed))))
}

/// Returns a plan that was ordered at a destination before.
pub(crate) fn ordered_before(
    core: &Core,
    destination: &DestinationKey,
    plan: &Digest,
) -> Result<Option<Planned>, StoreError> {
    let entries = core.records.ledger(destination, DIRECTIVES_SEARCHED_MAX)?;
    let mut planned = entries.into_iter().filter_map(|entry| entry.planned);
    Ok(planned.find(|planned| planned.plan == *plan))
}

fn rollout_order(
    snapshot: &RolloutSnapshot,
    ticked: &Ticked,
    order: &Order,
    head: Option<&LedgerEntry>,
) -> RolloutOrder {
    let state = &ticked.state;
    match order.kind {
        OrderKind::Grant { stage: index } => {
            let stage = snapshot.stages.get(index);
            let name = stage.and_then(|stage| stage.name.parse().ok());
            let soak_ms = stage.map(|stage| stage.soak_ms).filter(|soak_ms| *soak_ms > 0);
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            RolloutOrder {
                stage: name.map(|name| StageReference { index, name }),
                soak_ms,
                paused: state.paused,
                finalize: FinalizedBy::Hub,
                ..plain_order(state, Operation::Progress)
            }
        }
        OrderKind::Finalize => {
            RolloutOrder { finalize: FinalizedBy::Hub, ..plain_order(state, Operation::Finalize) }
        }
        OrderKind::FinalizeEarlier { generation, attempt } => RolloutOrder {
            generation,
            attempt,
            finalize: FinalizedBy::Hub,
            ..plain_order(state, Operation::Finalize)
        },
        // It soaks on for as long as it was to.
        OrderKind::Supersede { generation, attempt } => RolloutOrder {
            generation,
            attempt,
            soak_ms: head.and_then(LedgerEntry::signed_directive).and_then(|head| head.soak_ms),
            finalize: FinalizedBy::Hub,
            ..plain_order(state, Operation::Supersede)
        },
        OrderKind::Rollback(_) => plain_order(state, Operation::Rollback),
    }
}

/// Returns an order without a stage, after which the spoke makes the plan a good one by itself.
fn plain_order(state: &RolloutState, operation: Operation) -> RolloutOrder {
    RolloutOrder {
        generation: state.generation,
        attempt: state.attempt,
        operation,
        stage: None,
        soak_ms: None,
        paused: false,
        finalize: FinalizedBy::Spoke,
    }
}
