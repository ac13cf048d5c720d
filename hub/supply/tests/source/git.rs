//! Repositories created by the `git` program.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A work tree that pushes to a bare repository beside it.
pub(crate) struct Repository {
    directory: tempfile::TempDir,
}

impl Repository {
    pub(crate) fn new() -> Self {
        Self::of_format("sha1")
    }

    fn of_format(format: &str) -> Self {
        let made = Self { directory: tempfile::tempdir().unwrap() };
        let format = format!("--object-format={format}");
        let init = ["init", "--quiet", "-b", "main", &format];
        git(made.directory.path(), &[&init[..], &["--bare", "origin.git"]].concat());
        git(made.directory.path(), &[&init[..], &["work"]].concat());
        let bare = made.bare();
        git(&made.work(), &["remote", "add", "origin", bare.to_str().unwrap()]);
        made
    }

    /// Creates the repository that most tests read.
    pub(crate) fn sample() -> Self {
        Self::new().filled()
    }

    /// Creates the same repository with objects that are named by SHA-256.
    pub(crate) fn sample_of_sha256() -> Self {
        Self::of_format("sha256").filled()
    }

    fn filled(self) -> Self {
        self.write("attest.yaml", RECIPE);
        self.write("k8s/deployment.yaml", "kind: Deployment\n");
        self.write("k8s/deep/er/service.yaml", "kind: Service\n");
        self.write("src/main.c", "int main;\n");
        self.write(".attest/receipts/web/7/release.json", "{}");
        self.commit_and_push("first");
        self
    }

    /// Creates the sample with tag `v1` at its first commit and a second commit on `main`; returns both commits.
    pub(crate) fn tagged() -> (Self, String, String) {
        let made = Self::sample();
        let first = made.git(&["rev-parse", "HEAD"]);
        made.git(&["tag", "-a", "v1", "-m", "release"]);
        made.git(&["push", "--quiet", "origin", "v1"]);
        made.write("k8s/deployment.yaml", "kind: Deployment # 2\n");
        let second = made.commit_and_push("second");
        (made, first, second)
    }

    pub(crate) fn root(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn bare(&self) -> PathBuf {
        self.directory.path().join("origin.git")
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.directory.path().join("work")
    }

    pub(crate) fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.work().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub(crate) fn commit_and_push(&self, message: &str) -> String {
        git(&self.work(), &["add", "--all"]);
        git(&self.work(), &["commit", "--quiet", "--allow-empty", "-m", message]);
        git(&self.work(), &["push", "--quiet", "--force", "origin", "HEAD"]);
        git(&self.work(), &["rev-parse", "HEAD"])
    }

    pub(crate) fn git(&self, arguments: &[&str]) -> String {
        git(&self.work(), arguments)
    }

    /// Writes an object that `git` itself would reject.
    pub(crate) fn object(&self, kind: &str, content: &[u8]) -> String {
        let arguments = ["hash-object", "-t", kind, "-w", "--stdin", "--literally"];
        run(&self.work(), &arguments, content)
    }

    /// Copies every object to the bare repository and sets a branch to `commit`.
    pub(crate) fn publish(&self, branch: &str, commit: &str) {
        let from = self.work().join(".git/objects");
        for directory in std::fs::read_dir(from).unwrap().flatten() {
            let target = self.bare().join("objects").join(directory.file_name());
            std::fs::create_dir_all(&target).unwrap();
            for file in std::fs::read_dir(directory.path()).unwrap().flatten() {
                let _ = std::fs::copy(file.path(), target.join(file.file_name()));
            }
        }
        std::fs::write(self.bare().join("refs/heads").join(branch), format!("{commit}\n")).unwrap();
    }
}

pub(crate) const RECIPE: &str = "\
application: web
repository: https://git.example/company/web
sourceRoot: k8s
renders:
- {name: all, path: k8s, environments: [staging], namespace: {mode: fixed, value: web}}
release: {version: v1, counter: unix-seconds, notAfter: 720h}
";

pub(crate) fn git(directory: &Path, arguments: &[&str]) -> String {
    run(directory, arguments, b"")
}

fn run(directory: &Path, arguments: &[&str], input: &[u8]) -> String {
    use std::io::Write as _;

    let mut child = Command::new("git")
        .args(["-c", "protocol.file.allow=always", "-c", "advice.addEmbeddedRepo=false"])
        .args(arguments)
        .current_dir(directory)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .envs([("GIT_AUTHOR_NAME", "CI"), ("GIT_AUTHOR_EMAIL", "ci@example.invalid")])
        .envs([("GIT_COMMITTER_NAME", "CI"), ("GIT_COMMITTER_EMAIL", "ci@example.invalid")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
