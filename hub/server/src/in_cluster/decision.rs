//! The decision on one CertificateSigningRequest. Pure.

use std::time::Duration;

use attest_certs::OperatorRole;
use attest_certs::request::{RequestError, RequestedKey};
use attest_common::basics::reason::Reason;
use attest_documents::login::{
    LIFETIME_DEFAULT_S, LIFETIME_MAX_S, LIFETIME_MIN_S, OPERATOR_SIGNER, USAGES, VIEWER_SIGNER,
};
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition,
};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject as _;

/// Longest user name that is signed, in characters.
const USERNAME_CHARACTERS_MAX: usize = 512;

/// Decision on a request.
#[derive(Debug)]
pub(super) enum RequestDecision {
    /// For another signer, not approved, or answered already.
    Ignore,
    Sign(OperatorRequest),
    Refuse(RequestRefusal),
}

/// An approved request.
#[derive(Debug)]
pub(super) struct OperatorRequest {
    pub(super) role: OperatorRole,
    /// User name of the requester, as the API server authenticated it.
    pub(super) username: String,
    pub(super) csr_der: Vec<u8>,
    pub(super) lifetime: Duration,
}

/// Returns the name of the signer of a role.
pub(super) fn signer_of(role: OperatorRole) -> &'static str {
    match role {
        OperatorRole::Operator => OPERATOR_SIGNER,
        OperatorRole::Viewer => VIEWER_SIGNER,
    }
}

/// Decides on a request.
pub(super) fn decide(request: &CertificateSigningRequest) -> RequestDecision {
    let roles = [OperatorRole::Operator, OperatorRole::Viewer];
    let role = roles.into_iter().find(|role| request.spec.signer_name == signer_of(*role));
    let (Some(role), true) = (role, awaits_signature(request)) else {
        return RequestDecision::Ignore;
    };
    match check(request, role) {
        Ok(approved) => RequestDecision::Sign(approved),
        Err(refusal) => RequestDecision::Refuse(refusal),
    }
}

/// Returns whether the request is approved, not denied or failed, and without certificate.
fn awaits_signature(request: &CertificateSigningRequest) -> bool {
    let Some(status) = &request.status else { return false };
    let conditions = status.conditions.as_deref().unwrap_or_default();
    status.certificate.is_none()
        && is_set(conditions, "Approved")
        && !is_set(conditions, "Denied")
        && !is_set(conditions, "Failed")
}

fn is_set(conditions: &[CertificateSigningRequestCondition], kind: &str) -> bool {
    conditions.iter().any(|condition| condition.type_ == kind && condition.status != "False")
}

fn check(
    request: &CertificateSigningRequest,
    role: OperatorRole,
) -> Result<OperatorRequest, RequestRefusal> {
    let spec = &request.spec;
    let mut usages: Vec<&str> = spec.usages.iter().flatten().map(String::as_str).collect();
    usages.sort_unstable();
    if usages != USAGES {
        return Err(RequestRefusal::Usages);
    }
    let asked_s = spec.expiration_seconds.map_or(Ok(LIFETIME_DEFAULT_S), u32::try_from);
    let lifetime_s = asked_s.ok().filter(|s| (LIFETIME_MIN_S..=LIFETIME_MAX_S).contains(s));
    let lifetime_s = lifetime_s.ok_or(RequestRefusal::Lifetime)?;
    let username = spec.username.clone().unwrap_or_default();
    if username.is_empty() || username.chars().count() > USERNAME_CHARACTERS_MAX {
        return Err(RequestRefusal::Username);
    }
    let csr_der = CertificateSigningRequestDer::from_pem_slice(&spec.request.0);
    let csr_der = csr_der.map_err(|_| RequestRefusal::Request(RequestError::Malformed))?;
    RequestedKey::from_csr_der(&csr_der).map_err(RequestRefusal::Request)?;
    let lifetime = Duration::from_secs(lifetime_s.into());
    Ok(OperatorRequest { role, username, csr_der: csr_der.as_ref().to_vec(), lifetime })
}

/// Reason that an approved request is not signed.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestRefusal {
    #[error("usages must be exactly `client auth` and `digital signature`")]
    Usages,
    #[error("expirationSeconds must be between {LIFETIME_MIN_S} and {LIFETIME_MAX_S}")]
    Lifetime,
    #[error("the user name is empty or longer than {USERNAME_CHARACTERS_MAX} characters")]
    Username,
    #[error(transparent)]
    Request(RequestError),
}

impl RequestRefusal {
    /// Returns the reason to show.
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::Usages => Reason::KeyUsage,
            Self::Lifetime => Reason::RequestLifetime,
            Self::Username => Reason::RequestUsername,
            Self::Request(error) => error.reason(),
        }
    }
}

#[cfg(test)]
mod tests {
    use attest_certs::SigningRequest;
    use serde_json::{Value, json};

