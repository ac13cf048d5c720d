//! `attest spoke …`: what a cluster's own spoke has recorded, read and reset with the cluster's credentials.
//!
//! The hub is not asked: this is how one looks when the hub is gone or not believed.

use anyhow::{Context as _, bail};
use attest_certs::bundle::chain_from_pem;
use attest_certs::peer_identity;
use attest_common::basics::ids::{Name, Timestamp};
use attest_common::record::Record;
use attest_common::record::custody::{
    DESTINATION_LABEL_VALUE, HUB_STATUS_KEY, HubStatus, IDENTITY_CHAIN_KEY,
    IDENTITY_DESTINATIONS_KEY, IDENTITY_SECRET, RECORD_KEY, RECORD_LABEL, REFUSALS_KEY,
    REFUSALS_SECRET, StoredRefusal,
};
use attest_install::cluster::{restart_spoke, spoke_secrets};
use attest_install::permissions::record_permissions;
use clap::Subcommand;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ListParams, PostParams};
use serde::Serialize;

use crate::client::block_on;
use crate::human::{NONE, age, confirm_loss, or_none, short};
use crate::printer::{Format, Output, Printer, Table};
use crate::target::{TargetArgs, TargetCluster};

/// Look at and reset a spoke, without the hub
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what the spoke has recorded: destinations and refusals
    Status {
        #[command(flatten)]
        target: TargetArgs,
        #[command(flatten)]
        output: Output,
    },
    /// Accept that records of the spoke are gone or of a time to come, so that it admits again
    AcceptState {
        #[command(flatten)]
        target: TargetArgs,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
    /// Forget a destination's repository and lowest release, so that others are admitted
    Reset {
        /// Application
        application: Name,
        /// Namespace of the destination
        #[arg(short, long)]
        namespace: Name,
        #[command(flatten)]
        target: TargetArgs,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
}

/// Everything a spoke has recorded.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    api_version: &'static str,
    kind: &'static str,
    cluster_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_expires_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_lost: Option<StateLost>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hub: Option<HubStatus>,
    destinations: Vec<Record>,
    refusals: Vec<StoredRefusal>,
}

/// Fewer records than the spoke has written: it admits nothing.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct StateLost {
    recorded: u64,
    found: u64,
}

pub(crate) fn run(args: Args, printer: &Printer) -> anyhow::Result<()> {
    match args.command {
        Command::Status { target, output } => block_on(status(&target, output, printer)),
        Command::AcceptState { target, yes } => block_on(accept_state(&target, yes, printer)),
        Command::Reset { application, namespace, target, yes } => {
            let key = (application, namespace);
            block_on(Box::pin(reset(key, &target, yes, printer)))
        }
    }
}

async fn status(target: &TargetArgs, output: Output, printer: &Printer) -> anyhow::Result<()> {
    let cluster = TargetCluster::open(target).await?;
    let facts = cluster.facts().await?;
    let records = records(&cluster).await?;
    let (refusals, hub) = refusals(&cluster).await?;
    let identity = identity(&cluster).await?;
    let status = Status {
        api_version: attest_documents::API_VERSION,
        kind: "SpokeStatus",
        cluster_id: facts.spoke.map(|spoke| spoke.cluster_id),
        certificate_expires_at: certificate_expires_at(&identity),
        state_lost: lost(&identity, records.len()),
        hub,
        destinations: records.into_iter().map(|(_, record)| record).collect(),
        refusals,
    };
    if !matches!(output.format, Format::Table | Format::Wide) {
        return printer.result(output.format, &status, || destinations(&status.destinations));
    }
    printer.line(&format!("Spoke: {}", or_none(status.cluster_id.as_ref())));
    if let Some(at) = status.certificate_expires_at.filter(|at| *at <= Timestamp::now()) {
        printer.line(&format!("Certificate: expired {} ago (CertificateExpired)", age(at)));
        printer.note(
            "the hub lets it in again after `attest gitops cluster rejoin NAME --kubeconfig F`",
        );
    }
    if let Some(StateLost { recorded, found }) = status.state_lost {
        printer.line(&format!("State: lost (StateLost): of {recorded} records {found} are left"));
        printer.note(
            "nothing is admitted, because what the spoke has seen is not known any more; \
             `attest spoke accept-state` begins anew",
        );
    }
    if let Some(HubStatus { stale, since }) = status.hub {
        let how = if stale { "stale (HubStale)" } else { "fresh" };
        printer.line(&format!("Hub: {how} for {}, as last written", age(since)));
    }
    printer.line("");
    printer.table(&destinations(&status.destinations));
    if !status.refusals.is_empty() {
        printer.line("");
        printer.table(&refused(&status.refusals));
    }
    Ok(())
}

