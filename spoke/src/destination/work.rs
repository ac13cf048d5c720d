//! The state machine of a destination. Pure and deterministic.
//!
//! States that exclude each other are one enum, [`Work`]. [`next`] is the only transition: it takes an
//! event and the time, changes the state, and returns the commands that `worker` performs. It takes the
//! state by `&mut`: a copy of it would cost as much as the destination has objects, for each event.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use attest_common::basics::reason::Reason;
use attest_common::basics::text::error_chain;
use attest_common::documents::manifest::ObjectKey;
use attest_common::record::rollout::RolloutView;
use attest_common::session::report::{Refusal, Report, RolloutStatus};

use super::applying::Applying;
use super::command::{AddedInventory, Command, Commands, PhaseChange, Request, Return, Revert};
use super::event::{Event, Moment, Outcome, Recorded, RemoveOrder, RunOrder};
use super::handover::Claims;
use super::mailbox::Origin;
use super::objects::Failure;
use super::recording::is_of;
use super::removing::Removing;
use super::report::{self, ReportContext};
use super::track::{autoscaler_scopes, followed};
use crate::cluster::account::Account;
use crate::cluster::apply::ApplyError;
use crate::cluster::drift::Live;
use crate::cluster::watch::{Followed, News};
use crate::ledger::error::LedgerError;
use crate::ledger::records::Key;

/// Shortest time between two reports of the same phase, reason and sequence. A report is built as rarely.
const REPORT_EVERY: Duration = Duration::from_millis(250);
/// Longest time between a record and the order that follows it.
pub(super) const OVERTAKEN_WAIT: Duration = Duration::from_secs(1);
/// Longest sleep of a worker with nothing to do.
const IDLE: Duration = Duration::from_secs(60 * 60);

/// State of a destination.
#[derive(Debug)]
pub(super) struct State {
    key: Key,
    pub(super) work: Work,
    /// The newest refusal, until an admission follows.
    refusal: Option<Refusal>,
    heals_total: u64,
    last_report: Option<Arc<Report>>,
    /// When a report was built last, whether it was sent or not.
    built_at: Option<Instant>,
    repeat: Repeat,
    /// Number of requests in flight.
    in_flight: usize,
    /// The object for which the newest plan was refused. It is watched while another plan runs.
    obstacle: Option<(ObjectKey, Followed)>,
    /// The namespaces whose pods are followed.
    pods_followed: BTreeSet<String>,
}

/// Current work of a destination.
#[derive(Debug)]
pub(super) enum Work {
    /// Nothing was ordered, or a first plan was refused.
    Idle,
    Applying(Box<Applying>),
    /// A plan of this account was refused, and the previous plan is not loaded yet: nothing is reported until
    /// then.
    Reverting(Account),
    /// A plan failed, and the newest good plan is not loaded yet: nothing is reported until then.
    Returning(Suspended),
    Removing(Box<Removing>),
    /// The record holds another order since then: nothing is begun until an order arrives.
    Overtaken {
        since: Instant,
        suspended: Suspended,
    },
    /// Nothing may be changed, for this reason.
    Frozen {
        reason: Reason,
        message: String,
        suspended: Suspended,
    },
}

/// Work that is suspended. It is still observed and reported.
#[derive(Debug)]
pub(super) enum Suspended {
    Nothing,
    Applying(Box<Applying>),
    Removing(Box<Removing>),
}

/// Request of the hub to repeat the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repeat {
    No,
    Asked,
}

