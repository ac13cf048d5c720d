//! Reports of a spoke about its destinations. The hub makes no decision on trust from a report.
//!
//! One report for each destination, level-triggered: the newest replaces older ones and is sent until it is acknowledged.
//! Durations are measured by one clock; times of different clocks are not compared.

use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::basics::ids::{Digest, Name, Timestamp};
use crate::basics::reason::{Reason, ReportedReason};
use crate::documents::manifest::ObjectKey;
use crate::objects::health::Health;
pub use crate::record::custody::Refusal;
pub use crate::record::rollout::Abort;
use crate::verify::Check;

/// Most objects listed individually; the rest are only counted.
pub const OBJECTS_LISTED_MAX: usize = 200;
/// Largest encoded report in bytes.
pub const REPORT_BYTES_MAX: usize = 256 * 1024;

/// Phase of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Phase {
    /// A directive was admitted and is being applied.
    Progressing,
    /// Everything is applied and the gating objects are Current.
    Synced,
    /// Live objects differ and self-heal is off.
    OutOfSync,
    /// An applied object is unhealthy, or an object could not be applied.
    Degraded,
    /// The newest document was refused; the previous plan continues to run.
    Refused,
    /// The application is removed.
    Removed,
}

impl Phase {
    /// Returns the name shown to users.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Progressing => "Progressing",
            Self::Synced => "Synced",
            Self::OutOfSync => "OutOfSync",
            Self::Degraded => "Degraded",
            Self::Refused => "Refused",
            Self::Removed => "Removed",
        }
    }

    /// Returns the reason of a report when nothing is wrong: the same word.
    pub fn reason(self) -> Reason {
        match self {
            Self::Progressing => Reason::Progressing,
            Self::Synced => Reason::Synced,
            Self::OutOfSync => Reason::OutOfSync,
            Self::Degraded => Reason::Degraded,
            Self::Refused => Reason::Refused,
            Self::Removed => Reason::Removed,
        }
    }
}

/// State of an application or of one of its destinations, as the hub shows it. Ordered from best to worst: an
/// application takes the phase of its worst destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum ApplicationPhase {
    /// Every destination runs what was ordered, and removed ones are gone.
    Synced,
    /// A directive is being carried out.
    Progressing,
    /// CI has signed no release for the commit.
    AwaitingReceipts,
    /// The state is not known; also any phase of a later release.
    Unknown,
    /// Live objects differ, or a release waits to be synced.
    OutOfSync,
    /// Something applied is unhealthy, or objects could not be applied.
    Degraded,
    /// Verification failed; what ran before keeps running.
    Refused,
}

impl ApplicationPhase {
    /// Every phase, from best to worst.
    pub const ALL: [Self; 7] = [
        Self::Synced,
        Self::Progressing,
        Self::AwaitingReceipts,
        Self::Unknown,
        Self::OutOfSync,
        Self::Degraded,
        Self::Refused,
    ];

    /// Returns the worst of several phases; `Unknown` for none.
    pub fn worst(phases: impl IntoIterator<Item = Self>) -> Self {
        phases.into_iter().max().unwrap_or(Self::Unknown)
    }

    /// Returns the word that is shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Synced => "Synced",
            Self::Progressing => "Progressing",
            Self::AwaitingReceipts => "AwaitingReceipts",
            Self::Unknown => "Unknown",
            Self::OutOfSync => "OutOfSync",
            Self::Degraded => "Degraded",
            Self::Refused => "Refused",
        }
    }

    /// Returns true for a phase that ends only by a new commit or an operator's action.
    pub const fn is_final(self) -> bool {
        match self {
            Self::Synced
            | Self::AwaitingReceipts
            | Self::OutOfSync
            | Self::Degraded
            | Self::Refused => true,
            Self::Progressing | Self::Unknown => false,
        }
    }
}

impl<'de> Deserialize<'de> for ApplicationPhase {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = String::deserialize(deserializer)?;
        let known = Self::ALL.into_iter().find(|phase| phase.as_str() == word);
        Ok(known.unwrap_or(Self::Unknown))
    }
}

impl std::fmt::Display for ApplicationPhase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// State of one destination as observed by its spoke.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub v: u32,
    pub application: Name,
    pub namespace: Name,
    /// Epoch of the directive that the report is about, if it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    pub phase: Phase,
    /// Equals the phase when there is no problem.
    pub reason: ReportedReason,
    pub message: String,
    /// The running plan. After a refusal it differs from the newest directive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<Running>,
    /// The newest refusal, until a later directive is admitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
    /// Rollout of the destination, once a directive needed the feature `rollout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutStatus>,
    pub health: Health,
    #[serde(default)]
    pub objects: Vec<ObjectState>,
    pub objects_total: u64,
    #[serde(default)]
    pub drifted: Vec<ObjectKey>,
    /// Fields reverted since the spoke started.
    pub heals_total: u64,
    #[serde(default)]
    pub timings: Timings,
    #[serde(default)]
    pub checks: Vec<Check>,
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Time of the observation, by the spoke's clock, for display only.
    pub observed_at: Timestamp,
}

