//! The status of a resource as a document, and whether it differs from the one that is there. Pure.

use attest_common::basics::ids::Timestamp;
use attest_common::basics::reason::{Reason, ReportedReason};
use attest_common::basics::text;
use attest_common::session::report::ApplicationPhase;
use serde_json::{Map, Value, json};

use crate::applications::facts::ApplicationFacts;
use crate::applications::status::ApplicationStatus;

/// Most destinations of a status: the worst ones.
pub(super) const DESTINATIONS_MAX: usize = 50;
/// Characters of a commit in the column of `kubectl get`.
const SHORT_REVISION_CHARACTERS: usize = 12;

/// Outcome of the newest version of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Acceptance {
    Accepted,
    /// The last accepted version, if there is one, stays in force.
    Rejected {
        reason: ReportedReason,
        message: String,
    },
}

/// An application as its resource shows it.
#[derive(Debug)]
pub(super) struct Shown<'a> {
    pub(super) generation: i64,
    /// Key id of the hub.
    pub(super) hub: &'a str,
    pub(super) acceptance: &'a Acceptance,
    /// Absent before a version was accepted.
    pub(super) application: Option<(&'a ApplicationFacts, &'a ApplicationStatus)>,
    /// Reason that a removal does not progress.
    pub(super) removal_refused: Option<&'a (ReportedReason, String)>,
}

/// Returns the status to write. Transition times are those of `current` where a condition keeps its status.
pub(super) fn status_document(shown: &Shown<'_>, current: &Value, now: Timestamp) -> Value {
    let mut status = json!({
        "observedGeneration": shown.generation,
        "hub": shown.hub,
        "conditions": conditions(shown, current, now),
    });
    let Some((facts, application)) = shown.application else {
        set(&mut status, "phase", ApplicationPhase::Unknown.as_str().into());
        return status;
    };
    let counts = &application.counts;
    let total = facts.destinations.len();
    let synced = counts.by_phase().find(|(phase, _)| *phase == ApplicationPhase::Synced);
    set(&mut status, "phase", counts.phase().as_str().into());
    set(
        &mut status,
        "clusters",
        format!("{}/{total}", synced.map_or(0, |(_, count)| count)).into(),
    );
    if let Some(revision) = facts.view.as_ref().and_then(|view| view.revision.as_ref()) {
        let short: String = revision.chars().take(SHORT_REVISION_CHARACTERS).collect();
        set(&mut status, "revision", revision.as_str().into());
        set(&mut status, "shortRevision", short.into());
    }
    let listed = destinations(facts, application);
    let omitted = total.saturating_sub(listed.len());
    set(&mut status, "destinations", listed.into());
    if omitted > 0 {
        set(&mut status, "destinationsOmitted", omitted.into());
    }
    status
}

fn set(status: &mut Value, field: &str, value: Value) {
    if let Value::Object(fields) = status {
        fields.insert(field.to_owned(), value);
    }
}

fn conditions(shown: &Shown<'_>, current: &Value, now: Timestamp) -> Vec<Value> {
    let mut all = vec![accepted(shown.acceptance)];
    match (shown.application, shown.acceptance) {
        (Some((_, status)), acceptance) => {
            all.extend(status.conditions.iter().map(|condition| {
                (
                    condition.kind,
                    condition.status,
                    condition.reason.clone(),
                    condition.message.clone(),
                )
            }));
            // `kubectl wait` must not take the state of an earlier version for that of this one.
            if let Acceptance::Rejected { reason, message } = acceptance {
                let message = format!("{message}; the last accepted version stays in force");
                replace(&mut all, ("Ready", "False", reason.clone(), message));
            }
        }
        (None, Acceptance::Rejected { reason, message }) => {
            all.push(("Ready", "False", reason.clone(), message.clone()));
        }
        (None, Acceptance::Accepted) => {}
    }
    if let Some((reason, message)) = shown.removal_refused {
        replace(&mut all, ("Deleting", "False", reason.clone(), message.clone()));
    }
    all.into_iter().map(|condition| document(condition, shown.generation, current, now)).collect()
}

/// Type, status, reason and message of a condition.
type ShownCondition = (&'static str, &'static str, ReportedReason, String);

fn accepted(acceptance: &Acceptance) -> ShownCondition {
    match acceptance {
        Acceptance::Accepted => {
            ("Accepted", "True", Reason::Accepted.into(), "the hub uses this version".to_owned())
        }
        Acceptance::Rejected { reason, message } => {
            ("Accepted", "False", reason.clone(), message.clone())
        }
    }
}

fn replace(all: &mut Vec<ShownCondition>, condition: ShownCondition) {
    match all.iter_mut().find(|other| other.0 == condition.0) {
        Some(other) => *other = condition,
        None => all.push(condition),
    }
}

fn document(
    (kind, status, reason, message): ShownCondition,
    generation: i64,
    current: &Value,
    now: Timestamp,
) -> Value {
    let previous = condition_in(current, kind);
    let unchanged =
        previous.filter(|previous| previous.get("status").is_some_and(|was| was == status));
    let time = unchanged.and_then(|previous| previous.get("lastTransitionTime").cloned());
    json!({
        "type": kind, "status": status, "reason": reason.as_str(),
        "message": text::message(&message),
        "lastTransitionTime": time.unwrap_or_else(|| in_seconds(now).into()),
        "observedGeneration": generation,
    })
}

/// Returns the condition of this type in a status.
pub(super) fn condition_in<'a>(status: &'a Value, kind: &str) -> Option<&'a Value> {
    let conditions = status.get("conditions")?.as_array()?;
    conditions.iter().find(|condition| condition.get("type").is_some_and(|found| found == kind))
}

