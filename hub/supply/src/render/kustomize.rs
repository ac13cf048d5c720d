//! Kustomize, by the program that users know: `kustomize build` or `kubectl kustomize`.
//!
//! The files are copied to a directory of their own first, and every kustomization on the way is looked through:
//! what would be fetched or would run another program is refused by name before anything is run.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::program::{self, Finished, OUTPUT_BYTES_MAX, RENDER_SECONDS_MAX, Unfinished};
use super::{RenderError, RendererVersion};
use crate::source::{ATTEST_DIRECTORY, RECIPE_FILE, Tree};
use crate::text::one_line;
use crate::yaml::{self, Warning};

/// Names that Kustomize gives its file, in the order it looks for them.
pub const KUSTOMIZATION_FILES: [&str; 3] =
    ["kustomization.yaml", "kustomization.yml", "Kustomization"];
/// Most kustomizations that may lead into each other.
const KUSTOMIZATIONS_MAX: usize = 500;
/// How long a program may take to tell its version, in seconds.
const VERSION_SECONDS_MAX: u64 = 20;
const VERSION_BYTES_MAX: usize = 64 * 1024;

/// Fields whose entries are files or directories.
const DIRECTORY_FIELDS: [&str; 3] = ["resources", "bases", "components"];
const FILE_FIELDS: [&str; 6] =
    ["crds", "configurations", "transformers", "generators", "validators", "patchesStrategicMerge"];
const PATH_FIELDS: [&str; 3] = ["patches", "patchesJson6902", "replacements"];
const GENERATOR_FIELDS: [&str; 2] = ["configMapGenerator", "secretGenerator"];
const PLUGIN_FIELDS: [&str; 3] = ["helmCharts", "helmChartInflationGenerator", "helmGlobals"];

/// The program that builds kustomizations, if there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kustomize {
    program: Option<Program>,
    time: Duration,
    output_bytes_max: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Program {
    path: PathBuf,
    is_kubectl: bool,
    version: String,
}

impl Kustomize {
    /// The first of `kustomize` and `kubectl` that is in `search` (the value of `PATH`) and tells its version.
    pub fn find(search: Option<&OsStr>) -> Self {
        let directories: Vec<PathBuf> =
            search.map(|search| std::env::split_paths(search).collect()).unwrap_or_default();
        let candidates = ["kustomize", "kubectl"].into_iter().flat_map(|name| {
            directories.iter().filter(|path| path.is_absolute()).map(move |path| path.join(name))
        });
        let program = candidates.filter(|path| path.is_file()).find_map(|path| Program::at(&path));
        Self::with(program)
    }

    /// The program at `path`; it is taken for kubectl when its name begins so.
    pub fn at(path: &Path) -> Self {
        Self::with(Program::at(path))
    }

    /// No program: only plain YAML can be rendered.
    pub fn none() -> Self {
        Self::with(None)
    }

    /// Give up after `time`, or after so much output.
    #[must_use]
    pub fn with_limits(mut self, time: Duration, output_bytes_max: usize) -> Self {
        (self.time, self.output_bytes_max) = (time, output_bytes_max);
        self
    }

    /// Name and version as a release statement lists them; nothing when there is no program.
    pub fn version(&self) -> Option<RendererVersion> {
        self.program.as_ref().map(|program| RendererVersion {
            name: "kustomize".to_owned(),
            version: program.version.clone(),
        })
    }

    fn with(program: Option<Program>) -> Self {
        let time = Duration::from_secs(RENDER_SECONDS_MAX);
        Self { program, time, output_bytes_max: OUTPUT_BYTES_MAX }
    }
}

