//! The flags of `attest-hub`, as written and as used.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use attest_supply::source::UrlPolicy;

/// How often a repository is asked what its revision is, unless told otherwise, in milliseconds.
pub const POLL_INTERVAL_DEFAULT_MS: u64 = 30_000;
/// Shortest interval that is accepted, in milliseconds.
pub const POLL_INTERVAL_MIN_MS: u64 = 100;

/// The hub of an ATTEST fleet.
#[derive(Clone, Debug, Parser)]
#[command(name = "attest-hub", version)]
pub struct Options {
    /// Directory that `attest hub init` made.
    #[arg(long, env = "ATTEST_HUB_HOME")]
    pub home: PathBuf,
    /// Where spokes dial (UDP). Port 0 takes a free one.
    #[arg(long, default_value = "0.0.0.0:4433", value_name = "ADDRESS:PORT")]
    pub listen_spokes: Listen,
    /// Where operators reach the API (HTTPS).
    #[arg(long, default_value = "127.0.0.1:8443", value_name = "ADDRESS:PORT")]
    pub listen_api: Listen,
    /// `/health` and `/ready`.
    #[arg(long, default_value = ":8081", value_name = "[ADDRESS]:PORT")]
    pub listen_health: Listen,
    /// `/metrics`.
    #[arg(long, default_value = ":8080", value_name = "[ADDRESS]:PORT")]
    pub listen_metrics: Listen,
    /// How often each repository is asked for news, in milliseconds.
    #[arg(long, default_value_t = POLL_INTERVAL_DEFAULT_MS, value_parser = clap::value_parser!(u64).range(POLL_INTERVAL_MIN_MS..))]
    pub poll_interval_ms: u64,
    /// Allow `file://` repositories below this directory. May be repeated.
    #[arg(long, value_name = "DIR")]
    pub allow_file_repositories: Vec<PathBuf>,
    /// Allow `http://` repositories: unencrypted.
    #[arg(long)]
    pub allow_http_repositories: bool,
    /// Allow `git://` repositories: unencrypted.
    #[arg(long)]
    pub allow_git_repositories: bool,
    /// error, warn, info, debug or trace, or a filter such as `attest_hub=debug`.
    #[arg(long, env = "ATTEST_LOG", default_value = "info")]
    pub log_level: String,
}

/// An address to listen on; `:PORT` stands for every address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen(pub SocketAddr);

impl std::str::FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let whole = match text.strip_prefix(':') {
            Some(port) => format!("0.0.0.0:{port}"),
            None => text.to_owned(),
        };
        let mut found = whole.to_socket_addrs().map_err(|_| wrong(text))?;
        found.next().map(Self).ok_or_else(|| wrong(text))
    }
}

fn wrong(text: &str) -> String {
    format!("`{text}` is no address to listen on; write ADDRESS:PORT or :PORT")
}

impl Options {
    /// Which repository addresses are spoken to.
    pub fn urls(&self) -> UrlPolicy {
        UrlPolicy {
            file_directories: self.allow_file_repositories.clone(),
            allow_http: self.allow_http_repositories,
            allow_git: self.allow_git_repositories,
        }
    }

    /// How often each repository is asked for news.
    pub fn poll_interval(&self) -> Duration {
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

    #[test]
    fn a_bare_port_means_every_address() {
        assert_eq!(":8081".parse::<Listen>().unwrap().0.to_string(), "0.0.0.0:8081");
        assert_eq!("127.0.0.1:0".parse::<Listen>().unwrap().0.to_string(), "127.0.0.1:0");
        assert!("8081".parse::<Listen>().unwrap_err().contains("ADDRESS:PORT"));
    }
}
