//! The worker of a destination: feeds events to the state machine (`work`) and performs its commands.
//!
//! It decides nothing: each event goes through `work::next`, and each command is performed as it is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use attest_common::documents::manifest::ObjectKey;
use attest_common::record::Record;
use attest_common::record::custody::StoredRefusal;
use attest_common::record::rollout::AfterFailure;
use attest_common::session::report::{Phase, Refusal, Report};
use futures::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};

use super::command::{Command, Notice, PhaseChange, Request};
use super::event::{Event, Facts, Moment, Outcome, RemoveOrder, RunOrder};
use super::mailbox::{Mailbox, Order, Run, Slot};
use super::perform::{Flight, Performer};
use super::shared::Shared;
use super::speculative::SpeculativeDryRun;
use super::work::{self, State};
use crate::cluster::watch::Inbox;
use crate::ledger::records::Key;

/// Returns the mailbox of a new worker, and the worker itself, which never ends.
pub fn worker(shared: Shared, key: Key) -> (Arc<Mailbox>, impl Future<Output = ()> + Send) {
    let worker = Worker::new(shared, key);
    (Arc::clone(&worker.mailbox), worker.run())
}

struct Worker {
    shared: Shared,
    key: Key,
    performer: Performer,
    mailbox: Arc<Mailbox>,
    inbox: Arc<Inbox>,
    flights: FuturesUnordered<Flight>,
    /// Speculative dry runs of the order that is being taken.
    early: BTreeMap<ObjectKey, SpeculativeDryRun>,
    state: State,
    wake: Instant,
}

impl Worker {
    fn new(shared: Shared, key: Key) -> Self {
        Self {
            performer: Performer::new(shared.clone(), key.clone()),
            state: State::new(key.clone()),
            shared,
            key,
            mailbox: Arc::default(),
            inbox: Arc::default(),
            flights: FuturesUnordered::new(),
            early: BTreeMap::new(),
            wake: Instant::now(),
        }
    }

    async fn run(mut self) {
        loop {
            self.tick();
            let slept = tokio::time::sleep(self.wake.saturating_duration_since(Instant::now()));
            tokio::select! {
                biased;
                () = self.mailbox.arrived() => {
                    let slot = self.mailbox.take();
                    self.take(slot);
                }
                Some(outcome) = self.flights.next(), if !self.flights.is_empty() => {
                    self.finish_all(outcome);
                }
                () = self.inbox.arrived() => {}
                () = slept => {}
            }
            self.feed(Event::Observed(self.inbox.take()));
        }
    }

    /// Processes a result, and those that have arrived with it: a tick costs as much as there are objects.
    fn finish_all(&mut self, first: Outcome) {
        let mut arrived = Some(first);
        while let Some(outcome) = arrived {
            self.feed(Event::Finished(Box::new(outcome)));
            arrived = self.flights.next().now_or_never().flatten();
        }
    }

    fn take(&mut self, slot: Slot) {
        let Slot { order, refusal, repeat } = slot;
        if repeat {
            self.feed(Event::RepeatReport);
        }
        match order {
            None => {}
            Some(Order::Freeze { reason, message }) => {
                self.feed(Event::Freeze { reason, message });
            }
            Some(Order::Remove(removal)) => {
                let order = RemoveOrder { removal: *removal, facts: self.facts() };
                self.feed(Event::Remove(Box::new(order)));
            }
            Some(Order::Run(run)) => self.take_run(*run),
        }
        if let Some(refusal) = refusal {
            self.feed(Event::Refused(refusal));
        }
    }

    fn take_run(&mut self, run: Run) {
        let Run { admission, objects, held, origin, repair, timings, soak, checks } = run;
        let asked = checks.each.iter().map(|early| (early.key.clone(), early.ownership.clone()));
        let asked = asked.collect();
        self.early = checks.each.into_iter().map(|early| (early.key.clone(), early)).collect();
        let facts = self.facts();
        let order =
            RunOrder { admission, objects, held, origin, repair, timings, soak, asked, facts };
        self.feed(Event::Run(Box::new(order)));
        // Dry runs that do not match the due ones end here.
        self.early.clear();
    }

    fn facts(&self) -> Facts {
        let kinds = self.shared.kinds.read().clone();
        Facts { entry: self.shared.ledger.entry(&self.key), kinds }
    }

