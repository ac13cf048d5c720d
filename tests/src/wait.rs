//! Polling until a condition holds.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::bail;

/// Polling interval of [`until`].
pub const POLL_EVERY: Duration = Duration::from_millis(50);

/// Polls `ask` until it returns a value.
///
/// # Errors
/// When `limit` has passed; the error names `what` and the last error of `ask`.
pub async fn until<T, F, Fut>(what: &str, limit: Duration, mut ask: F) -> anyhow::Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = anyhow::Result<Option<T>>>,
{
    let start = Instant::now();
    let mut last = None;
    loop {
        match ask().await {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => {}
            Err(error) => last = Some(error),
        }
        if start.elapsed() >= limit {
            match last {
                Some(error) => {
                    return Err(error.context(format!("waited {limit:?} for {what}; last error")));
                }
                None => bail!("waited {limit:?} for {what}"),
            }
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
}
