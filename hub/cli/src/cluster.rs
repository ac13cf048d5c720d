//! `attest gitops cluster …`: the clusters of the fleet.

mod accept;
mod add;
mod join_token;
mod manifests;
mod rejoin;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::bail;
use attest_common::basics::ids::Timestamp;
use attest_common::basics::labels::{self, LabelError, Selector};
use attest_common::basics::reason::Reason;
use attest_documents::{Addresses, Cluster, LabelsRequest, List, RevokeRequest};
use attest_install::SPOKE_NAMESPACE;
use attest_install::registration::HubEntry;
use clap::Subcommand;
use reqwest::Method;

use crate::client::{Client, block_on, is_not_found};
use crate::hub_args::HubArgs;
use crate::human::{NONE, age, confirm_loss, duration, or_none, until};
use crate::input::{query_value, segment};
use crate::printer::{Format, Printer, TextTable, WatchArgs, field};
use crate::target::ANY_KUBECONFIG;
use crate::watch::{print_list, print_watched};

const POLL_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(crate) struct ClusterArgs {
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// Register a cluster: install the spoke and its trust policy, and wait until it is connected
    Add(Box<add::ClusterAddArgs>),
    /// Print what `cluster add` installs, for a cluster that manages itself by GitOps
    Manifests(Box<manifests::ManifestsArgs>),
    /// List clusters
    #[command(visible_alias = "ls")]
    List {
        /// Only clusters with these labels: KEY=VALUE, KEY!=VALUE, `KEY in (A,B)`, KEY or !KEY, separated by commas
        #[arg(short = 'l', long, value_name = "LABELS", value_parser = label_selector)]
        selector: Option<String>,
        #[command(flatten)]
        watch: WatchArgs,
    },
    /// Add, change and remove labels of a cluster; they choose destinations and stages, and grant nothing
    Label {
        name: String,
        /// KEY=VALUE to add or change a label, KEY- to remove one
        #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
        changes: Vec<LabelChange>,
    },
    /// Show one cluster
    Get {
        name: String,
        #[command(flatten)]
        watch: WatchArgs,
    },
    /// Remove a cluster from the fleet; its workloads keep running
    Rm {
        /// Name, or id if several clusters have this name
        name: String,
        /// Skip the confirmation prompt
        #[arg(short, long)]
        yes: bool,
    },
    /// Accept a pending cluster
    Accept(accept::AcceptArgs),
    /// Permanently revoke a cluster's identity and certificates
    Revoke {
        name: String,
        /// Reason for the revocation, shown by `cluster get`
        #[arg(long, default_value = "unspecified")]
        reason: String,
        /// Skip the confirmation prompt
        #[arg(short, long)]
        yes: bool,
    },
    /// Revoke a cluster's certificate and close its connection; `cluster rejoin` restores it
    Evict {
        name: String,
        /// Skip the confirmation prompt
        #[arg(short, long)]
        yes: bool,
    },
    /// Issue a new certificate for a cluster whose certificate has expired or was revoked by `cluster evict`
    Rejoin(rejoin::RejoinArgs),
    /// Manage join tokens, for clusters registered without `cluster add`
    #[command(subcommand)]
    Token(join_token::TokenCommand),
}

/// The address that the spoke of a cluster dials, as the hub reports it.
///
/// # Errors
/// When the hub has none yet.
async fn spoke_address(client: &Client, kube_system_uid: &str) -> anyhow::Result<String> {
    let reported: anyhow::Result<Addresses> = client.get("/v1/addresses").await;
    let Addresses { spokes, own_cluster } = match reported {
        Ok(addresses) => addresses,
        // An older hub: the address is part of the operator's context.
        Err(error) if is_not_found(&error) => {
            Addresses { spokes: client.hub().spoke_address.clone(), own_cluster: None }
        }
        Err(error) => return Err(error),
    };
    let own = own_cluster.filter(|own| own.kube_system_uid == kube_system_uid);
    match own.and_then(|own| own.spokes).or(spokes) {
        Some(address) => Ok(address),
        None => bail!(
            "the hub has no address for spokes of other clusters ({}); set `spokes.address` of the chart to a HOST:PORT \
             that forwards UDP to Service attest-gitops-spokes, or wait until its load balancer has an address",
            Reason::SpokeAddressUnknown
        ),
    }
}

