//! Who may operate a running hub.

use attest_certs::tls::operator_https;
use attest_certs::{Bundle, OperatorRole};
use attest_common::basics::ids::Timestamp;
use attest_hub::home;
use serde_json::Value;

use crate::fixture::Fixture;

/// One route a line: method, path, and the least role that may use it.
const ROLES: &str = include_str!("../../src/api/roles.txt");

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_operator_is_refused_at_once_on_a_connection_that_is_open() {
    let fixture = Fixture::start().await;
    let client = client_of(&fixture, OperatorRole::Operator, "second");
    let url = format!("https://{}/v1/version", fixture.addresses().api);
    assert_eq!(client.get(&url).send().await.unwrap().status(), 200);
    let operators = home::operators(&fixture.home()).unwrap();
    let all = operators.all().unwrap();
    assert_eq!(all.len(), 2, "{all:?}");
    let serial = &all.iter().find(|operator| operator.name == "second").unwrap().serial;

    operators.revoke(serial, Timestamp::now()).unwrap();

    let answer = client.get(&url).send().await.unwrap();
    assert_eq!(answer.status(), 403);
    let failure: Value = answer.json().await.unwrap();
    assert_eq!(failure["reason"], "OperatorRevoked", "{failure}");
    fixture.get("/v1/version").await;
}

/// A client with a new certificate.
fn client_of(fixture: &Fixture, role: OperatorRole, name: &str) -> reqwest::Client {
    let issued = home::issue_operator(&fixture.home(), role, name).unwrap();
    let own = Bundle::from_pem(&issued.operator_chain_pem, &issued.operator_key_pem).unwrap();
    let tls = operator_https(&[fixture.pin()], &own).unwrap();
    reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_reads_everything_and_changes_nothing_route_by_route() {
    let fixture = Fixture::start().await;
    let viewer = client_of(&fixture, OperatorRole::Viewer, "auditor");
    let mut refused = 0;
    for line in ROLES.lines().filter(|line| !line.starts_with('#')) {
        let [method, path, role] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let path = path.replace("{name}", "none").replace("{id}", "0").replace("{alias}", "none");
        let url = format!("https://{}{path}", fixture.addresses().api);
        // An invalid body, too, is refused because of the role.
        let request = viewer.request(method.parse().unwrap(), url).json(&Value::from("nothing"));
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let failure: Value = answer.json().await.unwrap();
        let is_refused = status == 403 && failure["reason"] == "ViewerReadOnly";
        assert_eq!(is_refused, role == "operator", "{line}: {status} {failure}");
        refused += usize::from(is_refused);
    }
    assert!(refused > 10, "{refused}");

    let operators = home::operators(&fixture.home()).unwrap().all().unwrap();
    let roles: Vec<_> = operators.iter().map(|operator| operator.role).collect();
    assert_eq!(roles, [OperatorRole::Operator, OperatorRole::Viewer], "{operators:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_note_that_cannot_be_read_shuts_its_operator_out_and_no_revocation() {
    let fixture = Fixture::start().await;
    let operators = home::operators(&fixture.home()).unwrap();
    let own = operators.all().unwrap().remove(0);
    let path = fixture.home().join("operators").join(format!("{}.json", own.serial));
    std::fs::write(path, "{").unwrap();

    let (status, failure) = fixture.call("GET", "/v1/version", None).await;
    assert_eq!((status, &failure["reason"]), (403, &Value::from("OperatorUnreadable")));

    // A serial that was never noted is ended all the same; what is none is refused.
    assert!(!operators.is_revoked("0ff").unwrap());
    operators.revoke("0FF", Timestamp::now()).unwrap();
    assert!(operators.is_revoked("0ff").unwrap());
    let refused = operators.revoke("../tls", Timestamp::now()).unwrap_err();
    assert_eq!(refused.reason().as_str(), "OperatorUnknown");
}

#[test]
fn what_root_notes_belongs_to_the_owner_of_the_home() {
    use std::os::unix::fs::{MetadataExt as _, chown};

    const OTHER: u32 = 65_534;
    attest_certs::install_provider();
    let directory = tempfile::tempdir().unwrap();
    let home_path = directory.path().join("home");
    let advertise = home::Advertise {
        spoke_address: "127.0.0.1:4433".into(),
        api_url: "https://127.0.0.1:8443".into(),
    };
    home::create(&home_path, &advertise).unwrap();
    if chown(&home_path, Some(OTHER), Some(OTHER)).is_err() {
        // Only root can be in this place.
        return;
    }

    home::issue_operator(&home_path, OperatorRole::Operator, "second").unwrap();

    let operators = home_path.join("operators");
    assert_eq!(std::fs::metadata(&operators).unwrap().uid(), OTHER);
    let second = home::operators(&home_path).unwrap().all().unwrap();
    let second = second.iter().find(|operator| operator.name == "second").unwrap();
    let file = operators.join(format!("{}.json", second.serial));
    assert_eq!(std::fs::metadata(file).unwrap().uid(), OTHER);
}
