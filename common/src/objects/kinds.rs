//! Kubernetes kinds: plural, scope and who may deploy them. Knowledge, not opinion about one application.
//!
//! The built-in table serves the hub and the tests; a spoke adds what its API server serves and
//! what CRDs of the same rendering define.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::documents::manifest::{Object, ObjectKey, is_label, is_subdomain};
use crate::trust::policy::Entry;

/// Properties of a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Plural resource name in URLs and RBAC rules.
    pub plural: String,
    pub namespaced: bool,
}

/// Kinds by (group, kind). The core group is the empty string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kinds(BTreeMap<(String, String), Kind>);

/// Kinds that the ClusterRole `attest-workloads` names: what any policy entry may deploy.
/// Written once: the role's manifest is made from this list.
pub const WORKLOAD_KINDS: [(&str, &str, &str); 19] = [
    ("", "ConfigMap", "configmaps"),
    ("", "Service", "services"),
    ("", "ServiceAccount", "serviceaccounts"),
    ("", "PersistentVolumeClaim", "persistentvolumeclaims"),
    ("", "Endpoints", "endpoints"),
    ("", "LimitRange", "limitranges"),
    ("", "Pod", "pods"),
    ("", "ReplicationController", "replicationcontrollers"),
    ("apps", "Deployment", "deployments"),
    ("apps", "StatefulSet", "statefulsets"),
    ("apps", "DaemonSet", "daemonsets"),
    ("apps", "ReplicaSet", "replicasets"),
    ("batch", "Job", "jobs"),
    ("batch", "CronJob", "cronjobs"),
    ("autoscaling", "HorizontalPodAutoscaler", "horizontalpodautoscalers"),
    ("networking.k8s.io", "Ingress", "ingresses"),
    ("networking.k8s.io", "NetworkPolicy", "networkpolicies"),
    ("policy", "PodDisruptionBudget", "poddisruptionbudgets"),
    ("discovery.k8s.io", "EndpointSlice", "endpointslices"),
];

/// Other built-in kinds whose scope is known everywhere; deploying them needs a policy line.
const OTHER_KINDS: [(&str, &str, &str, bool); 23] = [
    ("", "Namespace", "namespaces", false),
    ("", "Node", "nodes", false),
    ("", "PersistentVolume", "persistentvolumes", false),
    ("", "ResourceQuota", "resourcequotas", true),
    ("", "Secret", "secrets", true),
    (
        "admissionregistration.k8s.io",
        "MutatingWebhookConfiguration",
        "mutatingwebhookconfigurations",
        false,
    ),
    (
        "admissionregistration.k8s.io",
        "ValidatingWebhookConfiguration",
        "validatingwebhookconfigurations",
        false,
    ),
    (
        "admissionregistration.k8s.io",
        "ValidatingAdmissionPolicy",
        "validatingadmissionpolicies",
        false,
    ),
    (
        "admissionregistration.k8s.io",
        "ValidatingAdmissionPolicyBinding",
        "validatingadmissionpolicybindings",
        false,
    ),
    ("apiextensions.k8s.io", "CustomResourceDefinition", "customresourcedefinitions", false),
    ("apiregistration.k8s.io", "APIService", "apiservices", false),
    ("attest.continuu.ms", "AttestApplication", "attestapplications", true),
    ("attest.continuu.ms", "AttestDeployment", "attestdeployments", true),
    ("certificates.k8s.io", "CertificateSigningRequest", "certificatesigningrequests", false),
    ("coordination.k8s.io", "Lease", "leases", true),
    ("networking.k8s.io", "IngressClass", "ingressclasses", false),
    ("node.k8s.io", "RuntimeClass", "runtimeclasses", false),
    ("rbac.authorization.k8s.io", "ClusterRole", "clusterroles", false),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding", "clusterrolebindings", false),
    ("rbac.authorization.k8s.io", "Role", "roles", true),
    ("rbac.authorization.k8s.io", "RoleBinding", "rolebindings", true),
    ("scheduling.k8s.io", "PriorityClass", "priorityclasses", false),
    ("storage.k8s.io", "StorageClass", "storageclasses", false),
];

