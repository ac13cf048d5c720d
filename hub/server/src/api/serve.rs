//! HTTPS for the API: TLS handshakes in tasks of their own, so that a slow client holds up nobody.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use attest_common::basics::locked::RwLocked;

use attest_certs::tls::hub_https;
use attest_certs::{Bundle, TlsError, peer_identity};
use attest_runtime::probes::ADDRESS_IN_USE;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use axum::serve::{IncomingStream, Listener};
use http::StatusCode;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{Api, Refusal};
use crate::core::blocking::blocking;
use crate::core::limiter::ConnectionLimiter;
use crate::core::stop::Stop;
use crate::spokes::registration::Registration;

/// Connections being set up at once.
pub const API_HANDSHAKES_MAX: usize = 256;
/// Connections being set up at once from one address: nobody who stays silent closes the API to the others.
pub(crate) const API_HANDSHAKES_PER_ADDRESS_MAX: usize = 32;
/// How long a client may take to set up a connection.
pub const API_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Wait after the system refuses to accept, so that a lack of files does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The API's listener, before anybody is let in.
#[derive(Debug)]
pub(crate) struct Listening {
    listener: TcpListener,
    tls: Arc<RwLocked<Arc<rustls::ServerConfig>>>,
    api: Arc<Api>,
}

/// Takes `address`; nobody is served yet.
///
/// # Errors
/// [`ApiError::Listen`] when it is taken.
pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener, ApiError> {
    TcpListener::bind(address).await.map_err(|source| ApiError::Listen { address, source })
}

/// Listens on `listener`.
///
/// # Errors
/// When the certificate is unusable.
pub(crate) fn listen(
    api: Arc<Api>,
    tls: &Bundle,
    listener: TcpListener,
) -> Result<Listening, ApiError> {
    let config = config(&api.registration, tls)?;
    Ok(Listening { listener, tls: Arc::new(RwLocked::new(config)), api })
}

fn config(
    registration: &Registration,
    tls: &Bundle,
) -> Result<Arc<rustls::ServerConfig>, ApiError> {
    let authorities = [registration.authority().certificate().clone()];
    hub_https(tls, &authorities).map(Arc::new).map_err(ApiError::Tls)
}

impl Listening {
    /// Where it listens.
    ///
    /// # Errors
    /// When the socket is gone.
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// A handle by which the certificate can be changed later.
    pub(crate) fn certificate(&self) -> Certificate {
        Certificate { tls: self.tls.clone(), registration: self.api.registration.clone() }
    }
}

/// Changes the certificate that the API shows.
#[derive(Clone, Debug)]
pub(crate) struct Certificate {
    tls: Arc<RwLocked<Arc<rustls::ServerConfig>>>,
    registration: Arc<Registration>,
}

impl Certificate {
    /// Shows another certificate to those who come from now on.
    ///
    /// # Errors
    /// When it is unusable.
    pub(crate) fn set(&self, tls: &Bundle) -> Result<(), ApiError> {
        *self.tls.write() = config(&self.registration, tls)?;
        Ok(())
    }
}

/// Serves the API until the hub ends; requests under way are answered first.
///
/// # Errors
/// When serving fails as a whole.
pub(crate) async fn serve(listening: Listening) -> io::Result<()> {
    let Listening { listener, tls, api } = listening;
    let local = listener.local_addr()?;
    let (finished, ready) = mpsc::channel(API_HANDSHAKES_MAX);
    let stop = api.core.stop.clone();
    let accept = accept(listener, tls, finished, stop.clone());
    let accepting = tokio::spawn(stop.clone().part("accept loop of the API", accept));
    let router = super::router(api).into_make_service_with_connect_info::<Operator>();
    let served = axum::serve(Ready { ready, local }, router)
        .with_graceful_shutdown(async move { stop.cancelled().await })
        .await;
    accepting.abort();
    served
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub(super) struct Operator {
    /// Serial of the certificate; absent when it cannot be read.
    serial: Option<String>,
}

impl Connected<IncomingStream<'_, Ready>> for Operator {
    fn connect_info(stream: IncomingStream<'_, Ready>) -> Self {
        let (_, session) = stream.io().get_ref();
        let peer = session.peer_certificates().and_then(|chain| peer_identity(chain).ok());
        Self { serial: peer.map(|peer| peer.serial.to_string()) }
    }
}

/// Hears nobody whose certificate is revoked, also on a connection that was there before.
pub(super) async fn admitted(
    State(api): State<Arc<Api>>,
    ConnectInfo(operator): ConnectInfo<Operator>,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let answer = blocking(&api, move |api| match operator.serial {
        Some(serial) => api.operators.is_revoked(&serial),
        None => Ok(true),
    });
    let revoked = answer.await.map_err(|error| {
        let error = attest_common::basics::text::error_chain(&error);
        tracing::error!(reason = "OperatorUnreadable", "An operator was refused: {error}");
        let message = "what the hub keeps of this operator's certificate cannot be read; on the hub's \
                       machine, give the files in the home's `operators` to the hub's user";
        Refusal::new(StatusCode::FORBIDDEN, "OperatorUnreadable", message)
    })?;
    if revoked {
        let message = "this operator's certificate is revoked; `attest hub operator issue NAME` \
                       on the hub's machine makes another";
        return Err(Refusal::new(StatusCode::FORBIDDEN, "OperatorRevoked", message));
    }
    Ok(next.run(request).await)
}

async fn accept(
    listener: TcpListener,
    tls: Arc<RwLocked<Arc<rustls::ServerConfig>>>,
    finished: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
    stop: Arc<Stop>,
) {
    let handshakes = ConnectionLimiter::new(API_HANDSHAKES_MAX, API_HANDSHAKES_PER_ADDRESS_MAX);
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(reason = "Accept", "The API cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Without a place the connection is closed: who waits for one would keep others from it.
        let Some(permit) = handshakes.acquire(Some(from.ip())) else {
            tracing::debug!(reason = "Handshakes", from = from.to_string(), "The API is crowded");
            continue;
        };
        let config = tls.read().clone();
        let finished = finished.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let _ = stream.set_nodelay(true);
            let handshake = TlsAcceptor::from(config).accept(stream);
            match tokio::time::timeout(API_HANDSHAKE_TIMEOUT, handshake).await {
                Ok(Ok(stream)) => {
                    // Nobody takes it when the hub is ending.
                    let _ = finished.send((stream, from)).await;
                }
                Ok(Err(error)) => tracing::info!(
                    reason = "Handshake",
                    from = from.to_string(),
                    "A connection to the API was not admitted: {error}"
                ),
                Err(_) => tracing::info!(
                    reason = "HandshakeTimeout",
                    from = from.to_string(),
                    "A connection to the API was not set up in time"
                ),
            }
        });
    }
}

/// Connections whose handshake is done.
struct Ready {
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    local: SocketAddr,
}

impl Listener for Ready {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(connection) => connection,
            // The accepting task has ended: nobody comes any more.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }
}

/// Why the API does not listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    #[error("cannot listen on {address}; choose another address with --listen-api")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("the API's certificate cannot be used")]
    Tls(#[source] TlsError),
}

impl ApiError {
    /// A stable word for logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Listen { .. } => ADDRESS_IN_USE,
            Self::Tls(error) => error.reason(),
        }
    }
}
