//! A fleet on real clusters: a hub, clusters registered by `attest gitops cluster add` as an operator
//! would, their spokes, a signing key and a repository.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use crate::api::Api;
use crate::cluster::fakelet::{Fakelet, FakeletOptions, Runner};
use crate::cluster::{Cluster, Options, ports};
use crate::fleet::{Hub, Operator, Repository, generate_key, program};
use crate::process::{Process, Spec, remove_at_end};
use crate::wait::until;

/// A registered cluster.
#[derive(Debug)]
pub struct RealSite {
    pub name: String,
    pub cluster: Cluster,
    pub fakelet: Fakelet,
    /// The spoke's process when it runs outside the cluster.
    pub spoke: Option<Process>,
    /// Address of the metrics of a spoke that runs in the cluster.
    pub metrics: String,
}

impl RealSite {
    /// Reads the spoke's metrics.
    ///
    /// # Errors
    /// When the spoke does not answer.
    pub async fn metrics(&self) -> anyhow::Result<String> {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let answer = client.get(format!("http://{}/metrics", self.metrics)).send().await?;
        Ok(answer.error_for_status()?.text().await?)
    }

    /// Client for the cluster's trust policies.
    ///
    /// # Errors
    /// When there is no client for the API server.
    pub async fn policies(&self) -> anyhow::Result<kube::Api<DynamicObject>> {
        let resource = ApiResource {
            group: "attest.continuu.ms".into(),
            version: "v1".into(),
            api_version: "attest.continuu.ms/v1".into(),
            kind: "AttestTrustPolicy".into(),
            plural: "attesttrustpolicies".into(),
        };
        Ok(kube::Api::all_with(self.cluster.client().await?, &resource))
    }

    /// Allows or forbids `Adopt` in plans, as the cluster's operator would.
    ///
    /// # Errors
    /// When the policy cannot be read or written.
    pub async fn set_adopt(&self, adopt: bool) -> anyhow::Result<()> {
        let policies = self.policies().await?;
        let policy = policies.get("local").await?;
        let mut entries = policy.data.pointer("/spec/applications").cloned().unwrap_or_default();
        for entry in entries.as_array_mut().context("the policy has no applications")? {
            entry["adopt"] = Value::Bool(adopt);
        }
        let patch = Patch::Merge(serde_json::json!({"spec": {"applications": entries}}));
        policies.patch("local", &PatchParams::default(), &patch).await?;
        Ok(())
    }
}

/// Where spokes run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agents {
    /// In the cluster, from the Deployment's pod template.
    InCluster,
    /// Outside the cluster, from the command line that `cluster add --agent external` prints.
    External,
}

/// How a fleet differs from the usual one.
#[derive(Clone, Copy, Debug)]
struct Setup<'a> {
    agents: Agents,
    /// Variables of the API servers.
    api_environment: &'a [(&'static str, &'static str)],
    /// Applications are resources of the first cluster.
    resources: bool,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Self { agents: Agents::InCluster, api_environment: &[], resources: false }
    }
}

/// Applies the definition of AttestApplication, of which `deploy/crds` is a copy.
async fn define_applications(cluster: &Cluster) -> anyhow::Result<()> {
    let definition = attest_install::application_definition();
    attest_install::apply::apply_manifests(&cluster.client().await?, &[definition]).await?;
    Ok(())
}

/// A fleet. All processes are ended and all files removed on drop.
#[derive(Debug)]
pub struct RealFleet {
    // Dropped in this order: clusters and hub before their files.
    sites: Vec<RealSite>,
    hub: Hub,
    api: Api,
    operator: Operator,
    repository: Repository,
    key: PathBuf,
    directory: TempDir,
}

impl RealFleet {
    /// Starts a hub and clusters of these names and environments, and registers them with spokes that
    /// run from their Deployments. Returns `None` without Kubernetes programs, with a message on
    /// standard error.
    ///
    /// # Errors
    /// When a part does not start or a cluster does not become Connected.
    pub async fn start(clusters: &[(&str, &str)]) -> anyhow::Result<Option<Self>> {
        Self::start_with(clusters, Agents::InCluster, &mut |_| {}).await
    }

