//! The worker of a destination: makes the requests that are due and takes in what comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use attest_common::basics::text::error_chain;
use attest_common::documents::manifest::ObjectKey;
use attest_common::objects::kinds::Kinds;
use attest_common::record::Record;
use attest_common::session::report::{Phase, Refusal, Report};
use attest_common::verify::{Removal, Verified};
use attest_runtime::clock::micros;
use futures::stream::{FuturesUnordered, StreamExt};
use serde_json::Value;

use super::applying::{Preparation, Running};
use super::deleting::{By, Deleting};
use super::mailbox::{Mailbox, Order, Run, Slot};
use super::objects::{self, Failure, IN_FLIGHT_MAX, NOT_READY_FOR, Rules};
use super::recording;
use super::report::{self, RemovalNow, Situation};
use super::requests::{Done, Job, Recorded};
use super::shared::Shared;
use super::track::{scopes, with_met};
use crate::cluster::account::Account;
use crate::cluster::apply::{ApplyError, Authority, Deleted, Passed, Written};
use crate::cluster::drift::{Live, Need};
use crate::cluster::error::ApiError;
use crate::cluster::watch::{Inbox, News, absent, observe};
use crate::ledger::error::LedgerError;
use crate::ledger::records::Key;
use crate::ledger::refusals::Refused;

/// Shortest time between two reports that say nothing urgent.
pub const REPORT_EVERY: Duration = Duration::from_millis(250);
/// How long an order may be behind the record that it was written with.
const OVERTAKEN_WAIT: Duration = Duration::from_secs(1);
/// Bytes that etcd keeps of an account and two bindings that are made and deleted again, at most.
const RIGHTS_BYTES: u64 = 6 * 2 * 1024;
/// How long a worker with nothing to do sleeps at most.
const IDLE: Duration = Duration::from_secs(60 * 60);

/// The worker of a destination, which never ends, and where its orders go.
pub fn worker(shared: Shared, key: Key) -> (Arc<Mailbox>, impl Future<Output = ()> + Send) {
    let worker = Worker::new(shared, key);
    (Arc::clone(&worker.mailbox), worker.run())
}

struct Worker {
    shared: Shared,
    key: Key,
    mailbox: Arc<Mailbox>,
    inbox: Arc<Inbox>,
    jobs: FuturesUnordered<Job>,
    running: Option<Running>,
    /// Since when the record holds something else than what runs here.
    overtaken: Option<Instant>,
    /// A plan was refused, to be written by this account, and what ran before is not loaded yet: nothing
    /// is told until then.
    turning_back: Option<Account>,
    removal: Option<Removing>,
    frozen: Option<(String, String)>,
    refusal: Option<Refusal>,
    heals_total: u64,
    last_report: Option<(Report, Instant)>,
    repeat: bool,
}

struct Removing {
    removal: Arc<Verified<Removal>>,
    account: Account,
    deleting: Deleting,
    recording: bool,
    done: bool,
    problem: Option<Failure>,
}

impl Worker {
    fn new(shared: Shared, key: Key) -> Self {
        Self {
            shared,
            key,
            mailbox: Arc::default(),
            inbox: Arc::default(),
            jobs: FuturesUnordered::new(),
            running: None,
            overtaken: None,
            turning_back: None,
            removal: None,
            frozen: None,
            refusal: None,
            heals_total: 0,
            last_report: None,
            repeat: false,
        }
    }

    async fn run(mut self) {
        loop {
            let wake = self.advance();
            let slept = tokio::time::sleep(wake.saturating_duration_since(Instant::now()));
            tokio::select! {
                biased;
                () = self.mailbox.arrived() => {
                    let slot = self.mailbox.take();
                    self.take(slot);
                }
                Some(done) = self.jobs.next(), if !self.jobs.is_empty() => self.finish(done),
                () = self.inbox.arrived() => {}
                () = slept => {}
            }
            self.observe();
        }
    }

