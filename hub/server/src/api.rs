//! The hub's HTTPS API for operators: routes, limits, and error responses. Handlers contain no rules.
//!
//! A connection needs an operator's certificate before the first byte of HTTP is read.

mod applications;
mod clusters;
mod configuration;
mod rollouts;
mod serve;
mod settings;
mod shown;
mod shown_rollout;

use std::sync::Arc;
use std::time::Duration;

use attest_certs::OperatorRole;
use attest_common::basics::json::{self, OBJECT_DEPTH_MAX};
use attest_common::basics::reason::Reason;
use attest_common::basics::text::error_chain;
use attest_documents::{BODY_BYTES_MAX, Failure};
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Query, Request, State};
use axum::handler::Handler;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use axum::{Extension, Router};
use http::request::Parts;
use http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;

pub use serve::{API_HANDSHAKE_TIMEOUT, API_HANDSHAKES_MAX, ApiError};
pub(crate) use serve::{Certificate, bind, listen, serve};

use crate::applications::views::Views;
use crate::core::Core;
use crate::core::store::StoreError;
use crate::home::Operators;
use crate::reconcile::repositories::Repositories;
use crate::reconcile::waker::Waker;
use crate::resources::custodian::Custodian;
use crate::spokes::registration::Registration;

/// Longest query shown in an error, in characters.
const QUERY_SHOWN_CHARACTERS_MAX: usize = 120;

/// State of the handlers of the API.
#[derive(Debug)]
pub(crate) struct Api {
    pub core: Arc<Core>,
    pub(crate) operators: Operators,
    /// Interval between polls of a repository by the command line.
    pub(crate) poll_interval: Duration,
    pub waker: Arc<Waker>,
    pub views: Arc<Views>,
    pub repositories: Arc<Repositories>,
    pub registration: Arc<Registration>,
    /// Present where applications are custom resources.
    pub custodian: Option<Arc<Custodian>>,
}

/// A route of the API, with the rules that apply before its handler.
struct Route {
    /// Also part of `handler`, which does not reveal it.
    #[cfg_attr(not(test), expect(dead_code, reason = "compared with the description of the API"))]
    method: MethodFilter,
    path: &'static str,
    rules: RouteRules,
    handler: MethodRouter<Arc<Api>>,
}

/// Rules of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RouteRules {
    effect: Effect,
    query: QueryUse,
}

/// Effect of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// Open to every role.
    Read,
    /// Refused to viewers.
    Change,
}

/// Use of the query by a handler. A query that no handler reads is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum QueryUse {
    Ignored,
    Read,
}

/// Every route of the API. `docs/openapi.yaml` describes the same, and `api/roles.txt` lists who may use it.
fn routes() -> [Route; 31] {
    [
        read("/v1/version", settings::version),
        read("/v1/addresses", settings::addresses),
        read("/v1/configuration", configuration::get),
        change(MethodFilter::POST, "/v1/tokens", clusters::make_token),
        read("/v1/tokens", clusters::tokens),
        change(MethodFilter::DELETE, "/v1/tokens/{id}", clusters::revoke_token),
        read("/v1/clusters", clusters::list).with_query(),
        read("/v1/clusters/{name}", clusters::get),
        change(MethodFilter::DELETE, "/v1/clusters/{name}", clusters::remove),
        change(MethodFilter::POST, "/v1/clusters/{name}/accept", clusters::accept),
        change(MethodFilter::POST, "/v1/clusters/{name}/revoke", clusters::revoke),
        change(MethodFilter::POST, "/v1/clusters/{name}/evict", clusters::evict),
        change(MethodFilter::POST, "/v1/clusters/{name}/labels", clusters::label),
        change(MethodFilter::PUT, "/v1/applications", applications::apply).with_query(),
        read("/v1/applications", applications::list).with_query(),
        read("/v1/applications/{name}", applications::get).with_query(),
        change(MethodFilter::DELETE, "/v1/applications/{name}", applications::remove),
        change(MethodFilter::POST, "/v1/applications/{name}/sync", applications::sync),
        read("/v1/applications/{name}/history", applications::history),
        read("/v1/applications/{name}/diff", applications::diff),
        read("/v1/applications/{name}/rollout", rollouts::get),
        change(MethodFilter::POST, "/v1/applications/{name}/rollout", rollouts::command),
        read("/v1/applications/{name}/rollouts", rollouts::history),
        read("/v1/rollouts", rollouts::list),
        change(MethodFilter::POST, "/v1/resources/release", applications::release),
        change(MethodFilter::PUT, "/v1/repositories", settings::put_repository),
        read("/v1/repositories", settings::repositories),
        change(MethodFilter::DELETE, "/v1/repositories", settings::delete_repository),
        change(MethodFilter::PUT, "/v1/keys", settings::put_key),
        read("/v1/keys", settings::keys),
        change(MethodFilter::DELETE, "/v1/keys/{alias}", settings::delete_key),
    ]
}

