//! Polling for a state, with a deadline. Each change of the state is printed once.

use std::time::{Duration, Instant};

use anyhow::anyhow;

use crate::client::timeout_error;
use crate::human::duration;
use crate::printer::Printer;

/// The answer to one poll.
pub(crate) enum Poll<T> {
    Ready(T),
    /// The current state, printed when it changes. An empty state is not printed.
    Pending(String),
}

/// A wait that began when it was created.
#[derive(Debug)]
pub(crate) struct Wait<'a> {
    printer: &'a Printer,
    started: Instant,
    limit: Duration,
    every: Duration,
}

impl<'a> Wait<'a> {
    /// A wait of at most `seconds` with one poll per interval `every`.
    pub(crate) fn new(seconds: u64, every: Duration, printer: &'a Printer) -> Self {
        Self { printer, started: Instant::now(), limit: Duration::from_secs(seconds), every }
    }

    /// The longest duration, in seconds.
    pub(crate) fn seconds(&self) -> u64 {
        self.limit.as_secs()
    }

    /// The end of the wait.
    pub(crate) fn deadline(&self) -> Instant {
        self.started + self.limit
    }

    /// Time since the beginning, as text.
    pub(crate) fn elapsed(&self) -> String {
        duration(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    fn is_over(&self) -> bool {
        Instant::now() + self.every >= self.deadline()
    }

    /// Polls until the answer is ready. Each printed state is preceded by `[stage]`, unless it is empty.
    ///
    /// # Errors
    /// The error of `poll`; at the deadline, the message that `timed_out` returns for the last state.
    pub(crate) async fn until<T>(
        &self,
        stage: &str,
        poll: impl AsyncFn() -> anyhow::Result<Poll<T>>,
        timed_out: impl Fn(&str) -> String,
    ) -> anyhow::Result<T> {
        let mut last = String::new();
        loop {
            match poll().await {
                Ok(Poll::Ready(value)) => return Ok(value),
                Ok(Poll::Pending(state)) => {
                    if state != last && !state.is_empty() {
                        self.report(stage, &state);
                        last = state;
                    }
                }
                Err(error) if self.is_over() => return Err(timeout_error(error, timed_out(&last))),
                Err(error) => return Err(error),
            }
            if self.is_over() {
                return Err(anyhow!(timed_out(&last)));
            }
            tokio::time::sleep(self.every).await;
        }
    }

    fn report(&self, stage: &str, state: &str) {
        if stage.is_empty() {
            self.printer.note(state);
        } else {
            self.printer.note(&format!("[{stage}] {state} ({})", self.elapsed()));
        }
    }
}
