//! The last refusals, and the staleness of the hub, stored in the cluster so that they can be read without the hub.
//!
//! Their number and the rate of writes are limited, so that a hub cannot make the spoke overload its API
//! server with invalid documents.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use attest_common::basics::ids::Timestamp;
use attest_common::basics::locked::Locked;
use attest_common::basics::rate::RateLimiter;
use attest_common::basics::reason::{Reason, ReportedReason};
use attest_common::basics::text::error_chain;
use attest_common::record::custody::{
    HUB_STATUS_KEY, HubStatus, REFUSALS_KEY, REFUSALS_SECRET, Refusal, StoredRefusal,
};
use attest_runtime::failpoint;
use k8s_openapi::api::core::v1::Secret;
use tokio::sync::Notify;

use crate::cluster::client::ApiServer;
use crate::cluster::error::ApiError;
use crate::rate_limits::REFUSAL_WRITES;
use crate::trust::secrets::{self, collection, path};

/// Most refusals of each weight that are kept.
pub const REFUSALS_MAX: usize = 64;
/// Reasons that show an attempt of the hub to exceed its rights. Late or repeated documents are not
/// evidence: they occur with honest hubs too.
const EVIDENCE: [Reason; 9] = [
    Reason::AudienceMismatch,
    Reason::BlobDigest,
    Reason::ContentDigest,
    Reason::CounterRegressed,
    Reason::PlanDigest,
    Reason::PolicyFloor,
    Reason::SequenceEquivocation,
    Reason::SignatureInvalid,
    Reason::UntrustedKey,
];
/// Shortest time between two writes; see also [`REFUSAL_WRITES`].
const WRITE_EVERY: Duration = Duration::from_millis(500);

/// Importance of a refusal. Each weight has its own limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// A hub key of the policy has signed it, and it shows more than an error.
    Evidence,
    /// A hub key has signed it.
    Signed,
    /// Its sender is unknown.
    Noise,
}

impl Weight {
    /// Returns the weight of a refusal. `signed`: a hub key of the policy has signed the document.
    pub fn of(signed: bool, reason: &ReportedReason) -> Self {
        match signed {
            true if reason.known().is_some_and(|known| EVIDENCE.contains(&known)) => Self::Evidence,
            true => Self::Signed,
            false => Self::Noise,
        }
    }
}

fn weight_of(stored: &StoredRefusal) -> Weight {
    Weight::of(stored.signed, &stored.refusal.reason)
}

/// The list of refusals.
#[derive(Clone, Debug)]
pub struct Refusals(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    api: ApiServer,
    list: Locked<VecDeque<StoredRefusal>>,
    hub: Locked<Option<HubStatus>>,
    changed: Notify,
    writes: RateLimiter,
}

impl Refusals {
    /// Reads the stored list. Unreadable data counts as empty: the list is for display only.
    ///
    /// # Errors
    /// If the API server does not answer.
    pub async fn load(api: ApiServer) -> Result<Self, ApiError> {
        let secret: Option<Secret> = api.read_optional(&path(REFUSALS_SECRET)).await?;
        let bytes = |key| secret.as_ref().and_then(|secret| secrets::bytes(secret, key));
        let list = bytes(REFUSALS_KEY).and_then(|bytes| serde_json::from_slice(bytes).ok());
        let hub = bytes(HUB_STATUS_KEY).and_then(|bytes| serde_json::from_slice(bytes).ok());
        Ok(Self(Arc::new(Inner {
            api,
            list: Locked::new(list.unwrap_or_default()),
            hub: Locked::new(hub),
            changed: Notify::new(),
            writes: RateLimiter::new(REFUSAL_WRITES),
        })))
    }

    /// Adds a refusal. It replaces an earlier one of the same destination and reason.
    pub fn note(&self, refused: StoredRefusal) {
        keep(&mut self.0.list.lock(), refused);
        self.0.changed.notify_one();
    }

    /// Returns whether the list holds evidence of this reason. The first of each reason stays in it.
    pub fn has_evidence(&self, reason: &ReportedReason) -> bool {
        let list = self.0.list.lock();
        list.iter()
            .any(|known| weight_of(known) == Weight::Evidence && known.refusal.reason == *reason)
    }