impl Kinds {
    /// The kinds every Kubernetes has.
    pub fn built_in() -> Self {
        let workloads =
            WORKLOAD_KINDS.iter().map(|(group, kind, plural)| (*group, *kind, *plural, true));
        let all = workloads.chain(OTHER_KINDS).map(|(group, kind, plural, namespaced)| {
            ((group.to_owned(), kind.to_owned()), Kind { plural: plural.to_owned(), namespaced })
        });
        Self(all.collect())
    }

    /// Adds or replaces a kind (from the API server's discovery).
    pub fn insert(&mut self, group: &str, kind: &str, known: Kind) {
        self.0.insert((group.to_owned(), kind.to_owned()), known);
    }

    /// For kinds that are not known, what the policy's lines suggest: the plural that Kubernetes would
    /// give the kind, else one that begins like it. Only the cluster knows its kinds; a guess lets its
    /// spoke decide instead of stopping before.
    pub fn guess<'a>(&mut self, objects: impl Iterator<Item = &'a ObjectKey>, entries: &[Entry]) {
        let listed = || {
            entries.iter().flat_map(|entry| {
                let extra = entry.kinds.extra.iter().map(|resource| (resource, true));
                extra.chain(entry.kinds.cluster_scoped.iter().map(|resource| (resource, false)))
            })
        };
        for key in objects {
            if self.get(&key.group, &key.kind).is_some() {
                continue;
            }
            let plural = plural_of(&key.kind);
            let singular = key.kind.to_ascii_lowercase();
            let stem = singular.get(..singular.len().saturating_sub(1)).unwrap_or_default();
            let mine = || listed().filter(|(resource, _)| resource.group == key.group);
            let found = mine()
                .find(|(resource, _)| resource.resource == plural)
                .or_else(|| mine().find(|(resource, _)| resource.resource.starts_with(stem)));
            if let Some((resource, namespaced)) = found {
                let known = Kind { plural: resource.resource.clone(), namespaced };
                self.insert(&key.group, &key.kind, known);
            }
        }
    }

    /// Returns the properties of a kind.
    pub fn get(&self, group: &str, kind: &str) -> Option<&Kind> {
        self.0.get(&(group.to_owned(), kind.to_owned()))
    }

    /// The kind that a CustomResourceDefinition defines: (group, kind, knowledge). None for other objects, and for
    /// definitions that Kubernetes rejects: of a group of its own, or with malformed names.
    pub fn defined_by(object: &Object) -> Option<(String, String, Kind)> {
        let key = object.key();
        if (key.group.as_str(), key.kind.as_str()) != CUSTOM_RESOURCE_DEFINITION {
            return None;
        }
        let spec = object.value().get("spec")?;
        let names = spec.get("names")?;
        let (group, kind) = (text(spec, "group")?, text(names, "kind")?);
        let plural = text(names, "plural")?;
        let namespaced = match text(spec, "scope")? {
            "Namespaced" => true,
            "Cluster" => false,
            _ => return None,
        };
        let is_valid =
            is_subdomain(group) && is_label(plural) && is_label(&kind.to_ascii_lowercase());
        if is_built_in_group(group) || !is_valid {
            return None;
        }
        Some((group.to_owned(), kind.to_owned(), Kind { plural: plural.to_owned(), namespaced }))
    }
}

fn text<'a>(value: &'a Value, field: &str) -> Option<&'a str> {
    value.get(field)?.as_str()
}

/// Group and kind of definitions of kinds.
const CUSTOM_RESOURCE_DEFINITION: (&str, &str) =
    ("apiextensions.k8s.io", "CustomResourceDefinition");

