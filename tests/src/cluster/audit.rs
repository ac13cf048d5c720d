//! Requests to an API server and their users, read from its audit log.

use std::path::{Path, PathBuf};

use anyhow::ensure;
use attest_common::basics::ids::Timestamp;
use serde::Deserialize;

/// Account of every spoke.
pub const SPOKE: &str = "system:serviceaccount:attest-spoke:attest-spoke";
/// Prefix of every spoke's user agent.
const SPOKE_AGENT: &str = "attest-spoke/";
/// Namespace of the spoke's records.
const SPOKE_NAMESPACE: &str = "attest-spoke";
/// Prefix of the namespaces of application accounts.
const APPLICATION_NAMESPACES: &str = "attest-applications";
/// Prefix of the accounts that a spoke impersonates.
const APPLICATION_ACCOUNTS: &str = "system:serviceaccount:attest-applications";

/// Logs every mutating request with its user, and every request of the spoke's own account.
pub(super) const POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
- level: Metadata
  verbs: [create, update, patch, delete, deletecollection]
- level: Metadata
  userGroups: ['system:serviceaccounts:attest-spoke']
- level: None
";

/// The audit log of one API server.
#[derive(Clone, Debug)]
pub struct AuditLog {
    path: PathBuf,
}

impl AuditLog {
    pub(super) fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Marks the present moment, for [`Self::since`].
    pub fn mark(&self) -> Mark {
        let at = Timestamp::now();
        Mark { at, after_bytes: std::fs::metadata(&self.path).map_or(0, |file| file.len()) }
    }

    /// Reads all events.
    ///
    /// # Errors
    /// When the log is malformed.
    pub fn events(&self) -> anyhow::Result<Vec<AuditEvent>> {
        self.after(0)
    }

    /// Checks that every request of a spoke used the spoke's account, and that every write of an object
    /// that is not the spoke's own used an application's account. Returns the number of application
    /// objects written.
    ///
    /// # Errors
    /// When a request breaks this rule, or when the log contains no request of a spoke.
    pub fn check_spoke_requests(&self) -> anyhow::Result<usize> {
        let events: Vec<AuditEvent> =
            self.events()?.into_iter().filter(AuditEvent::is_of_spoke).collect();
        let named = events.iter().filter(|event| event.user_agent.starts_with(SPOKE_AGENT));
        ensure!(named.count() > 0, "the audit log contains no request of a spoke");
        let mut objects = 0;
        for event in &events {
            ensure!(
                event.user.username == SPOKE && event.user_agent.starts_with(SPOKE_AGENT),
                "another client used a spoke's identity, or a spoke another identity: {event:#?}"
            );
            let object = event.object();
            if let Some(account) = &event.impersonated_user {
                let ours = account.username.starts_with(APPLICATION_ACCOUNTS);
                ensure!(ours, "the spoke impersonated {}", account.username);
                objects += usize::from(event.is_mutating() && !event.is_dry_run());
            } else if event.is_mutating() {
                ensure!(
                    object.belongs_to_the_spoke(),
                    "the spoke wrote {object:?} with its own account"
                );
            }
        }
        Ok(objects)
    }

    /// Returns the requests that arrived after a mark. The API server writes an event shortly after its
    /// answer: events that a test waits for must be polled, and an earlier one may be written after the
    /// mark.
    ///
    /// # Errors
    /// When the log is malformed.
    pub fn since(&self, mark: Mark) -> anyhow::Result<Vec<AuditEvent>> {
        let mut events = self.after(mark.after_bytes)?;
        events.retain(|event| event.request_received_timestamp >= mark.at);
        Ok(events)
    }

    fn after(&self, bytes_before: u64) -> anyhow::Result<Vec<AuditEvent>> {
        let bytes = std::fs::read(&self.path).unwrap_or_default();
        let start = usize::try_from(bytes_before)?;
        let mut events = Vec::new();
        for line in bytes.get(start..).unwrap_or_default().split_inclusive(|byte| *byte == b'\n') {
            // The last line may still be incomplete.
            if line.last() == Some(&b'\n') {
                events.push(serde_json::from_slice(line)?);
            }
        }
        Ok(events)
    }
}

/// A moment and the size of the audit log at that moment; later events are after that offset.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    at: Timestamp,
    after_bytes: u64,
}

/// A request.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditEvent {
    /// Shared by all stages of a request.
    #[serde(rename = "auditID")]
    pub audit_id: String,
    /// `ResponseComplete`, or `ResponseStarted` for a watch.
    pub stage: String,
    /// `create`, `patch`, …
    pub verb: String,
    /// Path and query.
    #[serde(rename = "requestURI")]
    pub request_uri: String,
    /// The authenticated user.
    pub user: AuditUser,
    /// The impersonated user, if any.
    pub impersonated_user: Option<AuditUser>,
    /// The object of the request.
    pub object_ref: Option<AuditObject>,
    /// The answer.
    pub response_status: Option<AuditStatus>,
    /// The client's user agent.
    #[serde(default)]
    pub user_agent: String,
    /// Time of arrival, by the clock that [`AuditLog::mark`] reads.
    pub request_received_timestamp: Timestamp,
}

/// A user of an API server.
#[derive(Clone, Debug, Deserialize)]
pub struct AuditUser {
    /// Name, like `system:serviceaccount:attest-spoke:attest-spoke`.
    #[serde(default)]
    pub username: String,
    /// Groups.
    #[serde(default)]
    pub groups: Vec<String>,
}

/// The object of a request; absent parts are empty.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuditObject {
    /// Plural resource name, like `deployments`.
    pub resource: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// API group; empty for the core group.
    pub api_group: String,
    /// Subresource, like `status`.
    pub subresource: String,
}

