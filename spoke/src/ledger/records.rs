//! Records of destinations, one Secret each. Stores; does not decide.
//!
//! Every change is a compare-and-swap by resourceVersion and is durable before it is acted upon.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use attest_common::basics::envelope::{self, DIRECTIVE_TYPE};
use attest_common::basics::ids::{Digest, Name};
use attest_common::basics::locked::Locked;
use attest_common::basics::rate::RateLimiter;
use attest_common::basics::text::error_chain;
use attest_common::documents::manifest::ObjectKey;
use attest_common::record::custody::{
    APPLICATION_ANNOTATION, CONFIRMED_KEY, Confirmed, DESTINATION_LABEL_VALUE, DIRECTIVE_KEY,
    NAMESPACE_ANNOTATION, RECORD_KEY, RECORD_LABEL, destination_secret,
};
use attest_common::record::{DestinationRecords, Record};
use attest_common::session::message::Seen;
use attest_runtime::failpoint;
use attest_runtime::frames::COMPRESSION_LEVEL;
use k8s_openapi::api::core::v1::Secret;
use kube::api::ObjectList;
use tokio::sync::Notify;

use super::error::LedgerError;
use super::index::{self, Index};
use crate::cluster::client::ApiServer;
use crate::metrics::Metrics;
use crate::rate_limits::WRITES;
use crate::trust::identity::Identity;
use crate::trust::secrets::{self, Swapped, collection, resource_version};

/// Most records per request of a list; each may be as large as a Secret.
pub const RECORDS_LISTED_MAX: usize = 32;
/// Most destinations of one cluster.
pub const DESTINATIONS_MAX: usize = 4_096;
/// Largest record as JSON, in bytes; a Secret holds 1 MiB in all.
pub const RECORD_BYTES_MAX: usize = 700 * 1024;
/// Bytes of a record that good plans and aborts may take in addition.
const ROLLOUT_BYTES_MAX: usize = 150 * 1024;
/// Largest list of confirmed pairs, compressed, in bytes; a larger one is not stored.
pub const CONFIRMED_BYTES_MAX: usize = 256 * 1024;
/// Largest Secret of a destination, in bytes; beyond it the confirmed pairs are omitted.
pub const SECRET_BYTES_MAX: usize = 900 * 1024;
/// Largest list of confirmed pairs, uncompressed, in bytes.
const CONFIRMED_JSON_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Most writes of a record that an order causes: at its admission, before the first write, after the last
/// write, and when it becomes the last good one.
const WRITES_OF_AN_ORDER: u64 = 4;
/// Bytes of a Secret of the spoke in addition to its data.
const SECRET_OVERHEAD_BYTES: u64 = 2 * 1024;
/// Characters of a UID.
const UID_LENGTH: usize = 36;
/// Most attempts of a write against newer versions.
const SWAP_ATTEMPTS: u32 = 3;
/// Delay before the count of records is written again.
const COUNT_RETRY: Duration = Duration::from_secs(1);

/// An application and a namespace.
pub type Key = (Name, Name);

/// Confirmed pairs of one destination. An optimization: without them every object is applied again.
pub type ConfirmedPairs = BTreeMap<ObjectKey, Confirmed>;

/// Everything that is stored about one destination.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub record: Record,
    /// Envelope of the directive that ordered `record.held`.
    pub directive: Vec<u8>,
    pub confirmed: ConfirmedPairs,
}

impl Entry {
    /// Returns the digest of the directive's payload; `None` if its envelope cannot be read.
    pub fn directive_digest(&self) -> Option<Digest> {
        envelope::peek(&self.directive, DIRECTIVE_TYPE).map(|(payload, _)| Digest::of(&payload))
    }
}

/// The records of this cluster.
#[derive(Clone, Debug)]
pub struct Ledger(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    api: ApiServer,
    metrics: Metrics,
    state: Locked<State>,
    /// Held while content is stored or deleted: never both concurrently.
    content_turn: tokio::sync::Mutex<()>,
    tidy: Notify,
    /// Budget of bytes that orders may write.
    writes: RateLimiter,
    /// Signals that a record was added.
    grown: Notify,
    /// Signals that a record was changed.
    changed: Notify,
    lost: Option<Lost>,
}

