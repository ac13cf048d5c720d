//! One spoke on a real API server, driven by a hub under the test's control: its writes, reverts,
//! deletions and refusals, and its state after a kill.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use attest_common::basics::keys::PrivateKey;
use attest_common::documents::plan::Operation;
use attest_common::objects::health::Health;
use attest_common::record::Record;
use attest_common::session::report::{Phase, Report};
use attest_tests::cluster::audit::{AuditEvent, Mark};
use attest_tests::cluster::fakelet::READY_ANNOTATION;
use attest_tests::compromised_hub::{
    CompromisedHub, Delivery, Peer, PublishedRelease, ResignOptions,
};
use attest_tests::fleet::program;
use attest_tests::process::{Process, Spec};
use attest_tests::real::{Agents, RealFleet, RealSite};
use attest_tests::wait::until;
use http::Request;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use rustix::process::Signal;
use serde_json::{Value, json};

mod hub_keys;

const WITHIN: Duration = Duration::from_secs(60);
/// Long enough to observe a second write, if there is one.
const SETTLE: Duration = Duration::from_millis(700);
/// The spoke's rate limit of admissions.
const ADMISSIONS_AT_ONCE_MAX: u32 = 10;
const ADMISSION_EVERY: Duration = Duration::from_secs(3);
/// Deadline of a Deployment that never becomes ready; longer than a healthy one takes.
const PROGRESS_DEADLINE_S: u64 = 5;
/// Time limit for reverting an edit while another application hangs: much less than its requests take.
const REVERTED_WITHIN: Duration = Duration::from_secs(5);
/// Duration of a request that is never answered.
const HANGING_WITHIN: Duration = Duration::from_secs(25);
/// The spoke's limit of concurrent requests per worker, and more objects than that.
const REQUESTS_AT_ONCE: usize = 8;
const REQUESTS_OF_ONE: usize = 20;
const OTHER: &str = "other";
const OTHER_NAMESPACE: &str = "app-other";
const CLUSTER: &str = "staging";
const NAMESPACE: &str = "app-staging";
const POD: &str = "attest-spoke/attest-spoke";

/// A cluster whose spoke is connected to a hub under the test's control.
struct Stage {
    fleet: RealFleet,
    hub: Option<CompromisedHub>,
    published: PublishedRelease,
    ci: PrivateKey,
    sequence: u64,
    /// The sample's own objects; tests add theirs.
    base: Vec<Value>,
}

impl Stage {
    async fn set() -> anyhow::Result<Option<Self>> {
        Self::set_with(Agents::InCluster).await
    }

    async fn set_with(agents: Agents) -> anyhow::Result<Option<Self>> {
        let clusters = [(CLUSTER, CLUSTER)];
        let started = RealFleet::start_with(&clusters, agents, &mut |_| {}).await?;
        let Some(mut fleet) = started else { return Ok(None) };
        fleet.write_sample()?;
        // The sample is also rendered for production, and `attest run --verify` knows keys by
        // environment.
        let public = fleet.key().with_extension("pub").display().to_string();
        let add = ["trust", "key", "add", "ci-too", &public, "--environment", "production"];
        fleet.operator().attest(&add)?;
        fleet.release("v1")?;
        let address = fleet.hub().addresses().spokes.parse()?;
        let home = fleet.hub().home().to_owned();
        fleet.hub().process().kill();
        let hub = CompromisedHub::take_over(&home, address).await?;
        hub.connected(CLUSTER).await?;
        let published = PublishedRelease::read(fleet.repository().tree(), "web-app", None)?;
        let ci = PrivateKey::from_pem(&std::fs::read_to_string(fleet.key())?)?;
        let base = objects(&published.content(CLUSTER)?)?;
        Ok(Some(Self { fleet, hub: Some(hub), published, ci, sequence: 0, base }))
    }

    fn site(&self) -> anyhow::Result<&RealSite> {
        self.fleet.sites().first().context("no site")
    }

    async fn client(&self) -> anyhow::Result<Client> {
        self.site()?.cluster.client().await
    }

    async fn configs(&self) -> anyhow::Result<Api<ConfigMap>> {
        Ok(Api::namespaced(self.client().await?, NAMESPACE))
    }

    async fn peer(&self) -> anyhow::Result<Peer> {
        self.hub.as_ref().context("the hub is stopped")?.connected(CLUSTER).await
    }

    /// The sample and `more`, signed by CI as the next release, ready to send or to change first.
    async fn delivery(&mut self, more: &[Value]) -> anyhow::Result<Delivery> {
        let all = self.base.iter().chain(more).cloned().collect();
        let content = attest_common::documents::manifest::write(all)?;
        let options = ResignOptions { key: &self.ci, render: CLUSTER, content: Some(content) };
        let (again, content) = self.published.sign_again(options, |_| {})?;
        self.sequence += 1;
        let peer = self.peer().await?;
        let mut delivery = again.delivery_of(&peer, CLUSTER, NAMESPACE, content)?;
        delivery.directive.sequence = self.sequence;
        self.published = again;
        Ok(delivery)
    }

    /// The same as another application in its own namespace, with a first directive.
    async fn delivery_of_another(&self, more: &[Value]) -> anyhow::Result<Delivery> {
        let all = self.base.iter().chain(more).cloned().collect();
        let content = Some(attest_common::documents::manifest::write(all)?);
        let name = OTHER.parse()?;
        let options = ResignOptions { key: &self.ci, render: CLUSTER, content };
        let (again, content) =
            self.published.sign_again(options, |release| release.application = name)?;
        again.delivery_of(&self.peer().await?, CLUSTER, OTHER_NAMESPACE, content)
    }

    async fn send(&self, delivery: &Delivery) -> anyhow::Result<()> {
        let peer = self.peer().await?;
        self.hub.as_ref().context("the hub is stopped")?.push(&peer, delivery).await
    }

    /// Waits for a report about the newest directive.
    async fn reported(&self, wanted: impl Fn(&Report) -> bool) -> anyhow::Result<Report> {
        let (hub, peer) = (self.hub.as_ref().context("the hub is stopped")?, self.peer().await?);
        let sequence = self.sequence;
        let mine = |r: &Report| r.application.as_str() == "web-app" && r.sequence == Some(sequence);
        let report = hub.report(&peer, |r| mine(r) && wanted(r)).await;
        if report.is_err() {
            let last = hub.report(&peer, |_| true).await?;
            return report.context(format!("the last report was {last:#?}\n{}", self.log()?));
        }
        report
    }

    /// Sends a delivery and waits until everything is as signed.
    async fn synced(&mut self, more: &[Value]) -> anyhow::Result<Report> {
        let delivery = self.delivery(more).await?;
        self.send(&delivery).await?;
        self.reported(|report| report.phase == Phase::Synced).await
    }

    fn log(&self) -> anyhow::Result<String> {
        let site = self.site()?;
        Ok(site.spoke.as_ref().map_or_else(|| site.fakelet.output(POD), Process::output))
    }

