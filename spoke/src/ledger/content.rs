//! Stored content: the blobs of a plan, packed into immutable Secrets, so that a restarted spoke does not need the hub.
//!
//! A plan has two packs: the rendering, named by its own digest, which CI signed; and the envelopes, named
//! by the digest of the plan's. The same rendering in new envelopes is not written again. Content is not
//! trusted: it is verified again after loading, like content from the hub.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::time::Duration;

use attest_common::basics::ids::Digest;
use attest_common::basics::text::error_chain;
use attest_common::record::custody::{
    BYTES_ANNOTATION, CONTENT_LABEL_VALUE, PIECE_KEY, PIECES_ANNOTATION, PackedBlobs, RECORD_LABEL,
    content_secret, content_stem,
};
use attest_common::record::{DestinationRecords, Held, Record};
use attest_runtime::failpoint;
use attest_runtime::frames::COMPRESSION_LEVEL;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Secret;
use prost::Message;

use super::error::LedgerError;
use super::index::{CONTENT_TOTAL_BYTES_MAX, PIECE_BYTES_MAX};
use super::records::{Entry, Key, Ledger};
use crate::trust::secrets::{self, collection, path};

/// Most uncompressed bytes of one plan's blobs.
pub const CONTENT_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Most pieces of one plan.
pub const PIECES_MAX: usize = 32;
/// Delay before unused content is deleted, so that deletions do not compete with an admission.
const TIDY_AFTER: Duration = Duration::from_secs(2);
/// Delay after a failed deletion.
const TIDY_RETRY: Duration = Duration::from_secs(10);
const IN_FLIGHT_MAX: usize = 4;

/// Keeps the content of a plan from being deleted for as long as this value exists: content that is being
/// stored is not named by a record yet.
#[derive(Debug)]
pub struct Kept {
    ledger: Ledger,
    stems: Vec<String>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut state = self.ledger.state();
        for stem in &self.stems {
            let left = state.content.kept.get_mut(stem).map(|count| {
                *count = count.saturating_sub(1);
                *count
            });
            if left == Some(0) {
                state.content.kept.remove(stem);
            }
        }
    }
}

/// Returns the blobs that are stored together, by the digest that names them.
fn packs(held: &Held) -> [(Digest, BTreeSet<Digest>); 2] {
    let envelopes = [held.plan, held.release].into_iter().chain(held.receipts.iter().copied());
    [(held.plan, envelopes.collect()), (held.content, [held.content].into())]
}

/// Returns the pieces in which the blobs of a plan are stored, by the names of their Secrets.
fn pack(
    held: &Held,
    blobs: &BTreeMap<Digest, Bytes>,
) -> Result<Vec<(String, usize, Vec<u8>)>, LedgerError> {
    let lost = || LedgerError::Content { plan: held.plan };
    let (mut size, mut pieces) = (0, Vec::new());
    for (name, members) in packs(held) {
        let members = members.iter().map(|digest| blobs.get(digest).cloned().ok_or_else(lost));
        let packed = PackedBlobs { blobs: members.collect::<Result<_, _>>()? };
        size += packed.encoded_len() as u64;
        if size > CONTENT_BYTES_MAX {
            let max = CONTENT_BYTES_MAX;
            return Err(LedgerError::Limit { what: "bytes of content a plan", max });
        }
        let bytes =
            zstd::bulk::compress(&packed.encode_to_vec(), COMPRESSION_LEVEL).map_err(|_| lost())?;
        let count = bytes.len().div_ceil(PIECE_BYTES_MAX);
        let all = bytes.chunks(PIECE_BYTES_MAX).enumerate();
        pieces
            .extend(all.map(|(index, piece)| (content_secret(name, index), count, piece.to_vec())));
    }
    if pieces.len() > PIECES_MAX {
        let max = PIECES_MAX as u64;
        return Err(LedgerError::Limit { what: "pieces of content a plan", max });
    }
    Ok(pieces)
}

impl Ledger {
    /// Keeps the content of a plan until the returned value is dropped.
    pub fn keep_content(&self, held: &Held) -> Kept {
        let stems: Vec<String> = stems(held).collect();
        let mut state = self.state();
        for stem in &stems {
            *state.content.kept.entry(stem.clone()).or_default() += 1;
        }
        drop(state);
        Kept { ledger: self.clone(), stems }
    }

