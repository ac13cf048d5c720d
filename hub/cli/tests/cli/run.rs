//! `attest run`.

use crate::sandbox::{SHA, Sandbox, has};

#[test]
fn what_was_built_tested_and_scanned_is_signed_staged_and_verified() {
    if !has("kustomize") {
        return;
    }
    let sandbox = Sandbox::web_app().with_key();

    let said = sandbox.attest(&["run", "--sign", "--verify"]).code(0);

    said.tells(&["step build: passed", "step test: passed", "verified"])
        .shows(&["staging", "production"]);
    let staged = sandbox.git(&["diff", "--cached", "--name-only"]);
    let counter = sandbox.counters()[0];
    for file in ["build", "test", "security-scan", "release"] {
        assert!(
            staged.contains(&format!(".attest/receipts/web-app/{counter}/{file}.")),
            "{staged}"
        );
    }
    assert!(staged.contains(".attest/rendered/web-app/production.jsonl"), "{staged}");
    let release = sandbox.statement("release");
    let images = &release["predicate"]["renders"][0]["images"][0];
    assert_eq!(images["ref"], format!("myapp:{SHA}"));
    let index = sandbox.read("out/image/index.json");
    assert!(index.contains(images["digest"].as_str().unwrap()), "{images} {index}");
    assert_eq!(release["predicate"]["source"]["repo"], "https://git.example/company/web-app");
    assert_eq!(
        release["predicate"]["source"]["gitCommit"],
        sandbox.git(&["rev-parse", "HEAD"]).trim()
    );
    assert_eq!(
        release["predicate"]["source"]["gitTree"],
        sandbox.git(&["rev-parse", "HEAD:k8s"]).trim()
    );
}

#[test]
fn without_sign_nothing_is_written() {
    if !has("kustomize") {
        return;
    }
    let sandbox = Sandbox::web_app();

    sandbox.attest(&["run"]).code(0).tells(&["nothing is signed"]).shows(&["staging", SHA]);

    assert!(sandbox.counters().is_empty());
    assert_eq!(sandbox.git(&["status", "--porcelain"]), "");
}

#[test]
fn a_failing_test_leaves_no_receipt() {
    let sandbox = Sandbox::flat().with_key();
    sandbox.replace("src/web-app", "405 Method Not Allowed", "200 OK");

    sandbox
        .attest(&["run", "--sign", "--verify"])
        .code(1)
        .tells(&["step `test` failed", "nothing is signed"]);

    assert!(sandbox.counters().is_empty());
    assert_eq!(sandbox.git(&["diff", "--cached", "--name-only"]), "");
}

#[test]
fn a_test_report_with_a_failure_counts_also_when_the_command_ends_well() {
    let sandbox = Sandbox::flat().with_key();
    sandbox.replace("src/web-app", "405 Method Not Allowed", "200 OK");
    sandbox.replace("attest.yaml", "run: ./test.sh", "run: ./test.sh || true");

    sandbox.attest(&["run", "--sign"]).code(1).tells(&[
        "step `test`",
        "tests failed",
        "nothing is signed",
    ]);

    assert!(sandbox.counters().is_empty());
}

#[test]
fn a_listed_vulnerability_leaves_no_receipt() {
    let sandbox = Sandbox::flat().with_key();
    sandbox.replace("packages.txt", "dash 0.5.12", "dash 0.5.12\nxz-utils 5.6.1");

    sandbox
        .attest(&["run", "--sign"])
        .code(1)
        .tells(&["CVE-2024-3094", "step `security-scan` failed"]);
    sandbox.replace("attest.yaml", "run: ./scan.sh", "run: ./scan.sh || true");
    sandbox.attest(&["run", "--sign"]).code(1).tells(&["security-scan receipt", "CVE-2024-3094"]);

    assert!(sandbox.counters().is_empty());
}

#[test]
fn a_result_of_an_earlier_run_is_not_taken() {
    let sandbox = Sandbox::flat().with_key();
    sandbox.attest(&["run"]).code(0);
    sandbox.replace("attest.yaml", "run: ./test.sh", "run: \"true\"");

    sandbox.attest(&["run", "--sign"]).code(1).tells(&["step `test` did not write out/junit.xml"]);
}

#[test]
fn a_changed_source_byte_changes_the_digest_of_the_image() {
    let sandbox = Sandbox::flat().with_key();
    let digest = |sandbox: &Sandbox| {
        sandbox.attest(&["run", "--sign", "--verify"]).code(0);
        sandbox.statement("release")["predicate"]["renders"][0]["images"][0]["digest"].clone()
    };
    let (first, again) = (digest(&sandbox), digest(&sandbox));
    sandbox.replace("src/index.html", "<title>web-app", "<title>Web-app");
    sandbox.commit("A capital letter");

    let other = digest(&sandbox);

    assert_eq!(first, again);
    assert_ne!(first, other);
}

#[test]
fn two_runs_in_one_second_have_rising_counters() {
    let sandbox = Sandbox::flat().with_key();

    for _ in 0..3 {
        sandbox.attest(&["run", "--sign"]).code(0);
    }

    let counters = sandbox.counters();
    assert_eq!(counters.len(), 3, "{counters:?}");
    sandbox.replace("attest.yaml", "counter: unix-seconds", "counter: 17");
    sandbox.attest(&["run", "--sign"]).code(1).tells(&["release.counter is 17", "larger"]);
}

