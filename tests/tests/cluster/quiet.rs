//! Every situation in one cluster, up to its end state: for a minute after the last change, nothing is written.
//!
//! The situations themselves are checked one by one in `situations` and `refusals_reevaluated`.

use std::cell::Cell;
use std::time::Duration;

use anyhow::{Context, ensure};
use attest_tests::cluster::audit::Mark;
use attest_tests::fleet::Repository;
use attest_tests::real::RealFleet;
use attest_tests::wait::until;
use futures::future::{LocalBoxFuture, try_join_all};
use kube::Client;
use serde_json::{Value, json};

const WITHIN: Duration = Duration::from_secs(120);
/// Interval in which nothing may be written.
const QUIET_FOR: Duration = Duration::from_secs(60);
/// Interval without writes after which the last changes have had their effect.
const SETTLED_AFTER: Duration = Duration::from_secs(5);
/// Interval at which another controller renews its lease in an object of the spoke.
const RENEWAL: Duration = Duration::from_secs(2);
const SITE: &str = "site";
const POD: &str = "attest-spoke/attest-spoke";
const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// One cluster for all situations.
struct Site {
    fleet: RealFleet,
    client: Client,
}

impl Site {
    async fn start() -> anyhow::Result<Option<Self>> {
        let Some(fleet) = RealFleet::start(&[(SITE, "test")]).await? else { return Ok(None) };
        let client = fleet.sites()[0].cluster.client().await?;
        let kind = |group: &str, resource: &str| json!({"group": group, "resource": resource});
        let extra = json!([
            kind("", "secrets"),
            kind("rbac.authorization.k8s.io", "roles"),
            kind("big.example.com", "routes"),
            kind("any.example.com", "anies"),
            kind("late.example.com", "lates"),
        ]);
        let cluster_scoped = json!([
            kind("apiextensions.k8s.io", "customresourcedefinitions"),
            kind("certs.example.com", "clusterissuers"),
        ]);
        fleet.allow_kinds(&fleet.sites()[0], &extra, &cluster_scoped).await?;
        Ok(Some(Self { fleet, client }))
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: &Value,
    ) -> anyhow::Result<Value> {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content_type)
            .body(body.to_string().into_bytes())?;
        self.client.request(request).await.with_context(|| format!("{method} {path}"))
    }

    /// Changes an object as another writer.
    async fn merge(&self, path: &str, manager: &str, patch: &Value) -> anyhow::Result<Value> {
        let path = format!("{path}?fieldManager={manager}");
        self.send("PATCH", &path, "application/merge-patch+json", patch).await
    }

    async fn create(&self, path: &str, manager: &str, object: &Value) -> anyhow::Result<Value> {
        let path = format!("{path}?fieldManager={manager}");
        self.send("POST", &path, "application/json", object).await
    }

    async fn get(&self, path: &str) -> anyhow::Result<Value> {
        Ok(self.client.request(http::Request::get(path).body(Vec::new())?).await?)
    }

    async fn create_namespace(&self, name: &str) -> anyhow::Result<()> {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        self.create("/api/v1/namespaces", "admin", &namespace).await.map(drop)
    }

    fn mark(&self) -> Mark {
        self.fleet.sites()[0].cluster.audit().mark()
    }

    /// Writes of the spoke outside its own namespaces, without dry runs.
    fn writes(&self, mark: Mark) -> anyhow::Result<Vec<String>> {
        let events = self.fleet.sites()[0].cluster.audit().since(mark)?.into_iter();
        let writes = events.filter(|event| {
            let is_own = event.object().namespace.starts_with("attest-");
            event.is_of_spoke() && event.is_mutating() && !event.is_dry_run() && !is_own
        });
        let shown = writes.map(|event| {
            let object = event.object();
            format!("{} {}/{}/{}", event.verb, object.namespace, object.resource, object.name)
        });
        Ok(shown.collect())
    }

    /// Waits until the spoke has written everything that the last changes cause.
    async fn settled(&self) -> anyhow::Result<()> {
        until("the writes to end", WITHIN, || async {
            let mark = self.mark();
            tokio::time::sleep(SETTLED_AFTER).await;
            Ok(self.writes(mark)?.is_empty().then_some(()))
        })
        .await
    }
}

