//! The only file that prints. Data goes to standard output, talk to standard error.
//!
//! Tables look like kubectl's; there is no colour, so a pipe sees what a terminal sees.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "printing is this file's one task; everybody else asks it"
)]

use std::io::{self, Write};
use std::process::ExitCode;

use attest_common::basics::json::escaped;
use attest_common::basics::locked::Locked;
use serde::Serialize;

/// Exit code of a command that failed.
pub(crate) const FAILED: u8 = 1;
/// Exit code of a command line that cannot be read.
pub(crate) const USAGE: u8 = 2;
/// Columns that change by themselves.
const AGES: [&str; 3] = ["AGE", "LAST SEEN", "CERTIFICATE EXPIRES"];
/// Spaces between two columns.
const COLUMN_GAP: usize = 3;

/// How data is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Columns for people
    #[default]
    Table,
    /// Columns for people, more of them
    Wide,
    /// JSON, a stable interface
    Json,
    /// YAML, the same documents
    Yaml,
    /// Names only, one a line
    Name,
}

/// The flag `-o`, to be flattened into arguments.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Output {
    /// How to print the result
    #[arg(short = 'o', long = "output", value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) format: Format,
}

/// The flags of what can be watched, to be flattened into arguments.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Watch {
    #[command(flatten)]
    pub(crate) output: Output,
    /// Go on and print what changes
    #[arg(short, long)]
    pub(crate) watch: bool,
}

