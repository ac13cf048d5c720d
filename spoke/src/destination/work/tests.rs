//! The transitions of a destination, case by case.

mod random;
mod rollout;

use attest_common::basics::ids::Digest;
use attest_common::basics::reason::Reason;
use attest_common::documents::manifest::ObjectKey;
use attest_common::objects::health::{Health, Verdict};
use attest_common::objects::kinds::Kinds;
use attest_common::record::custody::Confirmed;
use attest_common::session::report::Timings;

use super::*;
use crate::cluster::apply::{self, Deleted, DryRunPermit, Written};
use crate::cluster::drift::Live;
use crate::cluster::error::ApiError;
use crate::cluster::watch::Observation;
use crate::destination::applying::{Durability, Rollback};
use crate::destination::event::Facts;
use crate::destination::fixture::{Admitted, Removed, admit, remove};
use crate::destination::handover::Claimed;
use crate::destination::recording::RollbackUpdate;
use crate::ledger::records::Entry;
use crate::ledger::records::tests::object_key;

const PASSED: DryRunPermit =
    DryRunPermit { force: false, preexisting: false, takeover: false, replaces: false };

/// A state machine at a time, and what it has asked for last.
struct Machine {
    state: State,
    moment: Moment,
    claims: Claims,
    rollout: Option<RolloutView>,
    /// Reason of the report that was made last, until it is looked at.
    reported: Option<String>,
}

impl Machine {
    fn new() -> Self {
        let key = ("web".parse().unwrap(), "shop".parse().unwrap());
        let wall = jiff::Timestamp::UNIX_EPOCH;
        Self {
            state: State::new(key),
            moment: Moment { now: Instant::now(), wall },
            claims: Claims::new(),
            rollout: None,
            reported: None,
        }
    }

    /// One that has prepared and checked an admission of `a` and `b`.
    fn checked(admitted: &Admitted) -> Self {
        let mut machine = Self::new();
        machine.feed(run(admitted, Origin::Admitted));
        assert_eq!(machine.tick(), ["prepare"]);
        assert_eq!(machine.finish(Outcome::Prepared(Ok(true))), ["follow 2"]);
        assert_eq!(machine.tick(), ["dry-run a", "dry-run b"]);
        machine.finish(checked("a", Ok(PASSED)));
        machine.finish(checked("b", Ok(PASSED)));
        machine
    }

    /// One that has written and recorded an admission of `a` and `b`.
    fn synced(admitted: &Admitted) -> Self {
        let mut machine = Self::checked(admitted);
        assert_eq!(machine.tick(), ["record give-up"]);
        machine.finish(recorded());
        assert_eq!(machine.tick(), ["write a", "write b"]);
        for name in ["a", "b"] {
            machine.finish(wrote(admitted, name, false));
        }
        assert_eq!(machine.tick(), ["record give-up"]);
        machine.finish(recorded());
        machine.later(REPORT_EVERY);
        assert_eq!(machine.tick(), [""; 0]);
        assert_eq!(machine.report(), "Synced");
        machine
    }

    /// Returns the commands, except reports.
    fn feed(&mut self, event: Event) -> Vec<String> {
        let commands = next(&mut self.state, event, self.moment);
        for command in &commands {
            if let Command::Report { report, .. } = command {
                self.reported = Some(report.reason.to_string());
            }
        }
        commands.iter().filter_map(shown).collect()
    }

    /// Returns the reason of the report that was made since the last call, if any.
    fn report(&mut self) -> String {
        self.tick();
        self.reported.take().unwrap_or_default()
    }

    fn finish(&mut self, outcome: Outcome) -> Vec<String> {
        self.feed(Event::Finished(Box::new(outcome)))
    }

    fn tick(&mut self) -> Vec<String> {
        self.feed(Event::Tick {
            position: Some((1, 1)),
            claims: self.claims.clone(),
            rollout: self.rollout.clone(),
        })
    }

    fn later(&mut self, by: Duration) {
        self.moment.now += by;
    }

