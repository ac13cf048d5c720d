//! A compromised hub in the middle of a rollout: it may order what CI signed, in stages or without, and nothing else.
//!
//! Each forged order is refused for its own reason, without a write. Between them, honest orders of the same hub are
//! carried out: a candidate reaches its target, and one that fails is replaced by the newest good plan.

use anyhow::Context;
use attest_common::basics::ids::Digest;
use attest_common::documents::plan::{FinalizedBy, to_bytes};
use attest_common::record::rollout::RolloutState;
use attest_common::session::report::RolloutStatus;
use attest_tests::cluster::fakelet::READY_ANNOTATION;

use super::*;

/// Longest wait for pods that count as failed, and for the progress deadline of a Deployment.
const FAILED_WITHIN: Duration = Duration::from_secs(90);

/// A rendering whose Deployments have new pods that end as `ready` scripts them.
fn with_pods(content: &[u8], ready: &str, deadline_s: u32) -> anyhow::Result<Vec<u8>> {
    changed(content, |object| {
        if object["kind"] == "Deployment" {
            object["spec"]["progressDeadlineSeconds"] = json!(deadline_s);
            object["spec"]["template"]["metadata"]["annotations"][READY_ANNOTATION] = json!(ready);
        }
    })
}

fn without_service(content: &[u8]) -> Vec<u8> {
    let lines = content.split_inclusive(|byte| *byte == b'\n');
    let others =
        lines.filter(|line| !String::from_utf8_lossy(line).contains("\"kind\":\"Service\""));
    others.flatten().copied().collect()
}

/// Objects of production that its spoke has deleted since a mark.
fn deletions(stage: &Stage, mark: Mark) -> anyhow::Result<usize> {
    let writes = writes(stage.production()?, mark)?;
    Ok(writes.iter().filter(|event| event.verb == "delete").count())
}

fn digest(delivery: &Delivery) -> Digest {
    Digest::of(&to_bytes(&delivery.plan))
}

impl Stage {
    /// The newest release with other content, as a candidate of a rollout at a cluster. `step` raises its counter.
    fn candidate(
        &self,
        cluster: &str,
        content: Vec<u8>,
        (generation, step): (u64, u64),
    ) -> anyhow::Result<Delivery> {
        let namespace = format!("app-{cluster}");
        let peer = self.peer_of(cluster);
        let options = ResignOptions { key: &self.ci, render: cluster, content: Some(content) };
        let (again, content) =
            self.newest.sign_again(options, |release| release.counter += step)?;
        let mut sent = again.delivery_of(peer, cluster, &namespace, content)?;
        let recorded = record(&self.fleet, cluster, "web-app", &namespace)?.context("a record")?;
        sent.directive.sequence = recorded.sequence + 1;
        sent.directive.generation = generation;
        sent.directive.finalize = FinalizedBy::Hub;
        Ok(sent)
    }

    fn peer_of(&self, cluster: &str) -> &Peer {
        if cluster == "production" { &self.peer } else { &self.staging }
    }

    /// Waits until the newest report of a rollout at a cluster is `wanted`.
    async fn rollout(
        &self,
        cluster: &str,
        wanted: impl Fn(&RolloutStatus) -> bool,
    ) -> anyhow::Result<Report> {
        let is_wanted = |report: &Report| {
            report.application.as_str() == "web-app" && report.rollout.as_ref().is_some_and(&wanted)
        };
        self.hub.report(self.peer_of(cluster), is_wanted).await
    }

    fn state(&self, cluster: &str) -> anyhow::Result<Option<RolloutState>> {
        let recorded = record(&self.fleet, cluster, "web-app", &format!("app-{cluster}"))?;
        Ok(recorded.and_then(|record| record.rollout).map(|rollout| rollout.state))
    }
}

