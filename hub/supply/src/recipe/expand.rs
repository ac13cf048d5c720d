//! Variables of a recipe.
//!
//! `${NAME}` is replaced in the description of the release: `images` and `release`. The shell expands commands. Names,
//! paths and rules do not depend on the environment of CI.

use super::{Recipe, RecipeError, RecipeFile, item_field};
use crate::ImageChange;

/// Maximum length of the value of a variable, in bytes.
pub const VARIABLE_BYTES_MAX: usize = 4096;
/// Maximum length of an image tag, in bytes.
pub const IMAGE_TAG_BYTES_MAX: usize = 128;

type VariableLookup<'a> = &'a dyn Fn(&str) -> Option<String>;

pub(super) fn expand_recipe(
    mut recipe: Recipe,
    file: RecipeFile<'_>,
    variables: VariableLookup<'_>,
) -> Result<Recipe, RecipeError> {
    for (index, image) in recipe.images.iter_mut().enumerate() {
        expand_text(file, &item_field("images", index, "name"), &mut image.name, variables)?;
        for (part, text) in [
            ("newName", &mut image.new_name),
            ("newTag", &mut image.new_tag),
            ("digest", &mut image.digest),
        ] {
            if let Some(text) = text {
                expand_text(file, &item_field("images", index, part), text, variables)?;
            }
        }
        check_image(file, index, image)?;
    }
    let release = &mut recipe.release;
    expand_text(file, "release.version", &mut release.version, variables)?;
    expand_text(file, "release.counter", &mut release.counter, variables)?;
    expand_text(file, "release.notAfter", &mut release.not_after, variables)?;
    if release.version.is_empty() || release.version.len() > IMAGE_TAG_BYTES_MAX {
        return Err(file.field_error("release.version", "must have 1 to 128 bytes"));
    }
    if release.counter().is_none() {
        let problem =
            format!("{:?} is neither `unix-seconds` nor a number above 0", release.counter);
        return Err(file.field_error("release.counter", problem));
    }
    release.not_after_seconds().map_err(|problem| file.field_error("release.notAfter", problem))?;
    Ok(recipe)
}

fn expand_text(
    file: RecipeFile<'_>,
    field: &str,
    text: &mut String,
    variables: VariableLookup<'_>,
) -> Result<(), RecipeError> {
    let mut expanded = String::new();
    let mut rest = text.as_str();
    while let Some(at) = rest.find('$') {
        let (before, from) = rest.split_at(at);
        expanded.push_str(before);
        if let Some(after) = from.strip_prefix("$${") {
            expanded.push_str("${");
            rest = after;
        } else if let Some(inside) = from.strip_prefix("${") {
            let Some((name, after)) = inside.split_once('}') else {
                return Err(file.field_error(field, "has `${` without `}`"));
            };
            expanded.push_str(&variable_value(file, field, name, variables)?);
            rest = after;
        } else {
            expanded.push('$');
            rest = from.get(1..).unwrap_or_default();
        }
    }
    expanded.push_str(rest);
    *text = expanded;
    Ok(())
}

fn variable_value(
    file: RecipeFile<'_>,
    field: &str,
    name: &str,
    variables: VariableLookup<'_>,
) -> Result<String, RecipeError> {
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        let problem = format!("`${{{name}}}` is not a variable; use letters, digits and `_`");
        return Err(file.field_error(field, problem));
    }
    match variables(name).filter(|value| !value.is_empty()) {
        None => Err(file.unset_variable(field, name)),
        Some(value) if value.len() > VARIABLE_BYTES_MAX => {
            Err(file.field_error(field, format!("variable {name} is longer than 4 KiB")))
        }
        Some(value) => Ok(value),
    }
}

fn check_image(file: RecipeFile<'_>, index: usize, image: &ImageChange) -> Result<(), RecipeError> {
    let (field, problem) = if let Some(tag) = image.new_tag.as_ref().filter(|tag| !is_tag(tag)) {
        ("newTag", format!("{tag:?} is not an image tag"))
    } else if let Some(digest) = image.digest.as_ref().filter(|digest| !is_digest(digest)) {
        ("digest", format!("{digest:?} is not `sha256:` and 64 hexadecimal digits"))
    } else if let Some(name) = image.new_name.as_ref().filter(|name| !is_image_name(name)) {
        ("newName", format!("{name:?} is not an image name"))
    } else {
        return Ok(());
    };
    Err(file.field_error(item_field("images", index, field), problem))
}

fn is_tag(tag: &str) -> bool {
    (1..=IMAGE_TAG_BYTES_MAX).contains(&tag.len())
        && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        && !tag.starts_with(['.', '-'])
}

fn is_digest(digest: &str) -> bool {
    digest.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|byte| b"0123456789abcdef".contains(&byte))
    })
}

fn is_image_name(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"./:_-".contains(&byte))
}
