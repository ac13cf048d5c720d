//! A hub that shakes hands and then takes nothing. For what an honest hub never does.

use std::sync::Arc;
use std::time::Duration;

use attest_certs::{Authority, Bundle, SigningRequest, tls};
use attest_common::basics::ids::ClusterId;
use attest_common::session::join::{JoinToken, TOKEN_RANDOM_BYTES};
use attest_common::session::message::{JoinAnswer, JoinOutcome, JoinRefused, JoinRequest, Joined};
use quinn::crypto::rustls::{HandshakeData, QuicServerConfig};
use quinn::{Endpoint, ServerConfig, TransportConfig, VarInt};
use serde_json::json;
use tokio::sync::{mpsc, watch};

use super::*;
use crate::cluster::fake::FakeApi;
use crate::identity::Identity;
use crate::policy::tests::object;

pub(crate) struct StubbornHub {
    pub(crate) address: String,
    /// Its end of every connection.
    pub(crate) accepted: mpsc::UnboundedReceiver<Connection>,
    authority: Authority,
    spoke: Bundle,
    _endpoint: Endpoint,
}

impl StubbornHub {
    /// A hub that grants so many control streams, and next to no bytes on them.
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
        let issued = authority.issue_spoke(&request.csr_der, cluster.as_str(), DAY).unwrap();
        let chain = [issued.chain[0].clone(), authority.certificate().clone()];
        Bundle::from_pem(&attest_certs::bundle::chain_to_pem(&chain), &request.key_pem).unwrap()
    }

    pub(crate) fn spoke_tls(&self) -> rustls::ClientConfig {
        tls::spoke_session(&[self.authority.pin()], &self.spoke).unwrap()
    }

    /// A policy that pins this hub.
    fn trust(&self) -> Trust {
        let mut object = object();
        object["spec"]["hub"]["caPins"] = json!([self.authority.pin().to_string()]);
        Trust::of(&object, "uid-1")
    }
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A spoke with a certificate that the hub has issued.
async fn member(hub: &StubbornHub) -> (Link, watch::Sender<Trust>, FakeApi) {
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
        refusals_pace: Pace::of_refusals(),
        sessions_pace: Pace::of_sessions(),
    };
    (link, told, fake)
}

#[tokio::test]
async fn a_spoke_tells_how_long_its_certificate_lasts_though_it_has_no_session() {
    let hub = StubbornHub::granting(0);
    let (mut link, _told, _fake) = member(&hub).await;
    let metrics = link.metrics.clone();

    let mut door = Door::new(None, "uid-1".to_owned());
    let ended = tokio::time::timeout(Duration::from_millis(100), run(&mut link, &mut door)).await;

    assert!(ended.is_err() && metrics.connected.get() == 0, "the hub does not answer");
    let text = metrics.text();
    let left =
        text.lines().find(|line| line.starts_with("attest_spoke_certificate_expiry_seconds "));
    let left_s: u64 = left.unwrap().rsplit_once(' ').unwrap().1.parse().unwrap();
    assert!(left_s > DAY.as_secs() / 2 && left_s <= DAY.as_secs(), "{left_s}");
}

#[tokio::test]
async fn a_hub_that_grants_no_stream_does_not_keep_the_spoke_from_the_next_one() {
    let hub = StubbornHub::granting(0);
    let (mut link, told, _fake) = member(&hub).await;
    let (mut attempt, mut window_ms) = (0, 0);
    let mut session = Box::pin(link.session(&mut attempt, &mut window_ms));
    let waiting = tokio::time::timeout(Duration::from_millis(300), &mut session).await;
    assert!(waiting.is_err(), "the hub does not answer");

    told.send_replace(Trust::of(&object(), "uid-1"));

    let ended = tokio::time::timeout(Duration::from_secs(2), session).await;
    let Err(error) = ended.unwrap();
    assert_eq!(error.reason(), "PolicyChanged");
}

impl StubbornHub {
    /// Lets nobody in, until somebody joins: answers that with `outcome`.
    async fn joined(&mut self, outcome: impl Fn(&Authority, JoinRequest) -> JoinOutcome) {
        loop {
            let connection = self.accepted.recv().await.unwrap();
            if !is_join(&connection) {
                connection.close(VarInt::from_u32(CLOSE_NOT_ADMITTED), b"ClusterPending");
                continue;
            }
            let (mut send, receive) = connection.accept_bi().await.unwrap();
            let request = FrameReader::new(receive).next().await.unwrap().unwrap();
            let outcome = Some(outcome(&self.authority, request));
            quic::write(&mut send, &JoinAnswer { outcome }).await.unwrap();
            connection.closed().await;
            return;
        }
    }
}

fn is_join(connection: &Connection) -> bool {
    let data = connection.handshake_data().unwrap().downcast::<HandshakeData>().unwrap();
    data.protocol.as_deref() == Some(tls::ALPN_JOIN)
}

fn leaf(connection: &Connection) -> Vec<u8> {
    let chain = connection.peer_identity().unwrap();
    let chain = chain.downcast::<Vec<rustls_pki_types::CertificateDer<'static>>>().unwrap();
    chain[0].to_vec()
}

#[tokio::test]
async fn a_spoke_whose_good_certificate_the_hub_takes_no_more_comes_back_by_another_token() {
    let mut hub = StubbornHub::granting(1);
    let (mut link, _told, _fake) = member(&hub).await;
    let cluster = link.identity.cluster.clone();
    let before = link.identity.tls.as_ref().unwrap().bundle.chain()[0].to_vec();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    let token = |n: u8| JoinToken::from_random(&[n; TOKEN_RANDOM_BYTES]);
    std::fs::write(&file, token(1).text().as_bytes()).unwrap();
    let running = tokio::spawn({
        let mut door = Door::new(Some(file.clone()), "uid-1".to_owned());
        async move { run(&mut link, &mut door).await }
    });
    let refuse = |_: &Authority, _| {
        let (reason, message) = ("TokenRevoked".to_owned(), String::new());
        JoinOutcome::Refused(JoinRefused { reason, message })
    };

    hub.joined(refuse).await;

    // What is spent is not asked with again, and the certificate is kept and tried.
    for _ in 0..2 {
        let connection = hub.accepted.recv().await.unwrap();
        assert!(!is_join(&connection));
        assert_eq!(leaf(&connection), before);
        connection.close(VarInt::from_u32(CLOSE_NOT_ADMITTED), b"ClusterPending");
    }

    std::fs::write(&file, token(2).text().as_bytes()).unwrap();
    let hub_key = Trust::of(&object(), "uid-1").loaded().unwrap().policy.hub_keys.clone();
    let hub_key_id = hub_key.keys().next().unwrap().to_string();
    let admit = |authority: &Authority, asked: JoinRequest| {
        assert_eq!(asked.token_id, token(2).id());
        let issued = authority.issue_spoke(&asked.csr_der, cluster.as_str(), DAY).unwrap();
        JoinOutcome::Joined(Joined {
            cluster_id: cluster.to_string(),
            chain_der: [&issued.chain[0], authority.certificate()].map(|c| c.to_vec()).to_vec(),
            cluster_name: "staging".to_owned(),
            hub_key_id: hub_key_id.clone(),
        })
    };
    hub.joined(admit).await;

    let connection = hub.accepted.recv().await.unwrap();
    assert!(!is_join(&connection));
    assert_ne!(leaf(&connection), before, "by the new certificate");
    running.abort();
}
