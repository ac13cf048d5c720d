//! From files to the bytes that CI signs: plain YAML and Kustomize become Rendering v1.
//!
//! CI and hub call the same [`render`]; a spoke never does. Helm and other programs are not run here: what they
//! gave is committed and signed as it is. Whether a rendering may go anywhere is decided by verification.

mod images;
mod kustomize;
mod program;

use std::path::PathBuf;

use attest_common::basics::reason::Reason;
use attest_common::documents::manifest::{self, ManifestError, Object};
use serde_json::Value;

use crate::ImageChange;
use crate::source::{Tree, clean_directory};
use crate::yaml::{self, WARNINGS_MAX, Warning, YamlError};

pub use kustomize::{KUSTOMIZATION_FILES, Kustomize};
pub use program::{OUTPUT_BYTES_MAX, RENDER_SECONDS_MAX, RENDERERS_MAX};

/// A rendering and how it came about.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifests {
    /// Rendering v1.
    pub rendering: Vec<u8>,
    /// The same as objects, sorted.
    pub objects: Vec<Object>,
    /// What made it.
    pub renderer: RendererVersion,
    /// Scalars that readers of YAML understand differently.
    pub warnings: Vec<Warning>,
    /// For each image change, whether it matched an image.
    pub images_matched: Vec<bool>,
}

/// Name and version of a renderer, as a release statement lists them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RendererVersion {
    /// `yaml` or `kustomize`.
    pub name: String,
    /// Version of the program, or of Rendering.
    pub version: String,
}

/// Why files gave no rendering.
#[derive(Debug, thiserror::Error)]
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
    Yaml(#[from] YamlError),
    /// A document that is no Kubernetes object.
    #[error(
        "{file}: document {document} is no Kubernetes object ({problem}): complete it, or move the file elsewhere"
    )]
    NotAnObject {
        /// The file.
        file: String,
        /// Number of the document, from 1.
        document: usize,
        /// What is missing.
        problem: &'static str,
    },
    /// Objects that cannot be a rendering.
    #[error("{path}: {source}")]
    Manifest {
        /// The directory.
        path: String,
        /// Which object and field.
        source: ManifestError,
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
        field: &'static str,
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
        /// Where it was noticed.
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
    /// The renderer took too long.
    #[error("{path}: {program} was ended after {limit_seconds} s: make the overlay simpler")]
    TimedOut {
        /// The directory.
        path: String,
        /// The program.
        program: String,
        /// The limit.
        limit_seconds: u64,
    },
    /// The renderer wrote too much.
    #[error("{path}: {program} wrote more than {limit} bytes: make the overlay smaller")]
    OutputTooLarge {
        /// The directory.
        path: String,
        /// The program.
        program: String,
        /// The limit.
        limit: usize,
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
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
}

impl RenderError {
    /// True when the same files may render at another time: the machine was at fault, not the commit.
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::ProgramMissing { .. }
                | Self::ProgramEnded { .. }
                | Self::TimedOut { .. }
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
            Self::Manifest { source, .. } => source.reason(),
            Self::Remote { .. } => Reason::RemoteResource,
            Self::Plugin { .. } => Reason::RendererPlugin,
            Self::ResourceMissing { .. } => Reason::ResourceMissing,
            Self::TooDeep { .. } => Reason::KustomizationLimit,
            Self::ProgramMissing { .. } => Reason::RendererMissing,
            Self::ProgramFailed { .. } => Reason::RendererFailed,
            Self::ProgramEnded { .. } => Reason::RendererKilled,
            Self::TimedOut { .. } => Reason::RendererTimedOut,
            Self::OutputTooLarge { .. } => Reason::RendererOutput,
            Self::ImageUnmatched { .. } => Reason::ImageUnmatched,
            Self::Files { .. } => Reason::RenderFiles,
        }
    }
}

/// Where a destination's manifests lie.
#[derive(Clone, Copy, Debug, Default)]
pub struct Overlay<'a> {
    /// `spec.source.path`.
    pub path: &'a str,
    /// `destinations[].path`, which alone counts when it is given.
    pub own_path: Option<&'a str>,
    /// Name of the cluster.
    pub cluster: Option<&'a str>,
    /// Environment of the cluster.
    pub environment: Option<&'a str>,
}

/// The directory to render: `destinations[].path`, else `path/<cluster>`, else `path/<environment>`, else `path`;
/// the first that holds manifests or a kustomization.
///
/// # Errors
/// [`RenderError::OverlayMissing`] names every directory that was looked in.
pub fn select(tree: &Tree, overlay: &Overlay<'_>) -> Result<String, RenderError> {
    let Overlay { path, own_path, cluster, environment } = *overlay;
    let candidates: Vec<String> = match own_path {
        Some(own) => vec![cleaned(own)?],
        None => {
            let path = cleaned(path)?;
            let below = cluster.into_iter().chain(environment);
            let below = below.map(|directory| format!("{path}/{directory}"));
            below.chain([path.clone()]).collect()
        }
    };
    let found = candidates.iter().find(|candidate| {
        kustomize::file_in(tree, candidate).is_some() || !plain_files(tree, candidate).is_empty()
    });
    found.cloned().ok_or_else(|| RenderError::OverlayMissing { looked_in: candidates.join(", ") })
}

