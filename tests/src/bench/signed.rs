//! Workload W as bytes, signed by the real `attest run`, for benches of verification.

use std::path::Path;

use anyhow::Context;
use attest_common::basics::keys::PublicKey;

use crate::fleet::{Operator, Repository, generate_key};
use crate::workload::{self, ENVIRONMENT};

/// A signed release of W.
#[derive(Debug)]
pub struct Signed {
    pub release: Vec<u8>,
    pub receipts: Vec<Vec<u8>>,
    pub content: Vec<u8>,
    pub public_key: PublicKey,
    pub repository: Repository,
}

/// Creates a repository with W in `directory` and a CI key, and signs it.
///
/// # Errors
/// When Git or `attest run` fails.
pub fn sign(directory: &Path) -> anyhow::Result<Signed> {
    let operator = Operator::new(&directory.join("operator"))?;
    let key = directory.join("ci.key");
    let public = generate_key(&operator, &key)?;
    let repository = Repository::create(&directory.join("repository"))?;
    workload::write(repository.tree(), &repository.url(), &[ENVIRONMENT])?;
    repository.commit_and_push("Workload")?;
    let public_path = public.display().to_string();
    operator.attest(&["trust", "key", "add", "ci", &public_path, "--environment", ENVIRONMENT])?;
    repository.sign(&operator, &key, &[("TAG", "v1")])?;
    let attest = repository.tree().join(".attest");
    let receipts = newest(&attest.join("receipts/workload"))?;
    let mut release = None;
    let mut others = Vec::new();
    for entry in std::fs::read_dir(&receipts)? {
        let path = entry?.path();
        let is_release =
            path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("release."));
        let bytes = std::fs::read(&path)?;
        if is_release { release = Some(bytes) } else { others.push(bytes) }
    }
    Ok(Signed {
        release: release.context("no release statement")?,
        receipts: others,
        content: std::fs::read(attest.join(format!("rendered/workload/{ENVIRONMENT}.jsonl")))?,
        public_key: PublicKey::from_pem(&std::fs::read_to_string(&public)?)?,
        repository,
    })
}

fn newest(directory: &Path) -> anyhow::Result<std::path::PathBuf> {
    let entries: Result<Vec<_>, _> = std::fs::read_dir(directory)?.collect();
    let newest = entries?.into_iter().map(|e| e.path()).max();
    newest.with_context(|| format!("nothing in {}", directory.display()))
}
