//! Real Kubernetes control planes on loopback: etcd, kube-apiserver and kube-controller-manager as
//! child processes, each cluster with its own certificates and data.
//!
//! There are no nodes and no containers; [`fakelet`] simulates them. A start takes about five seconds
//! and 0.4 GB, so tests that need any cluster use a [`shared`] one.

pub mod audit;
pub mod binaries;
pub mod fakelet;
mod pki;
pub mod ports;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, bail};
use attest_common::basics::locked::Locked;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use tempfile::TempDir;

use self::audit::AuditLog;
use self::binaries::Binaries;
use self::fakelet::{Fakelet, FakeletOptions};
use self::pki::Pki;
use crate::process::{Lifetime, Process, Spec, remove_at_end};
use crate::wait::until;

/// Maximum start time of a control plane on a busy machine.
pub const READY_WITHIN: Duration = Duration::from_secs(90);

const START_ATTEMPTS: u32 = 3;
const LOG_TAIL_LINES: usize = 15;
const ADMINISTRATORS: &str = "system:masters";
/// Static tokens of the API server. One is the spoke's and claims to be due for renewal.
const STALE_TOKEN_FILE: &str = "tokens.csv";

/// Options of a cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name, for logs and the default context.
    pub name: String,
    /// Context in its kubeconfig.
    pub context: String,
    /// Directory of its files; `None` for a temporary directory that is removed with the cluster.
    pub directory: Option<PathBuf>,
    /// When its processes end.
    pub lifetime: Lifetime,
    /// Environment variables of the API server.
    pub api_environment: Vec<(&'static str, &'static str)>,
}

impl Options {
    /// A cluster in a temporary directory, with context `<name>-cluster`.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            context: format!("{name}-cluster"),
            directory: None,
            lifetime: Lifetime::Ours,
            api_environment: Vec::new(),
        }
    }
}

/// A running control plane.
pub struct Cluster {
    name: String,
    context: String,
    directory: PathBuf,
    server: String,
    pki: Pki,
    processes: Locked<Processes>,
    _temporary: Option<TempDir>,
}

struct Processes {
    controllers: Process,
    api: Process,
    etcd: Process,
}

impl Cluster {
    /// Starts a cluster and waits until it is ready. Returns `None` without Kubernetes programs, with a
    /// message on standard error.
    ///
    /// # Errors
    /// When it is not ready within [`READY_WITHIN`]; the error ends with its log. Without the programs
    /// when `CI=true`.
    pub async fn start(name: &str) -> anyhow::Result<Option<Self>> {
        Self::start_with(Options::new(name)).await
    }

