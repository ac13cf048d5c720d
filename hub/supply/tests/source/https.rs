//! https with a private authority and Basic authentication.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use attest_supply::source::{Credentials, Login, Remote, UrlPolicy};

use crate::git::Repository;
use crate::web::{MOVED, MOVED_ELSEWHERE, READER, WRITER, Web};
use crate::{assert_error, cached, no_interrupt, remote};

fn credentials(web: &Web, (username, password): (&str, &str)) -> Credentials {
    Credentials {
        login: Some(Login { username: username.to_owned(), password: password.to_owned() }),
        ca_pem: Some(web.ca_pem.clone()),
        ssh: None,
    }
}

pub(crate) fn reader_of(web: &Web) -> Remote {
    remote(&web.url("origin.git"), &UrlPolicy::default(), credentials(web, READER))
}

#[test]
fn a_branch_a_tag_head_and_a_commit_are_resolved_by_listing_references_only() {
    let repository = Repository::sample();
    let first = repository.git(&["rev-parse", "HEAD"]);
    repository.git(&["tag", "-a", "v1.2.3", "-m", "release"]);
    repository.git(&["push", "--quiet", "origin", "v1.2.3"]);
    repository.write("k8s/deployment.yaml", "kind: Deployment # 2\n");
    let second = repository.commit_and_push("second");
    let web = Web::serve(repository.root().to_owned());
    let (cached, remote) = (cached(), reader_of(&web));
    let commit_of = |revision: &str| {
        let resolved = cached.source.poll(&remote, revision, &no_interrupt()).unwrap();
        (resolved.commit, resolved.reference)
    };

    let head = commit_of("HEAD");
    let requests = web.requests();
    let branch = commit_of("main");
    let tag = commit_of("v1.2.3");
    let commit = commit_of(&first);

    assert_eq!(head, (second.clone(), Some("HEAD".to_owned())));
    assert_eq!(branch, (second, Some("refs/heads/main".to_owned())));
    assert_eq!(tag, (first.clone(), Some("refs/tags/v1.2.3".to_owned())));
    assert_eq!(commit, (first, None));
    // The first request is rejected, the second returns the capabilities, the third lists references.
    assert_eq!(requests.len(), 3, "{requests:?}");
    assert!(requests[2].starts_with("POST /origin.git/git-upload-pack"), "{requests:?}");
}

#[test]
fn polls_without_a_new_commit_are_one_request_each_on_one_connection() {
    const POLLS: usize = 10;
    let repository = Repository::sample();
    let web = Web::serve(repository.root().to_owned());
    let cached = cached();
    let remotes = [reader_of(&web), {
        let url = web.url(&format!("{MOVED}/origin.git"));
        remote(&url, &UrlPolicy::default(), credentials(&web, READER))
    }];
    let poll = |remote: &Remote| {
        cached.source.poll_and_receive(remote, "main", &no_interrupt()).unwrap().commit
    };
    let first = poll(&remotes[0]);
    assert_eq!(poll(&remotes[1]), first);
    web.requests();
    let connections = web.connections();

    for remote in remotes.iter().cycle().take(POLLS) {
        assert_eq!(poll(remote), first);
    }

    assert_eq!(web.requests(), ["POST /origin.git/git-upload-pack"; POLLS]);
    assert_eq!(web.connections() - connections, 1);
    repository.write("k8s/deployment.yaml", "kind: Deployment # 2\n");
    let second = repository.commit_and_push("second");
    assert_eq!(poll(&remotes[0]), second);
    assert_eq!(poll(&remotes[0]), second);
}

#[test]
fn a_poll_without_a_new_commit_checks_credentials_address_and_authority() {
    let repository = Repository::sample();
    let web = Web::serve(repository.root().to_owned());
    let other = Web::serve(repository.root().to_owned());
    let cached = cached();
    let valid = reader_of(&web);
    let poll = |remote: &Remote| cached.source.poll_and_receive(remote, "main", &no_interrupt());
    let without_login = Credentials { login: None, ..valid.credentials.clone() };
    let other_authority = Credentials { ca_pem: Some(other.ca_pem), ..valid.credentials.clone() };

    for (remote, reason) in [
        (Remote { credentials: without_login, ..valid.clone() }, "AuthenticationFailed"),
        (Remote { credentials: other_authority, ..valid.clone() }, "CertificateRefused"),
        (Remote { allow_loopback: false, ..valid.clone() }, "RepositoryAddress"),
    ] {
        poll(&valid).unwrap();
        assert_error(poll(&remote), reason, "");
    }
    std::fs::rename(repository.root().join("origin.git"), repository.root().join("a")).unwrap();
    assert_error(poll(&valid), "RepositoryNotFound", "");
}

