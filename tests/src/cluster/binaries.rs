//! Finds the Kubernetes programs, which `kind-clusters/tools/build.sh` builds.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::bail;

const CONTROL_PLANE: [&str; 4] = ["kube-apiserver", "kube-controller-manager", "kubectl", "etcd"];
const TOOLS_MODULE: &str = include_str!("../../../kind-clusters/tools/k8s/go.mod");

/// A directory with the programs of the control plane.
#[derive(Clone, Debug)]
pub struct Binaries {
    directory: PathBuf,
}

impl Binaries {
    /// Finds the programs: in `$ATTEST_KUBE_BIN`, else in the cache that `build.sh` fills, else in the
    /// first directory of `PATH` that has all of them. Without them writes `skipped: no kube-apiserver`
    /// to standard error and returns `None`.
    ///
    /// # Errors
    /// When there are none in CI (`CI=true`), or when `$ATTEST_KUBE_BIN` is incomplete.
    pub fn find() -> anyhow::Result<Option<Self>> {
        if let Some(directory) = std::env::var_os("ATTEST_KUBE_BIN") {
            let directory = PathBuf::from(directory);
            if !holds_all(&directory) {
                bail!("ATTEST_KUBE_BIN={} lacks one of {CONTROL_PLANE:?}", directory.display());
            }
            return Ok(Some(Self { directory }));
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = cache().into_iter().chain(std::env::split_paths(&path)).find(|d| holds_all(d));
        if found.is_none() {
            if std::env::var("CI").is_ok_and(|value| value == "true") {
                bail!("no kube-apiserver: run kind-clusters/tools/build.sh");
            }
            // Written directly, because test runners capture the output of the print macros.
            let _ = std::io::stderr()
                .write_all(b"skipped: no kube-apiserver (run kind-clusters/tools/build.sh)\n");
        }
        Ok(found.map(|directory| Self { directory }))
    }

    /// Finds another program that `build.sh NAME` builds, or one on `PATH` of that name. Without it
    /// writes a message to standard error and returns `None`.
    ///
    /// # Errors
    /// When there is none in CI (`CI=true`).
    pub fn extra(name: &str) -> anyhow::Result<Option<PathBuf>> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut directories = cache().into_iter().chain(std::env::split_paths(&path));
        let found = directories.find_map(|d| Some(d.join(name)).filter(|p| p.is_file()));
        if found.is_none() {
            if std::env::var("CI").is_ok_and(|value| value == "true") {
                bail!("no {name}: run kind-clusters/tools/build.sh {name}");
            }
            let text = format!("skipped: no {name} (run kind-clusters/tools/build.sh {name})\n");
            let _ = std::io::stderr().write_all(text.as_bytes());
        }
        Ok(found)
    }

    /// The directory of the programs.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Path of one program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

fn cache() -> Option<PathBuf> {
    let version = TOOLS_MODULE
        .lines()
        .find_map(|line| line.split_once("k8s.io/kubernetes v"))
        .and_then(|(_, rest)| rest.split_whitespace().next())?;
    let root = match (variable("ATTEST_CACHE"), variable("XDG_CACHE_HOME"), variable("HOME")) {
        (Some(root), _, _) => root,
        (None, Some(cache), _) => cache.join("attest-kube"),
        (None, None, Some(home)) => home.join(".cache/attest-kube"),
        (None, None, None) => return None,
    };
    Some(root.join(version).join("bin"))
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from)
}

fn holds_all(directory: &Path) -> bool {
    CONTROL_PLANE.iter().all(|program| directory.join(program).is_file())
}
