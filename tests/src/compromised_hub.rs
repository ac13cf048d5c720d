//! A compromised hub: the real hub's directory, certificate and signing key, used by an attacker.
//!
//! It speaks the real protocol over real QUIC to real spokes and sends whatever a test gives it. It has
//! no CI key and no credential of any cluster.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use attest_certs::Bundle;
use attest_certs::authority::{Authority, SPOKE_LIFETIME};
use attest_certs::tls::{Admission, admit};
use attest_common::basics::envelope::{self, DIRECTIVE_TYPE, PLAN_TYPE, STATEMENT_TYPE};
use attest_common::basics::ids::{ClusterId, Digest, Name, Timestamp};
use attest_common::basics::keys::PrivateKey;
use attest_common::basics::locked::Locked;
use attest_common::basics::terms::Mode;
use attest_common::documents::manifest;
use attest_common::documents::plan::{
    CAP_FULL_PERCENT, ContentBlob, Directive, FinalizedBy, Operation, Plan, RequestedPolicy,
    SignedBlob, Strategy, SyncPolicy, to_bytes,
};
use attest_common::documents::release::{RENDERING_TYPE, Release};
use attest_common::documents::statement::{Statement, Subject};
use attest_common::objects::difference::differences;
use attest_common::session::frame::{self, BLOB_PIECE_BYTES_MAX};
use attest_common::session::message::{
    Blob, Hello, Push, Renewed, ToHub, ToHubBody, ToSpoke, ToSpokeBody, Welcome,
};
use attest_common::session::report::Report;
use attest_common::session::{IDLE_TIMEOUT_MS, KEEP_ALIVE_MS, PROTOCOL_VERSION};
use attest_common::trust::policy::Spec;
use attest_hub::spokes::reset::endpoint_config;
use quinn::crypto::rustls::{HandshakeData, QuicServerConfig};
use quinn::{Connection, Endpoint, RecvStream, SendStream, ServerConfig, TransportConfig};
use rustls_pki_types::CertificateDer;

use crate::real::RealFleet;
use crate::simulator::read;
use crate::wait::until;

const CONNECTED_WITHIN: Duration = Duration::from_secs(60);
/// Three times the longest retry interval of a spoke.
const REPORTED_WITHIN: Duration = Duration::from_secs(90);
const COMPRESSION_LEVEL: i32 = 1;
const DIRECTIVE_LIFETIME_S: i64 = 3_600;

/// A compromised hub.
#[derive(Debug)]
pub struct CompromisedHub {
    endpoint: Endpoint,
    key: PrivateKey,
    authority: Arc<Authority>,
    peers: Peers,
}

type Peers = Arc<Locked<BTreeMap<Name, Peer>>>;

/// A connected spoke.
#[derive(Clone, Debug)]
pub struct Peer {
    pub cluster: ClusterId,
    /// Serial number of the certificate that it presented.
    pub serial: String,
    pub hello: Hello,
    connection: Connection,
    reports: Vec<Report>,
}

/// A plan, its directive and its blobs: change any part, then call [`CompromisedHub::push`].
#[derive(Clone, Debug)]
pub struct Delivery {
    pub plan: Plan,
    pub directive: Directive,
    /// Envelopes and content, identified by their digests.
    pub blobs: Vec<Vec<u8>>,
}

impl Peer {
    /// The reports of this session at the time of the lookup.
    pub fn reports(&self) -> &[Report] {
        &self.reports
    }
}

