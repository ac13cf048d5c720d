//! `attest gitops app diff`: the newest commit compared with the running state. Exit codes are those of kubectl diff.

use anyhow::bail;
use attest_documents::{Diff, List};

use super::application_path;
use crate::client::block_on;
use crate::exit::Exit;
use crate::hub_args::HubArgs;
use crate::human::{or_none, short_or_none};
use crate::printer::{OutputArgs, Printer, TextTable};

/// Exit code when there are differences.
const DIFFERENT: u8 = 1;
/// Exit code when the comparison failed.
const NOT_COMPARED: u8 = 2;

/// Prints the differences and ends with 0, 1 or 2.
pub(super) fn run(
    name: &str,
    output: OutputArgs,
    hub: &HubArgs,
    printer: &Printer,
) -> anyhow::Result<()> {
    diff(name, output, hub, printer).map_err(|error| match error.downcast_ref::<Exit>() {
        Some(_) => error,
        None => Exit::error(NOT_COMPARED, format!("{error:#}")),
    })
}

fn diff(name: &str, output: OutputArgs, hub: &HubArgs, printer: &Printer) -> anyhow::Result<()> {
    let client = hub.client()?;
    let diffs: List<Diff> = block_on(client.get(&format!("{}/diff", application_path(name))))?;
    let differ = diffs.items.iter().any(|diff| !diff.differences.is_empty());
    if output.format.is_table() {
        for diff in &diffs.items {
            print_diff(diff, printer);
        }
    } else {
        printer.result(output.format, &diffs, || {
            let mut table = TextTable::new(&["destination"]);
            for diff in diffs.items.iter().filter(|diff| !diff.differences.is_empty()) {
                table.row([format!("{}/{}", diff.cluster, diff.namespace)]);
            }
            table
        })?;
    }
    let failed = diffs.items.iter().find(|d| d.reason.is_some() && d.differences.is_empty());
    if let Some(Diff { cluster, namespace, reason, message, .. }) = failed {
        let (reason, message) = (or_none(reason.as_ref()), or_none(message.as_ref()));
        bail!("failed to compare {cluster}/{namespace}: {reason}: {message}");
    }
    if differ {
        Err(Exit::error(DIFFERENT, "the newest commit differs from the running state"))
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
    printer.line(&format!("--- {cluster}/{namespace} {}", short_or_none(from.as_deref())));
    printer.line(&format!("+++ {cluster}/{namespace} {}", short_or_none(to.as_deref())));
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