    /// Stores the blobs of a plan. Blobs that this process has stored are not sent again: also a create that
    /// is rejected because the Secret exists passes through the log of etcd with all its bytes. A Secret that
    /// another client has deleted is detected when it is loaded, and stored again then.
    ///
    /// The caller keeps the content ([`Self::keep_content`]) until a record names it.
    ///
    /// # Errors
    /// [`LedgerError::Limit`], before anything is written, if the content exceeds a limit of a plan or of the
    /// cluster; otherwise the error of the API server.
    pub async fn store_content(
        &self,
        held: &Held,
        blobs: &BTreeMap<Digest, Bytes>,
    ) -> Result<(), LedgerError> {
        let pieces = pack(held, blobs)?;
        let sizes = || pieces.iter().map(|(name, _, piece)| (name, piece.len() as u64));
        if !self.state().content.has_room(sizes()) {
            self.drop_unused_content().await?;
        }
        loop {
            let has_room = self.state().content.has_room(sizes());
            if has_room || !self.drop_old_good_plan().await? {
                break;
            }
        }
        let _turn = self.content_turn().await;
        if !self.state().content.has_room(sizes()) {
            let max = CONTENT_TOTAL_BYTES_MAX;
            return Err(LedgerError::Limit { what: "bytes of content in all", max });
        }
        failpoint::reach("before-content-write");
        stream::iter(pieces)
            .map(|(name, count, piece)| self.store_piece(name, count, piece))
            .buffer_unordered(IN_FLIGHT_MAX)
            .try_collect::<()>()
            .await?;
        failpoint::reach("after-content-write");
        Ok(())
    }

    /// Drops the oldest good plan of the destination that keeps the most, if one keeps any before its newest. Returns
    /// whether one was dropped.
    async fn drop_old_good_plan(&self) -> Result<bool, LedgerError> {
        let Some(key) = self.with_records(keeps_most_good_plans) else { return Ok(false) };
        self.update(&key, |entry| Ok(entry.map(without_oldest_good_plan))).await?;
        tracing::warn!(
            application = %key.0, namespace = %key.1,
            "Dropped an old good plan, because the stored content of all plans reaches its limit"
        );
        self.drop_unused_content().await?;
        Ok(true)
    }

    async fn store_piece(
        &self,
        name: String,
        count: usize,
        piece: Vec<u8>,
    ) -> Result<(), LedgerError> {
        if self.state().content.confirmed.contains(&name) {
            return Ok(());
        }
        let mut secret = secrets::secret(&name, "", &[(PIECE_KEY, &piece)].into());
        secret.immutable = Some(true);
        secret.metadata.labels = secrets::texts([(RECORD_LABEL, CONTENT_LABEL_VALUE.to_owned())]);
        secret.metadata.annotations = secrets::texts([
            (PIECES_ANNOTATION, count.to_string()),
            (BYTES_ANNOTATION, piece.len().to_string()),
        ]);
        // Counted first: after an error it may have been written.
        self.state().content.stored.insert(name.clone(), piece.len() as u64);
        self.writes().spend(piece.len() as u64);
        match self.api().create(&collection(), &secret).await {
            // Addressed by content: an existing Secret has the same content, and loading checks it.
            Err(error) if !error.is_already_exists() => return Err(LedgerError::Api(error)),
            Ok(_) | Err(_) => {}
        }
        self.state().content.confirmed.insert(name);
        Ok(())
    }

    /// Loads the blobs of a plan that are stored together with a `wanted` one. The caller checks each
    /// against the digest that names it.
    ///
    /// # Errors
    /// [`LedgerError::Content`] if one of them is missing.
    pub async fn load_content(
        &self,
        held: &Held,
        wanted: impl Fn(&Digest) -> bool,
    ) -> Result<Vec<Bytes>, LedgerError> {
        let packs = packs(held).into_iter().filter(|(_, members)| members.iter().any(&wanted));
        let loads = packs.map(|(name, _)| self.load_pack(held.plan, name));
        Ok(futures::future::try_join_all(loads).await?.concat())
    }

