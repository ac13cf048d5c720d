//! Failures to render. These errors cross the boundary to the worker, so that each is plain data.

use std::borrow::Cow;
use std::path::PathBuf;

use attest_common::basics::reason::Reason;
use attest_common::basics::text::error_chain;
use attest_common::documents::manifest::ManifestError;
use serde::{Deserialize, Serialize};

use super::slots::RENDERS_WAITING_MAX;
use crate::text::one_line;
use crate::yaml::{YamlError, YamlErrorKind};

/// Failure to render.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum RenderError {
    /// Nothing to render.
    #[error(
        "no manifests for this destination: looked for YAML files or a kustomization in {looked_in}; \
            correct `path`, or add one of these directories"
    )]
    OverlayMissing {
        /// Directories, comma separated.
        looked_in: String,
    },
    /// A path that is no directory of a repository.
    #[error("{0}")]
    Path(String),
    /// A directory with neither manifests nor a kustomization.
    #[error("{path:?} holds no YAML files and no kustomization: correct the path")]
    Empty {
        /// The directory.
        path: String,
    },
    /// YAML that cannot be read, or that readers would understand differently.
    #[error(transparent)]
    Yaml(YamlError),
    /// A document that is no Kubernetes object.
    #[error(
        "{file}: document {document} is no Kubernetes object ({problem}): complete it, or move the file elsewhere"
    )]
    NotAnObject {
        /// The file.
        file: String,
        /// Number of the document, from 1.
        document: usize,
        /// Missing part.
        problem: Cow<'static, str>,
    },
    /// Objects that cannot be a rendering.
    #[error("{path}: {detail}")]
    Manifest {
        /// The directory.
        path: String,
        /// Reason of the [`ManifestError`].
        #[serde(deserialize_with = "known_reason")]
        reason: Reason,
        /// Which object and field.
        detail: String,
    },
    /// Something from the network.
    #[error(
        "{file}: {entry:?} is fetched from elsewhere: commit it to the repository, renderings are made \
            without network"
    )]
    Remote {
        /// The kustomization.
        file: String,
        /// The entry.
        entry: String,
    },
    /// A part of a kustomization that runs other programs.
    #[error("{file}: `{field}` runs another program: render it in CI and commit the result")]
    Plugin {
        /// The kustomization.
        file: String,
        /// The field.
        field: Cow<'static, str>,
    },
    /// A part of a kustomization that is not there.
    #[error(
        "{file}: {entry:?} is not among the files that are read: correct it, or widen `sourceRoot`"
    )]
    ResourceMissing {
        /// The kustomization.
        file: String,
        /// The entry.
        entry: String,
    },
    /// Too many kustomizations.
    #[error(
        "{file}: more than {max} kustomizations lead into each other: make the overlay simpler"
    )]
    TooDeep {
        /// File in which the limit was reached.
        file: String,
        /// The limit.
        max: usize,
    },
    /// No renderer.
    #[error(
        "{path:?} is a kustomization and neither `kustomize` nor `kubectl` can be run: install one of \
            them (https://kubectl.docs.kubernetes.io/installation/kustomize/) and put it on PATH"
    )]
    ProgramMissing {
        /// The directory.
        path: String,
    },
    /// The renderer said no.
    #[error("{path}: {program} failed: {detail}")]
    ProgramFailed {
        /// The directory.
        path: String,
        /// The program.
        program: String,
        /// Its words.
        detail: String,
    },
    /// Something ended the renderer, as the system does when memory is short.
    #[error("{path}: {program} was ended by the system: give the hub more memory")]
    ProgramEnded {
        /// The directory.
        path: String,
        /// The program.
        program: String,
    },
    /// Rendering took too long.
    #[error("{path}: rendering was ended after {limit_seconds} s: make the overlay simpler")]
    TimedOut {
        /// The directory.
        path: String,
        /// The limit.
        limit_seconds: u64,
    },
    /// Rendering needs more than it is given.
    #[error("{path}: {detail}")]
    Limit {
        /// The directory.
        path: String,
        /// The limit that is exceeded, and what to do.
        detail: String,
    },
    /// Too many renderings of repositories that are slow.
    #[error(
        "{path}: {RENDERS_WAITING_MAX} renderings of slow repositories wait already: it is tried again at the next poll"
    )]
    Busy {
        /// The directory.
        path: String,
    },
    /// The system does not isolate the process that renders.
    #[error(
        "rendering is not isolated: {detail}; use a kernel with seccomp, or start attest-hub with \
            --allow-unisolated-rendering"
    )]
    NotIsolated {
        /// The restriction that the system refuses.
        detail: String,
    },
    /// The process that renders ended without a result.
    #[error("{path}: the process that renders failed: {detail}")]
    Worker {
        /// The directory.
        path: String,
        /// Cause of its end, as far as known.
        detail: String,
    },
    /// An image change without an image.
    #[error(
        "images[{index}]: no rendered object uses image {name:?}: correct the name, or remove the entry"
    )]
    ImageUnmatched {
        /// Number of the entry, from 0.
        index: usize,
        /// Its name.
        name: String,
    },
    /// The local file system.
    #[error("cannot {action} {path:?}: check free space and permissions")]
    Files {
        /// Attempted action.
        action: Cow<'static, str>,
        /// Path of the file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        #[serde(with = "system_error")]
        source: std::io::Error,
    },
}

