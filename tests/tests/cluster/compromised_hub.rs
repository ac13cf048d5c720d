//! A compromised hub with a valid certificate and a valid signing key, against real spokes on real API
//! servers.
//!
//! Each forged directive is refused for its own reason, which appears in the command line, the report,
//! the metric and the log, and as a condition when the real hub runs again. Nothing is written and no
//! sequence advances. At the end an honest directive, sent the same way, is carried out: the refusals
//! had no other cause, such as a lost connection.

mod rollouts;

use std::time::Duration;

use anyhow::{Context, ensure};
use attest_common::basics::keys::PrivateKey;
use attest_common::basics::terms::Mode;
use attest_common::documents::plan::Operation;
use attest_common::documents::release::{NamespaceRule, Render};
use attest_common::record::{Floor, Held, Record};
use attest_common::session::report::Report;
use attest_common::trust::policy::Spec;
use attest_tests::cluster::audit::{AuditEvent, Mark};
use attest_tests::compromised_hub::{
    CompromisedHub, Delivery, Peer, PublishedRelease, ResignOptions, with_content,
};
use attest_tests::fleet::Repository;
use attest_tests::real::{RealFleet, RealSite};
use attest_tests::wait::until;
use attest_tests::workload::copy_tree;
use serde_json::{Value, json};

const WITHIN: Duration = Duration::from_secs(60);
const REFUSED_WITHIN: Duration = Duration::from_secs(20);
const NAMESPACE: &str = "app-production";

struct Stage {
    fleet: RealFleet,
    hub: CompromisedHub,
    peer: Peer,
    staging: Peer,
    /// The previous release, as read from the repository's history.
    older: PublishedRelease,
    newest: PublishedRelease,
    /// Another application in production's namespace, with its own ConfigMap.
    other: PublishedRelease,
    ci: PrivateKey,
}

impl Stage {
    async fn set() -> anyhow::Result<Option<Self>> {
        let clusters = [("staging", "staging"), ("production", "production")];
        let Some(mut fleet) = RealFleet::start(&clusters).await? else { return Ok(None) };
        fleet.write_sample()?;
        fleet.release("v1")?;
        let history = fleet.directory().join("history");
        copy_tree(&fleet.repository().tree().join(".attest"), &history.join(".attest"), &[])?;
        let manifest = json!({
            "apiVersion": "attest.continuu.ms/v1", "kind": "AttestApplication",
            "metadata": {"name": "web-app"},
            "spec": {
                "source": {"repoUrl": fleet.repository().url(), "path": "k8s/overlays"},
                "destinations": [
                    {"cluster": "staging", "namespace": "app-staging"},
                    {"cluster": "production", "namespace": NAMESPACE}],
                "syncPolicy": {"automated": {"prune": true, "selfHeal": true}},
            },
        });
        let _: Value = fleet.api().call("PUT", "/v1/applications", Some(&manifest)).await?;
        let other = deploy_another(&fleet).await?;
        fleet.wait_synced("web-app", WITHIN).await?;
        fleet.release("v2")?;
        let _: Value = fleet.api().call("POST", "/v1/applications/web-app/sync", None).await?;
        until("v2 to be held in production", WITHIN, || async {
            Ok(record(&fleet, "production", "web-app", NAMESPACE)?.filter(|r| r.sequence >= 2))
        })
        .await?;
        fleet.wait_synced("web-app", WITHIN).await?;
        let address = fleet.hub().addresses().spokes.parse()?;
        let home = fleet.hub().home().to_owned();
        fleet.hub().process().kill();
        let hub = CompromisedHub::take_over(&home, address).await?;
        let staging = hub.connected("staging").await?;
        let peer = hub.connected("production").await?;
        let older = PublishedRelease::read(&history, "web-app", None)?;
        let newest = PublishedRelease::read(fleet.repository().tree(), "web-app", None)?;
        let ci = PrivateKey::from_pem(&std::fs::read_to_string(fleet.key())?)?;
        Ok(Some(Self { fleet, hub, peer, staging, older, newest, other, ci }))
    }

    fn site(&self, name: &str) -> anyhow::Result<&RealSite> {
        self.fleet.sites().iter().find(|site| site.name == name).context("no such cluster")
    }

