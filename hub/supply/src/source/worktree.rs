//! The clone in which `attest run` works: the files on disk and the bytes in the Git index.
//!
//! gix reads. Staging runs `git add`, so that the filters and index extensions of the user apply.

use std::path::{Path, PathBuf};
use std::process::Command;

use gix::bstr::{BStr, ByteSlice as _};

use super::SourceRootOf;
use super::commit::{object_size, read_blob, tree_id};
use super::error::{SourceError, files_error, git_missing};
use super::tree::{
    ATTEST_DIRECTORY, FileKind, FileListing, PATH_DEPTH_MAX, RECIPE_FILE, RepositoryLimits, Tree,
    check_path, clean_directory, outermost,
};
use crate::text::one_line;

/// A clone with a work tree.
pub struct WorkTree {
    repository: gix::Repository,
    root: PathBuf,
    source_root_of: SourceRootOf,
    limits: RepositoryLimits,
}

impl std::fmt::Debug for WorkTree {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("WorkTree").field("root", &self.root).finish_non_exhaustive()
    }
}

impl WorkTree {
    /// Opens the clone that contains `start`. `source_root_of` finds the root that its `attest.yaml` declares.
    ///
    /// # Errors
    /// [`SourceError::NotAWorkTree`] if there is no clone, or a bare one.
    pub fn discover(start: &Path, source_root_of: SourceRootOf) -> Result<Self, SourceError> {
        let found = gix::discover(start).map_err(|_| not_a_work_tree(start))?;
        let work_directory = found.workdir().ok_or_else(|| not_a_work_tree(start))?;
        let root = work_directory
            .canonicalize()
            .map_err(|error| files_error("open", work_directory, error))?;
        let repository = gix::open_opts(found.git_dir(), gix::open::Options::isolated())
            .map_err(|_| not_a_work_tree(start))?;
        Ok(Self { repository, root, source_root_of, limits: RepositoryLimits::default() })
    }

    /// Returns the directory to which paths are relative.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the full id of the checked-out commit; `None` before the first one.
    pub fn head_commit(&self) -> Option<String> {
        self.head().map(|id| id.to_string())
    }

    /// Returns the id of the Git tree at `directory` in the checked-out commit.
    ///
    /// # Errors
    /// [`SourceError`] if the commit cannot be read.
    pub fn head_tree(&self, directory: &str) -> Result<Option<String>, SourceError> {
        match self.head() {
            Some(head) => tree_id(&self.repository, head, &clean_directory(directory)?),
            None => Ok(None),
        }
    }

    /// Reads `attest.yaml`, its `sourceRoot` and `directories` from disk. `.attest` is not read: a rendering does not
    /// depend on what was signed before.
    ///
    /// # Errors
    /// As [`super::GitSource::fetch`].
    pub fn read_files(&self, directories: &[&str]) -> Result<Tree, SourceError> {
        let recipe = self.root.join(RECIPE_FILE);
        let mut listing = FileListing::new(&self.limits);
        let mut source_root = None;
        if let Ok(metadata) = recipe.symlink_metadata() {
            let kind = kind_on_disk(&metadata, RECIPE_FILE.into())?;
            listing.add(RECIPE_FILE.into(), kind, recipe.clone())?;
            if metadata.is_file() && metadata.len() <= self.limits.blob_bytes_max {
                source_root = self.declared_source_root(&read_file(&recipe)?)?;
            }
        }
        for path in requested_directories(directories, source_root.as_ref())? {
            self.list_files(path, &mut listing)?;
        }
        let tree = listing.read(&self.limits, |path| file_size(path), |path| read_file(path))?;
        self.with_origin(tree, source_root)
    }

    /// Reads the files of the Git index, which is the content of the next commit, `.attest` included.
    ///
    /// # Errors
    /// As [`super::GitSource::fetch`], and [`SourceError::IndexConflict`] for an unfinished merge.
    pub fn read_index(&self, directories: &[&str]) -> Result<Tree, SourceError> {
        let index = self.open_index()?;
        let source_root = self.source_root_in(&index)?;
        let requested = requested_directories(directories, source_root.as_ref())?;
        let mut listing = FileListing::new(&self.limits);
        for entry in index.entries() {
            let path = entry.path(&index);
            let is_requested = path == RECIPE_FILE
                || is_inside(path, ATTEST_DIRECTORY)
                || requested.iter().any(|directory| is_inside(path, directory));
            if !is_requested {
                continue;
            }
            if entry.stage() != gix::index::entry::Stage::Unconflicted {
                return Err(SourceError::IndexConflict { path: path.to_str_lossy().into_owned() });
            }
            listing.add(path, kind_in_index(entry.mode), entry.id)?;
        }
        let tree = listing.read(
            &self.limits,
            |id| object_size(&self.repository, *id),
            |id| read_blob(&self.repository, *id),
        )?;
        for directory in requested {
            if !tree.has_directory(&directory) {
                return Err(SourceError::PathMissing { path: directory });
            }
        }
        self.with_origin(tree, source_root)
    }

