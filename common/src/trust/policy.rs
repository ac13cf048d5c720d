//! The trust policy of one cluster: trusted keys and their roles, and the minimum that a plan may request.
//!
//! The cluster's operator installs it; the hub cannot write it. [`Spec`] is the policy as written in
//! `AttestTrustPolicy`, [`Policy`] the validated form with parsed keys. A plan can only tighten it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::basics::ids::{IdError, Name};
use crate::basics::keys::{KeyError, KeyId, PublicKey};
use crate::basics::reason::Reason;
use crate::basics::terms::{BUILDER_ID, Mode, Role};
use crate::documents::receipt;
use crate::documents::release::{GLOB_BYTES_MAX, glob_matches};

/// Most keys in a policy.
pub const KEYS_MAX: usize = 256;
/// Most application entries in a policy.
pub const ENTRIES_MAX: usize = 256;
/// Namespace of the application accounts of the default entry.
pub const ACCOUNTS_NAMESPACE: &str = "attest-applications";
/// Name of the one `AttestTrustPolicy` of a cluster.
pub const POLICY_NAME: &str = "local";
/// Maximum age of a security scan under an entry that sets none, in hours.
pub const SCAN_AGE_HOURS_DEFAULT: u32 = 168;
/// Smallest number of an application's objects to which `remove.maxPrunePercent` applies, unless it is 0.
pub const PRUNE_GUARD_OBJECTS_MIN: usize = 10;
/// Default share of an application's objects that one update may delete, in percent.
pub const PRUNE_PERCENT_DEFAULT: u32 = 30;
/// Largest share in percent.
const PERCENT_MAX: u32 = 100;
/// Prefixes of namespaces that no policy can open to applications.
const FORBIDDEN_PREFIXES: [&str; 2] = ["kube-", "attest-"];

/// The policy as written: `spec` of an `AttestTrustPolicy`. Unknown fields are rejected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Spec {
    /// Name within the fleet; `trust install` sets it when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_name: Option<Name>,
    /// UID of the namespace `kube-system`: this policy is for that cluster and no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kube_system_uid: Option<String>,
    pub environment: Name,
    pub hub: HubSpec,
    pub keys: Vec<KeySpec>,
    pub applications: Vec<Entry>,
}

/// The trusted hub of the cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HubSpec {
    /// PEM public keys that may sign plans and directives. Never a CI key.
    pub keys: Vec<String>,
    /// `sha256:<hex>` of the hub CA's SubjectPublicKeyInfo (RFC 7469).
    pub ca_pins: Vec<String>,
}

/// A CI key and the statements that it may sign.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct KeySpec {
    pub name: String,
    pub public_key: String,
    pub roles: Vec<Role>,
    pub environments: Vec<Name>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub builder_ids: Option<Vec<String>>,
}

/// Permissions of a set of applications.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Entry {
    /// Determines the namespace of the application accounts, `attest-applications-<entry>`; an entry without a name uses
    /// `attest-applications`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<Name>,
    pub names: Vec<String>,
    pub repos: Vec<String>,
    pub namespaces: Vec<String>,
    #[serde(default)]
    pub kinds: KindsSpec,
    pub minimum_mode: Mode,
    pub required_attestations: Vec<String>,
    /// Names of the keys valid for these applications; absent means all keys of the environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<Vec<String>>,
    #[serde(default)]
    pub rollback: RollbackSpec,
    #[serde(default)]
    pub remove: RemoveSpec,
    /// True when a plan that requests it may take over existing objects of other owners.
    #[serde(default)]
    pub adopt: bool,
    /// Most namespaces of one (repository, application) whose rendering does not fix one; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_namespaces: Option<u32>,
    /// Maximum age of a security scan when a release is first admitted, in hours; 168 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_scan_age_hours: Option<u32>,
}

/// Kinds allowed in addition to ordinary workloads.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct KindsSpec {
    #[serde(default)]
    pub cluster_scoped: Vec<GroupResource>,
    #[serde(default)]
    pub extra: Vec<GroupResource>,
}

/// A resource as in RBAC rules.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct GroupResource {
    #[serde(default)]
    pub group: String,
    pub resource: String,
}

/// Limit on rollbacks by the hub.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RollbackSpec {
    pub last_good: u32,
}

impl Default for RollbackSpec {
    fn default() -> Self {
        Self { last_good: 1 }
    }
}

/// Limits on removals by the hub.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RemoveSpec {
    #[serde(default)]
    pub allow: bool,
    /// Largest share of an application's objects that one update may delete, in percent; counts from
    /// [`PRUNE_GUARD_OBJECTS_MIN`] objects on, and 0 always.
    #[serde(default = "prune_percent_default")]
    pub max_prune_percent: u32,
}

