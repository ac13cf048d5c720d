//! Writer of reports: stores them in batches, then acknowledges them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use attest_common::basics::ids::{ClusterId, DestinationKey};
use attest_common::basics::rate::{KeyedRateLimiter, RateLimit};
use attest_common::basics::reason::Reason;
use attest_common::basics::text;
use attest_common::objects::rewritten::REWRITTEN_LISTED_MAX;
use attest_common::record::rollout::GOOD_PLANS_MAX;
use attest_common::session::report::{OBJECTS_LISTED_MAX, Phase, Report};
use attest_runtime::clock::now;
use tokio::sync::mpsc;

use super::registration::CLUSTERS_MAX;
use crate::core::CONTROLLER;
use crate::core::Core;
use crate::core::blocking::blocking;
use crate::core::store::StoreError;
use crate::core::store::records::{self, LedgerEntry, ReportRecord, ResultRecord};
use crate::reconcile::waker::Waker;

/// Most reports that wait to be written; beyond that, sessions wait.
pub(crate) const QUEUE_MAX: usize = 1_024;
/// Most reports of one durable write.
pub(crate) const BATCH_MAX: usize = 256;

/// Limit, for each cluster, of logged reports about destinations that this hub never deployed: a spoke sends them at
/// each reconnect.
const UNORDERED_LOGGED: RateLimit = RateLimit::per(8, 8, Duration::from_secs(10 * 60));

/// Longest stored reason, name or version of a report, in characters.
const WORD_CHARACTERS_MAX: usize = 120;
/// Most stored signers of one release.
const SIGNERS_MAX: usize = 16;

/// A received report that is not yet durable.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) cluster: ClusterId,
    pub(crate) report: Report,
    pub(crate) at: Instant,
    pub(crate) number: u64,
    pub(crate) acknowledge: mpsc::Sender<u64>,
}

/// Sender of the queue of reports.
#[derive(Clone, Debug)]
pub(crate) struct Reports {
    queue: mpsc::Sender<Arrived>,
}

impl Reports {
    /// Queues a report. Waits while the queue is full.
    pub(crate) async fn take(&self, arrived: Arrived) {
        // Fails only when the hub stops; the spoke sends the report again.
        let _ = self.queue.send(arrived).await;
    }
}

/// Starts the writer of reports, which ends with the last session.
pub(crate) fn start(core: Arc<Core>, waker: Arc<Waker>) -> Reports {
    let (queue, mut waiting) = mpsc::channel(QUEUE_MAX);
    let stop = core.stop.clone();
    let unordered = Arc::new(KeyedRateLimiter::new(UNORDERED_LOGGED, CLUSTERS_MAX));
    let writing = async move {
        let mut batch: Vec<Arrived> = Vec::new();
        while waiting.recv_many(&mut batch, BATCH_MAX).await > 0 {
            let arrived = std::mem::take(&mut batch);
            let acknowledgements: Vec<_> =
                arrived.iter().map(|a| (a.number, a.acknowledge.clone())).collect();
            let (unordered, waker) = (unordered.clone(), waker.clone());
            match blocking(&core, move |core| store(core, &waker, arrived, &unordered)).await {
                Ok(()) => {
                    for (number, acknowledge) in acknowledgements {
                        // The queue is full when the spoke does not read; it sends the report again.
                        let _ = acknowledge.try_send(number);
                    }
                }
                Err(error) => tracing::error!(
                    reason = error.reason().as_str(),
                    "Failed to store reports; spokes send them again: {}",
                    text::error_chain(&error)
                ),
            }
        }
    };
    tokio::spawn(stop.part("writer of reports", writing));
    Reports { queue }
}

