//! Public keys for `--verify`: the trust policy of a cluster, or the keys in the operator's context.
//!
//! Keys in the verified repository never count: anyone who can change the repository could add keys. The context is
//! only read, and only the parts that verification requires.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use attest_common::basics::ids::Name;
use attest_common::basics::keys::{KeyError, KeyId, PrivateKey, PublicKey};
use attest_common::basics::reason::Reason;
use attest_common::basics::terms::Role;
use attest_common::trust::policy::{Policy, PolicyError, Spec};
use serde::Deserialize;

use crate::trust_policy::{self, PolicyRequest};
use crate::yaml;

/// Maximum size of a policy or context file, in bytes.
pub const TRUST_FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Placeholder in a policy without a cluster. No release is compared with it.
const NO_CLUSTER_UID: &str = "unknown-to-ci";
const NO_PIN: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

/// Policies and keys from outside the repository.
#[derive(Clone, Debug)]
pub struct TrustSources {
    policies: Vec<Spec>,
    keys: Vec<ContextKey>,
    placeholder_hub_key: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContextKey {
    alias: String,
    public_key: String,
    environments: Vec<Name>,
}

/// The required part of the operator's context.
#[derive(Deserialize)]
struct ContextKeys {
    #[serde(default)]
    keys: Vec<ContextKey>,
}

impl TrustSources {
    /// Reads policy files and the context. `root` is the verified repository.
    ///
    /// # Errors
    /// [`TrustSourceError`]. A context that does not exist is empty.
    pub fn load(
        policies: &[PathBuf],
        context: Option<&Path>,
        root: &Path,
    ) -> Result<Self, TrustSourceError> {
        let mut specs = Vec::new();
        for file in policies {
            specs.push(read_policy(file, root)?);
        }
        let keys = match context {
            Some(file) if file.exists() => read_context_keys(file, root)?,
            Some(_) | None => Vec::new(),
        };
        Ok(Self { policies: specs, keys, placeholder_hub_key: placeholder_hub_key()? })
    }

    /// Returns whether there is neither a policy nor a key.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty() && self.keys.is_empty()
    }

    /// Returns the environments of the policy files.
    pub fn policy_environments(&self) -> BTreeSet<&Name> {
        self.policies.iter().map(|spec| &spec.environment).collect()
    }

    /// Returns every key that may sign a release in some environment.
    pub fn releaser_keys(&self) -> BTreeMap<KeyId, PublicKey> {
        let policy_keys = self
            .policies
            .iter()
            .flat_map(|spec| &spec.keys)
            .filter(|key| key.roles.contains(&Role::Releaser))
            .map(|key| &key.public_key);
        policy_keys
            .chain(self.keys.iter().map(|key| &key.public_key))
            .filter_map(|pem| PublicKey::from_pem(pem).ok())
            .map(|key| (key.id(), key))
            .collect()
    }

    /// Returns the policies for an environment: those of files, or one generated from the keys of the context.
    pub(super) fn specs(&self, environment: &Name) -> Vec<Spec> {
        let from_files: Vec<Spec> =
            self.policies.iter().filter(|spec| spec.environment == *environment).cloned().collect();
        if from_files.is_empty() {
            self.generated_policy(environment).into_iter().collect()
        } else {
            from_files
        }
    }

    fn generated_policy(&self, environment: &Name) -> Option<Spec> {
        let keys = self.keys.iter().filter(|key| key.environments.contains(environment));
        let ci_keys: Vec<(String, String)> =
            keys.map(|key| (key.alias.clone(), key.public_key.clone())).collect();
        if ci_keys.is_empty() {
            return None;
        }
        let request = PolicyRequest {
            environment: environment.clone(),
            cluster_name: None,
            hub_key: self.placeholder_hub_key.clone(),
            ca_pin: NO_PIN.to_owned(),
            ci_keys,
            names: Vec::new(),
            repos: Vec::new(),
            namespaces: Vec::new(),
            allow_remove: false,
        };
        Some(request.generate())
    }
}

