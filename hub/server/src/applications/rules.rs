//! Rules of applying and removing an application, for every interface of the hub. Blocks where it reads or writes.
//!
//! The caller schedules a reconcile pass afterwards.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use attest_common::basics::ids::{ClusterId, DestinationKey, Name};
use attest_common::basics::keys::PublicKey;
use attest_common::basics::reason::Reason;
use attest_common::documents::annotations::{CONFIRM_REMOVAL_ANNOTATION, ORPHAN_ANNOTATION};
use attest_common::session::report::{Phase, Report};
use attest_runtime::clock::now;
use attest_supply::source::UrlPolicy;
use serde_json::Value;

use super::known::{DefaultCluster, Known, KnownCluster, LowerError};
use super::lower::{self, DESTINATIONS_MAX};
use crate::core::Core;
use crate::core::own_cluster::OwnCluster;
use crate::core::position::ReportedPolicy;
use crate::core::store::StoreError;
use crate::core::store::records::{
    self, Application, ApplicationRecord, ClusterRecord, ClusterState, Destination, KeyRecord,
    LedgerEntry, ReportRecord, Stored,
};

/// Most destinations named in one message.
const PLACES_NAMED_MAX: usize = 10;

/// Permission to remove an application from destinations that its manifest no longer names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// The operator confirmed the removal.
    Confirmed,
    /// The operator confirmed the removal from these destinations, `CLUSTER/NAMESPACE`.
    ConfirmedFor(BTreeSet<String>),
    /// The manifest is rejected with a list of the removals.
    Unconfirmed,
}

/// A manifest to apply.
#[derive(Clone, Debug)]
pub(crate) struct ApplyRequest {
    pub manifest: Value,
    pub removal: Removal,
    /// UID of the custom resource; the caller has checked that it has the name. Absent where there are no resources.
    pub uid: Option<String>,
}

/// Result of applying a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Created,
    Configured,
    Unchanged,
}

impl Outcome {
    /// Returns the name shown to users.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Created => "Created",
            Self::Configured => "Configured",
            Self::Unchanged => "Unchanged",
        }
    }
}

/// Reason that an application is not applied or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ApplicationError {
    #[error(transparent)]
    Lower(#[from] LowerError),
    #[error("application `{0}` not found; list applications with `attest gitops app list`")]
    Unknown(String),
    #[error(
        "application `{name}` already exists in namespace {namespace}; names are unique within a hub"
    )]
    NameTaken { name: Name, namespace: String },
    #[error("this change removes {name} from {losses}")]
    RemovalUnconfirmed { name: Name, losses: String },
    #[error(
        "the trust policy of cluster {cluster} does not allow the hub to remove {application} from namespace {namespace}; \
         set `remove: {{allow: true}}` for it in that policy and run `attest trust install POLICY --kubeconfig F`, \
         with that cluster's own credentials"
    )]
    RemoveNotAllowed { cluster: String, application: Name, namespace: Name },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ApplicationError {
    /// Returns the reason to show.
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::Lower(error) => error.reason(),
            Self::Unknown(_) => Reason::ApplicationUnknown,
            Self::NameTaken { .. } => Reason::NameTaken,
            Self::RemovalUnconfirmed { .. } => Reason::RemovalUnconfirmed,
            Self::RemoveNotAllowed { .. } => Reason::RemoveNotAllowed,
            Self::Store(error) => error.reason(),
        }
    }

    /// Path of the field at fault, when there is one.
    pub(crate) fn field(&self) -> Option<&str> {
        match self {
            Self::Lower(error) => Some(&error.field),
            Self::NameTaken { .. } => Some("metadata.name"),
            Self::Unknown(_)
            | Self::RemovalUnconfirmed { .. }
            | Self::RemoveNotAllowed { .. }
            | Self::Store(_) => None,
        }
    }
}

/// Applies a manifest.
///
/// # Errors
/// When the manifest is invalid, or would remove the application without permission.
pub(crate) fn apply(
    core: &Core,
    urls: &UrlPolicy,
    request: ApplyRequest,
) -> Result<(ApplicationRecord, Outcome), ApplicationError> {
    let Prepared { application, stored, leaving: _ } = prepare(core, urls, &request)?;
    let ApplyRequest { manifest, removal: _, uid } = request;
    let current = stored.as_ref().map(|stored| &stored.value);
    let record = ApplicationRecord {
        generation: current.map_or(1, |current| {
            current.generation + u64::from(current.application != application)
        }),
        created_at: current.map_or_else(now, |current| current.created_at),
        application,
        manifest,
        deleting: false,
        uid,
    };
    let (outcome, change) = match &stored {
        Some(stored) if stored.value == record => return Ok((record, Outcome::Unchanged)),
        Some(stored) => (Outcome::Configured, records::replace(stored, &record)),
        None => (Outcome::Created, records::put_new(&record)),
    };
    core.records.commit("application", &[change])?;
    Ok((record, outcome))
}

