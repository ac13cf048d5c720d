//! The spoke's own Secrets: encoding, and compare-and-swap that tolerates a lost response. Decides nothing.
//!
//! After an error of a write the outcome is unknown: the Secret is read back and compared.

use std::collections::BTreeMap;

use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::SYSTEM_NAMESPACE;
use crate::cluster::client::{ApiServer, object_path};
use crate::cluster::error::ApiError;

/// Result of a compare-and-swap.
#[derive(Debug)]
pub(crate) enum Swapped {
    /// The Secret is stored, as returned.
    Done(Value),
    /// Another writer was faster. Holds the current Secret, or `None` if it was deleted.
    Overtaken(Option<Value>),
}

/// Path of the collection.
pub(crate) fn collection() -> String {
    object_path("v1", "secrets", Some(SYSTEM_NAMESPACE), "")
}

/// Path of one Secret.
pub(crate) fn path(name: &str) -> String {
    object_path("v1", "secrets", Some(SYSTEM_NAMESPACE), name)
}

/// Returns a Secret. `metadata` is added to name and namespace. An empty `version` means that it must not
/// exist yet.
pub(crate) fn body<V: AsRef<[u8]>>(
    name: &str,
    version: &str,
    metadata: Value,
    data: &BTreeMap<&str, V>,
) -> Value {
    let data: BTreeMap<&str, String> =
        data.iter().map(|(key, bytes)| (*key, BASE64.encode(bytes.as_ref()))).collect();
    let mut all = metadata;
    if let Some(fields) = all.as_object_mut() {
        fields.insert("name".to_owned(), name.into());
        fields.insert("namespace".to_owned(), SYSTEM_NAMESPACE.into());
        if !version.is_empty() {
            fields.insert("resourceVersion".to_owned(), version.into());
        }
    }
    json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": all, "data": data})
}

/// Returns one value of a Secret.
pub(crate) fn bytes(secret: &Value, key: &str) -> Option<Vec<u8>> {
    let text = secret.get("data")?.get(key)?.as_str()?;
    BASE64.decode(text.as_bytes()).ok()
}

/// Creates the Secret, or replaces exactly the version that `body` names. `is_ours` returns whether a
/// Secret that is found after an error is the one that was written.
///
/// # Errors
/// [`ApiError`] if it was not written, or if the outcome cannot be determined.
pub(crate) async fn swap(
    api: &ApiServer,
    body: &Value,
    is_ours: impl Fn(&Value) -> bool,
) -> Result<Swapped, ApiError> {
    let version = resource_version(body);
    let name = body.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    let written = if version.is_empty() {
        api.create(&collection(), body).await
    } else {
        api.replace(&path(name), body).await
    };
    let error = match written {
        Ok(secret) => return Ok(Swapped::Done(secret)),
        Err(error) => error,
    };
    match api.get_optional(&path(name)).await? {
        None if error.is_not_found() => Ok(Swapped::Overtaken(None)),
        Some(found) if resource_version(&found) != version => {
            Ok(if is_ours(&found) { Swapped::Done(found) } else { Swapped::Overtaken(Some(found)) })
        }
        Some(_) | None => Err(error),
    }
}

/// `metadata.resourceVersion` as text.
pub(crate) fn resource_version(object: &Value) -> String {
    let version = object.pointer("/metadata/resourceVersion").and_then(Value::as_str);
    version.unwrap_or_default().to_owned()
}
