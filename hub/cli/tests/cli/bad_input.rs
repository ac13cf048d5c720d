//! Bad input: one clear error that names the file or field and what to do, and nothing half-written.

use crate::sandbox::Sandbox;

#[track_caller]
fn refused(sandbox: &Sandbox, words: &[&str]) {
    let said = sandbox.attest(&["run", "--sign"]).code(1).tells(words);
    assert_eq!(said.stderr.matches("error:").count(), 1, "{}", said.stderr);
    assert!(!sandbox.at(".attest/rendered").exists());
    assert!(sandbox.counters().is_empty());
    assert!(sandbox.git(&["diff", "--cached", "--name-only"]).is_empty());
}

#[test]
fn a_private_key_inside_the_work_tree_is_refused() {
    let mut sandbox = Sandbox::flat().with_key();
    std::fs::copy(sandbox.outside("signing.key"), sandbox.at("ci.key")).unwrap();
    sandbox.set("ATTEST_SIGNING_KEY_FILE", sandbox.at("ci.key"));
    refused(&sandbox, &["is inside the repository", "move it out"]);

    let sandbox = Sandbox::flat().with_key();
    std::fs::copy(sandbox.outside("signing.key"), sandbox.at(".attest/keys/ci.key")).unwrap();
    refused(&sandbox, &[".attest/keys/ci.key is inside the repository"]);
}

#[test]
fn no_key_says_how_to_get_one() {
    refused(&Sandbox::flat(), &["no signing key", "ATTEST_SIGNING_KEY_FILE", "attest key gen"]);
}

#[test]
fn an_unset_variable_is_named() {
    let mut sandbox = Sandbox::flat().with_key();
    sandbox.set("GITHUB_SHA", "");

    refused(&sandbox, &["attest.yaml: images[0].newTag", "GITHUB_SHA is not set"]);
}

#[test]
fn an_unknown_field_of_the_recipe_is_named() {
    let sandbox = Sandbox::flat().with_key();
    sandbox.replace("attest.yaml", "sourceRoot: k8s", "sourceRoot: k8s\nsourceRoots: k8s");

    refused(&sandbox, &["attest.yaml", "sourceRoots"]);
}

#[test]
fn a_duplicate_key_in_a_manifest_is_refused() {
    let sandbox = Sandbox::flat().with_key();
    sandbox.replace("k8s/deployment.yaml", "  replicas: 2", "  replicas: 2\n  replicas: 3");

    refused(&sandbox, &["k8s/deployment.yaml", "replicas"]);
}

#[test]
fn missing_kustomize_is_noticed_before_the_build() {
    let mut sandbox = Sandbox::web_app().with_key();
    // A PATH with git, a shell and what the steps need, and neither kustomize nor kubectl.
    let bin = sandbox.outside("bin");
    std::fs::create_dir(&bin).unwrap();
    for program in ["git", "sh"] {
        let path = std::env::var_os("PATH").unwrap();
        let found = std::env::split_paths(&path).map(|d| d.join(program)).find(|p| p.is_file());
        std::os::unix::fs::symlink(found.unwrap(), bin.join(program)).unwrap();
    }
    sandbox.set("PATH", bin);

    refused(&sandbox, &["neither `kustomize` nor `kubectl`", "install"]);
    assert!(!sandbox.at("out").exists());
}

#[test]
fn an_image_without_a_digest_is_named_with_what_should_give_it() {
    let sandbox = Sandbox::flat().with_key();
    sandbox.replace("attest.yaml", ", from: build}", "}");
    refused(&sandbox, &["image `myapp:", "from: build"]);

    let sandbox = Sandbox::flat().with_key();
    let sidecar = "        - name: sidecar\n          image: proxy:1.2\n        - name: web-app\n";
    sandbox.replace("k8s/deployment.yaml", "        - name: web-app\n", sidecar);
    refused(&sandbox, &["image `proxy:1.2`", "proxy:1.2@sha256:"]);
    assert!(!sandbox.at("out").exists(), "nothing was built for it");
}

#[test]
fn an_image_change_that_matches_nothing_is_an_error() {
    let sandbox = Sandbox::flat().with_key();
    sandbox.replace("attest.yaml", "name: myapp", "name: otherapp");

    refused(&sandbox, &["images[0]", "otherapp"]);
}

#[test]
fn renders_that_one_cluster_could_take_alike_are_refused() {
    let sandbox = Sandbox::flat().with_key();
    let second = "renders:\n- {name: more, path: k8s, environments: [staging], \
                  namespace: {mode: default-only, pattern: \"*\"}}\n";
    sandbox.replace("attest.yaml", "renders:\n", second);

    refused(&sandbox, &["ambiguous", "all", "more"]);
    assert!(!sandbox.at("out").exists(), "nothing was built for it");
}

#[test]
fn an_image_layout_whose_blobs_were_changed_is_refused() {
    let sandbox = Sandbox::flat().with_key();
    let tamper = "run: ./build.sh && for blob in out/image/blobs/sha256/*; do echo >> $blob; done";
    sandbox.replace("attest.yaml", "run: ./build.sh", tamper);

    refused(&sandbox, &["step `build`", "the content of the blob does not have digest"]);
}

#[test]
fn a_repository_without_a_commit_is_told_so() {
    let sandbox = Sandbox::empty();
    sandbox.attest(&["init", "--application", "web"]).code(0);
    sandbox.attest(&["key", "gen"]).code(0);

    sandbox.attest(&["run", "--sign"]).code(1).tells(&["has no commit;"]);
    std::fs::remove_file(sandbox.at("attest.yaml")).unwrap();
    sandbox.attest(&["run"]).code(1).tells(&["no attest.yaml", "attest init"]);
}

#[test]
fn a_link_in_place_of_the_receipts_is_not_followed() {
    let sandbox = Sandbox::flat().with_key();
    std::fs::remove_dir_all(sandbox.at(".attest/receipts")).unwrap();
    let elsewhere = sandbox.outside("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, sandbox.at(".attest/receipts")).unwrap();

    sandbox.attest(&["run", "--sign"]).code(1).tells(&["symbolic link"]);

    assert_eq!(std::fs::read_dir(elsewhere).unwrap().count(), 0);
}
