//! Conversion of a manifest to an application. Every error names the field at fault.
//!
//! Defaults are resolved here and stored, so that an upgrade of the hub never changes an application.

use std::collections::BTreeSet;

use attest_common::basics::ids::Name;
use attest_common::basics::keys::KeyId;
use attest_common::basics::reason::Reason;
use attest_common::basics::terms::Mode;
use attest_common::documents::annotations::OWN_PREFIX;
use attest_common::documents::plan::{RequestedPolicy, SyncPolicy};
use attest_common::documents::receipt;
use attest_common::trust::policy::is_closed;
use serde_json::Value;

use attest_supply::source::{REVISION_BYTES_MAX, RepositoryUrl, clean_directory};

use super::crd::{self, API_VERSION, APPLICATION_KIND, Manifest};
use super::delivery;
use super::known::{DefaultCluster, Known, LowerError, feature, parse_name};
use crate::core::store::records::{Application, Destination, SelectedDestinations};

/// Most destinations of one application.
pub(crate) const DESTINATIONS_MAX: usize = 10_000;
/// Most entries of `trustedKeys`.
pub(crate) const TRUSTED_KEYS_MAX: usize = 64;
/// `metadata.namespace` of a manifest without one.
pub(crate) const NAMESPACE_DEFAULT: &str = "default";
/// `targetRevision` of a manifest without one.
pub(crate) const REVISION_DEFAULT: &str = "HEAD";

/// Reads a manifest.
///
/// # Errors
/// [`LowerError`] naming the first field that is wrong.
pub(crate) fn lower(manifest: &Value, known: &Known) -> Result<Application, LowerError> {
    check_type(manifest)?;
    let written: Manifest = serde_path_to_error::deserialize(manifest).map_err(|error| {
        let message = error.inner().to_string();
        let unknown = message.split('`').nth(1).filter(|_| message.starts_with("unknown field"));
        let path = error.path().to_string();
        let inside = path.rsplit(['.', ']']).next() != unknown;
        match unknown {
            Some(name) if inside && path == "." => {
                LowerError::new(Reason::FieldUnknown, name, message.clone())
            }
            Some(name) if inside => {
                LowerError::new(Reason::FieldUnknown, format!("{path}.{name}"), message.clone())
            }
            Some(_) => LowerError::new(Reason::FieldUnknown, path, message.clone()),
            None => LowerError::new(Reason::FieldInvalid, path, message.clone()),
        }
    })?;
    check_supported(&written.spec)?;
    check_own_names(&written.metadata)?;
    let name = parse_name("metadata.name", &written.metadata.name)?;
    let namespace = written.metadata.namespace.as_deref().unwrap_or(NAMESPACE_DEFAULT);
    let namespace = parse_name("metadata.namespace", namespace)?.to_string();
    let crd::Source { repo_url, target_revision, path } = &written.spec.source;
    RepositoryUrl::parse(repo_url, &known.urls)
        .map_err(|e| LowerError::new(e.reason(), "spec.source.repoUrl", e.to_string()))?;
    let path = directory("spec.source.path", path)?;
    let revision = target_revision.as_deref().unwrap_or(REVISION_DEFAULT);
    if revision.is_empty() || revision.len() > REVISION_BYTES_MAX {
        let message = "must be a branch, a tag, a full commit id or HEAD";
        return Err(LowerError::new(Reason::FieldInvalid, "spec.source.targetRevision", message));
    }
    let (sync, automated) = sync_policy(written.spec.sync_policy.as_ref())?;
    let (destinations, selectors) = destinations(&written.spec, known)?;
    let delivery =
        delivery::lower(written.spec.progressive_delivery.as_ref(), &destinations, known)?;
    Ok(Application {
        name,
        namespace,
        repo_url: repo_url.clone(),
        revision: revision.to_owned(),
        path,
        destinations,
        selectors,
        delivery,
        asked: asked(&written.spec, known)?,
        receipts_required: receipts(&written.spec)?.1.and_then(|r| r.required).unwrap_or(false),
        sync,
        automated,
    })
}

