//! Phases and conditions of an application. Pure: every rule is a function of the facts.

use std::time::Duration;

use attest_common::basics::ids::Timestamp;
use attest_common::documents::plan::Operation;
use attest_common::session::report::Phase;

use super::facts::{ApplicationFacts, DestinationFacts};
use super::view::{View, Waiting};

/// Age from which the last report of a disconnected cluster counts as stale.
const STALE_REPORT_AFTER: Duration = Duration::from_secs(60);

pub(super) const SYNCED: &str = "Synced";
const OUT_OF_SYNC: &str = "OutOfSync";
const PROGRESSING: &str = "Progressing";
const DEGRADED: &str = "Degraded";
const REFUSED: &str = "Refused";
const AWAITING_RECEIPTS: &str = "AwaitingReceipts";
const UNKNOWN: &str = "Unknown";

/// Phases from best to worst. An application has the phase of its worst destination.
const ORDER: [&str; 7] =
    [SYNCED, PROGRESSING, AWAITING_RECEIPTS, UNKNOWN, OUT_OF_SYNC, DEGRADED, REFUSED];

/// Status of an application.
#[derive(Clone, Debug)]
pub(crate) struct ApplicationStatus {
    pub phase: &'static str,
    pub conditions: Vec<Condition>,
    /// In the order of the facts.
    pub destinations: Vec<DestinationStatus>,
}

/// Status of one destination.
#[derive(Clone, Debug)]
pub(crate) struct DestinationStatus {
    pub cluster: String,
    pub namespace: String,
    pub phase: &'static str,
    pub reason: String,
    pub message: String,
    /// Absent before the first report.
    pub health: Option<String>,
    pub runs: bool,
    pub connected: bool,
    /// The cluster is registered, not connected, and its last report is stale.
    pub stale: bool,
}

/// A condition in the Kubernetes form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    pub kind: &'static str,
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    pub reason: String,
    pub message: String,
    pub last_transition_time: Timestamp,
}

impl Condition {
    fn new(
        kind: &'static str,
        status: &'static str,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            status,
            reason: reason.into(),
            message: message.into(),
            last_transition_time: Timestamp::UNIX_EPOCH,
        }
    }

    fn is_true(&self) -> bool {
        self.status == "True"
    }
}

/// Returns the status of an application. The caller sets the transition times of its conditions.
pub(crate) fn status(facts: &ApplicationFacts) -> ApplicationStatus {
    let destinations: Vec<DestinationStatus> =
        facts.destinations.iter().map(destination_status).collect();
    let phase = worst(destinations.iter().map(|destination| destination.phase));
    let mut conditions = conditions(facts.view.as_deref(), &destinations, phase);
    conditions.extend(facts.deleting.then(deleting));
    conditions.extend(disconnected(&destinations));
    ApplicationStatus { phase, conditions, destinations }
}

/// Returns the phase of an application, and `Verified`, `Failed` or `Pending`, for its log line.
pub(crate) fn summary(status: &ApplicationStatus) -> (&'static str, &'static str) {
    let verified = status.conditions.iter().find(|condition| condition.kind == "Verified");
    let word = match verified.map(|condition| condition.status) {
        Some("True") => "Verified",
        Some("False") => "Failed",
        _ => "Pending",
    };
    (status.phase, word)
}

fn destination_status(facts: &DestinationFacts) -> DestinationStatus {
    let (phase, reason, message) = phase(facts);
    let report = facts.report.as_ref().map(|record| &record.report);
    DestinationStatus {
        cluster: facts.cluster.clone(),
        namespace: facts.namespace.clone(),
        phase,
        reason: reason.to_owned(),
        message: message.to_owned(),
        health: report.map(|report| report.health.as_str().to_owned()),
        runs: report.is_some_and(|report| report.running.is_some()),
        connected: facts.connected,
        stale: facts.key.is_some() && !facts.connected && is_stale(facts.last_seen),
    }
}

fn is_stale(last_seen: Option<Duration>) -> bool {
    last_seen.is_none_or(|age| age > STALE_REPORT_AFTER)
}

