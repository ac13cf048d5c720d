//! Credentials for the API server: a kubeconfig whose token is renewed, or the files of the pod's service account.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use attest_common::basics::ids::Timestamp;
use attest_common::basics::locked::RwLocked;
use attest_runtime::failpoint;
use attest_runtime::service_account::ServiceAccount;
use http::header::HeaderValue;
use kube::Config;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use serde_json::Value;
use zeroize::Zeroizing;

use super::error::ClusterError;
use crate::SPOKE_NAMESPACE;

/// The token of a kubeconfig, in memory and in its file.
pub(super) struct FileToken {
    path: PathBuf,
    current: RwLocked<Held>,
    /// The file holds an older token than memory does.
    is_unwritten: AtomicBool,
}

struct Held {
    token: String,
    /// Seconds since 1970; 0 when the token does not say.
    issued_s: i64,
    expires_s: i64,
}

impl Held {
    fn new(token: String) -> Self {
        let (issued_s, expires_s) = token_times(&token).unwrap_or((0, 0));
        Self { token, issued_s, expires_s }
    }
}

impl FileToken {
    pub(super) fn header(&self) -> Option<HeaderValue> {
        let held = self.current.read();
        let mut value = HeaderValue::from_str(&format!("Bearer {}", held.token)).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// True from two thirds of the token's life on.
    pub(super) fn is_due(&self, now: Timestamp) -> bool {
        let held = self.current.read();
        let life_s = held.expires_s - held.issued_s;
        held.expires_s > 0 && now.as_second() >= held.issued_s + life_s * 2 / 3
    }

    /// Uses this token from now on. Writing it into the file is [`Self::write`].
    pub(super) fn replace(&self, fresh: &str) {
        let mut held = self.current.write();
        *held = Held::new(fresh.to_owned());
        self.is_unwritten.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_unwritten(&self) -> bool {
        self.is_unwritten.load(Ordering::Relaxed)
    }

    /// Writes the token in use into the file, whatever token is there now.
    pub(super) fn write(&self) -> Result<(), ClusterError> {
        let token = {
            let held = self.current.read();
            Zeroizing::new(held.token.clone())
        };
        let file = |source| ClusterError::KubeconfigFile { path: self.path.clone(), source };
        let text = Zeroizing::new(std::fs::read_to_string(&self.path).map_err(file)?);
        let text = with_token(&text, &token).map_err(|source| ClusterError::Kubeconfig {
            path: self.path.clone(),
            source: Box::new(source),
        })?;
        failpoint::reach("before-token-write");
        attest_certs::bundle::write_private(&self.path, text.as_bytes())
            .map_err(|source| ClusterError::KubeconfigWrite { source })?;
        failpoint::reach("after-token-write");
        self.is_unwritten.store(false, Ordering::Relaxed);
        Ok(())
    }
}

/// A kubeconfig with another token for the user of its current context, as JSON.
fn with_token(text: &str, token: &str) -> Result<Zeroizing<String>, KubeconfigError> {
    // Read as text, so that paths in it stay as they are written.
    let parsed = Kubeconfig::from_yaml(text)?;
    let mut file = serde_json::to_value(&parsed).unwrap_or_default();
    let named = |list: &str, name: Option<&Value>| {
        let all = file.get(list)?.as_array()?;
        all.iter().position(|entry| name.is_some() && entry.get("name") == name)
    };
    let context = named("contexts", file.get("current-context"));
    let user = context.and_then(|index| file.pointer(&format!("/contexts/{index}/context/user")));
    let user = named("users", user).ok_or(KubeconfigError::CurrentContextNotSet)?;
    if let Some(Value::Object(fields)) = file.pointer_mut(&format!("/users/{user}/user")) {
        fields.insert("token".to_owned(), token.into());
    }
    Ok(Zeroizing::new(format!("{file:#}\n")))
}

/// `iat` and `exp` of a service account token (RFC 7519). Read, not believed: the API server judges.
fn token_times(token: &str) -> Option<(i64, i64)> {
    let payload = token.split('.').nth(1)?;
    let bytes = data_encoding::BASE64URL_NOPAD.decode(payload.as_bytes()).ok()?;
    let claims: Value = serde_json::from_slice(&bytes).ok()?;
    Some((claims.get("iat")?.as_i64()?, claims.get("exp")?.as_i64()?))
}

pub(super) async fn from_kubeconfig(
    path: &Path,
) -> Result<(Config, Option<Arc<FileToken>>), ClusterError> {
    let bad = |source| ClusterError::Kubeconfig { path: path.to_owned(), source: Box::new(source) };
    let file = Kubeconfig::read_from(path).map_err(bad)?;
    let mut config =
        Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(bad)?;
    // The client's own type hides the token; its written form is the kubeconfig's.
    let written = serde_json::to_value(&config.auth_info).unwrap_or_default();
    let token = written.get("token").and_then(Value::as_str).map(|token| {
        let held = Held::new(token.to_owned());
        Arc::new(FileToken {
            path: path.to_owned(),
            current: RwLocked::new(held),
            is_unwritten: AtomicBool::new(false),
        })
    });
    if token.is_some() {
        config.auth_info.token = None;
    }
    Ok((config, token))
}

pub(super) fn from_service_account(directory: &Path) -> Result<Config, ClusterError> {
    let account = ServiceAccount::read(directory)?;
    let authority = attest_certs::bundle::chain_from_pem(&account.authority_pem)
        .map_err(|source| ClusterError::KubeconfigWrite { source })?;
    let uri = account.server.parse();
    let mut config = Config::new(uri.map_err(|_| ClusterError::Address(account.server))?);
    SPOKE_NAMESPACE.clone_into(&mut config.default_namespace);
    config.root_cert = Some(authority.iter().map(|der| der.as_ref().to_vec()).collect());
    config.auth_info.token_file = Some(account.token_file.display().to_string());
    Ok(config)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::cluster::fake::FakeApi;

    #[test]
    fn a_token_is_due_for_renewal_at_two_thirds_of_its_life() {
        let payload = data_encoding::BASE64URL_NOPAD.encode(br#"{"iat":1000,"exp":1300}"#);
        let held = |token: String| FileToken {
            path: PathBuf::new(),
            current: RwLocked::new(Held::new(token)),
            is_unwritten: AtomicBool::new(false),
        };
        let token = held(format!("h.{payload}.s"));

        assert!(!token.is_due(Timestamp::from_second(1199).unwrap()));
        assert!(token.is_due(Timestamp::from_second(1200).unwrap()));
        assert!(!held("opaque".to_owned()).is_due(Timestamp::from_second(9_999_999_999).unwrap()));
    }

    #[tokio::test]
    async fn a_token_that_could_not_be_written_once_does_not_keep_the_next_out_of_the_file() {
        let fake = FakeApi::start().await;
        let (file, away) = (fake.kubeconfig(), fake.kubeconfig().with_extension("away"));
        let payload = data_encoding::BASE64URL_NOPAD.encode(br#"{"iat":1000,"exp":1300}"#);
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace("first", &format!("h.{payload}.s"))).unwrap();
        let api = fake.open().await;

        std::fs::rename(&file, &away).unwrap();
        fake.give_token("second");
        assert_eq!(api.keep_token_once().await.unwrap_err().reason().as_str(), "Kubeconfig");
        std::fs::rename(&away, &file).unwrap();
        api.get("/version").await.unwrap();
        assert_eq!(fake.tokens().last().unwrap(), "Bearer second");
        api.keep_token_once().await.unwrap();

        let written = Kubeconfig::read_from(&file).unwrap();
        let written = serde_json::to_value(&written.auth_infos[0]).unwrap();
        assert_eq!(written["user"]["token"], "second");
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        // A spoke that is started with it can go on.
        fake.open().await.get("/version").await.unwrap();
        assert_eq!(fake.tokens().last().unwrap(), "Bearer second");
    }
}
