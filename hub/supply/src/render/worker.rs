//! The process that renders: this program started again, which isolates itself before it reads any file of a repository.
//!
//! The parent writes the request to its standard input and reads the result from its standard output. The worker runs
//! kustomize, which inherits every restriction.

use std::ffi::{OsStr, OsString};
use std::io::{BufReader, BufWriter, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::end::exceeded;
use super::error::RenderError;
use super::isolation::{self, FileIsolation, Restrictions};
use super::kustomize::{EXECUTE_FAILED, Program, Runner};
use super::program::{self, Finished, Group, Input, Run, Unfinished};
use super::slots::{RESERVED_MS_MAX, RenderCapacity, Slot, Slots, Speed};
use super::wire::{
    self, HEADER_BYTES_MAX, RESPONSE_HEADER_BYTES_MAX, RenderRequest, Request, Response,
};
use super::{Product, memory};
use crate::ImageChange;
use crate::source::Tree;
use crate::text::one_line;

/// First argument of a process that renders.
const WORKER_ARGUMENT: &str = "__render-worker";
/// First argument of a process that becomes kustomize.
const EXECUTE_ARGUMENT: &str = "__render-execute";
/// This program, also after its file was replaced.
const THIS_PROGRAM: &str = "/proc/self/exe";
/// Processor time of one process that renders, as a multiple of the time that passes.
const CPU_SHARE: u64 = 2;
/// Largest file that is written for a rendering, in bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Longest time for a worker to isolate itself, in seconds.
const PROBE_SECONDS_MAX: u64 = 20;
/// Name of the worker in messages.
const SHOWN: &str = "rendering";

/// The need for isolation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Nothing is rendered without it.
    Required,
    /// It is used as far as the system has it.
    IfAvailable,
}

/// One rendering for a caller.
#[derive(Clone, Copy, Debug)]
pub(super) struct Task<'a> {
    pub(super) path: &'a str,
    pub(super) images: &'a [ImageChange],
    pub(super) program: Option<&'a Program>,
    pub(super) repository: &'a str,
    pub(super) time: Duration,
    pub(super) output_bytes_max: usize,
}

/// Renders in processes of their own.
#[derive(Clone, Debug)]
pub struct RenderWorker {
    program: PathBuf,
    isolation: Isolation,
    capacity: RenderCapacity,
    slots: Arc<Slots>,
}

impl RenderWorker {
    /// Renders by this program, whose `main` calls [`run_as_worker`] first. Isolation is required.
    pub fn this_program() -> Self {
        let program = match std::env::current_exe() {
            Ok(program) if !Path::new(THIS_PROGRAM).exists() => program,
            Ok(_) | Err(_) => PathBuf::from(THIS_PROGRAM),
        };
        Self::at(program)
    }

    /// Renders by the program at `program`, whose `main` calls [`run_as_worker`] first. Isolation is required.
    pub fn at(program: PathBuf) -> Self {
        let capacity = RenderCapacity::of_memory(memory::available_bytes());
        let slots = Arc::new(Slots::new(capacity.slots));
        Self { program, isolation: Isolation::Required, capacity, slots }
    }

