//! Current state of the fleet in memory: sessions, and the newest directive and report of each destination.
//!
//! Durable state here is a copy of the store, which is written first. A wake-up carries no data: the woken task reads
//! the state again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use attest_common::basics::backoff::Backoff;
use attest_common::basics::ids::{ClusterId, DestinationKey, Digest, Name, Timestamp};
use attest_common::basics::locked::Locked;
use attest_common::basics::reason::Reason;
use attest_common::session::report::Phase;
use attest_runtime::clock::now;
use tokio::sync::Notify;

use super::holders::{Holders, Holding};
use super::position::{ReportedPolicy, SpokePosition, is_overtaken};
use crate::core::store::StoreError;
use crate::core::store::records::{
    CompressedBlob, LedgerEntry, PolicyRecord, Records, ReportRecord,
};

/// Largest size of the cache of compressed blobs, in bytes.
pub(crate) const BLOB_CACHE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Longest time that a refusal is not shown after its directive was sent again: a spoke that is rate limited may not
/// report it again.
const RESENT_WAIT_MAX: Duration = Duration::from_secs(30);

/// Delay before a failed push is repeated on the same connection.
pub(crate) const PUSH_RETRY: Backoff =
    Backoff::new(Duration::from_millis(250), Duration::from_secs(60));

/// A connected spoke.
#[derive(Debug)]
struct Session {
    number: u64,
    connection: quinn::Connection,
    wake: Arc<Notify>,
    /// Positions that the spoke durably holds.
    held: BTreeMap<DestinationKey, SpokePosition>,
    /// Directives sent on this connection.
    pushed: BTreeMap<DestinationKey, Pushed>,
    /// Consecutive failed pushes.
    failures: BTreeMap<DestinationKey, u32>,
    /// Blobs sent on this connection, or known to be at the spoke.
    has: BTreeSet<Digest>,
    /// Destinations whose held blobs are in `has`.
    accounted: BTreeSet<DestinationKey>,
    /// Destinations that were reported on in this session.
    reported: BTreeSet<DestinationKey>,
}

#[derive(Clone, Copy, Debug)]
struct Pushed {
    sequence: u64,
    at: Instant,
}

#[derive(Debug, Default)]
struct State {
    sessions: BTreeMap<ClusterId, Session>,
    /// Time of the last contact with clusters that are not connected.
    last_contact: BTreeMap<ClusterId, Timestamp>,
    heads: BTreeMap<ClusterId, BTreeMap<DestinationKey, Arc<LedgerEntry>>>,
    /// Destinations with heads, by application.
    places: BTreeMap<Name, BTreeSet<DestinationKey>>,
    reports: BTreeMap<DestinationKey, Arc<ReportRecord>>,
    /// Destinations whose newest directive was sent again and that have not reported since.
    resent: BTreeMap<DestinationKey, Instant>,
    policies: BTreeMap<ClusterId, Arc<ReportedPolicy>>,
    /// Processes that connected with the newest certificate of a cluster.
    holders: BTreeMap<ClusterId, Holders>,
    session_number: u64,
}

impl State {
    fn put_head(
        &mut self,
        destination: DestinationKey,
        entry: LedgerEntry,
    ) -> Option<Arc<LedgerEntry>> {
        let places = self.places.entry(destination.application.clone()).or_default();
        places.insert(destination.clone());
        let heads = self.heads.entry(destination.cluster.clone()).or_default();
        heads.insert(destination, Arc::new(entry))
    }
}

#[derive(Debug, Default)]
struct Blobs {
    kept: BTreeMap<Digest, (u64, CompressedBlob)>,
    bytes: usize,
    turn: u64,
}

/// Current state of the fleet.
#[derive(Debug, Default)]
pub struct Fleet {
    state: Locked<State>,
    blobs: Locked<Blobs>,
}

/// A new session.
#[derive(Debug)]
pub struct Connected {
    pub number: u64,
    /// Notified when there is something to send.
    pub wake: Arc<Notify>,
    /// The connection of the same cluster that this session replaces.
    pub replaced: Option<quinn::Connection>,
}

/// A directive that is yet to be sent in a session.
#[derive(Clone, Debug)]
pub struct Pending {
    pub destination: DestinationKey,
    pub head: Arc<LedgerEntry>,
    /// Sequence that the spoke holds and whose blobs are not accounted for, 0 for none.
    pub held_sequence: u64,
}

