//! The reconcile queue: when each application is reconciled. A data structure; it starts nothing and reads no clock.
//!
//! A wake-up carries no data: an application that is woken is reconciled from the beginning, and one that is woken
//! during its pass is reconciled once more. Polls are ordered by time and woken applications are kept apart, so that
//! no operation visits every application but [`Queue::wake_all`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use attest_common::basics::backoff::{Backoff, Jitter};
use attest_common::basics::ids::{ClusterId, DestinationKey};

use super::task::{PassRequest, Poll, Task};

/// Maximum backoff for an unreachable repository, in poll intervals.
pub(crate) const BACKOFF_INTERVALS_MAX: u32 = 16;
/// A poll comes up to this share of the interval early, so that many do not come together.
pub(super) const JITTER_PERCENT: u32 = 20;
pub(super) const POLL_JITTER: Jitter = Jitter::Early { percent_max: JITTER_PERCENT };

/// The applications of the hub and when each is due.
#[derive(Debug)]
pub(super) struct Queue {
    interval: Duration,
    slots: BTreeMap<String, Slot>,
    /// Applications that are dirty and not running.
    ready: BTreeSet<String>,
    /// The next poll of every application.
    polls: BTreeSet<(Instant, String)>,
    /// The next deadline of rollouts.
    deadlines: BTreeSet<(Instant, String)>,
}

#[derive(Debug)]
struct Slot {
    dirty: bool,
    /// More than its status may have changed.
    whole: bool,
    /// Destinations whose status may have changed.
    destinations: BTreeSet<DestinationKey>,
    poll: Poll,
    /// An operator asked for this.
    asked_for: bool,
    running: bool,
    /// Reconcile requests: received, taken by the running pass, completed.
    requested: u64,
    taken: u64,
    completed: u64,
    /// Polls in a row that failed.
    failures: u32,
    next_poll: Instant,
    /// Clusters of its open rollout.
    rollout: BTreeSet<ClusterId>,
    deadline: Option<Instant>,
}

impl Slot {
    fn new(next_poll: Instant) -> Self {
        Self {
            dirty: false,
            whole: false,
            destinations: BTreeSet::new(),
            poll: Poll::No,
            asked_for: false,
            running: false,
            requested: 0,
            taken: 0,
            completed: 0,
            failures: 0,
            next_poll,
            rollout: BTreeSet::new(),
            deadline: None,
        }
    }

    fn take(&mut self) -> Task {
        let destinations = std::mem::take(&mut self.destinations);
        let task = if self.whole {
            Task::Whole(PassRequest { poll: self.poll, asked_for: self.asked_for })
        } else if self.poll == Poll::Due {
            Task::Poll(destinations)
        } else {
            Task::Status(destinations)
        };
        (self.dirty, self.whole, self.poll, self.asked_for) = (false, false, Poll::No, false);
        (self.running, self.taken) = (true, self.requested);
        task
    }
}

impl Queue {
    /// Polls that are scheduled from now on are `interval` apart.
    pub(super) fn set_interval(&mut self, interval: Duration) {
        self.interval = interval;
    }

    /// An empty queue; each repository is polled every `interval`.
    pub(super) fn new(interval: Duration) -> Self {
        Self {
            interval,
            slots: BTreeMap::new(),
            ready: BTreeSet::new(),
            polls: BTreeSet::new(),
            deadlines: BTreeSet::new(),
        }
    }

    /// The status of a destination may have changed.
    pub(super) fn wake_status(&mut self, destination: &DestinationKey) {
        let application = destination.application.as_str();
        let Some(slot) = self.slots.get_mut(application) else { return };
        slot.destinations.insert(destination.clone());
        self.note_dirty(application);
    }

    /// Anything about an application may have changed.
    pub(super) fn wake(&mut self, application: &str) {
        let Some(slot) = self.slots.get_mut(application) else { return };
        slot.whole = true;
        self.note_dirty(application);
    }

    fn note_dirty(&mut self, application: &str) {
        let Some(slot) = self.slots.get_mut(application) else { return };
        slot.dirty = true;
        if !slot.running {
            self.ready.insert(application.to_owned());
        }
    }

    /// Anything about every application may have changed.
    pub(super) fn wake_all(&mut self) {
        for (name, slot) in &mut self.slots {
            (slot.dirty, slot.whole) = (true, true);
            if !slot.running {
                self.ready.insert(name.clone());
            }
        }
    }

    /// Reconciles an application at `time` at the latest.
    pub(super) fn wake_by(&mut self, application: &str, time: Instant) {
        if let Some(slot) = self.slots.get_mut(application) {
            slot.whole = true;
            let next_poll = slot.next_poll.min(time);
            self.schedule(application, next_poll);
        }
    }

    /// The open rollout of an application has members in these clusters, and a deadline. Without clusters, it has none.
    pub(super) fn set_rollout(
        &mut self,
        application: &str,
        clusters: BTreeSet<ClusterId>,
        deadline: Option<Instant>,
    ) {
        let Some(slot) = self.slots.get_mut(application) else { return };
        if let Some(previous) = slot.deadline.take() {
            self.deadlines.remove(&(previous, application.to_owned()));
        }
        slot.rollout = clusters;
        slot.deadline = deadline;
        self.deadlines.extend(deadline.map(|deadline| (deadline, application.to_owned())));
    }

