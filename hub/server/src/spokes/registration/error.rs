//! Errors of joining, and of decisions about clusters.

use attest_certs::{AuthorityError, RequestError};
use attest_common::basics::ids::{ClusterId, Name};
use attest_common::basics::labels::LabelError;
use attest_common::basics::reason::Reason;
use attest_common::session::join::TOKEN_LIFETIME_MAX_S;

use super::CLUSTERS_MAX;
use crate::core::store::StoreError;

/// Reason that a cluster may not join, or a decision cannot be applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum JoinError {
    #[error(
        "the join token is invalid; create a new one with `attest gitops cluster token create`"
    )]
    TokenRefused,
    #[error(
        "the join token was revoked; create a new one with `attest gitops cluster token create`"
    )]
    TokenRevoked,
    #[error("the join token expired; create a new one with `attest gitops cluster token create`")]
    TokenExpired,
    #[error(
        "the join token was already used; create a new one with `attest gitops cluster token create`"
    )]
    TokenUsed,
    #[error("invalid proof of the identity key")]
    Identity,
    #[error("invalid certificate request")]
    Request(#[source] RequestError),
    #[error("the UID of namespace kube-system is missing or malformed")]
    Uid,
    #[error(
        "a cluster named `{0}` is already registered; run `attest gitops cluster rm {0}`, or pass --replace"
    )]
    NameTaken(Name),
    #[error("the join token was created for another identity")]
    OtherIdentity,
    #[error("this spoke is already registered as `{0}`")]
    IdentityKnown(Name),
    #[error(
        "cluster {0} was revoked; delete its Secret attest-spoke/attest-identity to join with a new identity"
    )]
    ClusterRevoked(ClusterId),
    #[error("the limit of {CLUSTERS_MAX} registered clusters is reached")]
    TooMany,
    #[error("the lifetime of a token must be 1 to {TOKEN_LIFETIME_MAX_S} seconds")]
    Lifetime,
    #[error("cluster `{0}` not found; list clusters with `attest gitops cluster list`")]
    NoCluster(Name),
    #[error("{count} clusters are named `{name}`; pass the id of one of them: {ids}")]
    Ambiguous { name: Name, count: usize, ids: String },
    #[error(
        "cluster `{0}` was evicted and needs a new token; \
         run `attest gitops cluster rejoin {0} --kubeconfig F`"
    )]
    Evicted(Name),
    #[error(
        "the identity of cluster `{0}` was copied, or restored from a backup; \
         find out who has it, then run `attest gitops cluster rejoin {0} --kubeconfig F`"
    )]
    IdentityCopied(Name),
    #[error(
        "cluster `{name}` has fingerprint {actual}, not {given}; check the fingerprint that the spoke logs"
    )]
    Fingerprint { name: Name, given: String, actual: String },
    #[error("failed to issue the certificate")]
    Authority(#[source] AuthorityError),
    #[error("the operating system provides no random bytes")]
    Randomness(#[source] getrandom::Error),
    #[error(transparent)]
    Label(#[from] LabelError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl JoinError {
    /// Returns the reason to show.
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::TokenRefused => Reason::TokenRefused,
            Self::TokenRevoked => Reason::TokenRevoked,
            Self::TokenExpired => Reason::TokenExpired,
            Self::TokenUsed => Reason::TokenUsed,
            Self::Identity => Reason::IdentityProof,
            Self::Request(error) => error.reason(),
            Self::Uid => Reason::KubeSystemUid,
            Self::NameTaken(_) => Reason::NameTaken,
            Self::OtherIdentity => Reason::OtherIdentity,
            Self::IdentityKnown(_) => Reason::AlreadyRegistered,
            Self::ClusterRevoked(_) => Reason::ClusterRevoked,
            Self::TooMany => Reason::Limit,
            Self::Lifetime => Reason::TokenLifetime,
            Self::Ambiguous { .. } => Reason::ClusterAmbiguous,
            Self::Evicted(_) => Reason::ClusterEvicted,
            Self::IdentityCopied(_) => Reason::IdentityCopied,
            Self::NoCluster(_) => Reason::ClusterUnknown,
            Self::Fingerprint { .. } => Reason::FingerprintMismatch,
            Self::Authority(error) => error.reason(),
            Self::Randomness(_) => Reason::Randomness,
            Self::Label(error) => error.reason(),
            Self::Store(error) => error.reason(),
        }
    }
}
