use serde_json::json;

use std::collections::BTreeMap;

use attest_supply::source::UrlPolicy;

use super::*;
use crate::applications::known::KnownCluster;

fn known() -> Known {
    let id = "ed25519:".to_owned() + &"ab".repeat(32);
    Known {
        clusters: ["staging", "production"]
            .map(|n| (Name::new(n).unwrap(), KnownCluster::default()))
            .into(),
        default_cluster: DefaultCluster::Registered(Name::new("staging").unwrap()),
        keys: BTreeMap::from([("ed25519-company-ci-key".to_owned(), id.parse().unwrap())]),
        urls: UrlPolicy::default(),
    }
}

/// The product document's first manifest; its lists and maps are printed there without indentation.
fn product_manifest() -> Value {
    json!({
        "apiVersion": "attest.continuu.ms/v1", "kind": "AttestApplication",
        "metadata": {"name": "web-app", "namespace": "production"},
        "spec": {
            "source": {"repoUrl": "https://github.com/company/web-app", "targetRevision": "v1.2.3", "path": "k8s"},
            "destination": {"namespace": "web-app"},
            "verification": {"enabled": true, "trustedKeys": ["ed25519-company-ci-key"], "policy": "Strict",
                "receiptVerification": {"required": true, "requiredAttestations": ["build", "test", "security-scan"]}},
            "syncPolicy": {"automated": {"prune": true, "selfHeal": false}}
        }
    })
}

fn refused(change: impl FnOnce(&mut Value)) -> (String, &'static str) {
    let mut manifest = product_manifest();
    change(&mut manifest);
    let error = lower(&manifest, &known()).unwrap_err();
    (error.field, error.reason.as_str())
}

#[test]
fn the_product_documents_manifest_means_what_it_says() {
    let application = lower(&product_manifest(), &known()).unwrap();

    assert_eq!(application.destinations[0].cluster.as_str(), "staging");
    assert_eq!(application.asked.mode, Mode::Strict);
    assert_eq!(application.asked.required_attestations.len(), 3);
    assert_eq!(application.asked.trusted_keys.unwrap().len(), 1);
    assert!(application.automated && application.sync.prune && !application.sync.self_heal);
}

#[test]
fn several_destinations_and_every_default() {
    let manifest = json!({
        "apiVersion": "attest.continuu.ms/v1", "kind": "AttestApplication",
        "metadata": {"name": "multi-cluster-app"},
        "spec": {
            "destinations": [{"cluster": "staging", "namespace": "app-staging"},
                {"cluster": "production", "namespace": "app-production"}],
            "source": {"repoURL": "https://github.com/company/app", "path": "./k8s/overlays/"}
        }
    });

    let application = lower(&manifest, &known()).unwrap();

    assert_eq!(application.namespace, "default");
    assert_eq!(application.revision, "HEAD");
    assert_eq!(application.path, "k8s/overlays");
    assert_eq!(application.destinations.len(), 2);
    assert_eq!(application.asked.mode, Mode::Strict);
    assert_eq!(application.asked.trusted_keys, None);
    assert!(application.automated && !application.sync.prune && !application.sync.self_heal);
}

#[test]
fn a_request_not_to_verify_is_refused() {
    for (verification, field) in [
        (json!({"enabled": false}), "spec.verification.enabled"),
        (json!({"enabled": false, "policy": "Strict"}), "spec.verification.enabled"),
        (json!({"policy": "Disabled"}), "spec.verification.policy"),
        (json!({"enabled": true, "policy": "Audit"}), "spec.verification.policy"),
    ] {
        let refusal = refused(|manifest| manifest["spec"]["verification"] = verification.clone());

        assert_eq!(refusal, (field.to_owned(), "FieldInvalid"), "{verification}");
    }
    for (verification, mode) in
        [(json!({"enabled": true}), Mode::Strict), (json!({"policy": "Standard"}), Mode::Standard)]
    {
        let mut manifest = product_manifest();
        manifest["spec"]["verification"] = verification.clone();

        assert_eq!(lower(&manifest, &known()).unwrap().asked.mode, mode, "{verification}");
    }
}

#[test]
fn required_receipts_are_those_of_the_list_or_at_least_one_of_the_policy() {
    let lowered = |receipts: &Value| {
        let mut manifest = product_manifest();
        manifest["spec"]["verification"]["receiptVerification"] = receipts.clone();
        lower(&manifest, &known())
            .map(|a| (a.receipts_required, a.asked.required_attestations.len()))
    };
    for (receipts, expected) in [
        (json!({"required": true, "requiredAttestations": ["build"]}), (true, 1)),
        (json!({"required": true}), (true, 0)),
        (json!({"requiredAttestations": ["build", "test"]}), (false, 2)),
        (json!({"required": false}), (false, 0)),
        (json!({}), (false, 0)),
    ] {
        assert_eq!(lowered(&receipts).unwrap(), expected, "{receipts}");
    }
    let contradiction = lowered(&json!({"required": false, "requiredAttestations": ["build"]}));
    assert_eq!(contradiction.unwrap_err().field, "spec.verification.receiptVerification.required");
}

