//! The unsigned parts of a release: receipts of the steps and the release statement that refers to them.
//!
//! A draft is checked with the rules of the receiving end before anything is signed. `store` writes the files.

mod ambiguity;
mod receipt;

use std::collections::BTreeMap;

use attest_common::basics::envelope::{self, STATEMENT_TYPE};
use attest_common::basics::ids::{Digest, Name, Timestamp};
use attest_common::basics::keys::PrivateKey;
use attest_common::basics::terms::{BUILDER_ID, Mode};
use attest_common::documents::receipt::{ReceiptContext, check};
use attest_common::documents::release::{
    NamespaceRule, RELEASE_TYPE, RENDERING_TYPE, Release, ReleaseSource, Render, Renderer, Target,
};
use attest_common::documents::statement::{Statement, Subject};
use attest_common::objects::placement::IMAGE_PIN;
use attest_common::trust::policy::SCAN_AGE_HOURS_DEFAULT;

use super::{CiError, ReleaseRendering, SignedFile, StepReport, StoredRelease};
use crate::recipe::{Recipe, RecipeNamespaceRule, RecipeRender};
use crate::source::{RepositoryUrl, SourceError};

pub use ambiguity::refuse_ambiguity;
pub use attest_common::documents::release::Evidence;
pub use receipt::DraftReceipt;

use receipt::create_receipt;

/// Hexadecimal digits of the key id in a file name (in-toto's convention).
const FILE_KEY_DIGITS: usize = 8;

/// Source and time of a release.
#[derive(Clone, Debug)]
pub struct Origin {
    pub source: ReleaseSource,
    pub counter: u64,
    pub now: Timestamp,
    /// SHA-256 of `attest.yaml`, which defines the steps.
    pub recipe_digest: Digest,
    /// `--environment`, if the release is for one environment only.
    pub environment: Option<Name>,
}

/// An unsigned release.
#[derive(Clone, Debug)]
pub struct Draft {
    pub receipts: Vec<DraftReceipt>,
    pub release: Release,
    subjects: Vec<Subject>,
    now: Timestamp,
}

impl Origin {
    /// Returns the checked-out commit as the source of a release statement.
    ///
    /// # Errors
    /// [`CiError`] without a commit, or if it does not contain the source root.
    pub fn source(
        recipe: &Recipe,
        git_commit: Option<&str>,
        git_tree: Option<&str>,
    ) -> Result<ReleaseSource, CiError> {
        let repo = RepositoryUrl::normalise(&recipe.repository).map_err(SourceError::from)?;
        let root = recipe.source_root.clone();
        Ok(ReleaseSource {
            repo,
            git_commit: git_commit.ok_or(CiError::CommitMissing)?.to_owned(),
            git_tree: git_tree
                .ok_or_else(|| CiError::SourceRootNotCommitted { root: root.clone() })?
                .to_owned(),
            source_root: root,
        })
    }
}

impl Draft {
    /// Creates a release of `rendered` with receipts of the executed steps.
    ///
    /// # Errors
    /// [`CiError::Name`] for an invalid name, [`CiError::Ambiguous`] if several renders are for one cluster,
    /// [`CiError::ReceiptRefused`] if a receipt would be refused.
    pub fn new(
        recipe: &Recipe,
        rendered: &[ReleaseRendering],
        steps: &[StepReport],
        origin: &Origin,
    ) -> Result<Self, CiError> {
        refuse_ambiguity(recipe)?;
        let mut renders = Vec::new();
        let mut subjects = Vec::new();
        for rendering in rendered {
            let render = describe_render(rendering, origin.environment.as_ref())?;
            let digest = Digest::of(&rendering.manifests.rendering);
            subjects.push(Subject::new(render.subject.clone(), digest));
            renders.push(render);
        }
        let release = Release {
            application: parse_name("application", &recipe.application)?,
            version: recipe.release.version.clone(),
            counter: origin.counter,
            not_after: not_after(recipe, origin.now)?,
            source: origin.source.clone(),
            renderer: release_renderer(rendered),
            evidence: Vec::new(),
            renders,
        };
        let receipts = steps
            .iter()
            .filter_map(|step| create_receipt(step, recipe, origin, &release, &subjects))
            .collect();
        Self { receipts, release, subjects, now: origin.now }.with_evidence()
    }

    /// Creates a release with the renderings, images and build of `previous`, a new scan and a new counter.
    ///
    /// # Errors
    /// As [`Draft::new`]; [`CiError::ReleaseUnusable`] if a receipt of the previous release is missing.
    pub fn rescan(
        previous: &StoredRelease,
        recipe: &Recipe,
        scan: &StepReport,
        origin: &Origin,
    ) -> Result<Self, CiError> {
        let mut release = previous.release.clone();
        release.counter = origin.counter;
        release.not_after = not_after(recipe, origin.now)?;
        let subjects = previous.statement.subject.clone();
        let mut receipts = Vec::new();
        for evidence in std::mem::take(&mut release.evidence) {
            if evidence.attestation != scan.name {
                receipts.push(DraftReceipt::from_release(previous, &evidence)?);
            }
        }
        receipts.extend(create_receipt(scan, recipe, origin, &release, &subjects));
        Self { receipts, release, subjects, now: origin.now }.with_evidence()
    }

