//! Keeps the connection to the hub: decides between joining and a session, and when to reconnect.

use std::time::{Duration, SystemTime};

use attest_common::basics::text::error_chain;
use attest_common::session::RECONNECT_MIN_MS;
use attest_common::session::reconnect::reconnect_ms;
use attest_runtime::clock::random;

use crate::http::Readiness;
use crate::session::join::{self, JoinEndpoint};
use crate::session::link::Link;
use crate::session::quic::LinkError;
use crate::trust::identity::Membership;

/// Keeps this spoke connected to its hub: joins while it has no valid certificate, and runs sessions otherwise.
pub async fn connect(mut link: Link, mut endpoint: JoinEndpoint, readiness: Readiness) {
    loop {
        join::run(&mut link, &mut endpoint, &readiness).await;
        readiness.joined(Ok(()));
        sessions(&mut link, &mut endpoint).await;
    }
}

/// Runs sessions with the hub until the certificate expires. If the hub rejects it, tries to join with another token.
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
            reconnect_ms(error.ending(), attempt, window_ms, random())
        };
        tracing::warn!(
            reason = error.reason().as_str(),
            error = %error_chain(&error),
            wait_ms,
            "Session with the hub ended"
        );
        attempt = attempt.saturating_add(1);
        if matches!(error, LinkError::ClusterRejected(_)) {
            join::again(link, endpoint).await;
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(wait_ms)) => {}
            // Another policy may pin another hub, for which this delay is not meant.
            Ok(()) = link.trust.changed() => {}
        }
    }
}

#[cfg(test)]
mod tests;
