//! Child processes that never outlive the test, however it ends.
//!
//! Each child runs in its own process group, which is killed on drop. In case this process itself is
//! killed, one guardian shell reads from a pipe: when the pipe closes, the guardian kills every
//! registered group and removes the registered directories.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;

use anyhow::Context;
use attest_common::basics::locked::Locked;
use rustix::process::{Pid, Signal, kill_process_group};

/// Variables that make `attest-hub` and `attest-spoke` exit at a failpoint.
const FAILPOINT_VARIABLES: [&str; 2] = ["ATTEST_FAILPOINTS_ENABLED", "ATTEST_FAILPOINT"];

const GUARDIAN: &str = r#"
groups=" "
directories=
while read -r verb what; do
  case $verb in
    hold) groups="$groups$what " ;;
    release) groups=$(printf '%s' "$groups" | sed "s/ $what / /") ;;
    remove) directories="$directories
$what" ;;
  esac
done
for group in $groups; do kill -s KILL -- "-$group" 2>/dev/null; done
printf '%s\n' "$directories" | while read -r directory; do
  case $directory in */attest-*) rm -rf -- "$directory" ;; esac
done
"#;

/// When a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Killed on drop and when this process ends in any way.
    Ours,
    /// Left running.
    Detached,
}

/// A program to run.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Path of the program.
    pub program: PathBuf,
    /// Arguments.
    pub arguments: Vec<OsString>,
    /// Variables to set.
    pub environment: Vec<(OsString, OsString)>,
    /// Whether this process's own variables are inherited.
    pub inherit_environment: bool,
    /// Log file of both output streams, opened for appending.
    pub log: PathBuf,
    /// When the process ends.
    pub lifetime: Lifetime,
}

impl Spec {
    /// Creates a program without arguments that logs to `log` and ends with this process.
    pub fn new(program: impl Into<PathBuf>, log: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            inherit_environment: true,
            log: log.into(),
            lifetime: Lifetime::Ours,
        }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<T: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = T>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets one variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Makes the hub or the spoke exit at a failpoint, `name` or `name:N` for the Nth time it is
    /// reached; `None` disables the failpoint.
    #[must_use]
    pub fn with_failpoint(mut self, failpoint: Option<&str>) -> Self {
        self.environment.retain(|(name, _)| FAILPOINT_VARIABLES.iter().all(|v| name != v));
        let variables = FAILPOINT_VARIABLES.iter().zip(["1", failpoint.unwrap_or_default()]);
        let variables = variables.filter(|_| failpoint.is_some());
        self.environment.extend(variables.map(|(name, value)| (name.into(), value.into())));
        self
    }
}

/// A running program.
#[derive(Debug)]
pub struct Process {
    child: Child,
    spec: Spec,
}

impl Process {
    /// Starts the program.
    ///
    /// # Errors
    /// When the program or its log file cannot be opened.
    pub fn spawn(spec: Spec) -> anyhow::Result<Self> {
        let log = open_log(&spec.log)?;
        let mut command = Command::new(&spec.program);
        if !spec.inherit_environment {
            command.env_clear();
        }
        let child = command
            .args(&spec.arguments)
            .envs(spec.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", spec.program.display()))?;
        if spec.lifetime == Lifetime::Ours {
            send_to_guardian(&format!("hold {}", child.id()));
        }
        Ok(Self { child, spec })
    }

    /// Starts the same program again with the same arguments.
    ///
    /// # Errors
    /// As [`Self::spawn`].
    pub fn respawn(&self) -> anyhow::Result<Self> {
        Self::spawn(self.spec.clone())
    }

    /// As [`Self::respawn`], with [`Spec::with_failpoint`].
    ///
    /// # Errors
    /// As [`Self::spawn`].
    pub fn respawn_with_failpoint(&self, failpoint: Option<&str>) -> anyhow::Result<Self> {
        Self::spawn(self.spec.clone().with_failpoint(failpoint))
    }

    /// Lets the process outlive this one.
    pub fn detach(&mut self) {
        self.spec.lifetime = Lifetime::Detached;
        send_to_guardian(&format!("release {}", self.child.id()));
    }

    /// Process id, which is also the id of its group.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Path of its log file.
    pub fn log(&self) -> &Path {
        &self.spec.log
    }

    /// Returns everything it has written so far.
    pub fn output(&self) -> String {
        std::fs::read(&self.spec.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Returns the exit status, or `None` while the process runs.
    ///
    /// # Errors
    /// When the operating system cannot report it.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Sends SIGKILL to the group and waits until the process has ended.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }

    /// Sends SIGTERM to the group.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends SIGSTOP to the group: it hangs with its connections open.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Sends SIGCONT to the group.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        signal_group(self.child.id(), signal);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.spec.lifetime == Lifetime::Detached {
            return;
        }
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            self.kill();
        } else {
            self.signal(Signal::KILL);
        }
        send_to_guardian(&format!("release {}", self.child.id()));
    }
}