/// An application with its own repository and namespace.
struct Application<'a> {
    site: &'a Site,
    name: &'a str,
    namespace: &'a str,
    repository: Repository,
    counter: Cell<u32>,
}

impl<'a> Application<'a> {
    fn create(site: &'a Site, name: &'a str) -> anyhow::Result<Self> {
        Self::create_in(site, name, name)
    }

    fn create_in(site: &'a Site, name: &'a str, namespace: &'a str) -> anyhow::Result<Self> {
        let repository = Repository::create(&site.fleet.directory().join(name))?;
        Self::with_repository(site, (name, namespace), repository)
    }

    fn with_repository(
        site: &'a Site,
        (name, namespace): (&'a str, &'a str),
        repository: Repository,
    ) -> anyhow::Result<Self> {
        let recipe = format!(
            "application: {name}\nrepository: {}\nsourceRoot: k8s\nrenders:\n\
             - {{name: all, path: k8s, environments: [test], namespace: {{mode: fixed, value: {namespace}}}}}\n\
             release: {{version: \"${{VERSION}}\", counter: \"${{VERSION}}\", notAfter: 720h}}\n",
            repository.url()
        );
        std::fs::write(repository.tree().join("attest.yaml"), recipe)?;
        Ok(Self { site, name, namespace, repository, counter: Cell::new(0) })
    }

