//! A full disk: `attest hub init`, `attest run` and a running hub report it once and clearly, leave
//! nothing half-written, and continue when there is space again.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests; Clippy excuses the test functions only"
)]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use attest_tests::api::Api;
use attest_tests::fleet::{Hub, Operator, Repository, generate_key};
use attest_tests::wait::until;
use attest_tests::workload::copy_tree;
use serde_json::{Value, json};
use tempfile::TempDir;

const FREE_AGAIN_WITHIN: Duration = Duration::from_secs(20);
/// More keys than the free space inside a database can hold.
const KEYS_MAX: u32 = 5_000;

/// Set in the child process that runs a test again as root of its own user namespace.
const INNER: &str = "ATTEST_TEST_IN_USER_NAMESPACE";
/// Settings that forbid unprivileged users to mount: a file and its content.
const FORBIDDEN_BY: [(&str, &str); 4] = [
    ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0"),
    ("/proc/sys/user/max_user_namespaces", "0"),
    ("/proc/self/status", "Seccomp:\t2"),
];

/// A small file system of its own.
struct Disk {
    directory: TempDir,
}

impl Disk {
    /// Mounts a file system for the test of this name. Without the right to mount, the test is run by a
    /// child that is root of its own user namespace, and `None` is returned.
    ///
    /// # Panics
    /// When the child's test fails; with `CI=true` also when mounting fails although no setting of this
    /// machine forbids it.
    fn of(size: &str, test: &str) -> Option<Self> {
        let directory = tempfile::Builder::new().prefix("attest-disk-").tempdir().unwrap();
        let refused = match output(&mut mount(Command::new("mount"), size, directory.path())) {
            Ok(()) => return Some(Self { directory }),
            Err(refused) => refused,
        };
        let mut tried = Command::new("unshare");
        tried.args(["-Urm", "mount"]);
        let inner = std::env::var_os(INNER).is_some();
        match output(&mut mount(tried, size, directory.path())) {
            Ok(()) if !inner => run_again(test),
            Ok(()) => {
                panic!(
                    "mounting works in the user namespace of a child, but not in that of {test}: {refused}"
                )
            }
            Err(also) => skip(test, &format!("{refused}; in a user namespace: {also}")),
        }
        None
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Fills the file system except for this number of bytes.
    fn fill(&self, room: u64) {
        let mut filler = std::fs::File::create(self.at("filler")).unwrap();
        while filler.write_all(&[0; 4_096]).is_ok() {}
        let length = filler.metadata().unwrap().len();
        filler.set_len(length.saturating_sub(room)).unwrap();
    }

    fn free(&self) {
        std::fs::remove_file(self.at("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.directory.path()).output();
    }
}

fn mount(mut command: Command, size: &str, directory: &Path) -> Command {
    command.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(directory);
    command
}

/// Returns the standard error of a program that failed.
fn output(command: &mut Command) -> Result<(), String> {
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("{}: {error}", command.get_program().display())),
    }
}

fn run_again(test: &str) {
    let mut again = Command::new("unshare");
    again.arg("-Urm").arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]);
    let output = again.env(INNER, "1").output().unwrap();
    let (shown, diagnostics) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "in a user namespace:\n{shown}\n{diagnostics}");
    assert!(shown.contains("1 passed"), "{test} did not run:\n{shown}");
}

/// Writes why a test was skipped, directly to standard error, and fails when only a program or a right
/// is missing.
fn skip(test: &str, why: &str) {
    let forbidden = FORBIDDEN_BY.iter().find(|(file, setting)| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        text.lines().any(|line| line == *setting)
    });
    let cause = forbidden
        .map_or_else(|| why.to_owned(), |(file, setting)| format!("{file} is {setting:?}"));
    let message = format!("NOT TESTED: {test}: only root can mount a small disk here ({cause})\n");
    let _ = std::io::stderr().write_all(message.as_bytes());
    let strict = std::env::var("CI").is_ok_and(|value| value == "true");
    assert!(!strict || forbidden.is_some(), "{message}run as root, or install util-linux");
}