    fn applying(&self) -> &Applying {
        self.state.work.applying().unwrap()
    }
}

fn shown(command: &Command) -> Option<String> {
    Some(match command {
        Command::CancelRequests => "cancel".to_owned(),
        Command::Request(request) => requested(request),
        Command::Follow { objects, .. } => format!("follow {}", objects.len()),
        Command::Reload => "reload".to_owned(),
        Command::Reevaluate => "reevaluate".to_owned(),
        Command::Offer { key, uid } => format!("offer {} {uid}", key.name),
        Command::TidyContent => "tidy".to_owned(),
        Command::NoteRefusal(refusal) => format!("refused {}", refusal.reason),
        Command::FollowPods(_)
        | Command::Report { .. }
        | Command::Notice(_)
        | Command::WakeAt(_) => return None,
    })
}

fn requested(request: &Request) -> String {
    match request {
        Request::Prepare(_) => "prepare".to_owned(),
        Request::AwaitDryRun(key) => format!("await {}", key.name),
        Request::DryRun { key, .. } => format!("dry-run {}", key.name),
        Request::Write { key, heal: false, .. } => format!("write {}", key.name),
        Request::Write { key, heal: true, .. } => format!("heal {}", key.name),
        Request::Look { key, .. } => format!("look {}", key.name),
        Request::Delete(deletion) => format!("delete {}", deletion.key.name),
        Request::Record(update) => match update.rollback {
            RollbackUpdate::Keep => "record".to_owned(),
            RollbackUpdate::GiveUp => "record give-up".to_owned(),
        },
        Request::RecordRemoved => "record removed".to_owned(),
        Request::Revert(revert) => format!("revert {:?}", revert.inventory),
        Request::Return(_) => "return".to_owned(),
        Request::StoreSoak(_) => "store-soak".to_owned(),
        Request::Withdraw(_) => "withdraw".to_owned(),
    }
}

fn facts(entry: &Entry) -> Facts {
    Facts { entry: Some(entry.clone()), kinds: Kinds::built_in() }
}

fn run(admitted: &Admitted, origin: Origin) -> Event {
    run_as_recorded(admitted, origin, &admitted.entry)
}

fn run_as_recorded(admitted: &Admitted, origin: Origin, entry: &Entry) -> Event {
    Event::Run(Box::new(RunOrder {
        admission: Arc::clone(&admitted.admission),
        objects: Arc::clone(&admitted.objects),
        held: admitted.held.clone(),
        origin,
        repair: false,
        timings: Timings::default(),
        soak: None,
        asked: Vec::new(),
        facts: facts(entry),
    }))
}

fn remove_order(removed: &Removed) -> Event {
    let (removal, facts) = (removed.removal.clone(), facts(&removed.entry));
    Event::Remove(Box::new(RemoveOrder { removal, facts }))
}

fn freeze() -> Event {
    Event::Freeze { reason: Reason::NoTrustPolicy, message: String::new() }
}

fn refusal(sequence: u64) -> Event {
    Event::Refused(Refusal {
        reason: Reason::Expired.into(),
        message: String::new(),
        sequence: Some(sequence),
        at: jiff::Timestamp::UNIX_EPOCH,
    })
}

fn checked(name: &str, result: Result<DryRunPermit, ApplyError>) -> Outcome {
    Outcome::Checked(object_key("ConfigMap", name), result)
}

fn conflict(name: &str) -> Outcome {
    let (object, managers) = (object_key("ConfigMap", name), "kubectl".to_owned());
    checked(name, Err(ApplyError::FieldConflict { object, managers }))
}

fn recorded() -> Outcome {
    Outcome::Recorded(Ok(Recorded::Done))
}

fn superseded() -> Outcome {
    Outcome::Recorded(Ok(Recorded::Superseded))
}

fn away() -> ApiError {
    ApiError::Timeout { verb: "patch", path: "/x".to_owned() }
}

