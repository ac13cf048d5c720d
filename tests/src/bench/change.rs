//! Commit to applied on two real clusters, workload W and change C1 (figure B1), split into its parts.
//!
//! The clock starts when the sync is asked for, after the push, as a webhook would; it stops when a
//! watch on each API server has shown all six Deployments with the new image.

use std::time::{Duration, Instant};

use anyhow::Context;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::WatchParams;
use kube::core::WatchEvent;
use kube::{Api as KubeApi, Client};
use serde_json::{Value, json};

use super::figures::{Figures, heading};
use super::signed::ENVIRONMENT;
use crate::real::RealFleet;
use crate::workload::{self, SERVICES};

const APPLIED_WITHIN: Duration = Duration::from_secs(30);
const SYNCED_WITHIN: Duration = Duration::from_secs(120);
/// Release counters are seconds; two releases in one second would need numbers of their own.
const BETWEEN: Duration = Duration::from_millis(1_100);

/// The collector of an API server that has just been started runs all the time, and on shared cores
/// dominates the tail: these let it wait until the heap is five times what lives.
const API_ENVIRONMENT: [(&str, &str); 1] = [("GOGC", "400")];

/// Prints the figures of `rounds` changes.
///
/// # Errors
/// When the fleet does not do what it should.
pub async fn run(rounds: usize, print: &mut dyn FnMut(String)) -> anyhow::Result<()> {
    let clusters = [("one", ENVIRONMENT), ("two", ENVIRONMENT)];
    let Some(fleet) = RealFleet::start_tuned(&clusters, &API_ENVIRONMENT).await? else {
        anyhow::bail!("no Kubernetes programs; run kind-clusters/tools/build.sh");
    };
    deploy(&fleet, "v0").await?;
    print(format!("W runs on {} clusters; {rounds} changes follow", fleet.sites().len()));
    let mut total = Figures::default();
    let mut parts: Vec<(&str, Figures)> = [
        "gitUs",
        "renderUs",
        "verifyUs",
        "planUs",
        "pushToReportUs",
        "spoke/verifyUs",
        "spoke/recordUs",
        "spoke/applyUs",
        PUSH,
    ]
    .map(|name| (name, Figures::default()))
    .to_vec();
    let mut slowest = (0.0, String::new());
    for round in 1..=rounds {
        tokio::time::sleep(BETWEEN).await;
        let tag = format!("v{round}");
        fleet.release(&tag)?;
        let mut waiting = Vec::new();
        for site in fleet.sites() {
            waiting.push(changed(site.cluster.client().await?, tag.clone()).await?);
        }
        let started = Instant::now();
        let _: Value = fleet.api().call("POST", "/v1/applications/workload/sync", None).await?;
        let ended = futures::future::try_join_all(waiting).await?;
        let last = ended.into_iter().max().context("no cluster")?;
        let took_ms = last.duration_since(started).as_secs_f64() * 1e3;
        total.add(took_ms);
        let mut said = format!("round {round}: {took_ms:.0} ms");
        fleet.wait_synced("workload", SYNCED_WITHIN).await?;
        let seen: Value = fleet.api().call("GET", "/v1/applications/workload", None).await?;
        for destination in
            seen.pointer("/destinations").and_then(Value::as_array).into_iter().flatten()
        {
            said.push_str(&format!("\n    {}:", text(destination, "/cluster")));
            for (name, figures) in &mut parts {
                if let Some(us) = part_us(destination, name) {
                    figures.add(us / 1e3);
                    said.push_str(&format!(" {} {:.1}", shown(name), us / 1e3));
                }
            }
        }
        if took_ms > slowest.0 {
            slowest = (took_ms, said);
        }
    }
    print("API servers run with GOGC=400; everything else as released".to_owned());
    print(heading());
    print(total.line("commit to applied, 2 clusters, C1", "ms", "p99 <= 250 ms (100 ms later)"));
    for (name, figures) in parts {
        print(figures.line(&format!("  of which {}", shown(name)), "ms", ""));
    }
    print(format!("the slowest, its parts in ms: {}", slowest.1));
    Ok(())
}

/// What is left of the time between push and report when the spoke's own parts are taken out: both ways
/// over the wire, and both ends' queues.
const PUSH: &str = "pushUs";
const SPOKE_PARTS: [&str; 3] = ["spoke/verifyUs", "spoke/recordUs", "spoke/applyUs"];

fn part_us(destination: &Value, name: &str) -> Option<f64> {
    let found = |name: &str| destination.pointer(&format!("/timings/{name}"))?.as_f64();
    if name != PUSH {
        return found(name);
    }
    let spoke: Option<f64> = SPOKE_PARTS.iter().map(|name| found(name)).sum();
    Some((found("pushToReportUs")? - spoke?).max(0.0))
}

fn shown(name: &str) -> &str {
    match name {
        PUSH => "push and report",
        name => name.trim_end_matches("Us"),
    }
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Signs W as `tag` and runs it at every site of the fleet.
///
/// # Errors
/// When it does not become Synced.
pub async fn deploy(fleet: &RealFleet, tag: &str) -> anyhow::Result<()> {
    workload::write(fleet.repository().tree(), &fleet.repository().url(), &[ENVIRONMENT])?;
    fleet.release(tag)?;
    let destinations: Vec<Value> = fleet
        .sites()
        .iter()
        .map(|site| json!({"cluster": site.name, "namespace": "workload"}))
        .collect();
    let manifest = json!({
        "apiVersion": "attest.continuu.ms/v1", "kind": "AttestApplication",
        "metadata": {"name": "workload"},
        "spec": {
            "source": {"repoUrl": fleet.repository().url(), "path": "k8s"},
            "destinations": destinations,
            "syncPolicy": {"automated": {"prune": true, "selfHeal": true}},
        },
    });
    let _: Value = fleet.api().call("PUT", "/v1/applications", Some(&manifest)).await?;
    fleet.wait_synced("workload", SYNCED_WITHIN).await
}

/// Begins to watch; the future ends when every Deployment of W has an image with this tag.
async fn changed(
    client: Client,
    tag: String,
) -> anyhow::Result<impl Future<Output = anyhow::Result<Instant>>> {
    let deployments: KubeApi<Deployment> = KubeApi::namespaced(client, "workload");
    let listed = deployments.list(&kube::api::ListParams::default()).await?;
    let version = listed.metadata.resource_version.unwrap_or_default();
    let stream = deployments.watch(&WatchParams::default(), &version).await?.boxed();
    Ok(async move {
        let wanted = format!(":{tag}@");
        let mut names = std::collections::BTreeSet::new();
        let mut stream = stream;
        let watching = async {
            while let Some(event) = stream.try_next().await? {
                let (WatchEvent::Added(found) | WatchEvent::Modified(found)) = event else {
                    continue;
                };
                let pod = found.spec.template.spec;
                let image = pod.and_then(|p| p.containers.into_iter().next()).and_then(|c| c.image);
                if image.is_some_and(|image| image.contains(&wanted)) {
                    names.insert(found.metadata.name.unwrap_or_default());
                }
                if names.len() == SERVICES {
                    return Ok(Instant::now());
                }
            }
            anyhow::bail!("the watch ended")
        };
        tokio::time::timeout(APPLIED_WITHIN, watching).await.context("not applied in time")?
    })
}