/// Checks for a single error that names the missing space.
fn names_the_missing_space(diagnostics: &str) {
    assert_eq!(diagnostics.matches("error: ").count(), 1, "{diagnostics}");
    assert!(diagnostics.contains("No space left on device"), "{diagnostics}");
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_hub_is_initialized_completely_or_not_at_all() -> anyhow::Result<()> {
    let Some(disk) = Disk::of("256k", "a_hub_is_initialized_completely_or_not_at_all") else {
        return Ok(());
    };
    let desk = tempfile::tempdir()?;
    let operator = Operator::new(desk.path())?;
    let home = disk.at("hub").display().to_string();
    let init = ["hub", "init", "--home", &home, "--advertise", "127.0.0.1:4433"];
    disk.fill(8_192);

    let output = operator.try_attest(&init)?;

    assert_eq!(output.status.code(), Some(1));
    names_the_missing_space(&String::from_utf8_lossy(&output.stderr));
    assert_eq!(names(disk.directory.path()), ["filler"]);
    assert!(!operator.config().exists(), "a context of a hub that is not there");
    disk.free();
    operator.attest(&init)?;
    Ok(())
}

#[test]
fn a_release_is_staged_completely_or_not_at_all() -> anyhow::Result<()> {
    let Some(disk) = Disk::of("32m", "a_release_is_staged_completely_or_not_at_all") else {
        return Ok(());
    };
    let desk = tempfile::tempdir()?;
    let operator = Operator::new(&desk.path().join("operator"))?;
    let key = desk.path().join("ci.key");
    let public = generate_key(&operator, &key)?.display().to_string();
    let add = ["trust", "key", "add", "ci", &public, "--environment", "staging,production"];
    operator.attest(&add)?;
    let repository = Repository::create(&disk.at("repository"))?;
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("sample/web-app");
    copy_tree(&sample, repository.tree(), &["out"])?;
    std::fs::write(repository.tree().join(".gitignore"), "out/\n")?;
    // The last step leaves no space for the signed files.
    let scan = repository.tree().join("scan.sh");
    let honest = std::fs::read_to_string(&scan)?;
    let filler = disk.at("filler").display().to_string();
    std::fs::write(&scan, format!("{honest}\nhead -c 64M /dev/zero > {filler} || true\n"))?;
    repository.commit_and_push("The application")?;
    let variables = [("GITHUB_SHA", "v1"), ("GITHUB_REF_NAME", "main")];

    let output = repository.run_ci(&operator, &key, &variables)?;

    assert_eq!(output.status.code(), Some(1));
    names_the_missing_space(&String::from_utf8_lossy(&output.stderr));
    disk.free();
    assert_eq!(repository.git(&["diff", "--cached", "--name-only"])?, "");
    assert_eq!(repository.git(&["status", "--porcelain"])?, "");
    assert!(!repository.tree().join(".git/index.lock").exists());
    std::fs::write(&scan, honest)?;
    repository.commit_and_push("Space again")?;
    repository.sign(&operator, &key, &variables)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_without_disk_space_acknowledges_nothing_and_recovers() -> anyhow::Result<()> {
    let Some(disk) = Disk::of("64m", "a_hub_without_disk_space_acknowledges_nothing_and_recovers")
    else {
        return Ok(());
    };
    let desk = tempfile::tempdir()?;
    let operator = Operator::new(&desk.path().join("operator"))?;
    let home = disk.at("hub");
    let ports = Hub::init(&operator, &home)?;
    let log = disk.directory.path().join("hub.log");
    let mut hub = Hub::start(&home, ports, &[]).await?;
    let api = Api::from_config(&operator.config())?;
    let public = generate_key(&operator, &desk.path().join("ci.key"))?;
    let public = std::fs::read_to_string(public)?;
    put_key(&api, "before", &public).await?;
    disk.fill(0);

    let mut acknowledged = 0;
    let error = loop {
        match put_key(&api, &format!("key-{acknowledged}"), &public).await {
            Ok(_) => acknowledged += 1,
            Err(error) => break format!("{error:#}"),
        }
        anyhow::ensure!(acknowledged < KEYS_MAX, "the disk of {} is not full", log.display());
    };

    assert!(error.contains("DiskFull") && error.contains("hub.redb is full"), "{error}");
    assert!(hub.process().ended()?.is_none(), "the hub exited");
    disk.free();
    until("the hub to accept keys again", FREE_AGAIN_WITHIN, || async {
        put_key(&api, "after", &public).await.map(Some)
    })
    .await?;
    hub.kill_and_restart().await?;
    let kept: Value = api.call("GET", "/v1/keys", None).await?;
    let kept: Vec<&str> = kept["items"]
        .as_array()
        .context("items")?
        .iter()
        .flat_map(|k| k["alias"].as_str())
        .collect();
    let mut wanted: Vec<String> = (0..acknowledged).map(|number| format!("key-{number}")).collect();
    wanted.extend(["before".to_owned(), "after".to_owned()]);
    for alias in wanted {
        assert!(kept.contains(&alias.as_str()), "{alias} was acknowledged and is missing");
    }
    Ok(())
}

async fn put_key(api: &Api, alias: &str, public_key: &str) -> anyhow::Result<Value> {
    let body = json!({"alias": alias, "publicKey": public_key});
    api.call("PUT", "/v1/keys", Some(&body)).await
}
