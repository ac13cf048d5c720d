//! The writing half of a look: plans and directives are signed, appended to the ledgers, and then announced. Blocks.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use attest_common::basics::ids::{DestinationKey, Digest};
use attest_common::documents::plan::{
    CAP_FULL_PERCENT, DIRECTIVE_LIFETIME_MAX_MS, Directive, Operation,
};
use attest_runtime::clock::{after, micros_since, now};

use super::pass::{Look, forget, read_heads};
use super::queue::places;
use crate::applications::status;
use crate::core::CONTROLLER;
use crate::core::signer::Signer;
use crate::core::store::StoreError;
use crate::core::store::records::{self, ApplicationRecord, CompressedBlob, LedgerEntry, Planned};
use crate::reconcile::planner::{Proposal, needs_again};

/// What is to be appended to one ledger.
pub(super) struct Order {
    pub(super) destination: DestinationKey,
    pub(super) operation: Operation,
    pub(super) head: Option<Arc<LedgerEntry>>,
    /// Absent for `Remove`.
    pub(super) planned: Option<Planned>,
}

/// The plans of one look, each signed once however many destinations share it, with their blobs.
#[derive(Debug, Default)]
pub(super) struct Plans {
    blobs: BTreeMap<Digest, CompressedBlob>,
    planned: BTreeMap<Digest, Planned>,
}

impl Plans {
    /// Signs the plan of a proposal, unless an equal one is signed already.
    pub(super) fn add(
        &mut self,
        signer: &Signer,
        proposal: &Proposal,
        commit: &str,
    ) -> Result<Planned, StoreError> {
        let Proposal { plan, blobs, admitted } = proposal;
        let payload = Digest::of(&attest_common::documents::plan::to_bytes(plan));
        if let Some(planned) = self.planned.get(&payload) {
            return Ok(planned.clone());
        }
        let signed = signer.plan(plan);
        let mut digests = Vec::new();
        for bytes in std::iter::once(&signed.envelope).chain(blobs) {
            let digest = Digest::of(bytes);
            if let Entry::Vacant(place) = self.blobs.entry(digest) {
                place.insert(CompressedBlob::of(bytes)?);
            }
            digests.push(digest);
        }
        let release = &admitted.release;
        let planned = Planned {
            plan: signed.digest,
            envelope: Digest::of(&signed.envelope),
            blobs: digests,
            release: plan.release.id,
            content: plan.content.sha256,
            render: plan.render.clone(),
            version: release.version.clone(),
            counter: release.counter,
            repo: release.source.repo.clone(),
            commit: commit.to_owned(),
            signed_commit: release.source.git_commit.clone(),
        };
        self.planned.insert(payload, planned.clone());
        Ok(planned)
    }
}

