//! What the API refuses, and how it says so.

use std::net::{TcpListener, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use attest_hub::{API_HANDSHAKE_TIMEOUT, API_HANDSHAKES_MAX};
use attest_runtime::probes::{STATUS_CONNECTIONS_MAX, STATUS_TIMEOUT};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

use crate::ci::Repository;
use crate::fixture::PATIENCE;
use crate::fixture::{Fixture, options};
use crate::spoke::Spoke;

/// Long enough for an order to arrive, should there be one.
const QUIET: Duration = Duration::from_millis(700);

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_of_which_a_part_dies_ends_as_failed() {
    for panics in [false, true] {
        let mut fixture = Fixture::start().await;
        let running = fixture.running.take().unwrap();
        let hub = running.core.clone();
        assert!(hub.stop.failed_part().is_none());

        let part = async move { assert!(!panics, "as the test wants it") };
        let _ = tokio::spawn(hub.stop.clone().part("test", part)).await;

        tokio::time::timeout(PATIENCE, hub.stop.cancelled()).await.expect("the hub goes on");
        assert_eq!(running.end().await.unwrap_err().reason().as_str(), "TaskEnded");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_carry_a_stable_word_a_field_and_what_to_do() {
    let fixture = Fixture::start().await;
    let repository = Repository::create(&fixture.repositories(), "web-app");
    let mut unknown_field = repository.manifest(None);
    unknown_field["spec"]["sauce"] = json!("brown");
    let elsewhere = {
        let mut manifest = repository.manifest(Some("staging"));
        manifest["spec"]["source"]["repoUrl"] = json!("file:///etc");
        manifest
    };
    type Case<'a> = (&'a str, &'a str, Option<Value>, u16, &'a str, Option<&'a str>);
    let cases: [Case<'_>; 13] = [
        ("GET", "/v1/nothing", None, 404, "RouteUnknown", None),
        ("POST", "/v1/version", None, 405, "MethodNotAllowed", None),
        ("GET", "/v1/clusters/moon", None, 404, "ClusterUnknown", None),
        ("GET", "/v1/applications/none", None, 404, "ApplicationUnknown", None),
        (
            "PUT",
            "/v1/applications",
            Some(repository.manifest(None)),
            422,
            "ClusterUnknown",
            Some("spec.destination.cluster"),
        ),
        ("PUT", "/v1/applications", Some(unknown_field), 422, "FieldUnknown", Some("spec.sauce")),
        (
            "PUT",
            "/v1/keys",
            Some(json!({"alias": "ci", "publicKey": "rubbish"})),
            422,
            "KeyFormat",
            Some("publicKey"),
        ),
        (
            "PUT",
            "/v1/repositories",
            Some(json!({"url": repository.url(), "username": "u"})),
            422,
            "CredentialIncomplete",
            Some("password"),
        ),
        (
            "PUT",
            "/v1/repositories",
            Some(json!({"url": repository.url(), "username": "u", "password": "p"})),
            422,
            "CredentialUnused",
            Some("username"),
        ),
        (
            "PUT",
            "/v1/repositories",
            Some(json!({"url": "https://git.example/a.git", "sshKey": "k", "knownHosts": "h"})),
            422,
            "CredentialUnused",
            Some("sshKey"),
        ),
        ("GET", "/v1/clusters?limit=5", None, 400, "QueryUnknown", None),
        (
            "PUT",
            "/v1/applications?remove=perhaps",
            Some(repository.manifest(None)),
            400,
            "QueryUnknown",
            None,
        ),
        (
            "POST",
            "/v1/tokens",
            Some(json!({"cluster": "A", "ttlSeconds": 1, "autoAccept": true})),
            422,
            "NameInvalid",
            None,
        ),
    ];
    for (method, path, body, status, reason, field) in cases {
        let (got, failure) = fixture.call(method, path, body).await;
        assert_eq!(got, status, "{method} {path}: {failure}");
        assert_eq!(failure["reason"], reason, "{method} {path}: {failure}");
        assert_eq!(failure["field"].as_str(), field, "{method} {path}: {failure}");
        assert!(failure["message"].as_str().unwrap().len() > 10, "{failure}");
    }
    let (_spoke, _) = Spoke::new(&fixture, "staging", 1).await;
    let (status, failure) = fixture.call("PUT", "/v1/applications", Some(elsewhere)).await;
    assert_eq!((status, failure["field"].as_str()), (422, Some("spec.source.repoUrl")));
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_beyond_the_limit_and_keys_that_stand_twice_are_refused() {
    let fixture = Fixture::start().await;
    let url = format!("https://{}/v1/keys", fixture.addresses().api);

    let put = || fixture.client().put(&url).header("Content-Type", "application/json");
    let large = "x".repeat(1_100_000);
    let answer = put().body(large).send().await.unwrap();
    assert_eq!(answer.status(), 413);
    let failure: Value = answer.json().await.unwrap();
    assert_eq!(failure["reason"], "BodyTooLarge");
    let twice = r#"{"alias":"a","alias":"b","publicKey":"x"}"#;
    let answer = put().body(twice).send().await.unwrap();
    assert_eq!(answer.status(), 400);
    let failure: Value = answer.json().await.unwrap();
    assert_eq!(failure["reason"], "JsonMalformed", "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_a_web_page_can_send_are_refused() {
    let fixture = Fixture::start().await;
    let url = format!("https://{}/v1/keys", fixture.addresses().api);
    let body = r#"{"alias":"ci","publicKey":"x"}"#;
    for (header, value, status, reason) in [
        ("Content-Type", "text/plain", 415, "ContentTypeUnsupported"),
        ("Content-Type", "application/x-www-form-urlencoded", 415, "ContentTypeUnsupported"),
        ("Content-Type", "application/jsonp", 415, "ContentTypeUnsupported"),
        ("Content-Type", "application/json; charset=utf-8", 422, "KeyFormat"),
        ("Origin", "https://example.com", 403, "OriginNotAllowed"),
        ("Origin", "null", 403, "OriginNotAllowed"),
    ] {
        let request = fixture.client().put(&url).header(header, value).body(body);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), status, "{header}: {value}");
        let failure: Value = answer.json().await.unwrap();
        assert_eq!(failure["reason"], reason, "{header}: {value}");
    }
    let keys = fixture.client().get(&url).send().await.unwrap();
    assert_eq!(keys.json::<Value>().await.unwrap()["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_operators_certificate_nobody_is_heard() {
    let fixture = Fixture::start().await;
    let authorities = attest_certs::bundle::chain_from_pem(&fixture.created.ca_pem).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authorities[0].clone()).unwrap();
    let tls = rustls::ClientConfig::builder_with_provider(attest_certs::tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client =
        reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build().unwrap();

    let url = format!("https://{}/v1/version", fixture.addresses().api);

    assert!(client.get(url).send().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_is_tried_before_it_is_kept() {
    let fixture = Fixture::start().await;
    let repository = Repository::create(&fixture.repositories(), "web-app");
    repository.commit("first");

    let missing = json!({"url": "https://127.0.0.1:9/none"});
    let (status, failure) = fixture.call("PUT", "/v1/repositories", Some(missing)).await;
    assert_eq!((status, failure["field"].as_str()), (422, Some("url")), "{failure}");
    let good = json!({"url": repository.url()});
    let (status, shown) = fixture.call("PUT", "/v1/repositories", Some(good)).await;
    assert_eq!(status, 200, "{shown}");
    assert_eq!(shown["conditions"][0]["status"], "True");
    let all = fixture.get("/v1/repositories").await;
    assert_eq!(all["items"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_readiness_and_metrics_answer_plainly() {
    let fixture = Fixture::start().await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let health = fixture.addresses().health;

    for path in ["health", "ready"] {
        let answer = client.get(format!("http://{health}/{path}")).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
    }
    assert!(fixture.metrics().await.contains("attest_fleet_clusters{state=\"Accepted\"} 0"));
    let addresses = std::fs::read_to_string(fixture.home().join("addresses.json")).unwrap();
    assert!(addresses.contains(&health.to_string()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_product_document_promises_is_exported_from_the_start() {
    let fixture = Fixture::start().await;

    let text = fixture.metrics().await;

    for (name, kind) in [
        ("attest_gitops_applications_total", "gauge"),
        ("attest_gitops_applications_by_phase_synced", "gauge"),
        ("attest_gitops_application_sync_duration_seconds", "histogram"),
        ("attest_gitops_deployments_total", "counter"),
        ("attest_gitops_deployment_duration_seconds", "histogram"),
        ("attest_gitops_deployments_success_total", "counter"),
        ("attest_gitops_verifications_total", "counter"),
        ("attest_gitops_signature_verifications_failed_total", "counter"),
        ("attest_gitops_policy_validations_total", "counter"),
    ] {
        assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name}: {text}");
        let sample = |line: &str| line.starts_with(name);
        assert!(text.lines().any(sample), "{name} has no value: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn verification_that_is_switched_off_is_refused_when_it_is_applied() {
    let fixture = Fixture::start().await;
    let repository = Repository::create(&fixture.repositories(), "web-app");
    repository.release(&fixture.ci, "v1", 100);
    let (spoke, _) = Spoke::new(&fixture, "staging", 1).await;
    for verification in [json!({"enabled": false}), json!({"policy": "Audit"})] {
        let mut manifest = repository.manifest(None);
        manifest["spec"]["verification"] = verification;

        let (status, answer) = fixture.call("PUT", "/v1/applications", Some(manifest)).await;

        assert_eq!((status, &answer["reason"]), (422, &json!("FieldInvalid")), "{answer}");
        assert!(answer["field"].as_str().unwrap().starts_with("spec.verification."), "{answer}");
    }
    assert!(spoke.receive_within(QUIET).await.is_none());
}

#[test]
fn a_start_that_cannot_be_is_one_line_that_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let program = env!("CARGO_BIN_EXE_attest-hub");
    const DOORS: [&str; 4] =
        ["--listen-spokes", "--listen-api", "--listen-health", "--listen-metrics"];
    let start = |home: &std::path::Path, taken: Option<(&str, &str)>| {
        let address = |door| taken.filter(|(flag, _)| *flag == door).map_or("127.0.0.1:0", |t| t.1);
        let output = Command::new(program)
            .arg("--home")
            .arg(home)
            .args(DOORS.into_iter().flat_map(|door| [door, address(door)]))
            .stdout(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        text
    };
    let home = directory.path().join("home");
    assert!(start(&home, None).contains("attest hub init"));

    let advertise = attest_hub::home::Advertise {
        spoke_address: "127.0.0.1:4433".into(),
        api_url: "https://127.0.0.1:8443".into(),
    };
    attest_certs::install_provider();
    attest_hub::home::create(&home, &advertise).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let options = options(&home, directory.path());
    let running = runtime.block_on(attest_hub::process::run::start(&options)).unwrap();
    let epoch = running.core.epoch.current();
    assert!(start(&home, None).contains("in use by another hub"));
    runtime.block_on(running.end()).unwrap();

    let (tcp, udp) = taken();
    let address = tcp.local_addr().unwrap().to_string();
    for door in DOORS {
        let text = start(&home, Some((door, &address)));
        assert!(text.contains(&address) && text.contains(&format!("with {door}")), "{text}");
    }
    drop((tcp, udp));
    let running = runtime.block_on(attest_hub::process::run::start(&options)).unwrap();
    assert_eq!(running.core.epoch.current(), epoch + 1, "a hub that cannot listen begins no epoch");
    runtime.block_on(running.end()).unwrap();
}

#[test]
fn a_log_level_that_is_none_and_a_variable_that_is_not_read_end_the_hub() {
    let directory = tempfile::tempdir().unwrap();
    let start = |arguments: &[&str], environment: &[(&str, &str)]| {
        let output = Command::new(env!("CARGO_BIN_EXE_attest-hub"))
            .arg("--home")
            .arg(directory.path().join("home"))
            .args(arguments)
            .envs(environment.iter().copied())
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };

    for (code, text) in [
        start(&["--log-level", "blah"], &[]),
        start(&[], &[("ATTEST_LOG_LEVEL", "attest_gitops=debugg")]),
    ] {
        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains("--log-level") && text.contains("debug or trace"), "{text}");
    }
    let (code, text) = start(&[], &[("ATTEST_LOG", "debug")]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("ATTEST_LOG ") && text.contains("ATTEST_LOG_LEVEL"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_connects_and_stays_silent_closes_the_api_to_nobody_else() {
    let fixture = Fixture::start().await;
    let mut silent = Vec::new();
    for _ in 0..API_HANDSHAKES_MAX * 2 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        silent.push(socket.connect(fixture.addresses().api).await.unwrap());
    }

    let asked = Instant::now();
    fixture.get("/v1/clusters").await;

    assert!(asked.elapsed() < API_HANDSHAKE_TIMEOUT, "it waited for the others to give up");
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_connects_to_a_status_port_and_stays_silent_keeps_nobody_from_an_answer_and_gives_way()
{
    let fixture = Fixture::start().await;
    let addresses = fixture.addresses();
    for (address, path) in [(addresses.health, "/ready"), (addresses.metrics, "/metrics")] {
        let mut silent = Vec::new();
        for _ in 0..STATUS_CONNECTIONS_MAX * 2 {
            silent.push(tokio::net::TcpStream::connect(address).await.unwrap());
        }

        let asked = Instant::now();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = client.get(format!("http://{address}{path}")).send().await.unwrap();

        assert_eq!(answer.status(), 200);
        assert!(asked.elapsed() < STATUS_TIMEOUT, "it waited for the others to give up");
        for first in silent.iter_mut().take(STATUS_CONNECTIONS_MAX) {
            let mut byte = [0];
            let gone = tokio::time::timeout(PATIENCE, first.read(&mut byte)).await;
            assert_eq!(gone.expect("it is kept").unwrap(), 0);
        }
        assert!(asked.elapsed() < STATUS_TIMEOUT, "they gave way only when their time was over");
    }
}

/// One port that is taken for both protocols.
fn taken() -> (TcpListener, UdpSocket) {
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()) {
            return (tcp, udp);
        }
    }
}