    async fn load_pack(&self, plan: Digest, name: Digest) -> Result<Vec<Bytes>, LedgerError> {
        let lost = || LedgerError::Content { plan };
        let (first, count) = self.load_piece(plan, name, 0).await?;
        let mut bytes = first;
        for index in 1..count.min(PIECES_MAX) {
            bytes.extend(self.load_piece(plan, name, index).await?.0);
        }
        let mut whole = Vec::new();
        let reader = zstd::stream::read::Decoder::new(bytes.as_slice()).map_err(|_| lost())?;
        reader.take(CONTENT_BYTES_MAX).read_to_end(&mut whole).map_err(|_| lost())?;
        let packed = PackedBlobs::decode(whole.as_slice()).map_err(|_| lost())?;
        Ok(packed.blobs)
    }

    async fn load_piece(
        &self,
        plan: Digest,
        name: Digest,
        index: usize,
    ) -> Result<(Vec<u8>, usize), LedgerError> {
        let lost = || LedgerError::Content { plan };
        let found = self.api().read_optional(&path(&content_secret(name, index))).await;
        let found: Option<Secret> = found.map_err(LedgerError::Api)?;
        let Some(secret) = found else {
            // Others may have been deleted too.
            self.state().content.confirmed.clear();
            return Err(lost());
        };
        let annotations = secret.metadata.annotations.unwrap_or_default();
        let count = annotations.get(PIECES_ANNOTATION).and_then(|text| text.parse().ok());
        let piece = secret.data.and_then(|mut data| data.remove(PIECE_KEY)).ok_or_else(lost)?;
        Ok((piece.0, count.ok_or_else(lost)?))
    }

    /// Schedules the deletion of unused content.
    pub fn tidy_content(&self) {
        self.tidy().notify_one();
    }

    /// Deletes unused content when scheduled, for as long as the process lives.
    pub async fn keep_tidy(self) {
        loop {
            self.tidy().notified().await;
            tokio::time::sleep(TIDY_AFTER).await;
            if let Err(error) = self.drop_unused_content().await {
                tracing::warn!(
                    reason = error.reason().as_str(),
                    error = %error_chain(&error),
                    "Failed to delete unused content"
                );
                tokio::time::sleep(TIDY_RETRY).await;
                self.tidy_content();
            }
        }
    }

    /// Deletes content that no record names and no [`Kept`] keeps.
    ///
    /// Uses the index of this process, which is complete: it listed the content once and wrote the rest. If
    /// records were lost, nothing is deleted: the content shows what was deployed.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn drop_unused_content(&self) -> Result<(), LedgerError> {
        if self.lost().is_some() {
            return Ok(());
        }
        let unused: Vec<String> = {
            let state = self.state();
            let used = used(&state.records);
            let names = state.content.stored.keys();
            names.filter(|name| state.content.is_unused(name, &used)).cloned().collect()
        };
        for name in unused {
            // Nothing is stored during a deletion; content that was stored since is checked again.
            let _turn = self.content_turn().await;
            let still = {
                let state = self.state();
                state.content.is_unused(&name, &used(&state.records))
            };
            if still {
                // Removed first: after an error it may no longer exist.
                self.state().content.confirmed.remove(&name);
                failpoint::reach("before-content-delete");
                self.api().delete_own(&path(&name)).await.map_err(LedgerError::Api)?;
                failpoint::reach("after-content-delete");
                self.state().content.stored.remove(&name);
            }
        }
        Ok(())
    }
}

/// Returns the destination that keeps the most good plans before its newest, if one keeps any.
fn keeps_most_good_plans(records: &DestinationRecords) -> Option<Key> {
    let kept = records.iter().map(|(key, record)| (record.good.len(), key));
    let (count, key) = kept.max_by_key(|(count, _)| *count)?;
    (count > 0).then(|| key.clone())
}

fn without_oldest_good_plan(mut entry: Entry) -> Entry {
    entry.record.good.pop();
    entry
}

/// Returns the packs that the records name.
fn used(records: &DestinationRecords) -> BTreeSet<String> {
    records.values().flat_map(Record::plans).flat_map(stems).collect()
}

fn stems(held: &Held) -> impl Iterator<Item = String> {
    packs(held).into_iter().map(|(name, _)| content_stem(name))
}

#[cfg(test)]
mod tests;
