//! Rollouts of a record: tables of directives, and random sequences of them.

use proptest::prelude::*;

use super::*;
use crate::basics::ids::{ClusterId, Name};
use crate::basics::keys::PrivateKey;
use crate::basics::reason::Reason;
use crate::record::Floor;

fn hub_key(seed: u8) -> KeyId {
    PrivateKey::from_seed(&[seed; 32]).unwrap().public().id()
}

/// A plan of its own content; `variant` is another plan of the same content.
fn plan(content: u8, variant: u8) -> Held {
    let plan = Digest::of(&[content, variant]);
    Held {
        plan,
        plan_digest: plan,
        release: Digest::of(&[content]),
        receipts: Vec::new(),
        content: Digest::of(&[content]),
    }
}

fn record(held: Option<Held>, good: &[Held], rollout: Option<Rollout>) -> Record {
    Record {
        v: 1,
        application: Name::new("web").unwrap(),
        namespace: Name::new("shop").unwrap(),
        hub_key: hub_key(1),
        epoch: 1,
        sequence: 4,
        directive: Digest::of(b"directive"),
        other_hub_keys: Vec::new(),
        binding: None,
        floor: Some(Floor { counter: 1, release: Digest::of(b"release") }),
        held,
        last_good: good.first().cloned(),
        good: good.iter().skip(1).cloned().collect(),
        inventory: Vec::new(),
        removed: false,
        recorded_at: None,
        since: None,
        rollback_point: None,
        rollout,
    }
}

fn rollout(state: RolloutState) -> Rollout {
    Rollout { generation: 7, attempt: 1, state, aborts: Vec::new() }
}

fn directive(operation: Operation, plan: &Held, finalize: FinalizedBy) -> Directive {
    let time = "2026-11-29T12:00:00Z".parse().unwrap();
    Directive {
        v: 1,
        cluster: ClusterId::of_identity_key(&[9; 32]),
        application: Name::new("web").unwrap(),
        namespace: Name::new("shop").unwrap(),
        epoch: 1,
        sequence: 5,
        generation: 7,
        attempt: 1,
        operation,
        cap_percent: 100,
        plan: Some(plan.plan_digest),
        repair: false,
        stage: None,
        soak_ms: None,
        paused: false,
        finalize,
        keep_failed: false,
        issued_at: time,
        expires_at: time,
    }
}

fn abort(plan: &Held, attempt: u32) -> Abort {
    Abort {
        plan: plan.plan_digest,
        attempt,
        reason: Reason::Unhealthy.into(),
        message: "no".to_owned(),
    }
}

/// What it is about, record, operation and plan of a directive, and what it orders.
type Case<'a> = (&'a str, &'a Record, Operation, &'a Held, Result<OrderedPlan<'a>, Reason>);

#[test]
fn an_operation_orders_a_delivered_plan_or_one_of_the_record() {
    let (candidate, good, older) = (plan(3, 0), plan(2, 0), plan(1, 0));
    let in_state = |state| {
        record(Some(candidate.clone()), &[good.clone(), older.clone()], Some(rollout(state)))
    };
    let plain = record(Some(candidate.clone()), std::slice::from_ref(&good), None);
    let unproven = in_state(RolloutState::Candidate);
    let failed = in_state(RolloutState::Failed);
    let soaking = in_state(RolloutState::Soaking);
    let first = record(Some(candidate.clone()), &[], Some(rollout(RolloutState::Candidate)));
    let other = plan(9, 0);
    let cases: [Case<'_>; 12] = [
        ("a plan", &plain, Operation::Progress, &other, Ok(OrderedPlan::Delivered)),
        ("back", &unproven, Operation::Rollback, &good, Ok(OrderedPlan::Recorded(&good))),
        ("further back", &soaking, Operation::Rollback, &older, Ok(OrderedPlan::Recorded(&older))),
        ("never good", &soaking, Operation::Rollback, &other, Err(Reason::RollbackNotAllowed)),
        (
            "not yet good",
            &soaking,
            Operation::Rollback,
            &candidate,
            Err(Reason::RollbackNotAllowed),
        ),
        ("good", &soaking, Operation::Finalize, &candidate, Ok(OrderedPlan::Recorded(&candidate))),
        ("not in hand", &soaking, Operation::Finalize, &other, Err(Reason::PlanMismatch)),
        ("not in hand", &soaking, Operation::Supersede, &good, Err(Reason::PlanMismatch)),
        ("unproven", &unproven, Operation::Supersede, &candidate, Ok(OrderedPlan::Recorded(&good))),
        ("failed", &failed, Operation::Supersede, &candidate, Ok(OrderedPlan::Recorded(&good))),
        (
            "at target",
            &soaking,
            Operation::Supersede,
            &candidate,
            Ok(OrderedPlan::Recorded(&candidate)),
        ),
        (
            "the first",
            &first,
            Operation::Supersede,
            &candidate,
            Ok(OrderedPlan::Recorded(&candidate)),
        ),
    ];
    for (case, record, operation, plan, expected) in cases {
        let directive = directive(operation, plan, FinalizedBy::Hub);
        let ordered = ordered_plan(&directive, hub_key(1), Some(record));
        assert_eq!(ordered.map_err(|error| error.reason()), expected, "{case}");
    }
    for operation in [Operation::Finalize, Operation::Supersede, Operation::Rollback] {
        let directive = directive(operation, &good, FinalizedBy::Hub);
        assert!(ordered_plan(&directive, hub_key(1), None).is_err(), "nothing runs");
    }
}

