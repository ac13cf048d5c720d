//! Brings manifests into a cluster by server-side apply. Repeating it changes nothing.
//!
//! The caller provides a client with the operator's credentials; this module reads no kubeconfig.

use std::collections::BTreeSet;
use std::time::Duration;

use attest_common::basics::reason::Reason;
use attest_common::trust::policy::POLICY_NAME;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::{ApiResource, Status};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{FIELD_MANAGER, KINDS_LABEL};

/// Longest time until the API server serves a new CustomResourceDefinition.
pub const ESTABLISHED_WITHIN: Duration = Duration::from_secs(30);
const POLL_EVERY: Duration = Duration::from_millis(100);

/// Kinds of an installation: group, version, kind, plural, namespaced.
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

/// Kinds whose objects are removed when the policy no longer needs them.
const PRUNED: [&str; 6] = [
    "ValidatingAdmissionPolicyBinding",
    "ValidatingAdmissionPolicy",
    "ClusterRoleBinding",
    "RoleBinding",
    "ClusterRole",
    "Role",
];

/// Reference to an object of an installation. Displayed as `Kind/namespace/name`.
#[derive(Clone, Debug)]
pub struct ObjectRef {
    pub resource: ApiResource,
    pub namespace: Option<String>,
    pub name: String,
}

impl ObjectRef {
    /// Reads kind, namespace and name of a manifest.
    ///
    /// # Errors
    /// [`InstallError::Manifest`] for a kind that is not part of an installation.
    pub fn from_manifest(manifest: &Value) -> Result<Self, InstallError> {
        let kind = manifest.get("kind").and_then(Value::as_str).unwrap_or_default();
        let name = manifest.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        let namespace = manifest.pointer("/metadata/namespace").and_then(Value::as_str);
        match api_resource(kind) {
            Some((resource, namespaced))
                if namespaced == namespace.is_some() && !name.is_empty() =>
            {
                let namespace = namespace.map(str::to_owned);
                Ok(Self { resource, namespace, name: name.to_owned() })
            }
            Some(_) | None => Err(InstallError::Manifest(format!("{kind}/{name}"))),
        }
    }

    /// The API for objects of this kind and namespace.
    pub fn api(&self, client: &Client) -> Api<DynamicObject> {
        match &self.namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &self.resource),
            None => Api::all_with(client.clone(), &self.resource),
        }
    }
}

impl std::fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/", self.resource.kind)?;
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(&self.name)
    }
}

