//! Simulates one node: schedules pods to itself, writes their status, and deletes them.
//!
//! No container runs. The state of a pod is scripted by its image or by an annotation. The exception is
//! a pod whose image has a [`Runner`]: a real local process is started from the pod's own template
//! ([`runner`]), so that the program runs as it was installed into the cluster.

mod port_forward;
pub mod runner;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use attest_common::basics::locked::Locked;
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

use self::port_forward::PortForward;
pub use self::runner::Runner;
use crate::cluster::{Cluster, client_from};
use crate::process::signal_group;

/// Annotation of a pod: `now`, `never`, `after=2s`, `flap=500ms`, `fail` or `crash-loop`. Takes precedence over the
/// script of its image.
pub const READY_ANNOTATION: &str = "attest.test/ready";

const NODE: &str = "node-1";
const NODE_ADDRESS: &str = "127.0.0.1";
const HEARTBEAT_EVERY: Duration = Duration::from_secs(10);
const RETRY_EVERY: Duration = Duration::from_millis(200);

/// Scripted readiness of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Ready this long after it was scheduled.
    After(Duration),
    /// Runs and never becomes ready.
    Never,
    /// Alternates between ready and not ready, each for this long.
    Flapping(Duration),
    /// Its container fails and is not restarted.
    Fails,
    /// Its container fails and waits to be restarted.
    CrashLoops,
}

