use crate::destination::fixture::admit;

#[test]
fn fixture_works() {
    let first = admit(None, &["a", "b"], "one");
    assert_eq!(first.entry.record.inventory.len(), 2);
    let second = admit(Some(&first.entry), &["a"], "two");
    assert_eq!(second.entry.record.sequence, 2);
}
