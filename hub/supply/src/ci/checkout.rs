//! The clone in which CI works: its recipe, its files on disk and its files in the Git index.
//!
//! This module only reads. `store` writes below `.attest/`.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use super::CiError;
use crate::recipe::{Recipe, declared_source_root};
use crate::source::{RECIPE_FILE, SourceError, Tree, WorkTree, git_missing};
use crate::text::one_line;

/// A clone with a valid recipe.
#[derive(Debug)]
pub struct Checkout {
    work_tree: WorkTree,
    recipe: Recipe,
    recipe_bytes: Vec<u8>,
}

impl Checkout {
    /// Opens the clone that contains `start`. Variables of the recipe are not replaced.
    ///
    /// # Errors
    /// [`CiError`] without a clone, without a recipe, or for an invalid recipe.
    pub fn open(start: &Path) -> Result<Self, CiError> {
        let work_tree = WorkTree::discover(start, declared_source_root)?;
        let path = work_tree.root().join(RECIPE_FILE);
        let recipe_bytes = match crate::regular::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let directory = work_tree.root().display().to_string();
                return Err(CiError::RecipeMissing { directory });
            }
            Err(source) => return Err(CiError::Files { action: "read", path, source }),
        };
        let recipe = Recipe::parse(RECIPE_FILE, &recipe_bytes)?;
        Ok(Self { work_tree, recipe, recipe_bytes })
    }

    /// Returns the directory to which paths of the recipe are relative.
    pub fn root(&self) -> &Path {
        self.work_tree.root()
    }

    /// Returns the recipe as written.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Returns the bytes of the recipe.
    pub fn recipe_bytes(&self) -> &[u8] {
        &self.recipe_bytes
    }

    /// Returns the work tree of the clone.
    pub fn work_tree(&self) -> &WorkTree {
        &self.work_tree
    }

    /// Returns the recipe with its variables replaced.
    ///
    /// # Errors
    /// [`CiError::Recipe`] for a variable that is not set.
    pub fn expanded_recipe(
        &self,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Recipe, CiError> {
        Ok(self.recipe.clone().expand(RECIPE_FILE, variable)?)
    }

    /// Reads the files on disk, except those that Git ignores; their paths are the second value.
    ///
    /// # Errors
    /// [`CiError::Source`].
    pub fn read_files(&self) -> Result<(Tree, Vec<String>), CiError> {
        let tree = self.work_tree.read_files(&[])?;
        let ignored_paths = self.ignored_paths()?;
        let (ignored, kept): (Vec<_>, Vec<_>) =
            tree.iter().partition(|(path, _)| ignored_paths.contains(*path));
        let kept_tree = Tree::from_files(kept).with_origin(
            tree.git_commit().map(str::to_owned),
            tree.git_tree().map(str::to_owned),
            tree.source_root().map(str::to_owned),
        );
        Ok((kept_tree, ignored.into_iter().map(|(path, _)| path.to_owned()).collect()))
    }

    /// Refuses rendered files that the commit would not contain with the bytes on disk: files that are not in the index,
    /// and files whose bytes Git converts (`eol`, `ident`, `working-tree-encoding`, `filter`, `core.autocrlf`). The hub
    /// reads what the commit contains. An encrypted file would also be signed as plain text.
    ///
    /// # Errors
    /// [`CiError::NotStaged`] or [`CiError::GitChangesBytes`], naming the first such file.
    pub fn check_committed_bytes(&self, files: &Tree) -> Result<(), CiError> {
        let paths: Vec<&str> = files.iter().map(|(path, _)| path).collect();
        let root = self.recipe.source_root.as_str();
        let untracked = ["ls-files", "--others", "--exclude-standard", "-z", "--", root];
        let untracked = self.list_with_git("ls-files", &untracked)?;
        if let Some(path) = untracked.into_iter().find(|path| paths.contains(&path.as_str())) {
            return Err(CiError::NotStaged { path });
        }
        let on_disk = self.blob_ids(&paths, &["--no-filters"])?;
        let in_git = self.blob_ids(&paths, &[])?;
        let ids = on_disk.iter().zip(&in_git);
        let changed = paths.iter().zip(ids).find(|(_, (on_disk, in_git))| on_disk != in_git);
        match changed {
            Some((path, _)) => Err(CiError::GitChangesBytes { path: (*path).to_owned() }),
            None => Ok(()),
        }
    }

    /// Returns the id of the blob that Git makes of each file.
    fn blob_ids(&self, paths: &[&str], options: &[&str]) -> Result<Vec<String>, CiError> {
        const SUBCOMMAND: &str = "hash-object";
        let mut command = Command::new("git");
        command.arg("-C").arg(self.root()).args([SUBCOMMAND, "--stdin-paths"]).args(options);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| git_missing(self.root(), source))?;
        let mut input = child.stdin.take();
        let lines = format!("{}\n", paths.join("\n"));
        // In its own thread, because git writes while it reads.
        let writing =
            std::thread::spawn(move || input.as_mut().map(|i| i.write_all(lines.as_bytes())));
        let output = child.wait_with_output().map_err(|source| git_missing(self.root(), source))?;
        let is_written = matches!(writing.join(), Ok(Some(Ok(()))));
        let ids: Vec<String> =
            String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
        if !output.status.success() || !is_written || ids.len() != paths.len() {
            let detail = one_line(&String::from_utf8_lossy(&output.stderr));
            return Err(SourceError::GitProgram { command: SUBCOMMAND, detail }.into());
        }
        Ok(ids)
    }

    /// Reads the files of the Git index, `.attest` included.
    ///
    /// # Errors
    /// [`CiError::Source`].
    pub fn read_index(&self) -> Result<Tree, CiError> {
        Ok(self.work_tree.read_index(&[])?)
    }

    /// Returns the tracked files outside `.attest` that differ from the checked-out commit.
    ///
    /// # Errors
    /// [`CiError::Source`] if git fails.
    pub fn changed_since_commit(&self) -> Result<Vec<String>, CiError> {
        let arguments = ["diff", "--name-only", "-z", "HEAD", "--", ".", ":(exclude).attest"];
        self.list_with_git("diff", &arguments)
    }

    fn ignored_paths(&self) -> Result<BTreeSet<String>, CiError> {
        let root = self.recipe.source_root.as_str();
        let arguments =
            ["ls-files", "--others", "--ignored", "--exclude-standard", "-z", "--", root];
        Ok(self.list_with_git("ls-files", &arguments)?.into_iter().collect())
    }

    /// Runs git in the clone and splits its output at NUL bytes.
    fn list_with_git(
        &self,
        subcommand: &'static str,
        arguments: &[&str],
    ) -> Result<Vec<String>, CiError> {
        let output = Command::new("git").arg("-C").arg(self.root()).args(arguments).output();
        let output = output.map_err(|source| git_missing(self.root(), source))?;
        if !output.status.success() {
            let detail = one_line(&String::from_utf8_lossy(&output.stderr));
            return Err(SourceError::GitProgram { command: subcommand, detail }.into());
        }
        let listed = String::from_utf8_lossy(&output.stdout);
        Ok(listed.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect())
    }
}