impl CompromisedHub {
    /// Takes over the directory and the address of a hub that is down.
    ///
    /// # Errors
    /// When a file is missing or the address is in use.
    pub async fn take_over(home: &Path, address: SocketAddr) -> anyhow::Result<Self> {
        attest_certs::install_provider();
        let own = Bundle::load(home, "hub")?;
        let trusted = own.authority().context("the hub's chain lacks its authority")?.clone();
        let [certificate, ca_key, signing_key] = ["ca.crt", "ca.key", "signing.key"]
            .map(|name| std::fs::read_to_string(home.join(name)));
        let authority = Arc::new(Authority::from_pem(&certificate?, &ca_key?)?);
        let key = PrivateKey::from_pem(&signing_key?)?;
        let tls = attest_certs::tls::hub_quic(&own, &[trusted])?;
        let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
        let mut transport = TransportConfig::default();
        transport
            .keep_alive_interval(Some(Duration::from_millis(KEEP_ALIVE_MS)))
            .max_idle_timeout(Some(Duration::from_millis(IDLE_TIMEOUT_MS).try_into()?));
        config.transport_config(Arc::new(transport));
        // The socket of the real hub may outlive its process for a moment.
        let endpoint = until("the hub's port", CONNECTED_WITHIN, || async {
            let Ok(socket) = std::net::UdpSocket::bind(address) else { return Ok(None) };
            let endpoint = endpoint_config(&own);
            let runtime = Arc::new(quinn::TokioRuntime);
            Ok(Some(Endpoint::new(endpoint, Some(config.clone()), socket, runtime)?))
        })
        .await?;
        let peers = Peers::default();
        tokio::spawn(accept(endpoint.clone(), Arc::clone(&authority), Arc::clone(&peers)));
        Ok(Self { endpoint, key, authority, peers })
    }

    /// The stolen signing key.
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// The stolen certificate authority.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Waits until the spoke of this cluster is connected.
    ///
    /// # Errors
    /// When it does not connect in time.
    pub async fn connected(&self, cluster_name: &str) -> anyhow::Result<Peer> {
        let name = Name::new(cluster_name)?;
        until("the spoke to connect to the compromised hub", CONNECTED_WITHIN, || async {
            Ok(self.peers.lock().get(&name).cloned())
        })
        .await
    }

    /// Signs plan and directive with the stolen key and sends them with their blobs.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn push(&self, peer: &Peer, delivery: &Delivery) -> anyhow::Result<()> {
        self.push_signed(peer, delivery, &self.key).await
    }

    /// Like [`Self::push`], signed with another key.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn push_signed(
        &self,
        peer: &Peer,
        delivery: &Delivery,
        key: &PrivateKey,
    ) -> anyhow::Result<()> {
        let plan = to_bytes(&delivery.plan);
        let removes = delivery.directive.operation == Operation::Remove;
        let directive =
            Directive { plan: (!removes).then(|| Digest::of(&plan)), ..delivery.directive.clone() };
        let sealed_plan = envelope::seal(PLAN_TYPE, &plan, &[key]);
        let sealed = envelope::seal(DIRECTIVE_TYPE, &to_bytes(&directive), &[key]);
        self.push_raw(peer, &sealed, &sealed_plan, &delivery.blobs).await
    }

    /// Sends envelopes unchanged.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn push_raw(
        &self,
        peer: &Peer,
        directive: &[u8],
        plan: &[u8],
        blobs: &[Vec<u8>],
    ) -> anyhow::Result<()> {
        let mut stream = peer.connection.open_uni().await?;
        for blob in blobs.iter().map(Vec::as_slice).chain([plan]) {
            send_blob(&mut stream, blob).await?;
        }
        let push = Push { directive: directive.to_vec(), plan: Digest::of(plan).raw().to_vec() };
        let last = ToSpoke { body: Some(ToSpokeBody::Directive(push)) };
        stream.write_all(&frame::encode(&last)?).await?;
        stream.finish()?;
        Ok(())
    }

    /// Waits for a report of this cluster that `wanted` accepts.
    ///
    /// # Errors
    /// When there is none in time.
    pub async fn report(
        &self,
        peer: &Peer,
        wanted: impl Fn(&Report) -> bool,
    ) -> anyhow::Result<Report> {
        until("a report", REPORTED_WITHIN, || async {
            let peers = self.peers.lock();
            let mine = peers.values().find(|p| p.cluster == peer.cluster);
            Ok(mine.and_then(|p| p.reports.iter().rev().find(|r| wanted(r)).cloned()))
        })
        .await
    }
}

