//! Complete handshakes in memory: the peers that each endpoint accepts, and the rule that rejects
//! others.

use std::io::{Read, Write};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::{ClientConnection, Connection, HandshakeKind, ServerConnection};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;

use super::*;
use crate::authority::{
    AUTHORITY_LIFETIME, Authority, HUB_LIFETIME, Host, OPERATOR_LIFETIME, SPOKE_LIFETIME,
};
use crate::identity::OperatorRole;
use crate::request::SigningRequest;

const DAY: Duration = Duration::from_secs(24 * 3600);
const CLUSTER: &str = "c-0123456789abcdef";

#[test]
fn a_spoke_and_its_hub_identify_each_other_by_certificate() {
    let fleet = Fleet::new();

    let (client, server) = handshake(fleet.hub_quic(), fleet.spoke_session(&fleet.spoke)).unwrap();

    let admitted = admit(server.alpn_protocol(), server.peer_certificates()).unwrap();
    let Admission::Session(peer) = admitted else { panic!("a session, not joining") };
    assert_eq!(peer.id.to_string(), format!("spiffe://fleet/attest/spoke/{CLUSTER}"));
    assert_eq!(client.alpn_protocol(), Some(ALPN_SESSION));
    assert_eq!(
        client.negotiated_key_exchange_group().unwrap().name(),
        rustls::NamedGroup::X25519MLKEM768,
        "every link is post-quantum"
    );
}

#[test]
fn a_joining_spoke_needs_no_certificate_and_shares_an_exporter_value_with_its_hub() {
    let fleet = Fleet::new();

    let (client, server) = handshake(fleet.hub_quic(), fleet.spoke_join()).unwrap();

    assert_eq!(admit(server.alpn_protocol(), server.peer_certificates()).unwrap(), Admission::Join);
    assert_eq!(export(&client), export(&server));
    let (other, _) = handshake(fleet.hub_quic(), fleet.spoke_join()).unwrap();
    assert_ne!(export(&client), export(&other), "another connection, another value");
}

#[test]
fn a_session_without_a_certificate_is_not_admitted() {
    let fleet = Fleet::new();
    let mut anonymous = fleet.spoke_join();
    anonymous.alpn_protocols = vec![ALPN_SESSION.to_vec()];

    let (_, server) = handshake(fleet.hub_quic(), anonymous).unwrap();

    let error = admit(server.alpn_protocol(), server.peer_certificates()).unwrap_err();
    assert_eq!(error.reason().as_str(), "NoCertificate");
    assert_eq!(admit(None, None).unwrap_err().reason().as_str(), "Alpn");
}

#[test]
fn the_hub_rejects_every_client_that_is_not_a_spoke_of_its_fleet() {
    let fleet = Fleet::new();
    let foreign = Fleet::new();
    let other_domain = fleet.rogue(Leaf { uris: &["spiffe://other/attest/spoke/c-1"], ..SOUND });
    for (who, client, expected) in [
        ("the same names under another authority", foreign.spoke, "InvalidCertificate"),
        ("self-signed", self_signed(), "InvalidCertificate"),
        ("the authority itself", fleet.authority_as_leaf(), "InvalidCertificate"),
        ("an operator", fleet.operator.clone(), "PeerRole"),
        ("another hub", fleet.hub.clone(), "PeerRole"),
        ("another trust domain", other_domain, "TrustDomain"),
    ] {
        let error = handshake(fleet.hub_quic(), fleet.client_with(&client)).expect_err(who);

        assert_eq!(error.at_server(), expected, "{who}: {error:?}");
    }
}

#[test]
fn a_certificate_is_valid_only_between_its_two_dates() {
    let fleet = Fleet::new();
    for (when, expected) in [
        (SPOKE_LIFETIME - DAY, None),
        (SPOKE_LIFETIME + DAY, Some("InvalidCertificate")),
        (AUTHORITY_LIFETIME + DAY, Some("InvalidCertificate")),
    ] {
        let hub = fleet.hub_quic_at(At::after_now(when));

        let result = handshake(hub, fleet.spoke_session(&fleet.spoke));

        assert_eq!(result.err().map(|error| error.at_server()), expected, "{when:?}");
    }
    let early = fleet.hub_quic_at(At::before_now(DAY));
    let error = handshake(early, fleet.spoke_session(&fleet.spoke)).unwrap_err();
    assert_eq!(error.at_server(), "InvalidCertificate", "not yet valid");
}

