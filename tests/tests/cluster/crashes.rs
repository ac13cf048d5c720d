//! SIGKILL of hub and spoke: at every durable write by name, and at random times under load.
//!
//! Real hub, real spoke, real API server. A process that exits is restarted, as systemd or a kubelet
//! would, and nothing else is done: acknowledged state must be kept, and the newest signed release must
//! be deployed.

#![allow(
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a helper of a test fails the test; a seed must be seen"
)]

mod registration;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use attest_common::record::Record;
use attest_hub::core::store::{Change, Expected, RedbStore, Store, Table};
use attest_tests::process::Process;
use attest_tests::real::{Agents, Ci, RealFleet};
use attest_tests::wait::{POLL_EVERY, until};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::ApiResource;
use kube::{Api, Client};
use serde_json::{Value, json};

const CONVERGED_WITHIN: Duration = Duration::from_secs(60);
const EXITS_WITHIN: Duration = Duration::from_secs(30);
const NAMESPACE: &str = "app-production";
const APPLICATION: &str = "/v1/applications/web-app";
/// ConfigMaps that no release changes, so that one pruned object is a small share of all.
const STABLE_OBJECTS: usize = 6;
/// Entries of a destination that `app history` shows.
const HISTORY_SHOWN: u64 = 50;
/// Minimum number of exits at failpoints; the last writes of a release may not reach one.
const EXITS_MIN: u32 = 37;
const RANDOM_KILLS: u64 = 50;
/// Minimum number of directives carried out between the random kills.
const SEQUENCES_MIN: u64 = 5;
const RANDOM_KILLS_WITHIN: Duration = Duration::from_secs(600);
const LONGEST_LIFE_MS: u64 = 1_200;
const SEED_VARIABLE: &str = "ATTEST_CRASH_SEED";

/// Acknowledged state: none of it may be missing later.
#[derive(Clone, Debug, Default)]
struct Kept {
    clusters: BTreeSet<String>,
    applications: BTreeSet<String>,
    keys: BTreeSet<String>,
    repositories: BTreeSet<String>,
    tokens: BTreeSet<String>,
    /// Release and reported result, by sequence.
    history: BTreeMap<u64, (String, String)>,
    /// Epoch and sequence in the cluster's own Secret.
    record: (u64, u64),
}

impl Kept {
    fn is_contained_in(&self, later: &Self, when: &str) -> anyhow::Result<()> {
        let sets = [
            ("clusters", &self.clusters, &later.clusters),
            ("applications", &self.applications, &later.applications),
            ("keys", &self.keys, &later.keys),
            ("repositories", &self.repositories, &later.repositories),
            ("tokens", &self.tokens, &later.tokens),
        ];
        for (what, before, after) in sets {
            ensure!(before.is_subset(after), "{when}: {what} {before:?} became {after:?}");
        }
        ensure!(
            later.record >= self.record,
            "{when}: the record went from {:?} back to {:?}",
            self.record,
            later.record
        );
        let newest = later.history.keys().next_back().copied().unwrap_or_default();
        let shown = newest.saturating_sub(HISTORY_SHOWN) + 1..=newest;
        ensure!(
            later.history.keys().copied().eq(shown.clone()),
            "{when}: the history has gaps: {:?}",
            later.history
        );
        for (sequence, (version, result)) in self.history.range(shown) {
            let Some((version_later, result_later)) = later.history.get(sequence) else {
                bail!("{when}: directive {sequence} is missing");
            };
            ensure!(version == version_later, "{when}: directive {sequence} changed");
            ensure!(
                result == "Pending" || result_later != "Pending",
                "{when}: the report on directive {sequence} ({result}) is missing"
            );
        }
        Ok(())
    }
}

/// A request to the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// No request: the hub exits during startup.
    Start,
    Key,
    Repository,
    Application,
    Release,
}

/// Every durable write of the hub outside registration, and the request that causes it.
const HUB_WRITES: [(&str, u32, Action); 8] = [
    ("epoch", 1, Action::Start),
    ("blobs", 1, Action::Start),
    ("key", 1, Action::Key),
    ("repository", 1, Action::Repository),
    ("application", 1, Action::Application),
    ("directive", 1, Action::Release),
    ("report", 1, Action::Release),
    ("report", 2, Action::Release),
];

