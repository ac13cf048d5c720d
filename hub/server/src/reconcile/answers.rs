//! Results of polls, shared by the applications that follow the same revision of a repository.
//!
//! Only scheduled polls are answered from here. A request of an operator polls the repository itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use attest_common::basics::locked::Locked;
use attest_supply::source::{Remote, Resolved};

use super::queue::JITTER_PERCENT;
use crate::applications::view::Waiting;

/// Validity of a shared answer, in percent of the poll interval. More than the jitter, so that applications that shared
/// an answer share the next one.
pub(super) const SHARED_PERCENT_MAX: u32 = 25;

const _: () = assert!(JITTER_PERCENT < SHARED_PERCENT_MAX);

/// The newest answers by address and revision. Expired answers are dropped.
#[derive(Debug)]
pub(crate) struct Answers {
    age_max: Duration,
    kept: Locked<Kept>,
}

#[derive(Debug)]
struct Kept {
    entries: BTreeMap<(String, String), Entry>,
    /// When expired entries were dropped last.
    swept: Instant,
}

/// Locked during the poll.
type Entry = Arc<Locked<Option<Answer>>>;

/// Result of one poll.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// The repository and the credentials used.
    remote: Remote,
    /// Start of the poll. Later changes are not reflected.
    pub(crate) asked: Instant,
    pub(crate) answered: Instant,
    pub(crate) result: Result<Resolved, Waiting>,
}

impl Answer {
    /// Polls with `poll`.
    pub(crate) fn of(remote: &Remote, poll: impl FnOnce() -> Result<Resolved, Waiting>) -> Self {
        let asked = Instant::now();
        let result = poll();
        Self { remote: remote.clone(), asked, answered: Instant::now(), result }
    }
}

impl Answers {
    pub(super) fn new(interval: Duration) -> Self {
        let kept = Kept { entries: BTreeMap::new(), swept: Instant::now() };
        Self { age_max: interval * SHARED_PERCENT_MAX / 100, kept: Locked::new(kept) }
    }

    /// Returns the shared answer of `remote` if it is valid, was polled with the same credentials, and not before
    /// `newest`; otherwise polls with `poll`. Concurrent callers wait for that poll.
    pub(crate) fn shared(
        &self,
        remote: &Remote,
        revision: &str,
        newest: Option<Instant>,
        poll: impl FnOnce() -> Result<Resolved, Waiting>,
    ) -> Answer {
        let entry = self.entry((remote.url.address(), revision.to_owned()));
        let mut kept = entry.lock();
        let valid = kept.as_ref().filter(|answer| {
            answer.remote == *remote
                && answer.answered.elapsed() <= self.age_max
                && newest.is_none_or(|newest| newest <= answer.asked)
        });
        if let Some(answer) = valid {
            return answer.clone();
        }
        let answer = Answer::of(remote, poll);
        *kept = Some(answer.clone());
        answer
    }

    /// Returns the entry of `key`. Drops expired entries, once for each period of validity.
    fn entry(&self, key: (String, String)) -> Entry {
        let mut kept = self.kept.lock();
        if kept.swept.elapsed() >= self.age_max {
            kept.entries.retain(|_, entry| self.is_kept(entry));
            kept.swept = Instant::now();
        }
        Arc::clone(kept.entries.entry(key).or_default())
    }

    fn is_kept(&self, entry: &Entry) -> bool {
        // A locked entry is being polled.
        entry.try_lock().is_none_or(|answer| {
            Arc::strong_count(entry) > 1
                || answer.as_ref().is_some_and(|a| a.answered.elapsed() <= self.age_max)
        })
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
            answers.shared(&remote(password), revision, newest, ask).result.unwrap().commit
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
        assert_eq!(answers.kept.lock().entries.len(), 1);
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
            threads.map(|thread| thread.join().unwrap().result.unwrap().commit).collect::<Vec<_>>()
        });

        assert_eq!(said, ["1"; 10]);
    }
}
