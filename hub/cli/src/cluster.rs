//! `attest gitops cluster …`: who is in the fleet. Adding one is `add`, its way back `rejoin`; this file is the rest.

mod add;
mod join_token;
mod rejoin;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use attest_common::basics::ids::Timestamp;
use attest_documents::{AcceptRequest, Cluster, List, RevokeRequest, Token, TokenRequest};
use attest_install::SYSTEM_NAMESPACE;
use attest_install::apply::write_cluster_id;
use attest_install::cluster::spoke_identity;
use attest_install::registration::HubEntry;
use clap::Subcommand;
use reqwest::Method;

use self::join_token::JoinToken;
use crate::client::{Client, block_on, is_missing};
use crate::hub_args::HubArgs;
use crate::human::{NONE, age, confirm_loss, duration, or_none, until};
use crate::input::{segment, wait_seconds};
use crate::printer::{Format, Output, Printer, Table, Watch};
use crate::target::{TargetArgs, TargetCluster};
use crate::wait::{Poll, Wait};
use crate::watch::show;

const POLL_EVERY: Duration = Duration::from_millis(500);
const TOKEN_MINUTES_DEFAULT: u64 = 15;
/// In a printed line, where it is not known how the operator reaches the cluster.
const ANY_KUBECONFIG: &str = "--kubeconfig F";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Register a cluster: install the spoke and its trust policy, and wait until it is connected
    Add(Box<add::AddArgs>),
    /// List clusters
    #[command(visible_alias = "ls")]
    List(Watch),
    /// Show one cluster
    Get {
        name: String,
        #[command(flatten)]
        watch: Watch,
    },
    /// Take a cluster out of the fleet; what runs there keeps running
    Rm {
        /// Name, or id where several have one name
        name: String,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
    /// Let a cluster in that joined with a token and waits
    Accept(AcceptArgs),
    /// Shut a cluster out for ever: its certificates and its identity are refused from now on
    Revoke {
        name: String,
        /// Why, for those who look later
        #[arg(long, default_value = "unspecified")]
        reason: String,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
    /// End a cluster's connection and certificate; it may join again
    Evict {
        name: String,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
    /// Give a cluster whose certificate has expired or was ended a new one; its identity stays
    Rejoin(rejoin::RejoinArgs),
    /// Join tokens, for clusters that are not registered by `cluster add`
    #[command(subcommand)]
    Token(TokenCommand),
}

#[derive(Debug, clap::Args)]
struct AcceptArgs {
    name: String,
    /// Fingerprint that the spoke logs, `SHA256:…`
    #[arg(long)]
    fingerprint: String,
    /// Also tell the cluster's trust policy which spoke it is for
    #[command(flatten)]
    target: TargetArgs,
    /// Longest wait for the spoke to fetch its certificate, in seconds
    #[arg(long, default_value_t = 120, value_name = "SECONDS", value_parser = wait_seconds())]
    timeout: u64,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token that admits one spoke once; the cluster then waits for `cluster accept`
    Create {
        /// Name the cluster will have
        cluster: String,
        /// Minutes the token is good for
        #[arg(long, default_value_t = TOKEN_MINUTES_DEFAULT, value_parser = clap::value_parser!(u64).range(1..=1440))]
        ttl_minutes: u64,
        /// Write the token here, for its owner only, and do not print it
        #[arg(long, value_name = "FILE")]
        token_output: Option<PathBuf>,
        /// Replace a cluster of this name that is registered already
        #[arg(long)]
        replace: bool,
    },
    /// List tokens; their secrets are never shown again
    #[command(visible_alias = "ls")]
    List(Output),
    /// Make an unused token useless
    Revoke { id: String },
}

pub(crate) fn run(args: Args, hub: &HubArgs, printer: &Printer) -> anyhow::Result<()> {
    match args.command {
        Command::Add(args) => block_on(Box::pin(add::add(*args, hub, printer))),
        Command::List(watch) => {
            let client = hub.client()?;
            let ask = async || client.get::<List<Cluster>>("/v1/clusters").await;
            block_on(show(watch, printer, ask, |list, format| clusters(&list.items, format)))
        }
        Command::Get { name, watch } => block_on(get(&name, watch, hub, printer)),
        Command::Rm { name, yes } => {
            let client = hub.client()?;
            let found = block_on(only(&client, &name))?;
            let question = format!(
                "Remove cluster {} ({}, {})? What runs there keeps running, unmanaged.",
                found.name,
                found.id,
                state(&found)
            );
            confirm_loss(&question, yes, printer)?;
            block_on(client.act(Method::DELETE, &path(found.id.as_str()), None::<&()>))?;
            printer.line(&format!("cluster/{name} removed"));
            let left: List<Cluster> = block_on(client.get("/v1/clusters"))?;
            printer.note(&what_is_left(&found, &left.items));
            Ok(())
        }
        Command::Accept(args) => block_on(Box::pin(accept(args, hub, printer))),
        Command::Revoke { name, reason, yes } => {
            confirm_loss(&format!("Shut cluster {name} out for ever?"), yes, printer)?;
            let client = hub.client()?;
            let request = RevokeRequest { reason };
            let path = format!("{}/revoke", path(&name));
            block_on(client.act(Method::POST, &path, Some(&request)))?;
            printer.line(&format!("cluster/{name} revoked"));
            Ok(())
        }
        Command::Evict { name, yes } => {
            confirm_loss(&format!("End cluster {name}'s certificate?"), yes, printer)?;
            let path = format!("{}/evict", path(&name));
            block_on(hub.client()?.act(Method::POST, &path, None::<&()>))?;
            printer.line(&format!("cluster/{name} evicted"));
            printer.note("to let it in again:");
            printer.note(&format!("  {}", rejoin_line(&name, ANY_KUBECONFIG)));
            Ok(())
        }
        Command::Rejoin(args) => block_on(Box::pin(rejoin::rejoin(args, hub, printer))),
        Command::Token(command) => token(command, hub, printer),
    }
}

fn path(name: &str) -> String {
    format!("/v1/clusters/{}", segment(name))
}

fn token_path(id: &str) -> String {
    format!("/v1/tokens/{}", segment(id))
}

/// The one cluster with this id or name; who names one of several must say which.
async fn only(client: &Client, name: &str) -> anyhow::Result<Cluster> {
    let all: List<Cluster> = client.get("/v1/clusters").await?;
    let mut found: Vec<Cluster> =
        all.items.into_iter().filter(|c| c.name == name || c.id.as_str() == name).collect();
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(only),
        (None, _) => bail!(
            "no cluster is named `{name}`; `attest gitops cluster list` shows those there are"
        ),
        (Some(last), false) => {
            let ids = found.iter().chain([&last]).map(|c| format!("{} ({})", c.id, state(c)));
            let ids = ids.collect::<Vec<_>>().join(", ");
            bail!("several clusters are named `{name}`; give the id of one of them: {ids}")
        }
    }
}

/// The hub's entry of a cluster, as the rules of registration take it.
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

/// One word for where a cluster stands.
fn state(cluster: &Cluster) -> &str {
    hub_entry(cluster).status()
}

fn last_seen(cluster: &Cluster) -> String {
    match cluster.last_seen_age_ms {
        Some(_) if cluster.connected => "now".to_owned(),
        Some(ms) => format!("{} ago", duration(ms)),
        None => "never".to_owned(),
    }
}

fn clusters(clusters: &[Cluster], format: Format) -> Table {
    let wide = format == Format::Wide;
    let mut header = vec!["name", "state", "default", "environment", "last seen", "kubernetes"];
    header.extend(["apps", "age"]);
    if wide {
        header.extend(["id", "agent", "certificate expires", "fingerprint"]);
    }
    let mut table = Table::new(&header);
    for cluster in clusters {
        let mut row = vec![
            cluster.name.clone(),
            state(cluster).to_owned(),
            if cluster.default { "*" } else { "" }.to_owned(),
            or_none(cluster.environment.as_ref()),
            last_seen(cluster),
            or_none(cluster.kubernetes_version.as_ref()),
            cluster.applications.to_string(),
            age(cluster.registered_at),
        ];
        if wide {
            row.extend([
                cluster.id.to_string(),
                or_none(cluster.agent_version.as_ref()),
                cluster.certificate_expires_at.map_or_else(|| NONE.to_owned(), until),
                cluster.fingerprint.clone(),
            ]);
        }
        table.row(row);
    }
    table
}

async fn get(name: &str, watch: Watch, hub: &HubArgs, printer: &Printer) -> anyhow::Result<()> {
    let client = hub.client()?;
    let path = path(name);
    let ask = async || client.get::<Cluster>(&path).await;
    if watch.watch || !matches!(watch.output.format, Format::Table | Format::Wide) {
        let row = |cluster: &Cluster, format| clusters(std::slice::from_ref(cluster), format);
        return show(watch, printer, ask, row).await;
    }
    let cluster = ask().await?;
    let lines = [
        ("Name", cluster.name.clone()),
        ("ID", cluster.id.to_string()),
        ("State", state(&cluster).to_owned()),
        ("Default", if cluster.default { "yes" } else { "no" }.to_owned()),
        ("Environment", or_none(cluster.environment.as_ref())),
        ("Last seen", last_seen(&cluster)),
        ("Agent", or_none(cluster.agent_version.as_ref())),
        ("Kubernetes", or_none(cluster.kubernetes_version.as_ref())),
        (
            "Certificate",
            cluster
                .certificate_expires_at
                .map_or_else(|| NONE.to_owned(), |at| certificate(&cluster.name, at)),
        ),
        ("Fingerprint", cluster.fingerprint.clone()),
        ("Kube-system", cluster.kube_system_uid.clone()),
        ("Applications", cluster.applications.to_string()),
        (
            "Registered",
            format!("{:.0} ({} ago)", cluster.registered_at, age(cluster.registered_at)),
        ),
    ];
    for (name, value) in lines {
        printer.line(&format!("{:<14}{value}", format!("{name}:")));
    }
    Ok(())
}

fn certificate(name: &str, expires_at: Timestamp) -> String {
    if has_expired(expires_at) {
        format!("expired {} ago; `{}`", age(expires_at), rejoin_line(name, ANY_KUBECONFIG))
    } else {
        format!("expires in {}, renewed by the spoke itself", until(expires_at))
    }
}

/// By this machine's clock; for people only.
fn has_expired(expires_at: Timestamp) -> bool {
    expires_at <= Timestamp::now()
}

/// What gives a cluster a new certificate, also one that was evicted. `flags` reach the cluster.
fn rejoin_line(name: &str, flags: &str) -> String {
    format!("attest gitops cluster rejoin {name} {flags}")
}

/// What is left in the cluster of an entry that is gone, when these are left.
fn what_is_left(removed: &Cluster, clusters: &[Cluster]) -> String {
    let here = |other: &&Cluster| {
        other.kube_system_uid == removed.kube_system_uid && other.state != "Revoked"
    };
    match clusters.iter().find(here) {
        Some(other) => format!(
            "the same cluster is registered as {} ({}) too, and its spoke goes on as that",
            other.name, other.id
        ),
        None => format!(
            "the spoke and its policy are still installed there; `kubectl {ANY_KUBECONFIG} delete \
             namespace {SYSTEM_NAMESPACE}`, F being {}'s kubeconfig, removes the spoke",
            removed.name
        ),
    }
}

async fn accept(args: AcceptArgs, hub: &HubArgs, printer: &Printer) -> anyhow::Result<()> {
    let AcceptArgs { name, fingerprint, target, timeout } = args;
    let client = hub.client()?;
    // A kubeconfig that cannot be used is noticed before the hub is told anything.
    let is_given = target.kubeconfig.is_some() || target.context.is_some();
    let cluster = if is_given { Some(TargetCluster::open(&target).await?) } else { None };
    if let Some(cluster) = &cluster
        && cluster.facts().await?.policy.is_none()
    {
        bail!(
            "the cluster has no trust policy yet; first `attest trust new --environment E \
             --cluster-name {name} -o policy.yaml`, then `attest trust install policy.yaml {}`",
            cluster.flags
        );
    }
    let request = AcceptRequest { fingerprint };
    client.act(Method::POST, &format!("{}/accept", path(&name)), Some(&request)).await?;
    let accepted: Cluster = client.get(&path(&name)).await?;
    printer.line(&format!("cluster/{name} accepted as {}", accepted.id));
    let Some(cluster) = cluster else {
        printer.note("next, with the cluster's own credentials:");
        printer.note(&format!(
            "  attest trust install POLICY --kubeconfig F --cluster-id {}",
            accepted.id
        ));
        return Ok(());
    };
    let poll = async || {
        let spoke = spoke_identity(&cluster.client).await?;
        let id = spoke.map(|spoke| spoke.cluster_id);
        Ok(id.map_or_else(|| Poll::Pending(String::new()), Poll::Ready))
    };
    let wait = Wait::new(timeout, POLL_EVERY, printer);
    let timed_out =
        |_: &str| format!("the spoke has not fetched its certificate within {timeout} s");
    let found = wait.until("accept", poll, timed_out).await?;
    if found != accepted.id.as_str() {
        bail!("context `{}` holds spoke {found}, not {}", cluster.context, accepted.id);
    }
    write_cluster_id(&cluster.client, &found).await?;
    printer.note("the cluster's trust policy is now for this spoke");
    Ok(())
}

fn token(command: TokenCommand, hub: &HubArgs, printer: &Printer) -> anyhow::Result<()> {
    let client = hub.client()?;
    match command {
        TokenCommand::Create { cluster, ttl_minutes, token_output, replace } => {
            let request = TokenRequest {
                cluster: cluster.clone(),
                ttl_seconds: ttl_minutes * 60,
                auto_accept: false,
                replace,
                identity: None,
            };
            let token = block_on(JoinToken::issue(&client, &request))?;
            match token_output {
                Some(file) => token.write(&file, printer)?,
                None => printer.line(&token.secret),
            }
            printer.note(&format!("good once, for {}; next:", until(token.expires_at)));
            printer.note(&format!(
                "  attest-spoke --hub {} --join-token-file FILE   (in the cluster)",
                client.hub().spoke_address
            ));
            printer
                .note(&format!("  attest gitops cluster accept {cluster} --fingerprint SHA256:…"));
        }
        TokenCommand::List(output) => {
            let tokens: List<Token> = block_on(client.get("/v1/tokens"))?;
            printer.result(output.format, &tokens, || {
                let mut table =
                    Table::new(&["id", "cluster", "state", "accepts itself", "expires"]);
                for token in &tokens.items {
                    let accepts = if token.auto_accept { "yes" } else { "no" };
                    let expires = until(token.expires_at);
                    table.row([&token.id, &token.cluster, &token.state, accepts, &expires]);
                }
                table
            })?;
        }
        TokenCommand::Revoke { id } => {
            block_on(client.act(Method::DELETE, &token_path(&id), None::<&()>))?;
            printer.line(&format!("token/{id} revoked"));
        }
    }
    Ok(())
}

/// The hub's entry of a cluster, when it has one.
async fn registered(client: &Client, name: &str) -> anyhow::Result<Option<Cluster>> {
    match client.get(&path(name)).await {
        Ok(cluster) => Ok(Some(cluster)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error),
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
    fn nobody_is_told_to_remove_a_spoke_that_serves_another_entry() {
        let removed = cluster("qa", "c-00000000000000aa", "Accepted", "uid");
        let another = cluster("production", "c-00000000000000bb", "Accepted", "another");
        let shut_out = cluster("qa", "c-00000000000000cc", "Revoked", "uid");
        let same = cluster("staging", "c-00000000000000dd", "Accepted", "uid");

        let alone = what_is_left(&removed, &[another, shut_out]);
        let shared = what_is_left(&removed, &[same]);

        assert!(
            alone.contains("`kubectl --kubeconfig F delete namespace attest-system`"),
            "{alone}"
        );
        assert!(shared.contains("registered as staging (c-00000000000000dd)"), "{shared}");
        assert!(!shared.contains("delete"), "{shared}");
    }
}
