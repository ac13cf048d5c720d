//! Renewal of the certificate: when to request it, and verification of the answer before it replaces the current one.

use std::time::{Duration, Instant, SystemTime};

use attest_certs::{Bundle, SigningRequest, peer_identity};
use attest_common::basics::reason::Reason;
use attest_runtime::clock::random;

use super::certificate::{self, certificate};
use super::quic::pins;
use crate::trust::identity::Identity;
use crate::trust::policy::Trust;

/// Share of a certificate's lifetime after which it is renewed, and the spread of that share, in percent.
const RENEW_AT_PERCENT: u64 = 66;
const RENEW_SPREAD_PERCENT: u64 = 10;
/// Delay before a renewal is requested again.
const RENEW_RETRY: Duration = Duration::from_secs(5 * 60);

/// The next certificate: when it is requested, and the key that waits for the answer.
pub(super) struct Renewal {
    due_at: Option<SystemTime>,
    pub(super) asked_at: Option<Instant>,
    pending: Option<SigningRequest>,
}

impl Renewal {
    pub(super) fn of(bundle: &Bundle, asked_at: Option<Instant>) -> Self {
        let due_at = peer_identity(bundle.chain()).ok().map(|peer| {
            let life = peer.not_after.duration_since(peer.not_before).unwrap_or_default();
            peer.not_before + life.mul_f64(renew_share(random()))
        });
        Self { due_at, asked_at, pending: None }
    }

    /// Returns a signing request when a renewal is due.
    pub(super) fn due(&mut self, now: SystemTime, monotonic: Instant) -> Option<Vec<u8>> {
        let due = self.due_at.is_some_and(|at| now >= at);
        let waiting = self.asked_at.is_some_and(|at| monotonic.duration_since(at) < RENEW_RETRY);
        if !due || waiting {
            return None;
        }
        let request = SigningRequest::generate().ok()?;
        let csr = request.csr_der.clone();
        self.asked_at = Some(monotonic);
        self.pending = Some(request);
        Some(csr)
    }

    /// Returns the new certificate if it is for this spoke and the requested key.
    pub(super) fn renewed(
        &mut self,
        chain_der: Vec<Vec<u8>>,
        trust: &Trust,
        identity: &Identity,
    ) -> Option<Bundle> {
        let request = self.pending.take()?;
        let accepted = accept(chain_der, &request, trust, identity);
        if let Err(reason) = &accepted {
            tracing::warn!(
                reason = reason.as_str(),
                "Rejected the renewed certificate from the hub"
            );
        }
        accepted.ok()
    }
}

fn accept(
    chain_der: Vec<Vec<u8>>,
    request: &SigningRequest,
    trust: &Trust,
    identity: &Identity,
) -> Result<Bundle, Reason> {
    let loaded = trust.loaded().cloned().map_err(|error| error.reason())?;
    let pins = pins(&loaded).map_err(|error| error.reason())?;
    let own = identity.tls.as_ref().ok_or(Reason::CertificateIdentity)?;
    let own = peer_identity(own.bundle.chain()).map_err(|error| error.reason())?;
    let expected = certificate::Expected {
        cluster: &identity.cluster,
        trust_domain: own.id.trust_domain(),
        pins: &pins,
        now: SystemTime::now(),
    };
    certificate(chain_der, request, &expected)
}

/// Returns the share of its lifetime after which a certificate is renewed: two thirds, plus or minus a tenth.
fn renew_share(random: u64) -> f64 {
    let spread = random % (2 * RENEW_SPREAD_PERCENT + 1);
    let percent = RENEW_AT_PERCENT - RENEW_SPREAD_PERCENT + spread;
    f64::from(u32::try_from(percent).unwrap_or(66)) / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_around_two_thirds_of_its_life() {
        for random in 0..100 {
            let share = renew_share(random);
            assert!((0.55..=0.77).contains(&share), "{share}");
        }
    }
}
