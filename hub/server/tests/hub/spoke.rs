//! A spoke that does what a test tells it: joins, connects, reads what it is sent, reports.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use attest_certs::bundle::Bundle;
use attest_certs::request::SigningRequest;
use attest_certs::tls::{
    HUB_SERVER_NAME, JOIN_EXPORTER_CONTEXT, JOIN_EXPORTER_LABEL, spoke_join, spoke_session,
};
use attest_common::basics::envelope::{self, DIRECTIVE_TYPE};
use attest_common::basics::ids::{ClusterId, Digest, Name, Timestamp};
use attest_common::basics::keys::{KeyId, PrivateKey};
use attest_common::basics::reason::ReportedReason;
use attest_common::basics::terms::{Mode, Role};
use attest_common::documents::plan::{Directive, Plan};
use attest_common::objects::health::Health;
use attest_common::record::{DestinationRecords, Record};
use attest_common::session::FEATURE_MANIFESTS_2;
use attest_common::session::frame;
use attest_common::session::join::{JoinToken, proof};
use attest_common::session::message::{
    Hello, JoinAnswer, JoinOutcome, JoinRequest, Need, NumberedReport, Push, Seen, ToHub,
    ToHubBody, ToSpoke, ToSpokeBody, join_proof_message,
};
use attest_common::session::report::{Phase, Refusal, Report, Running, Timings};
use attest_common::trust::policy::{Entry, HubSpec, KeySpec, Policy, RemoveSpec, Spec};
use attest_common::verify::{self, Ages, SpokeContext};
use prost::Message;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint, RecvStream, SendStream, TransportConfig};

use crate::fixture::{Fixture, PATIENCE};

pub(crate) const UID: &str = "11111111-2222-3333-4444-555555555555";

/// Keys of a spoke, before and after it has a certificate.
pub(crate) struct Keys {
    pub(crate) identity: PrivateKey,
    pub(crate) request: SigningRequest,
}

impl Keys {
    pub(crate) fn new(seed: u8) -> Self {
        Self {
            identity: PrivateKey::from_seed(&[seed; 32]).unwrap(),
            request: SigningRequest::generate().unwrap(),
        }
    }

    pub(crate) fn cluster(&self) -> ClusterId {
        ClusterId::of_identity_key(self.identity.public().bytes())
    }
}

fn endpoint(tls: rustls::ClientConfig) -> Endpoint {
    let mut endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let crypto = QuicClientConfig::try_from(tls).unwrap();
    let mut config = ClientConfig::new(Arc::new(crypto));
    let mut transport = TransportConfig::default();
    // A hub that was killed is noticed soon.
    transport
        // A push never fits: one that is not read is not yet sent.
        .stream_receive_window(2_048_u32.into())
        .keep_alive_interval(Some(Duration::from_millis(200)))
        .max_idle_timeout(Some(Duration::from_secs(2).try_into().unwrap()));
    config.transport_config(Arc::new(transport));
    endpoint.set_default_client_config(config);
    endpoint
}

async fn read<M: Message + Default>(stream: &mut RecvStream) -> Option<M> {
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix).await.ok()?;
    let mut body = vec![0; frame::body_length(prefix).unwrap()];
    stream.read_exact(&mut body).await.ok()?;
    Some(frame::decode(&body).unwrap())
}

/// How a join request is bent.
#[derive(Clone, Copy, Default)]
pub(crate) struct Bend {
    pub(crate) proof: bool,
    pub(crate) identity_proof: bool,
    pub(crate) csr: bool,
    /// A proof made over another connection's exporter.
    pub(crate) exporter: bool,
}

pub(crate) async fn join(fixture: &Fixture, token: &str, keys: &Keys, bend: Bend) -> JoinOutcome {
    let endpoint = endpoint(spoke_join(&[fixture.pin()]).unwrap());
    let address = fixture.addresses().spokes;
    let connection = endpoint.connect(address, HUB_SERVER_NAME).unwrap().await.unwrap();
    let mut exporter = [0; 32];
    connection
        .export_keying_material(&mut exporter, JOIN_EXPORTER_LABEL, JOIN_EXPORTER_CONTEXT)
        .unwrap();
    if bend.exporter {
        exporter = [7; 32];
    }
    let token: JoinToken = token.parse().unwrap();
    let mut csr_der = keys.request.csr_der.clone();
    if bend.csr {
        *csr_der.last_mut().unwrap() ^= 1;
    }
    let identity_key = keys.identity.public().bytes().to_vec();
    let message = join_proof_message(&exporter, Digest::of(&csr_der).raw(), &identity_key);
    let mut made = proof(&token.key(), &message).to_vec();
    let mut identity_proof = keys.identity.sign(&message).to_vec();
    made[0] ^= u8::from(bend.proof);
    identity_proof[0] ^= u8::from(bend.identity_proof);
    let request = JoinRequest {
        token_id: token.id().to_owned(),
        csr_der,
        identity_key,
        kube_system_uid: UID.to_owned(),
        agent_version: "0.1.0".to_owned(),
        proof: made,
        identity_proof,
    };
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    send.write_all(&frame::encode(&request).unwrap()).await.unwrap();
    let answer: JoinAnswer =
        tokio::time::timeout(PATIENCE, read(&mut receive)).await.unwrap().unwrap();
    connection.close(0_u32.into(), b"");
    answer.outcome.unwrap()
}

