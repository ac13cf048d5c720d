//! `attest-bench NAME`: measures one figure, or all, and prints it with its target.

use attest_tests::bench;
use clap::Parser;

/// Measures ATTEST's figures on this machine
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    figure: Figure,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Figure {
    /// Verification of one application
    Verify,
    /// Memory of idle connected spokes, and plan fan-out
    Idle {
        #[arg(long, default_value_t = 1_000)]
        spokes: usize,
    },
    /// Commit to applied on real clusters
    Change {
        #[arg(long, default_value_t = 30)]
        rounds: usize,
        #[arg(long, default_value_t = 2)]
        clusters: usize,
    },
    /// Edit by hand to reverted
    Drift {
        #[arg(long, default_value_t = 4)]
        edits: usize,
    },
    /// Resident memory of a spoke
    Memory,
    /// A hub with 512 MiB of memory beside hostile repositories (not part of `all`)
    Soak {
        #[arg(long, default_value_t = 50)]
        applications: usize,
        /// Time without hostile repositories; twice as long with them
        #[arg(long, default_value_t = 600)]
        seconds: u64,
    },
    /// Inputs that make a reader panic: mutations of seeds, for a time (not part of `all`)
    Fuzz {
        /// Name of a target; every target without it
        target: Option<String>,
        /// Time for each target
        #[arg(long, default_value_t = 600)]
        seconds: u64,
        /// Start of the sequence of mutations
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Every figure in turn
    All,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    attest_certs::install_provider();
    let Arguments { figure } = Arguments::parse();
    #[allow(clippy::print_stdout, reason = "the figures are this program's output")]
    let mut print = |line: String| println!("{line}");
    match figure {
        Figure::Verify => bench::verify::run(&mut print),
        Figure::Idle { spokes } => bench::idle::run(spokes, &mut print).await,
        Figure::Change { rounds, clusters } => {
            bench::change::run(rounds, clusters, &mut print).await
        }
        Figure::Drift { edits } => bench::drift::run(edits, &mut print).await,
        Figure::Memory => bench::memory::run(&mut print).await,
        Figure::Soak { applications, seconds } => {
            bench::soak::run((applications, seconds), &mut print).await
        }
        Figure::Fuzz { target, seconds, seed } => {
            bench::fuzz::run(target.as_deref(), (seconds, seed), &mut print)
        }
        Figure::All => {
            bench::verify::run(&mut print)?;
            bench::idle::run(1_000, &mut print).await?;
            bench::change::run(30, 2, &mut print).await?;
            bench::drift::run(4, &mut print).await?;
            bench::memory::run(&mut print).await
        }
    }
}
