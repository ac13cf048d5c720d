//! Reads the requested files of one commit from a repository's objects.

use gix::bstr::{BStr, BString, ByteSlice as _};
use gix::objs::tree::EntryKind;

use super::SourceRootOf;
use super::error::SourceError;
use super::tree::{
    ATTEST_DIRECTORY, FileKind, FileListing, PATH_DEPTH_MAX, RECIPE_FILE, RepositoryLimits, Tree,
    check_path, clean_directory, outermost,
};
use crate::text::one_line;

/// Maximum size of a commit object, in bytes.
const COMMIT_BYTES_MAX: u64 = 1024 * 1024;

/// Reads `attest.yaml`, `.attest`, the source root and `directories` of `commit`.
///
/// # Errors
/// [`SourceError`]; [`SourceError::PathMissing`] for a directory that the commit does not have.
pub(crate) fn read_commit(
    repository: &gix::Repository,
    commit: gix::ObjectId,
    directories: &[&str],
    limits: &RepositoryLimits,
    source_root_of: SourceRootOf,
) -> Result<Tree, SourceError> {
    let root = root_tree(repository, commit)?;
    let recipe = match entry_at(repository, root, RECIPE_FILE)? {
        Some((id, kind)) => Some((id, recipe_kind(kind)?)),
        None => None,
    };
    let mut requested = Vec::new();
    for directory in directories {
        requested.push(clean_directory(directory)?);
    }
    let source_root = match &recipe {
        Some((id, FileKind::File)) => {
            declared_source_root(repository, *id, limits, source_root_of)?
        }
        _ => None,
    };
    requested.extend(source_root.clone());

    let mut listing = FileListing::new(limits);
    if let Some((id, kind)) = recipe {
        listing.add(RECIPE_FILE.into(), kind, id)?;
    }
    if let Some((id, kind)) = entry_at(repository, root, ATTEST_DIRECTORY)? {
        check_is_directory(ATTEST_DIRECTORY, kind)?;
        list_files(repository, id, ATTEST_DIRECTORY, &mut listing)?;
    }
    for path in outermost(requested) {
        let Some((id, kind)) = entry_at(repository, root, &path)? else {
            return Err(SourceError::PathMissing { path });
        };
        check_is_directory(&path, kind)?;
        list_files(repository, id, &path, &mut listing)?;
    }
    let tree =
        listing.read(limits, |id| object_size(repository, *id), |id| read_blob(repository, *id))?;
    let git_tree = match &source_root {
        Some(path) => entry_at(repository, root, path)?.map(|(id, _)| id.to_string()),
        None => None,
    };
    Ok(tree.with_origin(Some(commit.to_string()), git_tree, source_root))
}

/// Returns the id of the tree at `path` in `commit`.
///
/// # Errors
/// [`SourceError`] if an object on the way cannot be read.
pub(crate) fn tree_id(
    repository: &gix::Repository,
    commit: gix::ObjectId,
    path: &str,
) -> Result<Option<String>, SourceError> {
    let root = root_tree(repository, commit)?;
    Ok(entry_at(repository, root, path)?.map(|(id, _)| id.to_string()))
}

/// Returns the size of an object, in bytes.
///
/// # Errors
/// [`SourceError::Files`] if it cannot be read.
pub(crate) fn object_size(
    repository: &gix::Repository,
    id: gix::ObjectId,
) -> Result<u64, SourceError> {
    let header = repository.find_header(id).map_err(|error| object_error(id, &error))?;
    Ok(header.size())
}

/// Returns the bytes of a blob.
///
/// # Errors
/// [`SourceError::Files`] if it cannot be read or is another kind of object.
pub(crate) fn read_blob(
    repository: &gix::Repository,
    id: gix::ObjectId,
) -> Result<Vec<u8>, SourceError> {
    let mut object = repository.find_object(id).map_err(|error| object_error(id, &error))?;
    if object.kind != gix::objs::Kind::Blob {
        return Err(object_problem(id, "it is not a file"));
    }
    Ok(std::mem::take(&mut object.data))
}

fn root_tree(
    repository: &gix::Repository,
    commit: gix::ObjectId,
) -> Result<gix::ObjectId, SourceError> {
    let header = repository.find_header(commit).map_err(|error| object_error(commit, &error))?;
    if header.kind() != gix::objs::Kind::Commit {
        return Err(malformed_commit(commit, "it is another kind of object"));
    }
    if header.size() > COMMIT_BYTES_MAX {
        return Err(malformed_commit(commit, "it is longer than 1 MiB"));
    }
    let object = repository.find_object(commit).map_err(|error| object_error(commit, &error))?;
    if let Some(problem) = ambiguous_header(&object.data) {
        return Err(malformed_commit(commit, problem));
    }
    gix::objs::CommitRef::from_bytes(&object.data, commit.kind())
        .map(|parsed| parsed.tree())
        .map_err(|_| malformed_commit(commit, "its header cannot be parsed"))
}

fn malformed_commit(commit: gix::ObjectId, problem: &'static str) -> SourceError {
    SourceError::CommitStructure { commit: commit.to_string(), problem }
}

/// Parsers disagree on which of two equal header fields counts, so each may occur only once.
fn ambiguous_header(commit: &[u8]) -> Option<&'static str> {
    let header = commit.find(b"\n\n").map_or(commit, |end| commit.get(..end).unwrap_or(commit));
    for (field, problem) in [
        (&b"tree "[..], "it does not have exactly one tree"),
        (&b"author "[..], "it does not have exactly one author"),
        (&b"committer "[..], "it does not have exactly one committer"),
    ] {
        if header.lines().filter(|line| line.starts_with(field)).count() != 1 {
            return Some(problem);
        }
    }
    let signatures = header.lines().filter(|line| line.starts_with(b"gpgsig")).count();
    (signatures > 1).then_some("it has more than one signature")
}

