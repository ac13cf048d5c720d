//! Rules of a recipe that its shape does not express: names, paths, references between fields.

use std::collections::BTreeSet;

use attest_common::basics::ids::Name;
use attest_common::documents::release::GLOB_BYTES_MAX;

use super::{
    Recipe, RecipeError, RecipeFile, RecipeNamespaceRule, RecipeRender, RecipeStep, ResultFormat,
    StepResult, item_field,
};
use crate::ImageChange;
use crate::source::{RepositoryUrl, clean_directory};

/// Maximum number of steps, of images and of renders.
pub const RECIPE_ITEMS_MAX: usize = 256;

/// Checks `recipe` and normalises its paths.
pub(super) fn check_recipe(
    file: RecipeFile<'_>,
    mut recipe: Recipe,
) -> Result<Recipe, RecipeError> {
    check_name(file, "application", &recipe.application)?;
    RepositoryUrl::normalise(&recipe.repository)
        .map_err(|error| file.field_error("repository", error.to_string()))?;
    recipe.source_root = clean_path(file, "sourceRoot", &recipe.source_root)?;
    for (field, count) in [
        ("steps", recipe.steps.len()),
        ("images", recipe.images.len()),
        ("renders", recipe.renders.len()),
    ] {
        if count > RECIPE_ITEMS_MAX {
            let problem = format!("has more than {RECIPE_ITEMS_MAX} entries");
            return Err(file.field_error(field, problem));
        }
    }
    check_steps(file, &recipe.steps)?;
    check_images(file, &recipe)?;
    check_renders(file, &mut recipe)?;
    recipe
        .release
        .not_after_seconds()
        .map_err(|problem| file.field_error("release.notAfter", problem))?;
    Ok(recipe)
}

fn check_steps(file: RecipeFile<'_>, steps: &[RecipeStep]) -> Result<(), RecipeError> {
    let mut names = BTreeSet::new();
    for (index, step) in steps.iter().enumerate() {
        let name_field = item_field("steps", index, "name");
        check_name(file, &name_field, &step.name)?;
        if !names.insert(&step.name) {
            return Err(duplicate_name(file, name_field, &step.name));
        }
        if step.run.trim().is_empty() {
            return Err(file.field_error(item_field("steps", index, "run"), "is empty"));
        }
        check_result(file, index, step)?;
    }
    Ok(())
}

fn check_result(file: RecipeFile<'_>, index: usize, step: &RecipeStep) -> Result<(), RecipeError> {
    let formats = ResultFormat::for_step(&step.name);
    let field = item_field("steps", index, "result");
    let Some(StepResult { format, path }) = &step.result else {
        if formats.is_empty() {
            return Ok(());
        }
        let problem =
            format!("is missing; step {:?} requires one of {}", step.name, quoted(formats));
        return Err(file.field_error(field, problem));
    };
    if formats.is_empty() {
        let problem = "only steps `build`, `test` and `security-scan` have a result";
        return Err(file.field_error(field, problem));
    }
    if !formats.contains(format) {
        let problem = format!("step {:?} requires one of {}", step.name, quoted(formats));
        return Err(file.field_error(format!("{field}.format"), problem));
    }
    let path_field = format!("{field}.path");
    match (format, path) {
        (ResultFormat::ExitCode, None) => Ok(()),
        (ResultFormat::ExitCode, Some(_)) => {
            Err(file.field_error(path_field, "format `exit-code` has no file; remove the path"))
        }
        (_, None) => {
            Err(file.field_error(path_field, "is missing; set the file that the step writes"))
        }
        (_, Some(path)) => clean_path(file, &path_field, path).map(|_| ()),
    }
}

fn check_images(file: RecipeFile<'_>, recipe: &Recipe) -> Result<(), RecipeError> {
    let mut names = BTreeSet::new();
    for (index, image) in recipe.images.iter().enumerate() {
        let name_field = item_field("images", index, "name");
        if image.name.is_empty() || image.name.contains(['@', ' ']) {
            let problem = "is not an image name without tag and digest";
            return Err(file.field_error(name_field, problem));
        }
        if !names.insert(&image.name) {
            return Err(duplicate_name(file, name_field, &image.name));
        }
        let ImageChange { new_name, new_tag, digest, from, .. } = image;
        if new_name.is_none() && new_tag.is_none() && digest.is_none() && from.is_none() {
            let problem =
                "changes nothing; set newName, newTag, digest or from, or remove the entry";
            return Err(file.field_error(format!("images[{index}]"), problem));
        }
        check_from(file, index, image, &recipe.steps)?;
    }
    Ok(())
}

