//! Which commit the revision names, what it holds as evidence, and what it renders to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use attest_common::basics::ids::{Digest, Name};
use attest_common::basics::reason::Reason;
use attest_common::basics::text;
use attest_runtime::clock::micros_since;
use attest_supply::render::{self, Overlay, RenderError};
use attest_supply::source::{ATTEST_DIRECTORY, Remote, Resolved, Tree};

use super::super::answers::Answer;
use super::super::evidence::Evidence;
use super::super::task::{PassRequest, Poll};
use super::{PollAnswer, Sources};
use crate::applications::view::{Rendered, Waiting};
use crate::core::Core;
use crate::core::store::records::{Application, ChangeTimings, Destination};

/// A rendering's files: source tree, or commit outside of the source root, and directory.
type RenderingKey = (String, String);
/// Key of the selection of a directory: path of the application, destination, environment of its cluster.
type DirectoryKey = (String, Destination, Option<String>);

/// Data read from a repository, cached between passes of one application.
#[derive(Debug, Default)]
pub(in super::super) struct SourceCache {
    /// Repository and revision that `resolved` answers.
    asked: Option<(String, String)>,
    resolved: Option<Resolved>,
    /// When the newest question for the revision was asked that was answered, or failed to be.
    newest: Option<Instant>,
    /// Failure of the newest poll of the revision.
    unanswered: Option<Waiting>,
    /// Commit that `evidence` was read from, of the repository and revision in `asked`.
    commit: Option<String>,
    evidence: Arc<Evidence>,
    /// Only those of the newest commit.
    rendered: BTreeMap<RenderingKey, Result<Arc<Rendered>, Waiting>>,
    /// Those of `rendered` that failed for a reason that may pass.
    unfinished: BTreeSet<RenderingKey>,
    directories: BTreeMap<DirectoryKey, Result<String, Waiting>>,
    timings: ChangeTimings,
}

impl SourceCache {
    pub(super) fn unanswered(&self) -> Option<Waiting> {
        self.unanswered.clone()
    }

    pub(super) fn evidence(&self) -> Arc<Evidence> {
        self.evidence.clone()
    }

    /// The newest commit that was read.
    pub(in super::super) fn commit(&self) -> Option<String> {
        self.commit.clone()
    }

    /// Returns the duration of each step of reading the newest change.
    pub(super) fn timings(&self) -> ChangeTimings {
        self.timings
    }

    /// Returns whether a commit of this very repository and revision was read before.
    pub(super) fn remembers(&self, application: &Application) -> bool {
        self.commit.is_some() && self.asked.as_ref() == Some(&asked(application))
    }

    #[cfg(test)]
    pub(in super::super) fn is_resolved(&self) -> bool {
        self.resolved.is_some()
    }

    /// Returns the rendering of the newest commit for a destination.
    pub(super) fn rendered_for(
        &self,
        core: &Core,
        application: &Application,
        destination: &Destination,
    ) -> Result<Arc<Rendered>, Waiting> {
        let key = directory_key(core, application, destination);
        let directory = self.directories.get(&key).cloned().ok_or_else(unknown_directory)??;
        let found = self.rendered.iter().find(|((_, rendered), _)| *rendered == directory);
        found.map(|(_, rendered)| rendered.clone()).ok_or_else(unknown_directory)?
    }
}

fn unknown_directory() -> Waiting {
    Waiting::unknown(Reason::AwaitingCluster, "its directory is not known yet")
}

fn asked(application: &Application) -> (String, String) {
    (application.repo_url.clone(), application.revision.clone())
}

fn environment_of(core: &Core, cluster: &Name) -> Option<String> {
    let record = core.directory.named(cluster)?;
    core.fleet.reported_policy(&record.id).map(|reported| reported.policy.environment.to_string())
}

fn directory_key(
    core: &Core,
    application: &Application,
    destination: &Destination,
) -> DirectoryKey {
    let environment = environment_of(core, &destination.cluster);
    (application.path.clone(), destination.clone(), environment)
}

