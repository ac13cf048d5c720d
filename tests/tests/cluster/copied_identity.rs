//! A copied spoke identity: two real spokes in two clusters, of which one has the Secret of the other.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use attest_tests::cluster::Cluster;
use attest_tests::fleet::program;
use attest_tests::process::{Process, Spec, describe};
use attest_tests::wait::until;
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::{Api, Client};

use crate::registration::{Desk, certify, join_token_deleted, policy, site};

const SOON: Duration = Duration::from_secs(60);
/// Lifetime of a certificate that is due for renewal when the spoke reads it.
const NEARLY_OVER: Duration = Duration::from_secs(60);

fn identities(client: &Client) -> Api<Secret> {
    Api::namespaced(client.clone(), "attest-spoke")
}

/// Installs the policy and the identity of another cluster, and starts a spoke with them.
async fn start_copy(
    cluster: &Cluster,
    identity: Secret,
    desk: &Desk,
    original: &Client,
) -> anyhow::Result<Process> {
    let directory = desk.directory.path();
    let mut spec = policy(original).await?.context("no policy")?.data["spec"].clone();
    spec.as_object_mut().context("no spec")?.remove("kubeSystemUid");
    let file = directory.join("copied-policy.json");
    let document = serde_json::json!({
        "apiVersion": "attest.continuu.ms/v1", "kind": "AttestTrustPolicy",
        "metadata": {"name": "local"}, "spec": spec,
    });
    std::fs::write(&file, document.to_string())?;
    let id = identity.data.as_ref().and_then(|data| data.get("cluster-id")).context("no id")?;
    let id = String::from_utf8(id.0.clone())?;
    let (file, kubeconfig) =
        (file.display().to_string(), cluster.kubeconfig().display().to_string());
    desk.operator.attest(&[
        "trust",
        "install",
        &file,
        "--kubeconfig",
        &kubeconfig,
        "--cluster-id",
        &id,
        "-y",
    ])?;
    let client = cluster.client().await?;
    let namespace = ObjectMeta { name: Some("attest-spoke".to_owned()), ..ObjectMeta::default() };
    let namespace = Namespace { metadata: namespace, ..Namespace::default() };
    // The installation may have created it.
    let _ = Api::all(client.clone()).create(&PostParams::default(), &namespace).await;
    let metadata = ObjectMeta { name: Some("attest-identity".to_owned()), ..ObjectMeta::default() };
    let copied =
        Secret { metadata, data: identity.data, type_: identity.type_, ..Secret::default() };
    identities(&client).create(&PostParams::default(), &copied).await?;
    start_spoke(&kubeconfig, &desk.hub.addresses().spokes, &directory.join("copy.log"))
}

fn start_spoke(kubeconfig: &str, hub: &str, log: &Path) -> anyhow::Result<Process> {
    let spec = Spec::new(program("attest-spoke")?, log)
        .args(["--kubeconfig", kubeconfig, "--hub", hub])
        .args(["--listen-health", "127.0.0.1:0", "--listen-metrics", "127.0.0.1:0"]);
    Process::spawn(spec)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copied_identity_is_reported_and_both_holders_stay_out_until_a_rejoin()
-> anyhow::Result<()> {
    let Some((fakelet, cluster)) = site("original").await? else { return Ok(()) };
    let Some(other) = Cluster::start("copy").await? else { return Ok(()) };
    let mut desk = Desk::new(&["staging"]).await?;
    let client = cluster.client().await?;
    let kubeconfig = cluster.kubeconfig();
    let added = desk.add("staging", &kubeconfig, "").await?;
    assert!(added.status.success(), "{}", describe(&added));
    join_token_deleted(&client).await?;
    let stolen = identities(&client).get("attest-identity").await?;
    // The original renews its certificate.
    let issued = certify(&client, desk.hub.home(), NEARLY_OVER).await?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "attest-spoke");
    pods.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
    until("the original to renew its certificate", SOON, || async {
        let data = identities(&client).get("attest-identity").await?.data.context("no data")?;
        Ok((data["tls.chain"].0 != issued.chain_pem().into_bytes()).then_some(()))
    })
    .await
    .with_context(|| fakelet.output("attest-spoke/attest-spoke"))?;

    let copy = start_copy(&other, stolen, &desk, &client).await?;

    until("the copy to be reported", SOON, || async {
        let seen = desk.operator.json(&["gitops", "cluster", "get", "staging"])?;
        Ok((seen["state"] == "IdentityCopied" && seen["connected"] == false).then_some(()))
    })
    .await
    .with_context(|| format!("{}\n{}", copy.output(), desk.operator.config().display()))?;
    let shown = desk.operator.attest(&["gitops", "cluster", "get", "staging"])?;
    assert!(shown.contains("IdentityCopied; run `attest gitops cluster rejoin staging"), "{shown}");
    let listed = desk.operator.attest(&["gitops", "cluster", "list"])?;
    assert!(listed.contains("IdentityCopied"), "{listed}");
    let metrics = format!("http://{}/metrics", desk.hub.addresses().metrics);
    let metrics = reqwest::Client::builder().no_proxy().build()?.get(metrics).send().await?;
    let metrics = metrics.text().await?;
    assert!(metrics.contains("attest_fleet_identity_copies_total 1"), "{metrics}");
    assert!(metrics.contains("attest_fleet_clusters{state=\"IdentityCopied\"} 1"), "{metrics}");
    let log = desk.hub.process().output();
    assert!(log.contains("the cluster's identity was copied"), "{log}");
    until("both spokes to be rejected", SOON, || async {
        let original = fakelet.output("attest-spoke/attest-spoke");
        let both = [original, copy.output()];
        Ok(both.iter().all(|log| log.contains("(IdentityCopied)")).then_some(()))
    })
    .await?;

    // It is durable.
    desk.hub.kill_and_restart().await?;
    let seen = desk.operator.json(&["gitops", "cluster", "get", "staging"])?;
    assert_eq!((&seen["state"], &seen["connected"]), (&"IdentityCopied".into(), &false.into()));

    let file = kubeconfig.display().to_string();
    let rejoin = ["gitops", "cluster", "rejoin", "staging", "--kubeconfig", &file];
    let output = desk.operator.try_attest(&rejoin)?;
    let why = format!("{}\n{}", describe(&output), fakelet.output("attest-spoke/attest-spoke"));
    assert!(output.status.success(), "{why}");

    // The copy stays out and cannot exclude the original again.
    until("the copy to be rejected", SOON, || async {
        Ok(copy.output().contains("(CertificateNotCurrent)").then_some(()))
    })
    .await
    .with_context(|| copy.output())?;
    let seen = desk.operator.json(&["gitops", "cluster", "get", "staging"])?;
    assert_eq!((&seen["state"], &seen["connected"]), (&"Accepted".into(), &true.into()));
    assert_eq!(seen["id"].as_str(), Some(issued.id.name()));
    cluster.audit().check_spoke_requests()?;
    Ok(())
}
