//! The outcome of a reconcile pass, as far as others read it: status, differences, and which cluster concerns whom.

use std::collections::BTreeMap;
use std::sync::Arc;

use attest_common::basics::ids::{Digest, Name};
use attest_common::basics::text;
use attest_common::documents::manifest::Object;
use attest_common::verify::VerifyError;
use bytes::Bytes;

/// What the deployed commit renders to at a destination.
#[derive(Clone, Debug)]
pub(crate) struct Rendered {
    pub bytes: Bytes,
    pub digest: Digest,
    pub objects: Vec<Object>,
    /// Name and version of the program that rendered.
    pub renderer: (String, String),
}

/// Why nothing is ordered although something differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// A stable word.
    pub reason: String,
    pub message: String,
    /// True when this counts as a failed verification.
    pub counted: bool,
}

impl Waiting {
    /// Waits without anything having been refused.
    pub(crate) fn new(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.to_owned(), message: message.into(), counted: false }
    }

    pub(crate) fn refused(error: &VerifyError) -> Self {
        Self { reason: error.reason().to_owned(), message: text::error_chain(error), counted: true }
    }
}

/// The outcome of the newest reconcile pass of an application.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// Commit that the revision names.
    pub revision: Option<String>,
    /// Why the source of the application could not be read.
    pub problem: Option<Waiting>,
    /// Why the newest commit does not run at a destination: by cluster name and namespace.
    pub waiting: BTreeMap<(Name, Name), Waiting>,
    /// What the newest commit renders to.
    pub rendered: BTreeMap<(Name, Name), Arc<Rendered>>,
}

impl View {
    /// Clusters that the application waits for, or for which it was rendered; a name may come twice.
    pub(crate) fn clusters(&self) -> impl Iterator<Item = &Name> {
        self.waiting.keys().chain(self.rendered.keys()).map(|(cluster, _)| cluster)
    }
}
