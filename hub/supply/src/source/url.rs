//! Addresses of Git repositories: which are allowed, and which mean the same repository.
//!
//! Only text is examined: no name is resolved and no connection is opened. Files are the exception: a `file://` address
//! is resolved through symbolic links, so that no link leads out of an allowed directory.

mod rules;

use std::fmt;
use std::path::PathBuf;

use attest_common::basics::reason::Reason;
use rules::{allowed_file, check_host, check_path, check_user};

pub(crate) use rules::forbidden_address;

/// Maximum length of a repository address, in bytes.
pub const URL_BYTES_MAX: usize = 2048;

/// The protocol of `git daemon`.
const UNAUTHENTICATED_GIT: &str =
    "has neither authentication nor encryption and is not supported; use https or ssh";

/// Protocol by which a repository is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    /// HTTP over TLS.
    Https,
    /// The `ssh` program.
    Ssh,
    /// A directory on the hub's machine, if the operator allowed it.
    File,
    /// HTTP without TLS, if the operator allowed it.
    Http,
}

impl Scheme {
    /// Returns the scheme as it stands in a URL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::Ssh => "ssh",
            Self::File => "file",
            Self::Http => "http",
        }
    }

    fn default_port(self) -> Option<u16> {
        match self {
            Self::Https => Some(443),
            Self::Ssh => Some(22),
            Self::Http => Some(80),
            Self::File => None,
        }
    }
}

/// Protocols that the operator allows beside https and ssh. The default allows none.
#[derive(Clone, Debug, Default)]
pub struct UrlPolicy {
    /// Directories that may contain `file://` repositories.
    pub file_directories: Vec<PathBuf>,
    /// Allows `http://`.
    pub allow_http: bool,
}

/// An invalid or disallowed address, with the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UrlError {
    /// The text is not an address.
    #[error(
        "invalid repository address {url:?}; use https://HOST/PATH, ssh://USER@HOST/PATH or USER@HOST:PATH"
    )]
    Malformed {
        /// Address as given.
        url: String,
    },
    /// The scheme is not supported or not allowed.
    #[error("repository address {url:?} is not allowed: scheme {scheme:?} {problem}")]
    Scheme {
        /// Address as given.
        url: String,
        /// Scheme of the address.
        scheme: String,
        /// Rule that it violates, and the remedy.
        problem: &'static str,
    },
    /// The address contains a name or password.
    #[error(
        "the repository address on host {host:?} contains credentials; remove them from the address and set them \
            with `attest gitops repo add --username U --password-file F`"
    )]
    Credentials {
        /// Host without the part before it.
        host: String,
    },
    /// The host is invalid or must not be contacted.
    #[error("repository address {url:?} is not allowed: host {host:?} {problem}")]
    Host {
        /// Address as given.
        url: String,
        /// Host of the address.
        host: String,
        /// Rule that it violates, and the remedy.
        problem: &'static str,
    },
    /// The path is invalid.
    #[error("repository address {url:?} is not allowed: its path {problem}")]
    Path {
        /// Address as given.
        url: String,
        /// Rule that it violates, and the remedy.
        problem: &'static str,
    },
    /// A file outside the allowed directories.
    #[error(
        "repository {path:?} is not in an allowed directory; start the hub with --allow-file-repositories \
            {suggestion:?}"
    )]
    FileNotAllowed {
        /// Resolved path.
        path: String,
        /// Directory to allow.
        suggestion: String,
    },
    /// A directory that cannot be opened.
    #[error(
        "failed to open repository directory {path:?}: {problem}; check the path and its permissions"
    )]
    FileMissing {
        /// Path as given.
        path: String,
        /// Error of the file system.
        problem: String,
    },
}

impl UrlError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        Reason::RepositoryUrlRefused
    }
}

/// A checked address. Two addresses mean the same repository if [`RepositoryUrl::normalised`] is equal.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepositoryUrl {
    scheme: Scheme,
    user: Option<String>,
    host: String,
    port: Option<u16>,
    path: String,
    normalised: String,
}

