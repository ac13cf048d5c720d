//! A seeded simulation of one rollout after another: the tick and the commands of the hub, and the records of spokes, over
//! a network that loses, repeats and delays messages.
//!
//! Processes end at any step, the hub is restored from a backup, clusters leave, targets change midway. After every
//! event, the invariants of a rollout hold; once faults stop, every rollout ends.

mod scenarios;
mod spoke;

use std::collections::{BTreeMap, BTreeSet};

use attest_common::basics::ids::{ClusterId, DestinationKey, Digest, Name, Timestamp};
use attest_common::basics::reason::{Reason, ReportedReason};
use attest_common::documents::plan::Operation;

use self::spoke::{Message, Spoke};
use super::commands::{self, Command, adopt, first_state};
use super::tick::{
    HeadFacts, MemberFacts, OrderKind, ReportFacts, TickTime, awaits_approval, tick,
};
use crate::core::store::records::{
    MemberReason, MemberTarget, OperatorAction, ResolvedStage, RolloutKind, RolloutMember,
    RolloutPhase, RolloutSnapshot, RolloutState,
};

/// Seeds that are simulated.
const SEEDS: u64 = 1_200;
/// Events with faults, for each seed.
const EVENTS: usize = 500;
/// Steps without faults in which a rollout must end.
const CALM_STEPS: usize = 4_000;
/// Time of one step, in milliseconds.
const STEP_MS: u64 = 1_000;
/// Soak of a stage, in milliseconds.
const SOAK_MS: u64 = 5_000;
/// Progress deadline of a stage, in milliseconds.
const DEADLINE_MS: u64 = 60_000;

/// Pseudo-random numbers of a seed.
pub(super) struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

/// The durable state of the hub.
#[derive(Clone)]
struct Durable {
    snapshot: RolloutSnapshot,
    state: RolloutState,
    heads: Vec<Option<Message>>,
    reports: Vec<Option<ReportFacts>>,
    generation: u64,
    attempt: u32,
}

struct Hub {
    durable: Durable,
    backup: Option<Durable>,
    /// Snapshots by generation, for the invariants.
    snapshots: BTreeMap<u64, RolloutSnapshot>,
    /// Generations and members that an operator passed over.
    skipped: BTreeSet<(u64, usize)>,
    fresh: BTreeSet<usize>,
    running: BTreeSet<usize>,
    /// Time of the previous tick of this process.
    ticked_ms: Option<u64>,
    /// Numbers of messages, which stand for their digests.
    issued: u64,
}

pub(super) struct World {
    random: Random,
    now_ms: u64,
    hub: Hub,
    spokes: Vec<Spoke>,
    links: Vec<bool>,
    registered: Vec<bool>,
    targets: u64,
    /// Plans that fail at a member.
    bad: BTreeSet<(Digest, usize)>,
}

fn plan(number: u64) -> Digest {
    Digest::of(&number.to_be_bytes())
}

fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH
}

fn because(reason: Reason) -> MemberReason {
    MemberReason { reason: ReportedReason::from(reason), message: String::new() }
}

fn action(word: &str) -> OperatorAction {
    OperatorAction { at: now(), operator: "sim".into(), action: word.into(), reason: String::new() }
}

/// Returns a rollout of members to one target; each entry of `stages` is the number of members of a stage.
fn snapshot(generation: u64, target: Digest, stages: &[usize]) -> RolloutSnapshot {
    let count: usize = stages.iter().sum();
    let members = (0..count).map(|index| RolloutMember {
        destination: DestinationKey {
            application: name("web"),
            cluster: ClusterId::of_identity_key(&[u8::try_from(index).unwrap(); 32]),
            namespace: name("app"),
        },
        cluster: name(&format!("cluster-{index}")),
        target: MemberTarget::Plan(target),
        is_immediate: false,
        from: None,
    });
    let mut first = 0;
    let stages = stages.iter().enumerate().map(|(index, count)| {
        let members = (first..first + count).collect();
        first += count;
        ResolvedStage {
            name: format!("stage-{index}"),
            weight: 100,
            soak_ms: SOAK_MS,
            concurrent_max: 2,
            failures_max: 0,
            approval: false,
            progress_deadline_ms: Some(DEADLINE_MS),
            inherited: false,
            members,
        }
    });
    RolloutSnapshot {
        application: name("web"),
        generation,
        kind: RolloutKind::Stages,
        stages: stages.collect(),
        members: members.collect(),
        plans: Vec::new(),
    }
}