/// Changes `state` by an event. Returns the commands to perform, in their order.
pub(super) fn next(state: &mut State, event: Event, moment: Moment) -> Vec<Command> {
    let mut commands = Commands::new(state.in_flight);
    match event {
        Event::Run(order) => state.run(*order, moment.now, &mut commands),
        Event::Remove(order) => state.remove(*order, &mut commands),
        Event::Freeze { reason, message } => state.freeze(reason, message, &mut commands),
        Event::Refused(refusal) => state.refusal = Some(refusal),
        Event::RepeatReport => state.repeat = Repeat::Asked,
        Event::Observed(news) => state.observed(news, moment.now, &mut commands),
        Event::Finished(outcome) => {
            commands.finished();
            state.finished(*outcome, moment, &mut commands);
        }
        Event::Tick { position, claims, rollout } => {
            let wake = state.tick((position, rollout), &claims, moment, &mut commands);
            commands.push(Command::WakeAt(wake));
        }
    }
    state.in_flight = commands.in_flight;
    commands.list
}

impl State {
    pub(super) fn new(key: Key) -> Self {
        Self {
            key,
            work: Work::Idle,
            refusal: None,
            heals_total: 0,
            last_report: None,
            built_at: None,
            repeat: Repeat::No,
            in_flight: 0,
            obstacle: None,
            pods_followed: BTreeSet::new(),
        }
    }

    fn run(&mut self, mut order: RunOrder, now: Instant, commands: &mut Commands) {
        let entry = order.facts.entry.take();
        if !is_of(entry.as_ref(), Some(&order.held), order.admission.ordered.digest) {
            // Reverted or overtaken while the order waited: only a recorded order is carried out.
            return commands.push(Command::Reload);
        }
        let before = self.stop(commands);
        if order.origin == Origin::Admitted {
            self.refusal = None;
        }
        if order.origin.is_fresh() {
            self.obstacle = None;
        }
        let asked = std::mem::take(&mut order.asked);
        let recorded = (&self.key, entry.as_ref());
        let mut applying = Applying::begin(order, recorded, before.applying(), now);
        if applying.is_prepared() {
            let (mut objects, relist) = (followed(&applying.objects), applying.relisted());
            if let Some((key, followed)) = &self.obstacle {
                // An object of the running plan is followed as that plan renders it.
                objects.entry(key.clone()).or_insert_with(|| followed.clone());
            }
            let autoscalers = autoscaler_scopes(&applying.objects);
            commands.push(Command::Follow { objects, relist, autoscalers });
        }
        applying.await_dry_runs(asked, commands);
        self.work = Work::Applying(Box::new(applying));
    }

    fn remove(&mut self, order: RemoveOrder, commands: &mut Commands) {
        let entry = order.facts.entry.as_ref();
        if !is_of(entry, None, order.removal.ordered.digest) {
            // Another process has admitted a release, whose objects must not be deleted.
            return commands.push(Command::Reload);
        }
        let before = self.stop(commands);
        self.refusal = None;
        let removing = Removing::begin(order, &self.key, before.applying());
        commands.push(follow_nothing());
        self.work = Work::Removing(Box::new(removing));
    }

    fn freeze(&mut self, reason: Reason, message: String, commands: &mut Commands) {
        let suspended = self.stop(commands);
        self.work = Work::Frozen { reason, message, suspended };
    }

    /// Drops the requests in flight, and returns the work that was being done.
    fn stop(&mut self, commands: &mut Commands) -> Suspended {
        commands.cancel_requests();
        let mut stopped = std::mem::replace(&mut self.work, Work::Idle).suspend();
        match &mut stopped {
            Suspended::Nothing => {}
            Suspended::Applying(applying) => applying.forget_requests(),
            Suspended::Removing(removing) => removing.forget_requests(),
        }
        stopped
    }

    fn observed(&mut self, news: News, now: Instant, commands: &mut Commands) {
        let obstacle = self.obstacle.as_ref().and_then(|(key, _)| news.objects.get(key));
        if obstacle.is_some_and(|seen| matches!(seen.live, Live::Gone { .. } | Live::NotListed)) {
            commands.push(Command::Reevaluate);
        }
        if let Some(applying) = self.work.applying_mut() {
            applying.observed(news, now, commands);
        }
    }

