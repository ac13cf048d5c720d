use attest_common::basics::reason::Reason;
use attest_common::objects::health::Turn;

use super::*;
use crate::ledger::records::tests::object_key;

pub(in crate::destination) fn tracked(rank: u8) -> Tracked {
    Tracked {
        wave: 0,
        rank,
        gates: true,
        empty: Arc::default(),
        kept_by_kubectl: Vec::new(),
        desired: Digest::of(b"desired"),
        autoscaled: false,
        scale: Scale::Fixed,
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
        preexisting: false,
        expires: false,
        unfinished: false,
        confirmed: None,
        live: Live::Unknown,
        health: Health::NotFound,
        message: String::new(),
        added: 0,
        turning: None,
        permit: None,
        failure: None,
        busy: false,
        repair: false,
        budget: HealBudget::default(),
        drifted_at: None,
    }
}

pub(in crate::destination) fn applied(rank: u8) -> Tracked {
    let live = Live::Present {
        uid: "uid".to_owned(),
        projected: Digest::of(b"live"),
        whole: None,
        leaving: false,
        version: 5,
    };
    Tracked {
        owned_uid: Some("uid".to_owned()),
        confirmed: Some(Confirmed {
            desired: Digest::of(b"desired"),
            uid: "uid".to_owned(),
            projected: Digest::of(b"live"),
            rewritten: Vec::new(),
        }),
        live,
        health: Health::Current,
        ..tracked(rank)
    }
}

fn edited(projected: &[u8], version: u64) -> Observation {
    Observation {
        kept_by_kubectl: Vec::new(),
        live: Live::Present {
            uid: "uid".to_owned(),
            projected: Digest::of(projected),
            whole: None,
            leaving: false,
            version,
        },
        verdict: verdict(Health::Current),
        added: 0,
        at: Instant::now(),
    }
}

fn verdict(health: Health) -> Verdict {
    Verdict { health, message: String::new(), gates: true, turn: None }
}

const PASSED: Option<DryRunPermit> =
    Some(DryRunPermit { force: false, preexisting: false, takeover: false, replaces: false });

fn rules(now: Instant) -> Rules {
    Rules {
        self_heal: true,
        restores_workloads: false,
        adopt: false,
        only_heals: false,
        rollback_possible: false,
        begun: now,
    }
}

fn names(steps: &[Step]) -> Vec<String> {
    let name = |step: &Step| match step {
        Step::Check(key, _) => format!("check {}", key.name),
        Step::Write { key, force, .. } => format!("write {} {force}", key.name),
        Step::Look(key) => format!("look {}", key.name),
        Step::GiveUpRollback => "begin".to_owned(),
    };
    steps.iter().map(name).collect()
}

fn of<const N: usize>(objects: [(&str, Tracked); N]) -> BTreeMap<ObjectKey, Tracked> {
    objects.into_iter().map(|(name, t)| (object_key("ConfigMap", name), t)).collect()
}

#[test]
fn every_object_is_checked_before_the_first_is_written() {
    let now = Instant::now();
    let objects = of([("a", Tracked { permit: PASSED, ..tracked(1) }), ("b", tracked(2))]);

    assert_eq!(names(&steps(&objects, rules(now), now, 8).0), ["check b"]);
}

#[test]
fn a_wave_begins_when_everything_before_it_is_healthy() {
    let now = Instant::now();
    let second = || Tracked { wave: 1, permit: PASSED, ..tracked(5) };
    let next = |first: Tracked| {
        names(&steps(&of([("a", first), ("b", second())]), rules(now), now, 8).0).join(" ")
    };
    let failure = Failure::after(None, Reason::Forbidden, String::new(), now - RETRY.delay_max(9));
    let drifted = Live::Present {
        uid: "uid".to_owned(),
        projected: Digest::of(b"edited"),
        whole: None,
        leaving: false,
        version: 6,
    };
    let unhealthy = || Tracked { health: Health::Failed, ..applied(7) };

    assert_eq!(next(Tracked { permit: PASSED, ..tracked(7) }), "write a false");
    assert_eq!(next(Tracked { busy: true, ..applied(7) }), "");
    assert_eq!(next(Tracked { health: Health::InProgress, ..applied(7) }), "");
    assert_eq!(next(unhealthy()), "");
    assert_eq!(next(Tracked { wave: 1, ..unhealthy() }), "write b false");
    assert_eq!(next(Tracked { gates: false, ..unhealthy() }), "write b false");
    assert_eq!(next(Tracked { live: drifted, ..unhealthy() }), "write a true write b false");
    assert_eq!(
        next(Tracked { permit: PASSED, failure: Some(failure), ..tracked(7) }),
        "write a false"
    );
    assert_eq!(next(applied(7)), "write b false");
    // An earlier wave is written before a lower rank.
    assert_eq!(next(Tracked { wave: 2, permit: PASSED, ..tracked(1) }), "write b false");
}

