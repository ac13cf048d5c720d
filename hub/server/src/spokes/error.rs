//! Errors of connections with spokes, and the close code that each maps to.

use std::net::SocketAddr;

use attest_certs::TlsError;
use attest_common::basics::ids::{ClusterId, Digest};
use attest_common::basics::reason::Reason;
use attest_common::session::frame::FrameError;
use attest_runtime::frames::StreamError;

use quinn::VarInt;

use super::close::{CLOSE_COME_BACK, CLOSE_NOT_ADMITTED, CLOSE_PROTOCOL};
use crate::core::store::StoreError;

/// Reason that a connection ended or was not established.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    #[error("failed to listen on {address} (UDP); choose another address with --listen-spokes")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("the TLS certificates are unusable")]
    Tls(#[source] TlsError),
    #[error("the TLS provider does not support QUIC")]
    Crypto,
    #[error("connection lost")]
    Connection(#[source] quinn::ConnectionError),
    #[error("handshake timed out")]
    HandshakeTimedOut,
    #[error("timed out writing to the peer")]
    WriteTimedOut,
    #[error("the peer sent an invalid {0}")]
    HelloInvalid(&'static str),
    #[error("no common protocol version: the spoke supports {0} to {1}")]
    ProtocolVersion(u32, u32),
    #[error("cluster {0} is not registered")]
    ClusterUnknown(ClusterId),
    #[error("cluster {0} is revoked")]
    ClusterRevoked(ClusterId),
    #[error("cluster {0} is not accepted yet")]
    ClusterPending(ClusterId),
    #[error(
        "cluster {0} presented a certificate that is no longer valid; \
         run `attest gitops cluster rejoin` for a new one"
    )]
    CertificateNotCurrent(ClusterId),
    #[error(
        "the identity of cluster {0} was copied, or restored from a backup; find out who has it, then run \
         `attest gitops cluster rejoin`"
    )]
    IdentityCopied(ClusterId),
    #[error("the spoke's certificate expired")]
    CertificateExpired,
    #[error("the hub is stopping")]
    Stopping,
    #[error("blob {0} is missing from the hub's database")]
    BlobMissing(Digest),
    #[error("invalid frame")]
    Frame(#[source] FrameError),
    #[error("a frame of {length} bytes exceeds the limit of {max} bytes")]
    FrameTooLarge { length: usize, max: usize },
    #[error("failed to read from the peer")]
    Read(#[source] quinn::ReadError),
    #[error("failed to write to the peer")]
    Write(#[source] quinn::WriteError),
    #[error("the peer closed the stream")]
    StreamClosed,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<StreamError> for LinkError {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Read(source) => Self::Read(source),
            StreamError::Write(source) => Self::Write(source),
            StreamError::Truncated => Self::StreamClosed,
            StreamError::WriteTimedOut => Self::WriteTimedOut,
            StreamError::Frame(source) => Self::Frame(source),
            StreamError::TooLarge { length, max } => Self::FrameTooLarge { length, max },
        }
    }
}

impl LinkError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Listen { .. } => Reason::AddressInUse,
            Self::Tls(error) => error.reason(),
            Self::Crypto => Reason::TlsCrypto,
            Self::Connection(_) | Self::Read(_) | Self::Write(_) | Self::StreamClosed => {
                Reason::ConnectionLost
            }
            Self::HandshakeTimedOut => Reason::PeerTimeout,
            Self::WriteTimedOut => Reason::WriteTimeout,
            Self::HelloInvalid(_) => Reason::HelloInvalid,
            Self::ProtocolVersion(..) => Reason::ProtocolVersion,
            Self::ClusterUnknown(_) => Reason::ClusterUnknown,
            Self::ClusterRevoked(_) => Reason::ClusterRevoked,
            Self::ClusterPending(_) => Reason::ClusterPending,
            Self::CertificateNotCurrent(_) => Reason::CertificateNotCurrent,
            Self::IdentityCopied(_) => Reason::IdentityCopied,
            Self::CertificateExpired => Reason::CertificateExpired,
            Self::Stopping => Reason::HubStopping,
            Self::BlobMissing(_) => Reason::BlobMissing,
            Self::Frame(error) => error.reason(),
            Self::FrameTooLarge { .. } => Reason::FrameTooLarge,
            Self::Store(error) => error.reason(),
        }
    }

    /// Code and reason of the close.
    pub(super) fn close(&self) -> (VarInt, &'static str) {
        let code = match self {
            Self::ClusterUnknown(_)
            | Self::ClusterRevoked(_)
            | Self::ClusterPending(_)
            | Self::CertificateNotCurrent(_)
            | Self::IdentityCopied(_)
            | Self::Tls(_) => CLOSE_NOT_ADMITTED,
            Self::HelloInvalid(_)
            | Self::ProtocolVersion(..)
            | Self::Frame(_)
            | Self::FrameTooLarge { .. }
            | Self::HandshakeTimedOut => CLOSE_PROTOCOL,
            Self::Listen { .. }
            | Self::Crypto
            | Self::Connection(_)
            | Self::CertificateExpired
            | Self::Stopping
            | Self::WriteTimedOut
            | Self::BlobMissing(_)
            | Self::Read(_)
            | Self::Write(_)
            | Self::StreamClosed
            | Self::Store(_) => CLOSE_COME_BACK,
        };
        (code, self.reason().as_str())
    }
}
