//! What the receiving end would say about the signed files of a repository, check by check.
//!
//! The rules are `attest_common::verify`'s; here is only found what they are asked about. The bytes come from the
//! caller: the Git index, which is what the next commit carries.

use std::collections::BTreeSet;

use attest_common::basics::ids::{Name, Timestamp};
use attest_common::basics::terms::{Mode, Role};
use attest_common::documents::manifest::{self, Object};
use attest_common::documents::plan::RequestedPolicy;
use attest_common::documents::release::{NamespaceRule, Release};
use attest_common::objects::difference::differences;
use attest_common::objects::kinds::Kinds;
use attest_common::trust::policy::{Policy, Spec};
use attest_common::verify::{
    self, Admitted, Ages, DestinationContext, Material, Verified, VerifyError,
};
use serde::Serialize;

use super::trust::{TrustError, usable};
use super::{CiError, Repository, Store, StoredRelease, Trust};
use crate::recipe::Recipe;
use crate::render::{Kustomize, render};
use crate::source::Tree;

/// What is asked. Absent parts mean all.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    pub tree: &'a Tree,
    pub recipe: &'a Recipe,
    pub store: &'a Store,
    pub trust: &'a Trust,
    pub now: Timestamp,
    pub render: Option<&'a str>,
    pub environment: Option<&'a Name>,
    pub cluster: Option<&'a Name>,
    pub namespace: Option<&'a Name>,
    /// The one release that must be good; absent takes the newest that fits, as a hub does.
    pub counter: Option<u64>,
    /// True when only the environments of policy files are judged and others are left out with a note; else an
    /// environment without keys is an error.
    pub partial: bool,
}

/// One finished check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    pub render: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// A stable word: what was checked, or why it is refused.
    pub check: String,
    pub passed: bool,
    pub detail: String,
}

/// All checks, and what was left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    pub rows: Vec<Row>,
    pub notes: Vec<String>,
}

impl Answer {
    /// True when something was checked and everything passed.
    pub fn verified(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(|row| row.passed)
    }
}

/// Judges every render for every environment it is for.
///
/// # Errors
/// [`TrustError`] when nobody can be believed for one of them. What is refused is an answer, not an error.
pub fn judge(question: &Question<'_>) -> Result<Answer, TrustError> {
    let mut answer = Answer::default();
    let releases = question.store.releases(question.tree);
    for (render, environment, clusters) in question.targets(&releases) {
        let specs = question.trust.specs(&environment);
        let asked =
            !question.partial || question.trust.policy_environments().contains(&environment);
        if specs.is_empty() || !asked {
            if !question.partial {
                return Err(TrustError::NoKey { environment: environment.to_string() });
            }
            answer.notes.push(format!("{render}: not judged for {environment}, no trust policy"));
            continue;
        }
        for spec in specs {
            for cluster in question.clusters(&spec, &clusters, &environment) {
                let policy = usable(&spec, &cluster).map_err(|source| TrustError::Unusable {
                    environment: environment.clone(),
                    source,
                })?;
                let case = Case { question, render: &render, spec: &spec, policy: &policy };
                answer.rows.extend(case.rows(&releases));
            }
        }
    }
    Ok(answer)
}

impl Question<'_> {
    /// Renders with environment and named clusters: what the recipe describes, or a single release carries.
    fn targets(&self, releases: &[StoredRelease]) -> Vec<(String, Name, Vec<Name>)> {
        let one = self.counter.and_then(|c| releases.iter().find(|one| one.release.counter == c));
        let described: Vec<(String, Vec<String>, Vec<String>)> = match one {
            Some(stored) => {
                let renders = stored.release.renders.iter();
                let described = renders.map(|render| {
                    let clusters = render.target.clusters.clone().unwrap_or_default();
                    (render.name.clone(), render.target.environments.clone(), clusters)
                });
                described.collect()
            }
            None => {
                let renders = self.recipe.renders.iter();
                let described = renders.map(|render| {
                    let clusters = render.clusters.clone().unwrap_or_default();
                    (render.name.clone(), render.environments.clone(), clusters)
                });
                described.collect()
            }
        };
        let mut targets = Vec::new();
        for (render, environments, clusters) in described {
            if self.render.is_some_and(|only| only != render) {
                continue;
            }
            let clusters: Vec<Name> =
                clusters.into_iter().filter_map(|c| Name::new(c).ok()).collect();
            for environment in environments.into_iter().filter_map(|e| Name::new(e).ok()) {
                if self.environment.is_none_or(|only| *only == environment) {
                    targets.push((render.clone(), environment, clusters.clone()));
                }
            }
        }
        targets
    }

    /// The clusters to judge for: the one asked for, the policy's own, those named, else one named as its environment.
    fn clusters(&self, spec: &Spec, named: &[Name], environment: &Name) -> Vec<Name> {
        match (self.cluster, &spec.cluster_name) {
            (Some(asked), Some(own)) if asked != own => Vec::new(),
            (Some(asked), _) => vec![asked.clone()],
            (None, Some(own)) => vec![own.clone()],
            (None, None) if named.is_empty() => vec![environment.clone()],
            (None, None) => named.to_vec(),
        }
    }
}

