//! The hub in a cluster: installed with Helm as the documentation prints it, and used with the operator's kubeconfig.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use attest_tests::cluster::fakelet::{Fakelet, FakeletOptions, Runner};
use attest_tests::cluster::{Cluster, binaries::Binaries, client_from, ports};
use attest_tests::fleet::{Operator, Repository, generate_key, program, search_path};
use attest_tests::helm::{ChartRepository, Helm, chart};
use attest_tests::process::describe;
use attest_tests::real::Ci;
use attest_tests::wait::until;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, ServiceAccount};
use kube::Api;
use kube::api::PostParams;
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(60);
const NAMESPACE: &str = "attest-system";
const HUB: &str = "attest-gitops-controller";
/// As the product document prints it.
const INSTALL: [&str; 10] = [
    "install",
    "attest-gitops",
    "attest/gitops-controller",
    "--namespace",
    NAMESPACE,
    "--create-namespace",
    "--set",
    "controller.verification.enabled=true",
    "--set",
    "controller.policies.enabled=true",
];

/// As the product document prints it.
const DOCUMENTED_CONFIG_MAP: &str =
    include_str!("../../../hub/server/src/in_cluster/documented.yaml");

/// How the operator reaches the API.
#[derive(Clone, Copy)]
enum ApiAccess {
    /// At `api.url`.
    Url,
    /// Through a port-forward of the API server.
    PortForward,
}

/// A cluster whose pods of the hub and the spoke are the real programs.
struct HubCluster {
    // Dropped in this order: the processes before their files.
    fakelet: Fakelet,
    cluster: Cluster,
    helm: Helm,
    charts: ChartRepository,
    operator: Operator,
    directory: TempDir,
    api: String,
    webhooks: String,
}

impl HubCluster {
    async fn start(name: &str) -> anyhow::Result<Option<Self>> {
        let Some(helm) = Helm::find("helm")? else { return Ok(None) };
        let Some(cluster) = Cluster::start(name).await? else { return Ok(None) };
        let directory = tempfile::Builder::new().prefix("attest-in-cluster-").tempdir()?;
        let address = || anyhow::Ok(format!("127.0.0.1:{}", ports::free()?));
        let (api, webhooks) = (address()?, address()?);
        let hub = Runner::new("attest-hub", program("attest-hub")?)
            .env("PATH", search_path())
            .listen(8443, "ATTEST_LISTEN_API", &api)
            .listen(4433, "ATTEST_LISTEN_SPOKES", &address()?)
            .listen(8081, "ATTEST_LISTEN_HEALTH", &address()?)
            .listen(8080, "ATTEST_LISTEN_METRICS", &address()?)
            .listen(8082, "ATTEST_LISTEN_WEBHOOKS", &webhooks);
        let spoke = Runner::new("attest-spoke", program("attest-spoke")?)
            .env("ATTEST_LISTEN_HEALTH", "127.0.0.1:0")
            .env("ATTEST_LISTEN_METRICS", "127.0.0.1:0");
        let options = FakeletOptions { runners: vec![hub, spoke], ..FakeletOptions::default() };
        let fakelet = Fakelet::start(&cluster, options)?;
        let helm = helm.with_kubeconfig(&cluster.kubeconfig());
        let charts = ChartRepository::serve(&helm, &[chart("gitops-controller")]).await?;
        let operator = Operator::new(&directory.path().join("operator"))?;
        Ok(Some(Self { fakelet, cluster, helm, charts, operator, directory, api, webhooks }))
    }

    /// Runs the documented commands, with what only this test bed needs in a file of values.
    fn install(&self, access: ApiAccess) -> anyhow::Result<String> {
        let values = self.directory.path().join("values.yaml");
        let repositories = self.directory.path().display();
        let text = format!(
            "api: {{url: '{}'}}\n\
             extraArgs: ['--allow-file-repositories={repositories}']\n\
             extraVolumes: [{{name: repositories, hostPath: {{path: '{repositories}'}}}}]\n\
             extraVolumeMounts: [{{name: repositories, mountPath: '{repositories}'}}]\n",
            match access {
                ApiAccess::Url => format!("https://{}", self.api),
                ApiAccess::PortForward => String::new(),
            }
        );
        std::fs::write(&values, text)?;
        self.helm.run(&["repo", "add", "attest", &self.charts.url])?;
        self.helm.run(&["repo", "update"])?;
        let values = values.display().to_string();
        let notes = self.helm.run(&[&INSTALL[..], &["--values", &values]].concat())?;
        self.wait_ready()?;
        Ok(notes)
    }

