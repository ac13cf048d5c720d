//! An application with stages, from a commit to the orders of its clusters, with the commands of an operator.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::Duration;

use attest_common::basics::ids::Digest;
use attest_common::basics::reason::ReportedReason;
use attest_common::documents::plan::{FinalizedBy, Operation};
use attest_common::session::FEATURE_ROLLOUT;
use attest_common::session::message::Hello;
use attest_common::session::report::{Abort, Phase, Report, RolloutStatus};
use serde_json::{Value, json};

use crate::ci::Repository;
use crate::command::Operator;
use crate::fixture::Fixture;
use crate::spoke::{Keys, Received, Spoke, report_of};

const ROLLOUT: &str = "/v1/applications/web-app/rollout";
const QUIET: Duration = Duration::from_millis(500);

/// A hub with clusters `staging` and `production`, and an application whose production stage needs approval.
struct Staged {
    fixture: Fixture,
    repository: Repository,
    staging: Spoke,
    production: Spoke,
}

fn announce(hello: &mut Hello) {
    hello.features.push(FEATURE_ROLLOUT.to_owned());
}

async fn spoke(fixture: &Fixture, name: &str, seed: u8) -> Spoke {
    let (first, bundle) = Spoke::new(fixture, name, seed).await;
    drop(first);
    let cluster = Keys::new(seed).cluster();
    Spoke::connect_saying(fixture, name, &cluster, &bundle, &[], announce).await.unwrap()
}

fn manifest(repository: &Repository) -> Value {
    let mut manifest = repository.manifest(None);
    let spec = manifest["spec"].as_object_mut().unwrap();
    spec.remove("destination");
    let place = |cluster: &str| json!({"cluster": cluster, "namespace": "app-staging"});
    spec.insert("destinations".into(), json!([place("staging"), place("production")]));
    spec.insert(
        "progressiveDelivery".into(),
        json!({"enabled": true, "stages": [
            {"name": "staging", "duration": "10m"},
            {"name": "production", "approval": {"required": true}},
        ]}),
    );
    manifest
}

async fn staged() -> Staged {
    let fixture = Fixture::start().await;
    let repository = Repository::create(&fixture.repositories(), "web-app");
    repository.release(&fixture.ci, "v1", 100);
    let staging = spoke(&fixture, "staging", 1).await;
    let production = spoke(&fixture, "production", 2).await;
    let applied = fixture.call("PUT", "/v1/applications", Some(manifest(&repository))).await;
    assert_eq!(applied.0, 200, "{}", applied.1);
    Staged { fixture, repository, staging, production }
}

fn reports(received: &Received, phase: Phase, status: RolloutStatus) -> Report {
    Report { rollout: Some(status), ..report_of(received, phase, phase.as_str()) }
}

/// Returns the status of a destination at the target of a directive.
fn at_target(received: &Received, is_soaked: bool, good: &[Digest]) -> RolloutStatus {
    RolloutStatus {
        generation: received.directive.generation,
        attempt: received.directive.attempt,
        plan: received.directive.plan.unwrap(),
        at_target: true,
        healthy_for_ms: 1,
        soak_reached: is_soaked,
        aborted: None,
        good: good.to_vec(),
    }
}

