//! The second step of a pass: decides about every destination. Pure: no I/O, no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use attest_common::basics::ids::{DestinationKey, Digest, Name, Timestamp};
use attest_common::basics::reason::Reason;
use attest_common::documents::plan::{FinalizedBy, Operation, Plan, StageReference, to_bytes};
use attest_common::documents::release::Release;
use attest_common::trust::policy;
use bytes::Bytes;

use super::evidence::Evidence;
use super::observe::{Observation, ObservedDestination, ObservedLeaving, Target};
use super::planner::{self, Proposal, Situation};
use crate::applications::view::{Rendered, Waiting};
use crate::core::position::{ReportedPolicy, needs_reissue};
use crate::core::store::records::{LedgerEntry, Planned};

/// Decision about one destination.
#[derive(Debug)]
pub(super) enum Decision {
    /// Nothing can be decided: the cluster or the rendering is missing.
    Blocked {
        place: (Name, Name),
        waiting: Waiting,
    },
    /// The newest commit does not go there.
    Hold {
        place: (Name, Name),
        destination: DestinationKey,
        waiting: Waiting,
    },
    /// The current directive stands.
    Keep(DestinationKey),
    /// The current directive is sent again as it is.
    Resend(DestinationKey),
    Issue(PlannedDirective),
}

/// A directive that is to be issued.
#[derive(Debug)]
pub(super) struct PlannedDirective {
    pub(super) destination: DestinationKey,
    pub(super) head: Option<Arc<LedgerEntry>>,
    pub(super) content: Content,
    /// Name of the cluster, and namespace.
    pub(super) place: (Name, Name),
    /// Objects that differ are written once, also without self-heal.
    pub(super) repair: bool,
    /// Part of a rollout by stages. Without it, the spoke makes the plan a good one by itself.
    pub(super) rollout: Option<RolloutOrder>,
}

/// The part of a directive that a rollout by stages decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RolloutOrder {
    pub(super) generation: u64,
    pub(super) attempt: u32,
    pub(super) operation: Operation,
    pub(super) stage: Option<StageReference>,
    pub(super) soak_ms: Option<u64>,
    pub(super) paused: bool,
    pub(super) finalize: FinalizedBy,
}

/// Content of a directive.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// A plan that was verified for this destination.
    Verified(Arc<NewPlan>),
    /// A plan that was verified for a destination that is alike.
    Alike(Arc<NewPlan>),
    /// A plan that was signed before.
    Signed(Arc<Planned>),
    /// The content of the current directive.
    Current,
    Removal,
}

/// A plan with its blobs, shared by every destination for which it was found.
#[derive(Debug)]
pub(super) struct NewPlan {
    pub(super) plan: Plan,
    /// SHA-256 of the plan's bytes.
    pub(super) payload: Digest,
    /// The blobs that the plan names, as they are: release, receipts, content.
    pub(super) blobs: Vec<Bytes>,
    /// Commit whose rendering this is.
    pub(super) commit: String,
    pub(super) version: String,
    pub(super) counter: u64,
    pub(super) repo: String,
    /// Commit that CI signed from.
    pub(super) signed_commit: String,
    /// True when a render of the release names clusters: it is not the same for all.
    names_clusters: bool,
}

impl NewPlan {
    /// Keeps only the parts that the directive needs: the proposal is large.
    fn new(proposal: Proposal, commit: &str) -> Self {
        let Proposal { plan, blobs, admitted } = proposal;
        let Release { version, counter, source, .. } = &admitted.release;
        Self {
            payload: Digest::of(&to_bytes(&plan)),
            plan,
            blobs,
            commit: commit.to_owned(),
            version: version.clone(),
            counter: *counter,
            repo: source.repo.clone(),
            signed_commit: source.git_commit.clone(),
            names_clusters: admitted.release.names_clusters(),
        }
    }
}

/// Decides about every destination: first those that the application leaves, then those that it names.
///
/// `judgements` are those of the previous pass, and become those of this one.
pub(super) fn plan(observation: &Observation<'_>, judgements: &mut Judgements) -> Vec<Decision> {
    let mut memory =
        Memory { previous: std::mem::take(judgements), judgements, judged: Vec::new() };
    let leaving = observation.leaving.iter().map(|leaving| decide_leaving(observation, leaving));
    let named =
        observation.destinations.iter().map(|ObservedDestination { place, target }| match target {
            Err(waiting) => Decision::Blocked { place: place.clone(), waiting: waiting.clone() },
            Ok(target) => decide(observation, place, target, &mut memory),
        });
    leaving.chain(named).collect()
}

