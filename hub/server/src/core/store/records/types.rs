//! The types of the records, one for each table.

use std::collections::BTreeSet;

use attest_common::basics::envelope::{self, DIRECTIVE_TYPE};
use attest_common::basics::ids::{ClusterId, DestinationKey, Digest, Name, Timestamp};
use attest_common::basics::labels::{Labels, Selector};
use attest_common::basics::reason::{Reason, ReportedReason};
use attest_common::documents::plan::{Directive, Operation, RequestedPolicy, SyncPolicy};
use attest_common::session::report::{Phase, Report, Timings};
use attest_common::trust::policy;
use serde::{Deserialize, Serialize};

use super::Record;
use super::stages::ProgressiveDelivery;
use crate::core::certificates::Certificates;
use crate::core::store::{Table, result_key};

/// Registration state of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ClusterState {
    /// Joined; an operator has not accepted it yet.
    Pending,
    Accepted,
    /// Two holders of the identity are known; neither is admitted until the cluster rejoins.
    IdentityCopied,
    /// Permanently rejected under this identity.
    Revoked,
}

impl ClusterState {
    /// Every state.
    pub(crate) const ALL: [Self; 4] =
        [Self::Pending, Self::Accepted, Self::IdentityCopied, Self::Revoked];

    /// Returns the name shown to users.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Accepted => "Accepted",
            Self::IdentityCopied => "IdentityCopied",
            Self::Revoked => "Revoked",
        }
    }
}

/// A registered cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterRecord {
    pub id: ClusterId,
    pub name: Name,
    pub state: ClusterState,
    /// Ed25519, RFC 8032 encoding, hexadecimal.
    pub identity_key: String,
    pub kube_system_uid: String,
    /// The token used to join.
    pub token_id: String,
    #[serde(flatten)]
    pub certificates: Certificates,
    pub certificate_expires_at: Option<Timestamp>,
    pub registered_at: Timestamp,
    pub agent_version: Option<String>,
    pub kubernetes_version: Option<String>,
    pub revoked_because: Option<String>,
    /// Removed after it was revoked: kept to reject it, and not shown.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub removed: bool,
    /// Labels that operators gave it. They choose destinations and stages, and grant nothing.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

impl Record for ClusterRecord {
    const TABLE: Table = Table::Clusters;

    fn key(&self) -> String {
        self.id.to_string()
    }
}

/// A join token. The secret itself is not stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenRecord {
    pub id: String,
    pub cluster: Name,
    /// SHA-256 of the secret.
    pub secret_sha256: Digest,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    pub auto_accept: bool,
    pub replace: bool,
    /// The only cluster that may use it; already registered.
    #[serde(default)]
    pub identity: Option<ClusterId>,
    /// Failed proofs so far.
    pub failures: u32,
    pub revoked: bool,
    pub used: Option<TokenUse>,
}

/// Use of a token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenUse {
    pub at: Timestamp,
    pub cluster: ClusterId,
    /// `sha256:<hex>` of the certified TLS key.
    pub spki: String,
    /// PEM, leaf first: returned again to the same key for a limited time.
    pub chain_pem: Option<String>,
}

impl Record for TokenRecord {
    const TABLE: Table = Table::Tokens;

    fn key(&self) -> String {
        self.id.clone()
    }
}

/// An application with resolved references and defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Application {
    pub name: Name,
    /// `metadata.namespace` of the manifest, not the namespace of a destination.
    pub namespace: String,
    /// As written, validated.
    pub repo_url: String,
    pub revision: String,
    /// Clean, relative to the repository's root.
    pub path: String,
    /// Never empty. With those of `selectors` for the clusters that are known.
    pub destinations: Vec<Destination>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub selectors: Vec<SelectedDestinations>,
    /// Stages of its rollouts; without them, every destination is ordered immediately.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<ProgressiveDelivery>,
    pub asked: RequestedPolicy,
    /// True when at least one receipt must be required, by the application or by the policy of the cluster.
    #[serde(default)]
    pub receipts_required: bool,
    pub sync: SyncPolicy,
    /// False when a new commit waits for `app sync`.
    pub automated: bool,
}

