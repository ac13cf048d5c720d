//! Updates of a record while an admission is carried out, and the match of a record with an order. Pure.

use std::collections::{BTreeMap, BTreeSet};

use attest_common::basics::ids::Digest;
use attest_common::documents::manifest::ObjectKey;
use attest_common::record::{Held, Owned};

use crate::ledger::records::{ConfirmedPairs, Entry};
use crate::rollout::Transition;

/// Changes of a record: UIDs, confirmed pairs, objects that leave the inventory, the rollout.
#[derive(Debug)]
pub(super) struct Update {
    /// The update applies only to a record of this plan.
    pub(super) held: Held,
    pub(super) known: BTreeMap<ObjectKey, Learnt>,
    pub(super) pairs: ConfirmedPairs,
    /// Objects that leave the inventory.
    pub(super) gone: BTreeSet<ObjectKey>,
    pub(super) rollback: RollbackUpdate,
    pub(super) transition: Option<Transition>,
    /// Most good plans that are kept before the newest.
    pub(super) good_plans_before_max: u32,
}

/// Treatment of the rollback point of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RollbackUpdate {
    Keep,
    GiveUp,
}

impl Update {
    /// Returns the updated entry; `None` if nothing changes.
    pub(super) fn apply(&self, before: &Entry) -> Option<Entry> {
        let mut entry = before.clone();
        if self.rollback == RollbackUpdate::GiveUp {
            entry.record.rollback_point = None;
        }
        entry.record.inventory.retain(|owned| !self.gone.contains(&owned.key));
        learn(&mut entry.record.inventory, &self.known);
        // Objects of the previous plan alone are still as confirmed.
        let former = std::mem::take(&mut entry.confirmed);
        if self.rollback == RollbackUpdate::Keep {
            entry.confirmed = former;
        }
        entry.confirmed.extend(self.pairs.clone());
        if let Some(transition) = &self.transition {
            transition.apply(&mut entry.record, self.good_plans_before_max);
        }
        (entry != *before).then_some(entry)
    }
}

/// New facts of an object in the inventory.
#[derive(Debug)]
pub(super) struct Learnt {
    pub(super) uid: Option<String>,
    pub(super) preexisting: bool,
    /// The write that is known.
    pub(super) written: Option<Written>,
}

/// Facts of an object as it was written.
#[derive(Clone, Debug)]
pub(super) struct Written {
    /// API version.
    pub(super) version: String,
    /// It is released, and not deleted.
    pub(super) orphan: bool,
}

/// Adds the facts to an inventory.
fn learn(inventory: &mut [Owned], known: &BTreeMap<ObjectKey, Learnt>) {
    for owned in inventory {
        let Some(Learnt { uid, preexisting, written }) = known.get(&owned.key) else { continue };
        owned.uid.clone_from(uid);
        owned.preexisting = *preexisting;
        // An object is deleted by the version that wrote it last.
        if let Some(Written { version, orphan }) = written {
            owned.version.clone_from(version);
            owned.orphan = *orphan;
        }
    }
}

/// Returns whether the record is of this order: not of a newer one, and not reverted. Without a plan, the
/// order is a removal.
pub(super) fn is_of(entry: Option<&Entry>, held: Option<&Held>, directive: Digest) -> bool {
    entry.is_some_and(|entry| {
        entry.record.held.as_ref() == held && entry.directive_digest() == Some(directive)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::records::tests::object_key;

    #[test]
    fn the_inventory_follows_the_version_that_an_object_was_written_by() {
        let key = object_key("Widget", "w");
        let (uid, version) = (Some("uid".to_owned()), "v1beta1".to_owned());
        let before = Owned {
            key: key.clone(),
            version,
            uid: uid.clone(),
            preexisting: false,
            orphan: true,
            wave: 0,
        };
        let after = |version: Option<&str>| {
            let mut inventory = [before.clone()];
            let written =
                version.map(|version| Written { version: version.to_owned(), orphan: false });
            let learnt = Learnt { uid: uid.clone(), preexisting: false, written };
            learn(&mut inventory, &[(key.clone(), learnt)].into());
            inventory.map(|owned| (owned.version, owned.orphan))
        };

        assert_eq!(after(None), [("v1beta1".to_owned(), true)]);
        assert_eq!(after(Some("v1")), [("v1".to_owned(), false)]);
    }
}
