//! Applications as custom resources: applied, watched and deleted with kubectl, on a hub that runs beside the cluster.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use attest_tests::fleet::Repository;
use attest_tests::real::RealFleet;
use attest_tests::wait::until;
use serde_json::Value;

use crate::product::{SINGLE, image};

const WITHIN: Duration = Duration::from_secs(60);
const WITHIN_FLAG: &str = "--timeout=60s";
/// Beginning of the hub's user agent.
const HUB_AGENT: &str = "attest-hub/";

/// Runs kubectl against the hub's cluster. Returns its output, or its error output as an error.
fn kubectl(fleet: &RealFleet, line: &str) -> anyhow::Result<String> {
    kubectl_with(fleet, &line.split(' ').collect::<Vec<_>>())
}

fn kubectl_with(fleet: &RealFleet, arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new("kubectl");
    command.env("KUBECONFIG", fleet.sites()[0].cluster.kubeconfig()).args(arguments);
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let diagnostics = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "kubectl {arguments:?}: {text}{diagnostics}");
    Ok(text)
}

/// Applies a manifest with kubectl.
fn apply(fleet: &RealFleet, manifest: &str) -> anyhow::Result<String> {
    let path = fleet.directory().join("application.yaml");
    std::fs::write(&path, manifest)?;
    kubectl_with(fleet, &["apply", "-f", &path.display().to_string()])
}

