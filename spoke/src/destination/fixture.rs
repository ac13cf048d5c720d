//! Admissions for tests, made as every other: signed, delivered, and judged by the gate.

use std::collections::BTreeMap;
use std::sync::Arc;

use attest_common::basics::envelope::{DIRECTIVE_TYPE, PLAN_TYPE, STATEMENT_TYPE, id_of, seal};
use attest_common::basics::ids::{Digest, Name, Timestamp};
use attest_common::basics::keys::PrivateKey;
use attest_common::basics::terms::{BUILDER_ID, Mode};
use attest_common::documents::manifest;
use attest_common::documents::plan::{
    ContentBlob, Directive, FinalizedBy, Operation, Plan, RequestedPolicy, SignedBlob, Strategy,
    SyncPolicy, to_bytes,
};
use attest_common::documents::receipt::{BUILD_TYPE, PROVENANCE_TYPE};
use attest_common::documents::release::{
    Evidence, NamespaceRule, RELEASE_TYPE, RENDERING_TYPE, Release, ReleaseSource, Render,
    Renderer, Target,
};
use attest_common::documents::statement::{Statement, Subject};
use attest_common::objects::kinds::Kinds;
use attest_common::record::{DestinationRecords, Held, Record};
use attest_common::trust::policy::{Policy, Spec};
use attest_common::verify::{Admission, Ages, ObjectSet, Removal, Verified};
use bytes::Bytes;
use serde_json::{Value, json};

use super::handover::Offers;
use crate::admission::gate::tests::directive_of;
use crate::admission::gate::{
    self, AdmittedPush, GateContext, GateError, PushDecision, RepeatedDirective,
};
use crate::ledger::records::{ConfirmedPairs, Entry};
use crate::trust::policy::tests::object;

const NOW: &str = "2026-11-22T12:00:00Z";
const REPO: &str = "https://git.example/web";

/// An admission, and what recorded it.
#[derive(Clone, Debug)]
pub(super) struct Admitted {
    pub(super) admission: Arc<Verified<Admission>>,
    pub(super) objects: Arc<Verified<ObjectSet>>,
    pub(super) held: Held,
    pub(super) entry: Entry,
    /// The documents of the plan.
    pub(super) blobs: BTreeMap<Digest, Bytes>,
}

/// Admits ConfigMaps of these names as a candidate, which the hub has yet to finalize, after `before`.
pub(super) fn admit_candidate(before: Option<&Entry>, names: &[&str], text: &str) -> Admitted {
    let (content, sequence) = config_maps(before, names, text);
    let ordered =
        Directive { finalize: FinalizedBy::Hub, soak_ms: Some(60_000), ..directive_of(sequence) };
    Delivery::sign(&content, names.len() as u64, ordered).judge(before).unwrap()
}

/// Orders an operation about a plan of the record, whose documents are `plan`'s.
pub(super) fn order(
    before: &Entry,
    operation: Operation,
    plan: &Admitted,
) -> Result<Admitted, GateError> {
    let ordered = Directive {
        operation,
        plan: Some(plan.held.plan_digest),
        finalize: FinalizedBy::Hub,
        ..directive_of(before.record.sequence + 1)
    };
    let directive = seal(DIRECTIVE_TYPE, &to_bytes(&ordered), &[&key(1)]);
    let blobs = plan.blobs.clone();
    Delivery { directive, plan: plan.held.plan, blobs }.judge(Some(before))
}

/// Loads what `entry` holds, as after a restart, with these documents.
pub(super) fn load(entry: &Entry, blobs: &BTreeMap<Digest, Bytes>) -> Admitted {
    let recorded = (Some(&entry.record), Ages::Skip);
    let decision = judge(&entry.directive, None, |digest| blobs.get(digest).cloned(), recorded);
    let decision = decision.unwrap();
    let PushDecision::Admit(admitting) = decision else { panic!("not admitted") };
    let AdmittedPush { admission, objects, held, .. } = *admitting;
    Admitted {
        admission: Arc::new(admission),
        objects: Arc::new(objects),
        held,
        entry: entry.clone(),
        blobs: blobs.clone(),
    }
}