impl RenderError {
    /// The error of a rendering of `path` whose objects are refused.
    pub(super) fn manifest(path: &str, error: &ManifestError) -> Self {
        // Names inside the message are as long as an author makes them.
        let (path, detail) = (path.to_owned(), one_line(&error_chain(error)));
        let reason = error.reason();
        if reason == Reason::Limit {
            return Self::Limit { path, detail: format!("{detail}: make it smaller") };
        }
        Self::Manifest { path, reason, detail }
    }

    /// The error of a file that could not be read or written.
    pub(super) fn files(
        action: &'static str,
        path: impl Into<PathBuf>,
        source: std::io::Error,
    ) -> Self {
        Self::Files { action: Cow::Borrowed(action), path: path.into(), source }
    }

    /// True when rendering took too long.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::TimedOut { .. } | Self::Busy { .. })
    }

    /// True when the same files may render at another time: the machine was at fault, not the commit.
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::ProgramMissing { .. }
                | Self::ProgramEnded { .. }
                | Self::TimedOut { .. }
                | Self::Busy { .. }
                | Self::NotIsolated { .. }
                | Self::Worker { .. }
                | Self::Files { .. }
        )
    }

    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::OverlayMissing { .. } => Reason::OverlayMissing,
            Self::Path(_) => Reason::PathRefused,
            Self::Empty { .. } => Reason::ManifestsMissing,
            Self::Yaml(error) => error.reason(),
            Self::NotAnObject { .. } => Reason::ObjectShape,
            Self::Manifest { reason, .. } => *reason,
            Self::Remote { .. } => Reason::RemoteResource,
            Self::Plugin { .. } => Reason::RendererPlugin,
            Self::ResourceMissing { .. } => Reason::ResourceMissing,
            Self::TooDeep { .. } => Reason::KustomizationLimit,
            Self::ProgramMissing { .. } => Reason::RendererMissing,
            Self::ProgramFailed { .. } => Reason::RendererFailed,
            Self::ProgramEnded { .. } => Reason::RendererKilled,
            Self::TimedOut { .. } => Reason::RenderTimedOut,
            Self::Limit { .. } => Reason::RenderLimit,
            Self::Busy { .. } => Reason::RenderBusy,
            Self::NotIsolated { .. } => Reason::RenderNotIsolated,
            Self::Worker { .. } => Reason::RenderWorkerFailed,
            Self::ImageUnmatched { .. } => Reason::ImageUnmatched,
            Self::Files { .. } => Reason::RenderFiles,
        }
    }
}

impl From<YamlError> for RenderError {
    fn from(error: YamlError) -> Self {
        match error.kind {
            YamlErrorKind::Refused => Self::Yaml(error),
            YamlErrorKind::Limit => Self::Limit { path: error.file, detail: error.problem },
        }
    }
}

fn known_reason<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Reason, D::Error> {
    let word = String::deserialize(deserializer)?;
    Reason::parse(&word).ok_or_else(|| serde::de::Error::custom("unknown reason"))
}

/// An error of the system, written as its number, or its text when it has none.
mod system_error {
    use std::io::Error;

    use serde::{Deserialize, Deserializer, Serialize as _, Serializer};

    pub(super) fn serialize<S: Serializer>(
        error: &Error,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let text = error.raw_os_error().is_none().then(|| error.to_string());
        (error.raw_os_error(), text).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Error, D::Error> {
        let (number, text): (Option<i32>, Option<String>) = Deserialize::deserialize(deserializer)?;
        Ok(number.map_or_else(|| Error::other(text.unwrap_or_default()), Error::from_raw_os_error))
    }
}