#[test]
fn a_commit_is_fetched_once_and_without_its_history() {
    let repository = Repository::sample();
    for number in 0..5 {
        repository.write("src/noise", number.to_string().repeat(10_000));
        repository.commit_and_push("noise");
    }
    let web = Web::serve(repository.root().to_owned());
    let (cached, remote) = (cached(), reader_of(&web));
    let resolved = cached.source.poll(&remote, "main", &no_interrupt()).unwrap();

    let tree = cached.source.fetch(&remote, &resolved, &[], &no_interrupt()).unwrap();
    web.requests();
    let again = cached.source.fetch(&remote, &resolved, &[], &no_interrupt()).unwrap();

    assert_eq!(web.requests(), [""; 0]);
    assert_eq!(tree, again);
    assert_eq!(tree.get("k8s/deep/er/service.yaml"), Some(&b"kind: Service\n"[..]));
    assert_eq!(tree.get(".attest/receipts/web/7/release.json"), Some(&b"{}"[..]));
    assert_eq!(tree.get("src/main.c"), None);
    assert_eq!(tree.git_commit(), Some(resolved.commit.as_str()));
    assert_eq!(tree.git_tree(), Some(repository.git(&["rev-parse", "HEAD:k8s"]).as_str()));
    let place = cached.repository();
    let count = repository.git(&["-C", place.to_str().unwrap(), "rev-list", "--all", "--count"]);
    assert_eq!(count, "1");
}

#[test]
fn the_next_commit_transfers_only_new_objects() {
    let repository = Repository::sample();
    let mut noise = vec![0_u8; 400_000];
    getrandom::fill(&mut noise).unwrap();
    repository.write("src/noise", &noise);
    repository.commit_and_push("noise");
    let web = Web::serve(repository.root().to_owned());
    let (cached, remote) = (cached(), reader_of(&web));
    let fetch = || {
        let resolved = cached.source.poll(&remote, "main", &no_interrupt()).unwrap();
        cached.source.fetch(&remote, &resolved, &[], &no_interrupt()).unwrap()
    };
    let packs =
        || cached.pack_files().iter().map(|file| file.metadata().unwrap().len()).sum::<u64>();
    fetch();
    let before = packs();

    repository.write("k8s/deployment.yaml", "kind: Deployment # 2\n");
    repository.commit_and_push("second");
    let tree = fetch();

    assert_eq!(tree.get("k8s/deployment.yaml"), Some(&b"kind: Deployment # 2\n"[..]));
    let received = packs() - before;
    assert!(received < 20_000, "{received} bytes for one changed line");
}

#[test]
fn a_wrong_and_a_missing_password_name_the_command_that_sets_one() {
    let repository = Repository::sample();
    let web = Web::serve(repository.root().to_owned());
    let cached = cached();
    let url = web.url("origin.git");
    let wrong = credentials(&web, (READER.0, "guess"));
    let none = Credentials { login: None, ..credentials(&web, READER) };

    for credentials in [wrong, none] {
        let remote = remote(&url, &UrlPolicy::default(), credentials);
        let result = cached.source.poll(&remote, "main", &no_interrupt());
        assert_error(result, "AuthenticationFailed", "attest gitops repo add");
    }
}

#[test]
fn an_unknown_authority_is_rejected() {
    let repository = Repository::sample();
    let web = Web::serve(repository.root().to_owned());
    let other = Web::serve(repository.root().to_owned());
    let cached = cached();
    for ca_pem in [None, Some(other.ca_pem)] {
        let credentials = Credentials { ca_pem, ..credentials(&web, READER) };
        let remote = remote(&web.url("origin.git"), &UrlPolicy::default(), credentials);

        let result = cached.source.poll(&remote, "main", &no_interrupt());
        assert_error(result, "CertificateRefused", "--ca-file");
        assert_error(
            cached.source.can_push(&remote, &no_interrupt()),
            "CertificateRefused",
            "--ca-file",
        );
    }
}