fn check_type(manifest: &Value) -> Result<(), LowerError> {
    let text = |field: &str| manifest.get(field).and_then(Value::as_str).unwrap_or_default();
    if text("apiVersion") != API_VERSION {
        let message = format!("is `{}`; must be {API_VERSION}", text("apiVersion"));
        return Err(LowerError::new(Reason::FieldInvalid, "apiVersion", message));
    }
    match text("kind") {
        APPLICATION_KIND => Ok(()),
        "AttestDeployment" => Err(feature("kind", "AttestDeployment")),
        other => {
            let message = format!("is `{other}`; must be {APPLICATION_KIND}");
            Err(LowerError::new(Reason::FieldInvalid, "kind", message))
        }
    }
}

/// Rejects fields of features that are not supported yet: ignoring a requested safeguard would be unsafe.
fn check_supported(spec: &crd::Spec) -> Result<(), LowerError> {
    let verification = spec.verification.as_ref();
    let fields = [
        ("spec.strategy", spec.strategy.as_ref().is_some_and(|s| !is_rolling_update(s))),
        (
            "spec.verification.policyValidation",
            verification.is_some_and(|v| v.policy_validation.is_some()),
        ),
        ("spec.verification.customHooks", verification.is_some_and(|v| v.custom_hooks.is_some())),
    ];
    match fields.into_iter().find(|(_, present)| *present) {
        Some((field, _)) => Err(feature(field, field)),
        None => Ok(()),
    }
}

/// Rejects labels and annotations that only have a meaning where the hub runs in a cluster.
fn check_own_names(metadata: &crd::Metadata) -> Result<(), LowerError> {
    for (section, names) in [("labels", &metadata.labels), ("annotations", &metadata.annotations)] {
        if let Some(name) = names.keys().find(|name| name.starts_with(OWN_PREFIX)) {
            let message = "has a meaning only where the hub runs in a cluster; remove it";
            let field = format!("metadata.{section}.{name}");
            return Err(LowerError::new(Reason::FieldInvalid, field, message));
        }
    }
    Ok(())
}

/// Returns true for the only strategy there is, as a name or as an object with a type.
fn is_rolling_update(strategy: &Value) -> bool {
    let name = strategy.as_str();
    let only_type = strategy.as_object().filter(|object| object.len() == 1);
    let name = name.or_else(|| only_type?.get("type")?.as_str());
    name == Some("RollingUpdate")
}

/// Returns every destination, and the selectors that some of them come from.
fn destinations(
    spec: &crd::Spec,
    known: &Known,
) -> Result<(Vec<Destination>, Vec<SelectedDestinations>), LowerError> {
    let (written, single) = written_destinations(spec)?;
    let mut places = BTreeSet::new();
    let mut found = Vec::new();
    let mut selectors = Vec::new();
    for (index, destination) in written.iter().enumerate() {
        let at = if single {
            "spec.destination".to_owned()
        } else {
            format!("spec.destinations[{index}]")
        };
        let (all, selector) = destination_at(&at, destination, known)?;
        selectors.extend(selector);
        for one in all {
            let Destination { cluster, namespace, .. } = &one;
            if !places.insert((cluster.clone(), namespace.clone())) {
                let message = format!("namespace {namespace} of cluster {cluster} is listed twice");
                return Err(LowerError::new(Reason::DestinationDuplicate, at, message));
            }
            found.push(one);
        }
    }
    if found.len() > DESTINATIONS_MAX {
        let message = format!("lists more than {DESTINATIONS_MAX} destinations");
        return Err(LowerError::new(Reason::Limit, "spec.destinations", message));
    }
    if found.is_empty() {
        let message = "no registered cluster has these labels; see them with `attest gitops cluster list -o wide`";
        let at = if single { "spec.destination" } else { "spec.destinations" };
        return Err(LowerError::new(Reason::ClusterUnknown, at, message));
    }
    Ok((found, selectors))
}

fn written_destinations(spec: &crd::Spec) -> Result<(&[crd::Destination], bool), LowerError> {
    match (&spec.destination, &spec.destinations) {
        (Some(one), None) => Ok((std::slice::from_ref(one), true)),
        (None, Some(list)) if list.len() > DESTINATIONS_MAX => {
            let message = format!("lists more than {DESTINATIONS_MAX} destinations");
            Err(LowerError::new(Reason::Limit, "spec.destinations", message))
        }
        (None, Some(list)) if !list.is_empty() => Ok((list.as_slice(), false)),
        (Some(_), Some(_)) => {
            let message = "is present together with spec.destination; keep one";
            Err(LowerError::new(Reason::FieldInvalid, "spec.destinations", message))
        }
        (None, Some(_) | None) => {
            let message =
                "is missing; set a namespace, and a cluster from `attest gitops cluster list`";
            Err(LowerError::new(Reason::FieldInvalid, "spec.destination", message))
        }
    }
}

