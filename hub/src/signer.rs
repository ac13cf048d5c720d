//! Holds the hub's key: plans, directives and syncs become signed bytes here and nowhere else.

use attest_common::envelope::{self, DIRECTIVE_TYPE, PLAN_TYPE, SYNC_TYPE};
use attest_common::ids::Digest;
use attest_common::keys::{PrivateKey, PublicKey};
use attest_common::plan::{self, Directive, Plan, Sync};

/// A document as signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    pub envelope: Vec<u8>,
    /// SHA-256 of the payload: how others refer to it.
    pub digest: Digest,
}

/// The hub's signing key.
#[derive(Debug)]
pub struct Signer {
    key: PrivateKey,
}

impl Signer {
    /// Signs with `key`.
    pub fn new(key: PrivateKey) -> Self {
        Self { key }
    }

    /// The public half, which spokes pin.
    pub fn public(&self) -> &PublicKey {
        self.key.public()
    }

    /// Signs a plan, once for all destinations that share it.
    pub fn plan(&self, plan: &Plan) -> Signed {
        self.seal(PLAN_TYPE, &plan::to_bytes(plan))
    }

    /// Signs a directive for its one destination.
    pub fn directive(&self, directive: &Directive) -> Signed {
        self.seal(DIRECTIVE_TYPE, &plan::to_bytes(directive))
    }

    /// Signs a heartbeat for its one cluster.
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
