//! Printing of a document once, or after each change.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::block_on;
use crate::hub_args::HubArgs;
use crate::printer::{Format, Printer, TextTable, WatchArgs};

/// Interval of requests while watching.
const POLL_EVERY: Duration = Duration::from_millis(500);

/// Prints the list at `path` of the hub's API; with `watch`, prints it after each change until interrupted.
pub(crate) fn print_list<T: Serialize + DeserializeOwned>(
    path: &str,
    watch: WatchArgs,
    hub: &HubArgs,
    printer: &Printer,
    table: fn(&[T], Format) -> TextTable,
) -> anyhow::Result<()> {
    let client = hub.client()?;
    block_on(print_watched(
        watch,
        printer,
        async || client.list::<T>(path).await,
        |list, format| table(&list.items, format),
    ))
}

/// Prints a document; with `watch`, prints it after each change until interrupted.
pub(crate) async fn print_watched<T, F>(
    watch: WatchArgs,
    printer: &Printer,
    fetch: F,
    table: impl Fn(&T, Format) -> TextTable,
) -> anyhow::Result<()>
where
    T: Serialize,
    F: AsyncFn() -> anyhow::Result<T>,
{
    let WatchArgs { output, watch } = watch;
    let mut previous: Vec<Vec<String>> = Vec::new();
    let mut widths = Vec::new();
    let mut first = true;
    loop {
        let document = fetch().await?;
        let current = table(&document, output.format);
        let changed = current.changed_rows(&previous);
        if first || !changed.is_empty() {
            match output.format {
                Format::Table | Format::Wide if watch => {
                    printer.table_update(&current, (!first).then_some(&changed), &mut widths);
                }
                Format::Table | Format::Wide | Format::Json | Format::Yaml | Format::Name => {
                    if output.format == Format::Yaml && !first {
                        printer.line("---");
                    }
                    printer.result(output.format, &document, || current.clone())?;
                }
            }
        }
        if !watch {
            return Ok(());
        }
        first = false;
        previous = current.into_rows();
        tokio::time::sleep(POLL_EVERY).await;
    }
}
