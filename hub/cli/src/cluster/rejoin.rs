//! `attest gitops cluster rejoin`: a new certificate for a cluster whose certificate has expired or was ended.
//!
//! The spoke's identity stays, and with it the cluster's id, its trust policy and what it has recorded. The
//! token is good for that identity only.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use attest_common::basics::ids::Name;
use attest_documents::{Cluster, List, Token, TokenRequest};
use attest_install::{apply, join_secret};
use tokio::time::Instant;

use super::{POLL_EVERY, path};
use crate::client::Client;
use crate::hub_args::HubArgs;
use crate::human::until;
use crate::printer::Printer;
use crate::target::{Right, Seen, TargetArgs, TargetCluster, write_private};

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
    let known: Cluster = client.get(&path(name.as_str())).await?;
    match known.state.as_str() {
        _ if known.connected => {
            printer.line(&format!("cluster/{name} is connected"));
            return Ok(());
        }
        "Accepted" | "Evicted" => {}
        "Pending" => bail!(
            "{name} waits to be let in: `attest gitops cluster accept {name} --fingerprint {}`",
            known.fingerprint
        ),
        other => bail!(
            "{name} is {other}, and its identity stays out; `attest gitops cluster add {name} \
             --replace {}` registers the cluster as a new one",
            target.as_typed()
        ),
    }
    if let Some(file) = token_output {
        let token = token(&client, &known, CARRIED_TOKEN_S).await?;
        write_private(&file, secret(&token)?.as_bytes())?;
        printer.line(&format!("token/{} written to {}", token.id, file.display()));
        printer.note(&format!(
            "good once, for {}, and for {} only; the spoke takes it from its --join-token-file",
            until(token.expires_at),
            known.id
        ));
        return Ok(());
    }
    let cluster = TargetCluster::open(&target).await?;
    let clusters: List<Cluster> = client.get("/v1/clusters").await?;
    check(&cluster, &known, &clusters.items).await?;
    let token = token(&client, &known, timeout + TOKEN_SPARE_S).await?;
    let brought = async {
        bring(&cluster, secret(&token)?).await?;
        printer.note("[rejoin] the spoke has a new join token, and starts again");
        connected(&client, &known, &cluster, timeout).await
    };
    if let Err(error) = brought.await {
        // Nobody waits for it any more: what comes by it later would come unseen.
        let path = format!("/v1/tokens/{}", token.id);
        let _ = client.act(reqwest::Method::DELETE, &path, None::<&()>).await;
        return Err(error);
    }
    printer.line(&format!("cluster/{name} rejoined"));
    Ok(())
}

async fn connected(
    client: &Client,
    known: &Cluster,
    cluster: &TargetCluster,
    timeout: u64,
) -> anyhow::Result<()> {
    let late = Instant::now() + Duration::from_secs(timeout);
    while !client.get::<Cluster>(&path(known.id.as_str())).await?.connected {
        if Instant::now() >= late {
            bail!(
                "the spoke has not connected within {timeout} s, and its token is revoked; `{}` tells more",
                cluster.logs()
            );
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
    Ok(())
}

/// The kubeconfig must be that of this cluster, and its spoke the one that is registered.
async fn check(
    cluster: &TargetCluster,
    known: &Cluster,
    clusters: &[Cluster],
) -> anyhow::Result<()> {
    let context = &cluster.context;
    if let Some(mismatch) = mismatch(known, clusters, &cluster.look().await?, &cluster.flags) {
        bail!("context `{context}` {mismatch}");
    }
    let rights = [
        Right::of_spoke("get", "secrets", ""),
        Right::of_spoke("create", "secrets", ""),
        Right::of_spoke("patch", "secrets", ""),
        Right::of_spoke("list", "pods", ""),
        Right::of_spoke("deletecollection", "pods", ""),
    ];
    cluster.check_rights("a rejoin", &rights).await?;
    if !cluster.has_pods().await? {
        bail!(
            "no pod of the spoke is in context `{context}`; for a spoke outside the cluster give \
             --token-output FILE"
        );
    }
    Ok(())
}

/// What the cluster that was looked at is instead of the known one. Only for that very cluster is a new registration of any
/// use: for another one it would move the name.
fn mismatch(known: &Cluster, clusters: &[Cluster], seen: &Seen, flags: &str) -> Option<String> {
    let Cluster { name, id, .. } = known;
    let spoke = seen.spoke.as_ref().map(|spoke| spoke.cluster_id.as_str());
    if seen.kube_system_uid == known.kube_system_uid {
        return (spoke != Some(id.as_str())).then(|| {
            let found = spoke.unwrap_or("no spoke's identity");
            format!(
                "holds {found}, not {name} ({id}); `attest gitops cluster add {name} --replace \
                 {flags}` registers it anew"
            )
        });
    }
    let same = |other: &&Cluster| other.kube_system_uid == seen.kube_system_uid;
    let found = clusters.iter().find(same).map_or("one that the hub does not know", |c| &c.name);
    Some(format!("is another cluster, {found}; give the kubeconfig of {name}"))
}

async fn token(client: &Client, known: &Cluster, ttl_seconds: u64) -> anyhow::Result<Token> {
    let request = TokenRequest {
        cluster: known.name.clone(),
        ttl_seconds,
        auto_accept: true,
        replace: false,
        identity: Some(known.id.clone()),
    };
    client.post("/v1/tokens", &request).await.context("the hub gives no join token")
}

fn secret(token: &Token) -> anyhow::Result<&str> {
    token.token.as_deref().context("the hub's answer has no token")
}

/// The certificate stays: the spoke takes the token when the hub does not let it in with that.
async fn bring(cluster: &TargetCluster, token: &str) -> anyhow::Result<()> {
    apply::apply(&cluster.client, &[join_secret(token)], |_| {}).await?;
    cluster.restart_spoke().await
}

#[cfg(test)]
mod tests {
    use super::super::tests::cluster;
    use super::*;
    use crate::target::SpokeSeen;

    #[test]
    fn a_kubeconfig_of_another_cluster_is_not_offered_the_name() {
        let staging = cluster("staging", "c-00000000000000aa", "Accepted", "uid-of-staging");
        let production = cluster("production", "c-00000000000000bb", "Accepted", "uid-of-another");
        let clusters = [staging.clone(), production];
        let told = |uid: &str, spoke: Option<&str>| {
            let seen = Seen {
                kubernetes_version: "v1.37.2".to_owned(),
                kube_system_uid: uid.to_owned(),
                spoke: spoke.map(|id| SpokeSeen { cluster_id: id.to_owned(), joined: true }),
                policy: None,
            };
            mismatch(&staging, &clusters, &seen, "--kubeconfig prod")
        };

        let another = told("uid-of-another", Some("c-00000000000000bb")).unwrap();
        assert!(another.contains("another cluster, production"), "{another}");
        assert!(!another.contains("--replace"), "{another}");
        let lost = told("uid-of-staging", None).unwrap();
        assert!(lost.contains("cluster add staging --replace --kubeconfig prod`"), "{lost}");
        assert_eq!(told("uid-of-staging", Some("c-00000000000000aa")), None);
    }
}
