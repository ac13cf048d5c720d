//! Ages, durations and digests as text for people, and confirmation prompts.

use std::io::{BufRead as _, IsTerminal as _};
use std::path::Path;

use attest_common::basics::ids::Timestamp;

use crate::exit::Exit;
use crate::printer::Printer;

const SECOND_MS: u64 = 1_000;
const MINUTE_MS: u64 = 60 * SECOND_MS;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;
/// Characters shown of a commit or digest.
const SHORT_CHARACTERS: usize = 12;
/// Text for an absent value, as in kubectl.
pub(crate) const NONE: &str = "<none>";

/// A duration in one unit, as in kubectl: `350ms`, `4s`, `12m`, `5h`, `3d`.
pub(crate) fn duration(ms: u64) -> String {
    match ms {
        0..SECOND_MS => format!("{ms}ms"),
        SECOND_MS..MINUTE_MS => format!("{}s", ms / SECOND_MS),
        MINUTE_MS..HOUR_MS => format!("{}m", ms / MINUTE_MS),
        HOUR_MS..DAY_MS => format!("{}h", ms / HOUR_MS),
        DAY_MS.. => format!("{}d", ms / DAY_MS),
    }
}

/// Time since `moment` by this machine's clock.
pub(crate) fn age(moment: Timestamp) -> String {
    let ms = Timestamp::now().as_millisecond().saturating_sub(moment.as_millisecond());
    duration(u64::try_from(ms).unwrap_or(0))
}

/// Time until `moment`; `expired` when it is past.
pub(crate) fn until(moment: Timestamp) -> String {
    let ms = moment.as_millisecond().saturating_sub(Timestamp::now().as_millisecond());
    u64::try_from(ms).map_or_else(|_| "expired".to_owned(), duration)
}

/// Microseconds as milliseconds with one decimal.
pub(crate) fn milliseconds(us: u64) -> String {
    format!("{}.{}ms", us / 1000, us % 1000 / 100)
}

/// The first characters of a commit or of a digest's hexadecimal part.
pub(crate) fn short(text: &str) -> String {
    let hex = text.rsplit(':').next().unwrap_or(text);
    hex.chars().take(SHORT_CHARACTERS).collect()
}

/// The first characters of a commit or digest, or [`NONE`].
pub(crate) fn short_or_none(text: Option<&str>) -> String {
    text.map_or_else(|| NONE.to_owned(), short)
}

/// A value, or [`NONE`].
pub(crate) fn or_none(value: Option<impl ToString>) -> String {
    value.map_or_else(|| NONE.to_owned(), |value| value.to_string())
}

/// Exit code of a command that needs a confirmation and has no terminal.
const UNCONFIRMED: u8 = 3;

/// Asks for confirmation of a loss. Without a terminal, only `--yes` confirms it.
pub(crate) fn confirm_loss(question: &str, yes: bool, printer: &Printer) -> anyhow::Result<()> {
    if yes { Ok(()) } else { confirm_with(question, "--yes", printer) }
}

/// Asks for a confirmation that without a terminal only `flag` gives.
pub(crate) fn confirm_with(question: &str, flag: &str, printer: &Printer) -> anyhow::Result<()> {
    if std::io::stdin().is_terminal() {
        return confirm(question, false, printer);
    }
    let message = format!(
        "{question} standard input is not a terminal; nothing was changed; pass {flag} to confirm"
    );
    Err(Exit::error(UNCONFIRMED, message))
}

/// Asks for confirmation on a terminal. Elsewhere, and with `--yes`, the answer is yes.
pub(crate) fn confirm(question: &str, yes: bool, printer: &Printer) -> anyhow::Result<()> {
    if yes || !std::io::stdin().is_terminal() {
        return Ok(());
    }
    printer.note(&format!("{question} [y/N]"));
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(Exit::error(crate::printer::FAILED, "not confirmed; nothing was changed"))
}

/// A path quoted for a shell.
pub(crate) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    if text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+:@".contains(c)) {
        return text;
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_one_unit() {
        for (ms, text) in
            [(0, "0ms"), (999, "999ms"), (59_999, "59s"), (60_000, "1m"), (3_600_000, "1h")]
        {
            assert_eq!(duration(ms), text);
        }
        assert_eq!(duration(49 * HOUR_MS), "2d");
        assert_eq!(milliseconds(12_345), "12.3ms");
        assert_eq!(short("sha256:0123456789abcdef"), "0123456789ab");
    }
}
