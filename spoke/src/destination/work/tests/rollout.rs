//! A rollout through the gate, the record and the state machine of one destination, without I/O.

use std::collections::BTreeMap;

use attest_common::documents::plan::Operation;
use attest_common::record::rollout::{AfterFailure, RolloutState};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::destination::fixture::{admit_candidate, load, order};

/// A destination that applies every request that it makes.
struct Spoke {
    machine: Machine,
    entry: Entry,
    /// Requests since the last look.
    requests: Vec<String>,
    report: Option<Arc<Report>>,
    /// Version of the object that was written or changed last.
    version: u64,
}

impl Spoke {
    /// One that runs `admitted` and has settled.
    fn settled(admitted: &Admitted) -> Self {
        let mut spoke = Self {
            machine: Machine::new(),
            entry: admitted.entry.clone(),
            requests: Vec::new(),
            report: None,
            version: 0,
        };
        spoke.run(admitted, Origin::Admitted);
        spoke.requests.clear();
        spoke
    }

    fn run(&mut self, admitted: &Admitted, origin: Origin) {
        self.entry = admitted.entry.clone();
        let order = run_as_recorded(admitted, origin, &self.entry);
        self.feed(admitted, order);
        self.settle(admitted);
    }

    /// Ticks until nothing more is requested.
    fn settle(&mut self, admitted: &Admitted) {
        for _ in 0..20 {
            self.machine.later(REPORT_EVERY);
            let rollout = self.entry.record.rollout_view();
            let claims = Claims::new();
            if !self.feed(admitted, Event::Tick { position: Some((1, 1)), claims, rollout }) {
                return;
            }
        }
        panic!("it makes requests without end: {:?}", self.requests);
    }

    /// Returns whether a request was made.
    fn feed(&mut self, admitted: &Admitted, event: Event) -> bool {
        let commands = next(&mut self.machine.state, event, self.machine.moment);
        let mut requested = false;
        for command in commands {
            match command {
                Command::Request(request) => {
                    requested = true;
                    self.requests.push(super::requested(&request));
                    let outcome = self.outcome(admitted, request);
                    self.feed(admitted, Event::Finished(Box::new(outcome)));
                }
                Command::Report { report, .. } => self.report = Some(report),
                Command::Reload => self.requests.push("reload".to_owned()),
                Command::CancelRequests
                | Command::Follow { .. }
                | Command::FollowPods(_)
                | Command::Reevaluate
                | Command::Offer { .. }
                | Command::TidyContent
                | Command::NoteRefusal(_)
                | Command::Notice(_)
                | Command::WakeAt(_) => {}
            }
        }
        requested
    }

    fn outcome(&mut self, admitted: &Admitted, request: Request) -> Outcome {
        match request {
            Request::Prepare(_) => Outcome::Prepared(Ok(false)),
            Request::DryRun { key, .. } => Outcome::Checked(key, Ok(PASSED)),
            Request::Write { key, heal, .. } => {
                let mut outcome = wrote(admitted, &key.name, heal);
                if let Outcome::Wrote { result: Ok(written), .. } = &mut outcome {
                    written.observation = self.changed();
                }
                outcome
            }
            Request::Delete(deletion) => Outcome::Deleted(deletion.key, Ok(Deleted::Gone)),
            Request::Record(update) => {
                self.entry = update.apply(&self.entry).unwrap_or_else(|| self.entry.clone());
                recorded()
            }
            Request::Return(failed) => {
                self.entry.record.fail(failed.abort, AfterFailure::Return);
                Outcome::Returned(Ok(()))
            }
            Request::StoreSoak(_) => Outcome::SoakStored,
            Request::AwaitDryRun(_)
            | Request::Look { .. }
            | Request::RecordRemoved
            | Request::Revert(_)
            | Request::Withdraw(_) => panic!("not expected here"),
        }
    }

    fn see(&mut self, admitted: &Admitted, name: &str, health: Health) {
        let mut observation = self.changed();
        observation.verdict.health = health;
        observation.verdict.message = "is not well".to_owned();
        self.feed(admitted, seen(name, observation));
        self.settle(admitted);
    }

    /// Returns a healthy object of the next version.
    fn changed(&mut self) -> Observation {
        self.version += 1;
        present("uid", b"live", self.version)
    }

    fn state(&self) -> Option<RolloutState> {
        self.entry.record.rollout.as_ref().map(|rollout| rollout.state)
    }

    fn good(&self) -> Vec<Digest> {
        self.entry.record.good_plans().map(|good| good.plan_digest).collect()
    }

