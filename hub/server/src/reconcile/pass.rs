//! One look at one application: revision, files, renderings, verification, plan, signature, ledger.
//!
//! Blocks. Reads the world anew each time; what it keeps in memory only spares work.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use attest_common::basics::ids::{ClusterId, DestinationKey, Digest, Name};
use attest_common::basics::text;
use attest_common::documents::plan::Operation;
use attest_common::session::report::Phase;
use attest_common::trust::policy;
use attest_runtime::clock::{micros_since, now};

use super::commit::{Order, Plans};
use super::queue::{Task, destination_key};
use crate::applications::status;
use crate::core::CONTROLLER;
use crate::core::store::StoreError;
use crate::core::store::records::{Application, ChangeTimings, Destination};
use crate::core::store::records::{ApplicationRecord, ClusterState, LedgerEntry, Planned};
use crate::process::hub::Hub;
use crate::reconcile::planner::{self, Decision, Evidence, Hint, Rendered, Situation, Waiting};
use crate::spokes::registration::{self as join};
use attest_supply::source::Resolved;

/// What is remembered between two looks.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Repository and revision that `resolved` answers.
    pub(super) asked: Option<(String, String)>,
    pub(super) resolved: Option<Resolved>,
    /// When the newest question for the revision was asked that was answered, in vain or not.
    pub(super) newest: Option<Instant>,
    /// Why the newest question for the revision was not answered.
    pub(super) unanswered: Option<Waiting>,
    /// Commit that `evidence` was read from, of the repository and revision in `asked`.
    pub(super) commit: Option<String>,
    pub(super) evidence: Arc<Evidence>,
    /// Renderings by source tree and directory; only those of the newest commit.
    pub(super) rendered: BTreeMap<(String, String), Result<Arc<Rendered>, Waiting>>,
    /// Those of `rendered` that failed for a reason that may pass.
    pub(super) unfinished: BTreeSet<(String, String)>,
    pub(super) source_tree: Option<(String, Option<String>)>,
    pub(super) directories:
        BTreeMap<(String, Destination, Option<String>), Result<String, Waiting>>,
    /// What was counted as refused already, by destination: commit and reason.
    pub(super) counted: BTreeMap<DestinationKey, (String, String)>,
    pub(super) logged: Option<(&'static str, u64, String)>,
    pub(super) timings: ChangeTimings,
}

/// The outcome of the newest look, for people.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Commit that the revision names.
    pub revision: Option<String>,
    /// Why the application as a whole could not be looked at.
    pub problem: Option<Waiting>,
    /// Why the newest commit does not run at a destination: by cluster name and namespace.
    pub waiting: BTreeMap<(Name, Name), Waiting>,
    /// What the newest commit renders to.
    pub rendered: BTreeMap<(Name, Name), Arc<Rendered>>,
}

/// Looks at one application.
pub(crate) fn application(hub: &Hub, name: &str, task: Task, memory: &mut Memory) {
    let begun = Instant::now();
    let record = match hub.records.get::<ApplicationRecord>(name) {
        Ok(Some(record)) => record,
        Ok(None) => {
            // A deletion that was answered with an error may have been made all the same.
            if let Err(error) = name.parse().map_or(Ok(()), |name| read_heads(hub, &name)) {
                failed(name, &error);
                return hub.pipeline.wake_later(name);
            }
            return forget(hub, name);
        }
        Err(error) => return failed(name, &error),
    };
    if !task.plan && !record.deleting {
        let commit = memory.commit.clone();
        return say(hub, &record, commit.as_deref(), memory);
    }
    hub.metrics.reconciles.inc();
    let view = View::default();
    let mut look = Look { hub, record: &record, memory, task, view, plans: Plans::default() };
    let outcome = if record.deleting { look.remove_all() } else { look.go() };
    let view = std::mem::take(&mut look.view);
    let commit = view.revision.clone();
    if !record.deleting || outcome.as_ref().is_ok_and(|ordered| *ordered > 0) {
        hub.pipeline.set_view(name, view);
    }
    match outcome {
        Ok(ordered) => {
            if ordered > 0 {
                hub.metrics.sync_duration.observe(begun.elapsed().as_secs_f64());
            }
            if record.deleting && hub.pipeline.view(name).is_none() {
                return;
            }
            say(hub, &record, commit.as_deref(), memory);
        }
        Err(error) => {
            failed(name, &error);
            // The ledger is not what is remembered of it: read it, and look again from the beginning.
            if matches!(error, StoreError::Conflict { .. } | StoreError::Unknown(_)) {
                if let Err(error) = read_heads(hub, &record.application.name) {
                    failed(name, &error);
                }
                hub.pipeline.wake_later(name);
            }
        }
    }
}

/// Makes what is remembered of an application's ledgers what the store holds.
pub(super) fn read_heads(hub: &Hub, application: &Name) -> Result<(), StoreError> {
    let heads = hub.records.heads(&format!("{application}/"))?;
    for (destination, _) in hub.fleet.heads_for(application) {
        if !heads.contains_key(&destination) {
            hub.fleet.forget_destination(&destination);
        }
    }
    // Whoever asks for this looks at the application again anyway.
    let _overtaken = hub.fleet.set_heads(heads.into_iter().collect());
    Ok(())
}

