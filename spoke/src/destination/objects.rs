//! The objects of one destination, and the next step of each. Pure: the time is an argument.

use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use attest_common::basics::backoff::Backoff;
use attest_common::basics::ids::Digest;
use attest_common::basics::reason::Reason;
use attest_common::documents::manifest::{Object, ObjectKey};
use attest_common::objects::absent::EmptyFields;
use attest_common::objects::health::{Health, Turning, Verdict};
use attest_common::record::custody::Confirmed;

use crate::cluster::apply::{self, DryRunPermit, Ownership};
use crate::cluster::drift::{self, HealBudget, Live, Need};
use crate::cluster::watch::{Followed, Observation, Scope};
use crate::rollout::counts_for_target;

/// Most concurrent requests of one destination.
pub const IN_FLIGHT_MAX: usize = 8;
/// Delay before a failed object is tried again.
pub const RETRY: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60));
/// Time after the creation of bindings in which 403 and 404 are normal.
pub const NOT_READY_FOR: Duration = Duration::from_secs(10);
pub const NOT_READY_RETRY: Duration = Duration::from_millis(100);
/// Delay before the deletion of an object that still exists is repeated.
pub const LEAVING_RETRY: Backoff = Backoff::new(NOT_READY_RETRY, Duration::from_secs(5));
/// Longest time that existing objects with replicas wait for the list of autoscalers.
pub const AUTOSCALERS_WAIT: Duration = Duration::from_secs(5);
/// Longest time that objects wait for the definition of their kind to be established.
pub const DEFINITION_WAIT: Duration = Duration::from_secs(30);

/// One object of the rendering.
#[derive(Clone, Debug)]
pub struct Tracked {
    /// Place in the order that its author gives. A wave begins when every object of the previous ones is healthy.
    pub wave: i16,
    /// Place of its kind within a wave.
    pub rank: u8,
    /// The application is not settled before this object is Current.
    pub gates: bool,
    /// Digest of the value to write.
    pub desired: Digest,
    /// Fields of the desired object that claim no entries.
    pub empty: Arc<EmptyFields>,
    /// An autoscaler sets its replicas.
    pub autoscaled: bool,
    /// Knowledge about its autoscaler.
    pub scale: Scale,
    pub path: String,
    pub scope: Scope,
    /// False for the one object that the spoke may read but not watch.
    pub watched: bool,
    /// The definition of its kind, if the same rendering contains it.
    pub definition: Option<ObjectKey>,
    /// UID in the inventory.
    pub owned_uid: Option<String>,
    /// It existed before this destination wrote it: never forced, never deleted.
    pub preexisting: bool,
    /// A Job that the cluster deletes some time after it ended.
    pub expires: bool,
    /// The inventory listed it before, so no other destination may: an existing object may result from our
    /// apply that ended before the UID was recorded.
    pub unfinished: bool,
    pub confirmed: Option<Confirmed>,
    pub live: Live,
    pub health: Health,
    pub message: String,
    /// Fields that kubectl owns and we do not.
    pub kept_by_kubectl: Vec<String>,
    /// Number of fields outside the status that only other managers own.
    pub added: u64,
    /// Change of its health that is due by time alone.
    pub turning: Option<Turning>,
    /// Result of the dry run for this plan.
    pub permit: Option<DryRunPermit>,
    pub failure: Option<Failure>,
    /// A request about it is in flight.
    pub busy: bool,
    /// It is written once if it differs, also without self-heal.
    pub repair: bool,
    pub budget: HealBudget,
    pub drifted_at: Option<Instant>,
}

/// Knowledge about the autoscaler of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// The object sets no replicas, so that its autoscaler does not matter.
    Fixed,
    /// An autoscaler of the same rendering scales it.
    Rendered,
    /// The autoscalers of its namespace are not listed yet.
    Unknown,
    /// The autoscalers of its namespace are known.
    Known,
}

/// The last failure of an object, until a request succeeds.
#[derive(Clone, Debug)]
pub struct Failure {
    pub reason: Reason,
    pub message: String,
    pub retry_at: Instant,
    pub attempts: u32,
    /// Normal for a short time; not reported.
    pub quiet: bool,
    /// It says nothing about the object: a retry may succeed without any change.
    pub transient: bool,
}

