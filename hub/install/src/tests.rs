//! Golden: the manifests, byte by byte, so that no right appears unseen.

use std::path::Path;

use attest_common::trust::policy::Spec;
use serde_json::{Value, json};

use super::*;

fn policy(applications: &Value) -> Spec {
    serde_json::from_value(json!({
        "clusterName": "staging", "kubeSystemUid": "00000000-0000-0000-0000-000000000000",
        "environment": "staging",
        "hub": {"keys": ["PEM"], "caPins": ["sha256:00"]},
        "keys": [], "applications": applications
    }))
    .unwrap()
}

fn entry(more: &Value) -> Value {
    let mut entry = json!({
        "names": ["*"], "repos": ["*"], "namespaces": ["*"], "minimumMode": "Strict",
        "requiredAttestations": ["build"]
    });
    entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    entry
}

fn in_cluster() -> SpokePlacement<'static> {
    SpokePlacement::InCluster {
        image: "ghcr.io/attest-ci/attest-spoke:0.1.0",
        hub: "hub.example:4433",
        token: Some("at1.token"),
    }
}

/// Compares with a file; `ATTEST_GOLDEN=update` writes it.
fn golden(name: &str, manifests: &[Value]) {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("src/golden").join(format!("{name}.yaml"));
    let texts = manifests.iter().map(|manifest| serde_saphyr::to_string(manifest).unwrap());
    let text = texts.collect::<Vec<_>>().join("---\n");
    if std::env::var("ATTEST_GOLDEN").is_ok_and(|value| value == "update") {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(text == expected, "{name} is not what {} says:\n{text}", path.display());
}

#[test]
fn the_default_policy_installs_exactly_these_objects() {
    let policy = policy(&json!([entry(&json!({}))]));

    golden("default", &Installation { policy: &policy, placement: in_cluster() }.manifests());
}

#[test]
fn the_files_of_definitions_are_what_the_programs_use() {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/crds");
    for (name, mut definition) in [
        ("attestapplications", application_definition()),
        ("attesttrustpolicies", trust_policy_definition()),
    ] {
        // Says that `attest` installs the object.
        let labels = definition.pointer_mut("/metadata/labels").and_then(Value::as_object_mut);
        labels.unwrap().remove(MANAGED_BY_LABEL);
        let text = serde_saphyr::to_string(&definition).unwrap();
        let path = files.join(format!("{name}.yaml"));
        if std::env::var("ATTEST_GOLDEN").is_ok_and(|value| value == "update") {
            std::fs::create_dir_all(&files).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let read = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            read == text,
            "{} is not the definition; run with ATTEST_GOLDEN=update",
            path.display()
        );
    }
}

#[test]
fn kinds_of_the_policy_become_roles_for_the_accounts_of_their_entry_only() {
    let policy = policy(&json!([
        entry(&json!({
            "entry": "platform",
            "kinds": {
                "extra": [{"group": "", "resource": "secrets"}],
                "clusterScoped": [{"group": "apiextensions.k8s.io", "resource": "customresourcedefinitions"}]
            },
            "namespaces": ["platform"]
        })),
        entry(
            &json!({"kinds": {"extra": [{"group": "monitoring.coreos.com", "resource": "podmonitors"}]}})
        ),
    ]));

    golden(
        "kinds",
        &Installation { policy: &policy, placement: SpokePlacement::External }.manifests(),
    );
}

#[test]
fn no_rule_has_a_wildcard_and_nobody_is_cluster_admin() {
    let policy = policy(&json!([entry(&json!({
        "kinds": {"extra": [{"resource": "secrets"}], "clusterScoped": [{"resource": "persistentvolumes"}]}
    }))]));
    let manifests = Installation { policy: &policy, placement: in_cluster() }.manifests();

    for manifest in &manifests {
        let rules = manifest["rules"].as_array().cloned().unwrap_or_default();
        for rule in rules {
            for field in ["apiGroups", "resources", "verbs"] {
                let words = rule[field].as_array().unwrap();
                assert!(!words.contains(&json!("*")), "{manifest}");
            }
            let verbs = rule["verbs"].as_array().unwrap();
            assert!(!verbs.contains(&json!("escalate")), "{manifest}");
        }
        assert_ne!(manifest["roleRef"]["name"], "cluster-admin");
        assert!(apply::ObjectRef::from_manifest(manifest).is_ok(), "{manifest}");
    }
}

#[test]
fn an_external_agent_gets_neither_deployment_nor_token() {
    let policy = policy(&json!([entry(&json!({}))]));
    let manifests =
        Installation { policy: &policy, placement: SpokePlacement::External }.manifests();

    for manifest in manifests {
        assert!(manifest["kind"] != "Deployment" && manifest["kind"] != "Secret", "{manifest}");
    }
}

#[test]
fn what_only_an_agent_in_the_cluster_has_is_known_by_name() {
    let policy = policy(&json!([entry(&json!({}))]));
    let named = |manifests: &[Value]| -> BTreeSet<String> {
        manifests.iter().map(|m| apply::ObjectRef::from_manifest(m).unwrap().to_string()).collect()
    };
    let inside = named(&Installation { policy: &policy, placement: in_cluster() }.manifests());
    let outside =
        named(&Installation { policy: &policy, placement: SpokePlacement::External }.manifests());

    let superseded = named(&in_cluster_only());

    assert_eq!(superseded, &inside - &outside);
}

#[test]
fn what_an_entry_brought_into_its_namespace_is_marked_to_go_with_it() {
    let policy = policy(&json!([entry(&json!({"entry": "platform"})), entry(&json!({}))]));
    let manifests =
        Installation { policy: &policy, placement: SpokePlacement::External }.manifests();

    let there: Vec<&Value> = manifests
        .iter()
        .filter(|manifest| manifest["metadata"]["namespace"] == "attest-applications-platform")
        .collect();

    assert_eq!(there.len(), 2, "{there:?}");
    assert!(there.iter().all(|manifest| manifest["metadata"]["labels"][KINDS_LABEL] == "true"));
}
