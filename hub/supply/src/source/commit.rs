//! Reading the wanted files of one commit out of a repository's objects.

use gix::bstr::{BString, ByteSlice as _};
use gix::objs::tree::EntryKind;

use super::SourceRootOf;
use super::error::SourceError;
use super::tree::{
    ATTEST_DIRECTORY, Kind, Limits, Listing, PATH_DEPTH_MAX, RECIPE_FILE, Tree, clean_directory,
    outermost,
};
use crate::text::one_line;

/// Largest commit object that is looked at, in bytes.
const COMMIT_BYTES_MAX: u64 = 1024 * 1024;

pub(crate) fn read(
    repository: &gix::Repository,
    commit: gix::ObjectId,
    directories: &[&str],
    limits: &Limits,
    source_root_of: SourceRootOf,
) -> Result<Tree, SourceError> {
    let root = root_tree(repository, commit)?;
    let recipe = match entry_at(repository, root, RECIPE_FILE)? {
        Some((id, kind)) => Some((id, kind_of_file(RECIPE_FILE, kind)?)),
        None => None,
    };
    let mut wanted = Vec::new();
    for directory in directories {
        wanted.push(clean_directory(directory)?);
    }
    let source_root = match &recipe {
        Some((id, Kind::File)) => declared_source_root(repository, *id, limits, source_root_of)?,
        _ => None,
    };
    if let Some(source_root) = &source_root {
        wanted.push(source_root.clone());
    }

    let mut listing = Listing::new(limits);
    if let Some((id, kind)) = recipe {
        listing.add(RECIPE_FILE.into(), kind, id)?;
    }
    if let Some((id, kind)) = entry_at(repository, root, ATTEST_DIRECTORY)? {
        directory(ATTEST_DIRECTORY, kind)?;
        list(repository, id, ATTEST_DIRECTORY, &mut listing)?;
    }
    for path in outermost(wanted) {
        let Some((id, kind)) = entry_at(repository, root, &path)? else {
            return Err(SourceError::PathMissing { path });
        };
        directory(&path, kind)?;
        list(repository, id, &path, &mut listing)?;
    }
    let tree =
        listing.read(limits, |id| size_of(repository, *id), |id| bytes_of(repository, *id))?;
    let git_tree = match &source_root {
        Some(path) => entry_at(repository, root, path)?.map(|(id, _)| id.to_string()),
        None => None,
    };
    Ok(tree.with_origin(Some(commit.to_string()), git_tree, source_root))
}

/// Id of the tree at `path` in `commit`.
pub(crate) fn tree_id(
    repository: &gix::Repository,
    commit: gix::ObjectId,
    path: &str,
) -> Result<Option<String>, SourceError> {
    let root = root_tree(repository, commit)?;
    Ok(entry_at(repository, root, path)?.map(|(id, _)| id.to_string()))
}

fn root_tree(
    repository: &gix::Repository,
    commit: gix::ObjectId,
) -> Result<gix::ObjectId, SourceError> {
    let header = repository.find_header(commit).map_err(|error| object(commit, &error))?;
    let wrong = |problem| SourceError::CommitStructure { commit: commit.to_string(), problem };
    if header.kind() != gix::objs::Kind::Commit {
        return Err(wrong("it is another kind of object"));
    }
    if header.size() > COMMIT_BYTES_MAX {
        return Err(wrong("it is longer than 1 MiB"));
    }
    let found = repository.find_object(commit).map_err(|error| object(commit, &error))?;
    if let Some(problem) = doubtful_header(&found.data) {
        return Err(wrong(problem));
    }
    let parsed = gix::objs::CommitRef::from_bytes(&found.data, commit.kind());
    parsed.map(|commit| commit.tree()).map_err(|_| wrong("its header cannot be read"))
}

/// Readers disagree on which of two equal headers counts, so none may be there twice.
fn doubtful_header(commit: &[u8]) -> Option<&'static str> {
    let header = commit.find(b"\n\n").map_or(commit, |end| commit.get(..end).unwrap_or(commit));
    for (name, problem) in [
        (&b"tree "[..], "it has not exactly one tree"),
        (&b"author "[..], "it has not exactly one author"),
        (&b"committer "[..], "it has not exactly one committer"),
    ] {
        if header.lines().filter(|line| line.starts_with(name)).count() != 1 {
            return Some(problem);
        }
    }
    let signatures = header.lines().filter(|line| line.starts_with(b"gpgsig")).count();
    (signatures > 1).then_some("it has more than one signature")
}

fn declared_source_root(
    repository: &gix::Repository,
    recipe: gix::ObjectId,
    limits: &Limits,
    source_root_of: SourceRootOf,
) -> Result<Option<String>, SourceError> {
    if size_of(repository, recipe)? > limits.blob_bytes_max {
        return Ok(None);
    }
    let bytes = bytes_of(repository, recipe)?;
    source_root_of(&bytes).map(|root| clean_directory(&root)).transpose()
}