impl fmt::Debug for RepositoryUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "RepositoryUrl({})", self.normalised)
    }
}

impl fmt::Display for RepositoryUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.address())
    }
}

impl RepositoryUrl {
    /// Checks `text` against `policy`.
    ///
    /// # Errors
    /// [`UrlError`] names the invalid part. The directory of a `file://` address must exist.
    pub fn parse(text: &str, policy: &UrlPolicy) -> Result<Self, UrlError> {
        let mut url = Self::parse_text(text)?;
        match url.scheme {
            Scheme::Https | Scheme::Ssh => {}
            Scheme::Http if policy.allow_http => {}
            Scheme::Http => {
                return Err(scheme_error(
                    text,
                    "http",
                    "is not encrypted; use https, or start the hub with --allow-http-repositories",
                ));
            }
            Scheme::File => url.path = allowed_file(&url.path, policy)?,
        }
        Ok(url)
    }

    /// Returns the form in which addresses are compared: with the host in lower case, and without default port, user and
    /// `.git` suffix.
    ///
    /// # Errors
    /// As [`RepositoryUrl::parse`], but without a policy and without access to files.
    pub fn normalise(text: &str) -> Result<String, UrlError> {
        Self::parse_text(text).map(|url| url.normalised)
    }

    /// Returns the protocol.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Returns the host in lower case; empty for files.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the host without the brackets of an IPv6 address.
    pub(crate) fn bare_host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    /// Returns the port, unless it is the default port of the scheme.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Returns the user name of an ssh address.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// Returns the path as it is sent to the server.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns the form in which addresses are compared. It is `source.repo` of a release statement.
    pub fn normalised(&self) -> &str {
        &self.normalised
    }

    /// Returns the form that is passed to a transport.
    pub fn address(&self) -> String {
        let scheme = self.scheme.as_str();
        let user = self.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        let slash = if self.path.starts_with('/') { "" } else { "/" };
        format!("{scheme}://{user}{}{port}{slash}{}", self.host, self.path)
    }

    fn parse_text(text: &str) -> Result<Self, UrlError> {
        if text.is_empty() || text.len() > URL_BYTES_MAX || !text.bytes().all(is_url_byte) {
            return Err(malformed(text));
        }
        if text.starts_with('-') {
            return Err(malformed(text));
        }
        let Some((scheme_text, rest)) = text.split_once("://") else {
            return Self::parse_scp_like(text);
        };
        let scheme = match scheme_text.to_ascii_lowercase().as_str() {
            "https" => Scheme::Https,
            "ssh" | "git+ssh" | "ssh+git" => Scheme::Ssh,
            "file" => Scheme::File,
            "http" => Scheme::Http,
            "git" => return Err(scheme_error(text, scheme_text, UNAUTHENTICATED_GIT)),
            _ => {
                let problem = "is not supported; use https or ssh";
                return Err(scheme_error(text, scheme_text, problem));
            }
        };
        let (authority, path) = match rest.split_once('/') {
            Some((authority, path)) => (authority, format!("/{path}")),
            None => (rest, String::new()),
        };
        if scheme == Scheme::File {
            if !authority.is_empty() && !authority.eq_ignore_ascii_case("localhost") {
                return Err(host_error(text, authority, "is not this machine; use file:///PATH"));
            }
            let parts = UrlParts { scheme, user: None, host: "", port: None, path };
            return Self::assemble(text, parts);
        }
        let (user, location) = split_user(authority);
        let (host, port) = split_port(location).ok_or_else(|| malformed(text))?;
        Self::assemble(text, UrlParts { scheme, user, host, port, path })
    }

