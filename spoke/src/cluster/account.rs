//! Namespace, service account and the two role bindings of an application in a destination (S1).
//!
//! The spoke may create exactly these four objects outside its own namespace, and delete all of them except
//! the namespace. An admission policy of the cluster enforces that. Every other object is written by
//! impersonating the account.

use std::collections::BTreeMap;

use attest_common::basics::ids::Name;
use attest_common::record::account_name;
use attest_common::record::custody::{APPLICATION_ANNOTATION, NAMESPACE_ANNOTATION};
use attest_runtime::failpoint;
use futures::future::{join, try_join};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{RoleBinding, RoleRef, Subject};
use k8s_openapi::{Metadata, Resource as _};
use kube::api::ObjectMeta;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::client::{ApiServer, As, path_of};
use super::error::ApiError;
use crate::{SPOKE_NAME, SPOKE_NAMESPACE};

/// ClusterRole that the account gets in its destination namespace.
pub const WORKLOADS_ROLE: &str = "attest-workloads";
/// ClusterRole that the spoke gets there, for its watches.
pub const READ_ROLE: &str = "attest-workloads-read";

/// The service account that writes an application's objects in a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub application: Name,
    /// Namespace of the objects.
    pub destination: Name,
    /// Namespace of the account.
    pub namespace: String,
    pub name: String,
}

impl Account {
    /// Returns the account of an application in a destination namespace.
    pub fn new(application: &Name, destination: &Name, accounts_namespace: &str) -> Self {
        Self {
            application: application.clone(),
            destination: destination.clone(),
            namespace: accounts_namespace.to_owned(),
            name: account_name(application, destination),
        }
    }

    /// Returns the user name of the account at the API server.
    pub fn user(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.name)
    }

    /// Creates the missing ones of namespace, account and bindings. Returns whether a binding was created,
    /// so that the API server may need a moment to apply it.
    ///
    /// # Errors
    /// [`ApiError`]; objects that were created stay and are found by the next attempt.
    pub async fn prepare(&self, api: &ApiServer) -> Result<bool, ApiError> {
        let namespace = self.namespace_object();
        let created = join(create(api, &namespace), self.create_account(api)).await;
        created.0?;
        created.1?;
        self.bind(api).await
    }

    /// Creates the missing ones of account and bindings, but no namespace: a removal needs none. Returns
    /// whether a binding was created.
    ///
    /// # Errors
    /// [`ApiError`]; objects that were created stay and are found by the next attempt.
    pub async fn restore_rights(&self, api: &ApiServer) -> Result<bool, ApiError> {
        self.create_account(api).await?;
        self.bind(api).await
    }

    async fn create_account(&self, api: &ApiServer) -> Result<bool, ApiError> {
        create(api, &self.account_object()).await
    }

    async fn bind(&self, api: &ApiServer) -> Result<bool, ApiError> {
        let (workloads, read) = (self.workloads_binding(), self.read_binding());
        let (workloads, read) = try_join(create(api, &workloads), create(api, &read)).await?;
        Ok(workloads || read)
    }

    /// Deletes account and binding of an application that does not run, and the spoke's own binding too if
    /// `alone`: no other application runs in the namespace. Objects that were changed since they were created
    /// stay. The namespace stays: it may hold objects of others, which would be deleted with it.
    ///
    /// # Errors
    /// [`ApiError`]; the next attempt can delete the rest.
    pub async fn withdraw(&self, api: &ApiServer, alone: bool) -> Result<(), ApiError> {
        remove(api, &self.workloads_binding(), is_same_binding).await?;
        if alone {
            remove(api, &self.read_binding(), is_same_binding).await?;
        }
        remove(api, &self.account_object(), is_same_account).await
    }

    fn namespace_object(&self) -> Namespace {
        let metadata = named(self.destination.as_str(), None);
        Namespace { metadata, ..Namespace::default() }
    }

    fn account_object(&self) -> ServiceAccount {
        let annotations = BTreeMap::from([
            (APPLICATION_ANNOTATION.to_owned(), self.application.to_string()),
            (NAMESPACE_ANNOTATION.to_owned(), self.destination.to_string()),
        ]);
        let metadata = named(&self.name, Some(&self.namespace));
        ServiceAccount {
            metadata: ObjectMeta { annotations: Some(annotations), ..metadata },
            automount_service_account_token: Some(false),
            ..ServiceAccount::default()
        }
    }

    fn workloads_binding(&self) -> RoleBinding {
        self.binding(&self.name, WORKLOADS_ROLE, &self.namespace, &self.name)
    }

    fn read_binding(&self) -> RoleBinding {
        self.binding(SPOKE_NAME, READ_ROLE, SPOKE_NAMESPACE, SPOKE_NAME)
    }

    fn binding(
        &self,
        name: &str,
        role: &str,
        subject_namespace: &str,
        subject: &str,
    ) -> RoleBinding {
        RoleBinding {
            metadata: named(name, Some(self.destination.as_str())),
            role_ref: RoleRef {
                api_group: Some(RoleBinding::GROUP.to_owned()),
                kind: "ClusterRole".to_owned(),
                name: role.to_owned(),
            },
            subjects: Some(vec![Subject {
                kind: "ServiceAccount".to_owned(),
                name: subject.to_owned(),
                namespace: Some(subject_namespace.to_owned()),
                api_group: None,
            }]),
        }
    }
}

