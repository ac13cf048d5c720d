//! The ConfigMap `attest-gitops-config`: parsed purely, followed by a watch. The last good version stays in force.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use attest_common::basics::ids::Digest;
use attest_common::basics::reason::Reason;
use attest_common::basics::text::{error_chain, shortened};
use attest_runtime::log::LogLevel;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::watch_object;
use kube::{Api, ResourceExt as _};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::core::Core;
use crate::core::configuration::{
    Configuration, ConfigurationProblem, ConfigurationState, WebhookSecret,
};
use crate::kubernetes::{HubKubernetes, create_event, request_reason};

/// ConfigMap with the settings of the hub, in its namespace.
pub(crate) const CONFIG_MAP: &str = "attest-gitops-config";
const FILE: &str = "config.yaml";
const LOG_LEVEL: &str = "log_level";
/// Largest `config.yaml` in bytes.
const FILE_BYTES_MAX: usize = 64 * 1024;
/// Most entries of `trustedKeys`.
const TRUSTED_KEYS_MAX: usize = 64;
/// Shortest and longest `syncIntervalSeconds`.
const SYNC_INTERVAL_MIN_S: u64 = 10;
const SYNC_INTERVAL_MAX_S: u64 = 24 * 60 * 60;

/// The document in `config.yaml`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigurationFile {
    namespace: Option<String>,
    sync_interval_seconds: Option<u64>,
    verification_enabled: Option<bool>,
    #[serde(default)]
    trusted_keys: Vec<String>,
    webhook_secret: Option<String>,
    #[serde(default)]
    policies: PoliciesSection,
    #[serde(flatten)]
    unknown: BTreeMap<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PoliciesSection {
    #[serde(default)]
    enabled: bool,
    bundle: Option<String>,
    #[serde(flatten)]
    unknown: BTreeMap<String, Value>,
}

/// Parses the data of the ConfigMap of a hub in `namespace`. Also returns warnings.
///
/// # Errors
/// The first key that must not take effect.
fn parse(
    data: &BTreeMap<String, String>,
    namespace: &str,
) -> Result<(Configuration, Vec<ConfigurationProblem>), ConfigurationProblem> {
    let file = match data.get(FILE) {
        Some(text) => parse_file(text)?,
        None => ConfigurationFile::default(),
    };
    if let Some(other) = file.namespace.as_deref().filter(|other| *other != namespace) {
        let message =
            format!("must be {namespace}, the namespace of the hub, not {}", shortened(other));
        return Err(problem(Reason::FieldInvalid, "namespace", message));
    }
    if file.verification_enabled == Some(false) {
        let message =
            "verification cannot be switched off; relax the trust policy of a cluster instead";
        return Err(problem(Reason::VerificationRequired, "verificationEnabled", message));
    }
    let bounds = SYNC_INTERVAL_MIN_S..=SYNC_INTERVAL_MAX_S;
    if file.sync_interval_seconds.is_some_and(|seconds| !bounds.contains(&seconds)) {
        let message = format!("must be between {SYNC_INTERVAL_MIN_S} and {SYNC_INTERVAL_MAX_S}");
        return Err(problem(Reason::FieldInvalid, "syncIntervalSeconds", message));
    }
    if file.trusted_keys.len() > TRUSTED_KEYS_MAX {
        let message = format!("has more than {TRUSTED_KEYS_MAX} entries");
        return Err(problem(Reason::Limit, "trustedKeys", message));
    }
    let log_level = data.get(LOG_LEVEL).map(|text| text.parse::<LogLevel>()).transpose();
    let log_level =
        log_level.map_err(|error| problem(Reason::FieldInvalid, LOG_LEVEL, error.to_string()))?;
    let warnings = warnings(&file, data);
    let PoliciesSection { enabled, bundle, .. } = file.policies;
    let configuration = Configuration {
        poll_interval: file.sync_interval_seconds.map(Duration::from_secs),
        trusted_keys: file.trusted_keys,
        policy_bundle: bundle.filter(|bundle| enabled && !bundle.is_empty()),
        policies_enabled: enabled,
        log_level,
        webhook_secret: file.webhook_secret.and_then(WebhookSecret::new),
    };
    Ok((configuration, warnings))
}

fn parse_file(text: &str) -> Result<ConfigurationFile, ConfigurationProblem> {
    if text.len() > FILE_BYTES_MAX {
        return Err(problem(Reason::Limit, FILE, format!("is longer than {FILE_BYTES_MAX} bytes")));
    }
    if text.trim().is_empty() {
        return Ok(ConfigurationFile::default());
    }
    serde_saphyr::from_str(text)
        .map_err(|error| problem(Reason::FieldInvalid, FILE, shortened(&error.to_string())))
}

