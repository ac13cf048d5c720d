//! Reasons for which verification fails.

use crate::basics::envelope::EnvelopeError;
use crate::basics::ids::{ClusterId, Digest, Name, Timestamp};
use crate::basics::json::JsonError;
use crate::basics::reason::Reason;
use crate::basics::terms::Mode;
use crate::documents::manifest::ManifestError;
use crate::documents::plan::CAP_FULL_PERCENT;
use crate::documents::receipt::ReceiptError;
use crate::documents::release::ReleaseError;
use crate::documents::statement::StatementError;
use crate::objects::placement::PlacementError;
use crate::record::RecordError;
use crate::trust::policy::PolicyError;

/// A failed verification.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    #[error("failed to open the {what}")]
    Envelope {
        what: &'static str,
        #[source]
        source: EnvelopeError,
    },
    #[error("the {what} is invalid")]
    Document {
        what: &'static str,
        #[source]
        source: JsonError,
    },
    #[error("the {what} has version {v}; this program supports version 1")]
    Version { what: &'static str, v: u32 },
    #[error("the release is invalid")]
    Release(#[source] ReleaseError),
    #[error("the statement of a receipt is invalid")]
    Statement(#[source] StatementError),
    #[error(transparent)]
    Receipt(ReceiptError),
    #[error(transparent)]
    Policy(PolicyError),
    #[error(transparent)]
    Record(RecordError),
    #[error("the rendering is invalid: {0}")]
    Manifest(ManifestError),
    #[error(transparent)]
    Placement(PlacementError),
    #[error("the release is for application `{signed}`, not `{asked}`")]
    ApplicationMismatch { asked: Name, signed: Name },
    #[error("mode {requested} is requested, below this cluster's minimum {floor}")]
    PolicyFloor { requested: Mode, floor: Mode },
    #[error(
        "no key that this cluster trusts for this application has signed (signed or requested: {signers})"
    )]
    UntrustedKey { signers: String },
    #[error("the release has no render `{0}`")]
    RenderUnknown(String),
    #[error("the release has no rendering for cluster `{cluster}` of environment `{environment}`")]
    TargetMismatch { environment: Name, cluster: Name },
    #[error("renders {} all fit this cluster; give each a different fixed namespace", .renders.join(", "))]
    RenderAmbiguous { renders: Vec<String> },
    #[error("render `{render}` is not the one for namespace `{namespace}` of this cluster")]
    RenderMismatch { render: String, namespace: Name },
    #[error("the release expired {not_after}; sign again with `attest release`")]
    ReleaseExpired { not_after: Timestamp },
    #[error("release counter {counter} is more than a day ahead of the clock")]
    CounterAhead { counter: u64 },
    #[error("the rendering has digest {got}; CI signed {}", signed.map_or_else(|| "none".to_owned(), |d| d.to_string()))]
    ContentDigest { got: Digest, signed: Option<Digest> },
    #[error("the rendering has the unknown media type `{0}`")]
    MediaType(String),
    #[error("the rendering has {got} objects; CI signed {signed}")]
    ObjectCount { got: usize, signed: u64 },
    #[error("the release must name exactly one `{0}` receipt")]
    AttestationMissing(String),
    #[error("the receipt for `{0}` is already used for another attestation")]
    AttestationNotDistinct(String),
    #[error("the `{0}` receipt that the release names was not delivered")]
    ReceiptMissing(String),
    #[error("the delivered {what} is not the one that the plan names")]
    BlobDigest { what: &'static str },
    #[error("the plan names one blob twice")]
    BlobTwice,
    #[error("the directive is for cluster {audience}")]
    AudienceMismatch { audience: ClusterId },
    #[error("the validity of the {what} is longer than permitted")]
    Lifetime { what: &'static str },
    #[error(
        "the {what} was issued at {issued_at}, in the future; check the clocks of hub and cluster"
    )]
    FromFuture { what: &'static str, issued_at: Timestamp },
    #[error("the {what} expired at {expires_at}")]
    Expired { what: &'static str, expires_at: Timestamp },
    #[error(
        "the directive lacks a plan, has one although it must not, has a cap above 100, or a soak above 30 days"
    )]
    DirectiveIncomplete,
    #[error("the plan is not the one that the directive names")]
    PlanDigest,
    #[error("the plan states {field} {planned}; the release states {signed}")]
    PlanMismatch { field: &'static str, planned: String, signed: String },
    #[error("the plan has hooks, which are not supported")]
    HookNotAllowed,
    #[error(
        "the directive stops the rollout at {cap_percent} %, which this spoke cannot do; it accepts {CAP_FULL_PERCENT} only"
    )]
    CapNotSupported { cap_percent: u32 },
    #[error("the application already uses as many namespaces as the policy allows ({max})")]
    TooManyNamespaces { max: u32 },
    #[error("the trust policy of this cluster does not allow the hub to remove this application")]
    RemoveNotAllowed,
    #[error("this application is not deployed here")]
    NothingToRemove,
    #[error(
        "the sync does not carry the nonce of this connection or is older than one already seen"
    )]
    SyncNonce,
    #[error("the document exceeds the limit of {max} {what}")]
    Limit { what: &'static str, max: usize },
}

