//! The documents of the hub's JSON API, without behaviour.
//!
//! Lists are versioned (`apiVersion`, `kind`, `items`), so that `-o json` is a stable interface.
//! `docs/openapi.yaml` describes the same documents; a test keeps the two equal.

use attest_common::basics::ids::{ClusterId, Timestamp};
use attest_common::basics::reason::ReportedReason;
use attest_common::objects::difference::Difference;
use attest_common::session::report::{ApplicationPhase, ObjectState, Refusal, Running, Timings};
use serde::{Deserialize, Serialize};

/// `apiVersion` of every document.
pub const API_VERSION: &str = "attest.continuu.ms/v1";
/// Maximum size of a request body, in bytes.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;

/// A list in the form of Kubernetes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct List<T> {
    pub api_version: String,
    pub kind: String,
    pub items: Vec<T>,
}

impl<T> List<T> {
    /// A list of items of this kind. The suffix `List` is added.
    pub fn new(kind: &str, items: Vec<T>) -> Self {
        Self { api_version: API_VERSION.to_owned(), kind: format!("{kind}List"), items }
    }
}

/// Body of every unsuccessful answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    pub reason: ReportedReason,
    /// The problem and its remedy, for people.
    pub message: String,
    /// Path of the invalid field, if there is one: `spec.verification.trustedKeys[0]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

/// `GET /v1/version`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Version {
    pub version: String,
    pub protocol: u32,
    pub hub_key_id: String,
}

/// `POST /v1/tokens`: creates a single-use join token.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TokenRequest {
    pub cluster: String,
    pub ttl_seconds: u64,
    /// Accept the cluster without `cluster accept`. True for tokens of `cluster add`, whose operator has access to the
    /// cluster.
    pub auto_accept: bool,
    /// Replace a registered cluster of this name.
    #[serde(default)]
    pub replace: bool,
    /// The registered cluster that gets a new certificate. No other cluster can use the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<ClusterId>,
}

/// A join token. `token` is contained only in the answer to its creation.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Token {
    pub id: String,
    pub cluster: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    pub expires_at: Timestamp,
    /// `Unused`, `Used`, `Expired` or `Revoked`.
    pub state: String,
    pub auto_accept: bool,
}

/// `GET /v1/clusters[/NAME]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    pub name: String,
    pub id: ClusterId,
    /// `Pending`, `Accepted`, `Evicted` or `Revoked`.
    pub state: String,
    /// Reason that the operator gave for the revocation; absent unless the cluster is revoked.
    pub revoked_because: Option<String>,
    pub connected: bool,
    /// Milliseconds since the cluster was last connected, 0 while connected; absent if it never was.
    pub last_seen_age_ms: Option<u64>,
    pub environment: Option<String>,
    pub agent_version: Option<String>,
    pub kubernetes_version: Option<String>,
    /// `SHA256:` fingerprint of the identity key, for `cluster accept`.
    pub fingerprint: String,
    pub certificate_expires_at: Option<Timestamp>,
    pub applications: u64,
    /// True for the cluster of a destination that names none.
    pub default: bool,
    pub registered_at: Timestamp,
    pub kube_system_uid: String,
}

/// `POST /v1/clusters/NAME/accept`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AcceptRequest {
    pub fingerprint: String,
}

/// `POST /v1/clusters/NAME/revoke`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RevokeRequest {
    pub reason: String,
}

/// `PUT /v1/repositories`. Credentials are sent to the hub and never returned.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RepositoryRequest {
    pub url: String,
    #[serde(default)]
    pub username: Option<String>,
    #[serde(default)]
    pub password: Option<String>,
    #[serde(default)]
    pub ssh_key: Option<String>,
    #[serde(default)]
    pub known_hosts: Option<String>,
    #[serde(default)]
    pub ca: Option<String>,
    #[serde(default)]
    pub allow_push_credential: bool,
    /// Allows addresses of the hub's own machine.
    #[serde(default)]
    pub allow_loopback: bool,
}

/// `DELETE /v1/repositories`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RepositoryRemoval {
    pub url: String,
}

/// `GET /v1/repositories`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Repository {
    pub url: String,
    /// `None`, `Basic` or `Ssh`.
    pub credential: String,
    pub conditions: Vec<Condition>,
}

/// `PUT /v1/keys`: an alias of a key, which grants no trust.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct KeyRequest {
    pub alias: String,
    pub public_key: String,
}

/// `GET /v1/keys`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Key {
    pub alias: String,
    pub key_id: String,
}

/// A condition in the Kubernetes form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    pub reason: ReportedReason,
    pub message: String,
    pub last_transition_time: Timestamp,
}

/// Query of a `PUT /v1/applications` that confirms the removal of running destinations; without it, such a request is
/// rejected as `RemovalUnconfirmed`.
pub const REMOVAL_ALLOWED: &str = "remove=true";

/// `GET /v1/applications[/NAME]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Application {
    pub name: String,
    /// `metadata.namespace` of the manifest, `default` when absent.
    pub namespace: String,
    /// The manifest as applied.
    pub manifest: serde_json::Value,
    pub phase: ApplicationPhase,
    pub conditions: Vec<Condition>,
    /// Commit to which `targetRevision` resolves.
    pub revision: Option<String>,
    pub destinations: Vec<Destination>,
    pub generation: u64,
    pub created_at: Timestamp,
    /// `Created`, `Configured` or `Unchanged`; only in the answer to `PUT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
}

/// One destination of an application.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Destination {
    pub cluster: String,
    pub cluster_id: Option<ClusterId>,
    pub namespace: String,
    pub phase: ApplicationPhase,
    pub reason: ReportedReason,
    pub message: String,
    pub health: Option<String>,
    /// The running release, its signers and its start, as reported by the spoke.
    pub running: Option<Running>,
    /// Commit whose rendering was deployed.
    pub deployed_commit: Option<String>,
    pub refusal: Option<Refusal>,
    pub epoch: Option<u64>,
    pub sequence: Option<u64>,
    pub connected: bool,
    /// Milliseconds since the last report was received.
    pub report_age_ms: Option<u64>,
    pub drifted: Vec<String>,
    pub heals_total: u64,
    /// Not contained in lists.
    pub objects: Vec<ObjectState>,
    pub warnings: Vec<String>,
    /// Durations of the newest change.
    pub timings: Option<ChangeTimings>,
}

/// Durations of a change from commit to applied, in microseconds. Each component uses its own clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChangeTimings {
    pub git_us: u64,
    pub render_us: u64,
    pub verify_us: u64,
    pub plan_us: u64,
    /// From the push to the spoke's report, by the hub's clock.
    pub push_to_report_us: u64,
    pub total_us: u64,
    pub spoke: Timings,
}

/// `GET /v1/applications/NAME/history`: one entry per directive, newest first.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HistoryEntry {
    pub cluster: String,
    pub namespace: String,
    pub epoch: u64,
    pub sequence: u64,
    pub operation: String,
    pub commit: Option<String>,
    pub version: Option<String>,
    pub counter: Option<u64>,
    pub plan: Option<String>,
    /// Phase reported by the spoke, or `Pending`.
    pub result: String,
    pub reason: ReportedReason,
    pub issued_at: Timestamp,
}

/// `GET /v1/applications/NAME/diff`: the newest commit compared with the running state.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Diff {
    pub cluster: String,
    pub namespace: String,
    pub from: Option<String>,
    pub to: Option<String>,
    pub differences: Vec<Difference>,
    /// Reason why the newest commit is not deployed or cannot be compared.
    pub reason: Option<ReportedReason>,
    pub message: Option<String>,
}
