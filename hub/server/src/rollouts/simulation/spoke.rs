//! One destination at its spoke: the rules of its record are the real ones (`common::record::rollout`); when a plan is at
//! target, and for how long, is simulated.

use std::collections::BTreeSet;

use attest_common::basics::ids::{ClusterId, Digest, Name, Timestamp};
use attest_common::basics::keys::{KeyId, PrivateKey};
use attest_common::basics::reason::Reason;
use attest_common::documents::plan::{Directive, FinalizedBy, Operation};
use attest_common::record::rollout::{
    Abort, OrderedPlan, RolloutState, ordered_plan, rollout_after,
};
use attest_common::record::{Held, Record};

use super::{SOAK_MS, because};
use crate::core::store::records::MemberReason;
use crate::rollouts::tick::{ReportFacts, ReportedRollout};

/// Time to apply a plan, in milliseconds.
const APPLY_MS: u64 = 2_000;
/// Time after which a bad plan fails, in milliseconds.
const FAIL_MS: u64 = 4_000;
/// Good plans before the newest that a spoke keeps.
const OLDER_GOOD_MAX: u32 = 1;

/// A directive.
#[derive(Clone, Debug)]
pub(super) struct Message {
    /// Stands for the digest of the directive.
    pub number: u64,
    pub sequence: u64,
    pub generation: u64,
    pub attempt: u32,
    pub operation: Operation,
    pub plan: Digest,
    pub paused: bool,
    pub hub_finalized: bool,
    pub soak_ms: u64,
}

impl Message {
    fn directive(&self) -> Directive {
        Directive {
            v: 1,
            cluster: ClusterId::of_identity_key(&[1; 32]),
            application: name("web"),
            namespace: name("app"),
            epoch: 1,
            sequence: self.sequence,
            generation: self.generation,
            attempt: self.attempt,
            operation: self.operation,
            cap_percent: 100,
            plan: Some(self.plan),
            repair: false,
            stage: None,
            soak_ms: Some(self.soak_ms),
            paused: self.paused,
            finalize: if self.hub_finalized { FinalizedBy::Hub } else { FinalizedBy::Spoke },
            keep_failed: false,
            issued_at: Timestamp::UNIX_EPOCH,
            expires_at: Timestamp::UNIX_EPOCH,
        }
    }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn hub_key() -> KeyId {
    PrivateKey::from_seed(&[9; 32]).unwrap().public().id()
}

fn held(plan: Digest) -> Held {
    Held { plan, plan_digest: plan, release: plan, receipts: Vec::new(), content: plan }
}

#[derive(Clone, Debug)]
pub(super) struct Spoke {
    record: Record,
    /// Number of the admitted directive.
    pub directive: u64,
    refused: Option<(u64, MemberReason)>,
    paused: bool,
    soak_ms: u64,
    /// Plans that were at target for their soak.
    pub proved: BTreeSet<Digest>,
    // Lost by a restart.
    since_ms: u64,
    healthy_ms: u64,
    is_at_target: bool,
}

impl Spoke {
    /// Returns a destination where a plan is good.
    pub(super) fn running(plan: Digest) -> Self {
        let record = Record {
            v: 1,
            application: name("web"),
            namespace: name("app"),
            hub_key: hub_key(),
            epoch: 1,
            sequence: 0,
            directive: plan,
            other_hub_keys: Vec::new(),
            binding: None,
            floor: None,
            held: Some(held(plan)),
            last_good: Some(held(plan)),
            good: Vec::new(),
            inventory: Vec::new(),
            removed: false,
            recorded_at: None,
            since: None,
            rollback_point: None,
            rollout: None,
        };
        Self {
            record,
            directive: 0,
            refused: None,
            paused: false,
            soak_ms: 0,
            proved: BTreeSet::new(),
            since_ms: 0,
            healthy_ms: 0,
            is_at_target: false,
        }
    }

    pub(super) fn sequence(&self) -> u64 {
        self.record.sequence
    }

    pub(super) fn generation(&self) -> u64 {
        self.record.rollout.as_ref().map_or(0, |rollout| rollout.generation)
    }

