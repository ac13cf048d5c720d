//! The files of one commit that matter here, in memory: `attest.yaml`, `.attest/` and the directories asked for.
//!
//! Everything is checked by name before a byte is kept. Nothing is filtered, expanded or followed: a symbolic link,
//! a submodule or a Git LFS pointer is refused, and only inside what is read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gix::bstr::{BStr, ByteSlice as _};

use super::error::SourceError;

/// File that describes the application, at the root of the repository.
pub const RECIPE_FILE: &str = "attest.yaml";
/// Directory of receipts, renderings and key hints, at the root of the repository.
pub const ATTEST_DIRECTORY: &str = ".attest";
/// Newest release directories that are read, per application.
pub const RECEIPT_DIRECTORIES_MAX: usize = 100;
/// Deepest path that is read, in components.
pub const PATH_DEPTH_MAX: usize = 32;
/// Longest path that is read, in bytes.
pub const PATH_BYTES_MAX: usize = 1024;

const RECEIPTS_PREFIX: &str = ".attest/receipts/";
const LFS_POINTER_START: &[u8] = b"version https://git-lfs.github.com/spec/";
const LFS_POINTER_BYTES_MAX: usize = 1024;

/// How much of a repository is read. Each limit is refused by name when it is passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that a fetch may bring, as packed.
    pub pack_bytes_max: u64,
    /// Bytes of all files together.
    pub tree_bytes_max: u64,
    /// Number of files.
    pub files_max: usize,
    /// Entries looked at while listing, before old receipts are left out.
    pub entries_max: usize,
    /// Bytes of one file.
    pub blob_bytes_max: u64,
}

impl Default for Limits {
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

/// Files of one commit, or of a work tree, by path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    files: BTreeMap<String, Arc<[u8]>>,
    git_commit: Option<String>,
    git_tree: Option<String>,
    source_root: Option<String>,
}

impl Tree {
    /// A tree of given files, as tests and generators need it. It belongs to no commit.
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

    /// Bytes of one file.
    pub fn get(&self, path: &str) -> Option<&[u8]> {
        self.files.get(path).map(|bytes| &**bytes)
    }

    /// Every file, sorted by path.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.files.iter().map(|(path, bytes)| (path.as_str(), &**bytes))
    }

    /// Files below `directory` at any depth, with their whole path, sorted.
    pub fn under<'a>(&'a self, directory: &str) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let prefix = format!("{}/", directory.trim_end_matches('/'));
        let first = prefix.clone();
        self.files
            .range(first..)
            .take_while(move |(path, _)| path.starts_with(&prefix))
            .map(|(path, bytes)| (path.as_str(), &**bytes))
    }

    /// Whether any file lies below `directory`.
    pub fn has_directory(&self, directory: &str) -> bool {
        self.under(directory).next().is_some()
    }

    /// Number of files.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there is no file.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Full id of the commit; absent for a work tree without one.
    pub fn git_commit(&self) -> Option<&str> {
        self.git_commit.as_deref()
    }

    /// Full id of the Git tree at the source root in that commit; absent when there is no source root.
    pub fn git_tree(&self) -> Option<&str> {
        self.git_tree.as_deref()
    }

    /// `sourceRoot` of `attest.yaml`, when it has one that can be read.
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

/// `./k8s/base/` → `k8s/base`.
///
/// # Errors
/// [`SourceError::TreePath`] for absolute, empty, root, `.attest` and escaping paths.
pub fn clean_directory(text: &str) -> Result<String, SourceError> {
    let refuse = |problem: &str| {
        Err(SourceError::TreePath { path: text.to_owned(), problem: problem.to_owned() })
    };
    if text.starts_with('/') {
        return refuse("it is absolute; write it relative to the root of the repository");
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.is_empty() {
        return refuse("it is the root of the repository; name a directory");
    }
    if parts.first() == Some(&ATTEST_DIRECTORY) {
        return refuse("`.attest` holds what is signed, not what is deployed; name a directory");
    }
    check_path(parts.join("/").as_bytes().as_bstr())
}

/// What stands at a path, before its bytes are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Symlink,
    Submodule,
}

