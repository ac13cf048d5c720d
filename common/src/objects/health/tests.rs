//! The table of health by kind: a line for every rule, with what time makes of it.

use serde_json::json;

use super::*;

type Kind = (&'static str, &'static str);

const DEPLOYMENT: Kind = ("apps", "Deployment");
const STATEFUL_SET: Kind = ("apps", "StatefulSet");
const DAEMON_SET: Kind = ("apps", "DaemonSet");
const REPLICA_SET: Kind = ("apps", "ReplicaSet");
const POD: Kind = ("", "Pod");
const JOB: Kind = ("batch", "Job");
const CRON_JOB: Kind = ("batch", "CronJob");
const SERVICE: Kind = ("", "Service");
const CLAIM: Kind = ("", "PersistentVolumeClaim");
const DEFINITION: Kind = ("apiextensions.k8s.io", "CustomResourceDefinition");
const API_SERVICE: Kind = ("apiregistration.k8s.io", "APIService");
const INGRESS: Kind = ("networking.k8s.io", "Ingress");
const ROUTE: Kind = ("gateway.networking.k8s.io", "HTTPRoute");
const GATEWAY: Kind = ("gateway.networking.k8s.io", "Gateway");
const AUTOSCALER: Kind = ("autoscaling", "HorizontalPodAutoscaler");
const BUDGET: Kind = ("policy", "PodDisruptionBudget");
const CONFIG: Kind = ("", "ConfigMap");
const ROLE: Kind = ("rbac.authorization.k8s.io", "Role");
const OTHER: Kind = ("example.com", "Widget");

/// What a line expects: now, and what it turns into after how long.
enum Is {
    Stays(Health),
    Turns(Health, Duration, Health),
}
use Health::{Current, Failed, InProgress, NotFound, Suspended, Terminating};
use Is::{Stays, Turns};

/// `before` with one place changed; the place is made when it is not there.
fn with(before: &Value, pointer: &str, value: Value) -> Value {
    let mut live = before.clone();
    let mut at = &mut live;
    for part in pointer.split('/').skip(1) {
        at = match part.parse::<usize>() {
            Ok(index) => &mut at[index],
            Err(_) => &mut at[part],
        };
    }
    *at = value;
    live
}

fn conditions(all: &[(&str, &str, &str)]) -> Value {
    let one = |(name, status, reason): &(&str, &str, &str)| json!({"type": name, "status": status, "reason": reason, "message": reason});
    all.iter().map(one).collect()
}

fn fresh(all: &[(&str, &str, &str)], generation: i64) -> Value {
    let mut all = conditions(all);
    for condition in all.as_array_mut().unwrap() {
        condition["observedGeneration"] = json!(generation);
    }
    all
}

/// An object of generation 2 with these conditions and no `status.observedGeneration`.
fn shows(conditions: &Value) -> Value {
    json!({"metadata": {"generation": 2}, "status": {"conditions": conditions}})
}

fn observed(live: &Value) -> Value {
    with(live, "/status/observedGeneration", json!(2))
}

fn deployment() -> Value {
    json!({
        "metadata": {"generation": 2}, "spec": {"replicas": 2, "progressDeadlineSeconds": 600},
        "status": {"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2,
            "availableReplicas": 2, "readyReplicas": 2, "conditions": conditions(&[
            ("Progressing", "True", "NewReplicaSetAvailable"), ("Available", "True", "")])}
    })
}

fn stateful_set() -> Value {
    json!({
        "metadata": {"generation": 2}, "spec": {"replicas": 3},
        "status": {"observedGeneration": 2, "replicas": 3, "readyReplicas": 3, "updatedReplicas": 3,
            "currentReplicas": 3, "currentRevision": "b", "updateRevision": "b"}
    })
}

fn daemon_set() -> Value {
    json!({
        "metadata": {"generation": 2}, "spec": {},
        "status": {"observedGeneration": 2, "desiredNumberScheduled": 2, "currentNumberScheduled": 2,
            "updatedNumberScheduled": 2, "numberAvailable": 2, "numberReady": 2}
    })
}

fn route(all: &Value) -> Value {
    json!({"metadata": {"generation": 2}, "spec": {"parentRefs": [{"name": "gate"}]},
        "status": {"parents": [{"conditions": all}]}})
}

