//! What an API server was asked to do, and by whom, read from its audit log.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Every mutating request with its user, and every request of the spoke's own account.
pub(super) const POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
- level: Metadata
  verbs: [create, update, patch, delete, deletecollection]
- level: Metadata
  userGroups: ['system:serviceaccounts:attest-system']
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

    /// The place after the last event so far, for [`Self::since`].
    pub fn mark(&self) -> Mark {
        Mark(std::fs::metadata(&self.path).map_or(0, |file| file.len()))
    }

    /// All events.
    ///
    /// # Errors
    /// When the log holds something else.
    pub fn events(&self) -> anyhow::Result<Vec<AuditEvent>> {
        self.since(Mark::default())
    }

    /// The events after a mark. The API server writes an event just after its answer, so one that a
    /// test waits for has to be polled.
    ///
    /// # Errors
    /// When the log holds something else.
    pub fn since(&self, mark: Mark) -> anyhow::Result<Vec<AuditEvent>> {
        let bytes = std::fs::read(&self.path).unwrap_or_default();
        let start = usize::try_from(mark.0)?;
        let mut events = Vec::new();
        for line in bytes.get(start..).unwrap_or_default().split_inclusive(|byte| *byte == b'\n') {
            // A line that is still being written has no end yet.
            if line.last() == Some(&b'\n') {
                events.push(serde_json::from_slice(line)?);
            }
        }
        Ok(events)
    }
}

/// A place in an audit log.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mark(u64);

/// One request.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditEvent {
    /// Groups the stages of one request.
    #[serde(rename = "auditID")]
    pub audit_id: String,
    /// `ResponseComplete`, or `ResponseStarted` of a watch.
    pub stage: String,
    /// `create`, `patch`, …
    pub verb: String,
    /// Path and query.
    #[serde(rename = "requestURI")]
    pub request_uri: String,
    /// Whose credentials were used.
    pub user: AuditUser,
    /// As whom the request was made, when that is somebody else.
    pub impersonated_user: Option<AuditUser>,
    /// What it was about.
    pub object_ref: Option<AuditObject>,
    /// How it was answered.
    pub response_status: Option<AuditStatus>,
    /// The client's own description.
    #[serde(default)]
    pub user_agent: String,
    /// When it arrived, RFC 3339 with microseconds.
    pub request_received_timestamp: String,
}

/// A user of an API server.
#[derive(Clone, Debug, Deserialize)]
pub struct AuditUser {
    /// Its name, like `system:serviceaccount:attest-system:attest-spoke`.
    #[serde(default)]
    pub username: String,
    /// Its groups.
    #[serde(default)]
    pub groups: Vec<String>,
}

/// What a request was about; absent parts are empty.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuditObject {
    /// Plural, like `deployments`.
    pub resource: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// API group; empty for the core group.
    pub api_group: String,
    /// Like `status`.
    pub subresource: String,
}

/// How a request was answered.
#[derive(Clone, Debug, Deserialize)]
pub struct AuditStatus {
    /// HTTP status.
    #[serde(default)]
    pub code: u16,
    /// Reason of a refusal.
    #[serde(default)]
    pub reason: String,
}

impl AuditEvent {
    /// True when it would change something, dry run or not.
    pub fn is_mutating(&self) -> bool {
        matches!(self.verb.as_str(), "create" | "update" | "patch" | "delete" | "deletecollection")
    }

    /// True for a server-side dry run, which changes nothing.
    pub fn is_dry_run(&self) -> bool {
        self.request_uri
            .split_once('?')
            .is_some_and(|(_, query)| query.split('&').any(|part| part.starts_with("dryRun=")))
    }

    /// True when the API server did it.
    pub fn is_success(&self) -> bool {
        self.response_status.as_ref().is_some_and(|status| (200..300).contains(&status.code))
    }

    /// The user whose rights were used: the impersonated one, when there is one.
    pub fn acting_user(&self) -> &str {
        &self.impersonated_user.as_ref().unwrap_or(&self.user).username
    }

    /// What it was about; empty when it was about no object.
    pub fn object(&self) -> AuditObject {
        self.object_ref.clone().unwrap_or_default()
    }
}
