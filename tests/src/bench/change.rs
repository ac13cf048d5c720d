//! Time from commit to applied on two real clusters, for workload W and change C1 (figure B1), split
//! into its parts.
//!
//! The clock starts when a sync is requested, after the push, as a webhook would. It stops when a watch
//! on each API server has reported all six Deployments with the new image.

use std::time::{Duration, Instant};

use anyhow::Context;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::WatchParams;
use kube::core::WatchEvent;
use kube::{Api as KubeApi, Client};
use serde_json::{Value, json};

use super::figures::{Figures, heading};
use super::plain::Plain;
use crate::fleet::processor_us;
use crate::real::RealFleet;
use crate::workload::{self, ENVIRONMENT, SERVICES};

const APPLIED_WITHIN: Duration = Duration::from_secs(30);
const SYNCED_WITHIN: Duration = Duration::from_secs(120);
/// Release counters are seconds; two releases in one second would have the same counter.
const BETWEEN: Duration = Duration::from_millis(1_100);

/// The garbage collector of a new API server runs all the time and dominates the tail on shared cores.
/// With this setting it waits until the heap is five times the live data.
const API_ENVIRONMENT: [(&str, &str); 1] = [("GOGC", "400")];

/// State of the controllers while a change is applied. Their work after it (ReplicaSets, Pods, events:
/// more than the change itself) is not part of the figure. On clusters with their own machines it takes
/// no time from the change; here all processes share the cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Controllers {
    /// They wait until everything is applied: API servers and etcd have the cores, as level L3 of the
    /// figure requires.
    Wait,
    /// They roll out one Deployment while the next is written.
    Work,
}

impl Controllers {
    fn suffix(self) -> &'static str {
        match self {
            Self::Wait => "",
            Self::Work => ", controllers running",
        }
    }
}

