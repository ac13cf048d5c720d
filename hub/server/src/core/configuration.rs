//! Settings that can change while the hub runs, with what is wrong with those that were asked for.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use attest_common::basics::reason::Reason;
use attest_runtime::log::LogLevel;
use tokio::sync::watch;
use zeroize::Zeroizing;

/// Settings of a hub. An absent one has the value of the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// Interval between polls of each repository.
    pub poll_interval: Option<Duration>,
    /// Keys that applications which name none are narrowed to: aliases, ids, or short forms of ids. Empty: no narrowing.
    pub trusted_keys: Vec<String>,
    /// Address of the policy bundle to evaluate; absent without policies.
    pub policy_bundle: Option<String>,
    pub policies_enabled: bool,
    pub log_level: Option<LogLevel>,
    /// Key of webhooks that stands in the ConfigMap. A mounted Secret takes precedence.
    pub webhook_secret: Option<WebhookSecret>,
}

/// The key that Git servers sign webhooks with.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookSecret(Zeroizing<String>);

impl WebhookSecret {
    /// Takes a key; an empty one is none.
    pub fn new(text: String) -> Option<Self> {
        (!text.is_empty()).then(|| Self(Zeroizing::new(text)))
    }

    /// The bytes of the key.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for WebhookSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebhookSecret(…)")
    }
}

/// Something that is wrong with the settings, or that they have no effect on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigurationProblem {
    pub reason: Reason,
    /// Key in the ConfigMap.
    pub field: String,
    pub message: String,
}

/// The settings in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigurationState {
    pub current: Arc<Configuration>,
    /// The ConfigMap has not been read since the start: it may forbid what the command line allows.
    pub is_awaited: bool,
    /// Resource version of the ConfigMap that they come from.
    pub version: Option<String>,
    /// The reason that the newest ConfigMap is not in force; the one before it is.
    pub refused: Option<ConfigurationProblem>,
    /// Keys of the ConfigMap in force that have no effect.
    pub warnings: Vec<ConfigurationProblem>,
}

/// The settings in force, for readers and for tasks that follow them.
#[derive(Debug)]
pub struct ConfigurationCell {
    current: watch::Sender<ConfigurationState>,
}

impl Default for ConfigurationCell {
    fn default() -> Self {
        Self { current: watch::Sender::new(ConfigurationState::default()) }
    }
}

impl ConfigurationCell {
    /// Awaits the first version of the ConfigMap; until then, nothing new is planned.
    pub(crate) fn await_config_map(&self) {
        self.current.send_modify(|state| state.is_awaited = true);
    }

    pub(crate) fn state(&self) -> ConfigurationState {
        self.current.borrow().clone()
    }

    /// The settings in force. They may be more liberal than those of a ConfigMap that is awaited.
    pub(crate) fn get(&self) -> Arc<Configuration> {
        Arc::clone(&self.current.borrow().current)
    }

    pub(crate) fn set(&self, state: ConfigurationState) {
        self.current.send_if_modified(|current| {
            let is_new = *current != state;
            *current = state;
            is_new
        });
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<ConfigurationState> {
        self.current.subscribe()
    }
}
