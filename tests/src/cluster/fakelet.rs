//! Plays one node: schedules pods to itself, tells the API server how they fare, and lets them go.
//!
//! No container runs. How a pod fares is scripted by its image or by an annotation. The exception
//! is a pod whose image has a [`Runner`]: for it a real local process is started from the pod's own
//! template ([`runner`]), so that what an installer put into the cluster is what runs.

pub mod runner;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{Container, Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub use self::runner::Runner;
use crate::cluster::{Cluster, client_from};
use crate::process::signal_group;

/// On a pod: `now`, `never`, `after=2s`, `flap=500ms` or `fail`; wins over the image's script.
pub const READY_ANNOTATION: &str = "attest.test/ready";

const NODE: &str = "node-1";
const NODE_ADDRESS: &str = "127.0.0.1";
const HEARTBEAT_EVERY: Duration = Duration::from_secs(10);
const RETRY_EVERY: Duration = Duration::from_millis(200);

/// How a pod fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Ready so long after it was scheduled.
    After(Duration),
    /// Runs and never becomes ready.
    Never,
    /// Ready and not ready in turns, each this long.
    Flapping(Duration),
    /// Its container has failed and is not started again.
    Fails,
}

impl Readiness {
    /// Reads the value of [`READY_ANNOTATION`].
    fn parse(text: &str) -> Option<Self> {
        match text.split_once('=') {
            None if text == "now" => Some(Self::After(Duration::ZERO)),
            None if text == "never" => Some(Self::Never),
            None if text == "fail" => Some(Self::Fails),
            Some(("after", time)) => parse_duration(time).map(Self::After),
            Some(("flap", time)) => parse_duration(time).map(Self::Flapping),
            Some(_) | None => None,
        }
    }
}

fn parse_duration(text: &str) -> Option<Duration> {
    match text.strip_suffix("ms") {
        Some(number) => number.parse().ok().map(Duration::from_millis),
        None => text.strip_suffix('s')?.parse().ok().map(Duration::from_secs),
    }
}

/// How the node behaves.
#[derive(Clone, Debug, Default)]
pub struct FakeletOptions {
    /// What happens to pods with an image that contains the text; the last match counts. Others are
    /// ready at once.
    pub scripts: Vec<(String, Readiness)>,
    /// Which images are real programs on this machine.
    pub runners: Vec<Runner>,
}