impl VerifyError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Envelope { source, .. } => source.reason(),
            Self::Document { .. } | Self::Version { .. } => Reason::DocumentInvalid,
            Self::Release(error) => error.reason(),
            Self::Statement(error) => error.reason(),
            Self::Receipt(error) => error.reason(),
            Self::Policy(error) => error.reason(),
            Self::Record(error) => error.reason(),
            Self::Manifest(error) => error.reason(),
            Self::Placement(error) => error.reason(),
            Self::ApplicationMismatch { .. } => Reason::ApplicationMismatch,
            Self::PolicyFloor { .. } => Reason::PolicyFloor,
            Self::UntrustedKey { .. } => Reason::UntrustedKey,
            Self::RenderUnknown(_) => Reason::RenderUnknown,
            Self::TargetMismatch { .. } => Reason::TargetMismatch,
            Self::RenderAmbiguous { .. } => Reason::RenderAmbiguous,
            Self::RenderMismatch { .. } => Reason::RenderMismatch,
            Self::ReleaseExpired { .. } => Reason::ReleaseExpired,
            Self::CounterAhead { .. } => Reason::CounterAhead,
            Self::ContentDigest { .. } => Reason::ContentDigest,
            Self::MediaType(_) => Reason::ContentFormat,
            Self::ObjectCount { .. } => Reason::ObjectCount,
            Self::AttestationMissing(_) => Reason::AttestationMissing,
            Self::AttestationNotDistinct(_) => Reason::AttestationNotDistinct,
            Self::ReceiptMissing(_) => Reason::ReceiptMissing,
            Self::BlobDigest { .. } | Self::BlobTwice => Reason::BlobDigest,
            Self::AudienceMismatch { .. } => Reason::AudienceMismatch,
            Self::Lifetime { .. } => Reason::LifetimeTooLong,
            Self::FromFuture { .. } => Reason::IssuedInFuture,
            Self::Expired { .. } => Reason::Expired,
            Self::DirectiveIncomplete => Reason::DocumentInvalid,
            Self::PlanDigest => Reason::PlanDigest,
            Self::PlanMismatch { .. } => Reason::PlanMismatch,
            Self::HookNotAllowed => Reason::HookNotAllowed,
            Self::CapNotSupported { .. } => Reason::CapNotSupported,
            Self::TooManyNamespaces { .. } => Reason::TooManyNamespaces,
            Self::RemoveNotAllowed => Reason::RemoveNotAllowed,
            Self::NothingToRemove => Reason::NothingToRemove,
            Self::SyncNonce => Reason::SyncNonce,
            Self::Limit { .. } => Reason::Limit,
        }
    }
}
