//! The clone that `attest run` works in: its files as they lie on disk, and the bytes that its Git index holds.
//!
//! Reading uses gix. Staging runs `git add`, so that the user's own filters and index extensions hold.

use std::path::{Path, PathBuf};
use std::process::Command;

use gix::bstr::ByteSlice as _;

use super::SourceRootOf;
use super::commit;
use super::error::SourceError;
use super::transport::files;
use super::tree::{
    ATTEST_DIRECTORY, Kind, Limits, Listing, PATH_DEPTH_MAX, RECIPE_FILE, Tree, clean_directory,
    outermost,
};
use crate::text::one_line;

/// A clone with files.
pub struct WorkTree {
    repository: gix::Repository,
    root: PathBuf,
    source_root_of: SourceRootOf,
    limits: Limits,
}

impl std::fmt::Debug for WorkTree {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("WorkTree").field("root", &self.root).finish_non_exhaustive()
    }
}

impl WorkTree {
    /// The clone that `start` lies in. `source_root_of` finds the root that its `attest.yaml` declares.
    ///
    /// # Errors
    /// [`SourceError::NotAWorkTree`] when there is none, or a bare one.
    pub fn discover(start: &Path, source_root_of: SourceRootOf) -> Result<Self, SourceError> {
        let not_one = || SourceError::NotAWorkTree { path: start.display().to_string() };
        let found = gix::discover(start).map_err(|_| not_one())?;
        let root = found.workdir().ok_or_else(not_one)?;
        let root = root.canonicalize().map_err(|error| files("open", root, error))?;
        let options = gix::open::Options::isolated();
        let repository = gix::open_opts(found.git_dir(), options).map_err(|_| not_one())?;
        Ok(Self { repository, root, source_root_of, limits: Limits::default() })
    }

    /// Read at most so much.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Directory that paths are relative to.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Full id of the commit that is checked out; absent before the first one.
    pub fn head_commit(&self) -> Option<String> {
        self.head().map(|id| id.to_string())
    }

    /// Id of the Git tree at `directory` in the commit that is checked out.
    ///
    /// # Errors
    /// When the commit cannot be read.
    pub fn head_tree(&self, directory: &str) -> Result<Option<String>, SourceError> {
        match self.head() {
            Some(head) => commit::tree_id(&self.repository, head, &clean_directory(directory)?),
            None => Ok(None),
        }
    }

    /// The wanted files as they lie on disk: `attest.yaml`, its `sourceRoot`, `directories`.
    /// `.attest` is left out: what is rendered does not depend on what was signed before.
    ///
    /// # Errors
    /// As [`super::Source::fetch`].
    pub fn read_files(&self, directories: &[&str]) -> Result<Tree, SourceError> {
        let recipe = self.root.join(RECIPE_FILE);
        let mut listing = Listing::new(&self.limits);
        let mut source_root = None;
        if let Ok(metadata) = recipe.symlink_metadata() {
            listing.add(RECIPE_FILE.into(), kind_on_disk(&metadata), recipe.clone())?;
            if metadata.is_file() && metadata.len() <= self.limits.blob_bytes_max {
                let bytes =
                    std::fs::read(&recipe).map_err(|error| files("read", &recipe, error))?;
                source_root = self.root_of(&bytes)?;
            }
        }
        for path in wanted(directories, source_root.as_ref())? {
            self.list_disk(path, &mut listing)?;
        }
        let tree = listing.read(
            &self.limits,
            |path| {
                let metadata = path.symlink_metadata();
                metadata.map(|found| found.len()).map_err(|error| files("read", path, error))
            },
            |path| std::fs::read(path).map_err(|error| files("read", path, error)),
        )?;
        self.with_origin(tree, source_root)
    }

    /// The wanted files as the Git index holds them: what the next commit will carry, `.attest` included.
    ///
    /// # Errors
    /// As [`super::Source::fetch`], and [`SourceError::IndexConflict`] for an unfinished merge.
    pub fn read_index(&self, directories: &[&str]) -> Result<Tree, SourceError> {
        let path = self.repository.index_path();
        let index = self.repository.index_or_empty().map_err(|error| {
            let words: Vec<String> = error.iter_errors().map(|error| error.to_string()).collect();
            files("read the Git index", &path, std::io::Error::other(one_line(&words.join(": "))))
        })?;
        let recipe = index.entry_by_path(RECIPE_FILE.into());
        let source_root = match recipe {
            Some(entry)
                if commit::size_of(&self.repository, entry.id)? <= self.limits.blob_bytes_max =>
            {
                self.root_of(&commit::bytes_of(&self.repository, entry.id)?)?
            }
            _ => None,
        };
        let mut directories = wanted(directories, source_root.as_ref())?;
        directories.push(ATTEST_DIRECTORY.to_owned());
        let lies_in = |path: &[u8], directory: &String| {
            path.strip_prefix(directory.as_bytes()).is_some_and(|rest| rest.starts_with(b"/"))
        };
        let mut listing = Listing::new(&self.limits);
        for entry in index.entries() {
            let path = entry.path(&index);
            if path != RECIPE_FILE
                && !directories.iter().any(|directory| lies_in(path.as_bytes(), directory))
            {
                continue;
            }
            if entry.stage() != gix::index::entry::Stage::Unconflicted {
                return Err(SourceError::IndexConflict { path: path.to_str_lossy().into_owned() });
            }
            listing.add(path, kind_in_index(entry.mode), entry.id)?;
        }
        let tree = listing.read(
            &self.limits,
            |id| commit::size_of(&self.repository, *id),
            |id| commit::bytes_of(&self.repository, *id),
        )?;
        for directory in &directories {
            if directory != ATTEST_DIRECTORY && !tree.has_directory(directory) {
                return Err(SourceError::PathMissing { path: directory.clone() });
            }
        }
        self.with_origin(tree, source_root)
    }

