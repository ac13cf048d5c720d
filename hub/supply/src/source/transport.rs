//! One exchange with a Git server: the connection, its time limit and the classification of its failures.
//!
//! gix implements https. For ssh and file a program runs (`ssh`, `git upload-pack`), which is killed when the time is
//! over. Which objects are requested is decided by the caller.

mod address;
mod clients;
mod http;
mod program;
mod watchdog;

use std::any::Any;
use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use gix::protocol::transport::Protocol;
use gix::protocol::transport::client::blocking_io::{Transport, connect};
use gix::protocol::transport::client::git::{self, blocking_io::Connection};

use super::Remote;
use super::error::SourceError;
use super::messages::{self, FailureCause};
use super::url::{RepositoryUrl, Scheme};
use crate::text::one_line;
use watchdog::{Termination, Watchdog};

pub(crate) use clients::KeptClients;
pub(crate) use http::configure_client;
pub(crate) use program::GitService;
pub(crate) use watchdog::size_of_files;

/// Time limit for a connection to be established, in seconds.
const CONNECT_SECONDS_MAX: u64 = 10;
/// Time limit for reading the diagnostics of a killed program, in milliseconds.
const DIAGNOSTICS_WAIT_MS: u64 = 500;

/// Connection to `git-upload-pack`.
pub(crate) type GitConnection = Box<dyn Transport + Send>;

/// An exchange in progress. Ends when it is dropped.
#[derive(Debug)]
pub(crate) struct GitExchange {
    url: RepositoryUrl,
    /// Address that the server has redirected the repository to, on the same host.
    redirected: Option<String>,
    watchdog: Watchdog,
    started: Instant,
    timeout: Duration,
    growth_bytes_max: u64,
    diagnostics: Option<Receiver<String>>,
    _identity: Option<tempfile::TempDir>,
}

impl GitExchange {
    /// Starts an exchange that ends after `timeout`, or earlier when the caller sets `interrupt`.
    pub(crate) fn start(
        url: &RepositoryUrl,
        timeout: Duration,
        interrupt: &Arc<AtomicBool>,
    ) -> Self {
        Self {
            url: url.clone(),
            redirected: None,
            watchdog: Watchdog::start(timeout, interrupt),
            started: Instant::now(),
            timeout,
            growth_bytes_max: 0,
            diagnostics: None,
            _identity: None,
        }
    }

    pub(crate) fn url(&self) -> &RepositoryUrl {
        &self.url
    }

    /// Returns the address of the repository, after a redirect on the same host.
    pub(crate) fn address(&self) -> String {
        self.redirected.clone().unwrap_or_else(|| self.url.address())
    }

    /// Ends the exchange when the files in `directory` exceed `bytes_max` bytes.
    pub(crate) fn limit_growth(&mut self, directory: PathBuf, bytes_max: u64) {
        self.growth_bytes_max = bytes_max;
        self.watchdog.limit_growth(directory, bytes_max);
    }

    /// Returns the flag that interrupts work inside gix.
    pub(crate) fn stop_flag(&self) -> &AtomicBool {
        self.watchdog.stop_flag()
    }

    /// Connects to `git-upload-pack`; returns the connection and its transport options.
    ///
    /// # Errors
    /// [`SourceError`] if the connection cannot be prepared.
    pub(crate) fn connect(
        &mut self,
        remote: &Remote,
    ) -> Result<(GitConnection, Option<Box<dyn Any>>), SourceError> {
        match self.url.scheme() {
            Scheme::Https | Scheme::Http => {
                self.check_address(remote)?;
                let address = gix::url::parse(self.address().as_str())
                    .map_err(|error| self.classify_error(&error))?;
                let options = connect::Options { version: Protocol::V2, ..Default::default() };
                let connection = connect::connect(address, options)
                    .map_err(|error| self.classify_error(&error))?;
                Ok((connection, Some(Box::new(http::gix_options(remote, self.timeout)))))
            }
            Scheme::Ssh | Scheme::File => {
                let (output, input) = self.spawn_program(remote, GitService::UploadPack)?;
                let connection = Connection::new(
                    output,
                    input,
                    Protocol::V2,
                    self.url.path().to_owned(),
                    None::<(String, Option<u16>)>,
                    git::ConnectMode::Process,
                    false,
                );
                Ok((Box::new(connection), None))
            }
        }
    }

    /// Checks the host of `remote` if it is written as an address.
    ///
    /// # Errors
    /// [`SourceError::AddressRefused`].
    pub(crate) fn check_address(&self, remote: &Remote) -> Result<(), SourceError> {
        address::check_literal(&self.url, remote.allow_loopback)
    }

