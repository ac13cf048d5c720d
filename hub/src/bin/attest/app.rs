//! `attest gitops app …`: applications, what runs of them where, and what would change.

use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use attest_gitops::api::documents::{
    Application, ChangeTimings, Condition, Destination, Diff, HistoryEntry, List,
};
use attest_gitops::render::read_yaml;
use clap::Subcommand;
use reqwest::Method;
use serde_json::Value;
use tokio::time::Instant;

use crate::Exit;
use crate::client::{Client, block_on, is_missing};
use crate::gitops::{HubArgs, segment, show};
use crate::human::{NONE, age, confirm, duration, milliseconds, or_none, short};
use crate::printer::{Format, Output, Printer, Table};

/// `app diff`: the newest commit differs from what runs.
const DIFFERENT: u8 = 1;
/// `app diff`: the question could not be answered.
const NOT_COMPARED: u8 = 2;
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
        #[command(flatten)]
        output: Output,
    },
    /// List applications
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        output: Output,
        /// Go on and print what changes
        #[arg(short, long)]
        watch: bool,
    },
    /// Show one application: what runs where, who signed it, since when, how old the news is
    Get {
        name: String,
        #[command(flatten)]
        output: Output,
        /// Go on and print it again whenever it changes
        #[arg(short, long)]
        watch: bool,
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
    Sync(SyncArgs),
    /// Remove an application, where the clusters' policies let the hub
    Delete {
        name: String,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
        /// Wait until it is gone
        #[arg(long)]
        wait: bool,
        /// Longest wait, in seconds
        #[arg(long, default_value_t = 300, value_name = "SECONDS")]
        timeout: u64,
    },
}

