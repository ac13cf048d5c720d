//! One push of the hub: blobs, then one directive, on a stream of its own. Assembles, checks sizes and digests.
//!
//! Whether the directive is good is decided by `gate`.

use std::collections::BTreeMap;
use std::sync::Arc;

use attest_common::basics::envelope::ENVELOPE_BYTES_MAX;
use attest_common::basics::ids::Digest;
use attest_common::documents::manifest::RENDERING_BYTES_MAX;
use attest_common::documents::plan::RECEIPTS_MAX;
use attest_common::session::message::{Blob, ToSpoke, ToSpokeBody};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::quic::{FrameReader, LinkError};

/// Largest blob, uncompressed and compressed, in bytes.
pub const BLOB_BYTES_MAX: usize = RENDERING_BYTES_MAX;
/// Most blobs in one push: plan, release, content, receipts.
pub const BLOBS_MAX: usize = RECEIPTS_MAX + 3;
/// Most uncompressed bytes in one push.
pub const PUSH_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Most frames after the directive, of kinds that this build does not know.
pub const FRAMES_AFTER_MAX: usize = 16;

/// Most bytes that pushes of the whole process take up, from their first blob until they are judged.
pub const PUSHES_BYTES_MAX: usize = 48 * 1024 * 1024;
/// Most bytes a push takes up while it arrives: what is whole, and one blob still compressed.
const ARRIVING_BYTES_MAX: usize = PUSH_BYTES_MAX + BLOB_BYTES_MAX;

/// Room for the blobs of pushes, shared by all connections of the process.
#[derive(Clone, Debug)]
pub struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(PUSHES_BYTES_MAX)))
    }
}

impl Room {
    /// Waits for the room that one push may need at most, all at once: pushes that each hold a part
    /// and wait for more could wait for each other.
    async fn enter(&self) -> Result<OwnedSemaphorePermit, LinkError> {
        let bytes = u32::try_from(ARRIVING_BYTES_MAX).unwrap_or(u32::MAX);
        // Never closed; if it were, nothing more could arrive.
        Arc::clone(&self.0).acquire_many_owned(bytes).await.map_err(|_| LinkError::Cut)
    }
}

/// Gives back all but `bytes`.
fn shrink(permit: &mut OwnedSemaphorePermit, bytes: usize) {
    drop(permit.split(permit.num_permits().saturating_sub(bytes)));
}

/// What arrived.
#[derive(Debug)]
pub struct Pushed {
    /// Directive envelope.
    pub directive: Vec<u8>,
    /// Which blob is the plan envelope; absent for `Remove`.
    pub plan: Option<Digest>,
    pub blobs: BTreeMap<Digest, Bytes>,
    /// The room that the blobs take up until they are judged; absent when there are none.
    pub room: Option<OwnedSemaphorePermit>,
}

/// Reads one push to its end. Its first blob waits for room.
///
/// # Errors
/// When it exceeds a limit, a blob does not match its digest, or the stream breaks.
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
            // A kind of frame that this build does not know.
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

