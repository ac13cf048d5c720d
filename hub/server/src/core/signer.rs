//! The hub's signing key, the only place where plans, directives and syncs are signed.

use attest_common::basics::envelope::{self, DIRECTIVE_TYPE, PLAN_TYPE, SYNC_TYPE};
use attest_common::basics::ids::Digest;
use attest_common::basics::keys::{PrivateKey, PublicKey};
use attest_common::documents::plan::{self, Directive, Plan, Sync};

/// A signed document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    pub envelope: Vec<u8>,
    /// SHA-256 of the payload, by which others refer to it.
    pub digest: Digest,
}

/// The hub's signing key.
#[derive(Debug)]
pub struct Signer {
    key: PrivateKey,
}

impl Signer {
    /// Creates a signer with `key`.
    pub fn new(key: PrivateKey) -> Self {
        Self { key }
    }

    /// Returns the public key, which spokes pin.
    pub fn public(&self) -> &PublicKey {
        self.key.public()
    }

    /// Signs a plan, once for all destinations that share it.
    pub fn plan(&self, plan: &Plan) -> Signed {
        self.seal(PLAN_TYPE, &plan::to_bytes(plan))
    }

    /// Signs a directive for its destination.
    pub fn directive(&self, directive: &Directive) -> Signed {
        self.seal(DIRECTIVE_TYPE, &plan::to_bytes(directive))
    }

    /// Signs a heartbeat for its cluster.
    pub fn sync(&self, sync: &Sync) -> Signed {
        self.seal(SYNC_TYPE, &plan::to_bytes(sync))
    }

    fn seal(&self, payload_type: &str, payload: &[u8]) -> Signed {
        Signed {
            envelope: envelope::seal(payload_type, payload, &[&self.key]),
            digest: Digest::of(payload),
        }
    }
}

#[cfg(test)]
mod tests {
    use attest_common::basics::ids::{ClusterId, Name};
    use attest_common::documents::plan::{HEADS_MAX, Head};
    use attest_common::session::frame::encode;
    use attest_common::session::message::{ToSpoke, ToSpokeBody};

    use super::*;

    #[test]
    fn a_heartbeat_with_the_most_heads_and_the_longest_names_fits_its_envelope_and_its_frame() {
        let signer = Signer::new(PrivateKey::from_seed(&[1; 32]).unwrap());
        let name = Name::new("a".repeat(63)).unwrap();
        let now = attest_runtime::clock::now();
        let head = Head { application: name.clone(), namespace: name, sequence: 1 << 53 };
        let sync = Sync {
            v: 1,
            cluster: ClusterId::of_identity_key(&[1; 32]),
            epoch: 1 << 53,
            counter: u64::MAX,
            nonce: "0".repeat(32),
            heads: vec![head; HEADS_MAX],
            issued_at: now,
            expires_at: now,
        };

        let signed = signer.sync(&sync);

        let keys = [(signer.public().id(), signer.public().clone())].into();
        let opened = envelope::open(&signed.envelope, SYNC_TYPE, &keys).unwrap();
        assert_eq!(Digest::of(opened.payload()), signed.digest);
        encode(&ToSpoke { body: Some(ToSpokeBody::Sync(signed.envelope)) }).unwrap();
    }
}
