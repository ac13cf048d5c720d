//! The decision about a registration: how `cluster add` and `cluster rejoin` proceed, or why they refuse.
//!
//! Pure functions of the hub's entries and the facts read from the cluster. Nothing is read or written here.

use attest_common::basics::ids::{ClusterId, Name};
use attest_common::documents::manifest::{ManifestError, Object};
use attest_common::objects::difference::{Difference, differences};
use attest_common::trust::policy::{POLICY_NAME, Spec};
use k8s_openapi::apimachinery::pkg::version::Info;
use serde_json::{Value, json};

use crate::cluster::{ClusterFacts, EARLIER_SPOKE_NAMESPACE};
use attest_common::record::custody::{
    IDENTITY_SECRET, JOIN_SECRET, RECORD_LABEL, REFUSALS_SECRET, SPOKE_NAME, SPOKE_NAMESPACE,
};

/// Oldest supported Kubernetes minor version: the first with ValidatingAdmissionPolicy `v1`.
pub const KUBERNETES_MINOR_MIN: u32 = 30;

/// A cluster's entry at the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HubEntry<'a> {
    pub name: &'a str,
    pub id: &'a ClusterId,
    /// `Pending`, `Accepted`, `Evicted`, `IdentityCopied` or `Revoked`, as in the API.
    pub state: &'a str,
    pub connected: bool,
    pub certificate_expired: bool,
    /// `SHA256:` fingerprint of the identity key.
    pub fingerprint: &'a str,
    pub kube_system_uid: &'a str,
}

impl<'a> HubEntry<'a> {
    /// The state in one word, which distinguishes connected from disconnected clusters.
    pub fn status(&self) -> &'a str {
        match (self.state, self.connected) {
            ("Accepted", true) => "Connected",
            ("Accepted", false) => "Disconnected",
            (other, _) => other,
        }
    }

    /// Returns true unless the entry was revoked. A revoked entry reserves no name and no cluster.
    pub fn is_current(&self) -> bool {
        self.state != "Revoked"
    }
}

/// A registration as the operator requests it.
#[derive(Clone, Copy, Debug)]
pub struct RegistrationRequest<'a> {
    pub name: &'a Name,
    /// Replace an entry of this name, or an entry of this cluster.
    pub replace: bool,
    /// Pin of the hub's certificate authority.
    pub ca_pin: &'a str,
}

/// Returns how `requested` changes the trust policy that is installed in a cluster; `signed` is the installed value,
/// `found` the requested one. An installed policy that this version cannot read is compared as it is stored.
///
/// # Errors
/// When a policy cannot be an object, which no installed policy is.
pub fn policy_changes(
    installed: &Value,
    requested: &Spec,
) -> Result<Vec<Difference>, ManifestError> {
    let normalised = serde_json::from_value::<Spec>(installed.clone())
        .map_or_else(|_| installed.clone(), |spec| json!(spec));
    Ok(differences(&[policy_object(&normalised)?], &[policy_object(&json!(requested))?]))
}

fn policy_object(spec: &Value) -> Result<Object, ManifestError> {
    Object::new(json!({
        "apiVersion": "attest.continuu.ms/v1",
        "kind": "AttestTrustPolicy",
        "metadata": {"name": POLICY_NAME},
        "spec": spec,
    }))
}

/// Steps of a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistrationPlan<'a> {
    pub action: RegistrationAction,
    /// The hub's entry of this cluster under another name, which remains after a new registration.
    pub other_entry: Option<HubEntry<'a>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistrationAction {
    /// The cluster has no identity: installs the spoke with a join token.
    Install,
    /// The cluster is registered by this name: updates the manifests only.
    Update(ClusterId),
    /// The cluster's identity is no longer valid: deletes it, then installs with a join token.
    Rejoin,
}

impl RegistrationAction {
    /// Returns true if the spoke joins with a token.
    pub fn joins(&self) -> bool {
        !matches!(self, Self::Update(_))
    }
}

