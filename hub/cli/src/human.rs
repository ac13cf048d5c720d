//! How ages, sizes of time and digests look to people, and how they are asked. No data, no decisions.

use std::io::{BufRead as _, IsTerminal as _};
use std::path::Path;

use attest_common::basics::ids::Timestamp;

use crate::exit::Exit;
use crate::printer::Printer;

const SECOND_MS: u64 = 1_000;
const MINUTE_MS: u64 = 60 * SECOND_MS;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;
/// Characters of a commit or digest that people compare.
const SHORT_CHARACTERS: usize = 12;
/// What stands for an absent value, as in kubectl.
pub(crate) const NONE: &str = "<none>";

/// `350ms`, `4s`, `12m`, `5h`, `3d`: one unit, as kubectl has it.
pub(crate) fn duration(ms: u64) -> String {
    match ms {
        0..SECOND_MS => format!("{ms}ms"),
        SECOND_MS..MINUTE_MS => format!("{}s", ms / SECOND_MS),
        MINUTE_MS..HOUR_MS => format!("{}m", ms / MINUTE_MS),
        HOUR_MS..DAY_MS => format!("{}h", ms / HOUR_MS),
        DAY_MS.. => format!("{}d", ms / DAY_MS),
    }
}

/// Time since `moment` by this machine's clock; for people only.
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

/// A value, or what stands for none.
pub(crate) fn or_none(value: Option<impl ToString>) -> String {
    value.map_or_else(|| NONE.to_owned(), |value| value.to_string())
}

/// Exit code when nobody was there to answer.
const UNANSWERED: u8 = 3;

/// Asks before something is lost: without a terminal, only `--yes` is a yes.
pub(crate) fn confirm_loss(question: &str, yes: bool, printer: &Printer) -> anyhow::Result<()> {
    if yes || std::io::stdin().is_terminal() {
        return confirm(question, yes, printer);
    }
    let message = format!("{question} Nobody is there to answer: nothing was changed; give --yes");
    Err(Exit::error(UNANSWERED, message))
}

/// Asks on a terminal; elsewhere, and with `--yes`, the answer is yes.
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
    Err(Exit::error(crate::printer::FAILED, "nothing was changed"))
}

/// A path as a shell reads it back.
pub(crate) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_one_unit() {
        for (ms, shown) in
            [(0, "0ms"), (999, "999ms"), (59_999, "59s"), (60_000, "1m"), (3_600_000, "1h")]
        {
            assert_eq!(duration(ms), shown);
        }
        assert_eq!(duration(49 * HOUR_MS), "2d");
        assert_eq!(milliseconds(12_345), "12.3ms");
        assert_eq!(short("sha256:0123456789abcdef"), "0123456789ab");
    }
}
