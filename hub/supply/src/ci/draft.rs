//! What CI is about to sign: receipts of the steps and the release statement that rests on them.
//!
//! A draft is judged with the rules of the receiving end before anything is signed. Where the files go is `store`'s
//! part.

use std::collections::{BTreeMap, BTreeSet};

use attest_common::basics::envelope::{self, STATEMENT_TYPE};
use attest_common::basics::ids::{Digest, Name, Timestamp};
use attest_common::basics::keys::PrivateKey;
use attest_common::basics::terms::BUILDER_ID;
use attest_common::basics::terms::Mode;
use attest_common::documents::receipt::{self, BUILD_TYPE, ReceiptContext};
use attest_common::documents::release::{
    NamespaceRule, RELEASE_TYPE, RENDERING_TYPE, Release, ReleaseSource, Render, Renderer, Target,
};
use attest_common::documents::statement::{Statement, Subject};
use attest_common::verify::{VerifyError, fitting_render};
use serde_json::{Value, json};

use super::result::Found;
use super::{CiError, Rendered, SignedFile, StepReport, StoredRelease};
use crate::recipe::{self, Recipe, RecipeRender};
use crate::source::RepositoryUrl;

pub use attest_common::documents::release::Evidence;

/// Bytes of test names that a receipt carries; its envelope has a limit.
const TEST_NAMES_BYTES_MAX: usize = 64 * 1024;
/// Hexadecimal digits of the key id in a file name (in-toto's naming).
const FILE_KEY_DIGITS: usize = 8;

/// Where and when a release is made.
#[derive(Clone, Debug)]
pub struct Origin {
    pub source: ReleaseSource,
    pub counter: u64,
    pub now: Timestamp,
    /// SHA-256 of `attest.yaml`, which says what the steps do.
    pub recipe_digest: Digest,
    /// `--environment`, when only that one is signed for.
    pub environment: Option<Name>,
}

/// One receipt before it is signed, or one that another release already rests on.
#[derive(Clone, Debug)]
pub struct Attested {
    pub attestation: String,
    pub statement: Statement,
    /// Signed payload.
    payload: Vec<u8>,
    /// Files as they were, when it is signed already.
    signed: Vec<SignedFile>,
}

/// A release that nobody signed yet.
#[derive(Clone, Debug)]
pub struct Draft {
    pub receipts: Vec<Attested>,
    pub release: Release,
    subjects: Vec<Subject>,
    now: Timestamp,
}

