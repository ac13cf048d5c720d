//! Decision on one push, in the fixed order of the protocol. Pure: records, policy, blobs and time are arguments.
//!
//! `attest_common::verify` judges signatures, rules and evidence. This file determines the order, the blobs to
//! request from the hub, and the new record.

use std::collections::{BTreeMap, BTreeSet};

use attest_common::basics::envelope::{self, DIRECTIVE_TYPE};
use attest_common::basics::ids::{ClusterId, Digest, Name, Timestamp};
use attest_common::basics::json;
use attest_common::basics::keys::KeyId;
use attest_common::basics::reason::Reason;
use attest_common::documents::manifest::ObjectKey;
use attest_common::documents::plan::{Directive, Operation, Plan};
use attest_common::objects::kinds::Kinds;
use attest_common::record::rollback::RollbackPoint;
use attest_common::record::rollout::{self, OrderedPlan};
use attest_common::record::{
    DestinationRecords, DirectiveOrder, Floor, Held, INVENTORY_MAX, Owned, Position, Record,
};
use attest_common::trust::policy::Policy;
use attest_common::verify::{
    self, Admission, Ages, Material, ObjectSet, Ordered, Removal, SpokeContext, Verified,
    VerifyError,
};
use bytes::Bytes;

use crate::destination::handover::Offers;
use crate::ledger::records::{DESTINATIONS_MAX, Key, Lost};
use crate::trust::policy::TrustError;

/// Largest directive envelope, in bytes; a directive holds names and numbers only.
pub const DIRECTIVE_BYTES_MAX: usize = 16 * 1024;

/// State against which a push is judged.
#[derive(Clone, Copy, Debug)]
pub struct GateContext<'a> {
    pub policy: &'a Policy,
    pub cluster: &'a ClusterId,
    pub records: &'a DestinationRecords,
    pub kinds: &'a Kinds,
    pub now: Timestamp,
    /// `Skip` when a recorded plan is loaded.
    pub ages: Ages,
    /// Missing records, if any.
    pub lost: Option<Lost>,
    pub repeated: RepeatedDirective,
    /// Objects that other destinations hand over.
    pub offers: &'a Offers,
}

/// Treatment of the directive that is recorded already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepeatedDirective {
    /// Nothing is to be decided.
    Report,
    /// Its plan was reverted: it is judged again at the same sequence.
    Judge,
}

/// Decision on a push.
#[derive(Debug)]
pub enum PushDecision {
    /// The plan is admitted: record it, then carry it out.
    Admit(Box<AdmittedPush>),
    /// The removal of the application is admitted.
    Remove(Box<Verified<Removal>>),
    /// The directive is the recorded one.
    Repeated(Key),
    /// Valid so far, but these blobs are missing.
    NeedBlobs(Key, Vec<Digest>),
}

/// An admission, its objects, and the digests of its documents.
#[derive(Debug)]
pub struct AdmittedPush {
    pub admission: Verified<Admission>,
    /// Objects to write at the destination.
    pub objects: Verified<ObjectSet>,
    pub held: Held,
    /// Objects that another destination hands over, with their UIDs.
    pub taken: BTreeMap<ObjectKey, String>,
}

