//! Why the API server cannot be used, or did not do what was asked.

use std::path::PathBuf;

/// Why the API server cannot be reached at all.
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
    /// A stable word for logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Kubeconfig { .. } | Self::KubeconfigFile { .. } => "Kubeconfig",
            Self::KubeconfigWrite { .. } => "Credentials",
            Self::NotInCluster { .. } => "NotInCluster",
            Self::Client(_) => "KubernetesClient",
            Self::Api(error) => error.reason(),
            Self::TokenMissing => "TokenMissing",
        }
    }
}

/// Why one request failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    #[error("{verb} {path}: {code} {message}")]
    Status { verb: &'static str, path: String, code: u16, status_reason: String, message: String },
    #[error("{verb} {path}: no answer within {} s", super::REQUEST_TIMEOUT.as_secs())]
    Timeout { verb: &'static str, path: String },
    #[error("{verb} {path}: the API server cannot be reached")]
    Transport {
        verb: &'static str,
        path: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("{path}: {message}")]
    Request { path: String, message: String },
}

impl ApiError {
    fn code(&self) -> u16 {
        match self {
            Self::Status { code, .. } => *code,
            Self::Timeout { .. } | Self::Transport { .. } | Self::Request { .. } => 0,
        }
    }

    /// 404.
    pub fn is_not_found(&self) -> bool {
        self.code() == 404
    }

    /// 403.
    pub fn is_forbidden(&self) -> bool {
        self.code() == 403
    }

    /// 409 of a create.
    pub fn is_already_exists(&self) -> bool {
        matches!(self, Self::Status { status_reason, .. } if status_reason == "AlreadyExists")
    }

    /// 409 of anything else.
    pub fn is_conflict(&self) -> bool {
        self.code() == 409 && !self.is_already_exists()
    }

    /// True when asking again may help without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Status { code, .. } => *code == 429 || *code >= 500,
            Self::Timeout { .. } | Self::Transport { .. } => true,
            Self::Request { .. } => false,
        }
    }

    /// A stable word for conditions, metrics, logs and the CLI.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Status { code: 403, .. } => "Forbidden",
            Self::Status { code: 404, .. } => "NotFound",
            Self::Status { code: 409, .. } => "Conflict",
            Self::Status { code: 400 | 422, .. } => "Invalid",
            Self::Status { .. } => "ApiServerError",
            Self::Timeout { .. } => "ApiServerTimeout",
            Self::Transport { .. } => "ApiServerUnreachable",
            Self::Request { .. } => "RequestInvalid",
        }
    }
}
