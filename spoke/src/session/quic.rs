//! QUIC connection to the hub: endpoint and transport limits. Independent of the messages.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use attest_certs::Pin;
use attest_certs::tls::HUB_SERVER_NAME;
use attest_common::basics::reason::Reason;
use attest_common::session::frame::FrameError;
use attest_common::session::reconnect::Ending;
use attest_common::session::{GREETING_TIMEOUT_MS, KEEP_ALIVE_MS, UNIDIRECTIONAL_STREAMS_MAX};
use attest_runtime::frames::{self, STREAM_WINDOW_BYTES, StreamError};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, EndpointConfig, TokioRuntime,
    TransportConfig, TransportErrorCode, VarInt,
};

use crate::trust::policy::Loaded;

/// Most bytes in flight from the hub on all streams: pushes that wait for memory must not use the share of
/// the control stream.
pub const CONNECTION_WINDOW_BYTES: u32 = STREAM_WINDOW_BYTES * (UNIDIRECTIONAL_STREAMS_MAX + 2);

/// Connects to the hub and completes the handshake.
///
/// This succeeds also if the hub rejects this spoke's certificate (TLS 1.3); only its first message shows
/// that it has accepted it.
///
/// # Errors
/// If the address cannot be resolved, or the handshake fails or times out.
pub async fn dial(
    hub: &str,
    tls: rustls::ClientConfig,
) -> Result<(Endpoint, Connection), LinkError> {
    let limit = Duration::from_millis(GREETING_TIMEOUT_MS);
    let address = tokio::time::timeout(limit, resolve(hub)).await;
    let address = address.map_err(|_| LinkError::Address(hub.chars().take(200).collect()))??;
    let local: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(local).map_err(LinkError::Socket)?;
    let endpoint = Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime))
        .map_err(LinkError::Socket)?;
    let crypto = QuicClientConfig::try_from(tls).map_err(|_| LinkError::Cipher)?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport()));
    let connecting = endpoint
        .connect_with(config, address, HUB_SERVER_NAME)
        .map_err(|error| LinkError::Dial(error.to_string()))?;
    let connection = tokio::time::timeout(limit, connecting)
        .await
        .map_err(|_| LinkError::TimedOut)?
        .map_err(LinkError::Connection)?;
    Ok((endpoint, connection))
}

async fn resolve(hub: &str) -> Result<SocketAddr, LinkError> {
    let unknown = || LinkError::Address(hub.chars().take(200).collect());
    let mut found = tokio::net::lookup_host(hub).await.map_err(|_| unknown())?;
    found.next().ok_or_else(unknown)
}

fn transport() -> TransportConfig {
    let mut transport = frames::transport();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(UNIDIRECTIONAL_STREAMS_MAX))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .keep_alive_interval(Some(Duration::from_millis(KEEP_ALIVE_MS)));
    transport
}

