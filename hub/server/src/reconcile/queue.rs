//! When which application is looked at. What happens then is `pipeline::reconcile`, the whole flow on one screen.
//!
//! A wake-up carries no data: an application that is woken is looked at from the beginning, and one that
//! is woken while it is being looked at is looked at once more. One that fails never stops another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use attest_common::basics::backoff::{Backoff, Jitter};
use attest_common::basics::ids::{ClusterId, DestinationKey, Name};
use attest_runtime::clock::random;
use tokio::sync::{Notify, Semaphore};

use super::answers::{self, Answers};
pub(crate) use super::observe::credentials;
pub use super::pass::View;
use super::pass::{self, Memory};
use crate::core::store::records::{Application, Destination};
use crate::process::hub::Hub;

/// Most applications looked at at once. Most of them wait for a repository, not for a processor.
pub const RECONCILES_MAX: usize = 32;
/// A repository that cannot be read is asked ever less often, up to this many intervals apart.
pub const BACKOFF_INTERVALS_MAX: u32 = 16;
/// A poll comes up to this share of the interval early, so that many do not come together.
const JITTER_PERCENT: u32 = 20;
const POLL_JITTER: Jitter = Jitter::Early { percent_max: JITTER_PERCENT };
const _: () = assert!(JITTER_PERCENT < answers::SHARED_PERCENT_MAX);
/// Wait before an application is looked at again whose ledger was not what was remembered of it.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How often the hub looks which of its credentials it has to ask about again.
const PUSH_LOOK_INTERVAL: Duration = Duration::from_secs(10 * 60);

/// The queue of applications.
#[derive(Debug)]
pub struct Pipeline {
    interval: Duration,
    pub(crate) answers: Answers,
    slots: Mutex<BTreeMap<String, Slot>>,
    views: Mutex<BTreeMap<String, Arc<View>>>,
    changed: Notify,
}

#[derive(Debug)]
struct Slot {
    dirty: bool,
    /// More than its status may have changed.
    plan: bool,
    poll: Poll,
    /// An operator asked for this.
    asked_for: bool,
    running: bool,
    /// How often it was asked to be looked at, how much of that the running look answers, and how
    /// much is answered.
    asked: u64,
    taken: u64,
    answered: u64,
    /// Polls in a row that failed.
    failures: u32,
    next_poll: Instant,
    memory: Arc<Mutex<Memory>>,
}

/// An application that is to be looked at now.
type Due = (String, Task, Arc<Mutex<Memory>>);

/// Whether the repository is to be asked for news.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Poll {
    No,
    /// The interval is over, or the hub has just started: what it said to another application a moment ago will do.
    Due,
    Now,
}

/// What one look at an application is to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task {
    /// False when only its status is to be computed anew.
    pub(crate) plan: bool,
    pub(crate) poll: Poll,
    pub(crate) asked_for: bool,
}