/// Rows under a header, as [`Printer::table`] prints them.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table whose columns have these names.
    pub(crate) fn new(header: &[&str]) -> Self {
        Self { header: header.iter().map(|name| name.to_uppercase()).collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// Which rows are not among `others`, by position. That time has passed is no difference.
    pub(crate) fn rows_beside(&self, others: &[Vec<String>]) -> Vec<usize> {
        let is_same = |row: &Vec<String>, other: &Vec<String>| {
            let cells = self.header.iter().zip(row.iter().zip(other));
            row.len() == other.len()
                && cells
                    .into_iter()
                    .all(|(name, (cell, other))| AGES.contains(&name.as_str()) || cell == other)
        };
        let is_new = |row: &Vec<String>| !others.iter().any(|other| is_same(row, other));
        let rows = self.rows.iter().enumerate().filter(|(_, row)| is_new(row));
        rows.map(|(position, _)| position).collect()
    }

    /// Its lines, the header first, in columns at least as wide as `widths`, which grow to what they are now.
    fn lines(&self, widths: &mut Vec<usize>) -> Vec<String> {
        let clean = |cell: &String| cell.replace(['\t', '\n', '\r'], " ");
        let all = std::iter::once(&self.header).chain(&self.rows);
        let all: Vec<Vec<String>> = all.map(|row| row.iter().map(clean).collect()).collect();
        widths.resize(widths.len().max(self.header.len()), 0);
        for row in &all {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        let line = |row: &Vec<String>| {
            let last = row.len().saturating_sub(1);
            let cells = row.iter().zip(widths.iter()).enumerate();
            let padded = cells.map(|(column, (cell, width))| {
                if column == last {
                    return cell.clone();
                }
                format!("{cell:<width$}{:COLUMN_GAP$}", "", width = *width)
            });
            padded.collect::<String>()
        };
        all.iter().map(line).collect()
    }

    /// True without rows.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The rows alone.
    pub(crate) fn into_rows(self) -> Vec<Vec<String>> {
        self.rows
    }
}

/// Characters by which a text moves the cursor, sets the clipboard or turns the order of what is read.
/// What is printed came from remotes, and a terminal obeys.
fn commands_terminal(c: char) -> bool {
    let keeps_lines = matches!(c, '\n' | '\t');
    c.is_control() && !keeps_lines || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A text that a terminal only shows.
fn shown(text: &str) -> String {
    text.replace(commands_terminal, "\u{fffd}")
}

/// Where results and talk go. A reader that has gone away is remembered, not shouted at.
#[derive(Debug)]
pub(crate) struct Printer {
    failed: Locked<Option<io::Error>>,
}

impl Printer {
    pub(crate) fn new() -> Self {
        Self { failed: Locked::new(None) }
    }

    /// Data, without an added line end.
    pub(crate) fn text(&self, text: &str) {
        let text = shown(text);
        let mut stdout = io::stdout().lock();
        self.keep(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()));
    }

    /// One line of data.
    pub(crate) fn line(&self, text: &str) {
        self.text(&format!("{text}\n"));
    }

    /// One line of talk.
    pub(crate) fn note(&self, text: &str) {
        // Nobody can be told that standard error is gone.
        let _ = writeln!(io::stderr().lock(), "{}", shown(text));
    }

    /// Talk about something that is not right and does not stop the command.
    pub(crate) fn warning(&self, text: &str) {
        self.note(&format!("warning: {text}"));
    }

    /// What ended the command, with its causes.
    pub(crate) fn failure(&self, error: &anyhow::Error) {
        self.note(&format!("error: {error}"));
        for cause in error.chain().skip(1) {
            self.note(&format!("  because: {cause}"));
        }
    }

    /// Columns for people.
    pub(crate) fn table(&self, table: &Table) {
        self.watched(table, None, &mut Vec::new());
    }

    /// Columns for people, and where only some rows are `new`, those alone, under the columns printed before.
    pub(crate) fn watched(&self, table: &Table, new: Option<&[usize]>, widths: &mut Vec<usize>) {
        let lines = table.lines(widths);
        let is_meant = |line: usize| match (new, line.checked_sub(1)) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(new), Some(row)) => new.contains(&row),
        };
        let meant = lines.iter().enumerate().filter(|(line, _)| is_meant(*line));
        self.text(&meant.map(|(_, line)| format!("{line}\n")).collect::<String>());
    }

    /// `document` in `format`, `table` when that is for people; names are the table's first column.
    pub(crate) fn result<T: Serialize>(
        &self,
        format: Format,
        document: &T,
        table: impl FnOnce() -> Table,
    ) -> anyhow::Result<()> {
        match format {
            Format::Table | Format::Wide => {
                let table = table();
                self.table(&table);
                if table.is_empty() {
                    self.note("there is none yet");
                }
            }
            Format::Json => {
                self.line(&escaped(&serde_json::to_string_pretty(document)?, commands_terminal))
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

    /// The exit code, when what was to be printed could be printed.
    pub(crate) fn finish(self, code: ExitCode) -> ExitCode {
        let failed = self.failed.into_inner();
        match failed {
            // The reader had enough (`attest … | head`): that is its business.
            None => code,
            Some(error) if error.kind() == io::ErrorKind::BrokenPipe => code,
            Some(error) => {
                let _ = writeln!(io::stderr().lock(), "error: cannot write the result: {error}");
                ExitCode::from(FAILED)
            }
        }
    }

    fn keep(&self, written: io::Result<()>) {
        if let Err(error) = written {
            let mut failed = self.failed.lock();
            failed.get_or_insert(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(state: &str, age: &str) -> Table {
        let mut table = Table::new(&["name", "state", "last seen"]);
        table.row(["production", "Connected", "1s ago"]);
        table.row(["staging", state, age]);
        table
    }

    #[test]
    fn what_a_remote_says_commands_no_terminal_and_json_keeps_it() {
        let said = "v1\u{1b}]52;c;aGk=\u{7}\u{9b}2J \u{202e}ok\r\nnext\tcolumn";

        assert_eq!(
            shown(said),
            "v1\u{fffd}]52;c;aGk=\u{fffd}\u{fffd}2J \u{fffd}ok\u{fffd}\nnext\tcolumn"
        );
        let json = serde_json::to_string_pretty(&[said]).unwrap();
        let json = escaped(&json, commands_terminal);
        assert!(!json.contains(commands_terminal));
        let read: Vec<String> = serde_json::from_str(&json).unwrap();
        assert_eq!(read, [said]);
    }

    #[test]
    fn a_row_that_has_only_grown_older_is_not_a_change() {
        let before = seen("Connected", "1s ago").into_rows();

        assert!(seen("Connected", "2s ago").rows_beside(&before).is_empty());
        assert_eq!(seen("Disconnected", "2s ago").rows_beside(&before), [1]);
    }

    #[test]
    fn what_a_watch_adds_stands_under_the_columns_that_it_began_with() {
        let mut widths = Vec::new();
        let first = seen("Disconnected", "1s ago").lines(&mut widths);

        let later = seen("Connected", "now").lines(&mut widths);

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
