//! One reconcile pass over one application, on one screen: observe, plan, stage, commit, publish. Blocks.
//!
//! Each step is a file of its own and hands values to the next. Every pass reads the world again; the cache only
//! spares work. A poll that finds nothing new is not a pass, while the newest one still holds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use attest_common::basics::ids::Name;
use attest_runtime::clock::micros_since;

use super::commit::{Committed, RolloutChanges, commit};
use super::configured::{Configured, configured};
use super::deletion;
use super::observe::{SourceCache, Sources, observe, poll_unchanged};
use super::plan::{Judgements, is_settled, plan};
use super::publish::{Outputs, PublishedCache, log_failure, publish, publish_commit};
use super::publish_rollout::{RolloutWake, publish_rollout};
use super::publish_status::{StatusCache, publish_changed, publish_whole};
use super::staging::{self, RolloutCache, RolloutProgress, Staged};
use super::task::{PassRequest, Poll, Task};
use crate::applications::rules;
use crate::core::configuration::Configuration;
use crate::core::store::StoreError;
use crate::core::store::records::{ApplicationRecord, ChangeTimings};

/// Inputs and outputs of a pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct PassContext<'a> {
    pub(super) sources: Sources<'a>,
    pub(super) outputs: Outputs<'a>,
}

/// State cached between passes of one application.
#[derive(Debug, Default)]
pub(super) struct PassCache {
    pub(super) source: SourceCache,
    judgements: Judgements,
    /// The configuration under which these were made.
    configuration: Arc<Configuration>,
    rollouts: RolloutCache,
    published: PublishedCache,
    status: StatusCache,
    /// The newest whole pass, while nothing has happened since that could change what it decided.
    settled: Option<Settled>,
}

/// A whole pass that has left nothing to be done, now or at a later time.
#[derive(Debug)]
struct Settled {
    record: Arc<ApplicationRecord>,
    at: Instant,
}

/// Interval at which everything is decided again although nothing is known to have changed.
const WHOLE_PASS_INTERVAL: Duration = Duration::from_secs(10 * 60);

/// Reconciles one application.
pub(super) fn reconcile(context: PassContext<'_>, name: &str, task: Task, cache: &mut PassCache) {
    let PassContext { outputs, .. } = context;
    let request = match task {
        Task::Whole(request) => request,
        Task::Poll(changed) => {
            if changed.is_empty() && poll(context, name, cache) == PollOutcome::NothingNew {
                return;
            }
            PassRequest { poll: Poll::Due, asked_for: false }
        }
        Task::Status(changed) if cache.status.is_counted() => {
            // What was decided may depend on a report.
            cache.settled = None;
            let commit = cache.source.commit();
            publish_changed(outputs, &changed, commit.as_deref(), &mut cache.status);
            return advance(outputs, name, cache);
        }
        // Not every destination is known.
        Task::Status(_) => PassRequest { poll: Poll::No, asked_for: false },
    };
    cache.settled = None;
    let record = match current_record(outputs, name) {
        Ok(Some(record)) => Arc::new(record),
        Ok(None) => return deletion::vanished(outputs, name),
        Err(error) => {
            log_failure(name, &error);
            return outputs.waker.wake_later(name);
        }
    };
    outputs.core.metrics.reconciles.inc();
    if let Err(error) = pass(context, &record, request, cache) {
        log_failure(name, &error);
        // The ledger is not what is remembered of it.
        if matches!(error, StoreError::Conflict { .. } | StoreError::Unknown(_)) {
            deletion::start_over(outputs, &record.application.name);
        }
    }
}

/// Makes what was staged durable.
fn commit_staged(
    outputs: Outputs<'_>,
    name: &Name,
    staged: &mut Staged,
    rollout: Option<&RolloutProgress>,
    timings: ChangeTimings,
) -> Result<Committed, StoreError> {
    let rollout = RolloutChanges {
        plans: std::mem::take(&mut staged.plans),
        changes: std::mem::take(&mut staged.changes),
        state: rollout.map(|rollout| rollout.state.clone()),
    };
    commit(outputs.core, name, &staged.directives(), rollout, timings)
}

/// Advances the rollout of an application after a report or at a deadline.
fn advance(outputs: Outputs<'_>, name: &str, cache: &mut PassCache) {
    if !cache.rollouts.may_have_one() {
        return;
    }
    let Ok(application) = name.parse::<Name>() else { return };
    if let Err(error) = try_advance(outputs, &application, cache) {
        log_failure(name, &error);
        deletion::start_over(outputs, &application);
    }
}