pub(crate) fn run(args: ClusterArgs, hub: &HubArgs, printer: &Printer) -> anyhow::Result<()> {
    match args.command {
        ClusterCommand::Add(args) => block_on(Box::pin(add::add(*args, hub, printer))),
        ClusterCommand::Manifests(args) => {
            block_on(Box::pin(manifests::manifests(*args, hub, printer)))
        }
        ClusterCommand::List { selector, watch } => {
            let path = list_path(selector.as_deref());
            print_list(&path, watch, hub, printer, cluster_table)
        }
        ClusterCommand::Label { name, changes } => block_on(async {
            label(&hub.client()?, &name, &changes).await?;
            printer.line(&format!("cluster/{name} labelled"));
            Ok(())
        }),
        ClusterCommand::Get { name, watch } => block_on(get(&name, watch, hub, printer)),
        ClusterCommand::Rm { name, yes } => block_on(remove(&name, yes, hub, printer)),
        ClusterCommand::Accept(args) => block_on(Box::pin(accept::accept(args, hub, printer))),
        ClusterCommand::Revoke { name, reason, yes } => {
            confirm_loss(&format!("Permanently revoke cluster {name}?"), yes, printer)?;
            let client = hub.client()?;
            let path = format!("{}/revoke", cluster_path(&name));
            block_on(client.send_only(Method::POST, &path, Some(&RevokeRequest { reason })))?;
            printer.line(&format!("cluster/{name} revoked"));
            Ok(())
        }
        ClusterCommand::Evict { name, yes } => {
            confirm_loss(&format!("Revoke the certificate of cluster {name}?"), yes, printer)?;
            let path = format!("{}/evict", cluster_path(&name));
            block_on(hub.client()?.send_only(Method::POST, &path, None::<&()>))?;
            printer.line(&format!("cluster/{name} evicted"));
            printer.note("to restore it:");
            printer.note(&format!("  {}", rejoin_command(&name)));
            Ok(())
        }
        ClusterCommand::Rejoin(args) => block_on(Box::pin(rejoin::rejoin(args, hub, printer))),
        ClusterCommand::Token(command) => block_on(join_token::run(command, hub, printer)),
    }
}

/// A change of a label on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
enum LabelChange {
    Set(String, String),
    Remove(String),
}

impl From<(String, String)> for LabelChange {
    fn from((key, value): (String, String)) -> Self {
        Self::Set(key, value)
    }
}

impl std::str::FromStr for LabelChange {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        match text.strip_suffix('-').filter(|key| !key.contains('=')) {
            Some(key) => labels::check_key(key).map(|()| Self::Remove(key.to_owned())),
            None => labels::parse_pair(text).map(|(key, value)| Self::Set(key, value)),
        }
    }
}

/// Changes the labels of a cluster.
async fn label(client: &Client, name: &str, changes: &[LabelChange]) -> anyhow::Result<()> {
    let mut request = LabelsRequest::default();
    for change in changes.iter().cloned() {
        match change {
            LabelChange::Set(key, value) => {
                request.set.insert(key, value);
            }
            LabelChange::Remove(key) => request.remove.push(key),
        }
    }
    let path = format!("{}/labels", cluster_path(name));
    client.send_only(Method::POST, &path, Some(&request)).await
}

fn label_selector(text: &str) -> Result<String, LabelError> {
    Selector::parse(text).map(|_| text.to_owned())
}

fn list_path(selector: Option<&str>) -> String {
    match selector {
        Some(selector) => format!("/v1/clusters?labelSelector={}", query_value(selector)),
        None => "/v1/clusters".to_owned(),
    }
}

/// Returns labels as they are written on the command line.
fn label_text(labels: &BTreeMap<String, String>) -> String {
    if labels.is_empty() {
        return NONE.to_owned();
    }
    let pairs: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join(",")
}

fn cluster_path(name: &str) -> String {
    format!("/v1/clusters/{}", segment(name))
}

/// The cluster with this id, or the only one with this name.
async fn find_cluster(client: &Client, name: &str) -> anyhow::Result<Cluster> {
    let all: List<Cluster> = client.get("/v1/clusters").await?;
    let mut found: Vec<Cluster> =
        all.items.into_iter().filter(|c| c.name == name || c.id.as_str() == name).collect();
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(only),
        (None, _) => {
            bail!("cluster `{name}` not found; list the clusters with `attest gitops cluster list`")
        }
        (Some(last), false) => {
            let ids: Vec<String> = found
                .iter()
                .chain([&last])
                .map(|cluster| format!("{} ({})", cluster.id, status(cluster)))
                .collect();
            bail!(
                "several clusters are named `{name}`; pass the id of one of them: {}",
                ids.join(", ")
            )
        }
    }
}

