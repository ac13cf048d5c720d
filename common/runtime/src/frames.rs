//! Frames on QUIC streams, and transport settings common to both ends. Independent of the messages.

use std::time::Duration;

use attest_common::session::IDLE_TIMEOUT_MS;
use attest_common::session::frame::{self, FrameError, LENGTH_BYTES};
use bytes::{Buf as _, BytesMut};
use prost::Message;
use quinn::{IdleTimeout, RecvStream, SendStream, TransportConfig, VarInt};

/// Longest duration of writing a frame to a peer.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(20);
/// Receive window of one stream in bytes.
pub const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// Send window of a connection in bytes.
pub const SEND_WINDOW_BYTES: u64 = 1024 * 1024;
/// zstd level of sent and stored content.
pub const COMPRESSION_LEVEL: i32 = 3;
/// Most bytes read from a stream at a time.
const READ_BYTES_MAX: usize = 16 * 1024;

/// Returns the transport configuration of both ends. Each end sets the granted streams, the connection's window and
/// keep-alives.
pub fn transport() -> TransportConfig {
    let idle_ms = u32::try_from(IDLE_TIMEOUT_MS).unwrap_or(u32::MAX);
    let mut transport = TransportConfig::default();
    transport
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(idle_ms))));
    transport
}

/// Reads frames from one stream. Dropping a pending [`Self::next`] loses nothing.
#[derive(Debug)]
pub struct FrameReader {
    stream: RecvStream,
    unread: Unread,
}

impl FrameReader {
    /// Creates a reader of frames of at most `frame_bytes_max`, and at most [`frame::FRAME_BYTES_MAX`].
    pub fn new(stream: RecvStream, frame_bytes_max: usize) -> Self {
        Self { stream, unread: Unread { frame_bytes_max, buffer: BytesMut::new() } }
    }

    /// Returns the next message; `None` when the peer finished the stream between frames.
    ///
    /// # Errors
    /// When a frame is too large or malformed, or the stream ends inside one.
    pub async fn next<M: Message + Default>(&mut self) -> Result<Option<M>, StreamError> {
        loop {
            if let Some(message) = self.unread.take()? {
                return Ok(Some(message));
            }
            let chunk = self.stream.read_chunk(READ_BYTES_MAX, true).await;
            match chunk.map_err(StreamError::Read)? {
                Some(chunk) => self.unread.buffer.extend_from_slice(&chunk.bytes),
                None if self.unread.buffer.is_empty() => return Ok(None),
                None => return Err(StreamError::Truncated),
            }
        }
    }
}

/// Received bytes that are not yet returned as frames.
#[derive(Debug)]
struct Unread {
    frame_bytes_max: usize,
    buffer: BytesMut,
}

impl Unread {
    fn take<M: Message + Default>(&mut self) -> Result<Option<M>, StreamError> {
        let Some(prefix) = self.buffer.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = frame::body_length(*prefix).map_err(StreamError::Frame)?;
        if length > self.frame_bytes_max {
            return Err(StreamError::TooLarge { length, max: self.frame_bytes_max });
        }
        let end = LENGTH_BYTES + length;
        let Some(body) = self.buffer.get(LENGTH_BYTES..end) else { return Ok(None) };
        let message = frame::decode(body).map_err(StreamError::Frame)?;
        self.buffer.advance(end);
        if self.buffer.is_empty() {
            // Frees the buffer of an idle stream.
            self.buffer = BytesMut::new();
        }
        Ok(Some(message))
    }
}

/// Writes one message.
///
/// # Errors
/// When the message is too large, the stream is closed, or the write exceeds [`WRITE_TIMEOUT`].
pub async fn write<M: Message>(stream: &mut SendStream, message: &M) -> Result<(), StreamError> {
    write_within(stream, message, WRITE_TIMEOUT).await
}

/// Writes one message within `limit`.
///
/// # Errors
/// As [`write()`].
pub async fn write_within<M: Message>(
    stream: &mut SendStream,
    message: &M,
    limit: Duration,
) -> Result<(), StreamError> {
    let bytes = frame::encode(message).map_err(StreamError::Frame)?;
    let written = tokio::time::timeout(limit, stream.write_all(&bytes)).await;
    written.map_err(|_| StreamError::WriteTimedOut)?.map_err(StreamError::Write)
}

/// Failure to read or write a frame. Each end maps it to an error of its own that names the peer.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("failed to read from the peer")]
    Read(#[source] quinn::ReadError),
    #[error("failed to write to the peer")]
    Write(#[source] quinn::WriteError),
    #[error("the stream ended inside a frame")]
    Truncated,
    #[error("timed out writing to the peer")]
    WriteTimedOut,
    #[error("invalid frame")]
    Frame(#[source] FrameError),
    #[error("a frame of {length} bytes exceeds the limit of {max} bytes")]
    TooLarge { length: usize, max: usize },
}

#[cfg(test)]
mod tests {
    use attest_common::session::message::{ToSpoke, ToSpokeBody};

    use super::*;

    fn frames() -> Vec<u8> {
        let frames = (1..=3).map(|number| {
            let body = Some(ToSpokeBody::Acknowledge(number));
            frame::encode(&ToSpoke { body }).unwrap()
        });
        frames.collect::<Vec<_>>().concat()
    }

    #[test]
    fn frames_are_taken_in_order_however_they_arrive() {
        let all = frames();
        for cut in 0..=all.len() {
            let mut unread = Unread { frame_bytes_max: 100, buffer: BytesMut::new() };
            let mut taken = Vec::new();
            for part in [all.get(..cut).unwrap(), all.get(cut..).unwrap()] {
                unread.buffer.extend_from_slice(part);
                while let Some(ToSpoke { body: Some(ToSpokeBody::Acknowledge(n)) }) =
                    unread.take().unwrap()
                {
                    taken.push(n);
                }
            }
            assert_eq!((taken, unread.buffer.len()), (vec![1, 2, 3], 0), "{cut}");
            assert_eq!(unread.buffer.capacity(), 0, "{cut}");
        }
    }

    #[test]
    fn a_frame_above_the_limit_of_its_reader_is_refused_by_its_length() {
        let mut unread = Unread { frame_bytes_max: 1, buffer: BytesMut::from(&frames()[..4]) };

        let error = unread.take::<ToSpoke>().unwrap_err();

        assert!(matches!(error, StreamError::TooLarge { length: 2, max: 1 }), "{error}");
    }
}
