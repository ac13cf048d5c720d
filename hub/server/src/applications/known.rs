//! Objects that a manifest may refer to, and the errors of its conversion.

use std::collections::BTreeMap;

use attest_common::basics::ids::Name;
use attest_common::basics::keys::KeyId;
use attest_common::basics::labels::Labels;
use attest_common::basics::reason::Reason;
use attest_supply::source::UrlPolicy;

/// The cluster of a destination that names none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum DefaultCluster {
    Registered(Name),
    /// The hub runs outside a cluster, and no cluster is registered.
    #[default]
    NoneRegistered,
    /// The hub runs in a cluster that is not registered.
    OwnNotRegistered,
    /// The hub has not reached the API server of its cluster.
    OwnUnknown,
}

/// Objects of the hub that a manifest may refer to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// Registered clusters by name.
    pub clusters: BTreeMap<Name, KnownCluster>,
    pub default_cluster: DefaultCluster,
    /// Keys by alias.
    pub keys: BTreeMap<String, KeyId>,
    pub urls: UrlPolicy,
}

/// A registered cluster, as far as a manifest depends on it.
#[derive(Clone, Debug, Default)]
pub(crate) struct KnownCluster {
    pub labels: Labels,
    /// Environment of its trust policy; absent until it has connected.
    pub environment: Option<String>,
}

/// Reason that a manifest is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub(crate) struct LowerError {
    pub reason: Reason,
    /// Path such as `spec.verification.trustedKeys[0]`.
    pub field: String,
    pub message: String,
}

impl LowerError {
    pub(super) fn new(
        reason: Reason,
        field: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self { reason, field: field.into(), message: message.into() }
    }

    /// Returns the reason to show.
    pub(crate) fn reason(&self) -> Reason {
        self.reason
    }
}

/// Returns the error of a field that is not available yet.
pub(super) fn feature(field: &str, what: &str) -> LowerError {
    let message = format!("{what} is not available in this version; remove it");
    LowerError::new(Reason::FeatureNotAvailable, field, message)
}

/// Reads a name at `field`.
pub(super) fn parse_name(field: &str, text: &str) -> Result<Name, LowerError> {
    Name::new(text).map_err(|error| LowerError::new(error.reason(), field, error.to_string()))
}
