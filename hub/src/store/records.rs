//! What the hub's values mean: clusters, tokens, applications, ledger entries, reports. Shapes and access, no rules.

use std::collections::BTreeMap;
use std::sync::Arc;

use attest_common::ids::{ClusterId, DestinationKey, Digest, Name, Timestamp};
use attest_common::plan::Operation;
use attest_common::policy;
use attest_common::report::Report;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use super::Change;
use super::{Expected, Store, StoreError, Table};
use crate::api::documents::ChangeTimings;
use crate::lower::Application;

/// Level of compression of blobs: what a wire and a disk gain, at little cost.
const COMPRESSION_LEVEL: i32 = 3;
/// Bytes in front of a stored blob: its size uncompressed.
const BLOB_SIZE_BYTES: usize = 8;

/// Something kept whole in one table.
pub trait Record: Serialize + DeserializeOwned {
    const TABLE: Table;
    /// What it is kept under.
    fn key(&self) -> String;
}

/// How far a cluster has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClusterState {
    /// Joined, and waits for an operator.
    Pending,
    Accepted,
    /// Never admitted again under this identity.
    Revoked,
}

impl ClusterState {
    /// The word that people see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Accepted => "Accepted",
            Self::Revoked => "Revoked",
        }
    }
}

/// A registered cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterRecord {
    pub id: ClusterId,
    pub name: Name,
    pub state: ClusterState,
    /// Ed25519, RFC 8032 encoding, hexadecimal.
    pub identity_key: String,
    pub kube_system_uid: String,
    /// The token it joined with.
    pub token_id: String,
    /// Serial of the newest certificate; only this and `former_serial` are let in.
    pub serial: Option<String>,
    /// The one before, until the newest is first used.
    pub former_serial: Option<String>,
    pub certificate_expires_at: Option<Timestamp>,
    pub registered_at: Timestamp,
    pub agent_version: Option<String>,
    pub kubernetes_version: Option<String>,
    pub revoked_because: Option<String>,
}

impl Record for ClusterRecord {
    const TABLE: Table = Table::Clusters;

    fn key(&self) -> String {
        self.id.to_string()
    }
}

/// A join token. The secret itself is nowhere.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenRecord {
    pub id: String,
    pub cluster: Name,
    /// SHA-256 of the secret.
    pub secret_sha256: Digest,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    pub auto_accept: bool,
    pub replace: bool,
    /// Wrong proofs so far.
    pub failures: u32,
    pub revoked: bool,
    pub used: Option<TokenUse>,
}

/// Who used a token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenUse {
    pub at: Timestamp,
    pub cluster: ClusterId,
    /// `sha256:<hex>` of the TLS key that was certified.
    pub spki: String,
    /// Leaf first, PEM: given again to the same key for a while.
    pub chain_pem: Option<String>,
}

impl Record for TokenRecord {
    const TABLE: Table = Table::Tokens;

    fn key(&self) -> String {
        self.id.clone()
    }
}

/// An application as it was applied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApplicationRecord {
    pub application: Application,
    /// As written.
    pub manifest: serde_json::Value,
    /// Rises with every changed manifest.
    pub generation: u64,
    pub created_at: Timestamp,
    /// True once deletion was asked for: every destination is being removed.
    pub deleting: bool,
}

impl Record for ApplicationRecord {
    const TABLE: Table = Table::Applications;

    fn key(&self) -> String {
        self.application.name.to_string()
    }
}

/// A repository and what it takes to read it.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RepositoryRecord {
    /// Normalised address.
    pub url: String,
    /// As written: with the user of ssh.
    pub address: String,
    pub username: Option<String>,
    pub password: Option<String>,
    pub ssh_key: Option<String>,
    pub known_hosts: Option<String>,
    pub ca: Option<String>,
    pub allow_push_credential: bool,
    /// What the last question for a push was answered; absent when it could not be asked.
    pub can_push: Option<bool>,
    /// Why it could not be asked.
    pub problem: Option<(String, String)>,
    pub checked_at: Option<Timestamp>,
}

impl std::fmt::Debug for RepositoryRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RepositoryRecord").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Record for RepositoryRecord {
    const TABLE: Table = Table::Repositories;

    fn key(&self) -> String {
        self.url.clone()
    }
}

