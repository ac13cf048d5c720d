//! The first step of a pass: reads the repository, renders, and looks up what is known of every destination. Blocks.
//!
//! What was read for a commit is kept until the next commit, a rendering until its files change. The cache spares
//! work and decides nothing.

mod source;

use std::sync::Arc;
use std::time::Instant;

use attest_common::basics::ids::{DestinationKey, Name, Timestamp};
use attest_common::basics::reason::Reason;
use attest_common::session::FEATURE_REPAIR;
use attest_common::session::report::Phase;
use attest_runtime::clock::now;
use attest_supply::render::Kustomize;

pub(super) use source::{SourceCache, poll_unchanged};

use super::answers::Answers;
use super::evidence::Evidence;
use super::repositories::Repositories;
use super::task::PassRequest;
use crate::applications::view::{Rendered, Waiting};
use crate::core::Core;
use crate::core::position::{ReportedPolicy, SpokePosition};
use crate::core::store::records::{
    Application, ApplicationRecord, ChangeTimings, ClusterRecord, ClusterState, Destination,
    LedgerEntry,
};

/// Inputs of a pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sources<'a> {
    pub(super) core: &'a Core,
    pub(super) repositories: &'a Repositories,
    pub(super) kustomize: &'a Kustomize,
    pub(super) answers: &'a Answers,
}

/// Everything that one pass decides by.
#[derive(Debug)]
pub(super) struct Observation<'a> {
    pub(super) record: &'a ApplicationRecord,
    /// The newest commit that was read; absent while there is none, and nothing can be decided.
    pub(super) commit: Option<String>,
    pub(super) evidence: Arc<Evidence>,
    pub(super) problem: Option<SourceProblem>,
    /// The answer of the repository, when it was asked in this pass.
    pub(super) poll: Option<PollAnswer>,
    /// Those that the application names, in its order. Empty without a commit.
    pub(super) destinations: Vec<ObservedDestination>,
    /// Destinations that it has left or is to leave.
    pub(super) leaving: Vec<ObservedLeaving>,
    pub(super) asked_for: bool,
    pub(super) now: Timestamp,
    /// Duration of each step of reading.
    pub(super) read: ChangeTimings,
}

impl Observation<'_> {
    pub(super) fn application(&self) -> &Application {
        &self.record.application
    }

    /// Nothing is decided about any destination for the reason `halt`.
    pub(super) fn halted(mut self, halt: Option<Waiting>) -> Self {
        if let Some(waiting) = halt {
            for destination in &mut self.destinations {
                destination.target = Err(waiting.clone());
            }
        }
        self
    }

    /// Returns the duration of each step so far; `verify_us` is that of planning.
    pub(super) fn timings(&self, verify_us: u64) -> ChangeTimings {
        ChangeTimings { verify_us, ..self.read }
    }
}

/// Reason that the source could not be read.
#[derive(Clone, Debug)]
pub(super) enum SourceProblem {
    /// The repository was not polled in this pass, and the last poll failed.
    Remembered(Waiting),
    Occurred(Waiting),
}

impl SourceProblem {
    pub(super) fn waiting(&self) -> &Waiting {
        match self {
            Self::Remembered(waiting) | Self::Occurred(waiting) => waiting,
        }
    }
}

/// When a repository has answered, or failed to.
#[derive(Clone, Copy, Debug)]
pub(super) struct PollAnswer {
    pub(super) at: Instant,
    pub(super) is_ok: bool,
}

/// One destination that the application names.
#[derive(Debug)]
pub(super) struct ObservedDestination {
    /// Name of the cluster, and namespace.
    pub(super) place: (Name, Name),
    /// Inputs of the decision, or the reason that there are none.
    pub(super) target: Result<Target, Waiting>,
}

/// A destination that can be decided about.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) key: DestinationKey,
    pub(super) policy: Arc<ReportedPolicy>,
    pub(super) rendered: Arc<Rendered>,
    pub(super) head: Option<Arc<LedgerEntry>>,
    /// `None` while the spoke is not connected.
    pub(super) position: Option<SpokePosition>,
    /// True when the newest report is a refusal.
    pub(super) refused: bool,
    /// The newest directive was refused because it is expired.
    pub(super) refused_as_expired: bool,
    /// The spoke is connected and announces that it repairs.
    pub(super) can_repair: bool,
    /// Objects differ by the newest report, or nothing reverts them when they do.
    pub(super) may_differ: bool,
}

/// A destination from which the application is to be removed, and is not gone yet.
#[derive(Debug)]
pub(super) struct ObservedLeaving {
    pub(super) key: DestinationKey,
    pub(super) head: Arc<LedgerEntry>,
    pub(super) position: Option<SpokePosition>,
}

