//! Taking objects away: the one machine behind a removal and behind a prune. Decides what goes when; what may go is proven by `Authority`.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use attest_common::basics::rate::{RateLimit, RateLimiter};
use attest_common::basics::text::error_chain;
use attest_common::documents::manifest::ObjectKey;
use attest_common::objects::kinds::{Kinds, apply_rank};
use attest_common::record::Owned;

use super::objects::Failure;
use super::report::Obstacle;
use super::requests::{Done, Job};
use super::shared::Shared;
use crate::cluster::account::Account;
use crate::cluster::apply::{self, ApplyError, Authority, Deleted};
use crate::cluster::client::{ApiServer, object_path};
use crate::cluster::discovery;

/// How often rights that are missing are given again, however many objects miss them.
const RIGHTS_EVERY: Duration = Duration::from_secs(10);

/// Objects to delete, highest rank first.
#[derive(Clone, Debug)]
pub(super) struct Deleting {
    pub(super) items: BTreeMap<ObjectKey, Item>,
    /// Objects that leave the inventory, deleted or released.
    pub(super) done: Vec<ObjectKey>,
    /// How often the account's rights are given again.
    restoring: RateLimiter,
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

/// In whose name something is deleted, and what allows it.
#[derive(Clone, Debug)]
pub(super) struct By {
    pub(super) authority: Authority,
    pub(super) account: Account,
}

impl Deleting {
    /// What to delete of `inventory`, and what only leaves it.
    pub(super) fn of(inventory: &[Owned], kinds: &Kinds) -> Self {
        let restoring = RateLimiter::new(RateLimit::one_every(1, RIGHTS_EVERY));
        let mut deleting = Self { items: BTreeMap::new(), done: Vec::new(), restoring };
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

    /// The requests to make now, at most `room`, and when to ask again.
    pub(super) fn jobs(
        &mut self,
        shared: &Shared,
        by: &By,
        now: Instant,
        room: usize,
    ) -> (Vec<Job>, Option<Instant>) {
        let (keys, wake) = self.steps(now, room);
        let jobs = keys.into_iter().filter_map(|key| self.job(shared, by.clone(), key));
        (jobs.collect(), wake)
    }

    fn job(&mut self, shared: &Shared, by: By, key: ObjectKey) -> Option<Job> {
        let item = self.items.get_mut(&key)?;
        item.busy = true;
        let (item, api, kinds) = (item.clone(), shared.api.clone(), Arc::clone(&shared.kinds));
        let restoring = self.restoring.clone();
        Some(Box::pin(async move {
            let result = delete(&api, &kinds, &by, &key, item).await;
            if let Err(error) = &result {
                restore_rights(&api, &by.account, error, &restoring).await;
            }
            Done::Deleted(key, result)
        }))
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
    pub(super) fn forget_flights(&mut self) {
        self.items.values_mut().for_each(|item| item.busy = false);
    }
}

/// Gives the account and the spoke again what somebody took from them; the next attempt tells
/// whether it helped.
async fn restore_rights(
    api: &ApiServer,
    account: &Account,
    error: &ApplyError,
    limiter: &RateLimiter,
) {
    if !error.is_forbidden() || !limiter.allows(Instant::now()) {
        return;
    }
    if let Err(error) = account.restore_rights(api).await {
        tracing::debug!(
            application = %account.application, namespace = %account.destination,
            reason = error.reason(), error = %error_chain(&error),
            "Cannot give an account its rights again"
        );
    }
}

async fn delete(
    api: &ApiServer,
    kinds: &RwLock<Kinds>,
    by: &By,
    key: &ObjectKey,
    item: Item,
) -> Result<Deleted, ApplyError> {
    let plural = match item.plural {
        Some(plural) => plural,
        None => {
            discovery::discover(api, kinds).await.map_err(ApplyError::Api)?;
            let known = kinds.read().unwrap_or_else(PoisonError::into_inner);
            let kind = known.get(&key.group, &key.kind).ok_or(ApplyError::KindUnknown)?;
            kind.plural.clone()
        }
    };
    let uid = item.uid.as_deref();
    match delete_at(api, by, key, (&item.version, &plural), uid).await {
        // Not the object: its version is not served any more. Another one may be.
        Err(ApplyError::Api(error)) if error.is_not_found() => {
            let served = discovery::served(api, key).await.map_err(ApplyError::Api)?;
            let (version, plural) = served.ok_or(ApplyError::KindUnknown)?;
            delete_at(api, by, key, (&version, &plural), uid).await
        }
        other => other,
    }
}

async fn delete_at(
    api: &ApiServer,
    by: &By,
    key: &ObjectKey,
    (version, plural): (&str, &str),
    uid: Option<&str>,
) -> Result<Deleted, ApplyError> {
    let slash = if key.group.is_empty() { "" } else { "/" };
    let api_version = format!("{}{slash}{version}", key.group);
    let path = object_path(&api_version, plural, key.namespace.as_deref(), &key.name);
    let uid = match uid {
        Some(uid) => uid.to_owned(),
        // Perhaps written just before the process ended, perhaps never: look whose it is.
        None => match apply::our_uid(api, key, &path).await? {
            Some(uid) => uid,
            None => return Ok(Deleted::Gone),
        },
    };
    apply::delete(api, &by.authority, (key, &path, &by.account.user()), &uid).await
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
