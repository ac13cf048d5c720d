//! Applications through the API: what may be asked for, what is answered, and what a later word undoes.

use attest_common::plan::Operation;
use attest_common::report::Phase;
use serde_json::json;

use crate::ci::Repository;
use crate::fixture::Fixture;
use crate::spoke::Spoke;

const APPLICATION: &str = "/v1/applications/web-app";

#[tokio::test(flavor = "multi_thread")]
async fn removal_that_a_clusters_policy_forbids_is_refused_before_anything_is_ordered() {
    let fixture = Fixture::start().await;
    let repository = Repository::create(&fixture.repositories(), "web-app");
    repository.release(&fixture.ci, "v1", 100);
    let (mut production, _) = Spoke::new(&fixture, "production", 1).await;
    let (_staging, _) = Spoke::new(&fixture, "staging", 2).await;
    let manifest = repository.manifest(Some("production"));
    fixture.call("PUT", "/v1/applications", Some(manifest)).await;
    let received = production.receive().await;
    production.report(&received, Phase::Synced, "Synced").await;

    let deleted = fixture.call("DELETE", APPLICATION, None).await;
    let moved = repository.manifest(Some("staging"));
    let moved = fixture.call("PUT", "/v1/applications", Some(moved)).await;

    for (status, failure) in [deleted, moved] {
        assert_eq!((status, &failure["reason"]), (409, &json!("RemoveNotAllowed")), "{failure}");
        let message = failure["message"].as_str().unwrap();
        assert!(message.contains("cluster production"), "{message}");
        assert!(message.contains("attest trust install"), "{message}");
    }
    let seen = fixture.get(APPLICATION).await;
    assert_eq!(seen["phase"], "Synced", "{seen}");
    let conditions = seen["conditions"].as_array().unwrap();
    assert!(conditions.iter().all(|condition| condition["type"] != "Deleting"), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn applying_an_application_that_is_being_deleted_keeps_it() {
    let fixture = Fixture::start().await;
    let repository = Repository::create(&fixture.repositories(), "web-app");
    repository.release(&fixture.ci, "v1", 100);
    let (mut spoke, _) = Spoke::new(&fixture, "staging", 1).await;
    fixture.call("PUT", "/v1/applications", Some(repository.manifest(None))).await;
    let received = spoke.receive().await;
    spoke.report(&received, Phase::Synced, "Synced").await;
    assert_eq!(fixture.call("DELETE", APPLICATION, None).await.0, 200);
    let removal = spoke.receive().await;
    assert_eq!(removal.directive.operation, Operation::Remove);

    let (status, _) =
        fixture.call("PUT", "/v1/applications", Some(repository.manifest(None))).await;

    assert_eq!(status, 200);
    let again = spoke.receive().await;
    assert_eq!(again.directive.operation, Operation::Progress);
    spoke.report(&again, Phase::Synced, "Synced").await;
    fixture.until(APPLICATION, |seen| seen["phase"] == "Synced").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_repository_said_is_not_judged_as_the_word_of_another() {
    let fixture = Fixture::start().await;
    let repository = Repository::create(&fixture.repositories(), "web-app");
    let commit = repository.release(&fixture.ci, "v1", 100);
    let other = Repository::create(&fixture.repositories(), "other");
    other.commit("no manifests");
    let (mut spoke, _) = Spoke::new(&fixture, "staging", 1).await;
    fixture.call("PUT", "/v1/applications", Some(repository.manifest(None))).await;
    let received = spoke.receive().await;
    spoke.report(&received, Phase::Synced, "Synced").await;
    fixture.until(APPLICATION, |seen| seen["revision"] == json!(commit)).await;

    let mut manifest = repository.manifest(None);
    manifest["spec"]["source"]["repoUrl"] = json!(other.url());
    fixture.call("PUT", "/v1/applications", Some(manifest)).await;

    let source_is_unread = |seen: &serde_json::Value| {
        let conditions = seen["conditions"].as_array();
        conditions
            .into_iter()
            .flatten()
            .any(|c| c["type"] == "SourceRead" && c["status"] == "False")
    };
    let seen = fixture.until(APPLICATION, source_is_unread).await;
    assert_eq!(seen["revision"], json!(null), "{seen}");
}