impl CompromisedHub {
    /// Closes every connection and waits until the address is free.
    ///
    /// # Errors
    /// When it does not become free.
    pub async fn end(self) -> anyhow::Result<()> {
        let address = self.endpoint.local_addr()?;
        self.endpoint.close(0_u8.into(), b"done");
        self.endpoint.wait_idle().await;
        drop(self);
        until("the compromised hub's port to be free", CONNECTED_WITHIN, || async {
            Ok(std::net::UdpSocket::bind(address).ok().map(drop))
        })
        .await
    }
}

impl Drop for CompromisedHub {
    fn drop(&mut self) {
        self.endpoint.close(0_u8.into(), b"done");
    }
}

async fn accept(endpoint: Endpoint, authority: Arc<Authority>, peers: Peers) {
    while let Some(incoming) = endpoint.accept().await {
        let (authority, peers) = (Arc::clone(&authority), Arc::clone(&peers));
        tokio::spawn(async move {
            if let Ok(connection) = incoming.await {
                let _ = serve(connection, &authority, peers).await;
            }
        });
    }
}

async fn serve(connection: Connection, authority: &Authority, peers: Peers) -> anyhow::Result<()> {
    let data = connection.handshake_data().and_then(|d| d.downcast::<HandshakeData>().ok());
    let identity =
        connection.peer_identity().and_then(|i| i.downcast::<Vec<CertificateDer<'static>>>().ok());
    let protocol = data.and_then(|d| d.protocol);
    let admission = admit(protocol.as_deref(), identity.as_deref().map(Vec::as_slice))?;
    let Admission::Session(identity) = admission else {
        bail!("a compromised hub serves no join requests")
    };
    let (mut send, mut receive) = connection.accept_bi().await?;
    let first: ToHub = read(&mut receive).await?.context("no Hello")?;
    let Some(ToHubBody::Hello(hello)) = first.body else { bail!("the first message is not Hello") };
    let spec: Spec = serde_json::from_slice(&hello.policy)?;
    let name = spec.cluster_name.context("the spoke's policy names no cluster")?;
    let welcome = Welcome {
        protocol: PROTOCOL_VERSION,
        hub_version: "compromised".to_owned(),
        reconnect_window_ms: 200,
    };
    let welcome = ToSpoke { body: Some(ToSpokeBody::Welcome(welcome)) };
    send.write_all(&frame::encode(&welcome)?).await?;
    let peer = Peer {
        cluster: identity.id.name().parse()?,
        serial: identity.serial.to_string(),
        hello,
        connection: connection.clone(),
        reports: Vec::new(),
    };
    peers.lock().insert(name.clone(), peer);
    listen((&mut send, &mut receive), &name, authority, &peers).await
}

async fn listen(
    (send, receive): (&mut SendStream, &mut RecvStream),
    name: &Name,
    authority: &Authority,
    peers: &Peers,
) -> anyhow::Result<()> {
    while let Some(frame) = read::<ToHub>(receive).await? {
        let answer = match frame.body {
            Some(ToHubBody::Report(numbered)) => {
                let report: Report = serde_json::from_slice(&numbered.report)?;
                if let Some(peer) = peers.lock().get_mut(name) {
                    peer.reports.push(report);
                }
                ToSpokeBody::Acknowledge(numbered.number)
            }
            Some(ToHubBody::Renew(request)) => {
                let cluster = peers.lock().get(name).context("no such peer")?.cluster.clone();
                let issued =
                    authority.issue_spoke(&request, cluster.as_str(), 1, SPOKE_LIFETIME)?;
                let chain_der = issued.chain.iter().map(|der| der.as_ref().to_vec()).collect();
                ToSpokeBody::Renewed(Renewed { chain_der })
            }
            Some(ToHubBody::Hello(_) | ToHubBody::Need(_)) | None => continue,
        };
        send.write_all(&frame::encode(&ToSpoke { body: Some(answer) })?).await?;
    }
    Ok(())
}

async fn send_blob(stream: &mut SendStream, blob: &[u8]) -> anyhow::Result<()> {
    let compressed = zstd::bulk::compress(blob, COMPRESSION_LEVEL)?;
    let mut offset = 0;
    for piece in compressed.chunks(BLOB_PIECE_BYTES_MAX) {
        let body = ToSpokeBody::Blob(Blob {
            sha256: Digest::of(blob).raw().to_vec(),
            size: blob.len() as u64,
            offset,
            compressed_size: compressed.len() as u64,
            data: piece.to_vec(),
        });
        offset += piece.len() as u64;
        stream.write_all(&frame::encode(&ToSpoke { body: Some(body) })?).await?;
    }
    Ok(())
}

/// What a commit contains for one application, and what everyone with read access to the repository has.
#[derive(Clone, Debug)]
pub struct PublishedRelease {
    pub release: Vec<u8>,
    pub receipts: Vec<Vec<u8>>,
    pub document: Release,
    tree: std::path::PathBuf,
}

impl PublishedRelease {
    /// Reads the newest release of `application` in a working tree, or the one with this counter.
    ///
    /// # Errors
    /// When there is none.
    pub fn read(tree: &Path, application: &str, counter: Option<u64>) -> anyhow::Result<Self> {
        let directory = tree.join(".attest/receipts").join(application);
        let mut counters = Vec::new();
        for entry in std::fs::read_dir(&directory)? {
            counters.extend(entry?.file_name().to_string_lossy().parse::<u64>());
        }
        let counter = counter.or_else(|| counters.into_iter().max()).context("no release")?;
        let mut release = None;
        let mut receipts = Vec::new();
        for entry in std::fs::read_dir(directory.join(counter.to_string()))? {
            let entry = entry?;
            let bytes = std::fs::read(entry.path())?;
            match entry.file_name().to_string_lossy().starts_with("release.") {
                true => release = Some(bytes),
                false => receipts.push(bytes),
            }
        }
        let release = release.context("no release statement")?;
        let (payload, _) = envelope::peek(&release, STATEMENT_TYPE).context("not a statement")?;
        let document = Release::read(&Statement::read(&payload)?)?;
        Ok(Self { release, receipts, document, tree: tree.to_owned() })
    }

    /// Reads one of its renderings.
    ///
    /// # Errors
    /// When the file is missing.
    pub fn content(&self, render: &str) -> anyhow::Result<Vec<u8>> {
        let application = self.document.application.as_str();
        let file = self.tree.join(format!(".attest/rendered/{application}/{render}.jsonl"));
        std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))
    }

    /// Creates the delivery that the real hub would send to `peer`.
    ///
    /// # Errors
    /// When the rendering is missing or malformed.
    pub fn delivery(&self, peer: &Peer, render: &str, namespace: &str) -> anyhow::Result<Delivery> {
        self.delivery_of(peer, render, namespace, self.content(render)?)
    }

    /// Like [`Self::delivery`], with other content than that of the working tree.
    ///
    /// # Errors
    /// When the content is malformed.
    pub fn delivery_of(
        &self,
        peer: &Peer,
        render: &str,
        namespace: &str,
        content: Vec<u8>,
    ) -> anyhow::Result<Delivery> {
        let signed = self.document.render(render).context("no such render")?;
        let application = &self.document.application;
        let mut destinations = peer.hello.destinations.iter();
        let position = destinations.find(|destination| {
            destination.application == application.as_str() && destination.namespace == namespace
        });
        let (epoch, sequence) = position.map_or((1, 0), |found| (found.epoch, found.sequence));
        let now = Timestamp::now();
        let plan = Plan {
            v: 1,
            application: application.clone(),
            release: signed_blob(&self.release)?,
            render: render.to_owned(),
            content: ContentBlob {
                sha256: Digest::of(&content),
                size: content.len() as u64,
                objects: manifest::read(&content)?.len() as u64,
                media_type: RENDERING_TYPE.to_owned(),
            },
            receipts: self
                .receipts
                .iter()
                .map(|receipt| signed_blob(receipt))
                .collect::<Result<_, _>>()?,
            namespace: signed.namespace.clone(),
            policy: RequestedPolicy {
                mode: Mode::Strict,
                required_attestations: std::collections::BTreeSet::new(),
                trusted_keys: None,
            },
            sync: SyncPolicy { prune: true, self_heal: true, adopt: false },
            strategy: Strategy::default(),
            hooks: Vec::new(),
        };
        let directive = Directive {
            v: 1,
            cluster: peer.cluster.clone(),
            application: application.clone(),
            namespace: Name::new(namespace)?,
            epoch,
            sequence: sequence + 1,
            generation: 1,
            attempt: 0,
            operation: Operation::Progress,
            cap_percent: CAP_FULL_PERCENT,
            plan: None,
            repair: false,
            stage: None,
            soak_ms: None,
            paused: false,
            finalize: FinalizedBy::Spoke,
            keep_failed: false,
            issued_at: now,
            expires_at: Timestamp::from_second(now.as_second() + DIRECTIVE_LIFETIME_S)?,
        };
        let mut blobs = vec![self.release.clone(), content];
        blobs.extend(self.receipts.iter().cloned());
        Ok(Delivery { plan, directive, blobs })
    }
}

