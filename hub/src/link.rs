//! The hub's QUIC door: accepts spokes, and carries frames between them and the fleet. One task a connection.
//!
//! A session is level-triggered: whatever wakes it, it compares what the fleet says with what it has
//! sent and sends the difference. Joining is `join`; certificates and ALPN are `attest_certs`.

mod reports;
mod wire;

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use attest_certs::tls::{Admission, admit, hub_quic};
use attest_certs::{Bundle, PeerIdentity, TlsError};
use attest_common::envelope::ENVELOPE_BYTES_MAX;
use attest_common::ids::{ClusterId, DestinationKey, Digest};
use attest_common::policy;
use attest_common::report::{self, REPORT_BYTES_MAX, Report};
use attest_common::session::frame::{BLOB_PIECE_BYTES_MAX, FrameError, encode};
use attest_common::session::message::{
    Blob, Hello, Need, NumberedReport, Push, Renewed, ToHub, ToHubBody, ToSpoke, ToSpokeBody,
    Welcome,
};
use attest_common::session::{
    BIDIRECTIONAL_STREAMS_MAX, GREETING_TIMEOUT_MS, IDLE_TIMEOUT_MS, SYNC_INTERVAL_MS,
    UNIDIRECTIONAL_STREAMS_MAX, negotiate,
};
use bytes::Bytes;
use quinn::crypto::rustls::{HandshakeData, QuicServerConfig};
use quinn::{Connection, Endpoint, EndpointConfig, Incoming, TransportConfig, VarInt};
use rustls_pki_types::CertificateDer;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

pub(crate) use wire::{FrameReader, send};

use crate::fleet::Pending;
use crate::hub::Hub;
use crate::join;
use crate::planner::{Held, Hint};
use crate::store::StoreError;
use crate::store::records::{self, ClusterRecord, ClusterState, CompressedBlob, PolicyRecord};
use reports::{Arrived, Reports};

/// Connections being set up at once; further ones are told to come later.
pub const HANDSHAKES_MAX: usize = 512;
/// Pushes under way at once, over all spokes.
pub const PUSHES_MAX: usize = 256;
/// Destinations a spoke may say it holds when it connects.
pub const HELLO_DESTINATIONS_MAX: usize = 4_096;
/// Largest policy hint in bytes.
pub const POLICY_BYTES_MAX: usize = 512 * 1024;
/// Blobs that one `Need` may name.
pub const NEEDS_MAX: usize = 128;
/// Acknowledgements that may wait to be sent on one connection.
const ACKNOWLEDGEMENTS_MAX: usize = 64;
/// Bytes a connection may send before it is acknowledged.
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// How many reconnects a second the hub likes to see.
const RECONNECTS_PER_SECOND: u64 = 500;
/// Narrowest window over which spokes spread their reconnects.
const RECONNECT_WINDOW_MIN_MS: u64 = 1_000;

/// The connection gave way to a newer one of the same cluster.
pub const CLOSE_REPLACED: VarInt = VarInt::from_u32(1);
/// The spoke is not, or no longer, admitted.
pub const CLOSE_NOT_ADMITTED: VarInt = VarInt::from_u32(2);
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

