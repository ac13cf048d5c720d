//! `attest gitops cluster rejoin`: a new certificate for a cluster whose certificate has expired or was revoked.
//!
//! The spoke keeps its identity, and with it the cluster's id, trust policy and records. The join token is valid
//! for that identity only.

use std::path::{Path, PathBuf};

use anyhow::bail;
use attest_common::basics::ids::Name;
use attest_documents::{Cluster, List, TokenRequest};
use attest_install::permissions::rejoin_permissions;
use attest_install::registration::{RejoinPlan, check_rejoin, plan_rejoin};
use attest_install::{apply, cluster, join_secret};

use super::join_token::JoinToken;
use super::{POLL_EVERY, cluster_path, hub_entries, hub_entry};
use crate::client::Client;
use crate::hub_args::HubArgs;
use crate::human::until;
use crate::printer::Printer;
use crate::target::{TargetArgs, TargetCluster, refusal_error};
use crate::wait::{Poll, Wait};

/// Validity of the token beyond the end of the wait, in seconds.
const TOKEN_SPARE_S: u64 = 300;
/// Validity of a token that the operator copies to the spoke, in seconds.
const COPIED_TOKEN_S: u64 = 60 * 60;

#[derive(Debug, clap::Args)]
pub(crate) struct RejoinArgs {
    /// Name of the cluster within the fleet
    name: Name,
    #[command(flatten)]
    target: TargetArgs,
    /// For a spoke outside the cluster: write the token to this file, readable by its owner only, and do not access the cluster
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kubeconfig", "context"])]
    token_output: Option<PathBuf>,
    /// Maximum time to wait for the spoke, in seconds
    #[arg(
        long, default_value_t = 300, value_name = "SECONDS", conflicts_with = "token_output",
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    timeout: u64,
}

pub(super) async fn rejoin(
    args: RejoinArgs,
    hub: &HubArgs,
    printer: &Printer,
) -> anyhow::Result<()> {
    let RejoinArgs { name, target, token_output, timeout } = args;
    let client = hub.client()?;
    let registered: Cluster = client.get(&cluster_path(name.as_str())).await?;
    let plan = plan_rejoin(&hub_entry(&registered));
    match plan.map_err(|refusal| refusal_error(&refusal, &target.to_flags()))? {
        RejoinPlan::Connected => {
            printer.line(&format!("cluster/{name} is connected"));
            return Ok(());
        }
        RejoinPlan::IssueToken => {}
    }
    if let Some(file) = token_output {
        return write_token(&client, &registered, &file, printer).await;
    }
    let target = TargetCluster::open(&target).await?;
    check_target(&client, &target, &registered).await?;
    let token = issue_token(&client, &registered, timeout + TOKEN_SPARE_S).await?;
    let wait = Wait::new(timeout, POLL_EVERY, printer);
    if let Err(error) = replace_token(&client, &registered, &target, &token, &wait, printer).await {
        // A join after the end of the command would go unnoticed.
        token.revoke(&client).await;
        return Err(error);
    }
    printer.line(&format!("cluster/{name} rejoined"));
    Ok(())
}

async fn issue_token(
    client: &Client,
    registered: &Cluster,
    ttl_seconds: u64,
) -> anyhow::Result<JoinToken> {
    let request = TokenRequest {
        cluster: registered.name.clone(),
        ttl_seconds,
        auto_accept: true,
        replace: false,
        identity: Some(registered.id.clone()),
    };
    JoinToken::issue(client, &request).await
}

async fn write_token(
    client: &Client,
    registered: &Cluster,
    file: &Path,
    printer: &Printer,
) -> anyhow::Result<()> {
    let token = issue_token(client, registered, COPIED_TOKEN_S).await?;
    token.write(file, printer)?;
    printer.note(&format!(
        "single-use, valid for {}, and only for {}; pass it to the spoke with --join-token-file",
        until(token.expires_at),
        registered.id
    ));
    Ok(())
}

/// Checks that the kubeconfig is for this cluster and that its spoke is the registered one.
async fn check_target(
    client: &Client,
    target: &TargetCluster,
    registered: &Cluster,
) -> anyhow::Result<()> {
    let clusters: List<Cluster> = client.get("/v1/clusters").await?;
    let facts = target.facts().await?;
    check_rejoin(&hub_entry(registered), &hub_entries(&clusters.items), &facts)
        .map_err(|refusal| refusal_error(&refusal, &target.flags))?;
    target.check_permissions("a rejoin", &rejoin_permissions()).await?;
    if !cluster::has_spoke_pods(&target.client).await? {
        bail!(
            "context `{}` contains no spoke pod; for a spoke outside the cluster, pass --token-output FILE",
            target.context
        );
    }
    Ok(())
}

/// Installs a new join token and waits until the cluster is connected. The spoke keeps its certificate, and uses
/// the token once the hub has rejected the certificate.
async fn replace_token(
    client: &Client,
    registered: &Cluster,
    target: &TargetCluster,
    token: &JoinToken,
    wait: &Wait<'_>,
    printer: &Printer,
) -> anyhow::Result<()> {
    apply::apply_manifests(&target.client, &[join_secret(&token.secret)]).await?;
    cluster::restart_spoke(&target.client).await?;
    printer.note("[rejoin] join token installed, spoke restarted");
    let path = cluster_path(registered.id.as_str());
    wait.until(
        "rejoin",
        async || poll_connected(client, &path).await,
        |_| {
            format!(
                "timed out after {} s waiting for the spoke to connect; the token is revoked; see `{}`",
                wait.seconds(),
                target.log_command()
            )
        },
    )
    .await
}

async fn poll_connected(client: &Client, path: &str) -> anyhow::Result<Poll<()>> {
    let cluster: Cluster = client.get(path).await?;
    Ok(if cluster.connected { Poll::Ready(()) } else { Poll::Pending(String::new()) })
}
