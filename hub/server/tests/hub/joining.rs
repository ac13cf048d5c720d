//! Joining, as a table: whose token, which proofs, which keys, and what the hub answers.

use attest_common::session::message::JoinOutcome;
use serde_json::json;

use crate::fixture::Fixture;
use crate::spoke::{Bend, Keys, Spoke, bundle, forge_initials, join, join_with_frame, refused};

#[tokio::test(flavor = "multi_thread")]
async fn a_token_lets_one_identity_in_and_answers_it_again_also_after_a_restart() {
    let fixture = Fixture::start().await;
    let token = fixture.token("staging", true).await;
    let keys = Keys::new(1);

    let first = join(&fixture, &token, &keys, Bend::default()).await;
    let again = join(&fixture, &token, &keys, Bend::default()).await;
    // A spoke that was killed before it stored its certificate comes with another TLS key.
    let other_tls = Keys { request: Keys::new(1).request, identity: Keys::new(1).identity };
    let restarted = join(&fixture, &token, &other_tls, Bend::default()).await;
    let stranger = join(&fixture, &token, &Keys::new(2), Bend::default()).await;

    let JoinOutcome::Joined(joined) = &first else { panic!("{}", refused(&first)) };
    assert_eq!(joined.cluster_id, keys.cluster().to_string());
    assert_eq!(joined.hub_key_id, fixture.created.hub_key_id);
    assert_eq!(first, again, "a lost answer is given again");
    assert_eq!(refused(&restarted), "Joined");
    assert_ne!(restarted, first);
    assert_eq!(refused(&stranger), "TokenUsed");
    let clusters = fixture.get("/v1/clusters").await;
    assert_eq!(clusters["items"].as_array().unwrap().len(), 1);
    assert_eq!(clusters["items"][0]["default"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_come_with_one_token_exactly_one_gets_in() {
    let fixture = Fixture::start().await;
    let token = fixture.token("staging", true).await;

    let all = (1..=16).map(|seed| {
        let (fixture, token) = (&fixture, &token);
        async move { join(fixture, token, &Keys::new(seed), Bend::default()).await }
    });
    let outcomes = futures::future::join_all(all).await;

    let joined = outcomes.iter().filter(|outcome| refused(outcome) == "Joined").count();
    assert_eq!(joined, 1);
    assert!(outcomes.iter().all(|o| ["Joined", "TokenUsed"].contains(&refused(o))));
}

#[tokio::test(flavor = "multi_thread")]
async fn proofs_that_do_not_hold_are_refused_and_five_of_them_revoke_the_token() {
    let fixture = Fixture::start().await;
    let token = fixture.token("staging", true).await;
    let keys = Keys::new(1);
    let unknown = "at1.aaaaaaaaaa.aaaaaaaaaaaaaaaaaaaaaaaaaa";
    let check: String =
        attest_common::basics::ids::Digest::of(unknown.as_bytes()).hex().chars().take(4).collect();

    let bent = |bend| join(&fixture, &token, &keys, bend);
    let identity = bent(Bend { identity_proof: true, ..Bend::default() }).await;
    let csr = bent(Bend { csr: true, ..Bend::default() }).await;
    let nobody = join(&fixture, &format!("{unknown}.{check}"), &keys, Bend::default()).await;
    let relayed = bent(Bend { exporter: true, ..Bend::default() }).await;
    assert_eq!(refused(&identity), "IdentityProof");
    assert!(refused(&csr).starts_with("Request"), "{}", refused(&csr));
    assert_eq!(refused(&nobody), "TokenRefused", "which ids exist is not told");
    assert_eq!(refused(&relayed), "TokenRefused");
    for _ in 0..4 {
        let wrong = bent(Bend { proof: true, ..Bend::default() }).await;
        assert_eq!(refused(&wrong), "TokenRefused");
    }

    assert_eq!(refused(&bent(Bend::default()).await), "TokenRevoked");
    let tokens = fixture.get("/v1/tokens").await;
    assert_eq!(tokens["items"][0]["state"], "Revoked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pending_cluster_gets_its_certificate_when_the_fingerprint_is_accepted() {
    let fixture = Fixture::start().await;
    let token = fixture.token("staging", false).await;
    let keys = Keys::new(1);

    assert_eq!(refused(&join(&fixture, &token, &keys, Bend::default()).await), "Pending");
    let cluster = fixture.get("/v1/clusters/staging").await;
    assert_eq!(cluster["state"], "Pending");
    let fingerprint = cluster["fingerprint"].as_str().unwrap();
    assert_eq!(
        fingerprint,
        attest_common::session::join::fingerprint(keys.identity.public().bytes())
    );
    let accept = |fingerprint: &str| {
        let body = json!({ "fingerprint": fingerprint });
        fixture.call("POST", "/v1/clusters/staging/accept", Some(body))
    };
    let (status, body) = accept("SHA256:other").await;
    assert_eq!((status, &body["reason"]), (409, &json!("FingerprintMismatch")));
    assert_eq!(refused(&join(&fixture, &token, &keys, Bend::default()).await), "Pending");
    assert_eq!(accept(fingerprint).await.0, 200);

    let outcome = join(&fixture, &token, &keys, Bend::default()).await;

    let bundle = bundle(outcome, &keys);
    Spoke::connect(&fixture, "staging", &keys.cluster(), &bundle, &[]).await.map(drop).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_taken_until_it_is_removed_or_replaced_and_the_revoked_stay_out() {
    let fixture = Fixture::start().await;
    let (spoke, _) = Spoke::new(&fixture, "staging", 1).await;

    let body = json!({"cluster": "staging", "ttlSeconds": 60, "autoAccept": true});
    let (status, taken) = fixture.call("POST", "/v1/tokens", Some(body.clone())).await;
    assert_eq!((status, &taken["reason"]), (409, &json!("NameTaken")));
    let mut replacing = body;
    replacing["replace"] = json!(true);
    let (_, token) = fixture.call("POST", "/v1/tokens", Some(replacing)).await;
    let token = token["token"].as_str().unwrap();
    let keys = Keys::new(2);
    let outcome = join(&fixture, token, &keys, Bend::default()).await;
    assert_eq!(refused(&outcome), "Joined");
    assert!(spoke.connection.closed().await.to_string().contains("ClusterRevoked"));
    assert_eq!(fixture.get("/v1/clusters/staging").await["id"], keys.cluster().to_string());

    // The replaced identity stays out, also with a token of its own.
    let token = fixture.token("other", true).await;
    let back = join(&fixture, &token, &Keys::new(1), Bend::default()).await;
    assert_eq!(refused(&back), "ClusterRevoked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_a_registered_identity_gives_it_a_new_certificate_and_lets_nobody_else_in() {
    let fixture = Fixture::start().await;
    let keys = Keys::new(1);
    let id = keys.cluster();
    let body =
        |name: &str| json!({"cluster": name, "ttlSeconds": 60, "autoAccept": true, "identity": id});
    let (status, unknown) = fixture.call("POST", "/v1/tokens", Some(body("staging"))).await;
    assert_eq!((status, &unknown["reason"]), (404, &json!("ClusterUnknown")));
    let (spoke, old) = Spoke::new(&fixture, "staging", 1).await;
    let before = fixture.get("/v1/clusters/staging").await;
    let (status, unknown) = fixture.call("POST", "/v1/tokens", Some(body("other"))).await;
    assert_eq!((status, &unknown["reason"]), (404, &json!("ClusterUnknown")));
    let (_, token) = fixture.call("POST", "/v1/tokens", Some(body("staging"))).await;
    let token = token["token"].as_str().unwrap();

    let stranger = join(&fixture, token, &Keys::new(2), Bend::default()).await;
    assert_eq!(refused(&stranger), "OtherIdentity");
    let thief = Keys { request: Keys::new(1).request, identity: Keys::new(2).identity };
    assert_eq!(refused(&join(&fixture, token, &thief, Bend::default()).await), "OtherIdentity");
    assert!(spoke.connection.close_reason().is_none(), "nothing has happened");
    let outcome = join(&fixture, token, &keys, Bend::default()).await;

    let renewed = bundle(outcome, &keys);
    assert!(spoke.connection.closed().await.to_string().contains("CertificateReplaced"));
    let error = Spoke::connect(&fixture, "staging", &id, &old, &[]).await.err();
    assert!(error.is_some(), "the former certificate counts no more");
    Spoke::connect(&fixture, "staging", &id, &renewed, &[]).await.map(drop).unwrap();
    let after = fixture.get("/v1/clusters/staging").await;
    for field in ["id", "name", "fingerprint", "registeredAt", "default"] {
        assert_eq!(after[field], before[field], "{field}");
    }

    // Not for one that was taken out of the fleet meanwhile.
    let (_, token) = fixture.call("POST", "/v1/tokens", Some(body("staging"))).await;
    fixture.call("DELETE", "/v1/clusters/staging", None).await;
    let token = token["token"].as_str().unwrap();
    let outcome = join(&fixture, token, &keys, Bend::default()).await;
    assert_eq!(refused(&outcome), "TokenRevoked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_cluster_that_is_removed_is_not_shown_and_stays_out() {
    let mut fixture = Fixture::start().await;
    let (_spoke, bundle) = Spoke::new(&fixture, "staging", 1).await;
    let because = json!({"reason": "compromised"});
    fixture.call("POST", "/v1/clusters/staging/revoke", Some(because)).await;
    let (status, body) = fixture.call("DELETE", "/v1/clusters/staging", None).await;
    assert_eq!(status, 200, "{body}");

    for _ in 0..2 {
        let token = fixture.token("other", true).await;
        let back = join(&fixture, &token, &Keys::new(1), Bend::default()).await;
        assert_eq!(refused(&back), "ClusterRevoked");
        let cluster = Keys::new(1).cluster();
        let error = Spoke::connect(&fixture, "staging", &cluster, &bundle, &[]).await.err();
        assert!(error.unwrap().contains("ClusterRevoked"));
        assert_eq!(fixture.get("/v1/clusters").await["items"], json!([]));
        fixture.restart().await;
    }
    let (spoke, _) = Spoke::new(&fixture, "staging", 2).await;
    assert!(spoke.connection.close_reason().is_none(), "the name is free");
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_with_forged_senders_keep_nobody_out() {
    let fixture = Fixture::start().await;
    let token = fixture.token("staging", true).await;

    // More first datagrams than the hub sets up connections at once; nobody reads its answers.
    let _clients = forge_initials(&fixture, attest_hub::spokes::HANDSHAKES_MAX + 100).await;

    let outcome = join(&fixture, &token, &Keys::new(1), Bend::default()).await;
    assert_eq!(refused(&outcome), "Joined");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_who_asks_to_join_not_much_is_read() {
    let fixture = Fixture::start().await;

    let closed = join_with_frame(&fixture, 17 * 1024).await;

    assert!(closed.contains("FrameTooLarge"), "{closed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_expire_and_can_be_revoked() {
    let fixture = Fixture::start().await;
    let body = json!({"cluster": "staging", "ttlSeconds": 1, "autoAccept": true});
    let (_, short) = fixture.call("POST", "/v1/tokens", Some(body)).await;
    let revoked = fixture.token("production", true).await;
    let id = revoked.split('.').nth(1).unwrap();
    assert_eq!(fixture.call("DELETE", &format!("/v1/tokens/{id}"), None).await.0, 200);
    fixture
        .until("/v1/tokens", |seen| {
            seen["items"].as_array().unwrap().iter().any(|t| t["state"] == "Expired")
        })
        .await;

    let short = short["token"].as_str().unwrap();
    let expired = join(&fixture, short, &Keys::new(1), Bend::default()).await;
    let revoked = join(&fixture, &revoked, &Keys::new(1), Bend::default()).await;

    assert_eq!(refused(&expired), "TokenExpired");
    assert_eq!(refused(&revoked), "TokenRevoked");
    let long = json!({"cluster": "staging", "ttlSeconds": 86_401, "autoAccept": true});
    let (status, long) = fixture.call("POST", "/v1/tokens", Some(long)).await;
    assert_eq!((status, &long["reason"]), (422, &json!("TokenLifetime")));
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_of_tokens_are_neither_shown_nor_kept_in_the_clear() {
    let fixture = Fixture::start().await;
    let token = fixture.token("staging", true).await;
    let secret = token.split('.').nth(2).unwrap();

    let shown = fixture.get("/v1/tokens").await.to_string();
    assert!(!shown.contains(secret));
    let database = std::fs::read(fixture.home().join("hub.redb")).unwrap();
    assert!(!database.windows(secret.len()).any(|window| window == secret.as_bytes()));
}
