//! Fields of `attest.yaml`.
//!
//! Deserialisation checks the shape; `check` checks the relations between fields.

use serde::Deserialize;

use super::{RecipeError, RecipeFile};
use crate::{ImageChange, yaml};

/// Maximum size of an `attest.yaml`, in bytes.
pub const RECIPE_BYTES_MAX: usize = 256 * 1024;
/// Maximum time for which a release is admissible, in seconds (two years).
pub const NOT_AFTER_SECONDS_MAX: u64 = 2 * 366 * 24 * 3600;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RecipeDocument {
    pub(super) application: String,
    pub(super) repository: String,
    pub(super) source_root: String,
    pub(super) steps: Option<Vec<RecipeStep>>,
    pub(super) images: Option<Vec<ImageChange>>,
    pub(super) renders: Vec<RecipeRender>,
    pub(super) release: ReleaseSettings,
}

/// One command of CI and its result.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RecipeStep {
    /// Name. `build`, `test` and `security-scan` are attested; other steps only run.
    pub name: String,
    /// Shell command.
    pub run: String,
    /// Result from which the outcome is read.
    pub result: Option<StepResult>,
}

/// Location and format of a step's result.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct StepResult {
    /// Format.
    pub format: ResultFormat,
    /// File or directory relative to the root; `None` for `exit-code` only.
    pub path: Option<String>,
}

/// Format of a step's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResultFormat {
    /// Directory with an OCI image layout.
    OciLayout,
    /// JSON of `buildx build --metadata-file`.
    BuildkitMetadata,
    /// JUnit XML.
    Junit,
    /// No file: the step passes if its command succeeds.
    ExitCode,
    /// Predicate vulns v0.2 of in-toto.
    #[serde(rename = "vulns-v0.2")]
    VulnsV02,
    /// JSON report of grype.
    GrypeJson,
    /// JSON report of trivy.
    TrivyJson,
}

impl ResultFormat {
    /// Returns the value in `attest.yaml`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OciLayout => "oci-layout",
            Self::BuildkitMetadata => "buildkit-metadata",
            Self::Junit => "junit",
            Self::ExitCode => "exit-code",
            Self::VulnsV02 => "vulns-v0.2",
            Self::GrypeJson => "grype-json",
            Self::TrivyJson => "trivy-json",
        }
    }

    /// Returns whether the result contains an image digest.
    pub fn contains_image(self) -> bool {
        matches!(self, Self::OciLayout | Self::BuildkitMetadata)
    }

    /// Returns the formats that a step may have; none for a step that is not attested.
    pub(super) fn for_step(name: &str) -> &'static [Self] {
        match name {
            "build" => &[Self::OciLayout, Self::BuildkitMetadata],
            "test" => &[Self::Junit, Self::ExitCode],
            "security-scan" => &[Self::VulnsV02, Self::GrypeJson, Self::TrivyJson],
            _ => &[],
        }
    }
}

/// One rendering.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RecipeRender {
    /// Name in the release statement.
    pub name: String,
    /// Directory of plain YAML or of a kustomization.
    pub path: String,
    /// Environments of its destinations.
    pub environments: Vec<String>,
    /// Clusters of its destinations; `None` means all.
    pub clusters: Option<Vec<String>>,
    /// Namespaces of its destinations.
    pub namespace: RecipeNamespaceRule,
}

/// Namespaces to which a rendering may be deployed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "mode")]
pub enum RecipeNamespaceRule {
    /// One namespace.
    Fixed {
        /// Name of the namespace.
        value: String,
    },
    /// The namespace of the destination, if it matches a pattern.
    DefaultOnly {
        /// Pattern in which `*` matches any sequence of characters.
        pattern: String,
    },
}

/// Properties of the release statement.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ReleaseSettings {
    /// Version, for information.
    pub version: String,
    /// `unix-seconds`, or a whole number.
    pub counter: String,
    /// Time after signing for which the release is admissible, in hours, minutes or seconds: `720h`.
    pub not_after: String,
}

/// Source of a release's counter, which orders releases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// The time of signing.
    UnixSeconds,
    /// A number in the recipe.
    Value(u64),
}

impl ReleaseSettings {
    /// Returns the source of the counter; `None` for other texts, including one with a variable.
    pub fn counter(&self) -> Option<Counter> {
        match self.counter.as_str() {
            "unix-seconds" => Some(Counter::UnixSeconds),
            digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().ok().filter(|value| *value > 0).map(Counter::Value)
            }
            _ => None,
        }
    }

    /// Returns `notAfter` in seconds.
    ///
    /// # Errors
    /// The rule that the text violates.
    pub fn not_after_seconds(&self) -> Result<u64, String> {
        parse_duration_seconds(&self.not_after)
            .filter(|seconds| (1..=NOT_AFTER_SECONDS_MAX).contains(seconds))
            .ok_or_else(|| {
                format!(
                    "{:?} is not a duration of at most two years; use hours, for example 720h",
                    self.not_after
                )
            })
    }
}

fn parse_duration_seconds(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let unit_seconds = match unit {
        "h" => 3600,
        "m" => 60,
        "s" => 1,
        _ => return None,
    };
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    number.parse::<u64>().ok()?.checked_mul(unit_seconds)
}

/// Parses the shape of a recipe.
///
/// # Errors
/// [`RecipeError`] with the path of the invalid field.
pub(super) fn parse_document(
    file: RecipeFile<'_>,
    bytes: &[u8],
) -> Result<RecipeDocument, RecipeError> {
    if bytes.len() > RECIPE_BYTES_MAX {
        let problem = format!("is longer than {RECIPE_BYTES_MAX} bytes");
        return Err(file.syntax_error("file", problem));
    }
    let text = str::from_utf8(bytes).map_err(|_| file.syntax_error("file", "is not UTF-8"))?;
    let options = yaml::options();
    let mut path = String::new();
    serde_saphyr::with_deserializer_from_str_with_options(text, options, |reader| {
        serde_path_to_error::deserialize::<_, RecipeDocument>(reader).map_err(|error| {
            path = error.path().to_string();
            error.into_inner()
        })
    })
    .map_err(|error| file.syntax_error(error_field(&path, &error), yaml::problem(&error)))
}

/// Returns the path of the field at fault. For a duplicate key, `path` ends before the key.
fn error_field(path: &str, error: &serde_saphyr::Error) -> String {
    match (yaml::twice(error), path.strip_suffix('?')) {
        (Some(key), Some(parent)) => format!("{parent}{key}"),
        _ if path.is_empty() || path == "." => "document".to_owned(),
        _ => path.to_owned(),
    }
}