/// The API resource of a kind of an installation, and true if it is namespaced.
pub(super) fn api_resource(kind: &str) -> Option<(ApiResource, bool)> {
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

/// References to the objects of these manifests, as text.
pub(super) fn object_names(manifests: &[Value]) -> Result<BTreeSet<String>, InstallError> {
    manifests.iter().map(|one| Ok(ObjectRef::from_manifest(one)?.to_string())).collect()
}

/// Kinds whose objects [`prune`] removes.
pub fn pruned_kinds() -> impl Iterator<Item = ApiResource> {
    PRUNED.iter().filter_map(|kind| api_resource(kind)).map(|(resource, _)| resource)
}

/// Applies the manifests in their order.
///
/// # Errors
/// The first object that the API server rejects, by name. Objects applied before it remain.
pub async fn apply_manifests(client: &Client, manifests: &[Value]) -> Result<(), InstallError> {
    for manifest in manifests {
        let object = ObjectRef::from_manifest(manifest)?;
        apply_object(client, &object, manifest).await?;
        if object.resource.kind == "CustomResourceDefinition" {
            wait_established(client, &object).await?;
        }
    }
    Ok(())
}

/// Applies the cluster-scoped manifests as a dry run: nothing changes.
///
/// # Errors
/// As [`apply_manifests`]. A permission that the operator may not grant is found here, before the first write.
pub async fn dry_run(client: &Client, manifests: &[Value]) -> Result<(), InstallError> {
    let parameters = PatchParams::apply(FIELD_MANAGER).force().dry_run();
    for manifest in manifests {
        let object = ObjectRef::from_manifest(manifest)?;
        // The others need a namespace or a definition that does not exist yet.
        if object.namespace.is_some() || object.resource.kind == "AttestTrustPolicy" {
            continue;
        }
        let patched = patch_object(client, &object, manifest, &parameters).await;
        patched.map_err(|source| InstallError::on_object("apply", &object, source))?;
    }
    Ok(())
}

/// Removes the objects that an earlier policy needed and that are not among `manifests`. Returns them.
///
/// # Errors
/// The first request that the API server rejects.
pub async fn prune(client: &Client, manifests: &[Value]) -> Result<Vec<ObjectRef>, InstallError> {
    let wanted = object_names(manifests)?;
    let from_policy = ListParams::default().labels(&format!("{KINDS_LABEL}=true"));
    let mut removed = Vec::new();
    for resource in pruned_kinds() {
        let all: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        let listed = all.list(&from_policy).await;
        let listed = listed.map_err(|e| InstallError::request("list", &resource.plural, e))?;
        for found in listed {
            let object = ObjectRef {
                resource: resource.clone(),
                namespace: found.metadata.namespace,
                name: found.metadata.name.unwrap_or_default(),
            };
            if !wanted.contains(&object.to_string()) {
                let parameters = DeleteParams::default();
                let deleted = object.api(client).delete(&object.name, &parameters).await;
                deleted.map_err(|source| InstallError::on_object("delete", &object, source))?;
                removed.push(object);
            }
        }
    }
    Ok(removed)
}

/// The objects of these manifests that exist in the cluster.
///
/// # Errors
/// The first request that the API server rejects.
pub async fn existing_objects(
    client: &Client,
    manifests: &[Value],
) -> Result<Vec<ObjectRef>, InstallError> {
    let mut existing = Vec::new();
    for manifest in manifests {
        let object = ObjectRef::from_manifest(manifest)?;
        let found = object.api(client).get_opt(&object.name).await;
        if found.map_err(|source| InstallError::on_object("read", &object, source))?.is_some() {
            existing.push(object);
        }
    }
    Ok(existing)
}

/// Deletes an object and, in the background, its dependents. An object that does not exist is not an error.
///
/// # Errors
/// When the API server rejects the request.
pub async fn delete_object(client: &Client, object: &ObjectRef) -> Result<(), InstallError> {
    let deleted = object.api(client).delete(&object.name, &DeleteParams::background()).await;
    ignore_not_found(deleted).map_err(|source| InstallError::on_object("delete", object, source))
}

/// Writes the id of the spoke for which the policy is installed into the policy's status.
///
/// # Errors
/// When the API server rejects the request.
pub async fn write_cluster_id(client: &Client, cluster_id: &str) -> Result<(), InstallError> {
    let manifest = json!({
        "apiVersion": "attest.continuu.ms/v1", "kind": "AttestTrustPolicy",
        "metadata": {"name": POLICY_NAME}, "status": {"clusterId": cluster_id}
    });
    let policy = ObjectRef::from_manifest(&manifest)?;
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    let patch = Patch::Apply(&manifest);
    let patched = policy.api(client).patch_status(&policy.name, &parameters, &patch).await;
    patched.map_err(|e| InstallError::on_object("write the status of", &policy, e))?;
    Ok(())
}

/// Applies one object. A kind that was just defined is answered with 404 for a moment.
async fn apply_object(
    client: &Client,
    object: &ObjectRef,
    manifest: &Value,
) -> Result<(), InstallError> {
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    let until = Instant::now() + ESTABLISHED_WITHIN;
    loop {
        match patch_object(client, object, manifest, &parameters).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status))
                if status.code == 404 && !names_namespace(&status) && Instant::now() < until =>
            {
                tokio::time::sleep(POLL_EVERY).await;
            }
            Err(source) => return Err(InstallError::on_object("apply", object, source)),
        }
    }
}

async fn patch_object(
    client: &Client,
    object: &ObjectRef,
    manifest: &Value,
    parameters: &PatchParams,
) -> kube::Result<DynamicObject> {
    object.api(client).patch(&object.name, parameters, &Patch::Apply(manifest)).await
}

/// Returns true if the 404 is about a missing namespace, which waiting does not create.
fn names_namespace(status: &Status) -> bool {
    status.details.as_ref().is_some_and(|details| details.kind == "namespaces")
}

async fn wait_established(client: &Client, definition: &ObjectRef) -> Result<(), InstallError> {
    let until = Instant::now() + ESTABLISHED_WITHIN;
    loop {
        let found = definition.api(client).get(&definition.name).await;
        let found = found.map_err(|source| InstallError::on_object("read", definition, source))?;
        if is_established(&found) {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(InstallError::NotEstablished(definition.name.clone()));
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
}

fn is_established(definition: &DynamicObject) -> bool {
    let conditions = definition.data.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().any(|condition| {
        condition.get("type").is_some_and(|kind| kind == "Established")
            && condition.get("status").is_some_and(|status| status == "True")
    })
}

/// Success for an object that does not exist.
pub(super) fn ignore_not_found<T>(result: kube::Result<T>) -> kube::Result<()> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(drop),
    }
}

/// Error that stopped an installation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    #[error("failed to {action} {object}")]
    Refused {
        /// The request, for example `apply` or `list pods of`.
        action: &'static str,
        object: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("timed out waiting for the API server to serve {0}")]
    NotEstablished(String),
    #[error("{0} is not part of an installation")]
    Manifest(String),
}

impl InstallError {
    pub(super) fn request(action: &'static str, object: &str, source: kube::Error) -> Self {
        Self::Refused { action, object: object.to_owned(), source: Box::new(source) }
    }

    pub(super) fn on_object(action: &'static str, object: &ObjectRef, source: kube::Error) -> Self {
        Self::request(action, &object.to_string(), source)
    }

    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Refused { .. } => Reason::InstallRefused,
            Self::NotEstablished(_) => Reason::DefinitionNotEstablished,
            Self::Manifest(_) => Reason::InstallManifest,
        }
    }
}