fn config_maps(before: Option<&Entry>, names: &[&str], text: &str) -> (Vec<u8>, u64) {
    let map = |name: &&str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name}, "data": {"text": text}})
    };
    let content = manifest::write(names.iter().map(map).collect()).unwrap();
    (content, before.map_or(1, |entry| entry.record.sequence + 1))
}

/// Admits ConfigMaps of these names, with this text in each, after `before`.
pub(super) fn admit(before: Option<&Entry>, names: &[&str], text: &str) -> Admitted {
    let (content, sequence) = config_maps(before, names, text);
    let delivery = Delivery::sign(&content, names.len() as u64, directive_of(sequence));
    delivery.judge(before).unwrap()
}

/// A removal, and what recorded it.
#[derive(Clone, Debug)]
pub(super) struct Removed {
    pub(super) removal: Verified<Removal>,
    pub(super) entry: Entry,
}

/// Orders the removal of what `before` records.
pub(super) fn remove(before: &Entry) -> Removed {
    let sequence = before.record.sequence + 1;
    let ordered = Directive { operation: Operation::Remove, plan: None, ..directive_of(sequence) };
    let directive = seal(DIRECTIVE_TYPE, &to_bytes(&ordered), &[&key(1)]);
    let decision = judge(&directive, None, |_| None, (Some(&before.record), Ages::Enforce));
    let PushDecision::Remove(removal) = decision.unwrap() else { panic!("not admitted") };
    let record = gate::removed_record(&before.record, &removal, now());
    let entry = Entry { record, directive, confirmed: before.confirmed.clone() };
    Removed { removal: *removal, entry }
}

fn judge(
    directive: &[u8],
    plan: Option<Digest>,
    blobs: impl Fn(&Digest) -> Option<Bytes>,
    (record, ages): (Option<&Record>, Ages),
) -> Result<PushDecision, GateError> {
    let keyed =
        |record: &Record| ((record.application.clone(), record.namespace.clone()), record.clone());
    let view = GateContext {
        policy: &policy(),
        cluster: &"c-0123456789abcdef".parse().unwrap(),
        records: &record.map(keyed).into_iter().collect::<DestinationRecords>(),
        kinds: &Kinds::built_in(),
        now: now(),
        ages,
        lost: None,
        repeated: RepeatedDirective::Report,
        offers: &Offers::new(),
    };
    gate::judge(directive, plan, blobs, &view)
}

struct Delivery {
    directive: Vec<u8>,
    plan: Digest,
    blobs: BTreeMap<Digest, Bytes>,
}

impl Delivery {
    fn sign(content: &[u8], objects: u64, ordered: Directive) -> Self {
        let sequence = ordered.sequence;
        let (ci, hub) = (key(2), key(1));
        let subject = Subject::new("manifests/staging".to_owned(), Digest::of(content));
        let receipt = Statement::new(vec![subject.clone()], PROVENANCE_TYPE, provenance());
        let receipt_id = id_of(STATEMENT_TYPE, &receipt.to_bytes());
        let receipt = seal(STATEMENT_TYPE, &receipt.to_bytes(), &[&ci]);
        let size = content.len() as u64;
        let released = release((size, objects), sequence, receipt_id);
        let released = serde_json::to_value(released).unwrap();
        let statement = Statement::new(vec![subject], RELEASE_TYPE, released);
        let release_id = id_of(STATEMENT_TYPE, &statement.to_bytes());
        let release = seal(STATEMENT_TYPE, &statement.to_bytes(), &[&ci]);
        let blob = |id: Digest, bytes: &[u8]| SignedBlob {
            id,
            sha256: Digest::of(bytes),
            size: bytes.len() as u64,
        };
        let plan = Plan {
            v: 1,
            application: Name::new("web").unwrap(),
            release: blob(release_id, &release),
            render: "staging".to_owned(),
            content: ContentBlob {
                sha256: Digest::of(content),
                size,
                objects,
                media_type: RENDERING_TYPE.to_owned(),
            },
            receipts: vec![blob(receipt_id, &receipt)],
            namespace: NamespaceRule::Fixed { value: Name::new("shop").unwrap() },
            policy: RequestedPolicy {
                mode: Mode::Strict,
                required_attestations: Default::default(),
                trusted_keys: None,
            },
            sync: SyncPolicy { prune: true, self_heal: true, adopt: false },
            strategy: Strategy::default(),
            hooks: Vec::new(),
        };
        let plan_digest = Digest::of(&to_bytes(&plan));
        let plan = seal(PLAN_TYPE, &to_bytes(&plan), &[&hub]);
        let ordered = Directive { plan: Some(plan_digest), ..ordered };
        let directive = seal(DIRECTIVE_TYPE, &to_bytes(&ordered), &[&hub]);
        let all = [plan.clone(), release, receipt, content.to_vec()];
        let blobs = all.into_iter().map(|bytes| (Digest::of(&bytes), Bytes::from(bytes)));
        Self { directive, plan: Digest::of(&plan), blobs: blobs.collect() }
    }

