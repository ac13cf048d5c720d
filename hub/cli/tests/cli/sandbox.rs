//! A Git repository made from the sample application, an operator's home beside it, and `attest` run in both.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What `${GITHUB_SHA}` stands for in these tests.
pub(crate) const SHA: &str = "4f2a9c1d7e8b4f2a9c1d7e8b4f2a9c1d7e8b4f2a";
const ATTEST: &str = env!("CARGO_BIN_EXE_attest");
const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/sample");

pub(crate) struct Sandbox {
    directory: tempfile::TempDir,
    environment: Vec<(String, OsString)>,
}

/// What a program said and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Said {
    /// Ends the test unless the program ended with `code`.
    #[track_caller]
    pub(crate) fn code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Ends the test unless standard error holds every one of `words`.
    #[track_caller]
    pub(crate) fn tells(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in:\n{}", self.stderr);
        }
        self
    }

    /// Ends the test unless standard output holds every one of `words`.
    #[track_caller]
    pub(crate) fn shows(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.stdout.contains(word), "no {word:?} in:\n{}", self.stdout);
        }
        self
    }
}

impl Sandbox {
    /// Base and overlays.
    pub(crate) fn web_app() -> Self {
        Self::made(false)
    }

    /// Plain YAML directly in `k8s/`.
    pub(crate) fn flat() -> Self {
        Self::made(true)
    }

    /// An empty repository.
    pub(crate) fn empty() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("repository")).unwrap();
        std::fs::create_dir_all(directory.path().join("home")).unwrap();
        let sandbox = Self { directory, environment: Vec::new() };
        sandbox.git(&["init", "-q", "-b", "main"]);
        sandbox
    }

    fn made(is_flat: bool) -> Self {
        let sandbox = Self::empty();
        copy(&Path::new(SAMPLE).join("web-app"), &sandbox.repository());
        if is_flat {
            std::fs::remove_dir_all(sandbox.at("k8s")).unwrap();
            copy(&Path::new(SAMPLE).join("flat"), &sandbox.repository());
        }
        sandbox.commit("The sample application");
        sandbox
    }

    pub(crate) fn repository(&self) -> PathBuf {
        self.directory.path().join("repository")
    }

    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.repository().join(path)
    }

    /// A path outside the repository.
    pub(crate) fn outside(&self, path: &str) -> PathBuf {
        self.directory.path().join("home").join(path)
    }

    pub(crate) fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.at(path)).unwrap()
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let place = self.at(path);
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::write(place, text).unwrap();
    }

    pub(crate) fn replace(&self, path: &str, from: &str, to: &str) {
        let text = self.read(path);
        assert!(text.contains(from), "no {from:?} in {path}");
        self.write(path, &text.replace(from, to));
    }

    /// Sets a variable for everything that runs from now on.
    pub(crate) fn set(&mut self, name: &str, value: impl Into<OsString>) {
        self.environment.push((name.to_owned(), value.into()));
    }

    /// A signing key in the operator's directory, and its public half in the operator's context.
    pub(crate) fn with_key(self) -> Self {
        self.attest(&["key", "gen"]).code(0);
        self.trust_key("signing.key.pub", &["staging", "production"]);
        self
    }

    /// Writes a context that trusts one public key.
    pub(crate) fn trust_key(&self, public: &str, environments: &[&str]) {
        let pem = std::fs::read_to_string(self.outside(public)).unwrap();
        let pem = pem.lines().map(|line| format!("    {line}\n")).collect::<String>();
        let context = format!(
            "keys:\n- alias: ci\n  environments: [{}]\n  publicKey: |\n{pem}",
            environments.join(", ")
        );
        std::fs::write(self.outside("config"), context).unwrap();
    }

    /// A trust policy file outside the repository, as a cluster would have it.
    pub(crate) fn policy(&self, environment: &str, more: &str) -> PathBuf {
        let key = |name: &str| {
            let pem = std::fs::read_to_string(self.outside(name)).unwrap();
            pem.replace('\n', "\\n")
        };
        if !self.outside("hub.key").exists() {
            self.attest(&["key", "gen", self.outside("hub.key").to_str().unwrap()]).code(0);
        }
        let pin = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        let text = format!(
            "apiVersion: attest.continuu.ms/v1\nkind: AttestTrustPolicy\nmetadata: {{name: local}}\nspec:\n  \
             clusterName: {environment}-1\n  kubeSystemUid: 00000000-0000-0000-0000-000000000000\n  \
             environment: {environment}\n  hub: {{keys: [\"{}\"], caPins: [\"{pin}\"]}}\n  \
             keys:\n  - {{name: ci, publicKey: \"{}\", roles: [builder, tester, scanner, releaser], \
             environments: [{environment}]}}\n  applications:\n  - {{names: [\"*\"], repos: [\"*\"], \
             namespaces: [\"*\"], minimumMode: Strict, requiredAttestations: [build, test, security-scan]{more}}}\n",
            key("hub.key.pub"),
            key("signing.key.pub")
        );
        let path = self.outside(&format!("{environment}.yaml"));
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn attest(&self, arguments: &[&str]) -> Said {
        self.run(ATTEST, arguments)
    }

    #[track_caller]
    pub(crate) fn git(&self, arguments: &[&str]) -> String {
        self.run("git", arguments).code(0).stdout
    }

    pub(crate) fn commit(&self, message: &str) {
        self.git(&["add", "--all"]);
        self.git(&["commit", "-q", "-m", message]);
    }

    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Said {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.repository());
        command.env_clear();
        let home = self.directory.path().join("home");
        command.env("HOME", &home).env("ATTEST_CONFIG", home.join("config"));
        command.env("PATH", search_path()).env("LC_ALL", "C");
        command.env("GITHUB_SHA", SHA).env("GITHUB_REF_NAME", "main");
        command.env("GIT_CONFIG_NOSYSTEM", "1");
        for (role, name) in [("AUTHOR", "a"), ("COMMITTER", "c")] {
            command.env(format!("GIT_{role}_NAME"), name);
            command.env(format!("GIT_{role}_EMAIL"), format!("{name}@example.com"));
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let Output { status, stdout, stderr } = command.output().unwrap();
        Said {
            code: status.code().unwrap_or(-1),
            stdout: String::from_utf8(stdout).unwrap(),
            stderr: String::from_utf8(stderr).unwrap(),
        }
    }

    /// Counters of the releases on disk, oldest first.
    pub(crate) fn counters(&self) -> Vec<u64> {
        let entries = std::fs::read_dir(self.at(".attest/receipts/web-app"));
        let names = entries.into_iter().flatten().flatten().map(|entry| entry.file_name());
        let mut counters: Vec<u64> = names.filter_map(|name| name.to_str()?.parse().ok()).collect();
        counters.sort_unstable();
        counters
    }

    /// The payload of a signed file of the newest release, read without attest.
    pub(crate) fn statement(&self, name: &str) -> serde_json::Value {
        let directory =
            self.at(&format!(".attest/receipts/web-app/{}", self.counters().last().unwrap()));
        let file = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| {
                path.file_name().unwrap().to_str().unwrap().starts_with(&format!("{name}."))
            })
            .unwrap();
        let envelope: serde_json::Value =
            serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        let payload =
            data_encoding::BASE64.decode(envelope["payload"].as_str().unwrap().as_bytes());
        serde_json::from_slice(&payload.unwrap()).unwrap()
    }
}

