//! Speculative dry runs of a plan, started while its record is being written: a dry run changes nothing.
//!
//! Results are passed to the worker, which decides. One decision is made earlier: if every dry run of a plan has
//! passed in time, its first record gives up the rollback point already.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use attest_common::documents::manifest::ObjectKey;
use attest_common::objects::kinds::Kinds;
use attest_common::objects::placement;
use attest_common::verify::{Admission, ObjectSet, Verified};
use tokio_util::task::AbortOnDropHandle;

use super::objects::{IN_FLIGHT_MAX, Tracked};
use super::track::track;
use crate::cluster::account::Account;
use crate::cluster::apply::{self, ApplyError, DryRunPermit, Ownership, Target};
use crate::cluster::client::ApiServer;
use crate::cluster::drift::Need;
use crate::ledger::records::{Entry, Key};

/// Longest time that an admission waits for results that let its first write begin with its record.
const ANSWERS_WAIT_MAX: Duration = Duration::from_millis(50);

/// The objects of an admission as the destination's record knows them.
struct AdmittedObjects<'a> {
    rendered: &'a Arc<Verified<ObjectSet>>,
    objects: BTreeMap<ObjectKey, Tracked>,
    account: Account,
    /// True if plan and policy allow taking over existing objects.
    adopt: bool,
}

impl<'a> AdmittedObjects<'a> {
    fn new(
        (application, namespace): &Key,
        (admission, rendered): (&Admission, &'a Arc<Verified<ObjectSet>>),
        entry: &Entry,
        known: &Kinds,
    ) -> Self {
        let policy = &admission.admitted.effective_policy;
        let account = Account::new(application, namespace, &policy.accounts_namespace);
        let kinds = placement::with_definitions(rendered.objects(), known);
        let recorded = (&entry.record.inventory[..], &entry.confirmed);
        let objects = track(rendered, &kinds, &account, recorded, None);
        Self { rendered, objects, account, adopt: admission.plan.sync.adopt && policy.adopt }
    }

    fn target(&self, key: &ObjectKey, tracked: &Tracked) -> Target {
        Target {
            objects: Arc::clone(self.rendered),
            key: key.clone(),
            path: tracked.path.clone(),
            user: Some(self.account.user()),
            autoscaled: tracked.autoscaled,
        }
    }
}

/// The dry runs of an admission that were started before its record is written.
#[derive(Debug, Default)]
pub struct SpeculativeDryRuns {
    pub(super) each: Vec<SpeculativeDryRun>,
    /// No other dry run is needed before the first write.
    complete: bool,
}

impl SpeculativeDryRuns {
    /// Starts dry runs of objects that an admission changes and that are known to be ours: their account has
    /// its rights, and the result depends on no earlier step. At most [`IN_FLIGHT_MAX`]; the worker makes the
    /// others.
    pub fn begin(
        api: &ApiServer,
        key: &Key,
        admitted: (&Admission, &Arc<Verified<ObjectSet>>),
        entry: &Entry,
        known: &Kinds,
    ) -> Self {
        let admitted = AdmittedObjects::new(key, admitted, entry, known);
        let (objects, adopt) = (&admitted.objects, admitted.adopt);
        let changes = |tracked: &Tracked| tracked.need() == Need::Apply;
        let ours = |tracked: &Tracked| {
            let definition = tracked.definition.as_ref().and_then(|key| objects.get(key));
            matches!(tracked.ownership(adopt), Ownership::Ours { .. })
                && tracked.confirmed.is_some()
                && !definition.is_some_and(changes)
        };
        let begin = |(key, tracked): (&ObjectKey, &Tracked)| {
            let target = admitted.target(key, tracked);
            let ownership = tracked.ownership(adopt);
            let (api, asked) = (api.clone(), ownership.clone());
            let asking = async move { apply::check(&api, &target, asked).await };
            let answer = Answer::Awaited(AbortOnDropHandle::new(tokio::spawn(asking)));
            SpeculativeDryRun { key: key.clone(), ownership, answer }
        };
        let changed = objects.iter().filter(|(_, tracked)| changes(tracked));
        let each: Vec<SpeculativeDryRun> = changed
            .clone()
            .filter(|(_, tracked)| ours(tracked))
            .take(IN_FLIGHT_MAX)
            .map(begin)
            .collect();
        let complete = entry.record.rollback_point.is_none() && each.len() == changed.count();
        Self { each, complete }
    }

    /// Makes the dry run of one object, as it is due first when the admission is carried out.
    ///
    /// # Errors
    /// [`ApplyError`].
    pub async fn of_one(
        api: &ApiServer,
        destination: &Key,
        admitted: (&Admission, &Arc<Verified<ObjectSet>>),
        (entry, known): (&Entry, &Kinds),
        key: &ObjectKey,
    ) -> Result<DryRunPermit, ApplyError> {
        let admitted = AdmittedObjects::new(destination, admitted, entry, known);
        let tracked = admitted.objects.get(key).ok_or(ApplyError::Gone)?;
        let target = admitted.target(key, tracked);
        apply::check(api, &target, tracked.ownership(admitted.adopt)).await
    }