    pub(super) fn attempt(&self) -> u32 {
        self.record.rollout.as_ref().map_or(0, |rollout| rollout.attempt)
    }

    /// Returns the plan that runs.
    pub(super) fn runs(&self) -> Digest {
        self.record.held.as_ref().unwrap().plan_digest
    }

    fn state(&self) -> RolloutState {
        self.record.rollout.as_ref().map_or(RolloutState::Good, |rollout| rollout.state)
    }

    /// Admits a directive, or refuses it. Returns whether it was admitted.
    pub(super) fn receive(&mut self, message: &Message) -> bool {
        if message.sequence <= self.record.sequence {
            return false;
        }
        let directive = message.directive();
        let ordered = match ordered_plan(&directive, hub_key(), Some(&self.record)) {
            Ok(OrderedPlan::Delivered) => held(message.plan),
            Ok(OrderedPlan::Recorded(plan)) => plan.clone(),
            Err(error) => {
                self.refused = Some((message.sequence, because(error.reason())));
                return false;
            }
        };
        let rollout = rollout_after(&directive, Some(&self.record), &ordered);
        if ordered.plan_digest != self.runs() {
            self.flap();
        }
        self.record = Record {
            sequence: message.sequence,
            held: Some(ordered),
            rollout,
            ..self.record.clone()
        };
        self.directive = message.number;
        (self.paused, self.soak_ms, self.refused) = (message.paused, message.soak_ms, None);
        true
    }

    /// Time passes; plans for which `is_bad` holds fail.
    pub(super) fn run(&mut self, ms: u64, is_bad: &dyn Fn(Digest) -> bool) {
        self.since_ms += ms;
        let plan = self.runs();
        let is_good = self.record.good_plans().any(|good| good.plan_digest == plan);
        if is_bad(plan) && !is_good {
            (self.is_at_target, self.healthy_ms) = (false, 0);
            if self.since_ms >= FAIL_MS {
                self.fail(plan);
            }
            return;
        }
        if self.is_at_target && !self.paused {
            self.healthy_ms += ms;
        }
        self.is_at_target |= self.since_ms >= APPLY_MS;
        if !self.is_at_target {
            return;
        }
        self.record.reach_target();
        if self.state() == RolloutState::Soaking && self.healthy_ms >= SOAK_MS {
            self.proved.insert(plan);
        }
        self.record.finalize(OLDER_GOOD_MAX);
    }

    fn fail(&mut self, plan: Digest) {
        let Some(view) = self.record.rollout_view().filter(|view| view.state.is_open()) else {
            return;
        };
        let MemberReason { reason, message } = because(Reason::Unhealthy);
        let abort = Abort { plan, attempt: view.attempt, reason, message };
        self.record.fail(abort, view.after_failure(false));
        self.flap();
    }

    /// The target is lost for a moment, or the process ends and starts again.
    pub(super) fn flap(&mut self) {
        (self.is_at_target, self.healthy_ms, self.since_ms) = (false, 0, 0);
    }

    pub(super) fn report(&self) -> ReportFacts {
        let is_at_target = self.is_at_target && self.state() != RolloutState::Candidate;
        ReportFacts {
            is_fresh: false,
            sequence: Some(self.record.sequence),
            refused: self.refused.clone(),
            good: self.record.good_plans().next().map(|good| good.plan_digest),
            rollout: self.record.rollout_view().map(|view| ReportedRollout {
                generation: view.generation,
                attempt: view.attempt,
                plan: view.plan,
                is_at_target,
                is_soaked: is_at_target && self.healthy_ms >= self.soak_ms,
                aborted: view.abort.map(|abort| {
                    let Abort { plan, attempt, reason, message } = abort;
                    (plan, attempt, MemberReason { reason, message })
                }),
            }),
        }
    }

    /// Returns whether the held plan is good, or nothing is.
    pub(super) fn is_settled(&self) -> bool {
        let is_good = self.record.good_plans().any(|good| good.plan_digest == self.runs());
        !self.state().is_open() && is_good
    }
}