impl Failure {
    /// Returns the failure after `former`, with a delay that doubles.
    pub fn after(former: Option<&Self>, reason: Reason, message: String, now: Instant) -> Self {
        let attempts = former.filter(|f| !f.quiet).map_or(0, |f| f.attempts) + 1;
        let wait = RETRY.delay_max(attempts - 1);
        Self { reason, message, retry_at: now + wait, attempts, quiet: false, transient: false }
    }

    /// Returns the state of an object whose deletion is accepted and not finished; it is retried with a growing delay.
    pub fn leaving(former: Option<&Self>, message: String, now: Instant) -> Self {
        let attempts = former.filter(|f| f.quiet).map_or(0, |f| f.attempts) + 1;
        let retry_at = now + LEAVING_RETRY.delay_max(attempts - 1);
        Self {
            reason: Reason::Terminating,
            message,
            retry_at,
            attempts,
            quiet: true,
            transient: false,
        }
    }

    /// Returns the failure of a request while new rights are not in effect yet.
    pub fn not_ready(reason: Reason, message: String, now: Instant) -> Self {
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
    /// Returns the action that the object needs.
    pub fn need(&self) -> Need {
        let need = drift::need(self.desired, self.confirmed.as_ref(), &self.live);
        if need == Need::Heal && self.has_expired() { Need::Nothing } else { need }
    }

    /// Notes whether an autoscaler of its namespace scales it. Its replicas are then not written, and return when the
    /// autoscaler goes.
    pub fn scale_by(&mut self, is_target: bool, object: &Object) {
        if !matches!(self.scale, Scale::Unknown | Scale::Known) {
            return;
        }
        self.scale = Scale::Known;
        if self.autoscaled != is_target {
            self.autoscaled = is_target;
            self.desired = apply::desired(&apply::as_written(object, is_target));
            self.permit = self.permit.filter(|_| self.busy);
        }
    }

    /// Returns whether the last request about it failed, other than normally for a short time.
    pub fn has_failed(&self) -> bool {
        self.failure.as_ref().is_some_and(|failure| !failure.quiet)
    }

    /// Returns whether it is written, so that what is no longer rendered may be deleted. Drift delays no deletion:
    /// what is not reverted would delay it permanently.
    pub fn is_written(&self) -> bool {
        match self.need() {
            Need::Nothing => !self.busy,
            Need::Heal => true,
            Need::Apply | Need::Look | Need::Wait => false,
        }
    }

    /// Returns whether later waves may begin: it is written, and healthy if that counts. Drift delays no wave.
    fn is_passed(&self) -> bool {
        let is_healthy = !self.gates || self.need() == Need::Heal || is_settled(self.health);
        self.is_written() && is_healthy
    }

    /// Returns whether a Job has finished and was deleted by its TTL. An absent Job that was not observed since
    /// a restart counts as finished: it must not run twice.
    fn has_expired(&self) -> bool {
        let done = matches!(self.health, Health::Current | Health::Failed);
        self.expires && done && matches!(self.live, Live::Gone { .. })
    }

    /// Returns the request to follow the object.
    pub fn followed(&self) -> Followed {
        Followed { scope: self.scope.clone(), empty: Arc::clone(&self.empty) }
    }

    /// Processes an observation. Returns whether it is a new drift.
    pub fn see(&mut self, seen: Observation) -> bool {
        if !drift::is_news(&self.live, &seen.live) {
            return false;
        }
        let Observation { live, kept_by_kubectl, verdict, added, at } = seen;
        self.added = added;
        if let Live::Present { uid, .. } = &live
            && self.owned_uid.as_ref().is_some_and(|owned| owned != uid)
        {
            // The dry run of the previous object does not apply to this one.
            self.permit = self.permit.filter(|_| self.busy);
        }
        if self.preexisting && !drift::is_same(&live, &self.live) {
            // A new dry run shows whether it still holds our values.
            self.permit = self.permit.filter(|_| self.busy);
        }
        let is_absent = matches!(live, Live::Gone { .. } | Live::NotListed);
        let was_applied = self.confirmed.is_some();
        if self.expires && was_applied && self.live == Live::Unknown && is_absent {
            (self.health, self.message) = (Health::Current, "ended before".to_owned());
        }
        self.live = live;
        self.kept_by_kubectl = kept_by_kubectl;
        self.confirm_by_todays_rule();
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
            self.repair &= self.busy;
        }
        new
    }