fn wrote(admitted: &Admitted, name: &str, heal: bool) -> Outcome {
    let key = object_key("ConfigMap", name);
    let object = admitted.objects.get(&key).unwrap();
    let written = written(apply::desired(object.value()), "uid", b"live");
    Outcome::Wrote { key, heal, result: Ok(written) }
}

fn written(desired: Digest, uid: &str, live: &[u8]) -> Written {
    let projected = Digest::of(live);
    let uid = uid.to_owned();
    let confirmed = Confirmed { desired, uid: uid.clone(), projected, rewritten: Vec::new() };
    Written { created: true, confirmed, observation: present(&uid, live, 1) }
}

fn present(uid: &str, live: &[u8], version: u64) -> Observation {
    Observation {
        kept_by_kubectl: Vec::new(),
        live: Live::Present {
            uid: uid.to_owned(),
            projected: Digest::of(live),
            whole: None,
            leaving: false,
            version,
        },
        verdict: Verdict {
            health: Health::Current,
            message: String::new(),
            gates: true,
            turn: None,
        },
        added: 0,
        at: Instant::now(),
    }
}

fn seen(name: &str, observation: Observation) -> Event {
    let mut news = News::default();
    news.objects.insert(object_key("ConfigMap", name), observation);
    Event::Observed(news)
}

#[test]
fn the_rollback_point_is_given_up_durably_before_the_first_write() {
    let first = admit(None, &["a", "b"], "one");
    let mut machine = Machine::checked(&first);
    assert_eq!(machine.applying().rollback, Rollback::Possible);

    assert_eq!(machine.tick(), ["record give-up"]);
    assert_eq!(machine.tick(), [""; 0], "no write, and no second record");
    assert_eq!(machine.applying().rollback, Rollback::GivingUp);

    machine.finish(recorded());
    assert_eq!(machine.applying().rollback, Rollback::GivenUp);
    assert_eq!(machine.tick(), ["write a", "write b"]);
}

#[test]
fn a_record_that_could_not_give_up_the_rollback_point_is_written_again_before_the_first_write() {
    let first = admit(None, &["a", "b"], "one");
    let mut machine = Machine::checked(&first);
    assert_eq!(machine.tick(), ["record give-up"]);

    machine.finish(Outcome::Recorded(Err(LedgerError::Api(away()))));

    assert_eq!(machine.applying().rollback, Rollback::GiveUpDue);
    assert_eq!(machine.tick(), [""; 0], "after a wait");
    assert_eq!(machine.report(), "ApiServerTimeout");
    machine.later(Duration::from_secs(1));
    assert_eq!(machine.tick(), ["record give-up"]);
}

#[test]
fn a_conflict_before_the_first_write_reverts_the_plan_and_nothing_is_reported_until_it_is_loaded() {
    let first = admit(None, &["a", "b"], "one");
    let second = admit(Some(&first.entry), &["a", "b"], "two");
    let mut machine = Machine::synced(&first);
    machine.feed(run(&second, Origin::Admitted));
    assert_eq!(machine.tick(), ["dry-run a", "dry-run b"]);

    assert_eq!(
        machine.finish(conflict("b")),
        ["cancel", "refused FieldConflict", "follow 0", "revert Drop"]
    );
    machine.reported = None;
    assert_eq!(machine.tick(), [""; 0]);
    assert_eq!(machine.finish(Outcome::Reverted(Ok(true))), ["reload"]);
    assert_eq!(machine.tick(), [""; 0]);
    assert_eq!(machine.report(), "");

    machine.feed(run(&first, Origin::Loaded));
    assert_eq!(machine.report(), "FieldConflict");
}

#[test]
fn what_another_process_may_have_written_of_a_refused_plan_stays_in_the_inventory() {
    let first = admit(None, &["a"], "one");
    let mut machine = Machine::new();
    machine.feed(run(&first, Origin::Loaded));
    machine.tick();
    machine.finish(Outcome::Prepared(Ok(false)));
    machine.tick();

    assert_eq!(machine.finish(conflict("a")).last().unwrap(), "revert Keep");
}

