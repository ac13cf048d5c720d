//! Verification of a release: signature, source, target, times, content, evidence, objects.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::evidence::{EvidenceContext, check_evidence};
use super::{Ages, Check, DestinationContext, Material, Verified, VerifyError, key_list};
use crate::basics::envelope::{self, STATEMENT_TYPE, Unopened};
use crate::basics::ids::{Digest, Name, Timestamp};
use crate::basics::keys::{KeyId, PublicKey};
use crate::basics::terms::{Mode, Role};
use crate::basics::text::shortened;
use crate::documents::manifest::{self, Object};
use crate::documents::plan::{RECEIPTS_MAX, RequestedPolicy, SignedBlob};
use crate::documents::receipt::STANDARD_GRACE_MS;
use crate::documents::release::{
    self, NamespaceRule, RENDERING_TYPE, Release, ReleaseError, Render,
};
use crate::documents::statement::Statement;
use crate::objects::placement::{self, Intake};
use crate::trust::policy::{EffectivePolicy, Policy};

/// A counter at or above this is read as seconds since 1970; below, it is a plain number.
pub const UNIX_SECONDS_COUNTER_MIN: u64 = 1_000_000_000;
/// Longest time by which a counter of seconds may be ahead of the clock, in seconds.
pub const COUNTER_AHEAD_MAX_S: u64 = 24 * 60 * 60;

/// A release that may run at a destination, with the objects as they are applied there.
#[derive(Clone, Debug, PartialEq)]
pub struct Admitted {
    pub id: Digest,
    pub release: Release,
    pub render: Render,
    pub content: Digest,
    pub objects: Arc<[Object]>,
    pub effective_policy: EffectivePolicy,
    pub mode: Mode,
    /// The keys that signed the release statement, as the policy names them.
    pub signers: BTreeMap<KeyId, String>,
    pub checks: Vec<Check>,
    pub warnings: Vec<String>,
}

/// A signed release statement, opened and parsed, before a rendering is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenedRelease {
    pub id: Digest,
    pub statement: Statement,
    pub release: Release,
    pub signers: BTreeSet<KeyId>,
}

/// Opens a release statement with the given keys. Used to find candidates; [`fn@release`] verifies them.
pub fn open_release(
    envelope: &[u8],
    keys: &BTreeMap<KeyId, PublicKey>,
) -> Result<Verified<OpenedRelease>, VerifyError> {
    let opened = envelope::open(envelope, STATEMENT_TYPE, keys)
        .map_err(|source| VerifyError::Envelope { what: "release statement", source })?;
    let statement = Statement::read(opened.payload())
        .map_err(|source| VerifyError::Release(ReleaseError::Statement(source)))?;
    let release = Release::read(&statement).map_err(VerifyError::Release)?;
    Ok(Verified(OpenedRelease {
        id: opened.id(),
        statement,
        release,
        signers: opened.signers().clone(),
    }))
}

/// Returns the render of a release that targets a cluster and allows a namespace, if there is one.
///
/// Several renders that fit the cluster must each fix a different namespace; otherwise the hub could
/// choose between them (`RenderAmbiguous`).
pub fn fitting_render<'a>(
    release: &'a Release,
    environment: &Name,
    cluster_name: &Name,
    namespace: &Name,
) -> Result<Option<&'a Render>, VerifyError> {
    let fitting: Vec<&Render> = release
        .renders
        .iter()
        .filter(|render| render.target.fits(environment.as_str(), cluster_name.as_str()))
        .collect();
    if fitting.len() > 1 {
        let mut fixed = BTreeSet::new();
        let distinct = fitting.iter().all(|render| match &render.namespace {
            NamespaceRule::Fixed { value } => fixed.insert(value),
            NamespaceRule::DefaultOnly { .. } => false,
        });
        if !distinct {
            let names = fitting.iter().map(|r| r.name.clone()).collect();
            return Err(VerifyError::RenderAmbiguous { renders: names });
        }
    }
    if fitting.is_empty() {
        return Err(VerifyError::TargetMismatch {
            environment: environment.clone(),
            cluster: cluster_name.clone(),
        });
    }
    Ok(fitting.into_iter().find(|render| render.namespace.allows(namespace)))
}

/// Checks an application and a namespace against the trust policy by name alone, without any document
/// signed by CI.
pub fn check_allowed(
    policy: &Policy,
    application: &Name,
    namespace: &Name,
    requested: &RequestedPolicy,
) -> Result<(), VerifyError> {
    let floor = policy.names(application, namespace).map_err(VerifyError::Policy)?;
    if requested.mode < floor {
        return Err(VerifyError::PolicyFloor { requested: requested.mode, floor });
    }
    Ok(())
}

