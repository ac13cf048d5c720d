//! From what is known to what people see: phases, conditions, history. Reads, decides nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use attest_common::basics::ids::{DestinationKey, Digest, Name, Timestamp};
use attest_common::documents::plan::Operation;
use attest_common::session::report::{Phase, Report};
use attest_runtime::clock::now;

use crate::core::metrics::Metrics;
use crate::core::store::StoreError;
use crate::core::store::records::{self, ApplicationRecord, LedgerEntry, ReportRecord};
use crate::process::hub::Hub;
use crate::reconcile::planner::Waiting;
use crate::reconcile::queue::View;
use attest_documents::{
    Application, ChangeTimings, Condition, Destination as ShownDestination, HistoryEntry,
};

/// Most history lines of one destination.
pub const HISTORY_MAX: usize = 50;
/// Most orders of a destination among which the one is looked for whose plan runs.
const ORDERS_LOOKED_AT_MAX: usize = 8;
/// For how long the last word of a cluster that is not connected counts as what runs there.
const LAST_WORD_AGE_MAX: Duration = Duration::from_secs(60);

const SYNCED: &str = "Synced";
const OUT_OF_SYNC: &str = "OutOfSync";
const PROGRESSING: &str = "Progressing";
const DEGRADED: &str = "Degraded";
const REFUSED: &str = "Refused";
const AWAITING_RECEIPTS: &str = "AwaitingReceipts";
const UNKNOWN: &str = "Unknown";

/// From best to worst: an application is as well as its worst destination.
const ORDER: [&str; 7] =
    [SYNCED, PROGRESSING, AWAITING_RECEIPTS, UNKNOWN, OUT_OF_SYNC, DEGRADED, REFUSED];

/// How much is shown of each destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Everything a spoke says.
    Objects,
    /// All but its objects: of thousands of destinations nobody reads each.
    Overview,
}

/// An application as the API shows it. Blocks.
pub fn application(hub: &Hub, record: &ApplicationRecord, detail: Detail) -> Application {
    let applied = &record.application;
    let view = hub.pipeline.view(applied.name.as_str());
    let view = view.as_deref();
    let (destinations, generation) = destinations(hub, record, view, detail);
    let (phase, conditions) = outlook(hub, record, view, &destinations);
    Application {
        name: applied.name.to_string(),
        namespace: applied.namespace.clone(),
        manifest: record.manifest.clone(),
        phase: phase.to_owned(),
        conditions,
        revision: view.and_then(|view| view.revision.clone()),
        destinations,
        generation,
        created_at: record.created_at,
        outcome: None,
    }
}

/// Phase of an application, and `Verified`, `Failed` or `Pending`, for the log line: without what only people
/// read, for this is asked at every report. Blocks.
pub fn phase(hub: &Hub, record: &ApplicationRecord) -> (&'static str, &'static str) {
    let view = hub.pipeline.view(record.application.name.as_str());
    let view = view.as_deref();
    let (destinations, _) = destinations(hub, record, view, Detail::Overview);
    let (phase, conditions) = outlook(hub, record, view, &destinations);
    (phase, verification_word(&conditions))
}

fn outlook(
    hub: &Hub,
    record: &ApplicationRecord,
    view: Option<&View>,
    destinations: &[ShownDestination],
) -> (&'static str, Vec<Condition>) {
    let phase = worst(destinations.iter().map(|d| d.phase.as_str()));
    let is_silent = |destination: &&ShownDestination| {
        let presence = destination.cluster_id.as_ref().map(|id| hub.fleet.presence(id));
        presence.is_some_and(|(connected, age)| !connected && is_old(age))
    };
    let silent = destinations.iter().find(is_silent).map(|d| d.cluster.as_str());
    let conditions = conditions(view, destinations, record, phase, silent);
    (phase, hub.transitions.stamp(record.application.name.as_str(), conditions, now()))
}