impl World {
    /// Returns a fleet that runs plan 0, and a rollout to plan 1 that begins.
    pub(super) fn new(seed: u64, stages: &[usize]) -> Self {
        let count: usize = stages.iter().sum();
        let first = snapshot(1, plan(1), stages);
        let state = first_state(&first, 0, None, now());
        let spokes = (0..count).map(|_| Spoke::running(plan(0))).collect();
        let durable = Durable {
            snapshot: first.clone(),
            state,
            heads: vec![None; count],
            reports: vec![None; count],
            generation: 1,
            attempt: 0,
        };
        let hub = Hub {
            durable,
            backup: None,
            snapshots: [(1, first)].into(),
            skipped: BTreeSet::new(),
            fresh: BTreeSet::new(),
            running: BTreeSet::new(),
            ticked_ms: None,
            issued: 0,
        };
        Self {
            random: Random::new(seed),
            now_ms: 0,
            hub,
            spokes,
            links: vec![true; count],
            registered: vec![true; count],
            targets: 1,
            bad: BTreeSet::new(),
        }
    }

    pub(super) fn state(&self) -> &RolloutState {
        &self.hub.durable.state
    }

    fn facts(&self) -> Vec<MemberFacts> {
        (0..self.spokes.len()).map(|member| self.facts_of(member)).collect()
    }

    fn facts_of(&self, member: usize) -> MemberFacts {
        let head = self.hub.durable.heads[member].as_ref();
        let report = self.hub.durable.reports[member].clone();
        MemberFacts {
            is_registered: self.registered[member],
            is_connected: self.links[member],
            is_supported: true,
            is_overtaken: self.links[member] && self.is_overtaken(member),
            head: head.map(|head| HeadFacts {
                sequence: head.sequence,
                generation: head.generation,
                attempt: head.attempt,
                operation: head.operation,
                plan: Some(head.plan),
                is_paused: head.paused,
                is_hub_finalized: head.hub_finalized,
            }),
            report: report.map(|report| ReportFacts {
                is_fresh: self.links[member] && self.hub.fresh.contains(&member),
                ..report
            }),
        }
    }

    /// Returns whether a spoke holds more of this rollout, or of a later one, than the hub has ordered.
    fn is_overtaken(&self, member: usize) -> bool {
        let generation = self.hub.durable.snapshot.generation;
        let held = self.spokes[member].generation();
        held > generation || (held == generation && self.is_behind(member))
    }

    /// Returns whether a spoke would refuse the newest directive as old.
    fn is_behind(&self, member: usize) -> bool {
        let spoke = &self.spokes[member];
        self.hub.durable.heads[member].as_ref().is_none_or(|head| {
            spoke.sequence() > head.sequence
                || (spoke.sequence() == head.sequence && spoke.directive != head.number)
        })
    }

    /// One tick of the hub, whose orders become durable with its state.
    fn tick(&mut self) {
        let elapsed_ms = self.hub.ticked_ms.map_or(0, |at| self.now_ms - at);
        let time = TickTime { now: now(), elapsed_ms, running: self.hub.running.clone() };
        let facts = self.facts();
        let durable = &self.hub.durable;
        let ticked = tick(&durable.snapshot, &durable.state, &facts, &time);
        let ordered: BTreeSet<usize> = ticked.orders.iter().map(|order| order.member).collect();
        assert_eq!(ordered.len(), ticked.orders.len(), "two orders to one member");
        for order in &ticked.orders {
            self.order(order.member, &order.kind, &ticked.state);
        }
        self.hub.durable.state = ticked.state;
        self.reissue(&facts);
        self.hub.running = ticked.running;
        self.hub.ticked_ms = Some(self.now_ms);
    }

    /// Without an open rollout, what a spoke no longer accepts is issued again above what it holds.
    fn reissue(&mut self, facts: &[MemberFacts]) {
        if self.state().phase.is_open() {
            return;
        }
        for (member, facts) in facts.iter().enumerate() {
            let head = self.hub.durable.heads[member].clone();
            let is_behind = facts.is_connected && self.is_behind(member);
            let Some(head) = head.filter(|_| is_behind) else { continue };
            let spoke = &self.spokes[member];
            self.hub.issued += 1;
            let again = Message {
                number: self.hub.issued,
                sequence: spoke.sequence().max(head.sequence) + 1,
                ..head.clone()
            };
            self.hub.durable.heads[member] = Some(if spoke.generation() > head.generation {
                Message {
                    generation: self.next_generation(),
                    attempt: self.next_attempt(),
                    operation: Operation::Progress,
                    hub_finalized: false,
                    ..again
                }
            } else {
                again
            });
        }
    }

