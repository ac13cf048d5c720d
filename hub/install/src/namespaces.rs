//! Whether the namespaces that are to be ours are nobody else's: what stands in them before an installation.
//!
//! Whoever made `attest-system` could leave a binding there by which to read the spoke's key, or an account
//! whose token they hold. Looks and judges; what follows from it is up to the caller.

use std::collections::BTreeSet;

use attest_common::basics::ids::Name;
use attest_common::record::account_name;
use attest_common::trust::policy::ACCOUNTS_NAMESPACE;
use kube::api::{DynamicObject, ListParams};
use kube::core::ApiResource;
use kube::{Api, Client};
use serde_json::Value;

use super::apply::{InstallError, Target, resource};
use super::{FIELD_MANAGER, KINDS_LABEL, MANAGED_BY_LABEL, SYSTEM_NAMESPACE};

/// Kinds by which somebody could reach what is in a namespace, and which of their objects are listed.
const LOOKED_AT: [(&str, &str); 3] = [
    ("RoleBinding", ""),
    ("ServiceAccount", ""),
    ("Secret", "type=kubernetes.io/service-account-token"),
];
/// Every namespace has it.
const DEFAULT_ACCOUNT: &str = "default";

/// Something that was there before and is not of an installation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stranger {
    /// The namespace itself.
    Namespace(String),
    /// An object in it.
    Object { namespace: String, kind: String, name: String },
}

impl Stranger {
    /// True when nothing in the namespace can be taken for ours.
    pub fn is_namespace(&self) -> bool {
        matches!(self, Self::Namespace(_))
    }
}

impl std::fmt::Display for Stranger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Namespace(name) => write!(
                f,
                "namespace {name} was not made by an installation: delete it, or once you have seen \
                 that nobody else has rights in it, `kubectl label namespace {name} \
                 {MANAGED_BY_LABEL}={FIELD_MANAGER}`"
            ),
            Self::Object { namespace, kind, name } => write!(
                f,
                "{kind}/{namespace}/{name} is not of the installation and may open it to others: delete \
                 it, or the namespace {namespace}"
            ),
        }
    }
}

/// The namespaces of these manifests that are for us alone.
fn ours(manifests: &[Value]) -> Result<Vec<Target>, InstallError> {
    let targets = manifests.iter().map(Target::of).collect::<Result<Vec<_>, _>>()?;
    let is_ours = |target: &Target| {
        target.resource.kind == "Namespace"
            && (target.name == SYSTEM_NAMESPACE || target.name.starts_with(ACCOUNTS_NAMESPACE))
    };
    Ok(targets.into_iter().filter(is_ours).collect())
}

/// What [`strangers`] lists, and where.
///
/// # Errors
/// As [`Target::of`].
pub fn listed(manifests: &[Value]) -> Result<Vec<(ApiResource, String)>, InstallError> {
    let kinds = || LOOKED_AT.iter().filter_map(|(kind, _)| resource(kind));
    let ours = ours(manifests)?;
    let all = ours.iter().flat_map(|ours| kinds().map(|(kind, _)| (kind, ours.name.clone())));
    Ok(all.collect())
}

/// What there is in our namespaces that an installation of these manifests does not know. A namespace
/// that does not exist yet holds nothing.
///
/// # Errors
/// The first request that the API server refuses.
pub async fn strangers(
    client: &Client,
    manifests: &[Value],
) -> Result<BTreeSet<Stranger>, InstallError> {
    let wanted = manifests.iter().map(Target::of).collect::<Result<Vec<_>, _>>()?;
    let wanted: BTreeSet<String> = wanted.iter().map(ToString::to_string).collect();
    let mut found = BTreeSet::new();
    for target in ours(manifests)? {
        let refused = |source| InstallError::refused(&target, source);
        let namespace = target.api(client).get_opt(&target.name).await.map_err(refused)?;
        let Some(namespace) = namespace else { continue };
        if label(&namespace, MANAGED_BY_LABEL) != Some(FIELD_MANAGER) {
            found.insert(Stranger::Namespace(target.name));
            continue;
        }
        for (kind, selected) in LOOKED_AT {
            let Some((resource, _)) = resource(kind) else { continue };
            let all: Api<DynamicObject> =
                Api::namespaced_with(client.clone(), &target.name, &resource);
            let there = all.list(&ListParams::default().fields(selected)).await;
            for object in there.map_err(refused)? {
                let name = object.metadata.name.clone().unwrap_or_default();
                let here = Target {
                    resource: resource.clone(),
                    namespace: Some(target.name.clone()),
                    name: name.clone(),
                };
                if !wanted.contains(&here.to_string()) && !is_known(kind, &here, &object) {
                    let (namespace, kind) = (target.name.clone(), kind.to_owned());
                    found.insert(Stranger::Object { namespace, kind, name });
                }
            }
        }
    }
    Ok(found)
}

/// Whether an object that is not among the manifests belongs there all the same.
fn is_known(kind: &str, target: &Target, object: &DynamicObject) -> bool {
    match kind {
        // The installation takes it away, because the policy has no use for it any more.
        "RoleBinding" => label(object, KINDS_LABEL) == Some("true"),
        "ServiceAccount" => {
            let annotations = object.metadata.annotations.as_ref();
            let noted = |key: &str| {
                let value =
                    annotations.and_then(|all| all.get(&format!("attest.continuu.ms/{key}")));
                value.and_then(|value| Name::new(value.clone()).ok())
            };
            let made_for = noted("application").zip(noted("namespace"));
            let is_application = made_for.is_some_and(|(application, namespace)| {
                account_name(&application, &namespace) == target.name
            });
            let in_accounts = target.namespace.as_deref() != Some(SYSTEM_NAMESPACE);
            target.name == DEFAULT_ACCOUNT || in_accounts && is_application
        }
        _ => false,
    }
}

fn label<'a>(object: &'a DynamicObject, key: &str) -> Option<&'a str> {
    object.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn is_known_in(namespace: &str, kind: &str, metadata: &Value) -> bool {
        let (resource, _) = resource(kind).unwrap();
        let name = metadata["name"].as_str().unwrap().to_owned();
        let target = Target { resource, namespace: Some(namespace.to_owned()), name };
        let object = json!({"metadata": metadata});
        is_known(kind, &target, &serde_json::from_value(object).unwrap())
    }

    #[test]
    fn accounts_of_applications_belong_where_they_live_and_tokens_for_others_nowhere() {
        let annotations = |namespace: &str| json!({"attest.continuu.ms/application": "web", "attest.continuu.ms/namespace": namespace});
        let web = json!({"name": "a-web-shop", "annotations": annotations("shop")});
        let other = json!({"name": "a-web-shop", "annotations": annotations("elsewhere")});
        let pruned = json!({"name": "old", "labels": {KINDS_LABEL: "true"}});
        let plain = |name: &str| json!({"name": name});

        for (namespace, kind, metadata, expected) in [
            ("attest-applications", "ServiceAccount", &web, true),
            ("attest-applications", "ServiceAccount", &other, false),
            ("attest-applications", "ServiceAccount", &plain("a-web-shop"), false),
            ("attest-system", "ServiceAccount", &web, false),
            ("attest-system", "ServiceAccount", &plain("default"), true),
            ("attest-applications", "RoleBinding", &pruned, true),
            ("attest-system", "RoleBinding", &plain("readers"), false),
            ("attest-system", "Secret", &plain("spoke-token"), false),
        ] {
            let known = is_known_in(namespace, kind, metadata);
            assert_eq!(known, expected, "{kind}/{namespace} {metadata}");
        }
    }
}
