//! A hub with little memory beside hostile repositories: it survives, and commits of innocent applications are applied as
//! quickly as before.
//!
//! Not a figure of a table: it fails when the hub ends, when an innocent commit is not applied, or when a hostile
//! repository is deployed. Measured first without and then with the hostile repositories.

mod hostile;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use kube::{Api as KubeApi, Client};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::{Value, json};

use super::figures::{Figures, heading};
use crate::fleet::Repository;
use crate::process::describe;
use crate::real::RealFleet;
use crate::wait::until;
use crate::workload::ENVIRONMENT;

/// Limit of the hub's memory (`RLIMIT_DATA`), in bytes.
const HUB_BYTES_MAX: u64 = 512 * 1024 * 1024;
const SYNCED_WITHIN: Duration = Duration::from_secs(300);
const APPLIED_WITHIN: Duration = Duration::from_secs(60);
/// Interval between two looks at an object.
const LOOK: Duration = Duration::from_millis(20);
/// One hostile repository gets another commit after this many innocent ones.
const HOSTILE_EVERY: usize = 2;

/// An innocent application with one ConfigMap.
struct Innocent {
    name: String,
    repository: Repository,
    release: u32,
}

/// Runs `applications` innocent applications for `seconds` without and for twice as long with hostile repositories.
///
/// # Errors
/// When the hub does not survive, or what it reports is not true.
pub async fn run(
    (applications, seconds): (usize, u64),
    print: &mut dyn FnMut(String),
) -> anyhow::Result<()> {
    let Some(mut fleet) = RealFleet::start(&[("one", ENVIRONMENT)]).await? else {
        anyhow::bail!("no Kubernetes programs; run kind-clusters/tools/build.sh");
    };
    allow(&fleet).await?;
    let client = fleet.sites().first().context("no site")?.cluster.client().await?;
    let mut innocents = Vec::new();
    for number in 0..applications {
        let mut innocent = Innocent::create(&fleet, number)?;
        innocent.push(&fleet)?;
        apply(&fleet, (&innocent.name, &innocent.name), &innocent.repository).await?;
        innocents.push(innocent);
    }
    for innocent in &innocents {
        innocent.applied(&client, SYNCED_WITHIN).await?;
    }
    let hub = fleet.hub().id();
    limit_memory(hub)?;
    let before = peak_bytes(hub)?;
    print(format!("{applications} innocent applications; the hub is limited to 512 MiB of data"));

    let none = BTreeMap::new();
    let quiet = changes(&fleet, (&client, &mut innocents), &none, seconds).await?;
    let hostile = hostile::create_all(fleet.directory())?;
    for (name, repository) in &hostile {
        apply(&fleet, (name, name), repository).await?;
    }
    let beside = changes(&fleet, (&client, &mut innocents), &hostile, 2 * seconds).await?;

    let ended = fleet.hub().process().ended()?;
    ensure!(ended.is_none(), "the hub ended: {ended:?}\n{}", fleet.hub().process().output());
    ensure!(fleet.hub().id() == hub, "the hub was restarted");
    print(heading());
    print(quiet.line("push to applied, quiet", "ms", ""));
    print(beside.line("push to applied, beside hostile repositories", "ms", "p99 <= 2 x quiet"));
    print(format!(
        "p99 beside over quiet: {:.2}; peak resident memory of the hub: {} MiB, {} MiB before",
        beside.percentile(99.0) / quiet.percentile(99.0),
        peak_bytes(hub)? / 1024 / 1024,
        before / 1024 / 1024
    ));
    report(&fleet, &hostile, print).await
}

/// Permits releases without attestations.
async fn allow(fleet: &RealFleet) -> anyhow::Result<()> {
    let policies = fleet.sites().first().context("no site")?.policies().await?;
    let policy = policies.get("local").await?;
    let mut entries = policy.data.pointer("/spec/applications").cloned().unwrap_or_default();
    for entry in entries.as_array_mut().context("the policy has no applications")? {
        entry["minimumMode"] = json!("Standard");
        entry["requiredAttestations"] = json!([]);
    }
    let patch = Patch::Merge(json!({"spec": {"applications": entries}}));
    policies.patch("local", &PatchParams::default(), &patch).await?;
    Ok(())
}

async fn apply(
    fleet: &RealFleet,
    (name, namespace): (&str, &str),
    repository: &Repository,
) -> anyhow::Result<()> {
    let manifest = json!({
        "apiVersion": "attest.continuu.ms/v1", "kind": "AttestApplication",
        "metadata": {"name": name},
        "spec": {
            "source": {"repoUrl": repository.url(), "path": "k8s"},
            "destination": {"namespace": namespace},
            "verification": {"policy": "Standard"},
            "syncPolicy": {"automated": {"prune": true, "selfHeal": true}},
        },
    });
    let _: Value = fleet.api().call("PUT", "/v1/applications", Some(&manifest)).await?;
    Ok(())
}

