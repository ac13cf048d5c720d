//! A stand-in for the kubelet's port-forward: the API server proxies a WebSocket to it, and it connects to where the
//! process of the pod listens.

use std::sync::Arc;

use anyhow::{Context, bail};
use futures::{SinkExt, StreamExt};
use http::header::SEC_WEBSOCKET_PROTOCOL;
use http::{HeaderValue, StatusCode};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async};

use super::NodeState;

/// Subprotocol of the API server for port-forwards over WebSocket.
const SUBPROTOCOL: &str = "v4.channel.k8s.io";
const READ_BYTES: usize = 16 * 1024;
/// Channels of the first port.
const DATA: u8 = 0;
const ERRORS: u8 = 1;

/// The listener, before it serves.
pub(super) struct PortForward {
    listener: TcpListener,
    tls: TlsAcceptor,
}

impl PortForward {
    /// Binds a port of loopback.
    pub(super) async fn bind() -> anyhow::Result<Self> {
        let key = rcgen::KeyPair::generate()?;
        let certificate =
            rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])?.self_signed(&key)?;
        let chain = vec![CertificateDer::from(certificate.der().to_vec())];
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes())?;
        let mut config =
            rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        Ok(Self { listener, tls: TlsAcceptor::from(Arc::new(config)) })
    }

    pub(super) fn port(&self) -> anyhow::Result<u16> {
        Ok(self.listener.local_addr()?.port())
    }

    /// Serves connections until this future is dropped.
    pub(super) async fn serve(self, client: Client, node: Arc<NodeState>) -> anyhow::Result<()> {
        loop {
            let (connection, _) = self.listener.accept().await?;
            let (tls, client, node) = (self.tls.clone(), client.clone(), node.clone());
            // A failed connection is one that the client sees as closed.
            tokio::spawn(async move { forward(connection, tls, client, node).await.ok() });
        }
    }
}

async fn forward(
    connection: TcpStream,
    tls: TlsAcceptor,
    client: Client,
    node: Arc<NodeState>,
) -> anyhow::Result<()> {
    let stream = tls.accept(connection).await?;
    let mut target = None;
    let callback = |request: &Request, mut response: Response| {
        target = Target::parse(request.uri());
        let wanted = request.headers().get(SEC_WEBSOCKET_PROTOCOL);
        let offers = wanted.and_then(|value| value.to_str().ok()).unwrap_or_default();
        if target.is_none() || !offers.split(',').any(|offer| offer.trim() == SUBPROTOCOL) {
            let mut refused = ErrorResponse::new(None);
            *refused.status_mut() = StatusCode::BAD_REQUEST;
            return Err(refused);
        }
        let chosen = HeaderValue::from_static(SUBPROTOCOL);
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, chosen);
        Ok(response)
    };
    let socket = accept_hdr_async(stream, callback).await?;
    let target = target.context("no target")?;
    let pods: Api<Pod> = Api::namespaced(client, &target.namespace);
    let pod = pods.get(&target.pod).await?;
    let (runner, _) = node.runner(&pod).context("the pod runs no program")?;
    let address = runner.address(target.port).context("no process listens on this port")?;
    pipe(socket, target.port, TcpStream::connect(address).await?).await
}

/// Copies between the first port's channels and a connection.
async fn pipe(
    socket: WebSocketStream<TlsStream<TcpStream>>,
    port: u16,
    connection: TcpStream,
) -> anyhow::Result<()> {
    let (mut sink, mut messages) = socket.split();
    let (mut reader, mut writer) = connection.into_split();
    for channel in [DATA, ERRORS] {
        let [low, high] = port.to_le_bytes();
        sink.send(Message::binary(vec![channel, low, high])).await?;
    }
    let from_process = async {
        let mut buffer = vec![DATA; READ_BYTES];
        loop {
            let read = reader.read(buffer.get_mut(1..).unwrap_or_default()).await?;
            if read == 0 {
                sink.close().await?;
                return anyhow::Ok(());
            }
            sink.send(Message::binary(buffer.get(..=read).unwrap_or_default().to_vec())).await?;
        }
    };
    let to_process = async {
        while let Some(message) = messages.next().await {
            match message? {
                Message::Binary(bytes) => match bytes.split_first() {
                    Some((&DATA, data)) => writer.write_all(data).await?,
                    Some(_) | None => bail!("not the data channel"),
                },
                Message::Close(_) => break,
                Message::Text(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
        writer.shutdown().await?;
        Ok(())
    };
    tokio::select! {
        done = from_process => done,
        done = to_process => done,
    }
}

/// The pod and port of a request.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    namespace: String,
    pod: String,
    port: u16,
}

impl Target {
    /// Parses `/portForward/NAMESPACE/POD?ports=PORT`.
    fn parse(uri: &http::Uri) -> Option<Self> {
        let mut parts = uri.path().strip_prefix("/portForward/")?.split('/');
        let (namespace, pod) = (parts.next()?.to_owned(), parts.next()?.to_owned());
        let mut parameters =
            uri.query()?.split('&').filter_map(|parameter| parameter.split_once('='));
        let port = parameters.find(|(key, _)| *key == "port" || *key == "ports")?.1.parse().ok()?;
        Some(Self { namespace, pod, port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_a_pod_and_a_port() {
        let target = Target::parse(&"/portForward/attest-system/hub-0?ports=8443".parse().unwrap());

        let expected =
            Target { namespace: "attest-system".to_owned(), pod: "hub-0".to_owned(), port: 8443 };
        assert_eq!(target, Some(expected));
        assert_eq!(Target::parse(&"/exec/attest-system/hub-0?ports=8443".parse().unwrap()), None);
    }
}
