//! One application in one namespace: a worker that brings the cluster to what was admitted and keeps it there.
//!
//! Nothing is decided about trust here; a worker gets `Verified` values only. What to do next is
//! `state`, what it looks like to others is `status`; this file makes the requests and takes in what
//! comes back. Workers share nothing but the API server, so one never holds up another.

pub mod state;
pub mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use attest_common::effective;
use attest_common::health::{self, Health};
use attest_common::ids::Timestamp;
use attest_common::kinds::{self, Kinds};
use attest_common::manifest::ObjectKey;
use attest_common::record::{Held, Owned};
use attest_common::report::{Phase, Refusal, Report, Timings, error_chain};
use attest_common::verify::{Admission, Removal, Verified};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use serde_json::Value;
use tokio::sync::Notify;

use self::state::{
    Deleting, Failure, IN_FLIGHT_MAX, Item, NOT_READY_FOR, RETRY_MIN, Rules, Step, Tracked,
};
use self::status::{RemovalNow, RunningNow, Situation};
use crate::account::Account;
use crate::apply::{self, ApplyError, Authority, Passed, Target, Written};
use crate::cluster::{ApiError, ApiServer, object_path};
use crate::drift::{HealBudget, Live, Need};
use crate::ledger::content::Kept;
use crate::ledger::refusals::{Refusals, Refused};
use crate::ledger::{ConfirmedPairs, Entry, Ledger, LedgerError};
use crate::metrics::Metrics;
use crate::outbox::{Key, Outbox};
use crate::watch::{Inbox, Scope, Watches, observe};

/// Shortest time between two reports that say nothing urgent.
pub const REPORT_EVERY: Duration = Duration::from_millis(250);
/// How long a worker with nothing to do sleeps at most.
const IDLE: Duration = Duration::from_secs(60 * 60);

/// What all workers use.
#[derive(Clone, Debug)]
pub struct Shared {
    pub api: ApiServer,
    pub ledger: Ledger,
    pub refusals: Refusals,
    pub watches: Watches,
    pub outbox: Outbox,
    pub metrics: Metrics,
    /// What the API server serves, as far as it was asked.
    pub kinds: Arc<RwLock<Kinds>>,
}

/// What a worker is to do now.
#[derive(Debug)]
pub enum Order {
    /// Bring the cluster to this admission and keep it there. Its record is durable.
    Run(Box<Run>),
    /// Take the application away. Its record is durable.
    Remove(Box<Verified<Removal>>),
    /// Change nothing, for this reason.
    Freeze { reason: String, message: String },
}

/// An admission and where it came from.
#[derive(Debug)]
pub struct Run {
    pub admission: Verified<Admission>,
    pub held: Held,
    /// True when it was loaded, not newly admitted.
    pub resumed: bool,
    /// What was recorded before this was admitted: where to go back to when the plan is refused
    /// after all.
    pub former: Option<Box<Entry>>,
    /// Holds the content of `former` until there is no way back.
    pub kept: Option<Kept>,
    pub timings: Timings,
}

/// Where orders wait. The newest replaces an older one that was not yet taken.
#[derive(Debug, Default)]
pub struct Mailbox {
    slot: Mutex<Slot>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Slot {
    order: Option<Order>,
    refusal: Option<Refusal>,
    /// Tell the hub again how things are.
    repeat: bool,
}

impl Mailbox {
    /// Gives an order.
    pub fn order(&self, order: Order) {
        self.change(|slot| slot.order = Some(order));
    }

    /// Says that a document for this destination was refused.
    pub fn refused(&self, refusal: Refusal) {
        self.change(|slot| slot.refusal = Some(refusal));
    }

    /// Asks for a report.
    pub fn repeat(&self) {
        self.change(|slot| slot.repeat = true);
    }

    fn change(&self, change: impl FnOnce(&mut Slot)) {
        change(&mut self.slot.lock().unwrap_or_else(PoisonError::into_inner));
        self.arrived.notify_one();
    }

