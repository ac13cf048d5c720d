//! Git repositories as the hub and `attest run` see them: a revision becomes a commit, a commit becomes a [`Tree`].
//!
//! Nothing is ever checked out, and nothing of a repository is run. Every call blocks and belongs on a blocking
//! thread. What the files mean is decided elsewhere (`recipe`, `render`); when to ask again, too.

mod cache;
mod commit;
mod credentials;
mod error;
mod messages;
mod push;
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
pub use tree::{
    ATTEST_DIRECTORY, Limits, PATH_BYTES_MAX, PATH_DEPTH_MAX, RECEIPT_DIRECTORIES_MAX, RECIPE_FILE,
    Tree, clean_directory,
};
pub use url::{RepositoryUrl, Scheme, URL_BYTES_MAX, UrlError, UrlPolicy};
pub use worktree::WorkTree;

use cache::Cache;
use transport::{Call, Wire};

/// Longest revision that is read, in bytes.
pub const REVISION_BYTES_MAX: usize = 255;
/// How long one call may take unless told otherwise, in seconds.
pub const TIME_SECONDS_DEFAULT: u64 = 60;
/// How much larger than one fetch a cached repository may grow.
const CACHE_FACTOR: u64 = 2;

/// A repository and what it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Where it is.
    pub url: RepositoryUrl,
    /// What it asks for.
    pub credentials: Credentials,
}

/// What a revision means at the moment it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Full commit id, lower-case hexadecimal. A tag is followed to its commit.
    pub commit: String,
    /// Full name of the reference (`refs/heads/main`); absent when the revision is a commit id.
    pub reference: Option<String>,
}

/// Returns `sourceRoot` of the bytes of an `attest.yaml`, or `None` when they cannot be read as one.
pub type SourceRootOf = fn(&[u8]) -> Option<String>;

/// A server that has named what it has, and may be asked for it.
type Prepare<'r> = gix::remote::fetch::Prepare<'static, 'r, Wire>;

/// How much of a revision is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    Name,
    Commit,
}

/// Reads repositories through a cache directory. Shared by all threads.
#[derive(Debug)]
pub struct Source {
    cache: Cache,
    source_root_of: SourceRootOf,
    limits: Limits,
    time: Duration,
}

impl Source {
    /// `cache_directory` is created when needed, and everything in it may be removed at any time.
    /// `source_root_of` finds the directory that a repository declares as the root of its manifests.
    pub fn new(cache_directory: impl Into<PathBuf>, source_root_of: SourceRootOf) -> Self {
        Self {
            cache: Cache::new(cache_directory.into()),
            source_root_of,
            limits: Limits::default(),
            time: Duration::from_secs(TIME_SECONDS_DEFAULT),
        }
    }

    /// Read at most so much.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Give up a call after `time`.
    #[must_use]
    pub fn with_time(mut self, time: Duration) -> Self {
        self.time = time;
        self
    }

    /// Ask the server what `revision` is: a branch, a tag, `HEAD`, a full reference name or a full commit id.
    /// Only names are asked for; nothing is fetched. `interrupt` ends the call when it becomes true; an https
    /// server that is silent at that moment is waited for until the time limit.
    ///
    /// # Errors
    /// [`SourceError`]; a name that is both a branch and a tag is ambiguous even when both are the same commit.
    pub fn poll(
        &self,
        remote: &Remote,
        revision: &str,
        interrupt: &Arc<AtomicBool>,
    ) -> Result<Resolved, SourceError> {
        self.ask(remote, revision, Want::Name, interrupt)
    }

    /// As [`Source::poll`], and a new commit of a name is received on the same connection, so that
    /// [`Source::fetch`] finds it in the cache. What cannot be received this way is left to `fetch`.
    ///
    /// # Errors
    /// [`SourceError`], also for a commit that is too large or takes too long.
    pub fn look(
        &self,
        remote: &Remote,
        revision: &str,
        interrupt: &Arc<AtomicBool>,
    ) -> Result<Resolved, SourceError> {
        self.ask(remote, revision, Want::Commit, interrupt)
    }

