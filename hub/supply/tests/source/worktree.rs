//! The clone in which `attest run` works.

use attest_supply::recipe::declared_source_root;
use attest_supply::source::WorkTree;

use crate::assert_error;
use crate::git::Repository;

#[test]
fn staged_files_are_read_from_the_index_and_not_from_disk() {
    let repository = Repository::sample();
    let tree =
        WorkTree::discover(&repository.work().join("k8s/deep"), declared_source_root).unwrap();
    repository.write(".gitignore", ".attest/\n");
    repository.write(".attest/rendered/web/all.jsonl", "signed\n");
    std::fs::remove_dir_all(repository.work().join(".attest/receipts")).unwrap();

    tree.stage(&[".attest"]).unwrap();
    repository.write(".attest/rendered/web/all.jsonl", "changed afterwards\n");
    repository.write("k8s/deployment.yaml", "changed on disk\n");
    let index = tree.read_index(&[]).unwrap();
    let disk = tree.read_files(&[]).unwrap();

    assert_eq!(index.get(".attest/rendered/web/all.jsonl"), Some(&b"signed\n"[..]));
    assert_eq!(index.get(".attest/receipts/web/7/release.json"), None);
    assert_eq!(index.get("k8s/deployment.yaml"), Some(&b"kind: Deployment\n"[..]));
    assert_eq!(disk.get("k8s/deployment.yaml"), Some(&b"changed on disk\n"[..]));
    assert_eq!(disk.get(".attest/rendered/web/all.jsonl"), None);
    assert_eq!(index.git_commit(), Some(repository.git(&["rev-parse", "HEAD"]).as_str()));
    let k8s = repository.git(&["rev-parse", "HEAD:k8s"]);
    assert_eq!(disk.git_tree(), Some(k8s.as_str()));
    assert_eq!(tree.head_tree("k8s").unwrap(), Some(k8s));
}

#[test]
fn a_clone_without_a_commit_is_read_too() {
    let repository = Repository::new();
    repository.write("attest.yaml", crate::git::RECIPE);
    repository.write("k8s/a.yaml", "a: 1\n");
    let tree = WorkTree::discover(&repository.work(), declared_source_root).unwrap();

    assert_eq!(tree.head_commit(), None);
    assert_eq!(tree.read_files(&[]).unwrap().get("k8s/a.yaml"), Some(&b"a: 1\n"[..]));
    assert_error(tree.read_index(&["k8s"]), "PathMissing", "k8s");
    tree.stage(&["attest.yaml", "k8s"]).unwrap();
    assert_eq!(tree.read_index(&[]).unwrap().get("k8s/a.yaml"), Some(&b"a: 1\n"[..]));
}

#[test]
fn an_unfinished_merge_and_a_link_are_rejected() {
    let repository = Repository::sample();
    repository.git(&["checkout", "--quiet", "-b", "side"]);
    repository.write("k8s/deployment.yaml", "side\n");
    repository.commit_and_push("side");
    repository.git(&["checkout", "--quiet", "main"]);
    repository.write("k8s/deployment.yaml", "main\n");
    repository.commit_and_push("main");
    let tree = WorkTree::discover(&repository.work(), declared_source_root).unwrap();
    let merge = std::process::Command::new("git")
        .args(["-c", "user.name=CI", "-c", "user.email=ci@example.invalid", "merge", "side"])
        .current_dir(repository.work())
        .output()
        .unwrap();
    assert!(!merge.status.success());

    assert_error(tree.read_index(&[]), "IndexConflict", "k8s/deployment.yaml");

    repository.git(&["merge", "--abort"]);
    std::os::unix::fs::symlink("x", repository.work().join("k8s/link")).unwrap();
    assert_error(tree.read_files(&[]), "TreeSymlink", "k8s/link");
    tree.stage(&["k8s"]).unwrap();
    assert_error(tree.read_index(&[]), "TreeSymlink", "k8s/link");
}

#[test]
fn a_clone_is_read_regardless_of_its_owner_and_only_its_owner_stages() {
    let repository = Repository::sample();
    let give_away = |path: &str| {
        std::os::unix::fs::chown(repository.work().join(path), Some(12345), None).is_ok()
    };
    // Only root can change the owner; for other users it remains their own clone.
    let is_given_away = give_away("") && give_away(".git");

    let tree = WorkTree::discover(&repository.work(), declared_source_root).unwrap();

    assert!(tree.head_commit().is_some());
    assert!(tree.read_index(&[]).unwrap().get("k8s/deployment.yaml").is_some());
    let staged = tree.stage(&["k8s"]);
    if is_given_away {
        // Git itself refuses to write there and names the setting that allows it.
        assert_error(staged, "GitProgram", "safe.directory");
    } else {
        staged.unwrap();
    }
}

#[test]
fn a_directory_without_a_repository_is_not_a_work_tree() {
    let directory = tempfile::tempdir().unwrap();

    assert_error(
        WorkTree::discover(directory.path(), declared_source_root),
        "NotAWorkTree",
        "git init",
    );
    let repository = Repository::sample();
    assert_error(
        WorkTree::discover(&repository.bare(), declared_source_root),
        "NotAWorkTree",
        "git init",
    );
}
