//! Repositories whose authors have no CI key and want to hurt the hub.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use crate::fleet::Repository;
use crate::workload::ENVIRONMENT;

const FILES: usize = 20_000;
const REFERENCES: usize = 5_000;
/// Directories of which each doubles the objects of the previous one.
const DOUBLINGS: usize = 24;
/// Objects whose names Kustomize looks up in each other.
const SLOW_OBJECTS: usize = 4_000;
const SLOW_REPOSITORIES: usize = 4;
/// Size of a file of zeros, which Git compresses to a thousandth of it.
const ZEROS_BYTES: usize = 300 * 1024 * 1024;

/// Directories of a level, with the suffix of their names.
const SIDES: [(&str, &str); 2] = [("left", "l"), ("right", "r")];

type Fill = fn(&Repository) -> anyhow::Result<()>;

/// Creates every hostile repository below `directory`; returns them by the name of their application.
///
/// # Errors
/// When Git fails.
pub(super) fn create_all(directory: &Path) -> anyhow::Result<BTreeMap<String, Repository>> {
    let mut kinds: Vec<(String, Fill)> = vec![
        ("aliases".into(), aliases),
        ("deep".into(), deep),
        ("doubling".into(), doubling),
        ("files".into(), files),
        ("references".into(), references),
        ("remote".into(), remote),
        ("zeros".into(), zeros),
    ];
    kinds.extend((0..SLOW_REPOSITORIES).map(|number| (format!("slow-{number}"), slow as Fill)));
    let mut created = BTreeMap::new();
    for (name, fill) in kinds {
        let name = format!("hostile-{name}");
        let repository = Repository::create(&directory.join(&name))?;
        write(&repository, "attest.yaml", &recipe(&name, &repository.url()))?;
        fill(&repository)?;
        repository.commit_and_push("first").with_context(|| name.clone())?;
        created.insert(name, repository);
    }
    Ok(created)
}

fn recipe(name: &str, url: &str) -> String {
    format!(
        "application: {name}\nrepository: {url}\nsourceRoot: k8s\nrenders:\n\
         - {{name: all, path: k8s, environments: [{ENVIRONMENT}], namespace: {{mode: fixed, value: {name}}}}}\n\
         release: {{version: \"1\", counter: unix-seconds, notAfter: 720h}}\n"
    )
}

fn write(repository: &Repository, path: &str, text: &str) -> anyhow::Result<()> {
    let path = repository.tree().join(path);
    std::fs::create_dir_all(path.parent().context("no directory")?)?;
    std::fs::write(path, text)?;
    Ok(())
}

/// Aliases that expand to gigabytes.
fn aliases(repository: &Repository) -> anyhow::Result<()> {
    let mut text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: bomb}\nx0: &x0 [a, a, a, a, a, a, a, a]\n".to_owned();
    for level in 1..12 {
        let below = level - 1;
        writeln!(
            text,
            "x{level}: &x{level} [*x{below}, *x{below}, *x{below}, *x{below}, *x{below}, *x{below}]"
        )?;
    }
    write(repository, "k8s/bomb.yaml", &text)
}

/// Lists inside lists.
fn deep(repository: &Repository) -> anyhow::Result<()> {
    let text = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: deep}}\nx: {}{}\n",
        "[".repeat(200_000),
        "]".repeat(200_000)
    );
    write(repository, "k8s/deep.yaml", &text)
}

/// Kustomizations of which each takes the previous one twice.
fn doubling(repository: &Repository) -> anyhow::Result<()> {
    let object = "{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}\n";
    write(repository, "k8s/base/a.yaml", object)?;
    write(repository, "k8s/base/kustomization.yaml", "resources: [a.yaml]\n")?;
    for (side, suffix) in SIDES {
        let text = format!("resources: [../../base]\nnameSuffix: -{suffix}\n");
        write(repository, &format!("k8s/d0/{side}/kustomization.yaml"), &text)?;
    }
    for level in 1..DOUBLINGS {
        let below = level - 1;
        for (side, suffix) in SIDES {
            let text = format!(
                "resources: [../../d{below}/left, ../../d{below}/right]\nnameSuffix: -{suffix}\n"
            );
            write(repository, &format!("k8s/d{level}/{side}/kustomization.yaml"), &text)?;
        }
    }
    let last = DOUBLINGS - 1;
    let text = format!("resources: [d{last}/left]\n");
    write(repository, "k8s/kustomization.yaml", &text)
}

fn files(repository: &Repository) -> anyhow::Result<()> {
    for number in 0..FILES {
        let text = format!("{{apiVersion: v1, kind: ConfigMap, metadata: {{name: c{number}}}}}\n");
        write(repository, &format!("k8s/{}/{number}.yaml", number % 100), &text)?;
    }
    Ok(())
}

/// Thousands of branches, of which one is named like a commit and one like a tag.
fn references(repository: &Repository) -> anyhow::Result<()> {
    write(repository, "k8s/a.yaml", "{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}\n")?;
    let commit = repository.commit_and_push("first")?;
    let mut names: Vec<String> =
        (0..REFERENCES).map(|number| format!("heads/b/{number}")).collect();
    names.extend(["tags/b/1".to_owned(), format!("heads/{commit}"), "heads/HEAD".to_owned()]);
    let mut commands = String::new();
    for name in names {
        writeln!(commands, "create refs/{name} {commit}")?;
    }
    let mut git = Command::new("git")
        .args(["-C", &repository.origin().display().to_string(), "update-ref", "--stdin"])
        .stdin(Stdio::piped())
        .spawn()?;
    std::io::Write::write_all(&mut git.stdin.take().context("no input")?, commands.as_bytes())?;
    ensure!(git.wait()?.success(), "git update-ref failed");
    Ok(())
}

/// Fields that make Kustomize fetch.
fn remote(repository: &Repository) -> anyhow::Result<()> {
    let text = "Resources: [\"http://127.0.0.1:9/a.yaml\"]\nresources: [\"git::https://localhost:9/x.git\"]\n";
    write(repository, "k8s/kustomization.yaml", text)
}

/// A file that is small in a pack.
fn zeros(repository: &Repository) -> anyhow::Result<()> {
    let path = repository.tree().join("k8s/zeros.yaml");
    std::fs::create_dir_all(path.parent().context("no directory")?)?;
    let file = std::fs::File::create(path)?;
    file.set_len(ZEROS_BYTES as u64)?;
    Ok(())
}

/// Names that Kustomize compares with each other.
fn slow(repository: &Repository) -> anyhow::Result<()> {
    let mut text = String::new();
    for number in 0..SLOW_OBJECTS {
        writeln!(text, "---\n{{apiVersion: v1, kind: ConfigMap, metadata: {{name: c{number}}}}}")?;
        writeln!(
            text,
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: p{number}}}, \
             spec: {{volumes: [{{name: v, configMap: {{name: c{number}}}}}]}}}}"
        )?;
    }
    write(repository, "k8s/all.yaml", &text)?;
    write(repository, "k8s/kustomization.yaml", "resources: [all.yaml]\nnamePrefix: x-\n")
}