/// Judges a push. The first violation determines the error.
///
/// # Errors
/// [`GateError`] with a stable reason; only the list of refusals may change then.
pub fn judge(
    directive: &[u8],
    plan: Option<Digest>,
    blobs: impl Fn(&Digest) -> Option<Bytes>,
    view: &GateContext<'_>,
) -> Result<PushDecision, GateError> {
    check_size(directive)?;
    let GateContext { policy, cluster, records, kinds, now, ages, lost, repeated, .. } = *view;
    let spoke = SpokeContext { policy, cluster, records, now, ages };
    let ordered = verify::directive(directive, &spoke).map_err(GateError::Verify)?;
    let key = (ordered.directive.application.clone(), ordered.directive.namespace.clone());
    if let (Some(lost), Ages::Enforce) = (lost, ages) {
        // A replay cannot be detected without the records.
        return Err(GateError::StateLost(lost));
    }
    let is_repeated = ordered.order == DirectiveOrder::Repeated && ages == Ages::Enforce;
    // Another hub key has signed the directive in force.
    let is_superseded = records.get(&key).is_some_and(|record| record.hub_key != ordered.hub_key);
    if is_repeated && (is_superseded || repeated == RepeatedDirective::Report) {
        return Ok(PushDecision::Repeated(key));
    }
    if !records.contains_key(&key) && records.len() >= DESTINATIONS_MAX {
        return Err(GateError::Limit { what: "destinations", max: DESTINATIONS_MAX });
    }
    if ordered.directive.operation == Operation::Remove {
        let removal = verify::removal(&ordered, &spoke).map_err(GateError::Verify)?;
        return Ok(PushDecision::Remove(Box::new(removal)));
    }
    let record = records.get(&key);
    let ordered_plan = match ages {
        // What the record holds runs, whatever its directive ordered at first.
        Ages::Skip => record
            .and_then(|record| record.held.as_ref())
            .map_or(OrderedPlan::Delivered, OrderedPlan::Recorded),
        Ages::Enforce => rollout::ordered_plan(&ordered.directive, ordered.hub_key, record)
            .map_err(|error| GateError::Verify(VerifyError::Record(error)))?,
    };
    if let OrderedPlan::Recorded(held) = ordered_plan {
        return judge_recorded(&ordered, held, blobs, view);
    }
    let (Some(envelope_digest), Some(plan_digest)) = (plan, ordered.directive.plan) else {
        return Err(GateError::Verify(VerifyError::DirectiveIncomplete));
    };
    let Some(plan_bytes) = blobs(&envelope_digest) else {
        return Ok(PushDecision::NeedBlobs(key, vec![envelope_digest]));
    };
    let plan = verify::plan(&plan_bytes, plan_digest, policy).map_err(GateError::Verify)?;
    // A name that the local policy forbids is refused before blobs are requested.
    verify::check_allowed(policy, &key.0, &key.1, &plan.policy).map_err(GateError::Verify)?;
    let missing = missing(&plan, &blobs);
    if !missing.is_empty() {
        return Ok(PushDecision::NeedBlobs(key, missing));
    }
    let delivered = Delivered::of(&plan, &blobs)?;
    let receipts: Vec<&[u8]> = delivered.receipts.iter().map(|bytes| bytes.as_ref()).collect();
    let material =
        Material { release: &delivered.release, receipts: &receipts, content: &delivered.content };
    let admission =
        verify::admission(&ordered, &plan, &material, &spoke, kinds).map_err(GateError::Verify)?;
    let taken = check_owners(&admission, view)?;
    let objects = verify::object_set(None, &admission);
    let held = Held {
        plan: envelope_digest,
        plan_digest,
        release: plan.release.sha256,
        receipts: plan.receipts.iter().map(|receipt| receipt.sha256).collect(),
        content: plan.content.sha256,
    };
    Ok(PushDecision::Admit(Box::new(AdmittedPush { admission, objects, held, taken })))
}

