//! The writer: the only code that writes an application's objects. It takes `Verified<ObjectSet>` only.
//!
//! `destination` decides which object is written and when. This file writes it: by server-side apply, as
//! the application's account, with force on objects of this destination only.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use attest_common::basics::ids::Digest;
use attest_common::basics::reason::Reason;
use attest_common::documents::manifest::{Object, ObjectKey};
use attest_common::objects::absent::{EmptyFields, without_nulls};
use attest_common::objects::projection::FIELD_MANAGER;
use attest_common::objects::{autoscaling, rewritten, takeover};
use attest_common::record::custody::Confirmed;
use attest_common::verify::{ObjectSet, Removal, Verified};
use attest_runtime::failpoint;
use serde_json::Value;

use super::client::{ApiServer, Apply, As, object_path};
use super::discovery;
use super::drift::Live;
use super::error::ApiError;
use super::watch::{Observation, observe};
use super::{replacement, replicas};

/// Longest time between the creation of an object and the apply that created it, in seconds. Both are whole seconds.
const MADE_WITHIN_S: i64 = 1;

/// Most attempts to take over the fields of an object that others write concurrently.
const TAKEOVER_ATTEMPTS_MAX: u32 = 5;

/// One object of a set, with its path and the user that writes it.
#[derive(Clone, Debug)]
pub struct Target {
    pub objects: Arc<Verified<ObjectSet>>,
    /// Key of the object in the set.
    pub key: ObjectKey,
    /// Path at the API server.
    pub path: String,
    /// User name of the application's account. Absent for the destination's own Namespace, which the
    /// spoke writes under its own identity.
    pub user: Option<String>,
    /// An autoscaler sets its replicas: that field is not written.
    pub autoscaled: bool,
}

impl Target {
    /// Returns the value to write.
    fn value<'a>(&self, object: &'a Object) -> Cow<'a, Value> {
        as_written(object, self.autoscaled)
    }

    /// Returns the body to send.
    fn body(&self, object: &Object) -> Value {
        without_nulls(object.key(), &self.value(object))
    }

    fn user(&self) -> As<'_> {
        self.user.as_deref().map_or(As::Spoke, As::Account)
    }

    fn object(&self) -> Option<&Object> {
        self.objects.get(&self.key)
    }
}

/// Relation of an object of this name to this destination. With `adopt`, plan and policy both allow
/// taking over an existing object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// In the inventory, with the UID of the object that this destination wrote.
    Ours { uid: String, adopt: bool },
    /// The destination's own Namespace: others may own fields of it, and the spoke adds its own.
    Shared,
    /// Not known to belong to this destination. `unfinished`: the inventory lists it, so it may be the
    /// result of an apply that ended before the UID was recorded.
    Unknown { adopt: bool, unfinished: bool },
}

/// Permission to write an object, given by a dry run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DryRunPermit {
    /// The write may take our fields from other managers.
    pub force: bool,
    /// The object existed before and holds our values: it is released later, never deleted.
    pub preexisting: bool,
    /// kubectl owns fields of the object, which become ours with the write: what left Git leaves the cluster.
    pub takeover: bool,
    /// The existing object cannot change like this: it is deleted and made again.
    pub replaces: bool,
}

impl DryRunPermit {
    const UNFORCED: Self =
        Self { force: false, preexisting: false, takeover: false, replaces: false };

    fn forced(live: &Value) -> Self {
        Self { force: true, takeover: takeover::is_needed(live), ..Self::UNFORCED }
    }
}

/// The object whose fields a write may take from other managers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Force {
    No,
    /// The object with this UID.
    Of(String),
    /// Any object: a dry run has permitted it, and its UID is not known here.
    Any,
    /// The object with this UID is deleted before, because it cannot be changed.
    Replace(String),
}

/// Result of a write.
#[derive(Debug)]
pub struct Written {
    /// The object did not exist before.
    pub created: bool,
    pub confirmed: Confirmed,
    pub observation: Observation,
}

