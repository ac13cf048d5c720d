//! Compares signed renderings with those of the work tree, as a hub will with the next commit.

use attest_common::basics::ids::Digest;
use attest_common::documents::manifest::{self, Object};
use attest_common::objects::difference::{Difference, differences};

use super::{CheckRow, Checkout, CiError, ReleaseStore, StoredRelease};
use crate::recipe::{Recipe, RecipeRender};
use crate::render::{Kustomize, Manifests, render};
use crate::source::Tree;

/// Compares each rendering in `index` with a new rendering of the work tree. `only` selects one render.
///
/// # Errors
/// [`CiError`] if the work tree cannot be rendered.
pub fn compare_work_tree(
    checkout: &Checkout,
    index: &Tree,
    only: Option<&str>,
    kustomize: &Kustomize,
) -> Result<Vec<CheckRow>, CiError> {
    let recipe = checkout.recipe();
    let store = ReleaseStore::new(checkout.root(), &recipe.application);
    let releases = store.releases(index);
    let (files, _) = checkout.read_files()?;
    let mut rows = Vec::new();
    for recipe_render in &recipe.renders {
        if only.is_some_and(|name| name != recipe_render.name) {
            continue;
        }
        let Some(signed) = index.get(&store.rendering_path(&recipe_render.name)) else { continue };
        let fresh = render(&files, &recipe_render.path, &[], kustomize)?;
        if fresh.rendering == signed {
            let detail = format!("{} renders the signed bytes", recipe_render.path);
            rows.push(comparison_row(recipe_render, "WorkingTree", true, detail));
        } else {
            rows.extend(difference_rows(recipe, recipe_render, signed, &fresh, &releases));
        }
    }
    Ok(rows)
}

/// Describes the first difference between a signed rendering and `objects`.
pub fn first_difference(signed: &[u8], objects: &[Object]) -> String {
    let signed_objects = manifest::read(signed).unwrap_or_default();
    let difference = differences(&signed_objects, objects).into_iter().next();
    difference
        .map_or_else(|| "the renderings differ".to_owned(), |difference| difference.to_string())
}

fn difference_rows(
    recipe: &Recipe,
    recipe_render: &RecipeRender,
    signed: &[u8],
    fresh: &Manifests,
    releases: &[StoredRelease],
) -> Vec<CheckRow> {
    let check = if is_other_version(signed, fresh, releases) {
        "RendererMismatch"
    } else {
        "ContentDigest"
    };
    let signed_objects = manifest::read(signed).unwrap_or_default();
    let found = differences(&signed_objects, &fresh.objects);
    if found.is_empty() {
        let detail = "the bytes differ, but the objects are equal".to_owned();
        return vec![comparison_row(recipe_render, check, false, detail)];
    }
    found
        .iter()
        .map(|difference| {
            let hint = if is_declared(difference, recipe) {
                "; this is the declared image change, which must be written into the files before the commit"
            } else {
                ""
            };
            comparison_row(recipe_render, check, false, format!("{difference}{hint}"))
        })
        .collect()
}

fn comparison_row(
    recipe_render: &RecipeRender,
    check: &str,
    passed: bool,
    detail: String,
) -> CheckRow {
    CheckRow {
        render: recipe_render.name.clone(),
        environment: None,
        cluster: None,
        namespace: None,
        check: check.to_owned(),
        passed,
        detail,
    }
}

/// Returns whether another version of the renderer created the signed rendering.
fn is_other_version(signed: &[u8], fresh: &Manifests, releases: &[StoredRelease]) -> bool {
    let digest = Digest::of(signed);
    let release = releases.iter().find(|stored| stored.statement.covers(&digest));
    release.map(|stored| &stored.release.renderer).is_some_and(|renderer| {
        renderer.name == fresh.renderer.name && renderer.version != fresh.renderer.version
    })
}

/// Returns whether a difference is an image that the recipe changes and the files do not contain yet.
fn is_declared(difference: &Difference, recipe: &Recipe) -> bool {
    let image = difference.found.as_deref().unwrap_or_default();
    difference.field.ends_with(".image")
        && recipe.images.iter().any(|change| {
            image
                .strip_prefix(&change.name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '@']))
        })
}
