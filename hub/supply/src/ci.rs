//! The CI side: runs steps, renders manifests, signs receipts and a release statement, and verifies the result.
//!
//! `attest_common::verify` alone decides about a release, here as at hub and spoke. The command line prints and sets exit
//! codes.

mod checkout;
mod compare;
mod draft;
mod rendered;
pub mod result;
mod signer;
mod steps;
mod store;
mod trust;
mod verify;

use std::path::PathBuf;

use attest_common::basics::ids::IdError;
use attest_common::basics::reason::Reason;
use attest_common::documents::receipt::ReceiptError;
use attest_common::verify::VerifyError;

use crate::recipe::RecipeError;
use crate::render::RenderError;
use crate::source::SourceError;

pub use checkout::Checkout;
pub use compare::{compare_work_tree, first_difference};
pub use draft::{Draft, DraftReceipt, Evidence, Origin, refuse_ambiguity};
pub use rendered::{ReleaseRendering, render_all};
pub use signer::{
    CONTEXT_VARIABLE, KEY_FILE, KEY_FILE_VARIABLE, KEY_VARIABLE, SignerError,
    configuration_directory, context_file, refuse_keys_inside, signing_key,
};
pub use steps::{StepError, StepReport, run_step};
pub use store::{
    RELEASES_KEPT, ReleaseStore, ReleaseWrite, SignedFile, StoredRelease, next_counter,
};
pub use trust::{TRUST_FILE_BYTES_MAX, TrustSourceError, TrustSources};
pub use verify::{
    CheckRow, VerificationReport, VerificationRequest, check_environment, verify_renders,
};

/// Error of creating a release from a checkout.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CiError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error(transparent)]
    Render(#[from] RenderError),
    #[error("{directory} has no attest.yaml; `attest init` writes one")]
    RecipeMissing { directory: String },
    #[error("the repository has no commit; create one first, because a release names its commit")]
    CommitMissing,
    #[error(
        "sourceRoot `{root}` is not in the checked-out commit; `git add {root}` and commit it first"
    )]
    SourceRootNotCommitted { root: String },
    #[error(
        "{path} has other bytes on disk than in Git, because of its attributes or `core.autocrlf`; the hub would read the \
         bytes in Git: remove the attribute (`git check-attr --all {path}` shows it)"
    )]
    GitChangesBytes { path: String },
    #[error(
        "{path} is not in the Git index, so the commit would not contain it; `git add {path}` first"
    )]
    NotStaged { path: String },
    #[error("attest.yaml has no render for environment `{environment}`; it has {known}")]
    EnvironmentUnknown { environment: String, known: String },
    #[error("invalid {field} in attest.yaml")]
    Name {
        field: String,
        #[source]
        source: IdError,
    },
    #[error("render `{render}` uses image `{image}`, whose digest is not known; {remedy}")]
    ImageUnpinned { render: String, image: String, remedy: String },
    #[error(
        "render `{render}` contains image `{image}`, but step `{step}` built {digest}; correct `digest` of the entry"
    )]
    ImageDigestDiffers { render: String, image: String, step: String, digest: String },
    #[error("attest.yaml: the renders are ambiguous: {0}")]
    Ambiguous(#[source] VerifyError),
    #[error("release.counter is {given}, but the last release has {last}; use a larger number")]
    CounterNotAbove { given: u64, last: u64 },
    #[error("the {attestation} receipt would be refused")]
    ReceiptRefused {
        attestation: String,
        #[source]
        source: ReceiptError,
    },
    #[error(
        "there is no release {counter} of `{application}` under .attest/receipts; it contains {known}"
    )]
    ReleaseUnknown { application: String, counter: u64, known: String },
    #[error("release {counter} is not usable: {problem}")]
    ReleaseUnusable { counter: u64, problem: String },
    #[error("release {counter} is signed neither by this signing key nor by one of the context")]
    ReleaseUntrusted {
        counter: u64,
        #[source]
        source: VerifyError,
    },
    #[error(
        "the work tree does not render what release {counter} signed as `{render}` ({difference}); check out its \
         files first"
    )]
    RenderingDiffers { counter: u64, render: String, difference: String },
    #[error("time and counter are outside the range of a release")]
    TimeOutOfRange,
    #[error("{path} is a symbolic link; signed files are not written through links; remove it")]
    Link { path: String },
    #[error("failed to {action} {}; check free space and permissions", .path.display())]
    Files {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl CiError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Source(error) => error.reason(),
            Self::Recipe(error) => error.reason(),
            Self::Render(error) => error.reason(),
            Self::RecipeMissing { .. } => Reason::RecipeMissing,
            Self::CommitMissing | Self::SourceRootNotCommitted { .. } => Reason::CommitMissing,
            Self::GitChangesBytes { .. } => Reason::GitChangesBytes,
            Self::NotStaged { .. } => Reason::NotStaged,
            Self::EnvironmentUnknown { .. } => Reason::EnvironmentUnknown,
            Self::Name { source, .. } => source.reason(),
            Self::ImageUnpinned { .. } => Reason::ImageUnpinned,
            Self::ImageDigestDiffers { .. } => Reason::ImageDigestDiffers,
            Self::Ambiguous(error) => error.reason(),
            Self::CounterNotAbove { .. } => Reason::CounterRegressed,
            Self::ReceiptRefused { source, .. } => source.reason(),
            Self::ReleaseUnknown { .. } => Reason::ReleaseUnknown,
            Self::ReleaseUnusable { .. } => Reason::ReleaseUnusable,
            Self::ReleaseUntrusted { source, .. } => source.reason(),
            Self::RenderingDiffers { .. } => Reason::ContentDigest,
            Self::TimeOutOfRange => Reason::TimeOutOfRange,
            Self::Link { .. } => Reason::SymbolicLink,
            Self::Files { .. } => Reason::Files,
        }
    }
}
