//! The hub process: flags, log, signals. The library implements the hub.

use std::process::ExitCode;
use std::time::Duration;

use attest_hub::home;
use attest_hub::process::config::Options;
use attest_hub::process::ready::ReadinessCheck;
use attest_hub::process::run;
use attest_runtime::log;
use attest_supply::render::run_as_worker;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

/// Most threads for blocking work: Git, rendering, the database. Idle threads cost memory too.
const BLOCKING_THREADS_MAX: usize = 64;
/// Time after which an idle blocking thread ends.
const BLOCKING_THREAD_IDLE: Duration = Duration::from_secs(2);
/// Exit code when the hub could not start or failed.
const EXIT_FAILED: u8 = 1;

fn main() -> ExitCode {
    if let Some(code) = run_as_worker() {
        return code;
    }
    if let Some(check) = ReadinessCheck::requested() {
        return match check.run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                print_diagnostic(&format!("attest-hub: {error}"));
                ExitCode::from(EXIT_FAILED)
            }
        };
    }
    attest_certs::install_provider();
    let options = Options::parse();
    match hub(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_diagnostic(&format!("attest-hub: {error}"));
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn hub(options: &Options) -> anyhow::Result<()> {
    log::start(&options.log).map_err(|error| with_causes(&error))?;
    // Copies to render and keys for ssh: the next hub removes what a killed one leaves there.
    let temporary = home::temporary(&options.home);
    tempfile::env::override_temp_dir(&temporary).map_err(|other| {
        anyhow::anyhow!("the temporary directory {} is already set", other.display())
    })?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(BLOCKING_THREAD_IDLE)
        .build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let running = run::start(options).await.map_err(|error| with_causes(&error))?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = running.core.stop.cancelled() => {}
        }
        running.end().await.map_err(|error| with_causes(&error))
    })
}

/// Returns an error whose text includes its causes.
fn with_causes(error: &(dyn std::error::Error + 'static)) -> anyhow::Error {
    anyhow::Error::msg(attest_common::basics::text::error_chain(error))
}

/// Prints one line to standard error.
#[allow(
    clippy::print_stderr,
    reason = "the final error of the program is printed at every log level"
)]
fn print_diagnostic(line: &str) {
    eprintln!("{line}");
}
