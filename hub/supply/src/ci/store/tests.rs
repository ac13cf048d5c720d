//! Tests of counters, of the retention of receipts and of atomic writes.

use super::*;

#[test]
fn a_counter_always_exceeds_the_last() {
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let seconds = u64::try_from(now.as_second()).unwrap();
    let known = |last: u64| BTreeSet::from([1, last]);
    let next = |wanted, known: &BTreeSet<u64>| next_counter(wanted, known, now);

    assert_eq!(next(Counter::UnixSeconds, &BTreeSet::new()).unwrap(), seconds);
    assert_eq!(next(Counter::UnixSeconds, &known(seconds)).unwrap(), seconds + 1);
    assert_eq!(next(Counter::UnixSeconds, &known(seconds + 7)).unwrap(), seconds + 8);
    assert_eq!(next(Counter::Value(8), &known(7)).unwrap(), 8);
    assert_eq!(
        next(Counter::Value(7), &known(7)).unwrap_err().reason().as_str(),
        "CounterRegressed"
    );
}

#[test]
fn the_newest_twenty_releases_and_those_of_current_renderings_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let store = ReleaseStore::new(directory.path(), "web");
    let rendering = (String::from("all"), b"{}\n".to_vec());
    let renders = BTreeSet::from([String::from("all")]);
    let subject =
        attest_common::documents::statement::Subject::new("manifests/all", Digest::of(b"{}\n"));
    let needed = Statement::new(vec![subject], RELEASE_TYPE, serde_json::Value::Null);
    let key = attest_common::basics::keys::PrivateKey::from_seed(&[7; 32]).unwrap();
    let needed = envelope::seal(STATEMENT_TYPE, &needed.to_bytes(), &[&key]);
    let file =
        |bytes: &[u8]| vec![SignedFile { name: "release.json".into(), bytes: bytes.to_vec() }];

    let write = |counter, bytes: &[u8], renderings: &[(String, Vec<u8>)]| {
        store.write(counter, &file(bytes), renderings, &renders).unwrap().commit().unwrap();
    };
    write(1, b"other", &[]);
    write(2, &needed, &[rendering]);
    for counter in 3..30 {
        write(counter, b"other", &[]);
    }

    let kept: Vec<u64> = store.counters_on_disk().unwrap().into_iter().collect();
    let expected: Vec<u64> = std::iter::once(2).chain(10..30).collect();
    assert_eq!(kept, expected);
}

#[test]
fn a_release_that_cannot_be_written_or_staged_leaves_the_previous_one_unchanged() {
    let directory = tempfile::tempdir().unwrap();
    let store = ReleaseStore::new(directory.path(), "web");
    let file = |name: &str| vec![SignedFile { name: name.into(), bytes: b"{}".to_vec() }];
    let renderings = |text: &str, names: &[&str]| -> Vec<(String, Vec<u8>)> {
        names.iter().map(|name| ((*name).to_owned(), text.as_bytes().to_vec())).collect()
    };
    let renders = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let first = renderings("first\n", &["a", "b", "gone"]);
    let written = store.write(1, &file("release.json"), &first, &renders(&["a", "b", "gone"]));
    written.unwrap().commit().unwrap();
    let before = all_files(directory.path());
    let second = renderings("second\n", &["a", "b", "new"]);
    let wanted = renders(&["a", "b", "new"]);

    // A name in a missing directory represents a disk that becomes full.
    let last = [second.clone(), renderings("second\n", &["not/there"])].concat();
    let error = store.write(2, &file("release.json"), &last, &wanted).unwrap_err();
    assert!(error.to_string().contains("not/there"), "{error}");
    assert_eq!(all_files(directory.path()), before);

    store.write(2, &file("release.json"), &second, &wanted).unwrap().roll_back();
    assert_eq!(all_files(directory.path()), before);
    store.write(2, &file("release.json"), &second, &wanted).unwrap().commit().unwrap();
    let after = all_files(directory.path());
    assert_ne!(after, before);
    assert!(after.iter().all(|(path, _)| !path.contains("gone") && !path.contains("/.web")));
}

fn all_files(root: &Path) -> BTreeSet<(String, Vec<u8>)> {
    let mut found = BTreeSet::new();
    let mut pending = vec![root.to_owned()];
    while let Some(place) = pending.pop() {
        if place.is_dir() {
            pending.extend(fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            found.insert((place.display().to_string(), fs::read(&place).unwrap()));
        }
    }
    found
}