/// Applies an object as a dry run.
///
/// # Errors
/// [`ApplyError::FieldConflict`] if the object belongs to another writer, and every rejection by
/// admission in the cluster.
pub async fn check(
    api: &ApiServer,
    target: &Target,
    ownership: Ownership,
) -> Result<DryRunPermit, ApplyError> {
    let Some(object) = target.object() else { return Err(ApplyError::Gone) };
    let user = target.user();
    let forced = match &ownership {
        Ownership::Ours { .. } => true,
        Ownership::Shared => false,
        Ownership::Unknown { adopt, .. } => *adopt,
    };
    let how = if forced { Apply::DryRunForced } else { Apply::DryRun };
    let answer = api.apply(&target.path, user, &target.body(object), how).await;
    let unclear = match answer {
        Ok(applied) if applied.created => {
            return Ok(DryRunPermit::UNFORCED);
        }
        Ok(applied) if may_force(&ownership, &applied.live) => {
            return Ok(DryRunPermit::forced(&applied.live));
        }
        // Another object has replaced ours: it is checked like any object of another writer.
        Ok(_) if forced => {
            let ownership = Ownership::Unknown { adopt: false, unfinished: true };
            return Box::pin(check(api, target, ownership)).await;
        }
        Ok(_) if ownership == Ownership::Shared => return Ok(DryRunPermit::UNFORCED),
        Ok(applied) => Some(applied.live),
        Err(error) if error.is_field_conflict() => None,
        Err(error) if error.is_immutable() => {
            return check_replacement(api, target, &ownership, error).await;
        }
        Err(error) if error.is_unserved() => return Err(not_served(api, object).await),
        Err(error) => return Err(failed(object.key(), error)),
    };
    // An object of this name exists whose UID is not recorded: ours after a crash, or another writer's.
    let live = api.get(&target.path).await.map_err(|e| failed(object.key(), e))?;
    if matches!(ownership, Ownership::Unknown { unfinished: true, .. }) && is_made_by_us(&live) {
        return Ok(DryRunPermit::forced(&live));
    }
    match unclear {
        Some(would_be) if same_values(&live, &would_be) => {
            Ok(DryRunPermit { preexisting: true, ..DryRunPermit::UNFORCED })
        }
        Some(_) | None => Err(ApplyError::FieldConflict {
            object: object.key().clone(),
            managers: managers(&live),
        }),
    }
}

/// Checks whether an object that cannot be changed may be deleted and made again: it is ours, it may be replaced, and
/// the API server accepts the new one, as a dry run under another name shows.
async fn check_replacement(
    api: &ApiServer,
    target: &Target,
    ownership: &Ownership,
    immutable: ApiError,
) -> Result<DryRunPermit, ApplyError> {
    let (Some(object), Ownership::Ours { uid, .. }) = (target.object(), ownership) else {
        return Err(failed(&target.key, immutable));
    };
    let live = api.get(&target.path).await.map_err(|e| failed(object.key(), e))?;
    if uid_of(&live) != Some(uid) || !replacement::is_replaceable(object, &live) {
        return Err(failed(object.key(), immutable));
    }
    let (path, value) = replacement::under_another_name(&target.path, object, target.body(object));
    let answer = api.apply(&path, target.user(), &value, Apply::DryRun).await;
    answer.map_err(|e| failed(object.key(), e))?;
    Ok(DryRunPermit { replaces: true, ..DryRunPermit::UNFORCED })
}

/// Returns the error of an object whose API version is not served, with the version that is.
async fn not_served(api: &ApiServer, object: &Object) -> ApplyError {
    let served = discovery::served(api, object.key()).await.ok().flatten();
    ApplyError::NotServed {
        object: object.key().clone(),
        version: object.api_version(),
        served: served.map_or_else(
            || "it serves no version of this kind; install its definition".to_owned(),
            |(version, _)| format!("it serves version {version}; write that in the manifest"),
        ),
    }
}

/// Returns whether our fields of an existing object may be taken from other managers.
fn may_force(ownership: &Ownership, live: &Value) -> bool {
    match ownership {
        Ownership::Ours { uid, adopt } => *adopt || uid_of(live) == Some(uid),
        Ownership::Shared => false,
        Ownership::Unknown { adopt, .. } => *adopt,
    }
}

