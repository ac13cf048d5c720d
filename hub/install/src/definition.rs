//! `AttestTrustPolicy`: its CustomResourceDefinition and its only object.
//!
//! The schema names and bounds every field, so that the API server rejects a misspelt one. The meaning of the
//! fields and their contradictions are decided by `attest_common::trust::policy`.

mod application;

use attest_common::trust::policy::{ENTRIES_MAX, KEYS_MAX, POLICY_NAME, Spec};
use serde_json::{Value, json};

use super::object;

pub use application::application_definition;

/// Maximum number of names or patterns in a list.
const TEXTS_MAX: usize = 256;
/// Maximum length of a name or pattern, in characters.
const TEXT_LENGTH_MAX: usize = 512;
/// Maximum length of a public key in PEM, in characters.
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

/// Returns the CustomResourceDefinition of `AttestTrustPolicy`.
pub fn trust_policy_definition() -> Value {
    let names = json!({
        "plural": "attesttrustpolicies", "singular": "attesttrustpolicy",
        "kind": "AttestTrustPolicy", "listKind": "AttestTrustPolicyList",
        "shortNames": ["atp"], "categories": ["attest"]
    });
    let version = json!({
        "name": "v1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": schema()},
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            printer_column("Cluster", ".spec.clusterName"),
            printer_column("Environment", ".spec.environment"),
            printer_column("ID", ".status.clusterId"),
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

fn printer_column(name: &str, path: &str) -> Value {
    json!({"name": name, "type": "string", "jsonPath": path})
}

fn schema() -> Value {
    let status = json!({
        "type": "object",
        "description": "Facts determined by the operator's installation.",
        "properties": {"clusterId": described(
            text(r"^c-[0-9a-f]{16}$"),
            "Id of the spoke for which this policy is installed: the hash of its identity key. Written by the \
             operator; the spoke acts only if the id is its own."
        )}
    });
    json!({
        "type": "object",
        "description": "The hub and the CI keys that this cluster trusts, and the requirements on releases. Written \
                        by the cluster's operator, never by the hub.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"}, "kind": {"type": "string"},
            "metadata": {"type": "object"}, "spec": spec(), "status": status
        },
        "x-kubernetes-validations": [{
            "rule": format!("self.metadata.name == '{POLICY_NAME}'"),
            "message": format!("a cluster has one trust policy, named {POLICY_NAME}")
        }]
    })
}

fn spec() -> Value {
    json!({
        "type": "object",
        "description": "The hub and the CI keys that the cluster trusts, and what releases must prove.",
        "required": ["clusterName", "kubeSystemUid", "environment", "hub", "keys", "applications"],
        "properties": {
            "clusterName": described(label(), "Name of the cluster within the fleet."),
            "kubeSystemUid": described(
                text("^[0-9a-f-]{1,64}$"),
                "UID of the namespace kube-system. The policy is valid in that cluster only."
            ),
            "environment": described(label(), "Releases for other environments are refused."),
            "hub": {
                "type": "object",
                "description": "The hub that this cluster trusts.",
                "required": ["keys", "caPins"],
                "properties": {
                    "keys": described(list(&pem(), 8), "PEM public keys that may sign plans and directives."),
                    "caPins": described(
                        list(&text("^sha256:[0-9a-f]{64}$"), 8),
                        "SHA-256 of the SubjectPublicKeyInfo of the hub's certificate authority (RFC 7469)."
                    )
                }
            },
            "keys": described(list(&key(), KEYS_MAX), "CI keys, with the roles and environments of each."),
            "applications": described(
                list(&entry(), ENTRIES_MAX),
                "Applications that may run in this cluster. If several entries match, the strictest values apply."
            )
        }
    })
}

fn key() -> Value {
    json!({
        "type": "object",
        "description": "A CI key.",
        "required": ["name", "publicKey", "roles", "environments"],
        "properties": {
            "name": described(
                json!({"type": "string", "minLength": 1, "maxLength": 128}),
                "Name of the key, to which entries refer."
            ),
            "publicKey": described(pem(), "Ed25519 public key in PEM."),
            "roles": described(
                list(&choice(&["builder", "tester", "scanner", "releaser"]), 4),
                "Statements that the key may sign."
            ),
            "environments": described(
                list(&label(), 64),
                "Environments whose releases the key may sign. It has no effect in other clusters."
            ),
            "builderIds": described(
                texts(),
                "Builder ids that the key may name in provenance; that of `attest run` by default."
            )
        }
    })
}

fn entry() -> Value {
    let percent = json!({"type": "integer", "format": "int32", "minimum": 0, "maximum": 100});
    let count = json!({"type": "integer", "format": "int32", "minimum": 0, "maximum": 1000});
    let hours = json!({"type": "integer", "format": "int32", "minimum": 1, "maximum": 8784});
    json!({
        "type": "object",
        "description": "Applications, and what they may do.",
        "required": ["names", "repos", "namespaces", "minimumMode", "requiredAttestations"],
        "properties": {
            "entry": described(label(), "Suffix of the namespace of the application accounts."),
            "names": described(texts(), "Names of applications; `*` matches any text."),
            "repos": described(texts(), "Repositories that CI may have released from; `*` matches any text."),
            "namespaces": described(
                texts(),
                "Namespaces of destinations; `*` matches any text, and never `kube-*` and `attest-*`."
            ),
            "kinds": {
                "type": "object",
                "description": "Kinds in addition to the workload kinds.",
                "properties": {
                    "clusterScoped": described(resources(), "Cluster-scoped kinds."),
                    "extra": described(resources(), "Namespaced kinds.")
                }
            },
            "minimumMode": described(
                choice(&["Standard", "Strict"]),
                "The weakest verification that an application may ask for."
            ),
            "requiredAttestations": described(
                list(&choice(&["build", "test", "security-scan"]), 8),
                "Attestations that every release needs."
            ),
            "keys": described(
                texts(),
                "Names of the keys that may sign; every key of the environment by default."
            ),
            "rollback": {
                "type": "object", "required": ["lastGood"],
                "description": "Releases to which a rollback may return.",
                "properties": {"lastGood": described(
                    count.clone(),
                    "Number of good plans to which a rollback may return; 1 by default."
                )}
            },
            "remove": {
                "type": "object",
                "description": "Removals by the hub.",
                "properties": {
                    "allow": described(
                        json!({"type": "boolean"}),
                        "The hub may remove the application; false by default."
                    ),
                    "maxPrunePercent": described(
                        percent,
                        "Largest share of the objects that one update may delete, from ten objects on."
                    )
                }
            },
            "adopt": described(
                json!({"type": "boolean"}),
                "A plan that asks for it may take over existing objects; false by default."
            ),
            "maxNamespaces": described(
                count,
                "Number of namespaces of one application whose rendering does not fix one; 1 by default."
            ),
            "maxScanAgeHours": described(
                hours,
                "Maximum age of the security scan when a release is first admitted; 168 by default."
            )
        }
    })
}

fn resources() -> Value {
    let resource = json!({
        "type": "object",
        "description": "A resource as in rules of RBAC.",
        "required": ["resource"],
        "properties": {
            "group": described(
                json!({"type": "string", "maxLength": 253}),
                "API group; empty for the core group."
            ),
            "resource": described(text("^[a-z0-9]{1,253}$"), "Plural name of the resource.")
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
