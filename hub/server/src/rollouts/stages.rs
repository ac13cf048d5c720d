//! Assignment of destinations to the stages of a rollout. Pure.

use std::collections::{BTreeMap, BTreeSet};

use attest_common::basics::ids::Name;
use attest_common::basics::labels::Labels;
use attest_common::basics::reason::Reason;

use crate::core::store::records::{ResolvedStage, Share, Stage};

/// Label of a cluster with the home stage of its destinations.
pub(crate) const STAGE_LABEL: &str = "attest.continuu.ms/stage";
/// Label of a cluster with its place in the order within a stage; 0 when absent.
pub(crate) const ORDER_LABEL: &str = "attest.continuu.ms/order";
/// Most stages of one application.
pub(crate) const STAGES_MAX: usize = 31;
/// Weight of a complete stage, in percent.
pub(crate) const WEIGHT_FULL: u8 = 100;
/// Most destinations named in one message.
const PLACES_NAMED_MAX: usize = 10;

/// A destination, as far as its stage depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StagedPlace {
    pub cluster: Name,
    pub namespace: Name,
    /// `destinations[].stage`.
    pub stage: Option<String>,
    pub labels: Labels,
    /// Environment of the cluster; absent until it has connected.
    pub environment: Option<String>,
}

impl StagedPlace {
    /// Returns the home stage: the destination's own, that of the label, the cluster's name, or its environment.
    fn home<'a>(&'a self, stages: &BTreeSet<&str>) -> &'a str {
        let written =
            self.stage.as_deref().or_else(|| Some(self.labels.get(STAGE_LABEL)?.as_str()));
        let name = self.cluster.as_str();
        match (written, &self.environment) {
            (Some(written), _) => written,
            (None, Some(environment)) if !stages.contains(name) => environment,
            (None, _) => name,
        }
    }

    fn order(&self) -> (i64, &Name, &Name) {
        let order = self.labels.get(ORDER_LABEL).and_then(|order| order.parse().ok());
        (order.unwrap_or(0), &self.cluster, &self.namespace)
    }

    fn shown(&self) -> String {
        format!("{}/{}", self.cluster, self.namespace)
    }
}

/// Reason that stages and destinations do not fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum StageError {
    #[error("lists more than {STAGES_MAX} stages; remove some")]
    Count,
    #[error("stage `{name}` is listed twice; use another name")]
    Duplicate { index: usize, name: String },
    #[error("is {weight}; must be a whole number from 1 to 100")]
    WeightRange { index: usize, weight: u64 },
    #[error(
        "cluster `{cluster}` is not a destination of this application; add it to spec.destinations"
    )]
    ClusterUnknown { index: usize, cluster: Name },
    #[error(
        "stage `{name}` has no members; name it like the clusters, environments or stages of destinations, or set \
         `clusters` or `clusterSelector`; destinations belong to: {homes}"
    )]
    Empty { index: usize, name: String, homes: String },
    #[error(
        "stage `{name}` has weight {weight} for {place}, which an earlier stage raised to {previous}; \
         use a higher weight"
    )]
    WeightOrder { index: usize, name: String, weight: u8, previous: u8, place: String },
    #[error(
        "no stage brings {places} to weight 100; add a stage that selects them, or set their `stage`"
    )]
    NeverFull { places: String },
}

impl StageError {
    /// Returns the reason to show.
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::Count => Reason::StageCount,
            Self::Duplicate { .. } => Reason::StageDuplicate,
            Self::WeightRange { .. } => Reason::StageWeightRange,
            Self::ClusterUnknown { .. } => Reason::StageClusterUnknown,
            Self::Empty { .. } => Reason::StageEmpty,
            Self::WeightOrder { .. } => Reason::StageWeightOrder,
            Self::NeverFull { .. } => Reason::DestinationNeverFull,
        }
    }

    /// Returns the path of the field at fault, below `spec.progressiveDelivery`.
    pub(crate) fn field(&self) -> String {
        match self {
            Self::Count | Self::NeverFull { .. } => "stages".to_owned(),
            Self::Duplicate { index, .. } | Self::Empty { index, .. } => {
                format!("stages[{index}].name")
            }
            Self::WeightRange { index, .. } | Self::WeightOrder { index, .. } => {
                format!("stages[{index}].weight")
            }
            Self::ClusterUnknown { index, .. } => format!("stages[{index}].clusters"),
        }
    }
}

