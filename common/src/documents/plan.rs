//! Documents signed by the hub: `Plan`, `Directive` and `Sync`. `verify` has the rules for accepting them.
//!
//! A Plan describes the content and is shared by all destinations that run it. A Directive names the destination and
//! the extent; the newest replaces older ones. A Sync is the heartbeat that lists the newest directives. Unknown fields
//! are rejected in all three: an old spoke must not skip a new restriction.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::basics::ids::{ClusterId, Digest, Name, Timestamp};
use crate::basics::keys::KeyId;
use crate::basics::terms::Mode;
use crate::documents::release::NamespaceRule;

/// Longest time between issue and expiry of a directive, in milliseconds.
pub const DIRECTIVE_LIFETIME_MAX_MS: i64 = 24 * 60 * 60 * 1000;
/// Longest time between issue and expiry of a sync, in milliseconds.
pub const SYNC_LIFETIME_MAX_MS: i64 = 10 * 60 * 1000;
/// Most receipts in a plan.
pub const RECEIPTS_MAX: usize = 64;
/// Most heads in a sync.
pub const HEADS_MAX: usize = 4_096;
/// Longest soak of a directive, in milliseconds.
pub const SOAK_MAX_MS: u64 = 30 * 24 * 60 * 60 * 1000;
/// The cap of a complete rollout, in percent.
pub const CAP_FULL_PERCENT: u32 = 100;

/// The content of a destination. Its digest is the SHA-256 of its signed payload bytes.
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
    /// Checks around the rollout. Rejected: not supported yet.
    #[serde(default)]
    pub hooks: Vec<Value>,
}

/// A signed document that is sent with the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SignedBlob {
    /// [`crate::basics::envelope::Opened::id`], the identity of the signed document.
    pub id: Digest,
    /// SHA-256 of the envelope, as sent.
    pub sha256: Digest,
    pub size: u64,
}

/// The rendering that is sent with the plan.
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
    /// Full key ids. If absent, every key of the policy is valid; if empty, none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trusted_keys: Option<BTreeSet<KeyId>>,
}

/// Options of synchronisation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SyncPolicy {
    /// Delete objects of the inventory that the rendering no longer contains.
    #[serde(default)]
    pub prune: bool,
    /// Revert drift immediately; otherwise drift is only reported.
    #[serde(default)]
    pub self_heal: bool,
    /// Take over existing objects if the cluster's policy allows it too.
    #[serde(default)]
    pub adopt: bool,
}

/// Strategy by which a destination moves to the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "type")]
pub enum Strategy {
    /// Rolling update by the workload controllers. With braces, because serde ignores further fields of a unit variant.
    RollingUpdate {},
}

impl Default for Strategy {
    fn default() -> Self {
        Self::RollingUpdate {}
    }
}

/// Assigns a plan to a destination. Level-triggered: only the newest is in effect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Directive {
    pub v: u32,
    /// The only cluster that may act on the directive.
    pub cluster: ClusterId,
    pub application: Name,
    pub namespace: Name,
    /// Epoch of the hub that issued it. Rises with every start of a hub and after a restore from a backup.
    pub epoch: u64,
    /// Rises by one with every directive of this destination.
    pub sequence: u64,
    /// Rollout number of the application.
    pub generation: u64,
    /// Attempt within the rollout.
    pub attempt: u32,
    pub operation: Operation,
    /// Exposure that the spoke may reach on its own, 0 to 100.
    pub cap_percent: u32,
    /// SHA-256 of the plan's signed payload; absent for `Remove` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Digest>,
    /// Write every object that differs once, also without self-heal (S45). Only for spokes that announce
    /// [`FEATURE_REPAIR`](crate::session::FEATURE_REPAIR): others refuse the directive.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub repair: bool,
    /// Stage of the rollout. Shown only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<StageReference>,
    /// Time at target after which the spoke reports that the soak is reached, at most [`SOAK_MAX_MS`]. Absent for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soak_ms: Option<u64>,
    /// The soak stands still. What is being applied is completed, and failures still count.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// The component that makes the plan a good one.
    #[serde(default, skip_serializing_if = "FinalizedBy::is_spoke")]
    pub finalize: FinalizedBy,
    /// A plan that fails stays in place. Otherwise the spoke returns to the newest good plan.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_failed: bool,
    pub issued_at: Timestamp,
    /// Limits admission only: an admitted plan continues to run.
    pub expires_at: Timestamp,
}

impl Directive {
    /// Returns whether only a spoke that announces [`FEATURE_ROLLOUT`](crate::session::FEATURE_ROLLOUT) carries the
    /// directive out. Others refuse it.
    pub fn needs_rollout(&self) -> bool {
        let Self { operation, stage, soak_ms, paused, finalize, keep_failed, .. } = self;
        let is_first_form = matches!(operation, Operation::Progress | Operation::Remove);
        let has_fields = stage.is_some() || soak_ms.is_some() || *paused || *keep_failed;
        !is_first_form || has_fields || !finalize.is_spoke()
    }
}

/// A stage of a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct StageReference {
    /// Place among the stages of the rollout, from 0.
    pub index: u32,
    pub name: Name,
}

/// The component that makes a plan a good one: a plan to return to, after which objects are pruned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FinalizedBy {
    /// The spoke, as soon as everything is applied and healthy.
    #[default]
    #[serde(rename = "Local")]
    Spoke,
    /// The hub, by [`Operation::Finalize`].
    Hub,
}

impl FinalizedBy {
    /// Returns true for the spoke.
    pub fn is_spoke(&self) -> bool {
        *self == Self::Spoke
    }
}

/// Operation of a directive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Move towards the plan, up to the cap.
    Progress,
    /// Give up the plan in hand unless it is at target: a newer rollout has begun.
    Supersede,
    /// Return to this plan, which is one of the good plans of the destination.
    Rollback,
    /// Make the plan in hand a good one as soon as it is at target; then objects may be pruned.
    Finalize,
    /// Remove the application from the destination.
    Remove,
}

/// The newest directives of one cluster.
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

/// Returns the bytes of a document to sign.
pub fn to_bytes<T: Serialize>(document: &T) -> Vec<u8> {
    // Derived serialisation of strings, numbers and lists cannot fail.
    serde_json::to_vec(document).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strategy_of_a_later_version_is_refused() {
        let read = |text: &str| serde_json::from_str::<Strategy>(text).ok();

        assert_eq!(read(r#"{"type":"RollingUpdate"}"#), Some(Strategy::default()));
        assert_eq!(read(r#"{"type":"Canary"}"#), None);
        assert_eq!(read(r#"{"type":"RollingUpdate","weight":5}"#), None);
    }
}