/// Returns whether our apply created the object, as opposed to having applied to an existing one: our
/// entry of `managedFields` is as old as the object.
fn is_made_by_us(live: &Value) -> bool {
    let time = |value: Option<&Value>| value?.as_str()?.parse::<jiff::Timestamp>().ok();
    let entries = live.pointer("/metadata/managedFields").and_then(Value::as_array);
    let ours = entries.into_iter().flatten().find(|entry| {
        let text = |field: &str| entry.get(field).and_then(Value::as_str).unwrap_or_default();
        text("manager") == FIELD_MANAGER
            && text("operation") == "Apply"
            && text("subresource").is_empty()
    });
    let made = time(live.pointer("/metadata/creationTimestamp"));
    let (Some(ours), Some(made)) = (ours.and_then(|entry| time(entry.get("time"))), made) else {
        return false;
    };
    (ours.as_second() - made.as_second()).abs() <= MADE_WITHIN_S
}

/// Writes one object.
///
/// # Errors
/// [`ApplyError`]; the outcome is then unknown unless the API server has reported it.
pub async fn write(
    api: &ApiServer,
    target: &Target,
    force: Force,
    takeover: bool,
) -> Result<Written, ApplyError> {
    let Some(object) = target.object() else { return Err(ApplyError::Gone) };
    let value = target.value(object);
    if takeover {
        take_over(api, target).await.map_err(|error| failed(object.key(), error))?;
    }
    if target.autoscaled && !matches!(force, Force::Replace(_)) {
        replicas::release(api, &target.path, target.user(), object.value())
            .await
            .map_err(|error| failed(object.key(), error))?;
    }
    let mut body = without_nulls(object.key(), &value);
    let how = match &force {
        Force::Replace(uid) => {
            let authority = Authority::Replace(Arc::clone(&target.objects));
            let user = target.user.as_deref().unwrap_or_default();
            let place = (object.key(), target.path.as_str(), user);
            if let Deleted::Leaving(until) = delete(api, &authority, place, uid).await? {
                return Err(ApplyError::Leaving { until });
            }
            Apply::Unforced
        }
        Force::No => Apply::Unforced,
        Force::Any => Apply::Forced,
        Force::Of(uid) => {
            // The API server rejects the write if another object of this name exists, or none does.
            if let Some(metadata) = body.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.insert("uid".to_owned(), uid.as_str().into());
            }
            Apply::Forced
        }
    };
    failpoint::reach("before-apply");
    let answer = api.apply(&target.path, target.user(), &body, how).await;
    failpoint::reach("after-apply");
    let (live, created) = match answer {
        Ok(applied) => (applied.live, applied.created),
        Err(error) => return Err(unwritten(object.key(), error, &force)),
    };
    let empty = empty_fields(object);
    let observation = observe(object.key(), &live, &empty);
    let Live::Present { uid, projected, .. } = &observation.live else {
        return Err(ApplyError::Gone);
    };
    let confirmed = Confirmed {
        desired: desired(&value),
        uid: uid.clone(),
        projected: *projected,
        rewritten: rewritten::rewritten(&body, &live),
    };
    Ok(Written { created, confirmed, observation })
}

/// Makes the fields of the live object ours that kubectl owns. A concurrent write makes it try again.
async fn take_over(api: &ApiServer, target: &Target) -> Result<(), ApiError> {
    let mut attempts = 0;
    loop {
        let live = api.get(&target.path).await?;
        let Some(patch) = takeover::patch(&live) else { return Ok(()) };
        attempts += 1;
        match api.patch_json(&target.path, target.user(), &patch).await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_failed_test() && attempts < TAKEOVER_ATTEMPTS_MAX => {}
            Err(error) => return Err(error),
        }
    }
}

/// Returns the error of a rejected write.
fn unwritten(key: &ObjectKey, error: ApiError, force: &Force) -> ApplyError {
    match force {
        Force::Of(_) if error.is_other_object() => ApplyError::Replaced(key.clone()),
        Force::No | Force::Replace(_) if error.is_field_conflict() => ApplyError::FieldConflict {
            object: key.clone(),
            managers: "see the object's managedFields".to_owned(),
        },
        Force::No | Force::Of(_) | Force::Any | Force::Replace(_) => failed(key, error),
    }
}