/// Where an application is or shall be, and the highest generation ordered there.
fn destinations(
    hub: &Hub,
    record: &ApplicationRecord,
    view: Option<&View>,
    detail: Detail,
) -> (Vec<ShownDestination>, u64) {
    let applied = &record.application;
    let mut shown = Vec::new();
    let mut places = std::collections::BTreeSet::new();
    for destination in &applied.destinations {
        let cluster = hub.directory.named(&destination.cluster);
        let key = cluster.map(|cluster| DestinationKey {
            application: applied.name.clone(),
            cluster: cluster.id.clone(),
            namespace: destination.namespace.clone(),
        });
        places.extend(key.clone());
        let waiting = view.and_then(|view| {
            view.waiting.get(&(destination.cluster.clone(), destination.namespace.clone()))
        });
        let name = destination.cluster.to_string();
        let facts = Facts::of(hub, key.as_ref(), waiting, problem(view), view.is_some());
        shown.push(facts.shown(hub, name, destination.namespace.to_string(), key, detail));
    }
    // Places that are being removed.
    let heads = hub.fleet.heads_for(&applied.name);
    let generation = heads.iter().map(|(_, head)| head.generation).max().unwrap_or(0);
    for (key, head) in heads {
        let finished = is_removed(&head, hub.fleet.report(&key).as_deref());
        if places.contains(&key) || finished {
            continue;
        }
        let Some(cluster) = hub.directory.get(&key.cluster) else { continue };
        let facts = Facts::of(hub, Some(&key), None, None, true);
        let (name, namespace) = (cluster.name.to_string(), key.namespace.to_string());
        shown.push(facts.shown(hub, name, namespace, Some(key), detail));
    }
    (shown, generation)
}

/// True when the newest directive orders removal and the spoke says that nothing is there any more.
pub(crate) fn is_removed(head: &LedgerEntry, report: Option<&ReportRecord>) -> bool {
    let Some(report) = report.map(|record| &record.report) else { return false };
    let removed = report.phase == Phase::Removed && report.sequence == Some(head.sequence);
    let nothing_there = report.refusal.as_ref().is_some_and(|refusal| {
        refusal.reason == "NothingToRemove" && refusal.sequence == Some(head.sequence)
    });
    head.operation == Operation::Remove && (removed || nothing_there)
}

/// True when a spoke says that the plan of `head` is what runs.
pub(crate) fn runs_what_was_ordered(report: &Report, head: &LedgerEntry) -> bool {
    let ordered = head.planned.as_ref().map(|planned| planned.plan);
    ordered.is_some() && report.running.as_ref().map(|running| running.plan) == ordered
}

/// Whether what a cluster said so long ago says nothing of what runs there now.
fn is_old(last_heard: Option<Duration>) -> bool {
    last_heard.is_none_or(|age| age > LAST_WORD_AGE_MAX)
}

fn problem(view: Option<&View>) -> Option<&Waiting> {
    view.and_then(|view| view.problem.as_ref())
}

/// Everything known of one destination.
struct Facts<'a> {
    head: Option<std::sync::Arc<LedgerEntry>>,
    report: Option<std::sync::Arc<ReportRecord>>,
    connected: bool,
    waiting: Option<&'a Waiting>,
    problem: Option<&'a Waiting>,
    looked_at: bool,
}

impl<'a> Facts<'a> {
    fn of(
        hub: &Hub,
        key: Option<&DestinationKey>,
        waiting: Option<&'a Waiting>,
        problem: Option<&'a Waiting>,
        looked_at: bool,
    ) -> Self {
        Self {
            head: key.and_then(|key| hub.fleet.head(key)),
            report: key.and_then(|key| hub.fleet.report(key)),
            connected: key.is_some_and(|key| hub.fleet.presence(&key.cluster).0),
            waiting,
            problem,
            looked_at,
        }
    }

