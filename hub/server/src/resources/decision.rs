//! The decision on one observed resource. Pure.

use attest_common::basics::ids::Timestamp;

use super::observed::ObservedResource;
use crate::core::store::records::ApplicationRecord;

/// The application of the hub that has the name of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NameHolder {
    /// No application has the name.
    Nothing,
    /// This resource, or one that it replaces: a restore of a backup changes the UID.
    This { deleting: bool },
    /// Another resource, or an application of another namespace.
    Other { namespace: String },
}

/// Returns the holder of a resource's name. `others` are the other resources of the name, `record` the application.
///
/// The resource in the record keeps the name while it exists; without it, the oldest one has it.
pub(super) fn name_holder(
    resource: &ObservedResource,
    others: &[ObservedResource],
    record: Option<&ApplicationRecord>,
) -> NameHolder {
    if let Some(record) = record {
        let recorded_namespace = &record.application.namespace;
        let is_other = match record.uid.as_deref() {
            Some(uid) if uid == resource.uid => {
                return NameHolder::This { deleting: record.deleting };
            }
            Some(uid) => others.iter().any(|other| other.uid == uid),
            // Applied through the API before.
            None => *recorded_namespace != resource.namespace,
        };
        if is_other {
            return NameHolder::Other { namespace: recorded_namespace.clone() };
        }
    }
    let older = others.iter().filter(|other| !other.is_deleting && age(other) < age(resource));
    match (older.min_by_key(|other| age(other)), record) {
        (Some(older), _) => NameHolder::Other { namespace: older.namespace.clone() },
        (None, Some(record)) => NameHolder::This { deleting: record.deleting },
        (None, None) => NameHolder::Nothing,
    }
}

/// Resources that were created in the same second are ordered by their UID.
fn age(resource: &ObservedResource) -> (Timestamp, &str) {
    (resource.created_at, &resource.uid)
}

/// Next step for a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Adds the finalizer; [`Self::Apply`] follows.
    AddFinalizer,
    /// Applies the resource's version.
    Apply,
    /// Another resource has the name.
    NameTaken { namespace: String },
    /// Another hub manages the resource.
    OtherHub { key_id: String },
    /// Orders the removal from every destination.
    Remove,
    /// The removal is ordered and not complete.
    WaitForRemoval,
    /// Forgets the application and leaves everything running; [`Self::ReleaseFinalizer`] follows.
    Orphan,
    /// Removes the finalizer.
    ReleaseFinalizer,
    /// The API server deletes the resource once the other finalizers are removed.
    Nothing,
}

/// State of the hub's custody of resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Custody {
    /// Every managed resource has the finalizer.
    Held,
    /// An operator has released all resources, to uninstall the hub.
    Released,
}

/// Returns the next step for a resource, at the hub with this key id.
pub(super) fn decide(
    resource: &ObservedResource,
    (hub, custody): (&str, Custody),
    holder: &NameHolder,
) -> Decision {
    if let Some(other) = resource.hub().filter(|other| *other != hub) {
        return Decision::OtherHub { key_id: other.to_owned() };
    }
    match (custody, resource.has_finalizer()) {
        (Custody::Released, true) => Decision::ReleaseFinalizer,
        (Custody::Released, false) => Decision::Nothing,
        (Custody::Held, has_finalizer) if resource.is_deleting => {
            decide_deleting(resource, has_finalizer, holder)
        }
        (Custody::Held, has_finalizer) => decide_live(has_finalizer, holder),
    }
}

fn decide_deleting(
    resource: &ObservedResource,
    has_finalizer: bool,
    holder: &NameHolder,
) -> Decision {
    if !has_finalizer {
        return Decision::Nothing;
    }
    match holder {
        NameHolder::Nothing | NameHolder::Other { .. } => Decision::ReleaseFinalizer,
        NameHolder::This { .. } if resource.is_orphan => Decision::Orphan,
        NameHolder::This { deleting: false } => Decision::Remove,
        NameHolder::This { deleting: true } => Decision::WaitForRemoval,
    }
}

fn decide_live(has_finalizer: bool, holder: &NameHolder) -> Decision {
    match holder {
        NameHolder::Other { namespace } => Decision::NameTaken { namespace: namespace.clone() },
        NameHolder::Nothing | NameHolder::This { .. } if has_finalizer => Decision::Apply,
        NameHolder::Nothing | NameHolder::This { .. } => Decision::AddFinalizer,
    }
}

#[cfg(test)]
mod tests {
    use super::super::observed::{FINALIZER, sample};
    use super::*;

    const HUB: &str = "sha256:aa";

