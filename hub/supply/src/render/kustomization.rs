//! Looks through kustomizations, for messages that say more than those of Kustomize.
//!
//! What would be fetched or would run another program is refused by name. Isolation, not this, keeps Kustomize from
//! doing so.

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde_json::Value;

use super::RenderError;
use crate::source::Tree;
use crate::text::one_line;
use crate::yaml::{self, YamlBudget};

/// Names that Kustomize gives its file, in the order it looks for them.
pub const KUSTOMIZATION_FILES: [&str; 3] =
    ["kustomization.yaml", "kustomization.yml", "Kustomization"];
/// Most kustomizations that may lead into each other.
const KUSTOMIZATIONS_MAX: usize = 500;

/// Fields whose entries are files or directories.
const DIRECTORY_FIELDS: [&str; 3] = ["resources", "bases", "components"];
const FILE_FIELDS: [&str; 6] =
    ["crds", "configurations", "transformers", "generators", "validators", "patchesStrategicMerge"];
const PATH_FIELDS: [&str; 3] = ["patches", "patchesJson6902", "replacements"];
const GENERATOR_FIELDS: [&str; 2] = ["configMapGenerator", "secretGenerator"];
const PLUGIN_FIELDS: [&str; 3] = ["helmCharts", "helmChartInflationGenerator", "helmGlobals"];

/// The kustomization in `directory`, with its whole path.
pub(super) fn file_in(tree: &Tree, directory: &str) -> Option<String> {
    let paths = KUSTOMIZATION_FILES.iter().map(|name| format!("{directory}/{name}"));
    paths.into_iter().find(|path| tree.get(path).is_some())
}

/// Walk from kustomization to kustomization and refuse what needs more than the files of the tree.
pub(super) fn look_through(tree: &Tree, path: &str, file: &str) -> Result<(), RenderError> {
    let mut seen = BTreeSet::from([path.to_owned()]);
    let mut open = vec![(path.to_owned(), file.to_owned())];
    let mut budget = YamlBudget::default();
    while let Some((directory, file)) = open.pop() {
        if seen.len() > KUSTOMIZATIONS_MAX {
            return Err(RenderError::TooDeep { file, max: KUSTOMIZATIONS_MAX });
        }
        let bytes = tree.get(&file).unwrap_or_default();
        for value in yaml::read_within(&mut budget, &file, bytes, &mut Vec::new())? {
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
            if fields(&self.value, field).next().is_some() {
                let field = Cow::Borrowed(field);
                return Err(RenderError::Plugin { file: self.file.to_owned(), field });
            }
        }
        let mut directories = Vec::new();
        for entry in DIRECTORY_FIELDS.iter().flat_map(|field| texts(&self.value, field)) {
            if let Some(directory) = self.directory_of(entry)? {
                directories.push(directory);
            }
        }
        // Configuration of plugins may stand in the kustomization itself, over several lines.
        for entry in FILE_FIELDS.iter().flat_map(|field| texts(&self.value, field)) {
            if entry.contains('\n') {
                continue;
            }
            if let Some(directory) = self.directory_of(entry)? {
                directories.push(directory);
            }
        }
        for entry in PATH_FIELDS.iter().flat_map(|field| items(&self.value, field)) {
            for path in texts(entry, "path") {
                self.directory_of(path)?;
            }
        }
        for entry in GENERATOR_FIELDS.iter().flat_map(|field| items(&self.value, field)) {
            for source in ["files", "envs", "env"].iter().flat_map(|field| texts(entry, field)) {
                let path = source.split_once('=').map_or(source, |(_, path)| path);
                self.directory_of(path)?;
            }
        }
        for openapi in fields(&self.value, "openapi") {
            for path in texts(openapi, "path") {
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
}

/// The values of a field, whose name Kustomize reads without regard to case.
fn fields<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    let name = folded(name);
    let fields = value.as_object().into_iter().flatten();
    fields.filter(move |(key, _)| folded(key) == name).map(|(_, value)| value)
}

/// A name as Go's JSON reader compares it: two letters outside ASCII fold to ASCII ones.
fn folded(name: &str) -> String {
    let fold = |character: char| match character {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    name.chars().map(fold).collect()
}

/// The items of a field that is a list.
fn items<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    fields(value, field).filter_map(Value::as_array).flatten()
}

/// The texts of a field that is a text or a list of texts.
fn texts<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a str> {
    fields(value, field).flat_map(|value| {
        let many = value.as_array().into_iter().flatten().filter_map(Value::as_str);
        value.as_str().into_iter().chain(many)
    })
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