/// Verifies a release, its receipts and a rendering for one destination. CI, hub and spoke all call it.
///
/// `render` names the rendering that the content is claimed to be; `requested` is the policy that the
/// application's owner requests, which can only tighten that of the destination.
pub fn release(
    material: &Material<'_>,
    render: &str,
    requested: &RequestedPolicy,
    destination: &DestinationContext<'_>,
) -> Result<Verified<Admitted>, VerifyError> {
    check_allowed(destination.policy, destination.application, destination.namespace, requested)?;
    let targeted = target_release(material.release, render, requested, destination)?;
    // Receipts that are not envelopes of statements are skipped.
    let readable = material.receipts.iter().take(RECEIPTS_MAX);
    let receipts = readable
        .filter_map(|bytes| Unopened::read(bytes, STATEMENT_TYPE).ok())
        .map(|receipt| (receipt.id(), receipt))
        .collect();
    let delivered = DeliveredBlobs {
        receipts,
        bytes: material.content,
        content: Digest::of(material.content),
        named: &[],
    };
    admit(targeted, delivered, requested, destination)
}

/// A release with valid signature, source and target, not yet compared with the records.
pub(super) struct TargetedRelease {
    pub(super) opened: OpenedRelease,
    pub(super) effective_policy: EffectivePolicy,
    mode: Mode,
    pub(super) render: Render,
    signers: BTreeMap<KeyId, String>,
    checks: Vec<Check>,
}

/// Opens a release, and checks its signers, source and target for one destination.
pub(super) fn target_release(
    release: &[u8],
    render: &str,
    requested: &RequestedPolicy,
    destination: &DestinationContext<'_>,
) -> Result<TargetedRelease, VerifyError> {
    let DestinationContext { policy, application, namespace, .. } = *destination;
    let mut checks = Vec::new();
    let keys = candidate_keys(policy, requested)?;
    let opened = open_release(release, &keys)?.into_inner();
    checks.push(Check::new("ReleaseSignature", key_list(&opened.signers)));
    let released = &opened.release;
    if released.application != *application {
        return Err(VerifyError::ApplicationMismatch {
            asked: application.clone(),
            signed: released.application.clone(),
        });
    }
    let effective_policy = policy
        .effective(application, &released.source.repo, namespace)
        .map_err(VerifyError::Policy)?;
    let floor = effective_policy.minimum_mode;
    let mode = requested.mode.max(floor);
    if requested.mode < floor {
        return Err(VerifyError::PolicyFloor { requested: requested.mode, floor });
    }
    let releasers = effective_policy.keys_for(Role::Releaser, requested.trusted_keys.as_ref());
    let signers: BTreeMap<KeyId, String> = opened
        .signers
        .iter()
        .filter(|id| releasers.contains_key(id))
        .map(|id| (*id, effective_policy.key_name(id).unwrap_or_default().to_owned()))
        .collect();
    if signers.is_empty() {
        return Err(VerifyError::UntrustedKey { signers: key_list(&opened.signers) });
    }
    checks.push(Check::new(
        "Source",
        format!("{} at {}", released.source.repo, released.source.git_commit),
    ));
    let render = chosen_render(released, render, policy, namespace)?.clone();
    checks.push(Check::new("Target", format!("render {} for {}", render.name, policy.environment)));
    Ok(TargetedRelease { opened, effective_policy, mode, render, signers, checks })
}

/// The blobs delivered for a release, each read and hashed once.
pub(super) struct DeliveredBlobs<'a> {
    pub(super) receipts: BTreeMap<Digest, Unopened>,
    pub(super) bytes: &'a [u8],
    pub(super) content: Digest,
    /// The receipts that a plan names.
    pub(super) named: &'a [SignedBlob],
}

