//! `attest.yaml`: what an application is built from, what is rendered for whom, and what a release says of itself.
//!
//! Read strictly: an unknown field, an unset variable or a path outside the source root is an error that names the
//! file and the field. What the recipe describes is carried out elsewhere (`render`, `attest run`).

mod expand;
mod types;

use std::collections::BTreeSet;

use attest_common::basics::ids::Name;
use attest_common::basics::reason::Reason;
use attest_common::documents::release::GLOB_BYTES_MAX;

use crate::ImageChange;
use crate::source::{RepositoryUrl, clean_directory};

pub use expand::{IMAGE_TAG_BYTES_MAX, VARIABLE_BYTES_MAX};
pub use types::{
    Counter, NamespaceRule, RecipeRender, ReleaseSettings, ResultFormat, Step, StepResult,
};

/// Largest `attest.yaml`, in bytes.
pub const RECIPE_BYTES_MAX: usize = 256 * 1024;
/// Most steps, images and renders, each.
pub const RECIPE_ITEMS_MAX: usize = 256;
/// Longest time a release may be admitted, in seconds (two years).
pub const NOT_AFTER_SECONDS_MAX: u64 = 2 * 366 * 24 * 3600;

/// A checked `attest.yaml`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// Name of the application.
    pub application: String,
    /// Address of the repository as written; compared in its normalised form.
    pub repository: String,
    /// Directory that holds everything a rendering reads.
    pub source_root: String,
    /// What CI runs, in this order.
    pub steps: Vec<Step>,
    /// Image changes of this release.
    pub images: Vec<ImageChange>,
    /// What is rendered.
    pub renders: Vec<RecipeRender>,
    /// What the release statement says of itself.
    pub release: ReleaseSettings,
}

/// Why a recipe cannot be used. Shown with the file it came from.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {field}: {problem}")]
pub struct RecipeError {
    /// The file.
    pub file: String,
    /// Path of the field, `images[0].newTag`.
    pub field: String,
    /// What is wrong and what to write.
    pub problem: String,
    kind: RecipeErrorKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RecipeErrorKind {
    Syntax,
    Field,
    Variable,
}

impl RecipeError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self.kind {
            RecipeErrorKind::Syntax => Reason::RecipeSyntax,
            RecipeErrorKind::Field => Reason::RecipeField,
            RecipeErrorKind::Variable => Reason::RecipeVariable,
        }
    }
}

impl Recipe {
    /// Read `bytes` of `file`. Variables stay as they are written.
    ///
    /// # Errors
    /// [`RecipeError`] names the first field that is wrong.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, RecipeError> {
        let written = types::read(file, bytes)?;
        let here = Checker { file };
        let recipe = Self {
            application: written.application,
            repository: written.repository,
            source_root: written.source_root,
            steps: written.steps.unwrap_or_default(),
            images: written.images.unwrap_or_default(),
            renders: written.renders,
            release: written.release,
        };
        here.check(recipe)
    }

    /// The recipe with every `${NAME}` replaced by what `variable` answers; `$${` stands for `${`.
    /// `steps[].run` is left to the shell.
    ///
    /// # Errors
    /// [`RecipeError`] for an unset variable, or a value that does not fit its field.
    pub fn expand(
        self,
        file: &str,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, RecipeError> {
        expand::expand(self, file, &variable)
    }

    /// The render called `name`.
    pub fn render(&self, name: &str) -> Option<&RecipeRender> {
        self.renders.iter().find(|render| render.name == name)
    }
}

/// `sourceRoot` of a recipe that can be read; nothing when it cannot, which [`Recipe::parse`] explains.
pub fn declared_source_root(bytes: &[u8]) -> Option<String> {
    Recipe::parse("attest.yaml", bytes).ok().map(|recipe| recipe.source_root)
}

#[derive(Clone, Copy)]
pub(crate) struct Checker<'a> {
    pub(crate) file: &'a str,
}