/// Standard output and standard error of a program, as text.
pub fn output_texts(output: &Output) -> (String, String) {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).into()
}

/// Exit status, standard output and standard error of a program, for messages of failed tests.
pub fn describe(output: &Output) -> String {
    let (stdout, stderr) = output_texts(output);
    format!("{}\n{stdout}{stderr}", output.status)
}

/// Sends a signal to a process group. A group that has ended is not an error.
pub fn signal_group(id: u32, signal: Signal) {
    if let Some(group) = i32::try_from(id).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(group, signal);
    }
}

/// Removes `directory` when this process ends, even by SIGKILL. The last component of the path must
/// begin with `attest-`.
pub fn remove_at_end(directory: &Path) {
    send_to_guardian(&format!("remove {}", directory.display()));
}

fn open_log(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot open log {}", path.display()))
}

/// The guardian never exits before this process, so its pipe is never closed early.
fn send_to_guardian(line: &str) {
    static GUARDIAN_INPUT: OnceLock<Option<Locked<ChildStdin>>> = OnceLock::new();
    let input = GUARDIAN_INPUT.get_or_init(|| {
        Command::new("sh")
            .args(["-c", GUARDIAN])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .ok()
            .and_then(|mut child| child.stdin.take())
            .map(Locked::new)
    });
    if let Some(input) = input {
        let mut input = input.lock();
        let _ = writeln!(input, "{line}");
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn is_running(id: &str) -> bool {
        let state = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        !state.is_empty() && !state.contains(") Z")
    }

    fn ends_soon(id: &str) -> bool {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) {
            if !is_running(id) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    fn sleeper() -> Child {
        let mut command = Command::new("sleep");
        command.arg("600").process_group(0).spawn().unwrap()
    }

    #[test]
    fn a_dropped_process_takes_its_children_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let spec = Spec::new("sh", directory.path().join("log"));
        let mut process = Process::spawn(spec.args(["-c", "sleep 600 & echo $!; wait"])).unwrap();
        while process.output().is_empty() && process.ended().unwrap().is_none() {}
        let grandchild = process.output().trim().to_owned();
        let child = process.id().to_string();
        assert!(is_running(&grandchild));

        drop(process);

        assert!(ends_soon(&child) && ends_soon(&grandchild));
    }

    #[test]
    fn when_the_pipe_closes_the_guardian_kills_held_groups_and_spares_released_ones() {
        let directory = tempfile::Builder::new().prefix("attest-guarded-").tempdir().unwrap();
        let (mut first, mut second, mut released) = (sleeper(), sleeper(), sleeper());
        let mut guardian =
            Command::new("sh").args(["-c", GUARDIAN]).stdin(Stdio::piped()).spawn().unwrap();
        let mut pipe = guardian.stdin.take().unwrap();
        for child in [&first, &released, &second] {
            writeln!(pipe, "hold {}", child.id()).unwrap();
        }
        writeln!(pipe, "release {}", released.id()).unwrap();
        writeln!(pipe, "remove {}", directory.path().display()).unwrap();

        drop(pipe);
        guardian.wait().unwrap();

        assert!(ends_soon(&first.id().to_string()) && ends_soon(&second.id().to_string()));
        assert!(is_running(&released.id().to_string()));
        assert!(!directory.path().exists());
        released.kill().unwrap();
        for child in [&mut first, &mut second, &mut released] {
            child.wait().unwrap();
        }
    }
}
