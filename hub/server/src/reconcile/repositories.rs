//! The repositories of the fleet: how each is reached with what the hub holds for it, and whether its credential may
//! push. Blocks.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use attest_common::basics::ids::Timestamp;
use attest_common::basics::reason::Reason;
use attest_common::basics::text;
use attest_runtime::clock::now;
use attest_supply::source::{
    Credentials, GitSource, Login, Remote, RepositoryUrl, Resolved, SourceError, SshIdentity, Tree,
    UrlPolicy,
};

use crate::applications::view::Waiting;
use crate::core::Core;
use crate::core::store::StoreError;
use crate::core::store::records::{self, RepositoryRecord};

/// Validity of a check of a credential's write access, in seconds.
const PUSH_CHECK_INTERVAL_S: i64 = 24 * 60 * 60;
/// Delay before such a check is repeated after a failure, in seconds.
const PUSH_RETRY_INTERVAL_S: i64 = 60 * 60;

/// Reads repositories.
#[derive(Debug)]
pub(crate) struct Repositories {
    core: Arc<Core>,
    source: GitSource,
    pub(crate) urls: UrlPolicy,
}

impl Repositories {
    /// Reads repositories through `source`, those whose addresses `urls` allows.
    pub(crate) fn new(core: Arc<Core>, source: GitSource, urls: UrlPolicy) -> Self {
        Self { core, source, urls }
    }

    fn interrupt(&self) -> &Arc<AtomicBool> {
        self.core.stop.interrupt()
    }

    /// Returns a repository with the hub's credentials for it.
    pub(super) fn remote(&self, url: &str) -> Result<Remote, Waiting> {
        let parsed = RepositoryUrl::parse(url, &self.urls)
            .map_err(|error| Waiting::unknown(error.reason(), error.to_string()))?;
        let record = self
            .core
            .records
            .get::<RepositoryRecord>(parsed.normalised())
            .map_err(|error| Waiting::unknown(error.reason(), text::error_chain(&error)))?;
        let Some(record) = record else {
            return Ok(Remote {
                url: parsed,
                credentials: Credentials::default(),
                allow_loopback: false,
            });
        };
        if record.can_push == Some(true) && !record.allow_push_credential {
            let message = format!(
                "the credential for {url} may push, and who owns the hub must not make CI sign: \
                 give it read access only, then `attest gitops repo add` again (or --allow-push-credential)"
            );
            return Err(Waiting::unknown(Reason::CredentialCanPush, message));
        }
        Ok(remote(parsed, &record))
    }

    /// Asks a repository which commit `revision` names.
    pub(super) fn poll(&self, remote: &Remote, revision: &str) -> Result<Resolved, Waiting> {
        let answer = self.source.poll_and_receive(remote, revision, self.interrupt());
        answer.map_err(|error| unread(&error))
    }

    /// The wanted files of a commit.
    pub(super) fn fetch(
        &self,
        remote: &Remote,
        resolved: &Resolved,
        directories: &[&str],
    ) -> Result<Tree, Waiting> {
        let tree = self.source.fetch(remote, resolved, directories, self.interrupt());
        tree.map_err(|error| unread(&error))
    }

    /// Tries whether a repository can be read.
    pub(crate) fn try_to_read(&self, remote: &Remote) -> Result<(), SourceError> {
        match self.source.poll(remote, "HEAD", self.interrupt()) {
            // A new repository has no HEAD yet.
            Ok(_) | Err(SourceError::ReferenceNotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Tries whether the credentials may push. Nothing is changed.
    pub(crate) fn can_push(&self, remote: &Remote) -> Result<bool, SourceError> {
        self.source.can_push(remote, self.interrupt())
    }

    /// Asks again whether the hub's credentials may push, where the last answer is old enough. Returns whether any
    /// repository was asked.
    pub(super) fn check_push_credentials(&self) -> bool {
        let all = match self.core.records.all::<RepositoryRecord>() {
            Ok(all) => all,
            Err(error) => {
                log_push_unknown(&error, "the repositories cannot be read");
                return false;
            }
        };
        let mut asked = false;
        for record in all.iter().filter(|record| is_push_check_due(record, now())) {
            let Ok(url) = RepositoryUrl::parse(&record.address, &self.urls) else { continue };
            let remote = remote(url, record);
            let answer = self.can_push(&remote);
            if self.core.stop.is_cancelled() {
                return false;
            }
            asked = true;
            if let Err(error) = self.note_push_answer(record, answer) {
                log_push_unknown(&error, &record.url);
            }
        }
        asked
    }

    /// Keeps what was answered for the credentials of `asked`, unless they were changed or removed since.
    fn note_push_answer(
        &self,
        asked: &RepositoryRecord,
        answer: Result<bool, SourceError>,
    ) -> Result<(), StoreError> {
        let stored = self.core.records.stored::<RepositoryRecord>(&asked.url)?;
        let Some(stored) = stored else { return Ok(()) };
        if credentials(&stored.value) != credentials(asked) {
            return Ok(());
        }
        let mut record = stored.value.clone();
        match answer {
            Ok(can_push) => (record.can_push, record.problem) = (Some(can_push), None),
            Err(error) => {
                record.problem = Some((error.reason().into(), text::error_chain(&error)));
            }
        }
        record.checked_at = Some(now());
        match self.core.records.commit("repository", &[records::replace(&stored, &record)]) {
            // Another writer was faster and asked with what is there now.
            Err(StoreError::Conflict { .. }) => Ok(()),
            done => done,
        }
    }
}

fn log_push_unknown(error: &StoreError, what: &str) {
    tracing::error!(
        reason = error.reason().as_str(),
        "Whether credentials may push is not known: {what}: {}",
        text::error_chain(error)
    );
}

fn unread(error: &SourceError) -> Waiting {
    Waiting::unknown(error.reason(), text::error_chain(error))
}

/// Returns how a registered repository is reached.
pub(crate) fn remote(url: RepositoryUrl, record: &RepositoryRecord) -> Remote {
    Remote { url, credentials: credentials(record), allow_loopback: record.allow_loopback }
}

/// The credentials that a record holds.
fn credentials(record: &RepositoryRecord) -> Credentials {
    let login = record.username.clone().zip(record.password.clone());
    let ssh = record.ssh_key.clone().zip(record.known_hosts.clone());
    Credentials {
        login: login.map(|(username, password)| Login { username, password }),
        ssh: ssh.map(|(key, hosts)| SshIdentity {
            private_key: key.into_bytes(),
            known_hosts: hosts.into_bytes(),
        }),
        ca_pem: record.ca.clone().map(String::into_bytes),
    }
}

/// Counts from the last answer, so that a hub that starts often asks no less.
fn is_push_check_due(record: &RepositoryRecord, now: Timestamp) -> bool {
    let unanswered = record.can_push.is_none() || record.problem.is_some();
    let interval_s = if unanswered { PUSH_RETRY_INTERVAL_S } else { PUSH_CHECK_INTERVAL_S };
    let age_s = record.checked_at.map(|at| now.as_second().saturating_sub(at.as_second()));
    // A time to come is that of a clock which was wrong.
    age_s.is_none_or(|age_s| age_s < 0 || age_s >= interval_s)
}

#[cfg(test)]
pub(super) mod tests;
