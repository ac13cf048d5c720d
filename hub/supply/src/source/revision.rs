//! Revisions: names of branches, tags and commits, and their resolution from the references that a server lists.

use super::error::SourceError;
use super::url::RepositoryUrl;

/// Maximum length of a revision, in bytes.
pub const REVISION_BYTES_MAX: usize = 255;

/// The meaning of a revision at the time of a poll.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Full commit id in lower-case hexadecimal. A tag is followed to its commit.
    pub commit: String,
    /// Full name of the reference (`refs/heads/main`); `None` if the revision is a commit id.
    pub reference: Option<String>,
}

/// Rejects a revision that is not a name.
///
/// # Errors
/// [`SourceError::RevisionMalformed`] with the rule that it violates.
pub(super) fn check_revision(revision: &str) -> Result<(), SourceError> {
    match revision_problem(revision) {
        None => Ok(()),
        Some(problem) => Err(SourceError::RevisionMalformed {
            revision: revision.chars().take(REVISION_BYTES_MAX).collect(),
            problem,
        }),
    }
}

fn revision_problem(revision: &str) -> Option<&'static str> {
    if revision.len() > REVISION_BYTES_MAX {
        return Some("it is longer than 255 bytes");
    }
    if revision.starts_with('-') {
        return Some("it begins with `-`");
    }
    if revision.contains(['~', '^', ':', '*', '?', '[', '\\', ' ', '@']) {
        return Some("expressions and patterns are not supported");
    }
    let full_name = format!("refs/heads/{}", revision.trim_start_matches("refs/"));
    let is_valid = gix::validate::reference::name(full_name.as_str().into()).is_ok();
    (!is_valid).then_some("Git does not allow this name")
}

/// Returns the full names that a revision may stand for. A commit id is included, because it must not also be a name.
pub(super) fn reference_candidates(revision: &str) -> Vec<String> {
    if revision == "HEAD" || revision.starts_with("refs/") {
        return vec![revision.to_owned()];
    }
    vec![format!("refs/heads/{revision}"), format!("refs/tags/{revision}")]
}

/// Finds the commit of `revision` among `listed`, the names and commits that the server lists.
///
/// # Errors
/// [`SourceError::ReferenceNotFound`] without a match, [`SourceError::ReferenceAmbiguous`] with several.
pub(super) fn resolve_revision(
    url: &RepositoryUrl,
    revision: &str,
    candidates: &[String],
    listed: Vec<(String, String)>,
) -> Result<Resolved, SourceError> {
    let mut matches: Vec<(String, String)> =
        listed.into_iter().filter(|(name, _)| candidates.contains(name)).collect();
    matches.sort();
    matches.dedup();
    if is_commit_id(revision) {
        if matches.is_empty() {
            return Ok(Resolved { commit: revision.to_ascii_lowercase(), reference: None });
        }
        matches.push(("the commit itself".to_owned(), String::new()));
    }
    if matches.len() > 1 {
        let names: Vec<&str> = matches.iter().map(|(name, _)| name.as_str()).collect();
        return Err(SourceError::ReferenceAmbiguous {
            url: url.to_string(),
            revision: revision.to_owned(),
            candidates: names.join(", "),
        });
    }
    match matches.pop() {
        Some((reference, commit)) => Ok(Resolved { commit, reference: Some(reference) }),
        None => Err(SourceError::ReferenceNotFound {
            url: url.to_string(),
            revision: revision.to_owned(),
        }),
    }
}

/// Parses a full commit id.
///
/// # Errors
/// [`SourceError::RevisionMalformed`] for any other text.
pub(super) fn object_id(commit: &str) -> Result<gix::ObjectId, SourceError> {
    gix::ObjectId::from_hex(commit.as_bytes()).map_err(|_| SourceError::RevisionMalformed {
        revision: commit.to_owned(),
        problem: "it is not a full commit id",
    })
}

/// Returns whether a text is a full commit id.
pub(super) fn is_commit_id(revision: &str) -> bool {
    matches!(revision.len(), 40 | 64) && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::UrlPolicy;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    const OTHER: &str = "89abcdef0123456789abcdef0123456789abcdef";

    fn resolved(revision: &str, listed: &[(&str, &str)]) -> Result<Resolved, SourceError> {
        let url = RepositoryUrl::parse("https://git.example/a", &UrlPolicy::default()).unwrap();
        let listed = listed.iter().map(|(name, id)| ((*name).into(), (*id).into())).collect();
        resolve_revision(&url, revision, &reference_candidates(revision), listed)
    }

    #[test]
    fn a_name_that_is_a_branch_and_a_tag_is_ambiguous() {
        let both = [("refs/heads/v1", COMMIT), ("refs/tags/v1", COMMIT)];

        let error = resolved("v1", &both).unwrap_err();

        assert_eq!(error.reason().as_str(), "ReferenceAmbiguous");
        assert!(error.to_string().contains("refs/heads/v1, refs/tags/v1"), "{error}");
        let full = resolved("refs/tags/v1", &both).unwrap();
        assert_eq!(full.reference.as_deref(), Some("refs/tags/v1"));
    }

    #[test]
    fn a_branch_that_looks_like_a_commit_is_ambiguous() {
        let error = resolved(COMMIT, &[(&format!("refs/heads/{COMMIT}"), OTHER)]).unwrap_err();

        assert_eq!(error.reason().as_str(), "ReferenceAmbiguous");
        assert_eq!(resolved(&COMMIT.to_uppercase(), &[]).unwrap().commit, COMMIT);
    }

    #[test]
    fn other_references_do_not_match() {
        let answer = [("refs/heads/main-2", OTHER), ("refs/heads/main", COMMIT), ("HEAD", COMMIT)];

        assert_eq!(resolved("main", &answer).unwrap().commit, COMMIT);
        assert_eq!(
            resolved("nothing", &answer).unwrap_err().reason().as_str(),
            "ReferenceNotFound"
        );
    }

    #[test]
    fn revisions_that_are_expressions_are_rejected() {
        for revision in
            ["HEAD~1", "main^", "a:b", "--upload-pack=x", "a..b", "", "refs/", "a b", "@{u}"]
        {
            let error = check_revision(revision).unwrap_err();
            assert_eq!(error.reason().as_str(), "RevisionMalformed", "{revision}");
        }
        for revision in ["HEAD", "main", "v1.2.3", "feature/x", "refs/heads/main", COMMIT] {
            check_revision(revision).unwrap();
        }
    }
}
