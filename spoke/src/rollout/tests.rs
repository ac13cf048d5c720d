//! Rollouts over time: tables of observations, and random sequences of them.

use attest_common::basics::ids::Digest;
use proptest::prelude::*;

use super::*;

const SOAK: Duration = Duration::from_secs(600);

fn view(state: RolloutState) -> RolloutView {
    RolloutView {
        plan: Digest::of(b"candidate"),
        generation: 7,
        attempt: 1,
        state,
        abort: None,
        good: vec![Digest::of(b"good")],
    }
}

fn options() -> RolloutOptions {
    RolloutOptions { soak: SOAK, ..RolloutOptions::default() }
}

fn failed() -> Observed {
    Observed::Failed { reason: Reason::Unhealthy, message: "no".to_owned() }
}

fn fails(after: AfterFailure) -> Transition {
    let plan = Digest::of(b"candidate");
    let abort =
        Abort { plan, attempt: 1, reason: Reason::Unhealthy.into(), message: "no".to_owned() };
    Transition::Fail(abort, after)
}

#[test]
fn a_state_and_an_observation_give_the_change_that_is_due() {
    use RolloutState::{Candidate, Failed, Finalizing, Good, Local, Returned, Soaking};

    let back = || Some(fails(AfterFailure::Return));
    let table = [
        (Local, None, None),
        (Candidate, Some(Transition::ReachTarget), back()),
        (Soaking, None, back()),
        (Finalizing, Some(Transition::Finalize), back()),
        (Failed, None, None),
        (Good, None, None),
        (Returned, None, None),
    ];
    for (state, at_target, failure) in table {
        let due = |observed: &Observed| {
            let mut progress = RolloutProgress::default();
            progress.observe(&view(state), options(), observed, Instant::now())
        };
        assert_eq!(due(&Observed::AtTarget), at_target, "{state:?}");
        assert_eq!(due(&failed()), failure, "{state:?}");
        assert_eq!(due(&Observed::Working), None, "{state:?}");
        assert_eq!(due(&Observed::Unknown), None, "{state:?}");
    }
}

#[test]
fn a_failed_plan_stays_if_it_is_to_be_kept_or_there_is_nothing_to_return_to() {
    let due = |view: &RolloutView, keep_failed| {
        let options = RolloutOptions { keep_failed, ..options() };
        RolloutProgress::default().observe(view, options, &failed(), Instant::now())
    };
    let candidate = view(RolloutState::Candidate);
    let first = RolloutView { good: Vec::new(), ..candidate.clone() };
    let itself = RolloutView { good: vec![candidate.plan], ..candidate.clone() };

    assert_eq!(due(&candidate, false), Some(fails(AfterFailure::Return)));
    assert_eq!(due(&candidate, true), Some(fails(AfterFailure::Stay)));
    assert_eq!(due(&first, false), Some(fails(AfterFailure::Stay)));
    assert_eq!(due(&itself, false), Some(fails(AfterFailure::Stay)));
}

#[test]
fn the_soak_counts_uninterrupted_time_at_target() {
    let (start, soaking) = (Instant::now(), view(RolloutState::Soaking));
    let mut progress = RolloutProgress::default();
    let mut after = |seconds: u64, observed: &Observed, paused: bool| {
        let now = start + Duration::from_secs(seconds);
        let options = RolloutOptions { paused, ..options() };
        progress.observe(&soaking, options, observed, now);
        let status = progress.status(&soaking, options, now);
        (status.healthy_for_ms / 1000, status.soak_reached)
    };

    assert_eq!(after(0, &Observed::AtTarget, false), (0, false));
    assert_eq!(after(590, &Observed::AtTarget, false), (590, false));
    assert_eq!(after(595, &Observed::Working, false), (0, false), "interrupted");
    assert_eq!(after(600, &Observed::AtTarget, false), (0, false));
    assert_eq!(after(1_000, &Observed::AtTarget, true), (400, false), "paused");
    assert_eq!(after(5_000, &Observed::AtTarget, true), (400, false));
    assert_eq!(after(5_000, &Observed::AtTarget, false), (400, false));
    assert_eq!(after(5_100, &Observed::Unknown, false), (500, false));
    assert_eq!(after(9_000, &Observed::AtTarget, false), (500, false), "not observed");
    assert_eq!(after(9_099, &Observed::AtTarget, false), (599, false));
    assert_eq!(after(9_100, &Observed::AtTarget, false), (600, true));
    assert_eq!(after(9_101, &failed(), false), (0, false));
}

#[test]
fn the_target_is_reported_once_the_record_holds_it() {
    let (now, mut progress) = (Instant::now(), RolloutProgress::default());
    let none = RolloutOptions::default();
    progress.observe(&view(RolloutState::Candidate), none, &Observed::AtTarget, now);

    let before = progress.status(&view(RolloutState::Candidate), none, now);
    assert!(!before.at_target && !before.soak_reached);
    let after = progress.status(&view(RolloutState::Soaking), none, now);
    assert!(after.at_target && after.soak_reached, "no soak is asked for");
}

#[test]
fn time_before_a_restart_counts_only_if_the_first_observation_is_at_target() {
    let (start, soaking) = (Instant::now(), view(RolloutState::Soaking));
    let counted = |observed: &[Observed]| {
        let mut progress = RolloutProgress::restored(Duration::from_secs(60));
        for observed in observed {
            progress.observe(&soaking, options(), observed, start);
        }
        progress.healthy_for(start).as_secs()
    };

    assert_eq!(counted(&[Observed::Unknown, Observed::AtTarget]), 60);
    assert_eq!(counted(&[Observed::Working, Observed::AtTarget]), 0);
}

#[test]
fn the_soak_is_due_when_its_rest_has_passed() {
    let (start, soaking) = (Instant::now(), view(RolloutState::Soaking));
    let mut progress = RolloutProgress::default();
    assert_eq!(progress.due(options(), start), None, "not at target");
    progress.observe(&soaking, options(), &Observed::AtTarget, start);

    assert_eq!(progress.due(options(), start + SOAK / 4), Some(start + SOAK));
    assert_eq!(progress.due(options(), start + SOAK), None, "reached");
}

proptest! {
    #[test]
    fn no_more_is_counted_than_has_passed_since_the_target_was_last_lost(
        steps in proptest::collection::vec((0..4_u8, any::<bool>(), 0..1_000_u64), 1..50)
    ) {
        let soaking = view(RolloutState::Soaking);
        let mut progress = RolloutProgress::default();
        let (mut now, mut lost) = (Instant::now(), Instant::now());
        for (observed, paused, milliseconds) in steps {
            now += Duration::from_millis(milliseconds);
            let observed = match observed {
                0 => Observed::Unknown,
                1 => Observed::Working,
                2 => failed(),
                _ => Observed::AtTarget,
            };
            if matches!(observed, Observed::Working | Observed::Failed { .. }) {
                lost = now;
            }
            progress.observe(&soaking, RolloutOptions { paused, ..options() }, &observed, now);
            prop_assert!(progress.healthy_for(now) <= now.duration_since(lost));
            let status = progress.status(&soaking, options(), now);
            prop_assert!(!status.soak_reached || progress.healthy_for(now) >= SOAK);
        }
    }
}