/// A route that changes nothing.
fn read<H, T>(path: &'static str, handler: H) -> Route
where
    H: Handler<T, Arc<Api>>,
    T: 'static,
{
    route(MethodFilter::GET, path, Effect::Read, handler)
}

/// A route that changes something.
fn change<H, T>(method: MethodFilter, path: &'static str, handler: H) -> Route
where
    H: Handler<T, Arc<Api>>,
    T: 'static,
{
    route(method, path, Effect::Change, handler)
}

fn route<H, T>(method: MethodFilter, path: &'static str, effect: Effect, handler: H) -> Route
where
    H: Handler<T, Arc<Api>>,
    T: 'static,
{
    let rules = RouteRules { effect, query: QueryUse::Ignored };
    Route { method, path, rules, handler: on(method, handler) }
}

impl Route {
    /// Marks a route whose handler reads the query.
    fn with_query(mut self) -> Self {
        self.rules.query = QueryUse::Read;
        self
    }
}

/// Returns the router of the API.
pub(crate) fn router(api: Arc<Api>) -> Router {
    let mut router = Router::new();
    for Route { path, rules, handler, .. } in routes() {
        let checked = handler.route_layer(from_fn_with_state(rules, check_rules));
        router = router.route(path, checked);
    }
    router
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(from_fn(refuse_web_pages))
        .layer(from_fn_with_state(api.clone(), serve::admitted))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(api)
}

/// Refuses changes by viewers, and query parameters that the handler does not read.
async fn check_rules(
    State(rules): State<RouteRules>,
    Extension(role): Extension<OperatorRole>,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    if rules.effect == Effect::Change && role == OperatorRole::Viewer {
        let message = "a viewer cannot change anything; log in as operator";
        return Err(Refusal::new(StatusCode::FORBIDDEN, Reason::ViewerReadOnly, message));
    }
    match request.uri().query() {
        Some(query) if rules.query == QueryUse::Ignored => Err(unknown_query(query)),
        Some(_) | None => Ok(next.run(request).await),
    }
}

/// Refuses requests of web pages.
///
/// A browser in which an operator's certificate is installed would authenticate requests of any page. It sends
/// `Origin` with each of them; `attest` sends none.
async fn refuse_web_pages(request: Request, next: Next) -> Result<Response, Refusal> {
    if request.headers().contains_key(header::ORIGIN) {
        let message = "the API does not accept requests of web pages; remove the header Origin";
        return Err(Refusal::new(StatusCode::FORBIDDEN, Reason::OriginNotAllowed, message));
    }
    Ok(next.run(request).await)
}

fn unknown_query(query: &str) -> Refusal {
    let query: String = query.chars().take(QUERY_SHOWN_CHARACTERS_MAX).collect();
    let message = format!("unknown query parameters {query:?}; remove them");
    Refusal::new(StatusCode::BAD_REQUEST, Reason::QueryUnknown, message)
}

/// The query of a request. Unknown parameters and invalid values are refused.
struct Parameters<T>(T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let query = parts.uri.query().unwrap_or_default();
        match Query::try_from_uri(&parts.uri) {
            Ok(Query(parameters)) => Ok(Self(parameters)),
            Err(_) => Err(unknown_query(query)),
        }
    }
}

async fn no_route() -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        Reason::RouteUnknown,
        "no such path in the API; `attest` may be newer than the hub",
    )
}

async fn no_method() -> Refusal {
    Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        Reason::MethodNotAllowed,
        "the path does not support this method; `attest` may be newer than the hub",
    )
}

/// An error response.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    failure: Failure,
}

impl Refusal {
    fn new(status: StatusCode, reason: Reason, message: impl Into<String>) -> Self {
        let failure = Failure { reason: reason.into(), message: message.into(), field: None };
        Self { status, failure }
    }

    fn of(status: StatusCode, failure: Failure) -> Self {
        Self { status, failure }
    }

    fn not_found(reason: Reason, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, reason, message)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, axum::Json(self.failure)).into_response()
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::new(status_of(&error), error.reason(), error_chain(&error))
    }
}

fn status_of(error: &StoreError) -> StatusCode {
    if matches!(error, StoreError::Conflict { .. }) {
        StatusCode::CONFLICT
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

/// Refuses a body of another type: a web page can send `text/plain` and forms without asking first.
fn check_content_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = value.and_then(|value| value.split(';').next()).map(str::trim);
    if essence.is_some_and(|essence| essence.eq_ignore_ascii_case("application/json")) {
        return Ok(());
    }
    let message = "the body must be JSON; set Content-Type: application/json";
    Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, Reason::ContentTypeUnsupported, message))
}

/// A JSON body. Rejected with a [`Refusal`] that names the error.
#[derive(Debug)]
pub(crate) struct Body<T>(pub(crate) T);

impl<T, S> FromRequest<S> for Body<T>
where
    T: DeserializeOwned,
    S: Send + Sync,
{
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        check_content_type(request.headers())?;
        let bytes = Bytes::from_request(request, state).await.map_err(|error| {
            let message = format!("the request is larger than {BODY_BYTES_MAX} bytes");
            match error.status() {
                StatusCode::PAYLOAD_TOO_LARGE => {
                    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, Reason::BodyTooLarge, message)
                }
                _ => {
                    Refusal::new(StatusCode::BAD_REQUEST, Reason::BodyUnreadable, error.body_text())
                }
            }
        })?;
        // Strict: duplicate keys are ambiguous.
        let value = json::value(&bytes, OBJECT_DEPTH_MAX).map_err(|error| {
            let message = error_chain(&error);
            Refusal::new(StatusCode::BAD_REQUEST, error.reason(), message)
        })?;
        serde_path_to_error::deserialize(&value).map(Self).map_err(|error| {
            let failure = Failure {
                reason: Reason::FieldInvalid.into(),
                field: Some(error.path().to_string()),
                message: error.inner().to_string(),
            };
            Refusal::of(StatusCode::UNPROCESSABLE_ENTITY, failure)
        })
    }
}

#[cfg(test)]
mod tests;
