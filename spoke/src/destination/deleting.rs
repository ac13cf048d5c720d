//! Which objects of an inventory are deleted next, for a removal and for a prune. Pure; what may be deleted is proven by `Authority`.

use std::collections::BTreeMap;
use std::time::Instant;

use attest_common::basics::text::error_chain;
use attest_common::documents::manifest::ObjectKey;
use attest_common::objects::kinds::{Kinds, apply_rank};
use attest_common::record::Owned;

use super::command::{By, Commands, Deletion, Request};
use super::objects::Failure;
use super::report::Obstacle;
use crate::cluster::apply::{ApplyError, Deleted};

/// Objects to delete, highest rank first.
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
    /// Absent when the kind is not known.
    plural: Option<String>,
    uid: Option<String>,
    rank: u8,
    busy: bool,
    /// Its deletion was accepted; what it waits for.
    leaving: Option<String>,
    failure: Option<Failure>,
}

impl Deleting {
    /// What to delete of `inventory`, and what only leaves it.
    pub(super) fn of(inventory: &[Owned], kinds: &Kinds) -> Self {
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
                rank: apply_rank(&key.group, &key.kind),
                busy: false,
                leaving: None,
                failure: None,
            };
            deleting.items.insert(key.clone(), item);
        }
        deleting
    }

    /// The objects to delete now, at most `room`, and when to ask again. Lower ranks wait for what is
    /// still leaving: what they run may be what it waits for. What fails holds nobody up.
    pub(super) fn steps(&self, now: Instant, room: usize) -> (Vec<ObjectKey>, Option<Instant>) {
        let waiting = |item: &Item| item.failure.as_ref().is_some_and(|f| f.retry_at > now);
        let holds = |item: &&Item| item.leaving.is_some() || !waiting(item);
        let rank = self.items.values().filter(holds).map(|item| item.rank).max();
        let ready = self
            .items
            .iter()
            .filter(|(_, item)| !item.busy && !waiting(item) && Some(item.rank) == rank);
        let wake = self.items.values().filter(|item| waiting(item));
        let wake = wake.filter_map(|item| item.failure.as_ref().map(|f| f.retry_at)).min();
        (ready.map(|(key, _)| key.clone()).take(room).collect(), wake)
    }

    /// Begins the deletions that are due. Returns when to ask again.
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

    /// Takes in the answer about one object. True when it is gone.
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

    /// What to tell people about: first what fails.
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

    /// Requests that were dropped may or may not have been carried out; they are made again.
    pub(super) fn forget_requests(&mut self) {
        self.items.values_mut().for_each(|item| item.busy = false);
    }
}

/// Kinds that are released, never deleted: what they hold cannot be brought back.
pub(super) fn is_never_deleted(owned: &Owned) -> bool {
    let ObjectKey { group, kind, .. } = &owned.key;
    owned.met
        || matches!(
            (group.as_str(), kind.as_str()),
            ("", "PersistentVolumeClaim" | "Namespace")
                | ("apiextensions.k8s.io", "CustomResourceDefinition")
        )
}

/// Inventories smaller than this may lose any share in one update.
pub(super) const PRUNE_GUARD_OBJECTS_MIN: usize = 10;

/// True when one update would delete more than the policy's share of the inventory.
pub(super) fn prune_is_too_much(to_delete: usize, inventory: usize, percent_max: u32) -> bool {
    inventory >= PRUNE_GUARD_OBJECTS_MIN && to_delete * 100 > inventory * percent_max as usize
}

#[cfg(test)]
mod tests;