/// A played node. It stops, and kills the processes it runs, on drop.
#[derive(Debug)]
pub struct Fakelet {
    world: Arc<World>,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Fakelet {
    /// Starts playing the node of a cluster. It has a thread and a runtime of its own, so that it
    /// outlives the test that started it.
    ///
    /// # Errors
    /// When its thread cannot be started.
    pub fn start(cluster: &Cluster, options: FakeletOptions) -> anyhow::Result<Self> {
        let kubeconfig = cluster.kubeconfig_for("fakelet", Some("system:masters"))?;
        Self::start_with(kubeconfig, cluster.directory(), options)
    }

    /// As [`Self::start`], for a cluster that another process started. Files go to
    /// `<directory>/pods`.
    ///
    /// # Errors
    /// When its thread cannot be started.
    pub fn start_with(
        kubeconfig: String,
        directory: &Path,
        options: FakeletOptions,
    ) -> anyhow::Result<Self> {
        attest_certs::install_provider();
        let FakeletOptions { scripts, runners } = options;
        let world = Arc::new(World {
            directory: directory.join("pods"),
            scripts: Mutex::new(scripts),
            runners: Mutex::new(runners),
            processes: Mutex::default(),
            addresses: AtomicU32::new(1),
        });
        std::fs::create_dir_all(&world.directory)?;
        let stop = CancellationToken::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let played = play(kubeconfig, world.clone());
        let until = stop.clone();
        let thread = std::thread::Builder::new().name("fakelet".to_owned()).spawn(move || {
            runtime.block_on(until.run_until_cancelled(played));
            // Dropping the runtime drops the pods' tasks, and with them their processes.
        })?;
        Ok(Self { world, stop, thread: Some(thread) })
    }

    /// From now on, new pods with an image that contains the text fare like this.
    pub fn script(&self, image: &str, readiness: Readiness) {
        lock(&self.world.scripts).push((image.to_owned(), readiness));
    }

    /// From now on, new pods of this image are a real process.
    pub fn run(&self, runner: Runner) {
        lock(&self.world.runners).push(runner);
    }

    /// The processes that run for pods, as (`namespace/pod`, process id).
    pub fn processes(&self) -> Vec<(String, u32)> {
        lock(&self.world.processes).iter().map(|(pod, id)| (pod.clone(), *id)).collect()
    }

    /// Sends a signal to the processes of pods whose `namespace/pod` begins with the text, and says
    /// to how many. One that ends by it is started again, as a container would be.
    pub fn signal(&self, pod_prefix: &str, signal: Signal) -> usize {
        let processes = lock(&self.world.processes);
        let met = processes.iter().filter(|(pod, _)| pod.starts_with(pod_prefix));
        met.map(|(_, id)| signal_group(*id, signal)).count()
    }

    /// What the processes of pods whose `namespace/pod` begins with the text have written, oldest
    /// pod first by name. It stays after the pod is gone.
    pub fn output(&self, pod_prefix: &str) -> String {
        let prefix = pod_prefix.replace('/', "_");
        let mut logs: Vec<PathBuf> = std::fs::read_dir(&self.world.directory)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
            .filter(|path| {
                path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
            })
            .collect();
        logs.sort();
        logs.iter().filter_map(|path| std::fs::read_to_string(path).ok()).collect()
    }
}

impl Drop for Fakelet {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Debug)]
struct World {
    directory: PathBuf,
    scripts: Mutex<Vec<(String, Readiness)>>,
    runners: Mutex<Vec<Runner>>,
    processes: Mutex<BTreeMap<String, u32>>,
    addresses: AtomicU32,
}

impl World {
    fn readiness(&self, pod: &Pod) -> Readiness {
        let annotated = pod.annotations().get(READY_ANNOTATION);
        if let Some(readiness) = annotated.and_then(|text| Readiness::parse(text)) {
            return readiness;
        }
        let scripts = lock(&self.scripts);
        let scripted = scripts
            .iter()
            .rev()
            .find(|(text, _)| images(pod).any(|image| image.contains(text.as_str())));
        scripted.map_or(Readiness::After(Duration::ZERO), |(_, readiness)| *readiness)
    }

    fn runner(&self, pod: &Pod) -> Option<(Runner, Container)> {
        let runners = lock(&self.runners);
        let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
        containers.into_iter().find_map(|container| {
            let image = container.image.as_deref()?;
            let runner = runners.iter().rev().find(|runner| runner.runs(image))?;
            Some((runner.clone(), container.clone()))
        })
    }

    fn next_address(&self) -> String {
        let number = self.addresses.fetch_add(1, Ordering::Relaxed);
        let [_, _, high, low] = number.to_be_bytes();
        format!("10.244.{high}.{low}")
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn images(pod: &Pod) -> impl Iterator<Item = &str> {
    pod.spec
        .iter()
        .flat_map(|spec| &spec.containers)
        .filter_map(|container| container.image.as_deref())
}

fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

async fn play(kubeconfig: String, world: Arc<World>) {
    loop {
        let result = async {
            let client = client_from(&kubeconfig).await?;
            create_node(&client).await?;
            tokio::try_join!(heartbeat(&client), watch_pods(&client, &world, &kubeconfig))?;
            anyhow::Ok(())
        };
        if result.await.is_err() {
            tokio::time::sleep(RETRY_EVERY).await;
        }
    }
}

async fn create_node(client: &Client) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": NODE, "labels": {"kubernetes.io/hostname": NODE, "kubernetes.io/os": "linux"}},
    });
    nodes.patch(NODE, &PatchParams::apply("fakelet").force(), &Patch::Apply(node)).await?;
    Ok(())
}

