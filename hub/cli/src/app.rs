//! `attest gitops app …`: applications, what runs of them where, and what would change.

mod diff;
mod page;
mod sync;

use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use attest_documents::{Application, HistoryEntry, List, REMOVAL_ALLOWED, REMOVAL_UNCONFIRMED};
use attest_supply::yaml;
use clap::Subcommand;
use reqwest::Method;
use serde_json::Value;

use self::page::{described, destinations, table, trouble};
use crate::client::{block_on, is_missing, refusal};
use crate::hub_args::HubArgs;
use crate::human::{NONE, age, confirm_loss, or_none, short};
use crate::input::{segment, wait_seconds};
use crate::printer::{Format, Output, Printer, Table, Watch};
use crate::wait::{Poll, Wait};
use crate::watch::show;

/// Largest manifest file, in bytes; the hub takes no larger body.
const MANIFEST_BYTES_MAX: u64 = 1024 * 1024;
const POLL_EVERY: Duration = Duration::from_millis(100);
const KIND: &str = "AttestApplication";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create or change applications
    Apply {
        /// File with AttestApplication manifests; `-` reads standard input
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        /// Do not ask before an application is removed from where it is no longer to run
        #[arg(short, long)]
        yes: bool,
        #[command(flatten)]
        output: Output,
    },
    /// List applications
    #[command(visible_alias = "ls")]
    List(Watch),
    /// Show one application: what runs where, who signed it, since when, how old the news is
    Get {
        name: String,
        #[command(flatten)]
        watch: Watch,
    },
    /// List what was directed, newest first
    History {
        name: String,
        #[command(flatten)]
        output: Output,
    },
    /// Compare the newest commit with what runs; exit code 0 without and 1 with differences
    Diff {
        name: String,
        #[command(flatten)]
        output: Output,
    },
    /// Look at the repository now
    Sync(sync::SyncArgs),
    /// Remove an application, where the clusters' policies let the hub
    Delete {
        name: String,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
        /// Wait until it is gone
        #[arg(long)]
        wait: bool,
        /// With --wait: longest wait, in seconds
        #[arg(long, default_value_t = 300, value_name = "SECONDS", value_parser = wait_seconds())]
        timeout: u64,
    },
}

pub(crate) fn run(args: Args, hub: &HubArgs, printer: &Printer) -> anyhow::Result<()> {
    match args.command {
        Command::Apply { file, yes, output } => apply(&file, yes, output, hub, printer),
        Command::List(watch) => {
            let client = hub.client()?;
            let ask = async || client.get::<List<Application>>("/v1/applications").await;
            block_on(show(watch, printer, ask, |list, format| table(&list.items, format)))
        }
        Command::Get { name, watch } => block_on(get(&name, watch, hub, printer)),
        Command::History { name, output } => history(&name, output, hub, printer),
        Command::Diff { name, output } => diff::run(&name, output, hub, printer),
        Command::Sync(args) => block_on(Box::pin(sync::sync(args, hub, printer))),
        Command::Delete { name, yes, wait, timeout } => {
            confirm_loss(
                &format!("Remove application {name} from all its clusters?"),
                yes,
                printer,
            )?;
            let seconds = wait.then_some(timeout);
            block_on(Box::pin(delete(&name, seconds, hub, printer)))
        }
    }
}

fn path(name: &str) -> String {
    format!("/v1/applications/{}", segment(name))
}

fn apply(
    file: &std::path::Path,
    yes: bool,
    output: Output,
    hub: &HubArgs,
    printer: &Printer,
) -> anyhow::Result<()> {
    let manifests = read_manifests(file, printer)?;
    let client = hub.client()?;
    let mut applied = Vec::new();
    for manifest in &manifests {
        let name = manifest.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        let answered: anyhow::Result<Application> =
            block_on(client.put("/v1/applications", manifest));
        let answered = match answered.as_ref().err().and_then(refusal) {
            Some(refused) if refused.reason == REMOVAL_UNCONFIRMED => {
                if yes {
                    printer.note(&refused.message);
                }
                confirm_loss(&format!("Apply {name}? {}.", refused.message), yes, printer)?;
                block_on(client.put(&format!("/v1/applications?{REMOVAL_ALLOWED}"), manifest))
            }
            Some(_) | None => answered,
        };
        let application = answered.with_context(|| format!("application {name} is not applied"))?;
        if matches!(output.format, Format::Table | Format::Wide) {
            let outcome = application.outcome.as_deref().unwrap_or("applied").to_ascii_lowercase();
            printer.line(&format!("application/{} {outcome}", application.name));
        }
        applied.push(application);
    }
    if !matches!(output.format, Format::Table | Format::Wide) {
        let list = List::new(KIND, applied);
        printer.result(output.format, &list, || table(&list.items, output.format))?;
    }
    Ok(())
}

