//! The page of one application, as people see it.

use serde_json::json;

use super::*;

fn application() -> Application {
    serde_json::from_value(json!({
        "name": "web-app", "namespace": "default", "phase": "Refused",
        "manifest": {"spec": {"source": {"repoURL": "https://git.example/company/app"}}},
        "revision": "0123456789abcdef0123456789abcdef01234567",
        "conditions": [{
            "type": "Verified", "status": "False", "reason": "ContentDigest",
            "message": "Deployment/web-app spec.replicas: signed 2, found 3",
            "lastTransitionTime": "2026-01-01T00:00:00Z"
        }],
        "generation": 1, "createdAt": "2026-01-01T00:00:00Z",
        "destinations": [{
            "cluster": "staging", "clusterId": "c-0123456789abcdef", "namespace": "app-staging",
            "phase": "Refused", "reason": "UntrustedKey", "message": "what ran keeps running",
            "health": "Current",
            "running": {
                "plan": format!("sha256:{}", "1".repeat(64)),
                "release": format!("sha256:{}", "2".repeat(64)),
                "content": format!("sha256:{}", "3".repeat(64)),
                "version": "v1", "counter": 17, "signedCommit": "aaaabbbbccccdddd",
                "signers": ["ci", "scanner"], "since": "2026-01-01T00:00:00Z"
            },
            "deployedCommit": "ddddccccbbbbaaaa",
            "refusal": {
                "reason": "UntrustedKey", "message": "the plan is signed by nobody known",
                "at": "2026-01-01T00:00:00Z"
            },
            "epoch": 1, "sequence": 4, "connected": false, "reportAgeMs": 4_000, "drifted": [],
            "healsTotal": 0, "objects": [], "warnings": [], "timings": null
        }]
    }))
    .unwrap()
}

#[test]
fn the_page_says_what_runs_who_signed_it_and_how_old_the_news_is() {
    let page = described(&application(), false);

    for part in [
        "Repository:   https://git.example/company/app",
        "Verified=False ContentDigest",
        "staging/app-staging: Refused (UntrustedKey)",
        "Running:      v1, release 17",
        "Commit:       ddddccccbbbb (signed from aaaabbbbcccc)",
        "Signed by:    ci, scanner",
        "Since:        2026-01-01T00:00:00Z",
        "News:         4s old, not connected",
        "Directive:    1.4",
        "Refused:      UntrustedKey: the plan is signed by nobody known",
    ] {
        assert!(page.contains(part), "{part} is not in\n{page}");
    }
}

#[test]
fn a_row_says_how_many_destinations_are_synced() {
    let mut two = application();
    let mut other = two.destinations[0].clone();
    other.phase = "Synced".to_owned();
    two.destinations.push(other);

    let rows = table(&[two], Format::Wide).into_rows();

    assert_eq!(rows[0][..4], ["web-app", "Refused", "1/2", "0123456789ab"]);
    assert_eq!(rows[0][6], "staging/app-staging,staging/app-staging");
}