/// `good` runs in production and is its newest good plan.
pub(super) async fn refuse_forged_orders(stage: &Stage, good: &Delivery) -> anyhow::Result<()> {
    let content = stage.newest.content("production")?;
    let at_staging = stage.newest.content("staging")?;

    // Meant to take long: it is looked at in the end.
    let crashing = with_pods(&at_staging, "crash-loop", 600)?;
    let crashing = stage.candidate("staging", crashing, (5, 1))?;
    stage.hub.push(&stage.staging, &crashing).await?;

    let labelled = changed(&content, |object| {
        if object["kind"] == "Deployment" {
            object["metadata"]["labels"]["positive"] = json!("candidate");
        }
    })?;
    let candidate = stage.candidate("production", without_service(&labelled), (5, 2))?;
    let mark = stage.production()?.cluster.audit().mark();
    stage.hub.push(&stage.peer, &candidate).await?;
    let plan = digest(&candidate);
    stage.rollout("production", |rollout| rollout.plan == plan && rollout.at_target).await?;
    assert_eq!(stage.state("production")?, Some(RolloutState::Soaking));
    assert_eq!(deletions(stage, mark)?, 0, "nothing is pruned before the hub finalizes");

    // (l) a part of a rollout
    let mut sent = candidate.clone();
    sent.directive.sequence += 1;
    sent.directive.cap_percent = 5;
    stage.refused_at("production", "l", &sent, "CapNotSupported").await?;

    // (m) an older rollout
    let mut sent = candidate.clone();
    sent.directive.sequence += 2;
    sent.directive.generation = 4;
    stage.refused_at("production", "m", &sent, "GenerationRegressed").await?;

    // (n) the end of a rollout of another plan than the one in hand
    let mut sent = good.clone();
    sent.directive.sequence = candidate.directive.sequence + 3;
    sent.directive.generation = 5;
    sent.directive.operation = Operation::Finalize;
    stage.refused_at("production", "n", &sent, "PlanMismatch").await?;

    // (o) a return to a plan that was never good
    let mut sent = candidate.clone();
    sent.directive.sequence += 4;
    sent.directive.operation = Operation::Rollback;
    stage.refused_at("production", "o", &sent, "RollbackNotAllowed").await?;

    // Honest: the candidate becomes good. Its content comes from the cluster.
    let mut sent = candidate.clone();
    sent.blobs.clear();
    sent.directive.sequence += 5;
    sent.directive.operation = Operation::Finalize;
    stage.hub.push(&stage.peer, &sent).await?;
    let goods = [digest(&candidate), digest(good)];
    stage.rollout("production", |rollout| rollout.good == goods).await?;
    until("the pruning", WITHIN, || async { Ok((deletions(stage, mark)? > 0).then_some(())) })
        .await?;

    // A candidate that fails is replaced by the newest good plan.
    let failing = with_pods(&content, "never", 2)?;
    let failing = stage.candidate("production", failing, (6, 3))?;
    stage.hub.push(&stage.peer, &failing).await?;
    let plan = digest(&failing);
    let is_aborted = |rollout: &RolloutStatus| {
        rollout.aborted.as_ref().is_some_and(|abort| abort.plan == plan) && rollout.at_target
    };
    let report = stage.rollout("production", is_aborted).await?;
    assert_eq!(report.running.map(|running| running.plan), Some(digest(&candidate)));
    assert_eq!(report.reason.as_str(), "Unhealthy");
    assert_eq!(stage.state("production")?, Some(RolloutState::Returned));

    // (p) a plan that failed here, with a new generation
    let mut sent = failing.clone();
    sent.directive.sequence += 1;
    sent.directive.generation = 7;
    stage.refused_at("production", "p", &sent, "PlanAborted").await?;

    // Honest: a return to the good plan before the newest, as `rollback.lastGood` allows.
    let mut sent = good.clone();
    sent.blobs.clear();
    sent.directive.sequence = failing.directive.sequence + 2;
    sent.directive.generation = 7;
    sent.directive.operation = Operation::Rollback;
    stage.hub.push(&stage.peer, &sent).await?;
    let plan = digest(good);
    stage.rollout("production", |rollout| rollout.plan == plan && rollout.at_target).await?;

    // The pods that crash were found long before the progress deadline, while the old ones served.
    let plan = digest(&crashing);
    let report = until("the crash loop to be given up", FAILED_WITHIN, || async {
        let peer = stage.hub.connected("staging").await?;
        let mut reports = peer.reports().iter().rev();
        let is_aborted = |report: &&Report| {
            let rollout = report.rollout.as_ref().filter(|rollout| rollout.at_target);
            rollout.and_then(|rollout| rollout.aborted.as_ref()).is_some_and(|a| a.plan == plan)
        };
        Ok(reports.find(is_aborted).cloned())
    })
    .await?;
    assert_eq!(report.reason.as_str(), "PodsFailing", "{}", report.message);
    Ok(())
}