/// Number of missing records. They held the sequences and counters that must not be lowered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Destinations that were recorded.
    pub recorded: u64,
    /// Records that exist.
    pub found: u64,
}

impl Lost {
    /// Returns the loss if fewer records exist than `recorded`, the number in the identity.
    pub fn of(recorded: u64, found: u64) -> Option<Self> {
        (found < recorded).then_some(Self { recorded, found })
    }
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) records: DestinationRecords,
    /// The other data of each destination, by the same key.
    others: BTreeMap<Key, Other>,
    pub(super) content: Index,
}

#[derive(Clone, Debug, Default)]
struct Other {
    resource_version: String,
    directive: Vec<u8>,
    confirmed: ConfirmedPairs,
    /// Serializes writes of a destination.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Ledger {
    /// Reads every record of the cluster. `recorded` is their expected minimum.
    ///
    /// # Errors
    /// [`LedgerError`]; also if one record cannot be read, because its restrictions are then unknown.
    pub async fn load(
        api: ApiServer,
        metrics: Metrics,
        recorded: u64,
    ) -> Result<Self, LedgerError> {
        // Content first: content that another process stores concurrently is then named by a record below.
        let content = index::list(&api).await.map_err(LedgerError::Api)?;
        let mut state = State { content, ..State::default() };
        let mut next = String::new();
        loop {
            let selected = format!(
                "{}?labelSelector={RECORD_LABEL}%3D{DESTINATION_LABEL_VALUE}",
                collection()
            );
            let page = format!("{selected}&limit={RECORDS_LISTED_MAX}&continue={next}");
            let list: ObjectList<Secret> = api.read(&page).await.map_err(LedgerError::Api)?;
            for secret in &list.items {
                let (entry, version) = read(secret)?;
                put(&mut state, entry, version);
            }
            match list.metadata.continue_.filter(|more| !more.is_empty()) {
                // URL-safe Base64, which needs no escapes.
                Some(more) => next = more,
                None => break,
            }
        }
        let lost = Lost::of(recorded, state.records.len() as u64);
        metrics.state_lost.set(i64::from(lost.is_some()));
        let ledger = Self(Arc::new(Inner {
            api,
            metrics,
            lost,
            grown: Notify::new(),
            changed: Notify::new(),
            state: Locked::new(state),
            content_turn: tokio::sync::Mutex::default(),
            tidy: Notify::new(),
            writes: RateLimiter::new(WRITES),
        }));
        ledger.count();
        Ok(ledger)
    }

    /// Returns the records that were missing at the start. Then nothing is admitted and nothing is deleted
    /// until a user with rights in the cluster accepts the loss.
    pub fn lost(&self) -> Option<Lost> {
        self.0.lost
    }

    /// Stores the number of records in the identity, for as long as the process lives.
    pub async fn keep_count(self, mut written: u64) {
        loop {
            let count = self.with_records(|records| records.len() as u64);
            if count <= written {
                self.0.grown.notified().await;
                continue;
            }
            match Identity::note_destinations(&self.0.api, count).await {
                Ok(()) => written = count,
                Err(error) => {
                    tracing::warn!(
                        reason = error.reason().as_str(),
                        error = %error_chain(&error),
                        "Failed to store the number of recorded destinations; retrying"
                    );
                    tokio::time::sleep(COUNT_RETRY).await;
                }
            }
        }
    }

    /// Waits until a record was changed since the last call. For one caller.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Runs `look` on all records, without waiting for writes.
    pub fn with_records<T>(&self, look: impl FnOnce(&DestinationRecords) -> T) -> T {
        look(&self.state().records)
    }

    /// Returns the entry of one destination.
    pub fn entry(&self, key: &Key) -> Option<Entry> {
        let state = self.state();
        let record = state.records.get(key)?.clone();
        let other = state.others.get(key)?;
        Some(Entry {
            record,
            directive: other.directive.clone(),
            confirmed: other.confirmed.clone(),
        })
    }

    /// Returns the destinations, as reported to the hub.
    pub fn seen(&self) -> Vec<Seen> {
        let state = self.state();
        let records = state.records.values().map(|record| Seen {
            application: record.application.to_string(),
            namespace: record.namespace.to_string(),
            epoch: record.epoch,
            sequence: record.sequence,
            directive: record.directive.raw().to_vec(),
            generation: record.rollout.as_ref().map_or(0, |rollout| rollout.generation),
            attempt: record.rollout.as_ref().map_or(0, |rollout| rollout.attempt),
        });
        records.collect()
    }

