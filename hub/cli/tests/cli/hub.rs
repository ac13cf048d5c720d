//! Hubs and their operators, without a hub that runs.

use crate::sandbox::Sandbox;

#[test]
fn operators_are_issued_listed_and_revoked_at_the_hubs_home() {
    let sandbox = Sandbox::empty();
    let home = sandbox.outside("hub").display().to_string();
    let file = sandbox.outside("bob").display().to_string();
    sandbox.attest(&["hub", "init", "--home", &home, "--advertise", "hub.example:4433"]).code(0);

    let issue = ["hub", "operator", "issue", "bob", "--home", &home, "--output", &file];
    sandbox.attest(&issue).code(0).shows(&["operator/bob issued"]);
    let viewer = ["hub", "operator", "issue", "eve", "--home", &home, "--role", "viewer"];
    sandbox.attest(&viewer).code(0).tells(&["viewer/eve issued"]);
    sandbox.attest(&issue).code(1).tells(&["already exists"]);
    let context = std::fs::read_to_string(&file).unwrap();
    assert!(context.contains("operatorKey") && context.contains("hub.example:4433"), "{context}");
    sandbox.attest(&["hub", "operator", "issue", "admin", "--home", &home, "--save"]).code(0);
    let listed = sandbox.attest(&["hub", "operator", "list", "--home", &home]).code(0).stdout;
    assert_eq!(listed.matches("Valid").count(), 4, "{listed}");
    let eve = listed.lines().find(|line| line.contains("eve")).unwrap();
    assert!(eve.contains("viewer"), "{eve}");
    let bob = listed.lines().find(|line| line.contains("bob")).unwrap();
    let serial = bob.split_whitespace().next().unwrap();

    let revoke = ["hub", "operator", "revoke", serial, "--home", &home, "--yes"];
    sandbox.attest(&revoke).code(0).shows(&["operator/bob revoked"]);
    let listed = sandbox.attest(&["hub", "operator", "list", "--home", &home]).code(0).stdout;
    assert_eq!((listed.matches("Valid").count(), listed.matches("Revoked").count()), (3, 1));
}

#[test]
fn the_home_is_named_by_one_variable_and_the_former_one_is_refused() {
    let mut sandbox = Sandbox::empty();
    let home = sandbox.outside("hub").display().to_string();
    let init = ["hub", "init", "--advertise", "hub.example:4433"];
    sandbox.set("ATTEST_HOME", &home);
    sandbox.attest(&init).code(1).tells(&["ATTEST_HOME ", "ATTEST_HUB_HOME"]);
    sandbox.attest(&["hub", "operator", "list"]).code(1).tells(&["ATTEST_HUB_HOME"]);

    let mut sandbox = Sandbox::empty();
    let home = sandbox.outside("hub").display().to_string();
    sandbox.set("ATTEST_HUB_HOME", &home);
    sandbox.attest(&init).code(0).shows(&[&home]);
    sandbox.attest(&["hub", "operator", "list"]).code(0).shows(&["admin"]);
}

#[test]
fn a_hub_whose_context_could_not_be_written_is_not_lost() {
    let mut sandbox = Sandbox::empty();
    let home = sandbox.outside("hub").display().to_string();
    let context = sandbox.outside("config").display().to_string();
    sandbox.set("ATTEST_CONFIG", "/proc/none/config");
    let said = sandbox.attest(&["hub", "init", "--home", &home, "--advertise", "a.example:4433"]);
    let said = said.code(1).tells(&["attest hub operator issue admin"]);
    let command = said.stderr.split('`').find(|text| text.starts_with("attest hub")).unwrap();

    sandbox.set("ATTEST_CONFIG", context);
    let arguments: Vec<&str> = command.split(' ').skip(1).collect();
    sandbox.attest(&arguments).code(0);

    sandbox.attest(&["hub", "list"]).code(0).shows(&["a.example:4433", "*"]);
}

#[test]
fn what_cannot_be_undone_is_not_done_without_a_terminal_unless_yes_is_given() {
    let sandbox = Sandbox::empty();
    let home = sandbox.outside("hub").display().to_string();
    sandbox.attest(&["hub", "init", "--home", &home, "--advertise", "hub.example:4433"]).code(0);
    let listed = sandbox.attest(&["hub", "operator", "list", "--home", &home]).code(0).stdout;
    let serial = listed.lines().nth(1).unwrap().split_whitespace().next().unwrap();

    for arguments in [
        vec!["gitops", "app", "delete", "web-app"],
        vec!["gitops", "rollout", "abort", "web-app"],
        vec!["gitops", "rollout", "rollback", "web-app"],
        vec!["gitops", "rollout", "adopt", "web-app"],
        vec!["gitops", "cluster", "revoke", "staging"],
        vec!["gitops", "cluster", "evict", "staging"],
        vec!["hub", "operator", "revoke", serial, "--home", &home],
    ] {
        sandbox.attest(&arguments).code(3).tells(&["nothing was changed; pass --yes"]);
    }
}

#[test]
fn the_current_hub_is_the_one_that_was_chosen() {
    let sandbox = Sandbox::empty();
    for name in ["west", "east"] {
        let home = sandbox.outside(name).display().to_string();
        let advertise = format!("{name}.example:4433");
        let init = ["hub", "init", "--home", &home, "--name", name, "--advertise", &advertise];
        sandbox.attest(&init).code(0);
    }

    sandbox.attest(&["gitops", "context", "use", "north"]).code(1).tells(&["west, east"]);
    sandbox.attest(&["gitops", "context", "use", "west"]).code(0);

    let listed = sandbox.attest(&["gitops", "context", "list"]).code(0).stdout;
    let current = listed.lines().find(|line| line.contains('*')).unwrap();
    assert!(current.contains("west"), "{listed}");
}
