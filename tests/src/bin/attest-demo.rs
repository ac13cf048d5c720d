//! `attest-demo`: shows the main job on real API servers. Started by `kind-clusters/demo.sh`.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use attest_tests::demo::{self, Ending, Sabotage};
use clap::Parser;

/// A hub, two clusters, one signed commit, and what a hub cannot do
#[derive(Debug, Parser)]
struct Arguments {
    /// End after the last step instead of keeping everything running until Ctrl-C, as it does without a terminal
    #[arg(long)]
    once: bool,
    /// Break one step on purpose; the demo must then fail
    #[arg(long, value_enum)]
    sabotage: Option<Sabotage>,
}

fn print(line: &str) {
    let mut out = std::io::stdout().lock();
    // A closed pipe ends the demo at its next step; nothing to do about it here.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

#[tokio::main]
async fn main() -> ExitCode {
    attest_certs::install_provider();
    let Arguments { once, sabotage } = Arguments::parse();
    // Without a terminal nobody could press Ctrl-C.
    let ending = if once || !std::io::stdin().is_terminal() { Ending::Go } else { Ending::Stay };
    let fleet = match demo::run(sabotage, ending, &(print as fn(&str))).await {
        Ok(Some(fleet)) => fleet,
        Ok(None) => return ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "attest-demo: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    if ending == Ending::Stay {
        print("\nEverything keeps running until you press Ctrl-C.");
        let _ = tokio::signal::ctrl_c().await;
    }
    drop(fleet);
    ExitCode::SUCCESS
}
