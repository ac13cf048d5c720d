//! Taking objects away: the one machine behind a removal and behind a prune. Decides what goes when; what may go is proven by `Authority`.

use std::collections::BTreeMap;
use std::time::Instant;

use attest_common::kinds::{self, Kinds};
use attest_common::manifest::ObjectKey;
use attest_common::record::Owned;
use attest_common::report::error_chain;

use super::state::Failure;
use super::{Done, Job};
use crate::apply::{self, ApplyError, Authority};
use crate::cluster::{ApiServer, object_path};

/// Objects to delete, highest rank first.
#[derive(Clone, Debug, Default)]
pub(super) struct Deleting {
    pub(super) items: BTreeMap<ObjectKey, Item>,
    /// Objects that leave the inventory, deleted or released.
    pub(super) done: Vec<ObjectKey>,
}

/// One object to delete.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) path: String,
    pub(super) uid: Option<String>,
    pub(super) rank: u8,
    pub(super) busy: bool,
    pub(super) failure: Option<Failure>,
}

impl Deleting {
    /// What to delete of `inventory`, and what only leaves it.
    pub(super) fn of(inventory: &[Owned], kinds: &Kinds) -> Self {
        let mut deleting = Self::default();
        for owned in inventory {
            let key = &owned.key;
            let kind = kinds.get(&key.group, &key.kind);
            let Some(kind) = kind.filter(|_| !is_never_deleted(owned)) else {
                deleting.done.push(key.clone());
                continue;
            };
            let slash = if key.group.is_empty() { "" } else { "/" };
            let api_version = format!("{}{slash}{}", key.group, owned.version);
            let item = Item {
                path: object_path(&api_version, &kind.plural, key.namespace.as_deref(), &key.name),
                uid: owned.uid.clone(),
                rank: kinds::apply_rank(&key.group, &key.kind),
                busy: false,
                failure: None,
            };
            deleting.items.insert(key.clone(), item);
        }
        deleting
    }

    /// The objects to delete now, at most `room`, and when to ask again.
    pub(super) fn steps(&self, now: Instant, room: usize) -> (Vec<ObjectKey>, Option<Instant>) {
        let waiting = |item: &Item| item.failure.as_ref().is_some_and(|f| f.retry_at > now);
        let rank = self.items.values().filter(|item| !waiting(item)).map(|item| item.rank).max();
        let ready = self
            .items
            .iter()
            .filter(|(_, item)| !item.busy && !waiting(item) && Some(item.rank) == rank);
        let wake = self.items.values().filter(|item| waiting(item));
        let wake = wake.filter_map(|item| item.failure.as_ref().map(|f| f.retry_at)).min();
        (ready.map(|(key, _)| key.clone()).take(room).collect(), wake)
    }

    /// The requests to make now, at most `room`, and when to ask again.
    pub(super) fn jobs(
        &mut self,
        api: &ApiServer,
        (authority, user): (&Authority, &str),
        now: Instant,
        room: usize,
    ) -> (Vec<Job>, Option<Instant>) {
        let (keys, wake) = self.steps(now, room);
        let jobs = keys.into_iter().filter_map(|key| self.job(api, authority, user, key));
        (jobs.collect(), wake)
    }

    fn job(
        &mut self,
        api: &ApiServer,
        authority: &Authority,
        user: &str,
        key: ObjectKey,
    ) -> Option<Job> {
        let item = self.items.get_mut(&key)?;
        item.busy = true;
        let (api, authority, user) = (api.clone(), authority.clone(), user.to_owned());
        let (path, uid) = (item.path.clone(), item.uid.clone());
        Some(Box::pin(async move {
            let uid = match uid {
                Some(uid) => Ok(Some(uid)),
                // Perhaps written just before the process ended, perhaps never: look whose it is.
                None => apply::our_uid(&api, &path).await,
            };
            let result = match uid {
                Ok(Some(uid)) => apply::delete(&api, &authority, (&key, &path, &user), &uid).await,
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            Done::Deleted(key, result)
        }))
    }

    /// Takes in the answer about one object. True when it is gone.
    pub(super) fn finish(
        &mut self,
        key: &ObjectKey,
        result: Result<(), ApplyError>,
        now: Instant,
    ) -> bool {
        match result {
            Ok(()) => {
                self.items.remove(key);
                self.done.push(key.clone());
                true
            }
            Err(error) => {
                if let Some(item) = self.items.get_mut(key) {
                    item.busy = false;
                    let text = error_chain(&error);
                    item.failure =
                        Some(Failure::after(item.failure.as_ref(), error.reason(), text, now));
                }
                false
            }
        }
    }

    /// Requests that were dropped may or may not have been carried out; they are made again.
    pub(super) fn forget_flights(&mut self) {
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
mod tests {
    use super::*;
    use crate::ledger::tests::object_key;

    #[test]
    fn an_update_may_not_delete_most_of_a_large_inventory() {
        assert!(!prune_is_too_much(9, 9, 30));
        assert!(!prune_is_too_much(3, 10, 30));
        assert!(prune_is_too_much(4, 10, 30));
        assert!(!prune_is_too_much(10, 10, 100));
    }

    #[test]
    fn deleting_goes_from_the_highest_rank_down() {
        let now = Instant::now();
        let item = |rank| Item { path: String::new(), uid: None, rank, busy: false, failure: None };
        let mut deleting = Deleting::default();
        for (name, rank) in [("config", 5), ("web", 7), ("api", 7)] {
            deleting.items.insert(object_key("x", name), item(rank));
        }

        let first: Vec<String> = deleting.steps(now, 8).0.into_iter().map(|k| k.name).collect();
        assert_eq!(first, ["api", "web"]);
        deleting.items.retain(|_, item| item.rank < 7);
        assert_eq!(deleting.steps(now, 8).0.len(), 1);
    }
}