/// Returns the policy for a cluster, with placeholders for missing fields.
pub(super) fn complete_policy(spec: &Spec, cluster: &Name) -> Result<Policy, PolicyError> {
    let mut complete = spec.clone();
    complete.cluster_name.get_or_insert_with(|| cluster.clone());
    complete.kube_system_uid.get_or_insert_with(|| NO_CLUSTER_UID.to_owned());
    complete.load()
}

/// A policy requires a hub key, but there is no hub in CI: returns a public key whose private key is discarded.
fn placeholder_hub_key() -> Result<String, TrustSourceError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|_| TrustSourceError::Randomness)?;
    PrivateKey::from_seed(&seed)
        .map(|key| key.public().to_pem())
        .map_err(|source| TrustSourceError::StandIn { source })
}

fn read_policy(file: &Path, root: &Path) -> Result<Spec, TrustSourceError> {
    let bytes = read_outside(file, root)?;
    trust_policy::read(&file.display().to_string(), &bytes)
        .map_err(|source| TrustSourceError::Policy { path: file.to_owned(), source })
}

fn read_context_keys(file: &Path, root: &Path) -> Result<Vec<ContextKey>, TrustSourceError> {
    let bytes = read_outside(file, root)?;
    let documents = yaml::read(&file.display().to_string(), &bytes, &mut Vec::new())
        .map_err(|error| malformed(file, error.to_string()))?;
    match documents.as_slice() {
        [] => Ok(Vec::new()),
        [document] => ContextKeys::deserialize(document)
            .map(|context| context.keys)
            .map_err(|error| malformed(file, error.to_string())),
        several => {
            let problem = format!("it has {} documents instead of one", several.len());
            Err(malformed(file, problem))
        }
    }
}

/// Reads a file outside the repository at `root`.
fn read_outside(file: &Path, root: &Path) -> Result<Vec<u8>, TrustSourceError> {
    let location = file.canonicalize().map_err(|source| unreadable(file, source))?;
    if location.starts_with(root) {
        return Err(TrustSourceError::InsideRepository { path: file.to_owned() });
    }
    let metadata = std::fs::metadata(&location).map_err(|source| unreadable(file, source))?;
    if metadata.len() > TRUST_FILE_BYTES_MAX {
        return Err(malformed(file, "it is larger than 1 MiB".to_owned()));
    }
    crate::regular::read(&location).map_err(|source| unreadable(file, source))
}

fn malformed(file: &Path, problem: String) -> TrustSourceError {
    TrustSourceError::Malformed { path: file.to_owned(), problem }
}

fn unreadable(file: &Path, source: std::io::Error) -> TrustSourceError {
    TrustSourceError::Files { path: file.to_owned(), source }
}

/// Unusable or missing trust policies and keys.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustSourceError {
    #[error(
        "{} is inside the repository; keep it outside, because keys in the repository prove nothing: anyone who \
         can change the repository can add keys", .path.display()
    )]
    InsideRepository { path: PathBuf },
    #[error("invalid file {}: {problem}", .path.display())]
    Malformed { path: PathBuf, problem: String },
    #[error("invalid trust policy {}", .path.display())]
    Policy {
        path: PathBuf,
        #[source]
        source: trust_policy::TrustPolicyError,
    },
    #[error(
        "no public key to verify with for environment `{environment}`; use `--trust-policy FILE` (the policy of \
         a cluster), or add the CI key to the context with `attest trust key add ALIAS FILE --environment \
         {environment}`; keys in the repository are ignored"
    )]
    NoKey { environment: String },
    #[error("the trust policy for environment `{environment}` is not valid")]
    Unusable {
        environment: Name,
        #[source]
        source: PolicyError,
    },
    #[error("the system provides no randomness")]
    Randomness,
    #[error("failed to create a key")]
    StandIn {
        #[source]
        source: KeyError,
    },
    #[error("failed to read {}", .path.display())]
    Files {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl TrustSourceError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::InsideRepository { .. } => Reason::TrustInRepository,
            Self::Malformed { .. } => Reason::TrustFileMalformed,
            Self::Policy { source, .. } => source.reason(),
            Self::Unusable { source, .. } => source.reason(),
            Self::NoKey { .. } => Reason::NoTrustedKey,
            Self::Randomness | Self::StandIn { .. } => Reason::Randomness,
            Self::Files { .. } => Reason::TrustFileUnreadable,
        }
    }
}