/// A manifest that may be applied.
#[derive(Debug)]
pub(crate) struct Checked {
    pub name: Name,
    pub namespace: String,
    /// Destinations that the application leaves, `CLUSTER/NAMESPACE`.
    pub leaving: BTreeSet<String>,
    pub previous: Option<ApplicationRecord>,
}

/// Checks a manifest as [`apply`] does, and changes nothing.
///
/// # Errors
/// As [`apply`].
pub(crate) fn check(
    core: &Core,
    urls: &UrlPolicy,
    request: &ApplyRequest,
) -> Result<Checked, ApplicationError> {
    let Prepared { application, stored, leaving } = prepare(core, urls, request)?;
    Ok(Checked {
        name: application.name,
        namespace: application.namespace,
        leaving: leaving.iter().map(Leaving::place).collect(),
        previous: stored.map(|stored| stored.value),
    })
}

/// Returns the manifest of a request without the annotations that take effect on a custom resource.
fn lowered_manifest(request: &ApplyRequest) -> Cow<'_, Value> {
    let mut manifest = Cow::Borrowed(&request.manifest);
    if request.uid.is_some()
        && let Some(annotations) = manifest.to_mut().pointer_mut("/metadata/annotations")
        && let Some(annotations) = annotations.as_object_mut()
    {
        annotations.remove(ORPHAN_ANNOTATION);
        annotations.remove(CONFIRM_REMOVAL_ANNOTATION);
    }
    manifest
}

struct Prepared {
    application: Application,
    stored: Option<Stored<ApplicationRecord>>,
    leaving: Vec<Leaving>,
}

/// Resolves a manifest and checks what it changes.
fn prepare(
    core: &Core,
    urls: &UrlPolicy,
    request: &ApplyRequest,
) -> Result<Prepared, ApplicationError> {
    let application = lower::lower(&lowered_manifest(request), &known(core, urls)?)?;
    let stored = core.records.stored::<ApplicationRecord>(application.name.as_str())?;
    let current = stored.as_ref().map(|stored| &stored.value);
    let is_elsewhere = current.filter(|other| other.application.namespace != application.namespace);
    if let Some(other) = is_elsewhere.filter(|_| request.uid.is_none()) {
        let namespace = other.application.namespace.clone();
        return Err(ApplicationError::NameTaken { name: application.name, namespace });
    }
    let leaving = leaving(core, &application.name, &core.directory.places(&application));
    check_removal(&leaving)?;
    match losses(&leaving, &request.removal) {
        Some(losses) => {
            Err(ApplicationError::RemovalUnconfirmed { name: application.name, losses })
        }
        None => Ok(Prepared { application, stored, leaving }),
    }
}

/// Marks an application as being removed from all of its destinations.
///
/// # Errors
/// As [`removable`].
pub(crate) fn remove(core: &Core, name: &str) -> Result<ApplicationRecord, ApplicationError> {
    let stored = stored_removable(core, name)?;
    let deleting = ApplicationRecord { deleting: true, ..stored.value.clone() };
    if deleting != stored.value {
        core.records.commit("application", &[records::replace(&stored, &deleting)])?;
    }
    Ok(deleting)
}

/// Returns the application of this name, which may be removed from all of its destinations.
///
/// # Errors
/// When the application does not exist, or may not be removed.
pub(crate) fn removable(core: &Core, name: &str) -> Result<ApplicationRecord, ApplicationError> {
    Ok(stored_removable(core, name)?.value)
}

fn stored_removable(
    core: &Core,
    name: &str,
) -> Result<Stored<ApplicationRecord>, ApplicationError> {
    let stored = core.records.stored::<ApplicationRecord>(name)?;
    let stored = stored.ok_or_else(|| ApplicationError::Unknown(name.to_owned()))?;
    check_removal(&leaving(core, &stored.value.application.name, &BTreeSet::new()))?;
    Ok(stored)
}