/// Returns a time as Kubernetes writes it.
pub(super) fn in_seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Returns the worst destinations, in an order that does not change by itself.
fn destinations(facts: &ApplicationFacts, status: &ApplicationStatus) -> Vec<Value> {
    let mut all: Vec<_> = status.destinations.iter().zip(&facts.destinations).collect();
    all.sort_by(|(a, _), (b, _)| {
        b.phase
            .cmp(&a.phase)
            .then_with(|| (&a.cluster, &a.namespace).cmp(&(&b.cluster, &b.namespace)))
    });
    // Removal from a cluster that was replaced and the new cluster of its name have the same place.
    all.dedup_by(|(a, _), (b, _)| (&a.cluster, &a.namespace) == (&b.cluster, &b.namespace));
    let listed = all.into_iter().take(DESTINATIONS_MAX);
    listed
        .map(|(status, facts)| {
            let mut fields = Map::new();
            for (field, text) in [
                ("cluster", Some(status.cluster.as_str())),
                ("namespace", Some(status.namespace.as_str())),
                ("phase", Some(status.phase.as_str())),
                ("reason", Some(status.reason.as_str())),
                ("health", status.health.map(|health| health.as_str())),
                ("revision", facts.deployed_commit.as_deref()),
            ] {
                if let Some(text) = text {
                    fields.insert(field.to_owned(), text.into());
                }
            }
            let message = text::message(&status.message);
            fields.insert("message".to_owned(), message.into());
            Value::Object(fields)
        })
        .collect()
}

/// Returns true when two statuses differ in something other than times.
pub(super) fn differs(current: &Value, wanted: &Value) -> bool {
    without_times(current) != without_times(wanted)
}

fn without_times(status: &Value) -> Value {
    let mut status = status.clone();
    for condition in
        status.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten()
    {
        if let Value::Object(fields) = condition {
            fields.remove("lastTransitionTime");
        }
    }
    status
}

#[cfg(test)]
mod tests {
    use crate::applications::facts::DestinationFacts;
    use crate::applications::status::status;
    use crate::applications::view::Waiting;

    use super::*;

    fn destination(cluster: &str, waiting: Option<Waiting>) -> DestinationFacts {
        DestinationFacts {
            cluster: cluster.into(),
            namespace: "web".into(),
            key: None,
            head: None,
            report: None,
            resent: false,
            connected: true,
            last_seen: None,
            waiting,
            problem: None,
            reconciled: true,
            deployed_commit: None,
        }
    }

    fn facts(destinations: Vec<DestinationFacts>) -> ApplicationFacts {
        ApplicationFacts { view: None, destinations, deleting: false, generation: 1 }
    }

    fn written(
        facts: &ApplicationFacts,
        acceptance: &Acceptance,
        current: &Value,
        second: i64,
    ) -> Value {
        let shown = Shown {
            generation: 3,
            hub: "ed25519:aa",
            acceptance,
            application: Some((facts, &status(facts))),
            removal_refused: None,
        };
        status_document(&shown, current, Timestamp::from_second(second).unwrap())
    }

    fn time<'a>(status: &'a Value, kind: &str) -> &'a str {
        condition_in(status, kind).unwrap()["lastTransitionTime"].as_str().unwrap()
    }

    #[test]
    fn only_a_change_of_more_than_time_is_written_and_times_are_kept() {
        let pending = facts(vec![destination("staging", None)]);
        let first = written(&pending, &Acceptance::Accepted, &Value::Null, 1);
        assert!(differs(&Value::Null, &first));
        assert!(!differs(&first, &written(&pending, &Acceptance::Accepted, &Value::Null, 2)));

        let refused = Waiting::refused(Reason::UntrustedKey, "signed by another key");
        let refused = facts(vec![destination("staging", Some(refused))]);
        let second = written(&refused, &Acceptance::Accepted, &first, 2);

        assert!(differs(&first, &second));
        assert_eq!(time(&second, "Ready"), "1970-01-01T00:00:01Z", "its status is the same");
        assert_eq!(time(&second, "Verified"), "1970-01-01T00:00:02Z", "its status has changed");
    }

    #[test]
    fn the_worst_destinations_are_listed_and_the_others_counted() {
        let mut all: Vec<_> =
            (0..DESTINATIONS_MAX + 2).map(|n| destination(&format!("c{n:02}"), None)).collect();
        all.push(destination("worst", Some(Waiting::refused(Reason::UntrustedKey, "refused"))));

        let status = written(&facts(all), &Acceptance::Accepted, &Value::Null, 1);

        let listed = status["destinations"].as_array().unwrap();
        assert_eq!(listed.len(), DESTINATIONS_MAX);
        assert_eq!(
            (&listed[0]["cluster"], &listed[1]["cluster"]),
            (&json!("worst"), &json!("c00"))
        );
        assert_eq!(status["destinationsOmitted"], 3);
        assert_eq!(status["clusters"], "0/53");
        assert_eq!(status["phase"], "Refused");
    }

    #[test]
    fn a_rejected_version_is_not_ready_though_the_accepted_one_runs() {
        let message = "spec.destination.cluster: is missing".to_owned();
        let rejected = Acceptance::Rejected { reason: Reason::ClusterUnknown.into(), message };

        let status = written(&facts(vec![destination("a", None)]), &rejected, &Value::Null, 1);

        for kind in ["Accepted", "Ready"] {
            let condition = condition_in(&status, kind).unwrap();
            assert_eq!(
                (&condition["status"], &condition["reason"]),
                (&json!("False"), &json!("ClusterUnknown"))
            );
            assert_eq!(condition["observedGeneration"], 3);
        }
    }
}