/// Completes the verification of a release: times, content, evidence, objects.
pub(super) fn admit(
    targeted: TargetedRelease,
    delivered: DeliveredBlobs<'_>,
    requested: &RequestedPolicy,
    destination: &DestinationContext<'_>,
) -> Result<Verified<Admitted>, VerifyError> {
    let DestinationContext { namespace, kinds, now, ages, .. } = *destination;
    let TargetedRelease { opened, effective_policy, mode, render, signers, mut checks } = targeted;
    let DeliveredBlobs { receipts, bytes, content, named } = delivered;
    let mut warnings = Vec::new();
    if ages == Ages::Enforce {
        warnings.extend(check_times(&opened.release, mode, now)?);
        checks.push(Check::new("ReleaseTime", format!("valid until {}", opened.release.not_after)));
    }
    check_content(bytes, content, &opened.statement, &render)?;
    checks.push(Check::new("ContentDigest", content.to_string()));
    let released = &opened.release;
    // A spoke stores what a plan names: only receipts that the release rests on.
    if !named.iter().all(|blob| released.evidence.iter().any(|e| e.receipt == blob.id)) {
        return Err(VerifyError::BlobDigest { what: "receipt" });
    }
    let about = EvidenceContext {
        release: released,
        effective_policy: &effective_policy,
        render: &render,
        content,
        requested,
        mode,
        now,
        ages,
    };
    warnings.extend(check_evidence(receipts, &about, &mut checks)?);
    let objects = manifest::read(bytes).map_err(VerifyError::Manifest)?;
    if objects.len() as u64 != render.objects {
        return Err(VerifyError::ObjectCount { got: objects.len(), signed: render.objects });
    }
    let intake = match ages {
        Ages::Enforce => Intake::New,
        Ages::Skip => Intake::Held,
    };
    let placed = placement::place_objects(
        objects,
        namespace,
        &render,
        &effective_policy,
        (mode, intake),
        kinds,
    )
    .map_err(VerifyError::Placement)?;
    checks.push(Check::new("Objects", format!("{} objects for {namespace}", placed.objects.len())));
    warnings.extend(placed.warnings);
    let OpenedRelease { id, release, .. } = opened;
    Ok(Verified(Admitted {
        id,
        render,
        release,
        content,
        objects: placed.objects.into(),
        effective_policy,
        mode,
        signers,
        checks,
        warnings,
    }))
}

/// Returns every CI key of the environment with the role of releaser, narrowed to those that the plan names.
fn candidate_keys(
    policy: &Policy,
    requested: &RequestedPolicy,
) -> Result<BTreeMap<KeyId, PublicKey>, VerifyError> {
    let releasers = policy.ci_keys().iter().filter(|key| key.roles.contains(&Role::Releaser));
    let keys: BTreeMap<KeyId, PublicKey> = releasers
        .filter(|key| {
            requested.trusted_keys.as_ref().is_none_or(|ids| ids.contains(&key.public.id()))
        })
        .map(|key| (key.public.id(), key.public.clone()))
        .collect();
    if keys.is_empty() {
        let signers = requested.trusted_keys.as_ref().map_or_else(|| "none".to_owned(), key_list);
        return Err(VerifyError::UntrustedKey { signers });
    }
    Ok(keys)
}

/// Returns the render with a given name, provided that it is the one that fits the cluster and namespace.
fn chosen_render<'a>(
    released: &'a Release,
    name: &str,
    policy: &Policy,
    namespace: &Name,
) -> Result<&'a Render, VerifyError> {
    let claimed =
        released.render(name).ok_or_else(|| VerifyError::RenderUnknown(shortened(name)))?;
    if !claimed.target.fits(policy.environment.as_str(), policy.cluster_name.as_str()) {
        return Err(VerifyError::TargetMismatch {
            environment: policy.environment.clone(),
            cluster: policy.cluster_name.clone(),
        });
    }
    let fitting = fitting_render(released, &policy.environment, &policy.cluster_name, namespace)?;
    if fitting.is_some_and(|render| render.name == claimed.name) {
        Ok(claimed)
    } else {
        Err(VerifyError::RenderMismatch { render: shortened(name), namespace: namespace.clone() })
    }
}

/// Checks counter and expiry of a release against the clock. Returns a warning within the grace period.
fn check_times(
    released: &Release,
    mode: Mode,
    now: Timestamp,
) -> Result<Option<String>, VerifyError> {
    let now_s = u64::try_from(now.as_second()).unwrap_or(0);
    let is_seconds = released.counter >= UNIX_SECONDS_COUNTER_MIN;
    if is_seconds && released.counter > now_s.saturating_add(COUNTER_AHEAD_MAX_S) {
        return Err(VerifyError::CounterAhead { counter: released.counter });
    }
    let late_ms = now.as_millisecond() - released.not_after.as_millisecond();
    let grace_ms = if mode == Mode::Standard { STANDARD_GRACE_MS } else { 0 };
    if late_ms > grace_ms {
        return Err(VerifyError::ReleaseExpired { not_after: released.not_after });
    }
    Ok((late_ms > 0).then(|| format!("the release expired {}", released.not_after)))
}

fn check_content(
    content: &[u8],
    digest: Digest,
    statement: &Statement,
    render: &Render,
) -> Result<(), VerifyError> {
    let signed = release::content_digest(statement, render);
    if signed != Some(digest) || render.size != content.len() as u64 {
        return Err(VerifyError::ContentDigest { got: digest, signed });
    }
    if render.media_type != RENDERING_TYPE {
        return Err(VerifyError::MediaType(shortened(&render.media_type)));
    }
    Ok(())
}
