//! Everything that a worker takes in. The transition on each is `work::next`.

use std::sync::Arc;
use std::time::Instant;

use attest_common::basics::ids::Timestamp;
use attest_common::documents::manifest::ObjectKey;
use attest_common::objects::kinds::Kinds;
use attest_common::record::Held;
use attest_common::session::report::{Refusal, Timings};
use attest_common::verify::{Admission, ObjectSet, Removal, Verified};

use super::mailbox::Origin;
use crate::cluster::apply::{ApplyError, Deleted, DryRunPermit, Ownership, Written};
use crate::cluster::error::ApiError;
use crate::cluster::watch::{News, Observation};
use crate::ledger::error::LedgerError;
use crate::ledger::records::Entry;

/// The time of a transition: a clock to measure with and one to show.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) now: Instant,
    pub(super) wall: Timestamp,
}

/// Something that has arrived.
#[derive(Debug)]
pub(super) enum Event {
    /// An order to bring the cluster to an admission.
    Run(Box<RunOrder>),
    /// An order to take the application away.
    Remove(Box<RemoveOrder>),
    /// An order to change nothing, for this reason.
    Freeze { reason: String, message: String },
    /// A document for this destination was refused.
    Refused(Refusal),
    /// The hub asks for the report again.
    RepeatReport,
    /// What watches have shown.
    Observed(News),
    /// A request ended.
    Finished(Box<Outcome>),
    /// Nothing else has arrived: what is due is begun and reported. `position` is epoch and sequence of
    /// the record.
    Tick { position: Option<(u64, u64)> },
}

/// An admission to carry out, and what is known when the order arrives.
#[derive(Debug)]
pub(super) struct RunOrder {
    pub(super) admission: Arc<Verified<Admission>>,
    pub(super) objects: Arc<Verified<ObjectSet>>,
    pub(super) held: Held,
    pub(super) origin: Origin,
    pub(super) timings: Timings,
    /// What the dry runs ask that are on their way already.
    pub(super) asked: Vec<(ObjectKey, Ownership)>,
    pub(super) facts: Facts,
}

/// A removal to carry out, and what is known when the order arrives.
#[derive(Debug)]
pub(super) struct RemoveOrder {
    pub(super) removal: Verified<Removal>,
    pub(super) facts: Facts,
}

/// What an order is checked against and begins with.
#[derive(Debug)]
pub(super) struct Facts {
    /// The record of the destination as it is now.
    pub(super) entry: Option<Entry>,
    /// Kinds that the API server serves, as far as it was asked.
    pub(super) kinds: Kinds,
}

/// What a request ended with.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Namespace, account and bindings exist; `true` when a binding was made.
    Prepared(Result<bool, ApiError>),
    Checked(ObjectKey, Result<DryRunPermit, ApplyError>),
    Wrote {
        key: ObjectKey,
        heal: bool,
        result: Result<Written, ApplyError>,
    },
    /// An object was read; `None` when there is none.
    Looked(ObjectKey, Result<Option<Observation>, ApiError>),
    Deleted(ObjectKey, Result<Deleted, ApplyError>),
    Recorded(Result<Recorded, LedgerError>),
    /// A plan is refused durably; `true` when the record holds something that is to be loaded.
    Reverted(Result<bool, LedgerError>),
    /// The rights of a plan that is refused are gone, or stay for a reason that is logged.
    Withdrawn,
}

/// Result of a write to the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recorded {
    /// The record holds what this worker knows.
    Done,
    /// It holds something else than what this worker carries out: another process, or a newer order.
    Superseded,
}