/// The hub's entry of a cluster. `None` if the hub has none of this name.
async fn registered(client: &Client, name: &str) -> anyhow::Result<Option<Cluster>> {
    match client.get(&cluster_path(name)).await {
        Ok(cluster) => Ok(Some(cluster)),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The hub's entry of a cluster, as an input to the rules of registration.
fn hub_entry(cluster: &Cluster) -> HubEntry<'_> {
    HubEntry {
        name: &cluster.name,
        id: &cluster.id,
        state: &cluster.state,
        connected: cluster.connected,
        certificate_expired: cluster.certificate_expires_at.is_some_and(has_expired),
        fingerprint: &cluster.fingerprint,
        kube_system_uid: &cluster.kube_system_uid,
    }
}

fn hub_entries(clusters: &[Cluster]) -> Vec<HubEntry<'_>> {
    clusters.iter().map(hub_entry).collect()
}

fn status(cluster: &Cluster) -> &str {
    hub_entry(cluster).status()
}

/// Expiry by this machine's clock, for display and advice only.
fn has_expired(expires_at: Timestamp) -> bool {
    expires_at <= Timestamp::now()
}

fn cluster_table(clusters: &[Cluster], format: Format) -> TextTable {
    let wide = format == Format::Wide;
    let mut header = vec!["name", "state", "default", "environment", "last seen", "kubernetes"];
    header.extend(["apps", "age"]);
    if wide {
        header.extend(["labels", "id", "agent", "certificate expires", "fingerprint"]);
    }
    let mut table = TextTable::new(&header);
    for cluster in clusters {
        let mut row = vec![
            cluster.name.clone(),
            status(cluster).to_owned(),
            if cluster.default { "*" } else { "" }.to_owned(),
            or_none(cluster.environment.as_ref()),
            last_seen(cluster),
            or_none(cluster.kubernetes_version.as_ref()),
            cluster.applications.to_string(),
            age(cluster.registered_at),
        ];
        if wide {
            row.extend([
                label_text(&cluster.labels),
                cluster.id.to_string(),
                or_none(cluster.agent_version.as_ref()),
                or_none(cluster.certificate_expires_at.map(until)),
                cluster.fingerprint.clone(),
            ]);
        }
        table.row(row);
    }
    table
}

fn last_seen(cluster: &Cluster) -> String {
    match cluster.last_seen_age_ms {
        Some(_) if cluster.connected => "now".to_owned(),
        Some(ms) => format!("{} ago", duration(ms)),
        None => "never".to_owned(),
    }
}

async fn get(name: &str, watch: WatchArgs, hub: &HubArgs, printer: &Printer) -> anyhow::Result<()> {
    let client = hub.client()?;
    let path = cluster_path(name);
    if watch.watch || !watch.output.format.is_table() {
        return print_watched(
            watch,
            printer,
            async || client.get::<Cluster>(&path).await,
            |cluster, format| cluster_table(std::slice::from_ref(cluster), format),
        )
        .await;
    }
    let cluster: Cluster = client.get(&path).await?;
    let registered_at = cluster.registered_at;
    for (name, value) in [
        ("Name", cluster.name.clone()),
        ("ID", cluster.id.to_string()),
        ("State", state_text(&cluster)),
        ("Default", if cluster.default { "yes" } else { "no" }.to_owned()),
        ("Environment", or_none(cluster.environment.as_ref())),
        ("Labels", label_text(&cluster.labels)),
        ("Last seen", last_seen(&cluster)),
        ("Agent", or_none(cluster.agent_version.as_ref())),
        ("Kubernetes", or_none(cluster.kubernetes_version.as_ref())),
        ("Certificate", certificate_text(&cluster)),
        ("Fingerprint", cluster.fingerprint.clone()),
        ("Kube-system", cluster.kube_system_uid.clone()),
        ("Applications", cluster.applications.to_string()),
        ("Registered", format!("{registered_at:.0} ({} ago)", age(registered_at))),
    ] {
        printer.line(&field(name, &value));
    }
    Ok(())
}