    /// Starts the spoke outside the cluster, with a failpoint if one is given, and waits for its Hello.
    async fn start_external(&mut self, failpoint: Option<&str>) -> anyhow::Result<()> {
        let before = self.peer().await?.hello.nonce;
        let config = self.fleet.operator().config();
        let directory = config.parent().context("no directory")?.join("spokes").join(CLUSTER);
        let hub = self.fleet.hub().addresses().spokes.clone();
        let log =
            self.fleet.directory().join(format!("spoke-{}.log", failpoint.unwrap_or("plain")));
        let mut spec = Spec::new(program("attest-spoke")?, log)
            .arg("--kubeconfig")
            .arg(directory.join("kubeconfig"))
            .args(["--hub", &hub])
            .args(["--listen-health", "127.0.0.1:0", "--listen-metrics", "127.0.0.1:0"]);
        if let Some(name) = failpoint {
            spec = spec.env("ATTEST_FAILPOINTS_ENABLED", "1").env("ATTEST_FAILPOINT", name);
        }
        let site = self.fleet.sites_mut().first_mut().context("no site")?;
        // Dropped first: two spokes of one cluster would supersede each other.
        site.spoke = None;
        site.spoke = Some(Process::spawn(spec)?);
        until("the spoke to send its Hello", WITHIN, || async {
            Ok((self.peer().await?.hello.nonce != before).then_some(()))
        })
        .await
    }

    fn mark(&self) -> anyhow::Result<Mark> {
        Ok(self.site()?.cluster.audit().mark())
    }

    /// Requests of the spoke to the API server since a mark, without its watches, its lease and its own
    /// Secrets: `verb name`, or `verb resource` without an object.
    fn requests(&self, mark: Mark) -> anyhow::Result<Vec<String>> {
        let events = self.events(mark)?.into_iter();
        let requests = events.filter(|event| event.verb != "watch").map(|event| {
            let object = event.object();
            let verb = if event.is_dry_run() { "try" } else { event.verb.as_str() };
            let what = [object.name, object.resource, event.request_uri];
            let what = what.into_iter().find(|word| !word.is_empty()).unwrap_or_default();
            format!("{verb} {what}")
        });
        Ok(requests.collect())
    }

    /// Writes of application objects since a mark, without dry runs: `verb name`.
    fn writes(&self, mark: Mark) -> anyhow::Result<Vec<String>> {
        let events = self.events(mark)?.into_iter().filter(|event| {
            let closed = event.object().namespace.starts_with("attest-");
            event.is_mutating() && !event.is_dry_run() && !closed
        });
        Ok(events.map(|event| format!("{} {}", event.verb, event.object().name)).collect())
    }

    fn events(&self, mark: Mark) -> anyhow::Result<Vec<AuditEvent>> {
        let events = self.site()?.cluster.audit().since(mark)?.into_iter();
        let of_applications = events.filter(|event| {
            let object = event.object();
            event.is_of_spoke() && object.namespace != "attest-spoke" && object.resource != "leases"
        });
        Ok(of_applications.collect())
    }

    /// Waits for the first write after `mark`, then a little longer, and returns all of them.
    async fn writes_after(&self, mark: Mark) -> anyhow::Result<Vec<String>> {
        until("a write", WITHIN, || async { Ok((!self.writes(mark)?.is_empty()).then_some(())) })
            .await?;
        tokio::time::sleep(SETTLE).await;
        self.writes(mark)
    }

    /// Like [`Self::writes_after`], with all other requests.
    async fn requests_after(&self, mark: Mark) -> anyhow::Result<Vec<String>> {
        self.writes_after(mark).await?;
        self.requests(mark)
    }

    /// Output of `attest spoke status`.
    fn status(&self) -> anyhow::Result<Value> {
        let kubeconfig = self.site()?.cluster.kubeconfig().display().to_string();
        self.fleet.operator().json(&["spoke", "status", "--kubeconfig", &kubeconfig])
    }

    fn record(&self) -> anyhow::Result<Option<Record>> {
        let all: Vec<Record> = serde_json::from_value(self.status()?["destinations"].clone())?;
        Ok(all.into_iter().find(|record| record.application.as_str() == "web-app"))
    }

    fn is_in_inventory(&self, name: &str) -> anyhow::Result<bool> {
        let record = self.record()?.context("no record")?;
        Ok(record.inventory.iter().any(|object| object.key.name == name))
    }

    /// Kills the spoke and waits until it runs again and, if there is a hub, has sent its Hello: a push
    /// to the dead session would be lost.
    async fn kill_spoke(&self) -> anyhow::Result<()> {
        let before = self.fleet.spoke_process(CLUSTER);
        let nonce = match &self.hub {
            Some(_) => Some(self.peer().await?.hello.nonce),
            None => None,
        };
        ensure!(self.site()?.fakelet.signal(POD, Signal::KILL) == 1, "no spoke to kill");
        until("the spoke to be restarted", WITHIN, || async {
            let now = self.fleet.spoke_process(CLUSTER);
            Ok(now.filter(|id| Some(*id) != before))
        })
        .await?;
        if let Some(nonce) = nonce {
            self.await_another_hello(&nonce).await?;
        }
        Ok(())
    }

    /// Sets the number of replicas of the spoke's Deployment.
    async fn replicas(&self, count: u32) -> anyhow::Result<()> {
        let deployments: Api<k8s_openapi::api::apps::v1::Deployment> =
            Api::namespaced(self.client().await?, "attest-spoke");
        let patch = Patch::Merge(json!({"spec": {"replicas": count}}));
        deployments.patch_scale("attest-spoke", &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Waits for another Hello of the spoke than that with `nonce`.
    async fn await_another_hello(&self, nonce: &[u8]) -> anyhow::Result<()> {
        until("the spoke to send another Hello", WITHIN, || async {
            Ok((self.peer().await?.hello.nonce != nonce).then_some(()))
        })
        .await
    }

    async fn value(&self, name: &str) -> anyhow::Result<Option<String>> {
        let found = self.configs().await?.get_opt(name).await?;
        Ok(found.and_then(|config| config.data?.get("key").cloned()))
    }

    /// Edits a managed field several times.
    async fn check_that_edits_are_reverted(&self) -> anyhow::Result<()> {
        for name in ["config-0", "config-1", "config-0"] {
            self.edit(name).await?;
            until("the edit to be reverted", REVERTED_WITHIN, || async {
                Ok((self.value(name).await?.as_deref() == Some("signed")).then_some(()))
            })
            .await?;
        }
        Ok(())
    }

    async fn edit(&self, name: &str) -> anyhow::Result<()> {
        let patch = Patch::Merge(json!({"data": {"key": "edited"}}));
        let parameters =
            PatchParams { field_manager: Some("hand".to_owned()), ..Default::default() };
        self.configs().await?.patch(name, &parameters, &patch).await?;
        Ok(())
    }
}

fn is_refused_as(report: &Report, reason: &str) -> bool {
    report.refusal.as_ref().is_some_and(|refusal| refusal.reason.as_str() == reason)
}

fn objects(content: &[u8]) -> anyhow::Result<Vec<Value>> {
    let lines = content.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    Ok(lines.map(serde_json::from_slice).collect::<Result<_, _>>()?)
}

fn records_of(kind: &str) -> ListParams {
    ListParams::default().labels(&format!("attest.continuu.ms/record={kind}"))
}

fn config(name: &str, value: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"key": value},
    })
}

