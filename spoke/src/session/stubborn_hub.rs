//! A hub for tests that completes the handshake and then reads nothing, as no honest hub does.

use std::sync::Arc;
use std::time::Duration;

use attest_certs::{Authority, Bundle, SigningRequest, tls};
use attest_common::basics::ids::ClusterId;
use attest_common::basics::rate::RateLimiter;
use attest_common::session::CLOSE_NOT_ADMITTED;
use attest_common::session::frame::FRAME_BYTES_MAX;
use attest_common::session::message::{JoinAnswer, JoinOutcome, JoinRequest};
use attest_runtime::frames::{self, FrameReader};
use quinn::crypto::rustls::{HandshakeData, QuicServerConfig};
use quinn::{Connection, Endpoint, ServerConfig, TransportConfig, VarInt};
use serde_json::json;
use tokio::sync::{mpsc, watch};

use super::freshness::Freshness;
use super::link::{Link, PUSHES_MAX, SeenSource};
use super::outbox::Outbox;
use super::push::Room;
use crate::cluster::fake::FakeApi;
use crate::metrics::Metrics;
use crate::rate_limits::{REFUSALS, SESSIONS};
use crate::trust::identity::Identity;
use crate::trust::policy::Trust;
use crate::trust::policy::tests::object;

pub(crate) struct StubbornHub {
    pub(crate) address: String,
    /// Its end of every connection.
    pub(crate) accepted: mpsc::UnboundedReceiver<Connection>,
    authority: Authority,
    spoke: Bundle,
    _endpoint: Endpoint,
}

impl StubbornHub {
    /// Starts a hub that grants this many control streams, with a minimal window.
    pub(crate) fn granting(streams: u32) -> Self {
        attest_certs::install_provider();
        let authority = Authority::create("fleet.test").unwrap();
        let hub = authority.issue_hub("main", &[], DAY).unwrap().bundle().unwrap();
        let tls = tls::hub_quic(&hub, std::slice::from_ref(authority.certificate())).unwrap();
        let crypto = QuicServerConfig::try_from(tls).unwrap();
        let mut config = ServerConfig::with_crypto(Arc::new(crypto));
        let mut transport = TransportConfig::default();
        transport
            .max_concurrent_bidi_streams(VarInt::from_u32(streams))
            .stream_receive_window(VarInt::from_u32(16));
        config.transport_config(Arc::new(transport));
        let endpoint = Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
        let address = endpoint.local_addr().unwrap().to_string();
        let accepting = endpoint.clone();
        let (accept, accepted) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(incoming) = accepting.accept().await {
                if let Ok(connection) = incoming.await {
                    let _ = accept.send(connection);
                }
            }
        });
        let spoke = Self::spoke(&authority, &"c-0123456789abcdef".parse().unwrap());
        Self { address, accepted, authority, spoke, _endpoint: endpoint }
    }

    fn spoke(authority: &Authority, cluster: &ClusterId) -> Bundle {
        let request = SigningRequest::generate().unwrap();
        let issued = authority.issue_spoke(&request.csr_der, cluster.as_str(), 1, DAY).unwrap();
        let chain = [issued.chain[0].clone(), authority.certificate().clone()];
        Bundle::from_pem(&attest_certs::bundle::chain_to_pem(&chain), &request.key_pem).unwrap()
    }

    pub(crate) fn spoke_tls(&self) -> rustls::ClientConfig {
        tls::spoke_session(&[self.authority.pin()], &self.spoke).unwrap()
    }

    /// Returns a policy that pins this hub.
    fn trust(&self) -> Trust {
        let mut object = object();
        object["spec"]["hub"]["caPins"] = json!([self.authority.pin().to_string()]);
        Trust::of(&object, "uid-1")
    }
}

pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Returns a spoke with a certificate that the hub has issued.
pub(crate) async fn member(hub: &StubbornHub) -> (Link, watch::Sender<Trust>, FakeApi) {
    let fake = FakeApi::start().await;
    let api = fake.open().await;
    let mut identity = Identity::load_or_create(&api).await.unwrap();
    let bundle = StubbornHub::spoke(&hub.authority, &identity.cluster);
    identity.store_tls(&api, bundle).await.unwrap();
    let (told, trust) = watch::channel(hub.trust());
    let link = Link {
        hub: hub.address.clone(),
        api,
        identity,
        process_id: Vec::new(),
        trust,
        outbox: Outbox::default(),
        pushes: mpsc::channel(PUSHES_MAX).0,
        seen: SeenSource::default(),
        metrics: Metrics::new().unwrap(),
        freshness: Freshness::default(),
        kubernetes_version: String::new(),
        room: Room::default(),
        renewal_asked_at: None,
        may_hold_token: true,
        refusal_limiter: RateLimiter::new(REFUSALS),
        session_limiter: RateLimiter::new(SESSIONS),
    };
    (link, told, fake)
}

impl StubbornHub {
    /// Rejects sessions until a spoke joins, and answers that with `outcome`.
    pub(crate) async fn joined(
        &mut self,
        outcome: impl Fn(&Authority, JoinRequest) -> JoinOutcome,
    ) {
        loop {
            let connection = self.accepted.recv().await.unwrap();
            if !is_join(&connection) {
                connection.close(VarInt::from_u32(CLOSE_NOT_ADMITTED), b"ClusterPending");
                continue;
            }
            let (mut send, receive) = connection.accept_bi().await.unwrap();
            let request = FrameReader::new(receive, FRAME_BYTES_MAX).next().await.unwrap().unwrap();
            let outcome = Some(outcome(&self.authority, request));
            frames::write(&mut send, &JoinAnswer { outcome }).await.unwrap();
            connection.closed().await;
            return;
        }
    }
}

pub(crate) fn is_join(connection: &Connection) -> bool {
    let data = connection.handshake_data().unwrap().downcast::<HandshakeData>().unwrap();
    data.protocol.as_deref() == Some(tls::ALPN_JOIN)
}

pub(crate) fn leaf(connection: &Connection) -> Vec<u8> {
    let chain = connection.peer_identity().unwrap();
    let chain = chain.downcast::<Vec<rustls_pki_types::CertificateDer<'static>>>().unwrap();
    chain[0].to_vec()
}
