//! A hub that shakes hands and then takes nothing. For what an honest hub never does.

use std::sync::Arc;
use std::time::Duration;

use attest_certs::{Authority, Bundle, SigningRequest, tls};
use attest_common::ids::ClusterId;
use quinn::crypto::rustls::QuicServerConfig;
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

    /// A spoke that is a member of the fleet.
    async fn identity(&self, api: &ApiServer) -> Identity {
        let mut identity = Identity::load_or_create(api).await.unwrap();
        let bundle = Self::spoke(&self.authority, &identity.cluster);
        identity.store_tls(api, bundle).await.unwrap();
        identity
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

fn link(hub: &str, api: ApiServer, identity: Identity, trust: watch::Receiver<Trust>) -> Link {
    Link {
        hub: hub.to_owned(),
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
        refusals_pace: Pace::of_refusals(),
        sessions_pace: Pace::of_sessions(),
    }
}

#[tokio::test]
async fn a_spoke_tells_how_long_its_certificate_lasts_though_it_has_no_session() {
    let hub = StubbornHub::granting(0);
    let fake = FakeApi::start().await;
    let api = fake.open().await;
    let identity = hub.identity(&api).await;
    let (_told, trust) = watch::channel(hub.trust());
    let mut link = link(&hub.address, api, identity, trust);
    let metrics = link.metrics.clone();

    let ended = tokio::time::timeout(Duration::from_millis(100), run(&mut link)).await;

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
    let fake = FakeApi::start().await;
    let api = fake.open().await;
    let identity = hub.identity(&api).await;
    let (told, trust) = watch::channel(hub.trust());
    let mut link = link(&hub.address, api, identity, trust);
    let (mut attempt, mut window_ms) = (0, 0);
    let mut session = Box::pin(link.session(&mut attempt, &mut window_ms));
    let waiting = tokio::time::timeout(Duration::from_millis(300), &mut session).await;
    assert!(waiting.is_err(), "the hub does not answer");

    told.send_replace(Trust::of(&object(), "uid-1"));

    let ended = tokio::time::timeout(Duration::from_secs(2), session).await;
    let Err(error) = ended.unwrap();
    assert_eq!(error.reason(), "PolicyChanged");
}
