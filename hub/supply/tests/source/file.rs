//! file://, and what holds for every transport.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use attest_supply::source::Resolved;

use crate::git::Repository;
use crate::{cached, file_remote, going_on, refused};

#[test]
fn a_directory_is_read_like_a_server_and_never_counts_as_pushable() {
    let repository = Repository::sample();
    let (cached, remote) = (cached(), file_remote(&repository.bare()));

    let resolved = cached.source.poll(&remote, "HEAD", &going_on()).unwrap();
    let tree = cached.source.fetch(&remote, &resolved, &["src"], &going_on()).unwrap();

    assert_eq!(tree.get("src/main.c"), Some(&b"int main;\n"[..]));
    assert_eq!(tree.source_root(), Some("k8s"));
    assert!(!cached.source.can_push(&remote, &going_on()).unwrap());
}

#[test]
fn a_repository_is_read_whoever_owns_it() {
    let repository = Repository::sample();
    // Only root can give it away. That git is told to read it all the same is tested beside the command.
    let _ = std::os::unix::fs::chown(repository.bare(), Some(12345), None);
    let (cached, remote) = (cached(), file_remote(&repository.bare()));

    let resolved = cached.source.poll(&remote, "main", &going_on()).unwrap();

    cached.source.fetch(&remote, &resolved, &[], &going_on()).unwrap();
}

#[test]
fn a_commit_that_no_name_points_to_any_more_can_be_asked_for() {
    let repository = Repository::sample();
    let first = repository.git(&["rev-parse", "HEAD"]);
    repository.write("k8s/deployment.yaml", "kind: Deployment # 2\n");
    repository.commit_and_push("second");
    let (cached, remote) = (cached(), file_remote(&repository.bare()));

    let resolved = cached.source.poll(&remote, &first, &going_on()).unwrap();
    let tree = cached.source.fetch(&remote, &resolved, &[], &going_on()).unwrap();

    assert_eq!(tree.get("k8s/deployment.yaml"), Some(&b"kind: Deployment\n"[..]));
}

#[test]
fn a_branch_that_moves_between_question_and_fetch_gives_the_commit_that_was_asked_for() {
    let repository = Repository::sample();
    let (cached, remote) = (cached(), file_remote(&repository.bare()));
    let resolved = cached.source.poll(&remote, "main", &going_on()).unwrap();
    repository.write("k8s/deployment.yaml", "kind: Deployment # 2\n");
    repository.commit_and_push("second");

    let tree = cached.source.fetch(&remote, &resolved, &[], &going_on()).unwrap();

    assert_eq!(tree.git_commit(), Some(resolved.commit.as_str()));
}

#[test]
fn names_and_commits_that_are_not_there_are_told_apart() {
    let repository = Repository::sample();
    let (cached, remote) = (cached(), file_remote(&repository.bare()));
    let nothing = "0123456789012345678901234567890123456789".to_owned();

    refused(cached.source.poll(&remote, "nothing", &going_on()), "ReferenceNotFound", "push it");
    let resolved = Resolved { commit: nothing, reference: None };
    let result = cached.source.fetch(&remote, &resolved, &[], &going_on());
    refused(result, "CommitNotFound", "name a branch or tag");
}

#[test]
fn an_empty_repository_has_no_branch_yet() {
    let repository = Repository::new();
    let (cached, remote) = (cached(), file_remote(&repository.bare()));

    for revision in ["HEAD", "main"] {
        let result = cached.source.poll(&remote, revision, &going_on());
        refused(result, "ReferenceNotFound", "push it");
    }
}

#[test]
fn a_damaged_cache_is_made_anew() {
    let repository = Repository::sample();
    let (cached, remote) = (cached(), file_remote(&repository.bare()));
    let resolved = cached.source.poll(&remote, "main", &going_on()).unwrap();
    let fetch = || cached.source.fetch(&remote, &resolved, &[], &going_on()).unwrap();
    let tree = fetch();
    let place = cached.source.cached_at(&remote.url).as_ref().to_owned();

    std::fs::remove_dir_all(place.join("objects")).unwrap();
    assert_eq!(fetch(), tree);
    std::fs::write(place.join("HEAD"), "nonsense").unwrap();
    assert_eq!(fetch(), tree);
    for file in std::fs::read_dir(place.join("objects/pack")).unwrap().flatten() {
        let mut permissions = file.metadata().unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o644);
        std::fs::set_permissions(file.path(), permissions).unwrap();
        let bytes = std::fs::read(file.path()).unwrap();
        std::fs::write(file.path(), &bytes[..bytes.len() / 2]).unwrap();
    }
    assert_eq!(fetch(), tree);
}

#[test]
fn a_call_that_is_no_longer_wanted_ends() {
    let repository = Repository::sample();
    let (cached, remote) = (cached(), file_remote(&repository.bare()));
    let over = Arc::new(AtomicBool::new(true));

    let result = cached.source.poll(&remote, "main", &over);

    // The answer may have been faster than the watchdog's first look.
    if let Err(error) = result {
        assert_eq!(error.reason().as_str(), "Interrupted", "{error}");
    }
}

#[test]
fn many_threads_share_one_cache() {
    let repository = Repository::sample();
    let (cached, remote) = (cached(), file_remote(&repository.bare()));
    let resolved = cached.source.poll(&remote, "main", &going_on()).unwrap();

    let trees: Vec<_> = std::thread::scope(|scope| {
        let fetch = || cached.source.fetch(&remote, &resolved, &[], &going_on()).unwrap();
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(fetch)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });

    assert!(trees.windows(2).all(|pair| pair[0] == pair[1]));
}
