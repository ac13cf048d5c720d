//! The parts of a fleet as real programs: hub home, `attest-hub`, an operator's context, a CI key, a Git
//! repository. Tests, demo and benches use `attest` for everything, as a user would.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::cluster::binaries::Binaries;
use crate::process::{Process, Spec};
use crate::wait::until;

/// Maximum time until a program of this workspace listens.
pub const LISTENING_WITHIN: Duration = Duration::from_secs(20);
/// Variable that names the directory of `attest`, `attest-hub` and `attest-spoke`.
pub const PROGRAMS_VARIABLE: &str = "ATTEST_PROGRAMS";

/// Finds a program of this workspace: in `$ATTEST_PROGRAMS`, else beside the running program, else one
/// directory up (Cargo puts test binaries into `deps/`).
///
/// # Errors
/// When it is not found; the error names the command that builds it.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("no path of this program")?;
    let beside = own.parent().map(Path::to_owned);
    let above = beside.as_deref().and_then(Path::parent).map(Path::to_owned);
    let named = std::env::var_os(PROGRAMS_VARIABLE).map(PathBuf::from);
    let found =
        [named, beside, above].into_iter().flatten().map(|d| d.join(name)).find(|p| p.is_file());
    found.with_context(|| format!("no program {name}; run `cargo build --workspace --bins` first"))
}

/// Returns `PATH` with the directory of the Kubernetes programs in front. CI and hub must render with
/// the same kustomize, or the hub refuses with `RendererMismatch`.
pub fn search_path() -> OsString {
    let renderer = Binaries::find().ok().flatten().map(|found| found.directory().to_owned());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = renderer.into_iter().chain(std::env::split_paths(&path));
    std::env::join_paths(all).unwrap_or_else(|_| path.clone())
}

/// An operator on a separate machine: a configuration directory and the `attest` program.
#[derive(Clone, Debug)]
pub struct Operator {
    directory: PathBuf,
    attest: PathBuf,
}

impl Operator {
    /// Creates an operator whose files are in `directory`.
    ///
    /// # Errors
    /// When the directory cannot be created or `attest` is not built.
    pub fn new(directory: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory)?;
        Ok(Self { directory: directory.to_owned(), attest: program("attest")? })
    }

    /// Path of the configuration file.
    pub fn config(&self) -> PathBuf {
        self.directory.join("config")
    }

    /// Prepares `attest` with these arguments.
    pub fn command<T: Into<OsString>>(&self, arguments: impl IntoIterator<Item = T>) -> Command {
        let mut command = Command::new(&self.attest);
        command.env("PATH", search_path());
        command
            .args(arguments.into_iter().map(Into::into))
            .env("ATTEST_CONFIG", self.config())
            .env("HOME", &self.directory)
            .env_remove("KUBECONFIG")
            .stdin(std::process::Stdio::null());
        command
    }

    /// Runs `attest` and returns its output, whether it succeeds or not.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn try_attest(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        self.command(arguments)
            .output()
            .with_context(|| format!("cannot run {}", self.attest.display()))
    }

    /// Runs `attest` and returns its standard output.
    ///
    /// # Errors
    /// When it fails; the error contains its output.
    pub fn attest(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.try_attest(arguments)?;
        ensure!(
            output.status.success(),
            "attest {} ended with {}:\n{}{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs `attest … -o json` and parses the document.
    ///
    /// # Errors
    /// When it fails or does not print JSON.
    pub fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        Ok(serde_json::from_str(&self.attest(&all)?)?)
    }
}

/// The addresses that a hub listens on.
#[derive(Clone, Debug, Deserialize)]
pub struct Addresses {
    pub api: String,
    pub spokes: String,
    pub health: String,
    pub metrics: String,
}

/// A running `attest-hub`.
#[derive(Debug)]
pub struct Hub {
    home: PathBuf,
    process: Process,
    addresses: Addresses,
}

