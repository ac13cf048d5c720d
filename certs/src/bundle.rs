//! A certificate chain with its private key, in memory and as PEM files.
//!
//! Files are written atomically and are readable by their owner only. Reading checks that the texts are
//! PEM of the right kind; [`crate::tls`] decides which chains are trusted.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use attest_common::basics::reason::Reason;
use data_encoding::BASE64;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

/// Maximum number of certificates in one chain.
pub const CHAIN_CERTIFICATES_MAX: usize = 4;
/// Maximum size of a PEM file, in bytes.
pub const PEM_BYTES_MAX: u64 = 64 * 1024;

const PEM_LINE_CHARACTERS: usize = 64;
const PRIVATE_FILE_MODE: u32 = 0o600;

/// A chain, leaf first and authority last, and the key of its leaf.
pub struct Bundle {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Bundle {
    /// Combines chain and key; rustls checks that they match when a configuration is built.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Self {
        Self { chain, key }
    }

    /// Reads PEM texts.
    ///
    /// # Errors
    /// [`BundleError::Chain`] or [`BundleError::Key`], for the malformed part.
    pub fn from_pem(chain_pem: &str, key_pem: &str) -> Result<Self, BundleError> {
        let chain = chain_from_pem(chain_pem)?;
        let key =
            PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|_| BundleError::Key)?;
        Ok(Self { chain, key })
    }

    /// Reads `<stem>.crt` and `<stem>.key` of a directory.
    ///
    /// # Errors
    /// When a file is missing, too large or not PEM.
    pub fn load(directory: &Path, stem: &str) -> Result<Self, BundleError> {
        let (chain, key) = paths(directory, stem);
        Self::from_pem(&read_pem(&chain)?, &read_pem(&key)?)
    }

    /// Writes `<stem>.key`, then `<stem>.crt`, each atomically and with mode 0600.
    ///
    /// # Errors
    /// [`BundleError::Write`], naming the file.
    pub fn save(&self, directory: &Path, stem: &str) -> Result<(), BundleError> {
        let (chain, key) = paths(directory, stem);
        write_private(&key, self.key_pem().as_bytes())?;
        write_private(&chain, self.chain_pem().as_bytes())
    }

    /// The chain, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The last certificate: the authority, when the chain was issued by one.
    pub fn authority(&self) -> Option<&CertificateDer<'static>> {
        self.chain.get(1..).and_then(<[_]>::last)
    }

    /// The private key.
    pub fn key(&self) -> &PrivateKeyDer<'static> {
        &self.key
    }

    /// The chain, PEM.
    pub fn chain_pem(&self) -> String {
        chain_to_pem(&self.chain)
    }

    /// The private key, PEM.
    pub fn key_pem(&self) -> Zeroizing<String> {
        let label = if matches!(self.key, PrivateKeyDer::Pkcs1(_)) {
            "RSA PRIVATE KEY"
        } else if matches!(self.key, PrivateKeyDer::Sec1(_)) {
            "EC PRIVATE KEY"
        } else {
            "PRIVATE KEY"
        };
        Zeroizing::new(pem(label, self.key.secret_der()))
    }
}

impl Clone for Bundle {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

impl std::fmt::Debug for Bundle {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Bundle").field("certificates", &self.chain.len()).finish_non_exhaustive()
    }
}

/// Reads one or more certificates from PEM.
///
/// # Errors
/// [`BundleError::Chain`] when there is none, more than [`CHAIN_CERTIFICATES_MAX`], or not PEM.
pub fn chain_from_pem(text: &str) -> Result<Vec<CertificateDer<'static>>, BundleError> {
    let chain = CertificateDer::pem_slice_iter(text.as_bytes())
        .take(CHAIN_CERTIFICATES_MAX + 1)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| BundleError::Chain)?;
    if chain.is_empty() || chain.len() > CHAIN_CERTIFICATES_MAX {
        return Err(BundleError::Chain);
    }
    Ok(chain)
}

/// Writes certificates as PEM.
pub fn chain_to_pem(chain: &[CertificateDer<'_>]) -> String {
    chain.iter().map(|certificate| pem("CERTIFICATE", certificate)).collect()
}

/// Writes a file of mode 0600 atomically: a reader sees the old or the new content, also after a crash.
///
/// # Errors
/// [`BundleError::Write`], naming the file.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), BundleError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.partial", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let written = write_synced(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        let _ = fs::remove_file(&temporary);
        return Err(BundleError::Write { path: path.to_owned(), source: error });
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or_else(|| Path::new(".")))
        .and_then(|directory| directory.sync_all())
        .map_err(|source| BundleError::Write { path: path.to_owned(), source })
}

