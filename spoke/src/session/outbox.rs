//! Reports and requests for blobs that the hub has not received yet.
//!
//! Level-triggered: a newer report of a destination replaces the older one, and is pending until the hub
//! acknowledges it. `link` sends.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use attest_common::basics::ids::Digest;
use attest_common::basics::locked::Locked;
use attest_common::session::report::{OBJECTS_LISTED_MAX, REPORT_BYTES_MAX, Report};
use tokio::sync::Notify;

use crate::ledger::records::Key;

/// Most destinations whose reports are kept; beyond it the oldest report is dropped.
pub const REPORTS_MAX: usize = 4_096;
/// After this time without an acknowledgement a report is sent again.
pub const RESEND_AFTER: Duration = Duration::from_secs(30);

/// Pending reports and requests, shared by all that report.
#[derive(Clone, Debug, Default)]
pub struct Outbox(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Locked<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    version: u64,
    reports: BTreeMap<Key, Latest>,
    needs: BTreeMap<Key, Vec<Digest>>,
}

#[derive(Debug)]
struct Latest {
    version: u64,
    bytes: Arc<Vec<u8>>,
}

impl Outbox {
    /// Replaces a destination's report.
    pub fn report(&self, report: &Report) {
        let key = (report.application.clone(), report.namespace.clone());
        let bytes = Arc::new(encode(report));
        let mut state = self.state();
        state.version += 1;
        let version = state.version;
        state.reports.insert(key, Latest { version, bytes });
        if state.reports.len() > REPORTS_MAX {
            let oldest = state.reports.iter().min_by_key(|(_, latest)| latest.version);
            if let Some(key) = oldest.map(|(key, _)| key.clone()) {
                state.reports.remove(&key);
            }
        }
        drop(state);
        self.0.changed.notify_one();
    }

    /// Requests blobs. A later request of the same destination replaces it.
    pub fn need(&self, key: Key, blobs: Vec<Digest>) {
        let mut state = self.state();
        if state.needs.len() < REPORTS_MAX || state.needs.contains_key(&key) {
            state.needs.insert(key, blobs);
        }
        drop(state);
        self.0.changed.notify_one();
    }

    /// Waits until something new is pending.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Takes the requests for blobs.
    pub fn take_needs(&self) -> BTreeMap<Key, Vec<Digest>> {
        std::mem::take(&mut self.state().needs)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock()
    }
}

/// Encodes a report so that it fits a frame: objects are dropped before any text is truncated.
fn encode(report: &Report) -> Vec<u8> {
    let mut fitting = report.clone();
    fitting.objects.truncate(OBJECTS_LISTED_MAX);
    fitting.drifted.truncate(OBJECTS_LISTED_MAX);
    loop {
        // Derived serialization of strings, numbers and lists cannot fail.
        let bytes = serde_json::to_vec(&fitting).unwrap_or_default();
        if bytes.len() <= REPORT_BYTES_MAX {
            return bytes;
        }
        if fitting.objects.is_empty() && fitting.drifted.is_empty() {
            fitting.warnings.clear();
            fitting.checks.clear();
            return serde_json::to_vec(&fitting).unwrap_or_default();
        }
        let half = fitting.objects.len() / 2;
        fitting.objects.truncate(half);
        fitting.drifted.truncate(half);
    }
}

/// Reports that one connection has sent, and those that were acknowledged on it.
#[derive(Debug, Default)]
pub struct Deliveries {
    number: u64,
    sent: BTreeMap<Key, Sent>,
}

#[derive(Debug)]
struct Sent {
    version: u64,
    number: u64,
    at: Instant,
    acknowledged: bool,
}

impl Deliveries {
    /// Returns the reports to send now, each with the number that acknowledges it.
    pub fn due(&mut self, outbox: &Outbox, now: Instant) -> Vec<(u64, Arc<Vec<u8>>)> {
        let state = outbox.state();
        let mut due = Vec::new();
        for (key, latest) in &state.reports {
            let settled = self.sent.get(key).is_some_and(|sent| {
                sent.version == latest.version
                    && (sent.acknowledged || now.duration_since(sent.at) < RESEND_AFTER)
            });
            if settled {
                continue;
            }
            self.number += 1;
            let sent =
                Sent { version: latest.version, number: self.number, at: now, acknowledged: false };
            self.sent.insert(key.clone(), sent);
            due.push((self.number, Arc::clone(&latest.bytes)));
        }
        self.sent.retain(|key, _| state.reports.contains_key(key));
        due
    }