#[test]
fn an_object_whose_check_got_no_answer_is_not_yet_checked() {
    let now = Instant::now();
    let failure = Failure::after(None, Reason::ApiServerTimeout, String::new(), now);
    let transient = Failure { transient: true, ..failure.clone() };
    let mut objects = of([("a", Tracked { permit: PASSED, ..tracked(1) }), ("b", tracked(2))]);
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
    let ready = |rank| Tracked { permit: PASSED, ..tracked(rank) };
    let mut objects = of([("a", ready(1)), ("b", ready(2))]);
    assert_eq!(names(&steps(&objects, rules(now), now, 8).0), ["write a false"]);

    let failure = Failure::after(None, Reason::Invalid, "no".to_owned(), now);
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
    let unwritten = Rules { rollback_possible: true, ..rules(now) };
    let ready = |rank| Tracked { permit: PASSED, ..tracked(rank) };
    let mut drifted = applied(1);
    drifted.see(edited(b"edited", 6));
    let mut objects = of([("a", ready(1)), ("b", ready(1)), ("c", tracked(1))]);

    assert_eq!(names(&steps(&objects, unwritten, now, 8).0), ["check c"]);
    objects.insert(object_key("ConfigMap", "c"), drifted);
    assert_eq!(names(&steps(&objects, unwritten, now, 1).0), ["write c true", "begin"]);
    objects.remove(&object_key("ConfigMap", "c"));
    assert_eq!(names(&steps(&objects, rules(now), now, 8).0), ["write a false", "write b false"]);
}

#[test]
fn without_self_heal_drift_is_left_alone_unless_a_repair_is_ordered() {
    let now = Instant::now();
    let mut drifted = applied(1);
    drifted.see(edited(b"edited", 6));

    let off = Rules { self_heal: false, ..rules(now) };
    assert_eq!(steps(&of([("a", drifted.clone())]), off, now, 8).0, []);
    drifted.repair = true;
    assert_eq!(names(&steps(&of([("a", drifted)]), off, now, 8).0), ["write a true"]);
}

#[test]
fn a_repair_ends_with_an_object_that_is_as_signed_already() {
    let now = Instant::now();
    let off = Rules { self_heal: false, ..rules(now) };
    let mut tracked = Tracked { repair: true, ..applied(1) };

    tracked.see(edited(b"live", 6));
    tracked.see(edited(b"edited", 7));

    assert_eq!(steps(&of([("a", tracked)]), off, now, 8).0, []);
}

#[test]
fn an_object_put_in_place_of_ours_is_never_forced_unasked() {
    let now = Instant::now();
    let mut replaced = applied(1);
    replaced.see(Observation {
        kept_by_kubectl: Vec::new(),
        live: Live::Present {
            uid: "other".to_owned(),
            projected: Digest::of(b""),
            whole: None,
            leaving: false,
            version: 9,
        },
        ..edited(b"", 9)
    });

    let (next, _) = steps(&of([("a", replaced)]), rules(now), now, 8);

    assert_eq!(
        next,
        [Step::Check(
            object_key("ConfigMap", "a"),
            Ownership::Unknown { adopt: false, unfinished: false }
        )]
    );
}

#[test]
fn an_object_that_was_there_before_us_is_asked_about_before_it_is_put_back() {
    let now = Instant::now();
    let permit =
        Some(DryRunPermit { force: false, preexisting: true, takeover: false, replaces: false });
    let mut preexisting = Tracked { preexisting: true, permit, ..applied(1) };
    preexisting.see(edited(b"edited", 6));
    let adopting = Rules { adopt: true, ..rules(now) };

    for (rules, adopt) in [(rules(now), false), (adopting, true)] {
        assert_eq!(
            steps(&of([("a", preexisting.clone())]), rules, now, 8).0,
            [Step::Check(
                object_key("ConfigMap", "a"),
                Ownership::Unknown { adopt, unfinished: false }
            )]
        );
    }
}

