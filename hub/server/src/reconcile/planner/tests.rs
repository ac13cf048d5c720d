use std::collections::BTreeSet;

use attest_common::basics::ids::{ClusterId, Name};
use attest_common::basics::keys::PrivateKey;
use attest_common::basics::terms::BUILDER_ID;
use attest_common::basics::terms::Mode;
use attest_common::documents::plan::{RequestedPolicy, SyncPolicy};
use attest_common::documents::receipt::{
    BUILD_TYPE, PROVENANCE_TYPE, TEST_RESULT_TYPE, VULNS_TYPE,
};
use attest_common::documents::release::{
    Evidence as Pinned, ImageDigest, NamespaceRule, RELEASE_TYPE, Release, ReleaseSource, Renderer,
    Target,
};
use attest_common::documents::statement::{Statement, Subject};
use attest_common::session::FEATURES;
use attest_common::trust::policy::{Entry, HubSpec, KeySpec, Spec};
use serde_json::json;

use super::*;
use crate::core::position::{
    EPOCHS_AHEAD_MAX, SEQUENCE_MAX, SEQUENCES_AHEAD_MAX, is_from_unknown_epoch, is_plausible,
};
use crate::core::store::records::Destination;

const NOW: &str = "2026-11-22T12:00:00Z";
const REPO: &str = "https://git.example/company/web-app";
pub(in crate::reconcile) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_seed(&[seed; 32]).unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// Tag whose rendering has a finalizer.
const GUARDED: &str = "guarded";

fn rendering(tag: &str) -> Vec<u8> {
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"template": {"spec": {"containers": [{"name": "web", "image": format!("myapp:{tag}")}]}}}
    });
    if tag == GUARDED {
        object["metadata"]["finalizers"] = json!(["example.com/clean-up"]);
    }
    manifest::write(vec![object]).unwrap()
}

fn rendered(tag: &str) -> Rendered {
    let bytes = rendering(tag);
    Rendered {
        digest: Digest::of(&bytes),
        bytes: bytes.into(),
        renderer: ("yaml".into(), "1".into()),
    }
}

/// What CI signed for one tag: three receipts and the release statement.
fn signed(signer: &PrivateKey, tag: &str, counter: u64, environment: &str) -> Vec<Vec<u8>> {
    let content = rendering(tag);
    let subject = || Subject::new("app", Digest::of(&content));
    let image = Digest::of(tag.as_bytes());
    let seal = |statement: &Statement| {
        let payload = statement.to_bytes();
        let id = envelope::id_of(STATEMENT_TYPE, &payload);
        (id, envelope::seal(STATEMENT_TYPE, &payload, &[signer]))
    };
    let mut files = Vec::new();
    let mut pinned = Vec::new();
    for (attestation, kind, subjects, predicate) in [
        (
            "build",
            PROVENANCE_TYPE,
            vec![subject()],
            json!({"buildDefinition": {"buildType": BUILD_TYPE, "externalParameters": {"step": counter.to_string()},
                "resolvedDependencies": [{"uri": REPO, "digest": {"gitCommit": COMMIT}}]},
                "runDetails": {"builder": {"id": BUILDER_ID}}}),
        ),
        ("test", TEST_RESULT_TYPE, vec![subject()], json!({"result": "PASSED"})),
        (
            "security-scan",
            VULNS_TYPE,
            vec![Subject::new("myapp", image)],
            json!({"scanner": {"result": []}, "metadata": {"scanFinishedOn": NOW}}),
        ),
    ] {
        // The counter keeps receipts of two releases of one rendering apart.
        let (receipt, sealed) = seal(&Statement::new(subjects, kind, predicate));
        pinned.push(Pinned { attestation: attestation.into(), receipt });
        files.push(sealed);
    }
    let release = Release {
        application: name("web-app"),
        version: tag.into(),
        counter,
        not_after: "2027-01-01T00:00:00Z".parse().unwrap(),
        source: ReleaseSource {
            repo: REPO.into(),
            git_commit: COMMIT.into(),
            source_root: "k8s".into(),
            git_tree: COMMIT.into(),
        },
        renderer: Renderer { name: "yaml".into(), version: "1".into() },
        evidence: pinned,
        renders: vec![Render {
            name: "staging".into(),
            subject: "app".into(),
            media_type: RENDERING_TYPE.into(),
            size: content.len() as u64,
            objects: 1,
            target: Target { environments: vec![environment.into()], clusters: None },
            namespace: NamespaceRule::DefaultOnly { pattern: "app-*".into() },
            images: vec![ImageDigest { reference: format!("myapp:{tag}"), digest: image }],
            mutations: vec!["image-pin".into()],
        }],
    };
    let predicate = serde_json::to_value(&release).unwrap();
    files.push(seal(&Statement::new(vec![subject()], RELEASE_TYPE, predicate)).1);
    files
}