/// Returns whether a later pass would decide the same until an input changes, of which every change but that of the
/// repository requests a pass.
///
/// Each destination is connected and holds its newest directive, which stands. Anything else may change with time: a
/// directive expires, a repository answers again, a silent cluster counts as disconnected.
pub(super) fn is_settled(observation: &Observation<'_>, decisions: &[Decision]) -> bool {
    observation.problem.is_none()
        && !observation.record.deleting
        && observation.leaving.is_empty()
        && decisions.iter().all(|decision| matches!(decision, Decision::Keep(_)))
        && observation.destinations.iter().all(|one| one.target.as_ref().is_ok_and(Target::is_held))
}

impl Target {
    /// Returns whether the spoke is connected and holds the newest directive.
    fn is_held(&self) -> bool {
        let held = self.position.zip(self.head.as_ref());
        held.is_some_and(|(position, head)| position.sequence == head.sequence)
    }
}

fn decide_leaving(observation: &Observation<'_>, leaving: &ObservedLeaving) -> Decision {
    let ObservedLeaving { key, head, position } = leaving;
    let is_expired =
        position.is_some_and(|position| needs_reissue(head, position, observation.now));
    if head.operation != Operation::Remove || is_expired {
        // A removal is never on hold: its place is not shown.
        let place = (key.application.clone(), key.namespace.clone());
        issue(key, &place, Some(head), (Content::Removal, false))
    } else if observation.asked_for {
        Decision::Resend(key.clone())
    } else {
        Decision::Keep(key.clone())
    }
}

fn issue(
    key: &DestinationKey,
    place: &(Name, Name),
    head: Option<&Arc<LedgerEntry>>,
    (content, repair): (Content, bool),
) -> Decision {
    let (destination, place, head) = (key.clone(), place.clone(), head.cloned());
    Decision::Issue(PlannedDirective { destination, head, content, place, repair, rollout: None })
}

fn decide(
    observation: &Observation<'_>,
    place: &(Name, Name),
    target: &Target,
    memory: &mut Memory<'_>,
) -> Decision {
    let Target { key, head, refused, .. } = target;
    let situation = situation(observation, target);
    // Without the repository it is not known what is signed.
    let is_read = observation.problem.is_none();
    let repairs = observation.asked_for && is_read && target.can_repair;
    match memory.judge(observation, target, &situation) {
        Judgement::New(content) => issue(key, place, head.as_ref(), (content, repairs)),
        Judgement::Waiting(waiting) => {
            Decision::Hold { place: place.clone(), destination: key.clone(), waiting }
        }
        Judgement::Stands if planner::must_be_reissued(&situation) => {
            issue(key, place, head.as_ref(), (Content::Current, false))
        }
        Judgement::Stands if observation.asked_for && *refused => Decision::Resend(key.clone()),
        Judgement::Stands if repairs && target.may_differ => {
            issue(key, place, head.as_ref(), (Content::Current, true))
        }
        Judgement::Stands => Decision::Keep(key.clone()),
    }
}

fn situation<'a>(observation: &'a Observation<'_>, target: &'a Target) -> Situation<'a> {
    Situation {
        application: observation.application(),
        destination: &target.key,
        commit: observation.commit.as_deref().unwrap_or_default(),
        evidence: &observation.evidence,
        rendered: &target.rendered,
        reported: &target.policy,
        head: target.head.as_deref(),
        position: target.position,
        asked_for: observation.asked_for,
        refused_as_expired: target.refused_as_expired,
        now: observation.now,
    }
}

/// Judgement of the newest commit for one destination.
#[derive(Clone, Debug)]
enum Judgement {
    New(Content),
    /// The current directive orders it.
    Stands,
    Waiting(Waiting),
}

/// Judgements that are reused: those of the previous pass, and of destinations that are alike.
struct Memory<'a> {
    previous: Judgements,
    judgements: &'a mut Judgements,
    judged: Vec<(Alike, Judgement)>,
}

