//! End to end on real API servers: a signed commit reaches two clusters; unsigned content does not.

use std::time::Duration;

use anyhow::Context;
use attest_tests::real::{RealFleet, RealSite};
use attest_tests::wait::until;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{Patch, PatchParams};
use rustix::process::Signal;
use serde_json::{Value, json};

const SYNCED_WITHIN: Duration = Duration::from_secs(60);
const SEEN_WITHIN: Duration = Duration::from_secs(30);

const APPLICATION: &str = include_str!("../../sample/application.yaml");

async fn fleet() -> anyhow::Result<Option<RealFleet>> {
    let clusters = [("staging", "staging"), ("production", "production")];
    let Some(fleet) = RealFleet::start(&clusters).await? else { return Ok(None) };
    fleet.write_sample()?;
    fleet.release("v1")?;
    let manifest = fleet.directory().join("application.yaml");
    std::fs::write(
        &manifest,
        APPLICATION.replace("https://github.com/company/app", &fleet.repository().url()),
    )?;
    fleet.operator().attest(&["gitops", "app", "apply", "-f", &manifest.display().to_string()])?;
    fleet.wait_synced("web-app", SYNCED_WITHIN).await?;
    Ok(Some(fleet))
}

async fn image(site: &RealSite) -> anyhow::Result<String> {
    let namespace = format!("app-{}", site.name);
    let deployments: Api<Deployment> = Api::namespaced(site.cluster.client().await?, &namespace);
    let found = deployments.get("web-app").await?;
    let containers = found.spec.template.spec.context("no pod spec")?.containers;
    containers.into_iter().next().and_then(|c| c.image).context("no image")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signed_commit_reaches_both_clusters_and_an_undeclared_edit_reaches_none()
-> anyhow::Result<()> {
    let Some(fleet) = fleet().await? else { return Ok(()) };

    for site in fleet.sites() {
        assert_eq!(image(site).await?, format!("myapp:v1@{}", built_image(&fleet)?));
    }
    let seen = fleet.operator().json(&["gitops", "app", "get", "web-app"])?;
    for destination in seen["destinations"].as_array().context("destinations")? {
        assert_eq!(destination["phase"], "Synced", "{seen:#}");
        assert_eq!(destination["running"]["signers"], json!(["ci"]));
        assert_eq!(destination["running"]["version"], "v1");
    }
    assert!(fleet.check_spoke_requests()? >= 6);

    // An edit that no release covers is not deployed; the message names what was signed instead.
    let base = fleet.repository().tree().join("k8s/base/deployment.yaml");
    let text = std::fs::read_to_string(&base)?;
    let marks: Vec<_> = fleet.sites().iter().map(|site| site.cluster.audit().mark()).collect();
    std::fs::write(&base, text.replace("myapp:v1", "myapp:evil"))?;
    fleet.repository().commit_and_push("Nothing to see here")?;
    let waiting = not_deployed(&fleet, "AwaitingReceipts").await?;
    for part in ["Deployment", "web-app", "image", "myapp:v1", "myapp:evil"] {
        assert!(waiting.contains(part), "{waiting}");
    }

    // A release signed for one rendering, and a commit with another: refused and counted.
    std::fs::write(&base, &text)?;
    fleet.prepare("v2")?;
    let signed = std::fs::read_to_string(&base)?;
    std::fs::write(&base, signed.replace("myapp:v2", "myapp:evil"))?;
    fleet.repository().commit_and_push("Release v2, nearly")?;
    let refusal = not_deployed(&fleet, "ContentDigest").await?;
    for part in ["Deployment", "web-app", "image", "myapp:v2", "myapp:evil"] {
        assert!(refusal.contains(part), "{refusal}");
    }
    for (site, mark) in fleet.sites().iter().zip(marks) {
        assert!(image(site).await?.starts_with("myapp:v1@sha256:"));
        let writes = site.cluster.audit().since(mark)?.into_iter().filter(|event| {
            let own = event.object().namespace.starts_with("attest-");
            event.is_mutating() && !event.is_dry_run() && event.is_of_spoke() && !own
        });
        assert_eq!(writes.count(), 0);
    }

    // Signed content is deployed as soon as the commit contains it.
    std::fs::write(&base, signed)?;
    fleet.repository().commit_and_push("Release v2")?;
    fleet.operator().attest(&["gitops", "app", "sync", "web-app"])?;
    for site in fleet.sites() {
        until("v2 to run", SYNCED_WITHIN, || async {
            Ok(image(site).await?.starts_with("myapp:v2@sha256:").then_some(()))
        })
        .await?;
    }

    // A changed byte of the program's source changes the image, up to the live Deployment.
    let before = built_image(&fleet)?;
    let source = fleet.repository().tree().join("src/index.html");
    let page = std::fs::read_to_string(&source)?;
    std::fs::write(&source, page.replacen('>', " >", 1))?;
    fleet.release("v3")?;
    let after = built_image(&fleet)?;
    assert_ne!(before, after);
    fleet.operator().attest(&["gitops", "app", "sync", "web-app"])?;
    for site in fleet.sites() {
        let wanted = format!("myapp:v3@{after}");
        until("the new image to run", SYNCED_WITHIN, || async {
            Ok((image(site).await? == wanted).then_some(()))
        })
        .await?;
    }
    fleet.check_spoke_requests()?;
    Ok(())
}

/// Digest of the image that CI's build step produced.
fn built_image(fleet: &RealFleet) -> anyhow::Result<String> {
    let index = std::fs::read(fleet.repository().tree().join("out/image/index.json"))?;
    let index: Value = serde_json::from_slice(&index)?;
    Ok(index["manifests"][0]["digest"].as_str().context("no digest")?.to_owned())
}

/// Waits until the hub refuses to deploy the newest commit for `reason`; returns its message.
async fn not_deployed(fleet: &RealFleet, reason: &str) -> anyhow::Result<String> {
    let head = fleet.repository().git(&["rev-parse", "HEAD"])?;
    let _: Value = fleet.api().call("POST", "/v1/applications/web-app/sync", None).await?;
    let waited = until("the hub to refuse the newest commit", SEEN_WITHIN, || async {
        let seen: Value = fleet.api().call("GET", "/v1/applications/web-app", None).await?;
        let destination = &seen["destinations"][0];
        let is_it = seen["revision"] == head.as_str() && destination["reason"] == reason;
        Ok(is_it.then(|| destination["message"].as_str().unwrap_or_default().to_owned()))
    });
    match waited.await {
        Ok(message) => Ok(message),
        Err(error) => {
            Err(error.context(fleet.operator().attest(&["gitops", "app", "get", "web-app"])?))
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoke_reverts_drift_without_its_hub_and_after_a_kill() -> anyhow::Result<()> {
    let Some(mut fleet) = fleet().await? else { return Ok(()) };
    fleet.hub().process().kill();

    an_edit_is_reverted(&fleet.sites()[0], "hub dead").await?;
    let killed = fleet.sites()[0].fakelet.signal("attest-spoke/attest-spoke", Signal::KILL);
    assert_eq!(killed, 1);
    an_edit_is_reverted(&fleet.sites()[0], "spoke killed, hub dead").await?;

    // The hub restarts with its ledger and needs no help.
    fleet.hub().restart().await?;
    fleet.wait_synced("web-app", SYNCED_WITHIN).await?;
    fleet.release("v2")?;
    until("v2 to run", SYNCED_WITHIN, || async {
        Ok(image(&fleet.sites()[0]).await?.starts_with("myapp:v2@sha256:").then_some(()))
    })
    .await?;
    fleet.check_spoke_requests()?;
    Ok(())
}

async fn an_edit_is_reverted(site: &RealSite, edit: &str) -> anyhow::Result<()> {
    let namespace = format!("app-{}", site.name);
    let configs: Api<ConfigMap> = Api::namespaced(site.cluster.client().await?, &namespace);
    let original = configs.get("web-app").await?.data.context("no data")?;
    let field = original.keys().next().context("no field")?.clone();
    let patch = Patch::Merge(json!({"data": {&field: edit}}));
    configs.patch("web-app", &PatchParams::default(), &patch).await?;
    until("the edit to be reverted", SEEN_WITHIN, || async {
        Ok((configs.get("web-app").await?.data.as_ref() == Some(&original)).then_some(()))
    })
    .await
}
