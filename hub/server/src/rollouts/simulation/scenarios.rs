//! Courses of single rollouts, without faults of the network.

use super::super::commands::{Command, returns, roll_back};
use super::*;

impl World {
    /// Sets the stages of the running rollout.
    fn with_stages(mut self, change: impl Fn(usize, &mut ResolvedStage)) -> Self {
        for (index, stage) in self.hub.durable.snapshot.stages.iter_mut().enumerate() {
            change(index, stage);
        }
        self
    }

    /// Returns the members that run the newest target.
    fn on_target(&self) -> Vec<usize> {
        let spokes = self.spokes.iter().enumerate();
        spokes
            .filter(|(_, spoke)| spoke.runs() == plan(self.targets))
            .map(|(member, _)| member)
            .collect()
    }

    fn steps(&mut self, count: usize) -> &mut Self {
        (0..count).for_each(|_| self.calm_step());
        self
    }

    fn reason(&self) -> &str {
        self.state().cause.as_ref().map_or("", |cause| cause.reason.as_str())
    }
}

#[test]
fn stages_follow_each_other_after_the_soak_and_all_become_good() {
    let mut world = World::new(1, &[1, 3]);

    world.steps(5);
    assert_eq!((world.on_target(), world.state().stage), (vec![0], 0), "the soak is not over");
    while world.state().stage == 0 {
        world.steps(1);
    }
    assert_eq!(world.on_target(), [0, 1, 2], "two at a time");
    world.settle();

    assert_eq!(world.state().phase, RolloutPhase::Succeeded);
    assert_eq!(world.on_target(), [0, 1, 2, 3]);
}

#[test]
fn a_bad_plan_stops_in_its_stage_and_goes_back_and_the_next_one_passes() {
    let mut world = World::new(1, &[1, 1]);
    world.bad.insert((plan(1), 0));

    world.settle();
    assert_eq!((world.state().phase, world.reason()), (RolloutPhase::Failed, "Unhealthy"));
    assert_eq!(world.on_target(), [0; 0]);
    world.steps(20);
    assert_eq!(world.on_target(), [0; 0], "it is not tried again by itself");

    world.retarget();
    world.settle();
    assert_eq!(world.state().phase, RolloutPhase::Succeeded);
    assert_eq!(world.on_target(), [0, 1]);
}

#[test]
fn a_failure_in_a_later_stage_leaves_what_the_earlier_one_finished() {
    let mut world = World::new(1, &[1, 2]);
    world.bad.insert((plan(1), 2));

    world.settle();

    assert_eq!(world.state().phase, RolloutPhase::Failed);
    assert_eq!(world.on_target(), [0], "finalized in its stage; member 1 has returned");
}

#[test]
fn a_stage_that_tolerates_failures_passes_with_them() {
    let mut world = World::new(1, &[3]).with_stages(|_, stage| stage.failures_max = 1);
    world.bad.insert((plan(1), 1));

    world.settle();

    assert_eq!((world.state().phase, world.reason()), (RolloutPhase::Succeeded, "PartiallyFailed"));
    assert_eq!(world.on_target(), [0, 2]);
    assert!(world.command(&Command::Retry));
    world.end_faults();
    world.settle();
    assert_eq!(world.on_target(), [0, 1, 2]);
}

#[test]
fn a_stage_with_approval_waits_for_it() {
    let mut world = World::new(1, &[1, 1]).with_stages(|index, stage| stage.approval = index == 1);

    world.steps(30);
    assert_eq!(world.on_target(), [0]);
    assert!(awaits_approval(&world.hub.durable.snapshot, world.state()));
    assert!(world.command(&Command::Promote));
    assert!(!world.command(&Command::Promote), "approved already");
    world.settle();

    assert_eq!(world.on_target(), [0, 1]);
}

#[test]
fn an_absent_member_holds_its_stage_until_it_returns_or_is_skipped() {
    let mut world = World::new(1, &[2, 1]);
    world.links[1] = false;

    world.steps(400);
    assert_eq!((world.on_target(), world.state().phase), (vec![0], RolloutPhase::Running));
    world.links[1] = true;
    world.settle();
    assert_eq!(world.on_target(), [0, 1, 2]);

    let mut world = World::new(1, &[2, 1]);
    world.links[1] = false;
    world.steps(20);
    assert!(world.command(&Command::Skip(1)));
    world.settle();
    assert_eq!((world.on_target(), world.state().phase), (vec![0, 2], RolloutPhase::Succeeded));
}

