//! One conversation with a Git server: the wire, its time limit, and what its failure means.
//!
//! https is spoken by gix itself. For ssh and file a program is run (`ssh`, `git upload-pack`) with a
//! clean environment, watched and killed when the time is over. Which objects are asked for is not decided here.

use std::any::Any;
use std::ffi::OsString;
use std::io::{Read, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use attest_common::basics::locked::Locked;
use gix::protocol::transport::Protocol;
use gix::protocol::transport::client::blocking_io::{Transport, connect, http};
use gix::protocol::transport::client::git::{self, blocking_io::Connection};

use super::Remote;
use super::error::SourceError;
use super::messages::{self, FailureCause};
use super::url::{RepositoryUrl, Scheme, forbidden_address};
use crate::text::one_line;

/// How long a connection may take to come about, in seconds.
const CONNECT_SECONDS_MAX: u64 = 10;
/// How often the watchdog looks, in milliseconds.
const WATCH_MS: u64 = 50;
/// How much of a program's error output is kept, in bytes.
const ERROR_OUTPUT_BYTES_MAX: u64 = 16 * 1024;
/// How long a dead program's error output is waited for, in milliseconds.
const ERROR_OUTPUT_WAIT_MS: u64 = 500;

pub(crate) type Wire = Box<dyn Transport + Send>;

/// A conversation in progress. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Call {
    url: RepositoryUrl,
    watchdog: Watchdog,
    begun: Instant,
    time: Duration,
    bytes_max: u64,
    error_output: Option<std::sync::mpsc::Receiver<String>>,
    _identity: Option<tempfile::TempDir>,
}

/// Which program of Git answers at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    Read,
    Push,
}

impl Service {
    fn program(self) -> &'static str {
        match self {
            Self::Read => "git-upload-pack",
            Self::Push => "git-receive-pack",
        }
    }
}

impl Call {
    /// `interrupt` is set by the caller to end the call before `time` is over.
    pub(crate) fn begin(url: &RepositoryUrl, time: Duration, interrupt: &Arc<AtomicBool>) -> Self {
        Self {
            url: url.clone(),
            watchdog: Watchdog::start(time, interrupt),
            begun: Instant::now(),
            time,
            bytes_max: 0,
            error_output: None,
            _identity: None,
        }
    }

    pub(crate) fn url(&self) -> &RepositoryUrl {
        &self.url
    }

    /// From now on the files in `directory` may not grow beyond so many bytes.
    pub(crate) fn limit_growth(&mut self, directory: PathBuf, bytes_max: u64) {
        self.bytes_max = bytes_max;
        *self.watchdog.shared.grows.lock() = Some((directory, bytes_max));
    }

    /// Flag that ends work inside gix.
    pub(crate) fn stop(&self) -> &AtomicBool {
        &self.watchdog.shared.stop
    }

    /// A wire on which `git-upload-pack` answers, and options for it.
    pub(crate) fn wire(
        &mut self,
        remote: &Remote,
    ) -> Result<(Wire, Option<Box<dyn Any>>), SourceError> {
        match self.url.scheme() {
            Scheme::Https | Scheme::Http => {
                let address = gix::url::parse(self.url.address().as_str())
                    .map_err(|error| self.failure(&error))?;
                let options = connect::Options { version: Protocol::V2, ..Default::default() };
                let wire =
                    connect::connect(address, options).map_err(|error| self.failure(&error))?;
                Ok((wire, Some(Box::new(http_options(remote, self.time)))))
            }
            Scheme::Ssh | Scheme::File => {
                let (read, write) = self.program(remote, Service::Read)?;
                let path = self.url.path().to_owned();
                let mode = git::ConnectMode::Process;
                let nowhere = None::<(String, Option<u16>)>;
                let wire = Connection::new(read, write, Protocol::V2, path, nowhere, mode, false);
                Ok((Box::new(wire), None))
            }
        }
    }