    /// Parses `git@host:path`. A local path has no `:` before its first `/` and is rejected.
    fn parse_scp_like(text: &str) -> Result<Self, UrlError> {
        if let Some((helper, _)) = text.split_once("::") {
            return Err(scheme_error(text, helper, "runs a helper program; use https or ssh"));
        }
        let (authority, path) = text.split_once(':').ok_or_else(|| malformed(text))?;
        if authority.contains('/') || path.is_empty() {
            return Err(malformed(text));
        }
        let (user, host) = split_user(authority);
        let path = path.to_owned();
        Self::assemble(text, UrlParts { scheme: Scheme::Ssh, user, host, port: None, path })
    }

    fn assemble(text: &str, parts: UrlParts<'_>) -> Result<Self, UrlError> {
        let UrlParts { scheme, user, host, port, path } = parts;
        let host = host.to_ascii_lowercase();
        let user = check_user(text, scheme, user, &host)?;
        if scheme != Scheme::File {
            check_host(text, &host)?;
        }
        let path = path.trim_end_matches('/').to_owned();
        check_path(text, &path)?;
        let port = port.filter(|port| Some(*port) != scheme.default_port());
        let port_suffix = port.map(|port| format!(":{port}")).unwrap_or_default();
        let compared_path = path.strip_suffix(".git").unwrap_or(&path).trim_start_matches('/');
        let normalised = format!("{}://{host}{port_suffix}/{compared_path}", scheme.as_str());
        Ok(Self { scheme, user, host, port, path, normalised })
    }
}

struct UrlParts<'a> {
    scheme: Scheme,
    user: Option<&'a str>,
    host: &'a str,
    port: Option<u16>,
    path: String,
}

fn is_url_byte(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"\"'`\\<>{}|^".contains(&byte)
}

/// Returns the address for an error message: shortened, and without the part before an `@`.
fn redacted(text: &str) -> String {
    let text: String = text.chars().take(200).collect();
    match (text.find("://"), text.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => {
            let (head, rest) = (text.get(..scheme + 3), text.get(at + 1..));
            format!("{}{}", head.unwrap_or_default(), rest.unwrap_or_default())
        }
        _ => text,
    }
}

fn malformed(text: &str) -> UrlError {
    UrlError::Malformed { url: redacted(text) }
}

fn scheme_error(text: &str, scheme: &str, problem: &'static str) -> UrlError {
    UrlError::Scheme { url: redacted(text), scheme: scheme.to_owned(), problem }
}

fn host_error(text: &str, host: &str, problem: &'static str) -> UrlError {
    UrlError::Host { url: redacted(text), host: host.to_owned(), problem }
}

fn split_user(authority: &str) -> (Option<&str>, &str) {
    match authority.rsplit_once('@') {
        Some((user, location)) => (Some(user), location),
        None => (None, authority),
    }
}