#[test]
fn a_spoke_rejects_an_expired_hub() {
    let fleet = Fleet::new();
    let later = client(
        &[fleet.authority.pin()],
        Some(&fleet.spoke),
        &[ALPN_SESSION],
        Arc::new(At::after_now(HUB_LIFETIME + DAY)),
    )
    .unwrap();

    let error = handshake(fleet.hub_quic(), later).unwrap_err();

    assert_eq!(error.at_client(), "InvalidCertificate");
}

#[test]
fn a_violated_identity_rule_is_named_at_both_ends() {
    let fleet = Fleet::new();
    let good = "spiffe://fleet/attest/spoke/c-1";
    for (what, leaf, expected) in [
        ("two ids", Leaf { uris: &[good, "spiffe://fleet/attest/hub/main"], ..SOUND }, "SpiffeId"),
        ("the same id twice", Leaf { uris: &[good, good], ..SOUND }, "SpiffeId"),
        ("no id", Leaf { uris: &[], ..SOUND }, "SpiffeId"),
        ("dots", Leaf { uris: &["spiffe://fleet/attest/spoke/.."], ..SOUND }, "SpiffeId"),
        ("percent", Leaf { uris: &["spiffe://fleet/attest/spoke/%2e"], ..SOUND }, "SpiffeId"),
        ("upper case", Leaf { uris: &["spiffe://FLEET/attest/spoke/c-1"], ..SOUND }, "SpiffeId"),
        ("a query", Leaf { uris: &["spiffe://fleet/attest/spoke/c-1?x"], ..SOUND }, "SpiffeId"),
        ("a user", Leaf { uris: &["spiffe://u@fleet/attest/spoke/c-1"], ..SOUND }, "SpiffeId"),
        ("https", Leaf { uris: &["https://fleet/attest/spoke/c-1"], ..SOUND }, "SpiffeId"),
        ("no key usage", Leaf { usages: &[], ..SOUND }, "KeyUsage"),
        (
            "may sign certificates",
            Leaf {
                usages: &[KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign],
                ..SOUND
            },
            "KeyUsage",
        ),
        ("cannot sign", Leaf { usages: &[KeyUsagePurpose::KeyAgreement], ..SOUND }, "KeyUsage"),
        (
            "half of the extended usages",
            Leaf { extended: &[ExtendedKeyUsagePurpose::ClientAuth], ..SOUND },
            "ExtendedKeyUsage",
        ),
    ] {
        let rogue = fleet.rogue(leaf);

        let error = handshake(fleet.hub_quic(), fleet.client_with(&rogue)).expect_err(what);

        assert_eq!(error.at_server(), expected, "{what}: {error:?}");
        assert_eq!(peer_identity(rogue.chain()).unwrap_err().reason().as_str(), expected, "{what}");
    }
    handshake(fleet.hub_quic(), fleet.client_with(&fleet.rogue(SOUND))).expect("only these rules");
}

#[test]
fn a_spoke_accepts_only_a_hub_under_a_pinned_authority() {
    let fleet = Fleet::new();
    let foreign = Fleet::new();
    let mut borrowed_chain = foreign.hub.chain().to_vec();
    borrowed_chain.push(fleet.authority.certificate().clone());
    let borrowed = Bundle::new(borrowed_chain, foreign.hub.key().clone_key());
    let without_authority =
        Bundle::new(fleet.hub.chain()[..1].to_vec(), fleet.hub.key().clone_key());
    for (who, server, expected) in [
        ("another fleet's hub", &foreign.hub, "NotPinned"),
        ("a hub that presents our authority beside its own", &borrowed, "InvalidCertificate"),
        ("a hub that does not present its authority", &without_authority, "NotPinned"),
        ("a spoke of our fleet", &fleet.spoke, "PeerRole"),
        ("an operator of our fleet", &fleet.operator, "PeerRole"),
        ("self-signed", &self_signed(), "NotPinned"),
        ("the authority itself", &fleet.authority_as_leaf(), "InvalidCertificate"),
    ] {
        for client in [fleet.spoke_session(&fleet.spoke), fleet.spoke_join()] {
            let error = handshake(permissive_server(server), client).expect_err(who);

            assert_eq!(error.at_client(), expected, "{who}: {error:?}");
        }
    }
}

