//! Push check: whether a credential can change the repository that it reads.
//!
//! The check requests the advertisement, the first step of a push, which changes nothing. Files never count: the owner
//! of the hub's machine needs no credential for them.

use std::io::Read as _;
use std::time::Duration;

use super::Remote;
use super::error::SourceError;
use super::transport::{GitExchange, GitService, configure_client};
use super::url::Scheme;
use crate::text::one_line;

/// Maximum number of bytes of a response that are examined.
const RESPONSE_BYTES_MAX: u64 = 4096;
const ADVERTISEMENT: &str = "application/x-git-receive-pack-advertisement";

/// Returns whether the server offers `git-receive-pack` to the credentials of `remote`.
///
/// # Errors
/// [`SourceError`] if the server did not answer the question.
pub(crate) fn offers_push(
    remote: &Remote,
    exchange: &mut GitExchange,
    timeout: Duration,
) -> Result<bool, SourceError> {
    match remote.url.scheme() {
        Scheme::Https | Scheme::Http => offers_push_over_http(remote, exchange, timeout),
        Scheme::Ssh => offers_push_over_ssh(remote, exchange),
        Scheme::File => Ok(false),
    }
}

fn offers_push_over_http(
    remote: &Remote,
    exchange: &mut GitExchange,
    timeout: Duration,
) -> Result<bool, SourceError> {
    exchange.check_address(remote)?;
    let response = request_advertisement(remote, timeout)
        .map_err(|error| exchange.classify_message(&message_with_causes(&error)))?;
    let status = response.status();
    if status.is_success() {
        let content_type = response.headers().get(reqwest::header::CONTENT_TYPE);
        let is_advertisement =
            content_type.is_some_and(|value| value.as_bytes() == ADVERTISEMENT.as_bytes());
        let mut start = Vec::new();
        response
            .take(RESPONSE_BYTES_MAX)
            .read_to_end(&mut start)
            .map_err(|error| exchange.classify_message(&error.to_string()))?;
        return Ok(is_advertisement && !start.windows(4).any(|bytes| bytes == b"ERR "));
    }
    match status.as_u16() {
        401 | 403 | 404 => Ok(false),
        code => Err(exchange.classify_message(&format!("Received HTTP status {code}"))),
    }
}

fn request_advertisement(
    remote: &Remote,
    timeout: Duration,
) -> Result<reqwest::blocking::Response, reqwest::Error> {
    let builder = reqwest::blocking::Client::builder();
    let client = configure_client(builder, remote, timeout)?
        .https_only(remote.url.scheme() == Scheme::Https)
        .build()?;
    let address = format!("{}/info/refs?service=git-receive-pack", remote.url.address());
    let request = client.get(address);
    match &remote.credentials.login {
        Some(login) => request.basic_auth(&login.username, Some(&login.password)).send(),
        None => request.send(),
    }
}

/// Unlike [`attest_common::basics::text::error_chain`], it is not cut: the last cause identifies the failure.
fn message_with_causes(error: &reqwest::Error) -> String {
    let mut message = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        message.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    message
}

fn offers_push_over_ssh(remote: &Remote, exchange: &mut GitExchange) -> Result<bool, SourceError> {
    let (mut output, input) = exchange.spawn_program(remote, GitService::ReceivePack)?;
    let mut start = [0_u8; 8];
    let has_answered = output.read_exact(&mut start).is_ok();
    drop(input);
    let (length, content) = start.split_at(4);
    if has_answered && length.iter().all(u8::is_ascii_hexdigit) {
        return Ok(content != b"ERR ");
    }
    let error = exchange.classify_message(&one_line(&String::from_utf8_lossy(&start)));
    // The server has the known host key and denied the request.
    let is_denied = matches!(
        error,
        SourceError::AuthenticationFailed { .. }
            | SourceError::RepositoryNotFound { .. }
            | SourceError::Protocol { .. }
    );
    if is_denied { Ok(false) } else { Err(error) }
}