fn named(name: &str, namespace: Option<&str>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: namespace.map(str::to_owned),
        ..ObjectMeta::default()
    }
}

/// Creates an object. Returns false if one of this name exists.
async fn create<K>(api: &ApiServer, object: &K) -> Result<bool, ApiError>
where
    K: Metadata<Ty = ObjectMeta> + Serialize + DeserializeOwned,
{
    let plural = K::URL_PATH_SEGMENT;
    let collection = path_of::<K>(object.metadata().namespace.as_deref(), "");
    failpoint::reach(format_args!("before-{plural}-write"));
    let created = api.create(&collection, object).await;
    failpoint::reach(format_args!("after-{plural}-write"));
    match created {
        Ok(_) => Ok(true),
        Err(error) if error.is_already_exists() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Deletes the object of this name if `is_same` holds for it and `created`; any other belongs to another owner.
async fn remove<K>(
    api: &ApiServer,
    created: &K,
    is_same: impl FnOnce(&K, &K) -> bool,
) -> Result<(), ApiError>
where
    K: Metadata<Ty = ObjectMeta> + DeserializeOwned,
{
    let ObjectMeta { name, namespace, .. } = created.metadata();
    let path = path_of::<K>(namespace.as_deref(), name.as_deref().unwrap_or_default());
    let found: Option<K> = api.read_optional(&path).await?;
    let Some(found) = found.filter(|found| is_same(found, created)) else { return Ok(()) };
    let uid = found.metadata().uid.as_deref().unwrap_or_default();
    match api.delete(&path, As::Spoke, uid).await {
        Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
        // Deleted, or replaced by another object of the name, which is not ours.
        Ok(_) | Err(_) => Ok(()),
    }
}

fn is_same_binding(found: &RoleBinding, created: &RoleBinding) -> bool {
    found.role_ref == created.role_ref && found.subjects == created.subjects
}

/// Further annotations are allowed.
fn is_same_account(found: &ServiceAccount, created: &ServiceAccount) -> bool {
    let annotation = |name| found.metadata.annotations.as_ref()?.get(name);
    let mut expected = created.metadata.annotations.iter().flatten();
    found.automount_service_account_token == created.automount_service_account_token
        && expected.all(|(name, value)| annotation(name) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::fake::FakeApi;

    fn account(application: &str) -> Account {
        let name = |name| Name::new(name).unwrap();
        Account::new(&name(application), &name("shop"), "attest-applications")
    }

    async fn names(api: &ApiServer, account: &Account) -> Vec<&'static str> {
        let places = [
            ("namespace", path_of::<Namespace>(None, "shop")),
            ("account", path_of::<ServiceAccount>(Some(&account.namespace), &account.name)),
            ("workloads", path_of::<RoleBinding>(Some("shop"), &account.name)),
            ("read", path_of::<RoleBinding>(Some("shop"), SPOKE_NAME)),
        ];
        let mut there = Vec::new();
        for (what, path) in places {
            there.extend(api.get_optional(&path).await.unwrap().map(|_| what));
        }
        there
    }

    #[tokio::test]
    async fn what_was_made_for_an_application_goes_again_but_never_the_namespace() {
        let fake = FakeApi::start().await;
        let (api, web, other) = (fake.open().await, account("web"), account("other"));
        web.prepare(&api).await.unwrap();
        other.prepare(&api).await.unwrap();

        web.withdraw(&api, false).await.unwrap();

        assert_eq!(names(&api, &web).await, ["namespace", "read"]);
        assert_eq!(names(&api, &other).await, ["namespace", "account", "workloads", "read"]);
        other.withdraw(&api, true).await.unwrap();
        assert_eq!(names(&api, &other).await, ["namespace"]);
        other.withdraw(&api, true).await.unwrap();
        assert!(web.prepare(&api).await.unwrap(), "and is created again");
    }

    #[tokio::test]
    async fn an_object_of_the_same_name_that_says_something_else_is_left_alone() {
        let fake = FakeApi::start().await;
        let (api, web) = (fake.open().await, account("web"));
        let mut bound = web.workloads_binding();
        let subjects = bound.subjects.as_mut().unwrap();
        subjects.push(Subject { name: "robot".to_owned(), ..subjects[0].clone() });
        let mut somebody = web.account_object();
        somebody.metadata.annotations = Some([("team".to_owned(), "shop".to_owned())].into());
        let bindings = path_of::<RoleBinding>(Some("shop"), "");
        let accounts = path_of::<ServiceAccount>(Some(&web.namespace), "");
        api.create(&bindings, &bound).await.unwrap();
        api.create(&accounts, &somebody).await.unwrap();

        web.withdraw(&api, true).await.unwrap();

        assert_eq!(names(&api, &web).await, ["account", "workloads"]);
    }
}
