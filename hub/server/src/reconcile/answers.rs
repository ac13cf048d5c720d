//! What repositories last said about a revision, for the polls of several applications that follow the same one.
//!
//! Only a poll that fell due is answered from here. An operator's question goes to the repository itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use attest_common::basics::locked::Locked;
use attest_supply::source::{Remote, Resolved};

use super::queue::JITTER_PERCENT;
use crate::applications::view::Waiting;

/// How long an answer is shared, as a share of the interval between polls. More than the jitter, so that applications
/// that were answered together ask together again.
pub(super) const SHARED_PERCENT_MAX: u32 = 25;

const _: () = assert!(JITTER_PERCENT < SHARED_PERCENT_MAX);

/// The newest answers, by address and revision; none is kept for longer than it is shared.
#[derive(Debug)]
pub(crate) struct Answers {
    age_max: Duration,
    kept: Locked<BTreeMap<(String, String), Entry>>,
}

/// Locked while it is asked for.
type Entry = Arc<Locked<Option<Answer>>>;

/// What a repository said.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// Who was asked, and with which credentials.
    remote: Remote,
    /// When it was asked: it says nothing about what happened since.
    pub(crate) asked: Instant,
    pub(crate) answered: Instant,
    pub(crate) said: Result<Resolved, Waiting>,
}

impl Answer {
    /// What `ask` says now.
    pub(crate) fn of(remote: &Remote, ask: impl FnOnce() -> Result<Resolved, Waiting>) -> Self {
        let asked = Instant::now();
        let said = ask();
        Self { remote: remote.clone(), asked, answered: Instant::now(), said }
    }
}

impl Answers {
    pub(super) fn new(interval: Duration) -> Self {
        Self { age_max: interval * SHARED_PERCENT_MAX / 100, kept: Locked::default() }
    }

    /// What `remote` said a moment ago, to a question with the same credentials that was not asked before `newest`; else
    /// what `ask` says now. Whoever wants to know the same meanwhile waits for it.
    pub(crate) fn shared(
        &self,
        remote: &Remote,
        revision: &str,
        newest: Option<Instant>,
        ask: impl FnOnce() -> Result<Resolved, Waiting>,
    ) -> Answer {
        let entry = self.entry((remote.url.address(), revision.to_owned()));
        let mut kept = entry.lock();
        let is_good = |answer: &&Answer| {
            answer.remote == *remote
                && answer.answered.elapsed() <= self.age_max
                && newest.is_none_or(|newest| newest <= answer.asked)
        };
        if let Some(answer) = kept.as_ref().filter(is_good) {
            return answer.clone();
        }
        let answer = Answer::of(remote, ask);
        *kept = Some(answer.clone());
        answer
    }

    /// Where an answer is kept. Those that are too old to be shared go.
    fn entry(&self, key: (String, String)) -> Entry {
        let mut kept = self.kept.lock();
        kept.retain(|_, entry| {
            // One that is locked is being asked for.
            entry.try_lock().is_none_or(|answer| {
                let is_young = |answer: &Answer| answer.answered.elapsed() <= self.age_max;
                Arc::strong_count(entry) > 1 || answer.as_ref().is_some_and(is_young)
            })
        });
        Arc::clone(kept.entry(key).or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::mpsc;

    use super::*;
    use attest_supply::source::{Credentials, Login, RepositoryUrl, UrlPolicy};

    const LONG: Duration = Duration::from_secs(3_600);

    fn remote(password: &str) -> Remote {
        let url = RepositoryUrl::parse("https://git.example/a", &UrlPolicy::default()).unwrap();
        let login = Some(Login { username: "hub".into(), password: password.into() });
        let credentials = Credentials { login, ..Credentials::default() };
        Remote { url, credentials, allow_loopback: false }
    }

    fn commit(number: u8) -> Result<Resolved, Waiting> {
        Ok(Resolved { commit: number.to_string(), reference: None })
    }

    #[test]
    fn an_answer_is_shared_by_those_who_ask_the_same_with_the_same_credentials_soon_after() {
        let answers = Answers::new(LONG);
        let asked = Cell::new(0_u8);
        let ask = || {
            asked.set(asked.get() + 1);
            commit(asked.get())
        };
        let says = |password: &str, revision: &str, newest| {
            answers.shared(&remote(password), revision, newest, ask).said.unwrap().commit
        };

        assert_eq!(says("old", "main", None), "1");
        assert_eq!(says("old", "main", None), "1");
        assert_eq!(says("old", "next", None), "2");
        // The credentials were changed or removed.
        assert_eq!(says("new", "main", None), "3");
        assert_eq!(says("old", "main", None), "4");
        // Somebody knows what was said later.
        assert_eq!(says("old", "main", Some(Instant::now())), "5");
        assert_eq!(says("old", "main", None), "5");
    }

    #[test]
    fn an_answer_that_is_too_old_is_neither_given_nor_kept() {
        let answers = Answers::new(Duration::ZERO);
        let asked = Cell::new(0_u8);
        for revision in ["main", "main", "next"] {
            answers.shared(&remote("a"), revision, None, || {
                asked.set(asked.get() + 1);
                commit(1)
            });
        }

        assert_eq!(asked.get(), 3);
        assert_eq!(answers.kept.lock().len(), 1);
    }

    #[test]
    fn who_asks_while_the_same_is_asked_waits_for_that_answer() {
        let answers = Answers::new(LONG);
        let (begun, begins) = mpsc::channel();
        let (go_on, goes_on) = mpsc::channel::<()>();

        let said = std::thread::scope(|scope| {
            let answers = &answers;
            let first = scope.spawn(move || {
                answers.shared(&remote("a"), "main", None, || {
                    begun.send(()).unwrap();
                    goes_on.recv().unwrap();
                    commit(1)
                })
            });
            begins.recv().unwrap();
            let others: Vec<_> = (0..9)
                .map(|_| scope.spawn(|| answers.shared(&remote("a"), "main", None, || commit(2))))
                .collect();
            go_on.send(()).unwrap();
            let threads = std::iter::once(first).chain(others);
            threads.map(|thread| thread.join().unwrap().said.unwrap().commit).collect::<Vec<_>>()
        });

        assert_eq!(said, ["1"; 10]);
    }
}