async fn command(fixture: &Fixture, action: &str) -> (u16, Value) {
    let body = json!({"action": action, "reason": format!("because of {action}")});
    fixture.call("POST", ROLLOUT, Some(body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn stages_are_ordered_one_after_the_other_and_a_failure_ends_the_rollout() {
    let Staged { fixture, repository, mut staging, mut production } = staged().await;

    let first = staging.receive().await;
    let directive = &first.directive;
    let stage = directive.stage.as_ref().unwrap();
    assert_eq!((stage.index, stage.name.as_str()), (0, "staging"));
    assert_eq!((directive.soak_ms, directive.finalize), (Some(600_000), FinalizedBy::Hub));
    staging.tell(&reports(&first, Phase::Synced, at_target(&first, false, &[]))).await;
    fixture.until(ROLLOUT, |seen| seen["stages"][0]["phase"] == "Soaking").await;
    assert!(production.receive_within(QUIET).await.is_none(), "staging has not soaked");

    staging.tell(&reports(&first, Phase::Synced, at_target(&first, true, &[]))).await;
    let finalize = staging.receive().await;
    assert_eq!(finalize.directive.operation, Operation::Finalize);
    assert_eq!(finalize.directive.plan, first.directive.plan);
    let good = first.directive.plan.unwrap();
    staging.tell(&reports(&finalize, Phase::Synced, at_target(&finalize, true, &[good]))).await;
    let seen = fixture.until(ROLLOUT, |seen| seen["awaitsApproval"] == true).await;
    assert_eq!(seen["stages"][0]["members"][0]["phase"], "Finalized", "{seen:#}");
    assert!(production.receive_within(QUIET).await.is_none(), "it needs approval");

    let (status, promoted) = command(&fixture, "promote").await;
    assert_eq!((status, &promoted["actions"][0]["reason"]), (200, &json!("because of promote")));
    assert_eq!(promoted["actions"][0]["operator"], "admin", "{promoted:#}");
    assert_eq!(command(&fixture, "promote").await.0, 409, "approved already");
    let second = production.receive().await;
    assert_eq!(second.directive.generation, first.directive.generation);
    assert_eq!(second.directive.stage.as_ref().unwrap().index, 1);

    let abort = Abort {
        plan: second.directive.plan.unwrap(),
        attempt: 0,
        reason: ReportedReason::parse("Unhealthy"),
        message: "crash loop".to_owned(),
    };
    let failed = RolloutStatus {
        at_target: false,
        soak_reached: false,
        aborted: Some(abort),
        ..at_target(&second, false, &[])
    };
    production.tell(&reports(&second, Phase::Degraded, failed)).await;
    let seen = fixture.until(ROLLOUT, |seen| seen["phase"] == "Failed").await;
    assert_eq!(seen["reason"], "Unhealthy");
    assert!(seen["message"].as_str().unwrap().contains("production/app-staging: crash loop"));
    let application = fixture.get("/v1/applications/web-app").await;
    assert_eq!(application["destinations"][0]["phase"], "Synced", "{application:#}");

    repository.release(&fixture.ci, "v2", 101);
    let next = staging.receive().await;
    assert!(next.directive.generation > first.directive.generation);
    assert!(next.directive.plan != first.directive.plan);
    let history = fixture.get("/v1/applications/web-app/rollouts").await;
    let phases: Vec<&str> = history["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["phase"].as_str().unwrap())
        .collect();
    assert_eq!(phases, ["Running", "Failed"]);
    let metrics = fixture.metrics().await;
    assert!(metrics.contains("attest_fleet_rollout_ended_total{result=\"Failed\"} 1"), "{metrics}");
    assert!(metrics.contains("attest_fleet_rollout_open{phase=\"Running\"} 1"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_about_a_rollout_is_stored_with_its_reason_and_waits_for_what_follows() {
    let Staged { fixture, staging, production: _production, .. } = staged().await;
    staging.receive().await;
    let operator = Operator::new(&fixture);

    for (action, more) in [
        ("pause", &["--wait", "--timeout", "60"][..]),
        ("resume", &[]),
        ("skip", &["staging/app-staging", "--wait"]),
        ("promote", &[]),
        ("abort", &["--yes"]),
        ("retry", &[]),
    ] {
        let reason = format!("because of {action}");
        let arguments = ["gitops", "rollout", action, "web-app", "--reason", &reason, "-o", "json"];
        let answer = operator.attest(&[&arguments[..], more].concat()).code(0).data();
        let rollout: Value = serde_json::from_str(&answer).unwrap();
        let actions = rollout["actions"].as_array().unwrap();
        assert!(actions.iter().any(|one| one["reason"] == reason), "{rollout:#}");
    }
    let sync = ["gitops", "rollout", "resume", "web-app", "--wait", "--timeout", "1"];
    operator.attest(&["gitops", "rollout", "pause", "web-app"]).code(0);
    operator.attest(&["gitops", "rollout", "resume", "web-app"]).code(0);
    operator.attest(&["gitops", "rollout", "pause", "web-app"]).code(0);
    let said = operator.attest(&sync).code(1).text();
    assert!(said.contains("timed out after 1 s waiting for the rollout"), "{said}");

    let history = ["gitops", "app", "history", "web-app", "-o", "json"];
    let rollouts = operator.attest(&history).code(0).data();
    let directives = operator.attest(&[&history[..], &["--directives"]].concat()).code(0).data();
    assert!(rollouts.contains("stagesTotal") && !rollouts.contains("sequence"), "{rollouts}");
    assert!(directives.contains("sequence"), "{directives}");

    for (command, name) in [(&["list"][..], "web-app"), (&["get", "web-app"], "staging")] {
        let command = [&["gitops", "rollout"], command].concat();
        for format in ["json", "yaml", "name"] {
            let shown = operator.attest(&[&command[..], &["-o", format]].concat()).code(0).data();
            assert!(shown.contains(name), "{shown}");
        }
        let mut watch = operator.command(&[&command[..], &["--watch"]].concat());
        let mut watching = watch.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains(name)));
        assert!(watching.try_wait().unwrap().is_none(), "it goes on");
        watching.kill().unwrap();
        watching.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_goes_on_after_a_restart_of_the_hub_once_its_clusters_report_again() {
    let Staged { mut fixture, staging, production, .. } = staged().await;
    let first = staging.receive().await;
    drop((staging, production));
    fixture.restart().await;

    let seen = fixture.until(ROLLOUT, |seen| seen["phase"] == "Running").await;
    assert_eq!(seen["generation"], first.directive.generation);
    assert_eq!(seen["stages"][0]["members"][0]["phase"], "Progressing");
    let (status, aborted) = command(&fixture, "abort").await;
    assert_eq!((status, &aborted["phase"]), (200, &json!("Aborted")));
    let (status, refused) = command(&fixture, "pause").await;
    assert_eq!((status, &refused["reason"]), (409, &json!("RolloutState")));
    let (status, retried) = command(&fixture, "retry").await;
    assert_eq!((status, &retried["attempt"]), (200, &json!(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_joins_by_its_labels_and_is_listed_by_them() {
    let Staged { fixture, repository, production, .. } = staged().await;
    drop(production);
    let label = |cluster: &'static str, set: Value| {
        let path = format!("/v1/clusters/{cluster}/labels");
        let body = json!({"set": set});
        let fixture = &fixture;
        async move { fixture.call("POST", &path, Some(body)).await }
    };
    assert_eq!(label("staging", json!({"env": "test"})).await.0, 200);
    let (status, refused) = label("staging", json!({"env": "-"})).await;
    assert_eq!((status, &refused["reason"]), (422, &json!("LabelInvalid")));
    let listed = fixture.get("/v1/clusters?labelSelector=env%3Dtest").await;
    assert_eq!(
        (listed["items"].as_array().unwrap().len(), &listed["items"][0]["name"]),
        (1, &json!("staging"))
    );

    let mut selecting = repository.manifest(None);
    selecting["spec"]["destination"] =
        json!({"clusterSelector": {"matchLabels": {"env": "test"}}, "namespace": "app-staging"});
    let confirmed = "/v1/applications?remove=true";
    let (status, applied) = fixture.call("PUT", confirmed, Some(selecting)).await;
    assert_eq!(status, 200, "{applied}");
    assert_eq!(label("production", json!({"env": "test"})).await.0, 200);
    let is_there = |seen: &Value| {
        let places = seen["destinations"].as_array().unwrap();
        places.iter().any(|place| place["cluster"] == "production")
    };
    fixture.until("/v1/applications/web-app", is_there).await;
}
