//! The API server of the cluster that the hub runs on, or manages its resources in. No rules.

use std::path::{Path, PathBuf};
use std::time::Duration;

use attest_common::basics::reason::Reason;
use attest_runtime::service_account::{NotInCluster, ServiceAccount};
use http::header::{HeaderValue, USER_AGENT};
use k8s_openapi::api::core::v1::{Event, Namespace};
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Api, Client, Config};
use serde_json::Value;

/// User agent of the hub's requests, as audit logs show it.
const AGENT: &str = concat!("attest-hub/", env!("CARGO_PKG_VERSION"));
/// The namespace whose UID identifies a cluster.
const IDENTIFYING_NAMESPACE: &str = "kube-system";
/// Longest time to establish a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Field manager of what the hub writes by itself.
pub(crate) const FIELD_MANAGER: &str = "attest-gitops";

/// Address and credentials of the hub's API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KubernetesAccess {
    /// The directory of the pod's service account.
    ServiceAccount(PathBuf),
    /// The current context of a kubeconfig.
    Kubeconfig(PathBuf),
}

/// The API server of the hub's own cluster.
#[derive(Clone)]
pub struct HubKubernetes {
    pub client: Client,
    /// Namespace of the hub: the pod's, or that of the kubeconfig's context.
    pub namespace: String,
}

impl std::fmt::Debug for HubKubernetes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubKubernetes").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl HubKubernetes {
    /// Reads the credentials and prepares a client. Sends no request: the hub starts without its API server.
    ///
    /// # Errors
    /// When the files cannot be read or used.
    pub async fn open(access: &KubernetesAccess) -> Result<Self, KubernetesError> {
        let mut config = match access {
            KubernetesAccess::ServiceAccount(directory) => from_service_account(directory)?,
            KubernetesAccess::Kubeconfig(path) => from_kubeconfig(path).await?,
        };
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.headers.push((USER_AGENT, HeaderValue::from_static(AGENT)));
        let namespace = config.default_namespace.clone();
        let client = Client::try_from(config).map_err(|e| KubernetesError::Client(Box::new(e)))?;
        Ok(Self { client, namespace })
    }

    /// Returns the UID of namespace `kube-system`, which identifies the cluster.
    ///
    /// # Errors
    /// When the API server does not answer or refuses.
    pub async fn kube_system_uid(&self) -> Result<String, kube::Error> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        Ok(namespaces.get_metadata(IDENTIFYING_NAMESPACE).await?.metadata.uid.unwrap_or_default())
    }
}

async fn from_kubeconfig(path: &Path) -> Result<Config, KubernetesError> {
    let read = Kubeconfig::read_from(path).map_err(|e| unusable(path, e))?;
    let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
    config.map_err(|e| unusable(path, e))
}

fn unusable(path: &Path, source: KubeconfigError) -> KubernetesError {
    KubernetesError::Kubeconfig { path: path.to_owned(), source: Box::new(source) }
}

fn from_service_account(directory: &Path) -> Result<Config, KubernetesError> {
    let account = ServiceAccount::read(directory)?;
    let authority = attest_certs::bundle::chain_from_pem(&account.authority_pem)
        .map_err(KubernetesError::Authority)?;
    let server = account.server.parse();
    let server = server.map_err(|_| KubernetesError::Address(account.server.clone()))?;
    let mut config = Config::new(server);
    if let Some(namespace) = account.namespace {
        config.default_namespace = namespace;
    }
    config.root_cert = Some(authority.iter().map(|der| der.as_ref().to_vec()).collect());
    config.auth_info.token_file = Some(account.token_file.display().to_string());
    Ok(config)
}

/// Creates an event. One of its name that exists is the same event.
///
/// # Errors
/// When the API server rejects it.
pub(crate) async fn create_event(
    client: &Client,
    namespace: &str,
    event: Value,
) -> Result<(), kube::Error> {
    let event: Event = serde_json::from_value(event).map_err(kube::Error::SerdeError)?;
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    match events.create(&PostParams::default(), &event).await {
        Err(error) if is_conflict(&error) => Ok(()),
        other => other.map(drop),
    }
}

/// Returns true when the object exists, or has changed since it was read.
pub(crate) fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// Returns the reason to show for a request that failed.
pub(crate) fn request_reason(error: &kube::Error) -> Reason {
    let kube::Error::Api(status) = error else { return Reason::ApiServerUnreachable };
    if status.code == 403 { Reason::Forbidden } else { Reason::ApiServerError }
}

/// Failure to prepare a client for the hub's API server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KubernetesError {
    #[error("failed to use kubeconfig {}; check --kubeconfig", .path.display())]
    Kubeconfig {
        path: PathBuf,
        #[source]
        source: Box<KubeconfigError>,
    },
    #[error(transparent)]
    NotInCluster(#[from] NotInCluster),
    #[error("failed to read the certificate authority of the service account")]
    Authority(#[source] attest_certs::BundleError),
    #[error(
        "{0} is not the address of an API server; check KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT"
    )]
    Address(String),
    #[error("failed to prepare the Kubernetes client")]
    Client(#[source] Box<kube::Error>),
}

impl KubernetesError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Kubeconfig { .. } => Reason::Kubeconfig,
            Self::NotInCluster(_) | Self::Address(_) => Reason::NotInCluster,
            Self::Authority(_) => Reason::Credentials,
            Self::Client(_) => Reason::KubernetesClient,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let absent = directory.path().join("absent");

        for (access, reason) in [
            (KubernetesAccess::Kubeconfig(absent.clone()), Reason::Kubeconfig),
            (KubernetesAccess::ServiceAccount(absent), Reason::NotInCluster),
        ] {
            let error = HubKubernetes::open(&access).await.unwrap_err();
            assert_eq!(error.reason(), reason, "{error}");
        }
    }
}