pub(in crate::reconcile) struct World {
    pub(in crate::reconcile) application: Application,
    destination: DestinationKey,
    pub(in crate::reconcile) files: Vec<Vec<u8>>,
    committed: Vec<(String, Vec<u8>)>,
    pub(in crate::reconcile) rendered: Rendered,
    spec: Spec,
    features: BTreeSet<String>,
    others: Vec<&'static str>,
    pub(in crate::reconcile) head: Option<LedgerEntry>,
    position: Option<SpokePosition>,
    asked_for: bool,
    pub(in crate::reconcile) now: Timestamp,
}

impl World {
    pub(in crate::reconcile) fn new() -> Self {
        Self {
            application: Application {
                name: name("web-app"),
                namespace: "default".into(),
                repo_url: REPO.into(),
                revision: "HEAD".into(),
                path: "k8s".into(),
                destinations: vec![Destination {
                    cluster: name("staging"),
                    namespace: name("app-staging"),
                    path: None,
                    stage: None,
                }],
                selectors: Vec::new(),
                delivery: None,
                asked: RequestedPolicy {
                    mode: Mode::Strict,
                    required_attestations: Default::default(),
                    trusted_keys: None,
                },
                sync: SyncPolicy::default(),
                receipts_required: false,
                automated: true,
            },
            destination: DestinationKey {
                application: name("web-app"),
                cluster: ClusterId::of_identity_key(&[1; 32]),
                namespace: name("app-staging"),
            },
            files: signed(&key(1), "v1", 100, "staging"),
            committed: vec![],
            rendered: rendered("v1"),
            spec: Spec {
                cluster_name: Some(name("staging")),
                kube_system_uid: Some("uid".into()),
                environment: name("staging"),
                hub: HubSpec { keys: vec![key(9).public().to_pem()], ca_pins: vec!["pin".into()] },
                keys: vec![KeySpec {
                    name: "ci".into(),
                    public_key: key(1).public().to_pem(),
                    roles: Role::ALL.to_vec(),
                    environments: vec![name("staging")],
                    builder_ids: None,
                }],
                applications: vec![Entry {
                    entry: None,
                    names: vec!["*".into()],
                    repos: vec!["*".into()],
                    namespaces: vec!["*".into()],
                    kinds: Default::default(),
                    minimum_mode: Mode::Strict,
                    required_attestations: ["build", "test", "security-scan"]
                        .map(str::to_owned)
                        .into(),
                    keys: None,
                    rollback: Default::default(),
                    remove: Default::default(),
                    adopt: false,
                    max_namespaces: None,
                    max_scan_age_hours: None,
                }],
            },
            features: FEATURES.map(str::to_owned).into(),
            others: vec![],
            head: None,
            position: None,
            asked_for: false,
            now: NOW.parse().unwrap(),
        }
    }

    fn decide(&self) -> Decision {
        self.judge(decide)
    }

