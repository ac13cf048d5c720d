//! The exact bytes of signed documents and frames, beside this file. Every build writes them unchanged.
//!
//! Clusters hold such bytes for years and peers of other versions read them. A line that has to change
//! here means a new version of a format, never a new golden file.

use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::basics::envelope::{DIRECTIVE_TYPE, seal};
use crate::basics::ids::{ClusterId, Digest, Name, Timestamp};
use crate::basics::keys::PrivateKey;
use crate::basics::reason::Reason;
use crate::basics::terms::Mode;
use crate::documents::manifest::{self, ObjectKey};
use crate::documents::plan::{
    ContentBlob, Directive, FinalizedBy, Head, Operation, Plan, RequestedPolicy, SignedBlob,
    StageReference, Strategy, Sync, SyncPolicy, to_bytes,
};
use crate::documents::release::{NamespaceRule, RENDERING_TYPE};
use crate::objects::health::Health;
use crate::record::custody::{self, Confirmed, HubStatus, PackedBlobs, StoredRefusal, StoredSoak};
use crate::record::rollback::RollbackPoint;
use crate::record::rollout::{Abort, Rollout, RolloutState};
use crate::record::{Floor, Held, Owned, Record};
use crate::session::FEATURE_ROLLOUT;
use crate::session::frame;
use crate::session::message::{Hello, Seen, ToHub, ToHubBody};
use crate::session::report::{
    ObjectState, Phase, Refusal, Report, RolloutStatus, Running, Timings,
};
use crate::verify::Check;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn hub_key() -> PrivateKey {
    PrivateKey::from_seed(&[1; 32]).unwrap()
}

fn signed_blob(content: &str) -> SignedBlob {
    SignedBlob {
        id: Digest::of(format!("{content}, signed").as_bytes()),
        sha256: Digest::of(content.as_bytes()),
        size: content.len() as u64,
    }
}

fn plan() -> Plan {
    Plan {
        v: 1,
        application: name("web-app"),
        release: signed_blob("release"),
        render: "production".to_owned(),
        content: ContentBlob {
            sha256: Digest::of(b"content"),
            size: 7,
            objects: 2,
            media_type: RENDERING_TYPE.to_owned(),
        },
        receipts: vec![signed_blob("build"), signed_blob("test")],
        namespace: NamespaceRule::Fixed { value: name("app-production") },
        policy: RequestedPolicy {
            mode: Mode::Strict,
            required_attestations: ["build", "test"].map(String::from).into(),
            trusted_keys: Some([hub_key().public().id()].into()),
        },
        sync: SyncPolicy { prune: true, self_heal: true, adopt: false },
        strategy: Strategy::default(),
        hooks: vec![json!({"name": "smoke"})],
    }
}

fn directive() -> Directive {
    Directive {
        v: 1,
        cluster: ClusterId::of_identity_key(&[9; 32]),
        application: name("web-app"),
        namespace: name("app-production"),
        epoch: 3,
        sequence: 42,
        generation: 7,
        attempt: 1,
        operation: Operation::Progress,
        cap_percent: 100,
        plan: Some(Digest::of(&to_bytes(&plan()))),
        repair: false,
        stage: None,
        soak_ms: None,
        paused: false,
        finalize: FinalizedBy::Spoke,
        keep_failed: false,
        issued_at: time("2026-11-22T12:00:00Z"),
        expires_at: time("2026-11-23T12:00:00Z"),
    }
}

/// Name and key of the Secret with the soak of web-app in app-production.
const PROGRESS_SECRET: (&str, &str) = ("attest-progress-c2cc60dc61c54ccf", "progress.json");

fn rollout_directive() -> Directive {
    Directive {
        stage: Some(StageReference { index: 1, name: name("production") }),
        soak_ms: Some(1_800_000),
        paused: true,
        finalize: FinalizedBy::Hub,
        keep_failed: true,
        ..directive()
    }
}

fn abort() -> Abort {
    Abort {
        plan: Digest::of(b"plan payload"),
        attempt: 1,
        reason: Reason::Unhealthy.into(),
        message: "Deployment web exceeded its progress deadline".to_owned(),
    }
}

fn rollout_report() -> Report {
    let rollout = RolloutStatus {
        generation: 7,
        attempt: 1,
        plan: Digest::of(b"last good plan payload"),
        at_target: true,
        healthy_for_ms: 600_000,
        soak_reached: true,
        aborted: Some(abort()),
        good: vec![Digest::of(b"last good plan payload")],
    };
    Report { rollout: Some(rollout), ..report() }
}

