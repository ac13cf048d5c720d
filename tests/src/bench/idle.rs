//! A thousand connected spokes on one hub: memory of an idle spoke, and time until a plan reaches all
//! (figures B2 and B4). Real QUIC connections from one simulator process; the hub is a separate process.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::figures::{Figures, heading};
use super::signed;
use crate::api::Api;
use crate::fleet::{Hub, Operator, processor_us};
use crate::real::replace_tag;
use crate::simulator::{self, Dial, Identity, Session};
use crate::workload::policy_spec;

/// Concurrent handshakes.
const CONCURRENT: usize = 32;
const SETTLE: Duration = Duration::from_secs(5);
const FAN_OUT_WITHIN: Duration = Duration::from_secs(120);

/// Prints the figures for `spokes` simulated spokes.
///
/// # Errors
/// When the hub fails.
pub async fn run(spokes: usize, print: &mut dyn FnMut(String)) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let signed = signed::sign(directory.path())?;
    replace_tag(&signed.repository.tree().join("k8s"), "v1")?;
    signed.repository.commit_and_push("Release")?;
    let operator = Operator::new(&directory.path().join("operator"))?;
    let home = directory.path().join("hub");
    let ports = Hub::init(&operator, &home)?;
    let allow = ["--allow-file-repositories".to_owned(), directory.path().display().to_string()];
    let mut hub = Hub::start(&home, ports, &allow).await?;
    let api = Api::from_config(&operator.config())?;
    let address: SocketAddr = hub.addresses().spokes.parse()?;
    let endpoint = simulator::endpoint()?;
    let names: Vec<String> = (0..spokes).map(|n| format!("bench-{n:05}")).collect();
    let identities: Vec<Identity> = futures::stream::iter(&names)
        .map(|name| simulator::join_as(&api, &endpoint, address, name))
        .buffered(CONCURRENT)
        .try_collect()
        .await?;
    print(format!("{spokes} spokes joined"));
    // A new process: sessions would reuse memory that joining has freed, and seem to cost nothing.
    hub.kill_and_restart().await?;
    tokio::time::sleep(SETTLE).await;
    let before = hub.resident_bytes()?;
    let (sender, mut arrivals) = mpsc::unbounded_channel();
    let mut policy =
        policy_spec(&signed.public_key.to_pem(), &api.hub_key_pem, &api.pin.to_string())?;
    let started = Instant::now();
    let mut sessions: Vec<Session> = Vec::new();
    let mut halfway = None;
    for (chunk, names) in identities.chunks(CONCURRENT).zip(names.chunks(CONCURRENT)) {
        let mut opening = Vec::new();
        for (identity, name) in chunk.iter().zip(names) {
            policy.cluster_name = Some(attest_common::basics::ids::Name::new(name.clone())?);
            let policy = policy.clone();
            let arrivals = Some(sender.clone());
            let (endpoint, pin) = (&endpoint, api.pin);
            opening.push(async move {
                Session::open(
                    endpoint,
                    identity,
                    Dial { hub: address, pin, policy: &policy, arrivals },
                )
                .await
            });
        }
        sessions.extend(futures::future::try_join_all(opening).await?);
        if halfway.is_none() && sessions.len() * 2 >= spokes {
            tokio::time::sleep(SETTLE).await;
            halfway = Some((sessions.len(), hub.resident_bytes()?));
        }
    }
    print(format!(
        "{} sessions open after {:.1} s",
        sessions.len(),
        started.elapsed().as_secs_f64()
    ));
    tokio::time::sleep(SETTLE).await;
    print(heading());
    let idle_bytes = hub.resident_bytes()?;
    let (half, half_bytes) = halfway.context("no sessions")?;
    // Everything that the hub grew by, divided: sessions, and fixed costs whatever the number of spokes.
    let mut idle = Figures::default();
    idle.add(bytes_each(before, idle_bytes, spokes) / 1024.0);
    print(idle.line("hub memory of an idle connected spoke", "KiB", "<= 64 KiB"));
    let mut more = Figures::default();
    more.add(bytes_each(half_bytes, idle_bytes, spokes - half) / 1024.0);
    print(more.line("hub memory of one more spoke", "KiB", ""));
    fan_out(&api, &signed.repository.url(), &names, &hub, &mut arrivals, print).await?;
    tokio::time::sleep(SETTLE).await;
    let mut after = Figures::default();
    after.add(bytes_each(idle_bytes, hub.resident_bytes()?, spokes) / 1024.0);
    print(after.line("hub memory of a rollout, for each spoke", "KiB", ""));
    drop(sessions);
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "a figure for people")]
fn bytes_each(before: u64, after: u64, spokes: usize) -> f64 {
    after.saturating_sub(before) as f64 / spokes.max(1) as f64
}

async fn fan_out(
    api: &Api,
    repository: &str,
    names: &[String],
    hub: &Hub,
    arrivals: &mut mpsc::UnboundedReceiver<simulator::Arrival>,
    print: &mut dyn FnMut(String),
) -> anyhow::Result<()> {
    let destinations: Vec<Value> =
        names.iter().map(|name| json!({"cluster": name, "namespace": "workload"})).collect();
    let manifest = json!({
        "apiVersion": "attest.continuu.ms/v1", "kind": "AttestApplication",
        "metadata": {"name": "workload"},
        "spec": {"source": {"repoUrl": repository, "path": "k8s"}, "destinations": destinations},
    });
    let hub_id = hub.id();
    let processor_before = processor_us(hub_id)?;
    let started = Instant::now();
    let _: Value = api.call("PUT", "/v1/applications", Some(&manifest)).await?;
    let mut times = BTreeMap::new();
    let mut bytes = Figures::default();
    while times.len() < names.len() {
        let next = tokio::time::timeout(FAN_OUT_WITHIN, arrivals.recv()).await;
        let arrival = next
            .context("timed out before every spoke received its plan")?
            .context("no sessions are left")?;
        #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
        bytes.add(arrival.bytes as f64);
        times.entry(arrival.cluster).or_insert(arrival.at);
    }
    let processor = processor_us(hub_id)?.saturating_sub(processor_before);
    let first = times.values().min().copied().unwrap_or(started);
    let mut since_first = Figures::default();
    let mut since_apply = Figures::default();
    for at in times.values() {
        since_first.add(at.duration_since(first).as_secs_f64() * 1e3);
        since_apply.add(at.duration_since(started).as_secs_f64() * 1e3);
    }
    print(since_first.line("plan arrives after the first spoke's", "ms", "p99 <= 1000 ms"));
    print(since_apply.line("plan arrives after `app apply`", "ms", ""));
    let mut each = Figures::default();
    #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
    each.add(processor as f64 / names.len().max(1) as f64);
    print(each.line("hub CPU time per spoke, in total", "us", ""));
    print(bytes.line("bytes of a cold push of W", "B", "<= 4500 B and receipts"));
    Ok(())
}