/// Groups that the API server itself serves, besides those without a dot.
const BUILT_IN_GROUPS: [&str; 18] = [
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "apiregistration.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "certificates.k8s.io",
    "coordination.k8s.io",
    "discovery.k8s.io",
    "events.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "internal.apiserver.k8s.io",
    "networking.k8s.io",
    "node.k8s.io",
    "rbac.authorization.k8s.io",
    "resource.k8s.io",
    "scheduling.k8s.io",
    "storage.k8s.io",
    "storagemigration.k8s.io",
];

/// Returns whether Kubernetes itself defines the kinds of this group. Custom kinds have a group with a dot.
fn is_built_in_group(group: &str) -> bool {
    !group.contains('.') || BUILT_IN_GROUPS.contains(&group)
}

/// Returns whether the content of an object cannot be restored once it is deleted: its data, or the objects in it.
pub fn is_irreplaceable(key: &ObjectKey) -> bool {
    let kind = (key.group.as_str(), key.kind.as_str());
    kind == CUSTOM_RESOURCE_DEFINITION
        || matches!(kind, ("", "PersistentVolumeClaim" | "Namespace"))
}

/// `NetworkPolicy` → `networkpolicies`, as `meta.UnsafeGuessKindToResource` of apimachinery.
fn plural_of(kind: &str) -> String {
    let lower = kind.to_ascii_lowercase();
    if lower.ends_with('s') {
        format!("{lower}es")
    } else if let Some(stem) = lower.strip_suffix('y') {
        format!("{stem}ies")
    } else {
        format!("{lower}s")
    }
}

/// True for kinds that `attest-workloads` covers.
pub fn is_workload(group: &str, kind: &str) -> bool {
    WORKLOAD_KINDS.iter().any(|(g, k, _)| *g == group && *k == kind)
}

