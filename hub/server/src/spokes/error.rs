//! Why a connection ended or never began, and what the other side is told.

use std::net::SocketAddr;

use attest_certs::TlsError;
use attest_common::basics::ids::{ClusterId, Digest};
use attest_common::session::frame::FrameError;
use attest_runtime::frames::StreamError;
use attest_runtime::probes::ADDRESS_IN_USE;
use quinn::VarInt;

use super::close::{CLOSE_COME_BACK, CLOSE_NOT_ADMITTED, CLOSE_PROTOCOL};
use crate::core::store::StoreError;

/// Why a connection ended or never began.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    #[error("cannot listen on {address} (UDP); choose another address with --listen-spokes")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("the certificates cannot be used")]
    Tls(#[source] TlsError),
    #[error("the cryptography offers no QUIC cipher")]
    Crypto,
    #[error("the connection ended")]
    Connection(#[source] quinn::ConnectionError),
    #[error("the peer did not say what it must in time")]
    Silent,
    #[error("the peer did not read what was sent to it in time")]
    NotReading,
    #[error("the peer's {0} is not acceptable")]
    HelloInvalid(&'static str),
    #[error("no common protocol version: the spoke speaks {0} to {1}")]
    ProtocolVersion(u32, u32),
    #[error("cluster {0} is not registered here")]
    ClusterUnknown(ClusterId),
    #[error("cluster {0} is revoked")]
    ClusterRevoked(ClusterId),
    #[error("cluster {0} is not accepted yet")]
    ClusterPending(ClusterId),
    #[error(
        "cluster {0} shows a certificate that a newer one has replaced; is its key in two hands?"
    )]
    CertificateNotCurrent(ClusterId),
    #[error("the spoke's certificate expired")]
    CertificateExpired,
    #[error("the hub is ending")]
    Stopping,
    #[error("blob {0} is missing in the hub's database")]
    BlobMissing(Digest),
    #[error("a frame is not acceptable")]
    Frame(#[source] FrameError),
    #[error("a frame of {length} bytes exceeds the limit of {max} here")]
    FrameTooLarge { length: usize, max: usize },
    #[error("the peer's stream ended")]
    Read(#[source] quinn::ReadError),
    #[error("the stream to the peer ended")]
    Write(#[source] quinn::WriteError),
    #[error("the stream to the peer was closed")]
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
            StreamError::NotReading => Self::NotReading,
            StreamError::Frame(source) => Self::Frame(source),
            StreamError::TooLarge { length, max } => Self::FrameTooLarge { length, max },
        }
    }
}

impl LinkError {
    /// A stable word for metrics, logs and the reason of a close.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Listen { .. } => ADDRESS_IN_USE,
            Self::Tls(error) => error.reason(),
            Self::Crypto => "TlsCrypto",
            Self::Connection(_) | Self::Read(_) | Self::Write(_) | Self::StreamClosed => {
                "ConnectionLost"
            }
            Self::Silent => "GreetingTimeout",
            Self::NotReading => "NotReading",
            Self::HelloInvalid(_) => "HelloInvalid",
            Self::ProtocolVersion(..) => "ProtocolVersion",
            Self::ClusterUnknown(_) => "ClusterUnknown",
            Self::ClusterRevoked(_) => "ClusterRevoked",
            Self::ClusterPending(_) => "ClusterPending",
            Self::CertificateNotCurrent(_) => "CertificateNotCurrent",
            Self::CertificateExpired => "CertificateExpired",
            Self::Stopping => "HubStopping",
            Self::BlobMissing(_) => "BlobMissing",
            Self::Frame(error) => error.reason(),
            Self::FrameTooLarge { .. } => "FrameTooLarge",
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
            | Self::Tls(_) => CLOSE_NOT_ADMITTED,
            Self::HelloInvalid(_)
            | Self::ProtocolVersion(..)
            | Self::Frame(_)
            | Self::FrameTooLarge { .. }
            | Self::Silent => CLOSE_PROTOCOL,
            Self::Listen { .. }
            | Self::Crypto
            | Self::Connection(_)
            | Self::CertificateExpired
            | Self::Stopping
            | Self::NotReading
            | Self::BlobMissing(_)
            | Self::Read(_)
            | Self::Write(_)
            | Self::StreamClosed
            | Self::Store(_) => CLOSE_COME_BACK,
        };
        (code, self.reason())
    }
}
