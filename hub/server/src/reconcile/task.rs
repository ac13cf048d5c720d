//! Request for one reconcile pass.

/// Polling of the repository in a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Poll {
    No,
    /// The interval is over, or the hub has just started: an answer given to another application a moment ago will do.
    Due,
    Now,
}

/// A request for one reconcile pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task {
    /// False when only the status of the application is computed again.
    pub plan: bool,
    pub poll: Poll,
    /// True when an operator asked for the newest release to be deployed now.
    pub asked_for: bool,
}
