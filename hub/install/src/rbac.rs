//! Rights: the spoke's, the application accounts', and those that the policy's `kinds` add.

use std::collections::BTreeMap;

use attest_common::objects::kinds::WORKLOAD_KINDS;
use attest_common::trust::policy::{ACCOUNTS_NAMESPACE, GroupResource};
use serde_json::{Value, json};

use super::{
    Beyond, Kinds, SPOKE_NAME, SYSTEM_NAMESPACE, WORKLOADS_READ_ROLE, WORKLOADS_ROLE,
    because_of_policy, object,
};

const RBAC: &str = "rbac.authorization.k8s.io";
const RBAC_VERSION: &str = "rbac.authorization.k8s.io/v1";
/// Server-side apply asks for `patch`, and for `create` when the object is new.
const WRITE: [&str; 4] = ["get", "create", "patch", "delete"];
/// Without `get`: where a policy's patterns bind an account everywhere, it still reads nothing.
const WRITE_ONLY: [&str; 3] = ["create", "patch", "delete"];
const READ: [&str; 3] = ["get", "list", "watch"];
const ACCOUNTS_ROLE: &str = "attest-spoke-accounts";
/// Read rights of the spoke on the cluster-scoped kinds of the policy.
const CLUSTER_KINDS_READ_ROLE: &str = "attest-spoke-cluster-kinds";

/// Accounts, roles and bindings, in the order of applying.
pub(super) fn manifests(kinds: &Kinds) -> Vec<Value> {
    let mut all = vec![
        object(("v1", "ServiceAccount"), Some(SYSTEM_NAMESPACE), SPOKE_NAME, json!({})),
        cluster_role(WORKLOADS_ROLE, &by_group(workloads(), &WRITE)),
        cluster_role(
            WORKLOADS_READ_ROLE,
            &by_group(workloads().chain(pairs(kinds.extra())), &READ),
        ),
        cluster_role(SPOKE_NAME, &spoke_rules()),
        cluster_binding(SPOKE_NAME, SPOKE_NAME, &spoke_subject()),
        role(SYSTEM_NAMESPACE, SPOKE_NAME, &system_rules()),
        binding(SYSTEM_NAMESPACE, SPOKE_NAME, "Role", &spoke_subject()),
    ];
    for accounts in kinds.by_accounts.keys() {
        // They go with the entry.
        let role = role(accounts, ACCOUNTS_ROLE, &account_rules());
        let binding = binding(accounts, ACCOUNTS_ROLE, "Role", &spoke_subject());
        all.extend([role, binding].map(because_of_policy));
    }
    all.extend(beyond_workloads(kinds));
    all
}

/// What the spoke may do anywhere. Admission narrows it further.
fn spoke_rules() -> Vec<Value> {
    let bound = [WORKLOADS_ROLE, WORKLOADS_READ_ROLE];
    vec![
        json!({"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get", "create", "patch"]}),
        json!({"apiGroups": [RBAC], "resources": ["rolebindings"], "verbs": WRITE}),
        json!({"apiGroups": [RBAC], "resources": ["clusterroles"], "resourceNames": bound, "verbs": ["bind"]}),
        json!({"apiGroups": ["attest.continuu.ms"], "resources": ["attesttrustpolicies"], "verbs": READ}),
    ]
}

/// What the spoke may do in its own namespace.
fn system_rules() -> Vec<Value> {
    let secrets = ["get", "list", "watch", "create", "update", "patch", "delete"];
    vec![
        json!({"apiGroups": [""], "resources": ["secrets"], "verbs": secrets}),
        json!({
            "apiGroups": [""], "resources": ["serviceaccounts/token"],
            "resourceNames": [SPOKE_NAME], "verbs": ["create"]
        }),
    ]
}

/// What the spoke may do where the application accounts live. Impersonation cannot leave the namespace.
fn account_rules() -> Vec<Value> {
    let verbs = ["get", "create", "patch", "delete", "impersonate"];
    vec![json!({"apiGroups": [""], "resources": ["serviceaccounts"], "verbs": verbs})]
}

/// Roles for the kinds that the policy names, bound to the accounts of its entries.
fn beyond_workloads(kinds: &Kinds) -> Vec<Value> {
    let mut all = Vec::new();
    for (accounts, beyond) in &kinds.by_accounts {
        let entry = accounts.strip_prefix(ACCOUNTS_NAMESPACE).unwrap_or_default();
        let subject = json!([{
            "apiGroup": RBAC, "kind": "Group", "name": format!("system:serviceaccounts:{accounts}")
        }]);
        all.extend(extra(beyond, &format!("attest-kinds{entry}"), &subject));
        if !beyond.cluster_scoped.is_empty() {
            let name = format!("attest-cluster-kinds{entry}");
            all.push(cluster_role(&name, &by_group(pairs(&beyond.cluster_scoped), &WRITE_ONLY)));
            all.push(cluster_binding(&name, &name, &subject));
        }
    }
    let scoped = kinds.cluster_scoped();
    if !scoped.is_empty() {
        let name = CLUSTER_KINDS_READ_ROLE;
        all.push(cluster_role(name, &by_group(pairs(scoped), &READ)));
        all.push(cluster_binding(name, name, &spoke_subject()));
    }
    all.into_iter().map(because_of_policy).collect()
}

/// Bound namespace by namespace when the policy names them, everywhere when it has patterns.
fn extra(beyond: &Beyond, name: &str, subject: &Value) -> Vec<Value> {
    if beyond.extra.is_empty() {
        return Vec::new();
    }
    let role = cluster_role(name, &by_group(pairs(&beyond.extra), &WRITE_ONLY));
    let bindings = match &beyond.namespaces {
        Some(namespaces) => namespaces
            .iter()
            .map(|namespace| binding(namespace, name, "ClusterRole", subject))
            .collect(),
        None => vec![cluster_binding(name, name, subject)],
    };
    std::iter::once(role).chain(bindings).collect()
}

fn workloads<'a>() -> impl Iterator<Item = (&'a str, &'a str)> {
    WORKLOAD_KINDS.iter().map(|(group, _, plural)| (*group, *plural))
}

fn pairs<'a>(
    kinds: impl IntoIterator<Item = &'a GroupResource>,
) -> impl Iterator<Item = (&'a str, &'a str)> {
    kinds.into_iter().map(|kind| (kind.group.as_str(), kind.resource.as_str()))
}

/// One rule a group.
fn by_group<'a>(kinds: impl Iterator<Item = (&'a str, &'a str)>, verbs: &[&str]) -> Vec<Value> {
    let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (group, plural) in kinds {
        let resources = groups.entry(group).or_default();
        if !resources.contains(&plural) {
            resources.push(plural);
        }
    }
    let rule =
        |(group, resources)| json!({"apiGroups": [group], "resources": resources, "verbs": verbs});
    groups.into_iter().map(rule).collect()
}

fn spoke_subject() -> Value {
    json!([{"kind": "ServiceAccount", "name": SPOKE_NAME, "namespace": SYSTEM_NAMESPACE}])
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

/// A RoleBinding named as the role that it binds.
fn binding(namespace: &str, role: &str, kind: &str, subjects: &Value) -> Value {
    let reference = json!({"apiGroup": RBAC, "kind": kind, "name": role});
    let body = json!({"roleRef": reference, "subjects": subjects});
    object((RBAC_VERSION, "RoleBinding"), Some(namespace), role, body)
}
