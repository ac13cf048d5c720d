//! `attest verify`, and the `--verify` of `attest run`.

use crate::sandbox::{SHA, Sandbox, has, search_path};

/// A flat repository whose newest commit is what was signed.
fn released() -> Sandbox {
    let sandbox = Sandbox::flat().with_key();
    sandbox.attest(&["run", "--sign", "--verify"]).code(0);
    sandbox.replace("k8s/deployment.yaml", "myapp:unreleased", &format!("myapp:{SHA}"));
    sandbox.commit("Release");
    sandbox
}

#[test]
fn every_check_is_shown_and_the_result_is_data() {
    let sandbox = released();

    sandbox.attest(&["verify"]).code(0).shows(&[
        "RENDER",
        "ReleaseSignature",
        "Source",
        "Target",
        "ContentDigest",
        "Receipt",
        "Objects",
        "WorkingTree",
    ]);

    let json = sandbox.attest(&["verify", "-o", "json"]).code(0).stdout;
    let document: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(document["verified"], true);
    assert!(document["checks"].as_array().unwrap().len() > 10);
}

#[test]
fn an_undeclared_edit_is_refused_with_object_field_and_both_values() {
    let sandbox = released();
    sandbox.replace("k8s/deployment.yaml", "replicas: 2", "replicas: 3");
    sandbox.commit("More of it");

    sandbox
        .attest(&["verify"])
        .code(2)
        .shows(&["Deployment.apps/web-app spec.replicas: signed 2, found 3", "ContentDigest"])
        .tells(&["not verified"]);
}

#[test]
fn the_declared_image_change_that_is_not_committed_yet_is_named_as_such() {
    let sandbox = Sandbox::flat().with_key();
    sandbox.attest(&["run", "--sign"]).code(0);

    sandbox.attest(&["verify"]).code(2).shows(&[
        &format!("signed myapp:{SHA}, found myapp:unreleased"),
        "this is the declared image change",
    ]);
}

#[test]
fn a_key_that_lies_only_in_the_repository_proves_nothing() {
    let sandbox = released();
    std::fs::copy(sandbox.outside("signing.key.pub"), sandbox.at(".attest/keys/ci.pub")).unwrap();
    std::fs::remove_file(sandbox.outside("config")).unwrap();

    sandbox
        .attest(&["verify"])
        .code(3)
        .tells(&["attest trust key add", "in the repository are ignored"]);
    sandbox.attest(&["run", "--sign", "--verify"]).code(3).tells(&["attest trust key add"]);
    assert_eq!(sandbox.counters().len(), 1, "nothing is signed when it cannot be verified");

    let policy = sandbox.policy("staging", "");
    std::fs::copy(&policy, sandbox.at("policy.yaml")).unwrap();
    sandbox
        .attest(&["verify", "--trust-policy", "policy.yaml"])
        .code(3)
        .tells(&["is inside the repository"]);
}

#[test]
fn a_stranger_key_is_refused() {
    let sandbox = released();
    let file = sandbox.outside("other.key");
    sandbox.attest(&["key", "gen", file.to_str().unwrap()]).code(0);
    sandbox.trust_key("other.key.pub", &["staging", "production"]);

    sandbox.attest(&["verify"]).code(2).shows(&["SignatureInvalid"]);
}

#[test]
fn a_key_of_another_environment_does_not_count() {
    let sandbox = released();
    sandbox.trust_key("signing.key.pub", &["staging"]);

    sandbox.attest(&["verify"]).code(3).tells(&["environment `production`"]);
    sandbox.attest(&["verify", "--environment", "staging"]).code(0);
}

#[test]
fn the_policy_of_a_cluster_decides_for_that_cluster() {
    let sandbox = released();
    let policy = |more| sandbox.policy("staging", more).display().to_string();

    sandbox.attest(&["verify", "--trust-policy", &policy("")]).code(0).shows(&["staging-1"]);
    sandbox
        .attest(&["verify", "--trust-policy", &policy(", keys: []")])
        .code(2)
        .shows(&["UntrustedKey"]);
    sandbox
        .attest(&["verify", "--trust-policy", &policy(""), "--namespace", "elsewhere"])
        .code(2)
        .shows(&["RenderMismatch"]);
    sandbox.attest(&["verify", "--trust-policy", &policy(""), "--cluster-name", "other"]).code(3);
    sandbox
        .attest(&["verify", "--trust-policy", &policy(", unknownField: 1")])
        .code(3)
        .tells(&["unknownField"]);
}

#[test]
fn usage_and_configuration_end_with_three() {
    let sandbox = Sandbox::empty();

    sandbox.attest(&["verify", "--no-such-flag"]).code(3);
    sandbox.attest(&["verify"]).code(3).tells(&["no attest.yaml"]);
    sandbox.attest(&["verify", "/"]).code(3).tells(&["not in a Git work tree"]);
}

#[test]
fn what_is_staged_counts_and_not_what_lies_on_disk() {
    let sandbox = released();
    let path = ".attest/rendered/web-app/all.jsonl";
    let signed = sandbox.read(path);

    sandbox.write(path, &signed.replace("\"replicas\":2", "\"replicas\":9"));
    sandbox.attest(&["verify"]).code(0);
    sandbox.git(&["add", path]);
    sandbox.write(path, &signed);
    sandbox.attest(&["verify"]).code(2).shows(&["ContentDigest"]);
}