/// Rollout of a destination. Reported when it changes, except `healthy_for_ms`, which is reported with other changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RolloutStatus {
    pub generation: u64,
    pub attempt: u32,
    /// Digest of the plan that the destination runs or moves to. After a return it is a good plan.
    pub plan: Digest,
    /// Everything is applied, every gating object is Current, and workloads, their Services and routes are as signed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub at_target: bool,
    /// Time at target without interruption, by the spoke's monotonic clock.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub healthy_for_ms: u64,
    /// `healthy_for_ms` has reached the soak of the directive.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub soak_reached: bool,
    /// The failure of the newest ordered plan. `plan` differs from its plan if the destination has returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aborted: Option<Abort>,
    /// Digests of the good plans, the newest first.
    #[serde(default)]
    pub good: Vec<Digest>,
}

fn is_zero(duration_ms: &u64) -> bool {
    *duration_ms == 0
}

/// The running plan of a destination.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Running {
    pub plan: Digest,
    pub release: Digest,
    pub content: Digest,
    pub version: String,
    pub counter: u64,
    pub signed_commit: String,
    /// Names of the signing keys in the cluster's policy.
    pub signers: Vec<String>,
    pub since: Timestamp,
}

/// State of one object. In JSON the fields of its key stand beside the others.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "FlatObjectState")]
pub struct ObjectState {
    pub key: ObjectKey,
    pub health: Health,
    pub message: String,
    /// Signed fields that admission in the cluster has rewritten.
    pub rewritten: Vec<String>,
    /// Number of fields outside the status that only other managers own.
    pub added: u64,
}

/// [`ObjectState`] as it is read. `#[serde(flatten)]` would read each object twice, and a report lists many.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FlatObjectState {
    #[serde(default)]
    group: String,
    kind: String,
    #[serde(default)]
    namespace: Option<String>,
    name: String,
    health: Health,
    #[serde(default)]
    message: String,
    #[serde(default)]
    rewritten: Vec<String>,
    #[serde(default)]
    added: u64,
}

impl From<FlatObjectState> for ObjectState {
    fn from(flat: FlatObjectState) -> Self {
        let FlatObjectState { group, kind, namespace, name, health, message, rewritten, added } =
            flat;
        let key = ObjectKey { group, kind, namespace, name };
        Self { key, health, message, rewritten, added }
    }
}

impl Serialize for ObjectState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { key, health, message, rewritten, added } = self;
        let ObjectKey { group, kind, namespace, name } = key;
        let mut map = serializer.serialize_map(None)?;
        if !group.is_empty() {
            map.serialize_entry("group", group)?;
        }
        map.serialize_entry("kind", kind)?;
        if let Some(namespace) = namespace {
            map.serialize_entry("namespace", namespace)?;
        }
        map.serialize_entry("name", name)?;
        map.serialize_entry("health", health)?;
        if !message.is_empty() {
            map.serialize_entry("message", message)?;
        }
        if !rewritten.is_empty() {
            map.serialize_entry("rewritten", rewritten)?;
        }
        if *added != 0 {
            map.serialize_entry("added", added)?;
        }
        map.end()
    }
}

/// Durations of the parts of a deployment, by the spoke's monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Timings {
    pub verify_us: u64,
    pub record_us: u64,
    pub apply_us: u64,
    pub requests: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_application_is_as_well_as_its_worst_destination() {
        use ApplicationPhase::{Degraded, Progressing, Refused, Synced, Unknown};

        assert_eq!(ApplicationPhase::worst([Synced, Progressing]), Progressing);
        assert_eq!(ApplicationPhase::worst([Synced, Refused, Degraded]), Refused);
        assert_eq!(ApplicationPhase::worst([Synced]), Synced);
        assert_eq!(ApplicationPhase::worst([]), Unknown);
        assert!(ApplicationPhase::ALL.is_sorted());
    }

    #[test]
    fn an_object_has_the_fields_of_its_key_beside_the_others() {
        let full = concat!(
            r#"{"group":"apps","kind":"Deployment","namespace":"shop","name":"web","health":"Failed","#,
            r#""message":"no","rewritten":["spec.a"],"added":2}"#
        );
        let least = r#"{"kind":"Namespace","name":"shop","health":"Current"}"#;
        for json in [full, least] {
            let state: ObjectState = serde_json::from_str(json).unwrap();
            assert_eq!(serde_json::to_string(&state).unwrap(), json);
        }
        let newer = r#"{"kind":"Namespace","name":"shop","health":"Current","ofALaterRelease":1}"#;
        let state: ObjectState = serde_json::from_str(newer).unwrap();
        assert_eq!(state, serde_json::from_str(least).unwrap());
    }

    #[test]
    fn a_phase_is_its_word_and_one_of_a_later_release_is_unknown() {
        for phase in ApplicationPhase::ALL {
            let json = serde_json::to_value(phase).unwrap();
            assert_eq!(json, phase.as_str());
            assert_eq!(serde_json::from_value::<ApplicationPhase>(json).unwrap(), phase);
        }
        let later: ApplicationPhase = serde_json::from_str("\"Paused\"").unwrap();
        assert_eq!(later, ApplicationPhase::Unknown);
    }
}
