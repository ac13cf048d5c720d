//! Clusters through the API: which one is meant, and what a word about it leads to.

use std::time::Duration;

use serde_json::json;

use crate::command::Operator;
use crate::fixture::{Applied, Fixture, synced};
use crate::spoke::{Bend, Keys, Spoke, join, refused};

#[tokio::test(flavor = "multi_thread")]
async fn of_several_clusters_with_one_name_only_the_one_whose_id_is_given_is_removed() {
    let fixture = Fixture::start().await;
    let (_spoke, _) = Spoke::new(&fixture, "staging", 1).await;
    let replacing =
        json!({"cluster": "staging", "ttlSeconds": 60, "autoAccept": true, "replace": true});
    let (_, token) = fixture.call("POST", "/v1/tokens", Some(replacing)).await;
    let (old, new) = (Keys::new(1), Keys::new(2));
    join(&fixture, token["token"].as_str().unwrap(), &new, Bend::default()).await;

    let (status, failure) = fixture.call("DELETE", "/v1/clusters/staging", None).await;

    assert_eq!((status, &failure["reason"]), (409, &json!("ClusterAmbiguous")), "{failure}");
    let message = failure["message"].as_str().unwrap();
    for keys in [&old, &new] {
        assert!(message.contains(keys.cluster().as_str()), "{message}");
    }
    let by_id = format!("/v1/clusters/{}", old.cluster());
    assert_eq!(fixture.call("DELETE", &by_id, None).await.0, 200);
    let left = fixture.get("/v1/clusters").await;
    assert_eq!(left["items"].as_array().unwrap().len(), 1, "{left}");
    assert_eq!(left["items"][0]["id"], json!(new.cluster()));
    assert_eq!(left["items"][0]["default"], true);
    assert_eq!(fixture.call("DELETE", "/v1/clusters/staging", None).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connected_cluster_is_seen_now_and_after_a_restart_when_it_last_reported() {
    let (Applied { mut fixture, spoke, .. }, _) = synced().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let seen = fixture.get("/v1/clusters/staging").await;
    assert_eq!((&seen["connected"], &seen["lastSeenAgeMs"]), (&json!(true), &json!(0)), "{seen}");
    let listed = Operator::new(&fixture).attest(&["gitops", "cluster", "list"]).code(0).data();
    assert!(listed.contains(" now "), "{listed}");
    drop(spoke);

    fixture.restart().await;

    let seen = fixture.get("/v1/clusters/staging").await;
    assert_eq!(seen["connected"], json!(false), "{seen}");
    assert!(seen["lastSeenAgeMs"].as_u64().is_some_and(|ms| ms >= 50), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_application_of_an_evicted_cluster_names_the_command_that_lets_it_in_again() {
    let (Applied { fixture, spoke: _spoke, .. }, _) = synced().await;

    fixture.call("POST", "/v1/clusters/staging/evict", None).await;

    let application = "/v1/applications/web-app";
    let evicted = |seen: &serde_json::Value| seen["destinations"][0]["reason"] == "ClusterEvicted";
    let seen = fixture.until(application, evicted).await;
    let message = seen["destinations"][0]["message"].as_str().unwrap();
    assert!(message.contains("cluster rejoin staging --kubeconfig"), "{message}");
    assert_eq!(seen["phase"], "Unknown", "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_cluster_is_not_accepted_but_told_to_join_anew() {
    let fixture = Fixture::start().await;
    let (_spoke, _) = Spoke::new(&fixture, "staging", 1).await;
    let (status, evicted) = fixture.call("POST", "/v1/clusters/staging/evict", None).await;
    assert_eq!((status, &evicted["state"]), (200, &json!("Evicted")), "{evicted}");

    let accept = json!({"fingerprint": evicted["fingerprint"]});
    let (status, failure) = fixture.call("POST", "/v1/clusters/staging/accept", Some(accept)).await;

    assert_eq!((status, &failure["reason"]), (409, &json!("ClusterEvicted")), "{failure}");
    assert!(failure["message"].as_str().unwrap().contains("cluster rejoin staging"));
    let replacing =
        json!({"cluster": "staging", "ttlSeconds": 60, "autoAccept": true, "replace": true});
    let (_, token) = fixture.call("POST", "/v1/tokens", Some(replacing)).await;
    let keys = Keys::new(1);
    let again = join(&fixture, token["token"].as_str().unwrap(), &keys, Bend::default()).await;
    assert_eq!(refused(&again), "Joined");

    // Or, when its identity is to stay, by a token for that.
    fixture.call("POST", "/v1/clusters/staging/evict", None).await;
    let named = json!({"cluster": "staging", "ttlSeconds": 60, "autoAccept": true, "identity": keys.cluster()});
    let (_, token) = fixture.call("POST", "/v1/tokens", Some(named)).await;
    let again = join(&fixture, token["token"].as_str().unwrap(), &keys, Bend::default()).await;
    assert_eq!(refused(&again), "Joined");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_from_before_the_operator_shut_a_cluster_out_does_not_bring_it_back() {
    for (method, word) in [("POST", "/evict"), ("POST", "/revoke"), ("DELETE", "")] {
        let fixture = Fixture::start().await;
        let (_spoke, _) = Spoke::new(&fixture, "staging", 1).await;
        let keys = Keys::new(1);
        let mut tokens = Vec::new();
        for (cluster, identity, replace) in [
            ("staging", Some(keys.cluster()), false),
            ("staging", None, true),
            ("production", None, false),
        ] {
            let asked = json!({
                "cluster": cluster, "ttlSeconds": 60, "autoAccept": true, "replace": replace, "identity": identity
            });
            let (status, token) = fixture.call("POST", "/v1/tokens", Some(asked)).await;
            assert_eq!(status, 201, "{token}");
            tokens.push(token["token"].as_str().unwrap().to_owned());
        }

        let body = (word == "/revoke").then(|| json!({"reason": "lost"}));
        let path = format!("/v1/clusters/staging{word}");
        assert_eq!(fixture.call(method, &path, body).await.0, 200, "{path}");

        for token in &tokens[..2] {
            let answer = join(&fixture, token, &keys, Bend::default()).await;
            assert_eq!(refused(&answer), "TokenRevoked", "{path}");
        }
        // What is for another name stays good.
        let other = join(&fixture, &tokens[2], &Keys::new(2), Bend::default()).await;
        assert_eq!(refused(&other), "Joined", "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_created_listed_and_written_as_its_flags_ask() {
    let fixture = Fixture::start().await;
    let (_spoke, _) = Spoke::new(&fixture, "staging", 1).await;
    let operator = Operator::new(&fixture);
    let token = ["gitops", "cluster", "token"];
    let attest = |arguments: &[&str]| operator.attest(&[&token[..], arguments].concat());
    let file = operator.file("token").display().to_string();

    attest(&["create", "staging"]).code(1).says("NameTaken");
    attest(&["create", "staging", "--replace", "--ttl-minutes", "5", "--token-output", &file])
        .code(0);

    assert!(std::fs::read_to_string(&file).unwrap().starts_with("at1."));
    let listed: serde_json::Value =
        serde_json::from_str(&attest(&["list", "-o", "json"]).code(0).data()).unwrap();
    let items = listed["items"].as_array().unwrap();
    let unused = items.iter().find(|token| token["state"] == "Unused").unwrap();
    let expires: attest_common::basics::ids::Timestamp =
        unused["expiresAt"].as_str().unwrap().parse().unwrap();
    let left = expires.as_second() - attest_common::basics::ids::Timestamp::now().as_second();
    assert!((1..=300).contains(&left), "{left}");
    attest(&["create", "other", "--ttl-minutes", "1441"]).code(2).says("--ttl-minutes");

    let cluster =
        |arguments: &[&str]| operator.attest(&[&["gitops", "cluster"], arguments].concat());
    cluster(&["evict", "staging", "--yes"]).code(0);
    let kubeconfig = operator.file("kubeconfig").display().to_string();
    std::fs::write(&kubeconfig, "{apiVersion: v1, kind: Config, contexts: []}").unwrap();
    cluster(&["rejoin", "staging", "--kubeconfig", &kubeconfig, "--context", "elsewhere"])
        .code(1)
        .says("elsewhere");
    let again = operator.file("again").display().to_string();
    cluster(&["rejoin", "staging", "--token-output", &again]).code(0);
    assert!(std::fs::read_to_string(&again).unwrap().starts_with("at1."));
    cluster(&["list", "--hub", "nowhere"]).code(1).says("nowhere");
}
