//! The release statement, signed by CI: the root of trust of a deployment.
//!
//! It contains what a compromised hub must not choose: the bytes of each rendering and its target, a counter that only
//! rises, the receipts that are its evidence, and the digest of each image.

use serde::{Deserialize, Serialize};

use crate::basics::ids::{Digest, Name, Timestamp};
use crate::basics::reason::Reason;
use crate::basics::text::shortened;
use crate::documents::statement::{Statement, StatementError};

/// Predicate type of a release statement.
pub const RELEASE_TYPE: &str = "https://attest.continuu.ms/release/v1";
/// Media type of Rendering v1, see [`crate::documents::manifest`].
pub const RENDERING_TYPE: &str = "application/vnd.attest.manifests.v1+jsonl";
/// Most renderings in a release.
pub const RENDERS_MAX: usize = 256;
/// Most receipts named by a release as evidence.
pub const EVIDENCE_MAX: usize = 64;
/// Longest pattern for names, repositories and namespaces, in bytes.
pub const GLOB_BYTES_MAX: usize = 1_024;

/// The predicate. Unknown fields are rejected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Release {
    pub application: Name,
    /// A tag or branch name, for display.
    pub version: String,
    /// Rises with every release of the application. Must not be far ahead of the clock when it is a time in seconds.
    pub counter: u64,
    /// Expiry: afterwards the release is admitted only where it already runs.
    pub not_after: Timestamp,
    pub source: ReleaseSource,
    pub renderer: Renderer,
    pub evidence: Vec<Evidence>,
    pub renders: Vec<Render>,
}

/// The commit on which CI ran. Provenance only, not compared with the deployed commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ReleaseSource {
    /// Normalised repository URL.
    pub repo: String,
    pub git_commit: String,
    pub source_root: String,
    pub git_tree: String,
}

/// The rendering program, to explain differences.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Renderer {
    pub name: String,
    pub version: String,
}

/// A receipt that is evidence for the release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Evidence {
    /// Name of the attestation: `build`, `test`, `security-scan`.
    pub attestation: String,
    /// [`crate::basics::envelope::Opened::id`] of the receipt.
    pub receipt: Digest,
}

/// One rendering of the application and its target.
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
    /// Names of the changes that the spoke may make to the objects, for example `image-pin`.
    #[serde(default)]
    pub mutations: Vec<String>,
}

/// Target clusters of a rendering, compared with the environment and name in the cluster's own policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Target {
    pub environments: Vec<String>,
    /// Cluster names; absent means every cluster of the environments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clusters: Option<Vec<String>>,
}

impl Target {
    /// Returns whether a cluster of this environment and name is a target.
    pub fn fits(&self, environment: &str, cluster_name: &str) -> bool {
        self.environments.iter().any(|e| e == environment)
            && self
                .clusters
                .as_ref()
                .is_none_or(|names| names.iter().any(|n| n == cluster_name || n == "*"))
    }
}

/// Namespaces allowed for a rendering.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "mode")]
pub enum NamespaceRule {
    /// Exactly this namespace.
    Fixed { value: Name },
    /// The namespace of the destination, if it matches this pattern (`*` matches any characters except `/`).
    DefaultOnly { pattern: String },
}

impl NamespaceRule {
    /// Returns whether `namespace` is allowed.
    pub fn allows(&self, namespace: &Name) -> bool {
        match self {
            Self::Fixed { value } => value == namespace,
            Self::DefaultOnly { pattern } => glob_matches(pattern, namespace.as_str()),
        }
    }

    fn is_too_long(&self) -> bool {
        match self {
            Self::Fixed { .. } => false,
            Self::DefaultOnly { pattern } => pattern.len() > GLOB_BYTES_MAX,
        }
    }
}

/// The digest that CI resolved for an image reference of the rendering.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ImageDigest {
    /// The reference exactly as in the rendering, for example `myapp:v1`.
    #[serde(rename = "ref")]
    pub reference: String,
    pub digest: Digest,
}

impl Release {
    /// Returns whether a render is for named clusters, so that a release is not the same for all.
    pub fn names_clusters(&self) -> bool {
        self.renders.iter().any(|render| render.target.clusters.is_some())
    }

    /// Parses the predicate of a release statement. The caller verifies the signature.
    pub fn read(statement: &Statement) -> Result<Self, ReleaseError> {
        if statement.predicate_type != RELEASE_TYPE {
            return Err(ReleaseError::PredicateType(shortened(&statement.predicate_type)));
        }
        let release: Self =
            serde_json::from_value(statement.predicate.clone()).map_err(ReleaseError::Malformed)?;
        if release.renders.is_empty() || release.renders.len() > RENDERS_MAX {
            return Err(ReleaseError::Limit { what: "renders", max: RENDERS_MAX });
        }
        if release.renders.iter().any(|render| render.namespace.is_too_long()) {
            return Err(ReleaseError::Limit { what: "bytes of a pattern", max: GLOB_BYTES_MAX });
        }
        if release.evidence.len() > EVIDENCE_MAX {
            return Err(ReleaseError::Limit { what: "evidence", max: EVIDENCE_MAX });
        }
        Ok(release)
    }