    /// Allows `Adopt` in plans, as production's operator would.
    async fn allow_adoption_in_production(&self) -> anyhow::Result<()> {
        let site = self.production()?;
        let before = self.hub.connected("production").await?.hello.nonce;
        site.set_adopt(true).await?;
        until("the spoke to send its new policy", WITHIN, || async {
            let hello = self.hub.connected("production").await?.hello;
            let spec: Spec = serde_json::from_slice(&hello.policy)?;
            let adopts = spec.applications.iter().all(|entry| entry.adopt);
            Ok((hello.nonce != before && adopts).then_some(()))
        })
        .await
    }

    fn production(&self) -> anyhow::Result<&RealSite> {
        self.site("production")
    }

    fn honest(&self) -> anyhow::Result<Delivery> {
        self.newest.delivery(&self.peer, "production", NAMESPACE)
    }

    /// The newest release after `change`, signed again by CI, as a delivery.
    fn resigned(
        &self,
        content: Option<Vec<u8>>,
        change: impl FnOnce(&mut attest_common::documents::release::Release),
    ) -> anyhow::Result<Delivery> {
        let options = ResignOptions { key: &self.ci, render: "production", content };
        let (again, content) = self.newest.sign_again(options, change)?;
        again.delivery_of(&self.peer, "production", NAMESPACE, content)
    }

    /// Sends a delivery to production and checks every consequence of a refusal, including what the real
    /// hub shows.
    async fn refused(self, case: &str, sent: &Delivery, reason: &str) -> anyhow::Result<Self> {
        let report = self.refused_at("production", case, sent, reason).await?;
        ensure!(report.running.is_some(), "{case}: the report lacks the running release");
        let application = sent.directive.application.as_str();
        self.check_at_the_real_hub(|fleet| has_condition(fleet, application, reason))
            .await
            .with_context(|| case.to_owned())
    }

    /// Sends a delivery and waits for the refusal in the cluster's own record, read by the command line,
    /// in the report, the metric and the log. Checks that no sequence advances and nothing is written.
    async fn refused_at(
        &self,
        cluster: &str,
        case: &str,
        delivery: &Delivery,
        reason: &str,
    ) -> anyhow::Result<Report> {
        let site = self.site(cluster)?;
        let peer = self.hub.connected(cluster).await?;
        let place = (&delivery.directive.application, &delivery.directive.namespace);
        let before = record(&self.fleet, cluster, place.0.as_str(), place.1.as_str())?.map(state);
        let mark = site.cluster.audit().mark();
        let counted = count(&site.metrics().await?, reason);
        let logged = occurrences(site, reason);
        self.hub.push(&peer, delivery).await?;

        let sequence = delivery.directive.sequence;
        let kubeconfig = site.cluster.kubeconfig().display().to_string();
        let what = format!("{case}: a refusal as {reason}");
        let seen = until(&what, REFUSED_WITHIN, || async {
            let status =
                self.fleet.operator().json(&["spoke", "status", "--kubeconfig", &kubeconfig])?;
            let all = status["refusals"].as_array().cloned().unwrap_or_default();
            let mine = |r: &&Value| {
                r["reason"] == reason
                    && r["sequence"] == json!(sequence)
                    && r["application"] == place.0.as_str()
                    && r["namespace"] == place.1.as_str()
            };
            Ok(all.iter().find(mine).cloned())
        });
        if let Err(error) = seen.await {
            let status =
                self.fleet.operator().attest(&["spoke", "status", "--kubeconfig", &kubeconfig])?;
            return Err(error.context(status));
        }
        let mine = |r: &Report| {
            r.application == *place.0
                && r.namespace == *place.1
                && r.refusal.as_ref().is_some_and(|refusal| refusal.reason.as_str() == reason)
        };
        let report = self.hub.report(&peer, mine).await;
        let report = report.with_context(|| format!("{case}: the report"))?;
        until(&format!("{case}: metric and log"), REFUSED_WITHIN, || async {
            let now = count(&site.metrics().await?, reason);
            Ok((now > counted && occurrences(site, reason) > logged).then_some(()))
        })
        .await?;
        let after = record(&self.fleet, cluster, place.0.as_str(), place.1.as_str())?.map(state);
        assert_eq!(after, before, "{case}: the state advanced");
        let writes = writes(site, mark)?;
        assert!(writes.is_empty(), "{case}: {writes:#?}");
        Ok(report)
    }

