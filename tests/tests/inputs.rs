//! Every input has a row in its reference page and a test that shows it effective or refused.
//!
//! Fields are read from the sources of their types, flags from the command trees of the programs. `hub/cli` checks its
//! own flags against the same table.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper of a test fails the test")]

#[path = "inputs/fields.rs"]
mod fields;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use attest_common::basics::reason::Reason;
use clap::CommandFactory as _;

use fields::{Field, fields_of};

/// One line for each input: what it belongs to, its path, and the test that shows its effect or its refusal.
const EFFECTS: &str = include_str!("inputs/effects.txt");

/// Source of the queries and bodies of the hub's API.
const API: &[&str] = &["hub/documents/src/lib.rs"];

/// Documents, with the page that lists their fields, their root type and the sources of their types.
const DOCUMENTS: &[(&str, Option<&str>, &str, &[&str])] = &[
    (
        "AttestApplication",
        Some("docs/reference/attestapplication.md"),
        "Manifest",
        &["hub/server/src/applications/crd.rs"],
    ),
    (
        "attest.yaml",
        Some("docs/reference/attest-yaml.md"),
        "RecipeDocument",
        &["hub/supply/src/recipe/types.rs", "hub/supply/src/image_change.rs"],
    ),
    (
        "AttestTrustPolicy",
        Some("docs/reference/attesttrustpolicy.md"),
        "Spec",
        &["common/src/trust/policy.rs"],
    ),
    ("Plan", None, "Plan", &["common/src/documents/plan.rs", "common/src/documents/release.rs"]),
    ("Directive", None, "Directive", &["common/src/documents/plan.rs"]),
    ("Sync", None, "Sync", &["common/src/documents/plan.rs"]),
    ("Release", None, "Release", &["common/src/documents/release.rs"]),
    ("Statement", None, "Statement", &["common/src/documents/statement.rs"]),
    ("Envelope", None, "Written", &["common/src/basics/envelope.rs"]),
    ("GET /v1/applications", None, "PageQuery", API),
    ("GET /v1/applications/NAME", None, "DetailQuery", API),
    ("POST /v1/tokens", None, "TokenRequest", API),
    ("POST /v1/clusters/NAME/accept", None, "AcceptRequest", API),
    ("POST /v1/clusters/NAME/revoke", None, "RevokeRequest", API),
    ("PUT /v1/repositories", None, "RepositoryRequest", API),
    ("DELETE /v1/repositories", None, "RepositoryRemoval", API),
    ("PUT /v1/keys", None, "KeyRequest", API),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn document_fields(root_type: &str, sources: &[&str]) -> Vec<Field> {
    let sources: Vec<PathBuf> = sources.iter().map(|source| root().join(source)).collect();
    let sources: Vec<&Path> = sources.iter().map(PathBuf::as_path).collect();
    fields_of(root_type, &sources)
}

#[test]
fn reference_pages_list_every_field_and_no_other() {
    for (document, page, root_type, sources) in DOCUMENTS {
        let Some(page) = page else { continue };
        let text = fs::read_to_string(root().join(page)).unwrap();
        let rows: BTreeMap<&str, &str> = text
            .lines()
            .filter_map(|line| Some((line.strip_prefix("| `")?.split_once('`')?.0, line)))
            .collect();
        let fields = document_fields(root_type, sources);
        let expected: BTreeSet<&str> = fields.iter().map(|field| field.path.as_str()).collect();
        let found: BTreeSet<&str> = rows.keys().copied().collect();
        assert_eq!(found, expected, "{page}");
        for Field { path, aliases } in &fields {
            for alias in aliases {
                let row = rows.get(path.as_str()).unwrap();
                assert!(row.contains(&format!("`{alias}`")), "{document}: {path} is also {alias}");
            }
        }
        for row in rows.values() {
            let (_, reasons) = row.strip_suffix(" |").unwrap().rsplit_once('|').unwrap();
            for reason in reasons.split('`').skip(1).step_by(2) {
                assert!(Reason::ALL.iter().any(|r| r.as_str() == reason), "{page}: {reason}");
            }
        }
    }
}

/// The rows of the table: (what the input belongs to, its path) and the test.
fn effects() -> BTreeMap<(&'static str, &'static str), &'static str> {
    let mut effects = BTreeMap::new();
    let lines = EFFECTS.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    for line in lines {
        let mut cells = line.split('\t');
        let (Some(of), Some(path), Some(test), None) =
            (cells.next(), cells.next(), cells.next(), cells.next())
        else {
            panic!("not three cells: {line}")
        };
        assert_eq!(effects.insert((of, path), test), None, "twice: {line}");
    }
    effects
}

#[test]
fn every_field_of_a_document_has_a_test_that_shows_its_effect_or_its_refusal() {
    let effects = effects();
    let mut missing = Vec::new();
    let mut known = BTreeSet::new();
    for (document, _, root_type, sources) in DOCUMENTS {
        for field in document_fields(root_type, sources) {
            if !effects.contains_key(&(*document, field.path.as_str())) {
                missing.push(format!("{document}\t{}\t", field.path));
            }
            known.insert((*document, field.path));
        }
    }
    let is_document = |of: &str| DOCUMENTS.iter().any(|(document, ..)| *document == of);
    let unknown: Vec<_> = effects
        .keys()
        .filter(|(of, path)| is_document(of) && !known.contains(&(*of, (*path).to_owned())))
        .collect();

    assert!(missing.is_empty(), "add to inputs/effects.txt:\n{}", missing.join("\n"));
    assert!(unknown.is_empty(), "no such fields: {unknown:?}");
}

#[test]
fn every_flag_of_hub_and_spoke_has_a_test_that_shows_its_effect_or_its_refusal() {
    let effects = effects();
    let mut missing = Vec::new();
    for (program, command) in [
        ("attest-hub", attest_hub::process::config::Options::command()),
        ("attest-spoke", attest_spoke::process::options::Options::command()),
    ] {
        let flags: Vec<String> = command
            .get_arguments()
            .filter_map(|argument| Some(format!("--{}", argument.get_long()?)))
            .collect();
        for flag in &flags {
            if !effects.contains_key(&(program, flag.as_str())) {
                missing.push(format!("{program}\t{flag}\t"));
            }
        }
        let unknown: Vec<_> = effects
            .keys()
            .filter(|(of, flag)| *of == program && !flags.iter().any(|known| known == flag))
            .collect();
        assert!(unknown.is_empty(), "no such flags: {unknown:?}");
    }

    assert!(missing.is_empty(), "add to inputs/effects.txt:\n{}", missing.join("\n"));
}

#[test]
fn every_test_that_is_named_exists() {
    let mut sources = String::new();
    for directory in ["common", "certs", "hub", "spoke", "tests"] {
        read_below(&root().join(directory), &mut sources);
    }
    let missing: Vec<&str> =
        effects().into_values().filter(|test| !sources.contains(&format!("fn {test}("))).collect();

    assert!(missing.is_empty(), "no such tests: {missing:?}");
}

fn read_below(directory: &Path, sources: &mut String) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            read_below(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}
