//! Envelopes that must open, and the many more that must not.

use super::*;

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_seed(&[seed; 32]).unwrap()
}

fn ring(keys: &[&PrivateKey]) -> BTreeMap<KeyId, PublicKey> {
    keys.iter().map(|k| (k.public().id(), k.public().clone())).collect()
}

fn reason(envelope: &[u8], keys: &BTreeMap<KeyId, PublicKey>) -> &'static str {
    open(envelope, STATEMENT_TYPE, keys).map_or_else(|e| e.reason().as_str(), |_| "opened")
}

#[test]
fn signed_bytes_come_back_with_their_signer() {
    let ci = key(1);
    let envelope = seal(STATEMENT_TYPE, b"payload", &[&ci]);

    let opened = open(&envelope, STATEMENT_TYPE, &ring(&[&ci])).unwrap();

    assert_eq!(opened.payload(), b"payload");
    assert_eq!(opened.signers().iter().collect::<Vec<_>>(), [&ci.public().id()]);
    assert_eq!(opened.id(), id_of(STATEMENT_TYPE, b"payload"));
}

#[test]
fn flipping_any_bit_of_an_envelope_never_yields_other_bytes() {
    let ci = key(1);
    let trusted = ring(&[&ci]);
    let golden = seal(STATEMENT_TYPE, b"{\"release\":1}", &[&ci]);
    let original = open(&golden, STATEMENT_TYPE, &trusted).unwrap();
    for index in 0..golden.len() {
        for bit in 0..8 {
            let mut forged = golden.clone();
            forged[index] ^= 1 << bit;
            if let Ok(opened) = open(&forged, STATEMENT_TYPE, &trusted) {
                // Only the unauthenticated hint may differ.
                assert_eq!(opened, original, "byte {index} bit {bit}");
            }
        }
    }
}

#[test]
fn a_key_id_that_names_a_trusted_key_does_not_help_a_stranger() {
    let (ci, stranger) = (key(1), key(2));
    let forged = String::from_utf8(seal(STATEMENT_TYPE, b"x", &[&stranger]))
        .unwrap()
        .replace(&stranger.public().id().to_string(), &ci.public().id().to_string());

    assert_eq!(reason(forged.as_bytes(), &ring(&[&ci])), "SignatureInvalid");
}

#[test]
fn a_wrong_or_empty_hint_does_not_hurt_a_good_signature() {
    let ci = key(1);
    let honest = String::from_utf8(seal(STATEMENT_TYPE, b"x", &[&ci])).unwrap();
    for hint in ["", "somebody"] {
        let renamed = honest.replace(&ci.public().id().to_string(), hint);
        assert_eq!(reason(renamed.as_bytes(), &ring(&[&ci])), "opened");
    }
}

#[test]
fn a_type_opens_as_itself_only() {
    let hub = key(1);
    let types = [STATEMENT_TYPE, PLAN_TYPE, DIRECTIVE_TYPE, SYNC_TYPE];
    for sealed in types {
        let envelope = seal(sealed, b"x", &[&hub]);
        for asked in types {
            let result = open(&envelope, asked, &ring(&[&hub]));
            match result {
                Ok(_) => assert_eq!(sealed, asked),
                Err(error) => {
                    assert_eq!((sealed == asked, error.reason().as_str()), (false, "PayloadType"))
                }
            }
        }
    }
    for variant in ["application/vnd.in-toto+JSON", "application/vnd.in-toto+json ", ""] {
        assert_eq!(reason(&seal(variant, b"x", &[&hub]), &ring(&[&hub])), "PayloadType");
    }
}

#[test]
fn the_boundary_between_type_and_payload_cannot_be_moved() {
    let one = pre_authentication_encoding("ab", b"c");
    let other = pre_authentication_encoding("a", b"bc");

    assert_ne!(one, other);
}

#[test]
fn encodings_that_two_decoders_read_differently_are_refused() {
    let ci = key(1);
    let trusted = ring(&[&ci]);
    let text = |payload: &str, signature: &str| {
        format!(
            r#"{{"payloadType":"{STATEMENT_TYPE}","payload":"{payload}","signatures":[{{"keyid":"","sig":"{signature}"}}]}}"#
        )
    };
    let message = pre_authentication_encoding(STATEMENT_TYPE, &[0]);
    let signature = BASE64.encode(&ci.sign(&message));
    assert_eq!(reason(text("AA==", &signature).as_bytes(), &trusted), "opened");
    let url_safe = BASE64URL.encode(&ci.sign(&message));
    assert_eq!(reason(text("AA==", &url_safe).as_bytes(), &trusted), "opened");
    for payload in ["AA", "AA= =", "AR==", "A-+=", "!!"] {
        assert_eq!(reason(text(payload, &signature).as_bytes(), &trusted), "EnvelopeBase64");
    }
    for short in ["", "AA==", &BASE64.encode(&[0; 64]), &BASE64.encode(&[1; 65])] {
        assert_eq!(reason(text("AA==", short).as_bytes(), &trusted), "SignatureInvalid");
    }
    let twice = text("AA==", &signature).replacen('{', r#"{"pay\u006coad":"AQ==","#, 1);
    assert_eq!(reason(twice.as_bytes(), &trusted), "EnvelopeMalformed");
}

#[test]
fn floods_are_refused_before_any_signature_is_checked() {
    let ci = key(1);
    let many: Vec<_> = (0..9).map(|_| &ci).collect();

    assert_eq!(reason(&seal(STATEMENT_TYPE, b"x", &many), &ring(&[&ci])), "Limit");
    assert_eq!(reason(&vec![b' '; ENVELOPE_BYTES_MAX + 1], &ring(&[&ci])), "Limit");
}

#[test]
fn a_good_signature_beside_a_bad_one_counts() {
    let (ci, stranger) = (key(1), key(2));
    let envelope = seal(STATEMENT_TYPE, b"x", &[&stranger, &ci]);

    let opened = open(&envelope, STATEMENT_TYPE, &ring(&[&ci])).unwrap();

    assert_eq!(opened.signers().len(), 1);
}
