//! Which content Secrets there are, as far as this process knows. Counts; reads and writes no content.

use std::collections::{BTreeMap, BTreeSet};

use attest_common::record::custody::{BYTES_ANNOTATION, CONTENT_LABEL_VALUE, RECORD_LABEL};
use serde_json::Value;

use crate::cluster::client::ApiServer;
use crate::cluster::error::ApiError;
use crate::trust::secrets::collection;

/// Bytes of one Secret's piece.
pub const PIECE_BYTES_MAX: usize = 900 * 1024;
/// Most bytes of all content Secrets of a cluster, as stored.
pub const CONTENT_TOTAL_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// What this process knows of the content Secrets: their names, and their sizes in bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    pub(super) stored: BTreeMap<String, u64>,
    /// Those that the API server said to this process are there when it stored them.
    pub(super) confirmed: BTreeSet<String>,
    /// How often each pack is asked to stay although no record may name it.
    pub(super) kept: BTreeMap<String, usize>,
}

impl Index {
    pub(super) fn of(list: &Value) -> Self {
        let items = list.get("items").and_then(Value::as_array).into_iter().flatten();
        let stored = items.filter_map(|item| {
            let name = item.pointer("/metadata/name")?.as_str()?;
            let annotations = item.pointer("/metadata/annotations");
            let bytes = annotations.and_then(|a| a.get(BYTES_ANNOTATION)?.as_str()?.parse().ok());
            Some((name.to_owned(), bytes.unwrap_or(PIECE_BYTES_MAX as u64)))
        });
        Self { stored: stored.collect(), ..Self::default() }
    }

    /// Whether pieces of these sizes, some of which may be there already, fit the cluster's share.
    pub(super) fn has_room<'a>(&self, pieces: impl Iterator<Item = (&'a String, u64)>) -> bool {
        let stored: u64 = self.stored.values().sum();
        let new: u64 =
            pieces.filter(|(name, _)| !self.stored.contains_key(*name)).map(|(_, b)| b).sum();
        stored.saturating_add(new) <= CONTENT_TOTAL_BYTES_MAX
    }

    /// Whether a Secret is of no plan that is used or kept.
    pub(super) fn is_unused(&self, name: &str, used: &BTreeSet<String>) -> bool {
        name.rsplit_once('-')
            .is_none_or(|(stem, _)| !used.contains(stem) && !self.kept.contains_key(stem))
    }
}

/// All content Secrets, without their bodies.
pub(super) async fn list(api: &ApiServer) -> Result<Index, ApiError> {
    let all = format!("{}?labelSelector={RECORD_LABEL}%3D{CONTENT_LABEL_VALUE}", collection());
    Ok(Index::of(&api.get_metadata(&all).await?))
}
