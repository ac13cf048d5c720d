//! `attest-clusters up|down`: Kubernetes control planes on loopback, for development and the demo.
//!
//! Called by `kind-clusters/up.sh`, which finds the Kubernetes programs. Tests start clusters themselves
//! (`attest_tests::cluster`).

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use attest_tests::cluster::fakelet::{Fakelet, FakeletOptions, Runner};
use attest_tests::cluster::{Cluster, Options, client_from, is_ready};
use attest_tests::process::{Lifetime, Process, Spec, signal_group};
use attest_tests::wait::until;
use clap::Parser;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

const CLUSTERS_MAX: usize = 16;
const STOP_WITHIN: Duration = Duration::from_secs(10);
const RECORD: &str = "cluster.json";

/// Kubernetes control planes on loopback.
#[derive(Debug, Parser)]
#[command(name = "attest-clusters")]
enum Arguments {
    /// Start the clusters that are not running yet, and print their kubeconfigs
    Up(Up),
    /// Stop the clusters and remove their data
    Down(Down),
    /// Simulate the node of one running cluster until the process is stopped
    #[command(hide = true)]
    Fakelet(Node),
}

#[derive(Debug, clap::Args)]
struct Up {
    /// Names of the clusters
    #[arg(long, value_delimiter = ',', required = true)]
    names: Vec<String>,
    /// Directory for their files, one subdirectory a cluster
    #[arg(long)]
    dir: PathBuf,
    /// Return when they are ready and leave them running, instead of waiting for Ctrl-C
    #[arg(long)]
    detach: bool,
    /// Program to run for the pods of an image, as IMAGE=PROGRAM
    #[arg(long, value_name = "IMAGE=PROGRAM")]
    run: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct Down {
    /// Directory given to `up`
    #[arg(long)]
    dir: PathBuf,
}

#[derive(Debug, clap::Args)]
struct Node {
    #[arg(long)]
    dir: PathBuf,
    #[arg(long)]
    run: Vec<String>,
}

/// Record of a cluster that was left running: process ids by program name.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    processes: BTreeMap<String, u32>,
}