#[test]
fn a_conflict_while_the_rollback_point_is_being_given_up_sets_aside_the_object_alone() {
    let first = admit(None, &["a", "b"], "one");
    let mut machine = Machine::checked(&first);
    assert_eq!(machine.tick(), ["record give-up"]);

    assert_eq!(machine.finish(conflict("b")), [""; 0]);

    assert!(matches!(machine.state.work, Work::Applying(_)));
    machine.finish(recorded());
    assert_eq!(machine.tick()[0], "write a");
}

#[test]
fn a_first_plan_that_is_reverted_loses_its_rights_and_is_reported_as_refused() {
    let first = admit(None, &["a", "b"], "one");
    let mut machine = Machine::checked(&first);
    machine.finish(conflict("a"));

    assert_eq!(machine.finish(Outcome::Reverted(Ok(false))), ["withdraw"]);

    assert!(matches!(machine.state.work, Work::Idle));
    assert_eq!(machine.report(), "FieldConflict");
    // An order ends what is still being taken away.
    assert_eq!(machine.feed(run(&first, Origin::Admitted))[0], "cancel");
}

#[test]
fn a_plan_whose_refusal_cannot_be_recorded_is_frozen() {
    let first = admit(None, &["a", "b"], "one");
    let mut machine = Machine::checked(&first);
    machine.finish(conflict("a"));

    machine.finish(Outcome::Reverted(Err(LedgerError::TooLarge { objects: 1 })));

    assert!(matches!(&machine.state.work, Work::Frozen { reason, .. } if *reason == Reason::Limit));
    assert_eq!(machine.report(), "Limit");
}

#[test]
fn a_refusal_while_a_plan_is_reverted_waits_and_stands_once_what_ran_is_loaded() {
    let first = admit(None, &["a", "b"], "one");
    let second = admit(Some(&first.entry), &["a", "b"], "two");
    let mut machine = Machine::synced(&first);
    machine.feed(run(&second, Origin::Admitted));
    machine.tick();
    machine.finish(conflict("b"));

    machine.reported = None;
    machine.feed(refusal(9));
    assert_eq!(machine.report(), "");

    machine.finish(Outcome::Reverted(Ok(true)));
    machine.feed(run(&first, Origin::Loaded));
    assert_eq!(machine.report(), "Expired");
}

#[test]
fn a_refusal_ends_with_what_is_admitted_after_it_and_not_with_what_is_loaded() {
    let first = admit(None, &["a", "b"], "one");
    let second = admit(Some(&first.entry), &["a", "b"], "two");
    let mut machine = Machine::synced(&first);
    machine.feed(refusal(9));
    assert_eq!(machine.report(), "Expired");

    machine.feed(run(&first, Origin::Loaded));
    machine.feed(Event::RepeatReport);
    assert_eq!(machine.report(), "Expired");
    machine.feed(run(&second, Origin::Admitted));
    assert_eq!(machine.report(), "Progressing");
}

#[test]
fn an_order_while_the_record_is_being_written_leaves_it_to_be_written_again() {
    let first = admit(None, &["a", "b"], "one");
    let mut machine = Machine::checked(&first);
    assert_eq!(machine.tick(), ["record give-up"]);
    let second = admit(Some(&first.entry), &["a", "b"], "two");

    assert_eq!(machine.feed(run(&second, Origin::Admitted))[0], "cancel");

    assert_eq!(machine.applying().durability, Durability::Dirty);
    assert_eq!(
        machine.applying().rollback,
        Rollback::Possible,
        "what was dropped is not relied on"
    );
}

#[test]
fn an_order_that_the_record_does_not_hold_is_not_carried_out() {
    let first = admit(None, &["a", "b"], "one");
    let second = admit(Some(&first.entry), &["a", "b"], "two");
    let mut machine = Machine::synced(&first);

    assert_eq!(machine.feed(run_as_recorded(&first, Origin::Admitted, &second.entry)), ["reload"]);
    let removed = remove(&first.entry);
    let late = Removed { entry: second.entry, ..removed };
    assert_eq!(machine.feed(remove_order(&late)), ["reload"]);

    assert_eq!(machine.tick(), [""; 0]);
    assert!(matches!(machine.state.work, Work::Applying(_)));
}