    /// Run the program that reaches `service`; its output and its input.
    pub(crate) fn program(
        &mut self,
        remote: &Remote,
        service: Service,
    ) -> Result<(std::process::ChildStdout, std::process::ChildStdin), SourceError> {
        let (mut command, program, package) = match self.url.scheme() {
            Scheme::File => (file_command(&self.url, service), "git", "git"),
            Scheme::Ssh | Scheme::Https | Scheme::Http => {
                let (command, identity) = ssh_command(remote, service)?;
                self._identity = Some(identity);
                (command, "ssh", "openssh-client")
            }
        };
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let url = self.url.to_string();
        let mut child = command.spawn().map_err(|source| SourceError::ProgramMissing {
            url: url.clone(),
            program,
            package,
            source,
        })?;
        let pipes = child.stdout.take().zip(child.stdin.take());
        self.error_output = child.stderr.take().map(collect_errors);
        self.watchdog.guard(child);
        pipes.ok_or_else(|| SourceError::Protocol { url, detail: "no pipes".to_owned() })
    }

    /// What a failure of gix during this call means to an operator.
    pub(crate) fn failure(&mut self, error: &gix::Error) -> SourceError {
        let messages: Vec<String> = error.iter_errors().map(|error| format!("{error:#}")).collect();
        let refused = error.iter_errors().any(|error| {
            error
                .downcast_ref::<std::io::Error>()
                .is_some_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
        });
        self.judge(&messages.join(": "), refused || error.is_unauthenticated())
    }

    /// The same for a failure that is only words.
    pub(crate) fn judge(&mut self, words: &str, unauthenticated: bool) -> SourceError {
        let url = self.url.to_string();
        let host = self.url.host().to_owned();
        match self.watchdog.verdict() {
            Some(Verdict::TimedOut) => {
                return SourceError::TimedOut { url, limit_seconds: self.time.as_secs() };
            }
            Some(Verdict::Interrupted) => return SourceError::Interrupted { url },
            Some(Verdict::Grown) => {
                return SourceError::LimitExceeded {
                    what: format!("what {url} sends for one commit"),
                    limit: self.bytes_max,
                    unit: "bytes",
                    remedy: "keep large files in another repository",
                };
            }
            None => {}
        }
        let from_program = self.error_words();
        let output = format!("{words} {from_program}");
        let detail = one_line(if from_program.is_empty() { words } else { &from_program });
        // The HTTP client has the same limit as the watchdog and may be the first to say so.
        let over = self.begun.elapsed() + Duration::from_millis(2 * WATCH_MS) >= self.time;
        if over && messages::reports_timeout(&output) {
            return SourceError::TimedOut { url, limit_seconds: self.time.as_secs() };
        }
        match messages::classify(&output) {
            Some(FailureCause::HostKey) => SourceError::HostKeyRefused { host, detail },
            Some(FailureCause::Certificate) => SourceError::CertificateRefused { host, detail },
            Some(FailureCause::Authentication) => SourceError::AuthenticationFailed { url, detail },
            _ if unauthenticated => SourceError::AuthenticationFailed { url, detail },
            Some(FailureCause::NotFound) => SourceError::RepositoryNotFound { url, detail },
            Some(FailureCause::Unreachable) => SourceError::Unreachable { url, detail },
            None => SourceError::Protocol { url, detail },
        }
    }

    fn error_words(&mut self) -> String {
        let Some(output) = self.error_output.take() else {
            return String::new();
        };
        self.watchdog.end_child();
        output.recv_timeout(Duration::from_millis(ERROR_OUTPUT_WAIT_MS)).unwrap_or_default()
    }
}

/// How requests to an https repository are made: its authority, its time limit, its addresses.
pub(crate) fn client(
    mut builder: reqwest::blocking::ClientBuilder,
    ca_pem: Option<&[u8]>,
    time: Duration,
) -> Result<reqwest::blocking::ClientBuilder, reqwest::Error> {
    builder = builder
        .timeout(time)
        .connect_timeout(Duration::from_secs(CONNECT_SECONDS_MAX))
        .dns_resolver(Arc::new(PublicNames))
        .user_agent(concat!("git/2 (attest ", env!("CARGO_PKG_VERSION"), ")"));
    match ca_pem {
        None => Ok(builder),
        Some(pem) => Ok(builder.tls_certs_only(reqwest::Certificate::from_pem_bundle(pem)?)),
    }
}

/// Resolves names as the system does, and leaves out addresses at which no repository is served.
struct PublicNames;

impl reqwest::dns::Resolve for PublicNames {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> =
                found.filter(|address| forbidden_address(address.ip()).is_none()).collect();
            Ok(Box::new(allowed.into_iter()) as reqwest::dns::Addrs)
        })
    }
}

