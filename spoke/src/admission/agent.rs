//! The whole spoke: starts everything, and hands what is judged (`judge`) or held (`resume`) to the worker of its destination.
//!
//! Order is fixed: judged, then durable, then acted on. The hub being away changes nothing here; the
//! trust policy being away stops every change.

mod judge;
pub(crate) mod kinds;
mod resume;

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use attest_common::basics::ids::{ClusterId, Digest};
use attest_common::basics::text::error_chain;
use attest_common::objects::kinds::Kinds;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};

use crate::blobs::Blobs;
use crate::cluster::{Access, ApiError, ApiServer, ClusterError};
use crate::destination::{self, Mailbox, Resumes, Shared};
use crate::gate::GateError;
use crate::http::{self, HttpError, Readiness};
use crate::identity::{Identity, IdentityError};
use crate::join::{self, Door};
use crate::ledger::refusals::Refusals;
use crate::ledger::{DESTINATIONS_MAX, Ledger, LedgerError, Lost};
use crate::link::push::{Pushed, Room};
use crate::link::{self, Freshness, Link, PUSHES_MAX, SeenSource};
use crate::metrics::Metrics;
use crate::options::Options;
use crate::outbox::{Key, Outbox};
use crate::pace::{
    ADMISSION_EVERY, ADMISSIONS_AT_ONCE_MAX, Budget, DISCOVERIES_AT_ONCE_MAX, DISCOVERY_EVERY,
    NEW_DESTINATION_EVERY, NEW_DESTINATIONS_AT_ONCE_MAX, Pace, WRITTEN_AT_ONCE_BYTES_MAX,
    WRITTEN_PER_MINUTE_BYTES_MAX, WRITTEN_RETRY,
};
use crate::policy::{self, Trust};
use crate::watch::Watches;

/// First and longest wait before something that failed at the API server is tried again.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// First wait before held destinations that could not be loaded are tried again; the longest is [`RETRY_MAX`].
const RESUME_RETRY_MIN: Duration = Duration::from_secs(2);
/// Most destinations of which a push waits to be judged again; the hub sends anew what is refused.
const RETRIES_MAX: usize = DESTINATIONS_MAX;
/// How long the agent sleeps at most.
const IDLE: Duration = Duration::from_secs(60 * 60);

/// Runs the spoke. Returns only when it cannot start, or a part of it has ended.
///
/// # Errors
/// [`AgentError`], naming the flag or object to look at.
pub async fn run(options: Options) -> Result<(), AgentError> {
    let Options {
        hub,
        kubeconfig,
        service_account_dir,
        join_token_file,
        listen_health,
        listen_metrics,
        addresses_file,
        log_level: _,
    } = options;
    let metrics = Metrics::new().map_err(AgentError::Metrics)?;
    let readiness = Readiness::default();
    let listen = (listen_health, listen_metrics);
    let addresses =
        http::serve(listen, readiness.clone(), metrics.clone()).await.map_err(AgentError::Http)?;
    if let Some(path) = &addresses_file {
        http::write_addresses(path, addresses).map_err(AgentError::Http)?;
    }
    let access = kubeconfig.map_or(Access::ServiceAccount(service_account_dir), Access::Kubeconfig);
    let api = ApiServer::open(&access, metrics.clone()).await.map_err(AgentError::Cluster)?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        health = %addresses.health,
        metrics = %addresses.metrics,
        "Spoke started"
    );
    // None of these ends but by a mistake; then the process does, and is started again.
    let mut tasks = JoinSet::new();
    tasks.spawn(api.clone().keep_token());
    let kube_system_uid = policy::kube_system_uid(&api).await;
    let (told, trust) = watch::channel(Trust::default());
    tasks.spawn(policy::follow(api.clone(), kube_system_uid.clone(), told));
    let identity = identity(&api).await?;
    let (ledger, refusals) = remembered(&api, &metrics, identity.destinations).await?;
    let freshness = Freshness::default();
    tasks.spawn(refusals.clone().keep());
    tasks.spawn(ledger.clone().keep_tidy());
    tasks.spawn(ledger.clone().keep_count(identity.destinations));
    tasks.spawn(freshness.clone().watch(metrics.clone(), refusals.clone()));
    match ledger.lost() {
        Some(lost) => say_what_was_lost(lost),
        // What was stored and not recorded before the process ended.
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
        kinds: Arc::new(RwLock::new(Kinds::built_in())),
        resumes: Resumes::default(),
    };
    let cluster = identity.cluster.clone();
    let agent = Agent::new(shared, cluster, trust.clone(), seen.clone(), readiness.clone());
    tasks.spawn(agent.run(pushed));
    let kubernetes_version = kubernetes_version(&api).await;
    let link = Link {
        hub,
        api,
        identity,
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
        refusals_pace: Pace::of_refusals(),
        sessions_pace: Pace::of_sessions(),
    };
    tasks.spawn(connect(link, Door::new(join_token_file, kube_system_uid), readiness));
    let ended = tasks.join_next().await;
    Err(AgentError::Ended(ended.and_then(Result::err)))
}