#[test]
fn bytes_that_git_would_change_on_the_way_are_noticed_before_they_are_committed() {
    let sandbox = Sandbox::flat().with_key();
    sandbox.write(".gitattributes", "*.jsonl filter=shorten\n");
    sandbox.git(&["config", "filter.shorten.clean", "sed s/web-app/webapp/"]);

    sandbox
        .attest(&["run", "--sign", "--verify"])
        .code(2)
        .tells(&["ContentDigest", "not verified"]);
}

#[test]
fn a_receipt_that_is_gone_or_exchanged_is_missed() {
    let sandbox = released();
    let directory = format!(".attest/receipts/web-app/{}", sandbox.counters()[0]);
    let files = sandbox.git(&["ls-files", &directory]);
    let test = files.lines().find(|file| file.contains("/test.")).unwrap();
    let build = files.lines().find(|file| file.contains("/build.")).unwrap();

    std::fs::copy(sandbox.at(build), sandbox.at(test)).unwrap();
    sandbox.commit("The build receipt instead");
    sandbox.attest(&["verify"]).code(2).shows(&["ReceiptMissing", "`test`"]);
}

#[test]
fn a_newer_release_that_a_stranger_planted_changes_nothing() {
    let sandbox = released();
    let counter = sandbox.counters()[0];
    let planted = format!(".attest/receipts/web-app/{}", counter + 1);
    let mut statement = sandbox.statement("release");
    statement["predicate"]["counter"] = (counter + 1).into();
    let payload = data_encoding::BASE64.encode(statement.to_string().as_bytes());
    let envelope = serde_json::json!({
        "payloadType": "application/vnd.in-toto+json",
        "payload": payload,
        "signatures": [{"keyid": "", "sig": data_encoding::BASE64.encode(&[7; 64])}],
    });
    sandbox.write(&format!("{planted}/release.00000000.json"), &envelope.to_string());
    sandbox.commit("Planted");

    sandbox.attest(&["verify"]).code(0);
    std::fs::remove_dir_all(sandbox.at(&format!(".attest/receipts/web-app/{counter}"))).unwrap();
    sandbox.commit("And the real one taken away");
    sandbox.attest(&["verify"]).code(2).shows(&["SignatureInvalid"]);
}

#[test]
fn an_edit_in_one_overlay_concerns_that_render_only() {
    if !has("kustomize") {
        return;
    }
    let sandbox = Sandbox::web_app().with_key();
    sandbox.attest(&["run", "--sign", "--verify"]).code(0);
    sandbox.replace("k8s/base/deployment.yaml", "myapp:unreleased", &format!("myapp:{SHA}"));
    sandbox.commit("Release");
    sandbox.attest(&["verify"]).code(0);

    sandbox.replace(
        "k8s/overlays/production/kustomization.yaml",
        "value: production",
        "value: other",
    );
    sandbox
        .attest(&["verify", "--render", "production"])
        .code(2)
        .shows(&["ConfigMap/web-app data.ENVIRONMENT: signed production, found other"]);
    sandbox.attest(&["verify", "--render", "staging"]).code(0);
}

#[test]
fn another_version_of_kustomize_is_named_when_its_rendering_differs() {
    use std::os::unix::fs::PermissionsExt as _;

    if !has("kustomize") {
        return;
    }
    let mut sandbox = Sandbox::web_app().with_key();
    sandbox.attest(&["run", "--sign"]).code(0);
    sandbox.replace("k8s/base/deployment.yaml", "myapp:unreleased", &format!("myapp:{SHA}"));
    sandbox.commit("Release");
    let path = search_path();
    let real = std::env::split_paths(&path).map(|d| d.join("kustomize")).find(|p| p.is_file());
    // A renderer may start no process: the script holds what the real one writes.
    let overlay = sandbox.at("k8s/overlays/staging");
    let written =
        sandbox.run(real.unwrap().to_str().unwrap(), &["build", overlay.to_str().unwrap()]);
    let written = written.code(0).stdout.replace('\'', "'\\''");
    let bin = sandbox.outside("bin");
    std::fs::create_dir(&bin).unwrap();
    let script = format!(
        "#!/bin/sh\n[ \"$1\" != version ] || {{ echo v99.0.0; exit; }}\nprintf '%s' '{written}'\n\
         echo '---'\necho 'apiVersion: v1'\necho 'kind: ConfigMap'\necho 'metadata: {{name: new}}'\n"
    );
    std::fs::write(bin.join("kustomize"), script).unwrap();
    std::fs::set_permissions(bin.join("kustomize"), std::fs::Permissions::from_mode(0o755))
        .unwrap();
    let longer = std::env::join_paths([bin].into_iter().chain(std::env::split_paths(&path)));
    sandbox.set("PATH", longer.unwrap());

    sandbox
        .attest(&["verify", "--render", "staging"])
        .code(2)
        .shows(&["RendererMismatch", "ConfigMap/new (whole object): signed absent, found present"]);
}
