//! Flags that would have no effect beside others are refused by name.

use crate::sandbox::Sandbox;

#[test]
fn a_flag_without_effect_is_refused_by_name() {
    let sandbox = Sandbox::empty();
    let accept = ["gitops", "cluster", "accept", "a", "--fingerprint", "SHA256:x"];
    let repo = ["gitops", "repo", "add", "https://git.example/a"];
    let add = ["gitops", "cluster", "add", "a"];
    for (command, flags, named) in [
        (&["run"][..], &["--verify"][..], "--sign"),
        (&["run"], &["--sign", "--trust-policy", "p.yaml"], "--verify"),
        (&["release", "--from", "1"], &["--trust-policy", "p.yaml"], "--verify"),
        (&["key", "gen", "ci.key"], &["--name", "ci"], "--name"),
        (&["gitops", "app", "sync", "a"], &["--timeout", "5"], "--wait"),
        (&["gitops", "app", "delete", "a"], &["--timeout", "5"], "--wait"),
        (&["gitops", "app", "get", "a"], &["--checks", "--watch"], "--watch"),
        (&["gitops", "app", "get", "a"], &["--checks", "-o", "json"], "--checks"),
        (&accept, &["--timeout", "5"], "--kubeconfig"),
        (
            &["gitops", "cluster", "rejoin", "a"],
            &["--token-output", "t", "--timeout", "5"],
            "--timeout",
        ),
        (
            &["gitops", "cluster", "rejoin", "a"],
            &["--token-output", "t", "--kubeconfig", "k"],
            "--kubeconfig",
        ),
        (&add, &["--environment", "e", "--trust-policy", "p"], "--trust-policy"),
        (&add, &["--names", "n", "--trust-policy", "p"], "--trust-policy"),
        (&add, &["--repos", "n", "--trust-policy", "p"], "--trust-policy"),
        (&add, &["--namespaces", "n", "--trust-policy", "p"], "--trust-policy"),
        (&add, &["--allow-remove", "--trust-policy", "p"], "--trust-policy"),
        (&add, &["--token-output", "t"], "--agent external"),
        (&add, &["--kubeconfig-output", "k"], "--agent external"),
        (&add, &["--agent", "external", "--spoke-image", "i"], "--agent in-cluster"),
        (&repo, &["--username", "u"], "--password-file"),
        (&repo, &["--password-file", "p"], "--username"),
        (&repo, &["--ssh-key", "k"], "--known-hosts"),
        (&repo, &["--known-hosts", "k"], "--ssh-key"),
        (&["hub", "operator", "issue", "a"], &["--save", "--output", "f"], "--output"),
    ] {
        let arguments: Vec<&str> = command.iter().chain(flags).copied().collect();
        let said = sandbox.attest(&arguments);
        assert_ne!(said.code, 0, "{arguments:?}");
        assert!(said.stderr.contains(named), "{arguments:?} {}", said.stderr);
    }
}