fn signed_blob(envelope_bytes: &[u8]) -> anyhow::Result<SignedBlob> {
    let (payload, _) = envelope::peek(envelope_bytes, STATEMENT_TYPE).context("not a statement")?;
    Ok(SignedBlob {
        id: envelope::id_of(STATEMENT_TYPE, &payload),
        sha256: Digest::of(envelope_bytes),
        size: envelope_bytes.len() as u64,
    })
}

fn read_statement(envelope_bytes: &[u8]) -> anyhow::Result<Statement> {
    let (payload, _) = envelope::peek(envelope_bytes, STATEMENT_TYPE).context("not a statement")?;
    Ok(Statement::read(&payload)?)
}

/// Points the subject of this name at other content.
fn set_subject(statement: &mut Statement, name: &str, content: Digest) {
    for subject in statement.subject.iter_mut().filter(|subject| subject.name == name) {
        *subject = Subject::new(name.to_owned(), content);
    }
}

/// Parameters of a signature by a CI that signs anything, for the rules that must hold even then.
#[derive(Debug)]
pub struct ResignOptions<'a> {
    pub key: &'a PrivateKey,
    pub render: &'a str,
    /// New bytes of that rendering; `None` leaves it unchanged.
    pub content: Option<Vec<u8>>,
}

impl PublishedRelease {
    /// Signs this release again with CI's own key and the next counter, after the content was replaced
    /// and `change` has changed the release. Receipts are adjusted to match.
    ///
    /// # Errors
    /// When the release is malformed.
    pub fn sign_again(
        &self,
        options: ResignOptions<'_>,
        change: impl FnOnce(&mut Release),
    ) -> anyhow::Result<(Self, Vec<u8>)> {
        let ResignOptions { key, render, content } = options;
        let content = match content {
            Some(content) => content,
            None => self.content(render)?,
        };
        let mut release = self.document.clone();
        release.counter += 1;
        for signed in release.renders.iter_mut().filter(|r| r.name == render) {
            signed.size = content.len() as u64;
            signed.objects = manifest::read(&content)?.len() as u64;
        }
        change(&mut release);
        let subject = format!("manifests/{render}");
        let digest = Digest::of(&content);
        let mut receipts = Vec::new();
        for bytes in &self.receipts {
            let mut receipt = read_statement(bytes)?;
            let id = envelope::id_of(STATEMENT_TYPE, &receipt.to_bytes());
            set_subject(&mut receipt, &subject, digest);
            let predicate = receipt.predicate.to_string();
            let with_source = predicate.replace(&self.document.source.repo, &release.source.repo);
            receipt.predicate = serde_json::from_str(&with_source)?;
            let payload = receipt.to_bytes();
            for evidence in release.evidence.iter_mut().filter(|e| e.receipt == id) {
                evidence.receipt = envelope::id_of(STATEMENT_TYPE, &payload);
            }
            receipts.push(envelope::seal(STATEMENT_TYPE, &payload, &[key]));
        }
        let mut statement = read_statement(&self.release)?;
        set_subject(&mut statement, &subject, digest);
        statement.predicate = serde_json::to_value(&release)?;
        for added in &release.renders {
            if !statement.subject.iter().any(|subject| subject.name == added.subject) {
                statement.subject.push(Subject::new(added.subject.clone(), digest));
            }
        }
        let sealed = envelope::seal(STATEMENT_TYPE, &statement.to_bytes(), &[key]);
        let resigned =
            Self { release: sealed, receipts, document: release, tree: self.tree.clone() };
        Ok((resigned, content))
    }
}