    fn wait_ready(&self) -> anyhow::Result<()> {
        let waited = self.kubectl(&[
            "rollout",
            "status",
            &format!("deployment/{HUB}"),
            "--namespace",
            NAMESPACE,
            "--timeout=60s",
        ]);
        waited.with_context(|| self.fakelet.output(NAMESPACE))?;
        Ok(())
    }

    fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let binaries = Binaries::find()?.context("no kubectl")?;
        let output = Command::new(binaries.program("kubectl"))
            .env("KUBECONFIG", self.cluster.kubeconfig())
            .args(arguments)
            .output()?;
        ensure!(output.status.success(), "kubectl {arguments:?}: {}", describe(&output));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The flags that select this cluster.
    fn target(&self) -> [String; 2] {
        ["--kubeconfig".to_owned(), self.cluster.kubeconfig().display().to_string()]
    }

    fn login(&self, operator: &Operator, more: &[&str]) -> anyhow::Result<String> {
        let [flag, file] = self.target();
        operator.attest(&[&["hub", "login", &flag, &file], more].concat())
    }

    async fn published(&self) -> anyhow::Result<std::collections::BTreeMap<String, String>> {
        let maps: Api<ConfigMap> = Api::namespaced(self.cluster.client().await?, NAMESPACE);
        let map = until("the hub to publish its data", SOON, || async {
            Ok(maps
                .get("attest-gitops-hub")
                .await?
                .data
                .filter(|data| data.contains_key("hubKeyId")))
        });
        map.await
    }