impl Readiness {
    /// Parses the value of [`READY_ANNOTATION`].
    fn parse(text: &str) -> Option<Self> {
        match text.split_once('=') {
            None if text == "now" => Some(Self::After(Duration::ZERO)),
            None if text == "never" => Some(Self::Never),
            None if text == "fail" => Some(Self::Fails),
            None if text == "crash-loop" => Some(Self::CrashLoops),
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

/// Options of the node.
#[derive(Clone, Debug, Default)]
pub struct FakeletOptions {
    /// Readiness of pods with an image that contains the text; the last match counts. Other pods are
    /// ready immediately.
    pub scripts: Vec<(String, Readiness)>,
    /// Images that are real programs on this machine.
    pub runners: Vec<Runner>,
}

/// A simulated node. On drop it stops and kills the processes it runs.
#[derive(Debug)]
pub struct Fakelet {
    node: Arc<NodeState>,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Fakelet {
    /// Starts the node of a cluster, on its own thread and runtime, so that it outlives the test that
    /// started it.
    ///
    /// # Errors
    /// When its thread cannot be started.
    pub fn start(cluster: &Cluster, options: FakeletOptions) -> anyhow::Result<Self> {
        let kubeconfig = cluster.kubeconfig_for("fakelet", Some("system:masters"))?;
        Self::start_with(kubeconfig, cluster.directory(), options)
    }

    /// Like [`Self::start`], for a cluster that another process started. Files are in
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
        let node = Arc::new(NodeState {
            directory: directory.join("pods"),
            scripts: Locked::new(scripts),
            runners: Locked::new(runners),
            processes: Locked::default(),
            addresses: AtomicU32::new(1),
        });
        std::fs::create_dir_all(&node.directory)?;
        let stop = CancellationToken::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let running = run_node(kubeconfig, node.clone());
        let until = stop.clone();
        let thread = std::thread::Builder::new().name("fakelet".to_owned()).spawn(move || {
            runtime.block_on(until.run_until_cancelled(running));
            // Dropping the runtime drops the pods' tasks, and with them their processes.
        })?;
        Ok(Self { node, stop, thread: Some(thread) })
    }

    /// Sets the readiness of new pods with an image that contains the text.
    pub fn script(&self, image: &str, readiness: Readiness) {
        self.node.scripts.lock().push((image.to_owned(), readiness));
    }

    /// Starts a real process for each new pod of this image.
    pub fn run(&self, runner: Runner) {
        self.node.runners.lock().push(runner);
    }

    /// The processes of pods, as (`namespace/pod`, process id).
    pub fn processes(&self) -> Vec<(String, u32)> {
        self.node.processes.lock().iter().map(|(pod, id)| (pod.clone(), *id)).collect()
    }

    /// Sends a signal to the processes of pods whose `namespace/pod` begins with the text, and returns
    /// their number. A process that it ends is restarted, as a container would be.
    pub fn signal(&self, pod_prefix: &str, signal: Signal) -> usize {
        let processes = self.node.processes.lock();
        let matching = processes.iter().filter(|(pod, _)| pod.starts_with(pod_prefix));
        matching.map(|(_, id)| signal_group(*id, signal)).count()
    }

    /// Returns the output of the processes of pods whose `namespace/pod` begins with the text, sorted by
    /// pod name. Output remains after the pod is deleted.
    pub fn output(&self, pod_prefix: &str) -> String {
        let prefix = pod_prefix.replace('/', "_");
        let mut logs: Vec<PathBuf> = std::fs::read_dir(&self.node.directory)
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
struct NodeState {
    directory: PathBuf,
    scripts: Locked<Vec<(String, Readiness)>>,
    runners: Locked<Vec<Runner>>,
    processes: Locked<BTreeMap<String, u32>>,
    addresses: AtomicU32,
}

impl NodeState {
    fn readiness(&self, pod: &Pod) -> Readiness {
        let annotated = pod.annotations().get(READY_ANNOTATION);
        if let Some(readiness) = annotated.and_then(|text| Readiness::parse(text)) {
            return readiness;
        }
        let scripts = self.scripts.lock();
        let scripted = scripts
            .iter()
            .rev()
            .find(|(text, _)| images(pod).any(|image| image.contains(text.as_str())));
        scripted.map_or(Readiness::After(Duration::ZERO), |(_, readiness)| *readiness)
    }

    fn runner(&self, pod: &Pod) -> Option<(Runner, Container)> {
        let runners = self.runners.lock();
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

fn images(pod: &Pod) -> impl Iterator<Item = &str> {
    pod.spec
        .iter()
        .flat_map(|spec| &spec.containers)
        .filter_map(|container| container.image.as_deref())
}

fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

async fn run_node(kubeconfig: String, node: Arc<NodeState>) {
    loop {
        let result = async {
            let client = client_from(&kubeconfig).await?;
            create_node(&client).await?;
            let port_forward = PortForward::bind().await?;
            tokio::try_join!(
                heartbeat(&client, port_forward.port()?),
                port_forward.serve(client.clone(), node.clone()),
                watch_pods(&client, &node, &kubeconfig)
            )?;
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

async fn heartbeat(client: &Client, kubelet_port: u16) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let started = now();
    loop {
        let resources = json!({"cpu": "64", "memory": "256Gi", "pods": "5000"});
        let status = json!({"status": {
            "capacity": resources, "allocatable": resources,
            "addresses": [{"type": "InternalIP", "address": NODE_ADDRESS}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": kubelet_port}},
            "nodeInfo": {
                "architecture": "amd64", "bootID": "", "containerRuntimeVersion": "none://0",
                "kernelVersion": "", "kubeProxyVersion": "", "kubeletVersion": "fakelet",
                "machineID": "", "operatingSystem": "linux", "osImage": "", "systemUUID": ""
            },
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "Simulated",
                "lastHeartbeatTime": now(), "lastTransitionTime": started
            }],
        }});
        nodes.patch_status(NODE, &PatchParams::default(), &Patch::Strategic(status)).await?;
        // The node controller removes the taint of a new Node once it is ready; pods here do not wait
        // for that.
        tokio::time::sleep(HEARTBEAT_EVERY).await;
    }
}

async fn watch_pods(
    client: &Client,
    node: &Arc<NodeState>,
    kubeconfig: &str,
) -> anyhow::Result<()> {
    let server = server_of(kubeconfig)?;
    let mut alive: HashMap<String, AbortOnDropHandle<()>> = HashMap::new();
    let pods: Api<Pod> = Api::all(client.clone());
    let events = watcher::watcher(pods, watcher::Config::default()).default_backoff();
    let mut events = std::pin::pin!(events);
    loop {
        let event = match events.try_next().await {
            Ok(Some(event)) => event,
            Ok(None) => bail!("the watch ended"),
            // The stream itself backs off and reconnects.
            Err(_) => continue,
        };
        match event {
            Event::Apply(pod) | Event::InitApply(pod) => {
                let Some(uid) = pod.uid() else { continue };
                if pod.metadata.deletion_timestamp.is_some() {
                    drop(alive.remove(&uid));
                    tokio::spawn(delete_pod(client.clone(), pod));
                } else if let Entry::Vacant(entry) = alive.entry(uid) {
                    let running = run_pod(client.clone(), node.clone(), server.clone(), pod);
                    entry.insert(AbortOnDropHandle::new(tokio::spawn(running)));
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

/// Retries until the attempt succeeds. Returns false when the pod no longer exists.
async fn retry_until_gone<F, Fut>(mut attempt: F) -> bool
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

async fn delete_pod(client: Client, pod: Pod) {
    let name = pod.name_any();
    let pods: Api<Pod> = Api::namespaced(client, &pod.namespace().unwrap_or_default());
    let precondition = Preconditions { uid: pod.uid(), resource_version: None };
    let parameters = DeleteParams::default().grace_period(0).preconditions(precondition);
    retry_until_gone(|| async {
        match pods.delete(&name, &parameters).await {
            // Another pod has this name now.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            other => other.map(|_| ()),
        }
    })
    .await;
}

async fn run_pod(client: Client, node: Arc<NodeState>, server: String, pod: Pod) {
    let assigned = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    if assigned.is_some_and(|node| node != NODE) {
        return;
    }
    let name = pod.name_any();
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    if assigned.is_none() && !retry_until_gone(|| bind(&pods, &name)).await {
        return;
    }
    let pod = NodePod { pods, pod, address: node.next_address(), started: now() };
    if let Some((runner, container)) = node.runner(&pod.pod) {
        runner::supervise(client, &node, &server, &pod, &runner, &container).await;
    } else {
        simulate(&pod, node.readiness(&pod.pod)).await;
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
        // Bound already, by this node before a restart.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        other => other.map(|_| ()),
    }
}

async fn simulate(pod: &NodePod, readiness: Readiness) {
    let policy = pod.pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
    let ends = policy.is_some_and(|policy| policy != "Always");
    match readiness {
        Readiness::Fails => {
            pod.write_status(Condition::Failed).await;
        }
        Readiness::CrashLoops => {
            pod.write_status(Condition::CrashLoop).await;
        }
        Readiness::Never => {
            pod.write_status(Condition::Unready { restarts: 0 }).await;
        }
        Readiness::After(delay) => {
            if !delay.is_zero() {
                pod.write_status(Condition::Unready { restarts: 0 }).await;
                tokio::time::sleep(delay).await;
            }
            pod.write_status(if ends { Condition::Succeeded } else { Condition::ready() }).await;
        }
        Readiness::Flapping(period) => {
            let turns = [Condition::ready(), Condition::Unready { restarts: 0 }];
            let mut turns = turns.iter().cycle();
            while let Some(turn) = turns.next()
                && pod.write_status(*turn).await
            {
                tokio::time::sleep(period).await;
            }
        }
    }
}

/// A pod on the node.
struct NodePod {
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
    CrashLoop,
}

impl Condition {
    fn ready() -> Self {
        Self::Ready { restarts: 0 }
    }
}

impl NodePod {
    /// Writes the pod's status. Returns false when the pod no longer exists.
    async fn write_status(&self, condition: Condition) -> bool {
        let name = self.pod.name_any();
        let patch = Patch::Strategic(self.status(condition));
        retry_until_gone(|| async {
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
            Condition::CrashLoop => ("Running", false, 1),
        };
        let running = phase == "Running";
        let state = if matches!(condition, Condition::CrashLoop) {
            json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}})
        } else if running {
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
        let conditions = [
            ("PodScheduled", true),
            ("Initialized", true),
            ("ContainersReady", ready),
            ("Ready", ready),
        ]
        .map(|(kind, holds)| {
            let status = if holds { "True" } else { "False" };
            json!({"type": kind, "status": status, "lastTransitionTime": now})
        });
        json!({"status": {
            "phase": phase, "hostIP": NODE_ADDRESS, "startTime": self.started,
            "podIP": self.address, "podIPs": [{"ip": self.address}],
            "conditions": conditions,
            "containerStatuses": containers
        }})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_annotation_scripts_the_readiness_of_a_pod() {
        for (text, expected) in [
            ("now", Some(Readiness::After(Duration::ZERO))),
            ("never", Some(Readiness::Never)),
            ("fail", Some(Readiness::Fails)),
            ("crash-loop", Some(Readiness::CrashLoops)),
            ("after=2s", Some(Readiness::After(Duration::from_secs(2)))),
            ("flap=500ms", Some(Readiness::Flapping(Duration::from_millis(500)))),
            ("after=soon", None),
            ("", None),
        ] {
            assert_eq!(Readiness::parse(text), expected, "{text}");
        }
    }
}
