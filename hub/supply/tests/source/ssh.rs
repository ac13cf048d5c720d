//! ssh, against a real sshd.

use std::net::TcpListener;

use attest_supply::source::{Credentials, Remote, SshIdentity, UrlPolicy};

use crate::git::Repository;
use crate::sshd::Sshd;
use crate::{cached, going_on, refused, remote};

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

    let resolved = cached.source.poll(&remote, "main", &going_on()).unwrap();
    let tree = cached.source.fetch(&remote, &resolved, &[], &going_on()).unwrap();

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
fn a_server_of_the_first_protocol_gives_out_branches_and_tags() {
    let Some(sshd) = Sshd::start_old() else { return };
    let (repository, first, second) = Repository::tagged();
    let remote = with(&sshd, &repository, "reader", "host");

    for (revision, commit) in [("v1", &first), ("main", &second), ("HEAD", &second)] {
        let cached = cached();
        let resolved = cached.source.poll(&remote, revision, &going_on()).unwrap();
        assert_eq!(&resolved.commit, commit, "{revision}");
        cached.source.fetch(&remote, &resolved, &[], &going_on()).unwrap();
    }
    let cached = cached();
    repository.git(&["push", "--quiet", "origin", ":v1"]);
    let resolved = cached.source.poll(&remote, &first, &going_on()).unwrap();
    let result = cached.source.fetch(&remote, &resolved, &[], &going_on());
    refused(result, "CommitNotFound", "name a branch or tag");
}

#[test]
fn another_host_key_and_an_unknown_host_are_refused_before_the_key_is_shown() {
    let Some(sshd) = Sshd::start() else { return };
    let repository = Repository::sample();
    let cached = cached();
    let mismatch = with(&sshd, &repository, "full", "other-host");
    let mut unknown = with(&sshd, &repository, "full", "host");
    unknown.credentials.ssh.as_mut().unwrap().known_hosts = b"# nobody\n".to_vec();

    for remote in [mismatch, unknown] {
        let polled = cached.source.poll(&remote, "main", &going_on());
        refused(polled, "HostKeyRefused", "--known-hosts");
        refused(cached.source.can_push(&remote, &going_on()), "HostKeyRefused", "--known-hosts");
    }
}

#[test]
fn a_key_that_the_server_does_not_know_is_refused() {
    let Some(sshd) = Sshd::start() else { return };
    let repository = Repository::sample();
    let stranger = with(&sshd, &repository, "stranger", "host");
    let mut broken = with(&sshd, &repository, "full", "host");
    broken.credentials.ssh.as_mut().unwrap().private_key = b"not a key\n".to_vec();

    for remote in [stranger, broken] {
        let result = cached().source.poll(&remote, "main", &going_on());
        refused(result, "AuthenticationFailed", "attest gitops repo add");
    }
}

#[test]
fn an_address_without_a_key_says_which_flags_give_one() {
    let remote =
        remote("git@git.example:company/web", &UrlPolicy::default(), Credentials::default());

    let result = cached().source.poll(&remote, "main", &going_on());

    refused(result, "SshKeyMissing", "--ssh-key F --known-hosts F");
}

#[test]
fn a_missing_repository_and_a_missing_server_are_told_apart() {
    let Some(sshd) = Sshd::start() else { return };
    let repository = Repository::sample();
    let cached = cached();
    let known = with(&sshd, &repository, "full", "host");
    let at = |url: &str| remote(url, &UrlPolicy::default(), known.credentials.clone());
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();

    let nothing = at(&format!("ssh://{}@127.0.0.1:{}/nothing", sshd.user, sshd.port));
    let nobody = at(&format!("ssh://{}@127.0.0.1:{closed}/nothing", sshd.user));

    refused(cached.source.poll(&nothing, "main", &going_on()), "RepositoryNotFound", "check");
    refused(cached.source.poll(&nobody, "main", &going_on()), "RepositoryUnreachable", "check");
}

#[test]
fn a_key_that_could_push_is_found_out() {
    let Some(sshd) = Sshd::start() else { return };
    let repository = Repository::sample();
    let can_push = |key| {
        let remote = with(&sshd, &repository, key, "host");
        cached().source.can_push(&remote, &going_on()).unwrap()
    };

    assert!(can_push("full"));
    assert!(!can_push("reader"));
    assert!(!can_push("stranger"));
}
