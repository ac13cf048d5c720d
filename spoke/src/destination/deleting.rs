//! Order of the deletions of a removal or a prune. Pure; `Authority` proves that an object may be deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use attest_common::basics::text::error_chain;
use attest_common::documents::manifest::ObjectKey;
use attest_common::objects::kinds::{Kinds, apply_rank, is_irreplaceable};
use attest_common::record::Owned;
use attest_common::trust::policy::PRUNE_GUARD_OBJECTS_MIN;

use super::command::{By, Commands, Deletion, Request};
use super::objects::Failure;
use super::report::Obstacle;
use crate::cluster::apply::{ApplyError, Deleted};

/// Objects to delete, highest wave and rank first.
#[derive(Clone, Debug)]
pub(super) struct Deleting {
    pub(super) items: BTreeMap<ObjectKey, Item>,
    /// Objects that leave the inventory, deleted or released.
    pub(super) done: Vec<ObjectKey>,
}

/// One object to delete.
#[derive(Clone, Debug)]
pub(super) struct Item {
    version: String,
    /// Absent if the kind is not known.
    plural: Option<String>,
    uid: Option<String>,
    /// Wave and rank.
    order: (i16, u8),
    busy: bool,
    /// Set once its deletion was accepted: the reason that it still exists.
    leaving: Option<String>,
    failure: Option<Failure>,
}

impl Deleting {
    /// Splits `inventory` into objects to delete and objects to release.
    pub(super) fn of<'a>(inventory: impl Iterator<Item = &'a Owned>, kinds: &Kinds) -> Self {
        let mut deleting = Self { items: BTreeMap::new(), done: Vec::new() };
        for owned in inventory {
            let key = &owned.key;
            if is_never_deleted(owned) {
                deleting.done.push(key.clone());
                continue;
            }
            let item = Item {
                version: owned.version.clone(),
                plural: kinds.get(&key.group, &key.kind).map(|kind| kind.plural.clone()),
                uid: owned.uid.clone(),
                order: (owned.wave, apply_rank(&key.group, &key.kind)),
                busy: false,
                leaving: None,
                failure: None,
            };
            deleting.items.insert(key.clone(), item);
        }
        deleting
    }

    /// Leaves out objects that are handed over to another destination, unless their deletion has begun.
    pub(super) fn leave(&mut self, claimed: &BTreeSet<ObjectKey>) {
        self.items
            .retain(|key, item| item.busy || item.leaving.is_some() || !claimed.contains(key));
    }

    /// Returns the objects to delete now, at most `room`, and when the next is due. Lower waves and ranks wait for
    /// objects that still exist after their deletion, which may depend on them. A failure delays no other object.
    pub(super) fn steps(&self, now: Instant, room: usize) -> (Vec<ObjectKey>, Option<Instant>) {
        let waiting = |item: &Item| item.failure.as_ref().is_some_and(|f| f.retry_at > now);
        let holds = |item: &&Item| item.leaving.is_some() || !waiting(item);
        let order = self.items.values().filter(holds).map(|item| item.order).max();
        let ready = self
            .items
            .iter()
            .filter(|(_, item)| !item.busy && !waiting(item) && Some(item.order) == order);
        let wake = self.items.values().filter(|item| waiting(item));
        let wake = wake.filter_map(|item| item.failure.as_ref().map(|f| f.retry_at)).min();
        (ready.map(|(key, _)| key.clone()).take(room).collect(), wake)
    }

    /// Begins due deletions. Returns when the next one is due.
    pub(super) fn advance(
        &mut self,
        by: &By,
        now: Instant,
        commands: &mut Commands,
    ) -> Option<Instant> {
        let (keys, wake) = self.steps(now, commands.room());
        for key in keys {
            let Some(item) = self.items.get_mut(&key) else { continue };
            item.busy = true;
            commands.request(Request::Delete(Box::new(Deletion {
                key,
                version: item.version.clone(),
                plural: item.plural.clone(),
                uid: item.uid.clone(),
                by: by.clone(),
            })));
        }
        wake
    }

    /// Processes the result of one deletion. Returns whether the object no longer exists.
    pub(super) fn finish(
        &mut self,
        key: &ObjectKey,
        result: Result<Deleted, ApplyError>,
        now: Instant,
    ) -> bool {
        let Some(item) = self.items.get_mut(key) else { return false };
        item.busy = false;
        let former = item.failure.as_ref();
        match result {
            Ok(Deleted::Gone) => {
                self.items.remove(key);
                self.done.push(key.clone());
                return true;
            }
            Ok(Deleted::Leaving(until)) => {
                item.failure = Some(Failure::leaving(former, until.clone(), now));
                item.leaving = Some(until);
            }
            Err(error) => {
                let text = error_chain(&error);
                item.failure = Some(Failure::after(former, error.reason(), text, now));
            }
        }
        false
    }

    /// Returns the reason that objects remain, failures first.
    pub(super) fn obstacle(&self) -> Option<Obstacle<'_>> {
        let failing = self.items.iter().find_map(|(key, item)| {
            let failure = item.failure.as_ref().filter(|failure| !failure.quiet)?;
            Some(Obstacle::Failing(key, failure))
        });
        let leaving = || {
            self.items
                .iter()
                .find_map(|(key, item)| Some(Obstacle::Leaving(key, item.leaving.as_deref()?)))
        };
        failing.or_else(leaving)
    }

    /// Forgets requests that were dropped. They may have been carried out, and are made again.
    pub(super) fn forget_requests(&mut self) {
        self.items.values_mut().for_each(|item| item.busy = false);
    }
}

/// Returns whether an object is released and never deleted: it existed before, its author asks for it, or its content
/// cannot be restored.
pub(super) fn is_never_deleted(owned: &Owned) -> bool {
    owned.preexisting || owned.orphan || is_irreplaceable(&owned.key)
}

/// Returns whether one update would delete more than the policy's share of the inventory. A share of a small inventory
/// is no measure, except for a policy that allows no deletion at all.
pub(super) fn prune_is_too_much(to_delete: usize, inventory: usize, percent_max: u32) -> bool {
    let counts = inventory >= PRUNE_GUARD_OBJECTS_MIN || percent_max == 0;
    counts && to_delete * 100 > inventory * percent_max as usize
}

#[cfg(test)]
mod tests;
