//! Verification of the receipts that a release rests on.

use std::collections::{BTreeMap, BTreeSet};

use super::{Ages, Check, VerifyError, key_list};
use crate::basics::envelope::Unopened;
use crate::basics::ids::{Digest, Timestamp};
use crate::basics::terms::Mode;
use crate::basics::text::shortened;
use crate::documents::plan::RequestedPolicy;
use crate::documents::receipt::{self, ReceiptContext, ReceiptError};
use crate::documents::release::{Release, Render};
use crate::documents::statement::Statement;
use crate::trust::policy::EffectivePolicy;

/// Inputs to the check of a release's evidence.
pub(super) struct EvidenceContext<'a> {
    pub(super) release: &'a Release,
    pub(super) effective_policy: &'a EffectivePolicy,
    pub(super) render: &'a Render,
    pub(super) content: Digest,
    pub(super) requested: &'a RequestedPolicy,
    pub(super) mode: Mode,
    pub(super) now: Timestamp,
    pub(super) ages: Ages,
}

/// Requires for each attestation a valid receipt of its own, the one that the release pins. Returns warnings.
pub(super) fn check_evidence(
    mut receipts: BTreeMap<Digest, Unopened>,
    about: &EvidenceContext<'_>,
    checks: &mut Vec<Check>,
) -> Result<Vec<String>, VerifyError> {
    let required: BTreeSet<&str> = about
        .effective_policy
        .required
        .iter()
        .chain(&about.requested.required_attestations)
        .map(String::as_str)
        .collect();
    let mut used = BTreeSet::new();
    let mut warnings = Vec::new();
    for name in required {
        let rule = receipt::rule(name).ok_or_else(|| {
            VerifyError::Receipt(ReceiptError::AttestationUnknown(shortened(name)))
        })?;
        let mut pinned = about.release.evidence.iter().filter(|e| e.attestation == name);
        let (Some(evidence), None) = (pinned.next(), pinned.next()) else {
            return Err(VerifyError::AttestationMissing(shortened(name)));
        };
        if !used.insert(evidence.receipt) {
            return Err(VerifyError::AttestationNotDistinct(shortened(name)));
        }
        let keys =
            about.effective_policy.keys_for(rule.role, about.requested.trusted_keys.as_ref());
        let unopened = receipts.remove(&evidence.receipt);
        let unopened = unopened.ok_or_else(|| VerifyError::ReceiptMissing(shortened(name)))?;
        let opened = unopened
            .open(&keys)
            .map_err(|source| VerifyError::Envelope { what: "receipt", source })?;
        let statement = Statement::read(opened.payload()).map_err(VerifyError::Statement)?;
        let builder_ids = about.effective_policy.builder_ids(opened.signers());
        let receipt_context = ReceiptContext {
            release: about.release,
            render: about.render,
            content: about.content,
            builder_ids: &builder_ids,
            mode: about.mode,
            now: about.now,
            enforce_ages: about.ages == Ages::Enforce,
            scan_age_hours_max: about.effective_policy.scan_age_hours_max,
        };
        warnings.extend(
            receipt::check(name, &statement, &receipt_context).map_err(VerifyError::Receipt)?,
        );
        checks.push(Check::new("Receipt", format!("{name} by {}", key_list(opened.signers()))));
    }
    Ok(warnings)
}
