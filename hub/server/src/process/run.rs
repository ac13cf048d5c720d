//! Runs a hub: opens its home and listeners, and serves until shutdown.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use attest_certs::bundle::write_private;
use attest_common::basics::backoff::{Backoff, Jitter};
use attest_common::basics::reason::Reason;
use attest_common::basics::text::error_chain;
use attest_documents::login::{API_PORT, HubFacts};
use attest_runtime::clock::random;
use attest_runtime::probes::{self, BindError};
use attest_supply::render::{
    FileIsolation, Isolation, Kustomize, RenderCapacity, RenderError, RenderWorker,
};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::parts::{self, Parts, Settings, StartError};
use crate::api::{self, ApiError};
use crate::core::Core;
use crate::core::blocking::blocking;
use crate::core::own_cluster::OwnCluster;
use crate::core::stop::Stop;
use crate::core::store::StoreError;
use crate::core::store::records::{ApplicationRecord, TokenRecord};
use crate::home::{self, Advertise, Home, HomeError};
use crate::in_cluster::{
    LoginSigner, SPOKES_SERVICE, follow_configuration, follow_service, publish,
};
use crate::kubernetes::{HubKubernetes, KubernetesError};
use crate::process::config::Options;
use crate::resources;
use crate::spokes::LinkError;
use crate::spokes::listener::{self, SpokeListener};
use crate::webhooks::{self, Webhooks};

/// Port of the Service for spokes.
const SPOKES_PORT: u16 = 4433;
/// Interval between checks of the expiry of the hub's certificate.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(60 * 60);
/// Delays between requests to an API server that does not answer.
const API_SERVER_RETRY: Backoff =
    Backoff::new(Duration::from_secs(1), Duration::from_secs(60)).with_jitter(Jitter::Full);
/// Longest wait for requests and connections at shutdown.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Listen addresses of a hub, as logged and written to `addresses.json`.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Addresses {
    pub api: SocketAddr,
    pub spokes: SocketAddr,
    pub health: SocketAddr,
    pub metrics: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhooks: Option<SocketAddr>,
}

/// A running hub.
#[derive(Debug)]
pub struct Running {
    pub core: Arc<Core>,
    pub addresses: Addresses,
    tasks: JoinSet<()>,
}

