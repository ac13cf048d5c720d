//! A hub that dies at each durable write, and what the next one finds. Also one that is killed at any moment.

use std::sync::Arc;
use std::time::Duration;

use attest_certs::Bundle;
use attest_common::basics::ids::Digest;
use attest_common::session::report::Phase;
use serde_json::json;
use tokio::sync::{Mutex, watch};

use crate::ci::Repository;
use crate::fixture::{Fixture, PATIENCE};
use crate::spoke::{Bend, Keys, Spoke, bundle, join};

const APPLICATION: &str = "/v1/applications/web-app";

/// What operator and spoke remember across deaths of the hub.
#[derive(Default)]
struct Remembered {
    token: Option<String>,
    bundle: Option<Bundle>,
    held: Option<((u64, u64), Digest)>,
    acknowledged: bool,
}

/// From nothing to Synced, each step only if it is not done. Fails when the hub dies on the way.
async fn story(
    fixture: Arc<Fixture>,
    repository: Arc<Repository>,
    keys: Arc<Keys>,
    remembered: Arc<Mutex<Remembered>>,
) {
    let mut known = remembered.lock().await;
    if known.bundle.is_none() {
        let body = json!({"cluster": "staging", "ttlSeconds": 600, "autoAccept": true});
        let (status, answer) = fixture.call("POST", "/v1/tokens", Some(body)).await;
        match status {
            201 => known.token = Some(answer["token"].as_str().unwrap().to_owned()),
            // The hub let us in and died before it said so.
            _ => assert_eq!(answer["reason"], "NameTaken"),
        }
        let token = known.token.clone().unwrap();
        let outcome = join(&fixture, &token, &keys, Bend::default()).await;
        known.bundle = Some(bundle(outcome, &keys));
    }
    let certificate = known.bundle.clone().unwrap();
    let held: Vec<_> = known
        .held
        .iter()
        .map(|(order, digest)| ("web-app", "app-staging", *order, *digest))
        .collect();
    let cluster = keys.cluster();
    let connected = Spoke::connect(&fixture, "staging", &cluster, &certificate, &held).await;
    let mut spoke = connected.unwrap();
    let manifest = repository.manifest(None);
    let (status, answer) = fixture.call("PUT", "/v1/applications", Some(manifest)).await;
    assert_eq!(status, 200, "{answer}");
    if known.acknowledged {
        fixture.until(APPLICATION, |seen| seen["phase"] == "Synced").await;
        return;
    }
    if let Some(((_, sequence), _)) = known.held {
        // What was sent was durable before: the ledger has it, and it is not sent again.
        let at = |seen: &serde_json::Value| seen["destinations"][0]["sequence"] == sequence;
        fixture.until(APPLICATION, at).await;
        spoke.push_me_again("web-app", "app-staging").await;
    }
    let received = spoke.receive().await;
    if let Some(held) = known.held {
        assert_eq!(held, (received.order(), received.digest));
    }
    known.held = Some((received.order(), received.digest));
    spoke.report(&received, Phase::Synced, "Synced").await;
    known.acknowledged = true;
    fixture.until(APPLICATION, |seen| seen["phase"] == "Synced").await;
}

