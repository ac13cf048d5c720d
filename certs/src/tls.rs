//! Every TLS configuration of ATTEST: versions, crypto provider, and the peers that each endpoint
//! accepts.
//!
//! TLS 1.3 only, and always a full handshake: session resumption, tickets and early data are disabled on
//! both ends, because rustls does not check a client's certificate again on resumption. Revocation is
//! not checked here; the hub compares serial numbers with its own list after the handshake.

use std::sync::{Arc, OnceLock};

use attest_common::basics::reason::Reason;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError,
    PeerIncompatible, RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::bundle::{Bundle, CHAIN_CERTIFICATES_MAX};
use crate::identity::{IdentityError, PeerIdentity, Pin, Role, peer_identity};

/// ALPN of a session between hub and spoke.
pub const ALPN_SESSION: &[u8] = b"attest/1";
/// ALPN of registration.
pub const ALPN_JOIN: &[u8] = b"attest-join/1";
/// Server name that spokes send to the hub. It is neither resolved nor checked: pins and SPIFFE ids are.
pub const HUB_SERVER_NAME: &str = "hub.attest.invalid";
/// Label of the TLS exporter that binds a join proof to its connection.
pub const JOIN_EXPORTER_LABEL: &[u8] = b"EXPORTER-attest-join-v1";
/// Context of the TLS exporter that binds a join proof to its connection.
pub const JOIN_EXPORTER_CONTEXT: &[u8] = b"";
/// Bytes taken from the TLS exporter.
pub const JOIN_EXPORTER_BYTES: usize = 32;

const HTTP_ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The crypto provider of every TLS connection: aws-lc-rs, hybrid X25519MLKEM768 first.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())).clone()
}

/// Makes [`provider`] the default for libraries that use rustls' default provider. Called first in every
/// `main`; repeated calls have no effect.
pub fn install_provider() {
    // An error means that a default is installed already.
    let _ = CryptoProvider::clone(&provider()).install_default();
}