    fn judge(self, before: Option<&Entry>) -> Result<Admitted, GateError> {
        let blob = |digest: &Digest| self.blobs.get(digest).cloned();
        let record = before.map(|entry| &entry.record);
        let decision = judge(&self.directive, Some(self.plan), blob, (record, Ages::Enforce))?;
        let PushDecision::Admit(admitting) = decision else { panic!("not admitted") };
        let AdmittedPush { admission, objects, held, taken } = *admitting;
        let known = before.map(|entry| (&entry.record, &entry.directive[..]));
        let record = gate::admitted_record(known, (&admission, &held), &taken, now()).unwrap();
        let confirmed = before.map(|entry| entry.confirmed.clone());
        let confirmed: ConfirmedPairs = confirmed.unwrap_or_default();
        let entry = Entry { record, directive: self.directive, confirmed };
        let (admission, objects) = (Arc::new(admission), Arc::new(objects));
        Ok(Admitted { admission, objects, held, entry, blobs: self.blobs })
    }
}

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_seed(&[seed; 32]).unwrap()
}

fn policy() -> Policy {
    let mut spec = object()["spec"].clone();
    spec["keys"] = json!([{
        "name": "ci", "publicKey": key(2).public().to_pem(), "environments": ["staging"],
        "roles": ["releaser", "builder", "tester", "scanner"],
    }]);
    spec["applications"] = json!([{
        "names": ["*"], "repos": ["*"], "namespaces": ["*"], "minimumMode": "Strict",
        "requiredAttestations": ["build"], "remove": {"allow": true, "maxPrunePercent": 100},
    }]);
    serde_json::from_value::<Spec>(spec).unwrap().load().unwrap()
}

fn provenance() -> Value {
    json!({
        "buildDefinition": {"buildType": BUILD_TYPE,
            "externalParameters": {"application": "web"},
            "resolvedDependencies": [{"uri": REPO, "digest": {"gitCommit": "c".repeat(40)}}]},
        "runDetails": {"builder": {"id": BUILDER_ID}},
    })
}

fn release((size, objects): (u64, u64), counter: u64, receipt: Digest) -> Release {
    Release {
        application: Name::new("web").unwrap(),
        version: "v1".to_owned(),
        counter,
        not_after: "2026-12-22T12:00:00Z".parse().unwrap(),
        source: ReleaseSource {
            repo: REPO.to_owned(),
            git_commit: "c".repeat(40),
            source_root: "k8s".to_owned(),
            git_tree: "t".repeat(40),
        },
        renderer: Renderer { name: "plain".to_owned(), version: "1".to_owned() },
        evidence: vec![Evidence { attestation: "build".to_owned(), receipt }],
        renders: vec![Render {
            name: "staging".to_owned(),
            subject: "manifests/staging".to_owned(),
            media_type: RENDERING_TYPE.to_owned(),
            size,
            objects,
            target: Target { environments: vec!["staging".to_owned()], clusters: None },
            namespace: NamespaceRule::Fixed { value: Name::new("shop").unwrap() },
            images: Vec::new(),
            mutations: Vec::new(),
        }],
    }
}
