//! The gate. The only code that can make a [`Verified`] value.
//!
//! CI (`--verify`), hub and spoke call the same functions; none trusts another's answer. A function
//! that needs checked input takes `Verified<T>`, so forgetting to check does not compile. Nothing is
//! applied here and no state is kept: the caller brings records, policy and the time.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

use serde::{Deserialize, Serialize};

use crate::basics::envelope::{
    self, DIRECTIVE_TYPE, EnvelopeError, Opened, PLAN_TYPE, STATEMENT_TYPE, SYNC_TYPE, Unopened,
};
use crate::basics::ids::{ClusterId, Digest, Name, Timestamp};
use crate::basics::json::{self, JsonError};
use crate::basics::keys::{KeyId, PublicKey};
use crate::basics::terms::{Mode, Role};
use crate::documents::manifest::{self, ManifestError, Object};
use crate::documents::plan::{
    AskedPolicy, DIRECTIVE_LIFETIME_MAX_MS, Directive, HEADS_MAX, Operation, Plan, RECEIPTS_MAX,
    SYNC_LIFETIME_MAX_MS, SignedBlob, Sync,
};
use crate::documents::receipt::{
    self, CLOCK_SKEW_MAX_MS, ReceiptError, STANDARD_GRACE_MS, Subjected,
};
use crate::documents::release::{
    self, NamespaceRule, RENDERING_TYPE, Release, ReleaseError, Render,
};
use crate::documents::statement::{Statement, StatementError};
use crate::objects::kinds::Kinds;
use crate::objects::placement::{self, PlacementError};
use crate::record::{self, Order, RecordError, Records};
use crate::trust::policy::{Local, Policy, PolicyError};

/// A counter at or above this is read as seconds since 1970; below, it is a plain number.
pub const UNIX_SECONDS_COUNTER_MIN: u64 = 1_000_000_000;
/// How far ahead of the clock a counter of seconds may be.
pub const COUNTER_AHEAD_MAX_S: u64 = 24 * 60 * 60;

/// Something this module has checked. Cannot be made anywhere else.
///
/// ```
/// use attest_common::verify::Verified;
/// let _reads: fn(Verified<u8>) -> u8 = Verified::into_inner;
/// ```
///
/// ```compile_fail
/// use attest_common::verify::Verified;
/// let _makes: fn(u8) -> Verified<u8> = Verified;
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Verified<T>(T);

impl<T> Verified<T> {
    /// Gives up the proof and keeps the value.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// One finished check, for the decision record and for `attest verify`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// A stable word: what was checked.
    pub check: String,
    pub detail: String,
}

fn check(name: &str, detail: impl Into<String>) -> Check {
    Check { check: name.to_owned(), detail: detail.into() }
}

/// Whether times decide. Ages are judged when a release is first admitted at a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ages {
    Judge,
    /// The release already runs here: it is being kept, not admitted.
    Skip,
}

/// The cluster for which a release is judged.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub policy: &'a Policy,
    pub application: &'a Name,
    pub namespace: &'a Name,
    /// Kinds the cluster serves, as far as the caller knows.
    pub kinds: &'a Kinds,
    pub now: Timestamp,
    pub ages: Ages,
}

/// Bytes that somebody brought.
#[derive(Clone, Copy, Debug)]
pub struct Material<'a> {
    pub release: &'a [u8],
    pub receipts: &'a [&'a [u8]],
    pub content: &'a [u8],
}

/// A release that may run at a place, with the objects as they would be applied there.
#[derive(Clone, Debug, PartialEq)]
pub struct Admitted {
    pub id: Digest,
    pub release: Release,
    pub render: Render,
    pub content: Digest,
    pub objects: Vec<Object>,
    pub local: Local,
    pub mode: Mode,
    /// The keys that signed the release statement, as the policy names them.
    pub signers: BTreeMap<KeyId, String>,
    pub checks: Vec<Check>,
    pub warnings: Vec<String>,
}