/// Judges a directive about a plan that the record names.
fn judge_recorded(
    ordered: &Verified<Ordered>,
    held: &Held,
    blobs: impl Fn(&Digest) -> Option<Bytes>,
    view: &GateContext<'_>,
) -> Result<PushDecision, GateError> {
    let GateContext { policy, cluster, records, kinds, now, ages, .. } = *view;
    let Directive { application, namespace, .. } = &ordered.directive;
    let missing: Vec<Digest> =
        held.blobs().filter(|digest| blobs(digest).is_none()).copied().collect();
    if !missing.is_empty() {
        return Ok(PushDecision::NeedBlobs((application.clone(), namespace.clone()), missing));
    }
    let [plan, release, content] =
        [held.plan, held.release, held.content].map(|digest| blobs(&digest).unwrap_or_default());
    let receipts: Vec<Bytes> = held.receipts.iter().filter_map(&blobs).collect();
    let receipts: Vec<&[u8]> = receipts.iter().map(|receipt| receipt.as_ref()).collect();
    let material = Material { release: &release, receipts: &receipts, content: &content };
    let spoke = SpokeContext { policy, cluster, records, now, ages };
    let admission = verify::kept(ordered, (held, &plan), &material, &spoke, kinds)
        .map_err(GateError::Verify)?;
    let taken = check_owners(&admission, view)?;
    let objects = verify::object_set(None, &admission);
    Ok(PushDecision::Admit(Box::new(AdmittedPush {
        admission,
        objects,
        held: held.clone(),
        taken,
    })))
}

/// Checks the size of a directive, before anything else.
///
/// # Errors
/// [`GateError::TooLarge`].
pub fn check_size(directive: &[u8]) -> Result<(), GateError> {
    if directive.len() > DIRECTIVE_BYTES_MAX {
        return Err(GateError::TooLarge { what: "a directive", max: DIRECTIVE_BYTES_MAX });
    }
    Ok(())
}

fn missing(plan: &Plan, blobs: impl Fn(&Digest) -> Option<Bytes>) -> Vec<Digest> {
    let named = [plan.release.sha256, plan.content.sha256];
    let all: BTreeSet<Digest> =
        named.into_iter().chain(plan.receipts.iter().map(|receipt| receipt.sha256)).collect();
    all.into_iter().filter(|digest| blobs(digest).is_none()).collect()
}

struct Delivered {
    release: Bytes,
    receipts: Vec<Bytes>,
    content: Bytes,
}

impl Delivered {
    /// Returns the blobs of a plan, each of the size that the plan states.
    fn of(plan: &Plan, blobs: impl Fn(&Digest) -> Option<Bytes>) -> Result<Self, GateError> {
        let take = |what: &'static str, digest: &Digest, size: u64| {
            let bytes = blobs(digest).filter(|bytes| bytes.len() as u64 == size);
            bytes.ok_or(GateError::Verify(VerifyError::BlobDigest { what }))
        };
        let receipts = plan.receipts.iter().map(|r| take("receipt", &r.sha256, r.size));
        Ok(Self {
            release: take("release", &plan.release.sha256, plan.release.size)?,
            receipts: receipts.collect::<Result<_, _>>()?,
            content: take("content", &plan.content.sha256, plan.content.size)?,
        })
    }
}

/// Checks that no object belongs to another destination (S16). Returns the objects that their owners hand over.
fn check_owners(
    admission: &Admission,
    view: &GateContext<'_>,
) -> Result<BTreeMap<ObjectKey, String>, GateError> {
    let Directive { application, namespace, .. } = &admission.ordered.directive;
    let own = (application.clone(), namespace.clone());
    let others = view.records.iter().filter(|(key, _)| **key != own);
    let owners: BTreeMap<&ObjectKey, (&Key, &Owned)> = others
        .flat_map(|(key, record)| {
            record.inventory.iter().map(move |owned| (&owned.key, (key, owned)))
        })
        .collect();
    let (mut taken, mut claims) = (BTreeMap::new(), Vec::new());
    let mut first = None;
    for object in admission.admitted.objects.iter() {
        let Some((owner, owned)) = owners.get(object.key()) else { continue };
        let offered = view.offers.get(object.key()).filter(|offer| offer.owner == **owner);
        if let Some(offer) = offered.filter(|offer| owned.uid.as_ref() == Some(&offer.uid)) {
            taken.insert(object.key().clone(), offer.uid.clone());
        } else if is_taken_before(view, &own, owned) {
            continue;
        } else if first.is_none() {
            first = Some((object.key(), *owner));
        }
        if owner.1 == *namespace {
            claims.push((object.key().clone(), (*owner).clone()));
        }
    }
    match first {
        None => Ok(taken),
        Some((object, owner)) => Err(GateError::OwnedByOther {
            object: object.clone(),
            application: owner.0.clone(),
            namespace: owner.1.clone(),
            claims,
        }),
    }
}

