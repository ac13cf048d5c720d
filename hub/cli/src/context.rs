//! The operator's context: the known hubs, how to reach each, and the CI keys that the operator trusts.
//!
//! One YAML file, like a kubeconfig, readable by its owner only. Trust policies of clusters are generated from
//! this file and never from data of a hub.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use attest_common::basics::ids::Name;
use attest_common::basics::keys::PublicKey;
use serde::{Deserialize, Serialize};

use crate::human::quoted;

/// Environment variable that names another file.
const PATH_VARIABLE: &str = "ATTEST_CONFIG";
/// Maximum size of the context file, in bytes.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// The content of the file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Context {
    /// The hub used by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) current_hub: Option<String>,
    #[serde(default)]
    pub(crate) hubs: Vec<HubContext>,
    #[serde(default)]
    pub(crate) keys: Vec<TrustedCiKey>,
}

/// A hub, with the operator's credentials for it.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct HubContext {
    pub(crate) name: String,
    /// `https://HOST:PORT` of the API; absent for a hub that is reached through a port-forward.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) api_url: Option<String>,
    /// The cluster that the hub runs in: where to log in, and to open a port-forward.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) forward: Option<ForwardTarget>,
    /// `HOST:PORT` of the listener for spokes, for hubs that do not report it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) spoke_address: Option<String>,
    /// `sha256:<hex>` of the certificate authority's public key.
    pub(crate) ca_pin: String,
    pub(crate) hub_key_id: String,
    /// PEM of the key that signs plans.
    pub(crate) hub_key: String,
    /// PEM of the operator's certificate and of its issuer.
    pub(crate) operator_chain: String,
    /// PEM of the operator's private key.
    pub(crate) operator_key: String,
}

/// The cluster and namespace of a hub.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct ForwardTarget {
    /// Kubeconfig file; the default one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig.
    pub(crate) context: String,
    pub(crate) namespace: String,
}

impl HubContext {
    /// The address of the API, as shown to people.
    pub(crate) fn shown_address(&self) -> String {
        match (&self.api_url, &self.forward) {
            (Some(url), _) => url.clone(),
            (None, Some(ForwardTarget { context, namespace, .. })) => {
                format!("port-forward to {namespace} of {context}")
            }
            (None, None) => "<none>".to_owned(),
        }
    }

    /// The command that renews the operator's certificate.
    pub(crate) fn renewal_command(&self) -> String {
        match &self.forward {
            Some(ForwardTarget { kubeconfig, context, namespace }) => {
                let kubeconfig = kubeconfig
                    .as_ref()
                    .map(|file| format!(" --kubeconfig {}", quoted(file)))
                    .unwrap_or_default();
                let context = quoted(Path::new(context));
                format!("`attest hub login{kubeconfig} --context {context} -n {namespace}`")
            }
            None => "`attest hub operator issue NAME --save` on the hub's machine".to_owned(),
        }
    }
}

impl std::fmt::Debug for HubContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubContext")
            .field("name", &self.name)
            .field("api_url", &self.api_url)
            .finish()
    }
}

/// A public key of CI, with the environments for which it may sign releases.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct TrustedCiKey {
    pub(crate) alias: String,
    /// PEM.
    pub(crate) public_key: String,
    pub(crate) environments: Vec<Name>,
}

/// Path of the context file: `$ATTEST_CONFIG`, else `~/.config/attest/config`.
pub(crate) fn path() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os(PATH_VARIABLE).filter(|path| !path.is_empty()) {
        return Ok(PathBuf::from(path));
    }
    let home = std::env::var_os("HOME")
        .filter(|home| !home.is_empty())
        .with_context(|| format!("neither HOME nor {PATH_VARIABLE} is set"))?;
    Ok(PathBuf::from(home).join(".config/attest/config"))
}

/// The directory of the context file and of related files.
pub(crate) fn directory() -> anyhow::Result<PathBuf> {
    let path = path()?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    Ok(parent.map_or_else(|| PathBuf::from("."), Path::to_path_buf))
}