#[test]
fn the_deadline_counts_connected_time_only() {
    let mut world = World::new(1, &[1, 1]);
    // The first spoke is never at target, and does not fail by itself.
    world.steps(2);
    world.disconnect(0);
    for _ in 0..200 {
        world.spokes[0].flap();
        world.calm_step();
    }
    assert_eq!(world.state().phase, RolloutPhase::Running, "it was away");
    world.links[0] = true;
    for _ in 0..100 {
        world.spokes[0].flap();
        world.calm_step();
    }

    assert_eq!(
        (world.state().phase, world.reason()),
        (RolloutPhase::Failed, "ProgressDeadlineExceeded")
    );
    world.settle();
    assert_eq!(world.on_target(), [0; 0]);
}

#[test]
fn a_cluster_that_is_revoked_midway_leaves_the_counts() {
    let mut world = World::new(1, &[2, 1]);
    world.steps(3);
    world.registered[1] = false;

    world.settle();

    assert_eq!(world.state().phase, RolloutPhase::Succeeded);
    assert!(world.on_target().contains(&2));
}

#[test]
fn a_paused_rollout_orders_nothing_and_does_not_soak() {
    let mut world = World::new(1, &[1, 1]);
    world.steps(4);
    assert!(world.command(&Command::Pause));
    world.steps(50);
    assert_eq!((world.on_target(), world.state().stage), (vec![0], 0));

    assert!(world.command(&Command::Resume));
    world.settle();
    assert_eq!(world.on_target(), [0, 1]);
}

#[test]
fn an_aborted_rollout_returns_what_is_not_good_and_can_be_tried_again() {
    let mut world = World::new(1, &[1, 1]);
    world.steps(4);
    assert!(world.command(&Command::Abort));

    world.settle();
    assert_eq!((world.on_target(), world.state().phase), (vec![], RolloutPhase::Aborted));
    assert!(world.command(&Command::Retry));
    world.settle();
    assert_eq!((world.on_target(), world.state().attempt), (vec![0, 1], 1));
}

#[test]
fn a_newer_target_begins_again_at_the_first_stage() {
    let mut world = World::new(1, &[1, 2]);
    world.steps(14);
    assert_eq!(world.on_target(), [0, 1, 2]);
    world.retarget();
    world.steps(2);

    assert_eq!(world.on_target(), [0]);
    assert!(world.spokes[1].runs() == plan(0) || world.spokes[1].proved.contains(&plan(1)));
    world.settle();
    assert_eq!(world.on_target(), [0, 1, 2]);
}

#[test]
fn a_hub_that_was_restored_orders_nothing_until_it_is_adopted() {
    let mut world = World::new(1, &[1, 1]);
    world.steps(2);
    world.hub.backup = Some(world.hub.durable.clone());
    world.steps(12);
    world.restore();
    world.steps(3);

    assert_eq!((world.state().phase, world.reason()), (RolloutPhase::Held, "StateRegression"));
    let issued = world.hub.issued;
    world.steps(50);
    assert_eq!(world.hub.issued, issued, "nothing is ordered");
    world.settle();
    assert_eq!((world.on_target(), world.state().phase), (vec![0, 1], RolloutPhase::Succeeded));
}

#[test]
fn a_rollback_returns_every_member_to_the_plan_before_the_target() {
    let mut world = World::new(1, &[1, 1]);
    world.settle();
    let Durable { snapshot, state, .. } = world.hub.durable.clone();
    let good: Vec<Vec<Digest>> = vec![vec![plan(1), plan(0)]; 2];

    let returned = returns(&snapshot, &state, &good).unwrap();
    assert_eq!(returned, [Some(plan(0)), Some(plan(0))]);
    let plans = returned.into_iter().map(|digest| digest.map(planned)).collect();
    let (rollback, begun) = roll_back(&snapshot, &state, plans, 2, action("rollback"));
    assert!(returns(&rollback, &begun, &good).is_err(), "CI has to");
    world.begin(|_, _| (rollback, begun));
    world.settle();

    assert_eq!(world.on_target(), [0; 0]);
    assert!(world.state().sync_held && world.state().phase == RolloutPhase::Succeeded);
    assert!(world.command(&Command::Resume));
    assert!(!world.state().sync_held);
}

fn planned(plan: Digest) -> crate::core::store::records::Planned {
    crate::core::store::records::Planned {
        plan,
        envelope: plan,
        blobs: Vec::new(),
        release: plan,
        content: plan,
        render: "all".into(),
        version: "v0".into(),
        counter: 1,
        repo: "https://git.example/web".into(),
        commit: "c".into(),
        signed_commit: "c".into(),
    }
}
