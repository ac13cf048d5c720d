//! What a step left behind, read by the format that the recipe names.
//!
//! Only facts are read here; what a receipt must say is decided by `attest_common::documents::receipt`. Nothing is taken on
//! faith: an image's digest is computed from its blobs, tests are counted, a scan must list its findings.

mod junit;
mod oci;
mod scan;

use std::path::{Path, PathBuf};

use attest_common::basics::ids::{Digest, Timestamp};
use attest_common::basics::reason::Reason;
use serde_json::Value;

use crate::recipe::ResultFormat;

/// Largest result file, in bytes.
pub const RESULT_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Key under which buildx writes the image's digest.
const BUILDKIT_DIGEST: &str = "containerimage.digest";

/// What a step's result says.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// Digest of the image that was built.
    Image(Digest),
    /// Names of the tests that passed; none failed.
    Tests(Vec<String>),
    /// The command ended well; nothing more is known.
    Passed,
    /// Predicate of in-toto's vulns v0.2.
    Scan(Value),
}

/// Reads the result at `path`. `ran` is when the step began and ended.
///
/// # Errors
/// [`ResultError`] when it is missing, malformed, or says that the step did not pass.
pub fn read(
    format: ResultFormat,
    path: Option<&Path>,
    ran: (Timestamp, Timestamp),
) -> Result<Found, ResultError> {
    let Some(path) = path else { return Ok(Found::Passed) };
    match format {
        ResultFormat::ExitCode => Ok(Found::Passed),
        ResultFormat::OciLayout => oci::image(path).map(Found::Image),
        ResultFormat::BuildkitMetadata => {
            let document = json(path)?;
            let written = document.get(BUILDKIT_DIGEST).and_then(Value::as_str);
            let digest = written.and_then(|text| text.parse().ok());
            digest
                .map(Found::Image)
                .ok_or_else(|| malformed(path, "`containerimage.digest` is no digest"))
        }
        ResultFormat::Junit => junit::passed(path, &bytes(path)?).map(Found::Tests),
        ResultFormat::VulnsV02 => scan::vulns(path, json(path)?).map(Found::Scan),
        ResultFormat::GrypeJson => scan::grype(path, &json(path)?, ran).map(Found::Scan),
        ResultFormat::TrivyJson => scan::trivy(path, &json(path)?, ran).map(Found::Scan),
    }
}

fn bytes(path: &Path) -> Result<Vec<u8>, ResultError> {
    let failed = |source| ResultError::Files { path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if metadata.len() > RESULT_BYTES_MAX {
        return Err(malformed(path, "is larger than 64 MiB"));
    }
    std::fs::read(path).map_err(failed)
}

fn json(path: &Path) -> Result<Value, ResultError> {
    let bytes = bytes(path)?;
    attest_common::basics::json::value(&bytes, attest_common::basics::json::OBJECT_DEPTH_MAX)
        .map_err(|error| malformed(path, &format!("is not acceptable JSON: {}", chain(&error))))
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

fn malformed(path: &Path, problem: &str) -> ResultError {
    ResultError::Malformed { path: path.to_owned(), problem: problem.to_owned() }
}

/// Why a step's result does not count.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResultError {
    #[error("{} {problem}", .path.display())]
    Malformed { path: PathBuf, problem: String },
    #[error("{}: blob {digest} is not what it is called", .path.display())]
    Blob { path: PathBuf, digest: String },
    #[error("{} of {total} tests failed: {}", .failed.len(), some(.failed))]
    TestsFailed { failed: Vec<String>, total: usize },
    #[error("{} holds no test: nothing was tested", .path.display())]
    NoTests { path: PathBuf },
    #[error("cannot read {}: the step should have written it", .path.display())]
    Files {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

fn some(names: &[String]) -> String {
    const SHOWN_MAX: usize = 5;
    let shown: Vec<&str> = names.iter().take(SHOWN_MAX).map(String::as_str).collect();
    let more = if names.len() > SHOWN_MAX { ", …" } else { "" };
    format!("{}{more}", shown.join(", "))
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
