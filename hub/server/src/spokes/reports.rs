//! Reports become durable in batches, and are acknowledged only then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use attest_common::basics::ids::{ClusterId, DestinationKey};
use attest_common::basics::rate::{KeyedRateLimiter, RateLimit};
use attest_common::basics::text;
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

/// Reports that may wait to be written; then spokes are made to wait.
pub(crate) const QUEUE_MAX: usize = 1_024;
/// Most reports of one durable write.
pub(crate) const BATCH_MAX: usize = 256;

/// Limit, for each cluster, of logged reports about destinations that were never ordered: a spoke sends them at each
/// reconnect.
const UNORDERED_LOGGED: RateLimit = RateLimit::per(8, 8, Duration::from_secs(10 * 60));

/// Longest word of a report that is kept: a reason, a name, a version.
const WORD_CHARACTERS_MAX: usize = 120;
/// Most signers of one release that are kept.
const SIGNERS_MAX: usize = 16;

/// A report that has just arrived.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) cluster: ClusterId,
    pub(crate) report: Report,
    pub(crate) at: Instant,
    pub(crate) number: u64,
    pub(crate) acknowledge: mpsc::Sender<u64>,
}

/// Where reports are handed in.
#[derive(Clone, Debug)]
pub(crate) struct Reports {
    queue: mpsc::Sender<Arrived>,
}

impl Reports {
    /// Hands in a report. Waits while too many are waiting already.
    pub(crate) async fn take(&self, arrived: Arrived) {
        // Only when the hub ends is there nobody to take it; the spoke sends it again.
        let _ = self.queue.send(arrived).await;
    }
}

/// Starts the one writer of reports; it ends with the last session.
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
            match blocking(&core, move |core| keep(core, &waker, arrived, &unordered)).await {
                Ok(()) => {
                    for (number, acknowledge) in acknowledgements {
                        // A full queue belongs to a spoke that does not read: it sends again.
                        let _ = acknowledge.try_send(number);
                    }
                }
                Err(error) => tracing::error!(
                    reason = error.reason(),
                    "Reports were not kept; spokes send them again: {}",
                    text::error_chain(&error)
                ),
            }
        }
    };
    tokio::spawn(stop.part("writer of reports", writing));
    Reports { queue }
}

fn keep(
    core: &Core,
    waker: &Waker,
    arrived: Vec<Arrived>,
    unordered: &KeyedRateLimiter<ClusterId>,
) -> Result<(), StoreError> {
    let mut newest: BTreeMap<DestinationKey, ReportRecord> = BTreeMap::new();
    let mut results = BTreeMap::new();
    for Arrived { cluster, report, at, .. } in arrived {
        let report = presentable(report);
        let record = ReportRecord { cluster, received_at: now(), report, push_to_report_us: None };
        let destination = record.destination();
        // What was never ordered is nobody's business to store.
        let Some(head) = core.fleet.head(&destination) else {
            note_unordered(core, &destination, &record, unordered);
            continue;
        };
        let former = newest
            .get(&destination)
            .cloned()
            .or_else(|| core.fleet.report(&destination).map(|record| record.as_ref().clone()));
        let record = ReportRecord {
            push_to_report_us: arrival(core, &head, &record, former.as_ref(), at),
            ..record
        };
        // Results are kept for what the ledger holds; a spoke cannot make the store grow by counting.
        let ordered = |result: &ResultRecord| {
            let is_head = result.sequence == head.sequence;
            let elsewhere = record.report.phase == Phase::Synced && !head.runs_in(&record.report);
            result.sequence <= head.sequence && !(is_head && elsewhere)
        };
        if let Some(result) = result(&destination, &record).filter(ordered) {
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
        let application = destination.application.clone();
        core.fleet.set_report(record);
        waker.wake_status(application.as_str());
    }
    Ok(())
}

/// A spoke tells of what this hub never ordered there: somebody else has ordered with this hub's key, or the hub has
/// forgotten it. That something is gone which is unknown here is no news.
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
        reason = "ReportOfUnordered",
        phase = report.phase.as_str(),
        reported = refusal.map_or(report.reason.as_str(), |refusal| refusal.reason.as_str()),
        "A cluster reports what this hub never ordered: {}",
        refusal.map_or(report.message.as_str(), |refusal| refusal.message.as_str())
    );
}

/// Words of a spoke end in terminals and logs: they are cut and lose their control characters here, once.
fn presentable(mut report: Report) -> Report {
    let word = |text: &str| text::message(text).chars().take(WORD_CHARACTERS_MAX).collect();
    report.reason = word(&report.reason);
    report.message = text::message(&report.message);
    if let Some(refusal) = &mut report.refusal {
        refusal.reason = word(&refusal.reason);
        refusal.message = text::message(&refusal.message);
    }
    if let Some(running) = &mut report.running {
        running.version = word(&running.version);
        running.signed_commit = word(&running.signed_commit);
        running.signers.truncate(SIGNERS_MAX);
        running.signers.iter_mut().for_each(|signer| *signer = word(signer));
    }
    report.objects.truncate(OBJECTS_LISTED_MAX);
    report.objects.iter_mut().for_each(|o| o.message = text::message(&o.message));
    report.drifted.truncate(OBJECTS_LISTED_MAX);
    report.warnings.truncate(OBJECTS_LISTED_MAX);
    report.warnings.iter_mut().for_each(|warning| *warning = text::message(warning));
    report
}

/// From the push to the first report that the directive is carried out, in microseconds.
fn arrival(
    core: &Core,
    head: &LedgerEntry,
    record: &ReportRecord,
    former: Option<&ReportRecord>,
    at: Instant,
) -> Option<u64> {
    let sequence = record.report.sequence?;
    let known = former.filter(|former| former.report.sequence == Some(sequence));
    if let Some(micros) = known.and_then(|former| former.push_to_report_us) {
        return Some(micros);
    }
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
    let reason = refused.map_or(report.reason.as_str(), |refusal| refusal.reason.as_str());
    let sequence = refused.and_then(|refusal| refusal.sequence).or(report.sequence)?;
    Some(ResultRecord {
        destination: destination.clone(),
        sequence,
        result: report.phase.as_str().to_owned(),
        reason: reason.chars().take(80).collect(),
        at: record.received_at,
    })
}

/// A refusal is counted and logged once, when it is news.
fn announce(core: &Core, destination: &DestinationKey, record: &ReportRecord) {
    let former = core.fleet.report(destination);
    let former = former.as_ref().and_then(|former| former.report.refusal.as_ref());
    let Some(refusal) = record.report.refusal.as_ref().filter(|refusal| Some(*refusal) != former)
    else {
        return;
    };
    let label = core.metrics.label(&refusal.reason);
    core.metrics.refusals.with_label_values(&[label]).inc();
    if matches!(refusal.reason.as_str(), "SignatureInvalid" | "UntrustedKey") {
        core.metrics.signature_failures.inc();
    }
    tracing::warn!(
        target: CONTROLLER,
        application = destination.application.as_str(),
        destination = destination.to_string(),
        reason = refusal.reason,
        sequence = refusal.sequence,
        "The cluster refused: {}", text::message(&refusal.message)
    );
}

#[cfg(test)]
mod tests {
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
            reason: "\u{1b}[2J".repeat(100),
            message: "a\r\nb".repeat(10_000),
            running: None,
            refusal: None,
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

        let kept = presentable(report);

        assert!(!kept.reason.chars().any(char::is_control));
        assert!(!kept.message.chars().any(char::is_control));
        assert!(kept.reason.len() <= WORD_CHARACTERS_MAX && kept.warnings.len() <= 200);
    }
}