fn try_advance(
    outputs: Outputs<'_>,
    application: &Name,
    cache: &mut PassCache,
) -> Result<(), StoreError> {
    let advanced = staging::advance(outputs.core, application, &mut cache.rollouts)?;
    let Some(mut staged) = advanced else { return Ok(()) };
    let Some(rollout) = staged.rollout.take() else { return Ok(()) };
    let timings = ChangeTimings::default();
    let committed = commit_staged(outputs, application, &mut staged, Some(&rollout), timings)?;
    if !committed.entries.is_empty() {
        publish_commit(outputs, application.as_str(), committed);
    }
    publish_rollout(outputs, application, &rollout, RolloutWake::Whole);
    Ok(())
}

/// Returns the record of an application, with the destinations that its selectors match now.
fn current_record(
    outputs: Outputs<'_>,
    name: &str,
) -> Result<Option<ApplicationRecord>, StoreError> {
    let Some(record) = outputs.core.records.get::<ApplicationRecord>(name)? else {
        return Ok(None);
    };
    Ok(Some(rules::expand(outputs.core, &record)?.unwrap_or(record)))
}

/// Result of a poll without a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PollOutcome {
    /// The repository has no new commit, and the newest whole pass still holds.
    NothingNew,
    PassRequired,
}

/// Polls the repository of an application whose newest whole pass still holds.
fn poll(context: PassContext<'_>, name: &str, cache: &mut PassCache) -> PollOutcome {
    let settled = cache.settled.as_ref().filter(|one| one.at.elapsed() < WHOLE_PASS_INTERVAL);
    let Some(Settled { record, .. }) = settled else { return PollOutcome::PassRequired };
    if !Arc::ptr_eq(&cache.configuration, &context.outputs.core.configuration.get()) {
        return PollOutcome::PassRequired;
    }
    let answer = poll_unchanged(context.sources, &record.application, &mut cache.source);
    let Some(answer) = answer else { return PollOutcome::PassRequired };
    context.outputs.core.metrics.reconciles.inc();
    context.outputs.waker.polled(name, answer.at, answer.is_ok);
    PollOutcome::NothingNew
}

fn pass(
    context: PassContext<'_>,
    record: &Arc<ApplicationRecord>,
    request: PassRequest,
    cache: &mut PassCache,
) -> Result<(), StoreError> {
    let begun = Instant::now();
    let PassContext { sources, outputs } = context;
    let (core, name) = (outputs.core, &record.application.name);
    let configuration = core.configuration.get();
    if !Arc::ptr_eq(&cache.configuration, &configuration) {
        cache.judgements = Judgements::default();
        cache.configuration = configuration;
    }
    let Configured { record: effective, halt } = configured(core, record)?;
    let observation = observe(sources, &effective, request, &mut cache.source).halted(halt);
    if let Some(answer) = observation.poll {
        outputs.waker.polled(name.as_str(), answer.at, answer.is_ok);
    }

    let planning = Instant::now();
    let decisions = plan(&observation, &mut cache.judgements);
    core.metrics.judgements.inc_by(cache.judgements.made);
    let timings = observation.timings(micros_since(planning));

    let mut staged = staging::stage(core, &observation, decisions, &mut cache.rollouts)?;
    let rollout = staged.rollout.take();
    let outcome = commit_staged(outputs, name, &mut staged, rollout.as_ref(), timings);
    let (committed, failure) = match outcome {
        Ok(committed) => (committed, None),
        Err(error) => (Committed::default(), Some(error)),
    };

    let is_ordered = !committed.entries.is_empty();
    let published = &mut cache.published;
    publish(outputs, &observation, &staged.decisions, committed, begun, published);
    failure.map_or(Ok(()), Err)?;
    if let Some(rollout) = rollout {
        publish_rollout(outputs, name, &rollout, RolloutWake::Tick);
    }
    if record.deleting && !is_ordered {
        deletion::finish(outputs, record)?;
    }
    if !record.deleting || outputs.views.get(name.as_str()).is_some() {
        publish_whole(outputs, record, observation.commit.as_deref(), &mut cache.status);
    }
    // A rollout may go on with time.
    if !cache.rollouts.may_have_one() && is_settled(&observation, &staged.decisions) {
        cache.settled = Some(Settled { record: Arc::clone(record), at: begun });
    }
    Ok(())
}
