//! Addresses of Git repositories: which are spoken to at all, and when two of them mean the same repository.
//!
//! Only text is looked at here: no name is resolved and no connection made. Files are the exception: a `file://`
//! address is resolved through symbolic links, so that an allowed directory cannot be left by one.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use attest_common::basics::reason::Reason;

/// Longest repository address that is read, in bytes.
pub const URL_BYTES_MAX: usize = 2048;

/// Names under which clouds serve machine credentials. A repository never lives there.
const METADATA_HOSTS: [&str; 4] =
    ["metadata", "metadata.google.internal", "metadata.goog", "instance-data"];

/// Why the protocol of `git daemon` is not supported.
const UNAUTHENTICATED_GIT: &str =
    "is not supported, it has neither authentication nor encryption: use https or ssh";

/// How a repository is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    /// HTTP over TLS.
    Https,
    /// The `ssh` program.
    Ssh,
    /// A directory that the hub's operator allowed.
    File,
    /// HTTP without TLS, only when the operator allowed it.
    Http,
}

impl Scheme {
    fn word(self) -> &'static str {
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

/// What the operator of this process allows beyond https and ssh. The default allows nothing more.
#[derive(Clone, Debug, Default)]
pub struct UrlPolicy {
    /// Directories below which `file://` repositories may lie.
    pub file_directories: Vec<PathBuf>,
    /// Whether `http://` is spoken.
    pub allow_http: bool,
}

/// Why an address is refused. Every text says what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UrlError {
    /// Not an address at all.
    #[error(
        "repository address {url:?} is not understood: write https://HOST/PATH, ssh://USER@HOST/PATH or \
            USER@HOST:PATH"
    )]
    Malformed {
        /// The address as given.
        url: String,
    },
    /// The scheme is never or not now spoken.
    #[error("repository address {url:?} is refused: scheme {scheme:?} {remedy}")]
    Scheme {
        /// The address as given.
        url: String,
        /// Its scheme.
        scheme: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A name or password inside the address.
    #[error(
        "repository address on host {host:?} carries credentials: remove them from the address and give \
            them to `attest gitops repo add --username U --password-file F`"
    )]
    Credentials {
        /// The host, without what stood before it.
        host: String,
    },
    /// The host cannot or must not be asked.
    #[error("repository address {url:?} is refused: host {host:?} {problem}")]
    Host {
        /// The address as given.
        url: String,
        /// The host part.
        host: String,
        /// What is wrong with it and what to write.
        problem: &'static str,
    },
    /// The path part.
    #[error("repository address {url:?} is refused: its path {problem}")]
    Path {
        /// The address as given.
        url: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A file outside the allowed directories.
    #[error(
        "repository {path:?} lies in no allowed directory: start the hub with --allow-file-repositories \
            {suggestion:?}"
    )]
    FileNotAllowed {
        /// The resolved path.
        path: String,
        /// The directory to allow.
        suggestion: String,
    },
    /// A file that is not there.
    #[error(
        "repository directory {path:?} cannot be opened ({problem}): check the path and its permissions"
    )]
    FileMissing {
        /// The path as given.
        path: String,
        /// The answer of the file system.
        problem: String,
    },
}

impl UrlError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        Reason::RepositoryUrlRefused
    }
}