/// An application is gone, unless it was applied again meanwhile.
pub(super) fn forget(hub: &Hub, name: &str) {
    // The number first, then the store, which is not read under the queue's lock.
    let asked = hub.pipeline.looks_asked(name);
    // A store that does not answer is no reason to forget.
    let is_gone = matches!(hub.records.get::<ApplicationRecord>(name), Ok(None));
    if !is_gone || !hub.pipeline.forget(name, asked) {
        return hub.pipeline.wake(name);
    }
    hub.transitions.forget(name);
    hub.phases.note(&hub.metrics, name, None);
}

pub(super) fn failed(name: &str, error: &StoreError) {
    tracing::error!(
        target: CONTROLLER,
        application = name,
        reason = error.reason(),
        "Cannot reconcile AttestApplication {name}: {}", text::error_chain(error)
    );
}

pub(super) struct Look<'a> {
    pub(super) hub: &'a Hub,
    pub(super) record: &'a ApplicationRecord,
    pub(super) memory: &'a mut Memory,
    pub(super) task: Task,
    pub(super) view: View,
    pub(super) plans: Plans,
}

impl Look<'_> {
    /// The whole flow. How many directives were ordered.
    fn go(&mut self) -> Result<usize, StoreError> {
        let mut orders = self.removals();
        match self.revision().and_then(|(remote, resolved)| self.evidence(&remote, &resolved)) {
            Ok(()) => {
                // What is remembered is not what the repository says now.
                self.view.problem = self.memory.unanswered.clone();
                self.decide_all(&mut orders)?;
            }
            Err(waiting) => {
                self.problem(waiting);
                // Without the repository the newest commit that was read still counts.
                if self.remembers() {
                    self.decide_all(&mut orders)?;
                }
            }
        }
        self.carry_out(orders)
    }

    fn problem(&mut self, waiting: Waiting) {
        let reason = self.hub.metrics.label(&waiting.reason);
        self.hub.metrics.source_failures.with_label_values(&[reason]).inc();
        tracing::warn!(
            target: CONTROLLER,
            application = self.record.application.name.as_str(),
            reason = waiting.reason,
            "Cannot read the source of AttestApplication {}: {}",
            self.record.application.name, waiting.message
        );
        self.view.problem = Some(waiting);
    }

    fn decide_all(&mut self, orders: &mut Vec<Order>) -> Result<(), StoreError> {
        let application = &self.record.application;
        let commit = self.memory.commit.clone().unwrap_or_default();
        self.view.revision = Some(commit.clone());
        let evidence = self.memory.evidence.clone();
        let begun = Instant::now();
        let mut judged: Vec<(Alike, Planned)> = Vec::new();
        for destination in &application.destinations {
            let place = (destination.cluster.clone(), destination.namespace.clone());
            let (cluster, hint) = match self.cluster(&destination.cluster) {
                Ok(found) => found,
                Err(waiting) => {
                    self.view.waiting.insert(place, waiting);
                    continue;
                }
            };
            let rendered = match self.rendered_for(destination) {
                Ok(rendered) => rendered,
                Err(waiting) => {
                    self.view.waiting.insert(place, waiting);
                    continue;
                }
            };
            self.view.rendered.insert(place.clone(), rendered.clone());
            let key = destination_key(&application.name, &cluster, &destination.namespace);
            let head = self.hub.fleet.head(&key);
            let alike = Alike::of(&hint, &destination.namespace, head.as_deref(), rendered.digest);
            if let Some((_, planned)) = judged.iter().find(|(other, _)| *other == alike) {
                orders.push(Order {
                    destination: key,
                    operation: Operation::Progress,
                    head,
                    planned: Some(planned.clone()),
                });
                continue;
            }
            let decision = planner::decide(&Situation {
                application,
                destination: &key,
                commit: &commit,
                evidence: &evidence,
                rendered: &rendered,
                hint: &hint,
                head: head.as_deref(),
                held: self.hub.fleet.held(&key),
                asked_for: self.task.asked_for,
                now: now(),
            });
            self.count(&key, &commit, &decision);
            match decision {
                // What it was judged by is large: of many destinations only the plans are kept.
                Decision::New(proposal) => {
                    let planned = self.plans.add(&self.hub.signer, &proposal, &commit)?;
                    let renders = &proposal.admitted.release.renders;
                    if renders.iter().all(|render| render.target.clusters.is_none()) {
                        judged.push((alike, planned.clone()));
                    }
                    orders.push(Order {
                        destination: key,
                        operation: Operation::Progress,
                        head,
                        planned: Some(planned),
                    });
                }
                Decision::Again => orders.push(Order {
                    planned: head.as_ref().and_then(|head| head.planned.clone()),
                    destination: key,
                    operation: Operation::Progress,
                    head,
                }),
                Decision::Nothing => {
                    let refused = self
                        .hub
                        .fleet
                        .report(&key)
                        .is_some_and(|r| r.report.phase == Phase::Refused);
                    if self.task.asked_for && refused {
                        self.hub.fleet.push_again(&key);
                    }
                }
                Decision::Waiting(waiting) => {
                    self.view.waiting.insert(place, waiting);
                }
            }
        }
        self.memory.timings.verify_us = micros_since(begun);
        Ok(())
    }

    /// The cluster of a name and its policy, or why nothing can be decided for it.
    fn cluster(&self, name: &Name) -> Result<(ClusterId, Arc<Hint>), Waiting> {
        let wait = |reason: &str, message: String| Err(Waiting::new(reason, message));
        let Some(record) = self.hub.directory.named(name) else {
            let message =
                format!("cluster {name} is not registered; `attest gitops cluster add {name}`");
            return wait("ClusterUnknown", message);
        };
        match record.state {
            ClusterState::Accepted => {}
            ClusterState::Pending => {
                // A store that does not answer leaves the weaker word.
                if matches!(join::is_evicted(self.hub, &record), Ok(true)) {
                    let message = format!(
                        "cluster {name} was evicted; `attest gitops cluster rejoin {name} --kubeconfig F` \
                         lets it in again"
                    );
                    return wait("ClusterEvicted", message);
                }
                let message = format!(
                    "cluster {name} waits for `attest gitops cluster accept {name} --fingerprint SHA256:…`, \
                     with the fingerprint that its spoke logs"
                );
                return wait("ClusterPending", message);
            }
            ClusterState::Revoked => {
                return wait("ClusterRevoked", format!("cluster {name} is revoked"));
            }
        }
        match self.hub.fleet.hint(&record.id) {
            Some(hint) => Ok((record.id.clone(), hint)),
            None => wait("AwaitingCluster", format!("cluster {name} has not connected yet")),
        }
    }

    fn count(&mut self, key: &DestinationKey, commit: &str, decision: &Decision) {
        let metrics = &self.hub.metrics;
        match decision {
            Decision::New(_) => {
                metrics.verifications.with_label_values(&["verified"]).inc();
                metrics.policy_validations.with_label_values(&["allowed"]).inc();
                self.memory.counted.remove(key);
            }
            Decision::Waiting(waiting) => {
                let seen = (commit.to_owned(), waiting.reason.clone());
                if self.memory.counted.insert(key.clone(), seen.clone()) == Some(seen) {
                    return;
                }
                let label = metrics.label(&waiting.reason);
                metrics.holds.with_label_values(&[label]).inc();
                tracing::warn!(
                    target: CONTROLLER,
                    application = key.application.as_str(),
                    namespace = self.record.application.namespace,
                    destination = key.to_string(),
                    reason = waiting.reason,
                    "Not deployed: {}", waiting.message
                );
                if !waiting.counted {
                    return;
                }
                metrics.verifications.with_label_values(&["refused"]).inc();
                match waiting.reason.as_str() {
                    "SignatureInvalid" | "UntrustedKey" => metrics.signature_failures.inc(),
                    "ApplicationNotAllowed"
                    | "SourceNotAllowed"
                    | "NamespaceNotAllowed"
                    | "KindNotAllowed"
                    | "PolicyFloor" => {
                        metrics.policy_validations.with_label_values(&["refused"]).inc();
                    }
                    _ => {}
                }
            }
            Decision::Nothing | Decision::Again => {
                self.memory.counted.remove(key);
            }
        }
    }
}

