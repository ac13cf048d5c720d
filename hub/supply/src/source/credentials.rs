//! Credentials of a repository: a login, an ssh key with its known hosts, a private certificate authority.
//!
//! They are held in memory and never printed. The store persists them.

use std::fmt;
use std::path::Path;

use attest_common::basics::reason::Reason;

/// Maximum size of a credential file, in bytes.
pub const CREDENTIAL_BYTES_MAX: u64 = 256 * 1024;

/// Credentials of one repository. The default is none.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Login for https, sent by Basic authentication to the repository's own host only.
    pub login: Option<Login>,
    /// Key and known hosts for ssh.
    pub ssh: Option<SshIdentity>,
    /// PEM certificates that replace the system's authorities for https.
    pub ca_pem: Option<Vec<u8>>,
}

/// A user name and its password or access token.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// User name.
    pub username: String,
    /// Password or token.
    pub password: String,
}

/// A private key and the host keys of the servers that it is used with.
#[derive(Clone, PartialEq, Eq)]
pub struct SshIdentity {
    /// Private key in the format of `ssh-keygen`, without a passphrase.
    pub private_key: Vec<u8>,
    /// Content of a `known_hosts` file. Other hosts are rejected.
    pub known_hosts: Vec<u8>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Credentials")
            .field("login", &self.login)
            .field("ssh", &self.ssh)
            .field("ca", &self.ca_pem.is_some())
            .finish()
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Login").field("username", &self.username).finish_non_exhaustive()
    }
}

impl fmt::Debug for SshIdentity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SshIdentity").finish_non_exhaustive()
    }
}

/// Unusable credentials.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// A file cannot be read.
    #[error("failed to read {flag} {path:?}; check the path and its permissions")]
    File {
        /// Flag that names the file.
        flag: &'static str,
        /// Path of the file.
        path: String,
        /// Error of the file system.
        #[source]
        source: std::io::Error,
    },
    /// A file is empty, too long or in another format.
    #[error("{flag} {path:?} {problem}")]
    Content {
        /// Flag that names the file.
        flag: &'static str,
        /// Path of the file.
        path: String,
        /// Rule that it violates, and the remedy.
        problem: &'static str,
    },
    /// One flag of a pair is missing.
    #[error("{given} requires {missing}")]
    Incomplete {
        /// Flag that is present.
        given: &'static str,
        /// Flag that is missing.
        missing: &'static str,
    },
}

impl CredentialError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::File { .. } => Reason::CredentialFile,
            Self::Content { .. } => Reason::CredentialContent,
            Self::Incomplete { .. } => Reason::CredentialIncomplete,
        }
    }
}

/// Arguments of `attest gitops repo add`.
#[derive(Clone, Copy, Debug, Default)]
pub struct CredentialFiles<'a> {
    /// `--username`.
    pub username: Option<&'a str>,
    /// `--password-file`.
    pub password_file: Option<&'a Path>,
    /// `--ssh-key`.
    pub ssh_key: Option<&'a Path>,
    /// `--known-hosts`.
    pub known_hosts: Option<&'a Path>,
    /// `--ca-file`.
    pub ca_file: Option<&'a Path>,
}

impl Credentials {
    /// Reads the files. One trailing line end is removed from the password.
    ///
    /// # Errors
    /// [`CredentialError`] for a file that cannot be read or has another format, and for one flag of a pair.
    pub fn from_files(files: CredentialFiles<'_>) -> Result<Self, CredentialError> {
        let CredentialFiles { username, password_file, ssh_key, known_hosts, ca_file } = files;
        let login = match (username, password_file) {
            (None, None) => None,
            (Some(_), None) => return Err(incomplete("--username", "--password-file")),
            (None, Some(_)) => return Err(incomplete("--password-file", "--username")),
            (Some(username), Some(path)) => {
                Some(Login { username: username.to_owned(), password: read_password(path)? })
            }
        };
        let ssh = match (ssh_key, known_hosts) {
            (None, None) => None,
            (Some(_), None) => return Err(incomplete("--ssh-key", "--known-hosts")),
            (None, Some(_)) => return Err(incomplete("--known-hosts", "--ssh-key")),
            (Some(key), Some(hosts)) => Some(SshIdentity {
                private_key: read_private_key(key)?,
                known_hosts: read_limited("--known-hosts", hosts)?,
            }),
        };
        let ca_pem = ca_file.map(read_certificates).transpose()?;
        Ok(Self { login, ssh, ca_pem })
    }
}

