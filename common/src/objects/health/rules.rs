//! Health of each kind of object: one function per kind. Unknown kinds are judged by their conditions.

use serde_json::Value;

use super::{
    ADDRESS_WAIT_MAX, Health, PROGRESS_MAX, REPLICA_FAILURE_MAX, ROUTE_REFUSED_MAX, SETTLE_FOR,
    Turn, UNSCHEDULABLE_MAX,
};

/// State of an object as observed.
pub(super) struct Shown {
    pub(super) health: Health,
    pub(super) message: String,
    pub(super) turn: Option<Turn>,
    /// It can only go on after another object does: to wait for it would be to wait for ever.
    pub(super) waits_for_another: bool,
}

impl Shown {
    fn new(health: Health, message: impl Into<String>) -> Self {
        Self { health, message: message.into(), turn: None, waits_for_another: false }
    }

    /// The same, and what it becomes when `word` goes on for this version of the object.
    fn turning(
        self,
        live: &Value,
        word: &str,
        after: std::time::Duration,
        health: Health,
        message: impl Into<String>,
    ) -> Self {
        let uid = live.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default();
        let generation = int(live, "/metadata/generation").unwrap_or_default();
        let cause = format!("{word} {uid} {generation}");
        Self { turn: Some(Turn { cause, after, health, message: message.into() }), ..self }
    }
}

fn current() -> Shown {
    Shown::new(Health::Current, "")
}

fn progress(message: impl Into<String>) -> Shown {
    Shown::new(Health::InProgress, message)
}

fn failed(message: impl Into<String>) -> Shown {
    Shown::new(Health::Failed, message)
}

fn unseen() -> Shown {
    progress("its controller has not seen the newest version")
}

/// Judges `live` by its kind, after what holds for every kind.
pub(super) fn shown(group: &str, kind: &str, live: &Value) -> Shown {
    if live.pointer("/metadata/deletionTimestamp").is_some() {
        return Shown::new(Health::Terminating, "is being deleted");
    }
    let observed = int(live, "/status/observedGeneration");
    if let (Some(observed), Some(generation)) = (observed, int(live, "/metadata/generation"))
        && observed != generation
    {
        return unseen();
    }
    if condition(live, "Reconciling").is_some_and(|c| c.is_true()) {
        return progress("is reconciling");
    }
    if let Some(stalled) = condition(live, "Stalled").filter(Condition::holds) {
        return failed(stalled.message);
    }
    match (group, kind) {
        ("apps", "Deployment") => deployment(live),
        ("apps", "StatefulSet") => stateful_set(live),
        ("apps", "DaemonSet") => daemon_set(live),
        ("apps", "ReplicaSet") => replica_set(live),
        ("", "Pod") => pod(live),
        ("batch", "Job") => job(live),
        ("batch", "CronJob") => suspended_or_current(live),
        ("", "Service") => service(live),
        ("", "PersistentVolumeClaim") => volume_claim(live),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => definition(live),
        ("apiregistration.k8s.io", "APIService") => api_service(live),
        ("networking.k8s.io", "Ingress") => ingress(live),
        ("gateway.networking.k8s.io", "Gateway") => gateway(live),
        ("gateway.networking.k8s.io", kind) if kind.ends_with("Route") => route(live),
        ("autoscaling", "HorizontalPodAutoscaler") => autoscaler(live),
        ("policy", "PodDisruptionBudget") => disruption_budget(live),
        (group, _) if only_exists(group) => current(),
        _ => by_conditions(live),
    }
}

/// Groups of Kubernetes itself whose other kinds are done once they exist.
fn only_exists(group: &str) -> bool {
    matches!(
        group,
        "" | "apps"
            | "batch"
            | "policy"
            | "rbac.authorization.k8s.io"
            | "networking.k8s.io"
            | "admissionregistration.k8s.io"
            | "coordination.k8s.io"
            | "discovery.k8s.io"
            | "flowcontrol.apiserver.k8s.io"
            | "node.k8s.io"
            | "scheduling.k8s.io"
            | "storage.k8s.io"
    )
}

struct Condition {
    status: String,
    reason: String,
    message: String,
    /// Whether it is about the object's newest version; absent when it does not say.
    fresh: Option<bool>,
}

impl Condition {
    fn is_true(&self) -> bool {
        self.status == "True"
    }

    /// True, and not of an older version.
    fn holds(&self) -> bool {
        self.is_true() && self.fresh != Some(false)
    }

    /// Its message, or `otherwise` when it has none.
    fn says(&self, otherwise: &str) -> String {
        if self.message.is_empty() { otherwise.to_owned() } else { self.message.clone() }
    }
}

