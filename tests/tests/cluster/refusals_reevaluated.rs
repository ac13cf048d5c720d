//! Refusals that end when their obstacle goes, and states that a spoke repairs: each situation with its end state,
//! after which nothing is written.

use std::time::Duration;

use anyhow::{Context, ensure};
use attest_tests::cluster::audit::Mark;
use attest_tests::fleet::Repository;
use attest_tests::real::RealFleet;
use attest_tests::wait::until;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

const WITHIN: Duration = Duration::from_secs(60);
/// Interval in which a settled cluster is checked for writes that follow immediately. `quiet` counts for a minute.
const QUIET_FOR: Duration = Duration::from_secs(1);
const SITE: &str = "staging";
const NAMESPACE: &str = "app";

/// A cluster whose policy requires no attestations and limits no pruning.
async fn fleet(more: Value) -> anyhow::Result<Option<RealFleet>> {
    let Some(fleet) = RealFleet::start(&[(SITE, SITE)]).await? else { return Ok(None) };
    let policies = fleet.sites()[0].policies().await?;
    let policy = policies.get("local").await?;
    let mut entries = policy.data.pointer("/spec/applications").cloned().unwrap_or_default();
    for entry in entries.as_array_mut().context("the policy has no applications")? {
        entry["minimumMode"] = json!("Standard");
        entry["requiredAttestations"] = json!([]);
        entry["remove"] = json!({"allow": true, "maxPrunePercent": 100});
        for (field, value) in more.as_object().into_iter().flatten() {
            entry[field] = value.clone();
        }
    }
    let patch = Patch::Merge(json!({"spec": {"applications": entries}}));
    policies.patch("local", &PatchParams::default(), &patch).await?;
    Ok(Some(fleet))
}

/// An application with its own repository.
struct Application<'a> {
    fleet: &'a RealFleet,
    name: &'a str,
    repository: Repository,
    counter: std::cell::Cell<u32>,
}

impl<'a> Application<'a> {
    fn create(fleet: &'a RealFleet, name: &'a str) -> anyhow::Result<Self> {
        let repository = Repository::create(&fleet.directory().join(name))?;
        let recipe = format!(
            "application: {name}\nrepository: {}\nsourceRoot: k8s\nrenders:\n\
             - {{name: all, path: k8s, environments: [{SITE}], namespace: {{mode: default-only, pattern: \"{NAMESPACE}\"}}}}\n\
             release: {{version: \"${{VERSION}}\", counter: \"${{VERSION}}\", notAfter: 720h}}\n",
            repository.url()
        );
        std::fs::write(repository.tree().join("attest.yaml"), recipe)?;
        Ok(Self { fleet, name, repository, counter: std::cell::Cell::new(0) })
    }

    /// Replaces the manifests, signs them as the next release and pushes them.
    fn release(&self, manifests: &[&str]) -> anyhow::Result<()> {
        let directory = self.repository.tree().join("k8s");
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory)?;
        for (index, manifest) in manifests.iter().enumerate() {
            std::fs::write(directory.join(format!("{index}.yaml")), manifest)?;
        }
        self.counter.set(self.counter.get() + 1);
        let version = self.counter.get().to_string();
        self.repository.git(&["add", "-A"])?;
        self.repository.git(&["commit", "-q", "--allow-empty", "-m", "Source"])?;
        self.sign(&version)?;
        self.repository.commit_and_push(&format!("Release {version}"))?;
        Ok(())
    }

    fn sign(&self, version: &str) -> anyhow::Result<()> {
        let mut command = self.fleet.operator().command(["run", "--sign"]);
        command.current_dir(self.repository.tree()).env("VERSION", version);
        let output = command.env("ATTEST_SIGNING_KEY_FILE", self.fleet.key()).output()?;
        let diagnostics = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "attest run --sign: {diagnostics}");
        Ok(())
    }

    fn apply(&self, sync_policy: &Value) -> anyhow::Result<()> {
        let manifest = json!({
            "apiVersion": "attest.continuu.ms/v1", "kind": "AttestApplication",
            "metadata": {"name": self.name},
            "spec": {
                "destinations": [{"cluster": SITE, "namespace": NAMESPACE}],
                "source": {"repoUrl": self.repository.url(), "path": "k8s"},
                "verification": {"policy": "Standard"},
                "syncPolicy": sync_policy,
            },
        });
        let path = self.fleet.directory().join(format!("{}.json", self.name));
        std::fs::write(&path, manifest.to_string())?;
        let path = path.display().to_string();
        self.fleet.operator().attest(&["gitops", "app", "apply", "-f", &path])?;
        Ok(())
    }

    fn sync(&self) -> anyhow::Result<()> {
        self.fleet.operator().attest(&["gitops", "app", "sync", self.name]).map(drop)
    }

    /// Waits until the hub shows this phase, and the newest commit as read; returns the destination.
    async fn reaches(&self, phase: &str, reason: &str) -> anyhow::Result<Value> {
        let path = format!("/v1/applications/{}", self.name);
        let head = self.repository.git(&["rev-parse", "HEAD"])?;
        let what = format!("{} to be {phase} ({reason})", self.name);
        let waited = until(&what, WITHIN, || async {
            let seen: Value = self.fleet.api().call("GET", &path, None).await?;
            let destination = &seen["destinations"][0];
            let is_there = seen["revision"] == head.as_str()
                && destination["phase"] == phase
                && destination["reason"] == reason;
            Ok(is_there.then(|| destination.clone()))
        });
        match waited.await {
            Ok(destination) => Ok(destination),
            Err(error) => {
                let seen: Value = self.fleet.api().call("GET", &path, None).await?;
                let site = &self.fleet.sites()[0];
                let log = site.fakelet.output("attest-spoke/attest-spoke");
                Err(error.context(format!("{seen:#}\n{log}")))
            }
        }
    }

    async fn synced(&self) -> anyhow::Result<Value> {
        self.reaches("Synced", "Synced").await
    }
}

