//! From a hand edit of a managed object to its restoration (figure B5), on a real API server, with the
//! number of writes that took, from the audit log.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api as KubeApi;
use kube::api::{ListParams, Patch, PatchParams, WatchParams};
use kube::core::WatchEvent;
use serde_json::json;

use super::change::deploy;
use super::figures::{Figures, heading};
use super::signed::ENVIRONMENT;
use crate::real::RealFleet;

const HEALED_WITHIN: Duration = Duration::from_secs(10);
const FIELD: &str = "setting-00";

/// Prints the figures of `rounds` edits.
///
/// # Errors
/// When an edit is not undone.
pub async fn run(rounds: usize, print: &mut dyn FnMut(String)) -> anyhow::Result<()> {
    let Some(fleet) = RealFleet::start(&[("one", ENVIRONMENT)]).await? else {
        anyhow::bail!("no Kubernetes programs; run kind-clusters/tools/build.sh");
    };
    deploy(&fleet, "v0").await?;
    let site = fleet.sites().first().context("no site")?;
    let objects: KubeApi<ConfigMap> = KubeApi::namespaced(site.cluster.client().await?, "workload");
    let original = objects
        .get("service-0")
        .await?
        .data
        .and_then(|d| d.get(FIELD).cloned())
        .context("no field")?;
    let audit = site.cluster.audit();
    let mark = audit.mark();
    let mut healed = Figures::default();
    for round in 0..rounds {
        let version = objects
            .list(&ListParams::default())
            .await?
            .metadata
            .resource_version
            .unwrap_or_default();
        let mut stream = objects.watch(&WatchParams::default(), &version).await?.boxed();
        let edit = json!({"data": {FIELD: format!("edited {round}")}});
        objects.patch("service-0", &PatchParams::default(), &Patch::Merge(edit)).await?;
        let started = Instant::now();
        let restored = async {
            let mut edited = false;
            while let Some(event) = stream.try_next().await? {
                let WatchEvent::Modified(found) = event else { continue };
                let value = found.data.as_ref().and_then(|d| d.get(FIELD));
                edited |= value != Some(&original);
                if edited && value == Some(&original) {
                    return anyhow::Ok(Instant::now());
                }
            }
            anyhow::bail!("the watch ended")
        };
        let at = tokio::time::timeout(HEALED_WITHIN, restored)
            .await
            .context("the edit was not undone")??;
        healed.add(at.duration_since(started).as_secs_f64() * 1e3);
        tokio::time::sleep(Duration::from_millis(50)).await;
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
    print(healed.line("edit answered to edit undone", "ms", "p50 <= 20 ms, p99 <= 75 ms"));
    print(format!("{writes} writes for {rounds} edits (target: one each)"));
    ensure!(writes >= rounds, "fewer writes than edits: the audit log is not complete");
    Ok(())
}
