//! The manifest of an AttestApplication: field names and types only. `lower` defines its meaning.
//!
//! The product's documents mix spellings (`repoUrl`, `repoURL`, `required_policies`); all of them are accepted. Other
//! unknown fields are rejected with their path.

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

/// The supported part of `metadata`.
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
    pub progressive_delivery: Option<ProgressiveDelivery>,
    /// `RollingUpdate`, which is the default; others are rejected, because they are not supported yet.
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

/// `spec.destination`, and an entry of `spec.destinations`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Destination {
    pub cluster: Option<String>,
    /// In place of `cluster`: every registered cluster with these labels.
    pub cluster_selector: Option<ClusterSelector>,
    pub namespace: String,
    pub path: Option<String>,
    /// Home stage in place of the one that label, name or environment of the cluster give.
    pub stage: Option<String>,
}

/// A label selector as in Kubernetes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct ClusterSelector {
    #[serde(default)]
    pub match_labels: BTreeMap<String, String>,
    #[serde(default)]
    pub match_expressions: Vec<MatchExpression>,
}

/// An entry of `matchExpressions`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct MatchExpression {
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    pub operator: String,
    #[serde(default)]
    pub values: Vec<String>,
}

/// `spec.progressiveDelivery`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct ProgressiveDelivery {
    pub enabled: bool,
    #[serde(default)]
    pub stages: Vec<Stage>,
}

/// An entry of `spec.progressiveDelivery.stages`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Stage {
    pub name: String,
    pub weight: Option<Value>,
    pub duration: Option<Value>,
    pub clusters: Option<Vec<String>>,
    pub cluster_selector: Option<ClusterSelector>,
    pub max_concurrency: Option<Value>,
    pub max_failures: Option<Value>,
    pub approval: Option<Approval>,
    pub progress_deadline: Option<Value>,
    /// `Wait`, which is the default.
    pub unreachable: Option<Value>,
    /// Rejected: not supported yet.
    pub success_criteria: Option<Value>,
}

/// `approval` of a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Approval {
    pub required: bool,
}

/// `spec.verification`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Verification {
    pub enabled: Option<bool>,
    pub trusted_keys: Option<Vec<String>>,
    pub policy: Option<String>,
    /// The product's documents are printed without indentation: the field is accepted here and one level up.
    pub receipt_verification: Option<ReceiptVerification>,
    /// Rejected: not supported yet.
    #[serde(alias = "policy_validation")]
    pub policy_validation: Option<Value>,
    /// Rejected: not supported yet.
    #[serde(alias = "custom_hooks")]
    pub custom_hooks: Option<Value>,
}

/// `receiptVerification`: the required attestations.
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

#[cfg(test)]
mod tests;