async fn connect(mut link: Link, mut door: Door, readiness: Readiness) {
    loop {
        join::run(&mut link, &mut door, &readiness).await;
        readiness.joined(Ok(()));
        link::run(&mut link, &mut door).await;
    }
}

async fn identity(api: &ApiServer) -> Result<Identity, AgentError> {
    let mut wait = RETRY_MIN;
    loop {
        match Identity::load_or_create(api).await {
            Ok(identity) => return Ok(identity),
            Err(IdentityError::Api(error))
                if error.is_transient() || error.is_forbidden() || error.is_unauthorized() =>
            {
                complain("Cannot read the identity; trying again", &error);
            }
            Err(error) => return Err(AgentError::Identity(error)),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RETRY_MAX);
    }
}

async fn remembered(
    api: &ApiServer,
    metrics: &Metrics,
    recorded: u64,
) -> Result<(Ledger, Refusals), AgentError> {
    let mut wait = RETRY_MIN;
    loop {
        let ledger = Ledger::load(api.clone(), metrics.clone(), recorded).await;
        let refusals = Refusals::load(api.clone()).await;
        match (ledger, refusals) {
            (Ok(ledger), Ok(refusals)) => return Ok((ledger, refusals)),
            (Err(LedgerError::Api(error)), _) | (Ok(_), Err(error)) => {
                complain("Cannot read the records; trying again", &error);
            }
            // What an unreadable record forbids is unknown, so nothing may be admitted.
            (Err(error), _) => return Err(AgentError::Ledger(error)),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RETRY_MAX);
    }
}

fn say_what_was_lost(lost: Lost) {
    tracing::error!(
        reason = "StateLost",
        recorded = lost.recorded,
        found = lost.found,
        "Records of this spoke are gone, and with them what it has seen; nothing is admitted until \
         `attest spoke accept-state` is run with the cluster's credentials"
    );
}

