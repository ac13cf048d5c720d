//! Conversion of the hub's state to the documents of its API. Contains no rules.

use attest_common::basics::ids::DestinationKey;
use attest_common::basics::reason::Reason;
use attest_documents::{Application, ChangeTimings, Condition, Destination, HistoryEntry};
use attest_runtime::clock::now;

use crate::applications::facts::{ApplicationFacts, DestinationFacts, Detail};
use crate::applications::status::{self, ApplicationStatus, DestinationStatus};
use crate::core::store::records::{ApplicationRecord, LedgerEntry, ReportRecord, ResultRecord};

pub(super) fn application(
    record: &ApplicationRecord,
    facts: &ApplicationFacts,
    status: ApplicationStatus,
    detail: Detail,
) -> Application {
    let destinations = facts.destinations.iter().zip(status.destinations);
    Application {
        name: record.application.name.to_string(),
        namespace: record.application.namespace.clone(),
        manifest: record.manifest.clone(),
        phase: status.phase,
        conditions: status.conditions.into_iter().map(Condition::from).collect(),
        revision: facts.view.as_ref().and_then(|view| view.revision.clone()),
        destinations: destinations
            .map(|(facts, status)| destination(facts, status, detail))
            .collect(),
        generation: facts.generation,
        created_at: record.created_at,
        outcome: None,
    }
}

fn destination(facts: &DestinationFacts, status: DestinationStatus, detail: Detail) -> Destination {
    let record = facts.report.as_deref();
    let report = record.map(|record| &record.report);
    let head = facts.head.as_deref();
    let objects = report.filter(|_| detail == Detail::Objects);
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
        objects: objects.map(|report| report.objects.clone()).unwrap_or_default(),
        warnings: report.map(|report| report.warnings.clone()).unwrap_or_default(),
        timings: head.zip(record).and_then(|(head, record)| timings(head, record)),
    }
}

fn age_ms(record: &ReportRecord) -> u64 {
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
