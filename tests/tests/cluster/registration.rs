//! Registration as an operator does it: the command from the product's documentation, against a real hub
//! and a real API server whose pods are real spoke processes; and every error that stops it before
//! anything changes.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a helper of a test fails the test"
)]

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use attest_certs::bundle::chain_from_pem;
use attest_certs::{Authority, Issued, SigningRequest, peer_identity};
use attest_install::apply::ObjectRef;
use attest_tests::cluster::Cluster;
use attest_tests::cluster::fakelet::{Fakelet, FakeletOptions, Runner};
use attest_tests::fleet::{Hub, Operator, generate_key, program};
use attest_tests::process::{Process, Spec, describe, remove_at_end};
use attest_tests::wait::until;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, RoleBinding};
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::ApiResource;
use kube::{Api, Client};
use serde_json::{Value, json};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(30);
/// Well below the idle timeout of a connection.
const DISCONNECTED_WITHIN: Duration =
    Duration::from_millis(attest_common::session::IDLE_TIMEOUT_MS / 2);
/// Section 9.1 of the product's documentation, unchanged.
const PRINTED: &str = "attest gitops cluster add staging \\\n--kubeconfig ~/.kube/staging-config \\\n\
                       --context staging-cluster\n";

/// An operator with a hub, and CI keys for some environments.
pub(crate) struct Desk {
    // Dropped in this order: the hub before its files.
    pub(crate) hub: Hub,
    pub(crate) operator: Operator,
    pub(crate) directory: TempDir,
}

impl Desk {
    pub(crate) async fn new(environments: &[&str]) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("attest-desk-").tempdir()?;
        remove_at_end(directory.path());
        let operator = Operator::new(&directory.path().join("operator"))?;
        let home = directory.path().join("hub");
        let ports = Hub::init(&operator, &home)?;
        let public = generate_key(&operator, &directory.path().join("ci.key"))?;
        for environment in environments {
            let public = public.display().to_string();
            operator.attest(&[
                "trust",
                "key",
                "add",
                "ci",
                &public,
                "--environment",
                environment,
            ])?;
        }
        let hub = Hub::start(&home, ports, &[]).await?;
        Ok(Self { hub, operator, directory })
    }

    /// The operator's home directory.
    fn home(&self) -> PathBuf {
        self.directory.path().join("operator")
    }

    /// Writes a cluster's kubeconfig where the printed command expects it.
    fn install_kubeconfig(&self, cluster: &Cluster) -> anyhow::Result<PathBuf> {
        let file = self.home().join(".kube/staging-config");
        std::fs::create_dir_all(self.home().join(".kube"))?;
        cluster.write_kubeconfig(&file, "staging-cluster")?;
        Ok(file)
    }

    /// Runs a text in a shell, as if it were typed.
    async fn run_script(&self, text: &str) -> anyhow::Result<Output> {
        let programs = program("attest")?;
        let programs = programs.parent().context("no directory")?.display().to_string();
        let path = std::env::var("PATH").unwrap_or_default();
        let typed = tokio::process::Command::new("sh")
            .args(["-c", text])
            .env("PATH", format!("{programs}:{path}"))
            .env("HOME", self.home())
            .env("ATTEST_CONFIG", self.operator.config())
            .env_remove("KUBECONFIG")
            .stdin(std::process::Stdio::null())
            .output();
        Ok(typed.await?)
    }

    pub(crate) async fn add(
        &self,
        name: &str,
        kubeconfig: &Path,
        more: &str,
    ) -> anyhow::Result<Output> {
        let file = kubeconfig.display();
        let environment =
            if more.contains("--trust-policy") { "" } else { "--environment staging" };
        let line = format!(
            "attest gitops cluster add {name} --kubeconfig {file} {environment} --timeout 60 {more}"
        );
        self.run_script(&line).await
    }
}

/// Starts a cluster whose node runs real spokes.
pub(crate) async fn site(name: &str) -> anyhow::Result<Option<(Fakelet, Cluster)>> {
    let Some(cluster) = Cluster::start(name).await? else { return Ok(None) };
    let runner = Runner::new("attest-spoke", program("attest-spoke")?)
        .env("ATTEST_LISTEN_HEALTH", "127.0.0.1:0")
        .env("ATTEST_LISTEN_METRICS", "127.0.0.1:0");
    let options = FakeletOptions { runners: vec![runner], ..FakeletOptions::default() };
    Ok(Some((Fakelet::start(&cluster, options)?, cluster)))
}

pub(crate) fn policies(client: &Client) -> Api<DynamicObject> {
    let resource = ApiResource {
        group: "attest.continuu.ms".to_owned(),
        version: "v1".to_owned(),
        api_version: "attest.continuu.ms/v1".to_owned(),
        kind: "AttestTrustPolicy".to_owned(),
        plural: "attesttrustpolicies".to_owned(),
    };
    Api::all_with(client.clone(), &resource)
}

