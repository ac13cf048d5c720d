//! Git repositories over every transport that the hub speaks, each served by the real program.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends where its world is not as it says"
)]
#![allow(clippy::print_stderr, reason = "a test that cannot run says so")]

mod contents;
mod file;
mod git;
mod https;
mod look;
mod ssh;
mod sshd;
mod web;
mod worktree;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use attest_supply::recipe::declared_source_root;
use attest_supply::source::{Credentials, Remote, RepositoryUrl, Source, SourceError, UrlPolicy};

/// A source with a cache of its own.
struct Cached {
    source: Source,
    directory: tempfile::TempDir,
}

fn cached() -> Cached {
    attest_certs::tls::install_provider();
    let directory = tempfile::tempdir().unwrap();
    Cached { source: Source::new(directory.path().join("cache"), declared_source_root), directory }
}

fn going_on() -> Arc<AtomicBool> {
    Arc::new(AtomicBool::new(false))
}

fn remote(url: &str, policy: &UrlPolicy, credentials: Credentials) -> Remote {
    Remote { url: RepositoryUrl::parse(url, policy).unwrap(), credentials }
}

fn file_remote(bare: &std::path::Path) -> Remote {
    let policy = UrlPolicy {
        file_directories: vec![bare.parent().unwrap().to_owned()],
        ..UrlPolicy::default()
    };
    remote(&format!("file://{}", bare.display()), &policy, Credentials::default())
}

/// Check an error's stable word and that its text says what to do.
#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, SourceError>, reason: &str, advice: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.reason().as_str(), reason, "{error}");
    assert!(error.to_string().contains(advice), "{error}");
}
