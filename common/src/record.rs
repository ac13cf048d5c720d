//! The durable state of one destination in its cluster, and the pure rules on it: order, binding, floor.
//!
//! A spoke stores it in its own cluster, before it acts. [`custody`] defines the format, [`rollback`] the return from a
//! plan of which nothing is written, [`rollout`] the rollout of a plan that the hub finalizes.

pub mod custody;
pub mod rollback;
pub mod rollout;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::basics::ids::{Digest, Name, Timestamp};
use crate::basics::keys::KeyId;
use crate::basics::reason::Reason;
use crate::documents::manifest::{Object, ObjectKey};
use crate::documents::plan::Directive;
use crate::documents::receipt::CLOCK_SKEW_MAX_MS;
use crate::record::rollback::RollbackPoint;
use crate::record::rollout::Rollout;

/// Most other hub keys of which a destination remembers the newest directive. A directive of a forgotten key can be
/// replayed until it expires.
pub const OTHER_HUB_KEYS_MAX: usize = 16;
/// Most objects in the inventory of a destination.
pub const INVENTORY_MAX: usize = 5_000;

/// Longest name of a ServiceAccount that is also usable as a label, in bytes.
const ACCOUNT_NAME_BYTES_MAX: usize = 63;
/// Hexadecimal digits of the hash that ends a name cut to length.
const ACCOUNT_NAME_HASH_DIGITS: usize = 16;

/// Returns the name of the ServiceAccount that writes an application's objects in a namespace:
/// `a-<application>-<namespace>`, or `h-…` truncated and followed by a hash when that is too long or ambiguous.
pub fn account_name(application: &Name, namespace: &Name) -> String {
    let plain = format!("a-{application}-{namespace}");
    // `a-b` + `c` and `a` + `b-c` would share an account; only dash-free pairs keep the plain form.
    let ambiguous = application.as_str().contains('-') || namespace.as_str().contains('-');
    if plain.len() <= ACCOUNT_NAME_BYTES_MAX && !ambiguous {
        return plain;
    }
    let hash = Digest::of(format!("{application}/{namespace}").as_bytes()).hex();
    let hash: String = hash.chars().take(ACCOUNT_NAME_HASH_DIGITS).collect();
    let kept = ACCOUNT_NAME_BYTES_MAX - ACCOUNT_NAME_HASH_DIGITS - 1;
    // A separate prefix keeps plain and hashed names distinct.
    let head: String = format!("h-{application}-{namespace}").chars().take(kept).collect();
    format!("{}-{hash}", head.trim_end_matches('-'))
}

/// The records of all destinations of a cluster, by application and namespace.
pub type DestinationRecords = BTreeMap<(Name, Name), Record>;

/// State of one destination.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Record {
    pub v: u32,
    pub application: Name,
    pub namespace: Name,
    /// The hub key that signed the newest admitted directive. Epoch and sequence are its own.
    pub hub_key: KeyId,
    pub epoch: u64,
    pub sequence: u64,
    /// SHA-256 of the newest admitted directive's signed payload.
    pub directive: Digest,
    /// Newest admitted directives of other hub keys, the most recent first, at most [`OTHER_HUB_KEYS_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_hub_keys: Vec<Position>,
    /// `source.repo` of the first admitted release; immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binding: Option<String>,
    /// Highest admitted release counter and its release statement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<Floor>,
    /// The plan of the newest directive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
    /// The newest good plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_good: Option<Held>,
    /// Good plans before `last_good`, the newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub good: Vec<Held>,
    /// Objects that the destination has written or is about to write.
    #[serde(default)]
    pub inventory: Vec<Owned>,
    /// True after `Remove`: binding and floor remain, nothing runs.
    #[serde(default)]
    pub removed: bool,
    /// The cluster's own clock when the newest directive was admitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recorded_at: Option<Timestamp>,
    /// Time at which `held` was first admitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Rollback point; cleared before the first write of `held`.
    #[serde(rename = "former", default, skip_serializing_if = "Option::is_none")]
    pub rollback_point: Option<Box<RollbackPoint>>,
    /// Rollout of `held`, once a directive needed the feature `rollout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
}

