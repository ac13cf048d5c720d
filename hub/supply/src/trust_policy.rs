//! Trust policies as files: strict parsing, generation with the defaults of `cluster add`, explanation in sentences.
//!
//! `attest_common::trust::policy` defines the meaning of a policy.

mod explain;

use attest_common::basics::ids::Name;
use attest_common::basics::reason::Reason;
use attest_common::basics::terms::{Mode, Role};
use attest_common::trust::policy::{
    Entry, HubSpec, KeySpec, KindsSpec, POLICY_NAME, PolicyError, RemoveSpec, RollbackSpec, Spec,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::yaml::{self, YamlError};

pub use explain::explain;

/// Environments for which a generated policy allows removal by the hub.
pub const DISPOSABLE_ENVIRONMENTS: [&str; 3] = ["dev", "test", "staging"];
/// Attestations that a generated policy requires.
pub const ATTESTATIONS_DEFAULT: [&str; 3] = ["build", "test", "security-scan"];
/// Placeholder for a `clusterName` or `kubeSystemUid` that `trust install` sets.
const PLACEHOLDER: &str = "x";
const API_VERSION: &str = "attest.continuu.ms/v1";

/// Input of a generated policy: the context and the flags of the operator.
#[derive(Clone, Debug)]
pub struct PolicyRequest {
    pub environment: Name,
    pub cluster_name: Option<Name>,
    /// PEM of the key that signs the hub's plans.
    pub hub_key: String,
    /// Pin of the hub's certificate authority.
    pub ca_pin: String,
    /// Name and PEM of each CI key of the environment.
    pub ci_keys: Vec<(String, String)>,
    /// Allowed applications; empty means `*`.
    pub names: Vec<String>,
    /// Allowed repositories; empty means `*`.
    pub repos: Vec<String>,
    /// Allowed namespaces; empty means `*`.
    pub namespaces: Vec<String>,
    /// Allows removal by the hub, beside [`DISPOSABLE_ENVIRONMENTS`].
    pub allow_remove: bool,
}

impl PolicyRequest {
    /// Returns a policy in mode Strict with every attestation, rollback to the last good release, and only these keys.
    pub fn generate(self) -> Spec {
        let is_disposable = DISPOSABLE_ENVIRONMENTS.contains(&self.environment.as_str());
        let entry = Entry {
            entry: None,
            names: any_if_empty(self.names),
            repos: any_if_empty(self.repos),
            namespaces: any_if_empty(self.namespaces),
            kinds: KindsSpec::default(),
            minimum_mode: Mode::Strict,
            required_attestations: ATTESTATIONS_DEFAULT.map(str::to_owned).to_vec(),
            keys: None,
            rollback: RollbackSpec::default(),
            remove: RemoveSpec {
                allow: self.allow_remove || is_disposable,
                ..RemoveSpec::default()
            },
            adopt: false,
            max_namespaces: None,
            max_scan_age_hours: None,
        };
        let ci_keys = self.ci_keys.into_iter();
        let keys = ci_keys.map(|(name, public_key)| KeySpec {
            name,
            public_key,
            roles: Role::ALL.to_vec(),
            environments: vec![self.environment.clone()],
            builder_ids: None,
        });
        Spec {
            cluster_name: self.cluster_name,
            kube_system_uid: None,
            hub: HubSpec { keys: vec![self.hub_key], ca_pins: vec![self.ca_pin] },
            keys: keys.collect(),
            applications: vec![entry],
            environment: self.environment,
        }
    }
}

fn any_if_empty(patterns: Vec<String>) -> Vec<String> {
    if patterns.is_empty() { vec!["*".to_owned()] } else { patterns }
}

/// Reads an `AttestTrustPolicy` manifest and checks everything that does not require the cluster.
///
/// # Errors
/// [`TrustPolicyError`] with the file and the field.
pub fn read(file: &str, bytes: &[u8]) -> Result<Spec, TrustPolicyError> {
    let documents = yaml::read(file, bytes, &mut Vec::new()).map_err(TrustPolicyError::Yaml)?;
    let [document] = documents.as_slice() else {
        let problem = format!("the file has {} documents instead of one", documents.len());
        return Err(field_error(file, "document", problem));
    };
    if document.get("kind").and_then(Value::as_str) != Some("AttestTrustPolicy") {
        return Err(field_error(file, "kind", "is not AttestTrustPolicy"));
    }
    if document.get("apiVersion").and_then(Value::as_str) != Some(API_VERSION) {
        return Err(field_error(file, "apiVersion", format!("is not {API_VERSION}")));
    }
    let value = document.get("spec").unwrap_or(&Value::Null);
    if value.get("roots").is_some() {
        let problem = "root documents are not supported; remove the field";
        return Err(field_error(file, "spec.roots", problem));
    }
    let SpecDocument(spec) = serde_path_to_error::deserialize(value).map_err(|error| {
        field_error(file, &format!("spec.{}", error.path()), error.inner().to_string())
    })?;
    check(&spec).map_err(|source| TrustPolicyError::Policy { file: file.to_owned(), source })?;
    Ok(spec)
}

/// Checks a policy whose `clusterName` and `kubeSystemUid` may be missing.
///
/// # Errors
/// As [`Spec::load`].
pub fn check(spec: &Spec) -> Result<(), PolicyError> {
    let mut complete = spec.clone();
    if complete.cluster_name.is_none() {
        complete.cluster_name = Some(Name::new(PLACEHOLDER).map_err(PolicyError::Name)?);
    }
    complete.kube_system_uid.get_or_insert_with(|| PLACEHOLDER.to_owned());
    complete.load().map(|_| ())
}

/// Sets the fields that only the target cluster and the operator know.
///
/// # Errors
/// [`TrustPolicyError::OtherCluster`] if the policy names another cluster.
pub fn complete(
    mut spec: Spec,
    cluster_name: Option<&Name>,
    kube_system_uid: &str,
) -> Result<Spec, TrustPolicyError> {
    match (&spec.cluster_name, cluster_name) {
        (Some(written), Some(name)) if written != name => {
            return Err(other_cluster("clusterName", written.as_str(), name.as_str()));
        }
        (None, Some(name)) => spec.cluster_name = Some(name.clone()),
        (None | Some(_), _) => {}
    }
    match &spec.kube_system_uid {
        Some(written) if written != kube_system_uid => {
            return Err(other_cluster("kubeSystemUid", written, kube_system_uid));
        }
        Some(_) => {}
        None => spec.kube_system_uid = Some(kube_system_uid.to_owned()),
    }
    Ok(spec)
}

/// Returns the manifest as YAML.
///
/// # Errors
/// [`TrustPolicyError::Write`] if it cannot be serialised.
pub fn to_yaml(spec: &Spec) -> Result<String, TrustPolicyError> {
    let manifest = json!({
        "apiVersion": API_VERSION, "kind": "AttestTrustPolicy",
        "metadata": {"name": POLICY_NAME}, "spec": spec
    });
    serde_saphyr::to_string(&manifest).map_err(|error| TrustPolicyError::Write(error.to_string()))
}

/// Makes the path of an error begin at `spec`.
#[derive(Deserialize)]
#[serde(transparent)]
struct SpecDocument(Spec);

/// A file that is not a usable trust policy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustPolicyError {
    #[error("failed to read the trust policy")]
    Yaml(#[source] YamlError),
    #[error("{file}: {field}: {problem}")]
    Field { file: String, field: String, problem: String },
    #[error("{file} is not a valid trust policy")]
    Policy {
        file: String,
        #[source]
        source: PolicyError,
    },
    #[error("failed to write the trust policy as YAML: {0}")]
    Write(String),
    #[error("the trust policy is for {field} {written}, but this cluster has {found}")]
    OtherCluster { field: &'static str, written: String, found: String },
}

impl TrustPolicyError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Yaml(_) | Self::Field { .. } | Self::Write(_) => Reason::TrustPolicyInvalid,
            Self::Policy { source, .. } => source.reason(),
            Self::OtherCluster { .. } => Reason::TrustPolicyOtherCluster,
        }
    }
}

