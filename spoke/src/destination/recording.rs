//! What a worker makes durable, and when a newer record makes that old news. Every write is a compare-and-swap of `ledger`.

use std::collections::{BTreeMap, BTreeSet};

use attest_common::manifest::ObjectKey;
use attest_common::record::Held;

use super::running::Running;
use super::state::RETRY_MIN;
use super::{Done, Job};
use crate::ledger::content::Kept;
use crate::ledger::{ConfirmedPairs, Entry, Ledger};
use crate::outbox::Key;

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
        let settled = self.settled;
        let (ledger, key) = (ledger.clone(), key.clone());
        Box::pin(async move {
            let change = |entry: Option<Entry>| {
                // A newer directive may have been recorded meanwhile: then this is old news.
                let Some(mut entry) = entry.filter(|e| e.record.held.as_ref() == Some(&held))
                else {
                    return Ok(None);
                };
                let before = entry.clone();
                entry.record.inventory.retain(|owned| !gone.contains(&owned.key));
                for owned in &mut entry.record.inventory {
                    if let Some((uid, met)) = known.get(&owned.key) {
                        owned.uid.clone_from(uid);
                        owned.met = *met;
                    }
                }
                entry.confirmed = pairs.clone();
                if settled {
                    entry.record.last_good = Some(held.clone());
                }
                Ok((entry != before).then_some(entry))
            };
            let recorded = ledger.update(&key, change).await.map(|entry| entry.is_some());
            if settled && matches!(recorded, Ok(true)) {
                ledger.tidy_content();
            }
            Done::Recorded(recorded)
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
        Done::Recorded(ledger.update(&key, change).await.map(|entry| entry.is_some()))
    })
}

/// Records that a plan was refused at the last moment; tried until it is done.
pub(super) fn turned_back(
    ledger: &Ledger,
    key: &Key,
    (refused, kept): (Held, Option<Kept>),
    before: Option<Box<Entry>>,
) -> Job {
    let (ledger, key) = (ledger.clone(), key.clone());
    Box::pin(async move {
        let change = |entry: Option<Entry>| {
            let mine = entry.filter(|e| e.record.held.as_ref() == Some(&refused));
            Ok(mine.map(|entry| gone_back(entry, before.as_deref())))
        };
        let recorded = loop {
            match ledger.update(&key, change).await {
                // Until this is recorded, what goes on running is not what is recorded.
                Err(error) if error.is_transient() => tokio::time::sleep(RETRY_MIN).await,
                other => break other.map(|entry| entry.is_some()),
            }
        };
        drop(kept);
        ledger.tidy_content();
        Done::Recorded(recorded)
    })
}

/// The record after a plan was refused at the last moment: its order has been used up, everything
/// else is as before.
fn gone_back(entry: Entry, before: Option<&Entry>) -> Entry {
    let Entry { mut record, confirmed, .. } = entry;
    let former = before.map(|before| &before.record);
    let kept: BTreeSet<&ObjectKey> =
        former.iter().flat_map(|record| record.inventory.iter().map(|owned| &owned.key)).collect();
    record.inventory.retain(|owned| owned.uid.is_some() || kept.contains(&owned.key));
    record.binding = former.and_then(|record| record.binding.clone());
    record.floor = former.and_then(|record| record.floor.clone());
    record.held = former.and_then(|record| record.held.clone());
    record.last_good = former.and_then(|record| record.last_good.clone());
    record.removed = former.is_some_and(|record| record.removed);
    let directive = before.map(|before| before.directive.clone()).unwrap_or_default();
    Entry { record, directive, confirmed }
}