/// Proof that an object may be deleted: a set of objects that does not contain it or that replaces it, or a removal.
#[derive(Clone, Debug)]
pub enum Authority {
    Prune(Arc<Verified<ObjectSet>>),
    /// It is made again.
    Replace(Arc<Verified<ObjectSet>>),
    Remove(Arc<Verified<Removal>>),
}

/// State of an object after a request to delete it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deleted {
    /// It no longer exists, or another object of its name does.
    Gone,
    /// It still exists, and waits for this.
    Leaving(String),
}

/// Deletes an object of the inventory if it still has this UID. An absent object is not an error.
///
/// # Errors
/// [`ApplyError`].
pub async fn delete(
    api: &ApiServer,
    authority: &Authority,
    (key, path, user): (&ObjectKey, &str, &str),
    uid: &str,
) -> Result<Deleted, ApplyError> {
    let is_allowed = match authority {
        Authority::Prune(objects) => !objects.contains(key),
        Authority::Replace(objects) => objects.get(key).is_some_and(replacement::is_of_a_kind),
        Authority::Remove(_) => true,
    };
    if !is_allowed {
        return Err(ApplyError::Gone);
    }
    failpoint::reach("before-delete");
    let answer = api.delete(path, As::Account(user), uid).await;
    failpoint::reach("after-delete");
    match answer {
        Ok(answer) => Ok(deleted(&answer)),
        Err(error) if error.is_absent() => Ok(Deleted::Gone),
        // The rights of the account were deleted with its namespace, and so was the object.
        Err(error) if error.is_forbidden() && is_without_namespace(api, key).await => {
            Ok(Deleted::Gone)
        }
        // Most likely another UID; only the live object shows it.
        Err(error) if error.is_conflict() => match api.get(path).await {
            Ok(live) if uid_of(&live) == Some(uid) => Err(failed(key, error)),
            Ok(_) => Ok(Deleted::Gone),
            Err(absent) if absent.is_absent() => Ok(Deleted::Gone),
            Err(_) => Err(failed(key, error)),
        },
        Err(error) => Err(failed(key, error)),
    }
}

/// Returns whether the namespace of an object is known not to exist.
async fn is_without_namespace(api: &ApiServer, key: &ObjectKey) -> bool {
    let Some(namespace) = &key.namespace else { return false };
    let looked = api.get(&object_path("v1", "namespaces", None, namespace)).await;
    looked.is_err_and(|error| error.is_absent())
}

/// Interprets the response to a delete: an object with finalizers exists until they are done.
fn deleted(answer: &Value) -> Deleted {
    if answer.get("kind").and_then(Value::as_str) == Some("Status") {
        return Deleted::Gone;
    }
    let finalizers = answer.pointer("/metadata/finalizers").and_then(Value::as_array);
    let names: Vec<&str> = finalizers.into_iter().flatten().filter_map(Value::as_str).collect();
    Deleted::Leaving(if names.is_empty() {
        "its own end".to_owned()
    } else {
        format!("finalizers {}", names.join(", "))
    })
}

fn uid_of(live: &Value) -> Option<&str> {
    live.pointer("/metadata/uid").and_then(Value::as_str)
}

/// Returns the UID of a live object that our apply created; `None` if it does not exist or is another writer's.
///
/// # Errors
/// [`ApplyError`].
pub async fn our_uid(
    api: &ApiServer,
    key: &ObjectKey,
    path: &str,
) -> Result<Option<String>, ApplyError> {
    match api.get(path).await {
        Ok(live) if is_made_by_us(&live) => Ok(uid_of(&live).map(str::to_owned)),
        Ok(_) => Ok(None),
        Err(error) if error.is_absent() => Ok(None),
        // The right to read was deleted with the namespace, and so was the object.
        Err(error) if error.is_forbidden() && is_without_namespace(api, key).await => Ok(None),
        Err(error) => Err(ApplyError::Api(error)),
    }
}

/// Returns the value of an object to write: without its replicas if an autoscaler sets them.
pub fn as_written(object: &Object, autoscaled: bool) -> Cow<'_, Value> {
    if autoscaled {
        Cow::Owned(autoscaling::without_replicas(object.value()))
    } else {
        Cow::Borrowed(object.value())
    }
}

