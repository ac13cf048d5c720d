//! Joining: single-use tokens, proofs, and the first certificate.
//!
//! Only the public key of a certificate request is used. The secret of a token is never sent and never stored. Every
//! answer is durable before it is sent.

use std::sync::Arc;
use std::time::Duration;

use attest_certs::Issued;
use attest_certs::bundle::chain_from_pem;
use attest_certs::request::RequestedKey;
use attest_certs::tls::{JOIN_EXPORTER_BYTES, JOIN_EXPORTER_CONTEXT, JOIN_EXPORTER_LABEL};
use attest_common::basics::ids::{ClusterId, Digest};
use attest_common::basics::keys::PublicKey;
use attest_common::basics::reason::Reason;
use attest_common::basics::text;
use attest_common::session::GREETING_TIMEOUT_MS;
use attest_common::session::join::{TOKEN_FAILURES_MAX, fingerprint, proof_holds};
use attest_common::session::message::{
    JoinAnswer, JoinOutcome, JoinRefused, JoinRequest, Joined, join_proof_message,
};
use attest_runtime::clock::{after, now};
use attest_runtime::frames::{self, FrameReader};
use quinn::Connection;

use super::super::close::{CLOSE_DONE, CLOSE_NOT_ADMITTED, CLOSE_PROTOCOL};
use super::super::error::LinkError;
use super::certificate::now_s;
use super::decision::revoked;
use super::{CLUSTERS_MAX, JoinError, Registration};
use crate::core::blocking::blocking;
use crate::core::store::records::{
    self, Change, ClusterRecord, ClusterState, Stored, TokenRecord, TokenUse,
};

/// Time in which the same key receives the same certificate again, because the answer may have been lost.
pub(crate) const SAME_ANSWER_MS: i64 = 5 * 60 * 1000;
/// Longest wait for acceptance after the token expired.
pub(crate) const PENDING_MAX_MS: i64 = 7 * 24 * 60 * 60 * 1000;
/// Interval at which a pending spoke repeats its request.
pub(crate) const PENDING_RETRY_MS: u64 = 2_000;
/// Largest join request in bytes; its sender is not authenticated.
pub(crate) const JOIN_FRAME_BYTES_MAX: usize = 16 * 1024;
/// Longest accepted UID of namespace `kube-system`, in bytes.
const UID_BYTES_MAX: usize = 64;
/// Longest wait for a spoke to read its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves one connection with a join request.
pub(crate) async fn serve(registration: &Arc<Registration>, connection: &Connection) {
    let served = answer(registration, connection).await;
    match served {
        Ok(()) => connection.close(CLOSE_DONE, b"Done"),
        Err(error) => {
            connection.close(CLOSE_PROTOCOL, error.reason().as_str().as_bytes());
            tracing::info!(reason = error.reason().as_str(), "Join request failed: {error}");
        }
    }
}

async fn answer(
    registration: &Arc<Registration>,
    connection: &Connection,
) -> Result<(), LinkError> {
    let timeout = Duration::from_millis(GREETING_TIMEOUT_MS);
    let received = async {
        let (stream, receive) = connection.accept_bi().await.map_err(LinkError::Connection)?;
        let mut reader = FrameReader::new(receive, JOIN_FRAME_BYTES_MAX);
        let request: JoinRequest = reader.next().await?.ok_or(LinkError::HandshakeTimedOut)?;
        Ok::<_, LinkError>((stream, reader, request))
    };
    let (mut stream, _reader, request) = tokio::time::timeout(timeout, received)
        .await
        .map_err(|_| LinkError::HandshakeTimedOut)??;
    let mut exporter = [0; JOIN_EXPORTER_BYTES];
    connection
        .export_keying_material(&mut exporter, JOIN_EXPORTER_LABEL, JOIN_EXPORTER_CONTEXT)
        .map_err(|_| LinkError::Crypto)?;
    let from = connection.remote_address();
    let one_at_a_time = registration.one_at_a_time().await;
    let outcome =
        blocking(registration, move |registration| decide(registration, &request, &exporter)).await;
    drop(one_at_a_time);
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(error) => {
            let label = registration.core.metrics.label(&error.reason().into());
            registration.core.metrics.joins.with_label_values(&[label]).inc();
            tracing::warn!(
                reason = error.reason().as_str(),
                from = from.to_string(),
                "Join request refused: {}",
                text::error_chain(&error)
            );
            JoinOutcome::Refused(JoinRefused {
                reason: error.reason().to_string(),
                message: error.to_string(),
            })
        }
    };
    frames::write(&mut stream, &JoinAnswer { outcome: Some(outcome) }).await?;
    stream.finish().map_err(|_| LinkError::StreamClosed)?;
    // The spoke closes when it has read the answer.
    let _ = tokio::time::timeout(ANSWER_TIMEOUT, connection.closed()).await;
    Ok(())
}