/// Keys without effect, and those that have a better place.
fn warnings(
    file: &ConfigurationFile,
    data: &BTreeMap<String, String>,
) -> Vec<ConfigurationProblem> {
    let known = [FILE, LOG_LEVEL];
    let beside = data.keys().filter(|key| !known.contains(&key.as_str())).cloned();
    let below = file.policies.unknown.keys().map(|key| format!("policies.{key}"));
    let unknown = beside.chain(file.unknown.keys().cloned()).chain(below);
    let mut all: Vec<ConfigurationProblem> = unknown
        .map(|key| {
            problem(Reason::FieldUnknown, &shortened(&key), "the key is unknown and has no effect")
        })
        .collect();
    if file.webhook_secret.as_deref().is_some_and(|secret| !secret.is_empty()) {
        let message = "every reader of ConfigMaps can read this key; mount Secret attest-gitops-webhook instead";
        all.push(problem(Reason::SecretInConfigMap, "webhookSecret", message));
    }
    all
}

fn problem(reason: Reason, field: &str, message: impl Into<String>) -> ConfigurationProblem {
    ConfigurationProblem { reason, field: field.to_owned(), message: message.into() }
}

/// Returns the state after a version of the ConfigMap; without one, the defaults are in force.
fn next_state(
    before: &ConfigurationState,
    map: Option<&ConfigMap>,
    namespace: &str,
) -> ConfigurationState {
    let Some(map) = map else { return ConfigurationState::default() };
    match parse(map.data.as_ref().unwrap_or(&BTreeMap::new()), namespace) {
        Ok((configuration, warnings)) => ConfigurationState {
            current: Arc::new(configuration),
            is_awaited: false,
            version: map.resource_version(),
            refused: None,
            warnings,
        },
        // Without a good version before it, the defaults of the command line are not taken either.
        Err(refused) => ConfigurationState { refused: Some(refused), ..before.clone() },
    }
}

/// Keeps the settings equal to the ConfigMap until the hub stops.
pub(crate) async fn follow_configuration(core: Arc<Core>, kubernetes: HubKubernetes) {
    let maps: Api<ConfigMap> = Api::namespaced(kubernetes.client.clone(), &kubernetes.namespace);
    let mut versions = pin!(watch_object(maps, CONFIG_MAP).default_backoff());
    loop {
        let version = tokio::select! {
            () = core.stop.cancelled() => return,
            version = versions.next() => version,
        };
        match version {
            Some(Ok(map)) => {
                let before = core.configuration.state();
                let state = next_state(&before, map.as_ref(), &kubernetes.namespace);
                log_change(&before, &state);
                core.configuration.set(state.clone());
                if let Some(map) = &map {
                    report_problems(&kubernetes, map, &state).await;
                }
            }
            // The stream backs off and reconnects.
            Some(Err(error)) => tracing::debug!(
                reason = Reason::ApiServerUnreachable.as_str(),
                "Failed to watch ConfigMap {CONFIG_MAP}: {}",
                error_chain(&error)
            ),
            None => return,
        }
    }
}

fn log_change(before: &ConfigurationState, state: &ConfigurationState) {
    for ConfigurationProblem { reason, field, message } in problems(state) {
        tracing::warn!(
            reason = reason.as_str(),
            field,
            "ConfigMap {CONFIG_MAP}: {field} {message}"
        );
    }
    if before.current != state.current {
        tracing::info!(version = state.version.as_deref(), "Configuration loaded");
    }
}

fn problems(state: &ConfigurationState) -> impl Iterator<Item = &ConfigurationProblem> {
    state.refused.iter().chain(&state.warnings)
}

/// Writes one Event for each problem of a version.
async fn report_problems(kubernetes: &HubKubernetes, map: &ConfigMap, state: &ConfigurationState) {
    let HubKubernetes { client, namespace } = kubernetes;
    for problem in problems(state) {
        if let Err(error) = create_event(client, namespace, event_of(map, problem)).await {
            tracing::debug!(
                reason = request_reason(&error).as_str(),
                "Failed to write an Event: {}",
                error_chain(&error)
            );
        }
    }
}

