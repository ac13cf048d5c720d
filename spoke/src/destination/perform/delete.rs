//! Deletion of an object of an inventory, by a version that the API server serves, with restored rights if needed.

use std::time::{Duration, Instant};

use attest_common::basics::locked::RwLocked;
use attest_common::basics::rate::RateLimiter;
use attest_common::basics::text::error_chain;
use attest_common::documents::manifest::ObjectKey;
use attest_common::objects::kinds::Kinds;

use crate::cluster::account::Account;
use crate::cluster::apply::{self, ApplyError, Deleted};
use crate::cluster::client::{ApiServer, object_path};
use crate::cluster::discovery;
use crate::destination::command::{By, Deletion};

/// Interval in which missing rights are restored, independent of the number of objects.
pub(in crate::destination) const RIGHTS_EVERY: Duration = Duration::from_secs(10);

/// Deletes the object. If the account lacks the right, its rights are restored, within the limit of
/// `restoring`; the next attempt uses them.
pub(in crate::destination) async fn deletion(
    api: &ApiServer,
    kinds: &RwLocked<Kinds>,
    deletion: &Deletion,
    restoring: &RateLimiter,
) -> Result<Deleted, ApplyError> {
    let result = delete(api, kinds, deletion).await;
    if let Err(error) = &result {
        restore_rights(api, &deletion.by.account, error, restoring).await;
    }
    result
}

/// Restores missing rights of the account and of the spoke, for the next attempt.
async fn restore_rights(
    api: &ApiServer,
    account: &Account,
    error: &ApplyError,
    limiter: &RateLimiter,
) {
    if !error.is_forbidden() || !limiter.allows(Instant::now()) {
        return;
    }
    if let Err(error) = account.restore_rights(api).await {
        tracing::debug!(
            application = %account.application, namespace = %account.destination,
            reason = error.reason().as_str(), error = %error_chain(&error),
            "Failed to restore the rights of an account"
        );
    }
}

async fn delete(
    api: &ApiServer,
    kinds: &RwLocked<Kinds>,
    deletion: &Deletion,
) -> Result<Deleted, ApplyError> {
    let Deletion { key, version, plural, uid, by } = deletion;
    let plural = match plural {
        Some(plural) => plural.clone(),
        None => {
            discovery::discover(api, kinds).await.map_err(ApplyError::Api)?;
            let known = kinds.read();
            let kind = known.get(&key.group, &key.kind).ok_or(ApplyError::KindUnknown)?;
            kind.plural.clone()
        }
    };
    let uid = uid.as_deref();
    match delete_at(api, by, key, (version, &plural), uid).await {
        // The version is no longer served, as opposed to the object being absent. Another version may be served.
        Err(ApplyError::Api(error)) if error.is_not_found() => {
            let served = discovery::served(api, key).await.map_err(ApplyError::Api)?;
            let (version, plural) = served.ok_or(ApplyError::KindUnknown)?;
            delete_at(api, by, key, (&version, &plural), uid).await
        }
        other => other,
    }
}

async fn delete_at(
    api: &ApiServer,
    by: &By,
    key: &ObjectKey,
    (version, plural): (&str, &str),
    uid: Option<&str>,
) -> Result<Deleted, ApplyError> {
    let slash = if key.group.is_empty() { "" } else { "/" };
    let api_version = format!("{}{slash}{version}", key.group);
    let path = object_path(&api_version, plural, key.namespace.as_deref(), &key.name);
    let uid = match uid {
        Some(uid) => uid.to_owned(),
        // It may have been written just before the process ended: the live object shows whose it is.
        None => match apply::our_uid(api, key, &path).await? {
            Some(uid) => uid,
            None => return Ok(Deleted::Gone),
        },
    };
    apply::delete(api, &by.authority, (key, &path, &by.account.user()), &uid).await
}

#[cfg(test)]
mod tests {
    use attest_common::basics::ids::Name;
    use serde_json::json;

    use attest_common::basics::rate::RateLimit;

    use super::*;
    use crate::cluster::fake::FakeApi;
    use crate::ledger::records::tests::object_key;

    #[tokio::test]
    async fn what_lived_in_a_namespace_that_is_gone_is_gone_though_its_uid_was_never_recorded() {
        let fake = FakeApi::start().await;
        let (api, key) = (fake.open().await, object_key("ConfigMap", "a"));
        let path = object_path("v1", "configmaps", Some("shop"), "a");
        fake.forbid(&path);

        assert_eq!(apply::our_uid(&api, &key, &path).await.unwrap(), None);

        let namespace = json!({"metadata": {"name": "shop"}});
        api.create(&object_path("v1", "namespaces", None, ""), &namespace).await.unwrap();
        let error = apply::our_uid(&api, &key, &path).await.unwrap_err();
        assert!(error.is_forbidden(), "{error}");
    }

    #[tokio::test]
    async fn bindings_that_somebody_deleted_are_made_again_for_a_removal_and_no_namespace_is() {
        let fake = FakeApi::start().await;
        let (api, name) = (fake.open().await, |name| Name::new(name).unwrap());
        let account = Account::new(&name("web"), &name("shop"), "attest-accounts");
        let path = object_path("v1", "configmaps", Some("shop"), "a");
        fake.forbid(&path);
        let forbidden = ApplyError::Api(api.get(&path).await.unwrap_err());
        let limiter = RateLimiter::new(RateLimit::one_every(1, RIGHTS_EVERY));

        restore_rights(&api, &account, &ApplyError::KindUnknown, &limiter).await;
        assert!(api.get(&path).await.unwrap_err().is_forbidden());
        for _ in 0..3 {
            restore_rights(&api, &account, &forbidden, &limiter).await;
        }

        assert!(api.get(&path).await.unwrap_err().is_absent(), "the rights are there again");
        let asked = |end: &str| fake.asked().iter().filter(|path| path.ends_with(end)).count();
        assert_eq!((asked("/rolebindings"), asked("/namespaces")), (2, 0));
    }
}
