//! A rollout by stages on real API servers: staging first, production after the soak and an approval; a bad commit stops
//! in staging and goes back by itself, and the next one passes.

use std::time::Duration;

use anyhow::{Context, ensure};
use attest_tests::cluster::fakelet::READY_ANNOTATION;
use attest_tests::real::{RealFleet, RealSite};
use attest_tests::wait::until;
use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use serde_json::Value;

const WITHIN: Duration = Duration::from_secs(60);
const ROLLOUT: &str = "/v1/applications/web-app/rollout";

const APPLICATION: &str = include_str!("../../sample/application.yaml");
const STAGES: &str = "  progressiveDelivery:
    enabled: true
    stages:
    - name: staging
      weight: 100
      duration: 2s
    - name: production
      weight: 100
      duration: 0
      approval: {required: true}
";

async fn image(site: &RealSite) -> anyhow::Result<String> {
    let namespace = format!("app-{}", site.name);
    let deployments: Api<Deployment> = Api::namespaced(site.cluster.client().await?, &namespace);
    let Some(found) = deployments.get_opt("web-app").await? else { return Ok(String::new()) };
    let containers = found.spec.template.spec.context("no pod spec")?.containers;
    containers.into_iter().next().and_then(|c| c.image).context("no image")
}

async fn rollout(
    fleet: &RealFleet,
    what: &str,
    holds: impl Fn(&Value) -> bool,
) -> anyhow::Result<Value> {
    let waited = until(what, WITHIN, || async {
        let seen: Value = fleet.api().call("GET", ROLLOUT, None).await?;
        Ok(holds(&seen).then_some(seen))
    });
    match waited.await {
        Ok(seen) => Ok(seen),
        Err(error) => {
            let seen = fleet.operator().attest(&["gitops", "app", "get", "web-app"])?;
            let rollout = fleet.operator().attest(&["gitops", "rollout", "get", "web-app"])?;
            Err(error.context(format!("{seen}\n{rollout}")))
        }
    }
}

/// Runs both stages of the release that staging is to run.
async fn pass(fleet: &RealFleet, tag: &str) -> anyhow::Result<()> {
    let [staging, production] = fleet.sites() else { anyhow::bail!("two clusters") };
    let before = image(production).await?;
    let waits = |seen: &Value| seen["version"] == tag && seen["awaitsApproval"] == true;
    let seen = rollout(fleet, "production to wait for approval", waits).await?;
    ensure!(seen["stages"][0]["phase"] == "Passed", "{seen:#}");
    ensure!(image(staging).await?.starts_with(&format!("myapp:{tag}@sha256:")));
    ensure!(image(production).await? == before, "production before its approval");
    let promote = ["gitops", "rollout", "promote", "web-app", "--reason", "tested", "--wait"];
    fleet.operator().attest(&promote)?;
    ensure!(image(production).await?.starts_with(&format!("myapp:{tag}@sha256:")));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn staging_comes_first_and_a_bad_commit_stops_there_and_goes_back() -> anyhow::Result<()> {
    let clusters = [("staging", "staging"), ("production", "production")];
    let Some(fleet) = RealFleet::start(&clusters).await? else { return Ok(()) };
    let [staging, production] = fleet.sites() else { anyhow::bail!("two clusters") };
    fleet.write_sample()?;
    let base = fleet.repository().tree().join("k8s/base/deployment.yaml");
    let sample = std::fs::read_to_string(&base)?;
    let quick =
        sample.replacen("  replicas: 2\n", "  replicas: 2\n  progressDeadlineSeconds: 5\n", 1);
    std::fs::write(&base, &quick)?;
    fleet.release("v1")?;
    let manifest = fleet.directory().join("application.yaml");
    let ours = APPLICATION.replace("https://github.com/company/app", &fleet.repository().url());
    std::fs::write(&manifest, ours + STAGES)?;
    fleet.operator().attest(&["gitops", "app", "apply", "-f", &manifest.display().to_string()])?;
    pass(&fleet, "v1").await?;

    // Its pods never become ready.
    let marks = production.cluster.audit().mark();
    let never = format!(
        "      annotations: {{{READY_ANNOTATION}: never}}\n      labels:\n        app: web-app\n    spec:"
    );
    let bad = std::fs::read_to_string(&base)?;
    let bad = bad.replacen("      labels:\n        app: web-app\n    spec:", &never, 1);
    ensure!(bad.contains(READY_ANNOTATION));
    std::fs::write(&base, bad)?;
    fleet.release("v2")?;
    let failed = |seen: &Value| seen["version"] == "v2" && seen["phase"] == "Failed";
    rollout(&fleet, "the bad commit to fail in staging", failed).await?;
    until("staging to go back", WITHIN, || async {
        Ok(image(staging).await?.starts_with("myapp:v1@sha256:").then_some(()))
    })
    .await?;
    let written = production.cluster.audit().since(marks)?.into_iter().filter(|event| {
        let own = event.object().namespace.starts_with("attest-");
        event.is_mutating() && event.is_of_spoke() && !own
    });
    assert_eq!(written.count(), 0, "production was written to");

    std::fs::write(&base, &quick)?;
    fleet.release("v3")?;
    pass(&fleet, "v3").await?;
    let history = fleet.operator().json(&["gitops", "app", "history", "web-app"])?;
    let phases: Vec<&str> = history["items"]
        .as_array()
        .context("items")?
        .iter()
        .filter_map(|one| one["phase"].as_str())
        .collect();
    assert_eq!(phases, ["Succeeded", "Failed", "Succeeded"]);
    fleet.check_spoke_requests()?;
    Ok(())
}
