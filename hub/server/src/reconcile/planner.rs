//! Decides which directive to issue for one destination, or the reason for none. Pure: no I/O, no clock.
//!
//! The hub verifies by the policy that the spoke reported, with the code that the spoke uses. Its decision is a
//! proposal: the spoke verifies again by its actual policy.

use std::collections::BTreeMap;

use attest_common::basics::envelope::{self, STATEMENT_TYPE};
use attest_common::basics::ids::{DestinationKey, Digest, Timestamp};
use attest_common::basics::keys::{KeyId, PublicKey};
use attest_common::basics::reason::Reason;
use attest_common::basics::terms::Role;
use attest_common::basics::text;
use attest_common::documents::manifest::{self, Object};
use attest_common::documents::plan::{ContentBlob, Operation, Plan, SignedBlob, Strategy};
use attest_common::documents::release::{self, RENDERING_TYPE, Render};
use attest_common::objects::difference;
use attest_common::objects::kinds::Kinds;
use attest_common::session::FEATURE_MANIFESTS_2;
use attest_common::verify::{self, Admitted, Ages, DestinationContext, Material, Verified};
use bytes::Bytes;

use super::evidence::{Candidate, Evidence};
use crate::applications::view::{Rendered, Waiting};
use crate::core::position::{ReportedPolicy, SpokePosition, needs_reissue, next_sequence};
use crate::core::store::NEW_KEY_NEEDED;
use crate::core::store::records::{Application, LedgerEntry, Planned};

/// Most differences named in one message.
pub(crate) const DIFFERENCES_NAMED_MAX: usize = 3;

/// Everything that decides about one destination.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Situation<'a> {
    pub application: &'a Application,
    pub destination: &'a DestinationKey,
    pub commit: &'a str,
    pub evidence: &'a Evidence,
    pub rendered: &'a Rendered,
    pub reported: &'a ReportedPolicy,
    pub head: Option<&'a LedgerEntry>,
    /// `None` while the spoke is not connected.
    pub position: Option<SpokePosition>,
    /// True when an operator asked for this commit to be deployed now.
    pub asked_for: bool,
    /// The spoke has refused the current directive because it is expired.
    pub refused_as_expired: bool,
    pub now: Timestamp,
}

/// A plan to issue.
#[derive(Clone, Debug)]
pub(crate) struct Proposal {
    pub plan: Plan,
    /// The blobs that the plan names, as they are: release, receipts, content.
    pub blobs: Vec<Bytes>,
    pub admitted: Verified<Admitted>,
}

/// The outcome.
#[derive(Clone, Debug)]
pub(crate) enum Decision {
    New(Box<Proposal>),
    /// The current directive already orders it. [`must_be_reissued`] tells whether its spoke still accepts it.
    Stands {
        /// A render of the release names clusters: a cluster that is alike may decide otherwise.
        names_clusters: bool,
    },
    Waiting(Waiting),
}

/// Decides about one destination of an application that is to run there.
pub(crate) fn decide(situation: &Situation<'_>) -> Decision {
    match choose(situation) {
        Ok(candidate) => numbered(situation, judge(situation, candidate)),
        Err(waiting) => Decision::Waiting(waiting),
    }
}

/// Returns the decision, unless there is no sequence left for a new directive.
fn numbered(situation: &Situation<'_>, decision: Decision) -> Decision {
    let last = situation.head.map_or(0, |head| head.sequence);
    let seen = situation.position.map_or(0, |position| position.sequence);
    if !matches!(decision, Decision::New(_)) || next_sequence(last, seen).is_some() {
        return decision;
    }
    let message = format!(
        "commit {} is not deployed: the hub's key has used every sequence here; {NEW_KEY_NEEDED}",
        situation.commit
    );
    Decision::Waiting(Waiting::refused(Reason::SequenceUsedUp, message))
}

