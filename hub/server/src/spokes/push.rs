//! Push of one directive to one spoke, on its own stream: first the blobs that the spoke lacks, then the directive.

use std::sync::Arc;
use std::time::Duration;

use attest_common::basics::ids::Digest;
use attest_common::session::frame::{BLOB_PIECE_BYTES_MAX, encode};
use attest_common::session::message::{Blob, Push, ToSpoke, ToSpokeBody};
use bytes::Bytes;
use quinn::{Connection, SendStream};

use super::close::CLOSE_COME_BACK;
use super::error::LinkError;
use crate::core::Core;
use crate::core::blocking::blocking;
use crate::core::fleet::Pending;
use crate::core::store::records::CompressedBlob;

/// Most ledger entries searched for the directive that a spoke holds; a spoke further behind receives all blobs.
const HELD_BEHIND_MAX: usize = 20;
/// Longest time without progress of a push: to open its stream, and to write each of its frames. A spoke allows as
/// much for a whole push.
pub const PROGRESS_TIMEOUT: Duration = Duration::from_secs(60);

/// Returns the blobs to send with a directive: those of its plan that the spoke lacks.
pub(super) async fn prepare(
    core: &Arc<Core>,
    number: u64,
    pending: &Pending,
) -> Result<Vec<CompressedBlob>, LinkError> {
    let all = pending.head.planned.as_ref().map(|planned| planned.blobs.clone());
    let all = all.unwrap_or_default();
    if pending.held_sequence == 0 {
        // Cached blobs need no blocking thread: a rollout prepares the pushes to all spokes together.
        let lacking = core.fleet.lacking(number, pending, &all);
        let kept: Option<Vec<_>> = lacking.iter().map(|blob| core.fleet.kept_blob(blob)).collect();
        if let Some(blobs) = kept {
            return Ok(begin(core, number, pending, blobs));
        }
    }
    let pending = pending.clone();
    blocking(core, move |core| {
        if pending.held_sequence > 0 {
            let ledger = core.records.ledger(&pending.destination, HELD_BEHIND_MAX)?;
            let held = ledger.into_iter().find(|entry| entry.sequence == pending.held_sequence);
            let has = held.and_then(|entry| entry.planned).map(|planned| planned.blobs);
            core.fleet.spoke_has(&pending.destination, has.into_iter().flatten());
        }
        // Read before the push is recorded, so that an unreadable blob does not count as sent.
        let mut blobs = Vec::new();
        for digest in core.fleet.lacking(number, &pending, &all) {
            let blob = core.fleet.blob(&core.records, &digest)?;
            blobs.push(blob.ok_or(LinkError::BlobMissing(digest))?);
        }
        Ok(begin(core, number, &pending, blobs))
    })
    .await
}

/// Records the push. Returns those of `blobs` that no other push of the session carries.
fn begin(
    core: &Core,
    number: u64,
    pending: &Pending,
    mut blobs: Vec<CompressedBlob>,
) -> Vec<CompressedBlob> {
    let read: Vec<Digest> = blobs.iter().map(|blob| blob.digest).collect();
    let sent = core.fleet.begin_push(number, pending, &read);
    blobs.retain(|blob| sent.contains(&blob.digest));
    blobs
}

/// Opens the stream of a push.
///
/// # Errors
/// When the spoke grants no stream within [`PROGRESS_TIMEOUT`].
pub(super) async fn open(connection: &Connection) -> Result<SendStream, LinkError> {
    within_progress_timeout(connection.open_uni()).await?.map_err(LinkError::Connection)
}

/// Sends a directive and its blobs, and waits until the spoke has received them.
///
/// # Errors
/// When the spoke stops the stream, or makes no progress for [`PROGRESS_TIMEOUT`].
pub(super) async fn push(
    core: &Arc<Core>,
    mut stream: SendStream,
    pending: &Pending,
    blobs: &[CompressedBlob],
) -> Result<(), LinkError> {
    let pushed = write(core, &mut stream, pending, blobs).await;
    if pushed.is_err() {
        // Frees the buffers of the stream. Fails only when it is already closed.
        let _ = stream.reset(CLOSE_COME_BACK);
    }
    pushed
}

async fn write(
    core: &Arc<Core>,
    stream: &mut SendStream,
    pending: &Pending,
    blobs: &[CompressedBlob],
) -> Result<(), LinkError> {
    let mut sent = 0;
    for blob in blobs {
        for frame in frames(blob)? {
            sent += frame.len() as u64;
            within_progress_timeout(stream.write_all_chunks(&mut [frame]))
                .await?
                .map_err(LinkError::Write)?;
        }
    }
    let plan = pending.head.planned.as_ref().map(|planned| planned.envelope.raw().to_vec());
    let directive = pending.head.directive.as_bytes().to_vec();
    let push = Push { directive, plan: plan.unwrap_or_default() };
    let frame = encode(&to_spoke(ToSpokeBody::Directive(push))).map_err(LinkError::Frame)?;
    sent += frame.len() as u64;
    within_progress_timeout(stream.write_all(&frame)).await?.map_err(LinkError::Write)?;
    stream.finish().map_err(|_| LinkError::StreamClosed)?;
    core.metrics.pushes.inc();
    core.metrics.push_bytes.inc_by(sent);
    // Waits for receipt, so that the limit on pushes counts those in progress.
    match within_progress_timeout(stream.stopped()).await? {
        Ok(None) => Ok(()),
        // The spoke stopped the stream: the push was not received.
        Ok(Some(_)) | Err(_) => Err(LinkError::StreamClosed),
    }
}

/// Wraps `body` in a message to a spoke.
pub(super) fn to_spoke(body: ToSpokeBody) -> ToSpoke {
    ToSpoke { body: Some(body) }
}

async fn within_progress_timeout<T>(step: impl Future<Output = T>) -> Result<T, LinkError> {
    tokio::time::timeout(PROGRESS_TIMEOUT, step).await.map_err(|_| LinkError::WriteTimedOut)
}

fn frames(blob: &CompressedBlob) -> Result<Vec<Bytes>, LinkError> {
    let pieces = blob.data.chunks(BLOB_PIECE_BYTES_MAX);
    let mut offset = 0;
    let mut frames = Vec::new();
    for piece in pieces {
        let message = Blob {
            sha256: blob.digest.raw().to_vec(),
            size: blob.size,
            offset,
            compressed_size: blob.data.len() as u64,
            data: piece.to_vec(),
        };
        offset += piece.len() as u64;
        frames
            .push(encode(&to_spoke(ToSpokeBody::Blob(message))).map_err(LinkError::Frame)?.into());
    }
    Ok(frames)
}