#[test]
fn a_worker_that_is_overtaken_begins_nothing_and_freezes_unless_an_order_comes() {
    let first = admit(None, &["a", "b"], "one");
    let second = admit(Some(&first.entry), &["a", "b"], "two");
    let overtaken = || {
        let mut machine = Machine::checked(&first);
        machine.tick();
        machine.finish(superseded());
        assert!(matches!(machine.state.work, Work::Overtaken { .. }));
        assert_eq!(machine.tick(), [""; 0]);
        machine
    };

    let mut alone = overtaken();
    alone.later(OVERTAKEN_WAIT);
    assert_eq!(alone.tick(), ["cancel", "reload"]);
    assert_eq!(alone.report(), "RecordConflict");
    assert_eq!(alone.tick(), [""; 0]);

    let mut ordered = overtaken();
    // One that is itself too late does not end the wait.
    ordered.feed(run_as_recorded(&first, Origin::Admitted, &second.entry));
    assert!(matches!(ordered.state.work, Work::Overtaken { .. }));
    ordered.feed(run(&second, Origin::Admitted));
    ordered.later(OVERTAKEN_WAIT);
    assert_eq!(ordered.tick()[0], "prepare");
}

#[test]
fn a_frozen_destination_is_watched_and_not_touched_and_goes_on_where_it_was() {
    let first = admit(None, &["a", "b"], "one");
    let mut machine = Machine::synced(&first);

    assert_eq!(machine.feed(freeze()), ["cancel"]);
    assert_eq!(machine.report(), "NoTrustPolicy");
    machine.feed(seen("a", present("uid", b"edited", 7)));
    machine.later(Duration::from_secs(1));
    assert_eq!(machine.tick(), [""; 0]);
    assert_eq!(machine.report(), "NoTrustPolicy", "what is seen is shown");

    let confirmed = machine.applying().objects.iter();
    let confirmed = confirmed.filter_map(|(key, t)| Some((key.clone(), t.confirmed.clone()?)));
    let entry = Entry { confirmed: confirmed.collect(), ..first.entry.clone() };
    machine.feed(run_as_recorded(&first, Origin::Loaded, &entry));
    assert_eq!(machine.tick()[0], "heal a");
}

#[test]
fn requests_that_are_dropped_are_made_again() {
    let first = admit(None, &["a", "b"], "one");
    let mut machine = Machine::new();
    machine.feed(run(&first, Origin::Admitted));
    assert_eq!(machine.tick()[0], "prepare");

    machine.feed(run(&first, Origin::Loaded));
    assert_eq!(machine.tick()[0], "prepare");
    machine.finish(Outcome::Prepared(Ok(true)));
    assert_eq!(machine.tick(), ["dry-run a", "dry-run b"]);
    machine.feed(run(&first, Origin::Loaded));
    machine.tick();
    machine.finish(Outcome::Prepared(Ok(false)));
    assert_eq!(machine.tick(), ["dry-run a", "dry-run b"]);
}

#[test]
fn a_removal_while_a_plan_is_applied_deletes_the_inventory_and_then_empties_the_record() {
    let first = admit(None, &["a", "b"], "one");
    let mut machine = Machine::checked(&first);
    machine.tick();
    machine.finish(recorded());
    assert_eq!(machine.tick(), ["write a", "write b"]);
    let removed = remove(&first.entry);

    assert_eq!(machine.feed(remove_order(&removed)), ["cancel", "follow 0"]);
    assert_eq!(machine.tick(), ["delete a", "delete b"]);
    let gone = |name: &str| Outcome::Deleted(object_key("ConfigMap", name), Ok(Deleted::Gone));
    machine.finish(gone("a"));
    machine.finish(gone("b"));
    assert_eq!(machine.tick(), ["record removed"]);
    assert_eq!(machine.tick(), [""; 0], "one record at a time");

    assert_eq!(machine.finish(recorded()), ["tidy"]);
    assert_eq!(machine.tick(), [""; 0]);
    assert_eq!(machine.report(), "Removed");
}

