//! The parts of an AttestApplication that the hub reads, converted once. Pure.

use std::collections::BTreeSet;

use attest_common::basics::ids::Timestamp;
use attest_common::documents::annotations::{CONFIRM_REMOVAL_ANNOTATION, ORPHAN_ANNOTATION};
use kube::api::{ApiResource, DynamicObject};
use serde_json::{Map, Value, json};

use crate::applications::crd::{API_VERSION, APPLICATION_KIND};

/// Finalizer of the hub: the resource stays until the application is removed from its destinations.
pub(super) const FINALIZER: &str = "attest.continuu.ms/application";
/// Annotation of kubectl with the whole manifest, which is not part of it.
const LAST_APPLIED_ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Returns the API resource of AttestApplications.
pub(crate) fn application_resource() -> ApiResource {
    ApiResource {
        group: "attest.continuu.ms".to_owned(),
        version: "v1".to_owned(),
        api_version: API_VERSION.to_owned(),
        kind: APPLICATION_KIND.to_owned(),
        plural: "attestapplications".to_owned(),
    }
}

/// An AttestApplication as observed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ObservedResource {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) generation: i64,
    pub(super) resource_version: String,
    pub(super) created_at: Timestamp,
    pub(super) is_deleting: bool,
    pub(super) finalizers: Vec<String>,
    /// Deleting the resource leaves everything running.
    pub(super) is_orphan: bool,
    /// Destinations whose removal is confirmed, `CLUSTER/NAMESPACE`.
    pub(super) confirmed: BTreeSet<String>,
    /// The manifest as the API of the hub takes it.
    pub(super) manifest: Value,
    /// `Null` before the first write.
    pub(super) status: Value,
}

impl ObservedResource {
    /// Reads an object of the API server.
    pub(super) fn read(object: &DynamicObject) -> Self {
        let metadata = &object.metadata;
        let annotations = metadata.annotations.clone().unwrap_or_default();
        let kept = annotations.iter().filter(|(key, _)| key.as_str() != LAST_APPLIED_ANNOTATION);
        let kept: Map<String, Value> =
            kept.map(|(key, value)| (key.clone(), value.clone().into())).collect();
        let name = metadata.name.clone().unwrap_or_default();
        let namespace = metadata.namespace.clone().unwrap_or_default();
        let confirmed = annotations.get(CONFIRM_REMOVAL_ANNOTATION).map(String::as_str);
        let manifest = json!({
            "apiVersion": API_VERSION, "kind": APPLICATION_KIND,
            "metadata": {
                "name": name, "namespace": namespace, "annotations": kept,
                "labels": metadata.labels.clone().unwrap_or_default(),
            },
            "spec": object.data.get("spec").cloned().unwrap_or_default(),
        });
        Self {
            name,
            namespace,
            uid: metadata.uid.clone().unwrap_or_default(),
            generation: metadata.generation.unwrap_or_default(),
            resource_version: metadata.resource_version.clone().unwrap_or_default(),
            created_at: metadata
                .creation_timestamp
                .as_ref()
                .map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            is_deleting: metadata.deletion_timestamp.is_some(),
            finalizers: metadata.finalizers.clone().unwrap_or_default(),
            is_orphan: annotations.get(ORPHAN_ANNOTATION).is_some_and(|value| value == "true"),
            confirmed: confirmed.map(places).unwrap_or_default(),
            manifest,
            status: object.data.get("status").cloned().unwrap_or_default(),
        }
    }

    /// Returns the hub that manages the resource.
    pub(super) fn hub(&self) -> Option<&str> {
        self.status.get("hub").and_then(Value::as_str)
    }

    pub(super) fn has_finalizer(&self) -> bool {
        self.finalizers.iter().any(|name| name == FINALIZER)
    }
}

fn places(list: &str) -> BTreeSet<String> {
    list.split(',').map(str::trim).filter(|place| !place.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
pub(super) fn sample(name: &str) -> ObservedResource {
    let object = json!({
        "apiVersion": API_VERSION, "kind": APPLICATION_KIND,
        "metadata": {
            "name": name, "namespace": "production", "uid": format!("uid-of-{name}"), "generation": 1,
            "resourceVersion": "7", "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"source": {"repoUrl": "https://git.example/web", "path": "k8s"}, "destination": {"namespace": "web"}},
    });
    ObservedResource::read(&serde_json::from_value(object).unwrap())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_has_what_its_author_wrote_and_nothing_of_the_api_server() {
        let object = json!({
            "apiVersion": API_VERSION, "kind": APPLICATION_KIND,
            "metadata": {
                "name": "web", "namespace": "production", "uid": "u", "generation": 3, "resourceVersion": "9",
                "managedFields": [], "finalizers": [FINALIZER], "deletionTimestamp": "2026-01-02T00:00:00Z",
                "labels": {"team": "a"},
                "annotations": {
                    LAST_APPLIED_ANNOTATION: "{}", ORPHAN_ANNOTATION: "true",
                    CONFIRM_REMOVAL_ANNOTATION: "staging/web, production/web,",
                },
            },
            "spec": {"source": {}}, "status": {"hub": "sha256:00"},
        });

        let read = ObservedResource::read(&serde_json::from_value(object).unwrap());

        assert_eq!(
            read.manifest["metadata"],
            json!({
                "name": "web", "namespace": "production", "labels": {"team": "a"},
                "annotations": {ORPHAN_ANNOTATION: "true", CONFIRM_REMOVAL_ANNOTATION: "staging/web, production/web,"},
            })
        );
        assert_eq!(read.manifest["spec"], json!({"source": {}}));
        assert!(read.is_deleting && read.is_orphan && read.has_finalizer());
        assert_eq!(read.hub(), Some("sha256:00"));
        assert_eq!(read.confirmed, ["production/web", "staging/web"].map(str::to_owned).into());
    }
}
