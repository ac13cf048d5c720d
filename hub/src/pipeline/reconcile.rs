//! One look at one application: revision, files, renderings, verification, plan, signature, ledger.
//!
//! Blocks. Reads the world anew each time; what it keeps in memory only spares work.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use attest_common::ids::{ClusterId, DestinationKey, Digest, Name};
use attest_common::plan::{CAP_FULL_PERCENT, DIRECTIVE_LIFETIME_MAX_MS, Directive, Operation};
use attest_common::report::{self, Phase};

use super::{Task, destination_key};
use crate::api::documents::ChangeTimings;
use crate::hub::{Hub, after, micros, now};
use crate::log::CONTROLLER;
use crate::lower::{Application, Destination};
use crate::planner::{
    self, Decision, Evidence, Hint, Proposal, Rendered, Situation, Waiting, needs_again,
};
use crate::render::{self, Overlay, RenderError};
use crate::source::{
    ATTEST_DIRECTORY, Credentials, Login, Remote, RepositoryUrl, Resolved, SourceError,
    SshIdentity, Tree,
};
use crate::status;
use crate::store::StoreError;
use crate::store::records::{
    self, ApplicationRecord, ClusterRecord, ClusterState, CompressedBlob, LedgerEntry, Planned,
    RepositoryRecord,
};

/// What is remembered between two looks.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Repository and revision that `resolved` answers.
    asked: Option<(String, String)>,
    resolved: Option<Resolved>,
    /// Commit that `evidence` was read from.
    commit: Option<String>,
    evidence: Arc<Evidence>,
    /// Renderings by source tree and directory; only those of the newest commit.
    rendered: BTreeMap<(String, String), Result<Arc<Rendered>, Waiting>>,
    source_tree: Option<(String, Option<String>)>,
    directories: BTreeMap<(String, Destination, Option<String>), Result<String, Waiting>>,
    /// What was counted as refused already, by destination: commit and reason.
    counted: BTreeMap<DestinationKey, (String, String)>,
    logged: Option<(String, u64, String)>,
    timings: ChangeTimings,
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
        Ok(None) => return forget(hub, name),
        Err(error) => return failed(name, &error),
    };
    if !task.plan && !record.deleting {
        let commit = memory.commit.clone();
        return say(hub, &record, commit.as_deref(), memory);
    }
    hub.metrics.reconciles.inc();
    let mut look = Look { hub, record: &record, memory, task, view: View::default() };
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
            // Another process or an earlier look changed the ledger: look again from the beginning.
            if matches!(error, StoreError::Conflict { .. }) {
                hub.pipeline.wake(name);
            }
        }
    }
}

/// An application is gone.
fn forget(hub: &Hub, name: &str) {
    hub.pipeline.forget(name);
    hub.transitions.forget(name);
    hub.phases.note(&hub.metrics, name, None);
}

fn failed(name: &str, error: &StoreError) {
    tracing::error!(
        target: CONTROLLER,
        application = name,
        reason = error.reason(),
        "Cannot reconcile AttestApplication {name}: {}", report::error_chain(error)
    );
}

struct Look<'a> {
    hub: &'a Hub,
    record: &'a ApplicationRecord,
    memory: &'a mut Memory,
    task: Task,
    view: View,
}

/// What is to be appended to one ledger.
struct Order {
    destination: DestinationKey,
    operation: Operation,
    head: Option<Arc<LedgerEntry>>,
    proposal: Option<Box<Proposal>>,
    commit: Option<String>,
}