impl Program {
    fn at(path: &Path) -> Option<Self> {
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
        let time = Duration::from_secs(VERSION_SECONDS_MAX);
        let Finished { status, output, .. } =
            program::run(command, time, VERSION_BYTES_MAX).ok()?;
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
}

/// The kustomization in `directory`, with its whole path.
pub(super) fn file_in(tree: &Tree, directory: &str) -> Option<String> {
    let paths = KUSTOMIZATION_FILES.iter().map(|name| format!("{directory}/{name}"));
    paths.into_iter().find(|path| tree.get(path).is_some())
}

pub(super) fn build(
    tree: &Tree,
    path: &str,
    file: &str,
    kustomize: &Kustomize,
    warnings: &mut Vec<Warning>,
) -> Result<(Vec<Value>, RendererVersion), RenderError> {
    look_through(tree, path, file)?;
    let (Some(program), Some(renderer)) = (&kustomize.program, kustomize.version()) else {
        return Err(RenderError::ProgramMissing { path: path.to_owned() });
    };
    let copy = copy(tree)?;
    let mut command = Command::new(&program.path);
    command.arg(if program.is_kubectl { "kustomize" } else { "build" });
    command.arg(copy.path().join(path)).current_dir(copy.path());
    let name = if program.is_kubectl { "kubectl kustomize" } else { "kustomize build" };
    let name = format!("{name} ({})", program.version);
    let path = path.to_owned();
    let finished = program::run(command, kustomize.time, kustomize.output_bytes_max);
    let Finished { status, output, errors } = finished.map_err(|unfinished| match unfinished {
        Unfinished::Start(source) => {
            RenderError::Files { action: "run", path: program.path.clone(), source }
        }
        Unfinished::TimedOut => RenderError::TimedOut {
            path: path.clone(),
            program: name.clone(),
            limit_seconds: kustomize.time.as_secs(),
        },
        Unfinished::TooMuch => RenderError::OutputTooLarge {
            path: path.clone(),
            program: name.clone(),
            limit: kustomize.output_bytes_max,
        },
    })?;
    if status.code().is_none() {
        return Err(RenderError::ProgramEnded { path, program: name });
    }
    if !status.success() {
        let place = format!("{}/", copy.path().display());
        let detail = one_line(&errors.replace(&place, ""));
        return Err(RenderError::ProgramFailed { path, program: name, detail });
    }
    let values = yaml::read(&format!("output of {name} for {path}"), &output, warnings)?;
    Ok((values, renderer))
}

/// The files in a directory of their own. What was signed before is not among them.
fn copy(tree: &Tree) -> Result<tempfile::TempDir, RenderError> {
    let failed =
        |action, path: &Path, source| RenderError::Files { action, path: path.to_owned(), source };
    let copy = tempfile::Builder::new().prefix("attest-render-").tempdir();
    let copy = copy.map_err(|error| failed("create", &tempfile::env::temp_dir(), error))?;
    let signed_before = format!("{ATTEST_DIRECTORY}/");
    for (path, bytes) in tree.iter() {
        if path == RECIPE_FILE || path.starts_with(&signed_before) {
            continue;
        }
        let place = copy.path().join(path);
        let directory = place.parent().unwrap_or_else(|| copy.path());
        std::fs::create_dir_all(directory).map_err(|error| failed("create", directory, error))?;
        std::fs::write(&place, bytes).map_err(|error| failed("write", &place, error))?;
    }
    Ok(copy)
}

/// Walk from kustomization to kustomization and refuse what needs more than the files of the tree.
fn look_through(tree: &Tree, path: &str, file: &str) -> Result<(), RenderError> {
    let mut seen = BTreeSet::from([path.to_owned()]);
    let mut open = vec![(path.to_owned(), file.to_owned())];
    while let Some((directory, file)) = open.pop() {
        if seen.len() > KUSTOMIZATIONS_MAX {
            return Err(RenderError::TooDeep { file, max: KUSTOMIZATIONS_MAX });
        }
        let bytes = tree.get(&file).unwrap_or_default();
        for value in yaml::read(&file, bytes, &mut Vec::new())? {
            let kustomization = Kustomization { tree, directory: &directory, file: &file, value };
            for next in kustomization.check()? {
                let Some(file) = file_in(tree, &next) else {
                    let entry = next;
                    return Err(RenderError::ResourceMissing { file, entry });
                };
                if seen.insert(next.clone()) {
                    open.push((next, file));
                }
            }
        }
    }
    Ok(())
}

struct Kustomization<'a> {
    tree: &'a Tree,
    directory: &'a str,
    file: &'a str,
    value: Value,
}

