//! The cluster that the hub runs on. A destination that names no cluster means it.

use attest_common::basics::locked::RwLocked;

/// The hub's own cluster, by the UID of its namespace `kube-system`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum OwnCluster {
    /// The hub runs outside a cluster.
    #[default]
    None,
    /// Its API server has not answered yet.
    Unknown,
    Uid(String),
}

/// The hub's own cluster, as far as it is known.
#[derive(Debug, Default)]
pub struct OwnClusterCell {
    current: RwLocked<OwnCluster>,
}

impl OwnClusterCell {
    pub(crate) fn get(&self) -> OwnCluster {
        self.current.read().clone()
    }

    pub(crate) fn set(&self, current: OwnCluster) {
        *self.current.write() = current;
    }
}