/// Every document of the file. One that is not an application stops everything before the first is sent.
fn read_manifests(file: &std::path::Path, printer: &Printer) -> anyhow::Result<Vec<Value>> {
    let shown = file.display().to_string();
    let mut bytes = Vec::new();
    if shown == "-" {
        std::io::stdin().lock().take(MANIFEST_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    } else {
        let opened = std::fs::File::open(file).with_context(|| format!("cannot read {shown}"))?;
        opened
            .take(MANIFEST_BYTES_MAX + 1)
            .read_to_end(&mut bytes)
            .with_context(|| format!("cannot read {shown}"))?;
    }
    if bytes.len() as u64 > MANIFEST_BYTES_MAX {
        bail!("{shown} is longer than {MANIFEST_BYTES_MAX} bytes");
    }
    let mut warnings = Vec::new();
    let documents = yaml::read(&shown, &bytes, &mut warnings)?;
    for warning in warnings {
        printer.warning(&warning.to_string());
    }
    if documents.is_empty() {
        bail!("{shown} holds no manifest");
    }
    for (index, document) in documents.iter().enumerate() {
        let kind = document.get("kind").and_then(Value::as_str).unwrap_or(NONE);
        if kind != KIND {
            bail!("{shown}: document {}: kind is {kind}, not {KIND}", index + 1);
        }
    }
    Ok(documents)
}
async fn get(name: &str, watch: Watch, hub: &HubArgs, printer: &Printer) -> anyhow::Result<()> {
    let client = hub.client()?;
    let path = path(name);
    let ask = async || client.get::<Application>(&path).await;
    let format = watch.output.format;
    if matches!(format, Format::Table | Format::Wide) && !watch.watch {
        let application = ask().await?;
        printer.text(&described(&application, format == Format::Wide));
        return Ok(());
    }
    show(watch, printer, ask, |application, format| match format {
        // Its own name, not those of the places where it runs.
        Format::Name => table(std::slice::from_ref(application), format),
        Format::Table | Format::Wide | Format::Json | Format::Yaml => destinations(application),
    })
    .await
}

fn history(name: &str, output: Output, hub: &HubArgs, printer: &Printer) -> anyhow::Result<()> {
    let client = hub.client()?;
    let path = format!("{}/history", path(name));
    let history: List<HistoryEntry> = block_on(client.get(&path))?;
    printer.result(output.format, &history, || {
        let mut header =
            vec!["directive", "destination", "operation", "version", "commit", "result"];
        header.extend(["reason", "age"]);
        if output.format == Format::Wide {
            header.extend(["counter", "plan"]);
        }
        let mut table = Table::new(&header);
        for entry in &history.items {
            let mut row = vec![
                format!("{}.{}", entry.epoch, entry.sequence),
                format!("{}/{}", entry.cluster, entry.namespace),
                entry.operation.clone(),
                or_none(entry.version.as_ref()),
                entry.commit.as_deref().map_or_else(|| NONE.to_owned(), short),
                entry.result.clone(),
                entry.reason.clone(),
                age(entry.issued_at),
            ];
            if output.format == Format::Wide {
                row.push(or_none(entry.counter));
                row.push(entry.plan.as_deref().map_or_else(|| NONE.to_owned(), short));
            }
            table.row(row);
        }
        table
    })
}

async fn delete(
    name: &str,
    wait_seconds: Option<u64>,
    hub: &HubArgs,
    printer: &Printer,
) -> anyhow::Result<()> {
    let client = hub.client()?;
    let path = path(name);
    client.act(Method::DELETE, &path, None::<&()>).await?;
    let Some(seconds) = wait_seconds else {
        printer.line(&format!("application/{name} is being removed"));
        return Ok(());
    };
    let wait = Wait::new(seconds, POLL_EVERY, printer);
    let client = client.until(wait.deadline());
    let poll = async || {
        let left: Application = match client.get(&path).await {
            Err(error) if is_missing(&error) => return Ok(Poll::Ready(())),
            answered => answered?,
        };
        match left.destinations.iter().find(|d| d.phase == "Refused") {
            Some(refused) => bail!("{}", trouble(refused)),
            None => Ok(Poll::Pending(removal_progress(&left))),
        }
    };
    wait.until("", poll, |state| {
        let state = if state.is_empty() { String::new() } else { format!(": {state}") };
        format!("application {name} is still being removed after {seconds} s{state}")
    })
    .await?;
    printer.line(&format!("application/{name} removed"));
    Ok(())
}

/// The destinations that are not removed yet.
fn removal_progress(application: &Application) -> String {
    let open = application.destinations.iter().filter(|d| d.phase != "Synced");
    let open: Vec<String> =
        open.map(|d| format!("{}/{}: {}", d.cluster, d.namespace, d.message)).collect();
    open.join("; ")
}