fn declared_source_root(
    repository: &gix::Repository,
    recipe: gix::ObjectId,
    limits: &RepositoryLimits,
    source_root_of: SourceRootOf,
) -> Result<Option<String>, SourceError> {
    if object_size(repository, recipe)? > limits.blob_bytes_max {
        return Ok(None);
    }
    let bytes = read_blob(repository, recipe)?;
    source_root_of(&bytes).map(|root| clean_directory(&root)).transpose()
}

fn recipe_kind(kind: EntryKind) -> Result<FileKind, SourceError> {
    file_kind(kind).ok_or_else(|| SourceError::TreePath {
        path: RECIPE_FILE.to_owned(),
        problem: "it is a directory where a file is expected; rename it".to_owned(),
    })
}

/// Returns the kind of an entry that is not a directory.
fn file_kind(kind: EntryKind) -> Option<FileKind> {
    match kind {
        EntryKind::Blob | EntryKind::BlobExecutable => Some(FileKind::File),
        EntryKind::Link => Some(FileKind::Symlink),
        EntryKind::Commit => Some(FileKind::Submodule),
        EntryKind::Tree => None,
    }
}

fn check_is_directory(path: &str, kind: EntryKind) -> Result<(), SourceError> {
    let path = path.to_owned();
    match file_kind(kind) {
        None => Ok(()),
        Some(FileKind::Symlink) => Err(SourceError::TreeSymlink { path }),
        Some(FileKind::Submodule) => Err(SourceError::TreeSubmodule { path }),
        Some(FileKind::File) => Err(SourceError::TreePath {
            path,
            problem: "it is a file where a directory is expected; rename it".to_owned(),
        }),
    }
}

/// Finds the entry at `path`. A link on the way is an error; links are never followed.
fn entry_at(
    repository: &gix::Repository,
    root: gix::ObjectId,
    path: &str,
) -> Result<Option<(gix::ObjectId, EntryKind)>, SourceError> {
    let mut current = (root, EntryKind::Tree);
    let mut walked = String::new();
    for component in path.split('/') {
        if !walked.is_empty() {
            check_is_directory(&walked, current.1)?;
            walked.push('/');
        }
        walked.push_str(component);
        match find_entry(repository, current.0, component)? {
            Some(entry) => current = entry,
            None => return Ok(None),
        }
    }
    Ok(Some(current))
}

fn find_entry(
    repository: &gix::Repository,
    tree: gix::ObjectId,
    name: &str,
) -> Result<Option<(gix::ObjectId, EntryKind)>, SourceError> {
    let object = repository.find_tree(tree).map_err(|error| object_error(tree, &error))?;
    let mut found = None;
    for entry in object.iter() {
        let entry = entry.map_err(|error| object_problem(tree, &error.to_string()))?;
        if entry.filename() == name.as_bytes() {
            found = Some((entry.object_id(), entry.mode().kind()));
        }
    }
    Ok(found)
}

/// Adds the files of `tree` at any depth to `listing`.
fn list_files(
    repository: &gix::Repository,
    tree: gix::ObjectId,
    path: &str,
    listing: &mut FileListing<gix::ObjectId>,
) -> Result<(), SourceError> {
    let mut pending = vec![(BString::from(path), tree)];
    while let Some((directory, id)) = pending.pop() {
        check_depth(directory.as_bstr())?;
        let tree = repository.find_tree(id).map_err(|error| object_error(id, &error))?;
        for entry in tree.iter() {
            let entry = entry.map_err(|error| object_problem(id, &error.to_string()))?;
            let mut path = directory.clone();
            path.push(b'/');
            path.extend_from_slice(entry.filename());
            match file_kind(entry.mode().kind()) {
                Some(kind) => listing.add(path.as_bstr(), kind, entry.object_id())?,
                None => {
                    check_path(path.as_bstr())?;
                    pending.push((path, entry.object_id()));
                }
            }
        }
    }
    Ok(())
}

fn check_depth(directory: &BStr) -> Result<(), SourceError> {
    if directory.split(|byte| *byte == b'/').count() <= PATH_DEPTH_MAX {
        return Ok(());
    }
    Err(SourceError::TreePath {
        path: directory.to_str_lossy().into_owned(),
        problem: format!("it is deeper than {PATH_DEPTH_MAX} directories; move it up"),
    })
}

fn object_error(id: gix::ObjectId, error: &gix::Error) -> SourceError {
    let messages: Vec<String> = error.iter_errors().map(|error| format!("{error:#}")).collect();
    object_problem(id, &messages.join(": "))
}

fn object_problem(id: gix::ObjectId, problem: &str) -> SourceError {
    let source = std::io::Error::other(one_line(problem));
    SourceError::Files { action: "read Git object", path: id.to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_with_a_repeated_header_field_is_ambiguous() {
        let plain = "tree 1\nauthor a\ncommitter c\ngpgsig -----\n more\n\ntree in the message\n";
        assert_eq!(ambiguous_header(plain.as_bytes()), None);

        for repeated in ["tree 2\n", "author b\n", "committer d\n", "gpgsig x\ngpgsig y\n"] {
            let commit = format!("tree 1\nauthor a\ncommitter c\n{repeated}\nmessage\n");
            assert!(ambiguous_header(commit.as_bytes()).is_some(), "{repeated}");
        }
    }
}
