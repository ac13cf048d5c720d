//! The objects of one destination and what is to be done about each next. Pure: time comes in, steps come out.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use attest_common::basics::backoff::Backoff;
use attest_common::basics::ids::Digest;
use attest_common::documents::manifest::ObjectKey;
use attest_common::objects::health::{Health, Turning, Verdict};
use attest_common::record::custody::Confirmed;

use crate::cluster::apply::{DryRunPermit, Ownership};
use crate::cluster::drift::{self, HealBudget, Live, Need};
use crate::cluster::watch::{Observation, Scope};

/// Most requests of one destination on their way at a time.
pub const IN_FLIGHT_MAX: usize = 8;
/// Delay before a failed object is tried again.
pub const RETRY: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60));
/// How long 403 and 404 are normal after bindings were made, and how often to ask meanwhile.
pub const NOT_READY_FOR: Duration = Duration::from_secs(10);
pub const NOT_READY_RETRY: Duration = Duration::from_millis(100);
/// Delay before an object that is being deleted is looked up again.
pub const LEAVING_RETRY: Backoff = Backoff::new(NOT_READY_RETRY, Duration::from_secs(5));
/// How long objects wait for the definition of their kind to be established.
pub const DEFINITION_WAIT: Duration = Duration::from_secs(30);

/// One object of the rendering.
#[derive(Clone, Debug)]
pub struct Tracked {
    pub rank: u8,
    /// The application is not done before this is Current.
    pub gates: bool,
    pub desired: Digest,
    pub path: String,
    pub scope: Scope,
    /// False for the one object that the spoke may read but not watch.
    pub watched: bool,
    /// The definition of its kind, when the same rendering brings it.
    pub definition: Option<ObjectKey>,
    /// UID in the inventory.
    pub owned_uid: Option<String>,
    /// It was there before us: never forced, never deleted.
    pub preexisting: bool,
    /// A Job that the cluster deletes some time after it ended.
    pub expires: bool,
    /// In the inventory from before, so that nobody else here could name it: what lives may be of an
    /// apply of ours that was cut off before its UID was recorded.
    pub unfinished: bool,
    pub confirmed: Option<Confirmed>,
    pub live: Live,
    pub health: Health,
    pub message: String,
    /// What its health becomes by time alone.
    pub turning: Option<Turning>,
    /// The dry-run's answer for this plan.
    pub permit: Option<DryRunPermit>,
    pub failure: Option<Failure>,
    /// A request about it is on its way.
    pub busy: bool,
    pub budget: HealBudget,
    pub drifted_at: Option<Instant>,
}

/// The last thing that went wrong with an object, until something goes right.
#[derive(Clone, Debug)]
pub struct Failure {
    pub reason: &'static str,
    pub message: String,
    pub retry_at: Instant,
    pub attempts: u32,
    /// Normal for a moment; not shown.
    pub quiet: bool,
    /// Says nothing about the object: asking again may help without anybody changing anything.
    pub transient: bool,
}

impl Failure {
    /// The next failure after `former`, with a wait that doubles.
    pub fn after(
        former: Option<&Self>,
        reason: &'static str,
        message: String,
        now: Instant,
    ) -> Self {
        let attempts = former.filter(|f| !f.quiet).map_or(0, |f| f.attempts) + 1;
        let wait = RETRY.delay_max(attempts - 1);
        Self { reason, message, retry_at: now + wait, attempts, quiet: false, transient: false }
    }

    /// While an object is on its way out; asked again ever more rarely, and nothing is wrong.
    pub fn leaving(former: Option<&Self>, message: String, now: Instant) -> Self {
        let attempts = former.filter(|f| f.quiet).map_or(0, |f| f.attempts) + 1;
        let retry_at = now + LEAVING_RETRY.delay_max(attempts - 1);
        Self { reason: "Leaving", message, retry_at, attempts, quiet: true, transient: false }
    }

    /// The same, while rights are still settling.
    pub fn not_ready(reason: &'static str, message: String, now: Instant) -> Self {
        Self {
            reason,
            message,
            retry_at: now + NOT_READY_RETRY,
            attempts: 0,
            quiet: true,
            transient: false,
        }
    }
}

impl Tracked {
    /// What the object needs.
    pub fn need(&self) -> Need {
        let need = drift::need(self.desired, self.confirmed.as_ref(), &self.live);
        if need == Need::Heal && self.has_expired() { Need::Nothing } else { need }
    }

    /// Whether it ran to its end and went as it was to. Unseen since a restart, it is taken as that:
    /// what has run must not run twice.
    fn has_expired(&self) -> bool {
        let done = matches!(self.health, Health::Current | Health::Failed);
        self.expires && done && matches!(self.live, Live::Gone { .. })
    }

