//! The CI side: steps run, renderings made, receipts and a release statement signed, everything read back.
//!
//! Whether a release is good is decided by `attest_common::verify` alone, here as at hub and spoke. What is
//! printed, and with which exit code a command ends, is the command line's business.

mod draft;
mod judge;
mod rendered;
mod repository;
pub mod result;
mod signer;
mod steps;
mod store;
mod trust;

use std::path::PathBuf;

use attest_common::basics::ids::IdError;
use attest_common::basics::reason::Reason;
use attest_common::documents::receipt::ReceiptError;
use attest_common::verify::VerifyError;

use crate::recipe::RecipeError;
use crate::render::RenderError;
use crate::source::SourceError;

pub use draft::{Attested, Draft, Evidence, Origin, refuse_ambiguity};
pub use judge::{Answer, Question, Row, compare, first_difference, judge, known_environment};
pub use rendered::{Rendered, render_all};
pub use repository::Repository;
pub use signer::{
    CONTEXT_VARIABLE, KEY_FILE, KEY_FILE_VARIABLE, KEY_VARIABLE, SignerError,
    configuration_directory, context_file, refuse_keys_inside, signing_key,
};
pub use steps::{StepError, StepReport, run_step};
pub use store::{RELEASES_KEPT, SignedFile, Store, StoredRelease, Written, next_counter};
pub use trust::{TRUST_FILE_BYTES_MAX, Trust, TrustError};

/// Why a release cannot be made from a work tree.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CiError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error(transparent)]
    Render(#[from] RenderError),
    #[error("{directory} has no attest.yaml: `attest init` writes one")]
    RecipeMissing { directory: String },
    #[error(
        "the repository has no commit yet: a release names the commit it was made from; make one first"
    )]
    CommitMissing,
    #[error(
        "sourceRoot `{root}` is not in the commit that is checked out: `git add {root}` and commit it first"
    )]
    SourceRootNotCommitted { root: String },
    #[error("attest.yaml has no render for environment `{environment}`; it has {known}")]
    EnvironmentUnknown { environment: String, known: String },
    #[error("{field} of attest.yaml is not usable")]
    Name {
        field: String,
        #[source]
        source: IdError,
    },
    #[error("render `{render}` uses image `{image}`, for which no step gives a digest: {remedy}")]
    ImageUnpinned { render: String, image: String, remedy: String },
    #[error(
        "render `{render}` writes image `{image}`, but step `{step}` made {digest}: correct `digest` of the entry"
    )]
    ImageDigestDiffers { render: String, image: String, step: String, digest: String },
    #[error("attest.yaml: the renders cannot be told apart: {0}")]
    Ambiguous(#[source] VerifyError),
    #[error("release.counter is {given}; the last release has {last}: give a larger number")]
    CounterNotAbove { given: u64, last: u64 },
    #[error("the {attestation} receipt would not be accepted")]
    ReceiptRefused {
        attestation: String,
        #[source]
        source: ReceiptError,
    },
    #[error(
        "there is no release {counter} of `{application}` under .attest/receipts; it holds {known}"
    )]
    ReleaseUnknown { application: String, counter: u64, known: String },
    #[error("release {counter} is not usable: {problem}")]
    ReleaseUnusable { counter: u64, problem: String },
    #[error("release {counter} is not signed by this signing key or one of the context")]
    ReleaseUntrusted {
        counter: u64,
        #[source]
        source: VerifyError,
    },
    #[error(
        "the work tree does not render what release {counter} signed as `{render}` ({difference}): check out or revert to its files first"
    )]
    RenderingDiffers { counter: u64, render: String, difference: String },
    #[error("time and counter are beyond what a release can say")]
    TimeOutOfRange,
    #[error("{path} is a symbolic link: signed files are not written through links; remove it")]
    Link { path: String },
    #[error("cannot {action} {}: check free space and permissions", .path.display())]
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
