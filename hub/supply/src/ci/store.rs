//! The files under `.attest/`: where they lie, how they are written, how long they are kept.
//!
//! Nothing here says whether a file is to be believed: a stored release is what somebody wrote.

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
use crate::source::{ATTEST_DIRECTORY, Tree};

/// Releases whose receipts are kept, and any older one that a current rendering needs.
pub const RELEASES_KEPT: usize = 20;

/// A file of a release directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedFile {
    pub name: String,
    pub bytes: Vec<u8>,
}

/// The `.attest` directory of one application.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    receipts: String,
    rendered: String,
    beside: String,
}

/// A release that was just written, and what it replaced.
#[must_use = "either kept or undone"]
#[derive(Debug)]
pub struct Written {
    begun: PathBuf,
    former: PathBuf,
    /// What was renamed, from where and to where, in order.
    moved: Vec<(PathBuf, PathBuf)>,
}

impl Written {
    /// What was replaced is not needed any more.
    ///
    /// # Errors
    /// [`CiError::Files`] when it cannot be removed.
    pub fn keep(self) -> Result<(), CiError> {
        remove(&self.begun)?;
        remove(&self.former)
    }

    /// Puts everything back. It needs no room; what cannot be put back stays as it is.
    pub fn undo(self) {
        for (from, to) in self.moved.iter().rev() {
            let _ = fs::rename(to, from);
        }
        let _ = remove(&self.begun);
        // Never what could not be put back.
        let _ = fs::remove_dir(&self.former);
    }

    fn replace(&mut self, from: PathBuf, place: PathBuf) -> Result<(), CiError> {
        if place.symlink_metadata().is_ok() {
            self.take_away(vec![place.clone()])?;
        }
        self.rename(from, place)
    }

    fn take_away(&mut self, places: Vec<PathBuf>) -> Result<(), CiError> {
        for place in places {
            let former = self.former.join(self.moved.len().to_string());
            self.rename(place, former)?;
        }
        Ok(())
    }

    fn rename(&mut self, from: PathBuf, to: PathBuf) -> Result<(), CiError> {
        fs::rename(&from, &to).map_err(|error| files_error("replace", &to, error))?;
        self.moved.push((from, to));
        Ok(())
    }
}

/// A release as it lies there. Nobody has verified it.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredRelease {
    /// Path of the release statement.
    pub path: String,
    pub envelope: Vec<u8>,
    pub statement: Statement,
    pub release: Release,
    /// Every file of its directory by name, the release statement among them.
    pub files: Vec<(String, Vec<u8>)>,
}

impl Store {
    /// The store of `application` in the work tree at `root`.
    pub fn new(root: &Path, application: &str) -> Self {
        Self {
            root: root.to_owned(),
            receipts: format!("{ATTEST_DIRECTORY}/receipts/{application}"),
            rendered: format!("{ATTEST_DIRECTORY}/rendered/{application}"),
            beside: format!("{ATTEST_DIRECTORY}/.{application}"),
        }
    }

    /// Path of a rendering, relative to the root.
    pub fn rendering(&self, render: &str) -> String {
        format!("{}/{render}.jsonl", self.rendered)
    }

    /// Path of a release's directory, relative to the root.
    pub fn release(&self, counter: u64) -> String {
        format!("{}/{counter}", self.receipts)
    }

    /// The directories to stage, relative to the root.
    pub fn directories(&self) -> [&str; 2] {
        [&self.receipts, &self.rendered]
    }

    /// Counters of the releases in `tree` and on disk.
    ///
    /// # Errors
    /// [`CiError::Files`] when the directory cannot be listed.
    pub fn counters(&self, tree: &Tree) -> Result<BTreeSet<u64>, CiError> {
        let prefix = format!("{}/", self.receipts);
        let in_tree = tree
            .under(&self.receipts)
            .filter_map(|(path, _)| path.strip_prefix(&prefix)?.split('/').next()?.parse().ok());
        let mut counters: BTreeSet<u64> = in_tree.collect();
        counters.extend(self.counters_on_disk()?);
        Ok(counters)
    }