fn condition(live: &Value, wanted: &str) -> Option<Condition> {
    condition_of(live.pointer("/status")?, wanted, int(live, "/metadata/generation"))
}

/// Condition `wanted` of a part of an object whose version is `generation`.
fn condition_of(part: &Value, wanted: &str, generation: Option<i64>) -> Option<Condition> {
    let all = part.get("conditions")?.as_array()?;
    let found = all.iter().find(|c| c.get("type").and_then(Value::as_str) == Some(wanted))?;
    let text = |f: &str| found.get(f).and_then(Value::as_str).unwrap_or_default().to_owned();
    let observed = found.get("observedGeneration").and_then(Value::as_i64);
    let fresh = observed.zip(generation).map(|(observed, generation)| observed >= generation);
    Some(Condition {
        status: text("status"),
        reason: text("reason"),
        message: text("message"),
        fresh,
    })
}

fn int(live: &Value, pointer: &str) -> Option<i64> {
    live.pointer(pointer)?.as_i64()
}

fn text<'a>(live: &'a Value, pointer: &str) -> &'a str {
    live.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn count(live: &Value, field: &str) -> i64 {
    int(live, &format!("/status/{field}")).unwrap_or(0)
}

fn list<'a>(live: &'a Value, pointer: &str) -> &'a [Value] {
    live.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn is_observed(live: &Value) -> bool {
    int(live, "/status/observedGeneration").is_some()
}

/// Believed once it has looked like this for a moment, when nothing says which version it is about.
fn settling(live: &Value, shown: Shown) -> Shown {
    if is_observed(live) {
        return shown;
    }
    progress("was changed just now").turning(
        live,
        &format!("settling {}", shown.health.as_str()),
        SETTLE_FOR,
        shown.health,
        shown.message,
    )
}

fn deployment(live: &Value) -> Shown {
    if live.pointer("/spec/paused") == Some(&Value::Bool(true)) {
        return Shown::new(Health::Suspended, "is paused");
    }
    if !is_observed(live) {
        return unseen();
    }
    let progressing = condition(live, "Progressing");
    if let Some(stuck) = progressing.as_ref().filter(|c| c.reason == "ProgressDeadlineExceeded") {
        return failed(stuck.message.clone());
    }
    let shown = deployment_counts(live, progressing.as_ref());
    match condition(live, "ReplicaFailure").filter(Condition::is_true) {
        Some(failure) => {
            let message = failure.says("cannot make its pods");
            shown.turning(live, "ReplicaFailure", REPLICA_FAILURE_MAX, Health::Failed, message)
        }
        None => shown,
    }
}

fn deployment_counts(live: &Value, progressing: Option<&Condition>) -> Shown {
    let wanted = int(live, "/spec/replicas").unwrap_or(1);
    let counts = ["updatedReplicas", "availableReplicas", "readyReplicas"];
    if let Some(short) = counts.into_iter().find(|f| count(live, f) < wanted) {
        return progress(format!("{short} {} of {wanted}", count(live, short)));
    }
    if count(live, "replicas") != wanted {
        return progress(format!("{} replicas, {wanted} wanted", count(live, "replicas")));
    }
    let has_deadline =
        int(live, "/spec/progressDeadlineSeconds").is_some_and(|s| s < 2_147_483_647);
    if has_deadline && progressing.is_none_or(|c| c.reason != "NewReplicaSetAvailable") {
        return progress("the new ReplicaSet is not complete");
    }
    if condition(live, "Available").is_some_and(|c| !c.is_true()) {
        return progress("is not available");
    }
    current()
}

fn stateful_set(live: &Value) -> Shown {
    if !is_observed(live) {
        return unseen();
    }
    if text(live, "/spec/updateStrategy/type") == "OnDelete" {
        return current();
    }
    let wanted = int(live, "/spec/replicas").unwrap_or(1);
    if count(live, "replicas") != wanted || count(live, "readyReplicas") < wanted {
        return progress(format!("readyReplicas {} of {wanted}", count(live, "readyReplicas")));
    }
    let partition = int(live, "/spec/updateStrategy/rollingUpdate/partition").unwrap_or(0);
    let is_updating = if partition > 0 {
        count(live, "updatedReplicas") < wanted - partition
    } else {
        text(live, "/status/currentRevision") != text(live, "/status/updateRevision")
            || count(live, "currentReplicas") < wanted
    };
    if is_updating { progress("is updating") } else { current() }
}

