//! The soak of a destination's plan, in a Secret of its own. Written at most once a minute, and only while a plan soaks.
//!
//! It is not part of the record: losing it costs time, and no order.

use std::collections::BTreeMap;

use attest_common::record::custody::{PROGRESS_KEY, StoredSoak, progress_secret};
use k8s_openapi::api::core::v1::Secret;

use super::records::Key;
use crate::cluster::client::ApiServer;
use crate::cluster::error::ApiError;
use crate::trust::secrets::{bytes, collection, path, secret};

/// Stores the soak of a destination.
///
/// # Errors
/// [`ApiError`].
pub async fn store_soak(api: &ApiServer, key: &Key, soak: &StoredSoak) -> Result<(), ApiError> {
    let name = progress_secret(&key.0, &key.1);
    let json = serde_json::to_vec(soak).unwrap_or_default();
    let body = secret(&name, "", &BTreeMap::from([(PROGRESS_KEY, json.as_slice())]));
    match api.replace(&path(&name), &body).await {
        Err(error) if error.is_not_found() => api.create(&collection(), &body).await.map(|_| ()),
        other => other.map(|_| ()),
    }
}

/// Returns the stored soak of a destination, if there is one that can be read.
///
/// # Errors
/// [`ApiError`].
pub async fn stored_soak(api: &ApiServer, key: &Key) -> Result<Option<StoredSoak>, ApiError> {
    let found: Option<Secret> = api.read_optional(&path(&progress_secret(&key.0, &key.1))).await?;
    let json = found.as_ref().and_then(|secret| bytes(secret, PROGRESS_KEY));
    Ok(json.and_then(|json| serde_json::from_slice(json).ok()))
}

/// Deletes the stored soak of a destination.
///
/// # Errors
/// [`ApiError`].
pub async fn drop_soak(api: &ApiServer, key: &Key) -> Result<(), ApiError> {
    api.delete_own(&path(&progress_secret(&key.0, &key.1))).await
}

#[cfg(test)]
mod tests {
    use attest_common::basics::ids::Digest;

    use super::*;
    use crate::cluster::fake::FakeApi;

    #[tokio::test]
    async fn the_newest_soak_of_a_destination_is_kept_until_it_is_dropped() {
        let fake = FakeApi::start().await;
        let (api, key) = (fake.open().await, ("web".parse().unwrap(), "shop".parse().unwrap()));
        let soak = |healthy_for_ms| StoredSoak {
            plan: Digest::of(b"plan"),
            healthy_for_ms,
            pods: Digest::of(b"pods"),
        };
        assert_eq!(stored_soak(&api, &key).await.unwrap(), None);

        for milliseconds in [60_000, 120_000] {
            store_soak(&api, &key, &soak(milliseconds)).await.unwrap();
            assert_eq!(stored_soak(&api, &key).await.unwrap(), Some(soak(milliseconds)));
        }
        drop_soak(&api, &key).await.unwrap();
        drop_soak(&api, &key).await.unwrap();

        assert_eq!(stored_soak(&api, &key).await.unwrap(), None);
    }
}
