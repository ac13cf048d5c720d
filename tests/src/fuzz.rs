//! Fuzz targets: what reads bytes that others wrote, as functions of bytes that panic when a property does not hold.
//!
//! `tests/tests/fuzz.rs` replays the seeds and mutations of them; `attest-bench fuzz` runs each target for a time.

mod documents;
mod git;
mod mutation;
mod seeds;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

pub use mutation::Mutator;

/// A function that reads bytes, and the seeds from which inputs are made.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Name.
    pub name: &'static str,
    /// Reads one input.
    pub body: fn(&[u8]),
    /// Valid and odd inputs.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Mutations that a test replays; fewer where an input is a request to a server.
    pub replayed: usize,
}

/// Every target.
pub const TARGETS: [Target; 9] = [
    target("yaml", documents::yaml, seeds::yaml, 3_000),
    target("json", documents::json, seeds::json, 5_000),
    target("renderings", documents::rendering, seeds::rendering, 3_000),
    target("envelopes", documents::envelope, seeds::envelopes, 3_000),
    target("statements", documents::signed_document, seeds::statements, 3_000),
    target("frames", documents::frames, seeds::frames, 5_000),
    target("policies", documents::policy, seeds::policies, 300),
    target("git-files", git::files, seeds::git_files, 500),
    target("git-answers", git::answers, seeds::git_answers, 100),
];

const fn target(
    name: &'static str,
    body: fn(&[u8]),
    seeds: fn() -> Vec<Vec<u8>>,
    replayed: usize,
) -> Target {
    Target { name, body, seeds, replayed }
}

/// An input for which a target panics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The input.
    pub input: Vec<u8>,
    /// Message of the panic.
    pub message: String,
}

/// Result of running a target.
#[derive(Clone, Debug, Default)]
pub struct Campaign {
    /// Number of inputs.
    pub inputs: u64,
    /// Longest time that one input took.
    pub slowest: Duration,
    /// The first failure.
    pub failure: Option<Failure>,
}

impl Target {
    /// Runs one input.
    ///
    /// # Errors
    /// [`Failure`] when the target panics.
    pub fn run(&self, input: &[u8]) -> Result<(), Failure> {
        catch_unwind(AssertUnwindSafe(|| (self.body)(input))).map_err(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            let message = text.unwrap_or("a panic without a message").to_owned();
            Failure { input: input.to_vec(), message }
        })
    }

    /// Runs the seeds, and mutations of them until `is_enough` returns true or an input fails.
    pub fn campaign(&self, seed: u64, mut is_enough: impl FnMut(&Campaign) -> bool) -> Campaign {
        let mut corpus = (self.seeds)();
        let mut mutator = Mutator::new(seed);
        let mut campaign = Campaign::default();
        let mut first = corpus.clone().into_iter();
        loop {
            let (input, is_seed) = match first.next() {
                Some(input) => (input, true),
                None if is_enough(&campaign) => return campaign,
                None => (mutator.mutate(&corpus), false),
            };
            let started = Instant::now();
            let result = self.run(&input);
            campaign.inputs += 1;
            campaign.slowest = campaign.slowest.max(started.elapsed());
            if let Err(failure) = result {
                campaign.failure = Some(failure);
                return campaign;
            }
            if !is_seed && campaign.inputs.is_multiple_of(KEPT_EVERY) && corpus.len() < CORPUS_MAX {
                corpus.push(input);
            }
        }
    }
}

/// One in this many mutations is mutated further.
const KEPT_EVERY: u64 = 16;
/// Most inputs that are mutated further.
const CORPUS_MAX: usize = 5_000;