fn event_of(map: &ConfigMap, problem: &ConfigurationProblem) -> Value {
    let ConfigurationProblem { reason, field, message } = problem;
    let (uid, version) =
        (map.uid().unwrap_or_default(), map.resource_version().unwrap_or_default());
    let digest = Digest::of(format!("{uid}/{version}/{reason}/{field}").as_bytes());
    let time =
        map.metadata.managed_fields.iter().flatten().filter_map(|entry| entry.time.clone()).max();
    json!({
        "metadata": {"name": format!("{CONFIG_MAP}.{}", digest.short())},
        "involvedObject": {
            "apiVersion": "v1", "kind": "ConfigMap", "name": CONFIG_MAP,
            "namespace": map.namespace(), "uid": uid, "resourceVersion": version,
        },
        "reason": reason.as_str(), "message": format!("{field}: {message}"), "type": "Warning",
        "source": {"component": "attest-gitops"},
        "firstTimestamp": time, "lastTimestamp": time, "count": 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the product document prints it.
    const DOCUMENTED: &str = include_str!("documented.yaml");

    fn data(file: &str, more: &[(&str, &str)]) -> BTreeMap<String, String> {
        let more = more.iter().copied();
        let all = std::iter::once((FILE, file)).chain(more);
        all.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    fn parsed(data: &BTreeMap<String, String>) -> (Configuration, Vec<ConfigurationProblem>) {
        parse(data, "attest-system").unwrap()
    }

    #[test]
    fn the_documented_config_map_loads_as_printed() {
        let map: Value = serde_saphyr::from_str(DOCUMENTED).unwrap();
        let file = map["data"][FILE].as_str().unwrap();
        let (configuration, warnings) = parsed(&data(file, &[("log_level", "debug")]));

        let expected = Configuration {
            poll_interval: Some(Duration::from_secs(300)),
            trusted_keys: vec!["ed25519-key-1234567890abcdef".to_owned()],
            policy_bundle: Some("https://policies.company.com/bundle".to_owned()),
            policies_enabled: true,
            log_level: Some("debug".parse().unwrap()),
            webhook_secret: WebhookSecret::new("webhook-secret-123".to_owned()),
        };
        assert_eq!(configuration, expected);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert_eq!(warnings[0].reason, Reason::SecretInConfigMap);
        assert!(!format!("{configuration:?}{warnings:?}").contains("webhook-secret-123"));
    }

    #[test]
    fn an_empty_config_map_and_none_change_nothing() {
        for map in [data("", &[]), BTreeMap::new()] {
            assert_eq!(parsed(&map), (Configuration::default(), Vec::new()));
        }
        let awaited = ConfigurationState { is_awaited: true, ..ConfigurationState::default() };
        let state = next_state(&awaited, None, "attest-system");
        assert_eq!(state, ConfigurationState::default());
    }

    #[test]
    fn policies_without_a_bundle_are_nothing_to_evaluate() {
        for (text, bundle) in [
            ("policies: {enabled: true}", None),
            ("policies: {enabled: false, bundle: https://p.example/b}", None),
            ("policies: {enabled: true, bundle: https://p.example/b}", Some("https://p.example/b")),
        ] {
            let (configuration, _) = parsed(&data(text, &[]));
            assert_eq!(configuration.policy_bundle.as_deref(), bundle, "{text}");
        }
    }

    #[test]
    fn what_must_not_take_effect_is_refused_by_its_key() {
        for (text, log_level, reason, field) in [
            (
                "verificationEnabled: false",
                "info",
                Reason::VerificationRequired,
                "verificationEnabled",
            ),
            ("namespace: other", "info", Reason::FieldInvalid, "namespace"),
            ("syncIntervalSeconds: 1", "info", Reason::FieldInvalid, "syncIntervalSeconds"),
            ("syncIntervalSeconds: soon", "info", Reason::FieldInvalid, FILE),
            ("[1, 2]", "info", Reason::FieldInvalid, FILE),
            ("a: 1\na: 2", "info", Reason::FieldInvalid, FILE),
            ("namespace: attest-system", "loud", Reason::FieldInvalid, "log_level"),
        ] {
            let refused =
                parse(&data(text, &[("log_level", log_level)]), "attest-system").unwrap_err();
            assert_eq!(
                (refused.reason, refused.field.as_str()),
                (reason, field),
                "{text}: {refused:?}"
            );
        }
        let many = "trustedKeys: [".to_owned() + &"a,".repeat(TRUSTED_KEYS_MAX + 1) + "]";
        assert_eq!(parse(&data(&many, &[]), "attest-system").unwrap_err().reason, Reason::Limit);
    }

    #[test]
    fn unknown_keys_are_named() {
        let text = "syncInterval: 5\npolicies: {enabled: true, bundel: x}";
        let (_, warnings) = parsed(&data(text, &[("loglevel", "debug")]));

        let fields: Vec<&str> = warnings.iter().map(|warning| warning.field.as_str()).collect();
        assert_eq!(fields, ["loglevel", "syncInterval", "policies.bundel"]);
    }

    #[test]
    fn the_last_good_version_stays_in_force() {
        let map = |text: &str, version: &str| ConfigMap {
            data: Some(data(text, &[])),
            metadata: kube::core::ObjectMeta {
                resource_version: Some(version.to_owned()),
                ..kube::core::ObjectMeta::default()
            },
            ..ConfigMap::default()
        };
        let start = ConfigurationState::default();
        let good = next_state(&start, Some(&map("syncIntervalSeconds: 60", "1")), "attest-system");

        let bad = next_state(&good, Some(&map("verificationEnabled: false", "2")), "attest-system");

        assert_eq!(bad.current, good.current);
        assert_eq!(bad.version.as_deref(), Some("1"));
        assert_eq!(bad.refused.as_ref().unwrap().reason, Reason::VerificationRequired);
        let fixed = next_state(&bad, Some(&map("syncIntervalSeconds: 90", "3")), "attest-system");
        assert_eq!(
            (fixed.refused, fixed.current.poll_interval),
            (None, Some(Duration::from_secs(90)))
        );
    }
}
