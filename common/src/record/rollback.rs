//! The rollback point of a destination: its state before a plan of which nothing is written yet.

use serde::{Deserialize, Serialize};

use super::{Floor, Held, Record};
use crate::basics::ids::Timestamp;
use crate::record::rollout::RolloutState;

/// The state of a record before an admission of which nothing is written yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RollbackPoint {
    /// Envelope of the directive of `held`; empty when there was none.
    pub directive: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binding: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<Floor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_good: Option<Held>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    pub removed: bool,
    /// Number of objects at the start of the inventory that precede the admission.
    pub objects: usize,
    /// State of the rollout of `held`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutState>,
}

impl RollbackPoint {
    /// Returns the rollback point of an admission of `held` that follows `before`, a record and the envelope of its
    /// directive: the plan that was last written, after any number of admissions without a write. Returns none when
    /// `held` already runs.
    pub fn before(before: Option<(&Record, &[u8])>, held: &Held) -> Option<Box<Self>> {
        match before {
            Some((Record { rollback_point: Some(point), .. }, _)) => Some(point.clone()),
            Some((record, _)) if record.held.as_ref() == Some(held) => None,
            Some((record, directive)) => Some(Box::new(Self {
                directive: String::from_utf8_lossy(directive).into_owned(),
                binding: record.binding.clone(),
                floor: record.floor.clone(),
                held: record.held.clone(),
                last_good: record.last_good.clone(),
                since: record.since,
                removed: record.removed,
                objects: record.inventory.len(),
                rollout: record.rollout.as_ref().map(|rollout| rollout.state),
            })),
            None => Some(Box::default()),
        }
    }
}

impl Record {
    /// Returns the record after `held` was refused before anything of it was written, and the envelope of the
    /// directive that is in force again. The sequence of the refused directive stays used; everything else is as
    /// before. With `keep_inventory`, its objects stay listed: a process that ended may have written them.
    pub fn reverted(mut self, keep_inventory: bool) -> Option<(Self, Vec<u8>)> {
        let point = *self.rollback_point.take()?;
        if !keep_inventory {
            self.inventory.truncate(point.objects);
        }
        if let Some(rollout) = &mut self.rollout {
            rollout.state = point.rollout.unwrap_or(RolloutState::Local);
        }
        let record = Self {
            binding: point.binding,
            floor: point.floor,
            held: point.held,
            last_good: point.last_good,
            since: point.since,
            removed: point.removed,
            ..self
        };
        Some((record, point.directive.into_bytes()))
    }
}
