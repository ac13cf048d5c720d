//! Health of a live object, by kind: a pure function of what the API server shows.
//!
//! Follows kstatus where it decides and goes further where it does not (a running Job is not done,
//! a PVC may be lost). What to do about bad health is decided elsewhere.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How an object is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Health {
    Current,
    Suspended,
    InProgress,
    NotFound,
    Terminating,
    Failed,
}

impl Health {
    /// The word that people see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Current => "Current",
            Self::Suspended => "Suspended",
            Self::InProgress => "InProgress",
            Self::NotFound => "NotFound",
            Self::Terminating => "Terminating",
            Self::Failed => "Failed",
        }
    }
}

/// Health of `live`, and a sentence when it is not `Current`.
pub fn health(group: &str, kind: &str, live: &Value) -> (Health, String) {
    if live.pointer("/metadata/deletionTimestamp").is_some() {
        return (Health::Terminating, "is being deleted".to_owned());
    }
    let observed = int(live, "/status/observedGeneration");
    if let (Some(observed), Some(generation)) = (observed, int(live, "/metadata/generation"))
        && observed != generation
    {
        return progress("its controller has not seen the newest version");
    }
    if condition(live, "Reconciling").is_some_and(|c| c.status == "True") {
        return progress("is reconciling");
    }
    if let Some(stalled) = condition(live, "Stalled").filter(|c| c.status == "True") {
        return (Health::Failed, stalled.message);
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
        ("networking.k8s.io", "Ingress") => ingress(live),
        ("autoscaling", "HorizontalPodAutoscaler") => autoscaler(live),
        ("policy", "PodDisruptionBudget") => current(),
        _ => by_conditions(live),
    }
}

/// True when the application is not done before this kind of object is `Current`.
pub fn gates(group: &str, kind: &str) -> bool {
    !matches!(
        (group, kind),
        ("batch", "CronJob")
            | ("", "Service" | "Pod" | "PersistentVolumeClaim")
            | ("networking.k8s.io", "Ingress")
            | ("autoscaling", "HorizontalPodAutoscaler")
            | ("policy", "PodDisruptionBudget")
    )
}

/// Health of the whole: the worst of its gating objects.
pub fn aggregate(gating: impl IntoIterator<Item = Health>) -> Health {
    gating.into_iter().max().unwrap_or(Health::Current)
}

struct Condition {
    status: String,
    reason: String,
    message: String,
}

fn condition(live: &Value, wanted: &str) -> Option<Condition> {
    let all = live.pointer("/status/conditions")?.as_array()?;
    let found = all.iter().find(|c| c.get("type").and_then(Value::as_str) == Some(wanted))?;
    let text = |f: &str| found.get(f).and_then(Value::as_str).unwrap_or_default().to_owned();
    Some(Condition { status: text("status"), reason: text("reason"), message: text("message") })
}

fn int(live: &Value, pointer: &str) -> Option<i64> {
    live.pointer(pointer)?.as_i64()
}

fn count(live: &Value, field: &str) -> i64 {
    int(live, &format!("/status/{field}")).unwrap_or(0)
}

fn current() -> (Health, String) {
    (Health::Current, String::new())
}

fn progress(message: impl Into<String>) -> (Health, String) {
    (Health::InProgress, message.into())
}

fn deployment(live: &Value) -> (Health, String) {
    if live.pointer("/spec/paused") == Some(&Value::Bool(true)) {
        return (Health::Suspended, "is paused".to_owned());
    }
    if int(live, "/status/observedGeneration").is_none() {
        return progress("its controller has not seen it");
    }
    let progressing = condition(live, "Progressing");
    if let Some(stuck) = progressing.as_ref().filter(|c| c.reason == "ProgressDeadlineExceeded") {
        return (Health::Failed, stuck.message.clone());
    }
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
    if condition(live, "Available").is_some_and(|c| c.status != "True") {
        return progress("is not available");
    }
    current()
}