    /// Changes a destination durably. `change` receives the stored entry, and is called again after a
    /// concurrent write; it returns `None` to leave the entry as it is.
    ///
    /// # Errors
    /// [`LedgerError`]; the change must not be acted upon then.
    pub async fn update(
        &self,
        key: &Key,
        change: impl Fn(Option<Entry>) -> Result<Option<Entry>, LedgerError>,
    ) -> Result<Option<Entry>, LedgerError> {
        let turn = self.turn(key);
        let _turn = turn.lock().await;
        let mut attempt = 1;
        loop {
            let Some(wanted) = change(self.entry(key))? else { return Ok(None) };
            match self.swap(key, &wanted).await {
                Ok(()) => return Ok(Some(wanted)),
                Err(LedgerError::Overtaken) if attempt < SWAP_ATTEMPTS => attempt += 1,
                Err(error) => return Err(error),
            }
        }
    }

    async fn swap(&self, key: &Key, wanted: &Entry) -> Result<(), LedgerError> {
        let version = self.version(key);
        let name = secret_name(key);
        let (body, bytes) = write(&name, wanted, &version)?;
        if self.is_ordered_anew(key, wanted) {
            self.0.writes.spend((bytes + SECRET_OVERHEAD_BYTES) * WRITES_OF_AN_ORDER);
        }
        let is_ours = |found: &Secret| {
            read(found).is_ok_and(|(entry, _)| {
                entry.record == wanted.record && entry.directive == wanted.directive
            })
        };
        failpoint::reach("before-record-write");
        let swapped = secrets::swap(&self.0.api, &body, is_ours).await;
        failpoint::reach("after-record-write");
        match swapped.map_err(LedgerError::Api)? {
            Swapped::Done(secret) => {
                put(&mut self.state(), wanted.clone(), resource_version(&secret));
                self.count();
                self.0.changed.notify_one();
                if version.is_empty() {
                    self.0.grown.notify_one();
                }
                Ok(())
            }
            Swapped::Overtaken(Some(secret)) => {
                let (entry, found_version) = read(&secret)?;
                put(&mut self.state(), entry, found_version);
                Err(LedgerError::Overtaken)
            }
            Swapped::Overtaken(None) => {
                // It was deleted. The state of this process is still valid and is written again.
                self.set_version(key, String::new());
                Err(LedgerError::Overtaken)
            }
        }
    }

    /// Returns the API server, for content.
    pub(crate) fn api(&self) -> &ApiServer {
        &self.0.api
    }

    pub(super) async fn content_turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.0.content_turn.lock().await
    }

    /// Returns the budget of bytes that orders may write. It limits orders only, not healing.
    pub fn writes(&self) -> &RateLimiter {
        &self.0.writes
    }

    pub(super) fn tidy(&self) -> &Notify {
        &self.0.tidy
    }

    fn is_ordered_anew(&self, key: &Key, wanted: &Entry) -> bool {
        self.state().others.get(key).is_none_or(|known| known.directive != wanted.directive)
    }

    fn turn(&self, key: &Key) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(&self.state().others.entry(key.clone()).or_default().turn)
    }

    fn version(&self, key: &Key) -> String {
        self.state().others.get(key).map(|o| o.resource_version.clone()).unwrap_or_default()
    }

    fn set_version(&self, key: &Key, version: String) {
        self.state().others.entry(key.clone()).or_default().resource_version = version;
    }

    fn count(&self) {
        let state = self.state();
        let objects: usize = state.records.values().map(|record| record.inventory.len()).sum();
        self.0.metrics.destinations.set(i64::try_from(state.records.len()).unwrap_or(i64::MAX));
        self.0.metrics.objects.set(i64::try_from(objects).unwrap_or(i64::MAX));
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock()
    }
}

fn put(state: &mut State, entry: Entry, resource_version: String) {
    let Entry { record, directive, confirmed } = entry;
    let key = (record.application.clone(), record.namespace.clone());
    let other = state.others.entry(key.clone()).or_default();
    other.resource_version = resource_version;
    other.directive = directive;
    other.confirmed = confirmed;
    state.records.insert(key, record);
}

