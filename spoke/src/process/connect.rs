//! Keeps the connection to the hub: which of joining and a session comes next, and when.

use std::time::{Duration, SystemTime};

use attest_common::basics::text::error_chain;
use attest_common::session::RECONNECT_MIN_MS;
use attest_runtime::clock::random;

use crate::http::Readiness;
use crate::session::join::{self, JoinEndpoint};
use crate::session::link::Link;
use crate::session::quic::LinkError;
use crate::session::reconnect::reconnect_ms;
use crate::trust::identity::Membership;

/// Keeps this spoke connected to its hub: joins while there is no certificate that counts, and holds sessions otherwise.
pub async fn connect(mut link: Link, mut endpoint: JoinEndpoint, readiness: Readiness) {
    loop {
        join::run(&mut link, &mut endpoint, &readiness).await;
        readiness.joined(Ok(()));
        sessions(&mut link, &mut endpoint).await;
    }
}

/// Keeps a session with the hub for as long as the certificate lasts, or another one comes by a token at the door.
async fn sessions(link: &mut Link, endpoint: &mut JoinEndpoint) {
    let mut attempt = 0;
    let mut window_ms = 0;
    while link.identity.membership(SystemTime::now()) == Membership::Member {
        link.note_certificate();
        let outcome = link.session(&mut attempt, &mut window_ms).await;
        link.metrics.connected.set(0);
        let Err(error) = outcome;
        let wait_ms = if matches!(error, LinkError::Renewed | LinkError::PolicyChanged) {
            RECONNECT_MIN_MS
        } else {
            reconnect_ms(attempt, window_ms, random())
        };
        tracing::warn!(
            reason = error.reason(),
            error = %error_chain(&error),
            wait_ms,
            "No session with the hub"
        );
        attempt = attempt.saturating_add(1);
        if matches!(error, LinkError::NotAdmitted(_)) {
            join::again(link, endpoint).await;
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(wait_ms)) => {}
            // Another policy may pin another hub, which did not ask for this wait.
            Ok(()) = link.trust.changed() => {}
        }
    }
}

#[cfg(test)]
mod tests;
