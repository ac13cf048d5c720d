//! The gate, case by case: one honest delivery, and every way to bend it that has its own reason.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::basics::envelope::{self, DIRECTIVE_TYPE, PLAN_TYPE, STATEMENT_TYPE, SYNC_TYPE, seal};
use crate::basics::ids::{ClusterId, Digest};
use crate::basics::keys::PrivateKey;
use crate::basics::terms::{self, Mode, Role};
use crate::documents::manifest;
use crate::documents::plan::{
    self, ContentBlob, Directive, FinalizedBy, Operation, Plan, RequestedPolicy, SignedBlob, Sync,
    SyncPolicy, to_bytes,
};
use crate::documents::receipt;
use crate::documents::release::{
    self, Evidence, ImageDigest, NamespaceRule, RENDERING_TYPE, Release, ReleaseSource, Render,
    Renderer, Target,
};
use crate::documents::statement::{Statement, Subject};
use crate::record::{DestinationRecords, Floor, Record};
use crate::trust::policy::{Entry, HubSpec, KeySpec, KindsSpec, RemoveSpec, RollbackSpec, Spec};

const NOW: &str = "2026-11-22T12:00:00Z";
const COUNTER: u64 = 1_795_000_000;
const REPO: &str = "https://git.example/company/web-app";

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

fn later(hours: i64) -> Timestamp {
    Timestamp::from_second(now().as_second() + hours * 3600).unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_seed(&[seed; 32]).unwrap()
}

const HUB: u8 = 1;
const CI: u8 = 2;
const STRANGER: u8 = 3;
const STAGING_CI: u8 = 4;

/// Everything an honest CI and hub would make, as values that a case may bend before sealing.
#[derive(Clone)]
struct World {
    spec: Spec,
    objects: Vec<Value>,
    /// Content the hub delivers, when it is not what was signed.
    delivered: Option<Vec<u8>>,
    release: Release,
    receipts: Vec<(&'static str, Statement)>,
    withheld: Vec<&'static str>,
    /// True when the plan names its first receipt twice.
    twice: bool,
    /// True when the hub delivers other content than its own plan names.
    swapped: bool,
    /// The plan that the directive names, when it is not the one that comes with it.
    plan_named: Option<Digest>,
    /// What CI signs as number of objects, when that is wrong.
    objects_signed: Option<u64>,
    /// What CI signs as size of the content, when that is wrong.
    size_signed: Option<u64>,
    receipt_key: u8,
    release_key: u8,
    asked: RequestedPolicy,
    render: String,
    directive: Directive,
    hooks: Vec<Value>,
    /// Change of the plan before the hub signs it.
    bend_plan: fn(&mut Plan),
    hub_key: u8,
    records: DestinationRecords,
    now: Timestamp,
}

fn deployment(image: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "web", "image": image}]}}}})
}

fn image_digest() -> Digest {
    Digest::of(b"image")
}

fn render(render: &str, environment: &str, namespace: NamespaceRule) -> Render {
    Render {
        name: render.to_owned(),
        subject: format!("manifests/{render}"),
        media_type: RENDERING_TYPE.to_owned(),
        size: 0,
        objects: 0,
        target: Target { environments: vec![environment.to_owned()], clusters: None },
        namespace,
        images: vec![ImageDigest { reference: "myapp:v1".to_owned(), digest: image_digest() }],
        mutations: vec!["image-pin".to_owned()],
    }
}

fn world() -> World {
    let fixed = |n: &str| NamespaceRule::Fixed { value: name(n) };
    let spec = Spec {
        cluster_name: Some(name("production")),
        kube_system_uid: Some("uid".to_owned()),
        environment: name("production"),
        hub: HubSpec {
            keys: vec![key(HUB).public().to_pem()],
            ca_pins: vec!["sha256:aa".to_owned()],
        },
        keys: [(CI, "production"), (STAGING_CI, "staging")]
            .map(|(seed, environment)| KeySpec {
                name: format!("ci-{environment}"),
                public_key: key(seed).public().to_pem(),
                roles: Role::ALL.to_vec(),
                environments: vec![name(environment)],
                builder_ids: None,
            })
            .to_vec(),
        applications: vec![Entry {
            entry: None,
            names: vec!["*".to_owned()],
            repos: vec!["*".to_owned()],
            namespaces: vec!["*".to_owned()],
            kinds: KindsSpec::default(),
            minimum_mode: Mode::Strict,
            required_attestations: ["build", "test", "security-scan"].map(String::from).to_vec(),
            keys: None,
            rollback: RollbackSpec::default(),
            remove: RemoveSpec::default(),
            adopt: false,
            max_namespaces: None,
            max_scan_age_hours: None,
        }],
    };
    let release = Release {
        application: name("web-app"),
        version: "v1".to_owned(),
        counter: COUNTER,
        not_after: later(720),
        source: ReleaseSource {
            repo: REPO.to_owned(),
            git_commit: "c".repeat(40),
            source_root: "k8s".to_owned(),
            git_tree: "t".repeat(40),
        },
        renderer: Renderer { name: "kustomize".to_owned(), version: "5.8.1".to_owned() },
        evidence: Vec::new(),
        renders: vec![
            render("production", "production", fixed("app-production")),
            render("staging", "staging", fixed("app-staging")),
        ],
    };
    let provenance = json!({
        "buildDefinition": {"buildType": receipt::BUILD_TYPE,
            "externalParameters": {"application": "web-app"},
            "resolvedDependencies": [{"uri": REPO, "digest": {"gitCommit": "c".repeat(40)}}]},
        "runDetails": {"builder": {"id": terms::BUILDER_ID}}});
    let scan =
        json!({"scanner": {"result": []}, "metadata": {"scanFinishedOn": "2026-11-22T11:00:00Z"}});
    let receipts = vec![
        ("build", Statement::new(Vec::new(), receipt::PROVENANCE_TYPE, provenance)),
        (
            "test",
            Statement::new(Vec::new(), receipt::TEST_RESULT_TYPE, json!({"result": "PASSED"})),
        ),
        (
            "security-scan",
            Statement::new(
                vec![Subject::new("myapp:v1", image_digest())],
                receipt::VULNS_TYPE,
                scan,
            ),
        ),
    ];
    World {
        spec,
        objects: vec![
            deployment("myapp:v1"),
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "web"}, "data": {"a": "b"}}),
        ],
        delivered: None,
        release,
        receipts,
        withheld: Vec::new(),
        twice: false,
        swapped: false,
        plan_named: None,
        objects_signed: None,
        size_signed: None,
        receipt_key: CI,
        release_key: CI,
        asked: RequestedPolicy {
            mode: Mode::Strict,
            required_attestations: BTreeSet::new(),
            trusted_keys: None,
        },
        render: "production".to_owned(),
        directive: Directive {
            v: 1,
            cluster: ClusterId::of_identity_key(&[9; 32]),
            application: name("web-app"),
            namespace: name("app-production"),
            epoch: 1,
            sequence: 5,
            generation: 1,
            attempt: 0,
            operation: Operation::Progress,
            cap_percent: 100,
            plan: None,
            repair: false,
            stage: None,
            soak_ms: None,
            paused: false,
            finalize: FinalizedBy::Spoke,
            keep_failed: false,
            issued_at: now(),
            expires_at: later(1),
        },
        hooks: Vec::new(),
        bend_plan: |_| {},
        hub_key: HUB,
        records: DestinationRecords::new(),
        now: now(),
    }
}

