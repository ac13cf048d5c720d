//! One spoke on a real API server, driven by a hub that sends what the test says: what it writes, what it
//! does not write, what it puts back, takes away and refuses, and what it knows after being killed.

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

const WITHIN: Duration = Duration::from_secs(60);
/// Long enough for a second write to show, should there be one.
const SETTLE: Duration = Duration::from_millis(700);
/// The pace of admissions, as the spoke has it.
const ADMISSIONS_AT_ONCE_MAX: u32 = 10;
const ADMISSION_EVERY: Duration = Duration::from_secs(3);
/// What a Deployment that never gets ready is given; longer than one that does takes.
const PROGRESS_DEADLINE_S: u64 = 5;
/// How soon an edit is undone whatever other applications do: far less than their requests hang.
const UNDONE_WITHIN: Duration = Duration::from_secs(5);
/// How long a request hangs for which nobody answers.
const HANGING_WITHIN: Duration = Duration::from_secs(25);
/// Requests of one worker at a time, as the spoke has it, and more objects than that.
const REQUESTS_AT_ONCE: usize = 8;
const REQUESTS_OF_ONE: usize = 20;
const OTHER: &str = "other";
const OTHER_NAMESPACE: &str = "app-other";
const CLUSTER: &str = "staging";
const NAMESPACE: &str = "app-staging";
const POD: &str = "attest-system/attest-spoke";