fn configs(count: usize) -> Vec<Value> {
    (0..count).map(|index| config(&format!("config-{index}"), "signed")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_is_written_when_it_changes_and_at_no_other_time() -> anyhow::Result<()> {
    let Some(mut stage) = Stage::set().await? else { return Ok(()) };
    stage.synced(&configs(12)).await?;

    // One object of a large rendering: one dry run and one write of exactly the signed content, and no
    // request for the others. The API server reads YAML, which would fold some of these characters.
    let changed = "changed \u{85}  to \u{2028} \u{2029} \u{7f}\u{9f}\u{feff} ä \u{1f600}";
    let mut more = configs(12);
    more[3] = config("config-3", changed);
    let mark = stage.mark()?;
    stage.synced(&more).await?;
    assert_eq!(stage.value("config-3").await?.as_deref(), Some(changed));
    assert_eq!(stage.requests_after(mark).await?, ["try config-3", "patch config-3"]);

    // The same content as a new release: no request at all.
    let mark = stage.mark()?;
    stage.synced(&more).await?;
    tokio::time::sleep(SETTLE).await;
    assert_eq!(stage.requests(mark)?, [""; 0]);

    // An edit of a managed field: one write, immediately, without any other request.
    let mark = stage.mark()?;
    stage.edit("config-5").await?;
    assert_eq!(stage.requests_after(mark).await?, ["patch config-5"]);
    assert_eq!(stage.value("config-5").await?.as_deref(), Some("signed"));

    // A deleted object: one write.
    let mark = stage.mark()?;
    stage.configs().await?.delete("config-6", &DeleteParams::default()).await?;
    assert_eq!(stage.requests_after(mark).await?, ["patch config-6"]);
    assert_eq!(stage.value("config-6").await?.as_deref(), Some("signed"));

    // An added field that is not managed: nothing.
    let mark = stage.mark()?;
    let label = Patch::Merge(json!({"metadata": {"labels": {"team": "shop"}}}));
    stage.configs().await?.patch("config-7", &PatchParams::default(), &label).await?;
    stage
        .configs()
        .await?
        .create(&PostParams::default(), &serde_json::from_value(config("theirs", "x"))?)
        .await?;
    tokio::time::sleep(SETTLE).await;
    assert_eq!(stage.requests(mark)?, [""; 0]);

    // Killed, with the hub down: nothing is written until something differs again.
    stage.hub = None;
    let mark = stage.mark()?;
    stage.kill_spoke().await?;
    stage.edit("config-8").await?;
    assert_eq!(stage.writes_after(mark).await?, ["patch config-8"]);
    let mark = stage.mark()?;
    stage.configs().await?.delete("config-9", &DeleteParams::default()).await?;
    assert_eq!(stage.requests_after(mark).await?, ["patch config-9"]);
    until("the restored object to be recorded", WITHIN, || async {
        let live = stage.configs().await?.get("config-9").await?.metadata.uid;
        let record = stage.record()?.context("no record")?;
        let mut mine = record.inventory.iter().filter(|owned| owned.key.name == "config-9");
        Ok(mine.next().filter(|owned| owned.uid.is_some() && owned.uid == live).map(|_| ()))
    })
    .await?;

    // A restarted spoke detects what happened while none was running.
    let mark = stage.mark()?;
    stage.replicas(0).await?;
    until("the spoke to be stopped", WITHIN, || async {
        Ok(stage.fleet.spoke_process(CLUSTER).is_none().then_some(()))
    })
    .await?;
    stage.edit("config-1").await?;
    stage.configs().await?.delete("config-2", &DeleteParams::default()).await?;
    assert_eq!(stage.writes(mark)?, [""; 0]);
    stage.replicas(1).await?;
    until("both to be restored", WITHIN, || async {
        let edited = stage.value("config-1").await?.as_deref() == Some("signed");
        Ok((edited && stage.value("config-2").await?.is_some()).then_some(()))
    })
    .await?;
    tokio::time::sleep(SETTLE).await;
    let mut writes = stage.writes(mark)?;
    writes.sort();
    assert_eq!(writes, ["patch config-1", "patch config-2"]);
    stage.fleet.check_spoke_requests()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unrendered_objects_are_pruned_but_never_most_of_them_together() -> anyhow::Result<()> {
    let Some(mut stage) = Stage::set().await? else { return Ok(()) };
    stage.synced(&configs(14)).await?;

    stage.synced(&configs(12)).await?;
    until("two objects to be deleted", WITHIN, || async {
        let is_deleted = stage.value("config-12").await?.is_none();
        Ok((is_deleted && stage.value("config-13").await?.is_none()).then_some(()))
    })
    .await?;
    assert!(stage.value("config-11").await?.is_some());
    until("the inventory to follow", WITHIN, || async {
        let record = stage.record()?.context("no record")?;
        let names: Vec<&str> = record.inventory.iter().map(|o| o.key.name.as_str()).collect();
        Ok((!names.contains(&"config-12") && names.contains(&"config-11")).then_some(()))
    })
    .await?;

    let delivery = stage.delivery(&configs(2)).await?;
    let mark = stage.mark()?;
    stage.send(&delivery).await?;
    let report = stage
        .reported(|report| report.reason == attest_common::basics::reason::Reason::PruneGuard)
        .await?;
    assert_eq!(report.phase, Phase::OutOfSync);
    assert!(stage.value("config-11").await?.is_some());
    assert_eq!(stage.writes(mark)?, [""; 0]);

    // Removed by a directive, which staging's policy allows: all objects are deleted, the tombstone
    // stays.
    let mut removal = stage.delivery(&[]).await?;
    removal.directive.operation = Operation::Remove;
    stage.send(&removal).await?;
    stage.reported(|report| report.phase == Phase::Removed).await?;
    until("the objects to be deleted", WITHIN, || async {
        Ok(stage.value("config-11").await?.is_none().then_some(()))
    })
    .await?;
    let record = stage.record()?.context("the tombstone is missing")?;
    assert!(record.removed && record.held.is_none() && record.inventory.is_empty());
    let floor = record.floor.context("the floor is missing")?;
    assert!(record.binding.is_some());

    // It may be deployed again, but not an older release.
    let newest = stage.published.clone();
    stage.published.document.counter = floor.counter - 2;
    let older = stage.delivery(&configs(1)).await?;
    stage.send(&older).await?;
    let (hub, peer) = (stage.hub.as_ref().context("hub")?, stage.peer().await?);
    hub.report(&peer, |report| is_refused_as(report, "CounterRegressed")).await?;
    stage.published = newest;
    stage.synced(&configs(1)).await?;
    stage.fleet.check_spoke_requests()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_of_other_owners_are_not_adopted_and_one_bad_object_blocks_no_other()
-> anyhow::Result<()> {
    let Some(mut stage) = Stage::set().await? else { return Ok(()) };
    stage.synced(&configs(2)).await?;

    // The plan names an object of another owner: refused as a whole, nothing written.
    let theirs: ConfigMap = serde_json::from_value(config("theirs", "theirs"))?;
    let parameters = PostParams { field_manager: Some("hand".to_owned()), ..Default::default() };
    stage.configs().await?.create(&parameters, &theirs).await?;
    let mut more = configs(3);
    more.push(config("theirs", "ours"));
    let delivery = stage.delivery(&more).await?;
    let mark = stage.mark()?;
    stage.send(&delivery).await?;
    let report = stage.reported(|report| report.phase == Phase::Refused).await?;
    let refusal = report.refusal.context("no refusal")?;
    assert_eq!(refusal.reason.as_str(), "FieldConflict");
    assert!(
        refusal.message.contains("hand") && refusal.message.contains("theirs"),
        "{}",
        refusal.message
    );
    assert_eq!(
        report.running.context("the running release is missing")?.counter + 1,
        stage.published.document.counter
    );
    assert_eq!(stage.writes(mark)?, [""; 0]);
    assert_eq!(stage.value("theirs").await?.as_deref(), Some("theirs"));

    // Without an earlier deployment neither account nor bindings stay; the namespace does.
    let client = stage.client().await?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OTHER_NAMESPACE}});
    namespaces.create(&PostParams::default(), &serde_json::from_value(namespace)?).await?;
    let others: Api<ConfigMap> = Api::namespaced(client.clone(), OTHER_NAMESPACE);
    others.create(&parameters, &theirs).await?;
    let delivery = stage.delivery_of_another(&[config("theirs", "ours")]).await?;
    stage.send(&delivery).await?;
    let (hub, peer) = (stage.hub.as_ref().context("hub")?, stage.peer().await?);
    hub.report(&peer, |r| r.application.as_str() == OTHER && r.phase == Phase::Refused).await?;
    let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), OTHER_NAMESPACE);
    let accounts: Api<ServiceAccount> = Api::namespaced(client, "attest-applications");
    until("the rights to be removed", WITHIN, || async {
        let mut existing = accounts.list_metadata(&ListParams::default()).await?.items.into_iter();
        let has_account = existing.any(|account| {
            let mut annotations = account.metadata.annotations.into_iter().flatten();
            annotations.any(|(_, value)| value == OTHER_NAMESPACE)
        });
        let bound = bindings.list_metadata(&ListParams::default()).await?.items;
        Ok((bound.is_empty() && !has_account).then_some(()))
    })
    .await?;
    assert!(others.get_opt("theirs").await?.is_some());

    // The running release is kept, also by a spoke that must read it all back.
    stage.edit("config-1").await?;
    until("the edit to be reverted", WITHIN, || async {
        Ok((stage.value("config-1").await?.as_deref() == Some("signed")).then_some(()))
    })
    .await?;
    stage.kill_spoke().await?;
    let (hub, peer) = (stage.hub.as_ref().context("hub")?, stage.peer().await?);
    let next = hub.report(&peer, |r| r.application.as_str() == "web-app").await?;
    assert_eq!(
        next.running
            .context("the first report after the restart lacks the running release")?
            .counter
            + 1,
        stage.published.document.counter
    );
    stage.edit("config-0").await?;
    until("the edit to be reverted after a restart", WITHIN, || async {
        Ok((stage.value("config-0").await?.as_deref() == Some("signed")).then_some(()))
    })
    .await?;

    // With identical values it counts as pre-existing, and is released when it is no longer rendered.
    more.pop();
    more.push(config("theirs", "theirs"));
    stage.synced(&more).await?;
    until("the record to mark it as pre-existing", WITHIN, || async {
        let record = stage.record()?.context("no record")?;
        Ok(record.inventory.iter().any(|o| o.key.name == "theirs" && o.preexisting).then_some(()))
    })
    .await?;
    more.pop();
    stage.synced(&more).await?;
    until("it to be released", WITHIN, || async {
        let record = stage.record()?.context("no record")?;
        Ok((!record.inventory.iter().any(|o| o.key.name == "theirs")).then_some(()))
    })
    .await?;
    assert_eq!(stage.value("theirs").await?.as_deref(), Some("theirs"));

    // One object that the API server rejects: all others are applied.
    let mut bad = configs(4);
    bad.push(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "bad"},
        "spec": {"ports": [{"port": 99_999}]},
    }));
    let delivery = stage.delivery(&bad).await?;
    stage.send(&delivery).await?;
    let report = stage.reported(|report| report.phase == Phase::Degraded).await?;
    assert_eq!(report.reason.as_str(), "Invalid", "{report:#?}");
    until("the good object", WITHIN, || async { stage.value("config-3").await }).await?;
    stage.synced(&configs(4)).await?;

    // Without self-heal, drift is reported and not reverted.
    let mut delivery = stage.delivery(&configs(4)).await?;
    delivery.plan.sync.self_heal = false;
    stage.send(&delivery).await?;
    stage.reported(|report| report.phase == Phase::Synced).await?;
    let mark = stage.mark()?;
    stage.edit("config-2").await?;
    let report = stage.reported(|report| report.phase == Phase::OutOfSync).await?;
    assert_eq!(report.drifted.len(), 1);
    tokio::time::sleep(SETTLE).await;
    assert_eq!(stage.writes(mark)?, [""; 0]);
    stage.fleet.check_spoke_requests()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn existing_objects_are_adopted_if_plan_and_policy_allow_it_and_then_deleted_like_others()