impl Look<'_> {
    /// Orders for places that the application no longer names.
    pub(super) fn removals(&self) -> Vec<Order> {
        let application = &self.record.application;
        let wanted =
            if self.record.deleting { BTreeSet::new() } else { places(self.hub, application) };
        let mut orders = Vec::new();
        for (destination, head) in self.hub.fleet.heads_for(&application.name) {
            let place = (destination.cluster.clone(), destination.namespace.clone());
            if wanted.contains(&place) || !self.hub.directory.is_living(&destination.cluster) {
                continue;
            }
            if status::is_removed(&head, self.hub.fleet.report(&destination).as_deref()) {
                continue;
            }
            let held = self.hub.fleet.held(&destination);
            let expired = held.is_some_and(|held| needs_again(&head, held, now()));
            if head.operation != Operation::Remove || expired {
                orders.push(Order {
                    destination,
                    operation: Operation::Remove,
                    head: Some(head),
                    planned: None,
                });
            } else if self.task.asked_for {
                self.hub.fleet.push_again(&destination);
            }
        }
        orders
    }

    /// Deletion: orders removal everywhere, and forgets the application once everywhere is done.
    pub(super) fn remove_all(&mut self) -> Result<usize, StoreError> {
        let orders = self.removals();
        if !orders.is_empty() {
            return self.carry_out(orders);
        }
        let name = self.record.application.name.as_str();
        let heads = self.hub.fleet.heads_for(&self.record.application.name);
        let is_gone = |destination: &DestinationKey, head: &LedgerEntry| {
            let living = self.hub.directory.is_living(&destination.cluster);
            let report = self.hub.fleet.report(destination);
            let said = status::is_removed(head, report.as_deref());
            !living || said
        };
        if heads.iter().all(|(destination, head)| is_gone(destination, head)) {
            let Some(stored) = self.hub.records.stored::<ApplicationRecord>(name)? else {
                read_heads(self.hub, &self.record.application.name)?;
                forget(self.hub, name);
                return Ok(0);
            };
            if !stored.value.deleting {
                self.hub.pipeline.wake(name);
                return Ok(0);
            }
            // Only what was just read is deleted: who applies it meanwhile keeps it.
            let mut changes = vec![records::delete_exactly(&stored)];
            for (destination, head) in &heads {
                changes.extend(records::drop_ledger(destination, head.sequence));
                if let Some(report) = self.hub.fleet.report(destination) {
                    changes.push(records::delete(report.as_ref()));
                }
            }
            self.hub.records.commit("application", &changes)?;
            heads.iter().for_each(|(place, _)| self.hub.fleet.forget_destination(place));
            forget(self.hub, name);
        }
        Ok(0)
    }

    /// Signs and appends; afterwards the spokes concerned are woken.
    pub(super) fn carry_out(&mut self, orders: Vec<Order>) -> Result<usize, StoreError> {
        if orders.is_empty() {
            return Ok(0);
        }
        let begun = Instant::now();
        let name = self.record.application.name.as_str();
        let generation = 1 + self
            .hub
            .fleet
            .heads_for(&self.record.application.name)
            .iter()
            .map(|(_, head)| head.generation)
            .max()
            .unwrap_or(0);
        let mut changes = Vec::new();
        let kept = std::mem::take(&mut self.plans).blobs;
        let mut entries = Vec::new();
        for order in orders {
            let expected = order.head.as_ref().map_or(0, |head| head.sequence);
            let entry = self.entry(&order, generation)?;
            changes.push(records::append(&order.destination, expected, &entry));
            entries.push((order.destination, entry));
        }
        // Blobs first: an entry never names one that is not there.
        let mut all: Vec<records::Change> = kept.values().map(records::keep).collect();
        all.append(&mut changes);
        let mut timings = self.memory.timings;
        let durable = Instant::now();
        self.hub.records.commit("directive", &all)?;
        self.hub.metrics.commit.observe(durable.elapsed().as_secs_f64());
        timings.plan_us = micros_since(begun);
        // How long the write took cannot be in what was written.
        entries.iter_mut().for_each(|(_, entry)| entry.timings.plan_us = timings.plan_us);
        for (part, micros) in [
            ("git", timings.git_us),
            ("render", timings.render_us),
            ("verify", timings.verify_us),
            ("plan", timings.plan_us),
        ] {
            let seconds = std::time::Duration::from_micros(micros).as_secs_f64();
            self.hub.metrics.change.with_label_values(&[part]).observe(seconds);
        }
        kept.into_values().for_each(|blob| self.hub.fleet.keep_blob(blob));
        let ordered = entries.len();
        self.hub.metrics.deployments.inc_by(ordered as u64);
        for (destination, entry) in &entries {
            tracing::info!(
                target: CONTROLLER,
                application = destination.application.as_str(),
                destination = destination.to_string(),
                operation = format!("{:?}", entry.operation),
                sequence = entry.sequence,
                generation = entry.generation,
                "Ordered {:?} at {destination}", entry.operation
            );
        }
        if self.hub.fleet.set_heads(entries) {
            self.hub.pipeline.wake(name);
        }
        Ok(ordered)
    }

    fn entry(&self, order: &Order, generation: u64) -> Result<LedgerEntry, StoreError> {
        let planned = order.planned.clone();
        let DestinationKey { application, cluster, namespace } = order.destination.clone();
        let issued_at = now();
        let expires_at = after(issued_at, DIRECTIVE_LIFETIME_MAX_MS);
        let former = match &order.head {
            Some(head) => head.sequence,
            None => self.hub.records.dropped_sequence(&cluster)?,
        };
        // A spoke may have seen more than this hub remembers: go on above both.
        let seen = self.hub.fleet.held(&order.destination).map_or(0, |held| held.sequence);
        let sequence = former.max(seen).saturating_add(1);
        let directive = Directive {
            v: 1,
            cluster,
            application,
            namespace,
            epoch: self.hub.epoch(),
            sequence,
            generation,
            attempt: 0,
            operation: order.operation,
            cap_percent: CAP_FULL_PERCENT,
            plan: planned.as_ref().map(|planned| planned.plan),
            issued_at,
            expires_at,
        };
        let signed = self.hub.signer.directive(&directive);
        Ok(LedgerEntry {
            epoch: directive.epoch,
            sequence,
            generation,
            attempt: directive.attempt,
            operation: directive.operation,
            directive: String::from_utf8_lossy(&signed.envelope).into_owned(),
            digest: signed.digest,
            issued_at,
            expires_at,
            planned,
            timings: self.memory.timings,
        })
    }
}