/// Reads what a pass over an application decides by.
pub(super) fn observe<'a>(
    sources: Sources<'_>,
    record: &'a ApplicationRecord,
    request: PassRequest,
    cache: &mut SourceCache,
) -> Observation<'a> {
    if record.deleting {
        return observe_removal(sources.core, record, request, cache.timings());
    }
    let core = sources.core;
    let application = &record.application;
    let (read, poll) = source::read(sources, application, request, cache);
    let is_read = read.is_ok();
    let problem = match read {
        Ok(()) => cache.unanswered().map(SourceProblem::Remembered),
        Err(waiting) => Some(SourceProblem::Occurred(waiting)),
    };
    // Without the repository the newest commit that was read still counts.
    let is_known = is_read || cache.remembers(application);
    let commit = is_known.then(|| cache.commit().unwrap_or_default());
    let destinations = application.destinations.iter().filter(|_| commit.is_some());
    Observation {
        destinations: destinations.map(|one| observe_one(core, application, one, cache)).collect(),
        commit,
        evidence: cache.evidence(),
        problem,
        poll,
        leaving: observe_leaving(core, record),
        record,
        asked_for: request.asked_for,
        now: now(),
        read: cache.timings(),
    }
}

/// Reads what a pass decides by that removes an application everywhere: its repository does not matter.
fn observe_removal<'a>(
    core: &Core,
    record: &'a ApplicationRecord,
    request: PassRequest,
    read: ChangeTimings,
) -> Observation<'a> {
    Observation {
        record,
        commit: None,
        evidence: Arc::default(),
        problem: None,
        poll: None,
        destinations: Vec::new(),
        leaving: observe_leaving(core, record),
        asked_for: request.asked_for,
        now: now(),
        read,
    }
}

fn observe_leaving(core: &Core, record: &ApplicationRecord) -> Vec<ObservedLeaving> {
    let application = &record.application;
    let kept =
        if record.deleting { Default::default() } else { core.directory.places(application) };
    let mut leaving = Vec::new();
    for (key, head) in core.fleet.heads_for(&application.name) {
        let is_kept = kept.contains(&(key.cluster.clone(), key.namespace.clone()));
        if is_kept
            || !core.directory.is_living(&key.cluster)
            || head.is_removed(core.fleet.report(&key).as_deref())
        {
            continue;
        }
        let position = core.fleet.position(&key);
        leaving.push(ObservedLeaving { key, head, position });
    }
    leaving
}

fn observe_one(
    core: &Core,
    application: &Application,
    destination: &Destination,
    cache: &SourceCache,
) -> ObservedDestination {
    let place = (destination.cluster.clone(), destination.namespace.clone());
    let target = reachable(core, &destination.cluster).and_then(|(cluster, policy)| {
        let rendered = cache.rendered_for(core, application, destination)?;
        let key = application.key_at(&cluster.id, &destination.namespace);
        let (report, head) = (core.fleet.report(&key), core.fleet.head(&key));
        Ok(Target {
            policy,
            rendered,
            position: core.fleet.position(&key),
            refused: report.as_ref().is_some_and(|record| record.report.phase == Phase::Refused),
            can_repair: core.fleet.announces(&cluster.id, FEATURE_REPAIR),
            may_differ: !application.sync.self_heal
                || report.as_ref().is_some_and(|record| !record.report.drifted.is_empty()),
            refused_as_expired: report.is_some_and(|record| {
                let refusal = record.report.refusal.as_ref();
                let sequence = head.as_ref().map(|head| head.sequence);
                record.report.phase == Phase::Refused
                    && refusal.is_some_and(|refusal| {
                        refusal.sequence == sequence && refusal.reason == Reason::Expired
                    })
            }),
            head,
            key,
        })
    });
    ObservedDestination { place, target }
}

/// The cluster of a name and its policy, or why nothing can be decided for it.
fn reachable(
    core: &Core,
    name: &Name,
) -> Result<(Arc<ClusterRecord>, Arc<ReportedPolicy>), Waiting> {
    let Some(record) = core.directory.named(name) else {
        let message =
            format!("cluster {name} is not registered; `attest gitops cluster add {name}`");
        return Err(Waiting::unknown(Reason::ClusterUnknown, message));
    };
    match record.state {
        ClusterState::Accepted => {}
        // A store that does not answer leaves the weaker word.
        ClusterState::Pending if matches!(core.records.is_evicted(&record), Ok(true)) => {
            let message = format!(
                "cluster {name} was evicted; to reconnect it: \
                 `attest gitops cluster rejoin {name} --kubeconfig F`"
            );
            return Err(Waiting::unknown(Reason::ClusterEvicted, message));
        }
        ClusterState::Pending => {
            let message = format!(
                "cluster {name} waits for `attest gitops cluster accept {name} --fingerprint SHA256:…`, \
                 with the fingerprint that its spoke logs"
            );
            return Err(Waiting::unknown(Reason::ClusterPending, message));
        }
        ClusterState::IdentityCopied => {
            let message = format!(
                "the identity of cluster {name} was copied, or restored from a backup; what runs is kept, and nothing \
                 is deployed until `attest gitops cluster rejoin {name} --kubeconfig F`"
            );
            return Err(Waiting::unknown(Reason::IdentityCopied, message));
        }
        ClusterState::Revoked => {
            return Err(Waiting::unknown(
                Reason::ClusterRevoked,
                format!("cluster {name} is revoked"),
            ));
        }
    }
    match core.fleet.reported_policy(&record.id) {
        Some(policy) => Ok((record, policy)),
        None => {
            let message = format!("cluster {name} has not connected yet");
            Err(Waiting::unknown(Reason::AwaitingCluster, message))
        }
    }
}
