//! The demo does what it shows, and fails when any of its steps does not come true.
#![allow(clippy::expect_used, reason = "helpers of tests")]

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use attest_tests::cluster::binaries::Binaries;
use attest_tests::fleet::program;

/// How long the whole demo may take once everything is built.
const SHOWN_WITHIN: Duration = Duration::from_secs(90);

fn demo(arguments: &[&str]) -> Option<Output> {
    Binaries::find().expect("programs")?;
    let demo = program("attest-demo").expect("attest-demo");
    let output = Command::new(demo).arg("--once").args(arguments).stdin(Stdio::null()).output();
    Some(output.expect("attest-demo starts"))
}

/// The demo with one step broken must end as a failure that says what did not come true, and must
/// have come as far as that step.
fn fails(sabotage: &str, reached: &str, says: &str) {
    let Some(output) = demo(&["--sabotage", sabotage]) else { return };
    let (shown, said) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));

    assert_eq!(output.status.code(), Some(1), "{shown}\n{said}");
    assert!(shown.contains(reached), "{shown}\n{said}");
    assert!(said.contains(says), "{shown}\n{said}");
    assert!(!shown.contains("Go on yourself"), "{shown}");
}

#[test]
fn the_demo_shows_every_step_and_ends_well() {
    let started = Instant::now();
    let Some(output) = demo(&[]) else { return };
    let took = started.elapsed();
    let (shown, said) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));

    assert!(output.status.success(), "{shown}\n{said}");
    for step in
        ["\n2. ", "\n3. ", "\n4. ", "\n5. ", "\n6. ", "\n7. ", "Go on yourself", "ContentDigest"]
    {
        assert!(shown.contains(step), "{step}: {shown}");
    }
    // The commands to go on were run as they are printed, and show what is there.
    for answer in ["Signed by:", "deployment.apps/web-app"] {
        let after = shown.split("Go on yourself").nth(1).unwrap_or_default();
        assert!(after.contains(answer), "{answer}: {shown}");
    }
    assert!(took < SHOWN_WITHIN, "{took:?}: {shown}");
}

#[test]
fn the_demo_fails_when_a_cluster_is_not_connected() {
    fails("clusters", "1. ", "not both clusters are connected");
}

#[test]
fn the_demo_fails_when_ci_cannot_sign() {
    fails("sign", "\n2. ", "attest run --sign --verify");
}

#[test]
fn the_demo_fails_when_the_signed_commit_was_edited() {
    fails("deploy", "\n3. ", "the application to be Synced");
}

#[test]
fn the_demo_fails_when_what_should_be_refused_is_signed() {
    fails("unsigned", "\n4. ", "the hub to refuse the commit");
}

#[test]
fn the_demo_fails_when_the_taken_hub_sends_nothing_forged() {
    fails("tampered", "\n5. ", "the spoke to refuse");
}

#[test]
fn the_demo_fails_when_nobody_heals() {
    fails("heal", "\n6. ", "the edit to be undone");
}

#[test]
fn the_demo_fails_when_somebody_writes_with_a_spokes_credential() {
    fails("audit", "\n7. ", "somebody else acted as a spoke");
}
