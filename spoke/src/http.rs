//! Health and readiness probes of the spoke, and the addresses on which it listens.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use attest_common::basics::locked::Locked;
use attest_common::basics::reason::Reason;
use attest_runtime::probes::{self, BindError, ListenAddress};
use tokio::net::TcpListener;

use crate::metrics::Metrics;

/// State of `/ready`: joined, trust policy loaded, records read. It does not depend on the connection to the hub.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<Locked<Ready>>);

#[derive(Debug)]
struct Ready {
    /// Reason that this spoke is not a member of the fleet, as text.
    outside: Option<String>,
    resumed: bool,
}

impl Default for Readiness {
    fn default() -> Self {
        let outside = Some("not joined yet".to_owned());
        Self(Arc::new(Locked::new(Ready { outside, resumed: false })))
    }
}

impl Readiness {
    /// Notes that this spoke is a member of the fleet, or the reason that it is not.
    pub fn joined(&self, joined: Result<(), String>) {
        self.0.lock().outside = joined.err();
    }

    /// Notes whether records and trust policy are loaded.
    pub fn resumed(&self, resumed: bool) {
        self.0.lock().resumed = resumed;
    }

    fn get(&self) -> Result<(), String> {
        let ready = self.0.lock();
        match &ready.outside {
            Some(why) => Err(why.clone()),
            None if ready.resumed => Ok(()),
            None => Err("no trust policy to work by yet".to_owned()),
        }
    }
}

/// Addresses on which the spoke listens.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    pub health: SocketAddr,
    pub metrics: SocketAddr,
}

/// Binds both ports and serves them in the background. Returns the actual addresses.
///
/// # Errors
/// If a port cannot be bound; the error names the flag.
pub async fn serve(
    (health, metrics): (ListenAddress, ListenAddress),
    readiness: Readiness,
    counted: Metrics,
) -> Result<Addresses, HttpError> {
    let health = probes::bind("--listen-health", health).await?;
    let metrics = probes::bind("--listen-metrics", metrics).await?;
    let addresses = Addresses { health: local(&health)?, metrics: local(&metrics)? };
    let ready = move || std::future::ready(readiness.get());
    tokio::spawn(probes::serve_status(health, ready));
    tokio::spawn(probes::serve_metrics(metrics, move || counted.text()));
    Ok(addresses)
}

fn local(listener: &TcpListener) -> Result<SocketAddr, HttpError> {
    listener.local_addr().map_err(HttpError::Address)
}

/// Writes the addresses to a file, for use with port 0.
///
/// # Errors
/// If the file cannot be written.
pub fn write_addresses(path: &Path, addresses: Addresses) -> Result<(), HttpError> {
    let Addresses { health, metrics } = addresses;
    let text = serde_json::json!({"health": health.to_string(), "metrics": metrics.to_string()});
    std::fs::write(path, text.to_string()).map_err(HttpError::AddressesFile)
}

/// Error of serving probes and metrics.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("failed to read the local address")]
    Address(#[source] std::io::Error),
    #[error("failed to write --addresses-file")]
    AddressesFile(#[source] std::io::Error),
}

impl HttpError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Bind(error) => error.reason(),
            Self::Address(_) | Self::AddressesFile(_) => Reason::AddressesFile,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spoke_is_ready_when_it_has_joined_and_has_a_policy_to_work_by() {
        let readiness = Readiness::default();
        assert!(readiness.get().is_err());
        readiness.resumed(true);
        assert!(readiness.get().is_err());
        readiness.joined(Ok(()));
        assert_eq!(readiness.get(), Ok(()));
        readiness.joined(Err("CertificateExpired".to_owned()));
        assert_eq!(readiness.get(), Err("CertificateExpired".to_owned()));
        readiness.joined(Ok(()));
        readiness.resumed(false);
        assert!(readiness.get().is_err());
    }

    #[tokio::test]
    async fn a_port_in_use_is_an_error_that_names_its_flag() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = ListenAddress(listener.local_addr().unwrap());
        let free: ListenAddress = "127.0.0.1:0".parse().unwrap();
        for (health, metrics, flag) in
            [(taken, free, "--listen-health"), (free, taken, "--listen-metrics")]
        {
            let served = serve((health, metrics), Readiness::default(), Metrics::new().unwrap());
            let error = served.await.unwrap_err();

            assert_eq!(error.reason().as_str(), "AddressInUse");
            let text = error.to_string();
            assert!(text.contains(flag) && text.contains(&taken.0.to_string()), "{text}");
        }
    }
}
