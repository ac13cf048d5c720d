//! The API server: how it is reached, and the few requests that are made to it. Decides nothing.
//!
//! Requests are plain HTTP with JSON, because impersonation and "created or only changed?" are
//! headers and status codes that a typed client hides.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use attest_common::ids::Timestamp;
use attest_common::projection::FIELD_MANAGER;
use attest_common::report::error_chain;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, StatusCode};
use kube::client::{Body, ClientBuilder};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use tower::util::MapRequestLayer;

use crate::metrics::Metrics;
use crate::{ACCOUNT, NAMESPACE};

/// Longest a request other than a watch may take.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a renewed token of a kubeconfig is asked to live, in seconds.
pub const TOKEN_LIFETIME_S: u64 = 24 * 60 * 60;
/// How often to look whether the token must be renewed.
const TOKEN_CHECK_EVERY: Duration = Duration::from_secs(60);
/// Longest message of the API server that is kept, in characters.
const MESSAGE_CHARACTERS_MAX: usize = 600;

const IMPERSONATE: &str = "impersonate-user";
const APPLY_PATCH: &str = "application/apply-patch+yaml";

/// The API server, as the spoke's own service account unless told otherwise.
#[derive(Clone)]
pub struct ApiServer {
    client: Client,
    metrics: Metrics,
    token: Option<Arc<FileToken>>,
}

/// How to reach the API server.
#[derive(Clone, Debug)]
pub enum Access {
    /// A kubeconfig file; a token in it is renewed and written back.
    Kubeconfig(PathBuf),
    /// The directory with `token` and `ca.crt`, and the two well-known variables.
    ServiceAccount(PathBuf),
}

/// Whose name a request carries.
#[derive(Clone, Copy, Debug)]
pub enum As<'a> {
    Spoke,
    /// `system:serviceaccount:<namespace>:<name>` of an application's account.
    Account(&'a str),
}

/// What server-side apply may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Apply {
    /// Only ask what would happen; take no field from another manager.
    DryRun,
    /// Only ask what would happen, with force.
    DryRunForced,
    /// Take no field from another manager.
    Unforced,
    /// Take our fields back.
    Forced,
}

/// What an apply did.
#[derive(Debug)]
pub struct Applied {
    /// True when the object did not exist before.
    pub created: bool,
    pub live: Value,
}

impl ApiServer {
    /// Reads the access and prepares the client. Sends nothing yet.
    ///
    /// # Errors
    /// When the kubeconfig or the service account's files cannot be used.
    pub async fn open(access: &Access, metrics: Metrics) -> Result<Self, ClusterError> {
        let (config, token) = match access {
            Access::Kubeconfig(path) => from_kubeconfig(path).await?,
            Access::ServiceAccount(directory) => (from_service_account(directory)?, None),
        };
        let builder =
            ClientBuilder::try_from(config).map_err(|e| ClusterError::Client(e.into()))?;
        let client = match &token {
            None => builder.build(),
            Some(token) => {
                let token = Arc::clone(token);
                let authorize = MapRequestLayer::new(move |mut request: Request<Body>| {
                    if let Some(value) = token.header() {
                        request.headers_mut().insert(AUTHORIZATION, value);
                    }
                    request
                });
                builder.with_layer(&authorize).build()
            }
        };
        Ok(Self { client, metrics, token })
    }

    /// The client, for watches.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Reads an object or list.
    ///
    /// # Errors
    /// [`ApiError`], also when there is none.
    pub async fn get(&self, path: &str) -> Result<Value, ApiError> {
        self.send(Method::GET, path, As::Spoke, None).await.map(|(_, value)| value)
    }

