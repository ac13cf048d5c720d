//! Rules for the parts of an address: user, host, path, and the directory of a file.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use super::{Scheme, UrlError, UrlPolicy, host_error, malformed, redacted};

/// Names at which cloud providers serve machine credentials. They never serve repositories.
const METADATA_HOSTS: [&str; 4] =
    ["metadata", "metadata.google.internal", "metadata.goog", "instance-data"];

pub(super) fn check_user(
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
    if user.is_empty() || user.starts_with('-') || !user.bytes().all(is_user_byte) {
        return Err(malformed(text));
    }
    Ok(Some(user.to_owned()))
}

fn is_user_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._-".contains(&byte)
}

pub(super) fn check_host(text: &str, host: &str) -> Result<(), UrlError> {
    match host_problem(host) {
        Some(problem) => Err(host_error(text, host, problem)),
        None => Ok(()),
    }
}

fn host_problem(host: &str) -> Option<&'static str> {
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return match address.parse::<Ipv6Addr>() {
            Ok(address) => forbidden_address(IpAddr::V6(address)),
            Err(_) => Some("is not an IPv6 address"),
        };
    }
    if let Ok(address) = host.parse::<Ipv4Addr>() {
        return forbidden_address(IpAddr::V4(address));
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.len() > 253 || !name.split('.').all(is_host_label) {
        return Some("is not a host name");
    }
    // `2852039166`, `0xa9.254.169.254`: resolvers read them as addresses, people do not.
    let last_label = name.rsplit('.').next().unwrap_or_default();
    if last_label.starts_with("0x") || last_label.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some("is a number; write the address as four decimal parts");
    }
    if METADATA_HOSTS.contains(&name) {
        return Some("serves machine credentials, not repositories");
    }
    None
}

fn is_host_label(label: &str) -> bool {
    !label.is_empty()
        && label.len() <= 63
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// Rejects addresses at which no repository is served: link-local (where cloud providers serve credentials),
/// unspecified, multicast.
pub(crate) fn forbidden_address(address: IpAddr) -> Option<&'static str> {
    let is_forbidden = match address {
        IpAddr::V4(address) => is_forbidden_v4(address),
        IpAddr::V6(address) => {
            address.is_unspecified()
                || address.is_multicast()
                || address.is_unicast_link_local()
                || address == Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)
                || address.to_ipv4_mapped().is_some_and(is_forbidden_v4)
        }
    };
    is_forbidden.then_some("is link-local, unspecified or multicast, where no repository is served")
}

fn is_forbidden_v4(address: Ipv4Addr) -> bool {
    address.is_link_local()
        || address.is_unspecified()
        || address.is_multicast()
        || address.is_broadcast()
        || address == Ipv4Addr::new(100, 100, 100, 200)
}

pub(super) fn check_path(text: &str, path: &str) -> Result<(), UrlError> {
    match path_problem(path) {
        Some(problem) => Err(UrlError::Path { url: redacted(text), problem }),
        None => Ok(()),
    }
}

fn path_problem(path: &str) -> Option<&'static str> {
    let relative = path.strip_prefix('/').unwrap_or(path);
    if relative.is_empty() || relative == ".git" {
        return Some("is empty; append the name of the repository");
    }
    if relative.starts_with('-') {
        return Some("begins with `-`, which a program would read as an option");
    }
    if path.contains(['?', '#']) {
        return Some("has a query or a fragment; remove it");
    }
    let lower = path.to_ascii_lowercase();
    if ["%2e", "%2f", "%5c", "%00", "%0a", "%0d"].iter().any(|escape| lower.contains(escape)) {
        return Some(
            "hides a dot, a separator or a line end behind `%`; write the character itself",
        );
    }
    if relative.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
        return Some("has an empty, `.` or `..` part; write the full path");
    }
    None
}

/// Resolves the path of a `file://` repository, which must be in an allowed directory.
pub(super) fn allowed_file(path: &str, policy: &UrlPolicy) -> Result<String, UrlError> {
    // A caller without any allowed directory learns nothing about the file system.
    if policy.file_directories.is_empty() {
        return Err(file_not_allowed(path));
    }
    let resolved = match Path::new(path).canonicalize() {
        Ok(resolved) => resolved,
        Err(error) => {
            let is_allowed = policy
                .file_directories
                .iter()
                .any(|directory| Path::new(path).starts_with(directory));
            return Err(match is_allowed {
                true => UrlError::FileMissing { path: path.to_owned(), problem: error.to_string() },
                false => file_not_allowed(path),
            });
        }
    };
    let is_allowed = policy.file_directories.iter().any(|directory| {
        directory.canonicalize().is_ok_and(|directory| resolved.starts_with(directory))
    });
    if !is_allowed {
        return Err(file_not_allowed(path));
    }
    resolved.to_str().map(str::to_owned).ok_or_else(|| malformed(path))
}

fn file_not_allowed(path: &str) -> UrlError {
    let parent = Path::new(path).parent().unwrap_or_else(|| Path::new("/"));
    UrlError::FileNotAllowed { path: path.to_owned(), suggestion: parent.display().to_string() }
}