/// Decides how a cluster is registered.
///
/// # Errors
/// The refusal, when the name or the cluster is registered otherwise and the request does not replace it.
pub fn plan_registration<'a>(
    request: &RegistrationRequest<'_>,
    entries: &[HubEntry<'a>],
    facts: &ClusterFacts,
) -> Result<RegistrationPlan<'a>, RegistrationRefusal> {
    if facts.has_earlier_spoke {
        return Err(RegistrationRefusal::EarlierInstallation { name: request.name.to_string() });
    }
    let identity = joined_identity(facts)?;
    let mut current = entries.iter().filter(|entry| entry.is_current());
    let entry = current.find(|entry| entry.name == request.name.as_str());
    if let (Some(entry), Some(id)) = (entry, &identity)
        && entry.id == id
        && entry.state == "Accepted"
    {
        return plan_update(entry);
    }
    let other_entry = other_entry(request.name, entries, identity.as_ref(), facts);
    if !request.replace {
        refuse_claimed(request, entry, other_entry.as_ref(), identity.as_ref(), facts)?;
    }
    let action = match identity {
        Some(_) => RegistrationAction::Rejoin,
        None => RegistrationAction::Install,
    };
    Ok(RegistrationPlan { action, other_entry })
}

/// The identity that a hub has certified. An identity that has not joined yet does not count:
/// the attempt that created it continues.
fn joined_identity(facts: &ClusterFacts) -> Result<Option<ClusterId>, RegistrationRefusal> {
    let Some(spoke) = facts.spoke.as_ref().filter(|spoke| spoke.joined) else { return Ok(None) };
    match spoke.cluster_id.parse() {
        Ok(id) => Ok(Some(id)),
        Err(_) => Err(RegistrationRefusal::MalformedIdentity { id: spoke.cluster_id.clone() }),
    }
}

/// Returns true if the installed policy pins this certificate authority.
fn policy_pins(facts: &ClusterFacts, ca_pin: &str) -> bool {
    let pins = facts.policy.as_ref().and_then(|spec| spec.pointer("/hub/caPins"));
    pins.and_then(Value::as_array).is_some_and(|pins| pins.iter().any(|pin| *pin == *ca_pin))
}

fn plan_update<'a>(entry: &HubEntry<'a>) -> Result<RegistrationPlan<'a>, RegistrationRefusal> {
    if entry.certificate_expired && !entry.connected {
        return Err(RegistrationRefusal::CertificateExpired { name: entry.name.to_owned() });
    }
    let action = RegistrationAction::Update(entry.id.clone());
    Ok(RegistrationPlan { action, other_entry: None })
}

/// Refuses a name or a cluster that is registered otherwise.
fn refuse_claimed(
    request: &RegistrationRequest<'_>,
    entry: Option<&HubEntry<'_>>,
    other_entry: Option<&HubEntry<'_>>,
    identity: Option<&ClusterId>,
    facts: &ClusterFacts,
) -> Result<(), RegistrationRefusal> {
    let name = request.name.to_string();
    match (entry, other_entry, identity) {
        (Some(entry), _, _) if entry.state == "Evicted" => {
            Err(RegistrationRefusal::Evicted { name })
        }
        (Some(entry), _, _) if entry.state == "IdentityCopied" => {
            Err(RegistrationRefusal::IdentityCopied { name })
        }
        (Some(entry), _, Some(id)) if entry.id == id => {
            Err(RegistrationRefusal::awaiting_acceptance(entry))
        }
        (Some(entry), _, _) => Err(RegistrationRefusal::NameTaken {
            name,
            id: entry.id.clone(),
            state: entry.state.to_owned(),
        }),
        (None, Some(other), _) => Err(RegistrationRefusal::RegisteredAs {
            name,
            other: other.name.to_owned(),
            id: other.id.clone(),
            status: other.status().to_owned(),
        }),
        // An identity that this hub issued and has no entry for: the cluster was removed.
        (None, None, Some(id)) if !policy_pins(facts, request.ca_pin) => {
            Err(RegistrationRefusal::OtherHub { id: id.clone() })
        }
        (None, None, _) => Ok(()),
    }
}