/// Returns the time since `then`, zero for a time in the future.
fn age(then: &Timestamp) -> Duration {
    let age_ms = now().as_millisecond().saturating_sub(then.as_millisecond());
    Duration::from_millis(u64::try_from(age_ms).unwrap_or(0))
}

impl Fleet {
    /// Loads the state of the fleet from the store, without sessions.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn load(records: &Records) -> Result<Self, StoreError> {
        let mut state = State::default();
        for (destination, entry) in records.heads("")? {
            state.put_head(destination, entry);
        }
        for report in records.all::<ReportRecord>()? {
            let contact = state.last_contact.entry(report.cluster.clone()).or_default();
            *contact = report.received_at.max(*contact);
            state.reports.insert(report.destination(), Arc::new(report));
        }
        for record in records.all::<PolicyRecord>()? {
            // The spoke reports its policy again when it connects.
            if let Ok(policy) = record.spec.load() {
                let reported =
                    ReportedPolicy { spec: record.spec, policy, features: record.features };
                state.policies.insert(record.cluster, Arc::new(reported));
            }
        }
        Ok(Self { state: Locked::new(state), blobs: Locked::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Registers the session of a spoke after its greeting. The caller closes the connection that it replaces.
    pub fn connect(
        &self,
        cluster: &ClusterId,
        connection: quinn::Connection,
        held: BTreeMap<DestinationKey, SpokePosition>,
    ) -> Connected {
        let mut state = self.state();
        state.session_number += 1;
        let number = state.session_number;
        let wake = Arc::new(Notify::new());
        let session = Session {
            number,
            connection,
            wake: wake.clone(),
            held,
            pushed: BTreeMap::new(),
            failures: BTreeMap::new(),
            has: BTreeSet::new(),
            accounted: BTreeSet::new(),
            reported: BTreeSet::new(),
        };
        let replaced = state.sessions.insert(cluster.clone(), session);
        Connected { number, wake, replaced: replaced.map(|previous| previous.connection) }
    }

    /// Records the process that opens a session, and returns whether the sessions of the certificate with this serial
    /// number prove that it was copied.
    pub(crate) fn is_copied(&self, cluster: &ClusterId, serial: &str, process: &[u8]) -> bool {
        let mut state = self.state();
        let holders = state.holders.entry(cluster.clone()).or_default();
        holders.open(serial, process) == Holding::Copied
    }

    /// Removes a session, unless a newer one has replaced it.
    pub(crate) fn disconnect(&self, cluster: &ClusterId, number: u64) {
        let mut state = self.state();
        if state.sessions.get(cluster).is_some_and(|session| session.number == number) {
            state.sessions.remove(cluster);
            state.last_contact.insert(cluster.clone(), now());
        }
    }

    /// Closes the connection of a cluster, if there is one, with a reason for the spoke.
    pub fn close(&self, cluster: &ClusterId, code: quinn::VarInt, reason: Reason) {
        if let Some(session) = self.state().sessions.get(cluster) {
            session.connection.close(code, reason.as_str().as_bytes());
        }
    }

    /// Forgets what a cluster reported that is no longer registered. Its ledgers continue if it joins again.
    pub fn forget(&self, cluster: &ClusterId) {
        let mut state = self.state();
        state.policies.remove(cluster);
        state.holders.remove(cluster);
        state.last_contact.remove(cluster);
        state.reports.retain(|destination, _| destination.cluster != *cluster);
        state.resent.retain(|destination, _| destination.cluster != *cluster);
    }

    /// Returns whether a spoke is connected, and the time since its last contact. It is zero while connected. After a
    /// start of the hub, the last stored report counts.
    pub(crate) fn presence(&self, cluster: &ClusterId) -> (bool, Option<Duration>) {
        let state = self.state();
        if state.sessions.contains_key(cluster) {
            return (true, Some(Duration::ZERO));
        }
        (false, state.last_contact.get(cluster).map(age))
    }

    /// Returns the number of connected spokes.
    pub fn connected(&self) -> usize {
        self.state().sessions.len()
    }

    /// Returns the position of a spoke at a destination; `None` while it is not connected.
    pub fn position(&self, destination: &DestinationKey) -> Option<SpokePosition> {
        let state = self.state();
        let session = state.sessions.get(&destination.cluster)?;
        let none = SpokePosition { epoch: 0, sequence: 0, digest: None, generation: 0, attempt: 0 };
        Some(session.held.get(destination).copied().unwrap_or(none))
    }

    /// Returns the trust policy that a cluster reported.
    pub fn reported_policy(&self, cluster: &ClusterId) -> Option<Arc<ReportedPolicy>> {
        self.state().policies.get(cluster).cloned()
    }

    /// Returns whether the connected spoke of a cluster announces a feature.
    pub(crate) fn announces(&self, cluster: &ClusterId, feature: &str) -> bool {
        let state = self.state();
        state.sessions.contains_key(cluster)
            && state.policies.get(cluster).is_some_and(|policy| policy.features.contains(feature))
    }

    /// Sets the trust policy that a cluster reported.
    pub(crate) fn set_reported_policy(&self, cluster: &ClusterId, policy: ReportedPolicy) {
        self.state().policies.insert(cluster.clone(), Arc::new(policy));
    }

    /// Returns the newest ledger entry of a destination.
    pub fn head(&self, destination: &DestinationKey) -> Option<Arc<LedgerEntry>> {
        self.state().heads.get(&destination.cluster)?.get(destination).cloned()
    }

    /// Returns the newest ledger entries of a cluster.
    pub fn heads_of(&self, cluster: &ClusterId) -> Vec<(DestinationKey, Arc<LedgerEntry>)> {
        let state = self.state();
        let heads = state.heads.get(cluster).into_iter().flatten();
        heads.map(|(destination, head)| (destination.clone(), head.clone())).collect()
    }

    /// Returns the newest ledger entries of an application.
    pub(crate) fn heads_for(&self, application: &Name) -> Vec<(DestinationKey, Arc<LedgerEntry>)> {
        let state = self.state();
        let places = state.places.get(application).into_iter().flatten();
        places
            .filter_map(|place| Some((place, state.heads.get(&place.cluster)?.get(place)?)))
            .map(|(destination, head)| (destination.clone(), head.clone()))
            .collect()
    }

    /// Applies committed entries and wakes their spokes. Returns whether a spoke has concurrently reported a position
    /// that overtakes an entry, which must then be issued again.
    #[must_use]
    pub(crate) fn set_heads(&self, entries: Vec<(DestinationKey, LedgerEntry)>) -> bool {
        let mut state = self.state();
        let mut overtaken = false;
        for (destination, entry) in entries {
            let cluster = destination.cluster.clone();
            let held = state.sessions.get(&cluster).and_then(|s| s.held.get(&destination));
            overtaken |= held.is_some_and(|held| is_overtaken(&entry, *held));
            let previous = state.put_head(destination.clone(), entry);
            if let Some(session) = state.sessions.get_mut(&cluster) {
                let held = session.held.get(&destination).map(|held| held.sequence);
                if let Some(previous) = previous.filter(|entry| held == Some(entry.sequence)) {
                    // The spoke has the blobs of the directive that it holds.
                    let blobs = previous.planned.iter().flat_map(|planned| &planned.blobs);
                    session.has.extend(blobs);
                    session.accounted.insert(destination);
                }
                session.wake.notify_one();
            }
        }
        overtaken
    }

    /// Returns the directives that are yet to be sent in session `number` of a cluster.
    pub fn pending(&self, cluster: &ClusterId, number: u64) -> Vec<Pending> {
        let state = self.state();
        let Some(session) = state.sessions.get(cluster).filter(|s| s.number == number) else {
            return Vec::new();
        };
        let heads = state.heads.get(cluster).into_iter().flatten();
        heads
            .filter_map(|(destination, head)| {
                let held = session.held.get(destination);
                let is_held = held.is_some_and(|held| {
                    // An overtaken directive is issued again before it is sent.
                    held.sequence == head.sequence || is_overtaken(head, *held)
                });
                let sent = session.pushed.get(destination).map(|pushed| pushed.sequence);
                (!is_held && sent != Some(head.sequence)).then(|| Pending {
                    destination: destination.clone(),
                    head: head.clone(),
                    held_sequence: held
                        .filter(|_| !session.accounted.contains(destination))
                        .map_or(0, |held| held.sequence),
                })
            })
            .collect()
    }

    /// Returns those of `blobs` that were not sent in session `number`.
    pub fn lacking(&self, number: u64, pending: &Pending, blobs: &[Digest]) -> Vec<Digest> {
        let state = self.state();
        let session = state.sessions.get(&pending.destination.cluster);
        let Some(session) = session.filter(|session| session.number == number) else {
            return Vec::new();
        };
        blobs.iter().filter(|digest| !session.has.contains(digest)).copied().collect()
    }

    /// Records the start of a push. Returns those of `blobs` to send with it.
    pub(crate) fn begin_push(
        &self,
        number: u64,
        pending: &Pending,
        blobs: &[Digest],
    ) -> Vec<Digest> {
        let mut state = self.state();
        let session = state.sessions.get_mut(&pending.destination.cluster);
        let Some(session) = session.filter(|session| session.number == number) else {
            return Vec::new();
        };
        let pushed = Pushed { sequence: pending.head.sequence, at: Instant::now() };
        session.pushed.insert(pending.destination.clone(), pushed);
        blobs.iter().filter(|digest| session.has.insert(**digest)).copied().collect()
    }

    /// Records the success of a push of session `number`.
    pub(crate) fn push_arrived(&self, number: u64, pending: &Pending) {
        let mut state = self.state();
        let session = state.sessions.get_mut(&pending.destination.cluster);
        if let Some(session) = session.filter(|session| session.number == number) {
            session.failures.remove(&pending.destination);
        }
    }

    /// Records the failure of a push of session `number`: its blobs do not count as sent. Returns the delay before
    /// [`Fleet::push_may_be_repeated`]; `None` when a newer session has replaced this one.
    pub(crate) fn push_failed(
        &self,
        number: u64,
        pending: &Pending,
        sent: &[Digest],
    ) -> Option<Duration> {
        let mut state = self.state();
        let session = state.sessions.get_mut(&pending.destination.cluster);
        let session = session.filter(|session| session.number == number)?;
        sent.iter().for_each(|digest| {
            session.has.remove(digest);
        });
        let failures = session.failures.entry(pending.destination.clone()).or_insert(0);
        let wait = PUSH_RETRY.delay_max(*failures);
        *failures = failures.saturating_add(1);
        Some(wait)
    }

    /// Ends the delay after a failed push: its directive is pending again.
    pub(crate) fn push_may_be_repeated(&self, number: u64, pending: &Pending) {
        let mut state = self.state();
        let session = state.sessions.get_mut(&pending.destination.cluster);
        if let Some(session) = session.filter(|session| session.number == number) {
            let sent = session.pushed.get(&pending.destination);
            if sent.is_some_and(|pushed| pushed.sequence == pending.head.sequence) {
                session.pushed.remove(&pending.destination);
            }
            session.wake.notify_one();
        }
    }

    /// Records that the spoke has these blobs of a destination.
    pub(crate) fn spoke_has(
        &self,
        destination: &DestinationKey,
        blobs: impl IntoIterator<Item = Digest>,
    ) {
        if let Some(session) = self.state().sessions.get_mut(&destination.cluster) {
            session.has.extend(blobs);
            session.accounted.insert(destination.clone());
        }
    }

    /// Records that the spoke lacks these blobs; the destination's directive is sent again with them.
    pub(crate) fn spoke_lacks(&self, destination: &DestinationKey, blobs: &[Digest]) {
        if let Some(session) = self.state().sessions.get_mut(&destination.cluster) {
            blobs.iter().for_each(|digest| {
                session.has.remove(digest);
            });
            session.pushed.remove(destination);
            // A spoke that lacks blobs of a directive does not hold it, whatever it reported.
            session.held.remove(destination);
            session.wake.notify_one();
        }
    }

    /// Sends the newest directive of a destination again.
    pub(crate) fn push_again(&self, destination: &DestinationKey) {
        let mut state = self.state();
        if let Some(session) = state.sessions.get_mut(&destination.cluster) {
            session.pushed.remove(destination);
            session.held.remove(destination);
            session.wake.notify_one();
            state.resent.insert(destination.clone(), Instant::now());
        }
    }

    /// Returns whether the newest directive of a destination was sent again within [`RESENT_WAIT_MAX`], and no report
    /// has arrived since.
    pub(crate) fn is_resent(&self, destination: &DestinationKey) -> bool {
        let resent = self.state().resent.get(destination).copied();
        resent.is_some_and(|at| at.elapsed() < RESENT_WAIT_MAX)
    }

    /// Returns the start of the push of the directive with this sequence.
    pub(crate) fn pushed_at(&self, destination: &DestinationKey, sequence: u64) -> Option<Instant> {
        let state = self.state();
        let session = state.sessions.get(&destination.cluster)?;
        let pushed = session.pushed.get(destination)?;
        (pushed.sequence == sequence).then_some(pushed.at)
    }

    /// Returns the newest report of a destination.
    pub fn report(&self, destination: &DestinationKey) -> Option<Arc<ReportRecord>> {
        self.state().reports.get(destination).cloned()
    }

    /// Applies a durable report.
    pub(crate) fn set_report(&self, record: ReportRecord) {
        let mut state = self.state();
        let destination = record.destination();
        state.resent.remove(&destination);
        let report = &record.report;
        // A position beyond the ledger counts only in the greeting.
        let head =
            state.heads.get(&record.cluster).and_then(|heads| heads.get(&destination).cloned());
        if report.phase != Phase::Refused
            && let (Some(head), Some(sequence)) = (head, report.sequence)
            && sequence <= head.sequence
            && let Some(session) = state.sessions.get_mut(&record.cluster)
        {
            let held = session.held.get(&destination).map_or(0, |held| held.sequence);
            if sequence > held {
                let epoch = report.epoch.unwrap_or(0).min(head.epoch);
                let rollout = report.rollout.as_ref();
                let position = SpokePosition {
                    epoch,
                    sequence,
                    digest: None,
                    generation: rollout.map_or(0, |rollout| rollout.generation),
                    attempt: rollout.map_or(0, |rollout| rollout.attempt),
                };
                session.held.insert(destination.clone(), position);
            }
        }
        if let Some(session) = state.sessions.get_mut(&record.cluster) {
            session.reported.insert(destination.clone());
        }
        state.reports.insert(destination, Arc::new(record));
    }

    /// Returns whether the newest report of a destination arrived in the session that lasts.
    pub(crate) fn is_fresh(&self, destination: &DestinationKey) -> bool {
        let state = self.state();
        let session = state.sessions.get(&destination.cluster);
        session.is_some_and(|session| session.reported.contains(destination))
    }

    /// Forgets a destination that no longer belongs to an application.
    pub(crate) fn forget_destination(&self, destination: &DestinationKey) {
        let mut state = self.state();
        state.reports.remove(destination);
        state.resent.remove(destination);
        if let Some(heads) = state.heads.get_mut(&destination.cluster) {
            heads.remove(destination);
            if heads.is_empty() {
                state.heads.remove(&destination.cluster);
            }
        }
        if let Some(places) = state.places.get_mut(&destination.application) {
            places.remove(destination);
            if places.is_empty() {
                state.places.remove(&destination.application);
            }
        }
    }

    /// A blob ready to be sent; from the store when memory does not have it.
    ///
    /// # Errors
    /// When the store cannot be read. Blocks.
    pub fn blob(
        &self,
        records: &Records,
        digest: &Digest,
    ) -> Result<Option<CompressedBlob>, StoreError> {
        if let Some(kept) = self.kept_blob(digest) {
            return Ok(Some(kept));
        }
        let found = records.blob(digest)?;
        if let Some(blob) = &found {
            self.keep_blob(blob.clone());
        }
        Ok(found)
    }

    /// A blob that memory has.
    pub(crate) fn kept_blob(&self, digest: &Digest) -> Option<CompressedBlob> {
        let mut blobs = self.blobs.lock();
        blobs.turn += 1;
        let turn = blobs.turn;
        let (used, blob) = blobs.kept.get_mut(digest)?;
        *used = turn;
        Some(blob.clone())
    }

    /// Keeps a blob in memory, in place of the one that was not used for longest.
    pub(crate) fn keep_blob(&self, blob: CompressedBlob) {
        let mut blobs = self.blobs.lock();
        if blob.data.len() > BLOB_CACHE_BYTES_MAX / 4 {
            return;
        }
        blobs.turn += 1;
        let turn = blobs.turn;
        blobs.bytes += blob.data.len();
        if let Some((_, replaced)) = blobs.kept.insert(blob.digest, (turn, blob)) {
            blobs.bytes -= replaced.data.len();
        }
        while blobs.bytes > BLOB_CACHE_BYTES_MAX {
            let oldest = blobs.kept.iter().min_by_key(|(_, (used, _))| *used);
            let Some(oldest) = oldest.map(|(digest, _)| *digest) else { break };
            if let Some((_, gone)) = blobs.kept.remove(&oldest) {
                blobs.bytes -= gone.data.len();
            }
        }
    }
}
