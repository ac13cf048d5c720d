//! Joining a fleet with a single-use token, over a connection pinned to the hub's CA. A spoke joins once, and again only
//! if its certificate has expired or the hub rejects it, with another token; the identity stays.
//!
//! The secret of the token is never sent, only a proof that is bound to this TLS connection. The answer
//! of the hub is checked against the local policy before it is stored.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use attest_certs::{SigningRequest, peer_identity, tls};
use attest_common::basics::ids::Digest;
use attest_common::basics::reason::{Reason, ReportedReason};
use attest_common::basics::text::error_chain;
use attest_common::session::frame::FRAME_BYTES_MAX;
use attest_common::session::join::{self, JoinToken, TokenError};
use attest_common::session::message::{
    JoinAnswer, JoinOutcome, JoinRefused, JoinRequest, Joined, join_proof_message,
};
use attest_common::session::reconnect::{Ending, reconnect_ms};
use attest_common::session::{GREETING_TIMEOUT_MS, RECONNECT_MAX_MS, RECONNECT_MIN_MS};
use attest_runtime::clock::random;
use attest_runtime::frames::{self, FrameReader};
use quinn::{RecvStream, SendStream, VarInt};

use super::certificate::{Expected, certificate};
use super::link::Link;
use super::quic::{self, LinkError, pins};
use super::token;
use crate::cluster::client::ApiServer;
use crate::http::Readiness;
use crate::trust::identity::{Identity, IdentityError, Membership};
use crate::trust::policy::Loaded;

/// Token file and cluster with which a spoke joins.
#[derive(Debug)]
pub struct JoinEndpoint {
    token_file: Option<PathBuf>,
    kube_system_uid: String,
    /// Id of the token that was used, or that the hub has rejected.
    spent: Option<String>,
}

impl JoinEndpoint {
    /// The token is read from the file each time it is needed.
    pub fn new(token_file: Option<PathBuf>, kube_system_uid: String) -> Self {
        Self { token_file, kube_system_uid, spent: None }
    }
}

/// Joins, with retries until a certificate is stored. Returns immediately for a member of the fleet.
pub async fn run(link: &mut Link, endpoint: &mut JoinEndpoint, readiness: &Readiness) {
    if link.identity.tls.is_none() {
        let fingerprint = join::fingerprint(link.identity.key.public().bytes());
        tracing::info!(cluster_id = %link.identity.cluster, fingerprint, "Joining the fleet");
    }
    let mut attempt = 0;
    // Evaluated each time: a wrong clock may have been corrected.
    loop {
        let membership = link.identity.membership(SystemTime::now());
        if membership == Membership::Member {
            return;
        }
        link.note_certificate();
        let loaded = link.trust.borrow_and_update().loaded().cloned();
        if membership == Membership::Expired {
            readiness.joined(Err(expired(loaded.as_deref().ok())));
        }
        let outcome = match &loaded {
            Err(error) => Err(JoinError::Trust(error.clone())),
            Ok(loaded) => once(link, endpoint, loaded).await,
        };
        let wait_ms = match outcome {
            Ok(Progress::Joined) => return,
            Ok(Progress::Pending { retry_ms }) => {
                attempt = 0;
                retry_ms.clamp(RECONNECT_MIN_MS, RECONNECT_MAX_MS)
            }
            Err(error) => {
                let (reason, what) = match membership {
                    Membership::Expired => {
                        (Reason::CertificateExpired, expired(loaded.as_deref().ok()))
                    }
                    Membership::New | Membership::Member => {
                        (error.reason(), "Failed to join; retrying".to_owned())
                    }
                };
                tracing::warn!(reason = reason.as_str(), error = %error_chain(&error), "{what}");
                attempt += 1;
                reconnect_ms(Ending::Other, attempt, 0, random()).max(RECONNECT_MIN_MS)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(wait_ms)) => {}
            _ = link.trust.changed() => {}
        }
    }
}

/// Tries to join again, if there is another token. Called when the hub rejects the certificate, which is
/// kept until another one is stored.
pub async fn again(link: &mut Link, endpoint: &mut JoinEndpoint) {
    let loaded = link.trust.borrow().loaded().cloned();
    let Ok(loaded) = loaded else { return };
    match once(link, endpoint, &loaded).await {
        Ok(Progress::Joined | Progress::Pending { .. }) => {}
        // There is no other token.
        Err(JoinError::NoTokenFile | JoinError::TokenFile { .. } | JoinError::TokenSpent) => {}
        Err(error) => tracing::warn!(
            reason = error.reason().as_str(),
            error = %error_chain(&error),
            "Failed to join again; retrying"
        ),
    }
}