pub(crate) async fn policy(client: &Client) -> anyhow::Result<Option<DynamicObject>> {
    match policies(client).get("local").await {
        Ok(found) => Ok(Some(found)),
        // Without the definition, the API server answers with a plain 404.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Edits the installed policy as an operator with kubectl would.
async fn restrict_policy(client: &Client) -> anyhow::Result<()> {
    let patch = json!([{
        "op": "replace", "path": "/spec/applications/0/namespaces", "value": ["web-*"]
    }]);
    let patch: Patch<()> = Patch::Json(serde_json::from_value(patch)?);
    policies(client).patch("local", &PatchParams::default(), &patch).await?;
    Ok(())
}

async fn secret(client: &Client, name: &str) -> anyhow::Result<Option<Secret>> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "attest-spoke");
    Ok(secrets.get_opt(name).await?)
}

pub(crate) async fn join_token_deleted(client: &Client) -> anyhow::Result<()> {
    until("the join token to be deleted", SOON, || async {
        Ok(secret(client, "attest-join").await?.is_none().then_some(()))
    })
    .await
}

async fn is_untouched(client: &Client) -> anyhow::Result<bool> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    Ok(namespaces.get_opt("attest-spoke").await?.is_none() && policy(client).await?.is_none())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_printed_command_registers_a_cluster_and_leaves_nothing_behind() -> anyhow::Result<()> {
    let Some((fakelet, cluster)) = site("staging").await? else { return Ok(()) };
    let mut desk = Desk::new(&["staging"]).await?;
    let kubeconfig = desk.install_kubeconfig(&cluster)?;
    let client = cluster.client().await?;

    let output = desk.run_script(PRINTED).await?;

    assert!(output.status.success(), "{}\n{}", describe(&output), desk.hub.process().output());
    let out = String::from_utf8(output.stdout)?;
    assert_eq!(out, "cluster/staging registered\n");
    let diagnostics = String::from_utf8(output.stderr)?;
    for part in
        ["[preflight]", "AttestTrustPolicy/local", "minimumMode: Strict", "attest gitops app apply"]
    {
        assert!(diagnostics.contains(part), "{part}: {diagnostics}");
    }
    // The hub counts the process that was started from the pod template as connected.
    let started = fakelet.processes();
    assert!(
        started.iter().any(|(pod, _)| pod.starts_with("attest-spoke/attest-spoke")),
        "{started:?}"
    );
    let listed = desk.operator.json(&["gitops", "cluster", "list"])?;
    let entry = &listed["items"][0];
    assert_eq!(
        (&entry["name"], &entry["connected"]),
        (&"staging".into(), &true.into()),
        "{listed}"
    );
    let installed = policy(&client).await?.context("no policy")?;
    assert_eq!(installed.data["status"]["clusterId"], entry["id"]);
    assert_eq!(installed.data["spec"]["clusterName"], "staging");
    join_token_deleted(&client).await?;
    cluster.audit().check_spoke_requests()?;
    holds_no_secret_of(&kubeconfig, &[desk.hub.home()])?;

    // A second run replaces nothing.
    let again = desk.run_script(PRINTED).await?;
    assert!(again.status.success(), "{}", describe(&again));
    let relisted = desk.operator.json(&["gitops", "cluster", "list"])?;
    assert_eq!(relisted["items"][0]["id"], entry["id"]);
    assert_eq!(relisted["items"].as_array().map(Vec::len), Some(1));

    // A policy that its operator has restricted is replaced only on request.
    restrict_policy(&client).await?;
    let refused = desk.run_script(PRINTED).await?;
    let text = describe(&refused);
    assert_eq!(refused.status.code(), Some(3), "{text}");
    for part in ["spec.applications[0].namespaces[0]", "- web-*", "+ *", "--replace-policy"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let kept = policy(&client).await?.context("no policy")?;
    assert_eq!(kept.data["spec"]["applications"][0]["namespaces"][0], "web-*");
    let replaced = desk.add("staging", &kubeconfig, "--replace-policy").await?;
    assert!(replaced.status.success(), "{}", describe(&replaced));
    let installed = policy(&client).await?.context("no policy")?;
    assert_eq!(installed.data["spec"]["applications"][0]["namespaces"][0], "*");

    // Removed and added again: the same line gives a new identity.
    desk.operator.attest(&["gitops", "cluster", "rm", "staging", "-y"])?;
    let re_added = desk.run_script(PRINTED).await?;
    assert!(re_added.status.success(), "{}\n{}", describe(&re_added), desk.hub.process().output());
    let relisted = desk.operator.json(&["gitops", "cluster", "list"])?;
    assert_ne!(relisted["items"][0]["id"], entry["id"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_with_an_expired_certificate_reports_it_and_keeps_its_identity()
-> anyhow::Result<()> {
    let Some((fakelet, cluster)) = site("asleep").await? else { return Ok(()) };
    let desk = Desk::new(&["staging"]).await?;
    let client = cluster.client().await?;
    let kubeconfig = cluster.kubeconfig();
    let added = desk.add("staging", &kubeconfig, "").await?;
    assert!(added.status.success(), "{}", describe(&added));
    let before = desk.operator.json(&["gitops", "cluster", "get", "staging"])?;
    join_token_deleted(&client).await?;
    let trusted = policy(&client).await?.context("no policy")?.data["spec"].clone();
    let file = kubeconfig.display().to_string();
    let rejoin = ["gitops", "cluster", "rejoin", "staging", "--kubeconfig", &file];
    assert!(desk.operator.attest(&rejoin)?.contains("is connected"));

    // Weeks later: the certificate expired while the cluster was off.
    let ended = certify(&client, desk.hub.home(), Duration::from_secs(1)).await?;
    until("the certificate to expire", SOON, || async {
        Ok((ended.not_after <= SystemTime::now()).then_some(()))
    })
    .await?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "attest-spoke");
    pods.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
    let log = until("the spoke to log the remedy", SOON, || async {
        let log = fakelet.output("attest-spoke/attest-spoke");
        Ok(log.contains("attest gitops cluster rejoin staging --kubeconfig F").then_some(log))
    });
    let log = log.await.with_context(|| fakelet.output("attest-spoke/attest-spoke"))?;
    // The health address of the pod that logged it; other pods log too.
    let (begin, _) = log.split_once("cluster rejoin staging").context("no remedy")?;
    let health = begin.lines().rev().find_map(|line| {
        let line: Value = serde_json::from_str(line).ok()?;
        Some(line.pointer("/fields/health")?.as_str()?.to_owned())
    });
    let health = health.with_context(|| log.clone())?;
    let http = reqwest::Client::builder().no_proxy().build()?;
    let ready = http.get(format!("http://{health}/ready")).send().await?;
    assert_eq!(ready.status(), 503);
    let ready = ready.text().await?;
    assert!(ready.contains("CertificateExpired") && ready.contains("rejoin staging"), "{ready}");
    let status = desk.operator.attest(&["spoke", "status", "--kubeconfig", &file])?;
    assert!(status.contains("CertificateExpired"), "{status}");

    // Only the operator can let it rejoin: any number of clients may hold the expired certificate, and
    // none is accepted because of it.
    let seen = desk.operator.json(&["gitops", "cluster", "get", "staging"])?;
    assert_eq!(seen["connected"], false);
    let output = desk.operator.try_attest(&rejoin)?;
    let why = format!("{}\n{}", describe(&output), fakelet.output("attest-spoke/attest-spoke"));
    assert!(output.status.success(), "{why}");

    let after = desk.operator.json(&["gitops", "cluster", "get", "staging"])?;
    for field in ["id", "name", "fingerprint", "kubeSystemUid", "registeredAt", "default"] {
        assert_eq!(after[field], before[field], "{field}");
    }
    assert_eq!(after["connected"], true);
    let installed = policy(&client).await?.context("no policy")?;
    assert_eq!(installed.data["spec"], trusted);
    assert_eq!(installed.data["status"]["clusterId"], before["id"]);
    join_token_deleted(&client).await?;

    // The same when the certificate is still valid, but the hub no longer accepts it.
    desk.operator.attest(&["gitops", "cluster", "evict", "staging", "-y"])?;
    until("the spoke to log that the hub rejected it", SOON, || async {
        let log = fakelet.output("attest-spoke/attest-spoke");
        Ok(log.contains("ClusterRejected").then_some(()))
    })
    .await?;
    let output = desk.operator.try_attest(&rejoin)?;
    let why = format!("{}\n{}", describe(&output), fakelet.output("attest-spoke/attest-spoke"));
    assert!(output.status.success(), "{why}");
    let after = desk.operator.json(&["gitops", "cluster", "get", "staging"])?;
    assert_eq!((&after["id"], &after["state"]), (&before["id"], &serde_json::json!("Accepted")));
    join_token_deleted(&client).await?;
    cluster.audit().check_spoke_requests()?;
    Ok(())
}

/// Replaces the spoke's certificate by the next one, issued with the hub's authority and unknown to the hub.
pub(crate) async fn certify(client: &Client, hub: &Path, life: Duration) -> anyhow::Result<Issued> {
    let [certificate, key] =
        ["ca.crt", "ca.key"].map(|name| std::fs::read_to_string(hub.join(name)));
    let authority = Authority::from_pem(&certificate?, &key?)?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "attest-spoke");
    let identity = secrets.get("attest-identity").await?.data.context("no data")?;
    let id = String::from_utf8(identity["cluster-id"].0.clone())?;
    let chain = chain_from_pem(std::str::from_utf8(&identity["tls.chain"].0)?)?;
    let generation = peer_identity(&chain)?.generation + 1;
    let request = SigningRequest::generate()?;
    let issued = authority.issue_spoke(&request.csr_der, &id, generation, life)?;
    let data = serde_json::json!({"stringData": {
        "tls.chain": issued.chain_pem(), "tls.key": request.key_pem.as_str(),
    }});
    secrets.patch("attest-identity", &PatchParams::default(), &Patch::Merge(data)).await?;
    Ok(issued)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_are_reported_before_anything_changes() -> anyhow::Result<()> {
    let Some((_fakelet, cluster)) = site("refused").await? else { return Ok(()) };
    let mut desk = Desk::new(&["staging"]).await?;
    let kubeconfig = desk.install_kubeconfig(&cluster)?;
    let client = cluster.client().await?;

    // An unknown context: the error lists the known ones.
    let output = desk.add("staging", &kubeconfig, "--context prod-cluster").await?;
    let text = describe(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("prod-cluster") && text.contains("available contexts: staging-cluster"),
        "{text}"
    );

    // An invalid cluster name: a usage error.
    let output = desk.add("Staging_1", &kubeconfig, "").await?;
    assert_eq!(output.status.code(), Some(2), "{}", describe(&output));

    // No CI key for the environment: the error names the command that adds one.
    let line = format!("attest gitops cluster add prod --kubeconfig {}", kubeconfig.display());
    let output = desk.run_script(&line).await?;
    let text = describe(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("attest trust key add ALIAS FILE --environment prod"), "{text}");

    // An unreachable API server: the error names its address and context.
    let text = std::fs::read_to_string(&kubeconfig)?;
    let closed = desk.home().join("closed");
    std::fs::write(&closed, text.replace(cluster.server(), "https://127.0.0.1:1"))?;
    let output = desk.add("staging", &closed, "").await?;
    let text = describe(&output);
    assert!(text.contains("https://127.0.0.1:1") && text.contains("staging-cluster"), "{text}");

    // A user without rights: the error lists the missing ones.
    let weak = desk.home().join("weak");
    std::fs::write(&weak, cluster.kubeconfig_for("ada", Some("readers"))?)?;
    let output = desk.add("staging", &weak, "").await?;
    assert_eq!(output.status.code(), Some(1), "{}", describe(&output));
    assert!(describe(&output).contains("kube-system"), "{}", describe(&output));

    // A policy for another cluster or another hub, or a malformed one.
    let file = desk.home().join("policy.yaml");
    let shown = file.display().to_string();
    desk.operator.attest(&["trust", "new", "--environment", "staging", "-o", &shown])?;
    let good = std::fs::read_to_string(&file)?;
    for (from, to, expected) in [
        (
            "spec:\n",
            "spec:\n  kubeSystemUid: 00000000-0000-0000-0000-000000000000\n",
            "kubeSystemUid",
        ),
        ("spec:\n", "spec:\n  clusterName: other\n", "clusterName"),
        ("minimumMode: Strict", "minimumMode: Audit", "minimumMode"),
        ("spec:\n", "spec:\n  enviroment: x\n", "enviroment"),
        ("    - sha256:", "    - sha256:f0", "certificate authority"),
    ] {
        assert!(good.contains(from), "{good}");
        std::fs::write(&file, good.replacen(from, to, 1))?;
        let output = desk.add("staging", &kubeconfig, &format!("--trust-policy {shown}")).await?;
        assert!(!output.status.success(), "{to}");
        assert!(describe(&output).contains(expected), "{expected}: {}", describe(&output));
    }

    // A dry run succeeds and changes nothing.
    let output = desk.add("staging", &kubeconfig, "--dry-run").await?;
    assert!(output.status.success(), "{}", describe(&output));

    // So does one whose policy is narrowed, and shown.
    let narrowed =
        "--dry-run --names web --repos https://git.example/a --namespaces shop --allow-remove";
    let text = describe(&desk.add("staging", &kubeconfig, narrowed).await?);
    for part in ["- web\n", "- https://git.example/a\n", "- shop\n", "allow: true\n"] {
        assert!(text.contains(part), "{part}: {text}");
    }

    // An unreachable hub: the error names its address and context.
    desk.hub.process().kill();
    let output = desk.add("staging", &kubeconfig, "").await?;
    let text = describe(&output);
    assert!(text.contains("failed to reach hub `main` at https://127.0.0.1:"), "{text}");

    assert!(is_untouched(&client).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_right_is_named_before_anything_changes() -> anyhow::Result<()> {
    let Some((_fakelet, cluster)) = site("nearly").await? else { return Ok(()) };
    let desk = Desk::new(&["staging"]).await?;
    let client = cluster.client().await?;
    let kubeconfig = desk.home().join("ada");
    std::fs::write(&kubeconfig, cluster.kubeconfig_for("ada", Some("fleet"))?)?;
    const REFUSED: &str = "lacks permissions required for an installation: ";

    for (verb, resource, more, missing) in [
        (
            "patch",
            "attesttrustpolicies/status",
            "",
            "attesttrustpolicies.attest.continuu.ms/status",
        ),
        ("create", "serviceaccounts/token", "--agent external", "serviceaccounts/token in attest-"),
        ("deletecollection", "pods", "", "pods in attest-spoke"),
        ("list", "clusterroles", "", "clusterroles.rbac.authorization.k8s.io"),
        ("delete", "rolebindings", "", "rolebindings.rbac.authorization.k8s.io"),
        ("create", "deployments", "", "deployments.apps in attest-spoke"),
    ] {
        allow_all_but(&client, "fleet", Some((verb, resource))).await?;
        let is_accepted = preflight_succeeds(&desk, &kubeconfig, more, &[REFUSED, missing]).await;
        assert!(!is_accepted.with_context(|| format!("{verb} {resource}"))?);
        assert!(is_untouched(&client).await?, "{verb} {resource}");
    }

    // Commands that change a spoke's records check their own rights before they read the records.
    for line in ["accept-state", "reset web-app -n shop"] {
        let line = format!("attest spoke {line} --yes --kubeconfig {}", kubeconfig.display());
        let text = describe(&desk.run_script(&line).await?);
        let refused =
            "required for a change of the spoke's records: update secrets in attest-spoke";
        assert!(text.contains(refused), "{text}");
    }

    // With all rights it succeeds.
    allow_all_but(&client, "fleet", None).await?;
    let is_accepted =
        preflight_succeeds(&desk, &kubeconfig, "--dry-run", &["can be registered"]).await;
    assert!(is_accepted?);
    assert!(is_untouched(&client).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_of_other_owners_are_not_adopted() -> anyhow::Result<()> {
    let Some((_fakelet, cluster)) = site("before").await? else { return Ok(()) };
    let desk = Desk::new(&["staging"]).await?;
    let client = cluster.client().await?;
    let kubeconfig = desk.install_kubeconfig(&cluster)?;
    let mut namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "attest-spoke"}});

    apply(&client, &namespace).await?;
    let text = describe(&desk.add("staging", &kubeconfig, "--dry-run").await?);
    assert!(text.contains("namespace attest-spoke was not created by an installation"), "{text}");
    assert!(text.contains("kubectl label namespace attest-spoke app.kubernetes.io/"), "{text}");

    namespace["metadata"]["labels"] = json!({"app.kubernetes.io/managed-by": "attest-install"});
    apply(&client, &namespace).await?;
    let place = json!({"name": "readers", "namespace": "attest-spoke"});
    apply(&client, &json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": place,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "eve"}]
    }))
    .await?;
    apply(&client, &json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": place}))
        .await?;
    apply(
        &client,
        &json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": "attest-spoke", "namespace": "attest-spoke"}
        }),
    )
    .await?;
    apply(
        &client,
        &json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
            "metadata": {
                "name": "kept", "namespace": "attest-spoke",
                "annotations": {"kubernetes.io/service-account.name": "attest-spoke"}
            }
        }),
    )
    .await?;
    let text = describe(&desk.add("staging", &kubeconfig, "--dry-run").await?);
    for foreign in ["RoleBinding/attest-spoke/readers", "ServiceAccount/attest-spoke/readers"] {
        assert!(text.contains(foreign), "{foreign}: {text}");
    }
    assert!(text.contains("Secret/attest-spoke/kept"), "{text}");

    let system: Api<Secret> = Api::namespaced(client.clone(), "attest-spoke");
    system.delete("kept", &DeleteParams::default()).await?;
    let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), "attest-spoke");
    bindings.delete("readers", &DeleteParams::default()).await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "attest-spoke");
    accounts.delete("readers", &DeleteParams::default()).await?;
    let text = describe(&desk.add("staging", &kubeconfig, "--dry-run").await?);
    assert!(text.contains("cluster/staging can be registered"), "{text}");

    // Earlier versions installed the spoke in the namespace that belongs to the hub now.
    let earlier = json!({"name": "attest-spoke", "namespace": "attest-system"});
    for manifest in [
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "attest-system"}}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": earlier}),
    ] {
        apply(&client, &manifest).await?;
    }
    let text = describe(&desk.add("staging", &kubeconfig, "--dry-run").await?);
    assert!(text.contains("a spoke of an earlier version, in namespace attest-system"), "{text}");
    assert!(
        text.contains("-n attest-system delete --ignore-not-found deployment/attest-spoke"),
        "{text}"
    );
    Ok(())
}

