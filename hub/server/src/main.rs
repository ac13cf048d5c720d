//! The hub process: flags, log, signals. What it does is the library.

use std::process::ExitCode;
use std::time::Duration;

use attest_hub::home;
use attest_hub::process::config::Options;
use attest_hub::process::run;
use attest_runtime::log;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

/// Threads for what blocks: Git, rendering, the database. Each costs memory even when it does nothing.
const BLOCKING_THREADS_MAX: usize = 64;
/// How long such a thread waits for more.
const BLOCKING_THREAD_IDLE: Duration = Duration::from_secs(2);
/// The hub could not start, or a part of it died.
const EXIT_FAILED: u8 = 1;

fn main() -> ExitCode {
    attest_certs::install_provider();
    let options = Options::parse();
    match hub(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("attest-hub: {error}"));
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn hub(options: &Options) -> anyhow::Result<()> {
    let said = |error: &(dyn std::error::Error + 'static)| {
        anyhow::Error::msg(attest_common::basics::text::error_chain(error))
    };
    log::start(&options.log).map_err(|error| said(&error))?;
    // Copies to render and keys for ssh: what a killed hub leaves there, the next one removes.
    let temporary = home::temporary(&options.home);
    tempfile::env::override_temp_dir(&temporary)
        .map_err(|other| anyhow::anyhow!("{} is used already", other.display()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(BLOCKING_THREAD_IDLE)
        .build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let running = run::start(options).await.map_err(|error| said(&error))?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = running.core.stop.cancelled() => {}
        }
        running.end().await.map_err(|error| said(&error))
    })
}

/// One line for the person who started the hub.
#[allow(
    clippy::print_stderr,
    reason = "the program's last words, for which no log level is needed"
)]
fn say(line: &str) {
    eprintln!("{line}");
}
