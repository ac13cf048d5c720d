use std::path::Path;
use std::sync::Arc;

use attest_common::basics::ids::ClusterId;
use attest_common::basics::keys::PrivateKey;
use attest_common::basics::reason::Reason;

use super::*;
use crate::core::metrics::Metrics;
use crate::core::position::SEQUENCE_MAX;
use crate::core::store::records::Records;
use crate::core::store::{self, RedbStore};

fn core(directory: &Path) -> Arc<Core> {
    let path = directory.join("hub.redb");
    store::create(&path).unwrap();
    let records = Records::new(Arc::new(RedbStore::open(&path).unwrap()));
    let signer = Signer::new(PrivateKey::from_seed(&[1; 32]).unwrap());
    Core::start(records, signer, Metrics::new().unwrap()).unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn removal(namespace: &str) -> PlannedDirective {
    let destination = DestinationKey {
        application: name("web"),
        cluster: ClusterId::of_identity_key(&[1; 32]),
        namespace: name(namespace),
    };
    let place = (name("cluster"), name(namespace));
    PlannedDirective {
        destination,
        head: None,
        content: Content::Removal,
        place,
        repair: false,
        rollout: None,
    }
}

fn order(core: &Core, namespace: &str) -> (DestinationKey, LedgerEntry) {
    let directive = removal(namespace);
    let changes = RolloutChanges::default();
    let committed = commit(core, &name("web"), &[&directive], changes, ChangeTimings::default());
    committed.unwrap().entries.remove(0)
}

#[test]
fn a_generation_is_never_given_again_after_its_destination_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let core = core(directory.path());

    let (destination, first) = order(&core, "a");
    assert!(!core.fleet.set_heads(vec![(destination.clone(), first.clone())]));
    let dropped = records::drop_ledger(&destination, first.sequence);
    core.records.commit("application", &dropped).unwrap();
    core.fleet.forget_destination(&destination);
    let (_, second) = order(&core, "a");

    assert_eq!((first.generation, second.generation), (1, 2));
    assert!(second.sequence > first.sequence);
    let of_another = next_generation(&core, &name("api")).unwrap();
    assert_eq!(of_another, 1, "each application has its own");
}

#[test]
fn nothing_is_signed_beyond_the_last_sequence() {
    let directory = tempfile::tempdir().unwrap();
    let core = core(directory.path());
    let (_, entry) = order(&core, "a");
    let last = LedgerEntry { sequence: SEQUENCE_MAX, ..entry };
    let removal = PlannedDirective { head: Some(Arc::new(last)), ..removal("a") };

    let refused = commit(
        &core,
        &name("web"),
        &[&removal],
        RolloutChanges::default(),
        ChangeTimings::default(),
    );

    let error = refused.unwrap_err();
    assert_eq!(error.reason(), Reason::SequenceUsedUp);
    assert!(error.to_string().contains("`attest hub init`"), "{error}");
}

#[test]
fn where_no_generation_is_kept_the_ledgers_say_which_was_the_last() {
    let directory = tempfile::tempdir().unwrap();
    let core = core(directory.path());
    let (destination, entry) = order(&core, "a");
    let old = LedgerEntry { generation: 7, ..entry };
    assert!(!core.fleet.set_heads(vec![(destination, old)]));

    let (_, next) = order(&core, "b");

    assert_eq!(next.generation, 8);
}

#[test]
fn directives_of_one_pass_share_their_generation() {
    let directory = tempfile::tempdir().unwrap();
    let core = core(directory.path());
    let (a, b) = (removal("a"), removal("b"));

    let changes = RolloutChanges::default();
    let committed = commit(&core, &name("web"), &[&a, &b], changes, ChangeTimings::default());
    let committed = committed.unwrap();

    let generations: Vec<u64> = committed.entries.iter().map(|(_, e)| e.generation).collect();
    assert_eq!(generations, [1, 1]);
}