    /// After a failure of the protocol, asks an https server for a redirect. Returns whether to connect again, to the
    /// new address on the same host.
    ///
    /// # Errors
    /// `failure`, or [`SourceError::RedirectRefused`] for a redirect to another host.
    pub(crate) fn follow_redirect(
        &mut self,
        remote: &Remote,
        failure: SourceError,
    ) -> Result<(), SourceError> {
        let is_http = matches!(self.url.scheme(), Scheme::Https | Scheme::Http);
        let may_be_redirect = matches!(failure, SourceError::Protocol { .. });
        if !is_http || !may_be_redirect || self.redirected.is_some() {
            return Err(failure);
        }
        match http::redirect_of(remote, &self.url.address(), self.timeout) {
            Ok(http::Redirect::SameHost(address)) => {
                self.redirected = Some(address);
                Ok(())
            }
            Ok(http::Redirect::Elsewhere(location)) => {
                Err(SourceError::RedirectRefused { url: self.url.to_string(), location })
            }
            Ok(http::Redirect::None) | Err(_) => Err(failure),
        }
    }

    /// Starts the program that reaches `service`; returns its output and its input.
    ///
    /// # Errors
    /// [`SourceError::ProgramMissing`] if it cannot be started, [`SourceError::SshKeyMissing`] without a key for ssh.
    pub(crate) fn spawn_program(
        &mut self,
        remote: &Remote,
        service: GitService,
    ) -> Result<(ChildStdout, ChildStdin), SourceError> {
        let (mut command, name, package) = match self.url.scheme() {
            Scheme::File => (program::file_command(&self.url, service), "git", "git"),
            Scheme::Ssh | Scheme::Https | Scheme::Http => {
                let (command, identity) = program::ssh_command(remote, service)?;
                self._identity = Some(identity);
                (command, "ssh", "openssh-client")
            }
        };
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| SourceError::ProgramMissing {
            url: self.url.to_string(),
            program: name,
            package,
            source,
        })?;
        let pipes = child.stdout.take().zip(child.stdin.take());
        self.diagnostics = child.stderr.take().map(program::collect_diagnostics);
        self.watchdog.guard(child);
        pipes.ok_or_else(|| SourceError::Protocol {
            url: self.url.to_string(),
            detail: format!("{name} has no pipes"),
        })
    }

    /// Converts a failure of gix during this exchange.
    pub(crate) fn classify_error(&mut self, error: &gix::Error) -> SourceError {
        let messages: Vec<String> = error.iter_errors().map(|error| format!("{error:#}")).collect();
        let is_denied = error.iter_errors().any(|error| {
            error
                .downcast_ref::<std::io::Error>()
                .is_some_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
        });
        self.classify(&messages.join(": "), is_denied || error.is_unauthenticated())
    }

    /// Converts a failure that is known by its message only.
    pub(crate) fn classify_message(&mut self, message: &str) -> SourceError {
        self.classify(message, false)
    }

    fn classify(&mut self, message: &str, is_unauthenticated: bool) -> SourceError {
        if let Some(termination) = self.watchdog.termination() {
            return self.terminated(termination);
        }
        let diagnostics = self.take_diagnostics();
        let output = format!("{message} {diagnostics}");
        let detail = one_line(if diagnostics.is_empty() { message } else { &diagnostics });
        if self.is_time_over() && messages::reports_timeout(&output) {
            return self.terminated(Termination::TimedOut);
        }
        let url = self.url.to_string();
        let host = self.url.host().to_owned();
        match messages::classify(&output) {
            Some(FailureCause::Address) => SourceError::AddressRefused { url, detail },
            Some(FailureCause::HostKey) => SourceError::HostKeyRefused { host, detail },
            Some(FailureCause::Certificate) => SourceError::CertificateRefused { host, detail },
            Some(FailureCause::Authentication) => SourceError::AuthenticationFailed { url, detail },
            _ if is_unauthenticated => SourceError::AuthenticationFailed { url, detail },
            Some(FailureCause::NotFound) => SourceError::RepositoryNotFound { url, detail },
            Some(FailureCause::Unreachable) => SourceError::Unreachable { url, detail },
            None => SourceError::Protocol { url, detail },
        }
    }

    fn terminated(&self, termination: Termination) -> SourceError {
        let url = self.url.to_string();
        match termination {
            Termination::TimedOut => {
                SourceError::TimedOut { url, limit_seconds: self.timeout.as_secs() }
            }
            Termination::Interrupted => SourceError::Interrupted { url },
            Termination::SizeExceeded => SourceError::LimitExceeded {
                subject: format!("the data that {url} sends for one commit"),
                limit: self.growth_bytes_max,
                unit: "bytes",
                remedy: "keep large files in another repository",
            },
        }
    }

    /// The HTTP client has the time limit of the watchdog and may report it earlier.
    fn is_time_over(&self) -> bool {
        let tolerance = Duration::from_millis(2 * watchdog::CHECK_INTERVAL_MS);
        self.started.elapsed() + tolerance >= self.timeout
    }

    fn take_diagnostics(&mut self) -> String {
        let Some(diagnostics) = self.diagnostics.take() else {
            return String::new();
        };
        self.watchdog.kill_child();
        diagnostics.recv_timeout(Duration::from_millis(DIAGNOSTICS_WAIT_MS)).unwrap_or_default()
    }
}
