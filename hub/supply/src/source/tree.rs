//! The requested files of one commit in memory: `attest.yaml`, `.attest/` and the requested directories.
//!
//! Every name is checked before a byte is kept. Nothing is filtered, expanded or followed: a symbolic link, a submodule
//! or a Git LFS pointer is an error, but only where files are read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gix::bstr::{BStr, ByteSlice as _};

use super::error::SourceError;

/// File that describes the application, in the root directory of the repository.
pub const RECIPE_FILE: &str = "attest.yaml";
/// Directory of receipts, renderings and key hints, in the root directory of the repository.
pub const ATTEST_DIRECTORY: &str = ".attest";
/// Maximum number of release directories that are read per application, newest first.
pub const RECEIPT_DIRECTORIES_MAX: usize = 100;
/// Maximum depth of a path, in components.
pub const PATH_DEPTH_MAX: usize = 32;
/// Maximum length of a path, in bytes.
pub const PATH_BYTES_MAX: usize = 1024;

const RECEIPTS_PREFIX: &str = ".attest/receipts/";
const LFS_POINTER_START: &[u8] = b"version https://git-lfs.github.com/spec/";
const LFS_POINTER_BYTES_MAX: usize = 1024;

/// Limits for reading a repository. An exceeded limit is an error that names the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RepositoryLimits {
    /// Maximum size of a fetched pack, in bytes.
    pub pack_bytes_max: u64,
    /// Maximum size of all files together, in bytes.
    pub tree_bytes_max: u64,
    /// Maximum number of files.
    pub files_max: usize,
    /// Maximum number of listed entries, old receipts included.
    pub entries_max: usize,
    /// Maximum size of one file, in bytes.
    pub blob_bytes_max: u64,
}

impl Default for RepositoryLimits {
    fn default() -> Self {
        Self {
            pack_bytes_max: 256 * 1024 * 1024,
            tree_bytes_max: 64 * 1024 * 1024,
            files_max: 20_000,
            entries_max: 200_000,
            blob_bytes_max: 8 * 1024 * 1024,
        }
    }
}

/// Files of one commit or of a work tree, by path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    files: BTreeMap<String, Arc<[u8]>>,
    git_commit: Option<String>,
    git_tree: Option<String>,
    source_root: Option<String>,
}

impl Tree {
    /// Creates a tree of the given files. It belongs to no commit.
    pub fn from_files<P, B>(files: impl IntoIterator<Item = (P, B)>) -> Self
    where
        P: Into<String>,
        B: AsRef<[u8]>,
    {
        let files = files
            .into_iter()
            .map(|(path, bytes)| (path.into(), Arc::from(bytes.as_ref())))
            .collect();
        Self { files, ..Self::default() }
    }

    /// Returns the bytes of a file.
    pub fn get(&self, path: &str) -> Option<&[u8]> {
        self.files.get(path).map(|bytes| &**bytes)
    }

    /// Returns all files, sorted by path.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.files.iter().map(|(path, bytes)| (path.as_str(), &**bytes))
    }

    /// Returns the files below `directory` at any depth with their full paths, sorted.
    pub fn under<'a>(&'a self, directory: &str) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let prefix = format!("{}/", directory.trim_end_matches('/'));
        self.files
            .range(prefix.clone()..)
            .take_while(move |(path, _)| path.starts_with(&prefix))
            .map(|(path, bytes)| (path.as_str(), &**bytes))
    }

    /// Returns whether `directory` contains a file at any depth.
    pub fn has_directory(&self, directory: &str) -> bool {
        self.under(directory).next().is_some()
    }

    /// Returns the files whose paths satisfy `is_wanted`. They share their bytes with this tree and belong to no commit.
    pub(crate) fn filtered(&self, is_wanted: impl Fn(&str) -> bool) -> Self {
        let files = self.files.iter().filter(|(path, _)| is_wanted(path));
        let files = files.map(|(path, bytes)| (path.clone(), bytes.clone())).collect();
        Self { files, ..Self::default() }
    }

    /// Returns the number of files.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Returns whether there is no file.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Returns the full id of the commit; `None` for a work tree without one.
    pub fn git_commit(&self) -> Option<&str> {
        self.git_commit.as_deref()
    }

    /// Returns the full id of the Git tree at the source root in that commit; `None` without a source root.
    pub fn git_tree(&self) -> Option<&str> {
        self.git_tree.as_deref()
    }

    /// Returns `sourceRoot` of `attest.yaml`, if it is readable.
    pub fn source_root(&self) -> Option<&str> {
        self.source_root.as_deref()
    }

    pub(crate) fn with_origin(
        mut self,
        git_commit: Option<String>,
        git_tree: Option<String>,
        source_root: Option<String>,
    ) -> Self {
        (self.git_commit, self.git_tree, self.source_root) = (git_commit, git_tree, source_root);
        self
    }
}