impl World {
    /// Signs everything as it stands and asks the gate, exactly as a spoke does.
    fn ask(&self) -> Result<Verified<Admission>, VerifyError> {
        let content = manifest::write(self.objects.clone()).unwrap();
        let mut release = self.release.clone();
        let mut subjects = Vec::new();
        for render in &mut release.renders {
            let digest = if render.name == "production" {
                Digest::of(&content)
            } else {
                Digest::of(b"other")
            };
            render.size = self.size_signed.unwrap_or(content.len() as u64);
            render.objects = self.objects_signed.unwrap_or(self.objects.len() as u64);
            subjects.push(Subject::new(render.subject.clone(), digest));
        }
        let mut receipts = Vec::new();
        for (attestation, statement) in &self.receipts {
            let mut statement = statement.clone();
            statement.subject.extend(subjects.clone());
            let payload = statement.to_bytes();
            let id = envelope::id_of(STATEMENT_TYPE, &payload);
            release.evidence.push(Evidence { attestation: (*attestation).to_owned(), receipt: id });
            let sealed = seal(STATEMENT_TYPE, &payload, &[&key(self.receipt_key)]);
            let known = receipts.iter().any(|(named, _)| *named == id);
            if !self.withheld.contains(attestation) && !known {
                receipts.push((id, sealed));
            }
        }
        let statement = Statement::new(
            subjects,
            release::RELEASE_TYPE,
            serde_json::to_value(&release).unwrap(),
        );
        let payload = statement.to_bytes();
        let id = envelope::id_of(STATEMENT_TYPE, &payload);
        let sealed_release = seal(STATEMENT_TYPE, &payload, &[&key(self.release_key)]);
        let content = self.delivered.clone().unwrap_or(content);
        if self.twice {
            receipts.push(receipts[0].clone());
        }
        let blob = |id: Digest, bytes: &[u8]| SignedBlob {
            id,
            sha256: Digest::of(bytes),
            size: bytes.len() as u64,
        };
        let planned = release.renders.iter().find(|render| render.name == self.render);
        let planned = planned.unwrap_or(&release.renders[0]);
        let mut plan = Plan {
            v: 1,
            application: self.directive.application.clone(),
            release: blob(id, &sealed_release),
            render: self.render.clone(),
            content: ContentBlob {
                sha256: Digest::of(&content),
                size: content.len() as u64,
                objects: planned.objects,
                media_type: RENDERING_TYPE.to_owned(),
            },
            receipts: receipts.iter().map(|(id, bytes)| blob(*id, bytes)).collect(),
            namespace: planned.namespace.clone(),
            policy: self.asked.clone(),
            sync: SyncPolicy::default(),
            strategy: plan::Strategy::default(),
            hooks: self.hooks.clone(),
        };
        (self.bend_plan)(&mut plan);
        let plan_bytes = to_bytes(&plan);
        let plan_digest = Digest::of(&plan_bytes);
        let sealed_plan = seal(PLAN_TYPE, &plan_bytes, &[&key(self.hub_key)]);
        let plan_digest = self.plan_named.unwrap_or(plan_digest);
        let directive = Directive { plan: Some(plan_digest), ..self.directive.clone() };
        let sealed_directive = seal(DIRECTIVE_TYPE, &to_bytes(&directive), &[&key(self.hub_key)]);
        let policy = self.spec.load().map_err(VerifyError::Policy)?;
        let cluster = ClusterId::of_identity_key(&[9; 32]);
        let spoke = SpokeContext {
            policy: &policy,
            cluster: &cluster,
            records: &self.records,
            now: self.now,
            ages: Ages::Enforce,
        };
        let ordered = super::directive(&sealed_directive, &spoke)?;
        let plan = super::plan(&sealed_plan, plan_digest, &policy)?;
        let receipts: Vec<&[u8]> = receipts.iter().map(|(_, bytes)| bytes.as_slice()).collect();
        let content = if self.swapped { b"{}\n".to_vec() } else { content };
        let material =
            Material { release: &sealed_release, receipts: &receipts, content: &content };
        admission(&ordered, &plan, &material, &spoke, &Kinds::built_in())
    }

