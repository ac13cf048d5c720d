//! `attest trust …`: trust policies of clusters, as their operators write, check and install them.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use attest_common::basics::ids::{ClusterId, Name};
use attest_common::basics::keys::PublicKey;
use attest_common::trust::policy::Spec;
use attest_documents::List;
use attest_install::cluster::ClusterFacts;
use attest_install::{Installation, SpokePlacement, apply};
use attest_supply::trust_policy;
use clap::Subcommand;
use serde::Serialize;

use crate::client::block_on;
use crate::context::{Context, HubContext};
use crate::hub_args::HubArgs;
use crate::human::confirm;
use crate::input::{read_public_key, read_small};
use crate::printer::{OutputArgs, Printer, TextTable};
use crate::target::{TargetArgs, TargetCluster, print_objects};

/// Manage trust policies and the CI keys that they trust
#[derive(Debug, clap::Args)]
pub(crate) struct TrustArgs {
    #[command(flatten)]
    hub: HubArgs,
    #[command(subcommand)]
    command: TrustCommand,
}

#[derive(Debug, Subcommand)]
enum TrustCommand {
    /// Generate a trust policy from the context's keys
    New(TrustNewArgs),
    /// Manage the CI keys of the context
    #[command(subcommand)]
    Key(TrustKeyCommand),
    /// Check a trust policy file
    Check { file: PathBuf },
    /// Describe in plain language what a trust policy file allows
    Explain { file: PathBuf },
    /// Install a trust policy, with credentials for the cluster
    Install(TrustInstallArgs),
}

/// Flags that restrict or extend a generated policy.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct PolicyOptions {
    /// Applications that may run in the cluster; any by default
    #[arg(long, value_delimiter = ',', value_name = "PATTERN")]
    names: Vec<String>,
    /// Repositories that they may come from; any by default
    #[arg(long, value_delimiter = ',', value_name = "PATTERN")]
    repos: Vec<String>,
    /// Namespaces that they may run in; any except kube-* and attest-* by default
    #[arg(long, value_delimiter = ',', value_name = "PATTERN")]
    namespaces: Vec<String>,
    /// Allow the hub to remove applications, which is the default in dev, test and staging
    #[arg(long)]
    allow_remove: bool,
}

#[derive(Debug, clap::Args)]
struct TrustNewArgs {
    /// Environment whose releases may run in the cluster
    #[arg(long)]
    environment: Name,
    /// Name of the cluster within the fleet; `trust install` can add it later
    #[arg(long, value_name = "NAME")]
    cluster_name: Option<Name>,
    #[command(flatten)]
    options: PolicyOptions,
    /// Write the policy to this file instead of stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum TrustKeyCommand {
    /// Trust a CI key for an environment
    Add {
        /// Name of the key in policies and status
        alias: String,
        /// Public key file (PEM)
        file: PathBuf,
        /// Environments for which the key may sign releases; may be repeated
        #[arg(long, required = true, value_delimiter = ',')]
        environment: Vec<Name>,
    },
    /// List the CI keys
    #[command(visible_alias = "ls")]
    List(OutputArgs),
}

#[derive(Debug, clap::Args)]
struct TrustInstallArgs {
    /// Trust policy file
    file: PathBuf,
    #[command(flatten)]
    target: TargetArgs,
    /// Name of the cluster within the fleet, if the file does not contain one
    #[arg(long, value_name = "NAME")]
    cluster_name: Option<Name>,
    /// Id of the cluster, as printed by `cluster accept`; read from the cluster by default
    #[arg(long, value_name = "ID")]
    cluster_id: Option<ClusterId>,
    /// Skip the confirmation prompt
    #[arg(short, long)]
    yes: bool,
}

pub(crate) fn run(args: TrustArgs, printer: &Printer) -> anyhow::Result<()> {
    let TrustArgs { hub, command } = args;
    match command {
        TrustCommand::New(args) => write_new(args, &hub, printer),
        TrustCommand::Key(command) => run_key(command, printer),
        TrustCommand::Check { file } => {
            let spec = read_policy(&file)?;
            for line in trust_policy::explain(&spec).iter().filter(|line| line.starts_with('!')) {
                printer.warning(line.trim_start_matches("! "));
            }
            printer.line(&format!("{}: valid trust policy", file.display()));
            Ok(())
        }
        TrustCommand::Explain { file } => {
            trust_policy::explain(&read_policy(&file)?).iter().for_each(|line| printer.line(line));
            Ok(())
        }
        TrustCommand::Install(args) => block_on(Box::pin(install(args, printer))),
    }
}

/// Reads and checks a policy file.
pub(crate) fn read_policy(file: &Path) -> anyhow::Result<Spec> {
    Ok(trust_policy::read(&file.display().to_string(), read_small(file)?.as_bytes())?)
}

