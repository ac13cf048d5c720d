//! The permissions that an operator needs for a change of a cluster, and the check for them.

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::core::ApiResource;
use kube::{Api, Client};
use serde_json::Value;

use crate::apply::{InstallError, ObjectRef, pruned_kinds};
use crate::registration::RegistrationAction;
use crate::{SPOKE_NAMESPACE, namespaces};

/// A permission: a verb on a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permission {
    verb: &'static str,
    group: String,
    resource: String,
    subresource: &'static str,
    /// `None` for all namespaces and for cluster-scoped resources.
    namespace: Option<String>,
}

impl Permission {
    /// A verb on a core resource in the spoke's namespace.
    pub fn in_spoke_namespace(
        verb: &'static str,
        resource: &str,
        subresource: &'static str,
    ) -> Self {
        let namespace = Some(SPOKE_NAMESPACE.to_owned());
        Self { verb, group: String::new(), resource: resource.to_owned(), subresource, namespace }
    }

    /// A verb on the object's kind, in the object's namespace.
    pub fn on_object(verb: &'static str, object: &ObjectRef) -> Self {
        Self::on_kind(verb, &object.resource, object.namespace.clone())
    }

    fn on_kind(verb: &'static str, resource: &ApiResource, namespace: Option<String>) -> Self {
        let ApiResource { group, plural, .. } = resource;
        Self { verb, group: group.clone(), resource: plural.clone(), subresource: "", namespace }
    }

    fn review(&self) -> SelfSubjectAccessReview {
        let attributes = ResourceAttributes {
            verb: Some(self.verb.to_owned()),
            group: Some(self.group.clone()),
            resource: Some(self.resource.clone()),
            subresource: Some(self.subresource.to_owned()),
            namespace: self.namespace.clone(),
            ..ResourceAttributes::default()
        };
        let spec = SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            non_resource_attributes: None,
        };
        SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() }
    }
}

impl std::fmt::Display for Permission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { verb, group, resource, subresource, namespace } = self;
        write!(f, "{verb} {resource}")?;
        if !group.is_empty() {
            write!(f, ".{group}")?;
        }
        if !subresource.is_empty() {
            write!(f, "/{subresource}")?;
        }
        match namespace {
            Some(namespace) => write!(f, " in {namespace}"),
            None => Ok(()),
        }
    }
}

/// Every permission that installing these manifests needs, and `additional` ones, without duplicates.
///
/// # Errors
/// As [`ObjectRef::from_manifest`].
pub fn installation_permissions(
    manifests: &[Value],
    additional: &[Permission],
) -> Result<Vec<Permission>, InstallError> {
    let mut all = vec![Permission::in_spoke_namespace("get", "secrets", "")];
    for manifest in manifests {
        let object = ObjectRef::from_manifest(manifest)?;
        all.extend(["create", "patch"].map(|verb| Permission::on_object(verb, &object)));
        match object.resource.kind.as_str() {
            "CustomResourceDefinition" | "Namespace" => {
                all.push(Permission::on_kind("get", &object.resource, None));
            }
            "AttestTrustPolicy" => {
                let patch = Permission::on_kind("patch", &object.resource, None);
                all.push(Permission { subresource: "status", ..patch });
            }
            _ => {}
        }
    }
    for (kind, namespace) in namespaces::listed_kinds(manifests)? {
        all.push(Permission::on_kind("list", &kind, Some(namespace)));
    }
    for kind in pruned_kinds() {
        all.extend(["list", "delete"].map(|verb| Permission::on_kind(verb, &kind, None)));
    }
    all.extend_from_slice(additional);
    let mut distinct: Vec<Permission> = Vec::new();
    for permission in all {
        if !distinct.contains(&permission) {
            distinct.push(permission);
        }
    }
    Ok(distinct)
}

/// The permissions that a registration needs beside those for its manifests.
pub fn registration_permissions(
    action: &RegistrationAction,
    superseded: &[ObjectRef],
    is_external: bool,
) -> Vec<Permission> {
    let mut needed = vec![Permission::in_spoke_namespace("list", "pods", "")];
    needed.extend(superseded.iter().map(|object| Permission::on_object("delete", object)));
    if action.joins() {
        needed.push(Permission::in_spoke_namespace("deletecollection", "pods", ""));
    }
    if *action == RegistrationAction::Rejoin {
        needed.push(Permission::in_spoke_namespace("delete", "secrets", ""));
    }
    if is_external {
        needed.push(Permission::in_spoke_namespace("create", "serviceaccounts", "token"));
    }
    needed
}

/// The permissions that a rejoin needs.
pub fn rejoin_permissions() -> [Permission; 5] {
    [
        Permission::in_spoke_namespace("get", "secrets", ""),
        Permission::in_spoke_namespace("create", "secrets", ""),
        Permission::in_spoke_namespace("patch", "secrets", ""),
        Permission::in_spoke_namespace("list", "pods", ""),
        Permission::in_spoke_namespace("deletecollection", "pods", ""),
    ]
}

/// The permissions that a change of the spoke's records needs.
pub fn record_permissions() -> [Permission; 4] {
    [
        Permission::in_spoke_namespace("list", "secrets", ""),
        Permission::in_spoke_namespace("get", "secrets", ""),
        Permission::in_spoke_namespace("update", "secrets", ""),
        Permission::in_spoke_namespace("deletecollection", "pods", ""),
    ]
}

/// The permissions among `needed` that the operator does not have.
///
/// # Errors
/// When the API server does not answer an access review.
pub async fn missing_permissions(
    client: &Client,
    needed: &[Permission],
) -> Result<Vec<Permission>, InstallError> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let answers = needed.iter().map(async |permission| {
        let answer = reviews.create(&PostParams::default(), &permission.review()).await;
        let answer = answer.map_err(|source| {
            InstallError::request("review access to", &permission.to_string(), source)
        })?;
        let is_allowed = answer.status.is_some_and(|status| status.allowed);
        Ok((!is_allowed).then(|| permission.clone()))
    });
    let missing = futures::future::try_join_all(answers).await?;
    Ok(missing.into_iter().flatten().collect())
}
