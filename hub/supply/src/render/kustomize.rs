//! Kustomize, by the program that users know: `kustomize build` or `kubectl kustomize`.
//!
//! The files are written to a directory of their own, and the program reads them there.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::end::exceeded;
use super::program::{self, Finished, Group, Run, Unfinished};
use super::{RenderError, RendererVersion, kustomization};
use crate::source::Tree;
use crate::text::one_line;
use crate::yaml::{self, Warning, YamlBudget};

/// Longest time for a program to print its version, in seconds.
const VERSION_SECONDS_MAX: u64 = 20;
const VERSION_BYTES_MAX: usize = 64 * 1024;

/// Exit code of a process that could not become the renderer.
pub(super) const EXECUTE_FAILED: u8 = 113;
/// Most threads of a renderer that run concurrently.
const RENDERER_THREADS_MAX: &str = "2";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    is_kubectl: bool,
    version: String,
}

/// Place and limits of a run of the program.
#[derive(Clone, Debug)]
pub(super) struct Runner<'a> {
    /// Directory for the files, empty.
    pub(super) directory: &'a Path,
    /// Starts the program through this one, with the arguments that follow.
    pub(super) through: Option<(&'a Path, &'static str)>,
    pub(super) memory_bytes_max: u64,
    pub(super) time: Duration,
    pub(super) output_bytes_max: usize,
}

impl Program {
    /// The first of `kustomize` and `kubectl` that is in `search` (the value of `PATH`) and prints its version.
    pub(super) fn find(search: Option<&OsStr>) -> Option<Self> {
        let directories: Vec<PathBuf> =
            search.map(|search| std::env::split_paths(search).collect()).unwrap_or_default();
        let candidates = ["kustomize", "kubectl"].into_iter().flat_map(|name| {
            directories.iter().filter(|path| path.is_absolute()).map(move |path| path.join(name))
        });
        candidates.filter(|path| path.is_file()).find_map(|path| Self::at(&path))
    }

    /// The program at `path`, unless it prints no version. Its name tells kubectl from kustomize.
    pub(super) fn at(path: &Path) -> Option<Self> {
        // Not resolved through links: some installers link every program to one that looks at its name.
        let path = std::path::absolute(path).ok()?;
        let name = path.file_name()?.to_str()?;
        let is_kubectl = name.starts_with("kubectl");
        let mut command = Command::new(&path);
        if is_kubectl {
            command.args(["version", "--client", "--output=json"]);
        } else {
            command.arg("version");
        }
        // No file of a repository is read here, so that the program of the operator need not be isolated.
        let Finished { status, output, .. } = program::run(Run {
            command,
            input: None,
            environment: Vec::new(),
            group: Group::Own,
            time: Duration::from_secs(VERSION_SECONDS_MAX),
            output_bytes_max: VERSION_BYTES_MAX,
        })
        .ok()?;
        if !status.success() {
            return None;
        }
        let version = if is_kubectl {
            let told: Value = serde_json::from_slice(&output).ok()?;
            told.get("kustomizeVersion")?.as_str()?.to_owned()
        } else {
            String::from_utf8(output).ok()?.trim().to_owned()
        };
        let version = version.trim_start_matches('v');
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".+-()_".contains(&byte);
        let fits = !version.is_empty() && version.len() <= 64 && version.bytes().all(plain);
        fits.then(|| Self { path: path.clone(), is_kubectl, version: version.to_owned() })
    }

    pub(super) fn renderer(&self) -> RendererVersion {
        RendererVersion { name: "kustomize".to_owned(), version: self.version.clone() }
    }

    /// The command and version, for messages.
    fn shown(&self) -> String {
        let name = if self.is_kubectl { "kubectl kustomize" } else { "kustomize build" };
        format!("{name} ({})", self.version)
    }

    fn command(&self, runner: &Runner<'_>, path: &str) -> Command {
        let mut command = match runner.through {
            Some((program, argument)) => {
                let mut command = Command::new(program);
                command.arg(argument).arg(&self.path);
                command
            }
            None => Command::new(&self.path),
        };
        command.arg(if self.is_kubectl { "kustomize" } else { "build" });
        command.arg(runner.directory.join(path)).current_dir(runner.directory);
        command
    }
}

/// Builds the kustomization `file` in `path`.
pub(super) fn build(
    tree: &Tree,
    path: &str,
    file: &str,
    program: Option<&Program>,
    runner: &Runner<'_>,
    warnings: &mut Vec<Warning>,
) -> Result<(Vec<Value>, RendererVersion), RenderError> {
    kustomization::look_through(tree, path, file)?;
    let Some(program) = program else {
        return Err(RenderError::ProgramMissing { path: path.to_owned() });
    };
    write_files(tree, runner.directory)?;
    let output = run(program, runner, path)?;
    let name = format!("output of {} for {path}", program.shown());
    let values = yaml::read_within(&mut YamlBudget::default(), &name, &output, warnings)?;
    Ok((values, program.renderer()))
}

fn run(program: &Program, runner: &Runner<'_>, path: &str) -> Result<Vec<u8>, RenderError> {
    // Below the limit, so that the collector of Go runs before an allocation fails.
    let collected_bytes = runner.memory_bytes_max / 4 * 3;
    let finished = program::run(Run {
        command: program.command(runner, path),
        input: None,
        environment: vec![
            ("GOMEMLIMIT", collected_bytes.to_string()),
            ("GOMAXPROCS", RENDERER_THREADS_MAX.to_owned()),
        ],
        group: if runner.through.is_some() { Group::Shared } else { Group::Own },
        time: runner.time,
        output_bytes_max: runner.output_bytes_max,
    });
    let (path, name) = (path.to_owned(), program.shown());
    let Finished { status, output, errors } = match finished {
        Ok(finished) => finished,
        Err(Unfinished::Start(source)) => {
            return Err(RenderError::files("run", &program.path, source));
        }
        Err(Unfinished::TimedOut) => {
            return Err(RenderError::TimedOut { path, limit_seconds: runner.time.as_secs() });
        }
        Err(Unfinished::TooMuch) => {
            let limit = runner.output_bytes_max;
            let detail = format!("{name} wrote more than {limit} bytes: make the overlay smaller");
            return Err(RenderError::Limit { path, detail });
        }
    };
    if status.success() {
        return Ok(output);
    }
    if let Some(limit) = exceeded(status, &errors) {
        let detail = limit.detail(&name, runner.memory_bytes_max);
        return Err(RenderError::Limit { path, detail });
    }
    if status.code() == Some(EXECUTE_FAILED.into()) {
        let source = std::io::Error::other(one_line(&errors));
        return Err(RenderError::files("run", &program.path, source));
    }
    if status.code().is_none() {
        return Err(RenderError::ProgramEnded { path, program: name });
    }
    let place = format!("{}/", runner.directory.display());
    let detail = one_line(&errors.replace(&place, ""));
    Err(RenderError::ProgramFailed { path, program: name, detail })
}

/// Writes the files into `directory`.
fn write_files(tree: &Tree, directory: &Path) -> Result<(), RenderError> {
    for (path, bytes) in tree.iter() {
        let place = directory.join(path);
        let parent = place.parent().unwrap_or(directory);
        std::fs::create_dir_all(parent)
            .map_err(|error| RenderError::files("create", parent, error))?;
        std::fs::write(&place, bytes)
            .map_err(|error| RenderError::files("write", &place, error))?;
    }
    Ok(())
}
