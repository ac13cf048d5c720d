//! The HTTP client for https repositories: its certificate authority, its time limit and the addresses it connects to.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use gix::protocol::transport::client::blocking_io::http;

use super::address::allowed_addresses;
use super::{CONNECT_SECONDS_MAX, Remote};
use crate::source::messages::ADDRESS_REFUSED;

/// Maximum number of redirects that are followed, one after the other.
const REDIRECTS_MAX: usize = 5;

/// Configures a client for the repository of `remote`. It follows redirects to the same scheme, host and port; the client
/// of gix follows none.
///
/// # Errors
/// If the certificate authorities of `remote` are not a list of PEM certificates.
pub(crate) fn configure_client(
    builder: reqwest::blocking::ClientBuilder,
    remote: &Remote,
    timeout: Duration,
) -> Result<reqwest::blocking::ClientBuilder, reqwest::Error> {
    let host = remote.url.host().to_owned();
    let resolver = RepositoryResolver { host, allow_loopback: remote.allow_loopback };
    let builder = builder
        .timeout(timeout)
        .connect_timeout(Duration::from_secs(CONNECT_SECONDS_MAX))
        .redirect(reqwest::redirect::Policy::custom(follow_same_place))
        .dns_resolver(Arc::new(resolver))
        .user_agent(concat!("git/2 (attest ", env!("CARGO_PKG_VERSION"), ")"));
    match &remote.credentials.ca_pem {
        None => Ok(builder),
        Some(pem) => Ok(builder.tls_certs_only(reqwest::Certificate::from_pem_bundle(pem)?)),
    }
}

/// Returns the options with which gix creates its client.
pub(super) fn gix_options(remote: &Remote, timeout: Duration) -> http::Options {
    let remote = remote.clone();
    let backend = http::reqwest::Options {
        configure_client: Some(Box::new(move |builder| {
            configure_client(builder, &remote, timeout).map_err(gix::Error::from_error)
        })),
        ..Default::default()
    };
    http::Options {
        follow_redirects: http::options::FollowRedirects::None,
        backend: Some(Arc::new(Mutex::new(backend))),
        ..Default::default()
    }
}

/// Redirect of a repository by its server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Redirect {
    /// The server does not redirect the repository.
    None,
    /// To this address of the same scheme, host and port.
    SameHost(String),
    /// To another place, which is not followed.
    Elsewhere(String),
}

/// Asks the server where it redirects the repository at `address` to.
///
/// # Errors
/// If the server does not answer.
pub(super) fn redirect_of(
    remote: &Remote,
    address: &str,
    timeout: Duration,
) -> Result<Redirect, reqwest::Error> {
    let builder = reqwest::blocking::Client::builder();
    let client = configure_client(builder, remote, timeout)?.build()?;
    let request = client.get(format!("{address}{UPLOAD_PACK_QUERY}")).build()?;
    let requested = request.url().clone();
    let response = client.execute(request)?;
    if response.status().is_redirection() {
        let location = response.headers().get(reqwest::header::LOCATION);
        let target = location.and_then(|target| response.url().join(target.to_str().ok()?).ok());
        let elsewhere = target.filter(|target| !is_same_place(response.url(), target));
        return Ok(elsewhere.map_or(Redirect::None, |to| Redirect::Elsewhere(without_login(to))));
    }
    let moved = Some(response.url()).filter(|url| **url != requested);
    let repository = moved.and_then(|url| url.as_str().strip_suffix(UPLOAD_PACK_QUERY));
    Ok(repository.map_or(Redirect::None, |found| Redirect::SameHost(found.to_owned())))
}

/// Path and query of the first request of a fetch.
const UPLOAD_PACK_QUERY: &str = "/info/refs?service=git-upload-pack";

fn follow_same_place(attempt: reqwest::redirect::Attempt<'_>) -> reqwest::redirect::Action {
    let previous = attempt.previous();
    let is_same = previous.last().is_some_and(|from| is_same_place(from, attempt.url()));
    if is_same && previous.len() <= REDIRECTS_MAX { attempt.follow() } else { attempt.stop() }
}

fn is_same_place(from: &reqwest::Url, to: &reqwest::Url) -> bool {
    from.scheme() == to.scheme()
        && from.host_str() == to.host_str()
        && from.port_or_known_default() == to.port_or_known_default()
}

fn without_login(mut url: reqwest::Url) -> String {
    // Fails only for addresses that cannot have a login.
    let _ = url.set_username("").and_then(|()| url.set_password(None));
    url.set_query(None);
    url.to_string()
}

/// Resolves names like the system, without addresses that the repository may not be read from.
struct RepositoryResolver {
    /// Host of the repository. Other names are those of proxies, which the operator of the process sets.
    host: String,
    allow_loopback: bool,
}

impl reqwest::dns::Resolve for RepositoryResolver {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let is_repository = name.as_str().eq_ignore_ascii_case(&self.host);
        let allow_loopback = self.allow_loopback || !is_repository;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed = allowed_addresses(found, allow_loopback)
                .map_err(|(address, problem)| format!("{ADDRESS_REFUSED}: {address} {problem}"))?;
            Ok(Box::new(allowed.into_iter()) as reqwest::dns::Addrs)
        })
    }
}
