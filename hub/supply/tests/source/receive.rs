//! Receiving a commit on the connection of a poll, and the commits that are left to the fetch.

use attest_supply::source::{RepositoryLimits, SourceError};

use crate::git::Repository;
use crate::https::reader_of;
use crate::sshd::Sshd;
use crate::web::Web;
use crate::{Cached, assert_error, cached, file_remote, no_interrupt, ssh};

#[test]
fn a_new_commit_is_received_on_the_connection_of_the_poll() {
    let repository = Repository::sample();
    let web = Web::serve(repository.root().to_owned());
    let (cached, remote) = (cached(), reader_of(&web));
    let poll = || {
        let resolved = cached.source.poll_and_receive(&remote, "main", &no_interrupt()).unwrap();
        (resolved, web.requests())
    };
    // The first request is rejected, the second returns the capabilities, the third lists references, the last one
    // receives the commit. Before the second commit, one request finds that the first is no longer the newest.
    let opens =
        |requests: &[String]| requests.iter().filter(|request| request.starts_with("GET ")).count();

    for (content, requests) in [("kind: Deployment # 2\n", 4), ("kind: Deployment # 3\n", 5)] {
        repository.write("k8s/deployment.yaml", content);
        let commit = repository.commit_and_push("next");

        let (resolved, new) = poll();
        let tree = cached.source.fetch(&remote, &resolved, &[], &no_interrupt()).unwrap();
        let read = web.requests();
        let (again, unchanged) = poll();

        assert_eq!(resolved.commit, commit);
        assert_eq!(tree.get("k8s/deployment.yaml"), Some(content.as_bytes()));
        assert_eq!((opens(&new), new.len()), (2, requests), "{new:?}");
        assert_eq!(read, [""; 0]);
        assert_eq!((opens(&unchanged), unchanged.len()), (0, 1), "{unchanged:?}");
        assert_eq!(again, resolved);
    }
}

#[test]
fn a_branch_a_tag_and_head_are_in_the_cache_after_one_poll() {
    let (repository, first, second) = Repository::tagged();
    let mut remotes = vec![file_remote(&repository.bare())];
    let servers = [Sshd::start(), Sshd::start_old()];
    let ssh = servers.iter().flatten().map(|sshd| ssh::with(sshd, &repository, "reader", "host"));
    remotes.extend(ssh);

    for remote in &remotes {
        for (revision, commit) in [("v1", &first), ("main", &second), ("HEAD", &second)] {
            let cached = cached();
            let resolved =
                cached.source.poll_and_receive(remote, revision, &no_interrupt()).unwrap();
            let moved = repository.bare().with_extension("moved");
            std::fs::rename(repository.bare(), &moved).unwrap();
            let tree = cached.source.fetch(remote, &resolved, &[], &no_interrupt());
            std::fs::rename(&moved, repository.bare()).unwrap();

            assert_eq!(tree.unwrap().git_commit(), Some(commit.as_str()), "{revision}");
        }
    }
}

#[test]
fn a_name_that_is_a_branch_and_a_tag_is_rejected_before_anything_is_received() {
    let repository = Repository::sample();
    let commit = repository.git(&["rev-parse", "HEAD"]);
    for name in ["v1", &commit] {
        repository.git(&["update-ref", &format!("refs/heads/{name}"), &commit]);
        repository.git(&["update-ref", &format!("refs/tags/{name}"), &commit]);
        let (branch, tag) = (format!("refs/heads/{name}"), format!("refs/tags/{name}"));
        repository.git(&["push", "--quiet", "origin", &branch, &tag]);
        let (cached, remote) = (cached(), file_remote(&repository.bare()));

        assert_error(
            cached.source.poll_and_receive(&remote, name, &no_interrupt()),
            "ReferenceAmbiguous",
            "full name",
        );

        assert_eq!(cached.packs(), 0);
    }
}

#[test]
fn a_commit_that_is_named_by_its_id_is_left_to_the_fetch() {
    let repository = Repository::sample();
    let commit = repository.git(&["rev-parse", "HEAD"]);
    let (cached, remote) = (cached(), file_remote(&repository.bare()));

    let resolved = cached.source.poll_and_receive(&remote, &commit, &no_interrupt()).unwrap();

    assert_eq!(cached.packs(), 0);
    let tree = cached.source.fetch(&remote, &resolved, &[], &no_interrupt()).unwrap();
    assert_eq!(tree.git_commit(), Some(commit.as_str()));
}

#[test]
fn a_commit_that_is_too_large_is_not_received() {
    let repository = Repository::sample();
    let mut noise = vec![0_u8; 12_000_000];
    getrandom::fill(&mut noise).unwrap();
    repository.write("src/noise.bin", &noise);
    repository.commit_and_push("noise");
    let Cached { source, directory } = cached();
    let source = source
        .with_limits(RepositoryLimits { pack_bytes_max: 1_000_000, ..RepositoryLimits::default() });
    let remote = file_remote(&repository.bare());

    let result = source.poll_and_receive(&remote, "main", &no_interrupt());

    assert_error(result, "RepositoryLimit", "1000000 bytes");
    drop(directory);
}

#[test]
fn a_commit_that_a_damaged_cache_cannot_receive_is_fetched_into_an_empty_one() {
    let repository = Repository::sample();
    let (cached, remote) = (cached(), file_remote(&repository.bare()));
    let read = || -> Result<_, SourceError> {
        let resolved = cached.source.poll_and_receive(&remote, "main", &no_interrupt())?;
        cached.source.fetch(&remote, &resolved, &[], &no_interrupt())
    };
    read().unwrap();
    cached.damage_packs();
    repository.write("k8s/deployment.yaml", "kind: Deployment # 2\n");
    let second = repository.commit_and_push("second");

    let tree = read().unwrap();

    assert_eq!(tree.git_commit(), Some(second.as_str()));
    assert_eq!(tree.get("k8s/deployment.yaml"), Some(&b"kind: Deployment # 2\n"[..]));
}

#[test]
fn concurrent_polls_share_one_cache() {
    let repository = Repository::sample();
    let (cached, remote) = (cached(), file_remote(&repository.bare()));
    for round in 0..3 {
        repository.write("k8s/deployment.yaml", format!("kind: Deployment # {round}\n"));
        let commit = repository.commit_and_push("next");

        let read = || {
            let resolved =
                cached.source.poll_and_receive(&remote, "main", &no_interrupt()).unwrap();
            cached.source.fetch(&remote, &resolved, &[], &no_interrupt()).unwrap()
        };
        let trees: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(read)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });

        assert!(trees.iter().all(|tree| tree.git_commit() == Some(commit.as_str())));
        assert_eq!(cached.packs(), round + 1);
    }
}
