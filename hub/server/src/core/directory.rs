//! Registered clusters in memory, by id and by name. A copy of the store, which is written first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, MutexGuard};

use attest_common::basics::ids::{ClusterId, Name};
use attest_common::basics::locked::{Locked, RwLocked};

use crate::core::metrics::Metrics;
use crate::core::store::StoreError;
use crate::core::store::records::{Application, ClusterRecord, ClusterState, Records};

#[derive(Debug, Default)]
struct State {
    by_id: BTreeMap<ClusterId, Arc<ClusterRecord>>,
    by_name: BTreeMap<Name, BTreeSet<ClusterId>>,
    /// Revoked and then removed: not shown, and still rejected.
    banned: BTreeSet<ClusterId>,
    /// Number of clusters in each state.
    counts: BTreeMap<ClusterState, usize>,
}

impl State {
    fn insert(&mut self, record: &ClusterRecord) {
        self.remove(&record.id);
        *self.counts.entry(record.state).or_default() += 1;
        self.by_name.entry(record.name.clone()).or_default().insert(record.id.clone());
        self.by_id.insert(record.id.clone(), Arc::new(record.clone()));
    }

    fn remove(&mut self, id: &ClusterId) {
        let Some(record) = self.by_id.remove(id) else { return };
        if let Some(count) = self.counts.get_mut(&record.state) {
            *count = count.saturating_sub(1);
        }
        if let Some(ids) = self.by_name.get_mut(&record.name) {
            ids.remove(id);
            if ids.is_empty() {
                self.by_name.remove(&record.name);
            }
        }
    }
}

/// The registered clusters.
#[derive(Debug, Default)]
pub struct Directory {
    state: RwLocked<State>,
    writer: Locked<()>,
}

/// Exclusive write access to clusters. A caller that reads a record to replace it holds this until the change is
/// durable and noted, so that concurrent changes cannot undo each other.
#[derive(Debug)]
pub struct WriteGuard<'a> {
    directory: &'a Directory,
    _alone: MutexGuard<'a, ()>,
}

impl Directory {
    /// Loads the clusters of the store.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn load(records: &Records) -> Result<Self, StoreError> {
        let directory = Self::default();
        let guard = directory.write();
        for record in records.all::<ClusterRecord>()? {
            guard.note(&record);
        }
        drop(guard);
        Ok(directory)
    }

    /// Waits for exclusive write access. Blocks.
    pub fn write(&self) -> WriteGuard<'_> {
        let alone = self.writer.lock();
        WriteGuard { directory: self, _alone: alone }
    }

    /// Returns whether a cluster was revoked and then removed.
    pub(crate) fn is_banned(&self, id: &ClusterId) -> bool {
        self.state.read().banned.contains(id)
    }

    /// Returns the number of records, including banned clusters.
    pub fn records(&self) -> usize {
        let state = self.state.read();
        state.by_id.len() + state.banned.len()
    }

    /// Returns the cluster with this id.
    pub fn get(&self, id: &ClusterId) -> Option<Arc<ClusterRecord>> {
        self.state.read().by_id.get(id).cloned()
    }

    /// Returns the cluster of this name; of several, the one that is not revoked.
    pub fn named(&self, name: &Name) -> Option<Arc<ClusterRecord>> {
        let state = self.state.read();
        let ids = state.by_name.get(name)?;
        let mut records = ids.iter().filter_map(|id| state.by_id.get(id)).peekable();
        let first = records.peek().copied();
        records.find(|record| record.state != ClusterState::Revoked).or(first).cloned()
    }

    /// Returns every cluster of this name, ordered by id.
    pub(crate) fn all_named(&self, name: &Name) -> Vec<Arc<ClusterRecord>> {
        let state = self.state.read();
        let ids = state.by_name.get(name).into_iter().flatten();
        ids.filter_map(|id| state.by_id.get(id).cloned()).collect()
    }

    /// Returns all clusters, ordered by id.
    pub fn all(&self) -> Vec<Arc<ClusterRecord>> {
        let state = self.state.read();
        state.by_id.values().cloned().collect()
    }

    /// Returns the destinations of an application whose cluster is registered.
    pub fn places(&self, application: &Application) -> BTreeSet<(ClusterId, Name)> {
        let destinations = application.destinations.iter();
        destinations
            .filter_map(|destination| {
                let cluster = self.named(&destination.cluster)?;
                Some((cluster.id.clone(), destination.namespace.clone()))
            })
            .collect()
    }

    /// Returns whether the cluster is registered and not revoked.
    pub(crate) fn is_living(&self, id: &ClusterId) -> bool {
        self.get(id).is_some_and(|record| record.state != ClusterState::Revoked)
    }

    /// Returns the name of a cluster, or its id when it is no longer registered.
    pub(crate) fn name_of(&self, id: &ClusterId) -> String {
        self.get(id).map_or_else(|| id.to_string(), |record| record.name.to_string())
    }

    /// Updates the metrics of clusters.
    pub(crate) fn measure(&self, metrics: &Metrics) {
        let state = self.state.read();
        for word in ClusterState::ALL {
            let count = state.counts.get(&word).copied().unwrap_or_default();
            let gauge = metrics.clusters.with_label_values(&[word.as_str()]);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}

impl WriteGuard<'_> {
    /// Applies a durable record to the copy in memory.
    pub fn note(&self, record: &ClusterRecord) {
        let mut state = self.directory.state.write();
        if record.removed {
            state.banned.insert(record.id.clone());
            state.remove(&record.id);
        } else {
            state.insert(record);
        }
    }

    /// Removes a cluster that is no longer registered from the copy in memory.
    pub fn forget(&self, record: &ClusterRecord) {
        self.directory.state.write().remove(&record.id);
    }
}