fn kind_of_file(path: &str, kind: EntryKind) -> Result<Kind, SourceError> {
    match kind {
        EntryKind::Blob | EntryKind::BlobExecutable => Ok(Kind::File),
        EntryKind::Link => Ok(Kind::Symlink),
        EntryKind::Commit => Ok(Kind::Submodule),
        EntryKind::Tree => Err(SourceError::TreePath {
            path: path.to_owned(),
            problem: "it is a directory where a file belongs".to_owned(),
        }),
    }
}

fn directory(path: &str, kind: EntryKind) -> Result<(), SourceError> {
    match kind {
        EntryKind::Tree => Ok(()),
        EntryKind::Link => Err(SourceError::TreeSymlink { path: path.to_owned() }),
        EntryKind::Commit => Err(SourceError::TreeSubmodule { path: path.to_owned() }),
        EntryKind::Blob | EntryKind::BlobExecutable => Err(SourceError::TreePath {
            path: path.to_owned(),
            problem: "it is a file where a directory belongs".to_owned(),
        }),
    }
}

/// The entry at `path`, one tree object a component. A link on the way is refused, not followed.
fn entry_at(
    repository: &gix::Repository,
    root: gix::ObjectId,
    path: &str,
) -> Result<Option<(gix::ObjectId, EntryKind)>, SourceError> {
    let mut here = (root, EntryKind::Tree);
    let mut walked = String::new();
    for component in path.split('/') {
        if !walked.is_empty() {
            directory(&walked, here.1)?;
            walked.push('/');
        }
        walked.push_str(component);
        let tree = repository.find_tree(here.0).map_err(|error| object(here.0, &error))?;
        let mut found = None;
        for entry in tree.iter() {
            let entry = entry.map_err(|error| broken(here.0, &error.to_string()))?;
            if entry.filename() == component.as_bytes() {
                found = Some((entry.object_id(), entry.mode().kind()));
            }
        }
        match found {
            Some(entry) => here = entry,
            None => return Ok(None),
        }
    }
    Ok(Some(here))
}

fn list(
    repository: &gix::Repository,
    tree: gix::ObjectId,
    path: &str,
    listing: &mut Listing<gix::ObjectId>,
) -> Result<(), SourceError> {
    let mut open = vec![(BString::from(path), tree)];
    while let Some((prefix, tree)) = open.pop() {
        if prefix.split(|byte| *byte == b'/').count() > PATH_DEPTH_MAX {
            return Err(SourceError::TreePath {
                path: prefix.to_str_lossy().into_owned(),
                problem: format!("it is deeper than {PATH_DEPTH_MAX} directories"),
            });
        }
        let tree = repository.find_tree(tree).map_err(|error| object(tree, &error))?;
        for entry in tree.iter() {
            let entry = entry.map_err(|error| broken(tree.id, &error.to_string()))?;
            let mut path = prefix.clone();
            path.push(b'/');
            path.extend_from_slice(entry.filename());
            match entry.mode().kind() {
                EntryKind::Tree => {
                    super::tree::check_path(path.as_bstr())?;
                    open.push((path, entry.object_id()));
                }
                EntryKind::Blob | EntryKind::BlobExecutable => {
                    listing.add(path.as_bstr(), Kind::File, entry.object_id())?;
                }
                EntryKind::Link => listing.add(path.as_bstr(), Kind::Symlink, entry.object_id())?,
                EntryKind::Commit => {
                    listing.add(path.as_bstr(), Kind::Submodule, entry.object_id())?;
                }
            }
        }
    }
    Ok(())
}

pub(crate) fn size_of(repository: &gix::Repository, id: gix::ObjectId) -> Result<u64, SourceError> {
    repository.find_header(id).map(|header| header.size()).map_err(|error| object(id, &error))
}

pub(crate) fn bytes_of(
    repository: &gix::Repository,
    id: gix::ObjectId,
) -> Result<Vec<u8>, SourceError> {
    let mut found = repository.find_object(id).map_err(|error| object(id, &error))?;
    if found.kind != gix::objs::Kind::Blob {
        return Err(broken(id, "it is not a file"));
    }
    Ok(std::mem::take(&mut found.data))
}

fn object(id: gix::ObjectId, error: &gix::Error) -> SourceError {
    let words: Vec<String> = error.iter_errors().map(|error| format!("{error:#}")).collect();
    broken(id, &words.join(": "))
}

fn broken(id: gix::ObjectId, words: &str) -> SourceError {
    let source = std::io::Error::other(one_line(words));
    SourceError::Files { action: "read Git object", path: id.to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_with_a_header_twice_is_doubtful() {
        let plain = "tree 1\nauthor a\ncommitter c\ngpgsig -----\n more\n\ntree in the message\n";
        assert_eq!(doubtful_header(plain.as_bytes()), None);

        for twice in ["tree 2\n", "author b\n", "committer d\n", "gpgsig x\ngpgsig y\n"] {
            let commit = format!("tree 1\nauthor a\ncommitter c\n{twice}\nmessage\n");
            assert!(doubtful_header(commit.as_bytes()).is_some(), "{twice}");
        }
    }
}
