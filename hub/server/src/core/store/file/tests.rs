use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use attest_common::basics::reason::Reason;
use redb::StorageBackend;
use redb::backends::FileBackend;

type BackendIoError = io::Error;

use super::*;
use crate::core::store::Expected;

fn append(expected: u64, sequence: u64) -> Change {
    Change::Append {
        destination: "web/c-0123456789abcdef/app".into(),
        expected,
        sequence,
        entry: sequence.to_string().into_bytes(),
    }
}

fn put(key: &str, expected: Expected, value: &str) -> Change {
    Change::Put { table: Table::Keys, key: key.into(), expected, value: value.into() }
}

fn delete(key: &str, value: &str) -> Change {
    let expected = Expected::Exactly(value.into());
    Change::Delete { table: Table::Keys, key: key.into(), expected }
}

fn new_file() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("hub.redb");
    create(&path).unwrap();
    (directory, path)
}

#[test]
fn a_ledger_only_grows_from_the_entry_that_was_read() {
    let (_directory, path) = new_file();
    let store = RedbStore::open(&path).unwrap();

    store.commit("t", &[append(0, 1)]).unwrap();
    store.commit("t", &[append(1, 2)]).unwrap();

    for stale in [append(0, 3), append(1, 3), append(2, 2), append(2, 1), append(3, 4)] {
        assert_eq!(store.commit("t", &[stale]).unwrap_err().reason().as_str(), "Conflict");
    }
    // A hub restored from a backup goes on above what its spokes have seen.
    store.commit("t", &[append(2, 9)]).unwrap();
    let sequences: Vec<u64> =
        store.ledger("web/c-0123456789abcdef/app", 10).unwrap().iter().map(|e| e.0).collect();
    assert_eq!(sequences, [9, 2, 1]);
    assert_eq!(store.heads("").unwrap()[0].1, 9);
    assert!(store.heads("x").unwrap().is_empty());
}

#[test]
fn one_failed_expectation_undoes_the_whole_commit() {
    let (_directory, path) = new_file();
    let store = RedbStore::open(&path).unwrap();
    store.commit("t", &[put("a", Expected::Absent, "1")]).unwrap();

    let refused = store.commit("t", &[append(0, 1), put("a", Expected::Absent, "2")]);

    assert_eq!(refused.unwrap_err().reason().as_str(), "Conflict");
    assert!(store.heads("").unwrap().is_empty());
    assert_eq!(store.get(Table::Keys, "a").unwrap().unwrap(), b"1");
    store.commit("t", &[put("a", Expected::Exactly(b"1".to_vec()), "2")]).unwrap();
    assert_eq!(store.get(Table::Keys, "a").unwrap().unwrap(), b"2");
}

#[test]
fn only_what_was_read_is_deleted() {
    let (_directory, path) = new_file();
    let store = RedbStore::open(&path).unwrap();
    store.commit("t", &[put("a", Expected::Absent, "2")]).unwrap();

    for stale in [delete("a", "1"), delete("b", "1")] {
        assert_eq!(store.commit("t", &[stale]).unwrap_err().reason().as_str(), "Conflict");
    }
    assert!(store.get(Table::Keys, "a").unwrap().is_some());
    store.commit("t", &[delete("a", "2")]).unwrap();
    assert!(store.get(Table::Keys, "a").unwrap().is_none());
}

#[test]
fn the_file_is_private_and_a_second_hub_is_told_who_has_it() {
    use std::os::unix::fs::PermissionsExt as _;

    let (directory, path) = new_file();
    let _store = RedbStore::open(&path).unwrap();

    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(RedbStore::open(&path).unwrap_err().reason().as_str(), "StoreLocked");
    assert_eq!(create(&path).unwrap_err().reason().as_str(), "StoreExists");
    let gone = directory.path().join("gone.redb");
    assert_eq!(RedbStore::open(&gone).unwrap_err().reason().as_str(), "StoreMissing");
    fs::write(&gone, b"not a database").unwrap();
    assert_eq!(RedbStore::open(&gone).unwrap_err().reason().as_str(), "StoreOpen");
}

