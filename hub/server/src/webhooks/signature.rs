//! Signatures of webhooks. Pure, and in constant time.

use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::HeaderMap;
use sha2::{Digest as _, Sha256};

use crate::core::configuration::WebhookSecret;

/// GitHub, and Gitea and Forgejo in addition to their own header: `sha256=<hex>`.
const GITHUB: &str = "x-hub-signature-256";
/// Gitea and Forgejo: `<hex>`.
const PLAIN: [&str; 2] = ["x-gitea-signature", "x-forgejo-signature"];
/// GitLab: the key itself.
const GITLAB: &str = "x-gitlab-token";

/// Reason that a webhook is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SignatureError {
    #[error("no key is configured; mount Secret attest-gitops-webhook")]
    NoSecret,
    #[error("no header of a known Git server carries a signature")]
    Missing,
    #[error("the signature is not that of the configured key")]
    Invalid,
}

/// Checks every signature that a request carries. One is required.
///
/// # Errors
/// When there is none, or one is wrong.
pub(super) fn verify(
    headers: &HeaderMap,
    body: &[u8],
    secret: &WebhookSecret,
) -> Result<(), SignatureError> {
    let github = headers.get_all(GITHUB).iter().map(|value| {
        let value = value.as_bytes().strip_prefix(b"sha256=");
        value.is_some_and(|hex| is_hmac(hex, body, secret))
    });
    let plain = PLAIN.iter().flat_map(|name| headers.get_all(*name));
    let plain = plain.map(|value| is_hmac(value.as_bytes(), body, secret));
    let gitlab = headers.get_all(GITLAB).iter();
    let gitlab = gitlab.map(|value| is_equal(value.as_bytes(), secret.as_bytes()));
    let mut found = Err(SignatureError::Missing);
    for is_valid in github.chain(plain).chain(gitlab) {
        if !is_valid {
            return Err(SignatureError::Invalid);
        }
        found = Ok(());
    }
    found
}

fn is_hmac(hex: &[u8], body: &[u8], secret: &WebhookSecret) -> bool {
    let Ok(mac) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) else { return false };
    let Ok(given) = HEXLOWER.decode(hex) else { return false };
    mac.chain_update(body).verify_slice(&given).is_ok()
}

/// Compares two texts by keyed digests, so that the time depends on neither.
fn is_equal(given: &[u8], expected: &[u8]) -> bool {
    let Ok(mac) = Hmac::<Sha256>::new_from_slice(&Sha256::digest(expected)) else { return false };
    let Ok(other) = Hmac::<Sha256>::new_from_slice(&Sha256::digest(expected)) else { return false };
    let given = mac.chain_update(given).finalize().into_bytes();
    other.chain_update(expected).verify_slice(&given).is_ok()
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(all: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in all {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn the_example_of_githubs_documentation_verifies() {
        let secret = WebhookSecret::new("It's a Secret to Everybody".to_owned()).unwrap();
        let digest = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let body = b"Hello, World!";
        let github = format!("sha256={digest}");
        for (all, expected) in [
            (&[("X-Hub-Signature-256", github.as_str())][..], Ok(())),
            (&[("X-Gitea-Signature", digest)], Ok(())),
            (&[("X-Forgejo-Signature", digest), ("X-Gitea-Signature", digest)], Ok(())),
            (&[("X-Gitlab-Token", "It's a Secret to Everybody")], Ok(())),
            (&[], Err(SignatureError::Missing)),
            (&[("X-Hub-Signature", "sha1=00")], Err(SignatureError::Missing)),
            (&[("X-Hub-Signature-256", digest)], Err(SignatureError::Invalid)),
            (&[("X-Hub-Signature-256", "sha256=")], Err(SignatureError::Invalid)),
            (&[("X-Gitea-Signature", "00")], Err(SignatureError::Invalid)),
            (&[("X-Gitlab-Token", "It's a Secret to Everybod")], Err(SignatureError::Invalid)),
            (&[("X-Gitlab-Token", "")], Err(SignatureError::Invalid)),
            // A second signature does not make up for a wrong one.
            (
                &[("X-Hub-Signature-256", github.as_str()), ("X-Gitlab-Token", "x")],
                Err(SignatureError::Invalid),
            ),
        ] {
            assert_eq!(verify(&headers(all), body, &secret), expected, "{all:?}");
        }
        let signed = headers(&[("X-Hub-Signature-256", &github)]);
        assert_eq!(verify(&signed, b"Hello, World?", &secret), Err(SignatureError::Invalid));
    }
}
