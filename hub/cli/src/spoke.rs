//! `attest spoke …`: the records of a cluster's spoke, read and reset with credentials for the cluster.
//!
//! The hub is not contacted: these commands work when it is unavailable or not trusted.

use anyhow::{Context as _, bail};
use attest_certs::bundle::chain_from_pem;
use attest_certs::peer_identity;
use attest_common::basics::ids::{Name, Timestamp};
use attest_common::basics::keys::KeyId;
use attest_common::basics::reason::Reason;
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
use serde::de::DeserializeOwned;

use crate::client::block_on;
use crate::human::{NONE, age, confirm_loss, or_none, short};
use crate::printer::{OutputArgs, Printer, TextTable};
use crate::target::{TargetArgs, TargetCluster};

const RESTART_NOTE: &str =
    "a spoke in the cluster restarts automatically; a spoke outside the cluster must be restarted";

/// Inspect and reset a spoke, without its hub
#[derive(Debug, clap::Args)]
pub(crate) struct SpokeArgs {
    #[command(subcommand)]
    command: SpokeCommand,
}

#[derive(Debug, Subcommand)]
enum SpokeCommand {
    /// Show the spoke's records: destinations and refusals
    Status {
        #[command(flatten)]
        target: TargetArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Accept missing records, or records dated in the future, so that the spoke admits directives again
    AcceptState {
        #[command(flatten)]
        target: TargetArgs,
        /// Skip the confirmation prompt
        #[arg(short, long)]
        yes: bool,
    },
    /// Remove a destination's repository binding and lowest release, so that another repository or an older release is
    /// admitted; with --hub-key, the number of the hub's last directive instead
    Reset {
        /// Name of the application
        application: Name,
        /// Namespace of the destination
        #[arg(short, long)]
        namespace: Name,
        /// Id of a hub key (`ed25519:…`): admit its next directive whatever its epoch and sequence, and keep binding and
        /// lowest release
        #[arg(long, value_name = "KEYID")]
        hub_key: Option<KeyId>,
        #[command(flatten)]
        target: TargetArgs,
        /// Skip the confirmation prompt
        #[arg(short, long)]
        yes: bool,
    },
}

/// The records of a spoke.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SpokeStatus {
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

/// Fewer records than the spoke has written. The spoke admits nothing until this is accepted.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct StateLost {
    recorded: u64,
    found: u64,
}

pub(crate) fn run(args: SpokeArgs, printer: &Printer) -> anyhow::Result<()> {
    match args.command {
        SpokeCommand::Status { target, output } => block_on(status(&target, output, printer)),
        SpokeCommand::AcceptState { target, yes } => block_on(accept_state(&target, yes, printer)),
        SpokeCommand::Reset { application, namespace, hub_key, target, yes } => {
            let key = (application, namespace);
            block_on(Box::pin(reset(key, hub_key, &target, yes, printer)))
        }
    }
}

async fn status(target: &TargetArgs, output: OutputArgs, printer: &Printer) -> anyhow::Result<()> {
    let cluster = TargetCluster::open(target).await?;
    let facts = cluster.facts().await?;
    let records = read_records(&cluster).await?;
    let (refusals, hub) = read_refusals(&cluster).await?;
    let identity = read_identity(&cluster).await?;
    let status = SpokeStatus {
        api_version: attest_documents::API_VERSION,
        kind: "SpokeStatus",
        cluster_id: facts.spoke.map(|spoke| spoke.cluster_id),
        certificate_expires_at: certificate_expires_at(&identity),
        state_lost: lost_state(&identity, records.len()),
        hub,
        destinations: records.into_iter().map(|(_, record)| record).collect(),
        refusals,
    };
    if !output.format.is_table() {
        return printer.result(output.format, &status, || destination_table(&status.destinations));
    }
    printer.line(&format!("Spoke: {}", or_none(status.cluster_id.as_ref())));
    if let Some(at) = status.certificate_expires_at.filter(|at| *at <= Timestamp::now()) {
        let reason = Reason::CertificateExpired;
        printer.line(&format!("Certificate: expired {} ago ({reason})", age(at)));
        printer
            .note("to issue a new certificate: `attest gitops cluster rejoin NAME --kubeconfig F`");
    }
    if let Some(StateLost { recorded, found }) = status.state_lost {
        let reason = Reason::StateLost;
        printer.line(&format!("State: lost ({reason}): {found} of {recorded} records remain"));
        printer.note(
            "the spoke admits nothing, because it cannot detect replays without its records; \
             to accept the loss: `attest spoke accept-state`",
        );
    }
    if let Some(HubStatus { stale, since }) = status.hub {
        let freshness =
            if stale { format!("stale ({})", Reason::HubStale) } else { "fresh".to_owned() };
        printer.line(&format!("Hub: {freshness} for {}, as last recorded", age(since)));
    }
    printer.line("");
    printer.table(&destination_table(&status.destinations));
    if !status.refusals.is_empty() {
        printer.line("");
        printer.table(&refusal_table(&status.refusals));
    }
    Ok(())
}