    fn judge<T>(&self, judge: impl FnOnce(&Situation<'_>) -> T) -> T {
        let files = self.files.iter().map(Vec::as_slice);
        let evidence = Evidence::read(files, self.committed.iter().cloned())
            .with_others(self.application.name.as_str(), self.others.iter().copied());
        let reported = self.reported();
        judge(&Situation {
            application: &self.application,
            destination: &self.destination,
            commit: COMMIT,
            evidence: &evidence,
            rendered: &self.rendered,
            reported: &reported,
            head: self.head.as_ref(),
            position: self.position,
            asked_for: self.asked_for,
            refused_as_expired: false,
            now: self.now,
        })
    }

    pub(in crate::reconcile) fn reported(&self) -> ReportedPolicy {
        ReportedPolicy {
            spec: self.spec.clone(),
            policy: self.spec.load().unwrap(),
            features: self.features.clone(),
        }
    }

    /// The word of the outcome: a reason, or what is done.
    fn word(&self) -> String {
        match self.decide() {
            Decision::New(_) => "New".into(),
            Decision::Stands { .. } if self.judge(must_be_reissued) => "Again".into(),
            Decision::Stands { .. } => "Nothing".into(),
            Decision::Waiting(waiting) => waiting.reason.to_string(),
        }
    }

    fn waiting(&self) -> Waiting {
        match self.decide() {
            Decision::Waiting(waiting) => waiting,
            other @ (Decision::New(_) | Decision::Stands { .. }) => panic!("{other:?}"),
        }
    }

    /// What was decided was ordered.
    pub(in crate::reconcile) fn order(&mut self) {
        let Decision::New(proposal) = self.decide() else { panic!("{}", self.word()) };
        let Proposal { plan, admitted, .. } = *proposal;
        let sequence = self.head.as_ref().map_or(1, |head| head.sequence + 1);
        self.head = Some(LedgerEntry {
            epoch: 1,
            sequence,
            generation: sequence,
            attempt: 0,
            operation: Operation::Progress,
            directive: String::new(),
            digest: Digest::of(&sequence.to_be_bytes()),
            issued_at: self.now,
            expires_at: "2026-11-23T12:00:00Z".parse().unwrap(),
            planned: Some(Planned {
                plan: Digest::of(&attest_common::documents::plan::to_bytes(&plan)),
                envelope: Digest::of(b"envelope"),
                blobs: vec![],
                release: plan.release.id,
                content: plan.content.sha256,
                render: plan.render.clone(),
                version: admitted.release.version.clone(),
                counter: admitted.release.counter,
                repo: REPO.into(),
                commit: COMMIT.into(),
                signed_commit: COMMIT.into(),
            }),
            hub_finalized: false,
            paused: false,
            timings: Default::default(),
        });
    }
}

#[test]
fn a_ledger_without_another_sequence_is_named_with_the_remedy_and_what_runs_stands() {
    let mut world = World::new();
    world.order();
    world.head.as_mut().unwrap().sequence = SEQUENCE_MAX;
    assert_eq!(world.word(), "Nothing");

    world.files = signed(&key(1), "v2", 200, "staging");
    world.rendered = rendered("v2");

    assert_eq!(world.word(), "SequenceUsedUp");
    let message = world.waiting().message;
    assert!(message.contains("`attest hub init`"), "{message}");
    assert!(message.contains("`attest trust install`"), "{message}");
    world.head.as_mut().unwrap().sequence -= 1;
    assert_eq!(world.word(), "New");
}

#[test]
fn what_an_older_spoke_does_not_accept_waits_for_its_upgrade() {
    let mut world = World::new();
    world.files = signed(&key(1), GUARDED, 100, "staging");
    world.rendered = rendered(GUARDED);
    assert_eq!(world.word(), "New");

    world.features.clear();

    assert_eq!(world.word(), "SpokeTooOld");
}

#[test]
fn a_repository_that_signs_another_application_says_which() {
    let mut world = World::new();
    world.files.clear();
    world.others = vec!["shop", "web-app", "../odd"];

    let Decision::Waiting(waiting) = world.decide() else { panic!("it is decided") };

    let expected =
        "this repository signs application `shop`; this one is called `web-app`: use one name";
    assert!(waiting.message.contains(expected), "{}", waiting.message);
}

#[test]
fn a_signed_rendering_is_planned_with_its_evidence_and_then_left_alone() {
    let mut world = World::new();

    let Decision::New(proposal) = world.decide() else { panic!("{}", world.word()) };
    assert_eq!(proposal.plan.receipts.len(), 3);
    assert_eq!(proposal.blobs.len(), 5);
    assert_eq!(proposal.plan.content.sha256, world.rendered.digest);
    world.order();
    assert_eq!(world.word(), "Nothing");
    world.application.sync.prune = true;
    assert_eq!(world.word(), "New", "what is asked of the destination changed");
}

#[test]
fn of_several_releases_with_the_rendering_the_newest_is_taken() {
    let mut world = World::new();
    world.files.extend(signed(&key(1), "v1", 101, "staging"));

    let Decision::New(proposal) = world.decide() else { panic!("{}", world.word()) };

    assert_eq!(proposal.admitted.release.counter, 101);
}

#[test]
fn a_rendering_nobody_signed_waits_and_is_not_counted() {
    let mut world = World::new();
    world.order();
    world.rendered = rendered("v2");

    let waiting = world.waiting();

    assert_eq!(waiting.reason.as_str(), "AwaitingReceipts");
    assert!(!waiting.counted);
    world.head = None;
    world.files.clear();
    assert_eq!(world.waiting().reason.as_str(), "AwaitingReceipts");
}

#[test]
fn a_newer_release_with_another_rendering_names_object_field_and_both_values() {
    let mut world = World::new();
    world.order();
    world.files.extend(signed(&key(1), "v2", 101, "staging"));
    world.committed = vec![("staging".into(), rendering("v2"))];
    world.rendered = rendered("v3");

    let waiting = world.waiting();

    assert_eq!(waiting.reason.as_str(), "ContentDigest");
    assert!(waiting.counted);
    assert!(waiting.message.contains("Deployment.apps/web"), "{}", waiting.message);
    assert!(waiting.message.contains("signed myapp:v2, found myapp:v3"), "{}", waiting.message);
    // A committed rendering that is not the signed one explains nothing, and hides nothing.
    world.committed = vec![("staging".into(), rendering("v9"))];
    assert!(!world.waiting().message.contains("v9"));
}

#[test]
fn another_renderer_is_named_before_its_difference() {
    let mut world = World::new();
    world.rendered = Rendered { renderer: ("kustomize".into(), "5".into()), ..rendered("v2") };

    assert_eq!(world.word(), "RendererMismatch");
}

#[test]
fn a_reverted_commit_is_never_planned_again() {
    let mut world = World::new();
    world.order();
    world.files.extend(signed(&key(1), "v2", 101, "staging"));
    world.rendered = rendered("v2");
    world.order();
    world.rendered = rendered("v1");

    let waiting = world.waiting();

    assert_eq!(waiting.reason.as_str(), "CounterRegressed");
    assert!(waiting.message.contains("attest release --from 100"), "{}", waiting.message);
    // Signed again with a new counter, without building: planned.
    world.files.extend(signed(&key(1), "v1", 102, "staging"));
    assert_eq!(world.word(), "New");
}

#[test]
fn strangers_and_other_environments_count_for_nothing() {
    let mut world = World::new();
    world.files = signed(&key(7), "v1", 100, "staging");
    let waiting = world.waiting();
    assert_eq!(waiting.reason.as_str(), "AwaitingReceipts");
    assert!(waiting.message.contains("1 release statements"), "{}", waiting.message);
    // It is counted as what it is.
    assert_eq!((waiting.counted, waiting.counted_as), (true, Some(Reason::UntrustedKey)));

    world.files = signed(&key(1), "v1", 100, "production");
    let waiting = world.waiting();
    assert_eq!(waiting.reason.as_str(), "AwaitingReceipts");
    assert_eq!((waiting.counted, waiting.counted_as), (false, None));
    world.files = signed(&key(7), "v1", 100, "production");
    assert!(!world.waiting().counted, "it is for another environment");

    // An unsigned commit after a release of CI counts for nothing, one that a stranger signed does.
    let mut unsigned = World::new();
    unsigned.order();
    unsigned.rendered = rendered("v2");
    assert_eq!(unsigned.waiting().counted_as, None);
    unsigned.files.extend(signed(&key(7), "v2", 99, "staging"));
    assert_eq!(unsigned.waiting().counted_as, Some(Reason::UntrustedKey));

    // A stranger's newer counter does not make a known release look old.
    world.files = signed(&key(1), "v1", 100, "staging");
    world.files.extend(signed(&key(7), "v2", 999, "staging"));
    assert_eq!(world.word(), "New");
}

#[test]
fn what_the_clusters_own_policy_refuses_is_refused_early_with_its_reason() {
    type Edit = fn(&mut World);
    let cases: [(Edit, &str); 8] = [
        (|w| w.spec.applications[0].names = vec!["other".into()], "ApplicationNotAllowed"),
        (|w| w.spec.applications[0].namespaces = vec!["other".into()], "NamespaceNotAllowed"),
        (|w| w.spec.applications[0].repos = vec!["https://x/*".into()], "SourceNotAllowed"),
        (|w| w.application.asked.mode = Mode::Disabled, "PolicyFloor"),
        (
            |w| {
                w.application.receipts_required = true;
                w.spec.applications[0].required_attestations.clear();
            },
            "NoReceiptRequired",
        ),
        (|w| w.files.retain(|file| !is_receipt(file, TEST_RESULT_TYPE)), "ReceiptMissing"),
        (|w| w.now = "2027-02-01T00:00:00Z".parse().unwrap(), "ReleaseExpired"),
        (|w| w.now = "2026-12-10T00:00:00Z".parse().unwrap(), "AttestationStale"),
    ];
    for (edit, reason) in cases {
        let mut world = World::new();
        edit(&mut world);
        let waiting = world.waiting();
        assert_eq!(waiting.reason.as_str(), reason);
        assert!(waiting.counted, "{reason}");
    }
}

fn is_receipt(file: &[u8], predicate_type: &str) -> bool {
    let (payload, _) = envelope::peek(file, STATEMENT_TYPE).unwrap();
    Statement::read(&payload).unwrap().predicate_type == predicate_type
}

#[test]
fn of_a_long_history_only_what_can_matter_is_remembered() {
    let mut files = signed(&key(1), "old", 1, "staging");
    for counter in 100..120 {
        files.extend(signed(&key(1), &format!("v{counter}"), counter, "staging"));
    }
    let evidence = Evidence::read(files.iter().map(Vec::as_slice), std::iter::empty());
    assert_eq!(evidence.statements.len(), 21);

    let kept = evidence.kept_for(&BTreeSet::from([Digest::of(&rendering("old"))]));

    let counters: Vec<u64> = kept.statements.iter().map(|c| c.release.counter).collect();
    assert_eq!(counters, [119, 118, 117, 116, 115, 114, 113, 112, 1]);
    assert_eq!(kept.receipts.len(), 9 * 3);
}

#[test]
fn a_release_that_runs_already_is_not_judged_by_its_age_again() {
    let mut world = World::new();
    world.order();
    world.now = "2027-02-01T00:00:00Z".parse().unwrap();

    assert_eq!(world.word(), "Nothing");
}

#[test]
fn without_automation_a_release_waits_for_the_operator() {
    let mut world = World::new();
    world.application.automated = false;
    assert_eq!(world.word(), "AwaitingSync");

    world.asked_for = true;
    assert_eq!(world.word(), "New");
}

#[test]
fn a_directive_the_spoke_can_no_longer_admit_is_said_again() {
    let mut world = World::new();
    world.order();
    let digest = world.head.as_ref().unwrap().digest;
    let held = |sequence, digest| {
        Some(SpokePosition { epoch: 1, sequence, digest, generation: 0, attempt: 0 })
    };
    let later_term = |sequence, digest| {
        Some(SpokePosition { epoch: 9, sequence, digest, generation: 0, attempt: 0 })
    };
    for (state, later, word) in [
        (later_term(0, None), false, "Again"),
        (later_term(1, Some(digest)), false, "Nothing"),
        (None, true, "Nothing"),
        (held(0, None), false, "Nothing"),
        (held(0, None), true, "Again"),
        (held(1, Some(digest)), true, "Nothing"),
        (held(1, Some(Digest::of(b"other"))), false, "Again"),
        (held(2, None), false, "Again"),
    ] {
        world.position = state;
        world.now = if later { "2026-11-24T00:00:00Z" } else { NOW }.parse().unwrap();
        assert_eq!(world.word(), word, "{state:?} {later}");
    }
}

#[test]
fn a_release_whose_key_does_not_count_for_the_application_stands_in_nobodys_way() {
    let mut world = World::new();
    world.spec.keys.push(KeySpec {
        name: "other-team".into(),
        public_key: key(2).public().to_pem(),
        roles: Role::ALL.to_vec(),
        environments: vec![name("staging")],
        builder_ids: None,
    });
    world.spec.applications[0].keys = Some(vec!["ci".into()]);
    // The release statement comes last.
    world.files.extend(signed(&key(2), "v1", 200, "staging").pop());

    let Decision::New(proposal) = world.decide() else { panic!("{}", world.word()) };

    assert_eq!(proposal.admitted.release.counter, 100);
}

#[test]
fn what_a_spoke_holds_moves_the_epoch_only_when_a_backup_can_have_forgotten_it() {
    let mut world = World::new();
    world.order();
    let head = world.head.as_ref().unwrap();
    let (mine, other) = (Some(head.digest), Some(Digest::of(b"other")));
    let epoch = 5;
    // epoch, sequence, digest: believed, of a forgotten term
    for (held_epoch, sequence, digest, is_believed, is_forgotten) in [
        (1, 1, mine, true, false),
        (5, 1, mine, true, false),
        (5, 0, None, true, true),
        (5, 1, other, true, true),
        (5, 2, other, true, true),
        (4, 2, other, true, false),
        (6, 1, other, true, true),
        (6, 0, None, true, true),
        (5 + EPOCHS_AHEAD_MAX, 1, other, true, true),
        (6 + EPOCHS_AHEAD_MAX, 1, other, false, true),
        (1, 1 + SEQUENCES_AHEAD_MAX, other, true, false),
        (1, 2 + SEQUENCES_AHEAD_MAX, other, false, false),
    ] {
        let held = SpokePosition { epoch: held_epoch, sequence, digest, generation: 0, attempt: 0 };
        assert_eq!(is_plausible(held, Some(head), epoch), is_believed, "{held:?}");
        assert_eq!(is_from_unknown_epoch(held, Some(head), epoch), is_forgotten, "{held:?}");
    }
    assert!(is_plausible(
        SpokePosition { epoch: 1, sequence: 9, digest: other, generation: 0, attempt: 0 },
        None,
        epoch
    ));
}