    /// Phase, reason and message.
    fn phase(&self) -> (&'static str, String, String) {
        let owned =
            |phase, reason: &str, message: &str| (phase, reason.to_owned(), message.to_owned());
        if let Some(waiting) = self.waiting {
            let phase = match waiting.reason.as_str() {
                "AwaitingReceipts" => AWAITING_RECEIPTS,
                "AwaitingSync" => OUT_OF_SYNC,
                "AwaitingCluster" | "ClusterUnknown" | "ClusterPending" | "ClusterEvicted"
                | "ClusterRevoked" => UNKNOWN,
                _ => REFUSED,
            };
            return owned(phase, &waiting.reason, &waiting.message);
        }
        let Some(head) = &self.head else {
            return match self.problem {
                Some(problem) => owned(UNKNOWN, &problem.reason, &problem.message),
                None if self.looked_at => owned(UNKNOWN, "Pending", "nothing was ordered yet"),
                None => owned(UNKNOWN, "Pending", "not looked at since the hub started"),
            };
        };
        let current = self.report.as_ref().map(|record| &record.report);
        let current = current.filter(|report| {
            // A later sequence can only be one that this hub has forgotten.
            report.sequence.is_some_and(|sequence| sequence >= head.sequence)
        });
        let Some(report) = current else {
            let message = if self.connected {
                "sent to the spoke, which has not reported on it yet"
            } else {
                "the spoke is not connected; it gets this when it is back"
            };
            return owned(PROGRESSING, "AwaitingReport", message);
        };
        if let Some(refusal) = report.refusal.as_ref().filter(|_| report.phase == Phase::Refused) {
            return owned(REFUSED, &refusal.reason, &refusal.message);
        }
        let phase = match report.phase {
            Phase::Progressing => PROGRESSING,
            Phase::Synced if runs_what_was_ordered(report, head) => SYNCED,
            Phase::Synced => {
                let message = "the spoke keeps running another plan than the newest one";
                return owned(PROGRESSING, "OtherPlan", message);
            }
            Phase::OutOfSync => OUT_OF_SYNC,
            Phase::Degraded => DEGRADED,
            Phase::Refused => REFUSED,
            Phase::Removed if head.operation == Operation::Remove => SYNCED,
            Phase::Removed => UNKNOWN,
        };
        owned(phase, &report.reason, &report.message)
    }

    fn shown(
        &self,
        hub: &Hub,
        cluster: String,
        namespace: String,
        key: Option<DestinationKey>,
        detail: Detail,
    ) -> ShownDestination {
        let (phase, reason, message) = self.phase();
        let record = self.report.as_deref();
        let report = record.map(|record| &record.report);
        let head = self.head.as_deref();
        let age_ms = record.map(|record| {
            let age_ms = now().as_millisecond() - record.received_at.as_millisecond();
            u64::try_from(age_ms).unwrap_or(0)
        });
        let running = report.and_then(|report| report.running.clone());
        let deployed_commit =
            key.as_ref().zip(running.as_ref()).and_then(|(key, running)| match detail {
                Detail::Objects => commit_of(hub, key, &running.plan),
                Detail::Overview => head.and_then(|head| commit_in(head, &running.plan)),
            });
        ShownDestination {
            cluster,
            cluster_id: key.map(|key| key.cluster),
            namespace,
            phase: phase.to_owned(),
            reason,
            message,
            health: report.map(|report| report.health.as_str().to_owned()),
            running,
            deployed_commit,
            refusal: report.and_then(|report| report.refusal.clone()),
            epoch: head.map(|head| head.epoch),
            sequence: head.map(|head| head.sequence),
            connected: self.connected,
            report_age_ms: age_ms,
            drifted: report
                .map(|report| report.drifted.iter().map(ToString::to_string).collect())
                .unwrap_or_default(),
            heals_total: report.map_or(0, |report| report.heals_total),
            objects: report
                .filter(|_| detail == Detail::Objects)
                .map(|report| report.objects.clone())
                .unwrap_or_default(),
            warnings: report.map(|report| report.warnings.clone()).unwrap_or_default(),
            timings: self.timings(),
        }
    }

