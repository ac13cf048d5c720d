//! Repositories whose objects are named by SHA-256, over every transport.

use attest_supply::source::{Remote, Resolved};

use crate::git::Repository;
use crate::sshd::Sshd;
use crate::web::Web;
use crate::{Cached, assert_error, cached, file_remote, https, no_interrupt, ssh};

const SHA1_ID: &str = "0123456789012345678901234567890123456789";
const SHA256_ID: &str = "0123456789012345678901234567890123456789012345678901234567890123";

/// Polls and fetches twice, with a new commit between, by branch and by commit id.
fn check_read(repository: &Repository, remote: &Remote) {
    let Cached { source, directory } = cached();
    for round in 0..2 {
        repository.write("k8s/deployment.yaml", format!("kind: Deployment # {round}\n"));
        let commit = repository.commit_and_push("next");

        let resolved = source.poll_and_receive(remote, "main", &no_interrupt()).unwrap();
        let tree = source.fetch(remote, &resolved, &[], &no_interrupt()).unwrap();
        let by_id = source.poll(remote, &commit, &no_interrupt()).unwrap();

        assert_eq!(resolved.commit.len(), 64);
        assert_eq!((&resolved.commit, &by_id.commit), (&commit, &commit));
        assert_eq!(tree.git_commit(), Some(commit.as_str()));
        assert_eq!(tree.git_tree(), Some(repository.git(&["rev-parse", "HEAD:k8s"]).as_str()));
        let content = format!("kind: Deployment # {round}\n");
        assert_eq!(tree.get("k8s/deployment.yaml"), Some(content.as_bytes()));
    }
    assert!(!source.can_push(remote, &no_interrupt()).unwrap());
    drop(directory);
    let first = repository.git(&["rev-parse", "HEAD^"]);
    let Cached { source, directory } = cached();
    let resolved = source.poll(remote, &first, &no_interrupt()).unwrap();
    let tree = source.fetch(remote, &resolved, &[], &no_interrupt()).unwrap();
    assert_eq!(tree.git_commit(), Some(first.as_str()));
    drop(directory);
}

#[test]
fn a_sha256_repository_is_read_from_a_directory() {
    let repository = Repository::sample_of_sha256();

    check_read(&repository, &file_remote(&repository.bare()));
}

#[test]
fn a_sha256_repository_is_read_over_https() {
    let repository = Repository::sample_of_sha256();
    let web = Web::serve(repository.root().to_owned());
    let remote = https::reader_of(&web);

    check_read(&repository, &remote);

    // The second poll lists the references by one request.
    let cached = cached();
    let first = cached.source.poll_and_receive(&remote, "main", &no_interrupt()).unwrap();
    web.requests();
    let second = cached.source.poll_and_receive(&remote, "main", &no_interrupt()).unwrap();
    assert_eq!((first, web.requests().len()), (second, 1));
}

#[test]
fn a_sha256_repository_is_read_over_ssh() {
    let Some(sshd) = Sshd::start() else { return };
    let repository = Repository::sample_of_sha256();

    check_read(&repository, &ssh::with(&sshd, &repository, "reader", "host"));
}

#[test]
fn a_sha256_repository_is_read_from_a_server_of_the_first_protocol() {
    let Some(sshd) = Sshd::start_old() else { return };
    let repository = Repository::sample_of_sha256();
    let (cached, remote) = (cached(), ssh::with(&sshd, &repository, "reader", "host"));

    let resolved = cached.source.poll_and_receive(&remote, "main", &no_interrupt()).unwrap();
    cached.source.fetch(&remote, &resolved, &[], &no_interrupt()).unwrap();

    assert_eq!(resolved.commit, repository.git(&["rev-parse", "HEAD"]));
}

#[test]
fn a_commit_id_of_the_other_object_format_is_not_found() {
    let repositories = [
        (Repository::sample(), SHA256_ID, "named by sha1"),
        (Repository::sample_of_sha256(), SHA1_ID, "named by sha256"),
    ];
    for (repository, commit, detail) in repositories {
        let (cached, remote) = (cached(), file_remote(&repository.bare()));

        let polled = cached.source.poll(&remote, commit, &no_interrupt());
        let resolved = Resolved { commit: commit.to_owned(), reference: None };
        let fetched = cached.source.fetch(&remote, &resolved, &[], &no_interrupt());

        assert_error(polled, "CommitNotFound", detail);
        assert_error(fetched, "CommitNotFound", "name a branch or tag");
    }
}

#[test]
fn a_repository_that_is_made_again_in_the_other_object_format_is_read() {
    let (first, second) = (Repository::sample(), Repository::sample_of_sha256());
    let (cached, remote) = (cached(), file_remote(&first.bare()));
    for repository in [&first, &second, &first] {
        let commit = repository.git(&["rev-parse", "HEAD"]);
        std::fs::remove_dir_all(first.bare()).unwrap();
        let url = first.bare().display().to_string();
        repository.git(&["clone", "--quiet", "--bare", ".", &url]);

        let resolved = cached.source.poll_and_receive(&remote, "HEAD", &no_interrupt()).unwrap();
        let tree = cached.source.fetch(&remote, &resolved, &[], &no_interrupt()).unwrap();

        assert_eq!(tree.git_commit(), Some(commit.as_str()));
    }
}