/// One listed path with what is needed to read it.
#[derive(Debug)]
pub(crate) struct Listed<H> {
    pub(crate) path: String,
    pub(crate) kind: Kind,
    pub(crate) handle: H,
}

/// Gathers a listing within its limit.
#[derive(Debug)]
pub(crate) struct Listing<H> {
    entries: Vec<Listed<H>>,
    entries_max: usize,
}

impl<H> Listing<H> {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self { entries: Vec::new(), entries_max: limits.entries_max }
    }

    pub(crate) fn add(&mut self, path: &BStr, kind: Kind, handle: H) -> Result<(), SourceError> {
        if self.entries.len() >= self.entries_max {
            return Err(SourceError::LimitExceeded {
                what: "the number of entries below the directories that are read".to_owned(),
                limit: self.entries_max as u64,
                unit: "entries",
                remedy: "choose a smaller `sourceRoot`",
            });
        }
        self.entries.push(Listed { path: check_path(path)?, kind, handle });
        Ok(())
    }

    /// Read every entry that is wanted. `read` is asked for a size first, then for bytes.
    pub(crate) fn read(
        self,
        limits: &Limits,
        size: impl Fn(&H) -> Result<u64, SourceError>,
        read: impl Fn(&H) -> Result<Vec<u8>, SourceError>,
    ) -> Result<Tree, SourceError> {
        let outdated = outdated_receipts(self.entries.iter().map(|entry| entry.path.as_str()));
        let mut files = BTreeMap::new();
        let mut bytes_total = 0_u64;
        for Listed { path, kind, handle } in self.entries {
            if release_of(&path).is_some_and(|release| outdated.contains(&release)) {
                continue;
            }
            match kind {
                Kind::File => {}
                Kind::Symlink => return Err(SourceError::TreeSymlink { path }),
                Kind::Submodule => return Err(SourceError::TreeSubmodule { path }),
            }
            let size = size(&handle)?;
            bytes_total = bytes_total.saturating_add(size);
            check_sizes(limits, &path, size, bytes_total, files.len())?;
            let bytes = read(&handle)?;
            if bytes.len() < LFS_POINTER_BYTES_MAX && bytes.starts_with(LFS_POINTER_START) {
                return Err(SourceError::TreeLfsPointer { path });
            }
            if files.insert(path.clone(), Arc::from(bytes)).is_some() {
                return Err(SourceError::TreePath {
                    path,
                    problem: "it is there twice".to_owned(),
                });
            }
        }
        Ok(Tree { files, ..Tree::default() })
    }
}

fn check_sizes(
    limits: &Limits,
    path: &str,
    size: u64,
    bytes_total: u64,
    files: usize,
) -> Result<(), SourceError> {
    let over = |what: String, limit: u64, unit, remedy| {
        Err(SourceError::LimitExceeded { what, limit, unit, remedy })
    };
    if size > limits.blob_bytes_max {
        let remedy = "keep large files out of the source root and of .attest";
        return over(
            format!("file {path:?} ({size} bytes)"),
            limits.blob_bytes_max,
            "bytes",
            remedy,
        );
    }
    if bytes_total > limits.tree_bytes_max {
        let what = format!("the size of all files together (at {path:?})");
        return over(what, limits.tree_bytes_max, "bytes", "choose a smaller `sourceRoot`");
    }
    if files >= limits.files_max {
        let what = format!("the number of files (at {path:?})");
        return over(what, limits.files_max as u64, "files", "choose a smaller `sourceRoot`");
    }
    Ok(())
}

