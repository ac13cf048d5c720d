//! Writes of a worker to the record of its destination. Each is a compare-and-swap of `ledger`.

use std::sync::atomic::{AtomicBool, Ordering};

use attest_common::record::Held;
use attest_common::record::rollout::{Abort, AfterFailure};

use crate::destination::command::{AddedInventory, Return, Revert};
use crate::destination::event::Recorded;
use crate::destination::objects::RETRY;
use crate::destination::recording::{RollbackUpdate, Update, is_of};
use crate::ledger::error::LedgerError;
use crate::ledger::progress;
use crate::ledger::records::{Entry, Key, Ledger};
use crate::rollout::Transition;

/// Writes an update, unless the record holds another order by now.
pub(in crate::destination) async fn record(
    ledger: &Ledger,
    key: &Key,
    update: &Update,
) -> Result<Recorded, LedgerError> {
    let superseded = AtomicBool::new(false);
    let change = |entry: Option<Entry>| {
        // A newer directive may have been recorded concurrently: then this is out of date.
        let entry = entry.filter(|entry| entry.record.held.as_ref() == Some(&update.held));
        superseded.store(entry.is_none(), Ordering::Relaxed);
        Ok(entry.and_then(|entry| update.apply(&entry)))
    };
    let recorded = ledger.update(key, change).await?;
    // The content of what it could have gone back to is no longer needed.
    if update.rollback == RollbackUpdate::GiveUp && recorded.is_some() {
        ledger.tidy_content();
    }
    if recorded.is_some() && update.transition.as_ref().is_some_and(Transition::ends_soak) {
        forget_soak(ledger, key).await;
    }
    let superseded = superseded.load(Ordering::Relaxed);
    Ok(if superseded { Recorded::Superseded } else { Recorded::Done })
}

/// Deletes the stored soak of a plan that is no longer a candidate. What is left behind is of no plan that runs.
async fn forget_soak(ledger: &Ledger, key: &Key) {
    if let Err(error) = progress::drop_soak(ledger.api(), key).await {
        tracing::debug!(reason = error.reason().as_str(), "Failed to delete a stored soak");
    }
}

/// Empties the inventory of a removal that has deleted everything.
pub(in crate::destination) async fn removed(
    ledger: &Ledger,
    key: &Key,
) -> Result<Recorded, LedgerError> {
    let change = |entry: Option<Entry>| {
        let emptied = entry.filter(|entry| entry.record.removed).map(|mut entry| {
            entry.record.inventory.clear();
            entry.confirmed.clear();
            entry
        });
        Ok(emptied)
    };
    let recorded = ledger.update(key, change).await?;
    Ok(recorded.map_or(Recorded::Superseded, |_| Recorded::Done))
}

/// Records that a plan failed and that the newest good plan is held again, with retries. Does nothing if the record
/// was changed concurrently.
pub(in crate::destination) async fn give_up(
    ledger: &Ledger,
    key: &Key,
    Return { held, abort }: &Return,
) -> Result<(), LedgerError> {
    let recorded = loop {
        match ledger.update(key, |entry| Ok(returned(entry, held, abort))).await {
            Err(error) if error.is_transient() => tokio::time::sleep(RETRY.base).await,
            other => break other,
        }
    };
    forget_soak(ledger, key).await;
    recorded.map(|_| ())
}

/// Returns the entry after `held` failed, if the record still holds it.
fn returned(entry: Option<Entry>, held: &Held, abort: &Abort) -> Option<Entry> {
    let mut entry = entry.filter(|entry| entry.record.held.as_ref() == Some(held))?;
    entry.record.fail(abort.clone(), AfterFailure::Return);
    entry.record.since = Some(jiff::Timestamp::now());
    Some(entry)
}

/// Records that a plan was refused before anything of it was written, with retries. Returns whether the record
/// holds a plan or removal to load, also if it was changed concurrently.
pub(in crate::destination) async fn revert(
    ledger: &Ledger,
    key: &Key,
    Revert { held, directive, inventory, .. }: &Revert,
) -> Result<bool, LedgerError> {
    let change = |entry: Option<Entry>| {
        let mine = entry.filter(|entry| is_of(Some(entry), Some(held), *directive));
        Ok(mine.and_then(|Entry { record, confirmed, .. }| {
            let (record, directive) = record.reverted(*inventory == AddedInventory::Keep)?;
            Some(Entry { record, directive, confirmed })
        }))
    };
    let recorded = loop {
        match ledger.update(key, change).await {
            Err(error) if error.is_transient() => tokio::time::sleep(RETRY.base).await,
            other => break other,
        }
    };
    ledger.tidy_content();
    recorded?;
    Ok(ledger.entry(key).is_some_and(|Entry { record, .. }| {
        record.held.is_some() || (record.removed && !record.inventory.is_empty())
    }))
}