    fn finished(&mut self, outcome: Outcome, moment: Moment, commands: &mut Commands) {
        let now = moment.now;
        match outcome {
            Outcome::Checked(key, Err(error)) if self.is_refused_by(&error) => {
                self.revert(key, &error, moment, commands);
            }
            Outcome::Prepared(_)
            | Outcome::Checked(..)
            | Outcome::Wrote { .. }
            | Outcome::Looked(..) => self.learnt(outcome, now, commands),
            Outcome::Deleted(key, result) => {
                if let Some(removing) = self.work.removing_mut() {
                    removing.deleted(&key, result, now, commands);
                } else if let Some(applying) = self.work.applying_mut() {
                    applying.deleted(&key, result, now, commands);
                }
            }
            Outcome::Recorded(result) => self.recorded(result, now, commands),
            Outcome::Reverted(result) => self.reverted(result, commands),
            Outcome::Returned(result) => self.returned(result, commands),
            Outcome::SoakStored | Outcome::Withdrawn => {}
        }
    }

    /// Processes the result of a request about an admission.
    fn learnt(&mut self, outcome: Outcome, now: Instant, commands: &mut Commands) {
        let Some(applying) = self.work.applying_mut() else { return };
        match outcome {
            Outcome::Prepared(result) => applying.prepared(result, now, commands),
            Outcome::Checked(key, result) => applying.checked(&key, result, now),
            Outcome::Looked(key, result) => applying.looked(&key, result, now),
            Outcome::Wrote { key, heal, result } => {
                if applying.wrote((&key, heal), result, now, commands) {
                    self.heals_total += 1;
                }
            }
            Outcome::Deleted(..)
            | Outcome::Recorded(_)
            | Outcome::Reverted(_)
            | Outcome::Returned(_)
            | Outcome::SoakStored
            | Outcome::Withdrawn => {}
        }
    }

    fn recorded(
        &mut self,
        result: Result<Recorded, LedgerError>,
        now: Instant,
        commands: &mut Commands,
    ) {
        let result = match result {
            Ok(Recorded::Superseded) => {
                let suspended = std::mem::replace(&mut self.work, Work::Idle).suspend();
                self.work = Work::Overtaken { since: now, suspended };
                return;
            }
            Ok(Recorded::Done) => Ok(()),
            Err(error) => Err(error),
        };
        if let Some(removing) = self.work.removing_mut() {
            removing.recorded(result, now, commands);
        } else if let Some(applying) = self.work.applying_mut() {
            applying.recorded(result, now);
        }
    }

    /// Returns whether an error refuses the plan: nothing of it is written, and an object is another writer's.
    fn is_refused_by(&self, error: &ApplyError) -> bool {
        let is_conflict = matches!(error, ApplyError::FieldConflict { .. });
        matches!(&self.work, Work::Applying(applying) if is_conflict && applying.may_revert())
    }

    /// Refuses the plan as a whole, because of an object; the previous plan stays in force.
    fn revert(
        &mut self,
        obstacle: ObjectKey,
        error: &ApplyError,
        moment: Moment,
        commands: &mut Commands,
    ) {
        let Suspended::Applying(refused) = self.stop(commands) else { return };
        let refusal = Refusal {
            reason: error.reason().into(),
            message: error_chain(error),
            sequence: Some(refused.admission.ordered.directive.sequence),
            at: moment.wall,
        };
        // A plan that was tried again, and is refused as before, is no news.
        if !self.refusal.as_ref().is_some_and(|known| is_alike(known, &refusal)) {
            commands.push(Command::NoteRefusal(refusal.clone()));
            self.refusal = Some(refusal);
        }
        commands.push(follow_nothing());
        let Applying { held, origin, admission, account, objects, .. } = *refused;
        let watched = objects.get(&obstacle).filter(|tracked| tracked.watched);
        self.obstacle = watched.map(|tracked| (obstacle.clone(), tracked.followed()));
        self.work = Work::Reverting(account);
        commands.request(Request::Revert(Revert {
            held,
            obstacle,
            directive: admission.ordered.digest,
            inventory: match origin {
                Origin::Admitted | Origin::Retried => AddedInventory::Drop,
                Origin::Loaded => AddedInventory::Keep,
            },
        }));
    }