impl Application {
    /// Returns the key of the destination in a namespace of a cluster.
    pub(crate) fn key_at(&self, cluster: &ClusterId, namespace: &Name) -> DestinationKey {
        DestinationKey {
            application: self.name.clone(),
            cluster: cluster.clone(),
            namespace: namespace.clone(),
        }
    }
}

/// One destination of an application.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Destination {
    pub cluster: Name,
    pub namespace: Name,
    pub path: Option<String>,
    /// Home stage, when the destination names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
}

/// A destination in every registered cluster with some labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SelectedDestinations {
    pub selector: Selector,
    pub namespace: Name,
    pub path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
}

impl SelectedDestinations {
    /// Returns the destination in a cluster.
    pub(crate) fn at(&self, cluster: &Name) -> Destination {
        let Self { namespace, path, stage, .. } = self.clone();
        Destination { cluster: cluster.clone(), namespace, path, stage }
    }
}

/// An applied application.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApplicationRecord {
    pub application: Application,
    /// As written.
    pub manifest: serde_json::Value,
    /// Incremented with every changed manifest.
    pub generation: u64,
    pub created_at: Timestamp,
    /// Deletion was requested: the application is being removed from every destination.
    pub deleting: bool,
    /// UID of the custom resource whose version this is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

#[cfg(test)]
impl ApplicationRecord {
    /// Returns an application that follows `main` of `url`, in the cluster and namespace of its own name.
    pub(crate) fn sample(name: &str, url: &str) -> Self {
        let name: Name = name.parse().unwrap();
        let destination =
            Destination { cluster: name.clone(), namespace: name.clone(), path: None, stage: None };
        let asked = RequestedPolicy {
            mode: attest_common::basics::terms::Mode::Strict,
            required_attestations: BTreeSet::new(),
            trusted_keys: None,
        };
        let application = Application {
            name,
            namespace: "default".into(),
            repo_url: url.into(),
            revision: "main".into(),
            path: "k8s".into(),
            destinations: vec![destination],
            selectors: Vec::new(),
            delivery: None,
            asked,
            sync: SyncPolicy::default(),
            receipts_required: false,
            automated: true,
        };
        Self {
            application,
            manifest: serde_json::Value::Null,
            generation: 1,
            created_at: Timestamp::UNIX_EPOCH,
            deleting: false,
            uid: None,
        }
    }
}

impl Record for ApplicationRecord {
    const TABLE: Table = Table::Applications;

    fn key(&self) -> String {
        self.application.name.to_string()
    }
}

/// A repository and its credentials.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RepositoryRecord {
    /// Normalised address.
    pub url: String,
    /// As written, with the user of ssh.
    pub address: String,
    pub username: Option<String>,
    pub password: Option<String>,
    pub ssh_key: Option<String>,
    pub known_hosts: Option<String>,
    pub ca: Option<String>,
    pub allow_push_credential: bool,
    /// Allows addresses of the hub's own machine.
    #[serde(default)]
    pub allow_loopback: bool,
    /// Result of the last check of push access; absent before the first.
    pub can_push: Option<bool>,
    /// Reason and message of the failure of the last check.
    pub problem: Option<(ReportedReason, String)>,
    pub checked_at: Option<Timestamp>,
}

impl std::fmt::Debug for RepositoryRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RepositoryRecord").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Record for RepositoryRecord {
    const TABLE: Table = Table::Repositories;

    fn key(&self) -> String {
        self.url.clone()
    }
}

/// An alias of the hub's keyring.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyRecord {
    pub alias: String,
    /// PEM.
    pub public_key: String,
}

impl Record for KeyRecord {
    const TABLE: Table = Table::Keys;

    fn key(&self) -> String {
        self.alias.clone()
    }
}

/// The trust policy that a spoke reports. Not authoritative: the spoke enforces its own copy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRecord {
    pub cluster: ClusterId,
    pub spec: policy::Spec,
    /// Features that the spoke announced.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub features: BTreeSet<String>,
}

impl Record for PolicyRecord {
    const TABLE: Table = Table::Policies;

    fn key(&self) -> String {
        self.cluster.to_string()
    }
}

/// The newest report of a destination.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReportRecord {
    pub cluster: ClusterId,
    pub received_at: Timestamp,
    pub report: Report,
    /// Time from the push of the directive to this report, by the hub's clock, in microseconds.
    pub push_to_report_us: Option<u64>,
}