    /// Like [`Self::start`], with all options.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_with(options: Options) -> anyhow::Result<Option<Self>> {
        attest_certs::install_provider();
        let Some(binaries) = Binaries::find()? else { return Ok(None) };
        let mut attempt = 1;
        loop {
            match Self::try_start(&binaries, &options).await {
                Ok(cluster) => return Ok(Some(cluster)),
                // Another process may take a port before the server binds it.
                Err(error)
                    if attempt < START_ATTEMPTS
                        && format!("{error:#}").contains("address already in use") =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(error.context(format!("cluster {}", options.name))),
            }
        }
    }

    async fn try_start(binaries: &Binaries, options: &Options) -> anyhow::Result<Self> {
        let Options { name, context, directory, lifetime, api_environment } = options;
        let temporary = match directory {
            Some(_) => None,
            None => Some(tempfile::Builder::new().prefix("attest-cluster-").tempdir()?),
        };
        let directory = match (&temporary, directory) {
            (Some(temporary), _) => temporary.path().to_owned(),
            (None, Some(directory)) => directory.clone(),
            (None, None) => bail!("no directory"),
        };
        if temporary.is_some() {
            remove_at_end(&directory);
        }
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;

        let pki = Pki::create(name)?;
        pki.write(&directory)?;
        std::fs::write(directory.join("audit-policy.yaml"), audit::POLICY)?;
        write_private(&directory.join(STALE_TOKEN_FILE), &stale_token()?)?;
        let (api_port, controllers_port) = (ports::free()?, ports::free()?);
        let server = format!("https://127.0.0.1:{api_port}");
        let controllers_user = pki.client("system:kube-controller-manager", None)?;
        let controllers_config = pki.kubeconfig(&server, context, &controllers_user);
        write_private(&directory.join("controllers.kubeconfig"), &controllers_config)?;

        let command_lines = CommandLines { binaries, directory: &directory };
        let (etcd, etcd_url) = command_lines.etcd()?;
        let etcd = Process::spawn(etcd)?;
        let mut api = command_lines.api(&etcd_url, api_port);
        for (variable, value) in api_environment {
            api = api.env(*variable, *value);
        }
        let api = Process::spawn(api)?;
        let controllers = command_lines.controllers(controllers_port);
        let mut starting = (api, etcd);
        let admin_config =
            pki.kubeconfig(&server, context, &pki.client("admin", Some(ADMINISTRATORS))?);
        write_private(&directory.join("kubeconfig"), &admin_config)?;
        let client = client_from(&admin_config).await?;
        ready(&client, [&mut starting.0, &mut starting.1]).await?;
        let (mut api, mut etcd) = starting;
        // The controller manager exits without an API server, so it starts last.
        let mut controllers = Process::spawn(controllers)?;
        default_account(&client, &mut controllers).await?;
        if *lifetime == Lifetime::Detached {
            [&mut etcd, &mut api, &mut controllers].into_iter().for_each(Process::detach);
        }
        Ok(Self {
            name: name.clone(),
            context: context.clone(),
            server,
            pki,
            processes: Locked::new(Processes { controllers, api, etcd }),
            directory,
            _temporary: temporary,
        })
    }

    /// The name it was started with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The context in its kubeconfig.
    pub fn context(&self) -> &str {
        &self.context
    }

    /// Address of the API server, `https://127.0.0.1:PORT`.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// A valid token of the spoke's account that claims to be due for renewal. The API server issues no
    /// token that lives for less than ten minutes.
    ///
    /// # Errors
    /// When its file cannot be read.
    pub fn stale_spoke_token(&self) -> anyhow::Result<String> {
        let line = std::fs::read_to_string(self.directory.join(STALE_TOKEN_FILE))?;
        Ok(line.split(',').next().context("no token")?.to_owned())
    }

    /// Directory of its files and logs.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The administrator's kubeconfig file.
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig")
    }

    /// The API server's certificate authority, PEM.
    pub fn authority_pem(&self) -> String {
        self.pki.authority_pem()
    }

    /// Creates a kubeconfig for a user, in a group if one is given.
    ///
    /// # Errors
    /// When the certificate cannot be issued.
    pub fn kubeconfig_for(&self, user: &str, group: Option<&str>) -> anyhow::Result<String> {
        Ok(self.pki.kubeconfig(&self.server, &self.context, &self.pki.client(user, group)?))
    }

    /// Creates a kubeconfig for the holder of a token.
    pub fn kubeconfig_with_token(&self, token: &str) -> String {
        self.pki.kubeconfig_with_token(&self.server, &self.context, token)
    }

    /// Writes the administrator's kubeconfig to another file, with another context and mode 0600.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_kubeconfig(&self, path: &Path, context: &str) -> anyhow::Result<()> {
        let admin = self.pki.client("admin", Some(ADMINISTRATORS))?;
        write_private(path, &self.pki.kubeconfig(&self.server, context, &admin))
    }

    /// Creates an administrator's client. A client belongs to the runtime that created it, so every test
    /// creates its own.
    ///
    /// # Errors
    /// When the kubeconfig is unusable.
    pub async fn client(&self) -> anyhow::Result<Client> {
        client_from(&std::fs::read_to_string(self.kubeconfig())?).await
    }

    /// Creates a client for a user, in a group if one is given.
    ///
    /// # Errors
    /// When the certificate cannot be issued or used.
    pub async fn client_for(&self, user: &str, group: Option<&str>) -> anyhow::Result<Client> {
        client_from(&self.kubeconfig_for(user, group)?).await
    }

    /// The audit log of the API server.
    pub fn audit(&self) -> AuditLog {
        AuditLog::at(&self.directory.join("audit.log"))
    }

    /// Sends SIGKILL to the API server. Clients see refused connections.
    pub fn stop_api(&self) {
        self.processes().api.kill();
    }

    /// Starts the API server again, on the same port and data, and waits until it is ready.
    ///
    /// # Errors
    /// When it is not ready in time.
    pub async fn start_api(&self) -> anyhow::Result<()> {
        {
            let mut processes = self.processes();
            processes.api = processes.api.respawn()?;
        }
        let client = self.client().await?;
        until("the API server to be ready", READY_WITHIN, || async { is_ready(&client).await })
            .await
    }

    /// Sends SIGSTOP to the API server. Clients see timeouts.
    pub fn freeze_api(&self) {
        self.processes().api.freeze();
    }

    /// Sends SIGCONT to the API server.
    pub fn thaw_api(&self) {
        self.processes().api.thaw();
    }

    /// Sends SIGSTOP to etcd. The API server returns errors after its own timeouts.
    pub fn freeze_etcd(&self) {
        self.processes().etcd.freeze();
    }

    /// Sends SIGCONT to etcd.
    pub fn thaw_etcd(&self) {
        self.processes().etcd.thaw();
    }

    /// Sends SIGSTOP to the controller manager. Applied objects stay, without any effect.
    pub fn freeze_controllers(&self) {
        self.processes().controllers.freeze();
    }

    /// Sends SIGCONT to the controller manager.
    pub fn thaw_controllers(&self) {
        self.processes().controllers.thaw();
    }

    /// Process ids of etcd, API server and controller manager, in this order.
    pub fn process_ids(&self) -> [u32; 3] {
        let processes = self.processes();
        [processes.etcd.id(), processes.api.id(), processes.controllers.id()]
    }

    fn processes(&self) -> std::sync::MutexGuard<'_, Processes> {
        self.processes.lock()
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Cluster")
            .field("name", &self.name)
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

