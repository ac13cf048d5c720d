//! The hub's HTTPS API for operators: routes, limits, and error responses. Handlers contain no rules.
//!
//! A connection needs an operator's certificate before the first byte of HTTP is read.

mod applications;
mod clusters;
mod serve;
mod settings;
mod shown;

use std::sync::Arc;

use attest_common::basics::json::{self, OBJECT_DEPTH_MAX};
use attest_common::basics::reason::Reason;
use attest_common::basics::text::error_chain;
use attest_documents::{BODY_BYTES_MAX, Failure};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Query, Request};
use axum::handler::Handler;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode, header};
use serde::de::DeserializeOwned;

pub use serve::{API_HANDSHAKE_TIMEOUT, API_HANDSHAKES_MAX, ApiError};
pub(crate) use serve::{Certificate, bind, listen, serve};

use crate::applications::views::Views;
use crate::core::Core;
use crate::core::store::StoreError;
use crate::home::Operators;
use crate::reconcile::repositories::Repositories;
use crate::reconcile::waker::Waker;
use crate::spokes::registration::Registration;

/// Longest query shown in an error, in characters.
const QUERY_SHOWN_CHARACTERS_MAX: usize = 120;

/// State of the handlers of the API.
#[derive(Debug)]
pub(crate) struct Api {
    pub core: Arc<Core>,
    pub(crate) operators: Operators,
    pub waker: Arc<Waker>,
    pub views: Arc<Views>,
    pub repositories: Arc<Repositories>,
    pub registration: Arc<Registration>,
}

/// A method, a path, and its handler.
type Route = (MethodFilter, &'static str, MethodRouter<Arc<Api>>);

/// Every route of the API. `docs/openapi.yaml` describes the same.
fn routes() -> [Route; 23] {
    [
        route(MethodFilter::GET, "/v1/version", settings::version),
        route(MethodFilter::POST, "/v1/tokens", clusters::make_token),
        route(MethodFilter::GET, "/v1/tokens", clusters::tokens),
        route(MethodFilter::DELETE, "/v1/tokens/{id}", clusters::revoke_token),
        route(MethodFilter::GET, "/v1/clusters", clusters::list),
        route(MethodFilter::GET, "/v1/clusters/{name}", clusters::get),
        route(MethodFilter::DELETE, "/v1/clusters/{name}", clusters::remove),
        route(MethodFilter::POST, "/v1/clusters/{name}/accept", clusters::accept),
        route(MethodFilter::POST, "/v1/clusters/{name}/revoke", clusters::revoke),
        route(MethodFilter::POST, "/v1/clusters/{name}/evict", clusters::evict),
        route(MethodFilter::PUT, "/v1/applications", applications::apply),
        route(MethodFilter::GET, "/v1/applications", applications::list),
        route(MethodFilter::GET, "/v1/applications/{name}", applications::get),
        route(MethodFilter::DELETE, "/v1/applications/{name}", applications::remove),
        route(MethodFilter::POST, "/v1/applications/{name}/sync", applications::sync),
        route(MethodFilter::GET, "/v1/applications/{name}/history", applications::history),
        route(MethodFilter::GET, "/v1/applications/{name}/diff", applications::diff),
        route(MethodFilter::PUT, "/v1/repositories", settings::put_repository),
        route(MethodFilter::GET, "/v1/repositories", settings::repositories),
        route(MethodFilter::DELETE, "/v1/repositories", settings::delete_repository),
        route(MethodFilter::PUT, "/v1/keys", settings::put_key),
        route(MethodFilter::GET, "/v1/keys", settings::keys),
        route(MethodFilter::DELETE, "/v1/keys/{alias}", settings::delete_key),
    ]
}

fn route<H, T>(method: MethodFilter, path: &'static str, handler: H) -> Route
where
    H: Handler<T, Arc<Api>>,
    T: 'static,
{
    (method, path, on(method, handler))
}

/// Returns the router of the API.
pub(crate) fn router(api: Arc<Api>) -> Router {
    routes()
        .into_iter()
        .fold(Router::new(), |router, (_, path, handler)| router.route(path, handler))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(from_fn(refuse_ignored))
        .layer(from_fn_with_state(api.clone(), serve::admitted))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(api)
}

/// Path of the collection whose routes, and whose items, have queries.
const PATH_WITH_QUERIES: &str = "/v1/applications";

/// Returns whether the handler of a request reads its query.
fn reads_query(request: &Request) -> bool {
    let rest = request.uri().path().strip_prefix(PATH_WITH_QUERIES);
    match (request.method(), rest) {
        (&Method::GET, Some(rest)) => {
            let item = rest.strip_prefix('/');
            rest.is_empty() || item.is_some_and(|item| !item.contains('/'))
        }
        (&Method::PUT, Some(rest)) => rest.is_empty(),
        _ => false,
    }
}

/// Refuses requests of web pages, and query parameters that no handler reads.
///
/// A browser in which an operator's certificate is installed would authenticate requests of any page. It sends
/// `Origin` with each of them; `attest` sends none.
async fn refuse_ignored(request: Request, next: Next) -> Result<Response, Refusal> {
    if request.headers().contains_key(header::ORIGIN) {
        let message = "the API does not accept requests of web pages; remove the header Origin";
        return Err(Refusal::new(StatusCode::FORBIDDEN, Reason::OriginNotAllowed, message));
    }
    if let Some(query) = request.uri().query().filter(|_| !reads_query(&request)) {
        return Err(unknown_query(query));
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
