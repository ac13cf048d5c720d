//! The hub's JSON API with an operator's context, for figures that need a thousand calls. Everything else uses `attest`.

use std::path::Path;

use anyhow::{Context, ensure};
use attest_certs::{Bundle, Pin};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A client of one hub.
#[derive(Clone, Debug)]
pub struct Api {
    client: reqwest::Client,
    url: String,
    /// The hub CA's pin, as the context holds it.
    pub pin: Pin,
    /// The public key that plans are signed with.
    pub hub_key_pem: String,
}

impl Api {
    /// A client for the current hub of an operator's configuration file.
    ///
    /// # Errors
    /// When the file lacks something.
    pub fn from_config(file: &Path) -> anyhow::Result<Self> {
        attest_certs::install_provider();
        let text = std::fs::read_to_string(file)?;
        let config: Value = serde_saphyr::from_str(&text)?;
        let current = config.get("currentHub").and_then(Value::as_str).context("no currentHub")?;
        let hubs = config.get("hubs").and_then(Value::as_array).context("no hubs")?;
        let hub = hubs.iter().find(|h| h.get("name").and_then(Value::as_str) == Some(current));
        let text = |field: &str| -> anyhow::Result<String> {
            let found = hub.and_then(|h| h.get(field)).and_then(Value::as_str);
            Ok(found.with_context(|| format!("the context has no {field}"))?.to_owned())
        };
        let pin: Pin = text("caPin")?.parse()?;
        let bundle = Bundle::from_pem(&text("operatorChain")?, &text("operatorKey")?)?;
        let tls = attest_certs::tls::operator_https(&[pin], &bundle)?;
        let client =
            reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build()?;
        Ok(Self { client, url: text("apiUrl")?, pin, hub_key_pem: text("hubKey")? })
    }

    /// One call; the answer must be a success.
    ///
    /// # Errors
    /// When it is not; the error holds the hub's words.
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<T> {
        let mut request = self.client.request(method.parse()?, format!("{}{path}", self.url));
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        ensure!(status.is_success(), "{method} {path}: {status}: {text}");
        Ok(serde_json::from_str(&text)?)
    }
}