/// Returns whether a recorded plan has taken this object over, and its previous owner has not released it yet: both
/// records name the same object.
fn is_taken_before(view: &GateContext<'_>, own: &Key, owned: &Owned) -> bool {
    let record = view.records.get(own).filter(|_| view.ages == Ages::Skip);
    let mine = record.and_then(|record| record.inventory.iter().find(|o| o.key == owned.key));
    mine.is_some_and(|mine| mine.uid.is_some() && mine.uid == owned.uid)
}

/// Returns the record of an admitted directive, which must be durable before it is carried out.
///
/// # Errors
/// If the inventory would exceed its limit.
pub fn admitted_record(
    before: Option<(&Record, &[u8])>,
    (admission, held): (&Admission, &Held),
    taken: &BTreeMap<ObjectKey, String>,
    now: Timestamp,
) -> Result<Record, GateError> {
    let admitted = &admission.admitted;
    let former = before.map(|(record, _)| record);
    let same = former.filter(|record| record.held.as_ref() == Some(held));
    let floor = Floor { counter: admitted.release.counter, release: admitted.id };
    let known = former.and_then(|record| record.floor.clone());
    let inventory = former.map(|record| record.inventory.clone()).unwrap_or_default();
    let rendered = admitted.objects.iter().map(Owned::about_to_be_written);
    let mut inventory = about_to_write(inventory, rendered.collect());
    for owned in &mut inventory {
        if let Some(uid) = taken.get(&owned.key) {
            owned.uid = Some(uid.clone());
        }
    }
    if inventory.len() > INVENTORY_MAX {
        return Err(GateError::Limit { what: "objects in the inventory", max: INVENTORY_MAX });
    }
    Ok(Record {
        binding: Some(admitted.release.source.repo.clone()),
        floor: Some(known.filter(|known| known.counter >= floor.counter).unwrap_or(floor)),
        held: Some(held.clone()),
        last_good: former.and_then(|record| record.last_good.clone()),
        good: before.map(|(record, _)| record.good.clone()).unwrap_or_default(),
        inventory,
        removed: false,
        since: same.and_then(|record| record.since).or(Some(now)),
        rollback_point: RollbackPoint::before(before, held),
        rollout: rollout::rollout_after(
            &admission.ordered.directive,
            before.map(|(record, _)| record),
            held,
        ),
        ..ordered_record(&admission.ordered, former, now)
    })
}

/// Returns the inventory before `rendered` is written. An object is deleted by the version that wrote it last, so a
/// written object keeps its version until it is written again. One that was to be released stays so until then.
fn about_to_write(mut inventory: Vec<Owned>, rendered: Vec<Owned>) -> Vec<Owned> {
    let mut rendered: BTreeMap<ObjectKey, Owned> =
        rendered.into_iter().map(|owned| (owned.key.clone(), owned)).collect();
    for owned in &mut inventory {
        let Some(Owned { version, orphan, wave, .. }) = rendered.remove(&owned.key) else {
            continue;
        };
        let is_written = owned.uid.is_some();
        if !is_written {
            owned.version = version;
        }
        owned.orphan = orphan || (is_written && owned.orphan);
        owned.wave = wave;
    }
    inventory.extend(rendered.into_values());
    inventory
}

/// Returns the record of an admitted removal. Binding and floor stay as a tombstone.
pub fn removed_record(former: &Record, removal: &Removal, now: Timestamp) -> Record {
    Record {
        binding: former.binding.clone(),
        floor: former.floor.clone(),
        inventory: former.inventory.clone(),
        removed: true,
        ..ordered_record(&removal.ordered, Some(former), now)
    }
}