fn check_from(
    file: RecipeFile<'_>,
    index: usize,
    image: &ImageChange,
    steps: &[RecipeStep],
) -> Result<(), RecipeError> {
    let Some(from) = &image.from else { return Ok(()) };
    let step = steps.iter().find(|step| step.name == *from);
    let result = step.and_then(|step| step.result.as_ref());
    if result.is_some_and(|result| result.format.contains_image()) {
        return Ok(());
    }
    let field = item_field("images", index, "from");
    Err(file.field_error(field, "is not a step whose result is an image"))
}

fn check_renders(file: RecipeFile<'_>, recipe: &mut Recipe) -> Result<(), RecipeError> {
    if recipe.renders.is_empty() {
        return Err(file.field_error("renders", "is empty; there is nothing to sign"));
    }
    let mut names = BTreeSet::new();
    for (index, render) in recipe.renders.iter_mut().enumerate() {
        let name_field = item_field("renders", index, "name");
        check_name(file, &name_field, &render.name)?;
        if !names.insert(render.name.clone()) {
            return Err(duplicate_name(file, name_field, &render.name));
        }
        let path_field = item_field("renders", index, "path");
        render.path = clean_path(file, &path_field, &render.path)?;
        let root = &recipe.source_root;
        if render.path != *root && !render.path.starts_with(&format!("{root}/")) {
            let problem = format!("{:?} is outside sourceRoot {root:?}", render.path);
            return Err(file.field_error(path_field, problem));
        }
        check_targets(file, index, render)?;
        check_namespace(file, index, &render.namespace)?;
    }
    Ok(())
}

fn check_targets(
    file: RecipeFile<'_>,
    index: usize,
    render: &RecipeRender,
) -> Result<(), RecipeError> {
    let environments = item_field("renders", index, "environments");
    if render.environments.is_empty() {
        return Err(file.field_error(environments, "is empty; add one, for example [staging]"));
    }
    for (number, environment) in render.environments.iter().enumerate() {
        check_name(file, &format!("{environments}[{number}]"), environment)?;
    }
    let clusters = item_field("renders", index, "clusters");
    if render.clusters.as_ref().is_some_and(Vec::is_empty) {
        return Err(file.field_error(clusters, "is empty; remove the field to allow all clusters"));
    }
    for (number, cluster) in render.clusters.iter().flatten().enumerate() {
        check_name(file, &format!("{clusters}[{number}]"), cluster)?;
    }
    Ok(())
}

fn check_namespace(
    file: RecipeFile<'_>,
    index: usize,
    rule: &RecipeNamespaceRule,
) -> Result<(), RecipeError> {
    let pattern_field = item_field("renders", index, "namespace.pattern");
    match rule {
        RecipeNamespaceRule::Fixed { value } => {
            check_name(file, &item_field("renders", index, "namespace.value"), value)
        }
        RecipeNamespaceRule::DefaultOnly { pattern } if pattern.is_empty() => {
            Err(file.field_error(pattern_field, "is empty; use `*` for any namespace"))
        }
        RecipeNamespaceRule::DefaultOnly { pattern } if pattern.len() > GLOB_BYTES_MAX => {
            Err(file.field_error(pattern_field, "is longer than 1024 bytes"))
        }
        RecipeNamespaceRule::DefaultOnly { .. } => Ok(()),
    }
}

fn check_name(file: RecipeFile<'_>, field: &str, text: &str) -> Result<(), RecipeError> {
    if Name::new(text).is_ok() {
        return Ok(());
    }
    let problem =
        format!("{text:?} is not a name; use at most 63 lower-case letters, digits and `-`");
    Err(file.field_error(field, problem))
}

fn clean_path(file: RecipeFile<'_>, field: &str, path: &str) -> Result<String, RecipeError> {
    clean_directory(path).map_err(|error| file.field_error(field, error.to_string()))
}

fn duplicate_name(file: RecipeFile<'_>, field: String, name: &str) -> RecipeError {
    file.field_error(field, format!("{name:?} occurs twice"))
}

fn quoted(formats: &[ResultFormat]) -> String {
    let formats: Vec<String> =
        formats.iter().map(|format| format!("`{}`", format.as_str())).collect();
    formats.join(", ")
}
