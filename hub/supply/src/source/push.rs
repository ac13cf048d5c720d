//! Whether a credential could change the repository it is meant to read.
//!
//! Asked by the first step of a push, the advertisement, which changes nothing. Files never count: who owns the hub's
//! machine needs no credential there.

use std::io::Read as _;
use std::time::Duration;

use super::Remote;
use super::error::SourceError;
use super::transport::{Call, Service, client};
use super::url::Scheme;
use crate::text::one_line;

/// How much of an answer is looked at, in bytes.
const ANSWER_BYTES_MAX: u64 = 4096;
const ADVERTISEMENT: &str = "application/x-git-receive-pack-advertisement";

pub(crate) fn answered(
    remote: &Remote,
    call: &mut Call,
    time: Duration,
) -> Result<bool, SourceError> {
    match remote.url.scheme() {
        Scheme::Https | Scheme::Http => over_http(remote, call, time),
        Scheme::Ssh => over_ssh(remote, call),
        Scheme::File => Ok(false),
    }
}

fn over_http(remote: &Remote, call: &mut Call, time: Duration) -> Result<bool, SourceError> {
    let mut words = |error: &reqwest::Error| {
        let mut text = error.to_string();
        let mut next = std::error::Error::source(error);
        while let Some(error) = next {
            text = format!("{text}: {error}");
            next = error.source();
        }
        call.judge(&text, false)
    };
    let builder = reqwest::blocking::Client::builder();
    let client = client(builder, remote.credentials.ca_pem.as_deref(), time)
        .and_then(|builder| builder.https_only(remote.url.scheme() == Scheme::Https).build())
        .map_err(|error| words(&error))?;
    let address = format!("{}/info/refs?service={}", remote.url.address(), "git-receive-pack");
    let mut request = client.get(address);
    if let Some(login) = &remote.credentials.login {
        request = request.basic_auth(&login.username, Some(&login.password));
    }
    let answer = request.send().map_err(|error| words(&error))?;
    let status = answer.status();
    let kind = answer.headers().get(reqwest::header::CONTENT_TYPE);
    let is_advertisement = kind.is_some_and(|kind| kind.as_bytes() == ADVERTISEMENT.as_bytes());
    if status.is_success() {
        let mut start = Vec::new();
        let read = answer.take(ANSWER_BYTES_MAX).read_to_end(&mut start);
        read.map_err(|error| call.judge(&error.to_string(), false))?;
        return Ok(is_advertisement && !start.windows(4).any(|word| word == b"ERR "));
    }
    match status.as_u16() {
        401 | 403 | 404 => Ok(false),
        _ => Err(call.judge(&format!("Received HTTP status {}", status.as_u16()), false)),
    }
}

fn over_ssh(remote: &Remote, call: &mut Call) -> Result<bool, SourceError> {
    let (mut output, input) = call.program(remote, Service::Push)?;
    let mut head = [0_u8; 8];
    let answered = output.read_exact(&mut head).is_ok();
    drop(input);
    let (length, word) = head.split_at(4);
    if answered && length.iter().all(u8::is_ascii_hexdigit) {
        return Ok(word != b"ERR ");
    }
    let error = call.judge(&one_line(&String::from_utf8_lossy(&head)), false);
    // The server was reached, showed the known host key, and ended without letting us in.
    let refused = matches!(
        error,
        SourceError::AuthenticationFailed { .. }
            | SourceError::RepositoryNotFound { .. }
            | SourceError::Protocol { .. }
    );
    if refused { Ok(false) } else { Err(error) }
}
