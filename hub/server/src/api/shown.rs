//! Conversion of the hub's state to the documents of its API. Contains no rules.

use std::cmp::Reverse;

use attest_common::basics::ids::DestinationKey;
use attest_common::basics::reason::Reason;
use attest_common::basics::text;
use attest_documents::{
    Application, ApplicationSummary, ChangeTimings, Condition, DESTINATIONS_BYTES_MAX, Destination,
    HistoryEntry, MANIFEST_SHOWN_BYTES_MAX,
};
use attest_runtime::clock::now;
use serde::Serialize;
use serde_json::Value;

use crate::applications::facts::{ApplicationFacts, DestinationFacts};
use crate::applications::status::{self, ApplicationStatus};
use crate::applications::tally::DestinationStatus;
use crate::core::store::records::{ApplicationRecord, LedgerEntry, ReportRecord, ResultRecord};

/// Longest message in a list, in characters.
const SUMMARY_CHARACTERS_MAX: usize = 120;

/// Returns one line of the list of applications.
pub(super) fn summary(
    record: &ApplicationRecord,
    facts: &ApplicationFacts,
    status: ApplicationStatus,
) -> ApplicationSummary {
    let ready = status.conditions.into_iter().find(|condition| condition.kind == "Ready");
    let (ready, reason, mut message) = match ready {
        Some(ready) => (ready.status, ready.reason, ready.message),
        None => ("Unknown", Reason::Pending.into(), String::new()),
    };
    text::truncate(&mut message, SUMMARY_CHARACTERS_MAX, "…");
    ApplicationSummary {
        name: record.application.name.to_string(),
        namespace: record.application.namespace.clone(),
        phase: status.counts.phase(),
        ready: ready.to_owned(),
        reason,
        message,
        revision: facts.view.as_ref().and_then(|view| view.revision.clone()),
        destination_counts: status.counts.by_phase().collect(),
        generation: facts.generation,
        created_at: record.created_at,
    }
}

/// Returns the document without what exceeds the size of an answer: objects, and the destinations that are well.
pub(super) fn shortened(mut application: Application) -> Application {
    if json_bytes(&application.manifest) > MANIFEST_SHOWN_BYTES_MAX {
        if let Some(spec) = application.manifest.pointer_mut("/spec").and_then(Value::as_object_mut)
        {
            spec.remove("destinations");
        }
        if json_bytes(&application.manifest) > MANIFEST_SHOWN_BYTES_MAX {
            application.manifest = Value::Object(Default::default());
        }
    }
    if json_bytes(&application.destinations) > DESTINATIONS_BYTES_MAX {
        application.destinations.sort_by_key(|destination| Reverse(destination.phase));
        let mut left = DESTINATIONS_BYTES_MAX;
        application.destinations = application
            .destinations
            .into_iter()
            .map_while(|destination| {
                let fitting = fitting(destination, left)?;
                left -= json_bytes(&fitting);
                Some(fitting)
            })
            .collect();
    }
    application
}

/// Returns a destination in at most this many bytes, if need be without its objects.
fn fitting(mut destination: Destination, bytes_max: usize) -> Option<Destination> {
    if json_bytes(&destination) > bytes_max {
        destination.objects.clear();
    }
    (json_bytes(&destination) <= bytes_max).then_some(destination)
}

fn json_bytes(value: &impl Serialize) -> usize {
    serde_json::to_vec(value).map_or(usize::MAX, |json| json.len())
}

pub(super) fn application(
    record: &ApplicationRecord,
    facts: &ApplicationFacts,
    status: ApplicationStatus,
) -> Application {
    let destinations = facts.destinations.iter().zip(status.destinations);
    Application {
        name: record.application.name.to_string(),
        namespace: record.application.namespace.clone(),
        manifest: record.manifest.clone(),
        phase: status.counts.phase(),
        conditions: status.conditions.into_iter().map(Condition::from).collect(),
        revision: facts.view.as_ref().and_then(|view| view.revision.clone()),
        destination_counts: status.counts.by_phase().collect(),
        destinations: destinations.map(|(facts, status)| destination(facts, status)).collect(),
        generation: facts.generation,
        created_at: record.created_at,
        rollout: None,
        outcome: None,
    }
}

fn destination(facts: &DestinationFacts, status: DestinationStatus) -> Destination {
    let record = facts.report.as_deref();
    let report = record.map(|record| &record.report);
    let head = facts.head.as_deref();
    Destination {
        cluster: status.cluster,
        cluster_id: facts.key.as_ref().map(|key| key.cluster.clone()),
        namespace: status.namespace,
        phase: status.phase,
        reason: status.reason,
        message: status.message,
        health: status.health.map(|health| health.as_str().to_owned()),
        running: report.and_then(|report| report.running.clone()),
        deployed_commit: facts.deployed_commit.clone(),
        refusal: report.and_then(|report| report.refusal.clone()),
        epoch: head.map(|head| head.epoch),
        sequence: head.map(|head| head.sequence),
        connected: facts.connected,
        report_age_ms: record.map(age_ms),
        drifted: report
            .map(|report| report.drifted.iter().map(ToString::to_string).collect())
            .unwrap_or_default(),
        heals_total: report.map_or(0, |report| report.heals_total),
        objects_total: report.map_or(0, |report| report.objects_total),
        objects: report.map(|report| report.objects.clone()).unwrap_or_default(),
        warnings: report.map(|report| report.warnings.clone()).unwrap_or_default(),
        checks: report.map(|report| report.checks.clone()).unwrap_or_default(),
        timings: head.zip(record).and_then(|(head, record)| timings(head, record)),
    }
}