fn refused(refusals: &[StoredRefusal]) -> Table {
    let mut table = Table::new(&["refused", "sequence", "reason", "last seen", "message"]);
    for refusal in refusals {
        table.row([
            place(refusal),
            or_none(refusal.refusal.sequence),
            refusal.refusal.reason.clone(),
            last_seen(refusal),
            refusal.refusal.message.clone(),
        ]);
    }
    table
}

/// `12s`, or `12s (x31 over 5h)`, as kubectl has it for events.
fn last_seen(refusal: &StoredRefusal) -> String {
    let last = age(refusal.refusal.at);
    match (refusal.count, refusal.first_at) {
        (count, Some(first)) if count > 1 => format!("{last} (x{count} over {})", age(first)),
        (_, _) => last,
    }
}

fn place(refusal: &StoredRefusal) -> String {
    // Empty when what was refused could not be read.
    let StoredRefusal { application, namespace, .. } = refusal;
    match (application.is_empty(), namespace.is_empty()) {
        (false, false) => format!("{application}/{namespace}"),
        (false, true) => application.clone(),
        (true, _) => NONE.to_owned(),
    }
}

fn destinations(records: &[Record]) -> Table {
    let mut table = Table::new(&[
        "application",
        "namespace",
        "directive",
        "release",
        "counter",
        "objects",
        "repository",
    ]);
    for record in records {
        let release = match (&record.held, record.removed) {
            (_, true) => "removed".to_owned(),
            (Some(held), false) => short(&held.release.to_string()),
            (None, false) => NONE.to_owned(),
        };
        table.row([
            record.application.to_string(),
            record.namespace.to_string(),
            format!("{}.{}", record.epoch, record.sequence),
            release,
            or_none(record.floor.as_ref().map(|floor| floor.counter)),
            record.inventory.len().to_string(),
            or_none(record.binding.as_ref()),
        ]);
    }
    table
}

async fn records(cluster: &TargetCluster) -> anyhow::Result<Vec<(Secret, Record)>> {
    let marked = ListParams::default().labels(&format!("{RECORD_LABEL}={DESTINATION_LABEL_VALUE}"));
    let listed = spoke_secrets(&cluster.client)
        .list(&marked)
        .await
        .context("cannot read the spoke's records")?;
    let mut records = Vec::new();
    for secret in listed.items {
        let name = secret.metadata.name.clone().unwrap_or_default();
        let bytes = secret.data.as_ref().and_then(|data| data.get(RECORD_KEY));
        let bytes = bytes.with_context(|| format!("Secret {name} has no {RECORD_KEY}"))?;
        let record = serde_json::from_slice(&bytes.0)
            .with_context(|| format!("{RECORD_KEY} of Secret {name} is malformed"))?;
        records.push((secret, record));
    }
    records.sort_by(|(_, a), (_, b)| {
        let key = |record: &Record| (record.application.clone(), record.namespace.clone());
        key(a).cmp(&key(b))
    });
    Ok(records)
}