fn gateway(whole: &Value, listener: &Value) -> Value {
    json!({"metadata": {"generation": 2}, "spec": {"listeners": [{"name": "web"}]},
        "status": {"conditions": whole, "listeners": [{"conditions": listener}]}})
}

fn claim(phase: &str, class: &str, annotations: &Value) -> Value {
    json!({"metadata": {"annotations": annotations}, "spec": {"storageClassName": class},
        "status": {"phase": phase}})
}

const ACCEPTED: [(&str, &str, &str); 2] = [("Accepted", "True", ""), ("ResolvedRefs", "True", "")];
const PROGRAMMED: [(&str, &str, &str); 2] = [("Accepted", "True", ""), ("Programmed", "True", "")];

fn check(lines: Vec<(&str, Kind, Value, Is)>) {
    for (line, (group, kind), live, expected) in lines {
        let verdict = verdict(group, kind, &live);
        match expected {
            Stays(health) => {
                assert_eq!(verdict.health, health, "{kind}: {line}: {}", verdict.message);
                assert_eq!(verdict.turn, None, "{kind}: {line}");
            }
            Turns(now, after, then) => {
                assert_eq!(verdict.health, now, "{kind}: {line}: {}", verdict.message);
                let turn = verdict.turn.unwrap_or_else(|| panic!("{kind}: {line}: no turn"));
                assert_eq!((turn.after, turn.health), (after, then), "{kind}: {line}");
            }
        }
    }
}

#[test]
fn before_its_kind_every_object_is_asked_what_holds_for_all() {
    let ready = observed(&shows(&conditions(&[("Ready", "True", "")])));
    check(vec![
        (
            "deleted",
            OTHER,
            with(&ready, "/metadata/deletionTimestamp", json!("x")),
            Stays(Terminating),
        ),
        (
            "old generation",
            OTHER,
            with(&ready, "/status/observedGeneration", json!(1)),
            Stays(InProgress),
        ),
        (
            "Reconciling",
            OTHER,
            observed(&shows(&conditions(&[("Reconciling", "True", ""), ("Ready", "True", "")]))),
            Stays(InProgress),
        ),
        (
            "Stalled",
            OTHER,
            observed(&shows(&conditions(&[("Stalled", "True", "")]))),
            Stays(Failed),
        ),
    ]);
}

