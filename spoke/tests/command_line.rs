//! What the program says of its command line before it does anything.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::process::{Command, Output, Stdio};

fn attest_spoke(arguments: &[&str], environment: &[(&str, &str)]) -> (Output, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_attest-spoke"))
        .args(["--hub", "127.0.0.1:1"])
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    (output, text)
}

#[test]
fn a_log_level_that_is_none_ends_the_spoke_wherever_it_comes_from() {
    for (arguments, environment) in [
        (&["--log-level", "blah"][..], &[][..]),
        (&[][..], &[("ATTEST_LOG_LEVEL", "attest_spoke=debugg")][..]),
    ] {
        let (output, text) = attest_spoke(arguments, environment);

        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains("--log-level") && text.contains("debug or trace"), "{text}");
    }
}

#[test]
fn a_variable_that_is_not_read_ends_the_spoke_with_the_name_of_the_one_that_is() {
    let (output, text) = attest_spoke(&[], &[("ATTEST_LOG", "debug")]);

    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("ATTEST_LOG ") && text.contains("ATTEST_LOG_LEVEL"), "{text}");
}

#[test]
fn a_file_that_cannot_be_used_is_named() {
    let directory = std::env::temp_dir().join("attest-no-such-directory");
    let missing = directory.join("file").display().to_string();
    for (flag, named) in [
        ("--addresses-file", "--addresses-file"),
        ("--kubeconfig", "attest-no-such-directory"),
        ("--service-account-dir", "attest-no-such-directory"),
    ] {
        let in_cluster =
            [("KUBERNETES_SERVICE_HOST", "127.0.0.1"), ("KUBERNETES_SERVICE_PORT", "1")];
        let (output, text) = attest_spoke(&[flag, &missing], &in_cluster);

        assert_eq!(output.status.code(), Some(1), "{flag} {text}");
        assert!(text.contains(named), "{flag} {text}");
    }
}
