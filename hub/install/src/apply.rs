//! Brings manifests into a cluster by server-side apply. Repeating it changes nothing.
//!
//! The caller holds the operator's credentials; this file never sees a kubeconfig.

use std::collections::BTreeSet;
use std::time::Duration;

use attest_common::trust::policy::POLICY_NAME;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::{ApiResource, Status};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{FIELD_MANAGER, KINDS_LABEL};

/// How long the API server may take to serve a kind that was just defined.
pub const ESTABLISHED_WITHIN: Duration = Duration::from_secs(30);
const POLL_EVERY: Duration = Duration::from_millis(100);

/// Kinds that an installation consists of: group, version, kind, plural, namespaced.
const KINDS: [(&str, &str, &str, &str, bool); 12] = [
    ("", "v1", "Namespace", "namespaces", false),
    ("", "v1", "Secret", "secrets", true),
    ("", "v1", "ServiceAccount", "serviceaccounts", true),
    ("apps", "v1", "Deployment", "deployments", true),
    ("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions", false),
    ("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles", false),
    ("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings", false),
    ("rbac.authorization.k8s.io", "v1", "Role", "roles", true),
    ("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings", true),
    (
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingAdmissionPolicy",
        "validatingadmissionpolicies",
        false,
    ),
    (
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingAdmissionPolicyBinding",
        "validatingadmissionpolicybindings",
        false,
    ),
    ("attest.continuu.ms", "v1", "AttestTrustPolicy", "attesttrustpolicies", false),
];

/// Kinds whose objects go when the policy has no use for them any more.
const PRUNED: [&str; 6] = [
    "ValidatingAdmissionPolicyBinding",
    "ValidatingAdmissionPolicy",
    "ClusterRoleBinding",
    "RoleBinding",
    "ClusterRole",
    "Role",
];

/// An object to be applied: where it goes and what people call it.
#[derive(Clone, Debug)]
pub struct Target {
    pub resource: ApiResource,
    pub namespace: Option<String>,
    pub name: String,
}

impl Target {
    /// Reads type and name of a manifest.
    ///
    /// # Errors
    /// [`InstallError::Manifest`] for a kind that an installation does not consist of.
    pub fn of(manifest: &Value) -> Result<Self, InstallError> {
        let text = |path: &str| manifest.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let (kind, name) = (text("/kind"), text("/metadata/name"));
        let unknown = || InstallError::Manifest(format!("{kind}/{name}"));
        let (resource, namespaced) = resource(kind).ok_or_else(unknown)?;
        let namespace = manifest.pointer("/metadata/namespace").and_then(Value::as_str);
        if namespaced != namespace.is_some() || name.is_empty() {
            return Err(unknown());
        }
        Ok(Self { resource, namespace: namespace.map(str::to_owned), name: name.to_owned() })
    }

    /// The API for objects like this one.
    pub fn api(&self, client: &Client) -> Api<DynamicObject> {
        match &self.namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &self.resource),
            None => Api::all_with(client.clone(), &self.resource),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/", self.resource.kind)?;
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(&self.name)
    }
}

/// A kind that an installation consists of, and whether it is namespaced.
pub(super) fn resource(kind: &str) -> Option<(ApiResource, bool)> {
    let (group, version, kind, plural, namespaced) = KINDS.iter().find(|row| row.2 == kind)?;
    let api_version =
        if group.is_empty() { (*version).to_owned() } else { format!("{group}/{version}") };
    let resource = ApiResource {
        group: (*group).to_owned(),
        version: (*version).to_owned(),
        api_version,
        kind: (*kind).to_owned(),
        plural: (*plural).to_owned(),
    };
    Some((resource, *namespaced))
}

/// Kinds that [`prune`] looks through.
pub fn pruned_kinds() -> impl Iterator<Item = ApiResource> {
    PRUNED.iter().filter_map(|kind| resource(kind)).map(|(resource, _)| resource)
}

/// Applies the manifests in their order, telling `applied` about each.
///
/// # Errors
/// The first object that the API server refuses, by name. What was applied before stays.
pub async fn apply(
    client: &Client,
    manifests: &[Value],
    mut applied: impl FnMut(&Target),
) -> Result<(), InstallError> {
    for manifest in manifests {
        let target = Target::of(manifest)?;
        apply_one(client, &target, manifest).await?;
        if target.resource.kind == "CustomResourceDefinition" {
            established(client, &target).await?;
        }
        applied(&target);
    }
    Ok(())
}

/// Asks the API server whether it would accept the cluster-scoped manifests; changes nothing.
///
/// # Errors
/// As [`apply`]: rights that the operator may not hand on are found here, before anything is written.
pub async fn rehearse(client: &Client, manifests: &[Value]) -> Result<(), InstallError> {
    let parameters = PatchParams::apply(FIELD_MANAGER).force().dry_run();
    for manifest in manifests {
        let target = Target::of(manifest)?;
        // The others need a namespace or a definition that does not exist yet.
        if target.namespace.is_some() || target.resource.kind == "AttestTrustPolicy" {
            continue;
        }
        let patched = send(client, &target, manifest, &parameters).await;
        patched.map_err(|source| InstallError::refused(&target, source))?;
    }
    Ok(())
}

