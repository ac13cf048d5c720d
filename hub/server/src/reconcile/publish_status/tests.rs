use attest_common::basics::ids::{ClusterId, Name};
use attest_common::session::report::Report;
use serde_json::json;

use super::super::planner::tests::World;
use super::super::repositories::tests::parts;
use super::*;
use crate::applications::status::Condition;
use crate::applications::tally::Counts;
use crate::core::store::records::{ClusterRecord, ClusterState, LedgerEntry, ReportRecord};
use crate::process::parts::Parts;

const DESTINATIONS: u8 = 40;

fn cluster(number: u8) -> ClusterRecord {
    ClusterRecord {
        id: ClusterId::of_identity_key(&[number; 32]),
        name: Name::new(format!("cluster-{number}")).unwrap(),
        state: ClusterState::Accepted,
        identity_key: String::new(),
        kube_system_uid: "uid".into(),
        token_id: String::new(),
        certificates: Default::default(),
        certificate_expires_at: None,
        registered_at: now(),
        agent_version: None,
        kubernetes_version: None,
        revoked_because: None,
        removed: false,
        labels: Default::default(),
    }
}

/// Returns an application on all clusters.
fn application(namespace: &Name) -> ApplicationRecord {
    let mut record = ApplicationRecord::sample("web-app", "https://git.example/web");
    let place = |number| Destination {
        cluster: cluster(number).name,
        namespace: namespace.clone(),
        path: None,
        stage: None,
    };
    record.application.destinations = (0..DESTINATIONS).map(place).collect();
    record
}

/// Returns one of several reports about a directive.
fn report(destination: &DestinationKey, head: &LedgerEntry, number: usize) -> ReportRecord {
    let phase = ["Synced", "Progressing", "Degraded", "OutOfSync", "Refused"][number % 5];
    let planned = head.planned.as_ref().unwrap();
    let health = ["Current", "InProgress", "Failed"][number / 5 % 3];
    let running = json!({
        "plan": planned.plan, "release": planned.release, "content": planned.plan, "version": "1", "counter": 1,
        "signedCommit": "c", "signers": [], "since": now(),
    });
    let report = json!({
        "v": 1, "application": destination.application, "namespace": destination.namespace, "epoch": 1,
        "sequence": head.sequence, "phase": phase, "reason": phase, "message": "",
        "running": if number.is_multiple_of(3) { None } else { Some(running) },
        "health": health, "objectsTotal": 0, "healsTotal": 0,
        "observedAt": now(),
    });
    ReportRecord {
        cluster: destination.cluster.clone(),
        received_at: now(),
        report: serde_json::from_value::<Report>(report).unwrap(),
        push_to_report_us: None,
    }
}

#[test]
fn a_report_costs_the_status_of_one_destination_and_counts_like_a_whole_pass() {
    let directory = tempfile::tempdir().unwrap();
    let Parts { core, waker, api, .. } = &parts(directory.path());
    let outputs = Outputs { core, views: &api.views, waker };
    let guard = core.directory.write();
    (0..DESTINATIONS).for_each(|number| guard.note(&cluster(number)));
    drop(guard);
    let mut world = World::new();
    world.order();
    let head = world.head.unwrap();
    let namespace = Name::new("app-staging").unwrap();
    let record = Arc::new(application(&namespace));
    let at = |number| record.application.key_at(&cluster(number).id, &namespace);
    let entries = (0..DESTINATIONS).map(|number| (at(number), head.clone()));
    assert!(!core.fleet.set_heads(entries.collect()));
    let mut cache = StatusCache::default();
    assert!(!cache.is_counted());
    publish_whole(outputs, &record, None, &mut cache);
    let computed = &core.metrics.status_destinations;
    assert_eq!(computed.get(), u64::from(DESTINATIONS));

    for number in 0..200_usize {
        let changed = at(u8::try_from(number * 7 % usize::from(DESTINATIONS)).unwrap());
        core.fleet.set_report(report(&changed, &head, number));
        publish_changed(outputs, &[changed].into(), None, &mut cache);
        assert_eq!(computed.get(), u64::from(DESTINATIONS) + number as u64 + 1);

        let facts = facts::gather(core, &record, None, Detail::Overview);
        let whole = status::status(&facts);
        let counts = cache.counted.as_ref().unwrap().tally.counts();
        assert_eq!(*counts, Counts::of(&whole.destinations), "after report {number}");
        let shown = whole.conditions.iter().map(|Condition { kind, status, .. }| (*kind, *status));
        let counted = status::condition_statuses(counts, None, false);
        assert_eq!(shown.collect::<Vec<_>>(), counted);
        assert_eq!(status::summary(counts).0, whole.counts.phase());
    }
}

#[test]
fn an_application_that_is_being_removed_needs_a_whole_pass() {
    let directory = tempfile::tempdir().unwrap();
    let Parts { core, waker, api, .. } = &parts(directory.path());
    let outputs = Outputs { core, views: &api.views, waker };
    let record = application(&Name::new("app-staging").unwrap());
    let mut cache = StatusCache::default();
    publish_whole(outputs, &Arc::new(record.clone()), None, &mut cache);
    assert!(cache.is_counted());
    publish_whole(
        outputs,
        &Arc::new(ApplicationRecord { deleting: true, ..record }),
        None,
        &mut cache,
    );
    assert!(!cache.is_counted());
}
