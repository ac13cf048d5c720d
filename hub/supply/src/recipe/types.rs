//! `attest.yaml` as it is written, field by field.
//!
//! Only shape is decided here; what the fields must say to each other is checked by the parent module.

use serde::Deserialize;

use super::{Checker, NOT_AFTER_SECONDS_MAX, RECIPE_BYTES_MAX, RecipeError};
use crate::{ImageChange, yaml};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Written {
    pub(crate) application: String,
    pub(crate) repository: String,
    pub(crate) source_root: String,
    pub(crate) steps: Option<Vec<Step>>,
    pub(crate) images: Option<Vec<ImageChange>>,
    pub(crate) renders: Vec<RecipeRender>,
    pub(crate) release: ReleaseSettings,
}

/// One command of CI and what it leaves behind.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Step {
    /// `build`, `test` and `security-scan` are attested; others only run.
    pub name: String,
    /// Shell command.
    pub run: String,
    /// Where its outcome is read.
    pub result: Option<StepResult>,
}

/// Where and how a step's outcome is read.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct StepResult {
    /// How.
    pub format: ResultFormat,
    /// File or directory, relative to the root; absent for `exit-code` only.
    pub path: Option<String>,
}

/// What a step's result file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResultFormat {
    /// Directory with an OCI image layout.
    OciLayout,
    /// JSON that `buildx build --metadata-file` writes.
    BuildkitMetadata,
    /// JUnit XML.
    Junit,
    /// No file: the step passed when its command did.
    ExitCode,
    /// Predicate of in-toto's vulns v0.2.
    #[serde(rename = "vulns-v0.2")]
    VulnsV02,
    /// JSON report of grype.
    GrypeJson,
    /// JSON report of trivy.
    TrivyJson,
}

impl ResultFormat {
    /// The word in `attest.yaml`.
    pub fn word(self) -> &'static str {
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

    /// Whether an image digest can be read from it.
    pub fn names_an_image(self) -> bool {
        matches!(self, Self::OciLayout | Self::BuildkitMetadata)
    }

    pub(crate) fn of_step(name: &str) -> &'static [Self] {
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
    /// Environments it may go to.
    pub environments: Vec<String>,
    /// Clusters it may go to; absent means all.
    pub clusters: Option<Vec<String>>,
    /// Namespaces it may go to.
    pub namespace: NamespaceRule,
}

/// Namespaces that a rendering may go to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "mode")]
pub enum NamespaceRule {
    /// Exactly this one.
    Fixed {
        /// The namespace.
        value: String,
    },
    /// What the destination says, inside a pattern.
    DefaultOnly {
        /// `*` matches any run of characters.
        pattern: String,
    },
}

/// What the release statement says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ReleaseSettings {
    /// Version for people.
    pub version: String,
    /// `unix-seconds`, or a whole number.
    pub counter: String,
    /// How long after signing the release may still be admitted, in hours, minutes or seconds: `720h`.
    pub not_after: String,
}

/// How a release is ordered after the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// The time of signing.
    UnixSeconds,
    /// A given number.
    Value(u64),
}

impl ReleaseSettings {
    /// How the counter is made; `None` while a variable is not replaced, or when it is neither form.
    pub fn counter(&self) -> Option<Counter> {
        match self.counter.as_str() {
            "unix-seconds" => Some(Counter::UnixSeconds),
            digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().ok().filter(|value| *value > 0).map(Counter::Value)
            }
            _ => None,
        }
    }

    /// `notAfter` in seconds.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn not_after_seconds(&self) -> Result<u64, String> {
        let wrong = || {
            format!(
                "{:?} is no duration of at most two years: write hours, like 720h",
                self.not_after
            )
        };
        let unit_at = self.not_after.len().checked_sub(1).ok_or_else(wrong)?;
        let (number, unit) = self.not_after.split_at_checked(unit_at).ok_or_else(wrong)?;
        let unit_seconds = match unit {
            "h" => 3600,
            "m" => 60,
            "s" => 1,
            _ => return Err(wrong()),
        };
        let number: u64 = match number.bytes().all(|byte| byte.is_ascii_digit()) {
            true => number.parse().map_err(|_| wrong())?,
            false => return Err(wrong()),
        };
        let seconds = number.checked_mul(unit_seconds).ok_or_else(wrong)?;
        if seconds == 0 || seconds > NOT_AFTER_SECONDS_MAX { Err(wrong()) } else { Ok(seconds) }
    }
}

pub(crate) fn read(file: &str, bytes: &[u8]) -> Result<Written, RecipeError> {
    let here = Checker { file };
    if bytes.len() > RECIPE_BYTES_MAX {
        return here.syntax("file", format!("is longer than {RECIPE_BYTES_MAX} bytes"));
    }
    let Ok(text) = str::from_utf8(bytes) else {
        return here.syntax("file", "is not UTF-8");
    };
    let options = yaml::options();
    let mut field = String::new();
    let read = serde_saphyr::with_deserializer_from_str_with_options(text, options, |reader| {
        serde_path_to_error::deserialize::<_, Written>(reader).map_err(|error| {
            field = error.path().to_string();
            error.into_inner()
        })
    });
    read.or_else(|error| {
        // Of a key that is there twice, the path ends before the key.
        let field = match (yaml::twice(&error), field.strip_suffix('?')) {
            (Some(key), Some(parent)) => format!("{parent}{key}"),
            (None, _) | (_, None) if field.is_empty() || field == "." => "document".to_owned(),
            (None, _) | (_, None) => field,
        };
        here.syntax(field, yaml::problem(&error))
    })
}
