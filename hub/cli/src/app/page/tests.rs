//! Rows and page of an application.

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
        "generation": 1, "createdAt": "2026-01-01T00:00:00Z", "destinationCounts": {"Refused": 1},
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
            "healsTotal": 0, "objectsTotal": 0, "objects": [], "warnings": [], "timings": null,
            "checks": [{"check": "ContentDigest", "detail": "sha256:33"}, {"check": "Receipt", "detail": "build by ci"}]
        }]
    }))
    .unwrap()
}

#[test]
fn the_page_says_what_runs_who_signed_it_and_how_old_the_news_is() {
    let page = application_page(&application(), PageDetail::default());

    for part in [
        "Repository:   https://git.example/company/app",
        "Verified=False ContentDigest",
        "staging/app-staging: Refused (UntrustedKey)",
        "Running:      v1, release 17",
        "Commit:       ddddccccbbbb (signed from aaaabbbbcccc)",
        "Signed by:    ci, scanner",
        "Since:        2026-01-01T00:00:00Z",
        "Last report:  4s ago (disconnected)",
        "Directive:    1.4",
        "Refused:      UntrustedKey: the plan is signed by nobody known",
    ] {
        assert!(page.contains(part), "{part} is not in\n{page}");
    }
}

#[test]
fn a_row_says_how_many_destinations_are_synced() {
    let mut two = application();
    two.destination_counts.insert(ApplicationPhase::Synced, 1);

    let rows = application_table(&[two], Format::Wide).into_rows();

    assert_eq!(rows[0][..5], ["web-app", "Refused", "1/2", "Unknown", "0123456789ab"]);
    assert_eq!(rows[0][6], "default");
}

#[test]
fn the_page_of_a_large_application_says_what_it_leaves_out() {
    let mut large = application();
    large.destination_counts.insert(ApplicationPhase::Synced, 999);
    large.destinations[0].objects_total = 30;

    let page = application_page(&large, PageDetail::default());

    assert!(page.contains("999 more destinations; --all shows them"), "{page}");
    assert!(page.contains("Objects:      30; --all shows them"), "{page}");
    assert!(!application_page(&application(), PageDetail::default()).contains("--all"));
}

#[test]
fn a_row_says_whether_the_application_is_ready_and_why_not() {
    let mut one = application();
    let mut message = |status: &str, message: String, format| {
        one.conditions = serde_json::from_value(json!([{
            "type": "Ready", "status": status, "reason": "RepositoryUnreachable",
            "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"
        }]))
        .unwrap();
        let row = application_table(std::slice::from_ref(&one), format).into_rows().remove(0);
        (row[3].clone(), row.last().unwrap().clone())
    };
    let said = |ready: &str, message: &str| (ready.to_owned(), message.to_owned());

    assert_eq!(message("True", "as CI says".into(), Format::Table), said("True", NONE));
    let why = "RepositoryUnreachable: connection refused";
    assert_eq!(message("False", "connection refused".into(), Format::Table), said("False", why));
    let long = "é".repeat(200);
    let shown = message("False", long.clone(), Format::Table).1;
    assert_eq!(shown.chars().count(), ROW_MESSAGE_CHARACTERS_MAX + 1);
    assert!(message("False", long.clone(), Format::Wide).1.ends_with(&long));
}

#[test]
fn the_page_lists_the_checks_of_the_spoke_on_request() {
    let page = |checks| application_page(&application(), PageDetail { all_objects: false, checks });

    assert!(!page(false).contains("Checks:"));
    assert!(
        page(true)
            .contains("    Checks:\n      ContentDigest: sha256:33\n      Receipt: build by ci\n")
    );
}