-> anyhow::Result<()> {
    let Some(mut stage) = Stage::set().await? else { return Ok(()) };
    stage.synced(&configs(1)).await?;
    let theirs: ConfigMap = serde_json::from_value(config("theirs", "theirs"))?;
    let parameters = PostParams { field_manager: Some("hand".to_owned()), ..Default::default() };
    let existing = stage.configs().await?.create(&parameters, &theirs).await?;
    let mut more = configs(1);
    more.push(config("theirs", "ours"));

    // Either alone is not enough.
    for (plan_requests, policy_allows) in [(true, false), (false, true)] {
        if policy_allows {
            let nonce = stage.peer().await?.hello.nonce;
            stage.site()?.set_adopt(true).await?;
            stage.await_another_hello(&nonce).await?;
        }
        let mut delivery = stage.delivery(&more).await?;
        delivery.plan.sync.adopt = plan_requests;
        let mark = stage.mark()?;
        stage.send(&delivery).await?;
        let report = stage.reported(|report| report.phase == Phase::Refused).await?;
        let refusal = report.refusal.context("no refusal")?;
        assert_eq!(refusal.reason.as_str(), "FieldConflict", "{plan_requests} {policy_allows}");
        assert!(refusal.message.contains("hand"), "{}", refusal.message);
        assert_eq!(stage.writes(mark)?, [""; 0]);
        assert_eq!(stage.value("theirs").await?.as_deref(), Some("theirs"));
    }

    let mut delivery = stage.delivery(&more).await?;
    delivery.plan.sync.adopt = true;
    stage.send(&delivery).await?;
    stage.reported(|report| report.phase == Phase::Synced).await?;

    // The existing object with the signed value, managed and deletable.
    let live = stage.configs().await?.get("theirs").await?;
    assert_eq!(live.metadata.uid, existing.metadata.uid);
    assert_eq!(stage.value("theirs").await?.as_deref(), Some("ours"));
    until("it to be in the inventory as managed", WITHIN, || async {
        let record = stage.record()?.context("no record")?;
        let mut mine = record.inventory.iter().filter(|owned| owned.key.name == "theirs");
        Ok(mine
            .next()
            .filter(|owned| !owned.preexisting && owned.uid == live.metadata.uid)
            .map(|_| ()))
    })
    .await?;
    stage.edit("theirs").await?;
    until("the edit to be reverted", WITHIN, || async {
        Ok((stage.value("theirs").await?.as_deref() == Some("ours")).then_some(()))
    })
    .await?;
    stage.synced(&configs(1)).await?;
    until("it to be deleted", WITHIN, || async {
        Ok(stage.value("theirs").await?.is_none().then_some(()))
    })
    .await?;
    stage.fleet.check_spoke_requests()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_whose_requests_hang_or_fail_does_not_block_another() -> anyhow::Result<()> {
    let Some(mut stage) = Stage::set().await? else { return Ok(()) };
    stage.synced(&configs(2)).await?;
    let namespaces: Api<Namespace> = Api::all(stage.client().await?);
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OTHER_NAMESPACE}});
    namespaces.create(&PostParams::default(), &serde_json::from_value(namespace)?).await?;
    let others: Api<ConfigMap> = Api::namespaced(stage.client().await?, OTHER_NAMESPACE);
    let webhook = Webhook::install(&stage.client().await?, &others).await?;

    // More requests than a worker makes concurrently, none of them answered.
    let delivery = stage.delivery_of_another(&configs(REQUESTS_OF_ONE)).await?;
    let before = webhook.calls();
    stage.send(&delivery).await?;
    until("the other application to hang", WITHIN, || async {
        Ok((webhook.calls() >= before + REQUESTS_AT_ONCE).then_some(()))
    })
    .await?;
    stage.check_that_edits_are_reverted().await?;
    let started = Instant::now();
    stage.synced(&configs(3)).await?;
    assert!(started.elapsed() < HANGING_WITHIN, "{:?}", started.elapsed());
    stage.check_that_edits_are_reverted().await?;

    // Now they fail immediately and are retried.
    webhook.fail();
    let (hub, peer) = (stage.hub.as_ref().context("hub")?, stage.peer().await?);
    hub.report(&peer, |r| r.application.as_str() == OTHER && r.message.contains("webhook")).await?;
    stage.check_that_edits_are_reverted().await?;
    assert!(
        others
            .list(&ListParams::default().fields("metadata.name=config-0"))
            .await?
            .items
            .is_empty()
    );

    // Without the obstacle it recovers by itself.
    webhook.remove().await?;
    let (hub, peer) = (stage.hub.as_ref().context("hub")?, stage.peer().await?);
    hub.report(&peer, |r| r.application.as_str() == OTHER && r.phase == Phase::Synced).await?;
    assert!(others.get_opt("config-0").await?.is_some());
    stage.fleet.check_spoke_requests()?;
    Ok(())
}

