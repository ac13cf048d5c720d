//! One push of the hub: blobs, then one directive, on a stream of its own. Assembles blobs, checks sizes and digests.
//!
//! `admission::gate` judges the directive.

use std::collections::BTreeMap;
use std::sync::Arc;

use attest_common::basics::envelope::ENVELOPE_BYTES_MAX;
use attest_common::basics::ids::Digest;
use attest_common::documents::manifest::RENDERING_BYTES_MAX;
use attest_common::documents::plan::RECEIPTS_MAX;
use attest_common::session::message::{Blob, ToSpoke, ToSpokeBody};
use attest_runtime::frames::FrameReader;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::quic::LinkError;

/// Largest blob, uncompressed and compressed, in bytes.
pub const BLOB_BYTES_MAX: usize = RENDERING_BYTES_MAX;
/// Most blobs in one push: plan, release, content, receipts.
pub const BLOBS_MAX: usize = RECEIPTS_MAX + 3;
/// Most uncompressed bytes in one push.
pub const PUSH_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Most frames after the directive that this build does not know.
pub const FRAMES_AFTER_MAX: usize = 16;

/// Most bytes of all pushes of the process, from their first blob until they are judged.
pub const PUSHES_BYTES_MAX: usize = 48 * 1024 * 1024;
/// Most bytes of a push while it arrives: complete blobs, and one that is still compressed.
const ARRIVING_BYTES_MAX: usize = PUSH_BYTES_MAX + BLOB_BYTES_MAX;

/// Memory for the blobs of pushes, shared by all connections of the process.
#[derive(Clone, Debug)]
pub struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(PUSHES_BYTES_MAX)))
    }
}

impl Room {
    /// Waits for the most memory that one push may need, in one step: pushes that each hold a part and
    /// wait for more could deadlock.
    async fn enter(&self) -> Result<OwnedSemaphorePermit, LinkError> {
        let bytes = u32::try_from(ARRIVING_BYTES_MAX).unwrap_or(u32::MAX);
        // Never closed; otherwise no push could arrive.
        Arc::clone(&self.0).acquire_many_owned(bytes).await.map_err(|_| LinkError::Truncated)
    }
}

/// Releases all but `bytes`.
fn shrink(permit: &mut OwnedSemaphorePermit, bytes: usize) {
    drop(permit.split(permit.num_permits().saturating_sub(bytes)));
}

/// A push that has arrived.
#[derive(Debug)]
pub struct Pushed {
    /// Directive envelope.
    pub directive: Vec<u8>,
    /// Digest of the blob that is the plan envelope; absent for `Remove`.
    pub plan: Option<Digest>,
    pub blobs: BTreeMap<Digest, Bytes>,
    /// Memory of the blobs until they are judged; absent if there are none.
    pub room: Option<OwnedSemaphorePermit>,
}

