use attest_common::basics::ids::Name;
use attest_common::basics::keys::PrivateKey;
use attest_common::basics::reason::ReportedReason;
use attest_common::documents::plan::to_bytes;
use attest_common::session::report::Phase;
use attest_common::verify::VerifyError;

use super::*;
use crate::admission::agent::tests::{agent, reports};
use crate::admission::gate::tests::directive_of;
use crate::cluster::fake::FakeApi;
use crate::ledger::records::tests::record;
use crate::rate_limits::{
    NEW_DESTINATIONS_AT_ONCE_MAX, REFUSALS_AT_ONCE_MAX, WRITTEN_AT_ONCE_BYTES_MAX,
};

fn order(sequence: u64) -> PushOrder {
    PushOrder { hub_key: None, epoch: 1, sequence }
}

fn retry(sequence: u64) -> Retry {
    let (at, attempt) = (Instant::now(), 0);
    Retry { order: order(sequence), directive: Vec::new(), plan: None, at, attempt }
}

fn key() -> Key {
    (Name::new("web").unwrap(), Name::new("shop").unwrap())
}

#[tokio::test]
async fn of_the_pushes_that_wait_the_newest_stays_whatever_comes_after_it() {
    let fake = FakeApi::start().await;
    let mut agent = agent(&fake).await;
    let waiting = |agent: &Agent| agent.retries.get(&key()).map(|retry| retry.order.sequence);

    for (sequence, stays) in [(4, 4), (5, 5), (3, 5)] {
        agent.wait(key(), retry(sequence));
        assert_eq!(waiting(&agent), Some(stays));
    }
    // Refused and unsigned.
    let directive = b"{}".to_vec();
    let nothing = Pushed { directive, plan: None, blobs: Default::default(), room: None };
    agent.take(nothing).await;
    agent.forget_older(Some((key(), order(4))));
    assert_eq!(waiting(&agent), Some(5));
    agent.forget_older(Some((key(), order(5))));
    assert_eq!(waiting(&agent), None);
}

#[tokio::test]
async fn a_first_plan_that_was_refused_before_a_restart_is_reported_when_it_is_ordered_again() {
    let fake = FakeApi::start().await;
    let mut agent = agent(&fake).await;
    let entry = Entry { record: record(), directive: Vec::new(), confirmed: Default::default() };
    agent.shared.ledger.update(&key(), |_| Ok(Some(entry.clone()))).await.unwrap();
    let refusal = Refusal {
        reason: ReportedReason::parse("FieldConflict"),
        message: String::new(),
        sequence: Some(7),
        at: jiff::Timestamp::now(),
    };
    let (application, namespace) = ("web".to_owned(), "shop".to_owned());
    agent.shared.refusals.note(StoredRefusal::first(application, namespace, true, refusal));

    agent.report_again(&key());

    let told = reports(&agent);
    assert_eq!((told.len(), told[0].phase, told[0].sequence), (1, Phase::Refused, Some(7)));
    assert!(agent.workers.is_empty());
}

#[tokio::test]
async fn a_hub_that_names_ever_new_destinations_is_held_back_and_known_ones_are_not() {
    let fake = FakeApi::start().await;
    let mut agent = agent(&fake).await;
    let entry = Entry { record: record(), directive: Vec::new(), confirmed: Default::default() };
    agent.shared.ledger.update(&key(), |_| Ok(Some(entry.clone()))).await.unwrap();
    let new = |index| Directive {
        namespace: Name::new(format!("shop-{index}")).unwrap(),
        ..directive_of(1)
    };

    for index in 0..NEW_DESTINATIONS_AT_ONCE_MAX {
        assert!(agent.check_rates(&new(index)).is_ok());
    }

    let refused = agent.check_rates(&new(NEW_DESTINATIONS_AT_ONCE_MAX)).unwrap_err();
    assert_eq!(refused.retry_after(0), Some(crate::rate_limits::NEW_DESTINATION_EVERY));
    assert!(agent.check_rates(&directive_of(1)).is_ok());
}

#[tokio::test]
async fn an_order_that_waits_uses_up_no_room_for_new_destinations() {
    let fake = FakeApi::start().await;
    let mut agent = agent(&fake).await;
    let left = |agent: &Agent| {
        let all = 0..=NEW_DESTINATIONS_AT_ONCE_MAX;
        let limiter = agent.new_destinations.clone();
        all.filter(|_| limiter.allows(Instant::now())).count()
    };
    // Admitted and not recorded yet, however often that is tried.
    for _ in 0..5 {
        assert!(agent.check_rates(&directive_of(1)).is_ok());
    }
    agent.shared.ledger.writes().spend(2 * WRITTEN_AT_ONCE_BYTES_MAX);
    let new = Directive { namespace: Name::new("shop-2").unwrap(), ..directive_of(1) };
    for _ in 0..5 {
        assert!(matches!(agent.check_rates(&new), Err(Rejected::TooMuch)));
    }

    assert_eq!(left(&agent), NEW_DESTINATIONS_AT_ONCE_MAX as usize - 1);
}

#[tokio::test]
async fn evidence_of_a_forgery_is_written_down_whatever_else_was_refused_before() {
    let fake = FakeApi::start().await;
    let agent = agent(&fake).await;
    let hub = PrivateKey::from_seed(&[1; 32]).unwrap();
    let directive = envelope::seal(DIRECTIVE_TYPE, &to_bytes(&directive_of(1)), &[&hub]);
    let refuse = |error: fn() -> VerifyError, namespace: &str| {
        let key = (Name::new("web").unwrap(), Name::new(namespace).unwrap());
        let error = Rejected::Gate(GateError::Verify(error()));
        agent.refuse(&error, &directive, Some((key, order(1))));
    };
    let is_listed = |namespace: &str, reason: &str| {
        let newest = agent.shared.refusals.newest("web", namespace);
        newest.is_some_and(|refusal| refusal.reason.as_str() == reason)
    };

    for _ in 0..4 * REFUSALS_AT_ONCE_MAX {
        refuse(|| VerifyError::RemoveNotAllowed, "noise");
    }
    refuse(|| VerifyError::PlanDigest, "shop-1");
    assert!(is_listed("shop-1", "PlanDigest"), "noise keeps out no evidence");
    for n in 0..4 * REFUSALS_AT_ONCE_MAX {
        refuse(|| VerifyError::PlanDigest, &format!("evidence-{n}"));
    }
    refuse(|| VerifyError::BlobDigest { what: "receipt" }, "shop-2");
    assert!(is_listed("shop-2", "BlobDigest"), "nor evidence the first of another reason");
    assert!(is_listed("shop-1", "PlanDigest"), "the first of a reason stays");
}

#[tokio::test]
async fn an_order_waits_while_orders_have_written_too_much() {
    let fake = FakeApi::start().await;
    let mut agent = agent(&fake).await;
    assert!(agent.check_rates(&directive_of(1)).is_ok());

    agent.shared.ledger.writes().spend(2 * WRITTEN_AT_ONCE_BYTES_MAX);

    let refused = agent.check_rates(&directive_of(1)).unwrap_err();
    assert_eq!(refused.retry_after(0), Some(crate::rate_limits::WRITTEN_RETRY));
}

#[test]
fn a_push_that_asks_for_discovery_too_often_waits_and_is_not_refused() {
    let refused = Rejected::TooManyDiscoveries;

    assert_eq!(refused.reason().as_str(), "AdmissionRateLimited");
    assert_eq!(refused.retry_after(0), Some(crate::rate_limits::ADMISSION_EVERY));
}