impl Kustomization<'_> {
    /// Directories it leads to.
    fn check(&self) -> Result<Vec<String>, RenderError> {
        for field in PLUGIN_FIELDS {
            if self.value.get(field).is_some() {
                return Err(RenderError::Plugin { file: self.file.to_owned(), field });
            }
        }
        let mut directories = Vec::new();
        for entry in DIRECTORY_FIELDS.iter().flat_map(|field| self.texts(field)) {
            if let Some(directory) = self.directory_of(entry)? {
                directories.push(directory);
            }
        }
        // Configuration of plugins may stand in the kustomization itself, over several lines.
        for field in FILE_FIELDS {
            for entry in self.texts(field).filter(|entry| !entry.contains('\n')) {
                if let Some(directory) = self.directory_of(entry)? {
                    directories.push(directory);
                }
            }
        }
        for entry in PATH_FIELDS.iter().flat_map(|field| self.items(field)) {
            if let Some(path) = entry.get("path").and_then(Value::as_str) {
                self.directory_of(path)?;
            }
        }
        for entry in GENERATOR_FIELDS.iter().flat_map(|field| self.items(field)) {
            for field in ["files", "envs", "env"] {
                for source in texts(entry.get(field)) {
                    let path = source.split_once('=').map_or(source, |(_, path)| path);
                    self.directory_of(path)?;
                }
            }
        }
        if let Some(path) = self.value.get("openapi").and_then(|openapi| openapi.get("path")) {
            for path in texts(Some(path)) {
                self.directory_of(path)?;
            }
        }
        Ok(directories)
    }

    /// The directory that an entry is, or nothing when it is a file.
    fn directory_of(&self, entry: &str) -> Result<Option<String>, RenderError> {
        let file = || self.file.to_owned();
        if is_remote(entry) {
            return Err(RenderError::Remote { file: file(), entry: one_line(entry) });
        }
        let missing = || RenderError::ResourceMissing { file: file(), entry: one_line(entry) };
        let path = join(self.directory, entry).ok_or_else(missing)?;
        if self.tree.get(&path).is_some() {
            return Ok(None);
        }
        if self.tree.has_directory(&path) { Ok(Some(path)) } else { Err(missing()) }
    }

    fn texts(&self, field: &str) -> impl Iterator<Item = &str> {
        texts(self.value.get(field))
    }

    fn items(&self, field: &str) -> impl Iterator<Item = &Value> {
        self.value.get(field).and_then(Value::as_array).into_iter().flatten()
    }
}

/// A text, or the texts of a list.
fn texts(value: Option<&Value>) -> impl Iterator<Item = &str> {
    let one = value.and_then(Value::as_str);
    let many = value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    one.into_iter().chain(many)
}

/// Whether Kustomize would take an entry for an address, whatever stands at that path.
fn is_remote(entry: &str) -> bool {
    let lower = entry.trim().to_ascii_lowercase();
    let begins = ["git::", "gh:", "github.com/", "github.com:", "file:", "git@"];
    lower.contains("://")
        || lower.contains("::")
        || lower.contains('@')
        || lower.contains("?ref=")
        || lower.contains("_git/")
        || lower.contains(".git/")
        || lower.ends_with(".git")
        || begins.iter().any(|start| lower.starts_with(start))
}

/// `entry` as seen from `directory`, or nothing when it leaves the tree.
fn join(directory: &str, entry: &str) -> Option<String> {
    if entry.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = directory.split('/').collect();
    for part in entry.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kustomize_would_fetch_is_told_from_a_path() {
        for entry in [
            "https://example.com/a.yaml",
            "git::ssh://x/y",
            "git@github.com:a/b",
            "github.com/a/b?ref=v1",
            "GitHub.com/a/b",
            "gh:a/b",
            "org-1@github.com:a/b",
            "ssh://x",
            "../b.git",
            "dev.azure.com/_git/x",
            "file:///etc",
        ] {
            assert!(is_remote(entry), "{entry}");
        }
        for entry in ["../base", "deployment.yaml", "./a/b.yaml", "github/x", "git"] {
            assert!(!is_remote(entry), "{entry}");
        }
    }

    #[test]
    fn entries_are_seen_from_their_kustomization() {
        assert_eq!(join("k8s/overlays/a", "../../base").as_deref(), Some("k8s/base"));
        assert_eq!(join("k8s", "./x.yaml").as_deref(), Some("k8s/x.yaml"));
        assert_eq!(join("k8s", "../../x"), None);
        assert_eq!(join("k8s", "/etc/passwd"), None);
    }
}