/// An alias of the hub's keyring.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyRecord {
    pub alias: String,
    /// PEM.
    pub public_key: String,
}

impl Record for KeyRecord {
    const TABLE: Table = Table::Keys;

    fn key(&self) -> String {
        self.alias.clone()
    }
}

/// The policy a spoke said it has. A hint: the spoke decides by what it really has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRecord {
    pub cluster: ClusterId,
    pub spec: policy::Spec,
}

impl Record for PolicyRecord {
    const TABLE: Table = Table::Policies;

    fn key(&self) -> String {
        self.cluster.to_string()
    }
}

/// The newest report of a destination.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReportRecord {
    pub cluster: ClusterId,
    pub received_at: Timestamp,
    pub report: Report,
    /// From the push of its directive to its arrival, by the hub's clock, in microseconds.
    pub push_to_report_us: Option<u64>,
}

impl ReportRecord {
    /// Whose report it is.
    pub fn destination(&self) -> DestinationKey {
        DestinationKey {
            application: self.report.application.clone(),
            cluster: self.cluster.clone(),
            namespace: self.report.namespace.clone(),
        }
    }
}

impl Record for ReportRecord {
    const TABLE: Table = Table::Reports;

    fn key(&self) -> String {
        self.destination().to_string()
    }
}

/// What became of one directive.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResultRecord {
    pub destination: DestinationKey,
    pub sequence: u64,
    pub result: String,
    pub reason: String,
    pub at: Timestamp,
}

impl ResultRecord {
    fn key_of(destination: &DestinationKey, sequence: u64) -> String {
        format!("{destination}/{sequence:020}")
    }
}

impl Record for ResultRecord {
    const TABLE: Table = Table::Results;

    fn key(&self) -> String {
        Self::key_of(&self.destination, self.sequence)
    }
}

/// One line of a ledger: a directive, what it orders and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LedgerEntry {
    pub epoch: u64,
    pub sequence: u64,
    pub generation: u64,
    pub attempt: u32,
    pub operation: Operation,
    /// The signed envelope.
    pub directive: String,
    /// SHA-256 of its payload.
    pub digest: Digest,
    pub issued_at: Timestamp,
    pub expires_at: Timestamp,
    /// Absent for `Remove`.
    pub planned: Option<Planned>,
    #[serde(default)]
    pub timings: ChangeTimings,
}

/// What a directive's plan says, for comparing and for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Planned {
    /// SHA-256 of the plan's payload.
    pub plan: Digest,
    /// SHA-256 of the plan's envelope.
    pub envelope: Digest,
    /// Everything the spoke needs besides, in the order it is sent.
    pub blobs: Vec<Digest>,
    pub release: Digest,
    pub content: Digest,
    pub render: String,
    pub version: String,
    pub counter: u64,
    pub repo: String,
    /// Commit whose rendering this is.
    pub commit: String,
    /// Commit CI signed from.
    pub signed_commit: String,
}

/// A blob as stored and as sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompressedBlob {
    pub digest: Digest,
    /// Uncompressed, in bytes.
    pub size: u64,
    /// zstd.
    pub data: Bytes,
}

impl CompressedBlob {
    /// Compresses `bytes`.
    ///
    /// # Errors
    /// [`StoreError::Format`] when the compressor refuses, which it has no reason to.
    pub fn of(bytes: &[u8]) -> Result<Self, StoreError> {
        let data = zstd::bulk::compress(bytes, COMPRESSION_LEVEL)
            .map_err(|_| StoreError::Format { what: "a blob".to_owned() })?;
        Ok(Self { digest: Digest::of(bytes), size: bytes.len() as u64, data: data.into() })
    }

    /// The bytes themselves.
    ///
    /// # Errors
    /// [`StoreError::Format`] when they are not what they should be.
    pub fn bytes(&self) -> Result<Vec<u8>, StoreError> {
        let wrong = || StoreError::Format { what: format!("blob {}", self.digest) };
        let size = usize::try_from(self.size).map_err(|_| wrong())?;
        let bytes = zstd::bulk::decompress(&self.data, size).map_err(|_| wrong())?;
        if Digest::of(&bytes) == self.digest { Ok(bytes) } else { Err(wrong()) }
    }

