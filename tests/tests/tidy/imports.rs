//! The imports of a crate, read from its sources, as edges between its modules.
//!
//! Only product code counts: what `#[cfg(test)]` covers is left out, and so are comments. A name that a module
//! re-exports counts as an import of the module that defines it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Longest chain of re-exports that is followed.
const REEXPORTS_MAX: usize = 16;

/// A module as a path below the root of its crate; the root itself is empty.
type Module = Vec<String>;

/// One import of one module by another.
#[derive(Debug)]
pub(crate) struct Import {
    pub(crate) from: Module,
    pub(crate) to: Module,
}

impl Import {
    /// The two neighbouring modules that it connects, and the module that holds both. `None` between a module and
    /// those inside it: they are one place.
    pub(crate) fn neighbours(&self) -> Option<(&[String], &str, &str)> {
        let shared = self.from.iter().zip(&self.to).take_while(|(a, b)| a == b).count();
        let (from, to) = (self.from.get(shared)?, self.to.get(shared)?);
        Some((&self.from[..shared], from, to))
    }
}

/// A crate's modules with their product code.
pub(crate) struct Sources {
    code: BTreeMap<Module, String>,
}

impl Sources {
    /// Reads every file below `src`.
    pub(crate) fn read(src: &Path) -> Self {
        let mut code: BTreeMap<Module, String> = BTreeMap::new();
        let mut tests = BTreeSet::new();
        for file in files_below(src) {
            let module = module_of(src, &file);
            let text = fs::read_to_string(&file).unwrap();
            tests.extend(test_modules(&text).map(|name| [module.clone(), vec![name]].concat()));
            code.entry(module).or_default().push_str(&product(&text));
        }
        code.retain(|module, _| !tests.iter().any(|test| module.starts_with(test)));
        Self { code }
    }

    /// Names of the modules directly below the root.
    pub(crate) fn top_level(&self) -> BTreeSet<&str> {
        self.code.keys().filter_map(|module| module.first().map(String::as_str)).collect()
    }

    /// Every import of a module of this crate by another.
    pub(crate) fn imports(&self) -> Vec<Import> {
        let mut imports = Vec::new();
        for (from, code) in &self.code {
            for path in paths(code) {
                let to = self.defining(from, &path, REEXPORTS_MAX);
                imports.extend(to.map(|to| Import { from: from.clone(), to }));
            }
        }
        imports
    }

    /// The module that defines what `path` means in the module `from`.
    fn defining(&self, from: &[String], path: &[String], left: usize) -> Option<Module> {
        let (mut module, rest) = anchored(from, path)?;
        let mut rest = rest.iter();
        let name = loop {
            let Some(next) = rest.next() else { return Some(module) };
            module.push(next.clone());
            if !self.code.contains_key(&module) {
                module.pop();
                break next;
            }
        };
        let code = self.code.get(&module)?;
        let exported = used(code).into_iter().find(|path| path.last() == Some(name));
        match exported {
            Some(path) if left > 0 => {
                let absolute = match path.first().map(String::as_str) {
                    Some("crate" | "super" | "self") => path,
                    // `pub use child::Name`, or another crate.
                    _ => [vec!["self".to_owned()], path].concat(),
                };
                let found = self.defining(&module, &absolute, left - 1);
                Some(found.filter(|found| !found.is_empty()).unwrap_or(module))
            }
            _ => Some(module),
        }
    }
}

/// Where a path begins, and what is left of it.
fn anchored<'a>(from: &[String], path: &'a [String]) -> Option<(Module, &'a [String])> {
    let (first, mut rest) = path.split_first()?;
    let mut module = from.to_vec();
    match first.as_str() {
        "crate" => module.clear(),
        "self" => {}
        "super" => {
            module.pop()?;
            while let Some((next, after)) = rest.split_first().filter(|(next, _)| *next == "super")
            {
                module.pop().filter(|_| next == "super")?;
                rest = after;
            }
        }
        _ => return None,
    }
    Some((module, rest))
}

fn module_of(src: &Path, file: &Path) -> Module {
    let inside = file.strip_prefix(src).unwrap().with_extension("");
    let mut module: Module =
        inside.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if matches!(module.as_slice(), [root] if root == "lib" || root == "main") {
        module.clear();
    }
    module
}