/// Returns the verified release whose rendering for this destination equals that of the commit.
fn choose<'a>(situation: &Situation<'a>) -> Result<&'a Candidate, Waiting> {
    let fitting = situation.evidence.statements.iter().filter_map(|candidate| {
        let is_own = candidate.release.application == situation.application.name;
        let render = is_own.then(|| fitting(situation, candidate)).flatten()?;
        Some((candidate, render))
    });
    let equal = fitting.clone().find(|(candidate, render)| {
        release::content_digest(&candidate.statement, render) == Some(situation.rendered.digest)
            && is_signed(situation, candidate)
    });
    if let Some((candidate, _)) = equal {
        return Ok(candidate);
    }
    // No key that may release it signed an equal one.
    let is_forged = fitting.clone().any(|(candidate, render)| {
        release::content_digest(&candidate.statement, render) == Some(situation.rendered.digest)
    });
    let is_offered = fitting.clone().next().is_some();
    let mut candidates = fitting.map(|(candidate, _)| candidate);
    let newest = candidates.find(|candidate| is_signed(situation, candidate));
    let running = running(situation.head).map(|planned| planned.counter);
    match newest {
        Some(newest) if running.is_none_or(|counter| newest.release.counter > counter) => {
            Err(differs(situation, newest))
        }
        Some(_) | None => {
            let waiting = nothing_signed(situation, newest);
            let is_untrusted = is_forged || (is_offered && newest.is_none());
            Err(if is_untrusted { waiting.with_untrusted_release() } else { waiting })
        }
    }
}

/// Returns whether a key that may release this candidate for the destination signed it.
fn is_signed(situation: &Situation<'_>, candidate: &Candidate) -> bool {
    verify::open_release(&candidate.envelope, &releasers(situation, candidate)).is_ok()
}

/// Returns the keys that may release this candidate for the destination. If the policy does not admit it at all,
/// returns the keys of the environment, so that the refusal names the violated rule.
fn releasers(situation: &Situation<'_>, candidate: &Candidate) -> BTreeMap<KeyId, PublicKey> {
    let Situation { application, destination, reported, .. } = *situation;
    let asked = application.asked.trusted_keys.as_ref();
    let repo = &candidate.release.source.repo;
    if let Ok(local) = reported.policy.effective(&application.name, repo, &destination.namespace) {
        return local.keys_for(Role::Releaser, asked);
    }
    let keys = reported.policy.ci_keys().iter();
    keys.filter(|key| key.roles.contains(&Role::Releaser))
        .filter(|key| asked.is_none_or(|ids| ids.contains(&key.public.id())))
        .map(|key| (key.public.id(), key.public.clone()))
        .collect()
}

fn fitting<'a>(situation: &Situation<'_>, candidate: &'a Candidate) -> Option<&'a Render> {
    let policy = &situation.reported.policy;
    let namespace = &situation.destination.namespace;
    verify::fitting_render(&candidate.release, &policy.environment, &policy.cluster_name, namespace)
        .ok()
        .flatten()
}

/// A newer release is signed, and its rendering is not what the commit holds.
fn differs(situation: &Situation<'_>, newest: &Candidate) -> Waiting {
    let Situation { rendered, commit, .. } = *situation;
    let release = &newest.release;
    let (name, version) = &rendered.renderer;
    if release.renderer.name != *name || release.renderer.version != *version {
        let message = format!(
            "commit {commit} renders to something else than release {} of CI, which used {} {} \
             while this hub has {name} {version}; use the same version",
            release.counter, release.renderer.name, release.renderer.version
        );
        return Waiting::contradiction(Reason::RendererMismatch, message);
    }
    let mut message = format!(
        "commit {commit} does not render to what CI signed as release {} ({})",
        release.counter, release.version
    );
    message.push_str(&named_differences(situation, newest));
    Waiting::contradiction(Reason::ContentDigest, text::message(&message))
}

