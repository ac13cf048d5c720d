//! `attest gitops app …`: applications, their state at each destination, and pending changes.

mod diff;
mod page;
mod sync;

use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use attest_common::basics::reason::Reason;
use attest_common::session::report::ApplicationPhase;
use attest_documents::{Application, HistoryEntry, List, REMOVAL_ALLOWED, Released, Rollout};
use attest_supply::yaml;
use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use self::page::{
    PageDetail, application_page, application_table, describe_problem, destination_table,
    summary_table,
};
use crate::client::{Client, as_api_error, block_on, is_not_found};
use crate::hub_args::HubArgs;
use crate::human::{NONE, age, confirm_loss, or_none, short_or_none};
use crate::input::{segment, wait_seconds};
use crate::printer::{Format, OutputArgs, Printer, TextTable, WatchArgs};
use crate::rollout::rollout_table;
use crate::wait::{Poll, Wait};
use crate::watch::{print_list, print_watched};

/// Maximum size of a manifest file, in bytes, as of a request body at the hub.
const MANIFEST_BYTES_MAX: u64 = 1024 * 1024;
const POLL_EVERY: Duration = Duration::from_millis(100);
const KIND: &str = "AttestApplication";

#[derive(Debug, clap::Args)]
pub(crate) struct AppArgs {
    #[command(subcommand)]
    command: AppCommand,
}