fn prune_percent_default() -> u32 {
    PRUNE_PERCENT_DEFAULT
}

impl Default for RemoveSpec {
    fn default() -> Self {
        Self { allow: false, max_prune_percent: PRUNE_PERCENT_DEFAULT }
    }
}

/// A parsed CI key.
#[derive(Clone, Debug, PartialEq)]
pub struct CiKey {
    pub name: String,
    pub public: PublicKey,
    pub roles: BTreeSet<Role>,
    pub builder_ids: Vec<String>,
}

/// The validated policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    pub cluster_name: Name,
    pub kube_system_uid: String,
    pub environment: Name,
    pub hub_keys: BTreeMap<KeyId, PublicKey>,
    pub ca_pins: Vec<String>,
    /// The keys of this cluster's environment only.
    keys: Vec<CiKey>,
    entries: Vec<Entry>,
}

/// The policy for one application in one namespace: all matching entries, combined to the strictest.
#[derive(Clone, Debug, PartialEq)]
pub struct EffectivePolicy {
    pub minimum_mode: Mode,
    pub required: BTreeSet<String>,
    pub keys: Vec<CiKey>,
    pub cluster_scoped: BTreeSet<GroupResource>,
    pub extra: BTreeSet<GroupResource>,
    pub last_good: u32,
    pub remove_allowed: bool,
    pub prune_percent_max: u32,
    pub adopt: bool,
    pub namespaces_max: u32,
    /// Maximum age of a security scan at the first admission, in hours.
    pub scan_age_hours_max: u32,
    /// Namespace of the application's account.
    pub accounts_namespace: String,
}

impl EffectivePolicy {
    /// Returns the keys with a role, narrowed to `requested` when the plan names keys.
    pub fn keys_for(
        &self,
        role: Role,
        requested: Option<&BTreeSet<KeyId>>,
    ) -> BTreeMap<KeyId, PublicKey> {
        self.keys
            .iter()
            .filter(|key| key.roles.contains(&role))
            .filter(|key| requested.is_none_or(|ids| ids.contains(&key.public.id())))
            .map(|key| (key.public.id(), key.public.clone()))
            .collect()
    }

    /// Returns the builder ids that the keys of `signers` may use.
    pub fn builder_ids(&self, signers: &BTreeSet<KeyId>) -> Vec<String> {
        let mine = self.keys.iter().filter(|key| signers.contains(&key.public.id()));
        mine.flat_map(|key| key.builder_ids.clone()).collect()
    }

    /// Returns the policy's name for a key.
    pub fn key_name(&self, id: &KeyId) -> Option<&str> {
        self.keys.iter().find(|key| key.public.id() == *id).map(|key| key.name.as_str())
    }

    /// Returns the stricter of two policies, field by field.
    fn tightened(self, other: &Self) -> Self {
        Self {
            minimum_mode: self.minimum_mode.max(other.minimum_mode),
            required: self.required.union(&other.required).cloned().collect(),
            keys: self.keys.into_iter().filter(|key| other.keys.contains(key)).collect(),
            cluster_scoped: self
                .cluster_scoped
                .intersection(&other.cluster_scoped)
                .cloned()
                .collect(),
            extra: self.extra.intersection(&other.extra).cloned().collect(),
            last_good: self.last_good.min(other.last_good),
            remove_allowed: self.remove_allowed && other.remove_allowed,
            prune_percent_max: self.prune_percent_max.min(other.prune_percent_max),
            adopt: self.adopt && other.adopt,
            namespaces_max: self.namespaces_max.min(other.namespaces_max),
            scan_age_hours_max: self.scan_age_hours_max.min(other.scan_age_hours_max),
            accounts_namespace: self.accounts_namespace,
        }
    }
}

