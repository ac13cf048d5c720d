//! The action that one object needs, from its desired, confirmed and observed state. Pure.
//!
//! An object whose confirmed pair holds needs nothing, and costs no request.

use std::time::{Duration, Instant};

use attest_common::basics::backoff::Backoff;
use attest_common::basics::ids::Digest;
use attest_common::record::custody::Confirmed;

/// Most heals of one object in a burst; after that they are spaced.
pub const HEALS_AT_ONCE_MAX: u32 = 300;
/// Heals of one object after which it is reported as contested.
pub const HEALS_CONTESTED_MIN: u32 = 20;
/// Time between heals of an object that another writer keeps changing.
pub const HEAL_SPACE: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5 * 60));
/// Without a heal for this long, an object is no longer contested.
pub const HEAL_FORGET_AFTER: Duration = Duration::from_secs(6 * 60);

/// Observed state of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Live {
    /// Nothing yet.
    Unknown,
    Present {
        uid: String,
        /// Digest of the projection on our fields.
        projected: Digest,
        /// The same with the whole value of fields that are empty in the desired object, as spokes before
        /// version 0.2 recorded it. Absent where it does not differ.
        whole: Option<Digest>,
        /// It is being deleted and waits for its finalizers, which leave it one by one.
        leaving: bool,
        /// The resourceVersion as a number; 0 when it is not one.
        version: u64,
    },
    /// Deleted, as seen by a watch event.
    Gone { uid: String },
    /// Not in the list that a watch began with; an object created concurrently may be missing there too.
    NotListed,
}

/// Action that an object needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    Nothing,
    /// Not applied yet as now desired.
    Apply,
    /// Was as desired, and another writer changed or deleted it.
    Heal,
    /// To be read first.
    Look,
    /// Confirmed before a restart, and not observed since.
    Wait,
}

/// Returns the action that an object needs. The caller decides whether drift is reverted or only reported.
pub fn need(desired: Digest, confirmed: Option<&Confirmed>, live: &Live) -> Need {
    let Some(confirmed) = confirmed.filter(|pair| pair.desired == desired) else {
        return Need::Apply;
    };
    match live {
        Live::Unknown => Need::Wait,
        Live::Gone { .. } => Need::Heal,
        Live::NotListed => Need::Look,
        Live::Present { uid, projected, whole, leaving, .. } => {
            let as_recorded =
                *projected == confirmed.projected || *whole == Some(confirmed.projected);
            let holds = *uid == confirmed.uid && (as_recorded || *leaving);
            if holds { Need::Nothing } else { Need::Heal }
        }
    }
}

/// Returns whether two observations show the same UID and the same values of our fields.
pub fn is_same(one: &Live, other: &Live) -> bool {
    match (one, other) {
        (
            Live::Present { uid, projected, .. },
            Live::Present { uid: other_uid, projected: other_projected, .. },
        ) => uid == other_uid && projected == other_projected,
        (one, other) => one == other,
    }
}

/// Returns whether an observation is not older than the known state.
pub fn is_news(known: &Live, said: &Live) -> bool {
    match (known, said) {
        (Live::Present { version: known, .. }, Live::Present { version, .. }) => {
            *version == 0 || version >= known
        }
        // An object that was created again has another UID than the one that was deleted.
        (Live::Present { uid: known, .. }, Live::Gone { uid }) => uid == known,
        // A UID is never reused: an observation that still shows it is older than the deletion.
        (Live::Gone { uid: known }, Live::Present { uid, .. }) => uid != known,
        (Live::Present { .. } | Live::Unknown | Live::Gone { .. } | Live::NotListed, _) => true,
    }
}

/// Recent heals of an object: a conflict with another controller must not become a flood of writes.
#[derive(Clone, Copy, Debug, Default)]
pub struct HealBudget {
    used: u32,
    last: Option<Instant>,
}

impl HealBudget {
    /// Returns when the next heal may happen; now or earlier means immediately.
    pub fn ready_at(&self, now: Instant) -> Instant {
        let Some(last) = self.last else { return now };
        if now.duration_since(last) >= HEAL_FORGET_AFTER || self.used < HEALS_AT_ONCE_MAX {
            return now;
        }
        last + HEAL_SPACE.delay_max(self.used - HEALS_AT_ONCE_MAX)
    }

