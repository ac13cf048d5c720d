//! Waiting for something to become true, by asking again; nothing here sleeps blindly.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::bail;

/// How often [`until`] asks.
pub const POLL_EVERY: Duration = Duration::from_millis(50);

/// Asks until there is an answer.
///
/// # Errors
/// When `limit` has passed; the error names `what` and the last thing seen to be in the way.
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
