//! What one look at a revision asks of a server, and what it leaves to the fetch.

use attest_supply::source::{Limits, Source, SourceError};

use crate::git::Repository;
use crate::https::reader_of;
use crate::sshd::Sshd;
use crate::web::Web;
use crate::{Cached, cached, file_remote, going_on, refused, ssh};

#[test]
fn a_new_commit_is_received_on_the_connection_that_asked_for_its_name() {
    let repository = Repository::sample();
    let web = Web::serve(repository.root().to_owned());
    let (cached, remote) = (cached(), reader_of(&web));
    let look = || {
        let resolved = cached.source.look(&remote, "main", &going_on()).unwrap();
        (resolved, web.requests())
    };
    // One request is turned away, one tells what the server can, one lists names, the last one brings the commit.
    let opens = |asked: &[String]| asked.iter().filter(|what| what.starts_with("GET ")).count();

    for content in ["kind: Deployment # 2\n", "kind: Deployment # 3\n"] {
        repository.write("k8s/deployment.yaml", content);
        let commit = repository.commit_and_push("next");

        let (resolved, new) = look();
        let tree = cached.source.fetch(&remote, &resolved, &[], &going_on()).unwrap();
        let read = web.requests();
        let (again, unchanged) = look();

        assert_eq!(resolved.commit, commit);
        assert_eq!(tree.get("k8s/deployment.yaml"), Some(content.as_bytes()));
        assert_eq!((opens(&new), new.len()), (2, 4), "{new:?}");
        assert_eq!(read, [""; 0]);
        assert_eq!((opens(&unchanged), unchanged.len()), (2, 3), "{unchanged:?}");
        assert_eq!(again, resolved);
    }
}

#[test]
fn a_branch_a_tag_and_head_are_in_the_cache_after_one_look() {
    let (repository, first, second) = Repository::tagged();
    let mut remotes = vec![file_remote(&repository.bare())];
    let servers = [Sshd::start(), Sshd::start_old()];
    let ssh = servers.iter().flatten().map(|sshd| ssh::with(sshd, &repository, "reader", "host"));
    remotes.extend(ssh);

    for remote in &remotes {
        for (revision, commit) in [("v1", &first), ("main", &second), ("HEAD", &second)] {
            let cached = cached();
            let resolved = cached.source.look(remote, revision, &going_on()).unwrap();
            let away = repository.bare().with_extension("away");
            std::fs::rename(repository.bare(), &away).unwrap();
            let tree = cached.source.fetch(remote, &resolved, &[], &going_on());
            std::fs::rename(&away, repository.bare()).unwrap();

            assert_eq!(tree.unwrap().git_commit(), Some(commit.as_str()), "{revision}");
        }
    }
}

#[test]
fn a_name_that_is_a_branch_and_a_tag_is_refused_before_anything_is_received() {
    let repository = Repository::sample();
    let commit = repository.git(&["rev-parse", "HEAD"]);
    for name in ["v1", &commit] {
        repository.git(&["update-ref", &format!("refs/heads/{name}"), &commit]);
        repository.git(&["update-ref", &format!("refs/tags/{name}"), &commit]);
        let (branch, tag) = (format!("refs/heads/{name}"), format!("refs/tags/{name}"));
        repository.git(&["push", "--quiet", "origin", &branch, &tag]);
        let (cached, remote) = (cached(), file_remote(&repository.bare()));

        refused(cached.source.look(&remote, name, &going_on()), "ReferenceAmbiguous", "full name");

        assert_eq!(packs(&cached.source, &remote), 0);
    }
}

#[test]
fn a_commit_that_is_named_by_its_id_is_left_to_the_fetch() {
    let repository = Repository::sample();
    let commit = repository.git(&["rev-parse", "HEAD"]);
    let (cached, remote) = (cached(), file_remote(&repository.bare()));

    let resolved = cached.source.look(&remote, &commit, &going_on()).unwrap();

    assert_eq!(packs(&cached.source, &remote), 0);
    let tree = cached.source.fetch(&remote, &resolved, &[], &going_on()).unwrap();
    assert_eq!(tree.git_commit(), Some(commit.as_str()));
}

#[test]
fn a_look_gives_up_a_commit_that_is_too_large() {
    let repository = Repository::sample();
    let mut noise = vec![0_u8; 12_000_000];
    getrandom::fill(&mut noise).unwrap();
    repository.write("src/noise.bin", &noise);
    repository.commit_and_push("noise");
    let Cached { source, directory } = cached();
    let source = source.with_limits(Limits { pack_bytes_max: 1_000_000, ..Limits::default() });
    let remote = file_remote(&repository.bare());

    let result = source.look(&remote, "main", &going_on());

    refused(result, "RepositoryLimit", "1000000 bytes");
    drop(directory);
}

#[test]
fn what_a_damaged_cache_cannot_receive_is_fetched_from_nothing() {
    let repository = Repository::sample();
    let (cached, remote) = (cached(), file_remote(&repository.bare()));
    let read = || -> Result<_, SourceError> {
        let resolved = cached.source.look(&remote, "main", &going_on())?;
        cached.source.fetch(&remote, &resolved, &[], &going_on())
    };
    read().unwrap();
    let pack = cached.source.cached_at(&remote.url).as_ref().join("objects/pack");
    for file in std::fs::read_dir(pack).unwrap().flatten() {
        let mut permissions = file.metadata().unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o644);
        std::fs::set_permissions(file.path(), permissions).unwrap();
        let bytes = std::fs::read(file.path()).unwrap();
        std::fs::write(file.path(), &bytes[..bytes.len() / 2]).unwrap();
    }
    repository.write("k8s/deployment.yaml", "kind: Deployment # 2\n");
    let second = repository.commit_and_push("second");

    let tree = read().unwrap();

    assert_eq!(tree.git_commit(), Some(second.as_str()));
    assert_eq!(tree.get("k8s/deployment.yaml"), Some(&b"kind: Deployment # 2\n"[..]));
}

#[test]
fn many_looks_at_once_share_one_cache() {
    let repository = Repository::sample();
    let (cached, remote) = (cached(), file_remote(&repository.bare()));
    for round in 0..3 {
        repository.write("k8s/deployment.yaml", format!("kind: Deployment # {round}\n"));
        let commit = repository.commit_and_push("next");

        let read = || {
            let resolved = cached.source.look(&remote, "main", &going_on()).unwrap();
            cached.source.fetch(&remote, &resolved, &[], &going_on()).unwrap()
        };
        let trees: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(read)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });

        assert!(trees.iter().all(|tree| tree.git_commit() == Some(commit.as_str())));
        assert_eq!(packs(&cached.source, &remote), round + 1);
    }
}

fn packs(source: &Source, remote: &attest_supply::source::Remote) -> usize {
    let place = source.cached_at(&remote.url).as_ref().join("objects/pack");
    let Ok(files) = std::fs::read_dir(place) else { return 0 };
    files.flatten().filter(|file| file.path().extension().is_some_and(|end| end == "pack")).count()
}
