//! The last step of a pass: spokes are woken, and metrics, log lines and the view say what was decided.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use attest_common::basics::ids::{DestinationKey, Name};
use attest_common::basics::reason::Reason;
use attest_common::basics::text;

use super::commit::Committed;
use super::observe::{Observation, SourceProblem};
use super::plan::{Content, Decision};
use super::waker::Waker;
use crate::applications::view::{View, Waiting};
use crate::applications::views::Views;
use crate::core::CONTROLLER;
use crate::core::Core;
use crate::core::metrics::Metrics;
use crate::core::store::StoreError;
use crate::core::store::records::{Application, LedgerEntry};

/// Published state, cached between passes of one application.
#[derive(Debug, Default)]
pub(super) struct PublishedCache {
    /// Commit and reason counted as held, by destination.
    held: BTreeMap<DestinationKey, (String, Reason)>,
    /// Commit and reason counted as blocked, by cluster and namespace.
    blocked: BTreeMap<(Name, Name), (String, Reason)>,
}

/// Outputs of a pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outputs<'a> {
    pub(super) core: &'a Core,
    pub(super) views: &'a Views,
    pub(super) waker: &'a Waker,
}

/// Tells everyone concerned what was decided and what of it became durable.
pub(super) fn publish(
    outputs: Outputs<'_>,
    observation: &Observation<'_>,
    decisions: &[Decision],
    committed: Committed,
    begun: Instant,
    cache: &mut PublishedCache,
) {
    publish_decisions(outputs, observation, decisions, cache);
    let name = observation.application().name.as_str();
    // An application that is being removed keeps its view until something is ordered.
    if !observation.record.deleting || !committed.entries.is_empty() {
        outputs.views.set(name, view(observation, decisions));
    }
    if !committed.entries.is_empty() {
        publish_commit(outputs, name, committed);
        outputs.core.metrics.sync_duration.observe(begun.elapsed().as_secs_f64());
    }
}

/// Counts and logs what was decided, whether or not it became durable, and sends again what is to be sent again.
fn publish_decisions(
    outputs: Outputs<'_>,
    observation: &Observation<'_>,
    decisions: &[Decision],
    cache: &mut PublishedCache,
) {
    let core = outputs.core;
    if let Some(SourceProblem::Occurred(waiting)) = &observation.problem {
        log_problem(&core.metrics, observation.application(), waiting);
    }
    let commit = observation.commit.as_deref().unwrap_or_default();
    let mut blocked = BTreeMap::new();
    for decision in decisions {
        match decision {
            Decision::Hold { destination, waiting, .. } => {
                let held = (commit.to_owned(), waiting.reason);
                if is_about_stages(waiting.reason) {
                    // The rollout has its own log lines.
                    cache.held.remove(destination);
                } else if cache.held.insert(destination.clone(), held.clone()) != Some(held) {
                    let application = observation.application();
                    log_hold(&core.metrics, application, &destination.to_string(), waiting);
                }
            }
            Decision::Issue(planned) => {
                if matches!(planned.content, Content::Verified(_)) {
                    core.metrics.verifications.with_label_values(&["verified"]).inc();
                    core.metrics.policy_validations.with_label_values(&["allowed"]).inc();
                }
                cache.held.remove(&planned.destination);
            }
            Decision::Keep(destination) => {
                cache.held.remove(destination);
            }
            Decision::Resend(destination) => {
                cache.held.remove(destination);
                core.fleet.push_again(destination);
            }
            // Shown in status only: nothing is wrong with the commit.
            Decision::Blocked { waiting, .. } if is_about_cluster(waiting.reason) => {}
            Decision::Blocked { place, waiting } => {
                let held = (commit.to_owned(), waiting.reason);
                if cache.blocked.get(place) != Some(&held) {
                    let (cluster, namespace) = place;
                    let application = observation.application();
                    let destination = format!("{}/{cluster}/{namespace}", application.name);
                    log_hold(&core.metrics, application, &destination, waiting);
                }
                blocked.insert(place.clone(), held);
            }
        }
    }
    cache.blocked = blocked;
}

