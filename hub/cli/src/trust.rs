//! `attest trust …`: the trust policy of a cluster, as its operator writes, checks and installs it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use attest_common::basics::ids::{ClusterId, Name};
use attest_common::basics::keys::PublicKey;
use attest_common::trust::policy::Spec;
use attest_documents::List;
use attest_install::cluster::ClusterFacts;
use attest_install::{Agent, Installation, apply};
use attest_supply::trust_policy;
use clap::Subcommand;
use serde::Serialize;

use crate::client::block_on;
use crate::context::{Config, Hub};
use crate::hub_args::HubArgs;
use crate::human::confirm;
use crate::input::{read_public_key, read_small};
use crate::printer::{Output, Printer, Table};
use crate::target::{TargetArgs, TargetCluster, show_objects};

/// Whom a cluster believes
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    hub: HubArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a trust policy from the context's keys
    New(NewArgs),
    /// CI keys of the context
    #[command(subcommand)]
    Key(KeyCommand),
    /// Check a trust policy file
    Check { file: PathBuf },
    /// Say in sentences what a trust policy file allows
    Explain { file: PathBuf },
    /// Install a trust policy, with the cluster's own credentials
    Install(InstallArgs),
}

/// What a generated policy allows beyond or below the default.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Narrowing {
    /// Applications that may run there; any when absent
    #[arg(long, value_delimiter = ',', value_name = "PATTERN")]
    names: Vec<String>,
    /// Repositories they may come from; any when absent
    #[arg(long, value_delimiter = ',', value_name = "PATTERN")]
    repos: Vec<String>,
    /// Namespaces they may run in; any but kube-* and attest-* when absent
    #[arg(long, value_delimiter = ',', value_name = "PATTERN")]
    namespaces: Vec<String>,
    /// Let the hub remove applications; so it is in dev, test and staging
    #[arg(long)]
    allow_remove: bool,
}

#[derive(Debug, clap::Args)]
struct NewArgs {
    /// Environment whose releases may run there
    #[arg(long)]
    environment: Name,
    /// Name of the cluster within the fleet; `trust install` fills it in when absent
    #[arg(long, value_name = "NAME")]
    cluster_name: Option<Name>,
    #[command(flatten)]
    narrowing: Narrowing,
    /// Write it here instead of to standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Trust a CI key for an environment
    Add {
        /// Name of the key in policies and status
        alias: String,
        /// Public key, PEM
        file: PathBuf,
        /// Environment it may release for; may be repeated
        #[arg(long, required = true, value_delimiter = ',')]
        environment: Vec<Name>,
    },
    /// List the CI keys
    #[command(visible_alias = "ls")]
    List(Output),
}

