//! `attest gitops …`: clusters, applications and repositories of a fleet, through its hub.

use std::path::PathBuf;

use attest_documents::{Key, KeyRequest, List};
use clap::Subcommand;
use reqwest::Method;

use crate::client::block_on;
use crate::context::Config;
use crate::hub_args::HubArgs;
use crate::input::{read_public_key, segment};
use crate::printer::{Output, Printer, Table};
use crate::{app, cluster, hub, repo};

/// Manage a fleet
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    hub: HubArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Clusters of the fleet
    Cluster(cluster::Args),
    /// Applications and where they run
    App(app::Args),
    /// Git repositories that the hub reads
    Repo(repo::Args),
    /// Which hubs are known here, and which is meant
    #[command(subcommand)]
    Context(ContextCommand),
    /// Names of keys, as applications write them; they give no trust
    Key(KeyArgs),
}

#[derive(Debug, Subcommand)]
enum ContextCommand {
    /// List the hubs of the context
    #[command(visible_alias = "ls")]
    List(Output),
    /// Mean this hub when none is named
    Use { name: String },
}

#[derive(Debug, clap::Args)]
struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Give a public key a name that `trustedKeys` of an application may use
    Add { alias: String, file: PathBuf },
    /// List the names
    #[command(visible_alias = "ls")]
    List(Output),
    /// Forget a name; applications that use it keep the keys it named
    Rm { alias: String },
}

pub(crate) fn run(args: Args, printer: &Printer) -> anyhow::Result<()> {
    let Args { hub: which, command } = args;
    match command {
        Command::Cluster(args) => cluster::run(args, &which, printer),
        Command::App(args) => app::run(args, &which, printer),
        Command::Repo(args) => repo::run(args, &which, printer),
        Command::Context(ContextCommand::List(output)) => hub::list(output, printer),
        Command::Context(ContextCommand::Use { name }) => {
            let mut config = Config::load()?;
            config.current_hub = Some(config.hub(Some(&name))?.name.clone());
            config.save()?;
            printer.line(&format!("hub/{name} is the current one"));
            Ok(())
        }
        Command::Key(KeyArgs { command }) => key(command, &which, printer),
    }
}

fn key(command: KeyCommand, hub: &HubArgs, printer: &Printer) -> anyhow::Result<()> {
    let client = hub.client()?;
    match command {
        KeyCommand::Add { alias, file } => {
            let public = read_public_key(&file)?;
            let request = KeyRequest { alias, public_key: public.to_pem() };
            let key: Key = block_on(client.put("/v1/keys", &request))?;
            printer.line(&format!("key/{} added as {}", key.alias, key.key_id));
        }
        KeyCommand::Rm { alias } => {
            let path = format!("/v1/keys/{}", segment(&alias));
            block_on(client.act(Method::DELETE, &path, None::<&()>))?;
            printer.line(&format!("key/{alias} removed"));
        }
        KeyCommand::List(output) => {
            let keys: List<Key> = block_on(client.get("/v1/keys"))?;
            printer.result(output.format, &keys, || {
                let mut table = Table::new(&["name", "key id"]);
                keys.items.iter().for_each(|key| table.row([&key.alias, &key.key_id]));
                table
            })?;
        }
    }
    Ok(())
}