async fn heartbeat(client: &Client) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let started = now();
    loop {
        let resources = json!({"cpu": "64", "memory": "256Gi", "pods": "5000"});
        let status = json!({"status": {
            "capacity": resources, "allocatable": resources,
            "addresses": [{"type": "InternalIP", "address": NODE_ADDRESS}],
            "nodeInfo": {
                "architecture": "amd64", "bootID": "", "containerRuntimeVersion": "none://0",
                "kernelVersion": "", "kubeProxyVersion": "", "kubeletVersion": "fakelet",
                "machineID": "", "operatingSystem": "linux", "osImage": "", "systemUUID": ""
            },
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "Played",
                "lastHeartbeatTime": now(), "lastTransitionTime": started
            }],
        }});
        nodes.patch_status(NODE, &PatchParams::default(), &Patch::Strategic(status)).await?;
        // The taint comes with the Node and goes once its controller has seen it ready; pods here
        // do not wait for that.
        tokio::time::sleep(HEARTBEAT_EVERY).await;
    }
}

async fn watch_pods(client: &Client, world: &Arc<World>, kubeconfig: &str) -> anyhow::Result<()> {
    let server = server_of(kubeconfig)?;
    let mut alive: HashMap<String, AbortOnDropHandle<()>> = HashMap::new();
    let pods: Api<Pod> = Api::all(client.clone());
    let events = watcher::watcher(pods, watcher::Config::default()).default_backoff();
    let mut events = std::pin::pin!(events);
    loop {
        let event = match events.try_next().await {
            Ok(Some(event)) => event,
            Ok(None) => bail!("the watch ended"),
            // The stream backs off and goes on.
            Err(_) => continue,
        };
        match event {
            Event::Apply(pod) | Event::InitApply(pod) => {
                let Some(uid) = pod.uid() else { continue };
                if pod.metadata.deletion_timestamp.is_some() {
                    drop(alive.remove(&uid));
                    tokio::spawn(let_go(client.clone(), pod));
                } else if let Entry::Vacant(seat) = alive.entry(uid) {
                    let life = live(client.clone(), world.clone(), server.clone(), pod);
                    seat.insert(AbortOnDropHandle::new(tokio::spawn(life)));
                }
            }
            Event::Delete(pod) => {
                drop(pod.uid().and_then(|uid| alive.remove(&uid)));
            }
            Event::Init | Event::InitDone => {}
        }
    }
}

fn server_of(kubeconfig: &str) -> anyhow::Result<String> {
    kubeconfig
        .lines()
        .find_map(|line| line.trim().strip_prefix("server: "))
        .map(str::to_owned)
        .context("the kubeconfig names no server")
}

/// Repeats until it works or the pod is gone.
async fn insist<F, Fut>(mut attempt: F) -> bool
where
    F: FnMut() -> Fut,
    Fut: Future<Output = kube::Result<()>>,
{
    loop {
        match attempt().await {
            Ok(()) => return true,
            Err(kube::Error::Api(status)) if status.code == 404 => return false,
            Err(_) => tokio::time::sleep(RETRY_EVERY).await,
        }
    }
}

async fn let_go(client: Client, pod: Pod) {
    let name = pod.name_any();
    let pods: Api<Pod> = Api::namespaced(client, &pod.namespace().unwrap_or_default());
    let precondition = Preconditions { uid: pod.uid(), resource_version: None };
    let parameters = DeleteParams::default().grace_period(0).preconditions(precondition);
    insist(|| async {
        match pods.delete(&name, &parameters).await {
            // Another pod has the name by now.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            other => other.map(|_| ()),
        }
    })
    .await;
}

async fn live(client: Client, world: Arc<World>, server: String, pod: Pod) {
    let assigned = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    if assigned.is_some_and(|node| node != NODE) {
        return;
    }
    let name = pod.name_any();
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    if assigned.is_none() && !insist(|| bind(&pods, &name)).await {
        return;
    }
    let seat = Seat { pods, pod, address: world.next_address(), started: now() };
    if let Some((runner, container)) = world.runner(&seat.pod) {
        runner::supervise(client, &world, &server, &seat, &runner, &container).await;
    } else {
        act(&seat, world.readiness(&seat.pod)).await;
    }
}