impl Origin {
    /// The commit that is checked out, as a release statement names it.
    ///
    /// # Errors
    /// [`CiError`] when there is no commit, or it does not hold the source root.
    pub fn source(
        recipe: &Recipe,
        git_commit: Option<&str>,
        git_tree: Option<&str>,
    ) -> Result<ReleaseSource, CiError> {
        let repo = RepositoryUrl::normalise(&recipe.repository)
            .map_err(crate::source::SourceError::from)?;
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
    /// A release of `rendered`, resting on the steps that ran.
    ///
    /// # Errors
    /// [`CiError::Name`] for names, [`CiError::Ambiguous`] when a cluster could take several renders,
    /// [`CiError::ReceiptRefused`] when a receipt would not be accepted.
    pub fn new(
        recipe: &Recipe,
        rendered: &[Rendered],
        steps: &[StepReport],
        origin: &Origin,
    ) -> Result<Self, CiError> {
        refuse_ambiguity(recipe)?;
        let mut renders = Vec::new();
        let mut subjects = Vec::new();
        for one in rendered {
            let render = describe(one, origin.environment.as_ref())?;
            let digest = Digest::of(&one.manifests.rendering);
            subjects.push(Subject::new(render.subject.clone(), digest));
            renders.push(render);
        }
        let release = Release {
            application: name("application", &recipe.application)?,
            version: recipe.release.version.clone(),
            counter: origin.counter,
            not_after: not_after(recipe, origin.now)?,
            source: origin.source.clone(),
            renderer: renderer(rendered),
            evidence: Vec::new(),
            renders,
        };
        let receipts = steps
            .iter()
            .filter_map(|step| receipt_of(step, recipe, origin, &release, &subjects))
            .collect();
        Self { receipts, release, subjects, now: origin.now }.completed()
    }

    /// The release `former` again: same renderings, images and build, a new scan, a new counter.
    ///
    /// # Errors
    /// As [`Draft::new`]; [`CiError::ReleaseUnusable`] when a receipt of the former release is missing.
    pub fn again(
        former: &StoredRelease,
        recipe: &Recipe,
        scan: &StepReport,
        origin: &Origin,
    ) -> Result<Self, CiError> {
        let mut release = former.release.clone();
        release.counter = origin.counter;
        release.not_after = not_after(recipe, origin.now)?;
        let subjects = former.statement.subject.clone();
        let mut receipts = Vec::new();
        for evidence in std::mem::take(&mut release.evidence) {
            if evidence.attestation == scan.name {
                continue;
            }
            receipts.push(Attested::kept(former, &evidence)?);
        }
        receipts.extend(receipt_of(scan, recipe, origin, &release, &subjects));
        Self { receipts, release, subjects, now: origin.now }.completed()
    }

    /// The statement to sign.
    pub fn statement(&self) -> Statement {
        // A release is made of strings and numbers and has no way to fail to serialise.
        let predicate = serde_json::to_value(&self.release).unwrap_or_default();
        Statement::new(self.subjects.clone(), RELEASE_TYPE, predicate)
    }

    /// Digest of each rendering by render name.
    pub fn digests(&self) -> BTreeMap<String, Digest> {
        let digest = |render: &Render| {
            let subject = self.subjects.iter().find(|subject| subject.name == render.subject)?;
            Some((render.name.clone(), subject.sha256()?))
        };
        self.release.renders.iter().filter_map(digest).collect()
    }

    /// Signs receipts and release. The files belong into one release directory.
    pub fn seal(&self, key: &PrivateKey) -> Vec<SignedFile> {
        let id = key.public().id().to_string();
        let hex = id.rsplit(':').next().unwrap_or_default();
        let short: String = hex.chars().take(FILE_KEY_DIGITS).collect();
        let seal = |payload: &[u8]| envelope::seal(STATEMENT_TYPE, payload, &[key]);
        let mut files = Vec::new();
        for receipt in &self.receipts {
            if receipt.signed.is_empty() {
                let name = format!("{}.{short}.json", receipt.attestation);
                files.push(SignedFile { name, bytes: seal(&receipt.payload) });
            } else {
                files.extend(receipt.signed.iter().cloned());
            }
        }
        let bytes = seal(&self.statement().to_bytes());
        files.push(SignedFile { name: format!("release.{short}.json"), bytes });
        files
    }

    fn completed(mut self) -> Result<Self, CiError> {
        self.release.evidence = self
            .receipts
            .iter()
            .map(|receipt| Evidence {
                attestation: receipt.attestation.clone(),
                receipt: envelope::id_of(STATEMENT_TYPE, &receipt.payload),
            })
            .collect();
        self.check()?;
        Ok(self)
    }

    /// The receiving end's rules, before anything is signed.
    fn check(&self) -> Result<(), CiError> {
        let digests = self.digests();
        for render in &self.release.renders {
            let Some(content) = digests.get(&render.name) else { continue };
            let about = ReceiptContext {
                release: &self.release,
                render,
                content: *content,
                builder_ids: &[BUILDER_ID.to_owned()],
                mode: Mode::Strict,
                now: self.now,
                enforce_ages: true,
            };
            for receipt in &self.receipts {
                receipt::check(&receipt.attestation, &receipt.statement, &about).map_err(
                    |source| CiError::ReceiptRefused {
                        attestation: receipt.attestation.clone(),
                        source,
                    },
                )?;
            }
        }
        Ok(())
    }
}

impl Attested {
    fn new(attestation: &str, statement: Statement) -> Self {
        let payload = statement.to_bytes();
        Self { attestation: attestation.to_owned(), statement, payload, signed: Vec::new() }
    }

