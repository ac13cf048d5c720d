//! The clone that CI works in: its recipe, and its files as the next commit would carry them.
//!
//! Only read here; what is written lies under `.attest/` and is `store`'s part.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::CiError;
use crate::recipe::{Recipe, declared_source_root};
use crate::source::{RECIPE_FILE, SourceError, Tree, WorkTree};
use crate::text::one_line;

/// A clone with a readable recipe.
#[derive(Debug)]
pub struct Repository {
    work_tree: WorkTree,
    recipe: Recipe,
    recipe_bytes: Vec<u8>,
}

impl Repository {
    /// The clone that `start` lies in. Variables of the recipe stay as they are written.
    ///
    /// # Errors
    /// [`CiError`] when there is no clone, no recipe, or one that is wrong.
    pub fn open(start: &Path) -> Result<Self, CiError> {
        let work_tree = WorkTree::discover(start, declared_source_root)?;
        let path = work_tree.root().join(RECIPE_FILE);
        let recipe_bytes = match std::fs::read(&path) {
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

    /// Directory that paths of the recipe are relative to.
    pub fn root(&self) -> &Path {
        self.work_tree.root()
    }

    /// The recipe as written.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// The bytes of the recipe.
    pub fn recipe_bytes(&self) -> &[u8] {
        &self.recipe_bytes
    }

    /// Git's view of the clone.
    pub fn work_tree(&self) -> &WorkTree {
        &self.work_tree
    }

    /// The recipe with variables replaced.
    ///
    /// # Errors
    /// [`CiError::Recipe`] names the variable that is not set.
    pub fn expanded(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Recipe, CiError> {
        Ok(self.recipe.clone().expand(RECIPE_FILE, variable)?)
    }

    /// Files on disk that are tracked or would be added; the second part lists those that Git ignores.
    ///
    /// # Errors
    /// [`CiError::Source`].
    pub fn files(&self) -> Result<(Tree, Vec<String>), CiError> {
        let tree = self.work_tree.read_files(&[])?;
        let ignored = self.ignored()?;
        let (dropped, kept): (Vec<_>, Vec<_>) =
            tree.iter().partition(|(path, _)| ignored.contains(*path));
        let dropped = dropped.into_iter().map(|(path, _)| path.to_owned()).collect();
        let own = |text: Option<&str>| text.map(str::to_owned);
        let kept = Tree::from_files(kept).with_origin(
            own(tree.git_commit()),
            own(tree.git_tree()),
            own(tree.source_root()),
        );
        Ok((kept, dropped))
    }

    /// Files as the Git index holds them, `.attest` included.
    ///
    /// # Errors
    /// [`CiError::Source`].
    pub fn index(&self) -> Result<Tree, CiError> {
        Ok(self.work_tree.read_index(&[])?)
    }

    /// Tracked files outside `.attest` whose bytes are not those of the commit that is checked out.
    ///
    /// # Errors
    /// [`CiError::Source`] when git cannot say.
    pub fn changed_since_commit(&self) -> Result<Vec<String>, CiError> {
        let arguments = ["diff", "--name-only", "-z", "HEAD", "--", ".", ":(exclude).attest"];
        self.git("diff", &arguments)
    }

    fn ignored(&self) -> Result<BTreeSet<String>, CiError> {
        let root = self.recipe.source_root.as_str();
        let arguments =
            ["ls-files", "--others", "--ignored", "--exclude-standard", "-z", "--", root];
        Ok(self.git("ls-files", &arguments)?.into_iter().collect())
    }

    /// Runs git in the clone and splits what it lists.
    fn git(&self, word: &'static str, arguments: &[&str]) -> Result<Vec<String>, CiError> {
        let output = Command::new("git").arg("-C").arg(self.root()).args(arguments).output();
        let output = output.map_err(|source| SourceError::ProgramMissing {
            url: self.root().display().to_string(),
            program: "git",
            package: "git",
            source,
        })?;
        if !output.status.success() {
            let detail = one_line(&String::from_utf8_lossy(&output.stderr));
            return Err(SourceError::GitProgram { command: word, detail }.into());
        }
        let listed = String::from_utf8_lossy(&output.stdout);
        Ok(listed.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect())
    }

    /// Where a path of the recipe lies on disk.
    pub fn place(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }
}
