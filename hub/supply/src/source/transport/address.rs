//! Addresses that an exchange connects to: the host of a repository is resolved once, and only allowed addresses are used.
//!
//! A name may resolve to any address, also to one of the hub's own machine. So the address is checked, not the name.

use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use super::CONNECT_SECONDS_MAX;
use crate::source::error::SourceError;
use crate::source::url::{RepositoryUrl, forbidden_address};

/// Port of ssh.
pub(super) const SSH_PORT: u16 = 22;

/// Returns the rule that `address` violates. Loopback is the hub's own machine: services there trust its clients.
pub(super) fn address_problem(address: IpAddr, allow_loopback: bool) -> Option<&'static str> {
    let is_loopback = address.to_canonical().is_loopback();
    if is_loopback && !allow_loopback {
        return Some("is a loopback address");
    }
    forbidden_address(address)
}

/// Checks a host that is written as an address; a name is checked when it is resolved.
///
/// # Errors
/// [`SourceError::AddressRefused`].
pub(super) fn check_literal(url: &RepositoryUrl, allow_loopback: bool) -> Result<(), SourceError> {
    let host = url.bare_host();
    let Ok(address) = host.parse::<IpAddr>() else { return Ok(()) };
    match address_problem(address, allow_loopback) {
        Some(problem) => Err(refused(url, address, problem)),
        None => Ok(()),
    }
}

/// Keeps the allowed of the addresses that `host` resolves to.
///
/// # Errors
/// The first that is not allowed, with the rule that it violates, if none is.
pub(super) fn allowed_addresses(
    found: impl Iterator<Item = SocketAddr>,
    allow_loopback: bool,
) -> Result<Vec<SocketAddr>, (IpAddr, &'static str)> {
    let mut allowed = Vec::new();
    let mut first_refused = None;
    for address in found {
        match address_problem(address.ip(), allow_loopback) {
            None => allowed.push(address),
            Some(problem) => {
                first_refused.get_or_insert_with(|| (address.ip(), problem));
            }
        }
    }
    match first_refused {
        Some(refused) if allowed.is_empty() => Err(refused),
        Some(_) | None => Ok(allowed),
    }
}

/// Returns the address that ssh connects to. Of several, the first that accepts a connection.
///
/// # Errors
/// [`SourceError::Unreachable`] if the name does not resolve, [`SourceError::AddressRefused`].
pub(super) fn ssh_address(
    url: &RepositoryUrl,
    allow_loopback: bool,
) -> Result<IpAddr, SourceError> {
    let host = url.bare_host();
    let port = url.port().unwrap_or(SSH_PORT);
    let found =
        (host, port).to_socket_addrs().map_err(|error| unreachable(url, error.to_string()))?;
    let allowed = allowed_addresses(found, allow_loopback)
        .map_err(|(address, problem)| refused(url, address, problem))?;
    let chosen = match allowed.as_slice() {
        [only] => Some(only),
        several => {
            several.iter().find(|address| accepts_connections(address)).or_else(|| several.first())
        }
    };
    chosen.map(SocketAddr::ip).ok_or_else(|| unreachable(url, "the name has no address".to_owned()))
}

fn accepts_connections(address: &SocketAddr) -> bool {
    let timeout = Duration::from_secs(CONNECT_SECONDS_MAX);
    TcpStream::connect_timeout(address, timeout).is_ok()
}

fn unreachable(url: &RepositoryUrl, detail: String) -> SourceError {
    SourceError::Unreachable { url: url.to_string(), detail }
}

fn refused(url: &RepositoryUrl, address: IpAddr, problem: &str) -> SourceError {
    let detail = format!("{address} {problem}");
    SourceError::AddressRefused { url: url.to_string(), detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_needs_a_flag_and_other_local_addresses_are_never_allowed() {
        for (address, without, with) in [
            ("127.0.0.1", false, true),
            ("127.8.9.10", false, true),
            ("::1", false, true),
            ("::ffff:127.0.0.1", false, true),
            ("169.254.169.254", false, false),
            ("::ffff:169.254.169.254", false, false),
            ("fe80::1", false, false),
            ("0.0.0.0", false, false),
            ("::", false, false),
            ("fd00:ec2::254", false, false),
            ("10.0.0.1", true, true),
            ("192.0.2.1", true, true),
            ("2001:db8::1", true, true),
        ] {
            let parsed = address.parse().unwrap();
            assert_eq!(address_problem(parsed, false).is_none(), without, "{address}");
            assert_eq!(address_problem(parsed, true).is_none(), with, "{address}");
        }
    }

    #[test]
    fn a_name_with_allowed_and_other_addresses_is_reached_at_the_allowed_ones() {
        let all = ["127.0.0.1:1", "192.0.2.1:1", "169.254.1.1:1"];
        let parse = |texts: &[&str]| {
            texts.iter().map(|text| text.parse::<SocketAddr>().unwrap()).collect::<Vec<_>>()
        };
        let allowed = |texts: &[&str]| allowed_addresses(parse(texts).into_iter(), false);

        assert_eq!(allowed(&all).unwrap(), parse(&["192.0.2.1:1"]));
        let (address, problem) = allowed(&["127.0.0.1:1", "169.254.1.1:1"]).unwrap_err();
        assert_eq!(address.to_string(), "127.0.0.1");
        assert_eq!(problem, "is a loopback address");
        assert_eq!(allowed(&[]).unwrap(), []);
    }
}
