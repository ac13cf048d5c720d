//! From files to the bytes that CI signs: plain YAML and Kustomize become Rendering v1.
//!
//! CI and hub call the same [`render`]; a spoke never does. Helm and other programs are not run here: what they
//! gave is committed and signed as it is. Whether a rendering may go anywhere is decided by verification.
//! Files are read, built and written as Rendering v1 in an isolated process ([`RenderWorker`]).

mod end;
mod error;
mod foreign;
mod images;
mod isolation;
mod kustomization;
mod kustomize;
mod memory;
mod program;
mod settings;
mod slots;
mod wire;
mod worker;

use std::borrow::Cow;

use attest_common::documents::manifest::{self, Object};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::worker::Task;
use crate::ImageChange;
use crate::source::{ATTEST_DIRECTORY, RECIPE_FILE, Tree, clean_directory};
use crate::yaml::{self, WARNINGS_MAX, Warning, YamlBudget};

pub use error::RenderError;
pub use foreign::{FOREIGN_NAMED_MAX, ForeignAnnotation, foreign_annotations};
pub use isolation::FileIsolation;
pub use kustomization::KUSTOMIZATION_FILES;
pub use program::{OUTPUT_BYTES_MAX, RENDER_SECONDS_MAX};
pub use settings::Kustomize;
pub use slots::{RENDERS_WAITING_MAX, RESERVED_MS_MAX, RenderCapacity, SLOTS_MAX, SLOTS_MIN};
pub use worker::{Isolation, RenderWorker, run_as_worker};

/// A rendering and how it came about.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifests {
    /// Rendering v1.
    pub rendering: Vec<u8>,
    /// The same as objects, sorted.
    pub objects: Vec<Object>,
    /// The renderer that made it.
    pub renderer: RendererVersion,
    /// Scalars that readers of YAML understand differently.
    pub warnings: Vec<Warning>,
    /// For each image change, whether it matched an image.
    pub images_matched: Vec<bool>,
}

/// Name and version of a renderer, as a release statement lists them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RendererVersion {
    /// `yaml` or `kustomize`.
    pub name: String,
    /// Version of the program, or of Rendering.
    pub version: String,
}

/// Location of a destination's manifests.
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
        kustomization::file_in(tree, candidate).is_some()
            || !plain_files(tree, candidate).is_empty()
    });
    found.cloned().ok_or_else(|| RenderError::OverlayMissing { looked_in: candidates.join(", ") })
}

/// Renders one directory of `tree`, with `images` applied to what comes out.
///
/// A kustomization is built by the program in `kustomize`; otherwise the YAML and JSON files directly in the
/// directory are read. Both happen in an isolated process. Blocks, also while other repositories are rendered: belongs
/// on a blocking thread.
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
    let Kustomize { program, worker, repository, time, output_bytes_max } = kustomize;
    let is_kustomization = kustomization::file_in(tree, &path).is_some();
    let task = Task {
        path: &path,
        images,
        program: program.as_ref().filter(|_| is_kustomization),
        repository,
        time: *time,
        output_bytes_max: *output_bytes_max,
    };
    let files = if is_kustomization { for_kustomize(tree) } else { directly_in(tree, &path) };
    let product = worker.render(files, &task)?;
    Manifests::from_product(&path, product)
}

/// The result of a worker.
#[derive(Debug)]
struct Product {
    rendering: Vec<u8>,
    renderer: RendererVersion,
    warnings: Vec<Warning>,
    images_matched: Vec<bool>,
}

impl Manifests {
    fn from_product(path: &str, product: Product) -> Result<Self, RenderError> {
        let Product { rendering, renderer, warnings, images_matched } = product;
        let objects =
            manifest::read(&rendering).map_err(|error| RenderError::manifest(path, &error))?;
        Ok(Self { rendering, objects, renderer, warnings, images_matched })
    }
}

/// Renders in this process: the task of a worker.
fn produce(
    tree: &Tree,
    path: &str,
    images: &[ImageChange],
    program: Option<&kustomize::Program>,
    runner: &kustomize::Runner<'_>,
) -> Result<Product, RenderError> {
    let mut warnings = Vec::new();
    let (values, renderer) = match kustomization::file_in(tree, path) {
        Some(file) => kustomize::build(tree, path, &file, program, runner, &mut warnings)?,
        None => (plain(tree, path, &mut warnings)?, RendererVersion::plain()),
    };
    warnings.truncate(WARNINGS_MAX);
    let mut rendering =
        manifest::write(values).map_err(|error| RenderError::manifest(path, &error))?;
    let objects =
        manifest::read(&rendering).map_err(|error| RenderError::manifest(path, &error))?;
    let mut images_matched = vec![false; images.len()];
    if !images.is_empty() {
        let changed = objects
            .into_iter()
            .map(|object| images::apply(object, images, &mut images_matched).value().clone());
        rendering = manifest::write(changed.collect())
            .map_err(|error| RenderError::manifest(path, &error))?;
    }
    Ok(Product { rendering, renderer, warnings, images_matched })
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
    let mut budget = YamlBudget::default();
    for (file, bytes) in files {
        let documents = yaml::read_within(&mut budget, file, bytes, warnings)?;
        for (index, value) in documents.into_iter().enumerate() {
            check_object(file, index + 1, &value)?;
            values.push(value);
        }
    }
    Ok(values)
}

/// Checks the fields of every object, so that an error can name the file it came from.
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
    let problem = Cow::Borrowed(problem);
    Err(RenderError::NotAnObject { file: file.to_owned(), document, problem })
}

/// YAML and JSON files directly in a directory, as `kubectl apply -f DIRECTORY` takes them.
fn plain_files<'a>(tree: &'a Tree, directory: &str) -> Vec<(&'a str, &'a [u8])> {
    tree.under(directory).filter(|(path, _)| is_plain_file(path, directory)).collect()
}

fn is_plain_file(path: &str, directory: &str) -> bool {
    let name = path.strip_prefix(directory).and_then(|path| path.strip_prefix('/'));
    let name = name.unwrap_or_default();
    let suffix = name.rsplit_once('.').map(|(_, suffix)| suffix);
    !name.contains('/') && matches!(suffix, Some("yaml" | "yml" | "json"))
}

/// The files that kustomize may read: not those that were signed before.
fn for_kustomize(tree: &Tree) -> Tree {
    let signed_before = format!("{ATTEST_DIRECTORY}/");
    tree.filtered(|path| path != RECIPE_FILE && !path.starts_with(&signed_before))
}

/// The tree without files that plain rendering of `directory` does not read.
fn directly_in(tree: &Tree, directory: &str) -> Tree {
    tree.filtered(|path| is_plain_file(path, directory))
}

#[cfg(test)]
mod tests;
