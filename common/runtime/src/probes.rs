//! Plain HTTP endpoints for probes and scrapers: `/health` and `/ready` on one port, `/metrics` on another.

use std::collections::VecDeque;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::str::FromStr;
use std::time::Duration;

use attest_common::basics::reason::Reason;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use axum::serve::Listener;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

/// Most connections of one port, so that clients cannot exhaust memory or file descriptors.
pub const STATUS_CONNECTIONS_MAX: usize = 64;
/// Time for one client to send its request and read the response.
pub const STATUS_TIMEOUT: Duration = Duration::from_secs(10);

const OK: &str = "ok\n";

/// A listen address; `:PORT` means all addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenAddress(pub SocketAddr);

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let whole = match text.strip_prefix(':') {
            Some(port) => format!("0.0.0.0:{port}"),
            None => text.to_owned(),
        };
        let mut found = whole.to_socket_addrs().map_err(|_| wrong(text))?;
        found.next().map(Self).ok_or_else(|| wrong(text))
    }
}

fn wrong(text: &str) -> String {
    format!("`{text}` is not a listen address; must be ADDRESS:PORT or :PORT")
}

/// Listens on `address`, the value of `flag`.
///
/// # Errors
/// [`BindError`] when the address is in use or not local.
pub async fn bind(
    flag: &'static str,
    ListenAddress(address): ListenAddress,
) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError { flag, address, source })
}

/// Serves `/health`, which always answers, and `/ready`, which answers 503 with the reason while `ready`
/// returns one. Does not return.
pub async fn serve_status<R, F>(listener: TcpListener, ready: R)
where
    R: Fn() -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    let answer = async move || match ready().await {
        Ok(()) => (StatusCode::OK, OK.to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
    };
    let router = Router::new().route("/health", get(async || OK)).route("/ready", get(answer));
    serve_router(listener, router).await;
}

/// Serves `/metrics` with what `text` returns, in the Prometheus text format. Does not return.
pub async fn serve_metrics<T>(listener: TcpListener, text: T)
where
    T: Fn() -> String + Clone + Send + Sync + 'static,
{
    let answer = async move || ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text());
    serve_router(listener, Router::new().route("/metrics", get(answer))).await;
}

/// Serves `router`. Does not return.
///
/// Answers one request per connection. Evicts the oldest connection when full, so that idle clients cannot block
/// probes.
pub async fn serve_router(mut listener: TcpListener, router: Router) {
    let mut connections = VecDeque::new();
    loop {
        // Waits when accepting fails.
        let (stream, _) = Listener::accept(&mut listener).await;
        if connections.len() >= STATUS_CONNECTIONS_MAX {
            connections.pop_front();
        }
        let mut server = auto::Builder::new(TokioExecutor::new()).http1_only();
        server.http1().keep_alive(false);
        let service = TowerToHyperService::new(router.clone());
        let answer = async move {
            let answer = server.serve_connection(TokioIo::new(stream), service);
            // Drops slow clients; probes retry.
            let _ = tokio::time::timeout(STATUS_TIMEOUT, answer).await;
        };
        connections.push_back(AbortOnDropHandle::new(tokio::spawn(answer)));
    }
}

/// Failure to listen on an address.
#[derive(Debug, thiserror::Error)]
#[error("failed to listen on {address}; choose another address with {flag}")]
pub struct BindError {
    flag: &'static str,
    address: SocketAddr,
    #[source]
    source: std::io::Error,
}

impl BindError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        Reason::AddressInUse
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    const FREE: ListenAddress =
        ListenAddress(SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0));

    /// A status port, ready when `why` is empty, and a metrics port.
    async fn served(why: &'static str) -> [SocketAddr; 2] {
        let status = bind("--listen-health", FREE).await.unwrap();
        let metrics = bind("--listen-metrics", FREE).await.unwrap();
        let addresses = [&status, &metrics].map(|listener| listener.local_addr().unwrap());
        let ready =
            move || async move { if why.is_empty() { Ok(()) } else { Err(why.to_owned()) } };
        tokio::spawn(serve_status(status, ready));
        tokio::spawn(serve_metrics(metrics, || "answers_total 1\n".to_owned()));
        addresses
    }

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut client = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: probe\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[test]
    fn a_bare_port_means_every_address() {
        let parse = |text: &str| text.parse::<ListenAddress>();
        assert_eq!(parse(":8081").unwrap().0.to_string(), "0.0.0.0:8081");
        assert_eq!(parse("127.0.0.1:0").unwrap().0.to_string(), "127.0.0.1:0");
        assert_eq!(parse("localhost:80").unwrap().0.port(), 80);
        assert!(parse("8081").unwrap_err().contains("ADDRESS:PORT"));
    }

    #[tokio::test]
    async fn each_path_answers_with_a_line_and_one_that_is_not_ready_with_503() {
        for (why, status, body) in [
            ("", "HTTP/1.1 200", "\r\n\r\nok\n"),
            ("not joined yet", "HTTP/1.1 503", "\r\n\r\nnot ready: not joined yet\n"),
        ] {
            let [probes, metrics] = served(why).await;

            let ready = get(probes, "/ready").await;
            assert!(ready.starts_with(status) && ready.ends_with(body), "{ready}");
            let health = get(probes, "/health").await;
            assert!(health.starts_with("HTTP/1.1 200") && health.ends_with("\r\n\r\nok\n"));
            let metrics = get(metrics, "/metrics").await;
            assert!(metrics.contains("text/plain") && metrics.ends_with("\nanswers_total 1\n"));
            assert!(get(probes, "/metrics").await.starts_with("HTTP/1.1 404"));
        }
    }

    #[tokio::test]
    async fn clients_that_stay_silent_keep_no_other_from_being_answered_and_are_not_kept() {
        let [probes, metrics] = served("").await;
        for (address, path) in [(probes, "/health"), (metrics, "/metrics")] {
            let mut silent = Vec::new();
            for _ in 0..2 * STATUS_CONNECTIONS_MAX {
                silent.push(TcpStream::connect(address).await.unwrap());
            }

            let answer = get(address, path).await;

            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            for first in silent.iter_mut().take(STATUS_CONNECTIONS_MAX) {
                let mut byte = [0];
                let gone = tokio::time::timeout(STATUS_TIMEOUT / 2, first.read(&mut byte)).await;
                assert_eq!(gone.expect("it is kept").unwrap(), 0);
            }
        }
    }

    #[tokio::test]
    async fn an_address_in_use_is_an_error_that_names_its_flag() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = listener.local_addr().unwrap();

        let error = bind("--listen-health", ListenAddress(taken)).await.unwrap_err();

        assert_eq!(error.reason().as_str(), "AddressInUse");
        let text = error.to_string();
        assert!(text.contains("--listen-health") && text.contains(&taken.to_string()), "{text}");
    }
}
