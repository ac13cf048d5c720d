//! Growth (figure B12): costs of the hub at several sizes of the fleet, and the exponent of their growth.
//!
//! The cost of one event must not depend on the size of the fleet, and totals must be linear. CPU time is
//! that of the hub's process; the spokes are simulated by this process, on the same cores.

pub mod applications;
pub mod costs;
pub mod small;
pub mod spokes;

use std::time::{Duration, Instant};

use anyhow::ensure;
use attest_common::basics::ids::Timestamp;
use serde_json::Value;

use self::costs::Costs;
use crate::fleet::{Hub, processor_us};
use crate::simulator::spokes::Spokes;
use crate::testbed::Testbed;

/// Path of the list of applications.
const APPLICATIONS: &str = "/v1/applications";
/// Longest duration of one step.
const WITHIN: Duration = Duration::from_secs(600);
/// CPU time in which a batch of equal events is measured: the kernel counts in ticks of 10 ms.
const BATCH_CPU_US: u64 = 300_000;
/// Most events of a batch, and longest duration.
const BATCH_EVENTS_MAX: u32 = 2_000;
const BATCH_WITHIN: Duration = Duration::from_secs(20);
/// Interval and CPU time that define a hub without work.
const QUIET_INTERVAL: Duration = Duration::from_millis(500);
const QUIET_CPU_US: u64 = 10_000;
/// Flags of a hub that does not poll during a measurement.
const WITHOUT_POLLS: [&str; 2] = ["--poll-interval-ms", "3600000"];

/// Sizes and durations of a run.
#[derive(Clone, Debug)]
pub struct Sizes {
    /// Numbers of spokes.
    pub spokes: Vec<usize>,
    /// Numbers of applications.
    pub applications: Vec<usize>,
    /// Duration of each measurement of an idle or a saturated hub.
    pub window: Duration,
    /// Poll interval of the hub with many applications, in milliseconds.
    pub poll_interval_ms: u64,
}

/// Prints the figures.
///
/// # Errors
/// When the hub fails.
pub async fn run(sizes: &Sizes, print: &mut dyn FnMut(String)) -> anyhow::Result<()> {
    let mut of_spokes = Costs::default();
    for &count in sizes.spokes.iter().filter(|&&count| count > 0) {
        spokes::measure(count, sizes, &mut of_spokes, print).await?;
    }
    let mut of_applications = Costs::default();
    for &count in sizes.applications.iter().filter(|&&count| count > 0) {
        applications::measure(count, sizes, &mut of_applications, print).await?;
    }
    of_spokes.lines("spokes").into_iter().for_each(&mut *print);
    of_applications.lines("applications").into_iter().for_each(print);
    Ok(())
}

/// Prints a line of progress with the load of this machine.
fn progress(print: &mut dyn FnMut(String), text: &str) {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let now = Timestamp::now().strftime("%H:%M:%S");
    print(format!("{now} load {}: {text}", load.split(' ').next().unwrap_or("unknown")));
}

/// Waits until the hub has no work; returns its CPU time in microseconds.
async fn quiet(hub: &Hub) -> anyhow::Result<u64> {
    let started = Instant::now();
    let mut before = processor_us(hub.id())?;
    loop {
        tokio::time::sleep(QUIET_INTERVAL).await;
        let now = processor_us(hub.id())?;
        if now - before <= QUIET_CPU_US {
            return Ok(now);
        }
        ensure!(started.elapsed() < WITHIN, "the hub does not become idle");
        before = now;
    }
}

/// CPU time of the hub during `window`, in milliseconds per second.
async fn idle(hub: &Hub, window: Duration) -> anyhow::Result<f64> {
    let before = processor_us(hub.id())?;
    let started = Instant::now();
    tokio::time::sleep(window).await;
    Ok(ratio(processor_us(hub.id())? - before, 1_000) / started.elapsed().as_secs_f64())
}

/// CPU time of one of many equal events, in microseconds.
async fn each<F>(hub: &Hub, mut event: impl FnMut(u32) -> F) -> anyhow::Result<f64>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let before = quiet(hub).await?;
    let started = Instant::now();
    let mut events = 0;
    loop {
        event(events).await?;
        events += 1;
        let used = processor_us(hub.id())? - before;
        let is_enough = used >= BATCH_CPU_US || events >= BATCH_EVENTS_MAX;
        if is_enough || started.elapsed() > BATCH_WITHIN {
            return Ok(ratio(quiet(hub).await? - before, u64::from(events)));
        }
    }
}

/// CPU time of one report on an application, in microseconds.
async fn one_report(testbed: &Testbed, spokes: &Spokes, application: &str) -> anyhow::Result<f64> {
    each(&testbed.hub, |_| spokes.report(0, application)).await
}

/// Bytes and CPU time in microseconds of a list of the API, with all of its pages.
async fn answer(testbed: &Testbed, path: &str) -> anyhow::Result<(f64, f64)> {
    let bytes = read_pages(testbed, path).await?;
    let used_us = each(&testbed.hub, async |_| read_pages(testbed, path).await.map(drop)).await?;
    Ok((ratio(bytes, 1), used_us))
}

/// Returns the size in bytes of an answer and of the pages that follow it.
async fn read_pages(testbed: &Testbed, path: &str) -> anyhow::Result<u64> {
    let mut bytes = 0;
    let mut next = path.to_owned();
    loop {
        let page = testbed.api.get(&next).await?;
        bytes += page.len() as u64;
        // An application is not a list, and large.
        if path != APPLICATIONS {
            return Ok(bytes);
        }
        let page: Value = serde_json::from_str(&page)?;
        let after = page.pointer("/metadata/continue").and_then(Value::as_str);
        let Some(after) = after else { return Ok(bytes) };
        next = format!("{path}?continue={after}");
    }
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn ratio(total: u64, count: u64) -> f64 {
    total as f64 / count.max(1) as f64
}
