//! Git repositories as read by the hub and `attest run`: a revision becomes a commit, a commit becomes a [`Tree`].
//!
//! No work tree is checked out and no content of a repository is executed. Every call blocks and belongs on a blocking
//! thread. `recipe` and `render` interpret the files; the caller decides when to poll.

mod cache;
mod commit;
mod credentials;
mod error;
mod listing;
mod messages;
mod push;
mod revision;
mod transport;
mod tree;
mod url;
mod worktree;

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use gix::progress::Discard;
use gix::remote::Direction;
use sha2::{Digest as _, Sha256};

pub use credentials::{
    CREDENTIAL_BYTES_MAX, CredentialError, CredentialFiles, Credentials, Login, SshIdentity,
};
pub use error::SourceError;
pub(crate) use error::git_missing;
pub use revision::{REVISION_BYTES_MAX, Resolved};
pub use tree::{
    ATTEST_DIRECTORY, PATH_BYTES_MAX, PATH_DEPTH_MAX, RECEIPT_DIRECTORIES_MAX, RECIPE_FILE,
    RepositoryLimits, Tree, clean_directory,
};
pub use url::{RepositoryUrl, Scheme, URL_BYTES_MAX, UrlError, UrlPolicy};
pub use worktree::WorkTree;

use cache::RepositoryCache;
use listing::Listings;
use transport::{GitConnection, GitExchange, size_of_files};

/// Default time limit of one call, in seconds.
pub const TIMEOUT_SECONDS_DEFAULT: u64 = 60;
/// Maximum size of a cached repository, as a multiple of the maximum size of one fetch.
const CACHE_FACTOR: u64 = 2;

/// A repository and the credentials for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Address of the repository.
    pub url: RepositoryUrl,
    /// Credentials; the default is none.
    pub credentials: Credentials,
    /// Allows addresses of the own machine.
    pub allow_loopback: bool,
}

/// Returns `sourceRoot` from the bytes of an `attest.yaml`, or `None` if they are not a readable recipe.
pub type SourceRootOf = fn(&[u8]) -> Option<String>;

/// A connection whose server has listed its references and can send objects.
type PreparedFetch<'r> = gix::remote::fetch::Prepare<'static, 'r, GitConnection>;

/// The hash function that names the objects of a repository.
pub type ObjectFormat = gix::hash::Kind;

/// Part of a revision that is requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RevisionRequest {
    Reference,
    Commit,
}

/// Reads repositories through a cache directory. Shared by all threads.
#[derive(Debug)]
pub struct GitSource {
    cache: RepositoryCache,
    listings: Listings,
    source_root_of: SourceRootOf,
    limits: RepositoryLimits,
    timeout: Duration,
}

impl GitSource {
    /// Creates `cache_directory` on first use; its content may be removed at any time. `source_root_of` finds the
    /// directory that a repository declares as the root of its manifests.
    pub fn new(cache_directory: impl Into<PathBuf>, source_root_of: SourceRootOf) -> Self {
        Self {
            cache: RepositoryCache::new(cache_directory.into()),
            listings: Listings::default(),
            source_root_of,
            limits: RepositoryLimits::default(),
            timeout: Duration::from_secs(TIMEOUT_SECONDS_DEFAULT),
        }
    }

