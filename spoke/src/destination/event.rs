//! Events of a worker. `work::next` is the transition on each.

use std::sync::Arc;
use std::time::Instant;

use attest_common::basics::ids::Timestamp;
use attest_common::basics::reason::Reason;
use attest_common::documents::manifest::ObjectKey;
use attest_common::objects::kinds::Kinds;
use attest_common::record::Held;
use attest_common::record::custody::StoredSoak;
use attest_common::record::rollout::RolloutView;
use attest_common::session::report::{Refusal, Timings};
use attest_common::verify::{Admission, ObjectSet, Removal, Verified};

use super::handover::Claims;
use super::mailbox::Origin;
use crate::cluster::apply::{ApplyError, Deleted, DryRunPermit, Ownership, Written};
use crate::cluster::error::ApiError;
use crate::cluster::watch::{News, Observation};
use crate::ledger::error::LedgerError;
use crate::ledger::records::Entry;

/// The time of a transition, by the monotonic clock and by the wall clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) now: Instant,
    pub(super) wall: Timestamp,
}

/// An event.
#[derive(Debug)]
pub(super) enum Event {
    /// An order to carry out an admission.
    Run(Box<RunOrder>),
    /// An order to remove the application.
    Remove(Box<RemoveOrder>),
    /// An order to change nothing, for this reason.
    Freeze { reason: Reason, message: String },
    /// A document for this destination was refused.
    Refused(Refusal),
    /// The hub asks for the report again.
    RepeatReport,
    /// Observations of watches.
    Observed(News),
    /// A request ended.
    Finished(Box<Outcome>),
    /// All events that have arrived are processed: due requests are begun, and a report is made. `position`
    /// is epoch and sequence of the record, `claims` names objects of this destination that others claim, and
    /// `rollout` is that of the record.
    Tick { position: Option<(u64, u64)>, claims: Claims, rollout: Option<RolloutView> },
}

/// An admission to carry out, with the facts at the arrival of the order.
#[derive(Debug)]
pub(super) struct RunOrder {
    pub(super) admission: Arc<Verified<Admission>>,
    pub(super) objects: Arc<Verified<ObjectSet>>,
    pub(super) held: Held,
    pub(super) origin: Origin,
    /// Every object that differs is written once, also without self-heal.
    pub(super) repair: bool,
    pub(super) timings: Timings,
    /// Soak before a restart.
    pub(super) soak: Option<StoredSoak>,
    /// Objects and ownership of the speculative dry runs in flight.
    pub(super) asked: Vec<(ObjectKey, Ownership)>,
    pub(super) facts: Facts,
}

/// A removal to carry out, with the facts at the arrival of the order.
#[derive(Debug)]
pub(super) struct RemoveOrder {
    pub(super) removal: Verified<Removal>,
    pub(super) facts: Facts,
}

/// Facts against which an order is checked, and with which it begins.
#[derive(Debug)]
pub(super) struct Facts {
    /// The current record of the destination.
    pub(super) entry: Option<Entry>,
    /// Kinds that the API server serves, as far as known.
    pub(super) kinds: Kinds,
}

/// Result of a request.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Namespace, account and bindings exist; `true` if a binding was created.
    Prepared(Result<bool, ApiError>),
    Checked(ObjectKey, Result<DryRunPermit, ApplyError>),
    Wrote {
        key: ObjectKey,
        heal: bool,
        result: Result<Written, ApplyError>,
    },
    /// An object was read; `None` if it does not exist.
    Looked(ObjectKey, Result<Option<Observation>, ApiError>),
    Deleted(ObjectKey, Result<Deleted, ApplyError>),
    Recorded(Result<Recorded, LedgerError>),
    /// The refusal of a plan is recorded; `true` if the record holds a plan or removal to load.
    Reverted(Result<bool, LedgerError>),
    /// The record holds the newest good plan again, or another order.
    Returned(Result<(), LedgerError>),
    /// The soak is stored, or was not stored for a reason that is logged.
    SoakStored,
    /// The rights for a refused plan are deleted, or stay for a reason that is logged.
    Withdrawn,
}

/// Result of a write to the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recorded {
    /// The record is up to date.
    Done,
    /// The record holds another order: of another process, or a newer one.
    Superseded,
}
