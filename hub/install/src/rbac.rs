//! Roles and bindings: of the spoke, of the application accounts, and for the policy's additional kinds.

use std::collections::BTreeMap;

use attest_common::objects::kinds::WORKLOAD_KINDS;
use attest_common::trust::policy::{ACCOUNTS_NAMESPACE, GroupResource};
use serde_json::{Value, json};

use super::{
    AdditionalKinds, PolicyKinds, SPOKE_NAME, SPOKE_NAMESPACE, WORKLOADS_READ_ROLE, WORKLOADS_ROLE,
    labelled_for_pruning, object,
};

const RBAC: &str = "rbac.authorization.k8s.io";
const RBAC_VERSION: &str = "rbac.authorization.k8s.io/v1";
/// Server-side apply requires `patch`, and `create` for a new object.
const WRITE: [&str; 4] = ["get", "create", "patch", "delete"];
/// Without `get`: an account that is bound in all namespaces by a policy's patterns reads nothing there.
const WRITE_ONLY: [&str; 3] = ["create", "patch", "delete"];
const READ: [&str; 3] = ["get", "list", "watch"];
const ACCOUNTS_ROLE: &str = "attest-spoke-accounts";
/// Read permissions of the spoke on the cluster-scoped kinds of the policy.
const CLUSTER_KINDS_READ_ROLE: &str = "attest-spoke-cluster-kinds";

/// Accounts, roles and bindings, in the order in which they are applied.
pub(super) fn manifests(kinds: &PolicyKinds) -> Vec<Value> {
    let mut all = vec![
        object(("v1", "ServiceAccount"), Some(SPOKE_NAMESPACE), SPOKE_NAME, json!({})),
        cluster_role(WORKLOADS_ROLE, &rules_by_group(workload_kinds(), &WRITE)),
        cluster_role(
            WORKLOADS_READ_ROLE,
            &rules_by_group(workload_kinds().chain(group_resources(kinds.extra())), &READ),
        ),
        cluster_role(SPOKE_NAME, &spoke_rules()),
        cluster_binding(SPOKE_NAME, SPOKE_NAME, &spoke_subject()),
        role(SPOKE_NAMESPACE, SPOKE_NAME, &spoke_namespace_rules()),
        binding(SPOKE_NAMESPACE, SPOKE_NAME, "Role", &spoke_subject()),
    ];
    for accounts in kinds.by_accounts.keys() {
        // Removed together with the entry.
        let role = role(accounts, ACCOUNTS_ROLE, &account_rules());
        let binding = binding(accounts, ACCOUNTS_ROLE, "Role", &spoke_subject());
        all.extend([role, binding].map(labelled_for_pruning));
    }
    all.extend(additional_kinds(kinds));
    all
}

/// Permissions of the spoke in the whole cluster. Admission policies restrict them further.
fn spoke_rules() -> Vec<Value> {
    let bound = [WORKLOADS_ROLE, WORKLOADS_READ_ROLE];
    vec![
        json!({"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get", "create", "patch"]}),
        json!({"apiGroups": [RBAC], "resources": ["rolebindings"], "verbs": WRITE}),
        json!({"apiGroups": [RBAC], "resources": ["clusterroles"], "resourceNames": bound, "verbs": ["bind"]}),
        json!({"apiGroups": ["attest.continuu.ms"], "resources": ["attesttrustpolicies"], "verbs": READ}),
    ]
}

/// Permissions of the spoke in its own namespace.
fn spoke_namespace_rules() -> Vec<Value> {
    let secrets = ["get", "list", "watch", "create", "update", "patch", "delete"];
    vec![
        json!({"apiGroups": [""], "resources": ["secrets"], "verbs": secrets}),
        json!({
            "apiGroups": [""], "resources": ["serviceaccounts/token"],
            "resourceNames": [SPOKE_NAME], "verbs": ["create"]
        }),
    ]
}

/// Permissions of the spoke in a namespace of application accounts. Impersonation is limited to that namespace.
fn account_rules() -> Vec<Value> {
    let verbs = ["get", "create", "patch", "delete", "impersonate"];
    vec![json!({"apiGroups": [""], "resources": ["serviceaccounts"], "verbs": verbs})]
}