/// Starts a hub. All addresses are bound before any is served.
///
/// # Errors
/// The first failure, with a text for the person who started the hub.
pub async fn start(options: &Options) -> Result<Running, RunError> {
    let kubernetes = match options.kubernetes() {
        Some(access) => Some(HubKubernetes::open(&access).await?),
        None => None,
    };
    if let Some(kubernetes) = kubernetes.as_ref().filter(|_| options.in_cluster) {
        create_home(options, &kubernetes.namespace)?;
    }
    let home = home::open(&options.home)?;
    let facts = facts_of(&home, options);
    let advertised = home.advertise.spoke_address.clone();
    let addresses_file = home.addresses();
    let tls = home.tls.clone();
    let (kustomize, probed) = renderer(options).await?;
    let capacity = kustomize.worker().capacity();
    let settings = Settings {
        urls: options.urls(),
        poll_interval: options.poll_interval(),
        kustomize,
        kubernetes: kubernetes.clone(),
    };
    // Before the store is opened: a hub that cannot listen begins no epoch.
    let spokes = listener::bind(options.listen_spokes.0)?;
    let api = api::bind(options.listen_api.0).await?;
    let health = probes::bind("--listen-health", options.listen_health).await?;
    let metrics = probes::bind("--listen-metrics", options.listen_metrics).await?;
    let webhooks = match options.listen_webhooks {
        Some(address) => Some(probes::bind("--listen-webhooks", address).await?),
        None => None,
    };
    let directory = options.home.clone();
    let parts = tokio::task::spawn_blocking(move || parts::start(home, settings))
        .await
        .map_err(|_| RunError::Ended)??;
    let Parts { core, waker, reconciler, registration, api: state, custodian } = parts;
    let operators = state.operators.clone();
    let opened =
        SpokeListener::open(core.clone(), waker.clone(), registration.clone(), &tls, spokes)?;
    let spokes = Arc::new(opened);
    let api = api::listen(state, &tls, api)?;
    let addresses = Addresses {
        api: api.address().map_err(RunError::Socket)?,
        spokes: spokes.address()?,
        health: health.local_addr().map_err(RunError::Socket)?,
        metrics: metrics.local_addr().map_err(RunError::Socket)?,
        webhooks: webhooks
            .as_ref()
            .map(TcpListener::local_addr)
            .transpose()
            .map_err(RunError::Socket)?,
    };
    let text = serde_json::to_vec_pretty(&addresses).unwrap_or_default();
    write_private(&addresses_file, &text).map_err(HomeError::Bundle)?;

    // Before anything reads them.
    if kubernetes.is_some() {
        core.configuration.await_config_map();
        core.own_cluster.set(OwnCluster::Unknown);
    }
    let advertised = Some(advertised).filter(|_| !options.in_cluster);
    let configured = options.advertise.clone().or(advertised);
    core.addresses.update(|addresses| addresses.configured = configured);
    if options.in_cluster {
        core.addresses.share_peers();
    }
    let known: Vec<ApplicationRecord> = blocking(&core, |core| core.records.all()).await?;
    for record in &known {
        waker.begin(record.application.name.as_str());
    }
    core.directory.measure(&core.metrics);
    let mut tasks = JoinSet::new();
    let stop = &core.stop;
    let renewal = renew_certificate(core.clone(), directory, spokes.clone(), api.certificate());
    tasks.spawn(stop.clone().part("certificate renewal", renewal));
    tasks.spawn(stop.clone().part("listener for spokes", async move { spokes.serve().await }));
    tasks.spawn(stop.clone().part("reconciler", reconciler.run()));
    tasks.spawn(serving("API", stop.clone(), api::serve(api)));
    tasks.spawn(stop.clone().part("health", serve_status(core.clone(), health)));
    tasks.spawn(stop.clone().part("metrics", serve_metrics(core.clone(), metrics)));
    if let Some(listener) = webhooks {
        let file = options.webhook_secret_file.clone();
        let webhooks = Arc::new(Webhooks::new(core.clone(), waker.clone(), file));
        tasks.spawn(stop.clone().part("webhooks", webhooks::serve(webhooks, listener)));
    }
    if let Some(kubernetes) = kubernetes {
        let signer = LoginSigner::new(core.clone(), registration, operators, kubernetes.clone());
        tasks.spawn(stop.clone().part("login", Arc::new(signer).run()));
        let published = publish(core.clone(), kubernetes.clone(), facts);
        tasks.spawn(stop.clone().part("published data", published));
        let configuration = follow_configuration(core.clone(), kubernetes.clone());
        tasks.spawn(stop.clone().part("configuration", configuration));
        let service = follow_service(core.clone(), kubernetes.clone());
        tasks.spawn(stop.clone().part("addresses", service));
        tasks.spawn(identify_cluster(core.clone(), kubernetes));
    }
    if let Some(custodian) = custodian {
        let part = "watch of AttestApplications";
        tasks.spawn(stop.clone().part(part, resources::controller::run(custodian)));
    }
    tracing::info!(
        target: "attest_gitops::controller",
        api = addresses.api.to_string(),
        spokes = addresses.spokes.to_string(),
        health = addresses.health.to_string(),
        metrics = addresses.metrics.to_string(),
        epoch = core.epoch.current(),
        "Listening"
    );
    log_isolation(&probed, capacity);
    Ok(Running { core, addresses, tasks })
}

/// Creates the home of a hub in a cluster at its first start.
fn create_home(options: &Options, namespace: &str) -> Result<(), HomeError> {
    if home::exists(&options.home) {
        return Ok(());
    }
    let spokes = format!("{SPOKES_SERVICE}.{namespace}.svc:{SPOKES_PORT}");
    let api = format!("https://attest-gitops-api.{namespace}.svc:{API_PORT}");
    let advertise = Advertise {
        spoke_address: options.advertise.clone().unwrap_or(spokes),
        api_url: options.api_url.clone().unwrap_or(api),
    };
    home::create_without_operator(&options.home, &advertise)?;
    tracing::info!(home = options.home.display().to_string(), "Home created");
    Ok(())
}

/// Public data of the hub, without the address for spokes.
fn facts_of(home: &Home, options: &Options) -> HubFacts {
    HubFacts {
        ca_certificate: home.authority.certificate_pem(),
        ca_pin: home.authority.pin().to_string(),
        hub_key: home.signing.public().to_pem(),
        hub_key_id: home.signing.public().id().to_string(),
        api_url: options.api_url.clone(),
        spoke_address: None,
    }
}

/// Finds kustomize and checks that rendering is isolated.
async fn renderer(options: &Options) -> Result<(Kustomize, Probed), RunError> {
    let worker = options.render_program.clone().map(RenderWorker::at);
    let worker = worker.unwrap_or_else(RenderWorker::this_program);
    let allow_unisolated = options.allow_unisolated_rendering;
    let found = tokio::task::spawn_blocking(move || {
        let (worker, probed) = match worker.probe() {
            Ok(files) => (worker, Ok(files)),
            Err(error) if allow_unisolated && error.reason() == Reason::RenderNotIsolated => {
                (worker.with_isolation(Isolation::IfAvailable), Err(error))
            }
            Err(error) => return Err(error),
        };
        let kustomize = Kustomize::find(std::env::var_os("PATH").as_deref());
        Ok((kustomize.with_worker(worker), probed))
    });
    Ok(found.await.map_err(|_| RunError::Ended)??)
}

/// The isolation of rendering; the error where it is missing and need not be there.
type Probed = Result<FileIsolation, RenderError>;

