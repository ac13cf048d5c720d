//! The pod's service account: the address of the API server and the files of the credential.

use std::path::{Path, PathBuf};

/// Directory of the service account's files in a pod.
const SERVICE_ACCOUNT_DIRECTORY: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The flag of the service account's directory, common to the programs that run in a pod.
#[derive(Clone, Debug, clap::Args)]
pub struct ServiceAccountArgs {
    /// Directory with the service account's token, ca.crt and namespace, when the program runs in a pod
    #[arg(
        long,
        env = "ATTEST_SERVICE_ACCOUNT_DIR",
        value_name = "DIR",
        default_value = SERVICE_ACCOUNT_DIRECTORY
    )]
    pub service_account_dir: PathBuf,
}

/// Address of the API server and credentials of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    /// `https://HOST:PORT`.
    pub server: String,
    /// Certificate authority of the API server, PEM.
    pub authority_pem: String,
    /// File of the token. The kubelet renews it.
    pub token_file: PathBuf,
    /// Namespace of the pod; absent when the file is missing.
    pub namespace: Option<String>,
}

impl ServiceAccount {
    /// Reads the two well-known variables and the files in `directory`.
    ///
    /// # Errors
    /// [`NotInCluster`], which names the missing variable or file.
    pub fn read(directory: &Path) -> Result<Self, NotInCluster> {
        let host = variable("KUBERNETES_SERVICE_HOST")?;
        let port = variable("KUBERNETES_SERVICE_PORT")?;
        let token_file = directory.join("token");
        file(&token_file)?;
        Ok(Self {
            server: server(&host, &port),
            authority_pem: file(&directory.join("ca.crt"))?,
            token_file,
            namespace: file(&directory.join("namespace")).ok().map(|text| text.trim().to_owned()),
        })
    }
}

fn server(host: &str, port: &str) -> String {
    if host.contains(':') {
        format!("https://[{host}]:{port}")
    } else {
        format!("https://{host}:{port}")
    }
}

fn variable(name: &'static str) -> Result<String, NotInCluster> {
    std::env::var(name).map_err(|_| NotInCluster { missing: name.to_owned() })
}

fn file(path: &Path) -> Result<String, NotInCluster> {
    std::fs::read_to_string(path).map_err(|_| NotInCluster { missing: path.display().to_string() })
}

/// A variable or file of a pod is missing.
#[derive(Debug, thiserror::Error)]
#[error("not in a cluster: {missing} is missing; pass --kubeconfig FILE")]
pub struct NotInCluster {
    missing: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_ipv6_is_written_in_brackets() {
        assert_eq!(server("10.0.0.1", "443"), "https://10.0.0.1:443");
        assert_eq!(server("fd00::1", "6443"), "https://[fd00::1]:6443");
    }
}
