//! Slots for renderings, shared fairly among repositories.
//!
//! The decision is pure ([`next`]). One slot is reserved for repositories that render quickly: a rendering that takes
//! longer than [`RESERVED_MS_MAX`] there is ended and waits for another slot.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, PoisonError};
use std::time::{Duration, Instant};

use attest_common::basics::locked::Locked;

/// Fewest slots: one for every repository, and the reserved one.
pub const SLOTS_MIN: usize = 2;
/// Most slots.
pub const SLOTS_MAX: usize = 8;
/// Most renderings of slow repositories that wait. Each holds a thread of the caller.
pub const RENDERS_WAITING_MAX: usize = 16;
/// Longest rendering in the reserved slot, and longest that counts as quick, in milliseconds.
pub const RESERVED_MS_MAX: u64 = 1_000;
/// Time for which a repository counts as slow after a slow rendering.
const SLOW_FOR: Duration = Duration::from_secs(10 * 60);
/// Most repositories whose speed is remembered.
const REPOSITORIES_MAX: usize = 10_000;

/// Smallest and largest memory of one process that renders, in bytes.
const PROCESS_BYTES_MIN: u64 = 128 * 1024 * 1024;
const PROCESS_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// Bounds on concurrent renderings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RenderCapacity {
    /// Number of concurrent renderings.
    pub slots: usize,
    /// Memory of each process that renders, in bytes.
    pub process_bytes_max: u64,
}

impl RenderCapacity {
    /// Returns the capacity for a system with `memory_bytes`: half of them are for renderings.
    pub fn of_memory(memory_bytes: u64) -> Self {
        let process_bytes_max = (memory_bytes / 8).clamp(PROCESS_BYTES_MIN, PROCESS_BYTES_MAX);
        let fitting = memory_bytes / 2 / process_bytes_max;
        let slots = usize::try_from(fitting).unwrap_or(SLOTS_MAX).clamp(SLOTS_MIN, SLOTS_MAX);
        Self { slots, process_bytes_max }
    }
}

/// Duration of a repository's newest rendering, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Speed {
    Quick,
    Unknown,
    Slow,
    TimedOut,
}

impl Speed {
    fn is_slow(self) -> bool {
        self >= Self::Slow
    }
}

/// The kind of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    Common,
    /// For repositories that are not known to be slow.
    Reserved,
}

/// A rendering that runs.
#[derive(Debug)]
struct Run {
    ticket: u64,
    repository: Arc<str>,
    slot: Slot,
}

/// A rendering that waits.
#[derive(Debug)]
struct Wait {
    ticket: u64,
    repository: Arc<str>,
    speed: Speed,
    /// Number of the newest start of a rendering of the repository; 0 before the first.
    last_start: u64,
}

/// Returns the index in `waiting` of the rendering that starts next, and its slot.
///
/// Repositories with fewer running renderings come first, then better speed, then those that were served longest ago.
fn next(slots: usize, running: &[Run], waiting: &[Wait]) -> Option<(usize, Slot)> {
    let common = running.iter().filter(|run| run.slot == Slot::Common).count();
    let slot = if common + 1 < slots {
        Slot::Common
    } else if running.iter().all(|run| run.slot == Slot::Common) {
        Slot::Reserved
    } else {
        return None;
    };
    let mut candidates = waiting.iter().enumerate().collect::<Vec<_>>();
    candidates.retain(|(_, wait)| slot == Slot::Common || !wait.speed.is_slow());
    let first = candidates.into_iter().min_by_key(|(_, wait)| {
        let running = running.iter().filter(|run| run.repository == wait.repository).count();
        (running, wait.speed, wait.last_start, wait.ticket)
    });
    first.map(|(index, _)| (index, slot))
}

/// State of a repository.
#[derive(Clone, Copy, Debug)]
struct Memory {
    speed: Speed,
    since: Instant,
    last_start: u64,
}

#[derive(Debug, Default)]
struct State {
    running: Vec<Run>,
    waiting: Vec<Wait>,
    repositories: BTreeMap<Arc<str>, Memory>,
    tickets: u64,
    starts: u64,
}

impl State {
    fn speed(&self, repository: &str, now: Instant) -> Speed {
        let memory = self.repositories.get(repository);
        let memory = memory
            .filter(|m| !m.speed.is_slow() || now.saturating_duration_since(m.since) < SLOW_FOR);
        memory.map_or(Speed::Unknown, |memory| memory.speed)
    }

    fn start_waiting(&mut self, slots: usize, now: Instant) {
        while let Some((index, slot)) = next(slots, &self.running, &self.waiting) {
            let Wait { ticket, repository, speed, .. } = self.waiting.remove(index);
            self.starts += 1;
            let memory = Memory { speed, since: now, last_start: self.starts };
            let last_start = self.starts;
            self.repositories
                .entry(repository.clone())
                .and_modify(|memory| memory.last_start = last_start)
                .or_insert(memory);
            self.running.push(Run { ticket, repository, slot });
        }
        if self.repositories.len() > REPOSITORIES_MAX {
            let oldest = self.repositories.iter().min_by_key(|(_, memory)| memory.last_start);
            if let Some(oldest) = oldest.map(|(repository, _)| repository.clone()) {
                self.repositories.remove(&oldest);
            }
        }
    }
}

/// The slots of one process.
#[derive(Debug)]
pub(super) struct Slots {
    number: usize,
    state: Locked<State>,
    changed: Condvar,
}

/// Too many renderings of slow repositories wait.
#[derive(Debug)]
pub(super) struct Busy;