fn files_below(src: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut directories = vec![src.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// Files that are modules of tests only.
fn test_modules(text: &str) -> impl Iterator<Item = String> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let item = lines[index..].iter().skip(1).find(|line| !line.starts_with("#["));
        let name = item.and_then(|item| item.strip_suffix(';')?.rsplit_once("mod "));
        if *line == "#[cfg(test)]" {
            found.extend(name.map(|(_, name)| name.to_owned()));
        }
    }
    found.into_iter()
}

/// The lines that are compiled into the product, without comments. Relies on the layout that rustfmt gives: an
/// item ends at a line of its own indentation.
fn product(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            let bare = line.trim_start();
            if !bare.starts_with("//") {
                code.push_str(line.split(" // ").next().unwrap_or(line));
                code.push('\n');
            }
            continue;
        }
        let depth = indent(line);
        let item = lines.by_ref().find(|line| !line.trim_start().starts_with("#["));
        if item.is_some_and(|item| item.ends_with(';') || item.ends_with('}')) {
            continue;
        }
        let is_end = |line: &&str| indent(line) == depth && line.trim_start().starts_with('}');
        lines.by_ref().find(is_end);
    }
    code
}

/// Every path into the crate itself, in `use` declarations and elsewhere.
fn paths(code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for anchor in ["crate::", "super::"] {
        for (at, _) in code.match_indices(anchor) {
            let before = code[..at].chars().next_back();
            let is_inside = before.is_some_and(|c| c.is_alphanumeric() || "_:$".contains(c));
            if !is_inside {
                expand(&code[at..], &mut Vec::new(), &mut found);
            }
        }
    }
    found
}

/// Every path that a module's `use` declarations bring into it.
fn used(code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for line_at in code.match_indices("use ").map(|(at, _)| at) {
        let starts = code[..line_at].rsplit('\n').next().unwrap_or_default().trim();
        if starts.is_empty() || starts.starts_with("pub") {
            expand(&code[line_at + "use ".len()..], &mut Vec::new(), &mut found);
        }
    }
    found
}

/// Reads one path or tree of paths at the beginning of `code`; returns how much of it was read.
fn expand(code: &str, before: &mut Vec<String>, found: &mut Vec<Vec<String>>) -> usize {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let depth = before.len();
    let mut at = 0;
    loop {
        let rest = &code[at..];
        let end = rest.find(|c: char| !is_name(c)).unwrap_or(rest.len());
        if end > 0 && &rest[..end] != "self" || before.is_empty() {
            before.push(rest[..end].to_owned());
        }
        at += end;
        let Some(after) = code[at..].strip_prefix("::") else { break };
        at += "::".len();
        if let Some(tree) = after.strip_prefix('{') {
            at += 1;
            let mut tree = tree;
            loop {
                let blank = tree.len() - tree.trim_start().len();
                (at, tree) = (at + blank, &tree[blank..]);
                if tree.is_empty() || tree.starts_with('}') {
                    at += usize::from(!tree.is_empty());
                    break;
                }
                let read = expand(tree, before, found);
                // `as Name`, then a comma or the end of the tree.
                let skip = tree[read..].find([',', '}']).map_or(tree.len(), |skip| read + skip);
                let skip = skip + usize::from(tree[skip..].starts_with(','));
                (at, tree) = (at + skip, &tree[skip..]);
            }
            before.truncate(depth);
            return at;
        }
        if !after.starts_with(is_name) {
            // `*`, a turbofish.
            break;
        }
    }
    found.push(before.clone());
    before.truncate(depth);
    at
}

/// A circle of neighbours among `edges`, when there is one.
pub(crate) fn circle<'a>(edges: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> Option<Vec<&'a str>> {
    edges.keys().find_map(|start| {
        let mut seen = BTreeSet::new();
        let mut open = vec![vec![*start]];
        while let Some(way) = open.pop() {
            let last = way.last().copied()?;
            for next in edges.get(last).into_iter().flatten() {
                let longer = [way.as_slice(), &[*next]].concat();
                if next == start {
                    return Some(longer);
                }
                if seen.insert(*next) {
                    open.push(longer);
                }
            }
        }
        None
    })
}