    /// A cluster has connected or disconnected: open rollouts with members there are advanced.
    pub(super) fn wake_rollouts(&mut self, cluster: &ClusterId) {
        let slots = self.slots.iter().filter(|(_, slot)| slot.rollout.contains(cluster));
        let concerned: Vec<String> = slots.map(|(name, _)| name.clone()).collect();
        concerned.iter().for_each(|name| self.note_dirty(name));
    }

    /// Requests a pass over an application, which need not be known yet. Returns the number of the request.
    pub(super) fn request(
        &mut self,
        application: &str,
        poll: Poll,
        asked_for: bool,
        now: Instant,
    ) -> u64 {
        let next_poll = now + self.interval;
        if !self.slots.contains_key(application) {
            self.slots.insert(application.to_owned(), Slot::new(next_poll));
            self.polls.insert((next_poll, application.to_owned()));
        }
        let Some(slot) = self.slots.get_mut(application) else { return 0 };
        slot.poll = slot.poll.max(poll);
        slot.asked_for |= asked_for;
        slot.requested += 1;
        let number = slot.requested;
        self.wake(application);
        number
    }

    /// Returns the number of requested passes over an application.
    pub(super) fn requests(&self, application: &str) -> Option<u64> {
        self.slots.get(application).map(|slot| slot.requested)
    }

    /// Returns whether the pass that was requested as `number` is over, or the application is gone.
    pub(super) fn is_complete(&self, application: &str, number: u64) -> bool {
        self.slots.get(application).is_none_or(|slot| slot.completed >= number)
    }

    /// A repository has answered a poll at `answered`, or failed to. The next poll counts from that time, so that
    /// applications which share one answer fall due together. `random` is for jitter.
    pub(super) fn polled(
        &mut self,
        application: &str,
        answered: Instant,
        is_ok: bool,
        random: u64,
    ) {
        let Some(slot) = self.slots.get_mut(application) else { return };
        slot.failures = if is_ok { 0 } else { slot.failures.saturating_add(1) };
        let next_poll = answered + poll_backoff(self.interval).delay(slot.failures, random);
        self.schedule(application, next_poll);
    }

    /// Forgets an application whose record was gone after [`Queue::requests`] returned `requests`. One that was
    /// requested since then stays. Returns whether it is forgotten.
    pub(super) fn forget(&mut self, application: &str, requests: Option<u64>) -> bool {
        if self.requests(application) != requests {
            return false;
        }
        if let Some(slot) = self.slots.remove(application) {
            self.polls.remove(&(slot.next_poll, application.to_owned()));
            if let Some(deadline) = slot.deadline {
                self.deadlines.remove(&(deadline, application.to_owned()));
            }
        }
        self.ready.remove(application);
        true
    }

    /// Takes what is due at `now`. Also returns when to ask again at the latest. `random` is for jitter.
    pub(super) fn take(
        &mut self,
        now: Instant,
        random: impl Fn() -> u64,
    ) -> (Vec<(String, Task)>, Instant) {
        while let Some((_, name)) = self.polls.first().filter(|(time, _)| *time <= now).cloned() {
            if let Some(slot) = self.slots.get_mut(&name) {
                slot.poll = slot.poll.max(Poll::Due);
            }
            self.note_dirty(&name);
            self.schedule(&name, now + POLL_JITTER.apply(self.interval, random()));
        }
        while let Some((time, name)) =
            self.deadlines.first().filter(|(time, _)| *time <= now).cloned()
        {
            self.deadlines.remove(&(time, name.clone()));
            if let Some(slot) = self.slots.get_mut(&name) {
                slot.deadline = None;
            }
            self.note_dirty(&name);
        }
        let ready = std::mem::take(&mut self.ready).into_iter();
        let due = ready.filter_map(|name| {
            let task = self.slots.get_mut(&name)?.take();
            Some((name, task))
        });
        let due = due.collect();
        let latest = now + self.interval;
        let times = self.polls.first().into_iter().chain(self.deadlines.first());
        (due, times.fold(latest, |earliest, (next, _)| earliest.min(*next)))
    }

    /// The pass over an application is over.
    pub(super) fn complete(&mut self, application: &str) {
        let Some(slot) = self.slots.get_mut(application) else { return };
        (slot.running, slot.completed) = (false, slot.taken);
        if slot.dirty {
            self.ready.insert(application.to_owned());
        }
    }

    fn schedule(&mut self, application: &str, time: Instant) {
        let Some(slot) = self.slots.get_mut(application) else { return };
        self.polls.remove(&(slot.next_poll, application.to_owned()));
        slot.next_poll = time;
        self.polls.insert((time, application.to_owned()));
    }
}

/// Delay before a repository is polled again: the interval, doubled with each failure, and up to [`JITTER_PERCENT`]
/// early.
fn poll_backoff(interval: Duration) -> Backoff {
    Backoff::new(interval, interval * BACKOFF_INTERVALS_MAX).with_jitter(POLL_JITTER)
}

#[cfg(test)]
mod tests;