    /// Put `paths` (files or directories, relative to the root) into the index as they are on disk, also when an
    /// ignore rule names them; files that are gone from them leave the index.
    ///
    /// # Errors
    /// When the `git` program is missing or refuses.
    pub fn stage(&self, paths: &[&str]) -> Result<(), SourceError> {
        let mut command = Command::new("git");
        command.arg("-C").arg(&self.root);
        command.args(["-c", "advice.addEmbeddedRepo=false", "-c", "core.autocrlf=false"]);
        command.args(["--literal-pathspecs", "add", "--all", "--force", "--"]).args(paths);
        let output = command.output().map_err(|source| SourceError::ProgramMissing {
            url: self.root.display().to_string(),
            program: "git",
            package: "git",
            source,
        })?;
        if output.status.success() {
            return Ok(());
        }
        let detail = one_line(&String::from_utf8_lossy(&output.stderr));
        Err(SourceError::GitProgram { command: "add", detail })
    }

    fn root_of(&self, recipe: &[u8]) -> Result<Option<String>, SourceError> {
        (self.source_root_of)(recipe).map(|root| clean_directory(&root)).transpose()
    }

    fn head(&self) -> Option<gix::ObjectId> {
        self.repository.head_id().ok().map(|id| id.detach())
    }

    fn with_origin(&self, tree: Tree, source_root: Option<String>) -> Result<Tree, SourceError> {
        let git_tree = match &source_root {
            Some(path) => self.head_tree(path)?,
            None => None,
        };
        Ok(tree.with_origin(self.head_commit(), git_tree, source_root))
    }

    fn list_disk(&self, path: String, listing: &mut Listing<PathBuf>) -> Result<(), SourceError> {
        let mut place = self.root.clone();
        let mut walked = Vec::new();
        for component in path.split('/') {
            place.push(component);
            walked.push(component);
            match place.symlink_metadata() {
                Ok(metadata) if metadata.is_symlink() => {
                    return Err(SourceError::TreeSymlink { path: walked.join("/") });
                }
                Ok(metadata) if metadata.is_dir() => {}
                Ok(_) | Err(_) => return Err(SourceError::PathMissing { path }),
            }
        }
        let mut open = vec![(path, place, 0_usize)];
        while let Some((prefix, directory, depth)) = open.pop() {
            let failed = |error| files("read", &directory, error);
            if depth > PATH_DEPTH_MAX {
                return Err(SourceError::TreePath {
                    path: prefix,
                    problem: format!("it is deeper than {PATH_DEPTH_MAX} directories"),
                });
            }
            for entry in std::fs::read_dir(&directory).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                if entry.file_name() == ".git" {
                    return Err(SourceError::TreeSubmodule { path: prefix });
                }
                let mut path = prefix.clone().into_bytes();
                path.push(b'/');
                path.extend_from_slice(entry.file_name().as_encoded_bytes());
                let metadata = entry.metadata().map_err(failed)?;
                if metadata.is_dir() {
                    let path = super::tree::check_path(path.as_bstr())?;
                    open.push((path, entry.path(), depth + 1));
                } else {
                    listing.add(path.as_bstr(), kind_on_disk(&metadata), entry.path())?;
                }
            }
        }
        Ok(())
    }
}

fn wanted(directories: &[&str], source_root: Option<&String>) -> Result<Vec<String>, SourceError> {
    let cleaned: Result<Vec<String>, SourceError> =
        directories.iter().map(|directory| clean_directory(directory)).collect();
    let mut wanted = cleaned?;
    wanted.extend(source_root.cloned());
    Ok(outermost(wanted))
}

fn kind_on_disk(metadata: &std::fs::Metadata) -> Kind {
    if metadata.is_symlink() { Kind::Symlink } else { Kind::File }
}

fn kind_in_index(mode: gix::index::entry::Mode) -> Kind {
    if mode == gix::index::entry::Mode::SYMLINK {
        Kind::Symlink
    } else if mode == gix::index::entry::Mode::COMMIT {
        Kind::Submodule
    } else {
        Kind::File
    }
}