/// A join request whose proofs are verified.
struct ProvenRequest {
    identity: [u8; 32],
    cluster: ClusterId,
    spki: String,
    csr: Vec<u8>,
    kube_system_uid: String,
    agent_version: String,
}

fn decide(
    registration: &Registration,
    request: &JoinRequest,
    exporter: &[u8; JOIN_EXPORTER_BYTES],
) -> Result<JoinOutcome, JoinError> {
    let stored = registration.core.records.stored::<TokenRecord>(&request.token_id)?;
    // The same answer for every invalid token, so that existing ids are not disclosed.
    let stored = stored.ok_or(JoinError::TokenRefused)?;
    let token = &stored.value;
    let csr_sha256 = *Digest::of(&request.csr_der).raw();
    let message = join_proof_message(exporter, &csr_sha256, &request.identity_key);
    if !proof_holds(token.secret_sha256.raw(), &message, &request.proof) {
        let failures = token.failures.saturating_add(1);
        let failed = TokenRecord {
            failures,
            revoked: token.revoked || failures >= TOKEN_FAILURES_MAX,
            ..token.clone()
        };
        registration.core.records.commit("token", &[records::replace(&stored, &failed)])?;
        return Err(JoinError::TokenRefused);
    }
    // The peer has proven the secret: from here on, errors are specific.
    if token.revoked {
        return Err(JoinError::TokenRevoked);
    }
    let proven = verify_request(request, &message)?;
    match &token.used {
        Some(used) => repeated_use(registration, &stored, used, &proven),
        None if now() >= token.expires_at => Err(JoinError::TokenExpired),
        None => first_use(registration, &stored, &proven),
    }
}

fn verify_request(request: &JoinRequest, message: &[u8]) -> Result<ProvenRequest, JoinError> {
    let identity: [u8; 32] =
        request.identity_key.as_slice().try_into().map_err(|_| JoinError::Identity)?;
    let key = PublicKey::from_bytes(&identity).map_err(|_| JoinError::Identity)?;
    let signature: [u8; 64] =
        request.identity_proof.as_slice().try_into().map_err(|_| JoinError::Identity)?;
    if !key.verifies(message, &signature) {
        return Err(JoinError::Identity);
    }
    let requested = RequestedKey::from_csr_der(&request.csr_der).map_err(JoinError::Request)?;
    let uid = &request.kube_system_uid;
    let uid_fits = (1..=UID_BYTES_MAX).contains(&uid.len())
        && uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if !uid_fits {
        return Err(JoinError::Uid);
    }
    Ok(ProvenRequest {
        identity,
        cluster: ClusterId::of_identity_key(&identity),
        spki: requested.spki_sha256.to_string(),
        csr: request.csr_der.clone(),
        kube_system_uid: uid.clone(),
        agent_version: request.agent_version.chars().take(80).collect(),
    })
}

