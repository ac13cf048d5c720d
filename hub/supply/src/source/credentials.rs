//! What a repository asks for: a login, an ssh key with the hosts it may talk to, a private certificate authority.
//!
//! Held in memory and never printed. Where they are kept is the store's business.

use std::fmt;
use std::path::Path;

use attest_common::basics::reason::Reason;

/// Largest credential file that is read, in bytes.
pub const CREDENTIAL_BYTES_MAX: u64 = 256 * 1024;

/// Credentials of one repository. The default is none.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// For https: sent by Basic authentication, to the repository's own host only.
    pub login: Option<Login>,
    /// For ssh.
    pub ssh: Option<SshIdentity>,
    /// PEM certificates that alone are trusted for https; absent means the system's.
    pub ca_pem: Option<Vec<u8>>,
}

/// A user name with its password or access token.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// User name.
    pub username: String,
    /// Password or token.
    pub password: String,
}

/// A private key and the host keys it may be shown to.
#[derive(Clone, PartialEq, Eq)]
pub struct SshIdentity {
    /// Private key as `ssh-keygen` writes it, without a passphrase.
    pub private_key: Vec<u8>,
    /// Lines of a `known_hosts` file. A host that is not in it is refused.
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

/// Why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// A named file cannot be read.
    #[error("{flag} {path:?} cannot be read: check the path and its permissions")]
    File {
        /// The flag that named it.
        flag: &'static str,
        /// The file.
        path: String,
        /// The answer of the file system.
        #[source]
        source: std::io::Error,
    },
    /// A file is empty, too long or not what its flag wants.
    #[error("{flag} {path:?} {problem}")]
    Content {
        /// The flag that named it.
        flag: &'static str,
        /// The file.
        path: String,
        /// What is wrong and what is wanted.
        problem: &'static str,
    },
    /// Two flags that belong together.
    #[error("{given} needs {missing} beside it")]
    Incomplete {
        /// The flag that was given.
        given: &'static str,
        /// The flag that is missing.
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

/// Files that `attest gitops repo add` names.
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
    /// Read the named files. A password loses one trailing line end.
    ///
    /// # Errors
    /// A file that cannot be read or is not what its flag wants; one flag without its pair.
    pub fn from_files(files: CredentialFiles<'_>) -> Result<Self, CredentialError> {
        let CredentialFiles { username, password_file, ssh_key, known_hosts, ca_file } = files;
        let login = match (username, password_file) {
            (None, None) => None,
            (Some(_), None) => return Err(incomplete("--username", "--password-file")),
            (None, Some(_)) => return Err(incomplete("--password-file", "--username")),
            (Some(username), Some(path)) => Some(Login {
                username: username.to_owned(),
                password: password(&read("--password-file", path)?, path)?,
            }),
        };
        let ssh = match (ssh_key, known_hosts) {
            (None, None) => None,
            (Some(_), None) => return Err(incomplete("--ssh-key", "--known-hosts")),
            (None, Some(_)) => return Err(incomplete("--known-hosts", "--ssh-key")),
            (Some(key), Some(hosts)) => Some(SshIdentity {
                private_key: private_key(key)?,
                known_hosts: read("--known-hosts", hosts)?,
            }),
        };
        let ca_pem = ca_file.map(certificates).transpose()?;
        Ok(Self { login, ssh, ca_pem })
    }
}

fn incomplete(given: &'static str, missing: &'static str) -> CredentialError {
    CredentialError::Incomplete { given, missing }
}

fn content(flag: &'static str, path: &Path, problem: &'static str) -> CredentialError {
    CredentialError::Content { flag, path: path.display().to_string(), problem }
}

fn read(flag: &'static str, path: &Path) -> Result<Vec<u8>, CredentialError> {
    use std::io::Read as _;

    let failed = |source| CredentialError::File { flag, path: path.display().to_string(), source };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(CREDENTIAL_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.is_empty() {
        return Err(content(flag, path, "is empty"));
    }
    if bytes.len() as u64 > CREDENTIAL_BYTES_MAX {
        return Err(content(flag, path, "is longer than 256 KiB: name the right file"));
    }
    Ok(bytes)
}

fn password(bytes: &[u8], path: &Path) -> Result<String, CredentialError> {
    let wrong = |problem| content("--password-file", path, problem);
    let text = str::from_utf8(bytes).map_err(|_| wrong("is not text"))?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() || text.contains(['\n', '\r', '\0']) {
        return Err(wrong("must hold the password in one line"));
    }
    Ok(text.to_owned())
}

fn private_key(path: &Path) -> Result<Vec<u8>, CredentialError> {
    let bytes = read("--ssh-key", path)?;
    let text = String::from_utf8_lossy(&bytes);
    if !text.contains("PRIVATE KEY-----") {
        return Err(content("--ssh-key", path, "is not a private key: name the file without .pub"));
    }
    Ok(bytes)
}

fn certificates(path: &Path) -> Result<Vec<u8>, CredentialError> {
    let bytes = read("--ca-file", path)?;
    if !String::from_utf8_lossy(&bytes).contains("-----BEGIN CERTIFICATE-----") {
        return Err(content("--ca-file", path, "holds no PEM certificate"));
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