    fn reason(&self) -> &'static str {
        self.ask().map_or_else(|error| error.reason().as_str(), |_| "Admitted")
    }

    fn record(&self) -> Record {
        Record {
            v: 1,
            application: name("web-app"),
            namespace: name("app-production"),
            hub_key: key(HUB).public().id(),
            epoch: 1,
            sequence: 4,
            directive: Digest::of(b"former"),
            other_hub_keys: Vec::new(),
            binding: Some(REPO.to_owned()),
            floor: Some(Floor { counter: COUNTER - 10, release: Digest::of(b"former") }),
            held: None,
            last_good: None,
            good: Vec::new(),
            inventory: Vec::new(),
            removed: false,
            recorded_at: None,
            since: None,
            rollback_point: None,
            rollout: None,
        }
    }

    fn with_record(mut self, change: impl FnOnce(&mut Record)) -> Self {
        change(self.recorded());
        self
    }

    /// What the spoke has recorded about this destination.
    fn recorded(&mut self) -> &mut Record {
        let record = self.record();
        let key = (record.application.clone(), record.namespace.clone());
        self.records.entry(key).or_insert(record)
    }

    /// The rendering fixes no namespace, and the application already uses another one.
    fn spread(&mut self) {
        let pattern = "app-*".to_owned();
        self.release.renders[0].namespace = NamespaceRule::DefaultOnly { pattern };
        let mut record = self.record();
        record.namespace = name("app-elsewhere");
        self.records.insert((record.application.clone(), record.namespace.clone()), record);
    }
}

#[test]
fn the_objects_to_write_are_those_of_the_candidate_by_their_keys() {
    let candidate = world().ask().unwrap();
    let former = World { objects: vec![deployment("myapp:v1")], ..world() }.ask().unwrap();

    let set = object_set(Some(&former), &candidate);

    assert_eq!(set.objects(), &candidate.admitted.objects[..]);
    for object in set.objects() {
        assert!(set.contains(object.key()));
        assert_eq!(set.get(object.key()), Some(object));
    }
    let unknown =
        manifest::ObjectKey { name: "other".to_owned(), ..set.objects()[0].key().clone() };
    assert!(!set.contains(&unknown) && set.get(&unknown).is_none());
}

#[test]
fn an_honest_delivery_is_admitted_placed_and_pinned() {
    let admission = world().ask().unwrap();

    let objects = &admission.admitted.objects;
    assert_eq!(objects.len(), 2);
    assert!(objects.iter().all(|o| o.key().namespace.as_deref() == Some("app-production")));
    let image =
        objects.iter().find_map(|o| o.value().pointer("/spec/template/spec/containers/0/image"));
    assert_eq!(image.unwrap(), &json!(format!("myapp:v1@{}", image_digest())));
    assert_eq!(admission.admitted.signers.values().collect::<Vec<_>>(), ["ci-production"]);
    let checks: Vec<_> = admission.admitted.checks.iter().map(|c| c.check.as_str()).collect();
    assert_eq!(
        checks,
        [
            "ReleaseSignature",
            "Source",
            "Target",
            "ReleaseTime",
            "ContentDigest",
            "Receipt",
            "Receipt",
            "Receipt",
            "Objects",
        ]
    );
}