/// Normalises the path of a directory: `./k8s/base/` becomes `k8s/base`.
///
/// # Errors
/// [`SourceError::TreePath`] for an absolute or empty path, for the root directory, for a path in `.attest`, and for a
/// path that leaves the repository.
pub fn clean_directory(text: &str) -> Result<String, SourceError> {
    if text.starts_with('/') {
        return Err(invalid_path(text, "it is absolute; write it relative to the root directory"));
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.is_empty() {
        return Err(invalid_path(text, "it is the root of the repository; use a subdirectory"));
    }
    if parts.first() == Some(&ATTEST_DIRECTORY) {
        let problem = "`.attest` contains signed files, not manifests; use another directory";
        return Err(invalid_path(text, problem));
    }
    check_path(parts.join("/").as_bytes().as_bstr())
}

/// Kind of an entry that is not a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    File,
    Symlink,
    Submodule,
}

/// A listed path and the handle with which it is read.
#[derive(Debug)]
struct ListedFile<H> {
    path: String,
    kind: FileKind,
    handle: H,
}

/// Collects paths up to a limit, then reads them.
#[derive(Debug)]
pub(crate) struct FileListing<H> {
    entries: Vec<ListedFile<H>>,
    entries_max: usize,
}

impl<H> FileListing<H> {
    pub(crate) fn new(limits: &RepositoryLimits) -> Self {
        Self { entries: Vec::new(), entries_max: limits.entries_max }
    }