    fn change(&self) -> Change {
        let mut value = self.size.to_be_bytes().to_vec();
        value.extend_from_slice(&self.data);
        Change::Put {
            table: Table::Blobs,
            key: self.digest.hex(),
            expected: Expected::Anything,
            value,
        }
    }
}

/// A value together with the bytes it was read from, for compare-and-swap.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored<T> {
    pub value: T,
    raw: Vec<u8>,
}

/// Typed access to a store.
#[derive(Clone, Debug)]
pub struct Records {
    store: Arc<dyn Store>,
}

impl Records {
    /// Reads and writes `store`.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// One record.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn get<T: Record>(&self, key: &str) -> Result<Option<T>, StoreError> {
        Ok(self.stored(key)?.map(|stored| stored.value))
    }

    /// One record with what is needed to replace it.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn stored<T: Record>(&self, key: &str) -> Result<Option<Stored<T>>, StoreError> {
        let raw = self.store.get(T::TABLE, key)?;
        raw.map(|raw| Ok(Stored { value: read(&raw, key)?, raw })).transpose()
    }

    /// Every record of a kind, in key order.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn all<T: Record>(&self) -> Result<Vec<T>, StoreError> {
        self.beginning_with("")
    }

    /// Every record whose key begins with `prefix`, in key order.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn beginning_with<T: Record>(&self, prefix: &str) -> Result<Vec<T>, StoreError> {
        let found = self.store.scan(T::TABLE, prefix)?;
        found.iter().map(|(key, raw)| read(raw, key)).collect()
    }

    /// Makes changes as one.
    ///
    /// # Errors
    /// When the store did not take them.
    pub fn commit(&self, what: &str, changes: &[Change]) -> Result<(), StoreError> {
        self.store.commit(what, changes)
    }

    /// Newest ledger entry of each destination that begins with `prefix`.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn heads(&self, prefix: &str) -> Result<BTreeMap<DestinationKey, LedgerEntry>, StoreError> {
        let mut heads = BTreeMap::new();
        for (destination, _, raw) in self.store.heads(prefix)? {
            heads.insert(destination_key(&destination)?, read(&raw, &destination)?);
        }
        Ok(heads)
    }

    /// At most `entries_max` entries of a ledger, newest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn ledger(
        &self,
        destination: &DestinationKey,
        entries_max: usize,
    ) -> Result<Vec<LedgerEntry>, StoreError> {
        let destination = destination.to_string();
        let found = self.store.ledger(&destination, entries_max)?;
        found.iter().map(|(_, raw)| read(raw, &destination)).collect()
    }

    /// What became of a directive, when its spoke said so.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn result(
        &self,
        destination: &DestinationKey,
        sequence: u64,
    ) -> Result<Option<ResultRecord>, StoreError> {
        self.get(&ResultRecord::key_of(destination, sequence))
    }

    /// A blob as it is sent.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn blob(&self, digest: &Digest) -> Result<Option<CompressedBlob>, StoreError> {
        let Some(raw) = self.store.get(Table::Blobs, &digest.hex())? else { return Ok(None) };
        let wrong = || StoreError::Format { what: format!("blob {digest}") };
        let (size, data) = raw.split_first_chunk::<BLOB_SIZE_BYTES>().ok_or_else(wrong)?;
        Ok(Some(CompressedBlob {
            digest: *digest,
            size: u64::from_be_bytes(*size),
            data: Bytes::copy_from_slice(data),
        }))
    }

    /// Drops every blob that no ledger entry names. How many there were.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub fn drop_unused_blobs(&self) -> Result<usize, StoreError> {
        let mut used = std::collections::BTreeSet::new();
        for (destination, _, _) in self.store.heads("")? {
            for (_, raw) in self.store.ledger(&destination, usize::MAX)? {
                let entry: LedgerEntry = read(&raw, &destination)?;
                if let Some(planned) = entry.planned {
                    used.insert(planned.envelope.hex());
                    used.extend(planned.blobs.iter().map(Digest::hex));
                }
            }
        }
        let stored = self.store.scan(Table::Blobs, "")?;
        let unused: Vec<Change> = stored
            .into_iter()
            .filter(|(digest, _)| !used.contains(digest))
            .map(|(key, _)| Change::Delete { table: Table::Blobs, key })
            .collect();
        if !unused.is_empty() {
            self.store.commit("blobs", &unused)?;
        }
        Ok(unused.len())
    }

    /// Raises the epoch and returns it: the term of this hub process.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub fn begin_epoch(&self) -> Result<u64, StoreError> {
        let raw = self.store.get(Table::Meta, EPOCH_KEY)?;
        let former = raw.as_deref().map_or(Ok(0), |raw| read::<u64>(raw, EPOCH_KEY))?;
        let epoch = former + 1;
        let expected = raw.map_or(Expected::Absent, Expected::Exactly);
        let value = write(&epoch);
        let key = EPOCH_KEY.to_owned();
        self.store.commit("epoch", &[Change::Put { table: Table::Meta, key, expected, value }])?;
        Ok(epoch)
    }

    /// Name of the cluster that a destination without one means.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn default_cluster(&self) -> Result<Option<Name>, StoreError> {
        let raw = self.store.get(Table::Meta, DEFAULT_CLUSTER_KEY)?;
        raw.map(|raw| read(&raw, DEFAULT_CLUSTER_KEY)).transpose()
    }
}