    /// Notes a heal.
    pub fn spend(&mut self, now: Instant) {
        let forgotten = self.last.is_some_and(|at| now.duration_since(at) >= HEAL_FORGET_AFTER);
        self.used = if forgotten { 1 } else { self.used.saturating_add(1) };
        self.last = Some(now);
    }

    /// Returns whether the object was healed so often that it is reported.
    pub fn is_contested(&self) -> bool {
        self.used >= HEALS_CONTESTED_MIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn confirmed() -> Confirmed {
        Confirmed {
            desired: Digest::of(b"desired"),
            uid: "uid".to_owned(),
            projected: Digest::of(b"live"),
            rewritten: Vec::new(),
        }
    }

    fn present(uid: &str, projected: &[u8]) -> Live {
        Live::Present {
            uid: uid.to_owned(),
            projected: Digest::of(projected),
            whole: None,
            leaving: false,
            version: 5,
        }
    }

    #[test]
    fn an_object_that_was_confirmed_by_an_older_spoke_or_is_being_deleted_is_not_written() {
        let desired = Digest::of(b"desired");
        let observed = |whole: Option<&[u8]>, leaving| Live::Present {
            uid: "uid".to_owned(),
            projected: Digest::of(b"by today's rule"),
            whole: whole.map(Digest::of),
            leaving,
            version: 5,
        };

        for (live, expected) in [
            (observed(Some(b"live"), false), Need::Nothing),
            (observed(Some(b"edited"), false), Need::Heal),
            (observed(None, false), Need::Heal),
            (observed(None, true), Need::Nothing),
        ] {
            assert_eq!(need(desired, Some(&confirmed()), &live), expected, "{live:?}");
        }
    }

    #[test]
    fn a_confirmed_object_needs_nothing_until_its_uid_or_our_fields_change() {
        let desired = Digest::of(b"desired");
        let pair = confirmed();
        for (live, expected) in [
            (present("uid", b"live"), Need::Nothing),
            (present("uid", b"edited"), Need::Heal),
            (present("other", b"live"), Need::Heal),
            (Live::Gone { uid: "uid".to_owned() }, Need::Heal),
            (Live::NotListed, Need::Look),
            (Live::Unknown, Need::Wait),
        ] {
            assert_eq!(need(desired, Some(&pair), &live), expected, "{live:?}");
        }
    }

    #[test]
    fn an_object_that_is_to_be_different_or_was_never_applied_is_applied() {
        let live = present("uid", b"live");

        assert_eq!(need(Digest::of(b"new"), Some(&confirmed()), &live), Need::Apply);
        assert_eq!(need(Digest::of(b"desired"), None, &live), Need::Apply);
    }

    #[test]
    fn an_event_older_than_our_own_apply_is_no_news() {
        let known = present("uid", b"live");

        let at = |version| Live::Present {
            uid: "uid".to_owned(),
            projected: Digest::of(b"live"),
            whole: None,
            leaving: false,
            version,
        };

        assert!(!is_news(&known, &at(4)));
        assert!(is_news(&known, &at(5)));
        assert!(is_news(&known, &at(6)));
        assert!(is_news(&known, &Live::Gone { uid: "uid".to_owned() }));
        assert!(!is_news(&known, &Live::Gone { uid: "former".to_owned() }));

        let gone = Live::Gone { uid: "uid".to_owned() };
        assert!(!is_news(&gone, &at(9)));
        assert!(is_news(&gone, &present("other", b"live")));
    }

    #[test]
    fn a_contested_object_is_put_back_at_once_many_times_and_then_ever_more_rarely() {
        let start = Instant::now();
        let mut budget = HealBudget::default();
        for _ in 0..HEALS_AT_ONCE_MAX {
            assert!(budget.ready_at(start) <= start);
            budget.spend(start);
        }

        assert_eq!(budget.ready_at(start), start + HEAL_SPACE.base);
        budget.spend(start);
        assert_eq!(budget.ready_at(start), start + 2 * HEAL_SPACE.base);
        for _ in 0..40 {
            budget.spend(start);
        }
        assert_eq!(budget.ready_at(start), start + HEAL_SPACE.max);
        let later = start + HEAL_FORGET_AFTER;
        assert!(budget.ready_at(later) <= later);
    }
}
