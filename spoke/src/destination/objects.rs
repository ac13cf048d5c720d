//! The objects of one destination and what is to be done about each next. Pure: time comes in, steps come out.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use attest_common::basics::ids::Digest;
use attest_common::documents::manifest::ObjectKey;
use attest_common::objects::health::{Health, Turning, Verdict};

use crate::apply::{Passed, Standing};
use crate::drift::{self, HealBudget, Live, Need};
use crate::ledger::Confirmed;
use crate::watch::{Observation, Scope};

/// Most requests of one destination on their way at a time.
pub const IN_FLIGHT_MAX: usize = 8;
/// First and longest wait before a failed object is tried again.
pub const RETRY_MIN: Duration = Duration::from_millis(500);
/// See [`RETRY_MIN`].
pub const RETRY_MAX: Duration = Duration::from_secs(60);
/// How long 403 and 404 are normal after bindings were made, and how often to ask meanwhile.
pub const NOT_READY_FOR: Duration = Duration::from_secs(10);
pub const NOT_READY_RETRY: Duration = Duration::from_millis(100);
/// Longest wait before looking again for an object that is on its way out.
pub const LEAVING_RETRY_MAX: Duration = Duration::from_secs(5);
/// How long objects wait for the definition of their kind to be established.
pub const DEFINITION_WAIT: Duration = Duration::from_secs(30);

/// One object of the rendering.
#[derive(Clone, Debug)]
pub struct Tracked {
    /// Place in the admission's objects.
    pub index: usize,
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
    pub met: bool,
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
    pub passed: Option<Passed>,
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
        let wait = RETRY_MIN.saturating_mul(1 << (attempts - 1).min(16)).min(RETRY_MAX);
        Self { reason, message, retry_at: now + wait, attempts, quiet: false, transient: false }
    }

    /// While an object is on its way out; asked again ever more rarely, and nothing is wrong.
    pub fn leaving(former: Option<&Self>, message: String, now: Instant) -> Self {
        let attempts = former.filter(|f| f.quiet).map_or(0, |f| f.attempts) + 1;
        let wait = NOT_READY_RETRY.saturating_mul(1 << (attempts - 1).min(16));
        let retry_at = now + wait.min(LEAVING_RETRY_MAX);
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
            self.passed = self.passed.filter(|_| self.busy);
        }
        if self.met && !drift::is_same(&live, &self.live) {
            // Whether it still holds our values is to be asked again.
            self.passed = self.passed.filter(|_| self.busy);
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
        let uid = self.owned_uid.as_ref().filter(|_| !self.met)?;
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

    pub fn standing(&self, adopt: bool) -> Standing {
        match self.our_uid() {
            _ if !self.watched => Standing::Shared,
            Some(uid) => Standing::Ours { uid: uid.clone(), adopt },
            None => Standing::Unknown { adopt, unfinished: self.unfinished && !self.met },
        }
    }
}

/// Whether an object counts as met once it is written: until our own apply has made it.
pub fn is_met(before: bool, passed: Option<Passed>, created: bool) -> bool {
    !created && (before || passed.is_some_and(|passed| passed.met))
}

/// What the plan allows.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub self_heal: bool,
    pub adopt: bool,
    /// Nothing new is begun; what was applied is still put back.
    pub only_heals: bool,
    /// The record still leads back to what ran before: nothing new is written until it does not.
    pub way_back: bool,
    /// When this plan was begun.
    pub begun: Instant,
}

