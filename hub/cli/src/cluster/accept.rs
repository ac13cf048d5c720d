//! `attest gitops cluster accept`: acceptance of a pending cluster.

use anyhow::bail;
use attest_documents::{AcceptRequest, Cluster};
use attest_install::apply::write_cluster_id;
use attest_install::cluster::spoke_identity;
use reqwest::Method;

use super::{POLL_EVERY, cluster_path};
use crate::hub_args::HubArgs;
use crate::input::wait_seconds;
use crate::printer::Printer;
use crate::target::{TargetArgs, TargetCluster};
use crate::wait::{Poll, Wait};

/// Time to wait for the spoke, in seconds, if none is given.
const WAIT_DEFAULT_S: u64 = 120;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "With --kubeconfig or --context, the command also waits for the spoke and writes the cluster's id \
                  to its trust policy."
)]
pub(super) struct AcceptArgs {
    name: String,
    /// Fingerprint of the identity key, as logged by the spoke: `SHA256:…`
    #[arg(long)]
    fingerprint: String,
    #[command(flatten)]
    target: TargetArgs,
    /// Maximum time to wait for the spoke to fetch its certificate, in seconds; 120 by default
    #[arg(long, value_name = "SECONDS", value_parser = wait_seconds(), requires = "TargetArgs")]
    timeout: Option<u64>,
}

pub(super) async fn accept(
    args: AcceptArgs,
    hub: &HubArgs,
    printer: &Printer,
) -> anyhow::Result<()> {
    let AcceptArgs { name, fingerprint, target, timeout } = args;
    let client = hub.client()?;
    // Before the hub accepts the cluster: an unusable kubeconfig must not leave the work half done.
    let target = if target.is_given() { Some(TargetCluster::open(&target).await?) } else { None };
    if let Some(target) = &target
        && target.facts().await?.policy.is_none()
    {
        bail!(
            "the cluster has no trust policy; create one with `attest trust new --environment E \
             --cluster-name {name} -o policy.yaml` and install it with `attest trust install policy.yaml {}`",
            target.flags
        );
    }
    let path = cluster_path(&name);
    let request = AcceptRequest { fingerprint };
    client.send_only(Method::POST, &format!("{path}/accept"), Some(&request)).await?;
    let accepted: Cluster = client.get(&path).await?;
    printer.line(&format!("cluster/{name} accepted as {}", accepted.id));
    let Some(target) = target else {
        printer.note("next, with credentials for the cluster:");
        printer.note(&format!(
            "  attest trust install POLICY --kubeconfig F --cluster-id {}",
            accepted.id
        ));
        return Ok(());
    };
    let timeout = timeout.unwrap_or(WAIT_DEFAULT_S);
    let wait = Wait::new(timeout, POLL_EVERY, printer);
    let found = wait
        .until(
            "accept",
            async || poll_identity(&target).await,
            |_| {
                format!(
                    "timed out after {timeout} s waiting for the spoke to fetch its certificate"
                )
            },
        )
        .await?;
    if found != accepted.id.as_str() {
        bail!("the spoke in context `{}` is {found}, not {}", target.context, accepted.id);
    }
    write_cluster_id(&target.client, &found).await?;
    printer.note(&format!("cluster id {found} written to the trust policy"));
    Ok(())
}

async fn poll_identity(target: &TargetCluster) -> anyhow::Result<Poll<String>> {
    Ok(match spoke_identity(&target.client).await? {
        Some(spoke) => Poll::Ready(spoke.cluster_id),
        None => Poll::Pending(String::new()),
    })
}
