//! The hub's HTTPS API for operators: routes, limits, and how failures look. Every handler is thin.
//!
//! A connection needs an operator's certificate before the first byte of HTTP is read.

mod applications;
mod clusters;
pub mod documents;
mod serve;
mod settings;

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, Request};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use http::StatusCode;
use serde::de::DeserializeOwned;

pub use serve::{
    API_HANDSHAKE_TIMEOUT, API_HANDSHAKES_MAX, API_HANDSHAKES_PER_ADDRESS_MAX, ApiError,
    Certificate, Listening, bind, listen, serve,
};

use crate::api::documents::{BODY_BYTES_MAX, Failure};
use crate::hub::Hub;
use crate::store::StoreError;

/// Every route of the API, as method and path. `docs/openapi.yaml` describes the same.
pub const ROUTES: [(&str, &str); 23] = [
    ("get", "/v1/version"),
    ("post", "/v1/tokens"),
    ("get", "/v1/tokens"),
    ("delete", "/v1/tokens/{id}"),
    ("get", "/v1/clusters"),
    ("get", "/v1/clusters/{name}"),
    ("delete", "/v1/clusters/{name}"),
    ("post", "/v1/clusters/{name}/accept"),
    ("post", "/v1/clusters/{name}/revoke"),
    ("post", "/v1/clusters/{name}/evict"),
    ("put", "/v1/applications"),
    ("get", "/v1/applications"),
    ("get", "/v1/applications/{name}"),
    ("delete", "/v1/applications/{name}"),
    ("post", "/v1/applications/{name}/sync"),
    ("get", "/v1/applications/{name}/history"),
    ("get", "/v1/applications/{name}/diff"),
    ("put", "/v1/repositories"),
    ("get", "/v1/repositories"),
    ("delete", "/v1/repositories"),
    ("put", "/v1/keys"),
    ("get", "/v1/keys"),
    ("delete", "/v1/keys/{alias}"),
];

/// The API of one hub.
pub fn router(hub: Arc<Hub>) -> Router {
    Router::new()
        .route("/v1/version", get(settings::version))
        .route("/v1/tokens", post(clusters::make_token).get(clusters::tokens))
        .route("/v1/tokens/{id}", delete(clusters::revoke_token))
        .route("/v1/clusters", get(clusters::list))
        .route("/v1/clusters/{name}", get(clusters::one).delete(clusters::remove))
        .route("/v1/clusters/{name}/accept", post(clusters::accept))
        .route("/v1/clusters/{name}/revoke", post(clusters::revoke))
        .route("/v1/clusters/{name}/evict", post(clusters::evict))
        .route("/v1/applications", put(applications::apply).get(applications::list))
        .route("/v1/applications/{name}", get(applications::one).delete(applications::remove))
        .route("/v1/applications/{name}/sync", post(applications::sync))
        .route("/v1/applications/{name}/history", get(applications::history))
        .route("/v1/applications/{name}/diff", get(applications::diff))
        .route(
            "/v1/repositories",
            put(settings::put_repository)
                .get(settings::repositories)
                .delete(settings::delete_repository),
        )
        .route("/v1/keys", put(settings::put_key).get(settings::keys))
        .route("/v1/keys/{alias}", delete(settings::delete_key))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(from_fn_with_state(hub.clone(), serve::admitted))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(hub)
}

async fn no_route() -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        "RouteUnknown",
        "this hub has no such address; is `attest` newer than the hub?",
    )
}

async fn no_method() -> Refusal {
    Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "MethodNotAllowed",
        "this address does not take that method; is `attest` newer than the hub?",
    )
}

/// An answer that is not a success.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    failure: Failure,
}

impl Refusal {
    fn new(status: StatusCode, reason: &str, message: impl Into<String>) -> Self {
        let failure = Failure { reason: reason.to_owned(), message: message.into(), field: None };
        Self { status, failure }
    }

    fn of(status: StatusCode, failure: Failure) -> Self {
        Self { status, failure }
    }

    fn not_found(reason: &str, message: impl Into<String>) -> Self {
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
        let status = if matches!(error, StoreError::Conflict { .. }) {
            StatusCode::CONFLICT
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        Self::new(status, error.reason(), attest_common::report::error_chain(&error))
    }
}

/// A JSON body, or a [`Refusal`] that says what is wrong with it.
#[derive(Debug)]
pub(crate) struct Body<T>(pub(crate) T);

impl<T, S> FromRequest<S> for Body<T>
where
    T: DeserializeOwned,
    S: Send + Sync,
{
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let bytes = Bytes::from_request(request, state).await.map_err(|error| {
            let message = format!("the request is larger than {BODY_BYTES_MAX} bytes");
            match error.status() {
                StatusCode::PAYLOAD_TOO_LARGE => {
                    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "BodyTooLarge", message)
                }
                _ => Refusal::new(StatusCode::BAD_REQUEST, "BodyUnreadable", error.body_text()),
            }
        })?;
        // Strict: a key that stands twice would mean two things.
        let value = attest_common::json::value(&bytes, attest_common::json::OBJECT_DEPTH_MAX)
            .map_err(|error| {
                let message = attest_common::report::error_chain(&error);
                Refusal::new(StatusCode::BAD_REQUEST, error.reason(), message)
            })?;
        serde_path_to_error::deserialize(&value).map(Self).map_err(|error| {
            let failure = Failure {
                reason: "FieldInvalid".to_owned(),
                field: Some(error.path().to_string()),
                message: error.inner().to_string(),
            };
            Refusal::of(StatusCode::UNPROCESSABLE_ENTITY, failure)
        })
    }
}

#[cfg(test)]
mod tests;