/// Why the hub closes a connection that asks to join with a frame of `length` bytes.
pub(crate) async fn join_with_frame(fixture: &Fixture, length: usize) -> String {
    let endpoint = endpoint(spoke_join(&[fixture.pin()]).unwrap());
    let address = fixture.addresses().spokes;
    let connection = endpoint.connect(address, HUB_SERVER_NAME).unwrap().await.unwrap();
    let (mut send, _receive) = connection.open_bi().await.unwrap();
    send.write_all(&(length as u32).to_be_bytes()).await.unwrap();
    tokio::time::timeout(PATIENCE, connection.closed()).await.unwrap().to_string()
}

/// Sends the hub the first datagram of `count` connections that never go on. Keep what it returns.
pub(crate) async fn forge_initials(fixture: &Fixture, count: usize) -> Endpoint {
    let endpoint = endpoint(spoke_join(&[fixture.pin()]).unwrap());
    let between = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = between.local_addr().unwrap();
    let mut connecting = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    let mut datagram = [0; 2_048];
    for _ in 0..count {
        connecting.push(endpoint.connect(address, HUB_SERVER_NAME).unwrap());
        // The id it chose for the hub follows one byte of flags, the version and its length.
        while seen.len() < connecting.len() {
            let length = between.recv(&mut datagram).await.unwrap();
            if datagram[0] & 0x80 != 0 {
                between.send_to(&datagram[..length], fixture.addresses().spokes).await.unwrap();
                seen.insert(datagram[6..14].to_vec());
            }
        }
    }
    // Dropped, they would say goodbye.
    std::mem::forget(connecting);
    endpoint
}

pub(crate) fn refused(outcome: &JoinOutcome) -> &str {
    match outcome {
        JoinOutcome::Refused(refused) => &refused.reason,
        JoinOutcome::Joined(_) => "Joined",
        JoinOutcome::PendingRetryMs(_) => "Pending",
    }
}

pub(crate) fn bundle(outcome: JoinOutcome, keys: &Keys) -> Bundle {
    let JoinOutcome::Joined(joined) = outcome else { panic!("{}", refused(&outcome)) };
    let chain = joined.chain_der.into_iter().map(Into::into).collect::<Vec<_>>();
    let pem = attest_certs::bundle::chain_to_pem(&chain);
    Bundle::from_pem(&pem, &keys.request.key_pem).unwrap()
}

/// A cluster's policy that allows everything in environment staging.
pub(crate) fn policy(fixture: &Fixture, name: &str) -> Spec {
    Spec {
        cluster_name: Some(Name::new(name).unwrap()),
        kube_system_uid: Some(UID.to_owned()),
        environment: Name::new("staging").unwrap(),
        hub: HubSpec {
            keys: vec![fixture.created.hub_key_pem.clone()],
            ca_pins: vec![fixture.created.ca_pin.clone()],
        },
        keys: vec![KeySpec {
            name: "company-ci".to_owned(),
            public_key: fixture.ci.public().to_pem(),
            roles: Role::ALL.to_vec(),
            environments: vec![Name::new("staging").unwrap()],
            builder_ids: None,
        }],
        applications: vec![Entry {
            entry: None,
            names: vec!["*".to_owned()],
            repos: vec!["*".to_owned()],
            namespaces: vec!["*".to_owned()],
            kinds: Default::default(),
            minimum_mode: Mode::Strict,
            required_attestations: ["build", "test", "security-scan"].map(str::to_owned).into(),
            keys: None,
            rollback: Default::default(),
            // As `cluster add` makes it.
            remove: RemoveSpec { allow: name != "production", ..RemoveSpec::default() },
            adopt: false,
            max_namespaces: None,
            max_scan_age_hours: None,
        }],
    }
}

