//! `GET /v1/configuration`: the settings in force.

use std::sync::Arc;
use std::time::Duration;

use attest_documents::{HubConfiguration, Setting, SettingProblem};
use axum::Json;
use axum::extract::State;

use super::Api;
use crate::core::configuration::{Configuration, ConfigurationProblem, ConfigurationState};

/// Value of a setting that is shown in place of a secret.
const SECRET: &str = "(secret)";
const NONE: &str = "(none)";

pub(super) async fn get(State(api): State<Arc<Api>>) -> Json<HubConfiguration> {
    Json(shown(&api.core.configuration.state(), api.poll_interval))
}

fn shown(state: &ConfigurationState, poll_interval: Duration) -> HubConfiguration {
    let Configuration {
        poll_interval: configured,
        trusted_keys,
        policy_bundle,
        policies_enabled,
        log_level,
        webhook_secret,
    } = state.current.as_ref();
    let interval_s = configured.unwrap_or(poll_interval).as_secs_f64().to_string();
    let keys = (!trusted_keys.is_empty()).then(|| trusted_keys.join(", "));
    let settings = vec![
        setting("syncIntervalSeconds", Some(interval_s), source(configured.is_some(), "flags")),
        setting("verificationEnabled", Some("true".to_owned()), "default"),
        setting("trustedKeys", keys, source(!trusted_keys.is_empty(), "default")),
        setting(
            "policies.enabled",
            Some(policies_enabled.to_string()),
            source(*policies_enabled, "default"),
        ),
        setting(
            "policies.bundle",
            policy_bundle.clone(),
            source(policy_bundle.is_some(), "default"),
        ),
        setting(
            "webhookSecret",
            webhook_secret.as_ref().map(|_| SECRET.to_owned()),
            source(webhook_secret.is_some(), "default"),
        ),
        setting(
            "log_level",
            log_level.as_ref().map(ToString::to_string),
            source(log_level.is_some(), "flags"),
        ),
    ];
    let refused = state.refused.iter().map(|refused| problem(refused, true));
    let warnings = state.warnings.iter().map(|warning| problem(warning, false));
    HubConfiguration { settings, problems: refused.chain(warnings).collect() }
}

fn source(is_configured: bool, otherwise: &'static str) -> &'static str {
    if is_configured { "ConfigMap" } else { otherwise }
}

fn setting(name: &str, value: Option<String>, source: &str) -> Setting {
    let value = value.unwrap_or_else(|| NONE.to_owned());
    Setting { name: name.to_owned(), value, source: source.to_owned() }
}

fn problem(problem: &ConfigurationProblem, refused: bool) -> SettingProblem {
    let ConfigurationProblem { reason, field, message } = problem.clone();
    SettingProblem { field, reason: reason.into(), message, refused }
}

#[cfg(test)]
mod tests {
    use attest_common::basics::reason::Reason;

    use super::*;
    use crate::core::configuration::WebhookSecret;

    #[test]
    fn every_setting_names_its_source_and_no_secret_is_shown() {
        let current = Configuration {
            poll_interval: Some(Duration::from_secs(300)),
            webhook_secret: WebhookSecret::new("hidden".to_owned()),
            ..Configuration::default()
        };
        let refused = ConfigurationProblem {
            reason: Reason::VerificationRequired,
            field: "verificationEnabled".to_owned(),
            message: "cannot be switched off".to_owned(),
        };
        let state = ConfigurationState {
            current: Arc::new(current),
            is_awaited: false,
            version: Some("7".to_owned()),
            refused: Some(refused),
            warnings: Vec::new(),
        };

        let document = shown(&state, Duration::from_secs(30));

        let text = serde_json::to_string(&document).unwrap();
        assert!(!text.contains("hidden"), "{text}");
        let found: Vec<(&str, &str, &str)> = document
            .settings
            .iter()
            .map(|one| (one.name.as_str(), one.value.as_str(), one.source.as_str()))
            .collect();
        assert!(found.contains(&("syncIntervalSeconds", "300", "ConfigMap")), "{found:?}");
        assert!(found.contains(&("webhookSecret", SECRET, "ConfigMap")), "{found:?}");
        assert!(found.contains(&("log_level", NONE, "flags")), "{found:?}");
        assert!(document.problems[0].refused);
        let defaults = shown(&ConfigurationState::default(), Duration::from_secs(30));
        assert_eq!(defaults.settings[0].value, "30");
        assert_eq!(defaults.settings[0].source, "flags");
    }
}
