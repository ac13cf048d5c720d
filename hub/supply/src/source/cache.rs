//! Cache of fetched commits: one bare repository per remote address and object format.
//!
//! The cache can be lost at any time; missing commits are fetched again. A repository with too many packs is
//! recreated instead of repacked.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use attest_common::basics::locked::Locked;
use sha2::{Digest as _, Sha256};

use super::ObjectFormat;
use super::error::{SourceError, files_error};
use super::transport::size_of_files;
use crate::text::one_line;

/// Number of packs at which a cached repository is recreated.
const PACKS_MAX: usize = 48;
/// Maximum size of an object that gix may hold in memory, in bytes.
const OBJECT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A directory of bare repositories.
#[derive(Debug)]
pub(crate) struct RepositoryCache {
    directory: PathBuf,
    locks: Locked<BTreeMap<PathBuf, Arc<Locked<()>>>>,
    /// Object formats by address, of servers that have answered.
    formats: Locked<BTreeMap<String, ObjectFormat>>,
}

impl RepositoryCache {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory, locks: Locked::default(), formats: Locked::default() }
    }

    /// Returns the object format in which the server at `address` last answered; SHA-1 if it has not answered yet.
    pub(crate) fn format_of(&self, address: &str) -> ObjectFormat {
        self.formats.lock().get(address).copied().unwrap_or(ObjectFormat::Sha1)
    }

    /// Records the object format in which the server at `address` answers.
    pub(crate) fn set_format(&self, address: &str, format: ObjectFormat) {
        self.formats.lock().insert(address.to_owned(), format);
    }

    /// Returns the path of the repository of `address` with this object format.
    pub(crate) fn path_of(&self, address: &str, format: ObjectFormat) -> PathBuf {
        let name = data_encoding::HEXLOWER.encode(&Sha256::digest(address.as_bytes()));
        let name = name.get(..32).unwrap_or(&name);
        self.directory.join(if format == ObjectFormat::Sha1 {
            format!("{name}.git")
        } else {
            format!("{name}.{format}.git")
        })
    }

    /// Returns the lock that a writer to the repository at `path` holds.
    pub(crate) fn write_lock(&self, path: &Path) -> Arc<Locked<()>> {
        let mut locks = self.locks.lock();
        Arc::clone(locks.entry(path.to_owned()).or_default())
    }

    /// Opens the repository at `path`; creates it if it is missing, unusable or of another object format.
    ///
    /// # Errors
    /// [`SourceError::Files`] if it cannot be created.
    pub(crate) fn open_or_create(
        &self,
        path: &Path,
        format: ObjectFormat,
    ) -> Result<gix::Repository, SourceError> {
        if path.join("HEAD").is_file()
            && let Ok(repository) = gix::open_opts(path, isolated_options())
            && repository.object_hash() == format
        {
            return Ok(repository);
        }
        self.recreate(path, format)
    }

    /// Removes the repository at `path` and creates an empty one.
    ///
    /// # Errors
    /// [`SourceError::Files`] if it cannot be removed or created.
    pub(crate) fn recreate(
        &self,
        path: &Path,
        format: ObjectFormat,
    ) -> Result<gix::Repository, SourceError> {
        match std::fs::remove_dir_all(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(files_error("remove", path, error));
            }
            Ok(()) | Err(_) => {}
        }
        std::fs::create_dir_all(path).map_err(|error| files_error("create", path, error))?;
        let kind = gix::create::Kind::Bare;
        let options =
            gix::create::Options { object_hash: Some(format), ..gix::create::Options::default() };
        gix::ThreadSafeRepository::init_opts(path, kind, options, isolated_options())
            .map(Into::into)
            .map_err(|error| {
                let source = std::io::Error::other(one_line(&format!("{error:#}")));
                files_error("create a repository in", path, source)
            })
    }

    /// Returns whether anything was fetched into the repository at `path`.
    pub(crate) fn has_content(&self, path: &Path) -> bool {
        path.join("refs").join("attest").is_dir()
    }

    /// Returns whether the repository at `path` has too many packs or exceeds `bytes_max` bytes.
    pub(crate) fn is_oversized(&self, path: &Path, bytes_max: u64) -> bool {
        let directory = path.join("objects").join("pack");
        let packs = std::fs::read_dir(&directory).map_or(0, |entries| {
            entries
                .flatten()
                .filter(|entry| entry.path().extension().is_some_and(|suffix| suffix == "pack"))
                .count()
        });
        packs >= PACKS_MAX || size_of_files(&directory) > bytes_max
    }
}

/// No configuration of the machine or the user is read. gix opens no connection by itself.
fn isolated_options() -> gix::open::Options {
    gix::open::Options::isolated().config_overrides([
        "protocol.allow=never".to_owned(),
        "protocol.version=2".to_owned(),
        format!("gitoxide.objects.allocLimit={OBJECT_BYTES_MAX}"),
    ])
}