fn rollout_record() -> Record {
    let rollout = Rollout {
        generation: 7,
        attempt: 1,
        state: RolloutState::Candidate,
        aborts: vec![abort()],
    };
    let mut record =
        Record { good: vec![held(b"older good plan")], rollout: Some(rollout), ..record() };
    if let Some(point) = &mut record.rollback_point {
        point.rollout = Some(RolloutState::Good);
    }
    record
}

fn rollout_hello() -> ToHub {
    let mut message = hello();
    if let Some(ToHubBody::Hello(hello)) = &mut message.body {
        hello.features = vec![FEATURE_ROLLOUT.to_owned()];
        for seen in &mut hello.destinations {
            (seen.generation, seen.attempt) = (7, 1);
        }
    }
    message
}

fn sync() -> Sync {
    Sync {
        v: 1,
        cluster: ClusterId::of_identity_key(&[9; 32]),
        epoch: 3,
        counter: 12_884_901_889,
        nonce: "000102030405060708090a0b0c0d0e0f".to_owned(),
        heads: vec![Head {
            application: name("web-app"),
            namespace: name("app-production"),
            sequence: 42,
        }],
        issued_at: time("2026-11-22T12:00:00Z"),
        expires_at: time("2026-11-22T12:10:00Z"),
    }
}

fn report() -> Report {
    let key = ObjectKey {
        group: "apps".to_owned(),
        kind: "Deployment".to_owned(),
        namespace: Some("app-production".to_owned()),
        name: "web".to_owned(),
    };
    Report {
        v: 1,
        application: name("web-app"),
        namespace: name("app-production"),
        epoch: Some(3),
        sequence: Some(42),
        phase: Phase::Degraded,
        reason: Reason::Unhealthy.into(),
        message: "no quota".to_owned(),
        running: Some(Running {
            plan: Digest::of(b"plan"),
            release: Digest::of(b"release"),
            content: Digest::of(b"content"),
            version: "v1".to_owned(),
            counter: 1_795_000_000,
            signed_commit: "c".repeat(40),
            signers: vec!["ci-production".to_owned()],
            since: time("2026-11-22T12:00:01Z"),
        }),
        refusal: Some(Refusal {
            reason: Reason::CounterRegressed.into(),
            message: "older".to_owned(),
            sequence: Some(41),
            at: time("2026-11-22T12:00:02Z"),
        }),
        rollout: None,
        health: Health::Failed,
        objects: vec![ObjectState {
            key: key.clone(),
            health: Health::Failed,
            message: "no quota".to_owned(),
            rewritten: Vec::new(),
            added: 0,
        }],
        objects_total: 1,
        drifted: vec![key],
        heals_total: 5,
        timings: Timings::default(),
        checks: vec![Check { check: "Target".to_owned(), detail: "render production".to_owned() }],
        warnings: vec!["the release expired".to_owned()],
        observed_at: time("2026-11-22T12:00:03Z"),
    }
}

fn hello() -> ToHub {
    let body = ToHubBody::Hello(Hello {
        protocol_min: 1,
        protocol_max: 1,
        cluster_id: ClusterId::of_identity_key(&[9; 32]).to_string(),
        agent_version: "0.1.0".to_owned(),
        nonce: (0..16).collect(),
        policy: b"{}".to_vec(),
        destinations: vec![Seen {
            application: "web-app".to_owned(),
            namespace: "app-production".to_owned(),
            epoch: 3,
            sequence: 42,
            directive: vec![0xaa; 32],
            generation: 0,
            attempt: 0,
        }],
        kubernetes_version: "v1.37.2".to_owned(),
        features: Vec::new(),
        process_id: Vec::new(),
    });
    ToHub { body: Some(body) }
}

/// Hexadecimal in lines that people can compare.
fn hexadecimal(bytes: &[u8]) -> String {
    let text = data_encoding::HEXLOWER.encode(bytes);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    lines.join("\n")
}

fn keeps<T>(document: &T, golden: &str)
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    assert_eq!(String::from_utf8(to_bytes(document)).unwrap(), golden.trim_end());
    assert_eq!(serde_json::from_str::<T>(golden).unwrap(), *document);
}

#[test]
fn signed_documents_are_written_as_they_always_were() {
    keeps(&plan(), include_str!("golden/plan.json"));
    keeps(&directive(), include_str!("golden/directive.json"));
    keeps(&sync(), include_str!("golden/sync.json"));
}