/// A directive as it arrived, opened with the hub's key.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) directive: Directive,
    pub(crate) digest: Digest,
    pub(crate) plan: Option<Plan>,
    pub(crate) blobs: BTreeMap<Digest, Vec<u8>>,
}

impl Received {
    /// Epoch and sequence.
    pub(crate) fn order(&self) -> (u64, u64) {
        (self.directive.epoch, self.directive.sequence)
    }
}

/// Application, namespace, epoch and sequence, digest of the directive: what a spoke says it holds.
pub(crate) type Holds<'a> = (&'a str, &'a str, (u64, u64), Digest);

fn record(
    (application, namespace): &(Name, Name),
    hub_key: KeyId,
    (epoch, sequence): (u64, u64),
    directive: Digest,
) -> Record {
    Record {
        v: 1,
        application: application.clone(),
        namespace: namespace.clone(),
        hub_key,
        epoch,
        sequence,
        directive,
        other_hub_keys: Vec::new(),
        binding: None,
        floor: None,
        held: None,
        last_good: None,
        good: Vec::new(),
        inventory: Vec::new(),
        removed: false,
        recorded_at: None,
        rollback_point: None,
        rollout: None,
        since: None,
    }
}

pub(crate) struct Spoke {
    pub(crate) connection: Connection,
    pub(crate) cluster: ClusterId,
    pub(crate) policy: Policy,
    pub(crate) nonce: Vec<u8>,
    /// What it holds: a directive that a real spoke would refuse as old fails the test.
    records: Mutex<DestinationRecords>,
    send: SendStream,
    receive: RecvStream,
    number: u64,
}

impl Spoke {
    /// Joins with a fresh token that accepts by itself, and connects.
    pub(crate) async fn new(fixture: &Fixture, name: &str, seed: u8) -> (Self, Bundle) {
        let keys = Keys::new(seed);
        let token = fixture.token(name, true).await;
        let bundle = bundle(join(fixture, &token, &keys, Bend::default()).await, &keys);
        let spoke = Self::connect(fixture, name, &keys.cluster(), &bundle, &[]).await;
        (spoke.unwrap(), bundle)
    }