fn daemon_set(live: &Value) -> Shown {
    if !is_observed(live) {
        return unseen();
    }
    let wanted = count(live, "desiredNumberScheduled");
    let counts =
        ["currentNumberScheduled", "updatedNumberScheduled", "numberAvailable", "numberReady"];
    let updates = text(live, "/spec/updateStrategy/type") != "OnDelete";
    match counts.into_iter().find(|f| updates && count(live, f) < wanted) {
        Some(short) => progress(format!("{short} {} of {wanted}", count(live, short))),
        None => current(),
    }
}

fn replica_set(live: &Value) -> Shown {
    if !is_observed(live) {
        return unseen();
    }
    if let Some(failure) = condition(live, "ReplicaFailure").filter(Condition::is_true) {
        return progress(failure.says("cannot make its pods"));
    }
    let wanted = int(live, "/spec/replicas").unwrap_or(1);
    let counts = ["fullyLabeledReplicas", "availableReplicas", "readyReplicas"];
    if let Some(short) = counts.into_iter().find(|f| count(live, f) < wanted) {
        return progress(format!("{short} {} of {wanted}", count(live, short)));
    }
    let too_many = count(live, "replicas") > wanted;
    if too_many { progress("has more replicas than wanted") } else { current() }
}

fn pod(live: &Value) -> Shown {
    let phase = live.pointer("/status/phase").and_then(Value::as_str).unwrap_or("Pending");
    if phase == "Failed" {
        return failed("its phase is Failed");
    }
    if phase == "Succeeded" {
        return current();
    }
    let containers = ["/status/initContainerStatuses", "/status/containerStatuses"];
    let crashing = containers
        .iter()
        .flat_map(|pointer| list(live, pointer))
        .find(|container| text(container, "/state/waiting/reason") == "CrashLoopBackOff");
    if let Some(container) = crashing {
        return failed(format!("container {} is in CrashLoopBackOff", text(container, "/name")));
    }
    let unscheduled =
        condition(live, "PodScheduled").filter(|c| !c.is_true() && c.reason == "Unschedulable");
    if let Some(found) = unscheduled {
        let message = found.says("is unschedulable");
        let shown = progress(message.clone());
        return shown.turning(live, "Unschedulable", UNSCHEDULABLE_MAX, Health::Failed, message);
    }
    if phase == "Running" && condition(live, "Ready").is_some_and(|c| c.is_true()) {
        return current();
    }
    progress(format!("its phase is {phase}"))
}

fn job(live: &Value) -> Shown {
    if let Shown { health: Health::Suspended, .. } = suspended_or_current(live) {
        return suspended_or_current(live);
    }
    if let Some(failure) = condition(live, "Failed").filter(Condition::is_true) {
        return failed(failure.message);
    }
    let complete = condition(live, "Complete").is_some_and(|c| c.is_true());
    if complete { current() } else { progress("has not finished") }
}

fn suspended_or_current(live: &Value) -> Shown {
    if live.pointer("/spec/suspend") == Some(&Value::Bool(true)) {
        return Shown::new(Health::Suspended, "is suspended");
    }
    current()
}

fn service(live: &Value) -> Shown {
    if text(live, "/spec/type") != "LoadBalancer" || has_address(live) {
        return current();
    }
    let long = "still has no address; does this cluster have load balancers?";
    let shown = progress("has no address yet");
    shown.turning(live, "NoAddress", ADDRESS_WAIT_MAX, Health::InProgress, long)
}

fn ingress(live: &Value) -> Shown {
    if has_address(live) { current() } else { progress("has no address yet") }
}

fn has_address(live: &Value) -> bool {
    !list(live, "/status/loadBalancer/ingress").is_empty()
}

fn volume_claim(live: &Value) -> Shown {
    match live.pointer("/status/phase").and_then(Value::as_str).unwrap_or("Pending") {
        "Bound" => current(),
        "Lost" => failed("its volume is lost"),
        "Pending" if waits_for_consumer(live) => Shown {
            waits_for_another: true,
            ..progress("waits for its first consumer, or for somebody who provisions its class")
        },
        phase => progress(format!("its phase is {phase}")),
    }
}

/// Kubernetes names the provisioner on the claim the moment a volume is to be made: at once, or with
/// a class of `WaitForFirstConsumer` only after a pod was placed.
fn waits_for_consumer(live: &Value) -> bool {
    let annotations = live.pointer("/metadata/annotations");
    let provisioner = annotations.and_then(|all| {
        all.get("volume.kubernetes.io/storage-provisioner")
            .or_else(|| all.get("volume.beta.kubernetes.io/storage-provisioner"))
    });
    !text(live, "/spec/storageClassName").is_empty()
        && text(live, "/spec/volumeName").is_empty()
        && provisioner.is_none()
}