async fn client(fleet: &RealFleet) -> anyhow::Result<Client> {
    fleet.sites()[0].cluster.client().await
}

async fn configs(fleet: &RealFleet) -> anyhow::Result<Api<ConfigMap>> {
    Ok(Api::namespaced(client(fleet).await?, NAMESPACE))
}

async fn value(fleet: &RealFleet, name: &str, key: &str) -> anyhow::Result<Option<String>> {
    let found = configs(fleet).await?.get_opt(name).await?;
    Ok(found.and_then(|found| found.data?.get(key).cloned()))
}

async fn create_namespace(fleet: &RealFleet) -> anyhow::Result<()> {
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    let namespaces: Api<Namespace> = Api::all(client(fleet).await?);
    namespaces.create(&PostParams::default(), &serde_json::from_value(namespace)?).await?;
    Ok(())
}

async fn create_config(fleet: &RealFleet, name: &str, value: &str) -> anyhow::Result<()> {
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": value},
    });
    let parameters =
        PostParams { field_manager: Some("kubectl-create".to_owned()), ..Default::default() };
    configs(fleet).await?.create(&parameters, &serde_json::from_value(object)?).await?;
    Ok(())
}

fn mark(fleet: &RealFleet) -> Mark {
    fleet.sites()[0].cluster.audit().mark()
}

/// Writes of the spoke outside its own namespaces since a mark, as `verb resource/name`.
fn writes(fleet: &RealFleet, mark: Mark) -> anyhow::Result<Vec<String>> {
    let events = fleet.sites()[0].cluster.audit().since(mark)?.into_iter();
    let writes = events.filter(|event| {
        let is_own = event.object().namespace.starts_with("attest-");
        event.is_of_spoke() && event.is_mutating() && !event.is_dry_run() && !is_own
    });
    let shown = writes.map(|event| {
        let object = event.object();
        format!("{} {}/{}", event.verb, object.resource, object.name)
    });
    Ok(shown.collect())
}

/// Checks that nothing is written in a settled cluster.
async fn check_quiet(fleet: &RealFleet) -> anyhow::Result<()> {
    let mark = mark(fleet);
    tokio::time::sleep(QUIET_FOR).await;
    let written = writes(fleet, mark)?;
    ensure!(written.is_empty(), "{written:?}");
    fleet.check_spoke_requests()?;
    Ok(())
}

fn automated(prune: bool, self_heal: bool) -> Value {
    json!({"automated": {"prune": prune, "selfHeal": self_heal}})
}

