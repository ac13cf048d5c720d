use attest_common::basics::ids::ClusterId;

use super::*;

const INTERVAL: Duration = Duration::from_secs(300);

fn queue() -> (Queue, Instant) {
    (Queue::new(INTERVAL), Instant::now())
}

fn names(queue: &mut Queue, now: Instant) -> Vec<String> {
    queue.take(now, || 0).0.into_iter().map(|(name, _)| name).collect()
}

fn destination(application: &str, namespace: &str) -> DestinationKey {
    DestinationKey {
        application: application.parse().unwrap(),
        cluster: ClusterId::of_identity_key(&[1; 32]),
        namespace: namespace.parse().unwrap(),
    }
}

#[test]
fn an_application_that_is_applied_while_it_is_forgotten_stays() {
    let (mut queue, now) = queue();
    queue.request("web-app", Poll::Now, false, now);
    let before = queue.requests("web-app");
    let number = queue.request("web-app", Poll::Now, false, now);

    assert!(!queue.forget("web-app", before));
    assert!(!queue.is_complete("web-app", number));
    assert!(queue.forget("web-app", queue.requests("web-app")));
    assert!(queue.is_complete("web-app", number));
    assert!(queue.slots.is_empty() && queue.ready.is_empty() && queue.polls.is_empty());
}

#[test]
fn applications_that_share_an_answer_fall_due_together() {
    let (mut queue, now) = queue();
    let answered = now + Duration::from_secs(1);
    for name in ["web-app", "web-api"] {
        queue.request(name, Poll::Now, false, now);
        queue.polled(name, answered, true, u64::MAX);
    }

    for slot in queue.slots.values() {
        let after = slot.next_poll - answered;
        let early_max = INTERVAL * JITTER_PERCENT / 100;
        assert!(INTERVAL - early_max <= after && after <= INTERVAL, "{after:?}");
    }
}

#[test]
fn applications_that_are_there_at_the_start_share_an_answer_unless_an_operator_asks_for_one() {
    let (mut queue, now) = queue();
    queue.request("web-api", Poll::Due, false, now);
    queue.request("web-app", Poll::Due, false, now);
    queue.request("web-app", Poll::Now, true, now);

    let (due, _) = queue.take(now, || u64::MAX);

    let whole = |poll, asked_for| Task::Whole(PassRequest { poll, asked_for });
    let expected = [("web-api", whole(Poll::Due, false)), ("web-app", whole(Poll::Now, true))];
    assert_eq!(due, expected.map(|(name, task)| (name.to_owned(), task)));
}

#[test]
fn a_pass_that_began_before_it_was_requested_is_not_its_answer() {
    let (mut queue, now) = queue();
    let first = queue.request("web-app", Poll::Now, false, now);
    assert_eq!(names(&mut queue, now).len(), 1);

    let second = queue.request("web-app", Poll::Now, true, now);
    assert!(names(&mut queue, now).is_empty(), "one pass at a time");
    queue.complete("web-app");

    assert!(queue.is_complete("web-app", first));
    assert!(!queue.is_complete("web-app", second));
    assert_eq!(names(&mut queue, now).len(), 1);
    queue.complete("web-app");
    assert!(queue.is_complete("web-app", second));
}

#[test]
fn only_what_is_due_or_was_woken_is_taken() {
    let (mut queue, now) = queue();
    for name in ["web-api", "web-app"] {
        queue.request(name, Poll::Now, false, now);
    }
    names(&mut queue, now);
    for name in ["web-api", "web-app"] {
        queue.complete(name);
    }

    assert!(names(&mut queue, now).is_empty());
    let woken = [destination("web-api", "staging"), destination("web-api", "production")];
    woken.iter().for_each(|destination| queue.wake_status(destination));
    queue.wake("unknown");
    let (due, _) = queue.take(now, || 0);
    assert_eq!(due, [("web-api".to_owned(), Task::Status(woken.clone().into()))]);
    queue.complete("web-api");
    queue.wake_by("web-app", now + Duration::from_secs(1));
    let (due, next) = queue.take(now, || u64::MAX);
    assert!(due.is_empty() && next == now + Duration::from_secs(1));
    let (due, _) = queue.take(next, || 0);
    let poll = Task::Whole(PassRequest { poll: Poll::Due, asked_for: false });
    assert_eq!(due, [("web-app".to_owned(), poll)]);
    queue.complete("web-app");
    let (_, next) = queue.take(now, || 0);
    assert_eq!(next, now + INTERVAL, "the other one is polled first");
    queue.wake_status(&woken[0]);
    queue.take(now, || 0);
    queue.complete("web-api");
    let (due, _) = queue.take(next, || 0);
    assert_eq!(due, [("web-api".to_owned(), Task::Poll(BTreeSet::new()))]);
}

#[test]
fn an_unreachable_repository_is_polled_less_and_less_often_up_to_a_limit() {
    let (mut queue, now) = queue();
    queue.request("web-app", Poll::Now, false, now);

    for factor in [2, 4, 8, 16, 16] {
        queue.polled("web-app", now, false, 0);
        assert_eq!(queue.slots["web-app"].next_poll, now + INTERVAL * factor);
    }
    queue.polled("web-app", now, true, 0);
    assert_eq!(queue.slots["web-app"].next_poll, now + INTERVAL);
}
