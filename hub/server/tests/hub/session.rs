//! From a signed commit to a directive in a spoke's hand, and back.

use std::time::{Duration, Instant};

use attest_common::basics::ids::Digest;
use attest_common::basics::keys::PrivateKey;
use attest_common::documents::plan::{Operation, Sync};
use attest_common::session::message::{Hello, Renewed, ToHubBody, ToSpokeBody};
use attest_common::session::report::{Phase, Report};
use attest_common::session::{FEATURE_REPAIR, PROCESS_ID_BYTES};
use attest_common::trust::policy::Spec;
use attest_common::verify::{self, Ages, SpokeContext};
use attest_hub::core::store::records::{PolicyRecord, ReportRecord};
use attest_hub::spokes::PROGRESS_TIMEOUT;
use attest_runtime::frames::WRITE_TIMEOUT;
use serde_json::json;

use crate::ci::Repository;
use crate::fixture::{Applied, Fixture, applied, synced};
use crate::spoke::{Keys, Spoke, policy, report_of};

const APPLICATION: &str = "/v1/applications/web-app";
const QUIET: Duration = Duration::from_millis(700);

fn phase_is(phase: &'static str) -> impl Fn(&serde_json::Value) -> bool {
    move |seen| seen["phase"] == phase
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_commit_reaches_its_spoke_whole_and_is_shown_as_the_spoke_reports_it() {
    let Applied { fixture, repository, commit, mut spoke, .. } = applied().await;

    let received = spoke.receive().await;

    let plan = received.plan.as_ref().unwrap();
    assert_eq!(received.directive.sequence, 1);
    assert_eq!(received.directive.operation, Operation::Progress);
    assert_eq!(plan.receipts.len(), 3);
    for blob in [plan.release.sha256, plan.content.sha256] {
        assert!(received.blobs.contains_key(&blob));
    }
    spoke.report(&received, Phase::Synced, "Synced").await;
    let seen = fixture.until(APPLICATION, phase_is("Synced")).await;
    let destination = &seen["destinations"][0];
    assert_eq!(destination["deployedCommit"], commit);
    assert_eq!(destination["running"]["signers"][0], "company-ci");
    for part in ["gitUs", "renderUs", "verifyUs", "planUs", "pushToReportUs", "totalUs"] {
        assert!(destination["timings"][part].as_u64().unwrap() > 0, "{part}");
    }
    let ready = seen["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Ready");
    assert_eq!(ready.unwrap()["status"], "True", "{seen:#}");
    let metrics = fixture.metrics().await;
    assert!(metrics.contains("attest_gitops_deployments_success_total 1"), "{metrics}");
    assert!(metrics.contains("attest_gitops_applications_by_phase_synced 1"));
    let history = fixture.get(&format!("{APPLICATION}/history")).await;
    assert_eq!(history["items"][0]["result"], "Synced");

    // The next release: the spoke is sent only what it lacks, and the same commit is not sent twice.
    let again = repository.sign_again(&fixture.ci, 100, 101);
    let second = spoke.receive().await;
    assert_eq!(second.directive.sequence, 2);
    assert!(second.directive.generation > received.directive.generation);
    assert_eq!(
        second.blobs.len(),
        2,
        "the plan's envelope and the release: content and receipts are there"
    );
    assert!(second.blobs.values().any(|blob| *blob == again));
    assert!(second.blobs.keys().all(|digest| !received.blobs.contains_key(digest)));
    assert!(spoke.receive_within(QUIET).await.is_none(), "nothing changed, something was sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_orders_a_repair_from_a_spoke_that_announces_it_and_from_no_other() {
    let (Applied { fixture, bundle, spoke, .. }, received) = synced().await;
    let sync = format!("{APPLICATION}/sync");
    fixture.call("POST", &sync, Some(json!({}))).await;
    assert!(spoke.receive_within(QUIET).await.is_none(), "an older spoke would refuse the field");
    drop(spoke);
    let held = [("web-app", "app-staging", (1, 1), received.digest)];
    let cluster = Keys::new(1).cluster();
    let announce = |hello: &mut Hello| hello.features.push(FEATURE_REPAIR.to_owned());
    let connecting = Spoke::connect_saying(&fixture, "staging", &cluster, &bundle, &held, announce);
    let spoke = connecting.await.unwrap();

    fixture.call("POST", &sync, Some(json!({}))).await;

    let repair = spoke.receive().await;
    assert!(repair.directive.repair && !received.directive.repair);
    assert_eq!((repair.directive.sequence, repair.directive.plan), (2, received.directive.plan));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_the_spoke_did_not_take_is_sent_again_whole_on_the_same_connection() {
    let Applied { fixture: _fixture, spoke, .. } = applied().await;

    spoke.stop_next().await;
    spoke.stop_next().await;
    let received = spoke.receive().await;

    let plan = received.plan.as_ref().unwrap();
    assert_eq!(received.directive.sequence, 1);
    assert!(received.blobs.contains_key(&plan.content.sha256), "with its blobs");
    assert!(spoke.receive_within(QUIET).await.is_none(), "it arrived and was sent again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_is_not_read_on_is_given_up_after_its_time_and_sent_again() {
    let Applied { fixture: _fixture, spoke, .. } = applied().await;
    let begun = Instant::now();
    let mut unread = spoke.connection.accept_uni().await.unwrap();

    let given_up = tokio::time::timeout(2 * PROGRESS_TIMEOUT, unread.received_reset()).await;

    assert!(given_up.expect("it is waited for").unwrap().is_some());
    assert!(begun.elapsed() >= PROGRESS_TIMEOUT, "it had its time");
    let received = spoke.receive().await;
    let plan = received.plan.as_ref().unwrap();
    assert!(received.blobs.contains_key(&plan.content.sha256), "with its blobs");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_heartbeat_answers_the_spokes_nonce_and_lists_what_is_newest() {
    let Applied { fixture, spoke, bundle, .. } = applied().await;
    let received = spoke.receive().await;
    drop(spoke);

    let held = [("web-app", "app-staging", (1, 1), received.digest)];
    let cluster = Keys::new(1).cluster();
    let mut spoke = Spoke::connect(&fixture, "staging", &cluster, &bundle, &held).await.unwrap();

    let ToSpokeBody::Sync(envelope) = spoke.hear().await else { panic!("no sync") };
    let records = Default::default();
    let judge = SpokeContext {
        policy: &spoke.policy,
        cluster: &cluster,
        records: &records,
        now: attest_common::basics::ids::Timestamp::now(),
        ages: Ages::Enforce,
    };
    let nonce = data_encoding::HEXLOWER.encode(&spoke.nonce);
    let sync: Sync = verify::sync(&envelope, &judge, &nonce, 0).unwrap().into_inner();
    assert_eq!(sync.heads[0].sequence, 1);
    assert!(spoke.receive_within(QUIET).await.is_none(), "the spoke holds it already");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spoke_that_was_away_gets_what_it_missed_and_what_it_says_it_lacks() {
    let Applied { fixture, repository, spoke, bundle, .. } = applied().await;
    let first = spoke.receive().await;
    let cluster = spoke.cluster.clone();
    spoke.connection.close(0_u32.into(), b"");
    drop(spoke);
    fixture.until("/v1/clusters/staging", |seen| seen["connected"] == false).await;
    repository.release(&fixture.ci, "v2", 101);
    fixture.until(APPLICATION, |seen| seen["destinations"][0]["sequence"] == 2).await;

    let held = [("web-app", "app-staging", (1, 1), first.digest)];
    let mut spoke = Spoke::connect(&fixture, "staging", &cluster, &bundle, &held).await.unwrap();
    let missed = spoke.receive().await;

    assert_eq!(missed.directive.sequence, 2);
    let content = missed.plan.as_ref().unwrap().content.sha256;
    spoke.need(&missed, vec![content]).await;
    let again = spoke.receive().await;
    assert_eq!(again.directive.sequence, 2);
    assert_eq!(again.blobs.keys().copied().collect::<Vec<Digest>>(), [content]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ci_did_not_sign_is_not_ordered_and_the_reason_names_object_field_and_values() {
    let fixture = Fixture::start().await;
    let repository = Repository::create(&fixture.repositories(), "web-app");
    repository.set_image("v0");
    let unsigned = repository.commit("unsigned");
    let (mut spoke, _) = Spoke::new(&fixture, "staging", 1).await;
    fixture.applies(&repository).await;

    let seen = fixture.until(APPLICATION, phase_is("AwaitingReceipts")).await;
    assert!(seen["destinations"][0]["message"].as_str().unwrap().contains(&unsigned));

    repository.release(&fixture.ci, "v1", 100);
    let received = spoke.receive().await;
    spoke.report(&received, Phase::Synced, "Synced").await;

    // Signed as v2, committed as v3.
    repository.set_image("v2");
    repository.sign(&fixture.ci, "v2", 101);
    repository.set_image("v3");
    repository.commit("edited after signing");
    let seen = fixture
        .until(APPLICATION, |seen| seen["destinations"][0]["reason"] == "ContentDigest")
        .await;
    let message = seen["destinations"][0]["message"].as_str().unwrap();
    assert!(
        message.contains(
            "Deployment.apps/web spec.template.spec.containers[0].image: signed myapp:v2, found myapp:v3"
        ),
        "{message}"
    );
    assert_eq!(seen["phase"], "Refused");
    assert!(seen["destinations"][0]["running"].is_object(), "the last release keeps running");

    // Back to what was signed first.
    repository.set_image("v1");
    std::fs::remove_dir_all(repository.path.join(".attest/receipts/web-app/101")).unwrap();
    repository.release(&fixture.ci, "v4", 102);
    let newer = spoke.receive().await;
    spoke.report(&newer, Phase::Synced, "Synced").await;
    repository.set_image("v1");
    repository.commit("revert");
    let seen = fixture
        .until(APPLICATION, |seen| seen["destinations"][0]["reason"] == "CounterRegressed")
        .await;
    let message = seen["destinations"][0]["message"].as_str().unwrap();
    assert!(message.contains("attest release --from 100"), "{message}");
    assert!(spoke.receive_within(QUIET).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_application_that_fails_does_not_stop_another() {
    let fixture = Fixture::start().await;
    let bad = Repository::create(&fixture.repositories(), "bad-app");
    bad.write("k8s/deployment.yaml", b"a: 1\na: 2\n");
    bad.commit("duplicate keys");
    let good = Repository::create(&fixture.repositories(), "web-app");
    good.release(&fixture.ci, "v1", 100);
    let (spoke, _) = Spoke::new(&fixture, "staging", 1).await;
    fixture.applies(&bad).await;
    fixture.applies(&good).await;

    let received = spoke.receive().await;

    assert_eq!(received.directive.application.as_str(), "web-app");
    let seen = fixture.until("/v1/applications/bad-app", phase_is("Refused")).await;
    assert_eq!(seen["destinations"][0]["reason"], "YamlRefused");
    let message = seen["destinations"][0]["message"].as_str().unwrap();
    assert!(message.contains("k8s/deployment.yaml"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_in_git_that_a_stranger_signed_is_counted_as_untrusted() {
    let fixture = Fixture::start().await;
    let repository = Repository::create(&fixture.repositories(), "web-app");
    let stranger = PrivateKey::from_seed(&[43; 32]).unwrap();
    repository.release(&stranger, "v1", 100);
    let (_spoke, _) = Spoke::new(&fixture, "staging", 1).await;
    fixture.applies(&repository).await;

    let seen = fixture.until(APPLICATION, phase_is("AwaitingReceipts")).await;

    let message = seen["destinations"][0]["message"].as_str().unwrap();
    assert!(message.contains("signed by a key that cluster staging trusts"), "{message}");
    let metrics = fixture.metrics().await;
    for line in [
        "attest_fleet_holds_total{reason=\"UntrustedKey\"} 1",
        "attest_gitops_signature_verifications_failed_total 1",
        "attest_gitops_verifications_total{result=\"refused\"} 1",
        "attest_gitops_policy_validations_total{result=\"refused\"} 0",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_the_spoke_is_shown_counted_and_tried_again_when_asked() {
    let Applied { fixture, mut spoke, .. } = applied().await;
    let received = spoke.receive().await;

    spoke.report(&received, Phase::Refused, "UntrustedKey").await;

    let seen = fixture.until(APPLICATION, phase_is("Refused")).await;
    assert_eq!(seen["destinations"][0]["reason"], "UntrustedKey");
    let conditions = seen["conditions"].as_array().unwrap();
    let verified = conditions.iter().find(|c| c["type"] == "Verified").unwrap();
    assert_eq!(
        (&verified["status"], &verified["reason"]),
        (&json!("False"), &json!("UntrustedKey"))
    );
    let metrics = fixture.metrics().await;
    assert!(
        metrics.contains("attest_fleet_refusals_total{reason=\"UntrustedKey\"} 1"),
        "{metrics}"
    );
    fixture.call("POST", &format!("{APPLICATION}/sync"), None).await;
    assert_eq!(spoke.receive().await.directive.sequence, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_is_synced_only_where_its_own_plan_runs() {
    let (Applied { fixture, repository, mut spoke, .. }, first) = synced().await;
    repository.release(&fixture.ci, "v2", 101);
    let mut second = spoke.receive().await;
    spoke.report(&second, Phase::Refused, "SequenceReplayed").await;
    fixture.until(APPLICATION, phase_is("Refused")).await;

    // A spoke that was started anew has forgotten the refusal, and says that all is well with what runs.
    let ordered = std::mem::replace(&mut second.directive.plan, first.directive.plan);
    spoke.report(&second, Phase::Synced, "Synced").await;

    let other = |seen: &serde_json::Value| seen["destinations"][0]["reason"] == "OtherPlan";
    let seen = fixture.until(APPLICATION, other).await;
    assert_eq!(seen["phase"], "Progressing");
    let history = fixture.get(&format!("{APPLICATION}/history")).await;
    assert_eq!(history["items"][0]["result"], "Refused");
    second.directive.plan = ordered;
    spoke.report(&second, Phase::Synced, "Synced").await;
    fixture.until(APPLICATION, phase_is("Synced")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_hub_cannot_read_of_a_newer_spoke_is_set_aside_and_the_session_goes_on() {
    let Applied { fixture, mut spoke, .. } = applied().await;
    let received = spoke.receive().await;

    // A frame with a field that nobody knows yet, and a report with a phase that nobody knows yet.
    spoke.say_raw(&[0xfa, 0x7f, 2, 1, 2]).await;
    spoke.report_unknown_phase(&received).await;

    let metrics = fixture.metrics().await;
    assert!(metrics.contains("attest_fleet_reports_unreadable_total 1"), "{metrics}");
    spoke.report(&received, Phase::Synced, "Synced").await;
    fixture.until(APPLICATION, phase_is("Synced")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spoke_without_a_common_protocol_version_is_told_so() {
    let fixture = Fixture::start().await;
    let (spoke, bundle) = Spoke::new(&fixture, "staging", 1).await;
    let connect = |speaks| {
        let (fixture, cluster, bundle) = (&fixture, &spoke.cluster, &bundle);
        let bend = move |hello: &mut Hello| (hello.protocol_min, hello.protocol_max) = speaks;
        async move { Spoke::connect_saying(fixture, "staging", cluster, bundle, &[], bend).await }
    };

    let newer = connect((2, 9)).await.err().unwrap();
    let older = connect((0, 0)).await.err().unwrap();

    assert!(newer.contains("ProtocolVersion") && older.contains("ProtocolVersion"), "{newer}");
    assert!(connect((0, 9)).await.is_ok(), "one version in common is enough");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_of_what_this_hub_never_ordered_is_counted_and_not_kept() {
    let (Applied { fixture, mut spoke, .. }, received) = synced().await;
    let of = |phase, reason| {
        let namespace = "app-fresh".parse().unwrap();
        Report { namespace, ..report_of(&received, phase, reason) }
    };

    // What is gone is gone here too.
    spoke.tell(&of(Phase::Removed, "Removed")).await;
    spoke.tell(&of(Phase::Refused, "CounterRegressed")).await;

    let metrics = fixture.metrics().await;
    assert!(metrics.contains("attest_fleet_reports_unordered_total 1"), "{metrics}");
    assert!(!metrics.contains("CounterRegressed"), "{metrics}");
    let hub = &fixture.running.as_ref().unwrap().core;
    assert_eq!(hub.records.all::<ReportRecord>().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_changes_at_every_reconnect_counts_at_once_and_is_written_a_few_times() {
    let mut fixture = Fixture::start().await;
    let (first, bundle) = Spoke::new(&fixture, "staging", 1).await;
    let cluster = first.cluster.clone();
    let named = |spec: &Spec| spec.applications[0].names[0].clone();
    let counts = |fixture: &Fixture| {
        let hub = &fixture.running.as_ref().unwrap().core;
        named(&hub.fleet.reported_policy(&cluster).unwrap().spec)
    };
    let written = |fixture: &Fixture| {
        let hub = &fixture.running.as_ref().unwrap().core;
        named(&hub.records.get::<PolicyRecord>(cluster.as_str()).unwrap().unwrap().spec)
    };
    let greet = async |fixture: &Fixture, number: usize| {
        let bend = |hello: &mut Hello| {
            let mut spec = policy(fixture, "staging");
            spec.applications[0].names = vec![format!("web-{number}")];
            hello.policy = serde_json::to_vec(&spec).unwrap();
        };
        Spoke::connect_saying(fixture, "staging", &cluster, &bundle, &[], bend).await.unwrap();
    };

    for number in 0..30 {
        greet(&fixture, number).await;
    }

    assert_eq!(counts(&fixture), "web-29");
    assert_eq!(
        written(&fixture),
        "web-6",
        "with the greeting of the first connection they are eight"
    );
    fixture.restart().await;
    greet(&fixture, 29).await;
    assert_eq!(written(&fixture), "web-29");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_ledger_reports_and_registrations() {
    let (Applied { mut fixture, repository, commit, spoke, bundle }, received) = synced().await;
    drop(spoke);

    fixture.restart().await;

    let seen = fixture.until(APPLICATION, |seen| seen["revision"] == commit).await;
    assert_eq!(seen["destinations"][0]["sequence"], 1);
    assert_eq!(seen["phase"], "Synced");
    assert_eq!(seen["destinations"][0]["connected"], false);
    let held = [("web-app", "app-staging", (1, 1), received.digest)];
    let cluster = Keys::new(1).cluster();
    let spoke = Spoke::connect(&fixture, "staging", &cluster, &bundle, &held).await.unwrap();
    assert!(spoke.receive_within(QUIET).await.is_none(), "the same was ordered again");
    repository.release(&fixture.ci, "v2", 101);
    let next = spoke.receive().await;
    assert_eq!((next.directive.epoch, next.directive.sequence), (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_restored_from_a_backup_goes_above_the_epochs_and_sequences_its_spokes_hold() {
    let Applied { mut fixture, spoke, bundle, .. } = applied().await;
    let cluster = spoke.cluster.clone();
    spoke.receive().await;
    let other = Digest::of(b"from before the backup");
    // Epoch and sequence that the spoke holds, and what is ordered above it: more of both, an epoch only,
    // another directive of the very same numbers, and numbers that no hub has ever come to.
    let mut last = (1, 1);
    for (held, above) in [
        ((9, 41), Some((10, 42))),
        ((12, 7), Some((13, 43))),
        ((13, 43), Some((14, 44))),
        ((14, 50), Some((15, 51))),
        ((1 << 40, 1), None),
        ((1, 1 << 40), None),
    ] {
        let held = [("web-app", "app-staging", held, other)];
        let connected = Spoke::connect(&fixture, "staging", &cluster, &bundle, &held).await;
        let spoke = connected.unwrap();
        let Some(above) = above else {
            // A lie moves nothing: what comes is what was ordered before.
            let seen = fixture.get(APPLICATION).await;
            assert_eq!(seen["destinations"][0]["sequence"], last.1);
            assert_eq!(fixture.running.as_ref().unwrap().core.epoch.current(), last.0);
            continue;
        };

        // The spoke judges by what it holds, with the rules that the real one has.
        let received = spoke.receive().await;

        assert_eq!(received.order(), above);
        last = above;
    }
    fixture.restart().await;
    assert_eq!(fixture.running.as_ref().unwrap().core.epoch.current(), last.0 + 1, "it is durable");
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_orders_removal_and_forgets_once_the_spoke_has_done_it() {
    let (Applied { fixture, repository, mut spoke, .. }, _) = synced().await;

    let (status, _) = fixture.call("DELETE", APPLICATION, None).await;

    assert_eq!(status, 200);
    let removal = spoke.receive().await;
    assert_eq!(removal.directive.operation, Operation::Remove);
    assert!(removal.plan.is_none() && removal.directive.plan.is_none());
    spoke.report(&removal, Phase::Removed, "Removed").await;
    fixture.until(APPLICATION, |seen| seen["reason"] == "ApplicationUnknown").await;

    // Nothing of it is left at the hub; applied again, it goes on above what the spoke has seen.
    let hub = &fixture.running.as_ref().unwrap().core;
    assert!(hub.fleet.heads_of(&spoke.cluster).is_empty());
    assert!(hub.records.heads("").unwrap().is_empty());
    repository.release(&fixture.ci, "v2", 101);
    fixture.applies(&repository).await;
    assert_eq!(spoke.receive().await.directive.sequence, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_is_applied_again_while_its_spoke_is_away_goes_on_above_its_former_ledger()
 {
    let Applied { mut fixture, repository, mut spoke, bundle, .. } = applied().await;
    let cluster = spoke.cluster.clone();
    spoke.receive().await;
    fixture.call("DELETE", APPLICATION, None).await;
    let removal = spoke.receive().await;
    spoke.report(&removal, Phase::Removed, "Removed").await;
    fixture.until(APPLICATION, |seen| seen["reason"] == "ApplicationUnknown").await;
    spoke.connection.close(0_u32.into(), b"");
    fixture.until("/v1/clusters/staging", |seen| seen["connected"] == false).await;
    let epoch = |fixture: &Fixture| fixture.running.as_ref().unwrap().core.epoch.current();

    fixture.applies(&repository).await;

    let ordered = |seen: &serde_json::Value| seen["destinations"][0]["sequence"].is_number();
    let seen = fixture.until(APPLICATION, ordered).await;
    assert_eq!(seen["destinations"][0]["sequence"], removal.directive.sequence + 1);
    let held = [("web-app", "app-staging", removal.order(), removal.digest)];
    let spoke = Spoke::connect(&fixture, "staging", &cluster, &bundle, &held).await.unwrap();
    assert_eq!(spoke.receive().await.order(), (1, 3));
    assert_eq!(epoch(&fixture), 1, "nothing was forgotten");

    // What a backup does not know is noticed as before.
    let held = [("web-app", "app-staging", (1, 7), Digest::of(b"from before the backup"))];
    let spoke = Spoke::connect(&fixture, "staging", &cluster, &bundle, &held).await.unwrap();
    assert_eq!(spoke.receive().await.order(), (2, 8));
    fixture.restart().await;
    assert_eq!(epoch(&fixture), 3, "it is durable");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_automated_a_new_release_waits_for_an_operator() {
    let fixture = Fixture::start().await;
    let repository = Repository::create(&fixture.repositories(), "web-app");
    repository.release(&fixture.ci, "v1", 100);
    let (spoke, _) = Spoke::new(&fixture, "staging", 1).await;
    let mut manifest = repository.manifest(None);
    manifest["spec"]["syncPolicy"] = json!({});
    fixture.call("PUT", "/v1/applications", Some(manifest)).await;

    let seen = fixture.until(APPLICATION, phase_is("OutOfSync")).await;
    assert_eq!(seen["destinations"][0]["reason"], "AwaitingSync");
    assert!(spoke.receive_within(QUIET).await.is_none());

    fixture.call("POST", &format!("{APPLICATION}/sync"), None).await;
    assert_eq!(spoke.receive().await.directive.sequence, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_ends_the_connection_within_two_seconds_and_for_good() {
    let fixture = Fixture::start().await;
    let (spoke, bundle) = Spoke::new(&fixture, "staging", 1).await;
    let cluster = spoke.cluster.clone();

    let begun = Instant::now();
    let body = json!({"reason": "compromised"});
    let (status, _) = fixture.call("POST", "/v1/clusters/staging/revoke", Some(body)).await;
    let closed = spoke.connection.closed().await.to_string();

    assert_eq!(status, 200);
    assert!(closed.contains("ClusterRevoked"), "{closed}");
    assert!(begun.elapsed() < Duration::from_secs(2));
    let error = Spoke::connect(&fixture, "staging", &cluster, &bundle, &[]).await.err().unwrap();
    assert!(error.contains("ClusterRevoked"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_ends_the_former_one_when_it_is_first_used() {
    let fixture = Fixture::start().await;
    let (mut spoke, old) = Spoke::new(&fixture, "staging", 1).await;
    let cluster = spoke.cluster.clone();
    let keys = Keys::new(1);

    let first = renewed(&mut spoke, &keys).await;
    // Each costs a signature and a durable write: one a minute, also on another connection.
    assert!(renewed(&mut spoke, &keys).await.chain_der.is_empty());
    let mut again = Spoke::connect(&fixture, "staging", &cluster, &old, &[]).await.unwrap();
    assert!(renewed(&mut again, &keys).await.chain_der.is_empty());

    let chain: Vec<_> = first.chain_der.into_iter().map(Into::into).collect();
    let pem = attest_certs::bundle::chain_to_pem(&chain);
    let new = attest_certs::Bundle::from_pem(&pem, &keys.request.key_pem).unwrap();
    Spoke::connect(&fixture, "staging", &cluster, &old, &[]).await.map(drop).unwrap();
    Spoke::connect(&fixture, "staging", &cluster, &new, &[]).await.map(drop).unwrap();
    let error = Spoke::connect(&fixture, "staging", &cluster, &old, &[]).await.err().unwrap();
    assert!(error.contains("IdentityCopied"), "{error}");
    let error = Spoke::connect(&fixture, "staging", &cluster, &new, &[]).await.err().unwrap();
    assert!(error.contains("IdentityCopied"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_that_alternate_on_one_certificate_are_a_copied_identity() {
    let fixture = Fixture::start().await;
    let (spoke, bundle) = Spoke::new(&fixture, "staging", 1).await;
    let cluster = &spoke.cluster;
    let connect = async |process: u8| {
        let bend = |hello: &mut Hello| hello.process_id = vec![process; PROCESS_ID_BYTES];
        Spoke::connect_saying(&fixture, "staging", cluster, &bundle, &[], bend).await
    };

    // Pods that replace each other, of which one returns before it ends.
    for process in [1, 1, 2, 1, 2, 3, 3, 4] {
        connect(process).await.map(drop).unwrap();
    }
    let mut refused = None;
    for process in [5, 6].into_iter().cycle().take(20) {
        refused = connect(process).await.err();
        if refused.is_some() {
            break;
        }
    }

    let refused = refused.expect("two holders are admitted");
    assert!(refused.contains("IdentityCopied"), "{refused}");
    for process in [5, 6] {
        let error = connect(process).await.err().unwrap();
        assert!(error.contains("IdentityCopied"), "{error}");
    }
    let seen = fixture.get("/v1/clusters/staging").await;
    assert_eq!(seen["state"], "IdentityCopied", "{seen}");
    let metrics = fixture.metrics().await;
    assert!(metrics.contains("attest_fleet_identity_copies_total 1"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_id_of_another_length_is_refused() {
    let fixture = Fixture::start().await;
    let (spoke, bundle) = Spoke::new(&fixture, "staging", 1).await;
    let bend = |hello: &mut Hello| hello.process_id = vec![1; PROCESS_ID_BYTES + 1];

    let refused =
        Spoke::connect_saying(&fixture, "staging", &spoke.cluster, &bundle, &[], bend).await;

    let error = refused.err().unwrap();
    assert!(error.contains("HelloInvalid"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_connection_of_a_cluster_replaces_the_older() {
    let fixture = Fixture::start().await;
    let (old, bundle) = Spoke::new(&fixture, "staging", 1).await;

    let new = Spoke::connect(&fixture, "staging", &old.cluster, &bundle, &[]).await.unwrap();

    assert!(old.connection.closed().await.to_string().contains("Replaced"));
    fixture.until("/v1/clusters/staging", |seen| seen["connected"] == true).await;
    assert!(new.connection.close_reason().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spoke_that_does_not_read_is_dropped_by_name_and_holds_up_nobody() {
    let fixture = Fixture::start().await;
    let repository = Repository::create(&fixture.repositories(), "web-app");
    repository.release(&fixture.ci, "v1", 100);
    let (deaf, _) = Spoke::new(&fixture, "production", 1).await;
    let (mut spoke, _) = Spoke::new(&fixture, "staging", 2).await;
    let begun = Instant::now();

    // Each of these is answered at once.
    let connection = deaf.talk_on_and_never_read();
    let manifest = repository.manifest(Some("staging"));
    fixture.call("PUT", "/v1/applications", Some(manifest)).await;
    let received = spoke.receive().await;
    spoke.report(&received, Phase::Synced, "Synced").await;
    fixture.until(APPLICATION, phase_is("Synced")).await;

    assert!(
        connection.close_reason().is_none(),
        "the other was served before this one was dropped"
    );
    let closed = connection.closed();
    let closed = tokio::time::timeout(2 * WRITE_TIMEOUT, closed).await.expect("it is waited for");
    assert!(closed.to_string().contains("WriteTimeout"), "{closed}");
    assert!(begun.elapsed() >= WRITE_TIMEOUT, "it had its time");
    fixture.until("/v1/clusters/production", |seen| seen["connected"] == false).await;
}

async fn renewed(spoke: &mut Spoke, keys: &Keys) -> Renewed {
    spoke.say(ToHubBody::Renew(keys.request.csr_der.clone())).await;
    loop {
        match spoke.hear().await {
            ToSpokeBody::Renewed(renewed) => return renewed,
            ToSpokeBody::Sync(_) => {}
            other => panic!("{other:?}"),
        }
    }
}
