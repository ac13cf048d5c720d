//! Stateless resets (RFC 9000, section 10.3) that spokes accept from a restarted hub.
//!
//! The reset key is derived from the hub's TLS key, so it outlives the process. A spoke detects a dead connection
//! within one keep-alive interval instead of the idle timeout.

use std::sync::Arc;
use std::time::Duration;

use attest_certs::Bundle;
use hmac::{Hmac, KeyInit, Mac};
use quinn::crypto::{CryptoError, HmacKey};
use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig};
use sha2::{Digest, Sha256};

/// Length of a connection id in bytes.
const CONNECTION_ID_BYTES: usize = 8;
/// Shortest time between two resets. quinn compares the time of one iteration over its socket, in which it reads many
/// packets: any interval limits it to one reset in an iteration, while every spoke of a fleet sends its keep-alive after a
/// restart. A reset is shorter than the packet that it answers and costs a hash, so that it amplifies nothing (RFC 9000,
/// section 10.3.3).
const RESET_INTERVAL_MIN: Duration = Duration::ZERO;
/// Separates this use of the TLS key from others.
const LABEL: &[u8] = b"attest stateless reset v1";

/// Returns the QUIC endpoint configuration of the hub with the certificate and key `tls`.
pub fn endpoint_config(tls: &Bundle) -> EndpointConfig {
    let mut hasher = Sha256::new();
    hasher.update(LABEL);
    hasher.update(tls.key().secret_der());
    let mut config = EndpointConfig::new(Arc::new(ResetKey(hasher.finalize().into())));
    config.cid_generator(|| Box::new(RandomIds));
    config.min_reset_interval(RESET_INTERVAL_MIN);
    config
}

struct ResetKey([u8; 32]);

impl ResetKey {
    fn mac(&self, data: &[u8]) -> Hmac<Sha256> {
        let mut block = hmac::digest::Key::<Hmac<Sha256>>::default();
        block.iter_mut().zip(self.0).for_each(|(to, from)| *to = from);
        let mut mac = <Hmac<Sha256> as KeyInit>::new(&block);
        mac.update(data);
        mac
    }
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        let signature = self.mac(data).finalize().into_bytes();
        signature_out.iter_mut().zip(signature).for_each(|(to, from)| *to = from);
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        self.mac(data).verify_slice(signature).map_err(|_| CryptoError)
    }
}

/// Random connection ids, independent of the process: an unknown one is answered with a reset.
#[derive(Debug)]
struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut bytes = [0; CONNECTION_ID_BYTES];
        // TLS fails earlier without randomness. An id of zeros collides and is rejected.
        let _ = getrandom::fill(&mut bytes);
        ConnectionId::new(&bytes)
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
