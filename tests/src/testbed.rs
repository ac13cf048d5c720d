//! A hub without clusters: simulated spokes join it, and CI signs for them. For tests and benches of many
//! spokes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use attest_common::basics::keys::PublicKey;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::api::Api;
use crate::fleet::{Hub, Operator, Repository, generate_key};
use crate::process::remove_at_end;
use crate::real::replace_tag;
use crate::simulator::spokes::{Handshakes, Spokes};
use crate::wait::until;
use crate::workload::{self, ENVIRONMENT, policy_spec};

/// A hub, its operator and the key of CI. The hub ends and all files are removed on drop.
#[derive(Debug)]
pub struct Testbed {
    pub hub: Hub,
    pub api: Api,
    pub operator: Operator,
    /// Key of CI.
    pub key: PathBuf,
    public_key: PublicKey,
    ports: (u16, u16),
    directory: TempDir,
}

impl Testbed {
    /// Starts a hub with these flags.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(flags: &[&str]) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("attest-testbed-").tempdir()?;
        remove_at_end(directory.path());
        let operator = Operator::new(&directory.path().join("operator"))?;
        let home = directory.path().join("hub");
        let ports = Hub::init(&operator, &home)?;
        let key = directory.path().join("ci.key");
        let public = generate_key(&operator, &key)?;
        let path = public.display().to_string();
        operator.attest(&["trust", "key", "add", "ci", &path, "--environment", ENVIRONMENT])?;
        let public_key = PublicKey::from_pem(&std::fs::read_to_string(&public)?)?;
        let api = Api::from_config(&operator.config())?;
        let hub = Hub::start(&home, ports, &all_flags(directory.path(), flags)).await?;
        Ok(Self { hub, api, operator, key, public_key, ports, directory })
    }

    /// Kills the hub and starts it with other flags.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn restart_with(&mut self, flags: &[&str]) -> anyhow::Result<()> {
        self.hub.process().kill();
        let home = self.hub.home().to_owned();
        self.hub = Hub::start(&home, self.ports, &all_flags(self.directory.path(), flags)).await?;
        Ok(())
    }

    /// Directory for files that the hub may read as repositories.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Joins simulated spokes, whose policies allow every application that CI signs.
    ///
    /// # Errors
    /// When the hub refuses one.
    pub async fn join(&self, count: usize) -> anyhow::Result<Spokes> {
        let pin = self.api.pin.to_string();
        let policy = policy_spec(&self.public_key.to_pem(), &self.api.hub_key_pem, &pin)?;
        Spokes::join(&self.api, self.hub.addresses().spokes.parse()?, &policy, count).await
    }

    /// Joins a spoke that completes handshakes without sessions.
    ///
    /// # Errors
    /// When the hub refuses it.
    pub async fn handshakes(&self) -> anyhow::Result<Handshakes> {
        Handshakes::join(&self.api, self.hub.addresses().spokes.parse()?, "handshakes").await
    }

    /// Creates the repository of workload W; nothing is signed yet.
    ///
    /// # Errors
    /// When Git fails.
    pub fn workload(&self) -> anyhow::Result<Repository> {
        let repository = Repository::create(&self.directory().join("workload"))?;
        workload::write(repository.tree(), &repository.url(), &[ENVIRONMENT])?;
        Ok(repository)
    }

    /// Signs and pushes a release of W with this image tag.
    ///
    /// # Errors
    /// When Git or `attest run` fails.
    pub fn release(&self, repository: &Repository, tag: &str) -> anyhow::Result<()> {
        repository.git(&["add", "-A"])?;
        repository.git(&["commit", "-q", "--allow-empty", "-m", tag])?;
        repository.sign(&self.operator, &self.key, &[("TAG", tag)])?;
        ensure!(replace_tag(&repository.tree().join("k8s"), tag)? > 0, "W has no image");
        repository.commit_and_push(tag)?;
        Ok(())
    }

    /// Applies an application of this name to these clusters.
    ///
    /// # Errors
    /// When the hub refuses it.
    pub async fn apply(
        &self,
        name: &str,
        repository_url: &str,
        clusters: &[String],
    ) -> anyhow::Result<()> {
        let destinations: Vec<Value> =
            clusters.iter().map(|cluster| json!({"cluster": cluster, "namespace": name})).collect();
        let manifest = json!({
            "apiVersion": "attest.continuu.ms/v1", "kind": "AttestApplication", "metadata": {"name": name},
            "spec": {
                "source": {"repoUrl": repository_url, "path": "k8s"}, "destinations": destinations,
                "syncPolicy": {"automated": {"prune": true, "selfHeal": true}},
            },
        });
        let _: Value = self.api.call("PUT", "/v1/applications", Some(&manifest)).await?;
        Ok(())
    }

    /// Makes the hub read the repository of an application now.
    ///
    /// # Errors
    /// When the hub refuses.
    pub async fn sync(&self, name: &str) -> anyhow::Result<()> {
        let path = format!("/v1/applications/{name}/sync");
        let _: Value = self.api.call("POST", &path, None).await?;
        Ok(())
    }

    /// Sum of the hub's metrics whose line begins with `name`.
    ///
    /// # Errors
    /// When the hub does not answer.
    pub async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let url = format!("http://{}/metrics", self.hub.addresses().metrics);
        let text = client.get(url).send().await?.error_for_status()?.text().await?;
        let lines = text.lines().filter(|line| line.starts_with(name));
        Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// Waits until `count` applications are Synced.
    ///
    /// # Errors
    /// When `limit` has passed.
    pub async fn all_synced(&self, count: usize, limit: Duration) -> anyhow::Result<()> {
        #[allow(clippy::cast_precision_loss, reason = "a count of applications")]
        let wanted = count as f64;
        let synced = until("every application to be Synced", limit, || async {
            let synced = self.metric("attest_gitops_applications_by_phase_synced").await?;
            Ok((synced >= wanted).then_some(()))
        });
        synced.await.with_context(|| format!("{count} applications"))
    }
}

fn all_flags(directory: &Path, flags: &[&str]) -> Vec<String> {
    let allow = ["--allow-file-repositories".to_owned(), directory.display().to_string()];
    allow.into_iter().chain(flags.iter().map(|&flag| flag.to_owned())).collect()
}