#[tokio::main]
async fn main() -> ExitCode {
    attest_certs::install_provider();
    let result = match Arguments::parse() {
        Arguments::Up(arguments) => up(arguments).await,
        Arguments::Down(Down { dir }) => down(&dir),
        Arguments::Fakelet(arguments) => run_node(arguments).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_diagnostic(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn up(arguments: Up) -> anyhow::Result<()> {
    let Up { names, dir, detach, run } = arguments;
    ensure!(names.len() <= CLUSTERS_MAX, "at most {CLUSTERS_MAX} clusters");
    for (index, name) in names.iter().enumerate() {
        ensure!(is_name(name), "{name:?} is not a cluster name (lowercase letters, digits, '-')");
        ensure!(!names.iter().take(index).any(|other| other == name), "{name} is named twice");
    }
    runners(&run)?;
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let dir = dir.canonicalize()?;
    let started = Instant::now();
    let lifetime = if detach { Lifetime::Detached } else { Lifetime::Ours };
    let starts = names.iter().map(|name| start_one(&dir, name, lifetime, &run));
    let started_clusters = futures::future::try_join_all(starts).await?;
    let new = started_clusters.iter().flatten().count();
    print_diagnostic(&format!(
        "{} of {} clusters started in {:.1} s",
        new,
        names.len(),
        started.elapsed().as_secs_f32()
    ));
    let mut out = std::io::stdout().lock();
    for name in &names {
        writeln!(out, "{name}\t{}", dir.join(name).join("kubeconfig").display())?;
    }
    if !detach && new > 0 {
        print_diagnostic("running until Ctrl-C");
        tokio::signal::ctrl_c().await?;
        for name in &names {
            let _ = std::fs::remove_dir_all(dir.join(name));
        }
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('-')
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

/// Starts the cluster and its node, unless they are running already.
async fn start_one(
    dir: &Path,
    name: &str,
    lifetime: Lifetime,
    run: &[String],
) -> anyhow::Result<Option<(Cluster, Process)>> {
    let directory = dir.join(name);
    if directory.exists() {
        if is_running(&directory).await? {
            print_diagnostic(&format!("{name} is running"));
            return Ok(None);
        }
        stop(&directory)?;
        std::fs::remove_dir_all(&directory)?;
    }
    let options = Options { directory: Some(directory.clone()), lifetime, ..Options::new(name) };
    let Some(cluster) = Cluster::start_with(options).await? else {
        bail!("no kube-apiserver: run kind-clusters/tools/build.sh");
    };
    let node_config = cluster.kubeconfig_for("fakelet", Some("system:masters"))?;
    let file = directory.join("fakelet.kubeconfig");
    attest_certs::bundle::write_private(&file, node_config.as_bytes())?;
    let mut spec = Spec::new(std::env::current_exe()?, directory.join("fakelet.log"))
        .arg("fakelet")
        .arg("--dir")
        .arg(&directory);
    for runner in run {
        spec = spec.arg("--run").arg(runner);
    }
    let mut node = Process::spawn(spec)?;
    if lifetime == Lifetime::Detached {
        node.detach();
    }
    let [etcd, api, controllers] = cluster.process_ids();
    let record = Record {
        processes: BTreeMap::from([
            ("etcd".to_owned(), etcd),
            ("kube-apiserver".to_owned(), api),
            ("kube-controller-manager".to_owned(), controllers),
            ("fakelet".to_owned(), node.id()),
        ]),
    };
    let text = serde_json::to_vec_pretty(&record)?;
    attest_certs::bundle::write_private(&directory.join(RECORD), &text)?;
    Ok(Some((cluster, node)))
}

/// Returns whether every process of the record runs and the API server is ready.
async fn is_running(directory: &Path) -> anyhow::Result<bool> {
    let Some(record) = record(directory) else { return Ok(false) };
    if !record.processes.values().all(|id| is_ours(*id, directory)) {
        return Ok(false);
    }
    let kubeconfig = std::fs::read_to_string(directory.join("kubeconfig"))?;
    let client = client_from(&kubeconfig).await?;
    let polled = until("the API server", STOP_WITHIN, || async { is_ready(&client).await });
    Ok(polled.await.is_ok())
}

fn down(dir: &Path) -> anyhow::Result<()> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        print_diagnostic("no cluster is running");
        return Ok(());
    };
    let dir = dir.canonicalize()?;
    for entry in entries {
        let directory = dir.join(entry?.file_name());
        // Only directories that `up` created are removed.
        if directory.join("audit-policy.yaml").is_file() {
            stop(&directory)?;
            std::fs::remove_dir_all(&directory)?;
            print_diagnostic(&format!("stopped {}", directory.display()));
        }
    }
    let _ = std::fs::remove_dir(&dir);
    Ok(())
}

/// Stops the node first, so that the processes of its pods can end while their API server answers.
fn stop(directory: &Path) -> anyhow::Result<()> {
    let Some(record) = record(directory) else { return Ok(()) };
    let node = record.processes.get("fakelet").copied();
    if let Some(id) = node.filter(|id| is_ours(*id, directory)) {
        signal_group(id, Signal::TERM);
        wait_for_end(id, directory)?;
    }
    for id in record.processes.values().filter(|id| is_ours(**id, directory)) {
        signal_group(*id, Signal::KILL);
    }
    for id in record.processes.values() {
        wait_for_end(*id, directory)?;
    }
    Ok(())
}

fn wait_for_end(id: u32, directory: &Path) -> anyhow::Result<()> {
    let asked = Instant::now();
    while is_ours(id, directory) {
        if asked.elapsed() > STOP_WITHIN {
            bail!("process {id} did not end within {} s", STOP_WITHIN.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn record(directory: &Path) -> Option<Record> {
    serde_json::from_slice(&std::fs::read(directory.join(RECORD)).ok()?).ok()
}

/// Returns whether the id still belongs to the process that was started for this directory: ids are
/// reused.
fn is_ours(id: u32, directory: &Path) -> bool {
    let listed =
        Command::new("ps").args(["-ww", "-o", "stat=,command=", "-p", &id.to_string()]).output();
    listed.is_ok_and(|listed| {
        let line = String::from_utf8_lossy(&listed.stdout);
        !line.starts_with('Z') && line.contains(&*directory.to_string_lossy())
    })
}

async fn run_node(arguments: Node) -> anyhow::Result<()> {
    let Node { dir, run } = arguments;
    let kubeconfig = std::fs::read_to_string(dir.join("fakelet.kubeconfig"))?;
    let options = FakeletOptions { scripts: Vec::new(), runners: runners(&run)? };
    let node = Fakelet::start_with(kubeconfig, &dir, options)?;
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = term.recv() => {}
        result = tokio::signal::ctrl_c() => result?,
    }
    drop(node);
    Ok(())
}

fn runners(run: &[String]) -> anyhow::Result<Vec<Runner>> {
    run.iter()
        .map(|text| {
            let (image, program) = text.split_once('=').context("--run takes IMAGE=PROGRAM")?;
            let program = Path::new(program)
                .canonicalize()
                .with_context(|| format!("--run {text}: no such program"))?;
            // The pods of all clusters share the ports of this machine, so none may use the hub's.
            Ok(Runner::new(image, program)
                .env("ATTEST_LISTEN_HEALTH", "127.0.0.1:0")
                .env("ATTEST_LISTEN_METRICS", "127.0.0.1:0"))
        })
        .collect()
}

fn print_diagnostic(line: &str) {
    let _ = writeln!(std::io::stderr(), "attest: {line}");
}
