//! Publishes the progress of a rollout: log lines, metrics, and the next time at which it is advanced.

use std::time::{Duration, Instant};

use attest_common::basics::ids::{Name, Timestamp};
use attest_runtime::clock::now;

use super::publish::Outputs;
use super::staging::RolloutProgress;
use crate::core::CONTROLLER;
use crate::core::store::records::{RolloutPhase, RolloutState};

/// Continuation after the orders of a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RolloutWake {
    /// The rollout is advanced once more: stages may follow each other without a report.
    Tick,
    /// A whole pass, which decides about every destination again.
    Whole,
}

/// Publishes what a tick has changed, and schedules the next one.
pub(super) fn publish_rollout(
    outputs: Outputs<'_>,
    application: &Name,
    rollout: &RolloutProgress,
    wake: RolloutWake,
) {
    let RolloutProgress { previous, state, next_ms, .. } = rollout;
    let is_open = state.phase.is_open();
    let deadline = next_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
    let clusters = if is_open { rollout.clusters.clone() } else { Default::default() };
    outputs.waker.set_rollout(application.as_str(), clusters, deadline);
    outputs.views.note_rollout(&outputs.core.metrics, application.as_str(), open_state(rollout));
    log_progress(application, rollout);
    count_progress(outputs, previous.as_ref(), state);
    if rollout.concerns_decisions && wake == RolloutWake::Whole {
        outputs.waker.wake(application.as_str());
    }
}

/// Returns the label of the metric of open rollouts.
fn open_state(rollout: &RolloutProgress) -> Option<&'static str> {
    let state = &rollout.state;
    match state.phase {
        RolloutPhase::Held => Some("Held"),
        RolloutPhase::Running if state.paused => Some("Paused"),
        RolloutPhase::Running if rollout.awaits_approval => Some("AwaitingApproval"),
        RolloutPhase::Running => Some("Running"),
        RolloutPhase::Succeeded
        | RolloutPhase::Failed
        | RolloutPhase::Aborted
        | RolloutPhase::Superseded => None,
    }
}

fn count_progress(outputs: Outputs<'_>, previous: Option<&RolloutState>, state: &RolloutState) {
    let metrics = &outputs.core.metrics;
    let was_open = previous.is_none_or(|previous| previous.phase.is_open());
    if was_open && !state.phase.is_open() {
        metrics.rollouts_ended.with_label_values(&[state.phase.as_str()]).inc();
        metrics.rollout_duration.observe(seconds_since(state.started_at));
    }
    if let Some(previous) = previous.filter(|previous| previous.stage < state.stage) {
        metrics.rollout_stage_duration.observe(seconds_since(previous.stage_started_at));
    }
}

fn seconds_since(then: Timestamp) -> f64 {
    let ms = now().as_millisecond().saturating_sub(then.as_millisecond());
    Duration::from_millis(u64::try_from(ms).unwrap_or(0)).as_secs_f64()
}

fn log_progress(application: &Name, rollout: &RolloutProgress) {
    let RolloutProgress { previous, state, stage_names, .. } = rollout;
    let (name, generation, attempt) = (application.as_str(), state.generation, state.attempt);
    let stage = stage_names.get(state.stage).map_or("", String::as_str);
    let Some(previous) = previous else {
        return tracing::info!(
            target: CONTROLLER, application = name, generation, stage,
            "Rollout {generation} of {name} started"
        );
    };
    for passed in stage_names.iter().take(state.stage).skip(previous.stage) {
        tracing::info!(
            target: CONTROLLER, application = name, generation, attempt, stage = passed.as_str(),
            "Stage {passed} of rollout {generation} of {name} passed"
        );
    }
    if previous.phase == state.phase {
        return;
    }
    let reason = state.cause.as_ref().map(|cause| cause.reason.as_str());
    let message = state.cause.as_ref().map_or("", |cause| cause.message.as_str());
    if matches!(state.phase, RolloutPhase::Failed | RolloutPhase::Held) {
        tracing::warn!(
            target: CONTROLLER, application = name, generation, attempt, reason,
            "Rollout {generation} of {name} {}: {message}", state.phase.as_str()
        );
    } else {
        tracing::info!(
            target: CONTROLLER, application = name, generation, attempt, reason,
            "Rollout {generation} of {name} {}", state.phase.as_str()
        );
    }
}
