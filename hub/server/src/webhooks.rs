//! Receiver for the webhooks of GitHub, GitLab, Gitea and Forgejo: a signed push polls its repository now.
//!
//! A request carries no data into the hub but the address of a repository that the hub knows already. Plain HTTP; TLS is
//! terminated in front of it.

mod repository;
mod signature;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use attest_common::basics::rate::{RateLimit, RateLimiter};
use attest_common::basics::reason::Reason;
use attest_runtime::probes;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::routing::post;
use http::{HeaderMap, StatusCode};
use tokio::net::TcpListener;

use crate::core::blocking::blocking;
use crate::core::configuration::WebhookSecret;
use crate::core::store::StoreError;
use crate::core::store::records::ApplicationRecord;
use crate::core::{CONTROLLER, Core};
use crate::reconcile::waker::Waker;
use repository::{Location, pushed_repositories};
use signature::{SignatureError, verify};

/// Largest body in bytes. GitHub sends up to 25 MB; the address of the repository of a push is in far smaller ones.
const BODY_BYTES_MAX: usize = 5 * 1024 * 1024;
/// Size up to which every body is verified, so that a flood of unsigned requests refuses no signed push.
const SMALL_BODY_BYTES_MAX: usize = 256 * 1024;
/// Most larger bodies that are verified, so that a flood leaves processors to everything else.
const LARGE_BODY_RATE: RateLimit = RateLimit::one_every(20, Duration::from_millis(100));
/// Most signed pushes that take effect. Passes over one application never run concurrently, and requests for them merge.
const PUSH_RATE: RateLimit = RateLimit::one_every(20, Duration::from_millis(100));
/// Largest file with the key, in bytes.
const SECRET_BYTES_MAX: u64 = 4096;

/// State of the receiver.
#[derive(Debug)]
pub(crate) struct Webhooks {
    core: Arc<Core>,
    waker: Arc<Waker>,
    /// File with the key; takes precedence over the ConfigMap.
    secret_file: Option<PathBuf>,
    large_bodies: RateLimiter,
    pushes: RateLimiter,
}

impl Webhooks {
    pub(crate) fn new(core: Arc<Core>, waker: Arc<Waker>, secret_file: Option<PathBuf>) -> Self {
        let (large_bodies, pushes) =
            (RateLimiter::new(LARGE_BODY_RATE), RateLimiter::new(PUSH_RATE));
        Self { core, waker, secret_file, large_bodies, pushes }
    }

    /// The key: that of the mounted Secret, else that of the ConfigMap. Blocks.
    fn secret(&self) -> Option<WebhookSecret> {
        let file = self.secret_file.as_ref().filter(|file| {
            file.metadata().is_ok_and(|metadata| metadata.len() <= SECRET_BYTES_MAX)
        });
        let mounted = file.and_then(|file| std::fs::read_to_string(file).ok());
        let mounted = mounted.and_then(|text| WebhookSecret::new(text.trim_end().to_owned()));
        mounted.or_else(|| self.core.configuration.get().webhook_secret.clone())
    }

    /// Returns the names of applications whose repository is one of these. Blocks.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn applications_of(&self, locations: &[Location]) -> Result<Vec<String>, StoreError> {
        let records: Vec<ApplicationRecord> = self.core.records.all()?;
        let concerned = records.iter().filter(|record| {
            let own = Location::parse(&record.application.repo_url);
            !record.deleting && own.is_some_and(|own| locations.contains(&own))
        });
        Ok(concerned.map(|record| record.application.name.to_string()).collect())
    }
}

/// Serves webhooks until the hub stops.
pub(crate) async fn serve(webhooks: Arc<Webhooks>, listener: TcpListener) {
    let stop = webhooks.core.stop.token();
    let router = Router::new()
        .fallback(post(receive))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(webhooks);
    stop.run_until_cancelled(probes::serve_router(listener, router)).await;
}

/// Answers one webhook. An unauthenticated client learns nothing about the hub.
async fn receive(
    State(webhooks): State<Arc<Webhooks>>,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, &'static str) {
    if body.len() > SMALL_BODY_BYTES_MAX && !webhooks.large_bodies.allows(Instant::now()) {
        return (StatusCode::TOO_MANY_REQUESTS, "too many requests\n");
    }
    let Some(secret) = blocking(&webhooks, Webhooks::secret).await else {
        return refuse(&SignatureError::NoSecret);
    };
    if let Err(error) = verify(&headers, &body, &secret) {
        return refuse(&error);
    }
    let locations = pushed_repositories(&body);
    if locations.is_empty() {
        return (StatusCode::OK, "no repository in this event\n");
    }
    if !webhooks.pushes.allows(Instant::now()) {
        return (StatusCode::TOO_MANY_REQUESTS, "too many pushes\n");
    }
    let found = blocking(&webhooks, move |webhooks| webhooks.applications_of(&locations)).await;
    let names = match found {
        Ok(names) => names,
        Err(error) => {
            let reason = error.reason().as_str();
            tracing::warn!(reason, "Failed to look for the applications of a push: {error}");
            return (StatusCode::SERVICE_UNAVAILABLE, "the hub cannot read its store\n");
        }
    };
    for name in &names {
        webhooks.waker.request(name, false);
        tracing::info!(target: CONTROLLER, application = name, "Push announced by webhook");
    }
    if names.is_empty() {
        return (StatusCode::OK, "no application uses this repository\n");
    }
    (StatusCode::ACCEPTED, "accepted\n")
}

fn refuse(error: &SignatureError) -> (StatusCode, &'static str) {
    tracing::debug!(reason = Reason::WebhookUnsigned.as_str(), "Webhook refused: {error}");
    match error {
        SignatureError::NoSecret => (StatusCode::SERVICE_UNAVAILABLE, "no key is configured\n"),
        SignatureError::Missing | SignatureError::Invalid => {
            (StatusCode::UNAUTHORIZED, "the signature is missing or invalid\n")
        }
    }
}