impl Door {
    /// Listens on `address` and shows the certificate of `tls`.
    ///
    /// # Errors
    /// When the address is taken or the certificate is unusable.
    pub fn open(hub: Arc<Hub>, tls: &Bundle, address: SocketAddr) -> Result<Self, LinkError> {
        let socket =
            UdpSocket::bind(address).map_err(|source| LinkError::Listen { address, source })?;
        let listen = |source| LinkError::Listen { address, source };
        let runtime = quinn::default_runtime()
            .ok_or_else(|| listen(std::io::Error::other("no asynchronous runtime")))?;
        let server = server_config(&hub, tls)?;
        let endpoint = Endpoint::new(EndpointConfig::default(), Some(server), socket, runtime)
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
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        let shared = Arc::new(Shared {
            reports: reports::start(self.hub.clone()),
            pushes: Arc::new(Semaphore::new(PUSHES_MAX)),
        });
        loop {
            let incoming = tokio::select! {
                () = self.hub.stop.cancelled() => break,
                incoming = self.endpoint.accept() => incoming,
            };
            let Some(incoming) = incoming else { break };
            let Ok(permit) = handshakes.clone().try_acquire_owned() else {
                self.hub.metrics.handshakes_refused.inc();
                incoming.refuse();
                continue;
            };
            let (hub, shared) = (self.hub.clone(), shared.clone());
            tokio::spawn(async move {
                let greeted = greet(&hub, incoming).await;
                drop(permit);
                match greeted {
                    Ok(Greeted::Session(connection, peer)) => {
                        Box::pin(session(&hub, &shared, &connection, &peer)).await;
                    }
                    Ok(Greeted::Join(connection)) => Box::pin(join::serve(&hub, &connection)).await,
                    Err(error) => {
                        hub.metrics.handshakes_failed.inc();
                        tracing::info!(
                            reason = error.reason(),
                            "A connection was not admitted: {}",
                            report::error_chain(&error)
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
struct Shared {
    reports: Reports,
    pushes: Arc<Semaphore>,
}

fn server_config(hub: &Hub, tls: &Bundle) -> Result<quinn::ServerConfig, LinkError> {
    let authorities = [hub.authority.certificate().clone()];
    let rustls = hub_quic(tls, &authorities).map_err(LinkError::Tls)?;
    let crypto = QuicServerConfig::try_from(rustls).map_err(|_| LinkError::Crypto)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(BIDIRECTIONAL_STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .send_window(u64::from(CONNECTION_WINDOW_BYTES))
        .max_idle_timeout(Some(VarInt::from_u32(idle_timeout_ms()).into()));
    config.transport_config(Arc::new(transport));
    config.max_incoming(HANDSHAKES_MAX);
    Ok(config)
}

fn idle_timeout_ms() -> u32 {
    u32::try_from(IDLE_TIMEOUT_MS).unwrap_or(u32::MAX)
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
        }
        Ok(())
    })
    .await
}

fn cluster_id(peer: &PeerIdentity) -> Result<ClusterId, LinkError> {
    peer.id.name().parse().map_err(|_| LinkError::HelloInvalid("the cluster id"))
}

fn greeting_timeout() -> Duration {
    Duration::from_millis(GREETING_TIMEOUT_MS)
}

/// One spoke, from its greeting to the end of its connection.
async fn session(
    hub: &Arc<Hub>,
    shared: &Arc<Shared>,
    connection: &Connection,
    peer: &PeerIdentity,
) {
    let outcome = run_session(hub, shared, connection, peer).await;
    if let Err(error) = outcome {
        let (code, reason) = error.close();
        connection.close(code, reason.as_bytes());
        tracing::info!(
            cluster = peer.id.name(),
            reason = error.reason(),
            "A session ended: {}",
            report::error_chain(&error)
        );
    }
}

struct Session<'a> {
    hub: &'a Arc<Hub>,
    shared: &'a Arc<Shared>,
    connection: &'a Connection,
    cluster: ClusterId,
    number: u64,
    nonce: String,
    control: quinn::SendStream,
    pushes: JoinSet<()>,
}

async fn run_session(
    hub: &Arc<Hub>,
    shared: &Arc<Shared>,
    connection: &Connection,
    peer: &PeerIdentity,
) -> Result<(), LinkError> {
    let cluster = cluster_id(peer)?;
    let greeting = async {
        let (mut control, receive) = connection.accept_bi().await.map_err(LinkError::Connection)?;
        let mut reader = FrameReader::new(receive);
        let first: ToHub = reader.next().await?.ok_or(LinkError::Silent)?;
        let Some(ToHubBody::Hello(hello)) = first.body else {
            return Err(LinkError::HelloInvalid("the first message"));
        };
        let (held, nonce) = read_hello(&cluster, &hello)?;
        let protocol = negotiate(hello.protocol_min, hello.protocol_max)
            .ok_or(LinkError::ProtocolVersion(hello.protocol_min, hello.protocol_max))?;
        introduce(hub, &cluster, hello).await?;
        let welcome = Welcome {
            protocol,
            hub_version: env!("CARGO_PKG_VERSION").to_owned(),
            reconnect_window_ms: reconnect_window_ms(hub.fleet.connected()),
        };
        send(&mut control, &to_spoke(ToSpokeBody::Welcome(welcome))).await?;
        Ok((control, reader, held, nonce))
    };
    let (control, mut reader, held, nonce) = tokio::time::timeout(greeting_timeout(), greeting)
        .await
        .map_err(|_| LinkError::Silent)??;
    let (number, wake) = hub.fleet.connect(&cluster, connection.clone(), held);
    let _presence = Presence { hub, cluster: cluster.clone(), number };
    note_connected(hub);
    tracing::info!(cluster = cluster.as_str(), "A spoke is connected");
    for (destination, _) in hub.fleet.heads_of(&cluster) {
        hub.pipeline.wake(destination.application.as_str());
    }
    hub.pipeline.wake_all();

    let pushes = JoinSet::new();
    let mut session = Session { hub, shared, connection, cluster, number, nonce, control, pushes };
    session.sync().await?;
    let (acknowledge, mut acknowledged) = mpsc::channel(ACKNOWLEDGEMENTS_MAX);
    let mut heartbeat = tokio::time::interval(Duration::from_millis(SYNC_INTERVAL_MS));
    heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    heartbeat.reset();
    let left = peer.not_after.duration_since(SystemTime::now()).unwrap_or_default();
    let expiry = tokio::time::sleep(left);
    tokio::pin!(expiry);
    session.push_pending().await;
    loop {
        tokio::select! {
            frame = reader.next::<ToHub>() => match frame? {
                Some(frame) => session.receive(frame, &acknowledge).await?,
                None => return Ok(()),
            },
            () = wake.notified() => session.push_pending().await,
            Some(number) = acknowledged.recv() => {
                session.say(ToSpokeBody::Acknowledge(number)).await?;
            }
            Some(_) = session.pushes.join_next(), if !session.pushes.is_empty() => {
                session.push_pending().await;
            }
            _ = heartbeat.tick() => session.sync().await?,
            () = &mut expiry => return Err(LinkError::CertificateExpired),
            () = hub.stop.cancelled() => return Err(LinkError::Stopping),
        }
    }
}

/// Takes the session out of the fleet, however it ends.
struct Presence<'a> {
    hub: &'a Arc<Hub>,
    cluster: ClusterId,
    number: u64,
}

impl Drop for Presence<'_> {
    fn drop(&mut self) {
        self.hub.fleet.disconnect(&self.cluster, self.number);
        note_connected(self.hub);
        for (destination, _) in self.hub.fleet.heads_of(&self.cluster) {
            self.hub.pipeline.wake_status(destination.application.as_str());
        }
    }
}

fn note_connected(hub: &Hub) {
    hub.metrics.connected.set(i64::try_from(hub.fleet.connected()).unwrap_or(i64::MAX));
}

fn reconnect_window_ms(connected: usize) -> u64 {
    (connected as u64 * 1_000 / RECONNECTS_PER_SECOND).max(RECONNECT_WINDOW_MIN_MS)
}

fn to_spoke(body: ToSpokeBody) -> ToSpoke {
    ToSpoke { body: Some(body) }
}

type HeldBy = BTreeMap<DestinationKey, Held>;

fn read_hello(cluster: &ClusterId, hello: &Hello) -> Result<(HeldBy, String), LinkError> {
    if hello.cluster_id != cluster.as_str() {
        return Err(LinkError::HelloInvalid("cluster_id"));
    }
    if hello.nonce.len() != 16 {
        return Err(LinkError::HelloInvalid("nonce"));
    }
    if hello.policy.len() > POLICY_BYTES_MAX || hello.destinations.len() > HELLO_DESTINATIONS_MAX {
        return Err(LinkError::HelloInvalid("its size"));
    }
    let mut held = BTreeMap::new();
    for seen in &hello.destinations {
        let wrong = |_| LinkError::HelloInvalid("destinations");
        let destination = DestinationKey {
            application: seen.application.parse().map_err(wrong)?,
            cluster: cluster.clone(),
            namespace: seen.namespace.parse().map_err(wrong)?,
        };
        let digest = <[u8; 32]>::try_from(seen.directive.as_slice()).ok().map(Digest::from_raw);
        held.insert(destination, Held { sequence: seen.sequence, digest });
    }
    Ok((held, data_encoding::HEXLOWER.encode(&hello.nonce)))
}

/// Keeps what a spoke says of itself: versions, and its policy as a hint.
async fn introduce(hub: &Arc<Hub>, cluster: &ClusterId, hello: Hello) -> Result<(), LinkError> {
    let cluster = cluster.clone();
    hub.blocking(move |hub| {
        let stored = hub.records.stored::<ClusterRecord>(cluster.as_str())?;
        let Some(stored) = stored else { return Err(LinkError::ClusterUnknown(cluster)) };
        let short = |text: &str| Some(text.chars().take(80).collect::<String>());
        let record = ClusterRecord {
            agent_version: short(&hello.agent_version),
            kubernetes_version: short(&hello.kubernetes_version),
            ..stored.value.clone()
        };
        let mut changes = Vec::new();
        if record != stored.value {
            changes.push(records::replace(&stored, &record));
        }
        let spec: Option<policy::Spec> = attest_common::json::document(&hello.policy).ok();
        let hint = spec.and_then(|spec| {
            let policy = spec.load().ok()?;
            Some(Hint { spec, policy })
        });
        if let Some(hint) = hint {
            let policy = PolicyRecord { cluster: cluster.clone(), spec: hint.spec.clone() };
            let former: Option<PolicyRecord> = hub.records.get(cluster.as_str())?;
            if former.as_ref() != Some(&policy) {
                changes.push(records::put(&policy));
            }
            hub.fleet.set_hint(&cluster, hint);
        } else {
            tracing::warn!(
                cluster = cluster.as_str(),
                reason = "TrustPolicyInvalid",
                "A spoke says no policy that this hub can read; its former one is used"
            );
        }
        if !changes.is_empty() {
            hub.records.commit("introduction", &changes)?;
        }
        Ok(())
    })
    .await
}

impl Session<'_> {
    async fn say(&mut self, body: ToSpokeBody) -> Result<(), LinkError> {
        send(&mut self.control, &to_spoke(body)).await
    }

    async fn sync(&mut self) -> Result<(), LinkError> {
        let signed = self.hub.sync_for(&self.cluster, &self.nonce);
        self.say(ToSpokeBody::Sync(signed.envelope)).await
    }

    async fn receive(
        &mut self,
        frame: ToHub,
        acknowledge: &mpsc::Sender<u64>,
    ) -> Result<(), LinkError> {
        self.hub.fleet.heard(&self.cluster);
        match frame.body {
            Some(ToHubBody::Report(report)) => self.report(report, acknowledge).await,
            Some(ToHubBody::Need(need)) => self.need(need),
            Some(ToHubBody::Renew(request)) => self.renew(request).await,
            Some(ToHubBody::Hello(_)) => Err(LinkError::HelloInvalid("a second one")),
            // A word of a newer spoke.
            None => Ok(()),
        }
    }

    async fn report(
        &mut self,
        numbered: NumberedReport,
        acknowledge: &mpsc::Sender<u64>,
    ) -> Result<(), LinkError> {
        if numbered.report.len() > REPORT_BYTES_MAX {
            return Err(LinkError::ReportInvalid);
        }
        let report: Report =
            serde_json::from_slice(&numbered.report).map_err(|_| LinkError::ReportInvalid)?;
        let arrived = Arrived {
            cluster: self.cluster.clone(),
            report,
            at: Instant::now(),
            number: numbered.number,
            acknowledge: acknowledge.clone(),
        };
        self.shared.reports.take(arrived).await;
        Ok(())
    }

    fn need(&self, need: Need) -> Result<(), LinkError> {
        let wrong = |_| LinkError::HelloInvalid("a need");
        if need.sha256.len() > NEEDS_MAX {
            return Err(LinkError::HelloInvalid("a need"));
        }
        let destination = DestinationKey {
            application: need.application.parse().map_err(wrong)?,
            cluster: self.cluster.clone(),
            namespace: need.namespace.parse().map_err(wrong)?,
        };
        let digests =
            need.sha256.iter().filter_map(|raw| <[u8; 32]>::try_from(raw.as_slice()).ok());
        let digests: Vec<Digest> = digests.map(Digest::from_raw).collect();
        self.hub.fleet.spoke_lacks(&destination, &digests);
        Ok(())
    }

    /// A new certificate for the spoke's new key; the former one ends when this one is first used.
    async fn renew(&mut self, request: Vec<u8>) -> Result<(), LinkError> {
        let cluster = self.cluster.clone();
        let renewed = self.hub.blocking(move |hub| join::renew(hub, &cluster, &request)).await;
        let chain_der = match renewed {
            Ok(chain) => chain,
            Err(error) => {
                tracing::warn!(
                    cluster = self.cluster.as_str(),
                    reason = error.reason(),
                    "A certificate was not renewed: {}",
                    report::error_chain(&error)
                );
                Vec::new()
            }
        };
        self.say(ToSpokeBody::Renewed(Renewed { chain_der })).await
    }

    /// Sends every directive that the spoke neither holds nor was sent on this connection.
    async fn push_pending(&mut self) {
        for pending in self.hub.fleet.pending(&self.cluster, self.number) {
            if self.pushes.len() >= UNIDIRECTIONAL_STREAMS_MAX as usize {
                // The end of one of them comes back here.
                return;
            }
            let (hub, connection) = (self.hub.clone(), self.connection.clone());
            let (permits, number) = (self.shared.pushes.clone(), self.number);
            // The order of begin_push decides which push carries a blob that several need.
            let blobs = match prepare(&hub, number, &pending).await {
                Ok(blobs) => blobs,
                Err(error) => {
                    tracing::error!(
                        destination = pending.destination.to_string(),
                        reason = error.reason(),
                        "A directive cannot be sent: {}",
                        report::error_chain(&error)
                    );
                    continue;
                }
            };
            self.pushes.spawn(async move {
                let _permit = permits.acquire_owned().await;
                if let Err(error) = push(&hub, &connection, &pending, &blobs).await {
                    tracing::info!(
                        destination = pending.destination.to_string(),
                        reason = error.reason(),
                        "A push did not arrive: {}",
                        report::error_chain(&error)
                    );
                }
            });
        }
    }
}

/// The blobs that go with a directive: those of its plan that the spoke lacks.
async fn prepare(
    hub: &Arc<Hub>,
    number: u64,
    pending: &Pending,
) -> Result<Vec<CompressedBlob>, LinkError> {
    let all = pending.head.planned.as_ref().map(|planned| planned.blobs.clone());
    let all = all.unwrap_or_default();
    let pending = pending.clone();
    hub.blocking(move |hub| {
        if pending.held_sequence > 0 {
            // What the spoke holds now it also has the blobs of.
            let ledger = hub.records.ledger(&pending.destination, usize::MAX)?;
            let held = ledger.into_iter().find(|entry| entry.sequence == pending.held_sequence);
            let has = held.and_then(|entry| entry.planned).map(|planned| planned.blobs);
            hub.fleet.spoke_has(&pending.destination.cluster, has.into_iter().flatten());
        }
        let lacking = hub.fleet.begin_push(number, &pending, &all);
        let mut blobs = Vec::new();
        for digest in lacking {
            let blob = hub.fleet.blob(&hub.records, &digest)?;
            blobs.push(blob.ok_or(LinkError::BlobMissing(digest))?);
        }
        Ok(blobs)
    })
    .await
}

async fn push(
    hub: &Arc<Hub>,
    connection: &Connection,
    pending: &Pending,
    blobs: &[CompressedBlob],
) -> Result<(), LinkError> {
    let mut stream = connection.open_uni().await.map_err(LinkError::Connection)?;
    let mut sent = 0;
    for blob in blobs {
        for frame in frames(blob)? {
            sent += frame.len() as u64;
            stream.write_all_chunks(&mut [frame]).await.map_err(LinkError::Write)?;
        }
    }
    let plan = pending.head.planned.as_ref().map(|planned| planned.envelope.raw().to_vec());
    let directive = pending.head.directive.as_bytes().to_vec();
    debug_assert!(directive.len() <= ENVELOPE_BYTES_MAX, "a directive is small");
    let push = Push { directive, plan: plan.unwrap_or_default() };
    let frame = encode(&to_spoke(ToSpokeBody::Directive(push))).map_err(LinkError::Frame)?;
    sent += frame.len() as u64;
    stream.write_all(&frame).await.map_err(LinkError::Write)?;
    stream.finish().map_err(|_| LinkError::StreamClosed)?;
    hub.metrics.pushes.inc();
    hub.metrics.push_bytes.inc_by(sent);
    // Until the spoke has it all, so that the window of pushes means pushes under way.
    match stream.stopped().await {
        Ok(_) => Ok(()),
        Err(_) => Err(LinkError::StreamClosed),
    }
}

fn frames(blob: &CompressedBlob) -> Result<Vec<Bytes>, LinkError> {
    let pieces = blob.data.chunks(BLOB_PIECE_BYTES_MAX);
    let mut offset = 0;
    let mut frames = Vec::new();
    for piece in pieces {
        let message = Blob {
            sha256: blob.digest.raw().to_vec(),
            size: blob.size,
            offset,
            compressed_size: blob.data.len() as u64,
            data: piece.to_vec(),
        };
        offset += piece.len() as u64;
        frames
            .push(encode(&to_spoke(ToSpokeBody::Blob(message))).map_err(LinkError::Frame)?.into());
    }
    Ok(frames)
}

/// Why a connection ended or never began.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    #[error("cannot listen for spokes on {address} (UDP); is another hub running there?")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("the certificates cannot be used")]
    Tls(#[source] TlsError),
    #[error("the cryptography offers no QUIC cipher")]
    Crypto,
    #[error("the connection ended")]
    Connection(#[source] quinn::ConnectionError),
    #[error("the peer did not say what it must in time")]
    Silent,
    #[error("the peer's {0} is not acceptable")]
    HelloInvalid(&'static str),
    #[error("a report is not acceptable")]
    ReportInvalid,
    #[error("no common protocol version: the spoke speaks {0} to {1}")]
    ProtocolVersion(u32, u32),
    #[error("cluster {0} is not registered here")]
    ClusterUnknown(ClusterId),
    #[error("cluster {0} is revoked")]
    ClusterRevoked(ClusterId),
    #[error("cluster {0} is not accepted yet")]
    ClusterPending(ClusterId),
    #[error(
        "cluster {0} shows a certificate that a newer one has replaced; is its key in two hands?"
    )]
    CertificateNotCurrent(ClusterId),
    #[error("the spoke's certificate expired")]
    CertificateExpired,
    #[error("the hub is ending")]
    Stopping,
    #[error("blob {0} is missing in the hub's database")]
    BlobMissing(Digest),
    #[error("a frame is not acceptable")]
    Frame(#[source] FrameError),
    #[error("the peer's stream ended")]
    Read(#[source] quinn::ReadError),
    #[error("the stream to the peer ended")]
    Write(#[source] quinn::WriteError),
    #[error("the stream to the peer was closed")]
    StreamClosed,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl LinkError {
    /// A stable word for metrics, logs and the reason of a close.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Listen { .. } => "PortInUse",
            Self::Tls(error) => error.reason(),
            Self::Crypto => "TlsCrypto",
            Self::Connection(_) | Self::Read(_) | Self::Write(_) | Self::StreamClosed => {
                "ConnectionLost"
            }
            Self::Silent => "GreetingTimeout",
            Self::HelloInvalid(_) => "HelloInvalid",
            Self::ReportInvalid => "ReportInvalid",
            Self::ProtocolVersion(..) => "ProtocolVersion",
            Self::ClusterUnknown(_) => "ClusterUnknown",
            Self::ClusterRevoked(_) => "ClusterRevoked",
            Self::ClusterPending(_) => "ClusterPending",
            Self::CertificateNotCurrent(_) => "CertificateNotCurrent",
            Self::CertificateExpired => "CertificateExpired",
            Self::Stopping => "HubStopping",
            Self::BlobMissing(_) => "BlobMissing",
            Self::Frame(error) => error.reason(),
            Self::Store(error) => error.reason(),
        }
    }

    fn close(&self) -> (VarInt, &'static str) {
        let code = match self {
            Self::ClusterUnknown(_)
            | Self::ClusterRevoked(_)
            | Self::ClusterPending(_)
            | Self::CertificateNotCurrent(_)
            | Self::Tls(_) => CLOSE_NOT_ADMITTED,
            Self::HelloInvalid(_)
            | Self::ReportInvalid
            | Self::ProtocolVersion(..)
            | Self::Frame(_)
            | Self::Silent => CLOSE_PROTOCOL,
            Self::Listen { .. }
            | Self::Crypto
            | Self::Connection(_)
            | Self::CertificateExpired
            | Self::Stopping
            | Self::BlobMissing(_)
            | Self::Read(_)
            | Self::Write(_)
            | Self::StreamClosed
            | Self::Store(_) => CLOSE_COME_BACK,
        };
        (code, self.reason())
    }
}
