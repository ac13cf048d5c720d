//! Routes of rollouts: list, show, history, and commands of operators. The rules are in `rollouts::commands`.

use std::collections::BTreeSet;
use std::sync::Arc;

use attest_common::basics::reason::Reason;
use attest_common::basics::text;
use attest_documents::{List, Rollout, RolloutRequest};
use attest_runtime::clock::now;
use axum::Json;
use axum::extract::{ConnectInfo, Path, State};
use http::StatusCode;

use super::serve::Operator;
use super::shown_rollout::{rollout, summary};
use super::{Api, Body, Refusal};
use crate::applications::rules;
use crate::core::Core;
use crate::core::blocking::blocking;
use crate::core::store::StoreError;
use crate::core::store::records::{
    self, Change, OperatorAction, Planned, ROLLOUTS_MAX, RolloutSnapshot, RolloutState, Stored,
};
use crate::reconcile::staging::{last_attempt, next_generation, ordered_before};
use crate::rollouts::commands::{self, Command, CommandError};

/// Longest reason of an operator, in characters.
const REASON_CHARACTERS_MAX: usize = 500;

type Answer<T> = Result<Json<T>, Refusal>;

impl From<CommandError> for Refusal {
    fn from(error: CommandError) -> Self {
        Self::new(StatusCode::CONFLICT, error.reason(), error.to_string())
    }
}

/// The newest rollout of every application that has one.
pub(super) async fn list(State(api): State<Arc<Api>>) -> Answer<List<Rollout>> {
    let listing = blocking(&api.core, |core| {
        let mut seen = BTreeSet::new();
        let mut newest = Vec::new();
        for state in records::all_rollouts(&core.records)? {
            if seen.insert(state.application.clone()) {
                newest.push(shown_summary(core, &state)?);
            }
        }
        Ok::<_, Refusal>(newest)
    });
    Ok(Json(List::new("Rollout", listing.await?)))
}

/// The rollouts of an application, the newest first.
pub(super) async fn history(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
) -> Answer<List<Rollout>> {
    let reading = blocking(&api.core, move |core| {
        let record = rules::find(core, &name)?;
        let states = core.records.rollouts(&record.application.name, 2 * ROLLOUTS_MAX)?;
        let shown: Result<Vec<_>, StoreError> =
            states.iter().map(|state| shown_summary(core, state)).collect();
        shown.map_err(Refusal::from)
    });
    Ok(Json(List::new("Rollout", reading.await?)))
}

/// Returns a rollout without its stages. Blocks.
pub(super) fn shown_summary(core: &Core, state: &RolloutState) -> Result<Rollout, StoreError> {
    let snapshot = core.records.get::<RolloutSnapshot>(&state.snapshot_key())?;
    Ok(summary(snapshot.as_ref(), state))
}

pub(super) async fn get(State(api): State<Arc<Api>>, Path(name): Path<String>) -> Answer<Rollout> {
    let reading = blocking(&api.core, move |core| {
        let (snapshot, stored) = newest(core, &name)?;
        Ok::<_, Refusal>(rollout(core, &snapshot, &stored.value))
    });
    Ok(Json(reading.await?))
}

pub(super) async fn command(
    State(api): State<Arc<Api>>,
    ConnectInfo(operator): ConnectInfo<Operator>,
    Path(name): Path<String>,
    Body(asked): Body<RolloutRequest>,
) -> Answer<Rollout> {
    let commanding = blocking(&api, move |api| {
        let core = &api.core;
        let (snapshot, stored) = newest(core, &name)?;
        let mut reason = asked.reason.clone();
        text::truncate(&mut reason, REASON_CHARACTERS_MAX, "…");
        let action = OperatorAction {
            at: now(),
            operator: operator.name(),
            action: asked.action.clone(),
            reason: text::message(&reason),
        };
        let (changes, shown) = decide(core, (&snapshot, &stored), &asked, action)?;
        core.records.commit("rollout", &changes)?;
        tracing::info!(
            application = name.as_str(),
            generation = stored.value.generation,
            operator = operator.name(),
            action = asked.action,
            "Rollout command accepted"
        );
        api.waker.wake(&name);
        Ok::<_, Refusal>(rollout(core, &shown.0, &shown.1))
    });
    Ok(Json(commanding.await?))
}