#[test]
fn what_rollouts_add_is_written_as_it_always_was() {
    keeps(&rollout_directive(), include_str!("golden/directive-rollout.json"));
    keeps(&rollout_report(), include_str!("golden/report-rollout.json"));
    keeps(&rollout_record(), include_str!("golden/record-rollout.json"));
    let soak = StoredSoak {
        plan: Digest::of(b"plan payload"),
        healthy_for_ms: 600_000,
        pods: Digest::of(b"pods"),
    };
    keeps(&soak, include_str!("golden/progress.json"));
    let secret = custody::progress_secret(&name("web-app"), &name("app-production"));
    assert_eq!((secret.as_str(), custody::PROGRESS_KEY), PROGRESS_SECRET);
    let frame = frame::encode(&rollout_hello()).unwrap();

    assert_eq!(hexadecimal(&frame), include_str!("golden/hello-rollout.hex").trim_end());
    let body = frame.get(frame::LENGTH_BYTES..).unwrap();
    assert_eq!(frame::decode::<ToHub>(body).unwrap(), rollout_hello());
}

#[test]
fn only_the_first_form_of_a_directive_is_for_every_spoke() {
    let first = directive();
    let removal = Directive { operation: Operation::Remove, plan: None, ..first.clone() };
    for directive in [&first, &removal, &Directive { repair: true, ..first.clone() }] {
        assert!(!directive.needs_rollout(), "{directive:?}");
    }
    let operations = [Operation::Supersede, Operation::Rollback, Operation::Finalize];
    let ordered = operations.map(|operation| Directive { operation, ..first.clone() });
    let fields = [
        Directive { stage: rollout_directive().stage, ..first.clone() },
        Directive { soak_ms: Some(0), ..first.clone() },
        Directive { paused: true, ..first.clone() },
        Directive { finalize: FinalizedBy::Hub, ..first.clone() },
        Directive { keep_failed: true, ..first },
    ];
    for directive in ordered.iter().chain(&fields) {
        assert!(directive.needs_rollout(), "{directive:?}");
    }
}

#[test]
fn a_rendering_is_written_as_it_always_was() {
    let objects = vec![
        json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "web"},
            "data": {"z": "\u{20ac}", "a": "line\nbreak"}}),
        json!({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "web"},
            "spec": {"replicas": 2}}),
    ];
    let rendering = String::from_utf8(manifest::write(objects).unwrap()).unwrap();

    assert_eq!(rendering, include_str!("golden/rendering.jsonl"));
}

#[test]
fn an_envelope_is_signed_and_written_as_it_always_was() {
    let sealed = seal(DIRECTIVE_TYPE, &to_bytes(&directive()), &[&hub_key()]);
    let golden = include_str!("golden/directive.dsse.json");

    assert_eq!(String::from_utf8(sealed).unwrap(), golden.trim_end());
}

#[test]
fn what_a_spoke_says_is_written_as_it_always_was() {
    keeps(&report(), include_str!("golden/report.json"));
    let frame = frame::encode(&hello()).unwrap();

    assert_eq!(hexadecimal(&frame), include_str!("golden/hello.hex").trim_end());
    let body = frame.get(frame::LENGTH_BYTES..).unwrap();
    assert_eq!(frame::decode::<ToHub>(body).unwrap(), hello());
}

fn held(plan: &[u8]) -> Held {
    Held {
        plan: Digest::of(plan),
        plan_digest: Digest::of(b"plan payload"),
        release: Digest::of(b"release"),
        receipts: vec![Digest::of(b"build"), Digest::of(b"test")],
        content: Digest::of(b"content"),
    }
}

fn object_key(name: &str) -> ObjectKey {
    ObjectKey {
        group: "apps".to_owned(),
        kind: "Deployment".to_owned(),
        namespace: Some("app-production".to_owned()),
        name: name.to_owned(),
    }
}

fn owned(name: &str, uid: Option<&str>, preexisting: bool) -> Owned {
    Owned {
        key: object_key(name),
        version: "v1".to_owned(),
        uid: uid.map(str::to_owned),
        preexisting,
        orphan: false,
        wave: 0,
    }
}

fn record() -> Record {
    let floor = Floor { counter: 1_795_000_000, release: Digest::of(b"release") };
    let binding = Some("https://git.example/company/web-app".to_owned());
    Record {
        v: 1,
        application: name("web-app"),
        namespace: name("app-production"),
        hub_key: hub_key().public().id(),
        epoch: 3,
        sequence: 42,
        directive: Digest::of(b"directive"),
        other_hub_keys: Vec::new(),
        binding: binding.clone(),
        floor: Some(floor.clone()),
        held: Some(held(b"plan")),
        last_good: Some(held(b"last good plan")),
        good: Vec::new(),
        inventory: vec![owned("web", Some("uid-1"), true), owned("worker", None, false)],
        removed: false,
        recorded_at: Some(time("2026-11-22T12:00:01Z")),
        since: Some(time("2026-11-22T12:00:00Z")),
        rollback_point: Some(Box::new(RollbackPoint {
            directive: "the envelope".to_owned(),
            binding,
            floor: Some(floor),
            held: Some(held(b"last good plan")),
            last_good: Some(held(b"last good plan")),
            since: Some(time("2026-11-21T12:00:00Z")),
            removed: false,
            objects: 1,
            rollout: None,
        })),
        rollout: None,
    }
}

