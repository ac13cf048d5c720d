//! Client of the hub's JSON API: mutual TLS with a pinned certificate authority, and errors with remedies.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, anyhow, bail};
use attest_certs::{Bundle, Pin, peer_identity, tls};
use attest_common::basics::reason::ReportedReason;
use attest_documents::{Failure, List};
use reqwest::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::context::{Context, HubContext};
use crate::forward;
use crate::printer::Printer;

/// Connection timeout.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Timeout of a request.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// Remaining validity of the operator's certificate below which a warning is printed.
const EXPIRY_WARNING: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Maximum size of an answer, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A client for one hub.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    hub: HubContext,
    /// `https://HOST:PORT` of the API.
    base_url: String,
    /// End of the command: no request continues past it.
    deadline: Option<Instant>,
}

/// An error that the hub returned, with its reason.
#[derive(Debug, thiserror::Error)]
#[error("{message} ({reason}{at})", at = field.as_ref().map(|field| format!(" at {field}")).unwrap_or_default())]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) reason: ReportedReason,
    pub(crate) message: String,
    pub(crate) field: Option<String>,
}

impl Client {
    /// A client for the hub named by `--hub`, `ATTEST_HUB` or the context.
    pub(crate) fn from_context(hub: Option<&str>) -> anyhow::Result<Self> {
        Self::new(Context::load()?.hub(hub)?)
    }

    /// A client for this hub. Nothing is sent yet.
    pub(crate) fn new(hub: &HubContext) -> anyhow::Result<Self> {
        let pin: Pin = hub.ca_pin.parse().with_context(|| invalid_field(hub, "caPin"))?;
        let operator = Bundle::from_pem(&hub.operator_chain, &hub.operator_key)
            .with_context(|| invalid_field(hub, "operatorChain or operatorKey"))?;
        if let Some(warning) = expiry_warning(hub, &operator)? {
            Printer::new().warning(&warning);
        }
        let base_url = match (&hub.api_url, &hub.forward) {
            (Some(url), _) => url.clone(),
            (None, Some(target)) => format!("https://{}", forward::open(target)?),
            (None, None) => bail!(invalid_field(hub, "apiUrl")),
        };
        let tls = tls::operator_https(&[pin], &operator)
            .with_context(|| invalid_field(hub, "operatorChain"))?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(CONNECT_WITHIN)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .context("failed to create the HTTP client")?;
        Ok(Self { http, hub: hub.clone(), base_url, deadline: None })
    }

    /// A client for the same hub whose requests end at `deadline`.
    pub(crate) fn with_deadline(&self, deadline: Instant) -> Self {
        Self { deadline: Some(deadline), ..self.clone() }
    }

    /// The hub's entry in the context.
    pub(crate) fn hub(&self) -> &HubContext {
        &self.hub
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        parse_answer(&self.send(Method::GET, path, None::<&()>).await?)
    }

    /// Reads every page of a list.
    pub(crate) async fn list<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<List<T>> {
        let mut list: List<T> = self.get(path).await?;
        while let Some(next) = list.metadata.next.take() {
            let page: List<T> = self.get(&format!("{path}?continue={next}")).await?;
            list.items.extend(page.items);
            list.metadata = page.metadata;
        }
        Ok(list)
    }

    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> anyhow::Result<T> {
        parse_answer(&self.send(Method::POST, path, Some(body)).await?)
    }

    pub(crate) async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> anyhow::Result<T> {
        parse_answer(&self.send(Method::PUT, path, Some(body)).await?)
    }

    /// Sends a request and discards the body of the answer.
    pub(crate) async fn send_only(
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
        let url = format!("{}{path}", self.base_url.trim_end_matches('/'));
        let timeout = request_timeout(self.deadline, Instant::now());
        let mut request = self.http.request(method, url).timeout(timeout);
        if let Some(body) = body {
            request = request.json(body);
        }
        let mut answer = request.send().await.map_err(|error| self.unreachable(error))?;
        let status = answer.status();
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| self.unreachable(error))? {
            if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
                bail!(
                    "the response from hub `{}` is longer than {ANSWER_BYTES_MAX} bytes",
                    self.hub.name
                );
            }
            bytes.extend_from_slice(&chunk);
        }
        if status.is_success() { Ok(bytes) } else { Err(api_error(status, &bytes)) }
    }

    /// The error of a request that got no answer, with the address of the hub.
    fn unreachable(&self, error: reqwest::Error) -> anyhow::Error {
        let (name, api_url) = (&self.hub.name, self.hub.shown_address());
        let hint = if error.is_timeout() {
            "the request timed out"
        } else if error.is_connect() {
            "check that attest-hub is running there, or select another hub with --hub NAME or ATTEST_HUB"
        } else {
            "the connection was lost"
        };
        anyhow::Error::new(error.without_url())
            .context(format!("failed to reach hub `{name}` at {api_url}; {hint}"))
    }
}

