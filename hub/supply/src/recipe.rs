//! `attest.yaml`: the steps of CI, the renderings for each environment, and the properties of a release.
//!
//! An unknown field, an unset variable or a path outside the source root is an error that names the file and the field.
//! `render` and `attest run` execute the recipe.

mod check;
mod expand;
mod types;

use attest_common::basics::reason::Reason;

use crate::ImageChange;

pub use check::RECIPE_ITEMS_MAX;
pub use expand::{IMAGE_TAG_BYTES_MAX, VARIABLE_BYTES_MAX};
pub use types::{
    Counter, NOT_AFTER_SECONDS_MAX, RECIPE_BYTES_MAX, RecipeNamespaceRule, RecipeRender,
    RecipeStep, ReleaseSettings, ResultFormat, StepResult,
};

/// A checked `attest.yaml`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// Name of the application.
    pub application: String,
    /// Address of the repository as written; compared in its normalised form.
    pub repository: String,
    /// Directory that contains every file that a rendering reads.
    pub source_root: String,
    /// Steps of CI, in order.
    pub steps: Vec<RecipeStep>,
    /// Image changes of this release.
    pub images: Vec<ImageChange>,
    /// Renderings.
    pub renders: Vec<RecipeRender>,
    /// Properties of the release statement.
    pub release: ReleaseSettings,
}

/// An invalid recipe.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {field}: {problem}")]
pub struct RecipeError {
    /// Path of the file.
    pub file: String,
    /// Path of the field, `images[0].newTag`.
    pub field: String,
    /// Rule that the field violates, and the remedy.
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

/// Creates errors of one file.
#[derive(Clone, Copy)]
struct RecipeFile<'a> {
    file: &'a str,
}

impl RecipeFile<'_> {
    fn field_error(self, field: impl Into<String>, problem: impl Into<String>) -> RecipeError {
        self.error(RecipeErrorKind::Field, field.into(), problem.into())
    }

    fn unset_variable(self, field: &str, variable: &str) -> RecipeError {
        let problem =
            format!("variable {variable} is not set; set it in the environment of `attest run`");
        self.error(RecipeErrorKind::Variable, field.to_owned(), problem)
    }

    fn syntax_error(self, field: impl Into<String>, problem: impl Into<String>) -> RecipeError {
        self.error(RecipeErrorKind::Syntax, field.into(), problem.into())
    }

    fn error(self, kind: RecipeErrorKind, field: String, problem: String) -> RecipeError {
        RecipeError { file: self.file.to_owned(), field, problem, kind }
    }
}

/// Returns the path of a field of a list item: `steps[0].name`.
fn item_field(list: &str, index: usize, field: &str) -> String {
    format!("{list}[{index}].{field}")
}

impl Recipe {
    /// Parses and checks the `bytes` of `file`. Variables are not replaced.
    ///
    /// # Errors
    /// [`RecipeError`] for the first invalid field.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, RecipeError> {
        let document = types::parse_document(RecipeFile { file }, bytes)?;
        let recipe = Self {
            application: document.application,
            repository: document.repository,
            source_root: document.source_root,
            steps: document.steps.unwrap_or_default(),
            images: document.images.unwrap_or_default(),
            renders: document.renders,
            release: document.release,
        };
        check::check_recipe(RecipeFile { file }, recipe)
    }

    /// Replaces every `${NAME}` by the value that `variable` returns, and `$${` by `${`. `steps[].run` is left to the
    /// shell.
    ///
    /// # Errors
    /// [`RecipeError`] for an unset variable, or a value that is invalid in its field.
    pub fn expand(
        self,
        file: &str,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, RecipeError> {
        expand::expand_recipe(self, RecipeFile { file }, &variable)
    }

    /// Returns the render with this name.
    pub fn render(&self, name: &str) -> Option<&RecipeRender> {
        self.renders.iter().find(|render| render.name == name)
    }
}

/// Returns `sourceRoot` of a recipe; `None` for an invalid one, which [`Recipe::parse`] explains.
pub fn declared_source_root(bytes: &[u8]) -> Option<String> {
    Recipe::parse("attest.yaml", bytes).ok().map(|recipe| recipe.source_root)
}

#[cfg(test)]
mod tests;
