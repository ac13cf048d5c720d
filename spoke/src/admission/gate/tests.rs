use attest_common::basics::keys::PrivateKey;
use attest_common::documents::plan::{FinalizedBy, to_bytes};
use attest_common::trust::policy::Spec;

use super::*;
use crate::ledger::records::tests::{object_key, record as recorded};
use crate::trust::policy::tests::object;

const NOW: &str = "2026-11-22T12:00:00Z";

/// A directive for the cluster of the test policy.
pub(crate) fn directive_of(sequence: u64) -> Directive {
    Directive {
        v: 1,
        cluster: "c-0123456789abcdef".parse().unwrap(),
        application: Name::new("web").unwrap(),
        namespace: Name::new("shop").unwrap(),
        epoch: 1,
        sequence,
        generation: 1,
        attempt: 1,
        operation: Operation::Progress,
        cap_percent: 100,
        plan: Some(Digest::of(b"plan")),
        repair: false,
        stage: None,
        soak_ms: None,
        paused: false,
        finalize: FinalizedBy::Spoke,
        keep_failed: false,
        issued_at: NOW.parse().unwrap(),
        expires_at: "2026-11-22T13:00:00Z".parse().unwrap(),
    }
}

/// The removal of what [`crate::ledger::records::tests::record`] records, as it was sent and as it is judged.
pub(crate) fn removal() -> (Vec<u8>, Verified<Removal>) {
    let ordered = Directive { operation: Operation::Remove, plan: None, ..directive_of(8) };
    let hub = PrivateKey::from_seed(&[1; 32]).unwrap();
    let directive = envelope::seal(DIRECTIVE_TYPE, &to_bytes(&ordered), &[&hub]);
    let mut spec = object()["spec"].clone();
    spec["applications"] = serde_json::json!([{
        "names": ["*"], "repos": ["*"], "namespaces": ["*"], "minimumMode": "Strict",
        "requiredAttestations": ["build"], "remove": {"allow": true},
    }]);
    let policy = serde_json::from_value::<Spec>(spec).unwrap().load().unwrap();
    let record = Record { binding: Some("https://git.example/web".to_owned()), ..recorded() };
    let key = (record.application.clone(), record.namespace.clone());
    let view = GateContext {
        policy: &policy,
        cluster: &"c-0123456789abcdef".parse().unwrap(),
        records: &DestinationRecords::from([(key, record)]),
        kinds: &Kinds::built_in(),
        now: NOW.parse().unwrap(),
        ages: Ages::Enforce,
        lost: None,
        repeated: RepeatedDirective::Report,
        offers: &Offers::new(),
    };
    match judge(&directive, None, |_| None, &view) {
        Ok(PushDecision::Remove(removal)) => (directive, *removal),
        other => panic!("{other:?}"),
    }
}

fn directive() -> Vec<u8> {
    let hub = PrivateKey::from_seed(&[1; 32]).unwrap();
    envelope::seal(DIRECTIVE_TYPE, &to_bytes(&directive_of(1)), &[&hub])
}

#[test]
fn while_records_are_missing_nothing_is_admitted_however_well_it_is_signed() {
    let spec: Spec = serde_json::from_value(object()["spec"].clone()).unwrap();
    let (policy, records) = (spec.load().unwrap(), DestinationRecords::new());
    let (cluster, kinds) = ("c-0123456789abcdef".parse().unwrap(), Kinds::built_in());
    let offers = Offers::new();
    let view = |lost| GateContext {
        policy: &policy,
        cluster: &cluster,
        records: &records,
        kinds: &kinds,
        now: NOW.parse().unwrap(),
        ages: Ages::Enforce,
        lost,
        repeated: RepeatedDirective::Report,
        offers: &offers,
    };
    let judged = |lost| judge(&directive(), Some(Digest::of(b"envelope")), |_| None, &view(lost));

    assert!(matches!(judged(None), Ok(PushDecision::NeedBlobs(..))));
    let refused = judged(Lost::of(2, 1)).unwrap_err();
    assert_eq!(refused.reason().as_str(), "StateLost");
    assert!(refused.to_string().contains("of 2 records of this spoke 1 are left"), "{refused}");
}

#[test]
fn what_was_written_keeps_its_version_until_it_is_written_by_another() {
    let (old, new) = (object_key("Widget", "old"), object_key("Widget", "new"));
    let before = Owned {
        key: old.clone(),
        version: "v1beta1".to_owned(),
        uid: Some("uid".to_owned()),
        preexisting: false,
        orphan: false,
        wave: 0,
    };
    let rendered = |key: &ObjectKey, version: &str| Owned {
        key: key.clone(),
        version: version.to_owned(),
        uid: None,
        ..before.clone()
    };

    let after =
        about_to_write(vec![before.clone()], vec![rendered(&old, "v1"), rendered(&new, "v1")]);

    let [kept, added] = &after[..] else { panic!() };
    assert_eq!(*kept, before);
    assert_eq!((&added.key, &added.version[..], &added.uid), (&new, "v1", &None));
    // Nothing is known to be written by the former version.
    let after = about_to_write(vec![added.clone()], vec![rendered(&new, "v2")]);
    assert_eq!(after, [Owned { version: "v2".to_owned(), ..added.clone() }]);
    // An object that is to be released stays so until a version without the annotation is written.
    let orphan = Owned { orphan: true, wave: 3, ..before.clone() };
    let after = about_to_write(vec![orphan.clone()], vec![rendered(&old, "v1")]);
    assert_eq!(after, [Owned { wave: 0, ..orphan.clone() }]);
    let after = about_to_write(vec![before.clone()], vec![orphan.clone()]);
    assert_eq!(after, [orphan]);
}

#[test]
fn an_oversized_directive_is_refused_before_it_is_read() {
    let largest = vec![b' '; DIRECTIVE_BYTES_MAX];
    assert!(check_size(&largest).is_ok());

    let error = check_size(&[largest, b"{".to_vec()].concat()).unwrap_err();
    assert_eq!(error.reason().as_str(), "Limit");
}