async fn once(
    link: &mut Link,
    endpoint: &mut JoinEndpoint,
    loaded: &Loaded,
) -> Result<Progress, JoinError> {
    let JoinEndpoint { token_file, kube_system_uid, spent } = endpoint;
    let file = token_file.as_deref().ok_or(JoinError::NoTokenFile)?;
    let (api, hub, identity) = (&link.api, &link.hub, &mut link.identity);
    let mut joining = Joining { api, hub, loaded, kube_system_uid, identity };
    let progress = joining.once(file, spent).await?;
    match progress {
        Progress::Joined => {
            tracing::info!(cluster_id = %link.identity.cluster, "Joined the fleet");
            link.may_hold_token = false;
            token::forget(&link.api).await;
        }
        Progress::Pending { .. } => {
            let fingerprint = join::fingerprint(link.identity.key.public().bytes());
            tracing::info!(
                fingerprint,
                "Waiting to be accepted; run `attest gitops cluster accept NAME --fingerprint {fingerprint}`"
            );
        }
    }
    Ok(progress)
}

/// Returns the message of a spoke whose certificate has expired, with the remedy.
fn expired(loaded: Option<&Loaded>) -> String {
    let name = loaded.map_or("NAME", |loaded| loaded.policy.cluster_name.as_str());
    format!(
        "{}: this cluster's certificate has expired; what runs is kept, and the hub is reached again \
         after `attest gitops cluster rejoin {name} --kubeconfig F`",
        Reason::CertificateExpired
    )
}

enum Progress {
    Joined,
    Pending { retry_ms: u64 },
}

struct Joining<'a> {
    api: &'a ApiServer,
    hub: &'a str,
    loaded: &'a Loaded,
    kube_system_uid: &'a str,
    identity: &'a mut Identity,
}

impl Joining<'_> {
    /// `spent` is the id of the token that was used, or that the hub has rejected.
    async fn once(
        &mut self,
        token_file: &Path,
        spent: &mut Option<String>,
    ) -> Result<Progress, JoinError> {
        let text = std::fs::read_to_string(token_file).map_err(|source| JoinError::TokenFile {
            path: token_file.display().to_string(),
            source,
        })?;
        let token: JoinToken = text.parse().map_err(JoinError::Token)?;
        drop(zeroize::Zeroizing::new(text));
        if spent.as_deref() == Some(token.id()) {
            return Err(JoinError::TokenSpent);
        }
        let request = SigningRequest::generate().map_err(|_| JoinError::KeyGeneration)?;
        let tls = tls::spoke_join(&pins(self.loaded).map_err(JoinError::Link)?)
            .map_err(|error| JoinError::Link(LinkError::Tls(error)))?;
        let (endpoint, connection) = quic::dial(self.hub, tls).await.map_err(JoinError::Link)?;
        let limit = Duration::from_millis(GREETING_TIMEOUT_MS);
        let answer = tokio::time::timeout(limit, self.ask(&connection, &token, &request)).await;
        let trust_domain = hub_trust_domain(&connection);
        connection.close(VarInt::from_u32(0), b"");
        endpoint.close(VarInt::from_u32(0), b"");
        match answer.map_err(|_| JoinError::Link(LinkError::TimedOut))??.outcome {
            Some(JoinOutcome::Joined(joined)) => {
                self.store(joined, &request, &trust_domain?).await?;
                *spent = Some(token.id().to_owned());
                Ok(Progress::Joined)
            }
            Some(JoinOutcome::PendingRetryMs(retry_ms)) => Ok(Progress::Pending { retry_ms }),
            Some(JoinOutcome::Refused(JoinRefused { reason, message })) => {
                if ReportedReason::parse(&reason).known().is_some_and(spends_token) {
                    *spent = Some(token.id().to_owned());
                }
                let said = attest_common::basics::text::message(&format!("{reason}: {message}"));
                Err(JoinError::Refused(said))
            }
            None => Err(JoinError::Link(LinkError::Unexpected {
                got: "an unknown answer",
                expected: "the outcome of the join",
            })),
        }
    }

    async fn ask(
        &self,
        connection: &quinn::Connection,
        token: &JoinToken,
        request: &SigningRequest,
    ) -> Result<JoinAnswer, JoinError> {
        let mut exporter = [0; tls::JOIN_EXPORTER_BYTES];
        connection
            .export_keying_material(
                &mut exporter,
                tls::JOIN_EXPORTER_LABEL,
                tls::JOIN_EXPORTER_CONTEXT,
            )
            .map_err(|_| JoinError::Exporter)?;
        let csr_sha256 = Digest::of(&request.csr_der);
        let public = self.identity.key.public().bytes();
        let message = join_proof_message(&exporter, csr_sha256.raw(), public);
        let asked = JoinRequest {
            token_id: token.id().to_owned(),
            csr_der: request.csr_der.clone(),
            identity_key: public.to_vec(),
            kube_system_uid: self.kube_system_uid.to_owned(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            proof: join::proof(&token.key(), &message).to_vec(),
            identity_proof: self.identity.key.sign(&message).to_vec(),
        };
        let (mut send, receive) = connection
            .open_bi()
            .await
            .map_err(|error| JoinError::Link(LinkError::Connection(error)))?;
        let answer = exchange(&mut send, receive, &asked).await.map_err(JoinError::Link)?;
        answer.ok_or(JoinError::Link(LinkError::Truncated))
    }

    async fn store(
        &mut self,
        joined: Joined,
        request: &SigningRequest,
        trust_domain: &str,
    ) -> Result<(), JoinError> {
        let Joined { cluster_id, chain_der, cluster_name, hub_key_id } = joined;
        let policy = &self.loaded.policy;
        if cluster_id != self.identity.cluster.as_str() {
            return Err(JoinError::Certificate(Reason::ClusterIdMismatch));
        }
        let pinned = hub_key_id.parse().is_ok_and(|id| policy.hub_keys.contains_key(&id));
        if !pinned {
            return Err(JoinError::HubKeyPin);
        }
        if cluster_name != policy.cluster_name.as_str() {
            // The hub's name is for display; the local policy's name decides what may run here.
            tracing::warn!(
                hub = attest_common::basics::text::message(&cluster_name),
                local = %policy.cluster_name,
                "The hub uses another name for this cluster"
            );
        }
        let pins = pins(self.loaded).map_err(JoinError::Link)?;
        let expected = Expected {
            cluster: &self.identity.cluster,
            trust_domain,
            pins: &pins,
            now: SystemTime::now(),
        };
        let bundle = certificate(chain_der, request, &expected).map_err(JoinError::Certificate)?;
        self.identity.store_tls(self.api, bundle).await.map_err(JoinError::Identity)
    }
}