/// Returns phase, reason and message of a destination.
fn phase(facts: &DestinationFacts) -> (&'static str, &str, &str) {
    if let Some(waiting) = &facts.waiting {
        return (phase_of(waiting), &waiting.reason, &waiting.message);
    }
    let Some(head) = &facts.head else {
        return match &facts.problem {
            Some(problem) => (UNKNOWN, &problem.reason, &problem.message),
            None if facts.reconciled => (UNKNOWN, "Pending", "no directive was issued yet"),
            None => (UNKNOWN, "Pending", "not reconciled since the hub started"),
        };
    };
    let report = facts.report.as_ref().map(|record| &record.report);
    let current = report.filter(|report| {
        // A later sequence was issued before a restore from a backup.
        report.sequence.is_some_and(|sequence| sequence >= head.sequence)
    });
    let Some(report) = current else {
        let message = if facts.connected {
            "sent to the spoke; no report received yet"
        } else {
            "the spoke is not connected; it receives the directive when it reconnects"
        };
        return (PROGRESSING, "AwaitingReport", message);
    };
    if let Some(refusal) = report.refusal.as_ref().filter(|_| report.phase == Phase::Refused) {
        return (REFUSED, &refusal.reason, &refusal.message);
    }
    let phase = match report.phase {
        Phase::Progressing => PROGRESSING,
        Phase::Synced if head.runs_in(report) => SYNCED,
        Phase::Synced => {
            let message = "the spoke runs another plan than the newest one";
            return (PROGRESSING, "OtherPlan", message);
        }
        Phase::OutOfSync => OUT_OF_SYNC,
        Phase::Degraded => DEGRADED,
        Phase::Refused => REFUSED,
        Phase::Removed if head.operation == Operation::Remove => SYNCED,
        Phase::Removed => UNKNOWN,
    };
    (phase, &report.reason, &report.message)
}

/// Returns the phase for a reason to wait.
fn phase_of(waiting: &Waiting) -> &'static str {
    match waiting.reason.as_str() {
        "AwaitingReceipts" => AWAITING_RECEIPTS,
        "AwaitingSync" => OUT_OF_SYNC,
        "AwaitingCluster" | "ClusterUnknown" | "ClusterPending" | "ClusterEvicted"
        | "ClusterRevoked" => UNKNOWN,
        _ => REFUSED,
    }
}

fn worst(phases: impl Iterator<Item = &'static str>) -> &'static str {
    let rank = |phase: &str| ORDER.iter().position(|known| *known == phase).unwrap_or(0);
    let worst = phases.map(rank).max();
    worst.and_then(|rank| ORDER.get(rank)).copied().unwrap_or(UNKNOWN)
}

/// Returns `Ready` and the four conditions that it summarises.
fn conditions(
    view: Option<&View>,
    destinations: &[DestinationStatus],
    phase: &str,
) -> Vec<Condition> {
    let verified = verified(destinations);
    let synced = synced(destinations);
    let healthy = healthy(destinations);
    let source = source_read(view);
    let is_well = phase == SYNCED && healthy.is_true() && source.is_true();
    let ready = if is_well {
        ready(destinations)
    } else {
        let cause = [&verified, &source, &synced, &healthy].into_iter().find(|c| !c.is_true());
        let (reason, message) =
            cause.map_or(("Pending", ""), |cause| (&cause.reason, &cause.message));
        Condition::new("Ready", "False", reason, message)
    };
    vec![ready, verified, synced, healthy, source]
}

fn ready(destinations: &[DestinationStatus]) -> Condition {
    match destinations.iter().find(|destination| destination.stale) {
        Some(DestinationStatus { cluster, .. }) => {
            let message =
                format!("cluster {cluster} is not connected; its last report may be stale");
            Condition::new("Ready", "Unknown", "SpokeDisconnected", message)
        }
        None => Condition::new("Ready", "True", "Ready", "all destinations run the signed commit"),
    }
}

fn located(destination: &DestinationStatus) -> String {
    let DestinationStatus { cluster, namespace, message, .. } = destination;
    format!("{cluster}/{namespace}: {message}")
}

fn first<'a>(destinations: &'a [DestinationStatus], phase: &str) -> Option<&'a DestinationStatus> {
    destinations.iter().find(|destination| destination.phase == phase)
}

