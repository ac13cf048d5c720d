//! The flags of `attest-hub`, as written and as used.

use std::path::PathBuf;
use std::time::Duration;

use attest_runtime::log::LogArgs;
use attest_runtime::probes::ListenAddress;
use attest_supply::source::UrlPolicy;
use clap::Parser;

use crate::home::HOME_VARIABLE;

/// How often a repository is asked what its revision is, unless told otherwise, in milliseconds.
pub(crate) const POLL_INTERVAL_DEFAULT_MS: u64 = 30_000;
/// Shortest interval that is accepted, in milliseconds.
pub(crate) const POLL_INTERVAL_MIN_MS: u64 = 100;

/// The hub of an ATTEST fleet.
#[derive(Clone, Debug, Parser)]
#[command(name = "attest-hub", version)]
pub struct Options {
    /// Directory that `attest hub init` made.
    #[arg(long, env = HOME_VARIABLE)]
    pub home: PathBuf,
    /// Where spokes dial (UDP). Port 0 takes a free one.
    #[arg(long, default_value = "0.0.0.0:4433", value_name = "ADDRESS:PORT")]
    pub listen_spokes: ListenAddress,
    /// Where operators reach the API (HTTPS).
    #[arg(long, default_value = "127.0.0.1:8443", value_name = "ADDRESS:PORT")]
    pub listen_api: ListenAddress,
    /// `/health` and `/ready`.
    #[arg(long, default_value = ":8081", value_name = "[ADDRESS]:PORT")]
    pub listen_health: ListenAddress,
    /// `/metrics`.
    #[arg(long, default_value = ":8080", value_name = "[ADDRESS]:PORT")]
    pub listen_metrics: ListenAddress,
    /// How often each repository is asked for news, in milliseconds.
    #[arg(long, default_value_t = POLL_INTERVAL_DEFAULT_MS, value_parser = clap::value_parser!(u64).range(POLL_INTERVAL_MIN_MS..))]
    pub poll_interval_ms: u64,
    /// Allow `file://` repositories below this directory. May be repeated.
    #[arg(long, value_name = "DIR")]
    pub allow_file_repositories: Vec<PathBuf>,
    /// Allow `http://` repositories: unencrypted.
    #[arg(long)]
    pub allow_http_repositories: bool,
    #[command(flatten)]
    pub log: LogArgs,
}

impl Options {
    /// Which repository addresses are spoken to.
    pub fn urls(&self) -> UrlPolicy {
        UrlPolicy {
            file_directories: self.allow_file_repositories.clone(),
            allow_http: self.allow_http_repositories,
        }
    }

    /// How often each repository is asked for news.
    pub(crate) fn poll_interval(&self) -> Duration {
        Duration::from_millis(self.poll_interval_ms)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_flags_agree_with_each_other() {
        Options::command().debug_assert();
    }
}