fn store(
    core: &Core,
    waker: &Waker,
    arrived: Vec<Arrived>,
    unordered: &KeyedRateLimiter<ClusterId>,
) -> Result<(), StoreError> {
    let mut newest: BTreeMap<DestinationKey, ReportRecord> = BTreeMap::new();
    let mut results = BTreeMap::new();
    for Arrived { cluster, report, at, .. } in arrived {
        let report = sanitized(report);
        let record = ReportRecord { cluster, received_at: now(), report, push_to_report_us: None };
        let destination = record.destination();
        // Reports about destinations that were never deployed are not stored.
        let Some(head) = core.fleet.head(&destination) else {
            note_unordered(core, &destination, &record, unordered);
            continue;
        };
        let known = match newest.get(&destination) {
            Some(previous) => known_push_to_report_us(previous, &record),
            None => core
                .fleet
                .report(&destination)
                .and_then(|previous| known_push_to_report_us(&previous, &record)),
        };
        let record = ReportRecord {
            push_to_report_us: known.or_else(|| push_to_report_us(core, &head, &record, at)),
            ..record
        };
        // Results are stored for directives of the ledger only, so that a spoke cannot grow the store.
        let is_issued = |result: &ResultRecord| {
            let is_head = result.sequence == head.sequence;
            let elsewhere = record.report.phase == Phase::Synced && !head.runs_in(&record.report);
            result.sequence <= head.sequence && !(is_head && elsewhere)
        };
        if let Some(result) = result(&destination, &record).filter(is_issued) {
            results.insert((destination.clone(), result.sequence), result);
        }
        newest.insert(destination, record);
    }
    let mut changes: Vec<_> = newest.values().map(records::put).collect();
    changes.extend(results.values().map(records::put));
    if changes.is_empty() {
        return Ok(());
    }
    core.records.commit("report", &changes)?;
    core.metrics.reports.inc_by(newest.len() as u64);
    for (destination, record) in newest {
        announce(core, &destination, &record);
        core.fleet.set_report(record);
        waker.wake_status(&destination);
    }
    Ok(())
}

/// Counts and logs a report about a destination that this hub never deployed: its signing key was used elsewhere, or
/// its database lost the destination. Reports of a removal are ignored.
fn note_unordered(
    core: &Core,
    destination: &DestinationKey,
    record: &ReportRecord,
    logged: &KeyedRateLimiter<ClusterId>,
) {
    let report = &record.report;
    if report.phase == Phase::Removed {
        return;
    }
    core.metrics.reports_unordered.inc();
    if !logged.allows(&record.cluster, Instant::now()) {
        return;
    }
    let refusal = report.refusal.as_ref();
    tracing::warn!(
        target: CONTROLLER,
        application = destination.application.as_str(),
        destination = destination.to_string(),
        reason = Reason::UnorderedReport.as_str(),
        phase = report.phase.as_str(),
        reported = refusal.map_or(report.reason.as_str(), |refusal| refusal.reason.as_str()),
        "Report about a destination that this hub never deployed: {}",
        refusal.map_or(report.message.as_str(), |refusal| refusal.message.as_str())
    );
}

/// Truncates the texts of a report and removes control characters, because they are shown in terminals and logs.
fn sanitized(mut report: Report) -> Report {
    text::make_message(&mut report.message);
    if let Some(refusal) = &mut report.refusal {
        text::make_message(&mut refusal.message);
    }
    if let Some(rollout) = &mut report.rollout {
        rollout.good.truncate(GOOD_PLANS_MAX);
        if let Some(abort) = &mut rollout.aborted {
            text::make_message(&mut abort.message);
        }
    }
    if let Some(running) = &mut report.running {
        make_word(&mut running.version);
        make_word(&mut running.signed_commit);
        running.signers.truncate(SIGNERS_MAX);
        running.signers.iter_mut().for_each(make_word);
    }
    report.objects.truncate(OBJECTS_LISTED_MAX);
    for object in &mut report.objects {
        text::make_message(&mut object.message);
        object.rewritten.truncate(REWRITTEN_LISTED_MAX);
        object.rewritten.iter_mut().for_each(make_word);
    }
    report.drifted.truncate(OBJECTS_LISTED_MAX);
    report.warnings.truncate(OBJECTS_LISTED_MAX);
    report.warnings.iter_mut().for_each(text::make_message);
    report
}

fn make_word(text: &mut String) {
    text::make_message(text);
    text::truncate(text, WORD_CHARACTERS_MAX, "");
}

