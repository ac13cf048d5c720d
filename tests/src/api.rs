//! Client of the hub's JSON API with an operator's certificate, for benches that make thousands of
//! calls. Everything else uses `attest`.

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
    /// Pin of the hub's certificate authority, from the context.
    pub pin: Pin,
    /// Public half of the hub's plan-signing key.
    pub hub_key_pem: String,
}

impl Api {
    /// Creates a client for the current hub of an operator's configuration file.
    ///
    /// # Errors
    /// When a field is missing or malformed.
    pub fn from_config(file: &Path) -> anyhow::Result<Self> {
        attest_certs::install_provider();
        let config: Value = serde_saphyr::from_str(&std::fs::read_to_string(file)?)?;
        let current = config.get("currentHub").and_then(Value::as_str).context("no currentHub")?;
        let hubs = config.get("hubs").and_then(Value::as_array).context("no hubs")?;
        let hub = hubs.iter().find(|h| h.get("name").and_then(Value::as_str) == Some(current));
        let hub = hub.with_context(|| format!("no hub {current}"))?;
        let pin: Pin = text(hub, "caPin")?.parse()?;
        let bundle = Bundle::from_pem(text(hub, "operatorChain")?, text(hub, "operatorKey")?)?;
        let tls = attest_certs::tls::operator_https(&[pin], &bundle)?;
        let client =
            reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build()?;
        let (url, hub_key_pem) = (text(hub, "apiUrl")?.to_owned(), text(hub, "hubKey")?.to_owned());
        Ok(Self { client, url, pin, hub_key_pem })
    }

    /// Makes one call and parses the answer, which must be a success.
    ///
    /// # Errors
    /// When the call fails; the error contains the hub's answer.
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<T> {
        Ok(serde_json::from_str(&self.answer(method, path, body).await?)?)
    }

    /// Reads `path`; returns the answer as it is.
    ///
    /// # Errors
    /// When the call fails; the error contains the hub's answer.
    pub async fn get(&self, path: &str) -> anyhow::Result<String> {
        self.answer("GET", path, None).await
    }

    async fn answer(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<String> {
        let mut request = self.client.request(method.parse()?, format!("{}{path}", self.url));
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        ensure!(status.is_success(), "{method} {path}: {status}: {text}");
        Ok(text)
    }
}

fn text<'a>(hub: &'a Value, field: &str) -> anyhow::Result<&'a str> {
    let value = hub.get(field).and_then(Value::as_str);
    value.with_context(|| format!("the context has no {field}"))
}