/// A cluster with a simulated node.
#[derive(Debug)]
pub struct Site {
    /// The simulated node.
    pub fakelet: Fakelet,
    /// The control plane.
    pub cluster: Cluster,
}

/// Returns the cluster of this name that all tests of this process share, and starts it on the first
/// call. Tests are isolated by namespaces.
///
/// # Errors
/// As [`Cluster::start`].
pub async fn shared(name: &str) -> anyhow::Result<Option<Arc<Site>>> {
    type Slot = Arc<tokio::sync::OnceCell<Option<Arc<Site>>>>;
    static SITES: OnceLock<Locked<BTreeMap<String, Slot>>> = OnceLock::new();
    let slot =
        SITES.get_or_init(Locked::default).lock().entry(name.to_owned()).or_default().clone();
    slot.get_or_try_init(|| async {
        let Some(cluster) = Cluster::start(name).await? else { return Ok(None) };
        let fakelet = Fakelet::start(&cluster, FakeletOptions::default())?;
        Ok(Some(Arc::new(Site { fakelet, cluster })))
    })
    .await
    .cloned()
}

/// Creates a client from the text of a kubeconfig.
///
/// # Errors
/// When the text is not a usable kubeconfig.
pub async fn client_from(kubeconfig: &str) -> anyhow::Result<Client> {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig)?;
    let options = KubeConfigOptions::default();
    Ok(Client::try_from(Config::from_custom_kubeconfig(kubeconfig, &options).await?)?)
}

/// Returns `Some` when the API server reports that it is ready.
///
/// # Errors
/// When the API server does not answer.
pub async fn is_ready(client: &Client) -> anyhow::Result<Option<()>> {
    let request = http::Request::get("/readyz").body(Vec::new())?;
    Ok((client.request_text(request).await? == "ok").then_some(()))
}

async fn ready(client: &Client, processes: [&mut Process; 2]) -> anyhow::Result<()> {
    let processes = Locked::new(processes);
    let polled = until("the API server to be ready", READY_WITHIN, || async {
        for process in processes.lock().iter_mut() {
            if let Some(status) = process.ended()? {
                return Ok(Some(Err(ended_early(process, status))));
            }
        }
        Ok(is_ready(client).await?.map(Ok))
    });
    polled.await?
}