    /// Like [`Self::start`], with a hub whose applications are resources of the first cluster.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_with_resources(clusters: &[(&str, &str)]) -> anyhow::Result<Option<Self>> {
        let setup = Setup { resources: true, ..Setup::default() };
        Self::start_all(clusters, setup, &mut |_| {}).await
    }

    /// Like [`Self::start`], with variables for the API servers.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_tuned(
        clusters: &[(&str, &str)],
        api_environment: &[(&'static str, &'static str)],
    ) -> anyhow::Result<Option<Self>> {
        let setup = Setup { api_environment, ..Setup::default() };
        Self::start_all(clusters, setup, &mut |_| {}).await
    }

    /// Like [`Self::start`], with spokes inside or outside the clusters. Calls `progress` with a line for
    /// each step.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_with(
        clusters: &[(&str, &str)],
        agents: Agents,
        progress: &mut dyn FnMut(String),
    ) -> anyhow::Result<Option<Self>> {
        Self::start_all(clusters, Setup { agents, ..Setup::default() }, progress).await
    }

    async fn start_all(
        clusters: &[(&str, &str)],
        setup: Setup<'_>,
        progress: &mut dyn FnMut(String),
    ) -> anyhow::Result<Option<Self>> {
        let Setup { agents, api_environment, resources } = setup;
        let directory = tempfile::Builder::new().prefix("attest-fleet-").tempdir()?;
        remove_at_end(directory.path());
        let starting = clusters.iter().map(|(name, _)| {
            let api_environment = api_environment.to_vec();
            Cluster::start_with(Options { api_environment, ..Options::new(name) })
        });
        let mut sites = Vec::new();
        for (started, (name, _)) in
            futures::future::try_join_all(starting).await?.into_iter().zip(clusters)
        {
            let Some(cluster) = started else { return Ok(None) };
            // Spokes share the ports of this machine.
            let metrics = format!("127.0.0.1:{}", ports::free()?);
            let runner = Runner::new("attest-spoke", program("attest-spoke")?)
                .env("ATTEST_LISTEN_HEALTH", "127.0.0.1:0")
                .env("ATTEST_LISTEN_METRICS", &metrics);
            let options = FakeletOptions { runners: vec![runner], ..FakeletOptions::default() };
            let fakelet = Fakelet::start(&cluster, options)?;
            let version = cluster.client().await?.apiserver_version().await?.git_version;
            progress(format!("cluster {name}: Kubernetes {version} at {}", cluster.server()));
            sites.push(RealSite {
                name: (*name).to_owned(),
                cluster,
                fakelet,
                spoke: None,
                metrics,
            });
        }
        let operator = Operator::new(&directory.path().join("operator"))?;
        let home = directory.path().join("hub");
        let ports = Hub::init(&operator, &home)?;
        let repository = Repository::create(&directory.path().join("repository"))?;
        let allowed = directory.path().display().to_string();
        let mut flags = vec!["--allow-file-repositories".to_owned(), allowed];
        if let Some(own) = sites.first().filter(|_| resources) {
            define_applications(&own.cluster).await?;
            let kubeconfig = own.cluster.kubeconfig().display().to_string();
            flags.extend(["--kubeconfig".to_owned(), kubeconfig]);
        }
        let hub = Hub::start(&home, ports, &flags).await?;
        let addresses = hub.addresses();
        progress(format!("hub: API at {}, spokes at {}", addresses.api, addresses.spokes));
        let key = directory.path().join("ci.key");
        let public = generate_key(&operator, &key)?;
        let environments: BTreeSet<&str> =
            clusters.iter().map(|(_, environment)| *environment).collect();
        for environment in environments {
            let public = public.display().to_string();
            operator.attest(&[
                "trust",
                "key",
                "add",
                "ci",
                &public,
                "--environment",
                environment,
            ])?;
        }
        let api = Api::from_config(&operator.config())?;
        let mut fleet = Self { sites, hub, api, operator, repository, key, directory };
        for (index, (name, environment)) in clusters.iter().enumerate() {
            let result = fleet.register(index, environment, agents).await?;
            progress(format!("cluster {name}: {result}"));
        }
        Ok(Some(fleet))
    }

    /// Runs `attest gitops cluster add`; for an external spoke also the command line that it prints.
    /// Returns the last line of output.
    async fn register(
        &mut self,
        index: usize,
        environment: &str,
        agents: Agents,
    ) -> anyhow::Result<String> {
        let site = self.sites.get_mut(index).context("no such site")?;
        let kubeconfig = site.cluster.kubeconfig().display().to_string();
        let context = format!("{}-cluster", site.name);
        let mut arguments = vec![
            "gitops",
            "cluster",
            "add",
            &site.name,
            "--kubeconfig",
            &kubeconfig,
            "--context",
            &context,
            "--environment",
            environment,
            "--yes",
        ];
        if agents == Agents::External {
            arguments.extend(["--agent", "external"]);
        }
        let mut adding = tokio::process::Command::from(self.operator.command(arguments))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut lines = BufReader::new(adding.stdout.take().context("no output")?).lines();
        let mut errors = adding.stderr.take().context("no error output")?;
        let diagnostics = tokio::spawn(async move {
            let mut text = String::new();
            let _ = errors.read_to_string(&mut text).await;
            text
        });
        let mut last = String::new();
        while let Some(line) = lines.next_line().await? {
            if let Some(arguments) = line.strip_prefix("attest-spoke ") {
                let log = self.directory.path().join(format!("spoke-{}.log", site.name));
                let spec =
                    Spec::new(program("attest-spoke")?, log).args(arguments.split_whitespace());
                site.spoke = Some(Process::spawn(spec)?);
            } else {
                last = line;
            }
        }
        let ended = adding.wait().await?;
        let log = site.spoke.as_ref().map(Process::output).unwrap_or_default();
        ensure!(ended.success(), "cluster add {}: {}\n{log}", site.name, diagnostics.await?);
        Ok(last)
    }

    /// Installs a policy at one site without required attestations that allows these kinds.
    ///
    /// # Errors
    /// When the policy cannot be read, written or installed.
    pub async fn allow_kinds(
        &self,
        site: &RealSite,
        extra: &Value,
        cluster_scoped: &Value,
    ) -> anyhow::Result<()> {
        let mut policy = site.policies().await?.get("local").await?;
        let mut spec = policy.data.get_mut("spec").map(Value::take).context("no spec")?;
        let entry = spec.pointer_mut("/applications/0").context("no entry")?;
        entry["kinds"] = json!({"extra": extra, "clusterScoped": cluster_scoped});
        entry["minimumMode"] = json!("Standard");
        entry["requiredAttestations"] = json!([]);
        entry["adopt"] = json!(true);
        entry["remove"] = json!({"allow": true, "maxPrunePercent": 100});
        let manifest = json!({
            "apiVersion": "attest.continuu.ms/v1", "kind": "AttestTrustPolicy",
            "metadata": {"name": "local"}, "spec": spec,
        });
        let file = self.directory().join("policy.yaml");
        std::fs::write(&file, manifest.to_string())?;
        let kubeconfig = site.cluster.kubeconfig().display().to_string();
        let file = file.display().to_string();
        let install = ["trust", "install", &file, "--kubeconfig", &kubeconfig, "--yes"];
        self.operator().attest(&install).map(drop)
    }

    /// Fills the repository with the sample application, as its owner would.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_sample(&self) -> anyhow::Result<()> {
        self.ci().write_sample()
    }

    /// Signs the content of the repository as `tag`, commits and pushes; returns the commit.
    ///
    /// # Errors
    /// When `attest run` or Git fails.
    pub fn release(&self, tag: &str) -> anyhow::Result<String> {
        self.ci().release(tag)
    }

    /// Like [`Self::release`], without the last commit.
    ///
    /// # Errors
    /// When `attest run` or Git fails.
    pub fn prepare(&self, tag: &str) -> anyhow::Result<()> {
        self.ci().prepare(tag)
    }

    /// The CI of the repository, as a value that does not borrow the fleet.
    pub fn ci(&self) -> Ci {
        Ci::new(&self.repository, &self.operator, &self.key)
    }

    /// Waits until an application is Synced at every destination.
    ///
    /// # Errors
    /// When the time is over; the error contains the hub's last answer.
    pub async fn wait_synced(&self, application: &str, within: Duration) -> anyhow::Result<()> {
        let path = format!("/v1/applications/{application}");
        let waited = until("the application to be Synced", within, || async {
            let seen: Value = self.api.call("GET", &path, None).await?;
            Ok((seen.get("phase").and_then(Value::as_str) == Some("Synced")).then_some(()))
        });
        if let Err(error) = waited.await {
            let seen: Value = self.api.call("GET", &path, None).await?;
            return Err(error.context(format!("{seen:#}")));
        }
        Ok(())
    }

    /// Checks that all requests of the spokes were allowed
    /// ([`crate::cluster::audit::AuditLog::check_spoke_requests`]); called at the end of a test.
    /// Returns the number of written application objects.
    ///
    /// # Errors
    /// When one was not, or when a cluster's audit log contains no request of a spoke.
    pub fn check_spoke_requests(&self) -> anyhow::Result<usize> {
        let mut objects = 0;
        for site in &self.sites {
            let written = site.cluster.audit().check_spoke_requests();
            objects += written.with_context(|| format!("cluster {}", site.name))?;
        }
        Ok(objects)
    }

    /// Process id of a cluster's spoke.
    pub fn spoke_process(&self, name: &str) -> Option<u32> {
        let site = self.sites.iter().find(|site| site.name == name)?;
        if let Some(spoke) = &site.spoke {
            return Some(spoke.id());
        }
        let processes = site.fakelet.processes();
        processes.into_iter().find(|(pod, _)| pod.contains("attest-spoke")).map(|(_, id)| id)
    }

    /// The clusters.
    pub fn sites_mut(&mut self) -> &mut [RealSite] {
        &mut self.sites
    }

    /// The clusters.
    pub fn sites(&self) -> &[RealSite] {
        &self.sites
    }

    /// The hub.
    pub fn hub(&mut self) -> &mut Hub {
        &mut self.hub
    }

    /// The address on which the hub accepts spokes.
    pub fn hub_address(&self) -> String {
        self.hub.addresses().spokes.clone()
    }

    /// The hub's API.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// The operator.
    pub fn operator(&self) -> &Operator {
        &self.operator
    }

    /// The application's repository.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// CI's private key file.
    pub fn key(&self) -> &Path {
        &self.key
    }

    /// The directory of all files.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

