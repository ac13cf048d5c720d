//! The hub's QUIC door: accepts spokes, and carries frames between them and the fleet. One task a connection.
//!
//! A session is level-triggered: whatever wakes it, it compares what the fleet says with what it has
//! sent and sends the difference. Joining is `join`; certificates and ALPN are `attest_certs`.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use attest_certs::tls::{Admission, admit, hub_quic};
use attest_certs::{Bundle, PeerIdentity};
use attest_common::basics::ids::ClusterId;
use attest_common::basics::rate::{KeyedRateLimiter, RateLimit};
use attest_common::basics::text;
use attest_common::session::{BIDIRECTIONAL_STREAMS_MAX, GREETING_TIMEOUT_MS};
use attest_runtime::frames;
use quinn::crypto::rustls::{HandshakeData, QuicServerConfig};
use quinn::{Connection, Endpoint, Incoming, VarInt};
use rustls_pki_types::CertificateDer;
use tokio::sync::Semaphore;

use super::LinkError;
use super::registration::{self, CLUSTERS_MAX};
use super::reports::{self, Reports};
use super::{reset, session};
use crate::core::limiter::Crowd;
use crate::core::store::records::{self, ClusterRecord, ClusterState};
use crate::process::hub::Hub;

/// Connections being set up at once; further ones are told to come later.
pub const HANDSHAKES_MAX: usize = 512;
/// Connections being set up at once from one address that is proven.
pub const HANDSHAKES_PER_ADDRESS_MAX: usize = HANDSHAKES_MAX / 4;
/// Connections that ask to join served at once; further ones are told to come back.
pub const JOINS_MAX: usize = 128;
/// Connections from one address that ask to join served at once.
pub const JOINS_PER_ADDRESS_MAX: usize = JOINS_MAX / 4;
/// Pushes under way at once, over all spokes.
pub const PUSHES_MAX: usize = 256;
/// Destinations a spoke may say it holds when it connects.
pub const HELLO_DESTINATIONS_MAX: usize = 4_096;
/// Largest policy hint in bytes.
pub const POLICY_BYTES_MAX: usize = 512 * 1024;
/// Blobs that one `Need` may name.
pub const NEEDS_MAX: usize = 128;
/// Limit, for each cluster, of sessions that report directives unknown to this hub: each costs a durable write and a
/// ledger entry. After a restore from a backup, each spoke reports them once.
const CLAIMS: RateLimit = RateLimit::per(8, 8, Duration::from_secs(10 * 60));
/// Limit, for each cluster, of sessions of which the hub stores a changed policy or version: each costs a durable
/// write.
const INTRODUCTIONS: RateLimit = RateLimit::per(8, 8, Duration::from_secs(10 * 60));
/// Limit of certificate renewals for each cluster: each costs a signature and a durable write, and certificates are
/// valid for days.
const RENEWALS: RateLimit = RateLimit::one_every(1, Duration::from_secs(60));
/// Bytes a connection may send before it is acknowledged.
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// Bytes of datagrams that may wait for the hub, as far as the kernel allows.
const RECEIVE_BUFFER_BYTES: usize = 8 * 1024 * 1024;

/// The connection gave way to a newer one of the same cluster.
pub const CLOSE_REPLACED: VarInt = VarInt::from_u32(1);
/// The spoke is not, or no longer, admitted.
pub const CLOSE_NOT_ADMITTED: VarInt = VarInt::from_u32(attest_common::session::CLOSE_NOT_ADMITTED);
/// The spoke broke the protocol.
pub const CLOSE_PROTOCOL: VarInt = VarInt::from_u32(3);
/// The hub ends, or its certificate or the spoke's does: come back.
pub const CLOSE_COME_BACK: VarInt = VarInt::from_u32(4);
/// Joining is over.
pub const CLOSE_DONE: VarInt = VarInt::from_u32(0);

/// The open door.
#[derive(Debug)]
pub struct Door {
    endpoint: Endpoint,
    hub: Arc<Hub>,
}

