//! Rendering at the hub: slow and growing overlays concern their own application only.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use attest_hub::process::run;
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
async fn a_repository_that_grows_is_refused_and_fills_no_memory_of_the_hub() {
    let mut fixture = Fixture::new();
    assert!(fixture.spawn(None));
    let before = memory_bytes(&fixture, "VmRSS:");
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
    let grown = memory_bytes(&fixture, "VmHWM:") - before;
    assert!(grown < 256 * 1024 * 1024, "{grown} bytes");
}

/// A line of the status of the hub's process, in bytes.
fn memory_bytes(fixture: &Fixture, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", fixture.process_id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_cannot_isolate_rendering_starts_only_when_that_is_allowed() {
    let fixture = Fixture::new();
    let response = br#"{"Failed":{"NotIsolated":{"detail":"seccomp is missing"}}}"#;
    let mut bytes = u32::try_from(response.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend_from_slice(response);
    let file = fixture.directory.path().join("response");
    std::fs::write(&file, bytes).unwrap();
    let program = fixture.directory.path().join("program");
    std::fs::write(&program, format!("#!/bin/sh\nexec /bin/cat {}\n", file.display())).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut options = fixture.options();
    options.render_program = Some(program);

    let error = run::start(&options).await.unwrap_err();
    assert_eq!(error.reason().as_str(), "RenderNotIsolated");
    let text = error.to_string();
    assert!(text.contains("seccomp is missing") && text.contains("--allow-unisolated-rendering"));

    options.allow_unisolated_rendering = true;
    run::start(&options).await.unwrap().end().await.unwrap();
}