    fn requested(&mut self, what: &str) -> bool {
        self.requests.drain(..).any(|request| request.starts_with(what))
    }

    fn report(&self) -> &Report {
        self.report.as_ref().unwrap()
    }
}

#[test]
fn a_candidate_becomes_good_and_prunes_only_when_the_hub_finalizes_it() {
    let first = admit(None, &["a", "old"], "one");
    let mut spoke = Spoke::settled(&first);
    let second = admit_candidate(Some(&spoke.entry), &["a", "new"], "two");
    assert_eq!(spoke.state(), None, "nothing has needed a rollout");

    spoke.run(&second, Origin::Admitted);
    assert_eq!(spoke.state(), Some(RolloutState::Soaking));
    assert_eq!(spoke.good(), [first.held.plan_digest]);
    assert!(!spoke.requested("delete"));
    let status = spoke.report().rollout.clone().unwrap();
    assert!(status.at_target && !status.soak_reached && status.aborted.is_none());

    spoke.machine.later(Duration::from_secs(60));
    spoke.settle(&second);
    assert!(spoke.report().rollout.as_ref().unwrap().soak_reached);
    assert!(spoke.requested("store-soak"), "for a restart");
    assert_eq!(spoke.good(), [first.held.plan_digest], "the soak alone changes nothing");

    let finalized = order(&spoke.entry, Operation::Finalize, &second).unwrap();
    spoke.run(&finalized, Origin::Admitted);
    assert_eq!(spoke.state(), Some(RolloutState::Good));
    assert_eq!(spoke.good(), [second.held.plan_digest, first.held.plan_digest]);
    assert!(spoke.requested("delete old"));
    assert!(spoke.report().rollout.as_ref().unwrap().soak_reached, "its time went on");
}

#[test]
fn a_failed_candidate_gives_way_to_the_good_plan_and_is_not_tried_again() {
    let first = admit(None, &["a"], "one");
    let mut spoke = Spoke::settled(&first);
    let second = admit_candidate(Some(&spoke.entry), &["a", "new"], "two");
    spoke.run(&second, Origin::Admitted);
    let floor = spoke.entry.record.floor.clone();
    spoke.requests.clear();

    spoke.see(&second, "a", Health::Failed);
    assert_eq!(spoke.requests, ["return", "reload"]);
    assert_eq!(spoke.entry.record.held, Some(first.held.clone()));

    let loaded = load(&spoke.entry, &first.blobs);
    spoke.run(&loaded, Origin::Loaded);
    assert_eq!(spoke.state(), Some(RolloutState::Returned));
    assert!(spoke.requested("write a"), "as it was");
    let report = spoke.report();
    assert_eq!((report.phase.as_str(), report.reason.as_str()), ("Degraded", "Unhealthy"));
    assert_eq!(report.running.as_ref().unwrap().plan, first.held.plan_digest);
    let rollout = report.rollout.as_ref().unwrap();
    assert_eq!(rollout.aborted.as_ref().unwrap().plan, second.held.plan_digest);
    assert_eq!(spoke.entry.record.floor, floor, "the floor never falls");
    assert_eq!(spoke.good(), [first.held.plan_digest]);

    let again = order(&spoke.entry, Operation::Progress, &second);
    assert_eq!(again.unwrap_err().reason(), Reason::PlanAborted);
    let finalize = order(&spoke.entry, Operation::Finalize, &second);
    assert_eq!(finalize.unwrap_err().reason(), Reason::PlanMismatch);
}

#[test]
fn what_a_failed_candidate_added_is_deleted_once_the_good_plan_is_settled() {
    let first = admit(None, &["a"], "one");
    let mut spoke = Spoke::settled(&first);
    let second = admit_candidate(Some(&spoke.entry), &["a", "new"], "two");
    spoke.run(&second, Origin::Admitted);
    spoke.see(&second, "a", Health::Failed);
    spoke.requests.clear();

    let loaded = load(&spoke.entry, &first.blobs);
    spoke.run(&loaded, Origin::Loaded);

    assert_eq!(spoke.requests.last().map(String::as_str), Some("record give-up"));
    assert!(spoke.requested("delete new"));
}

