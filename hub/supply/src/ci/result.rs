//! Reads the result of a step in the format that the recipe names.
//!
//! The result is checked, not trusted: an image's digest is computed from its blobs, tests are counted, and a scan must
//! list its findings. `attest_common::documents::receipt` decides about the content of a receipt.

mod junit;
mod oci;
mod scan;

use std::path::{Path, PathBuf};

use attest_common::basics::ids::{Digest, Timestamp};
use attest_common::basics::json::{self, OBJECT_DEPTH_MAX};
use attest_common::basics::reason::Reason;
use attest_common::basics::text::error_chain;
use serde_json::Value;

use crate::recipe::ResultFormat;
use crate::regular;

/// Maximum size of a result file, in bytes.
pub const RESULT_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Key of the image's digest in the metadata of buildx.
const BUILDKIT_DIGEST: &str = "containerimage.digest";

/// Content of a step's result.
#[derive(Clone, Debug, PartialEq)]
pub enum StepOutcome {
    /// Digest of the built image.
    Image(Digest),
    /// Names of the passed tests; none failed.
    Tests(Vec<String>),
    /// The command succeeded; nothing more is known.
    Passed,
    /// Predicate vulns v0.2 of in-toto.
    Scan(Value),
}

/// Reads the result at `path`. `period` is the start and the end of the step.
///
/// # Errors
/// [`ResultError`] if the result is missing, malformed, or does not pass.
pub fn read(
    format: ResultFormat,
    path: Option<&Path>,
    period: (Timestamp, Timestamp),
) -> Result<StepOutcome, ResultError> {
    let Some(path) = path else { return Ok(StepOutcome::Passed) };
    match format {
        ResultFormat::ExitCode => Ok(StepOutcome::Passed),
        ResultFormat::OciLayout => oci::image_digest(path).map(StepOutcome::Image),
        ResultFormat::BuildkitMetadata => buildkit_digest(path).map(StepOutcome::Image),
        ResultFormat::Junit => junit::passed_tests(path, &read_file(path)?).map(StepOutcome::Tests),
        ResultFormat::VulnsV02 => scan::from_vulns(path, read_json(path)?).map(StepOutcome::Scan),
        ResultFormat::GrypeJson => {
            scan::from_grype(path, &read_json(path)?, period).map(StepOutcome::Scan)
        }
        ResultFormat::TrivyJson => {
            scan::from_trivy(path, &read_json(path)?, period).map(StepOutcome::Scan)
        }
    }
}

fn buildkit_digest(path: &Path) -> Result<Digest, ResultError> {
    let document = read_json(path)?;
    document
        .get(BUILDKIT_DIGEST)
        .and_then(Value::as_str)
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| malformed(path, "`containerimage.digest` is not a digest"))
}

fn read_file(path: &Path) -> Result<Vec<u8>, ResultError> {
    let metadata = std::fs::metadata(path).map_err(|source| unreadable(path, source))?;
    if metadata.len() > RESULT_BYTES_MAX {
        return Err(malformed(path, "is larger than 64 MiB"));
    }
    regular::read(path).map_err(|source| unreadable(path, source))
}

fn read_json(path: &Path) -> Result<Value, ResultError> {
    json::value(&read_file(path)?, OBJECT_DEPTH_MAX)
        .map_err(|error| malformed(path, format!("is not valid JSON: {}", error_chain(&error))))
}

fn unreadable(path: &Path, source: std::io::Error) -> ResultError {
    ResultError::Files { path: path.to_owned(), source }
}

fn malformed(path: &Path, problem: impl Into<String>) -> ResultError {
    ResultError::Malformed { path: path.to_owned(), problem: problem.into() }
}

/// A result that is not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResultError {
    #[error("{} {problem}", .path.display())]
    Malformed { path: PathBuf, problem: String },
    #[error("{}: the content of the blob does not have digest {digest}", .path.display())]
    Blob { path: PathBuf, digest: String },
    #[error("{} of {total} tests failed: {}", .failed.len(), abbreviated(.failed))]
    TestsFailed { failed: Vec<String>, total: usize },
    #[error("{} contains no test", .path.display())]
    NoTests { path: PathBuf },
    #[error("failed to read {}, which the step must write", .path.display())]
    Files {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

fn abbreviated(names: &[String]) -> String {
    const LISTED_MAX: usize = 5;
    let listed: Vec<&str> = names.iter().take(LISTED_MAX).map(String::as_str).collect();
    let ellipsis = if names.len() > LISTED_MAX { ", …" } else { "" };
    format!("{}{ellipsis}", listed.join(", "))
}

impl ResultError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Malformed { .. } => Reason::ResultMalformed,
            Self::Blob { .. } => Reason::ResultBlob,
            Self::TestsFailed { .. } => Reason::TestFailed,
            Self::NoTests { .. } => Reason::NoTests,
            Self::Files { .. } => Reason::ResultMissing,
        }
    }
}
