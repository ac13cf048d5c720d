//! Situations from public bug reports, each from repository to cluster: the end state is what Kubernetes makes of
//! the manifests, and nothing is written after it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use attest_common::basics::ids::Name;
use attest_common::documents::manifest::ObjectKey;
use attest_common::objects::projection::digest_before_empty_fields;
use attest_common::record::custody::{
    CONFIRMED_KEY, Confirmed, SPOKE_NAMESPACE, destination_secret,
};
use attest_tests::cluster::audit::Mark;
use attest_tests::real::{RealFleet, RealSite};
use attest_tests::wait::until;
use data_encoding::BASE64;
use kube::Client;
use rustix::process::Signal;
use serde_json::{Value, json};

const WITHIN: Duration = Duration::from_secs(60);
/// Long enough to observe a second write, if there is one.
const SETTLE: Duration = Duration::from_millis(700);
const CLUSTER: &str = "site";
const NAMESPACE: &str = "shop";
const APPLICATION: &str = "shop";
/// Field manager of `kubectl apply`.
const CLIENT_SIDE: &str = "kubectl-client-side-apply";
const POD: &str = "attest-spoke/attest-spoke";
const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
/// In every release: its reverted edit shows that the spoke has seen everything before.
const SENTINEL: &str =
    "{apiVersion: v1, kind: ConfigMap, metadata: {name: sentinel}, data: {kept: \"yes\"}}\n";

/// A fleet of one cluster with a policy that allows the kinds of a situation.
struct Situation {
    fleet: RealFleet,
    client: Client,
}

/// Options of the application.
#[derive(Clone, Copy, Default)]
struct With {
    adopt: bool,
    no_self_heal: bool,
}

impl Situation {
    async fn start(extra: &Value, cluster_scoped: &Value) -> anyhow::Result<Option<Self>> {
        let Some(fleet) = RealFleet::start(&[(CLUSTER, "test")]).await? else { return Ok(None) };
        let client = fleet.sites()[0].cluster.client().await?;
        fleet.allow_kinds(&fleet.sites()[0], extra, cluster_scoped).await?;
        Ok(Some(Self { fleet, client }))
    }

    fn site(&self) -> &RealSite {
        &self.fleet.sites()[0]
    }

    /// Writes the manifests as plain YAML.
    fn write(&self, manifests: &str) -> anyhow::Result<()> {
        self.write_files(&[("k8s/manifests.yaml", manifests)])
    }

    fn write_files(&self, files: &[(&str, &str)]) -> anyhow::Result<()> {
        let tree = self.fleet.repository().tree();
        let recipe = format!(
            "application: {APPLICATION}\nrepository: {}\nsourceRoot: k8s\nrenders:\n\
             - {{name: all, path: k8s, environments: [test], namespace: {{mode: fixed, value: {NAMESPACE}}}}}\n\
             release: {{version: \"1\", counter: unix-seconds, notAfter: 720h}}\n",
            self.fleet.repository().url()
        );
        std::fs::create_dir_all(tree.join("k8s"))?;
        std::fs::write(tree.join("attest.yaml"), recipe)?;
        for (path, text) in files {
            std::fs::write(tree.join(path), text.replace("DIGEST", DIGEST))?;
        }
        Ok(())
    }

