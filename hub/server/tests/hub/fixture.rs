//! A hub, in this process or in one of its own, with its operator's client.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use attest_certs::bundle::Bundle;
use attest_certs::identity::Pin;
use attest_certs::tls::operator_https;
use attest_common::basics::keys::PrivateKey;
use attest_common::session::report::Phase;
use attest_hub::home::{self, Advertise, Created};
use attest_hub::process::config::Options;
use attest_hub::process::run::{self, Addresses, Running};
use clap::Parser;
use serde_json::{Value, json};

use crate::ci::Repository;
use crate::spoke::{Received, Spoke};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Fixture {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) created: Created,
    pub(crate) running: Option<Running>,
    process: Option<(Child, Addresses)>,
    pub(crate) ci: PrivateKey,
    /// Where a hub of its own process looks for programs first.
    pub(crate) programs: PathBuf,
}

impl Fixture {
    /// A home, and nobody in it.
    pub(crate) fn new() -> Self {
        attest_certs::install_provider();
        let directory = tempfile::tempdir().unwrap();
        let advertise = Advertise {
            spoke_address: "127.0.0.1:4433".into(),
            api_url: "https://127.0.0.1:8443".into(),
        };
        let created = home::create(&directory.path().join("home"), &advertise).unwrap();
        std::fs::create_dir(directory.path().join("repositories")).unwrap();
        let ci = PrivateKey::from_seed(&[42; 32]).unwrap();
        let programs = directory.path().join("programs");
        Self { directory, created, running: None, process: None, ci, programs }
    }

    pub(crate) async fn start() -> Self {
        let mut fixture = Self::new();
        fixture.open().await;
        fixture
    }