    /// Writes manifests as the files of the next release.
    fn write(&self, files: &[(&str, &str)]) -> anyhow::Result<()> {
        let directory = self.repository.tree().join("k8s");
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory)?;
        for (name, text) in files {
            std::fs::write(directory.join(name), text.replace("DIGEST", DIGEST))?;
        }
        Ok(())
    }

    /// Signs what was written and pushes it.
    fn push(&self) -> anyhow::Result<()> {
        self.counter.set(self.counter.get() + 1);
        let version = self.counter.get().to_string();
        self.repository.git(&["add", "-A"])?;
        self.repository.git(&["commit", "-q", "--allow-empty", "-m", "Source"])?;
        let mut run = self.site.fleet.operator().command(["run", "--sign"]);
        run.current_dir(self.repository.tree()).env("VERSION", &version);
        let output = run.env("ATTEST_SIGNING_KEY_FILE", self.site.fleet.key()).output()?;
        let diagnostics = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "attest run --sign: {diagnostics}");
        self.repository.commit_and_push("Release").map(drop)
    }

    fn release(&self, manifests: &str) -> anyhow::Result<()> {
        self.write(&[("manifests.yaml", manifests)])?;
        self.push()
    }

    async fn apply(&self, self_heal: bool, adopt: bool) -> anyhow::Result<()> {
        self.apply_as(self.name, self_heal, adopt).await
    }

    async fn apply_as(&self, name: &str, self_heal: bool, adopt: bool) -> anyhow::Result<()> {
        self.put(&self.manifest(name, self_heal, adopt)).await
    }

    fn manifest(&self, name: &str, self_heal: bool, adopt: bool) -> Value {
        let options = if adopt { json!(["Adopt=true"]) } else { json!([]) };
        json!({
            "apiVersion": "attest.continuu.ms/v1", "kind": "AttestApplication",
            "metadata": {"name": name},
            "spec": {
                "source": {"repoUrl": self.repository.url(), "path": "k8s"},
                "destination": {"namespace": self.namespace},
                "syncPolicy": {
                    "automated": {"prune": true, "selfHeal": self_heal}, "syncOptions": options,
                },
            },
        })
    }

    async fn put(&self, manifest: &Value) -> anyhow::Result<()> {
        let api = self.site.fleet.api();
        let _: Value = api.call("PUT", "/v1/applications", Some(manifest)).await?;
        Ok(())
    }

    async fn sync(&self) -> anyhow::Result<()> {
        let path = format!("/v1/applications/{}/sync", self.name);
        let _: Value = self.site.fleet.api().call("POST", &path, None).await?;
        Ok(())
    }

    async fn seen(&self, name: &str) -> anyhow::Result<Value> {
        self.site.fleet.api().call("GET", &format!("/v1/applications/{name}"), None).await
    }

    /// Releases manifests, and waits for them to be Synced.
    async fn deploy(&self, manifests: &str) -> anyhow::Result<()> {
        self.release(manifests)?;
        self.apply(true, false).await?;
        self.reaches("Synced").await
    }

    /// Waits until the newest commit has this phase.
    async fn reaches(&self, phase: &str) -> anyhow::Result<()> {
        self.sync().await?;
        self.becomes(phase).await
    }

    /// Like [`Self::reaches`], without a sync.
    async fn becomes(&self, phase: &str) -> anyhow::Result<()> {
        let head = self.repository.git(&["rev-parse", "HEAD"])?;
        let awaited = format!("{} to be {phase}", self.name);
        let waited = until(&awaited, WITHIN, || async {
            let seen = self.seen(self.name).await?;
            let is_it = seen["revision"] == head.as_str();
            let destination = &seen["destinations"][0];
            Ok((is_it && destination["phase"] == phase).then_some(()))
        });
        if let Err(error) = waited.await {
            let log = self.site.fleet.sites()[0].fakelet.output(POD);
            return Err(error.context(format!("{:#}\n{log}", self.seen(self.name).await?)));
        }
        Ok(())
    }

    /// Sequence of the newest directive.
    async fn sequence(&self) -> anyhow::Result<u64> {
        let seen = self.seen(self.name).await?;
        seen["destinations"][0]["sequence"].as_u64().with_context(|| format!("{seen:#}"))
    }

    async fn shows(&self, name: &str, text: &str) -> anyhow::Result<()> {
        until(&format!("{name} to show {text:?}"), WITHIN, || async {
            Ok(self.seen(name).await?.to_string().contains(text).then_some(()))
        })
        .await
    }

    fn config_map(&self, name: &str) -> String {
        format!("/api/v1/namespaces/{}/configmaps/{name}", self.namespace)
    }

    fn deployment(&self, name: &str) -> String {
        format!("/apis/apps/v1/namespaces/{}/deployments/{name}", self.namespace)
    }
}