    /// The files of a commit. It is fetched, alone and once, unless the cache has it.
    ///
    /// Read are `attest.yaml`, `.attest/` (the newest [`RECEIPT_DIRECTORIES_MAX`] releases of each application),
    /// the `sourceRoot` that `attest.yaml` declares, and `directories`.
    ///
    /// # Errors
    /// [`SourceError`]; a directory of `directories` that the commit does not have is `PathMissing`.
    pub fn fetch(
        &self,
        remote: &Remote,
        resolved: &Resolved,
        directories: &[&str],
        interrupt: &Arc<AtomicBool>,
    ) -> Result<Tree, SourceError> {
        let place = self.cache.place(&remote.url.address());
        let lock = self.cache.lock(&place);
        let _one_writer = lock.lock();
        if self.is_worn(&place) {
            self.cache.renew(&place)?;
        }
        let had_something = self.cache.has_packs(&place);
        match self.fetch_into(&place, remote, resolved, directories, interrupt) {
            // Half a cache, as a full disk or a killed process leaves it: once more from nothing.
            Err(SourceError::Files { .. } | SourceError::Protocol { .. }) if had_something => {
                self.cache.renew(&place)?;
                self.fetch_into(&place, remote, resolved, directories, interrupt)
            }
            fetched => fetched,
        }
    }

    /// Whether the credentials would be let in to push. Nothing is changed. Files never count.
    ///
    /// # Errors
    /// [`SourceError`] when the question could not be asked.
    pub fn can_push(
        &self,
        remote: &Remote,
        interrupt: &Arc<AtomicBool>,
    ) -> Result<bool, SourceError> {
        let mut call = Call::begin(&remote.url, self.time, interrupt);
        push::answered(remote, &mut call, self.time)
    }

    fn ask(
        &self,
        remote: &Remote,
        revision: &str,
        want: Want,
        interrupt: &Arc<AtomicBool>,
    ) -> Result<Resolved, SourceError> {
        check_revision(revision)?;
        let names = candidates(revision);
        let place = self.cache.place(&remote.url.address());
        let lock = self.cache.lock(&place);
        // Opening may make it anew: not while somebody fetches into it.
        let opened = {
            let _one_writer = lock.lock();
            self.cache.open(&place)
        };
        let repository = opened?;
        let mut call = Call::begin(&remote.url, self.time, interrupt);
        let specs: Vec<String> = names.iter().map(|name| refspec(name, name)).collect();
        let prepared = prepare(&repository, remote, &specs, &mut call)?;
        let found = prepared.ref_map().remote_refs.iter().filter_map(|reference| {
            let (name, target, peeled) = reference.unpack();
            let commit = peeled.or(target)?.to_hex().to_string();
            Some((name.to_string(), commit))
        });
        let resolved = resolve(&remote.url, revision, &names, found.collect())?;
        if want == Want::Name || resolved.reference.is_none() {
            return Ok(resolved);
        }
        // Whoever writes may be bringing this very commit: `fetch` waits for it, a connection does not.
        let Some(_one_writer) = lock.try_lock() else { return Ok(resolved) };
        if repository.has_object(object_id(&resolved.commit)?) || self.is_worn(&place) {
            return Ok(resolved);
        }
        match self.receive(prepared, &repository, &resolved, &mut call) {
            // `fetch` asks for the commit by its id, and once more from nothing.
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
        place: &Path,
        remote: &Remote,
        resolved: &Resolved,
        directories: &[&str],
        interrupt: &Arc<AtomicBool>,
    ) -> Result<Tree, SourceError> {
        let commit = object_id(&resolved.commit)?;
        let repository = self.cache.open(place)?;
        if !repository.has_object(commit) {
            self.bring(&repository, remote, resolved, interrupt)?;
        }
        commit::read(&repository, commit, directories, &self.limits, self.source_root_of)
    }

    fn bring(
        &self,
        repository: &gix::Repository,
        remote: &Remote,
        resolved: &Resolved,
        interrupt: &Arc<AtomicBool>,
    ) -> Result<(), SourceError> {
        let by_id = self.bring_one(repository, remote, &resolved.commit, resolved, interrupt);
        match (by_id, &resolved.reference) {
            (Ok(()), _) => Ok(()),
            // Old servers give out references only.
            (Err(SourceError::Protocol { .. }), Some(reference)) => {
                self.bring_one(repository, remote, reference, resolved, interrupt)
            }
            (Err(SourceError::Protocol { url, detail }), None)
                if messages::refuses_object(&detail) =>
            {
                Err(SourceError::CommitNotFound { url, commit: resolved.commit.clone(), detail })
            }
            (Err(error), _) => Err(error),
        }
    }

    fn bring_one(
        &self,
        repository: &gix::Repository,
        remote: &Remote,
        what: &str,
        resolved: &Resolved,
        interrupt: &Arc<AtomicBool>,
    ) -> Result<(), SourceError> {
        let mut call = Call::begin(&remote.url, self.time, interrupt);
        let name = resolved.reference.as_deref().unwrap_or(&resolved.commit);
        let prepared = prepare(repository, remote, &[refspec(what, name)], &mut call)?;
        self.receive(prepared, repository, resolved, &mut call)
    }

    /// Nobody else may write to `repository` meanwhile.
    fn receive(
        &self,
        prepared: Prepare<'_>,
        repository: &gix::Repository,
        resolved: &Resolved,
        call: &mut Call,
    ) -> Result<(), SourceError> {
        let packs = repository.objects.store_ref().path().join("pack");
        let bytes_max = transport::size_of(&packs) + self.limits.pack_bytes_max;
        call.limit_growth(packs, bytes_max);
        let shallow = gix::remote::fetch::Shallow::DepthAtRemote(NonZeroU32::MIN);
        let received = prepared
            .with_shallow(shallow)
            .with_reflog_message(gix::remote::fetch::RefLogMessage::Prefixed {
                action: "fetch".to_owned(),
            })
            .receive(Discard, call.stop());
        received.map_err(|error| call.failure(&error))?;
        if repository.has_object(object_id(&resolved.commit)?) {
            return Ok(());
        }
        Err(SourceError::CommitNotFound {
            url: call.url().to_string(),
            commit: resolved.commit.clone(),
            detail: "its name is at another commit by now; it is asked again".to_owned(),
        })
    }

    fn is_worn(&self, place: &Path) -> bool {
        self.cache.is_worn(place, self.limits.pack_bytes_max * CACHE_FACTOR)
    }

    /// Where the cached repository of `url` lies, for measuring it.
    pub fn cached_at(&self, url: &RepositoryUrl) -> impl AsRef<Path> + use<> {
        self.cache.place(&url.address())
    }
}

/// `name` decides the local name, which lets the next fetch say what is already here.
fn refspec(what: &str, name: &str) -> String {
    let local = data_encoding::HEXLOWER.encode(&Sha256::digest(name.as_bytes()));
    format!("+{what}:refs/attest/{local}")
}

/// Connects, and asks for the names in `specs`.
fn prepare<'r>(
    repository: &'r gix::Repository,
    remote: &Remote,
    specs: &[String],
    call: &mut Call,
) -> Result<Prepare<'r>, SourceError> {
    let asked = repository
        .remote_at_without_url_rewrite(remote.url.address().as_str())
        .and_then(|asked| asked.with_refspecs(specs.iter().map(String::as_str), Direction::Fetch))
        .map(|asked| asked.with_fetch_tags(gix::remote::fetch::Tags::None))
        .map_err(|error| call.failure(&error))?;
    let (wire, options) = call.wire(remote)?;
    let mut asking = asked.to_connection_with_transport(wire).with_credentials(answer_with(remote));
    if let Some(options) = options {
        asking.set_transport_options(options);
    }
    asking.prepare_fetch(Discard, Default::default()).map_err(|error| call.failure(&error))
}

