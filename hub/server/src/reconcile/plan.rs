//! The second step of a pass: decides about every destination. Pure: no I/O, no clock.

use std::collections::BTreeSet;
use std::sync::Arc;

use attest_common::basics::ids::{DestinationKey, Digest, Name};
use attest_common::documents::plan::{Operation, Plan, to_bytes};
use attest_common::documents::release::Release;
use attest_common::trust::policy;
use bytes::Bytes;

use super::observe::{Observation, ObservedDestination, ObservedLeaving, Target};
use super::planner::{self, Proposal, Situation};
use crate::applications::view::Waiting;
use crate::core::position::needs_reissue;
use crate::core::store::records::LedgerEntry;

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
    /// Objects that differ are written once, also without self-heal.
    pub(super) repair: bool,
}

/// Content of a directive.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// A plan that was verified for this destination.
    Verified(Arc<NewPlan>),
    /// A plan that was verified for a destination that is alike.
    Alike(Arc<NewPlan>),
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
        let Release { version, counter, source, renders, .. } = &admitted.release;
        Self {
            payload: Digest::of(&to_bytes(&plan)),
            plan,
            blobs,
            commit: commit.to_owned(),
            version: version.clone(),
            counter: *counter,
            repo: source.repo.clone(),
            signed_commit: source.git_commit.clone(),
            names_clusters: renders.iter().any(|render| render.target.clusters.is_some()),
        }
    }
}

/// Decides about every destination: first those that the application leaves, then those that it names.
pub(super) fn plan(observation: &Observation<'_>) -> Vec<Decision> {
    let mut judged: Vec<(Alike, Arc<NewPlan>)> = Vec::new();
    let leaving = observation.leaving.iter().map(|leaving| decide_leaving(observation, leaving));
    let named =
        observation.destinations.iter().map(|ObservedDestination { place, target }| match target {
            Err(waiting) => Decision::Blocked { place: place.clone(), waiting: waiting.clone() },
            Ok(target) => decide(observation, place, target, &mut judged),
        });
    leaving.chain(named).collect()
}

fn decide_leaving(observation: &Observation<'_>, leaving: &ObservedLeaving) -> Decision {
    let ObservedLeaving { key, head, position } = leaving;
    let is_expired =
        position.is_some_and(|position| needs_reissue(head, position, observation.now));
    if head.operation != Operation::Remove || is_expired {
        issue(key, Some(head), (Content::Removal, false))
    } else if observation.asked_for {
        Decision::Resend(key.clone())
    } else {
        Decision::Keep(key.clone())
    }
}

fn issue(
    key: &DestinationKey,
    head: Option<&Arc<LedgerEntry>>,
    (content, repair): (Content, bool),
) -> Decision {
    let destination = key.clone();
    Decision::Issue(PlannedDirective { destination, head: head.cloned(), content, repair })
}

fn decide(
    observation: &Observation<'_>,
    place: &(Name, Name),
    target: &Target,
    judged: &mut Vec<(Alike, Arc<NewPlan>)>,
) -> Decision {
    let Target { key, policy, rendered, head, position, refused, .. } = target;
    let commit = observation.commit.as_deref().unwrap_or_default();
    let alike = Alike::of(target);
    // Without the repository it is not known what is signed.
    let is_read = observation.problem.is_none();
    let repairs = observation.asked_for && is_read && target.can_repair;
    if let Some((_, plan)) = judged.iter().find(|(other, _)| *other == alike) {
        return issue(key, head.as_ref(), (Content::Alike(plan.clone()), repairs));
    }
    let decision = planner::decide(&Situation {
        application: observation.application(),
        destination: key,
        commit,
        evidence: &observation.evidence,
        rendered,
        reported: policy,
        head: head.as_deref(),
        position: *position,
        asked_for: observation.asked_for,
        refused_as_expired: target.refused_as_expired,
        now: observation.now,
    });
    match decision {
        planner::Decision::New(proposal) => {
            let plan = Arc::new(NewPlan::new(*proposal, commit));
            if !plan.names_clusters {
                judged.push((alike, plan.clone()));
            }
            issue(key, head.as_ref(), (Content::Verified(plan), repairs))
        }
        planner::Decision::Reissue => issue(key, head.as_ref(), (Content::Current, false)),
        planner::Decision::Nothing if observation.asked_for && *refused => {
            Decision::Resend(key.clone())
        }
        planner::Decision::Nothing if repairs && target.may_differ => {
            issue(key, head.as_ref(), (Content::Current, true))
        }
        planner::Decision::Nothing => Decision::Keep(key.clone()),
        planner::Decision::Waiting(waiting) => {
            Decision::Hold { place: place.clone(), destination: key.clone(), waiting }
        }
    }
}

/// Everything that decides whether a plan is new at a destination, but for the cluster's name: what was judged new
/// for one is new for all that are alike, unless the release names clusters.
#[derive(PartialEq)]
struct Alike {
    policy: policy::Spec,
    features: BTreeSet<String>,
    namespace: Name,
    running: Option<(Operation, Option<Digest>)>,
    rendered: Digest,
}

impl Alike {
    fn of(target: &Target) -> Self {
        let spec = target.policy.spec.clone();
        let running = target.head.as_ref().map(|head| {
            let plan = head.planned.as_ref().map(|planned| planned.plan);
            (head.operation, plan)
        });
        Self {
            policy: policy::Spec { cluster_name: None, kube_system_uid: None, ..spec },
            features: target.policy.features.clone(),
            namespace: target.key.namespace.clone(),
            running,
            rendered: target.rendered.digest,
        }
    }
}
