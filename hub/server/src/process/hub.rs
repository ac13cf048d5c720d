//! The hub's parts in one place, shared by its doors (link, API) and its worker (pipeline). Wiring, no rules.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use attest_certs::Authority;
use attest_common::basics::ids::{ClusterId, DestinationKey};
use attest_common::documents::plan::{HEADS_MAX, Head, SYNC_LIFETIME_MAX_MS, Sync};
use attest_runtime::clock::{after, now};
use tokio_util::sync::CancellationToken;

use crate::applications::status::{Phases, Transitions, is_removed};
use crate::core::directory::Directory;
use crate::core::fleet::Fleet;
use crate::core::metrics::Metrics;
use crate::core::signer::{Signed, Signer};
use crate::core::store::records::Records;
use crate::core::store::{RedbStore, StoreError};
use crate::home::{Advertise, Home, HomeError, Operators};
use crate::reconcile::queue::Pipeline;
use attest_supply::recipe::declared_source_root;
use attest_supply::render::Kustomize;
use attest_supply::source::{Source, UrlPolicy};

/// Longest wait of a starting hub for a store that is in use.
pub const LOCK_WAIT_MAX: Duration = Duration::from_secs(3);
const LOCK_ASK_EVERY: Duration = Duration::from_millis(50);

/// One hub process.
#[derive(Debug)]
pub struct Hub {
    pub advertise: Advertise,
    pub authority: Authority,
    pub operators: Operators,
    pub signer: Signer,
    pub records: Records,
    pub fleet: Fleet,
    pub directory: Directory,
    pub metrics: Metrics,
    pub pipeline: Pipeline,
    pub source: Source,
    pub kustomize: Kustomize,
    pub urls: UrlPolicy,
    /// Cancelled when the hub is to end.
    pub stop: CancellationToken,
    /// True when the hub is to end, for what blocks.
    pub interrupt: Arc<AtomicBool>,
    /// Joins change several records at once: one at a time.
    pub joining: tokio::sync::Mutex<()>,
    pub transitions: Transitions,
    pub phases: Phases,
    /// Term of this process; higher than that of any before it. Durable before it is here.
    epoch: AtomicU64,
    /// Held while the term is raised, which waits for the disk: readers do not.
    raising: Mutex<()>,
    syncs: AtomicU64,
    failed: OnceLock<&'static str>,
}

/// Ends the hub when a part of it is over too early.
struct Watch {
    hub: Arc<Hub>,
    name: &'static str,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.hub.stop.is_cancelled() {
            return;
        }
        let reason = if std::thread::panicking() { "PartPanicked" } else { "PartEnded" };
        tracing::error!(reason, part = self.name, "A part of the hub is over; the hub ends");
        let _ = self.hub.failed.set(self.name);
        self.hub.end();
    }
}

/// What else a hub is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    pub urls: UrlPolicy,
    pub poll_interval: Duration,
    pub kustomize: Kustomize,
}

impl Hub {
    /// Opens the store of `home` and begins a new epoch. Blocks.
    ///
    /// # Errors
    /// When the store cannot be opened or does not take the epoch.
    pub fn start(home: Home, settings: Settings) -> Result<Arc<Self>, StartError> {
        let records = Records::new(Arc::new(open_store(&home.database())?));
        home.empty_temporary()?;
        let epoch = records.begin_epoch()?;
        records.drop_unused_blobs()?;
        let git = home.git();
        Ok(Arc::new(Self {
            operators: home.operators(),
            advertise: home.advertise,
            authority: home.authority,
            signer: Signer::new(home.signing),
            fleet: Fleet::load(&records)?,
            directory: Directory::load(&records)?,
            metrics: Metrics::new().map_err(StartError::Metrics)?,
            pipeline: Pipeline::new(settings.poll_interval),
            source: Source::new(git, declared_source_root),
            kustomize: settings.kustomize,
            urls: settings.urls,
            records,
            epoch: AtomicU64::new(epoch),
            raising: Mutex::default(),
            stop: CancellationToken::new(),
            interrupt: Arc::new(AtomicBool::new(false)),
            joining: tokio::sync::Mutex::new(()),
            transitions: Transitions::default(),
            phases: Phases::default(),
            syncs: AtomicU64::new(0),
            failed: OnceLock::new(),
        }))
    }