#[derive(Debug, clap::Args)]
struct InstallArgs {
    /// Trust policy
    file: PathBuf,
    #[command(flatten)]
    target: TargetArgs,
    /// Name of the cluster within the fleet, when the file does not say
    #[arg(long, value_name = "NAME")]
    cluster_name: Option<Name>,
    /// Id of the spoke it is for, as `cluster accept` prints it; read from the cluster when absent
    #[arg(long, value_name = "ID")]
    cluster_id: Option<ClusterId>,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

pub(crate) fn run(args: Args, printer: &Printer) -> anyhow::Result<()> {
    let Args { hub, command } = args;
    match command {
        Command::New(args) => new(args, &hub, printer),
        Command::Key(command) => key(command, printer),
        Command::Check { file } => {
            let spec = read_policy(&file)?;
            for line in trust_policy::explain(&spec).iter().filter(|line| line.starts_with('!')) {
                printer.warning(line.trim_start_matches("! "));
            }
            printer.line(&format!("{}: a usable trust policy", file.display()));
            Ok(())
        }
        Command::Explain { file } => {
            trust_policy::explain(&read_policy(&file)?).iter().for_each(|line| printer.line(line));
            Ok(())
        }
        Command::Install(args) => block_on(Box::pin(install(args, printer))),
    }
}

/// Reads and checks a policy file.
pub(crate) fn read_policy(file: &Path) -> anyhow::Result<Spec> {
    Ok(trust_policy::read(&file.display().to_string(), read_small(file)?.as_bytes())?)
}

/// A policy from the context's keys for `environment`.
///
/// # Errors
/// Without any such key, with the line that adds one.
pub(crate) fn generate_policy(
    config: &Config,
    hub: &Hub,
    environment: &Name,
    cluster_name: Option<&Name>,
    narrowing: &Narrowing,
) -> anyhow::Result<Spec> {
    let keys = config.keys_for(environment);
    let ci_keys: Vec<_> = keys.map(|key| (key.alias.clone(), key.public_key.clone())).collect();
    if ci_keys.is_empty() {
        bail!(
            "no CI key is known for environment {environment}, so nothing could ever run there; add one:\n  \
             attest trust key add ALIAS FILE --environment {environment}"
        );
    }
    let Narrowing { names, repos, namespaces, allow_remove } = narrowing.clone();
    let wanted = trust_policy::Wanted {
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
    let spec = wanted.generate();
    trust_policy::check(&spec)?;
    Ok(spec)
}

fn new(args: NewArgs, hub: &HubArgs, printer: &Printer) -> anyhow::Result<()> {
    let NewArgs { environment, cluster_name, narrowing, output } = args;
    let config = Config::load()?;
    let entry = config.hub(hub.hub.as_deref())?;
    let spec = generate_policy(&config, entry, &environment, cluster_name.as_ref(), &narrowing)?;
    let yaml = trust_policy::to_yaml(&spec)?;
    match output {
        None => printer.text(&yaml),
        Some(file) => {
            std::fs::write(&file, yaml)
                .with_context(|| format!("cannot write {}", file.display()))?;
            printer.line(&format!("{} written", file.display()));
        }
    }
    Ok(())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownKey {
    alias: String,
    key_id: String,
    environments: Vec<Name>,
}

fn key(command: KeyCommand, printer: &Printer) -> anyhow::Result<()> {
    let mut config = Config::load()?;
    match command {
        KeyCommand::Add { alias, file, environment } => {
            let public = read_public_key(&file)?;
            if config.hubs.iter().any(|hub| hub.hub_key_id == public.id().to_string()) {
                bail!("{} is the signing key of a hub; CI needs a key of its own", file.display());
            }
            config.add_key(&alias, &public, &environment)?;
            config.save()?;
            let names: Vec<&str> = environment.iter().map(Name::as_str).collect();
            printer.line(&format!("key/{alias} trusted for {}", names.join(", ")));
            printer.note("policies that are installed already do not change by this");
        }
        KeyCommand::List(output) => {
            let shown: Vec<ShownKey> = config
                .keys
                .iter()
                .map(|key| ShownKey {
                    alias: key.alias.clone(),
                    key_id: PublicKey::from_pem(&key.public_key)
                        .map_or_else(|error| error.to_string(), |key| key.id().to_string()),
                    environments: key.environments.clone(),
                })
                .collect();
            let list = List::new("CiKey", shown);
            printer.result(output.format, &list, || {
                let mut table = Table::new(&["alias", "environments", "key id"]);
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

async fn install(args: InstallArgs, printer: &Printer) -> anyhow::Result<()> {
    let InstallArgs { file, target, cluster_name, cluster_id, yes } = args;
    let given = read_policy(&file)?;
    let cluster = TargetCluster::open(&target).await?;
    let facts = cluster.facts().await?;
    let name = cluster_name.or_else(|| match given.cluster_name {
        Some(_) => None,
        None => installed_name(&facts),
    });
    let spec = trust_policy::complete(given, name.as_ref(), &facts.kube_system_uid)?;
    spec.load().with_context(|| {
        format!("{} cannot be used; --cluster-name NAME fills in a name", file.display())
    })?;
    let manifests = Installation { policy: &spec, agent: Agent::External }.manifests();
    cluster.check_installation(&manifests, &[]).await?;
    let has_joined = facts.spoke.as_ref().is_some_and(|spoke| spoke.joined);
    cluster.check_namespaces(&manifests, has_joined, printer).await?;

    show_objects(&manifests, printer)?;
    for line in trust_policy::explain(&spec) {
        printer.note(&format!("  {line}"));
    }
    confirm(&format!("Install this into context {}?", cluster.context), yes, printer)?;
    apply::apply_manifests(&cluster.client, &manifests).await?;
    cluster.prune(&manifests, "", printer).await?;
    printer.line("attesttrustpolicy/local installed");
    match (cluster_id, facts.spoke.map(|spoke| spoke.cluster_id)) {
        (Some(given), Some(found)) if given.as_str() != found => bail!(
            "the spoke in context `{}` is {found}, not {given}; its policy stays without an id",
            cluster.context
        ),
        (Some(id), _) => apply::write_cluster_id(&cluster.client, id.as_str()).await?,
        (None, Some(found)) => apply::write_cluster_id(&cluster.client, &found).await?,
        (None, None) => printer.note(
            "no spoke has joined there yet: once it has, the same command with --cluster-id \
             (`attest gitops cluster get NAME`) tells the policy which one it is for",
        ),
    }
    Ok(())
}

/// The name of the cluster in the policy that is installed there.
fn installed_name(facts: &ClusterFacts) -> Option<Name> {
    let name = facts.policy.as_ref()?.get("clusterName")?.as_str()?;
    Name::new(name).ok()
}
