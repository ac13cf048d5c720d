//! Who this spoke is: the Secret `attest-identity` of its own cluster.
//!
//! The identity key is made once and kept; its hash is the cluster id. TLS key and certificate are
//! replaced on every renewal, and `generation` counts them.

use std::collections::BTreeMap;

use attest_certs::Bundle;
use attest_common::ids::ClusterId;
use attest_common::keys::PrivateKey;
use data_encoding::BASE64;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::NAMESPACE;
use crate::cluster::{ApiError, ApiServer, object_path};
use crate::failpoint;

/// Name of the Secret.
pub const SECRET: &str = "attest-identity";

const KEY: &str = "identity.key";
const CLUSTER_ID: &str = "cluster-id";
const CHAIN: &str = "tls.chain";
const TLS_KEY: &str = "tls.key";
const GENERATION: &str = "generation";

/// The identity, and the certificate when the cluster has joined.
#[derive(Debug)]
pub struct Identity {
    pub key: PrivateKey,
    pub cluster: ClusterId,
    pub tls: Option<Tls>,
    resource_version: String,
}

/// A certificate and how many came before it.
#[derive(Clone, Debug)]
pub struct Tls {
    pub bundle: Bundle,
    pub generation: u64,
}

impl Identity {
    /// Reads the identity, or makes one and stores it before anybody hears of it.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub async fn load_or_create(api: &ApiServer) -> Result<Self, IdentityError> {
        if let Some(secret) = api.get_optional(&path()).await.map_err(IdentityError::Api)? {
            return Self::read(&secret);
        }
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut()).map_err(|_| IdentityError::Randomness)?;
        let key = PrivateKey::from_seed(&seed).map_err(|_| IdentityError::Malformed(KEY))?;
        let cluster = ClusterId::of_identity_key(key.public().bytes());
        let identity = Self { key, cluster, tls: None, resource_version: String::new() };
        let body = identity.secret()?;
        let collection = object_path("v1", "secrets", Some(NAMESPACE), "");
        failpoint::reach("before-identity-write");
        let written = match api.create(&collection, &body).await {
            // Another process of this spoke was faster; there is one identity.
            Err(error) if error.is_already_exists() => {
                return Self::read(&api.get(&path()).await.map_err(IdentityError::Api)?);
            }
            other => other.map_err(IdentityError::Api)?,
        };
        failpoint::reach("after-identity-write");
        Self::read(&written)
    }

    /// Stores a new certificate.
    ///
    /// # Errors
    /// [`IdentityError`]; the old certificate then stays in use.
    pub async fn store_tls(
        &mut self,
        api: &ApiServer,
        bundle: Bundle,
    ) -> Result<(), IdentityError> {
        let generation = self.tls.as_ref().map_or(0, |tls| tls.generation) + 1;
        let former = self.tls.replace(Tls { bundle, generation });
        let body = self.secret()?;
        failpoint::reach("before-certificate-write");
        match api.replace(&path(), &body).await {
            Ok(written) => {
                failpoint::reach("after-certificate-write");
                self.resource_version = resource_version(&written);
                Ok(())
            }
            Err(error) => {
                self.tls = former;
                Err(IdentityError::Api(error))
            }
        }
    }

    fn read(secret: &Value) -> Result<Self, IdentityError> {
        let data = secret.get("data");
        let text = |name: &'static str| {
            let encoded = data?.get(name)?.as_str()?;
            let bytes = BASE64.decode(encoded.as_bytes()).ok()?;
            String::from_utf8(bytes).ok().map(Zeroizing::new)
        };
        let required = |name: &'static str| text(name).ok_or(IdentityError::Malformed(name));
        let key =
            PrivateKey::from_pem(&required(KEY)?).map_err(|_| IdentityError::Malformed(KEY))?;
        let cluster = ClusterId::of_identity_key(key.public().bytes());
        if required(CLUSTER_ID)?.as_str() != cluster.as_str() {
            return Err(IdentityError::Malformed(CLUSTER_ID));
        }
        let tls = match (text(CHAIN), text(TLS_KEY)) {
            (Some(chain), Some(key)) => {
                let bundle =
                    Bundle::from_pem(&chain, &key).map_err(|_| IdentityError::Malformed(CHAIN))?;
                let generation = text(GENERATION).and_then(|g| g.parse().ok()).unwrap_or(1);
                Some(Tls { bundle, generation })
            }
            (None | Some(_), _) => None,
        };
        Ok(Self { key, cluster, tls, resource_version: resource_version(secret) })
    }

    fn secret(&self) -> Result<Value, IdentityError> {
        let pem = self.key.to_pem().map_err(|_| IdentityError::Malformed(KEY))?;
        let mut data = BTreeMap::from([
            (KEY, BASE64.encode(pem.as_bytes())),
            (CLUSTER_ID, BASE64.encode(self.cluster.as_str().as_bytes())),
        ]);
        if let Some(Tls { bundle, generation }) = &self.tls {
            data.insert(CHAIN, BASE64.encode(bundle.chain_pem().as_bytes()));
            data.insert(TLS_KEY, BASE64.encode(bundle.key_pem().as_bytes()));
            data.insert(GENERATION, BASE64.encode(generation.to_string().as_bytes()));
        }
        let mut metadata = json!({"name": SECRET, "namespace": NAMESPACE});
        if !self.resource_version.is_empty()
            && let Some(fields) = metadata.as_object_mut()
        {
            fields.insert("resourceVersion".to_owned(), self.resource_version.clone().into());
        }
        Ok(json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": metadata, "data": data,
        }))
    }
}

fn path() -> String {
    object_path("v1", "secrets", Some(NAMESPACE), SECRET)
}

/// `metadata.resourceVersion` as text.
pub(crate) fn resource_version(object: &Value) -> String {
    let version = object.pointer("/metadata/resourceVersion").and_then(Value::as_str);
    version.unwrap_or_default().to_owned()
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    #[error("cannot read or write Secret {NAMESPACE}/{SECRET}")]
    Api(#[source] ApiError),
    #[error(
        "Secret {NAMESPACE}/{SECRET} has a missing or unusable `{0}`; \
         delete the Secret and register the cluster again"
    )]
    Malformed(&'static str),
    #[error("the system has no randomness to give")]
    Randomness,
}

impl IdentityError {
    /// A stable word for logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Api(error) => error.reason(),
            Self::Malformed(_) => "IdentityMalformed",
            Self::Randomness => "Randomness",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_reads_back_and_a_foreign_cluster_id_is_refused() {
        let key = PrivateKey::from_seed(&[9; 32]).unwrap();
        let cluster = ClusterId::of_identity_key(key.public().bytes());
        let identity = Identity { key, cluster, tls: None, resource_version: String::new() };

        let mut secret = identity.secret().unwrap();
        assert_eq!(Identity::read(&secret).unwrap().cluster, identity.cluster);

        secret["data"][CLUSTER_ID] = BASE64.encode(b"c-0000000000000000").into();
        assert_eq!(Identity::read(&secret).unwrap_err().reason(), "IdentityMalformed");
    }
}