/// Returns the destinations of one entry, and its selector if it has one.
fn destination_at(
    at: &str,
    written: &crd::Destination,
    known: &Known,
) -> Result<(Vec<Destination>, Option<SelectedDestinations>), LowerError> {
    let namespace = parse_name(&format!("{at}.namespace"), &written.namespace)?;
    if is_closed(&namespace) {
        let message = format!(
            "`{namespace}` is reserved in every cluster, as are all of kube-* and attest-*"
        );
        let field = format!("{at}.namespace");
        return Err(LowerError::new(Reason::NamespaceNotAllowed, field, message));
    }
    let path = written.path.as_deref();
    let path = path.map(|path| directory(&format!("{at}.path"), path)).transpose()?;
    let stage = written.stage.clone();
    let Some(selector) = &written.cluster_selector else {
        let cluster = cluster(&format!("{at}.cluster"), written.cluster.as_deref(), known)?;
        return Ok((vec![Destination { cluster, namespace, path, stage }], None));
    };
    let field = format!("{at}.clusterSelector");
    if written.cluster.is_some() {
        let message = format!("is present together with {at}.cluster; keep one");
        return Err(LowerError::new(Reason::FieldInvalid, field, message));
    }
    let selector = delivery::selector(&field, selector)?;
    let selected = SelectedDestinations { selector, namespace, path, stage };
    let matching =
        known.clusters.iter().filter(|(_, cluster)| selected.selector.matches(&cluster.labels));
    let all = matching.map(|(name, _)| selected.at(name)).collect();
    Ok((all, Some(selected)))
}

fn cluster(field: &str, written: Option<&str>, known: &Known) -> Result<Name, LowerError> {
    let Some(written) = written.filter(|written| !written.is_empty()) else {
        return default_cluster(field, &known.default_cluster);
    };
    let name = parse_name(field, written)?;
    if known.clusters.contains_key(&name) {
        return Ok(name);
    }
    let names: Vec<&str> = known.clusters.keys().map(Name::as_str).collect();
    let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let message = format!("`{name}` is not a registered cluster (registered: {names})");
    Err(LowerError::new(Reason::ClusterUnknown, field, message))
}

fn default_cluster(field: &str, default: &DefaultCluster) -> Result<Name, LowerError> {
    let message = match default {
        DefaultCluster::Registered(name) => return Ok(name.clone()),
        DefaultCluster::NoneRegistered => {
            "is missing and no cluster is registered; run `attest gitops cluster add NAME`"
        }
        DefaultCluster::OwnNotRegistered => {
            "is missing, and the cluster that the hub runs on is not registered; \
             run `attest gitops cluster add NAME` with its kubeconfig"
        }
        DefaultCluster::OwnUnknown => {
            "is missing, and the hub has not reached the API server of its cluster; see the log of the hub"
        }
    };
    Err(LowerError::new(Reason::ClusterUnknown, field, message))
}

/// Returns `receiptVerification` with its path. It may stand in `spec` or in `spec.verification`.
fn receipts(
    spec: &crd::Spec,
) -> Result<(&'static str, Option<&crd::ReceiptVerification>), LowerError> {
    let inner = spec.verification.as_ref().and_then(|v| v.receipt_verification.as_ref());
    match (inner, &spec.receipt_verification) {
        (Some(_), Some(_)) => {
            let message = "is present twice; keep one";
            Err(LowerError::new(Reason::FieldInvalid, "spec.receiptVerification", message))
        }
        (Some(inner), None) => Ok(("spec.verification.receiptVerification", Some(inner))),
        (None, outer) => Ok(("spec.receiptVerification", outer.as_ref())),
    }
}

