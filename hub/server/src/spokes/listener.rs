//! QUIC listener for spokes: accepts connections and serves each in its own task.
//!
//! A session is level-triggered: when woken, it compares the state of the fleet with what it has sent and sends the
//! difference. Joining is in `registration`, certificates and ALPN are in `attest_certs`.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use attest_certs::tls::{Admission, admit, hub_quic};
use attest_certs::{Bundle, PeerIdentity};
use attest_common::basics::reason::Reason;
use attest_common::basics::text;
use attest_common::session::BIDIRECTIONAL_STREAMS_MAX;
use attest_runtime::frames;
use quinn::crypto::rustls::{HandshakeData, QuicServerConfig};
use quinn::{Connection, Endpoint, Incoming, VarInt};
use rustls_pki_types::CertificateDer;

use super::close::{CLOSE_COME_BACK, CLOSE_NOT_ADMITTED};
use super::error::LinkError;
use super::registration::{Registration, join};
use super::shared::{Shared, greeting_timeout};
use super::{reset, session};
use crate::core::Core;
use crate::core::blocking::blocking;
use crate::core::limiter::{ConnectionLimiter, Permit};
use crate::reconcile::waker::Waker;

/// Most concurrent handshakes; further connections are refused.
pub const HANDSHAKES_MAX: usize = 512;
/// Most concurrent handshakes from one validated address.
pub(crate) const HANDSHAKES_PER_ADDRESS_MAX: usize = HANDSHAKES_MAX / 4;
/// Most concurrent join requests; further ones are closed with the code to reconnect.
pub(crate) const JOINS_MAX: usize = 128;
/// Most concurrent join requests from one address.
pub(crate) const JOINS_PER_ADDRESS_MAX: usize = JOINS_MAX / 4;
/// Receive window of a connection in bytes.
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// Receive buffer of the socket in bytes, as far as the kernel allows.
const RECEIVE_BUFFER_BYTES: usize = 8 * 1024 * 1024;

/// The QUIC listener for spokes.
#[derive(Debug)]
pub(crate) struct SpokeListener {
    endpoint: Endpoint,
    core: Arc<Core>,
    waker: Arc<Waker>,
    registration: Arc<Registration>,
}

/// Binds `address`; no connection is served yet.
///
/// # Errors
/// [`LinkError::Listen`] when the address is in use.
pub(crate) fn bind(address: SocketAddr) -> Result<UdpSocket, LinkError> {
    UdpSocket::bind(address).map_err(|source| LinkError::Listen { address, source })
}

impl SpokeListener {
    /// Serves `socket` with the certificate of `tls`.
    ///
    /// # Errors
    /// When the socket or the certificate is unusable.
    pub(crate) fn open(
        core: Arc<Core>,
        waker: Arc<Waker>,
        registration: Arc<Registration>,
        tls: &Bundle,
        socket: UdpSocket,
    ) -> Result<Self, LinkError> {
        let address = socket.local_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)));
        // Best effort, for a fleet that reconnects at the same time: the kernel caps the size.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER_BYTES);
        let runtime = quinn::default_runtime().ok_or_else(|| LinkError::Listen {
            address,
            source: std::io::Error::other("no asynchronous runtime"),
        })?;
        let server = server_config(&registration, tls)?;
        let endpoint = Endpoint::new(reset::endpoint_config(tls), Some(server), socket, runtime)
            .map_err(|source| LinkError::Listen { address, source })?;
        Ok(Self { endpoint, core, waker, registration })
    }

    /// Returns the local address.
    ///
    /// # Errors
    /// When the socket is closed.
    pub(crate) fn address(&self) -> Result<SocketAddr, LinkError> {
        let address = SocketAddr::from(([0, 0, 0, 0], 0));
        self.endpoint.local_addr().map_err(|source| LinkError::Listen { address, source })
    }

    /// Replaces the certificate that new connections receive.
    ///
    /// # Errors
    /// When it is unusable.
    pub(crate) fn set_certificate(&self, tls: &Bundle) -> Result<(), LinkError> {
        self.endpoint.set_server_config(Some(server_config(&self.registration, tls)?));
        Ok(())
    }

    /// Serves spokes until the hub stops, then closes all connections.
    pub(crate) async fn serve(&self) {
        let handshakes = ConnectionLimiter::new(HANDSHAKES_MAX, HANDSHAKES_PER_ADDRESS_MAX);
        let joins = ConnectionLimiter::new(JOINS_MAX, JOINS_PER_ADDRESS_MAX);
        let (waker, registration) = (self.waker.clone(), self.registration.clone());
        let shared = Shared::start(self.core.clone(), waker, registration);
        loop {
            let incoming = tokio::select! {
                () = self.core.stop.cancelled() => break,
                incoming = self.endpoint.accept() => incoming,
            };
            let Some(incoming) = incoming else { break };
            let address = incoming.remote_address().ip();
            let validated = incoming.remote_address_validated().then_some(address);
            if validated.is_none()
                && incoming.may_retry()
                && handshakes.requires_address_validation()
            {
                // The client connects again, with a token that proves its address.
                let _ = incoming.retry();
                continue;
            }
            let Some(permit) =
                handshakes.acquire(validated.and_then(|peer| self.core.addresses.limited_by(peer)))
            else {
                self.core.metrics.handshakes_refused.inc();
                incoming.refuse();
                continue;
            };
            tokio::spawn(serve(shared.clone(), joins.clone(), incoming, permit));
        }
        self.endpoint.close(CLOSE_COME_BACK, Reason::HubStopping.as_str().as_bytes());
        self.endpoint.wait_idle().await;
    }
}

