//! Phases and conditions of an application. Pure: every rule is a function of the facts.

use std::time::Duration;

use attest_common::basics::ids::Timestamp;
use attest_common::basics::reason::{Reason, ReportedReason};
use attest_common::documents::plan::Operation;
use attest_common::objects::health::Health;
use attest_common::session::report::{ApplicationPhase, Phase};

use super::facts::{ApplicationFacts, DestinationFacts};
use super::tally::{Counts, DestinationStatus};
use super::view::View;

/// Age from which the last report of a disconnected cluster counts as stale.
const STALE_REPORT_AFTER: Duration = Duration::from_secs(60);

/// Status of an application.
#[derive(Clone, Debug)]
pub(crate) struct ApplicationStatus {
    pub counts: Counts,
    pub conditions: Vec<Condition>,
    /// In the order of the facts.
    pub destinations: Vec<DestinationStatus>,
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
    let counts = Counts::of(&destinations);
    let source = source_read(facts.view.as_deref());
    let mut conditions = conditions(source, &destinations, &counts);
    conditions.extend(facts.deleting.then(deleting));
    conditions.extend(disconnected(&destinations));
    ApplicationStatus { counts, conditions, destinations }
}

/// Returns the type and the status of every condition, without their reasons and messages.
pub(crate) fn condition_statuses(
    counts: &Counts,
    view: Option<&View>,
    is_deleting: bool,
) -> Vec<(&'static str, &'static str)> {
    let source = source_read(view).status;
    let mut statuses = vec![
        ("Ready", ready_status(counts, source)),
        ("Verified", verified_status(counts)),
        ("Synced", synced_status(counts)),
        ("Healthy", healthy_status(counts)),
        ("SourceRead", source),
    ];
    statuses.extend(is_deleting.then_some(("Deleting", "True")));
    statuses.extend((counts.disconnected > 0).then_some(("Connected", "False")));
    statuses
}

/// Returns the phase of an application, and `Verified`, `Failed` or `Pending`, for its log line.
pub(crate) fn summary(counts: &Counts) -> (ApplicationPhase, &'static str) {
    let word = match verified_status(counts) {
        "True" => "Verified",
        "False" => "Failed",
        _ => "Pending",
    };
    (counts.phase(), word)
}

fn ready_status(counts: &Counts, source: &'static str) -> &'static str {
    let is_well = synced_status(counts) == "True" && healthy_status(counts) == "True";
    match (counts.total > 0 && is_well && source == "True", counts.stale) {
        (false, _) => "False",
        (true, 0) => "True",
        (true, _) => "Unknown",
    }
}

fn verified_status(counts: &Counts) -> &'static str {
    if counts.in_phase(ApplicationPhase::Refused) > 0 {
        "False"
    } else if counts.in_phase(ApplicationPhase::AwaitingReceipts) == 0
        && counts.running == counts.total
    {
        "True"
    } else {
        "Unknown"
    }
}

fn synced_status(counts: &Counts) -> &'static str {
    if counts.in_phase(ApplicationPhase::Synced) == counts.total { "True" } else { "False" }
}

fn healthy_status(counts: &Counts) -> &'static str {
    match (counts.unhealthy, counts.unreported) {
        (0, 0) => "True",
        (0, _) => "Unknown",
        (_, _) => "False",
    }
}

/// Returns the status of one destination.
pub(crate) fn destination_status(facts: &DestinationFacts) -> DestinationStatus {
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
    source: Condition,
    destinations: &[DestinationStatus],
    counts: &Counts,
) -> Vec<Condition> {
    let verified = verified(destinations, counts);
    let synced = synced(destinations, counts);
    let healthy = healthy(destinations, counts);
    let ready = match ready_status(counts, source.status) {
        "False" => {
            let cause = [&verified, &source, &synced, &healthy].into_iter().find(|c| !c.is_true());
            let (reason, message) = match cause {
                Some(cause) => (cause.reason.clone(), cause.message.as_str()),
                None => (Reason::Pending.into(), ""),
            };
            Condition::new("Ready", "False", reason, message)
        }
        _ => ready(destinations),
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

fn verified(destinations: &[DestinationStatus], counts: &Counts) -> Condition {
    let status = verified_status(counts);
    let cause = first(destinations, ApplicationPhase::Refused)
        .or_else(|| first(destinations, ApplicationPhase::AwaitingReceipts));
    match cause {
        Some(cause) => Condition::new("Verified", status, cause.reason.clone(), located(cause)),
        None if status == "True" => {
            let message = "every destination runs a release signed by CI";
            Condition::new("Verified", status, Reason::Verified, message)
        }
        None => Condition::new(
            "Verified",
            status,
            Reason::Pending,
            "not every destination has reported",
        ),
    }
}

fn synced(destinations: &[DestinationStatus], counts: &Counts) -> Condition {
    let status = synced_status(counts);
    match destinations.iter().find(|destination| destination.phase != ApplicationPhase::Synced) {
        None => Condition::new("Synced", status, Reason::Synced, "all destinations are synced"),
        Some(other) => Condition::new("Synced", status, other.reason.clone(), located(other)),
    }
}

/// A health that was reported takes precedence over one that is not known.
fn healthy(destinations: &[DestinationStatus], counts: &Counts) -> Condition {
    let status = healthy_status(counts);
    let unhealthy = destinations.iter().find_map(|destination| {
        let health = destination.health.filter(|health| *health != Health::Current)?;
        Some((health.reason(), destination))
    });
    let unreported = destinations.iter().find(|destination| destination.health.is_none());
    match (unhealthy, unreported) {
        (Some((reason, other)), _) => Condition::new("Healthy", status, reason, located(other)),
        (None, Some(other)) => Condition::new("Healthy", status, Reason::Pending, located(other)),
        (None, None) => {
            Condition::new("Healthy", status, Reason::Current, "every object is Current")
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
            let counts = Counts::of(&shown);
            let all = conditions(source_read(Some(&view)), &shown, &counts);
            let statuses = all.iter().map(|condition| (condition.kind, condition.status));
            assert_eq!(
                statuses.collect::<Vec<_>>(),
                condition_statuses(&counts, Some(&view), false)
            );
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
