//! Pods of a new ReplicaSet: the states in which they count as failed, also while old pods still serve. Pure.
//!
//! A Deployment reports a failure only at its progress deadline, 10 minutes by default. A container that does not start, or
//! an image that cannot be pulled, is evident sooner.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::basics::ids::Digest;

/// Time after which a pod that does not start counts as failed.
pub const POD_GRACE: Duration = Duration::from_secs(60);
/// Time after which a pod that no node takes counts as failed.
pub const POD_UNSCHEDULABLE_MAX: Duration = Duration::from_secs(5 * 60);
/// Restarts of a container since its pod was created that count as a crash loop, also while it runs.
pub const RESTARTS_MAX: u64 = 3;
/// Annotation of a ReplicaSet with the number of the Deployment's template.
const REVISION_ANNOTATION: &str = "deployment.kubernetes.io/revision";

/// A ReplicaSet of a Deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaSetState {
    pub uid: String,
    /// Name of the Deployment.
    pub deployment: String,
    /// Number of the Deployment's template; the highest is the newest.
    pub revision: u64,
}

/// A pod of a ReplicaSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodState {
    pub uid: String,
    /// UID of its ReplicaSet.
    pub replica_set: String,
    /// Restarts of its containers.
    pub restarts: u64,
    pub trouble: Option<Trouble>,
}

/// A state in which a pod counts as failed if it lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub message: String,
    pub after: Duration,
}

/// Returns the state of a ReplicaSet, unless it belongs to no Deployment.
pub fn replica_set_state(live: &Value) -> Option<ReplicaSetState> {
    let owner = controller(live, "Deployment")?;
    let annotations = live.pointer("/metadata/annotations");
    let revision = annotations.and_then(|all| all.get(REVISION_ANNOTATION)?.as_str()?.parse().ok());
    Some(ReplicaSetState {
        uid: text(live, "/metadata/uid")?.to_owned(),
        deployment: text(owner, "/name")?.to_owned(),
        revision: revision.unwrap_or(0),
    })
}

/// Returns the state of a pod, unless it belongs to no ReplicaSet or is being deleted.
pub fn pod_state(live: &Value) -> Option<PodState> {
    let owner = controller(live, "ReplicaSet")?;
    if live.pointer("/metadata/deletionTimestamp").is_some() {
        return None;
    }
    let restarts = containers(live).map(restarts).sum();
    Some(PodState {
        uid: text(live, "/metadata/uid")?.to_owned(),
        replica_set: text(owner, "/uid")?.to_owned(),
        restarts,
        trouble: trouble(live),
    })
}

fn trouble(live: &Value) -> Option<Trouble> {
    // Evicted, preempted, or on a node that is gone: not the doing of the pod.
    if condition(live, "DisruptionTarget").is_some_and(|c| text(c, "/status") == Some("True")) {
        return None;
    }
    let name = text(live, "/metadata/name").unwrap_or_default();
    if let Some(message) = containers(live).find_map(container_trouble) {
        return Some(Trouble { message: format!("Pod {name}: {message}"), after: POD_GRACE });
    }
    let scheduled = condition(live, "PodScheduled")?;
    let is_unschedulable = text(scheduled, "/status") == Some("False")
        && text(scheduled, "/reason") == Some("Unschedulable");
    let message = text(scheduled, "/message").unwrap_or_default();
    is_unschedulable.then(|| Trouble {
        message: format!("Pod {name}: no node takes it: {message}"),
        after: POD_UNSCHEDULABLE_MAX,
    })
}

fn container_trouble(status: &Value) -> Option<String> {
    let name = text(status, "/name").unwrap_or_default();
    let reason = text(status, "/state/waiting/reason").unwrap_or_default();
    let message = text(status, "/state/waiting/message").unwrap_or_default();
    let is_failing = matches!(
        reason,
        "CrashLoopBackOff"
            | "ImagePullBackOff"
            | "ErrImagePull"
            | "InvalidImageName"
            | "CreateContainerConfigError"
            | "CreateContainerError"
            | "RunContainerError"
    );
    if is_failing {
        return Some(format!("container {name} waits in {reason}: {message}"));
    }
    let restarts = restarts(status);
    let is_ready = status.pointer("/ready").and_then(Value::as_bool).unwrap_or(false);
    // Between two back-offs a crashing container runs for a moment.
    let has_crashed = text(status, "/lastState/terminated/reason") == Some("Error") && !is_ready;
    (restarts >= RESTARTS_MAX || has_crashed)
        .then(|| format!("container {name} has been restarted {restarts} times"))
}