async fn refusals(
    cluster: &TargetCluster,
) -> anyhow::Result<(Vec<StoredRefusal>, Option<HubStatus>)> {
    let secret = spoke_secrets(&cluster.client).get_opt(REFUSALS_SECRET).await;
    let secret = secret.context("cannot read the spoke's refusals")?;
    let data = secret.and_then(|secret| secret.data).unwrap_or_default();
    let malformed = |key: &str| format!("{key} of Secret {REFUSALS_SECRET} is malformed");
    let read = |key: &str| data.get(key).map(|bytes| bytes.0.as_slice());
    let list = read(REFUSALS_KEY).map(serde_json::from_slice).transpose();
    let hub = read(HUB_STATUS_KEY).map(serde_json::from_slice).transpose();
    Ok((
        list.with_context(|| malformed(REFUSALS_KEY))?.unwrap_or_default(),
        hub.with_context(|| malformed(HUB_STATUS_KEY))?,
    ))
}

async fn identity(cluster: &TargetCluster) -> anyhow::Result<Option<Secret>> {
    spoke_secrets(&cluster.client)
        .get_opt(IDENTITY_SECRET)
        .await
        .context("cannot read the spoke's identity")
}

fn certificate_expires_at(identity: &Option<Secret>) -> Option<Timestamp> {
    let chain = identity.as_ref()?.data.as_ref()?.get(IDENTITY_CHAIN_KEY)?;
    let chain = chain_from_pem(std::str::from_utf8(&chain.0).ok()?).ok()?;
    Timestamp::try_from(peer_identity(&chain).ok()?.not_after).ok()
}

fn lost(identity: &Option<Secret>, found: usize) -> Option<StateLost> {
    let bytes = identity.as_ref()?.data.as_ref()?.get(IDENTITY_DESTINATIONS_KEY)?;
    let recorded = std::str::from_utf8(&bytes.0).ok()?.parse().ok()?;
    let found = found as u64;
    (found < recorded).then_some(StateLost { recorded, found })
}

/// The cluster, once it is known that a change of the spoke's records does not stop half-way.
async fn to_be_changed(target: &TargetArgs) -> anyhow::Result<TargetCluster> {
    let cluster = TargetCluster::open(target).await?;
    cluster.facts().await?;
    cluster.check_permissions("a change of the spoke's records", &record_permissions()).await?;
    Ok(cluster)
}

async fn accept_state(target: &TargetArgs, yes: bool, printer: &Printer) -> anyhow::Result<()> {
    let cluster = to_be_changed(target).await?;
    let records = records(&cluster).await?;
    let identity = identity(&cluster).await?;
    let lost = lost(&identity, records.len()).zip(identity);
    let now = Timestamp::now();
    let ahead: Vec<_> =
        records.into_iter().filter(|(_, record)| record.recorded_at > Some(now)).collect();
    if let Some((StateLost { recorded, found }, _)) = &lost {
        printer.note(&format!(
            "of {recorded} records {found} are left; for the others the spoke knows neither the \
             newest directive nor the lowest release nor the repository, so that a hub may send \
             them again"
        ));
    }
    for (_, Record { application, namespace, recorded_at, .. }) in &ahead {
        printer.note(&format!(
            "{application} in {namespace} was recorded at {}, which is still to come",
            or_none(recorded_at.as_ref())
        ));
    }
    if lost.is_none() && ahead.is_empty() {
        printer.line(&format!("context `{}` misses nothing of its spoke", cluster.context));
        return Ok(());
    }
    confirm_loss("Go on as things are now?", yes, printer)?;
    for (mut secret, mut record) in ahead {
        record.recorded_at = Some(now);
        set_record(&mut secret, &record)?;
        replace(&cluster, &secret).await?;
    }
    if let Some((StateLost { found, .. }, mut identity)) = lost {
        let count = ByteString(found.to_string().into_bytes());
        identity.data.get_or_insert_default().insert(IDENTITY_DESTINATIONS_KEY.to_owned(), count);
        replace(&cluster, &identity).await?;
    }
    restart_spoke(&cluster.client).await?;
    printer.line(&format!("spoke/{} state accepted", cluster.context));
    printer
        .note("a spoke of the cluster starts again by itself; one outside must be started again");
    Ok(())
}