/// An admission webhook for the ConfigMaps of the other application that never answers.
struct Webhook {
    calls: Arc<AtomicUsize>,
    fails: Arc<tokio::sync::Notify>,
    configurations: Api<ValidatingWebhookConfiguration>,
}

impl Webhook {
    /// Installs the webhook and returns when the API server calls it.
    async fn install(client: &Client, watched: &Api<ConfigMap>) -> anyhow::Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("https://{}/", listener.local_addr()?);
        let (calls, fails) = (Arc::new(AtomicUsize::new(0)), Arc::new(tokio::sync::Notify::new()));
        let (count, failing) = (Arc::clone(&calls), Arc::clone(&fails));
        tokio::spawn(async move {
            let mut held = Vec::new();
            let mut holds = true;
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { break };
                        count.fetch_add(1, Ordering::Relaxed);
                        held.extend(holds.then_some(stream));
                    }
                    () = failing.notified() => {
                        holds = false;
                        held.clear();
                    }
                }
            }
        });
        let webhook = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": "never"},
            "webhooks": [{
                "name": "never.example.com", "clientConfig": {"url": url}, "failurePolicy": "Fail",
                "sideEffects": "None", "admissionReviewVersions": ["v1"], "timeoutSeconds": 30,
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": OTHER_NAMESPACE}},
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"],
                    "operations": ["CREATE", "UPDATE"]}],
            }],
        });
        let configurations: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
        configurations.create(&PostParams::default(), &serde_json::from_value(webhook)?).await?;
        let probe: ConfigMap = serde_json::from_value(config("probe", "x"))?;
        until("the webhook to be called", WITHIN, || async {
            let dry_run = PostParams { dry_run: true, ..Default::default() };
            let _ = tokio::time::timeout(SETTLE, watched.create(&dry_run, &probe)).await;
            Ok((calls.load(Ordering::Relaxed) > 0).then_some(()))
        })
        .await?;
        Ok(Self { calls, fails, configurations })
    }

    /// Number of connections to the webhook.
    fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    /// Closes connections instead of leaving them open.
    fn fail(&self) {
        self.fails.notify_one();
    }

    async fn remove(&self) -> anyhow::Result<()> {
        self.configurations.delete("never", &DeleteParams::default()).await?;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_never_become_ready_are_reported_until_a_healthy_release() -> anyhow::Result<()> {
    let Some(mut stage) = Stage::set().await? else { return Ok(()) };
    stage.synced(&[]).await?;
    let deployment = stage.base.iter().position(|object| object["kind"] == "Deployment");
    let deployment = deployment.context("the sample has no Deployment")?;
    let healthy = stage.base[deployment].clone();
    stage.base[deployment]["spec"]["progressDeadlineSeconds"] = json!(PROGRESS_DEADLINE_S);
    stage.base[deployment]["spec"]["template"]["metadata"]["annotations"] =
        json!({READY_ANNOTATION: "never"});

    // Applied is not yet healthy: first the pods are awaited, then the cluster itself times them out.
    let delivery = stage.delivery(&[]).await?;
    stage.send(&delivery).await?;
    let report = stage
        .reported(|report| {
            report.phase == Phase::Progressing && report.message.contains("Deployment")
        })
        .await?;
    assert_eq!(report.health, Health::InProgress, "{report:#?}");
    let report = stage.reported(|report| report.phase == Phase::Degraded).await?;
    assert_eq!(
        (report.reason.as_str(), report.health),
        ("Unhealthy", Health::Failed),
        "{report:#?}"
    );
    assert!(
        report.message.contains("Deployment") && report.message.contains("progressing"),
        "{}",
        report.message
    );

    stage.base[deployment] = healthy;
    let report = stage.synced(&[]).await?;
    assert_eq!(report.health, Health::Current);
    stage.fleet.check_spoke_requests()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_rights_are_restored_and_pending_deletions_are_remembered() -> anyhow::Result<()> {
    let Some(mut stage) = Stage::set().await? else { return Ok(()) };
    stage.synced(&configs(2)).await?;

    // A spoke that starts without its bindings could not list anything, and would wait permanently.
    let bindings: Api<RoleBinding> = Api::namespaced(stage.client().await?, NAMESPACE);
    bindings.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
    stage.kill_spoke().await?;
    stage.edit("config-0").await?;
    until("the edit to be reverted", WITHIN, || async {
        Ok((stage.value("config-0").await?.as_deref() == Some("signed")).then_some(()))
    })
    .await?;
    stage.reported(|report| report.phase == Phase::Synced).await?;

    // An accepted deletion is not complete while the object has a finalizer.
    let patch = Patch::Merge(json!({"metadata": {"finalizers": ["example.com/hold"]}}));
    stage.configs().await?.patch("config-1", &PatchParams::default(), &patch).await?;
    let delivery = stage.delivery(&configs(1)).await?;
    stage.send(&delivery).await?;
    let waits = "waits for finalizers example.com/hold";
    stage.reported(|report| report.warnings.iter().any(|w| w.contains(waits))).await?;
    assert!(stage.is_in_inventory("config-1")?);

    let patch = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    stage.configs().await?.patch("config-1", &PatchParams::default(), &patch).await?;
    until("it to leave the inventory", WITHIN, || async {
        Ok((!stage.is_in_inventory("config-1")?).then_some(()))
    })
    .await?;

    // The namespace is deleted during a removal, and with it the right to delete in it.
    let patch = Patch::Merge(json!({"metadata": {"finalizers": ["example.com/hold"]}}));
    stage.configs().await?.patch("config-0", &PatchParams::default(), &patch).await?;
    let mut removal = stage.delivery(&[]).await?;
    removal.directive.operation = Operation::Remove;
    stage.send(&removal).await?;
    stage.reported(|report| report.message.contains("example.com/hold")).await?;
    let namespaces: Api<Namespace> = Api::all(stage.client().await?);
    namespaces.delete(NAMESPACE, &DeleteParams::default()).await?;
    let patch = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    stage.configs().await?.patch("config-0", &PatchParams::default(), &patch).await?;
    stage.reported(|report| report.phase == Phase::Removed).await?;
    stage.fleet.check_spoke_requests()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_trust_policy_a_spoke_changes_nothing() -> anyhow::Result<()> {
    let Some(mut stage) = Stage::set().await? else { return Ok(()) };
    stage.synced(&configs(2)).await?;
    let policies = stage.site()?.policies().await?;
    let mut policy = policies.get("local").await?;
    policies.delete("local", &DeleteParams::default()).await?;
    let log = "No usable trust policy";
    until("the spoke to notice", WITHIN, || async { Ok(stage.log()?.contains(log).then_some(())) })
        .await?;

    // It connects to no hub: none is pinned.
    let mark = stage.mark()?;
    let before = stage.record()?;
    let nonce = stage.peer().await?.hello.nonce;
    stage.edit("config-0").await?;
    let delivery = stage.delivery(&configs(3)).await?;
    until("the session with the hub to end", WITHIN, || async {
        Ok(stage.send(&delivery).await.is_err().then_some(()))
    })
    .await?;

    // The policy is back, but for another spoke: it connects to the hub, but admits and changes nothing.
    let status = policy.data.get_mut("status").map(Value::take);
    policy.metadata.resource_version = None;
    policy.metadata.uid = None;
    policy.metadata.managed_fields = None;
    policies.create(&PostParams::default(), &policy).await?;
    stage.await_another_hello(&nonce).await?;
    stage.send(&delivery).await?;
    let (hub, peer) = (stage.hub.as_ref().context("hub")?, stage.peer().await?);
    let sequence = Some(delivery.directive.sequence);
    let report = hub
        .report(&peer, |r| r.refusal.as_ref().is_some_and(|refusal| refusal.sequence == sequence))
        .await?;
    assert_eq!(report.refusal.context("no refusal")?.reason.as_str(), "NoTrustPolicy");
    assert_eq!(stage.writes(mark)?, [""; 0]);
    let after = stage.record()?;
    assert_eq!(
        after.map(|record| (record.sequence, record.held)),
        before.map(|record| (record.sequence, record.held))
    );
    assert_eq!(stage.value("config-0").await?.as_deref(), Some("edited"));

    // Bound to this spoke by the operator: everything continues, and what was pushed in between can be
    // pushed again.
    let bound = Patch::Merge(json!({"status": status.context("no status")?}));
    policies.patch_status("local", &PatchParams::default(), &bound).await?;
    until("the edit to be reverted", WITHIN, || async {
        Ok((stage.value("config-0").await?.as_deref() == Some("signed")).then_some(()))
    })
    .await?;
    stage.synced(&configs(3)).await?;
    stage.fleet.check_spoke_requests()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn definitions_precede_their_objects_and_only_where_the_policy_allows_them()
-> anyhow::Result<()> {
    let Some(mut stage) = Stage::set().await? else { return Ok(()) };
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget"},
            "versions": [widget_version("v1beta1", false), widget_version("v1", true)],
        },
    });
    let widget = json!({
        "apiVersion": "example.com/v1beta1", "kind": "Widget", "metadata": {"name": "one"},
        "spec": {"size": 3},
    });
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": {"team": "shop"}},
    });
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "words"},
        "stringData": {"word": "swordfish"},
    });
    let more = [definition, widget, namespace, secret];

    let delivery = stage.delivery(&more).await?;
    let mark = stage.mark()?;
    stage.send(&delivery).await?;
    let (hub, peer) = (stage.hub.as_ref().context("hub")?, stage.peer().await?);
    let report = hub.report(&peer, |report| is_refused_as(report, "KindNotAllowed")).await?;
    let text = report.refusal.context("no refusal")?.message;
    assert!(text.contains("clusterScoped") || text.contains("extra"), "{text}");
    assert_eq!(stage.writes(mark)?, [""; 0]);

    // The operator adds the policy entries.
    let nonce = stage.peer().await?.hello.nonce;
    let directory = stage.fleet.directory().to_owned();
    let mut policy = stage.site()?.policies().await?.get("local").await?;
    let mut spec = policy.data.get_mut("spec").map(Value::take).context("no spec")?;
    spec["applications"][0]["kinds"] = json!({
        "clusterScoped": [{"group": "apiextensions.k8s.io", "resource": "customresourcedefinitions"}],
        "extra": [{"group": "example.com", "resource": "widgets"}, {"group": "", "resource": "secrets"}],
    });
    let file = directory.join("policy.yaml");
    let manifest = json!({
        "apiVersion": "attest.continuu.ms/v1", "kind": "AttestTrustPolicy",
        "metadata": {"name": "local"}, "spec": spec,
    });
    std::fs::write(&file, manifest.to_string())?;
    let kubeconfig = stage.site()?.cluster.kubeconfig().display().to_string();
    let file = file.display().to_string();
    stage.fleet.operator().attest(&[
        "trust",
        "install",
        &file,
        "--kubeconfig",
        &kubeconfig,
        "--yes",
    ])?;
    // A session is bound to one policy.
    stage.await_another_hello(&nonce).await?;
    let report = stage.synced(&more).await?;
    assert_eq!(report.objects_total, (stage.base.len() + more.len()) as u64);

    let client = stage.client().await?;
    let resource = kube::api::ApiResource {
        group: "example.com".into(),
        version: "v1".into(),
        api_version: "example.com/v1".into(),
        kind: "Widget".into(),
        plural: "widgets".into(),
    };
    let widgets: Api<kube::api::DynamicObject> =
        Api::namespaced_with(client.clone(), NAMESPACE, &resource);
    assert_eq!(widgets.get("one").await?.data["spec"]["size"], 3);
    let namespaces: Api<Namespace> = Api::all(client);
    let labels = namespaces.get(NAMESPACE).await?.metadata.labels.context("no labels")?;
    assert_eq!(labels.get("team").map(String::as_str), Some("shop"));

    // A custom object is reverted like any other, also by a restarted spoke.
    let edit = Patch::Merge(json!({"spec": {"size": 9}}));
    for restarts in [false, true] {
        if restarts {
            stage.kill_spoke().await?;
        }
        until("the watch to be open and the edit to be reverted", WITHIN, || async {
            widgets.patch("one", &PatchParams::default(), &edit).await?;
            tokio::time::sleep(SETTLE).await;
            Ok((widgets.get("one").await?.data["spec"]["size"] == 3).then_some(()))
        })
        .await?;
    }

    // A Secret is reverted too, and its values, signed or edited, appear nowhere.
    let secrets: Api<Secret> = Api::namespaced(stage.client().await?, NAMESPACE);
    let edit = Patch::Merge(json!({"stringData": {"word": "mackerel"}}));
    secrets.patch("words", &PatchParams::default(), &edit).await?;
    until("the Secret to be restored", WITHIN, || async {
        let data = secrets.get("words").await?.data.unwrap_or_default();
        Ok(data.get("word").is_some_and(|word| word.0 == b"swordfish").then_some(()))
    })
    .await?;
    let events: Api<k8s_openapi::api::core::v1::Event> = Api::all(stage.client().await?);
    let events = events.list(&ListParams::default()).await?.items;
    for (place, text) in [
        ("log", stage.log()?),
        ("record", serde_json::to_string(&stage.record()?)?),
        ("reports", serde_json::to_string(stage.peer().await?.reports())?),
        ("events", serde_json::to_string(&events)?),
        ("metrics", stage.site()?.metrics().await?),
    ] {
        for word in ["swordfish", "mackerel", "c3dvcmRmaXNo", "bWFja2VyZWw="] {
            assert!(!text.contains(word), "the {place} holds {word}: {text}");
        }
    }

    // No longer rendered, like the version that it was written in: the custom object is deleted in
    // another version, its definition and the namespace are not.
    let [mut definition, _, namespace, secret] = more;
    definition["spec"]["versions"][0]["served"] = json!(false);
    stage.synced(&[definition, namespace, secret]).await?;
    until("the widget to be deleted", WITHIN, || async {
        Ok(widgets.get_opt("one").await?.is_none().then_some(()))
    })
    .await
    .with_context(|| stage.log().unwrap_or_default())?;
    stage.synced(&[]).await?;
    assert!(namespaces.get(NAMESPACE).await?.metadata.deletion_timestamp.is_none());
    stage.fleet.check_spoke_requests()?;
    Ok(())
}

