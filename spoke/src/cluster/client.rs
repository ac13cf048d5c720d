//! Client of the API server. Decides nothing.
//!
//! Requests are plain HTTP with JSON, because impersonation is a header and the difference between
//! created and changed is a status code, which a typed client hides. Objects of built-in kinds that the spoke
//! keeps for itself have the types of `k8s-openapi`; those of applications may be of any kind and stay JSON.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use attest_common::basics::json::escaped;
use attest_common::basics::text::error_chain;
use attest_common::objects::projection::FIELD_MANAGER;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT};
use http::{Method, Request, StatusCode};
use k8s_openapi::Resource;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, Preconditions};
use kube::Client;
use kube::api::{ObjectList, PartialObjectMeta};
use kube::client::{Body, ClientBuilder};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::Semaphore;
use tower::util::MapRequestLayer;

use super::answer;
use super::credentials::{self, FileToken};
use super::error::{self, ApiError, ClusterError, Details, REQUEST_TIMEOUT};
use crate::metrics::Metrics;
use crate::{SPOKE_NAME, SPOKE_NAMESPACE};

/// Most concurrent requests under the accounts of applications. A worker makes eight of them: a few
/// applications whose requests hang must not keep the others from healing.
pub const ACCOUNT_REQUESTS_MAX: usize = 32;
/// Most concurrent requests under the spoke's own identity, other than watches.
pub const OWN_REQUESTS_MAX: usize = 16;
/// Requested lifetime of a renewed token of a kubeconfig, in seconds.
pub const TOKEN_LIFETIME_S: i64 = 24 * 60 * 60;
/// Interval of the check whether the token must be renewed.
const TOKEN_CHECK_EVERY: Duration = Duration::from_secs(60);

/// User agent of the spoke.
const AGENT: &str = concat!("attest-spoke/", env!("CARGO_PKG_VERSION"));
const IMPERSONATE: &str = "impersonate-user";
const APPLY_PATCH: &str = "application/apply-patch+yaml";
const JSON_PATCH: &str = "application/json-patch+json";

/// The API server. Requests are made under the spoke's own identity unless another user is named.
#[derive(Clone)]
pub struct ApiServer {
    client: Client,
    metrics: Metrics,
    token: Option<Arc<FileToken>>,
    account_requests: Arc<Semaphore>,
    own_requests: Arc<Semaphore>,
}

/// Credentials and address of the API server.
#[derive(Clone, Debug)]
pub enum Access {
    /// A kubeconfig file; a token in it is renewed and written back.
    Kubeconfig(PathBuf),
    /// The directory with `token` and `ca.crt`, and the two well-known variables.
    ServiceAccount(PathBuf),
}

/// User of a request.
#[derive(Clone, Copy, Debug)]
pub enum As<'a> {
    Spoke,
    /// `system:serviceaccount:<namespace>:<name>` of an application's account.
    Account(&'a str),
}

/// Mode of a server-side apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Apply {
    /// Dry run that takes no field from another manager.
    DryRun,
    /// Dry run with force.
    DryRunForced,
    /// Takes no field from another manager.
    Unforced,
    /// Takes our fields from other managers.
    Forced,
}

/// Result of a server-side apply.
#[derive(Debug)]
pub struct Applied {
    /// The object did not exist before.
    pub created: bool,
    pub live: Value,
}

impl ApiServer {
    /// Reads the credentials and prepares the client. Sends no request.
    ///
    /// # Errors
    /// If the kubeconfig or the files of the service account cannot be used.
    pub async fn open(access: &Access, metrics: Metrics) -> Result<Self, ClusterError> {
        let (mut config, token) = match access {
            Access::Kubeconfig(path) => credentials::from_kubeconfig(path).await?,
            Access::ServiceAccount(directory) => {
                (credentials::from_service_account(directory)?, None)
            }
        };
        // So that an audit log distinguishes the agent from other users of its account.
        config.headers.push((USER_AGENT, HeaderValue::from_static(AGENT)));
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
        Ok(Self { token, ..Self::of(client, metrics) })
    }

    /// Wraps a client.
    pub(crate) fn of(client: Client, metrics: Metrics) -> Self {
        Self {
            client,
            metrics,
            token: None,
            account_requests: Arc::new(Semaphore::new(ACCOUNT_REQUESTS_MAX)),
            own_requests: Arc::new(Semaphore::new(OWN_REQUESTS_MAX)),
        }
    }

    /// Returns the client, for watches.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Reads an object or list.
    ///
    /// # Errors
    /// [`ApiError`], also if it does not exist.
    pub async fn get(&self, path: &str) -> Result<Value, ApiError> {
        self.send(Method::GET, path, As::Spoke, None).await.map(|(_, value)| value)
    }