/// Roles for the policy's additional kinds, bound to the accounts of its entries.
fn additional_kinds(kinds: &PolicyKinds) -> Vec<Value> {
    let mut all = Vec::new();
    for (accounts, additional) in &kinds.by_accounts {
        let entry = accounts.strip_prefix(ACCOUNTS_NAMESPACE).unwrap_or_default();
        let subject = json!([{
            "apiGroup": RBAC, "kind": "Group", "name": format!("system:serviceaccounts:{accounts}")
        }]);
        all.extend(namespaced_kinds(additional, &format!("attest-kinds{entry}"), &subject));
        if !additional.cluster_scoped.is_empty() {
            let name = format!("attest-cluster-kinds{entry}");
            all.push(cluster_role(
                &name,
                &rules_by_group(group_resources(&additional.cluster_scoped), &WRITE_ONLY),
            ));
            all.push(cluster_binding(&name, &name, &subject));
        }
    }
    let scoped = kinds.cluster_scoped();
    if !scoped.is_empty() {
        let name = CLUSTER_KINDS_READ_ROLE;
        all.push(cluster_role(name, &rules_by_group(group_resources(scoped), &READ)));
        all.push(cluster_binding(name, name, &spoke_subject()));
    }
    all.into_iter().map(labelled_for_pruning).collect()
}

/// The role for additional namespaced kinds, bound in each namespace that the policy lists, or in the whole cluster
/// if the policy contains patterns.
fn namespaced_kinds(additional: &AdditionalKinds, name: &str, subject: &Value) -> Vec<Value> {
    if additional.extra.is_empty() {
        return Vec::new();
    }
    let role = cluster_role(name, &rules_by_group(group_resources(&additional.extra), &WRITE_ONLY));
    let bindings = match &additional.namespaces {
        Some(namespaces) => namespaces
            .iter()
            .map(|namespace| binding(namespace, name, "ClusterRole", subject))
            .collect(),
        None => vec![cluster_binding(name, name, subject)],
    };
    std::iter::once(role).chain(bindings).collect()
}

fn workload_kinds<'a>() -> impl Iterator<Item = (&'a str, &'a str)> {
    WORKLOAD_KINDS.iter().map(|(group, _, plural)| (*group, *plural))
}

fn group_resources<'a>(
    kinds: impl IntoIterator<Item = &'a GroupResource>,
) -> impl Iterator<Item = (&'a str, &'a str)> {
    kinds.into_iter().map(|kind| (kind.group.as_str(), kind.resource.as_str()))
}

/// One rule per API group.
fn rules_by_group<'a>(
    kinds: impl Iterator<Item = (&'a str, &'a str)>,
    verbs: &[&str],
) -> Vec<Value> {
    let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (group, plural) in kinds {
        let resources = groups.entry(group).or_default();
        if !resources.contains(&plural) {
            resources.push(plural);
        }
    }
    groups
        .into_iter()
        .map(|(group, resources)| {
            json!({"apiGroups": [group], "resources": resources, "verbs": verbs})
        })
        .collect()
}

fn spoke_subject() -> Value {
    json!([{"kind": "ServiceAccount", "name": SPOKE_NAME, "namespace": SPOKE_NAMESPACE}])
}

fn cluster_role(name: &str, rules: &[Value]) -> Value {
    object((RBAC_VERSION, "ClusterRole"), None, name, json!({"rules": rules}))
}

fn role(namespace: &str, name: &str, rules: &[Value]) -> Value {
    object((RBAC_VERSION, "Role"), Some(namespace), name, json!({"rules": rules}))
}

fn cluster_binding(name: &str, role: &str, subjects: &Value) -> Value {
    let reference = json!({"apiGroup": RBAC, "kind": "ClusterRole", "name": role});
    let body = json!({"roleRef": reference, "subjects": subjects});
    object((RBAC_VERSION, "ClusterRoleBinding"), None, name, body)
}

/// A RoleBinding with the name of its role.
fn binding(namespace: &str, role: &str, kind: &str, subjects: &Value) -> Value {
    let reference = json!({"apiGroup": RBAC, "kind": kind, "name": role});
    let body = json!({"roleRef": reference, "subjects": subjects});
    object((RBAC_VERSION, "RoleBinding"), Some(namespace), role, body)
}