impl Slots {
    pub(super) fn new(number: usize) -> Self {
        Self { number, state: Locked::default(), changed: Condvar::new() }
    }

    /// Waits for a slot for a rendering of `repository`.
    pub(super) fn take(self: &Arc<Self>, repository: &str) -> Result<Turn, Busy> {
        let now = Instant::now();
        let mut state = self.state.lock();
        let speed = state.speed(repository, now);
        let slow = state.waiting.iter().filter(|wait| wait.speed.is_slow()).count();
        if speed.is_slow() && slow >= RENDERS_WAITING_MAX {
            return Err(Busy);
        }
        state.tickets += 1;
        let ticket = state.tickets;
        let last_start = state.repositories.get(repository).map_or(0, |memory| memory.last_start);
        let repository: Arc<str> = repository.into();
        state.waiting.push(Wait { ticket, repository: repository.clone(), speed, last_start });
        state.start_waiting(self.number, now);
        loop {
            let started = state.running.iter().find(|run| run.ticket == ticket);
            if let Some(slot) = started.map(|run| run.slot) {
                return Ok(Turn { slots: self.clone(), ticket, repository, slot });
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Permission to render once; the slot is free when it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    slots: Arc<Slots>,
    ticket: u64,
    repository: Arc<str>,
    pub(super) slot: Slot,
}

impl Turn {
    /// Records the speed of the rendering.
    pub(super) fn end(self, speed: Speed) {
        let mut state = self.slots.state.lock();
        if let Some(memory) = state.repositories.get_mut(&self.repository) {
            (memory.speed, memory.since) = (speed, Instant::now());
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.slots.state.lock();
        state.running.retain(|run| run.ticket != self.ticket);
        state.start_waiting(self.slots.number, Instant::now());
        drop(state);
        self.slots.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `a+` runs in a common slot, `a!` in the reserved one.
    fn running(text: &str) -> Vec<Run> {
        let run = |(index, word): (usize, &str)| {
            let (repository, kind) = word.split_at(1);
            let slot = if kind == "!" { Slot::Reserved } else { Slot::Common };
            Run { ticket: index as u64, repository: repository.into(), slot }
        };
        text.split_whitespace().enumerate().map(run).collect()
    }

    /// Repository, speed (`q`, `u`, `s`, `t`) and newest start, in the order of arrival.
    fn waiting(text: &str) -> Vec<Wait> {
        let wait = |(index, word): (usize, &str)| {
            let speed = match &word[1..2] {
                "q" => Speed::Quick,
                "u" => Speed::Unknown,
                "s" => Speed::Slow,
                _ => Speed::TimedOut,
            };
            let last_start = word[2..].parse().unwrap();
            Wait { ticket: 100 + index as u64, repository: word[..1].into(), speed, last_start }
        };
        text.split_whitespace().enumerate().map(wait).collect()
    }

    #[test]
    fn the_next_rendering_is_of_a_quick_and_idle_repository() {
        use Slot::{Common, Reserved};

        for (name, run, wait, expected) in [
            ("nothing waits", "", "", None),
            ("an idle hub takes anything", "", "at1", Some((0, Common))),
            ("the first to come", "", "au0 bu0", Some((0, Common))),
            ("the better speed", "", "at1 bu0 cq2", Some((2, Common))),
            ("served longest ago", "", "aq5 bq3 cq4", Some((1, Common))),
            ("an idle repository before a busy one", "a+", "aq1 bt2", Some((1, Common))),
            ("a busy one if there is no other", "a+", "aq1", Some((0, Common))),
            ("the reserved slot", "a+ b+ c+", "dt1 eq2", Some((1, Reserved))),
            (
                "the reserved slot for an unknown one",
                "a+ b+ c+",
                "dt1 es1 fu0",
                Some((2, Reserved)),
            ),
            ("the reserved slot stays free of slow ones", "a+ b+ c+", "dt1 es2", None),
            ("a slow one when a common slot is free", "a+ b+ e!", "dt1", Some((0, Common))),
            ("all are taken", "a+ b+ c+ d!", "eq0", None),
        ] {
            assert_eq!(next(4, &running(run), &waiting(wait)), expected, "{name}");
        }
    }

    #[test]
    fn memory_decides_the_number_of_concurrent_renderings() {
        const MIB: u64 = 1024 * 1024;

        for (memory_mib, slots, process_mib) in [
            (0, 2, 128),
            (512, 2, 128),
            (1_024, 4, 128),
            (2_048, 4, 256),
            (4_096, 4, 512),
            (8_192, 8, 512),
            (1_000_000, 8, 512),
        ] {
            let capacity = RenderCapacity::of_memory(memory_mib * MIB);
            let expected = RenderCapacity { slots, process_bytes_max: process_mib * MIB };
            assert_eq!(capacity, expected, "{memory_mib}");
        }
    }

    #[test]
    fn slow_repositories_leave_one_slot_and_do_not_wait_without_limit() {
        let slots = Arc::new(Slots::new(2));
        let slow = slots.take("slow").unwrap();
        assert_eq!(slow.slot, Slot::Common);
        slow.end(Speed::TimedOut);
        let slow = slots.take("slow").unwrap();

        let quick = slots.take("quick").unwrap();

        assert_eq!((slow.slot, quick.slot), (Slot::Common, Slot::Reserved));
        let mut state = slots.state.lock();
        for ticket in 1_000..1_000 + RENDERS_WAITING_MAX as u64 {
            let repository: Arc<str> = "slow".into();
            state.waiting.push(Wait { ticket, repository, speed: Speed::TimedOut, last_start: 0 });
        }
        drop(state);
        assert!(slots.take("slow").is_err());
    }
}