impl AuditObject {
    /// Returns whether the spoke may write it with its own account: Namespaces and bindings of
    /// destinations, accounts of applications, its own Secrets and its own token, and nothing else.
    fn belongs_to_the_spoke(&self) -> bool {
        let closed = ["kube-", "attest-"].iter().any(|prefix| self.namespace.starts_with(prefix));
        let parts = (self.api_group.as_str(), self.resource.as_str(), self.subresource.as_str());
        match parts {
            ("", "namespaces", "") | ("rbac.authorization.k8s.io", "rolebindings", "") => !closed,
            ("", "serviceaccounts", "") => self.namespace.starts_with(APPLICATION_NAMESPACES),
            ("", "secrets", "") => self.namespace == SPOKE_NAMESPACE,
            ("", "serviceaccounts", "token") => {
                (self.namespace.as_str(), self.name.as_str()) == (SPOKE_NAMESPACE, "attest-spoke")
            }
            _ => false,
        }
    }
}

/// The answer to a request.
#[derive(Clone, Debug, Deserialize)]
pub struct AuditStatus {
    /// HTTP status.
    #[serde(default)]
    pub code: u16,
    /// Reason of a failure.
    #[serde(default)]
    pub reason: String,
}

impl AuditEvent {
    /// Returns whether the request would change something, dry run or not.
    pub fn is_mutating(&self) -> bool {
        matches!(self.verb.as_str(), "create" | "update" | "patch" | "delete" | "deletecollection")
    }

    /// Returns whether the request is a server-side dry run, which changes nothing.
    pub fn is_dry_run(&self) -> bool {
        self.request_uri
            .split_once('?')
            .is_some_and(|(_, query)| query.split('&').any(|part| part.starts_with("dryRun=")))
    }

    /// Returns whether the API server carried the request out.
    pub fn is_success(&self) -> bool {
        self.response_status.as_ref().is_some_and(|status| (200..300).contains(&status.code))
    }

    /// The user whose rights applied: the impersonated one, if any.
    pub fn acting_user(&self) -> &str {
        &self.impersonated_user.as_ref().unwrap_or(&self.user).username
    }

    /// Returns whether a spoke made the request, judged by the user agent, by the spoke's account, or by
    /// an application's account, which only spokes use.
    pub fn is_of_spoke(&self) -> bool {
        self.user_agent.starts_with(SPOKE_AGENT)
            || self.user.username == SPOKE
            || self.acting_user().starts_with(APPLICATION_ACCOUNTS)
    }

    /// The object of the request; empty for a request without one.
    pub fn object(&self) -> AuditObject {
        self.object_ref.clone().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn event(user: &str, object: &Value) -> Value {
        json!({
            "auditID": "1", "stage": "ResponseComplete", "verb": "patch", "requestURI": "/",
            "user": {"username": SPOKE}, "impersonatedUser": {"username": user},
            "objectRef": object, "userAgent": "attest-spoke/0.1.0",
            "requestReceivedTimestamp": "2026-01-01T00:00:00Z",
        })
    }

    fn check(events: &[Value]) -> anyhow::Result<usize> {
        let file = tempfile::NamedTempFile::new()?;
        let lines: String = events.iter().map(|event| format!("{event}\n")).collect();
        std::fs::write(file.path(), lines)?;
        AuditLog::at(file.path()).check_spoke_requests()
    }

    fn as_itself(object: &Value) -> anyhow::Result<usize> {
        let mut event = event("", object);
        event.as_object_mut().unwrap().remove("impersonatedUser");
        check(&[event])
    }

    fn object(group: &str, resource: &str, namespace: &str, name: &str) -> Value {
        json!({"apiGroup": group, "resource": resource, "namespace": namespace, "name": name})
    }

    fn token(name: &str) -> Value {
        json!({"resource": "serviceaccounts", "subresource": "token",
            "namespace": "attest-spoke", "name": name})
    }

    #[test]
    fn the_spoke_writes_its_own_few_objects_as_itself_and_no_other() {
        let rbac = "rbac.authorization.k8s.io";
        for own in [
            object("", "namespaces", "", "app"),
            object("", "namespaces", "app", "app"),
            object(rbac, "rolebindings", "app", "attest-spoke"),
            object("", "serviceaccounts", "attest-applications", "web"),
            object("", "serviceaccounts", "attest-applications-shop", "web"),
            object("", "secrets", "attest-spoke", "attest-identity"),
            token("attest-spoke"),
        ] {
            assert_eq!(as_itself(&own).unwrap(), 0, "{own}");
        }
        for foreign in [
            object("apiextensions.k8s.io", "customresourcedefinitions", "", "widgets"),
            object("scheduling.k8s.io", "priorityclasses", "", "urgent"),
            object(rbac, "clusterroles", "", "attest-workloads"),
            object("", "secrets", "attest-applications", "words"),
            object("", "secrets", "app", "words"),
            object("", "configmaps", "attest-spoke", "web"),
            object("", "configmaps", "app", "web"),
            object("", "serviceaccounts", "app", "web"),
            object("", "namespaces", "kube-system", "kube-system"),
            object(rbac, "rolebindings", "attest-spoke", "attest-spoke"),
            token("default"),
        ] {
            assert!(as_itself(&foreign).is_err(), "{foreign}");
        }
    }

    #[test]
    fn objects_of_applications_are_written_as_accounts_of_applications_only() {
        let map = json!({"resource": "configmaps", "namespace": "app", "name": "web"});
        let account = "system:serviceaccount:attest-applications:web";

        assert_eq!(check(&[event(account, &map)]).unwrap(), 1);
        assert!(check(&[event("system:serviceaccount:kube-system:admin", &map)]).is_err());
        assert!(check(&[]).is_err(), "an empty log proves nothing");
    }
}
