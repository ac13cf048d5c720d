//! Renderings of the checkout's files for all destinations, with the digest of every image.

use std::collections::BTreeMap;

use attest_common::basics::ids::Digest;
use attest_common::documents::manifest;
use attest_common::documents::release::ImageDigest;

use super::CiError;
use crate::ImageChange;
use crate::recipe::{Recipe, RecipeRender};
use crate::render::{Kustomize, Manifests, all_matched, render};
use crate::source::Tree;

/// One rendering of a release.
#[derive(Clone, Debug, PartialEq)]
pub struct ReleaseRendering {
    pub recipe: RecipeRender,
    pub manifests: Manifests,
    /// Images with their digests, set by [`ReleaseRendering::pin_images`].
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
) -> Result<Vec<ReleaseRendering>, CiError> {
    let mut rendered = Vec::new();
    for recipe_render in renders {
        let manifests = render(tree, &recipe_render.path, &recipe.images, kustomize)?;
        let recipe = recipe_render.clone();
        rendered.push(ReleaseRendering { recipe, manifests, images: Vec::new() });
    }
    // Without all renders, an image may be in one that is not rendered.
    if renders.len() == recipe.renders.len() {
        let all: Vec<&Manifests> = rendered.iter().map(|one| &one.manifests).collect();
        all_matched(&recipe.images, &all)?;
    }
    Ok(rendered)
}

impl ReleaseRendering {
    /// Finds the digest of every image: written in Git, or in `digests`, the results of the steps.
    ///
    /// # Errors
    /// [`CiError::ImageUnpinned`] with the image and the source of its digest, [`CiError::ImageDigestDiffers`] if Git and
    /// a step disagree.
    pub fn pin_images(
        &mut self,
        changes: &[ImageChange],
        digests: &BTreeMap<String, Digest>,
    ) -> Result<(), CiError> {
        let mut images = Vec::new();
        for reference in manifest::images(&self.manifests.objects) {
            let digest = self.image_digest(&reference, changes, digests)?;
            images.push(ImageDigest { reference, digest });
        }
        self.images = images;
        Ok(())
    }

    fn image_digest(
        &self,
        reference: &str,
        changes: &[ImageChange],
        digests: &BTreeMap<String, Digest>,
    ) -> Result<Digest, CiError> {
        let change = changes.iter().find(|change| is_result_of(change, reference));
        let step = change.and_then(|change| change.from.as_deref());
        let built = step.and_then(|step| Some((step, *digests.get(step)?)));
        if let Some((_, digest)) = reference.rsplit_once('@') {
            return self.written_digest(reference, digest, built);
        }
        if let Some((_, digest)) = built {
            return Ok(digest);
        }
        let remedy = match (step, change) {
            (Some(step), _) => format!("step `{step}`, which builds it, did not run"),
            (None, Some(change)) => format!(
                "add `from: build` or `digest` to the entry {:?} of `images` in attest.yaml",
                change.name
            ),
            (None, None) if reference.is_empty() => "set an image in the container".to_owned(),
            (None, None) => format!(
                "write {reference}@sha256:… in Git, or add it to `images` in attest.yaml with `from:` the step that \
                 builds it"
            ),
        };
        Err(self.unpinned(reference, remedy))
    }

    /// Parses the digest in `reference`, which must be that of the image that a step built.
    fn written_digest(
        &self,
        reference: &str,
        digest: &str,
        built: Option<(&str, Digest)>,
    ) -> Result<Digest, CiError> {
        let written: Digest = digest
            .parse()
            .map_err(|_| self.unpinned(reference, "correct the digest after `@`".to_owned()))?;
        match built {
            Some((step, built)) if built != written => Err(CiError::ImageDigestDiffers {
                render: self.recipe.name.clone(),
                image: reference.to_owned(),
                step: step.to_owned(),
                digest: built.to_string(),
            }),
            Some(_) | None => Ok(written),
        }
    }

    fn unpinned(&self, reference: &str, remedy: String) -> CiError {
        CiError::ImageUnpinned {
            render: self.recipe.name.clone(),
            image: reference.to_owned(),
            remedy,
        }
    }
}

/// Returns whether an image change produces references of this image.
fn is_result_of(change: &ImageChange, reference: &str) -> bool {
    let name = change.new_name.as_deref().unwrap_or(&change.name);
    reference.strip_prefix(name).is_some_and(|rest| {
        let tag = rest.split('@').next().unwrap_or_default();
        (tag.is_empty() || tag.starts_with(':')) && !tag.contains('/')
    })
}
