//! `kind-clusters/up.sh` and `down.sh`, as a developer calls them.
#![allow(clippy::expect_used, reason = "helpers of tests")]

use std::path::Path;
use std::process::{Command, Stdio};

use attest_tests::cluster::binaries::Binaries;

/// Standard output and standard error; the script must succeed.
fn script(name: &str, arguments: &[&str], directory: &Path) -> (String, String) {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kind-clusters");
    let output = Command::new("bash")
        .arg(scripts.join(name))
        .args(arguments)
        .env("ATTEST_CLUSTERS_DIR", directory)
        .stdin(Stdio::null())
        .output()
        .expect("bash starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (shown, said) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{name}: {}\n{shown}\n{said}", output.status);
    (shown, said)
}

/// Processes whose command line names the directory.
fn processes(directory: &Path) -> usize {
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let named = directory.display().to_string();
    lines.filter(|line| String::from_utf8_lossy(line).contains(&named)).count()
}

#[test]
fn clusters_come_up_once_and_leave_nothing_when_they_go_down() {
    if Binaries::find().expect("programs").is_none() {
        return;
    }
    let directory = tempfile::Builder::new().prefix("attest-up-").tempdir().expect("directory");
    let directory = directory.path().join("clusters");

    let (shown, said) = script("up.sh", &["1"], &directory);
    let kubeconfig = directory.join("hub/kubeconfig");
    assert_eq!(shown, format!("hub\t{}\n", kubeconfig.display()), "{said}");
    assert!(said.contains("1 of 1 clusters started"), "{said}");
    // etcd, kube-apiserver, kube-controller-manager and the node.
    assert_eq!(processes(&directory), 4);

    let (again, said) = script("up.sh", &["1"], &directory);
    assert_eq!(again, shown);
    assert!(said.contains("hub is running"), "{said}");
    assert_eq!(processes(&directory), 4);

    let (_, said) = script("down.sh", &[], &directory);
    assert!(said.contains("stopped"), "{said}");
    assert_eq!(processes(&directory), 0);
    assert!(!directory.exists());
    let (_, said) = script("down.sh", &[], &directory);
    assert!(said.contains("nothing is running"), "{said}");
}