    /// Returns whether every object that the admission changes may be written, so that it needs no rollback
    /// point. Waits briefly for the results, for which the first write would wait too.
    pub async fn all_passed(&mut self) -> bool {
        if !self.complete || self.each.is_empty() {
            return false;
        }
        let answers =
            futures::future::join_all(self.each.iter_mut().map(SpeculativeDryRun::answered));
        let _ = tokio::time::timeout(ANSWERS_WAIT_MAX, answers).await;
        self.each.iter().all(|early| matches!(early.answer, Answer::Given(Ok(_))))
    }
}

/// A dry run in flight. It ends when dropped.
#[derive(Debug)]
pub(super) struct SpeculativeDryRun {
    pub(super) key: ObjectKey,
    pub(super) ownership: Ownership,
    answer: Answer,
}

#[derive(Debug)]
enum Answer {
    Awaited(AbortOnDropHandle<Result<DryRunPermit, ApplyError>>),
    Given(Result<DryRunPermit, ApplyError>),
}

impl SpeculativeDryRun {
    async fn answered(&mut self) {
        if let Answer::Awaited(asking) = &mut self.answer {
            // It is not aborted while it is awaited.
            self.answer = Answer::Given(asking.await.unwrap_or(Err(ApplyError::Gone)));
        }
    }

    /// Waits for the result.
    pub(super) async fn answer(self) -> Result<DryRunPermit, ApplyError> {
        match self.answer {
            Answer::Given(answer) => answer,
            Answer::Awaited(asking) => asking.await.unwrap_or(Err(ApplyError::Gone)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use attest_common::basics::ids::Digest;

    use super::super::objects::take_speculative;
    use super::super::objects::tests::applied;
    use super::*;
    use crate::ledger::records::tests::object_key;

    fn early(uid: &str) -> SpeculativeDryRun {
        let passed =
            DryRunPermit { force: true, preexisting: false, takeover: false, replaces: false };
        SpeculativeDryRun {
            key: object_key("ConfigMap", "a"),
            ownership: Ownership::Ours { uid: uid.to_owned(), adopt: false },
            answer: Answer::Awaited(AbortOnDropHandle::new(tokio::spawn(
                async move { Ok(passed) },
            ))),
        }
    }

    #[tokio::test]
    async fn a_plan_begins_at_once_when_all_its_checks_have_passed_in_time() {
        let fails =
            || SpeculativeDryRun { answer: Answer::Given(Err(ApplyError::Gone)), ..early("uid") };
        let hangs = || {
            let answer = AbortOnDropHandle::new(tokio::spawn(std::future::pending()));
            SpeculativeDryRun { answer: Answer::Awaited(answer), ..early("uid") }
        };
        let table = [
            ("all passed", vec![early("a"), early("b")], true, true),
            ("one fails", vec![early("a"), fails()], true, false),
            ("one hangs", vec![early("a"), hangs()], true, false),
            ("others are to be checked", vec![early("a")], false, false),
            ("nothing changes", vec![], true, false),
        ];

        for (case, each, complete, expected) in table {
            let mut checks = SpeculativeDryRuns { each, complete };
            assert_eq!(checks.all_passed().await, expected, "{case}");
        }
    }

    #[tokio::test]
    async fn an_early_check_counts_only_while_it_asks_what_is_to_be_asked() {
        let changed = Tracked { desired: Digest::of(b"newer"), ..applied(0) };
        let key = object_key("ConfigMap", "a");
        let with = |tracked: Tracked| BTreeMap::from([(key.clone(), tracked)]);
        let taken = |uid: &str, adopt: bool, objects: &mut BTreeMap<ObjectKey, Tracked>| {
            take_speculative(objects, vec![(key.clone(), early(uid).ownership)], adopt)
        };
        let is_used = |uid: &str, adopt: bool, tracked: Tracked| {
            !taken(uid, adopt, &mut with(tracked)).is_empty()
        };

        let mut objects = with(changed.clone());
        let awaited = taken("uid", false, &mut objects);
        assert!(objects.values().all(|tracked| tracked.busy));
        let passed = early("uid").answer().await.unwrap();
        assert_eq!((awaited[0].name.as_str(), passed.force), ("a", true));

        // Replaced by another writer, to be taken over, not changed at all, and no longer rendered.
        assert!(!is_used("former", false, changed.clone()));
        assert!(!is_used("uid", true, changed));
        assert!(!is_used("uid", false, applied(0)));
        assert!(taken("uid", false, &mut BTreeMap::new()).is_empty());
    }
}