/// One render at one place.
struct Case<'a> {
    question: &'a Question<'a>,
    render: &'a str,
    spec: &'a Spec,
    policy: &'a Policy,
}

impl Case<'_> {
    fn rows(&self, releases: &[StoredRelease]) -> Vec<Row> {
        let path = self.question.store.rendering(self.render);
        let Some(content) = self.question.tree.get(&path) else {
            let detail = format!("{path} is not in the Git index: `attest run --sign` writes it");
            return vec![self.row(None, "RenderingMissing", false, detail)];
        };
        let environment = self.policy.environment.as_str();
        let wanted = |stored: &&StoredRelease| {
            self.question.counter.is_none_or(|counter| counter == stored.release.counter)
                && stored.release.render(self.render).is_some_and(|render| {
                    render.target.environments.iter().any(|e| e == environment)
                })
        };
        let candidates: Vec<&StoredRelease> = releases.iter().filter(wanted).collect();
        // What nobody trusted signed is looked at only to explain that there is nothing better.
        let signed: Vec<&StoredRelease> =
            candidates.iter().filter(|stored| self.is_signed(stored)).copied().collect();
        let candidates = if signed.is_empty() { candidates } else { signed };
        let digest = attest_common::basics::ids::Digest::of(content);
        // As a hub chooses: of the statements whose rendering this is, the highest counter; else the newest.
        let equal = candidates.iter().find(|stored| stored.statement.covers(&digest));
        let Some(stored) = equal.or_else(|| candidates.first()) else {
            let detail = format!("no release signs it for {environment}: run `attest run --sign`");
            return vec![self.row(None, "AwaitingReceipts", false, detail)];
        };
        let namespace = self.namespace(&stored.release);
        match self.ask(stored, content, &namespace) {
            Ok(admitted) => self.passed(&admitted, &namespace),
            Err(error) => {
                let detail = format!("{} ({})", chain(&error), stored.path);
                vec![self.row(Some(&namespace), error.reason().as_str(), false, detail)]
            }
        }
    }

    /// Whether a key that may release here signed it.
    fn is_signed(&self, stored: &StoredRelease) -> bool {
        let releasers =
            self.policy.ci_keys().iter().filter(|key| key.roles.contains(&Role::Releaser));
        let keys = releasers.map(|key| (key.public.id(), key.public.clone())).collect();
        verify::open_release(&stored.envelope, &keys).is_ok()
    }

    fn ask(
        &self,
        stored: &StoredRelease,
        content: &[u8],
        namespace: &Name,
    ) -> Result<Verified<Admitted>, VerifyError> {
        let application = &stored.release.application;
        let receipts: Vec<&[u8]> = stored.files.iter().map(|(_, bytes)| bytes.as_slice()).collect();
        let material = Material { release: &stored.envelope, receipts: &receipts, content };
        let kinds = self.kinds(content);
        let place = DestinationContext {
            policy: self.policy,
            application,
            namespace,
            kinds: &kinds,
            now: self.question.now,
            ages: Ages::Enforce,
        };
        let asked = RequestedPolicy {
            mode: Mode::Strict,
            required_attestations: BTreeSet::new(),
            trusted_keys: None,
        };
        verify::release(&material, self.render, &asked, &place)
    }

    fn passed(&self, admitted: &Admitted, namespace: &Name) -> Vec<Row> {
        let checks = admitted.checks.iter();
        let row = |check: &str, detail: String| self.row(Some(namespace), check, true, detail);
        let mut rows: Vec<Row> =
            checks.map(|check| row(&check.check, check.detail.clone())).collect();
        rows.extend(admitted.warnings.iter().map(|warning| row("Warning", warning.clone())));
        rows
    }

    fn row(&self, namespace: Option<&Name>, check: &str, passed: bool, detail: String) -> Row {
        Row {
            render: self.render.to_owned(),
            environment: Some(self.policy.environment.to_string()),
            cluster: Some(self.policy.cluster_name.to_string()),
            namespace: namespace.map(Name::to_string),
            check: check.to_owned(),
            passed,
            detail,
        }
    }

    /// A namespace that the render may go to and the policy allows; the render's own when there is none.
    fn namespace(&self, release: &Release) -> Name {
        if let Some(asked) = self.question.namespace {
            return asked.clone();
        }
        let environment = &self.policy.environment;
        let pattern = match release.render(self.render).map(|render| &render.namespace) {
            Some(NamespaceRule::Fixed { value }) => return value.clone(),
            Some(NamespaceRule::DefaultOnly { pattern }) => pattern.clone(),
            None => "*".to_owned(),
        };
        let allowed = NamespaceRule::DefaultOnly { pattern: pattern.clone() };
        let of_policy = self.spec.applications.iter().flat_map(|entry| &entry.namespaces);
        let patterns = of_policy.cloned().chain([pattern]);
        let words = [environment.as_str(), release.application.as_str(), "x"];
        let candidates: Vec<Name> = patterns
            .flat_map(|pattern| words.map(|word| pattern.replace('*', word)))
            .filter_map(|text| Name::new(text).ok())
            .filter(|namespace| allowed.allows(namespace))
            .collect();
        let good = candidates
            .iter()
            .find(|namespace| self.policy.names(&release.application, namespace).is_ok());
        good.or_else(|| candidates.first()).unwrap_or(environment).clone()
    }

    /// The kinds every cluster has, and the hub's guess about others.
    fn kinds(&self, content: &[u8]) -> Kinds {
        let mut kinds = Kinds::built_in();
        let objects = manifest::read(content).unwrap_or_default();
        kinds.guess(objects.iter().map(Object::key), &self.spec.applications);
        kinds
    }
}

