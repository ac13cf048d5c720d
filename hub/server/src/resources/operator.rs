//! Changes that operators make through the API of the hub, where applications are resources: the hub writes the resource
//! for them, and reads what it accepted.

use std::collections::BTreeSet;
use std::sync::Arc;

use attest_common::basics::reason::Reason;
use attest_common::documents::annotations::CONFIRM_REMOVAL_ANNOTATION;
use serde_json::{Value, json};

use super::custodian::Custodian;
use crate::applications::rules::{self, ApplicationError, ApplyRequest, Outcome, Removal};
use crate::core::blocking::blocking;
use crate::core::store::records::ApplicationRecord;

impl Custodian {
    /// Writes the resource of a manifest and accepts it.
    ///
    /// # Errors
    /// When the rules reject the manifest, nothing is written. The API server may reject it too.
    pub(crate) async fn apply_manifest(
        self: &Arc<Self>,
        manifest: Value,
        removal: Removal,
    ) -> Result<(ApplicationRecord, Outcome), OperatorError> {
        let request = ApplyRequest { manifest: manifest.clone(), removal, uid: None };
        let checked = blocking(self, move |custodian| {
            rules::check(custodian.core(), custodian.urls(), &request)
        });
        let checked = checked.await?;
        let written = with_confirmation(manifest, &checked.namespace, &checked.leaving);
        let name = checked.name.as_str();
        let resource = self.requests.apply(&written, &checked.namespace, name).await?;
        let (record, outcome) = self.apply_resource(resource).await?;
        let outcome = match checked.previous {
            None => Outcome::Created,
            Some(previous) if previous.manifest.get("spec") == record.manifest.get("spec") => {
                outcome
            }
            Some(_) => Outcome::Configured,
        };
        Ok((record, outcome))
    }

    /// Deletes the resource of an application, which orders its removal from every destination.
    ///
    /// # Errors
    /// When the application does not exist or may not be removed, nothing is deleted.
    pub(crate) async fn delete_application(
        self: &Arc<Self>,
        name: &str,
    ) -> Result<ApplicationRecord, OperatorError> {
        let found = name.to_owned();
        let record = blocking(self, move |custodian| rules::removable(custodian.core(), &found));
        let namespace = record.await?.application.namespace;
        self.requests.delete(&namespace, name).await?;
        let removed = name.to_owned();
        Ok(blocking(self, move |custodian| rules::remove(custodian.core(), &removed)).await?)
    }

    /// Removes the finalizer from every resource of this hub, and the hub's key id from their statuses. From then on, the hub
    /// does not change resources until it starts again. Everything keeps running. Returns the number of resources.
    ///
    /// # Errors
    /// When the API server rejects a request; repeating it continues.
    pub(crate) async fn release_all(self: &Arc<Self>) -> Result<usize, OperatorError> {
        self.set_released();
        let mut released = 0;
        for resource in self.requests.list().await? {
            if resource.hub().is_some_and(|hub| hub != self.hub()) {
                continue;
            }
            let mut status = resource.status.clone();
            if let Value::Object(fields) = &mut status
                && fields.remove("hub").is_some()
            {
                self.requests.write_status(&resource, &status).await?;
            }
            if resource.has_finalizer() {
                self.requests.remove_finalizer(&resource).await?;
            }
            released += 1;
        }
        Ok(released)
    }
}

/// Returns a manifest with its namespace, and with the destinations whose removal the operator has confirmed.
fn with_confirmation(mut manifest: Value, namespace: &str, leaving: &BTreeSet<String>) -> Value {
    if let Some(Value::Object(metadata)) = manifest.get_mut("metadata") {
        metadata.insert("namespace".to_owned(), namespace.into());
        if !leaving.is_empty() {
            let places: Vec<&str> = leaving.iter().map(String::as_str).collect();
            let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
            if let Value::Object(annotations) = annotations {
                annotations.insert(CONFIRM_REMOVAL_ANNOTATION.to_owned(), places.join(",").into());
            }
        }
    }
    manifest
}

/// Failure of a change that an operator requested.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OperatorError {
    #[error(transparent)]
    Application(#[from] ApplicationError),
    #[error("the API server of the hub rejected the resource")]
    Request(#[from] kube::Error),
}

impl OperatorError {
    /// Returns the reason to show.
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::Application(error) => error.reason(),
            Self::Request(kube::Error::Api(_)) => Reason::ResourceRejected,
            Self::Request(_) => Reason::ApiServerUnreachable,
        }
    }
}
