//! What a worker makes durable, and when a newer record makes that old news. Every write is a compare-and-swap of `ledger`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use attest_common::manifest::ObjectKey;
use attest_common::record::Held;

use super::running::Running;
use super::state::RETRY_MIN;
use super::{Done, Job};
use crate::ledger::{ConfirmedPairs, Entry, Ledger};
use crate::outbox::Key;

/// What became of a write to the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recorded {
    /// The record says what this worker knows.
    Done,
    /// It holds something else than what this worker runs: another process, or a newer order.
    Superseded,
}

impl Recorded {
    fn unless(superseded: &AtomicBool) -> Self {
        if superseded.load(Ordering::Relaxed) { Self::Superseded } else { Self::Done }
    }
}

impl Running {
    /// Makes durable what was learnt: UIDs, confirmed pairs, what left the inventory, the last good release.
    pub(super) fn record(&mut self, ledger: &Ledger, key: &Key) -> Job {
        self.recording = true;
        self.dirty = false;
        let held = self.held.clone();
        let known: BTreeMap<ObjectKey, (Option<String>, bool)> = self
            .objects
            .iter()
            .map(|(key, t)| (key.clone(), (t.owned_uid.clone(), t.met)))
            .collect();
        let pairs: ConfirmedPairs = self
            .objects
            .iter()
            .filter_map(|(key, t)| Some((key.clone(), t.confirmed.clone()?)))
            .collect();
        let gone: BTreeSet<ObjectKey> =
            self.pruning.iter().flat_map(|pruning| pruning.done.iter().cloned()).collect();
        self.leaving.clone_from(&gone);
        let (settled, way_back) = (self.settled, self.way_back);
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
                for owned in &mut entry.record.inventory {
                    if let Some((uid, met)) = known.get(&owned.key) {
                        owned.uid.clone_from(uid);
                        owned.met = *met;
                    }
                }
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

/// Records that a plan was refused before anything of it was written; tried until it is done. Ends
/// with whether there is something to bring back to work.
pub(super) fn turned_back(ledger: &Ledger, key: &Key, refused: Held, keep_inventory: bool) -> Job {
    let (ledger, key) = (ledger.clone(), key.clone());
    Box::pin(async move {
        let change = |entry: Option<Entry>| {
            let mine = entry.filter(|e| e.record.held.as_ref() == Some(&refused));
            Ok(mine.and_then(|Entry { record, confirmed, .. }| {
                let (record, directive) = record.turned_back(keep_inventory)?;
                Some(Entry { record, directive, confirmed })
            }))
        };
        let recorded = loop {
            match ledger.update(&key, change).await {
                Err(error) if error.is_transient() => tokio::time::sleep(RETRY_MIN).await,
                other => break other,
            }
        };
        ledger.tidy_content();
        Done::TurnedBack(recorded.map(|entry| {
            entry.is_some_and(|Entry { record, .. }| {
                record.held.is_some() || (record.removed && !record.inventory.is_empty())
            })
        }))
    })
}