/// The login goes to the repository's own host, also when the server redirects elsewhere.
fn answer_with(
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
        let asked = context.url.as_ref().and_then(|url| gix::url::parse(url).ok());
        let own_host = asked.is_some_and(|asked| {
            let encrypted = asked.scheme == gix::url::Scheme::Https || scheme == Scheme::Http;
            encrypted && asked.host().is_some_and(|asked| asked.eq_ignore_ascii_case(&host))
        });
        Ok(own_host.then(|| gix::credentials::protocol::Outcome {
            identity: gix::sec::identity::Account {
                username: login.username.clone(),
                password: login.password.clone(),
                oauth_refresh_token: None,
            },
            next: context.into(),
        }))
    }
}

fn object_id(commit: &str) -> Result<gix::ObjectId, SourceError> {
    gix::ObjectId::from_hex(commit.as_bytes()).map_err(|_| SourceError::RevisionMalformed {
        revision: commit.to_owned(),
        problem: "it is no full commit id",
    })
}

fn is_commit_id(revision: &str) -> bool {
    matches!(revision.len(), 40 | 64) && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn check_revision(revision: &str) -> Result<(), SourceError> {
    let refuse = |problem| {
        Err(SourceError::RevisionMalformed {
            revision: revision.chars().take(REVISION_BYTES_MAX).collect(),
            problem,
        })
    };
    if revision.len() > REVISION_BYTES_MAX {
        return refuse("it is longer than 255 bytes");
    }
    if revision.starts_with('-') {
        return refuse("it begins with `-`");
    }
    if revision.contains(['~', '^', ':', '*', '?', '[', '\\', ' ', '@']) {
        return refuse("expressions and patterns are not followed; write the name itself");
    }
    let full = format!("refs/heads/{}", revision.trim_start_matches("refs/"));
    match gix::validate::reference::name(full.as_str().into()) {
        Ok(_) => Ok(()),
        Err(_) => refuse("Git does not allow such a name"),
    }
}

/// Full names that a revision may stand for. A commit id is asked for as a name as well: it must not be one.
fn candidates(revision: &str) -> Vec<String> {
    if revision == "HEAD" || revision.starts_with("refs/") {
        return vec![revision.to_owned()];
    }
    vec![format!("refs/heads/{revision}"), format!("refs/tags/{revision}")]
}

fn resolve(
    url: &RepositoryUrl,
    revision: &str,
    wanted: &[String],
    found: Vec<(String, String)>,
) -> Result<Resolved, SourceError> {
    let url = url.to_string();
    let revision_owned = revision.to_owned();
    let mut named: Vec<(String, String)> =
        found.into_iter().filter(|(name, _)| wanted.contains(name)).collect();
    named.sort();
    named.dedup();
    if is_commit_id(revision) {
        if named.is_empty() {
            return Ok(Resolved { commit: revision.to_ascii_lowercase(), reference: None });
        }
        named.push(("the commit itself".to_owned(), String::new()));
    }
    let names: Vec<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
    match names.as_slice() {
        [] => Err(SourceError::ReferenceNotFound { url, revision: revision_owned }),
        [_] => {
            let (reference, commit) = named.swap_remove(0);
            Ok(Resolved { commit, reference: Some(reference) })
        }
        several => Err(SourceError::ReferenceAmbiguous {
            url,
            revision: revision_owned,
            candidates: several.join(", "),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    const OTHER: &str = "89abcdef0123456789abcdef0123456789abcdef";

    fn resolved(revision: &str, found: &[(&str, &str)]) -> Result<Resolved, SourceError> {
        let url = RepositoryUrl::parse("https://git.example/a", &UrlPolicy::default()).unwrap();
        let found = found.iter().map(|(name, id)| ((*name).into(), (*id).into())).collect();
        resolve(&url, revision, &candidates(revision), found)
    }

    #[test]
    fn a_name_that_is_a_branch_and_a_tag_is_ambiguous() {
        let both = [("refs/heads/v1", COMMIT), ("refs/tags/v1", COMMIT)];

        let error = resolved("v1", &both).unwrap_err();

        assert_eq!(error.reason().as_str(), "ReferenceAmbiguous");
        assert!(error.to_string().contains("refs/heads/v1, refs/tags/v1"), "{error}");
        let full = resolved("refs/tags/v1", &both).unwrap();
        assert_eq!(full.reference.as_deref(), Some("refs/tags/v1"));
    }

    #[test]
    fn a_branch_that_looks_like_a_commit_is_ambiguous() {
        let error = resolved(COMMIT, &[(&format!("refs/heads/{COMMIT}"), OTHER)]).unwrap_err();

        assert_eq!(error.reason().as_str(), "ReferenceAmbiguous");
        assert_eq!(resolved(&COMMIT.to_uppercase(), &[]).unwrap().commit, COMMIT);
    }

    #[test]
    fn names_beside_the_wanted_ones_do_not_count() {
        let answer = [("refs/heads/main-2", OTHER), ("refs/heads/main", COMMIT), ("HEAD", COMMIT)];

        assert_eq!(resolved("main", &answer).unwrap().commit, COMMIT);
        assert_eq!(
            resolved("nothing", &answer).unwrap_err().reason().as_str(),
            "ReferenceNotFound"
        );
    }

    #[test]
    fn revisions_that_are_expressions_are_refused() {
        for revision in
            ["HEAD~1", "main^", "a:b", "--upload-pack=x", "a..b", "", "refs/", "a b", "@{u}"]
        {
            let error = check_revision(revision).unwrap_err();
            assert_eq!(error.reason().as_str(), "RevisionMalformed", "{revision}");
        }
        for revision in ["HEAD", "main", "v1.2.3", "feature/x", "refs/heads/main", COMMIT] {
            check_revision(revision).unwrap();
        }
    }
}