/// Refuse what no file system should be given, and what would not be the same path everywhere.
pub(crate) fn check_path(path: &BStr) -> Result<String, SourceError> {
    let refuse = |problem: String| {
        Err(SourceError::TreePath { path: path.to_str_lossy().into_owned(), problem })
    };
    if path.len() > PATH_BYTES_MAX {
        return refuse(format!("it is longer than {PATH_BYTES_MAX} bytes"));
    }
    if path.split(|byte| *byte == b'/').count() > PATH_DEPTH_MAX {
        return refuse(format!("it is deeper than {PATH_DEPTH_MAX} directories"));
    }
    if path.bytes().any(|byte| byte.is_ascii_control()) {
        return refuse("it has a control character".to_owned());
    }
    let options = gix::validate::path::component::Options {
        protect_windows: true,
        protect_hfs: true,
        protect_ntfs: true,
    };
    for component in path.split(|byte| *byte == b'/') {
        let component = component.as_bstr();
        if let Err(problem) = gix::validate::path::component(component, None, options) {
            return refuse(problem.to_string());
        }
    }
    match path.to_str() {
        Ok(path) => Ok(path.to_owned()),
        Err(_) => refuse("it is not UTF-8".to_owned()),
    }
}

/// `.attest/receipts/<application>/<counter>/…` → (application, counter). Other names there are read as they are.
fn release_of(path: &str) -> Option<(String, u64)> {
    let mut parts = path.strip_prefix(RECEIPTS_PREFIX)?.splitn(3, '/');
    let application = parts.next()?;
    let counter = parts.next()?.parse().ok()?;
    parts.next()?;
    Some((application.to_owned(), counter))
}

/// Releases beyond the newest [`RECEIPT_DIRECTORIES_MAX`] of their application.
fn outdated_receipts<'a>(paths: impl Iterator<Item = &'a str>) -> BTreeSet<(String, u64)> {
    let mut counters: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    for (application, counter) in paths.filter_map(release_of) {
        counters.entry(application).or_default().insert(counter);
    }
    let outdated_of = |(application, counters): (String, BTreeSet<u64>)| {
        let outdated = counters.into_iter().rev().skip(RECEIPT_DIRECTORIES_MAX);
        outdated.map(|counter| (application.clone(), counter)).collect::<Vec<_>>()
    };
    counters.into_iter().flat_map(outdated_of).collect()
}

/// Directories without those that lie below another of them.
pub(crate) fn outermost(mut directories: Vec<String>) -> Vec<String> {
    directories.sort();
    directories.dedup();
    let mut kept: Vec<String> = Vec::new();
    for directory in directories {
        let inside = |outer: &String| directory.starts_with(&format!("{outer}/"));
        if !kept.iter().any(inside) {
            kept.push(directory);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_leave_or_disguise_are_refused() {
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
    fn a_directory_is_cleaned_and_never_the_root_or_the_receipts() {
        assert_eq!(clean_directory("./k8s/base/").unwrap(), "k8s/base");
        for text in ["", ".", "/k8s", "k8s/../..", "..", ".attest", "./.attest/rendered"] {
            assert!(clean_directory(text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_the_newest_receipts_of_each_application_are_read() {
        let mut listing = Listing::new(&Limits::default());
        for counter in 1..=RECEIPT_DIRECTORIES_MAX + 2 {
            let path = format!(".attest/receipts/web/{counter}/release.json");
            listing.add(path.as_bytes().as_bstr(), Kind::File, ()).unwrap();
        }
        listing.add(b".attest/receipts/api/1/x".as_bstr(), Kind::File, ()).unwrap();

        let tree = listing.read(&Limits::default(), |()| Ok(1), |()| Ok(vec![0])).unwrap();

        assert_eq!(tree.len(), RECEIPT_DIRECTORIES_MAX + 1);
        assert!(tree.get(".attest/receipts/web/2/release.json").is_none());
        assert!(tree.get(".attest/receipts/web/3/release.json").is_some());
        assert!(tree.get(".attest/receipts/api/1/x").is_some());
    }

    #[test]
    fn a_directory_does_not_take_its_neighbours_of_the_same_beginning() {
        let tree = Tree::from_files([("k8s/a", ""), ("k8s-old/b", ""), ("k8s/c/d", "")]);

        let paths: Vec<&str> = tree.under("k8s").map(|(path, _)| path).collect();

        assert_eq!(paths, ["k8s/a", "k8s/c/d"]);
        assert_eq!(outermost(vec!["k8s/a".into(), "k8s-b".into(), "k8s".into()]), ["k8s", "k8s-b"]);
    }
}
