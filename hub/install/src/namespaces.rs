//! The check for foreign objects in the namespaces that an installation reserves.
//!
//! The creator of `attest-spoke` could have left a binding there that grants access to the spoke's key, or an
//! account whose token they hold. This module reports what it finds; the caller decides what follows.

use std::collections::BTreeSet;

use attest_common::basics::ids::Name;
use attest_common::record::account_name;
use attest_common::trust::policy::ACCOUNTS_NAMESPACE;
use kube::api::{DynamicObject, ListParams};
use kube::core::ApiResource;
use kube::{Api, Client};
use serde_json::Value;

use super::apply::{InstallError, ObjectRef, api_resource, object_names};
use super::{FIELD_MANAGER, KINDS_LABEL, MANAGED_BY_LABEL, SPOKE_NAMESPACE};

/// Kinds that grant access to the contents of a namespace, with the field selector of the relevant objects.
const ACCESS_KINDS: [(&str, &str); 3] = [
    ("RoleBinding", ""),
    ("ServiceAccount", ""),
    ("Secret", "type=kubernetes.io/service-account-token"),
];
/// The account that Kubernetes creates in every namespace.
const DEFAULT_ACCOUNT: &str = "default";

/// An object in a reserved namespace, or the namespace itself, that is not part of an installation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ForeignObject {
    /// The namespace itself.
    Namespace(String),
    /// An object in it.
    Object { namespace: String, kind: String, name: String },
}

impl ForeignObject {
    /// Returns true for a namespace: nothing in it can be attributed to an installation.
    pub fn is_namespace(&self) -> bool {
        matches!(self, Self::Namespace(_))
    }
}

impl std::fmt::Display for ForeignObject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Namespace(name) => write!(
                f,
                "namespace {name} was not created by an installation; delete it, or check that no other party \
                 has permissions in it and run `kubectl label namespace {name} {MANAGED_BY_LABEL}={FIELD_MANAGER}`"
            ),
            Self::Object { namespace, kind, name } => write!(
                f,
                "{kind}/{namespace}/{name} is not part of the installation and may grant access to it; delete \
                 it, or the namespace {namespace}"
            ),
        }
    }
}

/// The namespaces of these manifests that are reserved for ATTEST.
fn reserved_namespaces(manifests: &[Value]) -> Result<Vec<ObjectRef>, InstallError> {
    let objects = manifests.iter().map(ObjectRef::from_manifest).collect::<Result<Vec<_>, _>>()?;
    Ok(objects.into_iter().filter(is_reserved).collect())
}

fn is_reserved(object: &ObjectRef) -> bool {
    object.resource.kind == "Namespace"
        && (object.name == SPOKE_NAMESPACE || object.name.starts_with(ACCOUNTS_NAMESPACE))
}

/// Kinds that [`foreign_objects`] lists, each with a namespace.
///
/// # Errors
/// As [`ObjectRef::from_manifest`].
pub fn listed_kinds(manifests: &[Value]) -> Result<Vec<(ApiResource, String)>, InstallError> {
    let mut listed = Vec::new();
    for namespace in reserved_namespaces(manifests)? {
        let kinds = ACCESS_KINDS.iter().filter_map(|(kind, _)| api_resource(kind));
        listed.extend(kinds.map(|(resource, _)| (resource, namespace.name.clone())));
    }
    Ok(listed)
}

