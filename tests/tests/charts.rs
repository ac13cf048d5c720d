//! The chart: equal for Helm 3 and 4, equal to `deploy/`, documented, and with policies that let the hub work.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper of a test fails the test"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use attest_tests::cluster::binaries::Binaries;
use attest_tests::helm::{Helm, chart};
use attest_tests::process::describe;
use serde_json::{Value, json};

#[path = "charts/flows.rs"]
mod flows;

/// Set to write `deploy/` and the chart's copies of the CustomResourceDefinitions.
const UPDATE_VARIABLE: &str = "ATTEST_UPDATE_DEPLOY";
const HUB: &str = "attest-gitops-controller";
/// Installed by `cluster add`, not by the chart: two owners of one object would undo each other's changes.
const SPOKE_DEFINITION: &str = "attesttrustpolicies.yaml";
const DOCUMENTATION: &str = "docs/install-in-kubernetes.md";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The objects of the chart with these arguments of `helm template`.
fn rendered(helm: &Helm, more: &[&str]) -> Vec<Value> {
    let path = chart("gitops-controller").display().to_string();
    // Helm 3 assumes an old version of Kubernetes otherwise.
    let arguments =
        ["template", "attest-gitops", &path, "-n", "attest-system", "--kube-version", "1.37.0"];
    let text = helm.run(&[&arguments, more].concat()).unwrap();
    let mut objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    objects.retain(|object| !object.is_null());
    objects.sort_by_key(Value::to_string);
    objects
}

fn named<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let mut found = objects.iter().filter(|o| o["kind"] == kind && o["metadata"]["name"] == name);
    found.next().unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// Every file below a directory, by its path there.
fn files(directory: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![directory.to_owned()];
    while let Some(current) = open.pop() {
        for entry in fs::read_dir(current).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let below = path.strip_prefix(directory).unwrap().to_owned();
                found.insert(below, fs::read_to_string(&path).unwrap());
            }
        }
    }
    found
}

#[test]
fn helm_3_and_4_render_the_same_objects() {
    let (Some(helm), Some(helm3)) = (Helm::find("helm").unwrap(), Helm::find("helm3").unwrap())
    else {
        return;
    };
    for more in [
        &[][..],
        &["--set", "webhooks.enabled=true,rbac.asDocumented=true,spokes.address=hub:4433"],
        &[
            "--set",
            "persistence.existingClaim=mine,proxy.https=http://proxy:3128,networkPolicy.enabled=false",
        ],
    ] {
        assert_eq!(rendered(&helm, more), rendered(&helm3, more), "{more:?}");
    }
}

