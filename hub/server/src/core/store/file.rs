//! The store in one redb file. One writer at a time. After a failed commit, the file is read to find the outcome.

use std::fs;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};

use attest_common::basics::locked::{Locked, RwLocked};
use attest_runtime::failpoint;
use redb::backends::FileBackend;
use redb::{
    Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, StorageError,
    TableDefinition, WriteTransaction,
};

use super::{Change, KEY_BYTES_MAX, Store, StoreError, Table, result_key};

/// Largest cache of the database in memory, in bytes.
pub(crate) const CACHE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most entries of a ledger; older ones are dropped.
pub(crate) const LEDGER_ENTRIES_MAX: u64 = 200;
/// Most attempts to find the outcome of a failed commit.
const REOPEN_ATTEMPTS_MAX: usize = 3;

type Records = TableDefinition<'static, &'static str, &'static [u8]>;
const LEDGER: TableDefinition<'static, (&str, u64), &[u8]> = TableDefinition::new("ledger");
const HEADS: TableDefinition<'static, &str, u64> = TableDefinition::new("heads");
const NUMBERS: TableDefinition<'static, &str, u64> = TableDefinition::new("numbers");

fn definition(table: Table) -> Records {
    TableDefinition::new(match table {
        Table::Meta => "meta",
        Table::Clusters => "clusters",
        Table::Tokens => "tokens",
        Table::Applications => "applications",
        Table::Repositories => "repositories",
        Table::Keys => "keys",
        Table::Policies => "policies",
        Table::Reports => "reports",
        Table::Results => "results",
        Table::Blobs => "blobs",
        Table::Rollouts => "rollouts",
    })
}

type Opener = Box<dyn Fn() -> Result<Database, redb::Error> + Send + Sync>;

/// The hub's database file.
pub struct RedbStore {
    path: PathBuf,
    open: Opener,
    /// `None` after a failed commit, until the file is reopened.
    database: RwLocked<Option<Database>>,
    writer: Locked<()>,
}

impl std::fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedbStore").field("path", &self.path).finish_non_exhaustive()
    }
}

pub(super) fn create(path: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::OpenOptionsExt as _;

    let name = path.display().to_string();
    if path.exists() {
        return Err(StoreError::Exists { path: name });
    }
    let unfinished = path.with_extension("redb.new");
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(opening(&name, redb::Error::Io(error)));
        }
        Ok(()) | Err(_) => {}
    }
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unfinished)
        .map_err(|source| opening(&name, redb::Error::Io(source)))?;
    let database = FileBackend::new(file)
        .map_err(redb::Error::from)
        .and_then(|backend| Ok(builder().create_with_backend(backend)?))
        .and_then(|database| make_tables(&database).map(|()| database));
    match database {
        Ok(database) => drop(database),
        Err(error) => {
            let _already_failing = fs::remove_file(&unfinished);
            return Err(opening(&name, error));
        }
    }
    fs::rename(&unfinished, path).map_err(|source| opening(&name, redb::Error::Io(source)))
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES_MAX);
    builder
}

fn make_tables(database: &Database) -> Result<(), redb::Error> {
    let transaction = begin(database)?;
    for table in Table::ALL {
        transaction.open_table(definition(table))?;
    }
    transaction.open_table(LEDGER)?;
    transaction.open_table(HEADS)?;
    transaction.open_table(NUMBERS)?;
    transaction.commit()?;
    Ok(())
}

fn begin(database: &Database) -> Result<WriteTransaction, redb::Error> {
    let mut transaction = database.begin_write()?;
    // Recovery after a crash takes a millisecond instead of a scan of the file.
    transaction.set_quick_repair(true);
    Ok(transaction)
}

fn opening(path: &str, error: redb::Error) -> StoreError {
    let path = path.to_owned();
    if is_disk_full(&error) {
        return StoreError::DiskFull { path };
    }
    if matches!(error, redb::Error::DatabaseAlreadyOpen) {
        return StoreError::Locked { path };
    }
    StoreError::Open { path, source: Box::new(error) }
}