/// An address that was checked. Two addresses mean the same repository when [`RepositoryUrl::normalised`] is equal.
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
    /// Check `text` against `policy`.
    ///
    /// # Errors
    /// [`UrlError`] names the part that is refused. `file://` addresses must exist.
    pub fn parse(text: &str, policy: &UrlPolicy) -> Result<Self, UrlError> {
        let mut url = Self::parse_text(text)?;
        match url.scheme {
            Scheme::Https | Scheme::Ssh => {}
            Scheme::Http if policy.allow_http => {}
            Scheme::Http => {
                return Err(scheme_error(
                    text,
                    "http",
                    "has no encryption: write https, or start the hub with --allow-http-repositories",
                ));
            }
            Scheme::File => url.path = allowed_file(&url.path, policy)?,
        }
        Ok(url)
    }

    /// The form in which addresses are compared: lower-case host, default port, user and `.git` suffix left out.
    ///
    /// # Errors
    /// As [`RepositoryUrl::parse`], except that no policy and no file is asked.
    pub fn normalise(text: &str) -> Result<String, UrlError> {
        Self::parse_text(text).map(|url| url.normalised)
    }

    /// How it is reached.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Lower-case host; empty for files.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, when it is not the scheme's own.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// The login name of an ssh address.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The path as the server is asked for it.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The form in which addresses are compared, and which a release statement's `source.repo` carries.
    pub fn normalised(&self) -> &str {
        &self.normalised
    }

    /// The form which a transport is given.
    pub fn address(&self) -> String {
        let scheme = self.scheme.word();
        let user = self.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        let slash = if self.path.starts_with('/') { "" } else { "/" };
        format!("{scheme}://{user}{}{port}{slash}{}", self.host, self.path)
    }

    fn parse_text(text: &str) -> Result<Self, UrlError> {
        let malformed = || UrlError::Malformed { url: shown(text) };
        let bytes_allowed = |byte: u8| byte.is_ascii_graphic() && !b"\"'`\\<>{}|^".contains(&byte);
        if text.is_empty() || text.len() > URL_BYTES_MAX || !text.bytes().all(bytes_allowed) {
            return Err(malformed());
        }
        if text.starts_with('-') {
            return Err(malformed());
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Self::parse_scp_like(text);
        };
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "https" => Scheme::Https,
            "ssh" | "git+ssh" | "ssh+git" => Scheme::Ssh,
            "file" => Scheme::File,
            "http" => Scheme::Http,
            "git" => return Err(scheme_error(text, scheme, UNAUTHENTICATED_GIT)),
            _ => {
                return Err(scheme_error(text, scheme, "is never spoken: write https or ssh"));
            }
        };
        let (authority, path) = match rest.split_once('/') {
            Some((authority, path)) => (authority, format!("/{path}")),
            None => (rest, String::new()),
        };
        if scheme == Scheme::File {
            if !authority.is_empty() && !authority.eq_ignore_ascii_case("localhost") {
                return Err(host_error(text, authority, "is not this machine: write file:///PATH"));
            }
            return Self::assemble(text, Parts { scheme, user: None, host: "", port: None, path });
        }
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        let (host, port) = split_port(host).ok_or_else(malformed)?;
        Self::assemble(text, Parts { scheme, user, host, port, path })
    }

    /// `git@host:path`. A bare local path has no `:` before its first `/` and is refused.
    fn parse_scp_like(text: &str) -> Result<Self, UrlError> {
        let malformed = || UrlError::Malformed { url: shown(text) };
        if let Some((helper, _)) = text.split_once("::") {
            return Err(scheme_error(text, helper, "runs a helper program: write https or ssh"));
        }
        let (authority, path) = text.split_once(':').ok_or_else(malformed)?;
        if authority.contains('/') || path.is_empty() {
            return Err(malformed());
        }
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        let scheme = Scheme::Ssh;
        Self::assemble(text, Parts { scheme, user, host, port: None, path: path.to_owned() })
    }

    fn assemble(text: &str, parts: Parts<'_>) -> Result<Self, UrlError> {
        let Parts { scheme, user, host, port, path } = parts;
        let host = host.to_ascii_lowercase();
        let user = check_user(text, scheme, user, &host)?;
        if scheme != Scheme::File {
            check_host(text, &host)?;
        }
        let path = path.trim_end_matches('/').to_owned();
        check_path(text, &path)?;
        let port = port.filter(|port| Some(*port) != scheme.default_port());
        let port_shown = port.map(|port| format!(":{port}")).unwrap_or_default();
        let compared = path.strip_suffix(".git").unwrap_or(&path).trim_start_matches('/');
        let normalised = format!("{}://{host}{port_shown}/{compared}", scheme.word());
        Ok(Self { scheme, user, host, port, path, normalised })
    }
}

