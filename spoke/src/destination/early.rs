//! Checks of a plan that begin while its record is still being written: a dry run changes nothing, so it
//! need not wait. Only the answers are handed on; what follows from them is decided where every other
//! check is. Nothing depends on this but time.

use std::collections::BTreeMap;
use std::sync::Arc;

use attest_common::effective;
use attest_common::kinds::Kinds;
use attest_common::manifest::ObjectKey;
use attest_common::verify::{Admission, Verified};
use tokio_util::task::AbortOnDropHandle;

use super::state::{IN_FLIGHT_MAX, Tracked};
use super::track::track;
use super::{Done, Job};
use crate::account::Account;
use crate::apply::{self, ApplyError, Passed, Standing, Target};
use crate::cluster::ApiServer;
use crate::drift::Need;
use crate::ledger::Entry;
use crate::outbox::Key;

/// A check that is under way. Dropped, it ends.
#[derive(Debug)]
pub struct Early {
    key: ObjectKey,
    standing: Standing,
    answer: AbortOnDropHandle<Result<Passed, ApplyError>>,
}

impl Early {
    /// Begins to check what an admission changes in objects that are known to be ours: their account
    /// has its rights, and what the check asks does not hang on anything that comes before it. At
    /// most [`IN_FLIGHT_MAX`]; the others are checked in their turn.
    pub fn begin(
        api: &ApiServer,
        (application, namespace): &Key,
        admission: &Arc<Verified<Admission>>,
        entry: &Entry,
        known: &Kinds,
    ) -> Vec<Self> {
        let accounts_namespace = &admission.admitted.local.accounts_namespace;
        let account = Account::new(application, namespace, accounts_namespace);
        let kinds = effective::with_definitions(&admission.admitted.objects, known);
        let recorded = (&entry.record.inventory[..], &entry.confirmed);
        let objects = track(admission, &kinds, &account, recorded, None);
        let adopt = admission.plan.sync.adopt && admission.admitted.local.adopt;
        let changed = objects.into_iter().filter_map(|(key, tracked)| {
            let standing = tracked.standing(adopt);
            let ours = matches!(standing, Standing::Ours { .. }) && tracked.confirmed.is_some();
            (ours && tracked.need() == Need::Apply).then_some((key, standing, tracked))
        });
        let begin = |(key, standing, tracked): (ObjectKey, Standing, Tracked)| {
            let target = Target {
                admission: Arc::clone(admission),
                index: tracked.index,
                path: tracked.path,
                user: Some(account.user()),
            };
            let (api, asked) = (api.clone(), standing.clone());
            let asking = async move { apply::check(&api, &target, asked).await };
            Self { key, standing, answer: AbortOnDropHandle::new(tokio::spawn(asking)) }
        };
        changed.take(IN_FLIGHT_MAX).map(begin).collect()
    }

    /// The check as a request of the worker; `None` when it asked something else than is to be asked.
    pub(super) fn job(
        self,
        objects: &mut BTreeMap<ObjectKey, Tracked>,
        adopt: bool,
    ) -> Option<Job> {
        let Self { key, standing, answer } = self;
        let tracked = objects.get_mut(&key).filter(|tracked| {
            tracked.need() == Need::Apply && !tracked.busy && tracked.standing(adopt) == standing
        })?;
        tracked.busy = true;
        Some(Box::pin(async move {
            // It is never aborted while somebody waits for it.
            let answer = answer.await.unwrap_or(Err(ApplyError::Gone));
            Done::Checked(key, answer)
        }))
    }
}

#[cfg(test)]
mod tests {
    use attest_common::ids::Digest;

    use super::super::state::tests::applied;
    use super::*;
    use crate::ledger::tests::object_key;

    fn early(uid: &str) -> Early {
        let passed = Passed { force: true, met: false };
        Early {
            key: object_key("ConfigMap", "a"),
            standing: Standing::Ours { uid: uid.to_owned(), adopt: false },
            answer: AbortOnDropHandle::new(tokio::spawn(async move { Ok(passed) })),
        }
    }

    #[tokio::test]
    async fn an_early_check_counts_only_while_it_asks_what_is_to_be_asked() {
        let changed = Tracked { desired: Digest::of(b"newer"), ..applied(0) };
        let with = |tracked: Tracked| BTreeMap::from([(object_key("ConfigMap", "a"), tracked)]);
        let is_used = |uid: &str, adopt: bool, tracked: Tracked| {
            early(uid).job(&mut with(tracked), adopt).is_some()
        };

        let mut objects = with(changed.clone());
        let job = early("uid").job(&mut objects, false).unwrap();
        assert!(objects.values().all(|tracked| tracked.busy));
        let Done::Checked(key, Ok(passed)) = job.await else { panic!("another answer") };
        assert_eq!((key.name.as_str(), passed.force), ("a", true));

        // Replaced by somebody, to be taken over, not changed at all, and not rendered any more.
        assert!(!is_used("former", false, changed.clone()));
        assert!(!is_used("uid", true, changed));
        assert!(!is_used("uid", false, applied(0)));
        assert!(early("uid").job(&mut BTreeMap::new(), false).is_none());
    }
}
