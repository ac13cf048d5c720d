//! The commands of README and docs/getting-started.md, run unchanged by a shell with a fresh home.
//!
//! Only the hub's addresses differ (other tests use the documented ports) and, for the README, the host
//! name. Programs and clusters exist already.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, ensure};
use attest_tests::cluster::binaries::Binaries;
use attest_tests::cluster::fakelet::{Fakelet, FakeletOptions, Runner};
use attest_tests::cluster::{Cluster, ports};
use attest_tests::fleet::program;
use attest_tests::process::remove_at_end;
use attest_tests::workload::copy_tree;
use tempfile::TempDir;

const README: &str = include_str!("../../../README.md");
const GETTING_STARTED: &str = include_str!("../../../docs/getting-started.md");
/// Clusters and kubeconfigs that the documents name.
const CLUSTERS: [(&str, &str); 2] =
    [("staging", ".kube/staging-config"), ("production", ".kube/prod-config")];

/// A reader with a home directory, the programs on the path, and clusters.
struct Reader {
    // Dropped in this order: nodes before clusters before files.
    _fakelets: Vec<Fakelet>,
    _clusters: Vec<Cluster>,
    directory: TempDir,
    ports: [u16; 4],
}

impl Reader {
    async fn new() -> anyhow::Result<Option<Self>> {
        let directory = tempfile::Builder::new().prefix("attest-reader-").tempdir()?;
        remove_at_end(directory.path());
        std::fs::create_dir_all(directory.path().join(".kube"))?;
        let identity = "[user]\nname = Reader\nemail = reader@git.example\n";
        std::fs::write(directory.path().join(".gitconfig"), identity)?;
        let (mut fakelets, mut clusters) = (Vec::new(), Vec::new());
        for (name, kubeconfig) in CLUSTERS {
            let Some(cluster) = Cluster::start(name).await? else { return Ok(None) };
            let runner = Runner::new("attest-spoke", program("attest-spoke")?)
                .env("ATTEST_LISTEN_HEALTH", "127.0.0.1:0")
                .env("ATTEST_LISTEN_METRICS", "127.0.0.1:0");
            let options = FakeletOptions { runners: vec![runner], ..FakeletOptions::default() };
            fakelets.push(Fakelet::start(&cluster, options)?);
            cluster
                .write_kubeconfig(&directory.path().join(kubeconfig), &format!("{name}-cluster"))?;
            clusters.push(cluster);
        }
        let ports = [ports::free()?, ports::free()?, ports::free()?, ports::free()?];
        Ok(Some(Self { _fakelets: fakelets, _clusters: clusters, directory, ports }))
    }

    fn home(&self) -> &Path {
        self.directory.path()
    }

    /// Replaces the documented ports of the hub by free ones, and ends the hub's process with the shell.
    fn with_own_ports(&self, text: &str) -> String {
        let [spokes, api, health, metrics] = self.ports;
        let advertised = format!("--advertise 127.0.0.1:{spokes} --api-advertise 127.0.0.1:{api}");
        let started = format!(
            "attest-hub --listen-spokes 127.0.0.1:{spokes} --listen-health 127.0.0.1:{health} \
             --listen-metrics 127.0.0.1:{metrics}"
        );
        let listens_api = match text.contains("--listen-api :8443") {
            true => started,
            false => format!("{started} --listen-api 127.0.0.1:{api}"),
        };
        let text = text
            .replace("--advertise 127.0.0.1:4433", &advertised)
            .replace("--listen-api :8443", &format!("--listen-api :{api}"))
            .replace("\nattest-hub", &format!("\n{listens_api}"))
            .replace("127.0.0.1:8081", &format!("127.0.0.1:{health}"));
        format!("set -euxo pipefail\ntrap 'kill $(jobs -p)' EXIT\n{text}")
    }

    /// Runs a script in the checkout; returns its output.
    async fn run_script(&self, text: &str) -> anyhow::Result<String> {
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let yq = Binaries::extra("yq")?.context("no yq")?;
        let mut path: Vec<PathBuf> = Vec::new();
        path.extend(program("attest")?.parent().map(Path::to_owned));
        path.extend(Binaries::find()?.map(|found| found.directory().to_owned()));
        path.extend(yq.parent().map(Path::to_owned));
        path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        let log = self.home().join("script.log");
        let out = std::fs::File::create(&log)?;
        let status = tokio::process::Command::new("bash")
            .args(["-c", &self.with_own_ports(text)])
            .current_dir(checkout)
            .env("PATH", std::env::join_paths(path)?)
            .env("HOME", self.home())
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("KUBECONFIG")
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .kill_on_drop(true)
            .status()
            .await?;
        let output = std::fs::read_to_string(&log)?;
        ensure!(status.success(), "{status}:\n{output}");
        Ok(output)
    }
}

/// The fenced shell blocks below a heading.
fn blocks(document: &str, heading: &str) -> anyhow::Result<String> {
    let (_, below) = document.split_once(heading).with_context(|| format!("no {heading}"))?;
    let mut text = String::new();
    for block in below.split("\n```sh\n").skip(1) {
        let (commands, _) = block.split_once("\n```").context("a block without an end")?;
        text.push_str(commands);
        text.push('\n');
    }
    Ok(text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn getting_started_works_as_it_is_written() -> anyhow::Result<()> {
    let Some(reader) = Reader::new().await? else { return Ok(()) };
    let text = blocks(GETTING_STARTED, "# Getting started")?;

    let output = reader.run_script(&text).await?;

    for expected in [
        "cluster/staging registered",
        "cluster/production registered",
        "application/web-app created",
        "application/web-app Synced",
        "staging/app-staging: Synced",
        "production/app-production: Synced",
        "Signed by:    ci",
    ] {
        assert!(output.contains(expected), "{expected}: {output}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_steps_of_the_readme_work_as_they_are_written() -> anyhow::Result<()> {
    let Some(reader) = Reader::new().await? else { return Ok(()) };
    // The reader's own repository, with program and steps.
    let tree = reader.home().join("web-app");
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("sample/web-app");
    copy_tree(&sample, &tree, &["k8s", "attest.yaml", "out"])?;
    let origin = format!("file://{}/git/web-app.git", reader.home().display());
    std::fs::write(tree.join(".gitignore"), "out/\n")?;
    let own = format!(
        "git init -q --bare -b main ~/git/web-app.git\ncd ~/web-app\ngit init -q -b main\n\
         git remote add origin {origin}\ngit config push.autoSetupRemote true\nattest init"
    );
    let text = blocks(README, "## First steps")?
        .replace("hub.example.com", "127.0.0.1")
        .replace(
            "--home ~/hub --listen-api",
            "--home ~/hub --allow-file-repositories ~ --listen-api",
        )
        .replacen("\nattest init", &format!("\n{own}"), 1);
    let text: String =
        text.split_inclusive('\n').filter(|line| !line.starts_with("cargo install")).collect();

    let output = reader.run_script(&text).await?;

    for expected in
        ["cluster/staging registered", "staging/web-app-staging: Synced", "Signed by:    ci"]
    {
        assert!(output.contains(expected), "{expected}: {output}");
    }
    Ok(())
}
