//! The flags of `attest-hub`.

use std::path::PathBuf;
use std::time::Duration;

use attest_runtime::log::LogArgs;
use attest_runtime::probes::ListenAddress;
use attest_runtime::service_account::ServiceAccountArgs;
use attest_supply::source::UrlPolicy;
use clap::Parser;

use crate::home::HOME_VARIABLE;
use crate::kubernetes::KubernetesAccess;

/// Default interval between polls of a repository, in milliseconds.
pub(crate) const POLL_INTERVAL_DEFAULT_MS: u64 = 30_000;
/// Shortest accepted poll interval, in milliseconds.
pub(crate) const POLL_INTERVAL_MIN_MS: u64 = 100;

/// The hub of an ATTEST fleet.
#[derive(Clone, Debug, Parser)]
#[command(name = "attest-hub", version)]
pub struct Options {
    /// Home directory, created by `attest hub init`; with --in-cluster, by this program.
    #[arg(long, env = HOME_VARIABLE)]
    pub home: PathBuf,
    /// Listen address for spokes (UDP). Port 0 selects a free port.
    #[arg(
        long,
        env = "ATTEST_LISTEN_SPOKES",
        default_value = "0.0.0.0:4433",
        value_name = "ADDRESS:PORT"
    )]
    pub listen_spokes: ListenAddress,
    /// Listen address of the API for operators (HTTPS).
    #[arg(
        long,
        env = "ATTEST_LISTEN_API",
        default_value = "127.0.0.1:8443",
        value_name = "ADDRESS:PORT"
    )]
    pub listen_api: ListenAddress,
    /// Listen address of `/health` and `/ready`.
    #[arg(
        long,
        env = "ATTEST_LISTEN_HEALTH",
        default_value = ":8081",
        value_name = "[ADDRESS]:PORT"
    )]
    pub listen_health: ListenAddress,
    /// Listen address of `/metrics`.
    #[arg(
        long,
        env = "ATTEST_LISTEN_METRICS",
        default_value = ":8080",
        value_name = "[ADDRESS]:PORT"
    )]
    pub listen_metrics: ListenAddress,
    /// Listen address of the receiver for webhooks of Git servers (HTTP, at any path). Not served by default.
    #[arg(long, env = "ATTEST_LISTEN_WEBHOOKS", value_name = "[ADDRESS]:PORT")]
    pub listen_webhooks: Option<ListenAddress>,
    /// File with the key that Git servers sign webhooks with.
    #[arg(long, value_name = "FILE", requires = "listen_webhooks")]
    pub webhook_secret_file: Option<PathBuf>,
    /// Interval between polls of each repository, in milliseconds.
    #[arg(long, default_value_t = POLL_INTERVAL_DEFAULT_MS, value_parser = clap::value_parser!(u64).range(POLL_INTERVAL_MIN_MS..))]
    pub poll_interval_ms: u64,
    /// Run in a pod: AttestApplications are resources of its cluster, reached as the pod's service account.
    #[arg(long, conflicts_with = "kubeconfig")]
    pub in_cluster: bool,
    /// Kubeconfig of the hub's cluster, for a hub that manages AttestApplications there and runs elsewhere.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    pub service_account: ServiceAccountArgs,
    /// Address that spokes dial; by default that of the home, in a cluster that of the load balancer.
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// `https://HOST:PORT` of the API for operators of a hub in a cluster; without it, `attest` opens a port-forward.
    #[arg(long, value_name = "URL")]
    pub api_url: Option<String>,
    /// Allow `file://` repositories below this directory. May be repeated.
    #[arg(long, value_name = "DIR")]
    pub allow_file_repositories: Vec<PathBuf>,
    /// Allow `http://` repositories, which are unencrypted.
    #[arg(long)]
    pub allow_http_repositories: bool,
    /// Start on a system that cannot isolate rendering: authors of repositories then reach what this process reaches.
    #[arg(long)]
    pub allow_unisolated_rendering: bool,
    /// Program that renders; this one when absent.
    #[arg(skip)]
    pub render_program: Option<PathBuf>,
    #[command(flatten)]
    pub log: LogArgs,
}

impl Options {
    /// Returns the rules for repository addresses.
    pub fn urls(&self) -> UrlPolicy {
        UrlPolicy {
            file_directories: self.allow_file_repositories.clone(),
            allow_http: self.allow_http_repositories,
        }
    }

    /// Returns how to reach the hub's API server; `None` for a hub without one.
    pub(crate) fn kubernetes(&self) -> Option<KubernetesAccess> {
        match &self.kubeconfig {
            Some(path) => Some(KubernetesAccess::Kubeconfig(path.clone())),
            None if self.in_cluster => Some(KubernetesAccess::ServiceAccount(
                self.service_account.service_account_dir.clone(),
            )),
            None => None,
        }
    }

    /// Returns the interval between polls of each repository.
    pub(crate) fn poll_interval(&self) -> Duration {
        Duration::from_millis(self.poll_interval_ms)
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::*;

    #[test]
    fn the_flags_agree_with_each_other() {
        Options::command().debug_assert();
    }

    #[test]
    fn the_poll_interval_has_a_minimum() {
        let interval = |milliseconds: u64| {
            let milliseconds = milliseconds.to_string();
            let arguments = ["attest-hub", "--home", "h", "--poll-interval-ms", &milliseconds];
            Options::try_parse_from(arguments).map(|options| options.poll_interval()).ok()
        };

        assert_eq!(interval(POLL_INTERVAL_MIN_MS - 1), None);
        let shortest = Duration::from_millis(POLL_INTERVAL_MIN_MS);
        assert_eq!(interval(POLL_INTERVAL_MIN_MS), Some(shortest));
    }
}
