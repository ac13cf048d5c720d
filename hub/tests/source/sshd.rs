//! A real sshd on loopback, with keys of its own.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const SSHD: &str = "/usr/sbin/sshd";

pub(crate) struct Sshd {
    child: Child,
    directory: tempfile::TempDir,
    pub(crate) port: u16,
    pub(crate) user: String,
}

impl Sshd {
    /// Nothing when this machine has no sshd, which a CI machine must have.
    pub(crate) fn start() -> Option<Self> {
        Self::start_with("AcceptEnv GIT_PROTOCOL")
    }

    /// A server at which Git falls back to its first protocol.
    pub(crate) fn start_old() -> Option<Self> {
        Self::start_with("")
    }

    fn start_with(setting: &str) -> Option<Self> {
        if !Path::new(SSHD).exists() {
            assert!(std::env::var("CI").is_err(), "no sshd: install openssh-server");
            eprintln!("skipped: no sshd (install openssh-server)");
            return None;
        }
        // Where sshd, run by root, wants its own directory; made by the service otherwise.
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
             MaxStartups 100\n{setting}\n",
            at("host").display(),
            at("authorized_keys").display(),
        );
        std::fs::write(at("sshd_config"), config).unwrap();
        let child = Command::new(SSHD)
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

    /// `known_hosts` that expects the key `name`.
    pub(crate) fn known_hosts(&self, name: &str) -> Vec<u8> {
        let public = std::fs::read_to_string(self.path(&format!("{name}.pub"))).unwrap();
        format!("[127.0.0.1]:{} {public}", self.port).into_bytes()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn wait(&mut self) {
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let log = self.path("log");
            let log = || std::fs::read_to_string(&log).unwrap_or_default();
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "sshd ended: {}", log());
            assert!(begun.elapsed() < Duration::from_secs(20), "sshd does not listen: {}", log());
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

fn keygen(path: &Path) {
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"])
        .arg(path)
        .status()
        .unwrap();
    assert!(made.success());
}