    /// Takes in what was seen. True when that is a new drift.
    pub fn see(&mut self, seen: Observation) -> bool {
        if !drift::is_news(&self.live, &seen.live) {
            return false;
        }
        let Observation { live, verdict, at } = seen;
        if let Live::Present { uid, .. } = &live
            && self.owned_uid.as_ref().is_some_and(|owned| owned != uid)
        {
            // What was found out about the former object says nothing about this one.
            self.permit = self.permit.filter(|_| self.busy);
        }
        if self.preexisting && !drift::is_same(&live, &self.live) {
            // Whether it still holds our values is to be asked again.
            self.permit = self.permit.filter(|_| self.busy);
        }
        let is_absent = matches!(live, Live::Gone { .. } | Live::NotListed);
        let was_applied = self.confirmed.is_some();
        if self.expires && was_applied && self.live == Live::Unknown && is_absent {
            (self.health, self.message) = (Health::Current, "ended before".to_owned());
        }
        self.live = live;
        let ended = matches!(self.health, Health::Current | Health::Failed);
        if !(self.expires && is_absent && ended && self.turning.is_none()) {
            self.judge(verdict, at);
        }
        let drifted = !self.busy && self.need() == Need::Heal;
        let new = drifted && self.drifted_at.is_none();
        if new {
            self.drifted_at = Some(at);
        } else if self.need() == Need::Nothing {
            self.drifted_at = None;
        }
        new
    }

    fn judge(&mut self, verdict: Verdict, at: Instant) {
        self.turning = Turning::next(self.turning.take(), verdict.turn, at);
        self.health = verdict.health;
        self.message = verdict.message;
        self.gates = verdict.gates;
    }

    /// Takes in what time alone has changed about its health. Returns when it will change next.
    pub fn turn(&mut self, now: Instant) -> Option<Instant> {
        let turning = self.turning.as_ref()?;
        let Some((health, message)) = turning.turned(now) else { return Some(turning.due()) };
        self.health = health;
        message.clone_into(&mut self.message);
        None
    }

    /// UID of the object that we made, if it is the one that lives or nothing lives.
    fn our_uid(&self) -> Option<&String> {
        let uid = self.owned_uid.as_ref().filter(|_| !self.preexisting)?;
        match &self.live {
            Live::Present { uid: live, .. } => (live == uid).then_some(uid),
            Live::Gone { .. } | Live::NotListed | Live::Unknown => Some(uid),
        }
    }

    /// UID of the object that is in its place, as far as is known.
    pub fn uid_in_place(&self) -> Option<&String> {
        match &self.live {
            Live::Present { uid, .. } => Some(uid),
            Live::Gone { .. } | Live::NotListed | Live::Unknown => self.our_uid(),
        }
    }

    pub fn ownership(&self, adopt: bool) -> Ownership {
        match self.our_uid() {
            _ if !self.watched => Ownership::Shared,
            Some(uid) => Ownership::Ours { uid: uid.clone(), adopt },
            None => Ownership::Unknown { adopt, unfinished: self.unfinished && !self.preexisting },
        }
    }

    /// Whether a dry run that asks this is the one that is to be made now.
    fn is_to_ask(&self, asked: &Ownership, adopt: bool) -> bool {
        self.need() == Need::Apply && !self.busy && self.ownership(adopt) == *asked
    }
}

/// The objects whose dry runs are on their way already and ask what is to be asked now. They are busy
/// from then on.
pub(super) fn take_speculative(
    objects: &mut BTreeMap<ObjectKey, Tracked>,
    mut asked: Vec<(ObjectKey, Ownership)>,
    adopt: bool,
) -> Vec<ObjectKey> {
    asked.retain(|(key, ownership)| {
        let tracked = objects.get_mut(key).filter(|tracked| tracked.is_to_ask(ownership, adopt));
        tracked.map(|tracked| tracked.busy = true).is_some()
    });
    asked.into_iter().map(|(key, _)| key).collect()
}

/// Whether an object counts as met once it is written: until our own apply has made it.
pub fn is_preexisting(before: bool, permit: Option<DryRunPermit>, created: bool) -> bool {
    !created && (before || permit.is_some_and(|permit| permit.preexisting))
}

/// What the plan allows.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub self_heal: bool,
    pub adopt: bool,
    /// Nothing new is begun; what was applied is still put back.
    pub only_heals: bool,
    /// The record still leads back to what ran before: nothing new is written until it does not.
    pub rollback_possible: bool,
    /// When this plan was begun.
    pub begun: Instant,
}

