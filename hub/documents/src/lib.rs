//! The documents of the hub's JSON API, without behaviour.
//!
//! Lists are versioned (`apiVersion`, `kind`, `items`), so that `-o json` is a stable interface.
//! `docs/openapi.yaml` describes the same documents; a test keeps the two equal.

pub mod login;

use std::collections::BTreeMap;

use attest_common::basics::ids::{ClusterId, Timestamp};
use attest_common::basics::reason::ReportedReason;
use attest_common::objects::difference::Difference;
use attest_common::session::report::{ApplicationPhase, ObjectState, Refusal, Running, Timings};
use attest_common::verify::Check;
use serde::{Deserialize, Serialize};

/// `apiVersion` of every document.
pub const API_VERSION: &str = "attest.continuu.ms/v1";
/// Maximum size of a request body, in bytes.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Maximum number of items on one page of a list.
pub const PAGE_ITEMS_MAX: usize = 500;
/// Maximum size of the destinations of one application in an answer, in bytes; [`DetailQuery`] asks for all of them.
pub const DESTINATIONS_BYTES_MAX: usize = 40 * 1024;
/// Size from which a manifest is shown without its destinations, in bytes.
pub const MANIFEST_SHOWN_BYTES_MAX: usize = 16 * 1024;

/// A list in the form of Kubernetes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct List<T> {
    pub api_version: String,
    pub kind: String,
    #[serde(default, skip_serializing_if = "ListMetadata::is_whole")]
    pub metadata: ListMetadata,
    pub items: Vec<T>,
}

impl<T> List<T> {
    /// A list of items of this kind. The suffix `List` is added.
    pub fn new(kind: &str, items: Vec<T>) -> Self {
        let metadata = ListMetadata::default();
        Self { api_version: API_VERSION.to_owned(), kind: format!("{kind}List"), metadata, items }
    }
}

/// Position of one page in a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListMetadata {
    /// Value of the query parameter `continue` for the next page; absent on the last one.
    #[serde(rename = "continue")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl ListMetadata {
    fn is_whole(&self) -> bool {
        self.next.is_none()
    }
}

/// Query of `GET /v1/applications`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PageQuery {
    /// Most items of the page, at most [`PAGE_ITEMS_MAX`], which is the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// `metadata.continue` of the previous page.
    #[serde(rename = "continue")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// Query of `GET /v1/applications/NAME`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct DetailQuery {
    /// Every destination and object, in an answer of any size.
    #[serde(default)]
    pub all: bool,
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

/// `GET /v1/addresses`: where spokes reach the hub.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Addresses {
    /// `HOST:PORT` that spokes of other clusters dial, over UDP; absent while it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spokes: Option<String>,
    /// The cluster that the hub runs on; absent outside a cluster, and while it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_cluster: Option<OwnClusterAddress>,
}

/// Identity of the hub's own cluster, and the address for its spoke.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnClusterAddress {
    /// UID of the namespace `kube-system`.
    pub kube_system_uid: String,
    /// `HOST:PORT` that the spoke of this cluster dials, over UDP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spokes: Option<String>,
}

/// `GET /v1/configuration`: the settings in force, and where each comes from.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HubConfiguration {
    pub settings: Vec<Setting>,
    /// Problems of the ConfigMap; with `refused`, it is not in force, and the one before it is.
    pub problems: Vec<SettingProblem>,
}

/// One setting. Values of secrets are not shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Setting {
    pub name: String,
    pub value: String,
    /// `ConfigMap`, `flags` or `default`.
    pub source: String,
}

/// A key of the ConfigMap that is refused or has no effect.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SettingProblem {
    pub field: String,
    pub reason: ReportedReason,
    pub message: String,
    /// The whole ConfigMap is refused because of it.
    pub refused: bool,
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
    /// `Pending`, `Accepted`, `Evicted`, `IdentityCopied` or `Revoked`.
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
    /// Labels that operators gave the cluster.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Query of `GET /v1/clusters`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ClusterQuery {
    /// Only clusters with these labels, as in `kubectl get -l`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_selector: Option<String>,
}

/// `POST /v1/clusters/NAME/labels`: changes the labels of a cluster.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct LabelsRequest {
    /// Labels to add or replace.
    #[serde(default)]
    pub set: BTreeMap<String, String>,
    /// Keys of labels to remove.
    #[serde(default)]
    pub remove: Vec<String>,
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