    fn timings(&self) -> Option<ChangeTimings> {
        let head = self.head.as_ref()?;
        let record = self.report.as_ref().filter(|r| r.report.sequence == Some(head.sequence))?;
        let push_to_report_us = record.push_to_report_us.unwrap_or(0);
        let records::ChangeTimings { git_us, render_us, verify_us, plan_us, .. } = head.timings;
        Some(ChangeTimings {
            push_to_report_us,
            total_us: git_us + render_us + verify_us + plan_us + push_to_report_us,
            spoke: record.report.timings,
            git_us,
            render_us,
            verify_us,
            plan_us,
        })
    }
}

/// Commit that a plan was made from, when it is among the newest that were ordered at a destination. Blocks.
pub(crate) fn commit_of(hub: &Hub, destination: &DestinationKey, plan: &Digest) -> Option<String> {
    let newest = hub.fleet.head(destination)?;
    commit_in(&newest, plan).or_else(|| {
        let orders = hub.records.ledger(destination, ORDERS_LOOKED_AT_MAX).ok()?;
        orders.iter().find_map(|order| commit_in(order, plan))
    })
}

fn commit_in(order: &LedgerEntry, plan: &Digest) -> Option<String> {
    let planned = order.planned.as_ref()?;
    (planned.plan == *plan).then(|| planned.commit.clone())
}

fn worst<'a>(phases: impl Iterator<Item = &'a str>) -> &'static str {
    let rank = |phase: &str| ORDER.iter().position(|known| *known == phase).unwrap_or(0);
    let worst = phases.map(rank).max();
    worst.and_then(|rank| ORDER.get(rank)).copied().unwrap_or(UNKNOWN)
}

fn conditions(
    view: Option<&View>,
    destinations: &[ShownDestination],
    record: &ApplicationRecord,
    phase: &str,
    silent: Option<&str>,
) -> Vec<Condition> {
    let made = |kind: &str, status: &str, reason: &str, message: String| Condition {
        kind: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        last_transition_time: Timestamp::UNIX_EPOCH,
    };
    let at = |d: &ShownDestination| format!("{}/{}: {}", d.cluster, d.namespace, d.message);
    let first = |word: &str| destinations.iter().find(|d| d.phase == word);
    let verified = match (first(REFUSED), first(AWAITING_RECEIPTS)) {
        (Some(d), _) => made("Verified", "False", &d.reason, at(d)),
        (None, Some(d)) => made("Verified", "Unknown", &d.reason, at(d)),
        (None, None) if destinations.iter().all(|d| d.running.is_some()) => {
            made("Verified", "True", "Verified", "every destination runs what CI signed".to_owned())
        }
        (None, None) => {
            made("Verified", "Unknown", "Pending", "not every destination has reported".to_owned())
        }
    };
    let elsewhere = destinations.iter().find(|d| d.phase != SYNCED);
    let synced = match elsewhere {
        None => made("Synced", "True", SYNCED, "every destination is in step".to_owned()),
        Some(d) => made("Synced", "False", &d.reason, at(d)),
    };
    let unwell = destinations.iter().find(|d| d.health.as_deref() != Some("Current"));
    let healthy = match unwell {
        None => made("Healthy", "True", "Current", "every object is Current".to_owned()),
        Some(d) => match &d.health {
            Some(health) => made("Healthy", "False", health, at(d)),
            None => made("Healthy", "Unknown", "Pending", at(d)),
        },
    };
    let source = match view {
        None => made("SourceRead", "Unknown", "Pending", "not looked at yet".to_owned()),
        Some(view) => match &view.problem {
            Some(problem) => made("SourceRead", "False", &problem.reason, problem.message.clone()),
            None => made("SourceRead", "True", "SourceRead", "the repository was read".to_owned()),
        },
    };
    let all_well = phase == SYNCED && unwell.is_none() && source.status == "True";
    let ready = match silent {
        _ if !all_well => {
            let cause = [&verified, &source, &synced, &healthy]
                .into_iter()
                .find(|condition| condition.status != "True");
            let reason = cause.map_or("Pending", |cause| cause.reason.as_str());
            made("Ready", "False", reason, cause.map(|c| c.message.clone()).unwrap_or_default())
        }
        Some(cluster) => {
            let message = format!(
                "cluster {cluster} is not connected: nobody knows whether what it last said still holds"
            );
            made("Ready", "Unknown", "SpokeDisconnected", message)
        }
        None => made("Ready", "True", "Ready", "runs everywhere as Git and CI say".to_owned()),
    };
    let mut all = vec![ready, verified, synced, healthy, source];
    if record.deleting {
        let message = "it is being removed from its destinations".to_owned();
        all.push(made("Deleting", "True", "Deleting", message));
    }
    let connected = destinations.iter().all(|d| d.connected);
    if !connected {
        let away = destinations.iter().find(|d| !d.connected);
        let message = away.map(|d| format!("cluster {} is not connected", d.cluster));
        all.push(made("Connected", "False", "SpokeDisconnected", message.unwrap_or_default()));
    }
    all
}

