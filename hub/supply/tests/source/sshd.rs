//! A real sshd on loopback with its own keys: that of the machine, or one unpacked without root.

use std::ffi::{OsStr, OsString};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Directory of the installed server, which is not on the PATH of every user.
const INSTALLED_IN: &str = "/usr/sbin";

pub(crate) struct Sshd {
    child: Child,
    directory: tempfile::TempDir,
    pub(crate) port: u16,
    pub(crate) user: String,
}

impl Sshd {
    /// Returns `None` if the machine has no sshd. A CI machine must have one.
    pub(crate) fn start() -> Option<Self> {
        Self::start_with("AcceptEnv GIT_PROTOCOL")
    }

    /// Starts a server that uses the first version of the Git protocol.
    pub(crate) fn start_old() -> Option<Self> {
        Self::start_with("")
    }

    fn start_with(setting: &str) -> Option<Self> {
        let Some(program) = find(&std::env::var_os("PATH").unwrap_or_default()) else {
            let in_ci = std::env::var("CI").is_ok_and(|value| value == "true");
            assert!(!in_ci, "no sshd: install openssh-server");
            eprintln!("skipped: no sshd (install openssh-server)");
            return None;
        };
        // sshd run by root requires this directory, which the service creates otherwise.
        let _ = std::fs::create_dir_all("/run/sshd");
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["host", "other-host", "full", "reader", "stranger"] {
            keygen(&at(name));
        }
        let public = |name: &str| std::fs::read_to_string(at(&format!("{name}.pub"))).unwrap();
        let only_reading = "command=\"case \\\"$SSH_ORIGINAL_COMMAND\\\" in git-upload-pack*) \
            exec sh -c \\\"$SSH_ORIGINAL_COMMAND\\\";; *) echo read only >&2; exit 1;; esac\"";
        std::fs::write(
            at("authorized_keys"),
            format!("{}{only_reading} {}", public("full"), public("reader")),
        )
        .unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\n\
             StrictModes no\nUsePAM no\nPidFile none\nPasswordAuthentication no\n\
             KbdInteractiveAuthentication no\nPermitRootLogin yes\n\
             MaxStartups 100\n{}{setting}\n",
            at("host").display(),
            at("authorized_keys").display(),
            helpers(&program),
        );
        std::fs::write(at("sshd_config"), config).unwrap();
        let child = Command::new(&program)
            .args(["-D", "-e", "-f"])
            .arg(at("sshd_config"))
            .stderr(Stdio::from(std::fs::File::create(at("log")).unwrap()))
            .spawn()
            .unwrap();
        let user = Command::new("id").arg("-un").output().unwrap().stdout;
        let user = String::from_utf8(user).unwrap().trim().to_owned();
        let mut sshd = Self { child, directory, port, user };
        sshd.wait();
        Some(sshd)
    }

    pub(crate) fn key(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// Returns a `known_hosts` file with the key `name`.
    pub(crate) fn known_hosts(&self, name: &str) -> Vec<u8> {
        let public = std::fs::read_to_string(self.path(&format!("{name}.pub"))).unwrap();
        format!("[127.0.0.1]:{} {public}", self.port).into_bytes()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn wait(&mut self) {
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let log = self.path("log");
            let log = || std::fs::read_to_string(&log).unwrap_or_default();
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "sshd ended: {}", log());
            assert!(started.elapsed() < Duration::from_secs(20), "sshd does not listen: {}", log());
            std::thread::yield_now();
        }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the absolute path, without which sshd does not start.
fn find(search: &OsStr) -> Option<PathBuf> {
    let places = std::env::split_paths(search).chain([PathBuf::from(INSTALLED_IN)]);
    let mut programs = places.filter(|place| place.is_absolute()).map(|place| place.join("sshd"));
    programs.find(|program| program.is_file())
}

/// Newer servers start helper programs, which an unpacked server does not find at their built-in paths.
fn helpers(program: &Path) -> String {
    let Some(root) = program.parent().and_then(Path::parent) else { return String::new() };
    let known = [("SshdSessionPath", "sshd-session"), ("SshdAuthPath", "sshd-auth")];
    let here = known.map(|(setting, name)| (setting, root.join("lib/openssh").join(name)));
    let here = here.into_iter().filter(|(_, path)| path.is_file());
    here.map(|(setting, path)| format!("{setting} {}\n", path.display())).collect()
}

#[test]
fn an_unpacked_sshd_is_found_on_path_with_its_helpers() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("usr");
    for (place, name) in [("sbin", "sshd"), ("lib/openssh", "sshd-session")] {
        std::fs::create_dir_all(root.join(place)).unwrap();
        std::fs::write(root.join(place).join(name), "").unwrap();
    }
    let search = OsString::from(format!("sbin:{}", root.join("sbin").display()));

    let found = find(&search).unwrap();

    assert_eq!(found, root.join("sbin/sshd"));
    let session = root.join("lib/openssh/sshd-session");
    assert_eq!(helpers(&found), format!("SshdSessionPath {}\n", session.display()));
}

fn keygen(path: &Path) {
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"])
        .arg(path)
        .status()
        .unwrap();
    assert!(made.success());
}
