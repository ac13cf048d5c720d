//! One reconcile pass over one application, on one screen: observe, plan, schedule, commit, publish. Blocks.
//!
//! Each step is a file of its own and hands values to the next. Every pass reads the world again; the cache only
//! spares work.

use std::time::Instant;

use super::commit::{Committed, commit};
use super::deletion;
use super::observe::{SourceCache, Sources, observe};
use super::plan::plan;
use super::publish::{Audience, PublishedCache, log_failure, publish, publish_status};
use super::schedule::schedule;
use super::task::Task;
use crate::core::store::StoreError;
use crate::core::store::records::ApplicationRecord;
use attest_runtime::clock::micros_since;

/// Where a pass reads from, and where its outcome goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Surroundings<'a> {
    pub(super) sources: Sources<'a>,
    pub(super) audience: Audience<'a>,
}

/// What is kept between two passes over one application.
#[derive(Debug, Default)]
pub(super) struct PassCache {
    pub(super) source: SourceCache,
    published: PublishedCache,
}

/// Reconciles one application.
pub(super) fn reconcile(
    surroundings: Surroundings<'_>,
    name: &str,
    task: Task,
    cache: &mut PassCache,
) {
    let Surroundings { audience, .. } = surroundings;
    let record = match audience.core.records.get::<ApplicationRecord>(name) {
        Ok(Some(record)) => record,
        Ok(None) => return deletion::vanished(audience, name),
        Err(error) => return log_failure(name, &error),
    };
    if !task.plan && !record.deleting {
        let commit = cache.source.commit();
        return publish_status(audience, &record, commit.as_deref(), &mut cache.published);
    }
    audience.core.metrics.reconciles.inc();
    if let Err(error) = pass(surroundings, &record, task, cache) {
        log_failure(name, &error);
        // The ledger is not what is remembered of it.
        if matches!(error, StoreError::Conflict { .. } | StoreError::Unknown(_)) {
            deletion::start_over(audience, &record.application.name);
        }
    }
}

fn pass(
    surroundings: Surroundings<'_>,
    record: &ApplicationRecord,
    task: Task,
    cache: &mut PassCache,
) -> Result<(), StoreError> {
    let begun = Instant::now();
    let Surroundings { sources, audience } = surroundings;
    let (core, name) = (audience.core, &record.application.name);
    let observation = observe(sources, record, task, &mut cache.source);
    if let Some(answer) = observation.poll {
        audience.waker.polled(name.as_str(), answer.at, answer.is_ok);
    }

    let planning = Instant::now();
    let decisions = plan(&observation);
    let timings = observation.timings(micros_since(planning));

    let directions = schedule(&decisions);

    let outcome = commit(core, name, &directions, timings);
    let (committed, failure) = match outcome {
        Ok(committed) => (committed, None),
        Err(error) => (Committed::default(), Some(error)),
    };

    let is_ordered = !committed.entries.is_empty();
    let published = &mut cache.published;
    publish(audience, &observation, &decisions, committed, begun, published);
    failure.map_or(Ok(()), Err)?;
    if record.deleting && !is_ordered {
        deletion::finish(audience, record)?;
    }
    if !record.deleting || audience.views.get(name.as_str()).is_some() {
        publish_status(audience, record, observation.commit.as_deref(), published);
    }
    Ok(())
}