async fn die_and_go_on(point: &str) {
    let mut fixture = Fixture::new();
    let repository = Arc::new(Repository::create(&fixture.repositories(), "web-app"));
    repository.release(&fixture.ci, "v1", 100);
    let keys = Arc::new(Keys::new(1));
    let remembered = Arc::new(Mutex::new(Remembered::default()));

    assert!(fixture.spawn(Some(point)), "{point}: it died too early");
    let shared = Arc::new(fixture);
    let first =
        tokio::spawn(story(shared.clone(), repository.clone(), keys.clone(), remembered.clone()));
    assert!(first.await.is_err(), "{point}: it was to die");
    let mut fixture = Arc::into_inner(shared).expect("the story is over");
    assert!(fixture.spawn(None));
    let shared = Arc::new(fixture);

    let second = story(shared.clone(), repository, keys, remembered.clone());
    tokio::time::timeout(PATIENCE * 2, second).await.expect("it goes on");

    let clusters = shared.get("/v1/clusters").await;
    assert_eq!(clusters["items"].as_array().unwrap().len(), 1, "{point}: registered twice");
    let history = shared.get(&format!("{APPLICATION}/history")).await;
    assert_eq!(history["items"].as_array().unwrap().len(), 1, "{point}: ordered twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_dies_around_any_durable_write_goes_on_where_it_was() {
    for what in ["token", "join", "introduction", "application", "directive", "report"] {
        for when in ["before", "after"] {
            die_and_go_on(&format!("{when}-{what}-commit")).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_dies_while_it_begins_an_epoch_begins_a_higher_one() {
    let mut fixture = Fixture::new();
    for point in ["before-epoch-commit", "after-epoch-commit"] {
        assert!(!fixture.spawn(Some(point)), "{point}: it was to die");
    }

    assert!(fixture.spawn(None));

    assert_eq!(fixture.get("/v1/clusters").await["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_were_acknowledged_survive_any_number_of_kills() {
    let mut fixture = Fixture::new();
    let key = fixture.ci.public().to_pem();
    let mut acknowledged = Vec::new();
    for round in 0..8_u64 {
        assert!(fixture.spawn(None));
        let shared = Arc::new(fixture);
        let (acknowledge, mut acknowledgements) = watch::channel(0_usize);
        let writer = {
            let (fixture, key) = (shared.clone(), key.clone());
            tokio::spawn(async move {
                let client = fixture.client();
                let url = format!("https://{}/v1/keys", fixture.addresses().api);
                let mut done = Vec::new();
                for number in 0.. {
                    let alias = format!("key-{round}-{number}");
                    let body = json!({"alias": alias, "publicKey": key});
                    let Ok(answer) = client.put(&url).json(&body).send().await else { break };
                    if answer.status().is_success() {
                        done.push(alias);
                        acknowledge.send_replace(done.len());
                    }
                }
                done
            })
        };
        // Any moment under load after a few writes.
        let written = acknowledgements.wait_for(|count| *count > 2);
        tokio::time::timeout(PATIENCE, written).await.expect("writes are acknowledged").unwrap();
        tokio::time::sleep(Duration::from_millis(37 * round)).await;
        shared.kill_now();
        acknowledged.extend(writer.await.unwrap());
        fixture = Arc::into_inner(shared).expect("the writer is over");
    }
    assert!(acknowledged.len() > 8, "nothing was written");

    assert!(fixture.spawn(None));

    let seen = fixture.get("/v1/keys").await;
    let seen: Vec<&str> =
        seen["items"].as_array().unwrap().iter().map(|i| i["alias"].as_str().unwrap()).collect();
    for alias in acknowledged {
        assert!(seen.contains(&alias.as_str()), "{alias} was acknowledged and is gone");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_hub_left_that_was_killed_while_it_rendered_is_gone_when_the_next_one_has_started() {
    let mut fixture = Fixture::new();
    let spoiled = fixture.kustomize_that_does_when_spoiled("while :; do :; done");
    assert!(fixture.spawn(None));
    let repository = Repository::create(&fixture.repositories(), "web-app");
    repository.write("k8s/kustomization.yaml", b"resources: [deployment.yaml]\n");
    repository.set_image("v1");
    repository.commit("not signed");
    let (_spoke, _) = Spoke::new(&fixture, "staging", 1).await;
    fixture.applies(&repository).await;
    fixture.until(APPLICATION, |seen| !seen["revision"].is_null()).await;

    std::fs::write(&spoiled, "").unwrap();
    repository.set_image("v2");
    repository.commit("not signed either");
    let temporary = fixture.home().join("temporary");
    let list = || std::fs::read_dir(&temporary).unwrap().flatten().map(|entry| entry.path());
    let begun = std::time::Instant::now();
    while list().next().is_none() {
        assert!(begun.elapsed() < PATIENCE, "nothing is rendered");
        tokio::task::yield_now().await;
    }
    fixture.kill();
    let left: Vec<_> = list().collect();
    std::fs::remove_file(&spoiled).unwrap();
    assert!(fixture.spawn(None));

    assert_eq!(left.len(), 1, "{left:?}");
    assert!(left.iter().all(|path| !path.exists()), "{left:?}");
}
