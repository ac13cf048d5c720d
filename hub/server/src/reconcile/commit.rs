//! The fourth step of a pass: signs the directives and appends them to the ledgers, in one transaction. Blocks.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::{Duration, Instant};

use attest_common::basics::ids::{DestinationKey, Digest, Name};
use attest_common::documents::plan::{
    CAP_FULL_PERCENT, DIRECTIVE_LIFETIME_MAX_MS, Directive, FinalizedBy, Operation,
};
use attest_runtime::clock::{after, micros_since, now};

use super::plan::{Content, NewPlan, PlannedDirective, RolloutOrder};
use crate::core::Core;
use crate::core::position::{ATTEMPTS_AHEAD_MAX, GENERATIONS_AHEAD_MAX, next_sequence};
use crate::core::signer::Signer;
use crate::core::store::StoreError;
use crate::core::store::records::{
    self, Change, ChangeTimings, CompressedBlob, LedgerEntry, Planned, RolloutState,
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
    rollout: RolloutChanges,
    timings: ChangeTimings,
) -> Result<Committed, StoreError> {
    let RolloutChanges { mut plans, changes: mut rollout_changes, state } = rollout;
    if directives.is_empty() && rollout_changes.is_empty() {
        return Ok(Committed::default());
    }
    let begun = Instant::now();
    let next = RolloutPosition::next(core, application)?;
    let position = match &state {
        Some(state) if state.generation + 1 >= next.generation => RolloutPosition::of(state),
        Some(_) | None => next,
    };
    let mut entries = Vec::new();
    let mut appended = Vec::new();
    for directive in directives {
        let planned = plans.planned(&core.signer, directive)?;
        let expected = directive.head.as_ref().map_or(0, |head| head.sequence);
        let mut entry = sign(core, directive, planned, position)?;
        entry.timings = timings;
        appended.push(records::append(&directive.destination, expected, &entry));
        entries.push((directive.destination.clone(), entry));
    }
    // Blobs first: an entry never names one that is not there.
    let mut changes: Vec<Change> = plans.blobs.values().map(records::keep).collect();
    changes.append(&mut rollout_changes);
    changes.append(&mut appended);
    let generations = entries.iter().map(|(_, entry)| entry.generation);
    let generation = generations.chain(state.iter().map(|state| state.generation)).max();
    changes.extend(generation.map(|generation| records::keep_generation(application, generation)));
    let attempt = state.map(|state| state.attempt).filter(|attempt| *attempt > 0);
    changes.extend(attempt.map(|attempt| records::keep_attempt(application, attempt)));
    let writing = Instant::now();
    core.records.commit("directive", &changes)?;
    let timings = ChangeTimings { plan_us: micros_since(begun), ..timings };
    // How long the write took cannot be in what was written.
    entries.iter_mut().for_each(|(_, entry)| entry.timings.plan_us = timings.plan_us);
    let blobs = plans.blobs.into_values().collect();
    Ok(Committed { entries, blobs, timings, written: writing.elapsed() })
}

/// The highest attempt that was ordered of this application, or that a spoke holds.
pub(crate) fn last_attempt(core: &Core, application: &Name) -> Result<u32, StoreError> {
    let last = core.records.last_attempt(application)?;
    let heads = core.fleet.heads_for(application);
    let held = heads.iter().filter_map(|(destination, _)| core.fleet.position(destination));
    let last = heads.iter().map(|(_, head)| head.attempt).fold(last, u32::max);
    let plausible_max = last.saturating_add(ATTEMPTS_AHEAD_MAX);
    let held = held.map(|held| held.attempt).filter(|attempt| *attempt <= plausible_max);
    Ok(held.fold(last, u32::max))
}

/// Changes of a rollout that are committed with its directives.
#[derive(Debug, Default)]
pub(super) struct RolloutChanges {
    /// Plans that are signed already.
    pub(super) plans: SignedPlans,
    pub(super) changes: Vec<Change>,
    /// The rollout after them.
    pub(super) state: Option<RolloutState>,
}

/// Generation and attempt of directives that belong to no rollout.
#[derive(Clone, Copy, Debug)]
struct RolloutPosition {
    generation: u64,
    attempt: u32,
}

impl RolloutPosition {
    /// Those of the newest rollout: a later generation would keep its members from being ordered.
    fn of(state: &RolloutState) -> Self {
        Self { generation: state.generation, attempt: state.attempt }
    }

