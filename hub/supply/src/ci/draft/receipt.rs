//! Receipts of the steps: their subjects and predicates.

use std::collections::BTreeSet;

use attest_common::basics::envelope::{self, STATEMENT_TYPE};
use attest_common::basics::ids::Digest;
use attest_common::basics::keys::PrivateKey;
use attest_common::basics::terms::BUILDER_ID;
use attest_common::documents::receipt::{BUILD_TYPE, rule};
use attest_common::documents::release::Release;
use attest_common::documents::statement::{Statement, Subject};
use serde_json::{Value, json};

use super::{Evidence, Origin};
use crate::ci::result::StepOutcome;
use crate::ci::{CiError, SignedFile, StepReport, StoredRelease};
use crate::recipe::Recipe;

/// Maximum size of all test names in a receipt, in bytes. The envelope has a size limit.
const TEST_NAMES_BYTES_MAX: usize = 64 * 1024;

/// An unsigned receipt, or a signed one of another release.
#[derive(Clone, Debug)]
pub struct DraftReceipt {
    pub attestation: String,
    pub statement: Statement,
    /// Signed payload.
    payload: Vec<u8>,
    /// Original files, if it is already signed.
    signed: Vec<SignedFile>,
}

impl DraftReceipt {
    fn new(attestation: &str, statement: Statement) -> Self {
        let payload = statement.to_bytes();
        Self { attestation: attestation.to_owned(), statement, payload, signed: Vec::new() }
    }

    /// Returns the receipt of `release` that `evidence` refers to, with its files.
    ///
    /// # Errors
    /// [`CiError::ReleaseUnusable`] if it is missing or malformed.
    pub(super) fn from_release(
        release: &StoredRelease,
        evidence: &Evidence,
    ) -> Result<Self, CiError> {
        let counter = release.release.counter;
        let mut signed = Vec::new();
        let mut receipt = None;
        for (name, bytes) in &release.files {
            if let Some(payload) = payload_with_id(bytes, &evidence.receipt) {
                signed.push(SignedFile { name: name.clone(), bytes: bytes.clone() });
                receipt = Some(payload);
            }
        }
        let payload = receipt.ok_or_else(|| CiError::ReleaseUnusable {
            counter,
            problem: format!("its {} receipt is missing", evidence.attestation),
        })?;
        let statement = Statement::read(&payload)
            .map_err(|error| CiError::ReleaseUnusable { counter, problem: error.to_string() })?;
        Ok(Self { attestation: evidence.attestation.clone(), statement, payload, signed })
    }

    /// Returns the reference of a release statement to this receipt.
    pub(super) fn evidence(&self) -> Evidence {
        Evidence {
            attestation: self.attestation.clone(),
            receipt: envelope::id_of(STATEMENT_TYPE, &self.payload),
        }
    }

    /// Signs the receipt, unless it is already signed. `suffix` identifies the key in the file name.
    pub(super) fn seal(&self, key: &PrivateKey, suffix: &str) -> Vec<SignedFile> {
        if !self.signed.is_empty() {
            return self.signed.clone();
        }
        let name = format!("{}.{suffix}.json", self.attestation);
        let bytes = envelope::seal(STATEMENT_TYPE, &self.payload, &[key]);
        vec![SignedFile { name, bytes }]
    }
}

fn payload_with_id(bytes: &[u8], id: &Digest) -> Option<Vec<u8>> {
    let (payload, _) = envelope::peek(bytes, STATEMENT_TYPE)?;
    (envelope::id_of(STATEMENT_TYPE, &payload) == *id).then_some(payload)
}

/// Creates the receipt of a step; `None` for a step that is not attested.
pub(super) fn create_receipt(
    step: &StepReport,
    recipe: &Recipe,
    origin: &Origin,
    release: &Release,
    renderings: &[Subject],
) -> Option<DraftReceipt> {
    let rule = rule(&step.name)?;
    let (subjects, predicate) = match step.outcome.as_ref()? {
        StepOutcome::Image(digest) => {
            let image = Subject::new(format!("step/{}", step.name), *digest);
            let subjects = renderings.iter().cloned().chain([image]).collect();
            (subjects, provenance(step, recipe, origin))
        }
        StepOutcome::Tests(names) => {
            (renderings.to_vec(), test_result(Some(names), recipe, origin))
        }
        StepOutcome::Passed => (renderings.to_vec(), test_result(None, recipe, origin)),
        StepOutcome::Scan(predicate) => (scan_subjects(release, renderings), predicate.clone()),
    };
    let statement = Statement::new(subjects, rule.predicate_type, predicate);
    Some(DraftReceipt::new(&step.name, statement))
}

/// Returns all images, and the renderings without images: a scan is of images, but must refer to every rendering.
fn scan_subjects(release: &Release, renderings: &[Subject]) -> Vec<Subject> {
    let images: BTreeSet<(&str, Digest)> = release
        .renders
        .iter()
        .flat_map(|render| &render.images)
        .map(|image| (image.reference.as_str(), image.digest))
        .collect();
    let without_images: BTreeSet<&str> = release
        .renders
        .iter()
        .filter(|render| render.images.is_empty())
        .map(|render| render.subject.as_str())
        .collect();
    let image_subjects =
        images.into_iter().map(|(reference, digest)| Subject::new(reference, digest));
    let rendering_subjects =
        renderings.iter().filter(|subject| without_images.contains(subject.name.as_str()));
    image_subjects.chain(rendering_subjects.cloned()).collect()
}

/// Returns the predicate of SLSA provenance v1.
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

/// Returns the predicate of in-toto test result v0.1.
fn test_result(names: Option<&[String]>, recipe: &Recipe, origin: &Origin) -> Value {
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
    // The list is optional. A shortened list would appear complete.
    if let (Some(names), Some(fields)) = (names, predicate.as_object_mut())
        && bytes <= TEST_NAMES_BYTES_MAX
    {
        fields.insert("passedTests".to_owned(), Value::from(names.to_vec()));
    }
    predicate
}
