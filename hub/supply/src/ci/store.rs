//! The files under `.attest/`: their paths, how they are written, and how long they are kept.
//!
//! This module does not verify: a stored release may have any author.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use attest_common::basics::envelope::{self, STATEMENT_TYPE};
use attest_common::basics::ids::{Digest, Timestamp};
use attest_common::documents::release::{RELEASE_TYPE, Release};
use attest_common::documents::statement::Statement;

use super::CiError;
use crate::recipe::Counter;
use crate::regular;
use crate::source::{ATTEST_DIRECTORY, Tree};

/// Number of releases whose receipts are kept, beside older ones that a current rendering needs.
pub const RELEASES_KEPT: usize = 20;

/// A file of a release directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedFile {
    pub name: String,
    pub bytes: Vec<u8>,
}

/// The `.attest` directory of one application.
#[derive(Clone, Debug)]
pub struct ReleaseStore {
    root: PathBuf,
    receipts: String,
    rendered: String,
    temporary: String,
}

/// A release that was written, with the files that it replaced.
#[must_use = "it is committed or rolled back"]
#[derive(Debug)]
pub struct ReleaseWrite {
    new_files: PathBuf,
    replaced_files: PathBuf,
    /// Renamed files, from and to, in order.
    renamed: Vec<(PathBuf, PathBuf)>,
}

impl ReleaseWrite {
    /// Removes the replaced files.
    ///
    /// # Errors
    /// [`CiError::Files`] if they cannot be removed.
    pub fn commit(self) -> Result<(), CiError> {
        remove_path(&self.new_files)?;
        remove_path(&self.replaced_files)
    }

    /// Restores the replaced files. It requires no disk space. A file that cannot be restored is kept.
    pub fn roll_back(self) {
        for (from, to) in self.renamed.iter().rev() {
            let _ = fs::rename(to, from);
        }
        let _ = remove_path(&self.new_files);
        // Only if it is empty: it may contain a file that could not be restored.
        let _ = fs::remove_dir(&self.replaced_files);
    }

    fn replace(&mut self, from: PathBuf, target: PathBuf) -> Result<(), CiError> {
        if target.symlink_metadata().is_ok() {
            self.set_aside(vec![target.clone()])?;
        }
        self.rename(from, target)
    }

    fn set_aside(&mut self, paths: Vec<PathBuf>) -> Result<(), CiError> {
        for path in paths {
            let aside = self.replaced_files.join(self.renamed.len().to_string());
            self.rename(path, aside)?;
        }
        Ok(())
    }

    fn rename(&mut self, from: PathBuf, to: PathBuf) -> Result<(), CiError> {
        fs::rename(&from, &to).map_err(|error| files_error("replace", &to, error))?;
        self.renamed.push((from, to));
        Ok(())
    }
}

/// A release as stored. It is not verified.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredRelease {
    /// Path of the release statement.
    pub path: String,
    pub envelope: Vec<u8>,
    pub statement: Statement,
    pub release: Release,
    /// Every file of its directory by name, including the release statement.
    pub files: Vec<(String, Vec<u8>)>,
}

impl ReleaseStore {
    /// Returns the store of `application` in the work tree at `root`.
    pub fn new(root: &Path, application: &str) -> Self {
        Self {
            root: root.to_owned(),
            receipts: format!("{ATTEST_DIRECTORY}/receipts/{application}"),
            rendered: format!("{ATTEST_DIRECTORY}/rendered/{application}"),
            temporary: format!("{ATTEST_DIRECTORY}/.{application}"),
        }
    }

    /// Returns the path of a rendering, relative to the root.
    pub fn rendering_path(&self, render: &str) -> String {
        format!("{}/{render}.jsonl", self.rendered)
    }

    /// Returns the path of a release's directory, relative to the root.
    pub fn release_path(&self, counter: u64) -> String {
        format!("{}/{counter}", self.receipts)
    }

    /// Returns the directories to stage, relative to the root.
    pub fn staged_directories(&self) -> [&str; 2] {
        [&self.receipts, &self.rendered]
    }