/// Waits for the default account, which every Pod needs and which shows that the controllers work.
async fn default_account(client: &Client, controllers: &mut Process) -> anyhow::Result<()> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    let controllers = Locked::new(controllers);
    let polled =
        until("the controller manager to create the default account", READY_WITHIN, || async {
            {
                let mut controllers = controllers.lock();
                if let Some(status) = controllers.ended()? {
                    return Ok(Some(Err(ended_early(&controllers, status))));
                }
            }
            Ok(accounts.get_opt("default").await?.map(|_| Ok(())))
        });
    polled.await?
}

fn ended_early(process: &Process, status: std::process::ExitStatus) -> anyhow::Error {
    let output = process.output();
    let lines: Vec<_> = output.lines().collect();
    let tail = lines.get(lines.len().saturating_sub(LOG_TAIL_LINES)..).unwrap_or_default();
    anyhow::anyhow!(
        "a control plane program exited during startup ({status}); {}:\n{}",
        process.log().display(),
        tail.join("\n")
    )
}

/// Line of the API server's token file.
fn stale_token() -> anyhow::Result<String> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    let payload = data_encoding::BASE64URL_NOPAD.encode(br#"{"iat":1000,"exp":1300}"#);
    let token = format!("stale.{payload}.{}", data_encoding::HEXLOWER.encode(&random));
    let user = "system:serviceaccount:attest-spoke:attest-spoke";
    let groups = "system:serviceaccounts,system:serviceaccounts:attest-spoke";
    Ok(format!("{token},{user},stale,\"{groups}\"\n"))
}

fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    Ok(attest_certs::bundle::write_private(path, text.as_bytes())?)
}

/// Command lines of the control plane. Options that are absent have the program's default.
struct CommandLines<'a> {
    binaries: &'a Binaries,
    directory: &'a Path,
}

impl CommandLines<'_> {
    fn program(&self, name: &str) -> Spec {
        let log = self.directory.join(format!("{name}.log"));
        Spec::new(self.binaries.program(name), log)
    }

    fn file(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    fn etcd(&self) -> anyhow::Result<(Spec, String)> {
        let clients = format!("http://127.0.0.1:{}", ports::free()?);
        let peers = format!("http://127.0.0.1:{}", ports::free()?);
        let spec = self.program("etcd").args([
            format!("--data-dir={}", self.file("etcd")),
            "--name=main".to_owned(),
            format!("--listen-client-urls={clients}"),
            format!("--advertise-client-urls={clients}"),
            format!("--listen-peer-urls={peers}"),
            format!("--initial-advertise-peer-urls={peers}"),
            format!("--initial-cluster=main={peers}"),
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
        ]);
        Ok((spec, clients))
    }

    fn api(&self, etcd_url: &str, port: u16) -> Spec {
        self.program("kube-apiserver").args([
            format!("--etcd-servers={etcd_url}"),
            "--bind-address=127.0.0.1".to_owned(),
            "--advertise-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            // The reconciler rejects loopback addresses.
            "--endpoint-reconciler-type=none".to_owned(),
            format!("--tls-cert-file={}", self.file("server.crt")),
            format!("--tls-private-key-file={}", self.file("server.key")),
            format!("--client-ca-file={}", self.file("ca.crt")),
            format!("--service-account-key-file={}", self.file("accounts.pub")),
            format!("--service-account-signing-key-file={}", self.file("accounts.key")),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--service-cluster-ip-range=10.96.0.0/24".to_owned(),
            "--allow-privileged=true".to_owned(),
            format!("--token-auth-file={}", self.file(STALE_TOKEN_FILE)),
            format!("--audit-policy-file={}", self.file("audit-policy.yaml")),
            format!("--audit-log-path={}", self.file("audit.log")),
            "--audit-log-maxsize=1024".to_owned(),
        ])
    }

    fn controllers(&self, port: u16) -> Spec {
        self.program("kube-controller-manager").args([
            format!("--kubeconfig={}", self.file("controllers.kubeconfig")),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            "--leader-elect=false".to_owned(),
            format!("--service-account-private-key-file={}", self.file("accounts.key")),
            format!("--root-ca-file={}", self.file("ca.crt")),
            "--use-service-account-credentials=true".to_owned(),
            format!("--cluster-signing-cert-file={}", self.file("ca.crt")),
            format!("--cluster-signing-key-file={}", self.file("ca.key")),
            format!("--cert-dir={}", self.file("controllers")),
        ])
    }
}