impl Innocent {
    fn create(fleet: &RealFleet, number: usize) -> anyhow::Result<Self> {
        let name = format!("innocent-{number}");
        let repository = Repository::create(&fleet.directory().join(&name))?;
        let recipe = format!(
            "application: {name}\nrepository: {}\nsourceRoot: k8s\nrenders:\n\
             - {{name: all, path: k8s, environments: [{ENVIRONMENT}], namespace: {{mode: fixed, value: {name}}}}}\n\
             release: {{version: \"${{VERSION}}\", counter: \"${{VERSION}}\", notAfter: 720h}}\n",
            repository.url()
        );
        std::fs::write(repository.tree().join("attest.yaml"), recipe)?;
        std::fs::create_dir_all(repository.tree().join("k8s"))?;
        Ok(Self { name, repository, release: 0 })
    }

    /// Signs and pushes the next release.
    fn push(&mut self, fleet: &RealFleet) -> anyhow::Result<()> {
        self.release += 1;
        let version = self.release.to_string();
        let manifest = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: settings}}\ndata: {{release: \"{version}\"}}\n"
        );
        std::fs::write(self.repository.tree().join("k8s/settings.yaml"), manifest)?;
        self.repository.git(&["add", "-A"])?;
        self.repository.git(&["commit", "-q", "-m", "Source"])?;
        let mut run = fleet.operator().command(["run", "--sign"]);
        run.current_dir(self.repository.tree()).env("VERSION", &version);
        let output = run.env("ATTEST_SIGNING_KEY_FILE", fleet.key()).output()?;
        ensure!(output.status.success(), "attest run --sign: {}", describe(&output));
        self.repository.commit_and_push("Release").map(drop)
    }

    /// Waits until the newest release is applied.
    async fn applied(&self, client: &Client, within: Duration) -> anyhow::Result<()> {
        let maps: KubeApi<ConfigMap> = KubeApi::namespaced(client.clone(), &self.name);
        let version = self.release.to_string();
        let looking = async {
            loop {
                let found = maps.get_opt("settings").await?;
                let live = found.and_then(|map| map.data?.remove("release"));
                if live.as_ref() == Some(&version) {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let waited = tokio::time::timeout(within, looking).await;
        waited.with_context(|| format!("release {version} of {} is not applied", self.name))?
    }
}

/// Pushes changes of the innocent applications in turn, and of the hostile ones between. Returns the times from the sync
/// request to the applied object, in ms.
async fn changes(
    fleet: &RealFleet,
    (client, innocents): (&Client, &mut [Innocent]),
    hostile: &BTreeMap<String, Repository>,
    seconds: u64,
) -> anyhow::Result<Figures> {
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut figures = Figures::default();
    let mut disturbing = hostile.iter().cycle();
    while Instant::now() < end {
        for innocent in innocents.iter_mut() {
            if Instant::now() >= end {
                break;
            }
            if figures.len().is_multiple_of(HOSTILE_EVERY)
                && let Some((name, repository)) = disturbing.next()
            {
                repository.commit_and_push("again")?;
                sync(fleet, name).await?;
            }
            innocent.push(fleet)?;
            let started = Instant::now();
            sync(fleet, &innocent.name).await?;
            innocent.applied(client, APPLIED_WITHIN).await?;
            figures.add(started.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(figures)
}

async fn sync(fleet: &RealFleet, name: &str) -> anyhow::Result<()> {
    let path = format!("/v1/applications/{name}/sync");
    let _: Value = fleet.api().call("POST", &path, None).await?;
    Ok(())
}

/// Prints the reason of each hostile application, and checks that none is deployed.
async fn report(
    fleet: &RealFleet,
    hostile: &BTreeMap<String, Repository>,
    print: &mut dyn FnMut(String),
) -> anyhow::Result<()> {
    for name in hostile.keys() {
        let path = format!("/v1/applications/{name}");
        let awaited = format!("a reason of {name}");
        let seen = until(&awaited, SYNCED_WITHIN, || async {
            let seen: Value = fleet.api().call("GET", &path, None).await?;
            let phase = seen.pointer("/destinations/0/phase").and_then(Value::as_str);
            let is_shown = phase.is_some_and(|phase| !phase.is_empty() && phase != "Progressing");
            Ok(is_shown.then_some(seen))
        });
        let seen = seen.await?;
        let destination = seen.pointer("/destinations/0").context("no destination")?;
        ensure!(destination["phase"] != "Synced", "{name} is deployed: {seen:#}");
        let [phase, reason, message] = ["phase", "reason", "message"]
            .map(|field| destination[field].as_str().unwrap_or_default().to_owned());
        let message: String = message.chars().take(160).collect();
        print(format!("{name}: {phase} ({reason}): {message}"));
    }
    Ok(())
}

/// Limits the memory of a process.
fn limit_memory(id: u32) -> anyhow::Result<()> {
    let pid = Pid::from_raw(i32::try_from(id)?).context("no process id")?;
    let limit = Rlimit { current: Some(HUB_BYTES_MAX), maximum: Some(HUB_BYTES_MAX) };
    prlimit(Some(pid), Resource::Data, limit).context("prlimit")?;
    Ok(())
}

/// Returns the highest resident memory of a process so far, in bytes.
fn peak_bytes(id: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()).context("no VmHWM")?;
    Ok(kibibytes.parse::<u64>()? * 1024)
}
