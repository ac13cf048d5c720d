//! Costs by the number of spokes, with one application on all of them.

use std::time::{Duration, Instant};

use super::costs::{Cost, Costs};
use super::{
    APPLICATIONS, Sizes, WITHIN, WITHOUT_POLLS, answer, each, idle, one_report, progress, quiet,
    ratio,
};
use crate::fleet::{Repository, processor_us};
use crate::simulator::request_token;
use crate::simulator::spokes::Spokes;
use crate::testbed::Testbed;
use crate::workload::OBJECTS;

/// Most destinations of an application that the hub accepts.
const DESTINATIONS_MAX: usize = 10_000;
/// Releases after the first one.
const ROLLOUTS: u32 = 3;
/// Counters of releases are seconds.
const RELEASE_INTERVAL: Duration = Duration::from_millis(1_100);
/// Reports of each spoke that wait for an acknowledgement while the hub is saturated.
const IN_FLIGHT: usize = 4;
/// Duration before a saturated hub is measured.
const WARM_UP: Duration = Duration::from_secs(2);
/// Poll interval while polls are measured.
const POLL: Duration = Duration::from_secs(1);

const JOIN: Cost = Cost::each("join", "us of CPU");
const TOKEN: Cost = Cost::each("join token", "us of CPU");
const HANDSHAKE: Cost = Cost::each("bare handshake", "us of CPU");
const CONNECT: Cost = Cost::each("connect, all at the same time", "us of CPU each");
const CONNECT_WALL: Cost = Cost::value("… until all are in sync", "s");
const MEMORY: Cost = Cost::each("memory of a connected spoke", "KiB");
const IDLE: Cost = Cost::total("idle, no applications", "ms/s of CPU");
const FAN_OUT: Cost = Cost::each("first plan to all spokes, with reports", "us of CPU each");
const ROLLOUT: Cost = Cost::each("new plan to all spokes, with reports", "us of CPU each");
const ONE_REPORT: Cost = Cost::each("one report, by destinations", "us of CPU");
const LIST_BYTES: Cost = Cost::each("app list, one application", "bytes");
const LIST_CPU: Cost = Cost::each("app list, one application", "us of CPU");
const GET_BYTES: Cost = Cost::value("app get, by destinations", "bytes");
const GET_CPU: Cost = Cost::total("app get, by destinations", "us of CPU");
const GET_ALL_BYTES: Cost = Cost::total("app get --all, by destinations", "bytes");
const GET_ALL_CPU: Cost = Cost::total("app get --all, by destinations", "us of CPU");
const MEMORY_ROLLED_OUT: Cost = Cost::each("memory after rollouts", "KiB a spoke");
const MEMORY_READ: Cost = Cost::each("memory after app get --all", "KiB a spoke");
const STORM_HALF: Cost = Cost::value("kill -9: half in sync after the hub listens", "s");
const STORM_ALL: Cost = Cost::value("kill -9: all in sync after the hub listens", "s");
const STORM: Cost = Cost::each("kill -9: reconnect", "us of CPU each");
const RESENT: Cost = Cost::value("kill -9: plans sent again", "plans");
const POLL_CPU: Cost = Cost::each("one poll without a new commit, by destinations", "us of CPU");
const INGEST: Cost = Cost::rate("reports without objects", "per second of CPU");
const INGEST_OBJECTS: Cost = Cost::rate("reports with 30 objects", "per second of CPU");

