//! Events about a resource: one for each new reason of `Accepted` and `Ready`. Pure.

use attest_common::basics::ids::{Digest, Timestamp};
use attest_common::basics::reason::Reason;
use serde_json::{Value, json};

use super::document::{condition_in, in_seconds};
use super::observed::ObservedResource;
use crate::applications::crd::{API_VERSION, APPLICATION_KIND};

/// Component that reports the events.
const COMPONENT: &str = "attest-gitops-controller";
/// Conditions whose changes are events.
const ANNOUNCED: [&str; 2] = ["Accepted", "Ready"];
/// Reasons of a condition that is not true and does not indicate a failure.
const TRANSIENT: [Reason; 8] = [
    Reason::Pending,
    Reason::Progressing,
    Reason::AwaitingReport,
    Reason::OtherPlan,
    Reason::InProgress,
    Reason::AwaitingStage,
    Reason::AwaitingApproval,
    Reason::RolloutPaused,
];

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Announcement {
    pub(super) kind: EventKind,
    pub(super) reason: String,
    pub(super) message: String,
}

/// Type of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EventKind {
    Normal,
    Warning,
}

impl EventKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// Returns the events of a change from one status to another.
pub(super) fn announcements(previous: &Value, current: &Value) -> Vec<Announcement> {
    let changed = ANNOUNCED.iter().filter_map(|kind| {
        let condition = condition_in(current, kind)?;
        let was = condition_in(previous, kind);
        (was.map(state) != Some(state(condition))).then(|| announcement(condition))
    });
    let mut all: Vec<Announcement> = Vec::new();
    for announcement in changed {
        // `Ready` repeats the reason of a version that is not accepted.
        if all.iter().all(|other| other.reason != announcement.reason) {
            all.push(announcement);
        }
    }
    all
}

/// Returns status and reason of a condition.
fn state(condition: &Value) -> (&str, &str) {
    (text(condition, "status"), text(condition, "reason"))
}

fn announcement(condition: &Value) -> Announcement {
    let (status, reason) = state(condition);
    let is_normal =
        status == "True" || TRANSIENT.iter().any(|transient| transient.as_str() == reason);
    Announcement {
        kind: if is_normal { EventKind::Normal } else { EventKind::Warning },
        reason: reason.to_owned(),
        message: text(condition, "message").to_owned(),
    }
}

fn text<'a>(condition: &'a Value, field: &str) -> &'a str {
    condition.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// Returns the object of an event. Its name is the same for the same reason and generation, so that it is created once.
pub(super) fn event(
    resource: &ObservedResource,
    announcement: &Announcement,
    now: Timestamp,
) -> Value {
    let Announcement { kind, reason, message } = announcement;
    let ObservedResource { namespace, name, uid, generation, .. } = resource;
    let digest = Digest::of(format!("{uid}/{reason}/{generation}").as_bytes());
    json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"name": format!("{name}.{}", digest.short()), "namespace": namespace},
        "involvedObject": {
            "apiVersion": API_VERSION, "kind": APPLICATION_KIND, "name": name, "namespace": namespace, "uid": uid,
            "resourceVersion": resource.resource_version,
        },
        "type": kind.as_str(), "reason": reason, "message": message,
        "source": {"component": COMPONENT}, "reportingComponent": COMPONENT, "reportingInstance": COMPONENT,
        "firstTimestamp": in_seconds(now), "lastTimestamp": in_seconds(now), "count": 1,
    })
}

#[cfg(test)]
mod tests {
    use super::super::observed::sample;
    use super::*;

    fn status(conditions: &[(&str, &str, &str)]) -> Value {
        let conditions: Vec<Value> = conditions
            .iter()
            .map(|(kind, status, reason)| json!({"type": kind, "status": status, "reason": reason, "message": "m"}))
            .collect();
        json!({"conditions": conditions})
    }

    #[test]
    fn a_new_reason_is_announced_once() {
        let accepted = ("Accepted", "True", "Accepted");
        let progressing = ("Ready", "False", "Progressing");
        let refused = ("Ready", "False", "UntrustedKey");
        let staged = ("Ready", "False", "AwaitingStage");
        let unknown =
            [("Accepted", "False", "ClusterUnknown"), ("Ready", "False", "ClusterUnknown")];
        for (previous, current, expected) in [
            (&[][..], &[accepted, progressing][..], &["Normal Accepted", "Normal Progressing"][..]),
            (&[accepted, progressing], &[accepted, progressing], &[]),
            (&[accepted, progressing], &[accepted, refused], &["Warning UntrustedKey"]),
            (&[accepted, refused], &[accepted, ("Ready", "True", "Ready")], &["Normal Ready"]),
            (&[accepted, progressing], &unknown, &["Warning ClusterUnknown"]),
            (&[accepted, progressing], &[accepted, staged], &["Normal AwaitingStage"]),
        ] {
            let all = announcements(&status(previous), &status(current));
            let all: Vec<String> =
                all.iter().map(|one| format!("{} {}", one.kind.as_str(), one.reason)).collect();
            assert_eq!(all, expected);
        }
    }

    #[test]
    fn an_event_has_one_name_for_a_reason_of_a_generation() {
        let name = |generation, reason: &str| {
            let resource = ObservedResource { generation, ..sample("web") };
            let announcement = Announcement {
                kind: EventKind::Normal,
                reason: reason.into(),
                message: String::new(),
            };
            event(&resource, &announcement, Timestamp::UNIX_EPOCH)["metadata"]["name"].clone()
        };

        assert_eq!(name(1, "Ready"), name(1, "Ready"));
        assert_ne!(name(1, "Ready"), name(2, "Ready"));
        assert_ne!(name(1, "Ready"), name(1, "Degraded"));
    }
}
