//! Actions of a worker: `work::next` decides them, `worker` performs them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use attest_common::basics::ids::Digest;
use attest_common::basics::reason::ReportedReason;
use attest_common::documents::manifest::ObjectKey;
use attest_common::objects::absent::EmptyFields;
use attest_common::record::Held;
use attest_common::record::custody::StoredSoak;
use attest_common::record::rollout::{Abort, AfterFailure};
use attest_common::session::report::{Refusal, Report};

use super::objects::IN_FLIGHT_MAX;
use super::recording::Update;
use crate::cluster::account::Account;
use crate::cluster::apply::{Authority, Force, Ownership, Target};
use crate::cluster::watch::{Followed, Scope};

/// An action to perform.
#[derive(Debug)]
pub(super) enum Command {
    /// Drops every request in flight. Each may have been carried out.
    CancelRequests,
    /// Begins a request, which ends with an `Outcome` unless it is dropped.
    Request(Request),
    /// Watches exactly these objects; scopes in `relist` are listed again.
    Follow {
        objects: BTreeMap<ObjectKey, Followed>,
        relist: BTreeSet<Scope>,
        /// Scopes of autoscalers to follow as a whole.
        autoscalers: BTreeSet<Scope>,
    },
    /// Follows the newest pods of the Deployments of exactly these namespaces.
    FollowPods(BTreeSet<String>),
    /// Asks the agent to load what is recorded for this destination.
    Reload,
    /// Asks the agent to judge the refused plan of this destination again.
    Reevaluate,
    /// Offers an object that is no longer rendered to the destination that claims it.
    Offer {
        key: ObjectKey,
        uid: String,
    },
    /// Deletes stored content that no record names.
    TidyContent,
    /// Adds to the list of refusals of the cluster.
    NoteRefusal(Refusal),
    Report {
        report: Arc<Report>,
        phase: PhaseChange,
    },
    /// Counts and logs.
    Notice(Notice),
    /// Ticks at this time if nothing arrives before.
    WakeAt(Instant),
}

/// Comparison of a report's phase and reason with the previous report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PhaseChange {
    Same,
    Changed,
}

/// A request to the API server, or to the ledger.
#[derive(Debug)]
pub(super) enum Request {
    /// Creates namespace, account and bindings.
    Prepare(Account),
    /// Waits for the dry run of this object that was begun before the order arrived.
    AwaitDryRun(ObjectKey),
    DryRun {
        key: ObjectKey,
        target: Target,
        ownership: Ownership,
    },
    Write {
        key: ObjectKey,
        target: Target,
        force: Force,
        /// Fields that kubectl owns become ours first.
        takeover: bool,
        heal: bool,
    },
    /// Reads the object at a path.
    Look {
        key: ObjectKey,
        path: String,
        empty: Arc<EmptyFields>,
    },
    Delete(Box<Deletion>),
    /// Records the progress of an admission.
    Record(Box<Update>),
    /// Empties the inventory of a removal that has deleted everything.
    RecordRemoved,
    /// Records that a plan is refused of which nothing was written.
    Revert(Revert),
    /// Records that a plan failed and that the newest good plan is held again.
    Return(Box<Return>),
    /// Stores the soak of the plan.
    StoreSoak(StoredSoak),
    /// Deletes account and bindings that were created for a plan of which nothing was written.
    Withdraw(Account),
}

/// A request to delete an object of an inventory.
#[derive(Clone, Debug)]
pub(super) struct Deletion {
    pub(super) key: ObjectKey,
    pub(super) version: String,
    /// Absent if the kind is not known.
    pub(super) plural: Option<String>,
    /// Absent if it was never recorded.
    pub(super) uid: Option<String>,
    pub(super) by: By,
}

/// The account that deletes an object, and the proof that it may be deleted.
#[derive(Clone, Debug)]
pub(super) struct By {
    pub(super) authority: Authority,
    pub(super) account: Account,
}

/// The order that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Revert {
    pub(super) held: Held,
    /// The object that belongs to another writer.
    pub(super) obstacle: ObjectKey,
    /// SHA-256 of the directive's payload.
    pub(super) directive: Digest,
    pub(super) inventory: AddedInventory,
}

/// The plan that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Return {
    pub(super) held: Held,
    pub(super) abort: Abort,
}

/// Treatment of the objects that entered the inventory with a refused plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AddedInventory {
    /// They leave it: this process admitted the plan and wrote none of them.
    Drop,
    /// They stay: another process may have written them.
    Keep,
}

/// An occurrence to count and log.
#[derive(Debug)]
pub(super) enum Notice {
    Drifted(ObjectKey),
    Applied,
    ApplyFailed,
    Healed {
        key: ObjectKey,
        took: Duration,
    },
    /// Every object of a plan is written.
    PlanApplied {
        took: Duration,
    },
    /// A plan failed, and the newest good one is applied again, if there is one and it may.
    PlanFailed {
        reason: ReportedReason,
        message: String,
        after: AfterFailure,
    },
    Deleted,
}

/// The commands of one transition, and the number of requests in flight.
#[derive(Debug)]
pub(super) struct Commands {
    pub(super) list: Vec<Command>,
    pub(super) in_flight: usize,
}

impl Commands {
    pub(super) fn new(in_flight: usize) -> Self {
        Self { list: Vec::new(), in_flight }
    }

    pub(super) fn push(&mut self, command: Command) {
        self.list.push(command);
    }

    pub(super) fn notice(&mut self, notice: Notice) {
        self.list.push(Command::Notice(notice));
    }

    pub(super) fn request(&mut self, request: Request) {
        self.in_flight += 1;
        self.list.push(Command::Request(request));
    }

    pub(super) fn cancel_requests(&mut self) {
        self.in_flight = 0;
        self.list.push(Command::CancelRequests);
    }

    /// Notes that a request has ended.
    pub(super) fn finished(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Returns how many more requests about objects may be begun.
    pub(super) fn room(&self) -> usize {
        IN_FLIGHT_MAX.saturating_sub(self.in_flight)
    }
}