    /// Reads an object that may be absent.
    ///
    /// # Errors
    /// [`ApiError`], but not for an absent object.
    pub async fn get_optional(&self, path: &str) -> Result<Option<Value>, ApiError> {
        match self.get(path).await {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The aggregated discovery document.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn discovery(&self, path: &str) -> Result<Value, ApiError> {
        let request = Request::get(path)
            .header(ACCEPT, "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
        self.call("get", path, request, Vec::new()).await.map(|(_, value)| value)
    }

    /// Reads a list with nothing but metadata in it.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn get_metadata(&self, path: &str) -> Result<Value, ApiError> {
        let request = Request::get(path)
            .header(ACCEPT, "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1");
        self.call("list", path, request, Vec::new()).await.map(|(_, value)| value)
    }

    /// Creates an object.
    ///
    /// # Errors
    /// [`ApiError`]; see [`ApiError::is_already_exists`].
    pub async fn create(&self, path: &str, body: &Value) -> Result<Value, ApiError> {
        self.send(Method::POST, path, As::Spoke, Some(body)).await.map(|(_, value)| value)
    }

    /// Replaces an object; with `metadata.resourceVersion` in it, only that version.
    ///
    /// # Errors
    /// [`ApiError`]; see [`ApiError::is_conflict`].
    pub async fn replace(&self, path: &str, body: &Value) -> Result<Value, ApiError> {
        self.send(Method::PUT, path, As::Spoke, Some(body)).await.map(|(_, value)| value)
    }

    /// Deletes an object of the spoke's own namespace. Absent is fine.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn delete_own(&self, path: &str) -> Result<(), ApiError> {
        match self.send(Method::DELETE, path, As::Spoke, None).await {
            Err(error) if !error.is_not_found() => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Server-side apply of an application's object. Only `apply` calls this.
    pub(crate) async fn apply(
        &self,
        path: &str,
        user: As<'_>,
        object: &Value,
        how: Apply,
    ) -> Result<Applied, ApiError> {
        let mut uri = format!("{path}?fieldManager={FIELD_MANAGER}&fieldValidation=Strict");
        if matches!(how, Apply::DryRun | Apply::DryRunForced) {
            uri.push_str("&dryRun=All");
        }
        if matches!(how, Apply::Forced | Apply::DryRunForced) {
            uri.push_str("&force=true");
        }
        let (status, live) = self.send(Method::PATCH, &uri, user, Some(object)).await?;
        Ok(Applied { created: status == StatusCode::CREATED, live })
    }

    /// Deletes an application's object if it still has this UID. Only `apply` calls this.
    pub(crate) async fn delete(&self, path: &str, user: As<'_>, uid: &str) -> Result<(), ApiError> {
        let options = json!({
            "apiVersion": "v1", "kind": "DeleteOptions",
            "propagationPolicy": "Background", "preconditions": {"uid": uid},
        });
        match self.send(Method::DELETE, path, user, Some(&options)).await {
            // Gone, or another object of the same name: not ours any more.
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        user: As<'_>,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Value), ApiError> {
        let verb = match method {
            Method::GET => "get",
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            _ => "delete",
        };
        let media_type = if method == Method::PATCH { APPLY_PATCH } else { "application/json" };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, media_type);
        if let Some(value) = impersonated(user) {
            request = request.header(IMPERSONATE, value);
        }
        let bytes = body.map(|value| value.to_string().into_bytes()).unwrap_or_default();
        self.call(verb, path, request, bytes).await
    }

    async fn call(
        &self,
        verb: &'static str,
        path: &str,
        request: http::request::Builder,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Value), ApiError> {
        self.metrics.requests.with_label_values(&[verb]).inc();
        let place = || path.split('?').next().unwrap_or_default().to_owned();
        let request = request
            .body(Body::from(body))
            .map_err(|error| ApiError::Request { path: place(), message: error.to_string() })?;
        let exchange = async {
            let response = self.client.send(request).await?;
            let status = response.status();
            let bytes = response.into_body().collect_bytes().await?;
            Ok::<_, kube::Error>((status, bytes))
        };
        let answered = tokio::time::timeout(REQUEST_TIMEOUT, exchange).await;
        let (status, bytes) =
            answered.map_err(|_| ApiError::Timeout { verb, path: place() })?.map_err(|source| {
                ApiError::Transport { verb, path: place(), source: Box::new(source) }
            })?;
        let value: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        if status.is_success() {
            return Ok((status, value));
        }
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
        Err(ApiError::Status {
            verb,
            path: place(),
            code: status.as_u16(),
            status_reason: text("reason").to_owned(),
            message: text("message").chars().take(MESSAGE_CHARACTERS_MAX).collect(),
        })
    }

    /// Renews the kubeconfig's token for as long as the process lives; returns at once without one.
    pub async fn keep_token(self) {
        let Some(token) = self.token.clone() else { return };
        loop {
            if token.is_due(jiff::Timestamp::now()) {
                match self.renew(&token).await {
                    Ok(()) => tracing::info!("Renewed the token of the kubeconfig"),
                    Err(error) => tracing::warn!(
                        reason = error.reason(),
                        error = %error_chain(&error),
                        "Cannot renew the token of the kubeconfig"
                    ),
                }
            }
            tokio::time::sleep(TOKEN_CHECK_EVERY).await;
        }
    }

    async fn renew(&self, token: &FileToken) -> Result<(), ClusterError> {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{ACCOUNT}/token");
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"expirationSeconds": TOKEN_LIFETIME_S},
        });
        let answer = self.create(&path, &body).await.map_err(ClusterError::Api)?;
        let fresh = answer.pointer("/status/token").and_then(Value::as_str);
        token.replace(fresh.ok_or(ClusterError::TokenMissing)?)
    }
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("ApiServer").finish_non_exhaustive()
    }
}

