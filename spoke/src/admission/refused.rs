//! A refused push that is judged again, and the rules when. Pure.

use std::time::{Duration, Instant};

use attest_common::basics::backoff::{Backoff, Jitter};
use attest_common::basics::ids::Digest;
use attest_common::basics::reason::Reason;
use attest_common::documents::manifest::ObjectKey;

use super::gate::PushOrder;

/// Delay before a refused push is judged again; at most five minutes.
pub(super) const REEVALUATION: Backoff =
    Backoff::new(Duration::from_secs(10), Duration::from_secs(5 * 60))
        .with_jitter(Jitter::Early { percent_max: 20 });
/// Shortest time between two judgements of one refused push that changes in the cluster cause.
pub(super) const REEVALUATION_EVERY: Duration = Duration::from_secs(1);

/// Occasion of a judgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// The hub has sent the push; `attempt` is the number of earlier failures.
    Pushed { attempt: u32 },
    /// The push was refused before.
    Again,
}

impl Judgement {
    pub(super) fn attempt(self) -> u32 {
        match self {
            Self::Pushed { attempt } => attempt,
            Self::Again => 0,
        }
    }
}

/// A refused push.
#[derive(Clone, Debug)]
pub(super) struct RefusedPush {
    pub(super) order: PushOrder,
    /// Directive envelope; absent if it must be requested from the hub.
    pub(super) directive: Option<Vec<u8>>,
    pub(super) plan: Option<Digest>,
    /// The object that belongs to another writer, if that is the reason.
    pub(super) obstacle: Option<ObjectKey>,
    /// Message of the refusal; absent if the worker has refused it.
    pub(super) text: Option<String>,
    /// When it is judged again.
    pub(super) at: Instant,
    pub(super) judged: Instant,
    pub(super) attempts: u32,
}

impl RefusedPush {
    pub(super) fn new(order: PushOrder, directive: Option<Vec<u8>>, plan: Option<Digest>) -> Self {
        let now = Instant::now();
        let (obstacle, text) = (None, None);
        Self { order, directive, plan, obstacle, text, at: now, judged: now, attempts: 0 }
    }

    /// Judges it again at `now`, or a moment later if it was judged just now.
    pub(super) fn hasten(&mut self, now: Instant) {
        self.at = self.at.min(now.max(self.judged + REEVALUATION_EVERY));
    }
}

/// Returns whether a refusal may end without another document: what it is about changes in the cluster or in its policy.
pub(super) fn is_judged_again(reason: Reason) -> bool {
    !matches!(
        reason,
        Reason::AudienceMismatch
            | Reason::BlobDigest
            | Reason::ContentDigest
            | Reason::Expired
            | Reason::GenerationRegressed
            | Reason::PlanAborted
            | Reason::PlanDigest
            | Reason::PlanMismatch
            | Reason::RollbackNotAllowed
            | Reason::SequenceEquivocation
            | Reason::SequenceReplayed
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_another_document_can_change_is_not_judged_again() {
        for (reason, expected) in [
            (Reason::OwnedByOther, true),
            (Reason::FieldConflict, true),
            (Reason::KindNotAllowed, true),
            (Reason::KindUnknown, true),
            (Reason::UntrustedKey, true),
            (Reason::Limit, true),
            (Reason::Expired, false),
            (Reason::SequenceReplayed, false),
            (Reason::ContentDigest, false),
            (Reason::PlanAborted, false),
        ] {
            assert_eq!(is_judged_again(reason), expected, "{reason:?}");
        }
    }
}