/// Measures a hub with `count` spokes.
///
/// # Errors
/// When the hub fails.
pub async fn measure(
    count: usize,
    sizes: &Sizes,
    costs: &mut Costs,
    print: &mut dyn FnMut(String),
) -> anyhow::Result<()> {
    progress(print, &format!("{count} spokes join"));
    let mut testbed = Testbed::start(&WITHOUT_POLLS).await?;
    let repository = testbed.workload()?;
    testbed.release(&repository, "v0")?;
    let before = processor_us(testbed.hub.id())?;
    let spokes = testbed.join(count).await?;
    costs.add(JOIN, count, ratio(quiet(&testbed.hub).await? - before, count as u64));
    let token = each(&testbed.hub, async |n| {
        request_token(&testbed.api, &format!("more-{n:05}")).await.map(drop)
    });
    costs.add(TOKEN, count, token.await?);
    let handshakes = testbed.handshakes().await?;
    let handshake = each(&testbed.hub, async |_| handshakes.complete_one().await);
    costs.add(HANDSHAKE, count, handshake.await?);
    // Sessions would reuse memory that joining has freed.
    testbed.hub.kill_and_restart().await?;
    let mut run = Run { count, testbed, spokes, repository, costs, base_bytes: 0 };
    progress(print, &format!("{count} spokes connect"));
    run.connect().await?;
    let idle_ms = idle(&run.testbed.hub, sizes.window).await?;
    run.costs.add(IDLE, count, idle_ms);
    progress(print, "plans and reports");
    run.roll_out().await?;
    run.read().await?;
    progress(print, "reconnect storm");
    run.storm().await?;
    progress(print, &run.spokes.observed().summary());
    run.ingest(sizes.window).await?;
    progress(print, "polls");
    run.poll(sizes.window).await
}

/// One fleet and what is measured of it.
struct Run<'a> {
    count: usize,
    testbed: Testbed,
    spokes: Spokes,
    repository: Repository,
    costs: &'a mut Costs,
    /// Memory of the hub without sessions.
    base_bytes: u64,
}

