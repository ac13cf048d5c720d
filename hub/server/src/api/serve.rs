//! HTTPS listener of the API. TLS handshakes run in their own tasks, so that a slow client does not delay others.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use attest_certs::tls::hub_https;
use attest_certs::{Bundle, OperatorRole, TlsError, peer_identity};
use attest_common::basics::locked::RwLocked;
use attest_common::basics::reason::Reason;
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
use crate::core::Core;
use crate::core::blocking::blocking;
use crate::core::limiter::ConnectionLimiter;
use crate::spokes::registration::Registration;

/// Most concurrent handshakes.
pub const API_HANDSHAKES_MAX: usize = 256;
/// Most concurrent handshakes from one address, so that idle clients cannot block others.
pub(crate) const API_HANDSHAKES_PER_ADDRESS_MAX: usize = 32;
/// Longest duration of a handshake.
pub const API_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Delay after a failure to accept, so that exhausted file descriptors do not cause a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The listener of the API, before it is served.
#[derive(Debug)]
pub(crate) struct Listening {
    listener: TcpListener,
    tls: Arc<RwLocked<Arc<rustls::ServerConfig>>>,
    api: Arc<Api>,
}

/// Binds `address`; no connection is served yet.
///
/// # Errors
/// [`ApiError::Listen`] when the address is in use.
pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener, ApiError> {
    TcpListener::bind(address).await.map_err(|source| ApiError::Listen { address, source })
}

/// Prepares serving of the API on `listener`.
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
    /// Returns the local address.
    ///
    /// # Errors
    /// When the socket is closed.
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Returns a handle to replace the certificate later.
    pub(crate) fn certificate(&self) -> Certificate {
        Certificate { tls: self.tls.clone(), registration: self.api.registration.clone() }
    }
}

/// Handle to replace the certificate of the API.
#[derive(Clone, Debug)]
pub(crate) struct Certificate {
    tls: Arc<RwLocked<Arc<rustls::ServerConfig>>>,
    registration: Arc<Registration>,
}

impl Certificate {
    /// Replaces the certificate that new connections receive.
    ///
    /// # Errors
    /// When the certificate is unusable.
    pub(crate) fn set(&self, tls: &Bundle) -> Result<(), ApiError> {
        *self.tls.write() = config(&self.registration, tls)?;
        Ok(())
    }
}

/// Serves the API until the hub stops; requests in progress are completed.
///
/// # Errors
/// When the listener fails.
pub(crate) async fn serve(listening: Listening) -> io::Result<()> {
    let Listening { listener, tls, api } = listening;
    let local = listener.local_addr()?;
    let (finished, ready) = mpsc::channel(API_HANDSHAKES_MAX);
    let stop = api.core.stop.clone();
    let accept = accept(listener, tls, finished, api.core.clone());
    let accepting = tokio::spawn(stop.clone().part("accept loop of the API", accept));
    let router = super::router(api).into_make_service_with_connect_info::<Operator>();
    let served = axum::serve(Ready { ready, local }, router)
        .with_graceful_shutdown(async move { stop.cancelled().await })
        .await;
    accepting.abort();
    served
}

/// The client of a connection.
#[derive(Clone, Debug)]
pub(super) struct Operator {
    /// Absent when the certificate cannot be read.
    identity: Option<OperatorIdentity>,
}

#[derive(Clone, Debug)]
struct OperatorIdentity {
    serial: String,
    role: OperatorRole,
    name: String,
}

impl Operator {
    /// Returns the name in the certificate; empty when it cannot be read.
    pub(super) fn name(&self) -> String {
        self.identity.as_ref().map(|identity| identity.name.clone()).unwrap_or_default()
    }
}

impl Connected<IncomingStream<'_, Ready>> for Operator {
    fn connect_info(stream: IncomingStream<'_, Ready>) -> Self {
        let (_, session) = stream.io().get_ref();
        let peer = session.peer_certificates().and_then(|chain| peer_identity(chain).ok());
        let identity = peer.and_then(|peer| {
            let role = OperatorRole::of(peer.id.role())?;
            let (serial, name) = (peer.serial.to_string(), peer.id.name().to_owned());
            Some(OperatorIdentity { serial, role, name })
        });
        Self { identity }
    }
}

/// Rejects requests with a revoked certificate, including those on established connections. Passes on the role.
pub(super) async fn admitted(
    State(api): State<Arc<Api>>,
    ConnectInfo(operator): ConnectInfo<Operator>,
    mut request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let Some(OperatorIdentity { serial, role, .. }) = operator.identity else {
        let message = "the certificate of this connection is not that of an operator";
        return Err(Refusal::new(StatusCode::FORBIDDEN, Reason::PeerRole, message));
    };
    let answer = blocking(&api, move |api| api.operators.is_revoked(&serial));
    let revoked = answer.await.map_err(|error| {
        let error = attest_common::basics::text::error_chain(&error);
        tracing::error!(reason = Reason::OperatorUnreadable.as_str(), "Operator rejected: {error}");
        let message = "failed to read the hub's record of this operator's certificate; on the hub's machine, \
                       make the hub's user the owner of the files in the home's `operators`";
        Refusal::new(StatusCode::FORBIDDEN, Reason::OperatorUnreadable, message)
    })?;
    if revoked {
        let message = "this operator's certificate is revoked; issue another on the hub's machine with \
                       `attest hub operator issue NAME`";
        return Err(Refusal::new(StatusCode::FORBIDDEN, Reason::OperatorRevoked, message));
    }
    request.extensions_mut().insert(role);
    Ok(next.run(request).await)
}

async fn accept(
    listener: TcpListener,
    tls: Arc<RwLocked<Arc<rustls::ServerConfig>>>,
    finished: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
    core: Arc<Core>,
) {
    let handshakes = ConnectionLimiter::new(API_HANDSHAKES_MAX, API_HANDSHAKES_PER_ADDRESS_MAX);
    loop {
        let accepted = tokio::select! {
            () = core.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(
                    reason = Reason::AcceptFailed.as_str(),
                    "Failed to accept a connection to the API: {error}"
                );
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Without a permit the connection is closed: waiting for one would delay other clients.
        let Some(permit) = handshakes.acquire(core.addresses.limited_by(from.ip())) else {
            tracing::debug!(
                reason = Reason::HandshakeLimit.as_str(),
                from = from.to_string(),
                "Connection to the API refused (limit of handshakes)"
            );
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
                    // Fails only when the hub is stopping.
                    let _ = finished.send((stream, from)).await;
                }
                Ok(Err(error)) => tracing::info!(
                    reason = Reason::HandshakeFailed.as_str(),
                    from = from.to_string(),
                    "Connection to the API rejected: {error}"
                ),
                Err(_) => tracing::info!(
                    reason = Reason::HandshakeTimeout.as_str(),
                    from = from.to_string(),
                    "Handshake of a connection to the API timed out"
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
            // The accepting task has ended: no further connections.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }
}

/// Failure to start the listener of the API.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    #[error("failed to listen on {address}; choose another address with --listen-api")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("the API's certificate is unusable")]
    Tls(#[source] TlsError),
}

impl ApiError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Listen { .. } => Reason::AddressInUse,
            Self::Tls(error) => error.reason(),
        }
    }
}
