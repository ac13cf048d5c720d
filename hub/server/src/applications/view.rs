//! The outcome of a reconcile pass for its readers: status, differences, and wake-ups by cluster.

use std::collections::BTreeMap;
use std::sync::Arc;

use attest_common::basics::ids::{Digest, Name};
use attest_common::basics::text;
use attest_common::documents::manifest::Object;
use attest_common::verify::VerifyError;
use bytes::Bytes;

/// A rendering for a destination.
#[derive(Clone, Debug)]
pub(crate) struct Rendered {
    pub bytes: Bytes,
    pub digest: Digest,
    pub objects: Vec<Object>,
    /// Name and version of the program that rendered.
    pub renderer: (String, String),
}

/// Reason that no directive is issued although the destination differs from the commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// A stable word.
    pub reason: String,
    pub message: String,
    /// This counts as a failed verification.
    pub counted: bool,
}

impl Waiting {
    /// Creates a reason that does not count as a failed verification.
    pub(crate) fn new(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.to_owned(), message: message.into(), counted: false }
    }

    /// Creates a reason from a failed verification.
    pub(crate) fn refused(error: &VerifyError) -> Self {
        Self { reason: error.reason().to_owned(), message: text::error_chain(error), counted: true }
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