fn verified(destinations: &[DestinationStatus]) -> Condition {
    if let Some(refused) = first(destinations, REFUSED) {
        Condition::new("Verified", "False", &refused.reason, located(refused))
    } else if let Some(awaiting) = first(destinations, AWAITING_RECEIPTS) {
        Condition::new("Verified", "Unknown", &awaiting.reason, located(awaiting))
    } else if destinations.iter().all(|destination| destination.runs) {
        Condition::new(
            "Verified",
            "True",
            "Verified",
            "every destination runs a release signed by CI",
        )
    } else {
        Condition::new("Verified", "Unknown", "Pending", "not every destination has reported")
    }
}

fn synced(destinations: &[DestinationStatus]) -> Condition {
    match destinations.iter().find(|destination| destination.phase != SYNCED) {
        None => Condition::new("Synced", "True", SYNCED, "all destinations are synced"),
        Some(other) => Condition::new("Synced", "False", &other.reason, located(other)),
    }
}

fn healthy(destinations: &[DestinationStatus]) -> Condition {
    let unwell = destinations.iter().find(|other| other.health.as_deref() != Some("Current"));
    match unwell.map(|other| (other, &other.health)) {
        None => Condition::new("Healthy", "True", "Current", "every object is Current"),
        Some((other, Some(health))) => Condition::new("Healthy", "False", health, located(other)),
        Some((other, None)) => Condition::new("Healthy", "Unknown", "Pending", located(other)),
    }
}

fn source_read(view: Option<&View>) -> Condition {
    match view.map(|view| &view.problem) {
        None => Condition::new("SourceRead", "Unknown", "Pending", "not reconciled yet"),
        Some(Some(problem)) => {
            Condition::new("SourceRead", "False", &problem.reason, &problem.message)
        }
        Some(None) => Condition::new("SourceRead", "True", "SourceRead", "the repository was read"),
    }
}

fn deleting() -> Condition {
    let message = "the application is being removed from its destinations";
    Condition::new("Deleting", "True", "Deleting", message)
}

fn disconnected(destinations: &[DestinationStatus]) -> Option<Condition> {
    let away = destinations.iter().find(|destination| !destination.connected)?;
    let message = format!("cluster {} is not connected", away.cluster);
    Some(Condition::new("Connected", "False", "SpokeDisconnected", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destination(cluster: &str, phase: &'static str, stale: bool) -> DestinationStatus {
        DestinationStatus {
            cluster: cluster.into(),
            namespace: "web".into(),
            phase,
            reason: phase.into(),
            message: "what it says".into(),
            health: Some("Current".into()),
            runs: true,
            connected: true,
            stale,
        }
    }

    #[test]
    fn ready_says_when_git_cannot_be_read_and_when_a_cluster_has_long_been_silent() {
        let unread = View {
            problem: Some(Waiting::new("RepositoryUnreachable", "nobody answers")),
            ..View::default()
        };
        for (view, phase, silent, status, reason) in [
            (View::default(), SYNCED, false, "True", "Ready"),
            (unread.clone(), SYNCED, false, "False", "RepositoryUnreachable"),
            (View::default(), SYNCED, true, "Unknown", "SpokeDisconnected"),
            // A known problem takes precedence over a stale report.
            (View::default(), DEGRADED, true, "False", DEGRADED),
            (unread, SYNCED, true, "False", "RepositoryUnreachable"),
        ] {
            let shown =
                [destination("staging", phase, silent), destination("production", SYNCED, false)];
            let all = conditions(Some(&view), &shown, phase);
            let ready = all.iter().find(|condition| condition.kind == "Ready").unwrap();
            assert_eq!((ready.status, ready.reason.as_str()), (status, reason));
        }
    }

    #[test]
    fn a_cluster_is_silent_that_was_heard_of_long_ago_or_never() {
        assert!(!is_stale(Some(Duration::ZERO)));
        assert!(!is_stale(Some(STALE_REPORT_AFTER)));
        assert!(is_stale(Some(STALE_REPORT_AFTER + Duration::from_secs(1))));
        assert!(is_stale(None));
    }

    #[test]
    fn an_application_is_as_well_as_its_worst_destination() {
        assert_eq!(worst(["Synced", "Progressing"].into_iter()), "Progressing");
        assert_eq!(worst(["Synced", "Refused", "Degraded"].into_iter()), "Refused");
        assert_eq!(worst(["Synced"].into_iter()), "Synced");
        assert_eq!(worst(std::iter::empty()), "Unknown");
    }
}
