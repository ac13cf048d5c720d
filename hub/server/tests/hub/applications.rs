//! Applications through the API: what may be asked for, what is answered, and what a later word undoes.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use attest_common::documents::manifest::ObjectKey;
use attest_common::documents::plan::Operation;
use attest_common::objects::health::Health;
use attest_common::session::report::{ObjectState, Phase};
use attest_supply::yaml;
use serde_json::{Value, json};

use crate::ci::Repository;
use crate::command::Operator;
use crate::fixture::{Applied, Fixture, applied, synced};
use crate::spoke::{Spoke, report_of};
use crate::web::{READER, Web};

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
async fn case_21_sha256_repository() {
    let fixture = Fixture::start().await;
    let repository = Repository::create_in_format("sha256", &fixture.repositories(), "web-app");
    let commit = repository.release(&fixture.ci, "v1", 100);
    assert_eq!(commit.len(), 64);
    let (mut spoke, _) = Spoke::new(&fixture, "staging", 1).await;

    fixture.applies(&repository).await;

    let received = spoke.receive().await;
    spoke.report(&received, Phase::Synced, "Synced").await;
    let is_synced = |seen: &Value| seen["phase"] == "Synced";
    let seen = fixture.until(APPLICATION, is_synced).await;
    assert_eq!(seen["revision"], json!(commit), "{seen}");

    // A commit id of the other object format.
    let mut manifest = repository.manifest(None);
    manifest["spec"]["source"]["targetRevision"] = json!("0".repeat(40));
    fixture.call("PUT", "/v1/applications", Some(manifest)).await;
    let seen = fixture.until(APPLICATION, |seen| source_read(seen) == "False").await;
    assert!(seen.to_string().contains("CommitNotFound"), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn applications_are_listed_in_pages_of_the_requested_size() {
    let fixture = Fixture::start().await;
    let repository = Repository::create(&fixture.repositories(), "web-app");
    let (_spoke, _) = Spoke::new(&fixture, "staging", 1).await;
    for name in ["a", "b", "c"] {
        let mut manifest = repository.manifest(None);
        manifest["metadata"]["name"] = json!(name);
        let (status, answer) = fixture.call("PUT", "/v1/applications", Some(manifest)).await;
        assert_eq!(status, 200, "{answer}");
    }

    let first = fixture.get("/v1/applications?limit=2").await;
    let second = fixture.get("/v1/applications?limit=2&continue=b").await;

    assert_eq!((names(&first), &first["metadata"]["continue"]), (vec!["a", "b"], &json!("b")));
    assert_eq!((names(&second), &second["metadata"]["continue"]), (vec!["c"], &Value::Null));
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap().iter();
    items.map(|item| item["name"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn applying_an_application_that_is_being_deleted_keeps_it() {
    let (Applied { fixture, repository, mut spoke, .. }, _) = synced().await;
    assert_eq!(fixture.call("DELETE", APPLICATION, None).await.0, 200);
    let removal = spoke.receive().await;
    assert_eq!(removal.directive.operation, Operation::Remove);

    fixture.applies(&repository).await;

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
    fixture.applies(&repository).await;
    let received = spoke.receive().await;
    spoke.report(&received, Phase::Synced, "Synced").await;
    fixture.until(APPLICATION, |seen| seen["revision"] == json!(commit)).await;

    let mut manifest = repository.manifest(None);
    manifest["spec"]["source"]["repoUrl"] = json!(other.url());
    fixture.call("PUT", "/v1/applications", Some(manifest)).await;

    let seen = fixture.until(APPLICATION, |seen| source_read(seen) == "False").await;
    assert_eq!(seen["revision"], json!(null), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_that_could_not_read_the_repository_says_so_though_what_runs_is_in_step() {
    let (Applied { fixture, repository, spoke: _spoke, .. }, _) = synced().await;
    std::fs::rename(&repository.path, repository.path.with_extension("away")).unwrap();

    let (status, seen) =
        fixture.call("POST", &format!("{APPLICATION}/sync"), Some(json!({}))).await;

    assert_eq!(status, 200);
    assert_eq!((&seen["phase"], source_read(&seen)), (&json!("Synced"), "False"), "{seen}");
    let listed = Operator::new(&fixture).attest(&["gitops", "app", "list"]).code(0).data();
    let row = listed.lines().nth(1).unwrap();
    assert!(row.contains(" False ") && row.contains(" RepositoryUrlRefused: "), "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_ordered_and_not_reported_differs_from_what_runs() {
    let (Applied { fixture, repository, commit, mut spoke, .. }, _) = synced().await;
    let operator = Operator::new(&fixture);
    let diff = ["gitops", "app", "diff", "web-app"];
    let newest = repository.release(&fixture.ci, "v2", 200);
    let received = spoke.receive().await;
    let seen = fixture.until(APPLICATION, |seen| seen["revision"] == json!(newest)).await;

    operator.attest(&diff).code(1).says("AwaitingReport");
    let (_, found) = fixture.call("GET", &format!("{APPLICATION}/diff"), None).await;

    let found = &found["items"][0];
    assert_eq!((&found["from"], &found["to"]), (&json!(commit), &json!(newest)), "{found}");
    // Which commit runs is known although it is not the newest that was ordered.
    assert_eq!(seen["destinations"][0]["deployedCommit"], json!(commit), "{seen}");
    spoke.report(&received, Phase::Synced, "Synced").await;
    fixture.until(APPLICATION, |seen| seen["phase"] == "Synced").await;
    operator.attest(&diff).code(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_is_taken_away_is_named_and_removed_only_on_confirmation() {
    let (Applied { fixture, repository, spoke, .. }, _) = synced().await;
    let operator = Operator::new(&fixture);
    let mut moved = repository.manifest(None);
    moved["spec"]["destination"]["namespace"] = json!("elsewhere");
    let file = operator.file("moved.yaml");
    std::fs::write(&file, moved.to_string()).unwrap();
    let apply = ["gitops", "app", "apply", "-f", file.to_str().unwrap()];

    let (status, failure) = fixture.call("PUT", "/v1/applications", Some(moved)).await;
    operator.attest(&apply).code(3).says("removes web-app from staging/app-staging (1 object)");

    assert_eq!((status, &failure["reason"]), (409, &json!("RemovalUnconfirmed")), "{failure}");
    assert!(spoke.receive_within(Duration::from_millis(500)).await.is_none());
    let confirmed = [&apply[..], &["--yes"]].concat();
    operator.attest(&confirmed).code(0).says("application/web-app configured");
    assert_eq!(spoke.receive().await.directive.operation, Operation::Remove);
    // What is ordered already is not asked about again.
    operator.attest(&apply).code(0).says("application/web-app unchanged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_waits_ends_when_its_time_is_over_though_the_hub_has_not_answered() {
    let fixture = Fixture::start().await;
    let repository = Repository::create(&fixture.repositories(), "web-app");
    repository.commit("first");
    let mut manifest = repository.manifest(None);
    let web = Web::serve(fixture.repositories());
    let url = web.url("web-app");
    let (username, password) = READER;
    let ca = String::from_utf8(web.ca_pem.clone()).unwrap();
    let added = json!({"url": url, "username": username, "password": password, "ca": ca, "allowLoopback": true});
    let (status, shown) = fixture.call("PUT", "/v1/repositories", Some(added)).await;
    assert_eq!(status, 200, "{shown}");
    web.fall_silent();
    manifest["spec"]["source"]["repoUrl"] = json!(url);
    let (_spoke, _) = Spoke::new(&fixture, "staging", 1).await;
    let (status, shown) = fixture.call("PUT", "/v1/applications", Some(manifest)).await;
    assert_eq!(status, 200, "{shown}");
    let operator = Operator::new(&fixture);
    let sync = ["gitops", "app", "sync", "web-app", "--wait", "--timeout", "2"];

    let begun = Instant::now();
    let said = operator.attest(&sync).code(1);

    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let said = said.text();
    assert!(said.contains("timed out after 2 s: web-app is still reconciling"), "{said}");
    assert!(!said.contains("failed to reach"), "{said}");
    operator
        .attest(&["gitops", "app", "sync", "web-app", "--timeout", "0"])
        .code(2)
        .says("--timeout");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_that_runs_out_says_what_it_waits_for() {
    let Applied { fixture, spoke, .. } = applied().await;
    spoke.receive().await;
    let sync = ["gitops", "app", "sync", "web-app", "--wait", "--timeout", "1"];

    let said = Operator::new(&fixture).attest(&sync).code(1).text();

    assert!(said.contains("timed out after 1 s: staging/app-staging Progressing"), "{said}");
    assert!(!said.contains("failed to reach"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_orders_nothing_says_nothing_of_where_time_went() {
    let (Applied { fixture, spoke: _spoke, .. }, _) = synced().await;
    let sync = ["gitops", "app", "sync", "web-app", "--wait"];

    let said = Operator::new(&fixture).attest(&sync).code(0).text();

    assert!(said.contains("application/web-app Synced") && !said.contains("TOTAL"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rendering_that_the_machine_spoiled_is_tried_again_without_a_new_commit() {
    let mut fixture = Fixture::new();
    let spoiled = fixture.kustomize_that_does_when_spoiled("kill -9 $$");
    std::fs::write(&spoiled, "").unwrap();
    assert!(fixture.spawn(None));
    let repository = Repository::create(&fixture.repositories(), "web-app");
    repository.write("k8s/kustomization.yaml", b"resources: [deployment.yaml]\n");
    repository.set_image("v1");
    repository.commit("not signed");
    let (_spoke, _) = Spoke::new(&fixture, "staging", 1).await;
    fixture.applies(&repository).await;
    let waits_for =
        |reason: &'static str| move |seen: &Value| seen["destinations"][0]["reason"] == reason;
    let seen = fixture.until(APPLICATION, waits_for("RendererKilled")).await;
    assert_eq!(seen["destinations"][0]["phase"], "Unknown", "nothing was refused");

    std::fs::remove_file(&spoiled).unwrap();

    fixture.until(APPLICATION, waits_for("AwaitingReceipts")).await;
}

fn source_read(seen: &Value) -> &str {
    let mut conditions = seen["conditions"].as_array().into_iter().flatten();
    let read = conditions.find(|condition| condition["type"] == "SourceRead");
    read.and_then(|condition| condition["status"].as_str()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn applying_says_what_it_changed_and_lists_leave_the_objects_out() {
    let fixture = Fixture::start().await;
    let repository = Repository::create(&fixture.repositories(), "web-app");
    repository.release(&fixture.ci, "v1", 100);
    let (mut spoke, _) = Spoke::new(&fixture, "staging", 1).await;
    let apply = |manifest: Value| fixture.call("PUT", "/v1/applications", Some(manifest));
    let mut changed = repository.manifest(None);
    changed["spec"]["syncPolicy"] = json!({"automated": {"prune": true}});

    let first = apply(repository.manifest(None)).await.1["outcome"].clone();
    let again = apply(repository.manifest(None)).await.1["outcome"].clone();
    spoke.receive().await;
    let other = apply(changed).await.1["outcome"].clone();

    assert_eq!([first, again, other], [json!("Created"), json!("Unchanged"), json!("Configured")]);
    let received = spoke.receive().await;
    let mut report = report_of(&received, Phase::Synced, "Synced");
    report.objects.push(ObjectState {
        key: ObjectKey {
            group: String::new(),
            kind: "ConfigMap".to_owned(),
            namespace: None,
            name: "web".to_owned(),
        },
        health: Health::Current,
        message: String::new(),
        rewritten: Vec::new(),
        added: 0,
    });
    spoke.tell(&report).await;
    let seen = fixture.until(APPLICATION, |seen| seen["phase"] == "Synced").await;
    assert_eq!(seen["destinations"][0]["objects"].as_array().unwrap().len(), 1, "{seen}");
    let listed = fixture.get("/v1/applications").await;
    let line = &listed["items"][0];
    assert_eq!(line["destinationCounts"], json!({"Synced": 1}), "{listed}");
    assert!(line.get("destinations").is_none() && line.get("manifest").is_none(), "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_is_removed_is_not_listed_and_one_that_is_not_there_is_an_error() {
    let fixture = Fixture::start().await;
    let repository = Repository::create(&fixture.repositories(), "web-app");
    repository.commit("first");
    let request = json!({"url": repository.url()});
    fixture.call("PUT", "/v1/repositories", Some(request.clone())).await;

    let (status, _) = fixture.call("DELETE", "/v1/repositories", Some(request.clone())).await;
    let (again, failure) = fixture.call("DELETE", "/v1/repositories", Some(request)).await;

    assert_eq!((status, again, &failure["reason"]), (200, 404, &json!("RepositoryUnknown")));
    assert_eq!(fixture.get("/v1/repositories").await["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_listed_or_shown_comes_as_json_as_yaml_and_by_name_too() {
    let (Applied { fixture, spoke: _spoke, .. }, _) = synced().await;
    let operator = Operator::new(&fixture);
    for (command, name) in [
        ("app list", "web-app"),
        ("app get web-app", "web-app"),
        ("app sync web-app", "web-app"),
        ("app history web-app", "1.1"),
        ("app diff web-app", ""),
        ("cluster list", "staging"),
        ("cluster get staging", "staging"),
        ("context list", "main"),
        ("repo list", ""),
        ("key list", ""),
    ] {
        let shown = |format: &str| {
            let mut arguments = vec!["gitops"];
            arguments.extend(command.split(' '));
            arguments.extend(["-o", format]);
            operator.attest(&arguments).code(0).data()
        };

        let json: Value = serde_json::from_str(&shown("json")).unwrap();
        let yaml = yaml::read(command, shown("yaml").as_bytes(), &mut Vec::new()).unwrap();
        let (table, names) = (shown("table"), shown("name"));

        let fields =
            |document: &Value| Vec::from_iter(document.as_object().unwrap().keys().cloned());
        assert_eq!(fields(&yaml[0]), fields(&json), "{command}");
        assert_eq!(names.trim_end(), name, "{command}");
        assert!(table.contains(name), "{command}: {table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_and_adds_what_changes_under_the_same_columns() {
    let (Applied { fixture, spoke, .. }, _) = synced().await;
    let operator = Operator::new(&fixture);
    let mut command = operator.command(&["gitops", "cluster", "get", "staging", "--watch"]);
    let mut watching = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines().map(Result::unwrap);
    let (header, before) = (lines.next().unwrap(), lines.next().unwrap());

    spoke.connection.close(0_u32.into(), b"");
    let after = lines.next().unwrap();

    watching.kill().unwrap();
    watching.wait().unwrap();
    let at = |line: &str, word: &str| line.find(word).unwrap_or_else(|| panic!("{word} in {line}"));
    assert_eq!(at(&header, "STATE"), at(&before, "Connected"));
    assert_eq!(at(&header, "STATE"), at(&after, "Disconnected"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_watch_prints_what_is_there_and_goes_on() {
    let (Applied { fixture, spoke: _spoke, .. }, _) = synced().await;
    let operator = Operator::new(&fixture);
    for (command, shown) in [
        (&["app", "list"][..], "web-app"),
        (&["app", "get", "web-app"], "staging/"),
        (&["cluster", "list"], "staging"),
    ] {
        let mut command = operator.command(&[&["gitops"], command, &["--watch"]].concat());
        let mut watching = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();

        let (header, row) = (lines.next().unwrap().unwrap(), lines.next().unwrap().unwrap());

        assert!(row.starts_with(shown), "{header} {row}");
        assert!(watching.try_wait().unwrap().is_none(), "it goes on");
        watching.kill().unwrap();
        watching.wait().unwrap();
    }
}