#[test]
fn old_entries_of_a_ledger_are_dropped() {
    let (_directory, path) = new_file();
    let store = RedbStore::open(&path).unwrap();
    for sequence in 1..=LEDGER_ENTRIES_MAX + 5 {
        store.commit("t", &[append(sequence - 1, sequence)]).unwrap();
    }

    let kept = store.ledger("web/c-0123456789abcdef/app", usize::MAX).unwrap();

    assert_eq!(kept.len() as u64, LEDGER_ENTRIES_MAX);
    assert_eq!(kept.first().unwrap().0, LEDGER_ENTRIES_MAX + 5);
}

/// A file whose disk answers one sync with an error, before or after doing it.
#[derive(Debug)]
struct FailingSync {
    inner: FileBackend,
    /// Syncs until the failing one; wraps when there is none to come.
    left: Arc<AtomicUsize>,
    does_it: bool,
}

impl StorageBackend for FailingSync {
    fn len(&self) -> Result<u64, BackendIoError> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), BackendIoError> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> Result<(), BackendIoError> {
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> Result<(), BackendIoError> {
        if self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            if self.does_it {
                self.inner.sync_data()?;
            }
            return Err(io::Error::other("the disk says no"));
        }
        self.inner.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), BackendIoError> {
        self.inner.write(offset, data)
    }

    fn close(&self) -> Result<(), BackendIoError> {
        self.inner.close()
    }
}

#[test]
fn a_commit_that_answers_with_an_error_is_looked_up_and_never_half_there() {
    let mut hit = BTreeSet::new();
    for does_it in [false, true] {
        for fails_at in 1..6 {
            let (_directory, path) = new_file();
            let left = Arc::new(AtomicUsize::new(0));
            let (file, counter) = (path.clone(), left.clone());
            let store = RedbStore::with_opener(
                &path,
                Box::new(move || {
                    let file = fs::OpenOptions::new().read(true).write(true).open(&file)?;
                    let inner = FileBackend::new(file)?;
                    let left = counter.clone();
                    let backend = FailingSync { inner, left, does_it };
                    Ok(builder().create_with_backend(backend)?)
                }),
            )
            .unwrap();
            store.commit("t", &[append(0, 1), put("gone", Expected::Absent, "1")]).unwrap();

            left.store(fails_at, Ordering::SeqCst);
            let changes = [append(1, 2), put("a", Expected::Absent, "1"), delete("gone", "1")];
            let answer = store.commit("t", &changes);
            if left.load(Ordering::SeqCst) != fails_at {
                hit.insert((does_it, answer.is_ok()));
            }
            left.store(0, Ordering::SeqCst);

            let head = store.heads("").unwrap()[0].1;
            let value = store.get(Table::Keys, "a").unwrap();
            assert_eq!(answer.is_ok(), head == 2, "sync {fails_at}, done {does_it}");
            assert_eq!(value.is_some(), head == 2, "half a commit");
            let gone = store.get(Table::Keys, "gone").unwrap().is_none();
            assert_eq!(gone, head == 2, "half a commit");
            if answer.is_err() {
                store.commit("t", &changes).unwrap();
            }
        }
    }
    assert!(hit.contains(&(false, false)), "no commit failed: the test tests nothing");
    assert!(hit.contains(&(true, true)), "no commit was found although it answered with an error");
}

/// A disk that is full for one write.
#[derive(Debug)]
struct FullDisk {
    inner: FileBackend,
    full: Arc<AtomicBool>,
}

impl StorageBackend for FullDisk {
    fn len(&self) -> Result<u64, BackendIoError> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), BackendIoError> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> Result<(), BackendIoError> {
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> Result<(), BackendIoError> {
        self.inner.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), BackendIoError> {
        if self.full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.inner.write(offset, data)
    }

    fn close(&self) -> Result<(), BackendIoError> {
        self.inner.close()
    }
}

#[test]
fn a_full_disk_is_named_and_the_store_goes_on_when_there_is_room() {
    let (_directory, path) = new_file();
    let full = Arc::new(AtomicBool::new(false));
    let (file, switch) = (path.clone(), full.clone());
    let store = RedbStore::with_opener(
        &path,
        Box::new(move || {
            let file = fs::OpenOptions::new().read(true).write(true).open(&file)?;
            let backend = FullDisk { inner: FileBackend::new(file)?, full: switch.clone() };
            Ok(builder().create_with_backend(backend)?)
        }),
    )
    .unwrap();
    store.commit("t", &[append(0, 1)]).unwrap();

    full.store(true, Ordering::SeqCst);
    let refused = store.commit("t", &[append(1, 2)]).unwrap_err();
    full.store(false, Ordering::SeqCst);

    assert_eq!(refused.reason().as_str(), "DiskFull");
    store.commit("t", &[append(1, 2)]).unwrap();
    assert_eq!(store.heads("").unwrap()[0].1, 2);
}

