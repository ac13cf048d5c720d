//! https with a private authority and Basic authentication.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use attest_supply::source::{Credentials, Login, Remote, UrlPolicy};

use crate::git::Repository;
use crate::web::{READER, WRITER, Web};
use crate::{cached, going_on, refused, remote};

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
fn a_branch_a_tag_head_and_a_commit_are_found_by_asking_for_names_only() {
    let repository = Repository::sample();
    let first = repository.git(&["rev-parse", "HEAD"]);
    repository.git(&["tag", "-a", "v1.2.3", "-m", "release"]);
    repository.git(&["push", "--quiet", "origin", "v1.2.3"]);
    repository.write("k8s/deployment.yaml", "kind: Deployment # 2\n");
    let second = repository.commit_and_push("second");
    let web = Web::serve(repository.root().to_owned());
    let (cached, remote) = (cached(), reader_of(&web));
    let commit_of = |revision: &str| {
        let resolved = cached.source.poll(&remote, revision, &going_on()).unwrap();
        (resolved.commit, resolved.reference)
    };

    let head = commit_of("HEAD");
    let asked = web.requests();
    let branch = commit_of("main");
    let tag = commit_of("v1.2.3");
    let commit = commit_of(&first);

    assert_eq!(head, (second.clone(), Some("HEAD".to_owned())));
    assert_eq!(branch, (second, Some("refs/heads/main".to_owned())));
    assert_eq!(tag, (first.clone(), Some("refs/tags/v1.2.3".to_owned())));
    assert_eq!(commit, (first, None));
    // One request is turned away, one tells what the server can, one lists names.
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert!(asked[2].starts_with("POST /origin.git/git-upload-pack"), "{asked:?}");
}

#[test]
fn a_commit_is_fetched_once_and_alone() {
    let repository = Repository::sample();
    for number in 0..5 {
        repository.write("src/noise", number.to_string().repeat(10_000));
        repository.commit_and_push("noise");
    }
    let web = Web::serve(repository.root().to_owned());
    let (cached, remote) = (cached(), reader_of(&web));
    let resolved = cached.source.poll(&remote, "main", &going_on()).unwrap();

    let tree = cached.source.fetch(&remote, &resolved, &[], &going_on()).unwrap();
    web.requests();
    let again = cached.source.fetch(&remote, &resolved, &[], &going_on()).unwrap();

    assert_eq!(web.requests(), [""; 0]);
    assert_eq!(tree, again);
    assert_eq!(tree.get("k8s/deep/er/service.yaml"), Some(&b"kind: Service\n"[..]));
    assert_eq!(tree.get(".attest/receipts/web/7/release.json"), Some(&b"{}"[..]));
    assert_eq!(tree.get("src/main.c"), None);
    assert_eq!(tree.git_commit(), Some(resolved.commit.as_str()));
    assert_eq!(tree.git_tree(), Some(repository.git(&["rev-parse", "HEAD:k8s"]).as_str()));
    let place = cached.source.cached_at(&remote.url);
    let count =
        repository.git(&["-C", place.as_ref().to_str().unwrap(), "rev-list", "--all", "--count"]);
    assert_eq!(count, "1");
}

#[test]
fn the_next_commit_brings_only_what_is_new() {
    let repository = Repository::sample();
    let mut noise = vec![0_u8; 400_000];
    getrandom::fill(&mut noise).unwrap();
    repository.write("src/noise", &noise);
    repository.commit_and_push("noise");
    let web = Web::serve(repository.root().to_owned());
    let (cached, remote) = (cached(), reader_of(&web));
    let fetch = || {
        let resolved = cached.source.poll(&remote, "main", &going_on()).unwrap();
        cached.source.fetch(&remote, &resolved, &[], &going_on()).unwrap()
    };
    let packs = || {
        let place = cached.source.cached_at(&remote.url).as_ref().join("objects/pack");
        let files = std::fs::read_dir(place).unwrap().flatten();
        files.map(|file| file.metadata().unwrap().len()).sum::<u64>()
    };
    fetch();
    let before = packs();

    repository.write("k8s/deployment.yaml", "kind: Deployment # 2\n");
    repository.commit_and_push("second");
    let tree = fetch();

    assert_eq!(tree.get("k8s/deployment.yaml"), Some(&b"kind: Deployment # 2\n"[..]));
    let brought = packs() - before;
    assert!(brought < 20_000, "{brought} bytes for one changed line");
}

#[test]
fn a_wrong_password_and_no_password_say_which_command_gives_another() {
    let repository = Repository::sample();
    let web = Web::serve(repository.root().to_owned());
    let cached = cached();
    let url = web.url("origin.git");
    let wrong = credentials(&web, (READER.0, "guess"));
    let none = Credentials { login: None, ..credentials(&web, READER) };

    for credentials in [wrong, none] {
        let remote = remote(&url, &UrlPolicy::default(), credentials);
        let result = cached.source.poll(&remote, "main", &going_on());
        refused(result, "AuthenticationFailed", "attest gitops repo add");
    }
}

#[test]
fn an_unknown_authority_is_refused_by_name() {
    let repository = Repository::sample();
    let web = Web::serve(repository.root().to_owned());
    let other = Web::serve(repository.root().to_owned());
    let cached = cached();
    for ca_pem in [None, Some(other.ca_pem)] {
        let credentials = Credentials { ca_pem, ..credentials(&web, READER) };
        let remote = remote(&web.url("origin.git"), &UrlPolicy::default(), credentials);

        let result = cached.source.poll(&remote, "main", &going_on());
        refused(result, "CertificateRefused", "--ca-file");
        refused(cached.source.can_push(&remote, &going_on()), "CertificateRefused", "--ca-file");
    }
}

#[test]
fn a_repository_that_is_not_there_is_not_found() {
    let repository = Repository::sample();
    let web = Web::serve(repository.root().to_owned());
    let remote = remote(&web.url("nothing.git"), &UrlPolicy::default(), credentials(&web, READER));

    let result = cached().source.poll(&remote, "main", &going_on());

    refused(result, "RepositoryNotFound", "check the path");
}

#[test]
fn a_server_that_is_not_there_is_unreachable() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let cached = cached();
    for url in [format!("https://127.0.0.1:{closed}/a"), "https://nothing.invalid/a".to_owned()] {
        let remote = remote(&url, &UrlPolicy::default(), Credentials::default());

        refused(cached.source.poll(&remote, "main", &going_on()), "RepositoryUnreachable", "check");
        refused(cached.source.can_push(&remote, &going_on()), "RepositoryUnreachable", "check");
    }
}

#[test]
fn a_server_that_never_answers_is_given_up_in_time() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://127.0.0.1:{}/a", silent.local_addr().unwrap().port());
    let remote = remote(&url, &UrlPolicy::default(), Credentials::default());
    let cached = cached();
    let source = cached.source.with_time(Duration::from_secs(1));
    let begun = Instant::now();

    refused(source.poll(&remote, "main", &going_on()), "SourceTimedOut", "within 1 s");

    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn a_credential_that_could_push_is_found_out_without_pushing() {
    let repository = Repository::sample();
    let web = Web::serve(repository.root().to_owned());
    let cached = cached();
    let can_push = |login| {
        let remote =
            remote(&web.url("origin.git"), &UrlPolicy::default(), credentials(&web, login));
        cached.source.can_push(&remote, &going_on()).unwrap()
    };

    assert!(can_push(WRITER));
    assert!(!can_push(READER));
    assert!(!can_push((WRITER.0, "guess")));
    let asked = web.requests();
    assert!(asked.iter().all(|request| request.starts_with("GET ")), "{asked:?}");
}
