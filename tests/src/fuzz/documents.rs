//! Targets for documents: YAML, JSON, renderings, envelopes, statements, frames, policies.

use std::collections::BTreeMap;

use attest_common::basics::json::{DOCUMENT_DEPTH_MAX, OBJECT_DEPTH_MAX};
use attest_common::basics::keys::PrivateKey;
use attest_common::basics::{canonical, envelope, json};
use attest_common::documents::manifest;
use attest_common::documents::plan::{Directive, Plan, Sync};
use attest_common::documents::release::Release;
use attest_common::documents::statement::Statement;
use attest_common::session::frame::{self, LENGTH_BYTES};
use attest_common::session::message::{JoinAnswer, JoinRequest, ToHub, ToSpoke};
use attest_common::session::report::Report;
use attest_supply::recipe::Recipe;
use attest_supply::{trust_policy, yaml};
use prost::Message;
use serde_json::Value;

use super::seeds::{self, SIGNED};

/// What is read from YAML has one canonical form, which is read back as it is.
pub(super) fn yaml(input: &[u8]) {
    let Ok(values) = yaml::read("fuzz.yaml", input, &mut Vec::new()) else { return };
    for value in &values {
        assert!(canonical::check_numbers(value).is_ok(), "a number that cannot be signed");
    }
    let _ = Recipe::parse("attest.yaml", input);
    let Ok(rendering) = manifest::write(values) else { return };
    rendering_is_stable(&rendering);
}

/// A rendering that a verifier accepts is what its objects are written as.
pub(super) fn rendering(input: &[u8]) {
    if let Ok(objects) = manifest::read(input) {
        let _ = manifest::images(&objects);
        let values = objects.iter().map(|object| object.value().clone()).collect();
        if let Ok(written) = manifest::write(values) {
            rendering_is_stable(&written);
        }
    }
}

fn rendering_is_stable(rendering: &[u8]) {
    let objects = manifest::read(rendering).map_err(|error| error.to_string());
    let values = objects.map(|objects| {
        objects.into_iter().map(|object| object.value().clone()).collect::<Vec<Value>>()
    });
    let again = values.and_then(|values| manifest::write(values).map_err(|e| e.to_string()));
    assert_eq!(again.as_deref(), Ok(rendering));
}

/// Strict JSON means the same to another reader, and to itself once it is written canonically.
pub(super) fn json(input: &[u8]) {
    let _ = json::value(input, DOCUMENT_DEPTH_MAX);
    let Ok(value) = json::value(input, OBJECT_DEPTH_MAX) else { return };
    assert_eq!(serde_json::from_slice::<Value>(input).ok().as_ref(), Some(&value));
    let Ok(written) = canonical::to_vec(&value) else { return };
    let read = json::value(&written, OBJECT_DEPTH_MAX).map_err(|error| error.to_string());
    let again = read.and_then(|value| canonical::to_vec(&value).map_err(|e| e.to_string()));
    assert_eq!(again, Ok(written));
}

/// Only what the key has signed is opened.
pub(super) fn envelope(input: &[u8]) {
    let Ok(key) = PrivateKey::from_seed(&seeds::KEY) else { return };
    let keys = BTreeMap::from([(key.public().id(), key.public().clone())]);
    for payload_type in seeds::PAYLOAD_TYPES {
        let _ = envelope::peek(input, payload_type);
        if let Ok(opened) = envelope::open(input, payload_type, &keys) {
            let signed = SIGNED.iter().any(|payload| *payload == opened.payload());
            assert!(signed, "a payload that the key has not signed");
            assert_eq!(opened.id(), envelope::id_of(payload_type, opened.payload()));
        }
    }
}

/// Every payload that can be signed is parsed or refused.
pub(super) fn signed_document(input: &[u8]) {
    if let Ok(statement) = Statement::read(input) {
        let _ = Release::read(&statement);
        let again = Statement::read(&statement.to_bytes()).map(|again| again.to_bytes());
        assert_eq!(again.ok(), Some(statement.to_bytes()));
    }
    let _ = json::document::<Directive>(input);
    let _ = json::document::<Plan>(input);
    let _ = json::document::<Sync>(input);
    let _ = json::document::<Report>(input);
}

/// A stream of frames ends or is refused, and a frame is read back as it was written.
pub(super) fn frames(input: &[u8]) {
    let mut rest = input;
    while let Some((prefix, after)) = rest.split_first_chunk::<LENGTH_BYTES>() {
        let Ok(length) = frame::body_length(*prefix) else { return };
        let Some((body, after)) = after.split_at_checked(length) else { return };
        message_is_stable::<ToHub>(body);
        message_is_stable::<ToSpoke>(body);
        message_is_stable::<JoinRequest>(body);
        message_is_stable::<JoinAnswer>(body);
        rest = after;
    }
}

fn message_is_stable<M: Message + Default + PartialEq + std::fmt::Debug>(body: &[u8]) {
    let Ok(message) = frame::decode::<M>(body) else { return };
    let Ok(encoded) = frame::encode(&message) else { return };
    let again = encoded.get(LENGTH_BYTES..).map(frame::decode::<M>);
    assert_eq!(again.and_then(Result::ok), Some(message));
}

/// A policy that is accepted is accepted as it is written, and means the same.
pub(super) fn policy(input: &[u8]) {
    let Ok(spec) = trust_policy::read("policy.yaml", input) else { return };
    let _ = trust_policy::explain(&spec);
    let written = trust_policy::to_yaml(&spec).map_err(|error| error.to_string());
    let again = written.and_then(|text| {
        let read = trust_policy::read("policy.yaml", text.as_bytes());
        read.map_err(|error| format!("{error:?}\n{text}"))
    });
    let texts = [Ok(spec), again].map(|spec| spec.map(|spec| serde_json::to_string(&spec).ok()));
    let [before, after] = texts;
    assert_eq!(after, before);
}