#[test]
fn a_ledger_goes_with_its_results_and_begins_anew() {
    let (_directory, path) = new_file();
    let store = RedbStore::open(&path).unwrap();
    let destination = "web/c-0123456789abcdef/app".to_owned();
    let result = |destination: &str| Change::Put {
        table: Table::Results,
        key: result_key(destination, 1),
        expected: Expected::Anything,
        value: b"Synced".to_vec(),
    };
    store.commit("t", &[append(0, 1), result(&destination), result("web/other/app")]).unwrap();
    let drop = |expected| Change::Drop { destination: destination.clone(), expected };

    assert_eq!(store.commit("t", &[drop(2)]).unwrap_err().reason().as_str(), "Conflict");
    store.commit("t", &[drop(1)]).unwrap();

    assert!(store.destinations().unwrap().is_empty());
    assert!(store.ledger(&destination, 9).unwrap().is_empty());
    let kept = store.keys(Table::Results, "", 9).unwrap();
    assert_eq!(kept, [result_key("web/other/app", 1)]);
    store.commit("t", &[append(0, 1)]).unwrap();
}

#[test]
fn keys_are_listed_in_pages_without_what_came_before() {
    let (_directory, path) = new_file();
    let store = RedbStore::open(&path).unwrap();
    let puts: Vec<Change> = ["a", "b", "c"].map(|key| put(key, Expected::Absent, "1")).into();
    store.commit("t", &puts).unwrap();

    assert_eq!(store.keys(Table::Keys, "", 2).unwrap(), ["a", "b"]);
    assert_eq!(store.keys(Table::Keys, "b", 2).unwrap(), ["c"]);
    assert!(store.keys(Table::Keys, "c", 2).unwrap().is_empty());
}

#[test]
fn a_commit_that_cannot_be_looked_up_is_unknown_and_the_store_goes_on_when_it_can() {
    let mut reasons = BTreeSet::new();
    for fails_at in 1..6 {
        let (_directory, path) = new_file();
        let (left, gone) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (file, counter, switch) = (path.clone(), left.clone(), gone.clone());
        let store = RedbStore::with_opener(
            &path,
            Box::new(move || {
                if switch.load(Ordering::SeqCst) {
                    return Err(redb::Error::Io(io::Error::other("the disk is away")));
                }
                let file = fs::OpenOptions::new().read(true).write(true).open(&file)?;
                let inner = FileBackend::new(file)?;
                let backend = FailingSync { inner, left: counter.clone(), does_it: true };
                Ok(builder().create_with_backend(backend)?)
            }),
        )
        .unwrap();
        store.commit("t", &[append(0, 1)]).unwrap();

        gone.store(true, Ordering::SeqCst);
        left.store(fails_at, Ordering::SeqCst);
        let Err(error) = store.commit("t", &[append(1, 2)]) else { continue };
        reasons.insert(error.reason());
        assert_eq!(store.heads("").unwrap_err().reason().as_str(), "StoreRead");
        left.store(0, Ordering::SeqCst);
        gone.store(false, Ordering::SeqCst);

        // Whoever reads it now knows.
        let head = store.heads("").unwrap()[0].1;
        assert!(head == 1 || error.reason() == Reason::StoreUnknown, "it was made and denied");
        store.commit("t", &[append(head, head + 1)]).unwrap();
    }
    assert!(reasons.contains(&Reason::StoreUnknown), "{reasons:?}: the test tests nothing");
}

#[test]
fn a_number_that_is_kept_only_rises_and_survives_a_restart() {
    let (_directory, path) = new_file();
    let store = RedbStore::open(&path).unwrap();
    let raise = |number| [Change::Raise { key: "c-1".into(), number }];
    assert_eq!(store.number("c-1").unwrap(), 0);

    store.commit("t", &raise(7)).unwrap();
    store.commit("t", &raise(3)).unwrap();
    drop(store);

    let store = RedbStore::open(&path).unwrap();
    assert_eq!((store.number("c-1").unwrap(), store.number("c-2").unwrap()), (7, 0));
}
