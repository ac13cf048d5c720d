//! An operator's commands on a real fleet: their output, exit codes and errors.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a helper of a test fails the test"
)]

use std::time::Duration;

use anyhow::Context;
use attest_tests::process::describe;
use attest_tests::real::RealFleet;
use attest_tests::wait::until;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);
const APPLICATION: &str = "
apiVersion: attest.continuu.ms/v1
kind: AttestApplication
metadata:
  name: web-app
spec:
  destination: {cluster: staging, namespace: app-staging}
  source: {repoUrl: REPOSITORY, path: k8s/overlays}
  syncPolicy:
    automated: {prune: true, selfHeal: true}
";

/// Runs `attest gitops app …` and expects an exit code.
fn app(fleet: &RealFleet, code: i32, arguments: &[&str]) -> anyhow::Result<String> {
    let all = [&["gitops", "app"], arguments].concat();
    let output = fleet.operator().try_attest(&all)?;
    anyhow::ensure!(output.status.code() == Some(code), "{arguments:?}: {}", describe(&output));
    Ok(describe(&output))
}

fn apply(fleet: &RealFleet, code: i32, manifest: &str) -> anyhow::Result<String> {
    let file = fleet.directory().join("application.yaml");
    std::fs::write(&file, manifest.replace("REPOSITORY", &fleet.repository().url()))?;
    app(fleet, code, &["apply", "-f", &file.display().to_string()])
}

fn spoke(fleet: &RealFleet, arguments: &[&str]) -> anyhow::Result<String> {
    let kubeconfig = fleet.sites()[0].cluster.kubeconfig().display().to_string();
    let all = [&["spoke"], arguments, &["--kubeconfig", &kubeconfig]].concat();
    fleet.operator().attest(&all)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_from_apply_to_delete_and_a_spoke_that_is_inspected_without_its_hub()
-> anyhow::Result<()> {
    let Some(mut fleet) = RealFleet::start(&[("staging", "staging")]).await? else {
        return Ok(());
    };
    // The sample is released for both environments together.
    let key = fleet.key().with_extension("pub").display().to_string();
    fleet.operator().attest(&["trust", "key", "add", "ci", &key, "--environment", "production"])?;
    fleet.write_sample()?;
    fleet.release("v1")?;

    // Invalid manifests are refused with file, line or field, and nothing is stored.
    for (from, to, expected) in [
        ("  name: web-app", "  name: web-app\n  name: other", "application.yaml"),
        ("kind: AttestApplication", "kind: Deployment", "kind is Deployment"),
        ("  syncPolicy:", "  syncPolicies:", "syncPolicies"),
        ("{cluster: staging,", "{cluster: nowhere,", "nowhere"),
    ] {
        let text = apply(&fleet, 1, &APPLICATION.replace(from, to))?;
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert_eq!(fleet.operator().json(&["gitops", "app", "list"])?["items"], json!([]));
    app(&fleet, 1, &["get", "web-app"])?;
    app(&fleet, 2, &["diff", "web-app"])?;

    assert!(apply(&fleet, 0, APPLICATION)?.contains("application/web-app created"));
    fleet.wait_synced("web-app", SOON).await?;
    assert!(app(&fleet, 0, &["get", "web-app"])?.contains("Signed by:    ci"));
    let checked = app(&fleet, 0, &["get", "web-app", "--checks"])?;
    assert!(
        checked.contains("ContentDigest: sha256:") && checked.contains("Target: "),
        "{checked}"
    );
    app(&fleet, 0, &["diff", "web-app"])?;

    // A change is deployed, and its timings are shown.
    fleet.release("v2")?;
    let text = app(&fleet, 0, &["sync", "web-app", "--wait"])?;
    assert!(text.contains("application/web-app Synced") && text.contains("SPOKE APPLY"), "{text}");
    let seen = fleet.operator().json(&["gitops", "app", "get", "web-app"])?;
    assert_eq!(seen["destinations"][0]["running"]["version"], "v2", "{seen:#}");
    let history = fleet.operator().json(&["gitops", "app", "history", "web-app"])?;
    let versions: Vec<&Value> =
        history["items"].as_array().unwrap().iter().map(|entry| &entry["version"]).collect();
    assert_eq!(versions, ["v2", "v1"]);

    // An unsigned commit: the difference and the exit codes.
    let base = fleet.repository().tree().join("k8s/base/deployment.yaml");
    let text = std::fs::read_to_string(&base)?;
    std::fs::write(&base, text.replace("myapp:v2", "myapp:evil"))?;
    fleet.repository().commit_and_push("Not by CI")?;
    let text = app(&fleet, 1, &["sync", "web-app", "--wait"])?;
    assert!(text.contains("myapp:evil"), "{text}");
    let text = app(&fleet, 1, &["diff", "web-app"])?;
    assert!(text.contains("- myapp:v2\n+ myapp:evil"), "{text}");

    // Removed: the spoke keeps a tombstone until it is reset.
    let text = app(&fleet, 0, &["delete", "web-app", "-y", "--wait"])?;
    assert!(text.contains("application/web-app removed"), "{text}");
    fleet.hub().process().kill();
    let status: Value = serde_json::from_str(&spoke(&fleet, &["status", "-o", "json"])?)?;
    let record = &status["destinations"][0];
    assert_eq!(
        (&record["removed"], &record["inventory"]),
        (&json!(true), &json!([])),
        "{status:#}"
    );
    assert!(record["floor"]["counter"].as_u64().is_some());
    spoke(&fleet, &["reset", "web-app", "-n", "app-staging", "-y"])?;
    let status: Value = serde_json::from_str(&spoke(&fleet, &["status", "-o", "json"])?)?;
    assert_eq!(status["destinations"][0].get("floor"), None, "{status:#}");
    assert_eq!(status["destinations"][0].get("binding"), None, "{status:#}");

    // The restarted spoke works with what is left.
    fleet.hub().restart().await?;
    std::fs::write(&base, std::fs::read_to_string(&base)?.replace("myapp:evil", "myapp:v2"))?;
    fleet.release("v3")?;
    until("the application to be applied again", SOON, || async {
        apply(&fleet, 0, APPLICATION).map(|_| Some(()))
    })
    .await?;
    fleet.wait_synced("web-app", SOON).await.context("after the reset")?;
    fleet.check_spoke_requests()?;
    Ok(())
}
