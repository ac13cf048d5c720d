//! Deletion of account and bindings of an application whose first plan was refused.

use std::time::Instant;

use attest_common::basics::text::error_chain;
use attest_common::record::Record;

use crate::cluster::account::Account;
use crate::cluster::client::ApiServer;
use crate::destination::objects::Failure;
use crate::ledger::records::{Key, Ledger};

/// Most bytes that etcd stores for the creation and deletion of an account and two bindings.
pub(in crate::destination) const RIGHTS_BYTES: u64 = 6 * 2 * 1024;

/// Account and namespace binding that are still needed.
struct InUse {
    account: bool,
    namespace: bool,
}

/// Deletes account and bindings that were created for a plan of which nothing was written, unless objects of
/// the application exist or may exist. Retries until it succeeds or the request is dropped.
pub(in crate::destination) async fn withdraw(
    api: &ApiServer,
    ledger: &Ledger,
    key: &Key,
    account: &Account,
) {
    let mut failure = None;
    while let InUse { account: false, namespace } = in_use(ledger, key)
        && let Err(error) = account.withdraw(api, !namespace).await
    {
        let text = error_chain(&error);
        if !error.is_transient() {
            tracing::warn!(
                application = %account.application, namespace = %account.destination,
                reason = error.reason().as_str(), error = %text,
                "Failed to remove account and bindings of an undeployed application"
            );
            break;
        }
        let now = Instant::now();
        let next = Failure::after(failure.as_ref(), error.reason(), text, now);
        tokio::time::sleep(next.retry_at.saturating_duration_since(now)).await;
        failure = Some(next);
    }
}

fn in_use(ledger: &Ledger, key: &Key) -> InUse {
    ledger.with_records(|records| {
        let is_idle = |key: &Key| records.get(key).is_none_or(Record::is_idle);
        let mut here = records.keys().filter(|(_, namespace)| *namespace == key.1);
        InUse { account: !is_idle(key), namespace: !here.all(is_idle) }
    })
}