const X: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata: {a: \"1\"}\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_36_conflict_gone() -> anyhow::Result<()> {
    let Some(fleet) = fleet(json!({})).await? else { return Ok(()) };
    create_namespace(&fleet).await?;
    create_config(&fleet, "x", "other").await?;
    let application = Application::create(&fleet, "first")?;
    application.release(&[X])?;
    application.apply(&automated(true, true))?;

    // A first plan: its rights are withdrawn, so that the object cannot be watched.
    let refused = application.reaches("Refused", "FieldConflict").await?;
    ensure!(refused["message"].as_str().unwrap_or_default().contains("delete it"), "{refused:#}");
    assert_eq!(value(&fleet, "x", "a").await?.as_deref(), Some("other"));
    configs(&fleet).await?.delete("x", &DeleteParams::default()).await?;
    application.sync()?;
    application.synced().await?;
    assert_eq!(value(&fleet, "x", "a").await?.as_deref(), Some("1"));

    // The next plan of a running application, without a sync.
    create_config(&fleet, "late", "other").await?;
    let late = X.replace("name: x", "name: late");
    application.release(&[X, &late])?;
    application.sync()?;
    application.reaches("Refused", "FieldConflict").await?;
    let before = mark(&fleet);
    tokio::time::sleep(QUIET_FOR).await;
    assert_eq!(writes(&fleet, before)?, [""; 0]);
    configs(&fleet).await?.delete("late", &DeleteParams::default()).await?;
    application.synced().await?;
    assert_eq!(value(&fleet, "late", "a").await?.as_deref(), Some("1"));
    check_quiet(&fleet).await?;

    // The policy of the cluster forbids to adopt an object, and then permits it: no sync, and no new directive.
    create_config(&fleet, "kept", "other").await?;
    let adopting = Application::create(&fleet, "adopting")?;
    adopting.release(&[&X.replace("name: x", "name: kept")])?;
    adopting.apply(&json!({
        "automated": {"prune": true, "selfHeal": true}, "syncOptions": ["Adopt=true"],
    }))?;
    let refused = adopting.reaches("Refused", "FieldConflict").await?;
    fleet.sites()[0].set_adopt(true).await?;
    let synced = adopting.synced().await?;
    assert_eq!(value(&fleet, "kept", "a").await?.as_deref(), Some("1"));
    ensure!(synced["sequence"].is_u64() && synced["sequence"] == refused["sequence"], "{synced:#}");
    check_quiet(&fleet).await
}

const MOVES: &str =
    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: moves}\ndata: {owner: any}\n";

