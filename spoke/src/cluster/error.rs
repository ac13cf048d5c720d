//! Errors of the connection to the API server and of requests to it.

use std::path::PathBuf;
use std::time::Duration;

use attest_common::basics::reason::Reason;
use serde_json::Value;

/// Longest time that a request other than a watch may take.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Error of the credentials or the client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
    #[error("cannot use kubeconfig {}", .path.display())]
    Kubeconfig {
        path: PathBuf,
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    #[error("cannot read kubeconfig {}", .path.display())]
    KubeconfigFile {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot read or write credentials")]
    KubeconfigWrite {
        #[source]
        source: attest_certs::BundleError,
    },
    #[error("not in a cluster: {missing} is missing; give --kubeconfig FILE")]
    NotInCluster { missing: String },
    #[error("cannot prepare the Kubernetes client")]
    Client(#[source] Box<kube::Error>),
    #[error("the API server refused")]
    Api(#[source] ApiError),
    #[error("the API server answered without a token")]
    TokenMissing,
}

impl ClusterError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Kubeconfig { .. } | Self::KubeconfigFile { .. } => Reason::Kubeconfig,
            Self::KubeconfigWrite { .. } => Reason::Credentials,
            Self::NotInCluster { .. } => Reason::NotInCluster,
            Self::Client(_) => Reason::KubernetesClient,
            Self::Api(error) => error.reason(),
            Self::TokenMissing => Reason::TokenMissing,
        }
    }
}

/// Error of one request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    #[error("{verb} {path}: {code} {message}")]
    Status {
        verb: &'static str,
        path: String,
        code: u16,
        status_reason: String,
        message: String,
        details: Details,
    },
    #[error("{verb} {path}: no answer within {} s", REQUEST_TIMEOUT.as_secs())]
    Timeout { verb: &'static str, path: String },
    #[error("{verb} {path}: the API server cannot be reached")]
    Transport {
        verb: &'static str,
        path: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("{verb} {path}: the answer cannot be read")]
    Unreadable {
        verb: &'static str,
        path: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("{path}: {message}")]
    Request { path: String, message: String },
}

/// Text of the API server's answer to an apply that names a UID if no object exists; no field shows it.
const UID_MISMATCH: &str = "uid mismatch";

/// Details of a rejection beyond its code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// The response names the object.
    pub named: bool,
    /// One cause is that another manager owns a field.
    pub field_conflict: bool,
    /// One cause is that the object has another UID.
    pub other_uid: bool,
    /// No object exists that could have the named UID.
    pub no_object: bool,
}

impl Details {
    /// Reads the details of a `Status` document.
    pub fn of(status: &Value) -> Self {
        let name = status.pointer("/details/name").and_then(Value::as_str);
        let causes = status.pointer("/details/causes").and_then(Value::as_array);
        let causes_of = |field: &str, text: &str| {
            let mut all = causes.into_iter().flatten();
            all.any(|cause| cause.get(field).and_then(Value::as_str) == Some(text))
        };
        Self {
            named: name.is_some_and(|name| !name.is_empty()),
            field_conflict: causes_of("reason", "FieldManagerConflict"),
            other_uid: causes_of("field", "metadata.uid"),
            no_object: status
                .get("message")
                .and_then(Value::as_str)
                .is_some_and(|message| message.contains(UID_MISMATCH)),
        }
    }
}

impl ApiError {
    fn code(&self) -> u16 {
        match self {
            Self::Status { code, .. } => *code,
            Self::Timeout { .. }
            | Self::Transport { .. }
            | Self::Unreadable { .. }
            | Self::Request { .. } => 0,
        }
    }

    /// 404 about the object itself; without a name it is the path that nothing serves.
    pub fn is_absent(&self) -> bool {
        self.is_not_found() && matches!(self, Self::Status { details, .. } if details.named)
    }

    /// 409 because other managers own fields. Quotas and other admission answer 409 too.
    pub fn is_field_conflict(&self) -> bool {
        self.is_conflict() && matches!(self, Self::Status { details, .. } if details.field_conflict)
    }

    /// Answer to an apply that names a UID, if another object of this name exists (422), or none does
    /// (409). Quotas and concurrent writers cause 409 too.
    pub fn is_other_object(&self) -> bool {
        matches!(self, Self::Status { details, .. } if details.other_uid)
            || (self.is_conflict()
                && matches!(self, Self::Status { details, .. } if details.no_object))
    }