fn asked(spec: &crd::Spec, known: &Known) -> Result<RequestedPolicy, LowerError> {
    let verification = spec.verification.as_ref();
    let (at, receipts) = receipts(spec)?;
    Ok(RequestedPolicy {
        mode: mode(verification)?,
        required_attestations: attestations(at, receipts)?,
        trusted_keys: trusted_keys(verification.and_then(|v| v.trusted_keys.as_deref()), known)?,
    })
}

/// Returns the requested mode. A spoke verifies every release, so a request not to verify is refused.
fn mode(verification: Option<&crd::Verification>) -> Result<Mode, LowerError> {
    if verification.and_then(|v| v.enabled) == Some(false) {
        let message = "is false; every release is verified by the cluster: remove the field";
        return Err(LowerError::new(Reason::FieldInvalid, "spec.verification.enabled", message));
    }
    match verification.and_then(|v| v.policy.as_deref()) {
        None | Some("Strict") => Ok(Mode::Strict),
        Some("Standard") => Ok(Mode::Standard),
        Some(other) => {
            let message = format!(
                "is `{other}`; must be Strict or Standard, because every release is verified by the cluster"
            );
            Err(LowerError::new(Reason::FieldInvalid, "spec.verification.policy", message))
        }
    }
}

fn attestations(
    at: &str,
    written: Option<&crd::ReceiptVerification>,
) -> Result<BTreeSet<String>, LowerError> {
    let Some(written) = written else { return Ok(BTreeSet::new()) };
    let names = written.required_attestations.as_deref().unwrap_or_default();
    if written.required == Some(false) && !names.is_empty() {
        let message = "is false beside a list of required attestations; remove one of them";
        return Err(LowerError::new(Reason::FieldInvalid, format!("{at}.required"), message));
    }
    for (index, name) in names.iter().enumerate() {
        if receipt::rule(name).is_none() {
            let message = format!("`{name}` is unknown; must be build, test or security-scan");
            let field = format!("{at}.requiredAttestations[{index}]");
            return Err(LowerError::new(Reason::AttestationUnknown, field, message));
        }
    }
    Ok(names.iter().cloned().collect())
}

fn trusted_keys(
    written: Option<&[String]>,
    known: &Known,
) -> Result<Option<BTreeSet<KeyId>>, LowerError> {
    let Some(written) = written else { return Ok(None) };
    if written.len() > TRUSTED_KEYS_MAX {
        let message = format!("lists more than {TRUSTED_KEYS_MAX} keys");
        return Err(LowerError::new(Reason::Limit, "spec.verification.trustedKeys", message));
    }
    let mut ids = BTreeSet::new();
    for (index, alias) in written.iter().enumerate() {
        let id = known.keys.get(alias).copied().or_else(|| alias.parse().ok());
        let Some(id) = id else {
            let field = format!("spec.verification.trustedKeys[{index}]");
            let message = format!(
                "key `{alias}` not found; add it with `attest gitops key add {alias} FILE`"
            );
            return Err(LowerError::new(Reason::KeyUnknown, field, message));
        };
        ids.insert(id);
    }
    Ok(Some(ids))
}

fn sync_policy(written: Option<&crd::SyncPolicy>) -> Result<(SyncPolicy, bool), LowerError> {
    let Some(written) = written else { return Ok((SyncPolicy::default(), true)) };
    let automated = written.automated.as_ref();
    let mut policy = SyncPolicy {
        prune: automated.is_some_and(|a| a.prune),
        self_heal: automated.is_some_and(|a| a.self_heal),
        adopt: false,
    };
    for (index, option) in written.sync_options.iter().enumerate() {
        match option.as_str() {
            "Adopt=true" => policy.adopt = true,
            "Adopt=false" => policy.adopt = false,
            // The destination's namespace is always created.
            "CreateNamespace=true" => {}
            other => {
                let field = format!("spec.syncPolicy.syncOptions[{index}]");
                let message =
                    format!("`{other}` is unknown; must be Adopt=true or CreateNamespace=true");
                return Err(LowerError::new(Reason::FieldInvalid, field, message));
            }
        }
    }
    Ok((policy, automated.is_some()))
}

fn directory(field: &str, text: &str) -> Result<String, LowerError> {
    clean_directory(text).map_err(|error| LowerError::new(error.reason(), field, error.to_string()))
}

#[cfg(test)]
mod tests;
