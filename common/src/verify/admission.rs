//! Admission of a directive: plan, release, receipts and content together, against the records of this cluster.

use std::collections::BTreeMap;

use super::directive::{Ordered, SpokeContext};
use super::release::{Admitted, DeliveredBlobs, admit, check_allowed, target_release};
use super::{Ages, DestinationContext, Material, Verified, VerifyError};
use crate::basics::envelope::{STATEMENT_TYPE, Unopened};
use crate::basics::ids::Digest;
use crate::documents::plan::{Directive, Plan, SignedBlob};
use crate::documents::release::{NamespaceRule, Release, Render};
use crate::objects::kinds::Kinds;
use crate::record::{self, Held, Record};

/// A verified directive with its plan and its release. The objects to write follow from it by [`object_set`].
///
/// [`object_set`]: super::object_set
#[derive(Clone, Debug, PartialEq)]
pub struct Admission {
    pub ordered: Ordered,
    pub plan: Plan,
    pub admitted: Admitted,
}

/// Verifies the content of a directive: plan, release, receipts, rendering, binding and counter floor.
pub fn admission(
    ordered: &Verified<Ordered>,
    plan: &Verified<Plan>,
    material: &Material<'_>,
    spoke: &SpokeContext<'_>,
    kinds: &Kinds,
) -> Result<Verified<Admission>, VerifyError> {
    admit_plan(ordered, plan, material, (spoke, kinds), Intent::Admit)
}

/// Verifies the content of a plan that the record of its destination names: one that is held, or was good.
///
/// CI's signatures are verified by today's policy in full. The signature of the hub, ages and the counter floor are not
/// asked again: the record names the plan by digest.
pub fn kept(
    ordered: &Verified<Ordered>,
    (held, plan): (&Held, &[u8]),
    material: &Material<'_>,
    spoke: &SpokeContext<'_>,
    kinds: &Kinds,
) -> Result<Verified<Admission>, VerifyError> {
    let plan = super::plan::recorded(plan, held)?;
    admit_plan(ordered, &plan, material, (spoke, kinds), Intent::Keep)
}

/// Purpose of the verification of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Intent {
    /// The hub orders the plan.
    Admit,
    /// The record names the plan.
    Keep,
}

