//! Plain HTTP for the cluster's own tools: `/health`, `/ready` and `/metrics`. Nothing here changes anything.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::get;
use http::{StatusCode, header};
use tokio::net::TcpListener;

use crate::hub::Hub;
use crate::store::records::TokenRecord;

/// Listens on `address`.
///
/// # Errors
/// [`HttpError`] when the address is taken.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, HttpError> {
    TcpListener::bind(address).await.map_err(|source| HttpError { address, source })
}

/// Serves `/health` and `/ready` until the hub ends.
///
/// # Errors
/// When serving fails as a whole.
pub async fn serve_health(hub: Arc<Hub>, listener: TcpListener) -> io::Result<()> {
    let stop = hub.stop.clone();
    let router =
        Router::new().route("/health", get(health)).route("/ready", get(ready)).with_state(hub);
    axum::serve(listener, router)
        .with_graceful_shutdown(async move { stop.cancelled().await })
        .await
}

/// Serves `/metrics` until the hub ends.
///
/// # Errors
/// When serving fails as a whole.
pub async fn serve_metrics(hub: Arc<Hub>, listener: TcpListener) -> io::Result<()> {
    let stop = hub.stop.clone();
    let router = Router::new().route("/metrics", get(metrics)).with_state(hub);
    axum::serve(listener, router)
        .with_graceful_shutdown(async move { stop.cancelled().await })
        .await
}

async fn health() -> &'static str {
    "ok\n"
}

/// Ready means that what is durable can be read.
async fn ready(State(hub): State<Arc<Hub>>) -> (StatusCode, String) {
    if hub.stop.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "the hub is ending\n".to_owned());
    }
    match hub.blocking(|hub| hub.records.get::<TokenRecord>("")).await {
        Ok(_) => (StatusCode::OK, "ready\n".to_owned()),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}

async fn metrics(State(hub): State<Arc<Hub>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], hub.metrics.text())
}

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}; is another program using that port?")]
pub struct HttpError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

impl HttpError {
    /// A stable word for logs.
    pub fn reason(&self) -> &'static str {
        "PortInUse"
    }
}
