//! The stored form of the rollouts of an application.

use std::collections::{BTreeMap, BTreeSet};

use attest_common::basics::ids::{DestinationKey, Digest, Name, Timestamp};
use attest_common::basics::reason::ReportedReason;
use serde::{Deserialize, Serialize};

use super::{Planned, Record};
use crate::core::store::Table;

/// A stage with its members, fixed at the start of a rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedStage {
    pub name: String,
    pub weight: u8,
    pub soak_ms: u64,
    pub concurrent_max: usize,
    pub failures_max: usize,
    pub approval: bool,
    pub progress_deadline_ms: Option<u64>,
    /// True when the stage has the members of a later one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inherited: bool,
    /// Indexes of the members, in the order in which they are granted.
    pub members: Vec<usize>,
}

/// A rollout as it was decided at its start. Written once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RolloutSnapshot {
    pub application: Name,
    pub generation: u64,
    pub kind: RolloutKind,
    pub stages: Vec<ResolvedStage>,
    /// In the order in which the application names them.
    pub members: Vec<RolloutMember>,
    /// The signed plans of the targets.
    pub plans: Vec<Planned>,
}

impl RolloutSnapshot {
    /// Returns the signed plan with this digest.
    pub(crate) fn planned(&self, plan: &Digest) -> Option<&Planned> {
        self.plans.iter().find(|planned| planned.plan == *plan)
    }

    /// Returns the index of a destination among the members.
    pub(crate) fn member(&self, destination: &DestinationKey) -> Option<usize> {
        self.members.iter().position(|member| member.destination == *destination)
    }

    fn key_of(application: &Name, generation: u64) -> String {
        format!("{SNAPSHOTS}{application}/{}", newest_first(generation))
    }
}

/// Returns a word that sorts later generations first.
fn newest_first(generation: u64) -> String {
    format!("{:020}", u64::MAX - generation)
}

/// First part of the keys of snapshots, and of states.
pub(super) const SNAPSHOTS: &str = "snapshot/";
pub(super) const STATES: &str = "state/";

impl Record for RolloutSnapshot {
    const TABLE: Table = Table::Rollouts;

    fn key(&self) -> String {
        Self::key_of(&self.application, self.generation)
    }
}

/// Kind of a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RolloutKind {
    /// Members move to new targets, stage by stage.
    Stages,
    /// An operator returned members to an earlier plan, everywhere at the same time.
    Rollback,
}

/// One destination of a rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RolloutMember {
    pub destination: DestinationKey,
    /// Name of the cluster at the start.
    pub cluster: Name,
    pub target: MemberTarget,
    /// Its target has the content that runs: it was ordered at the start, outside the stages.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_immediate: bool,
    /// With [`RolloutKind::Rollback`], the plan from which the member returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Digest>,
}

impl RolloutMember {
    /// Returns cluster and namespace, for messages.
    pub(crate) fn shown(&self) -> String {
        format!("{}/{}", self.cluster, self.destination.namespace)
    }
}

/// Target of a member.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum MemberTarget {
    /// SHA-256 of the plan's payload.
    Plan(Digest),
    /// There is none yet; the stage of the member waits for it.
    Awaiting(MemberReason),
    /// The hub's own checks refuse the commit there.
    Refused(MemberReason),
}

impl MemberTarget {
    /// Returns the digest of the plan.
    pub(crate) fn plan(&self) -> Option<Digest> {
        match self {
            Self::Plan(plan) => Some(*plan),
            Self::Awaiting(_) | Self::Refused(_) => None,
        }
    }
}

/// Reason and message about a member.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberReason {
    pub reason: ReportedReason,
    pub message: String,
}

/// Phase of a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RolloutPhase {
    Running,
    /// A spoke holds more than this hub has ordered: an operator decides with `rollout adopt`.
    Held,
    Succeeded,
    /// More members of a stage failed than it allows.
    Failed,
    /// An operator ended it.
    Aborted,
    /// Another target was found.
    Superseded,
}

impl RolloutPhase {
    /// Returns the word that is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "Running",
            Self::Held => "Held",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Aborted => "Aborted",
            Self::Superseded => "Superseded",
        }
    }

    /// Returns true before the end.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Running | Self::Held)
    }
}

/// State of a rollout. What directives and reports say is not stored again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RolloutState {
    pub application: Name,
    pub generation: u64,
    /// Rises with each `rollout retry`.
    pub attempt: u32,
    /// The newest commit with these targets. A label.
    pub commit: Option<String>,
    pub version: Option<String>,
    pub phase: RolloutPhase,
    /// Cause of the phase; absent while nothing is wrong.
    pub cause: Option<MemberReason>,
    /// Index of the current stage; the number of stages after the last one has passed.
    pub stage: usize,
    #[serde(default)]
    pub paused: bool,
    /// Stages that an operator approved.
    #[serde(default)]
    pub approved: BTreeSet<usize>,
    /// Members that failed in this attempt.
    #[serde(default)]
    pub failed: BTreeMap<usize, MemberReason>,
    /// Members that an operator passed over.
    #[serde(default)]
    pub skipped: BTreeSet<usize>,
    /// Time for which a granted member was connected and not at target, in milliseconds.
    #[serde(default)]
    pub connected_ms: BTreeMap<usize, u64>,
    /// The targets are not rolled out again until an operator resumes or another target is found.
    #[serde(default)]
    pub sync_held: bool,
    pub started_at: Timestamp,
    /// Start of the current stage.
    pub stage_started_at: Timestamp,
    pub ended_at: Option<Timestamp>,
    /// Actions of operators, the oldest first.
    #[serde(default)]
    pub actions: Vec<OperatorAction>,
}

impl RolloutState {
    /// Returns the first part of the keys of an application's states.
    pub(crate) fn keys_of(application: &Name) -> String {
        format!("{STATES}{application}/")
    }

    /// Returns the key of a state.
    pub(crate) fn key_of(application: &Name, generation: u64) -> String {
        format!("{}{}", Self::keys_of(application), newest_first(generation))
    }

    /// Returns the key of the snapshot of this rollout.
    pub(crate) fn snapshot_key(&self) -> String {
        RolloutSnapshot::key_of(&self.application, self.generation)
    }
}

impl Record for RolloutState {
    const TABLE: Table = Table::Rollouts;

    fn key(&self) -> String {
        Self::key_of(&self.application, self.generation)
    }
}

/// Action of an operator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OperatorAction {
    pub at: Timestamp,
    /// Name in the operator's certificate.
    pub operator: String,
    /// The command, such as `promote`.
    pub action: String,
    pub reason: String,
}
