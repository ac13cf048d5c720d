//! The end of an application: forgotten once it is gone everywhere, or when its record is. Blocks.

use attest_common::basics::ids::{DestinationKey, Name};

use super::publish::{Outputs, log_failure};
use crate::core::Core;
use crate::core::store::StoreError;
use crate::core::store::records::{self, ApplicationRecord, LedgerEntry, ROLLOUTS_MAX};

/// Most rollouts of an application that are deleted with it; more are never kept.
const ROLLOUTS_READ_MAX: usize = 2 * ROLLOUTS_MAX;

/// Deletes an application that is being removed, once it is gone everywhere.
///
/// # Errors
/// When the store cannot be read or written.
pub(super) fn finish(outputs: Outputs<'_>, record: &ApplicationRecord) -> Result<(), StoreError> {
    let (core, name) = (outputs.core, &record.application.name);
    let heads = core.fleet.heads_for(name);
    if !heads.iter().all(|(destination, head)| is_gone(core, destination, head)) {
        return Ok(());
    }
    let Some(stored) = core.records.stored::<ApplicationRecord>(name.as_str())? else {
        read_heads(core, name)?;
        forget(outputs, name.as_str());
        return Ok(());
    };
    if !stored.value.deleting {
        outputs.waker.wake(name.as_str());
        return Ok(());
    }
    // Only what was just read is deleted: an application that is applied at the same time stays.
    let mut changes = vec![records::delete_exactly(&stored)];
    let generation = heads.iter().map(|(_, head)| head.generation).max();
    changes.extend(generation.map(|generation| records::keep_generation(name, generation)));
    for (destination, head) in &heads {
        changes.extend(records::drop_ledger(destination, head.sequence));
        if let Some(report) = core.fleet.report(destination) {
            changes.push(records::delete(report.as_ref()));
        }
    }
    for state in core.records.rollouts(name, ROLLOUTS_READ_MAX)? {
        changes.push(records::keep_generation(name, state.generation));
        changes.extend(records::drop_rollout(&state));
    }
    core.records.commit("application", &changes)?;
    heads.iter().for_each(|(destination, _)| core.fleet.forget_destination(destination));
    forget(outputs, name.as_str());
    Ok(())
}

fn is_gone(core: &Core, destination: &DestinationKey, head: &LedgerEntry) -> bool {
    !core.directory.is_living(&destination.cluster)
        || head.is_removed(core.fleet.report(destination).as_deref())
}

/// The record of an application is gone. A deletion that was answered with an error may have been made all the same.
pub(super) fn vanished(outputs: Outputs<'_>, name: &str) {
    let read = name.parse().map_or(Ok(()), |name| read_heads(outputs.core, &name));
    match read {
        Ok(()) => forget(outputs, name),
        Err(error) => {
            log_failure(name, &error);
            outputs.waker.wake_later(name);
        }
    }
}

/// Reads the ledgers of an application again and has it reconciled from the beginning.
pub(super) fn start_over(outputs: Outputs<'_>, application: &Name) {
    if let Err(error) = read_heads(outputs.core, application) {
        log_failure(application.as_str(), &error);
    }
    outputs.waker.wake_later(application.as_str());
}

/// Makes what is remembered of an application's ledgers what the store holds.
fn read_heads(core: &Core, application: &Name) -> Result<(), StoreError> {
    let heads = core.records.heads(&format!("{application}/"))?;
    for (destination, _) in core.fleet.heads_for(application) {
        if !heads.contains_key(&destination) {
            core.fleet.forget_destination(&destination);
        }
    }
    // The caller has the application reconciled again anyway.
    let _overtaken = core.fleet.set_heads(heads.into_iter().collect());
    Ok(())
}

/// An application is gone, unless it was applied again since.
fn forget(outputs: Outputs<'_>, name: &str) {
    // The number first, then the store, which is not read under the queue's lock.
    let requests = outputs.waker.requests(name);
    // A store that does not answer is no reason to forget.
    let is_gone = matches!(outputs.core.records.get::<ApplicationRecord>(name), Ok(None));
    if !is_gone || !outputs.waker.forget(name, requests) {
        return outputs.waker.wake(name);
    }
    outputs.views.forget(&outputs.core.metrics, name);
}
