//! The private key of CI: where it is found, and that it does not lie in the repository.
//!
//! Nothing is signed here.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use attest_common::basics::keys::{KeyError, PEM_BYTES_MAX, PrivateKey};
use attest_common::basics::reason::Reason;
use zeroize::Zeroizing;

use crate::source::ATTEST_DIRECTORY;

/// Variable with the key's PEM text.
pub const KEY_VARIABLE: &str = "ATTEST_SIGNING_KEY";
/// Variable with the path of the key's file.
pub const KEY_FILE_VARIABLE: &str = "ATTEST_SIGNING_KEY_FILE";
/// Variable with the path of the operator's context; the key lies beside it.
pub const CONTEXT_VARIABLE: &str = "ATTEST_CONFIG";
/// The key's file in the configuration directory.
pub const KEY_FILE: &str = "signing.key";
/// Deepest directory below `.attest` that is searched for private keys.
const SEARCH_DEPTH_MAX: usize = 8;
const PRIVATE_MARK: &[u8] = b"PRIVATE KEY-----";

/// The operator's configuration directory: that of `ATTEST_CONFIG`, else `~/.config/attest`.
pub fn configuration_directory(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    match set(CONTEXT_VARIABLE) {
        Some(file) => Some(match file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            Some(_) | None => PathBuf::from("."),
        }),
        None => set("HOME").map(|home| home.join(".config").join("attest")),
    }
}

/// The operator's context file: `ATTEST_CONFIG`, else `~/.config/attest/config`.
pub fn context_file(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let named = variable(CONTEXT_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
    named.or_else(|| configuration_directory(variable).map(|directory| directory.join("config")))
}

/// The key from `ATTEST_SIGNING_KEY`, else the file `ATTEST_SIGNING_KEY_FILE`, else `signing.key` in the
/// configuration directory. `root` is the work tree, which must not hold it.
///
/// # Errors
/// [`SignerError`] says where it was looked for and what to do.
pub fn signing_key(
    root: &Path,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<PrivateKey, SignerError> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    if let Some(text) = set(KEY_VARIABLE) {
        let text = Zeroizing::new(text.into_string().unwrap_or_default());
        return PrivateKey::from_pem(&text)
            .map_err(|source| SignerError::Key { place: KEY_VARIABLE.to_owned(), source });
    }
    let named = set(KEY_FILE_VARIABLE).map(PathBuf::from);
    let default = configuration_directory(&variable).map(|directory| directory.join(KEY_FILE));
    let file = match (named, default) {
        (Some(file), _) => file,
        (None, Some(file)) if file.exists() => file,
        (None, default) => {
            let looked = default.map_or_else(String::new, |file| format!(" or {}", file.display()));
            return Err(SignerError::Missing { looked });
        }
    };
    read_key(root, &file)
}

fn read_key(root: &Path, file: &Path) -> Result<PrivateKey, SignerError> {
    let failed = |source| SignerError::Files { path: file.to_owned(), source };
    let place = file.canonicalize().map_err(failed)?;
    if place.starts_with(root) {
        return Err(SignerError::InsideWorkTree { path: file.to_owned() });
    }
    let metadata = std::fs::metadata(&place).map_err(failed)?;
    let key_error = |source| SignerError::Key { place: file.display().to_string(), source };
    if metadata.len() > PEM_BYTES_MAX as u64 {
        return Err(key_error(KeyError::PrivateFormat));
    }
    let text = Zeroizing::new(std::fs::read_to_string(&place).map_err(failed)?);
    PrivateKey::from_pem(&text).map_err(key_error)
}

/// Refuses private keys under `.attest/` of `root`, which would be committed with the receipts.
///
/// # Errors
/// [`SignerError::InsideWorkTree`] names the file.
pub fn refuse_keys_inside(root: &Path) -> Result<(), SignerError> {
    let mut open = vec![(root.join(ATTEST_DIRECTORY), 0_usize)];
    while let Some((directory, depth)) = open.pop() {
        // A directory that is not there or cannot be listed holds nothing that could be staged.
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            let path = entry.path();
            if metadata.is_dir() && depth < SEARCH_DEPTH_MAX {
                open.push((path, depth + 1));
            } else if metadata.is_file() && metadata.len() <= PEM_BYTES_MAX as u64 {
                let bytes = Zeroizing::new(std::fs::read(&path).unwrap_or_default());
                if bytes.windows(PRIVATE_MARK.len()).any(|window| window == PRIVATE_MARK) {
                    return Err(SignerError::InsideWorkTree { path });
                }
            }
        }
    }
    Ok(())
}

/// Why there is no key to sign with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignerError {
    #[error(
        "no signing key: looked at {KEY_VARIABLE}, {KEY_FILE_VARIABLE}{looked}; `attest key gen` makes one"
    )]
    Missing { looked: String },
    #[error(
        "private key {} lies inside the repository: whoever reads the repository could sign; move it out, and make a \
         new one if it was ever committed", .path.display()
    )]
    InsideWorkTree { path: PathBuf },
    #[error("the signing key in {place} cannot be used")]
    Key {
        place: String,
        #[source]
        source: KeyError,
    },
    #[error("cannot read signing key {}", .path.display())]
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