/// A signed release statement, opened and read: what can be said before choosing a rendering.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenedRelease {
    pub id: Digest,
    pub statement: Statement,
    pub release: Release,
    pub signers: BTreeSet<KeyId>,
}

/// Opens a release statement with the keys given. Used to find candidates; admission is [`fn@release`].
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

/// The render of a release that is for a cluster and may go to a namespace, if there is one.
///
/// When several renders fit the cluster they must each fix a different namespace; otherwise the
/// choice would be the hub's (`RenderAmbiguous`).
pub fn fitting_render<'a>(
    release: &'a Release,
    environment: &Name,
    cluster_name: &Name,
    namespace: &Name,
) -> Result<Option<&'a Render>, VerifyError> {
    let fits = |r: &&Render| r.target.fits(environment.as_str(), cluster_name.as_str());
    let fitting: Vec<&Render> = release.renders.iter().filter(fits).collect();
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

/// What the local policy says by name alone, before anything signed by CI is needed.
pub fn allowed(
    policy: &Policy,
    application: &Name,
    namespace: &Name,
    asked: &AskedPolicy,
) -> Result<(), VerifyError> {
    let floor = policy.names(application, namespace).map_err(VerifyError::Policy)?;
    if asked.mode < floor {
        return Err(VerifyError::PolicyFloor { asked: asked.mode, floor });
    }
    Ok(())
}

/// Judges a release, its receipts and a rendering for one place. The heart of CI, hub and spoke.
///
/// `render` names the rendering that is claimed to be right; `asked` is what the application's
/// owner asks, which may only tighten the place's policy.
pub fn release(
    material: &Material<'_>,
    render: &str,
    asked: &AskedPolicy,
    place: &Place<'_>,
) -> Result<Verified<Admitted>, VerifyError> {
    allowed(place.policy, place.application, place.namespace, asked)?;
    let targeted = targeted(material.release, render, asked, place)?;
    // What is no envelope of a statement proves nothing and is passed over.
    let receipts = material.receipts.iter().take(RECEIPTS_MAX);
    let receipts = receipts.filter_map(|bytes| Unopened::read(bytes, STATEMENT_TYPE).ok());
    let delivered = Delivered {
        receipts: receipts.map(|read| (read.id(), read)).collect(),
        bytes: material.content,
        content: Digest::of(material.content),
        named: &[],
    };
    judged(targeted, delivered, asked, place)
}

/// A release whose signature, source and target are good: what is compared with the records next.
struct Targeted {
    opened: OpenedRelease,
    local: Local,
    mode: Mode,
    render: Render,
    signers: BTreeMap<KeyId, String>,
    checks: Vec<Check>,
}

fn targeted(
    release: &[u8],
    render: &str,
    asked: &AskedPolicy,
    place: &Place<'_>,
) -> Result<Targeted, VerifyError> {
    let Place { policy, application, namespace, .. } = *place;
    let mut checks = Vec::new();
    let keys = candidate_keys(policy, asked)?;
    let opened = open_release(release, &keys)?.into_inner();
    checks.push(check("ReleaseSignature", key_list(&opened.signers)));
    let released = &opened.release;
    if released.application != *application {
        return Err(VerifyError::ApplicationMismatch {
            asked: application.clone(),
            signed: released.application.clone(),
        });
    }
    let local =
        policy.local(application, &released.source.repo, namespace).map_err(VerifyError::Policy)?;
    let mode = asked.mode.max(local.minimum_mode);
    if asked.mode < local.minimum_mode {
        return Err(VerifyError::PolicyFloor { asked: asked.mode, floor: local.minimum_mode });
    }
    let releasers = local.keys_for(Role::Releaser, asked.trusted_keys.as_ref());
    let signers: BTreeMap<KeyId, String> = opened
        .signers
        .iter()
        .filter(|id| releasers.contains_key(id))
        .map(|id| (*id, local.key_name(id).unwrap_or_default().to_owned()))
        .collect();
    if signers.is_empty() {
        return Err(VerifyError::UntrustedKey { signers: key_list(&opened.signers) });
    }
    checks.push(check(
        "Source",
        format!("{} at {}", released.source.repo, released.source.git_commit),
    ));
    let render = chosen_render(released, render, policy, namespace)?.clone();
    checks.push(check("Target", format!("render {} for {}", render.name, policy.environment)));
    Ok(Targeted { opened, local, mode, render, signers, checks })
}

