//! The whole spoke: starts everything, judges what the hub pushes, records it, and hands it to the worker of its destination.
//!
//! Order is fixed: judged, then durable, then acted on. The hub being away changes nothing here; the
//! trust policy being away stops every change.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use attest_common::envelope::{self, DIRECTIVE_TYPE};
use attest_common::ids::{ClusterId, Digest};
use attest_common::kinds::{Kind, Kinds};
use attest_common::manifest::{Object, ObjectKey};
use attest_common::record::Held;
use attest_common::report::{Refusal, Timings, error_chain, message};
use attest_common::verify::{Ages, Removal, Verified};
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use crate::blobs::Blobs;
use crate::cluster::{Access, ApiError, ApiServer, ClusterError};
use crate::destination::status::{self, Situation};
use crate::destination::{self, Mailbox, Order, Run, Shared};
use crate::gate::{self, Admitting, GateError, Verdict, View};
use crate::http::{self, HttpError, Readiness};
use crate::identity::{Identity, IdentityError};
use crate::ledger::refusals::{Refusals, Refused};
use crate::ledger::{ConfirmedPairs, Entry, Ledger, LedgerError};
use crate::link::push::{Pushed, Room};
use crate::link::{self, Freshness, Link, PUSHES_MAX, SeenSource};
use crate::metrics::Metrics;
use crate::options::Options;
use crate::outbox::{Key, Outbox};
use crate::pace::Pace;
use crate::policy::{self, Trust};
use crate::watch::Watches;
use crate::{failpoint, join};

/// First and longest wait before something that failed at the API server is tried again.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// How often a push is judged anew because its record was changed meanwhile.
const JUDGEMENTS_MAX: u32 = 4;
/// How long the agent sleeps at most.
const IDLE: Duration = Duration::from_secs(60 * 60);

/// Runs the spoke. Returns only when it cannot start.
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
    tokio::spawn(api.clone().keep_token());
    let kube_system_uid = policy::kube_system_uid(&api).await;
    let (told, trust) = watch::channel(Trust::default());
    tokio::spawn(policy::follow(api.clone(), kube_system_uid.clone(), told));
    let identity = identity(&api).await?;
    let (ledger, refusals) = remembered(&api, &metrics).await?;
    let freshness = Freshness::default();
    tokio::spawn(refusals.clone().keep());
    tokio::spawn(ledger.clone().keep_tidy());
    tokio::spawn(freshness.clone().watch(metrics.clone()));
    if identity.tls.is_some() {
        look_for_lost_state(&ledger, &metrics).await;
    }
    let (outbox, seen) = (Outbox::default(), SeenSource::default());
    seen.set(ledger.seen());
    let (pushes, pushed) = mpsc::channel(PUSHES_MAX);
    let agent = Agent {
        shared: Shared {
            watches: Watches::new(api.clone(), metrics.clone()),
            api: api.clone(),
            ledger,
            refusals,
            outbox: outbox.clone(),
            metrics: metrics.clone(),
            kinds: Arc::new(RwLock::new(Kinds::built_in())),
        },
        cluster: identity.cluster.clone(),
        trust: trust.clone(),
        seen: seen.clone(),
        blobs: Blobs::default(),
        workers: BTreeMap::new(),
        retries: BTreeMap::new(),
        unresumed: BTreeMap::new(),
        signed_pace: Pace::of_refusals(),
        unsigned_pace: Pace::of_refusals(),
        readiness,
    };
    tokio::spawn(agent.run(pushed));
    let kubernetes_version = kubernetes_version(&api).await;
    connect(
        Link {
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
            refusals_pace: Pace::of_refusals(),
        },
        join_token_file,
        &kube_system_uid,
    )
    .await
}

async fn connect(
    mut link: Link,
    join_token_file: Option<PathBuf>,
    kube_system_uid: &str,
) -> Result<(), AgentError> {
    if link.identity.tls.is_none() {
        let mut trust = link.trust.clone();
        let file = join_token_file.as_deref();
        join::run(&link.api, &link.hub, file, &mut trust, kube_system_uid, &mut link.identity)
            .await;
    }
    link::run(link).await;
    Ok(())
}

