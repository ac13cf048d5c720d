//! Requests of a worker as futures that end with an `Outcome`. Nothing is decided here.

mod delete;
mod record;
pub(super) mod withdraw;

use attest_common::basics::rate::{RateLimit, RateLimiter};
use attest_common::basics::text::error_chain;
use attest_common::documents::manifest::ObjectKey;
use attest_common::objects::absent::EmptyFields;
use futures::future::BoxFuture;

use super::command::{Request, Revert};
use super::event::Outcome;
use super::mailbox::RevertedPlan;
use super::shared::Shared;
use super::speculative::SpeculativeDryRun;
use crate::cluster::apply::{self, ApplyError};
use crate::cluster::client::ApiServer;
use crate::cluster::error::ApiError;
use crate::cluster::watch::{Observation, observe};
use crate::ledger::progress;
use crate::ledger::records::Key;

/// A request in flight.
pub(super) type Flight = BoxFuture<'static, Outcome>;

/// Clients and limits of the requests of one destination.
#[derive(Clone, Debug)]
pub(super) struct Performer {
    shared: Shared,
    key: Key,
    /// Limits how often missing rights of the account are restored.
    restoring: RateLimiter,
}

impl Performer {
    pub(super) fn new(shared: Shared, key: Key) -> Self {
        Self {
            shared,
            key,
            restoring: RateLimiter::new(RateLimit::one_every(1, delete::RIGHTS_EVERY)),
        }
    }

    /// Begins a request. `early` is the speculative dry run that it waits for, if any.
    pub(super) fn begin(&self, request: Request, early: Option<SpeculativeDryRun>) -> Flight {
        let Self { shared, key: destination, restoring } = self.clone();
        let Shared { api, ledger, kinds, reevaluations, .. } = shared;
        match request {
            Request::Prepare(account) => {
                Box::pin(async move { Outcome::Prepared(account.prepare(&api).await) })
            }
            Request::AwaitDryRun(key) => Box::pin(async move {
                let answer = match early {
                    Some(early) => early.answer().await,
                    None => Err(ApplyError::Gone),
                };
                Outcome::Checked(key, answer)
            }),
            Request::DryRun { key, target, ownership } => Box::pin(async move {
                let result = apply::check(&api, &target, ownership).await;
                Outcome::Checked(key, result)
            }),
            Request::Write { key, target, force, takeover, heal } => Box::pin(async move {
                let result = apply::write(&api, &target, force, takeover).await;
                Outcome::Wrote { key, heal, result }
            }),
            Request::Look { key, path, empty } => Box::pin(async move {
                let found = look(&api, &key, &path, &empty).await;
                Outcome::Looked(key, found)
            }),
            Request::Delete(deletion) => Box::pin(async move {
                let result = delete::deletion(&api, &kinds, &deletion, &restoring).await;
                Outcome::Deleted(deletion.key, result)
            }),
            Request::Record(update) => Box::pin(async move {
                Outcome::Recorded(record::record(&ledger, &destination, &update).await)
            }),
            Request::RecordRemoved => {
                Box::pin(
                    async move { Outcome::Recorded(record::removed(&ledger, &destination).await) },
                )
            }
            Request::Revert(revert) => Box::pin(async move {
                let directive = ledger.entry(&destination).map(|entry| entry.directive);
                let reverted = record::revert(&ledger, &destination, &revert).await;
                if let (Ok(_), Some(directive)) = (&reverted, directive) {
                    let Revert { held, obstacle, .. } = revert;
                    let plan = RevertedPlan { directive, plan: held.plan, obstacle };
                    reevaluations.reverted(&destination, plan);
                }
                Outcome::Reverted(reverted)
            }),
            Request::Return(failed) => Box::pin(async move {
                Outcome::Returned(record::give_up(&ledger, &destination, &failed).await)
            }),
            Request::StoreSoak(soak) => Box::pin(async move {
                if let Err(error) = progress::store_soak(&api, &destination, &soak).await {
                    tracing::warn!(
                        application = %destination.0, namespace = %destination.1,
                        reason = error.reason().as_str(), error = %error_chain(&error),
                        "Failed to store the soak of a plan; a restart would begin it again"
                    );
                }
                Outcome::SoakStored
            }),
            Request::Withdraw(account) => {
                // A hub may repeat the order, so that the rights are created and deleted each time.
                ledger.writes().spend(withdraw::RIGHTS_BYTES);
                Box::pin(async move {
                    withdraw::withdraw(&api, &ledger, &destination, &account).await;
                    Outcome::Withdrawn
                })
            }
        }
    }
}

async fn look(
    api: &ApiServer,
    key: &ObjectKey,
    path: &str,
    empty: &EmptyFields,
) -> Result<Option<Observation>, ApiError> {
    let found = api.get_optional(path).await?;
    Ok(found.map(|live| observe(key, &live, empty)))
}