    /// Stops the compromised hub, checks what the real hub shows of the last refusal, and takes over the
    /// hub again.
    async fn check_at_the_real_hub(
        self,
        shows: impl Fn(&mut RealFleet) -> anyhow::Result<bool>,
    ) -> anyhow::Result<Self> {
        let Self { mut fleet, hub, peer, staging, .. } = self;
        // An open connection keeps the address in use.
        drop((peer, staging));
        hub.end().await?;
        fleet.hub().restart().await?;
        let shown = std::sync::Mutex::new(&mut fleet);
        let shown = until("the real hub to show it", WITHIN, || async {
            let mut fleet = shown.lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
            Ok(shows(&mut fleet)?.then_some(()))
        });
        if let Err(error) = shown.await {
            let seen = fleet.operator().attest(&["gitops", "app", "get", "web-app"])?;
            return Err(error.context(seen));
        }
        // Spokes reconnect immediately to a hub that closes its sessions; a killed hub is noticed later.
        fleet.hub().process().terminate();
        let ending = std::sync::Mutex::new(fleet.hub().process());
        until("the real hub to exit", WITHIN, || async {
            ending.lock().map_err(|_| anyhow::anyhow!("poisoned"))?.ended()
        })
        .await?;
        let address = fleet.hub().addresses().spokes.parse()?;
        let home = fleet.hub().home().to_owned();
        let hub = CompromisedHub::take_over(&home, address).await?;
        let peer = hub.connected("production").await?;
        let staging = hub.connected("staging").await?;
        Ok(Self { fleet, hub, peer, staging, ..self })
    }
}

/// Returns whether the refusal is a condition of the application.
fn has_condition(fleet: &RealFleet, application: &str, reason: &str) -> anyhow::Result<bool> {
    let seen = fleet.operator().json(&["gitops", "app", "get", application])?;
    let all = seen["conditions"].as_array().cloned().unwrap_or_default();
    Ok(all.iter().any(|condition| {
        condition["type"] == "Verified"
            && condition["status"] == "False"
            && condition["reason"] == reason
    }))
}

/// Deploys a second application from its own repository.
async fn deploy_another(fleet: &RealFleet) -> anyhow::Result<PublishedRelease> {
    let repository = Repository::create(&fleet.directory().join("other"))?;
    let tree = repository.tree();
    copy_tree(fleet.repository().tree(), tree, &["out", "k8s", ".attest", ".git"])?;
    let recipe = std::fs::read_to_string(tree.join("attest.yaml"))?;
    let lines = recipe.lines().filter(|line| {
        !["images:", "- {name: myapp", "- {name: staging"].iter().any(|it| line.starts_with(it))
    });
    let lines: Vec<String> = lines
        .map(|line| match line.split_once(": ") {
            Some(("application", _)) => "application: other".to_owned(),
            Some(("repository", _)) => format!("repository: {}", repository.url()),
            _ => line.to_owned(),
        })
        .collect();
    std::fs::write(tree.join("attest.yaml"), lines.join("\n") + "\n")?;
    let overlay = tree.join("k8s/overlays/production");
    std::fs::create_dir_all(&overlay)?;
    let own = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "other"}});
    std::fs::write(overlay.join("configmap.yaml"), own.to_string())?;
    repository.commit_and_push("The other application")?;
    let variables = [("GITHUB_SHA", "v1"), ("GITHUB_REF_NAME", "v1")];
    repository.sign(fleet.operator(), fleet.key(), &variables)?;
    repository.commit_and_push("Release v1")?;
    let manifest = json!({
        "apiVersion": "attest.continuu.ms/v1", "kind": "AttestApplication",
        "metadata": {"name": "other"},
        "spec": {
            "source": {"repoUrl": repository.url(), "path": "k8s/overlays"},
            "destination": {"cluster": "production", "namespace": NAMESPACE},
        },
    });
    let _: Value = fleet.api().call("PUT", "/v1/applications", Some(&manifest)).await?;
    fleet.wait_synced("other", WITHIN).await?;
    PublishedRelease::read(tree, "other", None)
}

/// Returns the writes since a mark: mutating requests without dry run, by the spoke or an account it
/// impersonates, outside the spoke's own two namespaces.
fn writes(site: &RealSite, mark: Mark) -> anyhow::Result<Vec<AuditEvent>> {
    let events = site.cluster.audit().since(mark)?.into_iter();
    let writes = events.filter(|event| {
        event.is_mutating()
            && !event.is_dry_run()
            && event.is_of_spoke()
            && !["attest-spoke", "attest-applications"].contains(&event.object().namespace.as_str())
    });
    Ok(writes.collect())
}