impl Run<'_> {
    fn destinations(&self) -> usize {
        self.count.min(DESTINATIONS_MAX)
    }

    fn add(&mut self, cost: Cost, value: f64) {
        self.costs.add(cost, self.count, value);
    }

    /// Adds a cost of the application.
    fn add_by_destinations(&mut self, cost: Cost, value: f64) {
        self.costs.add(cost, self.destinations(), value);
    }

    fn memory_each(&self) -> anyhow::Result<f64> {
        let bytes = self.testbed.hub.resident_bytes()?.saturating_sub(self.base_bytes);
        Ok(ratio(bytes, self.count as u64 * 1024))
    }

    async fn connect(&mut self) -> anyhow::Result<()> {
        let before = quiet(&self.testbed.hub).await?;
        self.base_bytes = self.testbed.hub.resident_bytes()?;
        let started = Instant::now();
        self.spokes.connect();
        self.spokes.wait_for(self.count, WITHIN, |observed| observed.synced_at.len()).await?;
        self.add(CONNECT_WALL, started.elapsed().as_secs_f64());
        let used = quiet(&self.testbed.hub).await? - before;
        self.add(CONNECT, ratio(used, self.count as u64));
        self.add(MEMORY, self.memory_each()?);
        Ok(())
    }

    async fn roll_out(&mut self) -> anyhow::Result<()> {
        self.spokes.set_listed_objects(OBJECTS)?;
        let clusters: Vec<String> =
            self.spokes.names().iter().take(self.destinations()).cloned().collect();
        let before = quiet(&self.testbed.hub).await?;
        let reports = self.spokes.observed().acknowledged + clusters.len();
        self.testbed.apply("workload", &self.repository.url(), &clusters).await?;
        self.spokes.wait_for(reports, WITHIN, |observed| observed.acknowledged).await?;
        let used = quiet(&self.testbed.hub).await? - before;
        self.add_by_destinations(FAN_OUT, ratio(used, clusters.len() as u64));
        let mut used = 0;
        for round in 1..=ROLLOUTS {
            tokio::time::sleep(RELEASE_INTERVAL).await;
            self.testbed.release(&self.repository, &format!("v{round}"))?;
            let before = quiet(&self.testbed.hub).await?;
            let reports = self.spokes.observed().acknowledged + clusters.len();
            self.testbed.sync("workload").await?;
            self.spokes.wait_for(reports, WITHIN, |observed| observed.acknowledged).await?;
            used += quiet(&self.testbed.hub).await? - before;
        }
        let plans = clusters.len() as u64 * u64::from(ROLLOUTS);
        self.add_by_destinations(ROLLOUT, ratio(used, plans));
        self.add(MEMORY_ROLLED_OUT, self.memory_each()?);
        let report = one_report(&self.testbed, &self.spokes, "workload").await?;
        self.add_by_destinations(ONE_REPORT, report);
        Ok(())
    }

    async fn read(&mut self) -> anyhow::Result<()> {
        let (bytes, used) = answer(&self.testbed, APPLICATIONS).await?;
        self.add_by_destinations(LIST_BYTES, bytes);
        self.add_by_destinations(LIST_CPU, used);
        for (path, bytes_cost, cpu_cost) in [
            ("/v1/applications/workload", GET_BYTES, GET_CPU),
            ("/v1/applications/workload?all=true", GET_ALL_BYTES, GET_ALL_CPU),
        ] {
            let (bytes, used) = answer(&self.testbed, path).await?;
            self.add_by_destinations(bytes_cost, bytes);
            self.add_by_destinations(cpu_cost, used);
        }
        self.add(MEMORY_READ, self.memory_each()?);
        Ok(())
    }

    async fn storm(&mut self) -> anyhow::Result<()> {
        let before = self.spokes.observed();
        self.testbed.hub.kill_and_restart().await?;
        let listening = Instant::now();
        let sessions = before.synced_at.len() + self.count;
        self.spokes.wait_for(sessions, WITHIN, |observed| observed.synced_at.len()).await?;
        let after = self.spokes.observed();
        let mut synced_at =
            after.synced_at.get(before.synced_at.len()..).unwrap_or_default().to_vec();
        synced_at.sort();
        for (cost, rank) in [(STORM_HALF, self.count / 2), (STORM_ALL, self.count)] {
            let at = synced_at.get(rank.saturating_sub(1)).copied().unwrap_or(listening);
            self.add(cost, at.saturating_duration_since(listening).as_secs_f64());
        }
        // The process is new.
        let used = quiet(&self.testbed.hub).await?;
        self.add(STORM, ratio(used, self.count as u64));
        self.add(RESENT, ratio((after.pushed_at.len() - before.pushed_at.len()) as u64, 1));
        self.testbed.all_synced(1, WITHIN).await
    }

    async fn ingest(&mut self, window: Duration) -> anyhow::Result<()> {
        for (cost, objects) in [(INGEST, 0), (INGEST_OBJECTS, OBJECTS)] {
            self.spokes.set_listed_objects(objects)?;
            self.spokes.keep_in_flight(IN_FLIGHT);
            tokio::time::sleep(WARM_UP).await;
            let (used, reports) =
                (processor_us(self.testbed.hub.id())?, self.spokes.observed().acknowledged);
            tokio::time::sleep(window).await;
            let reports = self.spokes.observed().acknowledged - reports;
            let used = processor_us(self.testbed.hub.id())? - used;
            self.add(cost, ratio(reports as u64 * 1_000_000, used));
            self.spokes.keep_in_flight(0);
            quiet(&self.testbed.hub).await?;
        }
        Ok(())
    }

    async fn poll(&mut self, window: Duration) -> anyhow::Result<()> {
        let without = idle(&self.testbed.hub, window).await?;
        let interval_ms = POLL.as_millis().to_string();
        let sessions = self.spokes.observed().synced_at.len() + self.count;
        self.testbed.restart_with(&["--poll-interval-ms", &interval_ms]).await?;
        self.spokes.wait_for(sessions, WITHIN, |observed| observed.synced_at.len()).await?;
        self.testbed.all_synced(1, WITHIN).await?;
        tokio::time::sleep(WARM_UP).await;
        let polls = self.testbed.metric("attest_fleet_reconciles_total").await?;
        let started = Instant::now();
        let with = idle(&self.testbed.hub, window).await?;
        let polls = self.testbed.metric("attest_fleet_reconciles_total").await? - polls;
        let used_us = (with - without) * started.elapsed().as_secs_f64() * 1_000.0;
        self.add_by_destinations(POLL_CPU, used_us / polls.max(1.0));
        Ok(())
    }
}
