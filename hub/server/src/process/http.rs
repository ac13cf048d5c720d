//! Plain HTTP for the cluster's own tools: `/health`, `/ready` and `/metrics`. Nothing here changes anything.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::serve::Listener;
use http::{StatusCode, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::core::store::records::TokenRecord;
use crate::process::hub::Hub;

/// Connections of one port at once.
pub const STATUS_CONNECTIONS_MAX: usize = 64;
/// How long a client may take to ask and to be answered.
pub const STATUS_TIMEOUT: Duration = Duration::from_secs(10);

/// Listens on `address`, which `flag` gives.
///
/// # Errors
/// [`HttpError`] when the address is taken.
pub async fn listen(flag: &'static str, address: SocketAddr) -> Result<TcpListener, HttpError> {
    TcpListener::bind(address).await.map_err(|source| HttpError { flag, address, source })
}

/// Serves `/health` and `/ready` until the hub ends.
pub async fn serve_health(hub: Arc<Hub>, listener: TcpListener) {
    let stop = hub.stop.clone();
    let router =
        Router::new().route("/health", get(health)).route("/ready", get(ready)).with_state(hub);
    stop.run_until_cancelled(serve(listener, router)).await;
}

/// Serves `/metrics` until the hub ends.
pub async fn serve_metrics(hub: Arc<Hub>, listener: TcpListener) {
    let stop = hub.stop.clone();
    let router = Router::new().route("/metrics", get(metrics)).with_state(hub);
    stop.run_until_cancelled(serve(listener, router)).await;
}

/// One request a connection. When there are too many the oldest gives way: who stays silent keeps nobody out.
async fn serve(mut listener: TcpListener, router: Router) {
    let mut connections = VecDeque::new();
    loop {
        // Waits when the system refuses to accept.
        let (stream, _) = Listener::accept(&mut listener).await;
        if connections.len() >= STATUS_CONNECTIONS_MAX {
            connections.pop_front();
        }
        let mut server = auto::Builder::new(TokioExecutor::new()).http1_only();
        server.http1().keep_alive(false);
        let service = TowerToHyperService::new(router.clone());
        let answer = async move {
            let answer = server.serve_connection(TokioIo::new(stream), service);
            // Whoever does not ask, or read the answer, in time has lost nothing.
            let _ = tokio::time::timeout(STATUS_TIMEOUT, answer).await;
        };
        connections.push_back(AbortOnDropHandle::new(tokio::spawn(answer)));
    }
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
#[error("cannot listen on {address}; choose another address with {flag}")]
pub struct HttpError {
    flag: &'static str,
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
