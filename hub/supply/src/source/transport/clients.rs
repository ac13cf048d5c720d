//! HTTP clients that keep their connections between requests: one for all repositories of a host that are reached alike.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use attest_common::basics::locked::Locked;
use reqwest::blocking::Client;

use super::http::configure_client;
use crate::source::Remote;
use crate::source::url::Scheme;

/// Most clients that are kept: each has a thread, and keeps the connections of a host.
const CLIENTS_MAX: usize = 64;
/// Lifetime of a client, so that addresses and certificates are checked again for hosts whose connections never rest.
const CLIENT_LIFETIME: Duration = Duration::from_secs(60 * 60);

/// Clients by what makes their connections differ.
#[derive(Debug, Default)]
pub(crate) struct KeptClients {
    clients: Locked<BTreeMap<ClientKey, KeptClient>>,
}

/// Everything that [`configure_client`] configures a client by. Credentials belong to requests.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ClientKey {
    host: String,
    is_https: bool,
    allow_loopback: bool,
    ca_pem: Option<Vec<u8>>,
}

#[derive(Debug)]
struct KeptClient {
    client: Client,
    created: Instant,
}

impl KeptClients {
    /// Returns the client for the repository of `remote`; creates one if there is none that is young enough at `now`.
    /// A request ends after `timeout`, which is the same in all calls.
    ///
    /// # Errors
    /// As [`configure_client`].
    pub(crate) fn client(
        &self,
        remote: &Remote,
        timeout: Duration,
        now: Instant,
    ) -> Result<Client, reqwest::Error> {
        let key = ClientKey {
            host: remote.url.host().to_owned(),
            is_https: remote.url.scheme() == Scheme::Https,
            allow_loopback: remote.allow_loopback,
            ca_pem: remote.credentials.ca_pem.clone(),
        };
        let mut clients = self.clients.lock();
        clients.retain(|_, kept| now.saturating_duration_since(kept.created) < CLIENT_LIFETIME);
        if let Some(kept) = clients.get(&key) {
            return Ok(kept.client.clone());
        }
        let client = configure_client(Client::builder(), remote, timeout)?
            .https_only(key.is_https)
            .build()?;
        if clients.len() >= CLIENTS_MAX {
            let oldest = clients.iter().min_by_key(|(_, kept)| kept.created);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                clients.remove(&oldest);
            }
        }
        clients.insert(key, KeptClient { client: client.clone(), created: now });
        Ok(client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Credentials, Login, RepositoryUrl, UrlPolicy};

    fn remote(url: &str, password: &str, allow_loopback: bool) -> Remote {
        let url = RepositoryUrl::parse(url, &UrlPolicy::default()).unwrap();
        let login = Some(Login { username: "hub".into(), password: password.into() });
        let credentials = Credentials { login, ..Credentials::default() };
        Remote { url, credentials, allow_loopback }
    }

    fn kept_after(remotes: &[Remote], times: &[Instant]) -> usize {
        attest_certs::tls::install_provider();
        let clients = KeptClients::default();
        for (remote, now) in remotes.iter().zip(times) {
            clients.client(remote, Duration::from_secs(1), *now).unwrap();
        }
        clients.clients.lock().len()
    }

    #[test]
    fn repositories_of_a_host_share_a_client_unless_they_are_reached_differently() {
        let now = Instant::now();
        let alike = [
            remote("https://git.example/a", "one", false),
            remote("https://git.example/b", "another", false),
        ];
        let different = [
            remote("https://git.example/a", "one", true),
            remote("https://other.example/a", "one", false),
        ];

        assert_eq!(kept_after(&alike, &[now; 2]), 1);
        assert_eq!(kept_after(&[&alike[..], &different].concat(), &[now; 4]), 3);
    }

    #[test]
    fn clients_are_limited_in_number_and_lifetime() {
        let now = Instant::now();
        let many: Vec<Remote> = (0..CLIENTS_MAX + 2)
            .map(|n| remote(&format!("https://git-{n}.example/a"), "one", false))
            .collect();
        let later = [now, now + CLIENT_LIFETIME];

        assert_eq!(kept_after(&many, &vec![now; many.len()]), CLIENTS_MAX);
        assert_eq!(kept_after(&many, &later), 1);
    }
}
