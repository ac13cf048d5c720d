//! The fourth step of a pass: signs the directives and appends them to the ledgers, in one transaction. Blocks.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::{Duration, Instant};

use attest_common::basics::ids::{DestinationKey, Digest, Name};
use attest_common::documents::plan::{
    CAP_FULL_PERCENT, DIRECTIVE_LIFETIME_MAX_MS, Directive, FinalizedBy, Operation,
};
use attest_runtime::clock::{after, micros_since, now};

use super::plan::{Content, NewPlan, PlannedDirective};
use crate::core::Core;
use crate::core::position::next_sequence;
use crate::core::signer::Signer;
use crate::core::store::StoreError;
use crate::core::store::records::{
    self, Change, ChangeTimings, CompressedBlob, LedgerEntry, Planned,
};

/// Changes that a pass has committed to the store.
#[derive(Debug, Default)]
pub(super) struct Committed {
    pub(super) entries: Vec<(DestinationKey, LedgerEntry)>,
    pub(super) blobs: Vec<CompressedBlob>,
    pub(super) timings: ChangeTimings,
    /// Duration of the durable write.
    pub(super) written: Duration,
}

/// Signs `directives` of one application and makes them durable, all or none.
///
/// # Errors
/// [`StoreError::Conflict`] when a ledger is not what was observed.
pub(super) fn commit(
    core: &Core,
    application: &Name,
    directives: &[&PlannedDirective],
    timings: ChangeTimings,
) -> Result<Committed, StoreError> {
    if directives.is_empty() {
        return Ok(Committed::default());
    }
    let begun = Instant::now();
    let generation = next_generation(core, application)?;
    let mut plans = SignedPlans::default();
    let mut entries = Vec::new();
    let mut appended = Vec::new();
    for directive in directives {
        let planned = plans.planned(&core.signer, directive)?;
        let expected = directive.head.as_ref().map_or(0, |head| head.sequence);
        let mut entry = sign(core, directive, planned, generation)?;
        entry.timings = timings;
        appended.push(records::append(&directive.destination, expected, &entry));
        entries.push((directive.destination.clone(), entry));
    }
    // Blobs first: an entry never names one that is not there.
    let mut changes: Vec<Change> = plans.blobs.values().map(records::keep).collect();
    changes.append(&mut appended);
    changes.push(records::keep_generation(application, generation));
    let writing = Instant::now();
    core.records.commit("directive", &changes)?;
    let timings = ChangeTimings { plan_us: micros_since(begun), ..timings };
    // How long the write took cannot be in what was written.
    entries.iter_mut().for_each(|(_, entry)| entry.timings.plan_us = timings.plan_us);
    let blobs = plans.blobs.into_values().collect();
    Ok(Committed { entries, blobs, timings, written: writing.elapsed() })
}

/// Higher than any that was ordered of this application, also before it was removed and made again. A store of
/// version 0.1.0 has no such number: the ledgers then say.
fn next_generation(core: &Core, application: &Name) -> Result<u64, StoreError> {
    let last = core.records.last_generation(application)?;
    let heads = core.fleet.heads_for(application).into_iter().map(|(_, head)| head.generation);
    Ok(heads.fold(last, u64::max).saturating_add(1))
}

/// The plans of one transaction, each signed once however many destinations share it, with their blobs.
#[derive(Debug, Default)]
struct SignedPlans {
    blobs: BTreeMap<Digest, CompressedBlob>,
    signed: BTreeMap<Digest, Planned>,
}

impl SignedPlans {
    /// Returns a directive's content for its ledger entry. Absent for a removal.
    fn planned(
        &mut self,
        signer: &Signer,
        directive: &PlannedDirective,
    ) -> Result<Option<Planned>, StoreError> {
        match &directive.content {
            Content::Verified(plan) | Content::Alike(plan) => self.sign(signer, plan).map(Some),
            Content::Current => Ok(directive.head.as_ref().and_then(|head| head.planned.clone())),
            Content::Removal => Ok(None),
        }
    }

    /// Signs a plan, unless an equal one is signed already.
    fn sign(&mut self, signer: &Signer, new: &NewPlan) -> Result<Planned, StoreError> {
        if let Some(planned) = self.signed.get(&new.payload) {
            return Ok(planned.clone());
        }
        let signed = signer.plan(&new.plan);
        let envelope = Digest::of(&signed.envelope);
        let mut blobs = Vec::new();
        for bytes in
            std::iter::once(signed.envelope.as_slice()).chain(new.blobs.iter().map(AsRef::as_ref))
        {
            let digest = Digest::of(bytes);
            if let Entry::Vacant(place) = self.blobs.entry(digest) {
                place.insert(CompressedBlob::of(bytes)?);
            }
            blobs.push(digest);
        }
        let planned = Planned {
            plan: signed.digest,
            envelope,
            blobs,
            release: new.plan.release.id,
            content: new.plan.content.sha256,
            render: new.plan.render.clone(),
            version: new.version.clone(),
            counter: new.counter,
            repo: new.repo.clone(),
            commit: new.commit.clone(),
            signed_commit: new.signed_commit.clone(),
        };
        self.signed.insert(new.payload, planned.clone());
        Ok(planned)
    }
}

fn sign(
    core: &Core,
    directive: &PlannedDirective,
    planned: Option<Planned>,
    generation: u64,
) -> Result<LedgerEntry, StoreError> {
    let DestinationKey { application, cluster, namespace } = directive.destination.clone();
    let issued_at = now();
    let expires_at = after(issued_at, DIRECTIVE_LIFETIME_MAX_MS);
    let last = match &directive.head {
        Some(head) => head.sequence,
        None => core.records.dropped_sequence(&cluster)?,
    };
    // A spoke may have seen more than this hub remembers: go on above both.
    let seen = core.fleet.position(&directive.destination).map_or(0, |position| position.sequence);
    let next = next_sequence(last, seen);
    let sequence = next
        .ok_or_else(|| StoreError::SequenceUsedUp { ledger: directive.destination.to_string() })?;
    let order = Directive {
        v: 1,
        cluster,
        application,
        namespace,
        epoch: core.epoch.current(),
        sequence,
        generation,
        attempt: 0,
        operation: operation(&directive.content),
        cap_percent: CAP_FULL_PERCENT,
        plan: planned.as_ref().map(|planned| planned.plan),
        repair: directive.repair,
        stage: None,
        soak_ms: None,
        paused: false,
        finalize: FinalizedBy::Spoke,
        keep_failed: false,
        issued_at,
        expires_at,
    };
    let signed = core.signer.directive(&order);
    Ok(LedgerEntry {
        epoch: order.epoch,
        sequence,
        generation,
        attempt: order.attempt,
        operation: order.operation,
        directive: String::from_utf8_lossy(&signed.envelope).into_owned(),
        digest: signed.digest,
        issued_at,
        expires_at,
        planned,
        timings: ChangeTimings::default(),
    })
}

fn operation(content: &Content) -> Operation {
    match content {
        Content::Verified(_) | Content::Alike(_) | Content::Current => Operation::Progress,
        Content::Removal => Operation::Remove,
    }
}

#[cfg(test)]
mod tests;