/// Applies a manifest as a client other than the installer.
async fn apply(client: &Client, manifest: &Value) -> anyhow::Result<()> {
    let target = ObjectRef::from_manifest(manifest)?;
    let parameters = PatchParams::apply("another-client");
    target.api(client).patch(&target.name, &parameters, &Patch::Apply(manifest)).await?;
    Ok(())
}

/// Returns whether `cluster add` prints these words and succeeds. A change of a role takes effect when
/// the API server's authorizer has seen it.
async fn preflight_succeeds(
    desk: &Desk,
    kubeconfig: &Path,
    more: &str,
    words: &[&str],
) -> anyhow::Result<bool> {
    until("the preflight to print the expected words", SOON, || async {
        let output = desk.add("staging", kubeconfig, more).await?;
        let text = describe(&output);
        Ok(words.iter().all(|word| text.contains(word)).then_some(output.status.success()))
    })
    .await
}

/// Gives a group the rights of an installation, except one verb on one resource.
async fn allow_all_but(
    client: &Client,
    group: &str,
    lacking: Option<(&str, &str)>,
) -> anyhow::Result<()> {
    let verbs =
        ["get", "list", "create", "patch", "delete", "deletecollection", "bind", "escalate"];
    let resources = [
        "namespaces",
        "secrets",
        "pods",
        "serviceaccounts",
        "serviceaccounts/token",
        "deployments",
        "customresourcedefinitions",
        "clusterroles",
        "clusterrolebindings",
        "roles",
        "rolebindings",
        "validatingadmissionpolicies",
        "validatingadmissionpolicybindings",
        "attesttrustpolicies",
        "attesttrustpolicies/status",
    ];
    let rules: Vec<Value> = resources
        .into_iter()
        .map(|resource| {
            let verbs: Vec<&str> =
                verbs.into_iter().filter(|verb| lacking != Some((*verb, resource))).collect();
            serde_json::json!({"apiGroups": ["*"], "resources": [resource], "verbs": verbs})
        })
        .collect();
    let role = serde_json::json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": group}, "rules": rules
    });
    let binding = serde_json::json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": group},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": group},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group}]
    });
    let parameters = PatchParams::apply("test").force();
    let roles: Api<ClusterRole> = Api::all(client.clone());
    roles.patch(group, &parameters, &Patch::Apply(&role)).await?;
    let bindings: Api<ClusterRoleBinding> = Api::all(client.clone());
    bindings.patch(group, &parameters, &Patch::Apply(&binding)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_name_is_unique_and_replaced_only_on_request() -> anyhow::Result<()> {
    let Some((_one, first)) = site("first").await? else { return Ok(()) };
    let Some((_two, second)) = site("second").await? else { return Ok(()) };
    let desk = Desk::new(&["staging"]).await?;
    let output = desk.add("shop", &first.kubeconfig(), "").await?;
    assert!(output.status.success(), "{}", describe(&output));
    let before = desk.operator.json(&["gitops", "cluster", "get", "shop"])?;

    let output = desk.add("shop", &second.kubeconfig(), "").await?;

    let id = before["id"].as_str().context("no id")?;
    assert!(!output.status.success());
    assert!(
        describe(&output).contains(id) && describe(&output).contains("--replace"),
        "{}",
        describe(&output)
    );
    assert!(is_untouched(&second.client().await?).await?);

    let output = desk.add("shop", &second.kubeconfig(), "--replace --label tier=gold").await?;
    assert!(output.status.success(), "{}", describe(&output));
    for (selector, clusters) in [("tier=gold", 1), ("tier=silver", 0)] {
        let list = desk.operator.json(&["gitops", "cluster", "list", "-l", selector])?;
        assert_eq!(list["items"].as_array().map(Vec::len), Some(clusters), "{selector} {list}");
    }
    let after = desk.operator.json(&["gitops", "cluster", "get", "shop"])?;
    assert_ne!(after["id"], before["id"]);
    assert_ne!(after["kubeSystemUid"], before["kubeSystemUid"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_external_spoke_runs_with_the_printed_line() -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;

    let Some((_fakelet, cluster)) = site("outside").await? else { return Ok(()) };
    // On the hub's machine the hub listens on these ports; here the test does.
    let _occupied_ports = ["127.0.0.1:8080", "127.0.0.1:8081"].map(std::net::TcpListener::bind);
    let desk = Desk::new(&["staging"]).await?;
    let kubeconfig = cluster.kubeconfig().display().to_string();
    let log = desk.directory.path().join("spoke.log");
    let mut adding = tokio::process::Command::from(desk.operator.command([
        "gitops",
        "cluster",
        "add",
        "staging",
        "--kubeconfig",
        &kubeconfig,
        "--agent",
        "external",
    ]))
    .stdout(std::process::Stdio::piped())
    .stderr(std::process::Stdio::null())
    .kill_on_drop(true)
    .spawn()?;
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(
        adding.stdout.take().context("no output")?,
    ));

    let line = lines.next_line().await?.context("no line")?;
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words.first(), Some(&"attest-spoke"), "{line}");
    let file = words.iter().position(|word| *word == "--kubeconfig").context("no kubeconfig")?;
    let file = Path::new(words[file + 1]);
    let spoke = Spec::new(program("attest-spoke")?, log).args(words.iter().skip(1).copied());
    let spoke = Process::spawn(spoke)?;

    assert_eq!(lines.next_line().await?.as_deref(), Some("cluster/staging registered"));
    assert!(adding.wait().await?.success());
    assert_eq!(std::fs::metadata(file)?.permissions().mode() & 0o777, 0o600);
    assert!(!std::fs::read_to_string(file)?.contains("client-key-data"));
    holds_no_secret_of(&cluster.kubeconfig(), &[desk.hub.home(), &desk.home()])?;
    cluster.audit().check_spoke_requests()?;

    // On SIGTERM it closes the session: the hub does not wait for the idle timeout.
    spoke.terminate();
    until("the hub to notice that the spoke stopped", DISCONNECTED_WITHIN, || async {
        let clusters: Value = serde_json::from_str(
            &desk.operator.attest(&["gitops", "cluster", "list", "-o", "json"])?,
        )?;
        let connected = clusters.pointer("/items/0/connected").context("no cluster")?;
        Ok((connected == &Value::Bool(false)).then_some(()))
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoke_that_moves_out_of_its_cluster_leaves_none_behind() -> anyhow::Result<()> {
    let Some((_fakelet, cluster)) = site("moving").await? else { return Ok(()) };
    let desk = Desk::new(&["staging"]).await?;
    let kubeconfig = cluster.kubeconfig();
    let output = desk.add("staging", &kubeconfig, "").await?;
    assert!(output.status.success(), "{}", describe(&output));
    let client = cluster.client().await?;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "attest-spoke");
    let pods: Api<Pod> = Api::namespaced(client.clone(), "attest-spoke");

    let rehearsed = desk.add("staging", &kubeconfig, "--agent external --dry-run").await?;

    let named = "to be removed, because the spoke will run outside the cluster: Deployment/attest-spoke/attest-spoke";
    assert!(describe(&rehearsed).contains(named), "{}", describe(&rehearsed));
    assert!(deployments.get_opt("attest-spoke").await?.is_some());

    // The printed line is not started: the cluster must not keep a spoke even so.
    let line = format!(
        "attest gitops cluster add staging --kubeconfig {} --agent external --timeout 10",
        kubeconfig.display()
    );
    let moved = desk.run_script(&line).await?;

    assert!(describe(&moved).contains("attest-spoke --kubeconfig"), "{}", describe(&moved));
    assert!(deployments.get_opt("attest-spoke").await?.is_none(), "{}", describe(&moved));
    assert!(secret(&client, "attest-join").await?.is_none());
    assert!(pods.list(&ListParams::default()).await?.items.is_empty());

    // The most frequent mistake: the kubeconfig of a cluster that is already registered under another
    // name.
    let mistaken = desk.add("production", &kubeconfig, "").await?;

    assert!(!mistaken.status.success());
    assert!(
        describe(&mistaken).contains("already registered as staging"),
        "{}",
        describe(&mistaken)
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoke_with_a_token_waits_until_its_fingerprint_is_accepted() -> anyhow::Result<()> {
    let Some((_fakelet, cluster)) = site("agent").await? else { return Ok(()) };
    let desk = Desk::new(&["staging"]).await?;
    let operator = &desk.operator;
    let [policy_file, token_file, kubeconfig_file, log_file] =
        ["policy.yaml", "token", "spoke.kubeconfig", "spoke.log"]
            .map(|name| desk.directory.path().join(name).display().to_string());
    let kubeconfig = cluster.kubeconfig().display().to_string();
    let new = ["trust", "new", "--environment", "staging", "--cluster-name", "staging"];
    operator.attest(&[&new[..], &["-o", &policy_file]].concat())?;
    let install = ["trust", "install", &policy_file, "--kubeconfig", &kubeconfig, "-y"];
    operator.attest(&install)?;
    operator.attest(&[
        "gitops",
        "cluster",
        "token",
        "create",
        "staging",
        "--token-output",
        &token_file,
    ])?;
    // The cluster's owner runs the spoke with one of her own account tokens.
    let client = cluster.client().await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "attest-spoke");
    let request = serde_json::from_value(serde_json::json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {},
        "spec": {"audiences": [], "expirationSeconds": 3600}
    }))?;
    let token =
        accounts.create_token_request("attest-spoke", &Default::default(), &request).await?;
    let token = token.status.and_then(|status| status.token).context("no token")?;
    let authority = data_encoding::BASE64.encode(cluster.authority_pem().as_bytes());
    let config = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {
            "server": cluster.server(), "certificate-authority-data": authority
        }}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]
    });
    std::fs::write(&kubeconfig_file, config.to_string())?;
    let spoke = Process::spawn(Spec::new(program("attest-spoke")?, &log_file).args([
        "--kubeconfig",
        &kubeconfig_file,
        "--hub",
        &desk.hub.addresses().spokes,
        "--join-token-file",
        &token_file,
        "--listen-health",
        "127.0.0.1:0",
        "--listen-metrics",
        "127.0.0.1:0",
    ]))?;
    let pending = until("the cluster to be pending", SOON, || async {
        let listed = operator.json(&["gitops", "cluster", "list"])?;
        Ok(listed["items"].get(0).filter(|cluster| cluster["state"] == "Pending").cloned())
    });
    let pending: Value = pending.await.with_context(|| spoke.output())?;
    let fingerprint = pending["fingerprint"].as_str().context("no fingerprint")?;
    assert!(spoke.output().contains(fingerprint), "{fingerprint}: {}", spoke.output());

    let accept = ["gitops", "cluster", "accept", "staging", "--fingerprint"];
    let wrong = operator.try_attest(&[&accept[..], &["SHA256:wrong"]].concat())?;
    assert!(!wrong.status.success(), "{}", describe(&wrong));
    operator.attest(&[&accept[..], &[fingerprint, "--kubeconfig", &kubeconfig]].concat())?;

    until("the cluster to be connected", SOON, || async {
        let seen = operator.json(&["gitops", "cluster", "get", "staging"])?;
        Ok((seen["connected"] == true).then_some(()))
    })
    .await
    .with_context(|| spoke.output())?;
    let installed = policy(&client).await?.context("no policy")?;
    assert_eq!(installed.data["status"]["clusterId"], pending["id"]);
    for (flag, value) in [("--cluster-id", "c-0000000000000000"), ("--cluster-name", "production")]
    {
        let other = operator.try_attest(&[&install[..], &[flag, value]].concat())?;
        assert!(
            !other.status.success() && describe(&other).contains(value),
            "{}",
            describe(&other)
        );
    }
    let id = pending["id"].as_str().context("no id")?;
    operator.attest(&[&install[..], &["--cluster-id", id]].concat())?;
    let installed = policy(&client).await?.context("no policy")?;
    assert_eq!(installed.data["status"]["clusterId"], pending["id"]);

    // Revoked: the connection ends, and the spoke cannot reconnect.
    operator.attest(&["gitops", "cluster", "revoke", "staging", "-y", "--reason", "test"])?;
    until("the cluster to be revoked", SOON, || async {
        let seen = operator.json(&["gitops", "cluster", "get", "staging"])?;
        Ok((seen["connected"] == false && seen["state"] == "Revoked").then_some(()))
    })
    .await
}

