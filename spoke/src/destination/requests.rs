//! The requests of a worker: what they end with.

use attest_common::documents::manifest::ObjectKey;
use futures::future::BoxFuture;
use serde_json::Value;

use crate::cluster::apply::{ApplyError, Deleted, Passed, Written};
use crate::cluster::error::ApiError;
use crate::ledger::error::LedgerError;

/// A request on its way.
pub(super) type Job = BoxFuture<'static, Done>;

/// A request that came back.
pub(super) enum Done {
    Prepared(Result<bool, ApiError>),
    Checked(ObjectKey, Result<Passed, ApplyError>),
    Wrote {
        key: ObjectKey,
        heal: bool,
        result: Result<Written, ApplyError>,
    },
    Looked(ObjectKey, Result<Option<Value>, ApiError>),
    Recorded(Result<Recorded, LedgerError>),
    /// A plan is refused durably; whether something else is to be brought back to work.
    TurnedBack(Result<bool, LedgerError>),
    /// What was made for a plan that is refused has gone, or stays for a reason that is logged.
    Withdrawn,
    Deleted(ObjectKey, Result<Deleted, ApplyError>),
}

/// What became of a write to the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recorded {
    /// The record says what this worker knows.
    Done,
    /// It holds something else than what this worker runs: another process, or a newer order.
    Superseded,
}
