//! The stages of an application as its record has them.

use std::collections::BTreeSet;

use attest_common::basics::ids::Name;
use attest_common::basics::labels::Selector;
use serde::{Deserialize, Serialize};

/// `spec.progressiveDelivery` of an application, when it is enabled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgressiveDelivery {
    pub stages: Vec<Stage>,
}

/// One stage, as written. Defaults are resolved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stage {
    pub name: String,
    /// Share of the traffic of each member, 1 to 100.
    pub weight: u8,
    /// Time for which every member is healthy before the stage passes, in milliseconds.
    pub soak_ms: u64,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub clusters: BTreeSet<Name>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// Members in progress at a time.
    pub concurrency: Share,
    /// Members that may fail.
    pub failures: Share,
    /// True when the stage waits for an operator.
    pub approval: bool,
    /// Longest time for a member to become healthy, in milliseconds, counted while it is connected.
    pub progress_deadline_ms: Option<u64>,
}

impl Stage {
    /// Returns whether the stage names its members instead of taking those whose home it is.
    pub(crate) fn selects(&self) -> bool {
        self.selector.is_some() || !self.clusters.is_empty()
    }
}

/// A number of members, or a share of them in percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Share {
    Count(u64),
    Percent(u8),
}