/// Returns the time from the push to the first report of completion, as a previous report about the same directive has
/// it.
fn known_push_to_report_us(previous: &ReportRecord, record: &ReportRecord) -> Option<u64> {
    let sequence = record.report.sequence?;
    previous.push_to_report_us.filter(|_| previous.report.sequence == Some(sequence))
}

/// Returns the time from the push to the first report of completion, in microseconds.
fn push_to_report_us(
    core: &Core,
    head: &LedgerEntry,
    record: &ReportRecord,
    at: Instant,
) -> Option<u64> {
    let sequence = record.report.sequence?;
    let is_done = match record.report.phase {
        Phase::Synced => head.runs_in(&record.report),
        Phase::Removed => true,
        Phase::Progressing | Phase::OutOfSync | Phase::Degraded | Phase::Refused => false,
    };
    let is_done = is_done && sequence == head.sequence;
    let pushed = core.fleet.pushed_at(&record.destination(), sequence).filter(|_| is_done)?;
    let taken = at.saturating_duration_since(pushed);
    core.metrics.deployment_duration.observe(taken.as_secs_f64());
    core.metrics.deployments_success.inc();
    core.metrics.change.with_label_values(&["report"]).observe(taken.as_secs_f64());
    u64::try_from(taken.as_micros()).ok()
}

fn result(destination: &DestinationKey, record: &ReportRecord) -> Option<ResultRecord> {
    let report = &record.report;
    let refused = report.refusal.as_ref().filter(|_| report.phase == Phase::Refused);
    let reason = refused.map_or(&report.reason, |refusal| &refusal.reason);
    let sequence = refused.and_then(|refusal| refusal.sequence).or(report.sequence)?;
    Some(ResultRecord {
        destination: destination.clone(),
        sequence,
        result: report.phase.as_str().to_owned(),
        reason: reason.clone(),
        at: record.received_at,
    })
}

/// Counts and logs a refusal when it first appears.
fn announce(core: &Core, destination: &DestinationKey, record: &ReportRecord) {
    let previous = core.fleet.report(destination);
    let previous = previous.as_ref().and_then(|previous| previous.report.refusal.as_ref());
    let Some(refusal) = record.report.refusal.as_ref().filter(|refusal| Some(*refusal) != previous)
    else {
        return;
    };
    let label = core.metrics.label(&refusal.reason);
    core.metrics.refusals.with_label_values(&[label]).inc();
    if refusal.reason.known().is_some_and(Reason::is_signature_failure) {
        core.metrics.signature_failures.inc();
    }
    tracing::warn!(
        target: CONTROLLER,
        application = destination.application.as_str(),
        destination = destination.to_string(),
        reason = refusal.reason.as_str(),
        sequence = refusal.sequence,
        "Directive refused by cluster: {}", text::message(&refusal.message)
    );
}

#[cfg(test)]
mod tests {
    use attest_common::basics::reason::ReportedReason;
    use attest_common::objects::health::Health;

    use super::*;

    #[test]
    fn what_a_spoke_says_cannot_steer_a_terminal_or_fill_a_screen() {
        let name = |text: &str| attest_common::basics::ids::Name::new(text).unwrap();
        let report = Report {
            v: 1,
            application: name("web"),
            namespace: name("app"),
            epoch: None,
            sequence: Some(1),
            phase: Phase::Refused,
            reason: ReportedReason::parse(&"\u{1b}[2J".repeat(100)),
            message: "a\r\nb".repeat(10_000),
            running: None,
            refusal: None,
            rollout: None,
            health: Health::Current,
            objects: Vec::new(),
            objects_total: 0,
            drifted: Vec::new(),
            heals_total: 0,
            timings: Default::default(),
            checks: Vec::new(),
            warnings: vec!["\u{7}".to_owned(); 1_000],
            observed_at: now(),
        };

        let kept = sanitized(report);

        assert!(!kept.reason.as_str().chars().any(char::is_control));
        assert!(!kept.message.chars().any(char::is_control));
        assert!(kept.reason.as_str().len() <= WORD_CHARACTERS_MAX && kept.warnings.len() <= 200);
    }
}
