//! Time from an edit of a managed object by hand to its reversal (figure B5) on a real API server, and
//! the number of writes, from the audit log.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::{StreamExt, TryStreamExt};
use kube::api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams, WatchParams};
use kube::core::{GroupVersionKind, WatchEvent};
use kube::{Api as KubeApi, ResourceExt};
use serde_json::json;

use super::change::deploy;
use super::figures::{Figures, heading};
use crate::real::RealFleet;
use crate::workload::{ENVIRONMENT, SERVICES};

const HEALED_WITHIN: Duration = Duration::from_secs(10);

/// Every kind of W. Each of its thirty objects is edited in turn, because a spoke limits how often it
/// reverts one object that another client keeps changing.
const KINDS: [(&str, &str, &str); 5] = [
    ("", "v1", "ConfigMap"),
    ("", "v1", "Service"),
    ("", "v1", "ServiceAccount"),
    ("apps", "v1", "Deployment"),
    ("autoscaling", "v2", "HorizontalPodAutoscaler"),
];

/// Prints the figures of `edits` edits of every object.
///
/// # Errors
/// When an edit is not reverted.
pub async fn run(edits: usize, print: &mut dyn FnMut(String)) -> anyhow::Result<()> {
    let Some(fleet) = RealFleet::start(&[("one", ENVIRONMENT)]).await? else {
        anyhow::bail!("no Kubernetes programs; run kind-clusters/tools/build.sh");
    };
    deploy(&fleet, "v0").await?;
    let site = fleet.sites().first().context("no site")?;
    let client = site.cluster.client().await?;
    let audit = site.cluster.audit();
    let mark = audit.mark();
    let mut healed = Figures::default();
    let mut rounds = 0;
    for edit in 0..edits {
        for (group, version, kind) in KINDS {
            let kind = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
            let objects: KubeApi<DynamicObject> =
                KubeApi::namespaced_with(client.clone(), "workload", &kind);
            for service in 0..SERVICES {
                let name = format!("service-{service}");
                let took = edit_and_wait(&objects, &name, edit).await?;
                healed.add(took.as_secs_f64() * 1e3);
                rounds += 1;
            }
        }
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let writes = audit
        .since(mark)?
        .into_iter()
        .filter(|event| {
            event.is_mutating() && !event.is_dry_run() && event.impersonated_user.is_some()
        })
        .count();
    print(heading());
    print(healed.line("edit acknowledged to edit reverted", "ms", "p50 <= 20 ms, p99 <= 75 ms"));
    print(format!("{writes} writes for {rounds} edits (target: one each)"));
    ensure!(writes == rounds, "expected one write for each edit");
    Ok(())
}

/// Changes a managed label and waits until it is reverted; returns the time between.
async fn edit_and_wait(
    objects: &KubeApi<DynamicObject>,
    name: &str,
    edit: usize,
) -> anyhow::Result<Duration> {
    let only = format!("metadata.name={name}");
    let version =
        objects.list(&ListParams::default().fields(&only)).await?.metadata.resource_version;
    let watching = WatchParams::default().fields(&only);
    let mut stream = objects.watch(&watching, &version.unwrap_or_default()).await?.boxed();
    let patch = json!({"metadata": {"labels": {"app": format!("edited-{edit}")}}});
    objects.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    let started = Instant::now();
    let restored = async {
        let mut edited = false;
        while let Some(event) = stream.try_next().await? {
            let WatchEvent::Modified(found) = event else { continue };
            let is_ours = found.labels().get("app").is_some_and(|app| app == name);
            edited |= !is_ours;
            if edited && is_ours {
                return anyhow::Ok(started.elapsed());
            }
        }
        anyhow::bail!("the watch ended")
    };
    tokio::time::timeout(HEALED_WITHIN, restored)
        .await
        .with_context(|| format!("the edit of {name} was not reverted"))?
}