async fn bind(pods: &Api<Pod>, name: &str) -> kube::Result<()> {
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
        "target": {"apiVersion": "v1", "kind": "Node", "name": NODE},
    });
    match pods
        .create_subresource::<_, Value>("binding", name, &PostParams::default(), &binding)
        .await
    {
        // Bound already, by this node's previous life.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        other => other.map(|_| ()),
    }
}

async fn act(seat: &Seat, readiness: Readiness) {
    let policy = seat.pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
    let ends = policy.is_some_and(|policy| policy != "Always");
    match readiness {
        Readiness::Fails => {
            seat.tell(Condition::Failed).await;
        }
        Readiness::Never => {
            seat.tell(Condition::Unready { restarts: 0 }).await;
        }
        Readiness::After(delay) => {
            if !delay.is_zero() {
                seat.tell(Condition::Unready { restarts: 0 }).await;
                tokio::time::sleep(delay).await;
            }
            seat.tell(if ends { Condition::Succeeded } else { Condition::ready() }).await;
        }
        Readiness::Flapping(period) => {
            let turns = [Condition::ready(), Condition::Unready { restarts: 0 }];
            let mut turns = turns.iter().cycle();
            while let Some(turn) = turns.next()
                && seat.tell(*turn).await
            {
                tokio::time::sleep(period).await;
            }
        }
    }
}

/// Where a pod sits on the node.
struct Seat {
    pods: Api<Pod>,
    pod: Pod,
    address: String,
    started: String,
}

#[derive(Clone, Copy)]
enum Condition {
    Ready { restarts: u32 },
    Unready { restarts: u32 },
    Succeeded,
    Failed,
}

impl Condition {
    fn ready() -> Self {
        Self::Ready { restarts: 0 }
    }
}

impl Seat {
    /// Writes the pod's status; false when the pod is gone.
    async fn tell(&self, condition: Condition) -> bool {
        let name = self.pod.name_any();
        let patch = Patch::Strategic(self.status(condition));
        insist(|| async {
            self.pods.patch_status(&name, &PatchParams::default(), &patch).await.map(|_| ())
        })
        .await
    }

    fn status(&self, condition: Condition) -> Value {
        let now = now();
        let (phase, ready, restarts) = match condition {
            Condition::Ready { restarts } => ("Running", true, restarts),
            Condition::Unready { restarts } => ("Running", false, restarts),
            Condition::Succeeded => ("Succeeded", false, 0),
            Condition::Failed => ("Failed", false, 0),
        };
        let running = phase == "Running";
        let state = if running {
            json!({"running": {"startedAt": self.started}})
        } else {
            let code = i32::from(phase == "Failed");
            json!({"terminated": {
                "exitCode": code, "startedAt": self.started, "finishedAt": now,
                "reason": if code == 0 { "Completed" } else { "Error" }
            }})
        };
        let containers: Vec<Value> = self
            .pod
            .spec
            .iter()
            .flat_map(|spec| &spec.containers)
            .map(|container| {
                json!({
                    "name": container.name, "image": container.image,
                    "imageID": container.image, "containerID": format!("none://{}", container.name),
                    "ready": ready, "started": running, "restartCount": restarts, "state": state
                })
            })
            .collect();
        let truth = |kind: &str, holds: bool| {
            json!({
                "type": kind, "status": if holds { "True" } else { "False" },
                "lastTransitionTime": now
            })
        };
        json!({"status": {
            "phase": phase, "hostIP": NODE_ADDRESS, "startTime": self.started,
            "podIP": self.address, "podIPs": [{"ip": self.address}],
            "conditions": [
                truth("PodScheduled", true), truth("Initialized", true),
                truth("ContainersReady", ready), truth("Ready", ready)
            ],
            "containerStatuses": containers
        }})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_annotation_says_how_a_pod_fares() {
        for (text, expected) in [
            ("now", Some(Readiness::After(Duration::ZERO))),
            ("never", Some(Readiness::Never)),
            ("fail", Some(Readiness::Fails)),
            ("after=2s", Some(Readiness::After(Duration::from_secs(2)))),
            ("flap=500ms", Some(Readiness::Flapping(Duration::from_millis(500)))),
            ("after=soon", None),
            ("", None),
        ] {
            assert_eq!(Readiness::parse(text), expected, "{text}");
        }
    }
}