/// A version of a CustomResourceDefinition.
fn widget_version(name: &str, storage: bool) -> Value {
    json!({"name": name, "served": true, "storage": storage, "schema": {
        "openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object",
            "properties": {"size": {"type": "integer"}}}}}}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoke_catches_up_after_an_outage_of_the_api_server() -> anyhow::Result<()> {
    let Some(mut stage) = Stage::set().await? else { return Ok(()) };
    stage.synced(&configs(2)).await?;

    // A directive while nothing can be recorded.
    let delivery = stage.delivery(&configs(4)).await?;
    stage.site()?.cluster.stop_api();
    stage.send(&delivery).await?;
    tokio::time::sleep(SETTLE).await;
    stage.site()?.cluster.start_api().await?;
    stage.reported(|report| report.phase == Phase::Synced).await?;
    assert_eq!(stage.value("config-3").await?.as_deref(), Some("signed"));

    // An edit while no watch is open: the spoke is stopped until the edit is old.
    ensure!(stage.site()?.fakelet.signal(POD, Signal::STOP) == 1, "no spoke to stop");
    stage.site()?.cluster.stop_api();
    stage.site()?.cluster.start_api().await?;
    stage.edit("config-1").await?;
    assert_eq!(stage.value("config-1").await?.as_deref(), Some("edited"));
    ensure!(stage.site()?.fakelet.signal(POD, Signal::CONT) == 1, "no spoke to continue");
    until("the edit to be reverted", WITHIN, || async {
        Ok((stage.value("config-1").await?.as_deref() == Some("signed")).then_some(()))
    })
    .await?;
    stage.fleet.check_spoke_requests()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edit_is_reverted_however_deeply_fields_beside_it_are_nested() -> anyhow::Result<()> {
    let Some(mut stage) = Stage::set().await? else { return Ok(()) };
    stage.synced(&configs(2)).await?;
    let client = stage.client().await?;
    let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps/config-1");
    let deep = (0..200).fold(json!({}), |inner, _| json!({"f:a": inner}));
    let entry = json!({
        "manager": "hand", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
        "fieldsV1": {"f:data": {"f:key": deep}},
    });

    let mut object: Value = client.request(Request::get(&path).body(Vec::new())?).await?;
    object["data"]["key"] = json!("edited");
    let entries = object["metadata"]["managedFields"].as_array_mut().context("no managers")?;
    entries.push(entry);
    let put = Request::put(&path).header("content-type", "application/json");
    // Nested too deeply for a client that parses it as a document.
    let answer = client.request_text(put.body(object.to_string().into_bytes())?).await?;

    assert!(answer.contains(&r#"{"f:a":"#.repeat(130)), "the API server keeps it: {answer}");
    until("the edit to be reverted", WITHIN, || async {
        let live = client.request_text(Request::get(&path).body(Vec::new())?).await?;
        Ok(live.contains(r#""data":{"key":"signed"}"#).then_some(()))
    })
    .await?;
    stage.fleet.check_spoke_requests()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoke_that_exits_at_any_write_resumes_there() -> anyhow::Result<()> {
    let Some(mut stage) = Stage::set_with(Agents::External).await? else { return Ok(()) };
    stage.synced(&configs(3)).await?;

    let known = ["before-record-write", "after-record-write", "before-apply", "after-apply"];
    let fresh = [
        "before-content-write",
        "after-content-write",
        "before-record-write",
        "after-record-write",
        "after-admission",
        "before-apply",
        "after-apply",
        "before-delete",
        "after-delete",
    ];
    // A change of known objects starts with the record of its admission.
    let rounds = known.map(|failpoint| (failpoint, false)).into_iter();
    let rounds = rounds.chain(fresh.map(|failpoint| (failpoint, true)));
    let mut previous: Option<String> = None;
    for (round, (failpoint, adds)) in rounds.enumerate() {
        // One object is changed in each round. Most rounds add one, and remove the one that the last
        // round added.
        stage.start_external(Some(failpoint)).await?;
        let fresh = format!("fresh-{round}");
        let mut more = configs(3);
        more[1] = config("config-1", &fresh);
        if adds {
            more.push(config(&fresh, "signed"));
        }
        let delivery = stage.delivery(&more).await?;
        stage.send(&delivery).await?;
        let spoke = stage.fleet.sites_mut().first_mut().and_then(|site| site.spoke.as_mut());
        let spoke = std::sync::Mutex::new(spoke.context("no spoke")?);
        until(failpoint, WITHIN, || async { spoke.lock().unwrap().ended() })
            .await
            .with_context(|| stage.log().unwrap_or_default())?;

        stage.start_external(None).await?;
        // An honest hub does this when the newest directive is missing in a spoke's Hello; otherwise the
        // spoke knows it.
        stage.send(&delivery).await?;
        let report = stage.reported(|report| report.phase == Phase::Synced).await?;
        assert_eq!(report.refusal, None, "{failpoint}");
        assert_eq!(stage.value("config-1").await?.as_deref(), Some(fresh.as_str()), "{failpoint}");
        let is_there = stage.value(&fresh).await?.as_deref() == Some("signed");
        assert_eq!(is_there, adds, "{failpoint}");
        if let Some(previous) = previous.replace(fresh).filter(|_| adds) {
            until("the unrendered object to be deleted", WITHIN, || async {
                Ok(stage.value(&previous).await?.is_none().then_some(()))
            })
            .await
            .context(failpoint)?;
        }
        until("the record to contain every object", WITHIN, || async {
            let record = stage.record()?.context("no record")?;
            let known = record.inventory.len() == stage.base.len() + more.len()
                && record.inventory.iter().all(|owned| owned.uid.is_some());
            Ok(known.then_some(()))
        })
        .await
        .context(failpoint)?;
    }
    stage.fleet.check_spoke_requests()?;
    Ok(())
}

/// One write before the first apply and one after the last; other changes take one more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_known_objects_without_obstacle_starts_with_its_admission() -> anyhow::Result<()>
{
    let Some(mut stage) = Stage::set().await? else { return Ok(()) };
    stage.synced(&configs(3)).await?;
    let mut changed = configs(3);
    changed[1] = config("config-1", "changed");
    let mark = stage.fleet.sites()[0].cluster.audit().mark();

    stage.synced(&changed).await?;

    let record = stage.record()?.context("no record")?;
    assert_eq!(record.rollback_point, None);
    let events = stage.fleet.sites()[0].cluster.audit().since(mark)?.into_iter();
    let before_the_apply: Vec<String> = events
        .filter(|event| event.is_mutating() && !event.is_dry_run() && event.is_success())
        .filter(AuditEvent::is_of_spoke)
        .map(|event| event.object().name)
        .take_while(|name| name != "config-1")
        .collect();
    let records = before_the_apply.iter().filter(|name| name.starts_with("attest-destination-"));
    assert_eq!(records.count(), 1, "{before_the_apply:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_created_just_before_an_exit_is_owned_in_the_next_directive() -> anyhow::Result<()>
{
    let Some(mut stage) = Stage::set_with(Agents::External).await? else { return Ok(()) };
    stage.synced(&configs(1)).await?;
    stage.start_external(Some("after-apply")).await?;
    let mut more = configs(1);
    more.push(config("fresh", "first"));
    let delivery = stage.delivery(&more).await?;
    stage.send(&delivery).await?;
    let spoke = stage.fleet.sites_mut().first_mut().and_then(|site| site.spoke.as_mut());
    let spoke = std::sync::Mutex::new(spoke.context("no spoke")?);
    until("the spoke to exit", WITHIN, || async { spoke.lock().unwrap().ended() }).await?;
    let record = stage.record()?.context("no record")?;
    assert!(record.rollback_point.is_none(), "the spoke has started to write");
    assert!(record.inventory.iter().any(|owned| owned.uid.is_none()));

    stage.start_external(None).await?;
    more[1] = config("fresh", "second");
    let newer = stage.delivery(&more).await?;
    stage.send(&newer).await?;
    let report = stage.reported(|report| report.phase == Phase::Synced).await?;

    assert_eq!(report.refusal, None);
    until("the object to be owned", WITHIN, || async {
        let record = stage.record()?.context("no record")?;
        let owned = record.inventory.iter().all(|owned| owned.uid.is_some() && !owned.preexisting);
        let value = stage.value("fresh").await?;
        Ok((owned && value.as_deref() == Some("second")).then_some(()))
    })
    .await?;
    stage.fleet.check_spoke_requests()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_past_two_thirds_of_its_lifetime_is_renewed_and_the_new_one_used()
-> anyhow::Result<()> {
    let Some(mut stage) = Stage::set_with(Agents::External).await? else { return Ok(()) };
    stage.synced(&configs(1)).await?;

    // As if the certificate had been issued long ago: backdated by five minutes, valid for one more.
    let peer = stage.peer().await?;
    let request = attest_certs::SigningRequest::generate()?;
    let hub = stage.hub.as_ref().context("hub")?;
    let issued = hub.authority().issue_spoke(
        &request.csr_der,
        peer.cluster.as_str(),
        2,
        Duration::from_secs(60),
    )?;
    let old = issued.serial.to_string();
    let secrets: Api<Secret> = Api::namespaced(stage.client().await?, "attest-spoke");
    let patch = Patch::Merge(json!({"stringData": {
        "tls.chain": issued.chain_pem(), "tls.key": request.key_pem.as_str(),
    }}));
    secrets.patch("attest-identity", &PatchParams::default(), &patch).await?;
    stage.start_external(None).await?;

    until("the spoke to connect with a new certificate", WITHIN, || async {
        let serial = stage.peer().await?.serial;
        Ok((serial != old && serial != peer.serial).then_some(()))
    })
    .await
    .with_context(|| stage.log().unwrap_or_default())?;
    let data = secrets.get("attest-identity").await?.data.context("no identity")?;
    assert_eq!(data.get("generation").map(|g| g.0.clone()), Some(b"2".to_vec()));
    // It is the same spoke and continues.
    assert_eq!(stage.peer().await?.cluster, peer.cluster);
    stage.synced(&configs(2)).await?;
    stage.fleet.check_spoke_requests()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoke_without_its_records_admits_nothing_until_an_operator_accepts_the_loss()
-> anyhow::Result<()> {
    let Some(mut stage) = Stage::set().await? else { return Ok(()) };
    let old = stage.delivery(&configs(1)).await?;
    stage.send(&old).await?;
    stage.reported(|report| report.phase == Phase::Synced).await?;
    stage.synced(&configs(2)).await?;
    let secrets: Api<Secret> = Api::namespaced(stage.client().await?, "attest-spoke");
    until("the number of records to be stored", WITHIN, || async {
        let data = secrets.get("attest-identity").await?.data.context("no identity")?;
        Ok(data.contains_key("destinations").then_some(()))
    })
    .await?;

    secrets.delete_collection(&DeleteParams::default(), &records_of("destination")).await?;
    stage.kill_spoke().await?;
    let mark = stage.mark()?;
    stage.send(&old).await?;

    // Refused, and reported everywhere.
    let (hub, peer) = (stage.hub.as_ref().context("hub")?, stage.peer().await?);
    hub.report(&peer, |report| is_refused_as(report, "StateLost"))
        .await
        .with_context(|| stage.log().unwrap_or_default())?;
    let kubeconfig = stage.site()?.cluster.kubeconfig().display().to_string();
    until("the refusal to be recorded", WITHIN, || async {
        Ok((stage.status()?["refusals"][0]["reason"] == "StateLost").then_some(()))
    })
    .await?;
    assert_eq!(stage.status()?["stateLost"], json!({"recorded": 1, "found": 0}));
    let metrics = stage.site()?.metrics().await?;
    assert!(metrics.contains("attest_spoke_state_lost 1"), "{metrics}");
    assert!(stage.log()?.contains("StateLost"));
    assert_eq!((stage.writes(mark)?, stage.record()?), (vec![], None));
    // The evidence of earlier records is kept.
    assert!(!secrets.list(&records_of("content")).await?.items.is_empty());

    let nonce = stage.peer().await?.hello.nonce;
    stage.fleet.operator().attest(&[
        "spoke",
        "accept-state",
        "--kubeconfig",
        &kubeconfig,
        "--yes",
    ])?;
    until("the spoke to be restarted", WITHIN, || async {
        Ok((stage.peer().await?.hello.nonce != nonce).then_some(()))
    })
    .await?;
    stage.synced(&configs(3)).await?;
    assert_eq!(stage.status()?["stateLost"], Value::Null);
    stage.fleet.check_spoke_requests()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_repeats_directives_is_rate_limited() -> anyhow::Result<()> {
    let Some(mut stage) = Stage::set().await? else { return Ok(()) };
    stage.synced(&configs(1)).await?;
    let (mark, started) = (stage.mark()?, Instant::now());

    for _ in 0..3 * ADMISSIONS_AT_ONCE_MAX {
        let delivery = stage.delivery(&configs(1)).await?;
        stage.send(&delivery).await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stage.reported(|report| report.phase == Phase::Synced).await?;

    let since = u32::try_from(started.elapsed().as_secs() / ADMISSION_EVERY.as_secs())?;
    let events = stage.site()?.cluster.audit().since(mark)?;
    // The rendering is the same in all of them: only the envelopes of each directive are new. A create
    // that fails, because the Secret exists, also costs etcd all its bytes.
    let sent = events.iter().filter(|event| {
        event.verb == "create" && event.object().name.starts_with("attest-content-")
    });
    let sent = u32::try_from(sent.count())?;
    assert!(sent > 0 && sent <= ADMISSIONS_AT_ONCE_MAX + since + 1, "{sent} in {since}");
    stage.fleet.check_spoke_requests()?;
    Ok(())
}
