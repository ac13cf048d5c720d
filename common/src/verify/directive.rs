//! Verification of a directive: signature, audience, lifetime, sequence, generation, operation.

use super::{Ages, Verified, VerifyError, check_lifetime};
use crate::basics::envelope::{self, DIRECTIVE_TYPE, Opened};
use crate::basics::ids::{ClusterId, Digest, Timestamp};
use crate::basics::json;
use crate::basics::keys::KeyId;
use crate::documents::plan::{
    CAP_FULL_PERCENT, DIRECTIVE_LIFETIME_MAX_MS, Directive, Operation, SOAK_MAX_MS,
};
use crate::record::{self, DestinationRecords, DirectiveOrder, rollout};
use crate::trust::policy::Policy;

/// A directive with valid signature, audience, lifetime and sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Ordered {
    pub directive: Directive,
    /// SHA-256 of the signed payload.
    pub digest: Digest,
    pub hub_key: KeyId,
    pub order: DirectiveOrder,
}

/// The spoke for which a directive is verified.
#[derive(Clone, Copy, Debug)]
pub struct SpokeContext<'a> {
    pub policy: &'a Policy,
    pub cluster: &'a ClusterId,
    pub records: &'a DestinationRecords,
    pub now: Timestamp,
    /// `Skip` when a directive that was already admitted is loaded.
    pub ages: Ages,
}

/// Verifies a directive: signature of a pinned hub key, audience, lifetime, sequence.
pub fn directive(
    envelope: &[u8],
    spoke: &SpokeContext<'_>,
) -> Result<Verified<Ordered>, VerifyError> {
    let opened = envelope::open(envelope, DIRECTIVE_TYPE, &spoke.policy.hub_keys)
        .map_err(|source| VerifyError::Envelope { what: "directive", source })?;
    let directive: Directive = json::document(opened.payload())
        .map_err(|source| VerifyError::Document { what: "directive", source })?;
    if directive.v != 1 {
        return Err(VerifyError::Version { what: "directive", v: directive.v });
    }
    let needs_plan = directive.operation != Operation::Remove;
    if needs_plan != directive.plan.is_some() || directive.cap_percent > CAP_FULL_PERCENT {
        return Err(VerifyError::DirectiveIncomplete);
    }
    if directive.cluster != *spoke.cluster {
        return Err(VerifyError::AudienceMismatch { audience: directive.cluster });
    }
    if spoke.ages == Ages::Enforce {
        record::check_clock(spoke.records, spoke.now).map_err(VerifyError::Record)?;
        let span = (directive.issued_at, directive.expires_at);
        check_lifetime("directive", span, DIRECTIVE_LIFETIME_MAX_MS, spoke.now)?;
    }
    let hub_key = first_key(&opened)?;
    let key = (directive.application.clone(), directive.namespace.clone());
    let digest = Digest::of(opened.payload());
    let order = match spoke.ages {
        Ages::Enforce => {
            record::compare_order(&directive, digest, hub_key, spoke.records.get(&key))
                .map_err(VerifyError::Record)?
        }
        // The order was checked at admission; the record may hold a newer directive.
        Ages::Skip => DirectiveOrder::Repeated,
    };
    if directive.soak_ms.is_some_and(|soak_ms| soak_ms > SOAK_MAX_MS) {
        return Err(VerifyError::DirectiveIncomplete);
    }
    if order == DirectiveOrder::Newer {
        rollout::ordered_plan(&directive, hub_key, spoke.records.get(&key))
            .map_err(VerifyError::Record)?;
    }
    if directive.cap_percent != CAP_FULL_PERCENT {
        return Err(VerifyError::CapNotSupported { cap_percent: directive.cap_percent });
    }
    Ok(Verified(Ordered { directive, digest, hub_key, order }))
}

fn first_key(opened: &Opened) -> Result<KeyId, VerifyError> {
    opened.signers().first().copied().ok_or(VerifyError::DirectiveIncomplete)
}