impl Checker<'_> {
    pub(crate) fn wrong<T>(
        self,
        field: impl Into<String>,
        problem: impl Into<String>,
    ) -> Result<T, RecipeError> {
        Err(self.error(RecipeErrorKind::Field, field, problem))
    }

    pub(crate) fn unset<T>(self, field: &str, variable: &str) -> Result<T, RecipeError> {
        let problem = format!("variable {variable} is not set: set it where `attest run` runs");
        Err(self.error(RecipeErrorKind::Variable, field, problem))
    }

    pub(crate) fn syntax<T>(
        self,
        field: impl Into<String>,
        problem: impl Into<String>,
    ) -> Result<T, RecipeError> {
        Err(self.error(RecipeErrorKind::Syntax, field, problem))
    }

    fn error(
        self,
        kind: RecipeErrorKind,
        field: impl Into<String>,
        problem: impl Into<String>,
    ) -> RecipeError {
        RecipeError {
            file: self.file.to_owned(),
            field: field.into(),
            problem: problem.into(),
            kind,
        }
    }

    fn check(self, mut recipe: Recipe) -> Result<Recipe, RecipeError> {
        self.name("application", &recipe.application)?;
        if let Err(error) = RepositoryUrl::normalise(&recipe.repository) {
            return self.wrong("repository", error.to_string());
        }
        recipe.source_root = match clean_directory(&recipe.source_root) {
            Ok(root) => root,
            Err(error) => return self.wrong("sourceRoot", error.to_string()),
        };
        for (field, count) in [
            ("steps", recipe.steps.len()),
            ("images", recipe.images.len()),
            ("renders", recipe.renders.len()),
        ] {
            if count > RECIPE_ITEMS_MAX {
                return self.wrong(field, format!("more than {RECIPE_ITEMS_MAX} entries"));
            }
        }
        self.steps(&recipe.steps)?;
        self.images(&recipe)?;
        self.renders(&mut recipe)?;
        if let Err(problem) = recipe.release.not_after_seconds() {
            return self.wrong("release.notAfter", problem);
        }
        Ok(recipe)
    }

    fn steps(self, steps: &[Step]) -> Result<(), RecipeError> {
        let mut names = BTreeSet::new();
        for (index, step) in steps.iter().enumerate() {
            let field = |part: &str| format!("steps[{index}].{part}");
            self.name(&field("name"), &step.name)?;
            if !names.insert(&step.name) {
                return self.wrong(field("name"), format!("{:?} is there twice", step.name));
            }
            if step.run.trim().is_empty() {
                return self.wrong(field("run"), "is empty: write the command");
            }
            let formats = ResultFormat::of_step(&step.name);
            match &step.result {
                None if formats.is_empty() => {}
                None => {
                    let problem = format!(
                        "is missing: step {:?} attests one of {}",
                        step.name,
                        words(formats)
                    );
                    return self.wrong(field("result"), problem);
                }
                Some(_) if formats.is_empty() => {
                    let problem = "only steps `build`, `test` and `security-scan` have a result";
                    return self.wrong(field("result"), problem);
                }
                Some(result) if !formats.contains(&result.format) => {
                    let problem = format!("step {:?} attests one of {}", step.name, words(formats));
                    return self.wrong(field("result.format"), problem);
                }
                Some(StepResult { format: ResultFormat::ExitCode, path: Some(_) }) => {
                    return self.wrong(field("result.path"), "format `exit-code` reads no file");
                }
                Some(StepResult { format: ResultFormat::ExitCode, path: None }) => {}
                Some(StepResult { path: None, .. }) => {
                    return self.wrong(field("result.path"), "is missing: name the file it writes");
                }
                Some(StepResult { path: Some(path), .. }) => {
                    if let Err(error) = clean_directory(path) {
                        return self.wrong(field("result.path"), error.to_string());
                    }
                }
            }
        }
        Ok(())
    }

    fn images(self, recipe: &Recipe) -> Result<(), RecipeError> {
        let mut names = BTreeSet::new();
        for (index, image) in recipe.images.iter().enumerate() {
            let field = |part: &str| format!("images[{index}].{part}");
            if image.name.is_empty() || image.name.contains(['@', ' ']) {
                return self.wrong(field("name"), "write an image name without tag and digest");
            }
            if !names.insert(&image.name) {
                return self.wrong(field("name"), format!("{:?} is there twice", image.name));
            }
            let from_build = |from: &str| {
                recipe.steps.iter().any(|step| {
                    let image = |result: &StepResult| result.format.names_an_image();
                    step.name == from && step.result.as_ref().is_some_and(image)
                })
            };
            if image.from.as_deref().is_some_and(|from| !from_build(from)) {
                return self.wrong(field("from"), "names no step whose result is an image");
            }
        }
        Ok(())
    }

    fn renders(self, recipe: &mut Recipe) -> Result<(), RecipeError> {
        if recipe.renders.is_empty() {
            return self.wrong("renders", "is empty: nothing would be signed");
        }
        let mut names = BTreeSet::new();
        for (index, render) in recipe.renders.iter_mut().enumerate() {
            let field = |part: &str| format!("renders[{index}].{part}");
            self.name(&field("name"), &render.name)?;
            if !names.insert(render.name.clone()) {
                return self.wrong(field("name"), format!("{:?} is there twice", render.name));
            }
            render.path = match clean_directory(&render.path) {
                Ok(path) => path,
                Err(error) => return self.wrong(field("path"), error.to_string()),
            };
            let root = &recipe.source_root;
            if render.path != *root && !render.path.starts_with(&format!("{root}/")) {
                let problem = format!("{:?} lies outside sourceRoot {root:?}", render.path);
                return self.wrong(field("path"), problem);
            }
            if render.environments.is_empty() {
                return self.wrong(field("environments"), "is empty: name one, like [staging]");
            }
            for (index, environment) in render.environments.iter().enumerate() {
                self.name(&field(&format!("environments[{index}]")), environment)?;
            }
            if render.clusters.as_ref().is_some_and(Vec::is_empty) {
                return self.wrong(field("clusters"), "is empty: leave it out for every cluster");
            }
            for (index, cluster) in render.clusters.iter().flatten().enumerate() {
                self.name(&field(&format!("clusters[{index}]")), cluster)?;
            }
            match &render.namespace {
                NamespaceRule::Fixed { value } => self.name(&field("namespace.value"), value)?,
                NamespaceRule::DefaultOnly { pattern } if pattern.is_empty() => {
                    return self.wrong(field("namespace.pattern"), "is empty: write `*` for any");
                }
                NamespaceRule::DefaultOnly { pattern } if pattern.len() > GLOB_BYTES_MAX => {
                    return self.wrong(field("namespace.pattern"), "is longer than 1024 bytes");
                }
                NamespaceRule::DefaultOnly { .. } => {}
            }
        }
        Ok(())
    }

    fn name(self, field: &str, text: &str) -> Result<(), RecipeError> {
        match Name::new(text) {
            Ok(_) => Ok(()),
            Err(_) => self.wrong(
                field,
                format!("{text:?} is no name: lower-case letters, digits and `-`, 63 at most"),
            ),
        }
    }
}

fn words(formats: &[ResultFormat]) -> String {
    let words: Vec<String> = formats.iter().map(|format| format!("`{}`", format.word())).collect();
    words.join(", ")
}

#[cfg(test)]
mod tests;
