//! Task of one reconcile pass.

use std::collections::BTreeSet;

use attest_common::basics::ids::DestinationKey;

/// Polling of the repository in a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Poll {
    No,
    /// The interval is over, or the hub has just started: an answer given to another application a moment ago will do.
    Due,
    Now,
}

/// Task of one reconcile pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Everything about the application is decided again.
    Whole(PassRequest),
    /// The repository is polled, and everything is decided again unless that found nothing new. The status of these
    /// destinations may have changed.
    Poll(BTreeSet<DestinationKey>),
    /// Only the status of these destinations is computed again.
    Status(BTreeSet<DestinationKey>),
}

/// A request for a whole pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PassRequest {
    pub poll: Poll,
    /// True when an operator asked for the newest release to be deployed now.
    pub asked_for: bool,
}