/// Configuration of the hub's QUIC listener, for sessions ([`ALPN_SESSION`]) and joining
/// ([`ALPN_JOIN`]).
///
/// A client certificate is optional, because joining spokes have none. A presented one must be that of a
/// spoke of this fleet, under one of `authorities`. [`admit`] then separates sessions from joining.
///
/// # Errors
/// When `own` is not a hub's, or a certificate or key is unusable.
pub fn hub_quic(
    own: &Bundle,
    authorities: &[CertificateDer<'static>],
) -> Result<ServerConfig, TlsError> {
    let alpn = [ALPN_SESSION, ALPN_JOIN];
    server(
        own,
        authorities,
        ClientAuthentication { roles: &[Role::Spoke], mandatory: false },
        &alpn,
        clock(),
    )
}

/// Configuration of the hub's HTTPS API, which requires an operator's or viewer's certificate of this fleet.
///
/// # Errors
/// When `own` is not a hub's, or a certificate or key is unusable.
pub fn hub_https(
    own: &Bundle,
    authorities: &[CertificateDer<'static>],
) -> Result<ServerConfig, TlsError> {
    let roles = &[Role::Operator, Role::Viewer];
    let client = ClientAuthentication { roles, mandatory: true };
    server(own, authorities, client, &HTTP_ALPN, clock())
}

/// Configuration of a spoke's session: its own certificate, and a hub of its own fleet under a pinned
/// authority.
///
/// # Errors
/// When there is no pin, or the spoke's certificate or key is unusable.
pub fn spoke_session(pins: &[Pin], own: &Bundle) -> Result<ClientConfig, TlsError> {
    client(pins, Some(own), &[ALPN_SESSION], clock())
}

/// Configuration for joining: no certificate, and any hub under a pinned authority.
///
/// # Errors
/// When there is no pin.
pub fn spoke_join(pins: &[Pin]) -> Result<ClientConfig, TlsError> {
    client(pins, None, &[ALPN_JOIN], clock())
}

/// Configuration of an operator's HTTPS client. The address is not checked against the certificate, so
/// that port-forwarding works: authority and SPIFFE id identify the hub.
///
/// # Errors
/// When there is no pin, or the operator's certificate or key is unusable.
pub fn operator_https(pins: &[Pin], own: &Bundle) -> Result<ClientConfig, TlsError> {
    client(pins, Some(own), &HTTP_ALPN, clock())
}

/// Access of a peer after the handshake at the hub's QUIC listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// A session of this spoke; the caller must still compare its serial number with the revoked ones.
    Session(PeerIdentity),
    /// Joining only; a certificate, if any, is ignored.
    Join,
}

/// Returns whether a connection is a session or a join.
///
/// # Errors
/// A session without a spoke's certificate, or another protocol ([`TlsError::Alpn`]).
pub fn admit(
    alpn: Option<&[u8]>,
    client_chain: Option<&[CertificateDer<'_>]>,
) -> Result<Admission, TlsError> {
    match alpn {
        Some(ALPN_JOIN) => Ok(Admission::Join),
        Some(ALPN_SESSION) => {
            let peer = peer_identity(client_chain.unwrap_or_default())?;
            require_role(&peer, Role::Spoke)?;
            Ok(Admission::Session(peer))
        }
        Some(_) | None => Err(TlsError::Alpn),
    }
}

fn clock() -> Arc<dyn TimeProvider> {
    Arc::new(DefaultTimeProvider)
}

#[derive(Clone, Copy)]
struct ClientAuthentication {
    roles: &'static [Role],
    mandatory: bool,
}

fn server(
    own: &Bundle,
    authorities: &[CertificateDer<'static>],
    client: ClientAuthentication,
    alpn: &[&[u8]],
    clock: Arc<dyn TimeProvider>,
) -> Result<ServerConfig, TlsError> {
    let ClientAuthentication { roles, mandatory } = client;
    let own_identity = peer_identity(own.chain())?;
    require_role(&own_identity, Role::Hub)?;
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone()).map_err(TlsError::Rustls)?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    let builder = if mandatory { builder } else { builder.allow_unauthenticated() };
    let chain_verifier = builder.build().map_err(TlsError::Authorities)?;
    let trust_domain = Some(own_identity.id.trust_domain().to_owned());
    let verifier =
        MemberVerifier { chain_verifier, identity: IdentityRule { roles, trust_domain } };
    let mut config = ServerConfig::builder_with_details(provider(), clock)
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Rustls)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(own.chain().to_vec(), own.key().clone_key())
        .map_err(TlsError::Rustls)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

fn client(
    pins: &[Pin],
    own: Option<&Bundle>,
    alpn: &[&[u8]],
    clock: Arc<dyn TimeProvider>,
) -> Result<ClientConfig, TlsError> {
    if pins.is_empty() {
        return Err(TlsError::NoPin);
    }
    let trust_domain = match own {
        Some(own) => Some(peer_identity(own.chain())?.id.trust_domain().to_owned()),
        None => None,
    };
    let identity = IdentityRule { roles: &[Role::Hub], trust_domain };
    let verifier = HubVerifier { pins: pins.to_vec(), identity };
    let builder = ClientConfig::builder_with_details(provider(), clock)
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Rustls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match own {
        Some(own) => builder
            .with_client_auth_cert(own.chain().to_vec(), own.key().clone_key())
            .map_err(TlsError::Rustls)?,
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

fn require_role(peer: &PeerIdentity, wanted: Role) -> Result<(), IdentityError> {
    if peer.id.role() == wanted {
        Ok(())
    } else {
        Err(IdentityError::Role { id: peer.id.clone(), wanted })
    }
}

fn refused(error: IdentityError) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}

/// Returns the identity rule that failed a handshake on this end, if any.
pub fn refusal(error: &rustls::Error) -> Option<&IdentityError> {
    if let rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(source))) = error {
        source.downcast_ref()
    } else {
        None
    }
}

/// Identity that a peer with a valid chain must have. Both verifiers end with this check.
#[derive(Debug)]
struct IdentityRule {
    /// Accepted roles; the first is named in errors.
    roles: &'static [Role],
    /// `None` while a spoke joins and does not know its fleet yet.
    trust_domain: Option<String>,
}

impl IdentityRule {
    fn check(&self, end_entity: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        let peer = peer_identity(std::slice::from_ref(end_entity)).map_err(refused)?;
        if !self.roles.contains(&peer.id.role()) {
            let wanted = self.roles.first().copied().unwrap_or(Role::Hub);
            return Err(refused(IdentityError::Role { id: peer.id, wanted }));
        }
        match &self.trust_domain {
            Some(wanted) if peer.id.trust_domain() != wanted => {
                let wanted = wanted.clone();
                Err(refused(IdentityError::TrustDomain { id: peer.id, wanted }))
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// Methods of both verifiers, which implement two traits: handshake signatures of TLS 1.3 only, by the algorithms of
/// [`provider`].
macro_rules! tls13_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Err(PeerIncompatible::Tls12NotOffered.into())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            let algorithms = &provider().signature_verification_algorithms;
            verify_tls13_signature(message, certificate, signature, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            provider().signature_verification_algorithms.supported_schemes()
        }
    };
}

/// At the hub: the chain by webpki, then the identity by our rules.
#[derive(Debug)]
struct MemberVerifier {
    chain_verifier: Arc<dyn ClientCertVerifier>,
    identity: IdentityRule,
}

impl ClientCertVerifier for MemberVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.chain_verifier.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain_verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain_verifier.verify_client_cert(end_entity, intermediates, now)?;
        self.identity.check(end_entity)?;
        Ok(verified)
    }

    tls13_signatures!();
}

/// At a spoke or operator: a chain to a pinned authority, whose leaf is a hub.
#[derive(Debug)]
struct HubVerifier {
    pins: Vec<Pin>,
    identity: IdentityRule,
}

impl HubVerifier {
    /// The presented authorities whose keys are pinned. The pin is the trust; what else such a
    /// certificate says about itself counts for nothing.
    fn pinned(&self, presented: &[CertificateDer<'_>]) -> Result<RootCertStore, rustls::Error> {
        let mut roots = RootCertStore::empty();
        for certificate in presented.iter().take(CHAIN_CERTIFICATES_MAX) {
            let pin = Pin::of_certificate(certificate).map_err(refused)?;
            if self.pins.contains(&pin) {
                roots.add(certificate.clone().into_owned())?;
            }
        }
        if roots.is_empty() { Err(refused(IdentityError::NotPinned)) } else { Ok(roots) }
    }
}

impl ServerCertVerifier for HubVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let roots = self.pinned(intermediates)?;
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &roots,
            intermediates,
            now,
            provider().signature_verification_algorithms.all,
        )?;
        self.identity.check(end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    tls13_signatures!();
}

/// Errors of building a configuration or admitting a peer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// Without a pin no hub can be trusted.
    #[error("no authority pin is configured")]
    NoPin,
    /// The negotiated protocol is not served at this endpoint.
    #[error("the peer negotiated neither attest/1 nor attest-join/1")]
    Alpn,
    /// A certificate breaks the identity rules.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The set of accepted authorities is empty or unusable.
    #[error("no usable certificate authority for clients")]
    Authorities(#[source] rustls::server::VerifierBuilderError),
    /// A certificate or key is unusable, or they do not match.
    #[error("the certificate or key is unusable for TLS")]
    Rustls(#[source] rustls::Error),
}

impl TlsError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NoPin => Reason::NoPin,
            Self::Alpn => Reason::Alpn,
            Self::Identity(error) => error.reason(),
            Self::Authorities(_) => Reason::NoAuthority,
            Self::Rustls(_) => Reason::TlsConfiguration,
        }
    }
}

#[cfg(test)]
mod tests;
