//! Running a program: without environment, limited in time and output, ended with all its children.
//!
//! What is run and on which input is decided by the caller.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Longest rendering, in seconds.
pub const RENDER_SECONDS_MAX: u64 = 30;
/// Largest output of a renderer, in bytes.
pub const OUTPUT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Longest error output of a program that is kept, in bytes.
const ERROR_BYTES_MAX: usize = 16 * 1024;
/// An address without a listener: a program that is not isolated reaches no other through a proxy.
const NOWHERE: &str = "http://127.0.0.1:9";

/// A program to run, and its limits.
pub(super) struct Run {
    pub(super) command: Command,
    /// Writes the standard input, in a thread of its own; empty when absent.
    pub(super) input: Option<Input>,
    /// Variables beside the common ones.
    pub(super) environment: Vec<(&'static str, String)>,
    pub(super) group: Group,
    pub(super) time: Duration,
    pub(super) output_bytes_max: usize,
}

pub(super) type Input = Box<dyn FnOnce(&mut ChildStdin) -> std::io::Result<()> + Send>;

/// The process group of a program, which ends as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    Own,
    /// The group of this process, with which the program ends.
    Shared,
}

/// Result of a program that ended by itself.
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

/// Runs a program to its end. Its environment is replaced.
pub(super) fn run(run: Run) -> Result<Finished, Unfinished> {
    let Run { mut command, input, environment, group, time, output_bytes_max } = run;
    command.env_clear();
    // No PATH: a renderer that wants git or another helper does not find it.
    command.env("PATH", "/nonexistent").env("HOME", "/nonexistent").env("LC_ALL", "C");
    for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"] {
        command.env(proxy, NOWHERE);
    }
    command.envs(environment);
    if group == Group::Own {
        command.process_group(0);
    }
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let deadline = Instant::now() + time;
    let mut child = command.spawn().map_err(Unfinished::Start)?;
    if let (Some(input), Some(stdin)) = (input, child.stdin.take()) {
        write_input(input, stdin);
    }
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
        end(&mut child, group);
    }
    finished
}

/// Writes the input in a thread of its own: a program may write before it has read everything.
fn write_input(input: Input, stdin: ChildStdin) {
    std::thread::spawn(move || {
        let mut stdin = stdin;
        // A program that ends early reports the cause itself.
        let _ = input(&mut stdin).and_then(|()| stdin.flush());
    });
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
    const STEP_MAX: Duration = Duration::from_millis(2);
    let mut step = Duration::from_micros(50);
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < deadline => {
                std::thread::sleep(step);
                step = (step * 2).min(STEP_MAX);
            }
            Ok(None) | Err(_) => return None,
        }
    }
}

fn end(child: &mut Child, group: Group) {
    use rustix::process::{Pid, Signal, kill_process_group};

    let id = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(id) = id.filter(|_| group == Group::Own) {
        let _ = kill_process_group(id, Signal::KILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, time: Duration, output_bytes_max: usize) -> Run {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        let (input, environment, group) = (None, Vec::new(), Group::Own);
        Run { command, input, environment, group, time, output_bytes_max }
    }

    #[test]
    fn a_program_that_takes_too_long_is_ended_with_its_children() {
        let directory = tempfile::tempdir().unwrap();
        let pid_file = directory.path().join("pid");
        let script = format!("/bin/sleep 60 & echo $! > {}; wait", pid_file.display());
        let begun = Instant::now();

        let result = run(shell(&script, Duration::from_millis(300), 100));

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
            run(shell("while :; do echo xxxxxxxxxxxxxxxx; done", Duration::from_secs(20), 1000));

        assert!(matches!(result, Err(Unfinished::TooMuch)));
    }

    #[test]
    fn a_program_sees_no_environment_of_ours() {
        let script = "echo $CARGO_TARGET_DIR$USER$PATH; echo no >&2; exit 3";
        let finished = run(shell(script, Duration::from_secs(20), 1000)).unwrap();

        assert_eq!(finished.status.code(), Some(3));
        assert_eq!(finished.output, b"/nonexistent\n");
        assert_eq!(finished.errors, "no\n");
    }

    #[test]
    fn a_program_gets_its_input_and_one_that_does_not_read_it_still_ends() {
        let input = |bytes: usize| -> Option<Input> {
            Some(Box::new(move |stdin| stdin.write_all(&vec![b'x'; bytes])))
        };
        let time = Duration::from_secs(20);

        let read = Run { input: input(100_000), ..shell("/usr/bin/wc -c", time, 1000) };
        let unread = Run { input: input(1_000_000), ..shell("echo done", time, 1000) };

        assert_eq!(String::from_utf8(run(read).unwrap().output).unwrap().trim(), "100000");
        assert_eq!(run(unread).unwrap().output, b"done\n");
    }
}