/// The first differences between what a release signed and what the commit holds, for a message.
fn named_differences(situation: &Situation<'_>, signed: &Candidate) -> String {
    let Situation { rendered, evidence, .. } = *situation;
    let objects = fitting(situation, signed).and_then(|render| {
        let bytes = evidence.renderings.get(&render.name)?;
        let digest = release::content_digest(&signed.statement, render)?;
        (Digest::of(bytes) == digest).then(|| manifest::read(bytes).ok()).flatten()
    });
    let Some(objects) = objects else { return String::new() };
    let differences = difference::differences(&objects, &rendered.objects());
    let named = differences.iter().take(DIFFERENCES_NAMED_MAX);
    let mut text: String = named.map(|difference| format!(": {difference}")).collect();
    if differences.len() > DIFFERENCES_NAMED_MAX {
        text.push_str(&format!("; and {} more", differences.len() - DIFFERENCES_NAMED_MAX));
    }
    text
}

fn nothing_signed(situation: &Situation<'_>, newest: Option<&Candidate>) -> Waiting {
    let Situation { application, evidence, commit, reported, .. } = *situation;
    let strangers =
        evidence.statements.iter().filter(|c| c.release.application == application.name);
    let strangers = strangers.count();
    let hint_keys = reported.policy.ci_keys().len();
    let more = match (newest, strangers) {
        (Some(newest), _) => format!(
            "CI has signed no release with this rendering{}",
            named_differences(situation, newest)
        ),
        (None, 0) if !evidence.other_applications.is_empty() => {
            let signed: Vec<String> =
                evidence.other_applications.iter().map(|name| format!("`{name}`")).collect();
            format!(
                "this repository signs application {}; this one is called `{}`: use one name",
                signed.join(", "),
                application.name
            )
        }
        (None, 0) => {
            "it brings no release statement; CI makes one with `attest run --sign`".to_owned()
        }
        (None, count) => format!(
            "none of its {count} release statements is for this destination and signed by a key that cluster {} trusts ({hint_keys} keys)",
            reported.policy.cluster_name
        ),
    };
    let message = format!("commit {commit} is not deployed: {more}");
    Waiting::for_receipts(text::message(&message))
}

fn running(head: Option<&LedgerEntry>) -> Option<&Planned> {
    head.filter(|head| head.operation != Operation::Remove).and_then(|head| head.planned.as_ref())
}

fn judge(situation: &Situation<'_>, candidate: &Candidate) -> Decision {
    let Situation { application, destination, rendered, reported, now, .. } = *situation;
    let Some(render) = fitting(situation, candidate) else {
        return Decision::Waiting(nothing_signed(situation, Some(candidate)));
    };
    let planned = situation.head.and_then(|head| head.planned.as_ref());
    let id = envelope::peek(&candidate.envelope, STATEMENT_TYPE)
        .map(|(payload, _)| envelope::id_of(STATEMENT_TYPE, &payload));
    let counter = candidate.release.counter;
    if let Some(planned) = planned
        && (counter < planned.counter
            || (counter == planned.counter && id != Some(planned.release)))
    {
        let message = format!(
            "commit {} renders to release {counter}, and release {} already ran here; \
             `attest release --from {counter}` signs it again with a new counter",
            situation.commit, planned.counter
        );
        return Decision::Waiting(Waiting::refused(Reason::CounterRegressed, message));
    }
    let signed: Vec<&Bytes> = candidate
        .release
        .evidence
        .iter()
        .filter_map(|evidence| situation.evidence.receipts.get(&evidence.receipt))
        .collect();
    let receipts: Vec<&[u8]> = signed.iter().map(|receipt| receipt.as_ref()).collect();
    let known = planned.is_some_and(|planned| Some(planned.release) == id);
    let mut kinds = Kinds::built_in();
    let objects = rendered.objects();
    kinds.guess(objects.iter().map(Object::key), &reported.spec.applications);
    let place = DestinationContext {
        policy: &reported.policy,
        application: &application.name,
        namespace: &destination.namespace,
        kinds: &kinds,
        now,
        ages: if known { Ages::Skip } else { Ages::Enforce },
    };
    let material =
        Material { release: &candidate.envelope, receipts: &receipts, content: &rendered.bytes };
    let admitted = match verify::release(&material, &render.name, &application.asked, &place) {
        Ok(admitted) => admitted,
        Err(error) => return Decision::Waiting(Waiting::unverified(&error)),
    };
    if let Some(waiting) = no_receipt_required(application, &admitted, reported) {
        return Decision::Waiting(waiting);
    }
    let plan = plan(application, &admitted, &material);
    if let Some(object) = manifest::needs_manifests_2(&objects)
        && !reported.features.contains(FEATURE_MANIFESTS_2)
    {
        let message = format!(
            "{object} has annotations, finalizers or a name that the spoke of cluster {} does not accept yet; upgrade the spoke",
            destination.cluster
        );
        return Decision::Waiting(Waiting::refused(Reason::SpokeTooOld, message));
    }
    if running(situation.head)
        .is_some_and(|p| p.plan == Digest::of(&attest_common::documents::plan::to_bytes(&plan)))
    {
        return Decision::Stands { names_clusters: admitted.release.names_clusters() };
    }
    if !application.automated && !situation.asked_for {
        let message =
            format!("release {counter} is ready; `attest gitops app sync {}`", application.name);
        return Decision::Waiting(Waiting::for_sync(message));
    }
    let mut blobs = vec![candidate.envelope.clone()];
    blobs.extend(signed.into_iter().cloned());
    blobs.push(rendered.bytes.clone());
    Decision::New(Box::new(Proposal { plan, blobs, admitted }))
}

