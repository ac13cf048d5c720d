//! `attest init`, `attest key`, `attest version`, `attest completion`.

use std::os::unix::fs::PermissionsExt as _;

use crate::sandbox::{self, Sandbox};

#[test]
fn init_writes_what_is_missing_and_keeps_what_is_there() {
    let sandbox = Sandbox::empty();
    sandbox.write("k8s/base/service.yaml", "mine\n");

    sandbox
        .attest(&["init", "--application", "web"])
        .code(0)
        .shows(&[
            "attest.yaml created",
            "k8s/base/service.yaml unchanged",
            ".attest/keys/.gitkeep created",
        ])
        .tells(&["next:", "attest run --sign --verify"]);

    assert_eq!(sandbox.read("k8s/base/service.yaml"), "mine\n");
    assert!(sandbox.read("attest.yaml").contains("application: web\n"));
    sandbox.attest(&["init", "--application", "other"]).code(0).shows(&["attest.yaml unchanged"]);
    assert!(sandbox.read("attest.yaml").contains("application: web\n"));
}

#[test]
fn what_init_writes_can_be_run() {
    let sandbox = Sandbox::empty();
    sandbox.attest(&["init", "--application", "web"]).code(0);
    let digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    let pinned = format!("newTag: v1, digest: \"{digest}\"");
    sandbox.replace("attest.yaml", "newTag: \"${GITHUB_SHA}\", from: build", &pinned);
    let recipe = sandbox.read("attest.yaml");
    let without_steps: Vec<&str> =
        recipe.lines().filter(|line| !line.contains("run: ./")).collect();
    sandbox.write("attest.yaml", &without_steps.join("\n"));
    sandbox.replace("attest.yaml", "steps:\n", "");
    sandbox.commit("Begin");
    if !sandbox::has("kustomize") {
        return;
    }

    sandbox.attest(&["run"]).code(0).shows(&["staging", "production"]);
}

#[test]
fn the_steps_that_init_names_lead_to_a_signed_release_as_they_are_printed() {
    let mut sandbox = Sandbox::web_app();
    for file in ["attest.yaml", "k8s"] {
        sandbox.git(&["rm", "-rq", file]);
    }
    sandbox.set("PATH", sandbox::path_with_attest());
    let said = sandbox.attest(&["init", "--application", "web"]).code(0);
    if !sandbox::has("kustomize") {
        return;
    }
    // The steps themselves are those of the sample; the first line is for a person.
    let printed = said.stderr.split("next:\n").nth(1).unwrap();
    let lines: Vec<&str> = printed.lines().skip(1).collect();
    assert!(printed.contains("edit attest.yaml") && lines.len() > 3, "{printed}");

    sandbox.run("sh", &["-euc", &lines.join("\n")]).code(0).shows(&["staging", "production"]);

    assert!(sandbox.git(&["diff", "--cached", "--name-only"]).contains(".attest/receipts/web/"));
}

#[test]
fn a_new_key_is_for_its_owner_only_and_outside_of_repositories() {
    let sandbox = Sandbox::empty();

    sandbox.attest(&["key", "gen"]).code(0).shows(&["ed25519-key-", "BEGIN PUBLIC KEY"]);

    let file = sandbox.outside("signing.key");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let private = sandbox.attest(&["key", "show", file.to_str().unwrap(), "-o", "json"]).code(0);
    let public = format!("{}.pub", file.display());
    let public = sandbox.attest(&["key", "show", &public, "-o", "json"]).code(0);
    assert_eq!(private.stdout, public.stdout);
    assert!(!private.stdout.contains("PRIVATE"));
    sandbox.attest(&["key", "gen"]).code(1).tells(&["already exists"]);
    sandbox.attest(&["key", "gen", "ci.key"]).code(1).tells(&["outside repositories"]);
    sandbox.attest(&["key", "gen", "--name", "hub"]).code(0);
    assert!(sandbox.outside("keys/hub.key").exists());
}

#[test]
fn data_goes_to_standard_output_and_a_reader_may_leave() {
    let sandbox = Sandbox::empty();

    sandbox.attest(&["version"]).code(0).shows(&["attest"]);
    for shell in ["bash", "zsh", "fish"] {
        sandbox.attest(&["completion", shell]).code(0).shows(&["attest"]);
    }
    let pipe = format!("{} completion bash | head -n 1", env!("CARGO_BIN_EXE_attest"));
    let said = sandbox.run("sh", &["-c", &pipe]).code(0);
    assert_eq!(said.stderr, "");
}