/// The CI of one repository.
#[derive(Clone, Debug)]
pub struct Ci {
    repository: Repository,
    operator: Operator,
    key: PathBuf,
}

impl Ci {
    /// Signs releases of `repository` with the key file `key`.
    pub fn new(repository: &Repository, operator: &Operator, key: &Path) -> Self {
        Self { repository: repository.clone(), operator: operator.clone(), key: key.to_owned() }
    }

    /// Like [`RealFleet::write_sample`].
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_sample(&self) -> anyhow::Result<()> {
        let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("sample/web-app");
        let tree = self.repository.tree();
        crate::workload::copy_tree(&sample, tree, &["out"])?;
        let recipe = std::fs::read_to_string(tree.join("attest.yaml"))?;
        let lines = recipe.lines().map(|line| {
            let ours = format!("repository: {}", self.repository.url());
            if line.starts_with("repository:") { ours } else { line.to_owned() }
        });
        let recipe: Vec<String> = lines.collect();
        std::fs::write(tree.join("attest.yaml"), recipe.join("\n") + "\n")?;
        std::fs::write(tree.join(".gitignore"), "out/\n")?;
        Ok(())
    }

    /// The repository.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Like [`RealFleet::release`].
    ///
    /// # Errors
    /// When `attest run` or Git fails.
    pub fn release(&self, tag: &str) -> anyhow::Result<String> {
        self.prepare(tag)?;
        self.repository.commit_and_push(&format!("Release {tag}"))
    }

