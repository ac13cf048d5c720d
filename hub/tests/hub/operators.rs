//! Who may operate a running hub.

use attest_certs::Bundle;
use attest_certs::tls::operator_https;
use attest_common::ids::Timestamp;
use attest_gitops::home;
use serde_json::Value;

use crate::fixture::Fixture;

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_operator_is_refused_at_once_on_a_connection_that_is_open() {
    let fixture = Fixture::start().await;
    let second = home::issue_operator(&fixture.home(), "second").unwrap();
    let own = Bundle::from_pem(&second.operator_chain_pem, &second.operator_key_pem).unwrap();
    let tls = operator_https(&[fixture.pin()], &own).unwrap();
    let client =
        reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build().unwrap();
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
    assert_eq!(operators.revoke("00ff", Timestamp::now()).unwrap_err().reason(), "OperatorUnknown");
}
