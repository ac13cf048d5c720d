//! A repository behind https with a private authority and Basic authentication, from `attest gitops repo add` to a plan.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::json;

use crate::ci::Repository;
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
    let operator = Operator::new(&fixture, &web);
    let url = web.url("web-app");
    let mut manifest = repository.manifest(None);
    manifest["spec"]["source"]["repoUrl"] = json!(url);

    operator.adds(&url, READER, &[]).code(0).says("repository/");
    let (status, shown) = fixture.call("PUT", "/v1/applications", Some(manifest)).await;
    assert_eq!(status, 200, "{shown}");
    let received = spoke.receive().await;
    assert!(received.plan.is_some());
    let listed = fixture.get("/v1/repositories").await;
    assert_eq!(listed["items"][0]["credential"], "Basic", "{listed}");
    assert_eq!(listed["items"][0]["conditions"][0]["status"], "True", "{listed}");
    assert!(!listed.to_string().contains(READER.1), "{listed}");

    // Who owns the hub could make CI sign.
    operator.adds(&url, WRITER, &[]).code(1).says("CredentialCanPush");
    operator.adds(&url, WRITER, &["--allow-push-credential"]).code(0).says("CredentialCanPush");
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
    assert_eq!(read["reason"], "CertificateRefused", "{seen}");
}

/// `attest` with a context for the hub.
struct Operator {
    directory: tempfile::TempDir,
}

struct Said(Output);

impl Operator {
    fn new(fixture: &Fixture, web: &Web) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let created = &fixture.created;
        let hub = json!({
            "name": "main", "apiUrl": format!("https://{}", fixture.addresses().api),
            "spokeAddress": created.spoke_address, "caPin": created.ca_pin,
            "hubKeyId": created.hub_key_id, "hubKey": created.hub_key_pem,
            "operatorChain": created.operator_chain_pem,
            "operatorKey": created.operator_key_pem.to_string()
        });
        let context = json!({"currentHub": "main", "hubs": [hub], "keys": []});
        std::fs::write(directory.path().join("config"), context.to_string()).unwrap();
        std::fs::write(directory.path().join("ca.pem"), &web.ca_pem).unwrap();
        Self { directory }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn adds(&self, url: &str, (username, password): (&str, &str), more: &[&str]) -> Said {
        let (secret, ca) = (self.file("password"), self.file("ca.pem"));
        std::fs::write(&secret, format!("{password}\n")).unwrap();
        let (secret, ca) = (secret.display().to_string(), ca.display().to_string());
        let mut arguments = vec!["gitops", "repo", "add", url, "--username", username];
        arguments.extend(["--password-file", &secret, "--ca-file", &ca]);
        arguments.extend(more);
        self.attest(&arguments)
    }

    fn attest(&self, arguments: &[&str]) -> Said {
        let mut command = Command::new(env!("CARGO_BIN_EXE_attest"));
        command.args(arguments).env("ATTEST_CONFIG", self.file("config"));
        command.env_remove("ATTEST_HUB").env("NO_PROXY", "*");
        Said(command.output().unwrap())
    }
}

impl Said {
    #[track_caller]
    fn code(self, code: i32) -> Self {
        let said = String::from_utf8_lossy(&self.0.stderr);
        assert_eq!(self.0.status.code(), Some(code), "{said}");
        self
    }

    #[track_caller]
    fn says(self, word: &str) {
        let (out, err) = (&self.0.stdout, &self.0.stderr);
        let said = format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err));
        assert!(said.contains(word), "no {word:?} in {said}");
    }
}
