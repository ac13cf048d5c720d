//! House rules that a compiler does not check, kept by reading the tree.
//!
//! Rules about meaning only: headers, directions between crates, names that must match the
//! documentation. Layout is rustfmt's, habits are clippy's.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper of a test fails the test"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use imports::{Sources, circle};

#[path = "tidy/imports.rs"]
mod imports;
#[path = "tidy/wording.rs"]
mod wording;

const CRATES: [&str; 9] = [
    "common",
    "certs",
    "hub/supply",
    "hub/install",
    "hub/documents",
    "hub/server",
    "hub/cli",
    "spoke",
    "tests",
];

/// Of these crates, the modules below the root in their order: each imports only from those before it.
const ORDERS: [(&str, &[&str]); 9] = [
    ("common", &["basics", "documents", "trust", "objects", "record", "verify", "session"]),
    (
        "common/runtime",
        &[
            "variables",
            "clock",
            "failpoint",
            "frames",
            "log",
            "metrics",
            "probes",
            "service_account",
        ],
    ),
    ("certs", &["identity", "bundle", "request", "authority", "tls"]),
    (
        "spoke",
        &[
            "rate_limits",
            "metrics",
            "http",
            "cluster",
            "trust",
            "ledger",
            "session",
            "rollout",
            "destination",
            "admission",
            "process",
        ],
    ),
    (
        "hub/supply",
        &[
            "text",
            "regular",
            "image_change",
            "yaml",
            "source",
            "recipe",
            "render",
            "trust_policy",
            "ci",
        ],
    ),
    (
        "hub/install",
        &[
            "admission",
            "definition",
            "rbac",
            "spoke",
            "apply",
            "namespaces",
            "cluster",
            "registration",
            "permissions",
        ],
    ),
    ("hub/documents", &["login"]),
    (
        "hub/server",
        &[
            "core",
            "home",
            "kubernetes",
            "rollouts",
            "applications",
            "reconcile",
            "spokes",
            "in_cluster",
            "webhooks",
            "resources",
            "api",
            "process",
        ],
    ),
    (
        "hub/cli",
        &[
            "printer", "exit", "human", "context", "target", "forward", "client", "hub_args",
            "input", "wait", "watch", "renderer", "key", "init", "verify", "run", "release",
            "version", "trust", "spoke", "hub", "repo", "rollout", "app", "cluster", "gitops",
        ],
    ),
];
/// Crates in which no two neighbouring modules import each other, directly or by way of others.
const WITHOUT_CIRCLES: [&str; 9] = [
    "common",
    "common/runtime",
    "certs",
    "hub/supply",
    "hub/install",
    "hub/documents",
    "hub/server",
    "hub/cli",
    "spoke",
];

const LINE_CHARS_MAX: usize = 140;

#[test]
fn every_source_file_opens_by_saying_what_it_is() {
    let silent = rust_files()
        .into_iter()
        .filter(|file| !is_test(file))
        .filter(|file| !read(file).starts_with("//! "))
        .map(|file| shown(&file));

    none("these files do not start with `//! ` and a sentence", silent);
}

#[test]
fn modules_are_named_by_their_file() {
    let nameless = rust_files().into_iter().filter(|file| file.ends_with("mod.rs"));

    none("write `name.rs` beside `name/`, not", nameless.map(|file| shown(&file)));
}

#[test]
fn nothing_is_left_for_later_or_switched_off() {
    // In pieces, so that this file does not find itself.
    let words = [concat!("#[ign", "ore"), concat!("to", "do!("), concat!("unimpl", "emented!(")];

    none(
        "finish it or take it out",
        lines_where(|line| words.iter().any(|word| line.contains(word))),
    );
}

#[test]
fn lines_can_be_read_without_scrolling() {
    none("longer than the limit", lines_where(|line| line.chars().count() > LINE_CHARS_MAX));
}

#[test]
fn every_public_limit_says_what_it_limits() {
    let mut undocumented = Vec::new();
    for file in rust_files() {
        let text = read(&file);
        let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
        for (index, line) in lines.iter().enumerate() {
            let Some(name) =
                line.strip_prefix("pub const ").and_then(|rest| rest.split(':').next())
            else {
                continue;
            };
            let before = lines[..index].iter().rev().find(|line| !line.starts_with("#["));
            if name.trim_end().ends_with("_MAX")
                && !before.is_some_and(|line| line.starts_with("///"))
            {
                undocumented.push(format!("{}:{} {name}", shown(&file), index + 1));
            }
        }
    }

    none("a limit needs a doc comment", undocumented);
}