/// The newest admitted directive of one hub key. Each key has its own epochs and sequences, so that one hub neither blocks
/// another nor permits replays of its directives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Position {
    pub hub_key: KeyId,
    pub epoch: u64,
    pub sequence: u64,
    /// SHA-256 of the directive's signed payload.
    pub directive: Digest,
}

impl Record {
    /// Returns the newest admitted directive.
    pub fn position(&self) -> Position {
        let Self { hub_key, epoch, sequence, directive, .. } = *self;
        Position { hub_key, epoch, sequence, directive }
    }

    /// Returns the newest admitted directives of all hub keys, the most recent first.
    pub fn positions(&self) -> impl Iterator<Item = Position> {
        std::iter::once(self.position()).chain(self.other_hub_keys.iter().copied())
    }

    /// Returns the newest admitted directive of a hub key.
    pub fn position_of(&self, hub_key: KeyId) -> Option<Position> {
        self.positions().find(|position| position.hub_key == hub_key)
    }

    /// Returns the positions of the other hub keys in a record that follows this one and is of `hub_key`.
    pub fn others_than(&self, hub_key: KeyId) -> Vec<Position> {
        let others = self.positions().filter(|position| position.hub_key != hub_key);
        others.take(OTHER_HUB_KEYS_MAX).collect()
    }

    /// Forgets epoch, sequence, generation and attempt of a hub key, so that its next directive is admitted whatever its
    /// numbers. Returns the forgotten position, or none if the key has none.
    pub fn forget_hub_key(&mut self, hub_key: KeyId) -> Option<Position> {
        let forgotten = self.position_of(hub_key)?;
        if self.hub_key == hub_key {
            self.epoch = 0;
            self.sequence = 0;
            if let Some(rollout) = &mut self.rollout {
                (rollout.generation, rollout.attempt) = (0, 0);
            }
        }
        self.other_hub_keys.retain(|other| other.hub_key != hub_key);
        Some(forgotten)
    }

    /// Returns true when nothing runs at the destination and its inventory is empty.
    pub fn is_idle(&self) -> bool {
        self.held.is_none() && self.inventory.is_empty()
    }

    /// Returns every plan that may have to run.
    pub fn plans(&self) -> impl Iterator<Item = &Held> {
        let before = self.rollback_point.iter();
        let before = before.flat_map(|point| point.held.iter().chain(&point.last_good));
        self.held.iter().chain(self.good_plans()).chain(before)
    }

    /// Returns the good plans, the newest first.
    pub fn good_plans(&self) -> impl Iterator<Item = &Held> {
        self.last_good.iter().chain(&self.good)
    }
}

/// The lowest release that may be admitted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Floor {
    pub counter: u64,
    pub release: Digest,
}

/// A plan and the blobs it needs, all addressed by digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Held {
    /// SHA-256 of the plan envelope file.
    pub plan: Digest,
    /// SHA-256 of the plan's signed payload.
    pub plan_digest: Digest,
    pub release: Digest,
    pub receipts: Vec<Digest>,
    pub content: Digest,
}

impl Held {
    /// Returns every blob, the plan first.
    pub fn blobs(&self) -> impl Iterator<Item = &Digest> {
        [&self.plan, &self.release, &self.content].into_iter().chain(&self.receipts)
    }
}

/// An object of the inventory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Owned {
    #[serde(flatten)]
    pub key: ObjectKey,
    pub version: String,
    /// Absent between "about to write" and "written".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Pre-existing with the desired values: released, never deleted.
    #[serde(rename = "met", default, skip_serializing_if = "std::ops::Not::not")]
    pub preexisting: bool,
    /// Annotated by its author: released, never deleted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub orphan: bool,
    /// Place in the order of applying that its author gave; deleted in the opposite order.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub wave: i16,
}