fn admit_plan(
    ordered: &Verified<Ordered>,
    plan: &Verified<Plan>,
    material: &Material<'_>,
    (spoke, kinds): (&SpokeContext<'_>, &Kinds),
    intent: Intent,
) -> Result<Verified<Admission>, VerifyError> {
    let Directive { application, namespace, .. } = &ordered.directive;
    if ordered.directive.plan.is_none() || plan.application != *application {
        return Err(VerifyError::ApplicationMismatch {
            asked: application.clone(),
            signed: plan.application.clone(),
        });
    }
    check_allowed(spoke.policy, application, namespace, &plan.policy)?;
    let delivered = match_blobs(plan, material)?;
    let destination = (application, namespace);
    let mine = spoke.records.get(&(application.clone(), namespace.clone()));
    // The age of a release counts only at its first admission at the destination.
    let running = mine.filter(|record| !record.removed);
    let known =
        running.and_then(|r| r.floor.as_ref()).is_some_and(|f| f.release == plan.release.id);
    let ages = if known || intent == Intent::Keep { Ages::Skip } else { spoke.ages };
    let place = DestinationContext {
        policy: spoke.policy,
        application,
        namespace,
        kinds,
        now: spoke.now,
        ages,
    };
    let targeted = target_release(material.release, &plan.render, &plan.policy, &place)?;
    let Release { source, counter, .. } = &targeted.opened.release;
    if targeted.opened.id != plan.release.id {
        return Err(VerifyError::BlobDigest { what: "release" });
    }
    match intent {
        Intent::Admit if !is_of_good_plan(plan, mine) => {
            let release = targeted.opened.id;
            record::admit_release(spoke.records, destination, &source.repo, *counter, release)
        }
        Intent::Admit | Intent::Keep => {
            record::check_source(spoke.records, destination, &source.repo)
        }
    }
    .map_err(VerifyError::Record)?;
    if intent == Intent::Admit
        && let NamespaceRule::DefaultOnly { .. } = targeted.render.namespace
        && running.is_none_or(|r| r.binding.is_none())
    {
        let others = record::other_namespaces(spoke.records, destination, &source.repo);
        let max = targeted.effective_policy.namespaces_max;
        if others >= max as usize {
            return Err(VerifyError::TooManyNamespaces { max });
        }
    }
    let admitted = admit(targeted, delivered, &plan.policy, &place)?;
    check_plan(plan, &admitted)?;
    Ok(Verified(Admission {
        ordered: ordered.0.clone(),
        plan: plan.0.clone(),
        admitted: admitted.into_inner(),
    }))
}

/// Returns whether a plan is about the release and content of the newest good plan: after a failed rollout, the counter
/// floor is that of the release that failed.
fn is_of_good_plan(plan: &Plan, record: Option<&Record>) -> bool {
    let good = record.filter(|record| record.rollout.is_some()).and_then(|r| r.last_good.as_ref());
    good.is_some_and(|good| {
        good.release == plan.release.sha256 && good.content == plan.content.sha256
    })
}

/// Requires that a plan repeats the facts of its release as they are signed.
fn check_plan(plan: &Plan, admitted: &Admitted) -> Result<(), VerifyError> {
    let Plan { content, namespace, .. } = plan;
    let Render { namespace: signed_namespace, objects, media_type, .. } = &admitted.render;
    if namespace != signed_namespace {
        let (planned, signed) = (format!("{namespace:?}"), format!("{signed_namespace:?}"));
        return Err(VerifyError::PlanMismatch { field: "namespace", planned, signed });
    }
    if content.media_type != *media_type {
        let (planned, signed) = (content.media_type.clone(), media_type.clone());
        return Err(VerifyError::PlanMismatch { field: "content.mediaType", planned, signed });
    }
    if content.objects != *objects {
        let (planned, signed) = (content.objects.to_string(), objects.to_string());
        return Err(VerifyError::PlanMismatch { field: "content.objects", planned, signed });
    }
    Ok(())
}

/// Matches delivered blobs with those that a plan names. A missing, different or unnamed blob is an error, and so is one
/// of another size than the plan states.
fn match_blobs<'a>(
    plan: &'a Plan,
    material: &Material<'a>,
) -> Result<DeliveredBlobs<'a>, VerifyError> {
    let release_bytes = material.release.len() as u64;
    if plan.release.size != release_bytes || Digest::of(material.release) != plan.release.sha256 {
        return Err(VerifyError::BlobDigest { what: "release" });
    }
    let content = Digest::of(material.content);
    if plan.content.size != material.content.len() as u64 || content != plan.content.sha256 {
        return Err(VerifyError::BlobDigest { what: "content" });
    }
    let named: BTreeMap<Digest, &SignedBlob> =
        plan.receipts.iter().map(|receipt| (receipt.sha256, receipt)).collect();
    let mut receipts = BTreeMap::new();
    for bytes in material.receipts {
        let blob = named.get(&Digest::of(bytes)).filter(|blob| blob.size == bytes.len() as u64);
        let receipt = Unopened::read(bytes, STATEMENT_TYPE)
            .ok()
            .filter(|receipt| blob.is_some_and(|blob| blob.id == receipt.id()))
            .ok_or(VerifyError::BlobDigest { what: "receipt" })?;
        receipts.insert(receipt.id(), receipt);
    }
    if receipts.len() != named.len() {
        return Err(VerifyError::BlobDigest { what: "receipt" });
    }
    Ok(DeliveredBlobs { receipts, bytes: material.content, content, named: &plan.receipts })
}

/// A destination that may be removed.
#[derive(Clone, Debug, PartialEq)]
pub struct Removal {
    pub ordered: Ordered,
    pub accounts_namespace: String,
}

/// Verifies a `Remove` directive against the cluster's trust policy.
pub fn removal(
    ordered: &Verified<Ordered>,
    spoke: &SpokeContext<'_>,
) -> Result<Verified<Removal>, VerifyError> {
    let Directive { application, namespace, .. } = &ordered.directive;
    let mine = spoke.records.get(&(application.clone(), namespace.clone()));
    let Some(repo) = mine.and_then(|r| r.binding.as_deref()) else {
        return Err(VerifyError::NothingToRemove);
    };
    let effective =
        spoke.policy.effective(application, repo, namespace).map_err(VerifyError::Policy)?;
    if !effective.remove_allowed {
        return Err(VerifyError::RemoveNotAllowed);
    }
    Ok(Verified(Removal {
        ordered: ordered.0.clone(),
        accounts_namespace: effective.accounts_namespace,
    }))
}
