//! What the hub signs: `Plan`, `Directive` and `Sync`. Documents only; whether to believe them is `verify`.
//!
//! A Plan says what runs and is shared by every destination that runs the same. A Directive says
//! where and how far, is small, and the newest replaces the older. A Sync is the heartbeat that
//! tells a spoke which directives are newest. Unknown fields are refused in all three: an old
//! spoke must not skip a new restriction.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::basics::ids::{ClusterId, Digest, Name, Timestamp};
use crate::basics::keys::KeyId;
use crate::basics::terms::Mode;
use crate::documents::release::NamespaceRule;

/// Longest time between a directive's issue and its expiry.
pub const DIRECTIVE_LIFETIME_MAX_MS: i64 = 24 * 60 * 60 * 1000;
/// Longest time between a sync's issue and its expiry.
pub const SYNC_LIFETIME_MAX_MS: i64 = 10 * 60 * 1000;
/// Most receipts a plan may name.
pub const RECEIPTS_MAX: usize = 64;
/// Most heads a sync may list.
pub const HEADS_MAX: usize = 4_096;
/// The cap that lets a destination go all the way.
pub const CAP_FULL_PERCENT: u32 = 100;

/// What runs at a destination. Its digest is the SHA-256 of its signed payload bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Plan {
    pub v: u32,
    pub application: Name,
    pub release: SignedBlob,
    pub render: String,
    pub content: ContentBlob,
    pub receipts: Vec<SignedBlob>,
    pub namespace: NamespaceRule,
    pub policy: RequestedPolicy,
    pub sync: SyncPolicy,
    pub strategy: Strategy,
    /// Checks to run around the rollout. Refused until a spoke knows how to confine them.
    #[serde(default)]
    pub hooks: Vec<Value>,
}

/// A signed document that travels beside the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SignedBlob {
    /// [`crate::basics::envelope::Opened::id`]: what was signed.
    pub id: Digest,
    /// SHA-256 of the envelope file: what travels.
    pub sha256: Digest,
    pub size: u64,
}

/// The rendering that travels beside the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ContentBlob {
    pub sha256: Digest,
    pub size: u64,
    pub objects: u64,
    pub media_type: String,
}

/// The verification policy that the application's owner requests. It can only tighten the cluster's policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RequestedPolicy {
    pub mode: Mode,
    #[serde(default)]
    pub required_attestations: BTreeSet<String>,
    /// Full key ids. Absent, every key of the policy counts; present and empty, none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trusted_keys: Option<BTreeSet<KeyId>>,
}

/// How the destination is kept in step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SyncPolicy {
    /// Delete objects of the inventory that the rendering no longer holds.
    #[serde(default)]
    pub prune: bool,
    /// Put drifted objects back at once; otherwise drift is reported.
    #[serde(default)]
    pub self_heal: bool,
    /// Take over existing objects where the local policy allows it too.
    #[serde(default)]
    pub adopt: bool,
}

/// How one destination moves to the plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "type")]
pub enum Strategy {
    /// The workload controllers' own rolling update.
    #[default]
    RollingUpdate,
}

/// Where a plan goes and how far. Level-triggered: only the newest counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Directive {
    pub v: u32,
    /// The one cluster that may act on this.
    pub cluster: ClusterId,
    pub application: Name,
    pub namespace: Name,
    /// Term of the hub that issued it; rises when a hub takes over from another or from a backup.
    pub epoch: u64,
    /// Rises by one with every directive of this destination.
    pub sequence: u64,
    /// Rollout number of the application.
    pub generation: u64,
    /// Try within the rollout.
    pub attempt: u32,
    pub operation: Operation,
    /// Exposure the spoke may reach by itself, 0 to 100.
    pub cap_percent: u32,
    /// SHA-256 of the plan's signed payload; absent for `Remove` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Digest>,
    pub issued_at: Timestamp,
    /// Limits admission only: what is already admitted is kept running.
    pub expires_at: Timestamp,
}

/// What a directive orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Move towards the plan, up to the cap.
    Progress,
    /// Abandon the rollout in favour of the plan named.
    Supersede,
    /// Return to the last good plan.
    Rollback,
    /// The plan is now the last good one; what only the former needed may go.
    Finalize,
    /// The rollout is over; keep what runs.
    Close,
    /// Take the application away from this destination.
    Remove,
}

/// Which directives are newest for one cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Sync {
    pub v: u32,
    pub cluster: ClusterId,
    pub epoch: u64,
    /// Rises with every sync to this cluster.
    pub counter: u64,
    /// The 16 bytes that the spoke sent when it connected, in hexadecimal.
    pub nonce: String,
    pub heads: Vec<Head>,
    pub issued_at: Timestamp,
    pub expires_at: Timestamp,
}

/// The newest directive of one destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Head {
    pub application: Name,
    pub namespace: Name,
    pub sequence: u64,
}

/// The bytes of a document to sign.
pub fn to_bytes<T: Serialize>(document: &T) -> Vec<u8> {
    // Derived serialisation of strings, numbers and lists has no way to fail.
    serde_json::to_vec(document).unwrap_or_default()
}