/// The state, with the reason of a revocation or the command that ends the state.
fn state_text(cluster: &Cluster) -> String {
    match (status(cluster), &cluster.revoked_because) {
        (state, Some(reason)) => format!("{state} ({reason})"),
        (state @ ("Evicted" | "IdentityCopied"), None) => {
            format!("{state}; run `{}`", rejoin_command(&cluster.name))
        }
        (state, None) => state.to_owned(),
    }
}

fn certificate_text(cluster: &Cluster) -> String {
    match cluster.certificate_expires_at {
        None => NONE.to_owned(),
        Some(at) if has_expired(at) => {
            format!("expired {} ago; run `{}`", age(at), rejoin_command(&cluster.name))
        }
        Some(at) => format!("expires in {}, renewed by the spoke", until(at)),
    }
}

/// The command that issues a new certificate, where the cluster's kubeconfig is not known.
fn rejoin_command(name: &str) -> String {
    format!("attest gitops cluster rejoin {name} {ANY_KUBECONFIG}")
}

async fn remove(name: &str, yes: bool, hub: &HubArgs, printer: &Printer) -> anyhow::Result<()> {
    let client = hub.client()?;
    let cluster = find_cluster(&client, name).await?;
    let question = format!(
        "Remove cluster {} ({}, {})? Its workloads keep running, unmanaged.",
        cluster.name,
        cluster.id,
        status(&cluster)
    );
    confirm_loss(&question, yes, printer)?;
    let path = cluster_path(cluster.id.as_str());
    client.send_only(Method::DELETE, &path, None::<&()>).await?;
    printer.line(&format!("cluster/{name} removed"));
    let remaining: List<Cluster> = client.get("/v1/clusters").await?;
    printer.note(&remaining_installation(&cluster, &remaining.items));
    Ok(())
}

/// A note about the installation in a cluster whose entry was removed.
fn remaining_installation(removed: &Cluster, clusters: &[Cluster]) -> String {
    let other = clusters.iter().find(|other| {
        other.kube_system_uid == removed.kube_system_uid && hub_entry(other).is_current()
    });
    match other {
        Some(other) => format!(
            "the same cluster is also registered as {} ({}), and its spoke continues under that name",
            other.name, other.id
        ),
        None => format!(
            "the spoke and its trust policy are still installed; `kubectl {ANY_KUBECONFIG} delete \
             namespace {SPOKE_NAMESPACE}`, with the kubeconfig of {}, removes the spoke",
            removed.name
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    pub(super) fn cluster(name: &str, id: &str, state: &str, uid: &str) -> Cluster {
        serde_json::from_value(json!({
            "name": name, "id": id, "state": state, "connected": true, "fingerprint": "SHA256:f",
            "applications": 0, "default": false, "registeredAt": "2026-11-23T00:00:00Z",
            "kubeSystemUid": uid
        }))
        .unwrap()
    }

    #[test]
    fn labels_are_written_as_for_kubectl() {
        let change = |text: &str| text.parse::<LabelChange>();
        assert_eq!(change("env=prod"), Ok(LabelChange::Set("env".into(), "prod".into())));
        assert_eq!(change("env-"), Ok(LabelChange::Remove("env".into())));
        assert!(change("env").is_err() && change("env=prod-").is_err() && change("-").is_err());
        let path = list_path(Some("env in (a, b),!x"));
        assert_eq!(path, "/v1/clusters?labelSelector=env%20in%20%28a%2C%20b%29%2C%21x");
    }

    #[test]
    fn nobody_is_told_to_remove_a_spoke_that_serves_another_entry() {
        let removed = cluster("qa", "c-00000000000000aa", "Accepted", "uid");
        let another = cluster("production", "c-00000000000000bb", "Accepted", "another");
        let shut_out = cluster("qa", "c-00000000000000cc", "Revoked", "uid");
        let same = cluster("staging", "c-00000000000000dd", "Accepted", "uid");

        let alone = remaining_installation(&removed, &[another, shut_out]);
        let shared = remaining_installation(&removed, &[same]);

        assert!(
            alone.contains("`kubectl --kubeconfig F delete namespace attest-spoke`"),
            "{alone}"
        );
        assert!(shared.contains("registered as staging (c-00000000000000dd)"), "{shared}");
        assert!(!shared.contains("delete"), "{shared}");
    }
}