    /// Adds a path.
    ///
    /// # Errors
    /// [`SourceError::LimitExceeded`] for too many entries, [`SourceError::TreePath`] for an invalid path.
    pub(crate) fn add(
        &mut self,
        path: &BStr,
        kind: FileKind,
        handle: H,
    ) -> Result<(), SourceError> {
        if self.entries.len() >= self.entries_max {
            return Err(SourceError::LimitExceeded {
                subject: "the number of entries in the read directories".to_owned(),
                limit: self.entries_max as u64,
                unit: "entries",
                remedy: "choose a smaller `sourceRoot`",
            });
        }
        match check_path(path) {
            Ok(path) => self.entries.push(ListedFile { path, kind, handle }),
            // Only names of files that can be manifests are refused; other files are left out.
            Err(_) if is_written_by_git(path) && !may_be_a_manifest(path) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Reads every entry except old receipts. `size_of` is called before `read`.
    ///
    /// # Errors
    /// [`SourceError`] for an exceeded limit, for an entry that is not a plain file, and for a repeated path.
    pub(crate) fn read(
        self,
        limits: &RepositoryLimits,
        size_of: impl Fn(&H) -> Result<u64, SourceError>,
        read: impl Fn(&H) -> Result<Vec<u8>, SourceError>,
    ) -> Result<Tree, SourceError> {
        let outdated = outdated_releases(self.entries.iter().map(|entry| entry.path.as_str()));
        let mut files = BTreeMap::new();
        let mut bytes_total = 0_u64;
        for ListedFile { path, kind, handle } in self.entries {
            if release_of_path(&path).is_some_and(|release| outdated.contains(&release)) {
                continue;
            }
            match kind {
                FileKind::File => {}
                FileKind::Symlink => return Err(SourceError::TreeSymlink { path }),
                FileKind::Submodule => return Err(SourceError::TreeSubmodule { path }),
            }
            let size = size_of(&handle)?;
            bytes_total = bytes_total.saturating_add(size);
            check_sizes(limits, &path, size, bytes_total, files.len())?;
            let bytes = read(&handle)?;
            if bytes.len() < LFS_POINTER_BYTES_MAX && bytes.starts_with(LFS_POINTER_START) {
                return Err(SourceError::TreeLfsPointer { path });
            }
            if files.insert(path.clone(), Arc::from(bytes)).is_some() {
                return Err(invalid_path(&path, "it occurs twice; remove one of the entries"));
            }
        }
        Ok(Tree { files, ..Tree::default() })
    }
}

fn check_sizes(
    limits: &RepositoryLimits,
    path: &str,
    size: u64,
    bytes_total: u64,
    files: usize,
) -> Result<(), SourceError> {
    let (subject, limit, unit, remedy) = if size > limits.blob_bytes_max {
        let subject = format!("the size of file {path:?} ({size} bytes)");
        let remedy = "keep large files out of the source root and of .attest";
        (subject, limits.blob_bytes_max, "bytes", remedy)
    } else if bytes_total > limits.tree_bytes_max {
        let subject = format!("the size of all files together (at {path:?})");
        (subject, limits.tree_bytes_max, "bytes", "choose a smaller `sourceRoot`")
    } else if files >= limits.files_max {
        let subject = format!("the number of files (at {path:?})");
        (subject, limits.files_max as u64, "files", "choose a smaller `sourceRoot`")
    } else {
        return Ok(());
    };
    Err(SourceError::LimitExceeded { subject, limit, unit, remedy })
}

/// Returns whether Git writes a file of this name, so that it is only a name that not every system has.
fn is_written_by_git(path: &BStr) -> bool {
    let options = gix::validate::path::component::Options {
        protect_windows: false,
        protect_hfs: true,
        protect_ntfs: true,
    };
    path.split(|byte| *byte == b'/')
        .all(|component| gix::validate::path::component(component.as_bstr(), None, options).is_ok())
}

/// Returns whether a file of this name may be rendered, so that leaving it out would leave out an object.
fn may_be_a_manifest(path: &BStr) -> bool {
    let lower = path.to_ascii_lowercase();
    [&b".yaml"[..], b".yml", b".json"].iter().any(|suffix| lower.ends_with(suffix))
}

/// Rejects a path that must not be written to a file system or differs between file systems.
///
/// # Errors
/// [`SourceError::TreePath`] with the rule that the path violates.
pub(crate) fn check_path(path: &BStr) -> Result<String, SourceError> {
    let Some(problem) = path_problem(path) else {
        return Ok(path.to_str_lossy().into_owned());
    };
    Err(invalid_path(&path.to_str_lossy(), &format!("{problem}; rename it")))
}

fn path_problem(path: &BStr) -> Option<String> {
    if path.len() > PATH_BYTES_MAX {
        return Some(format!("it is longer than {PATH_BYTES_MAX} bytes"));
    }
    if path.split(|byte| *byte == b'/').count() > PATH_DEPTH_MAX {
        return Some(format!("it is deeper than {PATH_DEPTH_MAX} directories"));
    }
    if path.bytes().any(|byte| byte.is_ascii_control()) {
        return Some("it contains a control character".to_owned());
    }
    let options = gix::validate::path::component::Options {
        protect_windows: true,
        protect_hfs: true,
        protect_ntfs: true,
    };
    for component in path.split(|byte| *byte == b'/') {
        if let Err(error) = gix::validate::path::component(component.as_bstr(), None, options) {
            return Some(error.to_string());
        }
    }
    path.to_str().is_err().then(|| "it is not UTF-8".to_owned())
}

fn invalid_path(path: &str, problem: &str) -> SourceError {
    SourceError::TreePath { path: path.to_owned(), problem: problem.to_owned() }
}

/// Application and counter in `.attest/receipts/<application>/<counter>/…`; `None` for other paths.
fn release_of_path(path: &str) -> Option<(String, u64)> {
    let mut parts = path.strip_prefix(RECEIPTS_PREFIX)?.splitn(3, '/');
    let application = parts.next()?;
    let counter = parts.next()?.parse().ok()?;
    parts.next()?;
    Some((application.to_owned(), counter))
}

/// Returns the releases beyond the newest [`RECEIPT_DIRECTORIES_MAX`] of each application.
fn outdated_releases<'a>(paths: impl Iterator<Item = &'a str>) -> BTreeSet<(String, u64)> {
    let mut counters: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    for (application, counter) in paths.filter_map(release_of_path) {
        counters.entry(application).or_default().insert(counter);
    }
    let mut outdated = BTreeSet::new();
    for (application, counters) in counters {
        for counter in counters.into_iter().rev().skip(RECEIPT_DIRECTORIES_MAX) {
            outdated.insert((application.clone(), counter));
        }
    }
    outdated
}

/// Removes directories that are inside another one of the list.
pub(crate) fn outermost(mut directories: Vec<String>) -> Vec<String> {
    directories.sort();
    directories.dedup();
    let mut kept: Vec<String> = Vec::new();
    for directory in directories {
        if !kept.iter().any(|outer| directory.starts_with(&format!("{outer}/"))) {
            kept.push(directory);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_leave_the_repository_or_disguise_themselves_are_rejected() {
        for path in [
            "../x",
            "a/../b",
            "a/./b",
            "a//b",
            "/a",
            "",
            "a/.git/config",
            "a/.GIT/config",
            "git~1/x",
            "a\\b",
            "a/nul",
            "a/CON.yaml",
            "a\u{0}b",
            "a/.g\u{200c}it/x",
            "a:b",
        ] {
            assert_eq!(
                check_path(path.as_bytes().as_bstr()).unwrap_err().reason().as_str(),
                "TreePath",
                "{path}"
            );
        }
        assert!(check_path(b"a/\xff".as_bstr()).is_err());
        assert!(check_path("k8s/base/größe.yaml".as_bytes().as_bstr()).is_ok());
        let deep = vec!["a"; PATH_DEPTH_MAX + 1].join("/");
        assert!(check_path(deep.as_bytes().as_bstr()).is_err());
    }

    #[test]
    fn a_directory_is_normalised_and_never_the_root_or_the_receipts() {
        assert_eq!(clean_directory("./k8s/base/").unwrap(), "k8s/base");
        for text in ["", ".", "/k8s", "k8s/../..", "..", ".attest", "./.attest/rendered"] {
            assert!(clean_directory(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_name_is_judged_only_where_the_file_may_be_a_manifest() {
        let mut listing = FileListing::new(&RepositoryLimits::default());

        for name in ["k8s/web.yaml", "k8s/aux.txt", "docs/a:b.md", "docs/line\nbreak"] {
            listing.add(name.as_bytes().as_bstr(), FileKind::File, ()).unwrap();
        }
        let error = listing.add(b"k8s/aux.YAML".as_bstr(), FileKind::File, ()).unwrap_err();
        assert!(listing.add(b"docs/../x".as_bstr(), FileKind::File, ()).is_err());
        let tree =
            listing.read(&RepositoryLimits::default(), |()| Ok(1), |()| Ok(vec![b'x'])).unwrap();

        assert_eq!(error.reason().as_str(), "TreePath");
        let paths: Vec<&str> = tree.iter().map(|(path, _)| path).collect();
        assert_eq!(paths, ["k8s/web.yaml"]);
    }

    #[test]
    fn only_the_newest_receipts_of_each_application_are_read() {
        let mut listing = FileListing::new(&RepositoryLimits::default());
        for counter in 1..=RECEIPT_DIRECTORIES_MAX + 2 {
            let path = format!(".attest/receipts/web/{counter}/release.json");
            listing.add(path.as_bytes().as_bstr(), FileKind::File, ()).unwrap();
        }
        listing.add(b".attest/receipts/api/1/x".as_bstr(), FileKind::File, ()).unwrap();

        let tree =
            listing.read(&RepositoryLimits::default(), |()| Ok(1), |()| Ok(vec![0])).unwrap();

        assert_eq!(tree.len(), RECEIPT_DIRECTORIES_MAX + 1);
        assert!(tree.get(".attest/receipts/web/2/release.json").is_none());
        assert!(tree.get(".attest/receipts/web/3/release.json").is_some());
        assert!(tree.get(".attest/receipts/api/1/x").is_some());
    }

    #[test]
    fn a_directory_does_not_include_siblings_with_the_same_prefix() {
        let tree = Tree::from_files([("k8s/a", ""), ("k8s-old/b", ""), ("k8s/c/d", "")]);

        let paths: Vec<&str> = tree.under("k8s").map(|(path, _)| path).collect();

        assert_eq!(paths, ["k8s/a", "k8s/c/d"]);
        assert_eq!(outermost(vec!["k8s/a".into(), "k8s-b".into(), "k8s".into()]), ["k8s", "k8s-b"]);
    }
}
