//! The hub's JSON API, as the operator's commands use it: mutual TLS, pinned authority, errors that say what to do.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, anyhow, bail};
use attest_certs::{Bundle, Pin, peer_identity, tls};
use attest_documents::Failure;
use reqwest::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::context::{Config, Hub};
use crate::printer::Printer;

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// An operator hears of it when less than this is left of the certificate.
const WARN_LEFT: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Largest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A hub that can be asked.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    hub: Hub,
    /// No answer is waited for past this.
    until: Option<Instant>,
}

/// The hub's refusal, kept as it came so that callers can act on its reason.
#[derive(Debug, thiserror::Error)]
#[error("{message} ({reason}{at})", at = field.as_ref().map(|field| format!(" at {field}")).unwrap_or_default())]
pub(crate) struct Refused {
    pub(crate) status: StatusCode,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) field: Option<String>,
}

impl Client {
    /// The hub that `--hub`, `ATTEST_HUB` or the context names.
    pub(crate) fn from_context(hub: Option<&str>) -> anyhow::Result<Self> {
        Self::new(Config::load()?.hub(hub)?)
    }

    /// A client for this hub. Nothing is sent yet.
    pub(crate) fn new(hub: &Hub) -> anyhow::Result<Self> {
        let field = |what: &str| format!("the context's hub `{}` has no usable {what}", hub.name);
        let pin: Pin = hub.ca_pin.parse().with_context(|| field("caPin"))?;
        let own = Bundle::from_pem(&hub.operator_chain, &hub.operator_key)
            .with_context(|| field("operatorChain and operatorKey"))?;
        if let Some(warning) = expiry(&own)? {
            Printer::new().warning(&warning);
        }
        let tls =
            tls::operator_https(&[pin], &own).with_context(|| field("operator certificate"))?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(CONNECT_WITHIN)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .context("cannot set up the connection to the hub")?;
        Ok(Self { http, hub: hub.clone(), until: None })
    }

    /// The same hub, for a command that ends at `until` however long an answer takes.
    pub(crate) fn until(&self, until: Instant) -> Self {
        Self { until: Some(until), ..self.clone() }
    }

    /// The context's entry.
    pub(crate) fn hub(&self) -> &Hub {
        &self.hub
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        read(&self.send(Method::GET, path, None::<&()>).await?)
    }

    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> anyhow::Result<T> {
        read(&self.send(Method::POST, path, Some(body)).await?)
    }

    pub(crate) async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> anyhow::Result<T> {
        read(&self.send(Method::PUT, path, Some(body)).await?)
    }

    /// A request whose answer has nothing that matters.
    pub(crate) async fn act(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> anyhow::Result<()> {
        self.send(method, path, body).await?;
        Ok(())
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> anyhow::Result<Vec<u8>> {
        let url = format!("{}{path}", self.hub.api_url.trim_end_matches('/'));
        let limit = answer_within(self.until, Instant::now());
        let mut request = self.http.request(method, url).timeout(limit);
        if let Some(body) = body {
            request = request.json(body);
        }
        let mut answer = request.send().await.map_err(|error| self.unreachable(error))?;
        let status = answer.status();
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| self.unreachable(error))? {
            if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
                bail!("the hub's answer is longer than {ANSWER_BYTES_MAX} bytes");
            }
            bytes.extend_from_slice(&chunk);
        }
        if status.is_success() { Ok(bytes) } else { Err(refused(status, &bytes)) }
    }

    /// Which address of which context, and what to look at.
    fn unreachable(&self, error: reqwest::Error) -> anyhow::Error {
        let Hub { name, api_url, .. } = &self.hub;
        let hint = if error.is_timeout() {
            "it did not answer in time"
        } else if error.is_connect() {
            "is attest-hub running there? `--hub NAME` or ATTEST_HUB chooses another hub"
        } else {
            "the connection broke"
        };
        anyhow::Error::new(error.without_url())
            .context(format!("cannot reach hub `{name}` at {api_url}: {hint}"))
    }
}

/// How long to wait for one answer: never past the end of the command.
fn answer_within(until: Option<Instant>, now: Instant) -> Duration {
    until.map_or(ANSWER_WITHIN, |until| until.saturating_duration_since(now).min(ANSWER_WITHIN))
}