    /// Connects with a certificate; the reason of the close when it is not admitted.
    pub(crate) async fn connect(
        fixture: &Fixture,
        name: &str,
        cluster: &ClusterId,
        bundle: &Bundle,
        held: &[Holds<'_>],
    ) -> Result<Self, String> {
        Self::connect_saying(fixture, name, cluster, bundle, held, |_| ()).await
    }

    /// The same, with a greeting that is bent.
    pub(crate) async fn connect_saying(
        fixture: &Fixture,
        name: &str,
        cluster: &ClusterId,
        bundle: &Bundle,
        held: &[Holds<'_>],
        bend: impl FnOnce(&mut Hello),
    ) -> Result<Self, String> {
        let endpoint = endpoint(spoke_session(&[fixture.pin()], bundle).unwrap());
        let address = fixture.addresses().spokes;
        let connecting = endpoint.connect(address, HUB_SERVER_NAME).unwrap();
        let connection = connecting.await.map_err(|error| error.to_string())?;
        let (mut send, mut receive) =
            connection.open_bi().await.map_err(|error| error.to_string())?;
        let spec = policy(fixture, name);
        let nonce = vec![9; 16];
        let mut hello = Hello {
            protocol_min: 1,
            protocol_max: 1,
            cluster_id: cluster.to_string(),
            agent_version: "0.1.0".to_owned(),
            nonce: nonce.clone(),
            policy: serde_json::to_vec(&spec).unwrap(),
            destinations: held
                .iter()
                .map(|(application, namespace, (epoch, sequence), directive)| Seen {
                    application: (*application).to_owned(),
                    namespace: (*namespace).to_owned(),
                    epoch: *epoch,
                    sequence: *sequence,
                    directive: directive.raw().to_vec(),
                    generation: 0,
                    attempt: 0,
                })
                .collect(),
            kubernetes_version: "v1.37.2".to_owned(),
            features: vec![FEATURE_MANIFESTS_2.to_owned()],
            process_id: Vec::new(),
        };
        bend(&mut hello);
        let hello = ToHub { body: Some(ToHubBody::Hello(hello)) };
        // A hub that does not admit closes at once: the reason is in the close, not in the write.
        let _ = send.write_all(&frame::encode(&hello).unwrap()).await;
        let welcome: Option<ToSpoke> =
            tokio::time::timeout(PATIENCE, read(&mut receive)).await.unwrap();
        let Some(ToSpokeBody::Welcome(_)) = welcome.and_then(|frame| frame.body) else {
            return Err(tokio::time::timeout(PATIENCE, connection.closed())
                .await
                .unwrap()
                .to_string());
        };
        let policy = spec.load().unwrap();
        let cluster = cluster.clone();
        let hub_key = *policy.hub_keys.keys().next().unwrap();
        let records = held.iter().map(|(application, namespace, order, directive)| {
            let place = (Name::new(*application).unwrap(), Name::new(*namespace).unwrap());
            let record = record(&place, hub_key, *order, *directive);
            (place, record)
        });
        let records = Mutex::new(records.collect());
        Ok(Self { connection, cluster, policy, nonce, records, send, receive, number: 0 })
    }

    /// The next word on the control stream.
    pub(crate) async fn hear(&mut self) -> ToSpokeBody {
        let frame: Option<ToSpoke> =
            tokio::time::timeout(PATIENCE, read(&mut self.receive)).await.unwrap();
        frame.unwrap().body.unwrap()
    }

    pub(crate) async fn say(&mut self, body: ToHubBody) {
        let frame = frame::encode(&ToHub { body: Some(body) }).unwrap();
        self.send.write_all(&frame).await.unwrap();
    }

    /// Sends a frame with this body.
    pub(crate) async fn say_raw(&mut self, body: &[u8]) {
        self.send.write_all(&(body.len() as u32).to_be_bytes()).await.unwrap();
        self.send.write_all(body).await.unwrap();
    }

    /// Sends what the hub answers, for as long as it is taken, and reads no answer.
    pub(crate) fn talk_on_and_never_read(self) -> Connection {
        let connection = self.connection.clone();
        tokio::spawn(async move {
            let Self { receive: _unread, mut send, .. } = self;
            let unreadable = NumberedReport { number: 1, report: b"?".to_vec() };
            let frame = ToHub { body: Some(ToHubBody::Report(unreadable)) };
            let frame = frame::encode(&frame).unwrap();
            while send.write_all(&frame).await.is_ok() {}
        });
        connection
    }

    /// The next push, whole, with its signatures checked.
    pub(crate) async fn receive(&self) -> Received {
        tokio::time::timeout(PATIENCE, self.push()).await.expect("nothing was pushed")
    }

    /// What is pushed within `time`.
    pub(crate) async fn receive_within(&self, time: Duration) -> Option<Received> {
        tokio::time::timeout(time, self.push()).await.ok()
    }

    /// Refuses to read the next push.
    pub(crate) async fn stop_next(&self) {
        let stream = tokio::time::timeout(PATIENCE, self.connection.accept_uni()).await;
        stream.unwrap().unwrap().stop(7_u32.into()).unwrap();
    }

    async fn push(&self) -> Received {
        let mut stream = self.connection.accept_uni().await.unwrap();
        let mut pieces: BTreeMap<Vec<u8>, (u64, Vec<u8>)> = BTreeMap::new();
        loop {
            let frame: ToSpoke = read(&mut stream).await.unwrap();
            match frame.body.unwrap() {
                ToSpokeBody::Blob(blob) => {
                    let entry = pieces.entry(blob.sha256).or_insert((blob.size, Vec::new()));
                    assert_eq!(entry.1.len() as u64, blob.offset);
                    entry.1.extend(blob.data);
                }
                ToSpokeBody::Directive(push) => return self.opened(&push, pieces),
                other => panic!("{other:?} on a push stream"),
            }
        }
    }

    fn opened(&self, push: &Push, pieces: BTreeMap<Vec<u8>, (u64, Vec<u8>)>) -> Received {
        let mut blobs = BTreeMap::new();
        for (sha256, (size, compressed)) in pieces {
            let bytes = zstd::bulk::decompress(&compressed, size as usize).unwrap();
            let digest = Digest::from_raw(sha256.try_into().unwrap());
            assert_eq!(Digest::of(&bytes), digest);
            blobs.insert(digest, bytes);
        }
        let plan = <[u8; 32]>::try_from(push.plan.as_slice()).ok().map(Digest::from_raw);
        let plan = plan.and_then(|digest| blobs.get(&digest));
        if let Some(received) = self.opened_rollout(push, plan, &blobs) {
            return received;
        }
        let mut records = self.records.lock().unwrap();
        let judge = SpokeContext {
            policy: &self.policy,
            cluster: &self.cluster,
            records: &records,
            now: Timestamp::now(),
            ages: Ages::Enforce,
        };
        let ordered = verify::directive(&push.directive, &judge).unwrap();
        let Directive { application, namespace, epoch, sequence, .. } = ordered.directive.clone();
        let place = (application, namespace);
        let held = record(&place, ordered.hub_key, (epoch, sequence), ordered.digest);
        records.insert(place, held);
        let plan = plan.map(|envelope| {
            let named = ordered.directive.plan.unwrap();
            verify::plan(envelope, named, &self.policy).unwrap().into_inner()
        });
        Received { directive: ordered.directive.clone(), digest: ordered.digest, plan, blobs }
    }

    /// Opens a directive of a rollout, whose rules depend on a record that this spoke does not keep.
    fn opened_rollout(
        &self,
        push: &Push,
        plan: Option<&Vec<u8>>,
        blobs: &BTreeMap<Digest, Vec<u8>>,
    ) -> Option<Received> {
        let keys = &self.policy.hub_keys;
        let opened = envelope::open(&push.directive, DIRECTIVE_TYPE, keys).unwrap();
        let directive: Directive = serde_json::from_slice(opened.payload()).unwrap();
        let named = directive.plan.filter(|_| directive.needs_rollout())?;
        let plan =
            plan.map(|envelope| verify::plan(envelope, named, &self.policy).unwrap().into_inner());
        let digest = Digest::of(opened.payload());
        Some(Received { directive, digest, plan, blobs: blobs.clone() })
    }

    /// Sends a report about a directive and waits until it is durable.
    pub(crate) async fn report(&mut self, received: &Received, phase: Phase, reason: &str) {
        self.tell(&report_of(received, phase, reason)).await;
    }

    /// Sends a report and waits until it is durable.
    pub(crate) async fn tell(&mut self, report: &Report) {
        self.report_text(serde_json::to_string(report).unwrap()).await;
    }

    /// The same, in words of a newer spoke.
    pub(crate) async fn report_unknown_phase(&mut self, received: &Received) {
        let report = report_of(received, Phase::Synced, "Paused");
        let text = serde_json::to_string(&report).unwrap();
        self.report_text(text.replace("\"phase\":\"Synced\"", "\"phase\":\"Paused\"")).await;
    }

    async fn report_text(&mut self, report: String) {
        self.number += 1;
        let (number, report) = (self.number, report.into_bytes());
        self.say(ToHubBody::Report(NumberedReport { number, report })).await;
        loop {
            match self.hear().await {
                ToSpokeBody::Acknowledge(acknowledged) if acknowledged == number => return,
                ToSpokeBody::Sync(_) | ToSpokeBody::Acknowledge(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Asks for the newest directive of a destination once more, with a blob nobody has.
    pub(crate) async fn push_me_again(&mut self, application: &str, namespace: &str) {
        let need = Need {
            application: application.to_owned(),
            namespace: namespace.to_owned(),
            sha256: vec![vec![0; 32]],
        };
        self.say(ToHubBody::Need(need)).await;
    }

    pub(crate) async fn need(&mut self, received: &Received, blobs: Vec<Digest>) {
        let need = Need {
            application: received.directive.application.to_string(),
            namespace: received.directive.namespace.to_string(),
            sha256: blobs.iter().map(|digest| digest.raw().to_vec()).collect(),
        };
        self.say(ToHubBody::Need(need)).await;
    }
}

pub(crate) fn report_of(received: &Received, phase: Phase, reason: &str) -> Report {
    let directive = &received.directive;
    let refused = phase == Phase::Refused;
    // Blobs that it has already are not sent again: the plan may be unknown to this test.
    let nowhere = Digest::of(b"");
    let plan = received.plan.as_ref();
    let running = directive.plan.filter(|_| !refused).map(|running| Running {
        plan: running,
        release: plan.map_or(nowhere, |plan| plan.release.id),
        content: plan.map_or(nowhere, |plan| plan.content.sha256),
        version: "v1".to_owned(),
        counter: 1,
        signed_commit: "0123".to_owned(),
        signers: vec!["company-ci".to_owned()],
        since: Timestamp::now(),
    });
    Report {
        v: 1,
        application: directive.application.clone(),
        namespace: directive.namespace.clone(),
        epoch: Some(directive.epoch),
        sequence: Some(directive.sequence),
        phase,
        reason: ReportedReason::parse(reason),
        message: String::new(),
        running,
        refusal: refused.then(|| Refusal {
            reason: ReportedReason::parse(reason),
            message: "no".to_owned(),
            sequence: Some(directive.sequence),
            at: Timestamp::now(),
        }),
        rollout: None,
        health: Health::Current,
        objects: Vec::new(),
        objects_total: 1,
        drifted: Vec::new(),
        heals_total: 0,
        timings: Timings::default(),
        checks: Vec::new(),
        warnings: Vec::new(),
        observed_at: Timestamp::now(),
    }
}
