//! What the spoke durably knows: one Secret a destination, content Secrets, the last refusals. Stores; does not decide.
//!
//! Every change is a compare-and-swap by resourceVersion and is durable before anything acts on it.

pub mod content;
pub mod refusals;

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use attest_common::basics::ids::Digest;
use attest_common::basics::text::error_chain;
use attest_common::documents::manifest::ObjectKey;
use attest_common::record::{Record, Records};
use attest_common::session::message::Seen;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::cluster::{ApiError, ApiServer};
use crate::identity::Identity;
use crate::metrics::Metrics;
use crate::outbox::Key;
use crate::pace::Budget;
use crate::secrets::{self, Swapped, collection, resource_version};
use crate::{NAMESPACE, failpoint};

/// Most records that are read in one request; each may be as large as a Secret.
pub const RECORDS_LISTED_MAX: usize = 32;
/// Label that tells the spoke's Secrets apart.
pub const RECORD_LABEL: &str = "attest.continuu.ms/record";
/// Most destinations of one cluster.
pub const DESTINATIONS_MAX: usize = 4_096;
/// Largest record as JSON, in bytes; a Secret holds 1 MiB in all.
pub const RECORD_BYTES_MAX: usize = 700 * 1024;
/// Largest list of confirmed pairs, compressed, in bytes; a larger one is not kept.
pub const CONFIRMED_BYTES_MAX: usize = 256 * 1024;
/// Largest Secret of a destination in all, in bytes; beyond it the confirmed pairs stay out.
pub const SECRET_BYTES_MAX: usize = 900 * 1024;
/// Largest list of confirmed pairs, uncompressed, in bytes.
const CONFIRMED_JSON_BYTES_MAX: u64 = 8 * 1024 * 1024;
const COMPRESSION_LEVEL: i32 = 3;
/// Most writes of a record that an order causes: when it is admitted, when writing begins, when all is
/// written, and when it has become the last good one.
const WRITES_OF_AN_ORDER: u64 = 4;
/// Bytes of a Secret of the spoke beside what is kept in it.
const SECRET_OVERHEAD_BYTES: u64 = 2 * 1024;
/// Characters of a UID.
const UID_LENGTH: usize = 36;
/// How often a write is tried against a newer version before giving up.
const SWAP_ATTEMPTS: u32 = 3;
/// How long to wait before the count of records is written again.
const COUNT_RETRY: Duration = Duration::from_secs(1);

const RECORD: &str = "record.json";
const DIRECTIVE: &str = "directive";
const CONFIRMED: &str = "confirmed";

/// That an object was applied as desired, and how it looked then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmed {
    /// Digest of the object as it was to be.
    pub desired: Digest,
    pub uid: String,
    /// Digest of the live object projected on our fields.
    pub projected: Digest,
}

/// Confirmed pairs of one destination. Only a shortcut: without it everything is applied again.
pub type ConfirmedPairs = BTreeMap<ObjectKey, Confirmed>;

/// All of one destination.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub record: Record,
    /// Envelope of the directive that put `record.held` there.
    pub directive: Vec<u8>,
    pub confirmed: ConfirmedPairs,
}

/// The records of this cluster.
#[derive(Clone, Debug)]
pub struct Ledger(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    api: ApiServer,
    metrics: Metrics,
    state: Mutex<State>,
    /// Held while content is stored or deleted: never both at a time.
    content_turn: tokio::sync::Mutex<()>,
    tidy: Notify,
    /// What orders may still write.
    writes: Budget,
    /// There is a record more.
    grown: Notify,
    lost: Option<Lost>,
}

/// Records that are missing: with them what this cluster has seen, and what it must not go back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Destinations that were recorded.
    pub recorded: u64,
    /// Records that are there.
    pub found: u64,
}

impl Lost {
    /// Whether records are missing: `recorded` is what stands beside the identity.
    pub fn of(recorded: u64, found: u64) -> Option<Self> {
        (found < recorded).then_some(Self { recorded, found })
    }
}

#[derive(Debug, Default)]
struct State {
    records: Records,
    /// Everything else, by the same key.
    others: BTreeMap<Key, Other>,
    content: content::Index,
}