/// What was brought for a release, each blob read and hashed once.
struct Delivered<'a> {
    receipts: BTreeMap<Digest, Unopened>,
    bytes: &'a [u8],
    content: Digest,
    /// The receipts that a plan names.
    named: &'a [SignedBlob],
}

/// The rest of the way: time, content, evidence, objects.
fn judged(
    targeted: Targeted,
    delivered: Delivered<'_>,
    asked: &AskedPolicy,
    place: &Place<'_>,
) -> Result<Verified<Admitted>, VerifyError> {
    let Place { namespace, kinds, now, ages, .. } = *place;
    let Targeted { opened, local, mode, render, signers, mut checks } = targeted;
    let Delivered { receipts, bytes, content, named } = delivered;
    let mut warnings = Vec::new();
    if ages == Ages::Judge {
        warnings.extend(judge_times(&opened.release, mode, now)?);
        checks.push(check("ReleaseTime", format!("valid until {}", opened.release.not_after)));
    }
    check_content(bytes, content, &opened.statement, &render)?;
    checks.push(check("ContentDigest", content.to_string()));
    let released = &opened.release;
    // Nothing is stored but what the release rests on.
    let pinned = |blob: &SignedBlob| released.evidence.iter().any(|e| e.receipt == blob.id);
    if !named.iter().all(pinned) {
        return Err(VerifyError::BlobDigest { what: "receipt" });
    }
    let about = Judged {
        release: released,
        local: &local,
        render: &render,
        content,
        asked,
        mode,
        now,
        ages,
    };
    warnings.extend(check_evidence(receipts, &about, &mut checks)?);
    let objects = manifest::read(bytes).map_err(VerifyError::Manifest)?;
    if objects.len() as u64 != render.objects {
        return Err(VerifyError::ObjectCount { got: objects.len(), signed: render.objects });
    }
    let ready = placement::place_objects(objects, namespace, &render, &local, mode, kinds)
        .map_err(VerifyError::Placement)?;
    checks.push(check("Objects", format!("{} objects for {namespace}", ready.objects.len())));
    warnings.extend(ready.warnings);
    let OpenedRelease { id, release, .. } = opened;
    Ok(Verified(Admitted {
        id,
        render,
        release,
        content,
        objects: ready.objects,
        local,
        mode,
        signers,
        checks,
        warnings,
    }))
}

/// Every CI key of the environment that may release, narrowed by what the plan asks.
fn candidate_keys(
    policy: &Policy,
    asked: &AskedPolicy,
) -> Result<BTreeMap<KeyId, PublicKey>, VerifyError> {
    let releasers = policy.ci_keys().iter().filter(|key| key.roles.contains(&Role::Releaser));
    let keys: BTreeMap<KeyId, PublicKey> = releasers
        .filter(|key| asked.trusted_keys.as_ref().is_none_or(|ids| ids.contains(&key.public.id())))
        .map(|key| (key.public.id(), key.public.clone()))
        .collect();
    if keys.is_empty() {
        let signers = asked.trusted_keys.as_ref().map_or_else(|| "none".to_owned(), key_list);
        return Err(VerifyError::UntrustedKey { signers });
    }
    Ok(keys)
}