    fn take(&mut self, slot: Slot) {
        let Slot { order, refusal, repeat } = slot;
        self.repeat |= repeat;
        if order.is_some() {
            self.overtaken = None;
        }
        match order {
            None => {}
            Some(Order::Freeze { reason, message }) => {
                self.drop_flights();
                self.turning_back = None;
                self.frozen = Some((reason, message));
            }
            Some(Order::Remove(removal)) => self.begin_removal(*removal),
            Some(Order::Run(run)) => self.begin(*run),
        }
        if refusal.is_some() {
            self.refusal = refusal;
        }
    }

    fn begin(&mut self, mut run: Run) {
        let entry = self.shared.ledger.entry(&self.key);
        if !recording::is_of(entry.as_ref(), Some(&run.held), run.admission.ordered.digest) {
            // Turned back or overtaken while the order waited: what is recorded runs, nothing else.
            return self.shared.resumes.ask(&self.key);
        }
        self.drop_flights();
        self.turning_back = None;
        self.frozen = None;
        self.removal = None;
        if !run.resumed {
            self.refusal = None;
        }
        let known = self.known_kinds();
        let before = self.running.take();
        let recorded = (&self.key, entry.as_ref());
        let checks = std::mem::take(&mut run.checks);
        let mut running = Running::begin(run, recorded, &known, before.as_ref(), Instant::now());
        // The spoke may read in the namespace once it has bound itself there.
        if running.preparation != Preparation::Due {
            // After a restart, and only then, objects are waited for that no apply will show.
            let waits = running.objects.values().any(|tracked| tracked.need() == Need::Wait);
            let scopes = scopes(&running.objects);
            let relist = scopes.values().filter(|_| waits).cloned().collect();
            self.shared.watches.follow(&self.inbox, &scopes, &relist);
        }
        let adopt = running.adopts();
        for check in checks.each {
            self.jobs.extend(check.job(&mut running.objects, adopt));
        }
        self.running = Some(running);
    }

    fn drop_flights(&mut self) {
        self.jobs.clear();
        if let Some(running) = &mut self.running {
            running.forget_flights();
        }
        if let Some(removing) = &mut self.removal {
            removing.deleting.forget_flights();
            removing.recording = false;
        }
    }

