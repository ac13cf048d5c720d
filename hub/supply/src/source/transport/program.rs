//! Commands of the programs that reach a repository: `git upload-pack` for file, `ssh` for ssh.
//!
//! They run with a clean environment and without any configuration of the machine or the user.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, Command};
use std::sync::mpsc;

use super::address::{SSH_PORT, ssh_address};
use super::{CONNECT_SECONDS_MAX, Remote, RepositoryUrl, SourceError};
use crate::source::error::files_error;

/// Maximum size of a program's diagnostics that is kept, in bytes.
const DIAGNOSTICS_BYTES_MAX: u64 = 16 * 1024;

/// Program of Git that answers at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GitService {
    UploadPack,
    ReceivePack,
}

impl GitService {
    /// Returns the name of the subcommand.
    fn subcommand(self) -> &'static str {
        match self {
            Self::UploadPack => "upload-pack",
            Self::ReceivePack => "receive-pack",
        }
    }
}

/// Returns the command that serves a directory which the operator allowed, regardless of its owner.
pub(super) fn file_command(url: &RepositoryUrl, service: GitService) -> Command {
    let mut command = Command::new(full_path("git"));
    clean_environment(&mut command);
    command.args(["-c", &format!("safe.directory={}", url.path())]);
    command.args([service.subcommand(), url.path()]);
    command
}

/// Returns the command that runs `service` over ssh at the checked address, and the directory with the files that the command needs.
///
/// # Errors
/// [`SourceError::SshKeyMissing`] without credentials; [`SourceError::Files`] if the files cannot be written.
pub(super) fn ssh_command(
    remote: &Remote,
    service: GitService,
) -> Result<(Command, tempfile::TempDir), SourceError> {
    let url = &remote.url;
    let Some(ssh) = &remote.credentials.ssh else {
        return Err(SourceError::SshKeyMissing { url: url.to_string() });
    };
    let address = ssh_address(url, remote.allow_loopback)?;
    let identity = tempfile::Builder::new()
        .prefix("attest-ssh-")
        .tempdir()
        .map_err(|error| files_error("create", &tempfile::env::temp_dir(), error))?;
    let key = write_secret(&identity.path().join("key"), &ssh.private_key)?;
    let known_hosts = write_secret(&identity.path().join("known_hosts"), &ssh.known_hosts)?;

    let mut command = Command::new(full_path("ssh"));
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
        // ssh does not resolve the name again: the address was checked.
        ("HostName", address.to_string().into()),
        ("HostKeyAlias", host_key_alias(url).into()),
    ] {
        let mut setting = OsString::from(format!("{option}="));
        setting.push(value);
        command.arg("-o").arg(setting);
    }
    if let Some(port) = url.port() {
        command.arg("-p").arg(port.to_string());
    }
    command.arg("--").arg(ssh_destination(url)).arg(remote_command(url, service));
    Ok((command, identity))
}

/// Returns the name under which the known hosts list the server.
fn host_key_alias(url: &RepositoryUrl) -> String {
    let host = url.bare_host();
    match url.port() {
        Some(port) if port != SSH_PORT => format!("[{host}]:{port}"),
        Some(_) | None => host.to_owned(),
    }
}

fn ssh_destination(url: &RepositoryUrl) -> String {
    let host = url.bare_host();
    match url.user() {
        Some(user) => format!("{user}@{host}"),
        None => host.to_owned(),
    }
}

fn remote_command(url: &RepositoryUrl, service: GitService) -> String {
    let path = match url.path().strip_prefix("/~") {
        Some(home) => format!("~{home}"),
        None => url.path().to_owned(),
    };
    // The path contains no quote: the address was checked for quotes.
    format!("git-{} '{path}'", service.subcommand())
}

/// Returns the absolute path of a program on `PATH`, or its name if it is not found.
///
/// The standard library forks to start a program by its name: a copy of this process's page tables, which takes
/// milliseconds per 100 MB.
fn full_path(program: &str) -> OsString {
    let search = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&search)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(program))
        .find(|path| is_executable(path));
    found.map_or_else(|| program.into(), PathBuf::into_os_string)
}

fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
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

fn write_secret(path: &Path, content: &[u8]) -> Result<PathBuf, SourceError> {
    write_lines(path, content).map_err(|error| files_error("write", path, error))?;
    Ok(path.to_owned())
}

/// ssh rejects a key whose last line is not terminated.
fn write_lines(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    if content.last() == Some(&b'\n') { Ok(()) } else { file.write_all(b"\n") }
}

/// Reads a program's diagnostics in the background, so that the program does not block on them.
pub(super) fn collect_diagnostics(stderr: ChildStderr) -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        let mut stderr = stderr;
        let _ = stderr.by_ref().take(DIAGNOSTICS_BYTES_MAX).read_to_end(&mut kept);
        let _ = std::io::copy(&mut stderr, &mut std::io::sink());
        let _ = send.send(String::from_utf8_lossy(&kept).into_owned());
    });
    receive
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;
    use crate::source::UrlPolicy;

    #[test]
    fn programs_are_started_by_their_full_path() {
        let (_directory, url) = bare();

        let command = file_command(&url, GitService::UploadPack);

        assert!(Path::new(command.get_program()).is_absolute(), "{command:?}");
        assert_eq!(full_path("there-is-no-such-program"), "there-is-no-such-program");
    }

    #[test]
    fn git_reads_a_repository_of_another_owner() {
        let (_directory, url) = bare();
        let allowed = file_command(&url, GitService::UploadPack);
        let mut not_allowed = Command::new("git");
        not_allowed.args(["upload-pack", url.path()]);

        let [allowed, not_allowed] = [allowed, not_allowed].map(|mut command| {
            // git's own tests use this variable to make the owner of every repository another one.
            command.env("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1").stdin(Stdio::null());
            command.output().unwrap()
        });

        assert!(allowed.stdout.starts_with(b"000eversion 2"), "{allowed:?}");
        assert!(not_allowed.stdout.is_empty(), "{not_allowed:?}");
        assert!(String::from_utf8_lossy(&not_allowed.stderr).contains("safe.directory"));
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
