//! `attest-demo`: runs the demo on real API servers. Started by `kind-clusters/demo.sh`.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use attest_tests::demo::{self, Ending, Sabotage};
use clap::Parser;

/// A hub, two clusters, signed commits, and what a compromised hub cannot do
#[derive(Debug, Parser)]
struct Arguments {
    /// Stop everything after the last step instead of waiting for Ctrl-C; the default without a terminal
    #[arg(long)]
    once: bool,
    /// Break one step on purpose; the demo must then fail
    #[arg(long, value_enum)]
    sabotage: Option<Sabotage>,
}

fn print(line: &str) {
    let mut out = std::io::stdout().lock();
    // Standard output may be a closed pipe; the demo then goes on without output.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

#[tokio::main]
async fn main() -> ExitCode {
    attest_certs::install_provider();
    let Arguments { once, sabotage } = Arguments::parse();
    // Without a terminal there is no Ctrl-C to wait for.
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