/// Reads on to the end of the stream: who leaves before it tells the hub that nothing was taken.
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
        // `size` is both the room given and what must come out.
        let bytes =
            zstd::bulk::decompress(&self.data, self.size).map_err(|_| LinkError::BlobDigest)?;
        if bytes.len() != self.size || Digest::of(&bytes) != self.digest {
            return Err(LinkError::BlobDigest);
        }
        Ok(Added::Done(self.digest, bytes.into()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use attest_common::session::frame;
    use attest_common::session::message::Push;

    use super::*;
    use crate::link::quic;
    use crate::link::stubborn_hub::StubbornHub;

    fn piece(bytes: &[u8], offset: usize, take: usize) -> Blob {
        let compressed = zstd::bulk::compress(bytes, 3).unwrap();
        let end = (offset + take).min(compressed.len());
        Blob {
            sha256: Digest::of(bytes).raw().to_vec(),
            size: bytes.len() as u64,
            offset: offset as u64,
            compressed_size: compressed.len() as u64,
            data: compressed[offset..end].to_vec(),
        }
    }

    #[tokio::test]
    async fn all_pushes_together_take_a_bounded_room_and_give_it_back() {
        let room = Room::default();
        let mut first = room.enter().await.unwrap();
        let second = room.enter().await.unwrap();
        assert!(room.0.available_permits() < ARRIVING_BYTES_MAX);

        shrink(&mut first, 1_000);
        assert_eq!(room.0.available_permits(), ARRIVING_BYTES_MAX - 1_000);

        drop((first, second));
        assert_eq!(room.0.available_permits(), PUSHES_BYTES_MAX);
    }

    #[tokio::test]
    async fn a_push_is_read_to_its_end_so_that_the_hub_knows_it_was_taken() {
        let mut hub = StubbornHub::granting(0);
        let (_endpoint, connection) = quic::dial(&hub.address, hub.spoke_tls()).await.unwrap();
        let hub = hub.accepted.recv().await.unwrap();
        let directive = ToSpokeBody::Directive(Push { directive: vec![1], plan: vec![] });
        let directive = frame::encode(&ToSpoke { body: Some(directive) }).unwrap();
        let unknown = frame::encode(&ToSpoke { body: None }).unwrap();
        for (frames, taken) in [
            (vec![], true),
            (vec![&unknown; FRAMES_AFTER_MAX], true),
            (vec![&unknown; FRAMES_AFTER_MAX + 1], false),
            (vec![&directive], false),
        ] {
            let mut stream = hub.open_uni().await.unwrap();
            stream.write_all(&directive).await.unwrap();
            let incoming = connection.accept_uni().await.unwrap();
            let receiving = tokio::spawn(async move {
                let room = Room::default();
                receive(&mut FrameReader::new(incoming), &room).await.map(|push| push.directive)
            });
            tokio::time::sleep(Duration::from_millis(50)).await;
            for frame in frames {
                // Refused streams take no more.
                let _ = stream.write_all(frame).await;
            }
            let _ = stream.finish();

            assert_eq!(receiving.await.unwrap().is_ok(), taken);
            if taken {
                assert_eq!(stream.stopped().await.unwrap(), None);
            }
        }
    }

    #[test]
    fn a_blob_comes_together_from_its_pieces_in_order() {
        let text: Vec<u8> = (0..2_000_u32).flat_map(|i| (i * i).to_be_bytes()).collect();
        let first = piece(&text, 0, 100);

        let Added::More(open) = Assembly::begin(&first).unwrap().add(&first).unwrap() else {
            panic!("one piece of several is not the whole");
        };
        let Added::Done(digest, bytes) = open.add(&piece(&text, 100, usize::MAX / 2)).unwrap()
        else {
            panic!("all pieces are the whole");
        };

        assert_eq!((digest, bytes.as_ref()), (Digest::of(&text), text.as_slice()));
    }

    #[test]
    fn a_blob_that_lies_about_itself_is_refused() {
        let text = b"hello hello hello hello";
        let whole = piece(text, 0, usize::MAX / 2);
        let reason = |blob: &Blob| {
            Assembly::begin(blob).and_then(|a| a.add(blob)).map_or_else(|e| e.reason(), |_| "ok")
        };
        assert_eq!(reason(&whole), "ok");
        for (bad, expected) in [
            (Blob { size: 5, ..whole.clone() }, "BlobDigest"),
            (Blob { size: 100, ..whole.clone() }, "BlobDigest"),
            (Blob { size: u64::MAX, ..whole.clone() }, "Limit"),
            (Blob { offset: 1, ..whole.clone() }, "BlobDigest"),
            (Blob { sha256: vec![0; 32], ..whole.clone() }, "BlobDigest"),
            (Blob { sha256: vec![], ..whole }, "BlobDigest"),
        ] {
            assert_eq!(reason(&bad), expected, "{bad:?}");
        }
    }
}