fn impersonated(user: As<'_>) -> Option<HeaderValue> {
    match user {
        As::Spoke => None,
        As::Account(name) => HeaderValue::from_str(name).ok(),
    }
}

/// Path of an object, or of the collection when `name` is empty.
pub fn object_path(api_version: &str, plural: &str, namespace: Option<&str>, name: &str) -> String {
    let root = if api_version.contains('/') { "/apis" } else { "/api" };
    let place = namespace.map(|n| format!("/namespaces/{n}")).unwrap_or_default();
    let end = if name.is_empty() { String::new() } else { format!("/{name}") };
    format!("{root}/{api_version}{place}/{plural}{end}")
}

/// The token of a kubeconfig, in memory and in its file.
struct FileToken {
    path: PathBuf,
    current: RwLock<Held>,
}

struct Held {
    token: String,
    /// Seconds since 1970; 0 when the token does not say.
    issued_s: i64,
    expires_s: i64,
}

impl Held {
    fn new(token: String) -> Self {
        let (issued_s, expires_s) = token_times(&token).unwrap_or((0, 0));
        Self { token, issued_s, expires_s }
    }
}

impl FileToken {
    fn header(&self) -> Option<HeaderValue> {
        let held = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let mut value = HeaderValue::from_str(&format!("Bearer {}", held.token)).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// True from two thirds of the token's life on.
    fn is_due(&self, now: Timestamp) -> bool {
        let held = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let life_s = held.expires_s - held.issued_s;
        held.expires_s > 0 && now.as_second() >= held.issued_s + life_s * 2 / 3
    }

    fn replace(&self, fresh: &str) -> Result<(), ClusterError> {
        let former = {
            let mut held = self.current.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *held, Held::new(fresh.to_owned())).token
        };
        let file = |source| ClusterError::KubeconfigFile { path: self.path.clone(), source };
        let text = std::fs::read_to_string(&self.path).map_err(file)?;
        let text = text.replace(&former, fresh);
        attest_certs::bundle::write_private(&self.path, text.as_bytes())
            .map_err(|source| ClusterError::KubeconfigWrite { source })
    }
}

/// `iat` and `exp` of a service account token (RFC 7519). Read, not believed: the API server judges.
fn token_times(token: &str) -> Option<(i64, i64)> {
    let payload = token.split('.').nth(1)?;
    let bytes = data_encoding::BASE64URL_NOPAD.decode(payload.as_bytes()).ok()?;
    let claims: Value = serde_json::from_slice(&bytes).ok()?;
    Some((claims.get("iat")?.as_i64()?, claims.get("exp")?.as_i64()?))
}

async fn from_kubeconfig(path: &Path) -> Result<(Config, Option<Arc<FileToken>>), ClusterError> {
    let bad = |source| ClusterError::Kubeconfig { path: path.to_owned(), source: Box::new(source) };
    let file = Kubeconfig::read_from(path).map_err(bad)?;
    let mut config =
        Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(bad)?;
    // The client's own type hides the token; its written form is the kubeconfig's.
    let written = serde_json::to_value(&config.auth_info).unwrap_or_default();
    let token = written.get("token").and_then(Value::as_str).map(|token| {
        let held = Held::new(token.to_owned());
        Arc::new(FileToken { path: path.to_owned(), current: RwLock::new(held) })
    });
    if token.is_some() {
        config.auth_info.token = None;
    }
    Ok((config, token))
}

fn from_service_account(directory: &Path) -> Result<Config, ClusterError> {
    let variable = |name: &'static str| {
        std::env::var(name).map_err(|_| ClusterError::NotInCluster { missing: name.to_owned() })
    };
    let host = variable("KUBERNETES_SERVICE_HOST")?;
    let port = variable("KUBERNETES_SERVICE_PORT")?;
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let file = |name: &str| {
        let path = directory.join(name);
        let text = std::fs::read_to_string(&path);
        text.map_err(|_| ClusterError::NotInCluster { missing: path.display().to_string() })
    };
    let authority = attest_certs::bundle::chain_from_pem(&file("ca.crt")?)
        .map_err(|source| ClusterError::KubeconfigWrite { source })?;
    file("token")?;
    let uri = format!("https://{host}:{port}");
    let uri = uri.parse().map_err(|_| ClusterError::NotInCluster { missing: uri })?;
    let mut config = Config::new(uri);
    NAMESPACE.clone_into(&mut config.default_namespace);
    config.root_cert = Some(authority.iter().map(|der| der.as_ref().to_vec()).collect());
    config.auth_info.token_file = Some(directory.join("token").display().to_string());
    Ok(config)
}

