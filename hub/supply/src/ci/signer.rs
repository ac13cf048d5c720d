//! The private key of CI: its location, which must be outside the repository.
//!
//! Nothing is signed here.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use attest_common::basics::keys::{KeyError, PEM_BYTES_MAX, PrivateKey};
use attest_common::basics::reason::Reason;
use zeroize::Zeroizing;

use crate::source::ATTEST_DIRECTORY;

/// Variable with the PEM text of the key.
pub const KEY_VARIABLE: &str = "ATTEST_SIGNING_KEY";
/// Variable with the path of the key file.
pub const KEY_FILE_VARIABLE: &str = "ATTEST_SIGNING_KEY_FILE";
/// Variable with the path of the operator's context, beside which the key is stored.
pub const CONTEXT_VARIABLE: &str = "ATTEST_CONFIG";
/// Name of the key file in the configuration directory.
pub const KEY_FILE: &str = "signing.key";
/// Maximum depth of a directory below `.attest` that is searched for private keys.
const SEARCH_DEPTH_MAX: usize = 8;
const PRIVATE_KEY_MARK: &[u8] = b"PRIVATE KEY-----";

/// Returns the operator's configuration directory: that of `ATTEST_CONFIG`, or `~/.config/attest`.
pub fn configuration_directory(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let Some(context) = non_empty(&variable, CONTEXT_VARIABLE).map(PathBuf::from) else {
        let home = non_empty(&variable, "HOME").map(PathBuf::from)?;
        return Some(home.join(".config").join("attest"));
    };
    match context.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => Some(parent.to_owned()),
        Some(_) | None => Some(PathBuf::from(".")),
    }
}

/// Returns the operator's context file: `ATTEST_CONFIG`, or `~/.config/attest/config`.
pub fn context_file(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    non_empty(&variable, CONTEXT_VARIABLE)
        .map(PathBuf::from)
        .or_else(|| configuration_directory(variable).map(|directory| directory.join("config")))
}

/// Reads the key from `ATTEST_SIGNING_KEY`, the file `ATTEST_SIGNING_KEY_FILE`, or `signing.key` in the configuration
/// directory. The file must be outside `root`, the work tree.
///
/// # Errors
/// [`SignerError`] names the searched locations and the remedy.
pub fn signing_key(
    root: &Path,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<PrivateKey, SignerError> {
    if let Some(text) = non_empty(&variable, KEY_VARIABLE) {
        let pem = Zeroizing::new(text.into_string().unwrap_or_default());
        return PrivateKey::from_pem(&pem)
            .map_err(|source| SignerError::Key { place: KEY_VARIABLE.to_owned(), source });
    }
    if let Some(file) = non_empty(&variable, KEY_FILE_VARIABLE) {
        return read_key(root, Path::new(&file));
    }
    let default = configuration_directory(&variable).map(|directory| directory.join(KEY_FILE));
    match default {
        Some(file) if file.exists() => read_key(root, &file),
        Some(file) => Err(SignerError::Missing { searched: format!(", {}", file.display()) }),
        None => Err(SignerError::Missing { searched: String::new() }),
    }
}

fn non_empty(variable: impl Fn(&str) -> Option<OsString>, name: &str) -> Option<OsString> {
    variable(name).filter(|value| !value.is_empty())
}

fn read_key(root: &Path, file: &Path) -> Result<PrivateKey, SignerError> {
    let location = file.canonicalize().map_err(|source| unreadable(file, source))?;
    if location.starts_with(root) {
        return Err(SignerError::InsideWorkTree { path: file.to_owned() });
    }
    let metadata = std::fs::metadata(&location).map_err(|source| unreadable(file, source))?;
    if metadata.len() > PEM_BYTES_MAX as u64 {
        return Err(invalid_key(file, KeyError::PrivateFormat));
    }
    let text = std::fs::read_to_string(&location).map_err(|source| unreadable(file, source))?;
    let pem = Zeroizing::new(text);
    PrivateKey::from_pem(&pem).map_err(|source| invalid_key(file, source))
}

fn unreadable(file: &Path, source: std::io::Error) -> SignerError {
    SignerError::Files { path: file.to_owned(), source }
}

fn invalid_key(file: &Path, source: KeyError) -> SignerError {
    SignerError::Key { place: file.display().to_string(), source }
}

/// Rejects private keys below `.attest/` of `root`, which would be committed with the receipts.
///
/// # Errors
/// [`SignerError::InsideWorkTree`] names the file.
pub fn refuse_keys_inside(root: &Path) -> Result<(), SignerError> {
    let mut pending = vec![(root.join(ATTEST_DIRECTORY), 0_usize)];
    while let Some((directory, depth)) = pending.pop() {
        // A directory that cannot be listed contains nothing that could be staged.
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            let path = entry.path();
            if metadata.is_dir() && depth < SEARCH_DEPTH_MAX {
                pending.push((path, depth + 1));
            } else if metadata.is_file()
                && metadata.len() <= PEM_BYTES_MAX as u64
                && contains_private_key(&path)
            {
                return Err(SignerError::InsideWorkTree { path });
            }
        }
    }
    Ok(())
}

fn contains_private_key(file: &Path) -> bool {
    let bytes = Zeroizing::new(std::fs::read(file).unwrap_or_default());
    bytes.windows(PRIVATE_KEY_MARK.len()).any(|window| window == PRIVATE_KEY_MARK)
}

/// A missing or unusable signing key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignerError {
    #[error(
        "no signing key in {KEY_VARIABLE}, {KEY_FILE_VARIABLE}{searched}; `attest key gen` creates one"
    )]
    Missing { searched: String },
    #[error(
        "private key {} is inside the repository, whose readers could use it to sign; move it out, and create a new \
         one if it was ever committed", .path.display()
    )]
    InsideWorkTree { path: PathBuf },
    #[error("the signing key in {place} is not valid")]
    Key {
        place: String,
        #[source]
        source: KeyError,
    },
    #[error("failed to read signing key {}", .path.display())]
    Files {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl SignerError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Missing { .. } => Reason::SigningKeyMissing,
            Self::InsideWorkTree { .. } => Reason::SigningKeyInRepository,
            Self::Key { source, .. } => source.reason(),
            Self::Files { .. } => Reason::SigningKeyUnreadable,
        }
    }
}