/// Every durable write of the spoke outside registration, refusals and removal, and its maximum number
/// per release. A record is written for the admission, before the first write, for the written objects,
/// and for the deleted ones. Of two objects the release's own is created and the Deployment updated; of
/// the superseded release the rendering and the envelopes are deleted.
const SPOKE_WRITES: [(&str, u32); 11] = [
    ("before-content-write", 1),
    ("after-content-write", 1),
    ("after-admission", 1),
    ("before-record-write", 4),
    ("after-record-write", 4),
    ("before-apply", 2),
    ("after-apply", 2),
    ("before-delete", 1),
    ("after-delete", 1),
    ("before-content-delete", 2),
    ("after-content-delete", 2),
];

/// Writes that restore deleted rights, one for each of the two bindings.
const SPOKE_RIGHTS_WRITES: [(&str, u32); 6] = [
    ("before-namespaces-write", 1),
    ("after-namespaces-write", 1),
    ("before-serviceaccounts-write", 1),
    ("after-serviceaccounts-write", 1),
    ("before-rolebindings-write", 2),
    ("after-rolebindings-write", 2),
];

/// Writes of the number of destinations that the spoke has recorded.
const SPOKE_COUNT_WRITES: [&str; 2] = ["before-count-write", "after-count-write"];

/// A fleet of one cluster and one application, whose processes are killed.
struct Arena {
    fleet: RealFleet,
    client: Client,
    released: u64,
}

impl Arena {
    async fn set() -> anyhow::Result<Option<Self>> {
        let clusters = [("production", "production")];
        let started = RealFleet::start_with(&clusters, Agents::External, &mut |_| {}).await?;
        let Some(fleet) = started else { return Ok(None) };
        // The sample is also signed for staging.
        let public = fleet.key().with_extension("pub").display().to_string();
        let add = ["trust", "key", "add", "ci", &public, "--environment", "staging,production"];
        fleet.operator().attest(&add)?;
        fleet.write_sample()?;
        let client = fleet.sites()[0].cluster.client().await?;
        let mut arena = Self { fleet, client, released: 0 };
        arena.release().await?;
        let _: Value =
            arena.fleet.api().call("PUT", "/v1/applications", Some(&arena.manifest(true))).await?;
        arena.converges("the first release").await?;
        Ok(Some(arena))
    }

    fn manifest(&self, prunes: bool) -> Value {
        json!({
            "apiVersion": "attest.continuu.ms/v1", "kind": "AttestApplication",
            "metadata": {"name": "web-app"},
            "spec": {
                "source": {"repoUrl": self.fleet.repository().url(), "path": "k8s/overlays"},
                "destinations": [{"cluster": "production", "namespace": NAMESPACE}],
                "syncPolicy": {"automated": {"prune": prunes, "selfHeal": true}},
            },
        })
    }

    async fn release(&mut self) -> anyhow::Result<()> {
        self.released += 1;
        let (ci, number) = (self.fleet.ci(), self.released);
        tokio::task::spawn_blocking(move || release(&ci, number)).await?
    }

    async fn sync(&self) -> anyhow::Result<Value> {
        self.fleet.api().call("POST", &format!("{APPLICATION}/sync"), None).await
    }

    async fn list(&self, path: &str) -> anyhow::Result<Vec<Value>> {
        let answer: Value = self.fleet.api().call("GET", path, None).await?;
        Ok(answer["items"].as_array().context("no items")?.clone())
    }

    async fn texts(&self, path: &str, field: &str) -> anyhow::Result<BTreeSet<String>> {
        let items = self.list(path).await?;
        Ok(items.iter().map(|item| item[field].to_string()).collect())
    }