    /// Reads an object that may be absent.
    ///
    /// # Errors
    /// [`ApiError`], except for an absent object.
    pub async fn get_optional(&self, path: &str) -> Result<Option<Value>, ApiError> {
        match self.get(path).await {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads an object or list of a known type.
    ///
    /// # Errors
    /// [`ApiError`], also if it does not exist or is of another type.
    pub async fn read<K: DeserializeOwned>(&self, path: &str) -> Result<K, ApiError> {
        typed("get", path, self.get(path).await?)
    }

    /// Reads an object of a known type that may be absent.
    ///
    /// # Errors
    /// [`ApiError`], but not for an absent object.
    pub async fn read_optional<K: DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<Option<K>, ApiError> {
        match self.get_optional(path).await? {
            Some(value) => typed("get", path, value).map(Some),
            None => Ok(None),
        }
    }

    /// Reads an aggregated discovery document.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn discovery<D: DeserializeOwned>(&self, path: &str) -> Result<D, ApiError> {
        let request = Request::get(path)
            .header(ACCEPT, "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
        let (_, document) = self.call("get", path, request, Vec::new()).await?;
        typed("get", path, document)
    }

    /// Reads a list with metadata only.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn get_metadata<K>(
        &self,
        path: &str,
    ) -> Result<ObjectList<PartialObjectMeta<K>>, ApiError>
    where
        PartialObjectMeta<K>: Clone + DeserializeOwned,
    {
        let request = Request::get(path)
            .header(ACCEPT, "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1");
        let (_, list) = self.call("list", path, request, Vec::new()).await?;
        typed("list", path, list)
    }

    /// Creates an object.
    ///
    /// # Errors
    /// [`ApiError`]; see [`ApiError::is_already_exists`].
    pub async fn create<K>(&self, path: &str, object: &K) -> Result<K, ApiError>
    where
        K: Serialize + DeserializeOwned,
    {
        let body = untyped(path, object)?;
        let (_, created) = self.send(Method::POST, path, As::Spoke, Some(&body)).await?;
        typed("create", path, created)
    }

    /// Replaces an object; if `object` has `metadata.resourceVersion`, only that version.
    ///
    /// # Errors
    /// [`ApiError`]; see [`ApiError::is_conflict`].
    pub async fn replace<K>(&self, path: &str, object: &K) -> Result<K, ApiError>
    where
        K: Serialize + DeserializeOwned,
    {
        let body = untyped(path, object)?;
        let (_, replaced) = self.send(Method::PUT, path, As::Spoke, Some(&body)).await?;
        typed("update", path, replaced)
    }

    /// Deletes an object of the spoke's own namespace. An absent object is not an error.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn delete_own(&self, path: &str) -> Result<(), ApiError> {
        match self.send(Method::DELETE, path, As::Spoke, None).await {
            Err(error) if !error.is_not_found() => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Applies an application's object by server-side apply. Only `apply` calls this.
    pub(crate) async fn apply(
        &self,
        path: &str,
        user: As<'_>,
        object: &Value,
        how: Apply,
    ) -> Result<Applied, ApiError> {
        self.apply_by(FIELD_MANAGER, path, user, (object, how)).await
    }

    /// Like [`Self::apply`], with another field manager.
    pub(super) async fn apply_by(
        &self,
        manager: &str,
        path: &str,
        user: As<'_>,
        (object, how): (&Value, Apply),
    ) -> Result<Applied, ApiError> {
        let mut uri = format!("{path}?fieldManager={manager}&fieldValidation=Strict");
        if matches!(how, Apply::DryRun | Apply::DryRunForced) {
            uri.push_str("&dryRun=All");
        }
        if matches!(how, Apply::Forced | Apply::DryRunForced) {
            uri.push_str("&force=true");
        }
        let (status, live) = self.send(Method::PATCH, &uri, user, Some(object)).await?;
        Ok(Applied { created: status == StatusCode::CREATED, live })
    }

    /// Changes an application's object by a JSON patch. Only `apply` calls this.
    pub(crate) async fn patch_json(
        &self,
        path: &str,
        user: As<'_>,
        patch: &Value,
    ) -> Result<(), ApiError> {
        let uri = format!("{path}?fieldManager={FIELD_MANAGER}");
        let request = request(Method::PATCH, &uri, user, JSON_PATCH);
        self.call("patch", &uri, request, patch.to_string().into_bytes()).await.map(drop)
    }

    /// Deletes an object if it still has this UID. Returns the response: the object while it still exists,
    /// a `Status` once it does not. Only `apply` calls this for objects of an application, and `account`
    /// for those that the spoke created for it.
    pub(crate) async fn delete(
        &self,
        path: &str,
        user: As<'_>,
        uid: &str,
    ) -> Result<Value, ApiError> {
        let options = DeleteOptions {
            api_version: Some("v1".to_owned()),
            kind: Some("DeleteOptions".to_owned()),
            propagation_policy: Some("Background".to_owned()),
            preconditions: Some(Preconditions {
                uid: Some(uid.to_owned()),
                resource_version: None,
            }),
            ..DeleteOptions::default()
        };
        let body = untyped(path, &options)?;
        self.send(Method::DELETE, path, user, Some(&body)).await.map(|(_, answer)| answer)
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
        let request = request(method, path, user, media_type);
        let bytes = body.map(|value| yaml_of(value).into_bytes()).unwrap_or_default();
        self.call(verb, path, request, bytes).await
    }

    async fn call(
        &self,
        verb: &'static str,
        path: &str,
        request: http::request::Builder,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Value), ApiError> {
        let asked_for = match request.headers_ref().is_some_and(|h| h.contains_key(IMPERSONATE)) {
            true => &self.account_requests,
            false => &self.own_requests,
        };
        // Never closed.
        let _turn = asked_for.acquire().await;
        self.metrics.requests.with_label_values(&[verb]).inc();
        let place = || without_query(path);
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
        let value = answer::read(&bytes);
        if status.is_success() {
            let unreadable = |source| ApiError::Unreadable { verb, path: place(), source };
            return value.map(|value| (status, value)).map_err(unreadable);
        }
        // A proxy may answer without JSON.
        let value = value.unwrap_or_default();
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
        Err(ApiError::Status {
            verb,
            path: place(),
            code: status.as_u16(),
            status_reason: text("reason").to_owned(),
            message: error::status_message(&value),
            details: Details::of(&value),
        })
    }

    /// Renews the kubeconfig's token, if there is one, for as long as the process lives.
    pub async fn keep_token(self) {
        loop {
            if let Err(error) = self.keep_token_once().await {
                tracing::warn!(
                    reason = error.reason().as_str(),
                    error = %error_chain(&error),
                    "Cannot renew the token of the kubeconfig"
                );
            }
            tokio::time::sleep(TOKEN_CHECK_EVERY).await;
        }
    }

    pub(super) async fn keep_token_once(&self) -> Result<(), ClusterError> {
        let Some(token) = &self.token else { return Ok(()) };
        if token.is_due(jiff::Timestamp::now()) {
            token.replace(&self.fresh_token().await?);
            tracing::info!("Renewed the token of the kubeconfig");
        }
        if token.is_unwritten() { token.write() } else { Ok(()) }
    }

    async fn fresh_token(&self) -> Result<String, ClusterError> {
        let account = path_of::<ServiceAccount>(Some(SPOKE_NAMESPACE), SPOKE_NAME);
        let spec = TokenRequestSpec {
            expiration_seconds: Some(TOKEN_LIFETIME_S),
            ..TokenRequestSpec::default()
        };
        let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        let answered = self.create(&format!("{account}/token"), &request).await;
        let status = answered.map_err(ClusterError::Api)?.status;
        status.and_then(|status| status.token).ok_or(ClusterError::TokenMissing)
    }
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("ApiServer").finish_non_exhaustive()
    }
}

fn request(
    method: Method,
    path: &str,
    user: As<'_>,
    media_type: &'static str,
) -> http::request::Builder {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(ACCEPT, "application/json")
        .header(CONTENT_TYPE, media_type);
    match user {
        As::Spoke => request,
        // A name that is no header value fails the request, which would be made with the spoke's rights without it.
        As::Account(name) => request.header(IMPERSONATE, name),
    }
}

/// JSON that YAML 1.1 reads as the same values, as an API server reads what is to be applied. YAML takes
/// some characters that JSON leaves as they are for line breaks, which it folds, and refuses others:
/// those are escaped (<https://yaml.org/spec/1.1/#id868518>; both read `\uXXXX` alike). In JSON they occur
/// in strings only.
fn yaml_of(value: &Value) -> String {
    let json = value.to_string();
    let is_read_otherwise = |c: char| {
        matches!(
            c,
            '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}'
        )
    };
    match json.contains(is_read_otherwise) {
        true => escaped(&json, is_read_otherwise),
        false => json,
    }
}

fn untyped<K: Serialize>(path: &str, object: &K) -> Result<Value, ApiError> {
    let failed = |error: serde_json::Error| ApiError::Request {
        path: path.to_owned(),
        message: error.to_string(),
    };
    serde_json::to_value(object).map_err(failed)
}

fn typed<K: DeserializeOwned>(verb: &'static str, path: &str, value: Value) -> Result<K, ApiError> {
    let unreadable = |source| ApiError::Unreadable { verb, path: without_query(path), source };
    serde_json::from_value(value).map_err(unreadable)
}

fn without_query(path: &str) -> String {
    path.split('?').next().unwrap_or_default().to_owned()
}

/// Path of an object of a built-in kind, or of the collection when `name` is empty.
pub fn path_of<K: Resource>(namespace: Option<&str>, name: &str) -> String {
    object_path(K::API_VERSION, K::URL_PATH_SEGMENT, namespace, name)
}

/// Path of an object, or of the collection when `name` is empty.
pub fn object_path(api_version: &str, plural: &str, namespace: Option<&str>, name: &str) -> String {
    let root = if api_version.contains('/') { "/apis" } else { "/api" };
    let place = namespace.map(|n| format!("/namespaces/{n}")).unwrap_or_default();
    let end = if name.is_empty() { String::new() } else { format!("/{}", path_segment(name)) };
    format!("{root}/{api_version}{place}/{plural}{end}")
}

/// Returns a name as a segment of a path: names of RBAC may contain characters that a URL cannot (RFC 3986, 3.3).
pub(super) fn path_segment(name: &str) -> String {
    let mut segment = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&byte) {
            segment.push(char::from(byte));
        } else {
            segment.push_str(&format!("%{byte:02X}"));
        }
    }
    segment
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use k8s_openapi::api::core::v1::Secret;
    use kube::Api;
    use kube::api::WatchParams;
    use serde_json::json;

    use super::*;
    use crate::cluster::fake::FakeApi;

    #[test]
    fn paths_name_group_namespace_and_object() {
        assert_eq!(object_path("v1", "pods", Some("n"), "a"), "/api/v1/namespaces/n/pods/a");
        assert_eq!(
            object_path("apps/v1", "deployments", Some("n"), ""),
            "/apis/apps/v1/namespaces/n/deployments"
        );
        assert_eq!(object_path("v1", "namespaces", None, "n"), "/api/v1/namespaces/n");
        assert_eq!(object_path("v1", "x", None, "a@b:c d?é#"), "/api/v1/x/a@b:c%20d%3F%C3%A9%23");
    }

    #[test]
    fn what_yaml_would_read_otherwise_is_escaped_and_reads_back_the_same() {
        let odd = "a \u{85}  b \u{2028} \u{2029} \u{7f} \u{9f} \u{feff} \u{ffff} end";
        let value = json!({odd: [odd, "plain ä \u{1f600} \u{a0} \\u0085 \n"]});

        let written = yaml_of(&value);

        assert!(written.contains(r"a \u0085  b \u2028 \u2029 \u007f \u009f \ufeff \uffff end"));
        assert_eq!(serde_json::from_str::<Value>(&written).unwrap(), value);
        assert_eq!(yaml_of(&json!({"a": "ä \u{1f600}"})), json!({"a": "ä \u{1f600}"}).to_string());
    }

    #[tokio::test]
    async fn requests_are_made_a_bounded_number_at_a_time() {
        let fake = FakeApi::start().await;
        let api = fake.open().await;
        fake.be_slow();

        let asked = (0..100).map(|_| api.get("/version"));
        futures::future::try_join_all(asked).await.unwrap();
        assert_eq!(fake.underway_most(), OWN_REQUESTS_MAX);

        let user = As::Account("system:serviceaccount:attest-applications:a");
        let asked = (0..100).map(|_| api.delete("/api/v1/namespaces/n/pods/a", user, "uid"));
        futures::future::join_all(asked).await;
        assert_eq!(fake.underway_most(), ACCOUNT_REQUESTS_MAX);
    }

    #[tokio::test]
    async fn a_request_in_a_name_that_cannot_be_said_is_not_made_in_the_spokes_own() {
        let fake = FakeApi::start().await;
        let api = fake.open().await;

        let user = As::Account("system:serviceaccount:attest-applications:a\nb");
        let error = api.delete("/api/v1/namespaces/n/pods/a", user, "uid").await.unwrap_err();

        assert!(matches!(error, ApiError::Request { .. }), "{error}");
        assert_eq!(fake.asked(), [""; 0]);
    }

    #[tokio::test]
    async fn every_request_says_that_it_comes_from_the_agent() {
        let fake = FakeApi::start().await;
        let api = fake.open().await;

        api.get("/version").await.unwrap();
        let secrets: Api<Secret> = Api::namespaced(api.client(), SPOKE_NAMESPACE);
        let mut watch = secrets.watch(&WatchParams::default(), "0").await.unwrap().boxed();
        let _ = tokio::time::timeout(Duration::from_secs(5), watch.next()).await;

        assert_eq!(fake.agents(), [AGENT, AGENT]);
    }
}
