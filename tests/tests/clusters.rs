//! `kind-clusters/up.sh` and `down.sh`, called as a developer would.
#![allow(clippy::expect_used, reason = "helpers of tests")]

use std::path::Path;
use std::process::{Command, Stdio};

use attest_tests::cluster::binaries::Binaries;
use attest_tests::process::output_texts;

/// Runs a script, which must succeed; returns its standard output and standard error.
fn script(name: &str, arguments: &[&str], directory: &Path) -> (String, String) {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kind-clusters");
    let output = Command::new("bash")
        .arg(scripts.join(name))
        .args(arguments)
        .env("ATTEST_CLUSTERS_DIR", directory)
        .stdin(Stdio::null())
        .output()
        .expect("bash starts");
    let (shown, diagnostics) = output_texts(&output);
    assert!(output.status.success(), "{name}: {}\n{shown}\n{diagnostics}", output.status);
    (shown, diagnostics)
}

/// Number of processes whose command line names the directory.
fn processes(directory: &Path) -> usize {
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let named = directory.display().to_string();
    lines.filter(|line| String::from_utf8_lossy(line).contains(&named)).count()
}

#[test]
fn clusters_start_once_and_leave_nothing_behind() {
    if Binaries::find().expect("programs").is_none() {
        return;
    }
    let directory = tempfile::Builder::new().prefix("attest-up-").tempdir().expect("directory");
    let directory = directory.path().join("clusters");

    let (shown, diagnostics) = script("up.sh", &["1"], &directory);
    let kubeconfig = directory.join("hub/kubeconfig");
    assert_eq!(shown, format!("hub\t{}\n", kubeconfig.display()), "{diagnostics}");
    assert!(diagnostics.contains("1 of 1 clusters started"), "{diagnostics}");
    // etcd, kube-apiserver, kube-controller-manager and the node.
    assert_eq!(processes(&directory), 4);

    let (again, diagnostics) = script("up.sh", &["1"], &directory);
    assert_eq!(again, shown);
    assert!(diagnostics.contains("hub is running"), "{diagnostics}");
    assert_eq!(processes(&directory), 4);

    let (_, diagnostics) = script("down.sh", &[], &directory);
    assert!(diagnostics.contains("stopped"), "{diagnostics}");
    assert_eq!(processes(&directory), 0);
    assert!(!directory.exists());
    let (_, diagnostics) = script("down.sh", &[], &directory);
    assert!(diagnostics.contains("no cluster is running"), "{diagnostics}");
}