fn set_record(secret: &mut Secret, record: &Record) -> anyhow::Result<()> {
    let bytes = ByteString(serde_json::to_vec(record)?);
    secret.data.get_or_insert_default().insert(RECORD_KEY.to_owned(), bytes);
    Ok(())
}

/// Writes a Secret of the spoke back.
async fn replace(cluster: &TargetCluster, secret: &Secret) -> anyhow::Result<()> {
    let name = secret.metadata.name.clone().unwrap_or_default();
    // Carries the resourceVersion that was read: a spoke that wrote meanwhile wins.
    match spoke_secrets(&cluster.client).replace(&name, &PostParams::default(), secret).await {
        Err(kube::Error::Api(status)) if status.is_conflict() => {
            bail!("the spoke has just written Secret {name}; run the command again")
        }
        other => other.map(drop).with_context(|| format!("cannot write Secret {name}")),
    }
}

async fn reset(
    key: (Name, Name),
    target: &TargetArgs,
    yes: bool,
    printer: &Printer,
) -> anyhow::Result<()> {
    let (application, namespace) = key;
    let cluster = to_be_changed(target).await?;
    let found = records(&cluster)
        .await?
        .into_iter()
        .find(|(_, record)| record.application == application && record.namespace == namespace);
    let Some((mut secret, mut record)) = found else {
        bail!("context `{}` has no record of {application} in {namespace}", cluster.context);
    };
    let floor = or_none(record.floor.as_ref().map(|floor| floor.counter));
    printer.note(&format!(
        "{application} in {namespace} is bound to {} with lowest release {floor}",
        or_none(record.binding.as_ref())
    ));
    confirm_loss(
        "Forget both, so that another repository or an older release is admitted?",
        yes,
        printer,
    )?;
    record.binding = None;
    record.floor = None;
    set_record(&mut secret, &record)?;
    replace(&cluster, &secret).await?;
    restart_spoke(&cluster.client).await?;
    printer.line(&format!("destination/{application}/{namespace} reset"));
    printer
        .note("a spoke of the cluster starts again by itself; one outside must be started again");
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refusal(more: &serde_json::Value) -> StoredRefusal {
        let hour_ago = Timestamp::now() - jiff::SignedDuration::from_mins(61);
        let mut stored = json!({
            "application": "web", "namespace": "shop", "reason": "Expired", "message": "late",
            "sequence": 7, "at": hour_ago.to_string(),
        });
        stored.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(stored).unwrap()
    }

    #[test]
    fn a_refusal_that_came_again_says_how_often_and_since_when() {
        let first_at = Timestamp::now() - jiff::SignedDuration::from_hours(49);
        let first_at = first_at.to_string();
        let again = refusal(&json!({"signed": true, "firstAt": first_at, "count": 31}));
        let once = refusal(&json!({"signed": true, "firstAt": first_at, "count": 1}));

        assert_eq!(last_seen(&again), "1h (x31 over 2d)");
        assert_eq!(last_seen(&once), "1h");
        let rows = refused(std::slice::from_ref(&again)).into_rows();
        assert_eq!(place(&refusal(&json!({"application": "", "namespace": ""}))), NONE);
        assert_eq!(rows, [["web/shop", "7", "Expired", "1h (x31 over 2d)", "late"]]);
        let document = serde_json::to_value(&again).unwrap();
        assert_eq!(
            (&document["firstAt"], &document["count"], &document["signed"]),
            (&json!(first_at), &json!(31), &json!(true))
        );
    }

    #[test]
    fn what_an_older_spoke_wrote_of_a_refusal_is_one() {
        let document = serde_json::to_value(refusal(&json!({}))).unwrap();

        assert_eq!((document["count"].as_u64(), document.get("firstAt")), (Some(1), None));
    }
}
