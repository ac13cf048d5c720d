//! Why a cluster may not join, or a verdict cannot be carried out.

use attest_certs::{AuthorityError, RequestError};
use attest_common::basics::ids::{ClusterId, Name};
use attest_common::session::join::TOKEN_LIFETIME_MAX_S;

use super::CLUSTERS_MAX;
use crate::core::store::StoreError;

/// Why a cluster may not join, or a verdict cannot be carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum JoinError {
    #[error(
        "the join token is not valid; make a new one with `attest gitops cluster token create`"
    )]
    TokenRefused,
    #[error("the join token was revoked; make a new one with `attest gitops cluster token create`")]
    TokenRevoked,
    #[error("the join token expired; make a new one with `attest gitops cluster token create`")]
    TokenExpired,
    #[error(
        "the join token was used already; make a new one with `attest gitops cluster token create`"
    )]
    TokenUsed,
    #[error("the identity key is not proven")]
    Identity,
    #[error("the certificate request is not acceptable")]
    Request(#[source] RequestError),
    #[error("the UID of namespace kube-system is missing or malformed")]
    Uid,
    #[error(
        "a cluster named `{0}` is registered; `attest gitops cluster rm {0}`, or add it with --replace"
    )]
    NameTaken(Name),
    #[error("the join token is for another cluster's spoke")]
    OtherIdentity,
    #[error("this spoke is registered already as `{0}`")]
    IdentityKnown(Name),
    #[error(
        "cluster {0} was revoked; delete its Secret attest-system/attest-identity to join as a new one"
    )]
    ClusterRevoked(ClusterId),
    #[error("{CLUSTERS_MAX} clusters are registered, and this hub takes no more")]
    TooMany,
    #[error("a token lives 1 to {TOKEN_LIFETIME_MAX_S} seconds")]
    Lifetime,
    #[error("no cluster is named `{0}`; `attest gitops cluster list` shows those there are")]
    NoCluster(Name),
    #[error("{count} clusters are named `{name}`; give the id of one of them: {ids}")]
    Ambiguous { name: Name, count: usize, ids: String },
    #[error(
        "cluster `{0}` was evicted and comes back by a new token only: \
         `attest gitops cluster rejoin {0} --kubeconfig F`"
    )]
    Evicted(Name),
    #[error(
        "cluster `{name}` has fingerprint {actual}, not {given}; was it mistyped, or is it another cluster?"
    )]
    Fingerprint { name: Name, given: String, actual: String },
    #[error("the certificate cannot be issued")]
    Authority(#[source] AuthorityError),
    #[error("the operating system gives no random bytes")]
    Randomness(#[source] getrandom::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl JoinError {
    /// A stable word for metrics, logs, the spoke and the CLI.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::TokenRefused => "TokenRefused",
            Self::TokenRevoked => "TokenRevoked",
            Self::TokenExpired => "TokenExpired",
            Self::TokenUsed => "TokenUsed",
            Self::Identity => "IdentityProof",
            Self::Request(error) => error.reason(),
            Self::Uid => "KubeSystemUid",
            Self::NameTaken(_) => "NameTaken",
            Self::OtherIdentity => "OtherIdentity",
            Self::IdentityKnown(_) => "IdentityKnown",
            Self::ClusterRevoked(_) => "ClusterRevoked",
            Self::TooMany => "Limit",
            Self::Lifetime => "TokenLifetime",
            Self::Ambiguous { .. } => "ClusterAmbiguous",
            Self::Evicted(_) => "ClusterEvicted",
            Self::NoCluster(_) => "ClusterUnknown",
            Self::Fingerprint { .. } => "FingerprintMismatch",
            Self::Authority(error) => error.reason(),
            Self::Randomness(_) => "Randomness",
            Self::Store(error) => error.reason(),
        }
    }
}