fn stateful_set(live: &Value) -> (Health, String) {
    if live.pointer("/spec/updateStrategy/type").and_then(Value::as_str) == Some("OnDelete") {
        return current();
    }
    let wanted = int(live, "/spec/replicas").unwrap_or(1);
    if count(live, "replicas") != wanted || count(live, "readyReplicas") < wanted {
        return progress(format!("readyReplicas {} of {wanted}", count(live, "readyReplicas")));
    }
    let partition = int(live, "/spec/updateStrategy/rollingUpdate/partition").unwrap_or(0);
    if partition > 0 {
        let updated = count(live, "updatedReplicas");
        return if updated >= wanted - partition { current() } else { progress("is updating") };
    }
    let revision = |f: &str| live.pointer(&format!("/status/{f}")).and_then(Value::as_str);
    if revision("currentRevision") != revision("updateRevision") {
        return progress("is updating");
    }
    if count(live, "currentReplicas") < wanted { progress("is updating") } else { current() }
}

fn daemon_set(live: &Value) -> (Health, String) {
    if int(live, "/status/observedGeneration").is_none() {
        return progress("its controller has not seen it");
    }
    let wanted = count(live, "desiredNumberScheduled");
    let counts =
        ["currentNumberScheduled", "updatedNumberScheduled", "numberAvailable", "numberReady"];
    let updates =
        live.pointer("/spec/updateStrategy/type").and_then(Value::as_str) != Some("OnDelete");
    match counts.into_iter().find(|f| updates && count(live, f) < wanted) {
        Some(short) => progress(format!("{short} {} of {wanted}", count(live, short))),
        None => current(),
    }
}

fn replica_set(live: &Value) -> (Health, String) {
    let wanted = int(live, "/spec/replicas").unwrap_or(1);
    if count(live, "readyReplicas") < wanted || count(live, "availableReplicas") < wanted {
        return progress(format!("readyReplicas {} of {wanted}", count(live, "readyReplicas")));
    }
    current()
}

fn pod(live: &Value) -> (Health, String) {
    match live.pointer("/status/phase").and_then(Value::as_str).unwrap_or("Pending") {
        "Failed" => (Health::Failed, "its phase is Failed".to_owned()),
        "Succeeded" => current(),
        "Running" if condition(live, "Ready").is_some_and(|c| c.status == "True") => current(),
        phase => progress(format!("its phase is {phase}")),
    }
}

fn job(live: &Value) -> (Health, String) {
    if live.pointer("/spec/suspend") == Some(&Value::Bool(true)) {
        return (Health::Suspended, "is suspended".to_owned());
    }
    if let Some(failed) = condition(live, "Failed").filter(|c| c.status == "True") {
        return (Health::Failed, failed.message);
    }
    let complete = condition(live, "Complete").is_some_and(|c| c.status == "True");
    if complete { current() } else { progress("has not finished") }
}

fn suspended_or_current(live: &Value) -> (Health, String) {
    if live.pointer("/spec/suspend") == Some(&Value::Bool(true)) {
        return (Health::Suspended, "is suspended".to_owned());
    }
    current()
}

fn service(live: &Value) -> (Health, String) {
    let balanced = live.pointer("/spec/type").and_then(Value::as_str) == Some("LoadBalancer");
    if balanced && !has_ingress(live) { progress("has no address yet") } else { current() }
}

fn ingress(live: &Value) -> (Health, String) {
    if has_ingress(live) { current() } else { progress("has no address yet") }
}

fn has_ingress(live: &Value) -> bool {
    let ingress = live.pointer("/status/loadBalancer/ingress").and_then(Value::as_array);
    ingress.is_some_and(|list| !list.is_empty())
}

fn volume_claim(live: &Value) -> (Health, String) {
    match live.pointer("/status/phase").and_then(Value::as_str).unwrap_or("Pending") {
        "Bound" => current(),
        "Lost" => (Health::Failed, "its volume is lost".to_owned()),
        phase => progress(format!("its phase is {phase}")),
    }
}

