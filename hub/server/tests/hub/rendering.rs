//! Rendering at the hub: slow and growing overlays concern their own application only.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::ci::Repository;
use crate::fixture::{Fixture, PATIENCE};
use crate::spoke::Spoke;

/// Overlays that never finish: more than there are slots.
const SLOW_APPLICATIONS: usize = 10;

fn reason(seen: &Value) -> &str {
    seen["destinations"][0]["reason"].as_str().unwrap_or_default()
}

/// A repository with a kustomization, which is slow when it holds the file that the program looks for.
fn overlay(fixture: &Fixture, name: &str, is_slow: bool) -> Repository {
    let repository = Repository::create(&fixture.repositories(), name);
    repository.write("k8s/kustomization.yaml", b"resources: [deployment.yaml]\n");
    repository.set_image("v1");
    if is_slow {
        repository.write("k8s/slow", b"");
    }
    repository.commit("not signed");
    repository
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_is_rendered_while_others_never_finish() {
    let mut fixture = Fixture::new();
    // Stopped rather than busy: a processor is not what the others wait for.
    fixture.kustomize_that_does("[ -e k8s/slow ] && kill -STOP $$");
    assert!(fixture.spawn(None));
    let (_spoke, _) = Spoke::new(&fixture, "staging", 1).await;
    let innocent = overlay(&fixture, "web-app", false);
    fixture.applies(&innocent).await;
    fixture.until("/v1/applications/web-app", |seen| reason(seen) == "AwaitingReceipts").await;
    for number in 0..SLOW_APPLICATIONS {
        fixture.applies(&overlay(&fixture, &format!("slow-{number}"), true)).await;
    }
    let temporary = fixture.home().join("temporary");
    let running = || std::fs::read_dir(&temporary).unwrap().count();
    let begun = Instant::now();
    while running() < 2 {
        assert!(begun.elapsed() < PATIENCE, "nothing is rendered");
        tokio::task::yield_now().await;
    }

    innocent.set_image("v2");
    let commit = innocent.commit("not signed either");

    let begun = Instant::now();
    fixture.until("/v1/applications/web-app", |seen| seen["revision"] == commit.as_str()).await;
    let elapsed = begun.elapsed();
    assert!(elapsed < Duration::from_secs(15), "rendered after {elapsed:?}, as long as the others");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_grows_is_refused_and_the_next_one_is_rendered() {
    let fixture = Fixture::start().await;
    let growing = Repository::create(&fixture.repositories(), "growing");
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..10 {
        let before = vec![format!("*a{}", level - 1); 9].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{before}]\n"));
    }
    for number in 0..100 {
        growing.write(&format!("k8s/{number}.yaml"), text.as_bytes());
    }
    growing.commit("not signed");
    let innocent = Repository::create(&fixture.repositories(), "web-app");
    innocent.set_image("v1");
    innocent.commit("not signed");
    let (_spoke, _) = Spoke::new(&fixture, "staging", 1).await;

    fixture.applies(&growing).await;
    fixture.applies(&innocent).await;

    fixture.until("/v1/applications/growing", |seen| reason(seen) == "RenderLimit").await;
    fixture.until("/v1/applications/web-app", |seen| reason(seen) == "AwaitingReceipts").await;
}