fn definition(live: &Value) -> Shown {
    if let Some(clash) = condition(live, "NamesAccepted").filter(|c| c.status == "False") {
        return failed(clash.message);
    }
    match condition(live, "Established") {
        Some(c) if c.is_true() => current(),
        Some(c) if c.status == "False" && c.reason != "Installing" => failed(c.message),
        Some(_) | None => progress("is not established"),
    }
}

fn api_service(live: &Value) -> Shown {
    match condition(live, "Available") {
        Some(c) if c.is_true() => settling(live, current()),
        Some(c) => progress(c.says("is not available")),
        None => progress("is not available"),
    }
}

fn gateway(live: &Value) -> Shown {
    let Some(status) = live.get("status") else { return unseen() };
    let listeners = list(live, "/status/listeners");
    if listeners.len() < list(live, "/spec/listeners").len() {
        return unseen();
    }
    let whole = [(status, ["Accepted", "Programmed"].as_slice())];
    let parts = listeners.iter().map(|part| (part, ["Accepted", "ResolvedRefs"].as_slice()));
    accepted(live, whole.into_iter().chain(parts))
}

fn route(live: &Value) -> Shown {
    let parents = list(live, "/status/parents");
    if parents.is_empty() || parents.len() < list(live, "/spec/parentRefs").len() {
        return progress("no gateway has looked at it yet");
    }
    accepted(live, parents.iter().map(|part| (part, ["Accepted", "ResolvedRefs"].as_slice())))
}

/// Current when every part has every condition named with it, for this version.
fn accepted<'a>(
    live: &Value,
    parts: impl Iterator<Item = (&'a Value, &'static [&'static str])>,
) -> Shown {
    let generation = int(live, "/metadata/generation");
    let mut refused = None;
    for (part, wanted) in parts {
        for name in wanted {
            match condition_of(part, name, generation) {
                None => return unseen(),
                Some(found) if found.fresh == Some(false) => return unseen(),
                Some(found) if found.is_true() => {}
                Some(found) => {
                    let message = found.says("is not accepted");
                    refused.get_or_insert((message, *name, found.status == "False"));
                }
            }
        }
    }
    match refused {
        None => current(),
        Some((message, name, true)) => progress(message.clone()).turning(
            live,
            name,
            ROUTE_REFUSED_MAX,
            Health::Failed,
            message,
        ),
        Some((message, ..)) => progress(message),
    }
}

fn autoscaler(live: &Value) -> Shown {
    let bad = |found: &Condition, name: &str| {
        let reason = found.reason.as_str();
        let no_metric = reason.starts_with("FailedGet") && reason.ends_with("Metric");
        match name {
            "AbleToScale" => matches!(reason, "FailedGetScale" | "FailedUpdateScale"),
            _ => no_metric || matches!(reason, "FailedComputeMetricsReplicas" | "InvalidSelector"),
        }
    };
    for name in ["AbleToScale", "ScalingActive"] {
        let found = condition(live, name).filter(|c| c.status == "False" && bad(c, name));
        if let Some(found) = found {
            return failed(found.message);
        }
    }
    let holds = |name| condition(live, name).is_some_and(|c| c.is_true());
    if holds("AbleToScale") || holds("ScalingLimited") {
        current()
    } else {
        progress("its controller has not judged it yet")
    }
}

fn disruption_budget(live: &Value) -> Shown {
    if !is_observed(live) {
        return unseen();
    }
    let failure = condition(live, "DisruptionAllowed")
        .filter(|c| c.status == "False" && c.reason == "SyncFailed");
    failure.map_or_else(current, |found| failed(found.message))
}

fn by_conditions(live: &Value) -> Shown {
    for bad in ["Failed", "Degraded"] {
        if let Some(found) = condition(live, bad).filter(Condition::holds) {
            return settled_by(&found, live, failed(found.says("has failed")));
        }
    }
    let decides = |name: &str| condition(live, name);
    let instead = ["Succeeded", "Available", "Healthy", "Established"];
    let mut deciding: Vec<Condition> = match decides("Ready") {
        Some(ready) => vec![ready],
        None => instead.into_iter().filter_map(decides).collect(),
    };
    deciding.sort_by_key(|found| !found.is_true());
    match deciding.first() {
        None => settling(live, current()),
        Some(found) if found.fresh == Some(false) => unseen(),
        Some(found) if found.is_true() => settled_by(found, live, current()),
        Some(found) => {
            let message = found.says("is not ready");
            let shown = progress(message.clone());
            shown.turning(live, "NotReady", PROGRESS_MAX, Health::Failed, message)
        }
    }
}

/// Believed at once when the condition itself says which version it is about.
fn settled_by(found: &Condition, live: &Value, shown: Shown) -> Shown {
    if found.fresh == Some(true) { shown } else { settling(live, shown) }
}