#[test]
fn generation_and_attempt_never_fall_for_one_hub_key() {
    let held = plan(3, 0);
    let record = record(Some(held.clone()), &[], Some(rollout(RolloutState::Candidate)));
    let plain = Record { rollout: None, ..record.clone() };
    let outcome = |generation, attempt, hub, record: &Record| {
        let directive = Directive {
            generation,
            attempt,
            ..directive(Operation::Progress, &held, FinalizedBy::Hub)
        };
        ordered_plan(&directive, hub, Some(record)).map_err(|error| error.reason()).err()
    };

    for (generation, attempt) in [(7, 1), (8, 1), (7, 2)] {
        assert_eq!(outcome(generation, attempt, hub_key(1), &record), None);
    }
    for (generation, attempt) in [(6, 1), (7, 0), (8, 0), (6, 9)] {
        let regressed = Some(Reason::GenerationRegressed);
        assert_eq!(outcome(generation, attempt, hub_key(1), &record), regressed);
        assert_eq!(outcome(generation, attempt, hub_key(2), &record), None, "another hub");
        assert_eq!(outcome(generation, attempt, hub_key(1), &plain), None, "no rollout yet");
    }
}

#[test]
fn a_failed_plan_is_tried_again_only_at_a_higher_attempt_whatever_the_generation() {
    let (failed, good) = (plan(3, 0), plan(2, 0));
    let mut record = record(
        Some(failed.clone()),
        std::slice::from_ref(&good),
        Some(rollout(RolloutState::Candidate)),
    );
    record.fail(abort(&failed, 1), AfterFailure::Return);
    assert_eq!(
        (record.held.as_ref(), record.abort().map(|a| a.plan)),
        (Some(&good), Some(failed.plan_digest))
    );
    let outcome = |generation, attempt| {
        let directive = Directive {
            generation,
            attempt,
            ..directive(Operation::Progress, &failed, FinalizedBy::Hub)
        };
        ordered_plan(&directive, hub_key(1), Some(&record)).map_err(|error| error.reason()).err()
    };

    assert_eq!(outcome(7, 1), Some(Reason::PlanAborted));
    assert_eq!(outcome(900, 1), Some(Reason::PlanAborted));
    assert_eq!(outcome(7, 2), None);
}

#[test]
fn the_newest_aborts_are_remembered_once_for_each_plan() {
    let good = plan(0, 0);
    let mut record = record(None, &[good], Some(rollout(RolloutState::Good)));
    for index in 0..=u8::try_from(ABORTS_MAX).unwrap() {
        for attempt in [1, 2] {
            let failed = plan(index, 1);
            record.held = Some(failed.clone());
            record.rollout.as_mut().unwrap().state = RolloutState::Candidate;
            record.fail(abort(&failed, attempt), AfterFailure::Return);
        }
    }

    let aborts = &record.rollout.as_ref().unwrap().aborts;
    assert_eq!(aborts.len(), ABORTS_MAX);
    assert!(aborts.iter().all(|abort| abort.attempt == 2));
    assert!(!aborts.iter().any(|abort| abort.plan == plan(0, 1).plan_digest), "the oldest");
}

#[test]
fn the_state_of_a_plan_follows_from_the_directive_about_it() {
    use RolloutState::{Candidate, Failed, Finalizing, Good, Local, Soaking};

    let (held, good) = (plan(3, 0), plan(2, 0));
    let cases = [
        (Operation::Progress, FinalizedBy::Hub, Candidate, Candidate),
        (Operation::Progress, FinalizedBy::Hub, Soaking, Soaking),
        (Operation::Progress, FinalizedBy::Hub, Finalizing, Soaking),
        (Operation::Progress, FinalizedBy::Hub, Failed, Candidate),
        (Operation::Progress, FinalizedBy::Spoke, Soaking, Local),
        (Operation::Finalize, FinalizedBy::Hub, Candidate, Finalizing),
        (Operation::Finalize, FinalizedBy::Hub, Soaking, Finalizing),
        (Operation::Supersede, FinalizedBy::Hub, Finalizing, Soaking),
        (Operation::Supersede, FinalizedBy::Hub, Soaking, Soaking),
        (Operation::Supersede, FinalizedBy::Hub, Candidate, Candidate),
    ];
    for (operation, finalize, before, expected) in cases {
        let record = record(Some(held.clone()), std::slice::from_ref(&good), Some(rollout(before)));
        let directive = directive(operation, &held, finalize);
        let after = rollout_after(&directive, Some(&record), &held).unwrap();
        assert_eq!(after.state, expected, "{operation:?} of {before:?}");
    }
    let record = record(Some(held.clone()), std::slice::from_ref(&good), Some(rollout(Soaking)));
    let back = directive(Operation::Rollback, &good, FinalizedBy::Hub);
    assert_eq!(rollout_after(&back, Some(&record), &good).unwrap().state, Good);
    let new = directive(Operation::Progress, &plan(4, 0), FinalizedBy::Hub);
    assert_eq!(rollout_after(&new, Some(&record), &plan(4, 0)).unwrap().state, Candidate);
    let plain = directive(Operation::Progress, &held, FinalizedBy::Spoke);
    assert_eq!(rollout_after(&plain, None, &held), None, "the first form leaves no trace");
}