/// Compares each rendering in `index` with what the work tree renders now: what a hub would do with the next commit.
///
/// # Errors
/// [`CiError`] when the work tree cannot be rendered.
pub fn compare(
    repository: &Repository,
    index: &Tree,
    only: Option<&str>,
    kustomize: &Kustomize,
) -> Result<Vec<Row>, CiError> {
    let recipe = repository.recipe();
    let store = Store::new(repository.root(), &recipe.application);
    let releases = store.releases(index);
    let (files, _) = repository.files()?;
    let mut rows = Vec::new();
    for one in recipe.renders.iter().filter(|one| only.is_none_or(|name| name == one.name)) {
        let Some(signed) = index.get(&store.rendering(&one.name)) else { continue };
        let fresh = render(&files, &one.path, &[], kustomize)?;
        let row = |check: &str, passed, detail: String| Row {
            render: one.name.clone(),
            environment: None,
            cluster: None,
            namespace: None,
            check: check.to_owned(),
            passed,
            detail,
        };
        if fresh.rendering == signed {
            rows.push(row("WorkingTree", true, format!("{} renders the signed bytes", one.path)));
            continue;
        }
        let digest = attest_common::basics::ids::Digest::of(signed);
        let made_by = releases
            .iter()
            .find(|stored| stored.statement.covers(&digest))
            .map(|stored| &stored.release.renderer);
        let other_program = made_by.is_some_and(|renderer| {
            renderer.name == fresh.renderer.name && renderer.version != fresh.renderer.version
        });
        let check = if other_program { "RendererMismatch" } else { "ContentDigest" };
        let before = manifest::read(signed).unwrap_or_default();
        let found = differences(&before, &fresh.objects);
        if found.is_empty() {
            rows.push(row(check, false, "the bytes differ, the objects do not".to_owned()));
        }
        for difference in found {
            let declared = is_declared(&difference.field, difference.found.as_deref(), recipe);
            let hint = if declared {
                "; this is the declared image change: write it into the files before committing"
            } else {
                ""
            };
            rows.push(row(check, false, format!("{difference}{hint}")));
        }
    }
    Ok(rows)
}

/// Whether a difference is an image that the recipe changes and the files do not carry yet.
fn is_declared(field: &str, found: Option<&str>, recipe: &Recipe) -> bool {
    let found = found.unwrap_or_default();
    let named = |name: &str| {
        found.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '@']))
    };
    field.ends_with(".image") && recipe.images.iter().any(|change| named(&change.name))
}

/// The first difference between what was signed and `found`, in words.
pub fn first_difference(signed: &[u8], found: &[Object]) -> String {
    let signed = manifest::read(signed).unwrap_or_default();
    let difference = differences(&signed, found).into_iter().next();
    difference.map_or_else(|| "its rendering is another one".to_owned(), |d| d.to_string())
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Names of a recipe, checked: `--environment` must be one of them.
///
/// # Errors
/// [`CiError::EnvironmentUnknown`] lists those there are.
pub fn known_environment(recipe: &Recipe, environment: &Name) -> Result<(), CiError> {
    let all: BTreeSet<&str> =
        recipe.renders.iter().flat_map(|r| &r.environments).map(String::as_str).collect();
    if all.contains(environment.as_str()) {
        return Ok(());
    }
    let known = all.into_iter().collect::<Vec<_>>().join(", ");
    Err(CiError::EnvironmentUnknown { environment: environment.to_string(), known })
}
