//! Runs one step of the recipe. Its output goes to standard error; `result` reads its result file.
//!
//! A step is the project's own code. It has the environment of CI without the signing key.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};

use attest_common::basics::ids::Timestamp;
use attest_common::basics::reason::Reason;

use super::result::{self, ResultError, StepOutcome};
use super::signer::{KEY_FILE_VARIABLE, KEY_VARIABLE};
use crate::recipe::{RecipeStep, ResultFormat, StepResult};

/// A step that passed.
#[derive(Clone, Debug)]
pub struct StepReport {
    pub name: String,
    pub started: Timestamp,
    pub finished: Timestamp,
    pub took: Duration,
    /// Content of its result; `None` for a step that is not attested.
    pub outcome: Option<StepOutcome>,
}

/// Runs `step` in `root` and reads its result.
///
/// # Errors
/// [`StepError`] if the command fails, or its result is missing or does not pass.
pub fn run_step(root: &Path, step: &RecipeStep) -> Result<StepReport, StepError> {
    let file = step.result.as_ref().and_then(|result| result_file(root, result));
    let before = file.as_deref().and_then(file_version);
    let (started, clock) = (Timestamp::now(), Instant::now());
    let status = run_command(root, step)?;
    let (took, finished) = (clock.elapsed(), Timestamp::now());
    if !status.success() {
        return Err(StepError::Failed { step: step.name.clone(), status });
    }
    if let Some(file) = &file
        && before.is_some()
        && file_version(file) == before
    {
        let path = file.strip_prefix(root).unwrap_or(file).display().to_string();
        return Err(StepError::ResultStale { step: step.name.clone(), path });
    }
    let outcome = match &step.result {
        None => None,
        Some(StepResult { format, path }) => {
            let path = path.as_deref().map(|path| root.join(path));
            let outcome = result::read(*format, path.as_deref(), (started, finished))
                .map_err(|source| StepError::Result { step: step.name.clone(), source })?;
            Some(outcome)
        }
    };
    Ok(StepReport { name: step.name.clone(), started, finished, took, outcome })
}

fn run_command(root: &Path, step: &RecipeStep) -> Result<ExitStatus, StepError> {
    let mut command = Command::new("sh");
    command.args(["-c", &step.run]).current_dir(root);
    command.env_remove(KEY_VARIABLE).env_remove(KEY_FILE_VARIABLE);
    command.stdin(Stdio::null()).stdout(Stdio::from(std::io::stderr()));
    command.status().map_err(|source| StepError::Start { step: step.name.clone(), source })
}

/// Returns the file that a step must write.
fn result_file(root: &Path, result: &StepResult) -> Option<PathBuf> {
    let path = result.path.as_deref()?;
    match result.format {
        ResultFormat::OciLayout => Some(root.join(path).join("index.json")),
        ResultFormat::ExitCode => None,
        ResultFormat::BuildkitMetadata
        | ResultFormat::Junit
        | ResultFormat::VulnsV02
        | ResultFormat::GrypeJson
        | ResultFormat::TrivyJson => Some(root.join(path)),
    }
}

/// Returns the properties that change when a file is written. The file of an earlier run is not a result of this one.
fn file_version(file: &Path) -> Option<(SystemTime, u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;

    let metadata = std::fs::metadata(file).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}

/// A step that did not pass.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    #[error("step `{step}` failed ({status}); nothing is signed")]
    Failed { step: String, status: ExitStatus },
    #[error("failed to start step `{step}`; a POSIX `sh` is required")]
    Start {
        step: String,
        #[source]
        source: std::io::Error,
    },
    #[error("step `{step}` did not write {path}: the existing file is older; nothing is signed")]
    ResultStale { step: String, path: String },
    #[error(
        "the command of step `{step}` succeeded, but its result is not accepted; nothing is signed"
    )]
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
