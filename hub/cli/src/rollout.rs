//! `attest gitops rollout …`: rollouts by stages, and commands about the newest one of an application.

use std::time::Duration;

use anyhow::bail;
use attest_documents::{Rollout, RolloutMember, RolloutRequest, RolloutStage};
use clap::Subcommand;

use crate::client::{Client, block_on};
use crate::hub_args::HubArgs;
use crate::human::{age, confirm_loss, duration, or_none, short_or_none};
use crate::input::{segment, wait_seconds};
use crate::printer::{Format, OutputArgs, Printer, TextTable, WatchArgs, field};
use crate::wait::{Poll, Wait};
use crate::watch::{print_list, print_watched};

const POLL_EVERY: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
pub(crate) struct RolloutArgs {
    #[command(subcommand)]
    command: RolloutCommand,
}

#[derive(Debug, Subcommand)]
enum RolloutCommand {
    /// List the newest rollout of every application that has one
    #[command(visible_alias = "ls")]
    List(WatchArgs),
    /// Show the newest rollout of an application: stages, their clusters, and what each waits for
    Get {
        /// Application
        name: String,
        #[command(flatten)]
        watch: WatchArgs,
    },
    /// Approve the stage that waits for an operator
    Promote(ActionArgs),
    /// Order nothing further, and let the soak stand still
    Pause(ActionArgs),
    /// Continue after `pause`, or sync automatically again after `rollback`
    Resume(ActionArgs),
    /// End the rollout; clusters that it did not finish return to their last good release
    Abort(ConfirmedArgs),
    /// Try a failed or aborted rollout again, from the first stage that is not finished
    Retry(ActionArgs),
    /// Return every cluster to the release before this rollout, immediately, and hold automatic sync
    Rollback(ConfirmedArgs),
    /// Pass over one cluster of a running rollout
    Skip {
        #[command(flatten)]
        action: ActionArgs,
        /// Destination to skip
        #[arg(value_name = "CLUSTER[/NAMESPACE]")]
        destination: String,
    },
    /// Begin a held rollout again from its first stage, after the hub was restored from a backup
    Adopt(ConfirmedArgs),
}

/// Arguments of a command about a rollout.
#[derive(Debug, clap::Args)]
struct ActionArgs {
    /// Application
    name: String,
    /// Reason, stored with the action and shown by `rollout get`
    #[arg(long, default_value = "")]
    reason: String,
    /// Wait until the rollout has ended, or waits for an operator
    #[arg(long)]
    wait: bool,
    /// Maximum time to wait, in seconds
    #[arg(long, default_value_t = 600, value_name = "SECONDS", value_parser = wait_seconds(), requires = "wait")]
    timeout: u64,
    #[command(flatten)]
    output: OutputArgs,
}

/// Arguments of a command that changes what runs.
#[derive(Debug, clap::Args)]
struct ConfirmedArgs {
    #[command(flatten)]
    action: ActionArgs,
    /// Skip the confirmation prompt
    #[arg(short, long)]
    yes: bool,
}

pub(crate) fn run(args: RolloutArgs, hub: &HubArgs, printer: &Printer) -> anyhow::Result<()> {
    match args.command {
        RolloutCommand::List(watch) => {
            print_list("/v1/rollouts", watch, hub, printer, rollout_table)
        }
        RolloutCommand::Get { name, watch } => block_on(get(&name, watch, hub, printer)),
        RolloutCommand::Promote(args) => act("promote", args, None, hub, printer),
        RolloutCommand::Pause(args) => act("pause", args, None, hub, printer),
        RolloutCommand::Resume(args) => act("resume", args, None, hub, printer),
        RolloutCommand::Retry(args) => act("retry", args, None, hub, printer),
        RolloutCommand::Skip { action, destination } => {
            act("skip", action, Some(&destination), hub, printer)
        }
        RolloutCommand::Abort(args) => confirmed("abort", "Abort the rollout", args, hub, printer),
        RolloutCommand::Rollback(args) => confirmed(
            "rollback",
            "Return every cluster to the previous release",
            args,
            hub,
            printer,
        ),
        RolloutCommand::Adopt(args) => {
            confirmed("adopt", "Begin the held rollout again", args, hub, printer)
        }
    }
}

fn rollout_path(name: &str) -> String {
    format!("/v1/applications/{}/rollout", segment(name))
}

/// Returns one line for each rollout.
pub(crate) fn rollout_table(rollouts: &[Rollout], format: Format) -> TextTable {
    let wide = format == Format::Wide;
    let mut header =
        vec!["application", "rollout", "version", "commit", "phase", "stage", "stages"];
    header.extend(["reason", "age"]);
    if wide {
        header.extend(["message", "next"]);
    }
    let mut table = TextTable::new(&header);
    for rollout in rollouts {
        let mut row = vec![
            rollout.application.clone(),
            number(rollout),
            or_none(rollout.version.as_ref()),
            short_or_none(rollout.commit.as_deref()),
            phase(rollout).to_owned(),
            or_none(rollout.stage.as_ref()),
            format!("{}/{}", rollout.stages_passed, rollout.stages_total),
            or_none(rollout.reason.as_ref()),
            age(rollout.started_at),
        ];
        if wide {
            row.extend([rollout.message.clone(), rollout.next.clone()]);
        }
        table.row(row);
    }
    table
}