/// One request to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask what applying would do.
    Check(ObjectKey, Ownership),
    /// Give up the way back: everything is checked, and the first write comes next.
    GiveUpRollback,
    /// Apply, with or without force.
    Write { key: ObjectKey, force: bool, heal: bool },
    /// See whether it exists.
    Look(ObjectKey),
}

/// The requests to make now, at most `room`, and when to ask again if nothing happens.
///
/// Every object is checked before the first is written; lower ranks are settled (applied, or failed
/// and waiting) before higher ones begin; heals wait for nobody.
pub fn steps(
    objects: &BTreeMap<ObjectKey, Tracked>,
    rules: Rules,
    now: Instant,
    room: usize,
) -> (Vec<Step>, Option<Instant>) {
    let mut plan = Planning { objects, rules, now, wake: None };
    let mut steps = Vec::new();
    let mut begins = false;
    let unchecked = objects.values().any(|t| {
        let open = plan.is_live(t) || t.failure.as_ref().is_some_and(|f| f.transient);
        t.need() == Need::Apply && t.permit.is_none() && open && !plan.waits(t)
    });
    let open_rank = objects
        .values()
        .filter(|t| (t.need() == Need::Apply || t.busy) && plan.is_live(t))
        .map(|t| t.rank)
        .min();
    for (key, tracked) in objects.iter().filter(|(_, tracked)| !tracked.busy) {
        let step = match tracked.need() {
            Need::Wait if tracked.watched => None,
            Need::Nothing => None,
            Need::Look | Need::Wait => Some(Step::Look(key.clone())),
            Need::Heal => plan.heal(key, tracked),
            Need::Apply if rules.only_heals || plan.waits(tracked) => None,
            Need::Apply => match tracked.permit {
                None => Some(Step::Check(key.clone(), tracked.ownership(rules.adopt))),
                Some(_) if unchecked => None,
                Some(_) if open_rank.is_some_and(|rank| rank < tracked.rank) => None,
                Some(_) if rules.rollback_possible => Some(Step::GiveUpRollback),
                Some(permit) => {
                    Some(Step::Write { key: key.clone(), force: permit.force, heal: false })
                }
            },
        };
        let Some(step) = step else { continue };
        let retry_at = tracked.failure.as_ref().map(|failure| failure.retry_at);
        if let Some(at) = retry_at.filter(|at| *at > now) {
            plan.wake_at(at);
        } else if step == Step::GiveUpRollback {
            begins = true;
        } else if steps.len() < room {
            steps.push(step);
        }
    }
    // One write to the record, whatever else is on its way.
    steps.extend(begins.then_some(Step::GiveUpRollback));
    (steps, plan.wake)
}

struct Planning<'a> {
    objects: &'a BTreeMap<ObjectKey, Tracked>,
    rules: Rules,
    now: Instant,
    wake: Option<Instant>,
}

impl Planning<'_> {
    fn wake_at(&mut self, at: Instant) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }

    /// Not set aside by a failure; one that is only settling still counts.
    fn is_live(&self, tracked: &Tracked) -> bool {
        tracked.failure.as_ref().is_none_or(|failure| failure.quiet)
    }

    /// The definition of its kind is not established yet, and may still become so.
    fn waits(&mut self, tracked: &Tracked) -> bool {
        let Some(definition) = tracked.definition.as_ref().and_then(|key| self.objects.get(key))
        else {
            return false;
        };
        let until = self.rules.begun + DEFINITION_WAIT;
        let established =
            definition.need() == Need::Nothing && definition.health == Health::Current;
        let waits = !established && self.is_live(definition) && self.now < until;
        if waits {
            self.wake_at(until);
        }
        waits
    }

    fn heal(&mut self, key: &ObjectKey, tracked: &Tracked) -> Option<Step> {
        if !self.rules.self_heal {
            return None;
        }
        let ready_at = tracked.budget.ready_at(self.now);
        if ready_at > self.now {
            self.wake_at(ready_at);
            return None;
        }
        if tracked.watched && tracked.our_uid().is_some() {
            // Into an empty place nothing is forced: somebody else may fill it meanwhile.
            let force = matches!(tracked.live, Live::Present { .. });
            return Some(Step::Write { key: key.clone(), force, heal: true });
        }
        // Somebody put another object in its place: ask first.
        match tracked.permit {
            Some(permit) => Some(Step::Write { key: key.clone(), force: permit.force, heal: true }),
            None => Some(Step::Check(key.clone(), tracked.ownership(self.rules.adopt))),
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
