//! Webhooks of Git servers at a hub that polls once an hour.

use attest_hub::process::run;
use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::json;
use sha2::Sha256;

use crate::ci::Repository;
use crate::fixture::Fixture;
use crate::spoke::Spoke;

const KEY: &str = "webhook-key";
const HOUR_MS: u64 = 60 * 60 * 1000;
/// Unsigned requests before the signed one, and beside it.
const FLOOD_REQUESTS: usize = 400;
const FLOOD_CLIENTS: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_push_is_reconciled_and_a_flood_of_unsigned_ones_delays_it_little() {
    let mut fixture = Fixture::new();
    let secret = fixture.directory.path().join("webhook-key");
    std::fs::write(&secret, format!("{KEY}\n")).unwrap();
    let mut options = fixture.options();
    options.listen_webhooks = Some("127.0.0.1:0".parse().unwrap());
    options.webhook_secret_file = Some(secret);
    options.poll_interval_ms = HOUR_MS;
    fixture.running = Some(run::start(&options).await.unwrap());
    let url = format!("http://{}/any/path", fixture.addresses().webhooks.unwrap());
    let repository = Repository::create(&fixture.repositories(), "web-app");
    let first = repository.release(&fixture.ci, "v1", 100);
    let (_spoke, _) = Spoke::new(&fixture, "staging", 1).await;
    fixture.applies(&repository).await;
    fixture.until("/v1/applications/web-app", |seen| seen["revision"] == json!(first)).await;
    let second = repository.release(&fixture.ci, "v2", 200);
    let body = json!({"repository": {"clone_url": repository.url()}}).to_string();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();

    let flood = (0..FLOOD_CLIENTS).map(|_| {
        let (client, url, body) = (client.clone(), url.clone(), body.clone());
        tokio::spawn(async move {
            for _ in 0..FLOOD_REQUESTS / FLOOD_CLIENTS {
                let request = client.post(&url).header("X-Gitlab-Token", "guess");
                let answer = request.body(body.clone()).send().await;
                // The oldest connection is closed for a newer one.
                assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status() == 401));
            }
        })
    });
    let flood: Vec<_> = flood.collect();
    let mac = Hmac::<Sha256>::new_from_slice(KEY.as_bytes()).unwrap().chain_update(&body);
    let signature = HEXLOWER.encode(&mac.finalize().into_bytes());
    let signed = client.post(&url).header("X-Gitea-Signature", signature).body(body);
    assert_eq!(signed.send().await.unwrap().status(), 202);

    fixture.until("/v1/applications/web-app", |seen| seen["revision"] == json!(second)).await;
    for client in flood {
        client.await.unwrap();
    }
    let other = json!({"repository": {"clone_url": "https://git.example/other"}}).to_string();
    let request = client.post(&url).header("X-Gitlab-Token", KEY).body(other);
    assert_eq!(request.send().await.unwrap().status(), 200);
}
