//! `attest gitops …`: clusters, applications and repositories of a fleet, through its hub.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use attest_common::basics::keys::PublicKey;
use attest_gitops::api::documents::{Key, KeyRequest, List};
use clap::Subcommand;
use clap::builder::RangedU64ValueParser;
use reqwest::Method;
use serde::Serialize;

use crate::client::{Client, block_on};
use crate::context::Config;
use crate::printer::{Format, Output, Printer, Table, Watch};
use crate::{app, cluster, hub, repo};

/// How often a watching command asks.
const WATCH_EVERY: Duration = Duration::from_millis(500);
/// Longest wait that a flag may ask for, in seconds.
const WAIT_SECONDS_MAX: u64 = 24 * 60 * 60;
/// Largest file with a key or certificate that is read, in bytes.
pub(crate) const SMALL_FILE_BYTES_MAX: u64 = 256 * 1024;

/// Manage a fleet
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    hub: HubArgs,
    #[command(subcommand)]
    command: Command,
}

/// Which hub.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct HubArgs {
    /// Hub of the context to talk to; the current one when absent
    #[arg(long, env = "ATTEST_HUB", global = true, value_name = "NAME")]
    pub(crate) hub: Option<String>,
}

impl HubArgs {
    /// A client for that hub.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        Client::from_context(self.hub.as_deref())
    }
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

/// Reads a `--timeout`.
pub(crate) fn wait_seconds() -> RangedU64ValueParser {
    RangedU64ValueParser::new().range(1..=WAIT_SECONDS_MAX)
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

/// A name as one segment of a path; a name that is none stays one that nothing has.
pub(crate) fn segment(name: &str) -> String {
    // Segments of dots alone mean another place.
    let dots = name.chars().all(|c| c == '.');
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_') || (c == '.' && !dots);
    name.chars().map(|c| if safe(c) { c } else { '~' }).collect()
}

/// Text of a file that cannot be large.
pub(crate) fn read_small(file: &std::path::Path) -> anyhow::Result<String> {
    let cannot = || format!("cannot read {}", file.display());
    let length = std::fs::metadata(file).with_context(cannot)?.len();
    anyhow::ensure!(
        length <= SMALL_FILE_BYTES_MAX,
        "{} is longer than {SMALL_FILE_BYTES_MAX} bytes",
        file.display()
    );
    std::fs::read_to_string(file).with_context(cannot)
}

/// The one public key in a file, whatever is written around it.
pub(crate) fn read_public_key(file: &std::path::Path) -> anyhow::Result<PublicKey> {
    let text = read_small(file)?;
    let block = text.find("-----BEGIN").map_or(text.as_str(), |start| text.split_at(start).1);
    PublicKey::from_pem(block)
        .with_context(|| format!("{} does not hold one public key", file.display()))
}

/// Prints a document now, and with `watch` again whenever it has changed, until interrupted.
pub(crate) async fn show<T, F>(
    watch: Watch,
    printer: &Printer,
    ask: F,
    table: impl Fn(&T, Format) -> Table,
) -> anyhow::Result<()>
where
    T: Serialize,
    F: AsyncFn() -> anyhow::Result<T>,
{
    let Watch { output, watch } = watch;
    let mut shown: Vec<Vec<String>> = Vec::new();
    let mut widths = Vec::new();
    let mut first = true;
    loop {
        let document = ask().await?;
        let now = table(&document, output.format);
        let changed = now.rows_beside(&shown);
        if first || !changed.is_empty() {
            match output.format {
                Format::Table | Format::Wide if watch => {
                    printer.watched(&now, (!first).then_some(&changed), &mut widths);
                }
                Format::Table | Format::Wide | Format::Json | Format::Yaml | Format::Name => {
                    if output.format == Format::Yaml && !first {
                        printer.line("---");
                    }
                    printer.result(output.format, &document, || now.clone())?;
                }
            }
        }
        if !watch {
            return Ok(());
        }
        first = false;
        shown = now.into_rows();
        tokio::time::sleep(WATCH_EVERY).await;
    }
}
