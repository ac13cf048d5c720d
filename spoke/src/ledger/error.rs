//! Errors of reading and writing the ledger.

use attest_common::basics::ids::Digest;
use attest_common::basics::reason::Reason;

use crate::SPOKE_NAMESPACE;
use crate::cluster::error::ApiError;

/// Error of reading or writing the ledger.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    #[error("failed to read or write the spoke's Secrets")]
    Api(#[source] ApiError),
    #[error("the record was changed concurrently")]
    Overtaken,
    #[error(
        "Secret {SPOKE_NAMESPACE}/{secret} is not a readable record; \
         restore it, or `attest spoke reset` the destination"
    )]
    Unreadable { secret: String },
    #[error("an inventory of {objects} objects does not fit a Secret")]
    TooLarge { objects: usize },
    #[error("more than {max} {what}")]
    Limit { what: &'static str, max: u64 },
    #[error("stored content of plan {plan} is missing or damaged")]
    Content { plan: Digest },
}

impl LedgerError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Api(error) => error.reason(),
            Self::Overtaken => Reason::RecordConflict,
            Self::Unreadable { .. } => Reason::RecordUnreadable,
            Self::TooLarge { .. } | Self::Limit { .. } => Reason::Limit,
            Self::Content { .. } => Reason::ContentLost,
        }
    }

    /// Returns whether a later retry may succeed.
    pub fn is_transient(&self) -> bool {
        match self {
            // Rights on the spoke's own Secrets are missing briefly while an API server starts or a token
            // is renewed, and never because of the content of a document.
            Self::Api(error) => {
                error.is_transient() || error.is_forbidden() || error.is_unauthorized()
            }
            Self::Overtaken => true,
            Self::Unreadable { .. }
            | Self::TooLarge { .. }
            | Self::Limit { .. }
            | Self::Content { .. } => false,
        }
    }
}