    /// Returns the counters of the releases in `tree` and on disk.
    ///
    /// # Errors
    /// [`CiError::Files`] if the directory cannot be listed.
    pub fn counters(&self, tree: &Tree) -> Result<BTreeSet<u64>, CiError> {
        let prefix = format!("{}/", self.receipts);
        let mut counters: BTreeSet<u64> = tree
            .under(&self.receipts)
            .filter_map(|(path, _)| path.strip_prefix(&prefix)?.split('/').next()?.parse().ok())
            .collect();
        counters.extend(self.counters_on_disk()?);
        Ok(counters)
    }

    /// Returns the releases in `tree`, newest first.
    pub fn releases(&self, tree: &Tree) -> Vec<StoredRelease> {
        let mut releases: Vec<StoredRelease> = tree
            .under(&self.receipts)
            .filter_map(|(path, bytes)| parse_release(tree, path, bytes))
            .collect();
        releases.sort_by_key(|stored| std::cmp::Reverse(stored.release.counter));
        releases
    }

    /// Writes a release and its renderings, and removes renderings that are not of `renders` and old receipts.
    ///
    /// The write is atomic: every step that requires disk space precedes the first rename, and an error rolls all of
    /// it back.
    ///
    /// # Errors
    /// [`CiError::Files`], [`CiError::Link`].
    pub fn write(
        &self,
        counter: u64,
        files: &[SignedFile],
        renderings: &[(String, Vec<u8>)],
        renders: &BTreeSet<String>,
    ) -> Result<ReleaseWrite, CiError> {
        let receipts = self.create_directory(&self.receipts)?;
        let rendered = self.create_directory(&self.rendered)?;
        // Beside the staged directories: a killed run leaves them here, where they do no harm.
        let mut write = ReleaseWrite {
            new_files: self.create_temporary("new")?,
            replaced_files: self.create_temporary("old")?,
            renamed: Vec::new(),
        };
        let result = self.write_files(&mut write, counter, files, renderings).and_then(|()| {
            write.set_aside(self.unused_renderings(&rendered, renders)?)?;
            write.set_aside(self.unused_receipts(&receipts)?)
        });
        match result {
            Ok(()) => Ok(write),
            Err(error) => {
                write.roll_back();
                Err(error)
            }
        }
    }

    fn write_files(
        &self,
        write: &mut ReleaseWrite,
        counter: u64,
        files: &[SignedFile],
        renderings: &[(String, Vec<u8>)],
    ) -> Result<(), CiError> {
        let release = write.new_files.join("release");
        fs::create_dir(&release).map_err(|error| files_error("create", &release, error))?;
        for file in files {
            write_atomically(&release, &file.name, &file.bytes)?;
        }
        for (render, bytes) in renderings {
            write_atomically(&write.new_files, &format!("{render}.jsonl"), bytes)?;
        }
        write.replace(release, self.root.join(self.release_path(counter)))?;
        for (render, _) in renderings {
            let target = self.root.join(self.rendering_path(render));
            write.replace(write.new_files.join(format!("{render}.jsonl")), target)?;
        }
        Ok(())
    }

    fn unused_renderings(
        &self,
        directory: &Path,
        renders: &BTreeSet<String>,
    ) -> Result<Vec<PathBuf>, CiError> {
        let mut unused = Vec::new();
        for name in list_names(directory)? {
            if name.strip_suffix(".jsonl").is_some_and(|render| !renders.contains(render)) {
                unused.push(directory.join(name));
            }
        }
        Ok(unused)
    }

    fn unused_receipts(&self, directory: &Path) -> Result<Vec<PathBuf>, CiError> {
        let counters = self.counters_on_disk()?;
        let mut needed = self.rendering_digests()?;
        let mut unused = Vec::new();
        for (age, counter) in counters.into_iter().rev().enumerate() {
            let release = directory.join(counter.to_string());
            let digests = signed_digests(&release)?;
            if age >= RELEASES_KEPT && digests.is_disjoint(&needed) {
                unused.push(release);
            }
            // Only the newest release of a rendering is needed.
            needed.retain(|digest| !digests.contains(digest));
        }
        Ok(unused)
    }

    fn rendering_digests(&self) -> Result<BTreeSet<Digest>, CiError> {
        let directory = self.root.join(&self.rendered);
        let mut digests = BTreeSet::new();
        for name in list_names(&directory)? {
            digests.insert(Digest::of(&read_file(&directory.join(name))?));
        }
        Ok(digests)
    }