impl Pipeline {
    /// An empty queue; each repository is asked for news every `interval`.
    pub fn new(interval: Duration) -> Self {
        Self {
            interval,
            answers: Answers::new(interval),
            slots: Mutex::default(),
            views: Mutex::default(),
            changed: Notify::new(),
        }
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<String, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something about an application may have changed.
    pub fn wake(&self, application: &str) {
        if let Some(slot) = self.slots().get_mut(application) {
            (slot.dirty, slot.plan) = (true, true);
        }
        self.changed.notify_one();
    }

    /// An application is looked at again after [`RETRY_PAUSE`].
    pub(crate) fn wake_later(&self, application: &str) {
        if let Some(slot) = self.slots().get_mut(application) {
            slot.next_poll = slot.next_poll.min(Instant::now() + RETRY_PAUSE);
        }
        self.changed.notify_one();
    }

    /// Something about every application may have changed.
    pub fn wake_all(&self) {
        self.slots().values_mut().for_each(|slot| (slot.dirty, slot.plan) = (true, true));
        self.changed.notify_one();
    }

    /// Something about a cluster changed: applications that wait because of it, or that run there,
    /// are looked at.
    pub fn wake_cluster(&self, cluster: &Name) {
        let waiting: Vec<String> = {
            let views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
            let concerned = |view: &View| {
                let waits = view.waiting.keys().any(|(name, _)| name == cluster);
                waits || view.rendered.keys().any(|(name, _)| name == cluster)
            };
            let found = views.iter().filter(|(_, view)| concerned(view));
            found.map(|(name, _)| name.clone()).collect()
        };
        let mut slots = self.slots();
        for name in waiting {
            if let Some(slot) = slots.get_mut(&name) {
                (slot.dirty, slot.plan) = (true, true);
            }
        }
        drop(slots);
        self.changed.notify_one();
    }

    /// A destination has reported: the application's status may have changed, its plans have not.
    pub fn wake_status(&self, application: &str) {
        if let Some(slot) = self.slots().get_mut(application) {
            slot.dirty = true;
        }
        self.changed.notify_one();
    }

    /// An application is new or changed: it is looked at now, its repository asked.
    /// `asked_for` lets a new release be deployed where the application waits for an operator.
    /// [`Pipeline::has_looked`] knows the number that is returned.
    pub fn look(&self, application: &str, asked_for: bool) -> u64 {
        self.ask(application, Poll::Now, asked_for)
    }

    /// An application was there when the hub started: it is looked at now. What its repository said to another one a
    /// moment ago will do.
    pub(crate) fn begin(&self, application: &str) {
        self.ask(application, Poll::Due, false);
    }

    fn ask(&self, application: &str, poll: Poll, asked_for: bool) -> u64 {
        let mut slots = self.slots();
        let slot = slots.entry(application.to_owned()).or_insert_with(|| Slot {
            dirty: true,
            plan: true,
            poll,
            asked_for,
            running: false,
            asked: 0,
            taken: 0,
            answered: 0,
            failures: 0,
            next_poll: Instant::now() + self.interval,
            memory: Arc::default(),
        });
        (slot.dirty, slot.plan, slot.poll) = (true, true, slot.poll.max(poll));
        slot.asked_for |= asked_for;
        slot.asked += 1;
        let number = slot.asked;
        drop(slots);
        self.changed.notify_one();
        number
    }

    /// A repository was asked, in vain or not. The next poll counts from its answer, so that those who share one
    /// answer fall due together.
    pub(crate) fn asked(&self, application: &str, answered: Instant, is_ok: bool) {
        if let Some(slot) = self.slots().get_mut(application) {
            slot.failures = if is_ok { 0 } else { slot.failures.saturating_add(1) };
            slot.next_poll = answered + poll_backoff(self.interval).delay(slot.failures, random());
        }
    }

    /// How often an application was asked to be looked at.
    pub(crate) fn looks_asked(&self, application: &str) -> Option<u64> {
        self.slots().get(application).map(|slot| slot.asked)
    }

    /// Forgets an application whose record was gone after [`Pipeline::looks_asked`] said `asked`. One that was
    /// applied since then stays: its look is asked for after its record is there. True when it is forgotten.
    pub(crate) fn forget(&self, application: &str, asked: Option<u64>) -> bool {
        let mut slots = self.slots();
        if slots.get(application).map(|slot| slot.asked) != asked {
            return false;
        }
        slots.remove(application);
        self.views.lock().unwrap_or_else(PoisonError::into_inner).remove(application);
        true
    }

    /// The outcome of the newest look at an application.
    pub fn view(&self, application: &str) -> Option<Arc<View>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner).get(application).cloned()
    }

    pub(super) fn set_view(&self, application: &str, view: View) {
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        views.insert(application.to_owned(), Arc::new(view));
    }

    /// True when the look that was asked for as `number` is done, or the application is gone.
    pub fn has_looked(&self, application: &str, number: u64) -> bool {
        self.slots().get(application).is_none_or(|slot| slot.answered >= number)
    }

    /// Takes what is due, and says when the next poll is.
    fn take(&self) -> (Vec<Due>, Instant) {
        let now = Instant::now();
        let mut due = Vec::new();
        let mut next = now + self.interval;
        for (name, slot) in self.slots().iter_mut() {
            if slot.next_poll <= now {
                (slot.dirty, slot.plan) = (true, true);
                slot.poll = slot.poll.max(Poll::Due);
                slot.next_poll = now + POLL_JITTER.apply(self.interval, random());
            }
            next = next.min(slot.next_poll);
            if slot.dirty && !slot.running {
                let task = Task { plan: slot.plan, poll: slot.poll, asked_for: slot.asked_for };
                (slot.dirty, slot.plan, slot.poll) = (false, false, Poll::No);
                (slot.asked_for, slot.running, slot.taken) = (false, true, slot.asked);
                due.push((name.clone(), task, slot.memory.clone()));
            }
        }
        (due, next)
    }

    fn done(&self, application: &str) {
        if let Some(slot) = self.slots().get_mut(application) {
            (slot.running, slot.answered) = (false, slot.taken);
        }
        self.changed.notify_one();
    }
}