impl Hub {
    /// Creates a home for a hub on free loopback ports, and the operator's context.
    ///
    /// # Errors
    /// When no port is free or `attest hub init` fails.
    pub fn init(operator: &Operator, home: &Path) -> anyhow::Result<(u16, u16)> {
        let (spokes, api) = (crate::cluster::ports::free()?, crate::cluster::ports::free()?);
        let home = home.display().to_string();
        let (spokes_address, api_address) =
            (format!("127.0.0.1:{spokes}"), format!("127.0.0.1:{api}"));
        operator.attest(&[
            "hub",
            "init",
            "--home",
            &home,
            "--advertise",
            &spokes_address,
            "--api-advertise",
            &api_address,
        ])?;
        Ok((spokes, api))
    }

    /// Starts `attest-hub` on the ports of its home and waits until it listens.
    ///
    /// # Errors
    /// When it does not listen within [`LISTENING_WITHIN`]; the error contains its log.
    pub async fn start(
        home: &Path,
        (spokes, api): (u16, u16),
        more: &[String],
    ) -> anyhow::Result<Self> {
        let log = home.with_extension("log");
        let spec = Spec::new(program("attest-hub")?, &log)
            .args(["--home".to_owned(), home.display().to_string()])
            .args(["--listen-spokes".to_owned(), format!("127.0.0.1:{spokes}")])
            .args(["--listen-api".to_owned(), format!("127.0.0.1:{api}")])
            .args(["--listen-health", "127.0.0.1:0", "--listen-metrics", "127.0.0.1:0"])
            .args(more.iter().cloned())
            .env("PATH", search_path());
        let _ = std::fs::remove_file(home.join("addresses.json"));
        let process = Process::spawn(spec)?;
        let addresses = Self::listening(home, &process).await?;
        Ok(Self { home: home.to_owned(), process, addresses })
    }

    async fn listening(home: &Path, process: &Process) -> anyhow::Result<Addresses> {
        let file = home.join("addresses.json");
        let waited = until("attest-hub to listen", LISTENING_WITHIN, || async {
            let Ok(text) = std::fs::read(&file) else { return Ok(None) };
            Ok(serde_json::from_slice(&text).ok())
        });
        waited.await.with_context(|| format!("log of the hub:\n{}", process.output()))
    }

    /// Kills the hub and starts it again on the same ports.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn kill_and_restart(&mut self) -> anyhow::Result<()> {
        self.process.kill();
        self.restart().await
    }

    /// Starts the hub again after it ended.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.respawn(None)?;
        self.listens().await
    }

    /// Starts the hub again after it ended, without waiting. It exits at `failpoint`, if one is given
    /// (see [`Spec::with_failpoint`]).
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn respawn(&mut self, failpoint: Option<&str>) -> anyhow::Result<()> {
        let _ = std::fs::remove_file(self.home.join("addresses.json"));
        self.process = self.process.respawn_with_failpoint(failpoint)?;
        Ok(())
    }

    /// Waits until the hub listens.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn listens(&mut self) -> anyhow::Result<()> {
        self.addresses = Self::listening(&self.home, &self.process).await?;
        Ok(())
    }

    /// Status and body of `GET /ready`.
    ///
    /// # Errors
    /// When the hub does not answer.
    pub async fn ready(&self) -> anyhow::Result<(u16, String)> {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let answer = client.get(format!("http://{}/ready", self.addresses.health)).send().await?;
        Ok((answer.status().as_u16(), answer.text().await?.trim().to_owned()))
    }

    /// The addresses it listens on.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// The hub's directory, with everything that an attacker who compromises the hub gets.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Resident memory, in bytes.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn resident_bytes(&self) -> anyhow::Result<u64> {
        resident_bytes(self.process.id())
    }
}

/// Resident memory of a process, in bytes (`VmRSS`).
///
/// # Errors
/// When the process has ended.
pub fn resident_bytes(id: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes * 1024)
}

/// CPU time of a process, user and system, in microseconds.
///
/// # Errors
/// When the process has ended.
pub fn processor_us(id: u32) -> anyhow::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
    let (_, rest) = stat.rsplit_once(')').context("no command in stat")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // Fields 14 and 15 of proc(5), in ticks of 10 ms on Linux.
    let (user, system) = (fields.get(11).context("no utime")?, fields.get(12).context("no stime")?);
    Ok((user.parse::<u64>()? + system.parse::<u64>()?) * 10_000)
}

/// An application's repository: the working tree of CI and the bare repository that the hub reads.
#[derive(Clone, Debug)]
pub struct Repository {
    tree: PathBuf,
    origin: PathBuf,
}