#[derive(Debug, Subcommand)]
enum AppCommand {
    /// Create or update applications
    Apply {
        /// File with AttestApplication manifests; `-` for stdin
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        /// Skip the confirmation prompt for removing an application from destinations
        #[arg(short, long)]
        yes: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// List applications
    #[command(visible_alias = "ls")]
    List(WatchArgs),
    /// Show one application: running release, signers and health per destination, age of the last report
    Get {
        name: String,
        /// Show every destination and object; by default a large application shows its worst destinations
        #[arg(long)]
        all: bool,
        /// Also list the checks that the running release passed at each destination; JSON and YAML contain them always
        #[arg(long, conflicts_with = "watch")]
        checks: bool,
        #[command(flatten)]
        watch: WatchArgs,
    },
    /// List the rollouts of an application, newest first; its directives where it has no stages
    History {
        name: String,
        /// List directives, also with stages
        #[arg(long)]
        directives: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Compare the newest commit with the running state; exit code 0: no differences, 1: differences, 2: failure
    Diff {
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Reconcile now
    Sync(sync::SyncArgs),
    /// Let the resources of all applications go, before a hub in a cluster is uninstalled; everything keeps running
    Release {
        /// Confirms that all applications are released
        #[arg(long, required = true)]
        all: bool,
    },
    /// Remove an application from all clusters whose policies allow it
    Delete {
        name: String,
        /// Skip the confirmation prompt
        #[arg(short, long)]
        yes: bool,
        /// Wait until the application is removed
        #[arg(long)]
        wait: bool,
        /// Maximum time to wait with --wait, in seconds
        #[arg(long, requires = "wait", default_value_t = 300, value_name = "SECONDS", value_parser = wait_seconds())]
        timeout: u64,
    },
}

pub(crate) fn run(args: AppArgs, hub: &HubArgs, printer: &Printer) -> anyhow::Result<()> {
    match args.command {
        AppCommand::Apply { file, yes, output } => apply(&file, yes, output, hub, printer),
        AppCommand::List(watch) => {
            print_list("/v1/applications", watch, hub, printer, summary_table)
        }
        AppCommand::Get { name, all, checks, watch } => {
            block_on(get(&name, (all, checks), watch, hub, printer))
        }
        AppCommand::History { name, directives, output } => {
            history(&name, directives, output, hub, printer)
        }
        AppCommand::Diff { name, output } => diff::run(&name, output, hub, printer),
        AppCommand::Release { all: _ } => block_on(release(hub, printer)),
        AppCommand::Sync(args) => block_on(Box::pin(sync::sync(args, hub, printer))),
        AppCommand::Delete { name, yes, wait, timeout } => {
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

async fn release(hub: &HubArgs, printer: &Printer) -> anyhow::Result<()> {
    let client = hub.client()?;
    let released: Released = client.post("/v1/resources/release", &json!({})).await?;
    let count = match released.resources {
        1 => "1 resource".to_owned(),
        count => format!("{count} resources"),
    };
    printer.line(&format!("{count} released; the hub leaves them alone until it starts again"));
    Ok(())
}

fn application_path(name: &str) -> String {
    format!("/v1/applications/{}", segment(name))
}

fn apply(
    file: &std::path::Path,
    yes: bool,
    output: OutputArgs,
    hub: &HubArgs,
    printer: &Printer,
) -> anyhow::Result<()> {
    let manifests = read_manifests(file, printer)?;
    let client = hub.client()?;
    let mut applied = Vec::new();
    for manifest in &manifests {
        let name = manifest.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        let application = block_on(apply_manifest(&client, name, manifest, yes, printer))?;
        if output.format.is_table() {
            let outcome = application.outcome.as_deref().unwrap_or("applied").to_ascii_lowercase();
            printer.line(&format!("application/{} {outcome}", application.name));
        }
        applied.push(application);
    }
    if !output.format.is_table() {
        let list = List::new(KIND, applied);
        printer.result(output.format, &list, || application_table(&list.items, output.format))?;
    }
    Ok(())
}

async fn apply_manifest(
    client: &Client,
    name: &str,
    manifest: &Value,
    yes: bool,
    printer: &Printer,
) -> anyhow::Result<Application> {
    let mut answer = client.put("/v1/applications", manifest).await;
    let error = answer.as_ref().err().and_then(as_api_error);
    if let Some(error) = error.filter(|error| error.reason == Reason::RemovalUnconfirmed) {
        if yes {
            printer.note(&error.message);
        }
        confirm_loss(&format!("Apply {name}? {}.", error.message), yes, printer)?;
        answer = client.put(&format!("/v1/applications?{REMOVAL_ALLOWED}"), manifest).await;
    }
    answer.with_context(|| format!("failed to apply application {name}"))
}

/// Reads every document of a file. A document that is not an application is rejected before the first is sent.
fn read_manifests(file: &std::path::Path, printer: &Printer) -> anyhow::Result<Vec<Value>> {
    let shown = file.display().to_string();
    let bytes = read_bytes(file).with_context(|| format!("failed to read {shown}"))?;
    if bytes.len() as u64 > MANIFEST_BYTES_MAX {
        bail!("{shown} is longer than {MANIFEST_BYTES_MAX} bytes");
    }
    let mut warnings = Vec::new();
    let documents = yaml::read(&shown, &bytes, &mut warnings)?;
    for warning in warnings {
        printer.warning(&warning.to_string());
    }
    if documents.is_empty() {
        bail!("{shown} contains no manifest");
    }
    for (index, document) in documents.iter().enumerate() {
        let kind = document.get("kind").and_then(Value::as_str).unwrap_or(NONE);
        if kind != KIND {
            bail!("{shown}: document {}: kind is {kind}, expected {KIND}", index + 1);
        }
    }
    Ok(documents)
}

/// Reads at most one byte more than is allowed.
fn read_bytes(file: &std::path::Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if file == "-" {
        std::io::stdin().lock().take(MANIFEST_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    } else {
        std::fs::File::open(file)?.take(MANIFEST_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

async fn get(
    name: &str,
    (all, checks): (bool, bool),
    watch: WatchArgs,
    hub: &HubArgs,
    printer: &Printer,
) -> anyhow::Result<()> {
    if checks && !watch.output.format.is_table() {
        bail!(
            "--checks is for the page of an application; remove it: JSON and YAML contain the checks"
        );
    }
    let client = hub.client()?;
    let query = if all { "?all=true" } else { "" };
    let path = format!("{}{query}", application_path(name));
    let format = watch.output.format;
    if format.is_table() && !watch.watch {
        let application: Application = client.get(&path).await?;
        let detail = PageDetail { all_objects: format == Format::Wide, checks };
        printer.text(&application_page(&application, detail));
        return Ok(());
    }
    print_watched(
        watch,
        printer,
        async || client.get::<Application>(&path).await,
        |application, format| match format {
            // The name of the application, not those of its destinations.
            Format::Name => application_table(std::slice::from_ref(application), format),
            Format::Table | Format::Wide | Format::Json | Format::Yaml => {
                destination_table(application)
            }
        },
    )
    .await
}

fn history(
    name: &str,
    directives: bool,
    output: OutputArgs,
    hub: &HubArgs,
    printer: &Printer,
) -> anyhow::Result<()> {
    let client = hub.client()?;
    if !directives {
        let path = format!("{}/rollouts", application_path(name));
        let rollouts: List<Rollout> = block_on(client.get(&path))?;
        if !rollouts.items.is_empty() {
            return printer.result(output.format, &rollouts, || {
                rollout_table(&rollouts.items, output.format)
            });
        }
    }
    let path = format!("{}/history", application_path(name));
    let history: List<HistoryEntry> = block_on(client.get(&path))?;
    printer.result(output.format, &history, || {
        let mut header =
            vec!["directive", "destination", "operation", "version", "commit", "result"];
        header.extend(["reason", "age"]);
        if output.format == Format::Wide {
            header.extend(["counter", "plan"]);
        }
        let mut table = TextTable::new(&header);
        for entry in &history.items {
            let mut row = vec![
                format!("{}.{}", entry.epoch, entry.sequence),
                format!("{}/{}", entry.cluster, entry.namespace),
                entry.operation.clone(),
                or_none(entry.version.as_ref()),
                short_or_none(entry.commit.as_deref()),
                entry.result.clone(),
                entry.reason.to_string(),
                age(entry.issued_at),
            ];
            if output.format == Format::Wide {
                row.push(or_none(entry.counter));
                row.push(short_or_none(entry.plan.as_deref()));
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
    let path = application_path(name);
    client.send_only(Method::DELETE, &path, None::<&()>).await?;
    let Some(seconds) = wait_seconds else {
        printer.line(&format!("application/{name} is being removed"));
        return Ok(());
    };
    let wait = Wait::new(seconds, POLL_EVERY, printer);
    let client = client.with_deadline(wait.deadline());
    wait.until(
        "",
        async || poll_removal(&client, &path).await,
        |state| {
            let state = if state.is_empty() { String::new() } else { format!(": {state}") };
            format!(
                "timed out after {seconds} s waiting for the removal of application {name}{state}"
            )
        },
    )
    .await?;
    printer.line(&format!("application/{name} removed"));
    Ok(())
}

async fn poll_removal(client: &Client, path: &str) -> anyhow::Result<Poll<()>> {
    let application: Application = match client.get(path).await {
        Err(error) if is_not_found(&error) => return Ok(Poll::Ready(())),
        answer => answer?,
    };
    match application.destinations.iter().find(|d| d.phase == ApplicationPhase::Refused) {
        Some(refused) => bail!("{}", describe_problem(refused)),
        None => Ok(Poll::Pending(removal_progress(&application))),
    }
}

/// The destinations that are not removed yet.
fn removal_progress(application: &Application) -> String {
    let open = application.destinations.iter().filter(|d| d.phase != ApplicationPhase::Synced);
    let open: Vec<String> =
        open.map(|d| format!("{}/{}: {}", d.cluster, d.namespace, d.message)).collect();
    open.join("; ")
}