fn refusal(sequence: Option<u64>) -> Refusal {
    Refusal {
        reason: Reason::CounterRegressed.into(),
        message: "older".to_owned(),
        sequence,
        at: time("2026-11-22T12:00:02Z"),
    }
}

fn refusals() -> Vec<StoredRefusal> {
    let signed = StoredRefusal {
        application: "web-app".to_owned(),
        namespace: "app-production".to_owned(),
        signed: true,
        first_at: Some(time("2026-11-22T12:00:01Z")),
        count: 2,
        refusal: refusal(Some(41)),
    };
    let unreadable = StoredRefusal {
        application: String::new(),
        namespace: String::new(),
        signed: false,
        first_at: None,
        count: 1,
        refusal: refusal(None),
    };
    vec![signed, unreadable]
}

#[test]
fn what_a_spoke_keeps_is_written_as_it_always_was() {
    keeps(&record(), include_str!("golden/record.json"));
    keeps(&refusals(), include_str!("golden/refusals.json"));
    let status = HubStatus { stale: true, since: time("2026-11-22T12:00:02Z") };
    keeps(&status, include_str!("golden/hub-status.json"));
    let confirmed = Confirmed {
        desired: Digest::of(b"desired"),
        uid: "uid-1".to_owned(),
        projected: Digest::of(b"projected"),
        rewritten: Vec::new(),
    };
    keeps(&vec![(object_key("web"), confirmed)], include_str!("golden/confirmed.json"));
    let packed = PackedBlobs { blobs: vec![b"plan"[..].into(), b"release"[..].into()] };
    let golden = include_str!("golden/packed.hex").trim_end();
    assert_eq!(hexadecimal(&packed.encode_to_vec()), golden);
}

#[test]
fn a_refusal_of_an_older_spoke_is_read() {
    let stored = r#"{"application":"web","namespace":"shop","reason":"Expired","message":"late","at":"2026-11-22T12:00:02Z"}"#;

    let refusal: StoredRefusal = serde_json::from_str(stored).unwrap();

    assert_eq!((refusal.count, refusal.first_at, refusal.signed), (1, None, false));
}

#[test]
fn the_secrets_of_a_spoke_have_the_names_and_keys_they_always_had() {
    let (application, namespace) = (name("web-app"), name("app-production"));
    let names = json!({
        "namespace": custody::SPOKE_NAMESPACE,
        "serviceAccount": custody::SPOKE_NAME,
        "join": {custody::JOIN_SECRET: [custody::JOIN_TOKEN_KEY]},
        "identity": {custody::IDENTITY_SECRET: [
            custody::IDENTITY_PRIVATE_KEY,
            custody::IDENTITY_CLUSTER_ID_KEY,
            custody::IDENTITY_CHAIN_KEY,
            custody::IDENTITY_TLS_KEY,
            custody::IDENTITY_GENERATION_KEY,
            custody::IDENTITY_DESTINATIONS_KEY,
        ]},
        "destination": {custody::destination_secret(&application, &namespace): {
            "label": [custody::RECORD_LABEL, custody::DESTINATION_LABEL_VALUE],
            "annotations": [custody::APPLICATION_ANNOTATION, custody::NAMESPACE_ANNOTATION],
            "keys": [custody::RECORD_KEY, custody::DIRECTIVE_KEY, custody::CONFIRMED_KEY],
        }},
        "content": {custody::content_secret(Digest::of(b"content"), 1): {
            "label": [custody::RECORD_LABEL, custody::CONTENT_LABEL_VALUE],
            "annotations": [custody::PIECES_ANNOTATION, custody::BYTES_ANNOTATION],
            "keys": [custody::PIECE_KEY],
        }},
        "refusals": {custody::REFUSALS_SECRET: [custody::REFUSALS_KEY, custody::HUB_STATUS_KEY]},
    });
    let golden: serde_json::Value =
        serde_json::from_str(include_str!("golden/custody.json")).unwrap();

    assert_eq!(names, golden);
}