fn record(
    fleet: &RealFleet,
    cluster: &str,
    application: &str,
    namespace: &str,
) -> anyhow::Result<Option<Record>> {
    let site = fleet.sites().iter().find(|site| site.name == cluster).context("no such cluster")?;
    let kubeconfig = site.cluster.kubeconfig().display().to_string();
    let status = fleet.operator().json(&["spoke", "status", "--kubeconfig", &kubeconfig])?;
    let all: Vec<Record> = serde_json::from_value(status["destinations"].clone())?;
    Ok(all
        .into_iter()
        .find(|r| (r.application.as_str(), r.namespace.as_str()) == (application, namespace)))
}

/// The part of a record that only an admitted directive changes.
fn state(record: Record) -> (u64, u64, Option<Held>, Option<Floor>) {
    (record.epoch, record.sequence, record.held, record.floor)
}

/// Sum of the refusal counters with this reason.
fn count(metrics: &str, reason: &str) -> u64 {
    let lines = metrics.lines().filter(|line| line.starts_with("attest_spoke_refusals_total"));
    let mine = lines.filter(|line| line.contains(&format!("reason=\"{reason}\"")));
    mine.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// Returns whether the hub has logged the refusal of a directive that it never issued.
fn has_logged_a_report(fleet: &mut RealFleet, namespace: &str) -> bool {
    let log = fleet.hub().process().output();
    let mut lines = log.lines().filter(|line| line.contains("\"UnorderedReport\""));
    lines.any(|line| line.contains(namespace) && line.contains("\"CounterRegressed\""))
}

fn occurrences(site: &RealSite, reason: &str) -> usize {
    site.fakelet
        .output("attest-spoke/attest-spoke")
        .matches(&format!("\"reason\":\"{reason}\""))
        .count()
}

/// Changes the JSON of every line of a rendering.
fn changed(content: &[u8], change: impl Fn(&mut Value)) -> anyhow::Result<Vec<u8>> {
    let mut objects = Vec::new();
    for line in content.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        let mut object: Value = serde_json::from_slice(line)?;
        change(&mut object);
        objects.push(object);
    }
    Ok(attest_common::documents::manifest::write(objects)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compromised_hub_cannot_deploy() -> anyhow::Result<()> {
    let Some(mut stage) = Stage::set().await? else { return Ok(()) };
    let marks: Vec<Mark> =
        stage.fleet.sites().iter().map(|site| site.cluster.audit().mark()).collect();
    let content = stage.newest.content("production")?;

    // (a) a changed manifest byte
    let mut sent = stage.honest()?;
    with_content(
        &mut sent,
        changed(&content, |object| {
            if object["kind"] == "Deployment" {
                object["spec"]["replicas"] = json!(7);
            }
        })?,
    )?;
    stage = stage.refused("a", &sent, "ContentDigest").await?;

    // (b1) the other cluster's directive
    let mut sent = stage.honest()?;
    sent.directive.cluster = stage.hub.connected("staging").await?.cluster;
    stage = stage.refused("b1", &sent, "AudienceMismatch").await?;

    // (b2) the staging rendering at production
    let sent = stage.newest.delivery(&stage.peer, "staging", NAMESPACE)?;
    stage = stage.refused("b2", &sent, "TargetMismatch").await?;

    // (c) a replayed directive
    let mut sent = stage.honest()?;
    sent.directive.sequence -= 2;
    stage = stage.refused("c", &sent, "SequenceReplayed").await?;

    // (d) a missing receipt
    let mut sent = stage.honest()?;
    let withheld = sent.plan.receipts.pop().context("receipts")?;
    sent.blobs.retain(|blob| attest_common::basics::ids::Digest::of(blob) != withheld.sha256);
    stage = stage.refused("d", &sent, "ReceiptMissing").await?;

    // (e) an object in a foreign namespace, even when CI signed it
    let foreign = changed(&content, |object| {
        if object["kind"] == "ConfigMap" {
            object["metadata"]["namespace"] = json!("default");
        }
    })?;
    let sent = stage.resigned(Some(foreign), |_| {})?;
    stage = stage.refused("e", &sent, "NamespaceNotAllowed").await?;

    // (f) verification disabled
    let mut sent = stage.honest()?;
    sent.plan.policy.mode = Mode::Disabled;
    stage = stage.refused("f", &sent, "PolicyFloor").await?;

    // (g) a previous release
    let sent = stage.older.delivery(&stage.peer, "production", NAMESPACE)?;
    stage = stage.refused("g", &sent, "CounterRegressed").await?;

    // (g2) the same in another namespace: a namespace without deployments has no floor of its own
    let fresh = "app-fresh";
    let sent = stage.older.delivery(&stage.hub.connected("staging").await?, "staging", fresh)?;
    stage.refused_at("staging", "g2", &sent, "CounterRegressed").await?;
    assert_eq!(record(&stage.fleet, "staging", "web-app", fresh)?, None);
    // The real hub has never issued a directive for it: it has no status, but logs the report.
    let checked = stage.check_at_the_real_hub(|fleet| Ok(has_logged_a_report(fleet, fresh)));
    stage = checked.await.context("g2")?;

    // (h) another repository's signed release of the same name
    let sent = stage.resigned(None, |release| {
        release.source.repo = "https://git.example/other/web-app".to_owned();
    })?;
    stage = stage.refused("h", &sent, "SourceChanged").await?;

    // (i) another render for the same environment
    let mut sent = stage.resigned(None, |release| {
        let other = release.renders.iter().find(|r| r.name == "production").cloned();
        release.renders.extend(other.map(|render| Render {
            name: "blue".to_owned(),
            subject: "manifests/blue".to_owned(),
            namespace: NamespaceRule::Fixed { value: "app-blue".parse().unwrap() },
            ..render
        }));
    })?;
    sent.plan.render = "blue".to_owned();
    stage = stage.refused("i", &sent, "RenderMismatch").await?;

    // (j) a hook
    let mut sent = stage.honest()?;
    sent.plan.hooks = vec![json!({"name": "backdoor", "image": "evil"})];
    stage = stage.refused("j", &sent, "HookNotAllowed").await?;

    // (j2) a part of a rollout, which no spoke can stop at
    let mut sent = stage.honest()?;
    sent.directive.cap_percent = 50;
    stage = stage.refused("j2", &sent, "CapNotSupported").await?;

    // (j3, j4) a plan that contradicts the release that it names
    let mut sent = stage.honest()?;
    sent.plan.namespace = NamespaceRule::DefaultOnly { pattern: "*".to_owned() };
    stage = stage.refused("j3", &sent, "PlanMismatch").await?;
    let mut sent = stage.honest()?;
    sent.plan.content.objects += 1;
    stage = stage.refused("j4", &sent, "PlanMismatch").await?;

    // (k) an object that another application owns, with Adopt set, where the cluster's own policy allows
    // adoption
    stage.allow_adoption_in_production().await?;
    let owned = content.split_inclusive(|byte| *byte == b'\n');
    let owned =
        owned.filter(|line| String::from_utf8_lossy(line).contains("\"kind\":\"ConfigMap\""));
    let owned = owned.flatten().copied().collect();
    let options = ResignOptions { key: &stage.ci, render: "production", content: Some(owned) };
    let (again, owned) = stage.other.sign_again(options, |_| {})?;
    let mut sent = again.delivery_of(&stage.peer, "production", NAMESPACE, owned)?;
    sent.plan.sync.adopt = true;
    stage = stage.refused("k", &sent, "OwnedByOther").await?;

    // A removal, which production's policy does not allow the hub.
    let mut sent = stage.honest()?;
    sent.directive.operation = Operation::Remove;
    stage = stage.refused("remove", &sent, "RemoveNotAllowed").await?;

    // Nothing was written during all of this.
    for (site, mark) in stage.fleet.sites().iter().zip(marks) {
        let writes = writes(site, mark)?;
        assert!(writes.is_empty(), "{}: {writes:#?}", site.name);
    }

    // The positive control: an honest directive, sent the same way, is carried out.
    let mark = stage.production()?.cluster.audit().mark();
    let fresh = changed(&content, |object| {
        if object["kind"] == "Deployment" {
            object["metadata"]["labels"]["positive"] = json!("control");
        }
    })?;
    let sent = stage.resigned(Some(fresh), |_| {})?;
    stage.hub.push(&stage.peer, &sent).await?;
    until("the honest directive to be carried out", WITHIN, || async {
        Ok((!writes(stage.production()?, mark)?.is_empty()).then_some(()))
    })
    .await?;
    until("the honest plan to be good", WITHIN, || async {
        let recorded = record(&stage.fleet, "production", "web-app", NAMESPACE)?;
        Ok(recorded.filter(|record| record.last_good == record.held))
    })
    .await?;
    rollouts::refuse_forged_orders(&stage, &sent).await?;
    stage.fleet.check_spoke_requests()?;
    Ok(())
}
