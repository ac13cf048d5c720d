//! The spoke process: flags, log, runtime, signals. The library does the rest.

use std::process::ExitCode;
use std::time::Duration;

use attest_common::basics::text::error_chain;
use attest_runtime::log;
use attest_spoke::process::options::Options;
use attest_spoke::process::run::run;
use clap::Parser;

/// Longest time that a stopping spoke waits for operations in flight.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Time in which a dropped session sends its close to the hub.
const CLOSE_GRACE: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    attest_certs::install_provider();
    let options = Options::parse();
    if let Err(error) = log::start(&options.log) {
        print_error(&format!("attest-spoke: {error}"));
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(error = %error, "Cannot start the runtime");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async {
        let outcome = tokio::select! {
            outcome = run(options) => outcome,
            () = stopped() => Ok(()),
        };
        tokio::time::sleep(CLOSE_GRACE).await;
        outcome
    });
    runtime.shutdown_timeout(STOP_TIMEOUT);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(reason = error.reason().as_str(), error = %error_chain(&error), "Stopped");
            ExitCode::FAILURE
        }
    }
}

/// One line for the person who started the spoke.
#[allow(clippy::print_stderr, reason = "there is no log yet")]
fn print_error(line: &str) {
    eprintln!("{line}");
}

/// Waits for SIGTERM or SIGINT. Stopping needs no cleanup: all durable state is stored already.
async fn stopped() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("Stopping");
}
