//! Data that a hub publishes in its cluster for `attest hub login`, and names that both ends use there.

use std::collections::BTreeMap;

/// Default namespace of a hub in a cluster.
pub const NAMESPACE: &str = "attest-system";
/// ConfigMap that the hub writes into its namespace.
pub const CONFIG_MAP: &str = "attest-gitops-hub";
/// Signer of certificates for operators.
pub const OPERATOR_SIGNER: &str = "attest.continuu.ms/operator";
/// Signer of certificates for viewers.
pub const VIEWER_SIGNER: &str = "attest.continuu.ms/viewer";
/// Usages of a request; no other set is signed.
pub const USAGES: [&str; 2] = ["client auth", "digital signature"];
/// Shortest lifetime that a request may ask for, in seconds. The API server accepts no shorter one.
pub const LIFETIME_MIN_S: u32 = 600;
/// Longest lifetime that a request may ask for, in seconds: losing access to the cluster revokes no certificate.
pub const LIFETIME_MAX_S: u32 = 30 * 24 * 60 * 60;
/// Lifetime of a certificate whose request names none, in seconds.
pub const LIFETIME_DEFAULT_S: u32 = 12 * 60 * 60;
/// Label value `app` of the hub's pod.
pub const POD_APP: &str = "attest-gitops-controller";
/// Port of the API in the hub's pod.
pub const API_PORT: u16 = 8443;

/// Public data of a hub: the content of [`CONFIG_MAP`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HubFacts {
    /// The certificate authority, PEM.
    pub ca_certificate: String,
    /// `sha256:<hex>` of the authority's public key.
    pub ca_pin: String,
    /// The key that signs plans, PEM.
    pub hub_key: String,
    pub hub_key_id: String,
    /// `https://HOST:PORT` of the API, if it is reachable without a port-forward.
    pub api_url: Option<String>,
    /// `HOST:PORT` that spokes of other clusters dial, once it is known.
    pub spoke_address: Option<String>,
}

const CA_CERTIFICATE: &str = "ca.crt";
const CA_PIN: &str = "caPin";
const HUB_KEY: &str = "hub.pub";
const HUB_KEY_ID: &str = "hubKeyId";
const API_URL: &str = "apiUrl";
const SPOKE_ADDRESS: &str = "spokeAddress";

impl HubFacts {
    /// Returns the data of the ConfigMap.
    pub fn to_data(&self) -> BTreeMap<String, String> {
        let Self { ca_certificate, ca_pin, hub_key, hub_key_id, api_url, spoke_address } = self;
        let all = [
            (CA_CERTIFICATE, Some(ca_certificate)),
            (CA_PIN, Some(ca_pin)),
            (HUB_KEY, Some(hub_key)),
            (HUB_KEY_ID, Some(hub_key_id)),
            (API_URL, api_url.as_ref()),
            (SPOKE_ADDRESS, spoke_address.as_ref()),
        ];
        let present = all.into_iter().filter_map(|(key, value)| Some((key, value?)));
        present.map(|(key, value)| (key.to_owned(), value.clone())).collect()
    }

    /// Reads the data of the ConfigMap. Unknown keys are ignored.
    ///
    /// # Errors
    /// The key that is missing: the hub has not written the ConfigMap yet.
    pub fn from_data(data: &BTreeMap<String, String>) -> Result<Self, &'static str> {
        Ok(Self {
            ca_certificate: required(data, CA_CERTIFICATE)?,
            ca_pin: required(data, CA_PIN)?,
            hub_key: required(data, HUB_KEY)?,
            hub_key_id: required(data, HUB_KEY_ID)?,
            api_url: data.get(API_URL).cloned(),
            spoke_address: data.get(SPOKE_ADDRESS).cloned(),
        })
    }
}

fn required(data: &BTreeMap<String, String>, key: &'static str) -> Result<String, &'static str> {
    data.get(key).cloned().ok_or(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_facts_read_back_as_they_were_written() {
        let facts = HubFacts {
            ca_certificate: "PEM".to_owned(),
            ca_pin: "sha256:00".to_owned(),
            hub_key: "PEM".to_owned(),
            hub_key_id: "ed25519:00".to_owned(),
            api_url: None,
            spoke_address: Some("hub.example:4433".to_owned()),
        };

        assert_eq!(HubFacts::from_data(&facts.to_data()), Ok(facts));
        assert_eq!(HubFacts::from_data(&BTreeMap::new()), Err("ca.crt"));
    }
}
