//! `attest version`: which program this is, and what it speaks.

use serde::Serialize;

use crate::printer::{Output, Printer, Table};

/// Print versions
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    version: &'static str,
    rendering: &'static str,
    release: &'static str,
}

pub(crate) fn version(args: Args, printer: &Printer) -> anyhow::Result<()> {
    let Args { output } = args;
    let versions = Versions {
        version: env!("CARGO_PKG_VERSION"),
        rendering: attest_common::documents::release::RENDERING_TYPE,
        release: attest_common::documents::release::RELEASE_TYPE,
    };
    printer.result(output.format, &versions, || {
        let mut table = Table::new(&["name", "version"]);
        table.row(["attest", versions.version]);
        table.row(["rendering", versions.rendering]);
        table.row(["release", versions.release]);
        table
    })
}