impl Repository {
    /// Creates an empty pair of repositories in `directory`.
    ///
    /// # Errors
    /// When Git fails.
    pub fn create(directory: &Path) -> anyhow::Result<Self> {
        Self::create_in_format(directory, "sha1")
    }

    /// Creates an empty pair of repositories in `directory` whose objects are named by `format`, `sha1` or `sha256`.
    ///
    /// # Errors
    /// When Git fails.
    pub fn create_in_format(directory: &Path, format: &str) -> anyhow::Result<Self> {
        let (tree, origin) = (directory.join("tree"), directory.join("origin.git"));
        std::fs::create_dir_all(&tree)?;
        let made = Self { tree, origin };
        let origin = made.origin.display().to_string();
        let format = format!("--object-format={format}");
        made.git(&["init", "-q", &format, "--bare", "-b", "main", &origin])?;
        made.git(&["init", "-q", &format, "-b", "main", "."])?;
        made.git(&["config", "user.name", "CI"])?;
        made.git(&["config", "user.email", "ci@git.example"])?;
        made.git(&["remote", "add", "origin", &origin])?;
        Ok(made)
    }

    /// The working tree.
    pub fn tree(&self) -> &Path {
        &self.tree
    }

    /// `file://` URL of the bare repository.
    pub fn url(&self) -> String {
        format!("file://{}", self.origin.display())
    }

    /// Directory of the bare repository, which the hub must be allowed to read.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// Runs git in the working tree and returns its standard output.
    ///
    /// # Errors
    /// When git fails; the error contains its output.
    pub fn git(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = Command::new("git")
            .args(arguments)
            .current_dir(&self.tree)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .output()
            .context("cannot run git")?;
        if !output.status.success() {
            bail!("git {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// Commits everything and pushes; returns the commit.
    ///
    /// # Errors
    /// When git fails.
    pub fn commit_and_push(&self, message: &str) -> anyhow::Result<String> {
        self.git(&["add", "-A"])?;
        self.git(&["commit", "-q", "--allow-empty", "-m", message])?;
        self.git(&["push", "-qu", "origin", "HEAD:main"])?;
        self.git(&["rev-parse", "HEAD"])
    }

    /// Stages everything and runs `attest run --sign --verify` as CI would, with these variables; returns its output.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run_ci(
        &self,
        operator: &Operator,
        key: &Path,
        variables: &[(&str, &str)],
    ) -> anyhow::Result<Output> {
        self.git(&["add", "-A"])?;
        let mut command = operator.command(["run", "--sign", "--verify"]);
        command.current_dir(&self.tree).env("ATTEST_SIGNING_KEY_FILE", key);
        command.envs(variables.iter().copied());
        command.output().context("cannot run attest run")
    }

    /// Like [`Self::run_ci`], but fails unless the command succeeds.
    ///
    /// # Errors
    /// When it fails; the error contains its output.
    pub fn sign(
        &self,
        operator: &Operator,
        key: &Path,
        variables: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let output = self.run_ci(operator, key, variables)?;
        ensure!(
            output.status.success(),
            "attest run --sign --verify ended with {}:\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

/// Generates a CI key and writes its public half to a file, whose path is returned.
///
/// # Errors
/// When `attest key` fails.
pub fn generate_key(operator: &Operator, file: &Path) -> anyhow::Result<PathBuf> {
    let path = file.display().to_string();
    operator.attest(&["key", "gen", &path])?;
    let shown = operator.attest(&["key", "show", &path])?;
    let start =
        shown.find("-----BEGIN PUBLIC KEY-----").context("attest key show prints no PEM block")?;
    let public = file.with_extension("pub");
    std::fs::write(&public, shown.get(start..).unwrap_or_default().trim_end().to_owned() + "\n")?;
    Ok(public)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_push_works_in_the_tree_that_the_demo_leaves() {
        let directory = tempfile::tempdir().unwrap();
        let repository = Repository::create(directory.path()).unwrap();
        repository.commit_and_push("First").unwrap();

        repository.git(&["commit", "-q", "--allow-empty", "-m", "By hand"]).unwrap();
        repository.git(&["push", "-q"]).unwrap();

        assert_eq!(repository.git(&["status", "-sb"]).unwrap(), "## main...origin/main");
    }
}
