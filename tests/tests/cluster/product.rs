//! The two applications of the product document (3.1 and 9.2), unchanged except for the repository's
//! address, deployed on real API servers; and their status while they change.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use attest_tests::fleet::Repository;
use attest_tests::real::RealFleet;
use attest_tests::wait::until;
use attest_tests::workload::copy_tree;
use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use serde_json::{Value, json};

use crate::resources::{check_life_as_a_resource, check_removals_of_a_resource};

const WITHIN: Duration = Duration::from_secs(60);
pub(crate) const SINGLE: &str = include_str!("../../sample/product/3.1-application.yaml");
const SEVERAL: &str = include_str!("../../sample/product/9.2-multi-cluster.yaml");

/// Fills a repository with parts of the sample, as an application of this name.
fn check_in(repository: &Repository, application: &str, parts: &[&str]) -> anyhow::Result<()> {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("sample");
    for part in parts {
        copy_tree(&samples.join(part), repository.tree(), &["out"])?;
    }
    let recipe = repository.tree().join("attest.yaml");
    let text = std::fs::read_to_string(&recipe)?
        .replace("https://git.example/company/web-app", &repository.url())
        .replace("application: web-app", &format!("application: {application}"));
    std::fs::write(recipe, text)?;
    std::fs::write(repository.tree().join(".gitignore"), "out/\n")?;
    repository.commit_and_push("The application")?;
    Ok(())
}

/// Releases the content of a repository as CI would: sign, set the image in Git, push.
fn release(fleet: &RealFleet, repository: &Repository, tag: &str) -> anyhow::Result<()> {
    let variables = [("GITHUB_SHA", tag), ("GITHUB_REF_NAME", tag)];
    repository.sign(fleet.operator(), fleet.key(), &variables)?;
    let mut changed = 0;
    for file in ["k8s/deployment.yaml", "k8s/base/deployment.yaml"] {
        let file = repository.tree().join(file);
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        let lines = text.lines().map(|line| match line.split_once("image: myapp:") {
            Some((indent, _)) => format!("{indent}image: myapp:{tag}\n"),
            None => format!("{line}\n"),
        });
        std::fs::write(&file, lines.collect::<String>())?;
        changed += 1;
    }
    assert_eq!(changed, 1);
    repository.commit_and_push(&format!("Release {tag}"))?;
    Ok(())
}

fn apply(fleet: &RealFleet, file: &str, manifest: &str) -> anyhow::Result<()> {
    let path = fleet.directory().join(file);
    std::fs::write(&path, manifest)?;
    fleet.operator().attest(&["gitops", "app", "apply", "-f", &path.display().to_string()])?;
    Ok(())
}

pub(crate) async fn image(
    fleet: &RealFleet,
    site: usize,
    namespace: &str,
) -> anyhow::Result<String> {
    let client = fleet.sites()[site].cluster.client().await?;
    let found = Api::<Deployment>::namespaced(client, namespace).get("web-app").await?;
    let pod = found.spec.template.spec;
    Ok(pod.and_then(|pod| pod.containers.into_iter().next()?.image).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_product_documents_applications_deploy_as_printed() -> anyhow::Result<()> {
    let clusters = [("staging", "staging"), ("production", "production")];
    let Some(mut fleet) = RealFleet::start_with_resources(&clusters).await? else {
        return Ok(());
    };
    let public = fleet.key().with_extension("pub").display().to_string();

    // 3.1: one destination, at a tag, with a key by name; as a resource of the hub's cluster.
    let single = Repository::create(&fleet.directory().join("single"))?;
    copy_steps(&single)?;
    check_in(&single, "web-app", &["flat"])?;
    release(&fleet, &single, "1.2.3")?;
    single.git(&["tag", "v1.2.3"])?;
    single.git(&["push", "-q", "origin", "v1.2.3"])?;
    check_life_as_a_resource(&mut fleet, &single, &public).await?;

    // 9.2: two destinations, each with its overlay; by the other interface.
    check_in(fleet.repository(), "multi-cluster-app", &["web-app"])?;
    release(&fleet, fleet.repository(), "v1")?;
    let manifest = SEVERAL.replace("https://github.com/company/app", &fleet.repository().url());
    apply(&fleet, "several.yaml", &manifest)?;
    fleet.wait_synced("multi-cluster-app", WITHIN).await?;
    for (site, namespace) in [(0, "app-staging"), (1, "app-production")] {
        let ran = image(&fleet, site, namespace).await?;
        assert!(ran.starts_with("myapp:v1@sha256:"), "{namespace}: {ran}");
    }

    // An operator watches while the next release is deployed.
    let watching = ["get multi-cluster-app -w", "list -w"].map(|line| {
        let file = fleet.directory().join(line.replace(' ', "-"));
        let arguments = "gitops app ".to_owned() + line;
        let shown = std::fs::File::create(&file).unwrap();
        let mut command = fleet.operator().command(arguments.split(' '));
        (command.stdout(Stdio::from(shown)).stderr(Stdio::null()).spawn().unwrap(), file)
    });
    for (_, file) in &watching {
        until("what is there to be shown", WITHIN, || async {
            let shown = std::fs::read_to_string(file)?;
            Ok(shown.contains("Synced").then_some(()))
        })
        .await?;
    }
    let before = watching.each_ref().map(|(_, file)| std::fs::read_to_string(file).unwrap());
    release(&fleet, fleet.repository(), "v2")?;
    fleet.operator().attest(&["gitops", "app", "sync", "multi-cluster-app", "--wait"])?;
    until("the new release to be shown to who watches", WITHIN, || async {
        Ok(std::fs::read_to_string(&watching[0].1)?.contains("v2").then_some(()))
    })
    .await?;
    until("a change to be shown in the list", WITHIN, || async {
        Ok((std::fs::read_to_string(&watching[1].1)? != before[1]).then_some(()))
    })
    .await?;
    for (mut child, _) in watching {
        child.kill()?;
        child.wait()?;
    }

    // The same document as YAML and as JSON.
    let get = ["gitops", "app", "get", "multi-cluster-app"];
    let yaml = fleet.operator().attest(&[&get[..], &["-o", "yaml"]].concat())?;
    let mut yaml: Value = serde_saphyr::from_str(&yaml)?;
    let mut json = fleet.operator().json(&get)?;
    assert_eq!(yaml["phase"], "Synced");
    assert_eq!(yaml["destinations"].as_array().map(Vec::len), Some(2));
    for document in [&mut yaml, &mut json] {
        remove_ages(document);
    }
    assert_eq!(yaml, json);
    check_removals_of_a_resource(&fleet).await?;
    fleet.check_spoke_requests()?;
    Ok(())
}

/// Copies the steps that both layouts of the sample share.
fn copy_steps(repository: &Repository) -> anyhow::Result<()> {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("sample/web-app");
    copy_tree(&sample, repository.tree(), &["k8s", "attest.yaml", "out"])
}

/// Removes the fields that depend on the time of the request.
fn remove_ages(document: &mut Value) {
    match document {
        Value::Object(fields) => {
            for (name, value) in fields {
                match name.to_lowercase() {
                    name if name.contains("age") && value.is_number() => *value = json!(0),
                    _ => remove_ages(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(remove_ages),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
