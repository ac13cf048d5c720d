//! The page of reasons is the registry, and the product names its reasons by the registry only.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper of a test fails the test")]

use std::fs;
use std::path::{Path, PathBuf};

use attest_common::basics::reason::{Reason, page};

/// Set to write the page instead of comparing it.
const UPDATE_VARIABLE: &str = "ATTEST_UPDATE_DOCS";

#[test]
fn the_page_of_reasons_is_generated_from_the_registry() {
    let path = root().join("docs/reasons.md");
    if std::env::var_os(UPDATE_VARIABLE).is_some() {
        fs::write(&path, page()).unwrap();
    }

    assert!(
        fs::read_to_string(&path).unwrap_or_default() == page(),
        "docs/reasons.md is not up to date: run `{UPDATE_VARIABLE}=1 cargo test -p attest-tests --test reasons`"
    );
}

/// A word in a log field or an error that is not of the registry has no meaning, no remedy and no row in the page.
#[test]
fn reasons_are_not_written_as_text() {
    let in_a_log = concat!("reason = ", '"');
    let in_a_signature = concat!("fn reason(&self) -> &'static ", "str");
    let mut found = Vec::new();
    for file in sources() {
        let text = fs::read_to_string(&file).unwrap();
        let product = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for (index, line) in product.lines().enumerate() {
            let word =
                line.trim_start().strip_prefix(in_a_log).and_then(|rest| rest.split('"').next());
            let is_word =
                word.is_some_and(|word| word.starts_with(|c: char| c.is_ascii_uppercase()));
            if is_word || line.contains(in_a_signature) {
                found.push(format!("{}:{}", file.display(), index + 1));
            }
        }
    }

    assert!(found.is_empty(), "use `Reason` instead of text:\n  {}", found.join("\n  "));
}

#[test]
fn every_reason_of_the_registry_is_in_use() {
    let mut product = String::new();
    for file in sources()
        .into_iter()
        .filter(|file| !file.ends_with("basics/reason.rs") && !file.ends_with("reason/registry.rs"))
    {
        product.push_str(&fs::read_to_string(&file).unwrap());
    }
    let is_used = |reason: &&Reason| {
        let name = format!("Reason::{reason}");
        product.match_indices(&name).any(|(at, _)| {
            let next = product.get(at + name.len()..).and_then(|rest| rest.chars().next());
            !next.is_some_and(|c| c.is_ascii_alphanumeric())
        })
    };

    let unused: Vec<&Reason> = Reason::ALL.iter().filter(|reason| !is_used(reason)).collect();

    assert!(unused.is_empty(), "remove these from the registry: {unused:?}");
}

/// The Rust files of the product, without tests in files of their own.
fn sources() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut directories: Vec<PathBuf> =
        ["common", "certs", "hub", "spoke"].map(|name| root().join(name)).to_vec();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let is_test = path.file_stem().is_some_and(|stem| stem == "tests");
            if path.is_dir() && !is_test {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !is_test {
                files.push(path);
            }
        }
    }
    files
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}
