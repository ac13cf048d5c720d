//! State shared by all sessions.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use attest_common::basics::ids::ClusterId;
use attest_common::basics::rate::KeyedRateLimiter;
use attest_common::session::GREETING_TIMEOUT_MS;
use tokio::sync::Semaphore;

use super::limits::{CLAIMS, INTRODUCTIONS, RENEWALS};
use super::registration::{CLUSTERS_MAX, Registration};
use super::reports::{self, Reports};
use crate::core::Core;
use crate::reconcile::waker::Waker;

/// Most concurrent pushes, over all spokes.
pub(crate) const PUSHES_MAX: usize = 256;

/// State shared by all sessions.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) core: Arc<Core>,
    pub(super) waker: Arc<Waker>,
    pub(super) registration: Arc<Registration>,
    pub(super) reports: Reports,
    pub(super) pushes: Arc<Semaphore>,
    /// Sessions that report directives unknown to this hub.
    pub(super) claims: KeyedRateLimiter<ClusterId>,
    /// Sessions that report changed metadata of their cluster.
    pub(super) introductions: KeyedRateLimiter<ClusterId>,
    /// Certificate renewals.
    pub(super) renewals: KeyedRateLimiter<ClusterId>,
    heartbeats: AtomicU64,
}

impl Shared {
    /// Starts the writer of reports, which ends with the last session.
    pub(super) fn start(
        core: Arc<Core>,
        waker: Arc<Waker>,
        registration: Arc<Registration>,
    ) -> Arc<Self> {
        Arc::new(Self {
            reports: reports::start(core.clone(), waker.clone()),
            core,
            waker,
            registration,
            pushes: Arc::new(Semaphore::new(PUSHES_MAX)),
            claims: KeyedRateLimiter::new(CLAIMS, CLUSTERS_MAX),
            introductions: KeyedRateLimiter::new(INTRODUCTIONS, CLUSTERS_MAX),
            renewals: KeyedRateLimiter::new(RENEWALS, CLUSTERS_MAX),
            heartbeats: AtomicU64::new(0),
        })
    }

    /// Returns the counter of the next heartbeat. It only has to rise within a connection, which has its own nonce.
    pub(super) fn next_heartbeat(&self) -> u64 {
        self.heartbeats.fetch_add(1, Ordering::SeqCst) + 1
    }
}

pub(super) fn greeting_timeout() -> Duration {
    Duration::from_millis(GREETING_TIMEOUT_MS)
}
