//! What the API server itself refuses the spoke, beyond what RBAC can say: bindings of any other shape,
//! and anything in the namespaces of Kubernetes and of ATTEST.

use std::collections::BTreeMap;

use attest_common::objects::placement::{DESCRIBING_DOMAINS, NAME_LABEL, RESERVED_DOMAINS};
use serde_json::{Value, json};

use super::{
    Kinds, SPOKE_NAME, SPOKE_USER, SYSTEM_NAMESPACE, WORKLOADS_READ_ROLE, WORKLOADS_ROLE,
    because_of_policy, object,
};

const VERSION: &str = "admissionregistration.k8s.io/v1";
const RESERVED: &str = "the spoke does not say what a namespace may do and where its pods run: labels and annotations \
     of Kubernetes and of the platforms built on it are not its own";
const CLOSED: &str = "namespaces that begin with kube- or attest- are closed to applications";

/// Policies with their bindings.
pub(super) fn manifests(kinds: &Kinds) -> Vec<Value> {
    let mut all = Vec::new();
    all.extend(enforced("attest-spoke-bindings", &bindings(kinds)));
    all.extend(enforced("attest-spoke-namespaces", &namespaces()));
    let everywhere = |beyond: &&super::Beyond| beyond.namespaces.is_none();
    if kinds.by_accounts.values().any(|beyond| everywhere(&beyond)) {
        let guard = enforced("attest-application-accounts", &application_accounts(kinds));
        all.extend(guard.into_iter().map(because_of_policy));
    }
    all
}

/// The spoke binds two roles, each to whom it is for, and takes away nothing but such bindings.
fn bindings(kinds: &Kinds) -> Value {
    let accounts: Vec<&String> = kinds.by_accounts.keys().collect();
    let shape = format!(
        "variables.it.roleRef.apiGroup == 'rbac.authorization.k8s.io' && \
         variables.it.roleRef.kind == 'ClusterRole' && \
         has(variables.it.subjects) && size(variables.it.subjects) == 1 && \
         variables.it.subjects[0].kind == 'ServiceAccount' && \
         ((variables.it.roleRef.name == '{WORKLOADS_ROLE}' && variables.it.subjects[0].namespace in {accounts}) || \
         (variables.it.roleRef.name == '{WORKLOADS_READ_ROLE}' && \
         variables.it.subjects[0].namespace == '{SYSTEM_NAMESPACE}' && \
         variables.it.subjects[0].name == '{SPOKE_NAME}'))",
        accounts = list(&accounts)
    );
    json!({
        "failurePolicy": "Fail",
        "matchConstraints": constraints(
            ("rbac.authorization.k8s.io", "rolebindings"),
            &["CREATE", "UPDATE", "DELETE"]
        ),
        "matchConditions": [by_spoke()],
        "variables": [
            {"name": "it", "expression": "request.operation == 'DELETE' ? oldObject : object"}
        ],
        "validations": [
            {"expression": open("request.namespace"), "message": CLOSED},
            {
                "expression": shape,
                "message": "the spoke may bind attest-workloads to one application account, or \
                            attest-workloads-read to itself, and nothing else"
            }
        ]
    })
}

/// The spoke makes and labels destination namespaces only.
fn namespaces() -> Value {
    json!({
        "failurePolicy": "Fail",
        "matchConstraints": constraints(("", "namespaces"), &["CREATE", "UPDATE"]),
        "matchConditions": [by_spoke()],
        "variables": [
            before("labels"), after("labels"),
            before("annotations"), after("annotations")
        ],
        "validations": [
            {"expression": open("object.metadata.name"), "message": CLOSED},
            {"expression": same_reserved("labels"), "message": RESERVED},
            {"expression": same_reserved("annotations"), "message": RESERVED}
        ]
    })
}

fn before(place: &str) -> Value {
    let expression =
        format!("oldObject == null ? {{}} : oldObject.metadata.?{place}.orValue({{}})");
    json!({"name": format!("{place}_before"), "expression": expression})
}

fn after(place: &str) -> Value {
    let expression = format!("object.metadata.?{place}.orValue({{}})");
    json!({"name": format!("{place}_after"), "expression": expression})
}

/// What is not the application's to say, which the spoke refuses itself, is not a taken spoke's either.
fn same_reserved(place: &str) -> String {
    let quoted = |texts: Vec<String>| format!("['{}']", texts.join("', '"));
    // A name has one `/` at most.
    let domains = quoted(RESERVED_DOMAINS.map(|domain| format!(".{domain}/")).to_vec());
    let describing = quoted(DESCRIBING_DOMAINS.map(|domain| format!("{domain}/")).to_vec());
    let kept = |of: &str, by: &str| {
        format!(
            "variables.{place}_{of}.all(k, !{domains}.exists(d, ('.' + k).contains(d)) || \
             {describing}.exists(d, k.startsWith(d)) || k == '{NAME_LABEL}' || \
             variables.{place}_{by}[?k] == optional.of(variables.{place}_{of}[k]))"
        )
    };
    format!("{} && {}", kept("after", "before"), kept("before", "after"))
}

/// Accounts that are bound everywhere, because the policy's namespaces are patterns, stay out of closed ones.
fn application_accounts(kinds: &Kinds) -> Value {
    let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for kind in kinds.extra() {
        groups.entry(&kind.group).or_default().push(&kind.resource);
    }
    let rule = |(group, resources): (&str, Vec<&str>)| {
        json!({
            "apiGroups": [group], "apiVersions": ["*"], "resources": resources,
            "operations": ["CREATE", "UPDATE", "DELETE"], "scope": "Namespaced"
        })
    };
    let rules: Vec<Value> = groups.into_iter().map(rule).collect();
    let names = kinds.by_accounts.keys().map(|name| format!("system:serviceaccounts:{name}"));
    let names: Vec<String> = names.collect();
    let member = format!(
        "request.userInfo.groups.exists(g, g in {})",
        list(&names.iter().collect::<Vec<_>>())
    );
    json!({
        "failurePolicy": "Fail",
        "matchConstraints": {"matchPolicy": "Equivalent", "resourceRules": rules},
        "matchConditions": [{"name": "application-account", "expression": member}],
        "validations": [{"expression": open("request.namespace"), "message": CLOSED}]
    })
}

fn by_spoke() -> Value {
    json!({"name": "spoke", "expression": format!("request.userInfo.username == '{SPOKE_USER}'")})
}

fn open(namespace: &str) -> String {
    format!("!{namespace}.startsWith('kube-') && !{namespace}.startsWith('attest-')")
}

/// A CEL list. Names are DNS labels: nothing to escape.
fn list(names: &[&String]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("'{name}'")).collect();
    format!("[{}]", quoted.join(", "))
}

fn constraints((group, resource): (&str, &str), operations: &[&str]) -> Value {
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
