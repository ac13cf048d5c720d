//! `attest gitops app sync`: requests a reconcile pass, waits for its result, and prints the duration of each step.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::bail;
use attest_common::basics::reason::Reason;
use attest_common::session::report::ApplicationPhase;
use attest_documents::{Application, ChangeTimings, Condition, Destination};

use super::page::{application_table, describe_problem};
use super::{POLL_EVERY, application_path};
use crate::client::{Client, as_api_error, is_not_found, timeout_error};
use crate::hub_args::HubArgs;
use crate::human::milliseconds;
use crate::input::wait_seconds;
use crate::printer::{OutputArgs, Printer, TextTable};
use crate::wait::{Poll, Wait};

#[derive(Debug, clap::Args)]
pub(super) struct SyncArgs {
    name: String,
    /// Wait until every destination runs the newest commit, and print the duration of each step
    #[arg(long)]
    wait: bool,
    /// Maximum time to wait with --wait, in seconds
    #[arg(long, requires = "wait", default_value_t = 300, value_name = "SECONDS", value_parser = wait_seconds())]
    timeout: u64,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn sync(args: SyncArgs, hub: &HubArgs, printer: &Printer) -> anyhow::Result<()> {
    let SyncArgs { name, wait, timeout, output } = args;
    let mut client = hub.client()?;
    let path = application_path(&name);
    let waiting = Wait::new(timeout, POLL_EVERY, printer);
    if wait {
        client = client.with_deadline(waiting.deadline());
    }
    let before = if wait { reported_directives(&client, &path).await? } else { BTreeMap::new() };
    let mut application = loop {
        let answer = client.post(&format!("{path}/sync"), &serde_json::json!({})).await;
        match answer {
            Err(error) if wait && Instant::now() >= waiting.deadline() => {
                let state = format!(
                    "{name} is still reconciling; `attest gitops app get {name}` shows the result"
                );
                return Err(timeout_error(error, timeout_message(timeout, &state)));
            }
            // A first fetch takes long: the pass continues, and the next request waits for it.
            Err(error) if wait && is_still_reconciling(&error) => {
                printer.note(&format!("{name} is still reconciling"));
            }
            answer => break answer?,
        }
    };
    match source_problem(&application) {
        // The running state says nothing about a commit that was not read.
        Some(problem) if wait => bail!("{problem}"),
        Some(problem) => printer.warning(&problem),
        None => {}
    }
    if wait {
        application = wait_settled(&client, &path, application, &waiting).await?;
    }
    if output.format.is_table() {
        printer.line(&format!("application/{name} {}", application.phase));
        let timings = timing_table(&application, &before);
        if wait && !timings.is_empty() {
            printer.table(&timings);
        }
    } else {
        printer.result(output.format, &application, || {
            application_table(std::slice::from_ref(&application), output.format)
        })?;
    }
    let stuck =
        application.destinations.iter().find(|d| wait && d.phase != ApplicationPhase::Synced);
    stuck.map_or(Ok(()), |destination| bail!("{}", describe_problem(destination)))
}

/// The reason why the requested pass did not read the repository. `None` if it did.
fn source_problem(application: &Application) -> Option<String> {
    let read = application.conditions.iter().find(|condition| condition.kind == "SourceRead")?;
    let Condition { reason, message, .. } = read;
    (read.status != "True")
        .then(|| format!("the repository could not be read ({reason}): {message}"))
}

/// Returns true if the hub answered before the pass was complete.
fn is_still_reconciling(error: &anyhow::Error) -> bool {
    as_api_error(error).is_some_and(|error| error.reason == Reason::ReconcileTimeout)
}

/// Waits until every destination is in a final phase.
async fn wait_settled(
    client: &Client,
    path: &str,
    first: Application,
    wait: &Wait<'_>,
) -> anyhow::Result<Application> {
    let first = Cell::new(Some(first));
    wait.until(
        "",
        async || match first.take() {
            Some(first) => Ok(settled(first)),
            None => Ok(settled(client.get(path).await?)),
        },
        |state| timeout_message(wait.seconds(), state),
    )
    .await
}

fn settled(application: Application) -> Poll<Application> {
    let open: Vec<String> = application
        .destinations
        .iter()
        .filter(|d| !d.phase.is_final())
        .map(|d| format!("{}/{} {} {}", d.cluster, d.namespace, d.phase, d.message))
        .collect();
    // The document of a large application shows some of its destinations only.
    let counts = application.destination_counts.iter();
    let open_total: u64 =
        counts.filter(|(phase, _)| !phase.is_final()).map(|(_, count)| count).sum();
    match open.as_slice() {
        [] if open_total > 0 => Poll::Pending(format!("{open_total} destinations are not settled")),
        [] if application.phase.is_final() => Poll::Ready(application),
        [] => Poll::Pending(format!("{} is {}", application.name, application.phase)),
        open => Poll::Pending(open.join("; ")),
    }
}

fn timeout_message(timeout_s: u64, state: &str) -> String {
    format!("timed out after {timeout_s} s: {state}")
}

/// Epoch and sequence of directives, by cluster and namespace.
type DirectiveNumbers = BTreeMap<(String, String), (u64, u64)>;

/// The directives on which destinations have reported already.
async fn reported_directives(client: &Client, path: &str) -> anyhow::Result<DirectiveNumbers> {
    match client.get::<Application>(path).await {
        Ok(application) => Ok(reported_numbers(&application)),
        // Reported by the request that follows.
        Err(error) if is_not_found(&error) => Ok(DirectiveNumbers::new()),
        Err(error) => Err(error),
    }
}

fn reported_numbers(application: &Application) -> DirectiveNumbers {
    let reported = application.destinations.iter().filter(|d| d.timings.is_some());
    reported.filter_map(|d| Some((destination_key(d), directive_number(d)?))).collect()
}

fn destination_key(destination: &Destination) -> (String, String) {
    (destination.cluster.clone(), destination.namespace.clone())
}

fn directive_number(destination: &Destination) -> Option<(u64, u64)> {
    destination.epoch.zip(destination.sequence)
}

/// The duration of each step, one row per destination that reported on a new directive.
fn timing_table(application: &Application, before: &DirectiveNumbers) -> TextTable {
    let mut header = vec!["destination", "git", "render", "verify", "plan", "push to report"];
    header.extend(["spoke verify", "spoke record", "spoke apply", "requests", "total"]);
    let mut table = TextTable::new(&header);
    for destination in &application.destinations {
        let Some(timings) = destination.timings else { continue };
        if before.get(&destination_key(destination)).copied() == directive_number(destination) {
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
    use attest_common::basics::reason::ReportedReason;

    use super::*;
    use crate::client::ApiError;

    #[test]
    fn only_what_was_ordered_since_says_where_its_time_went() {
        let seen = |sequence: u64, timings: Option<ChangeTimings>| -> Application {
            serde_json::from_value(serde_json::json!({
                "name": "web", "namespace": "default", "manifest": {}, "phase": "Synced",
                "conditions": [], "destinationCounts": {"Synced": 1}, "generation": 1, "createdAt": "2026-01-01T00:00:00Z",
                "destinations": [{
                    "cluster": "staging", "namespace": "web", "phase": "Synced",
                    "reason": "Synced", "message": "", "epoch": 1, "sequence": sequence,
                    "connected": true, "drifted": [], "healsTotal": 0, "objectsTotal": 0, "objects": [],
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
            assert_eq!(timing_table(&after, &reported_numbers(&before)).into_rows().len(), rows);
        }
    }

    #[test]
    fn only_a_look_that_is_not_finished_is_asked_for_again() {
        for (reason, again) in [("LookUnfinished", true), ("NotFound", false)] {
            let error = ApiError {
                status: reqwest::StatusCode::GATEWAY_TIMEOUT,
                reason: ReportedReason::parse(reason),
                message: String::new(),
                field: None,
            };
            assert_eq!(is_still_reconciling(&error.into()), again, "{reason}");
        }
        assert!(!is_still_reconciling(&anyhow::anyhow!("failed to reach hub `main`")));
    }
}