fn write_synced(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    // The file of a crashed process would keep its own mode.
    let _ = fs::remove_file(path);
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(PRIVATE_FILE_MODE).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn read_pem(path: &Path) -> Result<Zeroizing<String>, BundleError> {
    match read_limited(path) {
        Ok(Some(text)) => Ok(text),
        Ok(None) => Err(BundleError::TooLarge { path: path.to_owned() }),
        Err(source) => Err(BundleError::Read { path: path.to_owned(), source }),
    }
}

/// Reads a file; `None` when it is larger than [`PEM_BYTES_MAX`].
fn read_limited(path: &Path) -> std::io::Result<Option<Zeroizing<String>>> {
    if fs::metadata(path)?.len() > PEM_BYTES_MAX {
        return Ok(None);
    }
    fs::read_to_string(path).map(Zeroizing::new).map(Some)
}

fn paths(directory: &Path, stem: &str) -> (PathBuf, PathBuf) {
    (directory.join(format!("{stem}.crt")), directory.join(format!("{stem}.key")))
}

pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let encoded = Zeroizing::new(BASE64.encode(der));
    let mut out = String::with_capacity(encoded.len() + encoded.len() / 32 + 2 * label.len() + 40);
    out.push_str(&format!("-----BEGIN {label}-----\n"));
    let mut rest = encoded.as_str();
    while let Some((line, tail)) = rest.split_at_checked(PEM_LINE_CHARACTERS.min(rest.len()))
        && !line.is_empty()
    {
        out.push_str(line);
        out.push('\n');
        rest = tail;
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

/// Errors of reading or writing a chain or key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// No certificate, too many, or a malformed one.
    #[error("expected 1 to {CHAIN_CERTIFICATES_MAX} PEM certificates")]
    Chain,
    /// No usable private key.
    #[error("expected a PEM private key")]
    Key,
    /// A file could not be read.
    #[error("failed to read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file is larger than [`PEM_BYTES_MAX`].
    #[error("{path} is larger than {PEM_BYTES_MAX} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// A file could not be written.
    #[error("failed to write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

impl BundleError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Chain => Reason::MalformedChain,
            Self::Key => Reason::MalformedKey,
            Self::Read { .. } | Self::TooLarge { .. } => Reason::UnreadableFile,
            Self::Write { .. } => Reason::UnwritableFile,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::authority::{Authority, HUB_LIFETIME};

    #[test]
    fn a_saved_bundle_is_private_and_reads_back() {
        let directory = tempfile::tempdir().unwrap();
        let issued =
            Authority::create("fleet").unwrap().issue_hub("main", &[], HUB_LIFETIME).unwrap();
        let bundle = issued.bundle().unwrap();

        bundle.save(directory.path(), "hub").unwrap();
        let read = Bundle::load(directory.path(), "hub").unwrap();

        assert_eq!(read.chain(), bundle.chain());
        assert_eq!(read.key().secret_der(), bundle.key().secret_der());
        assert_eq!(read.authority(), issued.chain.get(1));
        for file in ["hub.crt", "hub.key"] {
            let mode = fs::metadata(directory.path().join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, PRIVATE_FILE_MODE, "{file}");
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "no temporary file is left");
    }

    #[test]
    fn a_file_that_is_missing_or_not_pem_is_named() {
        let directory = tempfile::tempdir().unwrap();

        let missing = Bundle::load(directory.path(), "hub").unwrap_err();
        fs::write(directory.path().join("hub.crt"), "no certificate").unwrap();
        fs::write(directory.path().join("hub.key"), "no key").unwrap();
        let malformed = Bundle::load(directory.path(), "hub").unwrap_err();

        assert!(missing.to_string().contains("hub.crt"), "{missing}");
        assert_eq!(malformed.reason().as_str(), "MalformedChain");
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        write_private(&path, b"old").unwrap();

        let error = write_private(&directory.path().join("missing/key"), b"new").unwrap_err();

        assert_eq!(error.reason().as_str(), "UnwritableFile");
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }
}