/// A cluster whose spoke listens to a hub that the test speaks for.
struct Stage {
    fleet: RealFleet,
    hub: Option<CompromisedHub>,
    carried: PublishedRelease,
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
        // The sample is rendered for production too, and `attest run --verify` knows keys by environment.
        let public = fleet.key().with_extension("pub").display().to_string();
        let add = ["trust", "key", "add", "ci-too", &public, "--environment", "production"];
        fleet.operator().attest(&add)?;
        fleet.release("v1")?;
        let address = fleet.hub().addresses().spokes.parse()?;
        let home = fleet.hub().home().to_owned();
        fleet.hub().process().kill();
        let hub = CompromisedHub::take_over(&home, address).await?;
        hub.connected(CLUSTER).await?;
        let carried = PublishedRelease::read(fleet.repository().tree(), "web-app", None)?;
        let ci = PrivateKey::from_pem(&std::fs::read_to_string(fleet.key())?)?;
        let base = objects(&carried.content(CLUSTER)?)?;
        Ok(Some(Self { fleet, hub: Some(hub), carried, ci, sequence: 0, base }))
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
        self.hub.as_ref().context("the hub is gone")?.connected(CLUSTER).await
    }

    /// The sample and `more`, signed by CI as the next release, ready to be sent or bent first.
    async fn delivery(&mut self, more: &[Value]) -> anyhow::Result<Delivery> {
        let all = self.base.iter().chain(more).cloned().collect();
        let content = attest_common::documents::manifest::write(all)?;
        let how = ResignOptions { key: &self.ci, render: CLUSTER, content: Some(content) };
        let (again, content) = self.carried.sign_again(how, |_| {})?;
        self.sequence += 1;
        let peer = self.peer().await?;
        let mut delivery = again.delivery_of(&peer, CLUSTER, NAMESPACE, content)?;
        delivery.directive.sequence = self.sequence;
        self.carried = again;
        Ok(delivery)
    }

    /// The same as another application in a namespace of its own, ordered for the first time.
    async fn delivery_of_another(&self, more: &[Value]) -> anyhow::Result<Delivery> {
        let all = self.base.iter().chain(more).cloned().collect();
        let content = Some(attest_common::documents::manifest::write(all)?);
        let name = OTHER.parse()?;
        let how = ResignOptions { key: &self.ci, render: CLUSTER, content };
        let (again, content) =
            self.carried.sign_again(how, |release| release.application = name)?;
        again.delivery_of(&self.peer().await?, CLUSTER, OTHER_NAMESPACE, content)
    }

    async fn send(&self, delivery: &Delivery) -> anyhow::Result<()> {
        let peer = self.peer().await?;
        self.hub.as_ref().context("the hub is gone")?.push(&peer, delivery).await
    }

    /// Waits for a report about the newest directive.
    async fn reported(&self, wanted: impl Fn(&Report) -> bool) -> anyhow::Result<Report> {
        let (hub, peer) = (self.hub.as_ref().context("the hub is gone")?, self.peer().await?);
        let sequence = self.sequence;
        let mine = |r: &Report| r.application.as_str() == "web-app" && r.sequence == Some(sequence);
        let report = hub.report(&peer, |r| mine(r) && wanted(r)).await;
        if report.is_err() {
            let last = hub.report(&peer, |_| true).await?;
            return report.context(format!("the last report was {last:#?}\n{}", self.log()?));
        }
        report
    }

    /// Sends and waits until everything is as signed.
    async fn synced(&mut self, more: &[Value]) -> anyhow::Result<Report> {
        let delivery = self.delivery(more).await?;
        self.send(&delivery).await?;
        self.reported(|report| report.phase == Phase::Synced).await
    }

    fn log(&self) -> anyhow::Result<String> {
        let site = self.site()?;
        Ok(site.spoke.as_ref().map_or_else(|| site.fakelet.output(POD), Process::output))
    }

    /// Starts the spoke outside the cluster anew, dying at `failpoint` if one is named, and waits
    /// until it has greeted the hub.
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
        // Dropped first: two spokes of one cluster would overtake each other.
        site.spoke = None;
        site.spoke = Some(Process::spawn(spec)?);
        until("the spoke to greet", WITHIN, || async {
            Ok((self.peer().await?.hello.nonce != before).then_some(()))
        })
        .await
    }

    fn mark(&self) -> anyhow::Result<Mark> {
        Ok(self.site()?.cluster.audit().mark())
    }

    /// What the spoke asked the API server for since then, but for its watches, its lease and its own
    /// Secrets: `verb name`, or `verb resource` where no object is named.
    fn requests(&self, mark: Mark) -> anyhow::Result<Vec<String>> {
        let events = self.events(mark)?.into_iter();
        let said = events.filter(|event| event.verb != "watch").map(|event| {
            let object = event.object();
            let verb = if event.is_dry_run() { "try" } else { event.verb.as_str() };
            let what = [object.name, object.resource, event.request_uri];
            let what = what.into_iter().find(|word| !word.is_empty()).unwrap_or_default();
            format!("{verb} {what}")
        });
        Ok(said.collect())
    }

    /// Writes of application objects since then, without dry runs: `verb name`.
    fn writes(&self, mark: Mark) -> anyhow::Result<Vec<String>> {
        let events = self.events(mark)?.into_iter().filter(|event| {
            let closed = event.object().namespace.starts_with("attest-");
            event.is_mutating() && !event.is_dry_run() && !closed
        });
        Ok(events.map(|event| format!("{} {}", event.verb, event.object().name)).collect())
    }

    fn events(&self, mark: Mark) -> anyhow::Result<Vec<AuditEvent>> {
        let events = self.site()?.cluster.audit().since(mark)?.into_iter();
        let ours = events.filter(|event| {
            let object = event.object();
            event.is_of_spoke()
                && object.namespace != "attest-system"
                && object.resource != "leases"
        });
        Ok(ours.collect())
    }

    /// Waits for the first write after `mark`, then a little longer, and returns them all.
    async fn writes_after(&self, mark: Mark) -> anyhow::Result<Vec<String>> {
        until("a write", WITHIN, || async { Ok((!self.writes(mark)?.is_empty()).then_some(())) })
            .await?;
        tokio::time::sleep(SETTLE).await;
        self.writes(mark)
    }

    /// As [`Self::writes_after`], with everything else that was asked for.
    async fn requests_after(&self, mark: Mark) -> anyhow::Result<Vec<String>> {
        self.writes_after(mark).await?;
        self.requests(mark)
    }

    fn record(&self) -> anyhow::Result<Option<Record>> {
        let kubeconfig = self.site()?.cluster.kubeconfig().display().to_string();
        let operator = self.fleet.operator();
        let status = operator.json(&["spoke", "status", "--kubeconfig", &kubeconfig])?;
        let all: Vec<Record> = serde_json::from_value(status["destinations"].clone())?;
        Ok(all.into_iter().find(|record| record.application.as_str() == "web-app"))
    }

    /// Kills the spoke and waits until it runs again and, where there is a hub, has greeted it: a push
    /// to the dead session would be lost.
    async fn kill_spoke(&self) -> anyhow::Result<()> {
        let before = self.fleet.spoke_process(CLUSTER);
        let greeted = match &self.hub {
            Some(_) => Some(self.peer().await?.hello.nonce),
            None => None,
        };
        ensure!(self.site()?.fakelet.signal(POD, Signal::KILL) == 1, "no spoke to kill");
        until("the spoke to be started again", WITHIN, || async {
            let now = self.fleet.spoke_process(CLUSTER);
            Ok(now.filter(|id| Some(*id) != before))
        })
        .await?;
        if let Some(nonce) = greeted {
            self.greets_anew(&nonce).await?;
        }
        Ok(())
    }

    /// Sets how many pods the spoke's Deployment has.
    async fn replicas(&self, count: u32) -> anyhow::Result<()> {
        let deployments: Api<k8s_openapi::api::apps::v1::Deployment> =
            Api::namespaced(self.client().await?, "attest-system");
        let patch = Patch::Merge(json!({"spec": {"replicas": count}}));
        deployments.patch_scale("attest-spoke", &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Waits until the spoke has greeted the hub once more than at `nonce`.
    async fn greets_anew(&self, nonce: &[u8]) -> anyhow::Result<()> {
        until("the spoke to greet the hub again", WITHIN, || async {
            Ok((self.peer().await?.hello.nonce != nonce).then_some(()))
        })
        .await
    }

    async fn value(&self, name: &str) -> anyhow::Result<Option<String>> {
        let found = self.configs().await?.get_opt(name).await?;
        Ok(found.and_then(|config| config.data?.get("key").cloned()))
    }

    /// Edits a field of ours a few times.
    async fn edits_are_undone_at_once(&self) -> anyhow::Result<()> {
        for name in ["config-0", "config-1", "config-0"] {
            self.edit(name).await?;
            until("the edit to be undone at once", UNDONE_WITHIN, || async {
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

fn objects(content: &[u8]) -> anyhow::Result<Vec<Value>> {
    let lines = content.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    Ok(lines.map(serde_json::from_slice).collect::<Result<_, _>>()?)
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

    // One object of many changes: one dry run, one write, of exactly what was signed, and nobody asks
    // about the others. The API server reads YAML, which would fold some of these characters.
    let changed = "changed \u{85}  to \u{2028} \u{2029} \u{7f}\u{9f}\u{feff} ä \u{1f600}";
    let mut more = configs(12);
    more[3] = config("config-3", changed);
    let mark = stage.mark()?;
    stage.synced(&more).await?;
    assert_eq!(stage.value("config-3").await?.as_deref(), Some(changed));
    assert_eq!(stage.requests_after(mark).await?, ["try config-3", "patch config-3"]);

    // The same again as a new release: no request at all.
    let mark = stage.mark()?;
    stage.synced(&more).await?;
    tokio::time::sleep(SETTLE).await;
    assert_eq!(stage.requests(mark)?, [""; 0]);

    // Somebody edits a field of ours: one write, at once, and no other request on the way.
    let mark = stage.mark()?;
    stage.edit("config-5").await?;
    assert_eq!(stage.requests_after(mark).await?, ["patch config-5"]);
    assert_eq!(stage.value("config-5").await?.as_deref(), Some("signed"));

    // Somebody deletes an object: one write.
    let mark = stage.mark()?;
    stage.configs().await?.delete("config-6", &DeleteParams::default()).await?;
    assert_eq!(stage.requests_after(mark).await?, ["patch config-6"]);
    assert_eq!(stage.value("config-6").await?.as_deref(), Some("signed"));

    // Somebody adds what is not ours: nothing.
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

    // Killed, with the hub gone: nothing is written until something is wrong again.
    stage.hub = None;
    let mark = stage.mark()?;
    stage.kill_spoke().await?;
    stage.edit("config-8").await?;
    assert_eq!(stage.writes_after(mark).await?, ["patch config-8"]);
    let mark = stage.mark()?;
    stage.configs().await?.delete("config-9", &DeleteParams::default()).await?;
    assert_eq!(stage.requests_after(mark).await?, ["patch config-9"]);
    until("the object that came back to be recorded", WITHIN, || async {
        let live = stage.configs().await?.get("config-9").await?.metadata.uid;
        let record = stage.record()?.context("no record")?;
        let mut mine = record.inventory.iter().filter(|owned| owned.key.name == "config-9");
        Ok(mine.next().filter(|owned| owned.uid.is_some() && owned.uid == live).map(|_| ()))
    })
    .await?;

    // What happened while no spoke was there is seen when it is back.
    let mark = stage.mark()?;
    stage.replicas(0).await?;
    until("the spoke to be gone", WITHIN, || async {
        Ok(stage.fleet.spoke_process(CLUSTER).is_none().then_some(()))
    })
    .await?;
    stage.edit("config-1").await?;
    stage.configs().await?.delete("config-2", &DeleteParams::default()).await?;
    assert_eq!(stage.writes(mark)?, [""; 0]);
    stage.replicas(1).await?;
    until("both to be put back", WITHIN, || async {
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
async fn what_is_no_longer_rendered_goes_but_never_most_of_it_at_once() -> anyhow::Result<()> {
    let Some(mut stage) = Stage::set().await? else { return Ok(()) };
    stage.synced(&configs(14)).await?;

    stage.synced(&configs(12)).await?;
    until("two objects to be deleted", WITHIN, || async {
        let gone = stage.value("config-12").await?.is_none();
        Ok((gone && stage.value("config-13").await?.is_none()).then_some(()))
    })
    .await?;
    assert!(stage.value("config-11").await?.is_some());
    until("the inventory to say so", WITHIN, || async {
        let record = stage.record()?.context("no record")?;
        let names: Vec<&str> = record.inventory.iter().map(|o| o.key.name.as_str()).collect();
        Ok((!names.contains(&"config-12") && names.contains(&"config-11")).then_some(()))
    })
    .await?;

    let delivery = stage.delivery(&configs(2)).await?;
    let mark = stage.mark()?;
    stage.send(&delivery).await?;
    let report = stage.reported(|report| report.reason == "PruneGuard").await?;
    assert_eq!(report.phase, Phase::OutOfSync);
    assert!(stage.value("config-11").await?.is_some());
    assert_eq!(stage.writes(mark)?, [""; 0]);

    // Ordered away, which staging's policy leaves to the hub: all of it goes, the tombstone stays.
    let mut removal = stage.delivery(&[]).await?;
    removal.directive.operation = Operation::Remove;
    stage.send(&removal).await?;
    stage.reported(|report| report.phase == Phase::Removed).await?;
    until("the objects to be gone", WITHIN, || async {
        Ok(stage.value("config-11").await?.is_none().then_some(()))
    })
    .await?;
    let record = stage.record()?.context("the tombstone is gone")?;
    assert!(record.removed && record.held.is_none() && record.inventory.is_empty());
    let floor = record.floor.context("the floor is gone")?;
    assert!(record.binding.is_some());

    // It may come back, but not older.
    let newest = stage.carried.clone();
    stage.carried.document.counter = floor.counter - 2;
    let older = stage.delivery(&configs(1)).await?;
    stage.send(&older).await?;
    let refused = |reason: &'static str| {
        move |r: &Report| r.refusal.as_ref().is_some_and(|refusal| refusal.reason == reason)
    };
    let (hub, peer) = (stage.hub.as_ref().context("hub")?, stage.peer().await?);
    hub.report(&peer, refused("CounterRegressed")).await?;
    stage.carried = newest;
    stage.synced(&configs(1)).await?;
    stage.fleet.check_spoke_requests()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_made_is_not_taken_and_one_bad_object_stops_nobody() -> anyhow::Result<()> {
    let Some(mut stage) = Stage::set().await? else { return Ok(()) };
    stage.synced(&configs(2)).await?;

    // The plan names an object that somebody else made: refused as a whole, nothing written.
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
    assert_eq!(refusal.reason, "FieldConflict");
    assert!(
        refusal.message.contains("hand") && refusal.message.contains("theirs"),
        "{}",
        refusal.message
    );
    assert_eq!(
        report.running.context("what ran is forgotten")?.counter + 1,
        stage.carried.document.counter
    );
    assert_eq!(stage.writes(mark)?, [""; 0]);
    assert_eq!(stage.value("theirs").await?.as_deref(), Some("theirs"));

    // Where nothing ran before, neither account nor bindings stay for it; the namespace does.
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
    let is_refused = |r: &Report| r.application.as_str() == OTHER && r.phase == Phase::Refused;
    hub.report(&peer, is_refused).await?;
    let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), OTHER_NAMESPACE);
    let accounts: Api<ServiceAccount> = Api::namespaced(client, "attest-applications");
    until("the rights to be taken back", WITHIN, || async {
        let mut made = accounts.list_metadata(&ListParams::default()).await?.items.into_iter();
        let has_account = made.any(|account| {
            let mut annotations = account.metadata.annotations.into_iter().flatten();
            annotations.any(|(_, value)| value == OTHER_NAMESPACE)
        });
        let bound = bindings.list_metadata(&ListParams::default()).await?.items;
        Ok((bound.is_empty() && !has_account).then_some(()))
    })
    .await?;
    assert!(others.get_opt("theirs").await?.is_some());

    // What ran before is still kept, also by a spoke that has to read it all back.
    stage.edit("config-1").await?;
    until("the edit to be undone", WITHIN, || async {
        Ok((stage.value("config-1").await?.as_deref() == Some("signed")).then_some(()))
    })
    .await?;
    stage.kill_spoke().await?;
    let (hub, peer) = (stage.hub.as_ref().context("hub")?, stage.peer().await?);
    let next = hub.report(&peer, |r| r.application.as_str() == "web-app").await?;
    assert_eq!(
        next.running.context("the first report after the restart forgets what runs")?.counter + 1,
        stage.carried.document.counter
    );
    stage.edit("config-0").await?;
    until("the edit to be undone after a restart", WITHIN, || async {
        Ok((stage.value("config-0").await?.as_deref() == Some("signed")).then_some(()))
    })
    .await?;

    // With the very values that are there it is met, and released when it is no longer rendered.
    more.pop();
    more.push(config("theirs", "theirs"));
    stage.synced(&more).await?;
    until("the record to say that it was met", WITHIN, || async {
        let record = stage.record()?.context("no record")?;
        Ok(record.inventory.iter().any(|o| o.key.name == "theirs" && o.met).then_some(()))
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

    // One object that the API server will not have: the others are applied all the same.
    let mut bad = configs(4);
    bad.push(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "bad"},
        "spec": {"ports": [{"port": 99_999}]},
    }));
    let delivery = stage.delivery(&bad).await?;
    stage.send(&delivery).await?;
    let report = stage.reported(|report| report.phase == Phase::Degraded).await?;
    assert_eq!(report.reason, "Invalid", "{report:#?}");
    until("the good object", WITHIN, || async { stage.value("config-3").await }).await?;
    stage.synced(&configs(4)).await?;

    // Without self-heal drift is told and left alone.
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
async fn what_others_made_is_taken_over_when_plan_and_policy_both_say_so_and_goes_like_our_own()
-> anyhow::Result<()> {
    let Some(mut stage) = Stage::set().await? else { return Ok(()) };
    stage.synced(&configs(1)).await?;
    let theirs: ConfigMap = serde_json::from_value(config("theirs", "theirs"))?;
    let parameters = PostParams { field_manager: Some("hand".to_owned()), ..Default::default() };
    let made = stage.configs().await?.create(&parameters, &theirs).await?;
    let mut more = configs(1);
    more.push(config("theirs", "ours"));

    // Either alone is not enough.
    for (plan_asks, policy_allows) in [(true, false), (false, true)] {
        if policy_allows {
            let nonce = stage.peer().await?.hello.nonce;
            stage.site()?.set_adopt(true).await?;
            stage.greets_anew(&nonce).await?;
        }
        let mut delivery = stage.delivery(&more).await?;
        delivery.plan.sync.adopt = plan_asks;
        let mark = stage.mark()?;
        stage.send(&delivery).await?;
        let report = stage.reported(|report| report.phase == Phase::Refused).await?;
        let refusal = report.refusal.context("no refusal")?;
        assert_eq!(refusal.reason, "FieldConflict", "{plan_asks} {policy_allows}");
        assert!(refusal.message.contains("hand"), "{}", refusal.message);
        assert_eq!(stage.writes(mark)?, [""; 0]);
        assert_eq!(stage.value("theirs").await?.as_deref(), Some("theirs"));
    }

    let mut delivery = stage.delivery(&more).await?;
    delivery.plan.sync.adopt = true;
    stage.send(&delivery).await?;
    stage.reported(|report| report.phase == Phase::Synced).await?;

    // It is the object that was there, with our value, ours to heal and to delete.
    let live = stage.configs().await?.get("theirs").await?;
    assert_eq!(live.metadata.uid, made.metadata.uid);
    assert_eq!(stage.value("theirs").await?.as_deref(), Some("ours"));
    until("it to be in the inventory as ours", WITHIN, || async {
        let record = stage.record()?.context("no record")?;
        let mut mine = record.inventory.iter().filter(|owned| owned.key.name == "theirs");
        Ok(mine.next().filter(|owned| !owned.met && owned.uid == live.metadata.uid).map(|_| ()))
    })
    .await?;
    stage.edit("theirs").await?;
    until("the edit to be undone", WITHIN, || async {
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
async fn an_application_that_hangs_or_fails_in_every_request_keeps_no_other_from_its_own()
-> anyhow::Result<()> {
    let Some(mut stage) = Stage::set().await? else { return Ok(()) };
    stage.synced(&configs(2)).await?;
    let namespaces: Api<Namespace> = Api::all(stage.client().await?);
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OTHER_NAMESPACE}});
    namespaces.create(&PostParams::default(), &serde_json::from_value(namespace)?).await?;
    let others: Api<ConfigMap> = Api::namespaced(stage.client().await?, OTHER_NAMESPACE);
    let webhook = Webhook::put(&stage.client().await?, &others).await?;

    // More requests than a worker makes at a time, and none of them is answered.
    let delivery = stage.delivery_of_another(&configs(REQUESTS_OF_ONE)).await?;
    let before = webhook.asked();
    stage.send(&delivery).await?;
    until("the other application to hang", WITHIN, || async {
        Ok((webhook.asked() >= before + REQUESTS_AT_ONCE).then_some(()))
    })
    .await?;
    stage.edits_are_undone_at_once().await?;
    let begun = Instant::now();
    stage.synced(&configs(3)).await?;
    assert!(begun.elapsed() < HANGING_WITHIN, "{:?}", begun.elapsed());
    stage.edits_are_undone_at_once().await?;

    // Now they are answered at once, with an error, and asked again.
    webhook.fail();
    let is_other = |report: &Report| report.application.as_str() == OTHER;
    let (hub, peer) = (stage.hub.as_ref().context("hub")?, stage.peer().await?);
    hub.report(&peer, |r| is_other(r) && r.message.contains("webhook")).await?;
    stage.edits_are_undone_at_once().await?;
    assert!(
        others
            .list(&ListParams::default().fields("metadata.name=config-0"))
            .await?
            .items
            .is_empty()
    );

    // Without the obstacle it goes on by itself.
    webhook.remove().await?;
    let (hub, peer) = (stage.hub.as_ref().context("hub")?, stage.peer().await?);
    hub.report(&peer, |r| is_other(r) && r.phase == Phase::Synced).await?;
    assert!(others.get_opt("config-0").await?.is_some());
    stage.fleet.check_spoke_requests()?;
    Ok(())
}

/// An admission webhook for the ConfigMaps of the other application: it answers nothing.
struct Webhook {
    asked: Arc<AtomicUsize>,
    fails: Arc<tokio::sync::Notify>,
    configurations: Api<ValidatingWebhookConfiguration>,
}

impl Webhook {
    /// Returns once the API server asks it.
    async fn put(client: &Client, asked_for: &Api<ConfigMap>) -> anyhow::Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("https://{}/", listener.local_addr()?);
        let (asked, fails) = (Arc::new(AtomicUsize::new(0)), Arc::new(tokio::sync::Notify::new()));
        let (count, failing) = (Arc::clone(&asked), Arc::clone(&fails));
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
        until("the webhook to be asked", WITHIN, || async {
            let dry_run = PostParams { dry_run: true, ..Default::default() };
            let _ = tokio::time::timeout(SETTLE, asked_for.create(&dry_run, &probe)).await;
            Ok((asked.load(Ordering::Relaxed) > 0).then_some(()))
        })
        .await?;
        Ok(Self { asked, fails, configurations })
    }

    /// How many connections were made to it.
    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// From now on it hangs up.
    fn fail(&self) {
        self.fails.notify_one();
    }

    async fn remove(&self) -> anyhow::Result<()> {
        self.configurations.delete("never", &DeleteParams::default()).await?;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_never_get_ready_are_waited_for_then_told_and_a_healthy_release_ends_it()
-> anyhow::Result<()> {
    let Some(mut stage) = Stage::set().await? else { return Ok(()) };
    stage.synced(&[]).await?;
    let deployment = stage.base.iter().position(|object| object["kind"] == "Deployment");
    let deployment = deployment.context("the sample has no Deployment")?;
    let healthy = stage.base[deployment].clone();
    stage.base[deployment]["spec"]["progressDeadlineSeconds"] = json!(PROGRESS_DEADLINE_S);
    stage.base[deployment]["spec"]["template"]["metadata"]["annotations"] =
        json!({READY_ANNOTATION: "never"});

    // Applied is not done: first its pods are waited for, then the cluster itself gives up on them.
    let delivery = stage.delivery(&[]).await?;
    stage.send(&delivery).await?;
    let waiting = |report: &Report| {
        report.phase == Phase::Progressing && report.message.contains("Deployment")
    };
    let report = stage.reported(waiting).await?;
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
async fn rights_that_were_taken_are_made_anew_and_what_waits_for_its_end_is_not_forgotten()
-> anyhow::Result<()> {
    let Some(mut stage) = Stage::set().await? else { return Ok(()) };
    stage.synced(&configs(2)).await?;

    // A spoke that starts without its bindings could list nothing, and would wait for ever.
    let bindings: Api<RoleBinding> = Api::namespaced(stage.client().await?, NAMESPACE);
    bindings.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
    stage.kill_spoke().await?;
    stage.edit("config-0").await?;
    until("the edit to be undone", WITHIN, || async {
        Ok((stage.value("config-0").await?.as_deref() == Some("signed")).then_some(()))
    })
    .await?;
    stage.reported(|report| report.phase == Phase::Synced).await?;

    // An accepted deletion is none while somebody holds the object.
    let patch = Patch::Merge(json!({"metadata": {"finalizers": ["example.com/hold"]}}));
    stage.configs().await?.patch("config-1", &PatchParams::default(), &patch).await?;
    let delivery = stage.delivery(&configs(1)).await?;
    stage.send(&delivery).await?;
    let waits = "waits for finalizers example.com/hold";
    stage.reported(|report| report.warnings.iter().any(|w| w.contains(waits))).await?;
    let listed = |record: Record| record.inventory.iter().any(|o| o.key.name == "config-1");
    assert!(listed(stage.record()?.context("no record")?));

    let patch = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    stage.configs().await?.patch("config-1", &PatchParams::default(), &patch).await?;
    until("it to be gone", WITHIN, || async {
        Ok((!listed(stage.record()?.context("no record")?)).then_some(()))
    })
    .await?;

    // The namespace goes while a removal is on its way, and the right to delete in it goes too.
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

    // It speaks with no hub: none is pinned.
    let mark = stage.mark()?;
    let before = stage.record()?;
    let nonce = stage.peer().await?.hello.nonce;
    stage.edit("config-0").await?;
    let delivery = stage.delivery(&configs(3)).await?;
    until("nothing to be taken from the hub any more", WITHIN, || async {
        Ok(stage.send(&delivery).await.is_err().then_some(()))
    })
    .await?;

    // Back again, but for another spoke: it hears the hub, and admits and changes nothing.
    let status = policy.data.get_mut("status").map(Value::take);
    policy.metadata.resource_version = None;
    policy.metadata.uid = None;
    policy.metadata.managed_fields = None;
    policies.create(&PostParams::default(), &policy).await?;
    stage.greets_anew(&nonce).await?;
    stage.send(&delivery).await?;
    let (hub, peer) = (stage.hub.as_ref().context("hub")?, stage.peer().await?);
    let sequence = Some(delivery.directive.sequence);
    let mine = |r: &Report| r.refusal.as_ref().is_some_and(|refusal| refusal.sequence == sequence);
    let report = hub.report(&peer, mine).await?;
    assert_eq!(report.refusal.context("no refusal")?.reason, "NoTrustPolicy");
    assert_eq!(stage.writes(mark)?, [""; 0]);
    let after = stage.record()?;
    assert_eq!(
        after.map(|record| (record.sequence, record.held)),
        before.map(|record| (record.sequence, record.held))
    );
    assert_eq!(stage.value("config-0").await?.as_deref(), Some("edited"));

    // Bound to this spoke by the operator: everything goes on, and what was pushed meanwhile can be
    // pushed again.
    let bound = Patch::Merge(json!({"status": status.context("no status")?}));
    policies.patch_status("local", &PatchParams::default(), &bound).await?;
    until("the edit to be undone", WITHIN, || async {
        Ok((stage.value("config-0").await?.as_deref() == Some("signed")).then_some(()))
    })
    .await?;
    stage.synced(&configs(3)).await?;
    stage.fleet.check_spoke_requests()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn definitions_come_before_their_objects_and_only_where_the_policy_says() -> anyhow::Result<()>
{
    let Some(mut stage) = Stage::set().await? else { return Ok(()) };
    let version = |name: &str, storage: bool| {
        json!({"name": name, "served": true, "storage": storage, "schema": {
            "openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object",
                "properties": {"size": {"type": "integer"}}}}}}})
    };
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget"},
            "versions": [version("v1beta1", false), version("v1", true)],
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
    let refused = |r: &Report| r.refusal.as_ref().is_some_and(|r| r.reason == "KindNotAllowed");
    let report = hub.report(&peer, refused).await?;
    let text = report.refusal.context("no refusal")?.message;
    assert!(text.contains("clusterScoped") || text.contains("extra"), "{text}");
    assert_eq!(stage.writes(mark)?, [""; 0]);

    // The operator adds the policy's lines.
    let nonce = stage.peer().await?.hello.nonce;
    let directory = stage.fleet.directory().to_owned();
    let mut policy = stage.site()?.policies().await?.get("local").await?;
    let spec = policy.data.get_mut("spec").map(Value::take).context("no spec")?;
    let mut spec = spec;
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
    // A session rests on one policy.
    stage.greets_anew(&nonce).await?;
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

    // A custom object is healed like any other, also by a spoke that starts anew.
    let edit = Patch::Merge(json!({"spec": {"size": 9}}));
    for start_anew in [false, true] {
        if start_anew {
            stage.kill_spoke().await?;
        }
        until("the watch to be there and the edit to be undone", WITHIN, || async {
            widgets.patch("one", &PatchParams::default(), &edit).await?;
            tokio::time::sleep(SETTLE).await;
            Ok((widgets.get("one").await?.data["spec"]["size"] == 3).then_some(()))
        })
        .await?;
    }

    // A Secret is healed too, and its values, signed or edited, are told nowhere.
    let secrets: Api<Secret> = Api::namespaced(stage.client().await?, NAMESPACE);
    let edit = Patch::Merge(json!({"stringData": {"word": "mackerel"}}));
    secrets.patch("words", &PatchParams::default(), &edit).await?;
    until("the Secret to be put back", WITHIN, || async {
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

    // Gone from the rendering, and with it the version it was written in: the custom object is
    // deleted in another, its definition and the namespace are not.
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_was_away_is_caught_up_with() -> anyhow::Result<()> {
    let Some(mut stage) = Stage::set().await? else { return Ok(()) };
    stage.synced(&configs(2)).await?;

    // Ordered while nothing can be recorded.
    let delivery = stage.delivery(&configs(4)).await?;
    stage.site()?.cluster.stop_api();
    stage.send(&delivery).await?;
    tokio::time::sleep(SETTLE).await;
    stage.site()?.cluster.start_api().await?;
    stage.reported(|report| report.phase == Phase::Synced).await?;
    assert_eq!(stage.value("config-3").await?.as_deref(), Some("signed"));

    // Edited while nobody watches: the spoke stands still until the edit is old.
    ensure!(stage.site()?.fakelet.signal(POD, Signal::STOP) == 1, "no spoke to stop");
    stage.site()?.cluster.stop_api();
    stage.site()?.cluster.start_api().await?;
    stage.edit("config-1").await?;
    assert_eq!(stage.value("config-1").await?.as_deref(), Some("edited"));
    ensure!(stage.site()?.fakelet.signal(POD, Signal::CONT) == 1, "no spoke to go on");
    until("the edit to be undone", WITHIN, || async {
        Ok((stage.value("config-1").await?.as_deref() == Some("signed")).then_some(()))
    })
    .await?;
    stage.fleet.check_spoke_requests()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edit_is_undone_however_deep_its_author_nests_what_is_beside_it() -> anyhow::Result<()> {
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
    // Nested too deeply for a client that reads it as a document.
    let answer = client.request_text(put.body(object.to_string().into_bytes())?).await?;

    assert!(answer.contains(&r#"{"f:a":"#.repeat(130)), "the API server keeps it: {answer}");
    until("the edit to be undone", WITHIN, || async {
        let live = client.request_text(Request::get(&path).body(Vec::new())?).await?;
        Ok(live.contains(r#""data":{"key":"signed"}"#).then_some(()))
    })
    .await?;
    stage.fleet.check_spoke_requests()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoke_that_dies_at_any_write_carries_on_where_it_was() -> anyhow::Result<()> {
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
    // What changes known objects only begins with the record of its admission.
    let rounds = known.map(|failpoint| (failpoint, false)).into_iter();
    let rounds = rounds.chain(fresh.map(|failpoint| (failpoint, true)));
    let mut former: Option<String> = None;
    for (round, (failpoint, brings)) in rounds.enumerate() {
        // Each time one object is changed. In most rounds one is new, and the last round's new one goes.
        stage.start_external(Some(failpoint)).await?;
        let fresh = format!("fresh-{round}");
        let mut more = configs(3);
        more[1] = config("config-1", &fresh);
        if brings {
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
        // What an honest hub does when a spoke greets without its newest directive; else it is known.
        stage.send(&delivery).await?;
        let report = stage.reported(|report| report.phase == Phase::Synced).await?;
        assert_eq!(report.refusal, None, "{failpoint}");
        assert_eq!(stage.value("config-1").await?.as_deref(), Some(fresh.as_str()), "{failpoint}");
        let is_there = stage.value(&fresh).await?.as_deref() == Some("signed");
        assert_eq!(is_there, brings, "{failpoint}");
        if let Some(former) = former.replace(fresh).filter(|_| brings) {
            until("what is no longer rendered to go", WITHIN, || async {
                Ok(stage.value(&former).await?.is_none().then_some(()))
            })
            .await
            .context(failpoint)?;
        }
        until("the record to know every object", WITHIN, || async {
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

/// One write before the first apply and one after the last, where other changes take one more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_known_objects_that_nothing_stands_against_begins_with_its_admission()
-> anyhow::Result<()> {
    let Some(mut stage) = Stage::set().await? else { return Ok(()) };
    stage.synced(&configs(3)).await?;
    let mut changed = configs(3);
    changed[1] = config("config-1", "changed");
    let mark = stage.fleet.sites()[0].cluster.audit().mark();

    stage.synced(&changed).await?;

    let record = stage.record()?.context("no record")?;
    assert_eq!(record.former, None);
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
async fn what_a_dying_spoke_just_made_is_its_own_for_the_next_order() -> anyhow::Result<()> {
    let Some(mut stage) = Stage::set_with(Agents::External).await? else { return Ok(()) };
    stage.synced(&configs(1)).await?;
    stage.start_external(Some("after-apply")).await?;
    let mut more = configs(1);
    more.push(config("fresh", "first"));
    let delivery = stage.delivery(&more).await?;
    stage.send(&delivery).await?;
    let spoke = stage.fleet.sites_mut().first_mut().and_then(|site| site.spoke.as_mut());
    let spoke = std::sync::Mutex::new(spoke.context("no spoke")?);
    until("its end", WITHIN, || async { spoke.lock().unwrap().ended() }).await?;
    let record = stage.record()?.context("no record")?;
    assert!(record.former.is_none(), "it had begun to write");
    assert!(record.inventory.iter().any(|owned| owned.uid.is_none()));

    stage.start_external(None).await?;
    more[1] = config("fresh", "second");
    let newer = stage.delivery(&more).await?;
    stage.send(&newer).await?;
    let report = stage.reported(|report| report.phase == Phase::Synced).await?;

    assert_eq!(report.refusal, None);
    until("the object to be owned", WITHIN, || async {
        let record = stage.record()?.context("no record")?;
        let owned = record.inventory.iter().all(|owned| owned.uid.is_some() && !owned.met);
        let value = stage.value("fresh").await?;
        Ok((owned && value.as_deref() == Some("second")).then_some(()))
    })
    .await?;
    stage.fleet.check_spoke_requests()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_past_two_thirds_of_its_life_is_renewed_and_the_new_one_used()
-> anyhow::Result<()> {
    let Some(mut stage) = Stage::set_with(Agents::External).await? else { return Ok(()) };
    stage.synced(&configs(1)).await?;

    // As if the certificate had been issued long ago: backdated by five minutes, ending in one.
    let peer = stage.peer().await?;
    let request = attest_certs::SigningRequest::generate()?;
    let hub = stage.hub.as_ref().context("hub")?;
    let issued = hub.authority().issue_spoke(
        &request.csr_der,
        peer.cluster.as_str(),
        Duration::from_secs(60),
    )?;
    let old = issued.serial.to_string();
    let secrets: Api<Secret> = Api::namespaced(stage.client().await?, "attest-system");
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
    // It is the same spoke and goes on as before.
    assert_eq!(stage.peer().await?.cluster, peer.cluster);
    stage.synced(&configs(2)).await?;
    stage.fleet.check_spoke_requests()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoke_whose_records_are_gone_admits_nothing_until_somebody_accepts_that()
-> anyhow::Result<()> {
    let Some(mut stage) = Stage::set().await? else { return Ok(()) };
    let old = stage.delivery(&configs(1)).await?;
    stage.send(&old).await?;
    stage.reported(|report| report.phase == Phase::Synced).await?;
    stage.synced(&configs(2)).await?;
    let secrets: Api<Secret> = Api::namespaced(stage.client().await?, "attest-system");
    until("the number of records to be noted", WITHIN, || async {
        let data = secrets.get("attest-identity").await?.data.context("no identity")?;
        Ok(data.contains_key("destinations").then_some(()))
    })
    .await?;

    let labelled =
        |kind: &str| ListParams::default().labels(&format!("attest.continuu.ms/record={kind}"));
    secrets.delete_collection(&DeleteParams::default(), &labelled("destination")).await?;
    stage.kill_spoke().await?;
    let mark = stage.mark()?;
    stage.send(&old).await?;

    // Refused, and said everywhere.
    let refused =
        |report: &Report| report.refusal.as_ref().is_some_and(|r| r.reason == "StateLost");
    let (hub, peer) = (stage.hub.as_ref().context("hub")?, stage.peer().await?);
    hub.report(&peer, refused).await.with_context(|| stage.log().unwrap_or_default())?;
    let kubeconfig = stage.site()?.cluster.kubeconfig().display().to_string();
    let status = || stage.fleet.operator().json(&["spoke", "status", "--kubeconfig", &kubeconfig]);
    until("the refusal to be recorded", WITHIN, || async {
        Ok((status()?["refusals"][0]["reason"] == "StateLost").then_some(()))
    })
    .await?;
    assert_eq!(status()?["stateLost"], json!({"recorded": 1, "found": 0}));
    let metrics = stage.site()?.metrics().await?;
    assert!(metrics.contains("attest_spoke_state_lost 1"), "{metrics}");
    assert!(stage.log()?.contains("StateLost"));
    assert_eq!((stage.writes(mark)?, stage.record()?), (vec![], None));
    // What shows that something was held is still there.
    assert!(!secrets.list(&labelled("content")).await?.items.is_empty());

    let greeted = stage.peer().await?.hello.nonce;
    stage.fleet.operator().attest(&[
        "spoke",
        "accept-state",
        "--kubeconfig",
        &kubeconfig,
        "--yes",
    ])?;
    until("the spoke to start again", WITHIN, || async {
        Ok((stage.peer().await?.hello.nonce != greeted).then_some(()))
    })
    .await?;
    stage.synced(&configs(3)).await?;
    let kubeconfig = stage.site()?.cluster.kubeconfig().display().to_string();
    let status = stage.fleet.operator().json(&["spoke", "status", "--kubeconfig", &kubeconfig])?;
    assert_eq!(status["stateLost"], Value::Null);
    stage.fleet.check_spoke_requests()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_orders_again_and_again_is_followed_at_a_bounded_pace() -> anyhow::Result<()> {
    let Some(mut stage) = Stage::set().await? else { return Ok(()) };
    stage.synced(&configs(1)).await?;
    let (mark, begun) = (stage.mark()?, Instant::now());

    for _ in 0..3 * ADMISSIONS_AT_ONCE_MAX {
        let delivery = stage.delivery(&configs(1)).await?;
        stage.send(&delivery).await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stage.reported(|report| report.phase == Phase::Synced).await?;

    let since = u32::try_from(begun.elapsed().as_secs() / ADMISSION_EVERY.as_secs())?;
    let events = stage.site()?.cluster.audit().since(mark)?;
    // The rendering is the same in all of them: of each order only the envelopes are new.
    // Also a create that is refused, because the Secret is there, costs etcd all its bytes.
    let sent = events.iter().filter(|event| {
        event.verb == "create" && event.object().name.starts_with("attest-content-")
    });
    let sent = u32::try_from(sent.count())?;
    assert!(sent > 0 && sent <= ADMISSIONS_AT_ONCE_MAX + since + 1, "{sent} in {since}");
    stage.fleet.check_spoke_requests()?;
    Ok(())
}