#[test]
fn a_spoke_with_two_pins_accepts_hubs_under_either() {
    let old = Fleet::new();
    let new = Fleet::new();
    let pins = [old.authority.pin(), new.authority.pin()];

    for hub in [&old.hub, &new.hub] {
        handshake(permissive_server(hub), spoke_join(&pins).unwrap()).unwrap();
    }

    assert_eq!(spoke_join(&[]).unwrap_err().reason().as_str(), "NoPin");
}

#[test]
fn a_spoke_or_operator_certificate_cannot_serve_as_a_hub() {
    let fleet = Fleet::new();
    for own in [&fleet.spoke, &fleet.operator] {
        let error = hub_quic(own, &fleet.authorities()).unwrap_err();

        assert_eq!(error.reason().as_str(), "PeerRole");
    }
    assert_eq!(hub_quic(&fleet.hub, &[]).unwrap_err().reason().as_str(), "NoAuthority");
}

#[test]
fn the_api_accepts_operators_only() {
    let fleet = Fleet::new();
    let pins = [fleet.authority.pin()];

    handshake(fleet.hub_https(), operator_https(&pins, &fleet.operator).unwrap()).unwrap();
    let spoke =
        handshake(fleet.hub_https(), operator_https(&pins, &fleet.spoke).unwrap()).unwrap_err();
    let mut anonymous = fleet.spoke_join();
    anonymous.alpn_protocols = vec![b"h2".to_vec()];
    let anonymous = handshake(fleet.hub_https(), anonymous).unwrap_err();

    assert_eq!(spoke.at_server(), "PeerRole");
    assert_eq!(anonymous.at_server(), "NoCertificatesPresented");
}

#[test]
fn every_connection_is_a_full_handshake() {
    let fleet = Fleet::new();
    let hub = Arc::new(fleet.hub_quic());
    let mut resuming_client = fleet.spoke_session(&fleet.spoke);
    resuming_client.resumption = Resumption::in_memory_sessions(8);
    resuming_client.enable_early_data = true;
    let resuming_client = Arc::new(resuming_client);
    let spoke = Arc::new(fleet.spoke_session(&fleet.spoke));
    let mut resuming_server = fleet.hub_quic();
    resuming_server.session_storage = rustls::server::ServerSessionMemoryCache::new(8);
    resuming_server.send_tls13_tickets = 2;
    resuming_server.max_early_data_size = u32::MAX;
    let resuming_server = Arc::new(resuming_server);

    for (server, client) in [(&hub, &resuming_client), (&resuming_server, &spoke)] {
        for _ in 0..3 {
            let (mut client, mut server) = connect(server, client);
            assert!(early_data(&mut client).is_none(), "nothing is sent before the handshake");
            pump(&mut client, &mut server).unwrap();
            assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
            assert_eq!(server.handshake_kind(), Some(HandshakeKind::Full));
        }
    }
    assert_eq!((hub.max_early_data_size, hub.send_tls13_tickets), (0, 0));
    // Positive control: with rustls' defaults at both ends the second connection does resume.
    let (mut client, mut server) = connect(&resuming_server, &resuming_client);
    pump(&mut client, &mut server).unwrap();
    let (mut client, mut server) = connect(&resuming_server, &resuming_client);
    pump(&mut client, &mut server).unwrap();
    assert_eq!(server.handshake_kind(), Some(HandshakeKind::Resumed));
}

#[test]
fn old_versions_and_unknown_protocols_are_rejected() {
    let fleet = Fleet::new();
    let old = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustEveryServer))
        .with_no_client_auth();
    let mut other = fleet.spoke_session(&fleet.spoke);
    other.alpn_protocols = vec![b"h3".to_vec()];

    let old = handshake(fleet.hub_quic(), old).unwrap_err();
    let other = handshake(fleet.hub_quic(), other).unwrap_err();

    assert_eq!(old.at_server(), "PeerIncompatible");
    assert_eq!(other.at_server(), "NoApplicationProtocol");
}

