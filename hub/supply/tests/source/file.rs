//! file://, and properties of every transport.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use attest_supply::source::Resolved;

use crate::git::Repository;
use crate::{assert_error, cached, file_remote, no_interrupt};

#[test]
fn a_directory_is_read_like_a_server_and_never_counts_as_pushable() {
    let repository = Repository::sample();
    let (cached, remote) = (cached(), file_remote(&repository.bare()));

    let resolved = cached.source.poll(&remote, "HEAD", &no_interrupt()).unwrap();
    let tree = cached.source.fetch(&remote, &resolved, &["src"], &no_interrupt()).unwrap();

    assert_eq!(tree.get("src/main.c"), Some(&b"int main;\n"[..]));
    assert_eq!(tree.source_root(), Some("k8s"));
    assert!(!cached.source.can_push(&remote, &no_interrupt()).unwrap());
}

#[test]
fn a_repository_is_read_regardless_of_its_owner() {
    let repository = Repository::sample();
    // Only root can change the owner. A unit test of the command covers other users.
    let _ = std::os::unix::fs::chown(repository.bare(), Some(12345), None);
    let (cached, remote) = (cached(), file_remote(&repository.bare()));

    let resolved = cached.source.poll(&remote, "main", &no_interrupt()).unwrap();

    cached.source.fetch(&remote, &resolved, &[], &no_interrupt()).unwrap();
}

#[test]
fn a_commit_without_a_reference_can_be_requested() {
    let repository = Repository::sample();
    let first = repository.git(&["rev-parse", "HEAD"]);
    repository.write("k8s/deployment.yaml", "kind: Deployment # 2\n");
    repository.commit_and_push("second");
    let (cached, remote) = (cached(), file_remote(&repository.bare()));

    let resolved = cached.source.poll(&remote, &first, &no_interrupt()).unwrap();
    let tree = cached.source.fetch(&remote, &resolved, &[], &no_interrupt()).unwrap();

    assert_eq!(tree.get("k8s/deployment.yaml"), Some(&b"kind: Deployment\n"[..]));
}

#[test]
fn a_branch_that_moves_between_poll_and_fetch_gives_the_requested_commit() {
    let repository = Repository::sample();
    let (cached, remote) = (cached(), file_remote(&repository.bare()));
    let resolved = cached.source.poll(&remote, "main", &no_interrupt()).unwrap();
    repository.write("k8s/deployment.yaml", "kind: Deployment # 2\n");
    repository.commit_and_push("second");

    let tree = cached.source.fetch(&remote, &resolved, &[], &no_interrupt()).unwrap();

    assert_eq!(tree.git_commit(), Some(resolved.commit.as_str()));
}

#[test]
fn missing_references_and_missing_commits_are_distinguished() {
    let repository = Repository::sample();
    let (cached, remote) = (cached(), file_remote(&repository.bare()));
    let nothing = "0123456789012345678901234567890123456789".to_owned();

    assert_error(
        cached.source.poll(&remote, "nothing", &no_interrupt()),
        "ReferenceNotFound",
        "push it",
    );
    let resolved = Resolved { commit: nothing, reference: None };
    let result = cached.source.fetch(&remote, &resolved, &[], &no_interrupt());
    assert_error(result, "CommitNotFound", "name a branch or tag");
}

#[test]
fn an_empty_repository_has_no_branch_yet() {
    let repository = Repository::new();
    let (cached, remote) = (cached(), file_remote(&repository.bare()));

    for revision in ["HEAD", "main"] {
        let result = cached.source.poll(&remote, revision, &no_interrupt());
        assert_error(result, "ReferenceNotFound", "push it");
    }
}

#[test]
fn a_damaged_cache_is_recreated() {
    let repository = Repository::sample();
    let (cached, remote) = (cached(), file_remote(&repository.bare()));
    let resolved = cached.source.poll(&remote, "main", &no_interrupt()).unwrap();
    let fetch = || cached.source.fetch(&remote, &resolved, &[], &no_interrupt()).unwrap();
    let tree = fetch();
    let place = cached.repository();

    std::fs::remove_dir_all(place.join("objects")).unwrap();
    assert_eq!(fetch(), tree);
    std::fs::write(place.join("HEAD"), "nonsense").unwrap();
    assert_eq!(fetch(), tree);
    cached.damage_packs();
    assert_eq!(fetch(), tree);
}

#[test]
fn an_interrupted_call_ends() {
    let repository = Repository::sample();
    let (cached, remote) = (cached(), file_remote(&repository.bare()));
    let interrupt = Arc::new(AtomicBool::new(true));

    let result = cached.source.poll(&remote, "main", &interrupt);

    // The response may be faster than the first check of the watchdog.
    if let Err(error) = result {
        assert_eq!(error.reason().as_str(), "Interrupted", "{error}");
    }
}

#[test]
fn many_threads_share_one_cache() {
    let repository = Repository::sample();
    let (cached, remote) = (cached(), file_remote(&repository.bare()));
    let resolved = cached.source.poll(&remote, "main", &no_interrupt()).unwrap();

    let trees: Vec<_> = std::thread::scope(|scope| {
        let fetch = || cached.source.fetch(&remote, &resolved, &[], &no_interrupt()).unwrap();
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(fetch)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });

    assert!(trees.windows(2).all(|pair| pair[0] == pair[1]));
}