    /// Starts the hub as a process that dies at `failpoint`. False when it died before it listened.
    pub(crate) fn spawn(&mut self, failpoint: Option<&str>) -> bool {
        self.kill();
        let file = self.home().join("addresses.json");
        let _ = std::fs::remove_file(&file);
        let mut command = Command::new(env!("CARGO_BIN_EXE_attest-hub"));
        command.args(arguments(&self.home(), &self.repositories()));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let others = std::env::var_os("PATH").unwrap_or_default();
        let search = std::iter::once(self.programs.clone()).chain(std::env::split_paths(&others));
        command.env("PATH", std::env::join_paths(search).unwrap());
        if let Some(name) = failpoint {
            command.env("ATTEST_FAILPOINTS_ENABLED", "1").env("ATTEST_FAILPOINT", name);
        }
        let mut child = command.spawn().unwrap();
        let begun = Instant::now();
        loop {
            let written = std::fs::read(&file).ok();
            if let Some(found) = written.and_then(|text| serde_json::from_slice(&text).ok()) {
                let found: BTreeMap<String, SocketAddr> = found;
                let addresses = Addresses {
                    api: found["api"],
                    spokes: found["spokes"],
                    health: found["health"],
                    metrics: found["metrics"],
                    webhooks: found.get("webhooks").copied(),
                };
                self.process = Some((child, addresses));
                return true;
            }
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            assert!(begun.elapsed() < PATIENCE, "the hub does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// For a hub of its own process: a kustomize that renders the same whatever it is given, and runs `line` first while
    /// the file is there that is returned.
    pub(crate) fn kustomize_that_does_when_spoiled(&self, line: &str) -> PathBuf {
        let spoiled = self.programs.join("spoiled");
        self.kustomize_that_does(&format!("[ -e {} ] && {line}", spoiled.display()));
        spoiled
    }

    /// For a hub of its own process: a kustomize that runs `line` first and renders the same whatever it is given.
    pub(crate) fn kustomize_that_does(&self, line: &str) {
        std::fs::create_dir(&self.programs).unwrap();
        let program = self.programs.join("kustomize");
        let script = format!(
            "#!/bin/sh\n[ \"$1\" = version ] && echo v5.0.0 && exit\n{line}\n\
             echo '{{apiVersion: v1, kind: ConfigMap, metadata: {{name: web}}}}'\n"
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    }

    /// Number of the process.
    pub(crate) fn process_id(&self) -> u32 {
        self.process.as_ref().unwrap().0.id()
    }

    /// Ends the process without a word, while others look at this.
    pub(crate) fn kill_now(&self) {
        let (child, _) = self.process.as_ref().unwrap();
        let killed = Command::new("kill").args(["-9", &child.id().to_string()]).status();
        assert!(killed.unwrap().success());
    }

    /// Ends the process without a word.
    pub(crate) fn kill(&mut self) {
        if let Some((mut child, _)) = self.process.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub(crate) async fn open(&mut self) {
        self.running = Some(run::start(&self.options()).await.unwrap());
    }

    pub(crate) async fn restart(&mut self) {
        self.running.take().unwrap().end().await.unwrap();
        // The last handle on the store goes with the last task.
        let begun = Instant::now();
        loop {
            match run::start(&self.options()).await {
                Ok(running) => break self.running = Some(running),
                Err(error)
                    if error.reason().as_str() == "StoreLocked" && begun.elapsed() < PATIENCE =>
                {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.directory.path().join("home")
    }

    pub(crate) fn repositories(&self) -> PathBuf {
        self.directory.path().join("repositories")
    }

    pub(crate) fn options(&self) -> Options {
        options(&self.home(), &self.repositories())
    }

    pub(crate) fn addresses(&self) -> Addresses {
        match (&self.running, &self.process) {
            (Some(running), _) => running.addresses,
            (None, Some((_, addresses))) => *addresses,
            (None, None) => panic!("no hub runs"),
        }
    }

    pub(crate) fn pin(&self) -> Pin {
        self.created.ca_pin.parse().unwrap()
    }

    pub(crate) fn client(&self) -> reqwest::Client {
        let (chain, key) = (&self.created.operator_chain_pem, &self.created.operator_key_pem);
        let own = Bundle::from_pem(chain, key).unwrap();
        let tls = operator_https(&[self.pin()], &own).unwrap();
        reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build().unwrap()
    }

    pub(crate) async fn call(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let url = format!("https://{}{path}", self.addresses().api);
        let mut request = self.client().request(method.parse().unwrap(), url);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.json().await.unwrap())
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let (status, body) = self.call("GET", path, None).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    pub(crate) async fn token(&self, cluster: &str, auto_accept: bool) -> String {
        let body = json!({"cluster": cluster, "ttlSeconds": 600, "autoAccept": auto_accept});
        let (status, token) = self.call("POST", "/v1/tokens", Some(body)).await;
        assert_eq!(status, 201, "{token}");
        token["token"].as_str().unwrap().to_owned()
    }

    /// Applies a repository's application, for the default cluster.
    pub(crate) async fn applies(&self, repository: &Repository) {
        let manifest = repository.manifest(None);
        let (status, body) = self.call("PUT", "/v1/applications", Some(manifest)).await;
        assert_eq!(status, 200, "{body}");
    }

    /// Asks until `holds`, and says what there was when it never does.
    pub(crate) async fn until(&self, path: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let (_, seen) = self.call("GET", path, None).await;
            if holds(&seen) {
                return seen;
            }
            assert!(begun.elapsed() < PATIENCE, "{path} stayed {seen:#}");
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    pub(crate) async fn metrics(&self) -> String {
        let url = format!("http://{}/metrics", self.addresses().metrics);
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        client.get(url).send().await.unwrap().text().await.unwrap()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A hub with application `web-app`, whose release 100 is v1, applied for the one spoke there is, `staging`.
pub(crate) struct Applied {
    pub(crate) fixture: Fixture,
    pub(crate) repository: Repository,
    /// Of the release.
    pub(crate) commit: String,
    pub(crate) spoke: Spoke,
    pub(crate) bundle: Bundle,
}

pub(crate) async fn applied() -> Applied {
    let fixture = Fixture::start().await;
    let repository = Repository::create(&fixture.repositories(), "web-app");
    let commit = repository.release(&fixture.ci, "v1", 100);
    let (spoke, bundle) = Spoke::new(&fixture, "staging", 1).await;
    fixture.applies(&repository).await;
    Applied { fixture, repository, commit, spoke, bundle }
}

/// The same, once the spoke has the directive and has reported that it runs, and the hub says so.
pub(crate) async fn synced() -> (Applied, Received) {
    let mut applied = applied().await;
    let received = applied.spoke.receive().await;
    applied.spoke.report(&received, Phase::Synced, "Synced").await;
    applied.fixture.until("/v1/applications/web-app", |seen| seen["phase"] == "Synced").await;
    (applied, received)
}

pub(crate) fn options(home: &Path, repositories: &Path) -> Options {
    let program = std::iter::once("attest-hub".to_owned());
    let mut options = Options::parse_from(program.chain(arguments(home, repositories)));
    options.render_program = Some(env!("CARGO_BIN_EXE_attest-hub").into());
    options
}

fn arguments(home: &Path, repositories: &Path) -> Vec<String> {
    let mut arguments = vec!["--home".to_owned()];
    arguments.push(home.display().to_string());
    for flag in ["--listen-spokes", "--listen-api", "--listen-health", "--listen-metrics"] {
        arguments.extend([flag.to_owned(), "127.0.0.1:0".to_owned()]);
    }
    arguments.extend(["--poll-interval-ms".to_owned(), "200".to_owned()]);
    arguments.push("--allow-file-repositories".to_owned());
    arguments.push(repositories.display().to_string());
    arguments
}
