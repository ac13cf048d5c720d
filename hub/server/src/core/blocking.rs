//! Runs blocking work on a blocking thread.

use std::sync::Arc;

/// Runs `work` with `shared` on a blocking thread.
pub async fn blocking<S, T>(shared: &Arc<S>, work: impl FnOnce(&S) -> T + Send + 'static) -> T
where
    S: Send + Sync + 'static,
    T: Send + 'static,
{
    let shared = shared.clone();
    match tokio::task::spawn_blocking(move || work(&shared)).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only when the runtime shuts down, and the caller with it.
            Err(_) => std::future::pending().await,
        },
    }
}
