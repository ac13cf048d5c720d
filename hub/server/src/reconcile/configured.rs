//! Effects of the hub's configuration on an application: keys for those that name none, and policies that have to be
//! evaluated first.

use std::borrow::Cow;
use std::collections::BTreeSet;

use attest_common::basics::keys::{KeyId, PublicKey};
use attest_common::basics::reason::Reason;

use crate::applications::view::Waiting;
use crate::core::Core;
use crate::core::configuration::{Configuration, ConfigurationProblem, ConfigurationState};
use crate::core::store::StoreError;
use crate::core::store::records::{ApplicationRecord, KeyRecord};

/// An application as the configuration makes it.
pub(super) struct Configured<'a> {
    pub(super) record: Cow<'a, ApplicationRecord>,
    /// The reason that nothing new is planned.
    pub(super) halt: Option<Waiting>,
}

/// Applies the current configuration of the hub to an application.
///
/// # Errors
/// When the keyring cannot be read.
pub(super) fn configured<'a>(
    core: &Core,
    record: &'a ApplicationRecord,
) -> Result<Configured<'a>, StoreError> {
    let state = core.configuration.state();
    if state.is_awaited {
        return Ok(Configured { record: Cow::Borrowed(record), halt: Some(awaited(&state)) });
    }
    let configuration = state.current;
    let names_none = record.application.asked.trusted_keys.is_none();
    let keys = if names_none && !configuration.trusted_keys.is_empty() {
        keyring(&core.records.all()?)
    } else {
        Vec::new()
    };
    Ok(apply(&configuration, &keys, record))
}

/// Nothing is known of the ConfigMap, or nothing good: what it forbids is not known either.
fn awaited(state: &ConfigurationState) -> Waiting {
    match &state.refused {
        Some(ConfigurationProblem { reason, field, message }) => {
            let message = format!("ConfigMap attest-gitops-config is refused: {field} {message}");
            Waiting::unknown(*reason, message)
        }
        None => {
            let message = "ConfigMap attest-gitops-config has not been read yet; the hub needs get, list and watch on it";
            Waiting::unknown(Reason::ApiServerUnreachable, message)
        }
    }
}

/// Ids of the keyring, with their aliases.
fn keyring(records: &[KeyRecord]) -> Vec<(String, KeyId)> {
    let known = records.iter().filter_map(|record| {
        let public = PublicKey::from_pem(&record.public_key).ok()?;
        Some((record.alias.clone(), public.id()))
    });
    known.collect()
}

fn apply<'a>(
    configuration: &Configuration,
    keyring: &[(String, KeyId)],
    record: &'a ApplicationRecord,
) -> Configured<'a> {
    if let Some(bundle) = &configuration.policy_bundle {
        let message = format!(
            "this version evaluates no policy bundles; remove policies.bundle ({bundle}) from ConfigMap attest-gitops-config"
        );
        let halt = Some(Waiting::refused(Reason::PolicyUnavailable, message));
        return Configured { record: Cow::Borrowed(record), halt };
    }
    if configuration.trusted_keys.is_empty() || record.application.asked.trusted_keys.is_some() {
        return Configured { record: Cow::Borrowed(record), halt: None };
    }
    let resolved = configuration.trusted_keys.iter().map(|key| resolve(key, keyring).ok_or(key));
    match resolved.collect::<Result<BTreeSet<KeyId>, &String>>() {
        Ok(ids) => {
            let mut narrowed = record.clone();
            narrowed.application.asked.trusted_keys = Some(ids);
            Configured { record: Cow::Owned(narrowed), halt: None }
        }
        Err(unknown) => {
            let message = format!(
                "trustedKeys of ConfigMap attest-gitops-config names {unknown:?}, which is no key of the hub, or several; \
                 add it with `attest gitops key add ALIAS FILE`, or name keys in the application"
            );
            let halt = Some(Waiting::refused(Reason::KeyUnknown, message));
            Configured { record: Cow::Borrowed(record), halt }
        }
    }
}

/// Returns the key with this alias, id, or unique short form of an id.
fn resolve(wanted: &str, keyring: &[(String, KeyId)]) -> Option<KeyId> {
    let named = keyring.iter().find(|(alias, id)| alias == wanted || id.to_string() == wanted);
    if let Some((_, id)) = named {
        return Some(*id);
    }
    let short: BTreeSet<KeyId> =
        keyring.iter().map(|(_, id)| *id).filter(|id| id.display_form() == wanted).collect();
    match (short.len(), short.first()) {
        (1, Some(id)) => Some(*id),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use attest_common::basics::keys::PrivateKey;

    use super::*;

    fn id(seed: u8) -> KeyId {
        PrivateKey::from_seed(&[seed; 32]).unwrap().public().id()
    }

    #[test]
    fn a_key_is_found_by_its_alias_its_id_and_its_short_form() {
        let keyring = [("ci".to_owned(), id(1)), ("old".to_owned(), id(2))];
        for (wanted, expected) in [
            ("ci".to_owned(), Some(id(1))),
            (id(2).to_string(), Some(id(2))),
            (id(2).display_form(), Some(id(2))),
            ("ed25519-key-1234567890abcdef".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(resolve(&wanted, &keyring), expected, "{wanted}");
        }
    }

    #[test]
    fn the_configuration_narrows_applications_that_name_no_keys() {
        let keyring = [("ci".to_owned(), id(1))];
        let naming = |keys: &[&str], bundle: Option<&str>| Configuration {
            trusted_keys: keys.iter().map(|key| (*key).to_owned()).collect(),
            policy_bundle: bundle.map(str::to_owned),
            ..Configuration::default()
        };
        let free = ApplicationRecord::sample("web-app", "https://git.example/web-app");
        let mut named = free.clone();
        named.application.asked.trusted_keys = Some(BTreeSet::from([id(7)]));
        let none = || free.application.asked.trusted_keys.clone();
        for (record, configuration, keys, reason) in [
            (&free, naming(&[], None), none(), None),
            (&free, naming(&["ci"], None), Some(BTreeSet::from([id(1)])), None),
            (&free, naming(&["ci", "gone"], None), none(), Some(Reason::KeyUnknown)),
            (&named, naming(&["gone"], None), Some(BTreeSet::from([id(7)])), None),
            (&free, naming(&[], Some("https://p")), none(), Some(Reason::PolicyUnavailable)),
            (
                &named,
                naming(&[], Some("https://p")),
                Some(BTreeSet::from([id(7)])),
                Some(Reason::PolicyUnavailable),
            ),
        ] {
            let configured = apply(&configuration, &keyring, record);

            assert_eq!(configured.record.application.asked.trusted_keys, keys, "{configuration:?}");
            assert_eq!(configured.halt.map(|waiting| waiting.reason), reason, "{configuration:?}");
        }
    }
}