    /// Returns the release statement.
    pub fn statement(&self) -> Statement {
        // A release consists of strings and numbers, whose serialisation does not fail.
        let predicate = serde_json::to_value(&self.release).unwrap_or_default();
        Statement::new(self.subjects.clone(), RELEASE_TYPE, predicate)
    }

    /// Returns the digest of each rendering by the name of its render.
    pub fn digests(&self) -> BTreeMap<String, Digest> {
        let mut digests = BTreeMap::new();
        for render in &self.release.renders {
            let subject = self.subjects.iter().find(|subject| subject.name == render.subject);
            if let Some(digest) = subject.and_then(Subject::sha256) {
                digests.insert(render.name.clone(), digest);
            }
        }
        digests
    }

    /// Signs the receipts and the release; returns the files of the release directory.
    pub fn seal(&self, key: &PrivateKey) -> Vec<SignedFile> {
        let id = key.public().id().to_string();
        let hex = id.rsplit(':').next().unwrap_or_default();
        let suffix: String = hex.chars().take(FILE_KEY_DIGITS).collect();
        let mut files = Vec::new();
        for receipt in &self.receipts {
            files.extend(receipt.seal(key, &suffix));
        }
        let bytes = envelope::seal(STATEMENT_TYPE, &self.statement().to_bytes(), &[key]);
        files.push(SignedFile { name: format!("release.{suffix}.json"), bytes });
        files
    }

    /// Adds the references to the receipts and checks the draft.
    fn with_evidence(mut self) -> Result<Self, CiError> {
        self.release.evidence = self.receipts.iter().map(DraftReceipt::evidence).collect();
        self.check_receipts()?;
        Ok(self)
    }

    /// Applies the rules of the receiving end.
    fn check_receipts(&self) -> Result<(), CiError> {
        let digests = self.digests();
        for render in &self.release.renders {
            let Some(content) = digests.get(&render.name) else { continue };
            let context = ReceiptContext {
                release: &self.release,
                render,
                content: *content,
                builder_ids: &[BUILDER_ID.to_owned()],
                mode: Mode::Strict,
                now: self.now,
                enforce_ages: true,
                scan_age_hours_max: SCAN_AGE_HOURS_DEFAULT,
            };
            for receipt in &self.receipts {
                check(&receipt.attestation, &receipt.statement, &context).map_err(|source| {
                    CiError::ReceiptRefused { attestation: receipt.attestation.clone(), source }
                })?;
            }
        }
        Ok(())
    }
}

fn describe_render(rendering: &ReleaseRendering, only: Option<&Name>) -> Result<Render, CiError> {
    let RecipeRender { name, environments, clusters, .. } = &rendering.recipe;
    let environments = match only {
        Some(environment) => vec![environment.to_string()],
        None => environments.clone(),
    };
    let has_pins = rendering.images.iter().any(|image| !image.reference.contains('@'));
    Ok(Render {
        name: name.clone(),
        subject: format!("manifests/{name}"),
        media_type: RENDERING_TYPE.to_owned(),
        size: rendering.manifests.rendering.len() as u64,
        objects: rendering.manifests.objects.len() as u64,
        target: Target { environments, clusters: clusters.clone() },
        namespace: namespace_rule(&rendering.recipe)?,
        images: rendering.images.clone(),
        mutations: has_pins.then(|| IMAGE_PIN.to_owned()).into_iter().collect(),
    })
}

fn namespace_rule(render: &RecipeRender) -> Result<NamespaceRule, CiError> {
    Ok(match &render.namespace {
        RecipeNamespaceRule::Fixed { value } => {
            NamespaceRule::Fixed { value: parse_name("namespace.value", value)? }
        }
        RecipeNamespaceRule::DefaultOnly { pattern } => {
            NamespaceRule::DefaultOnly { pattern: pattern.clone() }
        }
    })
}

/// Returns kustomize if any rendering used it: plain YAML is always read by this program, but the version of
/// kustomize may differ.
fn release_renderer(rendered: &[ReleaseRendering]) -> Renderer {
    let versions = rendered.iter().map(|rendering| &rendering.manifests.renderer);
    match versions.max_by_key(|version| version.name == "kustomize") {
        Some(version) => Renderer { name: version.name.clone(), version: version.version.clone() },
        None => Renderer { name: "none".to_owned(), version: String::new() },
    }
}

fn not_after(recipe: &Recipe, now: Timestamp) -> Result<Timestamp, CiError> {
    let seconds = recipe.release.not_after_seconds().ok();
    seconds
        .and_then(|seconds| i64::try_from(seconds).ok())
        .and_then(|seconds| now.as_second().checked_add(seconds))
        .and_then(|second| Timestamp::from_second(second).ok())
        .ok_or(CiError::TimeOutOfRange)
}

fn parse_name(field: &str, text: &str) -> Result<Name, CiError> {
    Name::new(text).map_err(|source| CiError::Name { field: field.to_owned(), source })
}
