//! Verifies the signed files of a repository with the rules of the receiving end, check by check.
//!
//! The rules are those of `attest_common::verify`; this module selects their input. The caller provides the bytes: the
//! Git index, which is the content of the next commit.

use std::collections::BTreeSet;

use attest_common::basics::ids::{Digest, Name, Timestamp};
use attest_common::basics::terms::{Mode, Role};
use attest_common::basics::text::error_chain;
use attest_common::documents::manifest::{self, Object};
use attest_common::documents::plan::RequestedPolicy;
use attest_common::documents::release::{NamespaceRule, Release};
use attest_common::objects::kinds::Kinds;
use attest_common::trust::policy::{Policy, Spec};
use attest_common::verify::{
    self, Admitted, Ages, DestinationContext, Material, Verified, VerifyError,
};
use serde::Serialize;

use super::trust::{TrustSourceError, complete_policy};
use super::{CiError, ReleaseStore, StoredRelease, TrustSources};
use crate::recipe::Recipe;
use crate::render::{FOREIGN_NAMED_MAX, foreign_annotations};
use crate::source::Tree;

/// Files to verify, and for which destinations. `None` means all.
#[derive(Clone, Copy, Debug)]
pub struct VerificationRequest<'a> {
    pub tree: &'a Tree,
    pub recipe: &'a Recipe,
    pub store: &'a ReleaseStore,
    pub trust: &'a TrustSources,
    pub now: Timestamp,
    pub render: Option<&'a str>,
    pub environment: Option<&'a Name>,
    pub cluster: Option<&'a Name>,
    pub namespace: Option<&'a Name>,
    /// The release to verify; `None` selects the newest that fits, as a hub does.
    pub counter: Option<u64>,
    /// Verifies only the environments of policy files and reports the others in a note; otherwise an environment without
    /// keys is an error.
    pub partial: bool,
}

/// Result of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckRow {
    pub render: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name of the check, or the reason for the refusal.
    pub check: String,
    pub passed: bool,
    pub detail: String,
}

/// Results of all checks, and notes about skipped environments.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VerificationReport {
    pub rows: Vec<CheckRow>,
    pub notes: Vec<String>,
}

impl VerificationReport {
    /// Returns whether there was a check and every check passed.
    pub fn verified(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(|row| row.passed)
    }
}

/// Verifies every render for each of its environments.
///
/// # Errors
/// [`TrustSourceError`] without keys for one of them. A refusal is a row of the report, not an error.
pub fn verify_renders(
    request: &VerificationRequest<'_>,
) -> Result<VerificationReport, TrustSourceError> {
    let mut report = VerificationReport::default();
    let releases = request.store.releases(request.tree);
    for RenderTarget { render, environment, clusters } in request.targets(&releases) {
        let specs = request.trust.specs(&environment);
        let is_requested =
            !request.partial || request.trust.policy_environments().contains(&environment);
        if specs.is_empty() || !is_requested {
            if !request.partial {
                return Err(TrustSourceError::NoKey { environment: environment.to_string() });
            }
            let note = format!("{render}: not verified for {environment}, no trust policy");
            report.notes.push(note);
            continue;
        }
        for spec in specs {
            for cluster in request.clusters(&spec, &clusters, &environment) {
                let policy = complete_policy(&spec, &cluster).map_err(|source| {
                    TrustSourceError::Unusable { environment: environment.clone(), source }
                })?;
                let check =
                    DestinationCheck { request, render: &render, spec: &spec, policy: &policy };
                report.rows.extend(check.rows(&releases));
            }
        }
    }
    Ok(report)
}

/// Checks that a render of the recipe is for `environment`.
///
/// # Errors
/// [`CiError::EnvironmentUnknown`] lists the environments of the recipe.
pub fn check_environment(recipe: &Recipe, environment: &Name) -> Result<(), CiError> {
    let all: BTreeSet<&str> =
        recipe.renders.iter().flat_map(|render| &render.environments).map(String::as_str).collect();
    if all.contains(environment.as_str()) {
        return Ok(());
    }
    let known = all.into_iter().collect::<Vec<_>>().join(", ");
    Err(CiError::EnvironmentUnknown { environment: environment.to_string(), known })
}