#[test]
fn rolling_update_may_be_written_out_and_other_strategies_are_not_available() {
    for strategy in [json!("RollingUpdate"), json!({"type": "RollingUpdate"})] {
        let mut manifest = product_manifest();
        manifest["spec"]["strategy"] = strategy;
        lower(&manifest, &known()).unwrap();
    }
    for strategy in [json!("Canary"), json!({"type": "RollingUpdate", "maxSurge": 1}), json!({})] {
        let refusal = refused(|manifest| manifest["spec"]["strategy"] = strategy);
        assert_eq!(refusal, ("spec.strategy".to_owned(), "FeatureNotAvailable"));
    }
}

#[test]
fn what_is_wrong_is_named_by_its_path() {
    type Edit = fn(&mut Value);
    let cases: [(Edit, &str, &str); 22] = [
        (|m| m["spec"]["sauce"] = json!(1), "spec.sauce", "FieldUnknown"),
        (
            |m| m["spec"]["syncPolicy"]["automated"]["prun"] = json!(true),
            "spec.syncPolicy.automated.prun",
            "FieldUnknown",
        ),
        (|m| m["kind"] = json!("AttestDeployment"), "kind", "FeatureNotAvailable"),
        (|m| m["apiVersion"] = json!("v1"), "apiVersion", "FieldInvalid"),
        (
            |m| m["metadata"]["annotations"] = json!({"attest.continuu.ms/orphan": "true"}),
            "metadata.annotations.attest.continuu.ms/orphan",
            "FieldInvalid",
        ),
        (
            |m| m["metadata"]["labels"] = json!({"attest.continuu.ms/stage": "x"}),
            "metadata.labels.attest.continuu.ms/stage",
            "FieldInvalid",
        ),
        (
            |m| m["spec"]["verification"]["policyValidation"] = json!({}),
            "spec.verification.policyValidation",
            "FeatureNotAvailable",
        ),
        (|m| m["metadata"]["namespace"] = json!("A_b"), "metadata.namespace", "NameInvalid"),
        (
            |m| m["spec"]["source"]["repoUrl"] = json!("ftp://git.example/a"),
            "spec.source.repoUrl",
            "RepositoryUrlRefused",
        ),
        (|m| m["spec"]["destination"]["path"] = json!("/k8s"), "spec.destination.path", "TreePath"),
        (
            |m| {
                m["spec"]["destination"]["clusterSelector"] =
                    json!({"matchLabels": {"env": "prod"}})
            },
            "spec.destination",
            "ClusterUnknown",
        ),
        (
            |m| m["spec"]["verification"]["customHooks"] = json!([]),
            "spec.verification.customHooks",
            "FeatureNotAvailable",
        ),
        (
            |m| m["spec"]["verification"]["trustedKeys"][0] = json!("nobody"),
            "spec.verification.trustedKeys[0]",
            "KeyUnknown",
        ),
        (
            |m| m["spec"]["destination"]["namespace"] = json!("kube-system"),
            "spec.destination.namespace",
            "NamespaceNotAllowed",
        ),
        (
            |m| m["spec"]["destination"]["namespace"] = json!("attest-applications"),
            "spec.destination.namespace",
            "NamespaceNotAllowed",
        ),
        (
            |m| m["spec"]["destination"]["cluster"] = json!("moon"),
            "spec.destination.cluster",
            "ClusterUnknown",
        ),
        (|m| m["metadata"]["name"] = json!("A"), "metadata.name", "NameInvalid"),
        (|m| m["spec"]["source"]["path"] = json!("../k8s"), "spec.source.path", "TreePath"),
        (
            |m| m["spec"]["verification"]["policy"] = json!("Loose"),
            "spec.verification.policy",
            "FieldInvalid",
        ),
        (
            |m| m["spec"]["destinations"] = json!([{"namespace": "x"}]),
            "spec.destinations",
            "FieldInvalid",
        ),
        (
            |m| m["spec"]["source"]["targetRevision"] = json!(3),
            "spec.source.targetRevision",
            "FieldInvalid",
        ),
        (
            |m| m["spec"]["syncPolicy"]["syncOptions"] = json!(["Force=true"]),
            "spec.syncPolicy.syncOptions[0]",
            "FieldInvalid",
        ),
    ];
    for (edit, field, reason) in cases {
        let (found_field, found_reason) = refused(edit);
        assert_eq!(found_field, field);
        assert_eq!(found_reason, reason, "{field}");
    }
}

#[test]
fn without_any_cluster_the_missing_field_is_named() {
    for (default_cluster, expected) in [
        (DefaultCluster::NoneRegistered, "no cluster is registered"),
        (DefaultCluster::OwnNotRegistered, "the cluster that the hub runs on is not registered"),
        (DefaultCluster::OwnUnknown, "has not reached the API server"),
    ] {
        let known = Known { clusters: BTreeMap::new(), default_cluster, ..known() };

        let error = lower(&product_manifest(), &known).unwrap_err();

        assert_eq!(
            (error.field.as_str(), error.reason),
            ("spec.destination.cluster", Reason::ClusterUnknown)
        );
        assert!(error.message.contains(expected), "{error}");
    }
}