/// Registers the cluster that uses a token for the first time.
fn first_use(
    registration: &Registration,
    stored: &Stored<TokenRecord>,
    proven: &ProvenRequest,
) -> Result<JoinOutcome, JoinError> {
    let token = &stored.value;
    let core = &registration.core;
    if token.identity.as_ref().is_some_and(|identity| *identity != proven.cluster) {
        return Err(JoinError::OtherIdentity);
    }
    let guard = core.directory.write();
    if core.directory.is_banned(&proven.cluster) {
        return Err(JoinError::ClusterRevoked(proven.cluster.clone()));
    }
    let previous = core.directory.get(&proven.cluster);
    let namesakes = core.directory.all_named(&token.cluster);
    let replaced = replaced(previous.as_deref(), &namesakes, token)?;
    if core.directory.records() >= CLUSTERS_MAX {
        return Err(JoinError::TooMany);
    }
    if token.identity.is_some() && previous.is_none() {
        return Err(JoinError::NoCluster(token.cluster.clone()));
    }
    let mut record = joining(token, proven, previous.as_deref());
    let issued = match record.state {
        ClusterState::Accepted => Some(registration.certify(&mut record, &proven.csr)?),
        ClusterState::Pending | ClusterState::IdentityCopied | ClusterState::Revoked => None,
    };
    let used = TokenRecord {
        used: Some(TokenUse {
            at: now(),
            cluster: proven.cluster.clone(),
            spki: proven.spki.clone(),
            chain_pem: issued.as_ref().map(Issued::chain_pem),
        }),
        ..token.clone()
    };
    let mut changes: Vec<Change> = replaced.iter().map(records::put).collect();
    if core.records.default_cluster()?.is_none() {
        changes.push(records::default_cluster_change(Some(&record.name)));
    }
    changes.push(records::put(&record));
    changes.push(records::replace(stored, &used));
    core.records.commit("join", &changes)?;
    for gone in replaced {
        guard.note(&gone);
        core.fleet.close(&gone.id, CLOSE_NOT_ADMITTED, Reason::ClusterRevoked);
    }
    guard.note(&record);
    if previous.is_some() {
        // Its certificate is no longer valid.
        core.fleet.close(&record.id, CLOSE_NOT_ADMITTED, Reason::CertificateReplaced);
    }
    core.directory.measure(&core.metrics);
    // `wake_cluster` does not reach applications that select the cluster by its labels.
    registration.waker.wake_all();
    tracing::info!(
        cluster = record.id.as_str(),
        name = record.name.as_str(),
        state = record.state.as_str(),
        fingerprint = fingerprint(&proven.identity),
        "Cluster joined: {}",
        record.name
    );
    Ok(outcome(registration, &record, issued.map(|issued| issued.chain_pem())))
}

/// Returns the other registered clusters of the token's name, as revoked: a token may replace them. `previous` is the
/// record of the identity that joins.
///
/// # Errors
/// When the token does not replace them, or the identity may not join with this name.
fn replaced(
    previous: Option<&ClusterRecord>,
    namesakes: &[Arc<ClusterRecord>],
    token: &TokenRecord,
) -> Result<Vec<ClusterRecord>, JoinError> {
    match previous {
        Some(known) if known.state == ClusterState::Revoked => {
            return Err(JoinError::ClusterRevoked(known.id.clone()));
        }
        Some(known) if known.name != token.cluster => {
            return Err(JoinError::IdentityKnown(known.name.clone()));
        }
        Some(_) | None => {}
    }
    let others = namesakes
        .iter()
        .filter(|cluster| cluster.state != ClusterState::Revoked)
        .filter(|cluster| previous.is_none_or(|known| known.id != cluster.id));
    let replaced: Vec<ClusterRecord> = others
        .map(|other| revoked(other, "replaced by a new registration of the same name"))
        .collect();
    if !replaced.is_empty() && !token.replace {
        return Err(JoinError::NameTaken(token.cluster.clone()));
    }
    Ok(replaced)
}

