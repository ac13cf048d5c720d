//! The whole hub: opens the home and every door, and runs until it is told to end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use attest_certs::bundle::write_private;
use attest_runtime::probes::{self, BindError};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::api::{self, ApiError};
use crate::core::store::StoreError;
use crate::core::store::records::{ApplicationRecord, TokenRecord};
use crate::home::{self, Home, HomeError};
use crate::process::config::Options;
use crate::process::hub::{Hub, Settings, StartError};
use crate::reconcile::queue;
use crate::spokes::{self, Door, LinkError};
use attest_supply::render::Kustomize;

/// How often the hub looks whether its own certificate nears its end.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(60 * 60);
/// How long requests and connections under way may take when the hub ends.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a hub listens, as logged and written to `addresses.json`.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Addresses {
    pub api: SocketAddr,
    pub spokes: SocketAddr,
    pub health: SocketAddr,
    pub metrics: SocketAddr,
}

/// A hub whose doors are open.
#[derive(Debug)]
pub struct Running {
    pub hub: Arc<Hub>,
    pub addresses: Addresses,
    tasks: JoinSet<()>,
}

/// Opens everything. Nothing is served before every address is taken.
///
/// # Errors
/// The first thing that is wrong, in words for the person who started the hub.
pub async fn start(options: &Options) -> Result<Running, RunError> {
    let home = home::open(&options.home)?;
    let addresses_file = home.addresses();
    let tls = home.tls.clone();
    let settings = Settings {
        urls: options.urls(),
        poll_interval: options.poll_interval(),
        kustomize: Kustomize::find(std::env::var_os("PATH").as_deref()),
    };
    // Before the store is opened: a hub that cannot listen begins no epoch.
    let spokes = spokes::bind(options.listen_spokes.0)?;
    let api = api::bind(options.listen_api.0).await?;
    let health = probes::bind("--listen-health", options.listen_health).await?;
    let metrics = probes::bind("--listen-metrics", options.listen_metrics).await?;
    let directory = options.home.clone();
    let hub = tokio::task::spawn_blocking(move || Hub::start(home, settings))
        .await
        .map_err(|_| RunError::Ended)??;
    let door = Arc::new(Door::open(hub.clone(), &tls, spokes)?);
    let api = api::listen(hub.clone(), &tls, api)?;
    let local = |address: std::io::Result<SocketAddr>| address.map_err(RunError::Socket);
    let addresses = Addresses {
        api: local(api.address())?,
        spokes: door.address()?,
        health: local(health.local_addr())?,
        metrics: local(metrics.local_addr())?,
    };
    let text = serde_json::to_vec_pretty(&addresses).unwrap_or_default();
    write_private(&addresses_file, &text).map_err(HomeError::Bundle)?;

    let known: Vec<ApplicationRecord> = hub.blocking(|hub| hub.records.all()).await?;
    for record in &known {
        hub.pipeline.begin(record.application.name.as_str());
    }
    hub.directory.measure(&hub.metrics);
    let mut tasks = JoinSet::new();
    let renewal = renew_certificate(hub.clone(), directory, door.clone(), api.certificate());
    tasks.spawn(hub.clone().part("certificate renewal", renewal));
    tasks.spawn(hub.clone().part("door for spokes", async move { door.serve().await }));
    tasks.spawn(hub.clone().part("pipeline", queue::run(hub.clone())));
    tasks.spawn(serving("API", hub.clone(), api::serve(api)));
    tasks.spawn(hub.clone().part("health", serve_status(hub.clone(), health)));
    tasks.spawn(hub.clone().part("metrics", serve_metrics(hub.clone(), metrics)));
    tracing::info!(
        target: "attest_gitops::controller",
        api = addresses.api.to_string(),
        spokes = addresses.spokes.to_string(),
        health = addresses.health.to_string(),
        metrics = addresses.metrics.to_string(),
        epoch = hub.epoch(),
        "Listening"
    );
    Ok(Running { hub, addresses, tasks })
}

impl Running {
    /// Ends the hub: requests and connections under way are given a little time.
    ///
    /// # Errors
    /// [`RunError::Part`] when a part of it had died, which ended the hub.
    pub async fn end(mut self) -> Result<(), RunError> {
        let failed = self.hub.failed_part();
        self.hub.end();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(END_TIMEOUT, all).await.is_err() {
            self.tasks.abort_all();
        }
        failed.map_or(Ok(()), |part| Err(RunError::Part(part)))
    }
}

async fn serving(
    what: &'static str,
    hub: Arc<Hub>,
    serves: impl Future<Output = std::io::Result<()>>,
) {
    let served = async {
        if let Err(error) = serves.await {
            tracing::error!(reason = "ServeFailed", "The {what} address is not served: {error}");
        }
    };
    hub.part(what, served).await;
}

/// Serves `/health` and `/ready` until the hub ends.
async fn serve_status(hub: Arc<Hub>, listener: TcpListener) {
    let stop = hub.stop.clone();
    let served = probes::serve_status(listener, move || ready(hub.clone()));
    stop.run_until_cancelled(served).await;
}

/// Ready while what is durable can be read.
async fn ready(hub: Arc<Hub>) -> Result<(), String> {
    if hub.stop.is_cancelled() {
        return Err("the hub is ending".to_owned());
    }
    let read = hub.blocking(|hub| hub.records.get::<TokenRecord>("")).await;
    read.map(drop).map_err(|error| error.to_string())
}

/// Serves `/metrics` until the hub ends.
async fn serve_metrics(hub: Arc<Hub>, listener: TcpListener) {
    let stop = hub.stop.clone();
    let served = probes::serve_metrics(listener, move || hub.metrics.text());
    stop.run_until_cancelled(served).await;
}

/// The hub's own certificate is replaced while it runs, at both doors.
async fn renew_certificate(
    hub: Arc<Hub>,
    directory: std::path::PathBuf,
    door: Arc<Door>,
    api: api::Certificate,
) {
    loop {
        tokio::select! {
            () = hub.stop.cancelled() => return,
            () = tokio::time::sleep(CERTIFICATE_CHECK) => {}
        }
        let directory = directory.clone();
        let home: Result<Home, HomeError> = hub.blocking(move |_| home::open(&directory)).await;
        let changed = match home {
            Ok(home) => door
                .set_certificate(&home.tls)
                .map_err(|error| error.to_string())
                .and_then(|()| api.set(&home.tls).map_err(|error| error.to_string())),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = changed {
            tracing::error!(reason = "CertificateRenewal", "The hub's certificate: {error}");
        }
    }
}

/// Why the hub did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Probes(#[from] BindError),
    #[error("a socket was lost while starting")]
    Socket(#[source] std::io::Error),
    #[error("the {0} of the hub died, and the hub with it; the log says why")]
    Part(&'static str),
    #[error("the hub was ended while it started")]
    Ended,
}

impl RunError {
    /// A stable word for logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Home(error) => error.reason(),
            Self::Start(error) => error.reason(),
            Self::Store(error) => error.reason(),
            Self::Link(error) => error.reason(),
            Self::Api(error) => error.reason(),
            Self::Probes(error) => error.reason(),
            Self::Socket(_) => "Socket",
            Self::Part(_) => "PartEnded",
            Self::Ended => "Ended",
        }
    }
}