fn is_disk_full(error: &redb::Error) -> bool {
    matches!(error, redb::Error::Io(source) if source.kind() == io::ErrorKind::StorageFull)
}

impl RedbStore {
    /// Opens a file created by [`super::create`].
    ///
    /// # Errors
    /// When it is missing, in use, or not a database.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        if !path.exists() {
            return Err(StoreError::Missing { path: path.display().to_string() });
        }
        let file = path.to_path_buf();
        Self::with_opener(path, Box::new(move || builder().open(&file).map_err(Into::into)))
    }

    fn with_opener(path: &Path, open: Opener) -> Result<Self, StoreError> {
        let database = open().map_err(|error| opening(&path.display().to_string(), error))?;
        // Adds the tables of newer versions to an older file.
        make_tables(&database).map_err(|error| opening(&path.display().to_string(), error))?;
        Ok(Self {
            path: path.to_path_buf(),
            open,
            database: RwLocked::new(Some(database)),
            writer: Locked::new(()),
        })
    }

    fn read<T>(
        &self,
        look: impl FnOnce(&redb::ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        self.reopen().map_err(|error| StoreError::Read(Box::new(error)))?;
        let guard = self.database.read();
        let database = guard.as_ref().ok_or(redb::Error::DatabaseClosed);
        database
            .and_then(|database| look(&database.begin_read()?))
            .map_err(|error| StoreError::Read(Box::new(error)))
    }

    /// Reads at most `items_max` items of a table after a key, in one transaction.
    fn after<T>(
        &self,
        table: Table,
        after: &str,
        items_max: usize,
        take: impl Fn(&str, &[u8]) -> T,
    ) -> Result<Vec<T>, StoreError> {
        self.read(|transaction| {
            let records = transaction.open_table(definition(table))?;
            let mut found = Vec::new();
            let after = (Bound::Excluded(after), Bound::Unbounded);
            for item in records.range::<&str>(after)?.take(items_max) {
                let (key, value) = item?;
                found.push(take(key.value(), value.value()));
            }
            Ok(found)
        })
    }

    /// Opens the file again if that failed after a failed commit, for example because of a full disk.
    fn reopen(&self) -> Result<(), redb::Error> {
        if self.database.read().is_some() {
            return Ok(());
        }
        let mut guard = self.database.write();
        if guard.is_none() {
            *guard = Some((self.open)()?);
        }
        Ok(())
    }

    fn write(&self, changes: &[Change]) -> Result<(), Failed> {
        self.reopen()?;
        let guard = self.database.read();
        let database = guard.as_ref().ok_or(Failed::Before(redb::Error::DatabaseClosed))?;
        let transaction = begin(database)?;
        for change in changes {
            apply(&transaction, change)?;
        }
        transaction.commit().map_err(|error| Failed::Unknown(error.into()))
    }

    /// Reopens the file after a failed commit and returns whether it contains the changes.
    fn look_up(&self, changes: &[Change]) -> Result<bool, redb::Error> {
        let mut guard = self.database.write();
        drop(guard.take());
        let database = (self.open)()?;
        let transaction = database.begin_read()?;
        let mut all = true;
        for change in changes {
            all &= is_made(&transaction, change)?;
        }
        transaction.close()?;
        *guard = Some(database);
        Ok(all)
    }
}

enum Failed {
    /// Nothing was written.
    Before(redb::Error),
    Conflict(String),
    /// The commit itself failed: the outcome is unknown.
    Unknown(redb::Error),
}

impl<E: Into<redb::Error>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self::Before(error.into())
    }
}

