//! `attest`: the one tool of CI and of fleet operators. Reads the command line and hands it to one file a noun.
//!
//! No rules live here or beside here: they are in the library and in `attest-common`. Exit codes: 0 done,
//! 1 failed, 2 usage, except where a command documents its own (`attest verify`, `attest run --verify`).

mod printer;
mod version;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

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
    /// Print a completion script for a shell
    Completion { shell: clap_complete::Shell },
    /// Print versions
    Version(version::Args),
}

/// A failure that ends the program with a documented code of its own.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Exit {
    pub(crate) code: u8,
    pub(crate) message: String,
}

impl Exit {
    /// An error that ends the program with `code` and says `message`.
    pub(crate) fn error(code: u8, message: impl Into<String>) -> anyhow::Error {
        anyhow::Error::new(Self { code, message: message.into() })
    }
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
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "attest", &mut script);
            printer.text(&String::from_utf8_lossy(&script));
            Ok(())
        }
        Command::Version(args) => version::version(args, printer),
    }
}

/// clap's own codes, but 3 for `attest verify`, where 2 means that a finished check says no.
fn usage(error: &clap::Error) -> ExitCode {
    let shown = error.print();
    match error.exit_code() {
        0 if shown.is_ok() => ExitCode::SUCCESS,
        0 => ExitCode::from(printer::FAILED),
        _ => ExitCode::from(printer::USAGE),
    }
}