#[test]
fn workloads_are_current_only_when_their_controller_saw_and_finished_this_version() {
    let done = deployment();
    let replica_failure = |live: &Value| {
        with(
            live,
            "/status/conditions/0",
            conditions(&[("ReplicaFailure", "True", "quota")])[0].clone(),
        )
    };
    let set = stateful_set();
    let on_delete = |live: &Value| with(live, "/spec/updateStrategy", json!({"type": "OnDelete"}));
    let partition = with(&set, "/spec/updateStrategy", json!({"rollingUpdate": {"partition": 2}}));
    let daemon = daemon_set();
    let replicas = json!({"metadata": {"generation": 2}, "spec": {"replicas": 1}, "status": {
        "observedGeneration": 2, "replicas": 1, "fullyLabeledReplicas": 1,
        "availableReplicas": 1, "readyReplicas": 1}});
    let no_deadline = with(
        &with(&done, "/spec/progressDeadlineSeconds", Value::Null),
        "/status/conditions",
        json!([]),
    );
    check(vec![
        ("done", DEPLOYMENT, done.clone(), Stays(Current)),
        ("no deadline", DEPLOYMENT, no_deadline, Stays(Current)),
        ("unseen", DEPLOYMENT, with(&done, "/status", json!({})), Stays(InProgress)),
        (
            "updated",
            DEPLOYMENT,
            with(&done, "/status/updatedReplicas", json!(1)),
            Stays(InProgress),
        ),
        (
            "available",
            DEPLOYMENT,
            with(&done, "/status/availableReplicas", json!(1)),
            Stays(InProgress),
        ),
        ("ready", DEPLOYMENT, with(&done, "/status/readyReplicas", json!(0)), Stays(InProgress)),
        ("old pods", DEPLOYMENT, with(&done, "/status/replicas", json!(3)), Stays(InProgress)),
        (
            "new ReplicaSet",
            DEPLOYMENT,
            with(&done, "/status/conditions/0/reason", json!("ReplicaSetUpdated")),
            Stays(InProgress),
        ),
        (
            "deadline",
            DEPLOYMENT,
            with(&done, "/status/conditions/0/reason", json!("ProgressDeadlineExceeded")),
            Stays(Failed),
        ),
        (
            "not available",
            DEPLOYMENT,
            with(&done, "/status/conditions/1/status", json!("False")),
            Stays(InProgress),
        ),
        ("paused", DEPLOYMENT, with(&done, "/spec/paused", json!(true)), Stays(Suspended)),
        (
            "ReplicaFailure",
            DEPLOYMENT,
            replica_failure(&with(&done, "/status/readyReplicas", json!(0))),
            Turns(InProgress, REPLICA_FAILURE_MAX, Failed),
        ),
        ("done", STATEFUL_SET, set.clone(), Stays(Current)),
        (
            "unseen",
            STATEFUL_SET,
            with(&set, "/status/observedGeneration", Value::Null),
            Stays(InProgress),
        ),
        ("ready", STATEFUL_SET, with(&set, "/status/readyReplicas", json!(2)), Stays(InProgress)),
        (
            "revision",
            STATEFUL_SET,
            with(&set, "/status/updateRevision", json!("c")),
            Stays(InProgress),
        ),
        (
            "current",
            STATEFUL_SET,
            with(&set, "/status/currentReplicas", json!(1)),
            Stays(InProgress),
        ),
        (
            "partition",
            STATEFUL_SET,
            with(&partition, "/status/updatedReplicas", json!(1)),
            Stays(Current),
        ),
        (
            "partition",
            STATEFUL_SET,
            with(&partition, "/status/updatedReplicas", json!(0)),
            Stays(InProgress),
        ),
        (
            "OnDelete",
            STATEFUL_SET,
            on_delete(&with(&set, "/status/readyReplicas", json!(0))),
            Stays(Current),
        ),
        (
            "OnDelete unseen",
            STATEFUL_SET,
            on_delete(&with(&set, "/status", json!({}))),
            Stays(InProgress),
        ),
        ("done", DAEMON_SET, daemon.clone(), Stays(Current)),
        (
            "no node",
            DAEMON_SET,
            with(&daemon, "/status", json!({"observedGeneration": 2})),
            Stays(Current),
        ),
        ("unseen", DAEMON_SET, with(&daemon, "/status", json!({})), Stays(InProgress)),
        ("ready", DAEMON_SET, with(&daemon, "/status/numberReady", json!(1)), Stays(InProgress)),
        (
            "OnDelete",
            DAEMON_SET,
            on_delete(&with(&daemon, "/status/updatedNumberScheduled", json!(0))),
            Stays(Current),
        ),
        ("done", REPLICA_SET, replicas.clone(), Stays(Current)),
        (
            "labels",
            REPLICA_SET,
            with(&replicas, "/status/fullyLabeledReplicas", json!(0)),
            Stays(InProgress),
        ),
        ("too many", REPLICA_SET, with(&replicas, "/status/replicas", json!(2)), Stays(InProgress)),
    ]);
}

