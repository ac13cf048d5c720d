//! `/health` and `/ready` on one port, `/metrics` on another. Read-only; says nothing that is secret.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::serve::Listener;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::metrics::Metrics;

/// Connections of one port at once.
const STATUS_CONNECTIONS_MAX: usize = 64;
/// How long a client may take to ask and to be answered.
const STATUS_TIMEOUT: Duration = Duration::from_secs(10);

/// What `/ready` says: joined, trust policy loaded, own records read. The hub may be away.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<Mutex<Ready>>);

#[derive(Debug)]
struct Ready {
    /// Why the fleet does not know this spoke, in words.
    outside: Option<String>,
    resumed: bool,
}

impl Default for Readiness {
    fn default() -> Self {
        let outside = Some("not joined yet".to_owned());
        Self(Arc::new(Mutex::new(Ready { outside, resumed: false })))
    }
}

impl Readiness {
    /// The fleet knows this spoke, or why it does not.
    pub fn joined(&self, joined: Result<(), String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).outside = joined.err();
    }

    /// Whether records and trust policy are there to work by.
    pub fn resumed(&self, resumed: bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).resumed = resumed;
    }

    fn get(&self) -> Result<(), String> {
        let ready = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &ready.outside {
            Some(why) => Err(format!("not ready: {why}")),
            None if ready.resumed => Ok(()),
            None => Err("not ready: no trust policy to work by yet".to_owned()),
        }
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
            match readiness.get() {
                Ok(()) => (StatusCode::OK, "ok".to_owned()),
                Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why),
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
        tokio::spawn(answer(listener, router));
    }
    Ok(addresses)
}

/// One request a connection. When there are too many the oldest gives way: who stays silent keeps nobody out.
async fn answer(mut listener: TcpListener, router: Router) {
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
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    #[test]
    fn a_spoke_is_ready_when_it_has_joined_and_has_a_policy_to_work_by() {
        let readiness = Readiness::default();
        assert!(readiness.get().is_err());
        readiness.resumed(true);
        assert!(readiness.get().is_err());
        readiness.joined(Ok(()));
        assert_eq!(readiness.get(), Ok(()));
        readiness.joined(Err("CertificateExpired".to_owned()));
        assert_eq!(readiness.get(), Err("not ready: CertificateExpired".to_owned()));
        readiness.joined(Ok(()));
        readiness.resumed(false);
        assert!(readiness.get().is_err());
    }

    #[tokio::test]
    async fn clients_that_stay_silent_keep_no_other_from_being_answered_and_are_not_kept() {
        let free: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let served = serve((free, free), Readiness::default(), Metrics::new().unwrap());
        let addresses = served.await.unwrap();
        for (address, path) in [(addresses.health, "/health"), (addresses.metrics, "/metrics")] {
            let mut silent = Vec::new();
            for _ in 0..2 * STATUS_CONNECTIONS_MAX {
                silent.push(TcpStream::connect(address).await.unwrap());
            }

            let mut client = TcpStream::connect(address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nhost: spoke\r\n\r\n");
            client.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();

            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            for first in silent.iter_mut().take(STATUS_CONNECTIONS_MAX) {
                let mut byte = [0];
                let gone = tokio::time::timeout(STATUS_TIMEOUT / 2, first.read(&mut byte)).await;
                assert_eq!(gone.expect("it is kept").unwrap(), 0);
            }
        }
    }

    #[tokio::test]
    async fn a_port_in_use_is_an_error_that_names_its_flag() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = listener.local_addr().unwrap();
        let free: SocketAddr = "127.0.0.1:0".parse().unwrap();
        for (health, metrics, flag) in
            [(taken, free, "--listen-health"), (free, taken, "--listen-metrics")]
        {
            let served = serve((health, metrics), Readiness::default(), Metrics::new().unwrap());
            let error = served.await.unwrap_err();

            assert_eq!(error.reason(), "AddressInUse");
            let text = error.to_string();
            assert!(text.contains(flag) && text.contains(&taken.to_string()), "{text}");
        }
    }
}