fn containers(live: &Value) -> impl Iterator<Item = &Value> {
    ["/status/initContainerStatuses", "/status/containerStatuses"]
        .into_iter()
        .filter_map(|pointer| live.pointer(pointer)?.as_array())
        .flatten()
}

fn restarts(status: &Value) -> u64 {
    status.pointer("/restartCount").and_then(Value::as_u64).unwrap_or(0)
}

fn condition<'a>(live: &'a Value, kind: &str) -> Option<&'a Value> {
    let mut all = live.pointer("/status/conditions")?.as_array()?.iter();
    all.find(|condition| text(condition, "/type") == Some(kind))
}

/// Returns the reference to the controller of an object, if it is of this kind.
fn controller<'a>(live: &'a Value, kind: &str) -> Option<&'a Value> {
    let mut owners = live.pointer("/metadata/ownerReferences")?.as_array()?.iter();
    owners.find(|owner| {
        text(owner, "/kind") == Some(kind)
            && owner.pointer("/controller").and_then(Value::as_bool) == Some(true)
    })
}

fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer).and_then(Value::as_str)
}

/// The pods of the newest ReplicaSet of a Deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewestPods {
    /// The pods that count as failed if their state lasts, by UID.
    pub troubled: BTreeMap<String, Trouble>,
    /// Digest of the ReplicaSet and of the restarts of its pods: equal as long as nothing was started again.
    pub fingerprint: Option<Digest>,
}

/// Returns the pods of the newest ReplicaSet of every Deployment of a namespace, by its name.
pub fn newest_pods<'a>(
    replica_sets: impl Iterator<Item = &'a ReplicaSetState>,
    pods: impl Iterator<Item = &'a PodState>,
) -> BTreeMap<String, NewestPods> {
    let mut newest: BTreeMap<&str, &ReplicaSetState> = BTreeMap::new();
    for set in replica_sets {
        let known = newest.entry(&set.deployment).or_insert(set);
        if known.revision < set.revision {
            *known = set;
        }
    }
    let mut pods_of: BTreeMap<&str, Vec<&PodState>> = BTreeMap::new();
    for pod in pods {
        pods_of.entry(&pod.replica_set).or_default().push(pod);
    }
    let newest = newest.into_iter();
    newest
        .map(|(deployment, set)| {
            let mine = pods_of.get(set.uid.as_str()).map(Vec::as_slice).unwrap_or_default();
            let restarts: u64 = mine.iter().map(|pod| pod.restarts).sum();
            let troubled =
                mine.iter().filter_map(|pod| Some((pod.uid.clone(), pod.trouble.clone()?)));
            let pods = NewestPods {
                troubled: troubled.collect(),
                fingerprint: Some(Digest::of(format!("{} {restarts}", set.uid).as_bytes())),
            };
            (deployment.to_owned(), pods)
        })
        .collect()
}

/// Pods in trouble and the start of it, by the clock of the process that observes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TroubleClock(BTreeMap<String, (Instant, Trouble)>);

impl TroubleClock {
    /// Processes the pods that are in trouble now. The time of a pod goes on while it stays in trouble.
    pub fn observe(&mut self, troubled: &BTreeMap<String, Trouble>, now: Instant) {
        self.0.retain(|uid, _| troubled.contains_key(uid));
        for (uid, trouble) in troubled {
            let (_, known) = self.0.entry(uid.clone()).or_insert_with(|| (now, trouble.clone()));
            known.clone_from(trouble);
        }
    }

    /// Returns the message of a pod that has failed.
    pub fn failed(&self, now: Instant) -> Option<&str> {
        let mut failed = self.0.values().filter(|(since, trouble)| *since + trouble.after <= now);
        failed.next().map(|(_, trouble)| trouble.message.as_str())
    }

    /// Returns when the next pod has failed if nothing changes.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        let due = self.0.values().map(|(since, trouble)| *since + trouble.after);
        due.filter(|due| *due > now).min()
    }
}

#[cfg(test)]
mod tests;