#[test]
fn a_removal_that_is_frozen_deletes_nothing_and_one_that_is_overtaken_gives_way() {
    let first = admit(None, &["a", "b"], "one");
    let removed = remove(&first.entry);
    let mut machine = Machine::synced(&first);
    machine.feed(remove_order(&removed));
    machine.feed(freeze());
    assert_eq!(machine.tick(), [""; 0]);

    machine.feed(remove_order(&removed));
    assert_eq!(machine.tick(), ["delete a", "delete b"]);
    machine.finish(superseded());
    machine.later(OVERTAKEN_WAIT);
    assert_eq!(machine.tick(), ["cancel", "reload"]);
}

#[test]
fn what_is_no_longer_rendered_is_deleted_once_the_new_plan_is_healthy() {
    let first = admit(None, &["a", "b"], "one");
    let mut machine = Machine::synced(&first);
    let second = admit(Some(&first.entry), &["a"], "one");
    machine.feed(run(&second, Origin::Admitted));
    assert_eq!(machine.tick()[0], "record give-up", "nothing is to be written, and it is good");
    assert_eq!(machine.tick(), [""; 0], "nothing is deleted while the rollback point exists");

    machine.finish(recorded());
    assert_eq!(machine.tick()[0], "delete b");
    machine.finish(Outcome::Deleted(object_key("ConfigMap", "b"), Ok(Deleted::Gone)));
    assert_eq!(machine.tick()[0], "record give-up", "it leaves the inventory");
    machine.finish(recorded());
    machine.later(REPORT_EVERY);
    machine.tick();
    assert_eq!(machine.tick(), [""; 0]);
}

#[test]
fn a_dry_run_that_was_begun_before_the_order_is_waited_for_and_not_made_twice() {
    let first = admit(None, &["a", "b"], "one");
    let mut machine = Machine::synced(&first);
    let second = admit(Some(&first.entry), &["a", "b"], "two");
    let Event::Run(mut order) = run(&second, Origin::Admitted) else { panic!() };
    let a = object_key("ConfigMap", "a");
    order.asked = vec![(a.clone(), machine.applying().objects[&a].ownership(false))];

    let commands = machine.feed(Event::Run(order));

    assert_eq!(commands.last().unwrap(), "await a");
    assert_eq!(machine.tick()[0], "dry-run b");
}

#[test]
fn the_same_is_reported_once_unless_the_hub_asks_again() {
    let first = admit(None, &["a", "b"], "one");
    let mut machine = Machine::synced(&first);
    assert_eq!(machine.report(), "");

    machine.feed(Event::RepeatReport);

    assert_eq!(machine.report(), "Synced");
    assert_eq!(machine.report(), "");
}

#[test]
fn a_burst_of_events_builds_one_report() {
    let first = admit(None, &["a", "b"], "one");
    let mut machine = Machine::synced(&first);
    let built_at = machine.state.built_at;
    assert_eq!(built_at, Some(machine.moment.now));

    for version in 2..50 {
        machine.later(Duration::from_millis(1));
        machine.feed(seen("a", present("uid", b"", version)));
        machine.tick();
        assert_eq!(machine.state.built_at, built_at);
    }
    machine.later(REPORT_EVERY);
    machine.tick();

    assert_eq!(machine.state.built_at, Some(machine.moment.now));
}

#[test]
fn a_worker_without_an_order_does_and_reports_nothing() {
    let mut machine = Machine::new();
    machine.feed(Event::RepeatReport);

    assert_eq!(machine.tick(), [""; 0]);
    assert_eq!(machine.report(), "");
}

