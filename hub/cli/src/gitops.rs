//! `attest gitops …`: clusters, applications and repositories of a fleet, through the API of its hub.

use std::path::PathBuf;

use attest_documents::{Key, KeyRequest, List};
use clap::Subcommand;
use reqwest::Method;

use crate::client::block_on;
use crate::context::Context;
use crate::hub_args::HubArgs;
use crate::input::{read_public_key, segment};
use crate::printer::{OutputArgs, Printer, TextTable};
use crate::{app, cluster, hub, repo, rollout};

/// Manage a fleet
#[derive(Debug, clap::Args)]
pub(crate) struct GitopsArgs {
    #[command(flatten)]
    hub: HubArgs,
    #[command(subcommand)]
    command: GitopsCommand,
}

#[derive(Debug, Subcommand)]
enum GitopsCommand {
    /// Manage the clusters of the fleet
    Cluster(cluster::ClusterArgs),
    /// Manage applications and their destinations
    App(app::AppArgs),
    /// Follow and control rollouts by stages
    Rollout(rollout::RolloutArgs),
    /// Manage the Git repositories that the hub reads
    Repo(repo::RepoArgs),
    /// List the known hubs and select the current one
    #[command(subcommand)]
    Context(ContextCommand),
    /// Manage key aliases for use in applications; an alias grants no trust
    Key(KeyAliasArgs),
}

#[derive(Debug, Subcommand)]
enum ContextCommand {
    /// List the hubs in the context
    #[command(visible_alias = "ls")]
    List(OutputArgs),
    /// Select the current hub
    Use { name: String },
}

#[derive(Debug, clap::Args)]
struct KeyAliasArgs {
    #[command(subcommand)]
    command: KeyAliasCommand,
}

#[derive(Debug, Subcommand)]
enum KeyAliasCommand {
    /// Add an alias for a public key, for use in `trustedKeys` of an application
    Add { alias: String, file: PathBuf },
    /// List the aliases
    #[command(visible_alias = "ls")]
    List(OutputArgs),
    /// Remove an alias; applications that use it keep the key
    Rm { alias: String },
}

pub(crate) fn run(args: GitopsArgs, printer: &Printer) -> anyhow::Result<()> {
    let GitopsArgs { hub: hub_args, command } = args;
    match command {
        GitopsCommand::Cluster(args) => cluster::run(args, &hub_args, printer),
        GitopsCommand::App(args) => app::run(args, &hub_args, printer),
        GitopsCommand::Rollout(args) => rollout::run(args, &hub_args, printer),
        GitopsCommand::Repo(args) => repo::run(args, &hub_args, printer),
        GitopsCommand::Context(ContextCommand::List(output)) => hub::list_hubs(output, printer),
        GitopsCommand::Context(ContextCommand::Use { name }) => {
            let mut context = Context::load()?;
            context.current_hub = Some(context.hub(Some(&name))?.name.clone());
            context.save()?;
            printer.line(&format!("hub/{name} selected"));
            Ok(())
        }
        GitopsCommand::Key(KeyAliasArgs { command }) => run_key(command, &hub_args, printer),
    }
}

fn run_key(command: KeyAliasCommand, hub: &HubArgs, printer: &Printer) -> anyhow::Result<()> {
    let client = hub.client()?;
    match command {
        KeyAliasCommand::Add { alias, file } => {
            let public = read_public_key(&file)?;
            let request = KeyRequest { alias, public_key: public.to_pem() };
            let key: Key = block_on(client.put("/v1/keys", &request))?;
            printer.line(&format!("key/{} added as {}", key.alias, key.key_id));
        }
        KeyAliasCommand::Rm { alias } => {
            let path = format!("/v1/keys/{}", segment(&alias));
            block_on(client.send_only(Method::DELETE, &path, None::<&()>))?;
            printer.line(&format!("key/{alias} removed"));
        }
        KeyAliasCommand::List(output) => {
            let keys: List<Key> = block_on(client.get("/v1/keys"))?;
            printer.result(output.format, &keys, || {
                let mut table = TextTable::new(&["name", "key id"]);
                keys.items.iter().for_each(|key| table.row([&key.alias, &key.key_id]));
                table
            })?;
        }
    }
    Ok(())
}
