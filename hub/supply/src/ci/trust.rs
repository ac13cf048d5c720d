//! Whom `--verify` believes: a cluster's trust policy, or the public keys in the operator's context.
//!
//! Never keys that lie in the repository which is being judged: whoever can change the repository could bring their
//! own. The context file is only read here, and only the parts that verification needs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use attest_common::basics::ids::Name;
use attest_common::basics::keys::{KeyError, KeyId, PrivateKey, PublicKey};
use attest_common::basics::reason::Reason;
use attest_common::basics::terms::Role;
use attest_common::trust::policy::{Policy, PolicyError, Spec};
use serde::Deserialize;

use crate::trust_policy::{self, Wanted};
use crate::yaml;

/// Largest policy or context file, in bytes.
pub const TRUST_FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Stands where a policy made from keys cannot know the cluster; no release is compared with it.
const NO_CLUSTER_UID: &str = "unknown-to-ci";
const NO_PIN: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

/// Where public keys come from.
#[derive(Clone, Debug)]
pub struct Trust {
    policies: Vec<Spec>,
    keys: Vec<ContextKey>,
    stand_in: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContextKey {
    alias: String,
    public_key: String,
    environments: Vec<Name>,
}

/// The parts of the operator's context that matter here.
#[derive(Deserialize)]
struct Context {
    #[serde(default)]
    keys: Vec<ContextKey>,
}

impl Trust {
    /// Reads policy files and the context. `root` is the repository that is judged.
    ///
    /// # Errors
    /// [`TrustError`]; a context that does not exist is an empty one.
    pub fn load(
        policies: &[PathBuf],
        context: Option<&Path>,
        root: &Path,
    ) -> Result<Self, TrustError> {
        let mut specs = Vec::new();
        for file in policies {
            specs.push(policy_file(file, root)?);
        }
        let keys = match context {
            Some(file) if file.exists() => context_keys(file, root)?,
            Some(_) | None => Vec::new(),
        };
        Ok(Self { policies: specs, keys, stand_in: stand_in()? })
    }

    /// Whether there is nobody to believe.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty() && self.keys.is_empty()
    }

    /// Environments that policy files speak for; empty without policy files.
    pub fn policy_environments(&self) -> BTreeSet<&Name> {
        self.policies.iter().map(|spec| &spec.environment).collect()
    }

    /// The policies for an environment: those of files, else one made from the context's keys.
    pub(super) fn specs(&self, environment: &Name) -> Vec<Spec> {
        let mine = |spec: &&Spec| spec.environment == *environment;
        let of_files: Vec<Spec> = self.policies.iter().filter(mine).cloned().collect();
        if of_files.is_empty() {
            self.made_from_keys(environment).into_iter().collect()
        } else {
            of_files
        }
    }

    fn made_from_keys(&self, environment: &Name) -> Option<Spec> {
        let mine = self.keys.iter().filter(|key| key.environments.contains(environment));
        let ci_keys: Vec<(String, String)> =
            mine.map(|key| (key.alias.clone(), key.public_key.clone())).collect();
        let wanted = Wanted {
            environment: environment.clone(),
            cluster_name: None,
            hub_key: self.stand_in.clone(),
            ca_pin: NO_PIN.to_owned(),
            ci_keys,
            names: Vec::new(),
            repos: Vec::new(),
            namespaces: Vec::new(),
            allow_remove: false,
        };
        (!wanted.ci_keys.is_empty()).then(|| wanted.generate())
    }

    /// Every key that may sign a release somewhere.
    pub fn releasers(&self) -> BTreeMap<KeyId, PublicKey> {
        let of_policies = self.policies.iter().flat_map(|spec| &spec.keys);
        let of_policies = of_policies.filter(|key| key.roles.contains(&Role::Releaser));
        let of_policies = of_policies.map(|key| &key.public_key);
        let all = of_policies.chain(self.keys.iter().map(|key| &key.public_key));
        all.filter_map(|pem| PublicKey::from_pem(pem).ok()).map(|key| (key.id(), key)).collect()
    }
}

/// A policy ready for use at a cluster; what the file leaves open is filled in.
pub(super) fn usable(spec: &Spec, cluster: &Name) -> Result<Policy, PolicyError> {
    let mut spec = spec.clone();
    spec.cluster_name.get_or_insert_with(|| cluster.clone());
    spec.kube_system_uid.get_or_insert_with(|| NO_CLUSTER_UID.to_owned());
    spec.load()
}

/// No hub speaks in CI, and a policy needs a hub key: one that nobody holds.
fn stand_in() -> Result<String, TrustError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|_| TrustError::Randomness)?;
    PrivateKey::from_seed(&seed)
        .map(|key| key.public().to_pem())
        .map_err(|source| TrustError::StandIn { source })
}

fn policy_file(file: &Path, root: &Path) -> Result<Spec, TrustError> {
    let bytes = read(file, root)?;
    trust_policy::read(&file.display().to_string(), &bytes)
        .map_err(|source| TrustError::Policy { path: file.to_owned(), source })
}

fn context_keys(file: &Path, root: &Path) -> Result<Vec<ContextKey>, TrustError> {
    let wrong = |problem: String| TrustError::Malformed { path: file.to_owned(), problem };
    let documents = yaml::read(&file.display().to_string(), &read(file, root)?, &mut Vec::new())
        .map_err(|error| wrong(error.to_string()))?;
    match documents.as_slice() {
        [] => Ok(Vec::new()),
        [document] => Context::deserialize(document)
            .map(|context| context.keys)
            .map_err(|error| wrong(error.to_string())),
        several => Err(wrong(format!("holds {} documents; one is read", several.len()))),
    }
}

fn read(file: &Path, root: &Path) -> Result<Vec<u8>, TrustError> {
    let failed = |source| TrustError::Files { path: file.to_owned(), source };
    let place = file.canonicalize().map_err(failed)?;
    if place.starts_with(root) {
        return Err(TrustError::InsideRepository { path: file.to_owned() });
    }
    let wrong = |problem: String| TrustError::Malformed { path: file.to_owned(), problem };
    if std::fs::metadata(&place).map_err(failed)?.len() > TRUST_FILE_BYTES_MAX {
        return Err(wrong("is larger than 1 MiB".to_owned()));
    }
    std::fs::read(&place).map_err(failed)
}

/// Why nobody could be believed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    #[error(
        "{} lies inside the repository: keys found only there prove nothing, since whoever changes the repository \
         can bring their own; keep it outside", .path.display()
    )]
    InsideRepository { path: PathBuf },
    #[error("{} cannot be used: {problem}", .path.display())]
    Malformed { path: PathBuf, problem: String },
    #[error("{} cannot be used", .path.display())]
    Policy {
        path: PathBuf,
        #[source]
        source: trust_policy::TrustError,
    },
    #[error(
        "no public key to verify with for environment `{environment}`: give `--trust-policy FILE` (the policy of \
         a cluster), or add the CI key to your context with `attest trust key add ALIAS FILE --environment \
         {environment}`; keys that lie in the repository do not count"
    )]
    NoKey { environment: String },
    #[error("the trust policy for environment `{environment}` cannot be used")]
    Unusable {
        environment: Name,
        #[source]
        source: PolicyError,
    },
    #[error("the system gives no randomness")]
    Randomness,
    #[error("no key could be made")]
    StandIn {
        #[source]
        source: KeyError,
    },
    #[error("cannot read {}", .path.display())]
    Files {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl TrustError {
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