    /// Runs `attest run --sign` as CI would. Returns its messages.
    fn sign(&self) -> anyhow::Result<String> {
        let repository = self.fleet.repository();
        repository.git(&["add", "-A"])?;
        repository.git(&["commit", "-q", "--allow-empty", "-m", "Source"])?;
        let mut run = self.fleet.operator().command(["run", "--sign"]);
        run.current_dir(repository.tree()).env("ATTEST_SIGNING_KEY_FILE", self.fleet.key());
        let output = run.output()?;
        let messages = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "attest run ended with {}:\n{messages}", output.status);
        Ok(messages)
    }

    /// Signs and pushes what was written. Returns the messages of `attest run`.
    fn release(&self) -> anyhow::Result<String> {
        let messages = self.sign()?;
        self.fleet.repository().commit_and_push("Release")?;
        Ok(messages)
    }

    async fn apply(&self, with: With) -> anyhow::Result<()> {
        self.apply_as(APPLICATION, with).await
    }

    async fn apply_as(&self, name: &str, With { adopt, no_self_heal }: With) -> anyhow::Result<()> {
        let manifest = json!({
            "apiVersion": "attest.continuu.ms/v1", "kind": "AttestApplication", "metadata": {"name": name},
            "spec": {
                "source": {"repoUrl": self.fleet.repository().url(), "path": "k8s"},
                "destination": {"namespace": NAMESPACE},
                "syncPolicy": {
                    "automated": {"prune": true, "selfHeal": !no_self_heal},
                    "syncOptions": if adopt { json!(["Adopt=true"]) } else { json!([]) },
                },
            },
        });
        let _: Value = self.fleet.api().call("PUT", "/v1/applications", Some(&manifest)).await?;
        Ok(())
    }

    /// Releases, with the sentinel, and waits until that is Synced.
    async fn deploy(&self, manifests: &str, with: With) -> anyhow::Result<()> {
        self.write(&format!("{}---\n{SENTINEL}", manifests.trim_start_matches("---\n")))?;
        self.release()?;
        self.apply(with).await?;
        self.synced().await
    }

    /// Waits until the newest commit is Synced.
    async fn synced(&self) -> anyhow::Result<()> {
        let head = self.fleet.repository().git(&["rev-parse", "HEAD"])?;
        let _: Value = self.sync().await?;
        let waited = until("the newest commit to be Synced", WITHIN, || async {
            let seen = self.seen().await?;
            let destination = &seen["destinations"][0];
            let is_it = seen["revision"] == head.as_str() && seen["phase"] == "Synced";
            Ok((is_it && destination["phase"] == "Synced").then_some(()))
        });
        if let Err(error) = waited.await {
            let log = self.site().fakelet.output(POD);
            return Err(error.context(format!("{:#}\n{log}", self.seen().await?)));
        }
        Ok(())
    }

    async fn sync(&self) -> anyhow::Result<Value> {
        let path = format!("/v1/applications/{APPLICATION}/sync");
        self.fleet.api().call("POST", &path, None).await
    }

    async fn seen(&self) -> anyhow::Result<Value> {
        self.seen_as(APPLICATION).await
    }

    async fn seen_as(&self, application: &str) -> anyhow::Result<Value> {
        self.fleet.api().call("GET", &format!("/v1/applications/{application}"), None).await
    }

    /// Waits for this text in the document of an application.
    async fn shows(&self, application: &str, text: &str) -> anyhow::Result<()> {
        let waited = until("the status to show it", WITHIN, || async {
            Ok(self.seen_as(application).await?.to_string().contains(text).then_some(()))
        });
        match waited.await {
            Ok(()) => Ok(()),
            Err(error) => Err(error.context(format!("{:#}", self.seen_as(application).await?))),
        }
    }

    async fn get(&self, path: &str) -> anyhow::Result<Value> {
        Ok(self.client.request(http::Request::get(path).body(Vec::new())?).await?)
    }

    /// Changes an object as a user with this field manager would.
    async fn merge(&self, path: &str, manager: &str, patch: &Value) -> anyhow::Result<Value> {
        let request = http::Request::patch(format!("{path}?fieldManager={manager}"))
            .header("content-type", "application/merge-patch+json")
            .body(patch.to_string().into_bytes())?;
        Ok(self.client.request(request).await?)
    }

    async fn create(&self, path: &str, manager: &str, object: &Value) -> anyhow::Result<Value> {
        let request = http::Request::post(format!("{path}?fieldManager={manager}"))
            .header("content-type", "application/json")
            .body(object.to_string().into_bytes())?;
        Ok(self.client.request(request).await?)
    }

    /// Applies an object as `kubectl apply --server-side` does.
    async fn apply_object(
        &self,
        path: &str,
        manager: &str,
        object: &Value,
    ) -> anyhow::Result<Value> {
        let request = http::Request::patch(format!("{path}?fieldManager={manager}"))
            .header("content-type", "application/apply-patch+yaml")
            .body(object.to_string().into_bytes())?;
        Ok(self.client.request(request).await?)
    }

    fn mark(&self) -> Mark {
        self.site().cluster.audit().mark()
    }

    /// Writes of application objects since a mark, without dry runs: `verb name`.
    fn writes(&self, mark: Mark) -> anyhow::Result<Vec<String>> {
        let events = self.site().cluster.audit().since(mark)?.into_iter().filter(|event| {
            let own = event.object().namespace.starts_with("attest-");
            event.is_of_spoke() && event.is_mutating() && !event.is_dry_run() && !own
        });
        Ok(events.map(|event| format!("{} {}", event.verb, event.object().name)).collect())
    }

    /// Checks that the spoke writes nothing after a mark, also after a restart: the edit of the sentinel is reverted
    /// last, and is the only write.
    async fn nothing_is_written_after(&self, mark: Mark) -> anyhow::Result<()> {
        let before = self.fleet.spoke_process(CLUSTER);
        self.site().fakelet.signal(POD, Signal::KILL);
        until("the spoke to restart", WITHIN, || async {
            let now = self.fleet.spoke_process(CLUSTER);
            Ok((now.is_some() && now != before).then_some(()))
        })
        .await?;
        let sentinel = config_map("sentinel");
        self.merge(&sentinel, "user", &json!({"data": {"kept": "no"}})).await?;
        until("the edit of the sentinel to be reverted", WITHIN, || async {
            Ok((self.get(&sentinel).await?["data"]["kept"] == "yes").then_some(()))
        })
        .await?;
        tokio::time::sleep(SETTLE).await;
        assert_eq!(self.writes(mark)?, ["patch sentinel"]);
        Ok(())
    }
}

fn config_map(name: &str) -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/configmaps/{name}")
}

fn deployment(name: &str) -> String {
    format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{name}")
}