fn log_isolation(probed: &Probed, capacity: RenderCapacity) {
    let RenderCapacity { slots, process_bytes_max } = capacity;
    match probed {
        Ok(files) => tracing::info!(
            landlock = *files == FileIsolation::Enforced,
            slots,
            process_bytes_max,
            "Rendering is isolated"
        ),
        Err(error) => tracing::warn!(
            reason = error.reason().as_str(),
            slots,
            process_bytes_max,
            "Rendering is not isolated: {error}"
        ),
    }
}

impl Running {
    /// Stops the hub and waits briefly for its requests and connections.
    ///
    /// # Errors
    /// [`RunError::Part`] when the failure of a part stopped the hub.
    pub async fn end(mut self) -> Result<(), RunError> {
        let failed = self.core.stop.failed_part();
        self.core.stop.end();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(END_TIMEOUT, all).await.is_err() {
            self.tasks.abort_all();
        }
        failed.map_or(Ok(()), |part| Err(RunError::Part(part)))
    }
}

async fn serving(
    what: &'static str,
    stop: Arc<Stop>,
    serves: impl Future<Output = std::io::Result<()>>,
) {
    let served = async {
        if let Err(error) = serves.await {
            tracing::error!(
                reason = Reason::ServeFailed.as_str(),
                "Failed to serve the {what}: {error}"
            );
        }
    };
    stop.part(what, served).await;
}

/// Reads, once, which cluster the hub runs on.
async fn identify_cluster(core: Arc<Core>, kubernetes: HubKubernetes) {
    for attempt in 0.. {
        match kubernetes.kube_system_uid().await {
            Ok(uid) => return core.own_cluster.set(OwnCluster::Uid(uid)),
            Err(error) => tracing::warn!(
                reason = Reason::ApiServerUnreachable.as_str(),
                "Failed to identify the hub's cluster: {}",
                error_chain(&error)
            ),
        }
        tokio::select! {
            () = core.stop.cancelled() => return,
            () = tokio::time::sleep(API_SERVER_RETRY.delay(attempt, random())) => {}
        }
    }
}

/// Serves `/health` and `/ready` until the hub stops.
async fn serve_status(core: Arc<Core>, listener: TcpListener) {
    let stop = core.stop.token();
    let served = probes::serve_status(listener, move || ready(core.clone()));
    stop.run_until_cancelled(served).await;
}

/// Succeeds while the store can be read.
async fn ready(core: Arc<Core>) -> Result<(), String> {
    if core.stop.is_cancelled() {
        return Err("the hub is stopping".to_owned());
    }
    let read = blocking(&core, |core| core.records.get::<TokenRecord>("")).await;
    read.map(drop).map_err(|error| error.to_string())
}

/// Serves `/metrics` until the hub stops.
async fn serve_metrics(core: Arc<Core>, listener: TcpListener) {
    let stop = core.stop.token();
    let served = probes::serve_metrics(listener, move || core.metrics.text());
    stop.run_until_cancelled(served).await;
}

/// Renews the hub's certificate at both listeners while it runs.
async fn renew_certificate(
    core: Arc<Core>,
    directory: std::path::PathBuf,
    spokes: Arc<SpokeListener>,
    api: api::Certificate,
) {
    loop {
        tokio::select! {
            () = core.stop.cancelled() => return,
            () = tokio::time::sleep(CERTIFICATE_CHECK) => {}
        }
        let directory = directory.clone();
        let home: Result<Home, HomeError> = blocking(&core, move |_| home::open(&directory)).await;
        let changed = match home {
            Ok(home) => spokes
                .set_certificate(&home.tls)
                .map_err(|error| error.to_string())
                .and_then(|()| api.set(&home.tls).map_err(|error| error.to_string())),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = changed {
            tracing::error!(
                reason = Reason::CertificateRenewal.as_str(),
                "Failed to renew the hub's certificate: {error}"
            );
        }
    }
}

/// Failure to start or run the hub.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Render(#[from] RenderError),
    #[error(transparent)]
    Probes(#[from] BindError),
    #[error("a socket failed at startup")]
    Socket(#[source] std::io::Error),
    #[error("the hub stopped because a task ended unexpectedly: {0}; see the log for the cause")]
    Part(&'static str),
    #[error("the hub was stopped during startup")]
    Ended,
}

impl RunError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Home(error) => error.reason(),
            Self::Kubernetes(error) => error.reason(),
            Self::Start(error) => error.reason(),
            Self::Store(error) => error.reason(),
            Self::Link(error) => error.reason(),
            Self::Api(error) => error.reason(),
            Self::Render(error) => error.reason(),
            Self::Probes(error) => error.reason(),
            Self::Socket(_) => Reason::Socket,
            Self::Part(_) => Reason::TaskEnded,
            Self::Ended => Reason::StartInterrupted,
        }
    }
}