/// `PATH` with the programs that `kind-clusters/tools/build.sh` builds.
pub(crate) fn search_path() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let built = built_programs();
    std::env::join_paths(built.into_iter().chain(std::env::split_paths(&path))).unwrap()
}

/// The same with `attest` itself, for lines that are typed.
pub(crate) fn path_with_attest() -> OsString {
    let own = Path::new(ATTEST).parent().map(Path::to_owned);
    let path = search_path();
    std::env::join_paths(own.into_iter().chain(std::env::split_paths(&path))).unwrap()
}

fn built_programs() -> Option<PathBuf> {
    if let Some(directory) = std::env::var_os("ATTEST_KUBE_BIN") {
        return Some(PathBuf::from(directory));
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    let versions = std::fs::read_dir(cache.join("attest-kube")).ok()?;
    let mut found: Vec<PathBuf> = versions
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .filter(|bin| bin.is_dir())
        .collect();
    found.sort();
    found.pop()
}

/// Whether a program can be run; in CI it must be.
pub(crate) fn has(program: &str) -> bool {
    let found =
        std::env::split_paths(&search_path()).any(|directory| directory.join(program).is_file());
    if !found {
        let in_ci = std::env::var("CI").is_ok_and(|value| value == "true");
        assert!(!in_ci, "no {program}: run kind-clusters/tools/build.sh {program}");
        eprintln!("skipped: no {program} (run kind-clusters/tools/build.sh {program})");
    }
    found
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let place = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &place);
        } else {
            std::fs::copy(entry.path(), &place).unwrap();
        }
    }
}
