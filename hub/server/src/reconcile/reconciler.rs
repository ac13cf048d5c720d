//! Reconciles applications until the hub ends. One that fails never stops another.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use attest_common::basics::locked::Locked;
use attest_common::basics::reason::Reason;

use attest_runtime::clock::random;
use attest_runtime::log;
use attest_supply::render::Kustomize;
use tokio::sync::{Semaphore, watch};

use super::answers::Answers;
use super::observe::Sources;
use super::pass::{self, PassCache, PassContext};
use super::publish::Outputs;
use super::queue::POLL_JITTER;
use super::repositories::Repositories;
use super::task::Task;
use super::waker::Waker;
use crate::applications::view::Waiting;
use crate::applications::views::Views;
use crate::core::Core;
use crate::core::blocking::blocking;
use crate::core::configuration::ConfigurationState;

/// Most applications reconciled concurrently. Most of them wait for a repository, not for a processor.
pub(crate) const RECONCILES_MAX: usize = 32;
/// Interval between searches for credentials whose write access is due for a check.
const PUSH_CHECK_INTERVAL: Duration = Duration::from_secs(10 * 60);

/// Reconciles applications.
#[derive(Debug)]
pub(crate) struct Reconciler {
    core: Arc<Core>,
    views: Arc<Views>,
    waker: Arc<Waker>,
    repositories: Arc<Repositories>,
    kustomize: Kustomize,
    answers: Answers,
    /// Interval between polls unless it is configured.
    poll_interval: Duration,
    /// Cache of each application between passes.
    caches: Locked<BTreeMap<String, Arc<Locked<PassCache>>>>,
}

impl Reconciler {
    /// Reconciles the applications of `waker`, whose repositories are polled every `interval`.
    pub(crate) fn new(
        core: Arc<Core>,
        views: Arc<Views>,
        waker: Arc<Waker>,
        repositories: Arc<Repositories>,
        kustomize: Kustomize,
        interval: Duration,
    ) -> Self {
        let answers = Answers::new(interval);
        let caches = Locked::default();
        let poll_interval = interval;
        Self { core, views, waker, repositories, kustomize, answers, poll_interval, caches }
    }

    fn context(&self) -> PassContext<'_> {
        let Self { core, views, waker, repositories, kustomize, answers, .. } = self;
        PassContext {
            sources: Sources { core, repositories, kustomize, answers },
            outputs: Outputs { core, views, waker },
        }
    }

    /// Returns the cache of an application.
    fn cache(&self, application: &str) -> Arc<Locked<PassCache>> {
        let mut caches = self.caches.lock();
        caches.entry(application.to_owned()).or_default().clone()
    }

    /// Makes one pass over an application. Blocks.
    pub(super) fn reconcile(&self, application: &str, task: Task) {
        let cache = self.cache(application);
        let mut cache = cache.lock();
        pass::reconcile(self.context(), application, task, &mut cache);
        if self.waker.requests(application).is_none() {
            // It is gone.
            self.caches.lock().remove(application);
        }
    }

    /// Reconciles everything again when the configuration changes.
    async fn follow_configuration(
        self: Arc<Self>,
        mut changes: watch::Receiver<ConfigurationState>,
    ) {
        let mut known = changes.borrow().clone();
        loop {
            tokio::select! {
                () = self.core.stop.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
            }
            let next = changes.borrow_and_update().clone();
            let previous = std::mem::replace(&mut known, next);
            if known.current == previous.current && known.is_awaited == previous.is_awaited {
                continue;
            }
            log::set_level(known.current.log_level.as_ref());
            self.waker.set_interval(known.current.poll_interval.unwrap_or(self.poll_interval));
            self.waker.wake_all();
        }
    }

    /// Reconciles applications until the hub ends.
    pub(crate) async fn run(self: Arc<Self>) {
        let permits = Arc::new(Semaphore::new(RECONCILES_MAX));
        let checking = self.clone().check_push_credentials();
        tokio::spawn(self.core.stop.clone().part("check of push credentials", checking));
        // Before the first pass, which may wait for a change.
        let changes = self.core.configuration.subscribe();
        let following = self.clone().follow_configuration(changes);
        tokio::spawn(self.core.stop.clone().part("configuration", following));
        loop {
            let (due, next) = self.waker.take();
            for (name, task) in due {
                tokio::spawn(self.clone().reconcile_due(permits.clone(), name, task));
            }
            tokio::select! {
                () = self.core.stop.cancelled() => return,
                () = self.waker.changed() => {}
                () = tokio::time::sleep_until(next.into()) => {}
            }
        }
    }

    async fn reconcile_due(self: Arc<Self>, permits: Arc<Semaphore>, name: String, task: Task) {
        let _permit = permits.acquire_owned().await;
        let mut completion =
            Completion { reconciler: self.clone(), name: name.clone(), outcome: PassOutcome::None };
        blocking(&self, move |reconciler| reconciler.reconcile(&name, task)).await;
        completion.outcome = PassOutcome::Published;
        drop(completion);
    }

    async fn check_push_credentials(self: Arc<Self>) {
        loop {
            if blocking(&self.repositories, Repositories::check_push_credentials).await {
                self.waker.wake_all();
            }
            let pause = POLL_JITTER.apply(PUSH_CHECK_INTERVAL, random());
            tokio::select! {
                () = self.core.stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

/// Completes a pass in the queue, also when it panicked: the application then counts as not read.
struct Completion {
    reconciler: Arc<Reconciler>,
    name: String,
    outcome: PassOutcome,
}

/// Outcome of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PassOutcome {
    /// It has ended early.
    None,
    Published,
}

impl Drop for Completion {
    fn drop(&mut self) {
        let Reconciler { waker, views, caches, core, .. } = &*self.reconciler;
        if self.outcome == PassOutcome::None && !core.stop.is_cancelled() {
            let message = "the reconcile ended by a panic; see the log of the hub";
            views.fail(&self.name, Waiting::unknown(Reason::ReconcilePanicked, message));
            // It may be incomplete.
            caches.lock().remove(&self.name);
        }
        waker.complete(&self.name);
    }
}

#[cfg(test)]
mod tests;