/// Returns the fields of an object that claim no entries, independently of an autoscaler that sets its replicas.
pub fn empty_fields(object: &Object) -> EmptyFields {
    let has_replicas = autoscaling::replicas(object.value()).is_some();
    EmptyFields::of(object.key(), &as_written(object, has_replicas))
}

/// Returns the digest of the value of an object to write.
pub fn desired(value: &Value) -> Digest {
    Digest::of(value.to_string().as_bytes())
}

/// Returns whether two objects have the same values, apart from status and server-side bookkeeping.
fn same_values(live: &Value, would_be: &Value) -> bool {
    let plain = |object: &Value| {
        let mut object = object.clone();
        if let Some(fields) = object.as_object_mut() {
            fields.remove("status");
        }
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            for field in ["managedFields", "resourceVersion", "generation"] {
                metadata.remove(field);
            }
        }
        object
    };
    plain(live) == plain(would_be)
}

fn managers(live: &Value) -> String {
    let entries = live.pointer("/metadata/managedFields").and_then(Value::as_array);
    let names: BTreeSet<&str> = entries
        .into_iter()
        .flatten()
        .filter(|entry| entry.get("subresource").is_none())
        .filter_map(|entry| entry.get("manager")?.as_str())
        .filter(|name| *name != FIELD_MANAGER)
        .collect();
    if names.is_empty() {
        "no other manager".to_owned()
    } else {
        names.into_iter().collect::<Vec<_>>().join(", ")
    }
}

/// Wraps an error of the API server. Its message may quote the request; that of a Secret is dropped.
fn failed(key: &ObjectKey, error: ApiError) -> ApplyError {
    let is_secret = key.group.is_empty() && key.kind == "Secret";
    let mut error = error;
    if is_secret && let ApiError::Status { status_reason, message, .. } = &mut error {
        message.clone_from(status_reason);
    }
    ApplyError::Api(error)
}

/// Error of a write, a dry run or a deletion.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    #[error(
        "{object} exists and is managed by {managers}; delete it, or set `Adopt=true` in the \
         application and `adopt: true` in the cluster's trust policy"
    )]
    FieldConflict { object: ObjectKey, managers: String },
    #[error("{0} was deleted, or replaced by another object, after it was checked")]
    Replaced(ObjectKey),
    #[error(transparent)]
    Api(ApiError),
    #[error("the API server does not serve this kind; its definition or its server is missing")]
    KindUnknown,
    #[error("the API server does not serve {version} {}; {served}", .object.kind)]
    NotServed { object: ObjectKey, version: String, served: String },
    #[error("it is being replaced: it was deleted and waits for {until}")]
    Leaving { until: String },
    #[error("the admission does not allow this operation on the object")]
    Gone,
}

impl ApplyError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::FieldConflict { .. } => Reason::FieldConflict,
            Self::Replaced(_) => Reason::Conflict,
            Self::Api(error) => error.reason(),
            Self::KindUnknown | Self::NotServed { .. } => Reason::KindUnknown,
            Self::Leaving { .. } => Reason::Terminating,
            Self::Gone => Reason::NotAllowed,
        }
    }

    /// Returns whether the response says nothing about the object. A quota that was just changed answers 409.
    pub fn is_transient(&self) -> bool {
        self.is_conflict() || matches!(self, Self::Api(error) if error.is_transient())
    }

    /// Returns whether a concurrent write was faster, so that earlier results may be out of date.
    pub fn is_conflict(&self) -> bool {
        match self {
            Self::Replaced(_) => true,
            Self::Api(error) => error.is_conflict(),
            Self::FieldConflict { .. }
            | Self::KindUnknown
            | Self::NotServed { .. }
            | Self::Leaving { .. }
            | Self::Gone => false,
        }
    }

    /// Returns whether this is normal shortly after an account got its rights.
    pub fn is_not_ready(&self) -> bool {
        matches!(self, Self::Api(error) if error.is_forbidden() || error.is_not_found())
    }

    /// 403.
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Api(error) if error.is_forbidden())
    }
}

#[cfg(test)]
mod tests;