fn config(name: &str, value: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: ConfigMap, metadata: {{name: {name}}}, data: {{a: \"{value}\"}}}}\n"
    )
}

/// A Deployment with more fields of its specification and of its container.
fn web(fields: &str, container: &str) -> String {
    format!(
        "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  {fields}\n  \
         selector: {{matchLabels: {{app: web}}}}\n  template:\n    metadata: {{labels: {{app: web}}}}\n    \
         spec: {{containers: [{{name: web, image: web@DIGEST{container}}}]}}\n"
    )
}

fn job(image: &str) -> String {
    format!(
        "---\napiVersion: batch/v1\nkind: Job\nmetadata: {{name: migrate}}\nspec:\n  \
         template: {{spec: {{restartPolicy: Never, containers: [{{name: migrate, image: \"{image}@DIGEST\"}}]}}}}\n"
    )
}

fn definition(group: &str, kind: &str, plural: &str, scope: &str) -> String {
    let singular = kind.to_lowercase();
    format!(
        "---\napiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {{name: {plural}.{group}}}\n\
         spec:\n  group: {group}\n  scope: {scope}\n  names: {{kind: {kind}, plural: {plural}, singular: {singular}}}\n  \
         versions: [{{name: v1, served: true, storage: true, schema: {{openAPIV3Schema: \
         {{type: object, x-kubernetes-preserve-unknown-fields: true}}}}}}]\n"
    )
}

async fn case_01_empty_map(site: &Site) -> anyhow::Result<()> {
    let application = Application::create(site, "c01")?;
    let leader = "---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: leader, annotations: {}}, data: {}}\n";
    application
        .deploy(&format!("{leader}{}", web("strategy: {}", ", resources: {}, env: [], args: ")))
        .await?;
    let restart = json!({"kubectl.kubernetes.io/restartedAt": "now"});
    let template = json!({"spec": {"template": {"metadata": {"annotations": restart}}}});
    site.merge(&application.deployment("web"), "kubectl-rollout", &template).await?;
    renew(site, 0).await
}

/// Renews a lease in an object of the spoke, as leader election does.
async fn renew(site: &Site, renewal: u64) -> anyhow::Result<()> {
    let annotations = json!({"control-plane.alpha.kubernetes.io/leader": renewal.to_string()});
    let patch =
        json!({"metadata": {"annotations": annotations}, "data": {"status": renewal.to_string()}});
    site.merge("/api/v1/namespaces/c01/configmaps/leader", "elector", &patch).await.map(drop)
}

async fn case_02_stringdata_null_data(site: &Site) -> anyhow::Result<()> {
    let secret = "{apiVersion: v1, kind: Secret, metadata: {name: words}, data: , stringData: {word: swordfish, none: }}\n";
    Application::create(site, "c02")?.deploy(secret).await
}

async fn case_03_large_integers(site: &Site) -> anyhow::Result<()> {
    let route = "---\napiVersion: big.example.com/v1\nkind: Route\nmetadata: {name: one}\n\
        spec: {tenant: 9007199254740993, lowest: -9223372036854775808}\n";
    let definition = definition("big.example.com", "Route", "routes", "Namespaced");
    Application::create(site, "c03")?.deploy(&format!("{definition}{route}")).await
}

async fn case_05_moved_object(site: &Site) -> anyhow::Result<()> {
    let from = Application::create_in(site, "c05-from", "c05")?;
    let to = Application::create_in(site, "c05-to", "c05")?;
    from.deploy(&(config("moves", "1") + &config("stays", "1"))).await?;
    to.deploy(&config("other", "1")).await?;
    to.release(&(config("moves", "1") + &config("other", "1")))?;
    to.reaches("Refused").await?;
    from.release(&config("stays", "1"))?;
    from.reaches("Synced").await?;
    to.reaches("Synced").await
}

async fn case_07_job_image(site: &Site) -> anyhow::Result<()> {
    let application = Application::create(site, "c07")?;
    application.deploy(&(job("web:1") + &config("settings", "1"))).await?;
    application.release(&(job("web:2") + &config("settings", "2")))?;
    application.reaches("Synced").await
}

async fn case_08_hpa_replicas(site: &Site) -> anyhow::Result<()> {
    let application = Application::create(site, "c08")?;
    let autoscaler = "---\napiVersion: autoscaling/v2\nkind: HorizontalPodAutoscaler\nmetadata: {name: web}\nspec:\n  \
        scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}\n  minReplicas: 4\n  maxReplicas: 8\n";
    application.deploy(&web("replicas: 6", "")).await?;
    application.release(&(web("replicas: 2", "") + autoscaler))?;
    application.sync().await?;
    until("the autoscaler", WITHIN, || async {
        let path = "/apis/autoscaling/v2/namespaces/c08/horizontalpodautoscalers/web";
        Ok(site.get(path).await.is_ok().then_some(()))
    })
    .await?;
    let scale = json!({"spec": {"replicas": 5}});
    site.merge(&format!("{}/scale", application.deployment("web")), "autoscaler", &scale).await?;
    Ok(())
}

async fn case_10_duplicate_list_keys(site: &Site) -> anyhow::Result<()> {
    let application = Application::create(site, "c10")?;
    let twice = ", env: [{name: LEVEL, value: info}, {name: LEVEL, value: debug}]";
    application.release(&(web("replicas: 1", twice) + &config("beside", "1")))?;
    application.apply(true, false).await?;
    application.reaches("Degraded").await?;
    let once = ", env: [{name: LEVEL, value: debug}]";
    application.deploy(&(web("replicas: 1", once) + &config("beside", "1"))).await
}

async fn case_13_git_attributes(site: &Site) -> anyhow::Result<()> {
    let application = Application::create(site, "c13")?;
    let attributes = application.repository.tree().join(".gitattributes");
    std::fs::write(&attributes, "*.properties text eol=crlf\n")?;
    let kustomization = "configMapGenerator: [{name: app, files: [app.properties]}]\n";
    application
        .write(&[("kustomization.yaml", kustomization), ("app.properties", "level=info\n")])?;
    application.repository.commit_and_push("Source")?;
    let file = application.repository.tree().join("k8s/app.properties");
    std::fs::remove_file(&file)?;
    application.repository.git(&["checkout", "--", "k8s/app.properties"])?;
    let refused = application.push().unwrap_err().to_string();
    ensure!(
        refused.contains("k8s/app.properties has other bytes on disk than in Git"),
        "{refused}"
    );
    std::fs::write(&attributes, "*.properties -text\n")?;
    std::fs::write(&file, "level=info\n")?;
    application.push()?;
    application.apply(true, false).await?;
    application.reaches("Synced").await
}

async fn case_14_rbac_name(site: &Site) -> anyhow::Result<()> {
    let role = "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: \"ada@example.com: reads\"}\nrules: []\n";
    Application::create(site, "c14")?.deploy(role).await
}

async fn case_15_finalizers(site: &Site) -> anyhow::Result<()> {
    let guarded = "{apiVersion: v1, kind: ConfigMap, metadata: {name: guarded, finalizers: [example.com/clean-up]}, data: {a: \"1\"}}\n";
    let application = Application::create(site, "c15")?;
    application.deploy(&format!("{guarded}{}", config("beside", "1"))).await?;
    // It is being deleted, and waits for its finalizer.
    let path = application.config_map("guarded");
    site.send("DELETE", &path, "application/json", &json!({})).await.map(drop)
}

async fn case_16_namespace_null(site: &Site) -> anyhow::Result<()> {
    let maps = "{apiVersion: v1, kind: ConfigMap, metadata: {name: nothing, namespace: , labels: , annotations: }, data: {a: \"1\"}}\n\
        ---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: empty, namespace: \"\"}, data: {a: \"1\"}}\n";
    let application = Application::create(site, "c16")?;
    application.deploy(maps).await?;
    let theirs =
        json!({"metadata": {"labels": {"by": "another"}, "annotations": {"by": "another"}}});
    site.merge(&application.config_map("nothing"), "another", &theirs).await.map(drop)
}

async fn case_17_yaml_scalars(site: &Site) -> anyhow::Result<()> {
    let any = "---\napiVersion: any.example.com/v1\nkind: Any\nmetadata: {name: scalars}\nspec: {a: 0644, b: yes, c: 1_000, \
        d: 1e3, e: .5, f: 12:30:45, g: ~, h: 2001-01-01, i: 0x1F, j: 1.0, k: -0}\n";
    // Its kind is defined by the application of case 46.
    until("the kind to be served", WITHIN, || async {
        Ok(site.get("/apis/any.example.com/v1").await.is_ok().then_some(()))
    })
    .await?;
    Application::create(site, "c17")?.deploy(any).await
}

async fn case_21_sha256_repository(site: &Site) -> anyhow::Result<()> {
    let directory = site.fleet.directory().join("c21");
    let repository = Repository::create_in_format(&directory, "sha256")?;
    let application = Application::with_repository(site, ("c21", "c21"), repository)?;
    application.deploy(&config("settings", "1")).await?;
    ensure!(application.repository.git(&["rev-parse", "HEAD"])?.len() == 64);
    let live = site.get(&application.config_map("settings")).await?;
    ensure!(live["data"] == json!({"a": "1"}), "{live}");

    // A commit id of SHA-256 in an ordinary repository.
    let other = Application::create(site, "c21-other")?;
    other.release(&config("settings", "1"))?;
    let mut manifest = other.manifest("c21-other", true, false);
    manifest["spec"]["source"]["targetRevision"] = json!("0".repeat(64));
    other.put(&manifest).await?;
    other.shows("c21-other", "CommitNotFound").await
}

/// The kind of an object is defined after its release was admitted, by another party.
async fn a_kind_that_is_served_later(site: &Site) -> anyhow::Result<()> {
    let application = Application::create(site, "late")?;
    let late =
        "---\n{apiVersion: late.example.com/v1, kind: Late, metadata: {name: one}, spec: {a: 1}}\n";
    application.release(&(config("beside", "1") + late))?;
    application.apply(true, false).await?;
    application.shows("late", "KindUnknown").await?;
    let ordered = application.sequence().await?;

    let definition = definition("late.example.com", "Late", "lates", "Namespaced");
    let definition: Value = serde_saphyr::from_str(definition.trim_start_matches("---\n"))?;
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    site.create(definitions, "admin", &definition).await?;

    application.becomes("Synced").await?;
    ensure!(application.sequence().await? == ordered);
    let path = "/apis/late.example.com/v1/namespaces/late/lates/one";
    ensure!(site.get(path).await?["spec"] == json!({"a": 1}));
    Ok(())
}

async fn case_27_self_heal_off(site: &Site) -> anyhow::Result<()> {
    let application = Application::create(site, "c27")?;
    application.release(&config("settings", "info"))?;
    application.apply(false, false).await?;
    application.reaches("Synced").await?;
    let edit = json!({"data": {"a": "debug"}});
    site.merge(&application.config_map("settings"), "user", &edit).await?;
    application.shows("c27", "OutOfSync").await
}

async fn case_30_adopted_from_kubectl(site: &Site) -> anyhow::Result<()> {
    site.create_namespace("c30").await?;
    let application = Application::create(site, "c30")?;
    let settings = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"},
        "data": {"a": "1", "leaves": "1"},
    });
    site.create("/api/v1/namespaces/c30/configmaps", "kubectl-client-side-apply", &settings)
        .await?;
    application.release(&config("settings", "1"))?;
    application.apply(true, true).await?;
    application.reaches("Synced").await?;
    until("the field to leave", WITHIN, || async {
        let live = site.get(&application.config_map("settings")).await?;
        Ok((live["data"] == json!({"a": "1"})).then_some(()))
    })
    .await
}