impl Owned {
    /// Returns an object that is about to be written for the first time.
    pub fn about_to_be_written(object: &Object) -> Self {
        Self {
            key: object.key().clone(),
            version: object.version().to_owned(),
            uid: None,
            preexisting: false,
            orphan: object.is_orphaned(),
            wave: object.wave(),
        }
    }
}

fn is_zero(wave: &i16) -> bool {
    *wave == 0
}

/// The position of a directive relative to the newest one of its hub key that was admitted for its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectiveOrder {
    /// Newer than every directive of its hub key.
    Newer,
    /// The newest directive of its hub key again.
    Repeated,
}

/// Compares a directive with the newest one of its hub key that was admitted for its destination.
pub fn compare_order(
    directive: &Directive,
    digest: Digest,
    hub_key: KeyId,
    record: Option<&Record>,
) -> Result<DirectiveOrder, RecordError> {
    let Some(seen) = record.and_then(|record| record.position_of(hub_key)) else {
        return Ok(DirectiveOrder::Newer);
    };
    match (directive.epoch, directive.sequence).cmp(&(seen.epoch, seen.sequence)) {
        // A higher epoch never permits a lower sequence: sequences continue across epochs.
        std::cmp::Ordering::Greater if directive.sequence > seen.sequence => {
            Ok(DirectiveOrder::Newer)
        }
        std::cmp::Ordering::Equal if digest == seen.directive => Ok(DirectiveOrder::Repeated),
        std::cmp::Ordering::Equal => Err(RecordError::SequenceEquivocation(seen.sequence)),
        std::cmp::Ordering::Greater | std::cmp::Ordering::Less => {
            Err(RecordError::SequenceReplayed {
                got: directive.sequence,
                seen: seen.sequence,
                application: directive.application.clone(),
                namespace: directive.namespace.clone(),
                hub_key,
            })
        }
    }
}

/// Checks that the clock is not behind the newest recorded time: such a clock would accept expired documents.
pub fn check_clock(records: &DestinationRecords, now: Timestamp) -> Result<(), RecordError> {
    let Some(recorded_at) = records.values().filter_map(|record| record.recorded_at).max() else {
        return Ok(());
    };
    let behind = now.as_millisecond() + CLOCK_SKEW_MAX_MS < recorded_at.as_millisecond();
    if behind { Err(RecordError::ClockRollback { now, recorded_at }) } else { Ok(()) }
}

/// Checks a release against the binding and the counter floor of a destination.
///
/// A namespace without a floor starts at the highest of the same repository and application here.
pub fn admit_release(
    records: &DestinationRecords,
    destination: (&Name, &Name),
    repo: &str,
    counter: u64,
    release: Digest,
) -> Result<(), RecordError> {
    check_source(records, destination, repo)?;
    let (application, namespace) = destination;
    let mine = records.get(&(application.clone(), namespace.clone()));
    let own = mine.and_then(|r| r.floor.as_ref());
    let floor = own.or_else(|| highest_floor(records, application, repo));
    let Some(floor) = floor else { return Ok(()) };
    let regressed =
        counter < floor.counter || (counter == floor.counter && release != floor.release);
    if regressed {
        return Err(RecordError::CounterRegressed { got: counter, floor: floor.counter });
    }
    Ok(())
}

/// Checks the repository of a release against the binding of a destination.
pub fn check_source(
    records: &DestinationRecords,
    (application, namespace): (&Name, &Name),
    repo: &str,
) -> Result<(), RecordError> {
    let mine = records.get(&(application.clone(), namespace.clone()));
    let bound = mine.and_then(|record| record.binding.as_deref()).filter(|bound| *bound != repo);
    bound.map_or(Ok(()), |bound| Err(RecordError::SourceChanged { bound: bound.to_owned() }))
}

