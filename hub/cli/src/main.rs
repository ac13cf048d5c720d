//! `attest`: the command line of CI and of fleet operators. Each noun has one module.
//!
//! The modules contain no rules: these are in the libraries. Exit codes: 0 success, 1 failure, 2 usage, except
//! where a command documents others (`attest verify`, `attest run --verify`, `attest gitops app diff`).

mod app;
mod client;
mod cluster;
mod context;
mod exit;
mod forward;
mod gitops;
mod hub;
mod hub_args;
mod human;
mod init;
mod input;
mod key;
mod printer;
mod release;
mod renderer;
mod repo;
mod rollout;
mod run;
mod spoke;
mod target;
mod trust;
mod verify;
mod version;
mod wait;
mod watch;

use std::process::ExitCode;

use attest_supply::render::run_as_worker;
use clap::{CommandFactory as _, Parser, Subcommand};

use crate::exit::Exit;
use crate::printer::Printer;

/// Sign what CI builds, and deploy only that to a fleet of Kubernetes clusters
#[derive(Debug, Parser)]
#[command(name = "attest", version, about, max_term_width = 100, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: AttestCommand,
}

/// One variant per noun, each with a module of its name.
#[derive(Debug, Subcommand)]
enum AttestCommand {
    /// Prepare a repository: create attest.yaml, .attest/ and k8s/
    Init(init::InitArgs),
    /// Generate and show signing keys
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Run the steps of attest.yaml, render the manifests, and sign the results
    Run(run::RunArgs),
    /// Verify the signed files in a repository with the checks that clusters run
    Verify(verify::VerifyArgs),
    /// Sign an earlier release again, without rebuilding it
    Release(release::ReleaseArgs),
    /// Manage a fleet: clusters, applications, repositories
    Gitops(gitops::GitopsArgs),
    /// Create and list hubs
    Hub(hub::HubCommandArgs),
    /// Inspect and reset a spoke, without its hub
    Spoke(spoke::SpokeArgs),
    /// Manage trust policies and the CI keys that they trust
    Trust(trust::TrustArgs),
    /// Print a shell completion script
    Completion { shell: clap_complete::Shell },
    /// Print version information
    Version(version::VersionArgs),
}

fn main() -> ExitCode {
    if let Some(code) = run_as_worker() {
        return code;
    }
    attest_certs::install_provider();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return report_usage(&error),
    };
    let printer = Printer::new();
    let code = match dispatch(cli.command, &printer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            printer.error(&error);
            let code = error.downcast_ref::<Exit>().map_or(printer::FAILED, |exit| exit.code);
            ExitCode::from(code)
        }
    };
    printer.finish(code)
}

fn dispatch(command: AttestCommand, printer: &Printer) -> anyhow::Result<()> {
    match command {
        AttestCommand::Init(args) => init::run(args, printer),
        AttestCommand::Key(command) => key::run(command, printer),
        AttestCommand::Run(args) => run::run(args, printer),
        AttestCommand::Verify(args) => verify::run(args, printer),
        AttestCommand::Release(args) => release::run(args, printer),
        AttestCommand::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "attest", &mut script);
            printer.text(&String::from_utf8_lossy(&script));
            Ok(())
        }
        AttestCommand::Gitops(args) => gitops::run(args, printer),
        AttestCommand::Hub(args) => hub::run(args, printer),
        AttestCommand::Spoke(args) => spoke::run(args, printer),
        AttestCommand::Trust(args) => trust::run(args, printer),
        AttestCommand::Version(args) => version::run(args, printer),
    }
}

/// Prints a usage error. The exit code is clap's, or 3 for `attest verify`, where 2 means that a check failed.
fn report_usage(error: &clap::Error) -> ExitCode {
    let printed = error.print();
    let is_verify = std::env::args_os().nth(1).is_some_and(|first| first == "verify");
    match error.exit_code() {
        0 if printed.is_ok() => ExitCode::SUCCESS,
        0 => ExitCode::from(printer::FAILED),
        _ if is_verify => ExitCode::from(verify::NOT_CHECKED),
        _ => ExitCode::from(printer::USAGE),
    }
}

#[cfg(test)]
mod tests;