/// The hub's entry, under another name, with this identity or else with this UID of `kube-system`.
fn other_entry<'a>(
    name: &Name,
    entries: &[HubEntry<'a>],
    identity: Option<&ClusterId>,
    facts: &ClusterFacts,
) -> Option<HubEntry<'a>> {
    let others: Vec<&HubEntry<'a>> =
        entries.iter().filter(|entry| entry.is_current() && entry.name != name.as_str()).collect();
    let by_identity = others.iter().find(|entry| Some(entry.id) == identity);
    let by_uid = others.iter().find(|entry| entry.kube_system_uid == facts.kube_system_uid);
    by_identity.or(by_uid).map(|entry| **entry)
}

/// Steps of a rejoin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejoinPlan {
    /// The cluster is connected: nothing to do.
    Connected,
    /// A join token for the cluster's identity restores it.
    IssueToken,
}

/// Decides how a registered cluster gets a new certificate.
///
/// # Errors
/// The refusal, when the entry is pending or rejected permanently.
pub fn plan_rejoin(entry: &HubEntry<'_>) -> Result<RejoinPlan, RegistrationRefusal> {
    match entry.state {
        _ if entry.connected => Ok(RejoinPlan::Connected),
        "Accepted" | "Evicted" | "IdentityCopied" => Ok(RejoinPlan::IssueToken),
        "Pending" => Err(RegistrationRefusal::awaiting_acceptance(entry)),
        state => Err(RegistrationRefusal::IdentityRejected {
            name: entry.name.to_owned(),
            state: state.to_owned(),
        }),
    }
}

/// Checks that a cluster and the identity in it are those of the entry.
///
/// # Errors
/// The refusal. A new registration is offered for this cluster only: for another one it would move the name.
pub fn check_rejoin(
    entry: &HubEntry<'_>,
    entries: &[HubEntry<'_>],
    facts: &ClusterFacts,
) -> Result<(), RegistrationRefusal> {
    let name = entry.name.to_owned();
    if facts.kube_system_uid != entry.kube_system_uid {
        let found = entries.iter().find(|other| other.kube_system_uid == facts.kube_system_uid);
        let found = found.map(|other| other.name.to_owned());
        return Err(RegistrationRefusal::OtherCluster { name, found });
    }
    let found = facts.spoke.as_ref().map(|spoke| spoke.cluster_id.clone());
    if found.as_deref() != Some(entry.id.as_str()) {
        return Err(RegistrationRefusal::OtherIdentity { name, id: entry.id.clone(), found });
    }
    Ok(())
}

/// Checks that the API server is recent enough. A version that is not numeric is accepted.
///
/// # Errors
/// [`RegistrationRefusal::KubernetesTooOld`].
pub fn check_version(version: &Info) -> Result<(), RegistrationRefusal> {
    let digits = version.minor.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    let is_too_old = digits.parse().is_ok_and(|minor: u32| minor < KUBERNETES_MINOR_MIN);
    if version.major == "1" && is_too_old {
        let version = version.git_version.clone();
        return Err(RegistrationRefusal::KubernetesTooOld { version });
    }
    Ok(())
}

/// Reason that a cluster is not registered.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegistrationRefusal {
    #[error("the certificate of cluster {name} has expired")]
    CertificateExpired { name: String },
    #[error("cluster {name} was evicted")]
    Evicted { name: String },
    #[error("the identity of cluster {name} was copied, or restored from a backup")]
    IdentityCopied { name: String },
    #[error("cluster {name} has joined and is pending")]
    AwaitingAcceptance { name: String, fingerprint: String },
    #[error("the name {name} is used by cluster {id} ({state})")]
    NameTaken { name: String, id: ClusterId, state: String },
    #[error("this cluster is already registered as {other} ({id}, {status})")]
    RegisteredAs { name: String, other: String, id: ClusterId, status: String },
    #[error("this cluster is registered with another hub as {id}")]
    OtherHub { id: ClusterId },
    #[error("cluster {name} is {state}, and its identity is rejected permanently")]
    IdentityRejected { name: String, state: String },
    #[error("the cluster contains {}, not {name} ({id})", found.as_deref().unwrap_or("no spoke identity"))]
    OtherIdentity { name: String, id: ClusterId, found: Option<String> },
    #[error("the kubeconfig is for another cluster, {}", found.as_deref().unwrap_or("which is not registered"))]
    OtherCluster { name: String, found: Option<String> },
    #[error("Secret {SPOKE_NAMESPACE}/{IDENTITY_SECRET} contains a malformed cluster id `{id}`")]
    MalformedIdentity { id: String },
    #[error(
        "the cluster contains a spoke of an earlier version, in namespace {EARLIER_SPOKE_NAMESPACE}"
    )]
    EarlierInstallation { name: String },
    #[error("the cluster runs Kubernetes {version}")]
    KubernetesTooOld { version: String },
}

