//! Verification of a plan: signature of a pinned hub key, digest, limits.

use std::collections::BTreeSet;

use super::{Verified, VerifyError};
use crate::basics::envelope::{self, PLAN_TYPE};
use crate::basics::ids::Digest;
use crate::basics::json;
use crate::documents::manifest;
use crate::documents::plan::{Plan, RECEIPTS_MAX};
use crate::record::Held;
use crate::trust::policy::Policy;

/// Verifies a plan: signed by a pinned hub key, and the one that a directive names by `digest`.
pub fn plan(
    envelope: &[u8],
    digest: Digest,
    policy: &Policy,
) -> Result<Verified<Plan>, VerifyError> {
    let opened = envelope::open(envelope, PLAN_TYPE, &policy.hub_keys)
        .map_err(|source| VerifyError::Envelope { what: "plan", source })?;
    read(opened.payload(), digest).map(Verified)
}

/// Reads a plan that a record names. Its signature was verified when it was admitted, perhaps by another hub key.
pub(super) fn recorded(envelope: &[u8], held: &Held) -> Result<Verified<Plan>, VerifyError> {
    if Digest::of(envelope) != held.plan {
        return Err(VerifyError::BlobDigest { what: "plan" });
    }
    let (payload, _) = envelope::peek(envelope, PLAN_TYPE).ok_or(VerifyError::PlanDigest)?;
    read(&payload, held.plan_digest).map(Verified)
}

fn read(payload: &[u8], digest: Digest) -> Result<Plan, VerifyError> {
    if Digest::of(payload) != digest {
        return Err(VerifyError::PlanDigest);
    }
    let plan: Plan =
        json::document(payload).map_err(|source| VerifyError::Document { what: "plan", source })?;
    if plan.v != 1 {
        return Err(VerifyError::Version { what: "plan", v: plan.v });
    }
    if plan.receipts.len() > RECEIPTS_MAX {
        return Err(VerifyError::Limit { what: "receipts", max: RECEIPTS_MAX });
    }
    if !plan.hooks.is_empty() {
        return Err(VerifyError::HookNotAllowed);
    }
    check_blobs(&plan)?;
    Ok(plan)
}

/// Requires that a plan names each blob once and none larger than its kind may be: a spoke stores what
/// a plan names.
fn check_blobs(plan: &Plan) -> Result<(), VerifyError> {
    let envelopes = plan.receipts.iter().chain([&plan.release]);
    let digests: BTreeSet<Digest> =
        envelopes.clone().map(|blob| blob.sha256).chain([plan.content.sha256]).collect();
    if digests.len() != plan.receipts.len() + 2 {
        return Err(VerifyError::BlobTwice);
    }
    if envelopes.into_iter().any(|blob| blob.size > envelope::ENVELOPE_BYTES_MAX as u64) {
        return Err(VerifyError::Limit {
            what: "bytes a receipt",
            max: envelope::ENVELOPE_BYTES_MAX,
        });
    }
    if plan.content.size > manifest::RENDERING_BYTES_MAX as u64 {
        return Err(VerifyError::Limit { what: "bytes", max: manifest::RENDERING_BYTES_MAX });
    }
    Ok(())
}
