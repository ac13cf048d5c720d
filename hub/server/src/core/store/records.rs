//! Typed records of the store: clusters, tokens, applications, ledger entries, reports. Types and access, no rules.

mod rollouts;
mod stages;
mod types;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use attest_common::basics::ids::{ClusterId, DestinationKey, Digest, Name};
use attest_runtime::frames::COMPRESSION_LEVEL;
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use rollouts::{
    MemberReason, MemberTarget, OperatorAction, ResolvedStage, RolloutKind, RolloutMember,
    RolloutPhase, RolloutSnapshot, RolloutState,
};
pub use stages::{ProgressiveDelivery, Share, Stage};
pub use types::{
    Application, ApplicationRecord, ChangeTimings, ClusterRecord, ClusterState, Destination,
    KeyRecord, LedgerEntry, Planned, PolicyRecord, ReportRecord, RepositoryRecord, ResultRecord,
    SelectedDestinations, TokenRecord, TokenUse,
};

pub use super::Change;
use super::{Expected, Store, StoreError, Table};

/// Most blobs examined, and dropped, in one transaction.
const BLOBS_EXAMINED_MAX: usize = 1_000;
/// Rollouts of one application that are kept, with the newest one that succeeded.
pub(crate) const ROLLOUTS_MAX: usize = 20;
/// Length of the prefix of a stored blob, its uncompressed size, in bytes.
const BLOB_SIZE_BYTES: usize = 8;

/// A value of one table.
pub trait Record: Serialize + DeserializeOwned {
    const TABLE: Table;
    /// The key in the table.
    fn key(&self) -> String;
}

/// A blob in its stored and transmitted form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompressedBlob {
    pub digest: Digest,
    /// Uncompressed size in bytes.
    pub size: u64,
    /// Compressed with zstd.
    pub data: Bytes,
}

impl CompressedBlob {
    /// Compresses `bytes`.
    ///
    /// # Errors
    /// [`StoreError::Format`] when compression fails, which is not expected.
    pub fn of(bytes: &[u8]) -> Result<Self, StoreError> {
        let data = zstd::bulk::compress(bytes, COMPRESSION_LEVEL)
            .map_err(|_| StoreError::Format { what: "a blob".to_owned() })?;
        Ok(Self { digest: Digest::of(bytes), size: bytes.len() as u64, data: data.into() })
    }

    /// Returns the uncompressed bytes.
    ///
    /// # Errors
    /// [`StoreError::Format`] when they do not match the size or digest.
    pub fn bytes(&self) -> Result<Vec<u8>, StoreError> {
        usize::try_from(self.size)
            .ok()
            .and_then(|size| zstd::bulk::decompress(&self.data, size).ok())
            .filter(|bytes| Digest::of(bytes) == self.digest)
            .ok_or_else(|| format_error("blob", &self.digest))
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

/// A value with the bytes from which it was read, for compare-and-swap.
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
    /// Creates typed access to `store`.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// Returns one record.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn get<T: Record>(&self, key: &str) -> Result<Option<T>, StoreError> {
        Ok(self.stored(key)?.map(|stored| stored.value))
    }