/// Generates a policy from the context's keys for `environment`.
///
/// # Errors
/// When the context contains no such key.
pub(crate) fn generate_policy(
    context: &Context,
    hub: &HubContext,
    environment: &Name,
    cluster_name: Option<&Name>,
    options: &PolicyOptions,
) -> anyhow::Result<Spec> {
    let ci_keys: Vec<_> = context
        .keys_for(environment)
        .map(|key| (key.alias.clone(), key.public_key.clone()))
        .collect();
    if ci_keys.is_empty() {
        bail!(
            "the context contains no CI key for environment {environment}; without one, nothing can run in \
             the cluster; add one with `attest trust key add ALIAS FILE --environment {environment}`"
        );
    }
    let PolicyOptions { names, repos, namespaces, allow_remove } = options.clone();
    let request = trust_policy::PolicyRequest {
        environment: environment.clone(),
        cluster_name: cluster_name.cloned(),
        hub_key: hub.hub_key.clone(),
        ca_pin: hub.ca_pin.clone(),
        ci_keys,
        names,
        repos,
        namespaces,
        allow_remove,
    };
    let spec = request.generate();
    trust_policy::check(&spec)?;
    Ok(spec)
}

fn write_new(args: TrustNewArgs, hub: &HubArgs, printer: &Printer) -> anyhow::Result<()> {
    let TrustNewArgs { environment, cluster_name, options, output } = args;
    let context = Context::load()?;
    let entry = context.hub(hub.hub.as_deref())?;
    let spec = generate_policy(&context, entry, &environment, cluster_name.as_ref(), &options)?;
    let yaml = trust_policy::to_yaml(&spec)?;
    match output {
        None => printer.text(&yaml),
        Some(file) => {
            std::fs::write(&file, yaml)
                .with_context(|| format!("failed to write {}", file.display()))?;
            printer.line(&format!("{} written", file.display()));
        }
    }
    Ok(())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CiKeyDocument {
    alias: String,
    key_id: String,
    environments: Vec<Name>,
}

fn run_key(command: TrustKeyCommand, printer: &Printer) -> anyhow::Result<()> {
    let mut context = Context::load()?;
    match command {
        TrustKeyCommand::Add { alias, file, environment } => {
            let public = read_public_key(&file)?;
            if context.hubs.iter().any(|hub| hub.hub_key_id == public.id().to_string()) {
                bail!("{} is the signing key of a hub; use a separate key for CI", file.display());
            }
            context.add_key(&alias, &public, &environment)?;
            context.save()?;
            let names: Vec<&str> = environment.iter().map(Name::as_str).collect();
            printer.line(&format!("key/{alias} trusted for {}", names.join(", ")));
            printer.note("policies that are already installed do not change");
        }
        TrustKeyCommand::List(output) => {
            let keys: Vec<CiKeyDocument> = context
                .keys
                .iter()
                .map(|key| CiKeyDocument {
                    alias: key.alias.clone(),
                    key_id: PublicKey::from_pem(&key.public_key)
                        .map_or_else(|error| error.to_string(), |key| key.id().to_string()),
                    environments: key.environments.clone(),
                })
                .collect();
            let list = List::new("CiKey", keys);
            printer.result(output.format, &list, || {
                let mut table = TextTable::new(&["alias", "environments", "key id"]);
                for key in &list.items {
                    let names: Vec<&str> = key.environments.iter().map(Name::as_str).collect();
                    table.row([key.alias.as_str(), &names.join(","), &key.key_id]);
                }
                table
            })?;
        }
    }
    Ok(())
}

async fn install(args: TrustInstallArgs, printer: &Printer) -> anyhow::Result<()> {
    let TrustInstallArgs { file, target, cluster_name, cluster_id, yes } = args;
    let given = read_policy(&file)?;
    let cluster = TargetCluster::open(&target).await?;
    let facts = cluster.facts().await?;
    let name = cluster_name.or_else(|| match given.cluster_name {
        Some(_) => None,
        None => installed_name(&facts),
    });
    let spec = trust_policy::complete(given, name.as_ref(), &facts.kube_system_uid)?;
    spec.load().with_context(|| {
        format!(
            "invalid trust policy {}; set a missing cluster name with --cluster-name NAME",
            file.display()
        )
    })?;
    let manifests = Installation { policy: &spec, placement: SpokePlacement::External }.manifests();
    cluster.check_installation(&manifests, &[]).await?;
    let has_joined = facts.spoke.as_ref().is_some_and(|spoke| spoke.joined);
    cluster.check_namespaces(&manifests, has_joined, printer).await?;

    print_objects(&manifests, printer)?;
    for line in trust_policy::explain(&spec) {
        printer.note(&format!("  {line}"));
    }
    confirm(&format!("Install these objects in context {}?", cluster.context), yes, printer)?;
    apply::apply_manifests(&cluster.client, &manifests).await?;
    cluster.prune(&manifests, "", printer).await?;
    printer.line("attesttrustpolicy/local installed");
    match (cluster_id, facts.spoke.map(|spoke| spoke.cluster_id)) {
        (Some(given), Some(found)) if given.as_str() != found => bail!(
            "the spoke in context `{}` is {found}, not {given}; no cluster id was written to the policy",
            cluster.context
        ),
        (Some(id), _) => apply::write_cluster_id(&cluster.client, id.as_str()).await?,
        (None, Some(found)) => apply::write_cluster_id(&cluster.client, &found).await?,
        (None, None) => printer.note(
            "no spoke has joined yet; once one has joined, repeat the command with the --cluster-id shown by \
             `attest gitops cluster get NAME`",
        ),
    }
    Ok(())
}

/// The name of the cluster in the installed policy.
fn installed_name(facts: &ClusterFacts) -> Option<Name> {
    let name = facts.policy.as_ref()?.get("clusterName")?.as_str()?;
    Name::new(name).ok()
}