#[test]
fn a_plan_that_is_tried_again_reports_nothing_while_it_is_refused_as_before() {
    let first = admit(None, &["a", "b"], "one");
    let mut machine = Machine::checked(&first);
    machine.finish(conflict("a"));
    machine.finish(Outcome::Reverted(Ok(false)));
    assert_eq!(machine.report(), "FieldConflict");

    machine.later(Duration::from_secs(60));
    machine.feed(run(&first, Origin::Retried));
    assert_eq!(machine.tick(), ["prepare"]);
    machine.finish(Outcome::Prepared(Ok(true)));
    assert_eq!(machine.tick(), ["dry-run a", "dry-run b"]);
    assert_eq!(machine.finish(conflict("a")), ["cancel", "follow 0", "revert Drop"]);
    assert_eq!(machine.finish(Outcome::Reverted(Ok(false))), ["withdraw"]);

    assert_eq!(machine.report(), "", "the refusal is the same");
    machine.feed(Event::RepeatReport);
    assert_eq!(machine.report(), "FieldConflict");
}

#[test]
fn the_refusal_of_a_plan_that_is_tried_again_ends_once_every_dry_run_has_passed() {
    let first = admit(None, &["a", "b"], "one");
    let mut machine = Machine::checked(&first);
    machine.finish(conflict("a"));
    machine.finish(Outcome::Reverted(Ok(false)));
    machine.report();
    machine.feed(run(&first, Origin::Retried));
    machine.tick();
    machine.finish(Outcome::Prepared(Ok(true)));
    machine.tick();
    machine.finish(checked("a", Ok(PASSED)));
    machine.finish(checked("b", Ok(PASSED)));

    assert_eq!(machine.report(), "Progressing");
}

#[test]
fn an_obstacle_that_is_deleted_while_the_previous_plan_runs_asks_for_another_judgement() {
    let first = admit(None, &["a"], "one");
    let second = admit(Some(&first.entry), &["a", "b"], "two");
    let mut machine = Machine::new();
    machine.feed(run(&first, Origin::Loaded));
    machine.feed(run(&second, Origin::Admitted));
    machine.tick();
    machine.finish(Outcome::Prepared(Ok(false)));
    machine.tick();
    machine.finish(conflict("b"));
    machine.finish(Outcome::Reverted(Ok(true)));
    machine.feed(run(&first, Origin::Loaded));
    let gone =
        || Observation { live: Live::Gone { uid: "other".to_owned() }, ..present("other", b"", 1) };

    assert_eq!(machine.feed(seen("b", present("other", b"", 1))), [""; 0]);
    assert_eq!(machine.feed(seen("b", gone())), ["reevaluate"]);
    machine.feed(run(&second, Origin::Retried));
    assert_eq!(machine.feed(seen("b", gone())), [""; 0], "it is tried already");
}

#[test]
fn an_object_that_another_destination_claims_is_offered_and_released_and_never_deleted() {
    let first = admit(None, &["a", "b"], "one");
    let mut machine = Machine::synced(&first);
    let mut entry = first.entry;
    entry.record.rollback_point = None;
    entry.record.inventory.iter_mut().for_each(|owned| owned.uid = Some("uid".to_owned()));
    let second = admit(Some(&entry), &["a"], "two");
    let b = object_key("ConfigMap", "b");
    machine.claims = Claims::from([(b.clone(), Claimed::Waiting)]);
    machine.feed(run(&second, Origin::Admitted));
    assert_eq!(machine.tick(), ["dry-run a"], "not before the rollback point is given up");
    machine.finish(checked("a", Ok(PASSED)));
    assert_eq!(machine.tick(), ["record give-up"]);
    machine.finish(recorded());

    assert_eq!(machine.tick(), ["offer b uid", "write a"]);
    machine.finish(wrote(&second, "a", false));
    assert_eq!(machine.tick(), ["record give-up"]);
    machine.finish(recorded());
    assert_eq!(machine.tick(), [""; 0], "it waits for the claimant");

    machine.claims = Claims::from([(b, Claimed::Taken)]);
    assert_eq!(machine.tick(), ["record give-up"], "it leaves the inventory");
    machine.finish(recorded());
    machine.claims.clear();
    assert_eq!(machine.tick(), [""; 0]);
}