/// Replaces the content of a delivery, as far as a hub can: the plan names the new bytes.
///
/// # Errors
/// When the new content is not a rendering.
pub fn with_content(delivery: &mut Delivery, content: Vec<u8>) -> anyhow::Result<()> {
    let previous = delivery.plan.content.sha256;
    delivery.plan.content = ContentBlob {
        sha256: Digest::of(&content),
        size: content.len() as u64,
        objects: manifest::read(&content)?.len() as u64,
        media_type: RENDERING_TYPE.to_owned(),
    };
    delivery.blobs.retain(|blob| Digest::of(blob) != previous);
    delivery.blobs.push(content);
    Ok(())
}

/// A compromised hub that has sent a changed plan, for the demo.
#[derive(Debug)]
pub struct Attack {
    pub hub: CompromisedHub,
    /// Sequence of the plan's directive.
    pub sequence: u64,
    /// What was sent, in words.
    pub description: String,
}

/// Takes the fleet's hub (which must be down) and sends `cluster` a validly signed plan in which one
/// byte of one manifest is changed; or, with `honest`, the plan of what CI signed.
///
/// # Errors
/// When the spoke does not connect.
pub async fn tampered_plan(
    fleet: &mut RealFleet,
    cluster: &str,
    honest: bool,
) -> anyhow::Result<Attack> {
    let address = fleet.hub().addresses().spokes.parse()?;
    let home = fleet.hub().home().to_owned();
    let hub = CompromisedHub::take_over(&home, address).await?;
    let peer = hub.connected(cluster).await?;
    let published = PublishedRelease::read(fleet.repository().tree(), "web-app", None)?;
    let mut delivery = published.delivery(&peer, cluster, &format!("app-{cluster}"))?;
    let signed = String::from_utf8(published.content(cluster)?)?;
    let changed = signed.replacen("myapp:v1", "myapp:v9", 1);
    let first_difference =
        differences(&manifest::read(signed.as_bytes())?, &manifest::read(changed.as_bytes())?)
            .first()
            .map(ToString::to_string)
            .context("no image to change")?;
    let plan = if honest {
        "an unchanged plan".to_owned()
    } else {
        with_content(&mut delivery, changed.into_bytes())?;
        format!("a changed plan: {first_difference}")
    };
    hub.push(&peer, &delivery).await?;
    let sequence = delivery.directive.sequence;
    let description =
        format!("the compromised hub signs {plan}; sequence {sequence} for {}", peer.cluster);
    Ok(Attack { hub, sequence, description })
}
