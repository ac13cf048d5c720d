//! Simulated spokes for fan-out and memory benchmarks: the real protocol over real QUIC, without a
//! cluster.
//!
//! A simulated spoke joins with a real token, keeps a real session and answers every push with a report.
//! It verifies nothing; verification is tested with real spokes. [`Session`] is one session; [`spokes`] is
//! a fleet that reconnects.

pub mod spokes;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use attest_certs::{Bundle, Pin, SigningRequest};
use attest_common::basics::envelope;
use attest_common::basics::ids::{ClusterId, Digest, Timestamp};
use attest_common::basics::keys::PrivateKey;
use attest_common::documents::plan::Directive;
use attest_common::objects::health::Health;
use attest_common::session::frame::{self, LENGTH_BYTES};
use attest_common::session::join::{self, JoinToken};
use attest_common::session::message::{
    Hello, JoinAnswer, JoinOutcome, JoinRequest, NumberedReport, Seen, ToHub, ToHubBody, ToSpoke,
    ToSpokeBody, Welcome, join_proof_message,
};
use attest_common::session::report::{ObjectState, Phase, Report, Running, Timings};
use attest_common::session::{
    FEATURES, IDLE_TIMEOUT_MS, KEEP_ALIVE_MS, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN,
    UNIDIRECTIONAL_STREAMS_MAX,
};
use attest_common::trust::policy::Spec;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint, RecvStream, SendStream, TransportConfig};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::api::Api;

/// Lifetime of a join token.
const TOKEN_TTL_SECONDS: u64 = 900;

/// Cluster id and TLS identity of one simulated spoke.
pub struct Identity {
    pub cluster: ClusterId,
    pub bundle: Bundle,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.cluster)
    }
}

/// Receipt of a directive.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub cluster: ClusterId,
    pub sequence: u64,
    pub at: Instant,
    /// Size of the push stream, in bytes.
    pub bytes: usize,
}

/// Opens a socket that many simulated spokes share.
///
/// # Errors
/// When no port is free.
pub fn endpoint() -> anyhow::Result<Endpoint> {
    Ok(Endpoint::client("127.0.0.1:0".parse()?)?)
}

fn client_config(tls: rustls::ClientConfig) -> anyhow::Result<ClientConfig> {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_uni_streams(UNIDIRECTIONAL_STREAMS_MAX.into())
        .max_concurrent_bidi_streams(0_u8.into())
        .keep_alive_interval(Some(Duration::from_millis(KEEP_ALIVE_MS)))
        .max_idle_timeout(Some(Duration::from_millis(IDLE_TIMEOUT_MS).try_into()?));
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// Requests a token for a cluster called `name`, and joins the hub at `hub` with it.
///
/// # Errors
/// As [`join()`], and when the hub issues no token.
pub async fn join_as(
    api: &Api,
    endpoint: &Endpoint,
    hub: SocketAddr,
    name: &str,
) -> anyhow::Result<Identity> {
    let token = request_token(api, name).await?;
    join(endpoint, hub, api.pin, &token).await
}

/// Requests a join token for a cluster called `name`.
///
/// # Errors
/// When the hub issues none.
pub async fn request_token(api: &Api, name: &str) -> anyhow::Result<JoinToken> {
    let request = json!({"cluster": name, "ttlSeconds": TOKEN_TTL_SECONDS, "autoAccept": true});
    let issued: Value = api.call("POST", "/v1/tokens", Some(&request)).await?;
    Ok(issued.get("token").and_then(Value::as_str).context("no token")?.parse()?)
}

/// Joins the hub at `hub` with a token.
///
/// # Errors
/// When the hub is unreachable or refuses; the error carries the hub's reason.
pub async fn join(
    endpoint: &Endpoint,
    hub: SocketAddr,
    pin: Pin,
    token: &JoinToken,
) -> anyhow::Result<Identity> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed)?;
    let identity = PrivateKey::from_seed(&seed)?;
    let request = SigningRequest::generate()?;
    let config = client_config(attest_certs::tls::spoke_join(&[pin])?)?;
    let connection = endpoint
        .connect_with(config, hub, attest_certs::tls::HUB_SERVER_NAME)?
        .await
        .context("join connection")?;
    let mut exporter = [0; attest_certs::tls::JOIN_EXPORTER_BYTES];
    connection
        .export_keying_material(
            &mut exporter,
            attest_certs::tls::JOIN_EXPORTER_LABEL,
            attest_certs::tls::JOIN_EXPORTER_CONTEXT,
        )
        .map_err(|_| anyhow::anyhow!("no keying material"))?;
    let key = identity.public().bytes().to_vec();
    let message = join_proof_message(&exporter, Digest::of(&request.csr_der).raw(), &key);
    let (mut send, mut receive) = connection.open_bi().await?;
    let join_request = JoinRequest {
        token_id: token.id().to_owned(),
        csr_der: request.csr_der.clone(),
        identity_key: key,
        kube_system_uid: format!("simulated-{}", token.id()),
        agent_version: "simulated".to_owned(),
        proof: join::proof(&token.key(), &message).to_vec(),
        identity_proof: identity.sign(&message).to_vec(),
    };
    send.write_all(&frame::encode(&join_request)?).await?;
    let answer: JoinAnswer =
        read(&mut receive).await?.context("the hub closed the connection without an answer")?;
    connection.close(0_u8.into(), b"joined");
    let joined = match answer.outcome {
        Some(JoinOutcome::Joined(joined)) => joined,
        Some(JoinOutcome::Refused(refused)) => bail!("{}: {}", refused.reason, refused.message),
        Some(JoinOutcome::PendingRetryMs(_)) => {
            bail!("the token needs an operator to accept the cluster")
        }
        None => bail!("unknown answer"),
    };
    let chain: Vec<_> =
        joined.chain_der.into_iter().map(rustls_pki_types::CertificateDer::from).collect();
    let bundle = Bundle::from_pem(&attest_certs::bundle::chain_to_pem(&chain), &request.key_pem)?;
    Ok(Identity { cluster: joined.cluster_id.parse()?, bundle })
}

