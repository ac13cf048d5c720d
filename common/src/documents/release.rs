//! The release statement: the one object a deployment is rooted in, signed by CI.
//!
//! It carries what a taken hub must not choose: the bytes of each rendering, where each may run,
//! a counter that only rises, the exact receipts that are its evidence, the digest of each image.

use serde::{Deserialize, Serialize};

use crate::basics::ids::{Digest, Name, Timestamp};
use crate::basics::reason::Reason;
use crate::documents::statement::{Statement, StatementError};

/// Predicate type of a release statement.
pub const RELEASE_TYPE: &str = "https://attest.continuu.ms/release/v1";
/// Media type of Rendering v1, see [`crate::documents::manifest`].
pub const RENDERING_TYPE: &str = "application/vnd.attest.manifests.v1+jsonl";
/// Most renderings in a release.
pub const RENDERS_MAX: usize = 256;
/// Most receipts a release may name as evidence.
pub const EVIDENCE_MAX: usize = 64;
/// Longest pattern for names, repositories and namespaces, in bytes.
pub const GLOB_BYTES_MAX: usize = 1_024;

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
    /// [`crate::basics::envelope::Opened::id`] of the receipt.
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
        let too_long = |render: &Render| match &render.namespace {
            NamespaceRule::DefaultOnly { pattern } => pattern.len() > GLOB_BYTES_MAX,
            NamespaceRule::Fixed { .. } => false,
        };
        if release.renders.iter().any(too_long) {
            return Err(ReleaseError::Limit { what: "bytes of a pattern", max: GLOB_BYTES_MAX });
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

/// `*` matches any run of characters other than `/`; everything else matches itself. A pattern longer
/// than [`GLOB_BYTES_MAX`] matches nothing. Patterns come from remotes: the work is bounded by the
/// product of both lengths, the stack by nothing of theirs.
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

/// The same without `/`: the first piece begins the text, the last one ends it, and each between them
/// is found at the earliest place behind the former.
fn segment_matches(pattern: &str, text: &str) -> bool {
    let Some((head, others)) = pattern.split_once('*') else { return pattern == text };
    let (between, tail) = others.rsplit_once('*').unwrap_or(("", others));
    let inner = text.strip_prefix(head).and_then(|rest| rest.strip_suffix(tail));
    let found = |rest: &'_ str, piece: &str| rest.find(piece).map(|at| at + piece.len());
    inner.is_some_and(|inner| {
        let mut rest = inner;
        between.split('*').all(|piece| {
            let behind = found(rest, piece).and_then(|at| rest.get(at..));
            rest = behind.unwrap_or_default();
            behind.is_some()
        })
    })
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