    /// Renders with this isolation.
    #[must_use]
    pub fn with_isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = isolation;
        self
    }

    /// Renders with this capacity instead of the one that the memory of the system gives.
    #[must_use]
    pub fn with_capacity(mut self, capacity: RenderCapacity) -> Self {
        (self.capacity, self.slots) = (capacity, Arc::new(Slots::new(capacity.slots)));
        self
    }

    /// Bounds on concurrent renderings.
    pub fn capacity(&self) -> RenderCapacity {
        self.capacity
    }

    /// Checks that the system isolates a worker, and returns how files are protected. Blocks.
    ///
    /// # Errors
    /// [`RenderError::NotIsolated`] names what the system refuses.
    pub fn probe(&self) -> Result<FileIsolation, RenderError> {
        let worker = self.clone().with_isolation(Isolation::Required);
        let input: Input = Box::new(|stdin| wire::write_header(stdin, &Request::Probe));
        let time = Duration::from_secs(PROBE_SECONDS_MAX);
        let end = worker.run(&worker.restrictions(None, None, time), input, time, 0);
        let output = end.map_err(|unfinished| worker.failed("probe", time, &unfinished))?;
        let output = worker.result("probe", output)?;
        match wire::read_header(&mut output.as_slice(), RESPONSE_HEADER_BYTES_MAX) {
            Ok(Response::Isolated(files)) => Ok(files),
            Ok(Response::Failed(error)) => Err(error),
            Ok(Response::Rendered { .. }) => Err(no_result("probe", "another response")),
            Err(error) => Err(no_result("probe", &error.to_string())),
        }
    }

    /// Renders in a process of its own. Waits for a slot, which is not counted as time of rendering.
    pub(super) fn render(&self, files: Tree, task: &Task<'_>) -> Result<Product, RenderError> {
        let files = Arc::new(files);
        let reserved = Duration::from_millis(RESERVED_MS_MAX);
        loop {
            let turn = self.slots.take(task.repository);
            let turn = turn.map_err(|_| RenderError::Busy { path: task.path.to_owned() })?;
            let time = match turn.slot {
                Slot::Common => task.time,
                Slot::Reserved => task.time.min(reserved),
            };
            let begun = Instant::now();
            let outcome = self.attempt(&files, &Task { time, ..*task });
            let is_timeout = matches!(outcome, Err(RenderError::TimedOut { .. }));
            if is_timeout && time < task.time {
                // It needs more time than the reserved slot gives.
                turn.end(Speed::Slow);
                continue;
            }
            turn.end(speed(is_timeout, begun.elapsed() > reserved));
            return outcome;
        }
    }

    /// Renders once, within the time of `task`.
    fn attempt(&self, files: &Arc<Tree>, task: &Task<'_>) -> Result<Product, RenderError> {
        let Task { path, images, program, time, output_bytes_max, .. } = *task;
        // Created here, so that it is removed also when the worker is killed.
        let directory = match program {
            Some(_) => Some(temporary_directory()?),
            None => None,
        };
        let directory_path = directory.as_ref().map(tempfile::TempDir::path);
        let request = RenderRequest {
            program: program.cloned(),
            directory: directory_path.map(Path::to_owned),
            time_ms: u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
            output_bytes_max,
            memory_bytes_max: self.capacity.process_bytes_max,
            ..RenderRequest::new(path, images)
        };
        let files = files.clone();
        let input: Input = Box::new(move |stdin| {
            let mut output = BufWriter::new(stdin);
            wire::write_request(&mut output, request, &files)?;
            output.flush()
        });
        let program_path = program.map(|program| program.path.as_path());
        let restrictions = self.restrictions(directory_path, program_path, time);
        let finished = self.run(&restrictions, input, time, output_bytes_max);
        let finished = finished.map_err(|unfinished| self.failed(path, time, &unfinished))?;
        let output = self.result(path, finished)?;
        wire::read_outcome(&output).map_err(|error| no_result(path, &error.to_string()))?
    }

    fn restrictions(
        &self,
        directory: Option<&Path>,
        program: Option<&Path>,
        time: Duration,
    ) -> Restrictions {
        Restrictions {
            parent: std::process::id(),
            directory: directory.map(Path::to_owned),
            program: program.map(Path::to_owned),
            memory_bytes_max: self.capacity.process_bytes_max,
            cpu_seconds_max: (time.as_secs() + 1) * CPU_SHARE,
            file_bytes_max: FILE_BYTES_MAX,
            required: self.isolation == Isolation::Required,
        }
    }

    fn run(
        &self,
        restrictions: &Restrictions,
        input: Input,
        time: Duration,
        output_bytes_max: usize,
    ) -> Result<Finished, Unfinished> {
        let mut command = Command::new(&self.program);
        command.arg(WORKER_ARGUMENT).arg(serde_json::to_string(restrictions).unwrap_or_default());
        program::run(Run {
            command,
            input: Some(input),
            environment: Vec::new(),
            group: Group::Own,
            time,
            output_bytes_max: output_bytes_max.saturating_add(RESPONSE_HEADER_BYTES_MAX),
        })
    }

    fn failed(&self, path: &str, time: Duration, unfinished: &Unfinished) -> RenderError {
        match unfinished {
            Unfinished::Start(error) => {
                no_result(path, &format!("cannot start {}: {error}", self.program.display()))
            }
            Unfinished::TimedOut => {
                RenderError::TimedOut { path: path.to_owned(), limit_seconds: time.as_secs() }
            }
            Unfinished::TooMuch => RenderError::Limit {
                path: path.to_owned(),
                detail: "the rendering is too large: make it smaller".to_owned(),
            },
        }
    }

    /// The output of a worker that ended well.
    fn result(&self, path: &str, finished: Finished) -> Result<Vec<u8>, RenderError> {
        use std::os::unix::process::ExitStatusExt as _;

        let Finished { status, output, errors } = finished;
        if status.success() {
            return Ok(output);
        }
        if let Some(limit) = exceeded(status, &errors) {
            let detail = limit.detail(SHOWN, self.capacity.process_bytes_max);
            return Err(RenderError::Limit { path: path.to_owned(), detail });
        }
        if status.signal() == Some(rustix::process::Signal::KILL.as_raw()) {
            let (path, program) = (path.to_owned(), SHOWN.to_owned());
            return Err(RenderError::ProgramEnded { path, program });
        }
        Err(no_result(path, &format!("{status}: {}", one_line(&errors))))
    }
}

