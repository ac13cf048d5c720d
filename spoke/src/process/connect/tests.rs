use attest_certs::Authority;
use attest_common::session::CLOSE_NOT_ADMITTED;
use attest_common::session::join::{JoinToken, TOKEN_RANDOM_BYTES};
use attest_common::session::message::{JoinOutcome, JoinRefused, JoinRequest, Joined};
use quinn::VarInt;

use super::*;
use crate::session::stubborn_hub::{DAY, StubbornHub, is_join, leaf, member};
use crate::trust::policy::Trust;
use crate::trust::policy::tests::object;

#[tokio::test]
async fn a_spoke_tells_how_long_its_certificate_lasts_though_it_has_no_session() {
    let hub = StubbornHub::granting(0);
    let (mut link, _told, _fake) = member(&hub).await;
    let metrics = link.metrics.clone();

    let mut endpoint = JoinEndpoint::new(None, "uid-1".to_owned());
    let ended =
        tokio::time::timeout(Duration::from_millis(100), sessions(&mut link, &mut endpoint)).await;

    assert!(ended.is_err() && metrics.connected.get() == 0, "the hub does not answer");
    let text = metrics.text();
    let left =
        text.lines().find(|line| line.starts_with("attest_spoke_certificate_expiry_seconds "));
    let left_s: u64 = left.unwrap().rsplit_once(' ').unwrap().1.parse().unwrap();
    assert!(left_s > DAY.as_secs() / 2 && left_s <= DAY.as_secs(), "{left_s}");
}

#[tokio::test]
async fn a_spoke_whose_good_certificate_the_hub_takes_no_more_comes_back_by_another_token() {
    let mut hub = StubbornHub::granting(1);
    let (mut link, _told, _fake) = member(&hub).await;
    let cluster = link.identity.cluster.clone();
    let before = link.identity.tls.as_ref().unwrap().bundle.chain()[0].to_vec();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    let token = |n: u8| JoinToken::from_random(&[n; TOKEN_RANDOM_BYTES]);
    std::fs::write(&file, token(1).text().as_bytes()).unwrap();
    let running = tokio::spawn({
        let mut endpoint = JoinEndpoint::new(Some(file.clone()), "uid-1".to_owned());
        async move { sessions(&mut link, &mut endpoint).await }
    });
    let refuse = |_: &Authority, _| {
        let (reason, message) = ("TokenRevoked".to_owned(), String::new());
        JoinOutcome::Refused(JoinRefused { reason, message })
    };

    hub.joined(refuse).await;

    // What is spent is not asked with again, and the certificate is kept and tried.
    for _ in 0..2 {
        let connection = hub.accepted.recv().await.unwrap();
        assert!(!is_join(&connection));
        assert_eq!(leaf(&connection), before);
        connection.close(VarInt::from_u32(CLOSE_NOT_ADMITTED), b"ClusterPending");
    }

    std::fs::write(&file, token(2).text().as_bytes()).unwrap();
    let hub_key = Trust::of(&object(), "uid-1").loaded().unwrap().policy.hub_keys.clone();
    let hub_key_id = hub_key.keys().next().unwrap().to_string();
    let admit = |authority: &Authority, asked: JoinRequest| {
        assert_eq!(asked.token_id, token(2).id());
        let issued = authority.issue_spoke(&asked.csr_der, cluster.as_str(), 1, DAY).unwrap();
        JoinOutcome::Joined(Joined {
            cluster_id: cluster.to_string(),
            chain_der: [&issued.chain[0], authority.certificate()].map(|c| c.to_vec()).to_vec(),
            cluster_name: "staging".to_owned(),
            hub_key_id: hub_key_id.clone(),
        })
    };
    hub.joined(admit).await;

    let connection = hub.accepted.recv().await.unwrap();
    assert!(!is_join(&connection));
    assert_ne!(leaf(&connection), before, "by the new certificate");
    running.abort();
}