#[test]
fn installing_the_provider_twice_has_no_effect() {
    install_provider();
    install_provider();

    assert!(CryptoProvider::get_default().is_some());
}

struct Fleet {
    authority: Authority,
    hub: Bundle,
    spoke: Bundle,
    operator: Bundle,
}

impl Fleet {
    fn new() -> Self {
        let authority = Authority::create("fleet").unwrap();
        let hosts = [Host::parse("127.0.0.1"), Host::parse("hub.example")];
        let hub = authority.issue_hub("main", &hosts, HUB_LIFETIME).unwrap().bundle().unwrap();
        let operator = authority
            .issue_operator(OperatorRole::Operator, "ada", OPERATOR_LIFETIME)
            .unwrap()
            .bundle()
            .unwrap();
        let request = SigningRequest::generate().unwrap();
        let issued = authority.issue_spoke(&request.csr_der, CLUSTER, 1, SPOKE_LIFETIME).unwrap();
        let spoke = Bundle::from_pem(&issued.chain_pem(), &request.key_pem).unwrap();
        Self { authority, hub, spoke, operator }
    }

    fn authorities(&self) -> Vec<CertificateDer<'static>> {
        vec![self.authority.certificate().clone()]
    }

    fn hub_quic(&self) -> ServerConfig {
        hub_quic(&self.hub, &self.authorities()).unwrap()
    }

    fn hub_https(&self) -> ServerConfig {
        hub_https(&self.hub, &self.authorities()).unwrap()
    }

    fn hub_quic_at(&self, at: At) -> ServerConfig {
        let client = ClientAuthentication { roles: &[Role::Spoke], mandatory: false };
        server(&self.hub, &self.authorities(), client, &[ALPN_SESSION], Arc::new(at)).unwrap()
    }

    fn spoke_session(&self, own: &Bundle) -> ClientConfig {
        spoke_session(&[self.authority.pin()], own).unwrap()
    }

    fn spoke_join(&self) -> ClientConfig {
        spoke_join(&[self.authority.pin()]).unwrap()
    }

    /// A client that does not check its own certificate.
    fn client_with(&self, own: &Bundle) -> ClientConfig {
        let verifier = HubVerifier {
            pins: vec![self.authority.pin()],
            identity: IdentityRule { roles: &[Role::Hub], trust_domain: None },
        };
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(own.chain().to_vec(), own.key().clone_key())
            .unwrap();
        config.alpn_protocols = vec![ALPN_SESSION.to_vec()];
        config
    }

    /// A leaf signed by the real authority key that the authority's code would never issue.
    fn rogue(&self, leaf: Leaf<'_>) -> Bundle {
        let authority_key = KeyPair::from_pem(&self.authority.key_pem()).unwrap();
        let issuer = Issuer::from_ca_cert_der(self.authority.certificate(), authority_key).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = leaf.usages.to_vec();
        params.extended_key_usages = leaf.extended.to_vec();
        params.not_after = OffsetDateTime::now_utc() + DAY;
        params.subject_alt_names.push(SanType::DnsName("spoke.example".try_into().unwrap()));
        for uri in leaf.uris {
            params.subject_alt_names.push(SanType::URI((*uri).try_into().unwrap()));
        }
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let chain = vec![certificate.der().clone(), self.authority.certificate().clone()];
        Bundle::new(chain, private(&key))
    }

    fn authority_as_leaf(&self) -> Bundle {
        let key = KeyPair::from_pem(&self.authority.key_pem()).unwrap();
        let certificate = self.authority.certificate().clone();
        Bundle::new(vec![certificate.clone(), certificate], private(&key))
    }
}

#[derive(Clone, Copy)]
struct Leaf<'a> {
    uris: &'a [&'a str],
    usages: &'a [KeyUsagePurpose],
    extended: &'a [ExtendedKeyUsagePurpose],
}

const SOUND: Leaf<'static> = Leaf {
    uris: &["spiffe://fleet/attest/spoke/c-1"],
    usages: &[KeyUsagePurpose::DigitalSignature],
    extended: &[ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth],
};

