//! `attest-bench NAME`: measures one figure, or all, and prints it with its target.

use std::time::Duration;

use attest_tests::bench;
use attest_tests::bench::growth::Sizes;
use clap::Parser;

/// Measures ATTEST's figures on this machine
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    figure: Figure,
}

#[derive(Clone, Debug, clap::Args)]
struct Growth {
    /// Numbers of spokes; 0 to measure none
    #[arg(long, value_delimiter = ',', default_value = "250,1000,2500")]
    spokes: Vec<usize>,
    /// Numbers of applications; 0 to measure none
    #[arg(long, value_delimiter = ',', default_value = "100,1000,3000")]
    applications: Vec<usize>,
    /// Duration of each measurement of an idle or saturated hub, in seconds
    #[arg(long, default_value_t = 30)]
    window_seconds: u64,
    /// Poll interval of the hub with many applications, in milliseconds
    #[arg(long, default_value_t = 30_000)]
    poll_interval_ms: u64,
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
    /// First sync of an application of 1,100 objects (not part of `all`)
    Large,
    /// Costs of the hub by the size of the fleet, and the exponents of their growth (not part of `all`)
    Growth(Growth),
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
    /// Every figure in turn, except those that are marked
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
        Figure::Large => bench::large::run(&mut print).await,
        Figure::Growth(growth) => {
            let sizes = Sizes {
                spokes: growth.spokes,
                applications: growth.applications,
                window: Duration::from_secs(growth.window_seconds),
                poll_interval_ms: growth.poll_interval_ms,
            };
            bench::growth::run(&sizes, &mut print).await
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
