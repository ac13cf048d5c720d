//! Flags that would have no effect beside others are refused by name.

use serde_json::Value;

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

/// A sandbox with a hub in its context and a CI key for one environment.
fn with_hub() -> Sandbox {
    let sandbox = Sandbox::empty();
    let home = sandbox.outside("hub").display().to_string();
    let init = ["hub", "init", "--home", &home, "--advertise", "hub.example:4433"];
    let more = ["--api-advertise", "api.example:9443", "--name", "east"];
    sandbox.attest(&[&init[..], &more].concat()).code(0);
    sandbox.attest(&["key", "gen"]).code(0);
    let public = sandbox.outside("signing.key.pub").display().to_string();
    let add = ["trust", "key", "add", "ci", &public, "--environment", "production,qa"];
    sandbox.attest(&add).code(0);
    sandbox
}

#[test]
fn a_new_hub_stands_in_the_context_by_its_name_and_addresses() {
    let sandbox = with_hub();

    let context = std::fs::read_to_string(sandbox.outside("config")).unwrap();
    for part in ["east", "hub.example:4433", "https://api.example:9443"] {
        assert!(context.contains(part), "{part} is not in {context}");
    }
    let home = sandbox.outside("hub").display().to_string();
    let file = sandbox.outside("bob").display().to_string();
    let issue = ["hub", "operator", "issue", "bob", "--home", &home];
    let named = [&issue[..], &["--context-name", "west", "--output", &file]].concat();
    sandbox.attest(&named).code(0);
    assert!(std::fs::read_to_string(&file).unwrap().contains("currentHub: west"));
    let saved = [&issue[..], &["--context-name", "west", "--save"]].concat();
    sandbox.attest(&saved).code(1).tells(&["names this hub `east`", "--context-name"]);
    sandbox
        .attest(&["trust", "--hub", "west", "new", "--environment", "qa"])
        .code(1)
        .tells(&["west"]);
}

#[test]
fn a_new_policy_is_narrowed_by_its_flags() {
    let sandbox = with_hub();
    let file = sandbox.outside("policy.yaml").display().to_string();
    let new = ["trust", "new", "--environment", "qa", "--cluster-name", "one", "-o", &file];
    let narrowed =
        ["--names", "web,api", "--repos", "https://git.example/*", "--namespaces", "app-*"];
    sandbox.attest(&[&new[..], &narrowed, &["--allow-remove"]].concat()).code(0);

    let explained = sandbox.attest(&["trust", "explain", &file]).code(0).stdout;

    for part in [
        "For one in environment qa.",
        "Application web or api from repository https://git.example/* may run in namespace app-*",
        "The hub may remove it",
        "An update deletes at most 30 % of its objects, if it has 10 or more.",
    ] {
        assert!(explained.contains(part), "{part} is not in {explained}");
    }
    let none = ["trust", "new", "--environment", "staging"];
    sandbox.attest(&none).code(1).tells(&["attest trust key add"]);
}

#[test]
fn the_manifests_of_a_cluster_are_as_the_flags_ask_and_contain_no_secret() {
    let sandbox = with_hub();
    let policy = sandbox.policy("qa", "").display().to_string();
    let manifests = [
        "gitops",
        "cluster",
        "manifests",
        "one",
        "--kube-system-uid",
        "00000000-0000-0000-0000-000000000007",
    ];
    let spoke = ["--spoke-image", "registry.example/spoke:2", "--hub-address", "edge.example:443"];
    let narrowed = ["--names", "web", "--repos", "https://git.example/*", "--namespaces", "app-*"];
    let generated = [&["--environment", "qa", "--allow-remove"][..], &spoke, &narrowed].concat();

    let printed = sandbox.attest(&[&manifests[..], &generated].concat()).code(0).stdout;

    for part in [
        "kind: Deployment",
        "clusterName: one",
        "kubeSystemUid: 00000000-0000-0000-0000-000000000007",
        "registry.example/spoke:2",
        "edge.example:443",
        "https://git.example/*",
        "app-*",
        "allow: true",
        "environment: qa",
    ] {
        assert!(printed.contains(part), "{part} is not in {printed}");
    }
    assert!(!printed.contains("kind: Secret\n"), "{printed}");
    let from_file = ["--trust-policy", &policy, "--hub-address", "edge.example:443"];
    sandbox.attest(&[&manifests[..], &from_file].concat()).code(1).tells(&["qa-1"]);
}

#[test]
fn what_is_listed_without_a_hub_comes_as_json_too() {
    let sandbox = with_hub();
    let home = sandbox.outside("hub").display().to_string();
    for arguments in [
        &["hub", "list"][..],
        &["hub", "operator", "list", "--home", &home],
        &["gitops", "context", "list"],
        &["trust", "key", "list"],
        &["key", "gen", "--name", "second"],
        &["version"],
    ] {
        let said = sandbox.attest(&[arguments, &["-o", "json"]].concat());
        let json: Result<Value, _> = serde_json::from_str(&said.stdout);
        assert!(json.is_ok_and(|json| json.is_object()), "{arguments:?} {}", said.stdout);
    }
}

#[test]
fn a_new_recipe_names_the_repository_that_was_given() {
    let sandbox = Sandbox::empty();
    let url = "https://git.example/company/web";

    sandbox.attest(&["init", "--application", "web", "--repository", url]).code(0);

    assert!(sandbox.read("attest.yaml").contains(url));
}

#[test]
fn a_context_that_the_kubeconfig_has_not_is_named() {
    let sandbox = with_hub();
    let kubeconfig = sandbox.outside("kubeconfig");
    let text = "apiVersion: v1\nkind: Config\ncurrent-context: here\n\
        clusters: [{name: c, cluster: {server: \"https://127.0.0.1:1\"}}]\n\
        users: [{name: u, user: {}}]\ncontexts: [{name: here, context: {cluster: c, user: u}}]\n";
    std::fs::write(&kubeconfig, text).unwrap();
    let policy = sandbox.policy("qa", "").display().to_string();
    let kubeconfig = kubeconfig.display().to_string();
    for command in [
        &["gitops", "cluster", "add", "qa"][..],
        &["gitops", "cluster", "accept", "qa", "--fingerprint", "SHA256:x"],
        &["gitops", "cluster", "manifests", "qa"],
        &["hub", "login"],
        &["spoke", "status"],
        &["spoke", "reset", "web", "-n", "shop", "--yes"],
        &["spoke", "accept-state", "--yes"],
        &["trust", "install", &policy, "--yes"],
    ] {
        let target = ["--kubeconfig", &kubeconfig, "--context", "elsewhere"];
        let said = sandbox.attest(&[command, &target].concat()).code(1);
        said.tells(&["elsewhere", "available contexts: here"]);
    }
}

#[test]
fn every_command_of_the_page_about_rollouts_is_one_that_attest_has() {
    let sandbox = Sandbox::empty();
    let page = include_str!("../../../../docs/rollouts.md");
    let blocks = page.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let lines: Vec<&str> = blocks.flat_map(str::lines).collect();
    assert!(lines.len() > 10, "the page was not read");
    for line in lines {
        // Quotes enclose the last argument only, or stand after an option.
        let mut words: Vec<String> = Vec::new();
        for (index, part) in line.split(['"', '\'']).enumerate() {
            if index % 2 == 1 {
                words.push(part.to_owned());
            } else {
                words.extend(part.split_whitespace().map(str::to_owned));
            }
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        assert_eq!(words[0], "attest");
        let said = sandbox.attest(&words[1..]);
        // There is no hub: a command line that is understood fails later.
        assert_eq!(said.code, 1, "{line}: {}", said.stderr);
    }
}