    /// The receipt that `former` rests on, with its files.
    fn kept(former: &StoredRelease, evidence: &Evidence) -> Result<Self, CiError> {
        let unusable =
            |problem: String| CiError::ReleaseUnusable { counter: former.release.counter, problem };
        let named = |bytes: &[u8]| {
            let (payload, _) = envelope::peek(bytes, STATEMENT_TYPE)?;
            (envelope::id_of(STATEMENT_TYPE, &payload) == evidence.receipt).then_some(payload)
        };
        let mut signed = Vec::new();
        let mut found = None;
        for (name, bytes) in &former.files {
            if let Some(payload) = named(bytes) {
                signed.push(SignedFile { name: name.clone(), bytes: bytes.clone() });
                found = Some(payload);
            }
        }
        let payload = found
            .ok_or_else(|| unusable(format!("its {} receipt is missing", evidence.attestation)))?;
        let statement = Statement::read(&payload).map_err(|error| unusable(error.to_string()))?;
        Ok(Self { attestation: evidence.attestation.clone(), statement, payload, signed })
    }
}

fn receipt_of(
    step: &StepReport,
    recipe: &Recipe,
    origin: &Origin,
    release: &Release,
    renders: &[Subject],
) -> Option<Attested> {
    let rule = receipt::rule(&step.name)?;
    let images: BTreeSet<(&str, Digest)> = release
        .renders
        .iter()
        .flat_map(|render| &render.images)
        .map(|image| (image.reference.as_str(), image.digest))
        .collect();
    let images = images.into_iter().map(|(reference, digest)| Subject::new(reference, digest));
    let (subjects, predicate) = match step.found.as_ref()? {
        Found::Image(digest) => {
            let built = Subject::new(format!("step/{}", step.name), *digest);
            let subjects = renders.iter().cloned().chain([built]).collect();
            (subjects, provenance(step, recipe, origin))
        }
        Found::Tests(names) => (renders.to_vec(), tested(Some(names), recipe, origin)),
        Found::Passed => (renders.to_vec(), tested(None, recipe, origin)),
        Found::Scan(predicate) => {
            // The scan is of images; a rendering without any is what it can speak of instead.
            let imageless = release.renders.iter().filter(|render| render.images.is_empty());
            let names: BTreeSet<&str> = imageless.map(|render| render.subject.as_str()).collect();
            let bare = renders.iter().filter(|subject| names.contains(subject.name.as_str()));
            (images.chain(bare.cloned()).collect::<Vec<_>>(), predicate.clone())
        }
    };
    Some(Attested::new(&step.name, Statement::new(subjects, rule.predicate_type, predicate)))
}

/// SLSA provenance v1.
fn provenance(step: &StepReport, recipe: &Recipe, origin: &Origin) -> Value {
    let mut parameters = json!({
        "application": recipe.application,
        "repository": origin.source.repo,
        "step": step.name,
    });
    if let (Some(environment), Some(fields)) = (&origin.environment, parameters.as_object_mut()) {
        fields.insert("environment".to_owned(), Value::from(environment.as_str()));
    }
    json!({
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": parameters,
            "internalParameters": {"recipe": {"sha256": origin.recipe_digest.hex()}},
            "resolvedDependencies": [{
                "uri": origin.source.repo,
                "digest": {"gitCommit": origin.source.git_commit},
            }],
        },
        "runDetails": {
            "builder": {"id": BUILDER_ID, "version": {"attest": env!("CARGO_PKG_VERSION")}},
            "metadata": {
                "startedOn": step.started.to_string(),
                "finishedOn": step.finished.to_string(),
            },
        },
    })
}

/// in-toto test result v0.1.
fn tested(names: Option<&[String]>, recipe: &Recipe, origin: &Origin) -> Value {
    let mut predicate = json!({
        "result": "PASSED",
        "configuration": [{
            "name": "attest.yaml",
            "uri": format!("{}#{}", origin.source.repo, recipe.application),
            "digest": {"sha256": origin.recipe_digest.hex()},
        }],
        "failedTests": [],
    });
    let bytes: usize = names.iter().flat_map(|names| names.iter()).map(String::len).sum();
    // The list is optional; one that is cut would look complete.
    if let (Some(names), Some(fields)) = (names, predicate.as_object_mut())
        && bytes <= TEST_NAMES_BYTES_MAX
    {
        fields.insert("passedTests".to_owned(), Value::from(names.to_vec()));
    }
    predicate
}