/// One request to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask what applying would do.
    Check(ObjectKey, Standing),
    /// Give up the way back: everything is checked, and the first write comes next.
    Begin,
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
        t.need() == Need::Apply && t.passed.is_none() && open && !plan.waits(t)
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
            Need::Apply => match tracked.passed {
                None => Some(Step::Check(key.clone(), tracked.standing(rules.adopt))),
                Some(_) if unchecked => None,
                Some(_) if open_rank.is_some_and(|rank| rank < tracked.rank) => None,
                Some(_) if rules.way_back => Some(Step::Begin),
                Some(passed) => {
                    Some(Step::Write { key: key.clone(), force: passed.force, heal: false })
                }
            },
        };
        let Some(step) = step else { continue };
        let retry_at = tracked.failure.as_ref().map(|failure| failure.retry_at);
        if let Some(at) = retry_at.filter(|at| *at > now) {
            plan.wake_at(at);
        } else if step == Step::Begin {
            begins = true;
        } else if steps.len() < room {
            steps.push(step);
        }
    }
    // One write to the record, whatever else is on its way.
    steps.extend(begins.then_some(Step::Begin));
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
        match tracked.passed {
            Some(passed) => Some(Step::Write { key: key.clone(), force: passed.force, heal: true }),
            None => Some(Step::Check(key.clone(), tracked.standing(self.rules.adopt))),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use attest_common::objects::health::Turn;

    use super::*;
    use crate::ledger::tests::object_key;

    fn tracked(rank: u8) -> Tracked {
        Tracked {
            index: 0,
            rank,
            gates: true,
            desired: Digest::of(b"desired"),
            path: String::new(),
            scope: Scope {
                group: String::new(),
                version: "v1".to_owned(),
                kind: "ConfigMap".to_owned(),
                plural: "configmaps".to_owned(),
                namespace: Some("shop".to_owned()),
            },
            watched: true,
            definition: None,
            owned_uid: None,
            met: false,
            expires: false,
            unfinished: false,
            confirmed: None,
            live: Live::Unknown,
            health: Health::NotFound,
            message: String::new(),
            turning: None,
            passed: None,
            failure: None,
            busy: false,
            budget: HealBudget::default(),
            drifted_at: None,
        }
    }

    pub(in crate::destination) fn applied(rank: u8) -> Tracked {
        let live =
            Live::Present { uid: "uid".to_owned(), projected: Digest::of(b"live"), version: 5 };
        Tracked {
            owned_uid: Some("uid".to_owned()),
            confirmed: Some(Confirmed {
                desired: Digest::of(b"desired"),
                uid: "uid".to_owned(),
                projected: Digest::of(b"live"),
            }),
            live,
            health: Health::Current,
            ..tracked(rank)
        }
    }

    fn edited(projected: &[u8], version: u64) -> Observation {
        Observation {
            live: Live::Present {
                uid: "uid".to_owned(),
                projected: Digest::of(projected),
                version,
            },
            verdict: verdict(Health::Current),
            at: Instant::now(),
        }
    }

    fn verdict(health: Health) -> Verdict {
        Verdict { health, message: String::new(), gates: true, turn: None }
    }

    const PASSED: Option<Passed> = Some(Passed { force: false, met: false });

    fn rules(now: Instant) -> Rules {
        Rules { self_heal: true, adopt: false, only_heals: false, way_back: false, begun: now }
    }

    fn names(steps: &[Step]) -> Vec<String> {
        let name = |step: &Step| match step {
            Step::Check(key, _) => format!("check {}", key.name),
            Step::Write { key, force, .. } => format!("write {} {force}", key.name),
            Step::Look(key) => format!("look {}", key.name),
            Step::Begin => "begin".to_owned(),
        };
        steps.iter().map(name).collect()
    }

    fn of<const N: usize>(objects: [(&str, Tracked); N]) -> BTreeMap<ObjectKey, Tracked> {
        objects.into_iter().map(|(name, t)| (object_key("ConfigMap", name), t)).collect()
    }

    #[test]
    fn every_object_is_checked_before_the_first_is_written() {
        let now = Instant::now();
        let objects = of([("a", Tracked { passed: PASSED, ..tracked(1) }), ("b", tracked(2))]);

        assert_eq!(names(&steps(&objects, rules(now), now, 8).0), ["check b"]);
    }

    #[test]
    fn an_object_whose_check_got_no_answer_is_not_yet_checked() {
        let now = Instant::now();
        let failure = Failure::after(None, "ApiServerTimeout", String::new(), now);
        let transient = Failure { transient: true, ..failure.clone() };
        let mut objects = of([("a", Tracked { passed: PASSED, ..tracked(1) }), ("b", tracked(2))]);
        let mut fails = |failure: Failure| {
            objects.get_mut(&object_key("ConfigMap", "b")).unwrap().failure = Some(failure);
            names(&steps(&objects, rules(now), now, 8).0)
        };

        assert_eq!(fails(transient), Vec::<String>::new());
        assert_eq!(fails(failure), ["write a false"], "what is invalid is set aside");
    }

    #[test]
    fn lower_ranks_are_written_first_and_a_failed_object_holds_nobody_up() {
        let now = Instant::now();
        let ready = |rank| Tracked { passed: PASSED, ..tracked(rank) };
        let mut objects = of([("a", ready(1)), ("b", ready(2))]);
        assert_eq!(names(&steps(&objects, rules(now), now, 8).0), ["write a false"]);

        let failure = Failure::after(None, "Invalid", "no".to_owned(), now);
        let retry_at = failure.retry_at;
        objects.get_mut(&object_key("ConfigMap", "a")).unwrap().failure = Some(failure);
        let (next, wake) = steps(&objects, rules(now), now, 8);
        assert_eq!(names(&next), ["write b false"]);
        assert_eq!(wake, Some(retry_at));
    }

    #[test]
    fn an_unchanged_object_costs_no_request_and_an_edited_one_exactly_one_forced_write() {
        let now = Instant::now();
        let mut objects = of([("a", applied(1)), ("b", applied(1))]);
        assert_eq!(steps(&objects, rules(now), now, 8).0, []);

        let a = objects.get_mut(&object_key("ConfigMap", "a")).unwrap();
        assert!(a.see(edited(b"edited", 6)));
        assert!(!a.see(edited(b"edited", 7)), "one drift, however many events");
        assert_eq!(names(&steps(&objects, rules(now), now, 8).0), ["write a true"]);

        objects.get_mut(&object_key("ConfigMap", "a")).unwrap().busy = true;
        assert_eq!(steps(&objects, rules(now), now, 8).0, []);
    }

    #[test]
    fn what_is_edited_is_forced_by_its_uid_and_nothing_is_forced_into_an_empty_place() {
        let now = Instant::now();
        let mut objects = of([("a", applied(1))]);
        let object = objects.get_mut(&object_key("ConfigMap", "a")).unwrap();
        object.see(edited(b"edited", 6));
        assert_eq!(object.uid_in_place().map(String::as_str), Some("uid"));
        assert_eq!(names(&steps(&objects, rules(now), now, 8).0), ["write a true"]);

        let gone = Live::Gone { uid: "uid".to_owned() };
        objects.get_mut(&object_key("ConfigMap", "a")).unwrap().live = gone;
        assert_eq!(names(&steps(&objects, rules(now), now, 8).0), ["write a false"]);
    }

    #[test]
    fn heals_go_on_and_find_room_while_nothing_new_may_begin() {
        let now = Instant::now();
        let mut drifted = applied(1);
        drifted.see(edited(b"edited", 6));
        let objects = of([("a", tracked(1)), ("b", drifted)]);

        let only_heals = Rules { only_heals: true, ..rules(now) };
        assert_eq!(names(&steps(&objects, only_heals, now, 1).0), ["write b true"]);
    }

    #[test]
    fn nothing_new_is_written_while_the_record_leads_back_and_heals_are_not_held_up() {
        let now = Instant::now();
        let unwritten = Rules { way_back: true, ..rules(now) };
        let ready = |rank| Tracked { passed: PASSED, ..tracked(rank) };
        let mut drifted = applied(1);
        drifted.see(edited(b"edited", 6));
        let mut objects = of([("a", ready(1)), ("b", ready(1)), ("c", tracked(1))]);

        assert_eq!(names(&steps(&objects, unwritten, now, 8).0), ["check c"]);
        objects.insert(object_key("ConfigMap", "c"), drifted);
        assert_eq!(names(&steps(&objects, unwritten, now, 1).0), ["write c true", "begin"]);
        objects.remove(&object_key("ConfigMap", "c"));
        assert_eq!(
            names(&steps(&objects, rules(now), now, 8).0),
            ["write a false", "write b false"]
        );
    }

    #[test]
    fn without_self_heal_drift_is_left_alone() {
        let now = Instant::now();
        let mut drifted = applied(1);
        drifted.see(edited(b"edited", 6));

        let off = Rules { self_heal: false, ..rules(now) };
        assert_eq!(steps(&of([("a", drifted)]), off, now, 8).0, []);
    }

    #[test]
    fn an_object_put_in_place_of_ours_is_never_forced_unasked() {
        let now = Instant::now();
        let mut replaced = applied(1);
        replaced.see(Observation {
            live: Live::Present { uid: "other".to_owned(), projected: Digest::of(b""), version: 9 },
            ..edited(b"", 9)
        });

        let (next, _) = steps(&of([("a", replaced)]), rules(now), now, 8);

        assert_eq!(
            next,
            [Step::Check(
                object_key("ConfigMap", "a"),
                Standing::Unknown { adopt: false, unfinished: false }
            )]
        );
    }

    #[test]
    fn an_object_that_was_there_before_us_is_asked_about_before_it_is_put_back() {
        let now = Instant::now();
        let passed = Some(Passed { force: false, met: true });
        let mut met = Tracked { met: true, passed, ..applied(1) };
        met.see(edited(b"edited", 6));
        let adopting = Rules { adopt: true, ..rules(now) };

        for (rules, adopt) in [(rules(now), false), (adopting, true)] {
            assert_eq!(
                steps(&of([("a", met.clone())]), rules, now, 8).0,
                [Step::Check(
                    object_key("ConfigMap", "a"),
                    Standing::Unknown { adopt, unfinished: false }
                )]
            );
        }
    }

    #[test]
    fn an_object_stays_met_until_our_own_apply_makes_it() {
        let ours = Some(Passed { force: true, met: false });
        let met = Some(Passed { force: false, met: true });

        assert!(is_met(false, met, false));
        assert!(is_met(true, ours, false));
        assert!(is_met(true, None, false));
        assert!(!is_met(true, met, true));
        assert!(!is_met(false, ours, false));
    }

    #[test]
    fn an_unfinished_apply_is_told_from_an_object_that_was_never_ours() {
        let ours = Tracked { unfinished: true, ..tracked(1) };
        let theirs = Tracked { met: true, ..ours.clone() };

        assert_eq!(ours.standing(false), Standing::Unknown { adopt: false, unfinished: true });
        assert_eq!(theirs.standing(false), Standing::Unknown { adopt: false, unfinished: false });
        let uid = "uid".to_owned();
        assert_eq!(applied(1).standing(false), Standing::Ours { uid, adopt: false });
    }

    #[test]
    fn what_goes_on_too_long_changes_an_objects_health_by_itself() {
        let now = Instant::now();
        let mut object = applied(1);
        let turn = Turn {
            cause: "ReplicaFailure".to_owned(),
            after: Duration::from_secs(60),
            health: Health::Failed,
            message: "no quota".to_owned(),
        };
        let short = Verdict { turn: Some(turn), ..verdict(Health::InProgress) };
        object.see(Observation { verdict: short, at: now, ..edited(b"live", 6) });

        assert_eq!(object.turn(now), Some(now + Duration::from_secs(60)));
        assert_eq!(object.health, Health::InProgress);
        assert_eq!(object.turn(now + Duration::from_secs(60)), None);
        assert_eq!((object.health, object.message.as_str()), (Health::Failed, "no quota"));

        object.see(edited(b"live", 7));
        assert_eq!((object.turn(now), object.health), (None, Health::Current));
    }

    #[test]
    fn the_destinations_own_namespace_is_never_forced_even_when_we_made_it() {
        let now = Instant::now();
        let mut own = Tracked { watched: false, ..applied(1) };
        assert_eq!(own.standing(true), Standing::Shared);

        own.see(edited(b"edited", 6));
        let (next, _) = steps(&of([("shop", own)]), rules(now), now, 8);
        assert_eq!(next, [Step::Check(object_key("ConfigMap", "shop"), Standing::Shared)]);
    }

    #[test]
    fn a_job_that_ran_and_went_by_its_ttl_is_not_run_again() {
        let finished = Tracked { expires: true, ..applied(1) };
        let running = Tracked { health: Health::InProgress, ..finished.clone() };
        let kept = Tracked { expires: false, ..applied(1) };
        let restarted = Tracked { live: Live::Unknown, ..finished.clone() };
        let gone = || Observation {
            live: Live::Gone { uid: "uid".to_owned() },
            verdict: Verdict::absent("batch", "Job"),
            ..edited(b"", 9)
        };
        for (mut job, need, health) in [
            (finished, Need::Nothing, Health::Current),
            (running, Need::Heal, Health::NotFound),
            (kept, Need::Heal, Health::NotFound),
            // Whether it was done cannot be known any more; running it twice is worse.
            (restarted, Need::Nothing, Health::Current),
        ] {
            job.see(gone());

            assert_eq!((job.need(), job.health), (need, health));
        }
    }

    #[test]
    fn objects_wait_for_the_definition_of_their_kind_but_not_for_ever() {
        let now = Instant::now();
        let definition = object_key("CustomResourceDefinition", "widgets");
        let widget = Tracked { definition: Some(definition.clone()), ..tracked(8) };
        let installing = Tracked { health: Health::InProgress, ..applied(1) };
        let mut objects = of([("w", widget)]);
        objects.insert(definition.clone(), installing);

        assert_eq!(steps(&objects, rules(now), now, 8).0, []);
        let late = now + DEFINITION_WAIT;
        assert_eq!(names(&steps(&objects, rules(now), late, 8).0), ["check w"]);
        objects.get_mut(&definition).unwrap().health = Health::Current;
        assert_eq!(names(&steps(&objects, rules(now), now, 8).0), ["check w"]);
    }

    #[test]
    fn no_more_is_asked_at_a_time_than_there_is_room_for() {
        let now = Instant::now();
        let objects: BTreeMap<ObjectKey, Tracked> =
            (0..20).map(|i| (object_key("ConfigMap", &format!("c{i}")), tracked(5))).collect();

        assert_eq!(steps(&objects, rules(now), now, IN_FLIGHT_MAX).0.len(), IN_FLIGHT_MAX);
    }
}