impl ReportRecord {
    /// Returns the destination of the report.
    pub fn destination(&self) -> DestinationKey {
        DestinationKey {
            application: self.report.application.clone(),
            cluster: self.cluster.clone(),
            namespace: self.report.namespace.clone(),
        }
    }
}

impl Record for ReportRecord {
    const TABLE: Table = Table::Reports;

    fn key(&self) -> String {
        self.destination().to_string()
    }
}

/// Result of one directive.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResultRecord {
    pub destination: DestinationKey,
    pub sequence: u64,
    pub result: String,
    pub reason: ReportedReason,
    pub at: Timestamp,
}

impl ResultRecord {
    pub(super) fn key_of(destination: &DestinationKey, sequence: u64) -> String {
        result_key(&destination.to_string(), sequence)
    }
}

impl Record for ResultRecord {
    const TABLE: Table = Table::Results;

    fn key(&self) -> String {
        Self::key_of(&self.destination, self.sequence)
    }
}

/// Durations of the parts of a change, in microseconds, by the clock of the hub or spoke that performed them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChangeTimings {
    pub git_us: u64,
    pub render_us: u64,
    pub verify_us: u64,
    pub plan_us: u64,
    /// Time from the push to the spoke's report, by the hub's clock.
    pub push_to_report_us: u64,
    pub total_us: u64,
    pub spoke: Timings,
}

/// One entry of a ledger: a directive and its plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LedgerEntry {
    pub epoch: u64,
    pub sequence: u64,
    pub generation: u64,
    pub attempt: u32,
    pub operation: Operation,
    /// The signed envelope.
    pub directive: String,
    /// SHA-256 of its payload.
    pub digest: Digest,
    pub issued_at: Timestamp,
    pub expires_at: Timestamp,
    /// Absent for `Remove`.
    pub planned: Option<Planned>,
    /// The plan becomes a good one only by an order of the hub.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hub_finalized: bool,
    /// The soak of the plan stands still.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    #[serde(default)]
    pub timings: ChangeTimings,
}

impl LedgerEntry {
    /// Returns whether this directive is a removal and the spoke reports that nothing is left.
    pub(crate) fn is_removed(&self, report: Option<&ReportRecord>) -> bool {
        let Some(report) = report.map(|record| &record.report) else { return false };
        let removed = report.phase == Phase::Removed && report.sequence == Some(self.sequence);
        let nothing_there = report.refusal.as_ref().is_some_and(|refusal| {
            refusal.reason == Reason::NothingToRemove && refusal.sequence == Some(self.sequence)
        });
        self.operation == Operation::Remove && (removed || nothing_there)
    }

    /// Returns whether a spoke reports that the plan of this directive runs.
    pub(crate) fn runs_in(&self, report: &Report) -> bool {
        let ordered = self.planned.as_ref().map(|planned| planned.plan);
        ordered.is_some() && report.running.as_ref().map(|running| running.plan) == ordered
    }

    /// Returns whether only a spoke that carries out rollouts accepts this directive.
    pub(crate) fn needs_rollout(&self) -> bool {
        self.hub_finalized || !matches!(self.operation, Operation::Progress | Operation::Remove)
    }

    /// Returns the document that was signed.
    pub(crate) fn signed_directive(&self) -> Option<Directive> {
        let (payload, _) = envelope::peek(self.directive.as_bytes(), DIRECTIVE_TYPE)?;
        serde_json::from_slice(&payload).ok()
    }

    /// Returns the commit of `plan`, if it is the plan of this directive.
    pub fn commit_of(&self, plan: &Digest) -> Option<String> {
        let planned = self.planned.as_ref()?;
        (planned.plan == *plan).then(|| planned.commit.clone())
    }
}

/// Description of a directive's plan, for comparison and display.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Planned {
    /// SHA-256 of the plan's payload.
    pub plan: Digest,
    /// SHA-256 of the plan's envelope.
    pub envelope: Digest,
    /// Blobs of the plan, in the order they are sent.
    pub blobs: Vec<Digest>,
    pub release: Digest,
    pub content: Digest,
    pub render: String,
    pub version: String,
    pub counter: u64,
    pub repo: String,
    /// Commit that renders to the content.
    pub commit: String,
    /// Commit from which CI signed.
    pub signed_commit: String,
}
