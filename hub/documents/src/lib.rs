//! The documents of the hub's JSON API: what `attest` sends and what it is shown. No behaviour.
//!
//! Lists are versioned (`apiVersion`, `kind`, `items`) so that `-o json` is a stable interface.
//! `docs/openapi.yaml` describes the same documents; a test keeps the two equal.

use attest_common::basics::ids::{ClusterId, Timestamp};
use attest_common::objects::difference::Difference;
use attest_common::session::report::{ObjectState, Refusal, Running, Timings};
use serde::{Deserialize, Serialize};

/// `apiVersion` of every document.
pub const API_VERSION: &str = "attest.continuu.ms/v1";
/// Largest request body in bytes.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;

/// A list as kubectl users know it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct List<T> {
    pub api_version: String,
    pub kind: String,
    pub items: Vec<T>,
}

impl<T> List<T> {
    /// A list of `kind` (without the suffix).
    pub fn new(kind: &str, items: Vec<T>) -> Self {
        Self { api_version: API_VERSION.to_owned(), kind: format!("{kind}List"), items }
    }
}

/// Body of every answer that is not a success.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// A stable word.
    pub reason: String,
    /// What is wrong and what to do, for people.
    pub message: String,
    /// Path of the field at fault, when there is one: `spec.verification.trustedKeys[0]`.
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

/// `POST /v1/tokens`: make a single-use join token.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TokenRequest {
    pub cluster: String,
    pub ttl_seconds: u64,
    /// True for tokens of `cluster add`: the operator who holds the cluster vouches for it.
    pub auto_accept: bool,
    /// Replace a cluster of this name that is registered already.
    #[serde(default)]
    pub replace: bool,
    /// The registered cluster of this name that is to get a new certificate; nobody else may use the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<ClusterId>,
}

/// A token. `token` is shown once, by the answer that made it.
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
    pub connected: bool,
    /// Milliseconds since the hub last heard anything, 0 while connected; absent when never.
    pub last_seen_age_ms: Option<u64>,
    pub environment: Option<String>,
    pub agent_version: Option<String>,
    pub kubernetes_version: Option<String>,
    /// `SHA256:` fingerprint of the identity key, for `cluster accept`.
    pub fingerprint: String,
    pub certificate_expires_at: Option<Timestamp>,
    pub applications: u64,
    /// True for the cluster that a destination without one means.
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

/// `PUT /v1/repositories`: credentials travel to the hub and are never shown again.
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

/// `PUT /v1/keys`: an alias of the hub's own, non-authoritative keyring.
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
    pub reason: String,
    pub message: String,
    pub last_transition_time: Timestamp,
}

/// Why `PUT /v1/applications` is refused that takes a running destination away.
pub const REMOVAL_UNCONFIRMED: &str = "RemovalUnconfirmed";
/// The query with which it is not.
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
    /// `Synced`, `OutOfSync`, `Progressing`, `Degraded`, `Refused`, `AwaitingReceipts` or `Unknown`.
    pub phase: String,
    pub conditions: Vec<Condition>,
    /// Commit that `targetRevision` names now.
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
    pub phase: String,
    pub reason: String,
    pub message: String,
    pub health: Option<String>,
    /// What the spoke says runs, who signed it, since when.
    pub running: Option<Running>,
    /// Commit whose rendering was deployed.
    pub deployed_commit: Option<String>,
    pub refusal: Option<Refusal>,
    pub epoch: Option<u64>,
    pub sequence: Option<u64>,
    pub connected: bool,
    /// Milliseconds since the newest report arrived.
    pub report_age_ms: Option<u64>,
    pub drifted: Vec<String>,
    pub heals_total: u64,
    /// Left out of lists.
    pub objects: Vec<ObjectState>,
    pub warnings: Vec<String>,
    /// Where the time of the newest change went, microseconds by the hub's and the spoke's own clocks.
    pub timings: Option<ChangeTimings>,
}

/// Commit to applied, in parts. Hub parts by the hub's clock, spoke parts by the spoke's.
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

/// `GET /v1/applications/NAME/history`: one line a directive, newest first.
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
    /// Result the spoke reported: phase, or `Pending`.
    pub result: String,
    pub reason: String,
    pub issued_at: Timestamp,
}

/// `GET /v1/applications/NAME/diff`: the newest commit against what runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Diff {
    pub cluster: String,
    pub namespace: String,
    pub from: Option<String>,
    pub to: Option<String>,
    pub differences: Vec<Difference>,
    /// Why the newest commit does not run there, or cannot be compared with what does.
    pub reason: Option<String>,
    pub message: Option<String>,
}
