//! Where the Kubernetes programs are. They are built by `kind-clusters/tools/build.sh`, not here.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::bail;

const CONTROL_PLANE: [&str; 4] = ["kube-apiserver", "kube-controller-manager", "kubectl", "etcd"];
const TOOLS_MODULE: &str = include_str!("../../../kind-clusters/tools/k8s/go.mod");

/// A directory that holds the control plane's programs.
#[derive(Clone, Debug)]
pub struct Binaries {
    directory: PathBuf,
}

impl Binaries {
    /// `$ATTEST_KUBE_BIN`, else the cache that `build.sh` fills, else the first directory of `PATH`
    /// with all of them. `None` after saying `skipped: no kube-apiserver` on standard error.
    ///
    /// # Errors
    /// When there are none and this runs in CI (`CI=true`), or `$ATTEST_KUBE_BIN` is incomplete.
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
            // Not by a macro: test runners hide what those print.
            let _ = std::io::stderr()
                .write_all(b"skipped: no kube-apiserver (run kind-clusters/tools/build.sh)\n");
        }
        Ok(found.map(|directory| Self { directory }))
    }

    /// Another program that `build.sh NAME` builds beside these, or one on `PATH` of that name.
    /// `None` after saying so on standard error.
    ///
    /// # Errors
    /// When there is none and this runs in CI (`CI=true`).
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

    /// One program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

fn cache() -> Option<PathBuf> {
    let version = TOOLS_MODULE
        .lines()
        .find_map(|line| line.split_once("k8s.io/kubernetes v"))
        .and_then(|(_, rest)| rest.split_whitespace().next())?;
    let root = std::env::var_os("ATTEST_CACHE").map(PathBuf::from).or_else(|| {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
        cache.or_else(home).map(|cache| cache.join("attest-kube"))
    })?;
    Some(root.join(version).join("bin"))
}

fn holds_all(directory: &Path) -> bool {
    CONTROL_PLANE.iter().all(|program| directory.join(program).is_file())
}