fn field_error(file: &str, field: &str, problem: impl Into<String>) -> TrustPolicyError {
    TrustPolicyError::Field {
        file: file.to_owned(),
        field: field.to_owned(),
        problem: problem.into(),
    }
}

fn other_cluster(field: &'static str, written: &str, found: &str) -> TrustPolicyError {
    TrustPolicyError::OtherCluster { field, written: written.to_owned(), found: found.to_owned() }
}

#[cfg(test)]
mod tests {
    use attest_common::basics::keys::PrivateKey;

    use super::*;

    fn pem(seed: u8) -> String {
        PrivateKey::from_seed(&[seed; 32]).unwrap().public().to_pem()
    }

    fn request(environment: &str) -> PolicyRequest {
        PolicyRequest {
            environment: Name::new(environment).unwrap(),
            cluster_name: None,
            hub_key: pem(1),
            ca_pin: format!("sha256:{}", "0".repeat(64)),
            ci_keys: vec![("ci".to_owned(), pem(2))],
            names: Vec::new(),
            repos: Vec::new(),
            namespaces: vec!["app-*".to_owned()],
            allow_remove: false,
        }
    }

    #[test]
    fn a_generated_policy_is_read_from_its_own_yaml() {
        let spec = request("production").generate();

        let yaml = to_yaml(&spec).unwrap();

        assert_eq!(read("policy.yaml", yaml.as_bytes()).unwrap(), spec, "{yaml}");
        assert!(!spec.applications[0].remove.allow);
        assert!(request("staging").generate().applications[0].remove.allow);
    }