#[test]
fn queues_and_permits_are_bounded_by_a_limit_with_a_name() {
    let makers = [concat!("mpsc::chan", "nel("), concat!("Semaphore::n", "ew(")];
    let unbounded = concat!("unbounded_", "channel(");
    let is_unnamed = |line: &str| {
        // A channel of the standard library has no bound to give: two threads of one call.
        let made = makers.iter().find_map(|maker| line.split_once(maker));
        made.is_some_and(|(_, rest)| !rest.starts_with(')') && !rest.contains("_MAX"))
    };
    let mut found = Vec::new();
    for file in rust_files().into_iter().filter(|file| !is_test(file)) {
        // What only tests have, in the file or as a file.
        let text = read(&file);
        let product = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let shown = shown(&file);
        if shown.starts_with("tests/") || shown.ends_with("stubborn_hub.rs") {
            continue;
        }
        let lines = product.lines().enumerate();
        let bad = lines.filter(|(_, line)| is_unnamed(line) || line.contains(unbounded));
        found.extend(bad.map(|(index, _)| format!("{shown}:{}", index + 1)));
    }

    none("a queue or a number of permits without a limit of that name", found);
}

#[test]
fn the_shared_crate_names_nothing_that_does_input_or_output() {
    let effects = [
        "tokio",
        "quinn",
        "rustls",
        "kube",
        "redb",
        "gix",
        "reqwest",
        "rand",
        "axum",
        "tokio-util",
    ];

    let named = dependencies("common");

    none("common is pure; move this out", effects.into_iter().filter(|name| named.contains(*name)));
}

#[test]
fn certificates_are_issued_in_one_crate() {
    let issuers: Vec<&str> = CRATES
        .into_iter()
        .filter(|name| *name != "tests")
        .filter(|name| dependencies(name).contains("rcgen"))
        .collect();

    assert_eq!(issuers, ["certs"], "only attest-certs names rcgen");
}

#[test]
fn the_spoke_is_the_smallest_trusted_base() {
    let foreign = ["gix", "redb", "rcgen", "attest-hub", "attest-supply", "serde-saphyr"];

    let named = dependencies("spoke");

    none("the spoke does without", foreign.into_iter().filter(|name| named.contains(*name)));
}

#[test]
fn crates_depend_in_one_direction() {
    let below: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("common", &[] as &[&str]),
        ("certs", &["attest-common"]),
        ("common/runtime", &["attest-common"]),
        ("hub/supply", &["attest-common", "attest-certs"]),
        ("hub/install", &["attest-common"]),
        ("hub/documents", &["attest-common"]),
        (
            "hub/server",
            &[
                "attest-common",
                "attest-certs",
                "attest-runtime",
                "attest-supply",
                // For tests: the definition of AttestApplication has the fields of the types.
                "attest-install",
                "attest-documents",
            ],
        ),
        (
            "hub/cli",
            &[
                "attest-common",
                "attest-certs",
                "attest-runtime",
                "attest-supply",
                "attest-install",
                "attest-documents",
                "attest-hub",
            ],
        ),
        ("spoke", &["attest-common", "attest-certs", "attest-runtime"]),
    ]);

    for (name, allowed) in below {
        let upward = dependencies(name)
            .into_iter()
            .filter(|other| other.starts_with("attest-") && !allowed.contains(&other.as_str()));
        none(&format!("{name} must not depend on"), upward);
    }
}

#[test]
fn neighbouring_modules_do_not_import_each_other() {
    let mut circles = Vec::new();
    for name in WITHOUT_CIRCLES {
        let sources = Sources::read(&root().join(name).join("src"));
        let imports = sources.imports();
        let mut levels: BTreeMap<&[String], BTreeMap<&str, BTreeSet<&str>>> = BTreeMap::new();
        for (place, from, to) in imports.iter().filter_map(imports::Import::neighbours) {
            levels.entry(place).or_default().entry(from).or_default().insert(to);
        }
        let found = levels.iter().filter_map(|(place, edges)| Some((place, circle(edges)?)));
        circles.extend(
            found.map(|(place, way)| format!("{name} {}: {}", place.join("::"), way.join(" → "))),
        );
    }

    none("these modules import each other", circles);
}