/// Render one directory of `tree`, with `images` applied to what comes out.
///
/// A kustomization is built by the program in `kustomize`; otherwise the YAML and JSON files directly in the
/// directory are read. The tree is never written to. Blocks: belongs on a blocking thread.
///
/// # Errors
/// [`RenderError`] names the file or object. An image change that matches nothing is not one: see [`all_matched`].
pub fn render(
    tree: &Tree,
    path: &str,
    images: &[ImageChange],
    kustomize: &Kustomize,
) -> Result<Manifests, RenderError> {
    let path = cleaned(path)?;
    let path = path.as_str();
    let mut warnings = Vec::new();
    let (values, renderer) = match kustomize::file_in(tree, path) {
        Some(file) => kustomize::build(tree, path, &file, kustomize, &mut warnings)?,
        None => (plain(tree, path, &mut warnings)?, RendererVersion::plain()),
    };
    warnings.truncate(WARNINGS_MAX);
    let refused = |source| RenderError::Manifest { path: path.to_owned(), source };
    let mut rendering = manifest::write(values).map_err(refused)?;
    let mut objects = manifest::read(&rendering).map_err(refused)?;
    let mut images_matched = vec![false; images.len()];
    if !images.is_empty() {
        let mut changed = Vec::with_capacity(objects.len());
        for object in objects {
            changed.push(images::apply(object, images, &mut images_matched));
        }
        let values = changed.into_iter().map(|object| object.value().clone()).collect();
        rendering = manifest::write(values).map_err(refused)?;
        objects = manifest::read(&rendering).map_err(refused)?;
    }
    Ok(Manifests { rendering, objects, renderer, warnings, images_matched })
}

/// Check that every image change found its image in at least one of the renderings.
///
/// # Errors
/// [`RenderError::ImageUnmatched`] names the first that did not.
pub fn all_matched(images: &[ImageChange], renderings: &[&Manifests]) -> Result<(), RenderError> {
    for (index, image) in images.iter().enumerate() {
        let matched = renderings
            .iter()
            .any(|rendering| rendering.images_matched.get(index).copied().unwrap_or(false));
        if !matched {
            return Err(RenderError::ImageUnmatched { index, name: image.name.clone() });
        }
    }
    Ok(())
}

impl RendererVersion {
    fn plain() -> Self {
        Self { name: "yaml".to_owned(), version: "1".to_owned() }
    }
}

fn cleaned(path: &str) -> Result<String, RenderError> {
    clean_directory(path).map_err(|error| RenderError::Path(error.to_string()))
}

fn plain(tree: &Tree, path: &str, warnings: &mut Vec<Warning>) -> Result<Vec<Value>, RenderError> {
    let files = plain_files(tree, path);
    if files.is_empty() {
        return Err(RenderError::Empty { path: path.to_owned() });
    }
    let mut values = Vec::new();
    for (file, bytes) in files {
        for (index, value) in yaml::read(file, bytes, warnings)?.into_iter().enumerate() {
            check_object(file, index + 1, &value)?;
            values.push(value);
        }
    }
    Ok(values)
}

/// What stands in every object, so that an error can name the file it came from.
fn check_object(file: &str, document: usize, value: &Value) -> Result<(), RenderError> {
    let has = |field: &str| value.get(field).and_then(Value::as_str).is_some();
    let problem = if !value.is_object() {
        "it is not a mapping"
    } else if !has("apiVersion") {
        "`apiVersion` is missing"
    } else if !has("kind") {
        "`kind` is missing"
    } else {
        return Ok(());
    };
    Err(RenderError::NotAnObject { file: file.to_owned(), document, problem })
}

/// YAML and JSON files directly in a directory, as `kubectl apply -f DIRECTORY` takes them.
fn plain_files<'a>(tree: &'a Tree, directory: &str) -> Vec<(&'a str, &'a [u8])> {
    let prefix = format!("{directory}/");
    let is_manifest = |path: &str| {
        let name = path.strip_prefix(&prefix).unwrap_or_default();
        let suffix = name.rsplit_once('.').map(|(_, suffix)| suffix);
        !name.contains('/') && matches!(suffix, Some("yaml" | "yml" | "json"))
    };
    tree.under(directory).filter(|(path, _)| is_manifest(path)).collect()
}

#[cfg(test)]
mod tests;
