//! `attest release --from`.

use crate::sandbox::{SHA, Sandbox};

#[test]
fn an_earlier_release_is_signed_again_without_building() {
    let mut sandbox = Sandbox::flat().with_key();
    sandbox.attest(&["run", "--sign", "--verify"]).code(0);
    sandbox.replace("k8s/deployment.yaml", "myapp:unreleased", &format!("myapp:{SHA}"));
    sandbox.commit("Release");
    let first = sandbox.counters()[0];
    let before = sandbox.statement("release");
    sandbox.set("GITHUB_SHA", "another");
    sandbox.replace("build.sh", "set -euo pipefail", "exit 9");
    sandbox.replace("advisories.txt", "bash 4.3", "zsh 1.0 9.8 CVE-0000-0000\nbash 4.3");

    sandbox.attest(&["release", "--from", &first.to_string(), "--verify"]).code(0);

    let after = sandbox.statement("release");
    assert_eq!(sandbox.counters().len(), 2);
    assert_eq!(after["predicate"]["counter"], sandbox.counters()[1]);
    for field in ["renders", "source", "version"] {
        assert_eq!(after["predicate"][field], before["predicate"][field], "{field}");
    }
    assert_eq!(after["subject"], before["subject"]);
    let evidence = |statement: &serde_json::Value, index: usize| {
        statement["predicate"]["evidence"][index].clone()
    };
    assert_eq!(evidence(&after, 0), evidence(&before, 0), "the build is the same");
    assert_ne!(evidence(&after, 2), evidence(&before, 2), "the scan is new");
    sandbox.attest(&["verify", "--environment", "staging"]).code(0);
}

#[test]
fn a_release_that_the_work_tree_does_not_render_is_not_signed_again() {
    let sandbox = Sandbox::flat().with_key();
    sandbox.attest(&["run", "--sign"]).code(0);
    sandbox.replace("k8s/deployment.yaml", "myapp:unreleased", &format!("myapp:{SHA}"));
    sandbox.commit("Release");
    let first = sandbox.counters()[0].to_string();
    sandbox.replace("k8s/service.yaml", "port: 80", "port: 81");

    sandbox
        .attest(&["release", "--from", &first])
        .code(1)
        .tells(&["Service/web-app spec.ports[0].port: signed 80, found 81"]);
    sandbox.attest(&["release", "--from", "7"]).code(1).tells(&["no release 7", &first]);
    assert_eq!(sandbox.counters().len(), 1);
}

#[test]
fn a_release_from_before_cis_key_was_changed_is_signed_again_while_the_operator_trusts_it() {
    let sandbox = Sandbox::flat().with_key();
    sandbox.attest(&["run", "--sign"]).code(0);
    sandbox.replace("k8s/deployment.yaml", "myapp:unreleased", &format!("myapp:{SHA}"));
    sandbox.commit("Release");
    for file in ["signing.key", "signing.key.pub"] {
        std::fs::remove_file(sandbox.outside(file)).unwrap();
    }
    sandbox.attest(&["key", "gen"]).code(0);

    let first = sandbox.counters()[0].to_string();
    sandbox.attest(&["release", "--from", &first]).code(0);

    assert_eq!(sandbox.counters().len(), 2);
}

#[test]
fn a_release_of_a_stranger_is_not_signed_again() {
    let sandbox = Sandbox::flat().with_key();
    sandbox.attest(&["run", "--sign"]).code(0);
    sandbox.replace("k8s/deployment.yaml", "myapp:unreleased", &format!("myapp:{SHA}"));
    for file in ["signing.key", "signing.key.pub"] {
        std::fs::remove_file(sandbox.outside(file)).unwrap();
    }
    sandbox.attest(&["key", "gen"]).code(0);
    std::fs::remove_file(sandbox.outside("config")).unwrap();

    let first = sandbox.counters()[0].to_string();
    sandbox.attest(&["release", "--from", &first]).code(1).tells(&["signed neither by"]);
}

#[test]
fn the_summary_of_a_release_comes_as_json_too() {
    let sandbox = Sandbox::flat().with_key();
    let summary = |arguments: &[&str]| -> serde_json::Value {
        serde_json::from_str(&sandbox.attest(arguments).code(0).stdout).unwrap()
    };

    let first = summary(&["run", "--sign", "-o", "json"]);

    assert_eq!((&first["signed"], &first["verified"]), (&true.into(), &false.into()));
    sandbox.replace("k8s/deployment.yaml", "myapp:unreleased", &format!("myapp:{SHA}"));
    sandbox.commit("Release");
    let again = summary(&["release", "--from", &first["counter"].to_string(), "-o", "json"]);
    assert!(again["counter"].as_u64() > first["counter"].as_u64(), "{again}");
}