/// Foreign objects in the reserved namespaces of these manifests. A namespace that does not exist holds none.
///
/// # Errors
/// The first request that the API server rejects.
pub async fn foreign_objects(
    client: &Client,
    manifests: &[Value],
) -> Result<BTreeSet<ForeignObject>, InstallError> {
    let wanted = object_names(manifests)?;
    let mut found = BTreeSet::new();
    for reserved in reserved_namespaces(manifests)? {
        let namespace = reserved.api(client).get_opt(&reserved.name).await;
        let namespace = namespace.map_err(|e| InstallError::on_object("read", &reserved, e))?;
        let Some(namespace) = namespace else { continue };
        if label(&namespace, MANAGED_BY_LABEL) != Some(FIELD_MANAGER) {
            found.insert(ForeignObject::Namespace(reserved.name));
            continue;
        }
        for (kind, selector) in ACCESS_KINDS {
            let Some((resource, _)) = api_resource(kind) else { continue };
            let all: Api<DynamicObject> =
                Api::namespaced_with(client.clone(), &reserved.name, &resource);
            let listed = all.list(&ListParams::default().fields(selector)).await;
            let listed = listed.map_err(|e| InstallError::request("list", &resource.plural, e))?;
            for object in listed {
                let reference = ObjectRef {
                    resource: resource.clone(),
                    namespace: Some(reserved.name.clone()),
                    name: object.metadata.name.clone().unwrap_or_default(),
                };
                if !wanted.contains(&reference.to_string()) && !is_known(&reference, &object) {
                    found.insert(ForeignObject::Object {
                        namespace: reserved.name.clone(),
                        kind: kind.to_owned(),
                        name: reference.name,
                    });
                }
            }
        }
    }
    Ok(found)
}

/// Returns true for an object that is not among the manifests and belongs to an installation nevertheless.
fn is_known(reference: &ObjectRef, object: &DynamicObject) -> bool {
    match reference.resource.kind.as_str() {
        // Pruned by the installation, because the policy no longer needs it.
        "RoleBinding" => label(object, KINDS_LABEL) == Some("true"),
        "ServiceAccount" => {
            let in_accounts = reference.namespace.as_deref() != Some(SPOKE_NAMESPACE);
            reference.name == DEFAULT_ACCOUNT
                || in_accounts && is_application_account(&reference.name, object)
        }
        _ => false,
    }
}

/// Returns true for an account whose annotations name the application for which it is called so.
fn is_application_account(name: &str, account: &DynamicObject) -> bool {
    let application = annotated_name(account, "attest.continuu.ms/application");
    let namespace = annotated_name(account, "attest.continuu.ms/namespace");
    application
        .zip(namespace)
        .is_some_and(|(application, namespace)| account_name(&application, &namespace) == name)
}

fn annotated_name(object: &DynamicObject, annotation: &str) -> Option<Name> {
    let value = object.metadata.annotations.as_ref()?.get(annotation)?;
    Name::new(value.clone()).ok()
}

fn label<'a>(object: &'a DynamicObject, key: &str) -> Option<&'a str> {
    object.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn is_known_in(namespace: &str, kind: &str, metadata: &Value) -> bool {
        let (resource, _) = api_resource(kind).unwrap();
        let name = metadata["name"].as_str().unwrap().to_owned();
        let reference = ObjectRef { resource, namespace: Some(namespace.to_owned()), name };
        let object = json!({"metadata": metadata});
        is_known(&reference, &serde_json::from_value(object).unwrap())
    }

    fn web_annotations(namespace: &str) -> Value {
        json!({"attest.continuu.ms/application": "web", "attest.continuu.ms/namespace": namespace})
    }

    fn plain(name: &str) -> Value {
        json!({"name": name})
    }

    #[test]
    fn accounts_of_applications_belong_where_they_live_and_tokens_for_others_nowhere() {
        let web = json!({"name": "a-web-shop", "annotations": web_annotations("shop")});
        let other = json!({"name": "a-web-shop", "annotations": web_annotations("elsewhere")});
        let pruned = json!({"name": "old", "labels": {KINDS_LABEL: "true"}});

        for (namespace, kind, metadata, expected) in [
            ("attest-applications", "ServiceAccount", &web, true),
            ("attest-applications", "ServiceAccount", &other, false),
            ("attest-applications", "ServiceAccount", &plain("a-web-shop"), false),
            ("attest-spoke", "ServiceAccount", &web, false),
            ("attest-spoke", "ServiceAccount", &plain("default"), true),
            ("attest-applications", "RoleBinding", &pruned, true),
            ("attest-spoke", "RoleBinding", &plain("readers"), false),
            ("attest-spoke", "Secret", &plain("spoke-token"), false),
        ] {
            let known = is_known_in(namespace, kind, metadata);
            assert_eq!(known, expected, "{kind}/{namespace} {metadata}");
        }
    }
}
