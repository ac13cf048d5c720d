//! `attest gitops cluster manifests`: prints what `cluster add` installs, for a cluster that manages itself by GitOps.
//!
//! The output contains no Secret: the join token reaches the cluster by another way.

use std::path::PathBuf;

use attest_common::basics::ids::Name;
use attest_common::record::custody::{JOIN_SECRET, JOIN_TOKEN_KEY};
use attest_install::{Installation, SPOKE_NAMESPACE, SpokePlacement};
use attest_supply::trust_policy;

use super::add::{SPOKE_IMAGE, check_policy};
use super::spoke_address;
use crate::context::Context;
use crate::hub_args::HubArgs;
use crate::printer::Printer;
use crate::target::{TargetArgs, TargetCluster};
use crate::trust::{PolicyOptions, generate_policy, read_policy};

#[derive(Debug, clap::Args)]
pub(crate) struct ManifestsArgs {
    /// Name of the cluster within the fleet
    name: Name,
    #[command(flatten)]
    target: TargetArgs,
    /// UID of the cluster's namespace kube-system, without a kubeconfig:
    /// `kubectl get namespace kube-system -o jsonpath='{.metadata.uid}'`
    #[arg(long, value_name = "UID", conflicts_with_all = ["kubeconfig", "context"])]
    kube_system_uid: Option<String>,
    /// Trust policy to install; generated from the context's keys by default
    #[arg(long, value_name = "FILE", conflicts_with_all = ["names", "repos", "namespaces", "allow_remove"])]
    trust_policy: Option<PathBuf>,
    /// Environment whose releases may run in the cluster; the cluster's name by default
    #[arg(long, conflicts_with = "trust_policy")]
    environment: Option<Name>,
    #[command(flatten)]
    policy_options: PolicyOptions,
    /// Image of the spoke; the image of this release by default
    #[arg(long, value_name = "REF")]
    spoke_image: Option<String>,
    /// Address that the spoke dials; that of the hub by default
    #[arg(long, value_name = "HOST:PORT")]
    hub_address: Option<String>,
}

pub(super) async fn manifests(
    args: ManifestsArgs,
    hub_args: &HubArgs,
    printer: &Printer,
) -> anyhow::Result<()> {
    let context = Context::load()?;
    let hub = context.hub(hub_args.hub.as_deref())?;
    let requested = match &args.trust_policy {
        Some(file) => read_policy(file)?,
        None => {
            let environment = args.environment.as_ref().unwrap_or(&args.name);
            generate_policy(&context, hub, environment, Some(&args.name), &args.policy_options)?
        }
    };
    let uid = match args.kube_system_uid {
        Some(uid) => uid,
        None => TargetCluster::open(&args.target).await?.facts().await?.kube_system_uid,
    };
    let address = match args.hub_address {
        Some(address) => address,
        None => spoke_address(&hub_args.client()?, &uid).await?,
    };
    let policy = trust_policy::complete(requested, Some(&args.name), &uid)?;
    check_policy(&policy, hub, args.trust_policy.is_some(), printer)?;
    let placement = SpokePlacement::InCluster {
        image: args.spoke_image.as_deref().unwrap_or(SPOKE_IMAGE),
        hub: &address,
        token: None,
    };
    let manifests = Installation { policy: &policy, placement }.manifests();
    let texts = manifests.iter().map(serde_saphyr::to_string).collect::<Result<Vec<_>, _>>()?;
    printer.text(&texts.join("---\n"));
    let name = &args.name;
    printer.note("the spoke joins with a token; once the namespace exists:");
    printer.note(&format!("  attest gitops cluster token create {name}"));
    printer.note(&format!(
        "  kubectl -n {SPOKE_NAMESPACE} create secret generic {JOIN_SECRET} --from-literal={JOIN_TOKEN_KEY}=TOKEN"
    ));
    printer.note(&format!(
        "  attest gitops cluster accept {name} --fingerprint SHA256:… --kubeconfig F"
    ));
    Ok(())
}