fn chosen_render<'a>(
    released: &'a Release,
    name: &str,
    policy: &Policy,
    namespace: &Name,
) -> Result<&'a Render, VerifyError> {
    let short = || name.chars().take(80).collect::<String>();
    let claimed = released.render(name).ok_or_else(|| VerifyError::RenderUnknown(short()))?;
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
        Err(VerifyError::RenderMismatch { render: short(), namespace: namespace.clone() })
    }
}

fn judge_times(
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
        return Err(VerifyError::MediaType(render.media_type.chars().take(80).collect()));
    }
    Ok(())
}

struct Judged<'a> {
    release: &'a Release,
    local: &'a Local,
    render: &'a Render,
    content: Digest,
    asked: &'a AskedPolicy,
    mode: Mode,
    now: Timestamp,
    ages: Ages,
}

/// Each required attestation must be satisfied by a receipt of its own, the one the release pins.
fn check_evidence(
    mut receipts: BTreeMap<Digest, Unopened>,
    about: &Judged<'_>,
    checks: &mut Vec<Check>,
) -> Result<Vec<String>, VerifyError> {
    let required: BTreeSet<&str> = about
        .local
        .required
        .iter()
        .chain(&about.asked.required_attestations)
        .map(String::as_str)
        .collect();
    let mut used = BTreeSet::new();
    let mut warnings = Vec::new();
    for name in required {
        let attestation = || name.chars().take(80).collect::<String>();
        let rule = receipt::rule(name)
            .ok_or_else(|| VerifyError::Receipt(ReceiptError::AttestationUnknown(attestation())))?;
        let mut pinned = about.release.evidence.iter().filter(|e| e.attestation == name);
        let (Some(evidence), None) = (pinned.next(), pinned.next()) else {
            return Err(VerifyError::AttestationMissing(attestation()));
        };
        if !used.insert(evidence.receipt) {
            return Err(VerifyError::AttestationNotDistinct(attestation()));
        }
        let keys = about.local.keys_for(rule.role, about.asked.trusted_keys.as_ref());
        let unopened = receipts.remove(&evidence.receipt);
        let unopened = unopened.ok_or_else(|| VerifyError::ReceiptMissing(attestation()))?;
        let opened = unopened
            .open(&keys)
            .map_err(|source| VerifyError::Envelope { what: "receipt", source })?;
        let statement = Statement::read(opened.payload()).map_err(VerifyError::Statement)?;
        let builder_ids = about.local.builder_ids(opened.signers());
        let subjected = Subjected {
            release: about.release,
            render: about.render,
            content: about.content,
            builder_ids: &builder_ids,
            mode: about.mode,
            now: about.now,
            judge_ages: about.ages == Ages::Judge,
        };
        warnings
            .extend(receipt::check(name, &statement, &subjected).map_err(VerifyError::Receipt)?);
        checks.push(check("Receipt", format!("{name} by {}", key_list(opened.signers()))));
    }
    Ok(warnings)
}

/// A directive whose signature, audience, time and order are good.
#[derive(Clone, Debug, PartialEq)]
pub struct Ordered {
    pub directive: Directive,
    /// SHA-256 of the signed payload.
    pub digest: Digest,
    pub hub_key: KeyId,
    pub order: Order,
}

/// The spoke for which a directive is judged.
#[derive(Clone, Copy, Debug)]
pub struct Spoke<'a> {
    pub policy: &'a Policy,
    pub cluster: &'a ClusterId,
    pub records: &'a Records,
    pub now: Timestamp,
    /// `Skip` when loading what was already admitted.
    pub ages: Ages,
}