/// A session that answers every push with `Synced`, until dropped.
#[derive(Debug)]
pub struct Session {
    connection: Connection,
    /// Held open without answers, because the hub ends the session with the stream.
    control: Option<(SendStream, RecvStream)>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.close(0_u8.into(), b"done");
    }
}

/// Parameters of a session besides its identity.
#[derive(Clone, Debug)]
pub struct Dial<'a> {
    pub hub: SocketAddr,
    pub pin: Pin,
    pub policy: &'a Spec,
    /// Channel for received directives; without it the session only stays connected.
    pub arrivals: Option<mpsc::UnboundedSender<Arrival>>,
}

impl Session {
    /// Opens a session and waits for the hub's Welcome.
    ///
    /// # Errors
    /// When the hub is unreachable or does not send Welcome.
    pub async fn open(
        endpoint: &Endpoint,
        identity: &Identity,
        dial: Dial<'_>,
    ) -> anyhow::Result<Self> {
        let Dial { hub, pin, policy, arrivals } = dial;
        let config = client_config(attest_certs::tls::spoke_session(&[pin], &identity.bundle)?)?;
        let connection = endpoint
            .connect_with(config, hub, attest_certs::tls::HUB_SERVER_NAME)?
            .await
            .context("connection")?;
        let policy = serde_json::to_vec(policy)?;
        let (send, mut receive, _) =
            greet(&connection, &identity.cluster, policy, Vec::new()).await?;
        let control = match arrivals {
            Some(arrivals) => {
                let answering = Answering {
                    connection: connection.clone(),
                    cluster: identity.cluster.clone(),
                    arrivals,
                    control: send,
                };
                tokio::spawn(answering.run());
                tokio::spawn(async move {
                    while let Ok(Some(_)) = read::<ToSpoke>(&mut receive).await {}
                });
                None
            }
            None => Some((send, receive)),
        };
        Ok(Self { connection, control })
    }

    /// Requests a certificate for a new key and waits for it. Only for a session that answers nothing by
    /// itself.
    ///
    /// # Errors
    /// When the hub disconnects or issues none.
    pub async fn renew(&mut self) -> anyhow::Result<Bundle> {
        let (send, receive) = self.control.as_mut().context("this session answers pushes")?;
        let request = SigningRequest::generate()?;
        let body = ToHubBody::Renew(request.csr_der.clone());
        send.write_all(&frame::encode(&ToHub { body: Some(body) })?).await?;
        loop {
            let frame: ToSpoke =
                read(receive).await?.context("the hub closed the connection without an answer")?;
            let Some(ToSpokeBody::Renewed(renewed)) = frame.body else { continue };
            let chain: Vec<_> =
                renewed.chain_der.into_iter().map(rustls_pki_types::CertificateDer::from).collect();
            let chain = attest_certs::bundle::chain_to_pem(&chain);
            return Ok(Bundle::from_pem(&chain, &request.key_pem)?);
        }
    }
}

struct Answering {
    connection: Connection,
    cluster: ClusterId,
    arrivals: mpsc::UnboundedSender<Arrival>,
    control: SendStream,
}

impl Answering {
    async fn run(mut self) {
        let mut number = 0;
        while let Ok(mut stream) = self.connection.accept_uni().await {
            let Ok(Push { directive, bytes, .. }) = take_push(&mut stream).await else {
                continue;
            };
            number += 1;
            let arrival = Arrival {
                cluster: self.cluster.clone(),
                sequence: directive.sequence,
                at: Instant::now(),
                bytes,
            };
            if self.arrivals.send(arrival).is_err()
                || self.report(number, &directive).await.is_err()
            {
                return;
            }
        }
    }

