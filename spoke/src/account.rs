//! The account that writes one application's objects: its namespace, itself, and the two bindings (S1).
//!
//! The spoke may create exactly these four objects outside its own namespace; an admission policy
//! of the cluster holds it to that. Everything else is written in the account's name.

use attest_common::ids::Name;
use attest_common::record::account_name;
use futures::future::{join, try_join};
use serde_json::{Value, json};

use crate::cluster::{ApiError, ApiServer, object_path};
use crate::{ACCOUNT, NAMESPACE, failpoint};

/// ClusterRole that the account gets in its destination namespace.
pub const WORKLOADS_ROLE: &str = "attest-workloads";
/// ClusterRole that the spoke gets there, to watch.
pub const READ_ROLE: &str = "attest-workloads-read";

/// Who writes an application's objects in a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub application: Name,
    /// Where the objects go.
    pub destination: Name,
    /// Where the account lives.
    pub namespace: String,
    pub name: String,
}

impl Account {
    /// The account of an application in a destination namespace.
    pub fn new(application: &Name, destination: &Name, accounts_namespace: &str) -> Self {
        Self {
            application: application.clone(),
            destination: destination.clone(),
            namespace: accounts_namespace.to_owned(),
            name: account_name(application, destination),
        }
    }

    /// The user name that the API server knows it by.
    pub fn user(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.name)
    }

    /// Creates what is missing of namespace, account and bindings. True when a binding was made
    /// just now, so that the API server may need a moment to honour it.
    ///
    /// # Errors
    /// [`ApiError`]; what was created stays and is found next time.
    pub async fn prepare(&self, api: &ApiServer) -> Result<bool, ApiError> {
        let namespace = create(api, "v1", "namespaces", None, self.namespace_object());
        let (namespace, account) = join(namespace, self.create_account(api)).await;
        namespace?;
        account?;
        self.bind(api).await
    }

    /// Creates what is missing of account and bindings, and no namespace: what is only to be taken
    /// away needs none. True when a binding was made just now.
    ///
    /// # Errors
    /// [`ApiError`]; what was created stays and is found next time.
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
        const RBAC: &str = "rbac.authorization.k8s.io/v1";
        let workloads = self.binding(&self.name, WORKLOADS_ROLE, &self.namespace, &self.name);
        let read = self.binding(ACCOUNT, READ_ROLE, NAMESPACE, ACCOUNT);
        let (workloads, read) = try_join(
            create(api, RBAC, "rolebindings", Some(destination), workloads),
            create(api, RBAC, "rolebindings", Some(destination), read),
        )
        .await?;
        Ok(workloads || read)
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
                    "attest.continuu.ms/application": self.application.as_str(),
                    "attest.continuu.ms/namespace": self.destination.as_str(),
                },
            },
            "automountServiceAccountToken": false,
        })
    }

    fn binding(&self, name: &str, role: &str, subject_namespace: &str, subject: &str) -> Value {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": name, "namespace": self.destination.as_str()},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": subject, "namespace": subject_namespace}],
        })
    }
}

/// True when the object was created, false when there was one of this name.
async fn create(
    api: &ApiServer,
    api_version: &str,
    plural: &str,
    namespace: Option<&str>,
    body: Value,
) -> Result<bool, ApiError> {
    failpoint::reach(&format!("before-{plural}-write"));
    let created = api.create(&object_path(api_version, plural, namespace, ""), &body).await;
    failpoint::reach(&format!("after-{plural}-write"));
    match created {
        Ok(_) => Ok(true),
        Err(error) if error.is_already_exists() => Ok(false),
        Err(error) => Err(error),
    }
}