/// The outcome of a pass, for those who read it.
fn view(observation: &Observation<'_>, decisions: &[Decision]) -> View {
    let waiting = decisions.iter().filter_map(|decision| match decision {
        Decision::Blocked { place, waiting } | Decision::Hold { place, waiting, .. } => {
            Some((place.clone(), waiting.clone()))
        }
        Decision::Keep(_) | Decision::Resend(_) | Decision::Issue(_) => None,
    });
    let rendered = observation.destinations.iter().filter_map(|destination| {
        let target = destination.target.as_ref().ok()?;
        Some((destination.place.clone(), Arc::clone(&target.rendered)))
    });
    View {
        revision: observation.commit.clone(),
        problem: observation.problem.as_ref().map(|problem| problem.waiting().clone()),
        waiting: waiting.collect(),
        rendered: rendered.collect(),
    }
}

/// Announces what became durable: spokes are woken, blobs are ready to be sent, numbers rise.
pub(super) fn publish_commit(outputs: Outputs<'_>, application: &str, committed: Committed) {
    let Outputs { core, waker, .. } = outputs;
    let Committed { entries, blobs, timings, written } = committed;
    core.metrics.commit.observe(written.as_secs_f64());
    for (part, micros) in [
        ("git", timings.git_us),
        ("render", timings.render_us),
        ("verify", timings.verify_us),
        ("plan", timings.plan_us),
    ] {
        let seconds = Duration::from_micros(micros).as_secs_f64();
        core.metrics.change.with_label_values(&[part]).observe(seconds);
    }
    blobs.into_iter().for_each(|blob| core.fleet.keep_blob(blob));
    core.metrics.deployments.inc_by(entries.len() as u64);
    entries.iter().for_each(|(destination, entry)| log_ordered(destination, entry));
    if core.fleet.set_heads(entries) {
        waker.wake(application);
    }
}

/// Logs that a pass could not be made or did not become durable.
pub(super) fn log_failure(name: &str, error: &StoreError) {
    tracing::error!(
        target: CONTROLLER,
        application = name,
        reason = error.reason().as_str(),
        "Cannot reconcile AttestApplication {name}: {}", text::error_chain(error)
    );
}

fn log_problem(metrics: &Metrics, application: &Application, waiting: &Waiting) {
    let reason = metrics.label(&waiting.reason.into());
    metrics.source_failures.with_label_values(&[reason]).inc();
    tracing::warn!(
        target: CONTROLLER,
        application = application.name.as_str(),
        reason = waiting.reason.as_str(),
        "Cannot read the source of AttestApplication {}: {}",
        application.name, waiting.message
    );
}

/// Returns true when a destination waits for its cluster, whatever the commit.
fn is_about_cluster(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::AwaitingCluster
            | Reason::ClusterUnknown
            | Reason::ClusterEvicted
            | Reason::ClusterPending
            | Reason::ClusterRevoked
    )
}

/// Returns true when a rollout orders the commit later, or an operator decides whether it does.
fn is_about_stages(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::AwaitingStage
            | Reason::AwaitingApproval
            | Reason::RolloutPaused
            | Reason::RolloutFailed
            | Reason::RolloutAborted
            | Reason::SyncHeld
            | Reason::StateRegression
    )
}

fn log_hold(metrics: &Metrics, application: &Application, destination: &str, waiting: &Waiting) {
    let counted_as = waiting.counted_as.unwrap_or(waiting.reason);
    let label = metrics.label(&counted_as.into());
    metrics.holds.with_label_values(&[label]).inc();
    tracing::warn!(
        target: CONTROLLER,
        application = application.name.as_str(),
        namespace = application.namespace,
        destination = destination,
        reason = waiting.reason.as_str(),
        "Not deployed: {}", waiting.message
    );
    if !waiting.counted {
        return;
    }
    metrics.verifications.with_label_values(&["refused"]).inc();
    if counted_as.is_signature_failure() {
        metrics.signature_failures.inc();
    }
    if counted_as.is_policy_refusal() {
        metrics.policy_validations.with_label_values(&["refused"]).inc();
    }
}

fn log_ordered(destination: &DestinationKey, entry: &LedgerEntry) {
    tracing::info!(
        target: CONTROLLER,
        application = destination.application.as_str(),
        destination = destination.to_string(),
        operation = format!("{:?}", entry.operation),
        sequence = entry.sequence,
        generation = entry.generation,
        "Ordered {:?} at {destination}", entry.operation
    );
}
