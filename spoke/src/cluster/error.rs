//! Errors of the connection to the API server and of requests to it.

use std::path::PathBuf;
use std::time::Duration;

use attest_common::basics::reason::Reason;
use attest_runtime::service_account::NotInCluster;
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
    #[error(transparent)]
    NotInCluster(#[from] NotInCluster),
    #[error(
        "{0} is not the address of an API server; check KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT"
    )]
    Address(String),
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
            Self::NotInCluster(_) | Self::Address(_) => Reason::NotInCluster,
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

/// Longest message of the API server that is retained, in characters.
const MESSAGE_CHARACTERS_MAX: usize = 600;
/// Longest text of one cause in such a message, in characters.
const CAUSE_CHARACTERS_MAX: usize = 160;
/// Begins the cause of a rejected value; the value follows, however long, and then the rule.
const INVALID_VALUE: &str = "Invalid value: ";
/// Text of the API server's answer (500) to an apply of an object that does not fit its schema, such as one with two
/// list items of one key. No field shows it.
const UNTYPED: &str = "failed to create typed patch object";
/// Texts of causes that an existing object cannot be changed like this. No field shows it.
const IMMUTABLE: [&str; 2] = ["is immutable", "for fields other than"];

/// Returns the message of a `Status` document, of limited length. The causes, which name field and rule, are kept where
/// the message quotes a whole object.
pub(super) fn status_message(status: &Value) -> String {
    let message = status.get("message").and_then(Value::as_str).unwrap_or_default();
    let causes: Vec<(&str, &str)> = causes(status).collect();
    let quotes = causes.iter().any(|(_, text)| is_long(text, CAUSE_CHARACTERS_MAX));
    if causes.is_empty() || !(quotes || is_long(message, MESSAGE_CHARACTERS_MAX)) {
        return shortened(message, MESSAGE_CHARACTERS_MAX);
    }
    let subject = message.split(": ").next().unwrap_or_default();
    let mut text = shortened(subject, CAUSE_CHARACTERS_MAX);
    for (index, (field, cause)) in causes.iter().enumerate() {
        let next = format!("{field}: {}", shortened(rule(cause), CAUSE_CHARACTERS_MAX));
        if index > 0 && is_long(&format!("{text}; {next}"), MESSAGE_CHARACTERS_MAX) {
            text.push_str(&format!("; and {} more", causes.len() - index));
            break;
        }
        text.push_str(if index == 0 { ": " } else { "; " });
        text.push_str(&next);
    }
    text
}

fn is_long(text: &str, max: usize) -> bool {
    text.chars().count() > max
}

/// Returns the rule of a cause, without a long value before it.
fn rule(cause: &str) -> &str {
    let is_quoted = is_long(cause, CAUSE_CHARACTERS_MAX);
    let value = cause.strip_prefix(INVALID_VALUE).filter(|_| is_quoted);
    value.and_then(|value| value.rsplit_once(": ")).map_or(cause, |(_, rule)| rule)
}

/// Returns the field and the message of each cause.
fn causes(status: &Value) -> impl Iterator<Item = (&str, &str)> {
    let causes = status.pointer("/details/causes").and_then(Value::as_array);
    causes.into_iter().flatten().filter_map(|cause| {
        let field = cause.get("field").and_then(Value::as_str);
        Some((field.unwrap_or_default(), cause.get("message")?.as_str()?))
    })
}

/// Returns the beginning and the end of a text that exceeds `max` characters.
fn shortened(text: &str, max: usize) -> String {
    let count = text.chars().count();
    if count <= max {
        return text.to_owned();
    }
    let half = max.saturating_sub(1) / 2;
    let (head, tail) = (text.chars().take(half), text.chars().skip(count - half));
    head.chain(std::iter::once('…')).chain(tail).collect()
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
    /// The object does not fit its schema.
    pub untyped: bool,
    /// One cause is that a field of an existing object cannot change.
    pub immutable: bool,
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
        let message = status.get("message").and_then(Value::as_str).unwrap_or_default();
        Self {
            untyped: message.contains(UNTYPED),
            immutable: self::causes(status)
                .any(|(_, text)| IMMUTABLE.iter().any(|known| text.contains(known))),
            named: name.is_some_and(|name| !name.is_empty()),
            field_conflict: causes_of("reason", "FieldManagerConflict"),
            other_uid: causes_of("field", "metadata.uid"),
            no_object: message.contains(UID_MISMATCH),
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

    /// 404 that names no object: nothing serves the path.
    pub fn is_unserved(&self) -> bool {
        self.is_not_found() && !self.is_absent()
    }

    /// 422 because a field of an existing object cannot change.
    pub fn is_immutable(&self) -> bool {
        self.code() == 422 && matches!(self, Self::Status { details, .. } if details.immutable)
    }

    /// 500 because the object does not fit its schema, which no retry changes.
    fn is_untyped(&self) -> bool {
        matches!(self, Self::Status { details, .. } if details.untyped)
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
            Self::Status { code, .. } => *code == 429 || (*code >= 500 && !self.is_untyped()),
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
            Self::Status { .. } if self.is_untyped() => Reason::Invalid,
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
    fn the_causes_of_a_rejection_survive_however_long_the_quoted_value_is() {
        let value = "x".repeat(5_000);
        let status = |causes: Value| {
            json!({
                "message": format!("Job.batch \"migrate\" is invalid: spec.template: Invalid value: {value}: field is immutable"),
                "details": {"name": "migrate", "causes": causes},
            })
        };
        let one = status(json!([{"reason": "FieldValueInvalid", "field": "spec.template",
            "message": format!("Invalid value: {{\"a\": \"{value}\"}}: field is immutable")}]));
        let cause = json!({"field": "spec.ports[0].port", "message": format!("Forbidden: {value} is no port")});
        let many = status(json!(vec![cause; 40]));

        assert_eq!(
            status_message(&one),
            "Job.batch \"migrate\" is invalid: spec.template: field is immutable"
        );
        let text = status_message(&many);
        assert!(text.chars().count() <= MESSAGE_CHARACTERS_MAX + 20, "{}", text.len());
        assert!(text.contains("spec.ports[0].port: Forbidden: xxx"), "{text}");
        assert!(text.contains("is no port; and 3"), "{text}");
        let short = json!({"message": "Service \"a\" is invalid: spec.ports[0].port: Invalid value: 0: must be positive",
            "details": {"causes": [{"field": "spec.ports[0].port", "message": "Invalid value: 0: must be positive"}]}});
        assert_eq!(status_message(&short), short["message"].as_str().unwrap());
        assert!(refused(422, &one).is_immutable() && !refused(422, &short).is_immutable());
    }

    /// As Kubernetes 1.37 answers to an apply with two list items of one key.
    #[test]
    fn an_object_that_does_not_fit_its_schema_is_invalid_and_not_tried_again_as_a_server_error() {
        let message = concat!(
            "failed to create typed patch object (shop/web; apps/v1, Kind=Deployment): ",
            r#".spec.template.spec.containers[name="web"].env: duplicate entries for key [name="LEVEL"]"#,
        );
        let untyped = json!({"reason": "InternalError", "code": 500, "message": message});
        let other =
            json!({"reason": "InternalError", "code": 500, "message": "etcdserver: timeout"});

        let (untyped, other) = (refused(500, &untyped), refused(500, &other));
        assert_eq!((untyped.reason(), untyped.is_transient()), (Reason::Invalid, false));
        assert_eq!((other.reason(), other.is_transient()), (Reason::ApiServerError, true));
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