impl Memory<'_> {
    fn judge(
        &mut self,
        observation: &Observation<'_>,
        target: &Target,
        situation: &Situation<'_>,
    ) -> Judgement {
        let inputs = Inputs::of(observation, target);
        let previous = self.previous.by_destination.remove(&target.key);
        let judgement = match previous.filter(|(of, _)| *of == inputs && !observation.asked_for) {
            Some((_, judgement)) => judgement,
            None => self.judge_by_alike(target, situation),
        };
        if judgement.holds_until_an_input_changes() {
            let kept = (inputs, judgement.clone());
            self.judgements.by_destination.insert(target.key.clone(), kept);
        }
        judgement
    }

    fn judge_by_alike(&mut self, target: &Target, situation: &Situation<'_>) -> Judgement {
        let alike = Alike::of(target);
        match self.judged.iter().find(|(other, _)| *other == alike) {
            Some((_, judgement)) => judgement.clone(),
            None => self.judge_anew(situation, alike),
        }
    }

    /// Verifies the commit for a destination.
    fn judge_anew(&mut self, situation: &Situation<'_>, alike: Alike) -> Judgement {
        self.judgements.made += 1;
        match planner::decide(situation) {
            planner::Decision::New(proposal) => {
                let plan = Arc::new(NewPlan::new(*proposal, situation.commit));
                if !plan.names_clusters {
                    self.judged.push((alike, Judgement::New(Content::Alike(Arc::clone(&plan)))));
                }
                Judgement::New(Content::Verified(plan))
            }
            planner::Decision::Stands { names_clusters } => {
                if !names_clusters {
                    self.judged.push((alike, Judgement::Stands));
                }
                Judgement::Stands
            }
            planner::Decision::Waiting(waiting) => Judgement::Waiting(waiting),
        }
    }
}

impl Judgement {
    /// Returns whether the same inputs lead to it at any later time. An operator's request for a commit that waits for
    /// one is an input of its own pass alone.
    fn holds_until_an_input_changes(&self) -> bool {
        match self {
            Self::New(_) => false,
            // The release was admitted before, and its age does not matter any longer.
            Self::Stands => true,
            Self::Waiting(waiting) => !matches!(
                waiting.reason,
                Reason::AwaitingSync
                    | Reason::CounterAhead
                    | Reason::IssuedInFuture
                    | Reason::AttestationStale
            ),
        }
    }
}

/// Judgements of the previous pass, and their inputs.
#[derive(Debug, Default)]
pub(super) struct Judgements {
    by_destination: BTreeMap<DestinationKey, (Inputs, Judgement)>,
    /// Commits that were judged in the pass, one for destinations that are alike.
    pub(super) made: u64,
}

/// Inputs of a judgement, apart from the time and an operator's request.
#[derive(Debug)]
struct Inputs {
    /// Generation and creation of the application.
    application: (u64, Timestamp),
    commit: Option<String>,
    evidence: Arc<Evidence>,
    rendered: Arc<Rendered>,
    policy: Arc<ReportedPolicy>,
    head: Option<Arc<LedgerEntry>>,
}

impl Inputs {
    fn of(observation: &Observation<'_>, target: &Target) -> Self {
        let record = observation.record;
        Self {
            application: (record.generation, record.created_at),
            commit: observation.commit.clone(),
            evidence: Arc::clone(&observation.evidence),
            rendered: Arc::clone(&target.rendered),
            policy: Arc::clone(&target.policy),
            head: target.head.clone(),
        }
    }
}

impl PartialEq for Inputs {
    /// Returns whether the inputs are the same in memory, which costs the same for inputs of any size.
    fn eq(&self, other: &Self) -> bool {
        let is_same_head = match (&self.head, &other.head) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        };
        is_same_head
            && self.application == other.application
            && self.commit == other.commit
            && Arc::ptr_eq(&self.evidence, &other.evidence)
            && Arc::ptr_eq(&self.rendered, &other.rendered)
            && Arc::ptr_eq(&self.policy, &other.policy)
    }
}

/// Everything that decides about a commit at a destination, but for the cluster's name: what was judged for one holds
/// for all that are alike, unless the release names clusters.
#[derive(PartialEq)]
struct Alike {
    // Compared in this order: what differs most often, and is compared quickly, comes first.
    namespace: Name,
    rendered: Digest,
    running: Option<(Operation, Option<Digest>)>,
    features: BTreeSet<String>,
    policy: policy::Spec,
}

impl Alike {
    fn of(target: &Target) -> Self {
        let spec = target.policy.spec.clone();
        let running = target.head.as_ref().map(|head| {
            let plan = head.planned.as_ref().map(|planned| planned.plan);
            (head.operation, plan)
        });
        Self {
            namespace: target.key.namespace.clone(),
            rendered: target.rendered.digest,
            running,
            features: target.policy.features.clone(),
            policy: policy::Spec { cluster_name: None, kube_system_uid: None, ..spec },
        }
    }
}

#[cfg(test)]
mod tests;
