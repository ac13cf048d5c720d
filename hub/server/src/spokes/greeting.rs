//! The greeting of a session: reads what a spoke reports when it connects, discards implausible claims, and answers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use attest_certs::PeerIdentity;
use attest_common::basics::ids::{ClusterId, DestinationKey, Digest};
use attest_common::basics::reason::Reason;
use attest_common::session::frame::FRAME_BYTES_MAX;
use attest_common::session::message::{Hello, Seen, ToHub, ToHubBody, ToSpokeBody, Welcome};
use attest_common::session::{PROCESS_ID_BYTES, negotiate};
use attest_common::trust::policy;
use attest_runtime::frames::{self, FrameReader};
use quinn::{Connection, SendStream};

use super::error::LinkError;
use super::limits::{HELLO_DESTINATIONS_MAX, POLICY_BYTES_MAX};
use super::push::to_spoke;
use super::shared::{Shared, greeting_timeout};
use crate::core::Core;
use crate::core::blocking::blocking;
use crate::core::position::{
    ReportedPolicy, SpokePosition, is_from_unknown_epoch, is_overtaken, is_plausible,
};
use crate::core::store::records::{self, ClusterRecord, PolicyRecord};

/// Target rate of reconnects.
const RECONNECTS_PER_SECOND: u64 = 500;
/// Narrowest window over which spokes spread their reconnects.
const RECONNECT_WINDOW_MIN_MS: u64 = 1_000;

/// Result of a greeting: the control stream, and what the spoke reported.
pub(super) struct Greeting {
    pub(super) control: SendStream,
    pub(super) reader: FrameReader,
    pub(super) held: HeldBy,
    pub(super) nonce: String,
    /// The reported trust policy differs from the known one.
    pub(super) is_policy_new: bool,
}

/// Reads the greeting of a spoke and answers it.
///
/// # Errors
/// When the greeting is invalid or times out.
pub(super) async fn greet(
    shared: &Arc<Shared>,
    (peer, cluster): (&PeerIdentity, &ClusterId),
    connection: &Connection,
) -> Result<Greeting, LinkError> {
    let greeting = exchange(shared, (peer, cluster), connection);
    tokio::time::timeout(greeting_timeout(), greeting)
        .await
        .map_err(|_| LinkError::HandshakeTimedOut)?
}

async fn exchange(
    shared: &Arc<Shared>,
    (peer, cluster): (&PeerIdentity, &ClusterId),
    connection: &Connection,
) -> Result<Greeting, LinkError> {
    let (mut control, receive) = connection.accept_bi().await.map_err(LinkError::Connection)?;
    let mut reader = FrameReader::new(receive, FRAME_BYTES_MAX);
    let first: ToHub = reader.next().await?.ok_or(LinkError::HandshakeTimedOut)?;
    let Some(ToHubBody::Hello(hello)) = first.body else {
        return Err(LinkError::HelloInvalid("first message"));
    };
    let (claimed, nonce) = read_hello(cluster, &hello)?;
    let protocol = negotiate(hello.protocol_min, hello.protocol_max)
        .ok_or(LinkError::ProtocolVersion(hello.protocol_min, hello.protocol_max))?;
    admit_process(shared, peer, &hello).await?;
    let held = plausible(shared, cluster, claimed).await?;
    let is_policy_new = introduce(shared, cluster, hello).await?;
    let welcome = Welcome {
        protocol,
        hub_version: env!("CARGO_PKG_VERSION").to_owned(),
        reconnect_window_ms: reconnect_window_ms(shared.core.fleet.connected()),
    };
    frames::write(&mut control, &to_spoke(ToSpokeBody::Welcome(welcome))).await?;
    Ok(Greeting { control, reader, held, nonce, is_policy_new })
}

async fn admit_process(
    shared: &Arc<Shared>,
    peer: &PeerIdentity,
    hello: &Hello,
) -> Result<(), LinkError> {
    let (peer, process) = (peer.clone(), hello.process_id.clone());
    let registration = &shared.registration;
    blocking(registration, move |registration| registration.admit_process(&peer, &process)).await
}

fn reconnect_window_ms(connected: usize) -> u64 {
    (connected as u64 * 1_000 / RECONNECTS_PER_SECOND).max(RECONNECT_WINDOW_MIN_MS)
}

/// The positions that a spoke holds, by destination.
type HeldBy = BTreeMap<DestinationKey, SpokePosition>;

fn read_hello(cluster: &ClusterId, hello: &Hello) -> Result<(HeldBy, String), LinkError> {
    if hello.cluster_id != cluster.as_str() {
        return Err(LinkError::HelloInvalid("cluster_id"));
    }
    if hello.nonce.len() != 16 {
        return Err(LinkError::HelloInvalid("nonce"));
    }
    if !matches!(hello.process_id.len(), 0 | PROCESS_ID_BYTES) {
        return Err(LinkError::HelloInvalid("process_id"));
    }
    if hello.features.iter().any(|feature| feature.len() > FEATURE_BYTES_MAX) {
        return Err(LinkError::HelloInvalid("features"));
    }
    if hello.policy.len() > POLICY_BYTES_MAX || hello.destinations.len() > HELLO_DESTINATIONS_MAX {
        return Err(LinkError::HelloInvalid("greeting size"));
    }
    let mut held = BTreeMap::new();
    for seen in &hello.destinations {
        let destination = DestinationKey {
            application: seen.application.parse().map_err(|_| invalid_destination())?,
            cluster: cluster.clone(),
            namespace: seen.namespace.parse().map_err(|_| invalid_destination())?,
        };
        let digest = <[u8; 32]>::try_from(seen.directive.as_slice()).ok().map(Digest::from_raw);
        let Seen { epoch, sequence, generation, attempt, .. } = *seen;
        let position = SpokePosition { epoch, sequence, digest, generation, attempt };
        held.insert(destination, position);
    }
    Ok((held, data_encoding::HEXLOWER.encode(&hello.nonce)))
}