    fn reverted(&mut self, result: Result<bool, LedgerError>, commands: &mut Commands) {
        match result {
            Ok(true) => commands.push(Command::Reload),
            Ok(false) => {
                if let Work::Reverting(account) = std::mem::replace(&mut self.work, Work::Idle) {
                    commands.request(Request::Withdraw(account));
                }
            }
            Err(error) => {
                self.work = Work::Frozen {
                    reason: error.reason(),
                    message: error_chain(&error),
                    suspended: Suspended::Nothing,
                };
            }
        }
    }

    fn returned(&mut self, result: Result<(), LedgerError>, commands: &mut Commands) {
        match result {
            Ok(()) => commands.push(Command::Reload),
            Err(error) => self.freeze(error.reason(), error_chain(&error), commands),
        }
    }

    /// Begins due requests, and reports. Returns when the next tick is due if no event arrives.
    fn tick(
        &mut self,
        (position, rollout): (Option<(u64, u64)>, Option<RolloutView>),
        claims: &Claims,
        moment: Moment,
        commands: &mut Commands,
    ) -> Instant {
        let now = moment.now;
        let mut wake = now + IDLE;
        if let Work::Overtaken { since, .. } = self.work {
            let until = since + OVERTAKEN_WAIT;
            if until <= now {
                self.give_way(commands);
            } else {
                wake = wake.min(until);
            }
        }
        let due = match &mut self.work {
            Work::Applying(applying) => {
                let given_up = applying.follow_rollout(rollout, now, commands);
                if let Some(given_up) = given_up {
                    self.give_up(given_up, commands);
                    None
                } else {
                    applying.hand_over(claims, commands);
                    applying.store_soak(now, commands);
                    let due = applying.advance(now, commands);
                    due.into_iter().chain(applying.rollout_due(now)).min()
                }
            }
            Work::Removing(removing) => removing.advance(now, commands),
            Work::Idle
            | Work::Reverting(_)
            | Work::Returning(_)
            | Work::Overtaken { .. }
            | Work::Frozen { .. } => None,
        };
        self.end_refusal();
        self.follow_pods(commands);
        let report_due = self.report(position, moment, commands);
        due.into_iter().chain(report_due).fold(wake, Instant::min)
    }

    /// Follows the pods of a plan that the hub has yet to finalize, and of no other.
    fn follow_pods(&mut self, commands: &mut Commands) {
        let namespaces = self.work.applying().map(Applying::pod_namespaces).unwrap_or_default();
        if namespaces != self.pods_followed {
            commands.push(Command::FollowPods(namespaces.clone()));
            self.pods_followed = namespaces;
        }
    }

    /// Gives up a plan that failed: the newest good plan is recorded, then loaded and applied.
    fn give_up(&mut self, given_up: Return, commands: &mut Commands) {
        let suspended = self.stop(commands);
        self.work = Work::Returning(suspended);
        commands.request(Request::Return(Box::new(given_up)));
    }

    /// Drops the refusal of a plan that was tried again and is carried out now.
    fn end_refusal(&mut self) {
        let Work::Applying(applying) = &self.work else { return };
        let sequence = Some(applying.admission.ordered.directive.sequence);
        if applying.origin == Origin::Retried
            && !applying.is_retrying()
            && self.refusal.as_ref().is_some_and(|refusal| refusal.sequence <= sequence)
        {
            self.refusal = None;
        }
    }

    /// Freezes, because another process has recorded a newer order and none has arrived; the record is loaded.
    fn give_way(&mut self, commands: &mut Commands) {
        let message = "another process has recorded a newer order; it is being loaded".to_owned();
        self.freeze(LedgerError::Overtaken.reason(), message, commands);
        commands.push(Command::Reload);
    }