    use super::*;

    /// An approved request of an operator, with a change.
    fn request(change: impl FnOnce(&mut Value)) -> CertificateSigningRequest {
        let key = SigningRequest::generate().unwrap();
        let pem = data_encoding::BASE64.encode(key.csr_pem().as_bytes());
        let mut request = json!({
            "metadata": {"name": "login"},
            "spec": {
                "request": pem, "signerName": OPERATOR_SIGNER, "username": "ada@example.com",
                "usages": ["digital signature", "client auth"], "expirationSeconds": 3600,
            },
            "status": {"conditions": [{"type": "Approved", "status": "True"}]},
        });
        change(&mut request);
        serde_json::from_value(request).unwrap()
    }

    #[test]
    fn an_approved_request_is_signed_for_the_user_of_the_api_server() {
        let decision = decide(&request(|_| {}));

        let RequestDecision::Sign(approved) = decision else { panic!("{decision:?}") };
        assert_eq!(approved.role, OperatorRole::Operator);
        assert_eq!(approved.username, "ada@example.com");
        assert_eq!(approved.lifetime, Duration::from_secs(3600));

        let viewer = request(|request| {
            request["spec"]["signerName"] = VIEWER_SIGNER.into();
            request["spec"].as_object_mut().unwrap().remove("expirationSeconds");
        });
        let decision = decide(&viewer);
        let RequestDecision::Sign(approved) = decision else { panic!("{decision:?}") };
        assert_eq!(approved.role, OperatorRole::Viewer);
        assert_eq!(approved.lifetime, Duration::from_secs(LIFETIME_DEFAULT_S.into()));
    }

    #[test]
    fn a_request_that_is_not_for_this_hub_to_answer_is_ignored() {
        let cases: [(&str, Value); 7] = [
            ("/spec/signerName", json!("kubernetes.io/kube-apiserver-client")),
            ("/spec/signerName", json!("attest.continuu.ms/operators")),
            ("/status", json!({})),
            ("/status/conditions", json!([{"type": "Approved", "status": "False"}])),
            ("/status/conditions/0/type", json!("Denied")),
            (
                "/status",
                json!({
                    "conditions": [{"type": "Approved", "status": "True"}], "certificate": "UEVN",
                }),
            ),
            (
                "/status/conditions",
                json!([
                    {"type": "Approved", "status": "True"}, {"type": "Failed", "status": "True"},
                ]),
            ),
        ];
        for (field, value) in cases {
            let changed = request(|request| *request.pointer_mut(field).unwrap() = value.clone());
            let decision = decide(&changed);

            assert!(matches!(decision, RequestDecision::Ignore), "{field} {value}: {decision:?}");
        }
    }

    #[test]
    fn an_approved_request_that_asks_for_something_else_is_refused() {
        let garbage = data_encoding::BASE64.encode(b"garbage");
        let cases: [(&str, Value, &str); 10] = [
            ("/spec/usages", json!(["client auth"]), "KeyUsage"),
            (
                "/spec/usages",
                json!(["client auth", "digital signature", "server auth"]),
                "KeyUsage",
            ),
            (
                "/spec/usages",
                json!(["client auth", "client auth", "digital signature"]),
                "KeyUsage",
            ),
            ("/spec/usages", json!(["cert sign", "digital signature"]), "KeyUsage"),
            ("/spec/expirationSeconds", json!(599), "RequestLifetime"),
            ("/spec/expirationSeconds", json!(30 * 24 * 3600 + 1), "RequestLifetime"),
            ("/spec/expirationSeconds", json!(-1), "RequestLifetime"),
            ("/spec/username", json!(""), "RequestUsername"),
            ("/spec/username", json!("a".repeat(USERNAME_CHARACTERS_MAX + 1)), "RequestUsername"),
            ("/spec/request", json!(garbage), "MalformedRequest"),
        ];
        for (field, value, reason) in cases {
            let changed = request(|request| *request.pointer_mut(field).unwrap() = value.clone());
            let decision = decide(&changed);

            let RequestDecision::Refuse(refusal) = decision else {
                panic!("{field}: {decision:?}")
            };
            assert_eq!(refusal.reason().as_str(), reason, "{field} {value}");
        }
    }

    #[test]
    fn a_request_for_a_key_that_the_requester_does_not_hold_is_refused() {
        let key = SigningRequest::generate().unwrap();
        let mut der = key.csr_der;
        *der.last_mut().unwrap() ^= 1;
        let pem = attest_certs::request::csr_pem(&der);

        let decision = decide(&request(|request| {
            request["spec"]["request"] = data_encoding::BASE64.encode(pem.as_bytes()).into();
        }));

        let RequestDecision::Refuse(refusal) = decision else { panic!("{decision:?}") };
        assert_eq!(refusal.reason().as_str(), "RequestRefused");
    }
}