    fn known_kinds(&self) -> Kinds {
        self.shared.kinds.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn begin_removal(&mut self, removal: Verified<Removal>) {
        let entry = self.shared.ledger.entry(&self.key);
        if !recording::is_of(entry.as_ref(), None, removal.ordered.digest) {
            // Another process has admitted a release meanwhile: nothing of that may be deleted.
            return self.shared.resumes.ask(&self.key);
        }
        self.jobs.clear();
        self.turning_back = None;
        self.frozen = None;
        self.refusal = None;
        let former = self.running.take();
        let (application, namespace) = &self.key;
        let account = Account::new(application, namespace, &removal.accounts_namespace);
        let inventory = entry.map(|entry| entry.record.inventory).unwrap_or_default();
        let inventory = with_met(inventory, former.as_ref().map(|former| &former.objects));
        let deleting = Deleting::of(&inventory, &self.known_kinds());
        self.shared.watches.follow(&self.inbox, &BTreeMap::new(), &BTreeSet::new());
        self.removal = Some(Removing {
            removal: Arc::new(removal),
            account,
            done: inventory.is_empty(),
            deleting,
            recording: false,
            problem: None,
        });
    }

    fn observe(&mut self) {
        let News { objects, scopes } = self.inbox.take();
        let Some(running) = &mut self.running else { return };
        let now = Instant::now();
        for (scope, refused) in scopes {
            running.see_scope(scope, refused, now);
        }
        for (key, seen) in objects {
            let Some(tracked) = running.objects.get_mut(&key) else { continue };
            if tracked.see(seen) {
                self.shared.metrics.drifts.inc();
                tracing::info!(
                    application = %self.key.0, namespace = %self.key.1, object = %key,
                    "An object differs from what is signed"
                );
            }
        }
    }

    /// Makes the requests that are due and reports. Returns when to come again without news.
    fn advance(&mut self) -> Instant {
        let now = Instant::now();
        let mut wake = now + IDLE;
        if let Some(at) = self.overtaken.map(|since| since + OVERTAKEN_WAIT) {
            if at <= now {
                self.give_way();
            }
            wake = wake.min(at.max(now));
        } else if self.frozen.is_none() {
            for at in [self.advance_running(now), self.advance_removal(now)].into_iter().flatten() {
                wake = wake.min(at);
            }
        }
        if let Some(at) = self.report(now) {
            wake = wake.min(at);
        }
        wake
    }

    /// Another process has recorded something newer, and no order for it came: this one stops, and
    /// runs what is recorded.
    fn give_way(&mut self) {
        self.overtaken = None;
        self.drop_flights();
        let text = "another process has recorded something newer; it is being loaded".to_owned();
        self.frozen = Some((LedgerError::Overtaken.reason().to_owned(), text));
        self.shared.resumes.ask(&self.key);
    }

    fn advance_running(&mut self, now: Instant) -> Option<Instant> {
        let room = IN_FLIGHT_MAX.saturating_sub(self.jobs.len());
        let running = self.running.as_mut()?;
        let turns_at = running.objects.values_mut().filter_map(|tracked| tracked.turn(now)).min();
        // What failed is preparing or recording. Neither may keep an object from being put back.
        let held_back = running.problem.as_ref().map(|p| p.retry_at).filter(|at| *at > now);
        let prepared = matches!(running.preparation, Preparation::Done { .. });
        let rules = Rules {
            self_heal: running.admission.plan.sync.self_heal,
            adopt: running.adopts(),
            only_heals: !prepared && held_back.is_some(),
            way_back: running.way_back,
            begun: running.begun,
        };
        let (steps, wake) = objects::steps(&running.objects, rules, now, room);
        if !steps.is_empty() {
            running.settled = false;
        }
        if prepared || rules.only_heals {
            for step in steps {
                let job = running.job(&self.shared.api, step);
                self.jobs.extend(job);
            }
        } else if running.preparation == Preparation::Due
            && (!steps.is_empty() || running.sight.is_blind())
        {
            running.preparation = Preparation::Underway;
            let (account, api) = (running.account.clone(), self.shared.api.clone());
            self.jobs.push(Box::pin(async move { Done::Prepared(account.prepare(&api).await) }));
        }
        let quiet = running.objects.values().all(|tracked| !tracked.busy);
        let pruned = self.settle(now);
        let due = |r: &Running| !r.recording && (r.begins && r.way_back || r.dirty && quiet);
        if self.running.as_ref().is_some_and(due)
            && held_back.is_none()
            && let Some(running) = &mut self.running
        {
            self.jobs.push(running.record(&self.shared.ledger, &self.key));
        }
        wake.into_iter().chain(held_back).chain(turns_at).chain(pruned).min()
    }

    /// Once everything is applied and healthy: the last good release, then what is no longer rendered.
    /// Returns when to ask again for something that is to be deleted.
    fn settle(&mut self, now: Instant) -> Option<Instant> {
        let room = IN_FLIGHT_MAX.saturating_sub(self.jobs.len());
        let running = self.running.as_mut()?;
        let applied = running.objects.values().all(|t| t.need() == Need::Nothing && !t.busy);
        if !applied || !report::is_settled(report::overall(&running.objects)) {
            return None;
        }
        if !running.settled {
            running.settled = true;
            running.dirty = true;
        }
        if running.way_back
            || running.leftovers.is_empty()
            || !running.admission.plan.sync.prune
            || running.is_guarded()
        {
            return None;
        }
        let pruning =
            running.pruning.get_or_insert_with(|| Deleting::of(&running.leftovers, &running.kinds));
        let by = By {
            authority: Authority::Prune(Arc::clone(&running.admission)),
            account: running.account.clone(),
        };
        let (jobs, wake) = pruning.jobs(&self.shared, &by, now, room);
        self.jobs.extend(jobs);
        let finished = pruning.items.is_empty();
        if finished && !pruning.done.is_empty() {
            running.dirty = true;
        }
        wake
    }

    fn advance_removal(&mut self, now: Instant) -> Option<Instant> {
        let room = IN_FLIGHT_MAX.saturating_sub(self.jobs.len());
        let removing = self.removal.as_mut().filter(|removing| !removing.done)?;
        if let Some(problem) = removing.problem.as_ref().filter(|p| p.retry_at > now) {
            return Some(problem.retry_at);
        }
        let by = By {
            authority: Authority::Remove(Arc::clone(&removing.removal)),
            account: removing.account.clone(),
        };
        let (jobs, wake) = removing.deleting.jobs(&self.shared, &by, now, room);
        self.jobs.extend(jobs);
        if removing.deleting.items.is_empty() && !removing.recording {
            removing.recording = true;
            self.jobs.push(recording::removed(&self.shared.ledger, &self.key));
        }
        wake
    }

    fn finish(&mut self, done: Done) {
        let now = Instant::now();
        match done {
            Done::Prepared(result) => self.finish_preparation(result, now),
            Done::Checked(key, result) => self.finish_check(&key, result, now),
            Done::Wrote { key, heal, result } => self.finish_write(&key, heal, result, now),
            Done::Looked(key, result) => self.finish_look(&key, result, now),
            Done::Recorded(result) => self.finish_record(result, now),
            Done::TurnedBack(result) => self.finish_turn_back(result),
            Done::Withdrawn => {}
            Done::Deleted(key, result) => self.finish_delete(&key, result, now),
        }
    }

    fn finish_preparation(&mut self, result: Result<bool, ApiError>, now: Instant) {
        let Some(running) = &mut self.running else { return };
        match result {
            Ok(made) => {
                let settling_until = made.then(|| now + NOT_READY_FOR);
                running.preparation = Preparation::Done { settling_until };
                running.problem = None;
                let relist = if made { running.sight.blind() } else { BTreeSet::new() };
                self.shared.watches.follow(&self.inbox, &scopes(&running.objects), &relist);
            }
            Err(error) => {
                running.preparation = Preparation::Due;
                let text = error_chain(&error);
                running.problem =
                    Some(Failure::after(running.problem.as_ref(), error.reason(), text, now));
            }
        }
    }

    fn finish_check(&mut self, key: &ObjectKey, result: Result<Passed, ApplyError>, now: Instant) {
        let Some(running) = &mut self.running else { return };
        running.timings.requests += 1;
        let way_back = running.way_back && !(running.recording && running.forgoing);
        let conflict = matches!(result, Err(ApplyError::FieldConflict { .. }));
        match result {
            Ok(passed) => {
                if let Some(tracked) = running.objects.get_mut(key) {
                    tracked.busy = false;
                    tracked.passed = Some(passed);
                    tracked.failure = None;
                }
            }
            Err(error) if conflict && way_back => self.turn_back(&error),
            Err(error) => running.fail(key, &error, now),
        }
    }

    fn finish_write(
        &mut self,
        key: &ObjectKey,
        heal: bool,
        result: Result<Written, ApplyError>,
        now: Instant,
    ) {
        let Some(running) = &mut self.running else { return };
        running.timings.requests += 1;
        let label = if result.is_ok() { "applied" } else { "failed" };
        self.shared.metrics.applies.with_label_values(&[label]).inc();
        let Written { confirmed, observation, created } = match result {
            Ok(written) => written,
            Err(error) => return running.fail(key, &error, now),
        };
        let Some(tracked) = running.objects.get_mut(key) else { return };
        tracked.busy = false;
        tracked.failure = None;
        let drifted_at = tracked.drifted_at.take();
        running.dirty |= tracked.confirmed.as_ref() != Some(&confirmed)
            || tracked.owned_uid.as_ref() != Some(&confirmed.uid);
        tracked.owned_uid = Some(confirmed.uid.clone());
        tracked.met = objects::is_met(tracked.met, tracked.passed, created);
        tracked.confirmed = Some(confirmed);
        tracked.see(observation);
        if heal {
            tracked.budget.spend(now);
            self.heals_total += 1;
            self.shared.metrics.heals.inc();
            let took = drifted_at.map(|at| now.duration_since(at)).unwrap_or_default();
            self.shared.metrics.heal_seconds.observe(took.as_secs_f64());
            tracing::info!(
                application = %self.key.0, namespace = %self.key.1, object = %key,
                duration_us = micros(took),
                "Put an object back"
            );
        } else if running.objects.values().all(|t| t.need() != Need::Apply) {
            let took = now.duration_since(running.begun);
            running.timings.apply_us = micros(took);
            self.shared.metrics.apply_seconds.observe(took.as_secs_f64());
        }
    }

    fn finish_look(
        &mut self,
        key: &ObjectKey,
        result: Result<Option<Value>, ApiError>,
        now: Instant,
    ) {
        let Some(running) = &mut self.running else { return };
        match result {
            Err(error) => running.fail(key, &ApplyError::Api(error), now),
            Ok(found) => {
                let Some(tracked) = running.objects.get_mut(key) else { return };
                tracked.busy = false;
                tracked.failure = None;
                match found {
                    Some(live) => {
                        tracked.see(observe(&key.group, &key.kind, &live));
                    }
                    None => {
                        let uid = tracked.owned_uid.clone().unwrap_or_default();
                        let gone = absent(&tracked.scope, Live::Gone { uid });
                        tracked.see(gone);
                    }
                }
            }
        }
    }

    fn finish_record(&mut self, result: Result<Recorded, LedgerError>, now: Instant) {
        if matches!(result, Ok(Recorded::Superseded)) {
            self.overtaken = Some(now);
            return;
        }
        let failure = |former: Option<&Failure>, error: &LedgerError| {
            Failure::after(former, error.reason(), error_chain(error), now)
        };
        if let Some(removing) = &mut self.removal {
            removing.recording = false;
            match result {
                Ok(_) => {
                    removing.done = true;
                    removing.problem = None;
                    self.shared.ledger.tidy_content();
                }
                Err(error) => removing.problem = Some(failure(removing.problem.as_ref(), &error)),
            }
            return;
        }
        let Some(running) = &mut self.running else { return };
        running.recording = false;
        match result {
            Ok(_) => {
                running.problem = None;
                if std::mem::take(&mut running.forgoing) {
                    (running.way_back, running.begins) = (false, false);
                }
                let left = std::mem::take(&mut running.leaving);
                running.leftovers.retain(|owned| !left.contains(&owned.key));
                if let Some(pruning) = &mut running.pruning {
                    pruning.done.retain(|key| !left.contains(key));
                }
                running.pruning.take_if(|p| p.items.is_empty() && p.done.is_empty());
            }
            Err(error) => {
                running.dirty = true;
                running.problem = Some(failure(running.problem.as_ref(), &error));
            }
        }
    }

    fn finish_delete(
        &mut self,
        key: &ObjectKey,
        result: Result<Deleted, ApplyError>,
        now: Instant,
    ) {
        let deleting = match (&mut self.removal, &mut self.running) {
            (Some(removing), _) => Some(&mut removing.deleting),
            (None, Some(running)) => running.pruning.as_mut(),
            (None, None) => None,
        };
        let Some(deleting) = deleting else { return };
        if deleting.finish(key, result, now) {
            self.shared.metrics.prunes.inc();
        }
    }

    /// The plan meets an object of somebody else before anything was written: it is refused as a
    /// whole, and what ran before goes on.
    fn turn_back(&mut self, error: &ApplyError) {
        let Some(refused) = self.running.take() else { return };
        self.jobs.clear();
        let refusal = Refusal {
            reason: error.reason().to_owned(),
            message: error_chain(error),
            sequence: Some(refused.admission.ordered.directive.sequence),
            at: jiff::Timestamp::now(),
        };
        tracing::warn!(
            application = %self.key.0, namespace = %self.key.1,
            reason = refusal.reason, error = refusal.message,
            "Refused a plan"
        );
        self.shared.metrics.refused(&refusal.reason);
        let (application, namespace) = (self.key.0.to_string(), self.key.1.to_string());
        let noted = Refused::new(application, namespace, true, refusal.clone());
        self.shared.refusals.note(noted);
        self.refusal = Some(refusal);
        let nothing = BTreeMap::new();
        self.shared.watches.follow(&self.inbox, &nothing, &BTreeSet::new());
        let Running { held, resumed, admission, account, .. } = refused;
        self.turning_back = Some(account);
        let order = (held, admission.ordered.digest);
        self.jobs.push(recording::turned_back(&self.shared.ledger, &self.key, order, resumed));
    }

    fn finish_turn_back(&mut self, result: Result<bool, LedgerError>) {
        match result {
            Ok(true) => self.shared.resumes.ask(&self.key),
            Ok(false) => {
                let account = self.turning_back.take();
                self.jobs.extend(account.map(|account| self.withdrawal(account)));
            }
            Err(error) => {
                self.turning_back = None;
                self.frozen = Some((error.reason().to_owned(), error_chain(&error)));
            }
        }
    }

    /// Takes away what was made for a plan of which nothing was written, unless something of the
    /// application is or may be here. Tried until it is done, or an order comes.
    fn withdrawal(&self, account: Account) -> Job {
        let Shared { api, ledger, .. } = self.shared.clone();
        let key = self.key.clone();
        let in_use = move || {
            ledger.with_records(|records| {
                let is_idle = |key: &Key| records.get(key).is_none_or(Record::is_idle);
                let mut here = records.keys().filter(|(_, namespace)| *namespace == key.1);
                (!is_idle(&key), !here.all(is_idle))
            })
        };
        // A hub may order the same again, to be made and taken away each time.
        self.shared.ledger.writes().spend(RIGHTS_BYTES);
        Box::pin(async move {
            let mut failure = None;
            while let (false, namespace_in_use) = in_use()
                && let Err(error) = account.withdraw(&api, !namespace_in_use).await
            {
                let text = error_chain(&error);
                if !error.is_transient() {
                    tracing::warn!(
                        application = %account.application, namespace = %account.destination,
                        reason = error.reason(), error = %text,
                        "Cannot take back the rights of an application that does not run"
                    );
                    break;
                }
                let now = Instant::now();
                let next = Failure::after(failure.as_ref(), error.reason(), text, now);
                tokio::time::sleep(next.retry_at.saturating_duration_since(now)).await;
                failure = Some(next);
            }
            Done::Withdrawn
        })
    }

    /// Reports when something changed. Returns when a change that can wait is due.
    fn report(&mut self, now: Instant) -> Option<Instant> {
        if self.turning_back.is_some() {
            return None;
        }
        if self.running.is_none()
            && self.removal.is_none()
            && self.refusal.is_none()
            && self.frozen.is_none()
        {
            return None;
        }
        let report = report::report(&self.situation());
        let repeat = std::mem::take(&mut self.repeat);
        if let Some((last, at)) = &self.last_report {
            let same = Report { observed_at: report.observed_at, ..last.clone() } == report;
            if same && !repeat {
                return None;
            }
            let urgent = repeat
                || last.phase != report.phase
                || last.reason != report.reason
                || last.sequence != report.sequence;
            if !urgent && now.duration_since(*at) < REPORT_EVERY {
                return Some(*at + REPORT_EVERY);
            }
            if last.phase != report.phase || last.reason != report.reason {
                log(&report);
            }
        } else {
            log(&report);
        }
        self.shared.outbox.report(&report);
        self.last_report = Some((report, now));
        None
    }

    fn situation(&self) -> Situation<'_> {
        let seen = self.shared.ledger.with_records(|records| {
            records.get(&self.key).map(|record| (record.epoch, record.sequence))
        });
        let problem = match (&self.removal, &self.running) {
            (Some(removing), _) => removing.problem.as_ref(),
            (None, Some(running)) => running.problem.as_ref().or_else(|| running.sight.problem()),
            (None, None) => None,
        };
        Situation {
            key: &self.key,
            epoch: seen.map(|(epoch, _)| epoch),
            sequence: seen.map(|(_, sequence)| sequence),
            running: self.running.as_ref().map(Running::now),
            removal: self.removal.as_ref().map(|removing| RemovalNow {
                left: removing.deleting.items.len(),
                done: removing.done,
                obstacle: removing.deleting.obstacle(),
            }),
            frozen: self.frozen.as_ref(),
            refusal: self.refusal.as_ref(),
            problem,
            heals_total: self.heals_total,
            now: jiff::Timestamp::now(),
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