/// Assigns destinations to stages. The result does not depend on their order in `places`; members are indexes into it.
///
/// # Errors
/// [`StageError`] when a stage would have no members, or a destination would never be complete.
pub(crate) fn resolve(
    stages: &[Stage],
    places: &[StagedPlace],
) -> Result<Vec<ResolvedStage>, StageError> {
    check_stages(stages, places)?;
    let names: BTreeSet<&str> = stages.iter().map(|stage| stage.name.as_str()).collect();
    let own: Vec<Vec<usize>> =
        stages.iter().map(|stage| own_members(stage, places, &names)).collect();
    let mut weights: BTreeMap<usize, u8> = BTreeMap::new();
    let mut resolved = Vec::new();
    for (index, stage) in stages.iter().enumerate() {
        let mut members = own.get(index).cloned().unwrap_or_default();
        let inherits = members.is_empty() && !stage.selects() && stage.weight < WEIGHT_FULL;
        if inherits {
            let later = own.iter().skip(index + 1).find(|members| !members.is_empty());
            members = later.cloned().unwrap_or_default();
        }
        members.retain(|member| weights.get(member) != Some(&WEIGHT_FULL));
        if members.is_empty() {
            let homes: BTreeSet<&str> = places.iter().map(|place| place.home(&names)).collect();
            let homes = homes.into_iter().take(PLACES_NAMED_MAX).collect::<Vec<_>>().join(", ");
            return Err(StageError::Empty { index, name: stage.name.clone(), homes });
        }
        for member in &members {
            raise(&mut weights, (index, stage), *member, places)?;
        }
        resolved.push(ResolvedStage {
            name: stage.name.clone(),
            weight: stage.weight,
            soak_ms: stage.soak_ms,
            concurrent_max: stage.concurrency.of(members.len()).max(1),
            failures_max: stage.failures.of(members.len()),
            approval: stage.approval,
            progress_deadline_ms: stage.progress_deadline_ms,
            inherited: inherits,
            members,
        });
    }
    check_full(&weights, places)?;
    Ok(resolved)
}

fn check_stages(stages: &[Stage], places: &[StagedPlace]) -> Result<(), StageError> {
    if stages.len() > STAGES_MAX {
        return Err(StageError::Count);
    }
    let mut names = BTreeSet::new();
    for (index, stage) in stages.iter().enumerate() {
        let name = stage.name.clone();
        if !names.insert(&stage.name) {
            return Err(StageError::Duplicate { index, name });
        }
        if !(1..=WEIGHT_FULL).contains(&stage.weight) {
            return Err(StageError::WeightRange { index, weight: stage.weight.into() });
        }
        let mut clusters = stage.clusters.iter();
        let unknown = clusters.find(|name| places.iter().all(|place| place.cluster != **name));
        if let Some(cluster) = unknown.cloned() {
            return Err(StageError::ClusterUnknown { index, cluster });
        }
    }
    Ok(())
}

/// Returns the members that a stage selects, or whose home it is, in the order in which they are granted.
fn own_members(stage: &Stage, places: &[StagedPlace], names: &BTreeSet<&str>) -> Vec<usize> {
    let mut members: Vec<(usize, &StagedPlace)> =
        places.iter().enumerate().filter(|(_, place)| is_own_member(stage, place, names)).collect();
    members.sort_by(|(_, one), (_, other)| one.order().cmp(&other.order()));
    members.into_iter().map(|(index, _)| index).collect()
}

fn is_own_member(stage: &Stage, place: &StagedPlace, names: &BTreeSet<&str>) -> bool {
    if stage.selects() {
        let selected = stage.selector.as_ref();
        stage.clusters.contains(&place.cluster)
            || selected.is_some_and(|selector| selector.matches(&place.labels))
    } else {
        place.home(names) == stage.name
    }
}

fn raise(
    weights: &mut BTreeMap<usize, u8>,
    (index, stage): (usize, &Stage),
    member: usize,
    places: &[StagedPlace],
) -> Result<(), StageError> {
    let previous = weights.insert(member, stage.weight);
    match previous {
        Some(previous) if stage.weight <= previous => Err(StageError::WeightOrder {
            index,
            name: stage.name.clone(),
            weight: stage.weight,
            previous,
            place: places.get(member).map(StagedPlace::shown).unwrap_or_default(),
        }),
        Some(_) | None => Ok(()),
    }
}

fn check_full(weights: &BTreeMap<usize, u8>, places: &[StagedPlace]) -> Result<(), StageError> {
    let partial = places.iter().enumerate();
    let mut partial: Vec<&StagedPlace> = partial
        .filter(|(index, _)| weights.get(index) != Some(&WEIGHT_FULL))
        .map(|(_, place)| place)
        .collect();
    if partial.is_empty() {
        return Ok(());
    }
    partial.sort_by(|one, other| one.order().cmp(&other.order()));
    let mut named: Vec<String> =
        partial.iter().take(PLACES_NAMED_MAX).map(|place| place.shown()).collect();
    if partial.len() > PLACES_NAMED_MAX {
        named.push(format!("{} more", partial.len() - PLACES_NAMED_MAX));
    }
    Err(StageError::NeverFull { places: named.join(", ") })
}

impl Share {
    /// Returns the share of `total`, rounded down.
    pub(crate) fn of(self, total: usize) -> usize {
        match self {
            Self::Count(count) => usize::try_from(count).unwrap_or(usize::MAX).min(total),
            Self::Percent(percent) => total.saturating_mul(usize::from(percent)) / 100,
        }
    }
}

#[cfg(test)]
mod tests;
