//! Verification of a heartbeat: signature, audience, nonce, counter and lifetime.

use super::{SpokeContext, Verified, VerifyError, check_lifetime};
use crate::basics::envelope::{self, SYNC_TYPE};
use crate::basics::json;
use crate::documents::plan::{HEADS_MAX, SYNC_LIFETIME_MAX_MS, Sync};

/// Verifies a heartbeat: signed by a pinned hub key, for this cluster, with the `nonce` that this spoke sent
/// on this connection, a counter above `last_counter`, and within its lifetime.
pub fn sync(
    envelope: &[u8],
    spoke: &SpokeContext<'_>,
    nonce: &str,
    last_counter: u64,
) -> Result<Verified<Sync>, VerifyError> {
    let opened = envelope::open(envelope, SYNC_TYPE, &spoke.policy.hub_keys)
        .map_err(|source| VerifyError::Envelope { what: "sync", source })?;
    let sync: Sync = json::document(opened.payload())
        .map_err(|source| VerifyError::Document { what: "sync", source })?;
    if sync.v != 1 {
        return Err(VerifyError::Version { what: "sync", v: sync.v });
    }
    if sync.cluster != *spoke.cluster {
        return Err(VerifyError::AudienceMismatch { audience: sync.cluster });
    }
    if sync.nonce != nonce || sync.counter <= last_counter {
        return Err(VerifyError::SyncNonce);
    }
    if sync.heads.len() > HEADS_MAX {
        return Err(VerifyError::Limit { what: "heads", max: HEADS_MAX });
    }
    let span = (sync.issued_at, sync.expires_at);
    check_lifetime("sync", span, SYNC_LIFETIME_MAX_MS, spoke.now)?;
    Ok(Verified(sync))
}