/// Judges a directive: signature of the pinned hub key, audience, lifetime, sequence.
pub fn directive(envelope: &[u8], spoke: &Spoke<'_>) -> Result<Verified<Ordered>, VerifyError> {
    let opened = envelope::open(envelope, DIRECTIVE_TYPE, &spoke.policy.hub_keys)
        .map_err(|source| VerifyError::Envelope { what: "directive", source })?;
    let directive: Directive = json::document(opened.payload())
        .map_err(|source| VerifyError::Document { what: "directive", source })?;
    if directive.v != 1 {
        return Err(VerifyError::Version { what: "directive", v: directive.v });
    }
    let needs_plan = directive.operation != Operation::Remove;
    if needs_plan != directive.plan.is_some() || directive.cap_percent > 100 {
        return Err(VerifyError::DirectiveIncomplete);
    }
    if directive.cluster != *spoke.cluster {
        return Err(VerifyError::AudienceMismatch { audience: directive.cluster });
    }
    if spoke.ages == Ages::Judge {
        record::clock(spoke.records, spoke.now).map_err(VerifyError::Record)?;
        let span = (directive.issued_at, directive.expires_at);
        check_lifetime("directive", span, DIRECTIVE_LIFETIME_MAX_MS, spoke.now)?;
    }
    let hub_key = first_key(&opened)?;
    let key = (directive.application.clone(), directive.namespace.clone());
    let digest = Digest::of(opened.payload());
    let order = match spoke.ages {
        Ages::Judge => record::order(&directive, digest, hub_key, spoke.records.get(&key))
            .map_err(VerifyError::Record)?,
        // What was admitted has been in order; the record may have gone on since.
        Ages::Skip => Order::Again,
    };
    match directive.operation {
        Operation::Progress | Operation::Remove => {}
        Operation::Supersede | Operation::Rollback | Operation::Finalize | Operation::Close => {
            return Err(VerifyError::OperationNotSupported(directive.operation));
        }
    }
    Ok(Verified(Ordered { directive, digest, hub_key, order }))
}

/// Judges a plan: signature of the pinned hub key, and that it is the one a directive names.
pub fn plan(
    envelope: &[u8],
    digest: Digest,
    policy: &Policy,
) -> Result<Verified<Plan>, VerifyError> {
    let opened = envelope::open(envelope, PLAN_TYPE, &policy.hub_keys)
        .map_err(|source| VerifyError::Envelope { what: "plan", source })?;
    if Digest::of(opened.payload()) != digest {
        return Err(VerifyError::PlanDigest);
    }
    let plan: Plan = json::document(opened.payload())
        .map_err(|source| VerifyError::Document { what: "plan", source })?;
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
    Ok(Verified(plan))
}