fn describe(one: &Rendered, only: Option<&Name>) -> Result<Render, CiError> {
    let RecipeRender { name: render, environments, clusters, .. } = &one.recipe;
    let environments = match only {
        Some(environment) => vec![environment.to_string()],
        None => environments.clone(),
    };
    let pins = one.images.iter().any(|image| !image.reference.contains('@'));
    Ok(Render {
        name: render.clone(),
        subject: format!("manifests/{render}"),
        media_type: RENDERING_TYPE.to_owned(),
        size: one.manifests.rendering.len() as u64,
        objects: one.manifests.objects.len() as u64,
        target: Target { environments, clusters: clusters.clone() },
        namespace: namespace_rule(&one.recipe)?,
        images: one.images.clone(),
        mutations: pins
            .then(|| attest_common::objects::placement::IMAGE_PIN.to_owned())
            .into_iter()
            .collect(),
    })
}

pub(super) fn namespace_rule(render: &RecipeRender) -> Result<NamespaceRule, CiError> {
    Ok(match &render.namespace {
        recipe::NamespaceRule::Fixed { value } => {
            NamespaceRule::Fixed { value: name("namespace.value", value)? }
        }
        recipe::NamespaceRule::DefaultOnly { pattern } => {
            NamespaceRule::DefaultOnly { pattern: pattern.clone() }
        }
    })
}

fn renderer(rendered: &[Rendered]) -> Renderer {
    // Plain YAML is read by this program in every rendering; a program beside it is what can differ.
    let versions = rendered.iter().map(|one| &one.manifests.renderer);
    let chosen = versions.max_by_key(|version| version.name == "kustomize");
    chosen.map_or_else(
        || Renderer { name: "none".to_owned(), version: String::new() },
        |version| Renderer { name: version.name.clone(), version: version.version.clone() },
    )
}

fn not_after(recipe: &Recipe, now: Timestamp) -> Result<Timestamp, CiError> {
    let seconds = recipe.release.not_after_seconds().ok().and_then(|s| i64::try_from(s).ok());
    seconds
        .and_then(|seconds| now.as_second().checked_add(seconds))
        .and_then(|second| Timestamp::from_second(second).ok())
        .ok_or(CiError::TimeOutOfRange)
}

pub(super) fn name(field: &str, text: &str) -> Result<Name, CiError> {
    Name::new(text).map_err(|source| CiError::Name { field: field.to_owned(), source })
}

/// Every cluster must find at most one render, or renders fixed to different namespaces.
///
/// # Errors
/// [`CiError::Ambiguous`] names the renders.
pub fn refuse_ambiguity(recipe: &Recipe) -> Result<(), CiError> {
    // Named clusters, and one that nobody names.
    const ANY_OTHER: &str = "any-other-cluster";
    let mut renders = Vec::new();
    for render in &recipe.renders {
        renders.push(Render {
            name: render.name.clone(),
            subject: String::new(),
            media_type: String::new(),
            size: 0,
            objects: 0,
            target: Target {
                environments: render.environments.clone(),
                clusters: render.clusters.clone(),
            },
            namespace: namespace_rule(render)?,
            images: Vec::new(),
            mutations: Vec::new(),
        });
    }
    let release = Release {
        application: name("application", &recipe.application)?,
        version: String::new(),
        counter: 0,
        not_after: Timestamp::UNIX_EPOCH,
        source: ReleaseSource {
            repo: String::new(),
            git_commit: String::new(),
            source_root: String::new(),
            git_tree: String::new(),
        },
        renderer: Renderer { name: String::new(), version: String::new() },
        evidence: Vec::new(),
        renders,
    };
    let environments: BTreeSet<&String> =
        recipe.renders.iter().flat_map(|render| &render.environments).collect();
    let mut clusters: BTreeSet<&str> = recipe
        .renders
        .iter()
        .flat_map(|r| r.clusters.iter().flatten())
        .map(String::as_str)
        .collect();
    clusters.insert(ANY_OTHER);
    for environment in environments {
        let environment = name("environments", environment)?;
        for cluster in &clusters {
            let cluster = name("clusters", cluster)?;
            let found = fitting_render(&release, &environment, &cluster, &environment);
            if let Err(error @ VerifyError::RenderAmbiguous { .. }) = found {
                return Err(CiError::Ambiguous(error));
            }
        }
    }
    Ok(())
}
