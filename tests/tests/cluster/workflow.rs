//! The workflow of the product document, unchanged step by step, deploys under Strict on a real API
//! server.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use attest_tests::cluster::binaries::Binaries;
use attest_tests::fleet::program;
use attest_tests::real::RealFleet;
use attest_tests::wait::until;
use attest_tests::workload::copy_tree;
use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use serde_json::{Value, json};

const WITHIN: Duration = Duration::from_secs(60);
const WORKFLOW: &str = include_str!("../../sample/flat/.github/workflows/deploy.yml");

/// The `run:` scripts of the workflow, with the one substitution that GitHub makes.
fn scripts(sha: &str) -> anyhow::Result<Vec<String>> {
    let workflow: Value = serde_saphyr::from_str(WORKFLOW)?;
    let steps = workflow["jobs"]["deploy"]["steps"].as_array().context("steps")?;
    let runs = steps.iter().filter_map(|step| step.get("run").and_then(Value::as_str));
    Ok(runs.map(|script| script.replace("${{ github.sha }}", sha)).collect())
}

fn run(fleet: &RealFleet, script: &str, sha: &str, yq: &Path) -> anyhow::Result<()> {
    let attest = program("attest")?;
    let directories = [attest.parent(), yq.parent()];
    let mut path: Vec<_> = directories.into_iter().flatten().map(Path::to_owned).collect();
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .current_dir(fleet.repository().tree())
        .env("PATH", std::env::join_paths(path)?)
        .env("ATTEST_CONFIG", fleet.operator().config())
        .env("ATTEST_SIGNING_KEY", std::fs::read_to_string(fleet.key())?)
        .env("GITHUB_SHA", sha)
        .env("GITHUB_REF_NAME", "main")
        .output()?;
    ensure!(
        output.status.success(),
        "`{script}` ended with {}:\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_workflow_deploys_under_strict() -> anyhow::Result<()> {
    let Some(fleet) = RealFleet::start(&[("staging", "staging")]).await? else { return Ok(()) };
    let Some(yq) = Binaries::extra("yq")? else { return Ok(()) };
    // The sample is also signed for production, and CI verifies what it signs for every environment.
    let public = fleet.key().with_extension("pub").display().to_string();
    let add = ["trust", "key", "add", "ci", &public, "--environment", "staging,production"];
    fleet.operator().attest(&add)?;
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("sample");
    let tree = fleet.repository().tree();
    copy_tree(&samples.join("web-app"), tree, &["k8s", "attest.yaml", "out"])?;
    copy_tree(&samples.join("flat"), tree, &[])?;
    let recipe = std::fs::read_to_string(tree.join("attest.yaml"))?;
    let ours = recipe.replace("https://git.example/company/web-app", &fleet.repository().url());
    std::fs::write(tree.join("attest.yaml"), ours)?;
    std::fs::write(tree.join(".gitignore"), "out/\n")?;
    let sha = fleet.repository().commit_and_push("The application")?;
    fleet.repository().git(&["branch", "-q", "--set-upstream-to=origin/main", "main"])?;

    for script in scripts(&sha)? {
        run(&fleet, &script, &sha, &yq)?;
    }

    let manifest = json!({
        "apiVersion": "attest.continuu.ms/v1", "kind": "AttestApplication",
        "metadata": {"name": "web-app"},
        "spec": {
            "source": {"repoUrl": fleet.repository().url(), "path": "k8s"},
            "destination": {"namespace": "web-app"},
            "verification": {"enabled": true, "policy": "Strict",
                "receiptVerification": {"required": true,
                    "requiredAttestations": ["build", "test", "security-scan"]}},
        },
    });
    let _: Value = fleet.api().call("PUT", "/v1/applications", Some(&manifest)).await?;
    fleet.wait_synced("web-app", WITHIN).await?;
    let client = fleet.sites()[0].cluster.client().await?;
    let deployments: Api<Deployment> = Api::namespaced(client, "web-app");
    until("the signed image to run", WITHIN, || async {
        let found = deployments.get("web-app").await?;
        let containers = found.spec.template.spec.context("pod")?.containers;
        let image = containers.into_iter().next().and_then(|c| c.image).unwrap_or_default();
        Ok(image.starts_with(&format!("myapp:{sha}@sha256:")).then_some(()))
    })
    .await?;
    fleet.check_spoke_requests()?;
    Ok(())
}
