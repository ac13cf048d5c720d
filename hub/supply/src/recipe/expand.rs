//! Variables of a recipe.
//!
//! `${NAME}` is replaced in what describes the release: images and `release`. Commands are left to the shell that
//! runs them, and names, paths and rules must not depend on where CI runs.

use super::{Checker, Recipe, RecipeError};
use crate::ImageChange;

/// Longest value of a variable, in bytes.
pub const VARIABLE_BYTES_MAX: usize = 4096;
/// Longest image tag, in bytes.
pub const IMAGE_TAG_BYTES_MAX: usize = 128;

type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

pub(super) fn expand(
    mut recipe: Recipe,
    file: &str,
    variables: Variables<'_>,
) -> Result<Recipe, RecipeError> {
    let here = Checker { file };
    for (index, image) in recipe.images.iter_mut().enumerate() {
        let field = |part: &str| format!("images[{index}].{part}");
        expand_text(here, &field("name"), &mut image.name, variables)?;
        for (part, text) in [
            ("newName", &mut image.new_name),
            ("newTag", &mut image.new_tag),
            ("digest", &mut image.digest),
        ] {
            if let Some(text) = text {
                expand_text(here, &field(part), text, variables)?;
            }
        }
        check_image(here, index, image)?;
    }
    let release = &mut recipe.release;
    expand_text(here, "release.version", &mut release.version, variables)?;
    expand_text(here, "release.counter", &mut release.counter, variables)?;
    expand_text(here, "release.notAfter", &mut release.not_after, variables)?;
    if release.version.is_empty() || release.version.len() > IMAGE_TAG_BYTES_MAX {
        return here.wrong("release.version", "must have 1 to 128 bytes");
    }
    if release.counter().is_none() {
        let problem =
            format!("{:?} is neither `unix-seconds` nor a number above 0", release.counter);
        return here.wrong("release.counter", problem);
    }
    if let Err(problem) = release.not_after_seconds() {
        return here.wrong("release.notAfter", problem);
    }
    Ok(recipe)
}

fn expand_text(
    here: Checker<'_>,
    field: &str,
    text: &mut String,
    variables: Variables<'_>,
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
                return here.wrong(field, "has `${` without `}`");
            };
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
            if name.is_empty() || !name.bytes().all(plain) {
                let problem = format!("`${{{name}}}` is no variable: letters, digits and `_` only");
                return here.wrong(field, problem);
            }
            match variables(name) {
                None => return here.unset(field, name),
                Some(value) if value.is_empty() => return here.unset(field, name),
                Some(value) if value.len() > VARIABLE_BYTES_MAX => {
                    return here.wrong(field, format!("variable {name} is longer than 4 KiB"));
                }
                Some(value) => expanded.push_str(&value),
            }
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

fn check_image(here: Checker<'_>, index: usize, image: &ImageChange) -> Result<(), RecipeError> {
    let field = |part: &str| format!("images[{index}].{part}");
    let tag_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let is_tag = |tag: &str| {
        (1..=IMAGE_TAG_BYTES_MAX).contains(&tag.len())
            && tag.bytes().all(tag_byte)
            && !tag.starts_with(['.', '-'])
    };
    if let Some(tag) = image.new_tag.as_deref().filter(|tag| !is_tag(tag)) {
        return here.wrong(field("newTag"), format!("{tag:?} is no image tag"));
    }
    let is_digest = |digest: &str| {
        digest.strip_prefix("sha256:").is_some_and(|hex| {
            hex.len() == 64 && hex.bytes().all(|byte| b"0123456789abcdef".contains(&byte))
        })
    };
    if let Some(digest) = image.digest.as_deref().filter(|digest| !is_digest(digest)) {
        return here.wrong(field("digest"), format!("{digest:?} is not sha256: and 64 digits"));
    }
    let is_name = |name: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"./:_-".contains(&byte);
        !name.is_empty() && name.bytes().all(plain)
    };
    if let Some(name) = image.new_name.as_deref().filter(|name| !is_name(name)) {
        return here.wrong(field("newName"), format!("{name:?} is no image name"));
    }
    Ok(())
}
