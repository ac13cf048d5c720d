//! Running a renderer: without network and environment, limited in time and output, ended with all its children.
//!
//! What is run and on which files is decided by the caller.

use std::io::Read;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Condvar, PoisonError};
use std::time::{Duration, Instant};

use attest_common::basics::locked::Locked;

/// How long a renderer may take, in seconds.
pub const RENDER_SECONDS_MAX: u64 = 30;
/// How much a renderer may write, in bytes.
pub const OUTPUT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Most renderers that run at once: each may take a processor and a few hundred megabytes.
pub const RENDERERS_MAX: usize = 4;
/// How much of a renderer's error output is kept, in bytes.
const ERROR_BYTES_MAX: usize = 16 * 1024;
/// An address at which nobody listens: every attempt to leave the machine ends there.
const NOWHERE: &str = "http://127.0.0.1:9";

/// How many renderers run in this process.
static RUNNING: Locked<usize> = Locked::new(0);
static ENDED: Condvar = Condvar::new();

/// Leave to run one renderer, given back when it is dropped.
struct Turn;

impl Turn {
    /// Waits until fewer than [`RENDERERS_MAX`] run.
    fn take() -> Self {
        let running = RUNNING.lock();
        let free = ENDED.wait_while(running, |running| *running >= RENDERERS_MAX);
        *free.unwrap_or_else(PoisonError::into_inner) += 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *RUNNING.lock() -= 1;
        ENDED.notify_one();
    }
}

/// What a program left behind.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) status: ExitStatus,
    pub(super) output: Vec<u8>,
    pub(super) errors: String,
}

/// Why a program did not finish.
#[derive(Debug)]
pub(super) enum Unfinished {
    Start(std::io::Error),
    TimedOut,
    TooMuch,
}

/// Run `command` to its end. Its environment is replaced.
pub(super) fn run(
    mut command: Command,
    time: Duration,
    output_bytes_max: usize,
) -> Result<Finished, Unfinished> {
    command.env_clear();
    // No PATH: a renderer that wants git or another helper does not find it.
    command.env("PATH", "/nonexistent").env("HOME", "/nonexistent").env("LC_ALL", "C");
    for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"] {
        command.env(proxy, NOWHERE);
    }
    command.process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Waiting for others is not counted.
    let _turn = Turn::take();
    let deadline = Instant::now() + time;
    let mut child = command.spawn().map_err(Unfinished::Start)?;
    let (send, receive) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        collect(stdout, output_bytes_max, Stream::Output, send.clone());
    }
    if let Some(stderr) = child.stderr.take() {
        collect(stderr, ERROR_BYTES_MAX, Stream::Errors, send.clone());
    }
    drop(send);
    let read = read_all(&receive, deadline, output_bytes_max);
    let finished = read.and_then(|(output, errors)| {
        let status = wait_until(&mut child, deadline).ok_or(Unfinished::TimedOut)?;
        Ok(Finished { status, output, errors })
    });
    if finished.is_err() {
        end_group(&mut child);
    }
    finished
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stream {
    Output,
    Errors,
}

type Piece = (Stream, Vec<u8>);

fn read_all(
    receive: &mpsc::Receiver<Piece>,
    deadline: Instant,
    output_bytes_max: usize,
) -> Result<(Vec<u8>, String), Unfinished> {
    let (mut output, mut errors) = (Vec::new(), String::new());
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match receive.recv_timeout(left) {
            Ok((Stream::Output, bytes)) if bytes.len() > output_bytes_max => {
                return Err(Unfinished::TooMuch);
            }
            Ok((Stream::Output, bytes)) => output = bytes,
            Ok((Stream::Errors, bytes)) => errors = String::from_utf8_lossy(&bytes).into_owned(),
            Err(RecvTimeoutError::Timeout) => return Err(Unfinished::TimedOut),
            Err(RecvTimeoutError::Disconnected) => return Ok((output, errors)),
        }
    }
}

/// Read a pipe in a thread of its own; one byte more than the limit shows that it was passed.
fn collect(
    pipe: impl Read + Send + 'static,
    bytes_max: usize,
    stream: Stream,
    send: mpsc::Sender<Piece>,
) {
    std::thread::spawn(move || {
        let mut pipe = pipe;
        let mut bytes = Vec::new();
        let limit = bytes_max.saturating_add(1) as u64;
        let _ = pipe.by_ref().take(limit).read_to_end(&mut bytes);
        if stream == Stream::Errors {
            bytes.truncate(bytes_max);
            let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        }
        let _ = send.send((stream, bytes));
    });
}

fn wait_until(child: &mut Child, deadline: Instant) -> Option<ExitStatus> {
    const STEP_MS: u64 = 2;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(STEP_MS));
            }
            Ok(None) | Err(_) => return None,
        }
    }
}

fn end_group(child: &mut Child) {
    use rustix::process::{Pid, Signal, kill_process_group};

    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(group) = group {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_program_that_takes_too_long_is_ended_with_its_children() {
        let directory = tempfile::tempdir().unwrap();
        let pid_file = directory.path().join("pid");
        let script = format!("/bin/sleep 60 & echo $! > {}; wait", pid_file.display());
        let begun = Instant::now();

        let result = run(shell(&script), Duration::from_millis(300), 100);

        assert!(matches!(result, Err(Unfinished::TimedOut)));
        assert!(begun.elapsed() < Duration::from_secs(10));
        let pid = std::fs::read_to_string(pid_file).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        let ended = || {
            std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") Z "))
                || !std::path::Path::new(&stat).exists()
        };
        while !ended() {
            assert!(begun.elapsed() < Duration::from_secs(20), "the child still runs");
        }
    }

    #[test]
    fn a_program_that_writes_too_much_is_ended() {
        let result =
            run(shell("while :; do echo xxxxxxxxxxxxxxxx; done"), Duration::from_secs(20), 1000);

        assert!(matches!(result, Err(Unfinished::TooMuch)));
    }

    #[test]
    fn a_program_sees_no_environment_of_ours() {
        let finished = run(
            shell("echo $CARGO_TARGET_DIR$USER$PATH; echo no >&2; exit 3"),
            Duration::from_secs(20),
            1000,
        )
        .unwrap();

        assert_eq!(finished.status.code(), Some(3));
        assert_eq!(finished.output, b"/nonexistent\n");
        assert_eq!(finished.errors, "no\n");
    }
}