    /// Returns the render with this name, if there is exactly one.
    pub fn render(&self, name: &str) -> Option<&Render> {
        let mut found = self.renders.iter().filter(|r| r.name == name);
        match (found.next(), found.next()) {
            (Some(render), None) => Some(render),
            (None | Some(_), _) => None,
        }
    }
}

/// Returns the digest of a render's content from the subject of the statement.
pub fn content_digest(statement: &Statement, render: &Render) -> Option<Digest> {
    let mut found = statement.subject.iter().filter(|s| s.name == render.subject);
    match (found.next(), found.next()) {
        (Some(subject), None) => subject.sha256(),
        (None | Some(_), _) => None,
    }
}

/// Returns whether `pattern` matches `text`. `*` matches any characters except `/`; everything else matches itself. A
/// pattern longer than [`GLOB_BYTES_MAX`] matches nothing. Patterns may be hostile: the time is bounded by the product of
/// both lengths, and the stack depth is constant.
pub fn glob_matches(pattern: &str, text: &str) -> bool {
    let (mut patterns, mut texts) = (pattern.split('/'), text.split('/'));
    pattern.len() <= GLOB_BYTES_MAX
        && loop {
            match (patterns.next(), texts.next()) {
                (None, None) => break true,
                (Some(pattern), Some(text)) if segment_matches(pattern, text) => {}
                (_, _) => break false,
            }
        }
}

/// Matches one path segment: the text begins with the first piece and ends with the last one, and each piece between
/// them is found at its earliest position after the previous one.
fn segment_matches(pattern: &str, text: &str) -> bool {
    let Some((head, others)) = pattern.split_once('*') else { return pattern == text };
    let (between, tail) = others.rsplit_once('*').unwrap_or(("", others));
    let inner = text.strip_prefix(head).and_then(|rest| rest.strip_suffix(tail));
    inner.is_some_and(|inner| {
        let mut rest = inner;
        between.split('*').all(|piece| {
            let end = rest.find(piece).map(|start| start + piece.len());
            let behind = end.and_then(|end| rest.get(end..));
            rest = behind.unwrap_or_default();
            behind.is_some()
        })
    })
}

/// Reason that signed bytes are not a valid release.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    #[error("the release is not a valid statement")]
    Statement(#[source] StatementError),
    #[error("the statement's predicate type is `{0}`, not {RELEASE_TYPE}")]
    PredicateType(String),
    #[error("the release predicate is malformed")]
    Malformed(#[source] serde_json::Error),
    #[error("the release exceeds the limit of {max} {what}, or has none")]
    Limit { what: &'static str, max: usize },
}

impl ReleaseError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Statement(error) => error.reason(),
            Self::PredicateType(_) => Reason::PredicateType,
            Self::Malformed(_) => Reason::ReleaseMalformed,
            Self::Limit { .. } => Reason::Limit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_of_a_stranger_costs_neither_stack_nor_time() {
        let text = format!("{}b", "a".repeat(2_000));
        for pattern in ["*".repeat(20_000), "*a".repeat(GLOB_BYTES_MAX / 2)] {
            assert!(!glob_matches(&format!("{pattern}X"), &text));
        }
        assert!(glob_matches(&"*".repeat(GLOB_BYTES_MAX), &text));
        assert!(!glob_matches(&"*".repeat(GLOB_BYTES_MAX + 1), &text));
    }

    proptest::proptest! {
        #[test]
        fn globs_match_what_the_plain_definition_says(
            pattern in "[ab*/]{0,8}", text in "[ab/]{0,8}",
        ) {
            fn plain(pattern: &[char], text: &[char]) -> bool {
                match (pattern.split_first(), text.split_first()) {
                    (None, None) => true,
                    (Some(('*', tail)), rest) => {
                        let eats = rest.is_some_and(|(c, rest)| *c != '/' && plain(pattern, rest));
                        plain(tail, text) || eats
                    }
                    (Some((p, tail)), Some((t, rest))) => p == t && plain(tail, rest),
                    (_, _) => false,
                }
            }
            let of = |text: &str| text.chars().collect::<Vec<_>>();
            proptest::prop_assert_eq!(
                glob_matches(&pattern, &text),
                plain(&of(&pattern), &of(&text))
            );
        }
    }

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
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("*b*b*", "abab", true),
            ("*ab*ab*", "abab", true),
            ("*aba*aba", "ababa", false),
            ("**", "any", true),
            ("a/*", "a/b/c", false),
            ("a/*/c", "a/b/c", true),
            ("ä*ö", "äöö", true),
            ("", "", true),
            ("", "x", false),
        ] {
            assert_eq!(glob_matches(pattern, text), matches, "{pattern} {text}");
        }
    }
}