fn ordered_record(ordered: &Ordered, former: Option<&Record>, now: Timestamp) -> Record {
    let Directive { application, namespace, epoch, sequence, .. } = &ordered.directive;
    Record {
        v: 1,
        application: application.clone(),
        namespace: namespace.clone(),
        hub_key: ordered.hub_key,
        epoch: *epoch,
        sequence: *sequence,
        directive: ordered.digest,
        other_hub_keys: former
            .map(|record| record.others_than(ordered.hub_key))
            .unwrap_or_default(),
        binding: None,
        floor: None,
        held: None,
        last_good: None,
        good: Vec::new(),
        inventory: Vec::new(),
        removed: false,
        // Never earlier than before, so that a clock that was set back is detected.
        recorded_at: former.and_then(|record| record.recorded_at).max(Some(now)),
        since: None,
        rollback_point: None,
        rollout: None,
    }
}

/// Returns the destination and the place in the order of an unverified directive, to record a refusal under.
pub fn claimed(directive: &[u8]) -> Option<(Key, PushOrder)> {
    check_size(directive).ok()?;
    let (payload, hints) = envelope::peek(directive, DIRECTIVE_TYPE)?;
    let claimed: Directive = json::document(&payload).ok()?;
    let Directive { application, namespace, epoch, sequence, .. } = claimed;
    let hub_key = hints.iter().find_map(|hint| hint.parse().ok());
    Some(((application, namespace), PushOrder { hub_key, epoch, sequence }))
}

/// Place of a push in the order of its hub key. Pushes of different keys have no order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PushOrder {
    /// The key that the envelope names; absent if it names none.
    pub hub_key: Option<KeyId>,
    pub epoch: u64,
    pub sequence: u64,
}

impl PushOrder {
    /// Returns the place of the newest directive of the same hub key that a record admits.
    pub fn admitted_in(self, record: &Record) -> Option<Self> {
        record.position_of(self.hub_key?).map(Self::from)
    }
}

impl From<Position> for PushOrder {
    fn from(position: Position) -> Self {
        let Position { hub_key, epoch, sequence, .. } = position;
        Self { hub_key: Some(hub_key), epoch, sequence }
    }
}

impl PartialOrd for PushOrder {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        let same_key = self.hub_key == other.hub_key;
        same_key.then(|| (self.epoch, self.sequence).cmp(&(other.epoch, other.sequence)))
    }
}

/// Reason that a push is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GateError {
    #[error("no usable trust policy")]
    Trust(#[source] TrustError),
    #[error(transparent)]
    Verify(VerifyError),
    #[error(
        "{object} belongs to application `{application}` in namespace `{namespace}`; remove it from one of the two, \
         and this release is applied"
    )]
    OwnedByOther {
        object: ObjectKey,
        application: Name,
        namespace: Name,
        /// Every object that another destination of the same namespace owns, with its owner.
        claims: Vec<(ObjectKey, Key)>,
    },
    #[error("{what} has more than {max} bytes")]
    TooLarge { what: &'static str, max: usize },
    #[error(
        "of {} records of this spoke {} are left, so that what it has seen is not known any more; \
         `attest spoke accept-state` with the cluster's credentials begins anew",
        .0.recorded, .0.found
    )]
    StateLost(Lost),
    #[error("this cluster holds at most {max} {what}")]
    Limit { what: &'static str, max: usize },
}

impl GateError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Trust(error) => error.reason(),
            Self::Verify(error) => error.reason(),
            Self::OwnedByOther { .. } => Reason::OwnedByOther,
            Self::StateLost(_) => Reason::StateLost,
            Self::Limit { .. } | Self::TooLarge { .. } => Reason::Limit,
        }
    }

    /// Returns whether discovery of more kinds may change the decision.
    pub fn is_about_kinds(&self) -> bool {
        self.reason() == Reason::KindUnknown
    }
}

#[cfg(test)]
pub(crate) mod tests;