fn http_options(remote: &Remote, time: Duration) -> http::Options {
    let ca_pem = remote.credentials.ca_pem.clone();
    let configure = move |builder: reqwest::blocking::ClientBuilder| {
        client(builder, ca_pem.as_deref(), time).map_err(gix::Error::from_error)
    };
    let backend = http::reqwest::Options {
        configure_client: Some(Box::new(configure)),
        ..Default::default()
    };
    http::Options { backend: Some(Arc::new(Mutex::new(backend))), ..Default::default() }
}

/// `git upload-pack` on a directory that the operator allowed, whoever owns it.
fn file_command(url: &RepositoryUrl, service: Service) -> Command {
    let mut command = Command::new(full_name("git"));
    clean_environment(&mut command);
    let verb = service.program().trim_start_matches("git-");
    command.args(["-c", &format!("safe.directory={}", url.path()), verb, url.path()]);
    command
}

fn ssh_command(
    remote: &Remote,
    service: Service,
) -> Result<(Command, tempfile::TempDir), SourceError> {
    let url = &remote.url;
    let Some(ssh) = &remote.credentials.ssh else {
        return Err(SourceError::SshKeyMissing { url: url.to_string() });
    };
    let identity = tempfile::Builder::new().prefix("attest-ssh-").tempdir();
    let identity = identity.map_err(|error| files("create", &tempfile::env::temp_dir(), error))?;
    let key = secret_file(&identity.path().join("key"), &ssh.private_key)?;
    let known_hosts = secret_file(&identity.path().join("known_hosts"), &ssh.known_hosts)?;

    let mut command = Command::new(full_name("ssh"));
    clean_environment(&mut command);
    command.args(["-F", "/dev/null", "-a", "-x", "-T"]);
    for (option, value) in [
        ("BatchMode", OsString::from("yes")),
        ("StrictHostKeyChecking", "yes".into()),
        ("UserKnownHostsFile", known_hosts.into()),
        ("GlobalKnownHostsFile", "/dev/null".into()),
        ("UpdateHostKeys", "no".into()),
        ("IdentityFile", key.into()),
        ("IdentitiesOnly", "yes".into()),
        ("IdentityAgent", "none".into()),
        ("PreferredAuthentications", "publickey".into()),
        ("ProxyCommand", "none".into()),
        ("ClearAllForwardings", "yes".into()),
        ("ConnectTimeout", CONNECT_SECONDS_MAX.to_string().into()),
        ("ServerAliveInterval", "5".into()),
        ("ServerAliveCountMax", "3".into()),
        ("SendEnv", "GIT_PROTOCOL".into()),
    ] {
        let mut setting = OsString::from(format!("{option}="));
        setting.push(value);
        command.arg("-o").arg(setting);
    }
    if let Some(port) = url.port() {
        command.arg("-p").arg(port.to_string());
    }
    let host = url.host().trim_start_matches('[').trim_end_matches(']');
    let destination = match url.user() {
        Some(user) => format!("{user}@{host}"),
        None => host.to_owned(),
    };
    let path = match url.path().strip_prefix("/~") {
        Some(home) => format!("~{home}"),
        None => url.path().to_owned(),
    };
    // No quote can be in the path: the address was checked for it.
    command.arg("--").arg(destination).arg(format!("{} '{path}'", service.program()));
    Ok((command, identity))
}

/// Where a program is. One that is started by its bare name costs a fork: a copy of what this process maps, milliseconds
/// for each 100 MB.
fn full_name(program: &str) -> OsString {
    let search = std::env::var_os("PATH").unwrap_or_default();
    let is_program = |path: &PathBuf| {
        path.metadata()
            .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    let mut places = std::env::split_paths(&search).filter(|place| place.is_absolute());
    let found = places.find_map(|place| Some(place.join(program)).filter(is_program));
    found.map_or_else(|| program.into(), PathBuf::into_os_string)
}

fn clean_environment(command: &mut Command) {
    command.env_clear();
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command
        .env("LC_ALL", "C")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_PROTOCOL", "version=2");
}

fn secret_file(path: &Path, content: &[u8]) -> Result<PathBuf, SourceError> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let write = || {
        let mut file = options.open(path)?;
        file.write_all(content)?;
        // ssh refuses a key whose last line has no end.
        if content.last() == Some(&b'\n') { Ok(()) } else { file.write_all(b"\n") }
    };
    write().map_err(|error| files("write", path, error))?;
    Ok(path.to_owned())
}

pub(crate) fn files(action: &'static str, path: &Path, source: std::io::Error) -> SourceError {
    SourceError::Files { action, path: path.display().to_string(), source }
}