    /// Returns one record in a form that can be replaced.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn stored<T: Record>(&self, key: &str) -> Result<Option<Stored<T>>, StoreError> {
        let raw = self.store.get(T::TABLE, key)?;
        raw.map(|raw| Ok(Stored { value: read(&raw, key)?, raw })).transpose()
    }

    /// Returns at most `records_max` records of a table after a key, in key order.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) fn page<T: Record>(
        &self,
        after: &str,
        records_max: usize,
    ) -> Result<Vec<T>, StoreError> {
        let found = self.store.page(T::TABLE, after, records_max)?;
        found.iter().map(|(key, raw)| read(raw, key)).collect()
    }

    /// Returns the number of records of a table, without reading them.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) fn count<T: Record>(&self) -> Result<usize, StoreError> {
        self.store.count(T::TABLE).map(|count| usize::try_from(count).unwrap_or(usize::MAX))
    }

    /// Returns every record of a table, in key order.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn all<T: Record>(&self) -> Result<Vec<T>, StoreError> {
        self.beginning_with("")
    }

    /// Returns every record whose key begins with `prefix`, in key order.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) fn beginning_with<T: Record>(&self, prefix: &str) -> Result<Vec<T>, StoreError> {
        let found = self.store.scan(T::TABLE, prefix)?;
        found.iter().map(|(key, raw)| read(raw, key)).collect()
    }

    /// Applies changes in one transaction.
    ///
    /// # Errors
    /// See [`Store::commit`].
    pub fn commit(&self, what: &str, changes: &[Change]) -> Result<(), StoreError> {
        self.store.commit(what, changes)
    }

    /// Returns the newest ledger entry of each destination that begins with `prefix`.
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

    /// Returns the newest sequence of all dropped ledgers in a cluster. A new ledger continues above it, because the
    /// spoke remembers the sequence of the dropped one.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) fn dropped_sequence(&self, cluster: &ClusterId) -> Result<u64, StoreError> {
        self.store.number(cluster.as_str())
    }

    /// Returns the last generation of an application, even if it was removed since; 0 for none.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) fn last_generation(&self, application: &Name) -> Result<u64, StoreError> {
        self.store.number(&generation_key(application))
    }

    /// Returns the last attempt of any rollout of an application, even if it was removed since; 0 for none.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) fn last_attempt(&self, application: &Name) -> Result<u32, StoreError> {
        let attempt = self.store.number(&attempt_key(application))?;
        Ok(u32::try_from(attempt).unwrap_or(u32::MAX))
    }

    /// Returns the newest rollouts of an application, the newest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) fn rollouts(
        &self,
        application: &Name,
        rollouts_max: usize,
    ) -> Result<Vec<RolloutState>, StoreError> {
        let prefix = RolloutState::keys_of(application);
        let found = self.store.page(Table::Rollouts, &prefix, rollouts_max)?;
        let found = found.iter().take_while(|(key, _)| key.starts_with(&prefix));
        found.map(|(key, raw)| read(raw, key)).collect()
    }

    /// Returns whether a pending cluster was evicted: its token can no longer issue a certificate.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) fn is_evicted(&self, record: &ClusterRecord) -> Result<bool, StoreError> {
        if record.state != ClusterState::Pending {
            return Ok(false);
        }
        let token = self.get::<TokenRecord>(&record.token_id)?;
        Ok(token.is_none_or(|token| token.revoked))
    }

    /// Returns at most `entries_max` entries of a ledger, newest first.
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

    /// Returns the reported result of a directive.
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

    /// Returns a blob in its transmitted form.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn blob(&self, digest: &Digest) -> Result<Option<CompressedBlob>, StoreError> {
        let Some(raw) = self.store.get(Table::Blobs, &digest.hex())? else { return Ok(None) };
        let (size, data) = raw
            .split_first_chunk::<BLOB_SIZE_BYTES>()
            .ok_or_else(|| format_error("blob", digest))?;
        Ok(Some(CompressedBlob {
            digest: *digest,
            size: u64::from_be_bytes(*size),
            data: Bytes::copy_from_slice(data),
        }))
    }

    /// Drops every blob that neither a ledger entry nor a rollout names. Returns their number.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub fn drop_unused_blobs(&self) -> Result<usize, StoreError> {
        let mut used = BTreeSet::new();
        for destination in self.store.destinations()? {
            for (_, raw) in self.store.ledger(&destination, usize::MAX)? {
                let entry: LedgerEntry = read(&raw, &destination)?;
                if let Some(planned) = entry.planned {
                    used.insert(planned.envelope);
                    used.extend(planned.blobs);
                }
            }
        }
        for (key, raw) in self.store.scan(Table::Rollouts, rollouts::SNAPSHOTS)? {
            let snapshot: RolloutSnapshot = read(&raw, &key)?;
            for planned in snapshot.plans {
                used.insert(planned.envelope);
                used.extend(planned.blobs);
            }
        }
        let (mut after, mut dropped) = (String::new(), 0);
        loop {
            let keys = self.store.keys(Table::Blobs, &after, BLOBS_EXAMINED_MAX)?;
            let Some(last) = keys.last() else { return Ok(dropped) };
            after.clone_from(last);
            let unused: Vec<Change> = keys
                .into_iter()
                .filter(|key| !Digest::from_hex(key).is_ok_and(|digest| used.contains(&digest)))
                .map(|key| {
                    let expected = Expected::Anything;
                    Change::Delete { table: Table::Blobs, key, expected }
                })
                .collect();
            if !unused.is_empty() {
                self.store.commit("blobs", &unused)?;
                dropped += unused.len();
            }
        }
    }

    /// Raises the epoch for this hub process and returns it.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub(crate) fn begin_epoch(&self) -> Result<u64, StoreError> {
        self.begin_epoch_above(0)
    }

    /// Raises the epoch above the stored one and above `seen`, and returns it.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub(crate) fn begin_epoch_above(&self, seen: u64) -> Result<u64, StoreError> {
        let raw = self.store.get(Table::Meta, EPOCH_KEY)?;
        let previous = raw.as_deref().map_or(Ok(0), |raw| read::<u64>(raw, EPOCH_KEY))?;
        let epoch = previous.max(seen).saturating_add(1);
        let expected = raw.map_or(Expected::Absent, Expected::Exactly);
        let value = write(&epoch);
        let key = EPOCH_KEY.to_owned();
        self.store.commit("epoch", &[Change::Put { table: Table::Meta, key, expected, value }])?;
        Ok(epoch)
    }

    /// Returns the cluster of destinations that name none.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) fn default_cluster(&self) -> Result<Option<Name>, StoreError> {
        let raw = self.store.get(Table::Meta, DEFAULT_CLUSTER_KEY)?;
        raw.map(|raw| read(&raw, DEFAULT_CLUSTER_KEY)).transpose()
    }
}