fn apply(transaction: &WriteTransaction, change: &Change) -> Result<(), Failed> {
    match change {
        Change::Append { destination, expected, sequence, entry } => {
            let mut heads = transaction.open_table(HEADS)?;
            let head = heads.get(destination.as_str())?.map_or(0, |head| head.value());
            if head != *expected || sequence <= expected || destination.len() > KEY_BYTES_MAX {
                return Err(Failed::Conflict(destination.clone()));
            }
            heads.insert(destination.as_str(), *sequence)?;
            let mut ledger = transaction.open_table(LEDGER)?;
            ledger.insert((destination.as_str(), *sequence), entry.as_slice())?;
            let oldest = sequence.saturating_sub(LEDGER_ENTRIES_MAX);
            drop(ledger);
            drop_entries(transaction, destination, oldest)?;
        }
        Change::Put { table, key, expected, value } => {
            let mut records = transaction.open_table(definition(*table))?;
            let holds =
                expected.holds(records.get(key.as_str())?.as_ref().map(|found| found.value()));
            if !holds || key.len() > KEY_BYTES_MAX {
                return Err(Failed::Conflict(key.clone()));
            }
            records.insert(key.as_str(), value.as_slice())?;
        }
        Change::Drop { destination, expected } => {
            let mut heads = transaction.open_table(HEADS)?;
            let head = heads.remove(destination.as_str())?.map_or(0, |head| head.value());
            if head != *expected {
                return Err(Failed::Conflict(destination.clone()));
            }
            drop_entries(transaction, destination, u64::MAX)?;
        }
        Change::Raise { key, number } => {
            if key.len() > KEY_BYTES_MAX {
                return Err(Failed::Conflict(key.clone()));
            }
            let mut numbers = transaction.open_table(NUMBERS)?;
            let current = numbers.get(key.as_str())?.map_or(0, |current| current.value());
            numbers.insert(key.as_str(), current.max(*number))?;
        }
        Change::Delete { table, key, expected } => {
            let mut records = transaction.open_table(definition(*table))?;
            let found = records.remove(key.as_str())?;
            if !expected.holds(found.as_ref().map(|found| found.value())) {
                return Err(Failed::Conflict(key.clone()));
            }
        }
    }
    Ok(())
}

/// Drops the entries of a ledger up to `newest`, and their results.
fn drop_entries(
    transaction: &WriteTransaction,
    destination: &str,
    newest: u64,
) -> Result<(), Failed> {
    let mut ledger = transaction.open_table(LEDGER)?;
    ledger.retain_in((destination, 0)..=(destination, newest), |_, _| false)?;
    let mut results = transaction.open_table(definition(Table::Results))?;
    let (first, last) = (result_key(destination, 0), result_key(destination, newest));
    results.retain_in(first.as_str()..=last.as_str(), |_, _| false)?;
    Ok(())
}

fn is_made(transaction: &redb::ReadTransaction, change: &Change) -> Result<bool, redb::Error> {
    match change {
        Change::Append { destination, sequence, entry, .. } => {
            let ledger = transaction.open_table(LEDGER)?;
            let found = ledger.get((destination.as_str(), *sequence))?;
            Ok(found.is_some_and(|found| found.value() == entry))
        }
        Change::Drop { destination, .. } => {
            Ok(transaction.open_table(HEADS)?.get(destination.as_str())?.is_none())
        }
        Change::Raise { key, number } => {
            let found = transaction.open_table(NUMBERS)?.get(key.as_str())?;
            Ok(found.is_some_and(|found| found.value() >= *number))
        }
        Change::Put { table, key, value, .. } => {
            let records = transaction.open_table(definition(*table))?;
            let found = records.get(key.as_str())?;
            Ok(found.is_some_and(|found| found.value() == value))
        }
        Change::Delete { table, key, .. } => {
            let records = transaction.open_table(definition(*table))?;
            let found = records.get(key.as_str())?;
            Ok(found.is_none())
        }
    }
}