/// Takes `address`; nobody is served yet.
///
/// # Errors
/// [`LinkError::Listen`] when it is taken.
pub fn bind(address: SocketAddr) -> Result<UdpSocket, LinkError> {
    UdpSocket::bind(address).map_err(|source| LinkError::Listen { address, source })
}

impl Door {
    /// Serves `socket` with the certificate of `tls`.
    ///
    /// # Errors
    /// When the socket or the certificate is unusable.
    pub fn open(hub: Arc<Hub>, tls: &Bundle, socket: UdpSocket) -> Result<Self, LinkError> {
        let address = socket.local_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)));
        // The kernel grants what its limit allows; a fleet that reconnects at once needs it.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER_BYTES);
        let listen = |source| LinkError::Listen { address, source };
        let runtime = quinn::default_runtime()
            .ok_or_else(|| listen(std::io::Error::other("no asynchronous runtime")))?;
        let server = server_config(&hub, tls)?;
        let endpoint = Endpoint::new(reset::endpoint_config(tls), Some(server), socket, runtime)
            .map_err(listen)?;
        Ok(Self { endpoint, hub })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn address(&self) -> Result<SocketAddr, LinkError> {
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        let listen = |source| LinkError::Listen { address: unknown, source };
        self.endpoint.local_addr().map_err(listen)
    }

    /// Shows another certificate to those who come from now on.
    ///
    /// # Errors
    /// When it is unusable.
    pub fn set_certificate(&self, tls: &Bundle) -> Result<(), LinkError> {
        self.endpoint.set_server_config(Some(server_config(&self.hub, tls)?));
        Ok(())
    }

    /// Serves spokes until the hub ends; then says goodbye to all of them.
    pub async fn serve(&self) {
        let handshakes = Crowd::new(HANDSHAKES_MAX, HANDSHAKES_PER_ADDRESS_MAX);
        let joins = Crowd::new(JOINS_MAX, JOINS_PER_ADDRESS_MAX);
        let shared = Arc::new(Shared {
            reports: reports::start(self.hub.clone()),
            pushes: Arc::new(Semaphore::new(PUSHES_MAX)),
            claims: KeyedRateLimiter::new(CLAIMS, CLUSTERS_MAX),
            introductions: KeyedRateLimiter::new(INTRODUCTIONS, CLUSTERS_MAX),
            renewals: KeyedRateLimiter::new(RENEWALS, CLUSTERS_MAX),
        });
        loop {
            let incoming = tokio::select! {
                () = self.hub.stop.cancelled() => break,
                incoming = self.endpoint.accept() => incoming,
            };
            let Some(incoming) = incoming else { break };
            let address = incoming.remote_address().ip();
            let proven = incoming.remote_address_validated().then_some(address);
            if proven.is_none() && incoming.may_retry() && handshakes.is_crowded() {
                // It comes again with a token that only the owner of the address can have got.
                let _ = incoming.retry();
                continue;
            }
            let Some(place) = handshakes.enter(proven) else {
                self.hub.metrics.handshakes_refused.inc();
                incoming.refuse();
                continue;
            };
            let (hub, shared, joins) = (self.hub.clone(), shared.clone(), joins.clone());
            tokio::spawn(async move {
                let greeted = greet(&hub, incoming).await;
                drop(place);
                match greeted {
                    Ok(Greeted::Session(connection, peer)) => {
                        Box::pin(session::session(&hub, &shared, &connection, &peer)).await;
                    }
                    Ok(Greeted::Join(connection)) => {
                        let Some(_place) = joins.enter(Some(connection.remote_address().ip()))
                        else {
                            hub.metrics.handshakes_refused.inc();
                            return connection.close(CLOSE_COME_BACK, b"JoinsBusy");
                        };
                        Box::pin(registration::serve(&hub, &connection)).await;
                    }
                    Err(error) => {
                        hub.metrics.handshakes_failed.inc();
                        tracing::info!(
                            reason = error.reason(),
                            "A connection was not admitted: {}",
                            text::error_chain(&error)
                        );
                    }
                }
            });
        }
        self.endpoint.close(CLOSE_COME_BACK, b"HubStopping");
        self.endpoint.wait_idle().await;
    }
}

