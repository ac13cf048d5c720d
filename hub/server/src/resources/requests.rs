//! Requests for AttestApplications to the API server. No rules.

use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::ApiResource;
use kube::{Client, Error};
use serde_json::{Value, json};

use super::observed::{FINALIZER, ObservedResource, application_resource};
use crate::applications::crd::{API_VERSION, APPLICATION_KIND};
use crate::kubernetes::{self, FIELD_MANAGER, is_conflict};

/// Field manager of manifests that operators apply through the API of the hub.
const OPERATOR_MANAGER: &str = "attest-cli";

/// Requests for AttestApplications.
#[derive(Clone)]
pub(super) struct Requests {
    client: Client,
    resource: ApiResource,
}

impl Requests {
    pub(super) fn new(client: Client) -> Self {
        Self { client, resource: application_resource() }
    }

    /// Returns the API of all namespaces.
    pub(super) fn all(&self) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), &self.resource)
    }

    fn within(&self, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &self.resource)
    }

    /// Adds or removes the finalizer of the hub. Returns the resource as it is then; `None` when it is gone.
    ///
    /// # Errors
    /// A conflict when the resource has changed since it was observed.
    pub(super) async fn set_finalizer(
        &self,
        resource: &ObservedResource,
        is_wanted: bool,
    ) -> Result<Option<ObservedResource>, Error> {
        let others = resource.finalizers.iter().filter(|name| *name != FINALIZER).cloned();
        let all: Vec<String> = others.chain(is_wanted.then(|| FINALIZER.to_owned())).collect();
        let patch = json!({"metadata": {
            "resourceVersion": resource.resource_version, "finalizers": all,
        }});
        let parameters =
            PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let api = self.within(&resource.namespace);
        match api.patch(&resource.name, &parameters, &Patch::Merge(&patch)).await {
            Ok(patched) => Ok(Some(ObservedResource::read(&patched))),
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes the finalizer of the hub, also from a resource that has changed since it was observed.
    ///
    /// # Errors
    /// When the API server rejects it.
    pub(super) async fn remove_finalizer(&self, resource: &ObservedResource) -> Result<(), Error> {
        let api = self.within(&resource.namespace);
        let mut current = Some(resource.clone());
        while let Some(observed) = current {
            match self.set_finalizer(&observed, false).await {
                Err(error) if is_conflict(&error) => {
                    let found = api.get_opt(&resource.name).await?;
                    let found = found.map(|object| ObservedResource::read(&object));
                    current = found.filter(ObservedResource::has_finalizer);
                }
                other => return other.map(drop),
            }
        }
        Ok(())
    }

    /// Returns every resource.
    ///
    /// # Errors
    /// When the API server rejects it.
    pub(super) async fn list(&self) -> Result<Vec<ObservedResource>, Error> {
        let all = self.all().list(&ListParams::default()).await?;
        Ok(all.iter().map(ObservedResource::read).collect())
    }

    /// Writes the status of a resource.
    ///
    /// # Errors
    /// When the API server rejects it. A resource that is gone is not an error.
    pub(super) async fn write_status(
        &self,
        resource: &ObservedResource,
        status: &Value,
    ) -> Result<(), Error> {
        // With the UID, so that a resource that replaced this one keeps its own status.
        let patch = json!({
            "apiVersion": API_VERSION, "kind": APPLICATION_KIND,
            "metadata": {"name": resource.name, "namespace": resource.namespace, "uid": resource.uid},
            "status": status,
        });
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let api = self.within(&resource.namespace);
        match api.patch_status(&resource.name, &parameters, &Patch::Apply(&patch)).await {
            Err(error) if !is_not_found(&error) => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// As [`create_event`](kubernetes::create_event).
    pub(super) async fn create_event(&self, namespace: &str, event: Value) -> Result<(), Error> {
        kubernetes::create_event(&self.client, namespace, event).await
    }

    /// Applies a manifest as the operator's. Returns the resource.
    ///
    /// # Errors
    /// When the API server rejects it: an unknown field, or a contradiction.
    pub(super) async fn apply(
        &self,
        manifest: &Value,
        namespace: &str,
        name: &str,
    ) -> Result<ObservedResource, Error> {
        let parameters = PatchParams {
            field_validation: Some(kube::api::ValidationDirective::Strict),
            ..PatchParams::apply(OPERATOR_MANAGER).force()
        };
        let applied =
            self.within(namespace).patch(name, &parameters, &Patch::Apply(manifest)).await?;
        Ok(ObservedResource::read(&applied))
    }

    /// Deletes a resource; its finalizer keeps it until the application is removed. One that is gone is not an error.
    ///
    /// # Errors
    /// When the API server rejects it.
    pub(super) async fn delete(&self, namespace: &str, name: &str) -> Result<(), Error> {
        match self.within(namespace).delete(name, &DeleteParams::default()).await {
            Err(error) if !is_not_found(&error) => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

impl std::fmt::Debug for Requests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Requests").finish_non_exhaustive()
    }
}

pub(super) fn is_not_found(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code == 404)
}