/// What to say when the operator's certificate nears its end.
///
/// # Errors
/// When it is past: the hub would only close the connection.
fn expiry(own: &Bundle) -> anyhow::Result<Option<String>> {
    let next = "`attest hub operator issue NAME --save` on the hub's machine makes another";
    let not_after = peer_identity(own.chain()).context("the context's operatorChain")?.not_after;
    match not_after.duration_since(SystemTime::now()) {
        Err(_) => bail!("this operator's certificate has expired; {next}"),
        Ok(left) if left < WARN_LEFT => {
            let days = left.as_secs() / (24 * 60 * 60);
            Ok(Some(format!("this operator's certificate ends in {days} days; {next}")))
        }
        Ok(_) => Ok(None),
    }
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> anyhow::Result<T> {
    serde_json::from_slice(bytes)
        .context("the hub's answer is not understood; is it of another version?")
}

fn refused(status: StatusCode, bytes: &[u8]) -> anyhow::Error {
    match serde_json::from_slice::<Failure>(bytes) {
        Ok(Failure { reason, message, field }) => {
            anyhow!(Refused { status, reason, message, field })
        }
        Err(_) => {
            let text: String = String::from_utf8_lossy(bytes).chars().take(200).collect();
            anyhow!("the hub answered {status}: {}", text.trim())
        }
    }
}

/// The hub's refusal inside an error, when it is one.
pub(crate) fn refusal(error: &anyhow::Error) -> Option<&Refused> {
    error.downcast_ref::<Refused>()
}

/// What to say of an error that came at the end of a wait: nothing more, when the answer was merely not there yet.
pub(crate) fn late(error: anyhow::Error, told: String) -> anyhow::Error {
    let cut_short = |cause: &(dyn std::error::Error + 'static)| {
        let error = cause.downcast_ref::<reqwest::Error>();
        error.is_some_and(|error| error.is_timeout() && !error.is_connect())
    };
    if error.chain().any(cut_short) { anyhow!(told) } else { error.context(told) }
}

/// True when the hub says that there is no such thing.
pub(crate) fn is_missing(error: &anyhow::Error) -> bool {
    refusal(error).is_some_and(|refused| refused.status == StatusCode::NOT_FOUND)
}

/// Runs a command that waits for the network.
pub(crate) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(work)
}

#[cfg(test)]
mod tests {
    use attest_certs::Authority;

    use super::*;

    #[test]
    fn no_answer_is_waited_for_past_the_end_of_the_command() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        for (until, limit) in [
            (None, ANSWER_WITHIN),
            (Some(now + 100 * ANSWER_WITHIN), ANSWER_WITHIN),
            (Some(now + 3 * second), 3 * second),
            (Some(now), Duration::ZERO),
        ] {
            assert_eq!(answer_within(until, now), limit);
        }
        assert_eq!(answer_within(Some(now), now + second), Duration::ZERO);
    }

    #[tokio::test]
    async fn an_answer_that_was_not_waited_for_does_not_make_the_hub_unreachable() {
        attest_certs::install_provider();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let get = async || {
            let request = http.get(format!("http://{address}")).timeout(Duration::from_millis(50));
            anyhow::Error::new(request.send().await.unwrap_err()).context("cannot reach the hub")
        };
        let silent = get().await;
        drop(listener);
        let closed = get().await;

        assert_eq!(format!("{:#}", late(silent, "not done".to_owned())), "not done");
        let said = format!("{:#}", late(closed, "not done".to_owned()));
        assert!(said.starts_with("not done: cannot reach the hub"), "{said}");
    }

    #[test]
    fn a_certificate_that_nears_its_end_is_spoken_of_and_one_past_it_is_not_used() {
        let authority = Authority::create("fleet.example").unwrap();
        let day = Duration::from_secs(24 * 60 * 60);
        let said = |lifetime: Duration| {
            let issued = authority.issue_operator("admin", lifetime).unwrap();
            expiry(&issued.bundle().unwrap())
        };

        assert!(said(31 * day).unwrap().is_none());
        assert!(said(29 * day).unwrap().unwrap().contains("28 days"));
        assert!(said(Duration::ZERO).unwrap_err().to_string().contains("expired"));
    }
}