#[test]
fn an_object_stays_met_until_our_own_apply_makes_it() {
    let ours =
        Some(DryRunPermit { force: true, preexisting: false, takeover: false, replaces: false });
    let preexisting =
        Some(DryRunPermit { force: false, preexisting: true, takeover: false, replaces: false });

    assert!(is_preexisting(false, preexisting, false));
    assert!(is_preexisting(true, ours, false));
    assert!(is_preexisting(true, None, false));
    assert!(!is_preexisting(true, preexisting, true));
    assert!(!is_preexisting(false, ours, false));
}

#[test]
fn an_unfinished_apply_is_told_from_an_object_that_was_never_ours() {
    let ours = Tracked { unfinished: true, ..tracked(1) };
    let theirs = Tracked { preexisting: true, ..ours.clone() };

    assert_eq!(ours.ownership(false), Ownership::Unknown { adopt: false, unfinished: true });
    assert_eq!(theirs.ownership(false), Ownership::Unknown { adopt: false, unfinished: false });
    let uid = "uid".to_owned();
    assert_eq!(applied(1).ownership(false), Ownership::Ours { uid, adopt: false });
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
    assert_eq!(own.ownership(true), Ownership::Shared);

    own.see(edited(b"edited", 6));
    let (next, _) = steps(&of([("shop", own)]), rules(now), now, 8);
    assert_eq!(next, [Step::Check(object_key("ConfigMap", "shop"), Ownership::Shared)]);
}

#[test]
fn a_job_that_ran_and_went_by_its_ttl_is_not_run_again() {
    let finished = Tracked { expires: true, ..applied(1) };
    let running = Tracked { health: Health::InProgress, ..finished.clone() };
    let kept = Tracked { expires: false, ..applied(1) };
    let restarted = Tracked { live: Live::Unknown, ..finished.clone() };
    let gone = || Observation {
        kept_by_kubectl: Vec::new(),
        live: Live::Gone { uid: "uid".to_owned() },
        verdict: Verdict::absent("batch", "Job"),
        ..edited(b"", 9)
    };
    for (mut job, need, health) in [
        (finished, Need::Nothing, Health::Current),
        (running, Need::Heal, Health::NotFound),
        (kept, Need::Heal, Health::NotFound),
        // It may not have finished, but running it twice is worse.
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

#[test]
fn an_existing_object_with_replicas_waits_for_the_list_of_autoscalers_up_to_its_limit() {
    let now = Instant::now();
    let newer = Tracked { desired: Digest::of(b"newer"), ..applied(1) };
    let of_scale = |scale| of([("a", Tracked { scale, ..newer.clone() })]);

    assert_eq!(
        steps(&of_scale(Scale::Unknown), rules(now), now, 8),
        (vec![], Some(now + AUTOSCALERS_WAIT))
    );
    let later = now + AUTOSCALERS_WAIT;
    assert_eq!(names(&steps(&of_scale(Scale::Unknown), rules(now), later, 8).0), ["check a"]);
    assert_eq!(names(&steps(&of_scale(Scale::Known), rules(now), now, 8).0), ["check a"]);
    let fresh = of([("a", Tracked { scale: Scale::Unknown, ..tracked(1) })]);
    assert_eq!(names(&steps(&fresh, rules(now), now, 8).0), ["check a"], "it has no replicas yet");
}

#[test]
fn replicas_are_not_desired_while_an_autoscaler_scales_the_object() {
    let object = Object::new(serde_json::json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "shop"}, "spec": {"replicas": 2},
    }))
    .unwrap();
    let [with, without] =
        [false, true].map(|scaled| apply::desired(&apply::as_written(&object, scaled)));
    let mut tracked = Tracked { desired: with, scale: Scale::Unknown, ..applied(1) };

    tracked.scale_by(true, &object);
    assert_eq!((tracked.desired, tracked.scale, tracked.autoscaled), (without, Scale::Known, true));
    tracked.scale_by(false, &object);
    assert_eq!((tracked.desired, tracked.autoscaled), (with, false), "Git's value returns");
    let mut rendered = Tracked { scale: Scale::Rendered, autoscaled: true, ..tracked };
    rendered.scale_by(false, &object);
    assert!(rendered.autoscaled, "the rendering decides");
}
