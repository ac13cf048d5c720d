//! Content that a repository may have where it is read.

use attest_supply::source::{RepositoryLimits, SourceError, Tree};

use crate::git::Repository;
use crate::{assert_error, cached, file_remote, no_interrupt};

fn read_with(repository: &Repository, limits: RepositoryLimits) -> Result<Tree, SourceError> {
    let cached = cached();
    let source = cached.source.with_limits(limits);
    let remote = file_remote(&repository.bare());
    let resolved = source.poll(&remote, "main", &no_interrupt())?;
    source.fetch(&remote, &resolved, &[], &no_interrupt())
}

fn read(repository: &Repository) -> Result<Tree, SourceError> {
    read_with(repository, RepositoryLimits::default())
}

#[test]
fn a_symbolic_link_is_rejected_only_where_files_are_read() {
    let repository = Repository::sample();
    let link = |path: &str| {
        std::os::unix::fs::symlink("/etc/passwd", repository.work().join(path)).unwrap();
        repository.commit_and_push("link");
    };

    link("src/link");
    assert!(read(&repository).is_ok());
    link("k8s/link.yaml");
    assert_error(read(&repository), "TreeSymlink", "k8s/link.yaml");
    repository.git(&["rm", "--quiet", "k8s/link.yaml"]);
    link(".attest/keys");
    assert_error(read(&repository), "TreeSymlink", ".attest/keys");
}

#[test]
fn a_source_root_or_recipe_that_is_a_link_is_not_followed() {
    let repository = Repository::sample();
    repository.git(&["mv", "k8s", "manifests"]);
    std::os::unix::fs::symlink("manifests", repository.work().join("k8s")).unwrap();
    repository.commit_and_push("link");
    assert_error(read(&repository), "TreeSymlink", "k8s");

    repository.git(&["mv", "attest.yaml", "real.yaml"]);
    std::os::unix::fs::symlink("real.yaml", repository.work().join("attest.yaml")).unwrap();
    repository.commit_and_push("link");
    assert_error(read(&repository), "TreeSymlink", "attest.yaml");
}

#[test]
fn a_submodule_is_rejected_and_never_fetched() {
    let repository = Repository::sample();
    let commit = repository.git(&["rev-parse", "HEAD"]);
    repository
        .write(".gitmodules", "[submodule \"x\"]\npath = k8s/x\nurl = ext::sh -c touch% /tmp/x\n");
    repository.git(&["add", ".gitmodules"]);
    let entry = format!("160000,{commit},k8s/x");
    repository.git(&["update-index", "--add", "--cacheinfo", &entry]);
    repository.git(&["commit", "--quiet", "-m", "submodule"]);
    repository.git(&["push", "--quiet", "origin", "HEAD"]);

    assert_error(read(&repository), "TreeSubmodule", "k8s/x");
}

#[test]
fn a_large_file_pointer_is_rejected_and_filters_are_not_run() {
    let repository = Repository::sample();
    repository.write(".gitattributes", "*.yaml ident export-subst\n");
    repository.write("k8s/id.yaml", "# $Id$\n");
    repository.commit_and_push("attributes");
    assert_eq!(read(&repository).unwrap().get("k8s/id.yaml"), Some(&b"# $Id$\n"[..]));

    repository.write(
        "k8s/model.bin",
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    );
    repository.commit_and_push("pointer");
    assert_error(read(&repository), "TreeLfsPointer", "k8s/model.bin");
}

#[test]
fn an_exceeded_limit_is_named() {
    let repository = Repository::sample();
    let mut noise = vec![0_u8; 300_000];
    getrandom::fill(&mut noise).unwrap();
    repository.write("k8s/noise.bin", &noise);
    repository.commit_and_push("noise");
    let limits = RepositoryLimits::default();
    let over = |limits: RepositoryLimits, advice: &str| {
        assert_error(read_with(&repository, limits), "RepositoryLimit", advice);
    };

    over(
        RepositoryLimits { blob_bytes_max: 100_000, ..limits },
        "file \"k8s/noise.bin\" (300000 bytes)",
    );
    over(RepositoryLimits { tree_bytes_max: 100_000, ..limits }, "all files together");
    over(RepositoryLimits { files_max: 2, ..limits }, "number of files");
    over(RepositoryLimits { entries_max: 2, ..limits }, "number of entries");
    assert!(read_with(&repository, limits).is_ok());
}

