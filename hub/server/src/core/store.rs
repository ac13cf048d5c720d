//! What the hub keeps: a ledger for each destination and a few tables. The trait any store must satisfy.
//!
//! The primitive is compare-and-append on one ledger per destination, so that another store (the
//! Kubernetes API, fenced by an epoch record) can stand in for the file. Values are opaque here;
//! what they mean is `store::records`.

mod file;
pub mod records;

use std::path::Path;

pub use file::RedbStore;

/// Longest key of a table in bytes.
pub(crate) const KEY_BYTES_MAX: usize = 4096;

/// What is kept beside the ledgers.
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
    /// The newest trust policy each spoke said it has, by cluster id.
    Policies,
    /// The newest report by destination.
    Reports,
    /// What became of each directive, by destination and sequence.
    Results,
    /// Content-addressed bytes by SHA-256.
    Blobs,
}

impl Table {
    /// Every table.
    pub const ALL: [Self; 10] = [
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
    ];
}

/// What must be true of a value for a change to be made.
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
    /// Drops a ledger whose newest sequence is `expected`, and what became of its directives.
    Drop {
        destination: String,
        expected: u64,
    },
    /// Keeps the greater of `number` and the number that is kept under `key`.
    Raise {
        key: String,
        number: u64,
    },
}

/// Durable state of one hub. Every call blocks and belongs on a blocking thread.
pub trait Store: std::fmt::Debug + Send + Sync + 'static {
    /// Makes all changes or none; they are durable when this returns. `what` names the failpoints.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when an expectation does not hold: nothing was changed.
    /// [`StoreError::Commit`] when the changes could not be made and are known not to be there.
    fn commit(&self, what: &str, changes: &[Change]) -> Result<(), StoreError>;

    /// One value.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn get(&self, table: Table, key: &str) -> Result<Option<Vec<u8>>, StoreError>;

    /// A number that [`Change::Raise`] keeps; 0 for none.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn number(&self, key: &str) -> Result<u64, StoreError>;

    /// Every value whose key begins with `prefix`, in key order.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn scan(&self, table: Table, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError>;

    /// At most `keys_max` keys of a table after `after`, in key order. No value is read.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn keys(&self, table: Table, after: &str, keys_max: usize) -> Result<Vec<String>, StoreError>;

    /// The destination of every ledger, in order. No entry is read.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn destinations(&self) -> Result<Vec<String>, StoreError>;

    /// Newest entry of every ledger whose destination begins with `prefix`.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn heads(&self, prefix: &str) -> Result<Vec<(String, u64, Vec<u8>)>, StoreError>;

    /// At most `entries_max` entries of a ledger, newest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn ledger(
        &self,
        destination: &str,
        entries_max: usize,
    ) -> Result<Vec<(u64, Vec<u8>)>, StoreError>;
}

/// Key of what became of a directive: in the order of its ledger.
fn result_key(destination: &str, sequence: u64) -> String {
    format!("{destination}/{sequence:020}")
}

/// Creates an empty database file. It appears whole or not at all, readable by its owner only.
///
/// # Errors
/// When there is a file already, or it cannot be written.
pub fn create(path: &Path) -> Result<(), StoreError> {
    file::create(path)
}

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    #[error(
        "{path} is missing; if it is lost, restore it from a backup, or begin anew with `attest hub init`"
    )]
    Missing { path: String },
    #[error("{path} exists already")]
    Exists { path: String },
    #[error("{path} is in use by another hub; end that one first")]
    Locked { path: String },
    #[error("the disk that holds {path} is full; make room and repeat what was refused")]
    DiskFull { path: String },
    #[error("{path} cannot be opened")]
    Open {
        path: String,
        #[source]
        source: Box<redb::Error>,
    },
    #[error("the hub's database cannot be read")]
    Read(#[source] Box<redb::Error>),
    #[error("the hub's database did not take a change")]
    Commit(#[source] Box<redb::Error>),
    #[error("whether the hub's database took a change is not known")]
    Unknown(#[source] Box<Self>),
    #[error("{what} was changed by somebody else in the meantime; look again and repeat")]
    Conflict { what: String },
    #[error(
        "the hub's database holds {what} that this version cannot read; was it written by a newer hub?"
    )]
    Format { what: String },
}

impl StoreError {
    /// A stable word for conditions, metrics, logs and the CLI.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "StoreMissing",
            Self::Exists { .. } => "StoreExists",
            Self::Locked { .. } => "StoreLocked",
            Self::DiskFull { .. } => "DiskFull",
            Self::Open { .. } => "StoreOpen",
            Self::Read(_) => "StoreRead",
            Self::Commit(_) => "StoreCommit",
            Self::Unknown(cause) if matches!(**cause, Self::DiskFull { .. }) => cause.reason(),
            Self::Unknown(_) => "StoreUnknown",
            Self::Conflict { .. } => "Conflict",
            Self::Format { .. } => "StoreFormat",
        }
    }
}
