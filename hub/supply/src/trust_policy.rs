//! Trust policies as files: read strictly, generated with the defaults of `cluster add`, explained in sentences.
//!
//! What a policy means is decided by `attest_common::trust::policy`; nothing here decides.

use attest_common::basics::ids::Name;
use attest_common::basics::reason::Reason;
use attest_common::basics::terms::{Mode, Role};
use attest_common::trust::policy::{
    Entry, HubSpec, KeySpec, KindsSpec, POLICY_NAME, PolicyError, RemoveSpec, RollbackSpec, Spec,
    accounts_namespace,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::yaml::{self, YamlError};

/// Environments in which `app delete` works without a further word.
pub const DISPOSABLE_ENVIRONMENTS: [&str; 3] = ["dev", "test", "staging"];
/// Attestations that a generated policy requires.
pub const ATTESTATIONS_DEFAULT: [&str; 3] = ["build", "test", "security-scan"];
/// Stands for a `clusterName` or `kubeSystemUid` that `trust install` will fill in.
const TO_BE_FILLED: &str = "x";

/// What a generated policy is made from: the operator's context and flags.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub environment: Name,
    pub cluster_name: Option<Name>,
    /// PEM of the key that signs the hub's plans.
    pub hub_key: String,
    /// Pin of the hub's certificate authority.
    pub ca_pin: String,
    /// Name and PEM of each CI key of the environment.
    pub ci_keys: Vec<(String, String)>,
    /// Empty lists mean `*`.
    pub names: Vec<String>,
    pub repos: Vec<String>,
    pub namespaces: Vec<String>,
    pub allow_remove: bool,
}

impl Wanted {
    /// Strict, with every attestation, back to the last good release, and only by these keys.
    pub fn generate(self) -> Spec {
        let Self { environment, cluster_name, hub_key, ca_pin, ci_keys, .. } = self;
        let any = |texts: Vec<String>| if texts.is_empty() { vec!["*".to_owned()] } else { texts };
        let disposable = DISPOSABLE_ENVIRONMENTS.contains(&environment.as_str());
        let entry = Entry {
            entry: None,
            names: any(self.names),
            repos: any(self.repos),
            namespaces: any(self.namespaces),
            kinds: KindsSpec::default(),
            minimum_mode: Mode::Strict,
            required_attestations: ATTESTATIONS_DEFAULT.map(str::to_owned).to_vec(),
            keys: None,
            rollback: RollbackSpec::default(),
            remove: RemoveSpec { allow: self.allow_remove || disposable, ..RemoveSpec::default() },
            adopt: false,
            max_namespaces: None,
        };
        let key = |(name, public_key): (String, String)| KeySpec {
            name,
            public_key,
            roles: Role::ALL.to_vec(),
            environments: vec![environment.clone()],
            builder_ids: None,
        };
        let keys = ci_keys.into_iter().map(key).collect();
        Spec {
            cluster_name,
            kube_system_uid: None,
            hub: HubSpec { keys: vec![hub_key], ca_pins: vec![ca_pin] },
            keys,
            applications: vec![entry],
            environment,
        }
    }
}

/// Reads an `AttestTrustPolicy` manifest and checks everything that does not need the cluster.
///
/// # Errors
/// [`TrustError`], naming the file and the field.
pub fn read(file: &str, bytes: &[u8]) -> Result<Spec, TrustError> {
    let at = |field: &str, problem: String| TrustError::Field {
        file: file.to_owned(),
        field: field.to_owned(),
        problem,
    };
    let documents = yaml::read(file, bytes, &mut Vec::new()).map_err(TrustError::Yaml)?;
    let [document] = documents.as_slice() else {
        return Err(at("document", format!("there are {}, not one", documents.len())));
    };
    if document.get("kind").and_then(Value::as_str) != Some("AttestTrustPolicy") {
        return Err(at("kind", "is not AttestTrustPolicy".to_owned()));
    }
    if document.get("apiVersion").and_then(Value::as_str) != Some(API_VERSION) {
        return Err(at("apiVersion", format!("is not {API_VERSION}")));
    }
    let spec = document.get("spec").unwrap_or(&Value::Null);
    if spec.get("roots").is_some() {
        return Err(at("spec.roots", "root documents are not supported yet; remove it".to_owned()));
    }
    let spec: Spec = serde_path_to_error::deserialize::<_, SpecDocument>(spec)
        .map_err(|error| at(&format!("spec.{}", error.path()), error.inner().to_string()))?
        .0;
    check(&spec).map_err(|source| TrustError::Policy { file: file.to_owned(), source })?;
    Ok(spec)
}

