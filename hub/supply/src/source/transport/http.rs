//! The HTTP client for https repositories: its certificate authority, its time limit and the addresses it connects to.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gix::protocol::transport::client::blocking_io::http;

use super::{CONNECT_SECONDS_MAX, Remote};
use crate::source::url::forbidden_address;

/// Configures a client. `ca_pem` replaces the authorities of the system.
///
/// # Errors
/// If `ca_pem` is not a list of PEM certificates.
pub(crate) fn configure_client(
    builder: reqwest::blocking::ClientBuilder,
    ca_pem: Option<&[u8]>,
    timeout: Duration,
) -> Result<reqwest::blocking::ClientBuilder, reqwest::Error> {
    let builder = builder
        .timeout(timeout)
        .connect_timeout(Duration::from_secs(CONNECT_SECONDS_MAX))
        .dns_resolver(Arc::new(RepositoryResolver))
        .user_agent(concat!("git/2 (attest ", env!("CARGO_PKG_VERSION"), ")"));
    match ca_pem {
        None => Ok(builder),
        Some(pem) => Ok(builder.tls_certs_only(reqwest::Certificate::from_pem_bundle(pem)?)),
    }
}

/// Returns the options with which gix creates its client.
pub(super) fn gix_options(remote: &Remote, timeout: Duration) -> http::Options {
    let ca_pem = remote.credentials.ca_pem.clone();
    let backend = http::reqwest::Options {
        configure_client: Some(Box::new(move |builder| {
            configure_client(builder, ca_pem.as_deref(), timeout).map_err(gix::Error::from_error)
        })),
        ..Default::default()
    };
    http::Options { backend: Some(Arc::new(Mutex::new(backend))), ..Default::default() }
}

/// Resolves names like the system, without addresses at which no repository is served.
struct RepositoryResolver;

impl reqwest::dns::Resolve for RepositoryResolver {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> =
                found.filter(|address| forbidden_address(address.ip()).is_none()).collect();
            Ok(Box::new(allowed.into_iter()) as reqwest::dns::Addrs)
        })
    }
}