async fn case_36_conflict_gone(site: &Site) -> anyhow::Result<()> {
    site.create_namespace("c36").await?;
    let application = Application::create(site, "c36")?;
    let other = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {"a": "other"},
    });
    site.create("/api/v1/namespaces/c36/configmaps", "kubectl-create", &other).await?;
    application.release(&config("x", "1"))?;
    application.apply(true, false).await?;
    application.reaches("Refused").await?;
    let path = application.config_map("x");
    site.send("DELETE", &path, "application/json", &json!({})).await?;
    application.reaches("Synced").await
}

async fn case_43_namespace_on_cluster_scoped(site: &Site) -> anyhow::Result<()> {
    let application = Application::create(site, "c43")?;
    let definition = definition("certs.example.com", "ClusterIssuer", "clusterissuers", "Cluster");
    let issuer = "apiVersion: certs.example.com/v1\nkind: ClusterIssuer\nmetadata: {name: own}\nspec: {selfSigned: {}}\n";
    let kustomization = "namespace: c43\nresources: [definition.yaml, issuer.yaml]\n";
    application.write(&[
        ("definition.yaml", definition.trim_start_matches("---\n")),
        ("issuer.yaml", issuer),
        ("kustomization.yaml", kustomization),
    ])?;
    application.push()?;
    application.apply(true, false).await?;
    application.reaches("Synced").await
}

