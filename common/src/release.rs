//! The release statement: the one object a deployment is rooted in, signed by CI.
//!
//! It carries what a taken hub must not choose: the bytes of each rendering, where each may run,
//! a counter that only rises, the exact receipts that are its evidence, the digest of each image.

use serde::{Deserialize, Serialize};

use crate::ids::{Digest, Name, Timestamp};
use crate::statement::{Statement, StatementError};

/// Predicate type of a release statement.
pub const RELEASE_TYPE: &str = "https://attest.continuu.ms/release/v1";
/// Media type of Rendering v1, see [`crate::manifest`].
pub const RENDERING_TYPE: &str = "application/vnd.attest.manifests.v1+jsonl";
/// Most renderings in a release.
pub const RENDERS_MAX: usize = 256;
/// Most receipts a release may name as evidence.
pub const EVIDENCE_MAX: usize = 64;

/// The predicate. Unknown fields are refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Release {
    pub application: Name,
    /// For people: a tag or branch name.
    pub version: String,
    /// Rises with every release of the application; see settled rule on counters ahead of time.
    pub counter: u64,
    /// After this moment the release is not admitted anywhere it does not already run.
    pub not_after: Timestamp,
    pub source: ReleaseSource,
    pub renderer: Renderer,
    pub evidence: Vec<Evidence>,
    pub renders: Vec<Render>,
}

/// The commit CI ran on: provenance, never compared with the deployed commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ReleaseSource {
    /// Normalised repository URL.
    pub repo: String,
    pub git_commit: String,
    pub source_root: String,
    pub git_tree: String,
}

/// The program that rendered, for explaining a difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Renderer {
    pub name: String,
    pub version: String,
}

/// A receipt the release rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Evidence {
    /// Name of the attestation: `build`, `test`, `security-scan`.
    pub attestation: String,
    /// [`crate::envelope::Opened::id`] of the receipt.
    pub receipt: Digest,
}

/// One rendering of the application and where it may run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Render {
    pub name: String,
    /// Name of the statement subject that carries the digest.
    pub subject: String,
    pub media_type: String,
    pub size: u64,
    pub objects: u64,
    pub target: Target,
    pub namespace: NamespaceRule,
    pub images: Vec<ImageDigest>,
    /// Names of the changes the spoke may make to the objects, for example `image-pin`.
    #[serde(default)]
    pub mutations: Vec<String>,
}

/// Which clusters a rendering is for, compared with what the spoke itself says it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Target {
    pub environments: Vec<String>,
    /// Cluster names; absent means every cluster of the environments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clusters: Option<Vec<String>>,
}

impl Target {
    /// True when a cluster of this environment and name is meant.
    pub fn fits(&self, environment: &str, cluster_name: &str) -> bool {
        self.environments.iter().any(|e| e == environment)
            && self
                .clusters
                .as_ref()
                .is_none_or(|names| names.iter().any(|n| n == cluster_name || n == "*"))
    }
}

/// Which namespaces a rendering may go to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "mode")]
pub enum NamespaceRule {
    /// Exactly this one.
    Fixed { value: Name },
    /// Whatever the destination says, inside this pattern (`*` matches any run of characters but `/`).
    DefaultOnly { pattern: String },
}

impl NamespaceRule {
    /// True when objects may be put into `namespace`.
    pub fn allows(&self, namespace: &Name) -> bool {
        match self {
            Self::Fixed { value } => value == namespace,
            Self::DefaultOnly { pattern } => glob_matches(pattern, namespace.as_str()),
        }
    }
}

/// The digest CI saw for an image reference in the rendering.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ImageDigest {
    /// The reference exactly as the rendering writes it, for example `myapp:v1`.
    #[serde(rename = "ref")]
    pub reference: String,
    pub digest: Digest,
}

impl Release {
    /// Reads the predicate of a release statement. The statement's signature is the caller's business.
    pub fn read(statement: &Statement) -> Result<Self, ReleaseError> {
        if statement.predicate_type != RELEASE_TYPE {
            return Err(ReleaseError::PredicateType(
                statement.predicate_type.chars().take(80).collect(),
            ));
        }
        let release: Self =
            serde_json::from_value(statement.predicate.clone()).map_err(ReleaseError::Malformed)?;
        if release.renders.is_empty() || release.renders.len() > RENDERS_MAX {
            return Err(ReleaseError::Limit { what: "renders", max: RENDERS_MAX });
        }
        if release.evidence.len() > EVIDENCE_MAX {
            return Err(ReleaseError::Limit { what: "evidence", max: EVIDENCE_MAX });
        }
        Ok(release)
    }

    /// The render with this name. Two of one name are treated as none.
    pub fn render(&self, name: &str) -> Option<&Render> {
        let mut found = self.renders.iter().filter(|r| r.name == name);
        match (found.next(), found.next()) {
            (Some(render), None) => Some(render),
            (None | Some(_), _) => None,
        }
    }
}

/// The digest of a render's content, as the statement's subject carries it.
pub fn content_digest(statement: &Statement, render: &Render) -> Option<Digest> {
    let mut found = statement.subject.iter().filter(|s| s.name == render.subject);
    match (found.next(), found.next()) {
        (Some(subject), None) => subject.sha256(),
        (None | Some(_), _) => None,
    }
}

/// `*` matches any run of characters other than `/`; everything else matches itself.
pub fn glob_matches(pattern: &str, text: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else { return pattern == text };
    let Some(rest) = text.strip_prefix(head) else { return false };
    let reach = rest.find('/').unwrap_or(rest.len());
    (0..=reach)
        .filter(|end| rest.is_char_boundary(*end))
        .any(|end| rest.get(end..).is_some_and(|after| glob_matches(tail, after)))
}

/// Why signed bytes are not an acceptable release.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    #[error("the release statement is not a statement")]
    Statement(#[source] StatementError),
    #[error("the statement's predicate type is `{0}`, not {RELEASE_TYPE}")]
    PredicateType(String),
    #[error("the release predicate is malformed")]
    Malformed(#[source] serde_json::Error),
    #[error("the release exceeds the limit of {max} {what}, or has none")]
    Limit { what: &'static str, max: usize },
}

impl ReleaseError {
    /// A stable word for conditions, metrics, logs and the CLI.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Statement(error) => error.reason(),
            Self::PredicateType(_) => "PredicateType",
            Self::Malformed(_) => "ReleaseMalformed",
            Self::Limit { .. } => "Limit",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_whole_texts_and_never_cross_a_slash() {
        for (pattern, text, matches) in [
            ("app-*", "app-staging", true),
            ("app-*", "app-", true),
            ("app-*", "app", false),
            ("*", "anything", true),
            ("*", "a/b", false),
            ("https://git.example/company/web-*", "https://git.example/company/web-app", true),
            ("https://git.example/company/web-*", "https://git.example/company/web-/../x", false),
            ("a*b*c", "a1b2c", true),
            ("a*b*c", "a1b2", false),
            ("", "", true),
            ("", "x", false),
        ] {
            assert_eq!(glob_matches(pattern, text), matches, "{pattern} {text}");
        }
    }
}