/// Brings the cache to the newest commit. Also returns the repository's answer, when it was asked.
pub(super) fn read(
    sources: Sources<'_>,
    application: &Application,
    request: PassRequest,
    cache: &mut SourceCache,
) -> (Result<(), Waiting>, Option<PollAnswer>) {
    let mut reader = Reader { sources, application, request, cache, poll: None, timed_out: false };
    let read = reader.revision().and_then(|(remote, resolved)| reader.evidence(&remote, &resolved));
    // A repository whose renderings time out is asked as rarely as one that does not answer.
    let is_ok = !reader.timed_out;
    (read, reader.poll.map(|poll| PollAnswer { is_ok: poll.is_ok && is_ok, ..poll }))
}

/// Polls the repository. Returns its answer if it is the commit that was read last; otherwise everything is read by
/// [`read`], which finds this answer among the shared ones.
pub(in super::super) fn poll_unchanged(
    sources: Sources<'_>,
    application: &Application,
    cache: &mut SourceCache,
) -> Option<PollAnswer> {
    let Application { repo_url, revision, .. } = application;
    if cache.asked.as_ref() != Some(&asked(application)) || cache.unanswered.is_some() {
        return None;
    }
    let Sources { repositories, answers, .. } = sources;
    let remote = repositories.remote(repo_url).ok()?;
    let answer =
        answers.shared(&remote, revision, cache.newest, || repositories.poll(&remote, revision));
    let resolved = answer.result.ok().filter(|found| cache.resolved.as_ref() == Some(found))?;
    if cache.commit.as_ref() != Some(&resolved.commit) {
        return None;
    }
    cache.newest = Some(answer.asked);
    Some(PollAnswer { at: answer.answered, is_ok: true })
}

struct Reader<'a> {
    sources: Sources<'a>,
    application: &'a Application,
    request: PassRequest,
    cache: &'a mut SourceCache,
    poll: Option<PollAnswer>,
    /// A rendering was made in this pass and took too long.
    timed_out: bool,
}

