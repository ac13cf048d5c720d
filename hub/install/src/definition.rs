//! `AttestTrustPolicy`: its CustomResourceDefinition and the one object of it.
//!
//! The schema bounds and names every field, so that a misspelt one is refused by the API server;
//! what the fields mean, and what contradicts what, is decided by `attest_common::trust::policy`.

use attest_common::trust::policy::{ENTRIES_MAX, KEYS_MAX, POLICY_NAME, Spec};
use serde_json::{Value, json};

use super::object;

const TEXTS_MAX: usize = 256;
const TEXT_LENGTH_MAX: usize = 512;
const PEM_LENGTH_MAX: usize = 4096;

/// The object `local`.
pub(super) fn trust_policy(policy: &Spec) -> Value {
    object(
        ("attest.continuu.ms/v1", "AttestTrustPolicy"),
        None,
        POLICY_NAME,
        json!({"spec": policy}),
    )
}

pub(super) fn trust_policy_definition() -> Value {
    let names = json!({
        "plural": "attesttrustpolicies", "singular": "attesttrustpolicy",
        "kind": "AttestTrustPolicy", "listKind": "AttestTrustPolicyList",
        "shortNames": ["atp"], "categories": ["attest"]
    });
    let column = |name: &str, path: &str| json!({"name": name, "type": "string", "jsonPath": path});
    let version = json!({
        "name": "v1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": schema()},
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            column("Cluster", ".spec.clusterName"),
            column("Environment", ".spec.environment"),
            column("ID", ".status.clusterId"),
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}
        ]
    });
    let spec = json!({
        "group": "attest.continuu.ms", "names": names, "scope": "Cluster", "versions": [version]
    });
    object(
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
        None,
        "attesttrustpolicies.attest.continuu.ms",
        json!({"spec": spec}),
    )
}

fn schema() -> Value {
    let status = json!({
        "type": "object",
        "description": "What the operator's installation found out.",
        "properties": {"clusterId": described(
            text(r"^c-[0-9a-f]{16}$"),
            "Id of the spoke that this policy is for: the hash of its identity key. Written by the operator; \
             the spoke acts only when it is its own."
        )}
    });
    json!({
        "type": "object",
        "description": "Whom this cluster believes, for what, and how little a plan may ask. Written by the \
                        cluster's operator, never by the hub.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"}, "kind": {"type": "string"},
            "metadata": {"type": "object"}, "spec": spec(), "status": status
        },
        "x-kubernetes-validations": [{
            "rule": format!("self.metadata.name == '{POLICY_NAME}'"),
            "message": format!("a cluster has one trust policy; it is called {POLICY_NAME}")
        }]
    })
}

fn spec() -> Value {
    json!({
        "type": "object",
        "required": ["clusterName", "kubeSystemUid", "environment", "hub", "keys", "applications"],
        "properties": {
            "clusterName": described(label(), "Name within the fleet."),
            "kubeSystemUid": described(
                text("^[0-9a-f-]{1,64}$"),
                "UID of the namespace kube-system: this policy is for that cluster and no other."
            ),
            "environment": described(label(), "Releases for other environments are refused."),
            "hub": {
                "type": "object",
                "description": "The hub this cluster listens to.",
                "required": ["keys", "caPins"],
                "properties": {
                    "keys": described(list(&pem(), 8), "PEM public keys that may sign plans and directives."),
                    "caPins": described(
                        list(&text("^sha256:[0-9a-f]{64}$"), 8),
                        "SHA-256 of the SubjectPublicKeyInfo of the hub's certificate authority (RFC 7469)."
                    )
                }
            },
            "keys": described(list(&key(), KEYS_MAX), "CI keys and what each may say."),
            "applications": described(
                list(&entry(), ENTRIES_MAX),
                "What may run here. Several matching entries combine to the strictest."
            )
        }
    })
}

fn key() -> Value {
    json!({
        "type": "object",
        "required": ["name", "publicKey", "roles", "environments"],
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 128},
            "publicKey": pem(),
            "roles": list(&choice(&["builder", "tester", "scanner", "releaser"]), 4),
            "environments": list(&label(), 64),
            "builderIds": texts()
        }
    })
}

fn entry() -> Value {
    let percent = json!({"type": "integer", "format": "int32", "minimum": 0, "maximum": 100});
    let count = json!({"type": "integer", "format": "int32", "minimum": 0, "maximum": 1000});
    json!({
        "type": "object",
        "required": ["names", "repos", "namespaces", "minimumMode", "requiredAttestations"],
        "properties": {
            "entry": described(label(), "Names the namespace of the application accounts."),
            "names": texts(), "repos": texts(), "namespaces": texts(),
            "kinds": {
                "type": "object",
                "description": "Kinds beyond the ordinary workloads.",
                "properties": {"clusterScoped": resources(), "extra": resources()}
            },
            "minimumMode": choice(&["Standard", "Strict"]),
            "requiredAttestations": list(&choice(&["build", "test", "security-scan"]), 8),
            "keys": texts(),
            "rollback": {
                "type": "object", "required": ["lastGood"], "properties": {"lastGood": count}
            },
            "remove": {
                "type": "object",
                "properties": {"allow": {"type": "boolean"}, "maxPrunePercent": percent}
            },
            "adopt": {"type": "boolean"},
            "maxNamespaces": count
        }
    })
}

fn resources() -> Value {
    let resource = json!({
        "type": "object",
        "required": ["resource"],
        "properties": {
            "group": {"type": "string", "maxLength": 253},
            "resource": text("^[a-z0-9]{1,253}$")
        }
    });
    list(&resource, 64)
}

fn list(items: &Value, items_max: usize) -> Value {
    json!({"type": "array", "maxItems": items_max, "items": items})
}

fn texts() -> Value {
    list(&json!({"type": "string", "maxLength": TEXT_LENGTH_MAX}), TEXTS_MAX)
}

fn text(pattern: &str) -> Value {
    json!({"type": "string", "pattern": pattern})
}

fn label() -> Value {
    json!({"type": "string", "maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"})
}

fn pem() -> Value {
    json!({"type": "string", "maxLength": PEM_LENGTH_MAX})
}

fn choice(words: &[&str]) -> Value {
    json!({"type": "string", "enum": words})
}

fn described(mut schema: Value, description: &str) -> Value {
    if let Value::Object(fields) = &mut schema {
        fields.insert("description".to_owned(), description.into());
    }
    schema
}