fn verification_word(conditions: &[Condition]) -> &'static str {
    let verified = conditions.iter().find(|condition| condition.kind == "Verified");
    match verified.map(|condition| condition.status.as_str()) {
        Some("True") => "Verified",
        Some("False") => "Failed",
        _ => "Pending",
    }
}

/// The phase of each application, for the metrics that count them.
#[derive(Debug, Default)]
pub struct Phases {
    synced: std::sync::Mutex<BTreeMap<String, bool>>,
}

impl Phases {
    /// Takes note of an application's phase, or that it is gone.
    pub fn note(&self, metrics: &Metrics, application: &str, phase: Option<&str>) {
        let mut synced = self.synced.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match phase {
            Some(phase) => synced.insert(application.to_owned(), phase == SYNCED),
            None => synced.remove(application),
        };
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        metrics.applications.set(count(synced.len()));
        metrics.applications_synced.set(count(synced.values().filter(|is| **is).count()));
    }
}

/// What was ordered for an application, newest first. Blocks.
///
/// # Errors
/// When the store cannot be read.
pub fn history(hub: &Hub, application: &str) -> Result<Vec<HistoryEntry>, StoreError> {
    let mut lines = Vec::new();
    let Ok(application) = Name::new(application) else { return Ok(lines) };
    for (destination, _) in hub.fleet.heads_for(&application) {
        let cluster = hub.directory.name_of(&destination.cluster);
        for entry in hub.records.ledger(&destination, HISTORY_MAX)? {
            let result = hub.records.result(&destination, entry.sequence)?;
            let planned = entry.planned.as_ref();
            lines.push(HistoryEntry {
                cluster: cluster.clone(),
                namespace: destination.namespace.to_string(),
                epoch: entry.epoch,
                sequence: entry.sequence,
                operation: format!("{:?}", entry.operation),
                commit: planned.map(|planned| planned.commit.clone()),
                version: planned.map(|planned| planned.version.clone()),
                counter: planned.map(|planned| planned.counter),
                plan: planned.map(|planned| planned.plan.to_string()),
                result: result.as_ref().map_or_else(|| "Pending".to_owned(), |r| r.result.clone()),
                reason: result.map_or_else(|| "Pending".to_owned(), |r| r.reason),
                issued_at: entry.issued_at,
            });
        }
    }
    lines.sort_by_key(|line| std::cmp::Reverse((line.issued_at, line.sequence)));
    Ok(lines)
}

/// Since when each condition is as it is. In memory: a restart of the hub begins anew.
#[derive(Debug, Default)]
pub struct Transitions {
    since: std::sync::Mutex<BTreeMap<(String, String), (String, Timestamp)>>,
}