/// A render, one of its environments and its named clusters.
struct RenderTarget {
    render: String,
    environment: Name,
    clusters: Vec<Name>,
}

impl VerificationRequest<'_> {
    /// Returns the targets in the requested release, or those in the recipe.
    fn targets(&self, releases: &[StoredRelease]) -> Vec<RenderTarget> {
        let requested = self
            .counter
            .and_then(|counter| releases.iter().find(|stored| stored.release.counter == counter));
        let mut targets = Vec::new();
        match requested {
            Some(stored) => {
                for render in &stored.release.renders {
                    let clusters = render.target.clusters.as_deref();
                    self.add_targets(
                        &render.name,
                        &render.target.environments,
                        clusters,
                        &mut targets,
                    );
                }
            }
            None => {
                for render in &self.recipe.renders {
                    let clusters = render.clusters.as_deref();
                    self.add_targets(&render.name, &render.environments, clusters, &mut targets);
                }
            }
        }
        targets
    }

    fn add_targets(
        &self,
        render: &str,
        environments: &[String],
        clusters: Option<&[String]>,
        targets: &mut Vec<RenderTarget>,
    ) {
        if self.render.is_some_and(|only| only != render) {
            return;
        }
        let clusters: Vec<Name> =
            clusters.unwrap_or_default().iter().filter_map(|name| Name::new(name).ok()).collect();
        for environment in environments.iter().filter_map(|name| Name::new(name).ok()) {
            if self.environment.is_none_or(|only| *only == environment) {
                let (render, clusters) = (render.to_owned(), clusters.clone());
                targets.push(RenderTarget { render, environment, clusters });
            }
        }
    }

    /// Returns the clusters to verify for: the requested one, that of the policy, the named ones, or one with the name of
    /// the environment.
    fn clusters(&self, spec: &Spec, named: &[Name], environment: &Name) -> Vec<Name> {
        match (self.cluster, &spec.cluster_name) {
            (Some(requested), Some(own)) if requested != own => Vec::new(),
            (Some(requested), _) => vec![requested.clone()],
            (None, Some(own)) => vec![own.clone()],
            (None, None) if named.is_empty() => vec![environment.clone()],
            (None, None) => named.to_vec(),
        }
    }
}

/// Verification of one render for one cluster.
struct DestinationCheck<'a> {
    request: &'a VerificationRequest<'a>,
    render: &'a str,
    spec: &'a Spec,
    policy: &'a Policy,
}