/// Why the API server cannot be reached at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
    #[error("cannot use kubeconfig {}", .path.display())]
    Kubeconfig {
        path: PathBuf,
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    #[error("cannot read kubeconfig {}", .path.display())]
    KubeconfigFile {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot read or write credentials")]
    KubeconfigWrite {
        #[source]
        source: attest_certs::BundleError,
    },
    #[error("not in a cluster: {missing} is missing; give --kubeconfig FILE")]
    NotInCluster { missing: String },
    #[error("cannot prepare the Kubernetes client")]
    Client(#[source] Box<kube::Error>),
    #[error("the API server refused")]
    Api(#[source] ApiError),
    #[error("the API server answered without a token")]
    TokenMissing,
}

impl ClusterError {
    /// A stable word for logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Kubeconfig { .. } | Self::KubeconfigFile { .. } => "Kubeconfig",
            Self::KubeconfigWrite { .. } => "Credentials",
            Self::NotInCluster { .. } => "NotInCluster",
            Self::Client(_) => "KubernetesClient",
            Self::Api(error) => error.reason(),
            Self::TokenMissing => "TokenMissing",
        }
    }
}

/// Why one request failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    #[error("{verb} {path}: {code} {message}")]
    Status { verb: &'static str, path: String, code: u16, status_reason: String, message: String },
    #[error("{verb} {path}: no answer within {} s", REQUEST_TIMEOUT.as_secs())]
    Timeout { verb: &'static str, path: String },
    #[error("{verb} {path}: the API server cannot be reached")]
    Transport {
        verb: &'static str,
        path: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("{path}: {message}")]
    Request { path: String, message: String },
}

impl ApiError {
    fn code(&self) -> u16 {
        match self {
            Self::Status { code, .. } => *code,
            Self::Timeout { .. } | Self::Transport { .. } | Self::Request { .. } => 0,
        }
    }

    /// 404.
    pub fn is_not_found(&self) -> bool {
        self.code() == 404
    }

    /// 403.
    pub fn is_forbidden(&self) -> bool {
        self.code() == 403
    }

    /// 409 of a create.
    pub fn is_already_exists(&self) -> bool {
        matches!(self, Self::Status { status_reason, .. } if status_reason == "AlreadyExists")
    }

    /// 409 of anything else.
    pub fn is_conflict(&self) -> bool {
        self.code() == 409 && !self.is_already_exists()
    }

    /// True when asking again may help without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Status { code, .. } => *code == 429 || *code >= 500,
            Self::Timeout { .. } | Self::Transport { .. } => true,
            Self::Request { .. } => false,
        }
    }

    /// A stable word for conditions, metrics, logs and the CLI.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Status { code: 403, .. } => "Forbidden",
            Self::Status { code: 404, .. } => "NotFound",
            Self::Status { code: 409, .. } => "Conflict",
            Self::Status { code: 400 | 422, .. } => "Invalid",
            Self::Status { .. } => "ApiServerError",
            Self::Timeout { .. } => "ApiServerTimeout",
            Self::Transport { .. } => "ApiServerUnreachable",
            Self::Request { .. } => "RequestInvalid",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_group_namespace_and_object() {
        assert_eq!(object_path("v1", "pods", Some("n"), "a"), "/api/v1/namespaces/n/pods/a");
        assert_eq!(
            object_path("apps/v1", "deployments", Some("n"), ""),
            "/apis/apps/v1/namespaces/n/deployments"
        );
        assert_eq!(object_path("v1", "namespaces", None, "n"), "/api/v1/namespaces/n");
    }

    #[test]
    fn a_token_is_due_for_renewal_at_two_thirds_of_its_life() {
        let payload = data_encoding::BASE64URL_NOPAD.encode(br#"{"iat":1000,"exp":1300}"#);
        let token = FileToken {
            path: PathBuf::new(),
            current: RwLock::new(Held::new(format!("h.{payload}.s"))),
        };

        assert!(!token.is_due(Timestamp::from_second(1199).unwrap()));
        assert!(token.is_due(Timestamp::from_second(1200).unwrap()));
        let opaque = FileToken {
            path: PathBuf::new(),
            current: RwLock::new(Held::new("opaque".to_owned())),
        };
        assert!(!opaque.is_due(Timestamp::from_second(9_999_999_999).unwrap()));
    }
}