    /// Replaces a digest that an older spoke recorded, as long as it still holds.
    fn confirm_by_todays_rule(&mut self) {
        let is_as_desired = self.need() == Need::Nothing;
        let Live::Present { uid, projected, whole: Some(whole), .. } = &self.live else { return };
        if let Some(confirmed) = &mut self.confirmed
            && is_as_desired
            && confirmed.uid == *uid
            && confirmed.projected == *whole
        {
            confirmed.projected = *projected;
        }
    }

    fn judge(&mut self, verdict: Verdict, at: Instant) {
        self.turning = Turning::next(self.turning.take(), verdict.turn, at);
        self.health = verdict.health;
        self.message = verdict.message;
        self.gates = verdict.gates;
    }

    /// Applies changes of its health by time alone. Returns when the next one is due.
    pub fn turn(&mut self, now: Instant) -> Option<Instant> {
        let turning = self.turning.as_ref()?;
        let Some((health, message)) = turning.turned(now) else { return Some(turning.due()) };
        self.health = health;
        message.clone_into(&mut self.message);
        None
    }

    /// Returns the UID of the object that we created, unless another one exists.
    fn our_uid(&self) -> Option<&String> {
        let uid = self.owned_uid.as_ref().filter(|_| !self.preexisting)?;
        match &self.live {
            Live::Present { uid: live, .. } => (live == uid).then_some(uid),
            Live::Gone { .. } | Live::NotListed | Live::Unknown => Some(uid),
        }
    }

    /// Returns the UID of the existing object, as far as known.
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

    /// Returns whether a dry run with this ownership is the one that is due.
    fn is_to_ask(&self, asked: &Ownership, adopt: bool) -> bool {
        self.need() == Need::Apply && !self.busy && self.ownership(adopt) == *asked
    }
}

/// Returns the objects whose speculative dry runs match the ones that are due, and marks them as busy.
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

/// Returns whether an object still counts as pre-existing after a write: unless the write created it.
pub fn is_preexisting(before: bool, permit: Option<DryRunPermit>, created: bool) -> bool {
    !created && (before || permit.is_some_and(|permit| permit.preexisting))
}

/// Restrictions of the next steps.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub self_heal: bool,
    /// Workloads, their Services and routes are written if they differ, also without self-heal.
    pub restores_workloads: bool,
    pub adopt: bool,
    /// Only heals are begun.
    pub only_heals: bool,
    /// The rollback point exists: nothing of the plan is written until it is given up.
    pub rollback_possible: bool,
    /// When this plan was begun.
    pub begun: Instant,
}

/// One step of an object or a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Apply as a dry run.
    Check(ObjectKey, Ownership),
    /// Give up the rollback point: every dry run has passed, and the first write is next.
    GiveUpRollback,
    /// Apply, with or without force.
    Write { key: ObjectKey, force: bool, takeover: bool, heal: bool },
    /// Read the object.
    Look(ObjectKey),
}

/// Kind of a step. A step holds copies of keys, which few of many objects need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Check,
    GiveUpRollback,
    Write { force: bool, takeover: bool, heal: bool },
    Look,
}

impl Action {
    fn step(self, key: &ObjectKey, tracked: &Tracked, rules: Rules) -> Step {
        match self {
            Self::Check => Step::Check(key.clone(), tracked.ownership(rules.adopt)),
            Self::GiveUpRollback => Step::GiveUpRollback,
            Self::Write { force, takeover, heal } => {
                Step::Write { key: key.clone(), force, takeover, heal }
            }
            Self::Look => Step::Look(key.clone()),
        }
    }
}

