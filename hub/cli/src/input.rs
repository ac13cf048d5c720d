//! Values of flags and arguments: read, limited and checked for every command alike.

use std::path::Path;

use anyhow::Context as _;
use attest_common::basics::keys::PublicKey;
use clap::builder::RangedU64ValueParser;

/// Longest wait that a flag may ask for, in seconds.
const WAIT_SECONDS_MAX: u64 = 24 * 60 * 60;
/// Largest file with a key or certificate that is read, in bytes.
pub(crate) const SMALL_FILE_BYTES_MAX: u64 = 256 * 1024;

/// Reads a `--timeout`.
pub(crate) fn wait_seconds() -> RangedU64ValueParser {
    RangedU64ValueParser::new().range(1..=WAIT_SECONDS_MAX)
}

/// A name as one segment of a path; a name that is none stays one that nothing has.
pub(crate) fn segment(name: &str) -> String {
    // Segments of dots alone mean another place.
    let dots = name.chars().all(|c| c == '.');
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_') || (c == '.' && !dots);
    name.chars().map(|c| if safe(c) { c } else { '~' }).collect()
}

/// Text of a file that cannot be large.
pub(crate) fn read_small(file: &Path) -> anyhow::Result<String> {
    let cannot = || format!("cannot read {}", file.display());
    let length = std::fs::metadata(file).with_context(cannot)?.len();
    anyhow::ensure!(
        length <= SMALL_FILE_BYTES_MAX,
        "{} is longer than {SMALL_FILE_BYTES_MAX} bytes",
        file.display()
    );
    std::fs::read_to_string(file).with_context(cannot)
}

/// The one public key in a file, whatever is written around it.
pub(crate) fn read_public_key(file: &Path) -> anyhow::Result<PublicKey> {
    let text = read_small(file)?;
    let block = text.find("-----BEGIN").map_or(text.as_str(), |start| text.split_at(start).1);
    PublicKey::from_pem(block)
        .with_context(|| format!("{} does not hold one public key", file.display()))
}