#[test]
fn the_hub_returns_a_destination_to_a_good_plan_only() {
    let first = admit(None, &["a"], "one");
    let mut spoke = Spoke::settled(&first);
    let second = admit_candidate(Some(&spoke.entry), &["a"], "two");
    spoke.run(&second, Origin::Admitted);

    let never = order(&spoke.entry, Operation::Rollback, &second);
    assert_eq!(never.unwrap_err().reason(), Reason::RollbackNotAllowed);
    let returned = order(&spoke.entry, Operation::Rollback, &first).unwrap();
    spoke.run(&returned, Origin::Admitted);

    assert_eq!(spoke.state(), Some(RolloutState::Good));
    assert_eq!(spoke.report().running.as_ref().unwrap().plan, first.held.plan_digest);
    assert_eq!(spoke.report().reason.as_str(), "Synced");
    let superseded = order(&spoke.entry, Operation::Supersede, &second);
    assert_eq!(superseded.unwrap_err().reason(), Reason::PlanMismatch, "no longer in hand");
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Candidate(u8),
    Order(Operation, u8),
    Health(Health),
    Wait,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let operation = prop_oneof![
        2 => Just(Operation::Finalize),
        1 => Just(Operation::Supersede),
        1 => Just(Operation::Rollback),
        1 => Just(Operation::Progress),
    ];
    let health = prop_oneof![
        3 => Just(Health::Current),
        1 => Just(Health::InProgress),
        1 => Just(Health::Failed),
    ];
    let step = prop_oneof![
        3 => (0..3_u8).prop_map(Step::Candidate),
        3 => (operation, 0..4_u8).prop_map(|(operation, plan)| Step::Order(operation, plan)),
        3 => health.prop_map(Step::Health),
        1 => Just(Step::Wait),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..14)
}

/// A destination under random orders, with every plan that it was ever sent.
struct World {
    spoke: Spoke,
    plans: Vec<Admitted>,
    running: Admitted,
}

impl World {
    fn new() -> Self {
        let first = admit(None, &["a", "plan-0"], "0");
        Self { spoke: Spoke::settled(&first), plans: vec![first.clone()], running: first }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Candidate(text) => {
                let name = format!("plan-{}", self.plans.len());
                let names = ["a", name.as_str()];
                let admitted = admit_candidate(Some(&self.spoke.entry), &names, &text.to_string());
                self.plans.push(admitted.clone());
                self.run(admitted, Origin::Admitted);
            }
            Step::Order(operation, plan) => {
                let plan = &self.plans[usize::from(plan) % self.plans.len()];
                let mut known = plan.clone();
                known.blobs = self.blobs();
                let before = self.spoke.entry.clone();
                match order(&self.spoke.entry, operation, &known) {
                    Ok(admitted) => self.run(admitted, Origin::Admitted),
                    Err(_) => assert_eq!(self.spoke.entry, before),
                }
            }
            Step::Health(health) => self.spoke.see(&self.running.clone(), "a", health),
            Step::Wait => {
                self.spoke.machine.later(Duration::from_secs(61));
                self.spoke.settle(&self.running.clone());
            }
            Step::Restart => {
                self.spoke.machine =
                    Machine { moment: self.spoke.machine.moment, ..Machine::new() };
                self.load();
            }
        }
        if self.spoke.requests.iter().any(|request| request == "reload") {
            self.load();
        }
    }

    fn load(&mut self) {
        let loaded = load(&self.spoke.entry, &self.blobs());
        self.run(loaded, Origin::Loaded);
    }

    fn run(&mut self, admitted: Admitted, origin: Origin) {
        self.running = admitted;
        self.spoke.run(&self.running.clone(), origin);
    }

    fn blobs(&self) -> BTreeMap<Digest, Bytes> {
        self.plans.iter().flat_map(|plan| plan.blobs.clone()).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn under_any_orders_good_plans_move_by_finalize_and_only_they_prune(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            let before = world.spoke.entry.record.clone();
            let is_finalize = matches!(step, Step::Order(Operation::Finalize, _));
            let is_plain = matches!(step, Step::Order(Operation::Progress, 0));
            world.spoke.requests.clear();
            world.take(step);

            let record = world.spoke.entry.record.clone();
            let was_finalizing = before.rollout.as_ref().is_some_and(|rollout| {
                matches!(rollout.state, RolloutState::Finalizing | RolloutState::Local)
            });
            let may_move = is_finalize || is_plain || was_finalizing;
            prop_assert!(may_move || record.last_good == before.last_good);
            let may_prune = record.rollout.as_ref().is_none_or(|r| r.state.may_prune());
            prop_assert!(may_prune || !world.spoke.requested("delete"));
            prop_assert_eq!(record.held.as_ref(), Some(&world.running.held), "what is held runs");
        }
    }
}
