//! Signs approved requests of operators: observes, decides, writes the certificate, and retries.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use attest_certs::{Issued, OperatorRole};
use attest_common::basics::backoff::{Backoff, Jitter};
use attest_common::basics::ids::{Digest, Timestamp};
use attest_common::basics::reason::Reason;
use attest_common::basics::text::error_chain;
use attest_runtime::clock::random;
use data_encoding::BASE64;
use futures::StreamExt as _;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::api::{Patch, PatchParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use super::decision::{OperatorRequest, RequestDecision, RequestRefusal, decide, signer_of};
use crate::core::blocking::blocking;
use crate::core::{CONTROLLER, Core};
use crate::home::{HomeError, Operators};
use crate::kubernetes::{HubKubernetes, request_reason};
use crate::spokes::registration::Registration;

/// Delays between attempts to answer a request.
const ANSWER_RETRY: Backoff =
    Backoff::new(Duration::from_millis(200), Duration::from_secs(10)).with_jitter(Jitter::Full);
/// Most attempts to answer a request, so that one request does not delay the others for long. The next start tries again.
const ANSWER_ATTEMPTS_MAX: u32 = 8;
/// Hexadecimal digits of the hash of a user name in a certificate.
const NAME_DIGITS: usize = 32;

/// Signs certificates of operators.
#[derive(Debug)]
pub(crate) struct LoginSigner {
    core: Arc<Core>,
    registration: Arc<Registration>,
    operators: Operators,
    kubernetes: HubKubernetes,
}

impl LoginSigner {
    pub(crate) fn new(
        core: Arc<Core>,
        registration: Arc<Registration>,
        operators: Operators,
        kubernetes: HubKubernetes,
    ) -> Self {
        Self { core, registration, operators, kubernetes }
    }

    /// Answers requests for both roles until the hub stops.
    pub(crate) async fn run(self: Arc<Self>) {
        tokio::join!(
            self.answer_all(OperatorRole::Operator),
            self.answer_all(OperatorRole::Viewer)
        );
    }

    fn requests(&self) -> Api<CertificateSigningRequest> {
        Api::all(self.kubernetes.client.clone())
    }

    async fn answer_all(self: &Arc<Self>, role: OperatorRole) {
        let fields = format!("spec.signerName={}", signer_of(role));
        let config = watcher::Config::default().fields(&fields);
        let mut events = pin!(watcher(self.requests(), config).default_backoff());
        loop {
            let event = tokio::select! {
                () = self.core.stop.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                Some(Ok(Event::Apply(request) | Event::InitApply(request))) => {
                    self.answer(request).await;
                }
                Some(Ok(Event::Delete(_) | Event::Init | Event::InitDone)) => {}
                // The stream backs off and reconnects.
                Some(Err(error)) => tracing::debug!(
                    reason = Reason::ApiServerUnreachable.as_str(),
                    "Failed to watch requests for certificates: {}",
                    error_chain(&error)
                ),
                None => return,
            }
        }
    }

    /// Answers one request, with retries. A certificate is issued at most once.
    async fn answer(self: &Arc<Self>, mut request: CertificateSigningRequest) {
        let mut issued = None;
        for attempt in 0..ANSWER_ATTEMPTS_MAX {
            let error = match self.try_answer(&request, &mut issued).await {
                Ok(()) => return,
                Err(error) => error,
            };
            tracing::warn!(
                target: CONTROLLER,
                reason = error.reason().as_str(),
                request = request.name_any(),
                "Failed to answer a request for a certificate: {}", error_chain(&error)
            );
            tokio::select! {
                () = self.core.stop.cancelled() => return,
                () = tokio::time::sleep(ANSWER_RETRY.delay(attempt, random())) => {}
            }
            match self.requests().get_opt(&request.name_any()).await {
                // Another object of this name is another request.
                Ok(Some(current)) if current.uid() == request.uid() => request = current,
                Ok(_) => return,
                Err(_) => {}
            }
        }
    }

    async fn try_answer(
        self: &Arc<Self>,
        request: &CertificateSigningRequest,
        issued: &mut Option<Issued>,
    ) -> Result<(), AnswerError> {
        match decide(request) {
            RequestDecision::Ignore => Ok(()),
            RequestDecision::Sign(approved) => {
                let (role, username) = (approved.role, approved.username.clone());
                let certificate = match issued {
                    Some(certificate) => certificate,
                    None => issued.insert(self.issue(approved).await?),
                };
                let pem = BASE64.encode(certificate.chain_pem().as_bytes());
                self.write_status(request, &json!({"certificate": pem})).await?;
                tracing::info!(
                    target: CONTROLLER,
                    username,
                    role = role.to_string(),
                    serial = certificate.serial.to_string(),
                    request = request.name_any(),
                    "Operator logged in"
                );
                Ok(())
            }
            RequestDecision::Refuse(refusal) => {
                self.write_status(request, &failed(request, &refusal)).await?;
                tracing::warn!(
                    target: CONTROLLER,
                    reason = refusal.reason().as_str(),
                    username = request.spec.username,
                    request = request.name_any(),
                    "Request for a certificate refused: {refusal}"
                );
                Ok(())
            }
        }
    }

    /// Issues and records a certificate.
    async fn issue(self: &Arc<Self>, approved: OperatorRequest) -> Result<Issued, AnswerError> {
        let answer = blocking(self, move |signer| {
            let OperatorRequest { role, username, csr_der, lifetime } = approved;
            let name = certificate_name(&username);
            let authority = signer.registration.authority();
            let issued = authority.sign_operator(&csr_der, role, &name, lifetime);
            let issued = issued.map_err(HomeError::Authority)?;
            signer.operators.note(role, &username, &issued)?;
            // One file that cannot be read prevents no login.
            if let Err(error) = signer.operators.remove_expired(Timestamp::now()) {
                let reason = error.reason().as_str();
                tracing::warn!(
                    reason,
                    "Failed to remove expired operators: {}",
                    error_chain(&error)
                );
            }
            Ok(issued)
        });
        answer.await.map_err(AnswerError::Home)
    }

    /// Writes the status of the version that was decided on.
    async fn write_status(
        &self,
        request: &CertificateSigningRequest,
        status: &Value,
    ) -> Result<(), AnswerError> {
        let version = request.resource_version();
        let patch =
            Patch::Merge(json!({"metadata": {"resourceVersion": version}, "status": status}));
        let name = request.name_any();
        let written = self.requests().patch_status(&name, &PatchParams::default(), &patch).await;
        written.map(drop).map_err(AnswerError::Kubernetes)
    }
}

/// Returns the name in the certificate of a user: a hash, because a user name may contain characters that a SPIFFE id
/// may not.
fn certificate_name(username: &str) -> String {
    let digest = Digest::of(username.as_bytes()).hex();
    format!("user-{}", digest.get(..NAME_DIGITS).unwrap_or_default())
}

/// The status of a request that is refused: its conditions, and `Failed`.
fn failed(request: &CertificateSigningRequest, refusal: &RequestRefusal) -> Value {
    let conditions = request.status.as_ref().and_then(|status| status.conditions.clone());
    let mut conditions: Vec<Value> = conditions.into_iter().flatten().map(|c| json!(c)).collect();
    conditions.push(json!({
        "type": "Failed", "status": "True",
        "reason": refusal.reason().as_str(), "message": refusal.to_string(),
    }));
    json!({"conditions": conditions})
}

/// Failure to answer a request.
#[derive(Debug, thiserror::Error)]
enum AnswerError {
    #[error("failed to issue the certificate")]
    Home(#[source] HomeError),
    #[error("failed to write the status of the request")]
    Kubernetes(#[source] kube::Error),
}

impl AnswerError {
    fn reason(&self) -> Reason {
        match self {
            Self::Home(error) => error.reason(),
            Self::Kubernetes(error) => request_reason(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_names_a_hash_of_the_user() {
        let name = certificate_name("system:serviceaccount:ci:deployer");

        assert_eq!(name, certificate_name("system:serviceaccount:ci:deployer"));
        assert_ne!(name, certificate_name("system:serviceaccount:ci:deployer2"));
        assert!(
            name.len() == 37
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        );
    }
}