fn incomplete(given: &'static str, missing: &'static str) -> CredentialError {
    CredentialError::Incomplete { given, missing }
}

fn invalid_content(flag: &'static str, path: &Path, problem: &'static str) -> CredentialError {
    CredentialError::Content { flag, path: path.display().to_string(), problem }
}

fn read_limited(flag: &'static str, path: &Path) -> Result<Vec<u8>, CredentialError> {
    let bytes = read_prefix(path, CREDENTIAL_BYTES_MAX + 1).map_err(|source| {
        CredentialError::File { flag, path: path.display().to_string(), source }
    })?;
    if bytes.is_empty() {
        return Err(invalid_content(flag, path, "is empty"));
    }
    if bytes.len() as u64 > CREDENTIAL_BYTES_MAX {
        return Err(invalid_content(flag, path, "is longer than 256 KiB; check the path"));
    }
    Ok(bytes)
}

fn read_prefix(path: &Path, bytes_max: u64) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;

    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn read_password(path: &Path) -> Result<String, CredentialError> {
    const FLAG: &str = "--password-file";
    let bytes = read_limited(FLAG, path)?;
    let text = str::from_utf8(&bytes).map_err(|_| invalid_content(FLAG, path, "is not UTF-8"))?;
    let line = text.strip_suffix('\n').unwrap_or(text);
    let password = line.strip_suffix('\r').unwrap_or(line);
    if password.is_empty() || password.contains(['\n', '\r', '\0']) {
        return Err(invalid_content(FLAG, path, "must contain the password in one line"));
    }
    Ok(password.to_owned())
}

fn read_private_key(path: &Path) -> Result<Vec<u8>, CredentialError> {
    const FLAG: &str = "--ssh-key";
    let bytes = read_limited(FLAG, path)?;
    if !String::from_utf8_lossy(&bytes).contains("PRIVATE KEY-----") {
        let problem = "is not a private key; use the file without .pub";
        return Err(invalid_content(FLAG, path, problem));
    }
    Ok(bytes)
}

fn read_certificates(path: &Path) -> Result<Vec<u8>, CredentialError> {
    const FLAG: &str = "--ca-file";
    let bytes = read_limited(FLAG, path)?;
    if !String::from_utf8_lossy(&bytes).contains("-----BEGIN CERTIFICATE-----") {
        return Err(invalid_content(FLAG, path, "contains no PEM certificate"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_never_printed() {
        let credentials = Credentials {
            login: Some(Login { username: "reader".into(), password: "hunter2".into() }),
            ssh: Some(SshIdentity { private_key: b"hunter2".into(), known_hosts: vec![] }),
            ca_pem: Some(b"hunter2".into()),
        };

        let printed = format!("{credentials:?}");

        assert!(printed.contains("reader") && !printed.contains("hunter2"), "{printed}");
    }

    #[test]
    fn a_flag_without_its_pair_and_a_wrong_file_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let password = file("password", "pass word\n");
        let key = file("id.pub", "ssh-ed25519 AAAA");
        let two_lines = file("two", "a\nb\n");
        let text = |files| Credentials::from_files(files).unwrap_err().to_string();
        let none = CredentialFiles::default();

        let read = Credentials::from_files(CredentialFiles {
            username: Some("reader"),
            password_file: Some(&password),
            ..none
        });
        assert_eq!(read.unwrap().login.unwrap().password, "pass word");
        assert!(text(CredentialFiles { username: Some("u"), ..none }).contains("--password-file"));
        assert!(text(CredentialFiles { ssh_key: Some(&key), ..none }).contains("--known-hosts"));
        let both = CredentialFiles { ssh_key: Some(&key), known_hosts: Some(&key), ..none };
        assert!(text(both).contains("without .pub"));
        assert!(
            text(CredentialFiles { ca_file: Some(&key), ..none }).contains("no PEM certificate")
        );
        let two = CredentialFiles { username: Some("u"), password_file: Some(&two_lines), ..none };
        assert!(text(two).contains("one line"));
    }
}