fn self_signed() -> Bundle {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.subject_alt_names =
        vec![SanType::URI("spiffe://fleet/attest/hub/main".try_into().unwrap())];
    let certificate = params.self_signed(&key).unwrap().der().clone();
    Bundle::new(vec![certificate.clone(), certificate], private(&key))
}

fn private(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()))
}

/// A server that presents any certificate and requires none.
fn permissive_server(own: &Bundle) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(own.chain().to_vec(), own.key().clone_key())
        .unwrap();
    config.alpn_protocols = vec![ALPN_SESSION.to_vec(), ALPN_JOIN.to_vec()];
    config
}

#[derive(Debug)]
struct At(UnixTime);

impl At {
    fn after_now(offset: Duration) -> Self {
        let now = Duration::from_secs(UnixTime::now().as_secs());
        Self(UnixTime::since_unix_epoch(now + offset))
    }

    fn before_now(offset: Duration) -> Self {
        let now = Duration::from_secs(UnixTime::now().as_secs());
        Self(UnixTime::since_unix_epoch(now - offset))
    }
}

impl TimeProvider for At {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0)
    }
}

#[derive(Debug, Default)]
struct Failed {
    client: Option<rustls::Error>,
    server: Option<rustls::Error>,
}

impl Failed {
    fn at_server(&self) -> &'static str {
        self.server.as_ref().map_or("none", error_name)
    }

    fn at_client(&self) -> &'static str {
        self.client.as_ref().map_or("none", error_name)
    }
}

fn error_name(error: &rustls::Error) -> &'static str {
    if let Some(refusal) = refusal(error) {
        return refusal.reason().as_str();
    }
    let text = format!("{error:?}");
    ["InvalidCertificate", "NoCertificatesPresented", "NoApplicationProtocol", "PeerIncompatible"]
        .into_iter()
        .find(|word| text.starts_with(word))
        .unwrap_or("another error")
}

fn handshake(
    server: ServerConfig,
    client: ClientConfig,
) -> Result<(Connection, Connection), Box<Failed>> {
    let (mut client, mut server) = connect(&Arc::new(server), &Arc::new(client));
    pump(&mut client, &mut server)?;
    Ok((client, server))
}

fn connect(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> (Connection, Connection) {
    let name = ServerName::try_from(HUB_SERVER_NAME).unwrap();
    let client = ClientConnection::new(client.clone(), name).unwrap();
    let server = ServerConnection::new(server.clone()).unwrap();
    (client.into(), server.into())
}

fn export(connection: &Connection) -> [u8; JOIN_EXPORTER_BYTES] {
    let output = [0; JOIN_EXPORTER_BYTES];
    connection
        .export_keying_material(output, JOIN_EXPORTER_LABEL, Some(JOIN_EXPORTER_CONTEXT))
        .unwrap()
}

fn early_data(connection: &mut Connection) -> Option<()> {
    let Connection::Client(client) = connection else { return None };
    client.early_data().map(|_| ())
}

/// Transfers bytes both ways until none are left, then one byte of data each way.
fn pump(client: &mut Connection, server: &mut Connection) -> Result<(), Box<Failed>> {
    let mut failed = Box::<Failed>::default();
    while carry(client, server, &mut failed.server) | carry(server, client, &mut failed.client) {}
    if failed.client.is_some() || failed.server.is_some() {
        return Err(failed);
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    server.writer().write_all(b"!").unwrap();
    carry(server, client, &mut failed.client);
    let mut byte = [0];
    client.reader().read_exact(&mut byte).unwrap();
    Ok(())
}

fn carry(from: &mut Connection, to: &mut Connection, error: &mut Option<rustls::Error>) -> bool {
    let mut wire = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut wire).unwrap();
    }
    let moved = !wire.is_empty();
    let mut wire = wire.as_slice();
    while !wire.is_empty() {
        if to.read_tls(&mut wire).is_err() {
            break;
        }
        if let Err(reason) = to.process_new_packets() {
            error.get_or_insert(reason);
        }
    }
    moved
}

/// Verifier that trusts every server, for a client that is to be rejected.
#[derive(Debug)]
struct TrustEveryServer;

impl ServerCertVerifier for TrustEveryServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