/// Checks that a record fits its Secret, also once all UIDs, good plans and aborts are added. Otherwise objects could be
/// written that cannot be recorded.
///
/// # Errors
/// [`LedgerError::TooLarge`].
pub fn check_room(record: &Record) -> Result<(), LedgerError> {
    let mut grown = record.clone();
    for owned in grown.inventory.iter_mut().filter(|owned| owned.uid.is_none()) {
        owned.uid = Some("0".repeat(UID_LENGTH));
        owned.preexisting = true;
    }
    grown.last_good = grown.last_good.or_else(|| grown.held.clone());
    let json = to_json(&grown)?;
    let reserved = grown.rollout.as_ref().map_or(0, |_| ROLLOUT_BYTES_MAX);
    if json.len() + reserved > RECORD_BYTES_MAX {
        return Err(LedgerError::TooLarge { objects: record.inventory.len() });
    }
    Ok(())
}

fn to_json(record: &Record) -> Result<Vec<u8>, LedgerError> {
    let json = serde_json::to_vec(record).unwrap_or_default();
    if json.len() > RECORD_BYTES_MAX {
        return Err(LedgerError::TooLarge { objects: record.inventory.len() });
    }
    Ok(json)
}

/// Returns the name of the Secret of a destination.
pub fn secret_name((application, namespace): &Key) -> String {
    destination_secret(application, namespace)
}

/// Returns the Secret of a destination, and the bytes of its data.
fn write(name: &str, entry: &Entry, version: &str) -> Result<(Secret, u64), LedgerError> {
    let Entry { record, directive, confirmed } = entry;
    let json = to_json(record)?;
    let room = SECRET_BYTES_MAX.saturating_sub(json.len() + directive.len());
    let pairs = pack(confirmed).filter(|pairs| pairs.len() <= room);
    let mut data = BTreeMap::from([(RECORD_KEY, json.as_slice()), (DIRECTIVE_KEY, directive)]);
    data.extend(pairs.iter().map(|pairs| (CONFIRMED_KEY, pairs.as_slice())));
    let bytes = data.values().map(|value| value.len() as u64).sum();
    let mut secret = secrets::secret(name, version, &data);
    secret.metadata.labels = secrets::texts([(RECORD_LABEL, DESTINATION_LABEL_VALUE.to_owned())]);
    secret.metadata.annotations = secrets::texts([
        (APPLICATION_ANNOTATION, record.application.to_string()),
        (NAMESPACE_ANNOTATION, record.namespace.to_string()),
    ]);
    Ok((secret, bytes))
}

fn read(secret: &Secret) -> Result<(Entry, String), LedgerError> {
    let name = || secret.metadata.name.clone().unwrap_or_default();
    let unreadable = || LedgerError::Unreadable { secret: name() };
    let bytes = |key: &str| secrets::bytes(secret, key);
    let json = bytes(RECORD_KEY).ok_or_else(unreadable)?;
    let record: Record = serde_json::from_slice(json).map_err(|_| unreadable())?;
    let entry = Entry {
        record,
        directive: bytes(DIRECTIVE_KEY).unwrap_or_default().to_vec(),
        // Lost or damaged pairs cost requests, not safety.
        confirmed: bytes(CONFIRMED_KEY).and_then(unpack).unwrap_or_default(),
    };
    Ok((entry, resource_version(secret)))
}

fn pack(confirmed: &ConfirmedPairs) -> Option<Vec<u8>> {
    let pairs: Vec<(&ObjectKey, &Confirmed)> = confirmed.iter().collect();
    let json = serde_json::to_vec(&pairs).ok()?;
    let packed = zstd::bulk::compress(&json, COMPRESSION_LEVEL).ok()?;
    (packed.len() <= CONFIRMED_BYTES_MAX).then_some(packed)
}

fn unpack(packed: &[u8]) -> Option<ConfirmedPairs> {
    let mut json = Vec::new();
    let reader = zstd::stream::read::Decoder::new(packed).ok()?;
    reader.take(CONFIRMED_JSON_BYTES_MAX).read_to_end(&mut json).ok()?;
    let pairs: Vec<(ObjectKey, Confirmed)> = serde_json::from_slice(&json).ok()?;
    Some(pairs.into_iter().collect())
}

#[cfg(test)]
pub(crate) mod tests;
