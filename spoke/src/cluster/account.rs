//! Namespace, service account and the two role bindings of an application in a destination (S1).
//!
//! The spoke may create exactly these four objects outside its own namespace, and delete all of them except
//! the namespace. An admission policy of the cluster enforces that. Every other object is written by
//! impersonating the account.

use attest_common::basics::ids::Name;
use attest_common::record::account_name;
use attest_common::record::custody::{APPLICATION_ANNOTATION, NAMESPACE_ANNOTATION};
use attest_runtime::failpoint;
use futures::future::{join, try_join};
use serde_json::{Value, json};

use super::client::{ApiServer, As, object_path};
use super::error::ApiError;
use crate::{SPOKE_NAME, SYSTEM_NAMESPACE};

/// ClusterRole that the account gets in its destination namespace.
pub const WORKLOADS_ROLE: &str = "attest-workloads";
/// ClusterRole that the spoke gets there, for its watches.
pub const READ_ROLE: &str = "attest-workloads-read";
const RBAC: &str = "rbac.authorization.k8s.io/v1";

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
        let namespace = create(api, "v1", "namespaces", None, self.namespace_object());
        let (namespace, account) = join(namespace, self.create_account(api)).await;
        namespace?;
        account?;
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
        let namespace = Some(self.namespace.as_str());
        create(api, "v1", "serviceaccounts", namespace, self.account_object()).await
    }

    async fn bind(&self, api: &ApiServer) -> Result<bool, ApiError> {
        let destination = self.destination.as_str();
        let (workloads, read) = try_join(
            create(api, RBAC, "rolebindings", Some(destination), self.workloads_binding()),
            create(api, RBAC, "rolebindings", Some(destination), self.read_binding()),
        )
        .await?;
        Ok(workloads || read)
    }

    /// Deletes account and binding of an application that does not run, and the spoke's own binding too if
    /// `alone`: no other application runs in the namespace. Objects that were changed since they were created
    /// stay. The namespace stays: it may hold objects of others, which would be deleted with it.
    ///
    /// # Errors
    /// [`ApiError`]; the next attempt can delete the rest.
    pub async fn withdraw(&self, api: &ApiServer, alone: bool) -> Result<(), ApiError> {
        let destination = Some(self.destination.as_str());
        remove(api, RBAC, "rolebindings", destination, &self.workloads_binding()).await?;
        if alone {
            remove(api, RBAC, "rolebindings", destination, &self.read_binding()).await?;
        }
        let namespace = Some(self.namespace.as_str());
        remove(api, "v1", "serviceaccounts", namespace, &self.account_object()).await
    }

    fn namespace_object(&self) -> Value {
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.destination.as_str()}})
    }

    fn account_object(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {
                "name": self.name, "namespace": self.namespace,
                "annotations": {
                    APPLICATION_ANNOTATION: self.application.as_str(),
                    NAMESPACE_ANNOTATION: self.destination.as_str(),
                },
            },
            "automountServiceAccountToken": false,
        })
    }

    fn workloads_binding(&self) -> Value {
        self.binding(&self.name, WORKLOADS_ROLE, &self.namespace, &self.name)
    }

    fn read_binding(&self) -> Value {
        self.binding(SPOKE_NAME, READ_ROLE, SYSTEM_NAMESPACE, SPOKE_NAME)
    }

    fn binding(&self, name: &str, role: &str, subject_namespace: &str, subject: &str) -> Value {
        json!({
            "apiVersion": RBAC, "kind": "RoleBinding",
            "metadata": {"name": name, "namespace": self.destination.as_str()},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": subject, "namespace": subject_namespace}],
        })
    }
}

/// Creates an object. Returns false if one of this name exists.
async fn create(
    api: &ApiServer,
    api_version: &str,
    plural: &str,
    namespace: Option<&str>,
    body: Value,
) -> Result<bool, ApiError> {
    failpoint::reach(format_args!("before-{plural}-write"));
    let created = api.create(&object_path(api_version, plural, namespace, ""), &body).await;
    failpoint::reach(format_args!("after-{plural}-write"));
    match created {
        Ok(_) => Ok(true),
        Err(error) if error.is_already_exists() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Deletes an object if it still is as the spoke created it.
async fn remove(
    api: &ApiServer,
    api_version: &str,
    plural: &str,
    namespace: Option<&str>,
    made: &Value,
) -> Result<(), ApiError> {
    let text = |object: &Value, field: &str| {
        object.pointer(field).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let path = object_path(api_version, plural, namespace, &text(made, "/metadata/name"));
    let found = api.get_optional(&path).await?.filter(|found| holds(found, made));
    let Some(found) = found else { return Ok(()) };
    match api.delete(&path, As::Spoke, &text(&found, "/metadata/uid")).await {
        Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
        // Deleted, or replaced by another object concurrently, which is not ours.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Returns whether `found` has every value of `made`. It may have more fields; lists are compared as a whole.
fn holds(found: &Value, made: &Value) -> bool {
    match (found, made) {
        (Value::Object(found), Value::Object(made)) => made
            .iter()
            .all(|(field, made)| found.get(field).is_some_and(|found| holds(found, made))),
        (Value::Array(found), Value::Array(made)) => {
            found.len() == made.len() && found.iter().zip(made).all(|(f, m)| holds(f, m))
        }
        (found, made) => found == made,
    }
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
        let at = |plural, namespace: &str, name: &str| {
            let version = if plural == "rolebindings" { RBAC } else { "v1" };
            object_path(version, plural, Some(namespace), name)
        };
        let places = [
            ("namespace", object_path("v1", "namespaces", None, "shop")),
            ("account", at("serviceaccounts", &account.namespace, &account.name)),
            ("workloads", at("rolebindings", "shop", &account.name)),
            ("read", at("rolebindings", "shop", SPOKE_NAME)),
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
        assert!(web.prepare(&api).await.unwrap(), "and is made anew");
    }

    #[tokio::test]
    async fn an_object_of_the_same_name_that_says_something_else_is_left_alone() {
        let fake = FakeApi::start().await;
        let (api, web) = (fake.open().await, account("web"));
        let mut bound = web.workloads_binding();
        let more = json!({"kind": "ServiceAccount", "name": "robot", "namespace": "shop"});
        bound["subjects"].as_array_mut().unwrap().push(more);
        let mut somebody = web.account_object();
        somebody["metadata"]["annotations"] = json!({"team": "shop"});
        let bindings = object_path(RBAC, "rolebindings", Some("shop"), "");
        let accounts = object_path("v1", "serviceaccounts", Some(&web.namespace), "");
        api.create(&bindings, &bound).await.unwrap();
        api.create(&accounts, &somebody).await.unwrap();

        web.withdraw(&api, true).await.unwrap();

        assert_eq!(names(&api, &web).await, ["account", "workloads"]);
    }
}