/// What all sessions share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) reports: Reports,
    pub(super) pushes: Arc<Semaphore>,
    /// Sessions that report directives unknown to this hub.
    pub(super) claims: KeyedRateLimiter<ClusterId>,
    /// Sessions that report changed metadata of their cluster.
    pub(super) introductions: KeyedRateLimiter<ClusterId>,
    /// Certificate renewals.
    pub(super) renewals: KeyedRateLimiter<ClusterId>,
}

fn server_config(hub: &Hub, tls: &Bundle) -> Result<quinn::ServerConfig, LinkError> {
    let authorities = [hub.authority.certificate().clone()];
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

async fn greet(hub: &Arc<Hub>, incoming: Incoming) -> Result<Greeted, LinkError> {
    let connecting = incoming.accept().map_err(LinkError::Connection)?;
    let connection = tokio::time::timeout(greeting_timeout(), connecting)
        .await
        .map_err(|_| LinkError::Silent)?
        .map_err(LinkError::Connection)?;
    let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    let alpn = data.and_then(|data| data.protocol);
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
    let admission = admit(alpn.as_deref(), chain.as_ref().map(|chain| chain.as_slice()));
    match admission.map_err(LinkError::Tls) {
        Ok(Admission::Join) => Ok(Greeted::Join(connection)),
        Ok(Admission::Session(peer)) => match admit_cluster(hub, &peer).await {
            Ok(()) => Ok(Greeted::Session(connection, peer)),
            Err(error) => {
                connection.close(CLOSE_NOT_ADMITTED, error.reason().as_bytes());
                Err(error)
            }
        },
        Err(error) => {
            connection.close(CLOSE_NOT_ADMITTED, error.reason().as_bytes());
            Err(error)
        }
    }
}

/// Whether the registered cluster may come in with this certificate. The first use of a renewed
/// certificate is the end of the former one.
async fn admit_cluster(hub: &Arc<Hub>, peer: &PeerIdentity) -> Result<(), LinkError> {
    let id = cluster_id(peer)?;
    let serial = peer.serial.to_string();
    hub.blocking(move |hub| {
        let writing = hub.directory.writing();
        let stored = hub.records.stored::<ClusterRecord>(id.as_str())?;
        let Some(stored) = stored else { return Err(LinkError::ClusterUnknown(id)) };
        let record = &stored.value;
        match record.state {
            ClusterState::Revoked => return Err(LinkError::ClusterRevoked(id)),
            ClusterState::Pending => return Err(LinkError::ClusterPending(id)),
            ClusterState::Accepted => {}
        }
        let is_current = record.serial.as_ref() == Some(&serial);
        if !is_current && record.former_serial.as_ref() != Some(&serial) {
            return Err(LinkError::CertificateNotCurrent(id));
        }
        if is_current && record.former_serial.is_some() {
            let used = ClusterRecord { former_serial: None, ..record.clone() };
            hub.records.commit("certificate", &[records::replace(&stored, &used)])?;
            writing.note(&used);
        }
        Ok(())
    })
    .await
}

pub(super) fn cluster_id(peer: &PeerIdentity) -> Result<ClusterId, LinkError> {
    peer.id.name().parse().map_err(|_| LinkError::HelloInvalid("the cluster id"))
}

pub(super) fn greeting_timeout() -> Duration {
    Duration::from_millis(GREETING_TIMEOUT_MS)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_spoke_that_claims_more_at_every_reconnect_is_believed_a_few_times_and_holds_up_no_other() {
        let claims = KeyedRateLimiter::new(CLAIMS, CLUSTERS_MAX);
        let [liar, other]: [ClusterId; 2] =
            ["c-0123456789abcdef", "c-fedcba9876543210"].map(|id| id.parse().unwrap());
        let begun = Instant::now();

        let believed = (0..100).filter(|_| claims.allows(&liar, begun)).count();

        assert_eq!(believed, 8);
        assert!(claims.allows(&other, begun));
        assert!(claims.allows(&liar, begun + CLAIMS.period));
    }
}