fn newest(core: &Core, name: &str) -> Result<(RolloutSnapshot, Stored<RolloutState>), Refusal> {
    let record = rules::find(core, name)?;
    let stored = records::newest_rollout(&core.records, &record.application.name)?;
    let found = match stored {
        Some(stored) => {
            let snapshot = core.records.get::<RolloutSnapshot>(&stored.value.snapshot_key())?;
            snapshot.map(|snapshot| (snapshot, stored))
        }
        None => None,
    };
    found.ok_or_else(|| {
        let message = format!(
            "application `{name}` has no rollout by stages; set spec.progressiveDelivery, or see \
             `attest gitops rollout list`"
        );
        Refusal::not_found(Reason::RolloutUnknown, message)
    })
}

type Decided = (Vec<Change>, (RolloutSnapshot, RolloutState));

/// Returns the changes of a command, and the rollout after it.
fn decide(
    core: &Core,
    (snapshot, stored): (&RolloutSnapshot, &Stored<RolloutState>),
    asked: &RolloutRequest,
    action: OperatorAction,
) -> Result<Decided, Refusal> {
    let state = &stored.value;
    let simple = match asked.action.as_str() {
        "promote" => Command::Promote,
        "pause" => Command::Pause,
        "resume" => Command::Resume,
        "abort" => Command::Abort,
        "retry" => Command::Retry,
        "skip" => Command::Skip(skipped(snapshot, asked)?),
        "adopt" => {
            let generation = next_generation(core, &state.application)?;
            let attempt = last_attempt(core, &state.application)?;
            let begun = commands::adopt(snapshot, state, (generation, attempt), action)?;
            return replaced(stored, begun, "adopted by an operator");
        }
        "rollback" => {
            let generation = next_generation(core, &state.application)?;
            let plans = earlier_plans(core, snapshot, state)?;
            let begun = commands::roll_back(snapshot, state, plans, generation, action);
            return replaced(stored, begun, "rolled back by an operator");
        }
        other => {
            let message = format!("unknown action `{other}`; `attest` may be newer than the hub");
            return Err(Refusal::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                Reason::FieldInvalid,
                message,
            ));
        }
    };
    let next = commands::apply(snapshot, state, &simple, action)?;
    Ok((vec![records::replace(stored, &next)], (snapshot.clone(), next)))
}

/// Begins a rollout in place of another.
fn replaced(
    stored: &Stored<RolloutState>,
    (snapshot, state): (RolloutSnapshot, RolloutState),
    message: &str,
) -> Result<Decided, Refusal> {
    let mut changes = vec![records::put_new(&snapshot), records::put_new(&state)];
    changes.push(records::keep_generation(&state.application, state.generation));
    if stored.value.phase.is_open() {
        let ended = commands::superseded(&stored.value, message, state.started_at);
        changes.push(records::replace(stored, &ended));
    } else {
        // The command was decided for this state.
        changes.push(records::replace(stored, &stored.value));
    }
    Ok((changes, (snapshot, state)))
}

/// Returns the member that a request names.
fn skipped(snapshot: &RolloutSnapshot, asked: &RolloutRequest) -> Result<usize, Refusal> {
    let named = asked.cluster.as_deref().unwrap_or_default();
    let mut members = snapshot.members.iter().enumerate().filter(|(_, member)| {
        let namespace = asked.namespace.as_deref();
        member.cluster.as_str() == named
            && namespace.is_none_or(|name| member.destination.namespace.as_str() == name)
    });
    match (members.next(), members.next()) {
        (Some((index, _)), None) => Ok(index),
        (None, _) => {
            let message = format!("cluster `{named}` has no destination in this rollout");
            Err(Refusal::not_found(Reason::ClusterUnknown, message))
        }
        (Some(_), Some(_)) => {
            let message = format!(
                "cluster `{named}` has several destinations; name one as CLUSTER/NAMESPACE"
            );
            Err(Refusal::new(StatusCode::CONFLICT, Reason::ClusterAmbiguous, message))
        }
    }
}

/// Returns the plan to which each member returns.
fn earlier_plans(
    core: &Core,
    snapshot: &RolloutSnapshot,
    state: &RolloutState,
) -> Result<Vec<Option<Planned>>, Refusal> {
    let good: Vec<_> = snapshot
        .members
        .iter()
        .map(|member| {
            let report = core.fleet.report(&member.destination);
            let rollout = report.and_then(|record| record.report.rollout.clone());
            rollout.map(|rollout| rollout.good).unwrap_or_default()
        })
        .collect();
    let returns = commands::returns(snapshot, state, &good)?;
    let plans = snapshot.members.iter().zip(returns).map(|(member, plan)| match plan {
        Some(plan) => ordered_before(core, &member.destination, &plan),
        None => Ok(None),
    });
    Ok(plans.collect::<Result<_, StoreError>>()?)
}