    /// Notes that the hub has stored the report of this number.
    pub fn acknowledge(&mut self, number: u64) {
        for sent in self.sent.values_mut().filter(|sent| sent.number == number) {
            sent.acknowledged = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use attest_common::basics::ids::Name;

    use attest_common::basics::ids::Timestamp;
    use attest_common::objects::health::Health;
    use attest_common::session::report::{Phase, Timings};

    use super::*;

    fn report(application: &str, message: &str) -> Report {
        Report {
            v: 1,
            application: Name::new(application).unwrap(),
            namespace: Name::new("shop").unwrap(),
            epoch: None,
            sequence: None,
            phase: Phase::Synced,
            reason: attest_common::basics::reason::Reason::Synced.into(),
            message: message.to_owned(),
            running: None,
            refusal: None,
            rollout: None,
            health: Health::Current,
            objects: Vec::new(),
            objects_total: 0,
            drifted: Vec::new(),
            heals_total: 0,
            timings: Timings::default(),
            checks: Vec::new(),
            warnings: Vec::new(),
            observed_at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn only_the_newest_report_is_sent_and_again_until_it_is_acknowledged() {
        let (outbox, now) = (Outbox::default(), Instant::now());
        let mut connection = Deliveries::default();
        outbox.report(&report("web", "old"));
        outbox.report(&report("web", "new"));

        let due = connection.due(&outbox, now);
        assert_eq!(due.len(), 1);
        assert!(String::from_utf8_lossy(&due[0].1).contains("new"));
        assert!(connection.due(&outbox, now).is_empty());
        let again = connection.due(&outbox, now + RESEND_AFTER);
        assert_eq!(again.len(), 1);

        connection.acknowledge(again[0].0);
        assert!(connection.due(&outbox, now + 3 * RESEND_AFTER).is_empty());
        outbox.report(&report("web", "newer"));
        assert_eq!(connection.due(&outbox, now + 3 * RESEND_AFTER).len(), 1);
    }

    #[test]
    fn a_new_connection_hears_everything_once() {
        let (outbox, now) = (Outbox::default(), Instant::now());
        outbox.report(&report("web", "x"));
        outbox.report(&report("api", "x"));
        let mut first = Deliveries::default();
        for (number, _) in first.due(&outbox, now) {
            first.acknowledge(number);
        }

        assert_eq!(Deliveries::default().due(&outbox, now).len(), 2);
    }

    #[test]
    fn a_late_acknowledgement_of_an_older_report_does_not_silence_the_newer() {
        let (outbox, now) = (Outbox::default(), Instant::now());
        let mut connection = Deliveries::default();
        outbox.report(&report("web", "old"));
        let old = connection.due(&outbox, now);
        outbox.report(&report("web", "new"));
        let new = connection.due(&outbox, now);

        connection.acknowledge(old[0].0);

        assert_eq!(new.len(), 1);
        assert_eq!(connection.due(&outbox, now + RESEND_AFTER).len(), 1);
    }

    #[test]
    fn a_later_request_for_blobs_replaces_the_former_also_when_there_is_no_more_room() {
        let outbox = Outbox::default();
        let key =
            |index: usize| (Name::new("web").unwrap(), Name::new(format!("shop-{index}")).unwrap());
        for index in 0..=REPORTS_MAX {
            outbox.need(key(index), vec![Digest::of(b"former")]);
        }
        outbox.need(key(0), vec![Digest::of(b"later")]);

        let needs = outbox.take_needs();
        assert_eq!(needs.len(), REPORTS_MAX);
        assert_eq!(needs[&key(0)], [Digest::of(b"later")]);
    }

    #[test]
    fn a_report_never_exceeds_its_limit() {
        let mut large = report("web", "x");
        large.warnings = vec!["w".repeat(1_000); 400];

        assert!(encode(&large).len() <= REPORT_BYTES_MAX);
    }
}