    /// The releases in `tree`, newest first.
    pub fn releases(&self, tree: &Tree) -> Vec<StoredRelease> {
        let mut found: Vec<StoredRelease> = tree
            .under(&self.receipts)
            .filter_map(|(path, bytes)| stored(tree, path, bytes))
            .collect();
        found.sort_by_key(|one| std::cmp::Reverse(one.release.counter));
        found
    }

    /// Writes a release and its renderings, and takes away what is no longer needed: renderings of renders
    /// that are not in `renders`, and old receipts. All of it or nothing: everything that needs room is done
    /// before the first file changes its place, and what fails then is undone.
    ///
    /// # Errors
    /// [`CiError::Files`], [`CiError::Link`].
    pub fn write(
        &self,
        counter: u64,
        files: &[SignedFile],
        renderings: &[(String, Vec<u8>)],
        renders: &BTreeSet<String>,
    ) -> Result<Written, CiError> {
        let receipts = self.directory(&self.receipts)?;
        let rendered = self.directory(&self.rendered)?;
        // Beside what is staged: what a run that was killed leaves here is in nobody's way.
        let mut written =
            Written { begun: self.beside("new")?, former: self.beside("old")?, moved: Vec::new() };
        let moved = self.put(&mut written, counter, files, renderings).and_then(|()| {
            written.take_away(self.unused_renderings(&rendered, renders)?)?;
            written.take_away(self.unused_receipts(&receipts)?)
        });
        match moved {
            Ok(()) => Ok(written),
            Err(error) => {
                written.undo();
                Err(error)
            }
        }
    }

    fn put(
        &self,
        written: &mut Written,
        counter: u64,
        files: &[SignedFile],
        renderings: &[(String, Vec<u8>)],
    ) -> Result<(), CiError> {
        let begun = written.begun.join("release");
        fs::create_dir(&begun).map_err(|e| files_error("create", &begun, e))?;
        for file in files {
            write_whole(&begun, &file.name, &file.bytes)?;
        }
        for (render, bytes) in renderings {
            write_whole(&written.begun, &format!("{render}.jsonl"), bytes)?;
        }
        written.replace(begun, self.root.join(self.release(counter)))?;
        for (render, _) in renderings {
            let place = self.root.join(self.rendering(render));
            written.replace(written.begun.join(format!("{render}.jsonl")), place)?;
        }
        Ok(())
    }

    fn unused_renderings(
        &self,
        directory: &Path,
        renders: &BTreeSet<String>,
    ) -> Result<Vec<PathBuf>, CiError> {
        let is_unused =
            |name: &String| name.strip_suffix(".jsonl").is_some_and(|name| !renders.contains(name));
        let names = names_in(directory)?.into_iter().filter(is_unused);
        Ok(names.map(|name| directory.join(name)).collect())
    }

    fn unused_receipts(&self, directory: &Path) -> Result<Vec<PathBuf>, CiError> {
        let counters = self.counters_on_disk()?;
        let mut needed: BTreeSet<Digest> = BTreeSet::new();
        let rendered = self.root.join(&self.rendered);
        for name in names_in(&rendered)? {
            let path = rendered.join(name);
            needed.insert(Digest::of(&fs::read(&path).map_err(|e| files_error("read", &path, e))?));
        }
        let mut unused = Vec::new();
        for (age, counter) in counters.into_iter().rev().enumerate() {
            let place = directory.join(counter.to_string());
            let digests = signed_digests(&place)?;
            let serves = digests.iter().any(|digest| needed.contains(digest));
            if age >= RELEASES_KEPT && !serves {
                unused.push(place);
            }
            // The newest release of a rendering is the one that counts.
            needed.retain(|digest| !digests.contains(digest));
        }
        Ok(unused)
    }

