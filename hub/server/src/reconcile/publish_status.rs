//! Publishes the status of an application: metrics, transition times of conditions, and its log line. Blocks.
//!
//! A whole pass computes the status of every destination. After a report, only that of its destination is computed
//! again; the rest is counted already.

use std::collections::BTreeSet;
use std::sync::Arc;

use attest_common::basics::ids::DestinationKey;
use attest_common::session::report::ApplicationPhase;
use attest_runtime::clock::now;

use super::publish::Outputs;
use crate::applications::facts::{self, Detail};
use crate::applications::status;
use crate::applications::tally::{DestinationStatus, Place, Tally};
use crate::applications::view::View;
use crate::core::CONTROLLER;
use crate::core::store::records::{Application, ApplicationRecord, Destination};

/// Published status, cached between passes of one application.
#[derive(Debug, Default)]
pub(super) struct StatusCache {
    /// As of the newest whole pass, and of the reports since then.
    counted: Option<CountedStatus>,
    /// Phase, generation of the manifest, and the rest of the line that was logged last.
    logged: Option<(ApplicationPhase, u64, String)>,
}

#[derive(Debug)]
struct CountedStatus {
    record: Arc<ApplicationRecord>,
    tally: Tally,
}

impl StatusCache {
    /// Returns whether the status of every destination is known, so that a change of one can be published. An
    /// application that is being removed needs a whole pass with each report.
    pub(super) fn is_counted(&self) -> bool {
        self.counted.as_ref().is_some_and(|counted| !counted.record.deleting)
    }
}

/// Computes the status of every destination of an application and publishes it.
pub(super) fn publish_whole(
    outputs: Outputs<'_>,
    record: &Arc<ApplicationRecord>,
    commit: Option<&str>,
    cache: &mut StatusCache,
) {
    let view = outputs.views.get(record.application.name.as_str());
    let facts = facts::gather(outputs.core, record, view, Detail::Overview);
    let mut tally = Tally::default();
    let mut named = record.application.destinations.iter();
    for facts in &facts.destinations {
        let place = match (named.next(), &facts.key) {
            (Some(Destination { cluster, namespace, .. }), _) => {
                Place::Named(cluster.clone(), namespace.clone())
            }
            (None, Some(key)) => Place::Leaving(key.cluster.clone(), key.namespace.clone()),
            (None, None) => continue,
        };
        tally.set(place, Some(&status::destination_status(facts)));
    }
    outputs.core.metrics.status_destinations.inc_by(facts.destinations.len() as u64);
    let counted = CountedStatus { record: Arc::clone(record), tally };
    publish(outputs, facts.view.as_deref(), &counted, commit, &mut cache.logged);
    cache.counted = Some(counted);
}

/// Computes the status of some destinations again and publishes that of their application.
pub(super) fn publish_changed(
    outputs: Outputs<'_>,
    changed: &BTreeSet<DestinationKey>,
    commit: Option<&str>,
    cache: &mut StatusCache,
) {
    let StatusCache { counted: Some(counted), logged } = cache else { return };
    let view = outputs.views.get(counted.record.application.name.as_str());
    for destination in changed {
        // One of a cluster that is no longer registered is left to the whole pass that its removal has asked for.
        if let Some((place, status)) = observe(outputs, counted, view.as_deref(), destination) {
            counted.tally.set(place, status.as_ref());
        }
    }
    outputs.core.metrics.status_destinations.inc_by(changed.len() as u64);
    publish(outputs, view.as_deref(), counted, commit, logged);
}

fn observe(
    outputs: Outputs<'_>,
    counted: &CountedStatus,
    view: Option<&View>,
    destination: &DestinationKey,
) -> Option<(Place, Option<DestinationStatus>)> {
    let (core, application) = (outputs.core, &counted.record.application);
    let name = core.directory.get(&destination.cluster)?.name.clone();
    let is_current = core.directory.named(&name).is_some_and(|one| one.id == destination.cluster);
    let place = Place::Named(name.clone(), destination.namespace.clone());
    if is_current && counted.tally.contains(&place) {
        let at = (&name, &destination.namespace);
        let facts = facts::named_by(core, application, view, at, Detail::Overview);
        return Some((place, Some(status::destination_status(&facts))));
    }
    let place = Place::Leaving(destination.cluster.clone(), destination.namespace.clone());
    let facts = facts::leaving(core, destination, Detail::Overview);
    Some((place, facts.as_ref().map(status::destination_status)))
}

/// Logs, once, which phase an application has reached, and counts it.
fn publish(
    outputs: Outputs<'_>,
    view: Option<&View>,
    counted: &CountedStatus,
    commit: Option<&str>,
    logged: &mut Option<(ApplicationPhase, u64, String)>,
) {
    let (views, record, counts) = (outputs.views, &counted.record, counted.tally.counts());
    let Application { name, namespace, .. } = &record.application;
    let statuses = status::condition_statuses(counts, view, record.deleting);
    views.note_conditions(name.as_str(), statuses, now());
    let (phase, verification) = status::summary(counts);
    views.note_phase(&outputs.core.metrics, name.as_str(), phase);
    let line = (phase, record.generation, format!("{verification} {commit:?}"));
    if logged.as_ref() == Some(&line) {
        return;
    }
    *logged = Some(line);
    tracing::info!(
        target: CONTROLLER,
        application = name.as_str(),
        namespace,
        phase = phase.as_str(),
        verification_status = verification,
        "Successfully reconciled AttestApplication: {namespace}/{name}"
    );
}

#[cfg(test)]
mod tests;