#[derive(Debug, clap::Args)]
struct SyncArgs {
    name: String,
    /// Wait until every destination runs the newest commit, and show where the time went
    #[arg(long)]
    wait: bool,
    /// Longest wait, in seconds
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    timeout: u64,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(args: Args, hub: &HubArgs, printer: &Printer) -> anyhow::Result<()> {
    match args.command {
        Command::Apply { file, output } => apply(&file, output, hub, printer),
        Command::List { output, watch } => {
            let client = hub.client()?;
            let ask = async || client.get::<List<Application>>("/v1/applications").await;
            block_on(show(output, watch, printer, ask, |list, format| table(&list.items, format)))
        }
        Command::Get { name, output, watch } => block_on(get(&name, output, watch, hub, printer)),
        Command::History { name, output } => history(&name, output, hub, printer),
        Command::Diff { name, output } => {
            let compared = diff(&name, output, hub, printer);
            compared.map_err(|error| match error.downcast_ref::<Exit>() {
                Some(_) => error,
                None => Exit::error(NOT_COMPARED, format!("{error:#}")),
            })
        }
        Command::Sync(args) => block_on(Box::pin(sync(args, hub, printer))),
        Command::Delete { name, yes, wait, timeout } => {
            confirm(&format!("Remove application {name} from all its clusters?"), yes, printer)?;
            let wait = wait.then(|| Duration::from_secs(timeout));
            block_on(Box::pin(delete(&name, wait, hub, printer)))
        }
    }
}

fn path(name: &str) -> String {
    format!("/v1/applications/{}", segment(name))
}

fn apply(
    file: &std::path::Path,
    output: Output,
    hub: &HubArgs,
    printer: &Printer,
) -> anyhow::Result<()> {
    let manifests = read_manifests(file, printer)?;
    let client = hub.client()?;
    let mut applied = Vec::new();
    for manifest in &manifests {
        let name = manifest.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        let application: Application = block_on(client.put("/v1/applications", manifest))
            .with_context(|| format!("application {name} is not applied"))?;
        if matches!(output.format, Format::Table | Format::Wide) {
            let verb = if application.generation <= 1 { "created" } else { "configured" };
            printer.line(&format!("application/{} {verb}", application.name));
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
    let documents = read_yaml(&shown, &bytes, &mut warnings)?;
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

fn table(applications: &[Application], format: Format) -> Table {
    let mut header = vec!["name", "phase", "synced", "revision", "age"];
    if format == Format::Wide {
        header.extend(["namespace", "destinations", "message"]);
    }
    let mut table = Table::new(&header);
    for application in applications {
        let destinations = &application.destinations;
        let synced = destinations.iter().filter(|d| d.phase == "Synced").count();
        let mut row = vec![
            application.name.clone(),
            application.phase.clone(),
            format!("{synced}/{}", destinations.len()),
            application.revision.as_deref().map_or_else(|| NONE.to_owned(), short),
            age(application.created_at),
        ];
        if format == Format::Wide {
            let places: Vec<String> =
                destinations.iter().map(|d| format!("{}/{}", d.cluster, d.namespace)).collect();
            let trouble = destinations.iter().find(|d| d.phase != "Synced");
            let message = trouble.map(|d| d.message.clone()).filter(|m| !m.is_empty());
            row.extend([application.namespace.clone(), places.join(","), or_none(message)]);
        }
        table.row(row);
    }
    table
}

async fn get(
    name: &str,
    output: Output,
    watch: bool,
    hub: &HubArgs,
    printer: &Printer,
) -> anyhow::Result<()> {
    let client = hub.client()?;
    let path = path(name);
    let ask = async || client.get::<Application>(&path).await;
    if matches!(output.format, Format::Table | Format::Wide) && !watch {
        let application = ask().await?;
        printer.text(&described(&application, output.format == Format::Wide));
        return Ok(());
    }
    show(output, watch, printer, ask, |application, _| destinations(application)).await
}

/// What a watch prints: a line a destination.
fn destinations(application: &Application) -> Table {
    let mut table =
        Table::new(&["destination", "phase", "reason", "version", "sequence", "health"]);
    for destination in &application.destinations {
        table.row([
            format!("{}/{}", destination.cluster, destination.namespace),
            destination.phase.clone(),
            destination.reason.clone(),
            or_none(destination.running.as_ref().map(|running| &running.version)),
            or_none(destination.sequence),
            or_none(destination.health.as_ref()),
        ]);
    }
    table
}

/// The page that `app get` prints.
fn described(application: &Application, all_objects: bool) -> String {
    let mut page = Page::default();
    let source = |field: &str| {
        let pointer = format!("/spec/source/{field}");
        application.manifest.pointer(&pointer).and_then(Value::as_str)
    };
    let repository = source("repoURL").or_else(|| source("repoUrl"));
    page.field(0, "Name", &application.name);
    page.field(0, "Namespace", &application.namespace);
    page.field(0, "Phase", &application.phase);
    page.field(0, "Repository", &or_none(repository));
    let target = source("targetRevision").unwrap_or("HEAD");
    let revision = application.revision.as_deref().unwrap_or(NONE);
    page.field(0, "Revision", &format!("{revision} ({target})"));
    page.conditions(&application.conditions);
    page.line(0, "Destinations:");
    for destination in &application.destinations {
        page.destination(destination, all_objects);
    }
    if application.destinations.is_empty() {
        page.line(1, NONE);
    }
    page.0
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn line(&mut self, depth: usize, text: &str) {
        self.0.push_str(&"  ".repeat(depth));
        self.0.push_str(text);
        self.0.push('\n');
    }

    fn field(&mut self, depth: usize, name: &str, value: &str) {
        self.line(depth, &format!("{:<14}{value}", format!("{name}:")));
    }

    fn conditions(&mut self, conditions: &[Condition]) {
        if conditions.is_empty() {
            return;
        }
        self.line(0, "Conditions:");
        for condition in conditions {
            let Condition { kind, status, reason, message, last_transition_time } = condition;
            let since = age(*last_transition_time);
            self.line(1, &format!("{kind}={status} {reason}, since {since}"));
            if !message.is_empty() {
                self.line(2, message);
            }
        }
    }

    fn destination(&mut self, destination: &Destination, all_objects: bool) {
        let Destination { cluster, namespace, phase, reason, message, .. } = destination;
        let because = if reason == phase { String::new() } else { format!(" ({reason})") };
        self.line(1, &format!("{cluster}/{namespace}: {phase}{because}"));
        if !message.is_empty() {
            self.line(2, message);
        }
        match &destination.running {
            Some(running) => {
                self.field(
                    2,
                    "Running",
                    &format!("{}, release {}", running.version, running.counter),
                );
                let commit = destination.deployed_commit.as_deref().unwrap_or(NONE);
                self.field(
                    2,
                    "Commit",
                    &format!("{} (signed from {})", short(commit), short(&running.signed_commit)),
                );
                self.field(2, "Signed by", &running.signers.join(", "));
                self.field(
                    2,
                    "Since",
                    &format!("{:.0} ({} ago)", running.since, age(running.since)),
                );
                self.field(2, "Content", &running.content.to_string());
            }
            None => self.field(2, "Running", "nothing of this application"),
        }
        self.field(2, "Health", &or_none(destination.health.as_ref()));
        let news = match destination.report_age_ms {
            Some(ms) => format!("{} old", duration(ms)),
            None => "never heard".to_owned(),
        };
        let link = if destination.connected { "connected" } else { "not connected" };
        self.field(2, "News", &format!("{news}, {link}"));
        if let (Some(epoch), Some(sequence)) = (destination.epoch, destination.sequence) {
            self.field(2, "Directive", &format!("{epoch}.{sequence}"));
        }
        if let Some(refusal) = &destination.refusal {
            self.field(2, "Refused", &format!("{}: {}", refusal.reason, refusal.message));
        }
        if !destination.drifted.is_empty() {
            self.field(2, "Drifted", &destination.drifted.join(", "));
        }
        if destination.heals_total > 0 {
            self.field(2, "Healed", &format!("{} times", destination.heals_total));
        }
        for warning in &destination.warnings {
            self.field(2, "Warning", warning);
        }
        for object in &destination.objects {
            if all_objects || object.health != attest_common::health::Health::Current {
                let message = if object.message.is_empty() {
                    String::new()
                } else {
                    format!(": {}", object.message)
                };
                self.line(2, &format!("{} {}{message}", object.key, object.health.as_str()));
            }
        }
    }
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

fn diff(name: &str, output: Output, hub: &HubArgs, printer: &Printer) -> anyhow::Result<()> {
    let client = hub.client()?;
    let diffs: List<Diff> = block_on(client.get(&format!("{}/diff", path(name))))?;
    let differ = diffs.items.iter().any(|diff| !diff.differences.is_empty());
    if matches!(output.format, Format::Table | Format::Wide) {
        for diff in &diffs.items {
            print_diff(diff, printer);
        }
    } else {
        printer.result(output.format, &diffs, || {
            let mut table = Table::new(&["destination"]);
            for diff in diffs.items.iter().filter(|diff| !diff.differences.is_empty()) {
                table.row([format!("{}/{}", diff.cluster, diff.namespace)]);
            }
            table
        })?;
    }
    let blind = |diff: &&Diff| diff.reason.is_some() && diff.differences.is_empty();
    if let Some(Diff { cluster, namespace, reason, message, .. }) = diffs.items.iter().find(blind) {
        let (reason, message) = (or_none(reason.as_ref()), or_none(message.as_ref()));
        bail!("{cluster}/{namespace} cannot be compared: {reason}: {message}");
    }
    if differ {
        Err(Exit::error(DIFFERENT, "the newest commit differs from what runs"))
    } else {
        Ok(())
    }
}

fn print_diff(diff: &Diff, printer: &Printer) {
    let Diff { cluster, namespace, from, to, differences, reason, message } = diff;
    if differences.is_empty() {
        return;
    }
    if let Some(reason) = reason {
        let message = message.as_deref().unwrap_or_default();
        printer.note(&format!(
            "{cluster}/{namespace}: the newest commit is not deployed: {reason}: {message}"
        ));
    }
    let commit = |commit: &Option<String>| commit.as_deref().map_or_else(|| NONE.to_owned(), short);
    printer.line(&format!("--- {cluster}/{namespace} {}", commit(from)));
    printer.line(&format!("+++ {cluster}/{namespace} {}", commit(to)));
    for difference in differences {
        let field = if difference.field.is_empty() { "(whole object)" } else { &difference.field };
        printer.line(&format!("@@ {} {field}", difference.object));
        if let Some(before) = &difference.signed {
            printer.line(&format!("- {before}"));
        }
        if let Some(after) = &difference.found {
            printer.line(&format!("+ {after}"));
        }
    }
}

async fn sync(args: SyncArgs, hub: &HubArgs, printer: &Printer) -> anyhow::Result<()> {
    let SyncArgs { name, wait, timeout, output } = args;
    let client = hub.client()?;
    let path = path(&name);
    let mut application: Application =
        client.post(&format!("{path}/sync"), &serde_json::json!({})).await?;
    if wait {
        application = settled(&client, &path, application, timeout, printer).await?;
    }
    if matches!(output.format, Format::Table | Format::Wide) {
        printer.line(&format!("application/{name} {}", application.phase));
        if wait {
            printer.table(&timings(&application));
        }
    } else {
        printer.result(output.format, &application, || timings(&application))?;
    }
    let stuck = application.destinations.iter().find(|d| wait && d.phase != "Synced");
    stuck.map_or(Ok(()), |destination| bail!("{}", trouble(destination)))
}

/// Which destination is not well, and why.
fn trouble(destination: &Destination) -> String {
    let Destination { cluster, namespace, phase, reason, message, .. } = destination;
    let because = if reason == phase { String::new() } else { format!(" ({reason})") };
    format!("{cluster}/{namespace} is {phase}{because}: {message}")
}

/// Waits until no destination is on its way any more.
async fn settled(
    client: &Client,
    path: &str,
    first: Application,
    timeout_s: u64,
    printer: &Printer,
) -> anyhow::Result<Application> {
    let until = Instant::now() + Duration::from_secs(timeout_s);
    let mut application = first;
    let mut told = String::new();
    loop {
        let open: Vec<&Destination> =
            application.destinations.iter().filter(|d| !is_final(&d.phase)).collect();
        if open.is_empty() && is_final(&application.phase) {
            return Ok(application);
        }
        let waiting: Vec<String> = open
            .iter()
            .map(|d| format!("{}/{} {} {}", d.cluster, d.namespace, d.phase, d.message))
            .collect();
        let now = match waiting.as_slice() {
            [] => format!("{} is {}", application.name, application.phase),
            some => some.join("; "),
        };
        if now != told {
            printer.note(&now);
            told = now;
        }
        if Instant::now() >= until {
            bail!("not done within {timeout_s} s: {told}");
        }
        tokio::time::sleep(POLL_EVERY).await;
        application = client.get(path).await?;
    }
}

/// Phases that nothing but a new commit or an operator ends.
fn is_final(phase: &str) -> bool {
    matches!(
        phase,
        "Synced" | "OutOfSync" | "Degraded" | "Refused" | "AwaitingReceipts" | "Removed"
    )
}

/// Where the time of the newest change went, a row a destination.
fn timings(application: &Application) -> Table {
    let mut header = vec!["destination", "git", "render", "verify", "plan", "push to report"];
    header.extend(["spoke verify", "spoke record", "spoke apply", "requests", "total"]);
    let mut table = Table::new(&header);
    for destination in &application.destinations {
        let Some(timings) = destination.timings else { continue };
        let ChangeTimings {
            git_us,
            render_us,
            verify_us,
            plan_us,
            push_to_report_us,
            total_us,
            spoke,
        } = timings;
        table.row([
            format!("{}/{}", destination.cluster, destination.namespace),
            milliseconds(git_us),
            milliseconds(render_us),
            milliseconds(verify_us),
            milliseconds(plan_us),
            milliseconds(push_to_report_us),
            milliseconds(spoke.verify_us),
            milliseconds(spoke.record_us),
            milliseconds(spoke.apply_us),
            spoke.requests.to_string(),
            milliseconds(total_us),
        ]);
    }
    table
}

async fn delete(
    name: &str,
    wait: Option<Duration>,
    hub: &HubArgs,
    printer: &Printer,
) -> anyhow::Result<()> {
    let client = hub.client()?;
    let path = path(name);
    client.act(Method::DELETE, &path, None::<&()>).await?;
    let Some(wait) = wait else {
        printer.line(&format!("application/{name} is being removed"));
        return Ok(());
    };
    let until = Instant::now() + wait;
    loop {
        let left: Application = match client.get(&path).await {
            Ok(application) => application,
            Err(error) if is_missing(&error) => {
                printer.line(&format!("application/{name} removed"));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if let Some(refused) = left.destinations.iter().find(|d| d.phase == "Refused") {
            bail!("{}", trouble(refused));
        }
        if Instant::now() >= until {
            bail!("application {name} is still being removed after {} s", wait.as_secs());
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
}

#[cfg(test)]
mod tests;
