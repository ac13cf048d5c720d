//! How other parts of the hub ask for an application to be reconciled.

use std::collections::BTreeSet;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use attest_common::basics::ids::{ClusterId, DestinationKey, Name};
use attest_common::basics::locked::Locked;
use attest_runtime::clock::random;
use tokio::sync::Notify;

use super::queue::Queue;
use super::task::{Poll, Task};
use crate::applications::views::Views;

/// Wait before an application is reconciled again whose ledger was not what was remembered of it.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The queue of applications, shared by those who wake applications and the one who reconciles them.
#[derive(Debug)]
pub(crate) struct Waker {
    queue: Locked<Queue>,
    views: Arc<Views>,
    changed: Notify,
}

impl Waker {
    /// An empty queue; each repository is polled every `interval`.
    pub(crate) fn new(interval: Duration, views: Arc<Views>) -> Self {
        Self { queue: Locked::new(Queue::new(interval)), views, changed: Notify::new() }
    }

    /// Changes the interval between polls. Applications that are scheduled already are polled once more as before.
    pub(crate) fn set_interval(&self, interval: Duration) {
        self.queue().set_interval(interval);
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }

    /// Anything about an application may have changed.
    pub(crate) fn wake(&self, application: &str) {
        self.queue().wake(application);
        self.changed.notify_one();
    }

    /// The status of a destination may have changed, and nothing else about its application.
    pub(crate) fn wake_status(&self, destination: &DestinationKey) {
        self.queue().wake_status(destination);
        self.changed.notify_one();
    }

    /// Anything about every application may have changed.
    pub(crate) fn wake_all(&self) {
        self.queue().wake_all();
        self.views.changes.note_references();
        self.changed.notify_one();
    }

    /// Something about a cluster changed: applications that wait because of it, or that run there, are reconciled.
    pub(crate) fn wake_cluster(&self, cluster: &Name) {
        let concerned = self.views.concerned_by(cluster);
        let mut queue = self.queue();
        concerned.iter().for_each(|application| queue.wake(application));
        drop(queue);
        self.views.changes.note_references();
        self.changed.notify_one();
    }

    /// The open rollout of an application has members in these clusters, and a deadline.
    pub(super) fn set_rollout(
        &self,
        application: &str,
        clusters: BTreeSet<ClusterId>,
        deadline: Option<Instant>,
    ) {
        self.queue().set_rollout(application, clusters, deadline);
        self.changed.notify_one();
    }

    /// A cluster has connected or disconnected: open rollouts with members there are advanced.
    pub(crate) fn wake_rollouts(&self, cluster: &ClusterId) {
        self.queue().wake_rollouts(cluster);
        self.changed.notify_one();
    }

    /// Reconciles an application again after a pause.
    pub(super) fn wake_later(&self, application: &str) {
        self.queue().wake_by(application, Instant::now() + RETRY_PAUSE);
        self.changed.notify_one();
    }

    /// An application is new or changed: it is reconciled now, and its repository polled. `asked_for` lets a new
    /// release be deployed where the application waits for an operator. [`Waker::is_complete`] knows the number
    /// that is returned.
    pub(crate) fn request(&self, application: &str, asked_for: bool) -> u64 {
        self.enqueue(application, Poll::Now, asked_for)
    }

    /// An application was there when the hub started: it is reconciled now. What its repository answered to another
    /// one a moment ago will do.
    pub(crate) fn begin(&self, application: &str) {
        self.enqueue(application, Poll::Due, false);
    }

    fn enqueue(&self, application: &str, poll: Poll, asked_for: bool) -> u64 {
        let number = self.queue().request(application, poll, asked_for, Instant::now());
        self.changed.notify_one();
        number
    }

    /// Returns whether the pass that was requested as `number` is over, or the application is gone.
    pub(crate) fn is_complete(&self, application: &str, number: u64) -> bool {
        self.queue().is_complete(application, number)
    }

    /// A repository has answered a poll at `answered`, or failed to.
    pub(super) fn polled(&self, application: &str, answered: Instant, is_ok: bool) {
        self.queue().polled(application, answered, is_ok, random());
    }

    /// Returns the number of requested passes over an application.
    pub(super) fn requests(&self, application: &str) -> Option<u64> {
        self.queue().requests(application)
    }

    /// Forgets an application, unless a pass was requested since there were `requests`.
    pub(super) fn forget(&self, application: &str, requests: Option<u64>) -> bool {
        self.queue().forget(application, requests)
    }

    /// Takes what is due. Also returns when to ask again at the latest.
    pub(super) fn take(&self) -> (Vec<(String, Task)>, Instant) {
        self.queue().take(Instant::now(), random)
    }

    /// The pass over an application is over.
    pub(super) fn complete(&self, application: &str) {
        self.queue().complete(application);
        self.changed.notify_one();
    }

    /// Waits until something in the queue has changed.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}