/// Returns number, phase and stage of a rollout, and what comes next.
pub(crate) fn rollout_line(rollout: &Rollout) -> String {
    let stage = rollout.stage.as_ref().map(|stage| format!(", stage {stage}")).unwrap_or_default();
    let Rollout { stages_passed, stages_total, next, .. } = rollout;
    let next = if next.is_empty() { String::new() } else { format!("; next: {next}") };
    let phase = phase(rollout);
    format!("{} {phase}{stage} ({stages_passed}/{stages_total} passed){next}", number(rollout))
}

/// The number of a rollout, with its attempt after the first.
fn number(rollout: &Rollout) -> String {
    match rollout.attempt {
        0 => rollout.generation.to_string(),
        attempt => format!("{}.{attempt}", rollout.generation),
    }
}

/// The phase, or what an open rollout waits for.
fn phase(rollout: &Rollout) -> &str {
    match (rollout.paused, rollout.awaits_approval) {
        _ if rollout.phase != "Running" && rollout.kind == "Rollback" => "RolledBack",
        _ if rollout.phase != "Running" => &rollout.phase,
        (true, _) => "Paused",
        (false, true) => "AwaitingApproval",
        (false, false) => &rollout.phase,
    }
}

async fn get(name: &str, watch: WatchArgs, hub: &HubArgs, printer: &Printer) -> anyhow::Result<()> {
    let client = hub.client()?;
    let path = rollout_path(name);
    if watch.watch || !watch.output.format.is_table() {
        return print_watched(
            watch,
            printer,
            async || client.get::<Rollout>(&path).await,
            |rollout, _| tree(rollout),
        )
        .await;
    }
    let rollout: Rollout = client.get(&path).await?;
    print_page(&rollout, printer);
    Ok(())
}

fn print_page(rollout: &Rollout, printer: &Printer) {
    let cause = rollout.reason.as_ref();
    let cause = cause.map(|reason| format!(" ({reason}: {})", rollout.message)).unwrap_or_default();
    let source = match (&rollout.version, &rollout.commit) {
        (Some(version), Some(commit)) => format!("{version} ({})", short_or_none(Some(commit))),
        (version, commit) => or_none(version.as_ref().or(commit.as_ref())),
    };
    for (name, value) in [
        ("Application", rollout.application.clone()),
        ("Rollout", number(rollout)),
        ("Release", source),
        ("Phase", format!("{}{cause}", phase(rollout))),
        ("Started", format!("{} ago", age(rollout.started_at))),
        ("Next", rollout.next.clone()),
    ] {
        if !value.is_empty() {
            printer.line(&field(name, &value));
        }
    }
    printer.line("");
    printer.table(&tree(rollout));
    if !rollout.actions.is_empty() {
        printer.line("");
        let mut table = TextTable::new(&["age", "operator", "action", "reason"]);
        for action in &rollout.actions {
            let reason = action.reason.as_str();
            table.row([&age(action.at), &action.operator, &action.action, reason]);
        }
        printer.table(&table);
    }
}

/// Returns the stages with their members below them.
fn tree(rollout: &Rollout) -> TextTable {
    let mut table = TextTable::new(&["stage", "phase", "healthy for", "reason", "message"]);
    for stage in &rollout.stages {
        table.row([
            stage.name.clone(),
            stage.phase.clone(),
            soak(stage),
            String::new(),
            note(stage),
        ]);
        let last = stage.members.len().saturating_sub(1);
        for (index, member) in stage.members.iter().enumerate() {
            let branch = if index == last { "└─" } else { "├─" };
            table.row([
                format!("{branch} {}/{}", member.cluster, member.namespace),
                member.phase.clone(),
                healthy_for(stage, member),
                or_none(member.reason.as_ref()),
                member.message.clone(),
            ]);
        }
    }
    table
}

fn soak(stage: &RolloutStage) -> String {
    if stage.soak_ms == 0 { String::new() } else { format!("of {}", duration(stage.soak_ms)) }
}

fn note(stage: &RolloutStage) -> String {
    let mut notes = Vec::new();
    if stage.approval {
        notes.push("needs approval".to_owned());
    }
    if stage.failures_max > 0 {
        notes.push(format!("{} may fail", stage.failures_max));
    }
    if stage.inherited {
        notes.push("clusters of a later stage".to_owned());
    }
    notes.join(", ")
}

/// The time at target: as reported, and the age of the report, up to the soak of the stage.
fn healthy_for(stage: &RolloutStage, member: &RolloutMember) -> String {
    let Some(reported_ms) = member.healthy_for_ms else { return String::new() };
    let is_counting = member.connected && member.phase == "Soaking";
    let since_ms = member.report_age_ms.filter(|_| is_counting).unwrap_or(0);
    duration(reported_ms.saturating_add(since_ms).min(stage.soak_ms.max(reported_ms)))
}

