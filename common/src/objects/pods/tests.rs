//! Pods and ReplicaSets as the API server shows them.

use serde_json::json;

use super::*;

fn owned(kind: &str, name: &str, uid: &str) -> Value {
    json!([{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": uid, "controller": true}])
}

fn pod(status: &Value) -> Value {
    json!({"metadata": {"name": "web-1", "uid": "pod-1",
        "ownerReferences": owned("ReplicaSet", "web-abc", "set-1")}, "status": status})
}

fn container(state: &Value, restarts: u64, ready: bool) -> Value {
    json!({"containerStatuses": [
        {"name": "web", "state": state, "restartCount": restarts, "ready": ready}
    ]})
}

fn waiting(reason: &str) -> Value {
    container(&json!({"waiting": {"reason": reason, "message": "no"}}), 0, false)
}

fn unschedulable(status: &str) -> Value {
    json!({"conditions": [{"type": "PodScheduled", "status": status,
        "reason": "Unschedulable", "message": "0/3 nodes"}]})
}

#[test]
fn a_pod_that_does_not_start_is_in_trouble() {
    let running = || json!({"running": {}});
    let crashed = json!({"containerStatuses": [{"name": "web", "state": running(), "restartCount": 1,
        "ready": false, "lastState": {"terminated": {"reason": "Error"}}}]});
    let evicted = json!({"conditions": [{"type": "DisruptionTarget", "status": "True"}],
        "containerStatuses": waiting("CrashLoopBackOff")["containerStatuses"]});
    let starts = json!({"initContainerStatuses": waiting("ErrImagePull")["containerStatuses"]});
    let table = [
        ("crash loop", waiting("CrashLoopBackOff"), Some(POD_GRACE)),
        ("no image", waiting("ImagePullBackOff"), Some(POD_GRACE)),
        ("no image yet", waiting("ErrImagePull"), Some(POD_GRACE)),
        ("no such image", waiting("InvalidImageName"), Some(POD_GRACE)),
        ("no ConfigMap", waiting("CreateContainerConfigError"), Some(POD_GRACE)),
        ("no command", waiting("RunContainerError"), Some(POD_GRACE)),
        ("first container", starts, Some(POD_GRACE)),
        ("between two back-offs", crashed, Some(POD_GRACE)),
        ("often restarted", container(&running(), 3, true), Some(POD_GRACE)),
        ("no node", unschedulable("False"), Some(POD_UNSCHEDULABLE_MAX)),
        ("starting", waiting("ContainerCreating"), None),
        ("running", container(&running(), 0, false), None),
        ("restarted once", container(&running(), 1, true), None),
        ("scheduled", unschedulable("True"), None),
        ("evicted", evicted, None),
        ("new", json!({}), None),
    ];
    for (case, status, expected) in table {
        let state = pod_state(&pod(&status)).unwrap();
        assert_eq!(state.trouble.map(|trouble| trouble.after), expected, "{case}");
    }
}

#[test]
fn only_pods_of_a_replica_set_that_are_there_count() {
    let own = pod(&waiting("CrashLoopBackOff"));
    assert_eq!(pod_state(&own).unwrap().replica_set, "set-1");
    let mut leaving = own.clone();
    leaving["metadata"]["deletionTimestamp"] = json!("2026-11-29T12:00:00Z");
    let mut of_another = own;
    of_another["metadata"]["ownerReferences"] = owned("Job", "once", "job-1");
    let bare = json!({"metadata": {"name": "bare", "uid": "pod-2"}});
    for other in [leaving, of_another, bare] {
        assert_eq!(pod_state(&other), None);
    }
}

fn set(uid: &str, revision: &str) -> ReplicaSetState {
    let live = json!({"metadata": {"uid": uid, "annotations": {REVISION_ANNOTATION: revision},
        "ownerReferences": owned("Deployment", "web", "deployment-1")}});
    replica_set_state(&live).unwrap()
}

#[test]
fn the_pods_of_the_highest_revision_are_the_newest() {
    let (old, new) = (set("set-1", "9"), set("set-2", "10"));
    let of_old = pod_state(&pod(&waiting("CrashLoopBackOff"))).unwrap();
    let of_new = |restarts| PodState {
        uid: "pod-2".to_owned(),
        replica_set: "set-2".to_owned(),
        restarts,
        trouble: None,
    };
    let newest = |sets: &[ReplicaSetState], pods: &[PodState]| {
        newest_pods(sets.iter(), pods.iter()).remove("web").unwrap()
    };

    let before = newest(std::slice::from_ref(&old), std::slice::from_ref(&of_old));
    assert_eq!(before.troubled.keys().collect::<Vec<_>>(), ["pod-1"]);
    let after = newest(&[new.clone(), old.clone()], &[of_old.clone(), of_new(0)]);
    assert!(after.troubled.is_empty(), "the old pods do not count");
    assert_ne!(after.fingerprint, before.fingerprint);
    let restarted = newest(&[old, new], &[of_new(1), of_old]);
    assert_ne!(restarted.fingerprint, after.fingerprint);
    assert_eq!(replica_set_state(&json!({"metadata": {"uid": "bare"}})), None);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
fn a_pod_fails_when_its_trouble_lasts() {
    let trouble = |message: &str| Trouble { message: message.to_owned(), after: POD_GRACE };
    let troubled = |message: &str| BTreeMap::from([("pod-1".to_owned(), trouble(message))]);
    let (start, mut clock) = (Instant::now(), TroubleClock::default());

    clock.observe(&troubled("CrashLoopBackOff"), start);
    assert_eq!((clock.failed(start), clock.due(start)), (None, Some(start + POD_GRACE)));
    clock.observe(&troubled("Error"), start + POD_GRACE / 2);
    assert_eq!(clock.failed(start + POD_GRACE), Some("Error"), "another word, the same trouble");
    assert_eq!(clock.due(start + POD_GRACE), None);

    clock.observe(&BTreeMap::new(), start + POD_GRACE);
    clock.observe(&troubled("CrashLoopBackOff"), start + POD_GRACE);
    assert_eq!(clock.failed(start + POD_GRACE), None, "it was well in between");
}
