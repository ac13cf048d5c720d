//! Every destination rendered from the files of the work tree, and the digest of every image in it.

use std::collections::BTreeMap;

use attest_common::basics::ids::Digest;
use attest_common::documents::manifest;
use attest_common::documents::release::ImageDigest;

use super::CiError;
use crate::ImageChange;
use crate::recipe::{Recipe, RecipeRender};
use crate::render::{Kustomize, Manifests, all_matched, render};
use crate::source::Tree;

/// One rendering with what the release will say of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendered {
    pub recipe: RecipeRender,
    pub manifests: Manifests,
    /// Filled by [`Rendered::pin`].
    pub images: Vec<ImageDigest>,
}

/// Renders `renders` of `recipe` with its image changes.
///
/// # Errors
/// [`CiError::Render`] names file, object or image change.
pub fn render_all(
    tree: &Tree,
    recipe: &Recipe,
    renders: &[RecipeRender],
    kustomize: &Kustomize,
) -> Result<Vec<Rendered>, CiError> {
    let mut rendered = Vec::new();
    for one in renders {
        let manifests = render(tree, &one.path, &recipe.images, kustomize)?;
        rendered.push(Rendered { recipe: one.clone(), manifests, images: Vec::new() });
    }
    let all: Vec<&Manifests> = rendered.iter().map(|one| &one.manifests).collect();
    // An image may be in renders that are not made this time.
    if renders.len() == recipe.renders.len() {
        all_matched(&recipe.images, &all)?;
    }
    Ok(rendered)
}

impl Rendered {
    /// Finds the digest of every image: written in Git, or given by a step.
    ///
    /// # Errors
    /// [`CiError::ImageUnpinned`] names the image and what should give the digest.
    pub fn pin(
        &mut self,
        changes: &[ImageChange],
        digests: &BTreeMap<String, Digest>,
    ) -> Result<(), CiError> {
        let mut images = Vec::new();
        for reference in manifest::images(&self.manifests.objects) {
            let digest = self.digest_of(&reference, changes, digests)?;
            images.push(ImageDigest { reference, digest });
        }
        self.images = images;
        Ok(())
    }

    fn digest_of(
        &self,
        reference: &str,
        changes: &[ImageChange],
        digests: &BTreeMap<String, Digest>,
    ) -> Result<Digest, CiError> {
        let unpinned = |remedy: String| CiError::ImageUnpinned {
            render: self.recipe.name.clone(),
            image: reference.to_owned(),
            remedy,
        };
        let change = changes.iter().find(|change| names(change, reference));
        let step = change.and_then(|change| change.from.as_deref());
        let made = step.and_then(|step| digests.get(step));
        if let Some((_, written)) = reference.rsplit_once('@') {
            let written: Digest = written
                .parse()
                .map_err(|_| unpinned("correct the digest behind `@`".to_owned()))?;
            return match (made, step) {
                (Some(made), Some(step)) if *made != written => Err(CiError::ImageDigestDiffers {
                    render: self.recipe.name.clone(),
                    image: reference.to_owned(),
                    step: step.to_owned(),
                    digest: made.to_string(),
                }),
                (Some(_) | None, _) => Ok(written),
            };
        }
        match (made, step, change) {
            (Some(digest), _, _) => Ok(*digest),
            (None, Some(step), _) => {
                Err(unpinned(format!("step `{step}` should have given it and was not run")))
            }
            (None, None, Some(change)) => Err(unpinned(format!(
                "add `from: build` to the entry {:?} of attest.yaml's images, or its `digest`",
                change.name
            ))),
            (None, None, None) if reference.is_empty() => {
                Err(unpinned("name an image in the container".to_owned()))
            }
            (None, None, None) => Err(unpinned(format!(
                "write {reference}@sha256:… in Git, or add it to attest.yaml's images with `from:` the step \
                 that builds it"
            ))),
        }
    }
}

/// Whether an image reference is what an image change made.
pub(super) fn names(change: &ImageChange, reference: &str) -> bool {
    let name = change.new_name.as_deref().unwrap_or(&change.name);
    reference.strip_prefix(name).is_some_and(|rest| {
        let tag = rest.split('@').next().unwrap_or_default();
        (tag.is_empty() || tag.starts_with(':')) && !tag.contains('/')
    })
}
