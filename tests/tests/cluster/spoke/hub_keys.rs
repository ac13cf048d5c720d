//! Several pinned hub keys: each has its own epochs and sequences, and one that used them up has a remedy.

use super::*;
use crate::registration::policies;

/// The highest number in a signed document.
const SEQUENCE_MAX: u64 = i64::MAX as u64;

/// Pins another hub key in the cluster's trust policy.
async fn pin(stage: &Stage, key: &PrivateKey) -> anyhow::Result<()> {
    let patch = json!([{"op": "add", "path": "/spec/hub/keys/-", "value": key.public().to_pem()}]);
    let patch: Patch<()> = Patch::Json(serde_json::from_value(patch)?);
    policies(&stage.client().await?).patch("local", &PatchParams::default(), &patch).await?;
    Ok(())
}

/// Waits for the refusal of a directive with this sequence as replayed, and returns its message.
async fn replayed(stage: &Stage, sequence: u64) -> anyhow::Result<String> {
    let (hub, peer) = (stage.hub.as_ref().context("the hub is stopped")?, stage.peer().await?);
    let report = hub.report(&peer, |report| {
        let refused = report.refusal.as_ref().and_then(|refusal| refusal.sequence);
        refused == Some(sequence) && is_refused_as(report, "SequenceReplayed")
    });
    Ok(report.await?.refusal.context("no refusal")?.message)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_key_that_used_up_its_sequences_blocks_no_other_and_is_reset_by_the_command_in_the_refusal()
-> anyhow::Result<()> {
    let Some(mut stage) = Stage::set().await? else { return Ok(()) };
    let first = stage.delivery(&configs(1)).await?;
    stage.send(&first).await?;
    stage.reported(|report| report.phase == Phase::Synced).await?;
    let hub_key = stage.hub.as_ref().context("hub")?.key().public().id();

    let mut last = stage.delivery(&configs(2)).await?;
    last.directive.sequence = SEQUENCE_MAX;
    stage.sequence = SEQUENCE_MAX;
    stage.send(&last).await?;
    stage.reported(|report| report.phase == Phase::Synced).await?;
    stage.sequence = 1;
    let next = stage.delivery(&configs(3)).await?;
    stage.send(&next).await?;

    let message = replayed(&stage, 2).await?;
    let reset = format!("attest spoke reset web-app -n {NAMESPACE} --hub-key {hub_key}");
    assert!(message.contains(&reset), "{message}");

    // Another pinned key begins at its own first sequence, and does not permit a replay of the first.
    let other = PrivateKey::from_seed(&[77; 32])?;
    let nonce = stage.peer().await?.hello.nonce;
    pin(&stage, &other).await?;
    stage.await_another_hello(&nonce).await?;
    let mut by_other = stage.delivery(&configs(4)).await?;
    by_other.directive.sequence = 1;
    stage.sequence = 1;
    let (hub, peer) = (stage.hub.as_ref().context("hub")?, stage.peer().await?);
    hub.push_signed(&peer, &by_other, &other).await?;
    stage.reported(|report| report.phase == Phase::Synced).await?;
    let record = stage.record()?.context("no record")?;
    assert_eq!((record.hub_key, record.sequence), (other.public().id(), 1));
    assert_eq!(record.other_hub_keys.first().map(|seen| seen.sequence), Some(SEQUENCE_MAX));
    stage.send(&first).await?;
    replayed(&stage, 1).await?;

    let nonce = stage.peer().await?.hello.nonce;
    let kubeconfig = stage.site()?.cluster.kubeconfig().display().to_string();
    let mut arguments: Vec<&str> = reset.split(' ').skip(1).collect();
    arguments.extend(["--kubeconfig", &kubeconfig, "-y"]);
    stage.fleet.operator().attest(&arguments)?;
    stage.await_another_hello(&nonce).await?;
    stage.sequence = 1;
    let again = stage.delivery(&configs(5)).await?;
    stage.send(&again).await?;
    stage.reported(|report| report.phase == Phase::Synced).await?;
    let record = stage.record()?.context("no record")?;
    assert_eq!((record.hub_key, record.sequence), (hub_key, 2));
    stage.fleet.check_spoke_requests()?;
    Ok(())
}
