//! The bare repositories that fetched commits are kept in, one for each remote address.
//!
//! Everything here can be lost: whoever finds it missing fetches again. A repository that has gathered too many
//! packs is created again instead of being repacked.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use attest_common::basics::locked::Locked;
use sha2::{Digest as _, Sha256};

use super::error::SourceError;
use super::transport::{files, size_of};
use crate::text::one_line;

/// Number of packs after which a cached repository is created again.
const PACKS_MAX: usize = 48;
/// Largest object that gix may hold in memory, in bytes.
const OBJECT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A directory of bare repositories.
#[derive(Debug)]
pub(crate) struct Cache {
    directory: PathBuf,
    locks: Locked<BTreeMap<PathBuf, Arc<Locked<()>>>>,
}

impl Cache {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory, locks: Locked::default() }
    }

    /// Where the repository of `address` lies.
    pub(crate) fn place(&self, address: &str) -> PathBuf {
        let name = data_encoding::HEXLOWER.encode(&Sha256::digest(address.as_bytes()));
        self.directory.join(format!("{}.git", name.get(..32).unwrap_or(&name)))
    }

    /// One writer at a time for each repository.
    pub(crate) fn lock(&self, place: &Path) -> Arc<Locked<()>> {
        let mut locks = self.locks.lock();
        Arc::clone(locks.entry(place.to_owned()).or_default())
    }

    /// Open the repository at `place`, making it when it is missing or unusable.
    pub(crate) fn open(&self, place: &Path) -> Result<gix::Repository, SourceError> {
        if place.join("HEAD").is_file()
            && let Ok(repository) = gix::open_opts(place, options())
        {
            return Ok(repository);
        }
        self.renew(place)
    }

    /// Remove the repository at `place` and make an empty one.
    pub(crate) fn renew(&self, place: &Path) -> Result<gix::Repository, SourceError> {
        match std::fs::remove_dir_all(place) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(files("remove", place, error));
            }
            Ok(()) | Err(_) => {}
        }
        std::fs::create_dir_all(place).map_err(|error| files("create", place, error))?;
        let create = gix::create::Options::default();
        let made =
            gix::ThreadSafeRepository::init_opts(place, gix::create::Kind::Bare, create, options());
        made.map(Into::into).map_err(|error| {
            let source = std::io::Error::other(one_line(&format!("{error:#}")));
            files("make a repository in", place, source)
        })
    }

    /// Whether anything was ever fetched into the repository at `place`.
    pub(crate) fn has_packs(&self, place: &Path) -> bool {
        place.join("refs").join("attest").is_dir()
    }

    /// Whether the repository at `place` has gathered more than is worth keeping.
    pub(crate) fn is_worn(&self, place: &Path, bytes_max: u64) -> bool {
        let packs = place.join("objects").join("pack");
        let count = std::fs::read_dir(&packs).map_or(0, |entries| {
            entries
                .flatten()
                .filter(|entry| entry.path().extension().is_some_and(|suffix| suffix == "pack"))
                .count()
        });
        count >= PACKS_MAX || size_of(&packs) > bytes_max
    }
}

/// No configuration of the machine or the user is read, and no scheme is followed that was not checked before.
fn options() -> gix::open::Options {
    gix::open::Options::isolated().config_overrides([
        "protocol.allow=never".to_owned(),
        "protocol.version=2".to_owned(),
        format!("gitoxide.objects.allocLimit={OBJECT_BYTES_MAX}"),
    ])
}