#[test]
fn a_missing_repository_is_not_found() {
    let repository = Repository::sample();
    let web = Web::serve(repository.root().to_owned());
    let remote = remote(&web.url("nothing.git"), &UrlPolicy::default(), credentials(&web, READER));

    let result = cached().source.poll(&remote, "main", &no_interrupt());

    assert_error(result, "RepositoryNotFound", "check the path");
}

#[test]
fn a_redirect_is_followed_on_the_same_host_only() {
    let repository = Repository::sample();
    let web = Web::serve(repository.root().to_owned());
    let cached = cached();
    let at = |first: &str| {
        let url = web.url(&format!("{first}/origin.git"));
        remote(&url, &UrlPolicy::default(), credentials(&web, READER))
    };

    for moved in [MOVED.to_owned(), format!("{MOVED}/{MOVED}")] {
        let remote = at(&moved);
        let resolved = cached.source.poll(&remote, "main", &no_interrupt()).unwrap();
        let tree = cached.source.fetch(&remote, &resolved, &[], &no_interrupt()).unwrap();
        assert_eq!(tree.get("k8s/deep/er/service.yaml"), Some(&b"kind: Service\n"[..]));
        assert!(!cached.source.can_push(&remote, &no_interrupt()).unwrap());
    }
    let writer = remote(
        &web.url(&format!("{MOVED}/origin.git")),
        &UrlPolicy::default(),
        credentials(&web, WRITER),
    );
    assert!(cached.source.can_push(&writer, &no_interrupt()).unwrap());
    let result = cached.source.poll(&at(MOVED_ELSEWHERE), "main", &no_interrupt());
    assert_error(result, "RepositoryRedirected", "https://other.invalid/origin.git");
    let endless = vec![MOVED; 20].join("/");
    assert!(cached.source.poll(&at(&endless), "main", &no_interrupt()).is_err());
}

#[test]
fn an_address_of_the_own_machine_needs_a_flag() {
    let repository = Repository::sample();
    let web = Web::serve(repository.root().to_owned());
    let cached = cached();
    let named = web.url("origin.git");
    let literals =
        ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"].map(|host| named.replace("localhost", host));

    for url in literals.into_iter().chain([named]) {
        let remote = remote(&url, &UrlPolicy::default(), credentials(&web, READER));
        let remote = Remote { allow_loopback: false, ..remote };
        for result in [
            cached.source.poll(&remote, "main", &no_interrupt()).map(|_| ()),
            cached.source.can_push(&remote, &no_interrupt()).map(|_| ()),
        ] {
            assert_error(result, "RepositoryAddress", "--allow-loopback");
        }
    }
    assert_eq!(web.requests(), [""; 0]);
}

#[test]
fn a_missing_server_is_unreachable() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let cached = cached();
    for url in [format!("https://127.0.0.1:{closed}/a"), "https://nothing.invalid/a".to_owned()] {
        let remote = remote(&url, &UrlPolicy::default(), Credentials::default());

        assert_error(
            cached.source.poll(&remote, "main", &no_interrupt()),
            "RepositoryUnreachable",
            "check",
        );
        assert_error(
            cached.source.can_push(&remote, &no_interrupt()),
            "RepositoryUnreachable",
            "check",
        );
    }
}

#[test]
fn a_server_that_never_responds_times_out() {
    let repository = Repository::sample();
    let web = Web::serve(repository.root().to_owned());
    web.fall_silent();
    let remote = reader_of(&web);
    let cached = cached();
    let source = cached.source.with_timeout(Duration::from_secs(1));
    let started = Instant::now();

    assert_error(source.poll(&remote, "main", &no_interrupt()), "SourceTimedOut", "within 1 s");

    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[test]
fn a_credential_that_can_push_is_detected_without_pushing() {
    let repository = Repository::sample();
    let web = Web::serve(repository.root().to_owned());
    let cached = cached();
    let can_push = |login| {
        let remote =
            remote(&web.url("origin.git"), &UrlPolicy::default(), credentials(&web, login));
        cached.source.can_push(&remote, &no_interrupt()).unwrap()
    };

    assert!(can_push(WRITER));
    assert!(!can_push(READER));
    assert!(!can_push((WRITER.0, "guess")));
    let requests = web.requests();
    assert!(requests.iter().all(|request| request.starts_with("GET ")), "{requests:?}");
}
