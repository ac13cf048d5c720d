//! `attest`: the one tool of CI and of fleet operators. Reads the command line and hands it to one file a noun.
//!
//! No rules live here or beside here: they are in the library and in `attest-common`. Exit codes: 0 done,
//! 1 failed, 2 usage, except where a command documents its own (`attest verify`, `attest run --verify`).

mod app;
mod client;
mod cluster;
mod context;
mod exit;
mod gitops;
mod hub;
mod hub_args;
mod human;
mod init;
mod input;
mod key;
mod printer;
mod release;
mod repo;
mod run;
mod spoke;
mod target;
mod trust;
mod verify;
mod version;
mod wait;
mod watch;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::exit::Exit;
use crate::printer::Printer;

/// Prove what CI built, and deploy nothing else.
#[derive(Debug, Parser)]
#[command(name = "attest", version, about, max_term_width = 100, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// One variant a noun; each noun's arguments and work are in the file of its name.
#[derive(Debug, Subcommand)]
enum Command {
    /// Prepare a repository: attest.yaml, .attest/ and k8s/
    Init(init::Args),
    /// Make and show signing keys
    #[command(subcommand)]
    Key(key::Command),
    /// Run the steps of attest.yaml, render, and sign what came out
    Run(run::Args),
    /// Check what the repository holds signed, and say why it would or would not be deployed
    Verify(verify::Args),
    /// Sign an earlier release again, without building
    Release(release::Args),
    /// Manage a fleet: clusters, applications, repositories
    Gitops(gitops::Args),
    /// Make and list hubs
    Hub(hub::Args),
    /// Look at and reset a spoke, without its hub
    Spoke(spoke::Args),
    /// Whom a cluster believes: trust policies and the keys they are made from
    Trust(trust::Args),
    /// Print a completion script for a shell
    Completion { shell: clap_complete::Shell },
    /// Print versions
    Version(version::Args),
}

fn main() -> ExitCode {
    attest_certs::install_provider();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let printer = Printer::new();
    let result = dispatch(cli.command, &printer);
    let code = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            printer.failure(&error);
            let code = error.downcast_ref::<Exit>().map_or(printer::FAILED, |exit| exit.code);
            ExitCode::from(code)
        }
    };
    printer.finish(code)
}

fn dispatch(command: Command, printer: &Printer) -> anyhow::Result<()> {
    match command {
        Command::Init(args) => init::init(args, printer),
        Command::Key(command) => key::key(command, printer),
        Command::Run(args) => run::run(args, printer),
        Command::Verify(args) => verify::verify(args, printer),
        Command::Release(args) => release::release(args, printer),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "attest", &mut script);
            printer.text(&String::from_utf8_lossy(&script));
            Ok(())
        }
        Command::Gitops(args) => gitops::run(args, printer),
        Command::Hub(args) => hub::run(args, printer),
        Command::Spoke(args) => spoke::run(args, printer),
        Command::Trust(args) => trust::run(args, printer),
        Command::Version(args) => version::version(args, printer),
    }
}

/// clap's own codes, but 3 for `attest verify`, where 2 means that a finished check says no.
fn usage(error: &clap::Error) -> ExitCode {
    let shown = error.print();
    let is_verify = std::env::args_os().nth(1).is_some_and(|first| first == "verify");
    match error.exit_code() {
        0 if shown.is_ok() => ExitCode::SUCCESS,
        0 => ExitCode::from(printer::FAILED),
        _ if is_verify => ExitCode::from(verify::NOT_CHECKED),
        _ => ExitCode::from(printer::USAGE),
    }
}
