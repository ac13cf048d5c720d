use std::cell::RefCell;

use attest_common::basics::ids::ClusterId;

use super::super::observe::SourceProblem;
use super::super::planner::tests::{COMMIT, World};
use super::*;
use crate::core::position::SpokePosition;
use crate::core::store::records::{ApplicationRecord, ChangeTimings};

/// What a pass reads, as the hub keeps it between passes.
struct Read {
    record: ApplicationRecord,
    evidence: Arc<Evidence>,
    rendered: Arc<Rendered>,
    policy: Arc<ReportedPolicy>,
    head: Option<Arc<LedgerEntry>>,
    asked_for: bool,
    now: Timestamp,
    destinations: u8,
    judgements: RefCell<Judgements>,
    position: Option<SpokePosition>,
    problem: Option<SourceProblem>,
}

impl Read {
    fn of(world: &World) -> Self {
        let files = world.files.iter().map(Vec::as_slice);
        Self {
            record: ApplicationRecord {
                application: world.application.clone(),
                ..ApplicationRecord::sample("web-app", "https://git.example/web")
            },
            evidence: Arc::new(Evidence::read(files, std::iter::empty())),
            rendered: Arc::new(world.rendered.clone()),
            policy: Arc::new(world.reported()),
            head: world.head.clone().map(Arc::new),
            asked_for: false,
            now: world.now,
            destinations: 1,
            judgements: RefCell::default(),
            position: None,
            problem: None,
        }
    }

    fn target(&self, number: u8) -> Target {
        let namespace = Name::new("app-staging").unwrap();
        let cluster = ClusterId::of_identity_key(&[number; 32]);
        Target {
            key: self.record.application.key_at(&cluster, &namespace),
            policy: Arc::clone(&self.policy),
            rendered: Arc::clone(&self.rendered),
            head: self.head.clone(),
            position: self.position,
            refused: false,
            refused_as_expired: false,
            can_repair: true,
            may_differ: false,
        }
    }

    /// Returns the decisions of a pass, and how many commits were judged.
    fn plan(&self) -> (Vec<Decision>, u64) {
        let (decisions, made, _) = self.plan_whole();
        (decisions, made)
    }

    fn is_settled(&self) -> bool {
        let (_, _, is_settled) = self.plan_whole();
        is_settled
    }

    fn plan_whole(&self) -> (Vec<Decision>, u64, bool) {
        let place = (Name::new("staging").unwrap(), Name::new("app-staging").unwrap());
        let destinations = (1..=self.destinations).map(|number| ObservedDestination {
            place: place.clone(),
            target: Ok(self.target(number)),
        });
        let observation = Observation {
            record: &self.record,
            commit: Some(COMMIT.to_owned()),
            evidence: Arc::clone(&self.evidence),
            problem: self.problem.clone(),
            poll: None,
            destinations: destinations.collect(),
            leaving: Vec::new(),
            asked_for: self.asked_for,
            now: self.now,
            read: ChangeTimings::default(),
        };
        let mut judgements = self.judgements.borrow_mut();
        let decisions = plan(&observation, &mut judgements);
        let is_settled = is_settled(&observation, &decisions);
        (decisions, judgements.made, is_settled)
    }
}

fn is_kept(decisions: &[Decision]) -> bool {
    decisions.iter().all(|decision| matches!(decision, Decision::Keep(_)))
}

#[test]
fn a_pass_that_finds_what_the_previous_one_found_judges_nothing() {
    let mut world = World::new();
    world.order();
    let mut read = Read::of(&world);
    let judged = |read: &Read| {
        let (decisions, made) = read.plan();
        assert!(is_kept(&decisions), "{decisions:?}");
        made
    };
    assert_eq!([judged(&read), judged(&read), judged(&read)], [1, 0, 0]);

    read.evidence = Read::of(&world).evidence;
    assert_eq!([judged(&read), judged(&read)], [1, 0], "the receipts were read again");
    read.rendered = Read::of(&world).rendered;
    assert_eq!([judged(&read), judged(&read)], [1, 0], "the commit was rendered again");
    read.policy = Read::of(&world).policy;
    assert_eq!([judged(&read), judged(&read)], [1, 0], "the cluster has reported its policy");
    read.head = Read::of(&world).head;
    assert_eq!([judged(&read), judged(&read)], [1, 0], "a directive was issued");
    read.record.generation += 1;
    assert_eq!([judged(&read), judged(&read)], [1, 0], "the manifest has changed");
    read.asked_for = true;
    assert_eq!([judged(&read), judged(&read)], [1, 1], "an operator asks");
}

#[test]
fn a_poll_without_a_new_commit_suffices_only_while_every_spoke_holds_what_stands() {
    let mut world = World::new();
    world.order();
    let mut read = Read::of(&world);
    let head = world.head.clone().unwrap();
    let at = |sequence| {
        Some(SpokePosition {
            epoch: head.epoch,
            sequence,
            digest: None,
            generation: head.generation,
            attempt: head.attempt,
        })
    };
    assert!(!read.is_settled(), "a spoke is not connected");
    read.position = at(head.sequence - 1);
    assert!(!read.is_settled(), "the directive may expire before the spoke admits it");
    read.position = at(head.sequence + 1);
    assert!(!read.is_settled(), "this hub was restored from a backup");

    read.position = at(head.sequence);

    assert!(read.is_settled());
    let waiting = Waiting::unknown(Reason::RepositoryUnreachable, "no answer");
    read.problem = Some(SourceProblem::Remembered(waiting));
    assert!(!read.is_settled(), "the repository has not answered");
    read.problem = None;
    read.record.deleting = true;
    assert!(!read.is_settled());
    read.record.deleting = false;
    read.evidence = Arc::default();
    assert!(!read.is_settled(), "the commit waits for its signature");
}

#[test]
fn a_commit_that_is_not_deployed_is_judged_once_unless_time_may_change_that() {
    let world = World::new();
    let mut read = Read::of(&world);
    let judged = |read: &Read| {
        let (decisions, made) = read.plan();
        assert!(matches!(decisions[..], [Decision::Hold { .. }]), "{decisions:?}");
        made
    };
    read.evidence = Arc::default();
    assert_eq!([judged(&read), judged(&read)], [1, 0], "nothing is signed");
    read.evidence = Read::of(&world).evidence;
    read.record.application.automated = false;
    assert_eq!([judged(&read), judged(&read)], [1, 1], "it waits for an operator");
}

#[test]
fn destinations_that_are_alike_are_judged_together() {
    let mut world = World::new();
    let mut read = Read { destinations: 100, ..Read::of(&world) };
    let (decisions, made) = read.plan();
    let is_new = |decision: &Decision| matches!(decision, Decision::Issue(_));
    assert!(made == 1 && decisions.iter().all(is_new) && decisions.len() == 100);

    world.order();
    read.head = world.head.clone().map(Arc::new);
    let (decisions, made) = read.plan();
    assert!(made == 1 && is_kept(&decisions), "after a start of the hub");
}