    /// Notes whether the hub is stale; a change is stored.
    pub fn note_hub(&self, stale: bool, now: Timestamp) {
        let mut hub = self.0.hub.lock();
        if hub.is_none_or(|known| known.stale != stale) {
            *hub = Some(HubStatus { stale, since: now });
            self.0.changed.notify_one();
        }
    }

    /// Returns the newest refusal of a destination.
    pub fn newest(&self, application: &str, namespace: &str) -> Option<Refusal> {
        let list = self.0.list.lock();
        let mine =
            list.iter().rev().filter(|r| r.application == application && r.namespace == namespace);
        mine.max_by_key(|refused| refused.refusal.at).map(|refused| refused.refusal.clone())
    }

    /// Writes the list after each change, for as long as the process lives.
    pub async fn keep(self) {
        loop {
            self.0.changed.notified().await;
            while !self.may_write(Instant::now()) {
                tokio::time::sleep(WRITE_EVERY).await;
            }
            while let Err(error) = self.write().await {
                tracing::warn!(reason = error.reason().as_str(), error = %error_chain(&error), "Failed to store refusals");
                tokio::time::sleep(WRITE_EVERY * 4).await;
            }
            tokio::time::sleep(WRITE_EVERY).await;
        }
    }

    /// Takes a permit for a write, if one is available.
    fn may_write(&self, now: Instant) -> bool {
        self.0.writes.allows(now)
    }

    async fn write(&self) -> Result<(), ApiError> {
        let json = {
            let list = self.0.list.lock();
            serde_json::to_vec(&*list).unwrap_or_default()
        };
        let hub = *self.0.hub.lock();
        let hub = hub.and_then(|hub| serde_json::to_vec(&hub).ok());
        let mut data = BTreeMap::from([(REFUSALS_KEY, json)]);
        data.extend(hub.map(|hub| (HUB_STATUS_KEY, hub)));
        let secret = secrets::secret(REFUSALS_SECRET, "", &data);
        failpoint::reach("before-refusal-write");
        match self.0.api.replace(&path(REFUSALS_SECRET), &secret).await {
            Err(error) if error.is_not_found() => self.0.api.create(&collection(), &secret).await?,
            other => other?,
        };
        failpoint::reach("after-refusal-write");
        Ok(())
    }
}

