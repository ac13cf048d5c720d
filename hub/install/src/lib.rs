//! What `cluster add` and `trust install` put into a target cluster, as manifests.
//!
//! Made from typed input only: the operator's trust policy and what the operator's own program knows.
//! Nothing here talks to anyone; [`apply`] does. There is no cluster-admin and no wildcard: the spoke
//! may create namespaces and two shapes of binding, and writes objects as the application's account.

mod admission;
pub mod apply;
pub mod cluster;
mod definition;
pub mod namespaces;
pub mod permissions;
mod rbac;
pub mod registration;
mod spoke;

use std::collections::{BTreeMap, BTreeSet};

pub use attest_common::record::custody::{SPOKE_NAME, SYSTEM_NAMESPACE};
use attest_common::trust::policy::{Entry, GroupResource, Spec, accounts_namespace};
use serde_json::{Map, Value, json};

/// User name of the spoke's ServiceAccount.
pub const SPOKE_USER: &str = "system:serviceaccount:attest-system:attest-spoke";
/// Field manager of everything installed here.
pub const FIELD_MANAGER: &str = "attest-install";
/// Label that says so of every object, with [`FIELD_MANAGER`] as its value.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// What an application account may do where it is bound.
pub const WORKLOADS_ROLE: &str = "attest-workloads";
/// What the spoke may read where it is bound.
pub const WORKLOADS_READ_ROLE: &str = "attest-workloads-read";
/// On what exists only because the policy allows further kinds; such objects go when the policy's line does.
pub const KINDS_LABEL: &str = "attest.continuu.ms/kinds";

/// What is to be installed.
#[derive(Clone, Copy, Debug)]
pub struct Installation<'a> {
    /// The policy, with `clusterName` and `kubeSystemUid` filled in.
    pub policy: &'a Spec,
    pub agent: Agent<'a>,
}

/// Where the spoke runs.
#[derive(Clone, Copy, Debug)]
pub enum Agent<'a> {
    /// As a Deployment in the target cluster.
    InCluster {
        /// Image reference.
        image: &'a str,
        /// `HOST:PORT` of the hub for spokes.
        hub: &'a str,
        /// Join token; absent when the cluster has joined already.
        token: Option<&'a str>,
    },
    /// Started by the operator somewhere else: no Deployment and no token in the cluster.
    External,
}

impl Installation<'_> {
    /// Every manifest, in the order of applying: what others need comes first, the Deployment last.
    pub fn manifests(&self) -> Vec<Value> {
        let kinds = Kinds::of(self.policy);
        let mut all = vec![namespace(SYSTEM_NAMESPACE, true)];
        all.extend(kinds.by_accounts.keys().map(|name| namespace(name, true)));
        all.extend(kinds.bound_namespaces().iter().map(|name| namespace(name, false)));
        all.push(definition::trust_policy_definition());
        all.extend(rbac::manifests(&kinds));
        all.extend(admission::manifests(&kinds));
        all.push(definition::trust_policy(self.policy));
        if let Agent::InCluster { image, hub, token } = self.agent {
            all.extend(token.map(spoke::join_secret));
            all.push(spoke::deployment(image, hub));
        }
        all
    }
}

/// What an agent in the cluster has and one outside it has not: were both there, two spokes of one identity would take the
/// session from each other for ever.
pub fn in_cluster_only() -> [Value; 2] {
    [spoke::deployment("", ""), spoke::join_secret("")]
}

/// The join token's Secret, for a spoke that was installed by other means.
pub fn join_secret(token: &str) -> Value {
    spoke::join_secret(token)
}

/// What the policy's entries allow beyond workloads, by accounts namespace.
struct Kinds {
    by_accounts: BTreeMap<String, Beyond>,
}

/// Kinds beyond the workloads for the accounts of one namespace.
#[derive(Default)]
struct Beyond {
    extra: BTreeSet<GroupResource>,
    cluster_scoped: BTreeSet<GroupResource>,
    /// Namespaces that entries with `extra` name; `None` once one of them is a pattern.
    namespaces: Option<BTreeSet<String>>,
}

impl Kinds {
    fn of(policy: &Spec) -> Self {
        let mut by_accounts: BTreeMap<String, Beyond> = BTreeMap::new();
        for entry in &policy.applications {
            let beyond = by_accounts.entry(accounts_namespace(entry)).or_insert_with(|| Beyond {
                namespaces: Some(BTreeSet::new()),
                ..Beyond::default()
            });
            beyond.add(entry);
        }
        Self { by_accounts }
    }

    /// All namespaced kinds beyond the workloads: what the spoke must be able to read where it is bound.
    fn extra(&self) -> BTreeSet<&GroupResource> {
        self.by_accounts.values().flat_map(|beyond| &beyond.extra).collect()
    }

    /// All cluster-scoped kinds that the policy allows.
    fn cluster_scoped(&self) -> BTreeSet<&GroupResource> {
        self.by_accounts.values().flat_map(|beyond| &beyond.cluster_scoped).collect()
    }

    /// Namespaces in which the installer itself binds.
    fn bound_namespaces(&self) -> BTreeSet<&String> {
        let with_extra = self.by_accounts.values().filter(|beyond| !beyond.extra.is_empty());
        with_extra.flat_map(|beyond| beyond.namespaces.iter().flatten()).collect()
    }
}

impl Beyond {
    fn add(&mut self, entry: &Entry) {
        self.extra.extend(entry.kinds.extra.iter().cloned());
        self.cluster_scoped.extend(entry.kinds.cluster_scoped.iter().cloned());
        if entry.kinds.extra.is_empty() {
            return;
        }
        if entry.namespaces.iter().any(|name| name.contains('*')) {
            self.namespaces = None;
        } else if let Some(namespaces) = &mut self.namespaces {
            namespaces.extend(entry.namespaces.iter().cloned());
        }
    }
}

/// `ours` namespaces admit no pod that asks for anything special.
fn namespace(name: &str, ours: bool) -> Value {
    let mut manifest = object(("v1", "Namespace"), None, name, json!({}));
    if ours && let Some(Value::Object(labels)) = manifest.pointer_mut("/metadata/labels") {
        labels.insert("pod-security.kubernetes.io/enforce".to_owned(), "restricted".into());
    }
    manifest
}

/// An object with our labels; `body` is everything beside type and metadata.
fn object(kind: (&str, &str), namespace: Option<&str>, name: &str, body: Value) -> Value {
    let (api_version, kind) = kind;
    let mut metadata = json!({"name": name, "labels": labels()});
    if let (Some(namespace), Value::Object(fields)) = (namespace, &mut metadata) {
        fields.insert("namespace".to_owned(), namespace.into());
    }
    let mut all = Map::new();
    all.insert("apiVersion".to_owned(), api_version.into());
    all.insert("kind".to_owned(), kind.into());
    all.insert("metadata".to_owned(), metadata);
    if let Value::Object(body) = body {
        all.extend(body);
    }
    Value::Object(all)
}

fn labels() -> Value {
    json!({"app.kubernetes.io/part-of": "attest", MANAGED_BY_LABEL: FIELD_MANAGER})
}

/// Marks an object that exists only because of an entry of the policy, and goes with it.
fn because_of_policy(mut manifest: Value) -> Value {
    if let Some(Value::Object(labels)) = manifest.pointer_mut("/metadata/labels") {
        labels.insert(KINDS_LABEL.to_owned(), "true".into());
    }
    manifest
}

#[cfg(test)]
mod tests;
