//! Event loop of the agent: pushes, changes of the policy, requests of workers, and retries.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::agent::{Agent, Retry};
use super::refused::Judgement;
use crate::session::push::Pushed;

/// Longest sleep of the agent.
const IDLE: Duration = Duration::from_secs(60 * 60);

impl Agent {
    /// Judges pushes and loads recorded plans. Returns only if a worker or a channel ends unexpectedly.
    pub(crate) async fn run(mut self, mut pushed: mpsc::Receiver<Pushed>) {
        self.trust.mark_changed();
        let handovers = self.shared.handovers.clone();
        self.shared.ledger.with_records(|records| handovers.restore(records));
        let (reloads, reevaluations) =
            (self.shared.reloads.clone(), self.shared.reevaluations.clone());
        let ledger = self.shared.ledger.clone();
        loop {
            let wake = self.next_wake().saturating_duration_since(Instant::now());
            tokio::select! {
                changed = self.trust.changed() => match changed {
                    Ok(()) => {
                        self.resume_all().await;
                        self.hasten_all(Instant::now());
                    }
                    Err(_) => return,
                },
                push = pushed.recv() => match push {
                    Some(push) => self.take(push).await,
                    None => return,
                },
                keys = reloads.requested() => for key in keys {
                    self.resume(&key).await;
                },
                requests = reevaluations.requested() => {
                    for (key, request) in requests {
                        self.note_request(&key, request, Instant::now());
                    }
                }
                () = ledger.changed() => self.follow_handovers(Instant::now()),
                () = tokio::time::sleep(wake) => self.retry().await,
                // A worker that has ended heals nothing: the process ends and is restarted.
                Some(_) = self.working.join_next(), if !self.working.is_empty() => return,
            }
        }
    }

    fn next_wake(&self) -> Instant {
        let retries = self.retries.values().map(|retry| retry.at);
        let refused = self.refused.values().map(|refused| refused.at);
        let soonest = retries.chain(refused).chain(self.unresumed.values().copied()).min();
        soonest.unwrap_or_else(|| Instant::now() + IDLE)
    }

    async fn retry(&mut self) {
        let now = Instant::now();
        let (resumes, pushes) = self.due(now);
        self.resume_each(resumes).await;
        for key in pushes {
            if let Some(Retry { directive, plan, attempt, .. }) = self.retries.remove(&key) {
                let attempt = attempt.saturating_add(1);
                self.decide(directive, plan, Judgement::Pushed { attempt }).await;
            }
        }
        self.reevaluate(now).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::agent::tests::agent;
    use crate::cluster::fake::FakeApi;
    use crate::session::link::PUSHES_MAX;

    #[tokio::test]
    async fn the_agent_ends_with_a_worker_so_that_the_process_begins_anew() {
        let fake = FakeApi::start().await;
        let mut agent = agent(&fake).await;
        let (_pushes, pushed) = mpsc::channel(PUSHES_MAX);
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        agent.working.spawn(async move { ended.await.unwrap() });
        let running = tokio::spawn(agent.run(pushed));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!running.is_finished());

        drop(end);

        tokio::time::timeout(Duration::from_secs(5), running).await.unwrap().unwrap();
    }
}