impl Look<'_> {
    /// The whole flow. How many directives were ordered.
    fn go(&mut self) -> Result<usize, StoreError> {
        let mut orders = self.removals()?;
        match self.revision().and_then(|(remote, resolved)| self.evidence(&remote, &resolved)) {
            Ok(()) => self.decide_all(&mut orders)?,
            Err(waiting) => {
                self.view.revision = self.memory.commit.clone();
                self.problem(waiting);
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

    /// Which commit the revision names now.
    fn revision(&mut self) -> Result<(Remote, Resolved), Waiting> {
        let Application { repo_url, revision, .. } = &self.record.application;
        let asked = (repo_url.clone(), revision.clone());
        let remote = remote(self.hub, repo_url)?;
        let is_same = self.memory.asked.as_ref() == Some(&asked);
        if let Some(resolved) = self.memory.resolved.clone()
            && is_same
            && !self.task.poll
        {
            return Ok((remote, resolved));
        }
        let begun = Instant::now();
        let resolved = self
            .hub
            .source
            .poll(&remote, revision, &self.hub.interrupt)
            .map_err(|error| source_waiting(&error))?;
        self.memory.timings.git_us = micros(begun);
        self.memory.asked = Some(asked);
        self.memory.resolved = Some(resolved.clone());
        Ok((remote, resolved))
    }

    /// Reads receipts, statements and committed renderings of the commit, once.
    fn evidence(&mut self, remote: &Remote, resolved: &Resolved) -> Result<(), Waiting> {
        if self.memory.commit.as_ref() == Some(&resolved.commit) && self.directories_are_known() {
            return Ok(());
        }
        let begun = Instant::now();
        let tree = self.fetch(remote, resolved)?;
        self.memory.timings.git_us += micros(begun);
        let begun = Instant::now();
        let application = self.record.application.name.as_str();
        let receipts = format!("{ATTEST_DIRECTORY}/receipts/{application}");
        let renderings = format!("{ATTEST_DIRECTORY}/rendered/{application}");
        let committed = tree.under(&renderings).filter_map(|(path, bytes)| {
            let name = path.rsplit('/').next()?.strip_suffix(".jsonl")?;
            Some((name.to_owned(), bytes.to_vec()))
        });
        let receipts = tree.under(&receipts).map(|(_, bytes)| bytes);
        self.memory.evidence = Arc::new(Evidence::read(receipts, committed));
        self.render_all(&tree);
        self.memory.timings.render_us = micros(begun);
        self.memory.commit = Some(resolved.commit.clone());
        Ok(())
    }

    fn fetch(&self, remote: &Remote, resolved: &Resolved) -> Result<Tree, Waiting> {
        let application = &self.record.application;
        let mut wanted: BTreeSet<&str> = BTreeSet::from([application.path.as_str()]);
        wanted.extend(application.destinations.iter().filter_map(|d| d.path.as_deref()));
        let wanted: Vec<&str> = wanted.into_iter().collect();
        self.hub
            .source
            .fetch(remote, resolved, &wanted, &self.hub.interrupt)
            .map_err(|error| source_waiting(&error))
    }

    /// Renders every directory that a destination needs, unless the same files were rendered before.
    fn render_all(&mut self, tree: &Tree) {
        let root = tree.source_root().map(str::to_owned);
        let source_tree = tree.git_tree().or(tree.git_commit()).unwrap_or_default().to_owned();
        let commit = tree.git_commit().unwrap_or_default().to_owned();
        self.memory.directories.clear();
        let mut rendered = BTreeMap::new();
        for destination in &self.record.application.destinations {
            let environment = self.environment_of(&destination.cluster);
            let overlay = Overlay {
                path: &self.record.application.path,
                own_path: destination.path.as_deref(),
                cluster: Some(destination.cluster.as_str()),
                environment: environment.as_deref(),
            };
            let directory = render::select(tree, &overlay).map_err(|e| render_waiting(&e));
            if let Ok(directory) = &directory {
                let inside = root.as_ref().is_some_and(|root| {
                    directory == root || directory.starts_with(&format!("{root}/"))
                });
                // Outside the source root the tree's id says nothing about the files.
                let version = if inside { source_tree.clone() } else { commit.clone() };
                let key = (version, directory.clone());
                let former = self.memory.rendered.remove(&key).or_else(|| rendered.remove(&key));
                let now = former.unwrap_or_else(|| self.render(tree, directory));
                rendered.insert(key, now);
            }
            let path = self.record.application.path.clone();
            let key = (path, destination.clone(), environment);
            self.memory.directories.insert(key, directory);
        }
        self.memory.rendered = rendered;
        self.memory.source_tree = Some((source_tree, root));
    }

    fn render(&self, tree: &Tree, directory: &str) -> Result<Arc<Rendered>, Waiting> {
        let manifests = render::render(tree, directory, &[], &self.hub.kustomize)
            .map_err(|error| render_waiting(&error))?;
        Ok(Arc::new(Rendered {
            digest: Digest::of(&manifests.rendering),
            bytes: manifests.rendering,
            objects: manifests.objects,
            renderer: (manifests.renderer.name, manifests.renderer.version),
            warnings: manifests.warnings.iter().map(ToString::to_string).collect(),
        }))
    }

    fn environment_of(&self, cluster: &Name) -> Option<String> {
        let record = self.hub.cluster_named(cluster).ok().flatten()?;
        self.hub.fleet.hint(&record.id).map(|hint| hint.policy.environment.to_string())
    }

    /// False when a destination is new, or a cluster's environment became known meanwhile.
    fn directories_are_known(&self) -> bool {
        let application = &self.record.application;
        application.destinations.iter().all(|destination| {
            let environment = self.environment_of(&destination.cluster);
            let key = (application.path.clone(), destination.clone(), environment);
            self.memory.directories.contains_key(&key)
        })
    }

    fn rendered_for(&self, destination: &Destination) -> Result<Arc<Rendered>, Waiting> {
        let environment = self.environment_of(&destination.cluster);
        let key = (self.record.application.path.clone(), destination.clone(), environment);
        let nothing = || Waiting::new("AwaitingCluster", "its directory is not known yet");
        let directory = self.memory.directories.get(&key).cloned().ok_or_else(nothing)??;
        let found = self.memory.rendered.iter().find(|((_, d), _)| *d == directory);
        found.map(|(_, rendered)| rendered.clone()).ok_or_else(nothing)?
    }

    fn decide_all(&mut self, orders: &mut Vec<Order>) -> Result<(), StoreError> {
        let application = &self.record.application;
        let commit = self.memory.commit.clone().unwrap_or_default();
        self.view.revision = Some(commit.clone());
        let evidence = self.memory.evidence.clone();
        let begun = Instant::now();
        for destination in &application.destinations {
            let place = (destination.cluster.clone(), destination.namespace.clone());
            let (cluster, hint) = match self.cluster(&destination.cluster)? {
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
                Decision::New(proposal) => orders.push(Order {
                    destination: key,
                    operation: Operation::Progress,
                    head,
                    proposal: Some(proposal),
                    commit: Some(commit.clone()),
                }),
                Decision::Again => orders.push(Order {
                    destination: key,
                    operation: Operation::Progress,
                    head,
                    proposal: None,
                    commit: None,
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
        self.memory.timings.verify_us = micros(begun);
        Ok(())
    }

    /// The cluster of a name and its policy, or why nothing can be decided for it.
    fn cluster(&self, name: &Name) -> Result<Result<(ClusterId, Arc<Hint>), Waiting>, StoreError> {
        let wait = |reason: &str, message: String| Ok(Err(Waiting::new(reason, message)));
        let Some(record) = self.hub.cluster_named(name)? else {
            let message =
                format!("cluster {name} is not registered; `attest gitops cluster add {name}`");
            return wait("ClusterUnknown", message);
        };
        match record.state {
            ClusterState::Accepted => {}
            ClusterState::Pending => {
                let message =
                    format!("cluster {name} waits for `attest gitops cluster accept {name}`");
                return wait("ClusterPending", message);
            }
            ClusterState::Revoked => {
                return wait("ClusterRevoked", format!("cluster {name} is revoked"));
            }
        }
        match self.hub.fleet.hint(&record.id) {
            Some(hint) => Ok(Ok((record.id, hint))),
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

    /// Orders for places that the application no longer names.
    fn removals(&self) -> Result<Vec<Order>, StoreError> {
        let application = &self.record.application;
        let mut wanted = BTreeSet::new();
        if !self.record.deleting {
            for destination in &application.destinations {
                if let Some(cluster) = self.hub.cluster_named(&destination.cluster)? {
                    wanted.insert((cluster.id, destination.namespace.clone()));
                }
            }
        }
        let mut orders = Vec::new();
        for (destination, head) in self.hub.fleet.heads_for(application.name.as_str()) {
            let place = (destination.cluster.clone(), destination.namespace.clone());
            let cluster = self.hub.records.get::<ClusterRecord>(destination.cluster.as_str())?;
            let is_living = cluster.is_some_and(|c| c.state != ClusterState::Revoked);
            if wanted.contains(&place) || !is_living {
                continue;
            }
            let held = self.hub.fleet.held(&destination);
            let expired = held.is_some_and(|held| needs_again(&head, held, now()));
            if head.operation != Operation::Remove || expired {
                orders.push(Order {
                    destination,
                    operation: Operation::Remove,
                    head: Some(head),
                    proposal: None,
                    commit: None,
                });
            } else if self.task.asked_for {
                self.hub.fleet.push_again(&destination);
            }
        }
        Ok(orders)
    }

    /// Deletion: orders removal everywhere, and forgets the application once everywhere is done.
    fn remove_all(&mut self) -> Result<usize, StoreError> {
        let orders = self.removals()?;
        if !orders.is_empty() {
            return self.carry_out(orders);
        }
        let name = self.record.application.name.as_str();
        let heads = self.hub.fleet.heads_for(name);
        let clusters: Vec<ClusterRecord> = self.hub.records.all()?;
        let is_gone = |destination: &DestinationKey, head: &LedgerEntry| {
            let living = clusters
                .iter()
                .any(|c| c.id == destination.cluster && c.state != ClusterState::Revoked);
            let said = self.hub.fleet.report(destination).is_some_and(|record| {
                let nothing_there = record.report.refusal.as_ref().is_some_and(|refusal| {
                    refusal.reason == "NothingToRemove" && refusal.sequence == Some(head.sequence)
                });
                let removed = record.report.phase == Phase::Removed
                    && record.report.sequence == Some(head.sequence);
                removed || nothing_there
            });
            !living || said
        };
        if heads.iter().all(|(destination, head)| is_gone(destination, head)) {
            let mut changes = vec![records::delete(self.record)];
            for (destination, _) in &heads {
                if let Some(report) = self.hub.fleet.report(destination) {
                    changes.push(records::delete(report.as_ref()));
                }
            }
            self.hub.records.commit("application", &changes)?;
            heads.iter().for_each(|(destination, _)| self.hub.fleet.forget_report(destination));
            forget(self.hub, name);
        }
        Ok(0)
    }

    /// Signs and appends; afterwards the spokes concerned are woken.
    fn carry_out(&mut self, orders: Vec<Order>) -> Result<usize, StoreError> {
        if orders.is_empty() {
            return Ok(0);
        }
        let begun = Instant::now();
        let name = self.record.application.name.as_str();
        let generation = 1 + self
            .hub
            .fleet
            .heads_for(name)
            .iter()
            .map(|(_, head)| head.generation)
            .max()
            .unwrap_or(0);
        let mut changes = Vec::new();
        let mut kept: BTreeMap<Digest, CompressedBlob> = BTreeMap::new();
        let mut entries = Vec::new();
        for order in orders {
            let expected = order.head.as_ref().map_or(0, |head| head.sequence);
            let planned = self.planned(&order, &mut kept)?;
            let entry = self.entry(&order, generation, planned);
            changes.push(records::append(&order.destination, expected, &entry));
            entries.push((order.destination, entry));
        }
        // Blobs first: an entry never names one that is not there.
        let mut all: Vec<records::Change> = kept.values().map(records::keep).collect();
        all.append(&mut changes);
        let mut timings = self.memory.timings;
        let durable = Instant::now();
        timings.plan_us = micros(begun);
        self.hub.records.commit("directive", &all)?;
        self.hub.metrics.commit.observe(durable.elapsed().as_secs_f64());
        timings.plan_us = micros(begun);
        for (part, micros) in [
            ("git", timings.git_us),
            ("render", timings.render_us),
            ("verify", timings.verify_us),
            ("plan", timings.plan_us),
        ] {
            let seconds = std::time::Duration::from_micros(micros).as_secs_f64();
            self.hub.metrics.change.with_label_values(&[part]).observe(seconds);
        }
        kept.into_values().for_each(|blob| self.hub.fleet.keep_blob(blob));
        let ordered = entries.len();
        self.hub.metrics.deployments.inc_by(ordered as u64);
        for (destination, entry) in &entries {
            tracing::info!(
                target: CONTROLLER,
                application = destination.application.as_str(),
                destination = destination.to_string(),
                operation = format!("{:?}", entry.operation),
                sequence = entry.sequence,
                generation = entry.generation,
                "Ordered {:?} at {destination}", entry.operation
            );
        }
        self.hub.fleet.set_heads(entries);
        Ok(ordered)
    }

    fn planned(
        &self,
        order: &Order,
        kept: &mut BTreeMap<Digest, CompressedBlob>,
    ) -> Result<Option<Planned>, StoreError> {
        let Some(proposal) = &order.proposal else {
            let again = order.operation == Operation::Progress;
            let head = order.head.as_ref().filter(|_| again);
            return Ok(head.and_then(|head| head.planned.clone()));
        };
        let Proposal { plan, blobs, admitted } = proposal.as_ref();
        let signed = self.hub.signer.plan(plan);
        let envelope = Digest::of(&signed.envelope);
        let mut digests = Vec::new();
        for bytes in std::iter::once(&signed.envelope).chain(blobs) {
            let digest = Digest::of(bytes);
            if let std::collections::btree_map::Entry::Vacant(place) = kept.entry(digest) {
                place.insert(CompressedBlob::of(bytes)?);
            }
            digests.push(digest);
        }
        let release = &admitted.release;
        Ok(Some(Planned {
            plan: signed.digest,
            envelope,
            blobs: digests,
            release: plan.release.id,
            content: plan.content.sha256,
            render: plan.render.clone(),
            version: release.version.clone(),
            counter: release.counter,
            repo: release.source.repo.clone(),
            commit: order.commit.clone().unwrap_or_default(),
            signed_commit: release.source.git_commit.clone(),
        }))
    }

    fn entry(&self, order: &Order, generation: u64, planned: Option<Planned>) -> LedgerEntry {
        let DestinationKey { application, cluster, namespace } = order.destination.clone();
        let issued_at = now();
        let expires_at = after(issued_at, DIRECTIVE_LIFETIME_MAX_MS);
        let former = order.head.as_ref().map_or(0, |head| head.sequence);
        // A spoke may have seen more than this hub remembers: go on above both.
        let seen = self.hub.fleet.held(&order.destination).map_or(0, |held| held.sequence);
        let sequence = former.max(seen) + 1;
        let directive = Directive {
            v: 1,
            cluster,
            application,
            namespace,
            epoch: self.hub.epoch,
            sequence,
            generation,
            attempt: 0,
            operation: order.operation,
            cap_percent: CAP_FULL_PERCENT,
            plan: planned.as_ref().map(|planned| planned.plan),
            issued_at,
            expires_at,
        };
        let signed = self.hub.signer.directive(&directive);
        LedgerEntry {
            epoch: directive.epoch,
            sequence,
            generation,
            attempt: directive.attempt,
            operation: directive.operation,
            directive: String::from_utf8_lossy(&signed.envelope).into_owned(),
            digest: signed.digest,
            issued_at,
            expires_at,
            planned,
            timings: self.memory.timings,
        }
    }
}

/// Says once that the application is where it should be, or where it now is.
fn say(hub: &Hub, record: &ApplicationRecord, commit: Option<&str>, memory: &mut Memory) {
    let shown = match status::application(hub, record) {
        Ok(shown) => shown,
        Err(error) => return failed(record.application.name.as_str(), &error),
    };
    hub.phases.note(&hub.metrics, &shown.name, Some(&shown.phase));
    let verification = status::verification_word(&shown);
    let now = (shown.phase.clone(), record.generation, format!("{verification} {commit:?}"));
    if memory.logged.as_ref() == Some(&now) {
        return;
    }
    memory.logged = Some(now);
    tracing::info!(
        target: CONTROLLER,
        application = shown.name,
        namespace = shown.namespace,
        phase = shown.phase,
        verification_status = verification,
        "Successfully reconciled AttestApplication: {}/{}", shown.namespace, shown.name
    );
}

/// How a repository is reached with what the hub holds for it.
pub(crate) fn remote(hub: &Hub, url: &str) -> Result<Remote, Waiting> {
    let parsed = RepositoryUrl::parse(url, &hub.urls)
        .map_err(|error| Waiting::new(error.reason(), error.to_string()))?;
    let record = hub
        .records
        .get::<RepositoryRecord>(parsed.normalised())
        .map_err(|error| Waiting::new(error.reason(), report::error_chain(&error)))?;
    let Some(record) = record else {
        return Ok(Remote { url: parsed, credentials: Credentials::default() });
    };
    if record.can_push == Some(true) && !record.allow_push_credential {
        let message = format!(
            "the credential for {url} may push, and who owns the hub must not make CI sign: give it read access only, then `attest gitops repo add` again (or --allow-push-credential)"
        );
        return Err(Waiting::new("CredentialCanPush", message));
    }
    Ok(Remote { url: parsed, credentials: credentials(&record) })
}

/// The credentials that a record holds.
pub(crate) fn credentials(record: &RepositoryRecord) -> Credentials {
    let login = record.username.clone().zip(record.password.clone());
    let ssh = record.ssh_key.clone().zip(record.known_hosts.clone());
    Credentials {
        login: login.map(|(username, password)| Login { username, password }),
        ssh: ssh.map(|(key, hosts)| SshIdentity {
            private_key: key.into_bytes(),
            known_hosts: hosts.into_bytes(),
        }),
        ca_pem: record.ca.clone().map(String::into_bytes),
    }
}

/// Asks every repository again whether the hub's credential may push.
pub(super) fn check_push_credentials(hub: &Hub) {
    let Ok(all) = hub.records.all::<RepositoryRecord>() else { return };
    for mut record in all {
        let Ok(url) = RepositoryUrl::parse(&record.address, &hub.urls) else { continue };
        let remote = Remote { url, credentials: credentials(&record) };
        match hub.source.can_push(&remote, &hub.interrupt) {
            Ok(can_push) => {
                record.can_push = Some(can_push);
                record.problem = None;
            }
            Err(error) => {
                record.problem = Some((error.reason().to_owned(), report::error_chain(&error)));
            }
        }
        record.checked_at = Some(now());
        if let Err(error) = hub.records.commit("repository", &[records::put(&record)]) {
            failed(&record.url, &error);
        }
    }
    hub.pipeline.wake_all();
}

fn source_waiting(error: &SourceError) -> Waiting {
    Waiting::new(error.reason(), report::error_chain(error))
}

fn render_waiting(error: &RenderError) -> Waiting {
    Waiting::new(error.reason(), report::error_chain(error))
}