#[test]
fn pods_and_jobs_are_done_or_failed_as_they_say() {
    let pod = |phase: &str, all: Value| json!({"status": {"phase": phase, "conditions": all}});
    let crashing = with(
        &pod("Running", json!([])),
        "/status/containerStatuses",
        json!([{"name": "web", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]),
    );
    check(vec![
        ("ready", POD, pod("Running", conditions(&[("Ready", "True", "")])), Stays(Current)),
        (
            "not ready",
            POD,
            pod("Running", conditions(&[("Ready", "False", "")])),
            Stays(InProgress),
        ),
        ("over", POD, pod("Succeeded", json!([])), Stays(Current)),
        ("failed", POD, pod("Failed", json!([])), Stays(Failed)),
        ("crashing", POD, crashing, Stays(Failed)),
        (
            "unschedulable",
            POD,
            pod("Pending", conditions(&[("PodScheduled", "False", "Unschedulable")])),
            Turns(InProgress, UNSCHEDULABLE_MAX, Failed),
        ),
        ("a running Job", JOB, json!({"status": {"active": 1}}), Stays(InProgress)),
        ("complete", JOB, shows(&conditions(&[("Complete", "True", "")])), Stays(Current)),
        ("failed", JOB, shows(&conditions(&[("Failed", "True", "")])), Stays(Failed)),
        ("suspended", JOB, json!({"spec": {"suspend": true}}), Stays(Suspended)),
        ("always", CRON_JOB, json!({}), Stays(Current)),
        ("suspended", CRON_JOB, json!({"spec": {"suspend": true}}), Stays(Suspended)),
    ]);
}

#[test]
fn network_and_storage_are_judged_by_what_they_were_given() {
    let balancer = json!({"spec": {"type": "LoadBalancer"}});
    let address = json!({"ingress": [{"ip": "192.0.2.1"}]});
    let provisioner = json!({"volume.kubernetes.io/storage-provisioner": "disk.example.com"});
    let refused = [("Accepted", "False", "NoMatchingParent"), ("ResolvedRefs", "True", "")];
    let broken = [("Accepted", "True", ""), ("ResolvedRefs", "False", "BackendNotFound")];
    let unprogrammed = [("Accepted", "True", ""), ("Programmed", "Unknown", "Pending")];
    check(vec![
        ("cluster address", SERVICE, json!({"spec": {"type": "ClusterIP"}}), Stays(Current)),
        ("waiting", SERVICE, balancer.clone(), Turns(InProgress, ADDRESS_WAIT_MAX, InProgress)),
        (
            "address",
            SERVICE,
            with(&balancer, "/status/loadBalancer", address.clone()),
            Stays(Current),
        ),
        ("bound", CLAIM, claim("Bound", "disk", &json!({})), Stays(Current)),
        ("provisioning", CLAIM, claim("Pending", "disk", &provisioner), Stays(InProgress)),
        ("waiting for a consumer", CLAIM, claim("Pending", "disk", &json!({})), Stays(InProgress)),
        ("lost", CLAIM, claim("Lost", "disk", &json!({})), Stays(Failed)),
        ("address", INGRESS, json!({"status": {"loadBalancer": address}}), Stays(Current)),
        ("waiting", INGRESS, json!({}), Stays(InProgress)),
        ("accepted", ROUTE, route(&fresh(&ACCEPTED, 2)), Stays(Current)),
        ("old conditions", ROUTE, route(&fresh(&ACCEPTED, 1)), Stays(InProgress)),
        ("nobody looked", ROUTE, json!({"spec": {"parentRefs": [{}]}}), Stays(InProgress)),
        ("half judged", ROUTE, route(&fresh(&[("Accepted", "True", "")], 2)), Stays(InProgress)),
        (
            "refused",
            ROUTE,
            route(&fresh(&refused, 2)),
            Turns(InProgress, ROUTE_REFUSED_MAX, Failed),
        ),
        ("broken", ROUTE, route(&fresh(&broken, 2)), Turns(InProgress, ROUTE_REFUSED_MAX, Failed)),
        (
            "programmed",
            GATEWAY,
            gateway(&fresh(&PROGRAMMED, 2), &fresh(&ACCEPTED, 2)),
            Stays(Current),
        ),
        (
            "not programmed",
            GATEWAY,
            gateway(&fresh(&unprogrammed, 2), &fresh(&ACCEPTED, 2)),
            Stays(InProgress),
        ),
        (
            "a listener refused",
            GATEWAY,
            gateway(&fresh(&PROGRAMMED, 2), &fresh(&broken, 2)),
            Turns(InProgress, ROUTE_REFUSED_MAX, Failed),
        ),
        ("nobody looked", GATEWAY, json!({"metadata": {"generation": 1}}), Stays(InProgress)),
    ]);
}

#[test]
fn what_is_only_shown_is_judged_too() {
    let able = ("AbleToScale", "True", "SucceededGetScale");
    let budget = |all: &Value| observed(&shows(all));
    check(vec![
        ("able", AUTOSCALER, shows(&conditions(&[able])), Stays(Current)),
        (
            "limited",
            AUTOSCALER,
            shows(&conditions(&[("ScalingLimited", "True", "TooFewReplicas")])),
            Stays(Current),
        ),
        ("no conditions yet", AUTOSCALER, shows(&json!([])), Stays(InProgress)),
        (
            "no scale",
            AUTOSCALER,
            shows(&conditions(&[("AbleToScale", "False", "FailedGetScale")])),
            Stays(Failed),
        ),
        (
            "no metric",
            AUTOSCALER,
            shows(&conditions(&[able, ("ScalingActive", "False", "FailedGetResourceMetric")])),
            Stays(Failed),
        ),
        (
            "no selector",
            AUTOSCALER,
            shows(&conditions(&[able, ("ScalingActive", "False", "InvalidSelector")])),
            Stays(Failed),
        ),
        (
            "scaled to zero",
            AUTOSCALER,
            shows(&conditions(&[able, ("ScalingActive", "False", "ScalingDisabled")])),
            Stays(Current),
        ),
        (
            "backing off",
            AUTOSCALER,
            shows(&conditions(&[("AbleToScale", "False", "BackoffBoth")])),
            Stays(InProgress),
        ),
        ("observed", BUDGET, budget(&json!([])), Stays(Current)),
        ("unseen", BUDGET, shows(&json!([])), Stays(InProgress)),
        (
            "SyncFailed",
            BUDGET,
            budget(&conditions(&[("DisruptionAllowed", "False", "SyncFailed")])),
            Stays(Failed),
        ),
        (
            "too few pods",
            BUDGET,
            budget(&conditions(&[("DisruptionAllowed", "False", "InsufficientPods")])),
            Stays(Current),
        ),
    ]);
}

#[test]
fn definitions_and_interfaces_must_be_served() {
    check(vec![
        (
            "established",
            DEFINITION,
            shows(&conditions(&[("Established", "True", "")])),
            Stays(Current),
        ),
        ("new", DEFINITION, json!({}), Stays(InProgress)),
        (
            "installing",
            DEFINITION,
            shows(&conditions(&[("Established", "False", "Installing")])),
            Stays(InProgress),
        ),
        (
            "not established",
            DEFINITION,
            shows(&conditions(&[("Established", "False", "NotAccepted")])),
            Stays(Failed),
        ),
        (
            "a taken name",
            DEFINITION,
            shows(&conditions(&[("NamesAccepted", "False", "ListKindConflict")])),
            Stays(Failed),
        ),
        (
            "available",
            API_SERVICE,
            shows(&conditions(&[("Available", "True", "")])),
            Turns(InProgress, SETTLE_FOR, Current),
        ),
        (
            "not available",
            API_SERVICE,
            shows(&conditions(&[("Available", "False", "MissingEndpoints")])),
            Stays(InProgress),
        ),
        ("new", API_SERVICE, json!({}), Stays(InProgress)),
    ]);
}

#[test]
fn kinds_nobody_here_knows_go_by_their_conditions_once_those_are_about_this_version() {
    let soon = |health| Turns(InProgress, SETTLE_FOR, health);
    let late = || Turns(InProgress, PROGRESS_MAX, Failed);
    check(vec![
        ("exists", CONFIG, json!({}), Stays(Current)),
        ("exists", ROLE, json!({}), Stays(Current)),
        ("no status", OTHER, json!({"metadata": {"generation": 2}}), soon(Current)),
        (
            "no status worth reading",
            OTHER,
            observed(&json!({"metadata": {"generation": 2}})),
            Stays(Current),
        ),
        ("Ready", OTHER, observed(&shows(&conditions(&[("Ready", "True", "")]))), Stays(Current)),
        (
            "Ready of unknown age",
            OTHER,
            shows(&conditions(&[("Ready", "True", "")])),
            soon(Current),
        ),
        (
            "Ready of this version",
            OTHER,
            shows(&fresh(&[("Ready", "True", "")], 2)),
            Stays(Current),
        ),
        (
            "Ready of an old version",
            OTHER,
            shows(&fresh(&[("Ready", "True", "")], 1)),
            Stays(InProgress),
        ),
        (
            "not Ready",
            OTHER,
            observed(&shows(&conditions(&[("Ready", "False", "Waiting")]))),
            late(),
        ),
        ("unknown", OTHER, observed(&shows(&conditions(&[("Ready", "Unknown", "")]))), late()),
        (
            "Ready decides",
            OTHER,
            observed(&shows(&conditions(&[("Available", "True", ""), ("Ready", "False", "")]))),
            late(),
        ),
        (
            "Succeeded",
            OTHER,
            observed(&shows(&conditions(&[("Succeeded", "True", "")]))),
            Stays(Current),
        ),
        (
            "Available",
            OTHER,
            observed(&shows(&conditions(&[("Available", "True", "")]))),
            Stays(Current),
        ),
        (
            "Healthy",
            OTHER,
            observed(&shows(&conditions(&[("Healthy", "True", "")]))),
            Stays(Current),
        ),
        (
            "Established",
            OTHER,
            observed(&shows(&conditions(&[("Established", "True", "")]))),
            Stays(Current),
        ),
        ("not Healthy", OTHER, observed(&shows(&conditions(&[("Healthy", "False", "")]))), late()),
        (
            "others",
            OTHER,
            observed(&shows(&conditions(&[("Synced", "False", "")]))),
            Stays(Current),
        ),
        ("Failed", OTHER, observed(&shows(&conditions(&[("Failed", "True", "")]))), Stays(Failed)),
        (
            "Degraded",
            OTHER,
            observed(&shows(&conditions(&[("Degraded", "True", "")]))),
            Stays(Failed),
        ),
        (
            "Failed of unknown age",
            OTHER,
            shows(&conditions(&[("Failed", "True", "")])),
            soon(Failed),
        ),
        (
            "failed before, ready now",
            OTHER,
            shows(&json!([
                fresh(&[("Failed", "True", "")], 1)[0],
                fresh(&[("Ready", "True", "")], 2)[0]
            ])),
            Stays(Current),
        ),
    ]);
}

#[test]
fn the_application_waits_for_what_gates_and_shows_the_rest() {
    let gates = |(group, kind): Kind, live: &Value| verdict(group, kind, live).gates;
    let none = json!({});
    for kind in [DEPLOYMENT, STATEFUL_SET, DAEMON_SET, JOB, DEFINITION, API_SERVICE, CONFIG, OTHER]
    {
        assert!(gates(kind, &none), "{kind:?}");
    }
    for kind in [POD, CRON_JOB, SERVICE, INGRESS, ROUTE, GATEWAY, AUTOSCALER, BUDGET] {
        assert!(!gates(kind, &none), "{kind:?}");
    }
    let provisioned = json!({"volume.kubernetes.io/storage-provisioner": "disk.example.com"});
    assert!(gates(CLAIM, &claim("Pending", "disk", &provisioned)));
    assert!(gates(CLAIM, &claim("Pending", "", &json!({}))));
    assert!(gates(CLAIM, &claim("Bound", "disk", &json!({}))));
    assert!(
        !gates(CLAIM, &claim("Pending", "disk", &json!({}))),
        "it waits for its first consumer"
    );
}

#[test]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
fn a_verdict_turns_only_after_it_went_on_without_a_break() {
    let seconds = Duration::from_secs;
    let start = Instant::now();
    let turn = |cause: &str| {
        Some(Turn {
            cause: cause.to_owned(),
            after: seconds(60),
            health: Failed,
            message: "no quota".to_owned(),
        })
    };
    let first = Turning::next(None, turn("a"), start).unwrap();
    assert_eq!(first.turned(start + seconds(59)), None);

    let again = Turning::next(Some(first.clone()), turn("a"), start + seconds(30)).unwrap();
    assert_eq!(again.due(), start + seconds(60));
    assert_eq!(again.turned(start + seconds(60)), Some((Failed, "no quota")));

    let other = Turning::next(Some(first.clone()), turn("b"), start + seconds(30)).unwrap();
    assert_eq!(other.turned(start + seconds(60)), None);
    assert_eq!(Turning::next(Some(first), None, start), None);
}

#[test]
fn a_new_version_of_an_object_begins_its_time_anew() {
    let (group, kind) = OTHER;
    let at = |generation: i64| {
        let live = json!({"metadata": {"uid": "u", "generation": generation}});
        verdict(group, kind, &live).turn.unwrap().cause
    };

    assert_eq!(at(2), at(2));
    assert_ne!(at(2), at(3));
}

#[test]
fn the_whole_is_as_healthy_as_its_worst_part() {
    assert_eq!(aggregate([Current, InProgress]), InProgress);
    assert_eq!(aggregate([Failed, InProgress]), Failed);
    assert_eq!(aggregate([Terminating, NotFound, Suspended]), InProgress);
    assert_eq!(aggregate([Current, Suspended]), Suspended);
    assert_eq!(aggregate([]), Current);
}
