//! Terminates an exchange that takes too long, receives too much or is interrupted.

use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar};
use std::time::{Duration, Instant};

use attest_common::basics::locked::Locked;

/// Interval between two checks, in milliseconds.
pub(super) const CHECK_INTERVAL_MS: u64 = 50;

/// Reason for which the watchdog terminated an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Termination {
    TimedOut,
    Interrupted,
    SizeExceeded,
}

/// A thread that checks the limits of an exchange until it is dropped.
#[derive(Debug)]
pub(super) struct Watchdog {
    state: Arc<WatchdogState>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct WatchdogState {
    stop: AtomicBool,
    termination: Locked<Option<Termination>>,
    growth_limit: Locked<Option<(PathBuf, u64)>>,
    child: Locked<Option<Child>>,
    is_done: Locked<bool>,
    wake: Condvar,
}

impl Watchdog {
    /// Terminates the exchange after `timeout` or when `interrupt` becomes true.
    pub(super) fn start(timeout: Duration, interrupt: &Arc<AtomicBool>) -> Self {
        let state = Arc::new(WatchdogState::default());
        let deadline = Instant::now() + timeout;
        let interrupt = Arc::clone(interrupt);
        let watched = Arc::clone(&state);
        let thread = std::thread::spawn(move || watched.run(deadline, &interrupt));
        Self { state, thread: Some(thread) }
    }

    /// Terminates the exchange when the files in `directory` exceed `bytes_max` bytes.
    pub(super) fn limit_growth(&self, directory: PathBuf, bytes_max: u64) {
        *self.state.growth_limit.lock() = Some((directory, bytes_max));
    }

    /// Returns the flag that is set on termination.
    pub(super) fn stop_flag(&self) -> &AtomicBool {
        &self.state.stop
    }

    /// Kills `child` on termination and when the exchange ends.
    pub(super) fn guard(&self, child: Child) {
        *self.state.child.lock() = Some(child);
        if self.state.stop.load(Ordering::Relaxed) {
            self.kill_child();
        }
    }

    pub(super) fn termination(&self) -> Option<Termination> {
        *self.state.termination.lock()
    }

    pub(super) fn kill_child(&self) {
        self.state.kill_child();
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        *self.state.is_done.lock() = true;
        self.state.wake.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.kill_child();
    }
}

impl WatchdogState {
    fn run(&self, deadline: Instant, interrupt: &AtomicBool) {
        let mut is_done = self.is_done.lock();
        while !*is_done {
            if let Some(termination) = self.exceeded_limit(deadline, interrupt) {
                *self.termination.lock() = Some(termination);
                self.stop.store(true, Ordering::Relaxed);
                self.kill_child();
                return;
            }
            let interval = Duration::from_millis(CHECK_INTERVAL_MS);
            is_done = match self.wake.wait_timeout(is_done, interval) {
                Ok((is_done, _)) => is_done,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    fn exceeded_limit(&self, deadline: Instant, interrupt: &AtomicBool) -> Option<Termination> {
        if interrupt.load(Ordering::Relaxed) {
            return Some(Termination::Interrupted);
        }
        if Instant::now() >= deadline {
            return Some(Termination::TimedOut);
        }
        let growth_limit = self.growth_limit.lock().clone();
        growth_limit
            .is_some_and(|(directory, bytes_max)| size_of_files(&directory) > bytes_max)
            .then_some(Termination::SizeExceeded)
    }

    fn kill_child(&self) {
        if let Some(mut child) = self.child.lock().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Returns the size of the files directly in a directory, in bytes.
pub(crate) fn size_of_files(directory: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return 0;
    };
    entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}
