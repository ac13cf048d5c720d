//! The interface of the hub's store: a ledger for each destination, and tables.
//!
//! The primitive is compare-and-append on one ledger per destination, so that another store (the Kubernetes API, fenced
//! by an epoch record) can replace the file. Values are opaque here; `store::records` defines them.

mod file;
pub mod records;

use std::path::Path;

use attest_common::basics::reason::Reason;

pub use file::RedbStore;

/// Remedy when the sequences of a ledger are used up: spokes keep them for each pinned hub key.
pub(crate) const NEW_KEY_NEEDED: &str = "create a hub with another key (`attest hub init`), pin it in the clusters with \
     `attest trust install`, and join them to it";
/// Longest key of a table in bytes.
pub(crate) const KEY_BYTES_MAX: usize = 4096;

/// Tables beside the ledgers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Settings of the store itself: format, epoch, default cluster.
    Meta,
    /// Registered clusters by cluster id.
    Clusters,
    /// Join tokens by public id.
    Tokens,
    /// Applications by name.
    Applications,
    /// Repositories, with credentials, by address.
    Repositories,
    /// The hub's keyring by alias.
    Keys,
    /// The newest trust policy reported by each spoke, by cluster id.
    Policies,
    /// The newest report by destination.
    Reports,
    /// Results of directives, by destination and sequence.
    Results,
    /// Content-addressed bytes by SHA-256.
    Blobs,
    /// Snapshots and states of rollouts, each by application and generation, the newest first.
    Rollouts,
}

impl Table {
    /// Every table.
    pub const ALL: [Self; 11] = [
        Self::Meta,
        Self::Clusters,
        Self::Tokens,
        Self::Applications,
        Self::Repositories,
        Self::Keys,
        Self::Policies,
        Self::Reports,
        Self::Results,
        Self::Blobs,
        Self::Rollouts,
    ];
}

/// Precondition of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    Anything,
    Absent,
    Exactly(Vec<u8>),
}

impl Expected {
    fn holds(&self, found: Option<&[u8]>) -> bool {
        match self {
            Self::Anything => true,
            Self::Absent => found.is_none(),
            Self::Exactly(bytes) => found == Some(bytes.as_slice()),
        }
    }
}

/// One part of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Adds an entry to a ledger whose newest sequence is `expected` (0 for a new ledger).
    /// `sequence` must be above it.
    Append {
        destination: String,
        expected: u64,
        sequence: u64,
        entry: Vec<u8>,
    },
    Put {
        table: Table,
        key: String,
        expected: Expected,
        value: Vec<u8>,
    },
    Delete {
        table: Table,
        key: String,
        expected: Expected,
    },
    /// Drops a ledger whose newest sequence is `expected`, and the results of its directives.
    Drop {
        destination: String,
        expected: u64,
    },
    /// Stores the greater of `number` and the number stored under `key`.
    Raise {
        key: String,
        number: u64,
    },
}

/// Durable state of one hub. All methods block and are called on blocking threads.
pub trait Store: std::fmt::Debug + Send + Sync + 'static {
    /// Applies all changes or none; they are durable when this returns. `what` names the failpoints.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when a precondition does not hold: nothing was changed. [`StoreError::Commit`] when the
    /// write failed and the changes are known to be absent. [`StoreError::Unknown`] when the outcome is unknown.
    fn commit(&self, what: &str, changes: &[Change]) -> Result<(), StoreError>;

    /// Returns one value.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn get(&self, table: Table, key: &str) -> Result<Option<Vec<u8>>, StoreError>;

    /// Returns a number stored by [`Change::Raise`]; 0 for none.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn number(&self, key: &str) -> Result<u64, StoreError>;

    /// Returns every value whose key begins with `prefix`, in key order.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn scan(&self, table: Table, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError>;

    /// Returns at most `keys_max` keys of a table after `after`, in key order, without reading values.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn keys(&self, table: Table, after: &str, keys_max: usize) -> Result<Vec<String>, StoreError>;

    /// Returns at most `values_max` values of a table after the key `after`, in key order.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn page(
        &self,
        table: Table,
        after: &str,
        values_max: usize,
    ) -> Result<Vec<(String, Vec<u8>)>, StoreError>;

    /// Returns the number of values of a table, without reading them.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn count(&self, table: Table) -> Result<u64, StoreError>;

    /// Returns the destination of every ledger, in order, without reading entries.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn destinations(&self) -> Result<Vec<String>, StoreError>;

    /// Returns the newest entry of every ledger whose destination begins with `prefix`.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn heads(&self, prefix: &str) -> Result<Vec<(String, u64, Vec<u8>)>, StoreError>;

    /// Returns at most `entries_max` entries of a ledger, newest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn ledger(
        &self,
        destination: &str,
        entries_max: usize,
    ) -> Result<Vec<(u64, Vec<u8>)>, StoreError>;
}

/// Returns the key of the result of a directive. Keys sort like the ledger.
fn result_key(destination: &str, sequence: u64) -> String {
    format!("{destination}/{sequence:020}")
}

/// Creates an empty database file atomically, readable by its owner only.
///
/// # Errors
/// When the file exists or cannot be written.
pub fn create(path: &Path) -> Result<(), StoreError> {
    file::create(path)
}

/// Failure of an operation on the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    #[error(
        "{path} is missing; restore it from a backup, or create a new hub with `attest hub init`"
    )]
    Missing { path: String },
    #[error("{path} already exists")]
    Exists { path: String },
    #[error("{path} is in use by another hub; stop that one first")]
    Locked { path: String },
    #[error("the disk that holds {path} is full; free space and retry")]
    DiskFull { path: String },
    #[error("failed to open {path}")]
    Open {
        path: String,
        #[source]
        source: Box<redb::Error>,
    },
    #[error("failed to read the hub's database")]
    Read(#[source] Box<redb::Error>),
    #[error("write to the hub's database failed")]
    Commit(#[source] Box<redb::Error>),
    #[error("the outcome of a write to the hub's database is unknown")]
    Unknown(#[source] Box<Self>),
    #[error("the hub's key has used every sequence at {ledger}; {}", NEW_KEY_NEEDED)]
    SequenceUsedUp { ledger: String },
    #[error("{what} was modified concurrently; re-read and retry")]
    Conflict { what: String },
    #[error(
        "the hub's database contains {what}, which this version cannot read; it may have been written by a newer hub"
    )]
    Format { what: String },
}

impl StoreError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Missing { .. } => Reason::StoreMissing,
            Self::Exists { .. } => Reason::StoreExists,
            Self::Locked { .. } => Reason::StoreLocked,
            Self::DiskFull { .. } => Reason::DiskFull,
            Self::Open { .. } => Reason::StoreOpen,
            Self::Read(_) => Reason::StoreRead,
            Self::Commit(_) => Reason::StoreCommit,
            Self::Unknown(cause) if matches!(**cause, Self::DiskFull { .. }) => cause.reason(),
            Self::Unknown(_) => Reason::StoreUnknown,
            Self::SequenceUsedUp { .. } => Reason::SequenceUsedUp,
            Self::Conflict { .. } => Reason::Conflict,
            Self::Format { .. } => Reason::StoreFormat,
        }
    }
}