    fn counters_on_disk(&self) -> Result<BTreeSet<u64>, CiError> {
        let names = names_in(&self.root.join(&self.receipts))?;
        Ok(names.into_iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// An empty directory beside those that are staged.
    fn beside(&self, what: &str) -> Result<PathBuf, CiError> {
        let place = self.root.join(format!("{}.{what}", self.beside));
        remove(&place)?;
        fs::create_dir(&place).map_err(|error| files_error("create", &place, error))?;
        Ok(place)
    }

    /// Creates a directory of the store; no part of the way may be a link.
    fn directory(&self, path: &str) -> Result<PathBuf, CiError> {
        let mut place = self.root.clone();
        for component in path.split('/') {
            place.push(component);
            if place.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink()) {
                return Err(CiError::Link { path: place.display().to_string() });
            }
        }
        fs::create_dir_all(&place).map_err(|error| files_error("create", &place, error))?;
        Ok(place)
    }
}

/// The counter of the next release.
///
/// # Errors
/// [`CiError::CounterNotAbove`] when the recipe's number is not larger than the last one.
pub fn next_counter(
    wanted: Counter,
    known: &BTreeSet<u64>,
    now: Timestamp,
) -> Result<u64, CiError> {
    let last = known.last().copied();
    let above = last.map_or(Some(1), |last| last.checked_add(1)).ok_or(CiError::TimeOutOfRange)?;
    match (wanted, last) {
        (Counter::UnixSeconds, _) => {
            Ok(u64::try_from(now.as_second()).unwrap_or_default().max(above))
        }
        (Counter::Value(given), Some(last)) if given <= last => {
            Err(CiError::CounterNotAbove { given, last })
        }
        (Counter::Value(given), _) => Ok(given),
    }
}

fn stored(tree: &Tree, path: &str, envelope: &[u8]) -> Option<StoredRelease> {
    let (directory, _) = path.rsplit_once('/')?;
    let (payload, _) = envelope::peek(envelope, STATEMENT_TYPE)?;
    let statement = Statement::read(&payload).ok()?;
    if statement.predicate_type != RELEASE_TYPE {
        return None;
    }
    let release = Release::read(&statement).ok()?;
    let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    let files = tree.under(directory).map(|(path, bytes)| (name(path), bytes.to_vec())).collect();
    Some(StoredRelease {
        path: path.to_owned(),
        envelope: envelope.to_vec(),
        statement,
        release,
        files,
    })
}

/// Digests that the release statements of a directory name.
fn signed_digests(directory: &Path) -> Result<BTreeSet<Digest>, CiError> {
    let mut digests = BTreeSet::new();
    for name in names_in(directory)? {
        let path = directory.join(name);
        let bytes = fs::read(&path).map_err(|error| files_error("read", &path, error))?;
        let statement = envelope::peek(&bytes, STATEMENT_TYPE)
            .and_then(|(payload, _)| Statement::read(&payload).ok())
            .filter(|statement| statement.predicate_type == RELEASE_TYPE);
        let subjects = statement.into_iter().flat_map(|statement| statement.subject);
        digests.extend(subjects.filter_map(|subject| subject.sha256()));
    }
    Ok(digests)
}

fn names_in(directory: &Path) -> Result<Vec<String>, CiError> {
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

fn write_whole(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), CiError> {
    let place = directory.join(name);
    let failed = |error| files_error("write", &place, error);
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(readable).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(&place).map_err(|error| failed(error.error))?;
    Ok(())
}

fn remove(place: &Path) -> Result<(), CiError> {
    let removed = match place.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(place),
        Ok(_) => fs::remove_file(place),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => Err(error),
    };
    removed.map_err(|error| files_error("remove", place, error))
}

fn files_error(action: &'static str, path: &Path, source: std::io::Error) -> CiError {
    CiError::Files { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_always_above_the_last() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let seconds = u64::try_from(now.as_second()).unwrap();
        let known = |last: u64| BTreeSet::from([1, last]);
        let next = |wanted, known: &BTreeSet<u64>| next_counter(wanted, known, now);

        assert_eq!(next(Counter::UnixSeconds, &BTreeSet::new()).unwrap(), seconds);
        assert_eq!(next(Counter::UnixSeconds, &known(seconds)).unwrap(), seconds + 1);
        assert_eq!(next(Counter::UnixSeconds, &known(seconds + 7)).unwrap(), seconds + 8);
        assert_eq!(next(Counter::Value(8), &known(7)).unwrap(), 8);
        assert_eq!(
            next(Counter::Value(7), &known(7)).unwrap_err().reason().as_str(),
            "CounterRegressed"
        );
    }

    #[test]
    fn the_newest_twenty_releases_are_kept_and_what_a_rendering_needs() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path(), "web");
        let rendering = (String::from("all"), b"{}\n".to_vec());
        let renders = BTreeSet::from([String::from("all")]);
        let subject =
            attest_common::documents::statement::Subject::new("manifests/all", Digest::of(b"{}\n"));
        let needed = Statement::new(vec![subject], RELEASE_TYPE, serde_json::Value::Null);
        let key = attest_common::basics::keys::PrivateKey::from_seed(&[7; 32]).unwrap();
        let needed = envelope::seal(STATEMENT_TYPE, &needed.to_bytes(), &[&key]);
        let file =
            |bytes: &[u8]| vec![SignedFile { name: "release.json".into(), bytes: bytes.to_vec() }];

