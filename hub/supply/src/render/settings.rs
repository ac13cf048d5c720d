//! The program, the process and the limits of renderings.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::RendererVersion;
use super::kustomize::Program;
use super::program::{OUTPUT_BYTES_MAX, RENDER_SECONDS_MAX};
use super::worker::RenderWorker;

/// The program that builds kustomizations, if there is one, and the process that renders.
#[derive(Clone, Debug)]
pub struct Kustomize {
    pub(super) program: Option<Program>,
    pub(super) worker: RenderWorker,
    /// Repository whose share of the slots a rendering counts to.
    pub(super) repository: Arc<str>,
    pub(super) time: Duration,
    pub(super) output_bytes_max: usize,
}

impl Kustomize {
    /// The first of `kustomize` and `kubectl` that is in `search` (the value of `PATH`) and prints its version.
    pub fn find(search: Option<&OsStr>) -> Self {
        Self::with(Program::find(search))
    }

    /// The program at `path`; it is taken for kubectl when its name begins so.
    pub fn at(path: &Path) -> Self {
        Self::with(Program::at(path))
    }

    /// No program: only plain YAML can be rendered.
    pub fn none() -> Self {
        Self::with(None)
    }

    /// Gives up after `time`, or after so much output.
    #[must_use]
    pub fn with_limits(mut self, time: Duration, output_bytes_max: usize) -> Self {
        (self.time, self.output_bytes_max) = (time, output_bytes_max);
        self
    }

    /// Renders in processes of `worker`.
    #[must_use]
    pub fn with_worker(mut self, worker: RenderWorker) -> Self {
        self.worker = worker;
        self
    }

    /// Counts renderings to the share of `repository`.
    #[must_use]
    pub fn for_repository(&self, repository: &str) -> Self {
        Self { repository: repository.into(), ..self.clone() }
    }

    /// The process that renders.
    pub fn worker(&self) -> &RenderWorker {
        &self.worker
    }

    /// Name and version as a release statement lists them; absent without a program.
    pub fn version(&self) -> Option<RendererVersion> {
        self.program.as_ref().map(Program::renderer)
    }

    fn with(program: Option<Program>) -> Self {
        Self {
            program,
            worker: RenderWorker::this_program(),
            repository: "".into(),
            time: Duration::from_secs(RENDER_SECONDS_MAX),
            output_bytes_max: OUTPUT_BYTES_MAX,
        }
    }
}
