//! `attest gitops app diff`: the newest commit against what runs. Exit codes as of kubectl diff.

use anyhow::bail;
use attest_documents::{Diff, List};

use super::path;
use crate::client::block_on;
use crate::exit::Exit;
use crate::hub_args::HubArgs;
use crate::human::{NONE, or_none, short};
use crate::printer::{Format, Output, Printer, Table};

/// The newest commit differs from what runs.
const DIFFERENT: u8 = 1;
/// The question could not be answered.
const NOT_COMPARED: u8 = 2;

/// Prints the differences and ends with 0, 1 or 2.
pub(super) fn run(
    name: &str,
    output: Output,
    hub: &HubArgs,
    printer: &Printer,
) -> anyhow::Result<()> {
    diff(name, output, hub, printer).map_err(|error| match error.downcast_ref::<Exit>() {
        Some(_) => error,
        None => Exit::error(NOT_COMPARED, format!("{error:#}")),
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
