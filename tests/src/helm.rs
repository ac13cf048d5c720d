//! Helm, and a chart repository on loopback.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use axum::Router;
use axum::extract::{Path as Segment, State};
use http::StatusCode;
use tempfile::TempDir;
use tokio_util::task::AbortOnDropHandle;

use crate::cluster::binaries::Binaries;
use crate::process::describe;

/// Returns the directory of a chart of this repository.
pub fn chart(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts").join(name)
}

/// One version of Helm with its own configuration.
#[derive(Debug)]
pub struct Helm {
    program: PathBuf,
    home: TempDir,
    kubeconfig: Option<PathBuf>,
}

impl Helm {
    /// Finds `helm` (version 4) or `helm3`. Without it writes a message to standard error and returns `None`.
    ///
    /// # Errors
    /// When there is none in CI (`CI=true`).
    pub fn find(name: &str) -> anyhow::Result<Option<Self>> {
        let Some(program) = Binaries::extra(name)? else { return Ok(None) };
        let home = tempfile::Builder::new().prefix("attest-helm-").tempdir()?;
        Ok(Some(Self { program, home, kubeconfig: None }))
    }

    /// Uses a cluster.
    #[must_use]
    pub fn with_kubeconfig(self, kubeconfig: &Path) -> Self {
        Self { kubeconfig: Some(kubeconfig.to_owned()), ..self }
    }

    /// Prepares a command.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).env_remove("KUBECONFIG");
        for (variable, directory) in [
            ("HELM_CACHE_HOME", "cache"),
            ("HELM_CONFIG_HOME", "config"),
            ("HELM_DATA_HOME", "data"),
        ] {
            command.env(variable, self.home.path().join(directory));
        }
        if let Some(kubeconfig) = &self.kubeconfig {
            command.env("KUBECONFIG", kubeconfig);
        }
        command
    }

    /// Runs Helm and returns its standard output.
    ///
    /// # Errors
    /// When it fails; the error contains its output.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.command(arguments).output().context("cannot run helm")?;
        ensure!(output.status.success(), "helm {}: {}", arguments.join(" "), describe(&output));
        Ok(String::from_utf8(output.stdout)?)
    }
}

/// A chart repository on loopback, served while this value exists.
#[derive(Debug)]
pub struct ChartRepository {
    /// Address for `helm repo add`.
    pub url: String,
    _directory: TempDir,
    _server: AbortOnDropHandle<()>,
}

impl ChartRepository {
    /// Packages charts and serves them with their index.
    ///
    /// # Errors
    /// When Helm fails, or no port is free.
    pub async fn serve(helm: &Helm, charts: &[PathBuf]) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("attest-charts-").tempdir()?;
        let target = directory.path().display().to_string();
        for chart in charts {
            helm.run(&["package", &chart.display().to_string(), "--destination", &target])?;
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        helm.run(&["repo", "index", &target, "--url", &url])?;
        let router = Router::new()
            .route("/{file}", axum::routing::get(file))
            .with_state(directory.path().to_owned());
        let server = tokio::spawn(async move {
            // Ends with the test.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { url, _directory: directory, _server: AbortOnDropHandle::new(server) })
    }
}

async fn file(
    State(directory): State<PathBuf>,
    Segment(name): Segment<String>,
) -> Result<Vec<u8>, StatusCode> {
    std::fs::read(directory.join(name)).map_err(|_| StatusCode::NOT_FOUND)
}
