//! First sync of a large application, 1,000 ConfigMaps and 100 Deployments, on a real cluster: its duration over that of
//! plain server-side applies of the same objects with their dry run in the same run, and the CPU time of the spoke.

use std::time::{Duration, Instant};

use anyhow::Context;
use futures::{StreamExt, TryStreamExt};
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::{Api as KubeApi, Client};
use serde_json::{Value, json};

use super::change::apply_workload;
use super::figures::{Figures, heading};
use crate::fleet::processor_us;
use crate::real::RealFleet;
use crate::workload::{self, ENVIRONMENT};

const CONFIG_MAPS: usize = 1_000;
const DEPLOYMENTS: usize = 100;
/// Namespace and field manager of the plain writes.
const PLAIN: &str = "plain";
/// Concurrent plain requests, as many as a spoke has for a destination.
const REQUESTS_MAX: usize = 8;
const SYNCED_WITHIN: Duration = Duration::from_secs(300);
/// Time for the controllers to finish.
const SETTLE: Duration = Duration::from_secs(10);

/// Prints the figures.
///
/// # Errors
/// When a part of the fleet fails.
pub async fn run(print: &mut dyn FnMut(String)) -> anyhow::Result<()> {
    let Some(mut fleet) = RealFleet::start(&[("one", ENVIRONMENT)]).await? else {
        anyhow::bail!("no Kubernetes programs; run kind-clusters/tools/build.sh");
    };
    let repository = fleet.repository();
    workload::write(repository.tree(), &repository.url(), &[ENVIRONMENT])?;
    std::fs::remove_dir_all(repository.tree().join("k8s"))?;
    std::fs::create_dir_all(repository.tree().join("k8s"))?;
    let objects: Vec<Value> =
        (0..CONFIG_MAPS).map(config_map).chain((0..DEPLOYMENTS).map(deployment)).collect();
    let documents: Vec<String> =
        objects.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
    std::fs::write(repository.tree().join("k8s/large.yaml"), documents.join("\n---\n"))?;
    fleet.release("v0")?;
    let hub = fleet.hub().id();
    let spoke = fleet.spoke_process("one").context("no spoke process")?;
    let site = fleet.sites().first().context("no site")?;
    let [etcd, api_server, _] = site.cluster.process_ids();
    let processes = [spoke, hub, api_server, etcd];

    let before = processes.map(processor_us);
    let started = Instant::now();
    apply_workload(&fleet, SYNCED_WITHIN).await?;
    let took = started.elapsed();
    let after = processes.map(processor_us);
    tokio::time::sleep(SETTLE).await;
    let plain = write_plainly(&site.cluster.client().await?, &objects).await?;

    print(heading());
    let mut line = |name: &str, value: f64, unit: &str, target: &str| {
        let mut figures = Figures::default();
        figures.add(value);
        print(figures.line(name, unit, target));
    };
    line("first sync of 1,100 objects", took.as_secs_f64() * 1e3, "ms", "");
    line("  the same by plain dry runs and applies", plain.as_secs_f64() * 1e3, "ms", "");
    let ratio = took.as_secs_f64() / plain.as_secs_f64();
    line("  first sync over plain applies", ratio, "x", "<= 1.6");
    let names = ["spoke", "hub", "API server", "etcd"];
    for ((name, before), after) in names.into_iter().zip(before).zip(after) {
        #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
        let used_ms = (after? - before?) as f64 / 1e3;
        let target = if name == "spoke" { "<= 1200 ms" } else { "" };
        line(&format!("  CPU time: {name}"), used_ms, "ms", target);
    }
    Ok(())
}

/// Applies every object as a dry run, then every object; returns the time of both.
async fn write_plainly(client: &Client, objects: &[Value]) -> anyhow::Result<Duration> {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": PLAIN}});
    let parameters = PatchParams::apply(PLAIN);
    let namespaces: KubeApi<DynamicObject> =
        KubeApi::all_with(client.clone(), &resource("", "v1", "Namespace"));
    namespaces.patch(PLAIN, &parameters, &Patch::Apply(&namespace)).await?;
    let started = Instant::now();
    for parameters in [parameters.clone().dry_run(), parameters] {
        futures::stream::iter(objects)
            .map(|object| write(client, &parameters, object))
            .buffer_unordered(REQUESTS_MAX)
            .try_collect::<()>()
            .await?;
    }
    Ok(started.elapsed())
}

async fn write(client: &Client, parameters: &PatchParams, object: &Value) -> anyhow::Result<()> {
    let resource = match object["kind"].as_str() {
        Some("Deployment") => resource("apps", "v1", "Deployment"),
        _ => resource("", "v1", "ConfigMap"),
    };
    let name = object.pointer("/metadata/name").and_then(Value::as_str).context("no name")?;
    let objects: KubeApi<DynamicObject> =
        KubeApi::namespaced_with(client.clone(), PLAIN, &resource);
    objects.patch(name, parameters, &Patch::Apply(object)).await?;
    Ok(())
}

fn resource(group: &str, version: &str, kind: &str) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

fn config_map(number: usize) -> Value {
    let name = format!("settings-{number:04}");
    let data: serde_json::Map<String, Value> = (0..8)
        .map(|n| (format!("setting-{n}"), json!(format!("a value of some length for {name}"))))
        .collect();
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

fn deployment(number: usize) -> Value {
    let name = format!("service-{number:03}");
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "app", "image": "myapp:v0"}]},
            },
        },
    })
}