    /// Sets the limits for reading.
    #[must_use]
    pub fn with_limits(mut self, limits: RepositoryLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets the time limit of one call.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Resolves `revision` on the server: a branch, a tag, `HEAD`, a full reference name or a full commit id.
    ///
    /// References are listed and nothing is fetched. The call ends when `interrupt` becomes true; if an https server
    /// does not respond at that moment, it ends at the time limit.
    ///
    /// # Errors
    /// [`SourceError`]. A name that is both a branch and a tag is ambiguous, even if both are the same commit.
    pub fn poll(
        &self,
        remote: &Remote,
        revision: &str,
        interrupt: &Arc<AtomicBool>,
    ) -> Result<Resolved, SourceError> {
        self.resolve(remote, revision, RevisionRequest::Reference, interrupt)
    }

    /// Resolves `revision` as [`GitSource::poll`] does, and receives a new commit of a reference on the same connection,
    /// so that [`GitSource::fetch`] finds it in the cache. `fetch` requests a commit that was not received this way.
    ///
    /// While an https server lists the same commit, a poll is one request on a connection that is kept.
    ///
    /// # Errors
    /// [`SourceError`], also for a commit that is too large or takes too long.
    pub fn poll_and_receive(
        &self,
        remote: &Remote,
        revision: &str,
        interrupt: &Arc<AtomicBool>,
    ) -> Result<Resolved, SourceError> {
        self.resolve(remote, revision, RevisionRequest::Commit, interrupt)
    }

    /// Returns the files of a commit. Unless the cache has the commit, it is fetched without its history.
    ///
    /// It reads `attest.yaml`, `.attest/` (the newest [`RECEIPT_DIRECTORIES_MAX`] releases of each application), the
    /// `sourceRoot` that `attest.yaml` declares, and `directories`.
    ///
    /// # Errors
    /// [`SourceError`]; [`SourceError::PathMissing`] if the commit does not have one of `directories`.
    pub fn fetch(
        &self,
        remote: &Remote,
        resolved: &Resolved,
        directories: &[&str],
        interrupt: &Arc<AtomicBool>,
    ) -> Result<Tree, SourceError> {
        let format = revision::object_id(&resolved.commit)?.kind();
        let path = self.cache.path_of(&remote.url.address(), format);
        let lock = self.cache.write_lock(&path);
        let _write_guard = lock.lock();
        if self.is_cache_oversized(&path) {
            self.cache.recreate(&path, format)?;
        }
        let had_content = self.cache.has_content(&path);
        match self.fetch_into(&path, remote, resolved, directories, interrupt) {
            // A full disk or a killed process leaves an incomplete cache: repeat with an empty one.
            Err(SourceError::Files { .. } | SourceError::Protocol { .. }) if had_content => {
                self.cache.recreate(&path, format)?;
                self.fetch_into(&path, remote, resolved, directories, interrupt)
            }
            result => result,
        }
    }

    /// Returns whether the server would allow the credentials to push. Nothing is changed. Files never count.
    ///
    /// # Errors
    /// [`SourceError`] if the server did not answer the question.
    pub fn can_push(
        &self,
        remote: &Remote,
        interrupt: &Arc<AtomicBool>,
    ) -> Result<bool, SourceError> {
        let mut exchange = GitExchange::start(&remote.url, self.timeout, interrupt);
        push::offers_push(remote, &mut exchange, self.timeout)
    }

    fn resolve(
        &self,
        remote: &Remote,
        revision: &str,
        request: RevisionRequest,
        interrupt: &Arc<AtomicBool>,
    ) -> Result<Resolved, SourceError> {
        revision::check_revision(revision)?;
        let address = remote.url.address();
        let expected = self.cache.format_of(&address);
        match self.resolve_in(expected, remote, revision, request, interrupt) {
            Err(SourceError::ObjectFormat { format, .. }) => {
                self.cache.set_format(&address, format);
                self.resolve_in(format, remote, revision, request, interrupt)
            }
            result => result,
        }
    }

    /// Resolves `revision` with the cached repository of this object format.
    ///
    /// # Errors
    /// [`SourceError::ObjectFormat`] if the server has another one.
    fn resolve_in(
        &self,
        format: ObjectFormat,
        remote: &Remote,
        revision: &str,
        request: RevisionRequest,
        interrupt: &Arc<AtomicBool>,
    ) -> Result<Resolved, SourceError> {
        let candidates = revision::reference_candidates(revision);
        if request == RevisionRequest::Commit
            && let Some(resolved) = self.listings.unchanged(remote, revision, &candidates)
        {
            return Ok(resolved);
        }
        let mut exchange = GitExchange::start(&remote.url, self.timeout, interrupt);
        let resolved =
            self.exchange(format, (remote, revision), &candidates, request, &mut exchange)?;
        if request == RevisionRequest::Commit {
            self.listings.note(remote, exchange.address(), revision, &resolved);
        }
        Ok(resolved)
    }

    /// Resolves `revision` by a complete exchange, and receives its commit on request.
    fn exchange(
        &self,
        format: ObjectFormat,
        (remote, revision): (&Remote, &str),
        candidates: &[String],
        request: RevisionRequest,
        exchange: &mut GitExchange,
    ) -> Result<Resolved, SourceError> {
        let path = self.cache.path_of(&remote.url.address(), format);
        let lock = self.cache.write_lock(&path);
        let repository = {
            // Opening may recreate the repository, which must not happen during a fetch into it.
            let _write_guard = lock.lock();
            self.cache.open_or_create(&path, format)?
        };
        let specs: Vec<String> = candidates.iter().map(|name| fetch_refspec(name, name)).collect();
        let prepared = prepare_fetch(&repository, remote, &specs, exchange)?;
        let listed = listed_references(&prepared);
        let resolved = revision::resolve_revision(&remote.url, revision, candidates, listed)?;
        let commit = revision::object_id(&resolved.commit)?;
        if commit.kind() != format {
            return Err(SourceError::CommitNotFound {
                url: remote.url.to_string(),
                commit: resolved.commit,
                detail: format!("its objects are named by {format}"),
            });
        }
        if request == RevisionRequest::Reference || resolved.reference.is_none() {
            return Ok(resolved);
        }
        // Another writer may be receiving this commit. `fetch` waits for it, but a connection must not.
        let Some(_write_guard) = lock.try_lock() else { return Ok(resolved) };
        if repository.has_object(commit) || self.is_cache_oversized(&path) {
            return Ok(resolved);
        }
        match self.receive(prepared, &repository, &resolved, exchange) {
            // `fetch` requests the commit by its id, and recreates the cache if necessary.
            Err(
                SourceError::Files { .. }
                | SourceError::Protocol { .. }
                | SourceError::CommitNotFound { .. },
            ) => Ok(resolved),
            received => received.map(|()| resolved),
        }
    }

    fn fetch_into(
        &self,
        path: &Path,
        remote: &Remote,
        resolved: &Resolved,
        directories: &[&str],
        interrupt: &Arc<AtomicBool>,
    ) -> Result<Tree, SourceError> {
        let commit = revision::object_id(&resolved.commit)?;
        let repository = self.cache.open_or_create(path, commit.kind())?;
        if !repository.has_object(commit) {
            self.fetch_commit(&repository, remote, resolved, interrupt)?;
        }
        commit::read_commit(&repository, commit, directories, &self.limits, self.source_root_of)
    }

    fn fetch_commit(
        &self,
        repository: &gix::Repository,
        remote: &Remote,
        resolved: &Resolved,
        interrupt: &Arc<AtomicBool>,
    ) -> Result<(), SourceError> {
        let by_id = self.fetch_name(repository, remote, &resolved.commit, resolved, interrupt);
        match (by_id, &resolved.reference) {
            (Ok(()), _) => Ok(()),
            // Old servers send references only.
            (Err(SourceError::Protocol { .. }), Some(reference)) => {
                self.fetch_name(repository, remote, reference, resolved, interrupt)
            }
            (Err(SourceError::Protocol { url, detail }), None)
                if messages::refuses_object(&detail) =>
            {
                Err(SourceError::CommitNotFound { url, commit: resolved.commit.clone(), detail })
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Fetches the commit of `resolved` by `name`: its id or its reference.
    fn fetch_name(
        &self,
        repository: &gix::Repository,
        remote: &Remote,
        name: &str,
        resolved: &Resolved,
        interrupt: &Arc<AtomicBool>,
    ) -> Result<(), SourceError> {
        let mut exchange = GitExchange::start(&remote.url, self.timeout, interrupt);
        let local_name = resolved.reference.as_deref().unwrap_or(&resolved.commit);
        let specs = [fetch_refspec(name, local_name)];
        let prepared = prepare_fetch(repository, remote, &specs, &mut exchange)?;
        self.receive(prepared, repository, resolved, &mut exchange)
    }

    /// Receives the commit. The caller holds the write lock of `repository`.
    fn receive(
        &self,
        prepared: PreparedFetch<'_>,
        repository: &gix::Repository,
        resolved: &Resolved,
        exchange: &mut GitExchange,
    ) -> Result<(), SourceError> {
        let packs = repository.objects.store_ref().path().join("pack");
        let bytes_max = size_of_files(&packs) + self.limits.pack_bytes_max;
        exchange.limit_growth(packs, bytes_max);
        prepared
            .with_shallow(gix::remote::fetch::Shallow::DepthAtRemote(NonZeroU32::MIN))
            .with_reflog_message(gix::remote::fetch::RefLogMessage::Prefixed {
                action: "fetch".to_owned(),
            })
            .receive(Discard, exchange.stop_flag())
            .map_err(|error| exchange.classify_error(&error))?;
        if repository.has_object(revision::object_id(&resolved.commit)?) {
            return Ok(());
        }
        Err(SourceError::CommitNotFound {
            url: exchange.url().to_string(),
            commit: resolved.commit.clone(),
            detail: "its reference has moved to another commit and is polled again".to_owned(),
        })
    }

    fn is_cache_oversized(&self, path: &Path) -> bool {
        self.cache.is_oversized(path, self.limits.pack_bytes_max * CACHE_FACTOR)
    }
}

/// `local_name` determines the local reference, by which the next fetch reports the objects that the cache has.
fn fetch_refspec(remote_name: &str, local_name: &str) -> String {
    let local = data_encoding::HEXLOWER.encode(&Sha256::digest(local_name.as_bytes()));
    format!("+{remote_name}:refs/attest/{local}")
}

/// Connects and lists the references that match `specs`. Follows a redirect on the same host.
fn prepare_fetch<'r>(
    repository: &'r gix::Repository,
    remote: &Remote,
    specs: &[String],
    exchange: &mut GitExchange,
) -> Result<PreparedFetch<'r>, SourceError> {
    match prepare_fetch_once(repository, remote, specs, exchange) {
        Err(failure) => {
            exchange.follow_redirect(remote, failure)?;
            prepare_fetch_once(repository, remote, specs, exchange)
        }
        prepared => prepared,
    }
}

fn prepare_fetch_once<'r>(
    repository: &'r gix::Repository,
    remote: &Remote,
    specs: &[String],
    exchange: &mut GitExchange,
) -> Result<PreparedFetch<'r>, SourceError> {
    let git_remote = repository
        .remote_at_without_url_rewrite(remote.url.address().as_str())
        .and_then(|git_remote| {
            git_remote.with_refspecs(specs.iter().map(String::as_str), Direction::Fetch)
        })
        .map(|git_remote| git_remote.with_fetch_tags(gix::remote::fetch::Tags::None))
        .map_err(|error| exchange.classify_error(&error))?;
    let (connection, options) = exchange.connect(remote)?;
    let mut request = git_remote
        .to_connection_with_transport(connection)
        .with_credentials(login_callback(remote));
    if let Some(options) = options {
        request.set_transport_options(options);
    }
    let prepared = request
        .prepare_fetch(Discard, Default::default())
        .map_err(|error| exchange.classify_error(&error))?;
    let format = prepared.ref_map().object_hash;
    if format == repository.object_hash() {
        return Ok(prepared);
    }
    Err(SourceError::ObjectFormat { url: remote.url.to_string(), format })
}