fn no_result(path: &str, detail: &str) -> RenderError {
    RenderError::Worker { path: path.to_owned(), detail: detail.to_owned() }
}

fn speed(is_timeout: bool, is_slow: bool) -> Speed {
    match (is_timeout, is_slow) {
        (true, _) => Speed::TimedOut,
        (false, true) => Speed::Slow,
        (false, false) => Speed::Quick,
    }
}

fn temporary_directory() -> Result<tempfile::TempDir, RenderError> {
    let made = tempfile::Builder::new().prefix("attest-render-").tempdir();
    made.map_err(|error| RenderError::files("create", tempfile::env::temp_dir(), error))
}

/// Renders and returns when this process was started to render, as its first argument states. The first call of `main`
/// in a program that renders.
pub fn run_as_worker() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let first = arguments.next()?;
    if first == WORKER_ARGUMENT {
        Some(work(&arguments.next().unwrap_or_default()))
    } else if first == EXECUTE_ARGUMENT {
        Some(execute(arguments))
    } else {
        None
    }
}

/// Isolates this process, reads one request, and writes its response.
fn work(restrictions: &OsStr) -> ExitCode {
    let restrictions: Option<Restrictions> =
        restrictions.to_str().and_then(|text| serde_json::from_str(text).ok());
    let Some(restrictions) = restrictions else { return ExitCode::FAILURE };
    let mut output = std::io::stdout().lock();
    let isolated = isolation::restrict(&restrictions);
    let written = match &isolated {
        Err(detail) if restrictions.required => {
            let error = RenderError::NotIsolated { detail: detail.clone() };
            wire::write_header(&mut output, &Response::Failed(error))
        }
        Ok(_) | Err(_) => respond(&mut output, isolated.ok()),
    };
    match written.and_then(|()| output.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn respond(
    output: &mut impl std::io::Write,
    isolation: Option<FileIsolation>,
) -> std::io::Result<()> {
    let mut input = BufReader::new(std::io::stdin().lock());
    let mut request = match wire::read_header(&mut input, HEADER_BYTES_MAX)? {
        Request::Probe => {
            let files = isolation.unwrap_or(FileIsolation::Unsupported);
            return wire::write_header(output, &Response::Isolated(files));
        }
        Request::Render(request) => request,
    };
    let tree = request.read_files(&mut input)?;
    let RenderRequest { path, images, program, directory, .. } = &request;
    let directory = directory.clone().unwrap_or_default();
    let runner = Runner {
        directory: &directory,
        through: isolation.map(|_| (Path::new(THIS_PROGRAM), EXECUTE_ARGUMENT)),
        memory_bytes_max: request.memory_bytes_max,
        time: Duration::from_millis(request.time_ms),
        output_bytes_max: request.output_bytes_max,
    };
    let outcome = super::produce(&tree, path, images, program.as_ref(), &runner);
    wire::write_outcome(output, outcome)
}

/// Becomes the program that the arguments name, without the right to start processes.
fn execute(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(program) = arguments.next() else { return ExitCode::FAILURE };
    let failure = match isolation::forbid_processes() {
        Ok(()) => Command::new(program).args(arguments).exec().to_string(),
        Err(detail) => detail,
    };
    let _ = writeln!(std::io::stderr(), "{failure}");
    ExitCode::from(EXECUTE_FAILED)
}