    /// Returns a resource with these properties: `live` or `deleting`, `finalizer`, `orphan`, `other-hub`.
    fn resource(properties: &str) -> ObservedResource {
        let has = |word: &str| properties.split(' ').any(|property| property == word);
        let mut resource = sample("web");
        resource.is_deleting = has("deleting");
        resource.is_orphan = has("orphan");
        resource.finalizers =
            if has("finalizer") { vec![FINALIZER.to_owned()] } else { Vec::new() };
        if has("other-hub") {
            resource.status = serde_json::json!({"hub": "sha256:bb"});
        }
        resource
    }

    #[test]
    fn a_name_belongs_to_the_recorded_resource_and_then_to_the_oldest() {
        let this = NameHolder::This { deleting: false };
        let other = NameHolder::Other { namespace: "default".into() };
        let here = "production";
        // UID and namespace in the record, then age and UID of another resource, in namespace `default`.
        for (record, rival, expected) in [
            (None, None, &NameHolder::Nothing),
            (None, Some((-1, "rival")), &other),
            (None, Some((1, "rival")), &NameHolder::Nothing),
            (Some((Some("uid-of-web"), here)), Some((-1, "rival")), &this),
            (Some((Some("rival"), "default")), Some((1, "rival")), &other),
            // The recorded resource is gone: a restore of a backup, or another namespace.
            (Some((Some("gone"), here)), None, &this),
            (Some((Some("gone"), "default")), None, &this),
            (Some((Some("gone"), here)), Some((-1, "rival")), &other),
            (Some((None, here)), None, &this),
            (Some((None, "default")), None, &other),
        ] {
            let resource = sample("web");
            let record = record.map(|(uid, namespace): (Option<&str>, &str)| {
                let mut record = ApplicationRecord::sample("web", "https://git.example/web");
                record.uid = uid.map(str::to_owned);
                record.application.namespace = namespace.to_owned();
                record
            });
            let others: Vec<ObservedResource> = rival
                .map(|(age_s, uid): (i64, &str)| ObservedResource {
                    namespace: "default".into(),
                    uid: uid.into(),
                    created_at: Timestamp::from_second(resource.created_at.as_second() + age_s)
                        .unwrap(),
                    ..sample("web")
                })
                .into_iter()
                .collect();

            let found = name_holder(&resource, &others, record.as_ref());
            assert_eq!(&found, expected, "{:?} {rival:?}", record.map(|record| record.uid));
        }
    }

    #[test]
    fn a_released_resource_is_left_alone() {
        let this = NameHolder::This { deleting: false };
        for (properties, expected) in [
            ("live finalizer", Decision::ReleaseFinalizer),
            ("deleting finalizer", Decision::ReleaseFinalizer),
            ("live", Decision::Nothing),
        ] {
            let decided = decide(&resource(properties), (HUB, Custody::Released), &this);
            assert_eq!(decided, expected, "{properties}");
        }
    }

    #[test]
    fn every_situation_has_one_next_step() {
        let other = NameHolder::Other { namespace: "default".into() };
        let taken = Decision::NameTaken { namespace: "default".into() };
        let elsewhere = Decision::OtherHub { key_id: "sha256:bb".into() };
        let (none, this) = (NameHolder::Nothing, NameHolder::This { deleting: false });
        let removing = NameHolder::This { deleting: true };
        for (properties, holder, expected) in [
            ("live", &none, Decision::AddFinalizer),
            ("live", &this, Decision::AddFinalizer),
            ("live finalizer", &none, Decision::Apply),
            ("live finalizer", &this, Decision::Apply),
            // The resource was applied again while the hub removed the application of a previous one.
            ("live finalizer", &removing, Decision::Apply),
            ("live finalizer", &other, taken.clone()),
            ("live", &other, taken),
            ("live orphan finalizer", &this, Decision::Apply),
            ("live finalizer other-hub", &this, elsewhere.clone()),
            ("deleting finalizer other-hub", &this, elsewhere),
            ("deleting finalizer", &this, Decision::Remove),
            ("deleting finalizer", &removing, Decision::WaitForRemoval),
            ("deleting finalizer orphan", &this, Decision::Orphan),
            ("deleting finalizer orphan", &removing, Decision::Orphan),
            ("deleting finalizer", &none, Decision::ReleaseFinalizer),
            ("deleting finalizer", &other, Decision::ReleaseFinalizer),
            ("deleting", &this, Decision::Nothing),
            ("deleting", &none, Decision::Nothing),
        ] {
            let decided = decide(&resource(properties), (HUB, Custody::Held), holder);
            assert_eq!(decided, expected, "{properties}, {holder:?}");
        }
    }
}
