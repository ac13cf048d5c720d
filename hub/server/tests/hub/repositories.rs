//! A repository behind https with a private authority and Basic authentication, from `attest gitops repo add` to a plan.

use serde_json::json;

use crate::ci::Repository;
use crate::command::{Operator, Said};
use crate::fixture::Fixture;
use crate::spoke::Spoke;
use crate::web::{READER, WRITER, Web};

const APPLICATION: &str = "/v1/applications/web-app";

#[tokio::test(flavor = "multi_thread")]
async fn the_hub_reads_and_plans_with_a_credential_that_only_reads_and_takes_no_other_unasked() {
    let fixture = Fixture::start().await;
    let repository = Repository::create(&fixture.repositories(), "web-app");
    repository.release(&fixture.ci, "v1", 100);
    let (spoke, _) = Spoke::new(&fixture, "staging", 1).await;
    let web = Web::serve(fixture.repositories());
    let operator = Operator::new(&fixture);
    let url = web.url("web-app");
    let mut manifest = repository.manifest(None);
    manifest["spec"]["source"]["repoUrl"] = json!(url);

    adds(&operator, &web, &url, READER, &[]).code(1).says("RepositoryAddress");
    adds(&operator, &web, &url, READER, &["--allow-loopback"]).code(0).says("repository/");
    let (status, shown) = fixture.call("PUT", "/v1/applications", Some(manifest)).await;
    assert_eq!(status, 200, "{shown}");
    let received = spoke.receive().await;
    assert!(received.plan.is_some());
    let listed = fixture.get("/v1/repositories").await;
    assert_eq!(listed["items"][0]["credential"], "Basic", "{listed}");
    assert_eq!(listed["items"][0]["conditions"][0]["status"], "True", "{listed}");
    assert!(!listed.to_string().contains(READER.1), "{listed}");

    // Who owns the hub could make CI sign.
    adds(&operator, &web, &url, WRITER, &["--allow-loopback"]).code(1).says("CredentialCanPush");
    adds(&operator, &web, &url, WRITER, &["--allow-loopback", "--allow-push-credential"])
        .code(0)
        .says("CredentialCanPush");
    let listed = fixture.get("/v1/repositories").await;
    let condition = &listed["items"][0]["conditions"][0];
    assert_eq!(
        (&condition["status"], &condition["reason"]),
        (&json!("False"), &json!("CredentialCanPush"))
    );
    assert!(!listed.to_string().contains(WRITER.1), "{listed}");

    operator.attest(&["gitops", "repo", "rm", &url]).code(0).says("removed");
    let (_, seen) = fixture.call("POST", &format!("{APPLICATION}/sync"), Some(json!({}))).await;
    let mut conditions = seen["conditions"].as_array().unwrap().iter();
    let read = conditions.find(|condition| condition["type"] == "SourceRead").unwrap();
    assert_eq!(read["reason"], "RepositoryAddress", "{seen}");
}

fn adds(
    operator: &Operator,
    web: &Web,
    url: &str,
    (username, password): (&str, &str),
    more: &[&str],
) -> Said {
    let (secret, ca) = (operator.file("password"), operator.file("ca.pem"));
    std::fs::write(&ca, &web.ca_pem).unwrap();
    std::fs::write(&secret, format!("{password}\n")).unwrap();
    let (secret, ca) = (secret.display().to_string(), ca.display().to_string());
    let mut arguments = vec!["gitops", "repo", "add", url, "--username", username];
    arguments.extend(["--password-file", &secret, "--ca-file", &ca]);
    arguments.extend(more);
    operator.attest(&arguments)
}