/// Place in the order of applying; lower first. Within one rank objects are applied together.
/// Removing goes the other way.
pub fn apply_rank(group: &str, kind: &str) -> u8 {
    match (group, kind) {
        ("", "Namespace") => 0,
        ("apiextensions.k8s.io", "CustomResourceDefinition") => 1,
        ("scheduling.k8s.io", "PriorityClass") | ("", "ResourceQuota" | "LimitRange") => 2,
        ("", "ServiceAccount") => 3,
        ("rbac.authorization.k8s.io", _) => 4,
        ("", "Secret" | "ConfigMap" | "PersistentVolumeClaim")
        | ("networking.k8s.io", "NetworkPolicy") => 5,
        ("", "Service" | "Endpoints") | ("discovery.k8s.io", _) => 6,
        ("apps" | "batch", _) | ("", "Pod" | "ReplicationController") => 7,
        ("admissionregistration.k8s.io" | "apiregistration.k8s.io", _) => 9,
        _ => 8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::placement::with_definitions;

    #[test]
    fn namespaces_and_definitions_come_before_what_needs_them() {
        let rank = apply_rank;

        assert!(rank("", "Namespace") < rank("apiextensions.k8s.io", "CustomResourceDefinition"));
        assert!(
            rank("apiextensions.k8s.io", "CustomResourceDefinition")
                < rank("example.com", "Widget")
        );
        assert!(rank("", "ConfigMap") < rank("apps", "Deployment"));
        assert!(rank("", "ServiceAccount") < rank("apps", "Deployment"));
    }

    #[test]
    fn secrets_roles_and_cluster_scoped_kinds_are_not_workloads() {
        for (group, kind) in [
            ("", "Secret"),
            ("", "Namespace"),
            ("rbac.authorization.k8s.io", "RoleBinding"),
            ("apiextensions.k8s.io", "CustomResourceDefinition"),
            ("attest.continuu.ms", "AttestTrustPolicy"),
        ] {
            assert!(!is_workload(group, kind), "{group} {kind}");
        }
    }

    #[test]
    fn a_definition_adds_kinds_of_its_own_group_only() {
        let definition = |api_version: &str, group: &str, kind: &str, plural: &str, scope: &str| {
            let value = serde_json::json!({
                "apiVersion": api_version, "kind": "CustomResourceDefinition",
                "metadata": {"name": "definition"},
                "spec": {"group": group, "scope": scope, "names": {"kind": kind, "plural": plural}},
            });
            Object::new(value).unwrap()
        };
        let crd = "apiextensions.k8s.io/v1";
        for (api_version, group, kind, plural, scope, is_learnt) in [
            (crd, "example.com", "Widget", "widgets", "Namespaced", true),
            (crd, "example.com", "Secret", "secrets", "Cluster", true),
            (crd, "gateway.networking.k8s.io", "GatewayClass", "gatewayclasses", "Cluster", true),
            (crd, "", "ConfigMap", "configmaps", "Cluster", false),
            (crd, "", "Widget", "widgets", "Namespaced", false),
            (crd, "apps", "Deployment", "deployments", "Cluster", false),
            (crd, "batch", "Widget", "widgets", "Namespaced", false),
            (crd, "rbac.authorization.k8s.io", "ClusterRole", "clusterroles", "Namespaced", false),
            (crd, "networking.k8s.io", "Ingress", "ingresses", "Cluster", false),
            (crd, "storage.k8s.io", "Widget", "widgets", "Namespaced", false),
            (crd, "apiextensions.k8s.io", "CustomResourceDefinition", "x", "Namespaced", false),
            (crd, "Example.com", "Widget", "widgets", "Namespaced", false),
            (crd, "example.com", "Wid/get", "widgets", "Namespaced", false),
            (crd, "example.com", "Widget", "../secrets", "Namespaced", false),
            (crd, "example.com", "Widget", "widgets", "namespaced", false),
            // A kind of the same name in another group defines nothing.
            ("example.com/v1", "example.com", "Widget", "widgets", "Namespaced", false),
            ("v1", "example.com", "Widget", "widgets", "Namespaced", false),
        ] {
            let object = definition(api_version, group, kind, plural, scope);

            let learnt = Kinds::defined_by(&object);

            assert_eq!(
                learnt.is_some(),
                is_learnt,
                "{api_version} {group} {kind} {plural} {scope}"
            );
            let built_in = Kinds::built_in();
            let known = with_definitions(std::slice::from_ref(&object), &built_in);
            for (key, kind) in &built_in.0 {
                assert_eq!(known.get(&key.0, &key.1), Some(kind), "{key:?}");
            }
        }
    }

    #[test]
    fn a_kind_that_is_not_known_is_guessed_from_the_policys_lines_only() {
        let entry = serde_json::json!({
            "names": ["*"], "repos": ["*"], "namespaces": ["*"], "minimumMode": "Strict",
            "requiredAttestations": [],
            "kinds": {
                "clusterScoped": [{"group": "gateway.networking.k8s.io", "resource": "gatewayclasses"}],
                "extra": [
                    {"group": "gateway.networking.k8s.io", "resource": "gateways"},
                    {"group": "example.com", "resource": "mice"},
                    {"group": "example.com", "resource": "policies"}
                ]
            }
        });
        let entries: Vec<Entry> = vec![serde_json::from_value(entry).unwrap()];
        let key = |group: &str, kind: &str| ObjectKey {
            group: group.into(),
            kind: kind.into(),
            namespace: None,
            name: "x".into(),
        };
        let gateway = "gateway.networking.k8s.io";
        let keys = [
            key(gateway, "Gateway"),
            key(gateway, "GatewayClass"),
            key("example.com", "Policy"),
            key("example.com", "Widget"),
            key("other.example", "Policy"),
        ];
        let mut kinds = Kinds::built_in();

        kinds.guess(keys.iter(), &entries);

        let guessed = keys.map(|key| {
            kinds.get(&key.group, &key.kind).map(|kind| (kind.plural.clone(), kind.namespaced))
        });
        let some = |plural: &str, namespaced| Some((plural.to_owned(), namespaced));
        assert_eq!(
            guessed,
            [
                some("gateways", true),
                some("gatewayclasses", false),
                some("policies", true),
                None,
                None
            ]
        );
    }
}