impl Context {
    /// Reads the file. A missing file is an empty context.
    pub(crate) fn load() -> anyhow::Result<Self> {
        let path = path()?;
        match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => bail!("failed to read {}: {error}", path.display()),
            Ok(file) if file.len() > CONFIG_BYTES_MAX => {
                bail!("{} is longer than {CONFIG_BYTES_MAX} bytes", path.display())
            }
            Ok(_) => {}
        }
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("failed to read {}", path.display()))?;
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        serde_saphyr::from_str(&text)
            .with_context(|| format!("failed to parse context file {}", path.display()))
    }

    /// Writes the file atomically, readable by its owner only.
    pub(crate) fn save(&self) -> anyhow::Result<()> {
        let path = path()?;
        create_private_directory(&directory()?)?;
        let text = serde_saphyr::to_string(self)?;
        attest_certs::bundle::write_private(&path, text.as_bytes())
            .with_context(|| format!("failed to write {}", path.display()))
    }

    /// The hub with this name, or the current one.
    pub(crate) fn hub(&self, name: Option<&str>) -> anyhow::Result<&HubContext> {
        let name = match (name, self.current_hub.as_deref(), self.hubs.as_slice()) {
            (Some(name), _, _) | (None, Some(name), _) => name,
            (None, None, [only]) => return Ok(only),
            (None, None, []) => bail!(
                "the context {} contains no hub; create one with `attest hub init --advertise HOST:PORT`",
                path()?.display()
            ),
            (None, None, _) => bail!("no current hub; select one with --hub: {}", self.hub_names()),
        };
        self.hubs.iter().find(|hub| hub.name == name).with_context(|| match self.hubs.as_slice() {
            [] => format!(
                "hub `{name}` not found in the context; create one with `attest hub init --advertise HOST:PORT`"
            ),
            _ => format!("hub `{name}` not found in the context; known hubs: {}", self.hub_names()),
        })
    }

    /// The CI keys that may sign releases for `environment`.
    pub(crate) fn keys_for(&self, environment: &Name) -> impl Iterator<Item = &TrustedCiKey> {
        self.keys.iter().filter(move |key| key.environments.contains(environment))
    }

    /// Adds a key, or adds environments to an existing key. An alias never changes its key.
    pub(crate) fn add_key(
        &mut self,
        alias: &str,
        public: &PublicKey,
        environments: &[Name],
    ) -> anyhow::Result<()> {
        if let Some(key) = self.keys.iter_mut().find(|key| key.alias == alias) {
            if PublicKey::from_pem(&key.public_key)?.id() != public.id() {
                bail!("the alias `{alias}` is used by another key; choose another alias");
            }
            key.environments.extend_from_slice(environments);
            key.environments.sort();
            key.environments.dedup();
            return Ok(());
        }
        let mut environments = environments.to_vec();
        environments.sort();
        environments.dedup();
        self.keys.push(TrustedCiKey {
            alias: alias.to_owned(),
            public_key: public.to_pem(),
            environments,
        });
        Ok(())
    }

    fn hub_names(&self) -> String {
        self.hubs.iter().map(|hub| hub.name.as_str()).collect::<Vec<_>>().join(", ")
    }
}

/// Creates a directory for secrets, with its parents, accessible by its owner only.
pub(crate) fn create_private_directory(directory: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;

    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("failed to create directory {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use attest_common::basics::keys::PrivateKey;

    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn hub(name: &str) -> HubContext {
        HubContext {
            name: name.to_owned(),
            api_url: Some("https://127.0.0.1:8443".to_owned()),
            forward: None,
            spoke_address: Some("127.0.0.1:4433".to_owned()),
            ca_pin: "sha256:00".to_owned(),
            hub_key_id: "ed25519:00".to_owned(),
            hub_key: "PEM\nPEM\n".to_owned(),
            operator_chain: "PEM\n".to_owned(),
            operator_key: "PEM\n".to_owned(),
        }
    }

    #[test]
    fn a_context_reads_back_as_it_was_written() {
        let mut context =
            Context { current_hub: Some("a".to_owned()), hubs: vec![hub("a")], keys: Vec::new() };
        let key = PrivateKey::from_seed(&[7; 32]).unwrap();
        context.add_key("ci", key.public(), &[name("staging")]).unwrap();

        let text = serde_saphyr::to_string(&context).unwrap();

        assert_eq!(serde_saphyr::from_str::<Context>(&text).unwrap(), context, "{text}");
    }

    #[test]
    fn a_hub_is_the_named_one_else_the_current_one_else_the_only_one() {
        let two = vec![hub("a"), hub("b")];
        let context = Context { current_hub: Some("a".to_owned()), hubs: two, keys: Vec::new() };

        assert_eq!(context.hub(None).unwrap().name, "a");
        assert_eq!(context.hub(Some("b")).unwrap().name, "b");
        assert!(context.hub(Some("c")).unwrap_err().to_string().contains("a, b"));
        let one = Context { current_hub: None, hubs: vec![hub("b")], keys: Vec::new() };
        assert_eq!(one.hub(None).unwrap().name, "b");
        assert!(Context::default().hub(None).unwrap_err().to_string().contains("attest hub init"));
    }

    #[test]
    fn an_alias_collects_environments_and_never_changes_its_key() {
        let (one, other) =
            (PrivateKey::from_seed(&[1; 32]).unwrap(), PrivateKey::from_seed(&[2; 32]).unwrap());
        let mut context = Context::default();

        context.add_key("ci", one.public(), &[name("staging")]).unwrap();
        context.add_key("ci", one.public(), &[name("production"), name("staging")]).unwrap();

        assert_eq!(context.keys[0].environments, [name("production"), name("staging")]);
        assert_eq!(context.keys_for(&name("production")).count(), 1);
        assert!(context.add_key("ci", other.public(), &[name("staging")]).is_err());
    }
}