#[test]
fn modules_import_only_from_those_before_them() {
    let mut wrong = Vec::new();
    for (name, order) in ORDERS {
        let sources = Sources::read(&root().join(name).join("src"));
        let rank = |module: &str| order.iter().position(|known| *known == module);
        let unknown = sources.top_level().into_iter().filter(|module| rank(module).is_none());
        wrong.extend(unknown.map(|module| format!("{name}: {module} has no place in the order")));
        let imports = sources.imports();
        let upward = imports.iter().filter(|import| {
            let neighbours = import.neighbours().filter(|(place, ..)| place.is_empty());
            neighbours.is_some_and(|(_, from, to)| rank(from) < rank(to))
        });
        wrong.extend(upward.map(|import| {
            format!("{name}: {} imports {}", import.from.join("::"), import.to.join("::"))
        }));
    }

    none("imports that point up", wrong);
}

#[test]
fn decisions_are_numbered_without_gaps_or_doubles() {
    let mut names: Vec<String> = fs::read_dir(root().join("docs/decisions"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".md"))
        .collect();
    names.sort();

    for (index, name) in names.iter().enumerate() {
        let number = format!("{:04}-", index + 1);
        assert!(name.starts_with(&number), "docs/decisions/{name}: expected {number}…");
    }
    assert!(!names.is_empty());
}

#[test]
fn every_metric_is_documented() {
    let mut exported = BTreeSet::new();
    for file in
        rust_files().iter().filter(|file| !is_test(file) && !file.starts_with(root().join("tests")))
    {
        exported.extend(metric_names(&read(file), true));
    }
    let mut documented = BTreeSet::new();
    for file in files_below(&root().join("docs"), "md") {
        documented.extend(metric_names(&read(&file), false));
    }

    none("exported, but in no page of docs/", exported.difference(&documented));
}

/// serde_json's `preserve_order` and `arbitrary_precision` change what bytes mean; one crate that
/// asks for them anywhere in the build would turn them on for all.
#[test]
fn json_keeps_its_order_and_its_numbers() {
    let value: serde_json::Value = serde_json::from_str(r#"{"b":1,"a":2}"#).unwrap();

    assert_eq!(value.to_string(), r#"{"a":2,"b":1}"#);
    assert!(serde_json::from_str::<serde_json::Value>("1.0e400").is_err());
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn shown(file: &Path) -> String {
    file.strip_prefix(root()).unwrap_or(file).display().to_string()
}

fn none<T: ToString>(rule: &str, found: impl IntoIterator<Item = T>) {
    let found: Vec<String> = found.into_iter().map(|item| item.to_string()).collect();
    assert!(found.is_empty(), "{rule}:\n  {}", found.join("\n  "));
}

fn files_below(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut directories = vec![directory.to_path_buf()];
    while let Some(directory) = directories.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

fn rust_files() -> Vec<PathBuf> {
    CRATES.iter().flat_map(|name| files_below(&root().join(name), "rs")).collect()
}

/// Integration tests, benches and `tests.rs` modules: no header is asked of them.
fn is_test(file: &Path) -> bool {
    let inside = file.strip_prefix(root()).unwrap();
    let mut parts = inside.iter().skip(1);
    parts.any(|part| part == "tests" || part == "benches" || part == "tests.rs")
}

fn lines_where(matches: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for file in rust_files() {
        for (index, line) in read(&file).lines().enumerate() {
            if matches(line) {
                found.push(format!("{}:{}", shown(&file), index + 1));
            }
        }
    }
    found
}

/// Names under every `dependencies` table of a crate's manifest, development ones too.
fn dependencies(name: &str) -> BTreeSet<String> {
    let manifest = read(&root().join(name).join("Cargo.toml"));
    let mut names = BTreeSet::new();
    let mut inside = false;
    for line in manifest.lines().map(str::trim) {
        if let Some(table) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            let (_, last) = table.rsplit_once("dependencies").unwrap_or(("", "none"));
            inside = last.is_empty();
            // `[dependencies.tokio]` names the crate in the table's head.
            names.extend(last.strip_prefix('.').map(str::to_owned));
        } else if inside && !line.is_empty() && !line.starts_with('#') {
            let end = line.find(['.', ' ', '=']).unwrap_or(line.len());
            names.insert(line[..end].to_owned());
            assert!(!line.contains("package ="), "{name}: a renamed dependency hides its name");
        }
    }
    assert!(!names.is_empty(), "{name} has no dependencies?");
    names
}

/// Metric names in a text; in sources only those that begin a string literal.
fn metric_names(text: &str, quoted: bool) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for prefix in ["attest_gitops_", "attest_fleet_", "attest_spoke_"] {
        for (at, _) in text.match_indices(prefix) {
            if quoted && !text[..at].ends_with('"') {
                continue;
            }
            let end = text[at..]
                .find(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'))
                .map_or(text.len(), |length| at + length);
            names.insert(text[at..end].to_owned());
        }
    }
    names
}
