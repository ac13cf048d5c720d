//! State that spokes report: the directives they hold and their trust policy. Pure rules about positions.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use attest_common::basics::ids::{Digest, Timestamp};
use attest_common::trust::policy::{self, Policy};

use super::store::records::LedgerEntry;

/// Most epochs that a spoke may be ahead of this hub: starts between a backup and the loss. A greater one is ignored,
/// so that a forged report consumes at most this many of 2^63 epochs.
pub(crate) const EPOCHS_AHEAD_MAX: u64 = 1 << 16;
/// Most sequences that a spoke may be ahead of its ledger: directives between a backup and the loss.
pub(crate) const SEQUENCES_AHEAD_MAX: u64 = 1 << 20;

/// Most generations that a spoke may be ahead of this hub: rollouts between a backup and the loss.
pub(crate) const GENERATIONS_AHEAD_MAX: u64 = 1 << 20;
/// Most attempts that a spoke may be ahead of this hub.
pub(crate) const ATTEMPTS_AHEAD_MAX: u32 = 1 << 10;
/// Highest sequence of a directive: the highest integer of a signed document.
pub(crate) const SEQUENCE_MAX: u64 = i64::MAX as u64;

/// Returns the sequence after the last one of a ledger and the one that its spoke holds, which may be above it. `None`
/// when the hub's key has used all of them.
pub(crate) fn next_sequence(last: u64, seen: u64) -> Option<u64> {
    last.max(seen).checked_add(1).filter(|next| *next <= SEQUENCE_MAX)
}

/// The trust policy that a cluster reports, loaded. Not authoritative: the spoke enforces its own copy.
#[derive(Clone, Debug)]
pub struct ReportedPolicy {
    pub spec: policy::Spec,
    pub policy: Policy,
    /// Features that the spoke announced with it.
    pub features: BTreeSet<String>,
}

/// The directive that a spoke holds for a destination, as far as the hub knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpokePosition {
    pub epoch: u64,
    pub sequence: u64,
    pub digest: Option<Digest>,
    /// Rollout number of the held directive; 0 when it is not known.
    pub generation: u64,
    /// Attempt of the held directive.
    pub attempt: u32,
}

/// Returns whether `head` must be issued again with a new sequence for the spoke that holds `held`.
pub(crate) fn needs_reissue(head: &LedgerEntry, held: SpokePosition, now: Timestamp) -> bool {
    let expired = now >= head.expires_at && held.sequence < head.sequence;
    expired || is_overtaken(head, held)
}

/// Returns whether a spoke that holds `held` would refuse `head`, because this hub was restored from a backup.
pub(crate) fn is_overtaken(head: &LedgerEntry, held: SpokePosition) -> bool {
    match held.sequence.cmp(&head.sequence) {
        Ordering::Greater => true,
        Ordering::Equal => held.digest.is_some_and(|digest| digest != head.digest),
        Ordering::Less => held.epoch > head.epoch,
    }
}

/// Returns whether `held` can be what a backup of this hub has forgotten, and not a value forged to exhaust the
/// sequence space.
pub(crate) fn is_plausible(held: SpokePosition, head: Option<&LedgerEntry>, epoch: u64) -> bool {
    let known = head.map_or(0, |head| head.sequence);
    held.epoch <= epoch.saturating_add(EPOCHS_AHEAD_MAX)
        && held.sequence <= known.saturating_add(SEQUENCES_AHEAD_MAX)
}

/// Returns whether a spoke holds what this hub cannot have signed in its own epoch: an earlier hub had an epoch
/// as high or higher, and this one must go above it.
pub(crate) fn is_from_unknown_epoch(
    held: SpokePosition,
    head: Option<&LedgerEntry>,
    epoch: u64,
) -> bool {
    held.epoch > epoch || (held.epoch == epoch && head.is_some_and(|h| is_overtaken(h, held)))
}