/// Checks a policy whose `clusterName` and `kubeSystemUid` may still be missing.
///
/// # Errors
/// As [`Spec::load`].
pub fn check(spec: &Spec) -> Result<(), PolicyError> {
    let mut complete = spec.clone();
    if complete.cluster_name.is_none() {
        complete.cluster_name = Some(Name::new(TO_BE_FILLED).map_err(PolicyError::Name)?);
    }
    complete.kube_system_uid.get_or_insert_with(|| TO_BE_FILLED.to_owned());
    complete.load().map(|_| ())
}

const API_VERSION: &str = "attest.continuu.ms/v1";

/// So that the path of an error begins at `spec`.
#[derive(Deserialize)]
#[serde(transparent)]
struct SpecDocument(Spec);

/// The manifest as YAML.
///
/// # Errors
/// [`TrustError::Write`] when it cannot be written as YAML.
pub fn to_yaml(spec: &Spec) -> Result<String, TrustError> {
    let manifest = json!({
        "apiVersion": API_VERSION, "kind": "AttestTrustPolicy",
        "metadata": {"name": POLICY_NAME}, "spec": spec
    });
    serde_saphyr::to_string(&manifest).map_err(|error| TrustError::Write(error.to_string()))
}

/// The policy in sentences, one a line; a line that begins with `!` deserves a second look.
pub fn explain(spec: &Spec) -> Vec<String> {
    let mut lines = Vec::new();
    let cluster = spec.cluster_name.as_ref().map_or("the cluster", Name::as_str);
    lines.push(format!("For {cluster}, which belongs to environment {}.", spec.environment));
    match &spec.kube_system_uid {
        Some(uid) => lines.push(format!("Only where namespace kube-system has UID {uid}.")),
        None => lines.push("`attest trust install` writes down for which cluster.".to_owned()),
    }
    lines.push(format!(
        "Plans come from a hub whose certificate authority is {}.",
        spec.hub.ca_pins.join(" or ")
    ));
    for key in &spec.keys {
        let here = key.environments.contains(&spec.environment);
        let roles: Vec<&str> = key.roles.iter().map(|role| role_word(*role)).collect();
        lines.push(match here {
            true => format!("Key {} may sign as {}.", key.name, roles.join(", ")),
            false => format!(
                "! Key {} is not for {}; it counts for nothing.",
                key.name, spec.environment
            ),
        });
    }
    if spec.keys.iter().all(|key| !key.environments.contains(&spec.environment)) {
        lines.push("! No CI key is for this environment: every release is refused.".to_owned());
    }
    for entry in &spec.applications {
        explain_entry(entry, &mut lines);
    }
    if spec.applications.is_empty() {
        lines.push("! No application may run.".to_owned());
    }
    lines.push("Namespaces that begin with kube- or attest- are closed to all.".to_owned());
    lines
}

fn explain_entry(entry: &Entry, lines: &mut Vec<String>) {
    let any = |texts: &[String], what: &str| match texts {
        [only] if only == "*" => format!("any {what}"),
        _ => format!("{what} {}", texts.join(" or ")),
    };
    lines.push(format!(
        "{} from {} may run in {}, by accounts in {}.",
        capital(&any(&entry.names, "application")),
        any(&entry.repos, "repository"),
        any(&entry.namespaces, "namespace"),
        accounts_namespace(entry),
    ));
    lines.push(format!(
        "  Verification is at least {}, with {}.",
        entry.minimum_mode,
        match entry.required_attestations.as_slice() {
            [] => "no attestation".to_owned(),
            some => some.join(", "),
        }
    ));
    if entry.minimum_mode < Mode::Strict {
        lines.push(format!("! {} lets some failed checks pass.", entry.minimum_mode));
    }
    let kinds = |kinds: &[attest_common::trust::policy::GroupResource]| {
        let shown = kinds.iter().map(|kind| match kind.group.as_str() {
            "" => kind.resource.clone(),
            group => format!("{}.{group}", kind.resource),
        });
        shown.collect::<Vec<_>>().join(", ")
    };
    if !entry.kinds.extra.is_empty() {
        lines.push(format!("! Beside workloads it may write {}.", kinds(&entry.kinds.extra)));
    }
    if !entry.kinds.cluster_scoped.is_empty() {
        let shown = kinds(&entry.kinds.cluster_scoped);
        lines.push(format!("! It may write {shown} for the whole cluster."));
    }
    lines.push(match entry.rollback.last_good {
        0 => "  The hub may not order it back.".to_owned(),
        _ => "  The hub may order it back to its last good release.".to_owned(),
    });
    lines.push(match entry.remove.allow {
        true => {
            "  The hub may order it removed; volumes, namespaces and definitions stay.".to_owned()
        }
        false => "  The hub may not order it removed.".to_owned(),
    });
    if entry.adopt {
        lines.push("! It may take over objects of others when a plan asks for it.".to_owned());
    }
}