/// Removes rights that an earlier policy had added and that `manifests` no longer have.
///
/// # Errors
/// The first request that the API server refuses.
pub async fn prune(client: &Client, manifests: &[Value]) -> Result<Vec<Target>, InstallError> {
    let wanted: Vec<Target> = manifests.iter().map(Target::of).collect::<Result<_, _>>()?;
    let wanted: BTreeSet<String> = wanted.iter().map(ToString::to_string).collect();
    let marked = ListParams::default().labels(&format!("{KINDS_LABEL}=true"));
    let mut removed = Vec::new();
    for resource in pruned_kinds() {
        let kind = &resource.kind;
        let all: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        let failed = |name: &str| {
            let object = format!("{kind}/{name}");
            move |source| InstallError::Refused { object, source: Box::new(source) }
        };
        for found in all.list(&marked).await.map_err(failed("*"))? {
            let name = found.metadata.name.unwrap_or_default();
            let target =
                Target { resource: resource.clone(), namespace: found.metadata.namespace, name };
            if wanted.contains(&target.to_string()) {
                continue;
            }
            let parameters = DeleteParams::default();
            let deleted = target.api(client).delete(&target.name, &parameters).await;
            deleted.map_err(failed(&target.name))?;
            removed.push(target);
        }
    }
    Ok(removed)
}

/// Which of the manifests' objects are there.
///
/// # Errors
/// The first request that the API server refuses.
pub async fn present(client: &Client, manifests: &[Value]) -> Result<Vec<Target>, InstallError> {
    let mut found = Vec::new();
    for manifest in manifests {
        let target = Target::of(manifest)?;
        let got = target.api(client).get_opt(&target.name).await;
        if got.map_err(|source| InstallError::refused(&target, source))?.is_some() {
            found.push(target);
        }
    }
    Ok(found)
}

/// Deletes an object and, by way of the API server, what it made.
///
/// # Errors
/// When the API server refuses; not when the object is gone already.
pub async fn delete(client: &Client, target: &Target) -> Result<(), InstallError> {
    match target.api(client).delete(&target.name, &DeleteParams::background()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(source) => Err(InstallError::refused(target, source)),
    }
}

/// Writes the id of the spoke that the policy is for.
///
/// # Errors
/// When the API server refuses.
pub async fn write_cluster_id(client: &Client, cluster_id: &str) -> Result<(), InstallError> {
    let manifest = json!({
        "apiVersion": "attest.continuu.ms/v1", "kind": "AttestTrustPolicy",
        "metadata": {"name": POLICY_NAME}, "status": {"clusterId": cluster_id}
    });
    let target = Target::of(&manifest)?;
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    let patch = Patch::Apply(&manifest);
    let patched = target.api(client).patch_status(&target.name, &parameters, &patch).await;
    patched.map_err(|source| InstallError::refused(&target, source))?;
    Ok(())
}

/// A kind that was just defined answers 404 for a moment.
async fn apply_one(client: &Client, target: &Target, manifest: &Value) -> Result<(), InstallError> {
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    let until = Instant::now() + ESTABLISHED_WITHIN;
    loop {
        match send(client, target, manifest, &parameters).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status))
                if status.code == 404 && !names_namespace(&status) && Instant::now() < until =>
            {
                tokio::time::sleep(POLL_EVERY).await;
            }
            Err(source) => return Err(InstallError::refused(target, source)),
        }
    }
}

async fn send(
    client: &Client,
    target: &Target,
    manifest: &Value,
    parameters: &PatchParams,
) -> kube::Result<DynamicObject> {
    target.api(client).patch(&target.name, parameters, &Patch::Apply(manifest)).await
}

/// True when the 404 is about a namespace, which waiting does not bring.
fn names_namespace(status: &Status) -> bool {
    status.details.as_ref().is_some_and(|details| details.kind == "namespaces")
}

async fn established(client: &Client, target: &Target) -> Result<(), InstallError> {
    let until = Instant::now() + ESTABLISHED_WITHIN;
    loop {
        let found = target.api(client).get(&target.name).await;
        let found = found.map_err(|source| InstallError::refused(target, source))?;
        let conditions = found.data.pointer("/status/conditions").and_then(Value::as_array);
        let is_established = |condition: &Value| {
            condition.get("type").is_some_and(|kind| kind == "Established")
                && condition.get("status").is_some_and(|status| status == "True")
        };
        if conditions.is_some_and(|conditions| conditions.iter().any(is_established)) {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(InstallError::NotEstablished(target.name.clone()));
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
}

/// Why an installation stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    #[error("the API server refuses {object}")]
    Refused {
        object: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("the API server does not serve {0}, which was just defined")]
    NotEstablished(String),
    #[error("{0} is not part of an installation")]
    Manifest(String),
}

impl InstallError {
    pub(super) fn refused(target: &Target, source: kube::Error) -> Self {
        Self::Refused { object: target.to_string(), source: Box::new(source) }
    }

    /// A stable word for the CLI.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Refused { .. } => "InstallRefused",
            Self::NotEstablished(_) => "DefinitionNotEstablished",
            Self::Manifest(_) => "InstallManifest",
        }
    }
}
