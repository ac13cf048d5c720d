//! Requests to a target cluster beside its manifests: what it is, and the spoke in it.

use attest_common::trust::policy::POLICY_NAME;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret, ServiceAccount};
use k8s_openapi::apimachinery::pkg::version::Info;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::apply::{InstallError, ObjectRef, ignore_not_found};
use attest_common::record::custody::{
    IDENTITY_CHAIN_KEY, IDENTITY_CLUSTER_ID_KEY, IDENTITY_SECRET, SPOKE_NAME, SPOKE_NAMESPACE,
};

/// Namespace in which earlier versions installed the spoke. It belongs to the hub now.
pub const EARLIER_SPOKE_NAMESPACE: &str = "attest-system";
/// The namespace whose UID identifies a cluster.
const IDENTIFYING_NAMESPACE: &str = "kube-system";

/// Facts of a target cluster on which a registration depends.
#[derive(Clone, Debug)]
pub struct ClusterFacts {
    /// Version of the API server.
    pub version: Info,
    /// UID of the namespace `kube-system`.
    pub kube_system_uid: String,
    /// Identity of the spoke installed there.
    pub spoke: Option<SpokeIdentity>,
    /// `spec` of the trust policy installed there.
    pub policy: Option<Value>,
    /// True if a spoke of an earlier version is installed in [`EARLIER_SPOKE_NAMESPACE`].
    pub has_earlier_spoke: bool,
}

/// A spoke's identity, as recorded in its Secret.
#[derive(Clone, Debug)]
pub struct SpokeIdentity {
    pub cluster_id: String,
    /// True once a hub has issued a certificate for it.
    pub joined: bool,
}

impl ClusterFacts {
    /// Reads the facts.
    ///
    /// # Errors
    /// The first request that the API server rejects.
    pub async fn read(client: &Client) -> Result<Self, InstallError> {
        let version = client.apiserver_version().await;
        let version = version.map_err(|e| InstallError::request("read", "/version", e))?;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let namespace = namespaces.get(IDENTIFYING_NAMESPACE).await;
        let namespace = namespace
            .map_err(|e| InstallError::request("read Namespace", IDENTIFYING_NAMESPACE, e))?;
        Ok(Self {
            version,
            kube_system_uid: namespace.metadata.uid.unwrap_or_default(),
            spoke: spoke_identity(client).await?,
            policy: installed_policy(client).await?,
            has_earlier_spoke: has_earlier_spoke(client).await?,
        })
    }
}

/// Secrets of the spoke's namespace.
pub fn spoke_secrets(client: &Client) -> Api<Secret> {
    Api::namespaced(client.clone(), SPOKE_NAMESPACE)
}

/// Reads the spoke's identity. `None` until the spoke has created one.
///
/// # Errors
/// When the API server rejects the request.
pub async fn spoke_identity(client: &Client) -> Result<Option<SpokeIdentity>, InstallError> {
    let secret = spoke_secrets(client).get_opt(IDENTITY_SECRET).await;
    let secret = secret.map_err(|e| InstallError::request("read Secret", IDENTITY_SECRET, e))?;
    let Some(data) = secret.and_then(|secret| secret.data) else { return Ok(None) };
    let id = data.get(IDENTITY_CLUSTER_ID_KEY);
    let id = id.and_then(|bytes| std::str::from_utf8(&bytes.0).ok());
    Ok(id.map(|id| SpokeIdentity {
        cluster_id: id.trim().to_owned(),
        joined: data.contains_key(IDENTITY_CHAIN_KEY),
    }))
}

async fn installed_policy(client: &Client) -> Result<Option<Value>, InstallError> {
    let manifest = json!({"kind": "AttestTrustPolicy", "metadata": {"name": POLICY_NAME}});
    let policy = ObjectRef::from_manifest(&manifest)?;
    match policy.api(client).get(POLICY_NAME).await {
        Ok(found) => Ok(found.data.get("spec").cloned()),
        // Without the definition, the answer is a 404 that is not a Kubernetes status.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(source) => Err(InstallError::request("read AttestTrustPolicy", POLICY_NAME, source)),
    }
}

/// Returns true if the account of a spoke exists where earlier versions installed it. An operator who may not read
/// that namespace did not install one.
async fn has_earlier_spoke(client: &Client) -> Result<bool, InstallError> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), EARLIER_SPOKE_NAMESPACE);
    match accounts.get_opt(SPOKE_NAME).await {
        Ok(account) => Ok(account.is_some()),
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(false),
        Err(source) => Err(InstallError::request("read ServiceAccount", SPOKE_NAME, source)),
    }
}

/// Deletes the spoke's identity: the spoke creates a new one when it starts next.
///
/// # Errors
/// When the API server rejects the request.
pub async fn delete_spoke_identity(client: &Client) -> Result<(), InstallError> {
    let deleted = spoke_secrets(client).delete(IDENTITY_SECRET, &DeleteParams::default()).await;
    ignore_not_found(deleted)
        .map_err(|e| InstallError::request("delete Secret", IDENTITY_SECRET, e))
}

/// Returns true if a pod of the spoke exists.
///
/// # Errors
/// When the API server rejects the request.
pub async fn has_spoke_pods(client: &Client) -> Result<bool, InstallError> {
    let listed = spoke_pods(client).list(&ListParams::default().labels(&spoke_label())).await;
    let listed = listed.map_err(|e| InstallError::request("list Pods of", SPOKE_NAME, e))?;
    Ok(!listed.items.is_empty())
}

/// Deletes the spoke's pods, which its Deployment replaces. Does nothing without a Deployment.
///
/// # Errors
/// When the API server rejects the request.
pub async fn restart_spoke(client: &Client) -> Result<(), InstallError> {
    let selected = ListParams::default().labels(&spoke_label());
    let deleted = spoke_pods(client).delete_collection(&DeleteParams::default(), &selected).await;
    ignore_not_found(deleted).map_err(|e| InstallError::request("delete Pods of", SPOKE_NAME, e))
}

/// Issues a token of the spoke's account. `None` if the API server's answer has none.
///
/// # Errors
/// When the API server rejects the request.
pub async fn issue_account_token(
    client: &Client,
    lifetime_s: i64,
) -> Result<Option<String>, InstallError> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), SPOKE_NAMESPACE);
    let spec =
        TokenRequestSpec { expiration_seconds: Some(lifetime_s), ..TokenRequestSpec::default() };
    let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
    let issued = accounts.create_token_request(SPOKE_NAME, &PostParams::default(), &request).await;
    let issued = issued.map_err(|e| InstallError::request("issue a token of", SPOKE_NAME, e))?;
    Ok(issued.status.and_then(|status| status.token))
}

/// The reason why a container of the spoke does not run, as reported by Kubernetes.
pub async fn spoke_pod_problem(client: &Client) -> Option<String> {
    let selected = ListParams::default().labels(&spoke_label());
    let listed = spoke_pods(client).list(&selected).await.ok()?;
    let statuses = listed.items.into_iter().filter_map(|pod| pod.status);
    let containers = statuses.flat_map(|status| status.container_statuses.unwrap_or_default());
    containers.filter_map(|container| container.state?.waiting).find_map(|waiting| {
        let message = waiting.message.unwrap_or_default();
        waiting.reason.map(|reason| format!("{reason} {message}").trim().to_owned())
    })
}

fn spoke_pods(client: &Client) -> Api<Pod> {
    Api::namespaced(client.clone(), SPOKE_NAMESPACE)
}

fn spoke_label() -> String {
    format!("app.kubernetes.io/name={SPOKE_NAME}")
}