impl Spec {
    /// Validates the policy. Errors name the field at fault.
    pub fn load(&self) -> Result<Policy, PolicyError> {
        if self.keys.len() > KEYS_MAX || self.applications.len() > ENTRIES_MAX {
            return Err(PolicyError::Limit { keys: KEYS_MAX, entries: ENTRIES_MAX });
        }
        let mut hub_keys = BTreeMap::new();
        for (index, pem) in self.hub.keys.iter().enumerate() {
            let field = format!("hub.keys[{index}]");
            let key =
                PublicKey::from_pem(pem).map_err(|source| PolicyError::Key { field, source })?;
            hub_keys.insert(key.id(), key);
        }
        if hub_keys.is_empty() || self.hub.ca_pins.is_empty() {
            return Err(PolicyError::Missing("hub.keys and hub.caPins"));
        }
        let mut keys = Vec::new();
        let mut names = BTreeSet::new();
        for (index, spec) in self.keys.iter().enumerate() {
            // `applications[].keys` refers to keys by name.
            if !names.insert(&spec.name) {
                return Err(PolicyError::KeyNameDuplicate { index, name: spec.name.clone() });
            }
            let field = format!("keys[{index}].publicKey");
            let public = PublicKey::from_pem(&spec.public_key)
                .map_err(|source| PolicyError::Key { field, source })?;
            if hub_keys.contains_key(&public.id()) {
                return Err(PolicyError::RoleKeyOverlap(spec.name.clone()));
            }
            if !spec.environments.contains(&self.environment) {
                continue;
            }
            keys.push(CiKey {
                name: spec.name.clone(),
                public,
                roles: spec.roles.iter().copied().collect(),
                builder_ids: spec
                    .builder_ids
                    .clone()
                    .unwrap_or_else(|| vec![BUILDER_ID.to_owned()]),
            });
        }
        for (index, entry) in self.applications.iter().enumerate() {
            self.check_entry(index, entry)?;
        }
        Ok(Policy {
            cluster_name: self.cluster_name.clone().ok_or(PolicyError::Missing("clusterName"))?,
            kube_system_uid: self
                .kube_system_uid
                .clone()
                .ok_or(PolicyError::Missing("kubeSystemUid"))?,
            environment: self.environment.clone(),
            hub_keys,
            ca_pins: self.hub.ca_pins.clone(),
            keys,
            entries: self.applications.clone(),
        })
    }

    fn check_entry(&self, index: usize, entry: &Entry) -> Result<(), PolicyError> {
        if entry.minimum_mode < Mode::Standard {
            return Err(PolicyError::ModeTooLow { index, mode: entry.minimum_mode });
        }
        if entry.remove.max_prune_percent > PERCENT_MAX {
            return Err(PolicyError::PruneShare { index, percent: entry.remove.max_prune_percent });
        }
        let mut patterns = entry.names.iter().chain(&entry.repos).chain(&entry.namespaces);
        if patterns.any(|pattern| pattern.len() > GLOB_BYTES_MAX) {
            return Err(PolicyError::PatternTooLong { index });
        }
        let unknown = entry.required_attestations.iter().find(|n| receipt::rule(n).is_none());
        if let Some(name) = unknown {
            return Err(PolicyError::AttestationUnknown { index, name: name.clone() });
        }
        let unlisted = entry
            .keys
            .iter()
            .flatten()
            .find(|name| !self.keys.iter().any(|key| key.name == **name));
        if let Some(name) = unlisted {
            return Err(PolicyError::KeyUnknown { index, name: name.clone() });
        }
        Ok(())
    }
}

/// Returns whether a namespace is closed under every policy: those of Kubernetes and of ATTEST.
pub fn is_closed(namespace: &Name) -> bool {
    FORBIDDEN_PREFIXES.iter().any(|prefix| namespace.as_str().starts_with(prefix))
}

impl Policy {
    /// Returns the policy for an application from a repository in a namespace, or why it is not allowed there.
    pub fn effective(
        &self,
        application: &Name,
        repo: &str,
        namespace: &Name,
    ) -> Result<EffectivePolicy, PolicyError> {
        if is_closed(namespace) {
            return Err(PolicyError::NamespaceNotAllowed(namespace.clone()));
        }
        let mut named =
            self.entries.iter().filter(|e| matches_any(&e.names, application.as_str())).peekable();
        if named.peek().is_none() {
            return Err(PolicyError::ApplicationNotAllowed(application.clone()));
        }
        let mut sourced = named.filter(|e| matches_any(&e.repos, repo)).peekable();
        if sourced.peek().is_none() {
            return Err(PolicyError::SourceNotAllowed(repo.chars().take(200).collect()));
        }
        let mut matching = sourced.filter(|e| matches_any(&e.namespaces, namespace.as_str()));
        let first =
            matching.next().ok_or_else(|| PolicyError::NamespaceNotAllowed(namespace.clone()))?;
        Ok(matching.fold(self.entry_policy(first), |policy, entry| {
            policy.tightened(&self.entry_policy(entry))
        }))
    }

    /// Returns the lowest minimum mode of the entries that name this application and namespace, for any
    /// repository, or why there is none. Needs no release.
    pub fn names(&self, application: &Name, namespace: &Name) -> Result<Mode, PolicyError> {
        let forbidden = is_closed(namespace);
        let mut named =
            self.entries.iter().filter(|e| matches_any(&e.names, application.as_str())).peekable();
        if named.peek().is_none() {
            return Err(PolicyError::ApplicationNotAllowed(application.clone()));
        }
        let here = named.filter(|e| !forbidden && matches_any(&e.namespaces, namespace.as_str()));
        here.map(|e| e.minimum_mode)
            .min()
            .ok_or_else(|| PolicyError::NamespaceNotAllowed(namespace.clone()))
    }