    /// Reports a change. Returns when a change that is not urgent is due.
    ///
    /// A report costs as much as the destination has objects, so that between two of them only its phase and
    /// reason are compared.
    fn report(
        &mut self,
        position: Option<(u64, u64)>,
        moment: Moment,
        commands: &mut Commands,
    ) -> Option<Instant> {
        if !self.is_reported() {
            return None;
        }
        let situation = self.situation(position, moment);
        let (phase, is_urgent) = self.compare(&situation);
        let may_be_built_at = self.built_at.map(|at| at + REPORT_EVERY);
        if let Some(at) = may_be_built_at.filter(|at| !is_urgent && *at > moment.now) {
            return Some(at);
        }
        let mut report = report::report(&situation);
        self.built_at = Some(moment.now);
        let repeat = std::mem::replace(&mut self.repeat, Repeat::No);
        let last = self.last_report.as_ref().filter(|_| repeat == Repeat::No);
        if last.is_some_and(|last| is_same_but_time(last, &mut report)) {
            return None;
        }
        let report = Arc::new(report);
        commands.push(Command::Report { report: Arc::clone(&report), phase });
        self.last_report = Some(report);
        None
    }

    /// Compares a situation with the last report. Returns whether phase or reason differ, and whether a report
    /// must not wait.
    fn compare(&self, situation: &ReportContext<'_>) -> (PhaseChange, bool) {
        let Some(last) = &self.last_report else { return (PhaseChange::Changed, true) };
        let (phase, reason) = report::phase_and_reason(situation);
        if last.phase != phase || last.reason != reason {
            return (PhaseChange::Changed, true);
        }
        let is_milestone = !is_same_rollout(last.rollout.as_ref(), situation.rollout.as_ref());
        let is_asked = self.repeat == Repeat::Asked;
        (PhaseChange::Same, is_asked || is_milestone || last.sequence != situation.sequence)
    }

    /// Returns whether there is something to report: not before an order, and not while a plan is reverted or tried
    /// again.
    fn is_reported(&self) -> bool {
        match &self.work {
            Work::Reverting(_) | Work::Returning(_) => false,
            // The refusal was reported already.
            Work::Applying(applying) if self.refusal.is_some() => !applying.is_retrying(),
            Work::Idle | Work::Overtaken { suspended: Suspended::Nothing, .. } => {
                self.refusal.is_some()
            }
            Work::Applying(_)
            | Work::Removing(_)
            | Work::Overtaken { .. }
            | Work::Frozen { .. } => true,
        }
    }

    fn situation(&self, position: Option<(u64, u64)>, moment: Moment) -> ReportContext<'_> {
        let (applying, removing) = (self.work.applying(), self.work.removing());
        ReportContext {
            key: &self.key,
            epoch: position.map(|(epoch, _)| epoch),
            sequence: position.map(|(_, sequence)| sequence),
            running: applying.map(Applying::shown),
            removal: removing.map(Removing::shown),
            frozen: self.work.frozen(),
            refusal: self.refusal.as_ref(),
            rollout: applying.and_then(|applying| applying.rollout_status(moment.now)),
            problem: self.problem(),
            heals_total: self.heals_total,
            now: moment.wall,
        }
    }

    fn problem(&self) -> Option<&Failure> {
        match self.work.removing() {
            Some(removing) => removing.problem(),
            None => self.work.applying().and_then(Applying::problem),
        }
    }
}

impl Work {
    fn suspend(self) -> Suspended {
        match self {
            Self::Idle | Self::Reverting(_) => Suspended::Nothing,
            Self::Applying(applying) => Suspended::Applying(applying),
            Self::Removing(removing) => Suspended::Removing(removing),
            Self::Returning(suspended)
            | Self::Overtaken { suspended, .. }
            | Self::Frozen { suspended, .. } => suspended,
        }
    }