struct Parts<'a> {
    scheme: Scheme,
    user: Option<&'a str>,
    host: &'a str,
    port: Option<u16>,
    path: String,
}

/// The address as an error may show it: without anything before an `@`, and cut.
fn shown(text: &str) -> String {
    let text: String = text.chars().take(200).collect();
    match (text.find("://"), text.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => {
            let (head, rest) = (text.get(..scheme + 3), text.get(at + 1..));
            format!("{}{}", head.unwrap_or_default(), rest.unwrap_or_default())
        }
        _ => text,
    }
}

fn scheme_error(text: &str, scheme: &str, remedy: &'static str) -> UrlError {
    UrlError::Scheme { url: shown(text), scheme: scheme.to_owned(), remedy }
}

fn host_error(text: &str, host: &str, problem: &'static str) -> UrlError {
    UrlError::Host { url: shown(text), host: host.to_owned(), problem }
}

/// `host`, `host:port`, `[address]` or `[address]:port`.
fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match authority.rfind(']') {
        Some(end) => (authority.get(..=end)?, authority.get(end + 1..)?),
        None => authority.find(':').map_or(Some((authority, "")), |at| {
            Some((authority.get(..at)?, authority.get(at..)?))
        })?,
    };
    if port.is_empty() {
        return Some((host, None));
    }
    let port = port.strip_prefix(':')?;
    port.bytes().all(|byte| byte.is_ascii_digit()).then_some(())?;
    Some((host, Some(port.parse().ok().filter(|port| *port > 0)?)))
}

fn check_user(
    text: &str,
    scheme: Scheme,
    user: Option<&str>,
    host: &str,
) -> Result<Option<String>, UrlError> {
    let Some(user) = user else {
        return Ok(None);
    };
    if scheme != Scheme::Ssh || user.contains(':') {
        return Err(UrlError::Credentials { host: host.to_owned() });
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if user.is_empty() || user.starts_with('-') || !user.bytes().all(plain) {
        return Err(UrlError::Malformed { url: shown(text) });
    }
    Ok(Some(user.to_owned()))
}

fn check_host(text: &str, host: &str) -> Result<(), UrlError> {
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        let address: Ipv6Addr =
            address.parse().map_err(|_| host_error(text, host, "is not an IPv6 address"))?;
        return match forbidden_address(IpAddr::V6(address)) {
            Some(problem) => Err(host_error(text, host, problem)),
            None => Ok(()),
        };
    }
    if let Ok(address) = host.parse::<Ipv4Addr>() {
        return match forbidden_address(IpAddr::V4(address)) {
            Some(problem) => Err(host_error(text, host, problem)),
            None => Ok(()),
        };
    }
    let label_fits = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.len() > 253 || !name.split('.').all(label_fits) {
        return Err(host_error(text, host, "is not a host name"));
    }
    // `2852039166`, `0xa9.254.169.254`: resolvers read them as addresses, eyes do not.
    let last = name.rsplit('.').next().unwrap_or_default();
    if last.starts_with("0x") || last.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(host_error(text, host, "is a number: write the address as four decimal parts"));
    }
    if METADATA_HOSTS.contains(&name) {
        return Err(host_error(text, host, "serves machine credentials, not repositories"));
    }
    Ok(())
}

