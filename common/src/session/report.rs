//! What a spoke says happened. Facts for the hub and for people; the hub decides nothing from a spoke's claim alone.
//!
//! One report a destination, level-triggered: the newest replaces the older, and is sent again
//! until it is acknowledged. Durations, never times of another clock.

use serde::{Deserialize, Serialize};

use crate::basics::ids::{Digest, Name, Timestamp};
use crate::documents::manifest::ObjectKey;
use crate::objects::health::Health;
pub use crate::record::custody::Refusal;
use crate::verify::Check;

/// Most objects listed one by one; the rest are counted.
pub const OBJECTS_LISTED_MAX: usize = 200;
/// Largest encoded report in bytes.
pub const REPORT_BYTES_MAX: usize = 256 * 1024;

/// Where a destination stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Phase {
    /// A directive was admitted and is being carried out.
    Progressing,
    /// Everything is applied and the gating objects are Current.
    Synced,
    /// Live objects differ and self-heal is off.
    OutOfSync,
    /// Something applied is unhealthy, or objects could not be applied.
    Degraded,
    /// The newest document was refused; what ran before keeps running.
    Refused,
    /// The application is gone from here.
    Removed,
}

impl Phase {
    /// The word that people see.
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
}

/// State of one destination as its spoke sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub v: u32,
    pub application: Name,
    pub namespace: Name,
    /// The directive this is about, when it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    pub phase: Phase,
    /// A stable word; equals the phase when nothing is wrong.
    pub reason: String,
    pub message: String,
    /// What runs now, which after a refusal is not what was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<Running>,
    /// The newest refusal that has not been overtaken by an admitted directive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
    pub health: Health,
    #[serde(default)]
    pub objects: Vec<ObjectState>,
    pub objects_total: u64,
    #[serde(default)]
    pub drifted: Vec<ObjectKey>,
    /// Fields put back since the spoke started.
    pub heals_total: u64,
    #[serde(default)]
    pub timings: Timings,
    #[serde(default)]
    pub checks: Vec<Check>,
    #[serde(default)]
    pub warnings: Vec<String>,
    /// When the spoke observed this, by its own clock; for people, never compared.
    pub observed_at: Timestamp,
}

/// What runs at a destination.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Running {
    pub plan: Digest,
    pub release: Digest,
    pub content: Digest,
    pub version: String,
    pub counter: u64,
    pub signed_commit: String,
    /// Who signed, by the names of the cluster's own policy.
    pub signers: Vec<String>,
    pub since: Timestamp,
}

/// One object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectState {
    #[serde(flatten)]
    pub key: ObjectKey,
    pub health: Health,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// How long each part took, by the spoke's own monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Timings {
    pub verify_us: u64,
    pub record_us: u64,
    pub apply_us: u64,
    pub requests: u64,
}
