//! The installation of `cluster add` and `trust install`: its manifests, the decision about a registration, and the
//! requests to the target cluster.
//!
//! Manifests are made from typed input only: the operator's trust policy and constants of this program. They
//! contain no cluster-admin and no wildcard: the spoke may create namespaces and bindings of two shapes, and writes
//! objects as the application's account. Requests use the client of the caller.

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

pub use attest_common::record::custody::{SPOKE_NAME, SPOKE_NAMESPACE};
use attest_common::trust::policy::{Entry, GroupResource, Spec, accounts_namespace};
pub use definition::{application_definition, trust_policy_definition};
use serde_json::{Map, Value, json};

/// User name of the spoke's ServiceAccount.
pub const SPOKE_USER: &str = "system:serviceaccount:attest-spoke:attest-spoke";
/// Field manager of everything installed here.
pub const FIELD_MANAGER: &str = "attest-install";
/// Label of every installed object; its value is [`FIELD_MANAGER`].
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// Role with the permissions of an application account in the namespaces where it is bound.
pub const WORKLOADS_ROLE: &str = "attest-workloads";
/// Role with the read permissions of the spoke in the namespaces where it is bound.
pub const WORKLOADS_READ_ROLE: &str = "attest-workloads-read";
/// Label of objects that exist only because of a policy entry; they are removed with the entry.
pub const KINDS_LABEL: &str = "attest.continuu.ms/kinds";

/// An installation, from which manifests are made.
#[derive(Clone, Copy, Debug)]
pub struct Installation<'a> {
    /// The policy, with `clusterName` and `kubeSystemUid`.
    pub policy: &'a Spec,
    pub placement: SpokePlacement<'a>,
}

/// Location of the spoke.
#[derive(Clone, Copy, Debug)]
pub enum SpokePlacement<'a> {
    /// As a Deployment in the target cluster.
    InCluster {
        /// Image reference.
        image: &'a str,
        /// `HOST:PORT` of the hub's listener for spokes.
        hub: &'a str,
        /// Join token; `None` for a cluster that has joined already.
        token: Option<&'a str>,
    },
    /// Outside the cluster, started by the operator: no Deployment and no token in the cluster.
    External,
}

impl Installation<'_> {
    /// Every manifest, in the order in which they are applied: dependencies first, the Deployment last.
    pub fn manifests(&self) -> Vec<Value> {
        let kinds = PolicyKinds::from_policy(self.policy);
        let mut all = vec![namespace(SPOKE_NAMESPACE, true)];
        all.extend(kinds.by_accounts.keys().map(|name| namespace(name, true)));
        all.extend(kinds.bound_namespaces().iter().map(|name| namespace(name, false)));
        all.push(trust_policy_definition());
        all.extend(rbac::manifests(&kinds));
        all.extend(admission::manifests(&kinds));
        all.push(definition::trust_policy(self.policy));
        if let SpokePlacement::InCluster { image, hub, token } = self.placement {
            all.extend(token.map(spoke::join_secret));
            all.push(spoke::deployment(image, hub));
        }
        all
    }
}

/// Manifests that only a spoke in the cluster needs. A spoke outside the cluster requires their removal: otherwise
/// two spokes with one identity would close each other's sessions.
pub fn in_cluster_only() -> [Value; 2] {
    [spoke::deployment("", ""), spoke::join_secret("")]
}

/// The Secret with a join token, for a spoke that is already installed.
pub fn join_secret(token: &str) -> Value {
    spoke::join_secret(token)
}

/// Kinds that the policy's entries allow in addition to workloads.
struct PolicyKinds {
    /// By the namespace of the accounts to which an entry applies.
    by_accounts: BTreeMap<String, AdditionalKinds>,
}

/// Additional kinds for the accounts of one namespace.
#[derive(Default)]
struct AdditionalKinds {
    extra: BTreeSet<GroupResource>,
    cluster_scoped: BTreeSet<GroupResource>,
    /// Namespaces of entries with `extra`; `None` if one of them is a pattern.
    namespaces: Option<BTreeSet<String>>,
}

impl PolicyKinds {
    fn from_policy(policy: &Spec) -> Self {
        let mut by_accounts: BTreeMap<String, AdditionalKinds> = BTreeMap::new();
        for entry in &policy.applications {
            let additional = by_accounts.entry(accounts_namespace(entry)).or_insert_with(|| {
                AdditionalKinds { namespaces: Some(BTreeSet::new()), ..AdditionalKinds::default() }
            });
            additional.add(entry);
        }
        Self { by_accounts }
    }

    /// All additional namespaced kinds, which the spoke reads in the namespaces where it is bound.
    fn extra(&self) -> BTreeSet<&GroupResource> {
        self.by_accounts.values().flat_map(|additional| &additional.extra).collect()
    }

    /// All cluster-scoped kinds that the policy allows.
    fn cluster_scoped(&self) -> BTreeSet<&GroupResource> {
        self.by_accounts.values().flat_map(|additional| &additional.cluster_scoped).collect()
    }

    /// Namespaces in which the installation creates bindings.
    fn bound_namespaces(&self) -> BTreeSet<&String> {
        let with_extra = self.by_accounts.values().filter(|kinds| !kinds.extra.is_empty());
        with_extra.flat_map(|kinds| kinds.namespaces.iter().flatten()).collect()
    }
}

impl AdditionalKinds {
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

/// A namespace. A reserved one admits only pods of the Pod Security Standard `restricted`.
fn namespace(name: &str, is_reserved: bool) -> Value {
    let mut manifest = object(("v1", "Namespace"), None, name, json!({}));
    if is_reserved && let Some(Value::Object(labels)) = manifest.pointer_mut("/metadata/labels") {
        labels.insert("pod-security.kubernetes.io/enforce".to_owned(), "restricted".into());
    }
    manifest
}

/// An object with the labels of an installation. `body` contains all fields except type and metadata.
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

/// Labels an object that exists only because of a policy entry and is removed with it.
fn labelled_for_pruning(mut manifest: Value) -> Value {
    if let Some(Value::Object(labels)) = manifest.pointer_mut("/metadata/labels") {
        labels.insert(KINDS_LABEL.to_owned(), "true".into());
    }
    manifest
}

#[cfg(test)]
mod tests;