impl Transitions {
    /// Writes into each condition when its status last changed.
    pub fn stamp(
        &self,
        application: &str,
        mut conditions: Vec<Condition>,
        now: Timestamp,
    ) -> Vec<Condition> {
        let mut since = self.since.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for condition in &mut conditions {
            let key = (application.to_owned(), condition.kind.clone());
            let entry = since.entry(key).or_insert_with(|| (condition.status.clone(), now));
            if entry.0 != condition.status {
                *entry = (condition.status.clone(), now);
            }
            condition.last_transition_time = entry.1;
        }
        conditions
    }

    /// Drops what is known of an application that is gone.
    pub fn forget(&self, application: &str) {
        let mut since = self.since.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        since.retain(|(name, _), _| name != application);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destination(cluster: &str, phase: &str) -> ShownDestination {
        serde_json::from_value(serde_json::json!({
            "cluster": cluster, "namespace": "web", "phase": phase, "reason": phase,
            "message": "what it says", "health": "Current", "connected": true,
            "running": {
                "plan": format!("sha256:{}", "1".repeat(64)),
                "release": format!("sha256:{}", "2".repeat(64)),
                "content": format!("sha256:{}", "3".repeat(64)),
                "version": "v1", "counter": 17, "signedCommit": "aaaabbbbccccdddd",
                "signers": ["ci"], "since": "2026-01-01T00:00:00Z"
            },
            "drifted": [], "healsTotal": 0, "objects": [], "warnings": []
        }))
        .unwrap()
    }

    #[test]
    fn ready_says_when_git_cannot_be_read_and_when_a_cluster_has_long_been_silent() {
        let unread = View {
            problem: Some(Waiting::new("RepositoryUnreachable", "nobody answers")),
            ..View::default()
        };
        for (view, phase, silent, status, reason) in [
            (View::default(), SYNCED, None, "True", "Ready"),
            (unread.clone(), SYNCED, None, "False", "RepositoryUnreachable"),
            (View::default(), SYNCED, Some("staging"), "Unknown", "SpokeDisconnected"),
            // What is known to be wrong says more than that nobody knows.
            (View::default(), DEGRADED, Some("staging"), "False", DEGRADED),
            (unread, SYNCED, Some("staging"), "False", "RepositoryUnreachable"),
        ] {
            let shown = [destination("staging", phase), destination("production", SYNCED)];
            let record = ApplicationRecord::sample("web", "https://git.example/web");
            let all = conditions(Some(&view), &shown, &record, phase, silent);
            let ready = all.iter().find(|condition| condition.kind == "Ready").unwrap();
            assert_eq!((ready.status.as_str(), ready.reason.as_str()), (status, reason));
        }
    }

    #[test]
    fn a_cluster_is_silent_that_was_heard_of_long_ago_or_never() {
        assert!(!is_old(Some(Duration::ZERO)));
        assert!(!is_old(Some(LAST_WORD_AGE_MAX)));
        assert!(is_old(Some(LAST_WORD_AGE_MAX + Duration::from_secs(1))));
        assert!(is_old(None));
    }

    #[test]
    fn an_application_is_as_well_as_its_worst_destination() {
        assert_eq!(worst(["Synced", "Progressing"].into_iter()), "Progressing");
        assert_eq!(worst(["Synced", "Refused", "Degraded"].into_iter()), "Refused");
        assert_eq!(worst(["Synced"].into_iter()), "Synced");
        assert_eq!(worst(std::iter::empty()), "Unknown");
    }

    #[test]
    fn a_condition_keeps_its_time_until_its_status_changes() {
        let transitions = Transitions::default();
        let at = |second| Timestamp::from_second(second).unwrap();
        let condition = |status: &str| {
            vec![Condition {
                kind: "Ready".into(),
                status: status.into(),
                reason: "R".into(),
                message: String::new(),
                last_transition_time: Timestamp::UNIX_EPOCH,
            }]
        };
        let stamped = |status, second| {
            transitions.stamp("a", condition(status), at(second))[0].last_transition_time
        };

        assert_eq!(stamped("False", 1), at(1));
        assert_eq!(stamped("False", 2), at(1));
        assert_eq!(stamped("True", 3), at(3));
    }
}