    /// Updates the index from disk for `paths`, files or directories relative to the root, regardless of ignore rules.
    /// Files that no longer exist leave the index.
    ///
    /// # Errors
    /// [`SourceError::ProgramMissing`] without git, [`SourceError::GitProgram`] if git fails.
    pub fn stage(&self, paths: &[&str]) -> Result<(), SourceError> {
        let mut command = Command::new("git");
        command.arg("-C").arg(&self.root);
        command.args(["-c", "advice.addEmbeddedRepo=false", "-c", "core.autocrlf=false"]);
        command.args(["--literal-pathspecs", "add", "--all", "--force", "--"]).args(paths);
        let output = command.output().map_err(|source| git_missing(&self.root, source))?;
        if output.status.success() {
            return Ok(());
        }
        let detail = one_line(&String::from_utf8_lossy(&output.stderr));
        Err(SourceError::GitProgram { command: "add", detail })
    }

    fn declared_source_root(&self, recipe: &[u8]) -> Result<Option<String>, SourceError> {
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

    fn open_index(&self) -> Result<gix::worktree::Index, SourceError> {
        self.repository.index_or_empty().map_err(|error| {
            let messages: Vec<String> =
                error.iter_errors().map(|error| error.to_string()).collect();
            let source = std::io::Error::other(one_line(&messages.join(": ")));
            files_error("read the Git index", &self.repository.index_path(), source)
        })
    }

    fn source_root_in(&self, index: &gix::index::State) -> Result<Option<String>, SourceError> {
        let Some(recipe) = index.entry_by_path(RECIPE_FILE.into()) else { return Ok(None) };
        if object_size(&self.repository, recipe.id)? > self.limits.blob_bytes_max {
            return Ok(None);
        }
        self.declared_source_root(&read_blob(&self.repository, recipe.id)?)
    }

    /// Adds the files below `directory` at any depth to `listing`.
    fn list_files(
        &self,
        directory: String,
        listing: &mut FileListing<PathBuf>,
    ) -> Result<(), SourceError> {
        let location = self.locate_directory(&directory)?;
        let mut pending = vec![(directory, location, 0_usize)];
        while let Some((directory, location, depth)) = pending.pop() {
            if depth > PATH_DEPTH_MAX {
                return Err(SourceError::TreePath {
                    path: directory,
                    problem: format!("it is deeper than {PATH_DEPTH_MAX} directories; move it up"),
                });
            }
            let entries = std::fs::read_dir(&location)
                .and_then(|entries| entries.collect::<Result<Vec<_>, _>>())
                .map_err(|error| files_error("read", &location, error))?;
            for entry in entries {
                if entry.file_name() == ".git" {
                    return Err(SourceError::TreeSubmodule { path: directory });
                }
                let mut path = directory.clone().into_bytes();
                path.push(b'/');
                path.extend_from_slice(entry.file_name().as_encoded_bytes());
                let metadata =
                    entry.metadata().map_err(|error| files_error("read", &location, error))?;
                if metadata.is_dir() {
                    let subdirectory = check_path(path.as_bstr())?;
                    pending.push((subdirectory, entry.path(), depth + 1));
                } else {
                    let kind = kind_on_disk(&metadata, path.as_bstr())?;
                    listing.add(path.as_bstr(), kind, entry.path())?;
                }
            }
        }
        Ok(())
    }

    /// Returns the location of a directory. No part of its path may be a symbolic link.
    fn locate_directory(&self, directory: &str) -> Result<PathBuf, SourceError> {
        let mut location = self.root.clone();
        let mut walked = Vec::new();
        for component in directory.split('/') {
            location.push(component);
            walked.push(component);
            match location.symlink_metadata() {
                Ok(metadata) if metadata.is_symlink() => {
                    return Err(SourceError::TreeSymlink { path: walked.join("/") });
                }
                Ok(metadata) if metadata.is_dir() => {}
                Ok(_) | Err(_) => {
                    return Err(SourceError::PathMissing { path: directory.to_owned() });
                }
            }
        }
        Ok(location)
    }
}

fn not_a_work_tree(path: &Path) -> SourceError {
    SourceError::NotAWorkTree { path: path.display().to_string() }
}

fn requested_directories(
    directories: &[&str],
    source_root: Option<&String>,
) -> Result<Vec<String>, SourceError> {
    let mut requested = Vec::new();
    for directory in directories {
        requested.push(clean_directory(directory)?);
    }
    requested.extend(source_root.cloned());
    Ok(outermost(requested))
}

fn is_inside(path: &[u8], directory: &str) -> bool {
    path.strip_prefix(directory.as_bytes()).is_some_and(|rest| rest.starts_with(b"/"))
}

fn read_file(path: &Path) -> Result<Vec<u8>, SourceError> {
    std::fs::read(path).map_err(|error| files_error("read", path, error))
}

fn file_size(path: &Path) -> Result<u64, SourceError> {
    let metadata = path.symlink_metadata().map_err(|error| files_error("read", path, error))?;
    Ok(metadata.len())
}

/// Opening a pipe or device could wait without end.
fn kind_on_disk(metadata: &std::fs::Metadata, path: &BStr) -> Result<FileKind, SourceError> {
    if metadata.is_symlink() {
        Ok(FileKind::Symlink)
    } else if metadata.is_file() {
        Ok(FileKind::File)
    } else {
        Err(SourceError::TreeSpecialFile { path: path.to_str_lossy().into_owned() })
    }
}

fn kind_in_index(mode: gix::index::entry::Mode) -> FileKind {
    if mode == gix::index::entry::Mode::SYMLINK {
        FileKind::Symlink
    } else if mode == gix::index::entry::Mode::COMMIT {
        FileKind::Submodule
    } else {
        FileKind::File
    }
}