    fn order(&mut self, member: usize, kind: &OrderKind, state: &RolloutState) {
        let durable = &mut self.hub.durable;
        let head = durable.heads[member].clone();
        let seen = if self.links[member] { self.spokes[member].sequence() } else { 0 };
        let sequence = head.as_ref().map_or(0, |head| head.sequence).max(seen) + 1;
        self.hub.issued += 1;
        let target = durable.snapshot.members[member].target.plan().unwrap();
        let order = Message {
            number: self.hub.issued,
            sequence,
            generation: state.generation,
            attempt: state.attempt,
            operation: Operation::Progress,
            plan: target,
            paused: false,
            hub_finalized: true,
            soak_ms: 0,
        };
        let in_hand = head.as_ref().map(|head| head.plan);
        durable.heads[member] = Some(match kind {
            OrderKind::Grant { stage } => Message {
                soak_ms: durable.snapshot.stages[*stage].soak_ms,
                paused: state.paused,
                ..order
            },
            OrderKind::Finalize => Message { operation: Operation::Finalize, ..order },
            OrderKind::FinalizeEarlier { generation, attempt } => Message {
                generation: *generation,
                attempt: *attempt,
                operation: Operation::Finalize,
                plan: in_hand.unwrap(),
                ..order
            },
            OrderKind::Supersede { generation, attempt } => Message {
                generation: *generation,
                attempt: *attempt,
                soak_ms: head.unwrap().soak_ms,
                operation: Operation::Supersede,
                plan: in_hand.unwrap(),
                ..order
            },
            OrderKind::Rollback(good) => Message {
                operation: Operation::Rollback,
                plan: *good,
                hub_finalized: false,
                ..order
            },
        });
    }

    /// Delivers the newest directive to a spoke, and checks what it may carry.
    fn push(&mut self, member: usize) {
        let Some(head) = self.hub.durable.heads[member].clone() else { return };
        if !self.links[member] || !self.registered[member] {
            return;
        }
        if self.spokes[member].receive(&head) {
            self.check_admitted(member, &head);
        }
    }

    /// No member of a later stage gets a plan before the members of the earlier ones have proved it.
    fn check_admitted(&self, member: usize, head: &Message) {
        let Some(snapshot) = self.hub.snapshots.get(&head.generation) else { return };
        if head.operation == Operation::Finalize {
            let spoke = &self.spokes[member];
            assert!(spoke.proved.contains(&head.plan), "finalized before it soaked: {head:?}");
        }
        if head.operation != Operation::Progress {
            return;
        }
        let stage =
            snapshot.stages.iter().position(|stage| stage.members.contains(&member)).unwrap();
        for earlier in snapshot.stages.iter().take(stage).flat_map(|stage| &stage.members) {
            let spoke = &self.spokes[*earlier];
            let is_excused = !self.registered[*earlier]
                || self.hub.skipped.contains(&(head.generation, *earlier));
            let is_proved = spoke.proved.contains(&head.plan);
            assert!(
                is_excused || is_proved,
                "member {member} of stage {stage} got {head:?} before member {earlier} proved it"
            );
        }
    }

    /// Delivers the newest report of a spoke.
    fn report(&mut self, member: usize) {
        if self.links[member] && self.registered[member] {
            self.hub.durable.reports[member] = Some(self.spokes[member].report());
            self.hub.fresh.insert(member);
        }
    }

    /// Time passes for spokes.
    fn run(&mut self, ms: u64) {
        self.now_ms += ms;
        for (member, spoke) in self.spokes.iter_mut().enumerate() {
            let bad = &self.bad;
            spoke.run(ms, &|plan| bad.contains(&(plan, member)));
        }
    }

    /// A new target begins a rollout.
    fn retarget(&mut self) {
        self.targets += 1;
        let stages: Vec<usize> =
            self.hub.durable.snapshot.stages.iter().map(|stage| stage.members.len()).collect();
        self.begin(|world, generation| {
            let attempt = world.next_attempt();
            let next = snapshot(generation, plan(world.targets), &stages);
            let state = first_state(&next, attempt, None, now());
            (next, state)
        });
    }

    fn next_generation(&self) -> u64 {
        let held = (0..self.spokes.len()).filter(|member| self.links[*member]);
        let held = held.map(|member| self.spokes[member].generation()).max().unwrap_or(0);
        self.hub.durable.generation.max(held) + 1
    }

    fn next_attempt(&self) -> u32 {
        let held = (0..self.spokes.len()).filter(|member| self.links[*member]);
        let held = held.map(|member| self.spokes[member].attempt()).max().unwrap_or(0);
        self.hub.durable.attempt.max(held)
    }

    fn begin(&mut self, make: impl FnOnce(&Self, u64) -> (RolloutSnapshot, RolloutState)) {
        let generation = self.next_generation();
        let (next, state) = make(self, generation);
        self.hub.snapshots.insert(generation, next.clone());
        let durable = &mut self.hub.durable;
        durable.attempt = state.attempt;
        (durable.snapshot, durable.state, durable.generation) = (next, state, generation);
    }