/// Returns the highest counter floor of an application from a repository in any namespace.
fn highest_floor<'a>(
    records: &'a DestinationRecords,
    application: &Name,
    repo: &str,
) -> Option<&'a Floor> {
    records
        .values()
        .filter(|r| r.application == *application && r.binding.as_deref() == Some(repo))
        .filter_map(|r| r.floor.as_ref())
        .max_by_key(|floor| floor.counter)
}

/// Most destinations of an application whose first plan was reverted that do not count towards its namespaces, so that
/// operator mistakes do not exhaust the limit. Each has left a namespace behind.
pub const REVERTED_MAX: usize = 8;

/// Returns the number of other namespaces of the cluster that this application from this repository uses.
pub fn other_namespaces(
    records: &DestinationRecords,
    destination: (&Name, &Name),
    repo: &str,
) -> usize {
    let (application, namespace) = destination;
    let others = records
        .values()
        .filter(|r| !r.removed && r.application == *application && r.namespace != *namespace);
    let bound = others.clone().filter(|r| r.binding.as_deref() == Some(repo)).count();
    let reverted = others.filter(|r| r.binding.is_none() && r.held.is_none()).count();
    bound + reverted.saturating_sub(REVERTED_MAX)
}

/// A directive or release that contradicts the records of this cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    #[error(
        "the clock reads {now}, before the last recorded change at {recorded_at}; correct the clock, \
         or run `attest spoke accept-state` if it was wrong at that time"
    )]
    ClockRollback { now: Timestamp, recorded_at: Timestamp },
    #[error(
        "the directive's sequence {got} is not newer than {seen}, which this cluster has already seen; if the hub does not \
         continue above it, run `attest spoke reset {application} -n {namespace} --hub-key {hub_key}` on the cluster"
    )]
    SequenceReplayed { got: u64, seen: u64, application: Name, namespace: Name, hub_key: KeyId },
    #[error(
        "two different directives carry sequence {0}; the hub's signing key may have been copied"
    )]
    SequenceEquivocation(u64),
    #[error(
        "this destination is bound to repository {bound}; run `attest spoke reset` on the cluster to remove the binding"
    )]
    SourceChanged { bound: String },
    #[error(
        "release counter {got} is below the minimum {floor}, or equal to it for another release; \
         `attest release --from {got}` signs the same content with a new counter"
    )]
    CounterRegressed { got: u64, floor: u64 },
    #[error(
        "the directive is of generation {}, attempt {}; this cluster has already seen generation {}, attempt {}: \
         if the hub was restored from a backup, run `attest gitops rollout adopt {application}`",
        got.0, got.1, seen.0, seen.1
    )]
    GenerationRegressed {
        /// Generation and attempt.
        got: (u64, u32),
        seen: (u64, u32),
        application: Name,
    },
    #[error(
        "the plan failed here at attempt {attempt}: {message}; once the cause is gone, run \
         `attest gitops rollout retry {application}`"
    )]
    PlanAborted { attempt: u32, message: String, application: Name },
    #[error(
        "the plan is none of the good plans that this destination keeps; `rollback.lastGood` in the cluster's trust \
         policy is the number that it keeps before the newest"
    )]
    RollbackNotAllowed,
    #[error("the plan of the directive is not the one that this destination runs or moves to")]
    NotInHand,
}

impl RecordError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::ClockRollback { .. } => Reason::ClockRollback,
            Self::SequenceReplayed { .. } => Reason::SequenceReplayed,
            Self::SequenceEquivocation(_) => Reason::SequenceEquivocation,
            Self::SourceChanged { .. } => Reason::SourceChanged,
            Self::CounterRegressed { .. } => Reason::CounterRegressed,
            Self::GenerationRegressed { .. } => Reason::GenerationRegressed,
            Self::PlanAborted { .. } => Reason::PlanAborted,
            Self::RollbackNotAllowed => Reason::RollbackNotAllowed,
            Self::NotInHand => Reason::PlanMismatch,
        }
    }
}

#[cfg(test)]
mod tests;