fn custom_kind(group: &str, kind: &str, plural: &str, scope: &str, spec: &str) -> String {
    let singular = kind.to_lowercase();
    format!(
        "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {{name: {plural}.{group}}}\n\
         spec:\n  group: {group}\n  scope: {scope}\n  names: {{kind: {kind}, plural: {plural}, singular: {singular}}}\n\
         \x20 versions:\n  - name: v1\n    served: true\n    storage: true\n    schema: {{openAPIV3Schema: {spec}}}\n---\n"
    )
}

const ANYTHING: &str = "{type: object, x-kubernetes-preserve-unknown-fields: true}";

fn definitions() -> Value {
    json!([{"group": "apiextensions.k8s.io", "resource": "customresourcedefinitions"}])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_01_empty_map() -> anyhow::Result<()> {
    let Some(situation) = Situation::start(&json!([]), &json!([])).await? else { return Ok(()) };
    let manifests = "
apiVersion: v1
kind: ConfigMap
metadata: {name: leader, annotations: {}}
data: {}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, annotations: {}, creationTimestamp: null}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  strategy: {}
  template:
    metadata: {labels: {app: web}, creationTimestamp: null, annotations: }
    spec:
      volumes: [{name: scratch, emptyDir: {}}]
      containers: [{name: web, image: web@DIGEST, resources: {}, env: [], args: }]
status: {}
";
    situation.deploy(manifests, With::default()).await?;
    let mark = situation.mark();

    let leader = config_map("leader");
    for renewal in 1..=5 {
        let annotations = json!({"control-plane.alpha.kubernetes.io/leader": renewal.to_string()});
        situation
            .merge(&leader, "elector", &json!({"metadata": {"annotations": annotations}}))
            .await?;
        let data = json!({"data": {"status": renewal.to_string()}});
        situation.merge(&leader, "elector", &data).await?;
    }
    situation
        .merge(&leader, "elector", &json!({"metadata": {"annotations": null}, "data": null}))
        .await?;
    let restart = json!({"kubectl.kubernetes.io/restartedAt": "now"});
    let template = json!({"spec": {"template": {"metadata": {"annotations": restart}}}});
    situation.merge(&deployment("web"), "kubectl-rollout", &template).await?;

    situation.nothing_is_written_after(mark).await?;
    situation.synced().await?;
    assert_eq!(situation.seen().await?["destinations"][0]["drifted"], json!([]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_01_empty_map_is_in_sync_without_self_heal() -> anyhow::Result<()> {
    let Some(situation) = Situation::start(&json!([]), &json!([])).await? else { return Ok(()) };
    let manifests =
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: leader, annotations: {}}, data: {}}\n";
    situation.deploy(manifests, With { no_self_heal: true, ..With::default() }).await?;
    let mark = situation.mark();

    situation.merge(&config_map("leader"), "elector", &json!({"data": {"a": "1"}})).await?;

    situation.synced().await?;
    tokio::time::sleep(SETTLE).await;
    assert_eq!(situation.seen().await?["phase"], "Synced");
    assert_eq!(situation.writes(mark)?, [""; 0]);
    Ok(())
}

/// Replaces the digests in the record by those that a spoke before version 0.2 would have recorded.
async fn record_by_the_former_rule(situation: &Situation, paths: &[String]) -> anyhow::Result<()> {
    let mut former = BTreeMap::new();
    for path in paths {
        let live = situation.get(path).await?;
        let name = live["metadata"]["name"].as_str().context("no name")?.to_owned();
        let digest = digest_before_empty_fields(&live).context("nothing is ours")?;
        former.insert(name, digest);
    }
    let (application, namespace) = (Name::new(APPLICATION)?, Name::new(NAMESPACE)?);
    let secret = format!(
        "/api/v1/namespaces/{SPOKE_NAMESPACE}/secrets/{}",
        destination_secret(&application, &namespace)
    );
    let stored = situation.get(&secret).await?;
    let packed = stored["data"][CONFIRMED_KEY].as_str().context("nothing is confirmed")?;
    let json = zstd::decode_all(BASE64.decode(packed.as_bytes())?.as_slice())?;
    let mut pairs: Vec<(ObjectKey, Confirmed)> = serde_json::from_slice(&json)?;
    let mut changed = 0;
    for (key, confirmed) in &mut pairs {
        let Some(digest) = former.get(&key.name) else { continue };
        changed += usize::from(confirmed.projected != *digest);
        confirmed.projected = *digest;
    }
    assert_eq!(changed, paths.len(), "the rules differ for each of these objects");
    let packed = BASE64.encode(&zstd::encode_all(serde_json::to_vec(&pairs)?.as_slice(), 0)?);
    let data = json!({"data": {CONFIRMED_KEY: packed}});
    situation.merge(&secret, "operator", &data).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_01_empty_map_causes_no_writes_after_an_upgrade() -> anyhow::Result<()> {
    let Some(situation) = Situation::start(&json!([]), &json!([])).await? else { return Ok(()) };
    let manifests = "
apiVersion: v1
kind: ConfigMap
metadata: {name: leader, annotations: {}}
data: {}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, annotations: {}}
";
    situation.deploy(manifests, With::default()).await?;
    let account = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/web");
    let mark = situation.mark();

    record_by_the_former_rule(&situation, &[config_map("leader"), account]).await?;

    situation.nothing_is_written_after(mark).await?;
    // By then the digests are those of today's rule: entries of others are no drift.
    let data = json!({"data": {"status": "1"}});
    situation.merge(&config_map("leader"), "elector", &data).await?;
    situation.nothing_is_written_after(situation.mark()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_02_stringdata_null_data() -> anyhow::Result<()> {
    let secrets = json!([{"group": "", "resource": "secrets"}]);
    let Some(situation) = Situation::start(&secrets, &json!([])).await? else { return Ok(()) };
    let manifests = "
apiVersion: v1
kind: Secret
metadata: {name: words}
type: Opaque
data:
stringData: {word: swordfish, nothing: }
---
apiVersion: v1
kind: Secret
metadata: {name: plain, labels: {empty: }}
data: {none: }
stringData: {kept: \"1\"}
";
    situation.deploy(manifests, With::default()).await?;
    let mark = situation.mark();

    let secret = |name: &str| format!("/api/v1/namespaces/{NAMESPACE}/secrets/{name}");
    let words = situation.get(&secret("words")).await?;
    assert_eq!(words["data"], json!({"word": "c3dvcmRmaXNo", "nothing": ""}));
    let plain = situation.get(&secret("plain")).await?;
    assert_eq!(plain["data"], json!({"kept": "MQ==", "none": ""}));
    assert_eq!(plain["metadata"]["labels"], json!({"empty": ""}));
    situation.nothing_is_written_after(mark).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_03_large_integers() -> anyhow::Result<()> {
    let routes = json!([{"group": "big.example.com", "resource": "routes"}]);
    let Some(situation) = Situation::start(&routes, &definitions()).await? else { return Ok(()) };
    let schema = "{type: object, properties: {spec: {type: object, properties: {\
        priority: {type: integer, format: int64, maximum: 9223372036854775807}, \
        tenant: {type: integer, format: int64}, lowest: {type: integer, format: int64}}}}}";
    let largest = custom_kind("big.example.com", "Route", "routes", "Namespaced", schema);
    situation.deploy(&largest, With::default()).await?;
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/routes.big.example.com";
    let live = situation.get(path).await?;
    let schema = &live["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let maximum = &schema["properties"]["spec"]["properties"]["priority"]["maximum"];
    // The API server keeps it as a double.
    assert_eq!(maximum.as_f64(), json!(i64::MAX).as_f64(), "{maximum}");
    situation.nothing_is_written_after(situation.mark()).await?;

    // With that maximum, Kubernetes accepts no object.
    let definition = largest.replace("9223372036854775807", "100");
    let route = "apiVersion: big.example.com/v1\nkind: Route\nmetadata: {name: one}\n\
        spec: {priority: 10, tenant: 9007199254740993, lowest: -9223372036854775808}\n";
    situation.deploy(&format!("{definition}{route}"), With::default()).await?;
    let mark = situation.mark();

    let rendered = situation.fleet.repository().tree().join(".attest/rendered/shop/all.jsonl");
    assert!(std::fs::read_to_string(rendered)?.contains(r#""tenant":9007199254740993"#));
    let path = format!("/apis/big.example.com/v1/namespaces/{NAMESPACE}/routes/one");
    let live = situation.get(&path).await?;
    assert_eq!(live["spec"]["tenant"], json!(9_007_199_254_740_993_i64));
    assert_eq!(live["spec"]["lowest"], json!(i64::MIN));
    // The smallest change of the integer is drift, and is reverted.
    let tenant = json!({"spec": {"tenant": 9_007_199_254_740_992_i64}});
    situation.nothing_is_written_after(mark).await?;
    situation.merge(&path, "user", &tenant).await?;
    until("the integer to be reverted", WITHIN, || async {
        let live = situation.get(&path).await?;
        Ok((live["spec"]["tenant"] == json!(9_007_199_254_740_993_i64)).then_some(()))
    })
    .await?;

    situation.write(&route.replace("9007199254740993", "9223372036854775808"))?;
    let error = situation.sign().unwrap_err().to_string();
    for part in ["manifests.yaml", "Route/one", "spec.tenant", "9223372036854775808"] {
        assert!(error.contains(part), "{error}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_14_rbac_name() -> anyhow::Result<()> {
    let bindings = json!([{"group": "rbac.authorization.k8s.io", "resource": "roles"}]);
    let Some(situation) = Situation::start(&bindings, &json!([])).await? else { return Ok(()) };
    let manifests = "
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: \"ada@example.com: reads, writes\"}
rules: []
";
    situation.deploy(manifests, With::default()).await?;
    let mark = situation.mark();

    let path = format!(
        "/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/roles/ada@example.com:%20reads,%20writes"
    );
    assert_eq!(situation.get(&path).await?["metadata"]["name"], "ada@example.com: reads, writes");
    situation.nothing_is_written_after(mark).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_15_finalizers() -> anyhow::Result<()> {
    let Some(situation) = Situation::start(&json!([]), &json!([])).await? else { return Ok(()) };
    let manifests = "
apiVersion: v1
kind: ConfigMap
metadata: {name: guarded, finalizers: [example.com/first, example.com/last]}
data: {a: \"1\"}
";
    situation.deploy(manifests, With::default()).await?;
    let mark = situation.mark();

    let guarded = config_map("guarded");
    let live = situation.get(&guarded).await?;
    assert_eq!(live["metadata"]["finalizers"], json!(["example.com/first", "example.com/last"]));
    situation.nothing_is_written_after(mark).await?;

    // While it is deleted, its controllers take their finalizers off: that is no drift.
    let mark = situation.mark();
    let delete = http::Request::delete(&guarded).body(Vec::new())?;
    let _: Value = situation.client.request(delete).await?;
    let left = json!({"metadata": {"finalizers": ["example.com/last"]}});
    situation.merge(&guarded, "controller", &left).await?;
    situation.nothing_is_written_after(mark).await?;
    // Pruned, it waits for the last one.
    situation.write(SENTINEL)?;
    situation.release()?;
    situation.shows(APPLICATION, "example.com/last").await?;
    situation.merge(&guarded, "controller", &json!({"metadata": {"finalizers": null}})).await?;
    situation.synced().await?;
    assert!(situation.get(&guarded).await.is_err(), "it is deleted");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_16_namespace_null() -> anyhow::Result<()> {
    let Some(situation) = Situation::start(&json!([]), &json!([])).await? else { return Ok(()) };
    let manifests = "
apiVersion: v1
kind: ConfigMap
metadata: {name: nothing, namespace: , labels: , annotations: }
data: {a: \"1\"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: empty, namespace: \"\"}
data: {a: \"1\"}
";
    situation.deploy(manifests, With::default()).await?;
    let mark = situation.mark();

    for name in ["nothing", "empty"] {
        assert_eq!(situation.get(&config_map(name)).await?["data"], json!({"a": "1"}));
    }
    let other =
        json!({"metadata": {"labels": {"by": "another"}, "annotations": {"by": "another"}}});
    situation.merge(&config_map("nothing"), "another", &other).await?;
    situation.nothing_is_written_after(mark).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_17_yaml_scalars() -> anyhow::Result<()> {
    let anies = json!([{"group": "any.example.com", "resource": "anies"}]);
    let Some(situation) = Situation::start(&anies, &definitions()).await? else { return Ok(()) };
    let rows = include_str!("../../../hub/supply/src/yaml/scalars.txt").lines();
    let rows = rows.filter_map(|row| row.split_once('\t'));
    let readable = rows.filter(|(_, read)| !matches!(*read, "refused" | "beyond"));
    let cases: Vec<(String, &str, &str)> = readable
        .enumerate()
        .map(|(index, (scalar, read))| (format!("v{index}"), scalar, read))
        .collect();
    let mut manifest =
        "apiVersion: any.example.com/v1\nkind: Any\nmetadata: {name: scalars}\nspec:\n".to_owned();
    for (field, scalar, _) in &cases {
        manifest.push_str(&format!("  {field}: {scalar}\n"));
    }
    let definition = custom_kind("any.example.com", "Any", "anies", "Namespaced", ANYTHING);
    situation.deploy(&format!("{definition}{manifest}"), With::default()).await?;
    let mark = situation.mark();

    let path = format!("/apis/any.example.com/v1/namespaces/{NAMESPACE}/anies/scalars");
    let live = situation.get(&path).await?;
    let mut wrong = Vec::new();
    for (field, scalar, read) in &cases {
        let (expected, found): (Value, &Value) =
            (serde_json::from_str(read)?, &live["spec"][field]);
        let same_number = found.is_number() && found.as_f64() == expected.as_f64();
        if *found != expected && !same_number {
            wrong.push(format!("{scalar}: kubectl {read}, here {found}"));
        }
    }
    assert_eq!(wrong, [""; 0]);
    situation.nothing_is_written_after(mark).await
}

const BEFORE: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web, old: label}}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: web@DIGEST, env: [{name: KEPT, value: \"1\"}, {name: DEBUG, value: \"1\"}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {kept: \"1\", leaves: \"1\"}
";

fn after() -> String {
    BEFORE
        .replace(", old: label", "")
        .replace(", {name: DEBUG, value: \"1\"}", "")
        .replace(", leaves: \"1\"", "")
}

/// Creates what `BEFORE` holds as `kubectl apply` did: client-side, server-side, or before there were managed fields.
async fn created_before(situation: &Situation, managers: [&str; 2]) -> anyhow::Result<()> {
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    situation.create("/api/v1/namespaces", "admin", &namespace).await?;
    let text = BEFORE.replace("DIGEST", DIGEST);
    let objects = attest_supply::yaml::read("before.yaml", text.as_bytes(), &mut Vec::new())?;
    for (mut object, manager) in objects.into_iter().zip(managers) {
        let name = object["metadata"]["name"].as_str().context("no name")?.to_owned();
        let path = match object["kind"].as_str() {
            Some("Deployment") => deployment(&name),
            Some(_) | None => config_map(&name),
        };
        if manager == "kubectl" {
            situation.apply_object(&path, manager, &object).await?;
            continue;
        }
        let annotations =
            json!({"kubectl.kubernetes.io/last-applied-configuration": object.to_string()});
        object["metadata"]["annotations"] = annotations;
        let collection = path.trim_end_matches(&name).trim_end_matches('/');
        situation.create(collection, manager, &object).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_30_adopted_from_kubectl() -> anyhow::Result<()> {
    let Some(situation) = Situation::start(&json!([]), &json!([])).await? else { return Ok(()) };
    created_before(&situation, [CLIENT_SIDE, CLIENT_SIDE]).await?;
    let adopt = With { adopt: true, ..With::default() };
    situation.deploy(BEFORE, adopt).await?;

    situation.deploy(&after(), adopt).await?;
    let mark = situation.mark();

    let web = situation.get(&deployment("web")).await?;
    assert_eq!(web["metadata"]["labels"], json!({"app": "web"}));
    let env = &web["spec"]["template"]["spec"]["containers"][0]["env"];
    assert_eq!(*env, json!([{"name": "KEPT", "value": "1"}]));
    let settings = situation.get(&config_map("settings")).await?;
    assert_eq!(settings["data"], json!({"kept": "1"}));
    assert_eq!(settings["metadata"]["annotations"], Value::Null);
    assert!(situation.seen().await?.to_string().contains("objects as signed"));
    situation.nothing_is_written_after(mark).await?;

    // Fields that a user applies to an object of the spoke leave with the next release.
    let theirs = json!({"data": {"by-hand": "1"}, "metadata": {"labels": {"by": "hand"}}});
    situation.merge(&config_map("settings"), CLIENT_SIDE, &theirs).await?;
    situation.deploy(&after().replace("kept: \"1\"", "kept: \"2\""), adopt).await?;
    let settings = situation.get(&config_map("settings")).await?;
    assert_eq!(settings["data"], json!({"kept": "2"}));
    assert_eq!(settings["metadata"]["labels"], Value::Null);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_30_adopted_from_kubectl_server_side_and_before_managed_fields() -> anyhow::Result<()>
{
    let Some(situation) = Situation::start(&json!([]), &json!([])).await? else { return Ok(()) };
    created_before(&situation, ["kubectl", "before-first-apply"]).await?;

    situation.deploy(&after(), With { adopt: true, ..With::default() }).await?;

    let web = situation.get(&deployment("web")).await?;
    assert_eq!(web["metadata"]["labels"], json!({"app": "web"}));
    assert_eq!(situation.get(&config_map("settings")).await?["data"], json!({"kept": "1"}));
    situation.nothing_is_written_after(situation.mark()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_30_adopted_from_kubectl_is_co_owned_without_adopt() -> anyhow::Result<()> {
    let Some(situation) = Situation::start(&json!([]), &json!([])).await? else { return Ok(()) };
    created_before(&situation, [CLIENT_SIDE, CLIENT_SIDE]).await?;
    situation.deploy(BEFORE, With::default()).await?;

    situation.deploy(&after(), With::default()).await?;

    situation.shows(APPLICATION, "co-owned by kubectl").await?;
    let seen = situation.seen().await?.to_string();
    for part in ["metadata.labels.old", "containers[web].env[DEBUG]", "data.leaves"] {
        assert!(seen.contains(part), "{part}: {seen}");
    }
    assert!(!seen.contains("as signed"), "{seen}");
    situation.nothing_is_written_after(situation.mark()).await?;

    // The message names the way: with `Adopt` they leave, without another release.
    situation.apply(With { adopt: true, ..With::default() }).await?;
    situation.shows(APPLICATION, "objects as signed").await?;
    let settings = situation.get(&config_map("settings")).await?;
    assert_eq!(settings["data"], json!({"kept": "1"}));
    situation.nothing_is_written_after(situation.mark()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_43_namespace_on_cluster_scoped() -> anyhow::Result<()> {
    let mut scoped = definitions();
    let issuers = json!({"group": "certs.example.com", "resource": "clusterissuers"});
    scoped.as_array_mut().context("a list")?.push(issuers);
    let Some(situation) = Situation::start(&json!([]), &scoped).await? else { return Ok(()) };
    let definition =
        custom_kind("certs.example.com", "ClusterIssuer", "clusterissuers", "Cluster", ANYTHING);
    let issuer = "apiVersion: certs.example.com/v1\nkind: ClusterIssuer\nmetadata: {name: own}\nspec: {selfSigned: {}}\n";
    situation.write_files(&[
        ("k8s/definition.yaml", definition.trim_end_matches("---\n")),
        ("k8s/issuer.yaml", issuer),
        ("k8s/sentinel.yaml", SENTINEL),
        (
            "k8s/kustomization.yaml",
            "namespace: shop\nresources: [definition.yaml, issuer.yaml, sentinel.yaml]\n",
        ),
    ])?;
    situation.release()?;
    situation.apply(With::default()).await?;
    situation.synced().await?;
    let mark = situation.mark();

    let live = situation.get("/apis/certs.example.com/v1/clusterissuers/own").await?;
    assert_eq!(live["metadata"]["namespace"], Value::Null);
    situation.shows(APPLICATION, "its namespace `shop` is dropped").await?;
    situation.nothing_is_written_after(mark).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_45_other_name() -> anyhow::Result<()> {
    let Some(situation) = Situation::start(&json!([]), &json!([])).await? else { return Ok(()) };
    situation.write(SENTINEL)?;
    situation.release()?;

    situation.apply_as("shop-eu", With::default()).await?;

    let text =
        "this repository signs application `shop`; this one is called `shop-eu`: use one name";
    situation.shows("shop-eu", text).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_46_image_in_custom_kind() -> anyhow::Result<()> {
    let anies = json!([{"group": "any.example.com", "resource": "anies"}]);
    let Some(situation) = Situation::start(&anies, &definitions()).await? else { return Ok(()) };
    let definition = custom_kind("any.example.com", "Any", "anies", "Namespaced", ANYTHING);
    let custom = "
apiVersion: any.example.com/v1
kind: Any
metadata: {name: web}
spec:
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: \"web:latest\"}]}
";
    situation.write(&format!("{definition}{custom}---\n{SENTINEL}"))?;

    let error = situation.sign().unwrap_err().to_string();

    assert!(error.contains("web:latest"), "{error}");
    let pinned = custom.replace("web:latest", "web:1@DIGEST");
    situation.deploy(&format!("{definition}{pinned}"), With::default()).await?;
    let mark = situation.mark();
    let path = format!("/apis/any.example.com/v1/namespaces/{NAMESPACE}/anies/web");
    let live = situation.get(&path).await?;
    let image = &live["spec"]["template"]["spec"]["containers"][0]["image"];
    assert_eq!(*image, format!("web:1@{DIGEST}"));
    situation.nothing_is_written_after(mark).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_47_helm_hooks() -> anyhow::Result<()> {
    let Some(situation) = Situation::start(&json!([]), &json!([])).await? else { return Ok(()) };
    let manifests = "
apiVersion: v1
kind: Pod
metadata: {name: web-test, annotations: {\"helm.sh/hook\": test}}
spec:
  restartPolicy: Never
  containers:
  - {name: t, image: t@DIGEST}
---
apiVersion: batch/v1
kind: Job
metadata: {name: web-pre, annotations: {\"helm.sh/hook\": \"pre-install,pre-upgrade\", \"helm.sh/hook-delete-policy\": hook-succeeded}}
spec:
  template: {spec: {restartPolicy: Never, containers: [{name: t, image: t@DIGEST}]}}
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: others
  labels: {argocd.argoproj.io/instance: web}
  annotations:
    argocd.argoproj.io/sync-wave: \"5\"
    argocd.argoproj.io/sync-options: Prune=false,Replace=true
    kustomize.toolkit.fluxcd.io/prune: disabled
    config.kubernetes.io/depends-on: /namespaces/shop/ConfigMap/sentinel
data: {a: \"1\"}
";
    situation.write(&format!("{}---\n{SENTINEL}", manifests.trim_start()))?;

    let messages = situation.release()?;

    for (object, annotation, instead) in [
        ("Pod/web-test", "helm.sh/hook: test", "helm test"),
        ("Job.batch/web-pre", "helm.sh/hook: pre-install,pre-upgrade", "attest.continuu.ms/wave"),
        ("Job.batch/web-pre", "helm.sh/hook-delete-policy: hook-succeeded", "kept"),
        ("ConfigMap/others", "argocd.argoproj.io/instance: web", "Argo CD"),
        ("ConfigMap/others", "argocd.argoproj.io/sync-wave: 5", "attest.continuu.ms/wave"),
        (
            "ConfigMap/others",
            "argocd.argoproj.io/sync-options: Prune=false",
            "attest.continuu.ms/orphan",
        ),
        (
            "ConfigMap/others",
            "argocd.argoproj.io/sync-options: Replace=true",
            "attest.continuu.ms/replace",
        ),
        (
            "ConfigMap/others",
            "kustomize.toolkit.fluxcd.io/prune: disabled",
            "attest.continuu.ms/orphan",
        ),
        (
            "ConfigMap/others",
            "config.kubernetes.io/depends-on: /namespaces/shop",
            "attest.continuu.ms/wave",
        ),
    ] {
        let start = format!("warning: {object}: `{annotation}");
        let line = messages.lines().find(|line| line.starts_with(&start));
        assert!(line.is_some_and(|line| line.contains(instead)), "{start} {messages}");
    }
    situation.apply(With::default()).await?;
    situation.synced().await?;
    let mark = situation.mark();
    let pod = situation.get(&format!("/api/v1/namespaces/{NAMESPACE}/pods/web-test")).await?;
    assert_eq!(pod["metadata"]["annotations"]["helm.sh/hook"], "test");
    let job = situation.get(&format!("/apis/batch/v1/namespaces/{NAMESPACE}/jobs/web-pre")).await?;
    assert_eq!(job["status"]["succeeded"], 1);
    let others = situation.get(&config_map("others")).await?;
    assert_eq!(others["metadata"]["annotations"]["argocd.argoproj.io/sync-wave"], "5");
    situation.nothing_is_written_after(mark).await
}

fn in_wave(kind: &str, name: &str, wave: i16, rest: &str) -> String {
    let api_version = if kind == "ConfigMap" { "v1" } else { "apps/v1" };
    format!(
        "apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: {name}, \
         annotations: {{attest.continuu.ms/wave: \"{wave}\"}}}}\n{rest}---\n"
    )
}

fn workload(name: &str, annotations: &str) -> String {
    format!(
        "spec:\n  selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata: {{labels: {{app: {name}}}, \
         annotations: {annotations}}}\n    \
         spec: {{containers: [{{name: {name}, image: {name}@DIGEST}}]}}\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waves_are_applied_and_gated_in_order_and_deleted_in_the_opposite_one() -> anyhow::Result<()>
{
    let Some(situation) = Situation::start(&json!([]), &json!([])).await? else { return Ok(()) };
    let manifests = |ready: &str| {
        let first = in_wave("Deployment", "first", -1, &workload("first", ready));
        let last = in_wave("ConfigMap", "last", 2, "data: {a: \"1\"}\n");
        let third = in_wave("Deployment", "third", 1, &workload("third", "{}"));
        format!("{last}{third}{first}{SENTINEL}")
    };
    situation.write(&manifests("{attest.test/ready: never}"))?;
    situation.release()?;
    let mark = situation.mark();
    situation.apply(With::default()).await?;

    situation
        .shows(APPLICATION, "3 of 4 objects to apply after Deployment.apps/shop/first")
        .await?;
    assert_eq!(situation.writes(mark)?.last().map(String::as_str), Some("patch first"));
    situation.write(&manifests("{}"))?;
    situation.release()?;
    situation.synced().await?;
    let applied = situation.writes(mark)?;
    let order: Vec<&str> = applied.iter().rev().take(4).rev().map(String::as_str).collect();
    assert_eq!(order, ["patch first", "patch sentinel", "patch third", "patch last"]);

    // Deletions go the other way.
    let mark = situation.mark();
    situation.write(SENTINEL)?;
    situation.release()?;
    situation.synced().await?;
    until("everything to be deleted", WITHIN, || async {
        Ok(situation.get(&deployment("first")).await.is_err().then_some(()))
    })
    .await?;
    assert_eq!(situation.writes(mark)?, ["delete last", "delete third", "delete first"]);

    situation.write(&in_wave("ConfigMap", "last", 1001, ""))?;
    let error = situation.sign().unwrap_err().to_string();
    assert!(error.contains("ConfigMap/last: annotation `attest.continuu.ms/wave`"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orphan_is_released_when_it_leaves_git_and_when_the_application_is_removed()
-> anyhow::Result<()> {
    let Some(situation) = Situation::start(&json!([]), &json!([])).await? else { return Ok(()) };
    let of = |name: &str, orphan: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, \
             annotations: {{attest.continuu.ms/orphan: \"{orphan}\"}}}}\ndata: {{a: \"1\"}}\n---\n"
        )
    };
    let stays = of("stays", "true");
    situation
        .deploy(&format!("{stays}{}{}", of("kept", "true"), of("goes", "false")), With::default())
        .await?;

    situation.deploy(&stays, With::default()).await?;
    let mark = situation.mark();

    until("the other to be deleted", WITHIN, || async {
        Ok(situation.get(&config_map("goes")).await.is_err().then_some(()))
    })
    .await?;
    situation.merge(&config_map("kept"), "user", &json!({"data": {"a": "2"}})).await?;
    situation.nothing_is_written_after(mark).await?;
    assert_eq!(situation.get(&config_map("kept")).await?["data"]["a"], "2");
    let path = format!("/v1/applications/{APPLICATION}");
    let _: Value = situation.fleet.api().call("DELETE", &path, None).await?;
    until("the sentinel to be deleted", WITHIN, || async {
        Ok(situation.get(&config_map("sentinel")).await.is_err().then_some(()))
    })
    .await?;
    until("the application to be removed", WITHIN, || async {
        Ok(situation.seen().await.is_err().then_some(()))
    })
    .await?;
    for name in ["kept", "stays"] {
        let live = situation.get(&config_map(name)).await?;
        assert_eq!(live["metadata"]["deletionTimestamp"], Value::Null, "{name}");
    }

    let confirm = of("stays", "true").replace("/orphan", "/confirm-removal");
    situation.write(&confirm)?;
    let error = situation.sign().unwrap_err().to_string();
    assert!(error.contains("only on an AttestApplication"), "{error}");
    Ok(())
}