impl DestinationCheck<'_> {
    fn rows(&self, releases: &[StoredRelease]) -> Vec<CheckRow> {
        let path = self.request.store.rendering_path(self.render);
        let Some(content) = self.request.tree.get(&path) else {
            let detail = format!("{path} is not in the Git index; `attest run --sign` writes it");
            return vec![self.row(None, "RenderingMissing", false, detail)];
        };
        let Some(stored) = self.select_release(releases, content) else {
            let environment = &self.policy.environment;
            let detail = format!("no release signs it for {environment}; run `attest run --sign`");
            return vec![self.row(None, "AwaitingReceipts", false, detail)];
        };
        let namespace = self.namespace(&stored.release);
        match self.verify_release(stored, content, &namespace) {
            Ok(admitted) => self.passed_rows(&admitted, &namespace, content),
            Err(error) => {
                let detail = format!("{} ({})", error_chain(&error), stored.path);
                vec![self.row(Some(&namespace), error.reason().as_str(), false, detail)]
            }
        }
    }

    /// Selects a release as a hub does: the highest counter among the releases of this rendering, otherwise the newest.
    /// Releases without a trusted signature are considered only if there is no other, to explain the refusal.
    fn select_release<'r>(
        &self,
        releases: &'r [StoredRelease],
        content: &[u8],
    ) -> Option<&'r StoredRelease> {
        let candidates: Vec<&StoredRelease> =
            releases.iter().filter(|stored| self.is_candidate(stored)).collect();
        let signed: Vec<&StoredRelease> =
            candidates.iter().copied().filter(|stored| self.is_signed(stored)).collect();
        let eligible = if signed.is_empty() { candidates } else { signed };
        let digest = Digest::of(content);
        let matching = eligible.iter().find(|stored| stored.statement.covers(&digest));
        matching.or_else(|| eligible.first()).copied()
    }

    fn is_candidate(&self, stored: &StoredRelease) -> bool {
        let environment = self.policy.environment.as_str();
        self.request.counter.is_none_or(|counter| counter == stored.release.counter)
            && stored.release.render(self.render).is_some_and(|render| {
                render.target.environments.iter().any(|name| name == environment)
            })
    }

    /// Returns whether a releaser's key of the policy signed the release.
    fn is_signed(&self, stored: &StoredRelease) -> bool {
        let releasers =
            self.policy.ci_keys().iter().filter(|key| key.roles.contains(&Role::Releaser));
        let keys = releasers.map(|key| (key.public.id(), key.public.clone())).collect();
        verify::open_release(&stored.envelope, &keys).is_ok()
    }

    fn verify_release(
        &self,
        stored: &StoredRelease,
        content: &[u8],
        namespace: &Name,
    ) -> Result<Verified<Admitted>, VerifyError> {
        let receipts: Vec<&[u8]> = stored.files.iter().map(|(_, bytes)| bytes.as_slice()).collect();
        let material = Material { release: &stored.envelope, receipts: &receipts, content };
        let kinds = self.kinds(content);
        let destination = DestinationContext {
            policy: self.policy,
            application: &stored.release.application,
            namespace,
            kinds: &kinds,
            now: self.request.now,
            ages: Ages::Enforce,
        };
        let requested = RequestedPolicy {
            mode: Mode::Strict,
            required_attestations: BTreeSet::new(),
            trusted_keys: None,
        };
        verify::release(&material, self.render, &requested, &destination)
    }

    fn passed_rows(&self, admitted: &Admitted, namespace: &Name, content: &[u8]) -> Vec<CheckRow> {
        let checks = admitted
            .checks
            .iter()
            .map(|check| self.row(Some(namespace), &check.check, true, check.detail.clone()));
        let objects = manifest::read(content).unwrap_or_default();
        let foreign = foreign_annotations(&objects);
        let foreign = foreign.iter().take(FOREIGN_NAMED_MAX).map(ToString::to_string);
        let warnings = admitted.warnings.iter().cloned().chain(foreign);
        let warnings = warnings.map(|warning| self.row(Some(namespace), "Warning", true, warning));
        checks.chain(warnings).collect()
    }

    fn row(&self, namespace: Option<&Name>, check: &str, passed: bool, detail: String) -> CheckRow {
        CheckRow {
            render: self.render.to_owned(),
            environment: Some(self.policy.environment.to_string()),
            cluster: Some(self.policy.cluster_name.to_string()),
            namespace: namespace.map(Name::to_string),
            check: check.to_owned(),
            passed,
            detail,
        }
    }

    /// Returns a namespace that both the render and the policy allow, or one that the render allows.
    fn namespace(&self, release: &Release) -> Name {
        if let Some(requested) = self.request.namespace {
            return requested.clone();
        }
        let environment = &self.policy.environment;
        let pattern = match release.render(self.render).map(|render| &render.namespace) {
            Some(NamespaceRule::Fixed { value }) => return value.clone(),
            Some(NamespaceRule::DefaultOnly { pattern }) => pattern.clone(),
            None => "*".to_owned(),
        };
        let rule = NamespaceRule::DefaultOnly { pattern: pattern.clone() };
        let policy_patterns = self.spec.applications.iter().flat_map(|entry| &entry.namespaces);
        let words = [environment.as_str(), release.application.as_str(), "x"];
        let candidates: Vec<Name> = policy_patterns
            .cloned()
            .chain([pattern])
            .flat_map(|pattern| words.map(|word| pattern.replace('*', word)))
            .filter_map(|text| Name::new(text).ok())
            .filter(|namespace| rule.allows(namespace))
            .collect();
        let allowed = candidates
            .iter()
            .find(|namespace| self.policy.names(&release.application, namespace).is_ok());
        allowed.or_else(|| candidates.first()).unwrap_or(environment).clone()
    }

    /// Returns the kinds that every cluster has, and the hub's assumption about other kinds.
    fn kinds(&self, content: &[u8]) -> Kinds {
        let mut kinds = Kinds::built_in();
        let objects = manifest::read(content).unwrap_or_default();
        kinds.guess(objects.iter().map(Object::key), &self.spec.applications);
        kinds
    }
}
