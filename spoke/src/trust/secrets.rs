//! The spoke's own Secrets: encoding, and compare-and-swap that tolerates a lost response. Decides nothing.
//!
//! After an error of a write the outcome is unknown: the Secret is read back and compared.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::ObjectMeta;

use crate::SPOKE_NAMESPACE;
use crate::cluster::client::{ApiServer, path_of};
use crate::cluster::error::ApiError;

/// Result of a compare-and-swap.
#[derive(Debug)]
pub(crate) enum Swapped {
    /// The Secret is stored, as returned.
    Done(Secret),
    /// Another writer was faster. Holds the current Secret, or `None` if it was deleted.
    Overtaken(Option<Secret>),
}

/// Path of the collection.
pub(crate) fn collection() -> String {
    path_of::<Secret>(Some(SPOKE_NAMESPACE), "")
}

/// Path of one Secret.
pub(crate) fn path(name: &str) -> String {
    path_of::<Secret>(Some(SPOKE_NAMESPACE), name)
}

/// Returns a Secret of the spoke's namespace. An empty `version` means that it must not exist yet.
pub(crate) fn secret<V: AsRef<[u8]>>(
    name: &str,
    version: &str,
    data: &BTreeMap<&str, V>,
) -> Secret {
    let value = |bytes: &V| ByteString(bytes.as_ref().to_vec());
    let data = data.iter().map(|(key, bytes)| ((*key).to_owned(), value(bytes)));
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(SPOKE_NAMESPACE.to_owned()),
            resource_version: Some(version.to_owned()).filter(|version| !version.is_empty()),
            ..ObjectMeta::default()
        },
        type_: Some("Opaque".to_owned()),
        data: Some(data.collect()),
        ..Secret::default()
    }
}

/// Returns labels or annotations.
pub(crate) fn texts<const N: usize>(
    entries: [(&str, String); N],
) -> Option<BTreeMap<String, String>> {
    Some(entries.map(|(name, value)| (name.to_owned(), value)).into())
}

/// Returns one value of a Secret.
pub(crate) fn bytes<'a>(secret: &'a Secret, key: &str) -> Option<&'a [u8]> {
    secret.data.as_ref()?.get(key).map(|value| value.0.as_slice())
}

/// Creates the Secret, or replaces exactly the version that `secret` names. `is_ours` returns whether a
/// Secret that is found after an error is the one that was written.
///
/// # Errors
/// [`ApiError`] if it was not written, or if the outcome cannot be determined.
pub(crate) async fn swap(
    api: &ApiServer,
    secret: &Secret,
    is_ours: impl Fn(&Secret) -> bool,
) -> Result<Swapped, ApiError> {
    let version = resource_version(secret);
    let name = secret.metadata.name.as_deref().unwrap_or_default();
    let written = if version.is_empty() {
        api.create(&collection(), secret).await
    } else {
        api.replace(&path(name), secret).await
    };
    let error = match written {
        Ok(written) => return Ok(Swapped::Done(written)),
        Err(error) => error,
    };
    match api.read_optional(&path(name)).await? {
        None if error.is_not_found() => Ok(Swapped::Overtaken(None)),
        Some(found) if resource_version(&found) != version => {
            Ok(if is_ours(&found) { Swapped::Done(found) } else { Swapped::Overtaken(Some(found)) })
        }
        Some(_) | None => Err(error),
    }
}

/// Returns the version of an object, or an empty text.
pub(crate) fn resource_version(secret: &Secret) -> String {
    secret.metadata.resource_version.clone().unwrap_or_default()
}