const EPOCH_KEY: &str = "epoch";
const DEFAULT_CLUSTER_KEY: &str = "default-cluster";

/// Sets or clears the default cluster.
pub(crate) fn default_cluster_change(name: Option<&Name>) -> Change {
    let (table, key) = (Table::Meta, DEFAULT_CLUSTER_KEY.to_owned());
    match name {
        Some(name) => Change::Put { table, key, expected: Expected::Anything, value: write(name) },
        None => Change::Delete { table, key, expected: Expected::Anything },
    }
}

/// Writes a record, unconditionally.
pub fn put<T: Record>(record: &T) -> Change {
    Change::Put {
        table: T::TABLE,
        key: record.key(),
        expected: Expected::Anything,
        value: write(record),
    }
}

/// Writes a record that must not exist.
pub(crate) fn put_new<T: Record>(record: &T) -> Change {
    Change::Put {
        table: T::TABLE,
        key: record.key(),
        expected: Expected::Absent,
        value: write(record),
    }
}

/// Replaces a record that must be unchanged since it was read.
pub fn replace<T: Record>(read: &Stored<T>, record: &T) -> Change {
    Change::Put {
        table: T::TABLE,
        key: record.key(),
        expected: Expected::Exactly(read.raw.clone()),
        value: write(record),
    }
}

/// Deletes a record.
pub fn delete<T: Record>(record: &T) -> Change {
    Change::Delete { table: T::TABLE, key: record.key(), expected: Expected::Anything }
}

/// Deletes a record that must be unchanged since it was read.
pub(crate) fn delete_exactly<T: Record>(read: &Stored<T>) -> Change {
    Change::Delete {
        table: T::TABLE,
        key: read.value.key(),
        expected: Expected::Exactly(read.raw.clone()),
    }
}

/// Appends an entry to a destination's ledger whose newest sequence is `expected`.
pub fn append(destination: &DestinationKey, expected: u64, entry: &LedgerEntry) -> Change {
    Change::Append {
        destination: destination.to_string(),
        expected,
        sequence: entry.sequence,
        entry: write(entry),
    }
}