fn definition(live: &Value) -> (Health, String) {
    if let Some(clash) = condition(live, "NamesAccepted").filter(|c| c.status == "False") {
        return (Health::Failed, clash.message);
    }
    match condition(live, "Established") {
        Some(c) if c.status == "True" => current(),
        Some(c) if c.status == "False" && c.reason != "Installing" => (Health::Failed, c.message),
        Some(_) | None => progress("is not established"),
    }
}

fn autoscaler(live: &Value) -> (Health, String) {
    let failed_scaling = condition(live, "AbleToScale")
        .filter(|c| c.status == "False" && c.reason.starts_with("Failed"));
    if let Some(failed) = failed_scaling {
        return (Health::Failed, failed.message);
    }
    current()
}

fn by_conditions(live: &Value) -> (Health, String) {
    for bad in ["Failed", "Degraded"] {
        if let Some(found) = condition(live, bad).filter(|c| c.status == "True") {
            return (Health::Failed, found.message);
        }
    }
    match condition(live, "Ready") {
        Some(ready) if ready.status != "True" => progress(ready.message),
        Some(_) | None => current(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(kind: (&str, &str), live: &Value) -> Health {
        health(kind.0, kind.1, live).0
    }

    fn rolled_out(replicas: i64) -> Value {
        json!({
            "metadata": {"generation": 2}, "spec": {"replicas": replicas, "progressDeadlineSeconds": 600},
            "status": {"observedGeneration": 2, "replicas": replicas, "updatedReplicas": replicas,
                "availableReplicas": replicas, "readyReplicas": replicas, "conditions": [
                {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"},
                {"type": "Available", "status": "True"}]}
        })
    }

    #[test]
    fn a_deployment_is_current_only_when_its_controller_saw_and_finished_this_version() {
        const DEPLOYMENT: (&str, &str) = ("apps", "Deployment");
        let done = rolled_out(2);
        assert_eq!(of(DEPLOYMENT, &done), Health::Current);
        for (pointer, value, expected) in [
            ("/status/observedGeneration", json!(1), Health::InProgress),
            ("/status/updatedReplicas", json!(1), Health::InProgress),
            ("/status/readyReplicas", json!(0), Health::InProgress),
            ("/status/replicas", json!(3), Health::InProgress),
            ("/status/conditions/0/reason", json!("ReplicaSetUpdated"), Health::InProgress),
            ("/status/conditions/0/reason", json!("ProgressDeadlineExceeded"), Health::Failed),
            ("/status/conditions/1/status", json!("False"), Health::InProgress),
        ] {
            let mut live = done.clone();
            *live.pointer_mut(pointer).unwrap() = value;
            assert_eq!(of(DEPLOYMENT, &live), expected, "{pointer}");
        }
        let mut paused = done.clone();
        paused["spec"]["paused"] = json!(true);
        assert_eq!(of(DEPLOYMENT, &paused), Health::Suspended);
        let mut dying = done;
        dying["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(of(DEPLOYMENT, &dying), Health::Terminating);
    }

    #[test]
    fn a_running_job_is_not_done() {
        const JOB: (&str, &str) = ("batch", "Job");
        let with = |conditions: Value| json!({"status": {"conditions": conditions}});

        assert_eq!(of(JOB, &json!({"status": {"active": 1}})), Health::InProgress);
        assert_eq!(
            of(JOB, &with(json!([{"type": "Complete", "status": "True"}]))),
            Health::Current
        );
        assert_eq!(of(JOB, &with(json!([{"type": "Failed", "status": "True"}]))), Health::Failed);
    }

    #[test]
    fn the_whole_is_as_healthy_as_its_worst_part() {
        assert_eq!(aggregate([Health::Current, Health::InProgress]), Health::InProgress);
        assert_eq!(aggregate([Health::Failed, Health::InProgress]), Health::Failed);
        assert_eq!(aggregate([]), Health::Current);
    }
}
