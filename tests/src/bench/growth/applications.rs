//! Costs by the number of applications, each with one destination and a repository of its own.

use std::time::Instant;

use futures::{StreamExt, TryStreamExt};

use super::costs::{Cost, Costs};
use super::small::{OBJECTS, SmallApplications};
use super::{
    APPLICATIONS, Sizes, WITHIN, WITHOUT_POLLS, answer, idle, one_report, progress, quiet, ratio,
};
use crate::simulator::spokes::Spokes;
use crate::testbed::Testbed;

/// Spokes that share the applications.
const SPOKES: usize = 20;
/// Most concurrent requests of the operator.
const REQUESTS_MAX: usize = 8;
/// Applications that release again.
const COMMITS: usize = 10;

const APPLY: Cost = Cost::each("apply, fetch, verify, first plan", "us of CPU each");
const COMMIT: Cost = Cost::each("one commit to one application", "us of CPU");
const ONE_REPORT: Cost = Cost::each("one report", "us of CPU");
const LIST_BYTES: Cost = Cost::each("app list", "bytes an application");
const LIST_CPU: Cost = Cost::total("app list", "us of CPU");
const GET_BYTES: Cost = Cost::each("app get", "bytes");
const GET_CPU: Cost = Cost::each("app get", "us of CPU");
const MEMORY: Cost = Cost::each("memory after reads", "KiB an application");
const RESTART_WALL: Cost = Cost::value("kill -9: all Synced after the hub listens", "s");
const RESTART: Cost = Cost::each("kill -9: restart until all are Synced", "us of CPU each");
const RESENT: Cost = Cost::value("kill -9: plans sent again", "plans");
const IDLE: Cost = Cost::total("idle, with polls", "ms/s of CPU");
const POLL: Cost = Cost::each("one poll without a new commit", "us of CPU");

/// Measures a hub with `count` applications.
///
/// # Errors
/// When the hub fails.
pub async fn measure(
    count: usize,
    sizes: &Sizes,
    costs: &mut Costs,
    print: &mut dyn FnMut(String),
) -> anyhow::Result<()> {
    let testbed = Testbed::start(&WITHOUT_POLLS).await?;
    progress(print, &format!("signing {count} applications"));
    let small = SmallApplications::sign(&testbed, count)?;
    let spokes = testbed.join(SPOKES.min(count)).await?;
    spokes.set_listed_objects(OBJECTS)?;
    spokes.connect();
    spokes.wait_for(spokes.names().len(), WITHIN, |observed| observed.synced_at.len()).await?;
    let mut run = Run { count, testbed, spokes, small: &small, costs };
    progress(print, &format!("{count} applications are applied"));
    run.apply().await?;
    progress(print, "commits, reports and reads");
    run.commit().await?;
    run.read().await?;
    progress(print, "restart, then polls");
    run.restart(sizes).await?;
    progress(print, &run.spokes.observed().summary());
    Ok(())
}

/// One fleet and what is measured of it.
struct Run<'a> {
    count: usize,
    testbed: Testbed,
    spokes: Spokes,
    small: &'a SmallApplications,
    costs: &'a mut Costs,
}

impl Run<'_> {
    fn add(&mut self, cost: Cost, value: f64) {
        self.costs.add(cost, self.count, value);
    }

    async fn apply(&mut self) -> anyhow::Result<()> {
        let testbed = &self.testbed;
        futures::stream::iter(self.small.all())
            .map(|one| self.small.add_repository(testbed, one))
            .buffer_unordered(REQUESTS_MAX)
            .try_collect::<()>()
            .await?;
        let before = quiet(&self.testbed.hub).await?;
        let base_bytes = self.testbed.hub.resident_bytes()?;
        let clusters = self.spokes.names().chunks(1).cycle();
        futures::stream::iter(self.small.all().iter().zip(clusters))
            .map(|(one, cluster)| async move { testbed.apply(&one.name, &one.url, cluster).await })
            .buffer_unordered(REQUESTS_MAX)
            .try_collect::<()>()
            .await?;
        self.spokes.wait_for(self.count, WITHIN, |observed| observed.acknowledged).await?;
        self.testbed.all_synced(self.count, WITHIN).await?;
        let used = quiet(&self.testbed.hub).await? - before;
        self.add(APPLY, ratio(used, self.count as u64));
        let report = self.first_report().await?;
        self.add(ONE_REPORT, report);
        let (bytes, used) = answer(&self.testbed, APPLICATIONS).await?;
        self.add(LIST_BYTES, bytes / ratio(self.count as u64, 1));
        self.add(LIST_CPU, used);
        let bytes = self.testbed.hub.resident_bytes()?.saturating_sub(base_bytes);
        self.add(MEMORY, ratio(bytes, self.count as u64 * 1024));
        Ok(())
    }

    async fn first_report(&self) -> anyhow::Result<f64> {
        let name = self.small.all().first().map_or("", |one| one.name.as_str());
        one_report(&self.testbed, &self.spokes, name).await
    }

    async fn commit(&mut self) -> anyhow::Result<()> {
        let committed = self.small.all().iter().take(COMMITS);
        let mut used = 0;
        for one in committed.clone() {
            self.testbed.release(&one.repository, "v1")?;
            let before = quiet(&self.testbed.hub).await?;
            let reports = self.spokes.observed().acknowledged + 1;
            self.testbed.sync(&one.name).await?;
            self.spokes.wait_for(reports, WITHIN, |observed| observed.acknowledged).await?;
            used += quiet(&self.testbed.hub).await? - before;
        }
        self.add(COMMIT, ratio(used, committed.len() as u64));
        Ok(())
    }

    async fn read(&mut self) -> anyhow::Result<()> {
        let name = self.small.all().first().map_or("", |one| one.name.as_str());
        let (bytes, used) = answer(&self.testbed, &format!("/v1/applications/{name}")).await?;
        self.add(GET_BYTES, bytes);
        self.add(GET_CPU, used);
        Ok(())
    }

    async fn restart(&mut self, sizes: &Sizes) -> anyhow::Result<()> {
        let before = self.spokes.observed();
        let interval_ms = sizes.poll_interval_ms.to_string();
        self.testbed.restart_with(&["--poll-interval-ms", &interval_ms]).await?;
        let listening = Instant::now();
        let sessions = before.synced_at.len() + self.spokes.names().len();
        self.spokes.wait_for(sessions, WITHIN, |observed| observed.synced_at.len()).await?;
        self.testbed.all_synced(self.count, WITHIN).await?;
        self.add(RESTART_WALL, listening.elapsed().as_secs_f64());
        // The process is new.
        let used = crate::fleet::processor_us(self.testbed.hub.id())?;
        self.add(RESTART, ratio(used, self.count as u64));
        let resent = self.spokes.observed().pushed_at.len() - before.pushed_at.len();
        self.add(RESENT, ratio(resent as u64, 1));
        let polls = self.testbed.metric("attest_fleet_reconciles_total").await?;
        let started = Instant::now();
        let idle_ms = idle(&self.testbed.hub, sizes.window).await?;
        let polls = self.testbed.metric("attest_fleet_reconciles_total").await? - polls;
        self.add(IDLE, idle_ms);
        self.add(POLL, idle_ms * started.elapsed().as_secs_f64() * 1_000.0 / polls.max(1.0));
        Ok(())
    }
}
