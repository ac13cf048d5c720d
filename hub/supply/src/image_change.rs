//! A declared change of an image reference, as written in `attest.yaml` and applied by rendering.

use serde::{Deserialize, Serialize};

/// One image change, with the meaning of kustomize's `images`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ImageChange {
    /// Name of the image in the rendered objects, without tag and digest.
    pub name: String,
    /// New name.
    pub new_name: Option<String>,
    /// New tag.
    pub new_tag: Option<String>,
    /// New digest, `sha256:…`.
    pub digest: Option<String>,
    /// Step whose result contains the digest for the release statement.
    pub from: Option<String>,
}