/// Returns the steps to take now, at most `room`, and when the next is due if no event arrives.
///
/// Every object is checked before the first is written. A wave begins when every object of the previous ones is
/// healthy. Within a wave, lower ranks are settled (applied, or failed and waiting) before higher ones begin. Heals do
/// not wait.
pub fn steps(
    objects: &BTreeMap<ObjectKey, Tracked>,
    rules: Rules,
    now: Instant,
    room: usize,
) -> (Vec<Step>, Option<Instant>) {
    let mut plan = Planning { objects, rules, now, wake: None };
    let mut steps = Vec::new();
    let mut begins = false;
    let Open { unchecked, rank: open_rank } = plan.open();
    let open_wave = LazyCell::new(|| open_wave(objects));
    for (key, tracked) in objects.iter().filter(|(_, tracked)| !tracked.busy) {
        let action = match tracked.need() {
            Need::Wait if tracked.watched => None,
            Need::Nothing => None,
            Need::Look | Need::Wait => Some(Action::Look),
            Need::Heal => plan.heal(key, tracked),
            Need::Apply if rules.only_heals || plan.waits(tracked) => None,
            Need::Apply => match tracked.permit {
                None => Some(Action::Check),
                Some(_) if unchecked => None,
                Some(_) if open_wave.is_some_and(|wave| wave < tracked.wave) => None,
                Some(_) if open_rank.is_some_and(|rank| rank < (tracked.wave, tracked.rank)) => {
                    None
                }
                Some(_) if rules.rollback_possible => Some(Action::GiveUpRollback),
                Some(DryRunPermit { force, takeover, .. }) => {
                    Some(Action::Write { force, takeover, heal: false })
                }
            },
        };
        let Some(action) = action else { continue };
        let retry_at = tracked.failure.as_ref().map(|failure| failure.retry_at);
        if let Some(at) = retry_at.filter(|at| *at > now) {
            plan.wake_at(at);
        } else if action == Action::GiveUpRollback {
            begins = true;
        } else if steps.len() < room {
            steps.push(action.step(key, tracked, rules));
        } else if !rules.rollback_possible {
            // The next result of a request ends in another call.
            break;
        }
    }
    // One write of the record, independent of the requests in flight.
    steps.extend(begins.then_some(Step::GiveUpRollback));
    (steps, plan.wake)
}

/// Returns the first wave that has not passed.
pub(super) fn open_wave(objects: &BTreeMap<ObjectKey, Tracked>) -> Option<i16> {
    objects.values().filter(|tracked| !tracked.is_passed()).map(|tracked| tracked.wave).min()
}

/// Returns whether a settled object may have this health.
pub(super) fn is_settled(health: Health) -> bool {
    matches!(health, Health::Current | Health::Suspended)
}

struct Planning<'a> {
    objects: &'a BTreeMap<ObjectKey, Tracked>,
    rules: Rules,
    now: Instant,
    wake: Option<Instant>,
}

/// The rest of a plan, over all its objects.
#[derive(Clone, Copy, Debug)]
struct Open {
    /// A dry run is missing.
    unchecked: bool,
    /// The lowest wave and rank that are not settled.
    rank: Option<(i16, u8)>,
}

impl Planning<'_> {
    fn open(&mut self) -> Open {
        let mut open = Open { unchecked: false, rank: None };
        for tracked in self.objects.values() {
            let applies = tracked.need() == Need::Apply;
            if !applies && !tracked.busy {
                continue;
            }
            let is_live = self.is_live(tracked);
            if is_live {
                let rank = (tracked.wave, tracked.rank);
                open.rank = Some(open.rank.map_or(rank, |lowest| lowest.min(rank)));
            }
            let is_open = is_live || tracked.failure.as_ref().is_some_and(|f| f.transient);
            if !open.unchecked && applies && tracked.permit.is_none() && is_open {
                open.unchecked = !self.waits(tracked);
            }
        }
        open
    }

    fn wake_at(&mut self, at: Instant) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }

    /// Returns whether an object is not set aside by a failure; a quiet failure does not count.
    fn is_live(&self, tracked: &Tracked) -> bool {
        tracked.failure.as_ref().is_none_or(|failure| failure.quiet)
    }

    /// Returns whether an object waits for the definition of its kind to be established.
    fn waits(&mut self, tracked: &Tracked) -> bool {
        let listed_by = self.rules.begun + AUTOSCALERS_WAIT;
        if tracked.scale == Scale::Unknown && tracked.owned_uid.is_some() && self.now < listed_by {
            self.wake_at(listed_by);
            return true;
        }
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

    fn heal(&mut self, key: &ObjectKey, tracked: &Tracked) -> Option<Action> {
        let is_restored = self.rules.restores_workloads && counts_for_target(key);
        if !self.rules.self_heal && !tracked.repair && !is_restored {
            return None;
        }
        let ready_at = tracked.budget.ready_at(self.now);
        if !tracked.repair && ready_at > self.now {
            self.wake_at(ready_at);
            return None;
        }
        if tracked.watched && tracked.our_uid().is_some() {
            // An absent object is written without force: another writer may create it concurrently.
            let force = matches!(tracked.live, Live::Present { .. });
            return Some(Action::Write { force, takeover: false, heal: true });
        }
        // Another writer has replaced the object: a dry run is made first.
        match tracked.permit {
            Some(DryRunPermit { force, takeover, .. }) => {
                Some(Action::Write { force, takeover, heal: true })
            }
            None => Some(Action::Check),
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