        let write = |counter, bytes: &[u8], renderings: &[(String, Vec<u8>)]| {
            store.write(counter, &file(bytes), renderings, &renders).unwrap().keep().unwrap();
        };
        write(1, b"other", &[]);
        write(2, &needed, &[rendering]);
        for counter in 3..30 {
            write(counter, b"other", &[]);
        }

        let kept: Vec<u64> = store.counters_on_disk().unwrap().into_iter().collect();
        let expected: Vec<u64> = std::iter::once(2).chain(10..30).collect();
        assert_eq!(kept, expected);
    }

    #[test]
    fn a_release_that_cannot_be_written_or_staged_leaves_the_former_one_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path(), "web");
        let file = |name: &str| vec![SignedFile { name: name.into(), bytes: b"{}".to_vec() }];
        let renderings = |text: &str, names: &[&str]| -> Vec<(String, Vec<u8>)> {
            names.iter().map(|name| ((*name).to_owned(), text.as_bytes().to_vec())).collect()
        };
        let renders = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let first = renderings("first\n", &["a", "b", "gone"]);
        let written = store.write(1, &file("release.json"), &first, &renders(&["a", "b", "gone"]));
        written.unwrap().keep().unwrap();
        let before = everything(directory.path());
        let second = renderings("second\n", &["a", "b", "new"]);
        let wanted = renders(&["a", "b", "new"]);

        // A name in a directory that is not there stands for a disk that is full midway.
        let last = [second.clone(), renderings("second\n", &["not/there"])].concat();
        let error = store.write(2, &file("release.json"), &last, &wanted).unwrap_err();
        assert!(error.to_string().contains("not/there"), "{error}");
        assert_eq!(everything(directory.path()), before);

        store.write(2, &file("release.json"), &second, &wanted).unwrap().undo();
        assert_eq!(everything(directory.path()), before);
        store.write(2, &file("release.json"), &second, &wanted).unwrap().keep().unwrap();
        let after = everything(directory.path());
        assert_ne!(after, before);
        assert!(after.iter().all(|(path, _)| !path.contains("gone") && !path.contains("/.web")));
    }

    fn everything(root: &Path) -> BTreeSet<(String, Vec<u8>)> {
        let mut found = BTreeSet::new();
        let mut open = vec![root.to_owned()];
        while let Some(place) = open.pop() {
            if place.is_dir() {
                open.extend(fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().path()));
            } else {
                found.insert((place.display().to_string(), fs::read(&place).unwrap()));
            }
        }
        found
    }
}