/// Figures of one kind of round.
struct Rounds {
    controllers: Controllers,
    total: Figures,
    parts: Vec<(&'static str, Figures)>,
    shares: Vec<(&'static str, Figures)>,
    slowest: (f64, String),
}

impl Rounds {
    fn new(controllers: Controllers) -> Self {
        Self {
            controllers,
            total: Figures::default(),
            parts: PARTS.map(|name| (name, Figures::default())).into(),
            shares: Shares::NAMES.map(|name| (name, Figures::default())).into(),
            slowest: (0.0, String::new()),
        }
    }

    /// Measures one change, from the sync request on.
    async fn round(&mut self, fleet: &mut RealFleet, number: usize) -> anyhow::Result<()> {
        tokio::time::sleep(BETWEEN).await;
        let tag = format!("v{number}");
        fleet.release(&tag)?;
        let mut waiting = Vec::new();
        for site in fleet.sites() {
            waiting.push(changed(site.cluster.client().await?, tag.clone()).await?);
        }
        if self.controllers == Controllers::Wait {
            fleet.sites().iter().for_each(|site| site.cluster.freeze_controllers());
        }
        let before = Shares::measure(fleet)?;
        let started = Instant::now();
        let _: Value = fleet.api().call("POST", "/v1/applications/workload/sync", None).await?;
        let ended = futures::future::try_join_all(waiting).await?;
        let used = Shares::measure(fleet)?.since(&before);
        fleet.sites().iter().for_each(|site| site.cluster.thaw_controllers());
        for ((_, figures), used) in self.shares.iter_mut().zip(used) {
            figures.add(used);
        }
        let last = ended.into_iter().max().context("no cluster")?;
        let took_ms = last.duration_since(started).as_secs_f64() * 1e3;
        self.total.add(took_ms);
        fleet.wait_synced("workload", SYNCED_WITHIN).await?;
        let seen: Value = fleet.api().call("GET", "/v1/applications/workload", None).await?;
        let mut summary = format!("{took_ms:.0} ms");
        for destination in
            seen.pointer("/destinations").and_then(Value::as_array).into_iter().flatten()
        {
            summary.push_str(&format!("\n    {}:", text(destination, "/cluster")));
            for (name, figures) in &mut self.parts {
                if let Some(us) = part_us(destination, name) {
                    figures.add(us / 1e3);
                    summary.push_str(&format!(" {} {:.1}", shown(name), us / 1e3));
                }
            }
        }
        if took_ms > self.slowest.0 {
            self.slowest = (took_ms, summary);
        }
        Ok(())
    }

    fn print(&self, clusters: usize, print: &mut dyn FnMut(String)) {
        let when = self.controllers.suffix();
        let target = "p99 <= 250 ms (100 ms later)";
        print(heading());
        print(self.total.line(
            &format!("commit to applied, {clusters} clusters{when}"),
            "ms",
            target,
        ));
        for (name, figures) in &self.parts {
            print(figures.line(&format!("  of which {}", shown(name)), "ms", ""));
        }
        for (name, figures) in &self.shares {
            print(figures.line(&format!("  CPU time: {name}"), "ms", ""));
        }
        print(format!("the slowest, its parts in ms: {}", self.slowest.1));
    }
}

/// Prints the figures of `rounds` changes of each kind, measured alternately.
///
/// # Errors
/// When a part of the fleet fails.
pub async fn run(
    rounds: usize,
    clusters: usize,
    print: &mut dyn FnMut(String),
) -> anyhow::Result<()> {
    let named: Vec<String> = (1..=clusters).map(|number| format!("cluster-{number}")).collect();
    let named: Vec<(&str, &str)> = named.iter().map(|name| (&name[..], ENVIRONMENT)).collect();
    let Some(mut fleet) = RealFleet::start_tuned(&named, &API_ENVIRONMENT).await? else {
        anyhow::bail!("no Kubernetes programs; run kind-clusters/tools/build.sh");
    };
    deploy(&fleet, "v0").await?;
    print(format!("W runs on {clusters} clusters; {rounds} changes of each kind follow"));
    let mut kinds = [Controllers::Wait, Controllers::Work].map(Rounds::new);
    let mut plain = Plain::start(&fleet, "v0").await?;
    for number in 1..=rounds * kinds.len() {
        let turn = number % kinds.len();
        if turn == 0 {
            plain.round(&fleet, &format!("v{number}")).await?;
        }
        if let Some(rounds) = kinds.get_mut(turn) {
            rounds.round(&mut fleet, number).await?;
        }
    }
    print("API servers run with GOGC=400; everything else as released".to_owned());
    kinds.iter().for_each(|rounds| rounds.print(clusters, print));
    print(heading());
    let name = "the same six Deployments by plain apply, concurrently";
    print(plain.total.line(name, "ms", "nothing verified or recorded"));
    let name = "  CPU time of an API server for each";
    print(plain.each.line(name, "ms", "4.2 ms where the targets were measured"));
    for rounds in &kinds {
        let [p50, p99] = [50.0, 99.0]
            .map(|percent| rounds.total.percentile(percent) / plain.total.percentile(percent));
        print(format!(
            "commit to applied{}, over plain apply: {:.1} times at p50 (target 2.2), {:.1} at p99",
            rounds.controllers.suffix(),
            p50,
            p99
        ));
    }
    Ok(())
}

/// CPU time used so far by each consumer of the machine's cores, in ms, in the order of [`Self::NAMES`].
struct Shares([f64; 6]);

impl Shares {
    const NAMES: [&'static str; 6] =
        ["API servers", "etcd", "controllers", "hub", "spokes", "this program and its nodes"];

    fn measure(fleet: &mut RealFleet) -> anyhow::Result<Self> {
        let hub = fleet.hub().id();
        let mut processes = vec![(3, hub), (5, std::process::id())];
        for site in fleet.sites() {
            let [etcd, api, controllers] = site.cluster.process_ids();
            let spoke = fleet.spoke_process(&site.name).context("no spoke process")?;
            processes.extend([(0, api), (1, etcd), (2, controllers), (4, spoke)]);
        }
        let mut used = [0.0; 6];
        for (index, id) in processes {
            if let Some(used) = used.get_mut(index) {
                *used += processor_us(id)? as f64 / 1e3;
            }
        }
        Ok(Self(used))
    }

    fn since(&self, before: &Self) -> [f64; 6] {
        let mut used = self.0;
        used.iter_mut().zip(before.0).for_each(|(used, before)| *used -= before);
        used
    }
}

/// Time between push and report without the spoke's own parts: the network in both directions and the
/// queues of both ends.
const PUSH: &str = "pushUs";
const PARTS: [&str; 9] = [
    "gitUs",
    "renderUs",
    "verifyUs",
    "planUs",
    "pushToReportUs",
    "spoke/verifyUs",
    "spoke/recordUs",
    "spoke/applyUs",
    PUSH,
];
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

/// Signs W as `tag` and deploys it to every site of the fleet.
///
/// # Errors
/// When it does not become Synced.
pub async fn deploy(fleet: &RealFleet, tag: &str) -> anyhow::Result<()> {
    workload::write(fleet.repository().tree(), &fleet.repository().url(), &[ENVIRONMENT])?;
    fleet.release(tag)?;
    apply_workload(fleet, SYNCED_WITHIN).await
}

/// Applies the application of the fleet's repository to every site.
///
/// # Errors
/// When it does not become Synced within `limit`.
pub(super) async fn apply_workload(fleet: &RealFleet, limit: Duration) -> anyhow::Result<()> {
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
    fleet.wait_synced("workload", limit).await
}

/// Starts a watch. The future completes when every Deployment of W has an image with this tag.
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