    fn next(core: &Core, application: &Name) -> Result<Self, StoreError> {
        let generation = next_generation(core, application)?;
        Ok(Self { generation, attempt: last_attempt(core, application)? })
    }
}

/// Higher than any that was ordered of this application, also before it was removed and made again. A store of
/// version 0.1.0 has no such number: the ledgers then say.
pub(crate) fn next_generation(core: &Core, application: &Name) -> Result<u64, StoreError> {
    let last = core.records.last_generation(application)?;
    let heads = core.fleet.heads_for(application);
    let held = heads.iter().filter_map(|(destination, _)| core.fleet.position(destination));
    let last = heads.iter().map(|(_, head)| head.generation).fold(last, u64::max);
    let plausible_max = last.saturating_add(GENERATIONS_AHEAD_MAX);
    // A spoke may hold a later one than a hub that was restored from a backup remembers.
    let held = held.map(|held| held.generation).filter(|generation| *generation <= plausible_max);
    Ok(held.fold(last, u64::max).saturating_add(1))
}

/// The plans of one transaction, each signed once however many destinations share it, with their blobs.
#[derive(Debug, Default)]
pub(super) struct SignedPlans {
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
            Content::Signed(signed) => Ok(Some((**signed).clone())),
            Content::Current => Ok(directive.head.as_ref().and_then(|head| head.planned.clone())),
            Content::Removal => Ok(None),
        }
    }

    /// Signs a plan, unless an equal one is signed already.
    pub(super) fn sign(&mut self, signer: &Signer, new: &NewPlan) -> Result<Planned, StoreError> {
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
    position: RolloutPosition,
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
    let held = core.fleet.position(&directive.destination).map_or(0, |held| held.generation);
    let rollout = rollout_order(directive, position, held);
    let order = Directive {
        v: 1,
        cluster,
        application,
        namespace,
        epoch: core.epoch.current(),
        sequence,
        generation: rollout.generation,
        attempt: rollout.attempt,
        operation: rollout.operation,
        cap_percent: CAP_FULL_PERCENT,
        plan: planned.as_ref().map(|planned| planned.plan),
        repair: directive.repair,
        stage: rollout.stage,
        soak_ms: rollout.soak_ms,
        paused: rollout.paused,
        finalize: rollout.finalize,
        keep_failed: false,
        issued_at,
        expires_at,
    };
    let signed = core.signer.directive(&order);
    Ok(LedgerEntry {
        epoch: order.epoch,
        sequence,
        generation: order.generation,
        attempt: order.attempt,
        operation: order.operation,
        directive: String::from_utf8_lossy(&signed.envelope).into_owned(),
        digest: signed.digest,
        issued_at,
        expires_at,
        planned,
        hub_finalized: order.finalize == FinalizedBy::Hub,
        paused: order.paused,
        timings: ChangeTimings::default(),
    })
}

/// Returns the rollout part of a directive. One that is issued again keeps that of the directive that it replaces,
/// so that its rollout continues, unless the spoke holds a later generation, which this hub has forgotten.
fn rollout_order(
    directive: &PlannedDirective,
    position: RolloutPosition,
    held_generation: u64,
) -> RolloutOrder {
    let head = directive.head.as_ref().filter(|_| matches!(directive.content, Content::Current));
    let issued = head.filter(|head| head.needs_rollout()).and_then(|head| head.signed_directive());
    let issued = issued.filter(|issued| issued.generation >= held_generation);
    match (&directive.rollout, issued) {
        (Some(rollout), _) => rollout.clone(),
        (None, Some(issued)) => RolloutOrder {
            generation: issued.generation,
            attempt: issued.attempt,
            operation: issued.operation,
            stage: issued.stage,
            soak_ms: issued.soak_ms,
            paused: issued.paused,
            finalize: issued.finalize,
        },
        (None, None) => RolloutOrder {
            generation: position.generation,
            attempt: position.attempt,
            operation: operation(&directive.content),
            stage: None,
            soak_ms: None,
            paused: false,
            finalize: FinalizedBy::Spoke,
        },
    }
}

fn operation(content: &Content) -> Operation {
    match content {
        Content::Verified(_) | Content::Alike(_) | Content::Signed(_) | Content::Current => {
            Operation::Progress
        }
        Content::Removal => Operation::Remove,
    }
}

#[cfg(test)]
mod tests;
