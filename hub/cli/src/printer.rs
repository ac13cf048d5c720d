//! The only module that prints. Data goes to stdout, diagnostics to stderr.
//!
//! Tables look like kubectl's. There is no colour: a pipe receives what a terminal receives.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "printing is the purpose of this module; every other module calls it"
)]

use std::cell::OnceCell;
use std::io::{self, Write};
use std::process::ExitCode;

use attest_common::basics::json::escaped;
use serde::Serialize;

/// Exit code of a command that failed.
pub(crate) const FAILED: u8 = 1;
/// Exit code of a command line that cannot be parsed.
pub(crate) const USAGE: u8 = 2;
/// Columns that change as time passes.
const AGE_COLUMNS: [&str; 3] = ["AGE", "LAST SEEN", "CERTIFICATE EXPIRES"];
/// Spaces between two columns.
const COLUMN_GAP: usize = 3;

/// Output format of a result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Table
    #[default]
    Table,
    /// Table with additional columns
    Wide,
    /// JSON, a stable interface
    Json,
    /// YAML, the same documents
    Yaml,
    /// Names only, one per line
    Name,
}

impl Format {
    /// Returns true for the formats that are tables.
    pub(crate) fn is_table(self) -> bool {
        matches!(self, Self::Table | Self::Wide)
    }
}

/// The flag `-o`, to be flattened into arguments.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct OutputArgs {
    /// Output format
    #[arg(short = 'o', long = "output", value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) format: Format,
}

/// The flags of resources that can be watched, to be flattened into arguments.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct WatchArgs {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    /// Watch for changes and print them
    #[arg(short, long)]
    pub(crate) watch: bool,
}

