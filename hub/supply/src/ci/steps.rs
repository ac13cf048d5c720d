//! Running one step of the recipe. Its output goes to our standard error; its result file is read by `result`.
//!
//! A step is the project's own code. It gets the environment of CI without the signing key.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};

use attest_common::basics::ids::Timestamp;
use attest_common::basics::reason::Reason;

use super::result::{self, Found, ResultError};
use super::signer::{KEY_FILE_VARIABLE, KEY_VARIABLE};
use crate::recipe::{ResultFormat, Step};

/// A step that passed.
#[derive(Clone, Debug)]
pub struct StepReport {
    pub name: String,
    pub started: Timestamp,
    pub finished: Timestamp,
    pub took: Duration,
    /// What its result file says; absent for steps that are only run.
    pub found: Option<Found>,
}

/// Runs `step` in `root` and reads what it left.
///
/// # Errors
/// [`StepError`] when the command fails, or leaves no result, or one that does not pass.
pub fn run_step(root: &Path, step: &Step) -> Result<StepReport, StepError> {
    let result = step.result.as_ref();
    let file = result.and_then(|result| witness(root, result.format, result.path.as_deref()?));
    let before = file.as_deref().and_then(mark);
    let (started, begun) = (Timestamp::now(), Instant::now());
    let status = shell(root, step)?;
    let took = begun.elapsed();
    let finished = Timestamp::now();
    if !status.success() {
        return Err(StepError::Failed { step: step.name.clone(), status });
    }
    let found = match result {
        None => None,
        Some(result) => {
            // A file of an earlier run says nothing about this one.
            if let Some(file) = &file
                && before.is_some()
                && mark(file) == before
            {
                let path = file.strip_prefix(root).unwrap_or(file).display().to_string();
                return Err(StepError::ResultStale { step: step.name.clone(), path });
            }
            let path = result.path.as_deref().map(|path| root.join(path));
            let read = result::read(result.format, path.as_deref(), (started, finished));
            let failed = |source| StepError::Result { step: step.name.clone(), source };
            Some(read.map_err(failed)?)
        }
    };
    Ok(StepReport { name: step.name.clone(), started, finished, took, found })
}

fn shell(root: &Path, step: &Step) -> Result<ExitStatus, StepError> {
    let mut command = Command::new("sh");
    command.args(["-c", &step.run]).current_dir(root);
    command.env_remove(KEY_VARIABLE).env_remove(KEY_FILE_VARIABLE);
    command.stdin(Stdio::null()).stdout(Stdio::from(std::io::stderr()));
    command.status().map_err(|source| StepError::Start { step: step.name.clone(), source })
}

/// The file that a step must write anew.
fn witness(root: &Path, format: ResultFormat, path: &str) -> Option<PathBuf> {
    match format {
        ResultFormat::OciLayout => Some(root.join(path).join("index.json")),
        ResultFormat::ExitCode => None,
        ResultFormat::BuildkitMetadata
        | ResultFormat::Junit
        | ResultFormat::VulnsV02
        | ResultFormat::GrypeJson
        | ResultFormat::TrivyJson => Some(root.join(path)),
    }
}

fn mark(file: &Path) -> Option<(SystemTime, u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;

    let metadata = std::fs::metadata(file).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}

/// Why a step does not count.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    #[error("step `{step}` failed ({status}); nothing is signed")]
    Failed { step: String, status: ExitStatus },
    #[error("step `{step}` cannot be started: a POSIX `sh` is needed")]
    Start {
        step: String,
        #[source]
        source: std::io::Error,
    },
    #[error("step `{step}` did not write {path}: what lies there is older; nothing is signed")]
    ResultStale { step: String, path: String },
    #[error("step `{step}` ended well, but its result does not count; nothing is signed")]
    Result {
        step: String,
        #[source]
        source: ResultError,
    },
}

impl StepError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Failed { .. } | Self::Start { .. } => Reason::StepFailed,
            Self::ResultStale { .. } => Reason::ResultStale,
            Self::Result { source, .. } => source.reason(),
        }
    }
}
