//! Phases and conditions of an application. Pure: every rule is a function of the facts.

use std::time::Duration;

use attest_common::basics::ids::Timestamp;
use attest_common::basics::reason::{Reason, ReportedReason};
use attest_common::documents::plan::Operation;
use attest_common::objects::health::Health;
use attest_common::session::report::{ApplicationPhase, Phase};

use super::facts::{ApplicationFacts, DestinationFacts};
use super::view::View;

/// Age from which the last report of a disconnected cluster counts as stale.
const STALE_REPORT_AFTER: Duration = Duration::from_secs(60);

/// Status of an application.
#[derive(Clone, Debug)]
pub(crate) struct ApplicationStatus {
    pub phase: ApplicationPhase,
    pub conditions: Vec<Condition>,
    /// In the order of the facts.
    pub destinations: Vec<DestinationStatus>,
}

/// Status of one destination.
#[derive(Clone, Debug)]
pub(crate) struct DestinationStatus {
    pub cluster: String,
    pub namespace: String,
    pub phase: ApplicationPhase,
    pub reason: ReportedReason,
    pub message: String,
    /// Absent before the first report.
    pub health: Option<Health>,
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
    pub reason: ReportedReason,
    pub message: String,
    pub last_transition_time: Timestamp,
}

impl Condition {
    fn new(
        kind: &'static str,
        status: &'static str,
        reason: impl Into<ReportedReason>,
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
    let phase = ApplicationPhase::worst(destinations.iter().map(|destination| destination.phase));
    let mut conditions = conditions(facts.view.as_deref(), &destinations, phase);
    conditions.extend(facts.deleting.then(deleting));
    conditions.extend(disconnected(&destinations));
    ApplicationStatus { phase, conditions, destinations }
}

/// Returns the phase of an application, and `Verified`, `Failed` or `Pending`, for its log line.
pub(crate) fn summary(status: &ApplicationStatus) -> (ApplicationPhase, &'static str) {
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
        reason,
        message: message.to_owned(),
        health: report.map(|report| report.health),
        runs: report.is_some_and(|report| report.running.is_some()),
        connected: facts.connected,
        stale: facts.key.is_some() && !facts.connected && is_stale(facts.last_seen),
    }
}

fn is_stale(last_seen: Option<Duration>) -> bool {
    last_seen.is_none_or(|age| age > STALE_REPORT_AFTER)
}

/// Returns phase, reason and message of a destination.
fn phase(facts: &DestinationFacts) -> (ApplicationPhase, ReportedReason, &str) {
    if let Some(waiting) = &facts.waiting {
        return (waiting.phase, waiting.reason.into(), &waiting.message);
    }
    let Some(head) = &facts.head else {
        return match &facts.problem {
            Some(problem) => (ApplicationPhase::Unknown, problem.reason.into(), &problem.message),
            None if facts.reconciled => {
                (ApplicationPhase::Unknown, Reason::Pending.into(), "no directive was issued yet")
            }
            None => (
                ApplicationPhase::Unknown,
                Reason::Pending.into(),
                "not reconciled since the hub started",
            ),
        };
    };
    let report = facts.report.as_ref().map(|record| &record.report);
    // A later sequence was issued before a restore from a backup.
    let current = report.filter(|report| {
        let refused = report.refusal.as_ref().filter(|_| report.phase == Phase::Refused);
        let refused = refused.and_then(|refusal| refusal.sequence);
        report.sequence.max(refused) >= Some(head.sequence)
    });
    let is_judged_again =
        facts.resent && report.is_some_and(|report| report.phase == Phase::Refused);
    let Some(report) = current.filter(|_| !is_judged_again) else {
        let message = if is_judged_again {
            "sent to the spoke again; no report received yet"
        } else if facts.connected {
            "sent to the spoke; no report received yet"
        } else {
            "the spoke is not connected; it receives the directive when it reconnects"
        };
        return (ApplicationPhase::Progressing, Reason::AwaitingReport.into(), message);
    };
    if let Some(refusal) = report.refusal.as_ref().filter(|_| report.phase == Phase::Refused) {
        return (ApplicationPhase::Refused, refusal.reason.clone(), &refusal.message);
    }
    let phase = match report.phase {
        Phase::Progressing => ApplicationPhase::Progressing,
        Phase::Synced if head.runs_in(report) => ApplicationPhase::Synced,
        Phase::Synced => {
            let message = "the spoke runs another plan than the newest one";
            return (ApplicationPhase::Progressing, Reason::OtherPlan.into(), message);
        }
        Phase::OutOfSync => ApplicationPhase::OutOfSync,
        Phase::Degraded => ApplicationPhase::Degraded,
        Phase::Refused => ApplicationPhase::Refused,
        Phase::Removed if head.operation == Operation::Remove => ApplicationPhase::Synced,
        Phase::Removed => ApplicationPhase::Unknown,
    };
    (phase, report.reason.clone(), &report.message)
}

