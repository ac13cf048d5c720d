//! AttestApplication as people write it: field names and shapes only. What it means is `lower`.
//!
//! The product's documents mix spellings (`repoUrl`, `repoURL`, `required_policies`); every one that
//! they print is accepted. Everything else unknown is refused with its path.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `apiVersion` of the manifest.
pub(crate) const API_VERSION: &str = "attest.continuu.ms/v1";
/// `kind` of the manifest.
pub(crate) const APPLICATION_KIND: &str = "AttestApplication";

/// The whole manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub api_version: String,
    pub kind: String,
    pub metadata: Metadata,
    pub spec: Spec,
}

/// The part of `metadata` that people write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Metadata {
    pub name: String,
    pub namespace: Option<String>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// `spec`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Spec {
    pub source: Source,
    pub destination: Option<Destination>,
    pub destinations: Option<Vec<Destination>>,
    pub verification: Option<Verification>,
    pub receipt_verification: Option<ReceiptVerification>,
    pub sync_policy: Option<SyncPolicy>,
    /// Not yet carried out.
    pub progressive_delivery: Option<Value>,
    /// Not yet carried out.
    pub strategy: Option<Value>,
}

/// `spec.source`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Source {
    #[serde(alias = "repoURL")]
    pub repo_url: String,
    pub target_revision: Option<String>,
    pub path: String,
}

/// Where the application runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Destination {
    pub cluster: Option<String>,
    pub namespace: String,
    pub path: Option<String>,
}

/// `spec.verification`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Verification {
    pub enabled: Option<bool>,
    pub trusted_keys: Option<Vec<String>>,
    pub policy: Option<String>,
    /// The product's documents are printed without indentation: it may stand here or one level up.
    pub receipt_verification: Option<ReceiptVerification>,
    /// Not yet carried out.
    #[serde(alias = "policy_validation")]
    pub policy_validation: Option<Value>,
    /// Not yet carried out.
    #[serde(alias = "custom_hooks")]
    pub custom_hooks: Option<Value>,
}

/// Which attestations are asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct ReceiptVerification {
    pub required: Option<bool>,
    #[serde(alias = "required_attestations")]
    pub required_attestations: Option<Vec<String>>,
}

/// `spec.syncPolicy`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct SyncPolicy {
    pub automated: Option<Automated>,
    #[serde(default)]
    pub sync_options: Vec<String>,
}

/// `spec.syncPolicy.automated`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Automated {
    #[serde(default)]
    pub prune: bool,
    #[serde(default, alias = "selfheal")]
    pub self_heal: bool,
}