    #[test]
    fn an_error_names_the_file_and_the_field() {
        let good = to_yaml(&request("production").generate()).unwrap();
        for (from, to, field) in [
            ("minimumMode: Strict", "minimumMode: Lax", "spec.applications[0].minimumMode"),
            ("minimumMode: Strict", "minimumModes: Strict", "spec.applications[0]"),
            ("  environment: production", "  environment: Production", "spec.environment"),
            ("kind: AttestTrustPolicy", "kind: Policy", "kind"),
            ("  environment: production", "  environment: production\n  roots: []", "spec.roots"),
        ] {
            let error = read("p.yaml", good.replace(from, to).as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(&format!("p.yaml: {field}")), "{error}");
        }
        let twice = good.replace("  environment: production", "  environment: a\n  environment: b");
        assert_eq!(
            read("p.yaml", twice.as_bytes()).unwrap_err().reason().as_str(),
            "TrustPolicyInvalid"
        );
    }

    #[test]
    fn a_key_in_two_families_is_rejected() {
        let mut spec = request("production").generate();
        spec.hub.keys = vec![pem(2)];

        let error = read("p.yaml", to_yaml(&spec).unwrap().as_bytes()).unwrap_err();

        assert_eq!(error.reason().as_str(), "RoleKeyOverlap");
    }

    #[test]
    fn a_policy_for_another_cluster_is_not_completed_for_this_one() {
        let name = Name::new("a").unwrap();
        let spec = complete(request("staging").generate(), Some(&name), "uid-1").unwrap();

        assert_eq!(spec.cluster_name.as_ref(), Some(&name));
        assert_eq!(complete(spec.clone(), Some(&name), "uid-1").unwrap(), spec);
        let other = Name::new("b").unwrap();
        assert!(complete(spec.clone(), Some(&other), "uid-1").is_err());
        assert!(complete(spec, None, "uid-2").is_err());
    }

    #[test]
    fn lines_that_require_attention_are_marked() {
        let mut spec = request("production").generate();
        assert!(explain(&spec).iter().all(|line| !line.starts_with('!')));

        spec.keys[0].environments = vec![Name::new("staging").unwrap()];

        assert!(explain(&spec).iter().any(|line| line.starts_with("! No CI key")));
    }
}