/// Drops a destination's ledger whose newest sequence is `expected`, with the results of its directives. Of all
/// ledgers dropped in a cluster one number remains: see [`Records::dropped_sequence`].
pub(crate) fn drop_ledger(destination: &DestinationKey, expected: u64) -> [Change; 2] {
    let raised = Change::Raise { key: destination.cluster.to_string(), number: expected };
    [Change::Drop { destination: destination.to_string(), expected }, raised]
}

/// Stores the last generation of an application permanently, so that no generation is used twice, even if the
/// application is removed and created again.
pub(crate) fn keep_generation(application: &Name, generation: u64) -> Change {
    Change::Raise { key: generation_key(application), number: generation }
}

/// Stores the last attempt of an application's rollouts permanently: a spoke accepts none below the one it holds.
pub(crate) fn keep_attempt(application: &Name, attempt: u32) -> Change {
    Change::Raise { key: attempt_key(application), number: attempt.into() }
}

fn attempt_key(application: &Name) -> String {
    format!("attempt/{application}")
}

/// Returns the state of the newest rollout of an application, in a form that can be replaced.
///
/// # Errors
/// When the store cannot be read.
pub(crate) fn newest_rollout(
    records: &Records,
    application: &Name,
) -> Result<Option<Stored<RolloutState>>, StoreError> {
    let prefix = RolloutState::keys_of(application);
    let found = records.store.page(Table::Rollouts, &prefix, 1)?;
    let newest = found.into_iter().find(|(key, _)| key.starts_with(&prefix));
    newest.map(|(key, raw)| Ok(Stored { value: read(&raw, &key)?, raw })).transpose()
}

/// Returns the state of every rollout: by application, and the newest first.
///
/// # Errors
/// When the store cannot be read.
pub(crate) fn all_rollouts(records: &Records) -> Result<Vec<RolloutState>, StoreError> {
    records.beginning_with(rollouts::STATES)
}

/// Deletes the rollouts of an application that exceed [`ROLLOUTS_MAX`] together with a new one.
///
/// # Errors
/// When the store cannot be read.
pub(crate) fn drop_old_rollouts(
    records: &Records,
    application: &Name,
) -> Result<Vec<Change>, StoreError> {
    let all = records.rollouts(application, ROLLOUTS_MAX * 2)?;
    let succeeded = all.iter().position(|state| state.phase == RolloutPhase::Succeeded);
    let old = all.iter().enumerate().skip(ROLLOUTS_MAX - 1);
    let old = old.filter(|(index, _)| Some(*index) != succeeded);
    Ok(old.flat_map(|(_, state)| drop_rollout(state)).collect())
}

/// Deletes a rollout.
pub(crate) fn drop_rollout(state: &RolloutState) -> [Change; 2] {
    [state.key(), state.snapshot_key()].map(|key| Change::Delete {
        table: Table::Rollouts,
        key,
        expected: Expected::Anything,
    })
}

/// The numbers of clusters are stored under their ids, which contain no `/`.
fn generation_key(application: &Name) -> String {
    format!("generation/{application}")
}

/// Stores a blob.
pub fn keep(blob: &CompressedBlob) -> Change {
    blob.change()
}

fn write<T: Serialize>(value: &T) -> Vec<u8> {
    // Derived serialisation of strings, numbers, lists and maps with text keys cannot fail.
    serde_json::to_vec(value).unwrap_or_default()
}

fn read<T: DeserializeOwned>(raw: &[u8], key: &str) -> Result<T, StoreError> {
    serde_json::from_slice(raw).map_err(|_| StoreError::Format { what: format!("`{key}`") })
}

fn destination_key(text: &str) -> Result<DestinationKey, StoreError> {
    parse_destination_key(text).ok_or_else(|| format_error("destination", &format!("`{text}`")))
}

/// Parses `application/cluster/namespace`.
fn parse_destination_key(text: &str) -> Option<DestinationKey> {
    let mut parts = text.split('/');
    let (Some(application), Some(cluster), Some(namespace), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    Some(DestinationKey {
        application: application.parse().ok()?,
        cluster: cluster.parse().ok()?,
        namespace: namespace.parse().ok()?,
    })
}

fn format_error(kind: &str, name: &impl std::fmt::Display) -> StoreError {
    StoreError::Format { what: format!("{kind} {name}") }
}