async fn identity(api: &ApiServer) -> Result<Identity, AgentError> {
    let mut wait = RETRY_MIN;
    loop {
        match Identity::load_or_create(api).await {
            Ok(identity) => return Ok(identity),
            Err(IdentityError::Api(error)) if error.is_transient() || error.is_forbidden() => {
                complain("Cannot read the identity; trying again", &error);
            }
            Err(error) => return Err(AgentError::Identity(error)),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RETRY_MAX);
    }
}

async fn remembered(api: &ApiServer, metrics: &Metrics) -> Result<(Ledger, Refusals), AgentError> {
    let mut wait = RETRY_MIN;
    loop {
        let ledger = Ledger::load(api.clone(), metrics.clone()).await;
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

/// Content without a record means that records were lost: sequences and floors with them.
async fn look_for_lost_state(ledger: &Ledger, metrics: &Metrics) {
    let records = ledger.with_records(BTreeMap::len);
    match ledger.drop_unused_content().await {
        Ok(content) if records == 0 && content > 0 => {
            metrics.state_lost.set(1);
            tracing::error!(
                reason = "StateLost",
                "This spoke has held releases before, and its records are gone; \
                 sequence and counter floors begin anew"
            );
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(
            reason = error.reason(),
            error = %error_chain(&error),
            "Cannot look for stored content"
        ),
    }
}

async fn kubernetes_version(api: &ApiServer) -> String {
    let version = api.get("/version").await.unwrap_or_default();
    version.get("gitVersion").and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn complain(what: &str, error: &ApiError) {
    tracing::warn!(reason = error.reason(), error = %error_chain(error), "{what}");
}

/// The part that judges and hands out work.
struct Agent {
    shared: Shared,
    cluster: ClusterId,
    trust: watch::Receiver<Trust>,
    seen: SeenSource,
    blobs: Blobs,
    workers: BTreeMap<Key, Arc<Mailbox>>,
    /// Pushes that met an API server that was away; the newest of each destination.
    retries: BTreeMap<Key, Retry>,
    /// Held destinations that could not be loaded yet.
    unresumed: BTreeMap<Key, Instant>,
    /// How often refusals are written down: of what a pinned hub key signed, and of the rest.
    signed_pace: Pace,
    unsigned_pace: Pace,
    readiness: Readiness,
}

struct Retry {
    directive: Vec<u8>,
    plan: Option<Digest>,
    at: Instant,
    wait: Duration,
}

impl Agent {
    async fn run(mut self, mut pushed: mpsc::Receiver<Pushed>) {
        self.trust.mark_changed();
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
                () = tokio::time::sleep(wake) => self.retry().await,
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
        for key in resumes {
            self.unresumed.remove(&key);
            self.resume(&key).await;
        }
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

    async fn take(&mut self, push: Pushed) {
        let Pushed { directive, plan, blobs, room } = push;
        for (digest, bytes) in blobs {
            self.blobs.insert(digest, bytes);
        }
        drop(room);
        if let Some((key, _)) = gate::claimed(&directive) {
            self.retries.remove(&key);
        }
        self.decide(directive, plan, RETRY_MIN).await;
    }

    /// Judges one directive and does what follows. `wait` is how long to wait should the API server be away.
    async fn decide(&mut self, directive: Vec<u8>, plan: Option<Digest>, wait: Duration) {
        let outcome = self.judge_and_record(&directive, plan).await;
        let error = match outcome {
            Ok(()) => return,
            Err(error) => error,
        };
        let claimed = gate::claimed(&directive);
        match (error, claimed) {
            (Rejected::Ledger(error), Some((key, _))) if error.is_transient() => {
                tracing::warn!(
                    application = %key.0, namespace = %key.1,
                    reason = error.reason(), error = %error_chain(&error),
                    "Cannot record a directive; trying again"
                );
                let at = Instant::now() + wait;
                self.retries.insert(key, Retry { directive, plan, at, wait });
            }
            (error, claimed) => self.refuse(&error, &directive, claimed),
        }
    }

    async fn judge_and_record(
        &mut self,
        directive: &[u8],
        plan: Option<Digest>,
    ) -> Result<(), Rejected> {
        let (mut asked_kinds, mut looked_up) = (false, false);
        let mut judgements = 0;
        loop {
            let started = Instant::now();
            let verdict = self.judge(directive, plan);
            let took = started.elapsed();
            self.shared.metrics.verification_seconds.observe(took.as_secs_f64());
            match verdict {
                Err(error) if error.is_about_kinds() && !asked_kinds => {
                    asked_kinds = true;
                    self.discover().await;
                }
                Err(error) => return Err(Rejected::Gate(error)),
                Ok(Verdict::Need(key, _)) if !looked_up => {
                    looked_up = true;
                    self.look_up(&key).await;
                }
                Ok(Verdict::Need(key, blobs)) => {
                    tracing::debug!(application = %key.0, namespace = %key.1, blobs = blobs.len(), "Blobs are missing");
                    self.shared.outbox.need(key, blobs);
                    return Ok(());
                }
                Ok(Verdict::Again(key)) => {
                    if self.unresumed.remove(&key).is_some() {
                        self.resume(&key).await;
                    }
                    self.worker(&key).repeat();
                    return Ok(());
                }
                Ok(Verdict::Remove(removal)) => return self.remove(directive, *removal).await,
                Ok(Verdict::Admit(admitting)) => {
                    let timings = Timings { verify_us: micros(took), ..Timings::default() };
                    judgements += 1;
                    let admitted = self.admit(directive, *admitting, timings).await;
                    // What it superseded, or what it stored and no record names.
                    self.shared.ledger.tidy_content();
                    match admitted {
                        Err(Rejected::Ledger(LedgerError::Overtaken))
                            if judgements < JUDGEMENTS_MAX => {}
                        other => return other,
                    }
                }
            }
        }
    }

    fn judge(&self, directive: &[u8], plan: Option<Digest>) -> Result<Verdict, GateError> {
        let trust = self.trust.borrow().clone();
        let policy = trust.bound(&self.cluster).map_err(GateError::Trust)?;
        let kinds = self.kinds();
        self.shared.ledger.with_records(|records| {
            let view = View {
                policy,
                cluster: &self.cluster,
                records,
                kinds: &kinds,
                now: jiff::Timestamp::now(),
                ages: Ages::Judge,
            };
            gate::judge(directive, plan, |digest| self.blobs.get(digest).cloned(), &view)
        })
    }

    /// Makes an admission durable, then hands it to its worker.
    async fn admit(
        &mut self,
        directive: &[u8],
        admitting: Admitting,
        mut timings: Timings,
    ) -> Result<(), Rejected> {
        let Admitting { admission, held } = admitting;
        let ordered = &admission.ordered.directive;
        let key = (ordered.application.clone(), ordered.namespace.clone());
        let (epoch, sequence) = (ordered.epoch, ordered.sequence);
        let started = Instant::now();
        let judged = self.sequence(&key);
        let former = self
            .shared
            .ledger
            .entry(&key)
            .map(|entry| Entry { confirmed: ConfirmedPairs::new(), ..entry });
        // Of this plan until the record names it, of what was before until there is no way back.
        let before = former.iter().flat_map(|e| e.record.held.iter().chain(&e.record.last_good));
        let kept = self.shared.ledger.keep_content(before.map(|held| held.plan).chain([held.plan]));
        let bytes = self.blobs.of(&held);
        self.shared.ledger.store_content(held.plan, &bytes).await.map_err(Rejected::Ledger)?;
        let change = |entry: Option<Entry>| {
            if entry.as_ref().map(|e| (e.record.epoch, e.record.sequence)) != judged {
                return Err(LedgerError::Overtaken);
            }
            let former = entry.as_ref().map(|entry| &entry.record);
            let record = gate::admitted_record(former, &admission, &held)
                .map_err(|_| LedgerError::TooLarge { objects: admission.admitted.objects.len() })?;
            let confirmed = entry.map(|entry| entry.confirmed).unwrap_or_default();
            Ok(Some(Entry { record, directive: directive.to_vec(), confirmed }))
        };
        self.shared.ledger.update(&key, change).await.map_err(Rejected::Ledger)?;
        timings.record_us = micros(started.elapsed());
        self.seen.set(self.shared.ledger.seen());
        self.blobs.remove(held.blobs());
        self.shared.metrics.verifications.with_label_values(&["admitted"]).inc();
        tracing::info!(
            application = %key.0, namespace = %key.1, epoch, sequence,
            version = admission.admitted.release.version,
            signers = admission.admitted.signers.values().cloned().collect::<Vec<_>>().join(", "),
            verify_us = timings.verify_us, record_us = timings.record_us,
            "Admitted a release"
        );
        failpoint::reach("after-admission");
        self.know_inventory(&key, &admission.admitted.objects).await;
        self.unresumed.remove(&key);
        let (former, kept) = (former.map(Box::new), Some(kept));
        let run = Run { admission, held, resumed: false, former, kept, timings };
        self.worker(&key).order(Order::Run(Box::new(run)));
        Ok(())
    }

    async fn remove(
        &mut self,
        directive: &[u8],
        removal: Verified<Removal>,
    ) -> Result<(), Rejected> {
        let ordered = &removal.ordered.directive;
        let key = (ordered.application.clone(), ordered.namespace.clone());
        let judged = self.sequence(&key);
        let change = |entry: Option<Entry>| {
            let Some(entry) = entry.filter(|e| Some((e.record.epoch, e.record.sequence)) == judged)
            else {
                return Err(LedgerError::Overtaken);
            };
            let record = gate::removed_record(&entry.record, &removal);
            Ok(Some(Entry { record, directive: directive.to_vec(), confirmed: entry.confirmed }))
        };
        self.shared.ledger.update(&key, change).await.map_err(Rejected::Ledger)?;
        self.seen.set(self.shared.ledger.seen());
        self.shared.metrics.verifications.with_label_values(&["admitted"]).inc();
        tracing::info!(
            application = %key.0, namespace = %key.1, sequence = ordered.sequence,
            "Admitted a removal"
        );
        self.know_inventory(&key, &[]).await;
        self.unresumed.remove(&key);
        self.worker(&key).order(Order::Remove(Box::new(removal)));
        Ok(())
    }

    fn sequence(&self, key: &Key) -> Option<(u64, u64)> {
        self.shared
            .ledger
            .with_records(|records| records.get(key).map(|record| (record.epoch, record.sequence)))
    }

    /// Files a refusal: metric, log, the cluster's own list, and the report to the hub.
    /// Each is counted; the rest happens at a bounded pace.
    fn refuse(&self, error: &Rejected, directive: &[u8], claimed: Option<(Key, u64)>) {
        let reason = error.reason();
        self.shared.metrics.refused(reason);
        let signed = self.is_signed(directive);
        let pace = if signed { &self.signed_pace } else { &self.unsigned_pace };
        if !pace.allows(Instant::now()) {
            return;
        }
        let text = match error {
            Rejected::Gate(error) => error_chain(error),
            Rejected::Ledger(error) => error_chain(error),
        };
        let (key, sequence) =
            claimed.map(|(key, sequence)| (Some(key), Some(sequence))).unwrap_or_default();
        let refusal = Refusal {
            reason: reason.to_owned(),
            message: message(&text),
            sequence,
            at: jiff::Timestamp::now(),
        };
        let name = |pick: fn(&Key) -> String| key.as_ref().map(pick).unwrap_or_default();
        let (application, namespace) = (name(|k| k.0.to_string()), name(|k| k.1.to_string()));
        tracing::warn!(
            application,
            namespace,
            reason,
            sequence,
            error = text,
            "Refused a directive"
        );
        self.shared.refusals.note(Refused {
            application,
            namespace,
            signed,
            refusal: refusal.clone(),
        });
        let Some(key) = key else { return };
        match self.workers.get(&key) {
            Some(worker) => worker.refused(refusal),
            // Nothing runs there; a report is enough, and it is bounded where a worker is not.
            None => self.shared.outbox.report(&status::report(&Situation {
                key: &key,
                epoch: None,
                sequence: None,
                running: None,
                removal: None,
                frozen: None,
                refusal: Some(&refusal),
                problem: None,
                heals_total: 0,
                now: jiff::Timestamp::now(),
            })),
        }
    }

    /// Whether a hub key of the local policy signed this directive.
    fn is_signed(&self, directive: &[u8]) -> bool {
        let trust = self.trust.borrow();
        let sized = gate::check_size(directive).is_ok();
        trust.loaded().is_ok_and(|loaded| {
            sized && envelope::open(directive, DIRECTIVE_TYPE, &loaded.policy.hub_keys).is_ok()
        })
    }

    /// Brings every held destination back to work, or stops all when the policy does not allow any.
    async fn resume_all(&mut self) {
        let trust = self.trust.borrow().clone();
        let keys: Vec<Key> = self.shared.ledger.with_records(|r| r.keys().cloned().collect());
        self.readiness.set(trust.loaded().is_ok());
        if let Err(error) = trust.bound(&self.cluster) {
            for key in keys {
                self.freeze(&key, error.reason(), &error_chain(&error));
            }
            return;
        }
        for key in keys {
            self.resume(&key).await;
        }
    }

    async fn resume(&mut self, key: &Key) {
        let Some(entry) = self.shared.ledger.entry(key) else { return };
        match self.load(key, &entry).await {
            Ok(Some(order)) => {
                let worker = self.worker(key);
                worker.order(order);
                let refused = self.shared.refusals.newest(key.0.as_str(), key.1.as_str());
                // What was refused before it was admitted does not stand any more.
                let standing = refused.filter(|r| r.sequence > Some(entry.record.sequence));
                if let Some(refusal) = standing {
                    worker.refused(refusal);
                }
            }
            Ok(None) => {}
            Err(Rejected::Ledger(error)) if error.is_transient() => {
                tracing::warn!(
                    application = %key.0, namespace = %key.1,
                    reason = error.reason(), error = %error_chain(&error),
                    "Cannot load what is held; trying again"
                );
                self.unresumed.insert(key.clone(), Instant::now() + RETRY_MIN * 4);
            }
            Err(error) => {
                let text = match &error {
                    Rejected::Gate(error) => error_chain(error),
                    Rejected::Ledger(error) => error_chain(error),
                };
                if matches!(&error, Rejected::Ledger(LedgerError::Content { .. }))
                    && let Some(held) = &entry.record.held
                {
                    self.shared.outbox.need(key.clone(), held.blobs().copied().collect());
                    self.unresumed.insert(key.clone(), Instant::now() + IDLE);
                }
                self.freeze(key, error.reason(), &text);
            }
        }
    }

    /// Judges again what this cluster holds, by the policy as it is now; only times do not count.
    async fn load(&mut self, key: &Key, entry: &Entry) -> Result<Option<Order>, Rejected> {
        let record = &entry.record;
        let to_remove = record.removed && !record.inventory.is_empty();
        if record.held.is_none() && !to_remove {
            return Ok(None);
        }
        if let Some(held) = &record.held {
            let here = held.blobs().all(|digest| self.blobs.get(digest).is_some());
            if here {
                let bytes = self.blobs.of(held);
                let stored = self.shared.ledger.store_content(held.plan, &bytes).await;
                stored.map_err(Rejected::Ledger)?;
            } else {
                self.load_blobs(held).await.map_err(Rejected::Ledger)?;
            }
        }
        let mut verdict = self.judge_held(key, entry);
        if verdict.as_ref().is_err_and(GateError::is_about_kinds) {
            self.discover().await;
            verdict = self.judge_held(key, entry);
        }
        let order = match verdict.map_err(Rejected::Gate)? {
            Verdict::Admit(admitting) => {
                let Admitting { admission, held } = *admitting;
                self.blobs.remove(held.blobs());
                self.know_inventory(key, &admission.admitted.objects).await;
                Order::Run(Box::new(Run {
                    admission,
                    held,
                    resumed: true,
                    former: None,
                    kept: None,
                    timings: Timings::default(),
                }))
            }
            Verdict::Remove(removal) => {
                self.know_inventory(key, &[]).await;
                Order::Remove(removal)
            }
            Verdict::Need(..) | Verdict::Again(_) => {
                let plan = record.held.as_ref().map_or_else(|| Digest::of(b""), |held| held.plan);
                return Err(Rejected::Ledger(LedgerError::Content { plan }));
            }
        };
        Ok(Some(order))
    }

    fn judge_held(&self, key: &Key, entry: &Entry) -> Result<Verdict, GateError> {
        let trust = self.trust.borrow().clone();
        let policy = trust.bound(&self.cluster).map_err(GateError::Trust)?;
        let kinds = self.kinds();
        let records = self.shared.ledger.with_records(|records| {
            gate::records_at(records, key, &entry.directive).unwrap_or_else(|| records.clone())
        });
        let view = View {
            policy,
            cluster: &self.cluster,
            records: &records,
            kinds: &kinds,
            now: jiff::Timestamp::now(),
            ages: Ages::Skip,
        };
        let plan = entry.record.held.as_ref().map(|held| held.plan);
        gate::judge(&entry.directive, plan, |digest| self.blobs.get(digest).cloned(), &view)
    }

    fn freeze(&mut self, key: &Key, reason: &str, text: &str) {
        let order = Order::Freeze { reason: reason.to_owned(), message: message(text) };
        self.worker(key).order(order);
    }

    /// Blobs of what runs here already: the hub need not send them again.
    async fn look_up(&mut self, key: &Key) {
        let held: Vec<Held> = self.shared.ledger.with_records(|records| {
            let mine = records.values().filter(|record| record.application == key.0);
            mine.flat_map(|r| r.held.iter().chain(&r.last_good)).cloned().collect()
        });
        let mut seen = BTreeSet::new();
        for held in held.iter().filter(|held| seen.insert(held.plan)) {
            if let Err(error) = self.load_blobs(held).await {
                tracing::debug!(reason = error.reason(), "Stored content is not at hand");
            }
        }
    }

    async fn load_blobs(&mut self, held: &Held) -> Result<(), LedgerError> {
        for bytes in self.shared.ledger.load_content(held.plan).await? {
            self.blobs.insert(Digest::of(&bytes), bytes);
        }
        Ok(())
    }

    /// Asks the API server for the kinds that are needed to delete what an inventory holds beyond
    /// `rendered`.
    async fn know_inventory(&self, key: &Key, rendered: &[Object]) {
        let kinds = self.kinds();
        let stays: BTreeSet<&ObjectKey> = rendered.iter().map(Object::key).collect();
        let unknown = self.shared.ledger.with_records(|records| {
            let owned = records.get(key).into_iter().flat_map(|record| &record.inventory);
            let goes = owned.into_iter().filter(|owned| !stays.contains(&owned.key));
            goes.into_iter().any(|o| kinds.get(&o.key.group, &o.key.kind).is_none())
        });
        if unknown {
            self.discover().await;
        }
    }

    async fn discover(&self) {
        for root in ["/api", "/apis"] {
            match self.shared.api.discovery(root).await {
                Ok(document) => {
                    let mut kinds =
                        self.shared.kinds.write().unwrap_or_else(PoisonError::into_inner);
                    learn(&mut kinds, &document);
                }
                Err(error) => complain("Cannot ask the API server for its kinds", &error),
            }
        }
    }

    fn kinds(&self) -> Kinds {
        self.shared.kinds.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn worker(&mut self, key: &Key) -> Arc<Mailbox> {
        let shared = &self.shared;
        let start = || destination::start(shared.clone(), key.clone());
        Arc::clone(self.workers.entry(key.clone()).or_insert_with(start))
    }
}

/// Adds the kinds of an aggregated discovery document (`APIGroupDiscoveryList`).
fn learn(kinds: &mut Kinds, document: &Value) {
    let list = |value: &Value, field: &str| {
        value.get(field).and_then(Value::as_array).cloned().unwrap_or_default()
    };
    for group in list(document, "items") {
        let name = group.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        for resource in list(&group, "versions").iter().flat_map(|v| list(v, "resources")) {
            let text = |pointer: &str| resource.pointer(pointer).and_then(Value::as_str);
            let (Some(plural), Some(kind)) = (text("/resource"), text("/responseKind/kind")) else {
                continue;
            };
            if kinds.get(name, kind).is_none() {
                let namespaced = text("/scope") == Some("Namespaced");
                kinds.insert(name, kind, Kind { plural: plural.to_owned(), namespaced });
            }
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Why a directive was not carried out.
enum Rejected {
    Gate(GateError),
    Ledger(LedgerError),
}

impl Rejected {
    fn reason(&self) -> &'static str {
        match self {
            Self::Gate(error) => error.reason(),
            Self::Ledger(error) => error.reason(),
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
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn kinds_are_learnt_from_discovery_without_replacing_what_is_known() {
        let mut kinds = Kinds::built_in();
        let document = json!({"items": [
            {"metadata": {"name": "example.com"}, "versions": [{"version": "v1", "resources": [
                {"resource": "widgets", "scope": "Namespaced", "responseKind": {"kind": "Widget"}}]}]},
            {"metadata": {"name": "apps"}, "versions": [{"version": "v1", "resources": [
                {"resource": "evil", "scope": "Cluster", "responseKind": {"kind": "Deployment"}}]}]},
        ]});

        learn(&mut kinds, &document);

        assert!(kinds.get("example.com", "Widget").is_some_and(|kind| kind.namespaced));
        assert_eq!(kinds.get("apps", "Deployment").unwrap().plural, "deployments");
    }
}