    /// Like [`RealFleet::prepare`].
    ///
    /// # Errors
    /// When `attest run` or Git fails.
    pub fn prepare(&self, tag: &str) -> anyhow::Result<()> {
        self.repository.git(&["add", "-A"])?;
        let message = format!("Source of {tag}");
        self.repository.git(&["commit", "-q", "--allow-empty", "-m", &message])?;
        let variables = [("TAG", tag), ("GITHUB_SHA", tag), ("GITHUB_REF_NAME", tag)];
        self.repository.sign(&self.operator, &self.key, &variables)?;
        let manifests = self.repository.tree().join("k8s");
        ensure!(
            replace_tag(&manifests, tag)? > 0,
            "no image of myapp under {}",
            manifests.display()
        );
        Ok(())
    }
}

/// Replaces the image tag in every manifest below a directory, as the `yq` line of the documented
/// workflow does. Returns the number of replaced tags.
pub(crate) fn replace_tag(directory: &Path, tag: &str) -> anyhow::Result<usize> {
    let mut changed = 0;
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            changed += replace_tag(&path, tag)?;
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            let text = std::fs::read_to_string(&path)?;
            let mut lines: Vec<String> = Vec::new();
            for line in text.lines() {
                match line.split_once("image: myapp:") {
                    Some((indent, _)) => {
                        changed += 1;
                        lines.push(format!("{indent}image: myapp:{tag}"));
                    }
                    None => lines.push(line.to_owned()),
                }
            }
            std::fs::write(&path, lines.join("\n") + "\n")?;
        }
    }
    Ok(changed)
}
