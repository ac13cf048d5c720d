//! Admission policies for restrictions that RBAC cannot express: the spoke creates bindings of two shapes only, and
//! writes nothing in the namespaces of Kubernetes and of ATTEST.

use std::collections::BTreeMap;
use std::fmt::Display;

use attest_common::objects::placement::{DESCRIBING_DOMAINS, NAME_LABEL, RESERVED_DOMAINS};
use serde_json::{Value, json};

use super::{
    PolicyKinds, SPOKE_NAME, SPOKE_NAMESPACE, SPOKE_USER, WORKLOADS_READ_ROLE, WORKLOADS_ROLE,
    labelled_for_pruning, object,
};

const VERSION: &str = "admissionregistration.k8s.io/v1";
const RESERVED: &str = "the spoke may not change labels and annotations of Kubernetes or of platforms built on it, which \
     determine the permissions and the placement of the pods in a namespace";
const CLOSED: &str =
    "namespaces whose names begin with kube- or attest- are closed to applications";

/// The policies with their bindings.
pub(super) fn manifests(kinds: &PolicyKinds) -> Vec<Value> {
    let mut all = Vec::new();
    all.extend(enforced("attest-spoke-bindings", &binding_policy(kinds)));
    all.extend(enforced("attest-spoke-namespaces", &namespace_policy()));
    if kinds.by_accounts.values().any(|additional| additional.namespaces.is_none()) {
        let guard = enforced("attest-application-accounts", &account_policy(kinds));
        all.extend(guard.into_iter().map(labelled_for_pruning));
    }
    all
}

/// The spoke binds two roles, each to its intended subject, and deletes only such bindings.
fn binding_policy(kinds: &PolicyKinds) -> Value {
    let shape = format!(
        "variables.it.roleRef.apiGroup == 'rbac.authorization.k8s.io' && \
         variables.it.roleRef.kind == 'ClusterRole' && \
         has(variables.it.subjects) && size(variables.it.subjects) == 1 && \
         variables.it.subjects[0].kind == 'ServiceAccount' && \
         ((variables.it.roleRef.name == '{WORKLOADS_ROLE}' && variables.it.subjects[0].namespace in {accounts}) || \
         (variables.it.roleRef.name == '{WORKLOADS_READ_ROLE}' && \
         variables.it.subjects[0].namespace == '{SPOKE_NAMESPACE}' && \
         variables.it.subjects[0].name == '{SPOKE_NAME}'))",
        accounts = cel_list(kinds.by_accounts.keys())
    );
    json!({
        "failurePolicy": "Fail",
        "matchConstraints": match_constraints(
            ("rbac.authorization.k8s.io", "rolebindings"),
            &["CREATE", "UPDATE", "DELETE"]
        ),
        "matchConditions": [by_spoke()],
        "variables": [
            {"name": "it", "expression": "request.operation == 'DELETE' ? oldObject : object"}
        ],
        "validations": [
            {"expression": is_open("request.namespace"), "message": CLOSED},
            {
                "expression": shape,
                "message": "the spoke may bind attest-workloads to one application account, or \
                            attest-workloads-read to itself, and nothing else"
            }
        ]
    })
}

/// The spoke creates and labels destination namespaces only.
fn namespace_policy() -> Value {
    json!({
        "failurePolicy": "Fail",
        "matchConstraints": match_constraints(("", "namespaces"), &["CREATE", "UPDATE"]),
        "matchConditions": [by_spoke()],
        "variables": [
            values_before("labels"), values_after("labels"),
            values_before("annotations"), values_after("annotations")
        ],
        "validations": [
            {"expression": is_open("object.metadata.name"), "message": CLOSED},
            {"expression": reserved_unchanged("labels"), "message": RESERVED},
            {"expression": reserved_unchanged("annotations"), "message": RESERVED}
        ]
    })
}

fn values_before(place: &str) -> Value {
    let expression =
        format!("oldObject == null ? {{}} : oldObject.metadata.?{place}.orValue({{}})");
    json!({"name": format!("{place}_before"), "expression": expression})
}

fn values_after(place: &str) -> Value {
    let expression = format!("object.metadata.?{place}.orValue({{}})");
    json!({"name": format!("{place}_after"), "expression": expression})
}

/// Reserved labels or annotations do not change. The spoke refuses such changes itself; this also binds a
/// compromised spoke.
fn reserved_unchanged(place: &str) -> String {
    let none_added = contained_in(place, "after", "before");
    let none_removed = contained_in(place, "before", "after");
    format!("{none_added} && {none_removed}")
}

/// Every reserved label or annotation of one version is in the other version, with the same value.
fn contained_in(place: &str, version: &str, other: &str) -> String {
    // A name contains at most one `/`.
    let domains = cel_list(RESERVED_DOMAINS.map(|domain| format!(".{domain}/")));
    let describing = cel_list(DESCRIBING_DOMAINS.map(|domain| format!("{domain}/")));
    format!(
        "variables.{place}_{version}.all(k, !{domains}.exists(d, ('.' + k).contains(d)) || \
         {describing}.exists(d, k.startsWith(d)) || k == '{NAME_LABEL}' || \
         variables.{place}_{other}[?k] == optional.of(variables.{place}_{version}[k]))"
    )
}

/// Application accounts that are bound in all namespaces, because the policy contains patterns, write nothing in
/// closed namespaces.
fn account_policy(kinds: &PolicyKinds) -> Value {
    let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for kind in kinds.extra() {
        groups.entry(&kind.group).or_default().push(&kind.resource);
    }
    let rules: Vec<Value> = groups
        .into_iter()
        .map(|(group, resources)| {
            json!({
                "apiGroups": [group], "apiVersions": ["*"], "resources": resources,
                "operations": ["CREATE", "UPDATE", "DELETE"], "scope": "Namespaced"
            })
        })
        .collect();
    let account_groups =
        kinds.by_accounts.keys().map(|name| format!("system:serviceaccounts:{name}"));
    let member = format!("request.userInfo.groups.exists(g, g in {})", cel_list(account_groups));
    json!({
        "failurePolicy": "Fail",
        "matchConstraints": {"matchPolicy": "Equivalent", "resourceRules": rules},
        "matchConditions": [{"name": "application-account", "expression": member}],
        "validations": [{"expression": is_open("request.namespace"), "message": CLOSED}]
    })
}

fn by_spoke() -> Value {
    json!({"name": "spoke", "expression": format!("request.userInfo.username == '{SPOKE_USER}'")})
}

fn is_open(namespace: &str) -> String {
    format!("!{namespace}.startsWith('kube-') && !{namespace}.startsWith('attest-')")
}

/// A list in CEL. Names and domains contain nothing to escape.
fn cel_list(names: impl IntoIterator<Item = impl Display>) -> String {
    let quoted: Vec<String> = names.into_iter().map(|name| format!("'{name}'")).collect();
    format!("[{}]", quoted.join(", "))
}

fn match_constraints((group, resource): (&str, &str), operations: &[&str]) -> Value {
    json!({"matchPolicy": "Equivalent", "resourceRules": [{
        "apiGroups": [group], "apiVersions": ["v1"], "resources": [resource],
        "operations": operations, "scope": "*"
    }]})
}

fn enforced(name: &str, spec: &Value) -> [Value; 2] {
    let binding = json!({"spec": {"policyName": name, "validationActions": ["Deny"]}});
    [
        object((VERSION, "ValidatingAdmissionPolicy"), None, name, json!({"spec": spec})),
        object((VERSION, "ValidatingAdmissionPolicyBinding"), None, name, binding),
    ]
}