fn config(name: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{a: \"1\"}}\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_05_moved_object() -> anyhow::Result<()> {
    let Some(fleet) = fleet(json!({})).await? else { return Ok(()) };
    let (from, to) = (Application::create(&fleet, "from")?, Application::create(&fleet, "to")?);
    from.release(&[MOVES, &config("stays")])?;
    to.release(&[&config("own")])?;
    from.apply(&automated(true, true))?;
    to.apply(&automated(true, true))?;
    from.synced().await?;
    to.synced().await?;
    let uid = configs(&fleet).await?.get("moves").await?.metadata.uid;

    to.release(&[&config("own"), &MOVES.replace("any", "new")])?;
    to.sync()?;
    to.reaches("Refused", "OwnedByOther").await?;
    from.release(&[&config("stays")])?;
    from.sync()?;
    from.synced().await?;
    to.synced().await?;

    // Handed over: the same object, with the values of its new owner.
    let moved = configs(&fleet).await?.get("moves").await?;
    assert_eq!(moved.metadata.uid, uid);
    assert_eq!(value(&fleet, "moves", "owner").await?.as_deref(), Some("new"));
    check_quiet(&fleet).await?;
    // The new owner reverts edits.
    let edit = Patch::Merge(json!({"data": {"owner": "edited"}}));
    configs(&fleet).await?.patch("moves", &PatchParams::default(), &edit).await?;
    until("the edit to be reverted", WITHIN, || async {
        Ok((value(&fleet, "moves", "owner").await?.as_deref() == Some("new")).then_some(()))
    })
    .await?;

    // After the owner is removed, the object is made for the application that waits.
    from.release(&[&config("stays"), &MOVES.replace("any", "old")])?;
    from.sync()?;
    from.reaches("Refused", "OwnedByOther").await?;
    fleet.operator().attest(&["gitops", "app", "delete", "to", "--yes"])?;
    from.synced().await?;
    assert_eq!(value(&fleet, "moves", "owner").await?.as_deref(), Some("old"));
    check_quiet(&fleet).await
}

const SETTINGS: &str =
    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {level: info}\n";

async fn edit_level(fleet: &RealFleet) -> anyhow::Result<()> {
    let edit = Patch::Merge(json!({"data": {"level": "debug"}}));
    configs(fleet).await?.patch("settings", &PatchParams::default(), &edit).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_27_self_heal_off() -> anyhow::Result<()> {
    let Some(fleet) = fleet(json!({})).await? else { return Ok(()) };
    let application = Application::create(&fleet, "settings")?;
    application.release(&[SETTINGS, &config("goes")])?;
    application.apply(&json!({"automated": {"prune": true}}))?;
    application.synced().await?;

    // Drift is reported and kept, until an operator syncs.
    edit_level(&fleet).await?;
    application.reaches("OutOfSync", "OutOfSync").await?;
    assert_eq!(value(&fleet, "settings", "level").await?.as_deref(), Some("debug"));
    let sync = ["gitops", "app", "sync", "settings", "--wait"];
    fleet.operator().attest(&sync)?;
    assert_eq!(value(&fleet, "settings", "level").await?.as_deref(), Some("info"));
    application.synced().await?;

    // It has repaired once: a later edit is drift again.
    edit_level(&fleet).await?;
    application.reaches("OutOfSync", "OutOfSync").await?;
    let before = mark(&fleet);
    tokio::time::sleep(QUIET_FOR).await;
    assert_eq!(writes(&fleet, before)?, [""; 0]);

    // A release that changes another object brings every object of it to what is signed, and prunes.
    application.release(&[SETTINGS, &config("comes")])?;
    application.sync()?;
    application.synced().await?;
    assert_eq!(value(&fleet, "settings", "level").await?.as_deref(), Some("info"));
    assert_eq!(value(&fleet, "comes", "a").await?.as_deref(), Some("1"));
    until("the other object to be deleted", WITHIN, || async {
        Ok(value(&fleet, "goes", "a").await?.is_none().then_some(()))
    })
    .await?;
    check_quiet(&fleet).await
}

fn digest_of(letter: char) -> String {
    letter.to_string().repeat(64)
}

fn web(more: &str) -> String {
    let digest = digest_of('a');
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n{more}  \
         selector: {{matchLabels: {{app: web}}}}\n  template:\n    metadata: {{labels: {{app: web}}}}\n    \
         spec:\n      containers:\n      - name: web\n        image: web@sha256:{digest}\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_10_duplicate_list_keys() -> anyhow::Result<()> {
    const PORTS: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: dns}\nspec:\n  selector: {app: web}\n  ports:\n  \
        - {name: dns-udp, port: 53, protocol: UDP}\n  - {name: dns-tcp, port: 53}\n";
    let Some(fleet) = fleet(json!({})).await? else { return Ok(()) };
    let application = Application::create(&fleet, "web")?;
    let good = web("") + "        env:\n        - {name: LEVEL, value: debug}\n";
    let bad = good.clone() + "        - {name: LEVEL, value: info}\n";
    let beside = config("beside");

    application.release(&[&bad, &beside, PORTS])?;
    application.apply(&automated(true, true))?;
    let refused = application.reaches("Degraded", "Invalid").await?;
    let message = refused["message"].as_str().unwrap_or_default();
    ensure!(message.contains("duplicate entries for key [name=\"LEVEL\"]"), "{message}");
    ensure!(message.contains("Deployment") && message.contains("web"), "{message}");
    // It stops no other object.
    until("the objects beside it", WITHIN, || async { value(&fleet, "beside", "a").await }).await?;

    // A version that the API server does not serve is named with the one that it serves.
    application.release(&[&good, &beside.replace("apiVersion: v1", "apiVersion: v9"), PORTS])?;
    application.sync()?;
    let unserved = application.reaches("Degraded", "KindUnknown").await?;
    let text = unserved.to_string();
    ensure!(text.contains("does not serve v9") && text.contains("serves version v1"), "{text}");

    application.release(&[&good, &beside, PORTS])?;
    application.sync()?;
    application.synced().await?;
    check_quiet(&fleet).await
}

fn job(name: &str, letter: char, annotation: &str) -> String {
    let digest = digest_of(letter);
    format!(
        "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: {name}}}\nspec:\n  template:\n    \
         metadata: {{annotations: {{{annotation}}}}}\n    spec:\n      restartPolicy: Never\n      containers:\n      \
         - name: {name}\n        image: web@sha256:{digest}\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_07_job_image() -> anyhow::Result<()> {
    let Some(fleet) = fleet(json!({})).await? else { return Ok(()) };
    let application = Application::create(&fleet, "web")?;
    let settings = |release: &str| config("settings").replace("\"1\"", &format!("\"{release}\""));
    application.release(&[&job("migrate", 'a', ""), &settings("1"), &web("")])?;
    application.apply(&automated(true, true))?;
    application.synced().await?;
    let jobs: Api<Job> = Api::namespaced(client(&fleet).await?, NAMESPACE);
    let uid = jobs.get("migrate").await?.metadata.uid;

    // The Job has finished: it is deleted and made again.
    application.release(&[&job("migrate", 'b', ""), &settings("2"), &web("")])?;
    application.sync()?;
    application.synced().await?;
    let made = jobs.get("migrate").await?;
    assert_ne!(made.metadata.uid, uid);
    let image = made.spec.and_then(|spec| spec.template.spec?.containers.into_iter().next()?.image);
    assert_eq!(image, Some(format!("web@sha256:{}", digest_of('b'))));
    assert_eq!(value(&fleet, "settings", "a").await?.as_deref(), Some("2"));

    // Another Job, which does not finish.
    let never = "attest.test/ready: never";
    application.release(&[&job("migrate-2", 'b', never), &settings("3"), &web("")])?;
    application.sync()?;
    until("the next Job to be made", WITHIN, || async { Ok(jobs.get_opt("migrate-2").await?) })
        .await?;
    application.release(&[&job("migrate-2", 'c', never), &settings("4"), &web("")])?;
    application.sync()?;
    let refused = application.reaches("Degraded", "Invalid").await?;
    let message = refused["message"].as_str().unwrap_or_default();
    ensure!(message.contains("spec.template: field is immutable"), "{message}");
    until("the other objects to be applied", WITHIN, || async {
        Ok((value(&fleet, "settings", "a").await?.as_deref() == Some("4")).then_some(()))
    })
    .await?;

    // A release without it: it is deleted.
    application.release(&[&settings("5"), &web("")])?;
    application.sync()?;
    application.synced().await?;
    until("the Jobs to be deleted", WITHIN, || async {
        Ok(jobs.list(&ListParams::default()).await?.items.is_empty().then_some(()))
    })
    .await?;
    check_quiet(&fleet).await
}

const AUTOSCALER: &str = "apiVersion: autoscaling/v2\nkind: HorizontalPodAutoscaler\nmetadata: {name: web}\nspec:\n  \
    scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}\n  minReplicas: 4\n  maxReplicas: 8\n  metrics:\n  \
    - type: Resource\n    resource: {name: cpu, target: {type: Utilization, averageUtilization: 80}}\n";

/// Waits until the spoke has written the Deployment since `before`.
async fn deployment_written(fleet: &RealFleet, before: Mark, awaited: &str) -> anyhow::Result<()> {
    until(awaited, WITHIN, || async {
        let written = writes(fleet, before)?;
        Ok(written.iter().any(|write| write == "patch deployments/web").then_some(()))
    })
    .await
}

/// Waits until the spoke no longer owns the replicas. It writes twice for that: another manager takes them first.
async fn replicas_released(fleet: &RealFleet) -> anyhow::Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(client(fleet).await?, NAMESPACE);
    until("the replicas to be released", WITHIN, || async {
        let deployment = deployments.get("web").await?;
        let managers = deployment.metadata.managed_fields.unwrap_or_default();
        let is_owned = managers.iter().any(|entry| {
            let fields = entry.fields_v1.as_ref().map(|fields| &fields.0);
            entry.manager.as_deref() == Some("attest-spoke")
                && fields.is_some_and(|fields| fields.pointer("/f:spec/f:replicas").is_some())
        });
        Ok((!is_owned).then_some(()))
    })
    .await
}

async fn replicas(fleet: &RealFleet) -> anyhow::Result<Option<i32>> {
    let deployments: Api<Deployment> = Api::namespaced(client(fleet).await?, NAMESPACE);
    Ok(deployments.get("web").await?.spec.replicas)
}

async fn has_replicas(fleet: &RealFleet, count: i32) -> anyhow::Result<()> {
    until(&format!("{count} replicas"), WITHIN, || async {
        Ok((replicas(fleet).await? == Some(count)).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_08_hpa_replicas() -> anyhow::Result<()> {
    let Some(fleet) = fleet(json!({})).await? else { return Ok(()) };
    let application = Application::create(&fleet, "web")?;
    application.release(&[&web("  replicas: 6\n")])?;
    application.apply(&automated(true, true))?;
    application.synced().await?;
    assert_eq!(replicas(&fleet).await?, Some(6));

    // An autoscaler takes over: the live number stays, whatever Git says.
    let before = mark(&fleet);
    application.release(&[&web("  replicas: 2\n"), AUTOSCALER])?;
    application.sync()?;
    until("the autoscaler", WITHIN, || async {
        let written = writes(&fleet, before)?;
        Ok(written.iter().any(|write| write.contains("horizontalpodautoscalers")).then_some(()))
    })
    .await?;
    deployment_written(&fleet, before, "the Deployment to be written").await?;
    let deployments: Api<Deployment> = Api::namespaced(client(&fleet).await?, NAMESPACE);
    assert_eq!(replicas(&fleet).await?, Some(6));
    let scale = Patch::Merge(json!({"spec": {"replicas": 5}}));
    deployments.patch_scale("web", &PatchParams::default(), &scale).await?;
    check_quiet(&fleet).await?;
    assert_eq!(replicas(&fleet).await?, Some(5));

    // A release without the field resets nothing either.
    application.release(&[&web(""), AUTOSCALER])?;
    application.sync()?;
    check_quiet(&fleet).await?;
    assert_eq!(replicas(&fleet).await?, Some(5));

    // The autoscaler goes: Git's value returns.
    application.release(&[&web("  replicas: 3\n")])?;
    application.sync()?;
    application.synced().await?;
    has_replicas(&fleet, 3).await?;
    check_quiet(&fleet).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_that_the_cluster_rewrites_are_named_and_not_claimed_as_signed() -> anyhow::Result<()>
{
    let Some(fleet) = fleet(json!({})).await? else { return Ok(()) };
    let application = Application::create(&fleet, "web")?;
    let limited = web("") + "        resources: {limits: {cpu: 1000m}}\n";
    application.release(&[&limited, &config("beside")])?;
    application.apply(&automated(true, true))?;

    // The API server stores a quantity in its canonical form.
    let synced = application.synced().await?;
    let message = synced["message"].as_str().unwrap_or_default();
    ensure!(message.starts_with("1 of 2 objects as signed; admission"), "{message}");
    let mut deployment = synced["objects"].as_array().into_iter().flatten();
    let deployment = deployment.find(|object| object["kind"] == "Deployment");
    let deployment = deployment.context("no Deployment")?;
    let field = "spec.template.spec.containers[0].resources.limits.cpu";
    assert_eq!(deployment["rewritten"], json!([field]));
    let shown = fleet.operator().attest(&["gitops", "app", "get", "web"])?;
    ensure!(shown.contains(&format!("rewritten by admission: {field}")), "{shown}");
    check_quiet(&fleet).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_autoscaler_of_the_namespace_owns_the_replicas_too() -> anyhow::Result<()> {
    let Some(fleet) = fleet(json!({})).await? else { return Ok(()) };
    let application = Application::create(&fleet, "web")?;
    application.release(&[&web("  replicas: 3\n")])?;
    application.apply(&automated(true, true))?;
    application.synced().await?;

    // An operator adds an autoscaler; its changes are no drift.
    let autoscaler: Value = serde_saphyr::from_str(AUTOSCALER)?;
    let autoscalers: Api<HorizontalPodAutoscaler> =
        Api::namespaced(client(&fleet).await?, NAMESPACE);
    autoscalers.create(&PostParams::default(), &serde_json::from_value(autoscaler)?).await?;
    replicas_released(&fleet).await?;
    let deployments: Api<Deployment> = Api::namespaced(client(&fleet).await?, NAMESPACE);
    let scale = Patch::Merge(json!({"spec": {"replicas": 6}}));
    deployments.patch_scale("web", &PatchParams::default(), &scale).await?;
    check_quiet(&fleet).await?;
    assert_eq!(replicas(&fleet).await?, Some(6));

    // Another release leaves them alone.
    application.release(&[&web("  replicas: 3\n"), &config("beside")])?;
    application.sync()?;
    application.synced().await?;
    assert_eq!(replicas(&fleet).await?, Some(6));

    autoscalers.delete("web", &DeleteParams::default()).await?;
    has_replicas(&fleet, 3).await?;
    check_quiet(&fleet).await
}