fn invalid_destination() -> LinkError {
    LinkError::HelloInvalid("destination")
}

/// Returns the claimed positions that a hub of this fleet can have issued. If one is from an epoch unknown to this
/// hub, as after a restore from a backup, a higher epoch is durable before this returns.
async fn plausible(
    shared: &Arc<Shared>,
    cluster: &ClusterId,
    claimed: HeldBy,
) -> Result<HeldBy, LinkError> {
    let core = &shared.core;
    let epoch = core.epoch.current();
    let (mut held, implausible): (HeldBy, HeldBy) =
        claimed.into_iter().partition(|(destination, held)| {
            is_plausible(*held, core.fleet.head(destination).as_deref(), epoch)
        });
    if let Some((destination, held)) = implausible.first_key_value() {
        tracing::warn!(
            destination = destination.to_string(),
            reason = Reason::ClaimImplausible.as_str(),
            epoch = held.epoch,
            sequence = held.sequence,
            destinations = implausible.len(),
            "Ignoring implausible epoch or sequence reported by spoke"
        );
    }
    if held.iter().any(|(destination, held)| is_unknown(core, destination, *held, epoch))
        && !shared.claims.allows(cluster, Instant::now())
    {
        tracing::warn!(
            cluster = cluster.as_str(),
            reason = Reason::ClaimRateLimited.as_str(),
            "Ignoring repeated claims of unknown directives (rate limited)"
        );
        held.retain(|destination, held| !is_unknown(core, destination, *held, epoch));
    }
    let unknown_epochs = held.iter().filter(|(destination, held)| {
        is_from_unknown_epoch(**held, core.fleet.head(destination).as_deref(), epoch)
    });
    if let Some(seen) = unknown_epochs.map(|(_, held)| held.epoch).max() {
        blocking(core, move |core| core.epoch.raise_above(&core.records, seen)).await?;
    }
    Ok(held)
}

/// Returns whether a spoke holds a directive that is unknown to this hub.
fn is_unknown(core: &Core, destination: &DestinationKey, held: SpokePosition, epoch: u64) -> bool {
    let head = core.fleet.head(destination);
    is_from_unknown_epoch(held, head.as_deref(), epoch)
        || head.is_some_and(|head| is_overtaken(&head, held))
}

/// Stores the metadata that a spoke reports: its versions and its trust policy. Returns whether the policy changed.
/// Changes beyond the rate limit are effective in memory and become durable with a later greeting; a restarted hub
/// is greeted by every spoke.
async fn introduce(
    shared: &Arc<Shared>,
    cluster: &ClusterId,
    hello: Hello,
) -> Result<bool, LinkError> {
    let cluster = cluster.clone();
    blocking(shared, move |shared| {
        let core = &shared.core;
        let guard = core.directory.write();
        let stored = core.records.stored::<ClusterRecord>(cluster.as_str())?;
        let Some(stored) = stored else { return Err(LinkError::ClusterUnknown(cluster)) };
        let record = ClusterRecord {
            agent_version: Some(version_word(&hello.agent_version)),
            kubernetes_version: Some(version_word(&hello.kubernetes_version)),
            ..stored.value.clone()
        };
        let mut changes = Vec::new();
        if record != stored.value {
            changes.push(records::replace(&stored, &record));
        }
        let spec: Option<policy::Spec> = attest_common::basics::json::document(&hello.policy).ok();
        let features = hello.features.into_iter().take(FEATURES_MAX).collect();
        let loaded = spec.and_then(|spec| Some((spec.load().ok()?, spec)));
        let known = core.fleet.reported_policy(&cluster);
        if loaded.is_none() {
            tracing::warn!(
                cluster = cluster.as_str(),
                reason = Reason::TrustPolicyInvalid.as_str(),
                "Unreadable trust policy from spoke; keeping the previous one"
            );
        }
        let previous = known.as_deref().map(|known| (known.policy.clone(), known.spec.clone()));
        let mut is_policy_new = false;
        if let Some((policy, spec)) = loaded.or(previous) {
            let reported = ReportedPolicy { spec, policy, features };
            let policy = PolicyRecord {
                cluster: cluster.clone(),
                spec: reported.spec.clone(),
                features: reported.features.clone(),
            };
            let stored_policy: Option<PolicyRecord> = core.records.get(cluster.as_str())?;
            if stored_policy.as_ref() != Some(&policy) {
                changes.push(records::put(&policy));
            }
            is_policy_new = known.is_none_or(|known| {
                known.spec != reported.spec || known.features != reported.features
            });
            core.fleet.set_reported_policy(&cluster, reported);
        }
        if changes.is_empty() {
            return Ok(is_policy_new);
        }
        if shared.introductions.allows(&cluster, Instant::now()) {
            core.records.commit("introduction", &changes)?;
            guard.note(&record);
        } else {
            tracing::warn!(
                cluster = cluster.as_str(),
                reason = Reason::MetadataRateLimited.as_str(),
                "Spoke metadata changes too often; not persisting (rate limited)"
            );
        }
        Ok(is_policy_new)
    })
    .await
}

/// Most features of a spoke that are noted, and the longest name of one in bytes.
const FEATURES_MAX: usize = 64;
const FEATURE_BYTES_MAX: usize = 64;
/// Longest stored version of a spoke or of its Kubernetes, in characters.
const VERSION_CHARACTERS_MAX: usize = 80;

fn version_word(text: &str) -> String {
    text.chars().take(VERSION_CHARACTERS_MAX).collect()
}