impl RegistrationRefusal {
    fn awaiting_acceptance(entry: &HubEntry<'_>) -> Self {
        let fingerprint = entry.fingerprint.to_owned();
        Self::AwaitingAcceptance { name: entry.name.to_owned(), fingerprint }
    }

    /// The next step for the operator. `flags` are those by which `attest` reaches the cluster.
    pub fn remedy(&self, flags: &str) -> String {
        match self {
            Self::CertificateExpired { name }
            | Self::Evicted { name }
            | Self::IdentityCopied { name } => {
                format!("run `attest gitops cluster rejoin {name} {flags}`")
            }
            Self::AwaitingAcceptance { name, fingerprint } => {
                format!("run `attest gitops cluster accept {name} --fingerprint {fingerprint}`")
            }
            Self::NameTaken { name, .. } => format!(
                "choose another name, remove that cluster with `attest gitops cluster rm {name}`, or \
                 pass --replace"
            ),
            Self::RegisteredAs { name, other, .. } => format!(
                "check the kubeconfig, or pass --replace to register it as {name} instead of {other}"
            ),
            Self::OtherHub { .. } => "pass --replace to register it with this hub".to_owned(),
            Self::IdentityRejected { name, .. } | Self::OtherIdentity { name, .. } => format!(
                "to register it as a new cluster, run `attest gitops cluster add {name} --replace {flags}`"
            ),
            Self::OtherCluster { name, .. } => format!("pass the kubeconfig of {name}"),
            Self::MalformedIdentity { .. } => {
                "restore the Secret, or delete it to register a new identity".to_owned()
            }
            Self::EarlierInstallation { name } => earlier_installation_remedy(name, flags),
            Self::KubernetesTooOld { .. } => {
                format!("the oldest supported version is 1.{KUBERNETES_MINOR_MIN}")
            }
        }
    }
}

/// Returns the commands that remove a spoke of an earlier version. They name its objects, because a hub, which is to
/// stay, may run in the same namespace.
fn earlier_installation_remedy(name: &str, flags: &str) -> String {
    let kubectl = format!("kubectl {flags} -n {EARLIER_SPOKE_NAMESPACE} delete");
    format!(
        "remove it with `{kubectl} --ignore-not-found deployment/{SPOKE_NAME} serviceaccount/{SPOKE_NAME} \
         role/{SPOKE_NAME} rolebinding/{SPOKE_NAME} secret/{JOIN_SECRET} secret/{IDENTITY_SECRET} \
         secret/{REFUSALS_SECRET}`, `{kubectl} secret -l {RECORD_LABEL}` and `attest gitops cluster rm {name}`; the \
         deployed objects keep running, and the new spoke takes them over with `syncOptions: [Adopt=true]`"
    )
}

#[cfg(test)]
mod tests;