/// Returns the record of a joining cluster, without a certificate.
fn joining(
    token: &TokenRecord,
    proven: &ProvenRequest,
    previous: Option<&ClusterRecord>,
) -> ClusterRecord {
    let mut certificates =
        previous.map(|previous| previous.certificates.clone()).unwrap_or_default();
    certificates.invalidate(now_s());
    ClusterRecord {
        id: proven.cluster.clone(),
        name: token.cluster.clone(),
        state: if token.auto_accept { ClusterState::Accepted } else { ClusterState::Pending },
        identity_key: data_encoding::HEXLOWER.encode(&proven.identity),
        kube_system_uid: proven.kube_system_uid.clone(),
        token_id: token.id.clone(),
        certificates,
        certificate_expires_at: None,
        registered_at: previous.map_or_else(now, |previous| previous.registered_at),
        agent_version: Some(proven.agent_version.clone()),
        kubernetes_version: None,
        revoked_because: None,
        removed: false,
        labels: previous.map(|previous| previous.labels.clone()).unwrap_or_default(),
    }
}

/// Answers a token that was used before: by the same identity, which is pending or lost its answer, or by another.
///
/// The identity key has signed this connection. The TLS key may differ from the first one: a spoke that restarts
/// while pending creates a new key.
fn repeated_use(
    registration: &Registration,
    stored: &Stored<TokenRecord>,
    used: &TokenUse,
    proven: &ProvenRequest,
) -> Result<JoinOutcome, JoinError> {
    if used.cluster != proven.cluster {
        tracing::warn!(
            reason = Reason::TokenUsed.as_str(),
            first = used.cluster.as_str(),
            second = proven.cluster.as_str(),
            "Join token presented by two identities"
        );
        return Err(JoinError::TokenUsed);
    }
    let guard = registration.core.directory.write();
    let cluster = registration.core.records.get::<ClusterRecord>(proven.cluster.as_str())?;
    let mut record = cluster.ok_or(JoinError::TokenUsed)?;
    match (record.state, &used.chain_pem) {
        (ClusterState::Revoked, _) => Err(JoinError::ClusterRevoked(record.id)),
        (ClusterState::IdentityCopied, _) => Err(JoinError::IdentityCopied(record.name)),
        (ClusterState::Pending, _) if now() > after(stored.value.expires_at, PENDING_MAX_MS) => {
            Err(JoinError::TokenExpired)
        }
        (ClusterState::Pending, _) => Ok(outcome(registration, &record, None)),
        (ClusterState::Accepted, Some(_)) if now() > after(used.at, SAME_ANSWER_MS) => {
            Err(JoinError::TokenUsed)
        }
        (ClusterState::Accepted, Some(chain)) if used.spki == proven.spki => {
            Ok(outcome(registration, &record, Some(chain.clone())))
        }
        (ClusterState::Accepted, issued_before) => {
            // The time of the first certificate counts, so that repeated requests do not extend it.
            let at = if issued_before.is_some() { used.at } else { now() };
            let issued = registration.certify(&mut record, &proven.csr)?;
            let chain = issued.chain_pem();
            let used = TokenUse {
                at,
                spki: proven.spki.clone(),
                chain_pem: Some(chain.clone()),
                ..used.clone()
            };
            let token = TokenRecord { used: Some(used), ..stored.value.clone() };
            let changes = [records::put(&record), records::replace(stored, &token)];
            registration.core.records.commit("join", &changes)?;
            guard.note(&record);
            Ok(outcome(registration, &record, Some(chain)))
        }
    }
}

fn outcome(
    registration: &Registration,
    record: &ClusterRecord,
    chain_pem: Option<String>,
) -> JoinOutcome {
    let Some(chain) = chain_pem.and_then(|chain| chain_from_pem(&chain).ok()) else {
        registration.core.metrics.joins.with_label_values(&["Pending"]).inc();
        return JoinOutcome::PendingRetryMs(PENDING_RETRY_MS);
    };
    registration.core.metrics.joins.with_label_values(&["Joined"]).inc();
    JoinOutcome::Joined(Joined {
        cluster_id: record.id.to_string(),
        chain_der: chain.iter().map(|certificate| certificate.to_vec()).collect(),
        cluster_name: record.name.to_string(),
        hub_key_id: registration.core.signer.public().id().to_string(),
    })
}