/// Serves one connection, from its handshake to its end.
async fn serve(
    shared: Arc<Shared>,
    joins: Arc<ConnectionLimiter>,
    incoming: Incoming,
    permit: Permit,
) {
    let greeted = greet(&shared.registration, incoming).await;
    drop(permit);
    match greeted {
        Ok(Greeted::Session(connection, peer)) => {
            Box::pin(session::session(&shared, &connection, &peer)).await;
        }
        Ok(Greeted::Join(connection)) => {
            let Some(_permit) =
                joins.acquire(shared.core.addresses.limited_by(connection.remote_address().ip()))
            else {
                shared.core.metrics.handshakes_refused.inc();
                return connection.close(CLOSE_COME_BACK, Reason::JoinLimit.as_str().as_bytes());
            };
            Box::pin(join::serve(&shared.registration, &connection)).await;
        }
        Err(error) => {
            shared.core.metrics.handshakes_failed.inc();
            tracing::info!(
                reason = error.reason().as_str(),
                "Connection rejected: {}",
                text::error_chain(&error)
            );
        }
    }
}

fn server_config(
    registration: &Registration,
    tls: &Bundle,
) -> Result<quinn::ServerConfig, LinkError> {
    let authorities = [registration.authority().certificate().clone()];
    let rustls = hub_quic(tls, &authorities).map_err(LinkError::Tls)?;
    let crypto = QuicServerConfig::try_from(rustls).map_err(|_| LinkError::Crypto)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let mut transport = frames::transport();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(BIDIRECTIONAL_STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES));
    config.transport_config(Arc::new(transport));
    config.max_incoming(HANDSHAKES_MAX);
    Ok(config)
}

enum Greeted {
    Session(Connection, PeerIdentity),
    Join(Connection),
}

async fn greet(registration: &Arc<Registration>, incoming: Incoming) -> Result<Greeted, LinkError> {
    let connecting = incoming.accept().map_err(LinkError::Connection)?;
    let connection = tokio::time::timeout(greeting_timeout(), connecting)
        .await
        .map_err(|_| LinkError::HandshakeTimedOut)?
        .map_err(LinkError::Connection)?;
    let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    let alpn = data.and_then(|data| data.protocol);
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
    let admission = admit(alpn.as_deref(), chain.as_ref().map(|chain| chain.as_slice()));
    match admission.map_err(LinkError::Tls) {
        Ok(Admission::Join) => Ok(Greeted::Join(connection)),
        Ok(Admission::Session(peer)) => match admit_cluster(registration, &peer).await {
            Ok(()) => Ok(Greeted::Session(connection, peer)),
            Err(error) => {
                connection.close(CLOSE_NOT_ADMITTED, error.reason().as_str().as_bytes());
                Err(error)
            }
        },
        Err(error) => {
            connection.close(CLOSE_NOT_ADMITTED, error.reason().as_str().as_bytes());
            Err(error)
        }
    }
}

async fn admit_cluster(
    registration: &Arc<Registration>,
    peer: &PeerIdentity,
) -> Result<(), LinkError> {
    let peer = peer.clone();
    blocking(registration, move |registration| registration.admit(&peer)).await
}