const EPOCH_KEY: &str = "epoch";
const DEFAULT_CLUSTER_KEY: &str = "default-cluster";

/// Sets or clears the default cluster.
pub fn default_cluster_change(name: Option<&Name>) -> Change {
    let (table, key) = (Table::Meta, DEFAULT_CLUSTER_KEY.to_owned());
    match name {
        Some(name) => Change::Put { table, key, expected: Expected::Anything, value: write(name) },
        None => Change::Delete { table, key },
    }
}

/// Writes a record, whatever was there.
pub fn put<T: Record>(record: &T) -> Change {
    Change::Put {
        table: T::TABLE,
        key: record.key(),
        expected: Expected::Anything,
        value: write(record),
    }
}

/// Writes a record where there was none.
pub fn put_new<T: Record>(record: &T) -> Change {
    Change::Put {
        table: T::TABLE,
        key: record.key(),
        expected: Expected::Absent,
        value: write(record),
    }
}

/// Writes a record in place of the one that was read.
pub fn replace<T: Record>(former: &Stored<T>, record: &T) -> Change {
    Change::Put {
        table: T::TABLE,
        key: record.key(),
        expected: Expected::Exactly(former.raw.clone()),
        value: write(record),
    }
}

/// Takes a record away.
pub fn delete<T: Record>(record: &T) -> Change {
    Change::Delete { table: T::TABLE, key: record.key() }
}

/// Adds an entry to a destination's ledger whose newest sequence is `expected`.
pub fn append(destination: &DestinationKey, expected: u64, entry: &LedgerEntry) -> Change {
    Change::Append {
        destination: destination.to_string(),
        expected,
        sequence: entry.sequence,
        entry: write(entry),
    }
}

/// Keeps a blob.
pub fn keep(blob: &CompressedBlob) -> Change {
    blob.change()
}

fn write<T: Serialize>(value: &T) -> Vec<u8> {
    // Derived serialisation of strings, numbers, lists and maps with text keys has no way to fail.
    serde_json::to_vec(value).unwrap_or_default()
}

fn read<T: DeserializeOwned>(raw: &[u8], key: &str) -> Result<T, StoreError> {
    serde_json::from_slice(raw).map_err(|_| StoreError::Format { what: format!("`{key}`") })
}

fn destination_key(text: &str) -> Result<DestinationKey, StoreError> {
    let wrong = || StoreError::Format { what: format!("destination `{text}`") };
    let mut parts = text.split('/');
    let (Some(application), Some(cluster), Some(namespace), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(wrong());
    };
    Ok(DestinationKey {
        application: application.parse().map_err(|_| wrong())?,
        cluster: cluster.parse().map_err(|_| wrong())?,
        namespace: namespace.parse().map_err(|_| wrong())?,
    })
}