/// Each case bends one thing in an otherwise honest delivery; the comment on the reason is its name.
#[test]
fn every_bend_of_an_honest_delivery_has_its_own_reason() {
    type Bend = fn(&mut World);
    let cases: Vec<(&str, &str, Bend)> = vec![
        // What a taken hub with a valid signing key can send.
        ("a changed manifest byte", "ContentDigest", |w| {
            w.delivered = Some(manifest::write(vec![deployment("myapp:v2")]).unwrap());
        }),
        ("another cluster's directive", "AudienceMismatch", |w| {
            w.directive.cluster = ClusterId::of_identity_key(&[8; 32]);
        }),
        ("the staging rendering in production", "TargetMismatch", |w| {
            w.render = "staging".to_owned()
        }),
        ("a render the release does not have", "RenderUnknown", |w| w.render = "canary".to_owned()),
        ("an old directive", "SequenceReplayed", |w| {
            *w = w.clone().with_record(|r| r.sequence = 9);
        }),
        ("a lower sequence in a higher epoch", "SequenceReplayed", |w| {
            w.directive.epoch = 7;
            *w = w.clone().with_record(|r| r.sequence = 9);
        }),
        ("a clock set back behind what was recorded", "ClockRollback", |w| {
            *w = w.clone().with_record(|r| r.recorded_at = Some(later(1)));
        }),
        ("another directive of the same sequence", "SequenceEquivocation", |w| {
            *w = w.clone().with_record(|r| r.sequence = 5);
        }),
        ("a receipt less", "ReceiptMissing", |w| w.withheld.push("test")),
        ("verification below the cluster's floor", "PolicyFloor", |w| {
            w.asked.mode = Mode::Disabled
        }),
        ("audit mode asked for", "PolicyFloor", |w| w.asked.mode = Mode::Audit),
        ("an older release", "CounterRegressed", |w| {
            *w = w.clone().with_record(|r| r.floor.as_mut().unwrap().counter = COUNTER + 1);
        }),
        ("another release of the same counter", "CounterRegressed", |w| {
            *w = w.clone().with_record(|r| r.floor.as_mut().unwrap().counter = COUNTER);
        }),
        ("an older release in a namespace without a floor", "CounterRegressed", |w| {
            let mut record = w.record();
            record.namespace = name("app-elsewhere");
            record.floor.as_mut().unwrap().counter = COUNTER + 1;
            w.records.insert((record.application.clone(), record.namespace.clone()), record);
        }),
        ("another repository's release of the same name", "SourceChanged", |w| {
            *w = w
                .clone()
                .with_record(|r| r.binding = Some("https://git.example/other/web-app".to_owned()));
        }),
        ("the other render that fits the environment", "RenderMismatch", |w| {
            w.release.renders[1].target.environments = vec!["production".to_owned()];
            w.render = "staging".to_owned();
        }),
        ("two renders that fit alike", "RenderAmbiguous", |w| {
            w.release.renders[1].target.environments = vec!["production".to_owned()];
            w.release.renders[1].namespace = w.release.renders[0].namespace.clone();
        }),
        ("a hook", "HookNotAllowed", |w| w.hooks.push(json!({"name": "x"}))),
        ("a return to a plan that was never good here", "RollbackNotAllowed", |w| {
            w.directive.operation = Operation::Rollback;
        }),
        ("a namespace nobody may use", "NamespaceNotAllowed", |w| {
            w.directive.namespace = name("kube-system")
        }),
        ("a namespace the release does not allow", "RenderMismatch", |w| {
            w.directive.namespace = name("elsewhere")
        }),
        ("a directive signed by a stranger", "SignatureInvalid", |w| w.hub_key = STRANGER),
        ("a directive signed by CI", "SignatureInvalid", |w| w.hub_key = CI),
        ("a directive that lives too long", "LifetimeTooLong", |w| {
            w.directive.expires_at = later(25)
        }),
        ("a directive from the future", "IssuedInFuture", |w| {
            w.directive.issued_at = later(2);
            w.directive.expires_at = later(3);
        }),
        ("an expired directive", "Expired", |w| w.now = later(2)),
        ("a cap above one hundred", "DocumentInvalid", |w| w.directive.cap_percent = 101),
        ("a part of a rollout", "CapNotSupported", |w| w.directive.cap_percent = 99),
        ("nothing of a rollout", "CapNotSupported", |w| w.directive.cap_percent = 0),
        ("a plan with another namespace rule", "PlanMismatch", |w| {
            w.bend_plan =
                |plan| plan.namespace = NamespaceRule::DefaultOnly { pattern: "*".to_owned() };
        }),
        ("a plan with another number of objects", "PlanMismatch", |w| {
            w.bend_plan = |plan| plan.content.objects += 1;
        }),
        ("a plan with another media type", "PlanMismatch", |w| {
            w.bend_plan = |plan| plan.content.media_type = "application/x-yaml".to_owned();
        }),
        ("a plan with another size of the content", "BlobDigest", |w| {
            w.bend_plan = |plan| plan.content.size -= 1;
        }),
        ("a plan with another size of the release", "BlobDigest", |w| {
            w.bend_plan = |plan| plan.release.size += 1;
        }),
        ("a plan with another size of a receipt", "BlobDigest", |w| {
            w.bend_plan = |plan| plan.receipts[0].size = 0;
        }),
        ("keys that nobody is", "UntrustedKey", |w| w.asked.trusted_keys = Some(BTreeSet::new())),
        ("an attestation nobody defined", "AttestationUnknown", |w| {
            w.asked.required_attestations.insert("blessing".to_owned());
        }),
        // What CI must not get wrong, and what somebody with another key may try.
        ("a release signed by the hub", "SignatureInvalid", |w| w.release_key = HUB),
        ("a release signed by a stranger", "SignatureInvalid", |w| w.release_key = STRANGER),
        ("a release signed by the staging key", "SignatureInvalid", |w| w.release_key = STAGING_CI),
        ("receipts signed by a stranger", "SignatureInvalid", |w| w.receipt_key = STRANGER),
        ("receipts signed by the hub", "SignatureInvalid", |w| w.receipt_key = HUB),
        ("a key without the releaser's role", "UntrustedKey", |w| {
            w.spec.keys[0].roles = vec![Role::Builder]
        }),
        ("a key without the tester's role", "SignatureInvalid", |w| {
            w.spec.keys[0].roles = vec![Role::Builder, Role::Scanner, Role::Releaser];
        }),
        ("a release of another application", "ApplicationMismatch", |w| {
            w.release.application = name("api")
        }),
        ("an expired release", "ReleaseExpired", |w| w.release.not_after = later(-1)),
        ("a counter from next week", "CounterAhead", |w| {
            w.release.counter = COUNTER + 7 * 86_400 * 1000
        }),
        ("failed tests", "TestFailed", |w| w.receipts[1].1.predicate = json!({"result": "FAILED"})),
        ("passed with a list of failures", "TestFailed", |w| {
            w.receipts[1].1.predicate = json!({"result": "PASSED", "failedTests": ["x"]});
        }),
        ("failures that are not a list", "PredicateMalformed", |w| {
            w.receipts[1].1.predicate = json!({"result": "PASSED", "failedTests": "x"});
        }),
        ("tests with warnings in Strict", "TestFailed", |w| {
            w.receipts[1].1.predicate = json!({"result": "WARNED"})
        }),
        ("a test result where a build should be", "PredicateType", |w| {
            w.receipts[0].1.predicate_type = receipt::TEST_RESULT_TYPE.to_owned();
        }),
        ("a predicate type with something behind it", "PredicateType", |w| {
            w.receipts[0].1.predicate_type.push('/');
        }),
        ("a builder nobody allowed", "BuilderParameters", |w| {
            w.receipts[0].1.predicate["runDetails"]["builder"]["id"] =
                json!("https://evil.example");
        }),
        ("a build parameter nobody knows", "BuilderParameters", |w| {
            w.receipts[0].1.predicate["buildDefinition"]["externalParameters"]["backdoor"] =
                json!(true);
        }),
        ("a build of another commit", "SourceMismatch", |w| {
            w.release.source.git_commit = "d".repeat(40)
        }),
        ("an old scan", "AttestationStale", |w| {
            w.receipts[2].1.predicate["metadata"]["scanFinishedOn"] = json!("2025-11-22T11:00:00Z");
        }),
        ("a scan older than the policy allows", "AttestationStale", |w| {
            w.spec.applications[0].max_scan_age_hours = Some(24);
            w.receipts[2].1.predicate["metadata"]["scanFinishedOn"] = json!("2026-11-20T11:00:00Z");
        }),
        ("a scan from the future", "AttestationStale", |w| {
            w.receipts[2].1.predicate["metadata"]["scanFinishedOn"] = json!("2026-11-23T11:00:00Z");
        }),
        ("a scan without a time", "AttestationStale", |w| {
            w.receipts[2].1.predicate["metadata"] = json!({});
        }),
        ("a scan of another image", "SubjectIncomplete", |w| {
            w.receipts[2].1.subject = vec![Subject::new("myapp:v1", Digest::of(b"other image"))];
        }),
        ("a vulnerable image", "Vulnerable", |w| {
            w.receipts[2].1.predicate["scanner"]["result"] =
                json!([{"id": "CVE-1", "severity": [{"method": "nvd", "score": "9.1"}]}]);
        }),
        ("a statement of another version", "StatementInvalid", |w| {
            w.receipts[0].1.statement_type = "https://in-toto.io/Statement/v0.1".to_owned();
        }),
        ("one receipt for two attestations", "AttestationNotDistinct", |w| {
            w.receipts[1].1 = w.receipts[0].1.clone();
        }),
        // Objects.
        ("an object in a foreign namespace", "NamespaceNotAllowed", |w| {
            w.objects[0]["metadata"]["namespace"] = json!("default");
        }),
        ("a cluster-scoped object", "KindNotAllowed", |w| {
            w.objects[1] = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
                "metadata": {"name": "x"}});
        }),
        ("a Secret nobody allowed", "KindNotAllowed", |w| {
            w.objects[1] = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}});
        }),
        ("a trust policy inside the content", "KindNotAllowed", |w| {
            w.objects[1] = json!({"apiVersion": "attest.continuu.ms/v1", "kind": "AttestTrustPolicy",
                "metadata": {"name": "local"}});
        }),
        ("a kind nobody defines", "KindUnknown", |w| {
            w.objects[1] = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "x"}});
        }),
        ("a foreign Namespace", "KindNotAllowed", |w| {
            w.objects[1] =
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other"}});
        }),
        ("pods of the namespace allowed more, by a label", "LabelNotAllowed", |w| {
            w.objects[1] = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {
                "name": "app-production", "labels": {"pod-security.kubernetes.io/enforce": "privileged"}}});
        }),
        ("pods of the namespace allowed more, by an annotation", "LabelNotAllowed", |w| {
            w.objects[1] = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {
                "name": "app-production", "annotations": {"pod-security.kubernetes.io/warn": "x"}}});
        }),
        ("an image volume without a digest", "ImageUnpinned", |w| {
            w.objects[0]["spec"]["template"]["spec"]["volumes"] =
                json!([{"name": "models", "image": {"reference": "models:latest"}}]);
        }),
        ("a blob named twice", "BlobDigest", |w| w.twice = true),
        ("content that the plan does not name", "BlobDigest", |w| w.swapped = true),
        ("another plan than the directive names", "PlanDigest", |w| {
            w.plan_named = Some(Digest::of(b"another plan"));
        }),
        ("more objects than CI counted", "ObjectCount", |w| w.objects_signed = Some(1)),
        ("a release that names no such receipt", "AttestationMissing", |w| {
            w.receipts.remove(1);
        }),
        ("a release that names two such receipts", "AttestationMissing", |w| {
            let mut second = w.receipts[1].clone();
            second.1.predicate["note"] = json!("another");
            w.receipts.push(second);
        }),
        ("a second namespace where the policy allows one", "TooManyNamespaces", World::spread),
        ("a namespace beside the release's pattern", "RenderMismatch", |w| {
            let pattern = "web-*".to_owned();
            w.release.renders[0].namespace = NamespaceRule::DefaultOnly { pattern };
        }),
        ("a pattern and a fixed namespace that fit alike", "RenderAmbiguous", |w| {
            w.release.renders[1].target.environments = vec!["production".to_owned()];
            let pattern = "app-*".to_owned();
            w.release.renders[1].namespace = NamespaceRule::DefaultOnly { pattern };
        }),
        ("an image without a digest", "ImageUnpinned", |w| w.objects[0] = deployment("myapp:v2")),
        ("an image with another digest than signed", "ImageUnpinned", |w| {
            w.objects[0] = deployment(&format!("myapp@{}", Digest::of(b"other")));
        }),
        ("two digests for one image", "ImageAmbiguous", |w| {
            let other = ImageDigest { reference: "myapp:v1".to_owned(), digest: Digest::of(b"x") };
            w.release.renders[0].images.push(other);
            w.receipts[2].1.subject.push(Subject::new("x", Digest::of(b"x")));
        }),
        ("an object twice once placed", "ObjectDuplicate", |w| {
            w.objects[1] = deployment("myapp:v1");
            w.objects[1]["metadata"]["namespace"] = json!("app-production");
        }),
        // The local policy.
        ("a namespace beside the patterns", "NamespaceNotAllowed", |w| {
            w.spec.applications[0].namespaces = vec!["shop-*".to_owned()];
        }),
        ("an application nobody named", "ApplicationNotAllowed", |w| {
            w.spec.applications[0].names = vec!["api-*".to_owned()];
        }),
        ("a repository nobody named", "SourceNotAllowed", |w| {
            w.spec.applications[0].repos = vec!["https://git.example/company/api".to_owned()];
        }),
        ("no namespaces at all", "NamespaceNotAllowed", |w| {
            w.spec.applications[0].namespaces = Vec::new()
        }),
        ("a hub key that is a CI key", "RoleKeyOverlap", |w| {
            w.spec.hub.keys.push(key(CI).public().to_pem());
        }),
        ("two keys of one name", "TrustPolicyInvalid", |w| {
            let public_key = key(STRANGER).public().to_pem();
            let second = KeySpec { public_key, ..w.spec.keys[0].clone() };
            w.spec.keys.push(second);
        }),
        ("a policy below Standard", "TrustPolicyInvalid", |w| {
            w.spec.applications[0].minimum_mode = Mode::Audit;
        }),
        ("a key of another environment", "UntrustedKey", |w| {
            w.spec.keys[0].environments = vec![name("staging")];
        }),
        ("a cluster of another environment", "TargetMismatch", |w| {
            w.spec.environment = name("staging");
            w.spec.keys[0].environments = vec![name("staging")];
        }),
        ("a render for another cluster", "TargetMismatch", |w| {
            w.release.renders[0].target.clusters = Some(vec!["elsewhere".to_owned()]);
        }),
        ("a builder id that the key may not use", "BuilderParameters", |w| {
            w.spec.keys[0].builder_ids = Some(vec!["https://another.example".to_owned()]);
        }),
        ("an attestation that the policy requires", "AttestationMissing", |w| {
            w.asked.required_attestations.clear();
            w.spec.applications[0].required_attestations = vec!["build".to_owned()];
            w.receipts.retain(|(name, _)| *name != "build");
        }),
        ("a release that may not pin images", "ImageUnpinned", |w| {
            w.release.renders[0].mutations.clear();
        }),
        ("an unknown media type", "ContentFormat", |w| {
            w.release.renders[0].media_type = "application/x-yaml".to_owned();
        }),
        ("a size that CI did not sign", "ContentDigest", |w| w.size_signed = Some(1)),
        ("a directive of another version", "DocumentInvalid", |w| w.directive.v = 2),
        ("a plan of another version", "DocumentInvalid", |w| w.bend_plan = |plan| plan.v = 2),
        ("a plan of another application", "ApplicationMismatch", |w| {
            w.bend_plan = |plan| plan.application = name("api");
        }),
        ("a plan of another release", "BlobDigest", |w| {
            w.bend_plan = |plan| plan.release.id = Digest::of(b"another");
        }),
        ("a plan with another release envelope", "BlobDigest", |w| {
            w.bend_plan = |plan| plan.release.sha256 = Digest::of(b"another");
        }),
        ("a plan with another receipt", "BlobDigest", |w| {
            w.bend_plan = |plan| plan.receipts[0].id = Digest::of(b"another");
        }),
        ("a plan of a render that the release has not", "RenderUnknown", |w| {
            w.bend_plan = |plan| plan.render = "elsewhere".to_owned();
        }),
        ("a share above one hundred", "TrustPolicyInvalid", |w| {
            w.spec.applications[0].remove.max_prune_percent = 101;
        }),
        ("a pattern without end", "TrustPolicyInvalid", |w| {
            w.spec.applications[0].names.push("*".repeat(20_000));
        }),
    ];
    for (case, expected, bend) in cases {
        let mut bent = world();
        bend(&mut bent);
        assert_eq!(bent.reason(), expected, "{case}");
    }
}

