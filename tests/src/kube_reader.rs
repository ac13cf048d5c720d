//! kubectl's own reader of manifests, a program of `kind-clusters/tools`.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use data_encoding::BASE64;
use serde::Deserialize;
use serde_json::Value;

use crate::cluster::binaries::Binaries;

/// Reads files as kubectl reads them.
#[derive(Clone, Debug)]
pub struct KubeReader {
    program: PathBuf,
}

#[derive(Deserialize)]
struct Reading {
    documents: Option<Vec<Value>>,
    error: Option<String>,
}

impl KubeReader {
    /// Finds the program. Without it writes a message to standard error and returns `None`.
    ///
    /// # Errors
    /// When there is none in CI (`CI=true`).
    pub fn find() -> anyhow::Result<Option<Self>> {
        Ok(Binaries::extra("kube-reader")?.map(|program| Self { program }))
    }

    /// Returns for each file the documents that are not empty, or the error of kubectl.
    ///
    /// # Errors
    /// When the program fails.
    pub fn read(&self, files: &[Vec<u8>]) -> anyhow::Result<Vec<Result<Vec<Value>, String>>> {
        let mut child = Command::new(&self.program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("kube-reader does not start")?;
        let mut input = child.stdin.take().context("no standard input")?;
        let lines: String = files.iter().map(|file| BASE64.encode(file) + "\n").collect();
        let writer = std::thread::spawn(move || input.write_all(lines.as_bytes()));
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "kube-reader ended with {}", output.status);
        writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        let readings = output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let readings: Vec<_> = readings
            .map(|line| {
                let Reading { documents, error } = serde_json::from_slice(line)?;
                Ok(error.map_or_else(|| Ok(documents.unwrap_or_default()), Err))
            })
            .collect::<anyhow::Result<_>>()?;
        ensure!(
            readings.len() == files.len(),
            "{} files, {} readings",
            files.len(),
            readings.len()
        );
        Ok(readings)
    }
}