/// Reason that a connection failed or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    #[error("`{0}` is not an address of a hub; --hub takes HOST:PORT")]
    Address(String),
    #[error("failed to open a UDP socket")]
    Socket(#[source] std::io::Error),
    #[error("the TLS configuration has no cipher for QUIC")]
    Cipher,
    #[error("failed to connect: {0}")]
    Dial(String),
    #[error("timed out waiting for the hub")]
    TimedOut,
    #[error("the connection ended")]
    Connection(#[source] ConnectionError),
    #[error("failed to read from the hub")]
    Read(#[source] quinn::ReadError),
    #[error("failed to write to the hub")]
    Write(#[source] quinn::WriteError),
    #[error("the stream ended within a frame")]
    Truncated,
    #[error("a frame of the hub is not valid")]
    Frame(#[source] FrameError),
    #[error("the hub sent {got} instead of {expected}")]
    Unexpected { got: &'static str, expected: &'static str },
    #[error("the hub's push exceeds the limit of {max} {what}")]
    Limit { what: &'static str, max: usize },
    #[error("the hub sent more than {max} consecutive messages that this spoke does not know")]
    TooManyUnknown { max: usize },
    #[error("a blob of the hub does not match its digest")]
    BlobDigest,
    #[error("the hub closed the session: {0}")]
    Closed(String),
    #[error(
        "the hub rejected this cluster ({0}); see `attest gitops cluster get`, and restore it with \
         `attest gitops cluster rejoin`"
    )]
    ClusterRejected(String),
    #[error("the hub and this spoke share no protocol version (hub offers {0})")]
    Protocol(u32),
    #[error("the TLS identity cannot be used")]
    Tls(#[source] attest_certs::TlsError),
    #[error("the trust policy's hub.caPins holds a malformed pin")]
    Pin(#[source] attest_certs::IdentityError),
    #[error("the certificate was renewed")]
    Renewed,
    #[error("the trust policy changed")]
    PolicyChanged,
}

impl From<StreamError> for LinkError {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Read(source) => Self::Read(source),
            StreamError::Write(source) => Self::Write(source),
            StreamError::Truncated => Self::Truncated,
            StreamError::WriteTimedOut => Self::TimedOut,
            StreamError::Frame(source) => Self::Frame(source),
            StreamError::TooLarge { max, .. } => Self::Limit { what: "bytes of a frame", max },
        }
    }
}

impl LinkError {
    /// Returns how the connection ended, for the delay before the next one.
    pub fn ending(&self) -> Ending {
        if let Self::Connection(error) = self
            && is_refusal(error)
        {
            Ending::Refused
        } else {
            Ending::Other
        }
    }

    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Address(_) => Reason::HubAddress,
            Self::Socket(_) => Reason::Socket,
            Self::Cipher | Self::Tls(_) => Reason::TlsConfiguration,
            Self::Dial(_)
            | Self::Connection(_)
            | Self::Read(_)
            | Self::Write(_)
            | Self::Truncated => Reason::ConnectionLost,
            Self::TimedOut => Reason::PeerTimeout,
            Self::Frame(error) => error.reason(),
            Self::Unexpected { .. } => Reason::UnexpectedMessage,
            Self::Limit { .. } | Self::TooManyUnknown { .. } => Reason::Limit,
            Self::BlobDigest => Reason::BlobDigest,
            Self::Closed(_) => Reason::HubClosed,
            Self::ClusterRejected(_) => Reason::ClusterRejected,
            Self::Protocol(_) => Reason::ProtocolVersion,
            Self::Pin(_) => Reason::MalformedPin,
            Self::Renewed => Reason::Renewed,
            Self::PolicyChanged => Reason::PolicyChanged,
        }
    }
}

/// Returns whether a busy hub has refused the connection.
fn is_refusal(error: &ConnectionError) -> bool {
    matches!(
        error,
        ConnectionError::ConnectionClosed(close)
            if close.error_code == TransportErrorCode::CONNECTION_REFUSED
    )
}

/// Returns the CA pins of the trust policy.
pub(crate) fn pins(loaded: &Loaded) -> Result<Vec<Pin>, LinkError> {
    let pins = loaded.policy.ca_pins.iter().map(|pin| pin.parse().map_err(LinkError::Pin));
    pins.collect()
}

#[cfg(test)]
mod tests {
    use attest_common::session::message::Hello;

    use super::*;
    use crate::session::stubborn_hub::StubbornHub;

    #[tokio::test]
    async fn a_hub_that_takes_nothing_holds_up_a_write_for_a_limited_time() {
        let hub = StubbornHub::granting(1);
        let (_endpoint, connection) = dial(&hub.address, hub.spoke_tls()).await.unwrap();
        let (mut stream, _) = connection.open_bi().await.unwrap();
        let long = Hello { policy: vec![b'x'; 64 * 1024], ..Hello::default() };

        let written = frames::write_within(&mut stream, &long, Duration::from_millis(200)).await;

        assert_eq!(LinkError::from(written.unwrap_err()).reason().as_str(), "PeerTimeout");
    }
}