#[derive(Clone, Debug, Default)]
struct Other {
    resource_version: String,
    directive: Vec<u8>,
    confirmed: ConfirmedPairs,
    /// One writer at a time for each destination.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Ledger {
    /// Reads every record of the cluster. `recorded` says how many there must be at least.
    ///
    /// # Errors
    /// [`LedgerError`]; also when a record cannot be read, because what it forbids is then unknown.
    pub async fn load(
        api: ApiServer,
        metrics: Metrics,
        recorded: u64,
    ) -> Result<Self, LedgerError> {
        // Content first: what another process stores meanwhile is then named by a record below.
        let content = content::list(&api).await.map_err(LedgerError::Api)?;
        let mut state = State { content, ..State::default() };
        let mut next = String::new();
        loop {
            let selected = format!("{}?labelSelector={RECORD_LABEL}%3Ddestination", collection());
            let page = format!("{selected}&limit={RECORDS_LISTED_MAX}&continue={next}");
            let list = api.get(&page).await.map_err(LedgerError::Api)?;
            for secret in list.get("items").and_then(Value::as_array).into_iter().flatten() {
                let (entry, version) = read(secret)?;
                put(&mut state, entry, version);
            }
            let more = list.pointer("/metadata/continue").and_then(Value::as_str);
            match more.filter(|more| !more.is_empty()) {
                // Base64 for addresses: it needs no escapes.
                Some(more) => more.clone_into(&mut next),
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
            state: Mutex::new(state),
            content_turn: tokio::sync::Mutex::default(),
            tidy: Notify::new(),
            writes: Budget::of_writes(),
        }));
        ledger.count();
        Ok(ledger)
    }

    /// Whether records were missing when they were read. Then nothing is admitted and nothing is
    /// deleted until somebody with rights in the cluster accepts that they are gone.
    pub fn lost(&self) -> Option<Lost> {
        self.0.lost
    }

    /// Keeps the count of records beside the identity, for as long as the process lives.
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
                        reason = error.reason(),
                        error = %error_chain(&error),
                        "Cannot note how many destinations are recorded; trying again"
                    );
                    tokio::time::sleep(COUNT_RETRY).await;
                }
            }
        }
    }

    /// Runs `look` on all records, without waiting for anybody.
    pub fn with_records<T>(&self, look: impl FnOnce(&Records) -> T) -> T {
        look(&self.state().records)
    }

    /// One destination.
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

    /// The destinations, as the hub is told.
    pub fn seen(&self) -> Vec<Seen> {
        let state = self.state();
        let records = state.records.values().map(|record| Seen {
            application: record.application.to_string(),
            namespace: record.namespace.to_string(),
            epoch: record.epoch,
            sequence: record.sequence,
            directive: record.directive.raw().to_vec(),
        });
        records.collect()
    }

    /// Changes a destination durably. `change` gets what is stored now, and is asked again when
    /// somebody else wrote in between; it returns `None` to leave everything as it is.
    ///
    /// # Errors
    /// [`LedgerError`]; nothing may be acted on then.
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
        let is_ours = |found: &Value| {
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
                // Somebody deleted it. What this process knows is still true; write it anew.
                self.set_version(key, String::new());
                Err(LedgerError::Overtaken)
            }
        }
    }

    /// The API server, for the content beside the records.
    pub(crate) fn api(&self) -> &ApiServer {
        &self.0.api
    }

    async fn content_turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.0.content_turn.lock().await
    }

    /// What orders may still write. Only they are held back by it: whoever undoes an edit is not.
    pub fn writes(&self) -> &Budget {
        &self.0.writes
    }

    fn tidy(&self) -> &Notify {
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

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Whether a record fits its Secret also when all is filled in that carrying it out will learn. What
/// is written then must not be what cannot be recorded.
///
/// # Errors
/// [`LedgerError::TooLarge`].
pub fn check_room(record: &Record) -> Result<(), LedgerError> {
    let mut grown = record.clone();
    for owned in grown.inventory.iter_mut().filter(|owned| owned.uid.is_none()) {
        owned.uid = Some("0".repeat(UID_LENGTH));
        owned.met = true;
    }
    grown.last_good = grown.last_good.or_else(|| grown.held.clone());
    to_json(&grown).map(|_| ())
}

fn to_json(record: &Record) -> Result<Vec<u8>, LedgerError> {
    let json = serde_json::to_vec(record).unwrap_or_default();
    if json.len() > RECORD_BYTES_MAX {
        return Err(LedgerError::TooLarge { objects: record.inventory.len() });
    }
    Ok(json)
}

/// Name of the Secret that keeps a destination.
pub fn secret_name((application, namespace): &Key) -> String {
    let hex = Digest::of(format!("{application}/{namespace}").as_bytes()).hex();
    format!("attest-destination-{}", hex.chars().take(16).collect::<String>())
}

/// The Secret of a destination, and how many bytes are kept in it.
fn write(name: &str, entry: &Entry, version: &str) -> Result<(Value, u64), LedgerError> {
    let Entry { record, directive, confirmed } = entry;
    let json = to_json(record)?;
    let metadata = json!({
        "labels": {RECORD_LABEL: "destination"},
        "annotations": {
            "attest.continuu.ms/application": record.application.as_str(),
            "attest.continuu.ms/namespace": record.namespace.as_str(),
        },
    });
    let room = SECRET_BYTES_MAX.saturating_sub(json.len() + directive.len());
    let pairs = pack(confirmed).filter(|pairs| pairs.len() <= room);
    let mut data = BTreeMap::from([(RECORD, json.as_slice()), (DIRECTIVE, directive)]);
    data.extend(pairs.iter().map(|pairs| (CONFIRMED, pairs.as_slice())));
    let bytes = data.values().map(|value| value.len() as u64).sum();
    Ok((secrets::body(name, version, metadata, &data), bytes))
}

fn read(secret: &Value) -> Result<(Entry, String), LedgerError> {
    let name = || {
        let name = secret.pointer("/metadata/name").and_then(Value::as_str);
        name.unwrap_or_default().to_owned()
    };
    let unreadable = || LedgerError::Unreadable { secret: name() };
    let bytes = |key: &str| secrets::bytes(secret, key);
    let json = bytes(RECORD).ok_or_else(unreadable)?;
    let record: Record = serde_json::from_slice(&json).map_err(|_| unreadable())?;
    let entry = Entry {
        record,
        directive: bytes(DIRECTIVE).unwrap_or_default(),
        // Lost or garbled pairs cost requests, not safety.
        confirmed: bytes(CONFIRMED).and_then(|packed| unpack(&packed)).unwrap_or_default(),
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

/// Why something is not durable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    #[error("cannot read or write the spoke's Secrets")]
    Api(#[source] ApiError),
    #[error("the record was changed by somebody else")]
    Overtaken,
    #[error(
        "Secret {NAMESPACE}/{secret} is not a readable record; \
         restore it, or `attest spoke reset` the destination"
    )]
    Unreadable { secret: String },
    #[error("an inventory of {objects} objects does not fit a Secret")]
    TooLarge { objects: usize },
    #[error("more than {max} {what}")]
    Limit { what: &'static str, max: u64 },
    #[error("stored content of plan {plan} is missing or damaged")]
    Content { plan: Digest },
}

impl LedgerError {
    /// A stable word for conditions, metrics, logs and the CLI.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Api(error) => error.reason(),
            Self::Overtaken => "RecordOvertaken",
            Self::Unreadable { .. } => "RecordUnreadable",
            Self::TooLarge { .. } | Self::Limit { .. } => "Limit",
            Self::Content { .. } => "ContentLost",
        }
    }

    /// True when trying again later may help.
    pub fn is_transient(&self) -> bool {
        match self {
            // Rights to its own Secrets are missing for a moment while an API server starts or a
            // token is renewed, and never for anything that a document says.
            Self::Api(error) => {
                error.is_transient() || error.is_forbidden() || error.is_unauthorized()
            }
            Self::Overtaken => true,
            Self::Unreadable { .. }
            | Self::TooLarge { .. }
            | Self::Limit { .. }
            | Self::Content { .. } => false,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use attest_common::basics::ids::Name;
    use attest_common::basics::keys::PrivateKey;
    use attest_common::record::{Held, Owned};
    use data_encoding::BASE64;

    use super::*;
    use crate::cluster::error::Details;
    use crate::cluster::fake::FakeApi;

    pub(crate) fn object_key(kind: &str, name: &str) -> ObjectKey {
        ObjectKey {
            group: String::new(),
            kind: kind.to_owned(),
            namespace: Some("shop".to_owned()),
            name: name.to_owned(),
        }
    }

    pub(crate) fn record() -> Record {
        Record {
            v: 1,
            application: Name::new("web").unwrap(),
            namespace: Name::new("shop").unwrap(),
            hub_key: PrivateKey::from_seed(&[1; 32]).unwrap().public().id(),
            epoch: 1,
            sequence: 7,
            directive: Digest::of(b"directive"),
            binding: Some("https://git.example/web".to_owned()),
            floor: None,
            held: None,
            last_good: None,
            inventory: vec![Owned {
                key: object_key("ConfigMap", "a"),
                version: "v1".to_owned(),
                uid: None,
                met: false,
            }],
            removed: false,
            recorded_at: None,
            since: None,
            former: None,
        }
    }

    /// What a plan needs, by digests of nothing else.
    pub(crate) fn held(plan: &[u8]) -> Held {
        Held {
            plan: Digest::of(plan),
            plan_digest: Digest::of(b"signed"),
            release: Digest::of(b"release"),
            receipts: Vec::new(),
            content: Digest::of(b"content"),
        }
    }

    #[test]
    fn confirmed_pairs_stay_out_of_a_secret_that_would_be_too_large() {
        let pair = Confirmed {
            desired: Digest::of(b"d"),
            uid: "u".to_owned(),
            projected: Digest::of(b"p"),
        };
        let confirmed: ConfirmedPairs = [(object_key("ConfigMap", "a"), pair)].into();
        let with_pairs = |directive: Vec<u8>| {
            let entry = Entry { record: record(), directive, confirmed: confirmed.clone() };
            write("a", &entry, "1").unwrap().0["data"].get(CONFIRMED).is_some()
        };

        assert!(with_pairs(b"envelope".to_vec()));
        assert!(!with_pairs(vec![b'x'; SECRET_BYTES_MAX]));
    }

    #[test]
    fn an_inventory_is_admitted_only_with_room_for_what_will_be_learnt_of_it() {
        let of = |count: usize, uid: Option<String>| {
            let owned = |index| Owned {
                key: object_key("ConfigMap", &format!("{index:06}")),
                version: "v1".to_owned(),
                uid: uid.clone(),
                met: false,
            };
            Record { inventory: (0..count).map(owned).collect(), ..record() }
        };
        let size = |count, uid| serde_json::to_vec(&of(count, uid)).unwrap().len();
        let each = size(2, None) - size(1, None);
        let count = (RECORD_BYTES_MAX - size(0, None)) / each;
        let uid = Some("3f2a1b0c-1111-2222-3333-444455556666".to_owned());
        assert!(to_json(&of(count, None)).is_ok());
        assert!(to_json(&of(count, uid.clone())).is_err());

        assert_eq!(check_room(&of(count, None)).unwrap_err().reason(), "Limit");

        let fewer = count / 2;
        assert!(check_room(&of(fewer, None)).is_ok() && to_json(&of(fewer, uid)).is_ok());
    }

    #[test]
    fn a_destination_reads_back_from_its_secret() {
        let pair = Confirmed {
            desired: Digest::of(b"d"),
            uid: "u".to_owned(),
            projected: Digest::of(b"p"),
        };
        let entry = Entry {
            record: record(),
            directive: b"envelope".to_vec(),
            confirmed: [(object_key("ConfigMap", "a"), pair)].into(),
        };

        let (secret, _) = write("attest-destination-x", &entry, "41").unwrap();

        assert_eq!(read(&secret).unwrap(), (entry, "41".to_owned()));
    }

    #[test]
    fn a_record_that_cannot_be_read_is_an_error_and_lost_pairs_are_not() {
        let entry = Entry { record: record(), directive: vec![], confirmed: BTreeMap::new() };
        let (mut secret, _) = write("attest-destination-x", &entry, "").unwrap();

        secret["data"][CONFIRMED] = "!".into();
        assert!(read(&secret).is_ok());
        secret["data"][RECORD] = BASE64.encode(b"{\"v\":1}").into();
        assert_eq!(read(&secret).unwrap_err().reason(), "RecordUnreadable");
    }

    #[test]
    fn a_write_without_rights_or_a_good_token_is_tried_again() {
        let transient = |code: u16| {
            let error = ApiError::Status {
                verb: "update",
                path: String::new(),
                code,
                status_reason: String::new(),
                message: String::new(),
                details: Details::default(),
            };
            LedgerError::Api(error).is_transient()
        };

        assert!([401, 403, 429, 500, 503].into_iter().all(transient));
        assert!(![400, 404, 409, 413, 422].into_iter().any(transient));
    }

    #[tokio::test]
    async fn lost_records_are_missed_and_the_content_they_named_is_kept() {
        let fake = FakeApi::start().await;
        let api = fake.open().await;
        let metrics = Metrics::new().unwrap();
        let recorded = || async { Identity::load_or_create(&api).await.unwrap().destinations };
        let open = async |recorded: u64| {
            Ledger::load(api.clone(), metrics.clone(), recorded).await.unwrap()
        };
        let ledger = open(recorded().await).await;
        tokio::spawn(ledger.clone().keep_count(0));
        let key = (record().application, record().namespace);
        let entry = Entry { record: record(), directive: vec![], confirmed: BTreeMap::new() };
        ledger.update(&key, |_| Ok(Some(entry.clone()))).await.unwrap();
        let held = held(b"plan");
        let blobs = held.blobs().map(|digest| (*digest, bytes::Bytes::from_static(b"blob")));
        ledger.store_content(&held, &blobs.collect()).await.unwrap();
        while recorded().await == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(open(1).await.lost(), None);

        api.delete_own(&secrets::path(&secret_name(&key))).await.unwrap();
        let ledger = open(recorded().await).await;
        ledger.drop_unused_content().await.unwrap();

        assert_eq!(ledger.lost(), Some(Lost { recorded: 1, found: 0 }));
        assert_eq!(metrics.state_lost.get(), 1);
        assert!(ledger.load_content(&held, |_| true).await.is_ok());
    }

    #[tokio::test]
    async fn an_order_is_charged_with_what_it_writes_and_an_edit_that_is_undone_costs_nothing() {
        let fake = FakeApi::start().await;
        let ledger = Ledger::load(fake.open().await, Metrics::new().unwrap(), 0).await.unwrap();
        let key = (record().application, record().namespace);
        let written = async |directive: &[u8]| {
            let entry = Entry {
                record: record(),
                directive: directive.to_vec(),
                confirmed: BTreeMap::new(),
            };
            let before = ledger.writes().left();
            ledger.update(&key, |_| Ok(Some(entry.clone()))).await.unwrap();
            before - ledger.writes().left()
        };

        let ordered = written(b"first").await;

        assert!(ordered > i128::from(SECRET_OVERHEAD_BYTES * WRITES_OF_AN_ORDER));
        assert_eq!(written(b"first").await, 0);
        assert_eq!(written(b"other").await, ordered);
    }

    #[tokio::test]
    async fn records_are_read_in_pages_and_all_of_them() {
        let fake = FakeApi::start().await;
        let open = async || {
            let metrics = Metrics::new().unwrap();
            Ledger::load(fake.open().await, metrics, 0).await.unwrap()
        };
        let ledger = open().await;
        let count = 2 * RECORDS_LISTED_MAX + 1;
        for index in 0..count {
            let record =
                Record { namespace: Name::new(format!("shop-{index}")).unwrap(), ..record() };
            let key = (record.application.clone(), record.namespace.clone());
            let entry = Entry { record, directive: vec![], confirmed: BTreeMap::new() };
            ledger.update(&key, |_| Ok(Some(entry.clone()))).await.unwrap();
        }

        assert_eq!(open().await.with_records(|records| records.len()), count);
        let pages = fake.asked().into_iter().filter(|asked| asked.contains("%3Ddestination"));
        assert_eq!(pages.count(), 1 + 3);
    }
}
