//! `attest gitops app sync`: asks the hub to look now, waits for the outcome, and says where the time went.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::bail;
use attest_documents::{Application, ChangeTimings, Condition, Destination};

use super::page::{table, trouble};
use super::{POLL_EVERY, path};
use crate::client::{Client, is_missing, late, refusal};
use crate::hub_args::HubArgs;
use crate::human::milliseconds;
use crate::input::wait_seconds;
use crate::printer::{Format, Output, Printer, Table};
use crate::wait::{Poll, Wait};

#[derive(Debug, clap::Args)]
pub(super) struct SyncArgs {
    name: String,
    /// Wait until every destination runs the newest commit, and show where the time went
    #[arg(long)]
    wait: bool,
    /// With --wait: longest wait, in seconds
    #[arg(long, default_value_t = 300, value_name = "SECONDS", value_parser = wait_seconds())]
    timeout: u64,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn sync(args: SyncArgs, hub: &HubArgs, printer: &Printer) -> anyhow::Result<()> {
    let SyncArgs { name, wait, timeout, output } = args;
    let mut client = hub.client()?;
    let path = path(&name);
    let waiting = Wait::new(timeout, POLL_EVERY, printer);
    if wait {
        client = client.until(waiting.deadline());
    }
    let before = if wait { ordered_before(&client, &path).await? } else { BTreeMap::new() };
    let mut application = loop {
        let asked: anyhow::Result<Application> =
            client.post(&format!("{path}/sync"), &serde_json::json!({})).await;
        match asked {
            Err(error) if wait && Instant::now() >= waiting.deadline() => {
                let next = format!("`attest gitops app get {name}` shows what comes of it");
                let told = format!("the look at {name} goes on; {next}");
                return Err(late(error, not_done(timeout, &told)));
            }
            // A first fetch takes its time: the look goes on, and one more waits for it.
            Err(error) if wait && is_unfinished(&error) => {
                printer.note(&format!("the look at {name} goes on"));
            }
            answered => break answered?,
        }
    };
    let unread = unread(&application);
    if wait {
        // What runs says nothing about a commit that nobody has seen.
        if let Some(unread) = unread {
            bail!("{unread}");
        }
        application = settled(&client, &path, application, &waiting).await?;
    }
    if let (false, Some(unread)) = (wait, unread) {
        printer.warning(&unread);
    }
    if matches!(output.format, Format::Table | Format::Wide) {
        printer.line(&format!("application/{name} {}", application.phase));
        let timings = timings(&application, &before);
        if wait && !timings.is_empty() {
            printer.table(&timings);
        }
    } else {
        let row = || table(std::slice::from_ref(&application), output.format);
        printer.result(output.format, &application, row)?;
    }
    let stuck = application.destinations.iter().find(|d| wait && d.phase != "Synced");
    stuck.map_or(Ok(()), |destination| bail!("{}", trouble(destination)))
}

/// Why the repository was not read by the look that was asked for, when it was not.
fn unread(application: &Application) -> Option<String> {
    let read = application.conditions.iter().find(|condition| condition.kind == "SourceRead")?;
    let Condition { reason, message, .. } = read;
    (read.status != "True").then(|| format!("the repository was not read ({reason}): {message}"))
}

/// True when the hub answers before it has looked.
fn is_unfinished(error: &anyhow::Error) -> bool {
    refusal(error).is_some_and(|refused| refused.reason == "LookUnfinished")
}

/// Waits until no destination is on its way any more.
async fn settled(
    client: &Client,
    path: &str,
    first: Application,
    wait: &Wait<'_>,
) -> anyhow::Result<Application> {
    let first = Cell::new(Some(first));
    let poll = async || {
        let application: Application = match first.take() {
            Some(first) => first,
            None => client.get(path).await?,
        };
        let open: Vec<String> = application
            .destinations
            .iter()
            .filter(|d| !is_final(&d.phase))
            .map(|d| format!("{}/{} {} {}", d.cluster, d.namespace, d.phase, d.message))
            .collect();
        Ok(match open.as_slice() {
            [] if is_final(&application.phase) => Poll::Ready(application),
            [] => Poll::Pending(format!("{} is {}", application.name, application.phase)),
            open => Poll::Pending(open.join("; ")),
        })
    };
    wait.until("", poll, |state| not_done(wait.seconds(), state)).await
}

fn not_done(timeout_s: u64, told: &str) -> String {
    format!("not done within {timeout_s} s: {told}")
}

/// Orders by cluster and namespace.
type Orders = BTreeMap<(String, String), (u64, u64)>;

/// The orders that destinations had already reported on.
async fn ordered_before(client: &Client, path: &str) -> anyhow::Result<Orders> {
    match client.get::<Application>(path).await {
        Ok(application) => Ok(reported_orders(&application)),
        // Who looks says so.
        Err(error) if is_missing(&error) => Ok(Orders::new()),
        Err(error) => Err(error),
    }
}

fn reported_orders(application: &Application) -> Orders {
    let reported = application.destinations.iter().filter(|d| d.timings.is_some());
    reported.filter_map(|destination| Some((place(destination), order(destination)?))).collect()
}

fn place(destination: &Destination) -> (String, String) {
    (destination.cluster.clone(), destination.namespace.clone())
}

fn order(destination: &Destination) -> Option<(u64, u64)> {
    destination.epoch.zip(destination.sequence)
}

/// Phases that nothing but a new commit or an operator ends.
fn is_final(phase: &str) -> bool {
    matches!(
        phase,
        "Synced" | "OutOfSync" | "Degraded" | "Refused" | "AwaitingReceipts" | "Removed"
    )
}

/// Where the time went of what was not reported on before, a row a destination.
fn timings(application: &Application, before: &Orders) -> Table {
    let mut header = vec!["destination", "git", "render", "verify", "plan", "push to report"];
    header.extend(["spoke verify", "spoke record", "spoke apply", "requests", "total"]);
    let mut table = Table::new(&header);
    for destination in &application.destinations {
        let Some(timings) = destination.timings else { continue };
        if before.get(&place(destination)).copied() == order(destination) {
            continue;
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Refused;

    #[test]
    fn only_what_was_ordered_since_says_where_its_time_went() {
        let seen = |sequence: u64, timings: Option<ChangeTimings>| -> Application {
            serde_json::from_value(serde_json::json!({
                "name": "web", "namespace": "default", "manifest": {}, "phase": "Synced",
                "conditions": [], "generation": 1, "createdAt": "2026-01-01T00:00:00Z",
                "destinations": [{
                    "cluster": "staging", "namespace": "web", "phase": "Synced",
                    "reason": "Synced", "message": "", "epoch": 1, "sequence": sequence,
                    "connected": true, "drifted": [], "healsTotal": 0, "objects": [],
                    "warnings": [], "timings": timings
                }]
            }))
            .unwrap()
        };
        let done = Some(ChangeTimings::default());
        for (before, after, rows) in [
            (seen(4, done), seen(4, done), 0),
            (seen(4, done), seen(5, done), 1),
            // Ordered by a poll a moment ago, and not reported on yet.
            (seen(5, None), seen(5, done), 1),
            (seen(4, done), seen(5, None), 0),
        ] {
            assert_eq!(timings(&after, &reported_orders(&before)).into_rows().len(), rows);
        }
    }

    #[test]
    fn only_a_look_that_is_not_finished_is_asked_for_again() {
        for (reason, again) in [("LookUnfinished", true), ("NotFound", false)] {
            let refused = Refused {
                status: reqwest::StatusCode::GATEWAY_TIMEOUT,
                reason: reason.to_owned(),
                message: String::new(),
                field: None,
            };
            assert_eq!(is_unfinished(&refused.into()), again, "{reason}");
        }
        assert!(!is_unfinished(&anyhow::anyhow!("cannot reach hub `main`")));
    }
}
