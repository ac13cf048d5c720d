//! Memory of a spoke (figure B6): connected, W applied, watches open, a minute after the last change.

use std::time::Duration;

use anyhow::Context;

use super::change::deploy;
use super::figures::{Figures, heading};
use crate::fleet::{processor_us, resident_bytes};
use crate::real::RealFleet;
use crate::workload::ENVIRONMENT;

const QUIET: Duration = Duration::from_secs(60);

/// Prints the figures.
///
/// # Errors
/// When the spoke does not run.
pub async fn run(print: &mut dyn FnMut(String)) -> anyhow::Result<()> {
    let Some(fleet) = RealFleet::start(&[("one", ENVIRONMENT)]).await? else {
        anyhow::bail!("no Kubernetes programs; run kind-clusters/tools/build.sh");
    };
    deploy(&fleet, "v0").await?;
    let spoke = fleet.spoke_process("one").context("no spoke process")?;
    let before = processor_us(spoke)?;
    print(format!("W runs; waiting {} s", QUIET.as_secs()));
    tokio::time::sleep(QUIET).await;
    let mut memory = Figures::default();
    let mut processor = Figures::default();
    #[allow(clippy::cast_precision_loss, reason = "figures for people")]
    {
        memory.add(resident_bytes(spoke)? as f64 / 1024.0 / 1024.0);
        processor.add((processor_us(spoke)? - before) as f64 / 1e3 / QUIET.as_secs_f64());
    }
    print(heading());
    print(memory.line("spoke resident memory, W in sync", "MiB", "<= 24 MB (12 later)"));
    print(processor.line("spoke CPU time, idle", "ms/s", "<= 0.3 ms/s"));
    Ok(())
}