fn collect_errors(stderr: std::process::ChildStderr) -> std::sync::mpsc::Receiver<String> {
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        let mut stderr = stderr;
        let _ = stderr.by_ref().take(ERROR_OUTPUT_BYTES_MAX).read_to_end(&mut kept);
        let _ = std::io::copy(&mut stderr, &mut std::io::sink());
        let _ = send.send(String::from_utf8_lossy(&kept).into_owned());
    });
    receive
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    TimedOut,
    Interrupted,
    Grown,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    verdict: Locked<Option<Verdict>>,
    grows: Locked<Option<(PathBuf, u64)>>,
    child: Locked<Option<Child>>,
    done: Locked<bool>,
    wake: Condvar,
}

/// Ends a call that takes too long, brings too much or is no longer wanted.
#[derive(Debug)]
struct Watchdog {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watchdog {
    fn start(time: Duration, interrupt: &Arc<AtomicBool>) -> Self {
        let shared = Arc::new(Shared::default());
        let deadline = Instant::now() + time;
        let interrupt = Arc::clone(interrupt);
        let seen = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let mut done = seen.done.lock();
            while !*done {
                let grows = seen.grows.lock().clone();
                let verdict = if interrupt.load(Ordering::Relaxed) {
                    Some(Verdict::Interrupted)
                } else if Instant::now() >= deadline {
                    Some(Verdict::TimedOut)
                } else if grows.is_some_and(|(path, bytes)| size_of(&path) > bytes) {
                    Some(Verdict::Grown)
                } else {
                    None
                };
                if let Some(verdict) = verdict {
                    *seen.verdict.lock() = Some(verdict);
                    seen.stop.store(true, Ordering::Relaxed);
                    end(&seen.child);
                    return;
                }
                let wait = Duration::from_millis(WATCH_MS);
                done = match seen.wake.wait_timeout(done, wait) {
                    Ok((done, _)) => done,
                    Err(poisoned) => poisoned.into_inner().0,
                };
            }
        });
        Self { shared, thread: Some(thread) }
    }

    fn guard(&self, child: Child) {
        *self.shared.child.lock() = Some(child);
        if self.shared.stop.load(Ordering::Relaxed) {
            self.end_child();
        }
    }

    fn verdict(&self) -> Option<Verdict> {
        *self.shared.verdict.lock()
    }

    fn end_child(&self) {
        end(&self.shared.child);
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        *self.shared.done.lock() = true;
        self.shared.wake.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.end_child();
    }
}

fn end(child: &Locked<Option<Child>>) {
    if let Some(mut child) = child.lock().take() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Bytes of the files directly in a directory.
pub(crate) fn size_of(directory: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return 0;
    };
    entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::UrlPolicy;

    #[test]
    fn programs_are_started_by_their_full_name() {
        let (_directory, url) = bare();

        let command = file_command(&url, Service::Read);

        assert!(Path::new(command.get_program()).is_absolute(), "{command:?}");
        assert_eq!(full_name("there-is-no-such-program"), "there-is-no-such-program");
    }

    #[test]
    fn git_is_told_to_read_a_repository_that_somebody_else_owns() {
        let (_directory, url) = bare();
        let told = file_command(&url, Service::Read);
        let mut not_told = Command::new("git");
        not_told.args(["upload-pack", url.path()]);

        let [told, not_told] = [told, not_told].map(|mut command| {
            // By it git's own tests make every repository somebody else's.
            command.env("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1").stdin(Stdio::null());
            command.output().unwrap()
        });

        assert!(told.stdout.starts_with(b"000eversion 2"), "{told:?}");
        assert!(not_told.stdout.is_empty(), "{not_told:?}");
        assert!(String::from_utf8_lossy(&not_told.stderr).contains("safe.directory"));
    }

    fn bare() -> (tempfile::TempDir, RepositoryUrl) {
        let directory = tempfile::tempdir().unwrap();
        let bare = directory.path().join("a.git");
        let made = Command::new("git").args(["init", "--quiet", "--bare"]).arg(&bare).status();
        assert!(made.unwrap().success());
        let file_directories = vec![directory.path().to_owned()];
        let policy = UrlPolicy { file_directories, ..UrlPolicy::default() };
        let url = RepositoryUrl::parse(&format!("file://{}", bare.display()), &policy).unwrap();
        (directory, url)
    }
}
