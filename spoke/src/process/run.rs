//! Starts the spoke: loads its state, then starts the tasks that run for as long as the process lives.

use std::sync::Arc;

use attest_common::basics::locked::RwLocked;
use attest_common::basics::rate::RateLimiter;
use attest_common::basics::reason::Reason;
use attest_common::basics::text::error_chain;
use attest_common::objects::kinds::Kinds;
use k8s_openapi::apimachinery::pkg::version::Info;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};

use super::connect::connect;
use super::options::Options;
use crate::admission::agent::{Agent, RETRY};
use crate::cluster::client::{Access, ApiServer};
use crate::cluster::error::{ApiError, ClusterError};
use crate::cluster::watch::Watches;
use crate::destination::handover::Handovers;
use crate::destination::mailbox::{ReevaluationRequests, ReloadRequests};
use crate::destination::shared::Shared;
use crate::http::{self, HttpError, Readiness};
use crate::ledger::error::LedgerError;
use crate::ledger::records::{Ledger, Lost};
use crate::ledger::refusals::Refusals;
use crate::metrics::Metrics;
use crate::rate_limits::{REFUSALS, SESSIONS};
use crate::session::freshness::Freshness;
use crate::session::join::JoinEndpoint;
use crate::session::link::{Link, PUSHES_MAX, SeenSource, new_process_id};
use crate::session::outbox::Outbox;
use crate::session::push::Room;
use crate::trust::identity::{Identity, IdentityError};
use crate::trust::policy::{self, Trust};

/// Runs the spoke. Returns only if it cannot start, or if one of its tasks ends.
///
/// # Errors
/// [`AgentError`], which names the flag or object to check.
pub async fn run(options: Options) -> Result<(), AgentError> {
    let Options {
        hub,
        kubeconfig,
        service_account,
        join_token_file,
        listen_health,
        listen_metrics,
        addresses_file,
        log: _,
    } = options;
    let metrics = Metrics::new().map_err(AgentError::Metrics)?;
    let readiness = Readiness::default();
    let listen = (listen_health, listen_metrics);
    let addresses =
        http::serve(listen, readiness.clone(), metrics.clone()).await.map_err(AgentError::Http)?;
    if let Some(path) = &addresses_file {
        http::write_addresses(path, addresses).map_err(AgentError::Http)?;
    }
    let directory = service_account.service_account_dir;
    let access = kubeconfig.map_or(Access::ServiceAccount(directory), Access::Kubeconfig);
    let api = ApiServer::open(&access, metrics.clone()).await.map_err(AgentError::Cluster)?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        health = %addresses.health,
        metrics = %addresses.metrics,
        "Spoke started"
    );
    // A task that ends is a defect; the process then ends and is restarted.
    let mut tasks = JoinSet::new();
    tasks.spawn(api.clone().keep_token());
    let kube_system_uid = policy::kube_system_uid(&api).await;
    let (told, trust) = watch::channel(Trust::default());
    tasks.spawn(policy::follow(api.clone(), kube_system_uid.clone(), told));
    let identity = identity(&api).await?;
    let (ledger, refusals) = load_state(&api, &metrics, identity.destinations).await?;
    let freshness = Freshness::default();
    tasks.spawn(refusals.clone().keep());
    tasks.spawn(ledger.clone().keep_tidy());
    tasks.spawn(ledger.clone().keep_count(identity.destinations));
    tasks.spawn(freshness.clone().watch(metrics.clone(), refusals.clone()));
    match ledger.lost() {
        Some(lost) => report_lost_records(lost),
        // Deletes content that the previous process stored and did not record.
        None => ledger.tidy_content(),
    }
    let (outbox, seen) = (Outbox::default(), SeenSource::default());
    seen.set(ledger.seen());
    let (pushes, pushed) = mpsc::channel(PUSHES_MAX);
    let shared = Shared {
        watches: Watches::new(api.clone(), metrics.clone()),
        api: api.clone(),
        ledger,
        refusals,
        outbox: outbox.clone(),
        metrics: metrics.clone(),
        kinds: Arc::new(RwLocked::new(Kinds::built_in())),
        reloads: ReloadRequests::default(),
        reevaluations: ReevaluationRequests::default(),
        handovers: Handovers::default(),
    };
    let cluster = identity.cluster.clone();
    let agent = Agent::new(shared, cluster, trust.clone(), seen.clone(), readiness.clone());
    tasks.spawn(agent.run(pushed));
    let kubernetes_version = kubernetes_version(&api).await;
    let link = Link {
        hub,
        api,
        identity,
        process_id: new_process_id(),
        trust,
        outbox,
        pushes,
        seen,
        metrics,
        freshness,
        kubernetes_version,
        room: Room::default(),
        renewal_asked_at: None,
        may_hold_token: true,
        refusal_limiter: RateLimiter::new(REFUSALS),
        session_limiter: RateLimiter::new(SESSIONS),
    };
    tasks.spawn(connect(link, JoinEndpoint::new(join_token_file, kube_system_uid), readiness));
    let ended = tasks.join_next().await;
    Err(AgentError::Ended(ended.and_then(Result::err)))
}