    /// Runs `work` on a blocking thread.
    pub async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> T {
        let hub = self.clone();
        match tokio::task::spawn_blocking(move || work(&hub)).await {
            Ok(done) => done,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // Only when the runtime is going down: whoever waits here goes down with it.
                Err(_) => std::future::pending().await,
            },
        }
    }

    /// Runs a part of the hub that ends with the hub and not before. When it ends, or panics, while the hub
    /// should run, the hub ends as failed: half a hub is noticed by nobody.
    pub async fn part(self: Arc<Self>, name: &'static str, part: impl Future<Output = ()>) {
        let watch = Watch { hub: self, name };
        part.await;
        drop(watch);
    }

    /// The part whose death ended the hub.
    pub fn failed_part(&self) -> Option<&'static str> {
        self.failed.get().copied()
    }

    /// Ends everything that runs.
    pub fn end(&self) {
        self.interrupt.store(true, Ordering::SeqCst);
        self.stop.cancel();
    }

    /// Term of this process.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// A spoke holds a directive of term `seen` that this hub does not know: it came back from a backup,
    /// and begins a term above that, durably, before it signs anything more. Blocks.
    ///
    /// # Errors
    /// When the store does not take it; the term is then what it was.
    pub fn go_above_epoch(&self, seen: u64) -> Result<(), StoreError> {
        let _one_at_a_time = self.raising.lock().unwrap_or_else(PoisonError::into_inner);
        if seen >= self.epoch() {
            let epoch = self.records.begin_epoch_above(seen)?;
            self.epoch.store(epoch, Ordering::SeqCst);
            tracing::warn!(
                reason = "EpochForgotten",
                seen,
                epoch,
                "A spoke holds what this hub has forgotten (a restored backup?): a new epoch begins"
            );
        }
        Ok(())
    }

    /// A signed heartbeat for one cluster. Its counter needs to rise within one connection only: the
    /// nonce is that connection's.
    pub fn sync_for(&self, cluster: &ClusterId, nonce: &str) -> Signed {
        let counter = self.syncs.fetch_add(1, Ordering::SeqCst) + 1;
        let mut heads = self.fleet.heads_of(cluster);
        // What is gone from there needs no head.
        heads.retain(|(place, head)| !is_removed(head, self.fleet.report(place).as_deref()));
        let head = |(destination, entry): (DestinationKey, Arc<_>)| {
            let entry: &crate::core::store::records::LedgerEntry = &entry;
            Head {
                application: destination.application,
                namespace: destination.namespace,
                sequence: entry.sequence,
            }
        };
        let issued_at = now();
        self.signer.sync(&Sync {
            v: 1,
            cluster: cluster.clone(),
            epoch: self.epoch(),
            counter,
            nonce: nonce.to_owned(),
            heads: heads.into_iter().take(HEADS_MAX).map(head).collect(),
            issued_at,
            expires_at: after(issued_at, SYNC_LIFETIME_MAX_MS),
        })
    }
}

/// Opens the store, which a program that a killed hub was just starting may hold for a moment.
fn open_store(path: &Path) -> Result<RedbStore, StoreError> {
    let begun = Instant::now();
    loop {
        match RedbStore::open(path) {
            Err(StoreError::Locked { .. }) if begun.elapsed() < LOCK_WAIT_MAX => {
                std::thread::sleep(LOCK_ASK_EVERY);
            }
            other => return other,
        }
    }
}

/// Why a hub did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the metrics contradict each other")]
    Metrics(#[source] prometheus::Error),
}

impl StartError {
    /// A stable word for logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Home(error) => error.reason(),
            Self::Store(error) => error.reason(),
            Self::Metrics(_) => "Metrics",
        }
    }
}