/// Forgets an application and leaves everything running. Nothing is ordered: the destinations keep their directives, and
/// an application of the same name continues them.
///
/// # Errors
/// When the store cannot be read or written.
pub(crate) fn release(core: &Core, name: &str) -> Result<(), StoreError> {
    match core.records.stored::<ApplicationRecord>(name)? {
        Some(stored) => core.records.commit("application", &[records::delete_exactly(&stored)]),
        None => Ok(()),
    }
}

/// Returns the application of this name.
///
/// # Errors
/// When it does not exist.
pub(crate) fn find(core: &Core, name: &str) -> Result<ApplicationRecord, ApplicationError> {
    let record = core.records.get::<ApplicationRecord>(name)?;
    record.ok_or_else(|| ApplicationError::Unknown(name.to_owned()))
}

fn known(core: &Core, urls: &UrlPolicy) -> Result<Known, StoreError> {
    let all = core.directory.all();
    let clusters = all.iter().filter(|cluster| cluster.state != ClusterState::Revoked);
    let keys: Vec<KeyRecord> = core.records.all()?;
    let keys: BTreeMap<_, _> = keys
        .into_iter()
        .filter_map(|key| Some((key.alias, PublicKey::from_pem(&key.public_key).ok()?.id())))
        .collect();
    Ok(Known {
        default_cluster: default_cluster(core, clusters.clone().map(Arc::as_ref))?,
        clusters: clusters
            .map(|cluster| (cluster.name.clone(), known_cluster(core, cluster)))
            .collect(),
        keys,
        urls: urls.clone(),
    })
}

/// Returns the name of the cluster of a destination that names none, if it is registered.
///
/// # Errors
/// When the store cannot be read.
pub(crate) fn default_cluster_name(core: &Core) -> Result<Option<Name>, StoreError> {
    let all = core.directory.all();
    let living = all.iter().filter(|cluster| cluster.state != ClusterState::Revoked);
    Ok(match default_cluster(core, living.map(Arc::as_ref))? {
        DefaultCluster::Registered(name) => Some(name),
        DefaultCluster::NoneRegistered
        | DefaultCluster::OwnNotRegistered
        | DefaultCluster::OwnUnknown => None,
    })
}

/// Returns the cluster of a destination that names none: the hub's own, or the first that was registered.
fn default_cluster<'a>(
    core: &Core,
    mut clusters: impl Iterator<Item = &'a ClusterRecord>,
) -> Result<DefaultCluster, StoreError> {
    Ok(match core.own_cluster.get() {
        OwnCluster::None => core
            .records
            .default_cluster()?
            .map_or(DefaultCluster::NoneRegistered, DefaultCluster::Registered),
        OwnCluster::Unknown => DefaultCluster::OwnUnknown,
        OwnCluster::Uid(uid) => clusters
            .find(|cluster| cluster.kube_system_uid == uid)
            .map_or(DefaultCluster::OwnNotRegistered, |cluster| {
                DefaultCluster::Registered(cluster.name.clone())
            }),
    })
}

fn known_cluster(core: &Core, cluster: &ClusterRecord) -> KnownCluster {
    let reported = core.fleet.reported_policy(&cluster.id);
    KnownCluster {
        labels: cluster.labels.clone(),
        environment: reported.map(|reported| reported.policy.environment.to_string()),
    }
}

/// Adds the destinations in clusters that an application's selectors match and that it does not have yet. Those that
/// no longer match stay until the manifest is applied again, which asks for confirmation. Returns the record if it
/// changed.
///
/// # Errors
/// When the store cannot be read or written, or the record was changed concurrently.
pub(crate) fn expand(
    core: &Core,
    record: &ApplicationRecord,
) -> Result<Option<ApplicationRecord>, StoreError> {
    let application = &record.application;
    if application.selectors.is_empty() || record.deleting {
        return Ok(None);
    }
    let clusters = core.directory.all();
    let added = added_destinations(application, &clusters);
    if added.is_empty() {
        return Ok(None);
    }
    let Some(stored) = core.records.stored::<ApplicationRecord>(application.name.as_str())? else {
        return Ok(None);
    };
    if stored.value != *record {
        return Err(StoreError::Conflict { what: format!("application `{}`", application.name) });
    }
    let mut expanded = record.clone();
    expanded.application.destinations.extend(added);
    expanded.generation += 1;
    core.records.commit("application", &[records::replace(&stored, &expanded)])?;
    Ok(Some(expanded))
}