/// Splits `host`, `host:port`, `[address]` or `[address]:port`.
fn split_port(location: &str) -> Option<(&str, Option<u16>)> {
    let host_end = match location.rfind(']') {
        Some(end) => end + 1,
        None => location.find(':').unwrap_or(location.len()),
    };
    let (host, suffix) = location.split_at_checked(host_end)?;
    if suffix.is_empty() {
        return Some((host, None));
    }
    let digits = suffix.strip_prefix(':')?;
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let port = digits.parse().ok().filter(|port| *port > 0)?;
    Some((host, Some(port)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn spellings_of_one_repository_are_equal_once_normalised() {
        let table = [
            ("https://Git.Example/company/web-app.git", "https://git.example/company/web-app"),
            ("https://git.example:443/company/web-app/", "https://git.example/company/web-app"),
            (
                "https://git.example:8443/company/web-app",
                "https://git.example:8443/company/web-app",
            ),
            ("git@git.example:company/web-app.git", "ssh://git.example/company/web-app"),
            ("ssh://git@git.example:22/company/web-app", "ssh://git.example/company/web-app"),
            (
                "ssh://git@git.example:2222/company/web-app",
                "ssh://git.example:2222/company/web-app",
            ),
            ("https://[2001:db8::1]:8443/a", "https://[2001:db8::1]:8443/a"),
            ("file:///srv/git/app.git", "file:///srv/git/app"),
        ];

        for (given, expected) in table {
            assert_eq!(RepositoryUrl::normalise(given).unwrap(), expected, "{given}");
        }
    }

    #[test]
    fn hostile_addresses_are_rejected_by_name() {
        let table = [
            ("--upload-pack=touch /tmp/x", "invalid repository address"),
            ("--upload-pack=x", "invalid repository address"),
            ("ext::sh -c touch", "invalid repository address"),
            ("ext::sh", "runs a helper program"),
            ("ext://x/y", "is not supported"),
            ("ftp://git.example/a", "is not supported"),
            ("https://user:secret@git.example/a", "contains credentials"),
            ("https://user@git.example/a", "contains credentials"),
            ("ssh://git:secret@git.example/a", "contains credentials"),
            ("ssh://-oProxyCommand=x@git.example/a", "invalid repository address"),
            ("ssh://-oProxyCommand=x/a", "not a host name"),
            ("git@-host:a", "not a host name"),
            ("git@git.example:-a", "read as an option"),
            ("https://169.254.169.254/latest", "link-local"),
            ("https://[fe80::1]/a", "link-local"),
            ("https://[::ffff:169.254.169.254]/a", "link-local"),
            ("https://0.0.0.0/a", "link-local"),
            ("https://2852039166/a", "is a number"),
            ("https://0xa9fea9fe/a", "is a number"),
            ("https://metadata.google.internal/a", "machine credentials"),
            ("https://git.example/a/../b", "`..`"),
            ("https://git.example/a/%2e%2E/b", "behind `%`"),
            ("https://git.example//a", "empty"),
            ("https://git.example/a?x=1", "query"),
            ("https://git.example/", "is empty"),
            ("https://git.example:99999/a", "invalid repository address"),
            ("https://git.example:+1/a", "invalid repository address"),
            ("https://git.exаmple/a", "invalid repository address"),
            ("https://git.example/a\nb", "invalid repository address"),
            ("http://git.example/a", "--allow-http-repositories"),
            ("git://git.example/a", "neither authentication nor encryption"),
            ("GIT://git.example/a", "use https or ssh"),
            ("file:///etc", "--allow-file-repositories"),
            ("file://other/etc", "is not this machine"),
            ("/etc", "invalid repository address"),
            ("", "invalid repository address"),
        ];

        for (given, expected) in table {
            let error = RepositoryUrl::parse(given, &UrlPolicy::default()).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(expected), "{given}: {text}");
            assert!(!text.contains("secret"), "{given}: {text}");
            assert_eq!(error.reason().as_str(), "RepositoryUrlRefused");
        }
    }

    #[test]
    fn a_file_repository_is_reached_only_below_an_allowed_directory() {
        let allowed = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::create_dir(allowed.path().join("app.git")).unwrap();
        std::os::unix::fs::symlink(outside.path(), allowed.path().join("link")).unwrap();
        let policy =
            UrlPolicy { file_directories: vec![allowed.path().to_owned()], ..UrlPolicy::default() };
        let parse =
            |path: &Path| RepositoryUrl::parse(&format!("file://{}", path.display()), &policy);

        assert!(parse(&allowed.path().join("app.git")).is_ok());
        let left_by_link = parse(&allowed.path().join("link")).unwrap_err();
        let missing = parse(&allowed.path().join("nothing")).unwrap_err();
        let elsewhere = parse(outside.path()).unwrap_err();

        assert!(matches!(left_by_link, UrlError::FileNotAllowed { .. }), "{left_by_link}");
        assert!(matches!(missing, UrlError::FileMissing { .. }), "{missing}");
        assert!(matches!(elsewhere, UrlError::FileNotAllowed { .. }), "{elsewhere}");
    }
}