    async fn record(&self) -> anyhow::Result<Option<Record>> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), "attest-spoke");
        let mine = ListParams::default().labels("attest.continuu.ms/record=destination");
        let Some(secret) = secrets.list(&mine).await?.items.into_iter().next() else {
            return Ok(None);
        };
        let data = secret.data.context("no data")?;
        Ok(Some(serde_json::from_slice(&data.get("record.json").context("no record")?.0)?))
    }

    async fn kept(&self) -> anyhow::Result<Kept> {
        until("the hub's answers", EXITS_WITHIN, || async {
            let history = self.list(&format!("{APPLICATION}/history")).await?;
            let record = self.record().await?;
            Ok(Some(Kept {
                clusters: self.texts("/v1/clusters", "id").await?,
                applications: self.texts("/v1/applications", "name").await?,
                keys: self.texts("/v1/keys", "alias").await?,
                repositories: self.texts("/v1/repositories", "url").await?,
                tokens: self.texts("/v1/tokens", "id").await?,
                history: history.iter().filter_map(history_entry).collect(),
                record: record.map(|r| (r.epoch, r.sequence)).unwrap_or_default(),
            }))
        })
        .await
    }

    /// Returns whether the newest release runs, hub and cluster report it, and nothing older is left.
    async fn has_converged(&self) -> anyhow::Result<bool> {
        let version = self.released.to_string();
        let seen: Value = self.fleet.api().call("GET", APPLICATION, None).await?;
        let destination = &seen["destinations"][0];
        if seen["phase"] != "Synced" || destination["running"]["version"] != version.as_str() {
            return Ok(false);
        }
        let history = self.list(&format!("{APPLICATION}/history")).await?;
        let newest = history.iter().max_by_key(|entry| entry["sequence"].as_u64());
        let newest = newest.context("no history")?;
        if newest["version"] != version.as_str() || newest["result"] != "Synced" {
            return Ok(false);
        }
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), NAMESPACE);
        let pod = deployments.get("web-app").await?.spec.template.spec;
        let image = pod.and_then(|pod| pod.containers.into_iter().next()?.image);
        let runs = image.is_some_and(|i| i.starts_with(&format!("myapp:{version}@sha256:")));
        let extra = BTreeSet::from([marker(self.released)]);
        let edited = self.configs().get("stable-0").await?.data.unwrap_or_default();
        let healed = edited.get("text").is_some_and(|text| text == "x");
        Ok(runs && healed && self.release_objects().await? == extra)
    }

    /// The objects that belong to one release only.
    async fn release_objects(&self) -> anyhow::Result<BTreeSet<String>> {
        let names = self.configs().list(&ListParams::default()).await?.items.into_iter();
        let names = names.filter_map(|config| config.metadata.name);
        Ok(names.filter(|name| name.starts_with("release-")).collect())
    }

    async fn converges(&mut self, when: &str) -> anyhow::Result<()> {
        let waited = until(when, CONVERGED_WITHIN, || async {
            Ok(self.has_converged().await?.then_some(()))
        });
        let Err(error) = waited.await else { return Ok(()) };
        Err(self.explained(error).await)
    }

    async fn explained(&mut self, error: anyhow::Error) -> anyhow::Error {
        let seen = self.fleet.operator().attest(&["gitops", "app", "get", "web-app"]);
        let history = self.fleet.operator().attest(&["gitops", "app", "history", "web-app"]);
        let objects = self.release_objects().await;
        let record = self.record().await;
        let spoke = self.fleet.sites()[0].spoke.as_ref().map(Process::output);
        let hub = self.fleet.hub().process().output();
        error.context(format!(
            "release {}; objects {objects:?}\n{seen:?}\n{history:?}\n{record:#?}\nspoke: {}\nhub: {}",
            self.released,
            last_lines(&spoke.unwrap_or_default()),
            last_lines(&hub)
        ))
    }

    fn configs(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// Edits an object of the application. The spoke reverts it without a hub; when it reports that to a
    /// restarted hub, it learns that this is another process.
    async fn edit(&self, text: &str) -> anyhow::Result<()> {
        let patch = Patch::Merge(json!({"data": {"text": text}}));
        self.configs().patch("stable-0", &PatchParams::default(), &patch).await?;
        Ok(())
    }

    fn spoke(&mut self) -> anyhow::Result<&mut Process> {
        let site = self.fleet.sites_mut().first_mut().context("no site")?;
        site.spoke.as_mut().context("no spoke")
    }

    /// Kills the spoke and starts it again, with a failpoint if one is given.
    fn restart_spoke(&mut self, failpoint: Option<&str>) -> anyhow::Result<()> {
        let spoke = self.spoke()?;
        spoke.kill();
        *spoke = spoke.respawn_with_failpoint(failpoint)?;
        Ok(())
    }

    async fn act(&self, action: Action, name: &str) -> anyhow::Result<()> {
        let api = self.fleet.api();
        let name = name.split(':').next().unwrap_or(name);
        let _: Value = match action {
            Action::Start => return Ok(()),
            Action::Key => {
                let public = std::fs::read_to_string(self.fleet.key().with_extension("pub"))?;
                let request = json!({"alias": name, "publicKey": public});
                api.call("PUT", "/v1/keys", Some(&request)).await?
            }
            Action::Repository => {
                let url = self.fleet.repository().url();
                let request = json!({"url": url, "allowPushCredential": true});
                api.call("PUT", "/v1/repositories", Some(&request)).await?
            }
            Action::Application => {
                let prunes = !name.starts_with("before");
                api.call("PUT", "/v1/applications", Some(&self.manifest(prunes))).await?
            }
            Action::Release => self.sync().await?,
        };
        Ok(())
    }

    /// Lets the hub exit at one durable write, and checks that everything acknowledged before is kept.
    async fn hub_exits_at(&mut self, point: &str, action: Action) -> anyhow::Result<()> {
        let before = self.kept().await?;
        self.fleet.hub().process().kill();
        if point.contains("blobs") {
            leave_an_unused_blob(self.fleet.hub().home())?;
        }
        self.fleet.hub().respawn(Some(point))?;
        if action != Action::Start {
            self.fleet.hub().listens().await.with_context(|| format!("armed with {point}"))?;
        }
        if action == Action::Release {
            self.edit(point).await?;
            self.release().await?;
        }
        let start = Instant::now();
        while self.fleet.hub().process().ended()?.is_none() {
            ensure!(start.elapsed() < EXITS_WITHIN, "the hub did not exit at {point}");
            let _ = self.act(action, point).await;
            tokio::time::sleep(POLL_EVERY).await;
        }
        self.edit(point).await?;
        self.fleet.hub().restart().await?;
        before.is_contained_in(&self.kept().await?, point)?;
        // The operator repeats the failed request; a release is not requested again.
        if action != Action::Release {
            until("the answer", EXITS_WITHIN, || async {
                Ok(Some(self.act(action, point).await?))
            })
            .await?;
        }
        self.converges(point).await?;
        before.is_contained_in(&self.kept().await?, point)
    }

    /// Lets the spoke exit at one durable write. Returns false when a release completes before that
    /// point, which is an error if it `must` be reached.
    async fn spoke_exits_at(&mut self, point: &str, must: bool) -> anyhow::Result<bool> {
        let before = self.kept().await?;
        self.restart_spoke(Some(point))?;
        self.release().await?;
        self.sync().await?;
        let start = Instant::now();
        let mut exited = false;
        while !exited && (must || !self.has_converged().await.unwrap_or(false)) {
            if start.elapsed() > CONVERGED_WITHIN {
                let error = anyhow::anyhow!("neither dead nor done at {point}");
                return Err(self.explained(error).await);
            }
            exited = self.spoke()?.ended()?.is_some();
            tokio::time::sleep(POLL_EVERY).await;
        }
        if exited {
            let spoke = self.spoke()?;
            *spoke = spoke.respawn_with_failpoint(None)?;
            self.converges(point).await?;
        }
        before.is_contained_in(&self.kept().await?, point)?;
        Ok(exited)
    }

    /// Deletes the bindings with which the application's account writes and the spoke reads.
    async fn delete_rights(&self) -> anyhow::Result<()> {
        let bindings: Api<RoleBinding> = Api::namespaced(self.client.clone(), NAMESPACE);
        bindings.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
        Ok(())
    }

    /// Number of destinations that the spoke's identity Secret counts.
    async fn counted(&self) -> anyhow::Result<String> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), "attest-spoke");
        let data = secrets.get("attest-identity").await?.data.context("no data")?;
        Ok(String::from_utf8(data.get("destinations").context("no count")?.0.clone())?)
    }

    /// The spoke finds more records than it has counted, as after a first release.
    async fn count_is_behind(&mut self, point: &str) -> anyhow::Result<()> {
        self.spoke()?.kill();
        let behind = Patch::Merge(json!({"stringData": {"destinations": "0"}}));
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), "attest-spoke");
        secrets.patch("attest-identity", &PatchParams::default(), &behind).await?;
        self.restart_spoke(Some(point))?;
        self.await_spoke_exit(point).await?;
        until("the count to be noted", EXITS_WITHIN, || async {
            Ok((self.counted().await? == "1").then_some(()))
        })
        .await
    }

    /// Waits until the spoke has exited, and starts it again without a failpoint.
    async fn await_spoke_exit(&mut self, point: &str) -> anyhow::Result<()> {
        let start = Instant::now();
        while self.spoke()?.ended()?.is_none() {
            if start.elapsed() > EXITS_WITHIN {
                let error = anyhow::anyhow!("the spoke did not exit at {point}");
                return Err(self.explained(error).await);
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
        let spoke = self.spoke()?;
        *spoke = spoke.respawn_with_failpoint(None)?;
        Ok(())
    }

    /// Allows or forbids removal by the hub in the cluster's policy.
    async fn set_removal(&self, allow: bool) -> anyhow::Result<()> {
        let allowed =
            json!({"op": "replace", "path": "/spec/applications/0/remove/allow", "value": allow});
        let patch: Patch<()> = Patch::Json(serde_json::from_value(json!([allowed]))?);
        policies(&self.client).patch("local", &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Creates state that must be kept: a CI key with a name of its own, and a join token.
    async fn key_and_token(&self, round: u64) -> anyhow::Result<Option<()>> {
        self.act(Action::Key, &format!("round-{round}")).await?;
        let request =
            json!({"cluster": format!("round-{round}"), "ttlSeconds": 3_600, "autoAccept": false});
        let token: Value = self.fleet.api().call("POST", "/v1/tokens", Some(&request)).await?;
        let listed = self.texts("/v1/tokens", "id").await?;
        let id = token["id"].to_string();
        ensure!(listed.contains(&id), "the new token {id} is not among {listed:?}");
        Ok(Some(()))
    }

    async fn is_refused(&self, reason: &str) -> anyhow::Result<()> {
        let kubeconfig = self.fleet.sites()[0].cluster.kubeconfig().display().to_string();
        until("the refusal in the cluster", EXITS_WITHIN, || async {
            let status =
                self.fleet.operator().json(&["spoke", "status", "--kubeconfig", &kubeconfig])?;
            let all = status["refusals"].as_array().cloned().unwrap_or_default();
            Ok(all.iter().any(|refusal| refusal["reason"] == reason).then_some(()))
        })
        .await
    }
}

/// Sequence, version and result of a line of the history.
fn history_entry(entry: &Value) -> Option<(u64, (String, String))> {
    let result = (entry["version"].to_string(), entry["result"].as_str()?.to_owned());
    Some((entry["sequence"].as_u64()?, result))
}

/// Last lines of a log.
fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines.iter().skip(lines.len().saturating_sub(25)).copied().collect::<Vec<_>>().join("\n")
}

/// Name of the object that a release creates and the next one deletes. Three names in rotation: with a
/// new name each time, kills during pruning would accumulate objects until the mass-prune guard stops
/// it.
fn marker(number: u64) -> String {
    format!("release-{}", number % 3)
}

fn release(ci: &Ci, number: u64) -> anyhow::Result<()> {
    let base = ci.repository().tree().join("k8s/base");
    let mut resources =
        vec!["configmap.yaml".to_owned(), "deployment.yaml".to_owned(), "service.yaml".to_owned()];
    let stable = (0..STABLE_OBJECTS).map(|index| format!("stable-{index}"));
    for name in stable.chain([marker(number)]) {
        let config = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
            "data": {"text": "x"},
        });
        let file = format!("extra-{name}.yaml");
        std::fs::write(base.join(&file), config.to_string())?;
        resources.push(file);
    }
    let _ = std::fs::remove_file(base.join(format!("extra-{}.yaml", marker(number - 1))));
    let kustomization = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
        "resources": resources,
    });
    std::fs::write(base.join("kustomization.yaml"), kustomization.to_string())?;
    ci.release(&number.to_string())?;
    Ok(())
}

