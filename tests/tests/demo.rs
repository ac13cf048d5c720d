//! The demo shows what it claims, and fails when any of its steps fails.
#![allow(clippy::expect_used, reason = "helpers of tests")]

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use attest_tests::cluster::binaries::Binaries;
use attest_tests::fleet::program;
use attest_tests::process::output_texts;

/// Maximum duration of the whole demo once everything is built.
const SHOWN_WITHIN: Duration = Duration::from_secs(90);

#[test]
fn the_demo_shows_every_step_and_ends_in_a_good_state() {
    let started = Instant::now();
    let Some(output) = demo(&[]) else { return };
    let took = started.elapsed();
    let (shown, diagnostics) = output_texts(&output);

    assert!(output.status.success(), "{shown}\n{diagnostics}");
    for step in [
        "\n2. ",
        "\n3. ",
        "\n4. ",
        "\n5. ",
        "\n6. ",
        "\n7. ",
        "\n8. ",
        "Try it yourself",
        "ContentDigest",
    ] {
        assert!(shown.contains(step), "{step}: {shown}");
    }
    // The suggested commands were run as they are printed, and show what is there.
    let suggested = shown.split("Try it yourself").nth(1).unwrap_or_default();
    for answer in ["Signed by:", "deployment.apps/web-app"] {
        assert!(suggested.contains(answer), "{answer}: {shown}");
    }
    // The next release replaced what was refused, in both clusters.
    let released = shown.split("\n7. ").nth(1).unwrap_or_default();
    for cluster in ["staging", "production"] {
        let image = format!("{cluster}: Deployment web-app has image myapp:v2@sha256:");
        assert!(released.contains(&image), "{image}: {shown}");
    }
    assert!(!released.contains("Refused") && !released.contains("ContentDigest"), "{shown}");
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
fn the_demo_fails_when_the_compromised_hub_sends_nothing_forged() {
    fails("tampered", "\n5. ", "the spoke to refuse");
}

#[test]
fn the_demo_fails_when_drift_is_not_reverted() {
    fails("heal", "\n6. ", "the edit to be reverted");
}

#[test]
fn the_demo_fails_when_a_cluster_does_not_take_the_next_release() {
    fails("release", "\n7. ", "both clusters to be Synced on v2");
}

#[test]
fn the_demo_fails_when_another_client_writes_with_a_spokes_credential() {
    fails("audit", "\n8. ", "another client used a spoke's identity");
}

/// Runs the demo; `None` without Kubernetes programs.
fn demo(arguments: &[&str]) -> Option<Output> {
    Binaries::find().expect("programs")?;
    let demo = program("attest-demo").expect("attest-demo");
    let output = Command::new(demo).arg("--once").args(arguments).stdin(Stdio::null()).output();
    Some(output.expect("attest-demo starts"))
}

/// Asserts that the demo with one step broken reaches that step and fails there, naming the cause.
fn fails(sabotage: &str, reached: &str, cause: &str) {
    let Some(output) = demo(&["--sabotage", sabotage]) else { return };
    let (shown, diagnostics) = output_texts(&output);

    assert_eq!(output.status.code(), Some(1), "{shown}\n{diagnostics}");
    assert!(shown.contains(reached), "{shown}\n{diagnostics}");
    assert!(diagnostics.contains(cause), "{shown}\n{diagnostics}");
    assert!(!shown.contains("Try it yourself"), "{shown}");
}
