//! Held content: the blobs of one plan, packed into immutable Secrets, so that a spoke that lost its memory needs no hub.
//!
//! Nothing read here is believed: it is verified again like anything that comes from the hub.

use std::collections::BTreeSet;
use std::io::Read;

use attest_common::ids::Digest;
use bytes::Bytes;
use data_encoding::BASE64;
use futures::{StreamExt, TryStreamExt, stream};
use prost::Message;
use serde_json::{Value, json};

use super::{COMPRESSION_LEVEL, Ledger, LedgerError, RECORD_LABEL, collection, object};
use crate::NAMESPACE;
use crate::failpoint;

/// Bytes of one Secret's piece.
pub const PIECE_BYTES_MAX: usize = 900 * 1024;
/// Most uncompressed bytes of one plan's blobs.
pub const CONTENT_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Most pieces of one plan.
const PIECES_MAX: usize = 32;
const IN_FLIGHT_MAX: usize = 4;
const PIECES: &str = "attest.continuu.ms/pieces";
const PIECE: &str = "piece";

#[derive(Clone, PartialEq, Message)]
struct Packed {
    #[prost(bytes = "vec", repeated, tag = "1")]
    blobs: Vec<Vec<u8>>,
}

impl Ledger {
    /// Stores the blobs of the plan with this envelope digest. Done before returns a second time.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn store_content(&self, plan: Digest, blobs: &[Bytes]) -> Result<(), LedgerError> {
        let packed = Packed { blobs: blobs.iter().map(|blob| blob.to_vec()).collect() };
        let bytes = zstd::bulk::compress(&packed.encode_to_vec(), COMPRESSION_LEVEL)
            .map_err(|_| LedgerError::Content { plan })?;
        let pieces: Vec<Vec<u8>> = bytes.chunks(PIECE_BYTES_MAX).map(<[u8]>::to_vec).collect();
        let count = pieces.len();
        failpoint::reach("before-content-write");
        stream::iter(pieces.into_iter().enumerate())
            .map(|(index, piece)| self.store_piece(plan, index, count, piece))
            .buffer_unordered(IN_FLIGHT_MAX)
            .try_collect::<()>()
            .await?;
        failpoint::reach("after-content-write");
        Ok(())
    }

    async fn store_piece(
        &self,
        plan: Digest,
        index: usize,
        count: usize,
        piece: Vec<u8>,
    ) -> Result<(), LedgerError> {
        let name = piece_name(plan, index);
        let body = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque", "immutable": true,
            "metadata": {
                "name": name, "namespace": NAMESPACE,
                "labels": {RECORD_LABEL: "content"},
                "annotations": {PIECES: count.to_string()},
            },
            "data": {PIECE: BASE64.encode(&piece)},
        });
        match self.api().create(&collection(), &body).await {
            // Addressed by content: whoever wrote it wrote this, and loading checks.
            Err(error) if !error.is_already_exists() => Err(LedgerError::Api(error)),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// The blobs of a plan, each still to be checked against the digest that names it.
    ///
    /// # Errors
    /// [`LedgerError::Content`] when they are not all there.
    pub async fn load_content(&self, plan: Digest) -> Result<Vec<Bytes>, LedgerError> {
        let lost = || LedgerError::Content { plan };
        let (first, count) = self.load_piece(plan, 0).await?;
        let mut bytes = first;
        for index in 1..count.min(PIECES_MAX) {
            bytes.extend(self.load_piece(plan, index).await?.0);
        }
        let mut whole = Vec::new();
        let reader = zstd::stream::read::Decoder::new(bytes.as_slice()).map_err(|_| lost())?;
        reader.take(CONTENT_BYTES_MAX).read_to_end(&mut whole).map_err(|_| lost())?;
        let packed = Packed::decode(whole.as_slice()).map_err(|_| lost())?;
        Ok(packed.blobs.into_iter().map(Bytes::from).collect())
    }

    async fn load_piece(
        &self,
        plan: Digest,
        index: usize,
    ) -> Result<(Vec<u8>, usize), LedgerError> {
        let lost = || LedgerError::Content { plan };
        let found = self.api().get_optional(&object(&piece_name(plan, index))).await;
        let secret = found.map_err(LedgerError::Api)?.ok_or_else(lost)?;
        let text = secret.get("data").and_then(|data| data.get(PIECE)).and_then(Value::as_str);
        let bytes = BASE64.decode(text.unwrap_or_default().as_bytes()).map_err(|_| lost())?;
        let pieces = secret.pointer("/metadata/annotations").and_then(|a| a.get(PIECES));
        let count = pieces.and_then(Value::as_str).and_then(|text| text.parse().ok());
        Ok((bytes, count.ok_or_else(lost)?))
    }

    /// Deletes content that no record names. Returns how many Secrets there were in all.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn drop_unused_content(&self) -> Result<usize, LedgerError> {
        let path = format!("{}?labelSelector={RECORD_LABEL}%3Dcontent", collection());
        let list = self.api().names(&path).await.map_err(LedgerError::Api)?;
        let used: BTreeSet<String> = self.with_records(|records| {
            let held = records.values().flat_map(|r| r.held.iter().chain(&r.last_good));
            held.map(|held| stem(held.plan)).collect()
        });
        for name in &list {
            let unused = name.rsplit_once('-').is_none_or(|(stem, _)| !used.contains(stem));
            if unused {
                self.api().delete_own(&object(name)).await.map_err(LedgerError::Api)?;
            }
        }
        Ok(list.len())
    }
}

impl crate::cluster::ApiServer {
    /// The names in a list, without the bodies.
    async fn names(&self, path: &str) -> Result<Vec<String>, crate::cluster::ApiError> {
        let list = self.get_metadata(path).await?;
        let items = list.get("items").and_then(Value::as_array).into_iter().flatten();
        let names = items.filter_map(|item| item.pointer("/metadata/name")?.as_str());
        Ok(names.map(str::to_owned).collect())
    }
}

fn stem(plan: Digest) -> String {
    format!("attest-content-{}", plan.hex().chars().take(40).collect::<String>())
}

fn piece_name(plan: Digest, index: usize) -> String {
    format!("{}-{index}", stem(plan))
}