/// Refuses an application that requires receipts without naming any where the cluster's policy names none either.
fn no_receipt_required(
    application: &Application,
    admitted: &Admitted,
    reported: &ReportedPolicy,
) -> Option<Waiting> {
    let is_named = !application.asked.required_attestations.is_empty()
        || !admitted.effective_policy.required.is_empty();
    if !application.receipts_required || is_named {
        return None;
    }
    let message = format!(
        "receiptVerification.required is true, but neither the application nor the trust policy of cluster {} \
         names an attestation; set receiptVerification.requiredAttestations",
        reported.policy.cluster_name
    );
    Some(Waiting::contradiction(Reason::NoReceiptRequired, message))
}

fn signed_blob(envelope: &[u8]) -> SignedBlob {
    SignedBlob {
        id: envelope::peek(envelope, STATEMENT_TYPE).map_or_else(
            || Digest::of(envelope),
            |(payload, _)| envelope::id_of(STATEMENT_TYPE, &payload),
        ),
        sha256: Digest::of(envelope),
        size: envelope.len() as u64,
    }
}

fn plan(application: &Application, admitted: &Admitted, material: &Material<'_>) -> Plan {
    Plan {
        v: 1,
        application: application.name.clone(),
        release: signed_blob(material.release),
        render: admitted.render.name.clone(),
        content: ContentBlob {
            sha256: admitted.content,
            size: material.content.len() as u64,
            objects: admitted.render.objects,
            media_type: RENDERING_TYPE.to_owned(),
        },
        receipts: material.receipts.iter().map(|receipt| signed_blob(receipt)).collect(),
        namespace: admitted.render.namespace.clone(),
        policy: application.asked.clone(),
        sync: application.sync.clone(),
        strategy: Strategy::default(),
        hooks: Vec::new(),
    }
}

/// Returns whether a directive that stands is issued again with a new sequence: it expired before its spoke admitted it,
/// or it is behind what the spoke has seen, because this hub came back from a backup.
pub(crate) fn must_be_reissued(situation: &Situation<'_>) -> bool {
    let (Some(head), Some(position)) = (situation.head, situation.position) else { return false };
    let is_expired = situation.refused_as_expired && situation.now >= head.expires_at;
    is_expired || needs_reissue(head, position, situation.now)
}

#[cfg(test)]
pub(super) mod tests;