    fn counters_on_disk(&self) -> Result<BTreeSet<u64>, CiError> {
        let names = list_names(&self.root.join(&self.receipts))?;
        Ok(names.into_iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Creates an empty directory beside the staged ones.
    fn create_temporary(&self, suffix: &str) -> Result<PathBuf, CiError> {
        let directory = self.root.join(format!("{}.{suffix}", self.temporary));
        remove_path(&directory)?;
        fs::create_dir(&directory).map_err(|error| files_error("create", &directory, error))?;
        Ok(directory)
    }

    /// Creates a directory of the store. No part of its path may be a link.
    fn create_directory(&self, path: &str) -> Result<PathBuf, CiError> {
        let mut directory = self.root.clone();
        for component in path.split('/') {
            directory.push(component);
            if directory.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink()) {
                return Err(CiError::Link { path: directory.display().to_string() });
            }
        }
        fs::create_dir_all(&directory).map_err(|error| files_error("create", &directory, error))?;
        Ok(directory)
    }
}

/// Returns the counter of the next release.
///
/// # Errors
/// [`CiError::CounterNotAbove`] if the number in the recipe does not exceed the last one.
pub fn next_counter(
    source: Counter,
    known: &BTreeSet<u64>,
    now: Timestamp,
) -> Result<u64, CiError> {
    let last = known.last().copied();
    let next = last.map_or(Some(1), |last| last.checked_add(1)).ok_or(CiError::TimeOutOfRange)?;
    match (source, last) {
        (Counter::UnixSeconds, _) => {
            Ok(u64::try_from(now.as_second()).unwrap_or_default().max(next))
        }
        (Counter::Value(given), Some(last)) if given <= last => {
            Err(CiError::CounterNotAbove { given, last })
        }
        (Counter::Value(given), _) => Ok(given),
    }
}

/// Parses the file at `path`; `None` if it is not a release statement.
fn parse_release(tree: &Tree, path: &str, envelope: &[u8]) -> Option<StoredRelease> {
    let (directory, _) = path.rsplit_once('/')?;
    let statement = peek_release_statement(envelope)?;
    let release = Release::read(&statement).ok()?;
    let files = tree.under(directory).map(|(path, bytes)| (file_name(path), bytes.to_vec()));
    Some(StoredRelease {
        path: path.to_owned(),
        envelope: envelope.to_vec(),
        statement,
        release,
        files: files.collect(),
    })
}

fn file_name(path: &str) -> String {
    path.rsplit('/').next().unwrap_or_default().to_owned()
}

/// Reads a release statement without verifying its signature.
fn peek_release_statement(envelope: &[u8]) -> Option<Statement> {
    let (payload, _) = envelope::peek(envelope, STATEMENT_TYPE)?;
    let statement = Statement::read(&payload).ok()?;
    (statement.predicate_type == RELEASE_TYPE).then_some(statement)
}

/// Returns the digests in the release statements of a directory.
fn signed_digests(directory: &Path) -> Result<BTreeSet<Digest>, CiError> {
    let mut digests = BTreeSet::new();
    for name in list_names(directory)? {
        let statement = peek_release_statement(&read_file(&directory.join(name))?);
        let subjects = statement.into_iter().flat_map(|statement| statement.subject);
        digests.extend(subjects.filter_map(|subject| subject.sha256()));
    }
    Ok(digests)
}

/// Returns the sorted names in a directory; none if it does not exist.
fn list_names(directory: &Path) -> Result<Vec<String>, CiError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(files_error("list", directory, error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| files_error("list", directory, error))?;
        names.extend(entry.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

fn read_file(path: &Path) -> Result<Vec<u8>, CiError> {
    regular::read(path).map_err(|error| files_error("read", path, error))
}

fn write_atomically(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), CiError> {
    let path = directory.join(name);
    persist(directory, &path, bytes).map_err(|error| files_error("write", &path, error))
}

fn persist(directory: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(bytes)?;
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(readable)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

fn remove_path(path: &Path) -> Result<(), CiError> {
    let removed = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => Err(error),
    };
    removed.map_err(|error| files_error("remove", path, error))
}

fn files_error(action: &'static str, path: &Path, source: std::io::Error) -> CiError {
    CiError::Files { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