/// Returns the destinations in matching clusters that an application does not have yet.
fn added_destinations(
    application: &Application,
    clusters: &[Arc<ClusterRecord>],
) -> Vec<Destination> {
    let known = application.destinations.iter();
    let mut places: BTreeSet<(Name, Name)> =
        known.map(|one| (one.cluster.clone(), one.namespace.clone())).collect();
    let mut added = Vec::new();
    for selected in &application.selectors {
        for cluster in clusters.iter().filter(|cluster| cluster.state != ClusterState::Revoked) {
            let place = (cluster.name.clone(), selected.namespace.clone());
            let fits =
                places.len() < DESTINATIONS_MAX && selected.selector.matches(&cluster.labels);
            if fits && places.insert(place) {
                added.push(selected.at(&cluster.name));
            }
        }
    }
    added
}

impl Removal {
    fn confirms(&self, leaving: &Leaving) -> bool {
        match self {
            Self::Confirmed => true,
            Self::ConfirmedFor(places) => places.contains(&leaving.place()),
            Self::Unconfirmed => false,
        }
    }
}

/// A destination that an application leaves.
struct Leaving {
    destination: DestinationKey,
    /// Name of the cluster.
    cluster: String,
    head: Arc<LedgerEntry>,
    report: Option<Arc<ReportRecord>>,
    policy: Option<Arc<ReportedPolicy>>,
}

/// Returns the destinations of an application that are not in `kept`.
fn leaving(core: &Core, application: &Name, kept: &BTreeSet<(ClusterId, Name)>) -> Vec<Leaving> {
    let all = core.fleet.heads_for(application).into_iter().map(|(destination, head)| Leaving {
        cluster: core.directory.name_of(&destination.cluster),
        report: core.fleet.report(&destination),
        policy: core.fleet.reported_policy(&destination.cluster),
        head,
        destination,
    });
    all.filter(|Leaving { destination, head, report, .. }| {
        let is_kept = kept.contains(&(destination.cluster.clone(), destination.namespace.clone()));
        // Excludes destinations whose directive is already a removal, and those where nothing runs.
        head.planned.is_some()
            && !is_kept
            && core.directory.is_living(&destination.cluster)
            && !report.as_ref().is_some_and(|record| runs_nothing(&record.report))
    })
    .collect()
}

fn runs_nothing(report: &Report) -> bool {
    report.phase == Phase::Refused && report.running.is_none()
}

/// Rejects removals that the trust policy of a cluster would refuse permanently.
fn check_removal(leaving: &[Leaving]) -> Result<(), ApplicationError> {
    let mut refusing = leaving.iter().filter(|leaving| !leaving.is_removal_allowed()).peekable();
    let Some(first) = refusing.peek().copied() else { return Ok(()) };
    let clusters: BTreeSet<&str> = refusing.map(|leaving| leaving.cluster.as_str()).collect();
    let named: Vec<&str> = clusters.into_iter().take(PLACES_NAMED_MAX).collect();
    Err(ApplicationError::RemoveNotAllowed {
        cluster: named.join(", "),
        application: first.destination.application.clone(),
        namespace: first.destination.namespace.clone(),
    })
}

impl Leaving {
    /// Returns `CLUSTER/NAMESPACE`.
    fn place(&self) -> String {
        format!("{}/{}", self.cluster, self.destination.namespace)
    }

    /// Returns true unless the cluster's trust policy forbids the removal. One that is not known is not asked.
    fn is_removal_allowed(&self) -> bool {
        let (Some(planned), Some(reported)) = (&self.head.planned, &self.policy) else {
            return true;
        };
        let DestinationKey { application, namespace, .. } = &self.destination;
        let effective = reported.policy.effective(application, &planned.repo, namespace);
        effective.is_ok_and(|effective| effective.remove_allowed)
    }
}

/// Describes the destinations that the application leaves without confirmation, and its objects there.
fn losses(leaving: &[Leaving], removal: &Removal) -> Option<String> {
    let unconfirmed: Vec<&Leaving> =
        leaving.iter().filter(|leaving| !removal.confirms(leaving)).collect();
    let named: Vec<String> =
        unconfirmed.iter().take(PLACES_NAMED_MAX).map(|leaving| loss(leaving)).collect();
    let more = unconfirmed.len().saturating_sub(named.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!named.is_empty()).then(|| named.join(", ") + &more)
}

fn loss(leaving: &Leaving) -> String {
    let objects = match leaving.report.as_ref().map(|report| report.report.objects_total) {
        Some(1) => "1 object".to_owned(),
        Some(count) => format!("{count} objects"),
        None => "nothing reported yet".to_owned(),
    };
    format!("{} ({objects})", leaving.place())
}