/// Returns `Ready` and the four conditions that it summarises.
fn conditions(
    view: Option<&View>,
    destinations: &[DestinationStatus],
    phase: ApplicationPhase,
) -> Vec<Condition> {
    let verified = verified(destinations);
    let synced = synced(destinations);
    let healthy = healthy(destinations);
    let source = source_read(view);
    let is_well = phase == ApplicationPhase::Synced && healthy.is_true() && source.is_true();
    let ready = if is_well {
        ready(destinations)
    } else {
        let cause = [&verified, &source, &synced, &healthy].into_iter().find(|c| !c.is_true());
        let (reason, message) = match cause {
            Some(cause) => (cause.reason.clone(), cause.message.as_str()),
            None => (Reason::Pending.into(), ""),
        };
        Condition::new("Ready", "False", reason, message)
    };
    vec![ready, verified, synced, healthy, source]
}

fn ready(destinations: &[DestinationStatus]) -> Condition {
    match destinations.iter().find(|destination| destination.stale) {
        Some(DestinationStatus { cluster, .. }) => {
            let message =
                format!("cluster {cluster} is not connected; its last report may be stale");
            Condition::new("Ready", "Unknown", Reason::SpokeDisconnected, message)
        }
        None => {
            Condition::new("Ready", "True", Reason::Ready, "all destinations run the signed commit")
        }
    }
}

fn located(destination: &DestinationStatus) -> String {
    let DestinationStatus { cluster, namespace, message, .. } = destination;
    format!("{cluster}/{namespace}: {message}")
}

fn first(
    destinations: &[DestinationStatus],
    phase: ApplicationPhase,
) -> Option<&DestinationStatus> {
    destinations.iter().find(|destination| destination.phase == phase)
}

fn verified(destinations: &[DestinationStatus]) -> Condition {
    if let Some(refused) = first(destinations, ApplicationPhase::Refused) {
        Condition::new("Verified", "False", refused.reason.clone(), located(refused))
    } else if let Some(awaiting) = first(destinations, ApplicationPhase::AwaitingReceipts) {
        Condition::new("Verified", "Unknown", awaiting.reason.clone(), located(awaiting))
    } else if destinations.iter().all(|destination| destination.runs) {
        Condition::new(
            "Verified",
            "True",
            Reason::Verified,
            "every destination runs a release signed by CI",
        )
    } else {
        Condition::new("Verified", "Unknown", Reason::Pending, "not every destination has reported")
    }
}

fn synced(destinations: &[DestinationStatus]) -> Condition {
    match destinations.iter().find(|destination| destination.phase != ApplicationPhase::Synced) {
        None => Condition::new("Synced", "True", Reason::Synced, "all destinations are synced"),
        Some(other) => Condition::new("Synced", "False", other.reason.clone(), located(other)),
    }
}

fn healthy(destinations: &[DestinationStatus]) -> Condition {
    let unwell = destinations.iter().find(|other| other.health != Some(Health::Current));
    match unwell.map(|other| (other, other.health)) {
        None => Condition::new("Healthy", "True", Reason::Current, "every object is Current"),
        Some((other, Some(health))) => {
            Condition::new("Healthy", "False", health.reason(), located(other))
        }
        Some((other, None)) => {
            Condition::new("Healthy", "Unknown", Reason::Pending, located(other))
        }
    }
}

fn source_read(view: Option<&View>) -> Condition {
    match view.map(|view| &view.problem) {
        None => Condition::new("SourceRead", "Unknown", Reason::Pending, "not reconciled yet"),
        Some(Some(problem)) => {
            Condition::new("SourceRead", "False", problem.reason, problem.message.as_str())
        }
        Some(None) => {
            Condition::new("SourceRead", "True", Reason::SourceRead, "the repository was read")
        }
    }
}

fn deleting() -> Condition {
    let message = "the application is being removed from its destinations";
    Condition::new("Deleting", "True", Reason::Deleting, message)
}

fn disconnected(destinations: &[DestinationStatus]) -> Option<Condition> {
    let away = destinations.iter().find(|destination| !destination.connected)?;
    let message = format!("cluster {} is not connected", away.cluster);
    Some(Condition::new("Connected", "False", Reason::SpokeDisconnected, message))
}

#[cfg(test)]
mod tests {
    use super::super::view::Waiting;
    use super::*;

    fn destination(cluster: &str, phase: ApplicationPhase, stale: bool) -> DestinationStatus {
        DestinationStatus {
            cluster: cluster.into(),
            namespace: "web".into(),
            phase,
            reason: ReportedReason::parse(phase.as_str()),
            message: "what it says".into(),
            health: Some(Health::Current),
            runs: true,
            connected: true,
            stale,
        }
    }

    #[test]
    fn ready_says_when_git_cannot_be_read_and_when_a_cluster_has_long_been_silent() {
        let unread = View {
            problem: Some(Waiting::unknown(Reason::RepositoryUnreachable, "connection refused")),
            ..View::default()
        };
        for (view, phase, silent, status, reason) in [
            (View::default(), ApplicationPhase::Synced, false, "True", "Ready"),
            (unread.clone(), ApplicationPhase::Synced, false, "False", "RepositoryUnreachable"),
            (View::default(), ApplicationPhase::Synced, true, "Unknown", "SpokeDisconnected"),
            // A known problem takes precedence over a stale report.
            (View::default(), ApplicationPhase::Degraded, true, "False", "Degraded"),
            (unread, ApplicationPhase::Synced, true, "False", "RepositoryUnreachable"),
        ] {
            let shown = [
                destination("staging", phase, silent),
                destination("production", ApplicationPhase::Synced, false),
            ];
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
}