    /// An operator gives a command, which may be refused.
    pub(super) fn command(&mut self, command: &Command) -> bool {
        let durable = &mut self.hub.durable;
        let applied = commands::apply(&durable.snapshot, &durable.state, command, action("sim"));
        let Ok(state) = applied else { return false };
        if let Command::Skip(member) = command {
            self.hub.skipped.insert((state.generation, *member));
        }
        durable.attempt = durable.attempt.max(state.attempt);
        durable.state = state;
        true
    }

    fn adopt(&mut self) {
        let Durable { snapshot, state, .. } = &self.hub.durable;
        let at = (self.next_generation(), self.next_attempt());
        if let Ok((snapshot, state)) = adopt(snapshot, state, at, action("adopt")) {
            self.begin(|_, _| (snapshot, state));
        }
    }

    /// The hub's process ends and starts again: only what is durable remains.
    fn restart_hub(&mut self) {
        self.hub.fresh.clear();
        self.hub.running.clear();
        self.hub.ticked_ms = None;
    }

    /// One random event.
    fn event(&mut self) {
        let member = usize::try_from(self.random.below(self.spokes.len() as u64)).unwrap();
        match self.random.below(100) {
            0..=24 => self.run(STEP_MS),
            25..=44 => self.tick(),
            45..=59 => self.push(member),
            60..=74 => self.report(member),
            75..=79 => self.disconnect(member),
            80..=86 => self.links[member] = true,
            87 => self.restart_hub(),
            88..=89 => self.spokes[member].flap(),
            90 => self.hub.backup = Some(self.hub.durable.clone()),
            91 if self.random.one_in(4) => self.restore(),
            92 if self.random.one_in(3) => self.retarget(),
            93 if self.random.one_in(3) => {
                let target = plan(self.targets);
                self.bad.insert((target, member));
            }
            94 if self.random.one_in(20) => self.registered[member] = false,
            95..=96 => self.operator(member),
            97 => self.spokes[member].flap(),
            _ => {}
        }
    }

    fn disconnect(&mut self, member: usize) {
        self.links[member] = false;
        self.hub.fresh.remove(&member);
    }

    fn restore(&mut self) {
        if let Some(backup) = self.hub.backup.clone() {
            self.hub.durable = backup;
            self.restart_hub();
        }
    }

    fn operator(&mut self, member: usize) {
        let command = match self.random.below(6) {
            0 => Command::Pause,
            1 => Command::Resume,
            2 => Command::Abort,
            3 => Command::Retry,
            4 if self.random.one_in(4) => Command::Skip(member),
            _ => Command::Promote,
        };
        self.command(&command);
        if self.random.one_in(3) {
            self.adopt();
        }
    }

    /// One step in which every message arrives.
    pub(super) fn calm_step(&mut self) {
        self.run(STEP_MS);
        for member in 0..self.spokes.len() {
            self.report(member);
        }
        self.tick();
        for member in 0..self.spokes.len() {
            self.push(member);
            self.report(member);
        }
    }

    fn end_faults(&mut self) {
        self.links.fill(true);
        self.bad.clear();
    }

    /// Runs without faults until the rollout has ended and nothing changes. Returns the number of steps.
    pub(super) fn settle(&mut self) -> usize {
        for step in 0..CALM_STEPS {
            self.calm_step();
            match self.state().phase {
                RolloutPhase::Held => self.adopt(),
                RolloutPhase::Running if self.state().paused => {
                    self.command(&Command::Resume);
                }
                RolloutPhase::Running
                    if awaits_approval(&self.hub.durable.snapshot, self.state()) =>
                {
                    self.command(&Command::Promote);
                }
                RolloutPhase::Running => {}
                RolloutPhase::Succeeded
                | RolloutPhase::Failed
                | RolloutPhase::Aborted
                | RolloutPhase::Superseded => {
                    if self.is_settled() {
                        return step;
                    }
                    // A hub that was restored may not know what runs: another commit follows.
                    if step % 500 == 499 && self.hub.backup.is_some() {
                        self.retarget();
                    }
                }
            }
        }
        panic!("the rollout does not end: {:?}\n{:#?}", self.state(), self.spokes);
    }

    /// Returns whether no registered member holds a plan that is not good.
    fn is_settled(&self) -> bool {
        let spokes = self.spokes.iter().zip(&self.registered);
        spokes.filter(|(_, registered)| **registered).all(|(spoke, _)| spoke.is_settled())
    }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

#[test]
fn whatever_fails_no_stage_comes_early_and_every_rollout_ends() {
    for seed in 0..SEEDS {
        let mut world = World::new(seed, &[1, 2, 3]);
        let faults = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..EVENTS {
                world.event();
            }
            world.end_faults();
            world.settle();
        }));
        assert!(faults.is_ok(), "seed {seed} fails as printed before");
    }
}
