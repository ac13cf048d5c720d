//! A declared change of an image reference, as `attest.yaml` writes it and rendering applies it.

use serde::Deserialize;

/// One image change, with the meaning of kustomize's `images`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ImageChange {
    /// Image name in the rendered objects, without tag and digest.
    pub name: String,
    /// Name to use instead.
    pub new_name: Option<String>,
    /// Tag to use.
    pub new_tag: Option<String>,
    /// Digest to use, `sha256:…`.
    pub digest: Option<String>,
    /// Step whose result gives the digest that the release statement lists.
    pub from: Option<String>,
}