/// Looks at applications until the hub ends.
pub async fn run(hub: Arc<Hub>) {
    let permits = Arc::new(Semaphore::new(RECONCILES_MAX));
    let checking = check_push_credentials(hub.clone());
    tokio::spawn(hub.clone().part("check of push credentials", checking));
    loop {
        let (due, next) = hub.pipeline.take();
        for (name, task, memory) in due {
            let permits = permits.clone();
            let hub = hub.clone();
            tokio::spawn(async move {
                let _permit = permits.acquire_owned().await;
                let done = Done { hub: hub.clone(), name: name.clone() };
                hub.blocking(move |hub| {
                    let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
                    pass::application(hub, &name, task, &mut memory);
                })
                .await;
                drop(done);
            });
        }
        tokio::select! {
            () = hub.stop.cancelled() => return,
            () = hub.pipeline.changed.notified() => {}
            () = tokio::time::sleep_until(next.into()) => {}
        }
    }
}

/// Gives the slot back also when looking at the application panicked.
struct Done {
    hub: Arc<Hub>,
    name: String,
}

impl Drop for Done {
    fn drop(&mut self) {
        self.hub.pipeline.done(&self.name);
    }
}

/// Delay before a repository is polled again: the interval, doubled with each failure, and up to [`JITTER_PERCENT`]
/// early.
fn poll_backoff(interval: Duration) -> Backoff {
    Backoff::new(interval, interval * BACKOFF_INTERVALS_MAX).with_jitter(POLL_JITTER)
}

async fn check_push_credentials(hub: Arc<Hub>) {
    loop {
        hub.blocking(super::observe::check_push_credentials).await;
        tokio::select! {
            () = hub.stop.cancelled() => return,
            () = tokio::time::sleep(POLL_JITTER.apply(PUSH_LOOK_INTERVAL, random())) => {}
        }
    }
}

/// Where an application is to run: those of its destinations whose cluster is registered.
pub(crate) fn places(hub: &Hub, application: &Application) -> BTreeSet<(ClusterId, Name)> {
    let place = |destination: &Destination| {
        let cluster = hub.directory.named(&destination.cluster)?;
        Some((cluster.id.clone(), destination.namespace.clone()))
    };
    application.destinations.iter().filter_map(place).collect()
}

/// The destinations an application has in a cluster, by where they are.
pub(crate) fn destination_key(
    application: &Name,
    cluster: &ClusterId,
    namespace: &Name,
) -> DestinationKey {
    DestinationKey {
        application: application.clone(),
        cluster: cluster.clone(),
        namespace: namespace.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_application_that_is_applied_while_it_is_forgotten_stays() {
        let pipeline = Pipeline::new(Duration::from_secs(300));
        pipeline.look("web-app", false);
        let before = pipeline.looks_asked("web-app");
        let number = pipeline.look("web-app", false);

        assert!(!pipeline.forget("web-app", before));
        assert!(!pipeline.has_looked("web-app", number));
        assert!(pipeline.forget("web-app", pipeline.looks_asked("web-app")));
        assert!(pipeline.has_looked("web-app", number));
    }

    #[test]
    fn applications_that_share_an_answer_fall_due_together() {
        let interval = Duration::from_secs(300);
        let pipeline = Pipeline::new(interval);
        let answered = Instant::now();
        for name in ["web-app", "web-api"] {
            pipeline.look(name, false);
            pipeline.asked(name, answered, true);
        }

        for slot in pipeline.slots().values() {
            let after = slot.next_poll - answered;
            let early_max = interval * JITTER_PERCENT / 100;
            assert!(interval - early_max <= after && after <= interval, "{after:?}");
        }
    }

    #[test]
    fn applications_that_are_there_at_the_start_share_an_answer_unless_an_operator_asks_for_one() {
        let pipeline = Pipeline::new(Duration::from_secs(300));
        pipeline.begin("web-api");
        pipeline.begin("web-app");
        pipeline.look("web-app", true);

        let (due, _) = pipeline.take();

        let polls: Vec<_> = due.iter().map(|(name, task, _)| (name.as_str(), task.poll)).collect();
        assert_eq!(polls, [("web-api", Poll::Due), ("web-app", Poll::Now)]);
    }

    #[test]
    fn a_look_that_began_before_it_was_asked_for_is_not_its_answer() {
        let pipeline = Pipeline::new(Duration::from_secs(300));
        let first = pipeline.look("web-app", false);
        assert_eq!(pipeline.take().0.len(), 1);

        let second = pipeline.look("web-app", true);
        pipeline.done("web-app");

        assert!(pipeline.has_looked("web-app", first));
        assert!(!pipeline.has_looked("web-app", second));
        assert_eq!(pipeline.take().0.len(), 1);
        pipeline.done("web-app");
        assert!(pipeline.has_looked("web-app", second));
    }
}