/// A plan names each blob once and none larger than its kind may be: a spoke stores what a plan names.
fn check_blobs(plan: &Plan) -> Result<(), VerifyError> {
    let envelopes = || plan.receipts.iter().chain([&plan.release]);
    let digests: BTreeSet<Digest> =
        envelopes().map(|blob| blob.sha256).chain([plan.content.sha256]).collect();
    if digests.len() != plan.receipts.len() + 2 {
        return Err(VerifyError::BlobTwice);
    }
    if envelopes().any(|blob| blob.size > envelope::ENVELOPE_BYTES_MAX as u64) {
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

/// Everything a spoke needs to act: the only thing its writer to the API server takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Admission {
    pub ordered: Ordered,
    pub plan: Plan,
    pub admitted: Admitted,
}

/// Judges what a directive orders: plan, release, receipts, content, binding and floor.
pub fn admission(
    ordered: &Verified<Ordered>,
    plan: &Verified<Plan>,
    material: &Material<'_>,
    spoke: &Spoke<'_>,
    kinds: &Kinds,
) -> Result<Verified<Admission>, VerifyError> {
    let Directive { application, namespace, .. } = &ordered.directive;
    if ordered.directive.plan.is_none() || plan.application != *application {
        return Err(VerifyError::ApplicationMismatch {
            asked: application.clone(),
            signed: plan.application.clone(),
        });
    }
    allowed(spoke.policy, application, namespace, &plan.policy)?;
    let delivered = delivered(plan, material)?;
    let destination = (application, namespace);
    let mine = spoke.records.get(&(application.clone(), namespace.clone()));
    // A release that this destination already admitted is kept, not admitted: ages no longer count.
    let running = mine.filter(|record| !record.removed);
    let known =
        running.and_then(|r| r.floor.as_ref()).is_some_and(|f| f.release == plan.release.id);
    let ages = if known { Ages::Skip } else { spoke.ages };
    let place = Place { policy: spoke.policy, application, namespace, kinds, now: spoke.now, ages };
    let targeted = targeted(material.release, &plan.render, &plan.policy, &place)?;
    let Release { source, counter, .. } = &targeted.opened.release;
    if targeted.opened.id != plan.release.id {
        return Err(VerifyError::BlobDigest { what: "release" });
    }
    record::admit_release(spoke.records, destination, &source.repo, *counter, targeted.opened.id)
        .map_err(VerifyError::Record)?;
    if let NamespaceRule::DefaultOnly { .. } = targeted.render.namespace
        && running.is_none_or(|r| r.binding.is_none())
    {
        let others = record::other_namespaces(spoke.records, destination, &source.repo);
        let max = targeted.local.namespaces_max;
        if others >= max as usize {
            return Err(VerifyError::TooManyNamespaces { max });
        }
    }
    let admitted = judged(targeted, delivered, &plan.policy, &place)?;
    Ok(Verified(Admission {
        ordered: ordered.0.clone(),
        plan: plan.0.clone(),
        admitted: admitted.into_inner(),
    }))
}

/// Takes in the blobs of a plan: each must be the one that the plan names, and be named at all.
fn delivered<'a>(plan: &'a Plan, material: &Material<'a>) -> Result<Delivered<'a>, VerifyError> {
    if Digest::of(material.release) != plan.release.sha256 {
        return Err(VerifyError::BlobDigest { what: "release" });
    }
    let content = Digest::of(material.content);
    if content != plan.content.sha256 {
        return Err(VerifyError::BlobDigest { what: "content" });
    }
    let named: BTreeMap<Digest, Digest> = plan.receipts.iter().map(|r| (r.sha256, r.id)).collect();
    let mut receipts = BTreeMap::new();
    for bytes in material.receipts {
        let id = named.get(&Digest::of(bytes));
        let read = Unopened::read(bytes, STATEMENT_TYPE).ok();
        let read = read
            .filter(|read| Some(&read.id()) == id)
            .ok_or(VerifyError::BlobDigest { what: "receipt" })?;
        receipts.insert(read.id(), read);
    }
    if receipts.len() != named.len() {
        return Err(VerifyError::BlobDigest { what: "receipt" });
    }
    Ok(Delivered { receipts, bytes: material.content, content, named: &plan.receipts })
}

/// A destination that may be taken away.
#[derive(Clone, Debug, PartialEq)]
pub struct Removal {
    pub ordered: Ordered,
    pub accounts_namespace: String,
}

/// Judges a `Remove` directive against the local policy.
pub fn removal(
    ordered: &Verified<Ordered>,
    spoke: &Spoke<'_>,
) -> Result<Verified<Removal>, VerifyError> {
    let Directive { application, namespace, .. } = &ordered.directive;
    let mine = spoke.records.get(&(application.clone(), namespace.clone()));
    let Some(repo) = mine.and_then(|r| r.binding.as_deref()) else {
        return Err(VerifyError::NothingToRemove);
    };
    let local = spoke.policy.local(application, repo, namespace).map_err(VerifyError::Policy)?;
    if !local.remove_allowed {
        return Err(VerifyError::RemoveNotAllowed);
    }
    Ok(Verified(Removal {
        ordered: ordered.0.clone(),
        accounts_namespace: local.accounts_namespace,
    }))
}

/// Judges a heartbeat: signature, audience, the nonce this spoke sent, order and time.
pub fn sync(
    envelope: &[u8],
    spoke: &Spoke<'_>,
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

fn check_lifetime(
    what: &'static str,
    (issued_at, expires_at): (Timestamp, Timestamp),
    lifetime_max_ms: i64,
    now: Timestamp,
) -> Result<(), VerifyError> {
    let (issued_ms, expires_ms) = (issued_at.as_millisecond(), expires_at.as_millisecond());
    let now_ms = now.as_millisecond();
    if expires_ms - issued_ms > lifetime_max_ms {
        return Err(VerifyError::Lifetime { what });
    }
    if issued_ms > now_ms + CLOCK_SKEW_MAX_MS {
        return Err(VerifyError::FromFuture { what, issued_at });
    }
    if now_ms > expires_ms + CLOCK_SKEW_MAX_MS {
        return Err(VerifyError::Expired { what, expires_at });
    }
    Ok(())
}

fn first_key(opened: &Opened) -> Result<KeyId, VerifyError> {
    opened.signers().first().copied().ok_or(VerifyError::DirectiveIncomplete)
}

fn key_list(ids: &BTreeSet<KeyId>) -> String {
    let shown: Vec<String> = ids.iter().map(KeyId::display_form).collect();
    if shown.is_empty() { "no key".to_owned() } else { shown.join(", ") }
}

/// Why something was not verified.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    #[error("the {what} cannot be opened")]
    Envelope {
        what: &'static str,
        #[source]
        source: EnvelopeError,
    },
    #[error("the {what} is not acceptable")]
    Document {
        what: &'static str,
        #[source]
        source: JsonError,
    },
    #[error("the {what} has version {v}; this program knows version 1")]
    Version { what: &'static str, v: u32 },
    #[error("the release is not acceptable")]
    Release(#[source] ReleaseError),
    #[error("a receipt's statement is not acceptable")]
    Statement(#[source] StatementError),
    #[error(transparent)]
    Receipt(ReceiptError),
    #[error(transparent)]
    Policy(PolicyError),
    #[error(transparent)]
    Record(RecordError),
    #[error("the rendering is not acceptable: {0}")]
    Manifest(ManifestError),
    #[error(transparent)]
    Placement(PlacementError),
    #[error("the release is for application `{signed}`, not `{asked}`")]
    ApplicationMismatch { asked: Name, signed: Name },
    #[error("mode {asked} is asked for, below this cluster's {floor}")]
    PolicyFloor { asked: Mode, floor: Mode },
    #[error("no key that this cluster trusts here has signed (signed or asked for: {signers})")]
    UntrustedKey { signers: String },
    #[error("the release has no render `{0}`")]
    RenderUnknown(String),
    #[error("the release has no rendering for cluster `{cluster}` of environment `{environment}`")]
    TargetMismatch { environment: Name, cluster: Name },
    #[error("renders {} fit this cluster alike; give each a fixed namespace of its own", .renders.join(", "))]
    RenderAmbiguous { renders: Vec<String> },
    #[error("render `{render}` is not the one for namespace `{namespace}` here")]
    RenderMismatch { render: String, namespace: Name },
    #[error("the release expired {not_after}; sign again with `attest release`")]
    ReleaseExpired { not_after: Timestamp },
    #[error("release counter {counter} is more than a day ahead of the clock")]
    CounterAhead { counter: u64 },
    #[error("the rendering {got} is not the one that CI signed ({})", signed.map_or_else(|| "none".to_owned(), |d| d.to_string()))]
    ContentDigest { got: Digest, signed: Option<Digest> },
    #[error("the rendering has media type `{0}`, which is not known")]
    MediaType(String),
    #[error("the rendering holds {got} objects; CI signed {signed}")]
    ObjectCount { got: usize, signed: u64 },
    #[error("the release names no single `{0}` receipt, which is required")]
    AttestationMissing(String),
    #[error("the receipt for `{0}` already serves another attestation")]
    AttestationNotDistinct(String),
    #[error("the `{0}` receipt that the release names was not delivered")]
    ReceiptMissing(String),
    #[error("the {what} that was delivered is not the one the plan names")]
    BlobDigest { what: &'static str },
    #[error("the plan names one blob twice")]
    BlobTwice,
    #[error("the directive is for cluster {audience}")]
    AudienceMismatch { audience: ClusterId },
    #[error("the {what} would be valid for too long")]
    Lifetime { what: &'static str },
    #[error("the {what} was issued {issued_at}, in the future; check both clocks")]
    FromFuture { what: &'static str, issued_at: Timestamp },
    #[error("the {what} expired {expires_at}")]
    Expired { what: &'static str, expires_at: Timestamp },
    #[error("the directive lacks a plan, brings one it must not, or has a cap above 100")]
    DirectiveIncomplete,
    #[error("this spoke does not carry out {0:?}")]
    OperationNotSupported(Operation),
    #[error("the plan is not the one the directive names")]
    PlanDigest,
    #[error("the plan brings hooks, which neither the release nor the local policy allows")]
    HookNotAllowed,
    #[error("the application already uses as many namespaces as the policy allows ({max})")]
    TooManyNamespaces { max: u32 },
    #[error("the local trust policy does not let the hub remove this application")]
    RemoveNotAllowed,
    #[error("nothing of this application runs here")]
    NothingToRemove,
    #[error("the sync does not answer this connection's nonce or is older than one already seen")]
    SyncNonce,
    #[error("the document exceeds the limit of {max} {what}")]
    Limit { what: &'static str, max: usize },
}

impl VerifyError {
    /// A stable word for conditions, metrics, logs and the CLI. Never reworded.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Envelope { source, .. } => source.reason(),
            Self::Document { .. } | Self::Version { .. } => "DocumentInvalid",
            Self::Release(error) => error.reason(),
            Self::Statement(error) => error.reason(),
            Self::Receipt(error) => error.reason(),
            Self::Policy(error) => error.reason(),
            Self::Record(error) => error.reason(),
            Self::Manifest(error) => error.reason(),
            Self::Placement(error) => error.reason(),
            Self::ApplicationMismatch { .. } => "ApplicationMismatch",
            Self::PolicyFloor { .. } => "PolicyFloor",
            Self::UntrustedKey { .. } => "UntrustedKey",
            Self::RenderUnknown(_) => "RenderUnknown",
            Self::TargetMismatch { .. } => "TargetMismatch",
            Self::RenderAmbiguous { .. } => "RenderAmbiguous",
            Self::RenderMismatch { .. } => "RenderMismatch",
            Self::ReleaseExpired { .. } => "ReleaseExpired",
            Self::CounterAhead { .. } => "CounterAhead",
            Self::ContentDigest { .. } => "ContentDigest",
            Self::MediaType(_) => "ContentFormat",
            Self::ObjectCount { .. } => "ObjectCount",
            Self::AttestationMissing(_) => "AttestationMissing",
            Self::AttestationNotDistinct(_) => "AttestationNotDistinct",
            Self::ReceiptMissing(_) => "ReceiptMissing",
            Self::BlobDigest { .. } | Self::BlobTwice => "BlobDigest",
            Self::AudienceMismatch { .. } => "AudienceMismatch",
            Self::Lifetime { .. } => "LifetimeTooLong",
            Self::FromFuture { .. } => "IssuedInFuture",
            Self::Expired { .. } => "Expired",
            Self::DirectiveIncomplete => "DocumentInvalid",
            Self::OperationNotSupported(_) => "OperationNotSupported",
            Self::PlanDigest => "PlanDigest",
            Self::HookNotAllowed => "HookNotAllowed",
            Self::TooManyNamespaces { .. } => "TooManyNamespaces",
            Self::RemoveNotAllowed => "RemoveNotAllowed",
            Self::NothingToRemove => "NothingToRemove",
            Self::SyncNonce => "SyncNonce",
            Self::Limit { .. } => "Limit",
        }
    }
}

#[cfg(test)]
mod tests;