    fn tick(&mut self) {
        let (position, claims, rollout) = self.shared.ledger.with_records(|records| {
            let record = records.get(&self.key);
            let position = record.map(|record| (record.epoch, record.sequence));
            let rollout = record.and_then(Record::rollout_view);
            (position, self.shared.handovers.claims_on(&self.key, records), rollout)
        });
        self.feed(Event::Tick { position, claims, rollout });
    }

    fn feed(&mut self, event: Event) {
        let moment = Moment { now: Instant::now(), wall: jiff::Timestamp::now() };
        for command in work::next(&mut self.state, event, moment) {
            self.perform(command);
        }
    }

    fn perform(&mut self, command: Command) {
        match command {
            Command::CancelRequests => self.flights.clear(),
            Command::Request(request) => {
                let awaited =
                    if let Request::AwaitDryRun(key) = &request { Some(key) } else { None };
                let early = awaited.and_then(|key| self.early.remove(key));
                self.flights.push(self.performer.begin(request, early));
            }
            Command::Follow { objects, relist, autoscalers } => {
                self.shared.watches.follow(&self.inbox, &objects, &relist);
                self.shared.watches.follow_autoscalers(&self.inbox, &autoscalers);
            }
            Command::FollowPods(namespaces) => {
                self.shared.watches.follow_pods(&self.inbox, &namespaces);
            }
            Command::Reload => self.shared.reloads.request(&self.key),
            Command::Reevaluate => self.shared.reevaluations.request(&self.key),
            Command::Offer { key, uid } => {
                if let Some(claimant) = self.shared.handovers.offer(&self.key, key, uid) {
                    self.shared.reevaluations.request(&claimant);
                }
            }
            Command::TidyContent => self.shared.ledger.tidy_content(),
            Command::NoteRefusal(refusal) => self.note_refusal(refusal),
            Command::Report { report, phase } => {
                if phase == PhaseChange::Changed {
                    log(&report);
                }
                self.shared.outbox.report(&report);
            }
            Command::Notice(notice) => self.notice(notice),
            Command::WakeAt(at) => self.wake = at,
        }
    }

    fn note_refusal(&self, refusal: Refusal) {
        let (application, namespace) = (self.key.0.to_string(), self.key.1.to_string());
        tracing::warn!(
            application,
            namespace,
            reason = refusal.reason.as_str(),
            error = refusal.message,
            "Refused a plan"
        );
        self.shared.metrics.refused(&refusal.reason);
        self.shared.refusals.note(StoredRefusal::first(application, namespace, true, refusal));
    }

    fn notice(&self, notice: Notice) {
        let (application, namespace) = &self.key;
        let metrics = &self.shared.metrics;
        match notice {
            Notice::Drifted(key) => {
                metrics.drifts.inc();
                tracing::info!(
                    %application, %namespace, object = %key,
                    "Detected drift"
                );
            }
            Notice::Applied => metrics.applies.with_label_values(&["applied"]).inc(),
            Notice::ApplyFailed => metrics.applies.with_label_values(&["failed"]).inc(),
            Notice::Healed { key, took } => {
                metrics.heals.inc();
                metrics.heal_seconds.observe(took.as_secs_f64());
                tracing::info!(
                    %application, %namespace, object = %key,
                    duration_us = attest_runtime::clock::micros(took),
                    "Reverted drift"
                );
            }
            Notice::PlanApplied { took } => metrics.apply_seconds.observe(took.as_secs_f64()),
            Notice::PlanFailed { reason, message, after } => {
                tracing::warn!(
                    %application, %namespace, reason = reason.as_str(), error = message,
                    "{}",
                    match after {
                        AfterFailure::Return => "A plan failed; the newest good plan is applied again",
                        AfterFailure::Stay => "A plan failed and stays in place",
                    }
                );
            }
            Notice::Deleted => metrics.prunes.inc(),
        }
    }
}

fn log(report: &Report) {
    let (application, namespace) = (&report.application, &report.namespace);
    let (phase, reason) = (report.phase.as_str(), report.reason.as_str());
    let (message, sequence) = (report.message.as_str(), report.sequence);
    match report.phase {
        Phase::Refused | Phase::Degraded | Phase::OutOfSync => tracing::warn!(
            %application, %namespace, phase, reason, sequence, detail = message,
            "Destination is {phase}"
        ),
        Phase::Progressing | Phase::Synced | Phase::Removed => tracing::info!(
            %application, %namespace, phase, reason, sequence, detail = message,
            "Destination is {phase}"
        ),
    }
}

#[cfg(test)]
mod tests;