fn refusal_table(refusals: &[StoredRefusal]) -> TextTable {
    let mut table = TextTable::new(&["refused", "sequence", "reason", "last seen", "message"]);
    for refusal in refusals {
        table.row([
            refused_destination(refusal),
            or_none(refusal.refusal.sequence),
            refusal.refusal.reason.to_string(),
            last_seen(refusal),
            refusal.refusal.message.clone(),
        ]);
    }
    table
}

/// `12s`, or `12s (x31 over 5h)`, as in kubectl for events.
fn last_seen(refusal: &StoredRefusal) -> String {
    let last = age(refusal.refusal.at);
    match (refusal.count, refusal.first_at) {
        (count, Some(first)) if count > 1 => format!("{last} (x{count} over {})", age(first)),
        (_, _) => last,
    }
}

/// The destination of a refused document. Names are empty if the document could not be read.
fn refused_destination(refusal: &StoredRefusal) -> String {
    let StoredRefusal { application, namespace, .. } = refusal;
    match (application.is_empty(), namespace.is_empty()) {
        (false, false) => format!("{application}/{namespace}"),
        (false, true) => application.clone(),
        (true, _) => NONE.to_owned(),
    }
}

fn destination_table(records: &[Record]) -> TextTable {
    let mut table = TextTable::new(&[
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

async fn read_records(cluster: &TargetCluster) -> anyhow::Result<Vec<(Secret, Record)>> {
    let selected =
        ListParams::default().labels(&format!("{RECORD_LABEL}={DESTINATION_LABEL_VALUE}"));
    let listed = spoke_secrets(&cluster.client)
        .list(&selected)
        .await
        .context("failed to read the spoke's records")?;
    let mut records = Vec::new();
    for secret in listed.items {
        let name = secret.metadata.name.clone().unwrap_or_default();
        let bytes = secret
            .data
            .as_ref()
            .and_then(|data| data.get(RECORD_KEY))
            .with_context(|| format!("Secret {name} contains no {RECORD_KEY}"))?;
        let record: Record = serde_json::from_slice(&bytes.0)
            .with_context(|| format!("{RECORD_KEY} of Secret {name} is malformed"))?;
        records.push((secret, record));
    }
    records.sort_by(|(_, a), (_, b)| {
        (&a.application, &a.namespace).cmp(&(&b.application, &b.namespace))
    });
    Ok(records)
}

async fn read_refusals(
    cluster: &TargetCluster,
) -> anyhow::Result<(Vec<StoredRefusal>, Option<HubStatus>)> {
    let secret = spoke_secrets(&cluster.client)
        .get_opt(REFUSALS_SECRET)
        .await
        .context("failed to read the spoke's refusals")?
        .unwrap_or_default();
    let refusals = parse_key(&secret, REFUSALS_KEY)?.unwrap_or_default();
    Ok((refusals, parse_key(&secret, HUB_STATUS_KEY)?))
}

/// A document in the Secret of the refusals.
fn parse_key<T: DeserializeOwned>(secret: &Secret, key: &str) -> anyhow::Result<Option<T>> {
    let Some(bytes) = secret.data.as_ref().and_then(|data| data.get(key)) else { return Ok(None) };
    serde_json::from_slice(&bytes.0)
        .with_context(|| format!("{key} of Secret {REFUSALS_SECRET} is malformed"))
}

async fn read_identity(cluster: &TargetCluster) -> anyhow::Result<Option<Secret>> {
    spoke_secrets(&cluster.client)
        .get_opt(IDENTITY_SECRET)
        .await
        .context("failed to read the spoke's identity")
}

fn certificate_expires_at(identity: &Option<Secret>) -> Option<Timestamp> {
    let chain = identity.as_ref()?.data.as_ref()?.get(IDENTITY_CHAIN_KEY)?;
    let chain = chain_from_pem(std::str::from_utf8(&chain.0).ok()?).ok()?;
    Timestamp::try_from(peer_identity(&chain).ok()?.not_after).ok()
}

fn lost_state(identity: &Option<Secret>, found: usize) -> Option<StateLost> {
    let bytes = identity.as_ref()?.data.as_ref()?.get(IDENTITY_DESTINATIONS_KEY)?;
    let recorded = std::str::from_utf8(&bytes.0).ok()?.parse().ok()?;
    let found = found as u64;
    (found < recorded).then_some(StateLost { recorded, found })
}

/// Connects to a cluster after checking the permissions for a change of the spoke's records.
async fn open_for_change(target: &TargetArgs) -> anyhow::Result<TargetCluster> {
    let cluster = TargetCluster::open(target).await?;
    cluster.facts().await?;
    cluster.check_permissions("a change of the spoke's records", &record_permissions()).await?;
    Ok(cluster)
}

async fn accept_state(target: &TargetArgs, yes: bool, printer: &Printer) -> anyhow::Result<()> {
    let cluster = open_for_change(target).await?;
    let records = read_records(&cluster).await?;
    let identity = read_identity(&cluster).await?;
    let lost = lost_state(&identity, records.len()).zip(identity);
    let now = Timestamp::now();
    let ahead: Vec<_> =
        records.into_iter().filter(|(_, record)| record.recorded_at > Some(now)).collect();
    if let Some((StateLost { recorded, found }, _)) = &lost {
        printer.note(&format!(
            "{found} of {recorded} records remain; for the others, the newest directive, the lowest release \
             and the repository are unknown, so the spoke would admit a replay"
        ));
    }
    for (_, Record { application, namespace, recorded_at, .. }) in &ahead {
        printer.note(&format!(
            "{application} in {namespace} was recorded at {}, which is in the future",
            or_none(recorded_at.as_ref())
        ));
    }
    if lost.is_none() && ahead.is_empty() {
        printer.line(&format!("context `{}`: no spoke records are missing", cluster.context));
        return Ok(());
    }
    confirm_loss("Accept the current state?", yes, printer)?;
    for (mut secret, mut record) in ahead {
        record.recorded_at = Some(now);
        set_record(&mut secret, &record)?;
        replace_secret(&cluster, &secret).await?;
    }
    if let Some((StateLost { found, .. }, mut identity)) = lost {
        let count = ByteString(found.to_string().into_bytes());
        identity.data.get_or_insert_default().insert(IDENTITY_DESTINATIONS_KEY.to_owned(), count);
        replace_secret(&cluster, &identity).await?;
    }
    restart_spoke(&cluster.client).await?;
    printer.line(&format!("spoke/{} state accepted", cluster.context));
    printer.note(RESTART_NOTE);
    Ok(())
}

fn set_record(secret: &mut Secret, record: &Record) -> anyhow::Result<()> {
    let bytes = ByteString(serde_json::to_vec(record)?);
    secret.data.get_or_insert_default().insert(RECORD_KEY.to_owned(), bytes);
    Ok(())
}

/// Replaces a Secret of the spoke with a changed version.
async fn replace_secret(cluster: &TargetCluster, secret: &Secret) -> anyhow::Result<()> {
    let name = secret.metadata.name.clone().unwrap_or_default();
    // The resourceVersion makes the request fail if the spoke has written the Secret since it was read.
    match spoke_secrets(&cluster.client).replace(&name, &PostParams::default(), secret).await {
        Err(kube::Error::Api(status)) if status.is_conflict() => {
            bail!("Secret {name} was modified concurrently by the spoke; run the command again")
        }
        other => other.map(drop).with_context(|| format!("failed to write Secret {name}")),
    }
}

async fn reset(
    key: (Name, Name),
    hub_key: Option<KeyId>,
    target: &TargetArgs,
    yes: bool,
    printer: &Printer,
) -> anyhow::Result<()> {
    let (application, namespace) = key;
    let cluster = open_for_change(target).await?;
    let found = read_records(&cluster)
        .await?
        .into_iter()
        .find(|(_, record)| record.application == application && record.namespace == namespace);
    let Some((mut secret, mut record)) = found else {
        bail!("context `{}` contains no record of {application} in {namespace}", cluster.context);
    };
    match hub_key {
        None => reset_binding(&mut record, yes, printer)?,
        Some(hub_key) => reset_hub_key(&mut record, hub_key, yes, printer)?,
    }
    set_record(&mut secret, &record)?;
    replace_secret(&cluster, &secret).await?;
    restart_spoke(&cluster.client).await?;
    printer.line(&format!("destination/{application}/{namespace} reset"));
    printer.note(RESTART_NOTE);
    Ok(())
}

fn reset_binding(record: &mut Record, yes: bool, printer: &Printer) -> anyhow::Result<()> {
    let floor = or_none(record.floor.as_ref().map(|floor| floor.counter));
    printer.note(&format!(
        "{} in {} is bound to {}; its lowest release is {floor}",
        record.application,
        record.namespace,
        or_none(record.binding.as_ref())
    ));
    confirm_loss(
        "Remove both, so that another repository or an older release is admitted?",
        yes,
        printer,
    )?;
    record.binding = None;
    record.floor = None;
    Ok(())
}

fn reset_hub_key(
    record: &mut Record,
    hub_key: KeyId,
    yes: bool,
    printer: &Printer,
) -> anyhow::Result<()> {
    let Some(seen) = record.forget_hub_key(hub_key) else {
        let known: Vec<String> =
            record.positions().map(|position| position.hub_key.to_string()).collect();
        bail!(
            "{} in {} has admitted no directive of hub key {hub_key}; pass one of: {}",
            record.application,
            record.namespace,
            known.join(", ")
        );
    };
    printer.note(&format!(
        "the newest directive of hub key {hub_key} for {} in {} has epoch {} and sequence {}; without these numbers, \
         directives that it signed in the last 24 hours can be replayed. If another party has used the key, create a \
         new one and pin it instead",
        record.application, record.namespace, seen.epoch, seen.sequence
    ));
    confirm_loss("Forget them, so that the hub's next directive is admitted?", yes, printer)
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
        let rows = refusal_table(std::slice::from_ref(&again)).into_rows();
        assert_eq!(
            refused_destination(&refusal(&json!({"application": "", "namespace": ""}))),
            NONE
        );
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
