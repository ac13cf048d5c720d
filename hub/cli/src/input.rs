//! Parsing and limits of flags and arguments that several commands have.

use std::path::Path;

use anyhow::Context as _;
use attest_common::basics::keys::PublicKey;
use clap::builder::RangedU64ValueParser;

/// Maximum of a `--timeout` flag, in seconds.
const WAIT_SECONDS_MAX: u64 = 24 * 60 * 60;
/// Maximum size of a file with a key or certificate, in bytes.
pub(crate) const SMALL_FILE_BYTES_MAX: u64 = 256 * 1024;

/// The parser of a `--timeout` flag.
pub(crate) fn wait_seconds() -> RangedU64ValueParser {
    RangedU64ValueParser::new().range(1..=WAIT_SECONDS_MAX)
}

/// A name as one segment of a URL path. Other characters become `~`, so that an invalid name matches nothing.
pub(crate) fn segment(name: &str) -> String {
    // A segment of dots alone would refer to another path.
    let is_dots = name.chars().all(|c| c == '.');
    name.chars()
        .map(|c| match c {
            '-' | '_' => c,
            '.' if !is_dots => c,
            c if c.is_ascii_alphanumeric() => c,
            _ => '~',
        })
        .collect()
}

/// A text as the value of a query parameter.
pub(crate) fn query_value(text: &str) -> String {
    let mut value = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            value.push(char::from(byte));
        } else {
            value.push_str(&format!("%{byte:02X}"));
        }
    }
    value
}

/// Reads a file of at most [`SMALL_FILE_BYTES_MAX`].
pub(crate) fn read_small(file: &Path) -> anyhow::Result<String> {
    read_text(file, SMALL_FILE_BYTES_MAX)
        .with_context(|| format!("failed to read {}", file.display()))
}

fn read_text(file: &Path, bytes_max: u64) -> anyhow::Result<String> {
    let length = std::fs::metadata(file)?.len();
    anyhow::ensure!(length <= bytes_max, "the file is longer than {bytes_max} bytes");
    Ok(std::fs::read_to_string(file)?)
}

/// Reads the public key in a file. Text before it is ignored.
pub(crate) fn read_public_key(file: &Path) -> anyhow::Result<PublicKey> {
    let text = read_small(file)?;
    let block = text.find("-----BEGIN").map_or(text.as_str(), |start| text.split_at(start).1);
    PublicKey::from_pem(block)
        .with_context(|| format!("{} does not contain exactly one public key", file.display()))
}