async fn kubernetes_version(api: &ApiServer) -> String {
    let version = api.get("/version").await.unwrap_or_default();
    version.get("gitVersion").and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn complain(what: &str, error: &ApiError) {
    tracing::warn!(reason = error.reason(), error = %error_chain(error), "{what}");
}

/// The part that judges and hands out work.
pub(crate) struct Agent {
    pub(crate) shared: Shared,
    cluster: ClusterId,
    trust: watch::Receiver<Trust>,
    seen: SeenSource,
    blobs: Blobs,
    workers: BTreeMap<Key, Arc<Mailbox>>,
    working: JoinSet<()>,
    /// Pushes that met an API server that was away, or came too fast; the newest of each destination.
    retries: BTreeMap<Key, Retry>,
    /// Held destinations that could not be loaded yet.
    unresumed: BTreeMap<Key, Instant>,
    /// How long they wait for an API server that is away.
    resume_wait: Duration,
    /// How often each destination admits something.
    admissions: BTreeMap<Key, Pace>,
    /// How often the cluster admits a destination that it has no record of.
    new_destinations: Pace,
    /// How often pushes make it ask which kinds there are.
    discoveries: Pace,
    /// How much stored content they make it read.
    look_ups: Budget,
    /// How often refusals are written down: those that show a forgery, those of what else a pinned hub
    /// key signed, and the rest. Much of one keeps out nothing of another.
    evidence_pace: Pace,
    signed_pace: Pace,
    unsigned_pace: Pace,
    readiness: Readiness,
}

struct Retry {
    /// Epoch and sequence.
    order: (u64, u64),
    directive: Vec<u8>,
    plan: Option<Digest>,
    at: Instant,
    wait: Duration,
}

impl Agent {
    fn new(
        shared: Shared,
        cluster: ClusterId,
        trust: watch::Receiver<Trust>,
        seen: SeenSource,
        readiness: Readiness,
    ) -> Self {
        Self {
            shared,
            cluster,
            trust,
            seen,
            blobs: Blobs::default(),
            workers: BTreeMap::new(),
            working: JoinSet::new(),
            retries: BTreeMap::new(),
            unresumed: BTreeMap::new(),
            resume_wait: RESUME_RETRY_MIN,
            admissions: BTreeMap::new(),
            new_destinations: Pace::of_new_destinations(),
            discoveries: Pace::of_discoveries(),
            look_ups: Budget::of_look_ups(),
            evidence_pace: Pace::of_refusals(),
            signed_pace: Pace::of_refusals(),
            unsigned_pace: Pace::of_refusals(),
            readiness,
        }
    }

    async fn run(mut self, mut pushed: mpsc::Receiver<Pushed>) {
        self.trust.mark_changed();
        let resumes = self.shared.resumes.clone();
        loop {
            let wake = self.next_wake().saturating_duration_since(Instant::now());
            tokio::select! {
                changed = self.trust.changed() => match changed {
                    Ok(()) => self.resume_all().await,
                    Err(_) => return,
                },
                push = pushed.recv() => match push {
                    Some(push) => self.take(push).await,
                    None => return,
                },
                keys = resumes.asked() => for key in keys {
                    self.resume(&key).await;
                },
                () = tokio::time::sleep(wake) => self.retry().await,
                // A worker that is gone heals nothing: better to begin anew.
                Some(_) = self.working.join_next(), if !self.working.is_empty() => return,
            }
        }
    }

    fn next_wake(&self) -> Instant {
        let retries = self.retries.values().map(|retry| retry.at);
        let soonest = retries.chain(self.unresumed.values().copied()).min();
        soonest.unwrap_or_else(|| Instant::now() + IDLE)
    }

    async fn retry(&mut self) {
        let now = Instant::now();
        let (resumes, pushes) = self.due(now);
        self.resume_each(resumes).await;
        for key in pushes {
            if let Some(Retry { directive, plan, wait, .. }) = self.retries.remove(&key) {
                self.decide(directive, plan, (wait * 2).min(RETRY_MAX)).await;
            }
        }
    }

    /// Whom to resume and what to judge again now.
    fn due(&self, now: Instant) -> (Vec<Key>, Vec<Key>) {
        let resumes = self.unresumed.iter().filter(|(_, at)| **at <= now);
        let pushes = self.retries.iter().filter(|(_, retry)| retry.at <= now);
        (
            resumes.map(|(key, _)| key.clone()).collect(),
            pushes.map(|(key, _)| key.clone()).collect(),
        )
    }

    fn worker(&mut self, key: &Key) -> Arc<Mailbox> {
        if let Some(mailbox) = self.workers.get(key) {
            return Arc::clone(mailbox);
        }
        let (mailbox, worker) = destination::worker(self.shared.clone(), key.clone());
        self.working.spawn(worker);
        self.workers.insert(key.clone(), Arc::clone(&mailbox));
        mailbox
    }
}

/// Why a directive was not carried out.
enum Rejected {
    /// It may be admitted, but not so soon after the others.
    TooFast,
    /// The same, of destinations that this cluster has no record of.
    TooManyNew,
    /// The same, in the whole cluster: orders have written too much.
    TooMuch,
    /// It may be that the cluster serves its kinds by now, but it was asked too often.
    TooManyDiscoveries,
    Gate(GateError),
    Ledger(LedgerError),
}

impl Rejected {
    fn reason(&self) -> &'static str {
        match self {
            Self::TooFast | Self::TooManyNew | Self::TooMuch | Self::TooManyDiscoveries => {
                "AdmissionsTooFast"
            }
            Self::Gate(error) => error.reason(),
            Self::Ledger(error) => error.reason(),
        }
    }

    /// In words, with every cause.
    fn text(&self) -> String {
        match self {
            Self::TooFast => format!(
                "more than {ADMISSIONS_AT_ONCE_MAX} directives at once, and more than one in {} s",
                ADMISSION_EVERY.as_secs()
            ),
            Self::TooManyNew => format!(
                "more than {NEW_DESTINATIONS_AT_ONCE_MAX} new destinations at once, and more than one in {} s",
                NEW_DESTINATION_EVERY.as_secs()
            ),
            Self::TooMuch => format!(
                "orders have written more than {} MiB at once, and more than {} MiB in a minute",
                WRITTEN_AT_ONCE_BYTES_MAX >> 20,
                WRITTEN_PER_MINUTE_BYTES_MAX >> 20
            ),
            Self::TooManyDiscoveries => format!(
                "more than {DISCOVERIES_AT_ONCE_MAX} questions about kinds at once, and more than one in {} s",
                DISCOVERY_EVERY.as_secs()
            ),
            Self::Gate(error) => error_chain(error),
            Self::Ledger(error) => error_chain(error),
        }
    }

    /// After how long it is worth judging again, when the last wait was `wait`.
    fn retry_after(&self, wait: Duration) -> Option<Duration> {
        match self {
            Self::TooFast | Self::TooManyDiscoveries => Some(ADMISSION_EVERY),
            Self::TooMuch => Some(WRITTEN_RETRY),
            Self::TooManyNew => Some(NEW_DESTINATION_EVERY),
            Self::Ledger(error) if error.is_transient() => Some(wait),
            Self::Gate(_) | Self::Ledger(_) => None,
        }
    }
}