fn role_word(role: Role) -> &'static str {
    match role {
        Role::Builder => "builder",
        Role::Tester => "tester",
        Role::Scanner => "scanner",
        Role::Releaser => "releaser",
    }
}

fn capital(text: &str) -> String {
    let mut characters = text.chars();
    characters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

/// Why a file is not a usable trust policy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    #[error("the trust policy cannot be read")]
    Yaml(#[source] YamlError),
    #[error("{file}: {field}: {problem}")]
    Field { file: String, field: String, problem: String },
    #[error("{file} is not a usable trust policy")]
    Policy {
        file: String,
        #[source]
        source: PolicyError,
    },
    #[error("the trust policy cannot be written as YAML: {0}")]
    Write(String),
    #[error("the trust policy is for {field} {written}; this cluster has {found}")]
    OtherCluster { field: &'static str, written: String, found: String },
}

impl TrustError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Yaml(_) | Self::Field { .. } | Self::Write(_) => Reason::TrustPolicyInvalid,
            Self::Policy { source, .. } => source.reason(),
            Self::OtherCluster { .. } => Reason::TrustPolicyOtherCluster,
        }
    }
}

/// Fills in what only the target cluster and the operator know.
///
/// # Errors
/// [`TrustError::OtherCluster`] when the file names another cluster.
pub fn complete(
    mut spec: Spec,
    cluster_name: Option<&Name>,
    kube_system_uid: &str,
) -> Result<Spec, TrustError> {
    let other = |field, written: &str, found: &str| TrustError::OtherCluster {
        field,
        written: written.to_owned(),
        found: found.to_owned(),
    };
    match (&spec.cluster_name, cluster_name) {
        (Some(written), Some(name)) if written != name => {
            return Err(other("clusterName", written.as_str(), name.as_str()));
        }
        (None, Some(name)) => spec.cluster_name = Some(name.clone()),
        (None | Some(_), _) => {}
    }
    match &spec.kube_system_uid {
        Some(written) if written != kube_system_uid => {
            return Err(other("kubeSystemUid", written, kube_system_uid));
        }
        Some(_) => {}
        None => spec.kube_system_uid = Some(kube_system_uid.to_owned()),
    }
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use attest_common::basics::keys::PrivateKey;

    use super::*;

    fn pem(seed: u8) -> String {
        PrivateKey::from_seed(&[seed; 32]).unwrap().public().to_pem()
    }

    fn wanted(environment: &str) -> Wanted {
        Wanted {
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
    fn a_generated_policy_reads_back_from_its_own_yaml() {
        let spec = wanted("production").generate();

        let yaml = to_yaml(&spec).unwrap();

        assert_eq!(read("policy.yaml", yaml.as_bytes()).unwrap(), spec, "{yaml}");
        assert!(!spec.applications[0].remove.allow);
        assert!(wanted("staging").generate().applications[0].remove.allow);
    }

    #[test]
    fn an_error_names_the_file_and_the_field() {
        let good = to_yaml(&wanted("production").generate()).unwrap();
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
    fn a_key_in_two_families_is_refused_at_reading() {
        let mut spec = wanted("production").generate();
        spec.hub.keys = vec![pem(2)];

        let error = read("p.yaml", to_yaml(&spec).unwrap().as_bytes()).unwrap_err();

        assert_eq!(error.reason().as_str(), "RoleKeyOverlap");
    }

    #[test]
    fn a_policy_for_another_cluster_is_not_completed_for_this_one() {
        let name = Name::new("a").unwrap();
        let spec = complete(wanted("staging").generate(), Some(&name), "uid-1").unwrap();

        assert_eq!(spec.cluster_name.as_ref(), Some(&name));
        assert_eq!(complete(spec.clone(), Some(&name), "uid-1").unwrap(), spec);
        let other = Name::new("b").unwrap();
        assert!(complete(spec.clone(), Some(&other), "uid-1").is_err());
        assert!(complete(spec, None, "uid-2").is_err());
    }

    #[test]
    fn what_deserves_a_second_look_is_marked() {
        let mut spec = wanted("production").generate();
        assert!(explain(&spec).iter().all(|line| !line.starts_with('!')));

        spec.keys[0].environments = vec![Name::new("staging").unwrap()];

        assert!(explain(&spec).iter().any(|line| line.starts_with("! No CI key")));
    }
}
