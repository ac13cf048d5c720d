//! Git repositories over every transport of the hub, each served by the real program.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails where its environment differs from its description"
)]
#![allow(clippy::print_stderr, reason = "a test that cannot run reports it")]

mod contents;
mod file;
mod git;
mod https;
mod object_format;
mod receive;
mod ssh;
mod sshd;
mod web;
mod worktree;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use attest_supply::recipe::declared_source_root;
use attest_supply::source::{
    Credentials, GitSource, Remote, RepositoryUrl, SourceError, UrlPolicy,
};

/// A source with its own cache.
struct Cached {
    source: GitSource,
    directory: tempfile::TempDir,
}

impl Cached {
    /// Path of the only repository in the cache.
    fn repository(&self) -> PathBuf {
        let mut entries = std::fs::read_dir(self.directory.path().join("cache")).unwrap();
        let repository = entries.next().unwrap().unwrap().path();
        assert!(entries.next().is_none());
        repository
    }

    /// Files with packed objects and their indexes.
    fn pack_files(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(self.repository().join("objects/pack")).unwrap();
        files.map(|file| file.unwrap().path()).collect()
    }

    /// Number of packs.
    fn packs(&self) -> usize {
        let files = self.pack_files();
        files.iter().filter(|file| file.extension().is_some_and(|end| end == "pack")).count()
    }

    /// Cuts every pack file in half.
    fn damage_packs(&self) {
        for file in self.pack_files() {
            let mut permissions = file.metadata().unwrap().permissions();
            std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o644);
            std::fs::set_permissions(&file, permissions).unwrap();
            let bytes = std::fs::read(&file).unwrap();
            std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
        }
    }
}

fn cached() -> Cached {
    attest_certs::tls::install_provider();
    let directory = tempfile::tempdir().unwrap();
    Cached {
        source: GitSource::new(directory.path().join("cache"), declared_source_root),
        directory,
    }
}

fn no_interrupt() -> Arc<AtomicBool> {
    Arc::new(AtomicBool::new(false))
}

fn remote(url: &str, policy: &UrlPolicy, credentials: Credentials) -> Remote {
    Remote { url: RepositoryUrl::parse(url, policy).unwrap(), credentials, allow_loopback: true }
}

fn file_remote(bare: &std::path::Path) -> Remote {
    let policy = UrlPolicy {
        file_directories: vec![bare.parent().unwrap().to_owned()],
        ..UrlPolicy::default()
    };
    remote(&format!("file://{}", bare.display()), &policy, Credentials::default())
}

/// Asserts the reason of an error and that its text contains the remedy.
#[track_caller]
fn assert_error<T: std::fmt::Debug>(result: Result<T, SourceError>, reason: &str, advice: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.reason().as_str(), reason, "{error}");
    assert!(error.to_string().contains(advice), "{error}");
}