/// Sends a request and reads the answer; `None` if the hub closes the stream without one.
async fn exchange(
    send: &mut SendStream,
    receive: RecvStream,
    asked: &JoinRequest,
) -> Result<Option<JoinAnswer>, LinkError> {
    frames::write(send, asked).await?;
    Ok(FrameReader::new(receive, FRAME_BYTES_MAX).next().await?)
}

/// Returns the trust domain of the hub, whose chain the handshake has verified.
fn hub_trust_domain(connection: &quinn::Connection) -> Result<String, JoinError> {
    let chain = connection.peer_identity().and_then(|any| {
        let chain = any.downcast::<Vec<rustls_pki_types::CertificateDer<'static>>>();
        chain.ok()
    });
    let peer = peer_identity(chain.as_deref().map_or(&[], Vec::as_slice));
    let peer = peer.map_err(|error| JoinError::Certificate(error.reason()))?;
    Ok(peer.id.trust_domain().to_owned())
}

/// Error of one attempt to join.
/// Returns whether a refusal for this reason means that the token cannot be used again.
fn spends_token(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::TokenRefused | Reason::TokenRevoked | Reason::TokenExpired | Reason::TokenUsed
    )
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    #[error("no trust policy names the hub to join")]
    Trust(#[source] crate::trust::policy::TrustError),
    #[error("give --join-token-file FILE with a token of `attest gitops cluster token create`")]
    NoTokenFile,
    #[error("failed to read the join token {path}")]
    TokenFile {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the join token is not usable")]
    Token(#[source] TokenError),
    #[error("this join token was used, or the hub has rejected it; provide another one")]
    TokenSpent,
    #[error("failed to generate a TLS key")]
    KeyGeneration,
    #[error("failed to bind the proof to the connection")]
    Exporter,
    #[error("the connection to the hub failed")]
    Link(#[source] LinkError),
    #[error("the hub rejected the request: {0}")]
    Refused(String),
    #[error("the hub signs plans with a key that the local trust policy does not pin")]
    HubKeyPin,
    #[error("the certificate from the hub is not valid ({0})")]
    Certificate(Reason),
    #[error("failed to store the identity")]
    Identity(#[source] IdentityError),
}

impl JoinError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Trust(error) => error.reason(),
            Self::NoTokenFile | Self::TokenFile { .. } | Self::Token(_) | Self::TokenSpent => {
                Reason::JoinToken
            }
            Self::KeyGeneration => Reason::KeyGeneration,
            Self::Exporter => Reason::Exporter,
            Self::Link(error) => error.reason(),
            Self::Refused(_) => Reason::JoinRefused,
            Self::HubKeyPin => Reason::HubKeyPin,
            Self::Certificate(reason) => *reason,
            Self::Identity(error) => error.reason(),
        }
    }
}
