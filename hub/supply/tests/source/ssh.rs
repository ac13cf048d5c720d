//! ssh, against a real sshd.

use std::net::TcpListener;

use attest_supply::source::{Credentials, Remote, SshIdentity, UrlPolicy};

use crate::git::Repository;
use crate::sshd::Sshd;
use crate::{assert_error, cached, no_interrupt, remote};

pub(crate) fn with(sshd: &Sshd, repository: &Repository, key: &str, host: &str) -> Remote {
    let url = format!("ssh://{}@127.0.0.1:{}{}", sshd.user, sshd.port, repository.bare().display());
    let ssh = SshIdentity { private_key: sshd.key(key), known_hosts: sshd.known_hosts(host) };
    let credentials = Credentials { ssh: Some(ssh), ..Credentials::default() };
    remote(&url, &UrlPolicy::default(), credentials)
}

#[test]
fn a_repository_is_polled_and_fetched_over_ssh() {
    let Some(sshd) = Sshd::start() else { return };
    let repository = Repository::sample();
    let cached = cached();
    let remote = with(&sshd, &repository, "reader", "host");

    let resolved = cached.source.poll(&remote, "main", &no_interrupt()).unwrap();
    let tree = cached.source.fetch(&remote, &resolved, &[], &no_interrupt()).unwrap();

    assert_eq!(resolved.commit, repository.git(&["rev-parse", "HEAD"]));
    assert_eq!(tree.get("k8s/deployment.yaml"), Some(&b"kind: Deployment\n"[..]));
    let left = std::fs::read_dir(std::env::temp_dir()).unwrap().flatten().filter(|entry| {
        let key = entry.path().join("key");
        std::fs::read(key).is_ok_and(|key| key == sshd.key("reader"))
    });
    assert_eq!(left.count(), 0, "the key was left behind");
    drop(cached.directory);
}

#[test]
fn a_server_of_the_first_protocol_sends_branches_and_tags() {
    let Some(sshd) = Sshd::start_old() else { return };
    let (repository, first, second) = Repository::tagged();
    let remote = with(&sshd, &repository, "reader", "host");

    for (revision, commit) in [("v1", &first), ("main", &second), ("HEAD", &second)] {
        let cached = cached();
        let resolved = cached.source.poll(&remote, revision, &no_interrupt()).unwrap();
        assert_eq!(&resolved.commit, commit, "{revision}");
        cached.source.fetch(&remote, &resolved, &[], &no_interrupt()).unwrap();
    }
    let cached = cached();
    repository.git(&["push", "--quiet", "origin", ":v1"]);
    let resolved = cached.source.poll(&remote, &first, &no_interrupt()).unwrap();
    let result = cached.source.fetch(&remote, &resolved, &[], &no_interrupt());
    assert_error(result, "CommitNotFound", "name a branch or tag");
}

#[test]
fn another_host_key_and_an_unknown_host_are_rejected_before_authentication() {
    let Some(sshd) = Sshd::start() else { return };
    let repository = Repository::sample();
    let cached = cached();
    let mismatch = with(&sshd, &repository, "full", "other-host");
    let mut unknown = with(&sshd, &repository, "full", "host");
    unknown.credentials.ssh.as_mut().unwrap().known_hosts = b"# empty\n".to_vec();

    for remote in [mismatch, unknown] {
        let polled = cached.source.poll(&remote, "main", &no_interrupt());
        assert_error(polled, "HostKeyRefused", "--known-hosts");
        assert_error(
            cached.source.can_push(&remote, &no_interrupt()),
            "HostKeyRefused",
            "--known-hosts",
        );
    }
}

#[test]
fn a_key_that_the_server_does_not_know_is_rejected() {
    let Some(sshd) = Sshd::start() else { return };
    let repository = Repository::sample();
    let stranger = with(&sshd, &repository, "stranger", "host");
    let mut broken = with(&sshd, &repository, "full", "host");
    broken.credentials.ssh.as_mut().unwrap().private_key = b"not a key\n".to_vec();

    for remote in [stranger, broken] {
        let result = cached().source.poll(&remote, "main", &no_interrupt());
        assert_error(result, "AuthenticationFailed", "attest gitops repo add");
    }
}

#[test]
fn an_address_without_a_key_names_the_flags_that_set_one() {
    let remote =
        remote("git@git.example:company/web", &UrlPolicy::default(), Credentials::default());

    let result = cached().source.poll(&remote, "main", &no_interrupt());

    assert_error(result, "SshKeyMissing", "--ssh-key F --known-hosts F");
}

#[test]
fn a_missing_repository_and_a_missing_server_are_distinguished() {
    let Some(sshd) = Sshd::start() else { return };
    let repository = Repository::sample();
    let cached = cached();
    let known = with(&sshd, &repository, "full", "host");
    let at = |url: &str| remote(url, &UrlPolicy::default(), known.credentials.clone());
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();

    let missing = at(&format!("ssh://{}@127.0.0.1:{}/nothing", sshd.user, sshd.port));
    let unreachable = at(&format!("ssh://{}@127.0.0.1:{closed}/nothing", sshd.user));

    assert_error(
        cached.source.poll(&missing, "main", &no_interrupt()),
        "RepositoryNotFound",
        "check",
    );
    assert_error(
        cached.source.poll(&unreachable, "main", &no_interrupt()),
        "RepositoryUnreachable",
        "check",
    );
}

#[test]
fn a_key_that_can_push_is_detected() {
    let Some(sshd) = Sshd::start() else { return };
    let repository = Repository::sample();
    let can_push = |key| {
        let remote = with(&sshd, &repository, key, "host");
        cached().source.can_push(&remote, &no_interrupt()).unwrap()
    };

    assert!(can_push("full"));
    assert!(!can_push("reader"));
    assert!(!can_push("stranger"));
}