    /// A kubeconfig of a user without a group.
    fn kubeconfig_of(&self, user: &str) -> anyhow::Result<PathBuf> {
        let file = self.directory.path().join(format!("{user}.kubeconfig"));
        std::fs::write(&file, self.cluster.kubeconfig_for(user, None)?)?;
        Ok(file)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn helm_installs_a_hub_that_deploys_to_its_own_cluster_and_keeps_its_home()
-> anyhow::Result<()> {
    let Some(hub) = HubCluster::start("helm").await? else { return Ok(()) };
    let notes = hub.install(ApiAccess::Url)?;
    assert!(notes.contains("attest hub login"), "{notes}");
    let published = hub.published().await?;
    // The files for kubectl are the same objects.
    for part in ["crds", "rbac", "rbac/as-documented", "controller"] {
        let directory = chart("../deploy").join(part).display().to_string();
        hub.kubectl(&["apply", "--dry-run=server", "-f", &directory])?;
    }
    hub.helm.run(&["test", "attest-gitops", "--namespace", NAMESPACE, "--timeout", "90s"])?;

    // The operator has a kubeconfig and nothing else.
    let text = hub.login(&hub.operator, &[])?;
    assert!(text.contains("hub/main logged in as operator"), "{text}");
    assert_eq!(hub.operator.json(&["gitops", "cluster", "list"])?["items"], json!([]));

    // The hub's own cluster is registered like any other; its spoke dials the Service.
    let key = hub.directory.path().join("ci.key");
    let public = generate_key(&hub.operator, &key)?.display().to_string();
    let environment = ["--environment", "staging,production"];
    hub.operator.attest(&[&["trust", "key", "add", "ci", &public], &environment[..]].concat())?;
    hub.operator.attest(&["gitops", "key", "add", "ed25519-company-ci-key", &public])?;
    let [flag, file] = hub.target();
    let added =
        hub.operator.attest(&["gitops", "cluster", "add", "staging", &flag, &file, "--yes"]);
    added.with_context(|| hub.fakelet.output("attest-"))?;
    let clusters = hub.operator.json(&["gitops", "cluster", "list"])?;
    assert_eq!(clusters["items"][0]["connected"], true, "{clusters:#}");

    // A signed commit runs there.
    let repository = Repository::create(&hub.directory.path().join("repository"))?;
    let ci = Ci::new(&repository, &hub.operator, &key);
    ci.write_sample()?;
    ci.release("v1")?;
    let manifest = hub.directory.path().join("application.yaml");
    std::fs::write(&manifest, application(&repository.url()))?;
    hub.kubectl(&["create", "namespace", "production"])?;
    hub.kubectl(&["apply", "-f", &manifest.display().to_string()])?;
    let resource = ["attestapplication/web-app", "--namespace", "production"];
    let wait = ["wait", "--for=condition=Ready", "--timeout=60s"];
    let ready = hub.kubectl(&[&wait[..], &resource[..]].concat());
    ready.with_context(|| hub.fakelet.output("attest-"))?;
    wait_synced(&hub.operator).await.with_context(|| hub.fakelet.output("attest-"))?;

    main_job(&hub, &ci).await?;

    // An upgrade restarts the hub: same home, same connections.
    let secret = ["create", "secret", "generic", "attest-gitops-webhook", "--namespace", NAMESPACE];
    hub.kubectl(&[&secret[..], &["--from-literal=secret=webhook-key"]].concat())?;
    hub.helm.run(&[
        "upgrade",
        "attest-gitops",
        "attest/gitops-controller",
        "--namespace",
        NAMESPACE,
        "--reuse-values",
        "--set",
        "controller.syncIntervalSeconds=60",
        "--set",
        "webhooks.enabled=true",
    ])?;
    hub.wait_ready()?;
    assert_eq!(hub.published().await?, published);
    // The next poll is a minute away; a signed webhook announces the push.
    let commit = ci.release("v2")?;
    let payload = json!({"ref": "refs/heads/main", "repository": {"clone_url": repository.url()}});
    assert_eq!(webhook(&hub, &payload, "another-key").await?, 401);
    assert_eq!(webhook(&hub, &payload, "webhook-key").await?, 202);
    until("the pushed commit to be Synced", SOON, || async {
        let seen = hub.operator.json(&["gitops", "app", "get", "web-app"])?;
        let is_new = seen["revision"] == json!(commit) && seen["phase"] == "Synced";
        Ok(is_new.then_some(()))
    })
    .await?;

    // The claim outlives the release, and the next release finds its home there.
    hub.helm.run(&["uninstall", "attest-gitops", "--namespace", NAMESPACE, "--wait"])?;
    let claims: Api<PersistentVolumeClaim> =
        Api::namespaced(hub.cluster.client().await?, NAMESPACE);
    claims.get("attest-gitops-home").await.context("the claim is gone")?;
    hub.install(ApiAccess::Url)?;
    assert_eq!(hub.published().await?, published);
    hub.operator.attest(&["gitops", "cluster", "list"])?;
    wait_synced(&hub.operator).await?;
    // Uninstalling kept the resource as well.
    hub.kubectl(&[&["delete", "--timeout=60s"], &resource[..]].concat())?;
    let left = hub.kubectl(&["get", "deployments", "-n", "app-staging", "-o", "name"])?;
    assert_eq!(left, "");
    Ok(())
}

/// What a hub outside a cluster does as well: refusal, drift, pruning, and restarts of hub and spoke.
async fn main_job(hub: &HubCluster, ci: &Ci) -> anyhow::Result<()> {
    let base = ci.repository().tree().join("k8s/base");
    let deployment = std::fs::read_to_string(base.join("deployment.yaml"))?;
    std::fs::write(base.join("deployment.yaml"), deployment.replace("myapp:v1", "myapp:evil"))?;
    ci.repository().commit_and_push("Not by CI")?;
    let output = hub.operator.try_attest(&["gitops", "app", "sync", "web-app", "--wait"])?;
    let text = describe(&output);
    assert!(text.contains("myapp:evil") && !output.status.success(), "{text}");
    std::fs::write(base.join("deployment.yaml"), deployment)?;

    let live = ["deployment/web-app", "-n", "app-staging"];
    hub.kubectl(&[&["patch"], &live[..], &["--patch", r#"{"spec":{"replicas":3}}"#]].concat())?;
    until("the drift to be reverted", SOON, || async {
        let seen =
            hub.kubectl(&[&["get"], &live[..], &["-o", "jsonpath={.spec.replicas}"]].concat())?;
        Ok((seen == "1").then_some(()))
    })
    .await?;

    // Hub and spoke are killed while a release without the Service is on its way.
    let kustomization = std::fs::read_to_string(base.join("kustomization.yaml"))?;
    let without: Vec<&str> =
        kustomization.lines().filter(|line| !line.contains("service.yaml")).collect();
    std::fs::write(base.join("kustomization.yaml"), without.join("\n") + "\n")?;
    ci.release("v1-pruned")?;
    let sync = hub.operator.command(["gitops", "app", "sync", "web-app"]).output()?;
    assert!(sync.status.success(), "{}", describe(&sync));
    for pods in [NAMESPACE, "attest-spoke"] {
        hub.fakelet.signal(&format!("{pods}/"), Signal::KILL);
    }
    until("the Service to be pruned", SOON, || async {
        let services = hub.kubectl(&["get", "services", "-n", "app-staging", "-o", "name"])?;
        Ok(services.is_empty().then_some(()))
    })
    .await?;
    until("the restarted hub to answer", SOON, || async {
        hub.operator.json(&["gitops", "cluster", "list"]).map(|_| Some(()))
    })
    .await?;
    wait_synced(&hub.operator).await
}

/// HMAC-SHA256 of a text in hexadecimal digits, by another implementation than the hub's.
fn hmac_sha256(key: &str, text: &str) -> anyhow::Result<String> {
    use std::io::Write as _;

    let mut child = Command::new("openssl")
        .args(["dgst", "-sha256", "-hmac", key, "-r"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("no input")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.split_whitespace().next().context("no digest")?.to_owned())
}

/// Sends a webhook as GitHub does; returns the status.
async fn webhook(hub: &HubCluster, payload: &Value, key: &str) -> anyhow::Result<u16> {
    let body = payload.to_string();
    let signature = hmac_sha256(key, &body)?;
    let client = reqwest::Client::builder().no_proxy().build()?;
    let request = client.post(format!("http://{}/webhooks", hub.webhooks)).body(body);
    let request = request.header("X-Hub-Signature-256", format!("sha256={signature}"));
    Ok(request.send().await?.status().as_u16())
}

async fn wait_synced(operator: &Operator) -> anyhow::Result<()> {
    until("the application to be Synced", SOON, || async {
        let seen = operator.json(&["gitops", "app", "get", "web-app"])?;
        Ok((seen["phase"] == "Synced").then_some(()))
    })
    .await
}

fn application(repository: &str) -> String {
    format!(
        "apiVersion: attest.continuu.ms/v1\nkind: AttestApplication\nmetadata: {{name: web-app, namespace: production}}\nspec:\n\
         \x20 destination: {{namespace: app-staging}}\n\
         \x20 source: {{repoUrl: '{repository}', path: k8s/overlays}}\n\
         \x20 syncPolicy: {{automated: {{prune: true, selfHeal: true}}}}\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rbac_of_the_cluster_decides_who_logs_in_and_the_hubs_account_reaches_nothing_else()
-> anyhow::Result<()> {
    let Some(hub) = HubCluster::start("login").await? else { return Ok(()) };
    hub.install(ApiAccess::PortForward)?;
    hub.published().await?;
    hub.login(&hub.operator, &[])?;

    // A user who may approve viewers only.
    let eve = Operator::new(&hub.directory.path().join("eve"))?;
    let kubeconfig = hub.kubeconfig_of("eve")?.display().to_string();
    let login = ["hub", "login", "--kubeconfig", &kubeconfig];
    let refused = eve.try_attest(&login)?;
    assert!(describe(&refused).contains("failed to read ConfigMap"), "{}", describe(&refused));
    for (kind, role) in [
        ("clusterrolebinding", "--clusterrole=attest-gitops-viewer"),
        ("rolebinding", "--role=attest-gitops-login"),
    ] {
        hub.kubectl(&["create", kind, "eve", role, "--user=eve", "--namespace", NAMESPACE])?;
    }
    let viewer = ["--role", "viewer", "--name", "lab", "--lifetime", "7200", "--timeout", "60"];
    let text = eve.attest(&[&login[..], &viewer].concat())?;
    assert!(text.contains("logged in as viewer"), "{text}");
    let contexts = eve.attest(&["gitops", "context", "list"])?;
    assert!(contexts.contains("lab"), "{contexts}");
    let requests =
        hub.kubectl(&["get", "csr", "-o", "jsonpath={.items[*].spec.expirationSeconds}"])?;
    assert!(requests.contains("7200"), "{requests}");
    eve.attest(&["gitops", "cluster", "list"])?;
    let refused = eve.try_attest(&["gitops", "cluster", "token", "create", "moon"])?;
    assert!(describe(&refused).contains("ViewerReadOnly"), "{}", describe(&refused));

    // The operator's role takes someone else's approval, who may also deny it.
    for (verb, expected) in
        [("approve", "logged in as operator"), ("deny", "the request was refused")]
    {
        let child = eve.command(login).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let name = until("the request", SOON, || async {
            let names = hub.kubectl(&["get", "csr", "-o", "json"])?;
            let list: Value = serde_json::from_str(&names)?;
            let items = list["items"].as_array().cloned().unwrap_or_default();
            Ok(items.into_iter().find_map(|item| {
                let is_open = item["status"]["conditions"].is_null();
                is_open.then(|| item["metadata"]["name"].as_str().map(str::to_owned)).flatten()
            }))
        });
        let name = name.await?;
        hub.kubectl(&["certificate", verb, &name])?;
        let text = describe(&child.wait_with_output()?);
        assert!(text.contains(&format!("kubectl certificate approve {name}")), "{text}");
        assert!(text.contains(expected), "{text}");
    }

    let output = hub.fakelet.output(NAMESPACE);
    assert!(output.contains(r#""username":"eve""#), "{output}");
    compromised_hub(&hub).await?;
    configuration(&hub).await
}

/// The ConfigMap is followed without a restart, and the last good one stays in force.
async fn configuration(hub: &HubCluster) -> anyhow::Result<()> {
    let map = ["patch", "configmap", "attest-gitops-config", "-n", NAMESPACE, "--patch"];
    // As the product document prints it, and its restart.
    hub.kubectl(&[&map[..], &[r#"{"data":{"log_level":"debug"}}"#]].concat())?;
    setting(hub, "log_level", "debug").await?;
    hub.kubectl(&["rollout", "restart", &format!("deployment/{HUB}"), "-n", NAMESPACE])?;
    hub.wait_ready()?;
    setting(hub, "log_level", "debug").await?;

    let bad =
        json!({"data": {"config.yaml": "verificationEnabled: false\nsyncIntervalSeconds: 60\n"}});
    hub.kubectl(&[&map[..], &[bad.to_string().as_str()]].concat())?;
    until("the refusal", SOON, || async {
        let seen = hub.operator.json(&["hub", "config"])?;
        let problem = &seen["problems"][0];
        Ok((problem["reason"] == "VerificationRequired" && problem["refused"] == true)
            .then_some(()))
    })
    .await?;
    setting(hub, "syncIntervalSeconds", "300").await?;
    until("the event", SOON, || async {
        let events = hub.kubectl(&["get", "events", "-n", NAMESPACE])?;
        Ok(events.contains("VerificationRequired").then_some(()))
    })
    .await?;

    let file = hub.directory.path().join("config-map.yaml");
    std::fs::write(&file, DOCUMENTED_CONFIG_MAP)?;
    hub.kubectl(&[
        "apply",
        "--server-side",
        "--force-conflicts",
        "-f",
        &file.display().to_string(),
    ])?;
    setting(hub, "policies.bundle", "https://policies.company.com/bundle").await?;
    setting(hub, "trustedKeys", "ed25519-key-1234567890abcdef").await?;
    setting(hub, "webhookSecret", "(secret)").await
}

/// Waits until a setting has a value.
async fn setting(hub: &HubCluster, name: &str, value: &str) -> anyhow::Result<()> {
    until("the setting", SOON, || async {
        let seen = hub.operator.json(&["hub", "config"])?;
        let settings = seen["settings"].as_array().cloned().unwrap_or_default();
        let found = settings.into_iter().any(|one| one["name"] == name && one["value"] == value);
        Ok(found.then_some(()))
    })
    .await
    .with_context(|| format!("{name}={value}"))
}

/// A hub under an attacker's control has the token of its account, and no right on Secrets, pods or workloads.
async fn compromised_hub(hub: &HubCluster) -> anyhow::Result<()> {
    let accounts: Api<ServiceAccount> = Api::namespaced(hub.cluster.client().await?, NAMESPACE);
    let request: TokenRequest = serde_json::from_value(json!({"spec": {"audiences": []}}))?;
    let answer = accounts.create_token_request(HUB, &PostParams::default(), &request).await?;
    let token = answer.status.and_then(|status| status.token).context("no token")?;
    let kubeconfig = hub.cluster.kubeconfig_with_token(&token);
    let client = client_from(&kubeconfig).await?;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"},
        "spec": {"containers": [{"name": "x", "image": "x"}]},
    });
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}});
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "x"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": HUB, "namespace": NAMESPACE}],
    });
    let rules = json!({"rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["*"]}]});
    let token_request =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let map = json!({"data": {"x": "y"}});
    let csr = json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": "x"},
        "spec": {"request": "", "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"]},
    });
    let core = "/api/v1";
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let attempts: [(&str, String, Option<&Value>); 22] = [
        ("GET", format!("{core}/secrets"), None),
        ("GET", format!("{core}/namespaces/{NAMESPACE}/secrets"), None),
        ("GET", format!("{core}/namespaces/attest-spoke/secrets"), None),
        ("POST", format!("{core}/namespaces/{NAMESPACE}/secrets"), Some(&secret)),
        ("POST", format!("{core}/namespaces/attest-spoke/secrets"), Some(&secret)),
        ("GET", format!("{core}/pods"), None),
        ("POST", format!("{core}/namespaces/{NAMESPACE}/pods"), Some(&pod)),
        ("POST", format!("{core}/namespaces/{NAMESPACE}/pods/x/exec?command=sh"), None),
        ("GET", "/apis/apps/v1/deployments".to_owned(), None),
        ("PATCH", format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{HUB}"), Some(&map)),
        (
            "PATCH",
            format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{HUB}/scale"),
            Some(&map),
        ),
        ("GET", format!("{core}/nodes"), None),
        ("GET", format!("{core}/configmaps"), None),
        (
            "PATCH",
            format!("{core}/namespaces/{NAMESPACE}/configmaps/attest-gitops-config"),
            Some(&map),
        ),
        ("PATCH", format!("{core}/namespaces/kube-system"), Some(&map)),
        (
            "POST",
            format!("{core}/namespaces/{NAMESPACE}/serviceaccounts/{HUB}/token"),
            Some(&token_request),
        ),
        (
            "POST",
            format!("{core}/namespaces/{NAMESPACE}/serviceaccounts/default/token"),
            Some(&token_request),
        ),
        ("POST", format!("{rbac}/clusterrolebindings"), Some(&binding)),
        ("PATCH", format!("{rbac}/clusterroles/{HUB}"), Some(&rules)),
        ("PATCH", format!("{rbac}/namespaces/{NAMESPACE}/roles/{HUB}"), Some(&rules)),
        ("POST", "/apis/certificates.k8s.io/v1/certificatesigningrequests".to_owned(), Some(&csr)),
        ("PATCH", "/apis/attest.continuu.ms/v1/attesttrustpolicies/local".to_owned(), Some(&map)),
    ];
    for (method, path, body) in attempts {
        let body = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
        let content =
            if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let request = http::Request::builder().method(method).uri(&path);
        let request = request.header("content-type", content).body(body)?;
        let answer = client.request::<Value>(request).await;
        let Err(kube::Error::Api(status)) = answer else {
            anyhow::bail!("{method} {path} was not refused: {answer:?}");
        };
        assert_eq!(status.code, 403, "{method} {path}: {status:?}");
    }
    // Control: the token is good, and used for what the hub needs.
    let namespace = http::Request::get(format!("{core}/namespaces/kube-system")).body(Vec::new())?;
    client.request::<Value>(namespace).await?;
    Ok(())
}
