//! The greeting of a session: what a spoke reports when it connects, how much of it is plausible, and the answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use attest_common::basics::ids::{ClusterId, DestinationKey, Digest};
use attest_common::session::frame::FRAME_BYTES_MAX;
use attest_common::session::message::{Hello, Seen, ToHub, ToHubBody, ToSpokeBody, Welcome};
use attest_common::session::negotiate;
use attest_common::trust::policy;
use attest_runtime::frames::{self, FrameReader};
use quinn::{Connection, SendStream};

use super::error::LinkError;
use super::limits::{HELLO_DESTINATIONS_MAX, POLICY_BYTES_MAX};
use super::push::to_spoke;
use super::shared::{Shared, greeting_timeout};
use crate::core::blocking::blocking;
use crate::core::position::{
    ReportedPolicy, SpokePosition, is_from_unknown_epoch, is_overtaken, is_plausible,
};
use crate::core::store::records::{self, ClusterRecord, PolicyRecord};

/// How many reconnects a second the hub likes to see.
const RECONNECTS_PER_SECOND: u64 = 500;
/// Narrowest window over which spokes spread their reconnects.
const RECONNECT_WINDOW_MIN_MS: u64 = 1_000;

/// A spoke that has introduced itself, and its control stream.
pub(super) struct Greeting {
    pub(super) control: SendStream,
    pub(super) reader: FrameReader,
    pub(super) held: HeldBy,
    pub(super) nonce: String,
    /// True when the trust policy that it reports is not the one that was known.
    pub(super) is_policy_new: bool,
}

/// Reads the greeting of a spoke and answers it.
///
/// # Errors
/// When it is not acceptable, or not complete in time.
pub(super) async fn greet(
    shared: &Arc<Shared>,
    cluster: &ClusterId,
    connection: &Connection,
) -> Result<Greeting, LinkError> {
    let greeting = tokio::time::timeout(greeting_timeout(), greeting(shared, cluster, connection));
    greeting.await.map_err(|_| LinkError::Silent)?
}

async fn greeting(
    shared: &Arc<Shared>,
    cluster: &ClusterId,
    connection: &Connection,
) -> Result<Greeting, LinkError> {
    let (mut control, receive) = connection.accept_bi().await.map_err(LinkError::Connection)?;
    let mut reader = FrameReader::new(receive, FRAME_BYTES_MAX);
    let first: ToHub = reader.next().await?.ok_or(LinkError::Silent)?;
    let Some(ToHubBody::Hello(hello)) = first.body else {
        return Err(LinkError::HelloInvalid("the first message"));
    };
    let (claimed, nonce) = read_hello(cluster, &hello)?;
    let protocol = negotiate(hello.protocol_min, hello.protocol_max)
        .ok_or(LinkError::ProtocolVersion(hello.protocol_min, hello.protocol_max))?;
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

fn reconnect_window_ms(connected: usize) -> u64 {
    (connected as u64 * 1_000 / RECONNECTS_PER_SECOND).max(RECONNECT_WINDOW_MIN_MS)
}

/// What a spoke holds, by destination.
type HeldBy = BTreeMap<DestinationKey, SpokePosition>;

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
        let Seen { epoch, sequence, .. } = *seen;
        held.insert(destination, SpokePosition { epoch, sequence, digest });
    }
    Ok((held, data_encoding::HEXLOWER.encode(&hello.nonce)))
}

/// What a spoke holds, without what no hub of this fleet can have ordered. When some of it is of an epoch that this
/// hub has forgotten, an epoch above that is durable before this returns.
async fn plausible(
    shared: &Arc<Shared>,
    cluster: &ClusterId,
    claimed: HeldBy,
) -> Result<HeldBy, LinkError> {
    let core = &shared.core;
    let epoch = core.epoch.current();
    let (mut held, lies): (HeldBy, HeldBy) =
        claimed.into_iter().partition(|(destination, held)| {
            is_plausible(*held, core.fleet.head(destination).as_deref(), epoch)
        });
    if let Some((destination, held)) = lies.first_key_value() {
        tracing::warn!(
            destination = destination.to_string(),
            reason = "HeldUnbelievable",
            epoch = held.epoch,
            sequence = held.sequence,
            destinations = lies.len(),
            "A spoke says it holds numbers that no hub has come to; they are not believed"
        );
    }
    let is_beyond = |destination: &DestinationKey, held: &SpokePosition| {
        let head = core.fleet.head(destination);
        is_from_unknown_epoch(*held, head.as_deref(), epoch)
            || head.is_some_and(|head| is_overtaken(&head, *held))
    };
    if held.iter().any(|(destination, held)| is_beyond(destination, held))
        && !shared.claims.allows(cluster, Instant::now())
    {
        tracing::warn!(
            cluster = cluster.as_str(),
            reason = "HeldTooOften",
            "A spoke says again and again that it holds what this hub has forgotten; it is not believed for now"
        );
        held.retain(|destination, held| !is_beyond(destination, held));
    }
    let forgotten = held.iter().filter(|(destination, held)| {
        is_from_unknown_epoch(**held, core.fleet.head(destination).as_deref(), epoch)
    });
    if let Some(seen) = forgotten.map(|(_, held)| held.epoch).max() {
        blocking(core, move |core| core.epoch.raise_above(&core.records, seen)).await?;
    }
    Ok(held)
}

/// Keeps what a spoke reports of itself: versions, and its policy as a hint. Returns whether the policy is new. What
/// changes too often counts all the same, but is durable only with a later greeting: a hub that starts is greeted by
/// all.
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
        let spec: Option<policy::Spec> = attest_common::basics::json::document(&hello.policy).ok();
        let hint = spec.and_then(|spec| {
            let policy = spec.load().ok()?;
            Some(ReportedPolicy { spec, policy })
        });
        let mut is_news = false;
        if let Some(hint) = hint {
            let policy = PolicyRecord { cluster: cluster.clone(), spec: hint.spec.clone() };
            let former: Option<PolicyRecord> = core.records.get(cluster.as_str())?;
            if former.as_ref() != Some(&policy) {
                changes.push(records::put(&policy));
            }
            is_news =
                core.fleet.reported_policy(&cluster).is_none_or(|former| former.spec != hint.spec);
            core.fleet.set_reported_policy(&cluster, hint);
        } else {
            tracing::warn!(
                cluster = cluster.as_str(),
                reason = "TrustPolicyInvalid",
                "A spoke says no policy that this hub can read; its former one is used"
            );
        }
        if changes.is_empty() {
            return Ok(is_news);
        }
        if shared.introductions.allows(&cluster, Instant::now()) {
            core.records.commit("introduction", &changes)?;
            guard.note(&record);
        } else {
            tracing::warn!(
                cluster = cluster.as_str(),
                reason = "IntroducedTooOften",
                "A spoke says something new of itself again and again; it is not written for now"
            );
        }
        Ok(is_news)
    })
    .await
}