/// Returns name and commit of each listed reference. A tag is followed to its commit.
fn listed_references(prepared: &PreparedFetch<'_>) -> Vec<(String, String)> {
    let references = prepared.ref_map().remote_refs.iter();
    references
        .filter_map(|reference| {
            let (name, target, peeled) = reference.unpack();
            let commit = peeled.or(target)?.to_hex().to_string();
            Some((name.to_string(), commit))
        })
        .collect()
}

/// Returns the callback that gives gix the login, for the repository's own host only, even after a redirect.
fn login_callback(
    remote: &Remote,
) -> impl FnMut(
    gix::credentials::helper::Action,
) -> gix::Result<Option<gix::credentials::protocol::Outcome>>
+ 'static {
    use gix::credentials::helper::Action;

    let login = remote.credentials.login.clone();
    let host = remote.url.host().to_owned();
    let scheme = remote.url.scheme();
    move |action| {
        let (Action::Get(context), Some(login)) = (action, &login) else {
            return Ok(None);
        };
        let requested = context.url.as_ref().and_then(|url| gix::url::parse(url).ok());
        if !requested.is_some_and(|requested| is_own_host(&requested, &host, scheme)) {
            return Ok(None);
        }
        Ok(Some(gix::credentials::protocol::Outcome {
            identity: gix::sec::identity::Account {
                username: login.username.clone(),
                password: login.password.clone(),
                oauth_refresh_token: None,
            },
            next: context.into(),
        }))
    }
}

fn is_own_host(requested: &gix::Url, host: &str, scheme: Scheme) -> bool {
    let is_protected = requested.scheme == gix::url::Scheme::Https || scheme == Scheme::Http;
    is_protected && requested.host().is_some_and(|requested| requested.eq_ignore_ascii_case(host))
}