#[test]
fn generation_and_attempt_are_labels_that_decide_nothing() {
    let admitted = |generation, attempt| {
        let mut labelled = world();
        (labelled.directive.generation, labelled.directive.attempt) = (generation, attempt);
        labelled.ask().unwrap().admitted.clone()
    };

    assert_eq!(admitted(1, 0), admitted(7, 3));
}

/// Steps in the order of docs/protocol.md, each with one way to fail at it.
#[test]
fn of_two_faults_the_one_of_the_earlier_step_is_the_reason() {
    type Bend = fn(&mut World);
    let steps: Vec<(&str, &str, Bend)> = vec![
        ("directive: signature", "SignatureInvalid", |w| w.hub_key = STRANGER),
        ("directive: fields", "DocumentInvalid", |w| w.directive.cap_percent = 101),
        ("directive: audience", "AudienceMismatch", |w| {
            w.directive.cluster = ClusterId::of_identity_key(&[8; 32]);
        }),
        ("directive: clock", "ClockRollback", |w| w.recorded().recorded_at = Some(later(1))),
        ("directive: time", "Expired", |w| {
            w.directive.issued_at = later(-3);
            w.directive.expires_at = later(-2);
        }),
        ("directive: sequence", "SequenceReplayed", |w| w.recorded().sequence = 9),
        ("directive: operation", "RollbackNotAllowed", |w| {
            w.directive.operation = Operation::Rollback;
        }),
        ("directive: cap", "CapNotSupported", |w| w.directive.cap_percent = 50),
        ("plan: digest", "PlanDigest", |w| w.plan_named = Some(Digest::of(b"another"))),
        ("plan: hooks", "HookNotAllowed", |w| w.hooks.push(json!({"name": "x"}))),
        ("plan: blobs", "BlobDigest", |w| w.twice = true),
        ("policy: application", "ApplicationNotAllowed", |w| {
            w.spec.applications[0].names = vec!["api".to_owned()];
        }),
        ("policy: namespace", "NamespaceNotAllowed", |w| {
            w.spec.applications[0].namespaces = vec!["shop-*".to_owned()];
        }),
        ("policy: mode floor", "PolicyFloor", |w| w.asked.mode = Mode::Audit),
        ("blobs: digest", "BlobDigest", |w| w.swapped = true),
        ("release: signature", "SignatureInvalid", |w| w.release_key = STAGING_CI),
        ("release: application", "ApplicationMismatch", |w| w.release.application = name("api")),
        ("release: repository", "SourceNotAllowed", |w| {
            w.spec.applications[0].repos = vec!["https://git.example/company/api".to_owned()];
        }),
        ("release: keys here", "UntrustedKey", |w| w.spec.applications[0].keys = Some(Vec::new())),
        ("release: target", "TargetMismatch", |w| {
            w.release.renders[0].target.environments = vec!["staging".to_owned()];
        }),
        ("record: binding", "SourceChanged", |w| {
            w.recorded().binding = Some("https://git.example/other/web-app".to_owned());
        }),
        ("record: counter", "CounterRegressed", |w| {
            w.recorded().floor = Some(Floor { counter: u64::MAX, release: Digest::of(b"former") });
        }),
        ("record: namespaces", "TooManyNamespaces", |w| {
            w.spread();
            w.recorded().removed = true;
        }),
        ("release: counter ahead", "CounterAhead", |w| w.release.counter = COUNTER * 2),
        ("release: age", "ReleaseExpired", |w| w.release.not_after = later(-1)),
        ("content: digest", "ContentDigest", |w| {
            w.delivered = Some(manifest::write(vec![deployment("myapp:v2")]).unwrap());
        }),
        ("evidence: pinned", "AttestationMissing", |w| {
            w.asked.required_attestations.clear();
            w.receipts.retain(|(name, _)| *name != "build");
        }),
        ("evidence: delivered", "ReceiptMissing", |w| w.withheld.push("security-scan")),
        ("evidence: rule", "TestFailed", |w| {
            let test = w.receipts.iter_mut().find(|(name, _)| *name == "test").unwrap();
            test.1.predicate = json!({"result": "FAILED"});
        }),
        ("content: count", "ObjectCount", |w| w.objects_signed = Some(1)),
        ("content: each object", "KindUnknown", |w| {
            w.objects[1] = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "x"}});
        }),
        ("plan: facts of the release", "PlanMismatch", |w| {
            w.bend_plan = |plan| plan.content.objects += 1;
        }),
    ];
    for (index, (step, reason, bend)) in steps.iter().enumerate() {
        let rest = steps.get(index + 1..).unwrap_or_default();
        for others in [rest.get(..0), rest.get(..1), Some(rest)].into_iter().flatten() {
            let mut bent = world();
            for (.., bend) in others.iter().rev() {
                bend(&mut bent);
            }
            bend(&mut bent);
            let names: Vec<&str> = others.iter().map(|(name, ..)| *name).collect();
            assert_eq!(bent.reason(), *reason, "{step}, and {names:?}");
        }
    }
}

