//! What a worker makes durable, and when a newer record makes that old news. Every write is a compare-and-swap of `ledger`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use attest_common::basics::ids::Digest;
use attest_common::documents::manifest::ObjectKey;
use attest_common::record::{Held, Owned};

use super::applying::Running;
use super::objects::{RETRY, Tracked};
use super::requests::{Done, Job, Recorded};
use crate::ledger::records::{ConfirmedPairs, Entry, Key, Ledger};

impl Recorded {
    fn unless(superseded: &AtomicBool) -> Self {
        if superseded.load(Ordering::Relaxed) { Self::Superseded } else { Self::Done }
    }
}

/// What an inventory learns about an object.
struct Learnt {
    uid: Option<String>,
    met: bool,
    /// The API version that it is known to have been written by.
    version: Option<String>,
}

/// Takes it in.
fn learn(inventory: &mut [Owned], known: &BTreeMap<ObjectKey, Learnt>) {
    for owned in inventory {
        let Some(Learnt { uid, met, version }) = known.get(&owned.key) else { continue };
        owned.uid.clone_from(uid);
        owned.met = *met;
        // An inventory is emptied by the version that wrote last.
        if let Some(version) = version {
            owned.version.clone_from(version);
        }
    }
}

impl Running {
    /// Makes durable what was learnt: UIDs, confirmed pairs, what left the inventory, the last good release.
    pub(super) fn record(&mut self, ledger: &Ledger, key: &Key) -> Job {
        self.recording = true;
        self.dirty = false;
        self.forgoing = !self.way_back || self.begins || self.settled;
        let held = self.held.clone();
        let rendered = &self.admission.admitted.objects;
        let learnt = |t: &Tracked| {
            let is_as_desired = t.confirmed.as_ref().is_some_and(|c| c.desired == t.desired);
            let object = rendered.get(t.index).filter(|_| is_as_desired);
            let version = object.map(|object| object.version().to_owned());
            Learnt { uid: t.owned_uid.clone(), met: t.met, version }
        };
        let known: BTreeMap<ObjectKey, Learnt> =
            self.objects.iter().map(|(key, t)| (key.clone(), learnt(t))).collect();
        let pairs: ConfirmedPairs = self
            .objects
            .iter()
            .filter_map(|(key, t)| Some((key.clone(), t.confirmed.clone()?)))
            .collect();
        let gone: BTreeSet<ObjectKey> =
            self.pruning.iter().flat_map(|pruning| pruning.done.iter().cloned()).collect();
        self.leaving.clone_from(&gone);
        let (settled, way_back) = (self.settled, !self.forgoing);
        let (ledger, key) = (ledger.clone(), key.clone());
        Box::pin(async move {
            let superseded = AtomicBool::new(false);
            let change = |entry: Option<Entry>| {
                // A newer directive may have been recorded meanwhile: then this is old news.
                let Some(mut entry) = entry.filter(|e| e.record.held.as_ref() == Some(&held))
                else {
                    superseded.store(true, Ordering::Relaxed);
                    return Ok(None);
                };
                superseded.store(false, Ordering::Relaxed);
                let before = entry.clone();
                if !way_back {
                    entry.record.former = None;
                }
                entry.record.inventory.retain(|owned| !gone.contains(&owned.key));
                learn(&mut entry.record.inventory, &known);
                // What only the former plan holds is still as it was confirmed.
                let former = std::mem::take(&mut entry.confirmed);
                entry.confirmed = if way_back { former } else { ConfirmedPairs::new() };
                entry.confirmed.extend(pairs.clone());
                if settled {
                    entry.record.last_good = Some(held.clone());
                }
                Ok((entry != before).then_some(entry))
            };
            let recorded = ledger.update(&key, change).await;
            // The content of what it could have gone back to is not needed any more.
            if !way_back && matches!(recorded, Ok(Some(_))) {
                ledger.tidy_content();
            }
            Done::Recorded(recorded.map(|_| Recorded::unless(&superseded)))
        })
    }
}

/// Empties the inventory of a removal that has deleted everything.
pub(super) fn removed(ledger: &Ledger, key: &Key) -> Job {
    let (ledger, key) = (ledger.clone(), key.clone());
    Box::pin(async move {
        let change = |entry: Option<Entry>| {
            let emptied = entry.filter(|entry| entry.record.removed).map(|mut entry| {
                entry.record.inventory.clear();
                entry.confirmed.clear();
                entry
            });
            Ok(emptied)
        };
        let recorded = ledger.update(&key, change).await;
        let outcome = |entry: Option<_>| entry.map_or(Recorded::Superseded, |_| Recorded::Done);
        Done::Recorded(recorded.map(outcome))
    })
}

/// Whether the record is of this very order: not of a newer one, and not gone back.
/// Without a plan, the order is a removal.
pub(super) fn is_of(entry: Option<&Entry>, held: Option<&Held>, directive: Digest) -> bool {
    entry.is_some_and(|entry| {
        entry.record.held.as_ref() == held && entry.directive_digest() == Some(directive)
    })
}

/// Records that what a directive ordered was refused before anything of it was written; tried until
/// it is done. Ends with whether there is something to bring back to work, also when the record has
/// become another's meanwhile.
pub(super) fn turned_back(
    ledger: &Ledger,
    key: &Key,
    (refused, directive): (Held, Digest),
    keep_inventory: bool,
) -> Job {
    let (ledger, key) = (ledger.clone(), key.clone());
    Box::pin(async move {
        let change = |entry: Option<Entry>| {
            let mine = entry.filter(|e| is_of(Some(e), Some(&refused), directive));
            Ok(mine.and_then(|Entry { record, confirmed, .. }| {
                let (record, directive) = record.turned_back(keep_inventory)?;
                Some(Entry { record, directive, confirmed })
            }))
        };
        let recorded = loop {
            match ledger.update(&key, change).await {
                Err(error) if error.is_transient() => tokio::time::sleep(RETRY.base).await,
                other => break other,
            }
        };
        ledger.tidy_content();
        Done::TurnedBack(recorded.map(|_| {
            ledger.entry(&key).is_some_and(|Entry { record, .. }| {
                record.held.is_some() || (record.removed && !record.inventory.is_empty())
            })
        }))
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
        let before = Owned { key: key.clone(), version, uid: uid.clone(), met: false };
        let after = |version: Option<&str>| {
            let mut inventory = [before.clone()];
            let learnt =
                Learnt { uid: uid.clone(), met: false, version: version.map(str::to_owned) };
            learn(&mut inventory, &[(key.clone(), learnt)].into());
            inventory.map(|owned| owned.version)
        };

        assert_eq!(after(None), ["v1beta1"]);
        assert_eq!(after(Some("v1")), ["v1"]);
    }
}