pub(super) fn age_ms(record: &ReportRecord) -> u64 {
    let age_ms = now().as_millisecond() - record.received_at.as_millisecond();
    u64::try_from(age_ms).unwrap_or(0)
}

/// Returns the durations of the newest change, once its spoke has reported on it.
fn timings(head: &LedgerEntry, record: &ReportRecord) -> Option<ChangeTimings> {
    if record.report.sequence != Some(head.sequence) {
        return None;
    }
    let stored = head.timings;
    let push_to_report_us = record.push_to_report_us.unwrap_or(0);
    let of_hub = stored.git_us + stored.render_us + stored.verify_us + stored.plan_us;
    Some(ChangeTimings {
        git_us: stored.git_us,
        render_us: stored.render_us,
        verify_us: stored.verify_us,
        plan_us: stored.plan_us,
        push_to_report_us,
        total_us: of_hub + push_to_report_us,
        spoke: record.report.timings,
    })
}

impl From<status::Condition> for Condition {
    fn from(condition: status::Condition) -> Self {
        Self {
            kind: condition.kind.to_owned(),
            status: condition.status.to_owned(),
            reason: condition.reason,
            message: condition.message,
            last_transition_time: condition.last_transition_time,
        }
    }
}

pub(super) fn history_entry(
    cluster: &str,
    destination: &DestinationKey,
    entry: &LedgerEntry,
    result: Option<ResultRecord>,
) -> HistoryEntry {
    let planned = entry.planned.as_ref();
    HistoryEntry {
        cluster: cluster.to_owned(),
        namespace: destination.namespace.to_string(),
        epoch: entry.epoch,
        sequence: entry.sequence,
        operation: format!("{:?}", entry.operation),
        commit: planned.map(|planned| planned.commit.clone()),
        version: planned.map(|planned| planned.version.clone()),
        counter: planned.map(|planned| planned.counter),
        plan: planned.map(|planned| planned.plan.to_string()),
        result: result.as_ref().map_or_else(|| "Pending".to_owned(), |r| r.result.clone()),
        reason: result.map_or_else(|| Reason::Pending.into(), |r| r.reason),
        issued_at: entry.issued_at,
    }
}

#[cfg(test)]
mod tests {
    use attest_common::session::report::{ApplicationPhase, ObjectState};
    use serde_json::json;

    use super::*;

    /// Largest answer about one application, in bytes, unless all is asked for.
    const ANSWER_BYTES_MAX: usize = 64 * 1024;

    fn object(number: usize) -> ObjectState {
        serde_json::from_value(json!({
            "group": "apps", "kind": "Deployment", "namespace": "shop", "name": format!("service-{number}"),
            "health": "Failed", "message": "waits for pods",
        }))
        .unwrap()
    }

    /// Returns an application whose last destination is Degraded.
    fn application(destinations: usize, objects: usize) -> Application {
        let place = |number: usize| {
            json!({
                "cluster": format!("cluster-{number:05}"), "namespace": "shop",
                "phase": if number + 1 == destinations { "Degraded" } else { "Synced" },
                "reason": "Synced", "message": "", "connected": true, "drifted": [], "healsTotal": 0,
                "objectsTotal": objects, "objects": (0..objects).map(object).collect::<Vec<_>>(), "warnings": [],
            })
        };
        let named =
            (0..destinations).map(|number| json!({"cluster": format!("cluster-{number:05}")}));
        serde_json::from_value(json!({
            "name": "web", "namespace": "default", "phase": "Degraded", "conditions": [],
            "manifest": {"spec": {"source": {"path": "k8s"}, "destinations": named.collect::<Vec<_>>()}},
            "destinationCounts": {"Synced": destinations - 1, "Degraded": 1}, "generation": 1,
            "createdAt": "2026-01-01T00:00:00Z",
            "destinations": (0..destinations).map(place).collect::<Vec<_>>(),
        }))
        .unwrap()
    }

    #[test]
    fn a_small_application_is_shown_whole() {
        let whole = application(3, 30);

        let shown = shortened(whole.clone());

        assert_eq!(serde_json::to_value(shown).unwrap(), serde_json::to_value(whole).unwrap());
    }

    #[test]
    fn a_large_application_is_shown_by_its_worst_destinations_in_an_answer_of_bounded_size() {
        for (destinations, objects) in [(10_000, 0), (1_000, 30), (2, 2_000)] {
            let shown = shortened(application(destinations, objects));

            assert!(json_bytes(&shown) <= ANSWER_BYTES_MAX, "{}", json_bytes(&shown));
            assert_eq!(shown.destinations[0].phase, ApplicationPhase::Degraded);
            assert_eq!(shown.destinations[0].objects_total, objects as u64);
            assert_eq!(shown.destination_counts.values().sum::<u64>(), destinations as u64);
            assert!(!shown.destinations.is_empty());
            assert_eq!(shown.manifest["spec"]["source"]["path"], "k8s");
        }
    }

    #[test]
    fn a_line_of_a_list_is_of_bounded_size() {
        let record = ApplicationRecord::sample("application-00001", "https://git.example/web");
        let facts = ApplicationFacts {
            view: None,
            destinations: Vec::new(),
            deleting: false,
            generation: 1,
        };
        let status = status::status(&facts);

        let line = summary(&record, &facts, status);

        let revision = Some("0123456789abcdef0123456789abcdef01234567".to_owned());
        assert!(json_bytes(&ApplicationSummary { revision, ..line }) <= 400);
    }
}