/// Reads one push to its end. Its first blob waits for memory.
///
/// # Errors
/// If it exceeds a limit, a blob does not match its digest, or the stream breaks.
pub async fn receive(reader: &mut FrameReader, room: &Room) -> Result<Pushed, LinkError> {
    let mut blobs = BTreeMap::new();
    let mut taken = None;
    let mut bytes_total = 0;
    let mut open: Option<Assembly> = None;
    loop {
        let expected = "a directive";
        let message = reader.next::<ToSpoke>().await?;
        let message = message.ok_or(LinkError::Unexpected { got: "nothing more", expected })?;
        match message.body {
            Some(ToSpokeBody::Blob(piece)) => {
                let assembly = match open.take() {
                    Some(assembly) => assembly,
                    None => {
                        let assembly = Assembly::begin(&piece)?;
                        if taken.is_none() {
                            taken = Some(room.enter().await?);
                        }
                        bytes_total += assembly.size;
                        if blobs.len() >= BLOBS_MAX {
                            return Err(LinkError::Limit { what: "blobs", max: BLOBS_MAX });
                        }
                        if bytes_total > PUSH_BYTES_MAX {
                            return Err(LinkError::Limit { what: "bytes", max: PUSH_BYTES_MAX });
                        }
                        assembly
                    }
                };
                match assembly.add(&piece)? {
                    Added::More(assembly) => open = Some(assembly),
                    Added::Done(digest, bytes) => {
                        blobs.insert(digest, bytes);
                    }
                }
            }
            Some(ToSpokeBody::Directive(push)) => {
                if open.is_some() {
                    return Err(LinkError::Unexpected { got: "a directive", expected: "a blob" });
                }
                if push.directive.len() > ENVELOPE_BYTES_MAX {
                    return Err(LinkError::Limit { what: "bytes", max: ENVELOPE_BYTES_MAX });
                }
                let plan = match push.plan.as_slice() {
                    [] => None,
                    raw => Some(digest(raw)?),
                };
                if let Some(permit) = &mut taken {
                    shrink(permit, bytes_total);
                }
                end(reader).await?;
                return Ok(Pushed { directive: push.directive, plan, blobs, room: taken });
            }
            // A frame that this build does not know.
            None => {}
            Some(
                ToSpokeBody::Welcome(_)
                | ToSpokeBody::Sync(_)
                | ToSpokeBody::Acknowledge(_)
                | ToSpokeBody::Renewed(_),
            ) => return Err(LinkError::Unexpected { got: "a control message", expected }),
        }
    }
}

/// Reads to the end of the stream: stopping earlier would tell the hub that the push was not received.
async fn end(reader: &mut FrameReader) -> Result<(), LinkError> {
    for _ in 0..=FRAMES_AFTER_MAX {
        match reader.next::<ToSpoke>().await? {
            None => return Ok(()),
            Some(ToSpoke { body: None }) => {}
            Some(ToSpoke { body: Some(_) }) => {
                return Err(LinkError::Unexpected { got: "more", expected: "the end of a push" });
            }
        }
    }
    Err(LinkError::Limit { what: "frames after the directive", max: FRAMES_AFTER_MAX })
}

fn digest(raw: &[u8]) -> Result<Digest, LinkError> {
    raw.try_into().map(Digest::from_raw).map_err(|_| LinkError::BlobDigest)
}

struct Assembly {
    digest: Digest,
    size: usize,
    compressed_size: usize,
    data: Vec<u8>,
}

enum Added {
    More(Assembly),
    Done(Digest, Bytes),
}

impl Assembly {
    fn begin(piece: &Blob) -> Result<Self, LinkError> {
        let limited = |size: u64| {
            let size = usize::try_from(size).unwrap_or(usize::MAX);
            let limit = LinkError::Limit { what: "bytes a blob", max: BLOB_BYTES_MAX };
            if size > BLOB_BYTES_MAX { Err(limit) } else { Ok(size) }
        };
        Ok(Self {
            digest: digest(&piece.sha256)?,
            size: limited(piece.size)?,
            compressed_size: limited(piece.compressed_size)?,
            data: Vec::new(),
        })
    }

    fn add(mut self, piece: &Blob) -> Result<Added, LinkError> {
        let continues = piece.sha256 == self.digest.raw()
            && piece.offset == self.data.len() as u64
            && self.data.len() + piece.data.len() <= self.compressed_size;
        if !continues {
            return Err(LinkError::BlobDigest);
        }
        self.data.extend_from_slice(&piece.data);
        if self.data.len() < self.compressed_size {
            return Ok(Added::More(self));
        }
        // `size` is both the limit of the output and its expected length.
        let bytes =
            zstd::bulk::decompress(&self.data, self.size).map_err(|_| LinkError::BlobDigest)?;
        if bytes.len() != self.size || Digest::of(&bytes) != self.digest {
            return Err(LinkError::BlobDigest);
        }
        Ok(Added::Done(self.digest, bytes.into()))
    }
}

#[cfg(test)]
mod tests;