    fn take(&self) -> Slot {
        std::mem::take(&mut *self.slot.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Starts the worker of a destination.
pub fn start(shared: Shared, key: Key) -> Arc<Mailbox> {
    let mailbox = Arc::new(Mailbox::default());
    let worker = Worker {
        shared,
        key,
        mailbox: Arc::clone(&mailbox),
        inbox: Arc::default(),
        jobs: FuturesUnordered::new(),
        running: None,
        former: None,
        removal: None,
        frozen: None,
        refusal: None,
        heals_total: 0,
        last_report: None,
        repeat: false,
    };
    tokio::spawn(worker.run());
    mailbox
}

struct Worker {
    shared: Shared,
    key: Key,
    mailbox: Arc<Mailbox>,
    inbox: Arc<Inbox>,
    jobs: FuturesUnordered<BoxFuture<'static, Done>>,
    running: Option<Running>,
    /// What ran before `running`, until the first object of that is written.
    former: Option<Box<Running>>,
    removal: Option<Removing>,
    frozen: Option<(String, String)>,
    refusal: Option<Refusal>,
    heals_total: u64,
    last_report: Option<(Report, Instant)>,
    repeat: bool,
}

struct Running {
    admission: Arc<Verified<Admission>>,
    held: Held,
    recorded_before: Option<Box<Entry>>,
    /// Holds the content of `recorded_before` until the first object is written.
    kept: Option<Kept>,
    account: Account,
    kinds: Kinds,
    objects: BTreeMap<ObjectKey, Tracked>,
    leftovers: Vec<Owned>,
    pruning: Option<Deleting>,
    preparation: Preparation,
    written_any: bool,
    /// The record lags behind what was applied.
    dirty: bool,
    /// What leaves the inventory with the record being written.
    leaving: BTreeSet<ObjectKey>,
    recording: bool,
    settled: bool,
    begun: Instant,
    since: Timestamp,
    timings: Timings,
    problem: Option<Failure>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Preparation {
    Due,
    Underway,
    Done { settling_until: Option<Instant> },
}

struct Removing {
    removal: Arc<Verified<Removal>>,
    account: Account,
    deleting: Deleting,
    recording: bool,
    done: bool,
    problem: Option<Failure>,
}

/// A request that came back.
enum Done {
    Prepared(Result<bool, ApiError>),
    Checked(ObjectKey, Result<Passed, ApplyError>),
    Wrote { key: ObjectKey, heal: bool, result: Result<Written, ApplyError> },
    Looked(ObjectKey, Result<Option<Value>, ApiError>),
    Recorded(Result<bool, LedgerError>),
    Deleted(ObjectKey, Result<(), ApplyError>),
}

impl Worker {
    async fn run(mut self) {
        loop {
            let wake = self.advance();
            let slept = tokio::time::sleep(wake.saturating_duration_since(Instant::now()));
            tokio::select! {
                biased;
                () = self.mailbox.arrived.notified() => {
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
        match order {
            None => {}
            Some(Order::Freeze { reason, message }) => {
                self.jobs.clear();
                self.forget_flights();
                self.frozen = Some((reason, message));
            }
            Some(Order::Remove(removal)) => self.begin_removal(*removal),
            Some(Order::Run(run)) => self.begin(*run),
        }
        if refusal.is_some() {
            self.refusal = refusal;
        }
    }

    /// Requests that were dropped may or may not have been carried out; the watch will tell.
    fn forget_flights(&mut self) {
        let Some(running) = &mut self.running else { return };
        running.objects.values_mut().for_each(|tracked| tracked.busy = false);
        running.recording = false;
        if running.preparation == Preparation::Underway {
            running.preparation = Preparation::Due;
        }
        if let Some(pruning) = &mut running.pruning {
            pruning.items.values_mut().for_each(|item| item.busy = false);
        }
    }

    fn begin(&mut self, run: Run) {
        let Run { admission, held, resumed, former: recorded_before, kept, timings } = run;
        self.jobs.clear();
        self.forget_flights();
        self.frozen = None;
        self.removal = None;
        if !resumed {
            self.refusal = None;
        }
        let now = Instant::now();
        let entry = self.shared.ledger.entry(&self.key);
        let (application, namespace) = &self.key;
        let account =
            Account::new(application, namespace, &admission.admitted.local.accounts_namespace);
        let known = self.shared.kinds.read().unwrap_or_else(PoisonError::into_inner).clone();
        let kinds = effective::with_definitions(&admission.admitted.objects, &known);
        let former = self.running.take();
        let inventory = entry.as_ref().map(|e| e.record.inventory.clone()).unwrap_or_default();
        let inventory = with_met(inventory, former.as_ref());
        let no_pairs = ConfirmedPairs::new();
        let pairs = entry.as_ref().map_or(&no_pairs, |e| &e.confirmed);
        let mut objects = track(&admission, &kinds, &account, (&inventory, pairs), former.as_ref());
        // Only what was listed before this admission can be an apply of ours that was not finished.
        if !resumed {
            let before = recorded_before.iter().flat_map(|entry| &entry.record.inventory);
            let listed: BTreeSet<&ObjectKey> = before.map(|owned| &owned.key).collect();
            for (key, tracked) in &mut objects {
                tracked.unfinished &= listed.contains(key);
            }
        }
        let leftovers =
            inventory.iter().filter(|owned| !objects.contains_key(&owned.key)).cloned().collect();
        let was_written = objects.values().any(|tracked| tracked.confirmed.is_some());
        let same_plan = former.as_ref().is_some_and(|former| former.held == held);
        let since =
            if resumed { admission.ordered.directive.issued_at } else { jiff::Timestamp::now() };
        // After a restart, and only then, objects are waited for that no apply will show.
        let relist = objects.values().any(|tracked| tracked.need() == Need::Wait);
        let running = Running {
            since: former.as_ref().filter(|_| same_plan).map_or(since, |former| former.since),
            admission: Arc::new(admission),
            held,
            recorded_before,
            kept,
            account,
            kinds,
            objects,
            leftovers,
            pruning: None,
            // Rights that were enough before are there; otherwise the first request says so.
            preparation: if was_written {
                Preparation::Done { settling_until: None }
            } else {
                Preparation::Due
            },
            written_any: resumed || same_plan,
            dirty: false,
            leaving: BTreeSet::new(),
            recording: false,
            settled: false,
            begun: now,
            timings,
            problem: None,
        };
        if !same_plan && !resumed {
            self.former = former.map(Box::new);
        }
        // The spoke may read in the namespace once it has bound itself there.
        if running.preparation != Preparation::Due {
            self.shared.watches.follow(&self.inbox, &scopes(&running.objects), relist);
        }
        self.running = Some(running);
    }

    fn begin_removal(&mut self, removal: Verified<Removal>) {
        self.jobs.clear();
        self.frozen = None;
        self.refusal = None;
        let former = self.running.take();
        self.former = None;
        let (application, namespace) = &self.key;
        let account = Account::new(application, namespace, &removal.accounts_namespace);
        let entry = self.shared.ledger.entry(&self.key);
        let inventory = entry.map(|entry| entry.record.inventory).unwrap_or_default();
        let inventory = with_met(inventory, former.as_ref());
        let kinds = self.shared.kinds.read().unwrap_or_else(PoisonError::into_inner).clone();
        let deleting = deleting(&inventory, &kinds);
        self.shared.watches.follow(&self.inbox, &BTreeMap::new(), false);
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
        let news = self.inbox.take();
        let Some(running) = &mut self.running else { return };
        for (key, seen) in news {
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
        if self.frozen.is_none() {
            for at in [self.advance_running(now), self.advance_removal(now)].into_iter().flatten() {
                wake = wake.min(at);
            }
        }
        if let Some(at) = self.report(now) {
            wake = wake.min(at);
        }
        wake
    }

    fn advance_running(&mut self, now: Instant) -> Option<Instant> {
        let room = IN_FLIGHT_MAX.saturating_sub(self.jobs.len());
        let running = self.running.as_mut()?;
        // What failed is preparing or recording. Neither may keep an object from being put back.
        let held_back = running.problem.as_ref().map(|p| p.retry_at).filter(|at| *at > now);
        let prepared = matches!(running.preparation, Preparation::Done { .. });
        let sync = &running.admission.plan.sync;
        let rules = Rules {
            self_heal: sync.self_heal,
            adopt: sync.adopt && running.admission.admitted.local.adopt,
            only_heals: !prepared && held_back.is_some(),
            begun: running.begun,
        };
        let (steps, wake) = state::steps(&running.objects, rules, now, room);
        if !steps.is_empty() {
            running.settled = false;
        }
        if prepared || rules.only_heals {
            for step in steps {
                let job = running.job(&self.shared.api, step);
                self.jobs.extend(job);
            }
        } else if !steps.is_empty() && running.preparation == Preparation::Due {
            running.preparation = Preparation::Underway;
            let (account, api) = (running.account.clone(), self.shared.api.clone());
            self.jobs.push(Box::pin(async move { Done::Prepared(account.prepare(&api).await) }));
        }
        let quiet = running.objects.values().all(|tracked| !tracked.busy);
        self.settle(now);
        let to_record = self.running.as_ref().is_some_and(|r| r.dirty && !r.recording);
        if quiet && to_record && held_back.is_none() {
            self.record();
        }
        wake.into_iter().chain(held_back).min()
    }

    /// Once everything is applied and healthy: the last good release, then what is no longer rendered.
    fn settle(&mut self, now: Instant) {
        let room = IN_FLIGHT_MAX.saturating_sub(self.jobs.len());
        let Some(running) = &mut self.running else { return };
        let applied = running.objects.values().all(|t| t.need() == Need::Nothing && !t.busy);
        if !applied || !status::is_settled(status::overall(&running.objects)) {
            return;
        }
        if !running.settled {
            running.settled = true;
            running.kept = None;
            self.former = None;
            running.dirty = true;
        }
        if running.leftovers.is_empty()
            || !running.admission.plan.sync.prune
            || running.is_guarded()
        {
            return;
        }
        let pruning =
            running.pruning.get_or_insert_with(|| deleting(&running.leftovers, &running.kinds));
        let (keys, _) = pruning.steps(now, room);
        let authority = Authority::Prune(Arc::clone(&running.admission));
        for key in keys {
            let job = delete_job(&self.shared.api, &authority, &running.account, pruning, key);
            self.jobs.extend(job);
        }
        let finished = pruning.items.is_empty();
        if finished && !pruning.done.is_empty() {
            running.dirty = true;
        }
    }

    fn advance_removal(&mut self, now: Instant) -> Option<Instant> {
        let room = IN_FLIGHT_MAX.saturating_sub(self.jobs.len());
        let removing = self.removal.as_mut().filter(|removing| !removing.done)?;
        if let Some(problem) = removing.problem.as_ref().filter(|p| p.retry_at > now) {
            return Some(problem.retry_at);
        }
        let (keys, wake) = removing.deleting.steps(now, room);
        let authority = Authority::Remove(Arc::clone(&removing.removal));
        for key in keys {
            let job = delete_job(
                &self.shared.api,
                &authority,
                &removing.account,
                &mut removing.deleting,
                key,
            );
            self.jobs.extend(job);
        }
        if removing.deleting.items.is_empty() && !removing.recording {
            removing.recording = true;
            let (ledger, key) = (self.shared.ledger.clone(), self.key.clone());
            self.jobs.push(Box::pin(async move {
                let change = |entry: Option<Entry>| {
                    let emptied = entry.filter(|entry| entry.record.removed).map(|mut entry| {
                        entry.record.inventory.clear();
                        entry.confirmed.clear();
                        entry
                    });
                    Ok(emptied)
                };
                Done::Recorded(ledger.update(&key, change).await.map(|entry| entry.is_some()))
            }));
        }
        wake
    }

    /// Makes durable what was learnt: UIDs, confirmed pairs, what left the inventory, the last good release.
    fn record(&mut self) {
        let Some(running) = &mut self.running else { return };
        running.recording = true;
        running.dirty = false;
        let held = running.held.clone();
        let known: BTreeMap<ObjectKey, (Option<String>, bool)> = running
            .objects
            .iter()
            .map(|(key, t)| (key.clone(), (t.owned_uid.clone(), t.met)))
            .collect();
        let pairs: ConfirmedPairs = running
            .objects
            .iter()
            .filter_map(|(key, t)| Some((key.clone(), t.confirmed.clone()?)))
            .collect();
        let gone: BTreeSet<ObjectKey> =
            running.pruning.iter().flat_map(|pruning| pruning.done.iter().cloned()).collect();
        running.leaving.clone_from(&gone);
        let settled = running.settled;
        let (ledger, key) = (self.shared.ledger.clone(), self.key.clone());
        self.jobs.push(Box::pin(async move {
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
        }));
    }

    fn finish(&mut self, done: Done) {
        let now = Instant::now();
        match done {
            Done::Prepared(result) => self.finish_preparation(result, now),
            Done::Checked(key, result) => self.finish_check(&key, result, now),
            Done::Wrote { key, heal, result } => self.finish_write(&key, heal, result, now),
            Done::Looked(key, result) => self.finish_look(&key, result, now),
            Done::Recorded(result) => self.finish_record(result, now),
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
                self.shared.watches.follow(&self.inbox, &scopes(&running.objects), false);
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
        let written_any = running.written_any;
        let conflict = matches!(result, Err(ApplyError::FieldConflict { .. }));
        match result {
            Ok(passed) => {
                if let Some(tracked) = running.objects.get_mut(key) {
                    tracked.busy = false;
                    tracked.passed = Some(passed);
                    tracked.failure = None;
                }
            }
            Err(error) if conflict && !written_any => self.turn_back(&error),
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
        running.written_any = true;
        running.kept = None;
        self.former = None;
        let Some(tracked) = running.objects.get_mut(key) else { return };
        tracked.busy = false;
        tracked.failure = None;
        let drifted_at = tracked.drifted_at.take();
        running.dirty |= tracked.confirmed.as_ref() != Some(&confirmed)
            || tracked.owned_uid.as_ref() != Some(&confirmed.uid);
        tracked.owned_uid = Some(confirmed.uid.clone());
        tracked.met = state::is_met(tracked.met, tracked.passed, created);
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
                duration_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
                "Put an object back"
            );
        } else if running.objects.values().all(|t| t.need() != Need::Apply) {
            let took = now.duration_since(running.begun);
            running.timings.apply_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
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
                        tracked.live = Live::Gone { uid };
                        tracked.health = Health::NotFound;
                        tracked.drifted_at.get_or_insert(now);
                    }
                }
            }
        }
    }

    fn finish_record(&mut self, result: Result<bool, LedgerError>, now: Instant) {
        let failure = |former: Option<&Failure>, error: &LedgerError| {
            Failure::after(former, error.reason(), error_chain(error), now)
        };
        if let Some(removing) = &mut self.removal {
            removing.recording = false;
            match result {
                Ok(_) => {
                    removing.done = true;
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

    fn finish_delete(&mut self, key: &ObjectKey, result: Result<(), ApplyError>, now: Instant) {
        let deleting = match (&mut self.removal, &mut self.running) {
            (Some(removing), _) => Some(&mut removing.deleting),
            (None, Some(running)) => running.pruning.as_mut(),
            (None, None) => None,
        };
        let Some(deleting) = deleting else { return };
        match result {
            Ok(()) => {
                deleting.items.remove(key);
                deleting.done.push(key.clone());
                self.shared.metrics.prunes.inc();
            }
            Err(error) => {
                if let Some(item) = deleting.items.get_mut(key) {
                    item.busy = false;
                    let text = error_chain(&error);
                    item.failure =
                        Some(Failure::after(item.failure.as_ref(), error.reason(), text, now));
                }
            }
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
        self.shared.refusals.note(Refused {
            application: self.key.0.to_string(),
            namespace: self.key.1.to_string(),
            signed: true,
            refusal: refusal.clone(),
        });
        self.refusal = Some(refusal);
        let former = self.former.take();
        let back = refused.recorded_before;
        let (ledger, key) = (self.shared.ledger.clone(), self.key.clone());
        let (refused_held, kept) = (refused.held, refused.kept);
        self.jobs.push(Box::pin(async move {
            let change = |entry: Option<Entry>| {
                let mine = entry.filter(|e| e.record.held.as_ref() == Some(&refused_held));
                Ok(mine.map(|entry| gone_back(entry, back.as_deref())))
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
        }));
        let mut watched = BTreeMap::new();
        if let Some(mut former) = former {
            for (key, tracked) in &mut former.objects {
                tracked.busy = false;
                if let Some(seen) = refused.objects.get(key) {
                    tracked.live = seen.live.clone();
                    tracked.health = seen.health;
                    tracked.message.clone_from(&seen.message);
                }
            }
            watched = scopes(&former.objects);
            former.recording = true;
            self.running = Some(*former);
        }
        self.shared.watches.follow(&self.inbox, &watched, false);
    }

    /// Reports when something changed. Returns when a change that can wait is due.
    fn report(&mut self, now: Instant) -> Option<Instant> {
        if self.running.is_none()
            && self.removal.is_none()
            && self.refusal.is_none()
            && self.frozen.is_none()
        {
            return None;
        }
        let report = status::report(&self.situation());
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
            (None, Some(running)) => running.problem.as_ref(),
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
            }),
            frozen: self.frozen.as_ref(),
            refusal: self.refusal.as_ref(),
            problem,
            heals_total: self.heals_total,
            now: jiff::Timestamp::now(),
        }
    }
}

impl Running {
    fn now(&self) -> RunningNow<'_> {
        RunningNow {
            admission: &self.admission,
            plan: self.held.plan_digest,
            since: self.since,
            objects: &self.objects,
            leftovers: self.leftovers.len(),
            guarded: self.admission.plan.sync.prune && self.is_guarded(),
            timings: self.timings,
        }
    }

    fn is_guarded(&self) -> bool {
        let to_delete = self.leftovers.iter().filter(|o| !state::is_never_deleted(o)).count();
        let inventory = self.objects.len() + self.leftovers.len();
        let percent_max = self.admission.admitted.local.prune_percent_max;
        state::prune_is_too_much(to_delete, inventory, percent_max)
    }

    fn fail(&mut self, key: &ObjectKey, error: &ApplyError, now: Instant) {
        let settling = match self.preparation {
            Preparation::Done { settling_until } => settling_until.is_some_and(|at| now < at),
            Preparation::Underway => true,
            Preparation::Due => self.problem.is_none(),
        };
        if error.is_not_ready() && !settling {
            // Namespace, account or bindings may have been taken away.
            self.preparation = Preparation::Due;
        }
        let Some(tracked) = self.objects.get_mut(key) else { return };
        tracked.busy = false;
        let text = error_chain(error);
        if matches!(error, ApplyError::FieldConflict { .. }) {
            // Somebody else's: never deleted, and asked about anew before the next attempt.
            tracked.passed = None;
            self.dirty |= !std::mem::replace(&mut tracked.met, true);
        }
        tracked.failure = Some(if error.is_not_ready() && settling {
            Failure::not_ready(error.reason(), text, now)
        } else {
            Failure::after(tracked.failure.as_ref(), error.reason(), text, now)
        });
    }

    fn job(&mut self, api: &ApiServer, step: Step) -> Option<BoxFuture<'static, Done>> {
        let key = match &step {
            Step::Check(key, _) | Step::Look(key) | Step::Write { key, .. } => key.clone(),
        };
        let tracked = self.objects.get_mut(&key)?;
        tracked.busy = true;
        let api = api.clone();
        let target = Target {
            admission: Arc::clone(&self.admission),
            index: tracked.index,
            path: tracked.path.clone(),
            user: tracked.watched.then(|| self.account.user()),
        };
        Some(match step {
            Step::Check(key, standing) => Box::pin(async move {
                let result = apply::check(&api, &target, standing).await;
                Done::Checked(key, result)
            }),
            Step::Write { key, force, heal } => Box::pin(async move {
                let result = apply::write(&api, &target, force).await;
                Done::Wrote { key, heal, result }
            }),
            Step::Look(key) => Box::pin(async move {
                let found = match api.get(&target.path).await {
                    Ok(live) => Ok(Some(live)),
                    Err(error) if error.is_not_found() => Ok(None),
                    Err(error) => Err(error),
                };
                Done::Looked(key, found)
            }),
        })
    }
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

/// The objects of an admission, with what is known of each from the inventory and from what ran before.
fn track(
    admission: &Admission,
    kinds: &Kinds,
    account: &Account,
    (inventory, pairs): (&[Owned], &ConfirmedPairs),
    former: Option<&Running>,
) -> BTreeMap<ObjectKey, Tracked> {
    let owned: BTreeMap<&ObjectKey, &Owned> = inventory.iter().map(|o| (&o.key, o)).collect();
    let definitions: BTreeMap<(String, String), ObjectKey> = admission
        .admitted
        .objects
        .iter()
        .filter(|object| object.key().kind == "CustomResourceDefinition")
        .filter_map(|object| {
            let (group, kind, _) = Kinds::defined_by(object.value())?;
            Some(((group, kind), object.key().clone()))
        })
        .collect();
    let mut objects = BTreeMap::new();
    for (index, object) in admission.admitted.objects.iter().enumerate() {
        let key = object.key().clone();
        // Admission has checked that every kind is known.
        let Some(kind) = kinds.get(&key.group, &key.kind) else { continue };
        // The destination's own Namespace is made by the spoke, which may read it but not watch it.
        let own_namespace = key.group.is_empty()
            && key.kind == "Namespace"
            && key.name == account.destination.as_str();
        let scope = Scope {
            group: key.group.clone(),
            version: object.version().to_owned(),
            kind: key.kind.clone(),
            plural: kind.plural.clone(),
            namespace: key.namespace.clone(),
        };
        let before = former.and_then(|former| former.objects.get(&key));
        let mine = owned.get(&key);
        let definition = definitions.get(&(key.group.clone(), key.kind.clone())).cloned();
        let path =
            object_path(&object.api_version(), &kind.plural, key.namespace.as_deref(), &key.name);
        let tracked = Tracked {
            index,
            rank: kinds::apply_rank(&key.group, &key.kind),
            gates: health::gates(&key.group, &key.kind),
            desired: apply::desired(object),
            path,
            scope,
            watched: !own_namespace,
            definition,
            owned_uid: before
                .and_then(|t| t.owned_uid.clone())
                .or_else(|| mine.and_then(|owned| owned.uid.clone())),
            // `with_met` has added what is known but not recorded yet.
            met: mine.is_some_and(|owned| owned.met),
            unfinished: mine.is_some(),
            confirmed: before
                .and_then(|t| t.confirmed.clone())
                .or_else(|| pairs.get(&key).cloned()),
            live: before.map_or(Live::Unknown, |t| t.live.clone()),
            health: before.map_or(Health::NotFound, |t| t.health),
            message: before.map(|t| t.message.clone()).unwrap_or_default(),
            passed: None,
            failure: None,
            busy: false,
            budget: before.map_or_else(HealBudget::default, |t| t.budget),
            drifted_at: None,
        };
        objects.insert(key, tracked);
    }
    objects
}

/// The inventory, with what a worker knows and may not have recorded: whose objects are not ours.
fn with_met(mut inventory: Vec<Owned>, former: Option<&Running>) -> Vec<Owned> {
    for owned in &mut inventory {
        let known = former.and_then(|former| former.objects.get(&owned.key));
        if let Some(tracked) = known {
            owned.met = tracked.met;
        }
    }
    inventory
}

/// Where the objects that can be watched are.
fn scopes(objects: &BTreeMap<ObjectKey, Tracked>) -> BTreeMap<ObjectKey, Scope> {
    let watched = objects.iter().filter(|(_, tracked)| tracked.watched);
    watched.map(|(key, tracked)| (key.clone(), tracked.scope.clone())).collect()
}

/// What to delete of `inventory`, and what only leaves it.
fn deleting(inventory: &[Owned], kinds: &Kinds) -> Deleting {
    let mut deleting = Deleting::default();
    for owned in inventory {
        let key = &owned.key;
        let kind = kinds.get(&key.group, &key.kind);
        let Some(kind) = kind.filter(|_| !state::is_never_deleted(owned)) else {
            deleting.done.push(key.clone());
            continue;
        };
        let slash = if key.group.is_empty() { "" } else { "/" };
        let api_version = format!("{}{slash}{}", key.group, owned.version);
        let item = Item {
            path: object_path(&api_version, &kind.plural, key.namespace.as_deref(), &key.name),
            uid: owned.uid.clone(),
            rank: kinds::apply_rank(&key.group, &key.kind),
            busy: false,
            failure: None,
        };
        deleting.items.insert(key.clone(), item);
    }
    deleting
}

fn delete_job(
    api: &ApiServer,
    authority: &Authority,
    account: &Account,
    deleting: &mut Deleting,
    key: ObjectKey,
) -> Option<BoxFuture<'static, Done>> {
    let item = deleting.items.get_mut(&key)?;
    item.busy = true;
    let (api, authority, user) = (api.clone(), authority.clone(), account.user());
    let (path, uid) = (item.path.clone(), item.uid.clone());
    Some(Box::pin(async move {
        let uid = match uid {
            Some(uid) => Ok(Some(uid)),
            // Perhaps written just before the process ended, perhaps never: look whose it is.
            None => apply::our_uid(&api, &path).await,
        };
        let result = match uid {
            Ok(Some(uid)) => apply::delete(&api, &authority, (&key, &path, &user), &uid).await,
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        Done::Deleted(key, result)
    }))
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