/// Stores a blob for `drop_unused_blobs` to delete at the next start of a stopped hub.
fn leave_an_unused_blob(home: &Path) -> anyhow::Result<()> {
    let store = RedbStore::open(&home.join("hub.redb"))?;
    let key = attest_common::basics::ids::Digest::of(b"unused").hex();
    let value = [&6_u64.to_be_bytes()[..], b"unused"].concat();
    let put = Change::Put { table: Table::Blobs, key, expected: Expected::Anything, value };
    Ok(store.commit("test", &[put])?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_survives_an_exit_at_every_durable_write() -> anyhow::Result<()> {
    let Some(mut arena) = Arena::set().await? else { return Ok(()) };
    let mut exits = 0_u32;
    for (what, times, action) in HUB_WRITES {
        for when in ["before", "after"] {
            let point = format!("{when}-{what}-commit:{times}");
            arena.hub_exits_at(&point, action).await?;
            exits += 1;
        }
    }
    for (name, times_max) in SPOKE_WRITES {
        for times in 1..=times_max {
            // The last writes of a release may not reach a failpoint.
            let exited = arena.spoke_exits_at(&format!("{name}:{times}"), times == 1).await?;
            exits += u32::from(exited);
        }
    }
    for (name, times_max) in SPOKE_RIGHTS_WRITES {
        for times in 1..=times_max {
            arena.delete_rights().await?;
            let exited = arena.spoke_exits_at(&format!("{name}:{times}"), true).await?;
            exits += u32::from(exited);
        }
    }
    for point in SPOKE_COUNT_WRITES {
        arena.count_is_behind(point).await?;
        arena.converges(point).await?;
    }
    ensure!(exits >= EXITS_MIN, "only {exits} exits: failpoints are no longer reached");
    a_removal_survives_them_too(&mut arena).await
}

/// `app delete`: refused by the cluster's policy at first, then allowed; both processes exit during it.
async fn a_removal_survives_them_too(arena: &mut Arena) -> anyhow::Result<()> {
    let before = arena.kept().await?;
    let answer: anyhow::Result<Value> = arena.fleet.api().call("DELETE", APPLICATION, None).await;
    let error = answer.err().map(|error| error.to_string()).unwrap_or_default();
    ensure!(
        error.contains("RemoveNotAllowed"),
        "the hub issued a directive that its cluster refuses: {error}"
    );
    // The hub knows that removal is allowed; the cluster's operator forbids it before the hub requests
    // it.
    arena.spoke()?.kill();
    arena.set_removal(true).await?;
    arena.fleet.hub().process().kill();
    arena.fleet.hub().respawn(None)?;
    arena.fleet.hub().listens().await?;
    arena.restart_spoke(None)?;
    until("the spoke to greet the hub", CONVERGED_WITHIN, || async {
        let clusters = arena.list("/v1/clusters").await?;
        Ok(clusters.iter().any(|cluster| cluster["connected"] == true).then_some(()))
    })
    .await?;
    arena.spoke()?.kill();
    arena.set_removal(false).await?;
    let _: Value = arena.fleet.api().call("DELETE", APPLICATION, None).await?;
    arena.restart_spoke(Some("before-refusal-write"))?;
    arena.await_spoke_exit("before-refusal-write").await?;
    arena.is_refused("RemoveNotAllowed").await?;
    arena.restart_spoke(Some("after-refusal-write"))?;
    arena.sync().await?;
    arena.await_spoke_exit("after-refusal-write").await?;
    arena.is_refused("RemoveNotAllowed").await?;
    before.is_contained_in(&arena.kept().await?, "a refused removal")?;
    ensure!(arena.release_objects().await?.len() == 1, "a refused removal removed something");

    arena.restart_spoke(Some("after-delete:2"))?;
    arena.fleet.hub().process().kill();
    arena.fleet.hub().respawn(Some("before-application-commit"))?;
    arena.fleet.hub().listens().await?;
    arena.set_removal(true).await?;
    let start = Instant::now();
    while arena.spoke()?.ended()?.is_none() {
        if start.elapsed() > EXITS_WITHIN {
            let error = anyhow::anyhow!("the spoke did not exit at its second deletion");
            return Err(arena.explained(error).await);
        }
        let _ = arena.sync().await;
        tokio::time::sleep(POLL_EVERY).await;
    }
    let spoke = arena.spoke()?;
    *spoke = spoke.respawn_with_failpoint(None)?;
    for point in [Some("after-application-commit"), None] {
        let start = Instant::now();
        while arena.fleet.hub().process().ended()?.is_none() {
            if start.elapsed() > EXITS_WITHIN {
                let error = anyhow::anyhow!("the hub did not forget the application");
                return Err(arena.explained(error).await);
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
        arena.fleet.hub().respawn(point)?;
    }
    arena.fleet.hub().listens().await?;
    until("the application to be removed", CONVERGED_WITHIN, || async {
        let gone = arena.list("/v1/applications").await?.is_empty();
        Ok((gone && arena.release_objects().await?.is_empty()).then_some(()))
    })
    .await?;
    arena.fleet.check_spoke_requests()?;
    Ok(())
}

fn policies(client: &Client) -> Api<DynamicObject> {
    let resource = ApiResource {
        group: "attest.continuu.ms".to_owned(),
        version: "v1".to_owned(),
        api_version: "attest.continuu.ms/v1".to_owned(),
        kind: "AttestTrustPolicy".to_owned(),
        plural: "attesttrustpolicies".to_owned(),
    };
    Api::all_with(client.clone(), &resource)
}

/// splitmix64: a failed test can be repeated with the same times.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_kills_at_random_times_under_load_lose_nothing() -> anyhow::Result<()> {
    let Some(mut arena) = Arena::set().await? else { return Ok(()) };
    let seed = match std::env::var(SEED_VARIABLE) {
        Ok(text) => text.parse()?,
        Err(_) => u64::from(SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos()),
    };
    eprintln!("{SEED_VARIABLE}={seed}");
    let mut random = Random(seed);
    let stop = Arc::new(AtomicBool::new(false));
    let released = Arc::new(AtomicU64::new(arena.released));
    let releasing = tokio::spawn(keep_releasing(
        arena.fleet.ci(),
        arena.fleet.api().clone(),
        released.clone(),
        stop.clone(),
    ));
    let mut known = arena.kept().await?;
    let first = known.record;
    let mut kills = 0;
    let mut happened = 0;
    let started = Instant::now();
    // Enough kills, and enough progress between them for a slow machine to be interrupted at different
    // points.
    while kills < RANDOM_KILLS || happened < SEQUENCES_MIN {
        let when = format!("seed {seed}, kill {kills}");
        ensure!(started.elapsed() < RANDOM_KILLS_WITHIN, "{when}: only {happened} directives");
        tokio::time::sleep(Duration::from_millis(random.below(LONGEST_LIFE_MS))).await;
        if kills % 2 == 0 {
            // State acknowledged to an operator just before the kill is kept.
            until("a key and a token to be kept", EXITS_WITHIN, || arena.key_and_token(kills))
                .await?;
            known = arena.kept().await?;
            let alias = json!(format!("round-{kills}")).to_string();
            ensure!(known.keys.contains(&alias), "{when}: no key {alias} in {:?}", known.keys);
            arena.fleet.hub().process().kill();
            arena.fleet.hub().restart().await.with_context(|| when.clone())?;
            known.is_contained_in(&arena.kept().await?, &when)?;
        } else {
            let (epoch, sequence) = known.record;
            arena.restart_spoke(None)?;
            let record = arena.record().await?.context("the record is missing")?;
            let now = (record.epoch, record.sequence);
            ensure!(now >= (epoch, sequence), "{when}: {now:?} after {:?}", (epoch, sequence));
            known.record = now;
        }
        kills += 1;
        happened = known.record.1.saturating_sub(first.1);
    }
    stop.store(true, Ordering::Relaxed);
    releasing.await??;
    arena.released = released.load(Ordering::Relaxed);
    arena.sync().await?;
    arena.converges(&format!("seed {seed}: the last release")).await?;
    let last = arena.kept().await?;
    known.is_contained_in(&last, "the end")?;
    eprintln!(
        "{kills} kills, {} releases, sequences {} to {}",
        arena.released, first.1, last.record.1
    );
    arena.fleet.check_spoke_requests()?;
    Ok(())
}

/// The load: consecutive releases, each followed by a sync request, as CI would.
async fn keep_releasing(
    ci: Ci,
    api: attest_tests::api::Api,
    released: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let (number, ci) = (released.load(Ordering::Relaxed) + 1, ci.clone());
        tokio::task::spawn_blocking(move || release(&ci, number)).await??;
        released.store(number, Ordering::Relaxed);
        // The hub may be down; it reconciles when it starts.
        let _ = api.call::<Value>("POST", &format!("{APPLICATION}/sync"), None).await;
    }
    Ok(())
}