#[test]
fn the_files_for_kubectl_are_what_the_chart_renders() {
    let Some(helm) = Binaries::extra("helm").unwrap() else { return };
    let directory = tempfile::tempdir().unwrap();
    let is_update = std::env::var_os(UPDATE_VARIABLE).is_some();
    let deploy = repository().join("deploy");
    let target = if is_update { deploy.clone() } else { directory.path().to_owned() };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all =
        std::iter::once(helm.parent().unwrap().to_owned()).chain(std::env::split_paths(&path));
    let output = Command::new("bash")
        .arg(repository().join("charts/render.sh"))
        .arg(&target)
        .env("PATH", std::env::join_paths(all).unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", describe(&output));

    for part in ["rbac", "controller"] {
        assert_eq!(
            files(&deploy.join(part)),
            files(&target.join(part)),
            "run with {UPDATE_VARIABLE}=1"
        );
    }
    // The CustomResourceDefinitions are made from the types of the hub, and the chart contains copies of its own.
    let copies = chart("gitops-controller").join("files/crds");
    let mut definitions = files(&deploy.join("crds"));
    definitions.remove(Path::new(SPOKE_DEFINITION)).unwrap();
    if is_update {
        for (name, text) in &definitions {
            fs::write(copies.join(name), text).unwrap();
        }
    }
    assert_eq!(definitions, files(&copies), "run with {UPDATE_VARIABLE}=1");
}

#[test]
fn the_schema_refuses_what_the_hub_would_not_do_and_names_the_value() {
    let Some(helm) = Helm::find("helm").unwrap() else { return };
    let path = chart("gitops-controller").display().to_string();
    for (values, expected) in [
        ("controller.verification.enabled=false", "/controller/verification/enabled"),
        (
            "controller.policies.bundle=http://policies.example/bundle",
            "/controller/policies/bundle",
        ),
        ("controller.syncIntervalSeconds=1", "/controller/syncIntervalSeconds"),
        ("controller.replicas=2", "/controller"),
        ("replicas=2", "replicas"),
        ("persistence.emptyDir=true", "/persistence"),
        ("persistence.size=much", "/persistence/size"),
        ("spokes.address=hub.example", "/spokes/address"),
        ("spokes.service.type=ExternalName", "/spokes/service/type"),
        ("api.url=http://hub.example", "/api/url"),
        ("image.digest=sha256:00", "/image/digest"),
        ("podLabels.app=other", "propertyName 'app'"),
    ] {
        let output = helm.command(&["template", "x", &path, "--set", values]).output().unwrap();
        let text = describe(&output);

        assert!(!output.status.success(), "{values} is accepted");
        assert!(text.contains(expected), "{values}: {text}");
    }
}

#[test]
fn every_value_is_documented() {
    let text = fs::read_to_string(chart("gitops-controller").join("values.yaml")).unwrap();
    let values: Value = serde_saphyr::from_str(&text).unwrap();
    let page = fs::read_to_string(repository().join(DOCUMENTATION)).unwrap();
    let mut names = Vec::new();
    leaves("", &values, &mut names);

    let missing: Vec<&String> =
        names.iter().filter(|name| !page.contains(&format!("`{name}`"))).collect();

    assert!(names.len() > 40, "{names:?}");
    assert_eq!(missing, [""; 0], "not in {DOCUMENTATION}");
}

/// Names of values: every path to something that is not a map with fixed keys.
fn leaves(prefix: &str, value: &Value, names: &mut Vec<String>) {
    match value {
        Value::Object(fields) if !fields.is_empty() && prefix != "resources" => {
            for (key, value) in fields {
                let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                leaves(&name, value, names);
            }
        }
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_)
        | Value::Object(_) => names.push(prefix.to_owned()),
    }
}

#[test]
fn the_names_are_those_of_the_product_document() {
    let Some(helm) = Helm::find("helm").unwrap() else { return };
    let objects = rendered(&helm, &[]);

    let deployment = named(&objects, "Deployment", HUB);
    let template = &deployment["spec"]["template"];
    assert_eq!(template["metadata"]["labels"]["app"], HUB);
    named(&objects, "NetworkPolicy", "attest-controller-netpol");
    named(&objects, "ClusterRole", HUB);
    let map = named(&objects, "ConfigMap", "attest-gitops-config");
    let config: Value =
        serde_saphyr::from_str(map["data"]["config.yaml"].as_str().unwrap()).unwrap();
    assert_eq!(
        config,
        json!({
            "namespace": "attest-system", "syncIntervalSeconds": 300, "verificationEnabled": true,
            "policies": {"enabled": false},
        })
    );
    // 10.2 of the document.
    let pod = &template["spec"];
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["runAsUser"], 65534);
    assert_eq!(pod["securityContext"]["fsGroup"], 65534);
    let container = &pod["containers"][0];
    assert_eq!(container["name"], "controller");
    assert_eq!(
        container["securityContext"],
        json!({
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        })
    );
}

#[test]
fn the_hub_has_no_right_on_secrets_pods_and_workloads_unless_it_is_asked_for() {
    let Some(helm) = Helm::find("helm").unwrap() else { return };
    for (more, is_documented) in [(&[][..], false), (&["--set", "rbac.asDocumented=true"], true)] {
        let objects = rendered(&helm, more);
        let role = named(&objects, "ClusterRole", HUB);
        let rules = role["rules"].as_array().unwrap();
        let printed =
            fs::read_to_string(repository().join("deploy/rbac/as-documented/clusterrole.yaml"));
        let printed: Value = serde_saphyr::from_str(&printed.unwrap()).unwrap();

        let all_printed =
            printed["rules"].as_array().unwrap().iter().all(|rule| rules.contains(rule));
        assert_eq!(all_printed, is_documented, "{rules:#?}");
        let text = role["rules"].to_string();
        for resource in ["\"secrets\"", "\"pods\"", "\"deployments\"", "\"*\""] {
            let expected = is_documented && resource != "\"*\"";
            assert_eq!(text.contains(resource), expected, "{resource}: {text}");
        }
    }
}