    pub(super) fn applying(&self) -> Option<&Applying> {
        match self {
            Self::Applying(applying) => Some(applying),
            Self::Returning(suspended)
            | Self::Overtaken { suspended, .. }
            | Self::Frozen { suspended, .. } => suspended.applying(),
            Self::Idle | Self::Reverting(_) | Self::Removing(_) => None,
        }
    }

    fn applying_mut(&mut self) -> Option<&mut Applying> {
        match self {
            Self::Applying(applying)
            | Self::Returning(Suspended::Applying(applying))
            | Self::Overtaken { suspended: Suspended::Applying(applying), .. }
            | Self::Frozen { suspended: Suspended::Applying(applying), .. } => Some(applying),
            Self::Idle
            | Self::Reverting(_)
            | Self::Returning(_)
            | Self::Removing(_)
            | Self::Overtaken { .. }
            | Self::Frozen { .. } => None,
        }
    }

    pub(super) fn removing(&self) -> Option<&Removing> {
        match self {
            Self::Removing(removing)
            | Self::Overtaken { suspended: Suspended::Removing(removing), .. }
            | Self::Frozen { suspended: Suspended::Removing(removing), .. } => Some(removing),
            Self::Idle
            | Self::Reverting(_)
            | Self::Returning(_)
            | Self::Applying(_)
            | Self::Overtaken { .. }
            | Self::Frozen { .. } => None,
        }
    }

    fn removing_mut(&mut self) -> Option<&mut Removing> {
        match self {
            Self::Removing(removing)
            | Self::Overtaken { suspended: Suspended::Removing(removing), .. }
            | Self::Frozen { suspended: Suspended::Removing(removing), .. } => Some(removing),
            Self::Idle
            | Self::Reverting(_)
            | Self::Returning(_)
            | Self::Applying(_)
            | Self::Overtaken { .. }
            | Self::Frozen { .. } => None,
        }
    }

    /// Returns reason and message if nothing may be changed.
    fn frozen(&self) -> Option<(Reason, &str)> {
        if let Self::Frozen { reason, message, .. } = self {
            Some((*reason, message))
        } else {
            None
        }
    }
}

impl Suspended {
    fn applying(&self) -> Option<&Applying> {
        match self {
            Self::Applying(applying) => Some(applying),
            Self::Nothing | Self::Removing(_) => None,
        }
    }
}

fn follow_nothing() -> Command {
    Command::Follow {
        objects: BTreeMap::new(),
        relist: BTreeSet::new(),
        autoscalers: BTreeSet::new(),
    }
}

/// Returns whether two refusals are equal apart from their time.
fn is_alike(known: &Refusal, other: &Refusal) -> bool {
    let at = known.at;
    *known == Refusal { at, ..other.clone() }
}

/// Returns whether two reports are equal apart from their time and the time at target that has passed.
fn is_same_but_time(last: &Report, report: &mut Report) -> bool {
    if !is_same_rollout(last.rollout.as_ref(), report.rollout.as_ref()) {
        return false;
    }
    let observed_at = std::mem::replace(&mut report.observed_at, last.observed_at);
    let rollout = std::mem::replace(&mut report.rollout, last.rollout.clone());
    let is_same = *last == *report;
    (report.observed_at, report.rollout) = (observed_at, rollout);
    is_same
}

/// Returns whether a rollout has reached nothing new, and lost nothing.
fn is_same_rollout(last: Option<&RolloutStatus>, now: Option<&RolloutStatus>) -> bool {
    let (Some(last), Some(now)) = (last, now) else { return last.is_none() && now.is_none() };
    let healthy_for_ms = last.healthy_for_ms;
    now.healthy_for_ms >= healthy_for_ms && *last == RolloutStatus { healthy_for_ms, ..now.clone() }
}

#[cfg(test)]
mod tests;
