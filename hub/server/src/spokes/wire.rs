//! Frames on QUIC streams: read one by one without losing bytes when the reader is interrupted.

use std::time::Duration;

use attest_common::session::frame::{self, LENGTH_BYTES};
use bytes::{Buf as _, BytesMut};
use prost::Message;
use quinn::{RecvStream, SendStream};

use super::LinkError;

/// Time in which a peer must have taken a frame that is written to it.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(20);
/// Most bytes taken from the stream at once.
const READ_BYTES_MAX: usize = 16 * 1024;

/// Reads frames from one stream.
#[derive(Debug)]
pub(crate) struct FrameReader {
    stream: RecvStream,
    frame_bytes_max: usize,
    read: BytesMut,
}

impl FrameReader {
    /// Reads frames of at most `frame_bytes_max`, and never more than [`frame::FRAME_BYTES_MAX`].
    pub(crate) fn new(stream: RecvStream, frame_bytes_max: usize) -> Self {
        Self { stream, frame_bytes_max, read: BytesMut::new() }
    }

    /// The next message; `None` when the peer has ended the stream. Nothing is lost when this is
    /// dropped before it is done: what was read stays here.
    pub(crate) async fn next<M: Message + Default>(&mut self) -> Result<Option<M>, LinkError> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            let chunk = self.stream.read_chunk(READ_BYTES_MAX, true).await;
            match chunk.map_err(LinkError::Read)? {
                Some(chunk) => self.read.extend_from_slice(&chunk.bytes),
                None if self.read.is_empty() => return Ok(None),
                None => return Err(LinkError::StreamClosed),
            }
        }
    }

    fn take<M: Message + Default>(&mut self) -> Result<Option<M>, LinkError> {
        let Some(prefix) = self.read.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = frame::body_length(*prefix).map_err(LinkError::Frame)?;
        if length > self.frame_bytes_max {
            return Err(LinkError::FrameTooLarge { length, max: self.frame_bytes_max });
        }
        let Some(body) = self.read.get(LENGTH_BYTES..LENGTH_BYTES + length) else {
            return Ok(None);
        };
        let message = frame::decode(body).map_err(LinkError::Frame);
        self.read.advance(LENGTH_BYTES + length);
        if self.read.is_empty() {
            // An idle connection keeps no buffer.
            self.read = BytesMut::new();
        }
        message.map(Some)
    }
}

/// Writes one message.
///
/// # Errors
/// [`LinkError::NotReading`] when the peer does not take it within [`WRITE_TIMEOUT`].
pub(crate) async fn send<M: Message>(
    stream: &mut SendStream,
    message: &M,
) -> Result<(), LinkError> {
    let frame = frame::encode(message).map_err(LinkError::Frame)?;
    let written = tokio::time::timeout(WRITE_TIMEOUT, stream.write_all(&frame)).await;
    written.map_err(|_| LinkError::NotReading)?.map_err(LinkError::Write)
}
