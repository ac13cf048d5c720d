//! Encoding of frames: a four-byte big-endian length, then one protobuf message. Bounded and incremental.
//!
//! The limit is checked on the length, before anything is allocated for the body.

use prost::Message;

use crate::basics::reason::Reason;

/// Largest frame in bytes.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// Largest piece of a blob in one frame, in bytes; leaves room for the frame around it.
pub const BLOB_PIECE_BYTES_MAX: usize = 512 * 1024;
/// Length of the prefix of a frame, in bytes.
pub const LENGTH_BYTES: usize = 4;

/// Encodes a message as a frame.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, FrameError> {
    let length = message.encoded_len();
    let prefix = u32::try_from(length).ok().filter(|_| length <= FRAME_BYTES_MAX);
    let prefix = prefix.ok_or(FrameError::TooLarge { length })?;
    let mut out = Vec::with_capacity(LENGTH_BYTES + length);
    out.extend_from_slice(&prefix.to_be_bytes());
    message.encode(&mut out).map_err(|_| FrameError::TooLarge { length })?;
    Ok(out)
}

/// Returns the length of the body from the prefix of a frame, unless it exceeds the limit.
pub fn body_length(prefix: [u8; LENGTH_BYTES]) -> Result<usize, FrameError> {
    let length = u32::from_be_bytes(prefix) as usize;
    if length > FRAME_BYTES_MAX { Err(FrameError::TooLarge { length }) } else { Ok(length) }
}

/// Decodes the body of a frame.
pub fn decode<M: Message + Default>(body: &[u8]) -> Result<M, FrameError> {
    M::decode(body).map_err(FrameError::Malformed)
}

/// Reason that a frame is invalid.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    #[error("a frame of {length} bytes exceeds the limit of {FRAME_BYTES_MAX} bytes")]
    TooLarge { length: usize },
    #[error("a frame does not contain a valid message")]
    Malformed(#[source] prost::DecodeError),
}

impl FrameError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::TooLarge { .. } => Reason::FrameTooLarge,
            Self::Malformed(_) => Reason::FrameMalformed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::message::{JoinAnswer, JoinRequest, Need, ToHub, ToHubBody, ToSpoke};

    #[test]
    fn a_frame_reads_back() {
        let message = ToHub {
            body: Some(ToHubBody::Need(Need {
                application: "a".into(),
                namespace: "n".into(),
                sha256: vec![vec![1; 32]],
            })),
        };

        let bytes = encode(&message).unwrap();
        let length = body_length(bytes[..4].try_into().unwrap()).unwrap();

        assert_eq!(length, bytes.len() - 4);
        assert_eq!(decode::<ToHub>(&bytes[4..]).unwrap(), message);
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_the_body_exists() {
        assert_eq!(
            body_length(u32::MAX.to_be_bytes()).unwrap_err().reason().as_str(),
            "FrameTooLarge"
        );
        assert_eq!(
            body_length(1_048_577_u32.to_be_bytes()).unwrap_err().reason().as_str(),
            "FrameTooLarge"
        );
        assert!(body_length(1_048_576_u32.to_be_bytes()).is_ok());
    }

    #[test]
    fn an_unknown_variant_of_a_newer_peer_is_an_empty_body() {
        // Field 15, length-delimited, empty: a body this build does not know.
        let decoded = decode::<ToHub>(&[0x7a, 0x00]).unwrap();

        assert_eq!(decoded.body, None);
    }

    #[test]
    fn a_body_that_is_cut_short_or_no_message_is_an_error() {
        let message = ToHub {
            body: Some(ToHubBody::Need(Need { application: "a".into(), ..Need::default() })),
        };
        let bytes = encode(&message).unwrap();
        let body = &bytes[LENGTH_BYTES..];
        for length in 1..body.len() {
            let error = decode::<ToHub>(&body[..length]).unwrap_err();
            assert_eq!(error.reason().as_str(), "FrameMalformed", "{length} bytes");
        }
        // A string that is not UTF-8, a wire type nobody has, a field number of zero.
        for wrong in [&[0x12, 0x03, 0x0a, 0x01, 0xff][..], &[0x0f], &[0x02, 0x00]] {
            assert_eq!(decode::<ToHub>(wrong).unwrap_err().reason().as_str(), "FrameMalformed");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_a_reader_of_frames_panic(bytes: Vec<u8>, prefix: [u8; LENGTH_BYTES]) {
            let _ = body_length(prefix);
            let _ = decode::<ToHub>(&bytes);
            let _ = decode::<ToSpoke>(&bytes);
            let _ = decode::<JoinRequest>(&bytes);
            let _ = decode::<JoinAnswer>(&bytes);
        }
    }
}