/// Adds to the list. If a weight exceeds its limit, an entry of the destination with the most entries of it
/// is dropped, so that many about one destination displace none about another. The first of each reason
/// stays while another can be dropped.
fn keep(list: &mut VecDeque<StoredRefusal>, mut refused: StoredRefusal) {
    fn of(refused: &StoredRefusal) -> (Weight, &str, &str) {
        (weight_of(refused), refused.application.as_str(), refused.namespace.as_str())
    }
    let same = |known: &StoredRefusal| {
        of(known) == of(&refused) && known.refusal.reason == refused.refusal.reason
    };
    let known = list.iter().position(same).and_then(|index| list.remove(index));
    if let Some(known) = known {
        refused.first_at = Some(known.first_at());
        refused.count = refused.count.saturating_add(known.count.max(1));
    }
    let weight = weight_of(&refused);
    list.push_back(refused);
    let alike = || list.iter().enumerate().filter(|(_, known)| weight_of(known) == weight);
    if alike().count() <= REFUSALS_MAX {
        return;
    }
    let (mut counts, mut firsts) = (BTreeMap::new(), BTreeMap::new());
    for (index, known) in alike() {
        *counts.entry(of(known)).or_insert(0) += 1;
        let here = (known.first_at(), index);
        let first = firsts.entry(known.refusal.reason.as_str()).or_insert(here);
        *first = here.min(*first);
    }
    let is_first = |index: usize, known: &StoredRefusal| {
        firsts.get(known.refusal.reason.as_str()).is_some_and(|(_, first)| *first == index)
    };
    // Among those that are not the first of a reason, or else among all: the oldest of the largest destination.
    let goes = alike().min_by_key(|(index, known)| {
        let count: usize = counts.get(&of(known)).copied().unwrap_or_default();
        (is_first(*index, known), std::cmp::Reverse(count), *index)
    });
    if let Some(index) = goes.map(|(index, _)| index) {
        list.remove(index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::fake::FakeApi;
    use crate::rate_limits::{REFUSAL_WRITE_EVERY, REFUSAL_WRITES_AT_ONCE_MAX};

    fn refused(signed: bool, application: &str, reason: &str, sequence: u64) -> StoredRefusal {
        let refusal = Refusal {
            reason: ReportedReason::parse(reason),
            message: String::new(),
            sequence: Some(sequence),
            at: Timestamp::from_second(i64::try_from(sequence).unwrap()).unwrap(),
        };
        StoredRefusal::first(application.to_owned(), "shop".to_owned(), signed, refusal)
    }

    #[test]
    fn the_same_refusal_again_replaces_the_former() {
        let mut list = VecDeque::new();
        for sequence in 0..1_000 {
            keep(&mut list, refused(true, "web", "SequenceReplayed", sequence));
        }

        let first_at = Some(Timestamp::UNIX_EPOCH);
        let last = refused(true, "web", "SequenceReplayed", 999);
        assert_eq!(list, [StoredRefusal { first_at, count: 1_000, ..last }]);
    }

    #[test]
    fn signed_noise_about_any_destination_drives_out_no_evidence() {
        let mut list = VecDeque::new();
        let evidence = refused(true, "web", "ContentDigest", 7);
        let replayed = refused(true, "web", "SequenceReplayed", 8);
        keep(&mut list, evidence.clone());
        keep(&mut list, replayed.clone());
        for n in 0..1_000 {
            keep(&mut list, refused(true, &format!("noise-{n}"), "Expired", 9 + n));
            keep(&mut list, refused(true, &format!("noise-{n}"), "AudienceMismatch", 9 + n));
            keep(&mut list, refused(true, "web", "Expired", 9 + n));
        }

        assert!(list.contains(&evidence) && list.contains(&replayed));
        assert!(list.contains(&refused(true, "noise-0", "AudienceMismatch", 9)), "the first");
        assert!(
            list.contains(&refused(true, "noise-999", "AudienceMismatch", 1_008)),
            "the newest"
        );
        assert_eq!(list.len(), 2 * REFUSALS_MAX);
    }

    #[test]
    fn noise_drives_out_neither_signed_evidence_nor_that_of_another_destination() {
        let mut list = VecDeque::new();
        let evidence = refused(true, "web", "ContentDigest", 7);
        let other = refused(false, "shop", "SignatureInvalid", 8);
        keep(&mut list, evidence.clone());
        keep(&mut list, other.clone());
        for n in 0..1_000 {
            keep(&mut list, refused(false, "noise", &format!("Reason{n}"), n));
        }

        assert!(list.contains(&evidence) && list.contains(&other));
        assert_eq!(list.len(), REFUSALS_MAX + 1);
    }

    #[tokio::test]
    async fn the_list_is_written_often_at_once_and_then_once_in_a_while() {
        let fake = FakeApi::start().await;
        let refusals = Refusals::load(fake.open().await).await.unwrap();
        let start = Instant::now();
        let written = |at: Instant| (0..1_000).filter(|_| refusals.may_write(at)).count();

        assert_eq!(written(start), REFUSAL_WRITES_AT_ONCE_MAX as usize);
        assert_eq!(written(start + REFUSAL_WRITE_EVERY - Duration::from_millis(1)), 0);
        assert_eq!(written(start + REFUSAL_WRITE_EVERY), 1);
        assert_eq!(written(start + REFUSAL_WRITE_EVERY * 4), 3);
        let quiet = REFUSAL_WRITE_EVERY * (REFUSAL_WRITES_AT_ONCE_MAX + 10);
        assert_eq!(written(start + quiet), REFUSAL_WRITES_AT_ONCE_MAX as usize);
    }

    #[tokio::test]
    async fn that_the_hub_is_stale_is_written_once_and_known_after_a_restart() {
        let fake = FakeApi::start().await;
        let api = fake.open().await;
        let at = |second| Timestamp::from_second(second).unwrap();
        let refusals = Refusals::load(api.clone()).await.unwrap();
        refusals.note_hub(true, at(100));
        refusals.note_hub(true, at(200));
        refusals.write().await.unwrap();

        let after = Refusals::load(api).await.unwrap();

        assert_eq!(*after.0.hub.lock(), Some(HubStatus { stale: true, since: at(100) }));
        after.note_hub(false, at(300));
        assert_eq!(*after.0.hub.lock(), Some(HubStatus { stale: false, since: at(300) }));
    }
}