/// Addresses that no repository has: link-local (where clouds serve credentials), unspecified, multicast.
pub(crate) fn forbidden_address(address: IpAddr) -> Option<&'static str> {
    let forbidden_v4 = |address: Ipv4Addr| {
        address.is_link_local()
            || address.is_unspecified()
            || address.is_multicast()
            || address.is_broadcast()
            || address == Ipv4Addr::new(100, 100, 100, 200)
    };
    let forbidden = match address {
        IpAddr::V4(address) => forbidden_v4(address),
        IpAddr::V6(address) => {
            address.is_unspecified()
                || address.is_multicast()
                || address.is_unicast_link_local()
                || address == Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)
                || address.to_ipv4_mapped().is_some_and(forbidden_v4)
        }
    };
    forbidden.then_some("is link-local, unspecified or multicast: no repository is served there")
}

fn check_path(text: &str, path: &str) -> Result<(), UrlError> {
    let refuse = |problem| Err(UrlError::Path { url: shown(text), problem });
    let inner = path.strip_prefix('/').unwrap_or(path);
    if inner.is_empty() || inner == ".git" {
        return refuse("is empty: name the repository after the host");
    }
    if inner.starts_with('-') {
        return refuse("begins with `-`, which a program would read as an option");
    }
    if path.contains(['?', '#']) {
        return refuse("has a query or a fragment: remove it");
    }
    let lower = path.to_ascii_lowercase();
    if ["%2e", "%2f", "%5c", "%00", "%0a", "%0d"].iter().any(|escape| lower.contains(escape)) {
        return refuse("hides a dot, a separator or a line end behind `%`: write it plainly");
    }
    if inner.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
        return refuse("has an empty, `.` or `..` part: write it in full");
    }
    Ok(())
}

fn allowed_file(path: &str, policy: &UrlPolicy) -> Result<String, UrlError> {
    let suggestion = || {
        let parent = Path::new(path).parent().unwrap_or_else(|| Path::new("/"));
        parent.display().to_string()
    };
    let not_allowed =
        || UrlError::FileNotAllowed { path: path.to_owned(), suggestion: suggestion() };
    // Nothing about the file system is told to whoever may not read it.
    if policy.file_directories.is_empty() {
        return Err(not_allowed());
    }
    let lies_below = |path: &Path, canonical: bool| {
        policy.file_directories.iter().any(|directory| match canonical {
            true => directory.canonicalize().is_ok_and(|directory| path.starts_with(directory)),
            false => path.starts_with(directory),
        })
    };
    let resolved = match Path::new(path).canonicalize() {
        Ok(resolved) => resolved,
        Err(problem) if lies_below(Path::new(path), false) => {
            let problem = problem.to_string();
            return Err(UrlError::FileMissing { path: path.to_owned(), problem });
        }
        Err(_) => return Err(not_allowed()),
    };
    if !lies_below(&resolved, true) {
        return Err(not_allowed());
    }
    resolved.to_str().map(str::to_owned).ok_or_else(|| UrlError::Malformed { url: shown(path) })
}

#[cfg(test)]
mod tests {
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
    fn hostile_addresses_are_refused_by_name() {
        let table = [
            ("--upload-pack=touch /tmp/x", "not understood"),
            ("--upload-pack=x", "not understood"),
            ("ext::sh -c touch", "not understood"),
            ("ext::sh", "runs a helper program"),
            ("ext://x/y", "never spoken"),
            ("ftp://git.example/a", "never spoken"),
            ("https://user:secret@git.example/a", "carries credentials"),
            ("https://user@git.example/a", "carries credentials"),
            ("ssh://git:secret@git.example/a", "carries credentials"),
            ("ssh://-oProxyCommand=x@git.example/a", "not understood"),
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
            ("https://git.example:99999/a", "not understood"),
            ("https://git.example:+1/a", "not understood"),
            ("https://git.exаmple/a", "not understood"),
            ("https://git.example/a\nb", "not understood"),
            ("http://git.example/a", "--allow-http-repositories"),
            ("git://git.example/a", "\"git\" is not supported"),
            ("GIT://git.example/a", "use https or ssh"),
            ("file:///etc", "--allow-file-repositories"),
            ("file://other/etc", "is not this machine"),
            ("/etc", "not understood"),
            ("", "not understood"),
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