/// `GET /v1/applications`: one application in a list.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApplicationSummary {
    pub name: String,
    /// `metadata.namespace` of the manifest, `default` when absent.
    pub namespace: String,
    pub phase: ApplicationPhase,
    /// Status of the condition `Ready`: `True`, `False` or `Unknown`.
    pub ready: String,
    pub reason: ReportedReason,
    /// Message of the condition `Ready`, shortened.
    pub message: String,
    /// Commit to which `targetRevision` resolves.
    pub revision: Option<String>,
    pub destination_counts: DestinationCounts,
    pub generation: u64,
    pub created_at: Timestamp,
}

/// Number of destinations in each phase.
pub type DestinationCounts = BTreeMap<ApplicationPhase, u64>;

/// `GET /v1/applications/NAME`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Application {
    pub name: String,
    /// `metadata.namespace` of the manifest, `default` when absent.
    pub namespace: String,
    /// The manifest as applied; without `spec.destinations` when it is large, unless all is asked for.
    pub manifest: serde_json::Value,
    pub phase: ApplicationPhase,
    pub conditions: Vec<Condition>,
    /// Commit to which `targetRevision` resolves.
    pub revision: Option<String>,
    pub destination_counts: DestinationCounts,
    /// Every destination; when there are too many for an answer, the worst ones.
    pub destinations: Vec<Destination>,
    pub generation: u64,
    pub created_at: Timestamp,
    /// The newest rollout by stages, without its stages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// `Created`, `Configured` or `Unchanged`; only in the answer to `PUT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
}

/// `POST /v1/resources/release`: the hub has let go of its resources.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Released {
    /// Number of resources that the hub managed.
    pub resources: usize,
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
    pub objects_total: u64,
    /// Absent where they are too many for the answer.
    pub objects: Vec<ObjectState>,
    pub warnings: Vec<String>,
    /// Checks that the running release passed at the spoke.
    #[serde(default)]
    pub checks: Vec<Check>,
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

/// `GET /v1/applications/NAME/rollout`; in lists, without stages.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    pub application: String,
    /// Number of the rollout within its application.
    pub generation: u64,
    /// Rises with each `retry`.
    pub attempt: u32,
    /// `Stages` or `Rollback`.
    pub kind: String,
    /// `Running`, `Held`, `Succeeded`, `Failed`, `Aborted` or `Superseded`.
    pub phase: String,
    pub reason: Option<ReportedReason>,
    pub message: String,
    pub paused: bool,
    /// The current stage waits for `promote`.
    pub awaits_approval: bool,
    /// Automatic sync is held until `resume` or another target.
    pub sync_held: bool,
    /// The newest commit with these targets.
    pub commit: Option<String>,
    pub version: Option<String>,
    /// Name of the current stage; absent after the last one.
    pub stage: Option<String>,
    pub stages_passed: u64,
    pub stages_total: u64,
    pub started_at: Timestamp,
    pub ended_at: Option<Timestamp>,
    /// The next step, or the command that continues.
    pub next: String,
    #[serde(default)]
    pub stages: Vec<RolloutStage>,
    /// Actions of operators, the oldest first.
    #[serde(default)]
    pub actions: Vec<RolloutAction>,
}

/// One stage of a rollout.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RolloutStage {
    pub name: String,
    /// Share of the traffic of each member, in percent.
    pub weight: u64,
    /// `Pending`, `AwaitingApproval`, `Rolling`, `Soaking`, `Passed`, `Failed` or `Aborted`.
    pub phase: String,
    /// Time for which every member is healthy before the stage passes.
    pub soak_ms: u64,
    pub approval: bool,
    /// Members in progress at a time.
    pub concurrent_max: u64,
    /// Members that may fail.
    pub failures_max: u64,
    /// The stage has the members of a later one.
    #[serde(default)]
    pub inherited: bool,
    pub members: Vec<RolloutMember>,
}

/// One destination of a stage.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RolloutMember {
    pub cluster: String,
    pub namespace: String,
    /// `Pending`, `Waiting`, `Progressing`, `Soaking`, `Passed`, `Finalized`, `Failed`, `Skipped` or `Gone`.
    pub phase: String,
    pub reason: Option<ReportedReason>,
    pub message: String,
    /// Time at target when the newest report was made; absent while it is not at target.
    pub healthy_for_ms: Option<u64>,
    pub connected: bool,
    /// Milliseconds since the last report was received.
    pub report_age_ms: Option<u64>,
}

/// Action of an operator on a rollout.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RolloutAction {
    pub at: Timestamp,
    /// Name in the operator's certificate.
    pub operator: String,
    pub action: String,
    pub reason: String,
}

/// `POST /v1/applications/NAME/rollout`: a command about the newest rollout.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RolloutRequest {
    /// `promote`, `pause`, `resume`, `abort`, `retry`, `rollback`, `skip` or `adopt`.
    pub action: String,
    /// Stored with the action.
    #[serde(default)]
    pub reason: String,
    /// Destination to skip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}