/// Returns the application as the API server has it.
fn resource(fleet: &RealFleet, name: &str) -> anyhow::Result<Value> {
    let text = kubectl(fleet, "get attestapplications -A -o json")?;
    let mut all: Value = serde_json::from_str(&text)?;
    let all = all["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
    let mut named = all.into_iter().filter(|resource| resource["metadata"]["name"] == name);
    named.next().with_context(|| format!("no resource {name}"))
}

/// Returns `STATUS REASON MESSAGE` of a condition.
fn condition(resource: &Value, kind: &str) -> String {
    let all = resource["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = all.into_iter().find(|condition| condition["type"] == kind).unwrap_or_default();
    ["status", "reason", "message"]
        .map(|field| found[field].as_str().unwrap_or("-").to_owned())
        .join(" ")
}

async fn condition_becomes(
    fleet: &RealFleet,
    name: &str,
    kind: &str,
    expected: &str,
) -> anyhow::Result<()> {
    let waited = until("a condition", WITHIN, || async {
        Ok(condition(&resource(fleet, name)?, kind).starts_with(expected).then_some(()))
    });
    let found = waited.await;
    found.map_err(|error| {
        error.context(format!("{kind} {expected}: {:#}", resource(fleet, name).unwrap_or_default()))
    })
}

/// Returns the writes of the hub since a mark, as `VERB RESOURCE/NAME`.
fn hub_writes(
    fleet: &RealFleet,
    mark: attest_tests::cluster::audit::Mark,
) -> anyhow::Result<Vec<String>> {
    let events = fleet.sites()[0].cluster.audit().since(mark)?;
    let ours = events.iter().filter(|event| event.user_agent.starts_with(HUB_AGENT));
    Ok(ours.map(|event| format!("{} {:?}", event.verb, event.object())).collect())
}

/// The life of the product document's first application, from `kubectl apply` to `kubectl delete`.
pub(crate) async fn check_life_as_a_resource(
    fleet: &mut RealFleet,
    single: &Repository,
    public_key: &str,
) -> anyhow::Result<()> {
    let manifest = SINGLE.replace("https://github.com/company/web-app", &single.url());
    kubectl(fleet, "create namespace production")?;

    // Contradictions and unknown fields are refused by the API server.
    for (edit, refusal) in [
        (
            ("  destination:\n", "  destinations: [{namespace: a}]\n  destination:\n"),
            "set either destination or",
        ),
        (("    path: k8s\n", "    path: k8s\n    repoURL: https://b\n"), "set repoUrl once"),
        (("    path: k8s\n", "    path: k8s\n    pth: k8s\n"), "unknown field \"spec.source.pth\""),
    ] {
        assert!(manifest.contains(edit.0), "{edit:?}");
        let error = apply(fleet, &manifest.replace(edit.0, edit.1)).unwrap_err().to_string();
        assert!(error.contains(refusal), "{error}");
    }

    // What the hub does not know, or cannot do yet, is named; it is accepted when the hub knows it.
    let checked = manifest.replace(
        "    policy: Strict\n",
        "    policy: Strict\n    policyValidation: {fail_on_violation: true}\n",
    );
    apply(fleet, &checked)?;
    condition_becomes(
        fleet,
        "web-app",
        "Accepted",
        "False FeatureNotAvailable spec.verification.policyValidation",
    )
    .await?;
    apply(fleet, &manifest)?;
    condition_becomes(
        fleet,
        "web-app",
        "Accepted",
        "False KeyUnknown spec.verification.trustedKeys[0]",
    )
    .await?;
    fleet.operator().attest(&["gitops", "key", "add", "ed25519-company-ci-key", public_key])?;
    condition_becomes(fleet, "web-app", "Accepted", "True Accepted").await?;
    kubectl(
        fleet,
        &format!(
            "wait --for=condition=Ready attestapplication/web-app -n production {WITHIN_FLAG}"
        ),
    )?;
    let ran = image(fleet, 0, "web-app").await?;
    assert!(ran.starts_with("myapp:1.2.3@sha256:"), "{ran}");

    let table = kubectl(fleet, "get attestapplications -A")?;
    let rows: Vec<Vec<&str>> =
        table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        rows[0],
        ["NAMESPACE", "NAME", "PHASE", "READY", "REVISION", "STAGE", "VERIFIED", "CLUSTERS", "AGE"]
    );
    let shown = resource(fleet, "web-app")?;
    let short = shown["status"]["shortRevision"].as_str().unwrap();
    assert_eq!(rows[1][..7], ["production", "web-app", "Synced", "True", short, "True", "1/1"]);
    assert_eq!(shown["status"]["destinations"][0]["cluster"], "staging");
    assert_eq!(shown["status"]["observedGeneration"], shown["metadata"]["generation"]);
    let described = kubectl(fleet, "describe attestapplication web-app -n production")?;
    for part in ["Normal   Ready", "Warning  KeyUnknown", "all destinations run the signed commit"]
    {
        assert!(described.contains(part), "{part}: {described}");
    }
    let explained = kubectl(fleet, "explain attestapplication.spec.destinations")?;
    assert!(explained.contains("RemovalUnconfirmed"), "{explained}");

    // A hub that starts again finds everything as it was and writes nothing.
    let quiet = fleet.sites()[0].cluster.audit().mark();
    let epoch = |shown: &Value| shown["destinations"][0]["epoch"].as_u64();
    let before = fleet.operator().json(&["gitops", "app", "get", "web-app"])?;
    fleet.hub().kill_and_restart().await?;
    until("the spoke to be connected again", WITHIN, || async {
        let shown = fleet.operator().json(&["gitops", "app", "get", "web-app"])?;
        let is_back = shown["phase"] == "Synced" && shown["destinations"][0]["connected"] == true;
        Ok((is_back && epoch(&shown) == epoch(&before)).then_some(()))
    })
    .await?;
    let marker = kubectl(fleet, "create configmap idle -n production")?;
    assert!(marker.contains("created"));
    until("the audit log to have what came after", WITHIN, || async {
        let events = fleet.sites()[0].cluster.audit().since(quiet)?;
        Ok(events.iter().any(|event| event.object().name == "idle").then_some(()))
    })
    .await?;
    assert_eq!(hub_writes(fleet, quiet)?, Vec::<String>::new());

    // Deleted while the hub is away: it removes the application when it is back.
    fleet.hub().process().kill();
    kubectl(fleet, "delete attestapplication web-app -n production --wait=false")?;
    fleet.hub().restart().await?;
    kubectl(
        fleet,
        &format!("wait --for=delete attestapplication/web-app -n production {WITHIN_FLAG}"),
    )?;
    let left = kubectl(fleet, "get deployments -n web-app -o name")?;
    assert_eq!(left, "");
    let listed = fleet.operator().json(&["gitops", "app", "list"])?;
    assert_eq!(listed["items"], serde_json::json!([]));

    // The other interface writes the same resource. Released, it leaves everything running.
    let file = fleet.directory().join("application.yaml").display().to_string();
    fleet.operator().attest(&["gitops", "app", "apply", "-f", &file])?;
    kubectl(
        fleet,
        &format!(
            "wait --for=condition=Ready attestapplication/web-app -n production {WITHIN_FLAG}"
        ),
    )?;
    let managers = kubectl(
        fleet,
        "get attestapplication web-app -n production -o json --show-managed-fields",
    )?;
    assert!(managers.contains("attest-cli") && managers.contains("attest-gitops"), "{managers}");
    let released = fleet.operator().attest(&["gitops", "app", "release", "--all"])?;
    assert!(released.contains("1 resource"), "{released}");
    let shown = resource(fleet, "web-app")?;
    assert_eq!(
        (&shown["metadata"]["finalizers"], &shown["status"]["hub"]),
        (&Value::Null, &Value::Null)
    );
    kubectl(fleet, "delete attestapplication web-app -n production")?;
    let left = kubectl(fleet, "get deployments -n web-app -o name")?;
    assert_eq!(left.trim(), "deployment.apps/web-app");
    // It manages resources again when it starts again.
    fleet.hub().kill_and_restart().await?;
    Ok(())
}

/// A destination leaves a resource after a confirmation, and another whose policy forbids the removal keeps the resource
/// until its author lets everything run.
pub(crate) async fn check_removals_of_a_resource(fleet: &RealFleet) -> anyhow::Result<()> {
    let name = "multi-cluster-app";
    let patch = r#"[{"op": "remove", "path": "/spec/destinations/0"}]"#;
    kubectl_with(fleet, &["patch", "attestapplication", name, "--type=json", "-p", patch])?;
    condition_becomes(fleet, name, "Accepted", "False RemovalUnconfirmed this change removes")
        .await?;
    let confirm = "attest.continuu.ms/confirm-removal=staging/app-staging";
    kubectl_with(fleet, &["annotate", "attestapplication", name, confirm])?;
    condition_becomes(fleet, name, "Accepted", "True").await?;
    until("the application to leave", WITHIN, || async {
        let left = kubectl(fleet, "get deployments -n app-staging -o name")?;
        Ok(left.is_empty().then_some(()))
    })
    .await?;

    kubectl_with(fleet, &["delete", "attestapplication", name, "--wait=false"])?;
    condition_becomes(
        fleet,
        name,
        "Deleting",
        "False RemovalRefused the trust policy of cluster production",
    )
    .await?;
    kubectl_with(
        fleet,
        &["annotate", "attestapplication", name, "attest.continuu.ms/orphan=true"],
    )?;
    kubectl(fleet, &format!("wait --for=delete attestapplication/{name} {WITHIN_FLAG}"))?;
    let ran = image(fleet, 1, "app-production").await?;
    assert!(ran.starts_with("myapp:"), "{ran}");
    Ok(())
}