    /// Returns the CI keys of this cluster's environment.
    pub fn ci_keys(&self) -> &[CiKey] {
        &self.keys
    }

    fn entry_policy(&self, entry: &Entry) -> EffectivePolicy {
        let counts =
            |key: &&CiKey| entry.keys.as_ref().is_none_or(|names| names.contains(&key.name));
        EffectivePolicy {
            minimum_mode: entry.minimum_mode,
            required: entry.required_attestations.iter().cloned().collect(),
            keys: self.keys.iter().filter(counts).cloned().collect(),
            cluster_scoped: entry.kinds.cluster_scoped.iter().cloned().collect(),
            extra: entry.kinds.extra.iter().cloned().collect(),
            last_good: entry.rollback.last_good,
            remove_allowed: entry.remove.allow,
            prune_percent_max: entry.remove.max_prune_percent,
            adopt: entry.adopt,
            namespaces_max: entry.max_namespaces.unwrap_or(1),
            scan_age_hours_max: entry.max_scan_age_hours.unwrap_or(SCAN_AGE_HOURS_DEFAULT),
            accounts_namespace: accounts_namespace(entry),
        }
    }
}

/// Returns the namespace of an entry's application accounts.
pub fn accounts_namespace(entry: &Entry) -> String {
    entry.entry.as_ref().map_or_else(
        || ACCOUNTS_NAMESPACE.to_owned(),
        |name| format!("{ACCOUNTS_NAMESPACE}-{name}"),
    )
}

/// Returns whether a pattern matches. A lone `*` matches any value; in other patterns `*` does not match `/`.
fn matches_any(patterns: &[String], text: &str) -> bool {
    patterns.iter().any(|pattern| pattern == "*" || glob_matches(pattern, text))
}

/// Reason that a policy is invalid, or forbids a deployment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    #[error("invalid key in `{field}` of the trust policy")]
    Key {
        field: String,
        #[source]
        source: KeyError,
    },
    #[error("the trust policy lacks {0}")]
    Missing(&'static str),
    #[error("the trust policy lists more than {keys} keys or {entries} applications")]
    Limit { keys: usize, entries: usize },
    #[error("key `{0}` is both a CI key and a hub key; these must differ")]
    RoleKeyOverlap(String),
    #[error("applications[{index}].minimumMode is {mode}; a cluster accepts Standard or Strict")]
    ModeTooLow { index: usize, mode: Mode },
    #[error(
        "applications[{index}].remove.maxPrunePercent is {percent}; must be 0 to {PERCENT_MAX}"
    )]
    PruneShare { index: usize, percent: u32 },
    #[error(
        "applications[{index}] has a pattern of more than {GLOB_BYTES_MAX} bytes in names, repos or namespaces"
    )]
    PatternTooLong { index: usize },
    #[error(
        "applications[{index}].requiredAttestations names `{name}`; must be build, test or security-scan"
    )]
    AttestationUnknown { index: usize, name: String },
    #[error("applications[{index}].keys names `{name}`, which is not in keys")]
    KeyUnknown { index: usize, name: String },
    #[error("keys[{index}].name is `{name}`, the name of another key; choose a different name")]
    KeyNameDuplicate { index: usize, name: String },
    #[error("no entry of the cluster's trust policy names application `{0}`")]
    ApplicationNotAllowed(Name),
    #[error("the cluster's trust policy does not allow repository {0} for this application")]
    SourceNotAllowed(String),
    #[error("the cluster's trust policy does not allow namespace `{0}` for this application")]
    NamespaceNotAllowed(Name),
    #[error("invalid name in the trust policy")]
    Name(#[from] IdError),
}

impl PolicyError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::ApplicationNotAllowed(_) => Reason::ApplicationNotAllowed,
            Self::SourceNotAllowed(_) => Reason::SourceNotAllowed,
            Self::NamespaceNotAllowed(_) => Reason::NamespaceNotAllowed,
            Self::RoleKeyOverlap(_) => Reason::RoleKeyOverlap,
            Self::Key { source, .. } => source.reason(),
            Self::Missing(_)
            | Self::Limit { .. }
            | Self::ModeTooLow { .. }
            | Self::PatternTooLong { .. }
            | Self::PruneShare { .. }
            | Self::AttestationUnknown { .. }
            | Self::KeyUnknown { .. }
            | Self::KeyNameDuplicate { .. }
            | Self::Name(_) => Reason::TrustPolicyInvalid,
        }
    }
}