    async fn report(&mut self, number: u64, directive: &Directive) -> anyhow::Result<()> {
        let report = report(directive, Vec::new(), 0);
        send_report(&mut self.control, number, &report).await
    }
}

/// Opens the control stream, sends `Hello` and reads `Welcome`.
async fn greet(
    connection: &Connection,
    cluster: &ClusterId,
    policy: Vec<u8>,
    destinations: Vec<Seen>,
) -> anyhow::Result<(SendStream, RecvStream, Welcome)> {
    let (mut send, mut receive) = connection.open_bi().await?;
    let hello = ToHubBody::Hello(Hello {
        protocol_min: PROTOCOL_VERSION_MIN,
        protocol_max: PROTOCOL_VERSION,
        cluster_id: cluster.to_string(),
        agent_version: "simulated".to_owned(),
        nonce: vec![7; 16],
        policy,
        destinations,
        kubernetes_version: "simulated".to_owned(),
        features: FEATURES.map(str::to_owned).to_vec(),
        process_id: Vec::new(),
    });
    send.write_all(&frame::encode(&ToHub { body: Some(hello) })?).await?;
    let first: ToSpoke =
        read(&mut receive).await?.context("the hub closed the connection before Welcome")?;
    match first.body {
        Some(ToSpokeBody::Welcome(welcome)) => Ok((send, receive, welcome)),
        _ => bail!("the hub's first message is not Welcome"),
    }
}

/// Returns the report of a spoke that has applied `directive`.
fn report(directive: &Directive, objects: Vec<ObjectState>, heals_total: u64) -> Report {
    Report {
        v: 1,
        application: directive.application.clone(),
        namespace: directive.namespace.clone(),
        epoch: Some(directive.epoch),
        sequence: Some(directive.sequence),
        phase: Phase::Synced,
        reason: Phase::Synced.reason().into(),
        message: "simulated".to_owned(),
        running: directive.plan.map(|plan| Running {
            plan,
            release: plan,
            content: plan,
            version: "simulated".to_owned(),
            counter: 1,
            signed_commit: String::new(),
            signers: Vec::new(),
            since: Timestamp::now(),
        }),
        refusal: None,
        rollout: None,
        health: Health::Current,
        objects_total: objects.len() as u64,
        objects,
        drifted: Vec::new(),
        heals_total,
        timings: Timings::default(),
        checks: Vec::new(),
        warnings: Vec::new(),
        observed_at: Timestamp::now(),
    }
}

async fn send_report(control: &mut SendStream, number: u64, report: &Report) -> anyhow::Result<()> {
    let body = ToHubBody::Report(NumberedReport { number, report: serde_json::to_vec(report)? });
    control.write_all(&frame::encode(&ToHub { body: Some(body) })?).await?;
    Ok(())
}

/// A push, unverified.
struct Push {
    directive: Directive,
    /// Digest of the directive's payload.
    digest: Digest,
    /// Size in bytes.
    bytes: usize,
}

/// Reads one push to its end.
async fn take_push(stream: &mut RecvStream) -> anyhow::Result<Push> {
    let mut bytes = 0;
    let mut received = None;
    while let Some(frame) = read::<ToSpoke>(stream).await? {
        match frame.body {
            Some(ToSpokeBody::Blob(blob)) => bytes += blob.data.len(),
            Some(ToSpokeBody::Directive(push)) => {
                bytes += push.directive.len();
                let (payload, _) = envelope::peek(&push.directive, envelope::DIRECTIVE_TYPE)
                    .context("the push contains no directive envelope")?;
                received = Some((serde_json::from_slice(&payload)?, Digest::of(&payload)));
            }
            Some(
                ToSpokeBody::Welcome(_)
                | ToSpokeBody::Sync(_)
                | ToSpokeBody::Acknowledge(_)
                | ToSpokeBody::Renewed(_),
            )
            | None => {}
        }
    }
    let (directive, digest) = received.context("the push ended without a directive")?;
    Ok(Push { directive, digest, bytes })
}

/// Reads one frame, or `None` at the end of the stream.
pub(crate) async fn read<M: prost::Message + Default>(
    stream: &mut RecvStream,
) -> anyhow::Result<Option<M>> {
    let mut prefix = [0; LENGTH_BYTES];
    match stream.read_exact(&mut prefix).await {
        Ok(()) => {}
        Err(quinn::ReadExactError::FinishedEarly(0)) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let mut body = vec![0; frame::body_length(prefix)?];
    stream.read_exact(&mut body).await?;
    Ok(Some(frame::decode(&body)?))
}
