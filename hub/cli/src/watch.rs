//! Prints a document once, or again whenever it has changed.

use std::time::Duration;

use serde::Serialize;

use crate::printer::{Format, Printer, Table, Watch};

/// How often a watching command asks.
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// Prints a document now, and with `watch` again whenever it has changed, until interrupted.
pub(crate) async fn show<T, F>(
    watch: Watch,
    printer: &Printer,
    ask: F,
    table: impl Fn(&T, Format) -> Table,
) -> anyhow::Result<()>
where
    T: Serialize,
    F: AsyncFn() -> anyhow::Result<T>,
{
    let Watch { output, watch } = watch;
    let mut shown: Vec<Vec<String>> = Vec::new();
    let mut widths = Vec::new();
    let mut first = true;
    loop {
        let document = ask().await?;
        let now = table(&document, output.format);
        let changed = now.rows_beside(&shown);
        if first || !changed.is_empty() {
            match output.format {
                Format::Table | Format::Wide if watch => {
                    printer.watched(&now, (!first).then_some(&changed), &mut widths);
                }
                Format::Table | Format::Wide | Format::Json | Format::Yaml | Format::Name => {
                    if output.format == Format::Yaml && !first {
                        printer.line("---");
                    }
                    printer.result(output.format, &document, || now.clone())?;
                }
            }
        }
        if !watch {
            return Ok(());
        }
        first = false;
        shown = now.into_rows();
        tokio::time::sleep(WATCH_EVERY).await;
    }
}