async fn case_45_other_name(site: &Site) -> anyhow::Result<()> {
    let application = Application::create(site, "c45")?;
    application.release(&config("x", "1"))?;
    application.apply_as("c45-eu", true, false).await?;
    application.shows("c45-eu", "use one name").await
}

async fn case_46_image_in_custom_kind(site: &Site) -> anyhow::Result<()> {
    let custom = "---\napiVersion: any.example.com/v1\nkind: Any\nmetadata: {name: web}\n\
        spec: {template: {spec: {containers: [{name: web, image: \"web:1@DIGEST\"}]}}}\n";
    let definition = definition("any.example.com", "Any", "anies", "Namespaced");
    Application::create(site, "c46")?.deploy(&format!("{definition}{custom}")).await
}

async fn case_47_helm_hooks(site: &Site) -> anyhow::Result<()> {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: web-test, annotations: {\"helm.sh/hook\": test}}\n\
        spec: {restartPolicy: Never, containers: [{name: t, image: t@DIGEST}]}\n";
    let hook = job("t:1")
        .replace("name: migrate}", "name: migrate, annotations: {helm.sh/hook: pre-install}}");
    Application::create(site, "c47")?.deploy(&format!("{pod}{hook}")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minute_after_every_situation_nothing_is_written() -> anyhow::Result<()> {
    let Some(site) = Site::start().await? else { return Ok(()) };
    let situations: Vec<LocalBoxFuture<'_, anyhow::Result<()>>> = vec![
        Box::pin(case_01_empty_map(&site)),
        Box::pin(case_02_stringdata_null_data(&site)),
        Box::pin(case_03_large_integers(&site)),
        Box::pin(case_05_moved_object(&site)),
        Box::pin(case_07_job_image(&site)),
        Box::pin(case_08_hpa_replicas(&site)),
        Box::pin(case_10_duplicate_list_keys(&site)),
        Box::pin(case_13_git_attributes(&site)),
        Box::pin(case_14_rbac_name(&site)),
        Box::pin(case_15_finalizers(&site)),
        Box::pin(case_16_namespace_null(&site)),
        Box::pin(case_17_yaml_scalars(&site)),
        Box::pin(case_21_sha256_repository(&site)),
        Box::pin(case_27_self_heal_off(&site)),
        Box::pin(case_30_adopted_from_kubectl(&site)),
        Box::pin(case_36_conflict_gone(&site)),
        Box::pin(case_43_namespace_on_cluster_scoped(&site)),
        Box::pin(case_45_other_name(&site)),
        Box::pin(case_46_image_in_custom_kind(&site)),
        Box::pin(case_47_helm_hooks(&site)),
        Box::pin(a_kind_that_is_served_later(&site)),
    ];
    try_join_all(situations).await?;
    site.settled().await?;

    let mark = site.mark();
    let until_then = tokio::time::Instant::now() + QUIET_FOR;
    for renewal in 1.. {
        if tokio::time::Instant::now() >= until_then {
            break;
        }
        renew(&site, renewal).await?;
        tokio::time::sleep(RENEWAL).await;
    }

    assert_eq!(site.writes(mark)?, [""; 0]);
    // The spoke still sees every change.
    let edit = json!({"data": {"a": "by hand"}});
    site.merge("/api/v1/namespaces/c36/configmaps/x", "user", &edit).await?;
    until("the edit to be reverted", WITHIN, || async {
        let live = site.get("/api/v1/namespaces/c36/configmaps/x").await?;
        Ok((live["data"]["a"] == "1").then_some(()))
    })
    .await?;
    assert_eq!(site.writes(mark)?, ["patch c36/configmaps/x"]);
    site.fleet.check_spoke_requests().map(drop)
}