impl Store for RedbStore {
    fn commit(&self, what: &str, changes: &[Change]) -> Result<(), StoreError> {
        let _one_writer = self.writer.lock();
        failpoint::reach(format_args!("before-{what}-commit"));
        let (error, may_be_made) = match self.write(changes) {
            Ok(()) => {
                failpoint::reach(format_args!("after-{what}-commit"));
                return Ok(());
            }
            Err(Failed::Conflict(what)) => return Err(StoreError::Conflict { what }),
            Err(Failed::Before(error)) => (error, false),
            Err(Failed::Unknown(error)) => (error, true),
        };
        // redb rejects every operation after an I/O error, so the file is reopened in both cases.
        let looked_up = (0..REOPEN_ATTEMPTS_MAX).find_map(|_| self.look_up(changes).ok());
        let failed = if is_disk_full(&error) {
            StoreError::DiskFull { path: self.path.display().to_string() }
        } else {
            StoreError::Commit(Box::new(error))
        };
        match looked_up {
            Some(true) => Ok(()),
            None if may_be_made => Err(StoreError::Unknown(Box::new(failed))),
            Some(false) | None => Err(failed),
        }
    }

    fn get(&self, table: Table, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(|transaction| {
            let records = transaction.open_table(definition(table))?;
            let found = records.get(key)?;
            Ok(found.map(|found| found.value().to_vec()))
        })
    }

    fn number(&self, key: &str) -> Result<u64, StoreError> {
        self.read(|transaction| {
            let found = transaction.open_table(NUMBERS)?.get(key)?;
            Ok(found.map_or(0, |found| found.value()))
        })
    }

    fn scan(&self, table: Table, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        self.read(|transaction| {
            let records = transaction.open_table(definition(table))?;
            let mut found = Vec::new();
            for item in records.range(prefix..)? {
                let (key, value) = item?;
                if !key.value().starts_with(prefix) {
                    break;
                }
                found.push((key.value().to_owned(), value.value().to_vec()));
            }
            Ok(found)
        })
    }

    fn keys(&self, table: Table, after: &str, keys_max: usize) -> Result<Vec<String>, StoreError> {
        self.after(table, after, keys_max, |key, _| key.to_owned())
    }

    fn page(
        &self,
        table: Table,
        after: &str,
        values_max: usize,
    ) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        self.after(table, after, values_max, |key, value| (key.to_owned(), value.to_vec()))
    }

    fn count(&self, table: Table) -> Result<u64, StoreError> {
        self.read(|transaction| Ok(transaction.open_table(definition(table))?.len()?))
    }

    fn destinations(&self) -> Result<Vec<String>, StoreError> {
        self.read(|transaction| {
            let mut found = Vec::new();
            for item in transaction.open_table(HEADS)?.iter()? {
                found.push(item?.0.value().to_owned());
            }
            Ok(found)
        })
    }

    fn heads(&self, prefix: &str) -> Result<Vec<(String, u64, Vec<u8>)>, StoreError> {
        self.read(|transaction| {
            let heads = transaction.open_table(HEADS)?;
            let ledger = transaction.open_table(LEDGER)?;
            let mut found = Vec::new();
            for item in heads.range(prefix..)? {
                let (destination, sequence) = item?;
                let destination = destination.value();
                if !destination.starts_with(prefix) {
                    break;
                }
                let sequence = sequence.value();
                let entry = ledger.get((destination, sequence))?;
                let entry = entry.ok_or_else(|| {
                    StorageError::Corrupted(format!("{destination} lacks entry {sequence}"))
                })?;
                found.push((destination.to_owned(), sequence, entry.value().to_vec()));
            }
            Ok(found)
        })
    }

    fn ledger(
        &self,
        destination: &str,
        entries_max: usize,
    ) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        self.read(|transaction| {
            let ledger = transaction.open_table(LEDGER)?;
            let range = ledger.range((destination, 0)..=(destination, u64::MAX))?;
            let mut found = Vec::new();
            for item in range.rev().take(entries_max) {
                let (key, entry) = item?;
                found.push((key.value().1, entry.value().to_vec()));
            }
            Ok(found)
        })
    }
}

#[cfg(test)]
mod tests;
