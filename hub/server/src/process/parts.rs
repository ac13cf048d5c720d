//! Wiring of the parts of a hub. No rules.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use attest_common::basics::reason::Reason;
use attest_supply::recipe::declared_source_root;
use attest_supply::render::Kustomize;
use attest_supply::source::{GitSource, UrlPolicy};

use crate::api::Api;
use crate::applications::views::Views;
use crate::core::Core;
use crate::core::metrics::Metrics;
use crate::core::signer::Signer;
use crate::core::store::records::Records;
use crate::core::store::{RedbStore, StoreError};
use crate::home::{Home, HomeError};
use crate::kubernetes::HubKubernetes;
use crate::reconcile::reconciler::Reconciler;
use crate::reconcile::repositories::Repositories;
use crate::reconcile::waker::Waker;
use crate::resources::custodian::Custodian;
use crate::spokes::registration::Registration;

/// Longest wait at startup for a store that is in use.
pub(crate) const LOCK_WAIT_MAX: Duration = Duration::from_secs(3);
/// Interval between attempts to open a store that is in use.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// Settings of a hub besides its home.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub urls: UrlPolicy,
    pub poll_interval: Duration,
    pub kustomize: Kustomize,
    pub kubernetes: Option<HubKubernetes>,
}

/// The parts of one hub.
#[derive(Debug)]
pub(crate) struct Parts {
    pub core: Arc<Core>,
    pub waker: Arc<Waker>,
    pub reconciler: Arc<Reconciler>,
    pub registration: Arc<Registration>,
    pub api: Arc<Api>,
    /// Present where AttestApplications are custom resources.
    pub custodian: Option<Arc<Custodian>>,
}

/// Opens the store of `home` and begins a new epoch. Blocks.
///
/// # Errors
/// When the store cannot be opened or written.
pub(crate) fn start(home: Home, settings: Settings) -> Result<Parts, StartError> {
    let Settings { urls, poll_interval, kustomize, kubernetes } = settings;
    let records = Records::new(Arc::new(open_store(&home.database())?));
    home.empty_temporary()?;
    let source = GitSource::new(home.git(), declared_source_root);
    let operators = home.operators();
    let metrics = Metrics::new().map_err(StartError::Metrics)?;
    let core = Core::start(records, Signer::new(home.signing), metrics)?;
    let views = Arc::new(Views::default());
    let waker = Arc::new(Waker::new(poll_interval, views.clone()));
    let repositories = Arc::new(Repositories::new(core.clone(), source, urls));
    let registration = Arc::new(Registration::new(core.clone(), home.authority, waker.clone()));
    let reconciler = Arc::new(Reconciler::new(
        core.clone(),
        views.clone(),
        waker.clone(),
        repositories.clone(),
        kustomize,
        poll_interval,
    ));
    let custodian = kubernetes.map(|kubernetes| {
        let client = kubernetes.client;
        let (views, waker) = (views.clone(), waker.clone());
        Arc::new(Custodian::new(core.clone(), views, waker, repositories.clone(), client))
    });
    let api = Arc::new(Api {
        core: core.clone(),
        operators,
        poll_interval,
        waker: waker.clone(),
        views,
        repositories,
        registration: registration.clone(),
        custodian: custodian.clone(),
    });
    Ok(Parts { core, waker, reconciler, registration, api, custodian })
}

/// Opens the store. A process that a killed hub had just started may hold it briefly.
fn open_store(path: &Path) -> Result<RedbStore, StoreError> {
    let begun = Instant::now();
    loop {
        match RedbStore::open(path) {
            Err(StoreError::Locked { .. }) if begun.elapsed() < LOCK_WAIT_MAX => {
                std::thread::sleep(LOCK_RETRY_INTERVAL);
            }
            other => return other,
        }
    }
}

/// Failure to start a hub.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("failed to register the metrics")]
    Metrics(#[source] attest_runtime::metrics::Error),
}

impl StartError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Home(error) => error.reason(),
            Self::Store(error) => error.reason(),
            Self::Metrics(_) => Reason::MetricsInvalid,
        }
    }
}