fn invalid_field(hub: &HubContext, field: &str) -> String {
    format!("invalid {field} of hub `{}` in the context", hub.name)
}

/// The timeout of a request: never past the end of the command.
fn request_timeout(deadline: Option<Instant>, now: Instant) -> Duration {
    match deadline {
        Some(deadline) => deadline.saturating_duration_since(now).min(ANSWER_WITHIN),
        None => ANSWER_WITHIN,
    }
}

/// The warning about an operator's certificate that expires soon.
///
/// # Errors
/// When it has expired: the hub would only close the connection.
fn expiry_warning(hub: &HubContext, operator: &Bundle) -> anyhow::Result<Option<String>> {
    let remedy = format!("renew it with {}", hub.renewal_command());
    let identity =
        peer_identity(operator.chain()).context("invalid operatorChain in the context")?;
    match identity.not_after.duration_since(SystemTime::now()) {
        Err(_) => bail!("the operator's certificate has expired; {remedy}"),
        // A certificate of `attest hub login` lives for hours, and is renewed by one command.
        Ok(left) if left < EXPIRY_WARNING && hub.forward.is_none() => {
            let days = left.as_secs() / (24 * 60 * 60);
            Ok(Some(format!("the operator's certificate expires in {days} days; {remedy}")))
        }
        Ok(_) => Ok(None),
    }
}

fn parse_answer<T: DeserializeOwned>(bytes: &[u8]) -> anyhow::Result<T> {
    serde_json::from_slice(bytes).context(
        "failed to parse the hub's response; check that attest and attest-hub have the same version",
    )
}

fn api_error(status: StatusCode, bytes: &[u8]) -> anyhow::Error {
    match serde_json::from_slice::<Failure>(bytes) {
        Ok(Failure { reason, message, field }) => {
            anyhow!(ApiError { status, reason, message, field })
        }
        Err(_) => {
            let text: String = String::from_utf8_lossy(bytes).chars().take(200).collect();
            anyhow!("the hub returned {status}: {}", text.trim())
        }
    }
}

/// The error that the hub returned, if `error` is one.
pub(crate) fn as_api_error(error: &anyhow::Error) -> Option<&ApiError> {
    error.downcast_ref::<ApiError>()
}

/// The error of a command that reached its deadline. `error` is its cause, unless it is only a request that the
/// deadline cut short.
pub(crate) fn timeout_error(error: anyhow::Error, message: String) -> anyhow::Error {
    if error.chain().any(is_cut_short) { anyhow!(message) } else { error.context(message) }
}

fn is_cut_short(cause: &(dyn std::error::Error + 'static)) -> bool {
    let error = cause.downcast_ref::<reqwest::Error>();
    error.is_some_and(|error| error.is_timeout() && !error.is_connect())
}

/// Returns true if the hub answered that the resource does not exist.
pub(crate) fn is_not_found(error: &anyhow::Error) -> bool {
    as_api_error(error).is_some_and(|error| error.status == StatusCode::NOT_FOUND)
}

/// Runs an asynchronous command to completion.
pub(crate) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the runtime")?
        .block_on(work)
}

#[cfg(test)]
mod tests {
    use attest_certs::{Authority, OperatorRole};

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
            assert_eq!(request_timeout(until, now), limit);
        }
        assert_eq!(request_timeout(Some(now), now + second), Duration::ZERO);
    }

    #[tokio::test]
    async fn an_answer_that_was_not_waited_for_does_not_make_the_hub_unreachable() {
        attest_certs::install_provider();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let get = async || {
            let request = http.get(format!("http://{address}")).timeout(Duration::from_millis(50));
            anyhow::Error::new(request.send().await.unwrap_err()).context("failed to reach the hub")
        };
        let silent = get().await;
        drop(listener);
        let closed = get().await;

        assert_eq!(format!("{:#}", timeout_error(silent, "timed out".to_owned())), "timed out");
        let said = format!("{:#}", timeout_error(closed, "timed out".to_owned()));
        assert!(said.starts_with("timed out: failed to reach the hub"), "{said}");
    }

    #[test]
    fn a_certificate_that_nears_its_end_is_spoken_of_and_one_past_it_is_not_used() {
        let authority = Authority::create("fleet.example").unwrap();
        let hub: HubContext = serde_json::from_value(serde_json::json!({
            "name": "main", "caPin": "", "hubKeyId": "", "hubKey": "", "operatorChain": "", "operatorKey": "",
        }))
        .unwrap();
        let day = Duration::from_secs(24 * 60 * 60);
        let warning = |lifetime: Duration| {
            let issued =
                authority.issue_operator(OperatorRole::Operator, "admin", lifetime).unwrap();
            expiry_warning(&hub, &issued.bundle().unwrap())
        };

        assert!(warning(31 * day).unwrap().is_none());
        assert!(warning(29 * day).unwrap().unwrap().contains("28 days"));
        assert!(warning(Duration::ZERO).unwrap_err().to_string().contains("expired"));
    }
}