/// Rows under a header, as printed by [`Printer::table`].
#[derive(Clone, Debug)]
pub(crate) struct TextTable {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl TextTable {
    /// A table with these columns.
    pub(crate) fn new(header: &[&str]) -> Self {
        Self { header: header.iter().map(|name| name.to_uppercase()).collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// Indexes of the rows that are not among `previous`. Columns of ages are not compared.
    pub(crate) fn changed_rows(&self, previous: &[Vec<String>]) -> Vec<usize> {
        let rows = self.rows.iter().enumerate();
        let changed = rows.filter(|(_, row)| !previous.iter().any(|old| self.is_same(row, old)));
        changed.map(|(index, _)| index).collect()
    }

    fn is_same(&self, row: &[String], other: &[String]) -> bool {
        let cells = row.iter().zip(other);
        row.len() == other.len()
            && self.header.iter().zip(cells).all(|(column, (cell, other))| {
                AGE_COLUMNS.contains(&column.as_str()) || cell == other
            })
    }

    /// The lines of the table, header first. Columns are at least as wide as `widths`, which grow as needed.
    fn lines(&self, widths: &mut Vec<usize>) -> Vec<String> {
        let rows: Vec<Vec<String>> = std::iter::once(&self.header)
            .chain(&self.rows)
            .map(|row| row.iter().map(|cell| cell.replace(['\t', '\n', '\r'], " ")).collect())
            .collect();
        widths.resize(widths.len().max(self.header.len()), 0);
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        rows.iter().map(|row| padded(row, widths)).collect()
    }

    /// Returns true without rows.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The rows, without the header.
    pub(crate) fn into_rows(self) -> Vec<Vec<String>> {
        self.rows
    }
}

/// A line of a description: a name and its value.
pub(crate) fn field(name: &str, value: &str) -> String {
    format!("{:<14}{value}", format!("{name}:"))
}

/// A row in columns of these widths; the last column is not padded.
fn padded(row: &[String], widths: &[usize]) -> String {
    let Some((last, cells)) = row.split_last() else { return String::new() };
    let cells = cells.iter().zip(widths);
    let mut line: String = cells
        .map(|(cell, width)| format!("{cell:<width$}{:COLUMN_GAP$}", "", width = *width))
        .collect();
    line.push_str(last);
    line
}

/// Returns true for a character that moves the cursor, sets the clipboard or changes the direction of text.
/// Printed text comes from remotes, and terminals interpret such characters.
fn is_terminal_control(c: char) -> bool {
    let keeps_lines = matches!(c, '\n' | '\t');
    c.is_control() && !keeps_lines || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Replaces terminal controls.
fn sanitize(text: &str) -> String {
    text.replace(is_terminal_control, "\u{fffd}")
}

/// Destination of results and diagnostics. Remembers the first failure to write a result.
#[derive(Debug)]
pub(crate) struct Printer {
    failure: OnceCell<io::Error>,
}

impl Printer {
    pub(crate) fn new() -> Self {
        Self { failure: OnceCell::new() }
    }

    /// Prints data without adding a line end.
    pub(crate) fn text(&self, text: &str) {
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(sanitize(text).as_bytes()).and_then(|()| stdout.flush());
        if let Err(error) = written {
            // Later failures have the same cause.
            let _ = self.failure.set(error);
        }
    }

    /// Prints one line of data.
    pub(crate) fn line(&self, text: &str) {
        self.text(&format!("{text}\n"));
    }

    /// Prints one line of diagnostics.
    pub(crate) fn note(&self, text: &str) {
        // A failure to write to stderr cannot be reported.
        let _ = writeln!(io::stderr().lock(), "{}", sanitize(text));
    }

    /// Prints a problem that does not stop the command.
    pub(crate) fn warning(&self, text: &str) {
        self.note(&format!("warning: {text}"));
    }

    /// Prints the error that ended the command, with its causes.
    pub(crate) fn error(&self, error: &anyhow::Error) {
        self.note(&format!("error: {error}"));
        for cause in error.chain().skip(1) {
            self.note(&format!("  caused by: {cause}"));
        }
    }

    /// Prints a table.
    pub(crate) fn table(&self, table: &TextTable) {
        self.table_update(table, None, &mut Vec::new());
    }

    /// Prints a table, or only its `changed` rows, in the columns printed before.
    pub(crate) fn table_update(
        &self,
        table: &TextTable,
        changed: Option<&[usize]>,
        widths: &mut Vec<usize>,
    ) {
        let lines = table.lines(widths);
        let text: String = match changed {
            None => lines.iter().map(|line| format!("{line}\n")).collect(),
            Some(changed) => {
                let rows = lines.iter().skip(1).enumerate();
                let rows = rows.filter(|(index, _)| changed.contains(index));
                rows.map(|(_, line)| format!("{line}\n")).collect()
            }
        };
        self.text(&text);
    }

    /// Prints `document` in `format`: as `table` for people; names are the table's first column.
    pub(crate) fn result<T: Serialize>(
        &self,
        format: Format,
        document: &T,
        table: impl FnOnce() -> TextTable,
    ) -> anyhow::Result<()> {
        match format {
            Format::Table | Format::Wide => {
                let table = table();
                self.table(&table);
                if table.is_empty() {
                    self.note("no resources found");
                }
            }
            Format::Json => {
                self.line(&escaped(&serde_json::to_string_pretty(document)?, is_terminal_control))
            }
            Format::Yaml => self.text(&serde_saphyr::to_string(document)?),
            Format::Name => {
                for row in table().rows {
                    self.line(row.first().map_or("", String::as_str));
                }
            }
        }
        Ok(())
    }

    /// The exit code: `code`, unless a result could not be printed.
    pub(crate) fn finish(self, code: ExitCode) -> ExitCode {
        match self.failure.into_inner() {
            None => code,
            // The reader closed the pipe, as in `attest … | head`.
            Some(error) if error.kind() == io::ErrorKind::BrokenPipe => code,
            Some(error) => {
                let _ = writeln!(io::stderr().lock(), "error: failed to write the result: {error}");
                ExitCode::from(FAILED)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clusters(state: &str, age: &str) -> TextTable {
        let mut table = TextTable::new(&["name", "state", "last seen"]);
        table.row(["production", "Connected", "1s ago"]);
        table.row(["staging", state, age]);
        table
    }

    #[test]
    fn what_a_remote_says_commands_no_terminal_and_json_keeps_it() {
        let said = "v1\u{1b}]52;c;aGk=\u{7}\u{9b}2J \u{202e}ok\r\nnext\tcolumn";

        assert_eq!(
            sanitize(said),
            "v1\u{fffd}]52;c;aGk=\u{fffd}\u{fffd}2J \u{fffd}ok\u{fffd}\nnext\tcolumn"
        );
        let json = serde_json::to_string_pretty(&[said]).unwrap();
        let json = escaped(&json, is_terminal_control);
        assert!(!json.contains(is_terminal_control));
        let read: Vec<String> = serde_json::from_str(&json).unwrap();
        assert_eq!(read, [said]);
    }

    #[test]
    fn a_row_that_has_only_grown_older_is_not_a_change() {
        let before = clusters("Connected", "1s ago").into_rows();

        assert!(clusters("Connected", "2s ago").changed_rows(&before).is_empty());
        assert_eq!(clusters("Disconnected", "2s ago").changed_rows(&before), [1]);
    }

    #[test]
    fn what_a_watch_adds_stands_under_the_columns_that_it_began_with() {
        let mut widths = Vec::new();
        let first = clusters("Disconnected", "1s ago").lines(&mut widths);

        let later = clusters("Connected", "now").lines(&mut widths);

        assert_eq!(
            first,
            [
                "NAME         STATE          LAST SEEN",
                "production   Connected      1s ago",
                "staging      Disconnected   1s ago",
            ]
        );
        assert_eq!(later.last().unwrap(), "staging      Connected      now");
    }
}
