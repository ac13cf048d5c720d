//! Certificates of operators and their revocations: one file for each serial.
//!
//! `attest hub operator` writes them on the hub's machine. The API reads the file of the client at every request, so that
//! a revocation takes effect immediately. The role is part of the certificate; the record only shows it.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use attest_certs::authority::OPERATOR_LIFETIME;
use attest_certs::bundle::write_private;
use attest_certs::{Issued, OperatorRole};
use attest_common::basics::ids::Timestamp;
use attest_common::basics::text::shortened;
use attest_runtime::clock::after;
use serde::{Deserialize, Serialize};

use super::{HomeError, file_error, read};

/// Most listed certificates.
pub(crate) const OPERATORS_MAX: usize = 10_000;
/// Time for which the record of an expired certificate is kept. Certificates of `attest hub login` live for hours.
const EXPIRED_KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Longest serial number in hexadecimal digits.
const SERIAL_DIGITS_MAX: usize = 40;
/// Name of a revoked certificate that was not recorded here.
pub const UNKNOWN_NAME: &str = "unknown";

/// A certificate issued to an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Operator {
    pub name: String,
    /// Records of earlier releases have none: their certificates are those of operators.
    #[serde(default)]
    pub role: OperatorRole,
    /// Hexadecimal.
    pub serial: String,
    pub issued_at: Timestamp,
    pub expires_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
}

/// The directory of these files.
#[derive(Clone, Debug)]
pub struct Operators {
    directory: PathBuf,
}

impl Operators {
    /// Creates access to the files in `directory`.
    pub fn at(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Records a certificate before it is handed out.
    ///
    /// # Errors
    /// When the file cannot be written; the certificate must then not be handed out.
    pub fn note(
        &self,
        role: OperatorRole,
        name: &str,
        issued: &Issued,
    ) -> Result<Operator, HomeError> {
        let operator = Operator {
            name: name.to_owned(),
            role,
            serial: issued.serial.to_string(),
            issued_at: Timestamp::now(),
            expires_at: Timestamp::try_from(issued.not_after).unwrap_or_default(),
            revoked_at: None,
        };
        self.write(&operator)?;
        Ok(operator)
    }

    /// Returns the record of a serial.
    ///
    /// # Errors
    /// When its file cannot be read.
    pub fn get(&self, serial: &str) -> Result<Option<Operator>, HomeError> {
        let Some(path) = self.file(serial) else { return Ok(None) };
        match fs::exists(&path) {
            Ok(false) => Ok(None),
            Ok(true) => load(&path).map(Some),
            Err(source) => Err(file_error(&path, source)),
        }
    }

    /// Returns all records, ordered by name and age.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn all(&self) -> Result<Vec<Operator>, HomeError> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(file_error(&self.directory, source)),
        };
        let mut all = Vec::new();
        for entry in entries.take(OPERATORS_MAX) {
            let path = entry.map_err(|source| file_error(&self.directory, source))?.path();
            // A partially written file has another extension.
            if path.extension().is_some_and(|extension| extension == "json") {
                all.push(load(&path)?);
            }
        }
        all.sort_by(|a, b| (&a.name, a.issued_at).cmp(&(&b.name, b.issued_at)));
        Ok(all)
    }

    /// Removes the records of certificates that expired [`EXPIRED_KEPT`] ago.
    ///
    /// # Errors
    /// When a file cannot be read or removed.
    pub(crate) fn remove_expired(&self, now: Timestamp) -> Result<(), HomeError> {
        let kept_ms = i64::try_from(EXPIRED_KEPT.as_millis()).unwrap_or(i64::MAX);
        for operator in self.all()? {
            if after(operator.expires_at, kept_ms) < now
                && let Some(path) = self.file(&operator.serial)
            {
                fs::remove_file(&path).map_err(|source| file_error(&path, source))?;
            }
        }
        Ok(())
    }

    /// Revokes a certificate, also for open connections. The certificate need not be recorded: it may have been issued by
    /// other means under the same authority.
    ///
    /// # Errors
    /// [`HomeError::OperatorUnknown`] when `serial` is malformed. Also when the file cannot be read or written.
    pub fn revoke(&self, serial: &str, now: Timestamp) -> Result<Operator, HomeError> {
        let lifetime_ms = i64::try_from(OPERATOR_LIFETIME.as_millis()).unwrap_or(i64::MAX);
        let mut operator = self.get(serial)?.unwrap_or_else(|| Operator {
            name: UNKNOWN_NAME.to_owned(),
            role: OperatorRole::default(),
            serial: serial.to_ascii_lowercase(),
            issued_at: now,
            expires_at: after(now, lifetime_ms),
            revoked_at: None,
        });
        operator.revoked_at.get_or_insert(now);
        self.write(&operator)?;
        Ok(operator)
    }

    /// Returns whether the certificate is revoked. One without a record is not.
    ///
    /// # Errors
    /// When its file cannot be read; the certificate must then not be admitted.
    pub fn is_revoked(&self, serial: &str) -> Result<bool, HomeError> {
        if self.file(serial).is_none() {
            return Ok(true);
        }
        Ok(self.get(serial)?.is_some_and(|operator| operator.revoked_at.is_some()))
    }

    fn write(&self, operator: &Operator) -> Result<(), HomeError> {
        let path = self
            .file(&operator.serial)
            .ok_or_else(|| HomeError::OperatorUnknown(shortened(&operator.serial)))?;
        let text = serde_json::to_vec_pretty(operator)
            .map_err(|source| HomeError::Settings { path: path.clone(), source })?;
        fs::create_dir_all(&self.directory)
            .map_err(|source| file_error(&self.directory, source))?;
        self.set_owner(&self.directory)?;
        write_private(&path, &text).map_err(HomeError::Bundle)?;
        self.set_owner(&path).inspect_err(|_| {
            // The hub could not read the file and would reject the operator.
            let _already_failing = fs::remove_file(&path);
        })
    }

    /// Sets the owner of `path` to the owner of the home, which is the user of the hub process.
    fn set_owner(&self, path: &Path) -> Result<(), HomeError> {
        let home = self.directory.parent().unwrap_or(&self.directory);
        let (user, group) = owner(home)?;
        if owner(path)?.0 == user {
            return Ok(());
        }
        chown(path, Some(user), Some(group)).map_err(|source| HomeError::Owner {
            path: path.to_owned(),
            user,
            source,
        })
    }

    fn file(&self, serial: &str) -> Option<PathBuf> {
        let fits = (1..=SERIAL_DIGITS_MAX).contains(&serial.len())
            && serial.bytes().all(|byte| byte.is_ascii_hexdigit());
        fits.then(|| self.directory.join(format!("{}.json", serial.to_ascii_lowercase())))
    }
}

/// Returns the user and group that own `path`.
fn owner(path: &Path) -> Result<(u32, u32), HomeError> {
    let metadata = fs::metadata(path).map_err(|source| file_error(path, source))?;
    Ok((metadata.uid(), metadata.gid()))
}

fn load(path: &Path) -> Result<Operator, HomeError> {
    serde_json::from_str(&read(path)?)
        .map_err(|source| HomeError::Settings { path: path.to_owned(), source })
}