    /// 404.
    pub fn is_not_found(&self) -> bool {
        self.code() == 404
    }

    /// 401.
    pub fn is_unauthorized(&self) -> bool {
        self.code() == 401
    }

    /// 403.
    pub fn is_forbidden(&self) -> bool {
        self.code() == 403
    }

    /// Answer to a JSON patch whose test failed (422), or that a concurrent write overtook (409).
    pub fn is_failed_test(&self) -> bool {
        matches!(self.code(), 409 | 422)
    }

    /// 409 of a create.
    pub fn is_already_exists(&self) -> bool {
        matches!(self, Self::Status { status_reason, .. } if status_reason == "AlreadyExists")
    }

    /// 409 of anything else.
    pub fn is_conflict(&self) -> bool {
        self.code() == 409 && !self.is_already_exists()
    }

    /// Returns whether a retry may succeed without any other change.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Status { code, .. } => *code == 429 || *code >= 500,
            Self::Timeout { .. } | Self::Transport { .. } | Self::Unreadable { .. } => true,
            Self::Request { .. } => false,
        }
    }

    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Status { code: 403, .. } => Reason::Forbidden,
            Self::Status { code: 404, .. } => Reason::NotFound,
            Self::Status { code: 409, .. } => Reason::Conflict,
            Self::Status { code: 400 | 422, .. } => Reason::Invalid,
            Self::Status { .. } => Reason::ApiServerError,
            Self::Timeout { .. } => Reason::ApiServerTimeout,
            Self::Transport { .. } => Reason::ApiServerUnreachable,
            Self::Unreadable { .. } => Reason::ResponseUnreadable,
            Self::Request { .. } => Reason::RequestInvalid,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(code: u16, status: &Value) -> ApiError {
        ApiError::Status {
            verb: "delete",
            path: "/x".to_owned(),
            code,
            status_reason: "NotFound".to_owned(),
            message: String::new(),
            details: Details::of(status),
        }
    }

    #[test]
    fn an_object_is_absent_only_when_the_answer_names_it() {
        let named = json!({"details": {"name": "web", "kind": "deployments"}});

        assert!(refused(404, &named).is_absent());
        assert!(!refused(404, &json!({"details": {}})).is_absent(), "a version that is not served");
        assert!(!refused(404, &Value::Null).is_absent());
        assert!(!refused(403, &named).is_absent());
    }

    /// As Kubernetes 1.37 answers.
    #[test]
    fn an_apply_that_names_a_uid_is_refused_when_another_object_lives_or_none_does() {
        let another = json!({"reason": "Invalid", "details": {"name": "a", "kind": "ConfigMap", "causes": [
            {"reason": "FieldValueInvalid", "message": "field is immutable", "field": "metadata.uid"}]}});
        let invalid = json!({"reason": "Invalid", "details": {"name": "a", "kind": "ConfigMap", "causes": [
            {"reason": "FieldValueInvalid", "message": "must be positive", "field": "spec.replicas"}]}});
        let conflict = |what: &str| {
            let message = format!("Operation cannot be fulfilled on configmaps \"a\": {what}");
            json!({"reason": "Conflict", "details": {"name": "a", "kind": "configmaps"}, "message": message})
        };
        let none = conflict(
            "uid mismatch: the provided object specified uid 1, and no existing object was found",
        );
        let faster = conflict(
            "the object has been modified; please apply your changes to the latest version and try again",
        );

        assert!(refused(422, &another).is_other_object());
        assert!(refused(409, &none).is_other_object());
        assert!(!refused(422, &invalid).is_other_object());
        assert!(!refused(409, &faster).is_other_object());
    }

    #[test]
    fn a_conflict_about_fields_is_told_from_a_quota_that_was_just_changed() {
        let fields = json!({"details": {"causes": [
            {"reason": "FieldManagerConflict", "message": "conflict with \"kubectl\"", "field": ".data.k"}]}});
        let quota =
            json!({"reason": "Conflict", "details": {"name": "quota", "kind": "resourcequotas"}});

        assert!(refused(409, &fields).is_field_conflict());
        assert!(!refused(409, &quota).is_field_conflict());
        assert!(!refused(409, &quota).is_other_object());
    }
}
