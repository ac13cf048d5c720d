//! `attest version`: the versions of the program and of the formats that it reads and writes.

use serde::Serialize;

use crate::printer::{OutputArgs, Printer, TextTable};

/// Print version information
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct VersionArgs {
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    version: &'static str,
    rendering: &'static str,
    release: &'static str,
}

pub(crate) fn run(args: VersionArgs, printer: &Printer) -> anyhow::Result<()> {
    let VersionArgs { output } = args;
    let versions = Versions {
        version: env!("CARGO_PKG_VERSION"),
        rendering: attest_common::documents::release::RENDERING_TYPE,
        release: attest_common::documents::release::RELEASE_TYPE,
    };
    printer.result(output.format, &versions, || {
        let mut table = TextTable::new(&["name", "version"]);
        table.row(["attest", versions.version]);
        table.row(["rendering", versions.rendering]);
        table.row(["release", versions.release]);
        table
    })
}