#[test]
fn a_rendering_that_fixes_no_namespace_may_use_as_many_as_the_policy_says() {
    let mut spread = world();
    spread.spread();
    spread.spec.applications[0].namespaces = vec!["app-*".to_owned()];
    spread.spec.applications[0].max_namespaces = Some(2);
    assert_eq!(spread.reason(), "Admitted");

    spread.records.values_mut().next().unwrap().removed = true;
    spread.spec.applications[0].max_namespaces = None;
    assert_eq!(spread.reason(), "Admitted", "a removed one does not count");
}

#[test]
fn a_release_that_already_runs_here_is_kept_after_it_expires() {
    let admitted = world().ask().unwrap();
    let floor = Floor { counter: COUNTER, release: admitted.admitted.id };
    let mut late = world().with_record(|r| r.floor = Some(floor));
    late.now = later(24 * 60);
    late.directive.issued_at = late.now;
    late.directive.expires_at = late.now;

    assert_eq!(late.reason(), "Admitted");

    late.release_key = STRANGER;
    assert_eq!(late.reason(), "SignatureInvalid");
}

#[test]
fn what_was_removed_is_admitted_as_if_for_the_first_time() {
    let admitted = world().ask().unwrap();
    let floor = Floor { counter: COUNTER, release: admitted.admitted.id };
    let mut late = world().with_record(|r| {
        r.floor = Some(floor);
        r.removed = true;
    });
    late.now = later(24 * 60);
    late.directive.issued_at = late.now;
    late.directive.expires_at = late.now;

    assert_eq!(late.reason(), "ReleaseExpired");
}

