//! `attest hub config`: the settings of a hub in force.

use attest_documents::HubConfiguration;

use crate::client::block_on;
use crate::hub_args::HubArgs;
use crate::printer::{OutputArgs, Printer, TextTable};

#[derive(Debug, clap::Args)]
pub(super) struct ConfigArgs {
    #[command(flatten)]
    hub: HubArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn show(args: &ConfigArgs, printer: &Printer) -> anyhow::Result<()> {
    let client = args.hub.client()?;
    let configuration: HubConfiguration = block_on(client.get("/v1/configuration"))?;
    printer.result(args.output.format, &configuration, || {
        let mut table = TextTable::new(&["name", "value", "source"]);
        for setting in &configuration.settings {
            table.row([&setting.name, &setting.value, &setting.source]);
        }
        table
    })?;
    for problem in &configuration.problems {
        let effect = if problem.refused { "; the previous ConfigMap stays in force" } else { "" };
        let (field, message, reason) = (&problem.field, &problem.message, &problem.reason);
        printer.warning(&format!("{field}: {message} ({reason}){effect}"));
    }
    Ok(())
}
