//! Verification of a certificate from the hub, before it replaces one that works. Pure.
//!
//! The hub may be compromised: a certificate must be issued by a pinned authority to this cluster, for
//! the requested key, and with a plausible lifetime.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use attest_certs::{Bundle, PeerIdentity, Pin, Role, SigningRequest, peer_identity, tls};
use attest_common::basics::ids::ClusterId;
use attest_common::basics::reason::Reason;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{CertificateDer, UnixTime};

/// Longest time by which the beginning of a certificate may be ahead of this clock.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(5 * 60);
/// Shortest remaining lifetime of a new certificate.
pub const REMAINING_MIN: Duration = Duration::from_secs(60 * 60);
/// Longest lifetime of a certificate: a stolen one must expire.
pub const LIFE_MAX: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// Properties that a new certificate must have.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    pub cluster: &'a ClusterId,
    pub trust_domain: &'a str,
    /// `hub.caPins` of the local policy.
    pub pins: &'a [Pin],
    pub now: SystemTime,
}

/// Verifies that a chain is for this cluster, is issued by a pinned authority and belongs to the requested
/// key. Returns both as a bundle.
///
/// # Errors
/// A stable word for the first violation.
pub fn certificate(
    chain_der: Vec<Vec<u8>>,
    request: &SigningRequest,
    expected: &Expected<'_>,
) -> Result<Bundle, Reason> {
    let chain: Vec<_> = chain_der.into_iter().map(CertificateDer::from).collect();
    let peer = peer_identity(&chain).map_err(|error| error.reason())?;
    let id = &peer.id;
    if id.role() != Role::Spoke
        || id.name() != expected.cluster.as_str()
        || id.trust_domain() != expected.trust_domain
    {
        return Err(Reason::CertificateIdentity);
    }
    check_times(&peer, expected.now)?;
    check_issuer(&chain, &peer, expected)?;
    let pem = attest_certs::bundle::chain_to_pem(&chain);
    let bundle = Bundle::from_pem(&pem, &request.key_pem).map_err(|error| error.reason())?;
    // Building a configuration proves that key and certificate belong together.
    tls::spoke_session(expected.pins, &bundle).map_err(|error| error.reason())?;
    Ok(bundle)
}

fn check_times(peer: &PeerIdentity, now: SystemTime) -> Result<(), Reason> {
    let begins_in = peer.not_before.duration_since(now).unwrap_or_default();
    let left = peer.not_after.duration_since(now).unwrap_or_default();
    let life = peer.not_after.duration_since(peer.not_before).unwrap_or_default();
    if begins_in > CLOCK_SKEW_MAX || left < REMAINING_MIN || life > LIFE_MAX {
        return Err(Reason::CertificateLifetime);
    }
    Ok(())
}

/// Checks that the leaf is signed by an authority in the chain whose key is pinned.
fn check_issuer(
    chain: &[CertificateDer<'static>],
    peer: &PeerIdentity,
    expected: &Expected<'_>,
) -> Result<(), Reason> {
    let (leaf, others) = chain.split_first().ok_or(Reason::CertificateChain)?;
    let mut roots = RootCertStore::empty();
    for certificate in others {
        let pin = Pin::of_certificate(certificate).map_err(|error| error.reason())?;
        if expected.pins.contains(&pin) {
            roots.add(certificate.clone()).map_err(|_| Reason::CertificateChain)?;
        }
    }
    if roots.is_empty() {
        return Err(Reason::NotPinned);
    }
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), attest_certs::provider())
            .build()
            .map_err(|_| Reason::CertificateChain)?;
    // A beginning ahead of this clock within the skew was accepted above.
    let at = expected.now.max(peer.not_before).duration_since(SystemTime::UNIX_EPOCH);
    let at = UnixTime::since_unix_epoch(at.unwrap_or_default());
    verifier.verify_client_cert(leaf, others, at).map_err(|_| Reason::CertificateChain)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use attest_certs::Authority;

    use super::*;

    const CLUSTER: &str = "c-0123456789abcdef";
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn judge(
        issuer: &Authority,
        presented: &Authority,
        (name, life): (&str, Duration),
        (pins, ahead): (&[Pin], Duration),
    ) -> &'static str {
        let request = SigningRequest::generate().unwrap();
        let issued = issuer.issue_spoke(&request.csr_der, name, 1, life).unwrap();
        let chain = vec![issued.chain[0].to_vec(), presented.certificate().to_vec()];
        let cluster = CLUSTER.parse().unwrap();
        let now = SystemTime::now() + ahead;
        let expected = Expected { cluster: &cluster, trust_domain: "fleet.test", pins, now };
        certificate(chain, &request, &expected).map_or_else(|reason| reason.as_str(), |_| "ok")
    }

    #[test]
    fn only_a_certificate_of_this_cluster_by_a_pinned_authority_for_a_sensible_time_is_taken() {
        let ours = Authority::create("fleet.test").unwrap();
        let other = Authority::create("fleet.test").unwrap();
        let foreign = Authority::create("elsewhere.test").unwrap();
        let pins = [ours.pin(), foreign.pin()];
        let week = (CLUSTER, 7 * DAY);
        let now = (&pins[..], Duration::ZERO);

        assert_eq!(judge(&ours, &ours, week, now), "ok");
        assert_eq!(judge(&other, &other, week, now), "NotPinned");
        assert_eq!(judge(&other, &ours, week, now), "CertificateChain");
        assert_eq!(judge(&foreign, &foreign, week, now), "CertificateIdentity");
        let another = ("c-fedcba9876543210", 7 * DAY);
        assert_eq!(judge(&ours, &ours, another, now), "CertificateIdentity");
        assert_eq!(judge(&ours, &ours, (CLUSTER, 91 * DAY), now), "CertificateLifetime");
        let short = (CLUSTER, Duration::from_secs(30 * 60));
        assert_eq!(judge(&ours, &ours, short, now), "CertificateLifetime");
        assert_eq!(judge(&ours, &ours, week, (&pins, 8 * DAY)), "CertificateLifetime");
    }

    #[test]
    fn a_certificate_may_begin_a_little_ahead_of_this_clock_only() {
        let ours = Authority::create("fleet.test").unwrap();
        let request = SigningRequest::generate().unwrap();
        let issued = ours.issue_spoke(&request.csr_der, CLUSTER, 1, DAY).unwrap();
        let peer = peer_identity(&issued.chain).unwrap();

        assert_eq!(check_times(&peer, peer.not_before - CLOCK_SKEW_MAX), Ok(()));
        let early = peer.not_before - CLOCK_SKEW_MAX - Duration::from_secs(1);
        assert_eq!(check_times(&peer, early), Err(Reason::CertificateLifetime));
    }
}
