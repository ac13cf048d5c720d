//! Index of the content Secrets that this process knows. Reads and writes no content.

use std::collections::{BTreeMap, BTreeSet};

use attest_common::record::custody::{BYTES_ANNOTATION, CONTENT_LABEL_VALUE, RECORD_LABEL};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectList, PartialObjectMeta};

use crate::cluster::client::ApiServer;
use crate::cluster::error::ApiError;
use crate::trust::secrets::collection;

/// Most bytes of the piece in one Secret.
pub const PIECE_BYTES_MAX: usize = 900 * 1024;
/// Most compressed bytes of all content Secrets of a cluster.
pub const CONTENT_TOTAL_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// The known content Secrets, with their sizes in bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    pub(super) stored: BTreeMap<String, u64>,
    /// Secrets whose existence the API server confirmed when this process stored them.
    pub(super) confirmed: BTreeSet<String>,
    /// Number of users that keep each pack although no record may name it.
    pub(super) kept: BTreeMap<String, usize>,
}

impl Index {
    pub(super) fn of(list: &ObjectList<PartialObjectMeta<Secret>>) -> Self {
        let stored = list.items.iter().filter_map(|secret| {
            let annotations = secret.metadata.annotations.as_ref();
            let bytes = annotations.and_then(|all| all.get(BYTES_ANNOTATION)?.parse().ok());
            Some((secret.metadata.name.clone()?, bytes.unwrap_or(PIECE_BYTES_MAX as u64)))
        });
        Self { stored: stored.collect(), ..Self::default() }
    }

    /// Returns whether pieces of these sizes, some of which may exist, fit the limit of the cluster.
    pub(super) fn has_room<'a>(&self, pieces: impl Iterator<Item = (&'a String, u64)>) -> bool {
        let stored: u64 = self.stored.values().sum();
        let new: u64 =
            pieces.filter(|(name, _)| !self.stored.contains_key(*name)).map(|(_, b)| b).sum();
        stored.saturating_add(new) <= CONTENT_TOTAL_BYTES_MAX
    }

    /// Returns whether a Secret belongs to no plan that is used or kept.
    pub(super) fn is_unused(&self, name: &str, used: &BTreeSet<String>) -> bool {
        name.rsplit_once('-')
            .is_none_or(|(stem, _)| !used.contains(stem) && !self.kept.contains_key(stem))
    }
}

/// Lists all content Secrets, without their data.
pub(super) async fn list(api: &ApiServer) -> Result<Index, ApiError> {
    let all = format!("{}?labelSelector={RECORD_LABEL}%3D{CONTENT_LABEL_VALUE}", collection());
    Ok(Index::of(&api.get_metadata(&all).await?))
}