#[test]
fn a_new_hub_key_counts_its_own_sequence() {
    let mut rotated = world().with_record(|r| {
        r.sequence = u64::MAX;
        r.hub_key = key(STRANGER).public().id();
    });
    assert_eq!(rotated.reason(), "Admitted");
    rotated.records.values_mut().next().unwrap().hub_key = key(HUB).public().id();
    assert_eq!(rotated.reason(), "SequenceReplayed");
}

#[test]
fn standard_mode_warns_where_strict_refuses() {
    let mut lenient = world();
    lenient.spec.applications[0].minimum_mode = Mode::Standard;
    lenient.asked.mode = Mode::Standard;
    lenient.receipts[1].1.predicate = json!({"result": "WARNED"});
    lenient.release.not_after = later(-1);

    let admission = lenient.ask().unwrap();

    assert_eq!(admission.admitted.mode, Mode::Standard);
    assert_eq!(admission.admitted.warnings.len(), 2, "{:?}", admission.admitted.warnings);
}

#[test]
fn removing_needs_the_local_policy_and_something_to_remove() {
    let ask = |world: &World| {
        let directive =
            Directive { operation: Operation::Remove, plan: None, ..world.directive.clone() };
        let sealed = seal(DIRECTIVE_TYPE, &to_bytes(&directive), &[&key(HUB)]);
        let policy = world.spec.load().unwrap();
        let spoke = SpokeContext {
            policy: &policy,
            cluster: &world.directive.cluster,
            records: &world.records,
            now: world.now,
            ages: Ages::Enforce,
        };
        let ordered = super::directive(&sealed, &spoke).unwrap();
        removal(&ordered, &spoke).map_or_else(|e| e.reason().as_str(), |_| "Admitted")
    };
    let mut running = world().with_record(|_| {});
    assert_eq!(ask(&world()), "NothingToRemove");
    assert_eq!(ask(&running), "RemoveNotAllowed");
    running.spec.applications[0].remove.allow = true;
    assert_eq!(ask(&running), "Admitted");
}

#[test]
fn a_clock_may_be_two_minutes_behind_what_was_recorded_and_no_more() {
    let recorded = |seconds_ahead: i64| {
        let at = Timestamp::from_second(now().as_second() + seconds_ahead).unwrap();
        // At another destination: there is one clock.
        let elsewhere = |record: &mut Record| {
            record.namespace = name("elsewhere");
            record.recorded_at = Some(at);
        };
        world()
            .with_record(elsewhere)
            .ask()
            .map_or_else(|error| error.reason().as_str(), |_| "admitted")
    };

    assert_eq!(
        [-86_400, 0, 120, 121].map(recorded),
        ["admitted", "admitted", "admitted", "ClockRollback"]
    );
}

