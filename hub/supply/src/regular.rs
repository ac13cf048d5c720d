//! Reads regular files only: opening a pipe waits for its other end, and a device may have no end.

use std::io::{Error, ErrorKind};
use std::path::Path;

/// Returns the bytes of a regular file, also through a symbolic link.
pub(crate) fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    std::fs::read(path)
}