#[test]
fn steps_do_not_see_the_signing_key() {
    let mut sandbox = Sandbox::flat().with_key();
    let key = std::fs::read_to_string(sandbox.outside("signing.key")).unwrap();
    std::fs::remove_file(sandbox.outside("signing.key")).unwrap();
    sandbox.set("ATTEST_SIGNING_KEY", key);
    sandbox.replace("attest.yaml", "run: ./build.sh", "run: env > seen; ./build.sh");

    sandbox.attest(&["run", "--sign", "--verify"]).code(0);

    let seen = sandbox.read("seen");
    assert!(seen.contains("GITHUB_SHA") && !seen.contains("SIGNING") && !seen.contains("PRIVATE"));
}

#[test]
fn one_environment_is_signed_for_that_environment_only() {
    let sandbox = Sandbox::flat().with_key();

    sandbox.attest(&["run", "--sign", "--verify", "--environment", "staging"]).code(0);

    let release = sandbox.statement("release");
    let target = &release["predicate"]["renders"][0]["target"]["environments"];
    assert_eq!(*target, serde_json::json!(["staging"]));
    sandbox.attest(&["run", "--environment", "qa"]).code(1).tells(&["`qa`", "production, staging"]);
}

#[test]
fn the_published_workflow_commits_exactly_the_signed_bytes() {
    if !has("yq") {
        return;
    }
    let sandbox = Sandbox::flat().with_key();

    // The three commands of the product's document, with `${{ github.sha }}` filled in.
    sandbox.attest(&["run", "--sign", "--verify"]).code(0);
    let edit = format!(r#".spec.template.spec.containers[0].image = "myapp:{SHA}""#);
    sandbox.run("yq", &["e", &edit, "-i", "k8s/deployment.yaml"]).code(0);
    sandbox.git(&["add", "k8s/"]);
    sandbox.git(&["commit", "-q", "-m", &format!("Update image to {SHA}")]);

    sandbox.attest(&["verify"]).code(0).shows(&["ContentDigest", "WorkingTree"]);
    let committed = sandbox.git(&["show", "HEAD:.attest/rendered/web-app/all.jsonl"]);
    assert!(committed.contains(&format!("\"image\":\"myapp:{SHA}\"")), "{committed}");
    assert_eq!(sandbox.git(&["status", "--porcelain"]), "");
}

#[test]
fn case_13_git_attributes_a_file_with_other_bytes_is_refused_before_signing() {
    const SECRET: &str =
        "apiVersion: v1\nkind: Secret\nmetadata: {name: seal}\nstringData: {word: plain}\n";
    for (attributes, settings) in [
        ("k8s/seal.yaml text eol=crlf\n", &[][..]),
        ("k8s/seal.yaml ident\n", &[]),
        (
            "k8s/seal.yaml filter=seal\n",
            &[["filter.seal.clean", "tr a-z n-za-m"], ["filter.seal.smudge", "tr n-za-m a-z"]],
        ),
    ] {
        let sandbox = Sandbox::flat().with_key();
        for [name, value] in settings {
            sandbox.git(&["config", name, value]);
        }
        sandbox.write(".gitattributes", attributes);
        sandbox.write("k8s/seal.yaml", &format!("# $Id: 1 $\n{SECRET}"));
        sandbox.commit("seal");
        std::fs::remove_file(sandbox.at("k8s/seal.yaml")).unwrap();
        sandbox.git(&["checkout", "--", "k8s/seal.yaml"]);

        sandbox
            .attest(&["run", "--sign", "--verify"])
            .code(1)
            .tells(&["k8s/seal.yaml has other bytes on disk than in Git", "git check-attr"]);

        assert!(sandbox.counters().is_empty(), "{attributes}");
        assert!(!sandbox.at(".attest/rendered").exists(), "{attributes}");
    }
}

#[test]
fn a_file_that_was_never_added_is_refused_before_signing() {
    let sandbox = Sandbox::flat().with_key();
    sandbox.write("k8s/new.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: new}\n");

    sandbox.attest(&["run", "--sign"]).code(1).tells(&["`git add k8s/new.yaml`"]);

    assert!(sandbox.counters().is_empty());
    sandbox.git(&["add", "k8s/new.yaml"]);
    sandbox.attest(&["run", "--sign", "--verify"]).code(0);
}

#[test]
fn files_that_git_ignores_are_not_rendered() {
    let sandbox = Sandbox::flat().with_key();
    sandbox.write(".gitignore", "/out/\nk8s/local.yaml\n");
    sandbox.write("k8s/local.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: local}\n");

    sandbox
        .attest(&["run", "--sign", "--verify"])
        .code(0)
        .tells(&["k8s/local.yaml is ignored by Git"]);

    assert!(!sandbox.read(".attest/rendered/web-app/all.jsonl").contains("local"));
}

#[test]
fn an_annotation_of_another_tool_is_named_when_it_is_signed_and_when_it_is_verified() {
    let sandbox = Sandbox::flat().with_key();
    let hook = "metadata:\n  annotations: {argocd.argoproj.io/sync-wave: \"2\"}\n  name: web-app";
    sandbox.replace("k8s/deployment.yaml", "metadata:\n  name: web-app", hook);
    sandbox.git(&["add", "--all"]);
    let warning = "Deployment.apps/web-app: `argocd.argoproj.io/sync-wave: 2` has no effect";

    let said = sandbox.attest(&["run", "--sign"]).code(0);

    said.tells(&[warning, "use `attest.continuu.ms/wave`"]);
    sandbox.replace("k8s/deployment.yaml", "myapp:unreleased", &format!("myapp:{SHA}"));
    sandbox.commit("Release");
    sandbox.attest(&["verify"]).code(0).shows(&["Warning", warning]);
}
