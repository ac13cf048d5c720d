//! The outcome of a reconcile pass for its readers: status, differences, and wake-ups by cluster.

use std::collections::BTreeMap;
use std::sync::Arc;

use attest_common::basics::ids::{Digest, Name};
use attest_common::basics::reason::Reason;
use attest_common::basics::text;
use attest_common::documents::manifest::{self, Object};
use attest_common::session::report::ApplicationPhase;
use attest_common::verify::VerifyError;
use bytes::Bytes;

/// A rendering for a destination.
#[derive(Clone, Debug)]
pub(crate) struct Rendered {
    pub bytes: Bytes,
    pub digest: Digest,
    /// Name and version of the program that rendered.
    pub renderer: (String, String),
}

impl Rendered {
    /// Reads the objects. They are not kept: they use several times the memory of the bytes, and are needed only for
    /// a new commit.
    pub(crate) fn objects(&self) -> Vec<Object> {
        // This hub has written the bytes.
        manifest::read(&self.bytes).unwrap_or_default()
    }
}

/// Reason that no directive is issued although the destination differs from the commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// Phase of a destination that waits for this.
    pub phase: ApplicationPhase,
    pub reason: Reason,
    pub message: String,
    /// This counts as a failed verification.
    pub counted: bool,
    /// Reason by which metrics count it, if it is another one.
    pub counted_as: Option<Reason>,
}

impl Waiting {
    /// The state is unknown: the cluster, the repository or the renderer is not available.
    pub(crate) fn unknown(reason: Reason, message: impl Into<String>) -> Self {
        Self::of(ApplicationPhase::Unknown, reason, message)
    }

    /// CI has signed no release for the commit.
    pub(crate) fn for_receipts(message: impl Into<String>) -> Self {
        Self::of(ApplicationPhase::AwaitingReceipts, Reason::AwaitingReceipts, message)
    }

    /// Counts as a release that no trusted key signed, whatever is shown.
    #[must_use]
    pub(crate) fn with_untrusted_release(self) -> Self {
        Self { counted: true, counted_as: Some(Reason::UntrustedKey), ..self }
    }

    /// A release is ready, and an operator has to sync it.
    pub(crate) fn for_sync(message: impl Into<String>) -> Self {
        Self::of(ApplicationPhase::OutOfSync, Reason::AwaitingSync, message)
    }

    /// A rollout orders it later.
    pub(crate) fn for_stage(reason: Reason, message: impl Into<String>) -> Self {
        Self::of(ApplicationPhase::Progressing, reason, message)
    }

    /// A rollout has ended, or is held, and an operator has to continue it.
    pub(crate) fn for_operator(reason: Reason, message: impl Into<String>) -> Self {
        Self::of(ApplicationPhase::OutOfSync, reason, message)
    }

    /// Returns whether it refuses the commit, in contrast to something that is missing.
    pub(crate) fn is_refusal(&self) -> bool {
        self.phase == ApplicationPhase::Refused
    }

    /// The commit cannot be deployed as it is. Does not count as a failed verification.
    pub(crate) fn refused(reason: Reason, message: impl Into<String>) -> Self {
        Self::of(ApplicationPhase::Refused, reason, message)
    }

    /// The commit contradicts what CI signed.
    pub(crate) fn contradiction(reason: Reason, message: impl Into<String>) -> Self {
        Self { counted: true, ..Self::refused(reason, message) }
    }

    /// The verification of a release failed.
    pub(crate) fn unverified(error: &VerifyError) -> Self {
        Self::contradiction(error.reason(), text::error_chain(error))
    }

    fn of(phase: ApplicationPhase, reason: Reason, message: impl Into<String>) -> Self {
        Self { phase, reason, message: message.into(), counted: false, counted_as: None }
    }
}

/// The outcome of the newest reconcile pass of an application.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// Commit that the revision resolves to.
    pub revision: Option<String>,
    /// Failure to read the source of the application.
    pub problem: Option<Waiting>,
    /// Reasons that the newest commit is not deployed, by cluster name and namespace.
    pub waiting: BTreeMap<(Name, Name), Waiting>,
    /// Renderings of the newest commit, by cluster name and namespace.
    pub rendered: BTreeMap<(Name, Name), Arc<Rendered>>,
}

impl View {
    /// Returns the clusters that the application waits for or was rendered for, possibly with duplicates.
    pub(crate) fn clusters(&self) -> impl Iterator<Item = &Name> {
        self.waiting.keys().chain(self.rendered.keys()).map(|(cluster, _)| cluster)
    }
}