#[test]
fn a_sync_must_answer_this_connection() {
    let world = world();
    let policy = world.spec.load().unwrap();
    let spoke = SpokeContext {
        policy: &policy,
        cluster: &world.directive.cluster,
        records: &world.records,
        now: now(),
        ages: Ages::Enforce,
    };
    let ask = |bend: fn(&mut Sync)| {
        let mut document = Sync {
            v: 1,
            cluster: world.directive.cluster.clone(),
            epoch: 1,
            counter: 2,
            nonce: "aa".to_owned(),
            heads: Vec::new(),
            issued_at: now(),
            expires_at: Timestamp::from_second(now().as_second() + 600).unwrap(),
        };
        bend(&mut document);
        let sealed = seal(SYNC_TYPE, &to_bytes(&document), &[&key(HUB)]);
        sync(&sealed, &spoke, "aa", 1).map_or_else(|e| e.reason().as_str(), |_| "Fresh")
    };

    assert_eq!(ask(|_| {}), "Fresh");
    assert_eq!(ask(|s| s.nonce = "bb".to_owned()), "SyncNonce");
    assert_eq!(ask(|s| s.counter = 1), "SyncNonce");
    assert_eq!(ask(|s| s.cluster = ClusterId::of_identity_key(&[8; 32])), "AudienceMismatch");
    assert_eq!(ask(|s| s.expires_at = later(1)), "LifetimeTooLong");
}

fn modes() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::Disabled), Just(Mode::Audit), Just(Mode::Standard), Just(Mode::Strict)]
}

/// What any hub may ask: every mode, attestations known and unknown, keys of ours and of strangers.
fn asked() -> impl Strategy<Value = RequestedPolicy> {
    let attestations =
        proptest::sample::subsequence(vec!["build", "test", "security-scan", "blessing"], 0..=4);
    let keys = proptest::sample::subsequence(vec![CI, HUB, STRANGER, STAGING_CI], 0..=4);
    (modes(), attestations, proptest::option::of(keys)).prop_map(|(mode, attestations, keys)| {
        let ids = |keys: Vec<u8>| keys.into_iter().map(|seed| key(seed).public().id()).collect();
        RequestedPolicy {
            mode,
            required_attestations: attestations.into_iter().map(String::from).collect(),
            trusted_keys: keys.map(ids),
        }
    })
}

proptest! {
    /// Whatever a plan asks and whatever it leaves out, what is admitted keeps to the cluster's own policy.
    #[test]
    fn what_holds_is_never_laxer_than_the_clusters_own_policy(
        asked in asked(),
        strict: bool,
        required in proptest::sample::subsequence(vec!["build", "test", "security-scan"], 0..=3),
        withheld in proptest::sample::subsequence(vec!["build", "test", "security-scan"], 0..=2),
        signer in proptest::sample::select(vec![CI, HUB, STRANGER, STAGING_CI]),
    ) {
        let floor = if strict { Mode::Strict } else { Mode::Standard };
        let mut bent = world();
        bent.spec.applications[0].minimum_mode = floor;
        bent.spec.applications[0].required_attestations =
            required.iter().copied().map(String::from).collect();
        bent.asked = asked.clone();
        bent.withheld = withheld.clone();
        bent.release_key = signer;

        let Ok(admission) = bent.ask() else { return Ok(()) };

        let admitted = &admission.admitted;
        prop_assert!(admitted.mode >= floor && admitted.mode >= asked.mode);
        prop_assert_eq!(signer, CI, "only a key of the local policy");
        let narrowed = asked.trusted_keys.is_none_or(|ids| ids.contains(&key(CI).public().id()));
        prop_assert!(narrowed, "only a key that the plan asks for");
        let lacking = |name: &&str| withheld.contains(name);
        prop_assert!(!required.iter().any(lacking), "what the policy requires");
        let also = asked.required_attestations.iter().map(String::as_str);
        prop_assert!(!also.into_iter().any(|name| lacking(&name)), "what the plan requires");
        prop_assert!(!asked.required_attestations.contains("blessing"));
    }

    /// Bytes of anybody, raw and in a good envelope: refused or not, nothing panics.
    #[test]
    fn no_bytes_make_the_gate_panic(bytes in hostile(), at: usize, byte: u8) {
        let world = world();
        let policy = world.spec.load().unwrap();
        let spoke = SpokeContext {
            policy: &policy,
            cluster: &world.directive.cluster,
            records: &world.records,
            now: now(),
            ages: Ages::Enforce,
        };
        let mut broken = to_bytes(&world.directive);
        let at = at % broken.len();
        broken[at] = byte;
        for payload in [&bytes, &broken] {
            for payload_type in [DIRECTIVE_TYPE, PLAN_TYPE, SYNC_TYPE, STATEMENT_TYPE] {
                let sealed = seal(payload_type, payload, &[&key(HUB)]);
                for envelope in [payload, &sealed] {
                    let _ = directive(envelope, &spoke);
                    let _ = plan(envelope, Digest::of(payload), &policy);
                    let _ = sync(envelope, &spoke, "aa", 1);
                    let _ = open_release(envelope, &policy.hub_keys);
                    let _ = envelope::peek(envelope, payload_type);
                }
            }
            let _ = Statement::read(payload);
            let _ = manifest::read(payload);
            let _ = serde_json::from_slice::<Spec>(payload).map(|spec| spec.load());
        }
    }
}

/// Bytes as they come, and words of our own formats in any order.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let words = vec![
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "\"",
        "\\u0061",
        "\n",
        "null",
        "-1",
        "1e400",
        "\"v\":1",
        "\"apiVersion\":\"v1\"",
        "\"kind\":\"ConfigMap\"",
        "\"metadata\":{\"name\":\"a\"}",
        "\"payloadType\":",
        "\"payload\":\"e30=\"",
        "\"signatures\":[]",
        "\u{feff}",
        "\u{0}",
    ];
    let text = proptest::collection::vec(proptest::sample::select(words), 0..40)
        .prop_map(|words| words.concat().into_bytes());
    prop_oneof![proptest::collection::vec(any::<u8>(), 0..300), text]
}
