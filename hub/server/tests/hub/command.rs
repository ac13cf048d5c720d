//! `attest` as an operator of a test's hub runs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::json;

use crate::fixture::Fixture;

/// `attest` with a context for the hub.
pub(crate) struct Operator {
    directory: tempfile::TempDir,
}

pub(crate) struct Said(Output);

impl Operator {
    pub(crate) fn new(fixture: &Fixture) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let created = &fixture.created;
        let hub = json!({
            "name": "main", "apiUrl": format!("https://{}", fixture.addresses().api),
            "spokeAddress": created.spoke_address, "caPin": created.ca_pin,
            "hubKeyId": created.hub_key_id, "hubKey": created.hub_key_pem,
            "operatorChain": created.operator_chain_pem,
            "operatorKey": created.operator_key_pem.to_string()
        });
        let context = json!({"currentHub": "main", "hubs": [hub], "keys": []});
        std::fs::write(directory.path().join("config"), context.to_string()).unwrap();
        Self { directory }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn attest(&self, arguments: &[&str]) -> Said {
        Said(self.command(arguments).output().unwrap())
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(arguments).env("ATTEST_CONFIG", self.file("config"));
        command.env_remove("ATTEST_HUB").env("NO_PROXY", "*");
        command
    }
}

/// The operator's program, which Cargo puts beside the hub's when it builds both.
fn program() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_attest-hub")).with_file_name("attest");
    assert!(path.is_file(), "no program attest; run `cargo build --workspace --bins` first");
    path
}

impl Said {
    #[track_caller]
    pub(crate) fn code(self, code: i32) -> Self {
        let said = String::from_utf8_lossy(&self.0.stderr);
        assert_eq!(self.0.status.code(), Some(code), "{said}");
        self
    }

    /// What went to standard output.
    pub(crate) fn data(self) -> String {
        String::from_utf8(self.0.stdout).unwrap()
    }

    /// All that was printed.
    pub(crate) fn text(self) -> String {
        let (out, err) = (&self.0.stdout, &self.0.stderr);
        format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
    }

    #[track_caller]
    pub(crate) fn says(self, word: &str) {
        let said = self.text();
        assert!(said.contains(word), "no {word:?} in {said}");
    }
}
