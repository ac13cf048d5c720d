//! `attest gitops cluster rejoin`: a new certificate for a cluster whose certificate has expired or was ended.
//!
//! The spoke's identity stays, and with it the cluster's id, its trust policy and what it has recorded. The
//! token is good for that identity only.

use std::path::{Path, PathBuf};

use anyhow::bail;
use attest_common::basics::ids::Name;
use attest_documents::{Cluster, List, TokenRequest};
use attest_install::permissions::rejoin_permissions;
use attest_install::registration::{RejoinPlan, check_rejoin, plan_rejoin};
use attest_install::{apply, cluster, join_secret};

use super::join_token::JoinToken;
use super::{POLL_EVERY, hub_entries, hub_entry, path};
use crate::client::Client;
use crate::hub_args::HubArgs;
use crate::human::until;
use crate::printer::Printer;
use crate::target::{TargetArgs, TargetCluster, refused};
use crate::wait::{Poll, Wait};

/// How long the token is good for, in seconds, beyond the wait itself.
const TOKEN_SPARE_S: u64 = 300;
/// How long a token that somebody carries to the spoke is good for, in seconds.
const CARRIED_TOKEN_S: u64 = 60 * 60;

#[derive(Debug, clap::Args)]
pub(crate) struct RejoinArgs {
    /// Name of the cluster within the fleet
    name: Name,
    #[command(flatten)]
    target: TargetArgs,
    /// For a spoke outside the cluster: write the token here, for its owner only, and do not touch the cluster
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kubeconfig", "context"])]
    token_output: Option<PathBuf>,
    /// Longest wait for the spoke, in seconds
    #[arg(long, default_value_t = 300, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
}

pub(super) async fn rejoin(
    args: RejoinArgs,
    hub: &HubArgs,
    printer: &Printer,
) -> anyhow::Result<()> {
    let RejoinArgs { name, target, token_output, timeout } = args;
    let client = hub.client()?;
    let registered: Cluster = client.get(&path(name.as_str())).await?;
    let plan = plan_rejoin(&hub_entry(&registered));
    match plan.map_err(|refusal| refused(&refusal, &target.to_flags()))? {
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
    if let Err(error) = bring(&client, &registered, &target, &token, &wait, printer).await {
        // Nobody waits for it any more: what comes by it later would come unseen.
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
    let token = issue_token(client, registered, CARRIED_TOKEN_S).await?;
    token.write(file, printer)?;
    printer.note(&format!(
        "good once, for {}, and for {} only; the spoke takes it from its --join-token-file",
        until(token.expires_at),
        registered.id
    ));
    Ok(())
}

/// The kubeconfig must be that of this cluster, and its spoke the one that is registered.
async fn check_target(
    client: &Client,
    target: &TargetCluster,
    registered: &Cluster,
) -> anyhow::Result<()> {
    let clusters: List<Cluster> = client.get("/v1/clusters").await?;
    let facts = target.facts().await?;
    check_rejoin(&hub_entry(registered), &hub_entries(&clusters.items), &facts)
        .map_err(|refusal| refused(&refusal, &target.flags))?;
    target.check_permissions("a rejoin", &rejoin_permissions()).await?;
    if !cluster::has_spoke_pods(&target.client).await? {
        bail!(
            "no pod of the spoke is in context `{}`; for a spoke outside the cluster give --token-output FILE",
            target.context
        );
    }
    Ok(())
}

/// The certificate stays: the spoke takes the token when the hub does not let it in with that.
async fn bring(
    client: &Client,
    registered: &Cluster,
    target: &TargetCluster,
    token: &JoinToken,
    wait: &Wait<'_>,
    printer: &Printer,
) -> anyhow::Result<()> {
    apply::apply_manifests(&target.client, &[join_secret(&token.secret)]).await?;
    cluster::restart_spoke(&target.client).await?;
    printer.note("[rejoin] the spoke has a new join token, and starts again");
    let path = path(registered.id.as_str());
    let poll = async || {
        let cluster: Cluster = client.get(&path).await?;
        Ok(if cluster.connected { Poll::Ready(()) } else { Poll::Pending(String::new()) })
    };
    wait.until("rejoin", poll, |_| {
        format!(
            "the spoke has not connected within {} s, and its token is revoked; `{}` tells more",
            wait.seconds(),
            target.log_command()
        )
    })
    .await
}
