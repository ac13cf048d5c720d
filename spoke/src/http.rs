//! `/health` and `/ready` on one port, `/metrics` on another. Read-only; says nothing that is secret.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::metrics::Metrics;

/// What `/ready` says: joined, trust policy loaded, own records read. The hub may be away.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Ready>);

#[derive(Debug, Default)]
struct Ready {
    joined: AtomicBool,
    resumed: AtomicBool,
}

impl Readiness {
    /// The fleet knows this spoke.
    pub fn joined(&self) {
        self.0.joined.store(true, Ordering::Relaxed);
    }

    /// Whether records and trust policy are there to work by.
    pub fn resumed(&self, resumed: bool) {
        self.0.resumed.store(resumed, Ordering::Relaxed);
    }

    fn get(&self) -> bool {
        self.0.joined.load(Ordering::Relaxed) && self.0.resumed.load(Ordering::Relaxed)
    }
}

/// Where the spoke listens.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    pub health: SocketAddr,
    pub metrics: SocketAddr,
}

/// Binds both ports and serves them in the background. Returns the actual addresses.
///
/// # Errors
/// When a port cannot be bound; the error names the flag.
pub async fn serve(
    (health, metrics): (SocketAddr, SocketAddr),
    readiness: Readiness,
    counted: Metrics,
) -> Result<Addresses, HttpError> {
    let bind = |address: SocketAddr, flag: &'static str| async move {
        let bound = TcpListener::bind(address).await;
        bound.map_err(|source| HttpError::Bind { address, flag, source })
    };
    let health = bind(health, "--listen-health").await?;
    let metrics = bind(metrics, "--listen-metrics").await?;
    let local = |listener: &TcpListener| listener.local_addr().map_err(HttpError::Address);
    let addresses = Addresses { health: local(&health)?, metrics: local(&metrics)? };
    let status = Router::new().route("/health", get(|| async { "ok" })).route(
        "/ready",
        get(move || async move {
            if readiness.get() {
                (StatusCode::OK, "ok")
            } else {
                (StatusCode::SERVICE_UNAVAILABLE, "not ready")
            }
        }),
    );
    let counters = Router::new().route(
        "/metrics",
        get(move || async move {
            ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], counted.text()).into_response()
        }),
    );
    for (listener, router) in [(health, status), (metrics, counters)] {
        tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(error = %error, "A status port closed");
            }
        });
    }
    Ok(addresses)
}

/// Writes the addresses for whoever started the spoke with port 0.
///
/// # Errors
/// When the file cannot be written.
pub fn write_addresses(path: &Path, addresses: Addresses) -> Result<(), HttpError> {
    let Addresses { health, metrics } = addresses;
    let text = serde_json::json!({"health": health.to_string(), "metrics": metrics.to_string()});
    std::fs::write(path, text.to_string()).map_err(HttpError::AddressesFile)
}

/// Why the status ports are not served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    #[error("cannot listen on {address}; choose another address with {flag}")]
    Bind {
        address: SocketAddr,
        flag: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot tell the own address")]
    Address(#[source] std::io::Error),
    #[error("cannot write --addresses-file")]
    AddressesFile(#[source] std::io::Error),
}

impl HttpError {
    /// A stable word for logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Bind { .. } => "AddressInUse",
            Self::Address(_) | Self::AddressesFile(_) => "AddressesFile",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spoke_is_ready_when_it_has_joined_and_has_a_policy_to_work_by() {
        let readiness = Readiness::default();
        assert!(!readiness.get());
        readiness.resumed(true);
        assert!(!readiness.get());
        readiness.joined();
        assert!(readiness.get());
        readiness.resumed(false);
        assert!(!readiness.get());
    }
}