/// Everything that decides whether a plan is new at a destination, but for the cluster's name: what was
/// judged new for one is new for all that are alike, unless the release names clusters.
#[derive(PartialEq)]
struct Alike {
    policy: policy::Spec,
    namespace: Name,
    running: Option<(Operation, Option<Digest>)>,
    rendered: Digest,
}

impl Alike {
    fn of(hint: &Hint, namespace: &Name, head: Option<&LedgerEntry>, rendered: Digest) -> Self {
        let policy =
            policy::Spec { cluster_name: None, kube_system_uid: None, ..hint.spec.clone() };
        let plan = |head: &LedgerEntry| head.planned.as_ref().map(|planned| planned.plan);
        let running = head.map(|head| (head.operation, plan(head)));
        Self { policy, namespace: namespace.clone(), running, rendered }
    }
}

/// Says once that the application is where it should be, or where it now is.
fn say(hub: &Hub, record: &ApplicationRecord, commit: Option<&str>, memory: &mut Memory) {
    let (phase, verification) = status::phase(hub, record);
    let Application { name, namespace, .. } = &record.application;
    hub.phases.note(&hub.metrics, name.as_str(), Some(phase));
    let now = (phase, record.generation, format!("{verification} {commit:?}"));
    if memory.logged.as_ref() == Some(&now) {
        return;
    }
    memory.logged = Some(now);
    tracing::info!(
        target: CONTROLLER,
        application = name.as_str(),
        namespace,
        phase,
        verification_status = verification,
        "Successfully reconciled AttestApplication: {namespace}/{name}"
    );
}