#[test]
fn a_plan_of_the_same_content_replaces_the_good_one() {
    let (first, again, next) = (plan(1, 0), plan(1, 1), plan(2, 0));
    let mut record = record(Some(first.clone()), &[], None);
    let mut finalize = |held: &Held| {
        record.held = Some(held.clone());
        record.finalize(1);
        record.good_plans().cloned().collect::<Vec<_>>()
    };

    assert_eq!(finalize(&first), std::slice::from_ref(&first));
    assert_eq!(finalize(&again), std::slice::from_ref(&again));
    assert_eq!(finalize(&next), [next.clone(), again.clone()]);
    assert_eq!(finalize(&plan(3, 0)), [plan(3, 0), next.clone()], "one before the newest");
    assert_eq!(finalize(&next), [next, plan(3, 0)], "a return moves it to the front");
}

#[derive(Clone, Debug)]
enum Action {
    Order(Operation, u8, FinalizedBy, u32),
    ReachTarget,
    Settle,
    Fail(bool),
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let operation = prop_oneof![
        4 => Just(Operation::Progress),
        1 => Just(Operation::Supersede),
        1 => Just(Operation::Rollback),
        2 => Just(Operation::Finalize),
    ];
    let finalized_by = prop_oneof![Just(FinalizedBy::Hub), Just(FinalizedBy::Spoke)];
    let order = (operation, 0..4_u8, finalized_by, 0..3_u32)
        .prop_map(|(operation, plan, by, attempt)| Action::Order(operation, plan, by, attempt));
    let action = prop_oneof![
        4 => order,
        2 => Just(Action::ReachTarget),
        2 => Just(Action::Settle),
        1 => any::<bool>().prop_map(Action::Fail),
    ];
    proptest::collection::vec(action, 1..60)
}

/// Admits a directive as a spoke does.
fn admit(record: &mut Record, directive: &Directive, delivered: &Held) -> Result<(), RecordError> {
    let held = match ordered_plan(directive, hub_key(1), Some(record))? {
        OrderedPlan::Delivered => delivered.clone(),
        OrderedPlan::Recorded(held) => held.clone(),
    };
    record.rollout = rollout_after(directive, Some(record), &held);
    record.held = Some(held);
    Ok(())
}

proptest! {
    #[test]
    fn good_plans_move_only_when_the_hub_finalizes_or_leaves_it_to_the_spoke(actions in actions()) {
        let mut record = record(Some(plan(0, 0)), &[plan(0, 0)], None);
        let mut finalizable = false;
        for action in actions {
            let before = record.clone();
            match action {
                Action::Order(operation, content, by, attempt) => {
                    let target = plan(content, 0);
                    let directive =
                        Directive { attempt, ..directive(operation, &target, by) };
                    let admitted = admit(&mut record, &directive, &target);
                    if admitted.is_err() {
                        prop_assert_eq!(&record, &before, "a refusal changes nothing");
                        continue;
                    }
                    let is_local = |rollout: &Rollout| rollout.state == RolloutState::Local;
                    finalizable = match operation {
                        Operation::Finalize => true,
                        Operation::Supersede => {
                            finalizable && record.rollout.as_ref().is_none_or(is_local)
                        }
                        Operation::Progress | Operation::Rollback | Operation::Remove => {
                            by == FinalizedBy::Spoke
                        }
                    };
                }
                Action::ReachTarget => record.reach_target(),
                Action::Settle => {
                    record.finalize(1);
                    let moved = record.last_good != before.last_good;
                    prop_assert!(!moved || finalizable || before.rollout.is_none());
                    continue;
                }
                Action::Fail(keep) => {
                    let held = record.held.clone().unwrap();
                    let attempt = record.rollout.as_ref().map_or(0, |rollout| rollout.attempt);
                    if let Some(view) = record.rollout_view() {
                        record.fail(abort(&held, attempt), view.after_failure(keep));
                    }
                }
            }
            prop_assert_eq!(&record.last_good, &before.last_good);
            prop_assert_eq!(&record.good, &before.good);
            let rollout = record.rollout.as_ref();
            let is_good = rollout.is_some_and(|rollout| {
                matches!(rollout.state, RolloutState::Good | RolloutState::Returned)
            });
            prop_assert!(!is_good || record.held == record.last_good, "what is good runs");
        }
    }
}