impl Reader<'_> {
    /// Which commit the revision names now.
    fn revision(&mut self) -> Result<(Remote, Resolved), Waiting> {
        let Application { repo_url, revision, .. } = self.application;
        let asked = asked(self.application);
        let repositories = self.sources.repositories;
        let remote = repositories.remote(repo_url)?;
        let is_same = self.cache.asked.as_ref() == Some(&asked);
        if let Some(resolved) = self.cache.resolved.clone()
            && is_same
            && self.request.poll == Poll::No
        {
            return Ok((remote, resolved));
        }
        let begun = Instant::now();
        let poll = || repositories.poll(&remote, revision);
        let answer = if self.request.poll == Poll::Due {
            self.sources.answers.shared(&remote, revision, self.cache.newest, poll)
        } else {
            Answer::of(&remote, poll)
        };
        self.poll = Some(PollAnswer { at: answer.answered, is_ok: answer.result.is_ok() });
        self.cache.newest = Some(answer.asked);
        self.cache.unanswered = answer.result.as_ref().err().cloned();
        let resolved = answer.result?;
        self.cache.timings.git_us = micros_since(begun);
        if !is_same {
            // Nothing of this repository has been read: what another one holds does not count for it.
            self.cache.commit = None;
        }
        self.cache.asked = Some(asked);
        self.cache.resolved = Some(resolved.clone());
        Ok((remote, resolved))
    }

    /// Reads receipts, statements and committed renderings of the commit, once.
    fn evidence(&mut self, remote: &Remote, resolved: &Resolved) -> Result<(), Waiting> {
        let again = !self.cache.unfinished.is_empty()
            && (self.request.poll != Poll::No || self.request.asked_for);
        let is_read = self.cache.commit.as_ref() == Some(&resolved.commit);
        if is_read && self.directories_are_known() && !again {
            return Ok(());
        }
        let fetching = Instant::now();
        let tree = self.fetch(remote, resolved)?;
        self.cache.timings.git_us += micros_since(fetching);
        let rendering = Instant::now();
        let application = self.application.name.as_str();
        let receipts = format!("{ATTEST_DIRECTORY}/receipts/{application}");
        let renderings = format!("{ATTEST_DIRECTORY}/rendered/{application}");
        let committed = tree.under(&renderings).filter_map(|(path, bytes)| {
            let name = path.rsplit('/').next()?.strip_suffix(".jsonl")?;
            Some((name.to_owned(), bytes.to_vec()))
        });
        let receipts = tree.under(&receipts).map(|(_, bytes)| bytes);
        let all_receipts = format!("{ATTEST_DIRECTORY}/receipts");
        let signed = tree.under(&all_receipts).filter_map(|(path, _)| path.split('/').nth(2));
        let evidence = Evidence::read(receipts, committed).with_others(application, signed);
        self.render_all(&tree);
        let rendered = self.cache.rendered.values().filter_map(|r| r.as_ref().ok());
        let digests = rendered.map(|rendered| rendered.digest).collect();
        self.cache.evidence = Arc::new(evidence.kept_for(&digests));
        self.cache.timings.render_us = micros_since(rendering);
        self.cache.commit = Some(resolved.commit.clone());
        Ok(())
    }

    fn fetch(&self, remote: &Remote, resolved: &Resolved) -> Result<Tree, Waiting> {
        let Application { path, destinations, .. } = self.application;
        let mut wanted: BTreeSet<&str> = BTreeSet::from([path.as_str()]);
        wanted.extend(destinations.iter().filter_map(|d| d.path.as_deref()));
        let directories: Vec<&str> = wanted.into_iter().collect();
        self.sources.repositories.fetch(remote, resolved, &directories)
    }

    /// Renders every directory that a destination needs, unless the same files were rendered before.
    fn render_all(&mut self, tree: &Tree) {
        self.cache.directories.clear();
        let mut previous = std::mem::take(&mut self.cache.rendered);
        let unfinished = std::mem::take(&mut self.cache.unfinished);
        previous.retain(|key, _| !unfinished.contains(key));
        for destination in &self.application.destinations {
            let environment = environment_of(self.sources.core, &destination.cluster);
            let overlay = Overlay {
                path: &self.application.path,
                own_path: destination.path.as_deref(),
                cluster: Some(destination.cluster.as_str()),
                environment: environment.as_deref(),
            };
            let directory = render::select(tree, &overlay).map_err(|e| unrendered(&e));
            if let Ok(directory) = &directory {
                let key = (files_version(tree, directory), directory.clone());
                if !self.cache.rendered.contains_key(&key) {
                    let rendered = previous.remove(&key);
                    let rendered = rendered.unwrap_or_else(|| self.render(tree, &key));
                    self.cache.rendered.insert(key, rendered);
                }
            }
            let path = self.application.path.clone();
            self.cache.directories.insert((path, destination.clone(), environment), directory);
        }
    }

    fn render(&mut self, tree: &Tree, key: &RenderingKey) -> Result<Arc<Rendered>, Waiting> {
        let kustomize = self.sources.kustomize.for_repository(&self.application.repo_url);
        let rendered = render::render(tree, &key.1, &[], &kustomize);
        let manifests = rendered.map_err(|error| {
            self.timed_out |= error.is_timeout();
            if error.may_pass() {
                self.cache.unfinished.insert(key.clone());
            }
            unrendered(&error)
        })?;
        Ok(Arc::new(Rendered {
            digest: Digest::of(&manifests.rendering),
            bytes: manifests.rendering.into(),
            renderer: (manifests.renderer.name, manifests.renderer.version),
        }))
    }

    /// False when a destination is new, or a cluster's environment became known since.
    fn directories_are_known(&self) -> bool {
        self.application.destinations.iter().all(|destination| {
            let key = directory_key(self.sources.core, self.application, destination);
            self.cache.directories.contains_key(&key)
        })
    }
}

/// Returns an identifier of the version of the files in a directory.
fn files_version(tree: &Tree, directory: &str) -> String {
    let commit = tree.git_commit();
    let is_inside = tree.source_root().is_some_and(|root| {
        let below = directory.strip_prefix(root);
        below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
    });
    // The tree's id does not cover files outside the source root.
    let version = if is_inside { tree.git_tree().or(commit) } else { commit };
    version.unwrap_or_default().to_owned()
}

fn unrendered(error: &RenderError) -> Waiting {
    // The machine was at fault, not the commit: it may render at another time.
    if error.may_pass() {
        Waiting::unknown(error.reason(), text::error_chain(error))
    } else {
        Waiting::refused(error.reason(), text::error_chain(error))
    }
}