/// Checks that no file below these directories contains a secret of the kubeconfig, except the
/// operator's kubeconfigs.
fn holds_no_secret_of(kubeconfig: &Path, directories: &[&Path]) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(kubeconfig)?;
    let secrets: Vec<String> = text
        .lines()
        .filter_map(|line| line.trim().split_once(": "))
        .filter(|(key, _)| matches!(*key, "client-key-data" | "client-certificate-data" | "token"))
        .flat_map(|(_, value)| {
            let value = value.trim().trim_matches('"').to_owned();
            let decoded = data_encoding::BASE64.decode(value.as_bytes()).unwrap_or_default();
            // PEM: the lines between the borders, in case it was re-encoded.
            let pem = String::from_utf8_lossy(&decoded).into_owned();
            let lines = pem.lines().filter(|line| line.len() > 40 && !line.starts_with("---"));
            lines.map(str::to_owned).chain([value]).collect::<Vec<_>>()
        })
        .collect();
    anyhow::ensure!(secrets.len() >= 2, "the kubeconfig has no secrets to look for");
    let mut left: Vec<PathBuf> =
        directories.iter().map(|directory| directory.to_path_buf()).collect();
    let mut files = 0;
    while let Some(path) = left.pop() {
        if path.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                left.push(entry?.path());
            }
        } else if path.file_name().is_none_or(|name| name != "staging-config") {
            let bytes = std::fs::read(&path)?;
            files += 1;
            for secret in &secrets {
                let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
                assert!(!found, "{} holds a secret of the kubeconfig", path.display());
            }
        }
    }
    anyhow::ensure!(files > 3, "too few files were searched");
    Ok(())
}