async fn identity(api: &ApiServer) -> Result<Identity, AgentError> {
    let mut attempt = 0;
    loop {
        match Identity::load_or_create(api).await {
            Ok(identity) => return Ok(identity),
            Err(IdentityError::Api(error))
                if error.is_transient() || error.is_forbidden() || error.is_unauthorized() =>
            {
                log_retry("Failed to read the identity; retrying", &error);
            }
            Err(error) => return Err(AgentError::Identity(error)),
        }
        tokio::time::sleep(RETRY.delay_max(attempt)).await;
        attempt = attempt.saturating_add(1);
    }
}

async fn load_state(
    api: &ApiServer,
    metrics: &Metrics,
    recorded: u64,
) -> Result<(Ledger, Refusals), AgentError> {
    let mut attempt = 0;
    loop {
        let ledger = Ledger::load(api.clone(), metrics.clone(), recorded).await;
        let refusals = Refusals::load(api.clone()).await;
        match (ledger, refusals) {
            (Ok(ledger), Ok(refusals)) => return Ok((ledger, refusals)),
            (Err(LedgerError::Api(error)), _) | (Ok(_), Err(error)) => {
                log_retry("Failed to read the records; retrying", &error);
            }
            // The restrictions of an unreadable record are unknown, so nothing may be admitted.
            (Err(error), _) => return Err(AgentError::Ledger(error)),
        }
        tokio::time::sleep(RETRY.delay_max(attempt)).await;
        attempt = attempt.saturating_add(1);
    }
}

fn report_lost_records(lost: Lost) {
    tracing::error!(
        reason = Reason::StateLost.as_str(),
        recorded = lost.recorded,
        found = lost.found,
        "Records of this spoke are missing, so it cannot detect replays; nothing is admitted until \
         `attest spoke accept-state` is run with credentials for the cluster"
    );
}

async fn kubernetes_version(api: &ApiServer) -> String {
    api.read::<Info>("/version").await.unwrap_or_default().git_version
}

fn log_retry(what: &str, error: &ApiError) {
    tracing::warn!(reason = error.reason().as_str(), error = %error_chain(error), "{what}");
}

/// Error that ends the spoke.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    #[error("failed to register metrics")]
    Metrics(#[source] prometheus::Error),
    #[error("failed to serve health and metrics")]
    Http(#[source] HttpError),
    #[error("failed to connect to the cluster")]
    Cluster(#[source] ClusterError),
    #[error("failed to load the identity of this spoke")]
    Identity(#[source] IdentityError),
    #[error("failed to read the records of this spoke")]
    Ledger(#[source] LedgerError),
    #[error("a task ended unexpectedly")]
    Ended(#[source] Option<JoinError>),
}

impl AgentError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Metrics(_) => Reason::MetricsInvalid,
            Self::Http(error) => error.reason(),
            Self::Cluster(error) => error.reason(),
            Self::Identity(error) => error.reason(),
            Self::Ledger(error) => error.reason(),
            Self::Ended(_) => Reason::TaskEnded,
        }
    }
}