fn confirmed(
    action: &str,
    question: &str,
    args: ConfirmedArgs,
    hub: &HubArgs,
    printer: &Printer,
) -> anyhow::Result<()> {
    let question = format!("{question} of application {}?", args.action.name);
    confirm_loss(&question, args.yes, printer)?;
    act(action, args.action, None, hub, printer)
}

fn act(
    action: &str,
    args: ActionArgs,
    destination: Option<&str>,
    hub: &HubArgs,
    printer: &Printer,
) -> anyhow::Result<()> {
    let (cluster, namespace) = match destination.map(|text| text.split_once('/').ok_or(text)) {
        Some(Ok((cluster, namespace))) => (Some(cluster.to_owned()), Some(namespace.to_owned())),
        Some(Err(cluster)) => (Some(cluster.to_owned()), None),
        None => (None, None),
    };
    let request =
        RolloutRequest { action: action.to_owned(), reason: args.reason, cluster, namespace };
    let client = hub.client()?;
    let path = rollout_path(&args.name);
    block_on(async {
        let mut rollout: Rollout = client.post(&path, &request).await?;
        if args.wait {
            rollout = wait_for_end(&client, &path, args.timeout, printer).await?;
        }
        if args.output.format.is_table() {
            let done = past(action);
            printer.line(&format!("rollout/{} {} {done}", args.name, number(&rollout)));
            printer.note(&format!("{}; next: {}", phase(&rollout), rollout.next));
        } else {
            printer.result(args.output.format, &rollout, || tree(&rollout))?;
        }
        match rollout.phase.as_str() {
            "Failed" | "Held" if args.wait => bail!("{}", rollout.message),
            _ => Ok(()),
        }
    })
}

fn past(action: &str) -> &str {
    match action {
        "promote" => "promoted",
        "pause" => "paused",
        "resume" => "resumed",
        "abort" => "aborted",
        "retry" => "tried again",
        "rollback" => "rolled back",
        "skip" => "continues without the destination",
        "adopt" => "adopted",
        other => other,
    }
}

/// Waits until a rollout has ended, or waits for an operator.
async fn wait_for_end(
    client: &Client,
    path: &str,
    seconds: u64,
    printer: &Printer,
) -> anyhow::Result<Rollout> {
    let wait = Wait::new(seconds, POLL_EVERY, printer);
    let client = client.with_deadline(wait.deadline());
    wait.until(
        "",
        async || {
            let rollout: Rollout = client.get(path).await?;
            let is_over = rollout.phase != "Running" || rollout.paused || rollout.awaits_approval;
            if is_over {
                return Ok(Poll::Ready(rollout));
            }
            let stage = or_none(rollout.stage.as_ref());
            Ok(Poll::Pending(format!(
                "stage {stage}: {}/{}",
                rollout.stages_passed, rollout.stages_total
            )))
        },
        |state| format!("timed out after {seconds} s waiting for the rollout ({state})"),
    )
    .await
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rollout() -> Rollout {
        serde_json::from_value(json!({
            "application": "web", "generation": 7, "attempt": 1, "kind": "Stages", "phase": "Running",
            "message": "", "paused": false, "awaitsApproval": false, "syncHeld": false, "stage": "staging",
            "stagesPassed": 0, "stagesTotal": 1, "startedAt": "2026-11-29T00:00:00Z", "next": "the end",
            "stages": [{
                "name": "staging", "weight": 100, "phase": "Soaking", "soakMs": 600_000, "approval": true,
                "concurrentMax": 1, "failuresMax": 0, "members": [
                    {"cluster": "stg-1", "namespace": "app", "phase": "Soaking", "message": "", "connected": true,
                        "healthyForMs": 60_000, "reportAgeMs": 120_000},
                    {"cluster": "stg-2", "namespace": "app", "phase": "Passed", "message": "", "connected": true,
                        "healthyForMs": 600_000, "reportAgeMs": 120_000},
                ],
            }],
        }))
        .unwrap()
    }

    #[test]
    fn the_tree_shows_stages_with_their_clusters_and_how_long_they_soak() {
        let rows = tree(&rollout()).into_rows();

        let cells: Vec<[&str; 3]> = rows.iter().map(|row| [&*row[0], &*row[1], &*row[2]]).collect();
        assert_eq!(
            cells,
            [
                ["staging", "Soaking", "of 10m"],
                ["├─ stg-1/app", "Soaking", "3m"],
                ["└─ stg-2/app", "Passed", "10m"],
            ]
        );
        assert_eq!(rows[0][4], "needs approval");
    }

    #[test]
    fn the_phase_names_what_an_open_rollout_waits_for() {
        let open = rollout();
        assert_eq!((phase(&open), number(&open).as_str()), ("Running", "7.1"));
        assert_eq!(phase(&Rollout { paused: true, ..open.clone() }), "Paused");
        assert_eq!(phase(&Rollout { awaits_approval: true, ..open.clone() }), "AwaitingApproval");
        assert_eq!(phase(&Rollout { phase: "Failed".into(), paused: true, ..open }), "Failed");
    }
}