/// Why the spoke cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    #[error("cannot register metrics")]
    Metrics(#[source] prometheus::Error),
    #[error("cannot serve health and metrics")]
    Http(#[source] HttpError),
    #[error("cannot reach the cluster")]
    Cluster(#[source] ClusterError),
    #[error("cannot establish this spoke's identity")]
    Identity(#[source] IdentityError),
    #[error("cannot read what this spoke has recorded")]
    Ledger(#[source] LedgerError),
    #[error("a task that must not end has ended")]
    Ended(#[source] Option<JoinError>),
}

impl AgentError {
    /// A stable word for logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Metrics(_) => "Metrics",
            Self::Http(error) => error.reason(),
            Self::Cluster(error) => error.reason(),
            Self::Identity(error) => error.reason(),
            Self::Ledger(error) => error.reason(),
            Self::Ended(_) => "TaskEnded",
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use attest_common::session::report::Report;

    use super::*;
    use crate::cluster::fake::FakeApi;
    use crate::outbox::Deliveries;
    use crate::policy::tests::object;

    /// An agent of the cluster that the test policy is for, with what is stored there.
    pub(crate) async fn agent(fake: &FakeApi) -> Agent {
        let (api, metrics) = (fake.open().await, Metrics::new().unwrap());
        let shared = Shared {
            watches: Watches::new(api.clone(), metrics.clone()),
            ledger: Ledger::load(api.clone(), metrics.clone(), 0).await.unwrap(),
            refusals: Refusals::load(api.clone()).await.unwrap(),
            api,
            outbox: Outbox::default(),
            metrics,
            kinds: Arc::new(RwLock::new(Kinds::built_in())),
            resumes: Resumes::default(),
        };
        let (told, trust) = watch::channel(Trust::of(&object(), "uid-1"));
        // The policy goes on being watched.
        tokio::spawn(async move { told.closed().await });
        let cluster = "c-0123456789abcdef".parse().unwrap();
        Agent::new(shared, cluster, trust, SeenSource::default(), Readiness::default())
    }

    /// What the hub would be told now.
    pub(super) fn reports(agent: &Agent) -> Vec<Report> {
        let due = Deliveries::default().due(&agent.shared.outbox, Instant::now());
        due.iter().map(|(_, bytes)| serde_json::from_slice(bytes).unwrap()).collect()
    }

    #[tokio::test]
    async fn the_agent_ends_with_a_worker_so_that_the_process_begins_anew() {
        let fake = FakeApi::start().await;
        let mut agent = agent(&fake).await;
        let (_pushes, pushed) = mpsc::channel(PUSHES_MAX);
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        agent.working.spawn(async move { ended.await.unwrap() });
        let running = tokio::spawn(agent.run(pushed));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!running.is_finished());

        drop(end);

        tokio::time::timeout(Duration::from_secs(5), running).await.unwrap().unwrap();
    }
}