#[test]
fn the_fetch_of_a_commit_that_is_too_large_is_terminated() {
    let repository = Repository::sample();
    let mut noise = vec![0_u8; 12_000_000];
    getrandom::fill(&mut noise).unwrap();
    repository.write("src/noise.bin", &noise);
    repository.commit_and_push("noise");
    let limits = RepositoryLimits { pack_bytes_max: 1_000_000, ..RepositoryLimits::default() };

    assert_error(read_with(&repository, limits), "RepositoryLimit", "1000000 bytes");
}

#[test]
fn names_that_git_would_not_write_are_refused() {
    for name in ["..", ".", ".git", ".GIT", "git~1", "a\\b.yaml", "nul.yaml", "a\nb.yaml"] {
        assert_error(fetched_with(name), "TreePath", "rename it");
    }
}

#[test]
fn names_that_not_every_system_has_are_left_out_where_they_are_not_used() {
    for name in ["a\\b", "nul", "a\nb"] {
        assert!(fetched_with(name).unwrap().is_empty(), "{name:?}");
    }
}

/// Fetches a commit with a file of this name among the manifests.
fn fetched_with(name: &str) -> Result<Tree, SourceError> {
    let repository = Repository::sample();
    let blob = repository.object("blob", b"kind: ConfigMap\n");
    let inner = tree(&[("100644", name, &blob)]);
    let inner = repository.object("tree", &inner);
    let root = repository.object("tree", &tree(&[("40000", "k8s", &inner)]));
    let commit = repository.git(&["commit-tree", "-m", "hostile", &root]);
    repository.publish("main", &commit);
    let cached = cached();
    let remote = file_remote(&repository.bare());
    let resolved = cached.source.poll(&remote, "main", &no_interrupt()).unwrap();
    cached.source.fetch(&remote, &resolved, &["k8s"], &no_interrupt())
}

#[test]
fn a_repeated_name_is_rejected() {
    let repository = Repository::sample();
    let blobs = [repository.object("blob", b"a: 1\n"), repository.object("blob", b"a: 2\n")];
    let entries = [("100644", "x.yaml", &blobs[0]), ("100644", "x.yaml", &blobs[1])];
    let inner = repository.object("tree", &tree(&entries));
    let root = repository.object("tree", &tree(&[("40000", "k8s", &inner)]));
    let commit = repository.git(&["commit-tree", "-m", "twice", &root]);
    repository.publish("main", &commit);
    let cached = cached();
    let remote = file_remote(&repository.bare());
    let resolved = cached.source.poll(&remote, "main", &no_interrupt()).unwrap();

    let result = cached.source.fetch(&remote, &resolved, &["k8s"], &no_interrupt());

    assert_error(result, "TreePath", "twice");
}

#[test]
fn a_commit_with_two_trees_is_rejected() {
    let repository = Repository::sample();
    let tree = repository.git(&["rev-parse", "HEAD^{tree}"]);
    let commit = format!(
        "tree {tree}\ntree {tree}\nauthor a <a> 1 +0000\ncommitter a <a> 1 +0000\n\ntwo trees\n"
    );
    let commit = repository.object("commit", commit.as_bytes());
    repository.publish("main", &commit);

    assert_error(read(&repository), "CommitStructure", "exactly one tree");
}

#[test]
fn a_missing_directory_is_named() {
    let repository = Repository::sample();
    let cached = cached();
    let remote = file_remote(&repository.bare());
    let resolved = cached.source.poll(&remote, "main", &no_interrupt()).unwrap();
    let fetch = |path| cached.source.fetch(&remote, &resolved, &[path], &no_interrupt());

    assert_error(fetch("charts"), "PathMissing", "charts");
    assert_error(fetch("../x"), "TreePath", "../x");
    assert_error(fetch("attest.yaml"), "TreePath", "a file where a directory is expected");
}

fn tree(entries: &[(&str, &str, &String)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (mode, name, id) in entries {
        bytes.extend_from_slice(format!("{mode} {name}\0").as_bytes());
        bytes.extend(data_encoding::HEXLOWER.decode(id.as_bytes()).unwrap());
    }
    bytes
}
